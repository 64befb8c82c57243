"""Who is used for what in cross-modal transfer: the authors' split, random and subject-disjoint.

Four roles that share no clip (paper, Section 3.2): ``har`` has labels, and of it only the source
modality is used; ``align`` has pairs without labels; ``val`` and ``test`` are the target clips
whose actions are to be told.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from perfalign_jax import _checks

__all__ = ["Split", "hold_out_subject", "read_split", "split_at_random"]


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows of each role; no clip has two.

    Attributes:
        name: what the split is called.
        har: rows whose source modality and label train the decoder.
        align: rows whose pairs, without labels, fit the alignment.
        val: rows to evaluate (target modality), for choices.
        test: rows to evaluate (target modality).
        missing: clips that the split names but the data does not have.

    Raises:
        ValueError: if a role is no row of integers, one that is needed is empty, or a clip is
            negative or used twice.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.data.splits import Split
        >>> rows = np.arange(6)
        >>> Split("small", har=rows[:2], align=rows[2:4], val=rows[4:5], test=rows[5:]).evaluated
        array([4, 5])
    """

    name: str
    har: Int[np.ndarray, " h"]
    align: Int[np.ndarray, " a"]
    val: Int[np.ndarray, " v"]
    test: Int[np.ndarray, " t"]
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        roles = {role: getattr(self, role) for role in ("har", "align", "val", "test")}
        for role, given in roles.items():
            rows = np.asarray(given, np.int64 if np.size(given) == 0 else None)
            if rows.ndim != 1 or rows.dtype.kind not in "iu":
                raise ValueError(
                    f"{role} must be a row of integers, the indices of clips, got shape "
                    f"{rows.shape} and dtype {rows.dtype}."
                )
            roles[role] = rows.astype(np.int64)
            object.__setattr__(self, role, roles[role])
        for role in ("har", "align", "test"):
            if len(roles[role]) == 0:
                raise ValueError(f"split {self.name!r} has no clip in role {role!r}.")
        rows = np.concatenate(list(roles.values()))
        if rows.min() < 0:
            raise ValueError(f"split {self.name!r} has a negative row, {rows.min()}.")
        for row in np.unique(rows)[np.unique(rows, return_counts=True)[1] > 1][:1]:
            holders = [r for r, members in roles.items() for m in members if m == row]
            raise ValueError(
                f"split {self.name!r} leaks: row {row} is used more than once "
                f"({', '.join(holders)})."
            )

    @property
    def evaluated(self) -> Int[np.ndarray, " e"]:
        """Rows on which the transfer is scored: validation and test together."""
        return np.concatenate([self.val, self.test])


def read_split(folder: str | Path, names: Sequence[str]) -> Split:
    """Read a published split: ``har.txt``, ``align.txt``, ``val.txt`` and ``test.txt``.

    Args:
        folder: folder of the four files, one clip's name a line; the authors' is
            ``splits/40_40_10_10``.
        names: names of the clips that were read; their order gives the rows. What the split names
            beside them is in ``missing``.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is no text, the roles share a clip, or one has none of the clips.

    Example:
        >>> import pathlib, tempfile
        >>> from perfalign_jax.har.data.splits import read_split
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for row, role in enumerate(("har", "align", "val", "test")):
        ...         _ = (pathlib.Path(folder) / f"{role}.txt").write_text(f"a{row}_s1_t1\\n")
        ...     split = read_split(folder, [f"a{row}_s1_t1" for row in range(4)])
        >>> split.test
        array([3])
    """
    folder = Path(folder)
    rows = {name: row for row, name in enumerate(names)}
    roles, missing = {}, []
    for role in ("har", "align", "val", "test"):
        path = folder / f"{role}.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"the split {folder} has no file {role}.txt; expected har.txt, align.txt, val.txt "
                "and test.txt with one clip's name a line."
            )
        try:
            listed = path.read_text(encoding="utf-8-sig").split()
        except UnicodeDecodeError:
            raise ValueError(f"{path} is no text file; expected one clip's name a line.") from None
        missing += [name for name in listed if name not in rows]
        roles[role] = np.array([rows[name] for name in listed if name in rows], np.int64)
    return Split(folder.name, **roles, missing=tuple(missing))


def split_at_random(n: int, *, key: Key[Array, ""], name: str = "random") -> Split:
    """Divide clips at random, 40 % labelled source, 40 % pairs, 10 % validation, 10 % test.

    Every one of the ``n >= 10`` clips is used once.

    Raises:
        TypeError: if ``n`` is no integer or ``key`` no random key.
        ValueError: if there are too few clips.

    Example:
        >>> import jax
        >>> from perfalign_jax.har.data.splits import split_at_random
        >>> split = split_at_random(20, key=jax.random.key(0))
        >>> [len(role) for role in (split.har, split.align, split.val, split.test)]
        [8, 8, 2, 2]
    """
    n = _checks.integer(n, "n", low=10, why=", so that every role has a clip")
    _checks.key(key)
    order = np.asarray(jax.random.permutation(key, n)).astype(np.int64)
    ends = [round(share * n) for share in (0.4, 0.8, 0.9)]
    har, align, val, test = np.split(order, ends)
    return Split(name, har=har, align=align, val=val, test=test)


def hold_out_subject(
    subjects: Int[np.ndarray, " n"], *, subject: int, key: Key[Array, ""], pairs: int | None = None
) -> Split:
    """Test on one subject, and divide the clips of all others at random into source and pairs.

    Args:
        subjects: subject of each clip, shape ``(n,)``.
        subject: the subject whose clips are tested; nothing else of theirs is used, and nobody's in
            ``val``.
        key: random key.
        pairs: number of clips for ``align``; half of the others' clips by default. Give it where
            all subjects are held out in turn and each is to have as many pairs.

    Raises:
        TypeError: if ``pairs`` is no integer or ``key`` no random key.
        ValueError: if the subject has no clip, the others fewer than two, or ``pairs`` leaves
            nothing for ``har``.

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax.har.data.splits import hold_out_subject
        >>> hold_out_subject(np.array([1, 2, 3, 2]), subject=2, key=jax.random.key(0)).test
        array([1, 3])
    """
    _checks.key(key)
    subjects = np.asarray(subjects)
    if subjects.ndim != 1:
        raise ValueError(f"subjects must have shape (n,), got {subjects.shape}.")
    test = np.flatnonzero(subjects == subject)
    if len(test) == 0:
        present = ", ".join(str(s) for s in np.unique(subjects))
        raise ValueError(f"subject {subject} has no clip; there are subjects {present}.")
    others = np.flatnonzero(subjects != subject)
    if len(others) < 2:
        raise ValueError(
            f"subjects must have at least 2 clips of others than {subject}, got {len(others)}."
        )
    order = others[np.asarray(jax.random.permutation(key, len(others)))]
    pairs = len(others) // 2 if pairs is None else pairs
    pairs = _checks.integer(pairs, "pairs", low=1, high=len(others) - 1)
    empty = np.zeros(0, np.int64)
    return Split(f"subject {subject}", har=order[pairs:], align=order[:pairs], val=empty, test=test)
