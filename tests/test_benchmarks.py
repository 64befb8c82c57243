"""The benchmarks measure what they say, and all who answer a question give the same answer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import _contestants as contestants
import _harness as harness
import fit as fit_benchmark
import numpy as np
import peers
import pytest
from _contestants import Size
from _kit.report import load_result

FOLDER = Path(harness.__file__).parent
SIZE = Size(300, 32, 8)


def timed(*seconds, **more):
    return {"seconds": list(seconds), "warm": True, "recall": 90.0, **more}


@pytest.mark.parametrize(
    ("ours", "peer", "verdict"),
    [
        (timed(1, 1.1, 1.2), timed(2, 2.1, 2.2), "perfalign_jax"),
        (timed(2, 2.1, 2.2), timed(1, 1.1, 1.2), "peer"),
        (timed(1, 2, 3), timed(2, 2.1, 2.2), "even"),
        (timed(1), timed(1.2), "even"),  # one process each, and by less than a fifth
        (timed(1), timed(1.3), "perfalign_jax"),
        (timed(1, processes=[0.9, 1.1]), timed(1.2, processes=[1.15, 1.3]), "perfalign_jax"),
        (timed(1, processes=[0.9, 1.2]), timed(1.5, processes=[1.1, 1.9]), "even"),
        (timed(0.001), timed(0.009), "both under 10 ms"),
        (timed(0.001), timed(0.02), "perfalign_jax"),
        (timed(1), timed(2) | {"recall": 95.0}, "perfalign_jax, with 5.0 points less R@1"),
        (timed(2), timed(1) | {"recall": 80.0}, "peer, with 10.0 points less R@1"),
        (timed(1), {"failed": "out of memory"}, "perfalign_jax alone"),
        ({"failed": "out of memory"}, timed(1), "peer alone"),
        ({"failed": "out of memory"}, {"failed": "out of memory"}, "neither"),
    ],
)
def test_who_is_faster_comes_out_either_way(ours, peer, verdict):
    assert harness.judge(ours, peer, "peer") == verdict


def test_a_row_says_by_how_much_and_whether_that_was_aimed_at():
    row = harness.compare(timed(0.5), timed(2.0), "us", "peer", 3)
    assert row["ours"] == "4 times"
    assert row["verdict"] == "perfalign_jax; met: at least 3 times"
    assert "us: 0.5 s [0.5, 0.5], R@1 90.0 %; peer: 2 s" in row["note"]
    stopped = {"failed": "more than 60 s", "over": 60}
    row = harness.compare(timed(0.5), stopped, "us", "peer", 200)
    assert row["ours"] == "over 120 times"
    assert row["verdict"].endswith("missed: at least 200 times")
    assert harness.compare(stopped, timed(1), "us", "peer", 2)["ours"] == "none"


def test_processes_of_one_task_are_pooled():
    one, other = (timed(t, t + 1, first=t, memory=10 * t, recall=90.0) for t in (1.0, 3.0))
    found = harness.pool([one, other])
    assert found["seconds"] == [1, 2, 3, 4]
    assert found["processes"] == [1.5, 3.5]
    assert (found["first"], found["memory"], found["warm"]) == (2, 30, True)
    assert "in 2 processes" in harness.describe(found)
    assert harness.pool([one, {"failed": "out of memory"}]) == {"failed": "out of memory"}


def test_tasks_take_turns_and_what_failed_is_left(tmp_path, monkeypatch):
    calls = []

    def run(_, name, *, limit):
        calls.append(name)
        return {"failed": "no"} if name == "b" else timed(1.0, first=2.0)

    monkeypatch.setattr(harness, "try_apart", run)
    found = harness.try_in_turn("", {"a": ("a",), "b": ("b",)}, processes=3, limit=1)
    assert calls == ["a", "b", "a", "a"]
    assert len(found["a"]["processes"]) == 3
    assert found["b"] == {"failed": "no"}


def test_exponents_need_three_sizes():
    assert harness.exponent([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2)
    assert harness.exponent([1, 10], [1, 10]) is None


def test_recall_counts_both_ways_and_no_length(rng):
    z = rng.normal(size=(50, 4))
    assert harness.recall(z, 3 * z) == 100
    assert harness.recall(z, z[::-1]) < 10
    # Of three rows that are compared with two equal candidates, two find theirs.
    assert harness.recall(np.eye(3), np.eye(3)[[0, 1, 1]]) == pytest.approx(50 * (2 / 3 + 2 / 3))


def test_the_first_call_is_apart_and_a_short_one_is_repeated():
    calls = []
    found, result = harness.measure(lambda: calls.append(1) or len(calls), repeats=2)
    assert 1000 >= result == len(calls) > 10
    assert len(found["seconds"]) == len(calls) - 1
    found, _ = harness.measure(lambda: None, repeats=0)
    assert (found["warm"], len(found["seconds"])) == (False, 1)


def test_what_is_too_slow_or_fails_is_named(tmp_path):
    script = tmp_path / "script.py"
    begin = f"import sys; sys.path.insert(0, {str(FOLDER)!r})\nimport _harness, os, time\n"

    def run(text):
        script.write_text(begin + text)
        return harness.try_apart(script, limit=0.1)

    slow = run("_harness.measure(lambda: time.sleep(60), repeats=3, limit=0.1)")
    assert slow == {"failed": "more than 0.1 s", "over": 0.1}
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert run("raise ValueError('no such view')") == {"failed": "ValueError: no such view"}
    large = "import numpy\n_harness.spare_the_machine()\nnumpy.ones((1 << 44,), 'u1')"
    assert run(large) == {"failed": "out of memory"}
    threads = run("print('[]'); print('{\"threads\": ' + os.environ['OMP_NUM_THREADS'] + '}')")
    assert threads == {"threads": len(os.sched_getaffinity(0))}
    script.write_text("raise ValueError('no such view')")
    with pytest.raises(RuntimeError, match="no such view"):
        harness.run_apart(script)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is measured on Linux alone"
)
def test_the_peak_of_memory_starts_anew():
    np.ones(8_000_000)
    harness.forget_peak()
    before = harness.memory()
    np.ones(8_000_000)
    assert harness.memory() - before > 50


@pytest.mark.parametrize(
    ("question", "name"),
    [
        (question, name)
        for question in ("null space", "cross-covariance", "CCA", "ridge CCA", "kernel CCA")
        for name in list(contestants.QUESTIONS[question])[1:]
        # These look for something else than the first of the question does, or at random.
        if name
        not in (
            "scikit-learn PLSCanonical",
            "ikpls PLS",
            "torch.svd_lowrank",
            "cca_zoo GCCA",
        )
    ],
)
def test_peers_answer_the_same_question(question, name, x64, tmp_path):
    if not contestants.is_installed(question, name):
        pytest.skip(f"{name} is not installed")
    views, new = contestants.draw(question, SIZE, tmp_path)
    ours, *_ = contestants.QUESTIONS[question].values()
    spans = []
    for load in (ours[1], contestants.QUESTIONS[question][name][1]):
        method = load(SIZE)
        z = map(np.asarray, method.encode(method.fit(method.ready(views)), new))
        spans.append([np.linalg.qr(one - one.mean(axis=0))[0] for one in z])
    # Both find one subspace, in whatever basis: cosines of the angles between them are one, but for
    # what peers leave that iterate (scikit-learn's CCA stops at 500 steps) or shrink a little less.
    for mine, theirs in zip(*spans, strict=True):
        assert np.linalg.svd(mine.T @ theirs, compute_uv=False).min() > 1 - 1e-3


@pytest.mark.slow
def test_a_quick_run_leaves_a_table(tmp_path):
    command = [sys.executable, str(FOLDER / "peers.py"), "--quick", "--only", "null space"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = load_result(tmp_path / "benchmark_peers.json")
    assert result["config"]["scale"] == "quick"
    assert result["config"]["threads"] >= 1
    installed = [
        n for n in contestants.QUESTIONS["null space"] if contestants.is_installed("null space", n)
    ]
    (cell,) = result["values"]["null space"]
    assert [name for name in cell if name not in Size._fields] == installed
    for name in installed:
        assert cell[name]["recall"] == 100
        assert cell[name]["resident"] > cell[name]["memory"] > 0
    assert len(result["rows"]) == len(installed) - 1
    assert all(row["ours"] and row["verdict"] and row["note"] for row in result["rows"])


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_where_there_is_none(tmp_path):
    command = [sys.executable, str(FOLDER / "accelerator.py"), "--quick"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "a.json")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "a.json").read_text())
    for shape in found["shapes"]:
        eps = np.finfo(shape["dtype"]).eps
        assert shape["fit"]["cmae"] < 10 * eps  # of rows of length one, in a null space
        assert shape["product"]["error"] < 10 * eps
        assert shape["product"]["flops"] > 0
    assert found["encoders"]["training, clips a second"] > 0


def cells(ours, theirs):
    sizes = [Size(n, 8, 2) for n in (100, 1_000, 10_000)]
    return {
        size: {"cca": timed(a), "scikit-learn CCA": timed(b)}
        for size, a, b in zip(sizes, ours, theirs, strict=True)
    }


def test_the_first_row_of_a_peer_sums_up_its_cells():
    first, *rest = peers.rival("CCA", "scikit-learn CCA", cells((1, 2, 4), (2, 20, 1)))
    assert len(rest) == 3
    assert first.ours == "0.250 to 10.0 times"
    assert first.verdict == "of 3 cells perfalign_jax in 2, scikit-learn CCA in 1"
    assert "cca grows as n^0.3" in first.note


def test_the_figure_has_a_panel_for_each_axis_with_more_than_one_size():
    figures = peers.draw_figure({"CCA": cells((1, 2, 4), (2, 20, 1))})
    ((figure, _),) = figures.values()
    assert [axes.get_xlabel() for axes in figure.axes] == ["pairs"]
    assert peers.draw_figure({}) == {}


def test_sizes_depart_from_the_base_one_axis_at_a_time():
    plan = peers.PLANS["full"]
    sizes = plan.sizes("CCA")
    assert sizes == sorted(set(sizes))
    assert all(size.n == plan.base.n or size.d == plan.base.d for size in sizes)
    for question, name, n, d in peers.TARGETS:
        assert name in contestants.QUESTIONS[question]
        assert (n, d) in {(size.n, size.d) for size in plan.sizes(question)}


def test_targets_are_asked_of_this_package_and_one_peer(monkeypatch):
    monkeypatch.setattr(peers, "is_installed", lambda question, name: True)
    plan = peers.PLANS["full"]
    for question in ("CCA", "ridge CCA", "kernel CCA"):
        ((size, names),) = peers.list_cells(question, plan, targets=True).items()
        us = next(iter(contestants.QUESTIONS[question]))
        assert names[0] == us
        assert (question, names[1], size.n, size.d) in peers.TARGETS
    assert peers.list_cells("out of core", plan, targets=True) == {
        plan.files: ["from_files and fit"]
    }
    assert not peers.list_cells("null space", plan, targets=True)
    assert set(peers.list_cells("CCA", plan, targets=False)) == set(plan.sizes("CCA"))


def test_bounds_of_fit_are_judged():
    assert fit_benchmark.bound(9.5, least=9) == "met: at least 9"
    assert fit_benchmark.bound(2.5, most=2.4) == "missed: at most 2.4"
    assert fit_benchmark.bound(1.0) == ""
    found = dict.fromkeys(contestants.QUESTIONS["fit"], timed(0.1, first=3.1))
    found["numpy.linalg.svd"] = timed(1.0)
    size = next(iter(fit_benchmark.TARGETS))
    rows = {row.quantity.split(": ")[1]: row for row in fit_benchmark.compare(found, size)}
    assert rows["times the speed of numpy.linalg.svd"].verdict == "met: at least 9"
    assert rows["products by BLAS that fit takes"].verdict == "met: at most 2.4"
    assert rows["seconds of compilation"].verdict == "missed: at most 2"
    (row,) = fit_benchmark.compare(found | {"fit": {"failed": "out of memory"}}, size)
    assert row.note == "fit: out of memory"


def test_files_hold_what_is_held_out_too(tmp_path):
    paths = contestants.write_files(tmp_path, Size(50, 6, 2), part=20)
    x1, x2 = map(np.load, paths)
    rotation = np.linalg.lstsq(x1[:, :2], x2[:, -2:], rcond=None)[0]
    _, (new1, new2) = contestants.draw("out of core", Size(50, 6, 2), tmp_path)
    np.testing.assert_allclose(new1[:, :2] @ rotation, new2[:, -2:], atol=1e-5)  # of float32
    assert json.loads(json.dumps(paths)) == [str(tmp_path / f"x{m}.npy") for m in (1, 2)]
