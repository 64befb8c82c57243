"""Who is compared: this package and its peers, by the question that they answer.

Command:  python experiments/benchmarks/_contestants.py TASK, an object in JSON (used internally)

Each contestant imports what it needs when it is loaded, so that a process holds one library. What
it is given is the same for all who answer a question: host arrays in float64, or files. A peer
that starts from the stacked matrix gets it stacked.
"""

import functools
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _harness
import numpy as np

RIDGE = 0.1  # of the mean eigenvalue of a view's covariance
STRENGTHS = np.linspace(2, 0.2, 64)  # of the directions that two noisy views share
SHRINKAGE = (r := RIDGE * (1 + float(np.mean(STRENGTHS**2)))) / (1 + r)  # the same as the ridge
HELD_OUT = 1000
Arrays = tuple[np.ndarray, np.ndarray]


class Size(NamedTuple):
    """Pairs, features of each view, and latent dimensions."""

    n: int
    d: int
    k: int


class Method(NamedTuple):
    """What is timed, how held-out views are then encoded, and what comes before the clock runs."""

    fit: Callable[[Any], Any]
    encode: Callable[[Any, Arrays], Any] | None = None
    ready: Callable[[Any], Any] = lambda views: views


def stack(views: Arrays) -> np.ndarray:
    return np.hstack([views[0], -views[1]])


def project(maps: Any, views: Arrays) -> tuple[Any, Any]:
    """Encode by maps (k, d) of [X1, -X2] stacked."""
    d = views[0].shape[1]
    return views[0] @ np.asarray(maps)[:, :d].T, views[1] @ np.asarray(maps)[:, d:].T


def ours(call: Callable[..., Any], **options: Any) -> Method:
    import perfalign_jax as pa

    return Method(lambda views: call(views, **options), lambda a, views: pa.transform(a, views))


def fit(size: Size, **options: Any) -> Method:
    import perfalign_jax as pa

    return ours(pa.fit, k=size.k, **options)


def baseline(name: str, size: Size, **options: Any) -> Method:
    from perfalign_jax import baselines

    return ours(getattr(baselines, name), k=size.k, **options)


def fit_files(size: Size) -> Method:
    import perfalign_jax as pa

    return Method(
        lambda paths: pa.fit(pa.streaming.from_files(paths), k=size.k),
        lambda a, v: pa.transform(a, v),
    )


def numpy_svd(size: Size) -> Method:
    # Where there are fewer rows than features, the thin SVD lacks the null space.
    return Method(
        lambda x: np.linalg.svd(x, full_matrices=size.n < 2 * size.d)[2][-size.k :], project, stack
    )


def scipy_svd(size: Size) -> Method:
    from scipy import linalg

    def solve(x: np.ndarray) -> np.ndarray:
        rows: np.ndarray = linalg.svd(x, full_matrices=size.n < 2 * size.d)[2][-size.k :]
        return rows

    return Method(solve, project, stack)


def scipy_null_space(size: Size) -> Method:
    from scipy import linalg

    return Method(lambda x: linalg.null_space(x).T, project, stack)


def torch_svd(size: Size) -> Method:
    import torch

    def solve(x: np.ndarray) -> np.ndarray:
        wide = size.n < 2 * size.d
        rows: np.ndarray = torch.linalg.svd(torch.from_numpy(x), full_matrices=wide)[2][
            -size.k :
        ].numpy()
        return rows

    return Method(solve, project, stack)


def torch_lowrank(size: Size) -> Method:
    import torch

    torch.manual_seed(0)
    rank = min(size.k + 10, size.d)  # its directions are random: a few more make the first better

    def solve(views: Arrays) -> Any:
        x1, x2 = (torch.from_numpy(x) for x in views)
        means = x1.mean(0), x2.mean(0)
        u, _, v = torch.svd_lowrank((x1 - means[0]).T @ (x2 - means[1]), q=rank)
        return tuple(
            (m.numpy(), w.numpy()[:, : size.k]) for m, w in zip(means, (u, v), strict=True)
        )

    def encode(model: Any, views: Arrays) -> Any:
        return tuple((x - m) @ w for x, (m, w) in zip(views, model, strict=True))

    return Method(solve, encode)


def scikit(name: str, size: Size) -> Method:
    from sklearn import cross_decomposition

    make = getattr(cross_decomposition, name)
    return Method(
        lambda views: make(n_components=size.k, scale=False).fit(*views),
        lambda model, views: model.transform(*views),
    )


def ikpls(size: Size) -> Method:
    from ikpls.sklearn import PLS

    return Method(
        lambda views: PLS(n_components=size.k, scale_X=False, scale_Y=False).fit(*views),
        lambda model, views: model.transform(*views),
    )


def zoo(name: str, size: Size, **options: Any) -> Method:
    from cca_zoo import linear

    make = getattr(linear, name)
    return Method(
        lambda views: make(n_components=size.k, **options).fit(list(views)),
        lambda model, views: model.transform(list(views)),
    )


