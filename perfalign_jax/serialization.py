"""Alignments on disk: one safetensors file, no pickle."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from perfalign_jax import statistics
from perfalign_jax.lift import Fourier, Nystroem, Principal, Span, Standardise, apply
from perfalign_jax.statistics import Factor, Gram
from perfalign_jax.types import Alignment, Choice, Evidence, Trial

__all__ = ["load", "save"]

_FORMAT, _MOMENTS = "perfalign_jax.Alignment", "perfalign_jax.Moments"
_VERSION = 3
_LONGEST = 1000  # characters of what a file says that an error repeats
_LIFTS: dict[str, Any] = {
    kind.__name__: kind for kind in (Fourier, Nystroem, Principal, Span, Standardise)
}
_SLOPES = ("slope", "offset", "search_slope", "lapse", "unit")
_BY_VIEW = ("loadings", "centres", "variances", "explained")
_RIGHT = ("right_share", "right_probability")


def save(alignment: Alignment | Factor | Gram, path: str | os.PathLike[str]) -> None:
    """Write an alignment, or moments of data, to a safetensors file, whole or not at all.

    The arrays keep their dtype; how it was made, and what was tried and chosen, goes into the
    metadata, and a checksum. An existing file is replaced. Moments that were saved where the data
    is merge anywhere (``statistics.merge``).

    Raises:
        TypeError: if it is none of them.
        ValueError: if it is a batch of alignments, or holds a value that is not finite.
        OSError: if the path is a folder, or nothing can be written there.

    Example:
        >>> import tempfile, numpy as np, perfalign_jax as pa
        >>> x = np.eye(4, 2, dtype=np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pa.save(pa.fit((x, x), k=2), f"{folder}/a.safetensors")
        ...     pa.load(f"{folder}/a.safetensors").k
        2
    """
    moments = statistics.take_apart(alignment)
    if moments is not None:
        _check_finite("moments", moments[1])
        write_arrays(path, moments[1], _MOMENTS, {"kind": moments[0]})
        return
    if not isinstance(alignment, Alignment):
        raise TypeError(
            f"alignment must be an Alignment, a Factor or a Gram, got {type(alignment).__name__}."
        )
    if jnp.ndim(alignment.offset) != 1:
        raise ValueError(
            "alignment must be a single one, got a batch of shape "
            f"{jnp.shape(alignment.offset)[:-1]}; save its members one by one."
        )
    arrays = {
        "singular_values": alignment.singular_values,
        "offset": alignment.offset,
        "coupling": alignment.coupling,
        **{f"projections.{m}": value for m, value in enumerate(alignment.projections)},
        **{f"means.{m}": value for m, value in enumerate(alignment.means)},
        **_list_evidence(alignment.evidence),
    }
    lifts = []
    for m, fitted in enumerate(alignment.lifts):
        parts, words = _take_apart(fitted, f"lifts.{m}")
        arrays |= parts
        lifts.append(words)
    _check_finite("alignment", arrays)
    words = {
        "made_by": json.dumps(
            {
                "method": alignment.method,
                "select": alignment.select,
                "space": alignment.space,
                "center": alignment.center,
                "sides": alignment.sides,
                "lifts": lifts,
                "choice": alignment.choice and dataclasses.asdict(alignment.choice),
            }
        ),
    }
    write_arrays(path, arrays, _FORMAT, words)


def _check_dtype(source: Path, dtype: Any, what: str) -> None:
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{source} holds a {dtype} {what}; call "
            'jax.config.update("jax_enable_x64", True) first to load it without loss.'
        )


def _list_evidence(evidence: Evidence | None) -> dict[str, Any]:
    """The arrays of the evidence by name; none where there is none."""
    if evidence is None:
        return {}
    alone = ("reliability", *_SLOPES, *_RIGHT)
    arrays = {f"evidence.{name}": getattr(evidence, name) for name in alone}
    for name in (*_BY_VIEW, "fills"):
        for m, value in enumerate(getattr(evidence, name)):
            arrays[f"evidence.{name}.{m}"] = value
    return {name: value for name, value in arrays.items() if value is not None}


def _take_apart(fitted: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a lift by name, and its kind and words."""
    kind = type(fitted).__name__
    if kind not in _LIFTS:
        raise TypeError(f"{name} must be one of {', '.join(_LIFTS)} to be saved, got {kind}.")
    arrays: dict[str, Any] = {}
    words: dict[str, Any] = {"kind": kind}
    for field in dataclasses.fields(fitted):
        value = getattr(fitted, field.name)
        if isinstance(value, str):
            words[field.name] = value
        elif dataclasses.is_dataclass(value):
            parts, words[field.name] = _take_apart(value, f"{name}.{field.name}")
            arrays |= parts
        else:
            arrays[f"{name}.{field.name}"] = value
    return arrays, words


def _put_together(words: dict[str, Any], arrays: dict[str, np.ndarray], name: str) -> Any:
    """The lift that was taken apart."""
    values = {
        field: _put_together(value, arrays, f"{name}.{field}") if isinstance(value, dict) else value
        for field, value in words.items()
        if field != "kind"
    }
    kind = _LIFTS[words["kind"]]
    for field in dataclasses.fields(kind):
        if field.name not in values:
            values[field.name] = jnp.asarray(arrays[f"{name}.{field.name}"])
    return kind(**values)


def write_arrays(
    path: str | os.PathLike[str], arrays: dict[str, Any], kind: str, words: dict[str, str]
) -> None:
    """Write arrays with words about them, whole or not at all, and a checksum of them."""
    host = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    metadata = {"format": kind, "version": str(_VERSION), **words}
    write_whole(path, safetensors.numpy.save(host, metadata | {"sha256": _sum(host, metadata)}))


def read_arrays(
    path: str | os.PathLike[str], what: str, *kinds: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read what ``write_arrays`` wrote, and check that it is."""
    source = Path(path)
    with open_safetensors(source, f"{what} file") as file:
        metadata = dict(file.metadata() or {})
    if metadata.get("format") not in kinds:
        raise ValueError(
            f"{source} is a safetensors file but holds no {what.split()[-1]} "
            f"(format {metadata.get('format')!r:.80}, expected {' or '.join(map(repr, kinds))})."
        )
    if metadata.get("version") != str(_VERSION):
        raise ValueError(
            f"{source} was written in version {metadata.get('version')!r:.80} of the file format; "
            f"this package reads version {_VERSION}."
        )
    with open_safetensors(source, f"{what} file") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if metadata.pop("sha256", None) != _sum(arrays, metadata):
        raise ValueError(f"{source} is damaged: its checksum is not that of what it holds.")
    return arrays, metadata


def _sum(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def check_target(path: str | os.PathLike[str]) -> Path:
    """Refuse a path that cannot be written to, before the work that leads to it."""
    target = Path(path)
    handle, temporary = _create_beside(target)
    os.close(handle)
    temporary.unlink()
    return target


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    with open_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to write that appears at the end of the block, whole, or not at all."""
    target = Path(path)
    handle, temporary = _create_beside(target)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        if target.is_file() and not target.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # written anew, for the eyes it was for
                shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def open_safetensors(source: Path, what: str) -> Iterator[Any]:
    """Open a safetensors file to read, or say why it is none."""
    if source.is_dir():
        raise IsADirectoryError(f"{source} is a folder, not {what}.")
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}.")
    try:
        with safetensors.safe_open(source, framework="numpy") as file:
            yield file
    except Exception as error:  # whatever the broken bytes lead the reader into
        raise ValueError(
            f"{source} is not a whole safetensors file (truncated, or of another kind): "
            f"{error!s:.{_LONGEST}}"
        ) from None


def _create_beside(target: Path) -> tuple[int, Path]:
    """Create a file of a random name in the target's folder, with the permissions of the user."""
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder, not a file to write.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist.")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{target} is there and must not be written to.")
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    try:
        return os.open(temporary, flags, 0o666), temporary
    except OSError as error:
        raise type(error)(
            f"no file can be written in the folder {target.parent}: {error.strerror}."
        ) from None


