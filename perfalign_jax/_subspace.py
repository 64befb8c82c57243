"""The numerics of the solver: singular subspaces of the stacked matrix of the views.

With ``C' C = M I - 1 1'`` the stacked matrix of M views is ``X = sum_m C[:, m] (x) B_m``, so that
``|X a|^2`` sums the squared differences of the latents over all pairs of views; for two views it
is ``[B1, -B2]``. The ``B_m`` are rows: the views themselves, centred or not, or a statistic's
factor. Every function here is pure, un-jitted and knows nothing of samples beyond their number.

Ways to the trailing subspace:

- ``svd``: the singular value decomposition of X, as the paper writes it (Eq. 7). The reference.
- ``qr``: X = Q R first, then the decomposition of R. Needs no Q.
- ``gram``: eigenvectors of X'X and one first-order correction by products with X. Squaring loses
  half the digits and the correction regains them, as long as the wanted directions are well apart
  from the rest. A check on the spectrum and on the residual decides, and falls back to ``qr``. On
  the host directions that X already sends to zero as an SVD's would are not corrected.
- ``null``: for fewer rows than features: the reflectors of a QR of X' applied to the last unit
  vectors. Nothing of size d x d is decomposed.
- ``dual``: each view is first written in a basis of its own row space, where everything but the
  trivial directions lives. Nothing of size d x d is formed.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from perfalign_jax._numerics import (
    compress,
    eigh,
    flip_signs,
    matmul,
    namespace,
    reflect,
)
from perfalign_jax.statistics import Rows

__all__ = [
    "METHODS",
    "Spectrum",
    "choose_method",
    "contrasts",
    "latents",
    "moments",
    "row_spectrum",
    "solve",
    "solve_by_energy",
    "spectrum",
    "split",
    "stack",
    "trailing_by_gram",
    "trailing_by_reflectors",
]

_EVEN = 16  # times the least eigenvalue beside the null space: squaring then costs two bits

METHODS = ("auto", "svd", "qr", "gram", "null", "dual")

Blocks = tuple[Float[Array, "r _"], ...]


class Spectrum(NamedTuple):
    """Every direction of the stacked matrix, and the energy of its null directions."""

    singular_values: Float[Array, " d"]
    energies: Float[Array, " d"]
    cutoff: Float[Array, ""]
    null_dimension: Int[Array, ""]
    informative_dimension: Int[Array, ""]
    ranks: Int[Array, " m"]


def contrasts(views: int) -> np.ndarray:
    """Return C of shape ``(M - 1, M)`` with ``C' C = M I - 1 1'``; ``[1, -1]`` for two views."""
    rows = np.tril(np.ones((views - 1, views)))
    rows[np.arange(views - 1), np.arange(1, views)] = -np.arange(1, views)
    return rows * np.sqrt(views / (np.arange(1, views) * np.arange(2, views + 1)))[:, None]


def _dims(blocks: Blocks) -> tuple[int, ...]:
    return tuple(block.shape[1] for block in blocks)


def split(columns: Float[Any, "d k"], dims: tuple[int, ...]) -> tuple[Float[Any, "_ k"], ...]:
    """Part what belongs to the features of each view."""
    return tuple(namespace(columns).split(columns, np.cumsum(dims)[:-1].tolist()))


def stack(blocks: tuple[Float[Any, "r _"], ...]) -> Float[Any, "q d"]:
    """The stacked matrix X."""
    xp, c = namespace(blocks[0]), contrasts(len(blocks)).tolist()
    return xp.concatenate(
        [xp.concatenate([w * b for w, b in zip(row, blocks, strict=True)], axis=1) for row in c]
    )


def latents(
    blocks: tuple[Float[Any, "r _"], ...], columns: Float[Any, "d k"]
) -> tuple[Float[Any, "r k"], ...]:
    """Latents of every view."""
    parts = split(columns, _dims(blocks))
    return tuple(matmul(b, part) for b, part in zip(blocks, parts, strict=True))


def _times(blocks: Blocks, columns: Float[Array, "d k"]) -> Float[Array, "q k"]:
    """Product of X with columns, without stacking X."""
    each = latents(blocks, columns)
    c = contrasts(len(blocks)).tolist()
    return jnp.concatenate([sum(w * z for w, z in zip(row, each, strict=True)) for row in c])


def _times_transposed(blocks: Blocks, columns: Float[Array, "q k"]) -> Float[Array, "d k"]:
    c = contrasts(len(blocks))
    parts = jnp.split(columns, len(blocks) - 1)
    return jnp.concatenate(
        [
            matmul(b.T, sum(w * part for w, part in zip(weights, parts, strict=True)))
            for b, weights in zip(blocks, c.T.tolist(), strict=True)
        ]
    )


def _mean_latents(blocks: Blocks, columns: Float[Array, "d k"]) -> Float[Array, "r k"]:
    """Latents averaged over the views: on a null direction each of them is this."""
    first, *others = latents(blocks, columns)
    return sum(others, first) / len(blocks)


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
    return trailing_by_reflectors(x, d)


def trailing_by_reflectors(
    x: Float[Any, "r d"], k: int
) -> tuple[Float[Any, "d k"], Float[Any, " k"]]:
    """Last k columns of the right basis of X with fewer rows than columns.

    X' = Q [R; 0]: the last d - r columns of Q are null directions whatever the rank, and the left
    singular vectors of R, mapped by Q, are the others. Of a NumPy array nothing is compiled.
    """
    xp, (r, d) = namespace(x), x.shape
    small = max(0, k - (d - r))  # directions that must come out of R
    upper, turn = reflect(x.T)
    top, values = upper[:, :0], xp.zeros(k, x.dtype)
    if small:
        u, s, _ = xp.linalg.svd(upper)
        top, values = u[:, r - small :], xp.concatenate([s[r - small :], values[small:]])
    return turn(top, k - small), values


def row_spectrum(blocks: tuple[Float[Any, "r _"], ...]) -> Float[Any, " q"]:
    """Return the singular values of X, by the QR of its longer side."""
    x = stack(blocks)
    xp, longer = namespace(x), x if x.shape[0] > x.shape[1] else x.T
    return xp.linalg.svd(xp.linalg.qr(longer, mode="r"), compute_uv=False)


def moments(blocks: Blocks) -> Float[Array, "d d"]:
    """Return all products ``B_i' B_j``, each computed once."""
    views = range(len(blocks))
    upper = {(i, j): matmul(blocks[i].T, blocks[j]) for i in views for j in views if i <= j}
    return jnp.block([[upper[i, j] if i <= j else upper[j, i].T for j in views] for i in views])


