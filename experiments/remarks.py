"""Remarks 2.6 and 2.7 as executable statements.

Command:  python experiments/remarks.py [--quick | --full] [--out results]
Time:     15 s on 2 cores (--quick 10 s)
Expect:   every equality holds to 1e-9 or better (most to 1e-14), every inequality in every draw.

Each line of the table is one statement, with the largest relative error over random problems of
many shapes (noisy views, so that nothing is zero by accident). The references are NumPy's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _kit.options import Options, start
from _kit.report import Row
from _kit.rows import finish
from rich.progress import track
from sklearn.linear_model import LinearRegression

from perfalign_jax import solver
from perfalign_jax.baselines import least_squares, total_least_squares

DRAWS = {"quick": 1, "default": 8, "full": 50}
SHAPES = ((50, 3, 4, 2), (80, 2, 8, 3), (30, 6, 4, 4))  # n, d1, d2, k
Errors = dict[str, float]


def loss(a1: Any, a2: Any, x1: Any, x2: Any) -> jax.Array:
    """Return ``||A X||_F^2`` of the paper, with samples as rows and A2 as it multiplies x2."""
    return jnp.sum((x1 @ a1.T - x2 @ a2.T) ** 2)


def relative(a: object, b: object) -> float:
    """Return the largest difference of two arrays over the largest entry of the second."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(float).tiny))


def remark_2_6(x1: np.ndarray, x2: np.ndarray, k: int, rng: np.random.Generator) -> Errors:
    """Linear regression is alignment with A1 fixed to the identity."""
    d1, d2 = x1.shape[1], x2.shape[1]
    identity, w = np.eye(d1), rng.normal(size=(d1, d2))
    best = np.linalg.solve(x2.T @ x2, x2.T @ x1).T  # the normal equations
    theirs = LinearRegression(fit_intercept=False).fit(x2, x1).coef_
    gradient = jax.grad(loss, argnums=1)(identity, jnp.asarray(best), x1, x2)
    ours = least_squares((x2, x1), center=False)  # maps its first view onto its second
    free = np.sum(np.asarray(solver.fit((x1, x2), k=k).singular_values) ** 2)
    # Regression's A = [I, W], with orthonormal rows spanning the same k directions.
    a = np.linalg.qr(np.hstack([identity, best])[:k].T)[0].T
    regressed = float(loss(a[:, :d1], a[:, d1:], x1, x2))
    return {
        "||AX||² with A1 = I, A2 = W is the regression loss ||Y - WX||²": relative(
            loss(identity, jnp.asarray(w), x1, x2), np.linalg.norm(x1 - x2 @ w.T) ** 2
        ),
        "its minimiser over W is scikit-learn's linear regression": relative(best, theirs),
        "... and this package's least squares": relative(ours.projections[0], best),
        "the gradient of ||AX||² vanishes there (over the size of YX')": float(
            np.abs(gradient).max() / np.abs(x1.T @ x2).max()
        ),
        "freed from A1 = I, Eq. 7 has a loss no larger (A with orthonormal rows)": max(
            float(free) / regressed - 1, 0.0
        ),
    }


