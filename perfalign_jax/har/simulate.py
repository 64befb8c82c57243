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

import concurrent.futures
import dataclasses
import io
import math
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
import scipy.io
from jaxtyping import Array, Float, Key

from perfalign_jax import _checks
from perfalign_jax.serialization import write_whole

__all__ = ["Performance", "Subject", "draw_subject", "perform", "simulate"]

_VERSION = 1  # part of the mark of a folder: raise it when the files change
_RATE, _FRAME_RATE = 50, 30  # samples of the inertial sensor and frames, per second
_SAMPLES, _FRAMES = 336, 202  # room for the longest performance, 6.7 s
_GRAVITY = 9.81
_FLOOR = -1.08  # height of the floor below the camera, in metres
_FOCAL = 275.0  # focal length of the depth camera, in pixels of a 320 x 240 image
_BATCH = 24  # frames drawn by one call, so that one compilation serves clips of every length
_COLUMNS = 96  # columns, at half resolution, of the window in which the body is drawn

# Channels of the joint-angle programmes, in degrees and metres, added to the pose at rest:
# p pelvis (right, up, back, turn left), t trunk (lean, bend right, turn left), R and L arm
# (shoulder flexion, abduction, inward rotation, elbow, pronation), r and l leg (flexion,
# abduction, knee). "t 10 0 5" sets these three and leaves the others as they were.
_GROUPS = {"p": 0, "t": 4, "R": 7, "L": 12, "r": 17, "l": 20}
_CHANNELS = 23
_SCALE = np.where(np.arange(_CHANNELS) < 3, 1.0, np.pi / 180)


def _cycle(start: float, step: float, times: int, *poses: str) -> str:
    count = range(times * len(poses))
    return " | ".join(f"{start + step * i:.2f} {poses[i % len(poses)]}" for i in count)


_SWING = ("R -20 2 8 {0} 0 L 22 2 8 {0} 0", "R 22 2 8 {0} 0 L -20 2 8 {0} 0")
_SEATED = "r 66 8 76 l 66 8 76 R 28 4 16 42 30 L 28 4 16 42 30"


def _circle(turn: int) -> str:
    keys = []
    for i in range(9):
        up, right = math.cos(math.pi * i / 4), turn * math.sin(math.pi * i / 4)
        arm = f"{72 + 26 * up:.0f} {12 + 26 * right:.0f} {14 - 24 * right:.0f} {48 + 12 * up:.0f}"
        keys.append(f"{0.7 + 0.2 * i:.2f} R {arm} 60 ~")
    return " | ".join(keys)


