"""The command line on files that it has never seen, good and bad."""

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from _kit import manual, reproduce

import perfalign_jax as pa
from perfalign_jax import _console, _progress, arrays, cli, metrics, page
from perfalign_jax.cli import _files, _making, _searching
from perfalign_jax.cli._parser import make_parser


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


def test_what_a_side_measures_is_named_after_its_view(files, capsys, x64):
    run(capsys, "fit", "x1.npy", "x2.npy", "-k", 3, "--out", "a.safetensors")
    one, other = (
        run(capsys, "score", "a.safetensors", *given, "--json")[1]
        for given in (("x1.npy", "x2.npy"), ("x2.npy", "x1.npy", "--source", 1, "--target", 0))
    )
    names = ("energy_kept_0", "energy_kept_1", "effective_rank_0", "effective_rank_1")
    first, second = ([json.loads(text)[name] for name in names] for text in (one, other))
    np.testing.assert_allclose(second, first, rtol=1e-9)
    _, out, _ = run(capsys, "score", "a.safetensors", "x1.npy", "x2.npy")
    assert "share of view 1's energy in its latents" in out
    assert "effective rank of view 0's latents" in out


def test_a_view_that_does_not_vary_is_named_by_its_file(files, capsys):
    np.save("still.npy", np.zeros((60, 2)))
    status, _, said = run(capsys, "align", "x2.npy", "still.npy", "--out", "a.safetensors")
    assert status == 2
    assert "still.npy must vary" in said


def test_a_process_without_standard_output_is_served(files, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["fit", "x1.npy", "x2.npy", "-k", "2", "--out", "a.safetensors"]) == 0


def test_a_view_is_predicted_from_another_and_not_from_itself(files, capsys, x64):
    run(capsys, "align", "x1.npy", "x2.npy", "--lift", "none", "--out", "a.safetensors")
    for source, file, width in ((0, "x1.npy", 10), (1, "x2.npy", 12)):
        given = ("predict", "a.safetensors", file, "--source", source, "--out", "p.npy")
        assert run(capsys, *given)[0] == 0
        assert np.load("p.npy").shape == (60, width)


def test_rows_of_another_precision_than_the_alignment_are_named(files, capsys):
    x1, x2 = files
    for name, x in (("f1.npy", x1), ("f2.npy", x2)):
        np.save(name, x.astype(np.float32))
    np.save("whole.npy", np.arange(120).reshape(10, 12))
    run(capsys, "fit", "f1.npy", "f2.npy", "-k", 3, "--out", "a.safetensors")
    for file, dtype in (("x1.npy", "float64"), ("whole.npy", "int64")):
        given = ("transform", "a.safetensors", file, "--view", 0, "--out", "z.npy")
        status, _, err = run(capsys, *given)
        assert status == 0
        assert f"{file} has dtype {dtype}; it is computed in float32, the alignment's" in err
        assert "float64;" in err or "in float64" not in err
        assert np.load("z.npy").dtype == np.float32


def test_shards_are_known_to_the_coarsest_of_them(files):
    x1, _ = files
    np.save("s-1.npy", x1.astype(np.float16))
    np.save("s-2.npy", x1.astype(np.float32))
    reader = arrays.RowReader(_files.find_array("s-*.npy"))
    assert reader.coarsest == np.finfo(np.float16).eps


def test_a_file_with_brackets_in_its_name_is_that_file(files):
    x1, x2 = files
    np.savez("d[1].npz", x=x1)
    np.savez("d1.npz", x=x2)
    assert _files.find_array("d[1].npz:x").shape == x1.shape
    assert _files.find_array("d?.npz:x").shape == x2.shape


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


@pytest.fixture
def aligned(files, capsys, rng):
    """Noisy views, their alignment on disk, and what was said on the way."""
    for name in ("x1.npy", "x2.npy"):
        x = np.load(name)
        np.save(name, np.float32(x + rng.normal(size=x.shape) / 5))
    status, out, err = run(
        capsys, "align", "x1.npy", "x2.npy", "--lift", "none", "--out", "a.safetensors"
    )
    assert (status, err) == (0, "")
    return out


