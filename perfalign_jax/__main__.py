"""``python -m perfalign_jax`` is the command ``perfalign``."""

import sys

from perfalign_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
