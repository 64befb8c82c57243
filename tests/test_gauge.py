"""What a change of basis must keep, and what the two ways to choose one must reach."""

import warnings

import jax
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

import perfalign_jax as pa
from perfalign_jax import baselines, gauge, metrics, solver, statistics
from perfalign_jax.types import CollapseWarning


def draw(rng, n=50, d1=5, d2=4, k=3, noise=0.0):
    z = rng.normal(size=(n, k)) * np.arange(1, k + 1) + rng.normal(size=k)
    views = tuple(z @ rng.normal(size=(k, d)) + noise * rng.normal(size=(n, d)) for d in (d1, d2))
    return z, views


def fit(views, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        return solver.fit(views, **options)


def latents(alignment, views):
    return tuple(
        (x - np.asarray(mean)) @ np.asarray(a).T + np.asarray(alignment.offset)
        for x, mean, a in zip(views, alignment.means, alignment.projections, strict=True)
    )


def rows(alignment):
    return np.hstack(alignment.projections)


def rotation(rng, k):
    return np.linalg.qr(rng.normal(size=(k, k)))[0]


# apply_gauge


def test_apply_gauge_maps_every_latent(x64, rng):
    _, views = draw(rng, noise=0.1)
    alignment = fit(views, k=3, center=True)
    matrix, offset = rng.normal(size=(2, 3)), rng.normal(size=2)
    changed = gauge.apply_gauge(gauge.apply_gauge(alignment, matrix, offset=offset), 2 * np.eye(2))
    for before, after in zip(latents(alignment, views), latents(changed, views), strict=True):
        np.testing.assert_allclose(after, 2 * (before @ matrix.T + offset), atol=1e-12)
    assert (changed.k, changed.method, changed.center) == (2, alignment.method, True)


def test_values_after_a_gauge_are_the_residuals_of_the_new_rows(x64, rng):
    _, views = draw(rng, noise=0.1)
    changed = gauge.apply_gauge(fit(views, k=3), rng.normal(size=(4, 3)))
    z1, z2 = latents(changed, views)
    np.testing.assert_allclose(changed.singular_values, np.linalg.norm(z1 - z2, axis=0), rtol=1e-11)


def test_apply_gauge_refuses_what_does_not_fit(rng):
    x = rng.normal(size=(9, 3)).astype(np.float32)
    alignment = baselines.identity((x, x))
    with pytest.raises(ValueError, match=r"latent dimensions, k = 3, got shape \(3, 2\)"):
        gauge.apply_gauge(alignment, x[:3, :2])
    with pytest.raises(ValueError, match=r"each of the 2 rows of matrix, got shape \(3,\)"):
        gauge.apply_gauge(alignment, x[:2], offset=x[0])
    with pytest.raises(ValueError, match="matrix must be finite"):
        gauge.apply_gauge(alignment, np.float32("nan") * x)


# canonicalize


@pytest.mark.parametrize("center", [False, True])
def test_canonical_latents_lie_along_their_principal_axes(x64, rng, center):
    _, views = draw(rng, noise=0.1)
    alignment = fit(views, k=3, center=center)
    canonical = gauge.canonicalize(alignment, views)
    z = np.vstack(latents(canonical, views))
    energy = z.T @ z
    np.testing.assert_allclose(energy, np.diag(np.diag(energy)), atol=1e-11 * energy.max())
    assert np.all(np.diff(np.diag(energy)) < 0)
    np.testing.assert_allclose(rows(canonical) @ rows(canonical).T, np.eye(3), atol=1e-13)
    np.testing.assert_allclose(
        rows(canonical).T @ rows(canonical), rows(alignment).T @ rows(alignment), atol=1e-13
    )
    z1, z2 = latents(canonical, views)
    w1, w2 = latents(alignment, views)
    np.testing.assert_allclose(metrics.cmae(z1, z2), metrics.cmae(w1, w2), rtol=1e-12)
    largest = np.take_along_axis(
        rows(canonical), np.abs(rows(canonical)).argmax(1, keepdims=True), 1
    )
    assert np.all(largest > 0)


CASES = {
    # d1 + d2 = 9 features of k* = 3 latents: 3 informative and 3 trivial null directions.
    "informative": ({}, {"k": 3, "select": "energy"}),
    "all null directions": ({}, {"k": 6}),
    "some of the rest": ({}, {"k": 8}),
    "noise": ({"noise": 0.3}, {"k": 4}),
    "centred": ({"noise": 0.3}, {"k": 4, "center": True}),
    "fewer rows than features": ({"n": 4, "d1": 8, "d2": 6, "noise": 0.3}, {"k": 9}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_canonical_rows_are_the_same_for_every_rotation(x64, rng, case):
    drawn, options = case
    _, views = draw(rng, **drawn)
    alignment = fit(views, **options)
    expected = gauge.canonicalize(alignment, views)
    again = gauge.canonicalize(expected, views)
    # Rounding over the gaps between the axes, the closest of which are about 1e-2 apart.
    np.testing.assert_allclose(rows(again), rows(expected), atol=1e-11)
    for _ in range(5):
        turned = gauge.apply_gauge(alignment, rotation(rng, alignment.k))
        canonical = gauge.canonicalize(turned, views)
        np.testing.assert_allclose(rows(canonical), rows(expected), atol=1e-11)


def test_canonical_rows_are_the_same_for_every_method(x64, rng):
    _, views = draw(rng)
    first, *others = (
        rows(gauge.canonicalize(fit(views, k=6, method=method), views))
        for method in ("svd", "qr", "gram")
    )
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-10)


def test_equal_energies_are_ordered_by_the_fixed_rule(x64, rng):
    # Orthonormal columns: every direction of both views has the same energy.
    x = np.linalg.qr(rng.normal(size=(30, 4)))[0]
    alignment = baselines.identity((x, x))
    expected = rows(gauge.canonicalize(alignment, (x, x)))
    for _ in range(3):
        turned = gauge.apply_gauge(alignment, rotation(rng, 4))
        np.testing.assert_allclose(rows(gauge.canonicalize(turned, (x, x))), expected, atol=1e-11)


def test_canonicalize_turns_a_calibrated_offset_along(x64, rng):
    z, views = draw(rng)
    calibrated = gauge.calibrate(fit(views, k=3, select="energy"), views, z)
    canonical = gauge.canonicalize(calibrated, views)
    turn = np.linalg.lstsq(rows(calibrated).T, rows(canonical).T)[0].T
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-11)
    np.testing.assert_allclose(canonical.offset, turn @ calibrated.offset, atol=1e-11)


def test_canonicalize_takes_a_statistic_and_compiles(x64, rng):
    _, views = draw(rng, noise=0.2)
    alignment = fit(views, k=3)
    expected = rows(gauge.canonicalize(alignment, views))
    state = statistics.from_views(views)
    np.testing.assert_allclose(rows(gauge.canonicalize(alignment, state)), expected, atol=1e-12)
    jitted = jax.jit(gauge.canonicalize)(alignment, views)
    np.testing.assert_allclose(rows(jitted), expected, atol=1e-12)
    pair = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), (alignment, views))
    mapped = jax.vmap(gauge.canonicalize)(*pair)
    np.testing.assert_allclose(mapped.projections[0][1], 2 * jitted.projections[0], atol=1e-12)


