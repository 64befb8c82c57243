"""What is measured of an alignment agrees with what the functions say that users call."""

import dataclasses

import jax
import numpy as np
import pytest

import perfalign_jax as pa
from perfalign_jax import inspection
from perfalign_jax.inspection import _rank, inspect

pytestmark = pytest.mark.slow  # nearly all of it is the compilation of align
KEY = jax.random.key(0)
FEW = {"key": KEY, "permutations": 39}


@pytest.fixture(scope="module")
def pairs():
    """Noisy views of three things shared, the partners of rows 3 and 8 exchanged at the end."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(120, 3))
    x1, x2 = (
        np.float32(z @ rng.normal(size=(3, d)) + rng.normal(size=(120, d)) / 5) for d in (5, 6)
    )
    alignment = pa.align((x1, x2), lift=None, ridge=0.1, k=3)
    mixed = x2.copy()
    mixed[[3, 8]] = x2[[8, 3]]
    return alignment, x1, x2, mixed


@pytest.fixture(scope="module")
def found(pairs):
    alignment, x1, _, mixed = pairs
    return inspect(alignment, (x1, mixed), names=np.arange(120) + 1000, **FEW)


def test_half_precision_is_diagnosed_as_what_it_is(rng):
    z = rng.normal(size=(60, 2))
    views = tuple((z @ rng.normal(size=(2, 3))).astype(np.float16) for _ in range(2))
    own = pa.diagnose(views)
    seen = inspect(pa.fit(views, k=2, select="energy"), views, **FEW).diagnosis
    assert own.informative_dimension == seen.informative_dimension == 2


def test_a_feature_of_large_values_hides_no_other(rng):
    x = rng.normal(size=(60, 3))
    for large in (np.full((60, 1), 1e7), 1e7 + 1e3 * rng.normal(size=(60, 1))):
        rows = np.float32(np.hstack([x, large]))
        alignment = pa.fit((rows, rows), k=3, check=False)
        assert inspect(alignment, (rows, rows), **FEW).test.count() >= 3


def test_scores_and_ranks_are_those_of_log_odds_and_search(pairs, found):
    alignment, x1, _, mixed = pairs
    odds = np.asarray(pa.log_odds(alignment, x1, mixed))
    # Products of another order: a few eps of float32 of the largest terms.
    np.testing.assert_allclose(found.right, odds, atol=1e-3)
    np.testing.assert_allclose(found.scores, odds, atol=1e-3)
    hits = np.asarray(pa.search(alignment, x1, mixed, top=120).indices)
    place = 1 + np.argmax(hits == np.arange(120)[:, None], axis=1)
    assert (found.ranks[0] == place).mean() > 0.98  # but for scores that are equal to rounding
    assert found.recall([1, 120]).shape == (2, 2)
    np.testing.assert_array_equal(found.recall([120]), 1)
    assert found.threshold == 0
    assert found.missed == (found.right < 0).mean()
    shifted = np.asarray(pa.log_odds(alignment, x1, np.roll(mixed, 1, axis=0)))
    assert abs(found.false_alarms - (shifted >= 0).mean()) < 0.1
    assert found.wrong.size == 120 * 119


def test_exchanged_partners_are_the_least_credible_by_the_names_given(found):
    names, scores = found.least_credible(2)
    assert set(names.tolist()) == {1003, 1008}
    assert scores[0] <= scores[1] < np.median(found.scores)


def test_reliability_is_of_both_sides_and_the_test_sees_three_axes(pairs, found):
    reliability = np.asarray(pairs[0].reliability)
    np.testing.assert_allclose(found.reliability, reliability[0] * reliability[1], rtol=1e-6)
    assert found.real_axes == "3"
    assert found.coordinates == (5, 6)
    assert int(found.diagnosis.samples) == 120


def test_unrelated_rows_have_no_axis_and_find_nobody(pairs, rng):
    alignment, x1, x2, _ = pairs
    lost = inspect(alignment, (x1, x2[rng.permutation(120)]), **FEW)
    assert lost.real_axes == "0"
    assert lost.recall([1]).max() < 0.1
    assert lost.missed > 0.3


def test_without_evidence_scores_are_distances(pairs):
    _, x1, x2, _ = pairs
    alignment = pa.fit((x1, x2), k=3, select="energy", center=True, check=False)
    found = inspect(alignment, (x1, x2), **FEW)
    z1, z2 = map(np.asarray, pa.transform(alignment, (x1, x2)))
    np.testing.assert_allclose(found.right, -np.linalg.norm(z1 - z2, axis=1), atol=1e-5)
    assert found.unit == "latent units"
    assert found.reliability.size == 0
    assert abs(found.missed - found.false_alarms) < 0.02  # where the errors meet


@pytest.mark.slow
def test_two_sides_of_several_views(pairs):
    _, x1, x2, _ = pairs
    alignment = pa.align(
        (x1[:, :2], x1[:, 2:], x2), sides=((0, 1), (2,)), lift=None, ridge=0.1, k=3
    )
    found = inspect(alignment, (x1[:, :2], x1[:, 2:], x2), sides=(1, 0), **FEW)
    assert found.views == ((2,), (0, 1))
    assert found.recall([1]).min() > 0.5


def test_equal_scores_share_their_places():
    np.testing.assert_array_equal(_rank(np.zeros((4, 4))), 2.5)
    np.testing.assert_array_equal(_rank(np.eye(3)), 1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x: {"views": (x,)}, TypeError, "views must be a tuple of two arrays"),
        (lambda x: {"views": (x, x, x)}, TypeError, "2 arrays like the alignment's views, got 3"),
        (lambda x: {"views": (x[:9], x[:9])}, ValueError, "at least ten rows, got 9"),
        (lambda x: {"sides": (0, 0)}, ValueError, "sides must be two different numbers up to 1"),
        (lambda x: {"sides": (0, 2)}, ValueError, "a side must be between 0 and 1"),
        (lambda x: {"names": [1, 2]}, ValueError, r"names must be integers of shape \(120,\)"),
        (lambda x: {"key": 3}, TypeError, "key must be one random key"),
        (lambda x: {"alignment": None}, TypeError, "alignment must be an Alignment"),
        (lambda x: {"views": (0 * x, x)}, ValueError, "all rows of a side are the same"),
    ],
)
def test_what_does_not_fit_is_said(pairs, change, error, words):
    _, x1, _, _ = pairs
    given = {"alignment": pa.fit((x1, x1), k=2), "views": (x1, x1)} | FEW | change(x1)
    with pytest.raises(error, match=words):
        inspect(given.pop("alignment"), given.pop("views"), **given)


def test_it_is_frozen(found):
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows = 3


def test_groups_stay_together_in_the_test(pairs):
    rng = np.random.default_rng(0)
    sizes = np.array([3, 5, 6, 5, 9] * 8)
    groups = np.repeat(np.arange(40), sizes)
    common = [rng.normal(size=(40, 3))[groups] for _ in range(2)]  # of a group, of one view alone
    views = tuple(np.float32(c + rng.normal(size=c.shape) / 3) for c in common)
    alignment = pa.fit(views, k=1, select="energy", check=False)
    alone, together = (inspect(alignment, views, groups=g, **FEW) for g in (None, groups))
    assert alone.test.count() > 0
    assert together.test.count() == 0
    with pytest.raises(ValueError, match="groups must have shape"):
        inspect(alignment, views, groups=groups[1:], **FEW)


def test_as_many_rows_as_there_may_be_are_compared(monkeypatch):
    monkeypatch.setattr(inspection, "_MOST", 20)
    x = np.random.default_rng(0).normal(size=(21, 3)).astype(np.float32)
    assert inspect(pa.fit((x, x), k=3), (x, x), **FEW).ranks.shape == (2, 20)
