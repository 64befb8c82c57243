"""Section 6.1: class labels as a modality against images, and why the latents collapse.

Command:  python experiments/labels_as_modality.py [--quick | --full] [--out results]
Time:     10 s on 2 cores (--quick 8 s)
Expect:   every null direction is trivial, so up to that k the latents are zero (the paper's "values
          approaching zero"); at k = 10 they keep next to nothing of the images.

The paper saw this with CIFAR-10; scikit-learn's bundled 8 x 8 digits stand in for it. Labels are
one-hot rows, images are divided by 16. A held-out image is given the label whose latent is nearest.
"""

from collections.abc import Callable

import numpy as np
from _kit.figures import plot_errors
from _kit.options import Options, start
from _kit.report import Row, format_number
from _kit.rows import distribution_row, finish
from rich.progress import track
from sklearn.datasets import load_digits

from perfalign_jax import diagnosis, metrics, plotting, solver
from perfalign_jax.baselines import ridge_cca
from perfalign_jax.types import Alignment, Diagnosis

CLASSES, HELD_OUT, FEW = 10, 497, 30
SPLITS = {"quick": 3, "default": 10, "full": 200}
Pair = tuple[np.ndarray, np.ndarray]
Scores = dict[str, dict[str, np.ndarray]]  # by method and quantity, one value per split


def score(alignment: Alignment, train: Pair, test: Pair) -> dict[str, float]:
    z1, z2 = solver.transform(alignment, train)
    names = np.asarray(solver.encode(alignment, np.eye(CLASSES), view=0))
    held_out = np.asarray(solver.encode(alignment, test[1], view=1))
    nearest = np.linalg.norm(held_out[:, None] - names[None], axis=2).argmin(axis=1)
    return {
        "CMAE": float(metrics.cmae(z1, z2)),
        "latent norm": float(np.linalg.norm(z2, axis=1).mean()),
        "norm of the labels' matrix": float(np.linalg.norm(alignment.projections[0])),
        "energy kept, labels": float(np.sum(z1**2) / np.sum(train[0] ** 2)),
        "energy kept, images": float(np.sum(z2**2) / np.sum(train[1] ** 2)),
        "accuracy": float(np.mean(nearest == test[0].argmax(axis=1))),
    }


def fits(trivial: int) -> dict[str, tuple[bool, Callable[[Pair], Alignment]]]:
    """Name to whether it is fitted to few pairs only, and how."""
    return {
        f"trailing, k = {trivial} (null)": (False, lambda p: solver.fit(p, k=trivial)),
        "trailing, k = 10": (False, lambda p: solver.fit(p, k=10)),
        "ridge CCA, k = 9": (False, lambda p: ridge_cca(p, k=9, ridge=0.1, center=True)),
        f"trailing, k = 10, {FEW} pairs": (True, lambda p: solver.fit(p, k=10)),
        f"informative part, {FEW} pairs": (True, lambda p: solver.fit(p, k=None, select="energy")),
    }


