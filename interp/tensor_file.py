"""Arrays with JSON metadata in one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from interp.errors import BadInput
from interp.files import write_whole

_KEY = "headscope"


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], *, kind: str, metadata: Mapping[str, Any]
) -> Path:
    """The path of a safetensors file that now holds ``arrays`` and ``metadata``, written whole or not at all.

    Args:
        path: where to write.
        arrays: name -> array.
        kind: what the file holds; ``read_arrays`` asks for it.
        metadata: anything JSON can hold.
    """
    header = {_KEY: json.dumps({"kind": kind, **metadata}, sort_keys=True)}
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return write_whole(path, save(whole, metadata=header))


def plain_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``metadata`` as JSON would give it back: tuples are lists and keys are text.

    Raises:
        BadInput: it holds something that JSON cannot.
    """
    try:
        return json.loads(json.dumps(dict(metadata)))
    except (TypeError, ValueError) as error:
        raise BadInput(f"metadata cannot be written as JSON ({error}); use text, numbers, lists and dicts.") from None


def read_arrays(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the metadata of a file that ``write_arrays`` made.

    Raises:
        BadInput: the file is not there, is damaged, or holds something else.
    """
    if not Path(path).is_file():
        raise BadInput(f"{path} is not a file; expected one that .save(path) wrote.")
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read as a safetensors file ({error}); it is damaged or another format."
        ) from None
    if header.pop("kind", None) != kind:
        raise BadInput(f"{path} is a safetensors file, but not of {kind}; expected one that .save(path) wrote.")
    return arrays, header
