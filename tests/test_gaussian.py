"""Class Gaussians against scikit-learn's discriminant analyses, mixtures against known classes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.covariance import empirical_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis

from perfalign_jax import gaussian


def draw_classes(rng, n=300, k=3, classes=3, apart=2.0):
    """Classes of unequal size, mean and covariance."""
    labels = rng.choice(
        classes, size=n, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2)
    )
    means = apart * rng.normal(size=(classes, k)) + 10
    roots = rng.normal(size=(classes, k, k)) / np.sqrt(k) + np.eye(k)
    return means[labels] + np.einsum("nij,nj->ni", roots[labels], rng.normal(size=(n, k))), labels


def posterior(gaussians, z):
    return np.asarray(jax.nn.softmax(gaussian.log_scores(gaussians, z)))


def test_shared_is_linear_discriminant_analysis(x64, rng):
    z, labels = draw_classes(rng)
    ours = gaussian.fit_gaussians(z, labels, classes=3, covariance="shared", ridge=0)
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(z, labels)
    # Rounding through a Cholesky factor and an inverse of well-conditioned covariances.
    np.testing.assert_allclose(ours.means, reference.means_, rtol=1e-12)
    for covariance in ours.covariances:
        np.testing.assert_allclose(covariance, reference.covariance_, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(posterior(ours, z), reference.predict_proba(z), atol=1e-10)
    np.testing.assert_array_equal(gaussian.classify(ours, z), reference.predict(z))


def test_per_class_is_quadratic_discriminant_analysis(x64, rng):
    z, labels = draw_classes(rng)
    ours = gaussian.fit_gaussians(z, labels, classes=3, ridge=0)
    for c in range(3):
        np.testing.assert_allclose(
            ours.covariances[c], empirical_covariance(z[labels == c]), rtol=1e-10, atol=1e-12
        )
    reference = QuadraticDiscriminantAnalysis().fit(z, labels)
    # Versions of scikit-learn divide by n or by n - 1: a difference of 1/44 in the smallest class.
    np.testing.assert_allclose(posterior(ours, z), reference.predict_proba(z), atol=0.05)
    assert np.mean(gaussian.classify(ours, z) == reference.predict(z)) > 0.98


def test_scores_are_scipys_log_densities(x64, rng):
    z, labels = draw_classes(rng)
    ours = gaussian.fit_gaussians(z, labels, classes=3)
    for c, scores in enumerate(np.asarray(gaussian.log_scores(ours, z)).T):
        density = stats.multivariate_normal(ours.means[c], ours.covariances[c]).logpdf(z)
        np.testing.assert_allclose(scores, density + np.log(np.mean(labels == c)), rtol=1e-9)


@pytest.mark.parametrize("covariance", ["per_class", "shared"])
def test_decisions_do_not_depend_on_the_gauge(x64, rng, covariance):
    # What an alignment leaves free, an invertible map of both latents, changes no decision.
    z, labels = draw_classes(rng, apart=1.0)
    gauge = rng.normal(size=(3, 3))
    decisions = [
        gaussian.classify(
            gaussian.fit_gaussians(a, labels, classes=3, covariance=covariance, ridge=0), a
        )
        for a in (z, z @ gauge, 1e-8 * z)
    ]
    np.testing.assert_array_equal(decisions[0], decisions[1])
    np.testing.assert_array_equal(decisions[0], decisions[2])


def test_shots_are_pooled_with_the_source(x64, rng):
    z, labels = draw_classes(rng)
    pooled = gaussian.fit_gaussians(z[:200], labels[:200], classes=3, shots=(z[200:], labels[200:]))
    whole = gaussian.fit_gaussians(z, labels, classes=3)
    for a, b in zip(jax.tree.leaves(pooled), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_shots_repair_a_shifted_target(x64, rng):
    labels = np.arange(40) % 2
    source = labels[:, None] * 4.0 + 0.1 * rng.normal(size=(40, 1))
    target = source + 3  # the classes of the target are taken for the wrong ones
    plain = gaussian.fit_gaussians(source, labels, classes=2, covariance="shared")
    few = gaussian.fit_gaussians(
        source[:4], labels[:4], classes=2, covariance="shared", shots=(target[:20], labels[:20])
    )
    assert gaussian.accuracy(gaussian.classify(plain, target), labels) == 0.5
    assert gaussian.accuracy(gaussian.classify(few, target), labels) == 1


def test_directions_without_energy_do_no_harm(rng):
    z, labels = draw_classes(rng, apart=4.0)
    flat = np.hstack([z, np.zeros((300, 2)), z[:, :1] + z[:, 1:2]]).astype(np.float32)
    ours = gaussian.fit_gaussians(flat, labels, classes=3)
    plain = gaussian.fit_gaussians(z.astype(np.float32), labels, classes=3)
    agree = gaussian.classify(ours, flat) == gaussian.classify(plain, z.astype(np.float32))
    assert np.mean(agree) > 0.97  # the ridge is at rounding level


def test_collapsed_latents_are_at_chance():
    z, labels = np.zeros((40, 2), np.float32), np.arange(40) % 2
    predicted = gaussian.classify(gaussian.fit_gaussians(z, labels, classes=2), z)
    assert float(gaussian.accuracy(predicted, labels)) == 0.5


def test_an_absent_class_is_never_named(x64, rng):
    z, labels = draw_classes(rng)
    ours = gaussian.fit_gaussians(z, 2 * labels, classes=6)
    assert np.isneginf(ours.log_shares[1])
    assert set(np.asarray(gaussian.classify(ours, z)).tolist()) <= {0, 2, 4}


@pytest.mark.parametrize("covariance", ["per_class", "shared"])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_mixture_finds_the_classes_in_any_unit(x64, rng, covariance, unit):
    labels = rng.integers(2, size=1000)
    z = (rng.normal(size=(1000, 2)) + labels[:, None] * 4) * unit
    mixture = gaussian.fit_mixture(
        jax.random.key(1), z, components=2, covariance=covariance, restarts=2
    )
    clusters = gaussian.classify(mixture, z)
    match = gaussian.match_classes(clusters, labels, classes=2)
    # Bayes error of two unit Gaussians 4 sqrt(2) apart is 0.2 %; 1000 draws, five standard errors.
    assert gaussian.accuracy(match[clusters], labels) > 0.99
    order = np.argsort(match)
    np.testing.assert_allclose(np.asarray(mixture.means)[order] / unit, [[0, 0], [4, 4]], atol=0.25)
    np.testing.assert_allclose(
        np.asarray(mixture.covariances)[order] / unit**2, np.stack([np.eye(2)] * 2), atol=0.35
    )
    np.testing.assert_allclose(np.sum(np.exp(mixture.log_shares)), 1, rtol=1e-12)


def test_mixture_does_not_depend_on_the_gauge(x64, rng):
    # An alignment may stretch the latents a hundredfold in one direction.
    labels = rng.integers(2, size=400)
    z = rng.normal(size=(400, 2)) + labels[:, None] * 4
    gauge = np.array([[100.0, 99.0], [1.0, -1.0]])
    plain, stretched = (
        gaussian.fit_mixture(jax.random.key(2), a, components=2, restarts=3) for a in (z, z @ gauge)
    )
    one, two = gaussian.classify(plain, z), gaussian.classify(stretched, z @ gauge)
    match = gaussian.match_classes(two, one, classes=2)
    assert gaussian.accuracy(match[two], one) > 0.99  # EM stops at a tolerance
    flat = np.hstack([z, np.zeros((400, 1))])  # and a direction without energy does no harm
    three = gaussian.classify(gaussian.fit_mixture(jax.random.key(2), flat, components=2), flat)
    match = gaussian.match_classes(three, one, classes=2)
    assert gaussian.accuracy(match[three], one) > 0.99


def test_matching_beats_every_other_naming(rng):
    labels = rng.integers(4, size=200)
    naming = np.array([2, 0, 3, 1])
    clusters = np.where(rng.uniform(size=200) < 0.8, naming[labels], rng.integers(4, size=200))
    match = gaussian.match_classes(clusters, labels, classes=4)
    np.testing.assert_array_equal(match, np.argsort(naming))


@pytest.mark.parametrize("covariance", ["per_class", "shared"])
def test_jit_and_vmap_equal_a_loop(rng, covariance):
    batch = [draw_classes(rng, n=60, classes=2) for _ in range(3)]
    zs = np.stack([z for z, _ in batch]).astype(np.float32)
    labels = np.stack([y for _, y in batch])

    def scores(z, y):
        fitted = gaussian.fit_gaussians(z, y, classes=2, covariance=covariance)
        return gaussian.log_scores(fitted, z)

    loop = np.stack([scores(z, y) for z, y in zip(zs, labels, strict=True)])
    # float32: squared distances of up to some hundred, so absolute errors of 1e-3.
    np.testing.assert_allclose(jax.jit(scores)(zs[0], labels[0]), loop[0], rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(jax.vmap(scores)(zs, labels), loop, rtol=1e-4, atol=2e-3)
    assert loop.dtype == np.float32


def test_float64_is_kept(x64, rng):
    z, labels = draw_classes(rng, n=30)
    fitted = gaussian.fit_gaussians(z, labels, classes=3)
    mixture = gaussian.fit_mixture(jax.random.key(0), z, components=2, restarts=1)
    for leaf in (*jax.tree.leaves(fitted), *jax.tree.leaves(mixture)):
        assert leaf.dtype == np.float64
    assert gaussian.log_scores(fitted, z).dtype == np.float64


Z = jnp.ones((4, 2))
Y = np.array([0, 1, 0, 1])
FITTED = gaussian.Gaussians(jnp.zeros((2, 2)), jnp.stack([jnp.eye(2)] * 2), jnp.zeros(2))
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: gaussian.fit_gaussians(Z, Y[:3], classes=2),
            ValueError,
            "z and labels must have the same number of rows",
        ),
        (
            lambda: gaussian.fit_gaussians(Z, Y, classes=1),
            ValueError,
            "labels must lie in [0, 1), got values from 0 to 1",
        ),
        (
            lambda: gaussian.fit_gaussians(Z, Y * 0.5, classes=2),
            TypeError,
            "labels must hold integers, got dtype float64",
        ),
        (
            lambda: gaussian.fit_gaussians(Z, Y[:, None], classes=2),
            ValueError,
            "labels must have shape (n,), got shape (4, 1)",
        ),
        (lambda: gaussian.fit_gaussians(Z[:0], Y[:0], classes=2), ValueError, "at least one row"),
        (lambda: gaussian.fit_gaussians(Z, Y, classes=0), ValueError, "classes must be at least 1"),
        (
            lambda: gaussian.fit_gaussians(Z, Y, classes=2, covariance="diagonal"),
            ValueError,
            "covariance must be one of 'per_class', 'shared', got 'diagonal'",
        ),
        (
            lambda: gaussian.fit_gaussians(Z, Y, classes=2, ridge=-1.0),
            ValueError,
            "ridge must be zero or more",
        ),
        (
            lambda: gaussian.fit_gaussians(Z, Y, classes=2, shots=Z),
            TypeError,
            "shots must be a tuple (z, labels)",
        ),
        (
            lambda: gaussian.fit_gaussians(Z, Y, classes=2, shots=(Z[:, :1], Y)),
            ValueError,
            "shots[0] must have k = 2 columns like z",
        ),
        (lambda: gaussian.log_scores(Z, Z), TypeError, "gaussians must be Gaussians"),
        (lambda: gaussian.classify(FITTED, Z[:, :1]), ValueError, "z must have k = 2 columns"),
        (lambda: gaussian.classify(FITTED, Z * np.nan), ValueError, "z must be finite"),
        (
            lambda: gaussian.fit_mixture(KEY, Z, components=5),
            ValueError,
            "components must be between 1 and 4 (there are 4 samples), got 5",
        ),
        (
            lambda: gaussian.fit_mixture(KEY, Z, components=2, restarts=0),
            ValueError,
            "restarts must be at least 1",
        ),
        (
            lambda: gaussian.fit_mixture(KEY, Z, components=2, covariance="tied"),
            ValueError,
            "covariance must be one of",
        ),
        (
            lambda: gaussian.match_classes(Y, Y[:2], classes=2),
            ValueError,
            "predicted and labels must have the same number of rows",
        ),
        (
            lambda: gaussian.match_classes(Y + 1, Y, classes=2),
            ValueError,
            "predicted must lie in [0, 2), got values from 1 to 2",
        ),
        (lambda: gaussian.accuracy(Y, Y[:2]), ValueError, "predicted and labels must have the"),
        (lambda: gaussian.accuracy(Y[:0], Y[:0]), ValueError, "at least one entry"),
    ],
)
def test_every_error_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_rare_class_that_is_spread_far_does_not_win_by_rounding(rng):
    tight, wide = rng.normal(size=(2000, 4)), 5 + 30 * rng.normal(size=(3, 4))
    z = np.concatenate([tight, wide]).astype(np.float32)
    labels = np.repeat([0, 1], [2000, 3])
    found = gaussian.fit_gaussians(z, labels, classes=2)
    assert np.isfinite(gaussian.log_scores(found, z)).all()
    assert (np.asarray(gaussian.classify(found, z)) == labels).mean() > 0.99
