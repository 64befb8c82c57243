"""Which alignment to use: held-out retrieval of ``align`` and its rivals on pairs of real views.

Command:  UTD_MHAD_ROOT=<folder> python experiments/alignment_study.py [--quick | --full]
          [--out results] [--root <folder>] [--no-resume] [--splits N]
Time:     11 minutes on 2 cores for one split, the default, most of it compilation; 5 for each more
          (--quick, one pair of views, 2 minutes; --full, 20 splits, 2 hours)
Expect:   ``align`` at or above the best baseline by hindsight on every pair, but for noise and for
          InfoNCE on one of the three pairs of measurements of tumours; stated probabilities within
          a few points of what comes true

Every method sees the same pairs of rows and is asked for the partners of others. Baselines get what
``align`` does not: their number of dimensions and their metric are those that turn out best on the
rows they are tested on. Pairs come with scikit-learn (halves of handwritten digits, groups of
measurements of tumours, neighbouring patches and colours of a photograph), from two embeddings of
texts (200 pairs to fit), and from UTD-MHAD (random-convolution features, of simulated recordings
where it is not there): two views each, skeleton and depth as one side against the sensor, and
subjects that were not fitted. Wide views baselines
get in the span of the training rows, sides of two views as one.

What is finished of a pair and split is kept in ``<out>/alignment_study``, and taken up by the same
code: an interrupted run goes on where it stopped, a longer one takes up a shorter one's. Seconds
include the compilation of what was not compiled before, so only many splits tell how long a fit
takes.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.stats
from _kit.cells import Cell, fingerprint, keep
from _kit.options import start
from _kit.report import Row, reduce
from _kit.rows import finish
from _texts import embed
from _transfer_data import TARGET, TransferOptions, convolve, read_clips
from rich.progress import track
from sklearn import datasets

import perfalign_jax as pa
from perfalign_jax import baselines, contrastive, kernels, lift
from perfalign_jax.har.protocol import estimates
from perfalign_jax.har.protocol.estimates import Estimate
from perfalign_jax.plotting import Panel, plot_panels

NAME = "alignment_study"
ALIGN, LINEAR, RAW = "align", "align, linear", "raw"
PAPERS, CV = "perfect alignment (the paper)", "ridge CCA, cross-validated"
ENERGY = "perfect alignment, directions of most energy"
ALL_SPLITS, ALL_PAIRS = 20, 13
ONE = "tumours, mean and worst"
SPLITS = {"quick": 1, "default": 1, "full": ALL_SPLITS}
MOST_TRAIN, MOST_TEST = 800, 400
RIDGE = 0.1  # of baselines that need one given
MISSING, WRONG = (0.0, 0.2, 0.4), (0.0, 0.1, 0.2, 0.4)
Views = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class StudyOptions(TransferOptions):
    """Options of this study.

    Attributes:
        resume: take what an earlier run left in ``<out>/alignment_study``; otherwise start afresh.
        splits: how many, if not as many as the size of the run says.
    """

    resume: bool = True
    splits: int | None = None


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


def load_pairs(options: StudyOptions) -> tuple[dict[str, Pair], dict[str, str]]:
    """Pairs of real views by name, and what texts and recordings they come from."""
    come_from: dict[str, str] = {}
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
        modalities = TARGET, "skeleton", "depth"
        data, recordings, series, _, _ = read_clips(options, modalities=modalities)
        come_from = {"texts": vectors.encoders, "recordings": data}
        features = convolve(series, options, seed=options.seed)
        skeleton, depth, sensor = (features[m] for m in ("skeleton", "depth", TARGET))
        named = {
            "skeleton and sensor": Pair(((skeleton,), (sensor,))),
            "depth and sensor": Pair(((depth,), (sensor,))),
            "skeleton and depth": Pair(((skeleton,), (depth,))),
            "skeleton with depth, and sensor": Pair(((skeleton, depth), (sensor,))),
            "the same, other subjects": Pair(((skeleton, depth), (sensor,)), recordings.subjects),
        }
        pairs |= {f"{data}, {name}": pair for name, pair in named.items()}
    kept = {
        name: dataclasses.replace(
            pair,
            sides=tuple(
                tuple(x.reshape(len(x), -1).astype(np.float32) for x in side) for side in pair.sides
            ),
        )
        for name, pair in pairs.items()
    }
    return kept, come_from


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


def ask(alignment: Any, test: Views, places: Iterable[tuple[int, ...]] = ((0,), (1,))) -> Cell:
    """Of held-out pairs, both ways: whether the partner comes first, and what is said of it.

    And the log-odds of every pair, and of every row with the partner of another.
    """
    own = np.arange(len(test[0]))
    first, second = ({m: test[m] for m in side} for side in places)
    ways = [pa.search(alignment, a, b, top=1) for a, b in ((first, second), (second, first))]
    right = np.stack([np.asarray(found.indices)[:, 0] == own for found in ways])
    shuffled = {m: np.roll(x, 1, axis=0) for m, x in second.items()}
    return {
        "hits": right.mean(axis=0),
        "stated": np.stack([np.asarray(found.probability) for found in ways]).ravel(),
        "right": right.ravel(),
        "odds": np.stack([pa.log_odds(alignment, first, x) for x in (second, shuffled)]),
    }


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


def most_dimensions(views: Views) -> int:
    """As many as every training set of the cross-validation has room for."""
    folds = np.arange(len(views[0])) % 5
    parts = [x[folds != fold] for x in views for fold in range(5)]
    ranks = [np.linalg.matrix_rank(x - x.mean(axis=0), rtol=1e-4) for x in parts]
    return min(*ranks, 64)


def list_baselines(seed: int, most: int) -> dict[str, Callable[[Views], list[Any]]]:
    def train(views: Views, lifts: Any) -> Any:
        key = jax.random.key(seed)
        k = min(most, 32)
        return contrastive.train_linear_contrastive(key, views, k=k, steps=300, lifts=lifts)[0]

    def scaled(views: Views) -> Views:
        return tuple(np.asarray(lift.apply(lift.fit_standardise(x), x)) for x in views)

    return {
        PAPERS: lambda v: [
            pa.fit(v, k=k, check=False) for k in sorted({min(k, most) for k in (4, 8, 16, 32, 64)})
        ],
        ENERGY: lambda v: [pa.fit(v, k=most, select="energy", center=True, check=False)],
        CV: lambda v: [baselines.ridge_cca_cv(v, k=k) for k in sorted({min(8, most), most})],
        "kernel CCA": lambda v: [
            baselines.kernel_cca(v, k=min(32, len(v[0]) - 1), ridge=r) for r in (0.01, 0.1)
        ],
        "ridge regression": lambda v: [baselines.ridge_regression(v, ridge=RIDGE, center=True)],
        "Procrustes": lambda v: [baselines.procrustes(v, center=True)],
        "linear contrastive": lambda v: [baselines.linear_contrastive(v, k=most, center=True)],
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
    return "below the best baseline" if high < 0 else "not told apart from the best baseline"


def calibration_error(stated: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Mean distance of stated probability and share of right answers over bins, in points."""
    place = np.minimum((stated * bins).astype(int), bins - 1)
    gaps = [
        (place == b).mean() * abs(stated[place == b].mean() - right[place == b].mean())
        for b in range(bins)
        if (place == b).any()
    ]
    return 100 * float(np.sum(gaps))


