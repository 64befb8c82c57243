"""Pictures of a moving body, in the depth and colour files of UTD-MHAD."""

import io
import struct
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.io
from jaxtyping import Array

__all__ = ["FOCAL", "FRAME_RATE", "film", "pack_colour", "pack_depth", "pack_mat"]

FRAME_RATE = 30  # per second
FOCAL = 275.0  # focal length of the depth camera, in pixels of a 320 x 240 image
_BATCH = 24  # frames drawn by one call, so that one compilation serves clips of every length
_COLUMNS = 96  # columns, at half resolution, of the window in which the body is drawn

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
    scale = FOCAL / 2
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


def film(
    joints: np.ndarray, girth: Array, *, key: Array, colour: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw all frames of joints ``(frames, 20, 3)`` in batches of one size.

    Returns depth in mm, shaded parts, and the column where their window begins.
    """
    frames = len(joints)
    middle = 80 + FOCAL / 2 * np.median(joints[:, 3, 0] / joints[:, 3, 2])
    first = int(np.clip(round(middle) - _COLUMNS // 2, 0, 160 - _COLUMNS))
    padded = np.pad(joints, ((0, -frames % _BATCH), (0, 0), (0, 0)), mode="edge")
    parts = [
        jax.device_get(
            _draw(padded[i : i + _BATCH], girth, first, jax.random.fold_in(key, i), colour=colour)
        )
        for i in range(0, frames, _BATCH)
    ]
    depth, look = (np.concatenate(p)[:frames] for p in zip(*parts, strict=True))
    return depth, look, first


def pack_mat(variable: str, value: np.ndarray) -> bytes:
    """A MATLAB 5 file with one compressed variable."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {variable: value})
    content = buffer.getvalue()
    packed = zlib.compress(content[128:], 1)  # SciPy's own level takes three times as long
    return content[:128] + struct.pack("<II", 15, len(packed)) + packed  # 15: compressed element


def pack_depth(depth: np.ndarray, first: int) -> bytes:
    """A depth file of whole frames, with nothing seen outside the window."""
    video = np.zeros((len(depth), 320, 240), np.uint16)
    window = video[:, 2 * first : 2 * (first + _COLUMNS)]
    window[:] = depth.repeat(2, axis=1).repeat(2, axis=2)
    return pack_mat("d_depth", video.transpose(2, 1, 0))


def pack_colour(look: np.ndarray, first: int, colours: np.ndarray, backdrop: int) -> bytes:
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
        stream = container.add_stream("mpeg4", rate=FRAME_RATE)
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
