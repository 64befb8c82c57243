"""The page of results, from the committed result files in ``docs/results``.

Command:  python experiments/_kit/results.py [FOLDER OF NEW RESULT FILES]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from _kit.report import as_markdown, load_result
from _kit.reproduce import EXPERIMENTS, TIMES
from perfalign_jax.serialization import write_whole

# Later runs of Table 1 stand beside the full one: they have rows that it did not.
NAMES = (
    *EXPERIMENTS,
    "table1_har_authors",
    "table1_har_default",
    "benchmark_fit",
    "benchmark_peers",
    "benchmark_targets",
)
PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def make_page(folder: Path) -> str:
    """Return the page of a folder's result files, in the order of the report."""
    files = [folder / f"{name}.json" for name in NAMES]
    results = [load_result(file) for file in files if file.is_file()]
    return as_markdown("Results", ["Written by `make results`; intervals are of 95 %."], results)


def take(source: Path, folder: Path) -> list[str]:
    """Copy result files without what they hold of every draw; names of those that were taken.

    Raises:
        ValueError: if a file comes from a quick run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [source / f"{name}.json" for name in NAMES if (source / f"{name}.json").is_file()]
    for file in files:
        result = load_result(file)
        if result["config"].get("scale") == "quick":
            raise ValueError(f"{file} comes from a quick run, which is not for comparison.")
        text = json.dumps({**result, "values": {}, "figures": {}}, indent=1, ensure_ascii=False)
        write_whole(folder / file.name, (text + "\n").encode())
    if (source / TIMES).is_file():
        write_whole(folder / TIMES, (source / TIMES).read_bytes())
    return [file.stem for file in files]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print("taken:", ", ".join(take(Path(sys.argv[1]), PAGE.parent / "results")))
    write_whole(PAGE, make_page(PAGE.parent / "results").encode())
    print(PAGE)
