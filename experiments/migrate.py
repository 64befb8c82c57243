"""Changing the embedding model without embedding everything again.

Command:  python experiments/migrate.py [--quick | --full] [--out results]
Time:     2 minutes on 2 cores (--quick as long; --full, 20 draws, up to 4,000 pairs, lifts up to
          1,000, an hour), and once 6 minutes for the vectors of the sentence encoders
Expect:   more of the new model's own retrieval kept with every pair that is embedded by both, about
          as much as ridge regression keeps, and what is kept between the two ends of the gate

K documents are embedded by both models. The whole old index then goes through ``predict``, block by
block, and queries by the new model search it. What is kept is R@1, R@10 and nDCG@10 over those of
the new model's own index. The gate says how much will be kept before anything is migrated, from the
K pairs alone, each predicted by maps that were fitted without it: at least as much as of the
documents nearest to it under the new model, at most as much as of the document itself.

Intervals are over draws of the pairs and over queries. What is finished of a draw is kept in
``<out>/migrate``, and taken up by the same code.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from _kit.cells import Cell, fingerprint, keep
from _kit.options import Options, start
from _kit.report import Row, reduce
from _kit.rows import finish
from _texts import INSTALL, Vectors, embed
from rich.progress import track
from sklearn.linear_model import RidgeCV
from sklearn.neural_network import MLPRegressor

import perfalign_jax as pa
from perfalign_jax import baselines
from perfalign_jax.har.protocol import estimates
from perfalign_jax.har.protocol.estimates import Estimate
from perfalign_jax.plotting import Panel, plot_panels

NAME = "migrate"
ALIGN, KERNEL, RIDGE = "align", "align, lift chosen", "ridge regression"
GATE = "gate"
PAIRS = {"quick": (250, 1000), "default": (250, 1000), "full": (250, 500, 1000, 2000, 4000)}
DRAWS = {"quick": 1, "default": 2, "full": 20}
KERNEL_MOST = {"quick": 0, "default": 0, "full": 1000}  # pairs up to which lifts are tried
BLOCK = 4096
TOP = 10
MEASURES = ("R@1", "R@10", "nDCG@10")
Map = Callable[[np.ndarray], np.ndarray]


def fit_align(old: np.ndarray, new: np.ndarray, lift: Literal["auto", "linear"] = "linear") -> Map:
    alignment = pa.align((old, new), lift=lift)

    def apply(x: np.ndarray) -> np.ndarray:
        parts = [x[i : i + BLOCK] for i in range(0, len(x), BLOCK)]
        return np.concatenate(
            [np.asarray(pa.predict(alignment, part, source=0, target=1)) for part in parts]
        )

    return apply


def fit_ridge(old: np.ndarray, new: np.ndarray) -> Map:
    return RidgeCV(np.logspace(-3, 2, 11)).fit(old, new).predict


def fit_procrustes(old: np.ndarray, new: np.ndarray) -> Map:
    alignment = baselines.procrustes((old, new), center=True)
    return lambda x: np.asarray(pa.predict(alignment, x, source=0, target=1))


def fit_mlp(old: np.ndarray, new: np.ndarray) -> Map:
    model = MLPRegressor(
        hidden_layer_sizes=(512,), early_stopping=True, random_state=0, max_iter=200
    )
    return model.fit(old, new).predict


def list_methods(scale: str, pairs: int) -> dict[str, Callable[[np.ndarray, np.ndarray], Map]]:
    methods: dict[str, Callable[[np.ndarray, np.ndarray], Map]] = {
        ALIGN: fit_align,
        KERNEL: functools.partial(fit_align, lift="auto"),
        RIDGE: fit_ridge,
        "Procrustes": fit_procrustes,
        "small MLP": fit_mlp,
    }
    if pairs > KERNEL_MOST[scale]:
        del methods[KERNEL]
    return methods


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def rank_right(queries: np.ndarray, index: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many documents are nearer to each query, by cosine, than the right one."""
    similar = queries @ _unit(index).T
    own = similar[np.arange(len(queries)), right]
    return (similar > own[:, None]).sum(axis=1)


