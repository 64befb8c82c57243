"""Every experiment runs in its small version and leaves the numbers that the paper is judged by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfalign_jax.report import load_result
from perfalign_jax.reproduce import EXPERIMENTS

FOLDER = Path(__file__).parents[1] / "experiments"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_version_leaves_a_result(name, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "UTD_MHAD_ROOT"}
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", "--quick", "--out", tmp_path],
        capture_output=True, text=True, env=environment, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = load_result(tmp_path / f"{name}.json")
    assert result["name"] == name
    assert result["summary"]
    assert result["rows"]
    assert all(row["ours"] or row["verdict"] for row in result["rows"])
    assert result["config"]["scale"] == "quick"
    for figure in result["figures"]:
        assert (tmp_path / "figures" / figure).stat().st_size > 5000
    CHECKS.get(name, lambda result: None)(result)


def row(result, start):
    (found,) = [r for r in result["rows"] if r["quantity"].startswith(start)]
    return found


def check_synthetic(result):
    cmae = result["values"]["perfect"]["CMAE"]
    assert max(cmae) < 1e-12
    assert sorted(cmae)[len(cmae) // 2] < 1e-13


def check_digits(result):
    assert "stand-in" in result["values"]["data"]
    assert "stand-in" in result["title"] + result["summary"]


CHECKS = {"fig3_synthetic": check_synthetic, "utd_mhad_linear": check_digits}