def _stacked_moments(second: Any, dims: tuple[int, ...]) -> Any:
    """``X' X`` from the products of the views: ``M - 1`` of its own to each, less all others."""
    if namespace(second) is np:  # of thousands of features each copy is large
        found, edges = -second, np.cumsum((0, *dims))
        for first, last in itertools.pairwise(edges.tolist()):
            found[first:last, first:last] *= 1 - len(dims)
        return found
    view = np.repeat(np.arange(len(dims)), dims)
    own = view[:, None] == view[None, :]
    return np.where(own, len(dims) - 1, -1).astype(second.dtype) * second


def _left_by_svd(samples: ArrayLike, d: int) -> Any:
    """What an SVD leaves of zero on a null direction, in eps of the largest singular value.

    As NumPy's was measured in float64, of up to 1,000,000 rows and 512 features.
    """
    return max(2, d**0.5 / 4) + samples**0.5 / 500


def trailing_by_gram(
    second: Float[Array | np.ndarray, "d d"],
    dims: tuple[int, ...],
    k: int,
    samples: ArrayLike,
    times_gram: Callable[[Any], Any],
    root: Callable[[Any], Any],
) -> tuple[Any, Any, Any]:
    """Last k columns of the right basis through X'X, and whether they are as good as an SVD's.

    Args:
        second: all products of the views, ``moments``; where it is a NumPy array, so is all that
            comes out, and nothing is compiled.
        dims: number of features of each view.
        k: number of directions.
        samples: number of samples.
        times_gram: ``X' X c`` of columns ``c``, by products with X.
        root: R of the QR of ``X c``.
    """
    d = sum(dims)
    xp: Any = namespace(second)
    values, vectors = eigh(_stacked_moments(second, dims))
    values, vectors = xp.maximum(values[::-1], 0), vectors[:, ::-1]
    eps, largest = xp.finfo(values.dtype).eps, values[0]

    # The eigenvalues below the noise of the Gram matrix form one cluster with the wanted ones; the
    # correction takes out what the others ("rest") have leaked into the wanted directions.
    noise = 4 * d * eps * largest
    cluster = xp.maximum(xp.sum(values <= noise), k)
    boundary = d - cluster
    is_rest = xp.arange(d) < boundary
    low = xp.where(boundary > 0, values[xp.maximum(boundary - 1, 0)], xp.inf)
    high = values[xp.minimum(boundary, d - 1)]
    wanted = vectors[:, d - k :]

    def turned(columns: Any) -> tuple[Any, Any]:
        """Rotate inside the subspace to its singular vectors; their values are exact."""
        upper = root(columns)
        _, found, turn = xp.linalg.svd(upper, full_matrices=upper.shape[0] < k)
        return matmul(columns, turn.T), xp.pad(found, (0, k - found.shape[0]))

    zero = _left_by_svd(samples, d) * eps * xp.sqrt(largest)
    small = largest < xp.finfo(values.dtype).tiny / eps**2  # squares lose digits to underflow
    if xp is np and not small and largest <= _EVEN * low and values[d - k] <= noise:
        columns, small_values = turned(wanted)
        if small_values[0] <= zero:
            return columns, small_values, np.True_

    leak = matmul(vectors.T, times_gram(wanted))
    gaps = xp.where(is_rest[:, None], values[:, None] - values[None, d - k :], 1)
    leak = xp.where(is_rest[:, None], leak / xp.where(gaps > 0, gaps, 1), 0)
    columns, small_values = turned(xp.linalg.qr(wanted - matmul(vectors, leak))[0])

    # First-order perturbation leaves the square of the Gram error. Accept it where that is below
    # what rounding costs an SVD with the same gap; and where directions beyond k are in the
    # cluster, only if the wanted ones are null to the last digit, because then any of them will do.
    gap = low - high
    gram_error = eps * largest / xp.where(gap > 0, gap, 1)
    svd_error = eps * xp.sqrt(largest) / xp.where(gap > 0, xp.sqrt(low) - xp.sqrt(high), 1)
    separated = (boundary == 0) | ((gap > 0) & (gram_error < 0.05) & (gram_error**2 <= svd_error))
    return columns, small_values, ~small & separated & ((small_values[0] <= zero) | (cluster == k))


