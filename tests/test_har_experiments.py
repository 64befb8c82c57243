"""What the experiments on recordings say, computed from numbers: rows, verdicts, intervals."""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from perfalign_jax.har.protocol.methods import Method

FOLDER = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module


# Section 3.2 in closed form.


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (60.0, 64.0, "higher, and nothing is trained"),
        (50.0, 60.0, "not told apart"),  # the paper's mean has the interval 33.3 to 54.5
        (30.0, 33.5, "not told apart"),
        (20.0, 33.0, "lower"),
    ],
)
def test_the_verdict_follows_from_both_intervals(load, low, high, verdict):
    module = load("utd_mhad_linear")
    assert module.compare({"low": low, "high": high}, (43.9, 4.28)) == verdict


def entry_of(value, **more):
    return {"value": value, "low": value - 2, "high": value + 2, **more}


@pytest.mark.parametrize(("full", "data"), [(True, "UTD-MHAD"), (False, "UTD-MHAD"), (True, "s")])
def test_the_paper_stands_beside_the_full_protocol_on_real_recordings_only(load, full, data):
    module = load("utd_mhad_linear")
    random = "random splits" if full else "random splits (10 of 100)"
    tops = {f"top-{top}": entry_of(90.0) for top in module.TOPS}
    accuracy = {"depth": {module.BEST: {"authors' split": tops, random: tops}}}
    splits = {"authors' split": [], random: []}
    material = module.Material(data, ("depth",), {}, {}, np.arange(3), splits, [])
    rows = module.make_rows(material, {"accuracy": accuracy}, full=full)
    assert rows[0].quantity == f"video to IMU, top-1 (%), {random}"
    beside = full and data == "UTD-MHAD"
    assert rows[0].paper == ("43.9 ± 4.28 (CA+PA, RGB)" if beside else "")
    assert rows[0].verdict == ("higher, and nothing is trained" if beside else "")


def test_a_part_of_the_splits_is_named(load):
    name_part = load("_transfer_data").name_part
    assert name_part("random splits", 10, 100) == "random splits (10 of 100)"
    assert name_part("random splits", 100, 100) == "random splits"


# Table 1.


def run_of(module, method_hits):
    return {
        method: {"hits": {str(top): hits for top in module.TOPS}, "R@1": 50.0}
        for method, hits in method_hits.items()
    }


@pytest.fixture
def table(load, rng):
    """The module, and runs of two seeds in which perfect alignment is better on most clips."""
    module = load("table1_har")
    runs = []
    for _ in range(2):
        worse = (rng.random(200) < 0.3).astype(int).tolist()
        better = (rng.random(200) < 0.9).astype(int).tolist()
        kept = {module.CA: worse, module.PAPERS: better, module.CA_KEPT: worse}
        runs.append(run_of(module, kept | {module.PAPERS_KEPT: better, module.JOINED_PA: better}))
    runs[0] |= run_of(module, {module.LIFTED_PA: better, module.BOUND: better})
    return module, runs


def test_the_authors_split_alone_has_every_seed_and_epoch(load):
    module = load("table1_har")
    rows = np.arange(80)
    data = types.SimpleNamespace(authors="theirs", labels=rows % 5, subjects=rows % 8 + 1)
    options = module.TableOptions(full=True, authors_only=True)
    scale = module.choose_scale(options, has_rgb=False)
    jobs = module.list_jobs(dict.fromkeys(scale.sources, data), scale, options)
    assert [job.source for job in jobs] == ["skeleton", "depth"]
    assert {(job.kind, job.seeds, job.epochs, job.latent) for job in jobs} == {
        (module.AUTHORS, module.SEEDS, module.EPOCHS, module.LATENT)
    }
    with pytest.raises(SystemExit, match="needs --full"):
        module.choose_scale(module.TableOptions(authors_only=True), has_rgb=False)


