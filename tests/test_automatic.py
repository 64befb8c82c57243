"""The automatic alignment: known answers, what is chosen, sides, wrong pairs, and bad input."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perfalign_jax as pa
from perfalign_jax import _folds, _masked, _selection, automatic, kernels, solver

RNG = np.random.default_rng(11)
MAPS = [RNG.normal(size=(3, d)) for d in (5, 6, 4, 5, 7)]


def draw(seed, n=300, *, noise=0.1, views=2):
    """Views of three shared dimensions, each with noise of its own."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3))
    return tuple(
        (z @ m + noise * rng.normal(size=(n, m.shape[1]))).astype(np.float32) for m in MAPS[:views]
    )


def recall(alignment, x1, x2, **views):
    indices = np.asarray(pa.search(alignment, x1, x2, top=1, **views).indices)[:, 0]
    return (indices == np.arange(len(indices))).mean()


@pytest.fixture(scope="module")
def linear():
    return pa.align(draw(0), lift=None)


def leave_out(views, fold, folds, ridge):
    """The same by float64 NumPy: ridge CCA of the other folds on the fold's own moments."""
    inside = np.arange(len(views[0])) % folds == fold
    train, test = ([np.asarray(x, np.float64)[rows] for x in views] for rows in (~inside, inside))
    means = [x.mean(axis=0) for x in train]
    a, b = (x - m for x, m in zip(train, means, strict=True))
    whiten = []
    for x in (a, b):
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        whiten.append(vectors / np.sqrt(values + ridge * values.mean()) @ vectors.T)
    u, s, vt = np.linalg.svd(whiten[0] @ (a.T @ b / len(a)) @ whiten[1])
    k = len(s)
    z = [(x - m) @ w @ d[:, :k] for x, m, w, d in zip(test, means, whiten, (u, vt.T), strict=True)]
    return [(z[i] * z[j]).sum(axis=0) for i, j in ((0, 1), (0, 0), (1, 1))]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_held_out_correlations_are_those_of_numpy(array, x64):
    views = [x.astype(np.float64) for x in draw(1)]
    views = [x / x.std(axis=0) / np.sqrt(x.shape[1]) for x in views]
    order = np.stack([np.arange(f, 300, 5) for f in range(5)])
    folds = _folds.of_rows(tuple(map(array, views)), order, array(np.ones(300)))
    found = _folds.try_ridges(
        folds, array(np.zeros((5, 0, 11))), array(np.array([0.1])), array(np.array(300.0)), k=5
    )
    parts = [leave_out(views, fold, 5, 0.1) for fold in range(5)]
    cross, own1, own2 = (sum(part[i] for part in parts) for i in range(3))
    expected = cross / np.sqrt(own1 * own2)
    assert np.allclose(_folds.correlations(found.covariances[0])[0, 1], expected, atol=1e-10)


def test_held_out_moments_need_no_second_look_at_the_rows(rng):
    views = draw(2)
    order = np.stack([np.arange(f, 300, 5) for f in range(5)])
    folds = _folds.of_rows(tuple(map(jnp.asarray, views)), order, jnp.ones(300))
    whole = _folds.of_rows(tuple(map(jnp.asarray, views)), np.arange(300)[None], jnp.ones(300))
    for found, expected in zip(_folds.others(folds, -1), _folds.others(whole, -1), strict=True):
        assert np.allclose(found, expected, atol=1e-4)
    left = np.concatenate(views, axis=1)[np.arange(300) % 5 != 2]
    mean, covariance = _folds.others(folds, 2)
    assert np.allclose(folds.mean + mean, left.mean(axis=0), atol=1e-5)
    assert np.allclose(covariance, np.cov(left.T, bias=True), atol=1e-4)


def test_falling_is_isotonic_regression(rng):
    from sklearn.isotonic import isotonic_regression

    values = rng.normal(size=30).astype(np.float32)
    assert np.allclose(
        _folds.falling(values), isotonic_regression(values, increasing=False), atol=1e-5
    )


def test_the_factor_model_explains_pairs_of_sides():
    rho = np.array([[0.9, 0.5], [0.8, 0.4], [0.6, 0.3]])
    r = rho[:, None] * rho[None]
    r[np.arange(3), np.arange(3)] = 1
    few = np.float32(1)  # so few rows that everything may be noise
    assert np.allclose(_folds.reliabilities(r.astype(np.float32), few), rho, atol=1e-3)


def test_an_axis_that_many_rows_confirm_is_not_averaged_away():
    """A weak one with much energy stands before a strong one under a large ridge."""
    rng = np.random.default_rng(6)
    strong, weak = rng.normal(size=(2, 4000, 1))

    def see(rng):
        noisy = [weak + 0.816 * rng.normal(size=(4000, 1))] * 20
        return np.float32(np.hstack([*noisy, strong + 0.1 * rng.normal(size=(4000, 1))]))

    train = see(rng), see(rng)
    alignment = pa.align(train, lift=None, ridge=1.0, k=2)
    stated = np.asarray(alignment.reliability.prod(axis=0))
    z1, z2 = map(np.asarray, pa.transform(alignment, (see(rng), see(rng))))
    true = [np.corrcoef(a, b)[0, 1] for a, b in zip(z1.T, z2.T, strict=True)]
    assert true[1] > true[0] + 0.3
    np.testing.assert_allclose(stated, true, atol=0.06)  # three standard errors of either


def test_a_side_that_does_not_take_part_in_an_axis_is_not_trusted_on_it():
    """Two of three views share most: the axes of all three come after it."""
    rng = np.random.default_rng(7)
    two, three = rng.normal(size=(2, 4000, 1))
    views = tuple(
        np.float32(
            np.hstack(
                [
                    0.995 * own + 0.1 * rng.normal(size=(4000, 1)),
                    0.63 * three + 0.77 * rng.normal(size=(4000, 1)),
                ]
            )
        )
        for own in (two, two, rng.normal(size=(4000, 1)))
    )
    reliability = np.asarray(pa.align(views, lift=None, ridge=0.01, k=2).reliability)
    assert reliability[2, 0] < 0.15
    np.testing.assert_allclose(reliability[:, 1], 0.63, atol=0.06)


