"""Every experiment runs in its quick size and leaves a result whose key numbers are right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import alignment_study as study
import fig4_robustness as fig4
import labels_as_modality as labels
import migrate
import numpy as np
import pytest
from _kit.report import load_result
from matplotlib.image import imread

FOLDER = Path(__file__).parents[1] / "experiments"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (fig4.judge_n(1e-13, 1e-13), "confirmed"),
        (fig4.judge_n(1e-13, 9.0), "incomplete: true of the training error alone"),
        (fig4.judge_n(9.0, 9.0), "not confirmed"),
        (fig4.judge_d([3.0, 2.0, 1.0], 1e-13), "confirmed; it is a rank"),
        (fig4.judge_d([3.0, 2.0, 1.0], 0.5), "confirmed"),
        (fig4.judge_d([3.0, 4.0, 1.0], 0.5), "not confirmed"),
        (fig4.judge_growth([1.5, 1.5, 1.48]), "confirmed"),
        (fig4.judge_growth([1.7, 1.3, 1.1]), "not confirmed"),
        (fig4.judge_growth([0.7, 0.7, 0.7]), "not confirmed"),
        (fig4.judge_best_k(1.0, 0.1, 0.2), "confirmed"),
        (fig4.judge_best_k(1e-13, 0.1, 0.2), "not confirmed: k = d / 2 keeps more"),
        (fig4.judge_best_k(1e-13, 0.2, 0.1), "incomplete"),
        (fig4.judge_jump((1e-13, 1.0), (9.0, 4.0)), "the jump confirmed, its reading not"),
        (fig4.judge_jump((1e-13, 1.0), (4.0, 9.0)), "the jump confirmed, its reading too"),
        (fig4.judge_jump((1.0, 1.0), (9.0, 4.0)), "no jump, its reading not"),
        (fig4.judge_trends((1e-15, 1e-14, 1.0, 2.0), (1.0, 2.0, 3.0, 4.0)), "partly"),
        (fig4.judge_trends((1e-15, 1e-14, 1.0, 2.0), (0.1, 0.2, 30.0, 40.0)), "confirmed"),
        (fig4.judge_trends((1e-15, 1e-14, 1.0, 2.0), (4.0, 3.0, 2.0, 1.0)), "not confirmed"),
        (fig4.judge_mlre([1.0, 2.0], 1e-13), "the growth confirmed, its reading not"),
        (fig4.judge_mlre([1.0, 2.0], 1.0), "the growth confirmed, its reading too"),
        (fig4.judge_mlre([2.0, 1.0], 1.0), "not confirmed"),
        (study.judge(1.0, 3.0), "above every baseline"),
        (study.judge(-1.0, 1.0), "not told apart from the best baseline"),
        (study.judge(-3.0, -1.0), "below the best baseline"),
        (labels.judge_collapse(1e-15), "reproduced, explained by the trivial dimension"),
        (labels.judge_collapse(0.1), "not reproduced"),
        (labels.judge_norm(0.9), "reproduced"),
        (labels.judge_norm(1.2), "not reproduced: it did not shrink"),
    ],
)
def test_verdicts_come_out_either_way(verdict, expected):
    assert verdict == expected


def run(name, out, *, dtype="float64"):
    """Run a script with --quick; its result, with every figure and row it promises."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, env=os.environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    result = load_result(out / f"{name}.json")
    assert result["name"] == name
    assert result["config"]["scale"] == "quick"
    assert result["provenance"]["dtype"] == dtype
    assert result["seconds"] > 0
    for row in result["rows"]:
        assert row["quantity"]
        assert row["ours"]
    for figure in result["figures"]:
        assert imread(out / "figures" / figure).std() > 0.01
    return result


def rows_of(result):
    return {row["quantity"]: row for row in result["rows"]}


def test_alignment_study(tmp_path):
    rows = rows_of(run("alignment_study", tmp_path, dtype="float32"))
    assert float(rows["all pairs of views, mean R@1 of align, %"]["ours"]) > 50
    row = rows["tumours, mean and worst: R@1 of align, %"]
    low, high = map(float, re.findall(r"\[([-+.\d]+), ([-+.\d]+)\]", row["verdict"])[0])
    assert row["verdict"].startswith(study.judge(low, high))
    assert rows["tumours, mean and worst: R@1 of align, %"]["note"].count("perfect alignment") == 2


def test_a_share_of_the_views_is_hidden_and_no_row_is_empty():
    for share in study.MISSING:
        mask = study.hide(500, share, np.random.default_rng(0))
        assert (~mask).mean() == share
        assert mask.any(axis=1).all()
        assert mask.all(axis=1).mean() == pytest.approx(1 - 2 * share)


def test_few_subjects_make_a_wide_interval():
    values, subjects = [np.array([0.0, 0, 1, 1])], [np.array([0, 0, 1, 1])]
    two = study.bootstrap(values, subjects)
    assert two.value == 50
    assert two.high - two.low > 500  # Student's t with one degree of freedom
    many = study.bootstrap([np.arange(100) % 2], [np.arange(100)])
    assert 15 < many.high - many.low < 25  # 1.96 * 5 points either way


