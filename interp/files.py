"""Files that are either there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """The path of a file that now holds ``content``; a reader sees the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, are forced to the disk, and are renamed over ``path``.
    When anything fails (a full disk, an interrupt) the temporary file is removed and ``path`` is as it was.

    Args:
        path: where to write; folders on the way are made.
        content: bytes, or text that is written as UTF-8.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target
