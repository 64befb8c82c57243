"""Alignments as scikit-learn estimators, for its pipelines and searches.

An estimator takes its views as a tuple ``(x1, x2, ...)``, or side by side in one table, which is
what ``GridSearchCV`` and ``Pipeline`` can pass on; ``widths`` then says where the table is cut.
Rows may be NumPy arrays, pandas or polars frames, JAX arrays or PyTorch tensors (shared by dlpack,
without a copy where the memory allows), and what comes back is of the same kind. float32 is
computed in float32 and everything else in float64, whatever JAX's flag says; the flag is not
changed.

Needs scikit-learn 1.6 or newer, which the extra ``estimators`` brings.
"""

import contextlib
import importlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perfalign_jax import _checks, automatic, serialization, solver, statistics
from perfalign_jax._numerics import matmul
from perfalign_jax.evidence import fit_search_slope
from perfalign_jax.types import Alignment

try:
    import sklearn
    from sklearn.base import BaseEstimator, clone
    from sklearn.utils import TransformerTags
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "perfalign_jax.estimators needs scikit-learn 1.6 or newer, which the extra 'estimators' "
        "brings: pip install 'scikit-learn>=1.6'."
    ) from error

__all__ = ["EvidenceAlignment", "PerfectAlignment", "ViewEncoder"]

_DTYPES = [np.float64, np.float32]  # what is neither becomes the first
_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}
_CANDIDATES = 2000  # rows that a score compares with one another


def _kind(table: Any) -> str:
    """Which library a table is of; what is of none counts as NumPy's."""
    if isinstance(table, jax.Array):
        return "jax"
    roots = {base.__module__.partition(".")[0] for base in type(table).__mro__}
    return next((kind for kind in ("pandas", "polars", "torch") if kind in roots), "numpy")


def _shape(table: Any) -> tuple[int, ...]:
    return tuple(table.shape if hasattr(table, "shape") else np.asarray(table).shape)


def _names(table: Any) -> list[str]:
    """Names of the columns; none where they are not strings."""
    names = list(getattr(table, "columns", ()))
    return names if all(isinstance(name, str) for name in names) else []


def _on_device(table: Any) -> Array | None:
    """A JAX array or a PyTorch tensor as an array where it lies; None for anything else."""
    kind = _kind(table)
    if kind not in ("jax", "torch"):
        return None
    with jax.enable_x64(True):
        if kind == "torch":
            table = jnp.from_dlpack(table.detach().contiguous())
        kept = table.dtype in _DTYPES or jnp.issubdtype(table.dtype, jnp.complexfloating)
        return table if kept else table.astype(np.float64)


def _read(table: Any, name: str) -> Any:
    """Rows of one view in float32 or float64; whether they are finite is looked at later."""
    rows = _on_device(table)
    if rows is not None:
        return rows
    return check_array(table, dtype=_DTYPES, ensure_all_finite=False, input_name=name)


def _coarsest(data: Any) -> float:
    """Eps of the coarsest floats among tables of any kind: their rounding is no direction."""
    found = [0.0]
    for table in data if _is_several(data) else [data]:
        kinds = getattr(table, "dtypes", [getattr(table, "dtype", "")])
        names = {str(kind).lower().rpartition(".")[2] for kind in kinds}
        found += [eps for name, eps in _EPS.items() if name in names]
    return max(found)


def _name_latents(k: int) -> Any:
    return np.array([f"latent{j}" for j in range(k)], dtype=object)


def _give(rows: Array, source: Any, names: Any, kind: str = "default") -> Any:
    """Rows as a table of a kind, by default the source's; a frame's index is kept."""
    own = _kind(source)
    kind = own if kind == "default" else kind
    if kind == "jax":
        return rows
    if kind == "torch":
        return importlib.import_module("torch").from_dlpack(rows)
    host = np.array(rows)  # a copy that may be written to
    if kind == "pandas":
        index = source.index if own == "pandas" else None
        return importlib.import_module("pandas").DataFrame(host, columns=list(names), index=index)
    if kind == "polars":
        return importlib.import_module("polars").DataFrame(host, schema=list(names))
    return host


@contextlib.contextmanager
def _precise(*trees: Any) -> Iterator[list[Any]]:
    """All trees in the widest dtype of their leaves, with 64-bit mode on while that is float64."""
    dtype = np.result_type(np.float32, *(leaf.dtype for leaf in jax.tree.leaves(trees)))
    wide = jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext()
    with wide:
        yield jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), list(trees))


