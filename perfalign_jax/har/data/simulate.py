"""A simulated UTD-MHAD in the files of the real one, so that everything runs without the dataset.

Each action is a programme of joint angles on a 20-joint skeleton. The same motion gives the
inertial sensor's reading (exact derivatives of its place and axes, plus gravity, bias and noise),
the skeleton as a camera's tracker sees it, and depth and colour videos.

How it differs from the real data (eight or six people, medians over clips unless said otherwise):

- Spread: logistic regression tested on people left out finds 77 % of the actions from inertial
  series and 87 % from skeletons (real: 76 % and 88 %); the spread of habits was chosen so that it
  does. Habits are random per person, action and channel, so that a few clips look odd: hands that
  miss each other in a clap, an arm through the trunk, a throw with one arm too low.
- Size: peaks of the acceleration lie between 1.1 g (sitting down; real 1.2) and 6.1 g (tennis
  swing; real 6.5), those of the angular rate between 58 (lunge; real 88) and 794 degrees/s (tennis
  swing; real 827). Baseball swing and tennis serve turn the wrist 27 to 38 % too slowly.
- Length: 148 to 238 samples by action (real 150 to 231), 123 to 280 over all clips (real 107 to
  326). Files have 30 frames per second as published; the real ones hold one frame for 2.6 inertial
  samples, which makes 19 per second: 41 to 125 frames there, 73 to 168 here.
- Sensor: readings are smoother between movements, and impacts are short bumps. The norm at the end
  of a clip is 0.97 to 1.03 g (5 and 95 %; real 0.99 to 1.06).
- Video: bodies are capsules, twice as coarse as the pixels, on 6.2 % of the image (real 7.1 %):
  no loose clothes, no chair. The background is 0, as in the real files.
- Skeleton: the tracker loses no limb that is hidden; the real one does, and repeats frames.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from perfalign_jax import _checks
from perfalign_jax.har.data._drawing import FRAME_RATE, film, pack_colour, pack_depth, pack_mat
from perfalign_jax.har.data._programmes import CHANNELS, SCALE, TABLE
from perfalign_jax.har.data.utd_mhad import path_of, run_in_threads
from perfalign_jax.serialization import write_whole

__all__ = ["simulate"]

_VERSION = 1  # part of the mark of a folder: raise it when the files change
_RATE = 50  # samples of the inertial sensor per second
_SAMPLES, _FRAMES = 336, 202  # room for the longest performance, 6.7 s
_GRAVITY = 9.81
_FLOOR = -1.08  # height of the floor below the camera, in metres


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Subject:
    """A person: proportions, and how they move.

    Attributes:
        lengths: in metres: head, neck to spine, spine to hips, half shoulders, shoulder drop, upper
            arm, forearm, hand, half hips, hip drop, thigh, shank, foot.
        girth: factor on the thickness of every limb.
        rest: pose at rest, 23 channels in radians and metres.
        tempo: for each action, duration relative to the usual one.
        style: for each action, factor on how far each channel goes.
        habit: for each action, how they hold the right arm otherwise than usual, in radians.
        place: where they stand, in metres: right of, above and behind the usual place.
        mount: how the sensor sits askew on wrist and thigh, rotation vectors in radians.
        colours: of skin, shirt, trousers and hair, RGB from 0 to 1.
    """

    lengths: Float[Array, "13"]
    girth: Float[Array, ""]
    rest: Float[Array, "23"]
    tempo: Float[Array, "27"]
    style: Float[Array, "27 23"]
    habit: Float[Array, "27 5"]
    place: Float[Array, "3"]
    mount: Float[Array, "2 3"]
    colours: Float[Array, "4 3"]


@dataclasses.dataclass(frozen=True)
class Performance:
    """One performance of an action, as moved and as measured; world: right, up, away from camera.

    Attributes:
        inertial: what the sensor reads at 50 Hz: acceleration in g, angular rate in degrees/s.
        skeleton: what the camera's tracker reports at 30 Hz, metres.
        joints: where the joints are, metres.
        position: where the sensor is, metres.
        rotation: axes of the sensor in the world, as columns.
    """

    inertial: Float[np.ndarray, "T 6"]
    skeleton: Float[np.ndarray, "t 20 3"]
    joints: Float[np.ndarray, "t 20 3"]
    position: Float[np.ndarray, "T 3"]
    rotation: Float[np.ndarray, "T 3 3"]


@jax.jit
def draw_subject(*, key: Key[Array, ""]) -> Subject:
    """Draw a person; bones as long as those of UTD-MHAD's eight people, spread by 7 %."""
    _checks.key(key)
    draws = jax.random.normal(key, (58, 27))  # one call: every further one costs compilation
    (size, pace, energy, girth, skin), own = draws[3, :5], draws[3, 5:]
    usual = jnp.array(
        [0.185, 0.34, 0.078, 0.165, 0.11, 0.265, 0.235, 0.07, 0.078, 0.075, 0.45, 0.36, 0.08]
    )
    hanging = jnp.array([0.0] * 7 + [0.0, 6.0, 0.0, 14.0, 0.0] * 2 + [0.0, 0.0, 4.0] * 2)
    spread = jnp.array([0.0] * 4 + [1.5] * 3 + [3.0, 2.0, 6.0, 5.0, 8.0] * 2 + [1.0] * 6)
    loose = jnp.where(jnp.arange(CHANNELS) < 17, 0.3, 0.1)  # arms differ more than legs
    clothes = 0.08 + 0.77 * jax.nn.sigmoid(1.5 * own[9:18].reshape(3, 3))
    tan = jnp.array([[0.85, 0.65, 0.52]]) * (0.5 + 0.6 * jax.nn.sigmoid(skin))
    return Subject(
        lengths=usual * (1 + 0.05 * size) * (1 + 0.04 * draws[0, :13]),
        girth=jnp.exp(0.08 * girth),
        rest=(hanging + spread * draws[1, :CHANNELS]) * jnp.asarray(SCALE, spread.dtype),
        tempo=jnp.exp(0.1 * pace + 0.08 * draws[2]),
        style=1 + 0.06 * energy + loose[None] * draws[4:31, :CHANNELS],
        habit=jnp.deg2rad(12.0) * draws[31:, :5],
        place=jnp.array([0.02, 0.01, 0.04]) * own[:3],
        mount=jnp.deg2rad(jnp.array([[18.0, 7.0, 7.0]])) * own[3:9].reshape(2, 3),
        colours=jnp.concatenate([tan, clothes]),
    )


