"""The generators draw from the laws they name: moments, supports and tests of distribution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from perfalign_jax import synthetic

KEY = jax.random.key(3)


def test_mixture_has_the_papers_moments(x64):
    z, labels = (np.asarray(a) for a in synthetic.draw_mixture_latents(KEY, 20_000))
    assert z.shape == (20_000, 2)
    assert z.dtype == np.float64
    # Five standard errors of 10,000 draws per component: 0.05 for means, 0.07 for covariances.
    for label, mean in ((0, (0, 1)), (1, (4, 5))):
        np.testing.assert_allclose(z[labels == label].mean(0), mean, atol=0.05)
        np.testing.assert_allclose(np.cov(z[labels == label].T), np.eye(2), atol=0.07)
        assert stats.kstest(z[labels == label, 0] - mean[0], "norm").pvalue > 1e-3
    assert abs(labels.mean() - 0.5) < 0.018


def test_mixture_follows_its_parameters(x64):
    covariances = np.array([[[4.0, 1.0], [1.0, 0.5]], [[1.0, 0.0], [0.0, 9.0]], np.eye(2)])
    means = [[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]]
    weights = (0.2, 0.8, 0.0)
    z, labels = (
        np.asarray(a)
        for a in synthetic.draw_mixture_latents(
            KEY, 20_000, means=means, covariances=covariances, weights=weights
        )
    )
    # Five standard errors: shares 0.014, means 0.24 (4,000 draws of standard deviation up to 3).
    np.testing.assert_allclose(np.bincount(labels, minlength=3) / 20_000, weights, atol=0.015)
    for label in range(2):
        np.testing.assert_allclose(z[labels == label].mean(0), means[label], atol=0.24)
        np.testing.assert_allclose(np.cov(z[labels == label].T), covariances[label], atol=0.6)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_mixture_in_other_dimensions(k):
    z, labels = synthetic.draw_mixture_latents(KEY, 4000, k=k)
    middle = np.arange(k) % 2
    for label in (0, 1):
        # Six standard errors of 2,000 draws.
        np.testing.assert_allclose(
            np.asarray(z)[labels == label].mean(0), middle + 4 * label, atol=0.14
        )


@pytest.mark.parametrize("k", [2, 4])
def test_uniform_latents_lie_within_the_margin(x64, k):
    z, labels = (np.asarray(a) for a in synthetic.draw_uniform_latents(KEY, 2000, k=k))
    away = z[:, -1] - (z[:, :-1].sum(1) - 10)
    assert np.bincount(labels).tolist() == [1000, 1000]
    np.testing.assert_array_equal(away > 0, labels == 1)
    assert np.abs(away).max() <= 10
    assert stats.kstest(np.abs(away) / 10, "uniform").pvalue > 1e-3
    for i in range(k - 1):
        assert stats.kstest((z[:, i] + 10) / 20, "uniform").pvalue > 1e-3


def test_uniform_latents_follow_their_options(x64):
    z, labels = (
        np.asarray(a)
        for a in synthetic.draw_uniform_latents(
            KEY, 101, slope=-2, intercept=3, margin=0.5, span=(1, 2)
        )
    )
    away = z[:, 1] - (3 - 2 * z[:, 0])
    np.testing.assert_array_equal(away > 0, labels == 1)
    assert 0.4 < np.abs(away).max() <= 0.5 + 1e-12  # the subtraction rounds
    assert 1 <= z[:, 0].min() < 1.1
    assert 1.9 < z[:, 0].max() <= 2
    assert np.bincount(labels).tolist() == [51, 50]


def test_maps_are_uniform_and_independent(x64):
    s1, s2 = (np.asarray(s) for s in synthetic.draw_maps(KEY, k=20, dims=(30, 40)))
    assert s1.shape == (30, 20)
    assert s2.shape == (40, 20)
    for s in (s1, s2):
        assert stats.kstest((s.ravel() + 5) / 10, "uniform").pvalue > 1e-3
    # Correlation of 600 independent pairs: five standard errors.
    assert abs(np.corrcoef(s1.ravel(), s2[:30].ravel())[0, 1]) < 5 / np.sqrt(600)
    narrow = synthetic.draw_maps(KEY, k=20, dims=(30, 40), low=2, high=3)[0]
    assert narrow.min() >= 2
    assert narrow.max() <= 3


def test_views_are_the_maps_images(x64, rng):
    z = rng.normal(size=(50, 3))
    maps = rng.normal(size=(4, 3)), rng.normal(size=(6, 3))
    for x, s in zip(synthetic.draw_views(KEY, z, maps), maps, strict=True):
        # Column by column, as the paper writes it; rounding of three products.
        np.testing.assert_allclose(x, np.stack([s @ row for row in z]), rtol=1e-13, atol=1e-13)


def test_noise_is_a_standard_deviation_for_each_view(x64):
    z = np.zeros((5000, 2))
    maps = np.zeros((2, 2)), np.zeros((3, 2))
    x1, x2 = synthetic.draw_views(KEY, z, maps, noise=(0.5, 2.0))
    # Scaled, the noise of both is standard normal, and the two are unrelated.
    assert stats.kstest(np.ravel(x1) / 0.5, "norm").pvalue > 1e-3
    assert stats.kstest(np.ravel(x2) / 2, "norm").pvalue > 1e-3
    correlation = np.corrcoef(np.hstack([x1, x2]).T)
    np.testing.assert_allclose(correlation, np.eye(5), atol=5 / np.sqrt(5000))
    only_second = synthetic.draw_views(KEY, z, maps, noise=(0.0, 1.0))
    assert np.all(only_second[0] == 0)
    assert np.std(only_second[1]) > 0.9


def test_the_same_key_gives_the_same_noise_at_every_level(x64, rng):
    z, maps = rng.normal(size=(20, 2)), (rng.normal(size=(2, 2)), rng.normal(size=(2, 2)))
    clean = synthetic.draw_views(KEY, z, maps)
    one, two = (synthetic.draw_views(KEY, z, maps, noise=s) for s in (1.0, 2.0))
    for c, a, b in zip(clean, one, two, strict=True):
        np.testing.assert_allclose(b - c, 2 * (a - c), rtol=1e-11, atol=1e-12)  # subtraction rounds


@pytest.mark.parametrize("latents", ["mixture", "uniform"])
def test_a_problem_fits_together(x64, latents):
    problem = synthetic.draw_problem(KEY, 30, k=3, dims=(4, 5), latents=latents)
    for x, s in zip(problem.views, problem.maps, strict=True):
        np.testing.assert_allclose(x, problem.latents @ s.T, rtol=1e-12, atol=1e-12)
    assert problem.labels.shape == (30,)
    assert set(np.asarray(problem.labels).tolist()) == {0, 1}


@pytest.mark.slow
def test_jit_and_vmap_equal_a_loop():
    keys = jax.random.split(KEY, 4)

    def draw(key, noise):
        return synthetic.draw_problem(key, 8, dims=(3, 2), noise=noise)

    loop = [draw(key, 0.5) for key in keys]
    batch = jax.vmap(draw, in_axes=(0, None))(keys, 0.5)
    jitted = jax.jit(draw)(keys[0], 0.5)
    for i, one in enumerate(loop):
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)  # float32, sums reordered
    for a, b in zip(jax.tree.leaves(jitted), jax.tree.leaves(loop[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    # Different keys, different draws; different parts of one draw, too.
    assert len({float(p.latents[0, 0]) for p in loop}) == 4


def test_dtype_follows_the_latents():
    z = jnp.ones((3, 2), jnp.float32)
    maps = synthetic.draw_maps(KEY)
    assert synthetic.draw_views(KEY, z, maps, noise=1.0)[0].dtype == jnp.float32
    assert synthetic.draw_uniform_latents(KEY, 4)[0].dtype == jnp.float32


Z = jnp.ones((4, 2))
MAPS = (jnp.ones((3, 2)), jnp.ones((2, 2)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: synthetic.draw_mixture_latents(KEY, 0), ValueError, "n must be at least 1, got 0"),
        (lambda: synthetic.draw_mixture_latents(KEY, 2.0), TypeError, "n must be an integer"),
        (lambda: synthetic.draw_mixture_latents(KEY, 2, k=0), ValueError, "k must be at least 1"),
        (
            lambda: synthetic.draw_mixture_latents(KEY, 2, means=[[0.0], [1.0]]),
            ValueError,
            "means must have shape (c, k = 2), got shape (2, 1)",
        ),
        (
            lambda: synthetic.draw_mixture_latents(KEY, 2, means=[["a", "b"]]),
            TypeError,
            "means must hold real numbers",
        ),
        (
            lambda: synthetic.draw_mixture_latents(KEY, 2, covariances=jnp.ones((1, 2, 2))),
            ValueError,
            "covariances must have shape (c, k, k) = (2, 2, 2), got (1, 2, 2)",
        ),
        (
            lambda: synthetic.draw_mixture_latents(KEY, 2, weights=[1.0]),
            ValueError,
            "weights must have shape (c,) = (2,), got (1,)",
        ),
        (
            lambda: synthetic.draw_mixture_latents(KEY, 2, weights=[0.9, 0.9]),
            ValueError,
            "weights must be zero or more and sum to 1",
        ),
        (
            lambda: synthetic.draw_mixture_latents(KEY, 2, weights=[1.5, -0.5]),
            ValueError,
            "weights must be zero or more",
        ),
        (lambda: synthetic.draw_uniform_latents(KEY, 2, k=1), ValueError, "k must be at least 2"),
        (
            lambda: synthetic.draw_uniform_latents(KEY, 2, margin=0.0),
            ValueError,
            "margin must be above zero, got 0.0",
        ),
        (
            lambda: synthetic.draw_uniform_latents(KEY, 2, slope=float("nan")),
            ValueError,
            "slope, intercept, margin must be finite",
        ),
        (
            lambda: synthetic.draw_uniform_latents(KEY, 2, span=(1.0, 1.0)),
            ValueError,
            "span must be two numbers, low below high",
        ),
        (lambda: synthetic.draw_maps(KEY, dims=(2, 0)), ValueError, "d2 must be at least 1, got 0"),
        (lambda: synthetic.draw_maps(KEY, dims=3), TypeError, "dims must be two integers (d1, d2)"),
        (lambda: synthetic.draw_maps(KEY, low=1, high=1), ValueError, "low must be below high"),
        (lambda: synthetic.draw_views(KEY, Z, MAPS[0]), TypeError, "maps must be a tuple of two"),
        (
            lambda: synthetic.draw_views(KEY, Z, (MAPS[0], jnp.ones((2, 3)))),
            ValueError,
            "maps[1] must have k = 2 columns like latents, got shape (2, 3)",
        ),
        (lambda: synthetic.draw_views(KEY, Z[0], MAPS), ValueError, "latents must have shape"),
        (lambda: synthetic.draw_views(KEY, Z, MAPS, noise=-1.0), ValueError, "noise must be zero"),
        (
            lambda: synthetic.draw_views(KEY, Z, MAPS, noise="a"),
            TypeError,
            "noise must be a number",
        ),
        (
            lambda: synthetic.draw_views(KEY, Z, MAPS, noise=(1.0, 1.0, 1.0)),
            ValueError,
            "noise must be one number or two, got 3",
        ),
        (
            lambda: synthetic.draw_problem(KEY, 3, latents="gamma"),
            ValueError,
            "latents must be one of 'mixture', 'uniform', got 'gamma'",
        ),
    ],
)
def test_every_error_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
