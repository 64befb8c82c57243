"""``python -m perfalign_jax`` is the command ``perfalign``."""

import sys


def main() -> int:
    """Run the command line, whose imports may be interrupted too."""
    try:
        from perfalign_jax.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("perfalign: interrupted; nothing was written.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
