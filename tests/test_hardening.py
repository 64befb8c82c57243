"""Files made to do harm: every reader refuses them in words, in little memory and time."""

import contextlib
import copy
import dataclasses
import io
import json
import os
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.io
from hypothesis import strategies as st

import perfalign_jax as pa
from perfalign_jax import arrays, serialization, statistics, streaming, sweeps
from perfalign_jax.cli import main
from perfalign_jax.har.data import dataset, splits, utd_mhad
from perfalign_jax.kernels import Nystroem, Principal, Standardise
from perfalign_jax.types import Alignment, Choice, Evidence, Trial

_BASE = 4 * 2**20  # bytes: NumPy takes half of them to take a header of 10,000 characters apart
REFUSALS = (OSError, ValueError, TypeError, KeyError)
MANY = int(os.environ.get("PERFALIGN_FUZZ", "150"))  # files that each test makes
fuzzed = hypothesis.settings(
    max_examples=MANY,
    derandomize=MANY == 150,
    deadline=5000,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
NUMBERS = st.sampled_from([0, 1, 2, 3, 8, -1, -3, 255, 2**16, 2**31, 2**32, 2**62, 2**63, 10**30])


def read_rows(path):
    """What every command does with a file of rows."""
    file = arrays.open_array(path)
    arrays.RowReader(str(path)).whole()
    return file.rows()


def refuse_or_read(read, path, content, *, times=50):
    """Read a file, in memory of a multiple of it: an answer, or an error that names the file."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        return read(path)
    except REFUSALS as error:
        assert path.name in str(error)
        assert len(str(error)) < 4000
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < _BASE + times * len(content)


@st.composite
def spoilt(draw, whole):
    """The bytes of a file with some changed, some cut out, some put in, or the end missing."""
    content = bytearray(draw(st.sampled_from(whole)) if isinstance(whole, list) else whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        some = draw(
            st.one_of(
                st.binary(max_size=8),
                st.builds(lambda n: struct.pack("<Q", n % 2**64), NUMBERS),
                st.sampled_from([b"\xff" * 4, b"\0" * 8, b"PK\3\4", b"{" * 40, b"\x93NUMPY\2\0"]),
            )
        )
        away = draw(st.sampled_from([0, 1, len(some), len(content)]))
        content[at : at + away] = some
    return bytes(content)


@st.composite
def npy(draw):
    """A .npy file whose header says anything."""
    shape = draw(st.lists(NUMBERS, max_size=4).map(tuple))
    kind = draw(
        st.sampled_from(
            ["<f4", ">f8", "<f2", "<i8", "|b1", "|S0", "<U0", "|V0", "|O", "<c16", "<M8[s]", "|V9"]
            + ["<f16", "<U2147483647", "x", "", [("a", "<f4")], [("a", "|O")], ("<f4", (2, 2))]
            + [("<f4", (2**31, 2**31)), [("a", "<f4", 2**40)], 7, None, "<f4" * 99]
        )
    )
    words = {"descr": kind, "fortran_order": draw(st.sampled_from([True, False, 1, None]))}
    words["shape"] = draw(st.sampled_from([shape, list(shape), (2.0, 3), (True, 3), "(2, 3)", 6]))
    text = draw(
        st.sampled_from([repr(words), repr(words)[:-1], "(" * 9000, "-" * 9000 + "1", "{}", "1 +"])
    )
    text = draw(st.sampled_from([repr(words), text]))
    version = draw(st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]))
    sized = "<H" if version[0] == 1 else "<I"
    most = 2 ** (16 if version[0] == 1 else 32) - 1
    header = text.encode() + b"\n"
    length = draw(st.sampled_from([len(header), len(header), 0, most]))
    head = b"\x93NUMPY" + bytes(version) + struct.pack(sized, min(length, most)) + header
    return head + bytes(draw(st.sampled_from([0, 1, 96, 1000])))


@st.composite
def npz(draw):
    """An archive of members with names and contents of every kind."""
    names = ["x.npy", "../x.npy", "/etc/x.npy", "..\\x.npy", "C:x.npy", "x.npy/", "x.npz", ".npy"]
    names += ["\x1b[31mx.npy", "a\nb.npy", "é.npy", "n" * 5000 + ".npy", "\0.npy"]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
            how = draw(st.sampled_from([0, 8, 12, 14]))  # stored, deflate, bzip2, lzma
            info = zipfile.ZipInfo(name)
            info.compress_type = how
            if draw(st.booleans()):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            content = draw(st.one_of(npy(), st.binary(max_size=20)))
            archive.writestr(info, content)
    return draw(spoilt(file.getvalue())) if draw(st.booleans()) else file.getvalue()


@st.composite
def tensors(draw):
    """A .safetensors file whose header says anything."""
    kind = st.sampled_from(["F32", "F64", "BF16", "F16", "F8_E4M3", "F4", "BOOL", "I64", "X", 3])
    entry = st.fixed_dictionaries(
        {
            "dtype": kind,
            "shape": st.one_of(st.lists(NUMBERS, max_size=3), st.just([2, 3]), st.just("x")),
            "data_offsets": st.one_of(st.lists(NUMBERS, max_size=3), st.just([0, 24])),
        }
    )
    header = draw(st.dictionaries(st.sampled_from(["x", "y", "\x1b", "é", ""]), entry, max_size=2))
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.sampled_from([{"format": "x"}, {"format": 1}, [], "x"]))
    text = draw(st.sampled_from([json.dumps(header), "[" * 5000, '{"a":' * 5000, "", "null"]))
    size = draw(st.one_of(st.just(len(text.encode())), NUMBERS)) % 2**64
    data = bytes(draw(st.sampled_from([0, 6, 12, 24, 48])))
    return struct.pack("<Q", size) + text.encode() + data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def saved(write, *given, **named):
    file = io.BytesIO()
    write(file, *given, **named)
    return file.getvalue()


class TestRows:
    @fuzzed
    @hypothesis.given(data=st.data())
    def test_npy(self, data, folder, rows):
        whole = saved(np.save, rows)
        refuse_or_read(
            read_rows, folder / "x.npy", data.draw(st.one_of(npy(), spoilt(whole), npz()))
        )

    @fuzzed
    @hypothesis.given(data=st.data())
    def test_npz(self, data, folder, rows):
        whole = [saved(np.savez, x=rows), saved(np.savez_compressed, x=rows)]
        content = data.draw(st.one_of(npz(), spoilt(whole)))
        refuse_or_read(read_rows, folder / "x.npz", content, times=1100)

    @fuzzed
    @hypothesis.given(data=st.data())
    def test_safetensors(self, data, folder, rows):
        whole = safetensors.numpy.save({"x": rows})
        content = data.draw(st.one_of(tensors(), spoilt(whole)))
        refuse_or_read(read_rows, folder / "x.safetensors", content)


def make_alignment(dtype=np.float32):
    """An alignment with a lift of every shape, evidence, and words, without fitting any."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        return jax.numpy.asarray(rng.uniform(0.1, 0.9, size=shape).astype(dtype))

    scaling = Standardise(draw(3), draw(3))
    deep = Principal(Nystroem(scaling, draw(4, 3), draw(), draw(4, 5), "gaussian"), draw(5, 2))
    trial = Trial("gaussian", 0.1, 2, 0.5, 0.1)
    return Alignment(
        projections=(draw(2, 2), draw(2, 4)),
        singular_values=draw(2),
        means=(draw(2), draw(4)),
        offset=draw(2),
        coupling=draw(2),
        lifts=(deep, Standardise(draw(4), draw(4))),
        evidence=Evidence(
            reliability=draw(2, 2),
            slope=draw(),
            offset=draw(),
            search_slope=draw(),
            lapse=draw(),
            unit=draw(),
            loadings=(draw(2, 3), draw(2, 4)),
            centres=(draw(3), draw(4)),
            variances=(draw(3), draw(4)),
            explained=(draw(), draw()),
            fills=(draw(0, 0), draw(0, 0)),
        ),
        method="align",
        choice=Choice((trial,), trial, 8, 4, "told", ("one",)),
    )


JUNK = st.one_of(
    st.sampled_from([None, True, -1, 3, 0.5, 1e999, 10**400, "", "energy", "x\n\x1b[31m", [], {}]),
    st.sampled_from([[[0, 1], [9]], {"kind": "Span"}, {"kind": []}, [[]], [0], ["x"], [{}, {}]]),
)


@st.composite
def reworded(draw, words):
    """Words with something else in some place, or something missing."""
    words = copy.deepcopy(words)
    place, name = {"": words}, ""
    for _ in range(draw(st.integers(1, 4))):  # down to some place
        if not isinstance(place[name], dict | list) or not place[name]:
            break
        place = place[name]
        name = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if name != "" and draw(st.booleans()):
        del place[name]
    else:
        place[name] = draw(JUNK)
        words = place[name] if name == "" else words
    return words


@st.composite
def rearranged(draw, given):
    """Arrays of which one or two are missing, or of another shape or dtype, or others."""
    given = dict(given)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*sorted(given), "lifts.9.basis", "means.7", "means.x"]))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        dtype = draw(st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.bool_]))
        if draw(st.booleans()) and name in given:
            del given[name]
        elif draw(st.booleans()) and name in given:
            given[name] = given[name].astype(dtype)
        else:
            given[name] = np.ones(shape, dtype)
    return given