def _by_gram_or_qr(
    blocks: Blocks, second: Float[Array, "d d"], samples: Array, k: int
) -> tuple[Float[Array, "d k"], Float[Array, " k"], Bool[Array, ""]]:
    """By the Gram matrix where that is good enough, and whether it was.

    Under vmap nothing is done twice unless it was not good enough for some member.
    """

    def by_gram(blocks: Blocks, second: Array, samples: Array) -> tuple[Array, Array, Array]:
        return trailing_by_gram(
            second,
            _dims(blocks),
            k,
            samples,
            lambda columns: _times_transposed(blocks, _times(blocks, columns)),
            lambda columns: compress(_times(blocks, columns)),
        )

    def by_qr(blocks: Blocks) -> tuple[Array, Array]:
        return _last(_basis(stack(blocks)), sum(_dims(blocks)) - k)

    @jax.custom_batching.custom_vmap
    def solve_one(blocks: Blocks, second: Array, samples: Array) -> tuple[Array, Array, Array]:
        columns, values, good = by_gram(blocks, second, samples)
        return *jax.lax.cond(good, lambda: (columns, values), lambda: by_qr(blocks)), good

    @solve_one.def_vmap
    def solve_many(size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda member: 0 if member else None, batched)
        columns, values, good = jax.vmap(by_gram, axes, axis_size=size)(*arguments)

        def mend() -> tuple[Array, Array]:
            others = jax.vmap(by_qr, axes[:1], axis_size=size)(arguments[0])
            keep = good[:, None]
            return (
                jnp.where(keep[:, :, None], columns, others[0]),
                jnp.where(keep, values, others[1]),
            )

        found = *jax.lax.cond(jnp.all(good), lambda: (columns, values), mend), good
        return found, (True, True, True)

    return solve_one(blocks, second, samples)


