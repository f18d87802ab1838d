"""The shape of the packages, held as data: who imports whom and when, sizes, module state, public names."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

import interp

ROOT = Path(interp.__file__).resolve().parents[1]
PACKAGES = ("interp", "circuits", "probes")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LARGEST_MODULE, LARGEST_FUNCTION = 600, 75  # lines; a function's docstring is not counted


def name_of(path: Path) -> str:
    """The dotted name of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: Mapping[str, ast.Module] = {name_of(path): ast.parse(path.read_text(), str(path)) for path in FILES}
PACKAGE_NAMES = frozenset(name_of(path) for path in FILES if path.name == "__init__.py")


def typing_only(tree: ast.Module) -> set[int]:
    """The ids of nodes under ``if TYPE_CHECKING``, which no program runs."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for part in node.body
        for inner in ast.walk(part)
    }


def imports(name: str, tree: ast.Module) -> set[str]:
    """Every module that the module ``name`` imports, also inside functions; a name from a package counts as one."""
    found: set[str] = set()
    skipped = typing_only(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: len(name.split(".")) - node.level + (name in PACKAGE_NAMES)] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found.add(module)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def under(name: str, room: str) -> bool:
    """Whether a module lies in a room (a module or a package)."""
    return name == room or name.startswith(room + ".")


# room -> rooms of ours that it may not import, at import time or later
GROUND = tuple(
    f"interp.{name}"
    for name in ("address", "errors", "names", "files", "numerals", "samples", "tensor_file", "edits", "stats")
)
FORBIDDEN: Mapping[str, tuple[str, ...]] = {
    "interp": ("circuits", "probes"),
    "probes": ("circuits",),
    **{
        room: (
            "interp.attribution",
            "interp.model",
            "interp.scores",
            "interp.tracing",
            "interp.show",
            "interp.zoo",
            "interp.results",
            "interp.metrics",
        )
        for room in GROUND
    },
    "interp.tracing": ("interp.zoo",),
    "interp.show": (
        "interp.tracing.trace",
        "interp.model",
        "interp.edits",
        "interp.scores.score",
        "interp.zoo",
        "interp.results",
        "interp.metrics",
        "interp.attribution",
    ),
    "interp.attribution": ("interp.scores", "interp.tracing", "interp.zoo"),
    "interp.scores": ("interp.attribution", "interp.tracing", "interp.zoo"),
    "interp.model": (
        "interp.attribution",
        "interp.scores",
        "interp.tracing",
        "interp.show",
        "interp.results",
        "interp.metrics",
        "interp.stats",
    ),
    "interp.zoo": (
        "interp.attribution",
        "interp.model",
        "interp.scores",
        "interp.show",
        "interp.results",
        "interp.edits",
    ),
    "interp.metrics": (
        "interp.attribution",
        "interp.scores",
        "interp.tracing",
        "interp.show",
        "interp.results",
        "interp.zoo",
    ),
    "interp.results": (
        "interp.attribution",
        "interp.model",
        "interp.scores",
        "interp.tracing",
        "interp.zoo",
        "interp.edits",
        "interp.metrics",
    ),
}
# what a room may import although the room around it may not: a label is earned by ablation, too
ALLOWED: Mapping[str, tuple[str, ...]] = {"interp.scores.labels": ("interp.attribution",)}
# package of others -> the rooms that may import it
OWNERS: Mapping[str, tuple[str, ...]] = {
    "transformers": ("interp.model", "interp.zoo"),
    "transformer_lens": ("interp.model.lens",),
    "plotly": ("interp.show", "interp.results", "circuits.experiments"),
    "typer": ("circuits",),
    "pydantic": ("circuits",),
    "yaml": ("circuits",),
}
# modules that the command reads to list and show: none of these may be imported with them
DATA = (
    "interp.scores",
    "interp.scores.labels",
    "interp.tracing",
    "interp.attribution.methods",
    "interp.zoo",
    "interp.edits.catalogue",
    "interp.metrics.catalogue",
    "circuits.catalogue",
    "circuits.score_card",
    "circuits.method_card",
    "circuits.task_card",
    "circuits.tasks",
    "circuits.config",
    "circuits.cli",
)
HEAVY = ("torch", "transformers", "plotly", "pandas", "scipy")


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_arrow_points_back(room: str) -> None:
    wrong = [
        f"{name} imports {found}"
        for name, tree in MODULES.items()
        if under(name, room)
        for found in sorted(imports(name, tree))
        if any(under(found, barred) for barred in FORBIDDEN[room])
        and not any(under(name, inner) and any(under(found, free) for free in ALLOWED[inner]) for inner in ALLOWED)
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_of_others_is_imported_in_its_rooms_alone(package: str) -> None:
    users = {name for name, tree in MODULES.items() if any(under(found, package) for found in imports(name, tree))}
    strangers = {name for name in users if not any(under(name, room) for room in OWNERS[package])}
    assert users and not strangers, strangers


def test_show_imports_no_torch() -> None:
    users = [
        name
        for name, tree in MODULES.items()
        if under(name, "interp.show") and any(under(f, "torch") for f in imports(name, tree))
    ]
    assert not users


def test_no_two_modules_import_each_other() -> None:
    graph = {
        name: {other for found in imports(name, tree) for other in MODULES if other != name and other == found}
        for name, tree in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_rules_would_notice() -> None:
    tree = ast.parse("def later():\n    from circuits.cli import main\nif TYPE_CHECKING:\n    import probes\n")
    assert imports("interp.x", tree) == {"circuits.cli", "circuits.cli.main"}
    near = ast.parse("from . import a\nfrom .b import c\nfrom ..d import e")
    beside = {"interp.stats", "interp.stats.a", "interp.stats.b", "interp.stats.b.c"}
    assert imports("interp.stats.x", near) == beside | {"interp.d", "interp.d.e"}
    assert "interp.stats.intervals" in imports("interp.stats", MODULES["interp.stats"])
    assert under("interp.model.run", "interp.model") and not under("interp.models", "interp.model")


# ---- what is imported when ------------------------------------------------------------------------------------------


def loaded_after(statement: str) -> set[str]:
    """The heavy packages that are loaded after a statement, in a fresh interpreter."""
    program = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_interp_loads_nothing_heavy_until_a_name_is_used() -> None:
    assert loaded_after("import interp, interp.edits, interp.show, probes, circuits") == set()
    assert loaded_after("import interp; interp.At") == {"torch"}


def test_data_that_the_command_reads_loads_nothing_heavy() -> None:
    assert loaded_after("import " + ", ".join(DATA)) == set()


# ---- sizes ----------------------------------------------------------------------------------------------------------


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring."""
    first = node.body[0]
    words = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
    return (node.end_lineno or 0) - node.lineno + 1 - words