def test_one_training_has_no_interval(table):
    module, runs = table
    for method in (module.CA, module.PAPERS):
        several, one = (module.measure(r, method, one_exam=True) for r in (runs, runs[:1]))
        assert np.isfinite([several["top-1"]["low"], several["top-1"]["high"]]).all()
        assert one["top-1"]["low"] == -np.inf
        assert module.make_row("x", one["top-1"]).interval == ""
    gap = module.measure(runs[:1], module.PAPERS, one_exam=True)["difference"]
    assert module.judge(gap, "CA") == "one training: no interval"
    lifted = module.measure(runs[:1], module.LIFTED_PA, one_exam=True)
    assert lifted["top-1"]["high"] < 100  # nothing is trained: over the clips
    assert lifted["difference"]["high"] == np.inf  # to CA, whose training it depends on


def test_paired_differences_can_come_out_either_way(table):
    module, runs = table
    gap = module.measure(runs, module.PAPERS, one_exam=True)["difference"]
    assert module.judge(gap, "CA") == "above CA"
    turned = {"value": -gap["value"], "low": -gap["high"], "high": -gap["low"]}
    assert module.judge(turned, "CA") == "below CA"
    assert module.judge(entry_of(1.0), "CA") == "not told apart from CA"


@pytest.mark.parametrize("less", ["", "40 of 100 epochs, 1 of 5 seeds"])
@pytest.mark.parametrize("simulated", [False, True])
def test_rows_of_short_trainings_say_so_and_have_no_paper(table, less, simulated):
    module, runs = table
    kinds = dict.fromkeys(run for runs_ in runs for run in runs_)
    found = {m: {module.AUTHORS: module.measure(runs, m, one_exam=True)} for m in kinds}
    for by_kind in found.values():
        for name in module.AGREEMENTS:
            by_kind[module.AUTHORS].setdefault(name, entry_of(1.0))
    rows = module.make_rows(
        {"skeleton": found}, {"skeleton": less}, {}, simulated=simulated, chance=3.7
    )
    papers = [row for row in rows if row.paper]
    assert len(papers) == (0 if less or simulated else 11)  # 2 x (4 tops and CMAE), and +5.3
    trained = [row for row in rows if "CA" in row.quantity]
    assert len(trained) >= 18
    assert all(less in row.quantity for row in trained)
    untrained = [r for r in rows if r.quantity.startswith("skeleton: random convolutions")]
    assert len(untrained) == 2
    assert not any("epochs" in row.quantity for row in untrained)
    assert module.say_what_is_less(epochs=100, seeds=5) == ""
    assert module.say_what_is_less(epochs=40, seeds=1) == "40 of 100 epochs, 1 of 5 seeds"


def test_methods_have_their_names_in_the_file_only(table):
    module, _ = table
    tree = {"skeleton": {Method("energy", k=3, space="CA"): {"x": 1}}}
    assert module.by_label(tree) == {"skeleton": {"CA + PA, energy k = 3": {"x": 1}}}


# Fig. 6.


@pytest.mark.parametrize(("seeds", "repeats"), [(1, 10), (5, 4)])
def test_intervals_of_the_picture_are_over_trainings(load, rng, seeds, repeats):
    module = load("fig6_tsne")
    before = np.exp(rng.normal(size=(seeds, repeats, 2)))
    values = {}
    for name in ("held-out pairs", "fitted pairs"):
        values[f"{module.CA}, {name}"] = before
        values[f"{module.PA}, {name}"] = before * np.exp(rng.normal(size=(seeds, 1, 1)) / 10) / 3
    part = module.say_what_is_less(epochs=module.EPOCHS if seeds == 5 else 10, seeds=seeds)
    rows = module.make_rows(values, part, comparable=not part)
    if seeds == 1:
        assert all(row.interval == "" and row.paper == "" for row in rows)
        assert all(row.verdict == "one training: no interval" for row in rows)
        assert all("(10 of 100 epochs, 1 of 5 seeds)" in row.quantity for row in rows)
    else:
        assert [row.paper for row in rows] == ["almost half", "", "", ""]
        assert all(row.verdict == "closer" for row in rows)
    same = dict.fromkeys(values, before)
    assert module.make_rows(same, "", comparable=False)[0].ours == "1.00"
    assert [module.judge(*pair) for pair in ((0.2, 0.4), (1.1, 1.3), (0.9, 1.1))] == [
        "closer",
        "farther",
        "not told apart",
    ]