def test_leading_axes_of_many_features_are_those_of_all(monkeypatch, rng):
    matrix = rng.normal(size=(90, 90))
    matrix = (matrix * 0.9 ** np.arange(90)) @ matrix.T
    whole = _folds._leading_eigenpairs(jnp.float32(matrix), 6)
    monkeypatch.setattr(_folds, "_WHOLE", 10)
    few = _folds._leading_eigenpairs(jnp.float32(matrix), 6)
    assert np.allclose(few[0], whole[0], rtol=1e-4)
    assert np.allclose(np.abs((few[1] * whole[1]).sum(axis=0)), 1, atol=1e-2)


def test_partners_are_found_and_the_choice_is_told(linear):
    x1, x2 = draw(5)
    assert recall(linear, x1, x2) > 0.9
    choice = linear.choice
    assert choice.chosen.recall >= max(t.recall for t in choice.trials) - 0.05
    assert "held-out information" in str(choice)
    assert linear.k == choice.chosen.k
    assert linear.take(2).evidence.reliability.shape == (2, 2)


def test_a_new_row_has_variance_one(linear):
    z, _ = pa.solver.posterior(linear, {0: draw(6, 3000)[0]})
    # 300 rows set the scale: the standard error of a variance is sqrt(2 / 300).
    assert np.allclose(np.var(z, axis=0)[:3], 1, atol=4 * np.sqrt(2 / 300))


def test_unrelated_views_are_said_to_be_so():
    rng = np.random.default_rng(0)
    x1, x2 = (rng.normal(size=(300, d)).astype(np.float32) for d in (5, 6))
    with pytest.warns(pa.CollapseWarning, match="agree"):
        alignment = pa.align((x1, x2), lift=None)
    assert float(np.max(alignment.reliability)) ** 2 < 4 / np.sqrt(300)
    reversed_ = np.concatenate([x1[:, :1], -x1[:, 1:]], axis=1)
    assert recall(alignment, x1, reversed_ @ np.eye(5, 6, dtype="f4")) < 0.1


def test_rows_of_any_length_are_compared_at_one():
    """Each view scales every row by a factor of its own: direction alone tells the pairs."""
    rng = np.random.default_rng(2)

    def scaled(seed):
        return [x * np.exp(rng.normal(size=(len(x), 1))).astype("f4") for x in draw(seed)]

    train, test = scaled(3), scaled(8)
    alignment = pa.align(train, lift=None)
    assert alignment.choice.chosen.lift.endswith("rows at one length")
    kept = dataclasses.replace(
        alignment, evidence=dataclasses.replace(alignment.evidence, unit=jnp.zeros(()))
    )
    assert recall(alignment, *test) > 2 * recall(kept, *test)  # 16 % and 4 %
    z1, z2 = pa.transform(alignment, test)
    rho = np.asarray(alignment.reliability[0]) ** 2
    lengths = np.linalg.norm(np.asarray(z1) / np.sqrt(rho / (1 - rho**2)), axis=1)
    assert np.allclose(lengths, np.sqrt(alignment.k), rtol=1e-4)
    assert pa.retrieval(z1, z2).recall_12[0] > 2 * recall(kept, *test)


@pytest.mark.slow
def test_a_kernel_is_chosen_where_no_line_helps():
    rng = np.random.default_rng(1)
    angle = rng.uniform(0, 2 * np.pi, 300)
    x1 = np.float32(np.column_stack([np.cos(angle), np.sin(angle)]))
    x2 = np.float32(np.column_stack([np.cos(3 * angle), np.sin(2 * angle)]))
    alignment = pa.align((x1, x2))
    assert alignment.choice.chosen.lift.startswith("gaussian")
    assert recall(alignment, x1, x2) > 3 * recall(pa.align((x1, x2), lift=None), x1, x2)


def test_fitted_lifts_are_used_as_they_are(linear):
    views = draw(0)
    lifts = [kernels.fit_standardise(x) for x in views]
    alignment = pa.align(views, lift=lifts, ridge=linear.choice.chosen.ridge)
    assert alignment.choice.chosen.lift == "given"
    assert np.allclose(alignment.coupling, linear.coupling[: alignment.k], atol=1e-4)


def test_a_joint_space_serves_any_subset():
    views = draw(3, views=3)
    alignment = pa.align(views, lift=None)
    test = draw(8, views=3)
    one = recall(alignment, test[0], test[2], target=2)
    both = recall(alignment, {0: test[0], 1: test[1]}, {2: test[2]})
    assert both >= one > 0.8
    latents = pa.encode(alignment, {0: test[0], 1: test[1]})
    assert latents.shape == (300, alignment.k)
    assert len(pa.transform(alignment, test)) == 3
    predicted = pa.predict(alignment, {0: test[0], 1: test[1]}, target=2)
    left = np.mean((np.asarray(predicted) - test[2]) ** 2)
    assert left < 0.2 * test[2].var()


def test_views_put_together_make_a_side():
    views, test = draw(3, views=3), draw(8, views=3)
    alignment = pa.align(views, sides=((2, 0), (1,)), lift=None)
    assert alignment.sides == ((0, 2), (1,))
    both = recall(alignment, {0: test[0], 2: test[2]}, {1: test[1]})
    assert both > 0.9
    # The same as one wide view, but for its scale.
    wide = pa.align((np.hstack([views[0], views[2]]), views[1]), lift=None)
    assert abs(recall(wide, np.hstack([test[0], test[2]]), test[1]) - both) < 0.05
    # A view of the side alone: the other is filled in, and less reliable.
    _, whole = pa.solver.posterior(alignment, {0: test[0], 2: test[2]})
    _, part = pa.solver.posterior(alignment, {0: test[0]})
    assert (np.asarray(part) <= np.asarray(whole) + 1e-6).all()
    assert recall(alignment, {0: test[0]}, {1: test[1]}) > 0.7