def choose_method(
    method: str, select: str, rows: int, dims: tuple[int, ...], *, k: int | None
) -> str:
    """Turn "auto" into a method, and refuse one that the shapes cannot have.

    Args:
        method: one of ``METHODS``.
        select: "trailing" or "energy".
        rows: how many there are of each view.
        dims: number of features of each view.
        k: number of directions; None for all that carry energy.

    Raises:
        ValueError: naming what does not fit, and what does.
    """
    equations, d = (len(dims) - 1) * rows, sum(dims)
    inside = sum(min(rows, size) for size in dims)  # dimensions of the views' row spaces
    k = k or 1
    if method == "auto":
        if select == "trailing":
            return "null" if equations < d else "gram"
        return "dual" if rows < max(dims) and k <= inside else "qr"
    if method == "gram" and select == "energy":
        raise ValueError(
            "method='gram' finds trailing directions only; for select='energy' use "
            "'auto', 'svd', 'qr', 'null' or 'dual'."
        )
    if method in ("null", "dual") and equations >= d:
        raise ValueError(
            f"method={method!r} needs fewer rows than features, got {equations} rows and d = {d} "
            "features; use 'auto', 'svd', 'qr' or 'gram'."
        )
    if method == "dual":
        if select == "trailing" and k > inside - equations:
            raise ValueError(
                f"method='dual' works inside the views' row spaces, which with {rows} rows have "
                f"{inside - equations} null directions, got k={k}; use 'null', or select='energy'."
            )
        if k > inside:
            raise ValueError(
                f"method='dual' offers at most {inside} directions for {rows} rows, got k={k}; "
                "use 'svd' or 'qr'."
            )
    return method


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

    def run(spaces: Sequence[_RowSpace]) -> tuple:
        columns, *others = solve_small(tuple(space.small for space in spaces))
        parts = split(columns, tuple(space.small.shape[1] for space in spaces))
        expanded = [_expand(space, part) for space, part in zip(spaces, parts, strict=True)]
        return (jnp.concatenate(expanded), *others)

    quick, good = zip(*map(_by_cholesky, blocks), strict=True)
    return jax.lax.cond(
        jnp.stack(good).all(),
        lambda: run(quick),
        lambda: run([_by_householder(block) for block in blocks]),
    )


def _small(block: Float[Array, "r d"]) -> Float[Array, "r p"]:
    """Coordinates of a view in some orthonormal basis of its row space."""
    view, good = _by_cholesky(block)
    return jax.lax.cond(good, lambda: view.small, lambda: _by_householder(block).small)


def _lent_energy(
    shared: Float[Array, "r d"], values: Float[Array, " d"], is_null: Bool[Array, " d"]
) -> Float[Array, ""]:
    """Latent size that rounding alone can give to a null direction.

    It turns a null direction towards each other one by eps * largest / its singular value, and
    lends it that share of the other's latent.
    """
    sizes = jnp.linalg.norm(shared, axis=0)
    lent = jnp.where(is_null, 0, sizes / jnp.where(is_null, 1, values))
    return 4 * jnp.finfo(values.dtype).eps * values[0] * jnp.max(lent)


