"""The site and the README: their code runs, their numbers have a source, their links lead somewhere."""

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

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.M | re.S)


def name_of(page):
    return str(page.relative_to(ROOT))


WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]


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