# One line of words per action: seconds in all, moments of impact after "hit", then key poses
# "<second> <group> <values> ...", each reached smoothly from the one before; "~" flows through it.
_PROGRAMMES: dict[int, str] = {
    1: "3.2 | 0.1 | 0.7 R 50 55 15 40 50 | 1.3 R 82 -28 45 60 70 | 2.1 rest",
    2: "3.0 | 0.1 | 0.7 R 80 -28 45 70 70 | 1.3 R 58 60 10 15 50 | 2.1 rest",
    3: "3.5 | 0.1 | 0.65 R 58 40 -30 88 40 | "
    + _cycle(0.88, 0.22, 3, "R 58 42 -4 88 45", "R 58 42 -48 82 35")
    + " | 2.8 rest",
    4: "3.3 hit .98 1.42 1.86 | 0.1 | 0.6 R 42 14 -5 72 10 L 42 14 -5 72 10 | "
    + _cycle(0.98, 0.22, 3, "R 44 4 32 78 10 L 44 4 32 78 10", "R 42 14 2 72 10 L 42 14 2 72 10")
    + " | 2.7 rest",
    5: "3.2 | 0.1 | 0.8 R 30 70 -75 100 -10 t -4 0 -12 | 1.12 R 82 32 15 18 75 t 6 0 10 |"
    " 1.45 R 55 0 25 25 60 | 2.3 rest",
    6: "3.4 | 0.1 | 0.8 R 50 -6 62 80 40 L 36 -4 60 85 40 | 1.4 | 2.2 rest",
    7: "3.3 | 0.1 | 0.8 R 55 10 25 118 20 L 55 6 30 112 30 t 4 0 0 r 18 0 34 l 18 0 34 |"
    " 1.12 R 135 5 10 20 85 L 130 5 20 35 70 t -3 0 0 r 0 0 0 l 0 0 0 | 1.5 R 125 5 15 25 80 |"
    " 2.3 rest",
    8: "3.4 | 0.1 | 0.7 R 95 38 0 48 60 | 1.1 R 50 -20 35 28 60 | 1.45 R 103 -18 45 62 60 |"
    " 1.85 R 47 36 5 22 60 | 2.6 rest",
    9: f"3.9 | 0.1 | {_circle(1)} | 3.1 rest",
    10: f"3.7 | 0.1 | {_circle(-1)} | 3.1 rest",
    11: "3.9 | 0.1 | 0.7 R 104 12 15 60 60 | 1.2 R 52 42 0 25 60 | 1.75 R 52 -24 45 40 60 |"
    " 2.25 R 104 12 15 60 60 | 3.1 rest",
    12: "4.3 | 0.1 p 0 0 .3 0 | 0.9 R 30 5 10 45 20 t 10 0 0 l 18 0 20 p 0 0 .2 0 |"
    " 1.5 R -45 12 0 5 20 t 28 0 -10 l 40 0 45 r -8 0 20 p 0 0 -.05 0 |"
    " 1.95 R 72 -5 15 15 60 t 38 0 12 l 58 0 70 r -12 0 55 p 0 0 -.2 0 |"
    " 2.4 t 20 0 5 | 3.4 rest p 0 0 .3 0",
    13: "3.4 | 0.1 | 0.6 R 35 8 30 118 60 L 35 8 30 118 60 | 0.95 R 84 -10 30 15 90 t 4 0 18 |"
    " 1.25 R 35 8 30 118 60 L 84 -10 30 15 90 t 4 0 -18 |"
    " 1.6 R 35 8 30 110 60 L 35 8 30 118 60 t 0 0 0 | 2.4 rest",
    14: "4.0 | 0.1 | 1.0 R 48 40 10 115 -10 L 72 -35 40 70 30 t 4 0 -32 p 0 0 0 -10 | 1.4 |"
    " 1.78 R 68 -18 45 15 85 L 58 45 5 35 0 t 6 0 28 p 0 0 0 12 |"
    " 2.2 R 85 -28 55 70 70 L 60 50 -20 80 0 t 0 0 40 | 3.1 rest",
    15: "3.5 | 0.1 | 0.8 R -12 58 -25 25 -20 t 0 0 -26 | 1.25 R 88 -20 30 35 85 t 6 0 24 |"
    " 1.65 R 105 -30 45 75 80 t 4 0 28 | 2.5 rest",
    16: "3.1 | 0.1 | 0.75 R 24 4 12 125 0 L 24 4 12 125 0 | 1.1 R 24 4 12 128 0 | 1.9 rest",
    17: "3.7 | 0.1 | 0.8 L 140 10 0 15 0 R -15 45 0 50 20 t -6 0 -15 |"
    " 1.3 R 70 80 -70 118 0 L 95 10 0 25 0 t -8 0 -20 | 1.58 R 130 30 10 18 85 t 8 0 12 |"
    " 1.9 R 55 -12 25 20 70 L 20 10 10 50 0 t 14 0 18 | 2.7 rest",
    18: "3.2 | 0.1 | 0.75 R 38 14 30 112 70 L 38 14 30 112 70 |"
    " 1.25 R 84 -2 25 16 80 L 84 -2 25 16 80 t 5 0 0 | 1.4 | 2.2 rest",
    19: "3.4 hit .95 1.31 1.67 | 0.1 | 0.65 R 62 16 5 92 60 | "
    + _cycle(0.95, 0.18, 3, "R 72 10 5 58 80", "R 60 14 5 95 60")
    + " | 2.7 rest",
    20: "3.2 hit 1.08 | 0.1 | 0.7 R 88 30 -25 45 60 | 1.0 R 92 28 -15 30 50 |"
    " 1.24 R 60 12 10 95 -20 | 2.0 rest",
    21: "4.5 | 0.1 | 1.0 t 48 0 0 r 72 6 88 l 58 6 80 R 62 6 0 12 10 L 30 12 0 25 0 | 1.35 |"
    " 2.2 t -4 0 -12 r 0 0 0 l 0 0 0 R 30 70 -75 100 -10 L 10 5 0 20 0 |"
    " 2.52 R 82 32 15 18 75 t 6 0 10 | 2.85 R 55 0 25 25 60 | 3.7 rest",
    22: "3.6 hit .72 1.02 1.32 1.62 1.92 2.22 2.52 | 0.1 |"
    " 0.4 R 0 6 20 80 0 L 0 6 20 80 0 t 5 0 0 | "
    + _cycle(
        0.6,
        0.3,
        4,
        f"r 38 0 76 l -4 0 8 {_SWING[0].format(80)}",
        f"l 38 0 76 r -4 0 8 {_SWING[1].format(80)}",
    )
    + " | 3.1 rest",
    23: "3.8 hit 1.05 1.48 1.91 2.34 | 0.1 | "
    + _cycle(
        0.7,
        0.43,
        2,
        f"r 30 0 26 l -18 0 12 {_SWING[0].format(8)}",
        f"l 30 0 26 r -18 0 12 {_SWING[1].format(8)}",
    )
    + " | 2.9 rest",
    24: f"3.1 | 0.0 {_SEATED} t 4 0 0 | 0.7 t 34 0 0 |"
    " 1.5 r 20 2 22 l 20 2 22 t 20 0 0 R 12 2 0 12 0 L 12 2 0 12 0 | 2.1 rest",
    25: "3.1 | 0.1 | 0.7 r 20 2 22 l 20 2 22 t 24 0 0 R 12 2 0 12 0 L 12 2 0 12 0 |"
    f" 1.6 {_SEATED} t 30 0 0 | 2.2 t 4 0 0",
    26: "4.4 hit 1.1 3.3 | 0.1 p 0 0 .4 0 | 0.9 l 40 0 30 r -20 0 8 p 0 0 0 0 |"
    " 1.6 l 66 0 72 r 0 0 74 t 4 0 0 p 0 0 -.15 0 | 2.1 | 2.9 l 40 0 30 r -20 0 8 p 0 0 0 0 |"
    " 3.6 rest p 0 0 .4 0",
    27: "4.6 | 0.1 | 1.4 r 64 10 82 l 64 10 82 t 32 0 0 R 76 -4 10 25 60 L 76 -4 10 25 60 |"
    " 1.9 | 3.2 rest",
}
_MOVING = (12, 21, 24, 25, 26, 27)  # actions in which the hips move between feet that stay