def test_groups_are_never_split(rng):
    groups = rng.permutation(np.repeat(np.arange(10), 30))
    plan = _selection.plan_rows(300, 5, groups, 2)
    rows = [set(row[row >= 0].tolist()) for row in plan.order]
    assert sum(map(len, rows)) == 300
    for group in range(10):
        members = set(np.flatnonzero(groups == group).tolist())
        assert sum(bool(members & fold) for fold in rows) == 1
    assert pa.align(draw(0), lift=None, groups=groups).k >= 3


def test_views_of_fewer_dimensions_than_features_have_finite_couplings(x64):
    """Eigenvalues that are zero come out a little below it; the root of that was NaN."""
    rng = np.random.default_rng(0)
    cross = jnp.asarray(rng.normal(size=(12, 3)) @ rng.normal(size=(3, 10)))
    whole = jnp.zeros((22, 22)).at[:12, 12:].set(cross).at[12:, :12].set(cross.T)
    found, _ = _folds._couple(whole, (12, 10), 10)
    expected = np.linalg.svd(np.asarray(cross), compute_uv=False)
    assert np.allclose(found, expected, atol=1e-6 * expected[0])  # zeros through squares: sqrt(eps)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_wrong_pairs_are_found(share):
    x1, x2 = draw(4, 600)
    rng = np.random.default_rng(5)
    wrong = np.zeros(600, bool)
    wrong[rng.permutation(600)[: int(share * 600)]] = True
    x2[wrong] = np.roll(x2[wrong], 1, axis=0)
    alignment = pa.align((x1, x2), lift=None, wrong_pairs=True)
    assert abs(1 - float(alignment.right_share) - share) < 0.03
    probability = np.asarray(alignment.right_probability)
    assert probability.shape == (600,)
    test = draw(7)
    clean = recall(pa.align(draw(4, 600), lift=None), *test)
    assert recall(alignment, *test) > clean - 0.015
    if share:
        order = probability[wrong][:, None] < probability[~wrong][None]
        assert order.mean() > 0.97  # area under the curve
        assert "wrong" in str(alignment.choice)


