"""``TokenHeatmap``: the text itself, each token on a background as strong as its number, one block per method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

from interp.errors import BadInput
from interp.numerals import numeral
from interp.show.heatmap import colour_limits
from interp.show.theme import OUTLINE, SANS
from interp.show.tokens import visible

MOST_CELLS = 12_000  # tokens times methods: about 2.4 MB of a page
_STRONGEST = 0.6  # opacity of the strongest colour; letters stay readable above it on white and on near-black
_FOR, _AGAINST = "74, 127, 224", "216, 112, 63"  # blue and orange: apart for every kind of colour vision
_NAMED = 3  # tokens that the description for screen readers names


@dataclass(frozen=True, eq=False, repr=False)
class TokenHeatmap:
    """A text with one number per token and method; shows itself in a notebook and is a ``Figure`` of a page.

    Made by :func:`token_heatmap`.

    Attributes:
        tokens: text of the tokens, in order.
        rows: method -> ``[token]`` its numbers; NaN leaves a token bare.
        limits: method -> ends of its colours.
        marked: places with an outline, such as the target.
        value: what a number is.
        parts: place -> name of what begins there on a line of its own, such as the tokens of an encoder.
    """

    tokens: tuple[str, ...]
    rows: Mapping[str, Float[np.ndarray, " token"]]
    limits: Mapping[str, tuple[float, float]]
    marked: frozenset[int] = field(default_factory=frozenset)
    value: str = "value"
    parts: Mapping[int, str] = field(default_factory=dict)

    def markup(self) -> Markup:
        """The HTML: no script, no style sheet, everything from outside escaped."""
        blocks = Markup("").join(self._block(name, numbers) for name, numbers in self.rows.items())
        return Markup('<div class="headscope-tokens" style="max-width:100%">{}</div>').format(blocks)

    def _repr_html_(self) -> str:
        return str(self.markup())

    def __repr__(self) -> str:
        return f"TokenHeatmap({len(self.tokens)} tokens; {', '.join(self.rows)})"

    def _block(self, name: str, numbers: np.ndarray) -> Markup:
        bottom, top = self.limits[name]
        reach = max(abs(bottom), abs(top)) or 1.0
        pieces = [self._token(name, place, float(number), reach) for place, number in enumerate(numbers)]
        return Markup(
            '<div style="display:flex;flex-wrap:wrap;gap:.2em 1.1em;margin:.7em 0;align-items:baseline">'
            '<div style="flex:0 0 12.5em;font:12px/1.5 {font}"><b style="overflow-wrap:anywhere">{name}</b><br>{key}'
            '</div><div role="img" aria-label="{label}" style="flex:1 1 18em;min-width:0;line-height:2.05;'
            'font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px;overflow-wrap:anywhere">{text}</div>'
            "</div>"
        ).format(
            font=SANS.replace('"', "'"),
            name=name,
            key=_key(bottom, top),
            label=self._described(name, numbers),
            text=Markup("").join(pieces),
        )

    def _token(self, name: str, place: int, number: float, reach: float) -> Markup:
        """One token; a line of the text ends where the token does."""
        style = "border-radius:2px;padding:2px 1px;margin:0 1px"
        if np.isfinite(number):
            strength = min(abs(number) / reach, 1.0)
            channels = _AGAINST if number < 0 else _FOR
            style += f";background:rgba({channels},{_STRONGEST * strength:.3f})"
            if number < 0:  # told apart without colour as well
                style += f";box-shadow:inset 0 -2px 0 rgba({channels},{strength:.3f})"
        if place in self.marked:
            style += f";outline:2px solid {OUTLINE};outline-offset:-1px"
        token = self.tokens[place]
        words = f"{name}, token {place}: {numeral(number)}"
        end = "<br>" if "\n" in token else "<wbr>"
        start = ""
        if place in self.parts:
            break_before = "<br>" if place else ""
            start = f'{break_before}<i style="opacity:.7;margin-right:.6em">{escape(self.parts[place])}</i>'
        return Markup(f'{start}<span title="{escape(words)}" style="{style}">{escape(visible(token))}</span>{end}')

    def _described(self, name: str, numbers: np.ndarray) -> str:
        size = np.nan_to_num(np.abs(numbers), nan=-1.0)
        order = np.argsort(-size, kind="stable")[:_NAMED]
        best = [f"{visible(self.tokens[i])} {numeral(float(numbers[i]))}" for i in order if size[i] >= 0]
        return f"{name}: {self.value} of each token; largest {', '.join(best) or 'none'}"


def token_heatmap(
    tokens: Sequence[str],
    values: Mapping[str, Sequence[float] | np.ndarray] | Sequence[float] | np.ndarray,
    *,
    value: str = "value",
    signed: bool | None = None,
    limits: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    marked: Iterable[int] = (),
    parts: Mapping[int, str] | None = None,
) -> TokenHeatmap:
    """The text with every token coloured by its number, one block of text per method.

    Blue speaks for the answer, orange (underlined) against it; each method has its own scale unless ``limits`` says
    otherwise. Outer blanks of tokens are dots, line breaks an arrow at which the line ends, and long texts wrap.

    Args:
        tokens: text of the tokens, in order, without padding.
        values: one number per token, or method -> one number per token; NaN leaves the token bare.
        value: what a number is, for a reader who cannot see it.
        signed: True colours negative numbers apart; None looks for one in each method.
        limits: ends of the colours of all methods, or of each.
        marked: places that get an outline, such as the target.
        parts: place -> name of what begins there on a line of its own, such as the tokens of an encoder.

    Raises:
        BadInput: no method, numbers that are not one per token, a marked place outside, or too much for a page.

    Example:
        >>> heatmap = token_heatmap(["<b>", " Mary"], {"rollout": [0.2, 0.8]})
        >>> "&lt;b&gt;" in heatmap.markup(), heatmap.limits["rollout"]
        (True, (0.0, 0.8))
    """
    given = values if isinstance(values, Mapping) else {value: values}
    rows = {str(name): np.asarray(numbers, dtype=float) for name, numbers in given.items()}
    if not rows:
        raise BadInput("token_heatmap: no numbers were given; expected one per token, or method -> one per token.")
    for name, numbers in rows.items():
        if numbers.shape != (len(tokens),):
            raise BadInput(
                f"token_heatmap: {len(tokens)} tokens, but {name!r} has values of shape {list(numbers.shape)}; give "
                "one per token, without padding."
            )
    if len(tokens) * len(rows) > MOST_CELLS:
        raise BadInput(
            f"token_heatmap: {len(tokens)} tokens times {len(rows)} methods are more than the {MOST_CELLS} that a page "
            "holds well; show a part of the text, or fewer methods."
        )
    marked = list(marked)
    outside = [place for place in (*marked, *(parts or {})) if not 0 <= place < len(tokens)]
    if outside:
        raise BadInput(f"token_heatmap: marked places or parts {outside}, but the tokens are 0 to {len(tokens) - 1}.")
    own = limits if isinstance(limits, Mapping) else dict.fromkeys(rows, limits)
    ends = {name: own.get(name) or colour_limits(numbers, signed) for name, numbers in rows.items()}
    return TokenHeatmap(tuple(tokens), rows, ends, frozenset(marked), value, dict(parts or {}))


def _key(bottom: float, top: float) -> Markup:
    """The colours with their ends."""
    reach = max(abs(bottom), abs(top)) or 1.0
    stops = [f"rgba({_FOR},0)", f"rgba({_FOR},{_STRONGEST})"]
    if bottom < 0:
        stops = [f"rgba({_AGAINST},{_STRONGEST})", *stops]
    ends = (-reach if bottom < 0 else 0.0, reach)
    bar = (
        f"display:inline-block;width:4em;height:.75em;margin:0 .45em;vertical-align:-.05em;border-radius:2px;"
        f"outline:1px solid rgba(128,136,148,.3);background:linear-gradient(to right,{','.join(stops)})"
    )
    return Markup(
        '<span style="white-space:nowrap;font-variant-numeric:tabular-nums">{low}<span style="{bar}"></span>{high}'
        "</span>"
    ).format(low="0" if bottom >= 0 else numeral(ends[0]), bar=bar, high=numeral(ends[1]))
