"""Products with rows in memory by the host's BLAS, and fits that take them."""

import functools

import jax
import numpy as np
import pytest

import perfalign_jax as pa
from perfalign_jax import _host, _numerics, _subspace, statistics


def draw(rng, dims, *, weighted, dtype="float64", n=300, mean=5.0):
    views = [(mean + rng.normal(size=(n, d))).astype(dtype) for d in dims]
    return views, rng.uniform(0, 2, n).astype(dtype) if weighted else None


def stacked(views, weights, center):
    """X by its definition, in float64."""
    w = np.ones(len(views[0])) if weights is None else weights.astype(np.float64)
    exact = [x.astype(np.float64) for x in views]
    exact = [np.sqrt(w)[:, None] * (x - (w @ x / w.sum()) * center) for x in exact]
    c = _subspace.contrasts(len(views))
    rows = [np.hstack([a * x for a, x in zip(row, exact, strict=True)]) for row in c]
    return exact, np.vstack(rows)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mean", [0.5, 5.0])  # below and above the spread
@pytest.mark.parametrize(("dtype", "dims"), [("float32", (4, 3)), ("float64", (4, 3, 2))])
def test_products_are_those_of_the_rows(center, weighted, mean, dtype, dims, rng, x64, monkeypatch):
    monkeypatch.setattr(_host, "_BLOCK", 1000)
    views, weights = draw(rng, dims, weighted=weighted, dtype=dtype, mean=mean)
    state = statistics.as_statistic(views, weights=weights)
    tall = _host.Tall.of(state, center=center)
    exact, x = stacked(views, weights, center)
    joined = np.hstack(exact)
    # A sum of n products is off by n eps times the sum of their sizes, about 30 each.
    atol = 300 * np.finfo(dtype).eps * 300 * 30
    np.testing.assert_allclose(tall.second, joined.T @ joined, rtol=0, atol=atol)
    alone = _host.Tall.of(state, center=center, cross=True)
    np.testing.assert_allclose(alone.cross, exact[0].T @ exact[1], rtol=0, atol=atol)
    np.testing.assert_allclose(alone.rows().roundings, tall.rows().roundings, rtol=1e-4)
    columns = np.linalg.qr(rng.normal(size=(sum(dims), 2)))[0].astype(dtype)
    np.testing.assert_allclose(tall.times_gram(columns), x.T @ (x @ columns), rtol=0, atol=9 * atol)
    root = tall.root(columns)
    image = x @ columns
    np.testing.assert_allclose(root.T @ root, image.T @ image, rtol=0, atol=9 * atol)
    rows = tall.rows()
    other = statistics.rows(statistics.as_statistic(views, weights=weights), center=center)
    for a, b in zip(rows.means, other.means, strict=True):
        np.testing.assert_allclose(a, b, rtol=50 * np.finfo(dtype).eps)
    assert float(rows.rounding) == pytest.approx(float(other.rounding), rel=1e-3)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_those_of_a_factor_are_those_of_its_samples(center, weighted, rng, x64):
    views, weights = draw(rng, (4, 3, 2), weighted=weighted)
    state = statistics.as_statistic(views, weights=weights)
    whole = _host.Tall.of(state, center=center)
    held = _host.Tall.of(statistics.from_views(views, weights=weights), center=center)
    columns = np.linalg.qr(rng.normal(size=(9, 2)))[0]
    # A QR of 300 rows and the sums of their products are each off by some 300 eps of the sizes.
    for ours, exact in (
        (held.second, whole.second),
        (held.times_gram(columns), whole.times_gram(columns)),
        (np.abs(held.root(columns)), np.abs(whole.root(columns))),
        *zip(held.rows(), whole.rows(), strict=True),
    ):
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * np.abs(other).max())


