"""Progress of a long run, stage by stage, on the error stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """What a run tells about how far it is."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """A stage of ``total`` steps; the function that it gives is called after each step."""
        ...


@dataclass
class Silent:
    """Says nothing, and keeps how long each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """See :class:`Progress`."""
        started = time.perf_counter()
        try:
            yield lambda: None
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 3)


@dataclass
class Bars(Silent):
    """One bar for each stage, on the error stream; plain lines where that is not a terminal."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """See :class:`Progress`."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with super().stage(name, total):
            if not console.is_terminal:
                started = time.perf_counter()
                yield lambda: None
                console.print(f"{name}: {total} of {total}, {time.perf_counter() - started:.1f} s")
                return
            with RichProgress(*columns, console=console) as bars:
                task = bars.add_task(name, total=total)
                yield lambda: bars.advance(task)
