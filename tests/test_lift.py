"""Lifts: properties, a slow float64 reference of the convolutions, and what they are for."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perfalign_jax as pa
from perfalign_jax import lift
from perfalign_jax.har.data.dataset import read_clip, resample, to_series
from perfalign_jax.har.data.utd_mhad import discover

REAL = os.environ.get("UTD_MHAD_ROOT")
real_files = pytest.mark.skipif(not REAL, reason="UTD_MHAD_ROOT is not set: no real files here")


def draw(seed, *, channels, length, **options):
    series = jnp.zeros((1, length, channels))
    return lift.fit_convolutions(series, key=jax.random.key(seed), **options)


@pytest.fixture(scope="module")
def kernels():
    return draw(5, channels=4, length=40, count=60)


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
    kernels = draw(0, channels=4, length=20, count=400)
    seen = np.concatenate([np.any(np.asarray(w) != 0, axis=0).sum(axis=0) for w in kernels.weights])
    counts = np.bincount(seen, minlength=5)
    assert counts[0] == 0
    assert (counts[1:] > 0).all()
    assert counts[1] > counts[3]  # log-uniform: few channels more often


def test_dilations_are_all_that_fit_and_share_the_kernels_evenly():
    def shapes(length, count):  # nothing is computed
        return jax.eval_shape(lambda: draw(0, channels=2, length=length, count=count))

    kernels = shapes(65, 31)
    assert kernels.dilations == (1, 2, 4, 8)  # 9 taps: dilation 8 reaches 65 frames
    assert [b.shape[0] for b in kernels.biases] == [8, 8, 8, 7]
    assert kernels.count == 31
    assert kernels.shortest == 65
    assert shapes(64, 31).shortest == 33
    assert shapes(65, 2).dilations == (1, 2)


def test_kernels_are_decided_by_the_key():
    first, again, other = (
        jax.tree.leaves(draw(k, channels=3, length=20, count=5)) for k in (0, 0, 1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_impossible_kernels_are_refused():
    with pytest.raises(ValueError, match="taps must be odd"):
        draw(0, channels=2, length=20, taps=4)
    with pytest.raises(ValueError, match=r"at least taps = 9 frames, got shape \(1, 8, 2\)"):
        draw(0, channels=2, length=8)
    with pytest.raises(ValueError, match="one frame and one channel"):
        draw(0, channels=0, length=20)
    with pytest.raises(TypeError, match="count must be an integer"):
        draw(0, channels=2, length=20, count=2.5)
    with pytest.raises(TypeError, match="key must be one random key"):
        lift.fit_convolutions(np.zeros((1, 20, 2), np.float32), key=0)


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
    few = draw(1, channels=4, length=40, count=9)
    assert len({bool(p) for padded in few.padded for p in padded}) == 2  # both kinds are drawn
    # float32 sums of 36 products of size one: about 1e-6.
    np.testing.assert_allclose(
        lift.apply(few, series[:3]), reference(series[:3], few), atol=5e-6, rtol=0
    )


def test_the_first_half_are_shares(series, kernels):
    found = np.asarray(lift.apply(kernels, series))
    assert found.shape == (11, 120)
    assert found[:, :60].min() >= 0
    assert found[:, :60].max() <= 1


def test_more_series_than_are_convolved_at_once_change_nothing(kernels, rng):
    many = rng.normal(size=(70, 40, 4)).astype(np.float32)
    found = np.asarray(lift.apply(kernels, many))
    for rows in (slice(3), slice(30, 35), slice(69, 70)):
        # The same sums, perhaps in another order: a few roundings in float32.
        np.testing.assert_allclose(found[rows], lift.apply(kernels, many[rows]), atol=2e-6)


def test_every_clip_is_its_own(series, kernels):
    changed = series.copy()
    changed[3] += 1
    first, second = (
        np.asarray(lift.apply(kernels, series)),
        np.asarray(lift.apply(kernels, changed)),
    )
    np.testing.assert_array_equal(np.delete(first, 3, axis=0), np.delete(second, 3, axis=0))
    assert not np.array_equal(first[3], second[3])


def test_kernels_that_stay_inside_do_not_see_an_offset(series, kernels):
    moved = series + np.float32([3, -2, 1, 5])
    padded = np.concatenate([np.asarray(p) for p in kernels.padded])
    first, second = (np.asarray(lift.apply(kernels, x))[:, 60:] for x in (series, moved))
    # The offset cancels to float32 rounding of numbers of size five.
    np.testing.assert_allclose(first[:, ~padded], second[:, ~padded], atol=1e-5)
    assert np.abs(first[:, padded] - second[:, padded]).max() > 0.1


def test_jit_and_vmap_agree_with_eager(series, kernels):
    eager = lift.apply(kernels, series)
    np.testing.assert_allclose(jax.jit(lift.apply)(kernels, series), eager, atol=2e-6)
    stacked = jnp.stack([jnp.asarray(series), jnp.asarray(series[::-1])])
    mapped = jax.vmap(lambda x: lift.apply(kernels, x))(stacked)
    np.testing.assert_allclose(mapped[1], eager[::-1], atol=2e-6)


def test_the_dtype_is_kept(series, kernels, x64):
    assert lift.apply(kernels, series).dtype == jnp.float32
    wide = lift.apply(kernels, series.astype(np.float64))
    assert wide.dtype == jnp.float64
    np.testing.assert_allclose(wide, lift.apply(kernels, series), atol=5e-6)


def test_series_that_do_not_fit_are_refused(series, kernels):
    with pytest.raises(ValueError, match=r"x must have shape \(n, length, channels\)"):
        lift.apply(kernels, series[0])
    with pytest.raises(ValueError, match="4 channels like the kernels"):
        lift.apply(kernels, series[:, :, :3])
    with pytest.raises(ValueError, match="at least 33 frames"):
        lift.apply(kernels, series[:, :20])
    with pytest.raises(ValueError, match="row 1 has NaN"):
        lift.apply(kernels, np.where(np.arange(11)[:, None, None] == 1, np.nan, series))


def test_the_lift_makes_room_for_perfect_alignment():
    """Few channels and frames have no null space with many pairs; their features have."""
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(60, 30, 2))
    x1, x2 = (np.float32(np.tanh(hidden @ rng.normal(size=(2, 2)))) for _ in range(2))
    short = [x[:, ::6].reshape(60, -1) for x in (x1, x2)]
    assert np.linalg.matrix_rank(np.concatenate(short, axis=1)) == 20  # no null space at all
    lifted = []
    for i, x in enumerate((x1, x2)):
        features = lift.apply(draw(i, channels=2, length=30, count=100), x)
        lifted.append(lift.apply(lift.fit_standardise(features), features))
    diagnosis = pa.diagnose(lifted)
    assert int(diagnosis.informative_dimension) == 59  # centring took one of the 60 pairs


# Standardising.


def standardise(x, rows, **options):
    return np.asarray(lift.apply(lift.fit_standardise(x[rows], **options), x))


def test_chosen_rows_become_standard_and_the_others_do_not_matter(rng):
    x = rng.normal(size=(20, 5)).astype(np.float32) * 3 + 7
    rows = np.array([1, 4, 5, 9, 12, 17])
    found = standardise(x, rows) * np.sqrt(5)
    np.testing.assert_allclose(found[rows].mean(axis=0), 0, atol=1e-5)  # float32, values around 7
    np.testing.assert_allclose(found[rows].std(axis=0), 1, rtol=1e-5)
    x[[0, 2, 3]] = 1e3
    np.testing.assert_array_equal(standardise(x, rows)[rows] * np.sqrt(5), found[rows])


def test_a_feature_that_hardly_moves_is_not_blown_up(rng):
    x = rng.normal(size=(30, 10)).astype(np.float32)
    x[:, 0] *= 1e-6
    x[0, 0] = 1.0  # moves on a clip outside the chosen rows only
    rows = np.arange(1, 30)
    assert np.abs(standardise(x, rows)[0, 0]) > 1e4
    assert np.abs(standardise(x, rows, floor=0.1)[0, 0]) < 11 / np.sqrt(10)  # at most 10
    constant = np.ones((5, 3), np.float32)
    np.testing.assert_array_equal(standardise(constant, np.arange(5)), 0)


def test_units_of_features_do_not_matter_and_rounding_is_no_spread(rng):
    x = rng.normal(size=(30, 4)).astype(np.float32)
    scaled = x * np.float32([1, 1e6, 1e-6, 1])
    scaled[:, 3] = 1000 + 1e-5 * x[:, 3]  # what is left of it in float32 is rounding
    found, expected = (standardise(a, np.arange(30)) for a in (scaled, x))
    np.testing.assert_allclose(found[:, :3], expected[:, :3], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[:, 3], 0)


def test_principal_coordinates_keep_what_the_rows_span(rng, x64):
    x = rng.normal(size=(12, 40))
    scaled = lift.fit_standardise(x)
    narrow = lift.fit_principal(scaled, x)
    full, few = (np.asarray(lift.apply(f, x)) for f in (scaled, narrow))
    assert few.shape == (12, 12)
    np.testing.assert_allclose(few @ few.T, full @ full.T, atol=1e-12)
    weights = np.where(np.arange(12) < 6, 1.0, 0.0)
    leading = lift.fit_principal(scaled, x, most=2, weights=weights)
    rows = np.linalg.svd(full[:6])[2]
    np.testing.assert_allclose(np.abs(leading.basis.T @ rows[:2].T), np.eye(2), atol=1e-9)
    assert (leading.basis.max(axis=0) == np.abs(leading.basis).max(axis=0)).all()  # the sign rule
    with pytest.raises(ValueError, match=r"weights must have shape \(12,\)"):
        lift.fit_principal(scaled, x, weights=np.ones(3))
    with pytest.raises(ValueError, match="weights must not be negative"):
        lift.fit_principal(scaled, x, weights=-np.ones(12))
    with pytest.raises(TypeError, match="lift must be a fitted lift, got None"):
        lift.fit_principal(None, x)


def test_features_as_they_are_keep_their_scales_and_constants_say_nothing(rng):
    x = rng.normal(size=(30, 3)).astype(np.float32) * np.float32([1, 5, 0]) + 3
    fitted = lift.fit_standardise(x, floor=np.inf)
    found = np.asarray(lift.apply(fitted, x + np.float32([0, 0, 9])))
    np.testing.assert_allclose(
        found[:, 1].std() / found[:, 0].std(), x[:, 1].std() / x[:, 0].std(), rtol=1e-4
    )
    np.testing.assert_array_equal(found[:, 2], 0)


def test_standardising_works_under_jit_and_keeps_the_dtype(rng, x64):
    x = rng.normal(size=(9, 4))
    fitted = lift.fit_standardise(x[:5])
    found = lift.apply(fitted, x)
    assert found.dtype == jnp.float64
    assert lift.apply(fitted, x.astype(np.float32)).dtype == jnp.float32
    jitted = jax.jit(lambda a: lift.apply(lift.fit_standardise(a[:5]), a))(x)
    np.testing.assert_allclose(jitted, found, atol=1e-14)


def test_rows_that_do_not_fit_are_refused(rng):
    x = rng.normal(size=(6, 2)).astype(np.float32)
    with pytest.raises(ValueError, match=r"at least two rows, got shape \(1, 2\)"):
        lift.fit_standardise(x[:1])
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\), got shape \(6, 1\)"):
        lift.apply(lift.fit_standardise(x), x[:, :1])
    with pytest.raises(ValueError, match="floor must be zero or more"):
        lift.fit_standardise(x, floor=-1.0)


# Coordinates in the span of some rows.


@pytest.mark.parametrize(("rows", "d", "rank"), [(20, 45, 19), (30, 5, 5)])
def test_coordinates_keep_every_inner_product_with_the_rows(rng, x64, rows, d, rank):
    x = rng.normal(size=(120, d))
    x -= x[:rows].mean(axis=0)  # centred rows have one rank less
    span = lift.fit_span(x[:rows])
    inside = np.asarray(lift.apply(span, x))
    assert inside.shape == (120, rank)
    np.testing.assert_allclose(span.basis.T @ span.basis, np.eye(rank), atol=1e-14)
    np.testing.assert_allclose(inside @ inside[:rows].T, x @ x[:rows].T, atol=1e-11)
    outside = x - inside @ span.basis.T
    np.testing.assert_allclose(outside @ x[:rows].T, 0, atol=1e-11)


def test_the_rank_of_many_float32_rows_is_that_of_the_exact_ones(rng):
    hidden = rng.normal(size=(200_000, 2)) * [1, 0.02]
    x = (hidden @ rng.normal(size=(2, 4))).astype(np.float32)
    assert lift.fit_span(x).basis.shape == (4, 2)


def test_rows_without_a_span_are_refused():
    with pytest.raises(ValueError, match="a row that is not zero"):
        lift.fit_span(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"at least one row, got shape \(0, 2\)"):
        lift.fit_span(np.zeros((0, 2), np.float32))
    with pytest.raises(ValueError, match=r"x must have shape \(n, d\)"):
        lift.fit_span(np.zeros(3, np.float32))


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
    features = lift.apply(draw(0, channels=6, length=96, count=300), series)
    x = np.asarray(lift.apply(lift.fit_standardise(features), features))
    labels = np.array([name.split("_")[0] for name, _ in chosen])
    distances = np.linalg.norm(x[:, None] - x[None], axis=2) + np.diag(np.full(len(x), np.inf))
    assert (labels[np.argmin(distances, axis=1)] == labels).mean() > 0.9


def test_a_lift_whose_arrays_are_numpys_checks_its_rows_too():
    fitted = jax.device_get(lift.fit_standardise(np.float32([[0, 1], [2, 5]])))
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        lift.apply(fitted, np.zeros((3, 1), np.float32))
    with pytest.raises(ValueError, match="row 0 has NaN"):
        lift.apply(fitted, np.full((3, 2), np.nan, np.float32))
