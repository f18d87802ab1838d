"""Typed settings of named experiments: read from YAML, overridden by ``key=value``, refused when wrong."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from circuits.experiments import EXPERIMENTS
from interp.errors import BadInput, UnknownName
from interp.names import lookup, unknown

SUFFIX = ".yaml"


def known_model(name: str) -> str:
    """``name``, if it can be a model: in the zoo, a folder that exists, or of the form of a hub id.

    Raises:
        UnknownName: it is none of these, or is a slip of the pen away from a zoo name.
    """
    from interp.zoo import ZOO

    place = Path(name).expanduser()
    if name in ZOO:
        return name
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise BadInput(f"The folder {name!r} holds no config.json; expected one written by save_pretrained.")
        return name
    slip = "/" not in name and difflib.get_close_matches(name, ZOO, n=1, cutoff=0.75)
    if slip or not _HUB_ID.fullmatch(name):
        raise UnknownName(
            f"{unknown(name, ZOO, 'model')} A folder (none of that name is here) or a hub id such as "
            "'owner/name' does as well."
        )
    return name


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class ExperimentConfig(BaseModel):
    """The settings that every kind of experiment has; a kind adds ``experiment: Literal[its name]`` and its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    about: str = Field(description="one line for `circuits list`")
    model: Annotated[str, AfterValidator(known_model)] = Field(
        "induction", description="a zoo name, a folder written by save_pretrained, or a hub id"
    )
    device: str | None = Field(
        None, pattern=r"^[a-z]+(:\d+)?$", description="where the model goes; by default where the library puts it"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="number format of the weights; by default as stored"
    )
    batch_size: PositiveInt = Field(16, description="prompts per forward pass")
    seed: NonNegativeInt = Field(0, description="every random draw is a function of this")

    def settings(self) -> dict[str, Any]:
        """Everything that can change a number, as plain values; ``about`` is left out."""
        return self.model_dump(mode="json", exclude={"about"})


@dataclass(frozen=True)
class NamedConfig:
    """A config with the name it is run under.

    Attributes:
        name: the file's name without its suffix.
        source: the file.
        command: the first comment line of the file, the command that runs it.
        config: the settings.
    """

    name: str
    source: Path
    command: str
    config: Any


def config_folder() -> Path:
    """The folder of the named configs: beside the packages in a checkout, inside this package in a wheel."""
    inside = Path(__file__).parent / "_configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def config_files() -> dict[str, Path]:
    """Name -> file of every named experiment, sorted."""
    return {path.stem: path for path in sorted(config_folder().glob(f"*{SUFFIX}"), key=lambda path: path.stem)}


def load_config(name: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> NamedConfig:
    """The settings of the experiment called ``name``, checked; imports no torch.

    Args:
        name: a named experiment, or the path of a YAML file (it ends in .yaml or .yml).
        overrides: ``"key=value"`` texts whose values are read as YAML, or a mapping key -> value; a dotted key
            reaches inside.

    Raises:
        UnknownName: no such experiment, or no such kind of experiment.
        BadInput: a file that is not a mapping, an unknown key, a value of the wrong type or out of range.

    Example:
        >>> load_config("induction", ["n_prompts=4"]).config.n_prompts
        4
    """
    path = _find(str(name))
    text = path.read_text(encoding="utf-8")
    settings = _read_yaml(text, path.name)
    kind = settings.get("experiment")
    if not isinstance(kind, str):
        raise BadInput(
            f"{path.name}: the key 'experiment' names the kind of experiment and is missing; "
            f"known: {', '.join(sorted(EXPERIMENTS))}."
        )
    given = dict(overrides) if isinstance(overrides, Mapping) else dict(_parse_override(text) for text in overrides)
    for key, value in given.items():
        _put(settings, key, value)
    if settings["experiment"] != kind:
        raise BadInput(f"experiment={settings['experiment']!r}: the kind is fixed by {path.name}; run another config.")
    config_class = lookup(kind, EXPERIMENTS, "kind of experiment").load_config_class()
    try:  # by way of JSON, where a list may become a tuple and nothing else is converted
        config = config_class.model_validate_json(json.dumps(settings, default=str), strict=True)
    except ValidationError as error:
        raise BadInput(_readable(error, config_class, path.name)) from None
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    command = first.lstrip("# ").strip() if first.startswith("#") else f"circuits run {path.name}"
    return NamedConfig(name=path.stem, source=path, command=command, config=config)


def _find(name: str) -> Path:
    if name.endswith((SUFFIX, ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise BadInput(f"There is no file {name!r}. Named experiments: {', '.join(config_files())}.")
        return path
    return lookup(name, config_files(), "experiment")


class _Loader(yaml.SafeLoader):
    """YAML without two surprises: ``1e-3`` is a number, and the same key twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"the key {', '.join(twice)} stands there twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        settings = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise BadInput(f"{where} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise BadInput(f"{where} holds {type(settings).__name__}, expected `key: value` lines.")
    return settings


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadInput(f"{text!r} is not an override; write key=value, for example n_prompts=16.")
    try:
        return key.strip(), yaml.load(value, _Loader)
    except yaml.YAMLError:
        return key.strip(), value


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    inner = settings
    for depth, parent in enumerate(parents):
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise BadInput(f"{key}: {'.'.join(parents[: depth + 1])} is a single value and has no key {last!r}.")
    inner[last] = value


_EXPECTED = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "tuple_type": "expected a list, [a, b]",
    "list_type": "expected a list, [a, b]",
    "model_type": "expected key: value pairs",
    "dict_type": "expected key: value pairs",
    "missing": "is missing",
}


def _readable(error: ValidationError, config_class: Any, where: str) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        kind = problem["type"]
        if kind == "extra_forbidden":
            lines.append(unknown(key, config_class.model_fields, "key"))
        elif kind == "missing":
            lines.append(f"{key} is missing.")
        elif kind == "literal_error":
            allowed = re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
            lines.append(f"{key}: {unknown(problem['input'], allowed, 'value')}")
        elif kind == "value_error":
            lines.append(f"{key}: {problem.get('ctx', {}).get('error', problem['msg'])}")
        else:
            said = _EXPECTED.get(kind, problem["msg"][:1].lower() + problem["msg"][1:])
            lines.append(f"{key}: {said}, got {problem['input']!r}.")
    return f"{where}: " + " ".join(lines)
