"""The tests of test_hardening.py with files that a coverage-guided fuzzer makes.

Needs Linux and ``pip install atheris``, which is no dependency. Runs until something breaks:
    python tests/fuzz_with_atheris.py TestRows.test_npz -max_total_time=600
"""

import sys
import tempfile
from pathlib import Path

import atheris
import hypothesis

with atheris.instrument_imports(include=["perfalign_jax", "zipfile"]):
    import numpy as np
    import test_hardening


def main() -> None:
    """Run the test that the first argument names, ``Class.test``."""
    kind, name = sys.argv.pop(1).split(".")
    tests = getattr(test_hardening, kind)()
    inner = getattr(tests, name).hypothesis.inner_test
    rows = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    fixtures = {"folder": Path(tempfile.mkdtemp()), "rows": rows}
    used = {n: v for n, v in fixtures.items() if n in inner.__code__.co_varnames}

    @hypothesis.settings(deadline=None, database=None)
    @hypothesis.given(data=hypothesis.strategies.data())
    def once(data: hypothesis.strategies.DataObject) -> None:
        inner(tests, data=data, **used)

    atheris.Setup(sys.argv, once.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