def test_wrong_pairs_do_not_spoil_views_that_determine_each_other():
    """The last wrong pairs cost most there, and the ridge that they called for does not stay."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(800, 24)) * 0.8 ** np.arange(24)
    views = [
        (z @ rng.normal(size=(24, d)) + 0.02 * rng.normal(size=(800, d))).astype(np.float32)
        for d in (40, 30)
    ]
    train, test = ([x[rows] for x in views] for rows in (slice(400), slice(400, None)))
    wrong = np.zeros(400, bool)
    wrong[rng.permutation(400)[:160]] = True
    second = train[1].copy()
    second[wrong] = np.roll(second[wrong], 1, axis=0)
    alignment = pa.align((train[0], second), lift=None, wrong_pairs=True)
    alone = pa.align([x[~wrong] for x in train], lift=None)
    assert abs(float(alignment.right_share) - 0.6) < 0.03
    assert recall(alignment, *test) > recall(alone, *test) - 0.04


def test_a_full_mask_changes_nothing():
    views = draw(3, views=3)
    given = {"sides": ((0, 2), (1,)), "lift": None, "ridge": 0.1}
    plain = pa.align(views, **given)
    masked = pa.align(views, mask=np.ones((300, 3), bool), **given)
    assert masked.k == plain.k
    for name in ("coupling", "reliability", "singular_values"):
        assert np.allclose(getattr(masked, name), getattr(plain, name), rtol=1e-3, atol=1e-3), name
    test = draw(8, views=3)
    for a, b in zip(pa.transform(masked, test), pa.transform(plain, test), strict=True):
        assert np.allclose(a, b, rtol=1e-2, atol=2e-2)
    assert np.allclose(
        pa.predict(masked, test[1], source=1, target=0),
        pa.predict(plain, test[1], source=1, target=0),
        atol=1e-2,
    )


@pytest.mark.slow
def test_missing_views_are_never_read_and_cost_little(rng):
    views, test = draw(3, views=3), draw(8, views=3)
    mask = rng.random((300, 3)) > 0.3
    mask[mask.sum(axis=1) == 0] = True
    broken = [np.where(seen[:, None], x, np.nan) for x, seen in zip(views, mask.T, strict=True)]
    sides = ((0, 2), (1,))
    few = pa.align(broken, mask=mask, sides=sides, lift=None)
    same = pa.align(broken, mask="nan", sides=sides, lift=None)
    assert same.choice == few.choice
    assert np.array_equal(same.reliability, few.reliability)
    ask = ({0: test[0], 2: test[2]}, {1: test[1]})
    full = pa.align(views, sides=sides, lift=None)
    assert recall(few, *ask) > recall(full, *ask) - 0.1
    assert "missing" in str(few.choice)


@pytest.mark.slow
def test_five_views_with_missing_ones_in_double_precision(rng, x64):
    wide, test = ([x.astype(np.float64) for x in draw(seed, 200, views=5)] for seed in (3, 8))
    missing = rng.random((200, 5)) < 0.4
    for x, gone in zip(wide, missing.T, strict=True):
        x[gone] = np.nan
    whole = draw(3, 200, views=5)
    sides = ((0, 1, 2, 3), (4,))
    given = {"lift": None, "ridge": 0.01, "sides": sides}
    few, full = pa.align(wide, mask="nan", **given), pa.align(whole, **given)
    assert few.reliability.dtype == np.float64
    ask = (dict(enumerate(test[:4])), {4: test[4]})
    assert recall(few, *ask) > recall(full, *ask) - 0.1


@pytest.mark.slow
def test_lifts_of_views_that_are_missing(rng):
    angle, wanted = rng.uniform(-3, 3, (300, 1)), rng.uniform(-3, 3, (60, 1))
    train, test = (
        (np.abs(a).astype(np.float32), np.hstack([np.cos(a), np.cos(2 * a)]).astype(np.float32))
        for a in (angle, wanted)
    )
    mask = rng.random((300, 2)) > 0.2
    mask[mask.sum(axis=1) == 0] = True
    lifts = [kernels.fit_nystroem(x, landmarks=30) for x in train]
    found = [pa.align(train, mask=mask, lift=lift) for lift in (None, lifts)]
    plain, lifted = (recall(alignment, *test) for alignment in found)
    assert lifted > plain + 0.2


@pytest.mark.slow
def test_the_lift_is_chosen_by_rows_without_gaps(monkeypatch):
    monkeypatch.setattr(_masked, "_MASKED", 16)
    views = draw(3)
    mask = np.ones((300, 2), bool)
    mask[::3, 0], mask[1::30, 1] = False, False
    tried = {trial.lift.split(",")[0] for trial in pa.align(views, mask=mask).choice.trials}
    assert tried == {"none", "gaussian"}
    mask[60:, 0] = np.arange(240) % 8 == 0
    few = pa.align(views, mask=mask)
    assert {trial.lift.split(",")[0] for trial in few.choice.trials} == {"none"}
    assert "rows without gaps are too few to choose a lift by" in str(few.choice)


@pytest.mark.slow
def test_rows_of_one_view_that_mislead_are_left_out(rng):
    x1, x2 = (np.concatenate(parts) for parts in zip(draw(3), draw(5), strict=True))
    x1[300:] = 30 * rng.normal(size=(300, 1)) * rng.normal(size=5)  # another population
    mask = np.column_stack([np.ones(600, bool), np.arange(600) < 300])
    alignment = pa.align((x1, x2), mask=mask, lift=None)
    assert "complete rows alone" in alignment.choice.chosen.lift
    assert recall(alignment, *draw(8)) > recall(pa.align(draw(3), lift=None), *draw(8)) - 0.03


def em_in_numpy(x, present, noise, steps):
    """EM row by row as in the textbook, on rows that carry noise of known variance."""
    mean, covariance = np.zeros(x.shape[1]), np.diag(noise + 1)
    for _ in range(steps):
        first, second = np.zeros_like(mean), np.zeros_like(covariance)
        for row, o in zip(x, present, strict=True):
            weights = np.linalg.solve(covariance[np.ix_(o, o)], covariance[o]).T
            gap = weights @ (row[o] - mean[o])
            first += gap
            second += np.outer(gap, gap) + weights @ np.diag(noise[o]) @ weights.T
            second += covariance - weights @ covariance[o]
        first, second = first / len(x), second / len(x)
        mean, covariance = mean + first, second - np.outer(first, first)
    return mean, covariance - np.diag(noise)


@pytest.mark.slow
def test_em_equals_the_textbooks(rng, x64):
    from perfalign_jax import _missing

    blocks = np.array([0, 0, 1, 2, 2])
    x = rng.normal(size=(120, 5)) @ rng.normal(size=(5, 5))
    seen = rng.random((120, 3)) > 0.4
    seen[seen.sum(axis=1) == 0, 1] = True
    present = seen[:, blocks]
    order = np.arange(120).reshape(2, 60)
    there = jnp.where(present, x, 0)
    patterns = _missing.of_rows(there, seen, blocks, order, jnp.ones(120))
    found = _missing.complete(patterns, blocks, 0.05)
    while found.change > 1e-9:
        found = _missing.complete(patterns, blocks, 0.05, found)
    assert found.cycles < 60  # of three steps: plain EM takes some 400
    for rows, ours in ((slice(0, 120), found[2:4]), (slice(60, 120), (found[0][0], found[1][0]))):
        mean, covariance = em_in_numpy(x[rows], present[rows], np.asarray(found.noise), 400)
        assert np.allclose(ours[0], mean, atol=1e-6)
        assert np.allclose(ours[1], covariance, atol=1e-6 * covariance.max())
    # Without missing entries nothing is estimated.
    all_seen = np.ones_like(seen)
    patterns = _missing.of_rows(jnp.asarray(x), all_seen, blocks, order, jnp.ones(120))
    found = _missing.complete(patterns, blocks, 0.05)
    assert np.allclose(found.covariance, np.cov(x.T, bias=True), atol=1e-9)


@pytest.mark.slow
def test_missing_views_of_real_things_cost_little():
    """Groups of measurements that determine each other closely, so that scales must be exact."""
    from sklearn.datasets import load_breast_cancer

    x = load_breast_cancer().data.astype(np.float32)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))
    train, test = ((x[rows, :10], x[rows, 20:]) for rows in (order[189:], order[:189]))
    mask = rng.random((len(train[0]), 2)) > 0.4
    mask[mask.sum(axis=1) == 0] = True
    few = pa.align(train, mask=mask, lift=None)
    alone = pa.align([part[mask.all(axis=1)] for part in train], lift=None)
    assert few.reliability.max() < 0.9995
    # Over 15 masks on five splits: -0.6 points on average, and 1.2 as standard deviation.
    assert recall(few, *test) > recall(alone, *test) - 0.05


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (np.ones((60, 3), bool), ValueError, r"mask must have shape \(n, M\) = \(60, 2\)"),
        (np.ones((60, 2)), TypeError, "mask must hold booleans"),
        ([[True], [True, False]], TypeError, "mask must be an array of booleans"),
        (np.arange(120).reshape(60, 2) % 2 == 0, ValueError, "mask must leave view 1 at least"),
        (
            np.column_stack([np.arange(60) < 30, np.arange(60) >= 30]),
            ValueError,
            "view 0 is always alone",
        ),
    ],
)
def test_bad_masks_are_named(mask, error, words):
    with pytest.raises(error, match=words):
        pa.align(draw(0, 60), mask=mask)


def test_masks_that_leave_too_little_are_refused():
    halves = np.arange(60)[:, None] % 2 == np.array([[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="nothing links view 0 to 2, 3"):
        pa.align(draw(0, 60, views=4), mask=halves)
    mask = np.column_stack([np.arange(60) < 33, np.arange(60) >= 30])
    with pytest.raises(ValueError, match="at least two rows with two sides in each of the 5 folds"):
        pa.align(draw(0, 60), mask=mask)
    mask = np.arange(60)[:, None] % 3 != np.array([[0, 1]])
    without = (~mask.all(axis=1)).astype("f4")
    with pytest.raises(ValueError, match="view 0 is always alone"):
        pa.align(draw(0, 60), mask=mask, weights=without)
    x1, x2 = draw(0, 60)
    with pytest.raises(ValueError, match="x2 must vary"):
        pa.align((x1, 0 * x2), mask=mask)
    with pytest.raises(ValueError, match="mask must be None under jit"):
        jax.jit(lambda m: pa.align((x1, x2), mask=m, lift=None, ridge=0.1, k=2))(mask)


def test_bad_views_beside_a_mask_are_named():
    x1, x2 = draw(0, 60)
    with pytest.raises(ValueError, match="x1 and x2 must have the same number of rows"):
        pa.align((x1, x2[1:]), mask=np.ones((60, 2), bool))
    x1[7, 2] = np.nan
    with pytest.raises(ValueError, match="x1 must be finite, but row 7"):
        pa.align((x1, x2), mask="nan")
    with pytest.raises(ValueError, match="mask must be one of 'nan', got 'auto'"):
        pa.align((x1, x2), mask="auto")


@pytest.mark.slow
def test_weights_are_repeated_rows():
    x1, x2 = draw(9, 150)
    twice = [np.repeat(x, 2, axis=0) for x in (x1, x2)]
    given = {"lift": None, "ridge": 0.1, "k": 3}
    weighted = pa.align((x1, x2), weights=np.full(150, 2, np.float32), **given)
    plain = pa.align((x1, x2), **given)
    assert np.allclose(weighted.coupling, plain.coupling, atol=1e-5)
    repeated = pa.align(twice, groups=np.repeat(np.arange(150), 2), **given)
    assert np.allclose(weighted.coupling, repeated.coupling, atol=1e-4)
    # Other spreads and other means, by which features are standardised.
    counts = np.random.default_rng(0).integers(1, 4, 150) ** 2
    weighted = pa.align((x1, x2), weights=counts.astype(np.float32), **given)
    groups = np.repeat(np.arange(150), counts)
    repeated = pa.align([np.repeat(x, counts, axis=0) for x in (x1, x2)], groups=groups, **given)
    assert np.allclose(weighted.coupling, repeated.coupling, atol=1e-4)
    assert np.allclose(weighted.lifts[0].mean, repeated.lifts[0].mean, atol=1e-5)


def test_rows_of_weight_zero_are_not_there():
    views = draw(5, 200)
    there = np.flatnonzero(np.arange(200) // 5 % 4 != 0)  # whole rows of every fold
    weights = np.random.default_rng(0).uniform(0.5, 1.5, 200).astype(np.float32)
    weights[np.setdiff1d(np.arange(200), there)] = 0
    wild = [x.copy() for x in views]
    for x in wild:
        x[weights == 0] *= 1e5
    options = {"lift": None, "groups": np.arange(200) // 2}
    few = pa.align(
        [x[there] for x in views],
        weights=weights[there],
        lift=None,
        groups=options["groups"][there],
    )
    for ours in (
        pa.align(views, weights=weights, **options),
        pa.align(wild, weights=weights, **options),
    ):
        for path, value in jax.tree.leaves_with_path(few):
            found = dict(jax.tree.leaves_with_path(ours))[path]
            assert np.array_equal(value, found), path
    # How probably a pair is right is also said of those that were left out.
    x1, x2 = views
    broken = np.where(np.arange(200)[:, None] % 10 == 0, np.roll(x2, 7, axis=0), x2)
    found = pa.align((x1, broken), weights=weights, lift=None, wrong_pairs=True)
    right = np.arange(200) % 10 != 0
    assert found.right_probability.shape == (200,)
    assert found.right_probability[right].mean() > 0.9
    assert found.right_probability[~right].mean() < 0.2
    assert found.right_probability[~right & (weights == 0)].mean() < 0.3


def test_wrong_pairs_are_found_in_groups_of_any_size():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(600, 3))
    x1, x2 = (np.float32(z @ rng.normal(size=(3, d)) + rng.normal(size=(600, d))) for d in (5, 6))
    wrong = rng.permutation(600)[:120]
    x2[wrong] = np.roll(x2[wrong], 1, axis=0)
    groups = np.repeat(np.arange(6), [400, 40, 40, 40, 40, 40])
    found = pa.align((x1, x2), lift=None, ridge=0.03, k=3, groups=groups, wrong_pairs=True)
    assert float(found.right_share) == pytest.approx(0.8, abs=0.05)
    right = np.ones(600)
    right[wrong] = 0
    # Brier score; 0.16 says of every pair that it is right with probability 0.8.
    assert np.mean((np.asarray(found.right_probability) - right) ** 2) < 0.12


@pytest.mark.slow
def test_a_fold_without_complete_rows_chooses_no_lift():
    views = draw(0, 200, views=3)
    mask = np.ones((200, 3), bool)
    mask[::5, 2] = False
    alignment = pa.align(views, mask=mask, lift="linear")
    assert "too few to choose a lift by" in str(alignment.choice)
    assert recall(alignment, {0: views[0]}, {1: views[1]}) > 0.5


@pytest.mark.slow
def test_a_view_that_is_missing_for_a_reason_is_predicted_without_bias():
    """Seen where its latent is positive alone, it is predicted where it is negative."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(900, 1))
    whole = tuple(
        np.float32(z @ rng.normal(size=(1, 3)) + 0.1 * rng.normal(size=(900, 3))) for _ in range(3)
    )
    up = z[:, 0] > 0
    mask = np.stack([np.ones(900, bool), up, ~up], axis=1)
    views = tuple(
        np.where(m[:, None], x, np.float32(0)) for x, m in zip(whole, mask.T, strict=True)
    )
    alignment = pa.align(views, mask=mask, lift=None, ridge=0.01, k=1)
    found = np.asarray(pa.predict(alignment, whole[0][~up], source=0, target=1))
    error, spread = found - whole[1][~up], whole[1][~up].std()
    assert np.abs(error.mean(axis=0)).max() < 0.1 * spread
    assert error.std() < 0.3 * spread


