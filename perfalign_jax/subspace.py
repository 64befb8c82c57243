"""The numerics of the solver: singular subspaces of the stacked matrix ``X = [B1, -B2]``.

``B1, B2`` are rows: the views themselves, centred or not, or a statistic's factor. Every function
here is pure, un-jitted and knows nothing of samples beyond their number.

Ways to the trailing subspace:

- ``svd``: the singular value decomposition of X, as the paper writes it (Eq. 7). The reference.
- ``qr``: X = Q R first, then the decomposition of R. Needs no Q.
- ``gram``: eigenvectors of X'X and one first-order correction by products with X. Squaring loses
  half the digits and the correction regains them, as long as the wanted directions are well apart
  from the rest. A check on the spectrum and on the residual decides, and falls back to ``qr``.
- ``null``: for fewer rows than features: the reflectors of a QR of X' applied to the last unit
  vectors. Nothing of size d x d is decomposed.
- ``dual``: each view is first written in a basis of its own row space, where everything but the
  trivial directions lives. Nothing of size d x d is formed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from perfalign_jax._numerics import flip_signs, matmul, rank_cutoff
from perfalign_jax.statistics import compress

__all__ = [
    "METHODS",
    "Spectrum",
    "choose_method",
    "directions_offered",
    "solve",
    "solve_by_energy",
    "spectrum",
]

METHODS = ("auto", "svd", "qr", "gram", "null", "dual")

Blocks = tuple[Float[Array, "r d1"], Float[Array, "r d2"]]


class Spectrum(NamedTuple):
    """Every direction of the stacked matrix, and the energy of its null directions."""

    singular_values: Float[Array, " d"]
    energies: Float[Array, " d"]
    cutoff: Float[Array, ""]
    null_dimension: Int[Array, ""]
    informative_dimension: Int[Array, ""]
    ranks: Int[Array, " m"]


def _stack(blocks: Blocks) -> Float[Array, "r d"]:
    return jnp.concatenate([blocks[0], -blocks[1]], axis=1)


def _times(blocks: Blocks, columns: Float[Array, "d k"]) -> Float[Array, "r k"]:
    """Product of X with columns, without stacking X."""
    d1 = blocks[0].shape[1]
    return matmul(blocks[0], columns[:d1]) - matmul(blocks[1], columns[d1:])


def _times_transposed(blocks: Blocks, columns: Float[Array, "r k"]) -> Float[Array, "d k"]:
    return jnp.concatenate([matmul(blocks[0].T, columns), -matmul(blocks[1].T, columns)])


def _mean_latents(blocks: Blocks, columns: Float[Array, "d k"]) -> Float[Array, "r k"]:
    """Latents of both views, averaged: on a null direction both are this."""
    d1 = blocks[0].shape[1]
    return (matmul(blocks[0], columns[:d1]) + matmul(blocks[1], columns[d1:])) / 2


def _pad(values: Float[Array, " r"], size: int) -> Float[Array, " size"]:
    return jnp.concatenate([values, jnp.zeros((size - values.shape[0],), values.dtype)])


# The whole right basis of X: columns in the order of Eq. 7, largest singular value first.


def _basis_by_svd(x: Float[Array, "r d"]) -> tuple[Float[Array, "d d"], Float[Array, " d"]]:
    _, values, vt = jnp.linalg.svd(x, full_matrices=x.shape[0] < x.shape[1])
    return vt.T, _pad(values, x.shape[1])


def _basis(x: Float[Array, "r d"]) -> tuple[Float[Array, "d d"], Float[Array, " d"]]:
    """As ``_basis_by_svd``, decomposing nothing larger than min(r, d)."""
    r, d = x.shape
    if r >= d:
        return _basis_by_svd(compress(x))
    return _trailing_by_reflectors(x, d)


def _trailing_by_reflectors(
    x: Float[Array, "r d"], k: int
) -> tuple[Float[Array, "d k"], Float[Array, " k"]]:
    """Last k columns of the right basis of X with fewer rows than columns.

    X' = Q [R; 0]: the last d - r columns of Q are null directions whatever the rank, and the left
    singular vectors of R, mapped by Q, are the others.
    """
    r, d = x.shape
    h, taus = jnp.linalg.qr(x.T, mode="raw")
    reflectors = h.T
    small = max(0, k - (d - r))  # directions that must come out of R
    coordinates = jnp.zeros((d, k), x.dtype)
    values = jnp.zeros((k,), x.dtype)
    if small:
        u, s, _ = jnp.linalg.svd(jnp.triu(reflectors[:r]))
        coordinates = coordinates.at[:r, :small].set(u[:, r - small :])
        values = values.at[:small].set(s[r - small :])
    tail = jnp.arange(k - small)
    coordinates = coordinates.at[d - (k - small) + tail, small + tail].set(1)
    return jax.lax.linalg.ormqr(reflectors, taus, coordinates), values


def _gram(blocks: Blocks) -> Float[Array, "d d"]:
    b1, b2 = blocks
    cross = -matmul(b1.T, b2)
    return jnp.block([[matmul(b1.T, b1), cross], [cross.T, matmul(b2.T, b2)]])


def _trailing_by_gram(
    blocks: Blocks, k: int, samples: Array
) -> tuple[Float[Array, "d k"], Float[Array, " k"], Bool[Array, ""]]:
    """Last k columns of the right basis through X'X, and whether they are as good as an SVD's."""
    d = blocks[0].shape[1] + blocks[1].shape[1]
    values, vectors = jnp.linalg.eigh(_gram(blocks))
    values, vectors = jnp.maximum(values[::-1], 0), vectors[:, ::-1]
    eps, largest = jnp.finfo(values.dtype).eps, values[0]

    # The eigenvalues below the noise of the Gram matrix form one cluster with the wanted ones; the
    # correction takes out what the others ("rest") have leaked into the wanted directions.
    cluster = jnp.maximum(jnp.sum(values <= 4 * d * eps * largest), k)
    boundary = d - cluster
    is_rest = jnp.arange(d) < boundary
    low = jnp.where(boundary > 0, values[jnp.maximum(boundary - 1, 0)], jnp.inf)
    high = values[jnp.minimum(boundary, d - 1)]
    wanted = vectors[:, d - k :]
    leak = matmul(vectors.T, _times_transposed(blocks, _times(blocks, wanted)))
    gaps = jnp.where(is_rest[:, None], values[:, None] - values[None, d - k :], 1)
    leak = jnp.where(is_rest[:, None], leak / jnp.where(gaps > 0, gaps, 1), 0)
    corrected, _ = jnp.linalg.qr(wanted - matmul(vectors, leak))

    # Rotate inside the subspace to its singular vectors; their values are exact, not squared.
    turn, small_values = _basis_by_svd(compress(_times(blocks, corrected)))
    columns = matmul(corrected, turn)

    # First-order perturbation leaves the square of the Gram error. Accept it where that is below
    # what rounding costs an SVD with the same gap; and where directions beyond k are in the
    # cluster, only if the wanted ones are null to the last digit, because then any of them will do.
    gap = low - high
    gram_error = eps * largest / jnp.where(gap > 0, gap, 1)
    svd_error = eps * jnp.sqrt(largest) / jnp.where(gap > 0, jnp.sqrt(low) - jnp.sqrt(high), 1)
    separated = (boundary == 0) | ((gap > 0) & (gram_error < 0.05) & (gram_error**2 <= svd_error))
    null = small_values[0] <= rank_cutoff(jnp.sqrt(largest)[None], (samples, d))
    return columns, small_values, separated & (null | (cluster == k))


def choose_method(
    method: str, select: str, shape: tuple[int, int, int], *, k: int, gram_only: bool = False
) -> str:
    """Turn "auto" into a method, and refuse one that the shapes cannot have.

    Args:
        method: one of ``METHODS``.
        select: "trailing" or "energy".
        shape: number of rows and of features of either view, ``(r, d1, d2)``.
        k: number of directions.
        gram_only: whether the data is known through its Gram matrix alone.

    Raises:
        ValueError: naming what does not fit, and what does.
    """
    r, d1, d2 = shape
    d = d1 + d2
    if gram_only and method in ("auto", "gram"):
        return "qr"  # of the square root of the Gram matrix
    if method == "auto":
        if select == "energy":
            return "dual" if r < max(d1, d2) else "qr"
        return "null" if r < d else "gram"
    if gram_only:
        raise ValueError(
            f"method={method!r} needs the data, but a Gram statistic has only its squares; "
            "use method='gram' or 'auto', or a Factor statistic."
        )
    if method == "gram" and select == "energy":
        raise ValueError(
            "method='gram' finds trailing directions only; for select='energy' use "
            "'auto', 'svd', 'qr', 'null' or 'dual'."
        )
    if method in ("null", "dual") and r >= d:
        raise ValueError(
            f"method={method!r} needs fewer rows than features, got {r} rows and d = {d} "
            "features; use 'auto', 'svd', 'qr' or 'gram'."
        )
    if method == "dual" and select == "trailing":
        offered = min(r, d1) + min(r, d2) - r
        if k > offered:
            raise ValueError(
                f"method='dual' works inside the views' row spaces, which with {r} rows have "
                f"{offered} null directions, got k={k}; use 'null', or select='energy'."
            )
    return method


def directions_offered(method: str, shape: tuple[int, int, int]) -> int:
    """Return how many directions a method can return at most."""
    r, d1, d2 = shape
    return min(r, d1) + min(r, d2) if method == "dual" else d1 + d2


class _RowSpace(NamedTuple):
    """A view in an orthonormal basis of its row space: ``block = small @ mix.T @ rows``."""

    small: Float[Array, "r p"]
    rows: Float[Array, "p d"] | None = None
    mix: Float[Array, "p p"] | None = None


def _by_cholesky(block: Float[Array, "r d"]) -> tuple[_RowSpace, Bool[Array, ""]]:
    """Cholesky QR, done twice: a few matrix products, and whether they were enough.

    Orthonormal to rounding as long as the first round was not too far off (Yamamoto et al. 2015).
    A view without fewer rows than features is its own coordinates.
    """
    r, d = block.shape
    if r >= d:
        return _RowSpace(block), jnp.asarray(True)
    eye = jnp.eye(r, dtype=block.dtype)
    lower = jnp.linalg.cholesky(matmul(block, block.T))
    rows = jax.scipy.linalg.solve_triangular(lower, block, lower=True)
    again = matmul(rows, rows.T)
    second = jnp.linalg.cholesky(again)
    mix = jax.scipy.linalg.solve_triangular(second, eye, lower=True).T
    good = jnp.all(jnp.abs(again - eye) < 0.1)  # false for NaN, which jnp.max may pass over
    return _RowSpace(matmul(lower, second), rows, mix), good


def _by_householder(block: Float[Array, "r d"]) -> _RowSpace:
    r, d = block.shape
    if r >= d:
        return _RowSpace(block)
    q, upper = jnp.linalg.qr(block.T)
    return _RowSpace(upper.T, q.T, jnp.eye(r, dtype=block.dtype))


def _expand(view: _RowSpace, columns: Float[Array, "p k"]) -> Float[Array, "d k"]:
    """Take columns from the row space's coordinates back to the features."""
    if view.rows is None or view.mix is None:
        return columns
    return matmul(matmul(view.mix, columns).T, view.rows).T


