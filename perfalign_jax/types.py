"""The small frozen pytrees that the functions of this package take and return."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Alignment", "CollapseWarning", "Diagnosis", "OverfitWarning", "PrecisionWarning"]
__all__ += ["Views"]

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
    """There are no more pairs than joint features, so any pairing at all would align perfectly.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("ignore", OverfitWarning)  # when held-out pairs are measured
        >>> warnings.simplefilter("default", OverfitWarning)
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Alignment:
    """One affine map per view into a shared latent space.

    The latent of view ``m`` is ``(x_m - means[m]) @ projections[m].T + offset``.

    Attributes:
        projections: ``(A1, A2, ...)``, shapes ``(k, d_m)``: the paper's A split by view (Eq. 5). A
            perfect alignment has ``A1 A1' + A2 A2' + ... = I``.
        singular_values: shape ``(k,)``, what the alignment leaves over on each latent axis: the
            square root of the summed squared differences of the views' latents, over all pairs of
            views. For a perfect alignment these are the singular values of the stacked matrix
            that belong to the rows, largest first (as in Eq. 7) or in the order of the latents'
            energy. In units of the latents.
        means: shapes ``(d_m,)``, in units of the data; zeros when not centred.
        offset: shape ``(k,)``, in units of the latents; zeros unless calibrated.
        coupling: shape ``(k,)``, what a baseline made as large as it could: canonical correlations,
            or singular values of the cross-covariance; empty for all others.
        method: the method that computed it.
        select: how the directions were chosen; empty for a baseline.
        space: the space in which it was solved; empty for a baseline.
        center: whether the means were removed.

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
    method: str = dataclasses.field(metadata={"static": True})
    select: str = dataclasses.field(default="", metadata={"static": True})
    space: str = dataclasses.field(default="", metadata={"static": True})
    center: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def k(self) -> int:
        """Number of latent dimensions."""
        return self.projections[0].shape[-2]

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of features of each view."""
        return tuple(p.shape[-1] for p in self.projections)

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
        )

    def __repr__(self) -> str:
        """Say on one line what it is."""
        shape = np.shape(self.offset)[:-1]
        facts: dict[str, Any] = {"batch": shape} if shape else {}
        facts |= {"k": self.k, "dims": self.dims, "method": self.method}
        facts |= {"select": self.select} if self.select else {}
        facts |= {"center": True} if self.center else {}
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
