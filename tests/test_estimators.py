"""Estimators: as the functions, for every kind of table, in searches and pipelines."""

import copy
import importlib
import pickle
import sys
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import estimator_checks

import perfalign_jax as pa
from perfalign_jax.estimators import EvidenceAlignment, PerfectAlignment, ViewEncoder

PERFECT = {"k": 2, "select": "energy"}
EVIDENCE = {"sides": ((0, 1), (2,)), "lift": None, "ridge": 0.1, "k": 2, "folds": 2}
WIDTHS = (3, 4, 3)
KINDS = ["numpy", "jax", "pandas", "polars", "torch"]


def draw(dtype=np.float64, *, noise=0.0):
    """Three views of two shared dimensions, 60 rows."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(60, 2))
    views = (z @ rng.normal(size=(2, d)) + noise * rng.normal(size=(60, d)) for d in WIDTHS)
    return tuple(x.astype(dtype) for x in views)


def to_kind(kind, x, name):
    if kind == "jax":
        return jnp.asarray(x)
    if kind == "numpy":
        return x
    module = pytest.importorskip(kind)
    if kind == "torch":
        return module.from_numpy(x.copy())
    columns = [f"{name}{j}" for j in range(x.shape[1])]
    if kind == "polars":
        return module.DataFrame(x, schema=columns)
    return module.DataFrame(x, columns=columns, index=np.arange(len(x)) + 100)


# scikit-learn's own checks. `energy` because a trailing direction of a larger null space is any one
# of it, so that repeated rows need not give what weights give. `check_array_api_input` skips itself
# unless SciPy's array API is switched on by SCIPY_ARRAY_API when it is imported.
CHECKED = PerfectAlignment(k=1, select="energy", widths=(-1, 1))
WEIGHTS = "folds are made of rows, and repeated rows fall into other folds than weights do"
EXPECTED = {
    "ViewEncoder": {
        "check_transformer_general": "X without its last column is the view alone, and welcome",
    },
    "EvidenceAlignment": {"check_sample_weight_equivalence_on_dense_data": WEIGHTS},
}


def list_expected(estimator):
    return EXPECTED.get(type(estimator).__name__, {})


@pytest.mark.slow
@estimator_checks.parametrize_with_checks(
    [
        CHECKED,
        ViewEncoder(CHECKED),
        EvidenceAlignment(lift=None, ridge=0.1, k=1, folds=2, widths=(-1, 1)),
    ],
    expected_failed_checks=list_expected,
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_finds_its_conventions_kept(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_transformer_get_feature_names_out,
        estimator_checks.check_transformer_get_feature_names_out_pandas,
        estimator_checks.check_dataframe_column_names_consistency,
        estimator_checks.check_set_output_transform,
        estimator_checks.check_set_output_transform_pandas,
        estimator_checks.check_set_output_transform_polars,
        estimator_checks.check_global_output_transform_pandas,
        estimator_checks.check_global_set_output_transform_polars,
    ],
)
@pytest.mark.parametrize("estimator", [CHECKED, ViewEncoder(CHECKED)], ids=["all", "one"])
@pytest.mark.filterwarnings("ignore")
def test_names_and_frames_are_as_scikit_learn_wants_them(estimator, check):
    check(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize(
    ("model", "function"),
    [
        (PerfectAlignment(**PERFECT), lambda views: pa.fit(views, **PERFECT)),
        pytest.param(
            EvidenceAlignment(**EVIDENCE),
            lambda views: pa.align(views, **EVIDENCE),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["perfect", "evidence"],
)
def test_float64_is_computed_whatever_the_flag_and_as_the_functions_do(model, function):
    views = draw(noise=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to say of precision
        latents = model.fit_transform(views)
    assert not jax.config.jax_enable_x64
    with jax.enable_x64(True):
        alignment = function(views)
        chex.assert_trees_all_equal(model.alignment_, alignment)
        expected = pa.transform(alignment, views)
        guess = pa.predict(alignment, views[0], source=0, target=1)
        alone = pa.encode(alignment, views[2], view=2)
    np.testing.assert_array_equal(latents, expected)
    np.testing.assert_array_equal(model.predict(views[0]), guess)
    np.testing.assert_array_equal(model.encode(views[2], view=2), alone)
    # One table of all columns is the same views.
    table = np.hstack(views)
    joined = clone(model).set_params(widths=(3, -1, 3)).fit(table)
    np.testing.assert_array_equal(joined.transform(table), np.hstack(latents))
    np.testing.assert_array_equal(joined.transform(views), latents)
    np.testing.assert_array_equal(joined.encode(table, view=2), alone)
    np.testing.assert_array_equal(joined.predict(table), guess)
    np.testing.assert_array_equal(model.transform(table), np.hstack(latents))
    assert joined.score(table) == model.score(views)
    assert joined.n_features_in_ == model.n_features_in_ == 10


@pytest.mark.filterwarnings("ignore::perfalign_jax.CollapseWarning")
def test_every_other_dtype_has_its_place():
    x1, _, x3 = draw(noise=0.1)
    model = PerfectAlignment(**PERFECT)
    single = draw(np.float32, noise=0.1)
    assert {z.dtype for z in model.fit_transform(single)} == {np.dtype(np.float32)}
    # Rows more precise than the alignment raise it, less precise ones are raised.
    assert model.encode(x1, view=0).dtype == np.float64
    model.fit((x1, single[1], x3))
    assert model.alignment_.offset.dtype == np.float64
    assert model.encode(single[0], view=0).dtype == np.float64
    for kind in (np.int32, np.float16, bool):
        assert model.encode((5 * x1).astype(kind), view=0).dtype == np.float64
    assert model.encode(jnp.asarray(x1, jnp.bfloat16), view=0).dtype == np.float64


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_in_comes_out(kind, x64):
    plain = draw()
    views = tuple(to_kind(kind, x, f"v{m}_") for m, x in enumerate(plain))
    model = PerfectAlignment(**PERFECT, widths=WIDTHS)
    expected = model.fit_transform(plain)
    latents = model.fit_transform(views)
    guess = model.predict(views[0])
    results = [*latents, model.encode(views[1], view=1), guess]
    for found, right in zip(results, [*expected, expected[1], plain[1]], strict=True):
        assert isinstance(found, jax.Array if kind == "jax" else type(views[0]))
        assert "float64" in str(getattr(found, "dtype", "float64"))
        np.testing.assert_allclose(np.asarray(found), right, atol=1e-12)  # rounding
    table = to_kind(kind, np.hstack(plain), "t")
    found = model.fit_transform(table)
    assert isinstance(found, jax.Array if kind == "jax" else type(table))
    np.testing.assert_array_equal(np.asarray(found), np.hstack(expected))
    if kind in ("pandas", "polars"):
        assert [*found.columns] == [*model.get_feature_names_out()]
        assert [*latents[1].columns] == ["view1_latent0", "view1_latent1"]
        assert [*guess.columns] == ["v1_0", "v1_1", "v1_2", "v1_3"]  # of the view predicted
    if kind == "pandas":
        assert all((x.index == views[0].index).all() for x in results)
    if kind in ("numpy", "torch"):
        found[0, 0] = 1  # a copy of one's own


def test_one_kind_for_all_output():
    pandas = pytest.importorskip("pandas")
    views = draw()
    model = PerfectAlignment(**PERFECT).fit(views)
    model.set_output(transform="pandas")
    for m, z in enumerate(clone(model).fit_transform(views)):
        assert isinstance(z, pandas.DataFrame)
        assert [*z.columns] == [f"view{m}_latent0", f"view{m}_latent1"]
    assert isinstance(model.encode(views[0], view=0), np.ndarray)
    encoder = ViewEncoder(FrozenEstimator(model)).set_output(transform="pandas").fit(views[0])
    assert [*encoder.transform(views[0]).columns] == ["latent0", "latent1"]
    model.set_output(transform="default").set_output()
    assert isinstance(model.transform(views)[0], np.ndarray)
    with sklearn.config_context(transform_output="pandas"):
        assert isinstance(PerfectAlignment(**PERFECT).fit_transform(views)[0], pandas.DataFrame)
        assert isinstance(model.transform(views)[0], np.ndarray)  # its own word goes first


def test_columns_must_be_those_of_the_fit():
    pytest.importorskip("pandas")
    views = tuple(to_kind("pandas", x, f"v{m}_") for m, x in enumerate(draw()))
    model = PerfectAlignment(**PERFECT).fit(views)
    assert [*model.feature_names_in_] == [c for x in views for c in x.columns]
    turned = views[1][views[1].columns[::-1]]
    for call in (
        lambda: model.encode(turned, view=1),
        lambda: model.transform((views[0], turned, views[2])),
        lambda: model.predict(turned, source=1, target=0),
    ):
        with pytest.raises(ValueError, match=r"columns of view 1 must be those of the fit.*v1_3"):
            call()
    assert not hasattr(model.fit(draw()), "feature_names_in_")


def gaussian_pair(correlation, n=500):
    rng = np.random.default_rng(3)
    x1 = rng.normal(size=(n, 1))
    noise = np.sqrt(1 - correlation**2) * rng.normal(size=(n, 1))
    return x1, correlation * x1 + noise


@pytest.fixture(scope="module")
def twins():
    """The map of both views to themselves, so that latents are what is given."""
    x = np.random.default_rng(0).normal(size=(60, 1))
    return PerfectAlignment(k=1).fit((x, x))


def test_the_score_is_a_lower_bound_of_the_information(twins):
    x1, x2 = gaussian_pair(0.95)
    information = -np.log(1 - 0.95**2) / 2
    score = twins.score((x1, x2))
    # Five standard errors of the sample's own information (a nat a row), one slope for all rows.
    assert 0.8 * information < score < information + 5 / np.sqrt(500)
    assert twins.score((x1, x1)) == pytest.approx(np.log(500), rel=0.01)  # near rows may tie
    assert twins.score((1e3 * x1 + 7e3, 1e3 * x2 + 7e3)) == pytest.approx(score, rel=1e-6)
    assert abs(twins.score(gaussian_pair(0.0))) < 0.02  # the slope goes to its flattest
    assert twins.score((0 * x1, 0 * x1)) == pytest.approx(0, abs=1e-9)  # collapsed
    assert isinstance(score, float)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certainty_is_the_most_that_is_told(dtype):
    views = draw(dtype)
    for k in (1, 2):
        model = PerfectAlignment(k=k, select="energy").fit(views)
        excess = model.score(views) - np.log(60)
        assert -0.2 < excess < 1e-6  # near rows tie; the unit hides rounding


def test_the_score_of_many_rows_compares_some_of_them(twins, monkeypatch):
    x1, x2 = gaussian_pair(0.95)
    monkeypatch.setattr("perfalign_jax.estimators._CANDIDATES", 500)
    some = twins.score((np.repeat(x1, 2, axis=0)[:999], np.repeat(x2, 2, axis=0)[:999]))
    assert some == pytest.approx(twins.score((x1, x2)))


def test_three_views_score_the_mean_of_their_pairs(rng):
    x1, x2, x3 = draw()
    model = PerfectAlignment(**PERFECT).fit((x1, x2, x3))
    stranger = rng.normal(size=x3.shape)  # tells nothing of either of the two that agree
    assert model.score((x1, x2, stranger)) == pytest.approx(np.log(60) / 3, rel=0.1)


def test_a_search_tunes_what_an_alignment_is_told():
    rng = np.random.default_rng(1)
    views = [np.vstack([x, x[::-1]]) + 0.1 * rng.normal(size=(120, x.shape[1])) for x in draw()]
    for x in views:
        x[:, 0] = 20 * rng.normal(size=120)  # loud, and about nothing
    table = np.hstack(views)
    model = EvidenceAlignment(**EVIDENCE | {"widths": WIDTHS})
    found = GridSearchCV(model, {"ridge": [1e6, 1e-3]}, cv=2, refit=False).fit(table)
    assert found.best_params_ == {"ridge": 1e-3}  # the other listens to what is loud
    # Splits are by rows: a score is that of the held-out half.
    half = clone(model).set_params(ridge=1e-3).fit(table[60:])
    assert found.cv_results_["split0_test_score"][1] == half.score(table[:60])


def test_a_decoder_learns_on_one_view_and_works_on_another():
    x1, x2, x3 = draw(noise=0.05)
    labels = (x1 @ np.array([1.0, -1.0, 0.5]) > 0).astype(int)
    chain = Pipeline(
        [
            ("latents", ViewEncoder(PerfectAlignment(**PERFECT, widths=WIDTHS))),
            ("decoder", LogisticRegression(C=1e3)),
        ]
    )
    search = GridSearchCV(chain, {"latents__estimator__k": [1, 2]}, cv=2)
    search.fit(np.hstack([x1, x2, x3]), labels)  # paired rows, labels of what is seen
    assert search.best_params_ == {"latents__estimator__k": 2}
    fitted = search.best_estimator_
    assert fitted.score(x1, labels) > 0.9  # one view alone
    assert fitted.set_params(latents__view=1).score(x2, labels) > 0.9
    # Frozen: pairs without labels first, then labels of one view.
    aligned = PerfectAlignment(**PERFECT).fit((x1[:30], x2[:30], x3[:30]))
    before = aligned.alignment_
    alone = ViewEncoder(clone(aligned), view=1).fit((x1[:30], x2[:30], x3[:30]))
    np.testing.assert_array_equal(alone.transform(x2), aligned.encode(x2, view=1))
    assert alone.n_features_in_ == 10
    chain = chain.set_params(latents__estimator=FrozenEstimator(aligned), latents__view=0)
    chain.fit(x1[30:], labels[30:])
    assert aligned.alignment_ is before
    assert chain.set_params(latents__view=1).score(x2, labels) > 0.8  # of 30 pairs, and 30 labels


@pytest.mark.parametrize(
    ("model", "dtype"),
    [(PerfectAlignment(**PERFECT), np.float32), (EvidenceAlignment(**EVIDENCE), np.float64)],
    ids=["perfect", "evidence"],
)
def test_a_pickle_holds_safetensors_and_gives_the_same(model, dtype):
    views = draw(dtype, noise=0.1)
    model = clone(model).set_output(transform="default").fit(views)
    assert isinstance(model.__getstate__()["alignment_"], bytes)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        chex.assert_trees_all_equal(again.alignment_, model.alignment_)
        assert again.alignment_.offset.dtype == dtype
        assert again.get_params() == model.get_params()
        np.testing.assert_array_equal(again.transform(views), model.transform(views))
    empty = pickle.loads(pickle.dumps(clone(model)))
    with pytest.raises(NotFittedError):
        empty.transform(views)
    encoder = pickle.loads(pickle.dumps(ViewEncoder(FrozenEstimator(model)).fit(views[0])))
    np.testing.assert_array_equal(encoder.transform(views[0]), model.encode(views[0], view=0))


def test_sides_are_tables_of_their_own():
    views = draw(noise=0.1)
    model = EvidenceAlignment(**EVIDENCE).fit(views)
    assert [*model.get_feature_names_out()[[0, 2]]] == ["view0+1_latent0", "view2_latent0"]
    z1, z2 = model.transform(views)
    np.testing.assert_array_equal(model.encode({0: views[0], 1: views[1]}), z1)
    np.testing.assert_array_equal(model.encode(views, view=2), z2)
    with jax.enable_x64(True):
        guess = pa.predict(model.alignment_, {0: views[0], 1: views[1]}, target=2)
    np.testing.assert_array_equal(model.predict({0: views[0], 1: views[1]}, target=2), guess)


def test_what_belongs_to_rows_reaches_the_alignment_and_hidden_rows_may_be_nan(monkeypatch):
    views = draw()
    mask = np.arange(180).reshape(60, 3) % 5 > 0
    holes = [np.where(seen[:, None], x, np.nan) for x, seen in zip(views, mask.T, strict=True)]
    came = []
    monkeypatch.setattr(
        "perfalign_jax.automatic.align", lambda views, **options: came.append((views, options))
    )
    rows = {"groups": np.arange(60) // 3, "sample_weight": [*range(60)]}
    EvidenceAlignment(k=3).fit(tuple(holes), mask=mask, **rows)
    EvidenceAlignment(k=3, widths=WIDTHS).fit(np.hstack(holes), mask="nan", **rows)
    for (seen, options), given in zip(came, (mask, "nan"), strict=True):
        assert options["mask"] is given
        assert options["k"] == 3
        np.testing.assert_array_equal(options["groups"], rows["groups"])
        np.testing.assert_array_equal(options["weights"], rows["sample_weight"])
        chex.assert_trees_all_equal(seen, tuple(holes))


def test_wrong_use_is_named():
    views = x1, x2, x3 = draw()
    table = np.hstack(views)
    for widths, message in (
        (None, r"X is one table of 10 columns: give the views as a tuple .* widths=\(20, -1\)"),
        ((3, 8), r"widths must add up to the columns of X.*\(3, 8\) with n_features = 10"),
        ((3, 3), r"widths must add up to the columns of X"),
        ((10, -1), r"widths must add up to the columns of X"),
        ((-1, -1), r"a single -1; got \(-1, -1\)"),
        ((0, 10), r"widths\[0\] must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            PerfectAlignment(widths=widths).fit(table)
    for widths in (7, "34", (7,)):
        with pytest.raises(TypeError, match="widths must be a tuple of two integers or more"):
            PerfectAlignment(widths=widths).fit(table)
    model = PerfectAlignment(**PERFECT, widths=WIDTHS)
    for method in (model.transform, model.predict, model.score, model.get_feature_names_out):
        with pytest.raises(NotFittedError):
            method(table)
    with pytest.raises(NotFittedError):
        ViewEncoder(model).transform(table)
    with pytest.raises(ValueError, match=r"wrap a fitted alignment in sklearn\.frozen\.Frozen"):
        ViewEncoder(model).fit(x1)
    with pytest.raises(ValueError, match="sample_weight must be above zero for some row"):
        model.fit(table, sample_weight=np.zeros(60))
    model.fit(table)
    with pytest.raises(TypeError, match="view must be an integer, got None"):
        model.encode(x1)
    with pytest.raises(ValueError, match=r"view must be between 0 and 2 \(views are counted from"):
        model.encode(x1, view=3)
    with pytest.raises(ValueError, match="x must map at least one view"):
        model.encode({})
    with pytest.raises(ValueError, match=r"has 4 features.* expecting 10 .* or the 3 of view 0"):
        model.encode(x2, view=0)
    with pytest.raises(TypeError, match=r"must be a tuple of 3 arrays.*got 2 of them"):
        model.transform((x1, x2))
    with pytest.raises(TypeError, match=r"must be a tuple of two arrays .*, got 0 of them"):
        model.fit(())
    with pytest.raises(ValueError, match="x1 and x2 must have the same number of rows"):
        model.fit((x1, x2[1:], x3))
    with pytest.raises(TypeError, match=r"x1 must hold real numbers .*, got dtype complex64"):
        model.fit((jnp.ones((4, 2), jnp.complex64), jnp.ones((4, 2))))
    with pytest.raises(ValueError, match=r"x2 must be finite, but row 3 has NaN"):
        model.fit((x1, np.where(np.arange(60)[:, None] == 3, np.nan, x2), x3))
    with pytest.raises(ValueError, match=r"transform must be one of 'default', 'pandas'"):
        model.set_output(transform="arrow")
    with pytest.raises(ValueError, match=r"input_features should have length equal to .*10"):
        ViewEncoder(model).fit(table).get_feature_names_out([*"abc"])


@pytest.mark.parametrize("kinds", [("f4", "f8"), ("f2", "f2")])
def test_the_rounding_of_the_coarsest_view_is_no_direction(kinds):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 2))
    views = [
        (z @ rng.normal(size=(2, d))).astype(kind) for d, kind in zip((3, 4), kinds, strict=True)
    ]
    several = PerfectAlignment(k=None, select="energy").fit(tuple(views))
    assert several.alignment_.k == 2
    if len(set(kinds)) == 1:
        table = PerfectAlignment(k=None, select="energy", widths=(3, 4)).fit(np.hstack(views))
        assert table.alignment_.k == 2


def test_a_view_is_not_named_twice():
    x1, x2, _ = draw()
    model = EvidenceAlignment(lift=None, ridge=0.1, k=2).fit((x1, x2))
    with pytest.raises(TypeError, match="view must not be given where X maps views to rows"):
        model.encode({0: x1}, view=1)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "perfalign_jax.estimators")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install 'scikit-learn>=1\.6'"):
        importlib.import_module("perfalign_jax.estimators")


def test_shapes_that_are_none_are_named():
    views = draw()
    with pytest.raises(ValueError, match=r"X must have shape \(n, d\), got shape \(5,\)"):
        PerfectAlignment(widths=(1, 1)).fit(jnp.ones(5))
    fitted = PerfectAlignment(**PERFECT).fit(views)
    with pytest.raises(ValueError, match="X must hold all 3 views, or one alone; got 2"):
        fitted.encode(views[:2], view=1)
    with pytest.raises(ValueError, match="at least one row"):
        fitted.score(tuple(jnp.asarray(x, jnp.float32)[:0] for x in views))


def test_names_of_an_earlier_fit_are_forgotten():
    views = draw()
    frame = pytest.importorskip("pandas").DataFrame(
        np.hstack(views), columns=[f"c{i}" for i in range(10)]
    )
    encoder = ViewEncoder(PerfectAlignment(**PERFECT, widths=WIDTHS)).fit(frame)
    assert hasattr(encoder, "feature_names_in_")
    encoder.set_params(estimator=PerfectAlignment(**PERFECT)).fit(views[:2])
    assert not hasattr(encoder, "feature_names_in_")
