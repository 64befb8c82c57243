"""Metrics against plain NumPy, SciPy and scikit-learn, and what they must not fall for."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import lstsq
from scipy.spatial.distance import cdist
from scipy.stats import entropy, rankdata
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from perfalign_jax import metrics

PAIRWISE = {
    "cmae": metrics.cmae,
    "ncmae": metrics.ncmae,
    "mlre": metrics.mlre,
    "mlre_affine": metrics.mlre_affine,
    "relative_cmae": metrics.relative_cmae,
    "relative_cmae_raw": functools.partial(metrics.relative_cmae, center=False),
    "latent_energy": metrics.latent_energy,
    "linear_cka": metrics.linear_cka,
}
RANKED = {
    "retrieval": lambda a, b: metrics.retrieval(a, b, at=(1, 3), chunk=7).recall_12,
    "mutual_knn": lambda a, b: metrics.mutual_knn(a, b, neighbors=3, chunk=7),
}
ALL = {**PAIRWISE, **RANKED, "effective_rank": lambda a, b: metrics.effective_rank(a - b)}
each = pytest.mark.parametrize("metric", ALL.values(), ids=ALL.keys())
each_smooth = pytest.mark.parametrize("metric", PAIRWISE.values(), ids=PAIRWISE.keys())


def draw_pair(rng, n=40, k=3, noise=0.5):
    z = rng.normal(size=(n, k))
    return z, z + noise * rng.normal(size=(n, k))


# Known answers and independent references. Tolerance 1e-12: rounding of sums of some hundred terms.


def test_errors_against_numpy(x64, rng):
    z1, z2 = draw_pair(rng)
    distance = np.linalg.norm(z1 - z2, axis=1).mean()
    np.testing.assert_allclose(metrics.cmae(z1, z2), distance, rtol=1e-12)
    np.testing.assert_allclose(
        metrics.ncmae(z1, z2),
        np.linalg.norm(normalize(z1) - normalize(z2), axis=1).mean(),
        rtol=1e-12,
    )
    spread = np.mean([np.linalg.norm(z - z.mean(0), axis=1).mean() for z in (z1, z2)])
    np.testing.assert_allclose(metrics.relative_cmae(z1, z2), distance / spread, rtol=1e-12)
    raw = np.mean([np.linalg.norm(z, axis=1).mean() for z in (z1, z2)])
    np.testing.assert_allclose(
        metrics.relative_cmae(z1, z2, center=False), distance / raw, rtol=1e-12
    )


def test_mlre_per_modality_and_averaged(x64, rng):
    z, z1 = draw_pair(rng)
    z2 = rng.normal(size=z.shape)
    each_one = [np.linalg.norm(z - e, axis=1).mean() for e in (z1, z2)]
    np.testing.assert_allclose([metrics.mlre(z, z1), metrics.mlre(z, z2)], each_one, rtol=1e-12)
    np.testing.assert_allclose(metrics.mlre(z, (z1, z2)), np.mean(each_one), rtol=1e-12)
    np.testing.assert_allclose(metrics.mlre(z, [z1]), each_one[0], rtol=1e-12)


def test_normalised_error_is_cosine_similarity(x64, rng):
    # For unit vectors |a - b|^2 = 2 - 2 cos, the remark under Eq. 8.
    z1, z2 = draw_pair(rng, n=1)
    cosine = cosine_similarity(z1, z2)[0, 0]
    np.testing.assert_allclose(metrics.ncmae(z1, z2) ** 2, 2 - 2 * cosine, rtol=1e-12)


def test_affine_error_against_scipy_least_squares(x64, rng):
    z, z1 = draw_pair(rng, n=50)
    z2 = rng.normal(size=(50, 3))
    for estimate in ((z1,), (z1, z2), (z1[:, :2], z2[:, :2])):
        design = np.concatenate(estimate)
        design = np.column_stack([design, np.ones(len(design))])
        target = np.concatenate([z] * len(estimate))
        best = target - design @ lstsq(design, target)[0]
        np.testing.assert_allclose(
            metrics.mlre_affine(z, estimate), np.linalg.norm(best, axis=1).mean(), rtol=1e-11
        )


def test_affine_error_sees_only_what_no_gauge_can_mend(x64, rng):
    z, z1 = draw_pair(rng)
    gauge, shift = rng.normal(size=(3, 3)), 50 * rng.normal(size=(1, 3))
    # Rounding times the condition number of the gauge, below 1e3 for this seed.
    assert metrics.mlre_affine(z, z @ gauge + shift) < 1e-11
    np.testing.assert_allclose(
        metrics.mlre_affine(z, z1 @ gauge + shift), metrics.mlre_affine(z, z1), rtol=1e-10
    )
    # A collapsed estimate can only give the mean.
    np.testing.assert_allclose(
        metrics.mlre_affine(z, 0 * z),
        np.linalg.norm(z - z.mean(0), axis=1).mean(),
        rtol=1e-12,
    )
    # One direction missing: rank-deficient least squares.
    flat = z * np.array([[1.0, 1.0, 0.0]])
    assert metrics.mlre_affine(z[:, :2], flat) < 1e-11


def test_effective_rank_against_entropy_of_singular_values(x64, rng):
    z = rng.normal(size=(30, 4)) * [[3.0, 1.0, 0.5, 0.1]] + 5
    for center in (True, False):
        s = np.linalg.svd(z - z.mean(0) * center, compute_uv=False)
        np.testing.assert_allclose(
            metrics.effective_rank(z, center=center), np.exp(entropy(s)), rtol=1e-12
        )


def test_effective_rank_of_known_matrices(x64):
    # |x| <= 1e-12: rounding of an SVD of entries of order 1.
    assert abs(float(metrics.effective_rank(np.eye(5), center=False)) - 5) < 1e-12
    assert abs(float(metrics.effective_rank(np.ones((6, 3)), center=False)) - 1) < 1e-12
    assert float(metrics.effective_rank(np.zeros((6, 3)))) == 0


def test_latent_energy_of_an_orthonormal_projection(x64, rng):
    x = rng.normal(size=(50, 6)) + 3
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    np.testing.assert_allclose(metrics.latent_energy(x @ q, x), 1, rtol=1e-12)
    kept = (x @ q[:, :2]).var(0).sum() / x.var(0).sum()
    np.testing.assert_allclose(metrics.latent_energy(x @ q[:, :2], x), kept, rtol=1e-12)
    raw = np.sum((x @ q[:, :2]) ** 2) / np.sum(x**2)
    np.testing.assert_allclose(
        metrics.latent_energy(x @ q[:, :2], x, center=False), raw, rtol=1e-12
    )
    assert float(metrics.latent_energy(x[:, :1], np.ones((50, 2)))) == 0


def test_linear_cka_against_the_kernel_form(x64, rng):
    z1, z2 = rng.normal(size=(30, 3)) + 2, rng.normal(size=(30, 5))
    z2[:, :3] += z1
    middle = np.eye(30) - 1 / 30
    k1, k2 = (middle @ z @ z.T @ middle for z in (z1, z2))
    reference = np.sum(k1 * k2) / (np.linalg.norm(k1) * np.linalg.norm(k2))
    np.testing.assert_allclose(metrics.linear_cka(z1, z2), reference, rtol=1e-12)
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    np.testing.assert_allclose(metrics.linear_cka(z1, 7 * z1 @ q), 1, rtol=1e-12)
    assert float(metrics.linear_cka(z1, np.ones((30, 2)))) == 0


# Retrieval and neighbours.


def partner_ranks(z1, z2):
    return np.array([rankdata(row)[i] for i, row in enumerate(cdist(z1, z2))])


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_retrieval_against_rankdata(x64, rng, chunk):
    z1, z2 = draw_pair(rng, noise=1.0)
    result = metrics.retrieval(z1, z2, at=(1, 4, 50), chunk=chunk)
    for ranks, recall, median in (
        (partner_ranks(z1, z2), result.recall_12, result.median_rank_12),
        (partner_ranks(z2, z1), result.recall_21, result.median_rank_21),
    ):
        # Exact: both count whole samples (without ties), n = 40.
        np.testing.assert_allclose(recall, [(ranks <= a).mean() for a in (1, 4, 50)], rtol=1e-15)
        assert float(median) == np.median(ranks)
    assert result.at == (1, 4, 50)


def test_retrieval_by_cosine_ignores_length(x64, rng):
    z1, z2 = draw_pair(rng, noise=0.3)
    lengths = rng.uniform(0.1, 10, size=(40, 1))
    by_cosine = metrics.retrieval(z1 * lengths, z2, at=(1,), metric="cosine")
    normed = metrics.retrieval(normalize(z1), normalize(z2), at=(1,))
    np.testing.assert_array_equal(by_cosine.recall_12, normed.recall_12)


@pytest.mark.parametrize("constant", [0.0, 0.3, -1e5])
@pytest.mark.parametrize("chunk", [4, 10, 16])
def test_collapsed_latents_retrieve_at_chance(constant, chunk):
    z = np.full((10, 3), constant, np.float32)
    result = metrics.retrieval(z, z, at=(1, 5), chunk=chunk)
    # Chance is at / n; 1e-6 is float32 rounding.
    np.testing.assert_allclose(result.recall_12, [0.1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(result.recall_21, [0.1, 0.5], rtol=1e-6)
    assert float(result.median_rank_12) == float(result.median_rank_21) == 5.5


def test_ties_are_broken_in_expectation(x64, rng):
    # Ten samples of four kinds: the partner is one of its kind, found at random among them.
    kinds = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    points = rng.normal(size=(4, 5))
    sizes = np.bincount(kinds)[kinds]
    result = metrics.retrieval(points[kinds], points[kinds] + 1e-9, at=(1, 2), chunk=4)
    np.testing.assert_allclose(
        result.recall_12, [np.mean(1 / sizes), np.mean(np.minimum(2 / sizes, 1))], rtol=1e-12
    )
    assert float(result.median_rank_12) == np.median((sizes + 1) / 2)


def test_retrieval_is_exact_far_from_the_origin(rng):
    # float32 with a common mean of 1e3 and spread 1: without centring, distances drown.
    z = rng.normal(size=(200, 8)).astype(np.float32)
    result = metrics.retrieval(z + 1000, z + 1000, at=(1,))
    assert float(result.recall_12[0]) == 1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk", [1, 16, 60])
def test_mutual_neighbours_against_scikit_learn(x64, rng, metric, chunk):
    z1, z2 = rng.normal(size=(60, 4)), rng.normal(size=(60, 6))
    z2[:, :4] += z1
    found = [
        NearestNeighbors(n_neighbors=5, metric=metric, algorithm="brute")
        .fit(z)
        .kneighbors(return_distance=False)
        for z in (z1, z2)
    ]
    shared = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*found, strict=True)])
    ours = metrics.mutual_knn(z1, z2, neighbors=5, metric=metric, chunk=chunk)
    np.testing.assert_allclose(ours, shared, rtol=1e-12)


def test_collapsed_latents_share_neighbours_at_chance(rng):
    z = rng.normal(size=(21, 3)).astype(np.float32)
    flat = np.zeros((21, 3), np.float32)
    for a, b in ((flat, flat), (z, flat)):
        # Chance is 4 of the 20 others; 1e-5 is float32 rounding of 21 sums.
        np.testing.assert_allclose(metrics.mutual_knn(a, b, neighbors=4, chunk=8), 0.2, rtol=1e-5)


def test_all_neighbours_are_shared(rng):
    z1, z2 = rng.normal(size=(2, 9, 2)).astype(np.float32)
    np.testing.assert_allclose(metrics.mutual_knn(z1, z2, neighbors=8), 1, rtol=1e-6)


def test_blocks_hold_less_than_all_pairs():
    # The compiled program's own account of its memory, for 20,000 pairs: all pairs of float32
    # would take 1.6 GB.
    shape = jax.ShapeDtypeStruct((20_000, 4), np.float32)
    for function in (metrics.retrieval, functools.partial(metrics.mutual_knn, neighbors=3)):
        memory = jax.jit(function).lower(shape, shape).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 150e6


# What the numbers mean.


def test_a_common_mean_fools_only_the_uncentred(x64, rng):
    z1, z2 = rng.normal(size=(2, 500, 4))  # unrelated
    plain, shifted = metrics.relative_cmae(z1, z2), metrics.relative_cmae(z1 + 1e4, z2 + 1e4)
    np.testing.assert_allclose(shifted, plain, rtol=1e-9)  # 1e4 costs four digits
    # Unrelated Gaussians: sqrt(2) up to the sampling error of 500 rows, below 3 %.
    assert abs(plain - np.sqrt(2)) < 0.05
    assert metrics.relative_cmae(z1 + 1e4, z2 + 1e4, center=False) < 1e-3


def test_an_offset_between_the_modalities_is_an_error(x64, rng):
    z = rng.normal(size=(50, 2))
    assert metrics.relative_cmae(z, z + 100) > 10
    assert metrics.relative_cmae(z, z) == 0


@settings(deadline=None, max_examples=25)
@given(exponent=st.integers(-30, 30), seed=st.integers(0, 1000))
def test_scale_and_rotation(exponent, seed):
    draw = np.random.default_rng(seed)
    z1, z2 = draw_pair(draw, n=12)
    q = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    scale = 10.0**exponent
    with jax.enable_x64(True):
        a, b = scale * z1 @ q, scale * z2 @ q
        np.testing.assert_allclose(metrics.cmae(a, b), scale * metrics.cmae(z1, z2), rtol=1e-12)
        for name in ("ncmae", "relative_cmae_raw", "relative_cmae", "linear_cka"):
            np.testing.assert_allclose(PAIRWISE[name](a, b), PAIRWISE[name](z1, z2), rtol=1e-11)
        for name, other in (("latent_energy", z2), ("effective_rank", z2)):
            np.testing.assert_allclose(ALL[name](a, b), ALL[name](z1, other), rtol=1e-11)
        np.testing.assert_allclose(
            metrics.retrieval(a, b).recall_12, metrics.retrieval(z1, z2).recall_12, rtol=1e-12
        )


def test_float32_neither_underflows_nor_overflows():
    # Squares of these lie outside float32's range.
    small, large = np.float32(1e-25), np.float32(1e25)
    z = np.ones((3, 4), np.float32)
    np.testing.assert_allclose(metrics.cmae(small * z, 0 * z), 2e-25, rtol=1e-6)
    np.testing.assert_allclose(metrics.cmae(large * z, 0 * z), 2e25, rtol=1e-6)


# Transformations.


@each
def test_jit_equals_eager_and_vmap_equals_loop(rng, metric):
    batch = [tuple(z.astype(np.float32) for z in draw_pair(rng, n=20)) for _ in range(3)]
    firsts, seconds = (np.stack(z) for z in zip(*batch, strict=True))
    loop = np.stack([metric(a, b) for a, b in batch])
    # 1e-5: float32 rounding when XLA fuses sums in another order.
    np.testing.assert_allclose(jax.jit(metric)(*batch[0]), loop[0], rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(metric)(firsts, seconds), loop, rtol=1e-5)
    assert loop.dtype == np.float32


@each
def test_float64_is_kept(x64, rng, metric):
    assert metric(*draw_pair(rng, n=20)).dtype == np.float64


@each
def test_gradients_are_finite_where_latents_coincide(rng, metric):
    z, other = (a.astype(np.float32) for a in draw_pair(rng, n=20))
    for a, b in ((z, z), (0 * z, 0 * z), (0 * z, z), (z, other)):
        for gradient in jax.grad(lambda a, b: jnp.sum(metric(a, b)), argnums=(0, 1))(a, b):
            assert np.isfinite(gradient).all()


@each_smooth
def test_gradients_equal_finite_differences(x64, rng, metric):
    z1, z2 = draw_pair(rng, n=8)
    direction = rng.normal(size=z1.shape)
    slope = np.sum(jax.grad(metric)(z1, z2) * direction)
    step = 1e-6
    rise = metric(z1 + step * direction, z2) - metric(z1 - step * direction, z2)
    # Central differences: step^2 plus rounding over step, about 1e-9 of a slope of order 0.1.
    np.testing.assert_allclose(slope, rise / (2 * step), rtol=1e-6, atol=1e-8)


def test_effective_rank_gradient(x64, rng):
    z = rng.normal(size=(8, 3))
    direction = rng.normal(size=z.shape)
    slope = np.sum(jax.grad(metrics.effective_rank)(z) * direction)
    step = 1e-6
    rise = metrics.effective_rank(z + step * direction) - metrics.effective_rank(
        z - step * direction
    )
    np.testing.assert_allclose(slope, rise / (2 * step), rtol=1e-6, atol=1e-8)


# Errors.

GOOD = np.ones((4, 2), np.float32)
NAN = np.where(np.arange(8).reshape(4, 2) == 5, np.nan, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.cmae(GOOD, GOOD[:3]), ValueError, "same shape (n, k), got (4, 2)"),
        (lambda: metrics.ncmae(GOOD[0], GOOD), ValueError, "z1 must have shape (n, k), got"),
        (lambda: metrics.relative_cmae(GOOD, NAN), ValueError, "z2 must be finite, but row 2"),
        (lambda: metrics.cmae(GOOD + 1j, GOOD), TypeError, "z1 must hold real numbers"),
        (lambda: metrics.cmae(GOOD[:0], GOOD[:0]), ValueError, "at least one row"),
        (lambda: metrics.mlre(GOOD, (GOOD, NAN)), ValueError, "z_hat[1] must be finite"),
        (lambda: metrics.mlre(GOOD, GOOD[:, :1]), ValueError, "z and z_hat must have the same"),
        (lambda: metrics.mlre(GOOD, ()), TypeError, "z_hat must be an array of shape (n, k) or"),
        (lambda: metrics.mlre(GOOD, (1.0, 2.0)), TypeError, "z_hat must be an array of shape"),
        (lambda: metrics.mlre_affine(GOOD, GOOD[:3]), ValueError, "z and z_hat must have the"),
        (
            lambda: metrics.mlre_affine(GOOD, (GOOD, GOOD[:, :1])),
            ValueError,
            "z_hat must hold latents with the same number of columns, got [1, 2]",
        ),
        (lambda: metrics.latent_energy(GOOD, GOOD[:2]), ValueError, "z and x must have the same"),
        (lambda: metrics.effective_rank(GOOD[:, :0]), ValueError, "z must have at least one row"),
        (lambda: metrics.linear_cka(GOOD, NAN), ValueError, "z2 must be finite"),
        (lambda: metrics.retrieval(GOOD, GOOD, at=1), TypeError, "at must be a tuple"),
        (lambda: metrics.retrieval(GOOD, GOOD, at=()), TypeError, "at must be a tuple"),
        (lambda: metrics.retrieval(GOOD, GOOD, at=(0,)), ValueError, "at[0] must be at least 1"),
        (lambda: metrics.retrieval(GOOD, GOOD, at=(1.5,)), TypeError, "at[0] must be an integer"),
        (lambda: metrics.retrieval(GOOD, GOOD, chunk=0), ValueError, "chunk must be at least 1"),
        (
            lambda: metrics.retrieval(GOOD, GOOD, metric="manhattan"),
            ValueError,
            "metric must be one of 'euclidean', 'cosine', got 'manhattan'",
        ),
        (
            lambda: metrics.mutual_knn(GOOD, GOOD),
            ValueError,
            "neighbors must be between 1 and 3 (there are 4 samples), got 10",
        ),
        (
            lambda: metrics.mutual_knn(GOOD[:1], GOOD[:1], neighbors=1),
            ValueError,
            "at least two rows, got 1",
        ),
        (
            lambda: metrics.mutual_knn(GOOD, GOOD, neighbors=1, metric="dot"),
            ValueError,
            "metric must be one of",
        ),
        (lambda: metrics.mutual_knn(GOOD, GOOD, neighbors=1, chunk=0), ValueError, "chunk must"),
    ],
)
def test_every_error_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_retrieval_does_not_depend_on_units(scale, rng):
    z1 = (rng.normal(size=(50, 3)) * scale).astype(np.float32)
    found = metrics.retrieval(z1, z1, at=(1,))
    assert float(found.recall_12[0]) == 1.0
    other = metrics.retrieval(z1, z1[rng.permutation(50)], at=(1,))
    assert float(other.recall_12[0]) < 0.2
