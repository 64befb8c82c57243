"""The figures of Table 1: every method, the training, more and more epochs, more and more k."""

from typing import Any

import numpy as np
from _har_data import LATENT
from _har_scores import CA, JOINED_PA, name_of_papers
from matplotlib.figure import Figure

from perfalign_jax import plotting
from perfalign_jax.har.protocol.methods import Method


def draw_methods(found: dict[str, Any], *, chance: float) -> Figure:
    """Accuracy of every method and kind of split; of those with a k, the largest ones."""
    panels: dict[str, Any] = {}
    for source, by_method in found.items():
        for method, by_kind in by_method.items():
            if method.k in (None, 128, LATENT) and not method.backwards:
                panels.setdefault(f"{source} to IMU", {})[method.label] = {
                    kind: tuple(entry["top-1"].values())[:3] for kind, entry in by_kind.items()
                }
    return plotting.plot_transfer(panels, chance=chance, quantity="top-1 (%)")


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
            panels.append(plotting.Panel(f"{source}: {what}", x, "epoch", label, {"CA": values}))
    return plotting.plot_panels(panels, columns=2)


def draw_study(by_epochs: dict[str, Any]) -> Figure:
    """Accuracy with and without PA against the epochs of CA."""
    inside = Method("trailing", k=128, inside=128, space=CA.space)
    cca = Method("ridge_cca", k=128, ridge=1.0, space=CA.space)
    lines = (CA, name_of_papers(LATENT), inside, cca, JOINED_PA)
    panels = [
        plotting.Panel(
            f"{source} to IMU",
            list(by_length),
            "epochs of contrastive training",
            "top-1 (%)",
            {
                m.label: line_up([by_method.get(m) for by_method in by_length.values()])
                for m in lines
            },
            log_x=True,
        )
        for source, by_length in by_epochs.items()
    ]
    return plotting.plot_panels(panels, columns=2)


def draw_dimensions(tables: list[tuple[str, int, dict[Method, Any]]]) -> Figure:
    """Accuracy against the number of directions that are aligned; by source, size of latents."""
    panels = []
    for source, latent, by_method in tables:
        sizes = sorted({m.k for m in by_method if m.kind == "trailing" and m.k and not m.decoder})
        lines = {
            "CA": [CA] * len(sizes),
            "CA + PA, trailing k": [
                name_of_papers(latent) if k == latent else Method("trailing", k=k, space=CA.space)
                for k in sizes
            ],
            "CA + PA, energy k": [Method("energy", k=k, space=CA.space) for k in sizes],
            "CA + PA inside k directions": [
                Method("trailing", k=k, inside=k, space=CA.space) for k in sizes
            ],
        }
        panels.append(
            plotting.Panel(
                f"{source} to IMU, latents of {latent}",
                sizes,
                "k, directions aligned",
                "top-1 (%)",
                {label: line_up([by_method.get(m) for m in some]) for label, some in lines.items()},
                log_x=True,
            )
        )
    return plotting.plot_panels(panels, columns=2)


def line_up(entries: list[dict[str, Any] | None]) -> np.ndarray:
    """Top-1 of every run in a column for each entry, NaN where there is none."""
    columns = [entry["top-1"]["each"] if entry else [] for entry in entries]
    values = np.full((max(map(len, columns)), len(columns)), np.nan)
    for i, column in enumerate(columns):
        values[: len(column), i] = column
    return values
