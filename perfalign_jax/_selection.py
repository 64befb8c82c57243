"""Choosing a setting by how well rows find their partners in folds that it was not fitted to.

A setting is a lift, a ridge and a number of axes. Folds are moments, so a ridge costs arithmetic
only; the rows that choose, at most 2,000, are looked at again.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from perfalign_jax import _checks, _folds, evidence, kernels, solver
from perfalign_jax._folds import Folds, Tried
from perfalign_jax._numerics import compiled, cores, namespace, over
from perfalign_jax.lift import Lift, Standardise
from perfalign_jax.types import Choice, Trial

__all__ = [
    "AXES",
    "LIKELY",
    "RIDGES",
    "Candidate",
    "Plan",
    "Sides",
    "add_lengths",
    "all_pairs",
    "choose",
    "count_hits",
    "fit_lifts",
    "ladder",
    "lift_sides",
    "list_lifts",
    "list_pairs",
    "most_axes",
    "plan_rows",
    "take_rows",
    "try_features",
    "try_lifts",
    "variances_of",
]

RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
FACTORS = (0.7, 1.0, 1.5)  # of the median distance, as the bandwidth of a kernel
_LANDMARKS = 2000
AXES = 512  # looked for at most
_ROWS = 2000  # held-out rows that choose
_NONE_LEFT = 0.05  # of all weight, where a single row has more
_ALIKE = 0.01  # nats: partners whose probability differs by one percent are as probable
LIKELY = 200  # of them in each fold, for the likelihood
Sides = tuple[tuple[int, ...], ...]


class Candidate(NamedTuple):
    """Lifted views, and the moments of their folds."""

    name: str
    lifts: tuple[Lift, ...]
    features: tuple[Float[Any, "n _"], ...]  # of each side
    folds: Folds
    tried: Tried
    hits: Float[np.ndarray, "l k f b"]
    unit: bool = False  # rows compared at one length


class Plan(NamedTuple):
    """Which rows are in which fold, and which of them choose."""

    order: Int[np.ndarray, "f b"]  # rows of each fold, filled up with -1
    thin: Int[np.ndarray, "f c"]  # places in it of those that choose
    chosen: Int[np.ndarray, "f c"]  # their rows, filled up with -1
    seen: Bool[np.ndarray, "s f c"]  # which sides these rows have
    n: int


def plan_rows(
    n: int, folds: int, groups: Any, sides: int, have: Bool[np.ndarray, "n s"] | None = None
) -> Plan:
    """Rows of every fold; to choose, at most 2,000 of those that have two sides."""
    if groups is None:
        if n < 2 * folds:
            raise ValueError(
                f"data must have at least 2 rows for each of the {folds} folds, got {n}; give "
                "more rows or fewer folds."
            )
        parts = [np.arange(f, n, folds) for f in range(folds)]
    else:
        try:
            _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
        except TypeError as error:
            raise TypeError(f"groups must be of one kind, numbers or words: {error}.") from None
        if len(counts) < folds:
            raise ValueError(
                f"groups must have at least folds = {folds} different values, got {len(counts)}."
            )
        # The largest first, each to the fold with fewest rows so far.
        home, sizes = np.zeros(len(counts), int), np.zeros(folds, int)
        for group in np.argsort(-counts, kind="stable"):
            home[group] = np.argmin(sizes)
            sizes[home[group]] += counts[group]
        parts = [np.flatnonzero(home[number] == f) for f in range(folds)]
        if min(map(len, parts)) < 2:
            raise ValueError("groups must leave at least two rows in every fold, got fewer.")
    order = np.full((folds, max(map(len, parts))), -1)
    for row, part in zip(order, parts, strict=True):
        row[: len(part)] = part
    useful = order >= 0
    if have is not None:
        useful &= (have.sum(axis=1) > 1)[order]
    few = int(useful.sum(axis=1).max())
    if have is not None:  # few shapes, so few programs, for all masks
        few = min(-(-few // 64) * 64, order.shape[1])
    few = min(few, _ROWS // folds)
    thin = np.zeros((folds, few), int)
    chosen = np.full((folds, few), -1)
    for row, mask, places, rows in zip(order, useful, thin, chosen, strict=True):
        found = np.flatnonzero(mask)
        if len(found) > few:
            found = found[np.arange(few) * len(found) // few]
        places[: len(found)] = found
        rows[: len(found)] = row[found]
    seen = np.repeat((chosen >= 0)[None], sides, axis=0)
    if have is not None:
        seen &= np.moveaxis(have[chosen], -1, 0)
    return Plan(order, thin, chosen, seen, n)


def list_lifts(
    views: tuple[Any, ...], lift: Any, weights: Sequence[Any]
) -> list[tuple[str, tuple[Lift, ...]]]:
    """What to try; linear are features at their own spread and as they are."""
    pairs = list(zip(views, weights, strict=True))
    if lift is None:
        return [("none", fit_lifts(views, None, weights))]
    if not isinstance(lift, str):
        return [("given", tuple(lift))]
    found = []
    if lift in ("linear", "auto"):
        found = [
            (name, tuple(_fit_linear(x, w, floor) for x, w in pairs))
            for name, floor in (("none", 0.0), ("none, features as they are", np.inf))
        ]
    if lift != "linear":
        kernel = "gaussian" if lift == "auto" else lift
        for factor in FACTORS:
            name = f"{kernel}, bandwidth {factor:g} of the median distance"
            found.append((name, tuple(_fit_kernel(x, w, kernel, factor) for x, w in pairs)))
    return found


def fit_lifts(
    views: tuple[Any, ...], lift: Sequence[Lift] | None, weights: Sequence[Any]
) -> tuple[Lift, ...]:
    """Lifts where none are chosen: features at their own spread, or those that are given."""
    if lift is not None:
        return tuple(lift)
    return tuple(_fit_linear(x, w, 0.0) for x, w in zip(views, weights, strict=True))


def _fit_kernel(x: Any, w: Any, kernel: Any, factor: float) -> Lift:
    return kernels.nystroem_of(x, kernel, factor, _LANDMARKS, w)


def _fit_linear(x: Any, w: Any, floor: float) -> Lift:
    """Features at their own spread, or of one scale; of wide views what the rows span."""
    scaled = kernels.measure_spread(x, np.asarray(floor, x.dtype), w)
    return kernels.principal_of(scaled, x) if x.shape[1] > len(x) else scaled


def lift_sides(
    views: tuple[Any, ...], lifts: tuple[Lift, ...], places: Sides
) -> tuple[Float[Any, "n _"], ...]:
    lifted = [f._apply(x).astype(x.dtype, copy=False) for f, x in zip(lifts, views, strict=True)]
    if all(len(side) == 1 for side in places):
        return tuple(lifted[m] for (m,) in places)
    xp = namespace(lifted[0])
    return tuple(xp.concatenate([lifted[m] for m in side], axis=1) for side in places)


def most_axes(dims: tuple[int, ...], fitted: int, most: int) -> int:
    """No more axes than rows determine that are fitted while a fold is held out."""
    return max(1, min(*dims, fitted - 1, most))


def ladder(k: int, auto: bool) -> tuple[int, ...]:
    """Numbers of axes to try: all of them, and halves down to one."""
    return (k, *(k >> i for i in range(1, k.bit_length()))) if auto else (k,)


def try_lifts(
    views: tuple[Any, ...],
    name: str,
    lifts: tuple[Lift, ...],
    w: Any,
    ridges: tuple[Any, ...],
    places: Sides,
    plan: Plan,
    most: int,
    auto: bool,
) -> Candidate:
    """Hold every fold out under every ridge, and count which rows find their partners."""
    features = lift_sides(views, lifts, places)
    fitted = plan.n - plan.order.shape[1]
    k = most_axes(tuple(f.shape[1] for f in features), fitted, most)
    return try_features(name, lifts, features, w, ridges, plan, k, auto)


def try_features(
    name: str,
    lifts: tuple[Lift, ...],
    features: tuple[Any, ...],
    w: Any,
    ridges: tuple[Any, ...],
    plan: Plan,
    k: int,
    auto: bool,
) -> Candidate:
    folds = _folds.of_rows(features, plan.order, w)
    rows = take_rows(features, folds.mean, plan.chosen)
    tried = _folds.try_ridges(
        folds, rows, namespace(rows).asarray(ridges, rows.dtype), _folds.effective_rows(w), k=k
    )
    if _checks.is_traced(tried):
        return Candidate(name, lifts, features, folds, tried, np.zeros(()))
    hits = count_hits(tried, plan.seen, 0.0, ks=ladder(k, auto))
    return Candidate(name, lifts, features, folds, tried, np.asarray(hits, np.float64))


def add_lengths(candidates: list[Candidate], w: Any, plan: Plan, auto: bool) -> list[Candidate]:
    """Also with rows compared at one length, where that gains more than one standard error."""
    even = [_at_one_length(candidate, plan, auto) for candidate in candidates]
    share = _shares(w, plan)

    def best(group: list[Candidate]) -> np.ndarray:
        every = [each for one in group for each in one.hits.reshape(-1, *one.hits.shape[2:])]
        return max(every, key=lambda each: float((each * share).sum()))

    gain, error = _mean_and_error(best(even) - best(candidates), share)
    return [*candidates, *even] if gain > error else candidates


def _shares(w: Any, plan: Plan) -> Float[np.ndarray, "f c"]:
    """Weights of the rows that choose, which sum to one."""
    share = np.where(plan.seen.sum(axis=0) > 1, np.asarray(w, np.float64)[plan.chosen], 0)
    return share / max(share.sum(), 1e-300)


def _at_one_length(candidate: Candidate, plan: Plan, auto: bool) -> Candidate:
    ks = ladder(candidate.tried.covariances.shape[-1], auto)
    hits = count_hits(candidate.tried, plan.seen, 1.0, ks=ks)
    return candidate._replace(hits=np.asarray(hits, np.float64), unit=True)


@compiled()
def take_rows(features: tuple[Any, ...], mean: Any, chosen: Int[Any, "f c"]) -> Float[Any, "f c p"]:
    rows = namespace(mean).concatenate([x[chosen] for x in features], axis=-1)
    return rows - mean[None, None, :]


def variances_of(covariances: Float[Any, "s s k"]) -> Float[Any, "s k"]:
    return namespace(covariances).diagonal(covariances).T


def list_pairs(sides: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(sides) for b in range(a + 1, sides)]


@compiled("ks")
def count_hits(
    tried: Tried, seen: Any, unit: Any | float, *, ks: tuple[int, ...]
) -> Float[Any, "l k f b"]:
    """Share of ways and pairs of sides in which each held-out row finds its partner first."""

    xp = namespace(tried.rho)
    valid = _both_seen(seen)

    def one(rho: Any, *latents: Any) -> Any:
        def with_k(size: Any) -> Any:
            scores = _score_sides(rho, latents, size, unit)
            found = [_first(pair, both) for pair, both in zip(scores, valid, strict=True)]
            ways = valid.sum(axis=0).astype(scores[0].dtype)
            return functools.reduce(xp.add, found) / xp.maximum(ways, 1)

        return over(with_k, xp.asarray(ks))

    return over(one, tried.rho, *(xp.moveaxis(z, 1, 0) for z in tried.latents))


def _score_sides(
    rho: Float[Any, "s k"], latents: tuple[Any, ...], size: Any | int, unit: Any | float
) -> list[Float[Any, "f b b"]]:
    """Scores of held-out rows against each other by the first axes, for every pair of sides."""
    xp = namespace(rho)
    if xp is np:
        rho, latents = rho[:, :size], tuple(z[..., :size] for z in latents)
    else:  # of any size in one program
        rho = xp.where(xp.arange(rho.shape[1]) < size, rho, 0)
    found = []
    for a, b in list_pairs(len(latents)):
        r = rho[a] * rho[b]
        first, second = (solver.at_length(latents[s], r, unit) for s in (a, b))
        found.append(evidence.score_all(first, second, r))
    return found


def _both_seen(seen: Bool[Any, "s f b"]) -> Bool[Any, "q f b"]:
    """Which rows have both sides of every pair."""
    return namespace(seen).stack([seen[a] & seen[b] for a, b in list_pairs(len(seen))])


def _first(scores: Float[Any, "f b b"], valid: Any) -> Float[Any, "f b"]:
    """Whether a row's partner is first, both ways; scores equal up to rounding share the place."""
    xp = namespace(scores)
    own = xp.diagonal(scores, axis1=1, axis2=2)
    band = jnp.finfo(scores.dtype).eps * 8 * (1 + xp.abs(own))
    shares = []
    for axis in (1, 2):
        there = xp.expand_dims(valid, 3 - axis)
        low, high = (xp.expand_dims(v, axis) for v in (own - band, own + band))
        beaten = ((scores > high) & there).any(axis=axis)
        tied = ((scores >= low) & there).sum(axis=axis).astype(scores.dtype)
        shares.append(xp.where(beaten, 0, 1 / xp.maximum(tied, 1)))
    return xp.where(valid & ~xp.isnan(own), (shares[0] + shares[1]) / 2, 0)


