"""Every method reaches the subspace that the SVD reaches, over a grid of hard problems."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import perfalign_jax as pa
from perfalign_jax import _numerics, _subspace, statistics

pytestmark = [
    pytest.mark.filterwarnings("ignore::perfalign_jax.CollapseWarning"),
    pytest.mark.filterwarnings("ignore::perfalign_jax.OverfitWarning"),
]

D1, D2 = 9, 5
D = D1 + D2


def planted(rng, n, null, condition, dtype, d1=D1, d2=D2):
    """Views with a known right basis: singular values from 1 to 1/condition, then zeros."""
    d = d1 + d2
    rank = min(n, d - null)
    u, v = (scipy.linalg.qr(rng.normal(size=(m, m)))[0] for m in (n, d))
    values = np.geomspace(1, 1 / condition, rank)
    x = (u[:, :rank] * values) @ v[:, :rank].T
    return x[:, :d1].astype(dtype), -x[:, d1:].astype(dtype), v, np.pad(values, (0, d - rank))


def stacked(alignment):
    return np.hstack([np.asarray(p, np.float64) for p in alignment.projections])


def methods_for(n, k, d1=D1, d2=D2):
    methods = ["svd", "qr", "gram", "auto"]
    if n < d1 + d2:
        methods.append("null")
        if k <= min(n, d1) + min(n, d2) - n:
            methods.append("dual")
    return methods


# As many rows as features take the road of more rows, without its QR: once is enough.
GRID = list(itertools.product([6, D, 60], [1, 4, D], [np.float64]))
GRID += list(itertools.product([6, 60], [1, 4, D], [np.float32]))


@pytest.mark.parametrize(("n", "k", "dtype"), GRID)
def test_all_methods_agree_with_the_planted_subspace(n, k, dtype, rng):
    """n < d, n = d, n > d; rank-deficient or not; k = 1 to k = d; both precisions."""
    eps = np.finfo(dtype).eps
    conditions = (1.0, 1e3, 1e6, 1e10) if dtype == np.float64 else (1.0, 1e2, 1e4)
    errors: dict[str, list[float]] = {}
    svd_errors = []
    with jax.enable_x64(dtype == np.float64):
        for null, condition in itertools.product((0, 4), conditions):
            x1, x2, v, values = planted(rng, n, null, condition, dtype)
            x = np.hstack([x1, -x2]).astype(np.float64)
            exact = np.linalg.svd(x, compute_uv=False)
            best = np.sqrt((np.pad(exact, (0, D - len(exact)))[D - k :] ** 2).sum())
            unique = k == D or values[D - k - 1] > 1.01 * values[D - k]
            true = v[:, D - k :] @ v[:, D - k :].T
            found = {}
            for source, method in [("views", m) for m in methods_for(n, k)] + [("factor", "auto")]:
                data = (x1, x2) if source == "views" else statistics.from_views((x1, x2))
                alignment = pa.fit(data, k=k, method=method, check=False)
                a = stacked(alignment)
                assert alignment.projections[0].dtype == dtype
                # Orthonormal rows, and no residual beyond the smallest possible: roundings of a
                # matrix of norm 1 with D columns.
                assert np.abs(a @ a.T - np.eye(k)).max() < 10 * D * eps
                assert np.linalg.norm(x @ a.T) - best < 10 * D * eps
                np.testing.assert_allclose(
                    np.linalg.norm(alignment.singular_values), best, atol=10 * D * eps
                )
                found[f"{method} from {source}"] = np.linalg.norm(a.T @ a - true, 2)
            if unique:
                # No method may be 10 times worse than the SVD. Rounding the data to its dtype
                # alone turns the subspace by eps over its gap, so errors are in that unit.
                gap = values[D - k - 1] - values[D - k] if k < D else 1.0
                svd_errors.append(found["svd from views"] * gap / eps)
                for name, error in found.items():
                    errors.setdefault(name, []).append(error * gap / eps)
    for name, errors_of_method in errors.items():
        assert max(errors_of_method) <= 10 * max(max(svd_errors), D), name


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_auto_is_accurate_where_gram_alone_is_not(dtype, rng):
    """Singular values that vanish when squared, beside a true null space of the size of k."""
    eps = np.finfo(dtype).eps
    condition = 0.05 / eps  # well below sqrt(eps) of the largest: lost in the Gram matrix
    with jax.enable_x64(dtype == np.float64):
        errors = {"auto": [], "svd": [], "eigh of the Gram matrix": []}
        for _ in range(5):
            x1, x2, v, _ = planted(rng, 80, 3, condition, dtype)
            x = np.hstack([x1, -x2])
            true = v[:, D - 3 :] @ v[:, D - 3 :].T
            for method in ("auto", "svd"):
                a = stacked(pa.fit((x1, x2), k=3, method=method, check=False))
                errors[method].append(np.linalg.norm(a.T @ a - true, 2))
            naive = np.linalg.eigh(x.T @ x)[1][:, :3]
            errors["eigh of the Gram matrix"].append(np.linalg.norm(naive @ naive.T - true, 2))
    assert np.median(errors["auto"]) <= 3 * np.median(errors["svd"])
    assert np.median(errors["eigh of the Gram matrix"]) > 0.5  # the trap is there


def test_gram_path_is_taken_on_good_data_and_corrected(x64, rng):
    x1, x2, v, _ = planted(rng, 400, 4, 50.0, np.float64)
    blocks = (jnp.asarray(x1), jnp.asarray(x2))
    columns, values, good = jax.jit(_subspace._by_gram_or_qr, static_argnums=3)(
        blocks, _subspace.moments(blocks), jnp.asarray(400), 4
    )
    assert bool(good)
    error = np.linalg.norm(columns @ columns.T - v[:, D - 4 :] @ v[:, D - 4 :].T, 2)
    naive = np.linalg.eigh(np.hstack([x1, -x2]).T @ np.hstack([x1, -x2]))[1][:, :4]
    assert error < 1e-14 * 50  # eps times the condition number
    assert np.linalg.norm(naive @ naive.T - v[:, D - 4 :] @ v[:, D - 4 :].T, 2) > 3 * error
    assert float(values.max()) < 1e-14


@pytest.mark.parametrize(
    ("n", "d1", "d2"), [(6, 9, 8), (6, 9, 4), (6, 3, 9), (40, 9, 8), (12, 9, 8)]
)
@pytest.mark.parametrize("method", ["auto", "svd", "qr"])
def test_energy_takes_the_informative_null_directions(n, d1, d2, method, x64, rng):
    """Against a NumPy construction: null space by scipy, then principal latents inside it."""
    shared = 3
    z = rng.normal(size=(n, shared)) * [3, 2, 1]
    x1, x2 = z @ rng.normal(size=(shared, d1)), z @ rng.normal(size=(shared, d2))
    null = scipy.linalg.null_space(np.hstack([x1, -x2]))
    _, energies, turn = np.linalg.svd(x1 @ null[:d1])
    wanted = null @ turn[:shared].T
    alignment = pa.fit((x1, x2), k=None, select="energy", method=method, check=False)
    assert alignment.k == shared
    a = stacked(alignment)
    np.testing.assert_allclose(a.T @ a, wanted @ wanted.T, atol=1e-12)
    z1, z2 = x1 @ a[:, :d1].T, x2 @ a[:, d1:].T
    np.testing.assert_allclose(z1, z2, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(z1, axis=0), energies[:shared], rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.vdot(a[0], wanted[:, 0])), 1, atol=1e-12)  # its own row


@pytest.mark.parametrize("method", ["auto", "svd"])
def test_energy_with_more_directions_than_carry_energy(method, x64, rng):
    z = rng.normal(size=(50, 2))
    x1, x2 = z @ rng.normal(size=(2, 4)), z @ rng.normal(size=(2, 5))
    x = np.hstack([x1, -x2])
    with pytest.warns(pa.CollapseWarning, match="3 of the 5 directions chosen are trivial"):
        a = stacked(pa.fit((x1, x2), k=5, select="energy", method=method))
    assert np.linalg.norm(x @ a.T) < 1e-12
    energy = np.linalg.norm(x1 @ a[:, :4].T, axis=0)
    assert (energy[:2] > 0.1).all()
    assert (energy[2:] < 1e-12).all()
    # Beyond the null space (7 dimensions) the smallest other directions fill up, as in trailing.
    for k in (8, 9):
        b = stacked(pa.fit((x1, x2), k=k, select="energy", method=method, check=False))
        c = stacked(pa.fit((x1, x2), k=k, method="svd", check=False))
        np.testing.assert_allclose(b.T @ b, c.T @ c, atol=1e-11)


def test_dual_is_exact_for_rank_deficient_views(x64, rng):
    """Fewer independent samples than samples: the shared code must shrink with the rank."""
    z = rng.normal(size=(10, 4))  # rank 4 among 10 samples
    x1, x2 = z @ rng.normal(size=(4, 30)), z @ rng.normal(size=(4, 25))
    alignment = pa.fit((x1, x2), k=None, select="energy", method="dual")
    assert alignment.k == 4
    z1, z2 = pa.transform(alignment, (x1, x2))
    np.testing.assert_allclose(z1, z2, atol=1e-12)
    a = stacked(alignment)
    np.testing.assert_allclose(a @ a.T, np.eye(4), atol=1e-13)


@pytest.mark.parametrize(("n", "dtype"), [(20, np.float32), (90, np.float32), (50, np.float64)])
def test_dual_falls_back_where_its_cholesky_breaks_down(n, dtype, rng):
    """Rank 5 among n samples: the Gram matrix has no Cholesky factor, and NaN must not pass."""
    with jax.enable_x64(dtype == np.float64):
        z = rng.normal(size=(n, 5))
        x1, x2 = ((z @ rng.normal(size=(5, 200))).astype(dtype) for _ in range(2))
        alignment = pa.fit((x1, x2), k=5, select="energy", check=False)
        z1, z2 = (x @ np.asarray(p).T for x, p in zip((x1, x2), alignment.projections, strict=True))
        assert alignment.method == "dual"
        assert pa.relative_cmae(z1, z2) < 500 * np.finfo(dtype).eps
        diagnosis = pa.diagnose((x1, x2))
        assert diagnosis.ranks.tolist() == [5, 5]
        assert int(diagnosis.informative_dimension) == 5


def test_dual_forms_nothing_of_size_d_by_d():
    n, d = 20, 3000
    x = jnp.ones((n, d), jnp.float32)
    jaxpr = jax.make_jaxpr(
        lambda a, b: pa.fit((a, b), k=5, select="energy", method="dual").projections
    )(x, x)
    text = str(jaxpr)
    assert f"{n},{d}" in text
    assert f"{d},{d}" not in text
    assert f"{2 * d},{2 * d}" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "k", "select"),
    [
        ((20, 3, 4), 2, "trailing"),
        ((5, 4, 6), 3, "trailing"),
        ((5, 7, 6), 3, "energy"),
        ((5, 7, 6), 5, "energy"),
    ],
)
def test_gradient_of_residual_and_projector(shape, k, select, x64, rng):
    """Against central differences; the subspace is defined in each of these problems."""
    n, d1, d2 = shape
    if select == "trailing" and n < d1 + d2:
        k = d1 + d2 - n + 1  # the whole null space and one more
    x1, x2 = rng.normal(size=(n, d1)), rng.normal(size=(n, d2))
    probe, new1, new2 = (rng.normal(size=s) for s in ((d1 + d2, d1 + d2), (8, d1), (8, d2)))

    def values(a, b):
        alignment = pa.fit((a, b), k=k, select=select)
        rows = jnp.concatenate(alignment.projections, axis=1)
        projector = jnp.sum(probe * (rows.T @ rows))
        residual = jnp.sum((jnp.concatenate([new1, -new2], axis=1) @ rows.T) ** 2)
        fitted = jnp.sum(alignment.singular_values**2)
        return jnp.stack([projector, residual, fitted])

    # Two programs: the values come with their forward derivatives.
    gradients = jax.jit(jax.jacrev(values, argnums=(0, 1)))(x1, x2)
    forward = jax.jit(lambda at, along: jax.jvp(values, at, along))
    step = 1e-6
    for _ in range(3):
        t1, t2 = rng.normal(size=(n, d1)), rng.normal(size=(n, d2))
        above, _ = forward((x1 + step * t1, x2 + step * t2), (t1, t2))
        below, _ = forward((x1 - step * t1, x2 - step * t2), (t1, t2))
        _, slopes = forward((x1, x2), (t1, t2))
        numeric = (np.asarray(above) - np.asarray(below)) / (2 * step)
        along = sum(np.tensordot(g, t, 2) for g, t in zip(gradients, (t1, t2), strict=True))
        # Central differences with step 1e-6 are good to about 1e-6 relative here.
        np.testing.assert_allclose(along, numeric, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(along, slopes, rtol=1e-9, atol=1e-9)


def test_gradients_stay_finite_where_the_subspace_is_arbitrary(x64, rng):
    z = rng.normal(size=(30, 2))
    x1, x2 = z @ rng.normal(size=(2, 4)), z @ rng.normal(size=(2, 4))

    def residual(a):
        rows = jnp.concatenate(pa.fit((a, x2), k=3).projections, axis=1)
        return jnp.sum((jnp.concatenate([a, -x2], axis=1) @ rows.T) ** 2)

    gradient = jax.jit(jax.grad(residual))(x1)  # zero: the residual is at its minimum, zero
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_methods_that_do_not_fit_say_so(rng):
    x1, x2 = (rng.normal(size=(20, d)).astype(np.float32) for d in (3, 4))
    short = (x1[:5], x2[:5])
    with pytest.raises(ValueError, match=r"method='null' needs fewer rows than features, got 20"):
        pa.fit((x1, x2), k=1, method="null")
    with pytest.raises(
        ValueError, match=r"method='dual' works inside .* 2 null directions, got k=3"
    ):
        pa.fit(short, k=3, method="dual")
    with pytest.raises(ValueError, match=r"method='gram' finds trailing directions only"):
        pa.fit((x1, x2), k=1, method="gram", select="energy")
    wide = tuple(rng.normal(size=(4, 9)).astype(np.float32) for _ in range(2))
    with pytest.raises(ValueError, match=r"offers at most 8 directions for 4 rows, got k=9"):
        pa.fit(wide, k=9, select="energy", method="dual")


def test_under_vmap_the_members_that_a_gram_matrix_serves_badly_are_mended(x64, rng):
    """Also where only one of three needs a QR; each is what it is alone."""
    members = [planted(rng, 60, 4, condition, np.float64)[:2] for condition in (10.0, 1e10, 50.0)]
    x1, x2 = (jnp.stack(views) for views in zip(*members, strict=True))

    def fit(a, b):
        alignment = pa.fit((a, b), k=4)
        return alignment.singular_values, jnp.concatenate(alignment.projections, axis=1)

    for values, projections, (a, b) in zip(*jax.jit(jax.vmap(fit))(x1, x2), members, strict=True):
        assert float(values.max()) < 1e-14
        x = np.hstack([a, -b])
        assert np.linalg.norm(x @ projections.T) < 1e-13
        np.testing.assert_allclose(projections @ projections.T, np.eye(4), atol=1e-13)


@pytest.mark.parametrize("k", [2, 9, 11])  # null directions alone, with some of the others, all
def test_reflectors_on_the_host_are_those_of_xla(x64, rng, k):
    x = rng.normal(size=(4, 11))
    x[2] = x[0]  # one rank fewer
    x[:, 5] = 0
    for rows in (x, np.zeros_like(x), np.eye(4, 11)):
        columns, values = _subspace.trailing_by_reflectors(rows, k)
        assert isinstance(columns, np.ndarray)
        np.testing.assert_allclose(columns.T @ columns, np.eye(k), atol=1e-14)
        found = np.linalg.norm(rows @ columns, axis=0)
        exact = np.concatenate([np.linalg.svd(rows, compute_uv=False), np.zeros(7)])[11 - k :]
        np.testing.assert_allclose(found, exact, atol=1e-14)
        np.testing.assert_allclose(values, exact, atol=1e-14)
    rows = rng.normal(size=(4, 11))
    here, there = (_subspace.trailing_by_reflectors(x, k)[0] for x in (rows, jnp.asarray(rows)))
    np.testing.assert_allclose(np.abs(here), np.abs(there), atol=1e-13)


@pytest.mark.parametrize("size", [1, 2, 64, 65, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_triangles_are_solved_as_by_scipy(rng, size, dtype):
    lower = np.tril(rng.normal(size=(size, size)) / np.sqrt(size) + 2 * np.eye(size)).astype(dtype)
    columns = rng.normal(size=(size, 3)).astype(dtype)
    # Backward error: of either solver it is a few eps for each entry of a row.
    limit = 4 * size * np.finfo(dtype).eps
    for found, triangle, is_lower in (
        (_numerics.solve_lower(lower, columns), lower, True),
        (_numerics.solve_upper(lower.T, columns), lower.T, False),
    ):
        assert found.dtype == dtype
        scale = np.abs(triangle) @ np.abs(found) + np.abs(columns)
        assert (np.abs(triangle @ found - columns) <= limit * scale).all()
        exact = scipy.linalg.solve_triangular(triangle.astype(float), columns, lower=is_lower)
        np.testing.assert_allclose(found, exact, atol=limit * 30, rtol=limit * 30)


def test_the_sign_rule_is_one_on_the_host_and_on_xla(rng):
    rows = np.concatenate(
        [
            rng.normal(size=(20, 5)),
            rng.choice([-1.0, 1.0], size=(20, 5)),  # all of one magnitude: the first decides
            [[-2, 2, 0, 0, 0], [0, 2, -2, 1, 0], [0, 0, 0, 0, 0], [-1, -1, -1, -1, -1]],
        ]
    ).astype(np.float32)
    found = _numerics.flip_signs(rows)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, _numerics.flip_signs(jnp.asarray(rows)))
    np.testing.assert_array_equal(found, _numerics.flip_signs(-rows))
    first = np.abs(rows).argmax(axis=1)
    assert (found[np.arange(len(rows)), first] >= 0).all()


@pytest.mark.parametrize(
    ("condition", "k", "corrected"), [(1.5, 1, False), (100, 1, True), (100, 3, True)]
)
def test_what_x_sends_to_zero_is_not_corrected(x64, rng, condition, k, corrected):
    """Rows are read once for it, and it is as null as by the SVD of NumPy."""
    x1, x2, *_ = planted(rng, 400, 3, condition, np.float64)
    x, calls = np.concatenate([x1, -x2], axis=1), []

    def times_gram(columns):
        calls.append(columns)
        return x.T @ (x @ columns)

    whole = np.concatenate([x1, x2], axis=1)
    columns, values, good = _subspace.trailing_by_gram(
        whole.T @ whole, (D1, D2), k, 400, times_gram, lambda c: np.linalg.qr(x @ c, mode="r")
    )
    assert good
    assert bool(calls) == corrected
    largest = np.linalg.norm(x, 2)
    np.testing.assert_allclose(columns.T @ columns, np.eye(k), atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(x @ columns, axis=0), values, atol=1e-15 * largest)
    # An SVD leaves one to five eps of the largest singular value.
    assert values[0] <= 4 * np.finfo(float).eps * largest


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("k", [1, 5])
def test_a_null_direction_among_many_is_as_null_as_by_an_svd(rng, condition, k):
    """In float32 the noise of the Gram matrix reaches above the least singular values."""
    x1, x2, *_ = planted(rng, 1500, 100, condition, np.float32, 100, 100)
    x = np.concatenate([x1, -x2], axis=1)
    alignment = pa.fit((x1, x2), k=k)
    stacked = np.concatenate(alignment.projections, axis=1).astype(float)
    reference = scipy.linalg.svd(x)[2][-k:].astype(float)  # in float32, unlike NumPy's
    found, exact = (np.linalg.norm(x @ rows.T, 2) for rows in (stacked, reference))
    assert found <= 4 * exact
