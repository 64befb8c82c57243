"""Figures. The only room that imports matplotlib.

Each function returns a ``Figure`` of its own and touches no global state of matplotlib, so it works
without a display, in threads and in notebooks. Colours can be told apart with any colour vision.
"""

from perfalign_jax.plotting._alignment import plot_alignment
from perfalign_jax.plotting._curves import Panel, plot_choice, plot_panels, plot_sweep
from perfalign_jax.plotting._looks import save_figure
from perfalign_jax.plotting._spaces import plot_latents, plot_spectrum, plot_transfer

__all__ = [
    "Panel",
    "plot_alignment",
    "plot_choice",
    "plot_latents",
    "plot_panels",
    "plot_spectrum",
    "plot_sweep",
    "plot_transfer",
    "save_figure",
]