def choose(
    candidates: list[Candidate], ridges: tuple[Any, ...], w: Any, plan: Plan, auto: bool
) -> tuple[int, int, int, Choice]:
    """Which lift, ridge and k; the numbers of the first two, and k itself."""
    valid = plan.seen.sum(axis=0) > 1
    share = _shares(w, plan)
    rows = int(valid.sum())
    settings, hits, trials = [], [], []
    for c, candidate in enumerate(candidates):
        ks = ladder(candidate.tried.covariances.shape[-1], auto)
        name = candidate.name + ", rows at one length" * candidate.unit
        for i, j in np.ndindex(len(ridges), len(ks)):
            each = candidate.hits[i, j]
            mean, error = _mean_and_error(each, share)
            settings.append((c, i, ks[j]))
            hits.append(each)
            trials.append(Trial(name, float(ridges[i]), ks[j], min(mean, 1.0), error))
    best = int(np.argmax([trial.recall for trial in trials]))
    near = []
    for s in range(len(settings)):
        lead, error = _mean_and_error(hits[best] - hits[s], share)
        if lead <= max(error, float(share.max())):  # one row more or less proves nothing
            near.append(s)

    found = _log_likelihoods(candidates, [settings[s] for s in near], plan, w)
    likely = dict(zip(near, found, strict=True))
    for s in near:
        trials[s] = dataclasses.replace(trials[s], log_likelihood=likely[s])
    likely_too = [s for s in likely if likely[s] >= max(likely.values()) - _ALIKE]
    plain = [s for s in likely_too if _is_linear(candidates[settings[s][0]].lifts)]
    none_left = 1 - trials[best].recall <= min(float(share.max()), _NONE_LEFT)
    saturated = none_left and 0 < len(plain) < len(likely_too)
    if saturated:  # a lift has nothing left to improve, and is worse outside these rows
        likely_too = plain
    told = [_tell(candidates[settings[s][0]].tried, *settings[s][1:]) for s in likely_too]
    chosen = likely_too[int(np.argmax(told))]
    if len(trials) == 1:
        reason = "everything was given"
    else:
        reason = (
            f"of {len(likely)} setting(s) within one standard error of the best R@1 "
            f"({100 * trials[best].recall:.1f} %), rows compared in pairs, partners are "
            f"about as probable under {len(likely_too)} {'linear ones ' * saturated}as under the "
            "best, and of these it carries most held-out information"
        )
    candidates_of_row = int(valid.sum(axis=1).min())
    tried = tuple(trials) if len(trials) > 1 else ()
    return (*settings[chosen], Choice(tried, trials[chosen], rows, candidates_of_row, reason))