def test_canonicalize_keeps_float32_and_refuses_other_features(x64, rng):
    _, views = draw(rng, noise=0.2)
    alignment = fit(views, k=3)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), alignment)
    views32 = tuple(x.astype(np.float32) for x in views)
    canonical = gauge.canonicalize(single, views32)
    assert {leaf.dtype for leaf in jax.tree.leaves(canonical)} == {np.dtype(np.float32)}
    # float32 over gaps of 1e-2.
    np.testing.assert_allclose(
        rows(canonical), rows(gauge.canonicalize(alignment, views)), atol=1e-3
    )
    with pytest.raises(ValueError, match=r"alignment's \(5, 4\) features, got \(4, 5\)"):
        gauge.canonicalize(alignment, views[::-1])
    with pytest.raises(TypeError, match="tuple of two arrays"):
        gauge.canonicalize(alignment, views[0])


# calibrate


def test_k_plus_one_anchors_recover_the_latents(x64):
    """The paper's synthetic problem: S uniform in [-5, 5], 2 x 2, two clusters."""
    errors = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(200, 2)) + np.where(rng.random((200, 1)) < 0.5, [0, 1], [4, 5])
        views = tuple(z @ rng.uniform(-5, 5, size=(2, 2)).T for _ in range(2))
        # Three anchors at random may lie on a line to within any number of digits; take the
        # triangle of largest area among a few.
        triples = [rng.choice(200, 3, replace=False) for _ in range(10)]
        best = max(triples, key=lambda t: abs(np.linalg.det(z[t[1:]] - z[t[:1]])))
        calibrated = gauge.calibrate(fit(views, k=2), tuple(x[best] for x in views), z[best])
        errors.append(float(metrics.mlre(z, latents(calibrated, views))))
    assert max(errors) < 1e-12


@pytest.mark.parametrize("view", [0, 1])
def test_anchors_of_one_modality_calibrate_the_other(x64, rng, view):
    z, views = draw(rng)
    alignment = fit(views, k=3, select="energy", center=True)
    anchors = tuple(x[:4] if m == view else None for m, x in enumerate(views))
    for estimate in latents(gauge.calibrate(alignment, anchors, z[:4]), views):
        np.testing.assert_allclose(estimate, z, atol=1e-11)


def test_many_noisy_anchors_are_fitted_by_least_squares(x64, rng):
    z, views = draw(rng, noise=0.3)
    alignment = fit(views, k=3)
    estimates = np.vstack(latents(alignment, views))
    targets = np.hstack([z, z[:, :1] ** 2])  # as many as one likes: q = 4
    reference = LinearRegression().fit(estimates, np.vstack([targets, targets]))
    calibrated = gauge.calibrate(alignment, views, targets)
    assert calibrated.k == 4
    np.testing.assert_allclose(
        np.vstack(latents(calibrated, views)), reference.predict(estimates), atol=1e-10
    )
    assert calibrated.singular_values.shape == (4,)