def measure(pair: Pair, seed: int) -> Cell:
    """Hits of every method on a split, seconds to fit, and what ``align`` says of its answers."""
    chosen, test = pair.split(seed)
    train, held = (tuple(x[part] for x in pair.views) for part in (chosen, test))
    groups = None if pair.groups is None else pair.groups[chosen]
    cell: Cell = {"rows": test if pair.groups is None else pair.groups[test]}
    lifts: tuple[tuple[str, Any], ...] = ((ALIGN, "auto"), (LINEAR, "linear"))
    for method, how in lifts:
        began = time.perf_counter()
        alignment = pa.align(train, sides=pair.places, lift=how, groups=groups)
        jax.block_until_ready(alignment.projections)
        cell[f"seconds, {method}"] = np.array(time.perf_counter() - began)
        found = ask(alignment, held, pair.places)
        cell[f"hits, {method}"] = found["hits"]
        if method == ALIGN:
            cell |= {name: found[name] for name in ("stated", "right", "odds")}
    joined = first, second = pair.joined(test)
    if first.shape[1] == second.shape[1]:
        hits = [hits_of_latents(first, second, metric) for metric in ("euclidean", "cosine")]
        cell[f"hits, {RAW}"] = max(hits, key=np.mean)
    train, held = in_span(*standardised(pair.joined(chosen), joined))
    for method, fit in list_baselines(seed, most_dimensions(train)).items():
        began = time.perf_counter()
        fitted = jax.block_until_ready(fit(train))
        cell[f"seconds, {method}"] = np.array(time.perf_counter() - began) / len(fitted)
        cell[f"hits, {method}"] = by_hindsight(fitted, held)
    return cell


