"""Which alignment to use: held-out retrieval of ``align`` and its rivals on pairs of real views.

Command:  UTD_MHAD_ROOT=<folder> python experiments/alignment_study.py [--quick | --full]
          [--out results] [--root <folder>]
Time:     not timed by itself: two splits had not ended after 30 minutes on 2 cores beside other
          work, the default is one (--quick, one pair of views, 160 s; --full, 20 splits, hours)
Expect:   ``align`` at or above the best baseline by hindsight on every pair, but for noise; stated
          probabilities within a few points of what comes true

Every method sees the same pairs of rows and is asked for the partners of others. Baselines get what
``align`` does not: their number of dimensions and their metric are those that turn out best on the
rows they are tested on. Pairs come with scikit-learn (halves of handwritten digits, groups of
measurements of tumours, neighbouring patches and colours of a photograph), from two embeddings of
texts (200 pairs to fit), and from UTD-MHAD: two views each, skeleton and depth as one side against
the sensor, and subjects that were not fitted. Wide views baselines get in the span of the training
rows, sides of two views as one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from _kit.options import start
from _kit.report import Row, reduce
from _kit.rows import estimate_hits, finish
from _texts import embed
from _transfer_data import TARGET, TransferOptions, read_clips, thin
from rich.progress import track
from sklearn import datasets

import perfalign_jax as pa
from perfalign_jax import baselines, contrastive, kernels, lift
from perfalign_jax.plotting import Panel, plot_panels

NAME = "alignment_study"
ALIGN, LINEAR = "align", "align, linear"
ALL_SPLITS, ALL_PAIRS = 20, 13
ONE = "tumours, mean and worst"
SPLITS = {"quick": 1, "default": 1, "full": ALL_SPLITS}
MOST_TRAIN, MOST_TEST = 800, 400
RIDGE = 0.1  # of baselines that need one given
MISSING, WRONG = (0.0, 0.2, 0.4), (0.0, 0.1, 0.2, 0.4)
Views = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two sides, of a view or more each, and which rows belong to one subject."""

    sides: tuple[Views, ...]
    groups: np.ndarray | None = None
    most: int = MOST_TRAIN  # pairs to fit

    @property
    def views(self) -> Views:
        """All views, side by side."""
        return tuple(x for side in self.sides for x in side)

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """Which views each side has."""
        first = len(self.sides[0])
        return tuple(range(first)), tuple(range(first, len(self.views)))

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit and rows to be asked about; of other subjects where there are any."""
        n, rng = len(self.views[0]), np.random.default_rng(seed)
        order = rng.permutation(n)
        if self.groups is None:
            test = min(MOST_TEST, n // 3)
            return order[test : test + self.most], order[:test]
        out = rng.permutation(np.unique(self.groups))[:2]
        held = np.isin(self.groups[order], out)
        return order[~held][: self.most], order[held][:MOST_TEST]

    def joined(self, rows: np.ndarray) -> Views:
        """Rows with every side in one array, as baselines take them."""
        return tuple(np.concatenate([x[rows] for x in side], axis=1) for side in self.sides)


def load_pairs(options: TransferOptions) -> dict[str, Pair]:
    """Pairs of real views by name."""
    digits = datasets.load_digits().images
    tumours = datasets.load_breast_cancer().data
    mean, error, worst = tumours[:, :10], tumours[:, 10:20], tumours[:, 20:]
    photo = datasets.load_sample_image("china.jpg").astype(float) / 255
    patches = np.stack(
        [photo[y : y + 8, x : x + 16] for y in range(0, 416, 10) for x in range(0, 620, 20)]
    )
    grey = patches.mean(axis=3)
    pairs = {ONE: Pair(((mean,), (worst,)))}
    if not options.quick:
        pairs |= {
            "digits, left and right half": Pair(((digits[:, :, :4],), (digits[:, :, 4:],))),
            "digits, upper and lower half": Pair(((digits[:, :4],), (digits[:, 4:],))),
            "tumours, mean and error": Pair(((mean,), (error,))),
            "tumours, error and worst": Pair(((error,), (worst,))),
            "photo, neighbouring patches": Pair(((grey[:, :, :8],), (grey[:, :, 8:],))),
            "photo, red and blue": Pair(((patches[:, :, :8, 0],), (patches[:, :, :8, 2],))),
        }
        vectors = embed(options.out / "cache")
        pairs["texts, two embeddings"] = Pair(((vectors.old,), (vectors.new,)), most=200)
        _, recordings, series, _, _ = read_clips(options, modalities=(TARGET, "skeleton", "depth"))
        flat = thin(series)
        skeleton, depth, sensor = (flat[m] for m in ("skeleton", "depth", TARGET))
        named = {
            "skeleton and sensor": Pair(((skeleton,), (sensor,))),
            "depth and sensor": Pair(((depth,), (sensor,))),
            "skeleton and depth": Pair(((skeleton,), (depth,))),
            "skeleton with depth, and sensor": Pair(((skeleton, depth), (sensor,))),
            "the same, other subjects": Pair(((skeleton, depth), (sensor,)), recordings.subjects),
        }
        pairs |= {f"UTD-MHAD, {name}": pair for name, pair in named.items()}
    return {
        name: dataclasses.replace(
            pair,
            sides=tuple(
                tuple(x.reshape(len(x), -1).astype(np.float32) for x in side) for side in pair.sides
            ),
        )
        for name, pair in pairs.items()
    }


def in_span(train: Views, test: Views) -> tuple[Views, Views]:
    """Wide views in the span of the training rows: as many features as rows, nothing lost."""
    done: list[tuple[np.ndarray, np.ndarray]] = []
    for x, new in zip(train, test, strict=True):
        if x.shape[1] <= len(x):
            done.append((x, new))
            continue
        center = x.mean(axis=0)
        fitted = lift.fit_span(x - center)
        cut = [np.asarray(lift.apply(fitted, part - center)) for part in (x, new)]
        done.append((cut[0], cut[1]))
    return tuple(a for a, _ in done), tuple(b for _, b in done)


def hits_of_search(
    alignment: Any, test: Views, places: tuple[tuple[int, ...], ...] = ((0,), (1,))
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of ways in which each row finds its partner first; stated probabilities, outcomes."""
    own = np.arange(len(test[0]))
    first, second = ({m: test[m] for m in side} for side in places)
    ways = [pa.search(alignment, a, b, top=1) for a, b in ((first, second), (second, first))]
    right = np.stack([np.asarray(found.indices)[:, 0] == own for found in ways])
    stated = np.stack([np.asarray(found.probability) for found in ways])
    return right.mean(axis=0), stated.ravel(), right.ravel()


