"""Splits: who is used for what, and that nothing leaks."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from perfalign_jax.har.data.splits import Split, hold_out_subject, read_split, split_at_random
from perfalign_jax.har.data.utd_mhad import discover, parse_name

REAL = os.environ.get("UTD_MHAD_ROOT")
real_files = pytest.mark.skipif(not REAL, reason="UTD_MHAD_ROOT is not set: no real files here")
ROLES = ("har", "align", "val", "test")


def rows_of(split):
    return np.concatenate([getattr(split, role) for role in ROLES])


def write_split(folder, **names):
    for role in ROLES:
        (folder / f"{role}.txt").write_text("".join(f"{n}\n" for n in names.get(role, ())))


def test_a_published_split_is_read_by_name(tmp_path):
    write_split(tmp_path, har=["b", "a"], align=["c"], val=["e"], test=["d"])
    split = read_split(tmp_path, ["a", "b", "c", "d", "e"])
    assert [getattr(split, role).tolist() for role in ROLES] == [[1, 0], [2], [4], [3]]
    assert split.evaluated.tolist() == [4, 3]
    assert split.missing == ()


def test_clips_that_were_not_read_are_named_and_left_out(tmp_path):
    write_split(tmp_path, har=["a", "x"], align=["c"], val=["y"], test=["d"])
    split = read_split(tmp_path, ["a", "c", "d"])
    assert split.missing == ("x", "y")
    assert split.har.tolist() == [0]
    assert split.evaluated.tolist() == [2]


def test_a_split_that_is_not_there_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file har.txt; expected har.txt, align.txt"):
        read_split(tmp_path, ["a"])


def test_a_clip_in_two_roles_is_refused(tmp_path):
    write_split(tmp_path, har=["a"], align=["b"], val=["c"], test=["a"])
    with pytest.raises(ValueError, match=r"leaks: row 0 is used more than once \(har, test\)"):
        read_split(tmp_path, ["a", "b", "c"])
    rows = np.arange(4)
    with pytest.raises(ValueError, match=r"leaks.*har, har"):
        Split("x", har=rows[[0, 0]], align=rows[1:2], val=rows[:0], test=rows[2:3])
    with pytest.raises(ValueError, match="no clip in role 'align'"):
        Split("x", har=rows[:1], align=rows[:0], val=rows[:0], test=rows[2:3])
    with pytest.raises(ValueError, match="negative row"):
        Split("x", har=rows[:1], align=-rows[1:2], val=rows[:0], test=rows[2:3])


@pytest.mark.parametrize("n", [10, 11, 57, 861])
def test_a_random_split_uses_every_clip_once_in_the_right_shares(n):
    split = split_at_random(n, key=jax.random.key(3))
    assert sorted(rows_of(split)) == list(range(n))
    for role, share in zip(ROLES, (0.4, 0.4, 0.1, 0.1), strict=True):
        assert abs(len(getattr(split, role)) - share * n) <= 1


def test_a_random_split_is_decided_by_its_key_and_nothing_else():
    first, again, other = (split_at_random(100, key=jax.random.key(k)) for k in (0, 0, 1))
    assert rows_of(first).tolist() == rows_of(again).tolist() != rows_of(other).tolist()
    with jax.enable_x64(True):
        wide = split_at_random(100, key=jax.random.key(0))
    assert rows_of(first).tolist() == rows_of(wide).tolist()


def test_too_few_clips_are_refused():
    with pytest.raises(ValueError, match="at least 10"):
        split_at_random(9, key=jax.random.key(0))


@pytest.mark.parametrize("subject", [1, 2, 3])
def test_nothing_of_the_held_out_subject_is_used_elsewhere(rng, subject):
    subjects = rng.integers(1, 4, size=50)
    split = hold_out_subject(subjects, subject=subject, key=jax.random.key(0))
    assert set(subjects[split.test]) == {subject}
    assert subject not in subjects[np.concatenate([split.har, split.align])]
    assert sorted(rows_of(split)) == list(range(50))
    assert 0 <= len(split.har) - len(split.align) <= 1


def test_the_number_of_pairs_can_be_fixed():
    subjects = np.repeat([1, 2, 3], [4, 6, 8])
    for subject in (1, 2, 3):
        split = hold_out_subject(subjects, subject=subject, key=jax.random.key(0), pairs=3)
        assert len(split.align) == 3
    with pytest.raises(ValueError, match="pairs must be between 1 and 9, got 10"):
        hold_out_subject(subjects, subject=3, key=jax.random.key(0), pairs=10)


def test_a_subject_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="subject 9 has no clip; there are subjects 1, 2"):
        hold_out_subject(np.array([1, 2, 2]), subject=9, key=jax.random.key(0))


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="at least 2 clips of others than 1, got 0"):
        hold_out_subject(np.ones(5, int), subject=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"subjects must have shape \(n,\), got \(2, 2\)"):
        hold_out_subject(np.eye(2, dtype=int), subject=1, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"n must be an integer, got 20\.0"):
        split_at_random(20.0, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"key must be one random key, as jax.random.key\(0\)"):
        split_at_random(20, key=0)


def test_lists_of_rows_are_taken_as_arrays():
    split = Split("small", har=[0, 1], align=[2], val=[], test=[3])
    assert split.evaluated.tolist() == [3]
    unsigned = Split("small", har=[0], align=[1], val=[2], test=np.array([3], "u8"))
    assert unsigned.evaluated.dtype == np.int64


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    names = [f"a{a}_s1_t1" for a in range(1, 5)]
    for role, name in zip(ROLES, names, strict=True):
        (tmp_path / f"{role}.txt").write_text(f"{name}\n", encoding="utf-8-sig")
    assert read_split(tmp_path, names).missing == ()


@real_files
def test_the_authors_split_is_as_documented():
    names = discover(REAL).names
    split = read_split(Path(REAL) / "splits" / "40_40_10_10", names)
    assert [len(getattr(split, role)) for role in ROLES] == [365, 366, 86, 44]
    assert split.missing == ()
    # It is no split by subject: every test clip shares action and subject with a training clip.
    kinds = [parse_name(name)[:2] for name in names]
    trained = {kinds[row] for row in np.concatenate([split.har, split.align])}
    assert all(kinds[row] in trained for row in split.test)
