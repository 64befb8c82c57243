"""The package as it is installed: a wheel, its core dependencies, and nothing else."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import importlib.metadata, os, sys
import numpy as np
before = dict(os.environ)
import perfalign_jax as pa
assert "site-packages" in pa.__file__, pa.__file__
for extra in ("optax", "sklearn", "matplotlib", "flax"):
    try:
        importlib.metadata.version(extra)
        raise SystemExit(f"{extra} is installed")
    except importlib.metadata.PackageNotFoundError:
        pass
rng = np.random.default_rng(0)
z = rng.normal(size=(50, 2)).astype("f4")
views = tuple(z @ rng.normal(size=(2, d)).astype("f4") for d in (3, 4, 5))
alignment = pa.fit(views, k=None, select="energy")
pa.save(alignment, "a.safetensors")
latents = pa.transform(pa.load("a.safetensors"), views)
assert pa.cmae(latents[0], latents[2]) < 1e-4
assert pa.baselines.ridge_cca(views[:2], k=1, ridge=0.1).k == 1
np.save("x1.npy", views[0]), np.save("x2.npy", views[1])
"""


@pytest.mark.slow
def test_the_wheel_without_extras_imports_fits_and_has_its_command(tmp_path):
    def run(*command, **options):
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, **options
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("perfalign_jax-*.whl")
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    # Our own pip, and no bytecode of what is never imported.
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", wheel)
    run(python, "-c", USE)
    perfalign = tmp_path / "env" / "bin" / "perfalign"
    said = run(perfalign, "fit", "x1.npy", "x2.npy", "-k", "2", "--out", "b.safetensors")
    assert "alignment written to b.safetensors" in said
    elsewhere = subprocess.run(
        [str(perfalign), "reproduce"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert elsewhere.returncode == 2
    assert "checkout" in elsewhere.stderr