def read_parts(path):
    """Arrays and words of a file, to be spoilt and written again with a checksum that is right."""
    with safetensors.safe_open(path, framework="numpy") as file:
        words = dict(file.metadata())
    del words["sha256"], words["version"]
    return safetensors.numpy.load_file(path), words.pop("format"), words


class TestAlignments:
    @fuzzed
    @hypothesis.given(data=st.data())
    def test_bytes(self, data, folder):
        pa.save(make_alignment(), folder / "whole.safetensors")
        whole = (folder / "whole.safetensors").read_bytes()
        content = data.draw(st.one_of(tensors(), spoilt(whole)))
        refuse_or_read(pa.load, folder / "a.safetensors", content)

    @fuzzed
    @hypothesis.given(data=st.data())
    def test_what_is_loaded_can_be_used(self, data, folder):
        pa.save(make_alignment(), folder / "whole.safetensors")
        given, form, words = read_parts(folder / "whole.safetensors")
        if data.draw(st.booleans()):
            given = data.draw(rearranged(given))
        if data.draw(st.booleans()):
            words["made_by"] = json.dumps(data.draw(reworded(json.loads(words["made_by"]))))
        path = folder / "a.safetensors"
        serialization.write_arrays(path, given, form, words)
        found = refuse_or_read(pa.load, path, path.read_bytes())
        if found is None:
            return
        repr(found), str(found.choice), found.take(1)
        rows = [jax.ShapeDtypeStruct((3, d), found.offset.dtype) for d in found.dims]
        for m, x in enumerate(rows):
            assert jax.eval_shape(lambda x, m=m: pa.encode(found, x, view=m), x).shape == (
                3,
                found.k,
            )
        jax.eval_shape(lambda *x: pa.transform(found, x), *rows)
        if found.evidence is not None and len(rows) == 2:
            jax.eval_shape(lambda *x: pa.log_odds(found, *x), *rows)
            jax.eval_shape(lambda x: pa.predict(found, x, source=0, target=1), rows[0])

    @pytest.mark.parametrize("kind", ["factor", "gram"])
    @fuzzed
    @hypothesis.given(data=st.data())
    def test_moments(self, kind, data, folder, rows):
        pa.save(statistics.init((2, 1), kind=kind), folder / "whole.safetensors")
        given, form, words = read_parts(folder / "whole.safetensors")
        given = data.draw(rearranged(given))
        if data.draw(st.booleans()):
            words["kind"] = str(data.draw(JUNK))
        path = folder / "a.safetensors"
        serialization.write_arrays(path, given, form, words)
        found = refuse_or_read(pa.load, path, path.read_bytes())
        if found is not None:
            repr(found)
            jax.eval_shape(lambda state: statistics.merge(state, state), found)