def measure(ranks: np.ndarray) -> np.ndarray:
    """R@1, R@10 and nDCG@10 of each query that one document answers, shape ``(q, 3)``."""
    gain = np.where(ranks < TOP, 1 / np.log2(ranks + 2.0), 0)
    return np.stack([ranks < 1, ranks < TOP, gain], axis=1).astype(float)


def foretell(vectors: Vectors, both: np.ndarray, folds: int = 5) -> tuple[float, float]:
    """Share of nDCG@10 that is kept, at least and at most, from held-out pairs: the gate.

    Queries lie somewhere between a document itself and its neighbours. So every held-out document
    asks by its new vector, for the documents nearest to it under the new model among the others
    that were held out, which is harder than most queries are, and for itself in the whole migrated
    index, which is easier.
    """
    old, new = vectors.old[both], vectors.new[both]
    predicted, ranks = np.zeros_like(new), np.zeros(len(both), int)
    for fold in range(folds):
        own = np.arange(len(old)) % folds == fold
        index = fit_align(old[~own], new[~own])(vectors.old)
        predicted[own] = index[both[own]]
        ranks[own] = rank_right(_unit(new[own]), index, both[own])
    true, ours = (_similar(new, rows) for rows in (new, predicted))
    weights = 1 / np.log2(np.arange(TOP) + 2)
    best = np.argsort(-true, axis=1)[:, :TOP]
    gains = np.zeros_like(true)
    np.put_along_axis(gains, best, weights[None], axis=1)  # what is nearest is worth most
    found = np.take_along_axis(gains, np.argsort(-ours, axis=1)[:, :TOP], axis=1)
    least = ((found * weights).sum(axis=1) / (weights**2).sum()).mean()
    return float(least), float(measure(ranks)[:, 2].mean())


def _similar(queries: np.ndarray, index: np.ndarray) -> np.ndarray:
    similar = _unit(queries) @ _unit(index).T
    np.fill_diagonal(similar, -np.inf)
    return similar


def migrate(vectors: Vectors, pairs: int, draw: int, options: Options) -> Cell:
    """Documents before the right one by method, for each query, and what the gate foretold."""
    rng = np.random.default_rng((options.seed, pairs, draw))
    both = rng.permutation(len(vectors.old))[:pairs]
    old, new = vectors.old[both], vectors.new[both]
    cell = {
        method: rank_right(vectors.queries, fit(old, new)(vectors.old), vectors.right)
        for method, fit in list_methods(options.scale, pairs).items()
    }
    return cell | {GATE: np.array(foretell(vectors, both))}