def zoo_kernel(size: Size, *, importances: bool) -> Method:
    """KCCA with the kernel of ``kernel_cca``: standardised rows, median distance, same ridge."""
    from cca_zoo.nonparametric import KCCA
    from scipy.spatial.distance import pdist

    class Plain(KCCA):
        """Without the importances that permute every feature."""

        def _permutation_importances(self, views: Any) -> Any:
            return [np.zeros(v.shape[1]) for v in views]

    def standardise(model: Any, views: Arrays) -> list[np.ndarray]:
        return [(x - m) / s for x, m, s in zip(views, *model[1:], strict=True)]

    def solve(views: Arrays) -> Any:
        scales = [x.mean(axis=0) for x in views], [x.std(axis=0) for x in views]
        rows = standardise((None, *scales), views)
        # At the median distance the kernel is exp(-1/2): its mean, which centring takes away.
        shrinkage = RIDGE * (1 - np.exp(-0.5)) / size.n
        gamma = [1 / (2 * np.median(pdist(x[:2000])) ** 2) for x in rows]
        make = KCCA if importances else Plain
        model = make(n_components=size.k, kernel="rbf", gamma=gamma, shrinkage=shrinkage)
        return model.fit(rows), *scales

    def encode(model: Any, views: Arrays) -> Any:
        return model[0].transform(standardise(model, views))

    return Method(solve, encode)


def incremental(size: Size) -> Method:
    """All components of [X1, -X2], block by block, of which the last are the subspace."""
    from sklearn.decomposition import IncrementalPCA
    from sklearn.utils import gen_batches

    def solve(paths: list[str]) -> np.ndarray:
        x1, x2 = (np.load(path, mmap_mode="r") for path in paths)
        model = IncrementalPCA(n_components=2 * size.d)
        for rows in gen_batches(size.n, 10 * size.d, min_batch_size=2 * size.d):
            model.partial_fit(stack((x1[rows], x2[rows])))
        last: np.ndarray = model.components_[-size.k :]
        return last

    return Method(solve, project)


def dask_svd(size: Size) -> Method:
    """The tall and skinny SVD, in blocks of scikit-learn's size, with a BLAS thread for each."""
    import dask
    import dask.array as da
    from threadpoolctl import threadpool_limits

    dask.config.set(scheduler="threads", num_workers=len(os.sched_getaffinity(0)))
    threadpool_limits(1)

    def solve(paths: list[str]) -> np.ndarray:
        block = (10 * size.d, size.d)
        x1, x2 = (da.from_array(np.load(path, mmap_mode="r"), chunks=block) for path in paths)
        x = da.concatenate([x1, -x2], axis=1).rechunk({1: -1})
        rows: np.ndarray = da.linalg.svd(x)[2][-size.k :].compute()
        return rows

    return Method(solve, project)


def blas_product(size: Size) -> Method:
    return Method(lambda x: x.T @ x, ready=stack)


def xla_product(size: Size) -> Method:
    import jax
    import jax.numpy as jnp

    return Method(jax.jit(lambda x: x.T @ x), ready=lambda views: jnp.asarray(stack(views)))


# By question; the first answer to each is this package's.
Contestants = dict[str, tuple[str, Callable[[Size], Method]]]  # name to module and how it is loaded
part = functools.partial
QUESTIONS: dict[str, Contestants] = {
    "null space": {
        "fit": ("", fit),
        "numpy.linalg.svd": ("numpy", numpy_svd),
        "scipy.linalg.svd": ("scipy", scipy_svd),
        "scipy.linalg.null_space": ("scipy", scipy_null_space),
        "torch.linalg.svd": ("torch", torch_svd),
    },
    "cross-covariance": {
        "linear_contrastive": ("", part(baseline, "linear_contrastive", center=True)),
        "scikit-learn PLSSVD": ("sklearn", part(scikit, "PLSSVD")),
        "scikit-learn PLSCanonical": ("sklearn", part(scikit, "PLSCanonical")),
        "ikpls PLS": ("ikpls", ikpls),
        "torch.svd_lowrank": ("torch", torch_lowrank),
    },
    "CCA": {
        "cca": ("", part(baseline, "cca", center=True)),
        "scikit-learn CCA": ("sklearn", part(scikit, "CCA")),
        "cca_zoo CCA": ("cca_zoo", part(zoo, "CCA")),
    },
    "ridge CCA": {
        "ridge_cca": ("", part(baseline, "ridge_cca", ridge=RIDGE, center=True)),
        "cca_zoo RidgeCCA": ("cca_zoo", part(zoo, "RidgeCCA", shrinkage=SHRINKAGE)),
        "cca_zoo MCCA": ("cca_zoo", part(zoo, "MCCA", shrinkage=SHRINKAGE)),
        "cca_zoo GCCA": ("cca_zoo", part(zoo, "GCCA", shrinkage=SHRINKAGE)),
    },
    "kernel CCA": {
        "kernel_cca": ("", part(baseline, "kernel_cca", ridge=RIDGE)),
        "cca_zoo KCCA": ("cca_zoo", part(zoo_kernel, importances=True)),
        "cca_zoo KCCA, no importances": ("cca_zoo", part(zoo_kernel, importances=False)),
    },
    "out of core": {
        "from_files and fit": ("", fit_files),
        "scikit-learn IncrementalPCA": ("sklearn", incremental),
        "dask.array.linalg.svd": ("dask", dask_svd),
    },
    "fit": {
        "fit": ("", fit),
        "fit, check=False": ("", part(fit, check=False)),
        "numpy.linalg.svd": ("numpy", numpy_svd),
        "NumPy's product": ("numpy", blas_product),
        "XLA's product": ("", xla_product),
    },
}