def hits_of_latents(z1: Any, z2: Any, metric: str) -> np.ndarray:
    a, b = (np.asarray(z, np.float64) for z in (z1, z2))
    if metric == "cosine":
        a, b = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-30) for z in (a, b))
    distances = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    own = np.arange(len(a))
    return ((distances.argmin(axis=1) == own).astype(float) + (distances.argmin(axis=0) == own)) / 2


def by_hindsight(alignments: list[Any], test: Views) -> np.ndarray:
    """Hits of the best of some alignments, numbers of dimensions and metrics on the test rows."""
    tried = []
    for alignment in alignments:
        z1, z2 = (np.asarray(z) for z in pa.transform(alignment, test))
        for k in sorted({min(k, alignment.k) for k in (4, 8, 16, 32, 64, 256)}):
            cut = z1[:, :k], z2[:, :k]
            tried += [hits_of_latents(*cut, metric) for metric in ("euclidean", "cosine")]
    return max(tried, key=np.mean)


def list_baselines(seed: int) -> dict[str, Callable[[Views], list[Any]]]:
    def most(views: Views) -> int:
        """Dimensions that every training set of the cross-validation has room for."""
        folds = np.arange(len(views[0])) % 5
        parts = [x[folds != fold] for x in views for fold in range(5)]
        ranks = [np.linalg.matrix_rank(x - x.mean(axis=0), rtol=1e-4) for x in parts]
        return min(*ranks, 64)

    def train(views: Views, lifts: Any) -> Any:
        key = jax.random.key(seed)
        k = min(most(views), 32)
        return contrastive.train_linear_contrastive(key, views, k=k, steps=300, lifts=lifts)[0]

    def scaled(views: Views) -> Views:
        return tuple(np.asarray(lift.apply(lift.fit_standardise(x), x)) for x in views)

    return {
        "perfect alignment (the paper)": lambda v: [
            pa.fit(v, k=most(v), select="energy", center=True, check=False)
        ],
        "ridge CCA, cross-validated": lambda v: [
            baselines.ridge_cca_cv(v, k=min(8, most(v))),
            baselines.ridge_cca_cv(v, k=most(v)),
        ],
        "kernel CCA": lambda v: [
            baselines.kernel_cca(v, k=min(32, len(v[0]) - 1), ridge=r) for r in (0.01, 0.1)
        ],
        "ridge regression": lambda v: [baselines.ridge_regression(v, ridge=RIDGE, center=True)],
        "Procrustes": lambda v: [baselines.procrustes(v, center=True)],
        "linear contrastive": lambda v: [baselines.linear_contrastive(v, k=most(v), center=True)],
        "InfoNCE": lambda v: [train(v, None)],
        "InfoNCE on the same lifts": lambda v: [
            train(v, tuple(kernels.fit_nystroem(x) for x in v))
        ],
    }


