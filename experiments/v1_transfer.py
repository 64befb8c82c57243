"""The paper's first version: classes as Gaussians in the latent space, with and without labels.

Command:  python experiments/v1_transfer.py [--quick | --full] [--out results]
Time:     20 s on 2 cores (--quick 15 s)
Expect:   without noise, at the paper's size: the accuracy of the same classifier in the true
          latent space (99.8 %), for classes found without labels as for labels of one modality.

Half of the pairs align and train, half test. "Found without labels": a Gaussian mixture fitted to
modality 1's latents, clusters named by best matching. "Zero-shot": class Gaussians from labels of
modality 1, tested on modality 2. "Few-shot": with five labelled samples per class of modality 2.
The harder settings, which the paper does not have, show where this ends.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _kit.figures import plot_errors
from _kit.options import Options, start
from _kit.report import Row, format_number
from _kit.rows import distribution_row, finish, map_draws
from rich.progress import track

from perfalign_jax import gaussian, plotting, solver, synthetic
from perfalign_jax.baselines import ridge_cca

SAMPLES, HALF, SHOTS = 2000, 1000, 5
SIZES = {"quick": (8, 2), "default": (60, 20), "full": (1000, 200)}  # draws, draws with a mixture
SETTINGS = {  # features per modality, noise, method
    "the paper's": (2, 0.0, "perfect"),
    "noise 1": (2, 1.0, "perfect"),
    "noise 5": (2, 5.0, "perfect"),
    "50 features, noise 5": (50, 5.0, "perfect"),
    "50 features, noise 5, ridge CCA": (50, 5.0, "ridge CCA"),
}
QUICK = ("the paper's", "50 features, noise 5, ridge CCA")
FOUND = ("found without labels", "found without labels, true latent space")
TASKS = ("found without labels", "zero-shot", "few-shot", "true latent space")


def draw(features: int, key_and_noise: tuple[jax.Array, jax.Array]) -> synthetic.Problem:
    key, noise = key_and_noise
    return synthetic.draw_problem(key, SAMPLES, dims=(features, features), noise=noise)


def transfer(method: str, problem: synthetic.Problem) -> dict[str, jax.Array]:
    """Accuracies of class Gaussians on modality 2, and the latents, for one draw."""
    train = tuple(x[:HALF] for x in problem.views)
    if method == "perfect":
        alignment = solver.fit(train, k=2, method="qr")
    else:
        alignment = ridge_cca(train, k=2, ridge=0.01, center=True)
    z1, z2 = solver.transform(alignment, problem.views)
    labels = problem.labels
    # The first shots of each class: the same number of each, whatever the draw.
    order = jnp.argsort(labels[:HALF], stable=True)
    second = jnp.sum(labels[:HALF] == 0)
    shots = order[jnp.concatenate([jnp.arange(SHOTS), second + jnp.arange(SHOTS)])]

    def accuracy(source: jax.Array, target: jax.Array, few: bool = False) -> jax.Array:
        extra = (target[:HALF][shots], labels[shots]) if few else None
        classes = gaussian.fit_gaussians(source[:HALF], labels[:HALF], classes=2, shots=extra)
        return gaussian.accuracy(gaussian.classify(classes, target[HALF:]), labels[HALF:])

    x1, x2 = problem.views
    return {
        "zero-shot": accuracy(z1, z2),
        "few-shot": accuracy(z1, z2, few=True),
        "true latent space": accuracy(problem.latents, problem.latents),
        "without alignment": accuracy(x1, x2),
        "z1": z1,
        "z2": z2,
    }


def find_classes(
    key: jax.Array, source: np.ndarray, target: np.ndarray, labels: np.ndarray
) -> float:
    """Accuracy on the target's test half of a mixture fitted to the source without labels."""
    mixture = gaussian.fit_mixture(key, source[:HALF], components=2, restarts=3)
    clusters = np.asarray(gaussian.classify(mixture, target[HALF:]))
    match = gaussian.match_classes(clusters, labels[HALF:], classes=2)
    return float(gaussian.accuracy(match[clusters], labels[HALF:]))