def _in_row_spaces(blocks: Blocks, solve_small: Callable[[Blocks], tuple]) -> tuple:
    """Solve for the views in bases of their row spaces, and expand the columns found."""

    def run(one: _RowSpace, two: _RowSpace) -> tuple:
        columns, *others = solve_small((one.small, two.small))
        p = one.small.shape[1]
        expanded = jnp.concatenate([_expand(one, columns[:p]), _expand(two, columns[p:])])
        return (expanded, *others)

    (one, good_one), (two, good_two) = _by_cholesky(blocks[0]), _by_cholesky(blocks[1])
    return jax.lax.cond(
        good_one & good_two,
        lambda: run(one, two),
        lambda: run(_by_householder(blocks[0]), _by_householder(blocks[1])),
    )


def _small(block: Float[Array, "r d"]) -> Float[Array, "r p"]:
    """Coordinates of a view in some orthonormal basis of its row space."""
    view, good = _by_cholesky(block)
    return jax.lax.cond(good, lambda: view.small, lambda: _by_householder(block).small)


def _lent_energy(
    latents: Float[Array, "r d"], values: Float[Array, " d"], is_null: Bool[Array, " d"]
) -> Float[Array, ""]:
    """Latent size that rounding alone can give to a null direction.

    It turns a null direction towards each other one by eps * largest / its singular value, and
    lends it that share of the other's latent.
    """
    sizes = jnp.linalg.norm(latents, axis=0)
    lent = jnp.where(is_null, 0, sizes / jnp.where(is_null, 1, values))
    return 4 * jnp.finfo(values.dtype).eps * values[0] * jnp.max(lent)