def test_sides_of_one_view_each_may_come_in_any_order():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(400, 2))
    noises = (0.1, 0.1, 3.0)
    views = tuple(np.float32(z + s * rng.normal(size=(400, 2))) for s in noises)
    plain = pa.align(views, lift=None, ridge=0.1, k=2)
    turned = pa.align(views, lift=None, ridge=0.1, k=2, sides=((2,), (1,), (0,)))
    for m, x in enumerate(views):
        (_, one), (_, other) = (solver.posterior(a, {m: x[:5]}) for a in (plain, turned))
        np.testing.assert_allclose(one, other, rtol=1e-3)


def test_couplings_of_three_sides_are_correlations_with_the_ridge():
    """As of two sides: the cross-covariance over the variances, each with its ridge."""
    rng = np.random.default_rng(4)
    z = rng.normal(size=(4000, 1))
    views = tuple(np.float32(0.8 * z + 0.6 * rng.normal(size=(4000, 1))) for _ in range(3))
    found = [float(pa.align(v, lift=None, ridge=1.0, k=1).coupling[0]) for v in (views, views[:2])]
    np.testing.assert_allclose(found, 0.64 / 2, atol=0.02)  # correlation 0.64, variances 1 + 1


def test_nan_finds_no_partner():
    scores = np.full((1, 3, 3), np.nan)
    valid = np.ones((1, 3), bool)
    assert not _selection._first(scores, valid).any()
    assert not np.asarray(_selection._first(jnp.asarray(scores), jnp.asarray(valid))).any()


