"""Sweeps equal a plain loop over ``fit``, do not depend on the grid around a cell, and resume."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import perfalign_jax as pa
from perfalign_jax import baselines, sweeps, theory

KEY = jax.random.key(5)


def run(grid, *, seeds=2, key=KEY, **options):
    return sweeps.sweep(key, grid, seeds=seeds, progress=False, **options)


def by_loop(seed, method, n, d, k, noise, *, latents, held_out):
    """One cell by the package's front door, on the cell's own data."""
    key = jax.random.fold_in(KEY, seed)
    train, test = (
        sweeps.draw_cell(key, n=count, d=d, k=latents, noise=noise, held_out=which)
        for count, which in ((n, False), (held_out, True))
    )
    if method == "ridge_cca":
        alignment = baselines.ridge_cca(train.views, k=k, ridge=1e-3, center=True)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pa.CollapseWarning)
            alignment = pa.fit(train.views, k=k, select=method, method="svd")
    z, y = (pa.transform(alignment, part.views) for part in (train, test))
    # The affine map is fitted to the training pairs.
    stacked = np.concatenate([*map(np.asarray, z)])
    goal = np.concatenate([np.asarray(train.latents)] * 2)
    middle, aim = stacked.mean(0), goal.mean(0)
    weights = np.linalg.pinv(stacked - middle, rcond=2 * n * np.finfo(float).eps) @ (goal - aim)

    def missed(part, estimates):
        gaps = [
            np.asarray(part.latents) - aim - (np.asarray(e) - middle) @ weights for e in estimates
        ]
        return np.mean([np.linalg.norm(g, axis=1).mean() for g in gaps])

    same = latents == k
    return {
        "train_cmae": pa.cmae(*z),
        "held_out_cmae": pa.cmae(*y),
        "train_mlre": pa.mlre(train.latents, z) if same else np.nan,
        "held_out_mlre": pa.mlre(test.latents, y) if same else np.nan,
        "train_mlre_affine": missed(train, z),
        "held_out_mlre_affine": missed(test, y),
        "held_out_relative_cmae": pa.relative_cmae(*y),
        "held_out_recall": pa.retrieval(*y, at=(1,)).recall_12[0],
        "train_energy": np.mean(
            [pa.latent_energy(a, x) for a, x in zip(z, train.views, strict=True)]
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("latents", "n", "d"), [(None, (30, 5), (7, 4)), (2, 30, 7)])
def test_every_cell_equals_a_plain_loop_over_fit(x64, latents, n, d):
    grid = sweeps.make_grid(
        n=n,
        d=d,
        k=(2, 3),
        noise=(0, (0.1, 2)),
        latents=latents,
        methods=sweeps.METHODS,
        held_out=20,
    )
    result = run(grid, seeds=1)
    compared = 0
    for index in np.ndindex(1, *grid.shape):
        seed, method, n, d, k, noise = (
            values[i] for values, i in zip(result.axes.values(), index, strict=True)
        )
        kind = latents or k
        try:
            expected = by_loop(seed, method, n, d, k, noise, latents=kind, held_out=20)
        except ValueError as error:
            expected = {"ridge_cca": "k must be"}[method]  # the cells that do not exist
            if expected not in str(error):
                raise
            assert all(np.isnan(values[index]) for values in result.values.values())
            continue
        null = d - min(n, d, kind if noise == (0, 0) else d)
        # Where the null space is larger than k the trailing directions are arbitrary, and so are
        # those of most energy beyond the informative ones; inside it the basis is.
        unique = {
            "trailing": k >= null,
            "energy": k >= null or k <= min(n, kind),
            "ridge_cca": True,
        }[method]
        for metric, value in expected.items():
            if metric == "train_cmae" or (
                unique and ("mlre" not in metric or "affine" in metric or null <= 1)
            ):
                compared += 1
                # Rounding, times the maps' condition number; the data is of size 50.
                np.testing.assert_allclose(
                    result.values[metric][index],
                    np.asarray(value),
                    rtol=1e-8,
                    atol=1e-10,
                    err_msg=f"{metric} {index}",
                )
    assert compared > 4 * np.prod(grid.shape)


@pytest.mark.slow
def test_a_cell_does_not_depend_on_the_rest_of_the_grid(x64):
    metrics = ("train_cmae", "train_mlre_affine")
    whole = run(
        sweeps.make_grid(n=(700, 40, 512), d=(6, 9), k=(4, 2), noise=(1, 0.5), metrics=metrics)
    )
    for n, d, k in ((40, 6, 2), (512, 9, 4)):
        cell = run(sweeps.make_grid(n=n, d=d, k=k, noise=0.5, metrics=metrics), seeds=1)
        for metric in metrics:
            np.testing.assert_allclose(
                cell.get(metric, seed=0),
                whole.get(metric, seed=0, n=n, d=d, k=k, noise=0.5),
                rtol=1e-9,  # other sizes, other orders of summation
            )


@pytest.mark.slow
def test_the_number_of_seeds_at_a_time_does_not_matter(x64):
    grid = sweeps.make_grid(n=30, d=5, k=(1, 2), noise=1.0, metrics="held_out_cmae")
    one, all_ = (run(grid, seeds=3, batch_size=size).get("held_out_cmae") for size in (1, 8))
    np.testing.assert_allclose(one, all_, rtol=1e-10)
    assert np.unique(one).size == one.size


def test_data_follows_the_papers_laws(x64):
    drawn = [
        sweeps.draw_cell(KEY, n=4000, d=6, k=3, noise=(0, 2.0), held_out=held_out)
        for held_out in (False, True)
    ]
    train, test = drawn
    for part in drawn:
        z, labels = np.asarray(part.latents), np.asarray(part.labels)
        for label in (0, 1):
            some = z[labels == label] - np.array([0, 1, 0]) - 4 * label
            # Five standard errors of 2,000 draws.
            np.testing.assert_allclose(some.mean(0), 0, atol=0.12)
            np.testing.assert_allclose(np.cov(some.T), np.eye(3), atol=0.2)
        noise = np.asarray(part.views[1]) - z @ np.asarray(part.maps[1]).T
        assert stats.kstest(noise.ravel() / 2, "norm").pvalue > 1e-3
        np.testing.assert_allclose(part.views[0], z @ np.asarray(part.maps[0]).T, atol=1e-12)
    np.testing.assert_array_equal(train.maps[0], test.maps[0])
    assert abs(np.corrcoef(np.asarray(train.latents)[:, 0], test.latents[:, 0])[0, 1]) < 0.1
    maps = [
        np.asarray(sweeps.draw_cell(key, n=1, d=20, k=20).maps[0])
        for key in jax.random.split(KEY, 20)
    ]
    assert stats.kstest(np.ravel(maps), stats.uniform(-5, 10).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_thresholds_and_errors_are_those_of_theory(x64):
    grid = sweeps.make_grid(
        n=(5, 6, 7, 200), d=12, k=(5, 6, 7), noise=(0, 1), metrics=("train_cmae", "held_out_cmae")
    )
    result = run(grid, seeds=16)
    for n in grid.n:
        for k in grid.k:
            for noise in (0, 1):
                errors = result.get("train_cmae", n=n, k=k, noise=noise)
                perfect = k <= theory.largest_perfect_k(n, 12, latents=k, noise=noise)
                assert np.all((errors < 1e-10) == perfect), (n, k, noise)
    measured = result.get("held_out_cmae", n=200, k=6, noise=1).mean()
    # 16 seeds of 200 pairs: a standard error of 1 %.
    assert theory.held_out_cmae(200, 12, 6, latents=6, noise=1.0) == pytest.approx(
        measured, rel=0.04
    )


@pytest.mark.slow
def test_what_does_not_exist_is_nan(x64):
    grid = sweeps.make_grid(n=20, d=(4, 6), k=(2, 3, 5), latents=2, methods=("energy", "ridge_cca"))
    values = run(grid, seeds=1)
    missing = np.isnan(values.get("train_cmae", seed=0))
    np.testing.assert_array_equal(
        missing, [[[False, False, True], [False] * 3], [[False, True, True]] * 2]
    )
    assert np.isnan(values.get("train_mlre", k=3)).all()
    assert not np.isnan(values.get("train_mlre", k=2)).any()


@pytest.mark.slow
def test_one_seed_works_under_jit_and_vmap_in_float32():
    grid = sweeps.make_grid(
        n=(3, 40), d=6, k=2, noise=1.0, metrics=("train_cmae", "held_out_recall")
    )
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(2))
    values = jax.jit(jax.vmap(functools.partial(sweeps.sweep_seed, grid=grid)))(keys)
    assert values["train_cmae"].dtype == jnp.float32
    result = run(grid)
    np.testing.assert_allclose(
        values["train_cmae"].reshape(2, 2), result.get("train_cmae"), rtol=1e-4, atol=1e-5
    )
    # Three samples leave four null directions.
    assert result.get("train_cmae", n=3).max() < 1e-4


def test_values_are_found_by_name():
    grid = sweeps.make_grid(n=(3, 4), d=4, k=1, noise=(0, (0, 1)), metrics="train_cmae")
    values = {"train_cmae": np.arange(8.0).reshape(2, 1, 2, 1, 1, 2)}
    result = sweeps.SweepResult(grid, (0, 1), values)
    assert result.get("train_cmae").shape == (2, 2, 2)
    np.testing.assert_array_equal(result.get("train_cmae", noise=(0, 1)), [[1, 3], [5, 7]])
    np.testing.assert_array_equal(result.get("train_cmae", noise=0, n=4), [2, 6])
    assert result.get("train_cmae", noise=0, n=4, seed=1) == 6
    for options, message in (
        ({"n": 5}, "n must be one of (3, 4), got 5"),
        ({"m": 5}, "axes must be among seed, method, n, d, k, noise, got m"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            result.get("train_cmae", **options)
    with pytest.raises(ValueError, match="metric must be one of 'train_cmae', got 'cmae'"):
        result.get("cmae")


def test_an_interrupted_sweep_goes_on(x64, tmp_path, monkeypatch):
    grid = sweeps.make_grid(n=(5, 20), d=4, k=2, noise=1.0, metrics="held_out_cmae")
    path = tmp_path / "sweep.npz"
    whole = run(grid, seeds=5, batch_size=2)
    real, calls = sweeps.runner._compiled, []

    def counting(*args, stop_after):
        compiled = real(*args)

        def call(keys):
            calls.append(len(keys))
            if len(calls) > stop_after:
                raise KeyboardInterrupt
            return compiled(keys)

        return call

    monkeypatch.setattr(sweeps.runner, "_compiled", functools.partial(counting, stop_after=1))
    with pytest.raises(KeyboardInterrupt):
        run(grid, seeds=5, batch_size=2, path=path)
    assert sweeps.load_sweep(path).seeds == (0, 1)
    calls.clear()
    monkeypatch.setattr(sweeps.runner, "_compiled", functools.partial(counting, stop_after=9))
    resumed = run(grid, seeds=5, batch_size=2, path=path)
    assert len(calls) == 2
    np.testing.assert_allclose(resumed.get("held_out_cmae"), whole.get("held_out_cmae"), rtol=1e-12)
    calls.clear()
    fewer = run(grid, seeds=3, batch_size=2, path=path)
    assert not calls
    assert fewer.seeds == (0, 1, 2)
    loaded = sweeps.load_sweep(path)
    assert loaded.grid == grid
    np.testing.assert_array_equal(loaded.get("held_out_cmae"), resumed.get("held_out_cmae"))


def test_files_that_are_not_this_sweep_are_refused(tmp_path):
    grid = sweeps.make_grid(n=5, d=4, k=2, metrics="train_cmae")
    path = tmp_path / "sweep.npz"
    run(grid, path=path)
    for other, key, what in (
        (dataclasses.replace(grid, n=(6,)), KEY, "n is [5] there and [6] here"),
        (grid, jax.random.key(6), "key is [0, 5] there and [0, 6] here"),
    ):
        with pytest.raises(ValueError, match=re.escape(what)):
            run(other, key=key, path=path)
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="is not a file of a sweep"):
        run(grid, path=path)
    content = run(grid, path=tmp_path / "other.npz").values
    with np.load(tmp_path / "other.npz") as file:
        np.savez(path, **{**file, "train_cmae": content["train_cmae"][:1]})
    with pytest.raises(ValueError, match="is damaged: train_cmae has shape"):
        sweeps.load_sweep(path)
    np.savez(path, a=np.ones(2))
    with pytest.raises(ValueError, match="is not a file of a sweep"):
        sweeps.load_sweep(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        sweeps.load_sweep(tmp_path / "missing.npz")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(grid, path=tmp_path / "nowhere" / "sweep.npz")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": 2.5}, TypeError, "n must be an integer, got 2.5"),
        ({"n": ()}, ValueError, "n must hold at least one value, got none"),
        ({"n": (3, 3)}, ValueError, "n must hold every value once, got (3, 3)"),
        ({"d": 1}, ValueError, "d must be at least 2, got 1"),
        ({"d": (2, 3), "k": 4}, ValueError, "k must be at most d in some cell"),
        ({"k": True}, TypeError, "k must be an integer, got True"),
        ({"noise": -1}, ValueError, "noise must be zero or more, got -1"),
        ({"noise": [(1, 2, 3)]}, ValueError, "noise must be numbers or pairs of numbers"),
        ({"noise": "loud"}, TypeError, "noise must be a number, got 'loud'"),
        ({"noise": float("nan")}, ValueError, "noise must be zero or more, got nan"),
        ({"latents": 0}, ValueError, "latents must be at least 1, got 0"),
        ({"methods": "pca"}, ValueError, "methods must be one of 'trailing'"),
        ({"metrics": ("train_cmae", "cmae")}, ValueError, "metrics must be one of 'train_cmae'"),
        ({"held_out": 1}, ValueError, "held_out must be at least 2, got 1"),
        ({"ridge": -1.0}, ValueError, "ridge must be zero or more, got -1.0"),
    ],
)
def test_bad_grids_are_named(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        sweeps.make_grid(**{"n": 10, "d": 4, "k": 2, **options})


@pytest.mark.slow
def test_one_pair_has_no_variance(x64):
    grid = sweeps.make_grid(n=(1, 2), d=4, k=1, noise=1.0, held_out=50)
    result = run(grid)
    np.testing.assert_array_equal(result.get("train_energy", n=1), 0)
    # The best affine map of one pair is the constant.
    for seed in range(2):
        key = jax.random.fold_in(KEY, seed)
        z, new = (
            np.asarray(sweeps.draw_cell(key, n=count, d=4, k=1, held_out=which).latents)
            for count, which in ((1, False), (50, True))
        )
        expected = np.linalg.norm(new - z, axis=1).mean()
        found = result.get("held_out_mlre_affine", n=1, seed=seed)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_arrays_are_as_good_as_tuples():
    of_arrays = sweeps.make_grid(n=jnp.array([5, 6]), d=np.array(4), k=1, noise=np.array([0, 0.5]))
    of_tuples = sweeps.make_grid(n=(5, 6), d=4, k=1, noise=(0, 0.5))
    assert of_arrays == of_tuples
    values = {"train_cmae": np.arange(4.0).reshape(1, 1, 2, 1, 1, 2)}
    result = sweeps.SweepResult(of_tuples, (0,), values)
    assert result.get("train_cmae", n=np.int64(6), noise=np.array([0.5, 0.5])) == [3]
    with pytest.raises(ValueError, match=re.escape("n must be one of (5, 6)")):
        result.get("train_cmae", n=np.array([5, 6]))


@pytest.mark.slow
def test_keys_whose_numbers_depend_on_the_batch_are_refused():
    grid = sweeps.make_grid(n=5, d=4, k=2)
    with pytest.raises(ValueError, match=r"key must be of the kind threefry2x32.*got rbg"):
        run(grid, key=jax.random.key(0, impl="rbg"))
    legacy = run(grid, key=jax.random.PRNGKey(5))
    np.testing.assert_array_equal(legacy.get("train_mlre"), run(grid).get("train_mlre"))


def test_the_best_affine_map_keeps_weak_directions_of_many_samples_in_float32():
    # This seed's estimates are a linear map of the latents with directions some 1 : 0.02 apart.
    grid = sweeps.make_grid(n=200_000, d=4, k=2, metrics=("train_cmae", "train_mlre_affine"))
    key = jax.random.fold_in(KEY, 8)
    values = jax.jit(functools.partial(sweeps.sweep_seed, grid=grid))(key)
    assert values["train_cmae"].dtype == jnp.float32
    assert values["train_cmae"].item() < 1e-4
    # Rounding of latents of size 5, times 1 / 0.02.
    assert values["train_mlre_affine"].item() < 1e-3


TWO_CORES = """
import os, sys, warnings
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
before = dict(os.environ)
import jax
from perfalign_jax import sweeps
assert dict(os.environ) == before
warnings.simplefilter("error")
grid = sweeps.make_grid(n=5, d=4, k=2, metrics="train_cmae")
for _ in range(2):
    try:
        sweeps.sweep(jax.random.key(0), grid, seeds=1, progress=False)
    except UserWarning as warning:
        sys.exit(str(warning))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize("threads", [None, "16"])
