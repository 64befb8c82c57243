"""Baselines by their special cases, and against NumPy, SciPy and scikit-learn in float64."""

import functools

import jax
import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import pdist, squareform
from sklearn.cross_decomposition import CCA, PLSSVD
from sklearn.linear_model import LinearRegression, Ridge

import perfalign_jax as pa
from perfalign_jax import _host, baselines, solver, statistics

# Canonical correlations are those of centred views.
cca, ridge_cca, linear_contrastive = (
    functools.partial(method, center=True)
    for method in (baselines.cca, baselines.ridge_cca, baselines.linear_contrastive)
)
METHODS = {
    "cca": functools.partial(cca, k=2),
    "ridge_cca": functools.partial(ridge_cca, k=2, ridge=0.1),
    "linear_contrastive": functools.partial(linear_contrastive, k=2, rho=0.5),
    "procrustes": baselines.procrustes,
    "least_squares": baselines.least_squares,
    "ridge_regression": functools.partial(baselines.ridge_regression, ridge=0.1),
    "total_least_squares": baselines.total_least_squares,
    "identity": baselines.identity,
}
ONTO_SECOND = ("procrustes", "least_squares", "ridge_regression", "total_least_squares")
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def draw_views(rng, n=60, d1=4, d2=3, k=2, noise=0.5, mean=3.0):
    """Two noisy views of the same latents, with means far from zero."""
    z = rng.normal(size=(n, k))
    return tuple(
        z @ rng.normal(size=(k, d)) + noise * rng.normal(size=(n, d)) + mean * rng.normal(size=d)
        for d in (d1, d2)
    )


def latents(alignment, views):
    return tuple(
        (x - np.asarray(mean)) @ np.asarray(a).T + np.asarray(alignment.offset)
        for x, mean, a in zip(views, alignment.means, alignment.projections, strict=True)
    )


def covariances(views):
    x1, x2 = (x - x.mean(0) for x in views)
    n = len(x1)
    return x1.T @ x1 / n, x1.T @ x2 / n, x2.T @ x2 / n


def residuals(views, alignment):
    z1, z2 = latents(alignment, views)
    return np.linalg.norm(z1 - z2, axis=0)