def _read_programmes() -> dict[str, np.ndarray]:
    """Turn the words into arrays: key poses, when each is reached, and impacts."""
    keys = 20
    times = np.zeros((27, keys))
    poses = np.zeros((27, keys, _CHANNELS))
    impacts = np.full((27, 8), -10.0)  # far before the start: none
    seconds, flow = np.zeros(27), np.zeros((27, keys))
    for row, words in enumerate(_PROGRAMMES.values()):
        head, *parts = (part.split() for part in words.split("|"))
        seconds[row] = float(head[0])
        impacts[row, : len(head[2:])] = [float(word) for word in head[2:]]
        pose, when, column = np.zeros(_CHANNELS), 0.0, 0
        for i in range(keys):
            when = float(parts[i][0]) if i < len(parts) else when + 0.5  # then nothing changes
            for word in parts[i][1:] if i < len(parts) else ():
                if word == "rest":
                    pose = np.zeros(_CHANNELS)
                elif word in _GROUPS:
                    column, pose = _GROUPS[word], pose.copy()
                elif word == "~":
                    flow[row, i] = 1.0
                else:
                    pose[column] = float(word) * _SCALE[column]
                    column += 1
            times[row, i], poses[row, i] = when, pose
    moving = np.isin(np.arange(1, 28), _MOVING).astype(np.float64)
    return {
        "centres": (times[:, 1:] + times[:, :-1]) / 2,
        "widths": np.diff(times) * np.where(flow[:, 1:], 0.5, 0.22),
        "poses": poses,
        "impacts": impacts,
        "seconds": seconds,
        "moving": moving,
        "thigh": (np.arange(1, 28) >= 22).astype(np.float64),
    }


