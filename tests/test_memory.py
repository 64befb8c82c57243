"""Every public function at a million rows of eight features, in memory that the rows explain.

One process runs the table below and reports its peak after each entry.
"""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import perfalign_jax as pa

ROWS = 1_000_000  # of 4 + 4 float32 features: 32 MB
PAIRS = 20_000  # of what compares all rows with all: 1.6 GB as a float32 matrix of distances

# What each function is called with: x1, x2 and views (a tuple of both), of ROWS rows; z1 and z2
# (PAIRS rows), an alignment, a file's name, and a statistic.
CALLS = {
    "cmae": "pa.cmae(x1, x2)",
    "ncmae": "pa.ncmae(x1, x2)",
    "relative_cmae": "pa.relative_cmae(x1, x2)",
    "mlre": "pa.mlre(x1, views)",
    "mlre_affine": "pa.mlre_affine(x1, views)",
    "latent_energy": "pa.latent_energy(x1, both)",
    "effective_rank": "pa.effective_rank(both)",
    "linear_cka": "pa.linear_cka(x1, both)",
    "retrieval": "pa.retrieval(z1, z2)",
    "mutual_knn": "pa.mutual_knn(z1, z2, neighbors=2)",
    "statistics.init": "pa.statistics.init((4, 4))",
    "statistics.from_views": "pa.statistics.from_views(views)",
    "statistics.update": "pa.statistics.update(pa.statistics.init((4, 4)), views)",
    "statistics.as_statistic": "pa.statistics.as_statistic(views)",
    "statistics.count_rows": "pa.statistics.count_rows(samples, center=True)",
    "statistics.check_finite": "pa.statistics.check_finite(samples)",
    "statistics.as_parts": "pa.statistics.as_parts(views)",
    "statistics.rows": "pa.statistics.rows(statistic, center=True)",
    "statistics.merge": "pa.statistics.merge(statistic, statistic)",
    "statistics.take_apart": "pa.statistics.take_apart(statistic)[1]",
    "statistics.put_together": "pa.statistics.put_together(*pa.statistics.take_apart(statistic))",
    "statistics.from_moments": (
        "pa.statistics.from_moments(9.0, 9, np.zeros(8), np.eye(8), (4, 4), 'f4', 0.0, 'gram')"
    ),
    "streaming.from_batches": "pa.streaming.from_batches(iter([views, views]))",
    "streaming.from_files": "pa.streaming.from_files([npy, npy])",
    "streaming.survey": "pa.streaming.survey(pa.streaming.RowReader(npy, npy))",
    "fit": "[pa.fit(views, k=2, method=m) for m in ('auto', 'qr', 'gram')]",
    "fit energy": "[pa.fit(views, k=k, select='energy') for k in (2, None)]",
    "diagnose": "pa.diagnose(views)",
    "transform": "pa.transform(alignment, views)",
    "encode": "pa.encode(alignment, x1, view=0)",
    "predict": "pa.predict(alignment, x1, source=0, target=1)",
    "save": "pa.save(alignment, path)",
    "load": "pa.load(path)",
    "align": "pa.align(views, lift=None)",
    "log_odds": "pa.log_odds(weighed, x1, x2)",
    "search": "pa.search(weighed, z1, z2, top=2)",
    "gauge.apply_gauge": "pa.gauge.apply_gauge(alignment, jnp.eye(2))",
    "gauge.calibrate": "pa.gauge.calibrate(alignment, (x1[:9], x2[:9]), x1[:9, :2])",
    "gauge.canonicalize": "pa.gauge.canonicalize(alignment, views)",
    **{
        f"baselines.{name}": f"pa.baselines.{name}(views, k=2)"
        for name in ("cca", "linear_contrastive")
    },
    "baselines.ridge_cca": "pa.baselines.ridge_cca(views, k=2, ridge=0.1)",
    "baselines.ridge_cca_cv": "pa.baselines.ridge_cca_cv(views, k=2, ridges=(0.1, 1.0), folds=2)",
    "baselines.kernel_cca": "pa.baselines.kernel_cca((z1[:999], z2[:999]), k=2, ridge=0.1)",
    "baselines.ridge_regression": "pa.baselines.ridge_regression(views, ridge=0.1)",
    **{
        f"baselines.{name}": f"pa.baselines.{name}(views)"
        for name in ("identity", "least_squares", "procrustes", "total_least_squares")
    },
}
SCRIPT = """
import gc, json, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
import perfalign_jax as pa

rows, pairs, path, calls = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
draw = np.random.default_rng(0)
both = jnp.asarray(draw.standard_normal((rows, 8), np.float32)) + 0.5
both = both.at[:, 4:6].set(both[:, :2])  # two perfect directions
views = x1, x2 = both[:, :4], both[:, 4:]
z1, z2 = x1[:pairs], x2[:pairs]
alignment = pa.fit((z1, z2), k=2)
statistic = pa.statistics.from_views((z1, z2))
samples = pa.statistics.from_views(views, kind="samples")
npy = f"{path}.npy"
np.save(npy, np.asarray(x1))
weighed = pa.align((z1[:999], z2[:999]), lift=None)
status = pathlib.Path("/proc/self/status")
kB = lambda word: int(status.read_text().split(word + ":")[1].split()[0])
for name, call in calls.items():
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kB("VmRSS")
    jax.block_until_ready(eval(call))
    print(json.dumps([name, 1024 * (kB("VmHWM") - before)]), flush=True)
"""


@pytest.fixture(scope="module")
def growth(tmp_path_factory):
    """How far the memory of the process rises while each entry runs, in bytes."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process can be measured anew on Linux alone")
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", SCRIPT, str(ROWS), str(PAIRS)),
            *(str(tmp_path_factory.mktemp("memory") / "a.safetensors"), json.dumps(CALLS)),
        ],
        capture_output=True,
        text=True,
        cwd=Path(pa.__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=600,  # about a minute on two quiet cores
        check=False,
    )
    return dict(map(json.loads, done.stdout.splitlines())), done.stderr


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.slow
def test_a_million_rows_need_a_few_copies_of_themselves(growth, name):
    risen, errors = growth
    assert name in risen, errors
    # 16 copies of the rows, and the compiler's own memory: a third of the distances of all pairs,
    # and an eight-thousandth of a million by a million.
    assert risen[name] < 16 * 32e6


def test_every_public_function_is_in_the_table():
    rooms = {"": pa} | {
        f"{name}.": getattr(pa, name) for name in ("statistics", "streaming", "gauge", "baselines")
    }
    public = {
        prefix + name
        for prefix, room in rooms.items()
        for name in room.__all__
        if inspect.isfunction(getattr(room, name))
    }
    assert public <= set(CALLS)