def remark_2_7(x1: np.ndarray, x2: np.ndarray, k: int, rng: np.random.Generator) -> Errors:
    """Alignment is empirical risk minimisation over two linear hypothesis classes."""
    n, d1 = x1.shape
    stacked = np.hstack([x1, -x2])
    d = stacked.shape[1]
    alignment = solver.fit((x1, x2), k=k)
    a1, a2 = (np.asarray(a) for a in alignment.projections)
    risk = np.mean([np.sum((a1 @ p - a2 @ q) ** 2) for p, q in zip(x1, x2, strict=True)])
    singular = np.linalg.svd(stacked)[1]
    least = np.sum(np.r_[singular, np.zeros(d - singular.size)][-k:] ** 2)
    beaten = 0.0
    for _ in range(200):
        other = np.linalg.qr(rng.normal(size=(d, k)))[0].T
        beaten = max(beaten, least / float(loss(other[:, :d1], other[:, d1:], x1, x2)) - 1)
    # A <- orth(A - A X'X / c) from a random start; 256 steps between two orthonormalisations.
    scatter = stacked.T @ stacked
    steps = np.linalg.matrix_power(np.eye(d) - scatter / np.linalg.norm(scatter, 2), 256)
    a = np.linalg.qr(rng.normal(size=(d, k)))[0]
    for _ in range(600):
        a = np.linalg.qr(steps @ a)[0]
    descended = np.linalg.norm(stacked @ a) ** 2
    f1 = solver.encode(alignment, x1, view=0)
    supervised = np.linalg.norm(f1 - x2 @ np.linalg.lstsq(x2, f1, rcond=None)[0]) ** 2
    w = np.asarray(total_least_squares((x1, x2), center=False).projections[0])
    square = solver.fit((x1, x2), k=x2.shape[1])
    b1, b2 = (np.asarray(b) for b in square.projections)
    return {
        "the empirical risk of A1, A2 with squared distance is ||AX||² / n": relative(
            risk, loss(a1, a2, x1, x2) / n
        ),
        "Eq. 7 reaches the sum of the k smallest squared singular values": relative(
            n * risk, least
        ),
        "none of 200 random A with A A' = I has a smaller risk": max(beaten, 0.0),
        "gradient descent on orthonormal A from a random start ends at Eq. 7's risk": relative(
            descended, least
        ),
        "with labels f1(x1) held fixed it is supervised ERM, least at linear regression": max(
            float(supervised) / (n * risk) - 1, 0.0
        ),
        "with k = d2 the map A2⁻¹ A1 is total least squares": relative(np.linalg.solve(b2, b1), w),
    }


def main(options: Options) -> None:
    rng = np.random.default_rng(options.seed)
    remarks: dict[str, Callable[..., Errors]] = {"2.6": remark_2_6, "2.7": remark_2_7}
    worst: dict[str, Errors] = {name: {} for name in remarks}
    draws, shapes = DRAWS[options.scale], SHAPES[:1] if options.quick else SHAPES
    for _ in track(range(draws), description="random problems", transient=True):
        for n, d1, d2, k in shapes:
            z = rng.normal(size=(n, k))
            x1, x2 = (
                z @ rng.uniform(-5, 5, size=(k, d)) + rng.normal(size=(n, d)) for d in (d1, d2)
            )
            for name, statements in remarks.items():
                for statement, error in statements(x1, x2, min(k, d1), rng).items():
                    worst[name][statement] = max(error, worst[name].get(statement, 0.0))
    rows, note = [], "Largest relative error over all problems."
    for name, errors in worst.items():
        for statement, error in errors.items():
            ours = f"{error:.0e}" if error else "0"
            verdict = "reproduced" if error < 1e-9 else "not reproduced"
            rows.append(Row(f"Remark {name}: {statement}", "holds", ours, "", verdict, note))
    largest = max(error for errors in worst.values() for error in errors.values())
    finish(
        options,
        "remarks",
        title="Remarks 2.6 and 2.7: regression and empirical risk",
        summary=(
            f"Each statement was computed both ways on {draws * len(shapes)} random noisy problems "
            f"of {len(shapes)} shapes; the largest relative error of all is {largest:.0e}. Linear "
            "regression is the alignment loss with A1 fixed; alignment is risk minimisation over "
            "two linear maps, and needs the constraint A A' = I, without which A = 0 would win."
        ),
        rows=rows,
        less=f"{DRAWS['quick']} of {DRAWS['default']} draws, 1 of {len(SHAPES)} shapes",
        values=worst,
        config={"draws": draws, "shapes": shapes},
    )


if __name__ == "__main__":
    start(main, Options, __doc__)
