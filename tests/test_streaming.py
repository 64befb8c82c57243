"""Statistics of files and batches: equal to rows in memory, interrupted, resumed, refused."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

import perfalign_jax as pa
from perfalign_jax import arrays, serialization, streaming

DIMS = (6, 5)


@pytest.fixture
def long(tmp_path, rng, monkeypatch):
    """Views that are read in many blocks, with a common mean, and weights."""
    monkeypatch.setattr(arrays, "_BLOCK", 1000)
    monkeypatch.setattr(streaming, "_LONGEST", 2000)
    views = tuple(3 + rng.normal(size=(190, d)) @ rng.normal(size=(d, d)) for d in DIMS)
    paths = [tmp_path / f"x{m + 1}.npy" for m in range(2)]
    for path, x in zip(paths, views, strict=True):
        np.save(path, x)
    return paths, views, rng.uniform(0, 2, 190)


def reference(views, weights):
    """Weighted mean and scatter in float64 NumPy."""
    x = np.concatenate([np.asarray(v, np.float64) for v in views], axis=1)
    mean = weights @ x / weights.sum()
    return mean, (x - mean).T @ (weights[:, None] * (x - mean))


def assert_is(state, views, weights, *, rtol=1e-12):
    mean, scatter = reference(views, weights)
    assert state.samples == len(weights)
    assert float(state.weight) == pytest.approx(weights.sum(), rel=1e-6)
    np.testing.assert_allclose(np.concatenate(state.means), mean, rtol=rtol, atol=rtol)
    if isinstance(state, pa.statistics.Factor):
        root = np.concatenate(state.blocks, axis=1).astype(np.float64)
        found = root.T @ root
    else:
        found = np.asarray(state.scatter)
    np.testing.assert_allclose(found, scatter, atol=rtol * np.abs(scatter).max() * 10)


@pytest.mark.parametrize("kind", ["factor", "gram"])
def test_files_give_the_statistic_of_their_rows(kind, long, tmp_path, x64):
    paths, views, weights = long
    assert_is(streaming.from_files(paths, kind=kind), views, np.ones(190))
    np.save(tmp_path / "w.npy", weights)
    weighed = streaming.from_files(paths, kind=kind, weights=tmp_path / "w.npy")
    assert_is(weighed, views, weights)
    parts = streaming.from_files(paths, kind=kind, parts=3)
    assert sum(part.samples for part in parts) == 190
    whole = pa.statistics.merge(pa.statistics.merge(*parts[:2]), parts[2])
    assert_is(whole, views, np.ones(190))


@pytest.mark.parametrize("kind", ["factor", "gram"])
def test_batches_of_any_size_do_as_well(kind, long, x64):
    _, views, _ = long
    edges = [0, 1, 3, 90, 91, 190]
    batches = [[x[a:b] for x in views] for a, b in itertools.pairwise(edges)]
    assert_is(streaming.from_batches(batches, kind=kind), views, np.ones(190))


def test_a_factor_of_float32_rows_has_the_digits_of_float64(rng):
    """Directions of sizes 1 to 1e-4: products in float32 would lose those below 3e-4."""
    d, sizes = 8, np.logspace(0, -4, 8)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    x = np.float32((rng.normal(size=(4000, d)) * sizes) @ turn)
    state = streaming.from_batches(
        (x[i : i + 500, :4], x[i : i + 500, 4:]) for i in range(0, 4000, 500)
    )
    own = x.astype(np.float64)
    expected = np.linalg.svd(own - own.mean(axis=0), compute_uv=False)
    found = np.linalg.svd(np.concatenate(state.blocks, axis=1).astype(np.float64), compute_uv=False)
    # A float32 root has errors of eps / 2 of the largest value, some 6e-8, beside 1e-4.
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    np.testing.assert_allclose(found[:4], expected[:4], rtol=1e-5)


def test_fits_are_those_of_rows_in_memory(long, x64):
    paths, views, _ = long
    state = streaming.from_files(paths)
    for center in (False, True):
        one, other = (pa.fit(data, k=3, center=center, check=False) for data in (state, views))
        np.testing.assert_allclose(one.singular_values, other.singular_values, rtol=1e-9)


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_pass_ends_in_the_same_bits(after, long, tmp_path, monkeypatch, x64):
    paths, _, _ = long
    kept = tmp_path / "state.safetensors"
    whole = streaming.from_files(paths, parts=2)
    add, seen = streaming.Moments.add, []

    def stop_at_four(self, *block):
        seen.append(1)
        if len(seen) == 4:
            if after:  # the block is in, but not yet counted
                add(self, *block)
            raise KeyboardInterrupt
        add(self, *block)

    monkeypatch.setattr(streaming.Moments, "add", stop_at_four)
    with pytest.raises(KeyboardInterrupt):
        streaming.from_files(paths, parts=2, checkpoint=kept)
    before = len(seen)
    again = streaming.from_files(paths, parts=2, checkpoint=kept)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
        assert np.array_equal(a, b)
    after = len(seen)
    assert streaming.from_files(paths, parts=2, checkpoint=kept)[0].samples  # finished: not read
    assert len(seen) == after > before
    with pytest.raises(ValueError, match="is of other data or options"):
        streaming.from_files(paths, parts=3, checkpoint=kept)
    content = bytearray(kept.read_bytes())
    content[-3] ^= 1
    kept.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="is damaged"):
        streaming.from_files(paths, parts=2, checkpoint=kept)


@pytest.mark.slow
def test_a_killed_pass_goes_on(tmp_path):
    x = np.random.default_rng(0).normal(size=(4000, 6))
    np.save(tmp_path / "x.npy", x)
    script = textwrap.dedent(
        """
        import sys, time
        import jax
        jax.config.update("jax_enable_x64", True)
        from perfalign_jax import arrays, streaming
        arrays._BLOCK, streaming._LONGEST, streaming._EVERY = 1000, 1000, 0.0
        add = streaming.Moments.add
        def slow(self, *block):
            time.sleep(0.01)
            add(self, *block)
        streaming.Moments.add = slow
        streaming.from_files(["x.npy", "x.npy"], checkpoint="state.safetensors")
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    kept = tmp_path / "state.safetensors"
    until = time.monotonic() + 120
    while not kept.exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    words = serialization.read_arrays(kept, "a checkpoint", "perfalign_jax.Checkpoint")[1]
    assert 0 < int(words["blocks"]) < 100
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert done.returncode == 0
    arrays_, _ = serialization.read_arrays(kept, "a checkpoint", "perfalign_jax.Checkpoint")
    assert arrays_["0.counts"].tolist() == [4000, 4000]


