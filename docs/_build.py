"""What the site needs beside its pages: notebooks as pages, formulas as MathML, examples as code.

Notebooks are stored without outputs. With ``EXECUTE_NOTEBOOKS=1``, as ``make docs`` sets it, they
are executed; otherwise their pages hold the cells alone.
"""

import html
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import griffe
import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

_FORMULA = re.compile(r"\\\((.*?)\\\)|\\\[(.*?)\\\]", flags=re.S)


def on_files(files: Files, *, config: Any) -> Files:
    """Add a page, and its figures, for each notebook."""
    for path in sorted((Path(config.config_file_path).parent / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if os.environ.get("EXECUTE_NOTEBOOKS") == "1":
            with tempfile.TemporaryDirectory() as folder:  # for what a notebook writes
                where = {"metadata": {"path": folder}}
                NotebookClient(notebook, timeout=1200, resources=where).execute()
        named = {"output_files_dir": f"{path.stem}_files"}
        text, resources = MarkdownExporter().from_notebook_node(notebook, resources=named)
        text = f"*This page is the notebook `notebooks/{path.name}`.*\n\n{text}"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead from a notebook's file, to which the pages link in a checkout, to its page."""
    return re.sub(r"\(\.\./((?:\.\./)*notebooks/\w+)\.ipynb", r"(\1.md", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers draw themselves."""

    def draw(found: re.Match[str]) -> str:
        inline, block = found.groups()
        return convert(
            html.unescape(inline or block).strip(), display="block" if block else "inline"
        )

    return re.sub(
        r'(<(?:span|div) class="arithmatex">)(.*?)(</(?:span|div)>)',
        lambda part: part[1] + _FORMULA.sub(draw, part[2]) + part[3],
        content,
        flags=re.S,
    )


class Examples(griffe.Extension):
    """Show the example of a docstring as the code it is."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Name the section as the parser knows it."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
