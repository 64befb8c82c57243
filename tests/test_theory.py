"""What theory says of alignment errors, against NumPy experiments that know nothing of it."""

import math

import numpy as np
import pytest
from scipy import stats

from perfalign_jax import theory


def simulate(rng, n, d, k, *, latents, noise, draws=30):
    """Mean training and held-out CMAE of the last right singular vectors, by NumPy alone."""
    signs = np.where(np.arange(d) < d - d // 2, 1, -1)
    train, test = [], []
    for _ in range(draws):
        s = rng.uniform(-5, 5, (d, latents))

        def draw(m, s=s):
            z = rng.normal(size=(m, latents)) + np.arange(latents) % 2
            z += 4 * rng.integers(0, 2, (m, 1))
            return (z @ s.T + noise * rng.normal(size=(m, d))) * signs

        x = draw(n)
        a = np.linalg.svd(x)[2][-k:]
        train.append(np.linalg.norm(x @ a.T, axis=1).mean())
        test.append(np.linalg.norm(draw(200) @ a.T, axis=1).mean())
    return np.mean(train), np.mean(test)


@pytest.mark.parametrize("k", [1, 2, 20, 1000])
def test_chi_mean_is_that_of_the_chi_law(k):
    assert theory.chi_mean(k) == pytest.approx(stats.chi.mean(k), rel=1e-9)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("n", [3, 10, 50])
@pytest.mark.parametrize("latents", [2, 6, 9])
def test_perfect_up_to_the_dimension_of_the_null_space(rng, n, latents, noise):
    d = 8
    x = rng.normal(size=(n, latents)) @ rng.uniform(-5, 5, (latents, d))
    x += noise * rng.normal(size=(n, d))
    expected = d - np.linalg.matrix_rank(x)
    assert theory.largest_perfect_k(n, d, latents=latents, noise=noise) == expected


@pytest.mark.parametrize(
    ("n", "d", "k", "latents", "noise"),
    [
        (60, 24, 12, 12, 1.0),
        (400, 24, 12, 12, 0.5),
        (400, 60, 5, 5, 1.0),
        (50, 60, 20, 10, 1.0),
        (400, 24, 16, 16, 0.0),
        (400, 24, 18, 18, 1.0),
    ],
)
def test_expected_errors_are_what_numpy_measures(rng, n, d, k, latents, noise):
    train, test = simulate(rng, n, d, k, latents=latents, noise=noise)
    # 30 draws of at least 50 samples: standard errors near 1 %; sizes near 10 for laws of large
    # matrices add up to 4 %.
    assert theory.training_cmae(n, d, k, latents=latents, noise=noise) == pytest.approx(
        train, rel=0.05
    )
    if k <= d - latents and noise > 0:
        assert theory.held_out_cmae(n, d, k, latents=latents, noise=noise) == pytest.approx(
            test, rel=0.05
        )


def test_known_values():
    # Noise 0.1 and 1 in many samples, as measured for k = 2 and k = 8.
    assert theory.held_out_cmae(10**7, 20, 2, latents=2, noise=0.1) == pytest.approx(
        0.1 * math.sqrt(math.pi / 2), rel=1e-5
    )
    assert theory.training_cmae(20, 40, 20, latents=20, noise=1.0) == 0
    assert theory.training_cmae(5, 40, 20, latents=20, noise=0.0) == 0
    assert theory.training_cmae(10**6, 40, 20, latents=20, noise=1.0) == pytest.approx(
        theory.chi_mean(20), rel=1e-2
    )


def test_nothing_is_said_where_nothing_is_known():
    assert math.isnan(theory.held_out_cmae(10, 40, 20, latents=20, noise=1.0))
    assert math.isnan(theory.held_out_cmae(100, 40, 21, latents=20, noise=1.0))
    assert math.isnan(theory.training_cmae(15, 40, 30, latents=20, noise=1.0))
    assert math.isnan(theory.training_cmae(100, 20, 20, latents=20, noise=0.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"d": 1}, "d must be at least 2, got 1"),
        ({"k": 41}, "k must be between 1 and 40, got 41"),
        ({"latents": 0}, "latents must be at least 1"),
        ({"noise": -1.0}, "noise must be zero or more, got -1"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    sizes = {"n": 100, "d": 40, "k": 20, "latents": 20, "noise": 1.0, **arguments}
    n, d, k = (sizes.pop(name) for name in ("n", "d", "k"))
    for function in (theory.training_cmae, theory.held_out_cmae):
        with pytest.raises(ValueError, match=message):
            function(n, d, k, **sizes)
    with pytest.raises(ValueError, match="k must be above zero"):
        theory.chi_mean(0)
