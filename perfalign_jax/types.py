"""The small frozen pytrees that the functions of this package take and return."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Alignment", "Choice", "CollapseWarning", "Diagnosis", "Evidence", "OverfitWarning"]
__all__ += ["PrecisionWarning", "Trial", "Views"]

Views = Sequence[jax.Array | np.ndarray]
"""Two or more arrays of paired rows, shapes ``(n, d_m)``: row ``i`` of all is the same thing."""


class CollapseWarning(UserWarning):
    """The aligned latents carry next to nothing of the data, so a small error proves nothing.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", CollapseWarning)  # make a collapse stop the program
        >>> warnings.simplefilter("default", CollapseWarning)
    """


class PrecisionWarning(UserWarning):
    """The data arrives in another dtype than the one it is computed in.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("ignore", PrecisionWarning)  # when float32 is what you want
        >>> warnings.simplefilter("default", PrecisionWarning)
    """


class OverfitWarning(UserWarning):
    """There are no more pairs than the joint rank: with a null space any pairing aligns perfectly.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("ignore", OverfitWarning)  # when held-out pairs are measured
        >>> warnings.simplefilter("default", OverfitWarning)
    """


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting that was tried on held-out rows.

    Attributes:
        lift: which lift, in words.
        ridge: relative to the mean eigenvalue of each side.
        k: number of axes that were used.
        recall: share of held-out rows that find their partner first (R@1), mean of all ways; NaN
            of moments alone, which have no rows to ask.
        error: standard error of ``recall`` over the rows.
        log_likelihood: mean log-probability of the partner among the fold's candidates in nats, at
            the slope that suits the setting; None where it was not needed.

    Example:
        >>> from perfalign_jax.types import Trial
        >>> Trial("none", 0.1, 8, 0.5, 0.02).recall
        0.5
    """

    lift: str
    ridge: float
    k: int
    recall: float
    error: float
    log_likelihood: float | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """What ``align`` tried, what it chose, and why.

    Attributes:
        trials: every setting that was tried; empty where everything was given.
        chosen: the setting of the alignment.
        rows: number of held-out rows that the trials were compared on.
        candidates: how many candidates each of them had.
        reason: why this one, in words.
        remarks: what else there is to know.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> choice = pa.align((x, x + 1), lift=None).choice
        >>> choice.chosen.lift, choice.rows
        ('none', 60)
    """

    trials: tuple[Trial, ...]
    chosen: Trial
    rows: int
    candidates: int
    reason: str
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in words, with the best trial of every lift."""
        lines = [f"chosen   {_say(self.chosen)}", f"because  {self.reason}"]
        if self.trials:
            lines.append(
                f"by R@1 of {self.rows:,} held-out rows among {self.candidates:,} candidates "
                f"(chance {1 / max(self.candidates, 1):.2%}); best of each lift, of "
                f"{len(self.trials)} settings:"
            )
            for name in dict.fromkeys(trial.lift for trial in self.trials):
                of_lift = [trial for trial in self.trials if trial.lift == name]
                lines.append(f"         {_say(max(of_lift, key=lambda trial: trial.recall))}")
        lines += [f"note     {remark}" for remark in self.remarks]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Say on one line what it is."""
        return f"Choice({_say(self.chosen)}; of {len(self.trials)})"


