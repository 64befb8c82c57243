"""Files made to do harm: every reader refuses them in words, in little memory and time."""

import contextlib
import copy
import dataclasses
import functools
import io
import json
import os
import re
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
MANY = int(os.environ.get("PERFALIGN_FUZZ", "10"))  # files that each test makes
fuzzed = hypothesis.settings(
    max_examples=MANY,
    derandomize=True,
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


def refuse_or_read(read, path, content, *, times=50, touched=False):
    """Read a file, in memory of a multiple of it: an answer, or an error that names the file.

    Memory is what Python and NumPy ask for or, of readers that ask and do not use it, what is
    ``touched``.
    """
    path.write_bytes(content)
    before = _peak() if touched else tracemalloc.start()
    answer, said = None, path.name
    try:
        answer = read(path)
    except REFUSALS as error:
        said = str(error)
    finally:
        if touched:
            peak = _peak(reset=False) - before
        else:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert peak < _BASE + times * len(content)
    assert path.name in said
    assert len(said) < 4000
    return answer


def _peak(*, reset=True):
    """Bytes of this process's memory at most, since the last reset."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux says how much memory was touched")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(line)


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


KINDS = ["<f4", ">f8", "<f2", "<i8", "|b1", "|S0", "<U0", "|V0", "|O", "<c16", "<M8[s]", "|V9"]
KINDS += ["<f16", "<U2147483647", "x", "", [("a", "<f4")], [("a", "|O")], ("<f4", (2, 2)), 7]
KINDS += [("<f4", (2**31, 2**31)), [("a", "<f4", 2**40)], None, "<f4" * 99]


@st.composite
def npy(draw):
    """A .npy file whose header says anything."""
    shape = draw(st.lists(NUMBERS, max_size=4).map(tuple))
    kind = draw(st.sampled_from(KINDS))
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
            read_rows, folder / "bad.npy", data.draw(st.one_of(npy(), spoilt(whole), npz()))
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
        name = draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
        )
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


class TestWorkInProgress:
    @fuzzed
    @hypothesis.given(data=st.data())
    def test_checkpoints(self, data, folder, rows):
        if not (folder / "x.npy").exists():  # checkpoints know the date of what they are made of
            np.save(folder / "x.npy", rows)
        specs = [str(folder / "x.npy")] * 2
        kind = data.draw(st.sampled_from(["factor", "gram"]))
        path = folder / f"whole_{kind}.safetensors"
        streaming.from_files(specs, kind=kind, checkpoint=path)
        given, form, words = read_parts(path)
        if data.draw(st.booleans()):
            given = data.draw(rearranged(given))
        else:
            name = data.draw(st.sampled_from(sorted(words)))
            words[name] = data.draw(st.one_of(JUNK.map(json.dumps), JUNK.map(str)))
            if name == "made_of":
                made_of = json.loads(read_parts(path)[2]["made_of"])
                words[name] = json.dumps(data.draw(reworded(made_of)))
        path = folder / "c.safetensors"
        serialization.write_arrays(path, given, form, words)

        def go_on(path):
            return streaming.from_files(specs, kind=kind, checkpoint=path)

        refuse_or_read(go_on, path, path.read_bytes())

    @fuzzed
    @hypothesis.given(data=st.data())
    def test_sweeps(self, data, folder):
        grid = sweeps.make_grid(n=5, d=4, k=2, metrics="train_cmae")
        made_by = json.loads(json.dumps(dataclasses.asdict(grid)))
        given = {"_seeds": np.arange(2), "train_cmae": np.ones((2, 1, 1, 1, 1, 1))}
        if data.draw(st.booleans()):
            given = data.draw(rearranged(given))
        if data.draw(st.booleans()):
            made_by = data.draw(reworded(made_by))
        content = saved(np.savez, _made_by=np.asarray(json.dumps(made_by)), **given)
        if data.draw(st.booleans()):
            content = data.draw(spoilt(content))
        found = refuse_or_read(sweeps.load_sweep, folder / "s.npz", content, times=1100)
        if found is not None:
            found.get("train_cmae")

    @fuzzed
    @hypothesis.given(data=st.data())
    def test_what_is_spoilt_in_the_cache_is_made_again(self, data, folder, rows):
        (folder / "cache").mkdir(exist_ok=True)
        dataset.keep_array(folder / "cache", "x", (), lambda: rows)
        (path,) = (folder / "cache").iterdir()
        path.write_bytes(data.draw(st.one_of(npy(), npz(), spoilt(saved(np.save, rows)))))
        assert isinstance(dataset.keep_array(folder / "cache", "x", (), lambda: rows), np.ndarray)


_IN_NAMES = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])


class TestRecordings:
    @fuzzed
    @hypothesis.given(data=st.data())
    def test_mat(self, data, folder):
        series = {"d_iner": np.arange(60.0).reshape(10, 6), "other": [{"a": "x"}]}
        whole = [saved(scipy.io.savemat, series, do_compression=c) for c in (False, True)]
        whole.append(saved(scipy.io.savemat, {"d_iner": series["d_iner"]}, format="4"))
        content = data.draw(spoilt(whole))
        read = functools.partial(utd_mhad.read_clip, modality="inertial")
        refuse_or_read(read, folder / "a1_s1_t1_inertial.mat", content, touched=True)

    @fuzzed
    @hypothesis.given(
        content=st.binary(max_size=200), start=st.sampled_from([b"", b"RIFF", b"\0\0"])
    )
    def test_avi(self, content, start, folder):
        pytest.importorskip("av")
        read = functools.partial(utd_mhad.read_clip, modality="rgb")
        refuse_or_read(read, folder / "a1_s1_t1_color.avi", start + content, touched=True)

    @fuzzed
    @hypothesis.given(
        st.lists(
            st.one_of(
                st.from_regex(r"a\d{1,3}_s\d{1,2}_t\d{1,60}_color\.avi", fullmatch=True),
                st.text(_IN_NAMES, min_size=1, max_size=40).map(lambda name: f"{name}_color.avi"),
            ),
            max_size=4,
        )
    )
    def test_names(self, tmp_path_factory, names):
        root = tmp_path_factory.mktemp("named")
        (root / "RGB").mkdir()
        for name in names:
            (root / "RGB" / name).touch()
        found = ()
        with contextlib.suppress(FileNotFoundError):  # where no name is a clip's
            found = utd_mhad.discover(root, modalities=["rgb"]).names
        for name in found:
            action, subject, trial = utd_mhad.parse_name(name)
            assert name == f"a{action}_s{subject}_t{trial}"  # one clip has one name

    @fuzzed
    @hypothesis.given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60)))
    def test_splits(self, content, folder):
        names = ["a1_s1_t1", "a1_s1_t2", "a1_s1_t3", "a1_s1_t4"]
        for role, name in zip(("har", "align", "val", "test"), names, strict=True):
            (folder / f"{role}.txt").write_text(name)
        content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        (folder / "val.txt").write_bytes(content)
        with contextlib.suppress(ValueError):
            assert len(splits.read_split(folder, names).test) == 1


def run(*arguments):
    """The command line in this process: its code and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, arguments)))
    return code, out.getvalue(), err.getvalue()