def main(options: Options) -> None:
    images, classes = load_digits(return_X_y=True)
    views = np.eye(CLASSES)[classes], images / 16
    rng = np.random.default_rng(options.seed)
    whole = diagnosis.diagnose(views)
    trivial, informative = int(whole.trivial_dimension), int(whole.informative_dimension)
    methods = fits(trivial)
    values: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    few_dimensions = []
    for _ in track(range(SPLITS[options.scale]), description="splits", transient=True):
        order = rng.permutation(len(classes))
        parts = order[:HELD_OUT], order[HELD_OUT:], order[HELD_OUT:][:FEW]
        test, train, few = ((views[0][rows], views[1][rows]) for rows in parts)
        found = diagnosis.diagnose(few)
        few_dimensions.append((int(found.trivial_dimension), int(found.informative_dimension)))
        for name, (on_few, fit) in methods.items():
            pairs = few if on_few else train
            values[name].append(score(fit(pairs), pairs, test))
    arrays = {n: {q: np.array([v[q] for v in vs]) for q in vs[0]} for n, vs in values.items()}
    shown = {
        "accuracy (share of held-out images)": {n: v["accuracy"] for n, v in arrays.items()},
        "mean latent norm (latent units)": {n: v["latent norm"] for n, v in arrays.items()},
    }
    norms = float(np.linalg.norm(views[1], 2)), float(np.linalg.norm(np.hstack(views), 2))
    finish(
        options,
        "labels_as_modality",
        title="Section 6.1: class labels as a modality",
        summary=(
            f"One-hot labels against {len(classes)} images of digits (for the paper's CIFAR-10). "
            f"The null space of the stacked views has {trivial} dimensions, {informative} of them "
            f"informative: every perfect alignment is trivial, its latents zero. With k = 10 the "
            "rest are the directions in which the images vary least, so the latents keep next to "
            "nothing of them. Many images share one label, so nothing linear can be equal in both "
            "views; a method that scales each view first (ridge CCA) finds what they share. With "
            f"fewer pairs than features ({FEW}) an informative null space exists, and choosing "
            "directions by energy finds it where the trailing ones mix it with the trivial."
        ),
        rows=make_rows(whole, arrays, norms[1] / norms[0], few_dimensions),
        less=f"{SPLITS['quick']} of {SPLITS['default']} splits",
        figures={
            "labels_spectrum.png": (
                plotting.plot_spectrum(whole, k=10, title="Labels and images stacked"),
                "Spectrum of labels and images stacked: every null direction is trivial.",
            ),
            "labels_accuracy.png": (
                plot_errors(shown),
                "Left: held-out images whose nearest label is the right one (chance 0.1). Right: "
                "the latents' mean norm. One dot per split.",
            ),
        },
        values={
            "scores": arrays,
            "singular_values": np.asarray(whole.singular_values),
            "null_dimension": int(whole.null_dimension),
            "trivial_dimension": trivial,
            "informative_dimension": informative,
            "operator_norms": {"images": norms[0], "stacked": norms[1]},
            "few_pairs_dimensions": few_dimensions,
        },
        config={"splits": SPLITS[options.scale], "held_out": HELD_OUT, "few": FEW},
    )


def judge_collapse(largest: float) -> str:
    """Whether latents and the labels' matrix vanish: the largest norm of them."""
    return "reproduced, explained by the trivial dimension" if largest < 1e-9 else "not reproduced"


def judge_norm(ratio: float) -> str:
    """Whether stacking labels onto images makes the operator norm smaller."""
    return "reproduced" if ratio < 1 else "not reproduced: it did not shrink"


def make_rows(
    whole: Diagnosis, scores: Scores, growth: float, few_dimensions: list[tuple[int, int]]
) -> list[Row]:
    """The rows; growth is the stacked views' norm over the images'."""
    trivial, informative = int(whole.trivial_dimension), int(whole.informative_dimension)
    shares = {f"accuracy on held-out images: {n}": v["accuracy"] for n, v in scores.items()}
    of_few = "{:.1f} trivial, {:.1f} informative".format(*np.mean(few_dimensions, axis=0))
    collapsed, trailing, *_ = scores.values()
    kept, beyond = trailing["energy kept, images"], "Not zero error either: beyond the null space."
    largest = max(collapsed["latent norm"].max(), collapsed["norm of the labels' matrix"].max())
    return [
        Row(
            "null space of the stacked views",
            ours=f"{trivial} trivial, {informative} informative",
            note="The trivial ones are pixels that are zero in every image (and their like).",
        ),
        Row(
            f"largest latent norm and norm of the labels' matrix, k = {trivial}",
            paper="approaching zero",
            ours=format_number(largest),
            verdict=judge_collapse(largest),
            note=f"Over {collapsed['CMAE'].size} splits; CMAE at most "
            f"{format_number(collapsed['CMAE'].max())}: error zero, and nothing in it.",
        ),
        distribution_row("share of the images' energy kept, k = 10", kept, note=beyond),
        Row(
            "operator norm of the stacked views over that of the images",
            paper="diminished",
            ours=format_number(growth),
            verdict=judge_norm(growth),
            note="A stacked matrix has at least the norm of its parts; it is the smallest singular "
            "values, not the largest, that repeated labels leave small.",
        ),
        Row(f"null space with {FEW} pairs", ours=of_few, note="Means over the splits."),
        *(distribution_row(name, draws) for name, draws in shares.items()),
    ]


if __name__ == "__main__":
    start(main, Options, __doc__)