_TABLE = _read_programmes()


@partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "lengths",
        "girth",
        "rest",
        "tempo",
        "style",
        "habit",
        "place",
        "mount",
        "colours",
    ),
    meta_fields=(),
)
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

    Example:
        >>> import jax
        >>> from perfalign_jax.har.simulate import draw_subject
        >>> type(draw_subject(key=jax.random.key(0))).__name__
        'Subject'
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
        inertial: what the sensor reads, shape ``(T, 6)``: acceleration in g, angular rate in
            degrees/s, at 50 Hz.
        skeleton: what the camera's tracker reports, shape ``(t, 20, 3)``, metres, at 30 Hz.
        joints: where the joints are, shape ``(t, 20, 3)``, metres.
        position: where the sensor is, shape ``(T, 3)``, metres.
        rotation: axes of the sensor in the world, as columns, shape ``(T, 3, 3)``.

    Example:
        >>> import jax
        >>> from perfalign_jax.har.simulate import draw_subject, perform
        >>> subject = draw_subject(key=jax.random.key(0))
        >>> perform(subject, action=27, key=jax.random.key(1)).skeleton.shape[1:]
        (20, 3)
    """

    inertial: Float[np.ndarray, "T 6"]
    skeleton: Float[np.ndarray, "t 20 3"]
    joints: Float[np.ndarray, "t 20 3"]
    position: Float[np.ndarray, "T 3"]
    rotation: Float[np.ndarray, "T 3 3"]


@jax.jit
def draw_subject(*, key: Key[Array, ""]) -> Subject:
    """Draw a person.

    Args:
        key: random key.

    Returns:
        A ``Subject``; bones as long as those of UTD-MHAD's eight people, spread by 7 %.

    Example:
        >>> import jax
        >>> from perfalign_jax.har.simulate import draw_subject
        >>> subject = draw_subject(key=jax.random.key(0))
        >>> bool(0.3 < subject.lengths[10] < 0.6)  # the thigh, in metres
        True
    """
    draws = jax.random.normal(key, (58, 27))  # one call: every further one costs compilation
    (size, pace, energy, girth, skin), own = draws[3, :5], draws[3, 5:]
    usual = jnp.array(
        [0.185, 0.34, 0.078, 0.165, 0.11, 0.265, 0.235, 0.07, 0.078, 0.075, 0.45, 0.36, 0.08]
    )
    hanging = jnp.array([0.0] * 7 + [0.0, 6.0, 0.0, 14.0, 0.0] * 2 + [0.0, 0.0, 4.0] * 2)
    spread = jnp.array([0.0] * 4 + [1.5] * 3 + [3.0, 2.0, 6.0, 5.0, 8.0] * 2 + [1.0] * 6)
    loose = jnp.where(jnp.arange(_CHANNELS) < 17, 0.3, 0.1)  # arms differ more than legs
    clothes = 0.08 + 0.77 * jax.nn.sigmoid(1.5 * own[9:18].reshape(3, 3))
    tan = jnp.array([[0.85, 0.65, 0.52]]) * (0.5 + 0.6 * jax.nn.sigmoid(skin))
    return Subject(
        lengths=usual * (1 + 0.05 * size) * (1 + 0.04 * draws[0, :13]),
        girth=jnp.exp(0.08 * girth),
        rest=(hanging + spread * draws[1, :_CHANNELS]) * jnp.asarray(_SCALE, spread.dtype),
        tempo=jnp.exp(0.1 * pace + 0.08 * draws[2]),
        style=1 + 0.06 * energy + loose[None] * draws[4:31, :_CHANNELS],
        habit=jnp.deg2rad(12.0) * draws[31:, :5],
        place=jnp.array([0.02, 0.01, 0.04]) * own[:3],
        mount=jnp.deg2rad(jnp.array([[18.0, 7.0, 7.0]])) * own[3:9].reshape(2, 3),
        colours=jnp.concatenate([tan, clothes]),
    )


@jax.jit
def _plan(subject: Subject, action: Array, key: Array) -> dict[str, Array]:
    """Everything that a performance is a function of, time apart: subject, action and trial."""
    draws = jax.random.normal(key, (29, _CHANNELS))
    own, row = draws[28], action - 1
    table = {name: jnp.asarray(value)[row] for name, value in _TABLE.items()}
    poses = table["poses"] * subject.style[row][None] * (1 + 0.06 * draws[:20])
    raised = (table["poses"][:, 7:12] != 0).any(axis=1, keepdims=True)
    poses = poses.at[:, 7:12].add(raised * subject.habit[row][None])
    sway = jnp.zeros(_CHANNELS).at[jnp.array([4, 5, 6, 7, 8, 9, 10, 12, 13, 14])].set(1.0)
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
    clocks = (jnp.arange(_SAMPLES) / _RATE, jnp.arange(_FRAMES) / _FRAME_RATE)
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
    """Let a person perform an action once.

    The same subject, action and key give the same arrays; compiled once for all of them.

    Args:
        subject: who, from ``draw_subject``.
        action: which, from 1 to 27; the sensor is on the right wrist up to 21, then on the thigh.
        key: random key of the trial.
        noise: factor on what sensor and tracker add (bias and noise); 0 for exact readings.

    Returns:
        A ``Performance``.

    Raises:
        TypeError: if ``subject`` is no ``Subject`` or ``action`` no integer.
        ValueError: if there is no such action, or ``noise`` is negative.

    Example:
        >>> import jax
        >>> from perfalign_jax.har.simulate import draw_subject, perform
        >>> subject = draw_subject(key=jax.random.key(0))
        >>> clip = perform(subject, action=3, key=jax.random.key(1))
        >>> clip.inertial.shape[1], clip.joints.shape[1:]
        (6, (20, 3))
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
    samples, frames = int(seconds * _RATE), int(seconds * _FRAME_RATE)
    return Performance(
        inertial=(full["inertial"] + noise * sensor)[:samples],
        skeleton=(full["joints"] + noise * tracker)[:frames],
        joints=full["joints"][:frames],
        position=full["position"][:samples],
        rotation=full["rotation"][:samples],
    )


