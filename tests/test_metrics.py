"""Metrics against plain NumPy, SciPy and scikit-learn, and what they must not fall for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import lstsq
from scipy.stats import entropy
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import normalize

from perfalign_jax import metrics

PAIRWISE = {
    "cmae": metrics.cmae,
    "ncmae": metrics.ncmae,
    "mlre": metrics.mlre,
    "mlre_affine": metrics.mlre_affine,
    "relative_cmae": metrics.relative_cmae,
    "latent_energy": metrics.latent_energy,
    "linear_cka": metrics.linear_cka,
}
ALL = {**PAIRWISE, "effective_rank": lambda a, b: metrics.effective_rank(a - b)}
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
        metrics.mlre_affine(z, 0 * z), np.linalg.norm(z - z.mean(0), axis=1).mean(), rtol=1e-12
    )
    # One direction missing: rank-deficient least squares.
    flat = z * np.array([[1.0, 1.0, 0.0]])
    assert metrics.mlre_affine(z[:, :2], flat) < 1e-11


def test_effective_rank_against_entropy_of_singular_values(x64, rng):
    z = rng.normal(size=(30, 4)) * [[3.0, 1.0, 0.5, 0.1]] + 5
    s = np.linalg.svd(z - z.mean(0), compute_uv=False)
    np.testing.assert_allclose(metrics.effective_rank(z), np.exp(entropy(s)), rtol=1e-12)


def test_effective_rank_of_known_matrices(x64):
    # |x| <= 1e-12: rounding of an SVD of entries of order 1.
    assert abs(float(metrics.effective_rank(np.vstack([np.eye(5), -np.eye(5)]))) - 5) < 1e-12
    assert abs(float(metrics.effective_rank(np.arange(6.0)[:, None] * np.ones(3))) - 1) < 1e-12
    assert float(metrics.effective_rank(np.zeros((6, 3)))) == 0


def test_latent_energy_of_an_orthonormal_projection(x64, rng):
    x = rng.normal(size=(50, 6)) + 3
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    np.testing.assert_allclose(metrics.latent_energy(x @ q, x), 1, rtol=1e-12)
    kept = (x @ q[:, :2]).var(0).sum() / x.var(0).sum()
    np.testing.assert_allclose(metrics.latent_energy(x @ q[:, :2], x), kept, rtol=1e-12)
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


# What the numbers mean.


def test_a_common_mean_fools_only_the_uncentred(x64, rng):
    z1, z2 = rng.normal(size=(2, 500, 4))  # unrelated
    plain, shifted = metrics.relative_cmae(z1, z2), metrics.relative_cmae(z1 + 1e4, z2 + 1e4)
    np.testing.assert_allclose(shifted, plain, rtol=1e-9)  # 1e4 costs four digits
    # Unrelated Gaussians: sqrt(2) up to the sampling error of 500 rows, below 3 %.
    assert abs(plain - np.sqrt(2)) < 0.05


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
        for name in ("ncmae", "relative_cmae", "linear_cka"):
            np.testing.assert_allclose(PAIRWISE[name](a, b), PAIRWISE[name](z1, z2), rtol=1e-11)
        for name, other in (("latent_energy", z2), ("effective_rank", z2)):
            np.testing.assert_allclose(ALL[name](a, b), ALL[name](z1, other), rtol=1e-11)


def test_float32_neither_underflows_nor_overflows():
    # Squares of these lie outside float32's range.
    small, large = np.float32(1e-25), np.float32(1e25)
    z = np.ones((3, 4), np.float32)
    np.testing.assert_allclose(metrics.cmae(small * z, 0 * z), 2e-25, rtol=1e-6)
    np.testing.assert_allclose(metrics.cmae(large * z, 0 * z), 2e25, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_affine_error_of_many_samples_in_single_precision(rng, shift):
    # Two modalities of 200,000 rows, directions 1 : 0.02; a cut at eps * rows = 0.048 lost one.
    z = rng.normal(size=(200_000, 2)).astype(np.float32)
    mixed = z @ np.array([[0.6, 0.8], [-0.8, 0.6]], np.float32) * np.float32([[1, 0.02]])
    estimates = (mixed + np.float32(shift), mixed + np.float32(shift))
    # 50 times the rounding of the estimate, at the size of its mean.
    assert metrics.mlre_affine(z, estimates) < 50 * 6e-8 * max(shift, 1)


def test_a_common_mean_costs_no_digits_in_single_precision(rng):
    # One pass of a float32 mean of a million rows at 1000 errs by a tenth of the spread.
    z = rng.normal(size=(1_000_000, 3)) * [[1, 0.1, 0.01]]
    z1, z2 = (np.float32(z + 1000 + 0.1 * rng.normal(size=z.shape)) for _ in range(2))
    exact = [z.astype(np.float64) - z.astype(np.float64).mean(0) for z in (z1, z2)]
    norms = np.mean([np.linalg.norm(z, axis=1).mean() for z in exact])
    spectrum = np.linalg.svd(exact[0].T @ exact[0], compute_uv=False) ** 0.5
    distance = np.linalg.norm(z1.astype(np.float64) - z2, axis=1).mean()
    # 1e-4: a float32 sum of a million terms.
    np.testing.assert_allclose(metrics.relative_cmae(z1, z2), distance / norms, rtol=1e-4)
    np.testing.assert_allclose(metrics.effective_rank(z1), np.exp(entropy(spectrum)), rtol=1e-4)
    energy = np.sum(exact[0][:, :2] ** 2) / np.sum(exact[0] ** 2)
    np.testing.assert_allclose(metrics.latent_energy(z1[:, :2], z1), energy, rtol=1e-4)


@pytest.mark.parametrize("shape", [(5000, 6), (6, 6), (6, 50)])
def test_effective_rank_in_single_precision_against_double(rng, shape):
    z = rng.normal(size=shape) * np.logspace(0, -4, shape[1])[None, :]
    s = np.linalg.svd(z - z.mean(0), compute_uv=False)
    # 1e-5: each singular value is off by a few eps of the largest.
    found = metrics.effective_rank(z.astype(np.float32))
    np.testing.assert_allclose(found, np.exp(entropy(s)), rtol=1e-5)


@pytest.mark.parametrize("constant", [0.3, -1234.567])
def test_a_constant_has_no_spread(rng, constant):
    # The rounded mean of equal values is not that value: what it leaves is no direction.
    z = rng.normal(size=(1000, 3)).astype(np.float32)
    flat = np.full_like(z, constant)
    assert metrics.effective_rank(flat) == 0
    assert metrics.relative_cmae(flat, flat + 1) == np.inf
    assert metrics.latent_energy(z, flat) == metrics.latent_energy(flat, z) == 0
    assert metrics.linear_cka(z, flat) == 0


# What is not finite.


@each
def test_every_metric_of_a_nan_is_nan(rng, metric):
    z1, z2 = (z.astype(np.float32) for z in draw_pair(rng, n=20))
    bad = z2.copy()
    bad[5, 1] = np.nan
    for a, b in (
        (z1, bad),
        (bad, z1),
        (bad, bad),
        (0 * z1, bad),
        (bad, 0 * z1),
        (bad * np.nan,) * 2,
    ):
        assert np.isnan(jax.jit(metric)(a, b))
    clean, spoilt = jax.vmap(metric)(np.stack([z1, z1]), np.stack([z2, bad]))
    np.testing.assert_allclose(clean, metric(z1, z2), rtol=1e-5)  # a batch's other members stand
    assert np.isnan(spoilt)


@each
def test_an_infinite_latent_is_infinitely_far_or_nothing(rng, metric):
    z1, z2 = (z.astype(np.float32) for z in draw_pair(rng, n=20))
    z2[5, 1] = np.inf
    assert not np.isfinite(jax.jit(metric)(z1, z2))
    assert jax.jit(metrics.cmae)(z1, z2) == jax.jit(metrics.mlre)(z1, z2) == np.inf


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
    ],
)
def test_every_error_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