def _by_energy(
    blocks: Blocks, k: int, cutoff_scale: Array, *, plain: bool
) -> tuple[Float[Array, "d k"], Float[Array, " k"], Int[Array, ""]]:
    """The k null directions whose latents carry most energy, then the smallest others.

    Returns the columns, the size of their residuals, and how many of them carry energy.
    """
    x = _stack(blocks)
    r, d = x.shape
    basis, values = _basis_by_svd(x) if plain else _basis(x)
    cutoff = cutoff_scale * values[0]
    is_null = values <= cutoff
    latents = _mean_latents(blocks, basis)
    floor = jnp.maximum(cutoff, _lent_energy(latents, values, is_null))

    def any_rank() -> tuple[Array, Array, Array]:
        # Null directions decouple from the others: their columns carry energy, and ballast at the
        # cut-off sorts those without any behind them; the others have ballast alone, less of it
        # the larger their singular value, so they fill up when the null space is smaller than k.
        ballast = jnp.where(is_null, 1, (1 + jnp.arange(d)) / (2 * d + 2)).astype(x.dtype)
        weight = jnp.where(cutoff > 0, cutoff, 1) * ballast
        _, _, turn = jnp.linalg.svd(
            compress(jnp.concatenate([jnp.where(is_null[None, :], latents, 0), jnp.diag(weight)])),
            full_matrices=False,
        )
        chosen = turn[:k].T
        columns = matmul(basis, chosen)
        sizes = jnp.linalg.norm(matmul(latents, jnp.where(is_null[:, None], chosen, 0)), axis=0)
        return columns, jnp.linalg.norm(values[:, None] * chosen, axis=0), sizes

    def full_rank() -> tuple[Array, Array, Array]:
        turn, sizes = _basis_by_svd(compress(latents[:, r:]))
        return matmul(basis[:, r:], turn[:, :k]), jnp.zeros((k,), x.dtype), sizes[:k]

    if r < d and k <= d - r:
        found = jax.lax.cond(values[r - 1] > cutoff, full_rank, any_rank)
    else:
        found = any_rank()
    columns, residuals, sizes = found
    return columns, residuals, jnp.sum(sizes > floor)


