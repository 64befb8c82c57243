"""The simulated dataset: mechanics, sensors, files, and what a reader makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perfalign_jax.har.data import simulate as module
from perfalign_jax.har.data._drawing import FOCAL
from perfalign_jax.har.data.dataset import read_recordings
from perfalign_jax.har.data.simulate import draw_subject, perform, simulate
from perfalign_jax.har.data.splits import read_split
from perfalign_jax.har.data.utd_mhad import discover, parse_name, read_clip

BONES = ((0, 1), (1, 2), (2, 3), (1, 4), (4, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11))
BONES += ((3, 12), (12, 13), (13, 14), (14, 15), (3, 16), (16, 17), (17, 18), (18, 19))


@pytest.fixture(scope="module")
def subject():
    return draw_subject(key=jax.random.key(1))


@pytest.fixture(scope="module")
def clips(subject):
    key = jax.random.key(2)
    return {a: perform(subject, action=a, key=key, noise=0) for a in range(1, 28)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mhad"
    simulate(folder, key=jax.random.key(3), subjects=2, trials=1, actions=[9, 14, 25])
    return folder


# The body.


@pytest.mark.slow
def test_a_body_with_all_angles_zero_hangs_straight(subject):
    plan = module._plan(subject, jnp.asarray(1), jax.random.key(0))
    joints, forearm, limb, _ = module._body(jnp.zeros(23), plan)
    joints = np.asarray(joints) - np.asarray(joints)[3]
    np.testing.assert_allclose(forearm, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(limb, np.eye(3), atol=1e-6)
    for chain in ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14), (16, 17, 18)):
        np.testing.assert_allclose(np.ptp(joints[list(chain)][:, [0, 2]], axis=0), 0, atol=1e-5)
        assert (np.diff(joints[list(chain), 1]) < 0).all()  # downwards
    mirrored = joints[np.array([0, 1, 2, 3, *range(12 - 4, 12), *range(4, 8)])]
    np.testing.assert_allclose(mirrored[:12] * [-1, 1, 1], joints[:12], atol=1e-5)
    assert joints[11, 0] > 0.1  # the right hand is to the right


def test_each_joint_turns_the_way_its_name_says(subject):
    plan = module._plan(subject, jnp.asarray(1), jax.random.key(0))

    def hand(**turned):
        q = jnp.zeros(23)
        for name, degrees in turned.items():
            q = q.at[["flexion", "abduction", "inward", "elbow"].index(name) + 7].set(
                np.deg2rad(degrees)
            )
        joints = np.asarray(module._body(q, plan)[0])
        return (joints[11] - joints[8]) / np.linalg.norm(joints[11] - joints[8])

    np.testing.assert_allclose(hand(flexion=90), [0, 0, -1], atol=1e-3)  # towards the camera
    np.testing.assert_allclose(hand(abduction=90), [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(hand(flexion=180), [0, 1, 0], atol=1e-3)
    assert hand(elbow=90)[2] < -0.5
    assert hand(elbow=90, inward=90)[0] < -0.5  # the forearm in front of the belly
    assert hand(flexion=90, elbow=90)[1] > 0.5


@pytest.mark.slow
def test_bones_keep_their_length_and_feet_stay_above_the_floor(clips):
    for clip in clips.values():
        for a, b in BONES:
            length = np.linalg.norm(clip.joints[:, a] - clip.joints[:, b], axis=1)
            np.testing.assert_allclose(length, length[0], rtol=1e-4)
        lowest = clip.joints[:, [14, 18], 1].min(axis=1) - module._FLOOR
        assert (lowest > 0.04).all()
        assert (lowest < 0.12).all()


def test_actions_look_like_their_names(clips):
    right, left, head, hips = 11, 7, 0, 3
    swipe = clips[1].joints[:, right, 0]
    assert np.argmax(swipe) < np.argmin(swipe)
    swipe = clips[2].joints[10:, right, 0]
    assert np.argmin(swipe) < np.argmax(swipe)
    together = np.linalg.norm(clips[4].joints[:, right] - clips[4].joints[:, left], axis=1)
    assert together.min() < 0.2 < 0.4 < together[0]
    assert clips[7].joints[:, right, 1].max() > clips[7].joints[:, head, 1].max()
    for action, sign in ((9, 1), (10, -1)):
        path = clips[action].joints[:, right, :2]
        x, y = (path[15:-15] - path[15:-15].mean(axis=0)).T
        area = 0.5 * np.sum(x[:-1] * np.diff(y) - y[:-1] * np.diff(x))
        assert -sign * area > 0.02  # clockwise as the subject sees it: negative
    assert clips[24].joints[-1, hips, 1] - clips[24].joints[0, hips, 1] > 0.2
    assert clips[25].joints[0, hips, 1] - clips[25].joints[-1, hips, 1] > 0.2
    height = clips[27].joints[:, hips, 1]
    assert height[0] - height.min() > 0.2
    np.testing.assert_allclose(height[0], height[-1], atol=0.03)


# The sensor.


@pytest.mark.slow
def test_acceleration_and_rate_are_the_derivatives_of_the_motion(subject, x64, promoting):
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), subject)
    h = 1e-4
    sensor = jax.jit(module._sensor)
    measure = jax.jit(module._measure)
    for action in (5, 22):
        plan = module._plan(wide, jnp.asarray(action), jax.random.key(5))
        for t in (0.4, 1.0, 1.13):
            (before, a, _), (now, b, _), (after, c, _) = (
                sensor(jnp.asarray(s), plan) for s in (t - h, t, t + h)
            )
            force = b.T @ ((after - 2 * now + before) / h**2 + np.array([0, 9.81, 0])) / 9.81
            spin = b.T @ (c - a) / (2 * h)
            rate = np.rad2deg(np.array([spin[2, 1], spin[0, 2], spin[1, 0]]))
            found = np.asarray(measure(jnp.asarray(t), plan)["inertial"])
            np.testing.assert_allclose(found[:3], force, atol=2e-3)
            np.testing.assert_allclose(found[3:], rate, atol=2e-2)
            np.testing.assert_allclose(spin, -spin.T, atol=1e-4)


def test_a_body_that_does_not_move_reads_one_g_and_no_rate(subject):
    plan = module._plan(subject, jnp.asarray(3), jax.random.key(0))
    still = plan | {"deltas": 0 * plan["deltas"], "tremble": 0 * plan["tremble"]}
    found = np.asarray(module._move(still)["inertial"])
    np.testing.assert_allclose(np.linalg.norm(found[:, :3], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[:, 3:], 0, atol=1e-3)


def test_a_person_at_rest_reads_about_one_g_as_mounted(clips):
    for action, clip in clips.items():
        rest = clip.inertial[-5:] if action not in (25,) else clip.inertial[:5]
        assert abs(np.linalg.norm(rest[:, :3], axis=1).mean() - 1) < 0.06, action
        assert rest[:, 0].mean() < -0.8, action  # x points down the limb that hangs
    assert clips[25].inertial[-5:, 1].mean() < -0.6  # seated: y points down


def test_the_rotation_of_the_sensor_is_a_rotation(clips):
    axes = clips[15].rotation
    np.testing.assert_allclose(
        axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (len(axes), 1, 1)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(axes), 1, atol=1e-5)


# Chance.


def test_the_key_decides_everything(subject):
    first, again, other = (perform(subject, action=13, key=jax.random.key(k)) for k in (7, 7, 8))
    for name in ("inertial", "skeleton", "joints"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        n = min(len(getattr(first, name)), len(getattr(other, name)))
        assert np.abs(getattr(first, name)[:n] - getattr(other, name)[:n]).max() > 0.01


def test_noise_is_scaled_and_the_motion_is_not(subject):
    key = jax.random.key(9)
    clean, noisy, loud = (perform(subject, action=20, key=key, noise=k) for k in (0, 1.0, 2))
    np.testing.assert_array_equal(clean.joints, loud.joints)
    np.testing.assert_array_equal(clean.skeleton, clean.joints)
    np.testing.assert_allclose(
        loud.inertial - clean.inertial, 2 * (noisy.inertial - clean.inertial), atol=1e-3
    )
    error = np.linalg.norm(noisy.skeleton - noisy.joints, axis=2)
    assert 0.005 < error.mean() < 0.08


def test_people_differ_more_than_trials_of_one():
    people = [draw_subject(key=jax.random.key(s)) for s in range(5)]
    tempo = np.array(
        [
            [len(perform(p, action=8, key=jax.random.key(t)).joints) for t in range(4)]
            for p in people
        ]
    )
    assert tempo.mean(axis=1).std() > tempo.std(axis=1).mean()
    sizes = np.array([np.asarray(p.lengths) for p in people])
    assert (sizes.std(axis=0) / sizes.mean(axis=0) > 0.01).all()


@pytest.mark.slow
def test_actions_can_be_told_apart_between_subjects_but_not_always():
    people = [draw_subject(key=jax.random.key(s)) for s in range(6)]
    signals, labels, groups = [], [], []
    for s, person in enumerate(people):
        for action in range(1, 28):
            clip = perform(person, action=action, key=jax.random.key(100 * s + action))
            at = np.linspace(0, len(clip.inertial) - 1, 40)
            series = [np.interp(at, np.arange(len(clip.inertial)), x) for x in clip.inertial.T]
            signals.append(np.concatenate(series[:3] + [x / 100 for x in series[3:]]))
            labels.append(action)
            groups.append(s)
    signals, labels, groups = (np.array(x) for x in (signals, labels, groups))
    apart = np.linalg.norm(signals[:, None] - signals[None], axis=2)
    apart[groups[:, None] == groups[None]] = np.inf
    accuracy = (labels[apart.argmin(axis=1)] == labels).mean()
    assert 0.4 < accuracy < 0.98  # chance is 0.04


# Files.


def test_the_files_read_as_the_real_ones_do(root):
    catalog = discover(root)
    assert len(catalog.names) == 6
    assert catalog.problems == ()
    for name, inertial, skeleton, depth in zip(catalog.names, *catalog.files.values(), strict=True):
        sensor, joints, video = (
            read_clip(path, modality=m)
            for path, m in ((inertial, "inertial"), (skeleton, "skeleton"), (depth, "depth"))
        )
        assert len(joints) == len(video)
        assert abs(len(sensor) / 50 - len(joints) / 30) < 0.05, name
        assert 107 <= len(sensor) <= 336
        assert video.dtype == np.uint16
        assert video.shape[1:] == (240, 320)
        assert 0.03 < (video > 0).mean() < 0.15
        assert 1500 < np.median(video[video > 0]) < 3600
        assert 0.9 < np.median(np.linalg.norm(sensor[:, :3], axis=1)) < 1.2
        assert 30 < np.abs(sensor[:, 3:]).max() < 2000
    data = read_recordings(root, length=24, frames=8)
    assert data.signals["depth"].shape[:2] == (6, 8)
    assert data.actions.tolist() == [9, 9, 14, 14, 25, 25]


def test_joints_land_on_the_person_at_the_right_depth(root):
    name = "a14_s1_t1"
    joints = read_clip(root / "Skeleton" / f"{name}_skeleton.mat", modality="skeleton")
    video = read_clip(root / "Depth" / f"{name}_depth.mat", modality="depth")
    x, y, z = np.moveaxis(joints, 2, 0)
    column = np.round(160 + FOCAL * x / z).astype(int)
    row = np.round(120 - FOCAL * y / z).astype(int)
    frame = np.arange(len(joints))[:, None]
    found = video[frame, row, column] / 1000
    assert (found > 0).mean() > 0.9
    behind = (z - found)[found > 0]
    assert 0.02 < np.median(behind) < 0.15  # joints lie inside the body
    assert np.quantile(behind, 0.05) > -0.1  # and nothing is seen behind them


def test_files_depend_on_the_key_alone(root, tmp_path):
    simulate(tmp_path / "x", key=jax.random.key(3), subjects=1, trials=2, actions=[14], workers=1)
    for path in ("Depth/a14_s1_t1_depth.mat", "Inertial/a14_s1_t1_inertial.mat"):
        a, b = ((folder / path).read_bytes()[128:] for folder in (root, tmp_path / "x"))
        assert a == b
    other = "Inertial/a14_s1_t2_inertial.mat"
    assert (tmp_path / "x" / other).read_bytes()[128:] != a


@pytest.mark.slow
def test_colour_videos_are_what_the_name_promises(tmp_path):
    av = pytest.importorskip("av")
    simulate(tmp_path, key=jax.random.key(3), subjects=1, trials=1, actions=[7], modalities=["rgb"])
    assert discover(tmp_path, modalities=["rgb"]).names == ("a7_s1_t1",)
    with av.open(str(tmp_path / "RGB" / "a7_s1_t1_color.avi")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (640, 480, 30)
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    assert len(frames) > 60
    moving = np.std(np.stack(frames[::10]).astype(float), axis=0).max(axis=2)
    assert (moving > 10).mean() < 0.3  # a fixed camera in front of a fixed room
    assert moving[40:200, 200:440].max() > 30  # raised arms


@pytest.mark.slow
def test_the_split_uses_every_clip_once_in_the_authors_proportions(tmp_path):
    names = simulate(tmp_path, key=jax.random.key(0), subjects=6, trials=2, modalities=["inertial"])
    split = read_split(tmp_path / "splits" / "40_40_10_10", names)
    sizes = [len(role) for role in (split.har, split.align, split.val, split.test)]
    assert sizes == [137, 138, 32, 17]
    assert {parse_name(name)[0] for name in names} == set(range(1, 28))
    assert not split.missing


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    options = {"key": jax.random.key(4), "subjects": 2, "trials": 2, "actions": [1, 2]}
    options |= {"modalities": ["inertial", "skeleton"], "workers": 1}
    real, calls = module.write_whole, []

    def stop(path, content):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(module, "write_whole", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "a", **options)
    monkeypatch.setattr(module, "write_whole", real)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.mat")}
    assert kept
    names = simulate(tmp_path / "a", **options)
    assert discover(tmp_path / "a", modalities=["inertial", "skeleton"]).names == names
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())
    simulate(tmp_path / "b", **options)
    for path in (tmp_path / "b").rglob("*.mat"):
        twin = tmp_path / "a" / path.relative_to(tmp_path / "b")
        assert twin.read_bytes()[128:] == path.read_bytes()[128:]


# Errors.


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"subjects": 0}, ValueError, "subjects must be at least 1"),
        ({"subjects": 1.5}, TypeError, "subjects must be an integer"),
        ({"trials": 0}, ValueError, "trials"),
        ({"workers": 0}, ValueError, "workers"),
        ({"actions": [28]}, ValueError, "actions must be between 1 and 27"),
        ({"actions": []}, ValueError, "actions must list at least one"),
        ({"actions": [3, 3]}, ValueError, "each once"),
        ({"modalities": ["sound"]}, ValueError, "modalities must be one of 'inertial'"),
        ({"modalities": []}, ValueError, "modalities must list"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path, wrong, error, message):
    with pytest.raises(error, match=message):
        simulate(tmp_path / "x", key=jax.random.key(0), **wrong)
    assert not (tmp_path / "x").exists()


def test_bad_arguments_of_a_performance_are_named(subject):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="action must be between 1 and 27"):
        perform(subject, action=0, key=key)
    with pytest.raises(TypeError, match="action must be an integer"):
        perform(subject, action="wave", key=key)
    with pytest.raises(ValueError, match="noise must be zero or more"):
        perform(subject, action=1, key=key, noise=-1)
    with pytest.raises(TypeError, match="subject must be a Subject"):
        perform("me", action=1, key=key)


def test_a_folder_never_mixes_two_keys_or_real_recordings(root, tmp_path):
    with pytest.raises(ValueError, match="another key"):
        simulate(root, key=jax.random.key(99), subjects=1)
    (tmp_path / "Inertial").mkdir()
    with pytest.raises(ValueError, match="not simulated"):
        simulate(tmp_path, key=jax.random.key(0), subjects=1)
