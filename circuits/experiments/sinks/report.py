"""The report page of the sinks experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.sinks.conclusion import QUESTION, answer, doubt
from circuits.experiments.sinks.config import SinksConfig
from circuits.experiments.sinks.findings import Findings
from interp.show import Figure, KeyFigure, Line, Page, Panel, Section, bar_chart, curve_panels, head_heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go


def report(config: SinksConfig, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn = {"sink scores": _map(findings), "birth by layer": _birth(findings), "first tokens": _profile(findings)}
    sections = [_scores(findings, drawn), _anatomy(findings), _without(findings)]
    if findings.masking is not None:
        drawn["masking"] = _masking_figure(findings)
        sections.append(_masking(findings, drawn))
    sections += [_secondary(findings), _method(config, findings)]
    page = Page(
        title=f"Attention sinks of {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=sections,
    )
    return page, drawn


def _key_figures(findings: Findings) -> list[KeyFigure]:
    made = [
        KeyFigure(
            "sink heads", f"{len(findings.sink_heads)} of {findings.n_heads}", f"mean score above {findings.eps:g}"
        ),
        KeyFigure("Sink rate", findings.rate, "share of heads and prompts above it"),
        KeyFigure("uniform attention", findings.uniform, f"at {findings.tokens[0]} tokens"),
    ]
    together = findings.together()
    if together is not None:
        made.append(KeyFigure("loss without the sink", together.mean, "change in nats, all sink heads"))
    return made


def _map(findings: Findings) -> go.Figure:
    rows = findings.tables["sink"].table(confidence=findings.confidence)
    low, high = np.full(findings.alpha.shape, np.nan), np.full(findings.alpha.shape, np.nan)
    cells = (rows["layer"].to_numpy(dtype=int), rows["head"].to_numpy(dtype=int))
    low[cells], high[cells] = rows["low"], rows["high"]
    marked = [(head.layer, head.index) for head in findings.sink_heads]
    return head_heatmap(findings.alpha, low=low, high=high, name="sink score", marked=marked, limits=(0.0, 1.0))


def _birth(findings: Findings) -> go.Figure:
    layers = findings.layers()
    norms = [name for name in findings.parts if "norm" in name]
    cosines = [name for name in findings.parts if name not in norms]
    named = [("first token / others", norms), ("cosine", cosines)]
    panels = [
        Panel(
            "sink score",
            [
                Line("mean over heads", layers["mean sink score"].to_numpy()),
                Line("largest", layers["largest"].to_numpy()),
            ],
        ),
        *(Panel(what, [Line(name, layers[name].to_numpy()) for name in names]) for what, names in named if names),
    ]
    figure = curve_panels(layers["layer"].to_numpy(), panels, x_name="layer")
    return figure.update_xaxes(dtick=1 if len(layers) <= 24 else 4)  # noqa: PLR2004 - labels that fit


def _profile(findings: Findings) -> go.Figure:
    profile = findings.tables["sink_profile"]
    labels = [f"token {place}" for place in profile.positions or ()]
    return bar_chart(labels, np.nanmean(profile.values, axis=(0, 1)), name="mean sink score over heads")


def _scores(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    return Section(
        "Who rests on the first token, and since which layer",
        f"A head's sink score is the mean attention that the first token gets from the queries that see it, itself "
        f"included. {findings.words[:1].upper() + findings.words[1:]}.",
        figures=[
            Figure(drawn["sink scores"], f"Sink score of every head; outlined above {findings.eps:g}."),
            Figure(
                drawn["birth by layer"],
                "By layer: sink scores; norms of the first token's residual, keys and values over those of the other "
                "tokens; and where queries point.",
            ),
            Figure(drawn["first tokens"], "The same score of each of the first tokens: is it the first alone?"),
        ],
        table=findings.layers(),
        table_caption="Ratios are of the first token to the mean of the others, means over heads.",
    )


def _anatomy(findings: Findings) -> Section:
    return Section(
        "Attention and what it writes",
        "A sink takes attention and gives little: its key draws queries, its value is small. The value-weighted share "
        "is the part of what a head writes that comes from the first token.",
        table=findings.heads(),
        table_caption="One row per head, the highest sink score first.",
        max_rows=24,
    )


def _without(findings: Findings) -> Section:
    return Section(
        "Other scores with and without the first token",
        "Distances, entropies and masses are taken over rows that a sink dilutes. Without it, rows are rescaled to sum "
        "to 1; the rank agreement says whether the order of heads survives.",
        table=findings.without(),
        table_caption="Means over heads. Rank agreement: Spearman. A row that lies on the first token as a whole "
        "has nothing left and is 0.",
    )


def _masking_figure(findings: Findings) -> go.Figure:
    masking = findings.masking
    assert masking is not None
    means = masking.alone.mean(0)
    marked = [(head.layer, head.index) for head in masking.heads]
    return head_heatmap(means, name="change of the loss", signed=True, marked=marked)


def _masking(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    masking = findings.masking
    assert masking is not None
    every = float(masking.every.mean())
    said = (
        f"With no head allowed to look at the first token the loss changes by {every:.3f} nats, from "
        f"{masking.loss.mean():.3f}."
    )
    if masking.heads:
        places = ", ".join(
            f"{place}: {value:.3f}" for place, value in zip(masking.places, findings.elsewhere(), strict=True)
        )
        said += (
            f" The sink heads together: {masking.together.mean():.3f}. The same heads without another place: {places}."
        )
    return Section(
        "What it is for",
        f"Scores of the first token are set to minus infinity before the softmax, from the second row on. {said}",
        figures=[Figure(drawn["masking"], "Change of the loss, each head alone; sink heads are outlined.")],
    )


def _secondary(findings: Findings) -> Section:
    rows = findings.secondary
    if rows is None:
        return Section("Other tokens that become sinks", "Residuals cannot be read here, so that none were looked for.")
    if not len(rows):
        return Section(
            "Other tokens that become sinks", "At no layer does another token's residual point like the first token's."
        )
    return Section(
        "Other tokens that become sinks",
        "Tokens whose residual points like the first token's for some layers: secondary sinks, and copies that last.",
        table=rows,
        table_caption="alpha: the attention that they receive while they last; norm: of their residual over the first "
        "token's. A cosine alone does not prove attention.",
    )


def _method(config: SinksConfig, findings: Findings) -> Section:
    judged = "all tokens" if config.texts else "the second copy"
    return Section(
        "How it was measured",
        f"{findings.words[:1].upper() + findings.words[1:]}; batches of {config.batch_size}. The loss is over {judged}."
        f" Random sets: up to {config.random_sets} with as many heads per layer as the sink heads. The threshold "
        f"{config.eps:g} is the paper's, for 64 tokens (Gu et al., 2025).",
    )
