"""The transfer protocol: the decoder, the scores, and that every shortcut is exact."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.linear_model
from scipy import stats

from perfalign_jax import baselines, solver
from perfalign_jax.har.data.splits import Split
from perfalign_jax.har.protocol import estimates, methods, transfer
from perfalign_jax.har.protocol.estimates import estimate_mean, estimate_share
from perfalign_jax.har.protocol.transfer import Exam, Task, rank_classes, score_ranks
from perfalign_jax.types import CollapseWarning

collapse = pytest.mark.filterwarnings(f"ignore::{CollapseWarning.__module__}.CollapseWarning")


PAIRS = np.arange(20)


def centred(x, rows):
    return x - x[rows].mean(axis=0)


@pytest.fixture
def views(rng):
    """Two views of 120 clips, more features than the 20 pairs, with a latent in common."""
    return make_views(rng, rng.normal(size=(120, 6)), noise=0.3)


def make_views(rng, hidden, *, noise):
    x1, x2 = (
        hidden @ rng.normal(size=(6, d)) + noise * rng.normal(size=(120, d)) for d in (45, 60)
    )
    return centred(x1, PAIRS), centred(x2, PAIRS)


# The decoder.


@pytest.fixture
def blobs(rng):
    centres = rng.normal(size=(5, 8))
    labels = np.arange(60) % 5
    return centres[labels] + 0.7 * rng.normal(size=(60, 8)), labels


def test_ranks_are_those_of_a_plain_logistic_regression(blobs):
    z, labels = blobs
    size = np.sqrt((z**2).sum(axis=1).mean())
    plain = sklearn.linear_model.LogisticRegression(C=30.0, max_iter=5000, tol=1e-8)
    scores = plain.fit(z[:40] / size, labels[:40]).decision_function(z[40:] / size)
    found = rank_classes(z[:40], labels[:40], z[40:])
    assert (found[:, 0] == scores.argmax(axis=1)).mean() > 0.9  # ours stops a little earlier
    assert np.sort(found, axis=1).tolist() == [[0, 1, 2, 3, 4]] * 20


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_one_global_scale_makes_units_irrelevant(blobs, scale):
    z, labels = blobs
    np.testing.assert_array_equal(
        rank_classes(scale * z[:40], labels[:40], scale * z[40:]),
        rank_classes(z[:40], labels[:40], z[40:]),
    )


def test_directions_without_energy_are_not_blown_up(blobs, rng):
    z, labels = blobs
    noisy = np.concatenate([z, 1e-6 * rng.normal(size=(60, 200))], axis=1)
    noisy[40:, 8:] *= 100  # noise that means nothing, and more of it in the target
    first = rank_classes(z[:40], labels[:40], z[40:])
    second = rank_classes(noisy[:40], labels[:40], noisy[40:])
    np.testing.assert_array_equal(first[:, 0], second[:, 0])


def test_turning_many_coordinates_into_the_training_span_changes_nothing(blobs, rng):
    z, labels = blobs
    frame = np.linalg.qr(rng.normal(size=(100, 8)))[0].T
    wide = z @ frame  # 100 coordinates, 40 training clips
    turned = rank_classes(wide[:40], labels[:40], wide[40:])
    # The optimiser stops a little before the optimum, elsewhere in other coordinates: only the
    # order of unlikely classes may change.
    np.testing.assert_array_equal(turned[:, 0], rank_classes(z[:40], labels[:40], z[40:])[:, 0])
    empty = np.concatenate([z, np.zeros((60, 3))], axis=1)
    empty[40:, 8:] = 1e9  # a coordinate that training never saw gets no weight
    np.testing.assert_array_equal(
        rank_classes(empty[:40], labels[:40], empty[40:]), rank_classes(z[:40], labels[:40], z[40:])
    )


def test_two_classes_and_class_names_of_any_number(blobs):
    z, labels = blobs
    names = np.where(labels == 0, 11, 3)
    found = rank_classes(z, names, z)
    assert found.shape == (60, 2)
    assert (found[:, 0] == names).mean() > 0.9


def test_latents_that_do_not_fit_are_refused(blobs):
    z, labels = blobs
    with pytest.raises(ValueError, match="same number of latent dimensions"):
        rank_classes(z, labels, z[:, :3])
    with pytest.raises(ValueError, match=r"labels must have shape \(60,\), got \(59,\)"):
        rank_classes(z, labels[1:], z)
    with pytest.raises(ValueError, match="without any energy"):
        rank_classes(0 * z, labels, z)


def test_scores_grow_with_the_classes_that_may_be_named(rng):
    ranks = np.argsort(rng.random((200, 27)), axis=1)
    labels = rng.integers(0, 27, size=200)
    hits = score_ranks(ranks, labels, tops=(1, 3, 7, 27))
    means = [hits[top].mean() for top in (1, 3, 7, 27)]
    assert means == sorted(means)
    assert means[-1] == 1
    assert set(np.unique(hits[1])) <= {0.0, 1.0}
    np.testing.assert_array_equal(hits[1], ranks[:, 0] == labels)
    assert score_ranks(ranks, labels + 100)[7].sum() == 0  # a class training never saw
    with pytest.raises(ValueError, match=r"labels must have shape \(200,\)"):
        score_ranks(ranks, labels[:5])


# Intervals.


def test_the_interval_of_a_mean_is_students(rng):
    values = rng.normal(size=13)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = estimate_mean(values)
    np.testing.assert_allclose((found.value, found.low, found.high), (values.mean(), *expected))
    assert estimate_mean([2.0]).low == -np.inf
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        estimate_mean([])


def test_paired_differences_are_sharper_than_two_intervals(rng):
    hard = rng.normal(scale=5, size=20)
    a, b = 80 + hard + 0.1 * rng.normal(size=20), 79 + hard + 0.1 * rng.normal(size=20)
    difference = estimate_mean(a - b)
    assert difference.low > 0.8
    assert estimate_mean(a).low < estimate_mean(b).high  # unpaired they overlap
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose((difference.low, difference.high), expected)


def test_the_interval_of_a_share_is_wilsons():
    n, hits, z = 130, 121, stats.norm.ppf(0.975)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = estimate_share(hits, n)
    np.testing.assert_allclose(
        (found.low, found.high), (100 * (centre - half), 100 * (centre + half))
    )
    assert estimate_share(5, 5).high == 100
    with pytest.raises(ValueError, match="hits must be between 0 and 4"):
        estimate_share(5, 4)


# Every method at once.


def align(views, rows, dimensions):
    """Latents of all clips by method; labelled and unseen are all of them, in both modalities."""
    everything = np.arange(len(views[0]))
    pairs = (views[0][rows], views[1][rows])
    task = Task(pairs, labelled=views[0], labels=everything, unseen=views[1])
    exam = Exam(labels=everything, partners=views[0], bound=views[1])
    listed = methods.list_methods(dimensions=dimensions, largest=max(dimensions))
    for method, after, _ in methods.align_all(task, exam, methods=listed):
        yield method.name, after.labelled, after.unseen


def products(z1, z2):
    """What a classifier with an L2 penalty sees: invariant under rotations of the latents."""
    return z1 @ z1.T, z2 @ z1.T


def same(found, expected, atol=1e-8):
    for a, b in zip(products(*found), products(*expected), strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a / scale, b / scale, atol=atol)


INFORMATIVE = methods.INFORMATIVE.name


@pytest.fixture
def by_method(views, x64):
    found = align(views, PAIRS, (3, 8))
    return {method: (z1, z2) for method, z1, z2 in found}


def full(views, fit):
    """Latents of all clips with an alignment fitted to all features of the pairs."""
    alignment = fit((views[0][PAIRS], views[1][PAIRS]))
    return tuple(np.asarray(z) for z in solver.transform(alignment, views))


@pytest.mark.slow
@collapse
def test_the_methods_come_in_order_and_align_their_pairs(by_method):
    assert list(by_method) == [
        "identity",
        "ridge regression",
        "Procrustes",
        "linear contrastive, k ≤ 8",
        "ridge CCA, k ≤ 8",
        "PA, trailing k = 3",
        "PA, trailing k = 8",
        "PA, whole null space",
        "PA, energy k = 3",
        "PA, energy k = 8",
        INFORMATIVE,
        methods.ALIGN.name,
    ]
    for method, (z1, z2) in by_method.items():
        assert len(z1) == len(z2) == 120
        if method.startswith("PA"):
            np.testing.assert_allclose(z1[PAIRS], z2[PAIRS], atol=1e-11)
    assert by_method[INFORMATIVE][0].shape[1] == 19


@pytest.mark.slow
@collapse
def test_coordinates_give_the_latents_of_all_features(views, by_method):
    """Each method fitted inside the span of the pairs equals the same method on all features."""
    same(by_method[INFORMATIVE], full(views, lambda p: solver.fit(p, k=None, select="energy")))
    # Slices of a larger fit: three of eight directions.
    same(by_method["PA, energy k = 3"], full(views, lambda p: solver.fit(p, k=3, select="energy")))
    # The same bits: rounding chooses among the trailing directions of a larger null space.
    again = tuple(centred(x, PAIRS) for x in views)
    same(by_method["PA, trailing k = 3"], full(again, lambda p: solver.fit(p, k=3)))
    same(
        by_method["linear contrastive, k ≤ 8"],
        full(views, lambda p: baselines.linear_contrastive(p, k=8)),
    )
    # Regression and Procrustes keep view 2 as it is, and its outside meets nothing of view 1. The
    # ridge is relative to the mean eigenvalue, here of 19 directions instead of 45.
    same(
        by_method["ridge regression"],
        full(views, lambda p: baselines.ridge_regression(p, ridge=0.1 * 45 / 19)),
    )
    same(by_method["Procrustes"], full(views, baselines.procrustes))


@collapse
def test_the_whole_null_space_is_the_paper_with_the_largest_k(views, by_method):
    d, rank = 45 + 60, 19
    whole = full(views, lambda p: solver.fit(p, k=d - rank, method="svd"))
    same(by_method["PA, whole null space"], whole)


@collapse
def test_a_latent_in_common_carries_the_classes_over(rng, x64):
    """Views of one latent, next to no noise: the classifier works on the other view."""
    labels = np.arange(120) % 6
    hidden = 4 * rng.normal(size=(6, 6))[labels] + 0.3 * rng.normal(size=(120, 6))
    views = make_views(rng, hidden, noise=1e-3)
    har, test = np.arange(20, 80), np.arange(80, 120)
    accuracy = {
        method: score_ranks(rank_classes(z1[har], labels[har], z2[test]), labels[test])[1].mean()
        for method, z1, z2 in align(views, PAIRS, (3, 8))
    }
    assert accuracy[INFORMATIVE] == 1
    assert accuracy["PA, energy k = 8"] == 1
    assert accuracy["identity"] < 0.7


@pytest.mark.slow
@collapse
def test_without_null_space_the_best_approximation_is_taken(rng):
    hidden = rng.normal(size=(80, 3))
    views = tuple(
        (hidden @ rng.normal(size=(3, d)) + 0.1 * rng.normal(size=(80, d))).astype(np.float32)
        for d in (4, 5)
    )
    rows = np.arange(60)
    views = tuple(centred(x, rows) for x in views)
    found = {m: z1.shape[1] for m, z1, _ in align(views, rows, (3, 20))}
    assert INFORMATIVE not in found
    assert "PA, whole null space" not in found
    assert found["PA, energy k = 3"] == 3
    assert found["identity"] == 4
    assert not any("20" in method and "PA" in method for method in found)


@collapse
def test_the_alignment_sees_its_pairs_only(views, x64):
    """Other clips do not move the latents of a clip: neither test clips nor labelled ones leak."""
    changed = tuple(x.copy() for x in views)
    for x in changed:
        x[20:70] += 5
    for first, second in zip(
        align(views, PAIRS, (3, 8)), align(changed, PAIRS, (3, 8)), strict=True
    ):
        for a, b in zip(first[1:], second[1:], strict=True):
            scale = np.abs(a).max()
            # The same products; the size of what was added may leave a rounding.
            np.testing.assert_allclose(a[70:] / scale, b[70:] / scale, atol=1e-12)


def test_methods_that_do_not_fit_are_refused(rng):
    x1, x2 = (rng.normal(size=(9, d)).astype(np.float32) for d in (2, 3))
    task = Task((x1, x2), labelled=x1, labels=np.arange(9), unseen=x2)
    exam = Exam(labels=np.arange(9), partners=x1, bound=x2)
    message = r"fits 9 pairs of d1 \+ d2 = 5 features, got PA, trailing k = 6\."
    with pytest.raises(ValueError, match=message):
        methods.align(task, exam, method=methods.Method("trailing", k=6))


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_latents_of_any_size_are_ranked_alike(blobs, size):
    z, labels = (blobs[0] * size).astype(np.float32), blobs[1]
    expected = rank_classes(blobs[0].astype(np.float32), labels, blobs[0].astype(np.float32))
    found = rank_classes(z, labels, z)
    assert (found[:, 0] == expected[:, 0]).mean() > 0.98  # the sizes are rounded differently
    half = (blobs[0] * 300).astype(np.float16)  # its squares overflow
    assert (rank_classes(half, labels, half)[:, 0] == expected[:, 0]).mean() > 0.95


def test_what_no_classifier_can_use_is_refused(blobs):
    z, labels = blobs
    for bad, error, message in (
        ({"source": z * 1j}, TypeError, "source must hold real numbers, got dtype complex128"),
        ({"labels": labels / 2}, TypeError, "labels must be integers, got dtype float64"),
        ({"target": z[:0]}, ValueError, "target must hold at least one clip"),
        ({"source": z[0]}, ValueError, r"source must have shape \(n, d\)"),
        ({"strength": 0.0}, ValueError, "strength must be above zero"),
    ):
        with pytest.raises(error, match=message):
            rank_classes(**{"source": z, "labels": labels, "target": z} | bad)
    with pytest.raises(ValueError, match="one number for each split, got shape"):
        estimates.estimate_mean(np.ones((2, 2)))


def test_features_of_other_clips_are_not_joined(rng):
    x = rng.normal(size=(4, 3))
    task = Task((x, x), labelled=x, labels=np.arange(4), unseen=x)
    exam = Exam(labels=np.arange(4), partners=x, bound=x)
    turned = Task((x, x), labelled=x, labels=np.arange(4)[::-1], unseen=x)
    fewer = Task((x, x), labelled=x, labels=np.arange(4), unseen=x[:3])
    for other in (turned, fewer):
        with pytest.raises(ValueError, match="a task about the same clips"):
            task.beside(other)
    with pytest.raises(ValueError, match="an exam about the same clips"):
        exam.beside(Exam(labels=np.arange(4)[::-1], partners=x, bound=x))
    with pytest.raises(ValueError, match="partners and labels must have the same number of rows"):
        Exam(labels=np.arange(3), partners=x, bound=x)


def test_what_is_ranked_and_scored_is_checked():
    z = np.eye(3)
    with pytest.raises(ValueError, match=r"ranks must have shape \(clips, classes\)"):
        transfer.score_ranks(np.arange(3), np.arange(3))
    with pytest.raises(ValueError, match="tops must be at least 1"):
        transfer.score_ranks(z.astype(int), np.arange(3), tops=(0,))
    with pytest.raises(ValueError, match="at least 2 classes"):
        transfer.rank_classes(z, np.ones(3, int), z)
    for source, target, name in ((z * np.nan, z, "source"), (z, z * np.nan, "target")):
        with pytest.raises(ValueError, match=f"{name} .*finite|{name} must"):
            transfer.rank_classes(source, np.arange(3), target)
    with pytest.raises(ValueError, match="values"):
        estimates.estimate_mean([1.0, np.nan])


def test_recordings_labels_and_split_are_about_the_same_clips():
    rows = np.arange(6)
    split = Split("s", har=rows[:2], align=rows[2:4], val=rows[4:5], test=rows[5:])
    x = np.ones((6, 2))
    with pytest.raises(ValueError, match=r"recordings\['b'\] and labels .* 9 and 6"):
        transfer.make_task({"a": x, "b": np.ones((9, 2))}, rows, split, source="a", target="b")
    few = {"a": x[:4], "b": x[:4]}
    with pytest.raises(ValueError, match="uses clip 5, got 4 clips"):
        transfer.make_task(few, rows[:4], split, source="a", target="b")
    with pytest.raises(ValueError, match="har must be a row of integers"):
        Split("s", har=np.array([True, False]), align=rows[2:4], val=rows[4:5], test=rows[5:])


def test_the_decoder_is_trained_to_convergence(rng):
    """Beside what a general optimiser finds for the same objective."""
    z, labels = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    target = rng.normal(size=(300, 5))
    unit = z / np.sqrt(np.mean(np.sum(z * z, axis=1)))
    onehot = np.eye(3)[labels]

    def objective(flat):
        w, b = flat[:15].reshape(5, 3), flat[15:]
        logp = scipy.special.log_softmax(unit @ w + b, axis=1)
        return -30.0 * np.sum(onehot * logp) + 0.5 * np.sum(w * w)

    best = scipy.optimize.minimize(objective, np.zeros(18), method="BFGS", options={"gtol": 1e-6})
    scores = target / np.sqrt(np.mean(np.sum(z * z, axis=1))) @ best.x[:15].reshape(5, 3)
    expected = np.argsort(-(scores + best.x[15:]), axis=1)
    found = transfer.rank_classes(z, labels, target)
    assert np.mean(found == expected) > 0.99  # ties to within the tolerance may turn


def test_crossed_intervals_hold_what_they_promise(rng):
    """Seeds and clips are both drawn anew; 95 % of the intervals hold the true mean."""
    hit = []
    for _ in range(600):
        values = rng.normal(size=(5, 1)) + 3 * rng.normal(size=60) + rng.normal(size=(5, 60))
        found = estimates.estimate_crossed(values)
        hit.append(found.low <= 0 <= found.high)
    assert 0.92 < np.mean(hit) < 0.98  # three standard errors
    with pytest.raises(ValueError, match="at least 2 of both"):
        estimates.estimate_crossed(values[:1])


@pytest.mark.slow
def test_a_transfer_in_closed_form_needs_no_library_of_networks():
    """Recordings, protocol and lifts; beyond what the package itself loads."""
    script = """
        import sys
        networks = {"flax", "optax", "orbax"}
        import perfalign_jax
        networks -= set(sys.modules)
        import jax, numpy as np
        from perfalign_jax import lift
        from perfalign_jax.har.data import dataset, simulate, splits, utd_mhad
        from perfalign_jax.har.protocol import estimates, methods, transfer
        x = np.random.default_rng(0).normal(size=(20, 16, 2)).astype("float32")
        kernels = lift.fit_convolutions(x, key=jax.random.key(0), count=20)
        z = np.asarray(lift.apply(kernels, x))
        split = splits.split_at_random(20, key=jax.random.key(1))
        both, labels = {"a": z, "b": z}, np.arange(20) % 2
        posed = transfer.make_task(both, labels, split, source="a", target="b")
        task, exam = methods.align(*methods.standardise(*posed))
        exam.score(transfer.rank_classes(task.labelled, task.labels, task.unseen))
        loaded = networks & set(sys.modules)
        assert {"flax", "orbax"} <= networks and not loaded, (networks, loaded)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