def main(options: Options) -> None:
    scale = options.scale
    vectors = embed(options.out / "cache", queries=500 if options.quick else 2000)
    queries, right = vectors.queries, vectors.right
    own = measure(rank_right(queries, vectors.new, right))
    kept: dict[str, dict[int, list[np.ndarray]]] = {}
    gates: dict[int, list[list[float]]] = {}
    work = [(pairs, draw) for pairs in PAIRS[scale] for draw in range(DRAWS[scale])]
    made_by = hashlib.sha256(f"{scale} {options.seed} {fingerprint(Path(__file__))}".encode())
    for array in vectors[:4]:
        made_by.update(array.tobytes())
    for pairs, draw in track(work, description="pairs and draws", transient=True):
        path = options.out / NAME / f"cell-{made_by.hexdigest()[:12]}-{pairs}-{draw}.npz"
        cell = keep(path, functools.partial(migrate, vectors, pairs, draw, options))
        gates.setdefault(pairs, []).append(cell.pop(GATE).tolist())
        for method, ranks in cell.items():
            kept.setdefault(method, {}).setdefault(pairs, []).append(measure(ranks))
    rows = [
        Row(
            f"{measured} of the new model's own index, %",
            ours=f"{100 * own[:, i].mean():.1f}",
            note=f"{len(queries):,} queries, {len(vectors.new):,} documents.",
        )
        for i, measured in enumerate(MEASURES)
    ]
    values: dict[str, Any] = {"own": own.mean(axis=0).tolist(), "kept": {}, "gate": gates}
    for pairs in PAIRS[scale]:
        told = {m: [share_kept(f, own) for f in by[pairs]] for m, by in kept.items() if pairs in by}
        values["kept"][pairs] = {m: np.mean(v, axis=0).tolist() for m, v in told.items()}
        ours, theirs = (np.stack(kept[m][pairs])[..., 2] for m in (ALIGN, RIDGE))
        share, lead = (estimate_kept(found, own[:, 2]) for found in (ours, ours - theirs))
        note = "; ".join(
            f"{m} {v[0]:.1f}/{v[1]:.1f}/{v[2]:.1f}" for m, v in values["kept"][pairs].items()
        )
        rows.append(
            Row(
                f"nDCG@10 that align keeps with {pairs:,} pairs, %",
                ours=f"{share.value:.1f}",
                interval=f"[{max(0.0, share.low):.1f}, {share.high:.1f}]",
                verdict=(
                    f"{judge(lead.low, lead.high)}: "
                    f"{lead.value:+.1f} [{lead.low:+.1f}, {lead.high:+.1f}]; "
                    f"foretold from the pairs alone: {tell_gate(gates[pairs])}"
                ),
                note=f"Kept of R@1/R@10/nDCG@10: {note}.",
            )
        )
    least, most = PAIRS[scale][0], PAIRS[scale][-1]
    first, last = (values["kept"][pairs][ALIGN][2] for pairs in (least, most))
    less = f"{DRAWS[scale]} of {DRAWS['full']} draws"
    if scale == "default":
        less += ", at most 1,000 of 4,000 pairs, no lifts"
    finish(
        options,
        NAME,
        title="A new embedding model: how much of its retrieval an old index keeps",
        summary=(
            f"{vectors.encoders}: the migrated index keeps {first:.1f} % of the new model's own "
            f"nDCG@10 with {least:,} pairs, {last:.1f} % with {most:,}."
            + ("" if "MiniLM" in vectors.encoders else f" {INSTALL}.")
        ),
        rows=reduce(rows, less if scale == "default" else ""),
        less=less,
        figures={f"{NAME}.png": draw_curves(values, PAIRS[scale])},
        values=values,
        config={"encoders": vectors.encoders, "draws": DRAWS[scale], "queries": len(queries)},
    )


def tell_gate(gate: list[list[float]]) -> str:
    least, most = 100 * np.mean(gate, axis=0)
    return f"{least:.0f} to {most:.0f}"


def share_kept(found: np.ndarray, own: np.ndarray) -> np.ndarray:
    return 100 * found.mean(axis=0) / own.mean(axis=0)


def estimate_kept(found: np.ndarray, own: np.ndarray) -> Estimate:
    """Sum over queries of what is found, in percent of that of the new model's own index.

    Of shape ``(draws, queries)``; queries are a sample of the numerator and of the denominator, so
    the interval is that of the ratio's linear part.
    """
    share = found.mean() / own.mean()
    each = 100 * (share + (found - share * own) / own.mean())
    return estimates.estimate_crossed(each) if len(each) > 1 else estimates.estimate_mean(each[0])


def judge(low: float, high: float) -> str:
    if low > 0:
        return "more than ridge regression"
    return "less than ridge regression" if high < 0 else "not told apart from ridge regression"


def draw_curves(values: dict[str, Any], pairs: tuple[int, ...]) -> tuple:
    methods = [m for m in values["kept"][pairs[0]] if m in values["kept"][pairs[-1]]]
    panels = [
        Panel(
            measured,
            [float(p) for p in pairs],
            "pairs embedded by both models",
            "kept (%)",
            {m: np.array([[values["kept"][p][m][i] for p in pairs]]) for m in methods}
            | (
                {
                    f"foretold, at {end}": 100
                    * np.array([[np.mean([g[e] for g in values["gate"][p]]) for p in pairs]])
                    for e, end in enumerate(("least", "most"))
                }
                if measured == "nDCG@10"
                else {}
            ),
            log_x=True,
        )
        for i, measured in enumerate(MEASURES)
    ]
    return plot_panels(panels), (
        "Share of the new model's own retrieval that the migrated index keeps, over the number of "
        "pairs, and what the gate foretold."
    )


if __name__ == "__main__":
    start(main, Options, __doc__, bits=32)
