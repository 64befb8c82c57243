"""fit, transform, encode, predict and diagnose, as a user meets them."""

import dataclasses
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import perfalign_jax as pa
from perfalign_jax import _subspace, statistics

# Random views are aligned badly on purpose; TestCollapse looks at the warning itself.
pytestmark = [
    pytest.mark.filterwarnings("default::perfalign_jax.CollapseWarning"),
    pytest.mark.filterwarnings("default::perfalign_jax.OverfitWarning"),
]


def perfect_views(rng, n=60, k=3, d1=4, d2=5):
    """Noise-free views of k latent dimensions."""
    z = rng.normal(size=(n, k))
    return z @ rng.normal(size=(k, d1)), z @ rng.normal(size=(k, d2))


def stacked(alignment):
    return np.hstack([np.asarray(p) for p in alignment.projections])


def test_svd_is_the_formula_of_the_paper(x64, rng):
    """Eq. 7 with the paper's X of shape (d, n), by NumPy."""
    x1, x2 = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    u, s, _ = np.linalg.svd(np.vstack([x1.T, -x2.T]))
    alignment = pa.fit((x1, x2), k=3, method="svd")
    for row, wanted in zip(stacked(alignment), u[:, 4:].T, strict=True):  # same order, up to sign
        assert abs(row @ wanted) == pytest.approx(1, abs=1e-12)
        assert row[np.argmax(np.abs(row))] > 0
    np.testing.assert_allclose(alignment.singular_values, s[4:], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_residual_is_the_sum_of_the_smallest_squared_singular_values(k, x64, rng):
    x1, x2 = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    a = stacked(pa.fit((x1, x2), k=k))
    s = np.linalg.svd(np.hstack([x1, -x2]), compute_uv=False)
    assert np.sum((np.hstack([x1, -x2]) @ a.T) ** 2) == pytest.approx(
        (s[7 - k :] ** 2).sum(), rel=1e-12
    )


def test_no_orthonormal_rows_do_better(x64, rng):
    x1, x2 = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    x = np.hstack([x1, -x2])
    best = np.linalg.norm(x @ stacked(pa.fit((x1, x2), k=2)).T)
    for _ in range(50):
        a = scipy.linalg.qr(rng.normal(size=(7, 2)), mode="economic")[0]
        assert np.linalg.norm(x @ a) >= best


def test_samples_may_be_permuted_and_features_rotated(x64, rng):
    x1, x2 = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    order = rng.permutation(30)
    q = scipy.linalg.qr(rng.normal(size=(4, 4)))[0]
    a = stacked(pa.fit((x1, x2), k=2))
    b = stacked(pa.fit((x1[order], x2[order]), k=2))
    c = stacked(pa.fit((x1 @ q, x2), k=2))
    np.testing.assert_allclose(b.T @ b, a.T @ a, atol=1e-12)
    c = np.hstack([c[:, :4] @ q.T, c[:, 4:]])
    np.testing.assert_allclose(c.T @ c, a.T @ a, atol=1e-12)


@pytest.mark.parametrize("kind", ["factor", "gram"])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("select", ["trailing", "energy"])
def test_a_statistic_gives_what_the_views_give(kind, center, select, x64, rng):
    x1, x2 = perfect_views(rng)
    x1, x2 = x1 + 2, x2 - 1
    k = 6 if select == "trailing" else 3  # the whole null space, or its informative part
    k = k - (not center)  # the means differ, which costs a direction when they stay
    direct = pa.fit((x1, x2), k=k, center=center, select=select)
    streamed = statistics.init((4, 5), kind=kind)
    for i in range(0, 60, 7):
        streamed = statistics.update(streamed, (x1[i : i + 7], x2[i : i + 7]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pa.CollapseWarning)
        other = pa.fit(streamed, k=k, center=center, select=select)
    a, b = stacked(direct), stacked(other)
    # A Gram matrix keeps half the digits.
    np.testing.assert_allclose(b.T @ b, a.T @ a, atol=1e-11 if kind == "factor" else 1e-6)
    for m in (0, 1):
        np.testing.assert_allclose(other.means[m], direct.means[m], atol=1e-12)


def test_centring_removes_the_means_and_keeps_them(x64, rng):
    x1, x2 = perfect_views(rng)
    alignment = pa.fit((x1 + 7, x2 - 3), k=3, select="energy", center=True)
    z1, z2 = pa.transform(alignment, (x1 + 7, x2 - 3))
    np.testing.assert_allclose(z1, z2, atol=1e-12)
    np.testing.assert_allclose(z1.mean(0), 0, atol=1e-12)
    assert alignment.center
    np.testing.assert_allclose(alignment.means[0], (x1 + 7).mean(0), atol=1e-12)


def test_encode_is_transform_of_one_view(x64, rng):
    views = perfect_views(rng)
    alignment = pa.fit(views, k=2, select="energy")
    for m in (0, 1):
        np.testing.assert_array_equal(
            pa.encode(alignment, views[m], view=m), pa.transform(alignment, views)[m]
        )


def test_predict_recovers_the_other_modality(x64, rng):
    views = perfect_views(rng)
    new = perfect_views(rng)  # other maps: only here to differ from the first draw
    alignment = pa.fit(views, k=None, select="energy", center=True)
    np.testing.assert_allclose(
        pa.predict(alignment, views[1], source=1, target=0), views[0], atol=1e-11
    )
    np.testing.assert_allclose(
        pa.predict(alignment, views[0], source=0, target=1), views[1], atol=1e-11
    )
    assert np.abs(pa.predict(alignment, new[1], source=1, target=0) - new[0]).max() > 0.1


def test_predict_with_all_target_features_is_total_least_squares(x64, rng):
    x1 = rng.normal(size=(50, 4))
    x2 = x1 @ rng.normal(size=(4, 3)) + 0.1 * rng.normal(size=(50, 3))
    v = np.linalg.svd(np.hstack([x1, x2]))[2].T  # Golub & Van Loan (1980)
    tls = -v[:4, 4:] @ np.linalg.inv(v[4:, 4:])
    alignment = pa.fit((x1, x2), k=3)
    np.testing.assert_allclose(pa.predict(alignment, x1, source=0, target=1), x1 @ tls, atol=1e-11)


@pytest.mark.parametrize("method", ["auto", "svd"])
@pytest.mark.parametrize("n", [5, 40])
def test_jit_vmap_and_one_trace(method, n, x64, rng):
    x1, x2 = rng.normal(size=(3, n, 4)), rng.normal(size=(3, n, 5))
    traces = []

    def run(a, b):
        traces.append(1)
        return pa.fit((a, b), k=4, method=method)

    compiled = jax.jit(run)
    many = jax.vmap(run)(x1, x2)
    traces.clear()
    for i in range(3):
        one = compiled(x1[i], x2[i])
        eager = pa.fit((x1[i], x2[i]), k=4, method=method)
        # Which of the two ways did the work is known outside jit only.
        one = dataclasses.replace(one, method=eager.method)
        chex.assert_trees_all_close(one, eager, atol=1e-12)
        a, b = stacked(one), np.hstack([p[i] for p in many.projections])
        np.testing.assert_allclose(b.T @ b, a.T @ a, atol=1e-11)
    assert len(traces) == 1


@pytest.mark.parametrize("x64_mode", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_the_data_s_own(x64_mode, dtype, rng):
    views = tuple(x.astype(dtype) for x in perfect_views(rng))
    with jax.enable_x64(x64_mode), warnings.catch_warnings():
        warnings.simplefilter("error", pa.PrecisionWarning)
        if dtype == np.float64 and not x64_mode:
            with pytest.raises(pa.PrecisionWarning, match=r"x1 has dtype float64 .* float32; call"):
                pa.fit(views, k=2, select="energy")
            return
        alignment = pa.fit(views, k=2, select="energy")
        assert {leaf.dtype for leaf in jax.tree.leaves(alignment)} == {np.dtype(dtype)}
        assert pa.encode(alignment, views[0], view=0).dtype == dtype


def test_integers_are_converted_and_it_is_said(rng):
    x = rng.integers(0, 9, size=(20, 2))
    with pytest.warns(pa.PrecisionWarning, match=r"x1 has dtype int64 and is computed in float32"):
        alignment = pa.fit((x, x), k=2)
    assert alignment.projections[0].dtype == jnp.float32


def many_views(rng, n=60, k=3, dims=(4, 5, 6)):
    z = rng.normal(size=(n, k))
    return tuple(z @ rng.normal(size=(k, d)) for d in dims)


class TestManyViews:
    @pytest.mark.parametrize("dims", [(4, 5, 3), (3, 4, 2, 5)])
    @pytest.mark.parametrize("n", [6, 40])
    @pytest.mark.parametrize("method", ["auto", "svd"])
    def test_it_minimises_the_squared_differences_of_all_pairs(self, dims, n, method, x64, rng):
        """Against the definition, built pair by pair in NumPy."""
        views = [rng.normal(size=(n, d)) for d in dims]
        edges = np.cumsum([0, *dims])
        quadratic = np.zeros((sum(dims),) * 2)
        for i in range(len(dims)):
            for j in range(i + 1, len(dims)):
                row = np.zeros((n, sum(dims)))
                row[:, edges[i] : edges[i + 1]] = views[i]
                row[:, edges[j] : edges[j + 1]] = -views[j]
                quadratic += row.T @ row
        values, vectors = np.linalg.eigh(quadratic)
        k = 2 if n == 40 else sum(dims) - n  # unique: nothing is null, or all that is and more
        if n < 40:
            k = int((values < 1e-10).sum()) + 1
        alignment = pa.fit(views, k=k, method=method, check=False)
        a = stacked(alignment)
        np.testing.assert_allclose(a.T @ a, vectors[:, :k] @ vectors[:, :k].T, atol=1e-10)
        latents = [x @ np.asarray(p).T for x, p in zip(views, alignment.projections, strict=True)]
        pairs = sum(
            np.sum((latents[i] - latents[j]) ** 2)
            for i in range(len(dims))
            for j in range(i + 1, len(dims))
        )
        np.testing.assert_allclose(pairs, values[:k].clip(0).sum(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            np.sum(np.asarray(alignment.singular_values) ** 2), pairs, rtol=1e-9, atol=1e-12
        )

    def test_two_views_are_stacked_as_in_the_paper_bit_for_bit(self, rng):
        b1, b2 = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
        ours = _subspace.stack((jnp.asarray(b1), jnp.asarray(b2)))
        np.testing.assert_array_equal(ours, jnp.asarray(np.hstack([b1, -b2])))

    @pytest.mark.parametrize("m", [2, 3, 7])
    def test_contrasts_see_all_pairs_alike(self, m):
        c = _subspace.contrasts(m)
        np.testing.assert_allclose(c.T @ c, m * np.eye(m) - 1, atol=1e-14)

    @pytest.mark.parametrize("n", [5, 60])
    def test_informative_part_aligns_all_views(self, n, x64, rng):
        views = many_views(rng, n=n)
        diagnosis = pa.diagnose(views)
        assert diagnosis.ranks.tolist() == [3, 3, 3]
        assert int(diagnosis.informative_dimension) == 3
        assert int(diagnosis.trivial_dimension) == sum((4, 5, 6)) - 9
        alignment = pa.fit(views, k=None, select="energy")
        latents = pa.transform(alignment, views)
        for z in latents[1:]:
            np.testing.assert_allclose(z, latents[0], atol=1e-12)
        np.testing.assert_allclose(
            pa.predict(alignment, views[2], source=2, target=0), views[0], atol=1e-10
        )
        assert f"{n} rows of each view" in str(diagnosis)

    def test_the_published_collapse_is_seen_among_three(self, x64, rng):
        views = tuple(x + rng.normal(size=x.shape) for x in many_views(rng, 2000, 2, (10, 10, 10)))
        with pytest.warns(pa.CollapseWarning, match=r"axes the views hardly agree"):
            pa.fit(views, k=2)

    def test_gradient(self, x64, rng):
        views = [rng.normal(size=(20, d)) for d in (3, 2, 4)]
        probe = rng.normal(size=(9, 9))

        @jax.jit
        @jax.value_and_grad
        def value(x):
            rows = jnp.concatenate(pa.fit((x, *views[1:]), k=2).projections, axis=1)
            return jnp.sum(probe * (rows.T @ rows))

        step = rng.normal(size=(20, 3))
        above, below = (float(value(views[0] + t * step)[0]) for t in (1e-6, -1e-6))
        numeric = (above - below) / 2e-6
        along = np.vdot(value(views[0])[1], step)
        np.testing.assert_allclose(along, numeric, rtol=1e-5)  # what central differences reach


class TestWeights:
    def every_result(self, views, weights):
        whole = stacked(pa.fit(views, k=5, weights=weights))  # all of the null space
        yield whole.T @ whole
        energy = pa.fit(views, k=None, select="energy", weights=weights, center=True)
        yield stacked(energy)
        diagnosis = pa.diagnose(views, weights=weights, center=True)
        yield np.asarray([diagnosis.rank, diagnosis.informative_dimension, *diagnosis.ranks])
        state = statistics.from_views(views, weights=weights)
        yield stacked(pa.gauge.canonicalize(energy, state))
        for fitted in (
            pa.baselines.ridge_cca(state, k=2, ridge=0.1, center=True),
            pa.baselines.procrustes(state),
            pa.baselines.ridge_regression(state, ridge=0.1),
            pa.baselines.total_least_squares(state, center=True),
        ):
            yield stacked(fitted)

    @pytest.mark.parametrize("factor", [1e-6, 1e6])
    def test_a_common_factor_changes_nothing(self, factor, x64, rng):
        views = tuple(x + 3 for x in perfect_views(rng, 60, 3, 4, 5))
        weights = rng.uniform(0.5, 2, 60)
        for one, other in zip(
            self.every_result(views, weights),
            self.every_result(views, factor * weights),
            strict=True,
        ):
            np.testing.assert_allclose(other, one, atol=1e-10)

    def test_integers_repeat_rows(self, x64, rng):
        views = tuple(x + 3 for x in perfect_views(rng, 60, 3, 4, 5))
        counts = rng.integers(0, 3, 60)
        repeated = tuple(np.repeat(x, counts, axis=0) for x in views)
        for one, other in zip(
            self.every_result(views, counts.astype(float)),
            self.every_result(repeated, np.ones(counts.sum())),
            strict=True,
        ):
            np.testing.assert_allclose(other, one, atol=1e-10)

    def test_weights_that_sum_to_one_hide_no_direction(self, rng):
        """n = 200,000 in float32 with a mean as large as the spread: the cut-off is near 1e-4."""
        n, d = 200_000, 40
        sizes = np.geomspace(1, 3e-3, d)
        x = (rng.normal(size=(n, d)) * sizes + sizes).astype(np.float32)
        views = (x[:, :20], x[:, 20:])
        weights = np.full(n, 1 / n, np.float32)
        diagnosis = pa.diagnose(views, weights=weights, center=True)
        assert int(diagnosis.rank) == d
        assert float(diagnosis.cutoff / diagnosis.singular_values[0]) < 1e-4


def test_auto_in_float32_at_a_million_rows_is_the_svd_in_float64(rng):
    n = 1_000_000
    z = rng.normal(size=(n, 2)).astype(np.float32)
    maps = [rng.normal(size=(2, d)).astype(np.float32) for d in (3, 4)]
    x1, x2 = (z @ m for m in maps)
    x1 += 0.1 * rng.normal(size=x1.shape).astype(np.float32)
    x = np.hstack([x1, -x2]).astype(np.float64)
    v = np.linalg.svd(np.linalg.qr(x, mode="r"))[2].T
    a = stacked(pa.fit((x1, x2), k=2))
    # The entries of x2 are rounded to float32, independently: 1e-7 of its size.
    assert np.linalg.norm(a.T @ a - v[:, 5:] @ v[:, 5:].T, 2) < 1e-6
    assert int(pa.diagnose((x1, x2)).null_dimension) == 2


class TestCentredAndWide:
    @pytest.mark.parametrize("k", [3, 4, 5])
    def test_as_many_directions_as_both_row_spaces_have(self, k, x64, rng):
        """n = 3 centred rows span two dimensions of each view."""
        views = rng.normal(size=(3, 8)), rng.normal(size=(3, 9))
        alignment = pa.fit(views, k=k, select="energy", center=True)
        z1, z2 = pa.transform(alignment, views)
        assert z1.shape == z2.shape == (3, k)
        residual = np.linalg.norm(z1 - z2, axis=0)
        np.testing.assert_allclose(residual, alignment.singular_values, atol=1e-12)
        a = stacked(alignment)
        np.testing.assert_allclose(a @ a.T, np.eye(k), atol=1e-12)

    def test_dual_offers_only_directions_that_are_null(self, x64, rng):
        views = rng.normal(size=(5, 8)), rng.normal(size=(5, 9))
        alignment = pa.fit(views, k=4, method="dual", center=True)
        z1, z2 = pa.transform(alignment, views)
        np.testing.assert_allclose(z1, z2, atol=1e-12)
        with pytest.raises(ValueError, match=r"4 rows have 4 null directions, got k=5"):
            pa.fit(views, k=5, method="dual", center=True)


def test_the_method_named_is_the_one_that_did_the_work(x64, rng):
    views = rng.normal(size=(60, 4)), rng.normal(size=(60, 3))
    assert pa.fit(views, k=2).method == "gram"
    # Singular values that vanish when squared, none of them null: the check refuses.
    hard = tuple(x * np.geomspace(1, 1e-11, x.shape[1]) for x in views)
    assert pa.fit(hard, k=2).method == "qr"


def test_the_first_dimensions(x64, rng):
    views = perfect_views(rng)
    alignment = pa.fit(views, k=6)
    first = alignment.take(2)
    assert first.k == 2
    np.testing.assert_array_equal(stacked(first), stacked(alignment)[:2])
    np.testing.assert_array_equal(first.singular_values, alignment.singular_values[:2])
    correlated = pa.baselines.cca(views, k=3, center=True).take(1)
    assert correlated.coupling.shape == (1,)
    for k, error in ((0, ValueError), (7, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="k must be"):
            alignment.take(k)


class TestOverfit:
    @pytest.mark.parametrize(("n", "center"), [(10, False), (11, True), (4, False)])
    def test_unrelated_noise_is_named(self, n, center, x64, rng):
        """More rows than either view has features, fewer than both have together."""
        views = rng.normal(size=(n, 6)), rng.normal(size=(n, 7))
        with pytest.warns(pa.OverfitWarning, match="reaches the number of samples"):
            pa.fit(views, k=2, center=center)
        assert "any pairing" in str(pa.diagnose(views, center=center))

    def test_shared_latents_are_not(self, x64, rng):
        views = perfect_views(rng, n=10, k=3, d1=6, d2=7)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pa.OverfitWarning)
            pa.fit(views, k=2, select="energy")
        assert "any pairing" not in str(pa.diagnose(views))


class TestOtherArrays:
    def test_a_mask_is_not_ignored(self, rng):
        x = rng.normal(size=(9, 2)).astype(np.float32)
        masked = np.ma.masked_where(np.abs(x) > 1.5, x)
        with pytest.raises(ValueError, match=r"x2 must be a plain array, but \d+ of its values"):
            pa.fit((x, masked), k=1)
        np.testing.assert_array_equal(
            stacked(pa.fit((x, np.ma.array(x)), k=1)), stacked(pa.fit((x, x), k=1))
        )

    def test_a_frame_whose_sum_skips_nan_is_still_looked_at(self, rng):
        class Skipping:
            """As xarray: an array by conversion, with a sum that passes over NaN."""

            def __init__(self, values):
                self.values, self.shape, self.dtype = values, values.shape, values.dtype

            def __array__(self, dtype=None, copy=None):
                return self.values

            def sum(self):
                return np.nansum(self.values)

        x = rng.normal(size=(9, 2)).astype(np.float32)
        bad = x.copy()
        bad[4, 1] = np.nan
        with pytest.raises(ValueError, match=r"x2 must be finite, but row 4 has NaN"):
            pa.fit((x, Skipping(bad)), k=1)
        assert pa.fit((x, Skipping(x)), k=1).k == 1

    def test_row_counts_are_compared_before_a_value_is_read(self, rng):
        class Unreadable:
            shape, dtype = (8, 2), np.dtype(np.float32)

            def __array__(self, dtype=None, copy=None):
                raise AssertionError("was read")

        with pytest.raises(ValueError, match=r"same number of rows .* got 9 and 8"):
            pa.fit((np.zeros((9, 2), np.float32), Unreadable()), k=1)

    @pytest.mark.parametrize("scale", [1e200, 1e-200])
    def test_views_of_very_different_scale_are_named(self, scale, x64, rng):
        x1, x2 = perfect_views(rng)
        with pytest.warns(pa.CollapseWarning, match="views of the same scale"):
            pa.fit((x1, scale * x2), k=2)

    def test_precision_is_told_once_and_at_the_callers_line(self, rng):
        x = rng.normal(size=(20, 2))
        with pytest.warns(pa.PrecisionWarning, match=r"x1 has dtype float64.*\(x2 too\)") as said:
            pa.fit((x, x), k=1)
        assert len([w for w in said if w.category is pa.PrecisionWarning]) == 1
        assert said[0].filename == __file__


def test_check_can_be_left_out(x64, rng):
    views = perfect_views(rng, d1=20, d2=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = pa.fit(views, k=37, check=False)
    with pytest.warns(pa.CollapseWarning):
        loud = pa.fit(views, k=37)
    np.testing.assert_array_equal(stacked(quiet), stacked(loud))


def test_a_mean_that_dominates_points_to_centring(x64, rng):
    views = tuple(x + rng.normal(size=x.shape) + 50 for x in perfect_views(rng, 500, 2, 8, 8))
    with pytest.warns(pa.CollapseWarning, match=r"times the energy of the spread.*center=True"):
        pa.fit(views, k=2)


class TestDiagnose:
    @pytest.mark.parametrize(
        ("n", "k", "d1", "d2"),
        [(60, 3, 4, 5), (60, 2, 2, 2), (5, 9, 8, 7), (60, 3, 3, 9), (6, 4, 9, 9)],
    )
    def test_anatomy_of_the_null_space(self, n, k, d1, d2, x64, rng):
        """Trivial and informative dimensions as counted by hand for generic maps."""
        diagnosis = pa.diagnose(perfect_views(rng, n, k, d1, d2))
        ranks = [min(n, k, d) for d in (d1, d2)]
        rank = min(n, k, d1 + d2)
        assert diagnosis.ranks.tolist() == ranks
        assert int(diagnosis.rank) == rank
        assert int(diagnosis.null_dimension) == d1 + d2 - rank
        assert int(diagnosis.trivial_dimension) == d1 + d2 - sum(ranks)
        assert int(diagnosis.informative_dimension) == sum(ranks) - rank
        assert int(diagnosis.samples) == n

    def test_spectrum_is_numpy_s(self, x64, rng):
        x1, x2 = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
        s = np.linalg.svd(np.hstack([x1, -x2]), compute_uv=False)
        np.testing.assert_allclose(pa.diagnose((x1, x2)).singular_values, s, rtol=1e-12)

    def test_statistics_views_and_jit_agree(self, x64, rng):
        views = perfect_views(rng)
        direct = pa.diagnose(views, center=True)
        for other in (
            pa.diagnose(statistics.from_views(views), center=True),
            jax.jit(lambda a, b: pa.diagnose((a, b), center=True))(*views),
        ):
            chex.assert_trees_all_close(other, direct, atol=1e-10)
        gram = pa.diagnose(statistics.from_views(views, kind="gram"), center=True)
        assert int(gram.informative_dimension) == int(direct.informative_dimension)

    @pytest.mark.parametrize("mean", [1e2, 1e4])
    def test_a_large_common_mean_is_known_to_its_own_rounding(self, mean, rng):
        views = tuple((x + mean).astype(np.float32) for x in perfect_views(rng, 200))
        assert int(pa.diagnose(views, center=True).informative_dimension) == 3

    @pytest.mark.parametrize("coarse", [np.float32, np.float16])
    def test_views_are_known_to_the_rounding_of_the_coarser(self, coarse, x64, rng):
        x1, x2 = perfect_views(rng, 200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pa.PrecisionWarning)
            assert int(pa.diagnose((x1.astype(coarse), x2)).informative_dimension) == 3

    def test_in_words(self, x64, rng):
        said = str(pa.diagnose(perfect_views(rng)))
        assert "60 pairs, 4 + 5 features" in said
        assert "perfect up to k = 6" in said
        assert "3 of them carry energy" in said
        noise = str(pa.diagnose((rng.normal(size=(30, 2)), rng.normal(size=(30, 2)))))
        assert "no perfect alignment" in noise


class TestCollapse:
    def test_trivial_directions_are_named(self, x64, rng):
        views = perfect_views(rng, d1=20, d2=20)
        with pytest.warns(
            pa.CollapseWarning, match=r"34 of the 37 directions chosen are trivial.*energy"
        ):
            pa.fit(views, k=37, method="svd")

    def test_energy_selection_does_not_warn(self, x64, rng):
        views = perfect_views(rng, d1=20, d2=20)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pa.fit(views, k=None, select="energy")
            pa.fit(perfect_views(rng, d1=3, d2=3), k=3)

    @pytest.mark.parametrize("offset", [0.0, 50.0])
    def test_the_published_collapse_is_seen(self, offset, x64, rng):
        """d1 = d2 = 10, two latent dimensions, unit noise: directions of least error are noise.

        One latent axis keeps some signal by chance, and a common mean looks like agreement:
        neither may hide the other axis.
        """
        views = tuple(
            x + rng.normal(size=x.shape) + offset for x in perfect_views(rng, 2000, 2, 10, 10)
        )
        for data in (views, statistics.from_views(views)):
            with pytest.warns(pa.CollapseWarning, match=r"axes the views hardly agree.*ridge_cca"):
                pa.fit(data, k=2)

    def test_no_collapse_where_there_is_none(self, x64, rng):
        views = tuple(x + 0.01 * rng.normal(size=x.shape) for x in perfect_views(rng, 500, 3, 3, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pa.fit(views, k=3)
            pa.fit(statistics.from_views(views), k=3)

    def test_a_zero_view_is_named(self, rng):
        x = rng.normal(size=(30, 3)).astype(np.float32)
        with pytest.warns(pa.CollapseWarning, match="all 2 directions chosen are trivial"):
            pa.fit((x, np.zeros_like(x)), k=2)

    def test_nothing_is_said_under_jit(self, x64, rng):
        views = perfect_views(rng, d1=20, d2=20)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            jax.jit(lambda a, b: pa.fit((a, b), k=37))(*views)


class TestBadInput:
    @pytest.fixture
    def views(self, rng):
        return tuple(rng.normal(size=(20, d)).astype(np.float32) for d in (3, 4))

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"k": 0}, ValueError, r"k must be between 1 and 7 \(d1 \+ d2 = 3 \+ 4\), got 0"),
            ({"k": 8}, ValueError, r"k must be between 1 and 7"),
            ({"k": 2.0}, TypeError, r"k must be an integer, got 2.0 \(float\)"),
            ({"k": True}, TypeError, r"k must be an integer, got True"),
            ({"k": None}, ValueError, r"k must be an integer unless select='energy'"),
            ({"k": None, "select": "energy"}, ValueError, r"this data has none"),
            ({"k": 1, "method": "lanczos"}, ValueError, r"method must be one of 'auto', 'svd'"),
            ({"k": 1, "select": "best"}, ValueError, r"select must be one of 'trailing', 'energy'"),
            ({"k": 1, "space": "signal"}, ValueError, r"space must be one of 'raw', got 'signal'"),
        ],
    )
    def test_options(self, views, options, error, match):
        with pytest.raises(error, match=match):
            pa.fit(views, **options)

    def test_views(self, views):
        x1, x2 = views
        bad = x2.copy()
        bad[3, 1] = np.nan
        infinite = x2.copy()
        infinite[5] = np.inf
        for data, error, match in [
            (x1, TypeError, r"views must be a tuple of two arrays \(x1, x2\), got ndarray"),
            ((x1,), TypeError, r"tuple of two arrays .* got 1 of them"),
            ((x1[0], x2), ValueError, r"x1 must have shape \(n, d1\), got shape \(3,\)"),
            ((x1, x2[:4]), ValueError, r"x1 and x2 must have the same number of rows"),
            ((x1[:0], x2[:0]), ValueError, r"at least one row"),
            ((x1, x2[:, :0]), ValueError, r"x2 must have at least one column, got shape \(20, 0\)"),
            ((x1, bad), ValueError, r"x2 must be finite, but row 3 has NaN \(1 such"),
            ((x1, infinite), ValueError, r"x2 must be finite, but row 5 has infinity \(4 such"),
            ((x1, x2 * 1j), TypeError, r"x2 must hold real numbers .* got dtype complex64"),
            ((x1, x2.astype(str)), TypeError, r"x2 must hold real numbers .* got dtype <U"),
            ((x1, x2.astype(object)), TypeError, r"x2 must hold real numbers .* got dtype object"),
            ((x1, [[1.0], [1.0, 2.0]]), TypeError, r"x2 must be an array .* ragged list"),
        ]:
            for function in (lambda d: pa.fit(d, k=1), pa.diagnose):
                with pytest.raises(error, match=match):
                    function(data)

    def test_one_row_cannot_be_centred(self, views):
        for function in (
            lambda d: pa.fit(d, k=1, center=True),
            lambda d: pa.diagnose(d, center=True),
        ):
            with pytest.raises(
                ValueError, match=r"at least two rows to be centred, got shape \(1, 3\)"
            ):
                function((views[0][:1], views[1][:1]))

    def test_k_none_under_jit(self, views):
        with pytest.raises(ValueError, match=r"k=None is not possible under jit"):
            jax.jit(lambda a, b: pa.fit((a, b), k=None, select="energy"))(*views)

    def test_encode_and_friends(self, views):
        alignment = pa.fit(views, k=2)
        for call, error, match in [
            (lambda: pa.encode(alignment, views[0], view=1), ValueError, r"x must have 4 columns"),
            (
                lambda: pa.encode(alignment, views[0], view=2),
                ValueError,
                r"view must be between 0 and 1",
            ),
            (lambda: pa.encode(alignment, views[0][0], view=0), ValueError, r"x must have shape"),
            (
                lambda: pa.encode("a", views[0], view=0),
                TypeError,
                r"alignment must be an Alignment",
            ),
            (lambda: pa.transform(alignment, views[::-1]), ValueError, r"x1 must have 3 columns"),
            (
                lambda: pa.predict(alignment, views[0], source=0, target=5),
                ValueError,
                r"target must be",
            ),
        ]:
            with pytest.raises(error, match=match):
                call()


@pytest.mark.parametrize("kind", ["views", "samples", "factor", "gram", "updated", "batches"])
def test_too_few_rows_are_told_whatever_holds_them(rng, kind):
    views = tuple(rng.normal(size=(10, 20)).astype(np.float32) for _ in range(2))
    data = views
    if kind in ("samples", "factor", "gram"):
        data = statistics.from_views(views, kind=kind)
    elif kind == "updated":
        data = statistics.update(statistics.init((20, 20)), views)
    elif kind == "batches":
        data = pa.streaming.from_batches([views])
    with pytest.warns(pa.OverfitWarning):
        pa.fit(data, k=3, select="energy")


def test_rows_of_weight_zero_do_not_hide_that_there_are_few(rng):
    for more in (10, 60):
        views = tuple(rng.normal(size=(10 + more, 20)).astype(np.float32) for _ in range(2))
        weights = np.repeat(np.float32([1, 0]), [10, more])
        with pytest.warns(pa.OverfitWarning):
            pa.fit(views, weights=weights, k=3, select="energy")