@pytest.mark.slow
def test_a_tiny_ridge_and_more_features_than_rows_beside_a_mask():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 5))
    views = [np.float32(z @ rng.normal(size=(5, 40)) + rng.normal(size=(50, 40))) for _ in "ab"]
    mask = np.ones((50, 2), bool)
    mask[0, 1] = False
    alignment = pa.align(tuple(views), mask=mask, lift=None, ridge=1e-9)
    assert all(np.isfinite(a).all() for a in alignment.projections)


def test_wrong_pairs_are_compared_at_one_length_where_the_choice_says_so():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(400, 6))
    lengths = np.exp(rng.normal(size=(2, 400, 1)))
    views = tuple(
        np.float32(s * (z @ rng.normal(size=(6, 8)) + 0.5 * rng.normal(size=(400, 8))))
        for s in lengths
    )
    for options in ({"lift": "linear", "ridge": 0.1, "k": 6}, {"lift": "linear"}):
        alignment = pa.align(views, wrong_pairs=True, **options)
        named = alignment.choice.chosen.lift.count("rows at one length")
        assert named == float(alignment.evidence.unit)


def test_one_statistic_counts_directions_and_not_columns():
    rng = np.random.default_rng(2)
    z = rng.normal(size=(500, 2))
    x1, x2 = (np.float32(np.hstack([z, rng.normal(size=(500, 4))])) for _ in range(2))
    again = np.hstack([x2, np.repeat(x2[:, :1], 600, axis=1)])  # of the same rank
    plain, wide = (pa.align(pa.statistics.from_views((x1, x))) for x in (x2, again))
    assert plain.k == wide.k == 2
    np.testing.assert_allclose(wide.reliability, plain.reliability, atol=1e-3)


@pytest.mark.slow
def test_a_constant_feature_has_a_gradient():
    x1, x2 = (jnp.asarray(x) for x in draw(0, 60))
    x1 = x1.at[:, 2].set(1.0)
    slope = jax.grad(lambda x: pa.align((x, x2), lift=None, ridge=0.1, k=2).coupling.sum())(x1)
    assert np.isfinite(slope).all()
    assert np.abs(np.asarray(slope)[:, 0]).max() > 0


def test_a_tiny_ridge_on_equal_features_fills_in_what_is_finite():
    x1, x2, x3 = draw(0, 200, views=3)
    twice = np.concatenate([x1, x1[:, :1], x1[:, :1]], axis=1)
    alignment = pa.align((twice, x2, x3), sides=((0, 1), (2,)), lift=None, ridge=1e-10, k=3)
    assert np.isfinite(pa.encode(alignment, {0: twice})).all()


def test_statistics_of_few_rows_have_as_many_axes_as_the_others_determine():
    rng = np.random.default_rng(0)
    parts = [
        pa.statistics.from_views(tuple(rng.normal(size=(2, 12, 60)).astype(np.float32)))
        for _ in range(2)
    ]
    assert pa.align(parts, ridge=0.1, k=30).k <= 11


@pytest.mark.slow
def test_statistics_of_parts_are_folds():
    views = draw(0)
    parts = [pa.statistics.from_views([x[i::5] for x in views]) for i in range(5)]
    alignment = pa.align(parts, ridge=0.1)
    rows = pa.align(views, lift=None, ridge=0.1)
    assert np.allclose(alignment.coupling[:3], rows.coupling[:3], atol=1e-3)
    test = draw(5)
    assert abs(recall(alignment, *test) - recall(rows, *test)) < 0.03
    assert np.allclose(
        pa.predict(alignment, test[0], source=0, target=1),
        pa.predict(rows, test[0], source=0, target=1),
        atol=0.1,
    )
    assert "moments alone" in str(pa.align(parts).choice)


@pytest.mark.slow
def test_one_statistic_is_weighed_by_theory():
    views = draw(0, 1000)
    alignment = pa.align(pa.statistics.from_views(views))
    rows = pa.align(views, lift=None)
    assert alignment.k == 3
    assert np.allclose(alignment.reliability[0], rows.reliability[0, :3], atol=0.05)
    assert "theory" in str(alignment.choice)


GIVEN = {"lift": None, "ridge": 0.1, "k": 3}
APART = np.stack([np.ones(300, bool), np.arange(300) % 2 > 0, np.arange(300) % 2 < 1], axis=1)
SOME = np.arange(300)[:, None] % 7 != np.array([[0, 1, 2]])  # rows of whole and of missing views