def test_a_pool_of_few_threads_is_warned_of_and_nothing_is_set(threads):
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    if threads:
        environment["NPROC"] = threads
    done = subprocess.run(
        [sys.executable, "-c", TWO_CORES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if threads:
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == 1
        assert "set the environment variable NPROC=16" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_warning_comes_once(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    sweeps.runner._warn_of_few_threads.cache_clear()
    with pytest.warns(UserWarning, match="this process has 2 CPU cores"):
        sweeps.runner._warn_of_few_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweeps.runner._warn_of_few_threads()


def test_many_batched_factorisations_end_with_a_pool_of_16_threads():
    # With a pool of two threads this program waits for itself for ever.
    program = Path(__file__).parents[1] / "experiments" / "benchmarks" / "thread_pool.py"
    done = subprocess.run(
        [sys.executable, str(program), "3"],
        env={**os.environ, "NPROC": "16"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "3 rounds done\n", done.stderr


def test_bad_calls_are_named():
    grid = sweeps.make_grid(n=5, d=4, k=2)
    with pytest.raises(TypeError, match="grid must be a Grid of make_grid, got dict"):
        run({"n": 5})
    for key, came in ((0, "got int"), (jax.random.split(KEY, 3), r"got shape \(3,\)")):
        with pytest.raises(TypeError, match=f"key must be one random key.*{came}"):
            run(grid, key=key)
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        run(grid, seeds=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        run(grid, batch_size=0)


def test_a_folder_is_no_damaged_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        sweeps.load_sweep(tmp_path)


def test_a_file_of_other_random_numbers_is_not_continued(tmp_path):
    path, before = tmp_path / "sweep.npz", jax.config.jax_threefry_partitionable
    grid = sweeps.make_grid(n=20, d=4, k=1, metrics="train_cmae")
    sweeps.sweep(KEY, grid, seeds=1, path=path)
    jax.config.update("jax_threefry_partitionable", not before)
    try:
        with pytest.raises(ValueError, match="holds another sweep: threefry_partitionable is"):
            sweeps.sweep(KEY, grid, seeds=2, path=path)
    finally:
        jax.config.update("jax_threefry_partitionable", before)
