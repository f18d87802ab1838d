"""Tokens as text: visible blanks, and the coloured strip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from interp.errors import BadInput
from interp.numerals import numeral
from interp.show.heatmap import colour_limits

_BLANKS = {"\n": "\u21b5", "\r": "\u21b5", "\t": "\u21e5"}
_PICTURES = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "\u2421"}  # of control characters
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # turn text behind them around
_UNSEEN = str.maketrans(_PICTURES | {code: f"\u27e8{code:04X}\u27e9" for code in _DIRECTIONS})
_STRONGEST = 0.55  # opacity of the strongest colour; text stays readable above it in both appearances


def visible(token: str) -> str:
    """``token`` with its line breaks, tabs, outer spaces and unseen controls made visible; not escaped.

    A character that sets the direction of writing stands as its number: it would turn around what comes behind it.

    Example:
        >>> visible(" Mary"), visible("\\n"), visible("")
        ('·Mary', '↵', '∅')
    """
    for blank, mark in _BLANKS.items():
        token = token.replace(blank, mark)
    token = token.translate(_UNSEEN)
    left, right = len(token) - len(token.lstrip(" ")), len(token) - len(token.rstrip(" "))
    if token and left == len(token):
        return "\u00b7" * len(token)
    return "\u00b7" * left + token.strip(" ") + "\u00b7" * right or "\u2205"


def token_strip(
    tokens: Sequence[str],
    values: Sequence[float] | np.ndarray,
    *,
    name: str = "value",
    signed: bool | None = None,
    limits: tuple[float, float] | None = None,
) -> Markup:
    """HTML that shows each token on a background as strong as its value; everything in it is escaped.

    Args:
        tokens: text of the tokens, in order.
        values: one number per token; NaN gives no background.
        name: what the number is, for the label that appears on hovering.
        signed: True colours negative values apart; None looks for a negative value.
        limits: ends of the scale; by default the data's own.

    Raises:
        BadInput: there are not as many values as tokens.

    Example:
        >>> "&lt;b&gt;" in token_strip(["<b>"], [1.0])
        True
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.shape != (len(tokens),):
        raise BadInput(f"token_strip: {len(tokens)} tokens but values of shape {numbers.shape}; give one per token.")
    bottom, top = limits or colour_limits(numbers, signed)
    reach = max(abs(bottom), abs(top)) or 1.0
    pieces = [
        Markup(
            '<span title="{label}" style="background:{colour};border-radius:2px;padding:1px 2px">{token}</span>'
        ).format(label=f"{name} {numeral(float(number))}", colour=_background(number, reach), token=visible(token))
        for token, number in zip(tokens, numbers, strict=True)
    ]
    return (
        Markup(
            '<div class="tokens" role="img" aria-label="{label}" style="line-height:2;font-family:monospace">'
        ).format(label=f"{name} per token")
        + Markup(" ").join(pieces)
        + Markup("</div>")
    )


def _background(number: float, reach: float) -> str:
    if not np.isfinite(number):
        return "transparent"
    opacity = _STRONGEST * min(abs(number) / reach, 1.0)
    channels = "216, 112, 63" if number < 0 else "74, 127, 224"
    return f"rgba({channels}, {opacity:.3f})"