def test_a_mean_that_some_rows_hide_costs_no_digits(rng, x64):
    """The rows that are looked at first have none, and the others have one far from zero."""
    x = rng.normal(size=(8000, 2))
    x[:, 0] += 1e6 * (np.arange(8000) % 8 > 0)
    y = x @ rng.normal(size=(2, 2))
    for cross in (False, True):
        tall = _host.Tall.of(statistics.as_statistic((x, y)), center=True, cross=cross)
        assert not tall._after
        exact = [v - v.mean(axis=0) for v in (x, y)]
        np.testing.assert_allclose(tall.cross, exact[0].T @ exact[1], rtol=1e-12)
        tall = _host.Tall.of(statistics.as_statistic((x + 1e9, y)), center=True, cross=cross)
        np.testing.assert_allclose(tall.cross, exact[0].T @ exact[1], rtol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 1e-9])
def test_root_has_the_digits_of_a_qr(spread, rng, x64):
    """Far apart, columns need no QR; nearly parallel they get one."""
    views, _ = draw(rng, (4, 3), weighted=False)
    tall = _host.Tall.of(statistics.as_statistic(views), center=False)
    _, x = stacked(views, None, False)
    one = rng.normal(size=(7, 1))
    columns = np.hstack(
        [one, one + spread * rng.normal(size=(7, 1)), 1e-6 * rng.normal(size=(7, 1))]
    )
    exact = np.linalg.svd(x @ columns, compute_uv=False)
    found = np.linalg.svd(tall.root(columns), compute_uv=False)
    # Of the largest: what rounding of the columns' images does to any factorisation.
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-14 * exact[0])
    scale = np.linalg.norm(x @ columns, axis=0)
    for unit in (1, 1e-25):  # of the columns: their images are no rounding because they are small
        lengths = np.linalg.norm(tall.root(unit * columns), axis=0)
        np.testing.assert_allclose(lengths, unit * scale, rtol=1e-13)


@pytest.mark.parametrize("kind", ["gram", "factor"])
def test_moments_of_rows_whose_mean_wanders(kind, rng):
    """Blocks far from the mean so far, beside their spread, keep the digits of the spread."""
    blocks = [middle + rng.normal(size=(400, 3)) for middle in (0, 1000, 1000)]
    blocks = [np.hstack([x, np.full((400, 1), 7.7)]).astype(np.float32) for x in blocks]
    moments = _host.Moments((2, 2), np.float32, kind)
    for x in blocks:
        moments.add((x[:, :2], x[:, 2:]))
    rows = np.concatenate(blocks).astype(np.float64)
    exact = (rows - rows.mean(axis=0)).T @ (rows - rows.mean(axis=0))
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=0, atol=1e-6)
    # 1,200 of variance one about middles that float64 sums: float32 has 4 digits of 1 in 1,000.
    np.testing.assert_allclose(moments.spread, exact, rtol=0, atol=0.12)
    assert moments.spread[3, 3] < 1e-6


def test_a_constant_beside_a_far_mean_moves_no_mean(rng):
    x = np.hstack([np.full((20_000, 1), 0.1), 100 + rng.normal(size=(20_000, 1))]).astype("f4")
    moments = _host.Moments((1, 1), np.float32, "gram")
    moments.add((x[:, :1], x[:, 1:]))
    exact = x.astype(np.float64).mean(axis=0)
    assert np.allclose(moments.mean, exact, rtol=1e-7)  # rounding of a mean about a guess


