"""Figures show the data they are given, say what the axes are, and leave no global state."""

import re
import subprocess
import sys

import numpy as np
import pytest
from _kit import figures
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

import perfalign_jax as pa
from perfalign_jax import plotting, sweeps, types


@pytest.fixture
def drawn(rng):
    latents = rng.normal(size=(30, 2))
    labels = np.arange(30) % 2
    maps = rng.normal(size=(2, 3, 2))
    return latents, tuple(latents @ s.T for s in maps), labels


def texts(figure):
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    return legend, [(a.get_xlabel(), a.get_ylabel()) for a in figure.axes]


def assert_readable(figure, tmp_path):
    """Save it, see that something is drawn, and that no text leaves the page or meets another."""
    path = plotting.save_figure(figure, tmp_path / "new folder" / "figure.png")
    pixels = imread(path)
    width, height = figure.get_size_inches()
    assert pixels.shape[:2] == (round(height * 150), round(width * 150))
    assert pixels[..., :3].min() < 0.5
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = [t for a in figure.axes for t in (a.title, a.xaxis.label, a.yaxis.label)]
    shown += figure.legends[0].get_texts()
    boxes = [t.get_window_extent(canvas.get_renderer()) for t in shown if t.get_text()]
    for i, box in enumerate(boxes):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_choice_is_drawn_with_its_errors_and_what_was_chosen(tmp_path):
    trials = tuple(
        types.Trial(lift, ridge, k, 0.3 + 0.1 * (ridge == 0.1) + k / 100, 0.02)
        for lift in ("none", "gaussian, bandwidth 0.7 of the median distance")
        for ridge in (0.01, 0.1, 1.0)
        for k in (4, 8)
    )
    choice = types.Choice(trials, trials[3], 800, 160, "it is best")
    figure = plotting.plot_choice(choice, title="what was tried")
    legend, ((xlabel, ylabel),) = texts(figure)
    assert legend[0] == "lift: none"
    assert legend[-2:] == ["chosen, k = 8", "chance"]
    assert "ridge" in xlabel
    assert "160" in ylabel
    assert_readable(figure, tmp_path)
    with pytest.raises(ValueError, match="choice must hold trials"):
        plotting.plot_choice(types.Choice((), trials[0], 0, 0, "given"))


def test_latents_show_every_point_of_both_modalities(drawn, rng, tmp_path):
    z1, _, labels = drawn
    z2 = z1 + rng.normal(size=z1.shape)
    figure = plotting.plot_latents(
        (z1, z2), labels, names=("component at (0, 1)", "component at (4, 5)")
    )
    (axes,) = figure.axes
    for collection, z in zip(axes.collections, (z1, z2), strict=True):
        np.testing.assert_array_equal(collection.get_offsets(), z)
    ring_colors, cross_colors = (c.get_edgecolors() for c in axes.collections)
    np.testing.assert_array_equal(ring_colors[:, :3], cross_colors[:, :3])
    assert len(np.unique(ring_colors, axis=0)) == 2
    legend, labels_of_axes = texts(figure)
    assert legend == ["component at (0, 1)", "component at (4, 5)", "modality 1", "modality 2"]
    assert all("latent units" in label for label in labels_of_axes[0])
    assert_readable(figure, tmp_path)


def test_latents_of_more_than_two_modalities_have_a_marker_each(drawn, tmp_path):
    z, _, labels = drawn
    figure = plotting.plot_latents((z, z + 1, z - 1), labels)
    assert len(figure.axes[0].collections) == 3
    assert "modality 3" in texts(figure)[0]
    assert_readable(figure, tmp_path)
    with pytest.raises(ValueError, match="latents must hold 2 to 5 arrays, got 1"):
        plotting.plot_latents((z,), labels)


def test_data_model_has_a_panel_per_space(drawn, tmp_path):
    latents, views, labels = drawn
    figure = figures.plot_data_model(latents, views, labels)
    for axes, points in zip(figure.axes, (latents, *views), strict=True):
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), points[:, :2])
    assert [a.get_title() for a in figure.axes] == ["True latent space", "Modality 1", "Modality 2"]
    assert_readable(figure, tmp_path)