def solve(
    blocks: Blocks,
    cutoff_scale: Array,
    samples: Array,
    *,
    k: int,
    select: str,
    method: str,
) -> tuple[Float[Array, "k d"], Float[Array, " k"]]:
    """Return k orthonormal rows A, and the singular values of ``X A'``.

    Differentiable in the blocks, once, in forward and reverse mode, whatever the method. The
    derivative is that of the subspace: rows do not turn inside it, so functions of the projector
    ``A'A`` or of the residual have exact gradients, functions of single rows do not. Where the
    subspace itself is not defined (a tie between the last direction chosen and the first left out)
    the tied pair's share is left out: gradients of the residual stay exact, those of the projector
    have no meaning there.

    Args:
        blocks: rows ``B1, B2`` of shapes ``(r, d1)`` and ``(r, d2)``.
        cutoff_scale: singular values at or below this share of the largest count as zero.
        samples: number of samples the rows stand for.
        k: number of directions.
        select: "trailing" or "energy".
        method: one of ``METHODS`` except "auto".
    """
    return _solve(blocks, cutoff_scale, samples, k, select, method)


def _solve_primal(
    blocks: Blocks, cutoff_scale: Array, samples: Array, k: int, select: str, method: str
) -> tuple[Float[Array, "k d"], Float[Array, " k"]]:
    b1, b2 = blocks
    d = b1.shape[1] + b2.shape[1]
    if select == "energy":
        rows, values, _ = solve_by_energy(blocks, cutoff_scale, k=k, method=method)
        return rows, values
    if method == "dual":
        columns, values = _in_row_spaces(
            blocks, lambda small: _trailing_by_reflectors(_stack(small), k)
        )
    elif method == "null":
        columns, values = _trailing_by_reflectors(_stack(blocks), k)
    elif method == "gram":
        found, found_values, good = _trailing_by_gram(blocks, k, samples)
        columns, values = jax.lax.cond(
            good, lambda: (found, found_values), lambda: _last(_basis(_stack(blocks)), d - k)
        )
    else:
        x = _stack(blocks)
        columns, values = _last(_basis_by_svd(x if method == "svd" else compress(x)), d - k)
    return flip_signs(columns.T), values