class TestCommands:
    @fuzzed
    @hypothesis.given(data=st.data())
    def test_one_line_and_code_2(self, data, folder, rows):
        """Any file in any place: an answer, or one line that says what is wrong."""
        pa.save(make_alignment(), folder / "good.safetensors")
        pa.save(statistics.init((3, 4)), folder / "moments.safetensors")
        np.save(folder / "good.npy", rows)
        kind = data.draw(st.sampled_from(["npy", "npz", "safetensors"]))
        content = {"npy": npy(), "npz": npz(), "safetensors": tensors()}[kind]
        bad = folder / f"bad.{kind}"
        bad.write_bytes(data.draw(st.one_of(content, st.binary(max_size=30))))
        x, a = folder / "good.npy", folder / "good.safetensors"
        command = data.draw(
            st.sampled_from(
                [
                    ("diagnose", x, bad),
                    ("fit", bad, x, "-k", 1),
                    ("align", x, x, "--groups", bad),
                    ("align", x, x, "--mask", bad),
                    ("align", bad, bad),
                    ("transform", bad, x, "--view", 0),
                    ("transform", a, bad, "--view", 0),
                    ("predict", a, bad),
                    ("predict", folder / "moments.safetensors", x),
                    ("search", bad, x, x),
                    ("pairs", a, x, bad),
                    ("score", bad, x, x),
                ]
            )
        )
        if command[0] not in ("diagnose", "score"):
            ending = {"fit": "safetensors", "align": "safetensors", "search": "npz"}
            command = (*command, "--out", folder / f"out.{ending.get(command[0], 'npy')}")
        code, out, err = run(*command)
        assert code in (0, 2)
        if code == 2:
            assert out == ""
            assert err.startswith("perfalign: error: ")
            assert err.count("\n") == 1
            assert err.strip().isprintable()
            assert not list(folder.glob(".*.part"))