def test_cells_of_other_code_are_not_taken(tmp_path, monkeypatch):
    calls = []
    for name in ("measure", "damage"):
        monkeypatch.setattr(study, name, lambda *_: calls.append(0) or {"x": np.zeros(1)})
    pairs = {study.ONE: study.Pair(((np.ones((4, 2)),), (np.ones((4, 2)),)))}
    options = study.StudyOptions(out=tmp_path)
    for code, expected in (("one", 2), ("one", 2), ("other", 4)):
        monkeypatch.setattr(study, "fingerprint", lambda _, code=code: code)
        study.run_all(options, pairs, range(1))
        assert len(calls) == expected


def test_migrate(tmp_path):
    result = run("migrate", tmp_path, dtype="float32")
    few, many = (by["align"] for by in result["values"]["kept"].values())
    assert all(a < b for a, b in zip(few, many, strict=True))
    assert many[2] > 70
    rivals = result["values"]["kept"]["1000"]["ridge regression"]
    assert many[2] > rivals[2] - 1.5  # half a point less when written; draws differ by as much
    for pairs, gate in result["values"]["gate"].items():
        least, most = 100 * np.mean(gate, axis=0)
        assert least < result["values"]["kept"][pairs]["align"][2] < most
    row = rows_of(result)["nDCG@10 that align keeps with 1,000 pairs, %"]
    low, high = map(float, re.findall(r"\[([-+.\d]+), ([-+.\d]+)\]", row["verdict"])[0])
    assert row["verdict"].startswith(migrate.judge(low, high))
    assert migrate.judge(1.0, 2.0) != migrate.judge(-1.0, 2.0) != migrate.judge(-2.0, -1.0)


def test_ranks_and_measures_of_migration():
    index = np.array([[1.0, 0], [0, 2], [3, 3]])
    ranks = migrate.rank_right(np.array([[1, 0.1], [0.9, 1]]), index, np.array([0, 1]))
    assert ranks.tolist() == [0, 1]
    np.testing.assert_allclose(migrate.measure(ranks), [[1, 1, 1], [0, 1, 1 / np.log2(3)]])


def test_fig3(tmp_path):
    result = run("fig3_synthetic", tmp_path)
    perfect, closed, trained = (
        {k: np.array(v) for k, v in result["values"][m].items()}
        for m in ("perfect", "contrastive, closed form", "contrastive, trained")
    )
    # The paper's claim, in float64: rounding, in every draw.
    assert np.median(perfect["CMAE"]) < 1e-13
    assert perfect["CMAE"].max() < 1e-12
    # Perfect alignment leaves one gauge for both modalities, and only that.
    np.testing.assert_allclose(perfect["MLRE 1"], perfect["MLRE 2"], rtol=1e-9)
    assert perfect["MLRE 1"].min() > 0.1
    assert np.median(perfect["MLRE after the best affine map"]) < 1e-12
    assert closed["NCMAE"].min() > 1e6 * perfect["NCMAE"].max()
    assert np.median(trained["NCMAE"]) > 1e6 * np.median(perfect["NCMAE"])
    assert set(result["figures"]) == {
        "fig1_data_model.png",
        "fig2_aligned_latents.png",
        "fig3_errors.png",
    }
    row = rows_of(result)["perfect: MLRE 1"]
    assert (row["paper"], row["protocol"]) == ("", "quick: 20 of 500 draws")


def test_fig4(tmp_path):
    result = run("fig4_robustness", tmp_path)
    rows = result["rows"]
    # The thresholds hold in every cell and seed.
    agree, count = rows[0]["ours"].split(" of ")
    assert agree == count
    assert int(count) >= 250
    by_name = rows_of(result)
    assert abs(float(by_name["held-out CMAE at the base, noise 1"]["ours"]) - 4.44) < 0.1
    for where, low, high in (("held out", 0.98, 1.02), ("train", 0.96, 1.02)):
        row = next(r for q, r in by_name.items() if q.startswith(f"{where} CMAE, measured"))
        assert low < float(row["ours"]) < high
    raw, ridge = (
        np.array(result["values"]["collapse over noise"]["held_out_recall"])[:, method, ..., -1]
        for method in (0, 1)
    )
    assert raw.mean() < 0.05 < ridge.mean()
    assert set(result["figures"]) == {"fig4_robustness.png", "fig4_collapse.png"}


def test_table2(tmp_path):
    result = run("table2_pseudoinverse", tmp_path)
    for m in (1, 2):
        # Rounding: a few units in the last place, times the condition number.
        error, condition = (
            np.array(result["values"][f"{what} {m}"]) for what in ("MLRE", "condition")
        )
        assert np.all(error < 1e-14 * condition)
    assert [row["protocol"] for row in result["rows"]] == ["quick: 20 of 1000 draws"] * 2