def solve_by_energy(
    blocks: Blocks, cutoff_scale: Array, *, k: int, method: str
) -> tuple[Float[Array, "k d"], Float[Array, " k"], Int[Array, ""]]:
    """Return the k null directions of most energy, and how many of them carry any.

    As ``solve`` with ``select="energy"``, without its derivative.
    """

    def solve_small(small: Blocks) -> tuple[Array, Array, Array]:
        return _by_energy(small, k, cutoff_scale, plain=method == "svd")

    columns, values, informative = (
        _in_row_spaces(blocks, solve_small) if method == "dual" else solve_small(blocks)
    )
    return flip_signs(columns.T), values, informative


def _last(
    basis: tuple[Float[Array, "d d"], Float[Array, " d"]], start: int
) -> tuple[Float[Array, "d k"], Float[Array, " k"]]:
    return basis[0][:, start:], basis[1][start:]


_solve = jax.custom_jvp(_solve_primal, nondiff_argnums=(3, 4, 5))


@_solve.defjvp
def _solve_jvp(
    k: int, select: str, method: str, primals: tuple, tangents: tuple
) -> tuple[tuple, tuple]:
    blocks, cutoff_scale, samples = primals
    tangent = tangents[0]
    rows, values = _solve(blocks, cutoff_scale, samples, k, select, method)
    columns = rows.T
    residual = _times(blocks, columns)

    # Everything orthogonal to the rows, largest singular value first. The rows get a singular
    # value above all others, so that the null directions left out stay at the end.
    x = _stack(blocks)
    largest = jnp.linalg.norm(x) + 1
    others, other_values = _basis(jnp.concatenate([x - matmul(residual, rows), 2 * largest * rows]))
    others, other_values = others[:, k:], other_values[k:]
    cutoff = cutoff_scale * jnp.maximum(jnp.max(other_values, initial=0), jnp.max(values))

    # d(X'X) v for the chosen v; first-order perturbation theory moves v towards the directions
    # left out, each by its share over the difference of the squared singular values.
    moved = _times_transposed(tangent, residual) + _times_transposed(
        blocks, _times(tangent, columns)
    )
    apart = other_values[:, None] > values[None, :] + cutoff
    gaps = jnp.where(apart, other_values[:, None] ** 2 - values[None, :] ** 2, 1)
    turned = -matmul(others, jnp.where(apart, matmul(others.T, moved) / gaps, 0))
    if select == "energy":
        turned = turned + _turn_inside_null_space(
            blocks, tangent, columns, turned, others * (other_values <= cutoff)[None, :], cutoff
        )

    along = jnp.sum(residual * _times(tangent, columns), axis=0)
    positive = values > cutoff
    slopes = jnp.where(positive, along / jnp.where(positive, values, 1), 0)
    return (rows, values), (turned.T, slopes)


