"""What a user does first, with an installed package and its core dependencies alone.

``tests/test_package.py`` runs this in an environment with the wheel, ``make lowest`` in one with
the lowest versions of everything. It is run in an empty folder, by itself: not under pytest.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

before = dict(os.environ)
import perfalign_jax as pa  # noqa: E402 - it must not change the environment

assert "site-packages" in pa.__file__, pa.__file__
assert dict(os.environ) == before
assert pa.__version__ == importlib.metadata.version("perfalign-jax")
assert re.match(r"\d+\.\d+", pa.__version__), pa.__version__
for extra in ("optax", "scikit-learn", "matplotlib", "flax", "threadpoolctl"):
    try:
        importlib.metadata.version(extra)
    except importlib.metadata.PackageNotFoundError:
        continue
    sys.exit(f"{extra} is installed, so this shows nothing")

rng = np.random.default_rng(0)
z = rng.normal(size=(80, 2)).astype("f4")
views = tuple(z @ rng.normal(size=(2, d)).astype("f4") for d in (3, 4, 5))

# The paper, to disk and back.
alignment = pa.fit(views, k=None, select="energy")
pa.save(alignment, "a.safetensors")
latents = pa.transform(pa.load("a.safetensors"), views)
assert pa.cmae(latents[0], latents[2]) < 1e-4
assert pa.baselines.ridge_cca(views[:2], k=1, ridge=0.1).k == 1

# One's own data, in memory and from files.
noisy = tuple(x + 0.1 * rng.normal(size=x.shape).astype("f4") for x in views[:2])
aligned = pa.align(noisy)
pa.save(aligned, "b.safetensors")
found = pa.search(pa.load("b.safetensors"), *noisy, top=3)
assert found.indices.shape == (80, 3)
assert float(np.median(pa.log_odds(aligned, *noisy))) > 0
np.save("x1.npy", views[0])
np.savez("x2.npz", x=views[1])
state = pa.streaming.from_files(("x1.npy", "x2.npz:x"), checkpoint="c.safetensors")
assert pa.fit(state, k=2).k == 2

# The command, as it was installed and as a module.
beside = Path(sys.executable).parent


def say(*command: str, code: int = 0) -> str:
    """What a command prints; ``code`` is how it must end."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


perfalign = str(beside / "perfalign")
assert "written to d.safetensors" in say(
    perfalign, "fit", "x1.npy", "x2.npz:x", "-k", "2", "--out", "d.safetensors"
)
assert "written to z.npy" in say(
    perfalign, "transform", "d.safetensors", "x1.npy", "--view", "0", "--out", "z.npy"
)
assert np.load("z.npy").shape == (80, 2)
assert "there is no file" in say(
    sys.executable, "-m", "perfalign_jax", "diagnose", "x1.npy", "none.npy", code=2
)
assert "checkout" in say(perfalign, "reproduce", code=2)
print(f"perfalign-jax {pa.__version__} works with Python {sys.version.split()[0]}")