def test_boundary_lies_where_it_is_said(drawn, tmp_path):
    latents, views, labels = drawn
    lines = [(np.array([1.0, 2.0]), 0.5), (np.array([0.0, 1.0]), -0.25)]
    figure = figures.plot_boundary(
        latents, views, (latents, latents), labels, line=lines[0], estimated_lines=lines
    )
    for panel, wanted in ((0, lines[:1]), (3, lines)):
        for drawn_line, (w, b) in zip(figure.axes[panel].lines, wanted, strict=True):
            for point in (drawn_line.get_xy1(), drawn_line.get_xy2()):
                assert abs(np.dot(w, point) + b) < 1e-12  # rounding
    assert_readable(figure, tmp_path)


def test_errors_show_draws_median_and_the_papers_number(rng, tmp_path):
    draws = {
        "MLRE (latent units)": {"perfect": rng.uniform(1, 9, 41), "trained": rng.uniform(1, 9, 41)},
        "CMAE (latent units)": {"perfect": rng.uniform(1, 9, 41) * 1e-15, "trained": np.ones(41)},
        "NCMAE": {"perfect": rng.uniform(1, 2, 41)},
    }
    figure = figures.plot_errors(draws, paper={"CMAE (latent units)": {"perfect": 3.66e-15}})
    assert [a.get_xlabel() for a in figure.axes] == list(draws)
    assert [a.get_xscale() for a in figure.axes] == ["linear", "log", "linear"]
    lines = figure.axes[1].lines
    np.testing.assert_array_equal(lines[0].get_xdata(), draws["CMAE (latent units)"]["perfect"])
    assert lines[1].get_xdata()[0] == np.median(draws["CMAE (latent units)"]["perfect"])
    assert any(line.get_marker() == "D" and line.get_xdata()[0] == 3.66e-15 for line in lines)
    assert "the paper's number" in texts(figure)[0]
    assert "the paper's number" not in texts(figures.plot_errors(draws))[0]
    assert_readable(figure, tmp_path)


@pytest.mark.parametrize("dims", [(6, 5), (2, 2), (60, 80)])
def test_spectrum_tells_the_parts_apart(x64, rng, tmp_path, dims):
    z = rng.normal(size=(100, 2))
    diagnosis = pa.diagnose(tuple(z @ rng.normal(size=(2, d)) for d in dims))
    figure = plotting.plot_spectrum(diagnosis, k=2)
    left, right = figure.axes
    d, trivial = sum(dims), sum(dims) - 4
    # Latent dimension 2 and full-rank maps: rank 2, two informative directions, the rest trivial.
    assert [len(line.get_xdata()) for line in left.lines[:2]] == [2, d - 2]
    assert [len(line.get_xdata()) for line in right.lines] == [2, trivial]
    assert left.lines[3].get_xdata()[0] == d - 2 + 0.5
    assert texts(figure)[0] == [
        "not null (2)",
        f"null ({d - 2})",
        "null and informative (2)",
        f"null and trivial ({trivial})",
        "the trailing k = 2",
    ]
    assert_readable(figure, tmp_path)


def test_spectrum_without_null_space(rng, tmp_path):
    views = tuple(rng.normal(size=(50, 2)).astype(np.float32) for _ in range(2))
    figure = plotting.plot_spectrum(pa.diagnose(views), title="Noise")
    assert figure.axes[0].get_title() == "Noise"
    assert figure.axes[1].texts[0].get_text() == "the null space is empty"
    assert_readable(figure, tmp_path)


def test_many_classes_have_colours_of_their_own(rng):
    z, labels = rng.normal(size=(40, 2)), np.arange(40) % 10
    figure = plotting.plot_latents((z, z), labels)
    assert len(np.unique(figure.axes[0].collections[0].get_edgecolors(), axis=0)) == 10


