"""The capability card: what can be read and edited on this very checkpoint, and what cannot and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from interp.address import Site

Status = Literal["yes", "no", "not checked"]


class Ability(NamedTuple):
    """What one site of one stack can do."""

    read: Status
    edit: Status
    note: str = ""


@dataclass(frozen=True)
class Card:
    """What was found by behaviour at load.

    Attributes:
        model: class and model type.
        abilities: ``(stack, site) -> Ability``.
        checks: ``name -> outcome`` of every behaviour check, such as ``"shapes (text)" -> "holds to 0e+00"``.
        padding: ``"invariant"``, ``"changes real tokens"`` or ``"not checked"``.
        attention: ``stack -> attention implementation``.
    """

    model: str
    abilities: Mapping[tuple[str, Site], Ability]
    checks: Mapping[str, str] = field(default_factory=dict)
    padding: str = "not checked"
    attention: Mapping[str, str] = field(default_factory=dict)

    def can(self, site: Site, stack: str, *, edit: bool = False) -> bool:
        """Whether a site was found to be readable (or editable)."""
        ability = self.abilities[(stack, site)]
        return (ability.edit if edit else ability.read) == "yes"

    def rows(self) -> list[dict[str, str]]:
        """One record per stack and site, for a table."""
        return [
            {"stack": stack, "site": site.name, "read": ability.read, "edit": ability.edit, "note": ability.note}
            for (stack, site), ability in self.abilities.items()
        ]

    def __str__(self) -> str:
        lines = [f"Capability card of {self.model}"]
        for stack in dict.fromkeys(stack for stack, _ in self.abilities):
            lines.append(f"  stack {stack} (attention {self.attention.get(stack, '?')})")
            lines.append(f"    {'site':<12}{'read':<13}{'edit':<13}note")
            for (name, site), ability in self.abilities.items():
                if name == stack:
                    lines.append(f"    {site.name:<12}{ability.read:<13}{ability.edit:<13}{ability.note}".rstrip())
        lines.append(f"  padding: {self.padding}")
        lines += [f"  {name}: {outcome}" for name, outcome in self.checks.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(record[key])}</td>" for key in record) + "</tr>" for record in self.rows()
        )
        checks = "".join(f"<li>{escape(name)}: {escape(outcome)}</li>" for name, outcome in self.checks.items())
        return (
            f"<p><b>{escape(self.model)}</b>, padding: "
            f"{escape(self.padding)}</p><table><thead><tr><th>stack</th><th>site</th><th>read</th><th>edit</th><th>note</th></tr></thead><tbody>{rows}</tbody></table><ul>{checks}</ul>"
        )