def test_align_search_pairs_predict(aligned, capsys):
    assert "alignment written to a.safetensors" in aligned
    assert "chosen   lift none" in aligned
    alignment = pa.load("a.safetensors")
    x1, x2 = np.load("x1.npy"), np.load("x2.npy")
    status, out, _ = run(capsys, "search", "a.safetensors", "x1.npy", "x2.npy", "--top", 3)
    assert status == 0
    assert "hits written to hits.npz" in out
    hits = np.load("hits.npz")
    assert hits["indices"].shape == hits["log_odds"].shape == (60, 3)
    assert (hits["indices"][:, 0] == np.arange(60)).mean() > 0.9

    np.save("shuffled.npy", np.roll(x2, 1, axis=0)[:30])
    np.save("both.npy", np.concatenate([x2[:30], np.roll(x2, 1, axis=0)[30:]]))
    status, out, _ = run(capsys, "pairs", "a.safetensors", "x1.npy", "both.npy", "--json")
    facts = json.loads(out)
    assert status == 0
    assert min(facts["least_credible"]) >= 30  # the shuffled half
    assert np.load("pairs.npy").shape == (60,)
    _, out, _ = run(capsys, "pairs", "a.safetensors", "x1.npy", "both.npy", "--show", 2)
    assert "least credible" in out
    assert len(out.split("probability")[-1].splitlines()) == 3

    status, _, _ = run(capsys, "predict", "a.safetensors", "x1.npy", "--out", "new.npy")
    assert status == 0
    np.testing.assert_allclose(
        np.load("new.npy"), pa.predict(alignment, x1, source=0, target=1), atol=1e-5
    )
    status, out, _ = run(capsys, "score", "a.safetensors", "x1.npy", "x2.npy", "--json")
    assert json.loads(out)["recall_at_1_view_0_to_1"] > 0.8


