"""Boundary validation: every message names the argument, what came and what was expected."""

import numbers
import warnings
from collections.abc import Sequence
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
    "views",
]


def is_traced(tree: Any) -> bool:
    """Say whether a value, or any leaf of a tree, is known only while a program runs."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def finite(value: Any, name: str) -> None:
    """Refuse NaN and infinity, naming the first row that has one; traced values pass."""
    if is_traced(value):
        return
    # A finite sum proves every entry finite and needs one pass and no memory; an infinite one
    # may still be overflow, so only then is the array searched.
    with np.errstate(all="ignore"):
        if np.isfinite(value.sum()):
            return
    host = np.asarray(value)
    bad = ~np.isfinite(host)
    if bad.any():
        row = int(np.argmax(bad.reshape(host.shape[0], -1).any(axis=1))) if host.ndim else 0
        what = "NaN" if np.isnan(host[row] if host.ndim else host).any() else "infinity"
        raise ValueError(
            f"{name} must be finite, but row {row} has {what} "
            f"({int(bad.sum())} such values in all)."
        )


def array(value: Any, name: str, *, ndim: int, shape: str) -> Array:
    """Return a finite floating-point JAX array of ``ndim`` dimensions, or raise.

    Integers, booleans and half precision are computed in JAX's default float, with a
    ``PrecisionWarning``; so is float64 when 64-bit mode is off.
    """
    if not hasattr(value, "dtype"):
        try:
            value = np.asarray(value)
        except ValueError:  # ragged nested lists
            raise TypeError(
                f"{name} must be an array of shape {shape}, got a ragged {type(value).__name__}."
            ) from None
    kind = np.dtype(value.dtype) if value.dtype != jnp.bfloat16 else np.dtype(np.float16)
    if kind.kind not in "fiub":
        raise TypeError(
            f"{name} must hold real numbers (floating point or integers), got dtype {value.dtype}."
        )
    if len(value.shape) != ndim:
        raise ValueError(f"{name} must have shape {shape}, got shape {tuple(value.shape)}.")
    finite(value, name)
    wanted = kind.newbyteorder("=") if kind in (np.float32, np.float64) else np.dtype(np.float64)
    if kind == np.float16:
        wanted = np.dtype(np.float32)
    dtype = jax.dtypes.canonicalize_dtype(wanted)
    if dtype != value.dtype and not is_traced(value):
        hint = (
            '; call jax.config.update("jax_enable_x64", True) first to compute in float64'
            if dtype != wanted
            else ""
        )
        warnings.warn(
            f"{name} has dtype {value.dtype} and is computed in {dtype}{hint}.",
            PrecisionWarning,
            stacklevel=4,
        )
    return jnp.asarray(value, dtype)


def views(data: Any, name: str = "views") -> tuple[Float[Array, "n d1"], Float[Array, "n d2"]]:
    """Return two finite arrays of paired rows of one dtype, or raise."""
    if not isinstance(data, Sequence) or isinstance(data, str | bytes) or len(data) != 2:
        came = f"{len(data)} of them" if isinstance(data, Sequence) else type(data).__name__
        raise TypeError(f"{name} must be a tuple of two arrays (x1, x2), got {came}.")
    x1, x2 = (array(x, f"x{m + 1}", ndim=2, shape=f"(n, d{m + 1})") for m, x in enumerate(data))
    paired(x1, x2, "x1", "x2")
    for x, label in ((x1, "x1"), (x2, "x2")):
        if x.shape[1] < 1:
            raise ValueError(f"{label} must have at least one column, got shape {x.shape}.")
    if x1.dtype != x2.dtype:
        dtype = jnp.promote_types(x1.dtype, x2.dtype)
        warnings.warn(
            f"x1 has dtype {x1.dtype} and x2 {x2.dtype}; both are computed in {dtype}.",
            PrecisionWarning,
            stacklevel=3,
        )
        x1, x2 = x1.astype(dtype), x2.astype(dtype)
    return x1, x2


def paired(a: Any, b: Any, a_name: str, b_name: str) -> None:
    """Refuse two arrays whose numbers of rows differ."""
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"{a_name} and {b_name} must have the same number of rows (row i of both shows the "
            f"same thing), got {a.shape[0]} and {b.shape[0]} (shapes {a.shape} and {b.shape})."
        )


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
    host = np.asarray(value)
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


def one_of(value: Any, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