class TestArchives:
    """Archives that unpack to more than they are, or elsewhere than they should."""

    @pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_only_what_numpy_writes_is_unpacked(self, how, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", how) as archive:
            archive.writestr("x.npy", saved(np.save, np.zeros((2**20, 4))))
        size = (tmp_path / "x.npz").stat().st_size
        assert size < 2**25 / 1100  # more than deflate can: such bombs have no limit
        content = (tmp_path / "x.npz").read_bytes()
        assert refuse_or_read(read_rows, tmp_path / "x.npz", content) is None

    def test_no_more_is_unpacked_than_the_archive_promises(self, tmp_path):
        whole = saved(np.savez_compressed, x=np.zeros((2**20, 4)))
        less = whole.replace(struct.pack("<I", 2**25 + 128), struct.pack("<I", 1024))
        assert less != whole
        assert refuse_or_read(read_rows, tmp_path / "x.npz", less) is None

    def test_names_lead_nowhere(self, tmp_path, rows):
        """Members are read where they are: nothing is written, and no link is followed."""
        (tmp_path / "inside").mkdir()
        np.save(tmp_path / "secret.npy", rows)
        path = tmp_path / "inside" / "x.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../x.npy", saved(np.save, 2 * rows))
            link = zipfile.ZipInfo("link.npy")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "../secret.npy")
            archive.writestr("inner.npz", saved(np.savez, x=rows))
            archive.writestr("nested.npy", saved(np.savez, x=rows))
        before = sorted(tmp_path.rglob("*"))
        np.testing.assert_array_equal(arrays.open_array(f"{path}:../x").rows(), 2 * rows)
        for name in ("link", "nested"):
            with pytest.raises(ValueError, match=r"no readable \.npz file"):
                arrays.open_array(f"{path}:{name}")
        with pytest.raises(KeyError, match=r"has no array 'inner'; it has ../x, link, nested"):
            arrays.open_array(f"{path}:inner")
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_crowd_of_names_is_cut_short(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            for i in range(3000):
                archive.writestr(f"{i:0100}.npy", b"")
        with pytest.raises(KeyError, match="holds 3000 arrays") as found:
            arrays.open_array(tmp_path / "x.npz")
        assert len(str(found.value)) < 1000


class TestWriting:
    def test_two_processes_leave_one_whole_file(self, tmp_path):
        """Whoever comes last wins, and at no moment is there anything but a whole file."""
        code = (
            "import sys\n"
            "from perfalign_jax.serialization import write_whole\n"
            "for i in range(50): write_whole('out.bin', sys.argv[1].encode() * 2**20)\n"
        )
        writers = [
            subprocess.Popen([sys.executable, "-c", code, letter], cwd=tmp_path) for letter in "ab"
        ]
        seen = set()
        while any(writer.poll() is None for writer in writers):
            with contextlib.suppress(FileNotFoundError):
                content = (tmp_path / "out.bin").read_bytes()
                assert len(content) == 2**20
                assert len(set(content)) == 1
                seen.add(content[:1])
        assert [writer.returncode for writer in writers] == [0, 0]
        assert (tmp_path / "out.bin").stat().st_size == 2**20
        assert os.listdir(tmp_path) == ["out.bin"]
        assert seen <= {b"a", b"b"}

    def test_a_link_is_replaced_and_not_followed(self, tmp_path):
        (tmp_path / "elsewhere").write_bytes(b"kept")
        (tmp_path / "out").symlink_to("elsewhere")
        serialization.write_whole(tmp_path / "out", b"new")
        assert (tmp_path / "elsewhere").read_bytes() == b"kept"
        assert not (tmp_path / "out").is_symlink()
        assert (tmp_path / "out").read_bytes() == b"new"


@pytest.mark.slow
@pytest.mark.skipif("PERFALIGN_FUZZ" in os.environ, reason="this is the longer run")
def test_many_more_files():
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider"]
    longer = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        command, env=longer | {"PERFALIGN_FUZZ": "200"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