@pytest.mark.slow
def test_align_more_views_in_sides_with_groups(files, capsys, rng, x64):
    np.save("x3.npy", files[0][:, :5] + rng.normal(size=(60, 5)) / 5)
    np.save("who.npy", np.arange(60) // 6)
    three = ("align", "x1.npy", "x2.npy", "x3.npy", "--lift", "none", "--ridge", 0.1)
    status, out, err = run(capsys, *three, "--sides", "0,2/1", "--groups", "who.npy", "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts["ridge"] == 0.1
    assert pa.load("alignment.safetensors").sides == ((0, 2), (1,))
    np.save("x4.npy", np.where(np.arange(60)[:, None] % 7 > 0, files[0], np.nan))
    np.save("mask.npy", np.ones((60, 3), bool))
    two = ("align", "x4.npy", "x2.npy", "--lift", "none", "--ridge", 0.1, "--json")
    status, out, err = run(capsys, *two, "--mask", "nan")
    assert err == ""
    assert status == 0
    assert json.loads(out)["held_out_recall_at_1"] > 0.5
    status, _, err = run(capsys, *two)
    assert status == 2
    assert "x4.npy must be finite, but row 0 has NaN" in err
    status, _, err = run(capsys, *two, "--mask", "nan", "--checkpoint", "c.safetensors")
    assert status == 2
    assert "--mask, --groups and --wrong-pairs need the rows themselves" in err
    fit = ("fit", "x1.npy", "x2.npy", "-k", 2, "--out", "a.safetensors", "--checkpoint")
    for path, words in (
        (".", "must end in .safetensors"),
        ("no/c.safetensors", "the folder no does not exist"),
        ("a.safetensors", "--checkpoint and --out must be two files"),
    ):
        status, _, err = run(capsys, *fit, path)
        assert status == 2
        assert words in err
    status, _, err = run(capsys, *fit, "c.safetensors")
    assert status == 0
    assert "short enough to be read at once" in err
    status, _, err = run(capsys, *two, "--mask", "mask.npy")
    assert status == 2
    assert "mask must have shape (n, M) = (60, 2), got (60, 3)" in err
    status, _, err = run(capsys, *three, "--sides", "0;1")
    assert status == 2
    assert "--sides must name views such as 0,1/2" in err
    status, _, err = run(capsys, *three, "--groups", "x3.npy")
    assert status == 2
    assert "--groups must have shape (60,)" in err
    status, _, err = run(capsys, "align", "x1.npy")
    assert status == 2
    assert "two or more views, got 1" in err


def test_align_from_moments_where_the_rows_do_not_fit(files, capsys, monkeypatch):
    monkeypatch.setattr(_making, "_MOST_ROWS", 10)
    monkeypatch.setattr(arrays, "_BLOCK", 1)
    monkeypatch.setattr(arrays.RowReader, "in_blocks", True, raising=False)
    reader = arrays.RowReader.__init__

    def short(self, *specs):
        reader(self, *specs)
        self.step = 12

    monkeypatch.setattr(arrays.RowReader, "__init__", short)
    status, out, err = run(capsys, "align", "x1.npy", "x2.npy")
    assert status == 0
    assert "from their moments alone" in err
    assert "moments alone" in out


def test_shards_stdin_and_patterns_are_the_whole_file(aligned, capsys, monkeypatch, tmp_path):
    x1, x2 = np.load("x1.npy"), np.load("x2.npy")
    for name, x in (("a", x1), ("b", x2)):
        for part, rows in ((1, x[:7]), (2, x[7:50]), (10, x[50:])):
            np.save(f"{name}-{part}.npy", rows)
    run(capsys, "transform", "a.safetensors", "x1.npy", "--view", 0, "--out", "whole.npy")
    whole = np.load("whole.npy")
    monkeypatch.setattr(arrays, "_BLOCK", 1)  # rows of several shards in a block, and of one
    status, _, err = run(capsys, "transform", "a.safetensors", "a-*.npy", "--view", 0)
    assert (status, err) == (0, "")
    np.testing.assert_allclose(np.load("latents.npy"), whole, atol=1e-5)
    monkeypatch.setattr("sys.stdin", io.StringIO("a-1.npy\n\na-2.npy\na-10.npy\n"))
    status, _, err = run(capsys, "transform", "a.safetensors", "-", "--view", 0)
    assert (status, err) == (0, "")
    np.testing.assert_allclose(np.load("latents.npy"), whole, atol=1e-5)
    scores = [
        json.loads(run(capsys, "score", "a.safetensors", *files, "--json")[1])["cmae"]
        for files in (("x1.npy", "x2.npy"), ("a-*.npy", "b-*.npy"))
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    np.save("a-3.npy", x1[:, :2])
    for arguments, words in (
        (("a-*.npy", "--view", 0), "all shards of a-*.npy must have rows of one shape"),
        (("c-*.npy", "--view", 0), "no file matches c-*.npy"),
        (("-", "--view", 0), "paths of one view's files from stdin, one a line, and got none"),
        (("a-1.npy", "a-2.npy", "--view", 0), "Put a pattern of shards in quotes"),
        (("b-*.npy", "--view", 1, "--out", "b-2.npy"), "would overwrite an input"),
    ):
        status, _, err = run(capsys, "transform", "a.safetensors", *arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert words in err


STEP = property(lambda _: 24, lambda *_: None)  # rows of every block


def test_search_in_blocks_finds_what_it_finds_in_memory(aligned, capsys, monkeypatch):
    alignment = pa.load("a.safetensors")
    x1, x2 = np.load("x1.npy"), np.load("x2.npy")
    whole = pa.search(alignment, x1, x2, top=4)
    monkeypatch.setattr(arrays, "_BLOCK", 1)
    monkeypatch.setattr(_files, "_LONGEST", 1)
    monkeypatch.setattr(_searching, "_HELD", 1)
    monkeypatch.setattr(arrays.RowReader, "step", STEP, raising=False)
    status, _, err = run(capsys, "search", "a.safetensors", "x1.npy", "x2.npy", "--top", 4)
    assert (status, err) == (0, "")
    hits = np.load("hits.npz")
    assert hits["log_odds"].dtype == np.float32
    # Blocks are products of other shapes: rounding of float32.
    np.testing.assert_allclose(hits["log_odds"], whole.log_odds, atol=1e-3)
    np.testing.assert_allclose(hits["probability"], whole.probability, atol=1e-4)
    assert (hits["indices"] == np.asarray(whole.indices)).mean() > 0.98
    assert not list(Path().glob(".hits*"))


def test_several_views_make_a_side(files, capsys, rng, x64):
    np.save("x3.npy", files[0][:, :5] + rng.normal(size=(60, 5)) / 5)
    three = "align x1.npy x2.npy x3.npy --sides 0,1/2 --out a.safetensors"
    run(capsys, *f"{three} --lift none --ridge 0.1 -k 4".split())
    alignment = pa.load("a.safetensors")
    first = {0: files[0], 1: files[1]}
    x3 = np.load("x3.npy")
    both = ("a.safetensors", "x1.npy,x2.npy", "x3.npy")
    status, _, err = run(capsys, "pairs", *both, "--json")
    assert (status, err) == (0, "")
    expected = pa.log_odds(alignment, first, {2: x3}, source=None, target=None)
    np.testing.assert_allclose(np.load("pairs.npy"), expected, atol=1e-9)
    status, out, _ = run(capsys, "score", *both, "--json")
    assert json.loads(out)["recall_at_1_view_0_and_1_to_2"] > 0.5
    run(capsys, "transform", "a.safetensors", "x1.npy,x2.npy", "--view", "0,1")
    np.testing.assert_allclose(np.load("latents.npy"), pa.encode(alignment, first), atol=1e-9)
    run(capsys, "predict", "a.safetensors", "x1.npy,x2.npy")
    np.testing.assert_allclose(
        np.load("predicted.npy"), pa.predict(alignment, first, target=2), atol=1e-9
    )
    status, out, _ = run(capsys, "diagnose", "a.safetensors")
    assert status == 0
    assert "sides=((0, 1), (2,))" in out
    assert "reliability of side 1's axes" in out
    status, out, _ = run(capsys, "diagnose", "a.safetensors", "x1.npy", "x2.npy", "--json")
    facts = json.loads(out)
    assert facts["alignment"]["sides"] == [[0, 1], [2]]
    assert facts["ranks"] == [8, 8]
    for command, words in (
        ("pairs a.safetensors x1.npy x3.npy", "--source 0,1 needs 2 files with commas between"),
        ("transform a.safetensors x1.npy --view 0,x", "--view must be an integer, got '0,x'"),
        ("predict a.safetensors x1.npy --target 0,1 --source 2", "must be one view to predict"),
        ("diagnose x1.npy", "diagnose needs two or more views, got 1"),
    ):
        status, _, err = run(capsys, *command.split())
        assert status == 2
        assert words in err


def test_align_writes_a_page(aligned, capsys):
    two = ("align", "x1.npy", "x2.npy", "--lift", "none", "--report")
    status, out, _ = run(capsys, *two, "page.html")
    assert status == 0
    assert "page written to page.html" in out
    assert "those the alignment was fitted to" in Path("page.html").read_text()
    status, _, err = run(capsys, *two, "page.pdf")
    assert status == 2
    assert "--report must end in .html" in err


def test_the_page_shows_rows_that_have_all_views_or_some_of_very_many(
    aligned, monkeypatch, tmp_path
):
    alignment, rows = pa.load("a.safetensors"), arrays.RowReader("x1.npy", "x2.npy")
    seen = []
    monkeypatch.setattr(page, "write_page", lambda *given, **options: seen.append((given, options)))
    options = argparse.Namespace(out=Path("a.safetensors"), report=Path("p.html"), seed=0)
    x1, x2 = rows.whole()
    x1[::7] = np.nan
    for mask in ("nan", ~np.isnan(np.stack([x1[:, 0], x2[:, 0]], axis=1))):
        _making._write_report(options, alignment, rows, (x1, x2), mask, None)
    monkeypatch.setattr(_making, "_MOST_ROWS", 10)
    monkeypatch.setattr(_making, "_RUN", 5)
    _making._write_report(options, alignment, rows, [], None, None)
    names = [options["names"] for _, options in seen]
    for some in names[:2]:
        np.testing.assert_array_equal(some, [i for i in range(60) if i % 7])
    assert names[2].shape == (100,)
    np.testing.assert_array_equal(seen[2][0][1][0], np.load("x1.npy")[names[2]])


def test_version_completion_and_examples(capsys):
    for arguments, words in (
        (["--version"], f"perfalign {pa.__version__} (JAX {jax.__version__}"),
        (["--print-completion", "bash"], "_shtab_perfalign"),
        (["--print-completion", "zsh"], "#compdef perfalign"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        assert words in capsys.readouterr().out
    actions = make_parser()._actions
    (commands,) = (a for a in actions if isinstance(a, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        shown = command.format_help()
        example = shown.split("examples:\n")[1].splitlines()
        assert all(line.startswith(f"  perfalign {name} ") for line in example)
        assert "--json" in shown
        for line in example:  # an example is one that parses
            words = line.split("#")[0].split("<")[0].replace("'", "").split()[1:]
            assert make_parser().parse_args(words).run.__name__ == name


def test_the_manual_is_that_of_the_commands():
    assert manual.make_page() == manual.PAGE.read_text(), "run: make manual"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("diagnose x1.npi x2.npy", "Is it x1.npy?"),
        ("aline x1.npy x2.npy", "Did you mean align?"),
        ("pairs f.safetensors x1.npy x2.npy", "Make one with perfalign align."),
        ("score views.safetensors x1.npy x2.npy", "Write one with perfalign align or fit."),
        ("diagnose x1.npy constant.npy", "Leave it out, or look at how it was made."),
        ("transform f.safetensors x1.npy --view 1", "Is it another view?"),
    ],
)
def test_errors_say_what_to_do(files, capsys, arguments, advice):
    run(capsys, "fit", "x1.npy", "x2.npy", "-k", 2, "--out", "f.safetensors")
    np.save("constant.npy", np.ones((60, 3)))
    status, _, err = run(capsys, *arguments.split())
    assert (status, err.count("\n")) == (2, 1)
    assert advice in err


def test_progress_is_for_terminals_only(capsys, monkeypatch):
    def show():
        with _console.counting("searching", 4) as step, _console.waiting("x"):
            step()
        return capsys.readouterr()

    assert show() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with _console.counting("searching", 4) as step:
        step()
    assert "searching" in capsys.readouterr().err


def test_align_tells_how_far_it_is_and_how_long_it_takes(files, capsys, monkeypatch):
    heard = []
    with _progress.listen(heard.append):
        pa.align((np.load("x1.npy"), np.load("x2.npy")))
    assert len(heard) == 5  # lifts
    assert heard == sorted(heard)
    assert 0 < heard[0] < heard[-1] <= 1
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run(capsys, "align", "x1.npy", "x2.npy", "--out", "a.safetensors")
    with _console.following("aligning"):
        _progress.tell(0.5)
    assert "aligning, about 0 s left" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("search", "a.safetensors", "x1.npy", "x2.npy", "--top", 0), "top must be between 1"),
        (("search", "a.safetensors", "x1.npy", "x2.npy", "--top", 9999), "top must be between 1"),
        (("pairs", "a.safetensors", "x1.npy", "x2.npy", "--show", -2), "--show must be at least 0"),
        (("search", "a.safetensors", "x2.npy", "x1.npy"), "must have 12 columns like view 0"),
        (("predict", "a.safetensors", "x1.npy", "--target", 2), "--target must be between 0 and 1"),
        (("pairs", "a.safetensors", "x1.npy", "x1.npy", "--target", 0), "of different sides"),
        (("pairs", "f.safetensors", "x1.npy", "x2.npy"), "alignment must have evidence"),
    ],
)
def test_bad_use_of_an_alignment_is_one_line(aligned, capsys, arguments, words):
    run(capsys, "fit", "x1.npy", "x2.npy", "-k", 2, "--out", "f.safetensors")
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("one", "two"), [("views.npz:x1", "views.npz:x2"), ("views.safetensors:x1", "x2.npy")]
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND; see perfalign --help"),
        ("aline x1.npy", "invalid choice: 'aline'"),
        ("fit x1.npy -k 2", "the following arguments are required: x2; see perfalign fit --help"),
        ("fit x1.npy x2.npy --k", "expected one argument"),
        ("fit x1.npy x2.npy -k 2 --sel energy", "unrecognized arguments: --sel energy"),
        ("fit x1.npy x2.npy -k 2 --select first", "invalid choice: 'first'"),
        ("transform a.safetensors x1.npy", "the following arguments are required: --view"),
    ],
)
def test_usage_errors_are_one_line(arguments, message, capsys):
    status, out, err = run(capsys, *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("perfalign: error: ")
    assert message in err


def test_what_is_said_names_only_what_the_command_line_has(files, capsys, rng):
    noise = [rng.normal(size=(400, 6)) for _ in range(2)]
    np.save("noise1.npy", noise[0])
    np.save("noise2.npy", noise[1])
    said = []
    for arguments in (
        "fit x1.npy x2.npy -k 14",
        "fit noise1.npy noise2.npy -k 4",
        "fit noise1.npy noise2.npy --select energy",
        "fit x1.npy x2.npy -k 8 --method null",
        "diagnose x1.npy x2.npy",
        "diagnose noise1.npy noise2.npy",
    ):
        said += run(capsys, *arguments.split())[1:]
    text = "".join(said)
    assert "--select energy (without -k it takes all directions that carry energy)" in said[1]
    assert "--select energy with -k <= 8" in text
    assert "perfalign diagnose" in text
    for word in ("select='", "method='", "k=None", "diagnose()", "baselines"):
        assert word not in text
    _, out, _ = run(capsys, "fit", "x1.npy", "x2.npy", "-k", 14, "--json")
    (note,) = json.loads(out)["notes"]
    assert said[1] == f"perfalign: warning: {note}\n"


def test_a_mean_that_passes_for_information_is_told(files, capsys):
    x1, _ = files
    np.save("lifted.npy", x1 + 100)
    for command in ("fit x2.npy lifted.npy -k 2", "diagnose x2.npy lifted.npy"):
        _, _, err = run(capsys, *command.split())
        assert "the mean holds 100% of view 1's energy" in err
        assert "--center removes it" in err
        assert "of view 0" not in err.split("the mean holds")[1]
        _, _, err = run(capsys, *command.split(), "--center")
        assert "the mean holds" not in err


def test_control_characters_do_not_reach_the_terminal(files, capsys):
    x1, _ = files
    np.savez("views.npz", **{"a\x1b[31m": x1, "b\x07\nb": x1})
    for spec in ("views.npz", "views.npz:\x1b[2J", "no\x1b[2Jfile.npy"):
        _, _, err = run(capsys, "diagnose", spec, "x2.npy")
        assert err.rstrip("\n").isprintable()
        assert "\\x1b[" in err
    status, out, _ = run(capsys, "fit", "x1.npy", "x2.npy", "-k", 2, "--out", "\x1b[2J.safetensors")
    assert status == 0
    assert out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, 130), (MemoryError("no room"), 1)]
)
def test_what_is_written_stays_and_is_told(error, status, files, capsys, monkeypatch, x64):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pa, "cmae", fail)
    done, out, err = run(capsys, "fit", "x1.npy", "x2.npy", "-k", 8, "--out", "a.safetensors")
    assert (done, out, err.count("\n")) == (status, "", 1)
    assert "the alignment is written to a.safetensors" in err
    assert pa.load("a.safetensors").k == 8


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fit", "fit x1.npy x2.npy -k 8 --out new.safetensors"),
        ("encode", "transform a.safetensors x1.npy --view 0 --out new.npy"),
        ("diagnose", "diagnose x1.npy x2.npy"),
    ],
)
def test_an_interrupt_leaves_nothing_and_says_so(name, arguments, files, capsys, monkeypatch):
    run(capsys, "fit", "x1.npy", "x2.npy", "-k", 8, "--out", "a.safetensors")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pa, name, stop)
    before = sorted(os.listdir())
    done = run(capsys, *arguments.split())
    assert done == (130, "", "perfalign: interrupted; nothing was written.\n")
    assert sorted(os.listdir()) == before


