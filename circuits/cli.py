"""The ``circuits`` command: list, show, run, schema. Only ``run`` imports torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import circuits
from interp.errors import BadInput, HeadscopeError, LoadFailed, RunFailed

if getattr(circuits, "DISTRIBUTION", None) != "headscope":  # the other distribution's __init__ lies over ours
    raise ImportError(
        "The import name 'circuits' is taken by another distribution ('circuits' on PyPI), whose files lie over those "
        "of 'headscope'. Run `pip uninstall circuits headscope`, then `pip install headscope`."
    )

BAD_INPUT, RUN_FAILED, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    help="Named experiments on the attention heads of pretrained transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A named experiment, or the path of a YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


@app.command("list")
def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help="experiment, task, method, trace, score, label, edit or model."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every experiment, task, method, trace, score, label, edit and zoo model, a line each; of one kind, the facts."""
    with exit_codes():
        from circuits.catalogue import BESIDE, FACTS, KINDS
        from interp.names import lookup

        chosen = KINDS
        if kind is not None:
            singular = kind.lower().removesuffix("s")
            lookup(singular, KINDS, "kind")
            chosen = {name: KINDS[name] for name in (singular, *BESIDE.get(singular, ()))}
        found = {name: entries() for name, entries in chosen.items()}
        facts = {name: FACTS[name] for name in found if kind is not None and name in FACTS}
        if as_json:
            return _print_json(
                [
                    {"kind": k, "name": n, "line": line, **(facts[k](n) if k in facts else {})}
                    for k, entries in found.items()
                    for n, line in entries.items()
                ]
            )
        width = max((len(name) for entries in found.values() for name in entries), default=0)
        for number, (name, entries) in enumerate(found.items()):
            print(("\n" if number else "") + f"{name.upper()}S")
            for entry, line in entries.items():
                print(f"  {entry:<{width}}  {line}")
                if name in facts:
                    for label, words in facts[name](entry).items():
                        print(f"  {'':<{width}}    {label}: {words}")


@app.command()
def show(
    name: Name,
    kind: Annotated[
        str | None, typer.Option(help="Where several things have the name: experiment, score, label ...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The config of an experiment, what it measures, needs and writes; or all that is known of a score or a label."""
    with exit_codes():
        from circuits.config import load_config
        from circuits.experiments import EXPERIMENTS

        entries = [] if name.endswith((".yaml", ".yml")) else _entries_of(name, kind)
        if entries:
            return _print_json(entries[0]) if as_json else _print_entry(entries[0], entries[1:])
        named = load_config(name)
        experiment = EXPERIMENTS[named.config.experiment]
        settings = named.config.settings()
        about = {
            "name": named.name,
            "about": named.config.about,
            "command": named.command,
            "measures": experiment.measures,
            "needs": experiment.needs,
            "writes": experiment.writes,
            "config": settings,
        }
        if as_json:
            return _print_json(about)
        fields = type(named.config).model_fields
        print(f"{named.name}: {named.config.about}\n")
        for label in ("command", "measures", "needs", "writes"):
            print(_paragraph(label, str(about[label])))
        print("\nSettings, each changed by key=value:")
        for key, value in settings.items():
            print(f"  {key} = {_short(value)}")
            print(f"      {fields[key].description or ''}")
        _print_namesakes(name, _kinds_of(name))


@app.command()
def run(
    name: Name,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, as in model=gpt2.")
    ] = None,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="The folder to write; by default runs/NAME-HASH.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Do everything again, even if it is finished.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the end.")] = False,
) -> None:
    """Run an experiment; finished work is kept, so that the same command resumes a stopped run."""
    with exit_codes():
        from circuits import runner
        from circuits.config import load_config
        from circuits.manifest import model_folder
        from circuits.progress import Bars, Silent

        progress = Silent() if quiet or as_json else Bars()
        if quiet or as_json or model_folder(load_config(name, overrides or ()).config.model):
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported
        command = " ".join(["circuits", *sys.argv[1:]]) if sys.argv[1:2] == ["run"] else f"circuits run {name}"
        finished = runner.run(name, overrides or (), out=out, force=force, progress=progress, command=command)
        if as_json:
            return _print_json(finished.as_dict())
        _print_end(finished)


