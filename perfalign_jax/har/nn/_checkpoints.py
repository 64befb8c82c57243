"""Checkpoints of a training: which training they belong to, and that each is whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint
from absl import logging as absl_logging

from perfalign_jax.serialization import write_whole

__all__ = ["Store"]

_IDENTITY = "training.json"  # says which training a folder of checkpoints belongs to


def _digest(content: dict[str, Any]) -> np.ndarray:
    """A checksum of every array: the files have none of their own."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(content):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


class Store:
    """Checkpoints of one training in a folder, by Orbax; each appears whole or not at all.

    They are written by a thread while the training goes on.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax tells every file it touches
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        options = orbax.checkpoint.CheckpointManagerOptions(
            max_to_keep=2, cleanup_tmp_directories=True
        )
        self.manager = orbax.checkpoint.CheckpointManager(self.folder, options=options)
        record = self.folder / _IDENTITY
        if self.last is not None:
            self._compare(record, identity)
        write_whole(record, identity.encode())

    def _compare(self, record: Path, identity: str) -> None:
        """Refuse checkpoints of another training."""
        wanted = json.loads(identity)
        try:
            was = dict(json.loads(record.read_text()))
            known = dict(was["settings"])
        except (OSError, ValueError, TypeError, KeyError):
            raise ValueError(
                f"{record} is missing or damaged, so nobody knows whose checkpoints these are; "
                "give another folder."
            ) from None
        differing = [name for name in wanted if was.get(name) != wanted[name]]
        if not differing:
            return
        told = ", ".join(differing)
        if differing == ["settings"]:
            changed = {k: (known.get(k), v) for k, v in wanted["settings"].items()}
            told = ", ".join(f"{k}: {a} there, {b} now" for k, (a, b) in changed.items() if a != b)
        raise ValueError(
            f"{self.folder} holds checkpoints of another training (other {told}); give another "
            "folder."
        )

    @property
    def last(self) -> int | None:
        return self.manager.latest_step()

    @property
    def path(self) -> Path | None:
        """The last checkpoint that is whole."""
        self.manager.wait_until_finished()
        return None if self.last is None else self.folder / str(self.last)

    def write(
        self, epoch: int, state: Any, losses: np.ndarray, watched: np.ndarray, seconds: float
    ) -> None:
        content = {
            # A copy: it is written while the next step already gives these buffers away.
            "state": [np.array(leaf) for leaf in jax.tree.leaves(state)],
            "losses": losses,
            "watched": watched,
            "seconds": np.array(seconds),
        }
        content["digest"] = _digest(content)
        self.manager.save(epoch, args=orbax.checkpoint.args.StandardSave(content))

    def close(self) -> None:
        """Wait until the last checkpoint is whole."""
        self.manager.close()

    def read(self, state: Any, seeds: int) -> tuple[int, Any, np.ndarray, np.ndarray, float]:
        epoch = self.last
        leaves, tree = jax.tree.flatten(state)
        history = np.zeros((epoch or 0, seeds))
        wanted = {
            "state": leaves,
            "losses": history,
            "watched": history,
            "seconds": np.zeros(()),
            "digest": np.zeros(32, np.uint8),
        }
        try:
            found = self.manager.restore(epoch, args=orbax.checkpoint.args.StandardRestore(wanted))
            if not np.array_equal(found.pop("digest"), _digest(found)):
                raise ValueError("its content is not what was written")
        except Exception as error:  # whatever the broken bytes lead the libraries into
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise ValueError(
                f"the checkpoint {self.path} cannot be read ({reason}); delete that folder to go "
                "on from the one before."
            ) from None
        losses, watched = (np.array(found[name]) for name in ("losses", "watched"))
        seconds = float(found["seconds"])
        return epoch or 0, jax.tree.unflatten(tree, found["state"]), losses, watched, seconds