def _is_several(data: Any) -> bool:
    """Whether the views came one by one: a tuple, or a list of arrays and not of rows."""
    arrays = isinstance(data, list) and len(data) > 0 and all(hasattr(x, "shape") for x in data)
    return isinstance(data, tuple) or arrays


def _share_out(widths: Any, columns: int) -> tuple[int, ...]:
    """How many columns of a table each view has."""
    if widths is None:
        raise ValueError(
            f"X is one table of {columns} columns: give the views as a tuple (x1, x2), or say "
            "by widths how many columns each has, such as widths=(20, -1)."
        )
    widths = widths.tolist() if isinstance(widths, np.ndarray) else widths
    if not isinstance(widths, Sequence) or isinstance(widths, str) or len(widths) < 2:
        raise TypeError(f"widths must be a tuple of two integers or more, got {widths!r}.")
    given = tuple(
        -1 if width == -1 else _checks.integer(width, f"widths[{m}]", low=1)
        for m, width in enumerate(widths)
    )
    rest = columns - sum(width for width in given if width > 0)
    if given.count(-1) > 1 or (rest < 1 if -1 in given else rest != 0):
        raise ValueError(
            f"widths must add up to the columns of X, or leave some to a single -1; got {given} "
            f"with n_features = {columns}."
        )
    return tuple(rest if width == -1 else width for width in given)


@jax.jit
def _inform(a: Float[Array, "n k"], b: Float[Array, "n k"]) -> Float[Array, ""]:
    """Nats that a row tells of its partner among ``n``, at the slope that suits these rows."""
    n, k = a.shape
    middle = jnp.mean(a + b, axis=0, keepdims=True) / 2  # products of large means cost digits
    a, b = a - middle, b - middle
    squares = [jnp.sum(z**2, axis=1) for z in (a, b)]
    distances = squares[0][:, None] + squares[1][None, :] - 2 * matmul(a, b.T)
    apart = jnp.median(jnp.sum((a - b) ** 2, axis=1))
    info = jnp.finfo(a.dtype)
    # Distances from products are right to eps of their mean: a unit far above that hides it.
    floor = jnp.maximum(info.eps**0.5 * jnp.mean(distances), info.tiny)
    scores = -k / 2 * distances / jnp.maximum(apart, floor)
    _, told = fit_search_slope(scores[None], jnp.ones((1, n), bool), jnp.ones((1, n), a.dtype))
    return jnp.mean(told) + jnp.log(jnp.asarray(n, a.dtype))


class _Transformer(BaseEstimator):
    """A transformer that gives back the kind of table it got, unless told otherwise.

    Not by scikit-learn's own mixin: that knows of one table, not of a tuple of them.
    """

    def fit_transform(self, X: Any, y: Any = None, **rows: Any) -> Any:
        """Fit, and transform the same rows; options are those of ``fit``."""
        return self.fit(X, y, **rows).transform(X)

    def set_output(self, *, transform: str | None = None) -> "_Transformer":
        """Choose what ``transform`` gives back.

        Args:
            transform: "pandas" or "polars", whatever comes in; "default", the kind that comes in,
                or what ``sklearn.set_config`` says; None changes nothing.

        Raises:
            ValueError: if it is none of them.
        """
        if transform is not None:
            _checks.one_of(transform, "transform", ("default", "pandas", "polars"))
            self._sklearn_output_config = {"transform": transform}  # clone looks for this name
        return self

    def _output(self) -> str:
        own = getattr(self, "_sklearn_output_config", {})
        return own.get("transform", sklearn.get_config()["transform_output"])

    def _check_names_in(self, names: Any) -> None:
        check_is_fitted(self, "alignment_")
        if names is None:
            return
        if len(names) != self.n_features_in_:
            raise ValueError(
                "input_features should have length equal to the number of features "
                f"({self.n_features_in_}), got {len(names)}."
            )
        if list(names) != list(getattr(self, "feature_names_in_", names)):
            raise ValueError("input_features is not equal to feature_names_in_.")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags = TransformerTags(preserves_dtype=["float64", "float32"])
        return tags