# Pairs of joints, thickness at both ends in metres, and colour (skin, shirt, trousers, hair).
_CAPSULES = (
    *((0, 0, 0.1, 0.1, 0), (0, 1, 0.07, 0.07, 0)),
    *((1, 3, 0.11, 0.13, 1), (4, 12, 0.1, 0.12, 1), (8, 16, 0.1, 0.12, 1), (4, 8, 0.085, 0.085, 1)),
    *((4, 5, 0.08, 0.068, 1), (5, 6, 0.062, 0.048, 1), (6, 7, 0.045, 0.045, 0)),
    *((8, 9, 0.08, 0.068, 1), (9, 10, 0.062, 0.048, 1), (10, 11, 0.045, 0.045, 0)),
    *((12, 13, 0.11, 0.08, 2), (13, 14, 0.075, 0.06, 2), (14, 15, 0.055, 0.05, 3)),
    *((16, 17, 0.11, 0.08, 2), (17, 18, 0.075, 0.06, 2), (18, 19, 0.055, 0.05, 3)),
)


@partial(jax.jit, static_argnames="colour")
def _draw(
    joints: Array, girth: Array, first: Array, key: Array, *, colour: bool
) -> tuple[Array, Array]:
    """Depth in mm and, if asked for, shaded parts: ``(frames, columns, rows)``, half resolution.

    Every limb is the picture of a capsule: a tapered strip, nearer along its middle.
    """
    scale = _FOCAL / 2
    column = (first + jnp.arange(_COLUMNS, dtype=jnp.float32))[None, :, None] + 0.5
    row = jnp.arange(120, dtype=jnp.float32)[None, None, :] + 0.5
    shape = (joints.shape[0], _COLUMNS, 120)
    bits = jax.random.bits(key, shape, jnp.uint8)
    fringe = 0.22 / 15 * (bits & 15).astype(jnp.float32)  # edges that crumble
    u = 80 + scale * joints[..., 0] / joints[..., 2]
    v = 60 - scale * joints[..., 1] / joints[..., 2]
    near = jnp.full(shape, 1e6, jnp.float32)
    look = jnp.full(shape, 255.0, jnp.float32)
    for a, b, thick_a, thick_b, part in _CAPSULES:
        u0, v0, z0, u1, v1, z1 = (
            x[:, i, None, None] for i in (a, b) for x in (u, v, joints[..., 2])
        )
        du, dv = u1 - u0, v1 - v0
        inverse = 1 / (du * du + dv * dv + 1e-6)
        across, along = column - u0, row - v0
        share = jnp.clip(across * (du * inverse) + along * (dv * inverse), 0.0, 1.0)
        away = jnp.square(across - share * du) + jnp.square(along - share * dv)
        wide0, wide1 = scale * girth * thick_a / z0, scale * girth * thick_b / z1
        inside = 1 - away / jnp.square(wide0 + share * (wide1 - wide0))
        bulge = jnp.sqrt(jnp.maximum(inside, 0.0))
        thick = girth * (thick_a + share * (thick_b - thick_a))
        surface = jnp.where(inside > fringe, z0 + share * (z1 - z0) - thick * bulge, 1e6)
        if colour:
            look = jnp.where(surface < near, part * 64 + 63 * bulge, look)
        near = jnp.minimum(near, surface)
    # The camera measures disparity in whole steps: 16 mm apart at 2.4 m, 28 mm at 3.1 m.
    dither = (bits >> 4).astype(jnp.float32) / 15 - 0.5
    depth = jnp.where(near < 1e5, 345000.0 / jnp.round(345.0 / near + 0.7 * dither), 0.0)
    return depth.astype(jnp.uint16), look.astype(jnp.uint8)