@app.command()
def schema(name: Name) -> None:
    """The JSON schema of an experiment's settings, for editors that check YAML."""
    with exit_codes():
        from circuits.config import load_config
        from circuits.experiments import EXPERIMENTS

        kind = EXPERIMENTS.get(name)
        _print_json((kind.load_config_class() if kind else type(load_config(name).config)).model_json_schema())


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns the toolkit's errors into one sentence on the error stream and an exit code.

    2: refused before anything was run. 1: stopped on the way. 130: interrupted. Anything else is a bug and keeps its
    traceback.
    """
    try:
        yield
    except (BadInput, LoadFailed) as error:
        _leave(str(error), BAD_INPUT)
    except RunFailed as error:
        _leave(str(error), RUN_FAILED)
    except HeadscopeError as error:
        _leave(str(error), RUN_FAILED)
    except KeyboardInterrupt:
        _leave("Stopped. What was finished is kept; run the same command again to go on from there.", INTERRUPTED)


def _leave(message: str, code: int) -> NoReturn:
    print(f"circuits: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _entries_of(name: str, kind: str | None) -> list[dict[str, Any]]:
    """What is called ``name`` and is no experiment, with its whole card where there is one; nothing for an experiment.

    Args:
        name: the name asked for.
        kind: only things of this kind.
    """
    from circuits.catalogue import CARDS, KINDS
    from circuits.config import config_files
    from interp.names import lookup

    if kind is None and name in config_files():
        return []
    kinds = [one for one in KINDS if one != "experiment"]
    if kind is not None:
        lookup(kind, KINDS, "kind")
        if kind == "experiment":
            return []
        kinds = [kind]
        lookup(name, KINDS[kind](), kind)
    return [
        CARDS[one](name) if one in CARDS else {"kind": one, "name": name, "line": found[name]}
        for one in kinds
        if name in (found := KINDS[one]())
    ]


def _kinds_of(name: str) -> list[str]:
    """The kinds, experiments left out, in which something has this name."""
    from circuits.catalogue import KINDS

    return [kind for kind, entries in KINDS.items() if kind != "experiment" and name in entries()]


def _print_entry(entry: dict[str, Any], others: Sequence[dict[str, Any]]) -> None:
    """A card: its line, one paragraph per fact, its options, its definition from the source, its namesakes."""
    print(f"{entry['name']} ({entry['kind']}): {entry['line']}")
    facts = {key: value for key, value in entry.items() if key not in ("kind", "name", "line") and value}
    definition, options = facts.pop("definition", ""), facts.pop("options", {})
    if facts or options or definition:
        print()
    for label, words in facts.items():
        as_written = label in ("clean", "corrupted", "baseline")  # an item's prompts, in which every space counts
        print(f"{label + ':':<10} {words}" if as_written else _paragraph(label, str(words)))
    if options:
        print("\nOptions:")
        for name, meaning in options.items():
            print(_paragraph(f"  {name}", meaning))
    if definition:
        print(f"\nDefinition:\n{definition}")
    _print_namesakes(entry["name"], [other["kind"] for other in others])


def _print_namesakes(name: str, kinds: Sequence[str]) -> None:
    for number, kind in enumerate(kinds):
        print(("\n" if not number else "") + f"Also a {kind}: circuits show {name} --kind {kind}")


def _print_end(finished: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if finished.top:
        table = Table(title=None, header_style="bold", box=None, pad_edge=False)
        for column, value in finished.top[0].items():
            title = str(column).replace("_", " ")
            table.add_column(title, justify="left" if isinstance(value, str) else "right", min_width=6)
        for row in finished.top:
            table.add_row(*(escape(_cell(value, 3 if name == "p" else 2)) for name, value in row.items()))
        console.print(table)
    console.print(f"\n{escape(finished.answer)}")
    if finished.reused:
        console.print("\nThis run was finished before; nothing was computed again (--force does).")
    console.print("\nReport: ", end="")
    print(finished.report)  # never wrapped, so that it can be clicked or copied


def _cell(value: Any, digits: int) -> str:
    """A cell of the printed table: a fixed number of decimals, so that a row fits a terminal."""
    from interp.numerals import numeral

    return numeral(round(value, digits) + 0.0, digits) if isinstance(value, float) else numeral(value)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _paragraph(label: str, text: str) -> str:
    import textwrap

    indent = f"{label + ':':<10}" if len(label) < len("measures:") else f"{label}: "
    return textwrap.fill(text, width=100, initial_indent=indent, subsequent_indent=" " * 10)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."  # noqa: PLR2004 - columns of a terminal


def main() -> None:
    """What the ``circuits`` command calls."""
    app()


if __name__ == "__main__":
    main()