def standardised(train: Views, test: Views) -> tuple[Views, Views]:
    fitted = [lift.fit_standardise(x) for x in train]
    first, second = (
        tuple(np.asarray(lift.apply(f, x)) for f, x in zip(fitted, views, strict=True))
        for views in (train, test)
    )
    return first, second


def judge(low: float, high: float) -> str:
    """What the interval of a paired difference of R@1 says."""
    if low > 0:
        return "above every baseline"
    return "below the best baseline" if high < 0 else "as good as the best baseline"


def calibration_error(stated: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Mean distance of stated probability and share of right answers over bins, in points."""
    place = np.minimum((stated * bins).astype(int), bins - 1)
    gaps = [
        (place == b).mean() * abs(stated[place == b].mean() - right[place == b].mean())
        for b in range(bins)
        if (place == b).any()
    ]
    return 100 * float(np.sum(gaps))


def damage(pair: Pair, seeds: range) -> dict[str, dict[float, list[float]]]:
    """R@1 in percent where views are missing or pairs are wrong, by share and split."""
    found: dict[str, dict[float, list[float]]] = {
        "missing views": {s: [] for s in MISSING},
        "wrong pairs, looked for": {s: [] for s in WRONG},
        "wrong pairs, not looked for": {s: [] for s in WRONG},
    }
    for seed in seeds:
        rows, test = pair.split(seed)
        train, held = (tuple(x[part] for x in pair.views) for part in (rows, test))
        rng = np.random.default_rng(1000 + seed)
        for share in MISSING:
            mask = rng.random((len(rows), len(train))) >= share
            mask[mask.sum(axis=1) == 0] = True
            alignment = pa.align(train, mask=mask, lift="linear")
            found["missing views"][share].append(100 * hits_of_search(alignment, held)[0].mean())
        for share in WRONG:
            wrong = rng.permutation(len(rows))[: int(share * len(rows))]
            second = train[1].copy()
            second[wrong] = np.roll(second[wrong], 1, axis=0)
            for name, flag in (("looked for", True), ("not looked for", False)):
                alignment = pa.align((train[0], second), lift="linear", wrong_pairs=flag)
                recall = 100 * hits_of_search(alignment, held)[0].mean()
                found[f"wrong pairs, {name}"][share].append(recall)
    return found


def main(options: TransferOptions) -> None:
    seeds = range(options.seed, options.seed + SPLITS[options.scale])
    pairs = load_pairs(options)
    hits: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in pairs}
    stated, right = [], []
    for name, pair in track(pairs.items(), description="pairs of views", transient=True):
        for seed in seeds:
            chosen, test = pair.split(seed)
            train, held = (tuple(x[part] for x in pair.views) for part in (chosen, test))
            groups = None if pair.groups is None else pair.groups[chosen]
            for method in (ALIGN, LINEAR):
                alignment = pa.align(
                    train,
                    sides=pair.places,
                    lift="auto" if method == ALIGN else "linear",
                    groups=groups,
                )
                own, said, true = hits_of_search(alignment, held, pair.places)
                hits[name].setdefault(method, []).append(own)
                if method == ALIGN:
                    stated.append(said)
                    right.append(true)
            train, held = standardised(*in_span(pair.joined(chosen), pair.joined(test)))
            for method, fit in list_baselines(seed).items():
                own = by_hindsight(fit(train), held)
                hits[name].setdefault(method, []).append(own)
    means = {
        name: {
            method: 100 * float(np.mean([h.mean() for h in each])) for method, each in by.items()
        }
        for name, by in hits.items()
    }
    rows, gains = [], []
    for name, by in hits.items():
        rivals = [method for method in by if method not in (ALIGN, LINEAR)]
        best = max(rivals, key=means[name].__getitem__)
        entry, gain = estimate_hits(by[ALIGN]), estimate_hits(by[ALIGN], against=by[best])
        gains.append(gain["value"])
        note = "; ".join(f"{method} {value:.1f}" for method, value in means[name].items())
        rows.append(
            Row(
                f"{name}: R@1 of align, %",
                ours=f"{entry['value']:.1f}",
                interval=f"[{entry['low']:.1f}, {entry['high']:.1f}]",
                verdict=(
                    f"{judge(gain['low'], gain['high'])}: {gain['value']:+.1f} "
                    f"[{gain['low']:+.1f}, {gain['high']:+.1f}] against {best} by hindsight"
                ),
                note=note,
            )
        )
    averages = {
        m: float(np.mean([by[m] for by in means.values()])) for m in means[next(iter(means))]
    }
    rows.insert(
        0,
        Row(
            "all pairs of views, mean R@1 of align, %",
            ours=f"{averages[ALIGN]:.1f}",
            verdict=f"{min(gains):+.1f} points against the best baseline on the worst pair",
            note="; ".join(f"{method} {value:.1f}" for method, value in averages.items()),
        ),
    )
    said, true = np.concatenate(stated), np.concatenate(right)
    rows.append(
        Row(
            "stated probability of the best candidate, calibration error, points",
            ours=f"{calibration_error(said, true):.1f}",
            note=f"{len(said):,} searches; {true.mean():.1%} were right, {said.mean():.1%} stated.",
        )
    )
    hurt = damage(pairs[ONE], seeds)
    for what, by_share in hurt.items():
        text = ", ".join(f"{share:.0%}: {np.mean(v):.1f}" for share, v in by_share.items())
        rows.append(Row(f"{ONE}: R@1 by share of {what}, %", ours=text))
    less = f"{len(seeds)} of {ALL_SPLITS} splits, {len(pairs)} of {ALL_PAIRS} pairs of views"
    finish(
        options,
        NAME,
        title="Which alignment to use: retrieval of held-out rows on pairs of real views",
        summary=(
            f"{len(pairs)} pairs of views, {len(seeds)} splits each, up to {MOST_TRAIN} pairs to "
            f"fit. Mean R@1: align {averages[ALIGN]:.1f}, linear {averages[LINEAR]:.1f}, the "
            f"paper's method {averages['perfect alignment (the paper)']:.1f}, cross-validated "
            f"ridge CCA {averages['ridge CCA, cross-validated']:.1f} % "
            "(baselines with dimensions and metric by hindsight). Use fit where views are free of "
            "noise or have more independent features than pairs and exactness is the point; align "
            "for everything else; neither where align says that no axis agrees on held-out rows."
        ),
        rows=reduce(rows, less if options.scale == "default" else ""),
        less=less,
        figures={f"{NAME}.png": draw(hurt, said, true)},
        values={"means": means, "averages": averages, "damage": hurt},
        config={"splits": len(seeds), "pairs": list(pairs)},
    )


def draw(hurt: dict[str, Any], said: np.ndarray, true: np.ndarray) -> tuple:
    place = np.minimum((said * 10).astype(int), 9)
    bins = [b for b in range(10) if (place == b).sum() > 4]
    middle = np.array([100 * said[place == b].mean() for b in bins])
    shares = np.array([100 * true[place == b].mean() for b in bins])
    curves = {what: np.array(list(by.values())).T for what, by in hurt.items()}
    missing = {"linear, EM": curves.pop("missing views")}
    wrong = {what.removeprefix("wrong pairs, "): values for what, values in curves.items()}
    recall = "R@1 of held-out rows (%)"
    panels = [
        Panel(
            "Do stated probabilities come true?",
            middle.tolist(),
            "stated probability of the best (%)",
            "share that is right (%)",
            {"all pairs of views": shares[None]},
            theory={"all pairs of views": middle},
        ),
        Panel("Missing views", [100 * s for s in MISSING], "missing (%)", recall, missing),
        Panel("Wrong pairs", [100 * s for s in WRONG], "wrong (%)", recall, wrong),
    ]
    return plot_panels(panels), (
        "Share of best candidates that are right over their stated probability, all pairs of views "
        "(dashed: as stated); R@1 over the share of missing views and of wrong pairs."
    )


if __name__ == "__main__":
    start(main, TransferOptions, __doc__, bits=32)