def _say(trial: Trial) -> str:
    text = f"lift {trial.lift}, ridge {trial.ridge:.3g}, k = {trial.k}"
    return (
        text
        if trial.recall != trial.recall
        else (f"{text}: R@1 {100 * trial.recall:.1f} ± {100 * trial.error:.1f} %")
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evidence:
    """How far every axis of an alignment can be trusted, measured on rows it was not fitted to.

    Attributes:
        reliability: shape ``(S, k)``, correlation of each side's coordinate with what the sides
            share; the product of two sides' is their correlation on new pairs.
        slope: shape ``()``, what a sum over axes is multiplied by: they are not independent.
        offset: shape ``()``, added to the log-odds, in nats.
        search_slope: shape ``()``, the same among many candidates, where the tails decide.
        lapse: shape ``()``, how probably a partner is like any other candidate.
        unit: shape ``()``, 1 where rows are compared at one length, as their own says nothing of
            what they are; 0 where it counts.
        loadings: shapes ``(k, d_m)``, regressions of each view's features on all axes together.
        centres: shapes ``(d_m,)``, means of each view's features.
        variances: shapes ``(d_m,)``, variances of each view's features.
        explained: shapes ``()``, how much of the variance that predictions of a view have is
            confirmed on held-out rows; 1 where there were none.
        fills: for each side of several views their covariance, shape ``(p_s, p_s)``, by which a
            missing one is filled in from the others; shape ``(0, 0)`` for a side of one view.
        right_share: shape ``()``, estimated share of right pairs; None unless it was asked for.
        right_probability: shape ``(n,)``, how probably each pair is right; None likewise.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> bool(pa.align((x, x + 1), lift=None).evidence.reliability[0, 0] > 0.9)
        True
    """

    reliability: Float[Array, "s k"]
    slope: Float[Array, ""]
    offset: Float[Array, ""]
    search_slope: Float[Array, ""]
    lapse: Float[Array, ""]
    unit: Float[Array, ""]
    loadings: tuple[Float[Array, "k _"], ...]
    centres: tuple[Float[Array, " _"], ...]
    variances: tuple[Float[Array, " _"], ...]
    explained: tuple[Float[Array, ""], ...]
    fills: tuple[Float[Array, "_ _"], ...]
    right_share: Float[Array, ""] | None = None
    right_probability: Float[Array, " n"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Alignment:
    """One affine map per view into a shared latent space.

    The latent of view ``m`` is ``(x_m - means[m]) @ projections[m].T + offset``, with ``x_m`` first
    lifted where there are ``lifts``.

    Attributes:
        projections: ``(A1, A2, ...)``, shapes ``(k, p_m)`` for ``p_m`` features after the lift,
            ``d_m`` without: the paper's A split by view (Eq. 5). A perfect alignment has
            ``A1 A1' + A2 A2' + ... = I``.
        singular_values: shape ``(k,)``, what the alignment leaves over on each latent axis: the
            square root of the summed squared differences of the views' latents, over all pairs of
            views. For a perfect alignment these are the singular values of the stacked matrix
            that belong to the rows, largest first (as in Eq. 7) or in the order of the latents'
            energy. In units of the latents; of ``align`` before they are brought to one length,
            where that is what they are compared at.
        means: shapes ``(p_m,)``, in units of the features; zeros when not centred.
        offset: shape ``(k,)``, in units of the latents; zeros unless calibrated.
        coupling: shape ``(k,)``, what a baseline or ``align`` made as large as it could: canonical
            correlations, with the ridge, or singular values of the cross-covariance; empty for a
            perfect alignment and for regressions.
        lifts: one fitted map for each view; empty where the views are used as they are.
        evidence: what held-out rows say of the axes; None where they were not asked. Coordinates
            then have variance one on new rows, and latents the lengths of their evidence.
        method: the method that computed it.
        select: how the directions were chosen; empty for a baseline.
        space: the space in which it was solved; empty for a baseline.
        center: whether the means were removed.
        sides: which views make each side; empty where every view is one.
        choice: what was tried and chosen; None where nothing was.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.eye(6, 3, dtype=np.float32)
        >>> pa.fit((x, x), k=3).take(2)
        Alignment(k=2, dims=(3, 3), method='gram', select='trailing', dtype=float32)
    """

    projections: tuple[Float[Array, "... k _"], ...]
    singular_values: Float[Array, "... k"]
    means: tuple[Float[Array, "... _"], ...]
    offset: Float[Array, "... k"]
    coupling: Float[Array, "... _"]
    lifts: tuple[Any, ...] = ()
    evidence: Evidence | None = None
    method: str = dataclasses.field(kw_only=True, metadata={"static": True})
    select: str = dataclasses.field(default="", kw_only=True, metadata={"static": True})
    space: str = dataclasses.field(default="", kw_only=True, metadata={"static": True})
    center: bool = dataclasses.field(default=False, kw_only=True, metadata={"static": True})
    sides: tuple[tuple[int, ...], ...] = dataclasses.field(
        default=(), kw_only=True, metadata={"static": True}
    )
    choice: Choice | None = dataclasses.field(default=None, kw_only=True, metadata={"static": True})

    @property
    def k(self) -> int:
        """Number of latent dimensions."""
        return self.projections[0].shape[-2]

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of features of each view."""
        if self.lifts:
            return tuple(lift.dim for lift in self.lifts)
        return tuple(p.shape[-1] for p in self.projections)

    @property
    def reliability(self) -> Float[Array, "... s k"]:
        """Correlation of each side's axes with what the sides share; no rows if not estimated."""
        if self.evidence is None:
            return self.offset[..., None, :][..., :0, :]
        return self.evidence.reliability

    @property
    def right_share(self) -> Float[Array, ""] | None:
        """Estimated share of right pairs, where wrong ones were looked for."""
        return None if self.evidence is None else self.evidence.right_share

    @property
    def right_probability(self) -> Float[Array, " n"] | None:
        """How probably each pair is right, where wrong ones were looked for."""
        return None if self.evidence is None else self.evidence.right_probability

    def take(self, k: int) -> "Alignment":
        """Return the alignment to the first ``k`` latent dimensions.

        Raises:
            TypeError: if ``k`` is no integer.
            ValueError: if there are fewer.
        """
        if isinstance(k, bool) or not isinstance(k, numbers.Integral):
            raise TypeError(f"k must be an integer, got {k!r} ({type(k).__name__}).")
        if not 1 <= k <= self.k:
            raise ValueError(f"k must be between 1 and {self.k}, got {k}.")
        return dataclasses.replace(
            self,
            projections=tuple(p[..., :k, :] for p in self.projections),
            singular_values=self.singular_values[..., :k],
            offset=self.offset[..., :k],
            coupling=self.coupling[..., :k],
            evidence=self.evidence
            and dataclasses.replace(
                self.evidence,
                reliability=self.evidence.reliability[..., :k],
                loadings=tuple(rows[..., :k, :] for rows in self.evidence.loadings),
            ),
        )

    def __repr__(self) -> str:
        """Say on one line what it is."""
        shape = np.shape(self.offset)[:-1]
        facts: dict[str, Any] = {"batch": shape} if shape else {}
        facts |= {"k": self.k, "dims": self.dims, "method": self.method}
        facts |= {"select": self.select} if self.select else {}
        facts |= {"center": True} if self.center else {}
        facts |= {"sides": self.sides} if self.sides else {}
        words = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        return f"Alignment({words}, dtype={self.offset.dtype})"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis:
    """What the stacked matrix of the views allows, before any ``k`` is chosen.

    With ``d`` features in all, the null space of the stacked matrix has a trivial part, on which
    both latents are identically zero, and an informative part, on which the latents coincide and
    carry energy.

    Attributes:
        singular_values: shape ``(d,)``, of the stacked matrix, largest first, in units of the data
            times ``sqrt(n)``.
        energies: shape ``(d,)``; the latent energy ``sum_i |z_i|^2`` of each informative null
            direction, largest first, then zeros; in squared units of the data.
        view_energies: shape ``(M,)``, ``sum_i |x_i|^2`` of each view.
        cutoff: the value at or below which a singular value counts as zero.
        ranks: rank of each view.
        rank: rank of the stacked matrix.
        equations: how many rows the stacked matrix has, one for each sample (less one if centred)
            and further view. Where its rank reaches them, any pairing would align as perfectly.
        null_dimension: ``d - rank``: up to this ``k`` the alignment is perfect (Theorem 2.2).
        informative_dimension: how many null directions carry energy.
        samples: number of rows ``n``.
        dims: number of features of each view.
        center: whether the means were removed first.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> diagnosis = pa.diagnose((x, np.pad(x, ((0, 0), (0, 1)))))
        >>> int(diagnosis.null_dimension), int(diagnosis.trivial_dimension)
        (3, 1)
    """

    singular_values: Float[Array, "... d"]
    energies: Float[Array, "... d"]
    view_energies: Float[Array, "... m"]
    cutoff: Float[Array, "..."]
    ranks: Int[Array, "... m"]
    rank: Int[Array, "..."]
    equations: Float[Array, "..."]
    null_dimension: Int[Array, "..."]
    informative_dimension: Int[Array, "..."]
    samples: Any
    dims: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    center: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def trivial_dimension(self) -> Int[Array, "..."]:
        """How many null directions have latents that are identically zero."""
        return self.null_dimension - self.informative_dimension

    @property
    def any_pairing(self) -> Bool[Array, "..."]:
        """Whether any pairing of these rows would align as perfectly: the joint rank reaches n."""
        return self.rank.astype(self.equations.dtype) >= self.equations

    def __repr__(self) -> str:
        """Say on one line what it is."""
        if np.ndim(self.cutoff):
            return f"Diagnosis(batch={np.shape(self.cutoff)}, dims={self.dims})"
        return (
            f"Diagnosis(samples={self.samples}, dims={self.dims}, rank={self.rank}, "
            f"null={self.null_dimension}, informative={self.informative_dimension})"
        )

    def __str__(self) -> str:
        """Say it in words."""
        ranks = " and ".join(f"{int(r):,}" for r in self.ranks)
        null, informative = int(self.null_dimension), int(self.informative_dimension)
        kept = float(self.energies.sum()) / max(float(self.view_energies.mean()), 1e-300)
        things = "pairs" if len(self.dims) == 2 else "rows of each view"
        lines = [
            f"{int(self.samples):,} {things}, {' + '.join(f'{d:,}' for d in self.dims)} features"
            + (", centred" if self.center else ""),
            f"  rank          {ranks} of the views, {int(self.rank):,} of all together "
            f"(singular values above {float(self.cutoff):.2g} of "
            f"{float(self.singular_values[0]):.4g})",
            f"  null space    {null:,} directions: the alignment is perfect up to k = {null:,}",
            f"  informative   {informative:,} of them carry energy"
            + (f" ({kept:.2g} times the mean energy of a view)" if informative else ""),
            f"  trivial       {null - informative:,} of them map every view to zero",
        ]
        if informative:
            advice = f"select='energy' with k <= {informative:,}" + (
                ", or any k with select='trailing'" if null == informative else ""
            )
        elif null:
            advice = "no perfect alignment carries information; try baselines.ridge_cca"
        else:
            advice = (
                "no perfect alignment (there are as many independent features as directions); "
                "k smallest directions approximate it, and baselines.ridge_cca is the safer choice"
            )
        lines.append(f"  advice        {advice}")
        if bool(self.any_pairing) and null:
            lines.append(
                "  beware        the rank reaches the number of samples, so any pairing of these "
                "rows aligns perfectly, even of noise: measure on held-out pairs"
            )
        return "\n".join(lines)
