"""The protocol of Table 1: nothing leaks, and every method is what its name says."""

import dataclasses

import jax
import numpy as np
import pytest

from perfalign_jax.har.data.splits import Split
from perfalign_jax.har.nn import encoders, training
from perfalign_jax.har.nn.decoder import rank_by_mlp
from perfalign_jax.har.protocol import methods
from perfalign_jax.har.protocol.transfer import Exam, Task, make_task, rank_classes
from perfalign_jax.types import CollapseWarning

pytestmark = [
    pytest.mark.usefixtures("promoting"),
    pytest.mark.filterwarnings(f"ignore::{CollapseWarning.__module__}.CollapseWarning"),
]
CLASSES = np.array([3, 5, 8])


@pytest.fixture
def data(rng):
    """60 clips of two sensors that see the same motion, of three classes; and a split."""
    labels = CLASSES[np.arange(60) % 3]
    hidden = rng.normal(size=(3, 4))[np.arange(60) % 3] + 0.2 * rng.normal(size=(60, 4))
    wave = np.sin(np.arange(16)[:, None] * (1 + np.arange(4)) / 3)
    motion = hidden[:, None, :] * wave
    recordings = {
        name: (motion @ rng.normal(size=(4, 3)) + 0.05 * rng.normal(size=(60, 16, 3))).astype("f4")
        for name in ("video", "sensor")
    }
    order = rng.permutation(60)
    roles = dict(zip(("har", "align", "val", "test"), np.split(order, [24, 48, 54]), strict=True))
    return recordings, labels, Split("small", **roles)


def flatten(task, exam):
    def flat(x):
        return x.reshape(len(x), -1)

    return task.encode(flat, flat), exam.encode(flat, flat)


def pose(data):
    recordings, labels, split = data
    return make_task(recordings, labels, split, source="video", target="sensor")


def every(dimensions, components=(), *, size):
    """The list, with the paper's own method in front."""
    paper = methods.Method("trailing", k=size, center=False)
    return [paper, *methods.list_methods(dimensions=dimensions, components=components)]


def accuracy(exam, ranks):
    return exam.score(ranks)[1].mean()


# What may be seen.


def test_a_task_holds_each_role_and_nothing_else(data):
    recordings, labels, split = data
    task, exam = pose(data)
    np.testing.assert_array_equal(task.pairs[0], recordings["video"][split.align])
    np.testing.assert_array_equal(task.pairs[1], recordings["sensor"][split.align])
    np.testing.assert_array_equal(task.labelled, recordings["video"][split.har])
    np.testing.assert_array_equal(task.labels, labels[split.har])
    np.testing.assert_array_equal(task.unseen, recordings["sensor"][split.evaluated])
    np.testing.assert_array_equal(exam.labels, labels[split.evaluated])
    np.testing.assert_array_equal(exam.partners, recordings["video"][split.evaluated])
    np.testing.assert_array_equal(exam.bound, recordings["sensor"][split.har])
    names = {field.name for field in dataclasses.fields(Task)}
    assert names == {"pairs", "labelled", "labels", "unseen"}
    for mine in (*task.pairs, task.labelled, task.unseen):
        assert not np.shares_memory(mine, recordings["video"])
        assert not np.shares_memory(mine, recordings["sensor"])


