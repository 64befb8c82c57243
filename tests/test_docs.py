"""The site and the README: code runs, numbers have a source, links lead somewhere."""

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import jax
import pytest
from _kit.reproduce import EXPERIMENTS

import perfalign_jax as pa

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.M | re.S)


def name_of(page):
    return str(page.relative_to(ROOT))


WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [code for language, code in FENCE.findall(page.read_text()) if language == "python"]
    settings = (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    )
    space = {"__name__": "__main__"}
    before = jax.config.jax_enable_x64
    try:
        with contextlib.ExitStack() as stack:
            for setting in settings:
                stack.enter_context(setting)
            for block in blocks:
                exec(compile(block, name_of(page), "exec"), space)
    finally:
        jax.config.update("jax_enable_x64", before)


def strip(text):
    """Prose alone: no code, no link targets, no names of things that have numbers."""
    text = FENCE.sub("", text)
    text = re.sub(r"`[^`\n]*`|\$\$?[^$]+\$\$?|<[^>]*>|!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    names = (
        r"Figs?\.|Eq\.|Section|Table|Theorem|Corollary|Remarks?|Python|jaxlib|top-|R@|nDCG@|arXiv"
    )
    return re.sub(rf"(?:{names})[\s:]?\d[\d.]*(?: (?:and|to) \d[\d.]*)?", "", text)


NUMBER = re.compile(r"(?<![\w.-])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w]|\.\d)")
# With a unit, or a decimal point.
MEASURED = re.compile(
    rf"(?:{NUMBER.pattern})(?=\s?(?:%|points|MB|GB|s\b|clips))|(?<![\w.-])\d+\.\d+(?:e-?\d+)?(?!\w|\.\d)"
)
WRITTEN = ("results.md", "changelog.md")  # by make results, and of the past
SOURCE = re.compile(r"(?:docs/)?(results/\w+\.json)|(experiments/benchmarks/results/\w+\.json)")


def numbers_in(file):
    """All numbers of a result file, as written, and rounded as a table may."""
    content = json.loads(file.read_text())
    found = set()

    def walk(value):
        if isinstance(value, dict):
            for name, one in value.items():
                walk(name), walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)
        elif isinstance(value, str):
            found.update(
                n.replace(",", "") for n in NUMBER.findall(re.sub(r"(?<=\d)-d\b", "", value))
            )
        elif isinstance(value, int | float):
            found.update(
                {f"{value:.{digits}f}" for digits in range(3)} | {f"{float(f'{value:.3g}'):g}"}
            )

    walk(content)
    return found


def unsourced(text, pattern):
    """Numbers of a piece of text that are in none of the result files it names."""
    files = [DOCS / a if a else ROOT / b for a, b in SOURCE.findall(text)]
    known = set().union(*map(numbers_in, files)) if files else set()
    return [n for n in pattern.findall(strip(text)) if n.replace(",", "") not in known]


def test_every_number_of_the_readme_leads_to_a_result_file_that_has_it():
    text = FENCE.sub("\n", (ROOT / "README.md").read_text())
    for piece in re.split(r"\n\s*\n|\n(?=[-|#])", text):  # paragraphs, items, rows of tables
        assert not unsourced(piece, NUMBER), piece


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in WRITTEN], ids=name_of)
def test_every_measurement_of_a_page_is_in_a_result_file_that_its_section_names(page):
    for section in re.split(r"\n(?=#)", FENCE.sub("\n", page.read_text())):
        assert not unsourced(section, MEASURED), section


def test_the_readme_says_how_long_the_experiments_take():
    times = json.loads((DOCS / "results" / "times.json").read_text())
    assert times["scale"] == "default"
    assert list(times["seconds"]) == list(EXPERIMENTS)
    assert "about half an hour" in " ".join((ROOT / "README.md").read_text().split())
    assert 20 < sum(times["seconds"].values()) / 60 < 40


def test_badges_tell_the_truth():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [c.rsplit(" ", 1)[-1] for c in project["classifiers"] if "Python :: 3." in c]
    texts = {
        "python": " | ".join(named),
        "license": project["license"],
        "paper": project["urls"]["Paper"].rsplit("/", 1)[-1],
    }
    for name, text in texts.items():
        assert f">{text}</text>" in (DOCS / "badges" / f"{name}.svg").read_text()


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in WRITTEN], ids=name_of)
def test_links_of_a_page_lead_somewhere_in_a_checkout_too(page):
    for target in re.findall(r'(?:\]\(|src=")([^)#"]+)', FENCE.sub("", page.read_text())):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def public_names():
    """Modules with public names, read without importing them."""
    for path in sorted(Path(pa.__file__).parent.rglob("[!_]*.py")) + sorted(
        Path(pa.__file__).parent.rglob("*/__init__.py")
    ):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                yield module, ast.literal_eval(node.value)


def test_every_module_with_public_names_is_in_the_reference():
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, flags=re.M))
    for module, names in public_names():
        assert not names or {module, module.rsplit(".", 1)[0]} & shown, module


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_every_public_name(tmp_path):
    """Strict: a broken link, a missing anchor or a page without a place is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "EXECUTE_NOTEBOOKS": "0"},  # test_notebooks executes them
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = [page.read_text() for page in (tmp_path / "site").rglob("*.html")]
    ids = {found for page in pages for found in re.findall(r'id="(perfalign_jax[^"]*)"', page)}
    for module, names in public_names():
        for name in names:
            homes = {f"{module}.{name}", f"{module.rsplit('.', 1)[0]}.{name}"}
            assert homes & ids, f"{module}.{name}"
    for page in pages:  # nothing is fetched at view time
        assert not re.search(r'<(?:script|img)[^>]+src="http|<link[^>]+stylesheet[^>]+http', page)