def hide(n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mask of two views of which a share is missing, at most one in a row."""
    mask = np.ones((n, 2), bool)
    rows = rng.permutation(n)[: round(2 * share * n)]
    mask[rows, np.arange(len(rows)) % 2] = False
    return mask


def damage(pair: Pair, seed: int) -> Cell:
    """R@1 in percent where views are missing or pairs are wrong, by share."""
    rows, test = pair.split(seed)
    train, held = (tuple(x[part] for x in pair.views) for part in (rows, test))
    rng = np.random.default_rng(1000 + seed)
    found: dict[str, list[float]] = {}

    def recall(what: str, data: Views, **options: Any) -> None:
        hits = ask(pa.align(data, lift="linear", **options), held)["hits"]
        found.setdefault(what, []).append(100 * hits.mean())

    for share in MISSING:
        mask = hide(len(rows), share, rng)
        recall("missing views", train, mask=mask)
        both = mask.all(axis=1)
        recall("missing views, complete rows alone", tuple(x[both] for x in train))
    for share in WRONG:
        wrong = rng.permutation(len(rows))[: int(share * len(rows))]
        second = train[1].copy()
        second[wrong] = np.roll(second[wrong], 1, axis=0)
        for name, flag in (("looked for", True), ("not looked for", False)):
            recall(f"wrong pairs, {name}", (train[0], second), wrong_pairs=flag)
    return {what: np.array(values) for what, values in found.items()}


def bootstrap(values: list[np.ndarray], units: list[np.ndarray]) -> Estimate:
    """Mean over splits and rows in percent; its interval by resampling rows, or subjects.

    A row that several splits hold out is one unit, whatever it gives in each: splits share rows.
    Subjects are too few to be drawn again: theirs is Student's t over their means.
    """
    each, unit = np.concatenate(values), np.unique(np.concatenate(units), return_inverse=True)[1]
    sums, counts = np.bincount(unit, each), np.bincount(unit)
    mean = 100 * float(sums.sum() / counts.sum())
    if np.ptp(sums / counts) == 0:
        return Estimate(mean, mean, mean)
    if len(sums) < 30:
        return estimates.estimate_mean(100 * sums / counts)
    found = scipy.stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: 100 * s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high))


def compare(cells: list[Cell]) -> tuple[dict[str, float], str, Estimate, Estimate]:
    """Mean R@1 by method, the best baseline, R@1 of align, and its lead on that baseline."""
    units = [cell["rows"] for cell in cells]
    hits = {
        name.removeprefix("hits, "): [cell[name] for cell in cells]
        for name in cells[0]
        if name.startswith("hits, ")
    }
    means = {m: 100 * float(np.concatenate(each).mean()) for m, each in hits.items()}
    best = max((m for m in hits if m not in (ALIGN, LINEAR)), key=means.__getitem__)
    lead = [a - b for a, b in zip(hits[ALIGN], hits[best], strict=True)]
    return means, best, bootstrap(hits[ALIGN], units), bootstrap(lead, units)


def say(values: Mapping[str, float], digits: int = 1) -> str:
    return "; ".join(f"{name} {value:.{digits}f}" for name, value in values.items())


def run_all(
    options: StudyOptions, pairs: dict[str, Pair], seeds: range
) -> tuple[dict[str, list[Cell]], list[Cell]]:
    """All pairs and splits, split by split, and the damaged pair."""
    folder = options.out / NAME
    done: dict[str, list[Cell]] = {name: [] for name in pairs}
    hurt: list[Cell] = []
    jobs = [(name, seed) for seed in seeds for name in (*pairs, "")]
    made_by = fingerprint(Path(__file__))
    digests = {
        name: hashlib.sha256(
            b"".join([*(x.tobytes() for x in pair.views), repr((pair.most, made_by)).encode()])
        )
        for name, pair in pairs.items()
    }
    for name, seed in track(jobs, description="pairs of views", transient=True):
        pair, digest = pairs[name or ONE], digests[name or ONE].hexdigest()[:12]
        what = "cell" if name else "damage"
        subjects = "" if pair.groups is None else "-subjects"
        path = folder / f"{what}-{digest}{subjects}-{seed}.npz"
        job = functools.partial(measure if name else damage, pair, seed)
        cell = keep(path, job, resume=options.resume)
        (done[name] if name else hurt).append(cell)
    return done, hurt


def main(options: StudyOptions) -> None:
    seeds = range(options.seed, options.seed + (options.splits or SPLITS[options.scale]))
    pairs, come_from = load_pairs(options)
    done, damaged = run_all(options, pairs, seeds)
    rows, gains, means = [], [], {}
    for name, cells in done.items():
        means[name], best, own, lead = compare(cells)
        gains.append(lead.value)
        verdict = judge(lead.low, lead.high)
        rows.append(
            Row(
                f"{name}: R@1 of align, %",
                ours=f"{own.value:.1f}",
                interval=f"[{own.low:.1f}, {own.high:.1f}]",
                verdict=(
                    f"{verdict}: {lead.value:+.1f} [{lead.low:+.1f}, {lead.high:+.1f}] against "
                    f"{best}, dimensions and metric by hindsight"
                ),
                note=say(means[name]),
            )
        )
    methods = [m for m in means[ONE] if m != RAW]  # not all pairs have features in common
    averages = {m: float(np.mean([by[m] for by in means.values()])) for m in methods}
    rows.insert(
        0,
        Row(
            "all pairs of views, mean R@1 of align, %",
            ours=f"{averages[ALIGN]:.1f}",
            verdict=f"{min(gains):+.1f} points against the best baseline on the worst pair",
            note=say(averages),
        ),
    )
    every = [cell for cells in done.values() for cell in cells]
    said, true = (np.concatenate([cell[name] for cell in every]) for name in ("stated", "right"))
    rows.append(
        Row(
            "stated probability of the best candidate, calibration error, points",
            ours=f"{calibration_error(said, true):.1f}",
            note=f"{len(said):,} searches; {true.mean():.1%} were right, {said.mean():.1%} stated.",
        )
    )
    odds = np.concatenate([cell["odds"] for cell in every], axis=1)
    probability, is_pair = 1 / (1 + np.exp(-odds.ravel())), np.repeat([True, False], odds.shape[1])
    rows.append(
        Row(
            "probability by the log-odds that two rows are a pair, calibration error, points",
            ours=f"{calibration_error(probability, is_pair):.1f}",
            note=f"{odds.shape[1]:,} right pairs and as many wrong ones.",
        )
    )
    seconds = {
        m: float(np.median([[c[f"seconds, {m}"] for c in cells] for cells in done.values()]))
        for m in methods
    }
    note = f"{say(seconds)}. Baselines without the standardising, which align does itself."
    rows.append(Row("seconds to fit, median", ours=f"{seconds[ALIGN]:.1f}", note=note))
    hurt = {what: np.stack([cell[what] for cell in damaged]) for what in damaged[0]}
    for what, values in hurt.items():
        shares = MISSING if "missing" in what else WRONG
        told = zip(shares, values.mean(axis=0), strict=True)
        text = ", ".join(f"{share:.0%}: {value:.1f}" for share, value in told)
        rows.append(Row(f"{ONE}: R@1 by share of {what}, %", ours=text))
    less = f"{len(seeds)} of {ALL_SPLITS} splits, {len(done)} of {ALL_PAIRS} pairs of views"
    finish(
        options,
        NAME,
        title="Which alignment to use: retrieval of held-out rows on pairs of real views",
        summary=(
            f"{len(done)} pairs of views, {len(seeds)} split(s) each, up to {MOST_TRAIN} pairs to "
            f"fit. Mean R@1: align {averages[ALIGN]:.1f}, linear {averages[LINEAR]:.1f}, "
            f"cross-validated ridge CCA {averages[CV]:.1f}, the paper's method "
            f"{averages[PAPERS]:.1f}, its null space by most energy {averages[ENERGY]:.1f} % "
            "(baselines with dimensions and metric by hindsight). Use fit "
            "where views are free of noise or have more independent features than pairs and "
            "exactness is the point; align for everything else; neither where align says that no "
            "axis agrees on held-out rows."
        ),
        rows=reduce(rows, "" if options.quick or len(seeds) >= ALL_SPLITS else less),
        less=less,
        figures={f"{NAME}.png": draw(hurt, said, true)},
        values={
            "means": means,
            "averages": averages,
            "seconds": seconds,
            "damage": {what: values.tolist() for what, values in hurt.items()},
        },
        config={"splits": len(seeds), "pairs": list(done)} | come_from,
    )


def draw(hurt: dict[str, np.ndarray], said: np.ndarray, true: np.ndarray) -> tuple:
    place = np.minimum((said * 10).astype(int), 9)
    bins = [b for b in range(10) if (place == b).sum() > 4]
    middle = np.array([100 * said[place == b].mean() for b in bins])
    shares = np.array([100 * true[place == b].mean() for b in bins])
    missing = {
        "all rows": hurt["missing views"],
        "complete rows alone": hurt["missing views, complete rows alone"],
    }
    wrong = {
        what.removeprefix("wrong pairs, "): values
        for what, values in hurt.items()
        if "wrong" in what
    }
    recall = "R@1 of held-out rows (%)"
    panels = [
        Panel(
            "Do stated probabilities come true?",
            middle.tolist(),
            "stated probability of the best (%)",
            "share that is right (%)",
            {"all pairs of views": shares[None]},
            theory={"as stated": middle},
        ),
        Panel("Missing views", [100 * s for s in MISSING], "views missing (%)", recall, missing),
        Panel("Wrong pairs", [100 * s for s in WRONG], "wrong (%)", recall, wrong),
    ]
    return plot_panels(panels), (
        "Share of best candidates that are right over their stated probability, all pairs of views "
        "(black: as stated); R@1 over the share of missing views and of wrong pairs."
    )


if __name__ == "__main__":
    start(main, StudyOptions, __doc__, bits=32)
