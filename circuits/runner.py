"""A named experiment from its settings to a folder with a report."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.config import NamedConfig, load_config
from circuits.experiments import EXPERIMENTS
from circuits.folder import FULL_DISK, RunFolder, default_folder
from circuits.outcome import Workplace
from circuits.progress import Silent
from circuits.units import UnitStore
from interp.errors import BadInput, LoadFailed, RunFailed
from interp.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

    from circuits.outcome import Outcome


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        name: the experiment's name.
        folder: where everything lies.
        answer: one sentence.
        top: the top of the table, a list of rows.
        notes: what was left out and why, and every doubt in full.
        facts: the numbers behind the answer.
        reused: whether it had been finished before, so that nothing was computed.
    """

    name: str
    folder: Path
    answer: str
    top: list[dict[str, Any]]
    notes: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    reused: bool = False

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**dataclasses.asdict(self), "folder": str(self.folder), "report": str(self.report)}


def run(
    name: str | Path,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    out: str | Path | None = None,
    force: bool = False,
    progress: Silent | None = None,
    command: str | None = None,
) -> Finished:
    """The finished run of the experiment called ``name``; work that an earlier run finished is not done again.

    Args:
        name: a named experiment, or the path of a YAML file.
        overrides: ``"key=value"`` texts or a mapping; see :func:`circuits.load_config`.
        out: the folder; by default ``runs/NAME-HASH`` under the working folder.
        force: do everything again.
        progress: told about every stage; silent by default.
        command: what the manifest keeps as the command.

    Raises:
        BadInput: a wrong name, setting or folder; nothing was run.
        LoadFailed: the model cannot be read.
        RunFailed: stopped on the way, by a full disk among other things; finished units are kept.

    Example:
        >>> circuits.run("induction", {"n_prompts": 8}, out="runs/try").answer  # doctest: +SKIP
    """
    named = load_config(name, overrides)
    folder = RunFolder(Path(out) if out is not None else default_folder(named))
    if not force and folder.manifest():
        from circuits.manifest import files_fingerprint

        if folder.is_finished(named.config.settings(), files_fingerprint(named.config.model)):
            return _finished(named, folder, reused=True)
    folder.prepare(named, force=force)
    told = progress if progress is not None else Silent()
    place = Workplace(folder, UnitStore(folder.units), told)
    began, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    try:
        outcome = EXPERIMENTS[named.config.experiment].load_run()(named.config, place)
        times = {
            "began": began.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 2),
            "stages": dict(told.seconds),
        }
        _write(outcome, named, place, times, command or f"circuits.run({str(name)!r})")
    except (BadInput, LoadFailed):
        folder.discard()
        raise
    except OSError as error:
        raise _stopped(error, place) from error
    return _finished(named, folder, reused=False)


def _stopped(error: OSError, place: Workplace) -> RunFailed:
    kept = sum(1 for _ in place.folder.units.glob("*.safetensors"))
    why = "The disk is full." if error.errno in FULL_DISK else f"{error.strerror or error}."
    what = "Free some space and run" if error.errno in FULL_DISK else "Run"
    return RunFailed(
        f"{why} The run in {str(place.folder.path)!r} stopped; its {kept} finished pieces are kept. "
        f"{what} the same command again to go on from there."
    )


def _write(outcome: Outcome, named: NamedConfig, place: Workplace, times: Mapping[str, Any], command: str) -> None:
    """Writes everything, the manifest that says "finished" last."""
    from circuits.manifest import manifest
    from interp.show import write

    folder = place.folder
    for name, table in {**outcome.tables, "heads": outcome.heads}.items():
        _write_table(table, folder.path / f"{name}.parquet")
    for name, figure in outcome.figures.items():
        write_whole(folder.figures / f"{name}.json", figure.to_json())
    made = manifest(
        command=command,
        settings=named.config.settings(),
        model=outcome.model,
        times=times,
        units={"computed now": place.units.computed, "from an earlier run": place.units.reused},
    )
    write(dataclasses.replace(outcome.page, manifest=made), folder.report)
    summary = {
        "answer": outcome.answer,
        "notes": list(outcome.notes),
        "facts": outcome.facts,
        "top": outcome.top.to_dict(orient="records"),
    }
    write_whole(folder.path / "summary.json", _json(summary))
    write_whole(folder.path / "manifest.json", _json({**made, "finished": True}))


def _write_table(table: pd.DataFrame, path: Path) -> Path:
    """Parquet where pyarrow is installed, else CSV with every digit."""
    import io

    try:
        import pyarrow  # noqa: F401 - pandas writes through it
    except ImportError:
        return write_whole(path.with_suffix(".csv"), table.to_csv(index=False))
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    return write_whole(path, content.getvalue())


def _finished(named: NamedConfig, folder: RunFolder, *, reused: bool) -> Finished:
    summary = folder.summary()
    return Finished(
        name=named.name,
        folder=folder.path,
        answer=summary.get("answer", ""),
        top=summary.get("top", []),
        notes=summary.get("notes", []),
        facts=summary.get("facts", {}),
        reused=reused,
    )


def _json(content: Any) -> str:
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numpy numbers as numbers, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