def test_a_value_that_is_not_finite_is_named_and_the_rows_before_are_kept(long, tmp_path, x64):
    paths, views, _ = long
    views[1][150, 3] = np.nan
    np.save(paths[1], views[1])
    kept = tmp_path / "state.safetensors"
    with pytest.raises(ValueError, match=r"x2.npy must be finite, but row 150 has NaN") as caught:
        streaming.from_files(paths, checkpoint=kept)
    assert "rows before are kept in" in caught.value.__notes__[0]
    assert kept.exists()
    batches = [[x[i : i + 50] for x in views] for i in range(0, 190, 50)]
    with pytest.raises(ValueError, match=r"x2 must be finite, but row 150 has NaN"):
        streaming.from_batches(batches)


def test_memory_that_is_used_again_is_copied_in_time(rng, x64):
    x = rng.normal(size=(300, 4))
    space = np.empty((50, 4))

    def batches():
        for start in range(0, 300, 50):
            space[:] = x[start : start + 50]
            yield space, space

    assert_is(streaming.from_batches(batches()), (x, x), np.ones(300))


def test_going_on_with_other_batches_is_refused(rng, tmp_path, x64):
    x = rng.normal(size=(200, 3))
    kept = tmp_path / "state.safetensors"

    def batches(size, stop=None, factor=1.0):
        for number, start in enumerate(range(0, 200, size)):
            if number == stop:
                raise OSError("the line is down")
            yield factor * x[start : start + size], x[start : start + size]

    with pytest.raises(OSError, match="the line is down"):
        streaming.from_batches(batches(20, 4), checkpoint=kept)
    content = kept.read_bytes()
    for other in (batches(40), batches(20, factor=2.0)):
        with pytest.raises(ValueError, match="has seen other batches before: the first 4"):
            streaming.from_batches(other, checkpoint=kept)
        kept.write_bytes(content)
    with pytest.raises(ValueError, match=r"batches must be at least 4 .* got 2"):
        streaming.from_batches(list(batches(20))[:2], checkpoint=kept)
    assert_is(streaming.from_batches(batches(20), checkpoint=kept), (x, x), np.ones(200))