def test_no_memory_is_one_line(files, capsys, monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(pa, "fit", fail)
    status, _, err = run(capsys, "fit", "x1.npy", "x2.npy", "-k", 8)
    assert (status, err.count("\n")) == (1, 1)
    assert "the memory did not suffice" in err


def test_a_folder_that_cannot_be_written_is_found_before_the_work(files, capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(pa, "fit", lambda *_, **__: pytest.fail("the work was done"))
    status, _, err = run(capsys, "fit", "x1.npy", "x2.npy", "-k", 8)
    assert (status, err.count("\n")) == (2, 1)
    assert "no file can be written in the folder ." in err


@pytest.mark.parametrize(("cores", "threads"), [(2, "16"), (16, None)])
def test_few_cores_get_a_wide_pool(cores, threads, files, capsys, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("NPROC", "")
    monkeypatch.delenv("NPROC")
    run(capsys, "diagnose", "x1.npy", "absent.npy")
    assert os.environ.get("NPROC") == threads


@pytest.mark.parametrize("own", [None, "elsewhere"])
def test_compiled_programs_are_kept_in_the_users_cache(own, files, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", own or "")
    if own is None:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    run(capsys, "diagnose", "x1.npy", "absent.npy")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == (own or str(tmp_path / "perfalign_jax"))


@pytest.mark.slow
def test_in_blocks_or_whole_the_numbers_are_the_same(files, capsys, rng, monkeypatch):
    z, noise = rng.normal(size=(500, 3)), 0.1 * rng.normal(size=(500, 9))
    np.save("x1.npy", z @ rng.normal(size=(3, 5)) + noise[:, :5] + 1)
    np.save("x2.npy", z @ rng.normal(size=(3, 4)) + noise[:, 5:])

    def numbers():
        for command in (
            "fit x1.npy x2.npy -k 3 --select energy --out a.safetensors",
            "fit x1.npy x2.npy -k 4 --center",
            "score a.safetensors x1.npy x2.npy",
            "diagnose x1.npy x2.npy",
            "transform a.safetensors x1.npy --view 0",
        ):
            status, out, _ = run(capsys, *command.split(), "--json")
            assert status == 0
            facts = json.loads(out)
            facts.pop("method", None)  # the factor of the rows is not of the rows' shape
            yield facts
        yield {"latents": np.load("latents.npy").tolist()}

    whole = list(numbers())
    monkeypatch.setattr(arrays, "_BLOCK", 1)
    for mine, theirs in zip(numbers(), whole, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, float | list) and name != "notes":
                np.testing.assert_allclose(mine[name], value, rtol=1e-9, atol=1e-9, err_msg=name)
            else:
                assert mine[name] == value


@pytest.mark.slow
def test_memory_follows_the_features_and_not_the_rows(tmp_path, monkeypatch):
    # 200 MB of views; they were held three and a half times.
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(500_000, 25))
    for m in (1, 2):
        np.save(f"small{m}.npy", rows[:5_000])
        np.save(f"large{m}.npy", rows * m)
    program = (
        "import resource\n"
        "from perfalign_jax.cli import main\n"
        "for size in ('small', 'large'):\n"
        "    pair = [f'{size}1.npy', f'{size}2.npy']\n"
        "    for command in (['fit', *pair, '--select', 'energy', '--json'],\n"
        "                    ['transform', 'alignment.safetensors', pair[0], '--view', '0'],\n"
        "                    ['diagnose', *pair, '--json']):\n"
        "        assert main(command) == 0\n"
        "    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    small, large = (int(line.split()[1]) for line in done.stdout.splitlines() if "peak" in line)
    assert np.load("latents.npy", mmap_mode="r").shape == (500_000, 25)
    assert large - small < 100e6  # half the size of the views


def test_an_interrupt_while_modules_load_is_a_line(tmp_path):
    """A JAX that raises what Ctrl-C raises, in front of the real one."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise KeyboardInterrupt")
    np.save(tmp_path / "x.npy", np.eye(3))
    package = Path(pa.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "perfalign_jax", "diagnose", "x.npy", "x.npy"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "perfalign: interrupted; nothing was written.\n"


class TestReproduce:
    @pytest.fixture
    def scripts(self, tmp_path, monkeypatch):
        """Two experiments of one line each; the second fails while a file `broken` is there."""
        folder = tmp_path / "experiments"
        folder.mkdir()
        body = (
            "import sys, pathlib\n"
            "from _kit.report import Result, Row, save_result\n"
            "if '{name}' == 'second' and pathlib.Path('broken').exists(): sys.exit('broken')\n"
            "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
            "with open('log', 'a') as log: log.write('{name} ')\n"
            "row = Row('q', ours='1 | 2')\n"
            "save_result(Result('{name}', 'Title of {name}', 'Summary.', [row]), out)\n"
        )
        for name in ("first", "second"):
            (folder / f"{name}.py").write_text(body.format(name=name))
        monkeypatch.setattr(reproduce, "EXPERIMENTS", {"first": "one", "second": "two"})
        monkeypatch.setattr(reproduce, "FOLDER", folder)
        monkeypatch.setenv("PYTHONPATH", str(Path(pa.__file__).parents[1] / "experiments"))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.slow
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
        assert not (scripts / "results" / reproduce.TIMES).exists()  # not all in one go
        run(capsys, "reproduce", "--out", "anew")
        times = json.loads((scripts / "anew" / reproduce.TIMES).read_text())
        assert (times["scale"], list(times["seconds"])) == ("default", ["first", "second"])

    @pytest.mark.slow
    def test_json_goes_to_stdout_and_progress_to_stderr(self, scripts, capfd):
        (scripts / "broken").touch()
        with (scripts / "experiments/first.py").open("a") as script:
            script.write("print('a table')\n")
        status, out, err = run(capfd, "reproduce", "--out", "results", "--json")
        assert status == 1
        assert json.loads(out)["failed"] == ["second"]
        assert "[1/2] first: one" in err
        assert "a table" in err

    @pytest.mark.slow
    def test_changed_code_and_changed_size_run_again(self, scripts, capsys):
        run(capsys, "reproduce", "--out", "results", "--only", "first")
        with (scripts / "experiments/first.py").open("a") as script:
            script.write("# changed\n")
        run(capsys, "reproduce", "--out", "results", "--only", "first")
        run(capsys, "reproduce", "--out", "results", "--only", "first", "--quick")
        assert (scripts / "log").read_text().split() == ["first"] * 3


@pytest.mark.parametrize(
    "arguments", ["diagnose x1.npy x2.npy", "pairs a.safetensors x1.npy x2.npy --show 3000"]
)
def test_output_that_nobody_reads_to_its_end_is_no_error(aligned, arguments):
    for name in ("x1.npy", "x2.npy"):  # more lines than a pipe holds back
        np.save(name, np.tile(np.load(name), (50, 1)))
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "perfalign_jax", *arguments.split()]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_an_alignment_is_keeps_its_own_words():
    text = "Alignment(k=2, method='align', center=True)\ntop must be 1, with method='gram'"
    assert _console.in_own_words(text) == (
        "Alignment(k=2, method='align', center=True)\n--top must be 1, with --method gram"
    )


@pytest.mark.parametrize("options", [["--lift", "none", "--ridge", "0.01"], ["--lift", "gaussian"]])
def test_the_relative_error_is_that_of_the_latents(files, capsys, rng, x64, options):
    z = rng.standard_t(3, size=(80, 3)) * rng.lognormal(size=(80, 1))
    for m in (1, 2):
        np.save(f"h{m}.npy", z @ rng.normal(size=(3, 4)) + rng.normal(size=(80, 4)) / 2)
    run(capsys, "align", "h1.npy", "h2.npy", *options, "--out", "a.safetensors")
    _, out, _ = run(capsys, "score", "a.safetensors", "h1.npy", "h2.npy", "--json")
    latents = [
        pa.encode(pa.load("a.safetensors"), np.load(f"h{m + 1}.npy"), view=m) for m in (0, 1)
    ]
    expected = float(pa.relative_cmae(*latents))
    facts = json.loads(out)
    assert facts["relative_cmae"] == pytest.approx(expected, rel=1e-6)
    low, high = facts["recall_at_1_view_0_to_1_95_%_interval"]
    assert 0 <= low < facts["recall_at_1_view_0_to_1"] < high <= 1


def test_what_was_kept_is_said_on_interruption_and_error(files, capsys, monkeypatch):
    def stop(options):
        error = KeyboardInterrupt()
        error.add_note("The 7 rows before are kept in c.safetensors.")
        raise error

    def fail(options):
        error = ValueError("row 8 has NaN.")
        error.add_note("The 7 rows before are kept in c.safetensors.")
        raise error

    for command, status, words in (
        (stop, 130, "interrupted; The 7 rows before are kept in c.safetensors.\n"),
        (fail, 2, "row 8 has NaN. The 7 rows before are kept in c.safetensors.\n"),
    ):
        parser = argparse.ArgumentParser()
        parser.set_defaults(run=command)
        monkeypatch.setattr(cli, "make_parser", lambda parser=parser: parser)
        done = run(capsys)
        assert done[0] == status
        assert done[2].endswith(words)


def test_what_is_not_a_number_is_null_in_json(files, capsys):
    state = pa.statistics.from_views((np.load("x1.npy"), np.load("x2.npy")))
    pa.save(pa.align([state, state]), "m.safetensors")
    status, out, _ = run(capsys, "diagnose", "m.safetensors", "--json")
    facts = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert status == 0
    assert facts["alignment"]["choice"]["chosen"]["recall"] is None


def test_words_of_a_file_do_not_steer_the_terminal(aligned, capsys):
    alignment = pa.load("a.safetensors")
    choice = dataclasses.replace(alignment.choice, reason="\x1b]0;renamed\x07\x1b[2J")
    pa.save(dataclasses.replace(alignment, choice=choice), "b.safetensors")
    status, out, err = run(capsys, "diagnose", "b.safetensors")
    assert status == 0
    assert "\x1b" not in out + err
    assert "\\x1b[2J" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "pairs a.safetensors x1.npy,x1.npy x2.npy --source 0,0",
            "--source must name each view once",
        ),
        ("align x1.npy x2.npy --groups nan --out b.safetensors", "there is no file nan"),
    ],
)
def test_files_that_would_be_overlooked_are_refused(aligned, capsys, arguments, said):
    status, _, err = run(capsys, *arguments.split())
    assert status == 2
    assert said in err
