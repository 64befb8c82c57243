"""The page is one file, loads nothing, and says what the inspection measured."""

import re
import xml.etree.ElementTree as ET

import jax
import numpy as np
import pytest

import perfalign_jax as pa
from perfalign_jax import plotting
from perfalign_jax.page import write_page
from perfalign_jax.plotting._alignment import PANELS, draw_svg
from perfalign_jax.plotting._looks import make_panels

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(120, 3))
    return tuple(
        np.float32(z @ rng.normal(size=(3, d)) + rng.normal(size=(120, d)) / 5) for d in (5, 6)
    )


@pytest.fixture(scope="module")
def alignment(views):
    return pa.align(views, lift=None, ridge=0.1)


@pytest.fixture(scope="module")
def page(alignment, views, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    found = write_page(alignment, views, path, key=KEY, fitted=True, title="<b>a & b</b>")
    return path, path.read_text(), found


@pytest.mark.slow
def test_it_loads_nothing_and_its_figures_share_no_id(page):
    _, text, _ = page
    for word in ("<script", "<link", "<img", "<iframe", "src=", "@import", "@font-face"):
        assert word not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert {ref[0] for ref in re.findall(r'href="([^"]*)"', text)} == {"#"}
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert {r[1:] for r in re.findall(r'href="([^"]*)"', text)} <= set(ids)
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        root = ET.fromstring(figure)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "viewBox" in root.attrib
        assert "width" not in root.attrib  # it follows the page
    assert "#000000" not in "".join(figures)  # ink of the page, light or dark


def test_it_says_what_was_measured(page):
    _, text, found = page
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in text
    assert "<b>" not in text
    assert f"{found.recall([1]).mean():.1%}" in text
    assert f"{found.false_alarms:.1%}" in text
    names, _ = found.least_credible(12)
    table = text[text.index("Least credible pairs") :]
    assert all(f"<td>{name}</td>" in table for name in names)
    assert "What was chosen" in text
    assert "rows shown are those the alignment was fitted to" in text
    for need in ("prefers-color-scheme:dark", "name='viewport'", "minmax(0,1fr)"):
        assert need in text


def test_the_same_inspection_gives_the_same_figures(page):
    _, text, found = page
    for panel in PANELS:
        svg = draw_svg(found, panel, title="any")
        assert svg[svg.index("<defs") :] in text


def test_an_alignment_of_fit_and_rows_that_were_held_out(views, tmp_path):
    alone = pa.fit(views, k=2, check=False)
    write_page(alone, views, tmp_path / "page.html", key=KEY, fitted=False)
    text = (tmp_path / "page.html").read_text()
    assert "were held out of the fit" in text
    assert "What was chosen" not in text
    assert "no held-out correlations" in text


def test_panels_name_their_axes_and_units(page):
    figure, panels = make_panels(5, 2, row=3.6)
    for axes, draw in zip(panels, PANELS.values(), strict=True):
        draw(axes, page[2])
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    assert all(x and y for x, y in labels)
    assert "data units" in labels[0][1]
    assert "nats" in labels[2][0]
    assert "(%)" in labels[3][1]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["No direction aligns perfectly", "3 axes are more than chance"]


@pytest.mark.slow
def test_perfect_directions_are_marked(rng, tmp_path):
    z = rng.normal(size=(60, 2))
    x1, x2 = (np.float32(z @ rng.normal(size=(2, d))) for d in (4, 3))
    figure = plotting.plot_alignment(pa.fit((x1, x2), k=2, select="energy"), (x1, x2))
    spectrum = figure.axes[0]
    assert spectrum.get_title(loc="left") == "Perfect: 2 informative, 3 trivial directions"
    legend = [text.get_text() for text in spectrum.get_legend().get_texts()]
    assert legend == ["approximate (2)", "perfect (5)", "counts as zero"]
    assert "latent units" in figure.axes[2].get_xlabel()
    assert len(figure.axes) == 5
    assert plotting.save_figure(figure, tmp_path / "a.png").stat().st_size > 10_000