def is_installed(question: str, name: str) -> bool:
    module = QUESTIONS[question][name][0]
    return not module or importlib.util.find_spec(module) is not None


def draw_noisy(rng: np.random.Generator, rows: tuple[int, ...], d: int) -> list[Arrays]:
    """Draw views of noise with 64 shared directions, for each number of rows."""
    maps = [rng.normal(size=(len(STRENGTHS), d)) / 8 for _ in range(2)]

    def draw(n: int) -> Arrays:
        z = rng.normal(size=(n, len(STRENGTHS))) * STRENGTHS
        first, second = (z @ m + rng.normal(size=(n, d)) for m in maps)
        return first, second

    return [draw(n) for n in rows]


def draw_planted(rng: np.random.Generator, rows: tuple[int, ...], d: int, k: int) -> list[Arrays]:
    """Draw views with a null space of k directions, all informative: features of both are equal."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(k, k)))[0]

    def draw(n: int) -> Arrays:
        x1, x2 = rng.normal(size=(n, d)), rng.normal(size=(n, d))
        x2[:, -k:] = x1[:, :k] @ rotation
        return x1, x2

    return [draw(n) for n in rows]


def draw_low_rank(rng: np.random.Generator, rows: tuple[int, ...], d: int, k: int) -> list[Arrays]:
    """Draw views of k latents without noise, as the paper does."""
    maps = [rng.normal(size=(k, d)) for _ in range(2)]

    def draw(n: int) -> Arrays:
        z = rng.normal(size=(n, k))
        return z @ maps[0], z @ maps[1]

    return [draw(n) for n in rows]


def write_files(folder: Path, size: Size, part: int = 10_000) -> list[str]:
    """Write planted views to files in float32, a part at a time."""
    paths = [str(folder / f"x{m + 1}.npy") for m in range(2)]
    views = [
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(size.n, size.d))
        for path in paths
    ]
    rng = np.random.default_rng(1)
    for start in range(0, size.n, part):
        drawn = draw_planted(rng, (min(part, size.n - start),), size.d, size.k)[0]
        for view, x in zip(views, drawn, strict=True):
            view[start : start + len(x)] = x
    return paths


def draw(question: str, size: Size, folder: Path) -> tuple[Any, Arrays]:
    """Draw what is fitted and held-out pairs, the same for all who answer the question."""
    rng, rows = np.random.default_rng(0), (size.n, HELD_OUT)
    if question == "fit":
        low, new = draw_low_rank(rng, rows, size.d, size.k)
        return low, new
    if question == "null space":
        planted, new = draw_planted(rng, rows, size.d, size.k)
        return planted, new
    if question == "out of core":
        paths = [str(folder / f"x{m + 1}.npy") for m in range(2)]
        return paths, draw_planted(rng, (HELD_OUT,), size.d, size.k)[0]
    noisy, new = draw_noisy(rng, rows, size.d)
    return noisy, new


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Measure one contestant at one size: times, memory, and accuracy on held-out pairs."""
    question, size = task["question"], Size(*task["size"])
    _harness.spare_the_machine()
    method = QUESTIONS[question][task["name"]][1](size)
    before = _harness.memory("VmRSS")
    views, new = draw(question, size, Path(task["folder"]))
    views = method.ready(views)
    _harness.forget_peak()
    found, model = _harness.measure(
        lambda: method.fit(views), repeats=task["repeats"], limit=task["limit"]
    )
    found |= {"resident": _harness.memory(), "memory": _harness.memory() - before}
    if method.encode:
        z1, z2 = (np.asarray(z) for z in method.encode(model, new))
        found["recall"] = _harness.recall(z1, z2)
        if question in ("null space", "out of core", "fit"):
            found["cmae"] = float(np.linalg.norm(z1 - z2, axis=1).mean())
    return found


if __name__ == "__main__":
    os.environ["JAX_ENABLE_X64"] = "1"
    print(json.dumps(run(json.loads(sys.argv[1]))))