def test_a_failed_save_leaves_nothing(drawn, tmp_path):
    latents, _, labels = drawn
    figure = plotting.plot_latents((latents, latents), labels)
    with pytest.raises(ValueError, match="Format 'nonsense' is not supported"):
        plotting.save_figure(figure, tmp_path / "a.nonsense")
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_never_imported():
    code = "import sys, perfalign_jax.plotting; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


Z, Y = np.zeros((4, 2)), np.arange(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: plotting.plot_latents((Z, Z[:, :1]), Y),
            ValueError,
            "z2 must have shape (n = 4, at least 2), got (4, 1)",
        ),
        (
            lambda: figures.plot_data_model(Z, (Z, Z), Y[:3]),
            ValueError,
            "latents must have shape (n = 3, at least 2), got (4, 2)",
        ),
        (lambda: plotting.plot_latents((Z, Z * np.nan), Y), ValueError, "z2 must be finite"),
        (lambda: figures.plot_errors({}), ValueError, "at least one quantity"),
        (lambda: figures.plot_errors({"a": {}}), ValueError, "at least one method"),
        (
            lambda: figures.plot_errors({"a": {"b": [np.inf]}}),
            ValueError,
            "errors['a']['b'] must hold at least one number and only finite ones",
        ),
        (
            lambda: plotting.plot_spectrum(Z),
            TypeError,
            "diagnosis must be a Diagnosis, got ndarray",
        ),
    ],
)
def test_every_error_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def sweep_result(rng):
    grid = sweeps.make_grid(
        n=(5, 500), d=4, k=2, noise=(0, (0.5, 2)), methods=("trailing", "ridge_cca")
    )
    values = {name: rng.uniform(size=(3, *grid.shape)) for name in grid.metrics}
    values["train_cmae"][:, 1] = np.nan
    return sweeps.SweepResult(grid, (0, 1, 2), values)


def test_sweep_has_a_panel_per_metric_and_a_curve_per_setting(rng):
    result = sweep_result(rng)
    figure = plotting.plot_sweep(result, x="n")
    assert len(figure.axes) == len(sweeps.METRICS)
    by_metric = dict(zip(sweeps.METRICS, figure.axes, strict=True))
    axes = by_metric["held_out_cmae"]
    assert len(axes.lines) == 4
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert by_metric["held_out_recall"].get_yscale() == "linear"
    assert len(by_metric["train_cmae"].lines) == 2  # where there is nothing, nothing is drawn
    for values in result.values.values():
        values[:, 1] = np.nan
    names = {t.get_text() for t in plotting.plot_sweep(result, x="n").legends[0].texts}
    assert not any("ridge" in name for name in names)
    names = {text.get_text() for text in figure.legends[0].texts}
    assert "trailing, noise = 0.5 and 2" in names
    assert "10-90 % of the draws" in names


def test_sweep_medians_and_bands_are_those_of_the_seeds(rng):
    result = sweep_result(rng)
    figure = plotting.plot_sweep(result, x="noise", metrics=["train_energy"])
    values = result.get("train_energy", method="trailing", n=5)
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0, 2])
    np.testing.assert_allclose(line.get_ydata(), np.median(values, axis=0))
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose(
        (band.min(), band.max()),
        (np.percentile(values, 10, axis=0).min(), np.percentile(values, 90, axis=0).max()),
    )


def test_panels_show_theory_and_thresholds_once_in_the_legend():
    panel = plotting.Panel(
        "1", (1, 2), "n", "CMAE", {"a": np.zeros((2, 2))}, {"t": [1, 2]}, {"here": 1.5}, log_y=True
    )
    figure = plotting.plot_panels([panel, panel, panel, panel])
    assert len(figure.axes) == 4
    assert [t.get_text() for t in figure.legends[0].texts] == [
        "a",
        "t",
        "here",
        "10-90 % of the draws",
    ]
    assert figure.axes[0].lines[0].get_ydata().min() > 0  # zero has a place on a log scale


