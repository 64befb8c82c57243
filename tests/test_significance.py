"""Random-matrix theory against simulation, and a permutation test that keeps its level."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import perfalign_jax as pa
from perfalign_jax import significance, types

N, D1, D2 = 600, 60, 90


def sample_correlations(rng, r=()):
    """Canonical correlations of centred Gaussian views, by NumPy's QR and SVD."""
    x1, x2 = rng.normal(size=(N, D1)), rng.normal(size=(N, D2))
    for i, value in enumerate(r):
        x2[:, i] = value * x1[:, i] + np.sqrt(1 - value**2) * x2[:, i]
    q1, q2 = (np.linalg.qr(x - x.mean(axis=0))[0] for x in (x1, x2))
    return np.linalg.svd(q1.T @ q2, compute_uv=False)


def test_the_edge_is_where_correlations_of_unrelated_views_end(rng):
    largest = [sample_correlations(rng)[0] for _ in range(20)]
    edge = significance.correlation_edge(N - 1, D1, D2)
    # Fluctuations are of order n^(-2/3), below the edge on average (Tracy-Widom).
    assert abs(np.mean(largest) - edge) < 2 * N ** (-2 / 3)


@pytest.mark.parametrize("r", [0.9, 0.7, 0.5])
def test_debiasing_gives_the_true_correlation_back(rng, r):
    found = [
        float(significance.debias_correlations(s[:1], n=N - 1, d1=D1, d2=D2)[0])
        for s in (sample_correlations(rng, (r,)) for _ in range(30))
    ]
    assert abs(np.mean(found) - r) < 4 * np.std(found) / np.sqrt(30) + 3 / N
    if r < 0.9:  # and the sample's own are far off
        assert sample_correlations(rng, (r,))[0] > r + 0.03


def test_correlations_below_the_edge_are_none():
    edge = significance.correlation_edge(N - 1, D1, D2)
    found = significance.debias_correlations(np.float32([edge * 0.99, 0.0]), n=N - 1, d1=D1, d2=D2)
    assert np.array_equal(found, [0, 0])


def test_too_few_rows_for_theory_are_named():
    with pytest.raises(ValueError, match=r"n must be above d1 \+ d2 = 150, got 100"):
        significance.correlation_edge(100, 60, 90)


@pytest.mark.parametrize(
    ("shared", "widths"), [(0, (3, 3)), (1, (3, 3)), (0, (15, 2)), (1, (3, 12))]
)
def test_p_values_beyond_the_true_axes_are_uniform(shared, widths):
    """The first axis beyond the true ones is tested at its level: Kolmogorov-Smirnov over seeds."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x1, x2 = (rng.normal(size=(50, d)).astype(np.float32) for d in widths)
        x2[:, :shared] = x1[:, :shared] + x2[:, :shared] / 10
        test = significance.permutation_test((x1, x2), key=jax.random.key(seed), permutations=79)
        assert len(test.p_values) > shared
        found.append(test.p_values[shared])
    assert stats.kstest(found, stats.uniform(0, 1 + 1 / 80).cdf).pvalue > 0.01


def test_real_axes_are_counted(rng):
    z = rng.normal(size=(50, 2))
    views = [np.float32(np.hstack([z, rng.normal(size=(50, 1))])) for _ in range(2)]
    test = significance.permutation_test(views, key=jax.random.key(0), permutations=79)
    assert test.count() == 2
    assert (np.diff(test.p_values) >= 0).all()
    ridged = significance.permutation_test(views, key=jax.random.key(0), permutations=79, ridge=0.1)
    assert ridged.count() >= 1


def test_groups_stay_together(rng):
    """Rows of a group are alike: shuffled one by one unrelated views look related."""
    groups = np.repeat(np.arange(10), 5)
    x1, x2 = (
        np.float32(np.repeat(rng.normal(size=(10, 3)), 5, axis=0) + rng.normal(size=(50, 3)) / 10)
        for _ in range(2)
    )
    key = jax.random.key(1)
    alone = significance.permutation_test((x1, x2), key=key, permutations=79)
    together = significance.permutation_test((x1, x2), key=key, permutations=79, groups=groups)
    assert alone.p_values[0] < 0.05 < together.p_values[0]
    with pytest.raises(ValueError, match="groups must have at least two of equal size"):
        significance.permutation_test((x1, x2), key=key, groups=np.repeat([0, 1], [20, 30]))
    with pytest.raises(ValueError, match=r"groups must have shape \(50,\)"):
        significance.permutation_test((x1, x2), key=key, groups=groups[:9])


def test_moments_cannot_be_permuted(rng):
    x = rng.normal(size=(50, 3)).astype(np.float32)
    state = pa.statistics.from_views((x, x))
    with pytest.raises(TypeError, match="data must hold its rows"):
        significance.permutation_test(state, key=jax.random.key(0))


def test_rows_that_count_differently_cannot_change_places(rng):
    x = rng.normal(size=(50, 3)).astype(np.float32)
    state = pa.statistics.from_views((x, x), kind="samples", weights=np.arange(1, 51) / 50)
    with pytest.raises(ValueError, match="data must not have weights that differ"):
        significance.permutation_test(state, key=jax.random.key(0))


def test_a_small_direction_of_many_rows_is_no_rounding(rng):
    n = 200_000
    z = rng.normal(size=(n, 1))
    x1, x2 = (
        np.float32(np.hstack([rng.normal(size=(n, 1)), 0.02 * (z + 0.1 * rng.normal(size=(n, 1)))]))
        for _ in range(2)
    )
    found = significance.permutation_test((x1, x2), key=jax.random.key(0), permutations=19)
    assert found.correlations[0] == pytest.approx(0.99, abs=0.01)


def test_an_alignment_that_disagrees_is_named(rng):
    x = rng.normal(size=(50, 3)).astype(np.float32)
    alignment = dataclasses.replace(
        pa.fit((x, x + 1), k=1, center=True),
        evidence=types.Evidence(jnp.ones((2, 1)), *jnp.ones(5), (), (), (), (), ()),
    )
    with pytest.warns(UserWarning, match="the alignment trusts 1 axes"):
        significance.permutation_test(
            (x, x + 1), key=jax.random.key(0), permutations=79, alignment=alignment
        )
