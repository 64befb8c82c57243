"""Boundary validation: every message names the argument, what came and what was expected."""

import numbers
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perfalign_jax.types import PrecisionWarning

__all__ = [
    "array",
    "finite",
    "integer",
    "key",
    "latents",
    "matrix",
    "one_of",
    "paired",
    "positive",
    "tolerance",
    "two_views",
    "views",
    "warn",
]


def is_traced(tree: Any) -> bool:
    """Say whether a value, or any leaf of a tree, is known only while a program runs."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def finite(value: Any, name: str, *, first: int = 0) -> None:
    """Refuse NaN and infinity, naming the first row that has one; traced values pass.

    Rows are counted from ``first``.
    """
    if is_traced(value):
        return
    # A finite sum proves every entry finite and needs one pass and no memory; an infinite one
    # may still be overflow, so only then is the array searched.
    with np.errstate(all="ignore"):
        total = value.sum()
        if is_traced(total):  # a known array inside jit: sums of it are of the program
            total = np.asarray(value).sum()
        if np.isfinite(total):
            return
    host = np.asarray(value)
    bad = ~np.isfinite(host)
    if bad.any():
        row = int(np.argmax(bad.reshape(host.shape[0], -1).any(axis=1))) if host.ndim else 0
        what = "NaN" if np.isnan(host[row] if host.ndim else host).any() else "infinity"
        raise ValueError(
            f"{name} must be finite, but row {first + row} has {what} "
            f"({int(bad.sum())} such values in all)."
        )


def _plain(value: Any, name: str, shape: str) -> Any:
    """Return a NumPy or JAX array; a mask that hides something is refused, not dropped."""
    hidden = np.ma.count_masked(value) if isinstance(value, np.ma.MaskedArray) else 0
    if hidden:
        raise ValueError(
            f"{name} must be a plain array, but {hidden} of its values are masked, and a mask is "
            "not used here: drop those rows or fill the values in first."
        )
    if isinstance(value, jax.Array) or type(value) is np.ndarray:
        return value
    try:
        return np.asarray(value)  # lists, memory maps, and files or frames that can be one
    except ValueError:  # ragged nested lists
        raise TypeError(
            f"{name} must be an array of shape {shape}, got a ragged {type(value).__name__}."
        ) from None


def warn(message: str, category: type[Warning]) -> None:
    """Warn, pointing at the caller's own line."""
    # Up to the first frame outside this package; a checker of annotations may stand in between.
    frame: FrameType | None = sys._getframe()
    level, inside = 0, ("perfalign_jax.", "jaxtyping.")
    while frame is not None and frame.f_globals.get("__name__", "").startswith(inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level + 1)


def array(value: Any, name: str, *, ndim: int, shape: str) -> Array:
    """Return a finite floating-point JAX array of ``ndim`` dimensions, or raise.

    Integers, booleans and half precision are computed in JAX's default float, with a
    ``PrecisionWarning``; so is float64 when 64-bit mode is off.
    """
    converted, note = _convert(value, name, ndim=ndim, shape=shape)
    if note:
        warn(note, PrecisionWarning)
    return converted


def _convert(
    value: Any, name: str, *, ndim: int, shape: str, look: bool = True, host: bool = False
) -> tuple[Any, str]:
    """Return the array, and what to say of its precision; ``look`` for NaN and infinity.

    A NumPy array stays one with ``host``, and is not copied if its dtype is the right one.
    """
    value = _plain(value, name, shape)
    kind = np.dtype(value.dtype) if value.dtype != jnp.bfloat16 else np.dtype(np.float16)
    if kind.kind not in "fiub":
        raise TypeError(
            f"{name} must hold real numbers (floating point or integers), got dtype {value.dtype}."
        )
    if len(value.shape) != ndim:
        raise ValueError(f"{name} must have shape {shape}, got shape {tuple(value.shape)}.")
    if look:
        finite(value, name)
    kind = kind.newbyteorder("=")
    wanted = kind if kind in (np.float32, np.float64) else np.dtype(np.float64)
    if kind == np.float16:
        wanted = np.dtype(np.float32)
    dtype, note = jax.dtypes.canonicalize_dtype(wanted), ""
    if dtype != value.dtype and not is_traced(value):
        note = f"{name} has dtype {value.dtype} and is computed in {dtype}"
        if dtype != wanted:
            note += '; call jax.config.update("jax_enable_x64", True) first to compute in float64'
    if host and isinstance(value, np.ndarray):
        return value.astype(dtype, copy=False), note
    return jnp.asarray(value, dtype), note