def rank_by_everything(task):
    """Ranks of contrastive encoders and of what is built on them, and of the features alone."""
    branch = encoders.Branch(
        make=lambda key: encoders.SeriesEncoder(key, channels=3, latent=6, widths=(8,), hidden=8),
        augment=lambda key, x: x + 0.1 * jax.random.normal(key, x.shape),
        prepare=lambda x: x,
        name="small",
    )
    key = jax.random.key(0)
    trained = training.train(
        (branch, branch),
        task.pairs,
        keys=key[None],
        settings=training.Settings(epochs=4, batch_size=8),
    )
    own = task.encode(
        lambda x: training.encode(trained, x, view=0)[0],
        lambda x: training.encode(trained, x, view=1)[0],
    )
    blank = Exam(
        labels=np.zeros(len(task.unseen), int),
        partners=np.ones((len(task.unseen), 6), np.float32),
        bound=np.ones((len(task.labelled), 6), np.float32),
    )
    ranks = {"CA": rank_classes(own.labelled, own.labels, own.unseen)}
    ranks["CA, MLP"] = rank_by_mlp(own, key=key, steps=20)
    for method, latents, _ in methods.align_all(own, blank, methods=every((3,), (3,), size=6)):
        ranks[method.label] = rank_classes(latents.labelled, latents.labels, latents.unseen)
    plain = task.encode(lambda x: x.reshape(len(x), -1), lambda x: x.reshape(len(x), -1))
    ranks["pseudo-labels"] = methods.rank_by_pseudo_labels(plain)
    return ranks


@pytest.mark.slow
def test_what_may_not_be_seen_changes_nothing(data, rng):
    """Labels of pairs and target, target of labelled clips, source of unseen ones: all spoilt."""
    recordings, labels, split = data
    honest = rank_by_everything(pose(data)[0])
    spoilt_labels = labels.copy()
    spoilt_labels[split.align] = 99
    spoilt_labels[split.evaluated] = rng.permutation(labels[split.evaluated])
    spoilt = {name: x.copy() for name, x in recordings.items()}
    spoilt["sensor"][split.har] = np.nan
    spoilt["video"][split.evaluated] = np.nan
    task, _ = make_task(spoilt, spoilt_labels, split, source="video", target="sensor")
    found = rank_by_everything(task)
    assert set(found) == set(honest)
    assert len(found) >= 12
    for name in honest:
        np.testing.assert_array_equal(found[name], honest[name], err_msg=name)


def test_wrong_roles_are_refused(data):
    recordings, labels, split = data
    with pytest.raises(ValueError, match="source must be one of 'video', 'sensor', got 'sound'"):
        make_task(recordings, labels, split, source="sound", target="sensor")
    with pytest.raises(ValueError, match="must be different modalities, both are 'video'"):
        make_task(recordings, labels, split, source="video", target="video")
    task, _ = pose(data)
    with pytest.raises(ValueError, match=r"pairs\[0\] and pairs\[1\] must have the same number"):
        dataclasses.replace(task, pairs=(task.pairs[0], task.pairs[1][:5]))
    with pytest.raises(ValueError, match="labelled and labels must have the same number of rows"):
        dataclasses.replace(task, labels=task.labels[:5])


# The methods.


def test_aligned_latents_of_pairs_coincide_and_transfer(data):
    task, exam = methods.align(*flatten(*pose(data)))
    scale = np.linalg.norm(task.pairs[0], axis=1).mean()
    assert np.linalg.norm(task.pairs[0] - task.pairs[1], axis=1).max() < 1e-4 * scale  # float32
    ranks = rank_classes(task.labelled, task.labels, task.unseen)
    assert accuracy(exam, ranks) > 0.9
    found = exam.agreement(task)
    assert found["R@1"] > 50
    assert 0 < found["relative CMAE"] < 0.5


def test_lifted_alignment_is_the_informative_part(data):
    """Whatever basis the span is written in, the latents have the same inner products."""
    from perfalign_jax import solver

    task, exam = flatten(*pose(data))
    after, _ = methods.align(task, exam, method=methods.Method("energy", center=False))
    direct = solver.fit(task.pairs, k=None, select="energy")
    z = np.asarray(solver.encode(direct, task.unseen, view=1))
    np.testing.assert_allclose(
        after.unseen @ after.unseen.T, z @ z.T, atol=1e-4 * np.abs(z @ z.T).max()
    )


