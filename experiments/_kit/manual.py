"""The manual's page of the command line, from the commands' own help.

Command:  python experiments/_kit/manual.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from perfalign_jax.cli._parser import SHELLS, make_parser
from perfalign_jax.serialization import write_whole

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def make_page() -> str:
    """Return the page in Markdown: a section for each command, the same on every Python."""
    parser = make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    about = " ".join((parser.epilog or "").split())
    parts = [
        "# Command line",
        "Written by `make manual` from the help of `perfalign`.",
        f"{about[0].upper()}{about[1:]}",
        "A command ends with 0 if all went well; 1 if an experiment failed, the memory did not "
        "suffice, or a result was written but could not be described; 2 for bad input, with one "
        "line that says which and what to do; 130 if it was interrupted.",
        "| option | |\n|---|---|\n" + "\n".join(map(_row, _options(parser))),
        f"Completion in {', '.join(SHELLS)}: write the script where the shell looks for it, such "
        "as\n\n```\nperfalign --print-completion bash > "
        "~/.local/share/bash-completion/completions/perfalign\n```",
    ]
    for name, command in commands.choices.items():
        files = [a for a in command._actions if not a.option_strings]
        lines = (command.epilog or "").splitlines()[1:]
        examples = "\n".join(line.strip() for line in lines)
        parts += [f"## perfalign {name}", command.description or "", f"```\n{examples}\n```"]
        rows = [*map(_row, files), *map(_row, _options(command))]
        parts.append("\n".join(["| argument | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if a.option_strings and a.dest != "help"]


def _row(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else "")
    if not action.option_strings:
        names = f"{action.metavar or action.dest}{' ...' if action.nargs == '+' else ''}"
    else:
        bare = action.nargs == 0
        names = ", ".join(action.option_strings) + ("" if bare else f" {value or action.dest}")
    text = (action.help or "") % {"default": action.default}
    return f"| `{names.replace('|', '/')}` | {text} |"


if __name__ == "__main__":
    write_whole(PAGE, make_page().encode())
    print(PAGE)