@jax.jit
def _plan(subject: Subject, action: Array, key: Array) -> dict[str, Array]:
    """Everything that a performance is a function of, time apart: subject, action and trial."""
    draws = jax.random.normal(key, (29, CHANNELS))
    own, row = draws[28], action - 1
    table = {name: jnp.asarray(value)[row] for name, value in TABLE.items()}
    poses = table["poses"] * subject.style[row][None] * (1 + 0.06 * draws[:20])
    raised = (table["poses"][:, 7:12] != 0).any(axis=1, keepdims=True)
    poses = poses.at[:, 7:12].add(jnp.where(raised, subject.habit[row][None], 0))
    sway = jnp.zeros(CHANNELS).at[jnp.array([4, 5, 6, 7, 8, 9, 10, 12, 13, 14])].set(1.0)
    kept = ("centres", "widths", "impacts", "seconds", "moving", "thigh")
    return {name: table[name] for name in kept} | {
        "deltas": jnp.diff(poses, axis=0),
        "start": poses[0] + subject.rest + 0.015 * sway * draws[26],
        "strength": jnp.exp(0.35 * own[:8]),
        "duration": table["seconds"] * subject.tempo[row] * jnp.exp(0.04 * own[8]),
        "lag": 0.1 * own[9:11],
        "delay": 0.12 * own[20],
        "tremble": 0.0025 * sway[None] * draws[20:26],
        "pitch": 3 * draws[27, :6],
        "lengths": subject.lengths,
        "place": subject.place + jnp.array([0.015, 0.0, 0.03]) * own[11:14],
        "mount": subject.mount + jnp.deg2rad(3.0) * own[14:20].reshape(2, 3),
    }