@pytest.mark.parametrize(("n", "parts"), [(9, 4), (190, 7), (200, 100)])
def test_no_part_is_empty(n, parts, tmp_path, rng, x64):
    x = rng.normal(size=(n, 3))
    np.save(tmp_path / "x.npy", x)
    found = streaming.from_files([tmp_path / "x.npy"] * 2, parts=parts)
    assert sum(part.samples for part in found) == n
    assert min(part.samples for part in found) >= 2


def test_bad_input_is_refused(long, tmp_path, x64):
    paths, views, _ = long
    for files in (paths[0], views, paths[:1], (p for p in paths)):
        with pytest.raises(TypeError, match="files must be two or more paths"):
            streaming.from_files(files)
    with pytest.raises(TypeError, match="weights must be the path of a file"):
        streaming.from_files(paths, weights=np.ones(190))
    with pytest.raises(TypeError, match="checkpoint must be a path, got int"):
        streaming.from_files(paths, checkpoint=3)
    with pytest.raises(TypeError, match="batches must be an iterable"):
        streaming.from_batches(5)
    with pytest.raises(ValueError, match=r"batches must be at least 3 .* got 2"):
        streaming.from_batches([views, views], parts=3)
    with pytest.raises(ValueError, match="kind must be one of"):
        streaming.from_files(paths, kind="samples")
    np.save(tmp_path / "w.npy", np.ones(7))
    with pytest.raises(ValueError, match=r"weights must have shape \(190,\)"):
        streaming.from_files(paths, weights=tmp_path / "w.npy")
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        streaming.from_files(paths, checkpoint=tmp_path / "no" / "state.safetensors")
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        streaming.from_batches([])
    wrong = [views, (views[0], views[0])]
    with pytest.raises(ValueError, match=r"batch 1 must have \(6, 5\) features, got \(6, 6\)"):
        streaming.from_batches(wrong)
    with pytest.raises(ValueError, match="at least 400 rows for 200"):
        streaming.from_files(paths, parts=200)


def test_arrays_that_are_no_statistic_are_refused(rng, tmp_path):
    x = rng.normal(size=(30, 4)).astype(np.float32)
    kind, arrays_ = pa.statistics.take_apart(pa.statistics.from_views((x, x)))
    path, form = tmp_path / "s.safetensors", "perfalign_jax.Moments"
    for broken, word in (
        (arrays_ | {"means.0": np.ones(3, "f4")}, kind),
        ({n: a for n, a in arrays_.items() if n != "total"}, kind),
        ({n: a for n, a in arrays_.items() if n[-1] != "1"}, kind),
        (arrays_, "Nope"),
        (arrays_ | {"total": np.array([np.nan, 0], "f4")}, kind),
    ):
        serialization.write_arrays(path, broken, form, {"kind": word})
        with pytest.raises(ValueError, match=r"holds no statistic|not finite"):
            pa.load(path)


@pytest.mark.parametrize("kind", ["factor", "gram"])
def test_moments_are_saved_and_loaded_bit_for_bit(kind, rng, tmp_path):
    x = rng.normal(size=(30, 4)).astype(np.float32)
    state = pa.statistics.from_views((x, x[:, :2]), kind=kind)
    pa.save(state, tmp_path / "s.safetensors")
    again = pa.load(tmp_path / "s.safetensors")
    assert type(again) is type(state)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert np.array_equal(a, b)
        assert a.dtype == b.dtype
    assert pa.statistics.merge(again, state).samples == 60


def test_a_masked_batch_is_refused_as_a_masked_view_is():
    x = np.ones((4, 2), np.float32)
    hidden = np.ma.masked_array(x, mask=x > 0)
    with pytest.raises((TypeError, ValueError), match="plain array"):
        streaming.from_batches([(x, x), (hidden, x)])


def test_batches_of_any_precision_in_any_order_have_the_coarsest(rng, x64):
    wide = [tuple(rng.normal(size=(30, 2)) for _ in range(2)) for _ in range(2)]
    narrow = [tuple(x.astype(np.float32) for x in batch) for batch in wide]
    for batches in ([wide[0], narrow[1]], [narrow[1], wide[0]]):
        state = streaming.from_batches(batches)
        assert float(state.coarsest) == np.finfo(np.float32).eps


def test_a_generator_makes_arrays_in_the_callers_precision(rng, x64):
    x = rng.normal(size=(30, 2))
    state = streaming.from_batches((jax.numpy.asarray(x), jax.numpy.asarray(x)) for _ in range(3))
    assert float(state.coarsest) == 0 or float(state.coarsest) == np.finfo(np.float64).eps
    assert np.abs(np.asarray(state.means[0]) - x.mean(axis=0)).max() < 1e-14
