"""An unfinished training on disk: saved now and then, taken up again by the same command, gone when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interp.errors import BadInput

NAME = "unfinished.pt"


def keep(folder: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Writes ``state`` (tensors, numbers, texts, lists and dicts) beside the identity of the training it belongs to.

    The file is written whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{NAME}.partial"
    torch.save({"identity": identity, "state": state}, partial)
    partial.replace(folder / NAME)


def take_up(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state of the unfinished training in ``folder``; ``None`` where there is none.

    Raises:
        BadInput: the unfinished training there is another one.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    found = torch.load(path, weights_only=True)
    if found["identity"] != identity:
        raise BadInput(
            f"{path} belongs to another training ({found['identity']}) than this one ({identity}). Delete it, or give "
            "another folder."
        )
    return found["state"]


def finish(folder: Path) -> None:
    """Removes the unfinished training's file, if there is one."""
    (folder / NAME).unlink(missing_ok=True)
