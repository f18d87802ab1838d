"""The folder of a run: what may be written there, what is there already, and whether the run is finished."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from circuits.config import NamedConfig
from circuits.units import fingerprint_of
from interp.errors import BadInput
from interp.files import write_whole

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
_OURS = ("manifest.json", "summary.json", "config.yaml", "report.html", "heads.parquet", "heads.csv")
_OUR_FOLDERS = ("units", "figures")


def default_folder(named: NamedConfig) -> Path:
    """``runs/NAME-HASH``, where the hash stands for every setting: the same request finds the same folder."""
    return Path("runs") / f"{named.name}-{fingerprint_of(named.config.settings())[:8]}"


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds, or will hold, one run."""

    path: Path

    @property
    def units(self) -> Path:
        """Where the finished pieces of work lie."""
        return self.path / "units"

    @property
    def figures(self) -> Path:
        """Where each figure lies as JSON."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def manifest(self) -> dict[str, Any]:
        """What the last run that ended here said about itself; empty where none did."""
        return _read_json(self.path / "manifest.json")

    def summary(self) -> dict[str, Any]:
        """The answer and the top of the table of a finished run; empty where there is none."""
        return _read_json(self.path / "summary.json")

    def is_finished(self, settings: Mapping[str, Any], model_files: str | None) -> bool:
        """Whether a run with these settings, on weights with this fingerprint, ended here."""
        manifest = self.manifest()
        if manifest.get("finished") is not True or manifest.get("config") != dict(settings):
            return False
        return self.report.is_file() and manifest.get("model", {}).get("files") == model_files

    def prepare(self, named: NamedConfig, *, force: bool) -> None:
        """Makes the folder ready: it exists, can be written, and holds nothing of another run.

        Args:
            named: the run that will be done here.
            force: throw away what an earlier run left.

        Raises:
            BadInput: the folder cannot be written, or holds a run with other settings.
        """
        try:
            self.units.mkdir(parents=True, exist_ok=True)
            self.figures.mkdir(exist_ok=True)
            write_whole(self.units / "can-write", b"").unlink()
        except OSError as error:
            why = "the disk is full" if error.errno in FULL_DISK else (error.strerror or str(error))
            raise BadInput(
                f"The output folder {str(self.path)!r} cannot be written ({why}). Nothing was run. "
                "Choose another with --out DIR."
            ) from error
        if force:
            self.clear()
            self.units.mkdir()
            self.figures.mkdir()
        self._refuse_another_run(named.config.settings())
        text = yaml.safe_dump(named.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
        write_whole(self.path / "config.yaml", f"# {named.command}\n{text}")

    def clear(self) -> None:
        """Removes what a run writes, and nothing else."""
        for name in _OURS:
            (self.path / name).unlink(missing_ok=True)
        for name in _OUR_FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def discard(self) -> None:
        """Takes back what :meth:`prepare` made for a run that was refused; finished units stay."""
        if any(self.units.glob("*.safetensors")):
            return
        self.clear()
        with contextlib.suppress(OSError):
            self.path.rmdir()  # only if it is empty

    def _refuse_another_run(self, settings: Mapping[str, Any]) -> None:
        path = self.path / "config.yaml"
        if not path.exists():
            foreign = [name for name in _OURS if (self.path / name).exists()]
            if foreign:
                raise BadInput(
                    f"{str(self.path)!r} already holds {', '.join(foreign)} but no config.yaml, so it is not one of "
                    "our runs. Choose another folder with --out DIR, or overwrite with --force."
                )
            return
        try:
            there = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            there = None
        there = there if isinstance(there, dict) else {}
        keys = [key for key in settings if there.get(key) != settings[key]]
        if keys:
            changes = "; ".join(f"{key}: {there.get(key)!r} there, {settings[key]!r} asked" for key in keys[:4])
            raise BadInput(
                f"{str(self.path)!r} holds a run with other settings ({changes}). "
                "Choose another folder with --out DIR, or throw that run away with --force."
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
