"""What a GPU computes, beside the same on the CPU."""

import jax
import numpy as np
import pytest

import perfalign_jax as pa
from perfalign_jax import baselines, metrics, neighbours, sweeps

pytestmark = pytest.mark.gpu

# Products and factorisations add up in another order; what they differ by is rounding, times the
# condition of the views' moments, some ten here.
TOLERANCE = {"float32": 1e-3, "float64": 1e-10}


@pytest.fixture
def devices():
    try:
        return jax.devices("cpu")[0], jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("JAX finds no GPU here")


def draw(rng, dtype, n=400, noise=0.3):
    """Four latents of falling size, seen by two views with as much noise."""
    latents = rng.normal(size=(n, 4)) * [2.0, 1.5, 1.2, 1.0]
    return tuple(
        (latents @ rng.normal(size=(4, d)) + noise * rng.normal(size=(n, d))).astype(dtype)
        for d in (10, 8)
    )


def latents_by(fit):
    def call(a, b):
        alignment = fit((a, b))
        return (*pa.transform(alignment, (a, b)), alignment.singular_values)

    return call


def predicted_by_align(a, b):
    alignment = pa.align((a, b), lift="linear")
    return pa.predict(alignment, a, source=0, target=1), alignment.reliability


CALLS = {
    "fit": latents_by(lambda views: pa.fit(views, k=3)),
    "fit, directions of most energy": latents_by(lambda views: pa.fit(views, k=3, select="energy")),
    "ridge_cca": latents_by(lambda views: baselines.ridge_cca(views, k=3, ridge=0.1)),
    "procrustes": latents_by(lambda views: baselines.procrustes(views)),
    "align": predicted_by_align,
    "cmae": lambda a, b: (metrics.cmae(a[:, :8], b),),
    "retrieval": lambda a, b: neighbours.retrieval(a[:, :8], b),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CALLS)
def test_the_gpu_answers_as_the_cpu_does(name, dtype, devices, rng, x64):
    views = draw(rng, dtype)
    cpu, gpu = (CALLS[name](*(jax.device_put(x, d) for x in views)) for d in devices)
    for ours, expected in zip(jax.tree.leaves(gpu), jax.tree.leaves(cpu), strict=True):
        assert ours.dtype == expected.dtype
        scale = float(np.abs(expected).max()) or 1.0
        np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def test_rows_of_numpy_are_computed_on_the_gpu(devices, rng):
    alignment = pa.fit(draw(rng, "float32"), k=3)
    assert {d.platform for d in alignment.projections[0].devices()} == {"gpu"}


@pytest.mark.parametrize("precision", ["tensorfloat32", "bfloat16"])
def test_fast_products_elsewhere_do_not_cost_the_null_space(precision, devices, rng):
    """Latents agree to the rounding of rows of length five; passes of ten bits leave 1e-3 of it."""
    a, b = (jax.device_put(x, devices[1]) for x in draw(rng, "float32", noise=0.0))
    with jax.default_matmul_precision(precision):
        alignment = pa.fit((a, b), k=4)
        z1, z2 = pa.transform(alignment, (a, b))
    assert float(metrics.cmae(z1, z2)) < 1e-4


def test_a_sweep_is_that_of_the_cpu(devices, x64):
    """Random numbers are the same everywhere, so the cells are."""
    grid = sweeps.make_grid(n=(50, 200), d=10, k=3, noise=0.5, held_out=50)
    found = []
    for device in devices:
        with jax.default_device(device):
            found.append(sweeps.sweep(jax.random.key(0), grid, seeds=4, progress=False))
    for name in sweeps.METRICS:
        cpu, gpu = (result.get(name) for result in found)
        np.testing.assert_allclose(gpu, cpu, rtol=1e-7)