def _turn_inside_null_space(
    blocks: Blocks,
    tangent: Blocks,
    columns: Float[Array, "d k"],
    turned: Float[Array, "d k"],
    others: Float[Array, "d m"],
    cutoff: Array,
) -> Float[Array, "d k"]:
    """How the null directions of most energy turn towards the other null directions."""
    frame, sizes = _basis_by_svd(compress(_mean_latents(blocks, others)))
    others = matmul(others, frame)
    latents, other_latents = _mean_latents(blocks, columns), _mean_latents(blocks, others)
    own = jnp.sum(latents**2, axis=0)
    other_turned = _counter_turn(blocks, tangent, others, cutoff)
    change = matmul(
        (_mean_latents(tangent, others) + _mean_latents(blocks, other_turned)).T, latents
    ) + matmul(other_latents.T, _mean_latents(tangent, columns) + _mean_latents(blocks, turned))
    gaps = own[None, :] - sizes[:, None] ** 2
    apart = gaps > cutoff**2
    return matmul(others, jnp.where(apart, change / jnp.where(apart, gaps, 1), 0))


def _counter_turn(
    blocks: Blocks, tangent: Blocks, null: Float[Array, "d m"], cutoff: Array
) -> Float[Array, "d m"]:
    """The smallest change that keeps null directions null: ``-pinv(X) dX v``."""
    basis, values = _basis(_stack(blocks))
    inverse = jnp.where(values > cutoff, 1 / jnp.where(values > cutoff, values, 1) ** 2, 0)
    pulled = _times_transposed(blocks, _times(tangent, null))
    return -matmul(basis, inverse[:, None] * matmul(basis.T, pulled))


def spectrum(blocks: Blocks, cutoff_scale: Array) -> Spectrum:
    """Return the whole spectrum of X and the energies of its informative null directions.

    Args:
        blocks: rows ``B1, B2`` of shapes ``(r, d1)`` and ``(r, d2)``.
        cutoff_scale: singular values at or below this share of the largest count as zero.
    """
    d = blocks[0].shape[1] + blocks[1].shape[1]
    small = (_small(blocks[0]), _small(blocks[1]))
    basis, values = _basis(_stack(small))
    cutoff = cutoff_scale * values[0]
    is_null = values <= cutoff
    latents = _mean_latents(small, basis)
    sizes = jnp.linalg.svd(compress(jnp.where(is_null[None, :], latents, 0)), compute_uv=False)
    informative = sizes > jnp.maximum(cutoff, _lent_energy(latents, values, is_null))
    own = [jnp.linalg.svd(compress(block), compute_uv=False) for block in small]
    return Spectrum(
        singular_values=_pad(values, d),
        energies=_pad(jnp.where(informative, sizes, 0) ** 2, d),
        cutoff=cutoff,
        null_dimension=jnp.sum(is_null) + (d - values.shape[0]),
        informative_dimension=jnp.sum(informative),
        ranks=jnp.stack([jnp.sum(v > cutoff_scale * v[0]) for v in own]),
    )