def test_the_legend_speaks_of_bands_only_where_there_are_several_draws():
    panel = plotting.Panel("1", (1, 2), "epoch", "loss", {"a": np.ones((1, 2))})
    figure = plotting.plot_panels([panel])
    assert [t.get_text() for t in figure.legends[0].texts] == ["a"]


def test_sweep_axes_are_drawn_in_order(rng):
    grid = sweeps.make_grid(n=(500, 5, 30), d=4, k=2, noise=[(2, 1), (0, 1), (1, 1)])
    result = sweeps.SweepResult(grid, (0,), {"train_cmae": rng.uniform(size=(1, *grid.shape))})
    for x, expected, label in (
        ("n", [5, 30, 500], "n"),
        ("noise", [0, 1, 2], "noise of the first view (data units)"),
    ):
        axes = plotting.plot_sweep(result, x=x).axes[0]
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), expected)
        assert axes.get_xlabel() == label


def test_sweep_figures_refuse_what_they_cannot_draw(rng):
    result = sweep_result(rng)
    with pytest.raises(TypeError, match="result must be a SweepResult, got dict"):
        plotting.plot_sweep({}, x="n")
    with pytest.raises(ValueError, match="x must be one of n, d, k, noise, got 'seed'"):
        plotting.plot_sweep(result, x="seed")
    with pytest.raises(ValueError, match="metric must be one of"):
        plotting.plot_sweep(result, x="n", metrics=["cmae"])
    with pytest.raises(ValueError, match="result has no value"):
        plotting.plot_sweep(
            sweeps.SweepResult(
                result.grid, (0,), {"train_mlre": np.full((1, *result.grid.shape), np.nan)}
            ),
            x="n",
        )
    many = sweeps.make_grid(n=range(1, 14), d=(4, 5), k=2, metrics="train_cmae")
    with pytest.raises(ValueError, match="room for 12 curves, got 13"):
        plotting.plot_sweep(
            sweeps.SweepResult(many, (0,), {"train_cmae": np.ones((1, *many.shape))}), x="d"
        )
    with pytest.raises(TypeError, match="panels must be a sequence of Panel"):
        plotting.plot_panels([1])
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        plotting.plot_panels([plotting.Panel("1", (1,), "n", "e", {})], columns=0)
    with pytest.raises(ValueError, match=r"theory\['t'\] must have shape \(2,\), got \(3,\)"):
        plotting.plot_panels([plotting.Panel("1", (1, 2), "n", "e", {}, {"t": [1, 2, 3]})])
    with pytest.raises(ValueError, match="panels must hold at least one panel"):
        plotting.plot_panels([])
    with pytest.raises(ValueError, match=r"curves\['a'\] must have shape \(draws, 2\)"):
        plotting.plot_panels([plotting.Panel("1", (1, 2), "n", "e", {"a": np.ones(2)})])


def test_pairs_are_joined_and_measured(rng):
    places = rng.normal(size=(20, 2))
    shift = np.array([3.0, 4.0])
    total, relative = figures.measure_pairs(places, places + shift)
    assert total == pytest.approx(20 * 5)
    scaled = figures.measure_pairs(7 * places, 7 * (places + shift))
    assert scaled[0] == pytest.approx(7 * total)
    assert scaled[1] == pytest.approx(relative)  # however wide the plane
    labels = np.arange(20) % 3
    figure = figures.plot_pairs(
        {"before": (places, places + shift, labels), "after": (places, places, labels)},
        names=("video", "IMU"),
    )
    before, after = figure.axes
    assert "summed pair distance 100" in before.get_title()
    assert "summed pair distance 0" in after.get_title()
    assert sum(len(line.get_xdata()) == 2 for line in before.lines) == 20
    words = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {"video", "IMU", "class 0"} <= set(words)
    with pytest.raises(ValueError, match=r"pictures\['a'\] must hold shapes"):
        figures.plot_pairs({"a": (places, places[:5], labels)})
    with pytest.raises(ValueError, match="at least one panel"):
        figures.plot_pairs({})