def test_modules_and_functions_are_of_a_size_that_can_be_read() -> None:
    modules = {name: len((ast.unparse(tree)).splitlines()) for name, tree in MODULES.items()}
    lines = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > LARGEST_MODULE} == {}
    assert modules.keys() == lines.keys()
    long = {
        f"{name}.{node.name}": code_lines(node)
        for name, tree in MODULES.items()
        for node in functions(tree)
        if code_lines(node) > LARGEST_FUNCTION
    }
    assert long == {}


# ---- module state ---------------------------------------------------------------------------------------------------

MUTABLE = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
MAKERS = ("dict", "list", "set", "defaultdict", "OrderedDict", "deque", "Counter", "bytearray")


def constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Name and value of every assignment at module level, also inside ``if`` and ``try``."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            for part in ("body", "orelse", "handlers"):
                pending += getattr(node, part, [])
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield ast.unparse(target), node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield ast.unparse(node.target), node.value


def mutable(value: ast.expr) -> bool:
    """Whether a value can be changed in place: a literal, a comprehension, or a call of a container type."""
    maker = isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in MAKERS
    return isinstance(value, MUTABLE) or maker


def changes(tree: ast.Module, name: str) -> list[int]:
    """Lines that change ``name`` in place or bind it again."""
    found = []
    methods = (
        "append",
        "add",
        "update",
        "pop",
        "clear",
        "extend",
        "setdefault",
        "insert",
        "remove",
        "popitem",
        "discard",
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Global) and name in node.names:
            found.append(node.lineno)
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.ctx, ast.Store | ast.Del)
            and ast.unparse(node.value) == name
        ):
            found.append(node.lineno)
        if isinstance(node, ast.AugAssign) and ast.unparse(node.target) == name:
            found.append(node.lineno)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods:
            if ast.unparse(node.func.value) == name:
                found.append(node.lineno)
    return found


def test_containers_at_module_level_are_constants_that_nothing_changes() -> None:
    wrong = []
    for name, tree in MODULES.items():
        for target, value in constants(tree):
            if not mutable(value) or (target.startswith("__") and target.endswith("__")):
                continue
            if target != target.upper():
                wrong.append(f"{name}.{target} is a container without a constant's name")
            wrong += [f"{name}.{target} is changed in line {line}" for line in changes(tree, target)]
    assert not wrong, wrong


def test_nothing_rebinds_a_global() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]
    assert not found, found


def test_the_rule_about_state_would_notice() -> None:
    tree = ast.parse(
        "CACHE: dict[str, int] = {}\ndef f(x):\n    CACHE[x] = 1\n    CACHE.update(x)\nseen = defaultdict(list)\n"
    )
    assert [name for name, value in constants(tree) if mutable(value)] == ["seen", "CACHE"]
    assert changes(tree, "CACHE") == [3, 4]


# ---- words ----------------------------------------------------------------------------------------------------------


def test_every_module_and_public_thing_says_what_it_is() -> None:
    silent = [name for name, tree in MODULES.items() if not ast.get_docstring(tree)]
    for name, tree in MODULES.items():
        for node in tree.body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                silent.append(f"{name}.{node.name}")
    assert not silent, silent


def test_no_device_is_written_into_the_code() -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "cuda"
            and isinstance(node.ctx, ast.Load)
            and "torch" not in ast.unparse(node)
        )
        or (isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ("cuda", "cuda:0", "mps"))
    ]
    assert not wrong, wrong


def public_names() -> list[str]:
    stub = ast.parse((ROOT / "interp" / "__init__.pyi").read_text())
    return [
        alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


@pytest.mark.parametrize("name", public_names())
def test_a_public_name_resolves_and_has_a_docstring(name: str) -> None:
    found = getattr(interp, name)
    assert name in dir(interp) and name in interp.__all__
    assert isinstance(found, ModuleType) or (inspect.getdoc(found) or "").strip()
    assert "..." not in (inspect.getdoc(found) or "").splitlines()[0]


def test_names_that_are_not_public_are_attribute_errors() -> None:
    with pytest.raises(AttributeError):
        interp.nonsense  # noqa: B018


# ---- examples -------------------------------------------------------------------------------------------------------

WITH_EXAMPLES = [name for name, tree in MODULES.items() if ">>> " in ast.unparse(tree)]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_come_out_as_written(name: str) -> None:
    module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testmod(module, optionflags=flags)
    assert outcome.failed == 0
    assert outcome.attempted > 0 or "+SKIP" in inspect.getsource(module)