def test_calibrating_twice_changes_nothing(x64, rng):
    z, views = draw(rng, noise=0.3)
    once = gauge.calibrate(fit(views, k=3), views, z)
    twice = gauge.calibrate(once, views, z)
    np.testing.assert_allclose(rows(twice), rows(once), atol=1e-11)
    np.testing.assert_allclose(twice.offset, once.offset, atol=1e-11)


def test_calibrate_compiles_and_maps(x64, rng):
    z, views = draw(rng, noise=0.3)
    alignment = fit(views, k=3)
    expected = gauge.calibrate(alignment, views, z)
    jitted = jax.jit(gauge.calibrate)(alignment, views, z)
    np.testing.assert_allclose(rows(jitted), rows(expected), atol=1e-12)
    mapped = jax.vmap(lambda t: gauge.calibrate(alignment, (views[0], None), t))(
        np.stack([z, 2 * z])
    )
    alone = gauge.calibrate(alignment, (views[0], None), 2 * z)
    np.testing.assert_allclose(mapped.projections[1][1], alone.projections[1], atol=1e-12)


def test_too_few_anchors_are_refused(x64, rng):
    z, views = draw(rng)
    alignment = fit(views, k=3)
    with pytest.raises(ValueError, match=r"at least k \+ 1 = 4 anchors .* got 3"):
        gauge.calibrate(alignment, tuple(x[:3] for x in views), z[:3])


@pytest.mark.parametrize("given", [(True, True), (True, False)])
def test_affinely_dependent_anchors_are_refused(x64, rng, given):
    z, views = draw(rng)
    alignment = fit(views, k=3, select="energy")
    mix = rng.dirichlet(np.ones(3), size=6)  # six points in the plane through three
    anchors = tuple(mix @ x[:3] if there else None for x, there in zip(views, given, strict=True))
    with pytest.raises(ValueError, match=r"affinely dependent: .* span 2 of k = 3 dimensions"):
        gauge.calibrate(alignment, anchors, mix @ z[:3])
    traced = jax.jit(gauge.calibrate)(alignment, anchors, mix @ z[:3])
    np.testing.assert_allclose(
        latents(traced, tuple(mix @ x[:3] for x in views))[1], mix @ z[:3], atol=1e-10
    )


def test_directions_without_energy_are_refused(x64, rng):
    z, views = draw(rng)
    alignment = fit(views, k=6)  # three of them trivial
    with pytest.raises(ValueError, match=r"span 3 of k = 6 dimensions .* smaller k"):
        gauge.calibrate(alignment, views, z)


def test_wrong_anchors_are_refused(rng):
    x = rng.normal(size=(9, 3)).astype(np.float32)
    alignment = baselines.identity((x, x))
    with pytest.raises(TypeError, match="views must be a tuple"):
        gauge.calibrate(alignment, x, x)
    with pytest.raises(ValueError, match="at least one modality, got none"):
        gauge.calibrate(alignment, (None, None), x)
    with pytest.raises(ValueError, match=r"x2 must have the alignment's 3 features.*\(9, 2\)"):
        gauge.calibrate(alignment, (x, x[:, :2]), x)
    with pytest.raises(ValueError, match="x1 and x2 must have the same number of rows"):
        gauge.calibrate(alignment, (x, x[:5]), x)
    with pytest.raises(ValueError, match="latents and the anchors in views must have the same"):
        gauge.calibrate(alignment, (None, x), x[:5])
    with pytest.raises(ValueError, match=r"latents must have shape \(m, q\)"):
        gauge.calibrate(alignment, (x, x), x[:, 0])
    with pytest.raises(ValueError, match="x1 must be finite, but row 0 has NaN"):
        gauge.calibrate(alignment, (np.float32("nan") * x, None), x)


def test_alignments_whose_axes_mean_something_keep_them(rng):
    _, views = draw(rng, noise=0.1)
    with_evidence = pa.align(views, lift=None, ridge=0.1, k=3)
    lifted = baselines.kernel_cca(views, k=2, ridge=0.1)
    for alignment, words in ((with_evidence, "no evidence"), (lifted, "no lifts")):
        with pytest.raises(ValueError, match=words):
            gauge.apply_gauge(alignment, np.eye(alignment.k, dtype=np.float32))
        with pytest.raises(ValueError, match=words):
            gauge.canonicalize(alignment, views)
        with pytest.raises(ValueError, match=words):
            gauge.calibrate(alignment, views, np.ones((50, 2), np.float32))


def test_the_dtype_is_the_alignments(rng, x64, tmp_path):
    alignment = fit(tuple(x.astype(np.float32) for x in draw(rng)[1]), k=2)
    turned = gauge.apply_gauge(alignment, np.eye(2), offset=np.ones(2))
    assert turned.projections[0].dtype == turned.offset.dtype == np.float32
    pa.save(turned, tmp_path / "a.safetensors")
    assert pa.load(tmp_path / "a.safetensors").k == 2
