"""Alignments survive the disk; damaged and foreign files are named."""

import concurrent.futures
import dataclasses
import json
import os

import chex
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import perfalign_jax as pa
from perfalign_jax import serialization
from perfalign_jax.serialization import check_target, write_whole


@pytest.fixture
def alignment(rng):
    x1, x2 = (rng.normal(size=(30, d)).astype(np.float32) + 1 for d in (3, 4))
    return pa.fit((x1, x2), k=2, center=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_saved_is_loaded(dtype, x64, tmp_path, rng):
    z = rng.normal(size=(30, 2))
    views = tuple((z @ rng.normal(size=(2, d))).astype(dtype) for d in (3, 4))
    saved = pa.fit(views, k=2, select="energy", center=True)
    pa.save(saved, tmp_path / "a.safetensors")
    loaded = pa.load(tmp_path / "a.safetensors")
    chex.assert_trees_all_equal(loaded, saved)
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)  # method, select, centring
    assert loaded.offset.dtype == dtype
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_float64_file_is_not_narrowed_silently(alignment, tmp_path):
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), alignment)
    pa.save(wide, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"holds a float64 alignment; call jax.config"):
        pa.load(tmp_path / "a.safetensors")


def test_every_truncation_is_noticed(alignment, tmp_path):
    path = tmp_path / "a.safetensors"
    pa.save(alignment, path)
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 20, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"not a whole safetensors file"):
            pa.load(path)


def test_foreign_files_are_named(alignment, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        pa.load(path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        pa.load(tmp_path)
    path.write_text("hello, this is text and no safetensors file at all")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        pa.load(path)
    safetensors.numpy.save_file({"x": np.ones(3)}, path)
    with pytest.raises(ValueError, match="holds no alignment"):
        pa.load(path)
    pa.save(alignment, path)
    good = safetensors.numpy.load_file(path)
    form = "perfalign_jax.Alignment"
    made_by = json.dumps(
        {
            "method": "svd",
            "select": "",
            "space": "",
            "center": False,
            "sides": [],
            "lifts": [],
            "choice": None,
        }
    )
    for arrays, extra, match in [
        (good, {"version": "99"}, "version '99'"),
        (good, {"made_by": "{}"}, "does not say how"),
        ({"offset": good["offset"]}, {"made_by": made_by}, "must hold the arrays"),
        (good | {"offset": np.ones(7, np.float32)}, {"made_by": made_by}, "do not fit together"),
        (good | {"means.0": good["means.0"].astype(int)}, {"made_by": made_by}, "do not fit"),
    ]:
        serialization.write_arrays(path, arrays, form, extra)
        with pytest.raises(ValueError, match=match):
            pa.load(path)


def test_a_changed_bit_is_noticed(alignment, tmp_path):
    path = tmp_path / "a.safetensors"
    pa.save(alignment, path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="is damaged: its checksum"):
        pa.load(path)


def test_any_number_of_views(alignment, tmp_path):
    path = tmp_path / "a.safetensors"
    more = dataclasses.replace(
        alignment,
        projections=(*alignment.projections, np.ones((2, 5), np.float32)),
        means=(*alignment.means, np.zeros(5, np.float32)),
    )
    pa.save(more, path)
    chex.assert_trees_all_equal(pa.load(path), more)
    assert pa.load(path).dims == (3, 4, 5)
    whole = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        words = {"made_by": file.metadata()["made_by"]}
    for gone in ("projections.0", "means.1", "projections.2"):
        rest = {n: a for n, a in whole.items() if n != gone}
        serialization.write_arrays(path, rest, "perfalign_jax.Alignment", words)
        with pytest.raises(ValueError, match="must hold the arrays"):
            pa.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_could_not_be_loaded_is_not_saved(value, alignment, tmp_path):
    path = tmp_path / "a.safetensors"
    broken = dataclasses.replace(alignment, offset=alignment.offset.at[1].set(value))
    with pytest.raises(ValueError, match="alignment holds values that are not finite, in offset"):
        pa.save(broken, path)
    assert not path.exists()


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_permissions_are_those_the_user_asked_for(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_written_anew_keeps_its_permissions(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"old")
    secret.chmod(0o600)
    write_whole(secret, b"new")
    assert secret.read_bytes() == b"new"
    assert secret.stat().st_mode & 0o777 == 0o600


def test_writing_never_touches_the_umask(monkeypatch, tmp_path):
    # It belongs to the whole process: for a moment any other thread would write open files.
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_whole(tmp_path / f"{i % 3}", b"%d" % i), range(60)))
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]


def test_a_place_where_nothing_can_be_written_is_found_beforehand(tmp_path, monkeypatch):
    name = "n" * 255  # as long as names can be: the file on its way needs one of its own
    write_whole(check_target(tmp_path / name), b"content")
    assert os.listdir(tmp_path) == [name]
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to all
    with pytest.raises(PermissionError, match="is there and must not be written to"):
        check_target(tmp_path / name)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=r"no file can be written in the folder .*denied"):
        check_target(tmp_path / "new")


def test_nothing_half_written_is_left(alignment, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        pa.save(alignment, tmp_path / "missing" / "a.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        pa.save(alignment, tmp_path)
    with pytest.raises(TypeError, match="must be an Alignment"):
        pa.save("alignment", tmp_path / "a.safetensors")
    target = tmp_path / "kept"
    target.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_whole(target, "text is not bytes")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]