def test_names_say_what_is_fitted(data):
    task, exam = flatten(*pose(data))
    listed = [m for m in every((5, 99), (5, 24), size=48) if m != methods.ALIGN]
    found = {method.name: t for method, t, _ in methods.align_all(task, exam, methods=listed)}
    assert next(iter(found)) == "PA, trailing k = 48 (the paper)"
    assert "PA, energy k = 5" in found
    assert not any("= 99" in name for name in found)  # more than the latents have
    assert [name for name in found if "inside" in name] == ["PA inside 5 principal directions"]
    assert found["PA, energy k = 5"].unseen.shape[1] == 5
    assert found["ridge CCA, k ≤ 128"].unseen.shape[1] == 23  # 24 centred pairs
    for latents in found.values():
        assert latents.labelled.shape[1] == latents.unseen.shape[1]
        np.testing.assert_array_equal(latents.labels, task.labels)


def test_a_method_says_where_and_how_it_is_used():
    method = methods.Method("trailing", k=4, center=False, space="CA", decoder="MLP decoder")
    assert method.label == "CA + PA, trailing k = 4 (the paper), MLP decoder"
    assert methods.Method("identity", space="CA").label == "CA"
    assert dataclasses.replace(method, backwards=True).label.startswith("from IMU: CA + PA")
    for wrong, error, message in (
        ({"kind": "best"}, ValueError, "kind must be one of 'identity', .*, got 'best'"),
        ({"kind": "energy", "k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"kind": "trailing", "inside": 2.5}, TypeError, "inside must be an integer"),
        ({"kind": "ridge_cca", "ridge": 0.0}, ValueError, "ridge must be above zero"),
        ({"kind": "ridge_cca"}, TypeError, "ridge must be a number, got None"),
        ({"kind": "procrustes", "ridge": 1.0}, ValueError, "ridge is for ridge_regression and"),
    ):
        with pytest.raises(error, match=message):
            methods.Method(**wrong)


def test_latents_of_a_narrow_layer_are_aligned_all_the_same(data, rng, x64):
    """The rank of latents is the width of the narrowest layer before them."""
    narrow = rng.normal(size=(48, 3)) @ rng.normal(size=(3, 10))
    task, exam = flatten(*pose(data))
    task, exam = (one.encode(lambda x: x @ narrow, lambda x: x @ narrow) for one in (task, exam))
    listed = [m for m in every((2,), size=10) if m != methods.ALIGN]
    found = {method.kind: t for method, t, _ in methods.align_all(task, exam, methods=listed)}
    assert found["ridge_cca"].unseen.shape[1] == 3


def test_a_collapse_is_told_and_still_scored(data):
    task, exam = flatten(*pose(data))
    with pytest.warns(CollapseWarning):
        methods.align(task, exam, method=methods.Method("trailing", k=48, center=False))


def test_directions_have_length_one(data):
    task, exam = methods.to_directions(*flatten(*pose(data)))
    for x in (*task.pairs, task.labelled, task.unseen, exam.partners, exam.bound):
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("dtype", "size"), [("f2", 300), ("f4", 1e25), ("f4", 1e-30)])
def test_directions_do_not_depend_on_the_size_of_latents(data, dtype, size):
    posed = flatten(*pose(data))
    expected = methods.to_directions(*posed)[0].unseen
    task, _ = methods.to_directions(
        *(own.encode(*[lambda x: (x * size).astype(dtype)] * 2) for own in posed)
    )
    np.testing.assert_allclose(task.unseen, expected, atol=2e-3)  # half precision


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_joined_features_do_not_depend_on_their_size(data, size):
    posed = flatten(*pose(data))
    scaled = [own.encode(*[lambda x: (x * size).astype("f4")] * 2) for own in posed]
    expected, found = (methods.join(p, p)[0].unseen for p in (posed, scaled))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32, values around one


def test_half_precision_is_aligned_like_single(data):
    posed = flatten(*pose(data))
    half = [own.encode(*[lambda x: x.astype(np.float16)] * 2) for own in posed]
    listed = every((8,), (8,), size=48)
    for one, other in zip(
        methods.align_all(*posed, methods=listed),
        methods.align_all(*half, methods=listed),
        strict=True,
    ):
        assert one[0] == other[0]
        assert np.isfinite(other[1].unseen).all()
        if one[0].kind == "ridge_regression":  # the others may choose other null directions
            first, second = (t.unseen @ t.labelled.T for t in (one[1], other[1]))
            np.testing.assert_allclose(second, first, atol=0.02 * np.abs(first).max())  # 11 bits


def test_latents_that_hold_nothing_are_refused(data):
    task, exam = flatten(*pose(data))
    still = dataclasses.replace(task, pairs=(task.pairs[0], np.ones_like(task.pairs[1])))
    with pytest.raises(ValueError, match=r"pairs\[1\] has latents that are all the same"):
        methods.align(still, exam)
    with pytest.raises(ValueError, match="second has pairs that are all the same"):
        methods.join((task, exam), (still, exam))


def test_joined_features_have_the_sizes_asked_for(data):
    first = flatten(*pose(data))
    task, _ = methods.join(first, first, weight=0.5)
    for x in task.pairs:
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
        sizes = [np.sqrt(np.mean(np.sum(part**2, axis=1))) for part in np.split(x, 2, axis=1)]
        np.testing.assert_allclose(sizes, [0.5, 1], rtol=1e-5)


def test_a_teacher_that_knows_all_gives_what_labels_would(data, rng):
    task, exam = flatten(*pose(data))
    ranks = methods.rank_by_pseudo_labels(task)
    assert accuracy(exam, ranks) > 0.9
    narrow = dataclasses.replace(  # the pairs show one class less than the labelled clips
        task,
        pairs=tuple(
            x[rank_classes(task.labelled, task.labels, task.pairs[0])[:, 0] != 8]
            for x in task.pairs
        ),
    )
    ranks = methods.rank_by_pseudo_labels(narrow)
    assert ranks.shape[1] == 3
    assert (ranks[:, 2] == 8).all()


@pytest.mark.parametrize("size", [6, 48])
def test_the_mlp_decoder_learns_from_few_and_from_many_dimensions(data, size):
    task, exam = flatten(*pose(data))
    after, _ = methods.align(task, exam)
    chosen = after.encode(lambda z: z[:, :size], lambda z: z[:, :size])
    ranks = rank_by_mlp(chosen, key=jax.random.key(0))
    assert np.sort(ranks, axis=1).tolist() == [CLASSES.tolist()] * 12
    assert accuracy(exam, ranks) > 0.9
    scaled = chosen.encode(lambda z: 1000 * z, lambda z: 1000 * z)
    np.testing.assert_array_equal(ranks[:, 0], rank_by_mlp(scaled, key=jax.random.key(0))[:, 0])


def test_a_teacher_that_gives_one_class_only_is_followed(data):
    task, _ = flatten(*pose(data))
    one = dataclasses.replace(task, pairs=tuple(np.repeat(x[:1], 5, axis=0) for x in task.pairs))
    ranks = methods.rank_by_pseudo_labels(one)
    assert len(np.unique(ranks[:, 0])) == 1
    assert np.sort(ranks, axis=1).tolist() == [CLASSES.tolist()] * 12


def test_the_mlp_refuses_what_it_cannot_learn_from():
    z = np.eye(3, dtype=np.float32)
    task = Task((z, z), labelled=z, labels=np.arange(3), unseen=z)
    key = jax.random.key(0)
    for change, match in (
        ({"labelled": z * np.nan}, "labelled"),
        ({"unseen": z * np.nan}, "unseen"),
        ({"labelled": 0 * z}, "without any energy"),
        ({"unseen": z[:, :2]}, "latents of one size"),
    ):
        with pytest.raises(ValueError, match=match):
            rank_by_mlp(dataclasses.replace(task, **change), key=key)
    with pytest.raises(ValueError, match="steps"):
        rank_by_mlp(task, key=key, steps=0)
    one = Task((z[:1], z[:1]), labelled=z, labels=np.arange(3), unseen=z)
    exam = Exam(labels=np.arange(3), partners=z, bound=z)
    with pytest.raises(ValueError, match="at least 2 pairs"):
        methods.join((one, exam), (one, exam))
