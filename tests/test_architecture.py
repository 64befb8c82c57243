"""What holds the package together: its floors and its public surface."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import perfalign_jax as pa

ROOT = Path(pa.__file__).parents[1]
PACKAGE = Path(pa.__file__).parent

FLOORS = {
    "types": 0,
    "_checks": 1,
    "_progress": 1,
    "_numerics": 1,
    "statistics": 2,
    "kernels": 2,
    "theory": 2,
    "lift": 3,
    "_subspace": 3,
    "_folds": 3,
    "_missing": 3,
    "_host": 4,
    "_dual": 4,
    "diagnosis": 4,
    "metrics": 4,
    "gauge": 4,
    "baselines": 5,
    "contrastive": 4,
    "synthetic": 4,
    "serialization": 4,
    "arrays": 4,
    "solver": 5,
    "neighbours": 5,
    "gaussian": 5,
    "streaming": 5,
    "sharded": 5,
    "significance": 4,
    "evidence": 6,
    "sweeps": 6,
    "inspection": 7,
    "_selection": 7,
    "_assembly": 8,
    "_masked": 9,
    "_parts": 9,
    "automatic": 10,
    "har": 11,
    "plotting": 11,
    "estimators": 11,
    "_console": 11,
    "page": 12,
    "cli": 13,
    "__main__": 14,
}
# Rooms of rooms: what may import what inside.
INSIDE = {"har.data": 0, "har.protocol": 1, "har.nn": 2}


def modules():
    return sorted(m.name for m in pkgutil.walk_packages(pa.__path__, "perfalign_jax."))


def imports_of(path):
    """Modules of this package that a file imports, at any depth."""
    names = {m.removeprefix("perfalign_jax.") for m in modules()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and "perfalign_jax" in node.module:
            base = node.module.removeprefix("perfalign_jax").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield full if full in names else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("perfalign_jax"):
                    yield alias.name.removeprefix("perfalign_jax").lstrip(".")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_no_module_imports_upwards(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0]
    if room == "__init__":
        return  # the front door sees all rooms
    for imported in imports_of(path):
        if imported == "":  # the package itself: only the outermost rooms may use the front door
            assert FLOORS[room] >= FLOORS["cli"], f"{path.name} imports the package"
            continue
        other = imported.split(".")[0]
        if room == other:  # a package of its own
            here, there = (".".join(name.split(".")[:2]) for name in (".".join(parts), imported))
            assert INSIDE.get(there, 0) <= INSIDE.get(here, 9), f"{here} must not import {there}"
            continue
        assert FLOORS[other] < FLOORS[room], f"{room} must not import {other}"


def test_every_room_has_a_floor():
    assert {m.split(".")[1] for m in modules()} == set(FLOORS)


def test_matplotlib_is_imported_in_one_place():
    users = {
        p.relative_to(PACKAGE).parts[0]
        for p in PACKAGE.rglob("*.py")
        if re.search(r"import matplotlib|from matplotlib", p.read_text())
    }
    assert users == {"plotting"}


def public_names():
    for name in modules():
        module = importlib.import_module(name)
        if name.rsplit(".", 1)[-1].startswith("_"):
            continue
        for public in getattr(module, "__all__", []):
            yield name, public
    for public in pa.__all__:
        yield "perfalign_jax", public


@pytest.mark.parametrize(("module", "name"), list(public_names()))
def test_every_public_name_is_typed_documented_and_has_an_example(module, name):
    value = getattr(importlib.import_module(module), name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return  # a module has its own names; a constant or an alias says itself
    doc = inspect.getdoc(value) or ""
    assert len(doc) > 30
    assert ">>>" in doc, f"{module}.{name} has no example"
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, parameter


def test_every_module_says_what_is_public_and_nothing_else_is():
    for name in modules():
        module = importlib.import_module(name)
        if name.startswith("perfalign_jax.har") and hasattr(module, "__path__"):
            continue
        if name == "perfalign_jax.__main__":
            continue
        assert module.__doc__
        order = sorted(module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
        assert module.__all__ == order, name  # constants, classes, functions
        assert all(hasattr(module, public) for public in module.__all__), name


def test_every_public_name_is_in_the_table_of_the_reference():
    text = (ROOT / "docs" / "reference" / "index.md").read_text()
    documented = set(re.findall(r"`([A-Za-z_][A-Za-z_0-9]*)`", text))
    missing = {n for _, n in public_names() if n not in documented}
    assert not missing


def test_results_are_frozen_pytrees(rng):
    x = rng.normal(size=(9, 2)).astype(np.float32)
    for value in (
        pa.fit((x, x), k=2),
        pa.diagnose((x, x)),
        pa.statistics.from_views((x, x)),
        pa.statistics.from_views((x, x), kind="gram"),
        pa.statistics.from_views((x, x), kind="samples"),
        pa.retrieval(x, x),
    ):
        leaves, tree = jax.tree.flatten(value)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        assert type(jax.tree.unflatten(tree, leaves)) is type(value)
        with pytest.raises((AttributeError, TypeError)):
            value.anything = 1


def test_options_are_keyword_only_and_keys_have_no_default():
    for module, name in public_names():
        value = getattr(importlib.import_module(module), name)
        if not inspect.isfunction(value):
            continue
        for parameter in inspect.signature(value).parameters.values():
            if parameter.name == "key":
                assert parameter.default is inspect.Parameter.empty, (module, name)
            if parameter.default is not inspect.Parameter.empty and name != "main":
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, (module, name, parameter)


def test_nobody_asks_which_kind_a_statistic_is():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "statistics.py":
            found = re.search(
                r"isinstance\([^)]*\b(Samples|Factor|Gram|Statistic)\b", path.read_text()
            )
            assert not found, f"{path.name}: {found and found[0]}"


def test_views_and_a_statistic_of_them_take_the_same_path(rng, monkeypatch):
    """One function finds the directions; rows on the host are only multiplied by another BLAS."""
    from perfalign_jax import _subspace

    x1, x2 = (rng.normal(size=(29, d)).astype(np.float32) for d in (3, 7))
    seen = []
    solve = _subspace.trailing_by_gram
    monkeypatch.setattr(
        _subspace,
        "trailing_by_gram",
        lambda second, *others: (seen.append(type(second)), solve(second, *others))[1],
    )
    jax.clear_caches()
    by_host = pa.fit((x1, x2), k=2, check=False)
    state = pa.statistics.from_views((x1, x2))
    pa.fit(state, k=2, check=False)
    jax.jit(lambda state: pa.fit(state, k=2, check=False))(state)
    assert by_host.method == "gram"
    assert len(seen) == 3
    assert seen[:2] == [np.ndarray] * 2
    assert issubclass(seen[2], jax.core.Tracer)


def test_there_is_one_rank_cutoff():
    """Nothing but ``_numerics`` multiplies eps by a size to tell zero from the rest."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"eps \* max\(|max\([^)]*shape\) \* .*eps|eps \* \w+\.shape", text), (
            path
        )


def test_importing_the_package_loads_little_and_changes_nothing():
    code = (
        "import os, sys, jax, safetensors\n"
        "before = dict(os.environ)\n"
        "import perfalign_jax\n"
        "assert dict(os.environ) == before\n"
        "heavy = {'matplotlib', 'rich', 'tyro', 'sklearn', 'optax', 'flax', 'orbax', 'pandas'}\n"
        "loaded = heavy & {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