def _by_energy(
    blocks: Blocks, k: int, cutoff_scale: Array, *, plain: bool
) -> tuple[Float[Array, "d k"], Float[Array, " k"], Int[Array, ""]]:
    """The k null directions whose latents carry most energy, then the smallest others.

    Returns the columns, the size of their residuals, and how many of them carry energy.
    """
    x = stack(blocks)
    r, d = x.shape
    basis, values = _basis_by_svd(x) if plain else _basis(x)
    cutoff = cutoff_scale * values[0]
    is_null = values <= cutoff
    shared = _mean_latents(blocks, basis)
    floor = jnp.maximum(cutoff, _lent_energy(shared, values, is_null))

    def any_rank() -> tuple[Array, Array, Array]:
        # Null directions decouple from the others: their columns carry energy, and ballast at the
        # cut-off sorts those without any behind them; the others have ballast alone, less of it
        # the larger their singular value, so they fill up when the null space is smaller than k.
        ballast = jnp.where(is_null, 1, (1 + jnp.arange(d)) / (2 * d + 2)).astype(x.dtype)
        weight = jnp.where(cutoff > 0, cutoff, 1) * ballast
        _, _, turn = jnp.linalg.svd(
            compress(jnp.concatenate([jnp.where(is_null[None, :], shared, 0), jnp.diag(weight)])),
            full_matrices=False,
        )
        chosen = turn[:k].T
        columns = matmul(basis, chosen)
        sizes = jnp.linalg.norm(matmul(shared, jnp.where(is_null[:, None], chosen, 0)), axis=0)
        return columns, jnp.linalg.norm(values[:, None] * chosen, axis=0), sizes

    def full_rank() -> tuple[Array, Array, Array]:
        turn, sizes = _basis_by_svd(compress(shared[:, r:]))
        return matmul(basis[:, r:], turn[:, :k]), jnp.zeros((k,), x.dtype), sizes[:k]

    if r < d and k <= d - r:
        found = jax.lax.cond(values[r - 1] > cutoff, full_rank, any_rank)
    else:
        found = any_rank()
    columns, residuals, sizes = found
    return columns, residuals, jnp.sum(sizes > floor)


def solve(
    rows: Rows, second: Float[Array, "d d"] | None, *, k: int, select: str, method: str
) -> tuple[Float[Array, "k d"], Float[Array, " k"], Float[Array, ""]]:
    """Return k orthonormal rows A, the singular values of ``X A'``, and whether Gram was enough.

    Differentiable in the blocks, once, in forward and reverse mode, whatever the method. The
    derivative is that of the subspace: rows do not turn inside it, so functions of the projector
    ``A'A`` or of the residual have exact gradients, functions of single rows do not. Where the
    subspace itself is not defined (a tie between the last direction chosen and the first left out)
    the tied pair's share is left out: gradients of the residual stay exact, those of the projector
    have no meaning there.

    Args:
        rows: blocks of shapes ``(r, d_m)``, and the share of the largest singular value at or
            below which another counts as zero.
        second: ``moments`` of the blocks, for ``method="gram"``.
        k: number of directions.
        select: "trailing" or "energy".
        method: one of ``METHODS`` except "auto".
    """
    return _solve(rows.blocks, second, rows.rounding, rows.samples, k, select, method)


def _solve_primal(
    blocks: Blocks,
    second: Float[Array, "d d"] | None,
    cutoff_scale: Array,
    samples: Array,
    k: int,
    select: str,
    method: str,
) -> tuple[Float[Array, "k d"], Float[Array, " k"], Float[Array, ""]]:
    d, enough = sum(_dims(blocks)), jnp.ones((), blocks[0].dtype)
    if select == "energy":
        stacked, values, _ = _all_by_energy(blocks, cutoff_scale, k=k, method=method)
        return stacked, values, enough
    if method == "dual":
        columns, values = _in_row_spaces(
            blocks, lambda small: trailing_by_reflectors(stack(small), k)
        )
    elif method == "null":
        columns, values = trailing_by_reflectors(stack(blocks), k)
    elif method == "gram":
        assert second is not None
        columns, values, good = _by_gram_or_qr(blocks, second, samples, k)
        enough = good.astype(values.dtype)
    else:
        x = stack(blocks)
        columns, values = _last(_basis_by_svd(x if method == "svd" else compress(x)), d - k)
    return flip_signs(columns.T), values, enough


