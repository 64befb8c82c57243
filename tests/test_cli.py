"""The command line on files that it has never seen, good and bad."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import perfalign_jax as pa
from perfalign_jax import cli, metrics, reproduce


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    """Views of eight shared dimensions in every format, and a folder to run in."""
    monkeypatch.chdir(tmp_path)
    z = rng.normal(size=(60, 8))
    x1, x2 = z @ rng.normal(size=(8, 12)), z @ rng.normal(size=(8, 10))
    np.save("x1.npy", x1)
    np.save("x2.npy", x2)
    np.savez("views.npz", x1=x1, x2=x2)
    safetensors.numpy.save_file({"x1": x1, "x2": x2}, "views.safetensors")
    return x1, x2


def run(capsys, *arguments):
    status = cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_fit_transform_score_diagnose(files, capsys, x64):
    x1, x2 = files
    status, out, err = run(
        capsys, "fit", "x1.npy", "x2.npy", "-k", 8, "--select", "energy", "--out", "a.safetensors"
    )
    assert (status, err) == (0, "")
    assert "alignment written to a.safetensors" in out
    assert "CMAE" in out
    alignment = pa.load("a.safetensors")
    assert (alignment.k, alignment.dims, alignment.select) == (8, (12, 10), "energy")

    status, out, _ = run(
        capsys, "transform", "a.safetensors", "x2.npy", "--view", 1, "--out", "z2.npy"
    )
    assert status == 0
    np.testing.assert_allclose(np.load("z2.npy"), pa.encode(alignment, x2, view=1), atol=1e-13)

    status, out, _ = run(capsys, "score", "a.safetensors", "x1.npy", "x2.npy", "--json")
    facts = json.loads(out)
    z1, z2 = pa.transform(alignment, (x1, x2))
    assert facts["cmae"] == pytest.approx(float(metrics.cmae(z1, z2)))
    assert facts["recall_at_1_view_0_to_1"] == 1.0
    status, out, _ = run(capsys, "score", "a.safetensors", "x1.npy", "x2.npy")
    assert status == 0
    assert "relative CMAE" in out

    status, out, _ = run(capsys, "diagnose", "x1.npy", "x2.npy")
    assert status == 0
    assert "informative   8 of them" in out
    status, out, _ = run(capsys, "diagnose", "x1.npy", "x2.npy", "--json")
    assert json.loads(out)["informative_dimension"] == 8


@pytest.mark.parametrize(
    ("one", "two"),
    [("views.npz:x1", "views.npz:x2"), ("views.safetensors:x1", "x2.npy")],
)
def test_every_file_kind(files, capsys, one, two):
    status, out, _ = run(capsys, "fit", one, two, "--select", "energy", "--json")
    facts = json.loads(out)
    assert (status, facts["k"]) == (0, 8)
    assert facts["cmae"] < 1e-12


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        ("int64", "float64"),
        ("uint8", "float64"),
        ("float16", "float32"),
        ("bool", "float64"),
        (">f8", "float64"),
        ("longdouble", "float64"),
    ],
)
def test_other_dtypes_are_converted_and_it_is_said(files, capsys, rng, dtype, computed):
    x = (rng.integers(0, 10, size=(60, 3)) % (2 if dtype == "bool" else 10)).astype(dtype)
    np.save("odd.npy", x)
    status, out, err = run(capsys, "fit", "odd.npy", "odd.npy", "-k", 3)
    assert status == 0
    assert f"note: odd.npy has dtype {np.dtype(dtype)} and is computed in {computed}" in err
    assert computed in out


def test_a_collapse_is_told(files, capsys):
    status, _, err = run(capsys, "fit", "x1.npy", "x2.npy", "-k", 14)
    assert status == 0
    assert "warning: the alignment has collapsed: 6 of the 14 directions chosen are trivial" in err


BAD = {
    "rows differ": (
        "x1.npy short.npy -k 2",
        "x1.npy and short.npy must have the same number of rows",
    ),
    "one-dimensional": (
        "x1.npy vector.npy -k 2",
        "vector.npy must have shape (n, d2), got shape (60,)",
    ),
    "three-dimensional": ("x1.npy cube.npy -k 2", "cube.npy must have shape (n, d2)"),
    "text": ("x1.npy text.npy -k 2", "text.npy must hold real numbers"),
    "objects": ("x1.npy object.npy -k 2", "object.npy holds Python objects"),
    "complex": ("x1.npy complex.npy -k 2", "complex.npy must hold real numbers"),
    "dates": ("x1.npy dates.npy -k 2", "dates.npy must hold real numbers"),
    "structured": ("x1.npy struct.npy -k 2", "struct.npy must"),
    "nan": ("x1.npy nan.npy -k 2", "nan.npy must be finite, but row 17 has NaN (1 such"),
    "inf": ("x1.npy inf.npy -k 2", "inf.npy must be finite, but row 3 has infinity"),
    "k zero": ("x1.npy x2.npy -k 0", "k must be between 1 and 22 (d1 + d2 = 12 + 10), got 0"),
    "k large": ("x1.npy x2.npy -k 23", "k must be between 1 and 22"),
    "k negative": ("x1.npy x2.npy -k -3", "k must be between 1 and 22"),
    "k fraction": ("x1.npy x2.npy -k 2.5", "-k must be an integer, got '2.5'"),
    "k word": ("x1.npy x2.npy -k two", "-k must be an integer, got 'two'"),
    "k missing": ("x1.npy x2.npy", "-k is required unless --select energy"),
    "one row": ("row.npy row.npy -k 1", "row.npy must have at least 2 rows, got shape (1, 3)"),
    "no rows": ("norows.npy norows.npy -k 1", "norows.npy must have at least 2 rows"),
    "no columns": ("x1.npy nocolumns.npy -k 1", "nocolumns.npy must have at least one column"),
    "missing": ("x1.npy absent.npy -k 2", "there is no file absent.npy"),
    "truncated": ("x1.npy cut.npy -k 2", "cut.npy is no readable .npy file"),
    "truncated npz": ("x1.npy cut.npz -k 2", "cut.npz is no readable .npz file"),
    "truncated safetensors": ("x1.npy cut.safetensors -k 2", "cut.safetensors is no readable"),
    "folder": ("x1.npy . -k 2", ". is a folder, not a file"),
    "wrong type": ("x1.npy notes.txt -k 2", "notes.txt must be one of .npy, .npz, .safetensors"),
    "text named npy": ("x1.npy prose.npy -k 2", "prose.npy is no readable .npy file"),
    "no such array": ("x1.npy views.npz:x3 -k 2", "views.npz has no array 'x3'; it has x1, x2"),
    "which array": ("x1.npy views.npz -k 2", "views.npz holds 2 arrays; name one"),
    "constant view": ("x1.npy constant.npy -k 2", "constant.npy has no variance: all its 60 rows"),
    "no out folder": ("x1.npy x2.npy -k 2 --out no/a.safetensors", "the folder no does not exist"),
    "out is a folder": ("x1.npy x2.npy -k 2 --out folder.safetensors", "is a folder"),
    "out of wrong type": ("x1.npy x2.npy -k 2 --out a.txt", "--out must end in .safetensors"),
    "out is an input": (
        "x1.npy views.safetensors:x2 -k 2 --out views.safetensors",
        "would overwrite an input",
    ),
    "method": ("x1.npy x2.npy -k 2 --method null", "--method null needs fewer rows than features"),
    "rtol": ("x1.npy x2.npy -k 2 --rtol 2", "rtol must be below 1"),
    "rtol word": ("x1.npy x2.npy -k 2 --rtol tiny", "--rtol must be a number, got 'tiny'"),
}


@pytest.fixture
def bad_files(files, tmp_path):
    _, x2 = files
    nan, infinite = x2.copy(), x2.copy()
    nan[17, 2], infinite[3, 0] = np.nan, np.inf
    for name, value in {
        "short": x2[:50], "vector": x2[:, 0], "cube": x2[None], "text": x2.astype(str),
        "complex": x2 + 1j, "nan": nan, "inf": infinite, "row": x2[:1, :3], "norows": x2[:0],
        "nocolumns": x2[:, :0], "constant": np.full_like(x2, 3.0),
        "dates": np.zeros((60, 2), "datetime64[s]"), "struct": np.zeros((60, 2), [("a", "f8")]),
    }.items():  # fmt: skip
        np.save(f"{name}.npy", value)
    np.save("object.npy", np.array([[{}]] * 60, dtype=object), allow_pickle=True)
    for cut, whole in (
        ("cut.npy", "x2.npy"),
        ("cut.npz", "views.npz"),
        ("cut.safetensors", "views.safetensors"),
    ):
        (tmp_path / cut).write_bytes((tmp_path / whole).read_bytes()[:400])
    (tmp_path / "notes.txt").write_text("1 2 3")
    (tmp_path / "prose.npy").write_text("these are words")
    (tmp_path / "folder.safetensors").mkdir()


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, bad_files, capsys):
    arguments, message = BAD[case]
    before = sorted(os.listdir())
    status, out, err = run(capsys, "fit", *arguments.split())
    assert status == 2
    assert out == ""
    assert err.startswith("perfalign: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_bad_alignments_and_views_of_the_other_commands(bad_files, capsys):
    run(capsys, "fit", "x1.npy", "x2.npy", "-k", 8, "--out", "a.safetensors")
    for arguments, message in [
        ("transform absent.safetensors x2.npy --view 1", "there is no file absent.safetensors"),
        ("transform views.safetensors x2.npy --view 1", "holds no alignment"),
        ("transform x1.npy x2.npy --view 1", "is not a whole safetensors file"),
        ("transform . x2.npy --view 1", "is a folder, not an alignment"),
        ("transform a.safetensors x1.npy --view 1", "x1.npy must have 10 columns like view 1"),
        ("transform a.safetensors x2.npy --view 2", "--view must be between 0 and 1"),
        ("transform a.safetensors x2.npy --view one", "--view must be an integer, got 'one'"),
        ("transform a.safetensors x2.npy --view 1 --out x2.npy", "would overwrite an input"),
        ("transform a.safetensors x2.npy --view 1 --out z.csv", "--out must end in .npy"),
        ("transform a.safetensors nan.npy --view 1", "nan.npy must be finite, but row 17"),
        ("score a.safetensors x2.npy x1.npy", "x2.npy must have 12 columns like view 0"),
        ("score a.safetensors x1.npy short.npy", "must have the same number of rows"),
        ("diagnose x1.npy constant.npy", "constant.npy has no variance"),
        ("reproduce --only nothing", "only must name experiments of fig3_synthetic"),
        ("reproduce --quick --full", "--quick and --full exclude each other"),
        ("reproduce --out x1.npy", "--out x1.npy is a file, not a folder"),
    ]:
        status, out, err = run(capsys, *arguments.split())
        assert (status, out, err.count("\n")) == (2, "", 1), arguments
        assert message in err


def test_both_entry_points(files):
    script = os.path.join(os.path.dirname(sys.executable), "perfalign")
    for command in ([script], [sys.executable, "-m", "perfalign_jax"]):
        done = subprocess.run(
            [*command, "diagnose", "x1.npy", "absent.npy"], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "perfalign: error: there is no file absent.npy.\n"


class TestReproduce:
    @pytest.fixture
    def scripts(self, tmp_path, monkeypatch):
        """Two experiments of one line each; the second fails while a file `broken` is there."""
        folder = tmp_path / "experiments"
        folder.mkdir()
        body = (
            "import sys, pathlib\n"
            "from perfalign_jax.report import Result, Row, save_result\n"
            "if '{name}' == 'second' and pathlib.Path('broken').exists(): sys.exit('broken')\n"
            "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
            "with open('log', 'a') as log: log.write('{name} ')\n"
            "row = Row('q', ours='1 | 2')\n"
            "save_result(Result('{name}', 'Title of {name}', 'Summary.', [row]), out)\n"
        )
        for name in ("first", "second"):
            (folder / f"{name}.py").write_text(body.format(name=name))
        monkeypatch.setattr(reproduce, "EXPERIMENTS", {"first": "one", "second": "two"})
        monkeypatch.setattr(reproduce, "_experiments_folder", lambda: folder)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_finished_experiments_are_kept_and_failed_ones_run_again(self, scripts, capsys):
        (scripts / "broken").touch()
        status, out, err = run(capsys, "reproduce", "--out", "results")
        assert status == 1
        assert "failed: second" in err
        assert "Not run: second" in (scripts / "results/report.md").read_text()
        (scripts / "broken").unlink()
        status, out, _ = run(capsys, "reproduce", "--out", "results")
        assert status == 0
        assert "first: one (finished before, kept)" in out
        assert (scripts / "log").read_text().split() == ["first", "second"]
        page = (scripts / "results/report.html").read_text()
        assert "Title of first" in page
        assert "1 | 2" in page
        assert "1 \\| 2" in (scripts / "results/report.md").read_text()
        assert "Not run" not in page

    def test_changed_code_and_changed_size_run_again(self, scripts, capsys):
        run(capsys, "reproduce", "--out", "results", "--only", "first")
        with (scripts / "experiments/first.py").open("a") as script:
            script.write("# changed\n")
        run(capsys, "reproduce", "--out", "results", "--only", "first")
        run(capsys, "reproduce", "--out", "results", "--only", "first", "--quick")
        assert (scripts / "log").read_text().split() == ["first"] * 3