def _angles(t: Array, plan: dict[str, Array]) -> Array:
    """Channels at a time in seconds: smooth steps from key pose to key pose, and trembling."""
    u = t / plan["duration"]
    # Two people never keep the same rhythm: time runs a little ahead here and behind there.
    ahead = plan["lag"] @ jnp.sin(2 * jnp.pi * u * jnp.array([1.0, 2.0])) / (2 * jnp.pi)
    s = plan["seconds"] * (u + ahead) - plan["delay"]
    steps = 0.5 + 0.5 * jax.lax.erf((s - plan["centres"]) / (math.sqrt(2) * plan["widths"]))
    q = plan["start"] + steps @ plan["deltas"]
    rates = 2 * jnp.pi * jnp.array([0.25, 0.6, 1.1, 2.3, 4.1, 6.7])
    calm = jnp.array([3.0, 2.0, 1.2, 0.6, 0.25, 0.1])
    q = q + (calm * jnp.sin(rates * t + plan["pitch"])) @ plan["tremble"]
    hit = plan["strength"] @ jnp.exp(-0.5 * jnp.square((s - plan["impacts"]) / 0.014))
    arms = (1 - plan["thigh"]) * hit * 0.018
    return q.at[jnp.array([9, 10, 14, 15])].add(arms).at[1].add(plan["thigh"] * hit * 0.0022)


def _turn(vector: Array) -> Array:
    """Rotation matrix of a rotation vector, smooth at zero."""
    x, y, z = vector
    zero = jnp.zeros_like(x)
    cross = jnp.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]])
    angle = jnp.sqrt(vector @ vector + 1e-9)
    share = jnp.sin(angle / 2) / angle
    return jnp.eye(3) + jnp.sin(angle) / angle * cross + 2 * share**2 * cross @ cross


