"""The figures of Table 1: every method, the training, more and more epochs, more and more k."""

import functools
from typing import Any

import numpy as np
from _har_data import LATENT
from _har_scores import CA, JOINED_PA, name_of_papers
from _transfer_data import draw_methods
from matplotlib.figure import Figure

from perfalign_jax.har.protocol.methods import Method
from perfalign_jax.plotting import Panel, plot_panels


def draw_largest(found: dict[str, Any], *, chance: float) -> Figure:
    """Accuracy of every method and kind of split; of those with a k, the largest ones."""
    largest = (None, 128, LATENT)
    shown = {
        source: {m: e for m, e in by_method.items() if m.k in largest and not m.backwards}
        for source, by_method in found.items()
    }
    return draw_methods(shown, chance=chance, quantity="top-1 (%)")


def draw_training(longest: dict[str, dict[str, Any]]) -> Figure:
    """Loss and watched accuracy of the longest training of each source."""
    panels = []
    for source, result in longest.items():
        losses = np.asarray(result["losses"]).T
        epochs = list(range(1, losses.shape[1] + 1))
        watched = np.asarray(result["watched"], np.float64)
        asked = np.flatnonzero(~np.isnan(watched).all(axis=1))
        for what, x, label, values in (
            ("loss", epochs, "InfoNCE (nats)", losses),
            ("validation", (asked + 1).tolist(), "top-1 (%)", watched[asked].T),
        ):
            panels.append(Panel(f"{source}: {what}", x, "epoch", label, {"CA": values}))
    return plot_panels(panels, columns=2)


def draw_study(by_epochs: dict[str, Any]) -> Figure:
    """Accuracy with and without PA against the epochs of CA."""
    inside = Method("trailing", k=128, inside=128, space=CA.space)
    cca = Method("ridge_cca", k=128, ridge=1.0, space=CA.space)
    lines = (CA, name_of_papers(LATENT), inside, cca, JOINED_PA)
    panels = []
    for source, by_length in by_epochs.items():
        tables = by_length.values()
        curves = {m.label: line_up([by_method.get(m) for by_method in tables]) for m in lines}
        name, xlabel = f"{source} to IMU", "epochs of contrastive training"
        panels.append(Panel(name, list(by_length), xlabel, "top-1 (%)", curves, log_x=True))
    return plot_panels(panels, columns=2)


def draw_dimensions(tables: list[tuple[str, int, dict[Method, Any]]]) -> Figure:
    """Accuracy against the number of directions that are aligned; by source, size of latents."""
    panels = []
    for source, latent, by_method in tables:
        sizes = sorted({m.k for m in by_method if m.kind == "trailing" and m.k and not m.decoder})
        method = functools.partial(Method, space=CA.space)
        trailing = {k: method("trailing", k=k) for k in sizes} | {latent: name_of_papers(latent)}
        lines = {
            "CA": [CA] * len(sizes),
            "CA + PA, trailing k": [trailing[k] for k in sizes],
            "CA + PA, energy k": [method("energy", k=k) for k in sizes],
            "CA + PA inside k directions": [method("trailing", k=k, inside=k) for k in sizes],
        }
        curves = {label: line_up([by_method.get(m) for m in some]) for label, some in lines.items()}
        name, xlabel = f"{source} to IMU, latents of {latent}", "k, directions aligned"
        panels.append(Panel(name, sizes, xlabel, "top-1 (%)", curves, log_x=True))
    return plot_panels(panels, columns=2)


def line_up(entries: list[dict[str, Any] | None]) -> np.ndarray:
    """Top-1 of every run in a column for each entry, NaN where there is none."""
    columns = [entry["top-1"]["each"] if entry else [] for entry in entries]
    values = np.full((max(map(len, columns)), len(columns)), np.nan)
    for i, column in enumerate(columns):
        values[: len(column), i] = column
    return values