def assert_same(a, b, rtol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(
            x, y, rtol=rtol, atol=rtol * np.abs(np.asarray(y)).max(initial=0)
        )


# Canonical correlation analysis.


def test_cca_latents_are_white_and_correlate_as_said(x64, rng):
    views = draw_views(rng)
    alignment = cca(views, k=3)
    z1, z2 = latents(alignment, views)
    # Rounding of a 60 x 4 problem with condition number below 100.
    for z in (z1, z2):
        np.testing.assert_allclose(z.T @ z / len(z), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(z1.T @ z2 / len(z1), np.diag(alignment.coupling), atol=1e-12)
    assert np.all(np.diff(alignment.coupling) <= 0)


def test_cca_is_perfect_alignment_of_whitened_views(x64, rng):
    views = draw_views(rng)
    s11, _, s22 = covariances(views)
    white = tuple(
        (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(s)).T / np.sqrt(len(x))
        for x, s in zip(views, (s11, s22), strict=True)
    )
    rho = np.asarray(cca(views, k=3).coupling)
    stacked = np.linalg.svd(np.hstack([white[0], -white[1]]), compute_uv=False)
    expected = np.sort(np.concatenate([np.sqrt(1 + rho), [1.0], np.sqrt(1 - rho)]))[::-1]
    np.testing.assert_allclose(stacked, expected, atol=1e-12)

    perfect = solver.fit(white, k=2)
    np.testing.assert_allclose(np.sort(perfect.singular_values), np.sqrt(1 - rho[:2]), atol=1e-12)
    own, canonical = latents(perfect, white)[0], latents(cca(views, k=2), views)[0]
    span = [q @ q.T for q in (np.linalg.qr(own)[0], np.linalg.qr(canonical)[0])]
    np.testing.assert_allclose(span[0], span[1], atol=1e-11)


def test_cca_agrees_with_scikit_learn(x64, rng):
    views = draw_views(rng, n=200)
    reference = CCA(n_components=2, scale=False, tol=1e-12, max_iter=10000).fit(*views)
    scores = reference.transform(*views)
    expected = [np.corrcoef(scores[0][:, j], scores[1][:, j])[0, 1] for j in range(2)]
    alignment = cca(views, k=2)
    # scikit-learn iterates to a tolerance of its own on the weights; errors enter squared.
    np.testing.assert_allclose(alignment.coupling, expected, rtol=1e-8)
    for ours, theirs in zip(latents(alignment, views), scores, strict=True):
        for j in range(2):
            assert abs(np.corrcoef(ours[:, j], theirs[:, j])[0, 1]) > 1 - 1e-8


def test_ridge_cca_solves_the_generalised_eigenproblem(x64, rng):
    views = draw_views(rng)
    ridge = 0.3
    s11, s12, s22 = covariances(views)
    r11, r22 = (s + ridge * np.trace(s) / len(s) * np.eye(len(s)) for s in (s11, s22))
    zero = np.zeros_like
    values = scipy.linalg.eigh(
        np.block([[zero(s11), s12], [s12.T, zero(s22)]]),
        scipy.linalg.block_diag(r11, r22),
        eigvals_only=True,
    )[::-1]
    alignment = ridge_cca(views, k=3, ridge=ridge)
    a1, a2 = map(np.asarray, alignment.projections)
    np.testing.assert_allclose(alignment.coupling, values[:3], atol=1e-13)
    np.testing.assert_allclose(a1 @ r11 @ a1.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(a2 @ r22 @ a2.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(a1 @ s12 @ a2.T, np.diag(values[:3]), atol=1e-12)


def test_ridge_cca_without_ridge_is_cca_and_knows_no_units(x64, rng):
    views = draw_views(rng)
    plain, ridged = cca(views, k=2), ridge_cca(views, k=2, ridge=0.0)
    assert_same(plain.projections, ridged.projections, 1e-13)
    scaled = ridge_cca((1e3 * views[0], 1e-4 * views[1]), k=2, ridge=0.2)
    unscaled = ridge_cca(views, k=2, ridge=0.2)
    np.testing.assert_allclose(scaled.coupling, unscaled.coupling, rtol=1e-12)


def test_cca_does_not_change_under_invertible_maps(x64, rng):
    views = draw_views(rng)
    mapped = tuple(x @ rng.normal(size=(x.shape[1],) * 2) + 7 for x in views)
    a, b = cca(views, k=3), cca(mapped, k=3)
    np.testing.assert_allclose(a.coupling, b.coupling, atol=1e-11)
    for z, w in zip(latents(a, views), latents(b, mapped), strict=True):
        np.testing.assert_allclose(np.abs(z), np.abs(w), atol=1e-9)  # signs are the rows' own


@pytest.mark.parametrize("kind", ["factor", "gram"])
def test_cca_keeps_no_direction_below_the_cutoff(x64, rng, kind):
    x1, x2 = draw_views(rng, d1=4, d2=3)
    wide = np.hstack([x1, x1[:, :2] @ rng.normal(size=(2, 3))])  # rank 4 of 7 columns
    alignment = cca(statistics.from_views((wide, x2), kind=kind), k=3)
    reference = cca((x1, x2), k=3)
    # A Gram statistic knows half the digits.
    tolerance = 1e-12 if kind == "factor" else 1e-6
    np.testing.assert_allclose(alignment.coupling, reference.coupling, atol=tolerance)
    assert np.abs(alignment.projections[0]).max() < 10
    np.testing.assert_allclose(
        latents(alignment, (wide, x2))[1], latents(reference, (x1, x2))[1], atol=100 * tolerance
    )


def test_cca_with_fewer_rows_than_features_correlates_perfectly(x64, rng):
    views = draw_views(rng, n=8, d1=12, d2=20)
    alignment = cca(views, k=7)
    z1, z2 = latents(alignment, views)
    np.testing.assert_allclose(alignment.coupling, 1, atol=1e-13)
    np.testing.assert_allclose(z1, z2, atol=1e-11)


@pytest.mark.parametrize("kind", ["factor", "gram"])
def test_cca_refuses_more_directions_than_the_ranks_allow(x64, rng, kind):
    views = [x @ rng.normal(size=(x.shape[1], 9)) for x in draw_views(rng, d1=4, d2=3)]
    state = statistics.from_views(views, kind=kind)
    with pytest.raises(ValueError, match="the two centred views, which have rank 4 and 3, got 4"):
        cca(state, k=4)
    with pytest.raises(ValueError, match="k must be at most the smaller rank of the two views"):
        ridge_cca(state, k=4, ridge=1.0, center=False)
    traced = jax.jit(lambda views: cca(views, k=4))(views)
    assert np.abs(traced.projections[0]).max() < 100


# Linear contrastive alignment in closed form.


def test_cross_validation_takes_the_ridge_that_holds_out_best(x64, rng):
    views = draw_views(rng, n=60)
    ridges = (10.0, 0.1, 1e-4)
    scores = []
    for ridge in ridges:
        total = 0.0
        for fold in range(4):
            out = np.arange(60) % 4 == fold
            fitted = ridge_cca([x[~out] for x in views], k=2, ridge=ridge)
            z1, z2 = latents(fitted, [x[out] for x in views])
            total += sum(np.corrcoef(z1[:, j], z2[:, j])[0, 1] for j in range(2))
        scores.append(total)
    found = baselines.ridge_cca_cv(views, k=2, ridges=ridges, folds=4)
    expected = ridge_cca(views, k=2, ridge=ridges[int(np.argmax(scores))])
    assert_same(found.coupling, expected.coupling, 1e-12)
    with pytest.raises(ValueError, match="ridges must hold at least one"):
        baselines.ridge_cca_cv(views, k=2, ridges=())
    with pytest.raises(ValueError, match="folds must be between 2 and 30"):
        baselines.ridge_cca_cv(views, k=2, folds=40)


def gaussian_kernel(x):
    """Of standardised rows, at the median distance, centred: by SciPy."""
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    squares = pdist(x, "sqeuclidean")
    kernel = np.exp(-squareform(squares) / (2 * np.median(squares)))
    middle = np.eye(len(x)) - 1 / len(x)
    return middle @ kernel @ middle


@pytest.mark.parametrize("n", [40, 300])  # the whole at once, and by a Krylov space
def test_kernel_cca_solves_the_eigenproblem_of_its_kernels(x64, rng, n):
    """On the centred kernels of all rows, after Hardoon et al. (2004), by SciPy."""
    views = draw_views(rng, n=n)
    found = baselines.kernel_cca(views, k=3, ridge=0.1)
    kernels = [gaussian_kernel(x) for x in views]
    ridges = [0.1 * np.trace(s) / n for s in kernels]
    inverses = [np.linalg.solve(s + c * np.eye(n), s) for s, c in zip(kernels, ridges, strict=True)]
    squares = np.sort(np.linalg.eigvals(inverses[0] @ inverses[1]).real)[::-1]
    # Kernels of 300 rows and a ridge of a tenth cost three to four of sixteen digits.
    assert_same(np.asarray(found.coupling) ** 2, squares[:3], 1e-11)
    latents = solver.transform(found, views)
    for z, s, c, fitted in zip(latents, kernels, ridges, found.lifts, strict=True):
        a = np.asarray(fitted.weights)
        np.testing.assert_allclose(s @ a, z, atol=1e-8)
        # Their variance with the ridge.
        np.testing.assert_allclose(z.T @ z + c * a.T @ s @ a, n * np.eye(3), atol=1e-6 * n)
    apart = np.linalg.norm(latents[0] - latents[1], axis=0)
    np.testing.assert_allclose(found.singular_values, apart, rtol=1e-9)


@pytest.mark.parametrize("kernel", ["laplacian", "polynomial", "arc_cosine"])
def test_kernel_cca_of_float32_is_that_of_float64(x64, rng, kernel):
    views = draw_views(rng, n=200)
    wide = baselines.kernel_cca(views, k=2, ridge=0.01, kernel=kernel)
    narrow = baselines.kernel_cca(
        [x.astype(np.float32) for x in views], k=2, ridge=0.01, kernel=kernel
    )
    assert narrow.coupling.dtype == np.float32
    # What rounding the rows alone does, by a ridge of a hundredth.
    np.testing.assert_allclose(narrow.coupling, wide.coupling, atol=1e-4)


def test_kernel_cca_refuses_what_its_kernels_do_not_hold(rng):
    views = [x.astype(np.float32) for x in draw_views(rng, n=40)]
    with pytest.raises(ValueError, match="ridge must be above zero"):
        baselines.kernel_cca(views, k=2, ridge=0.0)
    with pytest.raises(ValueError, match=r"ridge must be above \d.*, got 1e-12"):
        baselines.kernel_cca(views, k=2, ridge=1e-12)
    with pytest.raises(ValueError, match="k must be between 1 and 39"):
        baselines.kernel_cca(views, k=40, ridge=0.1)
    with pytest.raises(ValueError, match="x2 must vary"):
        baselines.kernel_cca((views[0], 0 * views[1]), k=2, ridge=0.1)


@pytest.mark.parametrize("kernel", ["gaussian", "polynomial"])
def test_kernel_cca_finds_equal_correlations_and_no_others(x64, kernel):
    """Thirty classes, so twenty-nine equal ones: more than any block of a Krylov space."""
    classes = np.eye(30)[np.repeat(np.arange(30), 10)]
    found = baselines.kernel_cca((classes, classes), k=29, ridge=0.01, kernel=kernel)
    np.testing.assert_allclose(found.coupling, found.coupling[0], rtol=1e-8)
    with pytest.raises(ValueError, match="k must be at most 29: other correlations"):
        baselines.kernel_cca((classes, classes), k=30, ridge=0.01, kernel=kernel)


def test_kernel_cca_finds_equal_correlations_among_many_others(x64, rng):
    """More equal ones than a block, and others that go on and on."""
    classes, z = np.eye(30)[np.repeat(np.arange(30), 10)], rng.normal(size=(300, 2))
    one = np.block([[classes, np.zeros((300, 2))], [np.zeros((300, 30)), z]])
    two = np.block([[classes, np.zeros((300, 2))], [np.zeros((300, 30)), z + 0.3 * z[::-1]]])
    found = baselines.kernel_cca((one, two), k=20, ridge=0.01)
    kernels = [gaussian_kernel(x) for x in (one, two)]
    ridges = [0.01 * np.trace(s) / 600 for s in kernels]
    pairs = zip(kernels, ridges, strict=True)
    inverses = [np.linalg.solve(s + c * np.eye(600), s) for s, c in pairs]
    squares = np.sort(np.linalg.eigvals(inverses[0] @ inverses[1]).real)[::-1]
    assert_same(np.asarray(found.coupling) ** 2, squares[:20], 1e-9)


@pytest.mark.parametrize("scale", [1e10, 1e-12])
def test_the_size_of_a_cross_moment_changes_no_direction(rng, scale):
    views = [x.astype(np.float32) for x in draw_views(rng, n=300, d1=16, d2=16, k=4)]
    near, far = (
        baselines.linear_contrastive(v, k=2, center=True).projections[0]
        for v in (views, [np.float32(scale) * x for x in views])
    )
    cosines = (
        np.sum(near * far, axis=1) / np.linalg.norm(near, axis=1) / np.linalg.norm(far, axis=1)
    )
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-18, 1e-20, 1e-21])
def test_units_whose_squares_vanish_change_nothing(rng, scale):
    """In float32, whose smallest normal number is 1e-38."""
    views = [x.astype(np.float32) for x in draw_views(rng, n=300, mean=0.0)]
    small = [np.float32(scale) * x for x in views]
    for method in (METHODS["cca"], METHODS["ridge_cca"]):
        assert_same(method(small).coupling, method(views).coupling, 1e-4)
    regressed, expected = (
        baselines.ridge_regression(v, ridge=0.1).projections[0] for v in (small, views)
    )
    assert_same(regressed, expected, 1e-4)
    fitted, expected = (pa.fit(v, k=2).singular_values for v in (small, views))
    assert_same(fitted / np.float32(scale), expected, 1e-4)


@pytest.mark.parametrize("last", [0.1, 1e-7])
def test_few_of_many_correlations_are_those_of_an_svd(x64, rng, last):
    """Views with correlations that are known, whose squares do and do not tell them apart."""
    n, d, k = 2000, 64, 8
    rho = np.concatenate([np.geomspace(1 - 1e-9, last, k), np.zeros(d - k)])
    white = np.linalg.qr(rng.normal(size=(n, 2 * d)))[0] * np.sqrt(n)
    z1, z2 = white[:, :d], white[:, :d] * rho + white[:, d:] * np.sqrt(1 - rho**2)
    views = z1 @ rng.normal(size=(d, d)), z2 @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    views = views[0] + z1, views[1]
    found = baselines.cca(views, k=k)
    # Moments of views whose condition number is some hundreds cost five digits at most.
    np.testing.assert_allclose(found.coupling, rho[:k], rtol=0, atol=1e-11)


def test_linear_contrastive_is_pls_svd(x64, rng):
    views = draw_views(rng)
    alignment = linear_contrastive(views, k=2, rho=0.5)
    reference = PLSSVD(n_components=2, scale=False).fit(*views)
    for a, w in zip(
        alignment.projections, (reference.x_weights_, reference.y_weights_), strict=True
    ):
        directions = np.asarray(a) / np.linalg.norm(a, axis=1, keepdims=True)
        np.testing.assert_allclose(np.abs(np.sum(directions * w.T, axis=1)), 1, atol=1e-12)
    u, s, vt = np.linalg.svd(covariances(views)[1])
    np.testing.assert_allclose(alignment.coupling, s[:2], rtol=1e-12)
    a1, a2 = alignment.projections
    np.testing.assert_allclose(a1.T @ a2, (u[:, :2] * s[:2]) @ vt[:2] / 0.5, atol=1e-11)
    np.testing.assert_allclose(a1 @ a1.T, a2 @ a2.T, atol=1e-11)


def test_linear_contrastive_is_a_minimum_of_the_loss_over_pairs(x64, rng):
    views = draw_views(rng, n=30)
    n, rho = 30, 0.7

    @jax.jit
    def loss(a1, a2):
        similarity = (views[0] @ a1.T) @ (views[1] @ a2.T).T
        own = jax.numpy.diag(similarity)
        pairs = similarity - (own[:, None] + own[None, :]) / 2
        return pairs.sum() / (n * (n - 1)) + rho / 2 * ((a1.T @ a2) ** 2).sum()

    best = linear_contrastive(views, k=2, rho=rho * (n - 1) / n).projections
    # The loss subtracts pairs of similarities of order 10, and rounds accordingly.
    for gradient in jax.grad(loss, argnums=(0, 1))(*best):
        np.testing.assert_allclose(gradient, 0, atol=1e-12)
    for scale in (1e-3, 1.0):
        moved = [a + scale * rng.normal(size=a.shape) for a in best]
        assert loss(*moved) > loss(*best)


def test_linear_contrastive_beyond_the_rank_has_zero_rows(x64, rng):
    x1, x2 = draw_views(rng, k=1, noise=0)
    alignment = linear_contrastive((x1, x2), k=3)
    for a in alignment.projections:
        assert np.all(np.asarray(a)[1:] == 0)
        assert np.linalg.norm(a[0]) > 0.1


def test_linear_contrastive_with_few_rows_equals_the_full_decomposition(x64, rng):
    views = draw_views(rng, n=6, d1=20, d2=30)
    alignment = linear_contrastive(views, k=2)
    u, s, vt = np.linalg.svd(covariances(views)[1])
    product = np.asarray(alignment.projections[0]).T @ np.asarray(alignment.projections[1])
    np.testing.assert_allclose(product, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-10)


def test_linear_contrastive_uncentred_uses_the_cross_moment(x64, rng):
    views = draw_views(rng)
    alignment = linear_contrastive(views, k=2, center=False)
    s = np.linalg.svd(views[0].T @ views[1] / len(views[0]), compute_uv=False)
    np.testing.assert_allclose(alignment.coupling, s[:2], rtol=1e-11)
    assert not np.any(alignment.means[0])


# Maps of the first view onto the second.


def test_procrustes_agrees_with_scipy(x64, rng):
    views = draw_views(rng, d1=4, d2=4, k=4)
    rotation, _ = scipy.linalg.orthogonal_procrustes(*views)
    alignment = baselines.procrustes(views)
    np.testing.assert_allclose(alignment.projections[0], rotation.T, atol=1e-12)
    np.testing.assert_array_equal(alignment.projections[1], np.eye(4))
    centred = tuple(x - x.mean(0) for x in views)
    rotation, _ = scipy.linalg.orthogonal_procrustes(*centred)
    alignment = baselines.procrustes(views, center=True)
    np.testing.assert_allclose(alignment.projections[0], rotation.T, atol=1e-12)


@pytest.mark.parametrize(("d1", "d2"), [(3, 5), (5, 3)])
def test_procrustes_between_different_dimensions_is_the_best_isometry(x64, rng, d1, d2):
    views = draw_views(rng, d1=d1, d2=d2, k=3)
    a1 = np.asarray(baselines.procrustes(views).projections[0])
    small = a1.T @ a1 if d1 < d2 else a1 @ a1.T
    np.testing.assert_allclose(small, np.eye(min(d1, d2)), atol=1e-13)
    # No matrix of spectral norm one reaches more than the nuclear norm of the cross-moment.
    reached = np.sum((views[0] @ a1.T) * views[1])
    bound = np.linalg.svd(views[1].T @ views[0], compute_uv=False).sum()
    np.testing.assert_allclose(reached, bound, rtol=1e-12)


def test_procrustes_maps_what_the_pairs_do_not_determine_to_zero(x64, rng):
    views = draw_views(rng, n=5, d1=20, d2=30)
    a1 = np.asarray(baselines.procrustes(views).projections[0])
    np.testing.assert_allclose(np.linalg.svd(a1)[1], [1] * 5 + [0] * 15, atol=1e-12)
    reached = np.sum((views[0] @ a1.T) * views[1])
    bound = np.linalg.svd(views[1].T @ views[0], compute_uv=False).sum()
    np.testing.assert_allclose(reached, bound, rtol=1e-12)


def test_remark_2_6_one_map_at_the_identity_is_linear_regression(x64, rng):
    y, x = draw_views(rng)  # the remark regresses the first view on the second
    alignment = baselines.least_squares((x, y))
    weights = np.linalg.lstsq(x, y)[0].T
    np.testing.assert_allclose(alignment.projections[0], weights, atol=1e-12)
    np.testing.assert_array_equal(alignment.projections[1], np.eye(4))
    alignment = baselines.least_squares((x, y), center=True)
    reference = LinearRegression().fit(x, y)
    np.testing.assert_allclose(alignment.projections[0], reference.coef_, atol=1e-12)
    intercept = alignment.means[1] - alignment.projections[0] @ alignment.means[0]
    np.testing.assert_allclose(intercept, reference.intercept_, atol=1e-11)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("shape", [(60, 4, 3), (10, 30, 25)])
def test_ridge_regression_agrees_with_scikit_learn(x64, rng, center, shape):
    n, d1, d2 = shape
    x, y = draw_views(rng, n=n, d1=d1, d2=d2)
    energy = np.sum((x - x.mean(0) if center else x) ** 2)
    reference = Ridge(alpha=0.2 * energy / d1, fit_intercept=center).fit(x, y)
    alignment = baselines.ridge_regression((x, y), ridge=0.2, center=center)
    np.testing.assert_allclose(alignment.projections[0], reference.coef_, atol=1e-10)
    z1, z2 = latents(alignment, (x, y))
    np.testing.assert_allclose(z1 - z2, reference.predict(x) - y, atol=1e-9)


def test_least_squares_has_the_smallest_norm_where_many_fit(x64, rng):
    few = draw_views(rng, n=6, d1=20, d2=3)
    reference = np.linalg.lstsq(few[0], few[1])[0].T
    np.testing.assert_allclose(baselines.least_squares(few).projections[0], reference, atol=1e-11)
    x, y = draw_views(rng)
    deficient = np.hstack([x, x[:, :2]])
    reference = np.linalg.lstsq(deficient, y)[0].T
    np.testing.assert_allclose(
        baselines.least_squares((deficient, y)).projections[0], reference, atol=1e-11
    )
    assert_same(
        baselines.ridge_regression((x, y), ridge=0.0).projections,
        baselines.least_squares((x, y)).projections,
        1e-13,
    )


@pytest.mark.parametrize("center", [False, True])
def test_total_least_squares_is_the_ratio_of_perfect_alignments_maps(x64, rng, center):
    views = draw_views(rng, d1=4, d2=3, noise=0.1, k=3)
    x1, x2 = (x - center * x.mean(0) for x in views)
    ours = np.asarray(baselines.total_least_squares(views, center=center).projections[0])

    a1, a2 = map(np.asarray, solver.fit(views, k=3, center=center).projections)
    np.testing.assert_allclose(ours, np.linalg.solve(a2, a1), atol=1e-11)
    # Golub and Van Loan's formula, written out for the equation x2 = B x1.
    v = np.linalg.svd(np.hstack([x1, x2]))[2].T
    np.testing.assert_allclose(ours.T, -v[:4, 4:] @ np.linalg.inv(v[4:, 4:]), atol=1e-11)
    # The closed form for one output: (X'X - s^2 I) b = X'y with s the smallest singular value.
    y = x2[:, :1]
    one = baselines.total_least_squares((views[0], views[1][:, :1]), center=center)
    s = np.linalg.svd(np.hstack([x1, y]), compute_uv=False)[-1]
    b = np.linalg.solve(x1.T @ x1 - s**2 * np.eye(4), x1.T @ y)
    np.testing.assert_allclose(one.projections[0].T, b, atol=1e-11)


def test_total_least_squares_of_consistent_views_is_the_smallest_exact_map(x64, rng):
    few = draw_views(rng, n=6, d1=20, d2=30)
    expected = np.linalg.lstsq(few[0], few[1])[0].T
    np.testing.assert_allclose(
        baselines.total_least_squares(few).projections[0], expected, atol=1e-11
    )
    x1, x2 = draw_views(rng, d1=4, d2=3, k=2, noise=0, mean=0)  # rank 2
    expected = np.linalg.lstsq(x1, x2, rcond=1e-10)[0].T
    np.testing.assert_allclose(
        baselines.total_least_squares((x1, x2)).projections[0], expected, atol=1e-11
    )


@pytest.mark.parametrize("collinear", ["zero", "copy", "combination"])
def test_total_least_squares_says_where_it_has_no_solution(x64, rng, collinear):
    x1, x2 = draw_views(rng)
    extra = {"zero": 0 * x1[:, :1], "copy": x1[:, :1], "combination": x1 @ rng.normal(size=(4, 1))}
    views = (np.hstack([x1, extra[collinear]]), x2)
    with pytest.raises(ValueError, match=r"no solution for these views: 1 of .* A2 is singular"):
        baselines.total_least_squares(views)
    traced = jax.jit(baselines.total_least_squares)(views)
    assert np.abs(traced.projections[0]).max() < 100


def test_identity_keeps_the_first_coordinates(x64, rng):
    x1, x2 = draw_views(rng)
    alignment = baselines.identity((x1, x2), center=True)
    z1, z2 = latents(alignment, (x1, x2))
    np.testing.assert_allclose(z1, (x1 - x1.mean(0))[:, :3], atol=1e-14)
    np.testing.assert_allclose(z2, x2 - x2.mean(0), atol=1e-14)


# What all have in common.


@pytest.mark.parametrize("name", [*ONTO_SECOND, "identity"])
def test_values_are_the_residuals_of_the_rows(x64, rng, name):
    views = draw_views(rng)
    for center in (False, True):
        alignment = METHODS[name](views, center=center)
        np.testing.assert_allclose(
            alignment.singular_values, residuals(views, alignment), rtol=1e-11
        )


@each_method
def test_result_has_the_common_form(x64, rng, method):
    views = draw_views(rng)
    alignment = method(views)
    assert alignment.dims == (4, 3)
    assert alignment.singular_values.shape == alignment.offset.shape == (alignment.k,)
    assert alignment.method
    assert alignment.select == alignment.space == ""
    assert not np.any(alignment.offset)
    for mean, x in zip(alignment.means, views, strict=True):
        np.testing.assert_allclose(mean, x.mean(0) if alignment.center else 0, atol=1e-13)


@each_method
def test_a_statistic_gives_the_same_as_views(x64, rng, method):
    views = draw_views(rng)
    expected = method(views)
    state = statistics.init((4, 3))
    for start in (0, 7, 30):
        stop = {0: 7, 7: 30, 30: 60}[start]
        state = statistics.update(state, tuple(x[start:stop] for x in views))
    assert_same(method(state), expected, 1e-11)
    assert_same(method(statistics.from_views(views, kind="gram")), expected, 1e-7)


@each_method
def test_a_weight_of_two_is_a_sample_twice(x64, rng, method):
    views = draw_views(rng, n=30)
    weighted = statistics.from_views(views, weights=np.r_[np.full(10, 2.0), np.ones(20)])
    repeated = tuple(np.vstack([x[:10], x]) for x in views)
    assert_same(method(weighted), method(repeated), 1e-11)


@each_method
def test_jit_and_vmap_change_nothing(x64, rng, method):
    problems = [draw_views(rng) for _ in range(3)]
    eager = [method(views) for views in problems]
    assert_same(jax.jit(method)(problems[0]), eager[0], 1e-12)
    batch = jax.vmap(method)(tuple(np.stack(x) for x in zip(*problems, strict=True)))
    assert_same(batch, jax.tree.map(lambda *leaves: np.stack(leaves), *eager), 1e-11)


@each_method
def test_dtype_is_kept(x64, rng, method):
    views = draw_views(rng)
    single = method(tuple(x.astype(np.float32) for x in views))
    assert {leaf.dtype for leaf in jax.tree.leaves(single)} == {np.dtype(np.float32)}
    assert_same(single, method(views), 1e-3)  # float32 on views with a condition number near 100


@each_method
def test_wrong_data_is_refused(rng, method):
    x = rng.normal(size=(10, 3)).astype(np.float32)
    with pytest.raises(TypeError, match="tuple of two arrays"):
        method(x[None])
    with pytest.raises(ValueError, match="same number of rows"):
        method((x, x[:5]))
    with pytest.raises(ValueError, match="row 4 has NaN"):
        method((x, np.where(np.arange(10)[:, None] == 4, np.float32("nan"), x)))


def test_options_out_of_range_are_refused(rng):
    x = rng.normal(size=(10, 3)).astype(np.float32)
    for method in (
        baselines.cca,
        baselines.linear_contrastive,
        functools.partial(ridge_cca, ridge=0.1),
    ):
        with pytest.raises(
            ValueError, match=r"between 1 and 2 .*d1 = 3, d2 = 2 and the 5 rows.* got 3"
        ):
            method((x, x[:, :2]), k=3)
        with pytest.raises(ValueError, match="k must be between 1 and 3"):
            method((x, x), k=0)
        with pytest.raises(TypeError, match="k must be an integer"):
            method((x, x), k=1.5)
    with pytest.raises(ValueError, match="at least two samples"):
        cca((x[:1], x[:1]), k=1)
    for method in (functools.partial(ridge_cca, k=1), baselines.ridge_regression):
        with pytest.raises(ValueError, match="ridge must be zero or more, got -1"):
            method((x, x), ridge=-1)
        with pytest.raises(TypeError, match="ridge must be a number"):
            method((x, x), ridge="strong")
    with pytest.raises(ValueError, match="rho must be above zero, got 0"):
        linear_contrastive((x, x), k=1, rho=0)
    with pytest.raises(TypeError, match="rho must be a number"):
        linear_contrastive((x, x), k=1, rho=None)


@pytest.mark.parametrize("name", [*ONTO_SECOND, "identity"])
def test_views_without_anything_give_finite_maps(name, rng):
    zeros = np.zeros((5, 3), np.float32)
    one = rng.normal(size=(1, 3)).astype(np.float32)
    for views in ((zeros, zeros), (one, one)):
        for center in (False, True):
            alignment = METHODS[name](views, center=center)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(alignment))


@pytest.mark.parametrize("center", [False, True])
def test_cca_by_moments_is_that_of_a_factor_where_they_are_well_conditioned(center, rng, x64):
    """Directions of 1 to 1e-3: a ridge makes moments good enough, without it they are refused."""
    z = rng.normal(size=(150, 3))
    sizes = np.logspace(0, -3, 4)
    views = [
        2 + (z @ rng.normal(size=(3, 4)) + rng.normal(size=(150, 4))) * sizes for _ in range(2)
    ]
    tall = _host.Tall.of(statistics.as_statistic(views), center=center)
    options = {"k": 3, "center": center, "method": "ridge_cca"}
    assert baselines._cca_of_moments(tall, 0.0, **options) is None
    assert baselines._cca_of_moments(tall, 0.01, **options) is not None
    for ridge in (0.0, 0.01):
        found = baselines.ridge_cca(views, k=3, ridge=ridge, center=center)
        expected = baselines.ridge_cca(
            statistics.from_views(views), k=3, ridge=ridge, center=center
        )
        # Moments of condition 100 with the ridge, or a factor of 1e3.
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * np.abs(b).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_ridge_makes_more_dimensions_than_the_rank(rng, x64, dtype):
    z = rng.normal(size=(80, 2))
    views = tuple((z @ rng.normal(size=(2, d))).astype(dtype) for d in (6, 7))
    with pytest.raises(ValueError, match="which have rank 2 and 2, got 3"):
        baselines.ridge_cca(views, k=3, ridge=0.01, center=True)
    assert baselines.ridge_cca(views, k=2, ridge=0.01, center=True).k == 2


def test_the_unit_of_one_view_changes_nothing_of_the_others_rank(rng):
    z, y = rng.normal(size=(60, 1)), rng.normal(size=(60, 2)).astype(np.float32)
    x = (1e5 + z * [[1, 1.37, 0.71]]).astype(np.float32)  # of rank 1 about its mean
    for unit in (1, 1e5):
        assert pa.diagnose((x, unit * y), center=True).ranks.tolist() == [1, 2]
        with pytest.raises(ValueError, match="which have rank 1 and 2"):
            baselines.cca((x, unit * y), k=2, center=True)


def test_ridges_may_be_an_array(rng):
    x = rng.normal(size=(40, 3)).astype(np.float32)
    assert baselines.ridge_cca_cv((x, x), k=1, ridges=np.logspace(-2, 0, 3)).k == 1
