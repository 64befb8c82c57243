"""The package as it is installed: a wheel, its core dependencies, and nothing else."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist()}


@pytest.mark.slow
def test_the_wheel_without_extras_works_outside_the_checkout(tmp_path):
    build = (sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    run(*build, cwd=tmp_path)  # an sdist, and the wheel from it
    run(*build[:-1], "--wheel", "--outdir", tmp_path / "direct", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*-py3-none-any.whl")
    (direct,) = (tmp_path / "direct").iterdir()
    assert wheel.name == direct.name
    assert contents(wheel) == contents(direct)
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    # Our own pip, and no bytecode of what is never imported.
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", wheel, cwd=tmp_path)
    run(*pip, "check", cwd=tmp_path)
    assert "works with Python" in run(python, ROOT / "tests" / "smoke.py", cwd=tmp_path)