@pytest.mark.slow
@pytest.mark.parametrize(
    ("views", "options"),
    [
        (2, {"lift": "linear"}),
        (2, {"lift": None, "wrong_pairs": True}),
        (3, {"lift": None, "sides": ((0, 2), (1,))}),
        (3, {"lift": None, "weights": True, "groups": np.arange(300) // 4}),
        (2, {"lift": "linear", "mask": SOME[:, :2]}),
        (3, {"lift": None, "sides": ((0, 2), (1,)), "mask": SOME}),
    ],
)
def test_on_the_host_it_is_what_xla_computes(views, options, monkeypatch):
    rows = draw(3, views=views)
    if "weights" in options:
        weights = np.random.default_rng(0).uniform(0.5, 2, 300).astype(np.float32)
        options = options | {"weights": weights}
    host = pa.align(rows, **options)
    monkeypatch.setattr(automatic, "at_hand", lambda arrays: tuple(map(jnp.asarray, arrays)))
    other = pa.align(rows, **options)
    for name in ("ridge", "k", "lift"):
        assert getattr(host.choice.chosen, name) == getattr(other.choice.chosen, name)
    ours, theirs = (
        [e.reliability, e.slope, e.offset, e.explained] for e in (host.evidence, other.evidence)
    )
    # Sums of some hundred terms in float32, and slopes found by as many steps.
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
    for a, b in zip(pa.transform(host, rows), pa.transform(other, rows), strict=True):
        # Lengths go as 1 / sqrt(1 - r), of what float32 leaves of 1 - r.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * np.abs(a).max())
    if host.evidence.right_probability is not None:
        pairs = [e.right_probability for e in (host.evidence, other.evidence)]
        np.testing.assert_allclose(*pairs, rtol=0, atol=5e-3)


@pytest.mark.slow
def test_views_that_are_never_together_are_on_the_host_what_xla_computes(x64, monkeypatch):
    """In float64: what couples such views is the third alone, and float32 leaves three digits."""
    rows = [x.astype(float) for x in draw(3, views=3)]
    given = {"lift": None, "mask": APART, "weights": np.random.default_rng(0).uniform(0.5, 2, 300)}
    host = pa.align(rows, **given)
    monkeypatch.setattr(automatic, "at_hand", lambda arrays: tuple(map(jnp.asarray, arrays)))
    other = pa.align(rows, **given)
    for a, b in zip(pa.transform(host, rows), pa.transform(other, rows), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7 * np.abs(a).max())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_units_change_nothing(scale):
    x1, x2 = draw(3)
    one, other = (pa.align((x * np.float32(s), x2), lift=None) for x, s in ((x1, 1), (x1, scale)))
    np.testing.assert_allclose(other.reliability, one.reliability, rtol=1e-4)


def test_statistics_of_any_arrays_are_folds_and_too_large_ones_are_refused():
    views = draw(4)
    parts = [pa.statistics.from_views(tuple(x[f::5] for x in views)) for f in range(5)]
    one, other = (pa.align(p, lift=None, ridge=0.1, k=3) for p in (parts, jax.device_get(parts)))
    np.testing.assert_array_equal(one.reliability, other.reliability)
    large = [pa.statistics.from_views((x1 * np.float32(1e19), x1)) for x1 in (views[0], views[0])]
    with pytest.raises(ValueError, match="too large to square"):
        pa.align(large, ridge=0.1, k=2)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"lift": "auto"}, set()),
        ({"mask": SOME[:120, :2], "lift": None}, {"_moments", "_start", "_cycle"}),
    ],
)
def test_on_the_host_nothing_is_compiled_but_em(options, needed):
    compiled = []

    def listen(name, _, **what):
        if name.endswith("backend_compile_duration"):
            compiled.append(what["fun_name"].removeprefix("jit(").rstrip(")"))

    def told_apart(x):
        return x + 1

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        pa.align(draw(3, n=120), **options)
        jax.jit(told_apart)(1.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # Copies of what was found, the rounding of a size, and what shows that the listener listens.
    copies = {"stage", "broadcast_in_dim", "convert_element_type"}
    assert "told_apart" in compiled
    assert set(compiled) <= {"rounding", "told_apart"} | copies | needed


def test_jit_and_vmap_equal_eager():
    views = draw(0)
    eager = pa.align(views, **GIVEN)
    jitted = jax.jit(lambda *views: pa.align(views, **GIVEN))(*views)
    for name in ("coupling", "singular_values", "reliability"):
        assert np.allclose(getattr(jitted, name), getattr(eager, name), rtol=1e-3, atol=1e-3)
    both = jax.vmap(lambda ridge: pa.align(views, lift=None, ridge=ridge, k=3).coupling)(
        jnp.array([0.1, 1.0])
    )
    assert np.allclose(both[0], eager.coupling, atol=1e-4)
    with pytest.raises(ValueError, match="under jit, vmap and grad"):
        jax.jit(lambda *views: pa.align(views, ridge=0.1, k=3))(*views)


def test_the_gradient_of_held_out_information_is_that_of_finite_differences(x64):
    views = tuple(jnp.asarray(x, jnp.float64) for x in draw(1, noise=1.0))

    def tell(ridge):
        r = pa.align(views, lift=None, ridge=ridge, k=2).reliability.prod(axis=0)
        return -jnp.log1p(-(r**2)).sum() / 2

    step, slope = 1e-5, jax.jit(jax.grad(tell))
    difference = float(tell(0.3 + step) - tell(0.3 - step)) / (2 * step)
    assert float(slope(0.3)) == pytest.approx(difference, rel=1e-4)
    assert np.isfinite(slope(1e-3))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    views = draw(3, views=3)
    lifts = [kernels.fit_nystroem(x, landmarks=20) for x in views]
    alignment = pa.align(views, sides=((0, 2), (1,)), lift=lifts, ridge=0.1, wrong_pairs=True)
    pa.save(alignment, tmp_path / "a.safetensors")
    loaded = pa.load(tmp_path / "a.safetensors")
    assert str(loaded.choice) == str(alignment.choice)
    assert loaded.sides == alignment.sides
    saved, kept = (jax.tree.flatten_with_path(a)[0] for a in (loaded, alignment))
    for (path, value), (_, expected) in zip(saved, kept, strict=True):
        assert np.array_equal(value, expected), path
    rows = {0: views[0], 2: views[2]}
    assert np.array_equal(pa.encode(alignment, rows), pa.encode(loaded, rows))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sides": ((0,), (0, 1))}, ValueError, "sides must be two or more groups"),
        ({"sides": ((0, 1),)}, ValueError, "sides must be two or more groups"),
        ({"sides": 3}, TypeError, "sides must be a tuple of tuples"),
        ({"lift": "cosine"}, ValueError, "lift must be one of 'auto'"),
        ({"lift": (1, 2)}, TypeError, "lift must be a word, None, or 2 fitted lifts"),
        ({"ridge": -1.0}, ValueError, "ridge must be above zero"),
        ({"ridge": "best"}, ValueError, "ridge must be one of 'auto'"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 2.5}, TypeError, "k must be an integer"),
        ({"folds": 1}, ValueError, "folds must be between 2 and 100"),
        ({"folds": 40}, ValueError, "at least 2 rows for each of the 40 folds, got 60"),
        ({"groups": np.zeros(60)}, ValueError, "groups must have at least folds = 5 different"),
        ({"groups": np.zeros(5)}, ValueError, r"groups must have shape \(60,\)"),
        ({"weights": -np.ones(60, "f4")}, ValueError, "weights must not be negative"),
    ],
)
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        pa.align(draw(0, 60), **options)