def solve_by_energy(
    rows: Rows, *, k: int, method: str
) -> tuple[Float[Array, "k d"], Float[Array, " k"], Int[Array, ""]]:
    """Return the k null directions of most energy, and how many of them carry any.

    As ``solve`` with ``select="energy"``, without its derivative.
    """
    return _all_by_energy(rows.blocks, rows.rounding, k=k, method=method)


def _all_by_energy(
    blocks: Blocks, cutoff_scale: Array, *, k: int, method: str
) -> tuple[Float[Array, "k d"], Float[Array, " k"], Int[Array, ""]]:
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


_solve = jax.custom_jvp(_solve_primal, nondiff_argnums=(4, 5, 6))


@_solve.defjvp
def _solve_jvp(
    k: int, select: str, method: str, primals: tuple, tangents: tuple
) -> tuple[tuple, tuple]:
    blocks, second, cutoff_scale, samples = primals
    tangent = tangents[0]
    rows, values, enough = _solve(blocks, second, cutoff_scale, samples, k, select, method)
    columns = rows.T
    residual = _times(blocks, columns)

    # Everything orthogonal to the rows, largest singular value first. The rows get a singular
    # value above all others, so that the null directions left out stay at the end.
    x = stack(blocks)
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
            blocks,
            tangent,
            columns,
            turned,
            jnp.where(other_values[None, :] <= cutoff, others, 0),
            cutoff,
        )

    along = jnp.sum(residual * _times(tangent, columns), axis=0)
    positive = values > cutoff
    slopes = jnp.where(positive, along / jnp.where(positive, values, 1), 0)
    return (rows, values, enough), (turned.T, slopes, jnp.zeros_like(enough))


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
    shared, other_shared = _mean_latents(blocks, columns), _mean_latents(blocks, others)
    own = jnp.sum(shared**2, axis=0)
    other_turned = _counter_turn(blocks, tangent, others, cutoff)
    change = matmul(
        (_mean_latents(tangent, others) + _mean_latents(blocks, other_turned)).T, shared
    ) + matmul(other_shared.T, _mean_latents(tangent, columns) + _mean_latents(blocks, turned))
    gaps = own[None, :] - sizes[:, None] ** 2
    apart = gaps > cutoff**2
    return matmul(others, jnp.where(apart, change / jnp.where(apart, gaps, 1), 0))


def _counter_turn(
    blocks: Blocks, tangent: Blocks, null: Float[Array, "d m"], cutoff: Array
) -> Float[Array, "d m"]:
    """The smallest change that keeps null directions null: ``-pinv(X) dX v``."""
    basis, values = _basis(stack(blocks))
    inverse = jnp.where(values > cutoff, 1 / jnp.where(values > cutoff, values, 1) ** 2, 0)
    pulled = _times_transposed(blocks, _times(tangent, null))
    return -matmul(basis, inverse[:, None] * matmul(basis.T, pulled))


def spectrum(rows: Rows) -> Spectrum:
    """Return the whole spectrum of X and the energies of its informative null directions."""
    d, scale = sum(_dims(rows.blocks)), rows.rounding
    small = tuple(_small(block) for block in rows.blocks)
    basis, values = _basis(stack(small))
    cutoff = scale * values[0]
    is_null = values <= cutoff
    mean_latents = _mean_latents(small, basis)
    sizes = jnp.linalg.svd(compress(jnp.where(is_null[None, :], mean_latents, 0)), compute_uv=False)
    informative = sizes > jnp.maximum(cutoff, _lent_energy(mean_latents, values, is_null))
    own = [jnp.linalg.svd(compress(block), compute_uv=False) for block in small]
    return Spectrum(
        singular_values=_pad(values, d),
        energies=_pad(jnp.where(informative, sizes, 0) ** 2, d),
        cutoff=cutoff,
        null_dimension=jnp.sum(is_null) + (d - values.shape[0]),
        informative_dimension=jnp.sum(informative),
        ranks=jnp.stack(
            [jnp.sum(v > share * v[0]) for v, share in zip(own, rows.roundings, strict=True)]
        ),
    )