def test_what_has_no_rows_in_the_hosts_memory_has_none(rng, x64):
    views, _ = draw(rng, (4, 3), weighted=False)
    state = statistics.as_statistic(views)
    assert _host.Tall.of(statistics.as_statistic([x[:7] for x in views]), center=False) is None
    assert _host.Tall.of(statistics.from_views(views, kind="gram"), center=False) is None
    assert _host.Tall.of(statistics.from_views([x[:7] for x in views]), center=False) is None

    def traced(x):
        held = statistics.Samples((x, x), None, x[0, 0])
        assert _host.Tall.of(held, center=False) is None
        return x

    jax.make_jaxpr(traced)(state.views[0])


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_fits_by_the_host_are_those_of_the_svd(center, weighted, rng, x64):
    """Three views with a shared part, singular values from 1 to 1e-3 and an exact null space."""
    z = rng.normal(size=(200, 4)) * np.logspace(0, -3, 4)
    views = [z @ rng.normal(size=(4, d)) + center for d in (5, 4, 6)]
    weights = rng.uniform(0.5, 2, 200) if weighted else None
    by_host = pa.fit(views, k=7, center=center, weights=weights, check=False)
    by_svd = pa.fit(views, k=7, center=center, weights=weights, check=False, method="svd")
    assert by_host.method == "gram"
    _, x = stacked(views, weights, center)
    a = np.concatenate(by_host.projections, axis=1)
    np.testing.assert_allclose(a @ a.T, np.eye(7), atol=1e-13)
    # Singular values are defined to eps times the largest.
    largest = np.linalg.norm(x, 2)
    np.testing.assert_allclose(
        by_host.singular_values, by_svd.singular_values, rtol=0, atol=1e-14 * largest
    )
    assert np.linalg.norm(x @ a.T, 2) < 1e-14 * largest + float(by_svd.singular_values[0])
    for one, other in zip(by_host.means, by_svd.means, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-13)


def test_the_check_refuses_gram_where_it_is_not_enough(rng, x64):
    """Two directions of size 1e-9 beside one of 2e-9: a Gram matrix cannot part them."""
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    x = np.linalg.qr(rng.normal(size=(100, 8)))[0] * np.repeat([1, 2e-9, 1e-9], [5, 1, 2]) @ turn.T
    alignment = pa.fit((x[:, :4], -x[:, 4:]), k=2, check=False)
    assert alignment.method == "qr"
    np.testing.assert_allclose(alignment.singular_values, [1e-9, 1e-9], rtol=1e-6)


def test_values_that_are_not_finite_are_named_and_large_ones_fitted(rng, x64):
    x1, x2 = rng.normal(size=(2, 50, 3))
    x1[7, 1] = np.inf
    with pytest.raises(ValueError, match="x1 must be finite, but row 7 has infinity"):
        pa.fit((x1, x2), k=2)
    x1[7, 1] = 1e200  # its square is not finite
    alignment = pa.fit((x1, x2), k=2, check=False)
    assert alignment.method == "qr"
    assert np.isfinite(alignment.singular_values).all()


def test_arrays_of_the_host_are_not_copied(rng):
    x = rng.normal(size=(40, 3)).astype(np.float32)
    state = statistics.as_statistic((x, x), look=False)
    assert all(np.shares_memory(view, x) for view in state.views)
    assert np.shares_memory(_host.Tall.of(state, center=True).views[0], x)


def test_rows_go_to_the_device_that_computes(rng, monkeypatch):
    """Where a GPU is JAX's default, NumPy's rows are not the host's to compute."""
    x = rng.normal(size=(20, 3)).astype(np.float32)
    state = statistics.as_statistic((x, x), look=False)
    assert _host.Tall.of(state, center=False) is not None
    assert all(isinstance(a, np.ndarray) for a in _numerics.at_hand((x, jax.numpy.ones(3))))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _host.Tall.of(state, center=False) is None
    assert all(isinstance(a, jax.Array) for a in _numerics.at_hand((x, jax.numpy.ones(3))))
    with jax.default_device(jax.devices("cpu")[0]):
        assert _host.Tall.of(state, center=False) is not None


@pytest.mark.parametrize("n", [6, 300])  # fewer rows than features, and more
def test_a_program_that_is_traced_may_hold_data_of_its_own(rng, x64, n):
    views, _ = draw(rng, (4, 3), weighted=False, n=n)
    for data in (views, statistics.from_views(views)):
        exact = pa.fit(data, k=2, check=False).singular_values
        held = functools.partial(pa.fit, data, k=2, check=False)
        found = jax.jit(lambda scale, held=held: scale * held().singular_values)(2.0)
        np.testing.assert_allclose(found, 2 * exact, atol=1e-10)


def test_squares_that_overflow_are_told_and_no_error(rng):
    views, _ = draw(rng, (5, 8), weighted=False, dtype="float32", n=5)
    with pytest.warns(pa.CollapseWarning, match="squares of the views overflow"):
        pa.fit([np.float32(1e20) * x for x in views], k=2)