def test_bad_sides_groups_and_weights_are_named():
    views = draw(0)
    with pytest.raises(TypeError, match="sides must be a tuple of tuples"):
        pa.align(views, sides="ab")
    with pytest.raises(TypeError, match="groups must be of one kind"):
        pa.align(views, groups=np.array(["a", None] * 150, object))
    with pytest.raises(ValueError, match="weights must be above zero for at least 2 rows"):
        pa.align(views, weights=np.zeros(300, np.float32))
    with pytest.raises(ValueError, match="data must be views under jit"):
        jax.jit(lambda s: pa.align([s, s], ridge=0.1, k=2).projections)(
            pa.statistics.from_views(views)
        )


def test_no_lift_is_taken_where_it_has_nothing_left_to_improve():
    """All held-out rows find their partners without one; new rows are then predicted better."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(1400, 8))
    x1, x2 = (
        np.float32(z @ rng.normal(size=(8, d)) + 0.3 * rng.normal(size=(1400, d))) for d in (20, 30)
    )
    alignment = pa.align((x1[:400], x2[:400]))
    assert alignment.choice.chosen.lift.startswith("none")
    assert "linear ones" in alignment.choice.reason
    left = pa.predict(alignment, x1[400:], source=0, target=1) - x2[400:]
    # What noise of 0.3 on both sides leaves of rows that spread by 8^0.5.
    assert np.mean(np.square(left)) < 0.03 * np.var(x2)
    assert np.min(pa.log_odds(alignment, x1[400:], x2[400:])) > 0


def test_pairs_that_are_all_wrong_are_said_to_be():
    x1, x2 = draw(0, 200)
    with pytest.warns(pa.CollapseWarning, match="unrelated|no axis"):
        alignment = pa.align((x1, np.roll(x2, 1, axis=0)), lift=None, wrong_pairs=True)
    assert float(alignment.right_share) == 0
    np.testing.assert_array_equal(alignment.right_probability, 0)


def test_variances_are_those_of_any_units():
    x1, x2 = draw(0, 100)
    large = [np.float32(1e18) * x for x in (x1, x2)]
    near, far = (pa.align(v, lift=None, ridge=0.01, k=2) for v in ((x1, x2), large))
    expected, variance = pa.predict(near, x1, source=0, target=1, variance=True)
    found, left = pa.predict(far, large[0], source=0, target=1, variance=True)
    np.testing.assert_allclose(found / np.float32(1e18), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(left / np.float32(1e36), variance, rtol=1e-3)


def test_bad_data_is_named():
    x1, x2 = draw(0, 60)
    with pytest.raises(ValueError, match="groups must not hold NaN, got 1 of them"):
        pa.align((x1, x2), groups=np.where(np.arange(60) == 7, np.nan, np.arange(60) % 6))
    with pytest.raises(ValueError, match="x2 must vary, but all its 60 rows are the same"):
        pa.align((x1, np.ones_like(x2)))
    with pytest.raises(ValueError, match="same number of rows"):
        pa.align((x1, x2[:50]))
    broken = x1.copy()
    broken[7, 1] = np.nan
    with pytest.raises(ValueError, match="x1 must be finite, but row 7 has NaN"):
        pa.align((broken, x2))
    parts = [pa.statistics.from_views((x1[:30], x2[:30])), pa.statistics.from_views((x1, x1))]
    with pytest.raises(ValueError, match=r"data\[1\] must have \(5, 6\) features"):
        pa.align(parts)
    with pytest.raises(ValueError, match="lift must be None with statistics"):
        pa.align(parts[0], lift="gaussian")
    with pytest.raises(ValueError, match="wrong_pairs must be False with statistics"):
        pa.align(parts[0], wrong_pairs=True)
    with pytest.raises(ValueError, match="one statistic: n must be above"):
        pa.align(pa.statistics.from_views((x1[:9], x2[:9])))
    shuffled = np.random.default_rng(0).permutation(60)
    with warnings.catch_warnings():  # all pairs wrong: an answer, with whatever warning
        warnings.simplefilter("ignore", pa.CollapseWarning)
        alignment = pa.align((x1, x2[shuffled]), lift=None, wrong_pairs=True)
    assert np.isfinite(np.asarray(alignment.right_probability)).all()


@pytest.mark.parametrize("seed", range(3))
def test_directions_in_which_no_row_moves_are_no_axes(seed):
    """In float32, where moments give them what rounding leaves of the largest."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(10, 0.1, 97)
    z = rng.normal(size=(600, 97)) * spread
    maps = [np.linalg.qr(rng.normal(size=(100, 97)))[0].T for _ in range(2)]
    x1, x2 = (np.float32((z + 0.05 * rng.normal(size=z.shape)) @ a) for a in maps)
    alignment = pa.align((x1, x2), lift="linear", ridge=0.1, k=100)
    assert alignment.k <= 97, alignment.k
    moved = x1 + np.float32(0.1 * rng.normal(size=x1.shape))  # in all directions
    before, after = (np.std(pa.encode(alignment, x, view=0), axis=0) for x in (x1, moved))
    assert (after / before).max() < 2
    left = pa.predict(alignment, moved, source=0, target=1) - x2
    assert np.mean(np.square(left)) < 0.1 * np.mean(np.var(x2, axis=0))
