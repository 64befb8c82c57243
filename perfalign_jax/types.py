"""The small frozen pytrees that the functions of this package take and return."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["Alignment", "CollapseWarning", "Diagnosis", "PrecisionWarning", "Views"]

Views = Sequence[jax.Array | np.ndarray]
"""Two arrays of paired rows, ``(n, d1)`` and ``(n, d2)``: row ``i`` of both is the same thing."""


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alignment:
    """One affine map per modality into a shared latent space.

    The latent of modality ``m`` is ``(x_m - means[m]) @ projections[m].T + offset``.

    Attributes:
        projections: ``(A1, A2)``, shapes ``(k, d1)`` and ``(k, d2)``: the paper's A split by
            modality (Eq. 5). A perfect alignment has ``A1 A1' + A2 A2' = I``.
        singular_values: shape ``(k,)``. For a perfect alignment the singular values of the stacked
            matrix that belong to the rows, in units of the data, largest first (as in Eq. 7) or in
            the order of the latents' energy; a baseline says in its docstring what it stores here.
        means: shapes ``(d1,)`` and ``(d2,)``, in units of the data; zeros when not centred.
        offset: shape ``(k,)``, in units of the latents; zeros unless calibrated.
        method: the method that computed it.
        select: how the directions were chosen; empty for a baseline.
        space: the space in which it was solved; empty for a baseline.
        center: whether the means were removed.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.eye(6, 3, dtype=np.float32)
        >>> alignment = pa.fit((x, x), k=3)
        >>> alignment.k, alignment.dims
        (3, (3, 3))
    """

    projections: tuple[Float[Array, "... k _"], ...]
    singular_values: Float[Array, "... k"]
    means: tuple[Float[Array, "... _"], ...]
    offset: Float[Array, "... k"]
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
        """Number of features of each modality."""
        return tuple(p.shape[-1] for p in self.projections)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What the stacked matrix of two views allows, before any ``k`` is chosen.

    With ``d = d1 + d2`` features, the null space of the stacked matrix has a trivial part, on which
    both latents are identically zero, and an informative part, on which the latents coincide and
    carry energy.

    Attributes:
        singular_values: shape ``(d,)``, of the stacked matrix, largest first, in units of the data
            times ``sqrt(n)``.
        energies: shape ``(d,)``; the latent energy ``sum_i |z_i|^2`` of each informative null
            direction, largest first, then zeros; in squared units of the data.
        view_energies: shape ``(2,)``, ``sum_i |x_i|^2`` of each view.
        cutoff: the value at or below which a singular value counts as zero.
        ranks: rank of each view.
        rank: rank of the stacked matrix.
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
    null_dimension: Int[Array, "..."]
    informative_dimension: Int[Array, "..."]
    samples: Int[Array, "..."]
    dims: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    center: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def trivial_dimension(self) -> Int[Array, "..."]:
        """How many null directions have latents that are identically zero."""
        return self.null_dimension - self.informative_dimension

    @property
    def perfect_up_to(self) -> Int[Array, "..."]:
        """Largest ``k`` with zero alignment error (Theorem 2.2)."""
        return self.null_dimension

    def __str__(self) -> str:
        """Say it in words."""
        d1, d2 = self.dims
        rank1, rank2 = (int(r) for r in self.ranks)
        null, informative = int(self.null_dimension), int(self.informative_dimension)
        kept = float(self.energies.sum()) / max(float(self.view_energies.mean()), 1e-300)
        lines = [
            f"{int(self.samples):,} pairs, {d1:,} + {d2:,} features"
            + (", centred" if self.center else ""),
            f"  rank          {rank1:,} and {rank2:,} of the views, {int(self.rank):,} of both "
            f"(singular values above {float(self.cutoff):.2g} of {float(self.largest):.4g})",
            f"  null space    {null:,} directions: the alignment is perfect up to k = {null:,}",
            f"  informative   {informative:,} of them carry energy"
            + (f" ({kept:.2g} times the mean energy of a view)" if informative else ""),
            f"  trivial       {null - informative:,} of them map both views to zero",
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
        if null and int(self.samples) <= min(d1, d2):
            lines.append(
                "  beware        with no more pairs than features any pairing aligns perfectly, "
                "even of noise: measure on held-out pairs"
            )
        return "\n".join(lines)

    @property
    def largest(self) -> Float[Array, "..."]:
        """The largest singular value."""
        return self.singular_values[..., 0]
