"""What the views allow before a fit, and whether what was fitted carries anything.

Both are functions of second moments or of a factor that is there already; the data is not read
again.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perfalign_jax import _checks, _subspace, statistics
from perfalign_jax._numerics import eigh, matmul, namespace
from perfalign_jax.statistics import Rows, Statistic
from perfalign_jax.types import Alignment, CollapseWarning, Diagnosis, OverfitWarning, Views

__all__ = ["Signs", "diagnose", "look_for_collapse", "warn_of_collapse"]

# Below this share of the energy that directions chosen at random would keep, the latents are noise.
_LITTLE_ENERGY = 1e-3
# A latent axis whose correlation between the views is below this is more noise than signal.
_LITTLE_AGREEMENT = 0.5**0.5
# A view of this share of the largest one's size is next to nothing beside it.
_SMALL_VIEW = 1e-6
# A mean with this many times the energy of the spread decides which directions are null.
_LARGE_MEAN = 10.0


class Signs(NamedTuple):
    """What speaks against an alignment.

    Attributes:
        trivial: on how many latent axes every view is zero.
        shares: shape ``(M,)``, energy of each view's latents over what as many directions chosen at
            random would keep.
        apart: on how many latent axes the views hardly agree.
        mean: energy of the means over that of the spread, where the means were not removed.
        scale: size of the smallest view over that of the largest.
        any_pairing: whether any pairing of the rows would align as perfectly.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.diagnosis import Signs
        >>> Signs(0, np.ones(2), 0, 0.0, 1.0, False).trivial
        0
    """

    trivial: Array
    shares: Float[Array, " M"]
    apart: Array
    mean: Float[Array, ""]
    scale: Float[Array, ""]
    any_pairing: Array


class Evidence(NamedTuple):
    """What signs of collapse are read from, in sizes of the latent space alone.

    With more latent axes than rows, k is the number of rows: the other axes are empty.

    Attributes:
        spread: shape ``(k, k)``, second moments of the latents of all views.
        centred: shape ``(M, k, k)``, those of each view's latents without their means.
        every: shape ``(k, k)``, those of the sum of the views' latents without its mean.
        energies: shape ``(M,)``, of the views.
        common: shape ``(M,)``, what their means have of it; 0 where the means were removed.
        features: shape ``(M,)``.
        rounding: as in ``Rows``.
        any_pairing: whether any pairing of the rows would align as perfectly.
    """

    spread: Float[Any, "k k"]
    centred: Float[Any, "M k k"]
    every: Float[Any, "k k"]
    energies: Float[Any, " M"]
    common: Float[Any, " M"]
    features: Float[Any, " M"]
    rounding: Float[Any, ""]
    any_pairing: Any


def collect_evidence(
    rows: Rows, second: Float[Any, "d d"] | None, stacked: Float[Any, "k d"]
) -> Evidence:
    """Return what ``judge_evidence`` needs; the arguments are those of ``look_for_collapse``.

    Of NumPy arrays all of it stays in NumPy, and nothing is compiled.
    """
    xp = namespace(stacked)
    dims, k = tuple(mean.shape[0] for mean in rows.means), stacked.shape[0]
    views, starts = len(dims), np.cumsum([0, *dims])
    spans = [slice(a, b) for a, b in itertools.pairwise(starts.tolist())]
    if second is None:
        energies = xp.stack([xp.sum(block**2) for block in rows.blocks])
    else:
        energies = xp.stack([xp.trace(second[span, span]) for span in spans])
    common = rows.weight * xp.stack([xp.sum(mean**2) for mean in rows.means])
    removed = ~xp.any(rows.constant != 0)
    common = xp.where(removed, 0, common)
    if second is not None:
        parts = _subspace.split(stacked.T, dims)
        # The means stand in the rows in one direction: what they give to the latents' moments.
        shift = [
            xp.sqrt(rows.weight) * xp.where(removed, 0, 1) * matmul(mean, part)
            for mean, part in zip(rows.means, parts, strict=True)
        ]
        own = [
            matmul(part.T, matmul(second[span, span], part))
            for span, part in zip(spans, parts, strict=True)
        ]
        every = matmul(stacked, matmul(second, stacked.T))
        total_shift = xp.stack(shift).sum(axis=0)
        spread = xp.stack(own).sum(axis=0)
        own_centred = [w - xp.outer(u, u) for w, u in zip(own, shift, strict=True)]
        every_centred = every - xp.outer(total_shift, total_shift)
    else:
        r = rows.blocks[0].shape[0]
        z = xp.concatenate(_subspace.latents(rows.blocks, stacked.T))
        if k > len(z):  # more axes than rows: in coordinates of the rows' span, without the rest
            values, vectors = eigh(matmul(z, z.T))
            z = vectors * xp.sqrt(xp.maximum(values, 0))[None, :]
        z = z.reshape(views, r, -1)
        shared = matmul(rows.constant[None, None, :], z)
        centred = z - rows.constant[None, :, None] * shared
        flat = z.reshape(views * r, -1)
        spread = matmul(flat.T, flat)
        own_centred = [matmul(w.T, w) for w in centred]
        total = xp.sum(centred, axis=0)
        every_centred = matmul(total.T, total)

    any_pairing = xp.asarray(False)
    if rows.blocks and (views - 1) * rows.blocks[0].shape[0] <= sum(dims):
        pairs = (views - 1) * (rows.samples - removed.astype(rows.samples.dtype))
        any_pairing = _fits_any_pairing(rows, pairs)
    return Evidence(
        spread=spread,
        centred=xp.stack(own_centred),
        every=every_centred,
        energies=energies,
        common=common,
        features=np.asarray(dims, energies.dtype),
        rounding=rows.rounding,
        any_pairing=any_pairing,
    )


def _fits_any_pairing(rows: Rows, pairs: Any) -> Any:
    """Whether X has as many independent rows as there are equations, which all hold then."""
    small = _subspace.row_spectrum(rows.blocks)
    xp = namespace(small)
    return xp.sum(small > rows.rounding * small[0], dtype=pairs.dtype) >= pairs


@functools.partial(jax.jit, static_argnames=("center",))
def fits_any_pairing(state: Statistic, rtol: Any, *, center: bool) -> Array:
    """Whether any pairing of the rows would align as perfectly, however many a statistic stores."""
    rows = statistics.rows(state, center=center)
    if rtol is not None:
        rows = statistics.with_rounding(rows, rtol)
    return _fits_any_pairing(rows, (len(rows.means) - 1) * (rows.samples - int(center)))


def judge_evidence(found: Evidence, *, k: int) -> Signs:
    """Read the signs on ``k`` latent axes from the evidence.

    A program of its own: no size of the data is in it, so that it is compiled once for each k.
    """
    if namespace(found.spread) is np:
        with np.errstate(all="ignore"):
            return _judge(found, k=k)
    return _judge_compiled(found, k=k)


def _judge(found: Evidence, *, k: int) -> Signs:
    xp = namespace(found.spread)
    energies, common, views = found.energies, found.common, found.centred.shape[0]
    # Counted in the latents' principal axes: a basis of trivial and informative directions mixed
    # has no single row without energy.
    eps = xp.finfo(energies.dtype).eps
    floor = found.rounding**2 * xp.sum(energies)
    sizes = xp.linalg.eigvalsh(found.spread)
    trivial = k - sizes.size + xp.sum(sizes <= xp.maximum(4 * k * eps * sizes[-1], floor))
    # A mean that all samples share is no information: it would pass for energy and agreement.
    chance = xp.maximum(energies - common, 0) * k / found.features
    kept = xp.stack([xp.trace(w) for w in found.centred])
    # Agreement axis by axis, one axis of much energy must not hide the others: correlations of
    # pairs of views, averaged, in axes in which the views' mean spread is the identity.
    mean_spread = found.centred.mean(axis=0)
    shared = (found.every - views * mean_spread) / (views * (views - 1))
    sizes, axes = xp.linalg.eigh((mean_spread + mean_spread.T) / 2)
    # Where the means were subtracted from moments, their rounding is in what is left.
    lost = xp.maximum(floor / views, 4 * k * eps * (sizes[-1] + xp.max(common)))
    inside = sizes > lost
    axes = axes * xp.where(inside, 1 / xp.sqrt(xp.where(inside, sizes, 1)), 0)[None, :]
    agreement = xp.linalg.eigvalsh(matmul(axes.T, matmul((shared + shared.T) / 2, axes)))
    apart = xp.sum(agreement < _LITTLE_AGREEMENT) - xp.sum(~inside)
    mean_share = xp.max(common / xp.where(energies > common, energies - common, 1))
    shares = kept / xp.where(chance > 0, chance, 1)
    scale = xp.sqrt(xp.min(energies) / xp.max(energies))
    return Signs(trivial, shares, apart, mean_share, scale, found.any_pairing)


_judge_compiled = functools.partial(jax.jit, static_argnames=("k",))(_judge)
_collect_compiled = jax.jit(collect_evidence)


def look_for_collapse(
    rows: Rows, second: Float[Array, "d d"] | None, stacked: Float[Array, "k d"]
) -> Signs:
    """Say what speaks against orthonormal rows ``stacked`` fitted to ``rows``.

    Args:
        rows: what they were fitted to.
        second: ``_subspace.moments`` of its blocks, if there are more rows than features; without
            them the latents of the rows are formed.
        stacked: the alignment ``[A1, A2, ...]``.

    Example:
        >>> import numpy as np
        >>> import jax.numpy as jnp
        >>> from perfalign_jax import diagnosis, statistics
        >>> x = np.eye(4, 2, dtype="f4")
        >>> rows = statistics.rows(statistics.as_statistic((x, x)), center=False)
        >>> signs = diagnosis.look_for_collapse(rows, None, jnp.eye(1, 4, dtype="f4"))
        >>> int(signs.trivial), float(signs.shares[0]), float(signs.shares[1])
        (0, 1.0, 0.0)
    """
    return judge_evidence(_collect_compiled(rows, second, stacked), k=stacked.shape[0])


def warn_of_collapse(signs: Signs, alignment: Alignment) -> None:
    """Warn of what the signs say; nothing is said while a program is traced.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> from perfalign_jax.diagnosis import Signs, warn_of_collapse
        >>> x = np.eye(4, 2, dtype="f4")
        >>> warn_of_collapse(Signs(0, np.ones(2), 0, 0.0, 1.0, False), pa.fit((x, x), k=1))
    """
    if _checks.is_traced(signs):
        return
    k, trivial, apart = alignment.k, int(signs.trivial), int(signs.apart)
    shares = np.asarray(signs.shares)
    reasons, remedies = [], ["a smaller k"]
    if not np.isfinite(shares).all():
        reasons.append("the squares of the views overflow")
        remedies = ["larger units"]
    elif trivial:
        which = f"all {k}" if trivial == k else f"{trivial} of the {k}"
        zero = "both latents are" if len(shares) == 2 else "every latent is"
        reasons.append(f"{which} directions chosen are trivial ({zero} zero on them)")
        if alignment.select == "trailing":
            remedies = ["select='energy' (k=None takes all directions that carry energy)"]
    if trivial < k:
        for view, share in enumerate(shares.tolist()):
            if share < _LITTLE_ENERGY:
                reasons.append(
                    f"the latents of view {view} keep {share:.1e} of the energy that {k} "
                    "directions chosen at random would keep"
                )
        if apart > 0:
            reasons.append(
                f"on {apart} of the {k} latent axes the views hardly agree (they share less "
                "than half of the variance)"
            )
            remedies = ["baselines.ridge_cca"]
    if reasons and (float(signs.scale) < _SMALL_VIEW or (shares < _LITTLE_ENERGY).any()):
        remedies = ["views of the same scale", *remedies]
    if reasons and float(signs.mean) > _LARGE_MEAN:
        reasons.append(f"the means have {float(signs.mean):.1e} times the energy of the spread")
        remedies = ["center=True", *remedies]
    if reasons:
        _checks.warn(
            f"the alignment has collapsed: {'; '.join(reasons)}. A small alignment error proves "
            f"nothing here. See diagnose() for what the data allows, and try "
            f"{' or '.join(remedies)}.",
            CollapseWarning,
        )
    if bool(signs.any_pairing):
        _checks.warn(
            "the joint rank of the views reaches the number of samples, so any pairing of these "
            "rows aligns perfectly, even of noise: the error on them proves nothing. Measure on "
            "held-out pairs.",
            OverfitWarning,
        )


@functools.partial(jax.jit, static_argnames=("center",))
def _diagnose(state: Statistic, rtol: Any, *, center: bool) -> Diagnosis:
    rows = statistics.rows(state, center=center)
    if rtol is not None:
        rows = statistics.with_rounding(rows, rtol)
    found = _subspace.spectrum(rows)
    dims = state.dims
    return Diagnosis(
        singular_values=found.singular_values,
        energies=found.energies,
        view_energies=jnp.stack([jnp.sum(block**2) for block in rows.blocks]),
        cutoff=found.cutoff,
        ranks=found.ranks,
        rank=sum(dims) - found.null_dimension,
        equations=(len(dims) - 1) * (rows.samples - int(center)),
        null_dimension=found.null_dimension,
        informative_dimension=found.informative_dimension,
        samples=rows.samples,
        dims=dims,
        center=center,
    )


def diagnose(
    data: Views | Statistic,
    *,
    center: bool = False,
    weights: Any = None,
    rtol: float | None = None,
) -> Diagnosis:
    """Say what the data allows: spectrum, ranks, and the anatomy of the null space.

    The null space of the stacked matrix (``[X1, -X2]`` for two views) has a trivial part,
    directions on which all latents are zero, and an informative part. Only the second is worth
    having. jit and vmap work.

    Args:
        data: paired rows ``(x1, x2, ...)`` of shapes ``(n, d_m)``, or a statistic.
        center: remove the means first.
        weights: shape ``(n,)``, for views only, as in ``fit``.
        rtol: singular values at or below this share of the largest count as zero; by default
            rounding alone.

    Returns:
        A ``Diagnosis``; ``print`` it for a summary.

    Raises:
        TypeError: if the data is neither, or does not hold real numbers.
        ValueError: if the shapes do not fit, or a value is not finite.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> z = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> diagnosis = pa.diagnose((z @ np.ones((2, 5), np.float32), z))
        >>> diagnosis.ranks.tolist(), int(diagnosis.informative_dimension)
        ([1, 2], 1)
    """
    _checks.tolerance(rtol)
    state = statistics.as_statistic(data, weights=weights, center=bool(center))
    diagnosis = _diagnose(state, rtol, center=bool(center))
    if _checks.is_traced(diagnosis):
        return diagnosis
    return dataclasses.replace(diagnosis, samples=jnp.asarray(state.samples))