def _is_linear(lifts: tuple[Lift, ...]) -> bool:
    return all(isinstance(getattr(fitted, "lift", fitted), Standardise) for fitted in lifts)


def _mean_and_error(values: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """Weighted mean over rows, and its standard error."""
    mean = float((values * share).sum())
    return mean, float(np.sqrt((share**2 * (values - mean) ** 2).sum()))


def _log_likelihoods(
    candidates: list[Candidate], settings: list[tuple[int, int, int]], plan: Plan, w: Any
) -> list[float]:
    """Mean log-probability of held-out rows' partners among the candidates of their fold."""
    stride = max(1, plan.chosen.shape[1] // LIKELY)
    seen, weights = plan.seen[:, :, ::stride], w[plan.chosen[:, ::stride]]

    def score(setting: tuple[int, int, int]) -> Any:
        c, number, size = setting
        rho, latents = _few(candidates[c].tried, number, stride=stride)
        return all_pairs(rho, latents, size, float(candidates[c].unit), seen, weights)

    def weigh(scored: Any) -> float:
        likely, shares = (np.asarray(a, np.float64) for a in _likely(*scored))
        mean = float((likely * shares).sum() / max(shares.sum(), 1e-300))
        return -math.inf if math.isnan(mean) else mean

    found: list[float] = []
    if namespace(w) is not np:
        return [weigh(score(setting)) for setting in settings]
    # NumPy takes one core for what is no product, and all of them for a product.
    with concurrent.futures.ThreadPoolExecutor(min(cores(), 4)) as pool:
        for i in range(0, len(settings), 8):
            found += pool.map(weigh, [score(setting) for setting in settings[i : i + 8]])
    return found


def _tell(tried: Tried, i: int, size: int) -> float:
    """Held-out information of the leading axes in nats."""
    correlations = np.asarray(_folds.correlations(tried.covariances[i]), np.float64)
    r = np.clip(np.nan_to_num(correlations[..., :size]), 0, _folds.TOP)
    return float(-np.log1p(-(r[np.triu_indices(len(r), 1)] ** 2)).sum() / 2)


@compiled("stride")
def _few(tried: Tried, number: Any, *, stride: int) -> tuple[Any, tuple[Any, ...]]:
    """Reliabilities under one ridge, and coordinates of some held-out rows."""
    return tried.rho[number], tuple(z[:, number, ::stride] for z in tried.latents)


@compiled()
def _likely(
    scores: Float[Any, "g b b"], valid: Bool[Any, "g b"], weights: Float[Any, "g b"]
) -> tuple[Float[Any, "g b"], Float[Any, "g b"]]:
    """Log-probability of held-out rows' partners among the candidates of their fold; weights."""
    # A slope wrong by 3 percent costs its square: less than a thousandth of a nat.
    return evidence.fit_search_slope(scores, valid, weights, halvings=8)[1], weights


@compiled()
def all_pairs(
    rho: Float[Any, "s k"],
    latents: tuple[Any, ...],
    size: Any | int,
    unit: Any | float,
    seen: Bool[Any, "s f b"],
    w: Float[Any, "f b"],
) -> tuple[Float[Any, "g b b"], Bool[Any, "g b"], Float[Any, "g b"]]:
    """Scores of every pair of sides, fold after fold, which rows they hold, and their weights."""
    xp = namespace(rho)
    scores = xp.concatenate(_score_sides(rho, latents, size, unit))
    valid = xp.concatenate(list(_both_seen(seen)))
    return scores, valid, xp.where(valid, xp.tile(w, (len(valid) // len(w), 1)), 0)