class _Aligner(_Transformer):
    """What both alignments have in common: all but how they are fitted."""

    alignment_: Alignment
    n_features_in_: int
    widths: Any

    def _spans(self, widths: Sequence[int]) -> list[slice]:
        ends = np.cumsum([0, *widths]).tolist()
        return [slice(first, last) for first, last in itertools.pairwise(ends)]

    def _take(self, X: Any, *, fitting: bool) -> list[Any]:
        """The views of a tuple, or of one table, and their names looked at."""
        if _is_several(X):
            rows = [_read(x, f"x{m + 1}") for m, x in enumerate(X)]
            if fitting:
                self.n_features_in_ = sum(x.shape[-1] for x in rows)
                names = [_names(x) for x in X]
                if names and all(names):
                    self.feature_names_in_ = np.concatenate(names).astype(object)
                elif hasattr(self, "feature_names_in_"):
                    del self.feature_names_in_
            else:
                for m, x in enumerate(X[: len(self.alignment_.dims)]):
                    self._check_columns(x, m)
            return rows
        table = _on_device(X)
        if table is None:
            table = validate_data(
                self,
                X,
                reset=fitting,
                dtype=_DTYPES,
                ensure_all_finite=False,
                ensure_min_samples=2 if fitting else 1,
            )
        else:
            if table.ndim != 2:
                raise ValueError(f"X must have shape (n, d), got shape {table.shape}.")
            validate_data(self, X, reset=fitting, skip_check_array=True)
        widths = _share_out(self.widths, table.shape[1]) if fitting else self.alignment_.dims
        return [table[:, span] for span in self._spans(widths)]

    def _columns(self, view: int) -> list[str]:
        """Names that a view had in the fit, if it had any."""
        names = list(getattr(self, "feature_names_in_", ()))
        return names[self._spans(self.alignment_.dims)[view]]

    def _check_columns(self, x: Any, view: int) -> None:
        came, expected = _names(x), self._columns(view)
        if came and expected and came != expected:
            raise ValueError(
                f"the columns of view {view} must be those of the fit, in their order: "
                f"{expected}; got {came}."
            )

    def _take_one(self, X: Any, view: Any) -> Any:
        """Rows of one view, from a table of it alone or of all views."""
        check_is_fitted(self, "alignment_")
        last = len(self.alignment_.dims) - 1
        view = _checks.integer(view, "view", low=0, high=last, why=" (views are counted from 0)")
        if _is_several(X):
            if len(X) != last + 1:
                raise ValueError(f"X must hold all {last + 1} views, or one alone; got {len(X)}.")
            return self._take(X, fitting=False)[view]
        shape, own, every = _shape(X), self.alignment_.dims[view], self.n_features_in_
        if shape[1:] != (own,):
            if len(shape) == 2 and 0 < shape[1] != every and not _names(X):
                raise ValueError(
                    f"X has {shape[1]} features, but {type(self).__name__} is expecting {every} "
                    f"features as input, or the {own} of view {view}."
                )
            return self._take(X, fitting=False)[view]
        self._check_columns(X, view)
        return _read(X, f"x{view + 1}")

    def _take_given(self, X: Any, view: Any) -> tuple[Any, Any, int | None]:
        """Rows of one view, or by view; a table whose kind they are of; which view, if one."""
        if not isinstance(X, Mapping):
            rows = self._take_one(X, view)
            return rows, X[view] if _is_several(X) else X, view
        rows = {m: self._take_one(x, m) for m, x in X.items()}
        return rows, next(iter(X.values()), None), None

    def transform(self, X: Any) -> Any:
        """Map all views into the shared latent space.

        Args:
            X: the views as a tuple, or one table of all their columns, rows paired.

        Returns:
            For a tuple one table of latents, shape ``(n, k)``, for each view (each side, where
            views were put together); for one table all of them side by side. Columns are named by
            ``get_feature_names_out``.

        Raises:
            TypeError, ValueError: as ``perfalign_jax.transform``.
        """
        check_is_fitted(self, "alignment_")
        with _precise(self.alignment_, self._take(X, fitting=False)) as (alignment, rows):
            latents = solver.transform(alignment, tuple(rows))
            if not _is_several(X):
                return _give(
                    jnp.concatenate(latents, axis=1),
                    X,
                    self.get_feature_names_out(),
                    self._output(),
                )
            sides, names = solver.sides_of(alignment), self.get_feature_names_out()
            return tuple(
                _give(z, X[side[0]], own, self._output())
                for z, side, own in zip(latents, sides, np.split(names, len(sides)), strict=True)
            )

    def encode(self, X: Any, *, view: int | None = None) -> Any:
        """Map one view, alone, into the shared latent space.

        Args:
            X: rows of the view, or of all views (a tuple or a table), of which the others are then
                not looked at; or, with evidence, ``{view: rows}`` of several.
            view: which one, counted from 0; not for ``{view: rows}``.

        Returns:
            Latents, shape ``(n, k)``; columns of a frame are ``latent0``, ``latent1``, ...

        Raises:
            TypeError, ValueError: as ``perfalign_jax.encode``.
        """
        if isinstance(X, Mapping) and view is not None:
            raise TypeError("view must not be given where X maps views to rows.")
        return self._encode(X, view, "default")

    def _encode(self, X: Any, view: int | None, kind: str) -> Any:
        given, source, view = self._take_given(X, view)
        with _precise(self.alignment_, given) as (alignment, rows):
            latents = solver.encode(alignment, rows, view=view)
            return _give(latents, source, _name_latents(alignment.k), kind)

    def predict(self, X: Any, *, source: int = 0, target: int = 1) -> Any:
        """Predict one view from another.

        Args:
            X: rows of the source view, or of all views, of which only the source's are looked at;
                or, with evidence, ``{view: rows}`` of several.
            source: which view to predict from, counted from 0; not looked at for ``{view: rows}``.
            target: which view to predict.

        Returns:
            Rows of the target, shape ``(n, d_target)``, in its units; columns of a frame have the
            names of the fit, or ``feature0``, ``feature1``, ...

        Raises:
            TypeError, ValueError: as ``perfalign_jax.predict``.
        """
        given, like, view = self._take_given(X, source)
        with _precise(self.alignment_, given) as (alignment, rows):
            found = solver.predict(alignment, rows, source=view, target=target)
            names = self._columns(target) or [f"feature{j}" for j in range(found.shape[1])]
            return _give(found, like, names)

    def score(self, X: Any, y: None = None) -> float:
        """Tell how much a latent says of its partner among the given rows, in nats.

        It is ``log n`` plus the mean log-probability of a row's partner among the ``n`` rows of the
        other view, both ways, where probabilities fall with the squared distance of the latents, at
        the one rate that suits these rows: a lower bound of the information that the views share.
        0 is chance, ``log n`` certainty, and more is better. Of more than 2,000 rows as many evenly
        spaced ones are compared; of more than two views, all pairs, and their mean is returned. It
        depends on no scale, so both kinds of alignment can be compared by it; on rows that were
        held out, that is.

        Args:
            X: the views as a tuple, or one table of all their columns, rows paired.
            y: not looked at.

        Raises:
            TypeError, ValueError: as ``perfalign_jax.transform``.

        Source: van den Oord et al. (2018), InfoNCE as a bound of mutual information; Guo et al.
        (2017) for the rate.
        """
        check_is_fitted(self, "alignment_")
        with _precise(self.alignment_, self._take(X, fitting=False)) as (alignment, rows):
            latents = solver.transform(alignment, tuple(rows))
        n = len(latents[0])
        if n < 1:
            raise ValueError("X must have at least one row to score, got none.")
        few = np.linspace(0, n - 1, min(n, _CANDIDATES)).round().astype(int)
        with jax.enable_x64(True):  # squared distances have half the digits
            kept = [z[few].astype(np.float64) for z in latents]
            told = [_inform(a, b) for i, a in enumerate(kept) for b in kept[i + 1 :]]
            return float(np.mean(told))

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Name the columns of a table of all latents: ``view0_latent0``, ``view0_latent1``, ...

        A side of several views is named by all of them, as ``view0+1_latent0``.

        Args:
            input_features: None, or the names of the columns that the fit saw.

        Raises:
            ValueError: if they are others.
        """
        self._check_names_in(input_features)
        sides = ["+".join(map(str, side)) for side in solver.sides_of(self.alignment_)]
        ks = range(self.alignment_.k)
        return np.array([f"view{side}_latent{j}" for side in sides for j in ks], dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "alignment_" not in state:
            return state
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "alignment.safetensors")
            serialization.save(state["alignment_"], path)
            return state | {"alignment_": path.read_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "alignment_" in state:
            with tempfile.TemporaryDirectory() as folder, jax.enable_x64(True):
                path = Path(folder, "alignment.safetensors")
                path.write_bytes(state["alignment_"])
                state = state | {"alignment_": serialization.load(path)}
        super().__setstate__(state)


class PerfectAlignment(_Aligner):
    """The paper's alignment (``perfalign_jax.fit``) as a scikit-learn transformer.

    Args:
        k: number of latent dimensions; None, with ``select="energy"``, the informative part.
        select: "trailing", the paper's choice, or "energy".
        center: remove the means first.
        widths: where the views come as one table, how many columns each has; a single -1 takes
            what the others leave, as in ``(20, -1)``. Not needed for a tuple of views.

    Attributes:
        alignment_: the ``Alignment``.
        n_features_in_: number of columns of all views.
        feature_names_in_ (ndarray): their names, where all had some.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.estimators import PerfectAlignment
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(50, 2))
        >>> x1, x2 = z @ rng.normal(size=(2, 3)), z @ rng.normal(size=(2, 4))
        >>> z1, z2 = PerfectAlignment(k=2, select="energy").fit_transform((x1, x2))
        >>> z1.dtype, bool(np.abs(z1 - z2).max() < 1e-12)
        (dtype('float64'), True)
    """

    def __init__(
        self,
        *,
        k: int | None = 1,
        select: Literal["trailing", "energy"] = "trailing",
        center: bool = False,
        widths: Sequence[int] | None = None,
    ) -> None:
        self.k = k
        self.select = select
        self.center = center
        self.widths = widths

    def fit(self, X: Any, y: None = None, *, sample_weight: Any = None) -> "PerfectAlignment":
        """Fit to paired rows.

        Args:
            X: the views as a tuple, or one table of all their columns.
            y: not looked at.
            sample_weight: shape ``(n,)``; a weight of 2 counts a row twice.

        Raises:
            TypeError, ValueError: as ``perfalign_jax.fit``, and if ``widths`` does not fit.
        """
        with _precise(self._take(X, fitting=True)) as (rows,):
            state: Any = statistics.from_views(
                tuple(rows), weights=_weights(sample_weight, rows), kind="samples"
            )
            state = statistics.known_to(state, _coarsest(X))
            self.alignment_ = solver.fit(state, k=self.k, select=self.select, center=self.center)
        return self


class EvidenceAlignment(_Aligner):
    """The alignment for one's own data (``perfalign_jax.align``) as a scikit-learn transformer.

    Args:
        sides: which views to put together, such as ``((0, 1), (2,))``.
        lift: None, "linear", "auto", or the name of a kernel, as in ``align``.
        ridge: relative to the mean eigenvalue of each side, or "auto".
        k: number of axes, or "auto".
        wrong_pairs: fit to as many pairs as are right by estimate, the most credible.
        folds: how many parts the rows are held out in.
        widths: as in ``PerfectAlignment``.

    Attributes:
        alignment_: the ``Alignment``, with what was chosen in ``alignment_.choice``.
        n_features_in_: number of columns of all views.
        feature_names_in_ (ndarray): their names, where all had some.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.estimators import EvidenceAlignment
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(80, 3))
        >>> table = np.hstack([x, x + 0.1 * rng.normal(size=(80, 3))])
        >>> model = EvidenceAlignment(lift=None, ridge=0.1, k=3, widths=(3, 3)).fit(table[:60])
        >>> bool(model.score(table[60:]) > 2)  # nats, of log(20) = 3.0
        True
        >>> model.get_feature_names_out()[[0, -1]].tolist()
        ['view0_latent0', 'view1_latent2']
    """

    def __init__(
        self,
        *,
        sides: Sequence[Sequence[int]] | None = None,
        lift: Any = "auto",
        ridge: Any = "auto",
        k: int | Literal["auto"] = "auto",
        wrong_pairs: bool = False,
        folds: int = 5,
        widths: Sequence[int] | None = None,
    ) -> None:
        self.sides = sides
        self.lift = lift
        self.ridge = ridge
        self.k = k
        self.wrong_pairs = wrong_pairs
        self.folds = folds
        self.widths = widths

    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        sample_weight: Any = None,
        groups: Any = None,
        mask: Any = None,
    ) -> "EvidenceAlignment":
        """Fit to paired rows.

        Args:
            X: the views as a tuple, or one table of all their columns.
            y: not looked at.
            sample_weight: shape ``(n,)``; a weight of 2 counts a row twice.
            groups: shape ``(n,)``, such as subjects: rows of one are never in different folds.
            mask: shape ``(n, M)``, True where a row has a view, or "nan".

        Raises:
            TypeError, ValueError: as ``perfalign_jax.align``, and if ``widths`` does not fit.
        """
        with _precise(self._take(X, fitting=True)) as (rows,):
            self.alignment_ = automatic.align(
                tuple(rows),
                sides=self.sides,
                lift=self.lift,
                ridge=self.ridge,
                k=self.k,
                mask=mask,
                weights=_weights(sample_weight, rows),
                groups=groups,
                wrong_pairs=self.wrong_pairs,
                folds=self.folds,
            )
        return self


def _weights(sample_weight: Any, rows: Sequence[Array]) -> Any:
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight).astype(rows[0].dtype)
    if not weights.any():
        raise ValueError("sample_weight must be above zero for some row, but all are zero.")
    return weights


class ViewEncoder(_Transformer):
    """One view in, its latents out: an alignment as a step of a pipeline.

    Fitted on paired rows, it is used on rows of one view. A decoder that follows it has then
    learnt on one view what it can do on the others: ``set_params(latents__view=1)``.

    Args:
        estimator: an alignment of this module, fitted along with the pipeline, on one table of all
            views; or ``sklearn.frozen.FrozenEstimator`` of one that is fitted already: then the
            pipeline may be fitted on rows of one view alone.
        view: which view is encoded, counted from 0; may be changed after the fit.

    Attributes:
        alignment_: the fitted estimator.
        n_features_in_: number of columns that the fit saw.
        feature_names_in_ (ndarray): their names, if they had some.

    Example:
        >>> import numpy as np
        >>> from sklearn.frozen import FrozenEstimator
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import Pipeline
        >>> from perfalign_jax.estimators import PerfectAlignment, ViewEncoder
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(60, 2))
        >>> x1, x2 = z @ rng.normal(size=(2, 3)), z @ rng.normal(size=(2, 4))
        >>> labels = z[:, 0] > 0
        >>> aligned = PerfectAlignment(k=2, select="energy").fit((x1, x2))
        >>> latents = ViewEncoder(FrozenEstimator(aligned), view=0)
        >>> chain = Pipeline([("latents", latents), ("decoder", LogisticRegression())])
        >>> chain = chain.fit(x1, labels)  # labels of the first view
        >>> bool(chain.set_params(latents__view=1).score(x2, labels) > 0.9)  # used on the second
        True
    """

    def __init__(self, estimator: Any, *, view: int = 0) -> None:
        self.estimator = estimator
        self.view = view

    def fit(self, X: Any, y: Any = None) -> "ViewEncoder":
        """Fit the alignment to paired rows, unless it is frozen.

        Args:
            X: the views as a tuple, or one table of all their columns; for a frozen alignment rows
                of the view will do.
            y: not looked at.

        Raises:
            TypeError, ValueError: as the alignment.
        """
        try:
            self.alignment_ = clone(self.estimator).fit(X, None)
        except ValueError as error:
            if not _is_several(X):
                error.add_note(
                    "X must be a table of all views, or their tuple. To fit on rows of one view "
                    "alone, wrap a fitted alignment in sklearn.frozen.FrozenEstimator."
                )
            raise
        if _is_several(X):
            self.n_features_in_ = self.alignment_.n_features_in_
            if hasattr(self, "feature_names_in_"):  # of an earlier fit
                del self.feature_names_in_
        else:
            validate_data(self, X, skip_check_array=True)
        return self

    def transform(self, X: Any) -> Any:
        """Map rows of the view into the shared latent space.

        Args:
            X: rows of the view alone, or one table of all views' columns.

        Returns:
            Latents, shape ``(n, k)``.

        Raises:
            TypeError, ValueError: as the alignment's ``encode``.
        """
        check_is_fitted(self, "alignment_")
        return self.alignment_._encode(X, self.view, self._output())

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Name the latents ``latent0``, ``latent1``, ... whichever view they are of.

        Args:
            input_features: None, or the names of the columns that the fit saw.

        Raises:
            ValueError: if they are others.
        """
        self._check_names_in(input_features)
        return _name_latents(self.alignment_.alignment_.k)