def views(
    data: Any, name: str = "views", *, look: bool = True, host: bool = False
) -> tuple[tuple[Float[Any, "n _"], ...], float]:
    """Return two or more arrays of paired rows of one dtype, and eps of the coarsest they had.

    Row counts are compared before a value is read. NaN and infinity are refused unless ``look`` is
    False: then the caller does. With ``host`` NumPy arrays stay NumPy arrays.
    """
    if not isinstance(data, Sequence) or isinstance(data, str | bytes) or len(data) < 2:
        came = f"{len(data)} of them" if isinstance(data, Sequence) else type(data).__name__
        raise TypeError(
            f"{name} must be a tuple of two arrays (x1, x2), got {came}; it may be longer."
        )
    names = [f"x{m + 1}" for m in range(len(data))]
    shapes = [tuple(getattr(x, "shape", ())) for x in data]
    for other, shape in zip(names[1:], shapes[1:], strict=True):
        if len(shape) == len(shapes[0]) == 2:
            _same_rows(shapes[0], shape, names[0], other)
    coarsest = 0.0
    for x in data:
        if jnp.issubdtype(getattr(x, "dtype", None) or np.float64, jnp.floating):
            coarsest = max(coarsest, float(jnp.finfo(getattr(x, "dtype", np.float64)).eps))
    arrays, notes = zip(
        *(
            _convert(x, label, ndim=2, shape=f"(n, d{m + 1})", look=look, host=host)
            for m, (x, label) in enumerate(zip(data, names, strict=True))
        ),
        strict=True,
    )
    for x, label in zip(arrays[1:], names[1:], strict=True):
        paired(arrays[0], x, names[0], label)
    for x, label in zip(arrays, names, strict=True):
        if x.shape[1] < 1:
            raise ValueError(f"{label} must have at least one column, got shape {x.shape}.")
    dtype = np.result_type(*(x.dtype for x in arrays))
    said = [label for label, note in zip(names, notes, strict=True) if note]
    if said:
        more = f" ({', '.join(said[1:])} too)" if said[1:] else ""
        warn(f"{next(filter(None, notes))}{more}.", PrecisionWarning)
    elif any(x.dtype != dtype for x in arrays):
        came = " and ".join(f"{label} {x.dtype}" for label, x in zip(names, arrays, strict=True))
        came = came.replace("x1 ", "x1 has dtype ", 1)
        warn(f"{came}; all are computed in {dtype}.", PrecisionWarning)
    return tuple(x.astype(dtype, copy=False) for x in arrays), coarsest


def two_views(data: Any, name: str = "views") -> tuple[Float[Array, "n d1"], Float[Array, "n d2"]]:
    """Return two finite arrays of paired rows of one dtype, or raise."""
    if isinstance(data, Sequence) and len(data) > 2:
        raise TypeError(f"{name} must be a tuple of two arrays (x1, x2), got {len(data)} of them.")
    (x1, x2), _ = views(data, name)
    return x1, x2


def _same_rows(a: tuple[int, ...], b: tuple[int, ...], a_name: str, b_name: str) -> None:
    if a[0] != b[0]:
        raise ValueError(
            f"{a_name} and {b_name} must have the same number of rows (row i of both shows the "
            f"same thing), got {a[0]} and {b[0]} (shapes {a} and {b})."
        )


def paired(a: Any, b: Any, a_name: str, b_name: str) -> None:
    """Refuse two arrays whose numbers of rows differ."""
    _same_rows(tuple(a.shape), tuple(b.shape), a_name, b_name)


def latents(
    z1: Any, z2: Any, z1_name: str = "z1", z2_name: str = "z2"
) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
    """Return two finite arrays of latents of the same shape, or raise."""
    a = array(z1, z1_name, ndim=2, shape="(n, k)")
    b = array(z2, z2_name, ndim=2, shape="(n, k)")
    if a.shape != b.shape:
        raise ValueError(
            f"{z1_name} and {z2_name} must have the same shape (n, k), got {a.shape} and {b.shape}."
        )
    if 0 in a.shape:
        raise ValueError(
            f"{z1_name} and {z2_name} must have at least one row and one column, got {a.shape}."
        )
    return a, b


def integer(value: Any, name: str, *, low: int, high: int | None = None, why: str = "") -> int:
    """Return a Python integer between ``low`` and ``high`` (inclusive), or raise."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__}).")
    number = int(value)
    span = f"at least {low}" if high is None else f"between {low} and {high}"
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {span}{why}, got {number}.")
    return number


def key(value: Any, name: str = "key") -> None:
    """Refuse what is no single random key, of either style."""
    shape = getattr(value, "shape", None)
    typed = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if shape != (() if typed else (2,)) or (not typed and value.dtype != jnp.uint32):
        came = type(value).__name__ if shape is None else f"shape {shape} of {value.dtype}"
        raise TypeError(f"{name} must be one random key, as jax.random.key(0), got {came}.")


def matrix(value: Any, name: str) -> Float[np.ndarray, "n d"]:
    """Return real, finite numbers, a row for each clip, as a floating-point NumPy array, or raise.

    Half precision becomes single, integers double: their squares overflow.
    """
    host = np.asarray(_plain(value, name, "(n, d)"))
    if host.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {host.dtype}.")
    if host.ndim != 2:
        raise ValueError(f"{name} must have shape (n, d), got shape {host.shape}.")
    finite(host, name)
    return host.astype(np.promote_types(host.dtype, np.float32), copy=False)


def positive(value: Any, name: str, *, zero: bool = False) -> None:
    """Refuse a number that is not above zero (or, with ``zero``, below it); traced ones pass."""
    if is_traced(value):
        return
    number = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    if isinstance(value, bool | np.bool_) or not number or np.iscomplexobj(value):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__}).")
    if not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'zero or more' if zero else 'above zero'}, got {value}.")


def tolerance(rtol: Any) -> None:
    """Refuse a relative tolerance that is no share of one; None and traced values pass."""
    if rtol is None:
        return
    positive(rtol, "rtol", zero=True)
    if not is_traced(rtol) and rtol >= 1:
        raise ValueError(f"rtol must be below 1, got {rtol}.")


def one_of(value: Any, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