def _film(
    subject: Subject, clip: Performance, *, key: Array, colour: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw all frames of a performance in batches of one size."""
    frames = len(clip.joints)
    middle = 80 + _FOCAL / 2 * np.median(clip.joints[:, 3, 0] / clip.joints[:, 3, 2])
    first = int(np.clip(round(middle) - _COLUMNS // 2, 0, 160 - _COLUMNS))
    padded = np.pad(clip.joints, ((0, -frames % _BATCH), (0, 0), (0, 0)), mode="edge")
    parts = [
        jax.device_get(
            _draw(
                padded[i : i + _BATCH],
                subject.girth,
                first,
                jax.random.fold_in(key, i),
                colour=colour,
            )
        )
        for i in range(0, frames, _BATCH)
    ]
    depth, look = (np.concatenate(p)[:frames] for p in zip(*parts, strict=True))
    return depth, look, first


def _mat(variable: str, value: np.ndarray) -> bytes:
    """A MATLAB 5 file with one compressed variable."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {variable: value})
    content = buffer.getvalue()
    packed = zlib.compress(content[128:], 1)  # SciPy's own level takes three times as long
    return content[:128] + struct.pack("<II", 15, len(packed)) + packed  # 15: compressed element


def _depth_file(depth: np.ndarray, first: int) -> bytes:
    video = np.zeros((len(depth), 320, 240), np.uint16)
    window = video[:, 2 * first : 2 * (first + _COLUMNS)]
    window[:] = depth.repeat(2, axis=1).repeat(2, axis=2)
    return _mat("d_depth", video.transpose(2, 1, 0))


def _colour_file(look: np.ndarray, first: int, colours: np.ndarray, backdrop: int) -> bytes:
    """Paint parts and shading, and code 640 x 480 frames as MPEG-4 in an AVI."""
    import av  # only videos need it

    shade = 0.45 + 0.55 * np.arange(64) / 63
    palette = np.clip(255 * colours[:, None, :] * shade[:, None], 0, 255).reshape(256, 3)
    room = np.empty((120, 160, 3), np.uint8)
    rng = np.random.default_rng(backdrop)
    for rows, base in ((slice(0, 95), rng.integers(140, 210, 3)), (slice(95, 120), (110, 95, 80))):
        room[rows] = np.asarray(base) + np.linspace(-20, 10, 160)[:, None]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=_FRAME_RATE)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        stream.bit_rate = 2_000_000
        for picture in look.transpose(0, 2, 1):
            frame = room.copy()
            window = frame[:, first : first + _COLUMNS]
            window[picture < 255] = palette[picture[picture < 255]]
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(image.reformat(640, 480, "yuv420p")))
        container.mux(stream.encode())
    return buffer.getvalue()