def _about(axis: int, angle: Array) -> Array:
    """Rotation matrix about one of the axes."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    one, zero = jnp.ones_like(cos), jnp.zeros_like(cos)
    turn = jnp.array([[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]])
    return jnp.roll(turn, (axis, axis), (0, 1))


def _body(q: Array, plan: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
    """Forward kinematics: joints ``(20, 3)``, wrist's and thigh's frames, and the thigh's sensor.

    A limb that hangs has the frame of the world: right, up, backward.
    """
    (head, back, low, wide, drop, upper, fore, hand, hips, sink, thigh, shank, foot) = plan[
        "lengths"
    ]
    down, ahead = jnp.array([0.0, -1.0, 0.0]), jnp.array([0.0, 0.0, -1.0])
    pelvis = _about(1, q[3])
    trunk = pelvis @ _about(1, q[6]) @ _about(0, -q[4]) @ _about(2, -q[5])
    neck = pelvis @ _about(1, 0.5 * q[6]) @ _about(0, -0.5 * q[4])
    hip = jnp.zeros(3)
    spine = hip - low * (trunk @ down)
    throat = spine - back * (trunk @ down)
    joints = [throat - head * (neck @ down), throat, spine, hip]

    def arm(side: Array, q: Array) -> tuple[Array, Array]:
        mirror = jnp.stack([jnp.ones_like(side), side, side])  # reflected: turns about x stay
        shoulder = throat + trunk @ (jnp.stack([side * wide, -drop, 0.0 * drop]))
        swing = _turn(jnp.stack([q[0], jnp.zeros_like(q[0]), q[1]]) * mirror)
        limb = trunk @ swing @ _about(1, side * q[2])
        elbow = shoulder + limb @ down * upper
        forearm = limb @ _about(0, q[3]) @ _about(1, side * q[4])
        wrist = elbow + forearm @ down * fore
        return jnp.stack([shoulder, elbow, wrist, wrist + forearm @ down * hand]), forearm

    def leg(side: Array, q: Array) -> tuple[Array, Array]:
        socket = pelvis @ jnp.stack([side * hips, -sink, 0.0 * sink])
        limb = pelvis @ _about(2, side * q[1]) @ _about(0, q[0])
        knee = socket + limb @ down * thigh
        ankle = knee + limb @ _about(0, -q[2]) @ down * shank
        tilt = pelvis @ _about(0, 0.5 * (q[0] - q[2]))
        toe = ankle + tilt @ (0.85 * ahead + 0.5 * down) * foot
        return jnp.stack([socket, knee, ankle, toe]), limb

    sides = jnp.array([-1.0, 1.0])  # one program for left and right halves the compilation
    arms, forearms = jax.vmap(arm)(sides, jnp.stack([q[12:17], q[7:12]]))
    legs, limbs = jax.vmap(leg)(sides, jnp.stack([q[20:23], q[17:20]]))
    forearm, limb = forearms[1], limbs[1]
    points = jnp.concatenate([jnp.stack(joints), arms.reshape(8, 3), legs.reshape(8, 3)])
    # The hips are as high as the lower foot allows: a smooth maximum, so that motion stays smooth.
    left, right = -points[14, 1], -points[18, 1]
    apart = jnp.sqrt(jnp.square(left - right) + 0.05**2)
    height = _FLOOR + 0.06 + 0.5 * (left + right + apart)
    between = points[jnp.array([14, 18])].mean(0)
    start = plan["place"] + jnp.array([-0.08, 0.0, 2.83]) + q[:3]
    at = start + jnp.array([0.0, 1.0, 0.0]) * height
    at = at - plan["moving"] * between * jnp.array([1.0, 0.0, 1.0])
    points = points + at[None]
    strap = (limb, points[16] + limb @ (0.5 * thigh * down + jnp.array([0.06, 0.0, -0.05])))
    return points, forearm, *strap


def _sensor(t: Array, plan: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Position and axes of the inertial sensor in the world, and the joints."""
    joints, forearm, limb, on_thigh = _body(_angles(t, plan), plan)
    # Axes found in the real recordings: x along the limb, y backward, turned about the limb by
    # 25 degrees at the wrist and tilted by 21 degrees on the cone of the thigh.
    axes = jnp.array([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    wrist = forearm @ axes @ _about(0, jnp.deg2rad(-25.0)) @ _turn(plan["mount"][0])
    thigh = limb @ axes @ _about(1, jnp.deg2rad(-21.0)) @ _turn(plan["mount"][1])
    on = plan["thigh"]
    return jnp.where(on > 0, on_thigh, joints[10]), jnp.where(on > 0, thigh, wrist), joints


def _measure(t: Array, plan: dict[str, Array]) -> dict[str, Array]:
    """Ideal reading, from exact derivatives, with the sensor's place and axes and the joints."""

    def rates(t: Array) -> Any:
        return jax.jvp(lambda t: _sensor(t, plan), (t,), (jnp.ones_like(t),))

    (place, velocity), (_, second) = jax.jvp(rates, (t,), (jnp.ones_like(t),))
    position, axes, joints = place
    force = axes.T @ (second[0] + jnp.array([0.0, _GRAVITY, 0.0])) / _GRAVITY
    spin = axes.T @ velocity[1]
    rate = jnp.rad2deg(jnp.stack([spin[2, 1], spin[0, 2], spin[1, 0]]))
    inertial = jnp.concatenate([force, rate])
    return {"inertial": inertial, "position": position, "rotation": axes, "joints": joints}


@jax.jit
def _move(plan: dict[str, Array]) -> dict[str, Array]:
    """A performance at full length; what lies beyond its duration is cut off afterwards."""
    clocks = (jnp.arange(_SAMPLES) / _RATE, jnp.arange(_FRAMES) / FRAME_RATE)
    full = jax.vmap(_measure, (0, None))(jnp.concatenate(clocks), plan)
    parts = {name: value[:_SAMPLES] for name, value in full.items()}
    return parts | {"joints": full["joints"][_SAMPLES:]}


@jax.jit
def _err(key: Array) -> tuple[Array, Array]:
    """What the sensor and the tracker add: bias and noise; slow wandering, more at loose ends."""
    draws = jax.random.normal(key, ((_SAMPLES + 1) * 6 + (_FRAMES + 1) * 60,))
    sensor, tracker = draws[: (_SAMPLES + 1) * 6], draws[(_SAMPLES + 1) * 6 :]
    sensor = sensor.reshape(-1, 6) * jnp.array([[1.0] * 3 + [80.0] * 3])
    tracker = tracker.reshape(-1, 20, 3) * jnp.array([[[1.0, 1.0, 1.5]]])
    loose = jnp.ones((20, 1)).at[jnp.array([7, 11, 15, 19])].set(2.5)

    def step(state: Array, new: Array) -> tuple[Array, Array]:
        state = 0.75 * state + 0.66 * new
        return state, state

    _, wander = jax.lax.scan(step, jnp.zeros((20, 3)), tracker[1:] * loose[None])
    return 0.015 * sensor[:1] + 0.012 * sensor[1:], 0.006 * wander + 0.015 * tracker[:1]


def perform(
    subject: Subject, *, action: int, key: Key[Array, ""], noise: int | float = 1.0
) -> Performance:
    """Let a person perform an action once; compiled once for all of them.

    The sensor is on the right wrist up to action 21, then on the thigh. ``noise`` is a factor on
    what sensor and tracker add (bias and noise); 0 for exact readings.
    """
    if not isinstance(subject, Subject):
        raise TypeError(f"subject must be a Subject, got {type(subject).__name__}.")
    action = _checks.integer(action, "action", low=1, high=27)
    _checks.positive(noise, "noise", zero=True)
    motion, errors = jax.random.split(key)
    plan = _plan(subject, jnp.asarray(action), motion)
    full = jax.device_get(_move(plan))
    sensor, tracker = jax.device_get(_err(errors))
    seconds = np.clip(float(plan["duration"]), 2.1, (_SAMPLES - 1) / _RATE)
    samples, frames = int(seconds * _RATE), int(seconds * FRAME_RATE)
    return Performance(
        inertial=(full["inertial"] + noise * sensor)[:samples],
        skeleton=(full["joints"] + noise * tracker)[:frames],
        joints=full["joints"][:frames],
        position=full["position"][:samples],
        rotation=full["rotation"][:samples],
    )


_MODALITIES = ("inertial", "skeleton", "depth", "rgb")


def simulate(
    root: str | Path,
    *,
    key: Key[Array, ""],
    subjects: int = 8,
    trials: int = 2,
    actions: Sequence[int] = range(1, 28),
    modalities: Sequence[str] = ("inertial", "skeleton", "depth"),
    workers: int = 2,
    progress: bool = False,
) -> tuple[str, ...]:
    """Write a simulated dataset that reads like UTD-MHAD, with a split like the authors'.

    A clip depends on the key and its own action, subject and trial only. Files appear whole or not
    at all, and those already there are kept: an interrupted call, repeated, goes on where it
    stopped, and more subjects, trials or modalities can be added with the same key. The file
    ``simulated.txt`` names the key, so that no folder ever mixes two keys or real recordings.

    Args:
        root: folder to write to; made if missing.
        key: random key.
        subjects: number of people.
        trials: performances of each action by each of them.
        actions: which of the 27 actions.
        modalities: which of "inertial", "skeleton", "depth" and "rgb" to write.
        workers: threads that draw and write.
        progress: show a progress bar.

    Returns:
        Names of the clips, ``a<action>_s<subject>_t<trial>``. ``splits/40_40_10_10`` divides them
        at random in the authors' proportions; with fewer than 10 clips a role may be empty.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if a number is out of range, a modality is unknown, an action or modality is
            listed twice or none is, or the folder holds recordings that this key did not make.

    Example:
        >>> import jax, tempfile
        >>> from perfalign_jax.har.data.simulate import simulate
        >>> chosen = {"trials": 1, "actions": [5], "modalities": ["inertial"]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     simulate(folder, key=jax.random.key(0), subjects=2, **chosen)
        ('a5_s1_t1', 'a5_s2_t1')
    """
    root = Path(root)
    subjects = _checks.integer(subjects, "subjects", low=1)
    trials = _checks.integer(trials, "trials", low=1)
    workers = _checks.integer(workers, "workers", low=1)
    actions = sorted(_checks.integer(action, "actions", low=1, high=27) for action in actions)
    for modality in modalities:
        _checks.one_of(modality, "modalities", _MODALITIES)
    for name, values in (("actions", actions), ("modalities", modalities)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must list at least one, each once, got {list(values)}.")
    _checks.key(key)
    _claim(root, key)
    for modality in modalities:
        path_of(root, "", modality).parent.mkdir(exist_ok=True)
    who, what, order = jax.random.split(key, 3)
    people = [draw_subject(key=jax.random.fold_in(who, s)) for s in range(1, subjects + 1)]
    clips = {
        f"a{a}_s{s}_t{t}": (a, s, t)
        for a in actions
        for s in range(1, subjects + 1)
        for t in range(1, trials + 1)
    }
    names = tuple(clips)

    def make(name: str) -> None:
        action, subject, trial = clips[name]
        paths = {m: path_of(root, name, m) for m in modalities}
        missing = {m: path for m, path in paths.items() if not path.exists()}
        if not missing:
            return
        own = jax.random.fold_in(what, 10_000 * action + 100 * trial)
        moves, pixels = jax.random.split(jax.random.fold_in(own, subject))
        person = people[subject - 1]
        done = perform(person, action=action, key=moves)
        if {"depth", "rgb"} & set(missing):
            depth, look, first = film(
                done.joints, person.girth, key=pixels, colour="rgb" in missing
            )
        for modality, path in missing.items():
            if modality == "inertial":
                content = pack_mat("d_iner", done.inertial.astype(np.float64))
            elif modality == "skeleton":
                content = pack_mat("d_skel", done.skeleton.astype(np.float64).transpose(1, 2, 0))
            elif modality == "depth":
                content = pack_depth(depth, first)
            else:
                content = pack_colour(look, first, np.asarray(person.colours), subject)
            write_whole(path, content)

    run_in_threads(make, names, workers=workers, doing="simulating UTD-MHAD", progress=progress)
    _write_split(root / "splits" / "40_40_10_10", names, order)
    return names


def _claim(root: Path, key: Array) -> None:
    """Mark a folder as this key's, or refuse it."""
    numbers = " ".join(str(n) for n in np.asarray(jax.random.key_data(key)).ravel())
    text = f"simulated by perfalign_jax.har.simulate, version {_VERSION}, key {numbers}\n"
    mark = root / "simulated.txt"
    if mark.is_file():
        if mark.read_text() != text:
            raise ValueError(
                f"root {root} was simulated with another key or version: choose another folder."
            )
        return
    if any(path_of(root, "", modality).parent.exists() for modality in _MODALITIES):
        raise ValueError(f"root {root} holds recordings that were not simulated: choose another.")
    root.mkdir(parents=True, exist_ok=True)
    write_whole(mark, text.encode())


def _write_split(folder: Path, names: tuple[str, ...], key: Array) -> None:
    """Divide clips at random as the authors did: 365, 366, 86 and 44 of their 861."""
    folder.mkdir(parents=True, exist_ok=True)
    mixed = [names[i] for i in np.asarray(jax.random.permutation(key, len(names)))]
    ends = [0, *(round(len(names) * part / 861) for part in (365, 731, 817)), len(names)]
    for role, start, stop in zip(("har", "align", "val", "test"), ends[:-1], ends[1:], strict=True):
        write_whole(folder / f"{role}.txt", "".join(f"{n}\n" for n in mixed[start:stop]).encode())
