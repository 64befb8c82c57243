"""The 27 actions as programmes of joint angles: key poses, when each is reached, and impacts."""

import math

import numpy as np

__all__ = ["CHANNELS", "SCALE", "TABLE"]

# Channels of the joint-angle programmes, in degrees and metres, added to the pose at rest:
# p pelvis (right, up, back, turn left), t trunk (lean, bend right, turn left), R and L arm
# (shoulder flexion, abduction, inward rotation, elbow, pronation), r and l leg (flexion,
# abduction, knee). "t 10 0 5" sets these three and leaves the others as they were.
_GROUPS = {"p": 0, "t": 4, "R": 7, "L": 12, "r": 17, "l": 20}
CHANNELS = 23
SCALE = np.where(np.arange(CHANNELS) < 3, 1.0, np.pi / 180)


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
    poses = np.zeros((27, keys, CHANNELS))
    impacts = np.full((27, 8), -10.0)  # far before the start: none
    seconds, flow = np.zeros(27), np.zeros((27, keys))
    for row, words in enumerate(_PROGRAMMES.values()):
        head, *parts = (part.split() for part in words.split("|"))
        seconds[row] = float(head[0])
        impacts[row, : len(head[2:])] = [float(word) for word in head[2:]]
        pose, when, column = np.zeros(CHANNELS), 0.0, 0
        for i in range(keys):
            when = float(parts[i][0]) if i < len(parts) else when + 0.5  # then nothing changes
            for word in parts[i][1:] if i < len(parts) else ():
                if word == "rest":
                    pose = np.zeros(CHANNELS)
                elif word in _GROUPS:
                    column, pose = _GROUPS[word], pose.copy()
                elif word == "~":
                    flow[row, i] = 1.0
                else:
                    pose[column] = float(word) * SCALE[column]
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


TABLE = _read_programmes()