def load(path: str | os.PathLike[str]) -> Any:
    """Read an alignment or moments that ``save`` wrote, with the dtype they were saved in.

    Raises:
        FileNotFoundError, IsADirectoryError: if there is no such file.
        ValueError: if the file is truncated, damaged, of another kind, or holds float64 while JAX's
            64-bit mode is off.

    Example:
        >>> import perfalign_jax as pa
        >>> pa.load("no-such-file.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: there is no file no-such-file.safetensors.
    """
    source = Path(path)
    arrays, metadata = read_arrays(source, "an alignment", _FORMAT, _MOMENTS)
    if metadata["format"] == _MOMENTS:
        _check_finite(str(source), arrays)
        try:
            state = statistics.put_together(metadata.get("kind", "?"), arrays)
        except ValueError as error:
            raise ValueError(f"{source} holds no statistic: {error!s:.{_LONGEST}}") from None
        _check_dtype(source, arrays["total"].dtype, "statistic")
        return state
    return _assemble(source, arrays, metadata)


def _assemble(source: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> Alignment:
    views = range(max(2, sum(name.startswith("projections.") for name in arrays)))
    wanted = {"singular_values", "offset", "coupling"} | {
        f"{part}.{m}" for part in ("projections", "means") for m in views
    }
    core = {name for name in arrays if not name.startswith(("evidence.", "lifts."))}
    if core != wanted:
        came = f"{sorted(arrays)}"
        raise ValueError(f"{source} must hold the arrays {sorted(wanted)}, got {came:.{_LONGEST}}.")
    k = arrays["offset"].size
    shapes: dict[str, tuple[int, ...]] = {"singular_values": (k,), "offset": (k,)}
    for m in views:
        d = arrays[f"means.{m}"].size
        shapes |= {f"means.{m}": (d,), f"projections.{m}": (k, d)}
    fits = k > 0 and all(arrays[name].shape == shape for name, shape in shapes.items())
    fits = fits and arrays["coupling"].shape in ((k,), (0,))
    dtypes = {a.dtype for a in arrays.values()}
    if not fits or len(dtypes) != 1 or next(iter(dtypes)) not in (np.float32, np.float64):
        came = f"{ ({name: (a.shape, str(a.dtype)) for name, a in sorted(arrays.items())}) }"
        raise ValueError(f"{source} holds arrays that do not fit together: {came:.{_LONGEST}}.")
    _check_finite(str(source), arrays)
    dtype = next(iter(dtypes))
    _check_dtype(source, dtype, "alignment")
    try:
        made_by = json.loads(metadata["made_by"])
        words = {name: str(made_by[name]) for name in ("method", "select", "space")}
        center = bool(made_by["center"])
        sides = tuple(tuple(int(m) for m in side) for side in made_by["sides"])
        if sides and sorted(itertools.chain(*sides)) != list(views):
            raise ValueError("every view must be in one side")
        lifts = tuple(
            _put_together(part, arrays, f"lifts.{m}") for m, part in enumerate(made_by["lifts"])
        )
        widths = [arrays[f"means.{m}"].size for m in views]
        _check_lifts(lifts, widths, dtype)
        dims = [lift.dim for lift in lifts] or widths
        evidence = _read_evidence(arrays, dims, widths, sides, k)
        choice = _read_choice(made_by["choice"])
    except Exception:  # whatever the broken words lead the readers into
        raise ValueError(
            f"{source} does not say how its alignment was made, or says what does not fit it."
        ) from None
    return Alignment(
        projections=tuple(jnp.asarray(arrays[f"projections.{m}"]) for m in views),
        singular_values=jnp.asarray(arrays["singular_values"]),
        means=tuple(jnp.asarray(arrays[f"means.{m}"]) for m in views),
        offset=jnp.asarray(arrays["offset"]),
        coupling=jnp.asarray(arrays["coupling"]),
        lifts=lifts,
        evidence=evidence,
        center=center,
        sides=sides,
        choice=choice,
        **words,
    )


def _check_lifts(lifts: tuple[Any, ...], widths: list[int], dtype: Any) -> None:
    """Refuse lifts that do not bring every view to the width of its projection."""
    found = [
        jax.eval_shape(
            functools.partial(apply, fitted), jax.ShapeDtypeStruct((1, fitted.dim), dtype)
        )
        for fitted in lifts
    ]
    if lifts and [x.shape for x in found] != [(1, width) for width in widths]:
        raise ValueError("lifts must be one for each view, of as many features as are projected")


def _read_evidence(
    arrays: dict[str, np.ndarray],
    dims: list[int],
    widths: list[int],
    sides: tuple[tuple[int, ...], ...],
    k: int,
) -> Evidence | None:
    named = {n.removeprefix("evidence."): a for n, a in arrays.items() if n.startswith("evidence.")}
    if not named:
        return None
    sides = sides or tuple((m,) for m in range(len(dims)))
    shapes: dict[str, tuple[int, ...]] = {"reliability": (len(sides), k)}
    shapes |= dict.fromkeys(_SLOPES, ())
    for m, d in enumerate(dims):
        shapes |= {f"loadings.{m}": (k, d), f"centres.{m}": (d,), f"variances.{m}": (d,)}
        shapes[f"explained.{m}"] = ()
    for s, side in enumerate(sides):  # a side of one view has nothing to fill in
        shapes[f"fills.{s}"] = 2 * (sum(widths[m] for m in side) if len(side) > 1 else 0,)
    if "right_share" in named:
        shapes |= {"right_share": (), "right_probability": (named["right_probability"].size,)}
    if {name: array.shape for name, array in named.items()} != shapes:
        raise ValueError("the evidence is of other views or axes")
    values = {name: jnp.asarray(array) for name, array in named.items()}
    fields: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    for name, count in (*((name, len(dims)) for name in _BY_VIEW), ("fills", len(sides))):
        fields[name] = tuple(values[f"{name}.{m}"] for m in range(count))
    return Evidence(**fields)


def _read_choice(fields: dict[str, Any] | None) -> Choice | None:
    if fields is None:
        return None
    return Choice(
        trials=tuple(_read_trial(trial) for trial in fields["trials"]),
        chosen=_read_trial(fields["chosen"]),
        rows=int(fields["rows"]),
        candidates=int(fields["candidates"]),
        reason=str(fields["reason"]),
        remarks=tuple(map(str, fields["remarks"])),
    )


def _read_trial(fields: dict[str, Any]) -> Trial:
    likelihood = fields.get("log_likelihood")
    return Trial(
        lift=str(fields["lift"]),
        **{name: float(fields[name]) for name in ("ridge", "recall", "error")},
        k=int(fields["k"]),
        log_likelihood=None if likelihood is None else float(likelihood),
    )


def _check_finite(name: str, arrays: dict[str, Any]) -> None:
    broken = sorted(part for part, a in arrays.items() if not np.isfinite(a).all())
    if broken:
        raise ValueError(
            f"{name} holds values that are not finite, in {', '.join(broken)}: are there values "
            "whose squares are too large for their dtype? In larger units they are not."
        )
