"""Random-convolution features: properties, a slow float64 reference, and the lift they are for."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perfalign_jax import solver
from perfalign_jax.har.dataset import read_clip, resample, to_series
from perfalign_jax.har.features import Kernels, convolve, draw_kernels, standardize
from perfalign_jax.har.utd_mhad import discover

REAL = os.environ.get("UTD_MHAD_ROOT")
real_files = pytest.mark.skipif(not REAL, reason="UTD_MHAD_ROOT is not set: no real files here")


@pytest.fixture(scope="module")
def kernels():
    return draw_kernels(jax.random.key(5), channels=4, length=40, count=60)


@pytest.fixture(scope="module")
def series():
    return np.random.default_rng(7).normal(size=(11, 40, 4)).astype(np.float32)


# Kernels.


def test_kernels_have_unit_norm_and_no_mean_in_any_channel(kernels):
    for weights in kernels.weights:
        # Sums of 36 float32 numbers of size 0.2: a few units of 1e-8.
        np.testing.assert_allclose(np.sum(weights**2, axis=(0, 1)), 1, atol=1e-6)
        np.testing.assert_allclose(np.sum(weights, axis=0), 0, atol=1e-6)


def test_kernels_see_from_one_to_all_channels():
    kernels = draw_kernels(jax.random.key(0), channels=4, length=20, count=400)
    seen = np.concatenate([np.any(np.asarray(w) != 0, axis=0).sum(axis=0) for w in kernels.weights])
    counts = np.bincount(seen, minlength=5)
    assert counts[0] == 0
    assert (counts[1:] > 0).all()
    assert counts[1] > counts[3]  # log-uniform: few channels more often


def test_dilations_are_all_that_fit_and_share_the_kernels_evenly():
    def draw(length, count):  # shapes alone: nothing is computed
        return jax.eval_shape(
            lambda key: draw_kernels(key, channels=2, length=length, count=count), jax.random.key(0)
        )

    kernels = draw(65, 31)
    assert kernels.dilations == (1, 2, 4, 8)  # 9 taps: dilation 8 reaches 65 frames
    assert [b.shape[0] for b in kernels.biases] == [8, 8, 8, 7]
    assert kernels.count == 31
    assert kernels.shortest == 65
    assert draw(64, 31).shortest == 33
    assert draw(65, 2).dilations == (1, 2)


def test_kernels_are_decided_by_the_key():
    first, again, other = (
        jax.tree.leaves(draw_kernels(jax.random.key(k), channels=3, length=20, count=5))
        for k in (0, 0, 1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_impossible_kernels_are_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="taps must be odd"):
        draw_kernels(key, channels=2, length=20, taps=4)
    with pytest.raises(ValueError, match=r"length must be at least 9 \(taps = 9\), got 8"):
        draw_kernels(key, channels=2, length=8)
    with pytest.raises(ValueError, match="channels must be at least 1"):
        draw_kernels(key, channels=0, length=20)
    with pytest.raises(TypeError, match="count must be an integer"):
        draw_kernels(key, channels=2, length=20, count=2.5)


# Features.


def reference(series, kernels):
    """Frame by frame, in float64, with the frames outside the series written as zeros."""
    shares, largest = [], []
    for weights, biases, padded, dilation in zip(
        kernels.weights, kernels.biases, kernels.padded, kernels.dilations, strict=True
    ):
        taps, _, count = weights.shape
        for j in range(count):
            for kind, out in (("share", shares), ("largest", largest)):
                column = []
                for clip in series.astype(np.float64):
                    responses = []
                    for t in range(len(clip)):
                        frames = [t + (i - taps // 2) * dilation for i in range(taps)]
                        inside = [0 <= f < len(clip) for f in frames]
                        if not padded[j] and not all(inside):
                            continue
                        values = [
                            clip[f] @ np.asarray(weights[i, :, j], np.float64)
                            for i, f in enumerate(frames)
                            if inside[i]
                        ]
                        responses.append(sum(values) + float(biases[j]))
                    responses = np.array(responses)
                    column.append((responses > 0).mean() if kind == "share" else responses.max())
                out.append(column)
    return np.array(shares + largest).T


def test_features_agree_with_the_definition(series):
    few = draw_kernels(jax.random.key(1), channels=4, length=40, count=9)
    assert len({bool(p) for padded in few.padded for p in padded}) == 2  # both kinds are drawn
    # float32 sums of 36 products of size one: about 1e-6.
    np.testing.assert_allclose(
        convolve(series[:3], few), reference(series[:3], few), atol=5e-6, rtol=0
    )


def test_the_first_half_are_shares(series, kernels):
    found = np.asarray(convolve(series, kernels))
    assert found.shape == (11, 120)
    assert found[:, :60].min() >= 0
    assert found[:, :60].max() <= 1


@pytest.mark.parametrize("batch", [1, 4, 11, 64])
def test_the_batch_changes_nothing(series, kernels, batch):
    # The same sums, perhaps in another order: a few roundings in float32.
    np.testing.assert_allclose(
        convolve(series, kernels, batch=batch), convolve(series, kernels), atol=2e-6
    )


def test_every_clip_is_its_own(series, kernels):
    changed = series.copy()
    changed[3] += 1
    first, second = np.asarray(convolve(series, kernels)), np.asarray(convolve(changed, kernels))
    np.testing.assert_array_equal(np.delete(first, 3, axis=0), np.delete(second, 3, axis=0))
    assert not np.array_equal(first[3], second[3])


def test_kernels_that_stay_inside_do_not_see_an_offset(series, kernels):
    moved = series + np.float32([3, -2, 1, 5])
    padded = np.concatenate([np.asarray(p) for p in kernels.padded])
    first, second = (np.asarray(convolve(x, kernels))[:, 60:] for x in (series, moved))
    # The offset cancels to float32 rounding of numbers of size five.
    np.testing.assert_allclose(first[:, ~padded], second[:, ~padded], atol=1e-5)
    assert np.abs(first[:, padded] - second[:, padded]).max() > 0.1


def test_jit_and_vmap_agree_with_eager(series, kernels):
    eager = convolve(series, kernels)
    np.testing.assert_allclose(jax.jit(convolve)(series, kernels), eager, atol=2e-6)
    stacked = jnp.stack([jnp.asarray(series), jnp.asarray(series[::-1])])
    mapped = jax.vmap(lambda x: convolve(x, kernels))(stacked)
    np.testing.assert_allclose(mapped[1], eager[::-1], atol=2e-6)


def test_the_dtype_is_kept(series, kernels, x64):
    assert convolve(series, kernels).dtype == jnp.float32
    wide = convolve(series.astype(np.float64), kernels)
    assert wide.dtype == jnp.float64
    np.testing.assert_allclose(wide, convolve(series, kernels), atol=5e-6)


def test_series_that_do_not_fit_are_refused(series, kernels):
    with pytest.raises(ValueError, match=r"series must have shape \(n, length, channels\)"):
        convolve(series[0], kernels)
    with pytest.raises(ValueError, match="4 channels like the kernels"):
        convolve(series[:, :, :3], kernels)
    with pytest.raises(ValueError, match="at least 33 frames"):
        convolve(series[:, :20], kernels)
    with pytest.raises(ValueError, match="row 1 has NaN"):
        convolve(np.where(np.arange(11)[:, None, None] == 1, np.nan, series), kernels)
    assert isinstance(kernels, Kernels)


def test_the_lift_makes_room_for_perfect_alignment():
    """Few channels and frames have no null space with many pairs; their features have."""
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(60, 30, 2))
    x1, x2 = (np.float32(np.tanh(hidden @ rng.normal(size=(2, 2)))) for _ in range(2))
    short = [x[:, ::6].reshape(60, -1) for x in (x1, x2)]
    assert np.linalg.matrix_rank(np.concatenate(short, axis=1)) == 20  # no null space at all
    lifted = []
    for i, x in enumerate((x1, x2)):
        kernels = draw_kernels(jax.random.key(i), channels=2, length=30, count=100)
        lifted.append(standardize(convolve(x, kernels), rows=np.arange(60)))
    diagnosis = solver.diagnose(lifted)
    assert int(diagnosis.informative_dimension) == 59  # centring took one of the 60 pairs


# Standardising.


def test_chosen_rows_become_standard_and_the_others_do_not_matter(rng):
    x = rng.normal(size=(20, 5)).astype(np.float32) * 3 + 7
    rows = np.array([1, 4, 5, 9, 12, 17])
    found = np.asarray(standardize(x, rows=rows)) * np.sqrt(5)
    np.testing.assert_allclose(found[rows].mean(axis=0), 0, atol=1e-5)  # float32, values around 7
    np.testing.assert_allclose(found[rows].std(axis=0), 1, rtol=1e-5)
    x[[0, 2, 3]] = 1e3
    changed = np.asarray(standardize(x, rows=rows)) * np.sqrt(5)
    np.testing.assert_allclose(changed[rows], found[rows], atol=1e-4)


def test_a_feature_that_hardly_moves_is_not_blown_up(rng):
    x = rng.normal(size=(30, 10)).astype(np.float32)
    x[:, 0] *= 1e-6
    x[0, 0] = 1.0  # moves on a clip outside the chosen rows only
    rows = np.arange(1, 30)
    assert np.abs(standardize(x, rows=rows, floor=0.0)[0, 0]) > 1e4
    assert np.abs(standardize(x, rows=rows)[0, 0]) < 11 / np.sqrt(10)  # floor 0.1: at most 10
    constant = np.ones((5, 3), np.float32)
    np.testing.assert_array_equal(standardize(constant, rows=np.arange(5)), 0)


def test_standardizing_works_under_jit_and_keeps_the_dtype(rng, x64):
    x = rng.normal(size=(9, 4))
    rows = np.arange(5)
    found = standardize(x, rows=rows)
    assert found.dtype == jnp.float64
    jitted = jax.jit(lambda a, r: standardize(a, rows=r))(x, rows)
    np.testing.assert_allclose(jitted, found, atol=1e-14)


def test_rows_that_do_not_fit_are_refused(rng):
    x = rng.normal(size=(6, 2)).astype(np.float32)
    with pytest.raises(ValueError, match="rows must lie between 0 and 5, got 0 to 6"):
        standardize(x, rows=np.array([0, 6]))
    with pytest.raises(ValueError, match="at least two indices"):
        standardize(x, rows=np.array([0]))
    with pytest.raises(TypeError, match="integers"):
        standardize(x, rows=np.array([True, False, True, True, True, True]))


@real_files
def test_features_of_real_clips_tell_actions_apart():
    """Two actions, wrist sensor: clips of one action are nearer to each other than to the other."""
    catalog = discover(REAL, modalities=["inertial"])
    chosen = [
        (name, path)
        for name, path in zip(catalog.names, catalog.files["inertial"], strict=True)
        if name.startswith(("a4_", "a13_")) and name.endswith("_t1")
    ]
    clips = [resample(read_clip(path, modality="inertial"), length=96) for _, path in chosen]
    series = to_series(np.stack(clips), modality="inertial").astype(np.float32)
    kernels = draw_kernels(jax.random.key(0), channels=6, length=96, count=300)
    x = np.asarray(standardize(convolve(series, kernels), rows=np.arange(len(clips))))
    labels = np.array([name.split("_")[0] for name, _ in chosen])
    distances = np.linalg.norm(x[:, None] - x[None], axis=2) + np.diag(np.full(len(x), np.inf))
    assert (labels[np.argmin(distances, axis=1)] == labels).mean() > 0.9