_FILES = {
    "inertial": "Inertial/{}_inertial.mat",
    "skeleton": "Skeleton/{}_skeleton.mat",
    "depth": "Depth/{}_depth.mat",
    "rgb": "RGB/{}_color.avi",
}


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
        >>> import tempfile
        >>> import jax
        >>> from perfalign_jax.har.simulate import simulate
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     simulate(
        ...         folder, key=jax.random.key(0), subjects=2, trials=1, actions=[5],
        ...         modalities=["inertial"],
        ...     )
        ('a5_s1_t1', 'a5_s2_t1')
    """
    root = Path(root)
    subjects = _checks.integer(subjects, "subjects", low=1)
    trials = _checks.integer(trials, "trials", low=1)
    workers = _checks.integer(workers, "workers", low=1)
    actions = sorted(_checks.integer(action, "actions", low=1, high=27) for action in actions)
    for modality in modalities:
        _checks.one_of(modality, "modalities", tuple(_FILES))
    for name, values in (("actions", actions), ("modalities", modalities)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} must list at least one, each once, got {list(values)}.")
    _claim(root, key)
    for modality in modalities:
        (root / _FILES[modality]).parent.mkdir(exist_ok=True)
    who, what, order = jax.random.split(key, 3)
    people = [draw_subject(key=jax.random.fold_in(who, s)) for s in range(1, subjects + 1)]
    clips = [
        (a, s, t) for a in actions for s in range(1, subjects + 1) for t in range(1, trials + 1)
    ]

    def make(clip: tuple[int, int, int]) -> None:
        action, subject, trial = clip
        name = "a{}_s{}_t{}".format(*clip)
        paths = {m: root / _FILES[m].format(name) for m in modalities}
        missing = {m: path for m, path in paths.items() if not path.exists()}
        if not missing:
            return
        own = jax.random.fold_in(what, 10_000 * action + 100 * trial)
        moves, pixels = jax.random.split(jax.random.fold_in(own, subject))
        person = people[subject - 1]
        done = perform(person, action=action, key=moves)
        if {"depth", "rgb"} & set(missing):
            depth, look, first = _film(person, done, key=pixels, colour="rgb" in missing)
        for modality, path in missing.items():
            if modality == "inertial":
                content = _mat("d_iner", done.inertial.astype(np.float64))
            elif modality == "skeleton":
                content = _mat("d_skel", done.skeleton.astype(np.float64).transpose(1, 2, 0))
            elif modality == "depth":
                content = _depth_file(depth, first)
            else:
                content = _colour_file(look, first, np.asarray(person.colours), subject)
            write_whole(path, content)

    bar = rich.progress.Progress(disable=not progress, transient=True)
    with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        task = bar.add_task("simulating UTD-MHAD", total=len(clips))
        waiting = [pool.submit(make, clip) for clip in clips]
        try:
            for future in concurrent.futures.as_completed(waiting):
                future.result()
                bar.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    names = tuple("a{}_s{}_t{}".format(*clip) for clip in clips)
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
    if any((root / file).parent.exists() for file in _FILES.values()):
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
