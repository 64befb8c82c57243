"""The statistics are exact to rounding, whatever the batches and the merge order."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perfalign_jax as pa
from perfalign_jax import statistics

KINDS = ("factor", "gram")
ALL_KINDS = ("samples", *KINDS)


def reference(x1, x2, weights, center):
    """Second moments by float64 NumPy, and the means."""
    x = np.hstack([x1, x2]).astype(np.float64)
    mean = weights @ x / weights.sum()
    rows = x - mean if center else x
    return rows.T @ (weights[:, None] * rows), mean


def moments(state, center):
    b = np.hstack([np.asarray(block) for block in statistics.rows(state, center=center).blocks])
    return b.T @ b


def assert_same(state, x1, x2, weights, *, digits=1):
    """Agree with NumPy to a few roundings of the entries of the second moments."""
    eps = np.finfo(np.asarray(state.weight).dtype).eps
    size = np.hstack([x1, x2]).astype(np.float64)
    scale = (np.abs(size).T * weights) @ np.abs(size)  # the sums of which rounding takes a share
    for center in (True, False):
        wanted, mean = reference(x1, x2, weights, center)
        error = np.abs(moments(state, center) - wanted)
        # 40 eps per entry covers the few dozen operations on each; measured: below 10 eps.
        assert (error <= 40 * digits * eps * scale.max()).all()
        rows = statistics.rows(state, center=center)
        np.testing.assert_allclose(
            np.concatenate(rows.means), mean, atol=20 * eps * np.abs(size).max()
        )
        constant = np.sqrt(weights.sum()) * mean * (not center)
        np.testing.assert_allclose(
            np.concatenate([rows.constant @ block for block in rows.blocks]),
            constant,
            atol=40 * eps * np.sqrt(len(weights)) * np.abs(size).max(),
        )
    np.testing.assert_allclose(state.weight, weights.sum(), rtol=20 * eps)
    assert state.samples == len(weights)


@st.composite
def batches(draw):
    sizes = draw(st.lists(st.sampled_from([1, 2, 5, 9]), min_size=1, max_size=5))
    order = draw(st.permutations(range(len(sizes))))
    seed = draw(st.integers(0, 2**16))
    offset = draw(st.sampled_from([0.0, 100.0]))
    weighted = draw(st.booleans())
    return sizes, order, seed, offset, weighted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_KINDS)
@settings(max_examples=25, deadline=None)
@given(plan=batches())
def test_any_batches_in_any_order_give_the_statistic_of_the_whole(kind, plan):
    sizes, order, seed, offset, weighted = plan
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    x1, x2 = rng.normal(size=(n, 3)) + offset, rng.normal(size=(n, 2))
    weights = rng.uniform(0, 2, n) if weighted else np.ones(n)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    with jax.enable_x64(True):
        parts = [slice(edges[i], edges[i + 1]) for i in order]
        states = [
            statistics.from_views((x1[p], x2[p]), weights=weights[p], kind=kind) for p in parts
        ]
        streamed = statistics.init((3, 2), kind=kind) if kind in KINDS else states[0]
        for part in parts if kind in KINDS else parts[1:]:
            streamed = statistics.update(streamed, (x1[part], x2[part]), weights=weights[part])
        while len(states) > 1:  # a merge tree
            states = [
                statistics.merge(*states[i : i + 2]) if i + 1 < len(states) else states[i]
                for i in range(0, len(states), 2)
            ]
        assert_same(streamed, x1, x2, weights)
        assert_same(states[0], x1, x2, weights)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_keeps_its_digits_under_a_large_common_mean(kind, rng):
    x1 = (rng.normal(size=(500, 3)) + 1000).astype(np.float32)
    x2 = (rng.normal(size=(500, 2)) - 1000).astype(np.float32)
    state = statistics.init((3, 2), kind=kind, dtype="float32")
    for i in range(0, 500, 100):
        state = statistics.update(state, (x1[i : i + 100], x2[i : i + 100]))
    assert state.weight.dtype == jnp.float32
    wanted, _ = reference(x1, x2, np.ones(500), center=True)
    # Means of size 1000 are known to eps * 1000 = 1e-4; each merge of means moves that much
    # times the spread (1) times the samples (500) into the scatter, whose entries are near 500.
    assert np.abs(moments(state, center=True) - wanted).max() < 0.2
    # Without a centred merge the cancellation would cost eps * 1000^2 * 500 = 60.


def test_factor_is_the_r_factor_of_ones_and_views(x64, rng):
    x1, x2 = rng.normal(size=(40, 3)), rng.normal(size=(40, 2)) + 5
    state = statistics.from_views((x1, x2))
    r = np.linalg.qr(np.hstack([np.ones((40, 1)), x1, x2]), mode="r")
    below = np.hstack([np.asarray(b) for b in state.blocks])
    np.testing.assert_allclose(np.abs(below), np.abs(r[1:, 1:]), atol=1e-12)
    first = np.sqrt(40) * np.concatenate([np.asarray(m) for m in state.means])
    np.testing.assert_allclose(first, np.sign(r[0, 0]) * r[0, 1:], atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 7, 30])
def test_rows_never_outnumber_samples_or_features(n, x64, rng):
    state = statistics.from_views((rng.normal(size=(n, 3)), rng.normal(size=(n, 2))))
    assert state.blocks[0].shape[0] == min(n - 1, 5)
    assert statistics.rows(state, center=False).blocks[0].shape[0] == min(n, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_count_samples(kind, x64, rng):
    x1, x2 = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    counts = rng.integers(0, 3, 12)
    weighted = statistics.from_views((x1, x2), weights=counts.astype(float), kind=kind)
    repeated = np.repeat(np.arange(12), counts)
    assert_same(weighted, x1, x2, counts.astype(float))
    np.testing.assert_allclose(
        moments(weighted, center=True),
        reference(x1[repeated], x2[repeated], np.ones(len(repeated)), True)[0],
        atol=1e-13,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_all_zero_weights_leave_nothing_and_no_nan(kind, rng):
    x = rng.normal(size=(6, 2)).astype(np.float32)
    state = statistics.from_views((x, x), weights=np.zeros(6, np.float32), kind=kind)
    merged = statistics.merge(state, state)
    chex.assert_tree_all_finite(merged)
    assert float(merged.weight) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_jit_and_vmap(kind, x64, rng):
    x1, x2 = rng.normal(size=(4, 9, 3)), rng.normal(size=(4, 9, 2))

    def build(a, b):
        return statistics.from_views((a, b), kind=kind)

    batch = jax.vmap(build)(x1, x2)
    for i in range(4):
        one = jax.jit(build)(x1[i], x2[i])
        chex.assert_trees_all_close(one, build(x1[i], x2[i]), atol=1e-12)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], batch), one, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batches", [1, 6])
def test_a_scan_carries_the_statistic_of_nothing_through_batches(kind, batches, x64, rng):
    x1, x2 = rng.normal(size=(batches, 3, 3)), rng.normal(size=(batches, 3, 2))
    end, _ = jax.lax.scan(
        lambda state, batch: (statistics.update(state, batch), None),
        statistics.init((3, 2), kind=kind),
        (x1, x2),
    )
    n = 3 * batches
    assert_same(end, x1.reshape(n, 3), x2.reshape(n, 2), np.ones(n))


def test_an_update_is_compiled_once_for_a_batch_shape(rng):
    x = rng.normal(size=(4, 5)).astype(np.float32)
    statistics._update.clear_cache()
    state = statistics.init((5, 5))
    for _ in range(5):  # from fewer samples than features to more
        state = statistics.update(state, (x, x))
    assert statistics._update._cache_size() == 1


def test_ten_billion_samples_are_counted_right_in_float32(rng):
    """A float32 sum of ones stops at 2^24, and an int32 at 2^31."""
    x = rng.normal(size=(1_000_003, 1)).astype(np.float32)
    state = statistics.from_views((x, x), kind="gram")
    for _ in range(14):
        state = statistics.merge(state, state)
    batch = statistics.from_views((x[:1], x[:1]), kind="gram")
    for _ in range(3):  # each far below the rounding of the sum
        state = statistics.merge(state, batch)
    exact = 1_000_003 * 2**14 + 3
    assert state.samples == exact
    assert np.asarray(state.total, np.float64).sum() == exact


def test_a_bad_row_is_counted_over_all_batches(rng):
    x = rng.normal(size=(6, 2)).astype(np.float32)
    bad = x.copy()
    bad[2, 1] = np.nan
    state = statistics.update(statistics.init((2, 2)), (x, x))
    with pytest.raises(ValueError, match=r"x2 must be finite, but row 8 has NaN"):
        statistics.update(state, (x, bad))
    assert state.samples == 6  # what was seen before is kept


def test_it_is_said_on_a_line(rng):
    x = rng.normal(size=(6, 2)).astype(np.float32)
    for kind in ALL_KINDS:
        state = statistics.from_views((x, x), kind=kind)
        assert repr(state) == f"{type(state).__name__}(samples=6, dims=(2, 2), dtype=float32)"


def test_gradient_through_the_factor_equals_that_of_the_gram_matrix(x64, rng):
    # Rank-deficient on purpose: the QR's own derivative divides by zero there.
    z = rng.normal(size=(30, 2))
    x1, x2 = z @ rng.normal(size=(2, 3)), z @ rng.normal(size=(2, 2))
    probe = rng.normal(size=(5, 5))

    def through(kind):
        def value(a):
            state = statistics.from_views((a, x2), kind=kind)
            if kind == "gram":
                return jnp.sum(probe * state.scatter)
            b = jnp.concatenate(state.blocks, axis=1)
            return jnp.sum(probe * (b.T @ b))

        return value

    factor, gram = (jax.grad(through(kind))(jnp.asarray(x1)) for kind in KINDS)
    np.testing.assert_allclose(factor, gram, atol=1e-11 * np.abs(gram).max())


def test_bad_input_is_named(rng):
    x1, x2 = (rng.normal(size=(6, d)).astype(np.float32) for d in (3, 2))
    state = statistics.from_views((x1, x2))
    with pytest.raises(ValueError, match=r"kind must be one of 'factor', 'gram', got 'qr'"):
        statistics.init((3, 2), kind="qr")
    with pytest.raises(ValueError, match=r"weights must be None with a statistic"):
        pa.fit(state, k=1, weights=np.ones(6, np.float32))
    with pytest.raises(ValueError, match=r"dims must be a tuple \(d1, d2\), got 3"):
        statistics.init(3)
    with pytest.raises(ValueError, match=r"dims\[1\] must be at least 1, got 0"):
        statistics.init((3, 0))
    with pytest.raises(ValueError, match=r"dtype must be float32 or float64, got float16"):
        statistics.init((3, 2), dtype="float16")
    with pytest.raises(ValueError, match=r"same number of rows .* got 6 and 5"):
        statistics.from_views((x1, x2[:5]))
    with pytest.raises(ValueError, match=r"weights and x1 must have the same number of rows"):
        statistics.from_views((x1, x2), weights=np.ones(5, np.float32))
    with pytest.raises(ValueError, match=r"weights must not be negative, but weight 2 is"):
        statistics.from_views((x1, x2), weights=np.array([1, 1, -1, 1, 1, 1], np.float32))
    with pytest.raises(ValueError, match=r"x1 and x2 must have at least one row"):
        statistics.from_views((x1[:0], x2[:0]))
    with pytest.raises(ValueError, match=r"views must have \(3, 2\) features .* got \(2, 3\)"):
        statistics.update(state, (x2, x1))
    with pytest.raises(TypeError, match=r"state must be a statistic"):
        statistics.update((x1, x2), (x1, x2))
    with pytest.raises(TypeError, match=r"one kind, got Factor and Gram"):
        statistics.merge(state, statistics.from_views((x1, x2), kind="gram"))
    with pytest.raises(ValueError, match=r"same features, got \(3, 2\) and \(2, 3\)"):
        statistics.merge(state, statistics.from_views((x2, x1)))
    with pytest.raises(ValueError, match=r"seen no samples"):
        pa.fit(statistics.init((3, 2)), k=1)


def test_dtypes_do_not_mix_silently(x64, rng):
    x1, x2 = (rng.normal(size=(6, d)).astype(np.float32) for d in (3, 2))
    state = statistics.from_views((x1, x2))
    with pytest.raises(TypeError, match=r"state's dtype float32, got float64"):
        statistics.update(state, (x1.astype(float), x2.astype(float)))
    with pytest.raises(TypeError, match=r"share a dtype, got float32 and float64"):
        statistics.merge(state, statistics.from_views((x1.astype(float), x2.astype(float))))
    with pytest.warns(pa.PrecisionWarning, match=r"x1 has dtype float32 and x2 float64"):
        assert statistics.from_views((x1, x2.astype(float))).dtype == jnp.float64


@pytest.mark.parametrize("kind", ["factor", "gram"])
def test_a_common_factor_of_the_weights_leaves_the_gap_of_the_means(kind, rng):
    x, y = (rng.normal(size=(10, 2)).astype(np.float32) + c for c in (-5, 5))
    for size in (1, 1e-22):
        w = np.full(10, size, np.float32)
        parts = [statistics.from_views((v, v), weights=w, kind=kind) for v in (x, y)]
        merged = statistics.merge(*parts)
        rows = statistics.rows(merged, center=True).blocks[0] / np.sqrt(size)
        both = np.concatenate([x, y])
        expected = ((both - both.mean(axis=0)) ** 2).sum()
        assert float((rows.astype(np.float64) ** 2).sum()) == pytest.approx(expected, rel=1e-4)


def test_a_dtype_that_is_not_on_is_refused():
    with pytest.raises(ValueError, match="dtype must be float32 or, after"):
        statistics.init((2, 2), dtype="float64")