def test_fig7(tmp_path):
    result = run("fig7_uniform", tmp_path)
    assert max(result["values"]["CMAE"]) < 1e-12
    assert np.all(result["values"]["separable"])
    assert min(result["values"]["transfer"]) == 1
    rows = rows_of(result)
    for row in rows.values():
        assert row["protocol"] == "quick: 20 of 500 draws, 3 of 100 programs"
        assert row["paper"] == ""


def test_labels_as_modality(tmp_path):
    result = run("labels_as_modality", tmp_path)
    values = result["values"]
    # Three pixels of the digits are always zero; nothing else is null, and they carry nothing.
    assert values["null_dimension"] == values["trivial_dimension"] == 3
    assert values["informative_dimension"] == 0
    scores = values["scores"]
    assert max(scores["trailing, k = 3 (null)"]["latent norm"]) < 1e-12
    assert max(scores["trailing, k = 10"]["energy kept, images"]) < 1e-3
    assert min(scores["ridge CCA, k = 9"]["accuracy"]) > 0.85
    assert np.mean(scores["informative part, 30 pairs"]["accuracy"]) > np.mean(
        scores["trailing, k = 10, 30 pairs"]["accuracy"]
    )


def test_v1_transfer(tmp_path):
    result = run("v1_transfer", tmp_path)
    paper = result["values"]["the paper's"]
    # Without noise the latents are an invertible map of the true ones: the same decisions.
    np.testing.assert_allclose(paper["zero-shot"], paper["true latent space"], atol=0.003)
    assert min(paper["found without labels"]) > 0.98
    noisy = result["values"]["50 features, noise 5, ridge CCA"]
    assert np.mean(noisy["zero-shot"]) > 0.97


def test_remarks(tmp_path):
    result = run("remarks", tmp_path)
    assert len(result["rows"]) >= 10
    for row in result["rows"]:
        assert row["protocol"] == "quick: 1 of 8 draws, 1 of 3 shapes"
        assert float(row["ours"]) < 1e-9


@pytest.fixture(scope="module")
def har_folder(tmp_path_factory):
    """One folder for the experiments with encoders: they share recordings and trainings."""
    return tmp_path_factory.mktemp("har")


def trainings(folder):
    found = (folder / "har").iterdir() if (folder / "har").is_dir() else ()
    return {path.name: path.stat().st_mtime_ns for path in found}


def test_table1(har_folder, monkeypatch):
    monkeypatch.delenv("UTD_MHAD_ROOT", raising=False)
    result = run("table1_har", har_folder, dtype="float32")
    assert "SIMULATED" in result["summary"]
    assert "simulated" in result["title"]
    rows = rows_of(result)
    less = ", 2 of 100 epochs, 1 of 5 seeds"
    published = rows[f"skeleton to IMU, CA+PA, lengths kept, top-1 (%), authors' split{less}"]
    assert published["paper"] == ""  # the paper's number stands beside a full run only
    accuracy = result["values"]["accuracy"]["skeleton"]
    # What the paper's three trials can say: Welch's interval, by hand from its own numbers.
    name = "skeleton to IMU, CA+PA minus CA with lengths kept, top-1 (points), authors' split"
    assert name + less in rows
    assert "-3.5 to 14.1" in result["summary"]
    # Nothing is trained to speak of in two epochs; what needs no training works all the same.
    lifted = accuracy["random convolutions + PA, informative part"]["authors' split"]["top-1"][
        "value"
    ]
    assert lifted > accuracy["CA"]["authors' split"]["top-1"]["value"]
    assert lifted > 50
    for entry in accuracy.values():
        tops = [entry["authors' split"][f"top-{top}"]["value"] for top in (1, 3, 5, 7)]
        assert tops == sorted(tops)
    assert len(trainings(har_folder)) == 1  # latents; the checkpoints behind them are gone


def test_fig6(har_folder, monkeypatch):
    monkeypatch.delenv("UTD_MHAD_ROOT", raising=False)
    before = trainings(har_folder)
    result = run("fig6_tsne", har_folder, dtype="float32")
    if before:  # the other test's training was taken, not done again
        assert trainings(har_folder) == before
    assert "SIMULATED" in result["summary"]
    rows = rows_of(result)
    less = " (2 of 100 epochs, 1 of 5 seeds)"
    fitted = rows[f"fitted pairs: distance relative to the spread, CA+PA over CA{less}"]
    assert float(fitted["ours"]) < 0.5
    assert rows[f"held-out pairs: summed distance, CA+PA over CA{less}"]["paper"] == ""


def test_utd_mhad_linear(har_folder, monkeypatch):
    monkeypatch.delenv("UTD_MHAD_ROOT", raising=False)
    result = run("utd_mhad_linear", har_folder, dtype="float32")
    assert "SIMULATED" in result["summary"]
    assert all("top-1" in row["quantity"] or row["ours"] for row in result["rows"])
    assert any("informative" in row["quantity"] for row in result["rows"])