def run(
    settings: dict[str, tuple[int, float, str]], keys: jax.Array, mixtures: int
) -> tuple[dict[str, dict[str, np.ndarray]], tuple[Any, ...]]:
    """Accuracies by setting and task; test latents and labels of the first setting's first draw."""
    draws = {features: partial(draw, features) for features, _, _ in settings.values()}
    transfers = {method: partial(transfer, method) for _, _, method in settings.values()}
    values: dict[str, dict[str, np.ndarray]] = {}
    first: tuple[Any, ...] = ()
    true: list[float] = []
    for name, (features, noise, method) in settings.items():
        inputs = keys, np.full(len(keys), noise)
        problems = map_draws(draws[features], inputs, label=f"{name}: draws")
        scores = map_draws(transfers[method], problems, label=f"{name}: transfer")
        latents = scores.pop("z1"), scores.pop("z2")
        some = zip(keys[:mixtures], *latents, problems.latents, problems.labels, strict=False)
        found = []
        for key, z1, z2, z, labels in track(some, f"{name}: mixtures", mixtures, transient=True):
            found.append(find_classes(key, z1, z2, labels))
            if not values:  # the true latents are the same in every setting
                true.append(find_classes(key, z, z, labels))
        first = first or (tuple(z[0, HALF:] for z in latents), problems.labels[0, HALF:])
        values[name] = {**scores, FOUND[0]: np.asarray(found), FOUND[1]: np.asarray(true)}
    return values, first


def main(options: Options) -> None:
    draws, mixtures = SIZES[options.scale]
    keys = jax.random.split(jax.random.key(options.seed), draws)
    settings = {n: s for n, s in SETTINGS.items() if not options.quick or n in QUICK}
    values, first = run(settings, keys, mixtures)
    means = {task: format_number(100 * v.mean()) for task, v in values["the paper's"].items()}
    loss = {n: 100 * (v["true latent space"] - v["zero-shot"]) for n, v in values.items()}
    lost = "; ".join(f"{n}: {x.mean():.1f}, {np.median(x):.1f}" for n, x in list(loss.items())[1:])
    accuracies = {f"accuracy, {t}": {n: v[t] for n, v in values.items()} for t in TASKS}
    finish(
        options,
        "v1_transfer",
        title="First version of the paper: classes and transfer with Gaussians",
        summary=(
            f"Latents of two Gaussian classes, {SAMPLES} pairs, half to align and train, half to "
            "test. Without noise a classifier of modality 1's latents is on modality 2 as good as "
            f"one in the true latent space ({means['zero-shot']} % against "
            f"{means['true latent space']} %), and a mixture finds the "
            "classes without any label: the cluster found in modality 1 is the class in "
            "modality 2. With noise the loss of zero-shot transfer, in points (mean, median), is: "
            f"{lost}. Ridge CCA, which scales each view first, is the last of these."
        ),
        rows=make_rows(values),
        less=f"{SIZES['quick'][0]} of {SIZES['default'][0]} draws",
        figures={
            "v1_accuracy.png": (
                plot_errors(accuracies),
                "Accuracy (share of modality 2's test samples) by setting, one dot per draw.",
            ),
            "v1_latents.png": (
                plotting.plot_latents(*first),
                "Test halves of both modalities in the estimated latent space, first draw.",
            ),
        },
        values=values,
        config={"samples": SAMPLES, "draws": draws, "mixtures": mixtures, "shots_per_class": SHOTS},
    )


def make_rows(values: dict[str, dict[str, np.ndarray]]) -> list[Row]:
    rows = []
    for setting, by_task in values.items():
        for task in (*TASKS, "without alignment"):
            row = distribution_row(f"{setting}: accuracy, {task}", by_task[task])
            if task in TASKS[:3]:
                reference = by_task[FOUND[1] if task == FOUND[0] else "true latent space"]
                short = float(np.mean(reference[: by_task[task].size] - by_task[task]))
                note = f"{100 * short:.2f} points below the true latent space. {row.note}"
                row = replace(row, note=note)
                if setting == "the paper's":
                    paper = "classes are identified" if task == TASKS[0] else "transfer works"
                    verdict = "reproduced" if short < 0.005 else "not reproduced"
                    row = replace(row, paper=paper, verdict=verdict)
            rows.append(row)
    return rows


if __name__ == "__main__":
    start(main, Options, __doc__)
