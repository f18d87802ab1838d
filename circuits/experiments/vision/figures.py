"""The figures of the vision experiment."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.naming import with_room_for_names
from circuits.experiments.vision.findings import Findings
from circuits.experiments.vision.measuring import CONTENT, DIVERGENCE, EFFECTS
from circuits.experiments.vision.withheld import WAYS
from interp.show import bar_chart, grid_heatmap, head_heatmap
from interp.show.theme import ACCENT, GREY, template

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_QUESTIONS, MOST_ANSWERS = 8, 12


def figures_of(findings: Findings) -> dict[str, go.Figure]:
    """Name -> figure."""
    best = findings.main()
    marked = [(head.layer, head.index) for head in best.heads]
    made = {
        name.replace(" ", "-"): head_heatmap(findings.scores[name].values, name=name, signed=False, marked=marked)
        for name in (DIVERGENCE, CONTENT)
    }
    limit = max(float(np.nanmax(np.abs(table.values))) for table in findings.effects.values())
    for sort, table in findings.effects.items():
        made[f"effect-{sort}"] = head_heatmap(
            table.values, name=EFFECTS[sort], signed=True, marked=marked, limits=(-limit, limit)
        )
    made |= {"heads": heads_figure(findings), "sets": sets_figure(findings), "withheld": withheld_figure(findings)}
    made["ways"] = ways_figure(findings)
    made["reinforced"] = reinforced_figure(findings)
    return made


def heads_figure(findings: Findings) -> go.Figure:
    """Every head: its divergence, and its cost on both sorts of questions."""
    import plotly.graph_objects as go

    rows, figure = findings.head_rows(), go.Figure()
    colours = {"vision": ACCENT, "text": GREY}
    for sort in findings.effects:
        figure.add_trace(
            go.Scatter(
                x=rows[DIVERGENCE],
                y=-rows[EFFECTS[sort]],
                mode="markers",
                name="questions with an image" if sort == "vision" else "text questions",
                marker={"size": 8, "color": colours[sort], "symbol": "circle" if sort == "vision" else "x-thin-open"},
                text=rows["head"],
                hovertemplate="<b>%{text}</b><br>divergence %{x:.3f}<br>cost %{y:.3f}<extra></extra>",
            )
        )
    figure.update_layout(
        template=template(),
        width=720,
        height=360,
        margin={"l": 8, "r": 16, "t": 8, "b": 8},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    )
    figure.update_xaxes(title_text=DIVERGENCE)
    figure.update_yaxes(title_text=f"cost of taking it out ({_unit(findings)})")
    return figure


def sets_figure(findings: Findings) -> go.Figure:
    """The joint effect of the first heads of every layer on both sorts of questions, with the random sets as dots."""
    labels, values, lows, highs, dots, lit = [], [], [], [], {}, []
    for one in findings.sets:
        if not one.each_layer:
            continue
        for sort in findings.effects:
            interval = one.interval(sort)
            label = f"{one.ranking}, {len(one.heads)} heads: {'image' if sort == 'vision' else 'text'}"
            labels.append(label)
            values.append(interval.mean)
            lows.append(interval.low)
            highs.append(interval.high)
            dots[label] = one.effects[sort].mean(1)[1:]
            if sort == "vision":
                lit.append(label)
    return bar_chart(
        labels,
        values,
        low=lows,
        high=highs,
        highlight=lit,
        points={label: draws for label, draws in dots.items() if len(draws)},
        name=f"effect on the answer ({_unit(findings)})",
    )


def withheld_figure(findings: Findings) -> go.Figure:
    """How often each answer is said to the commonest questions without the image."""
    blind = findings.answers[WAYS[2]]
    prompts = [prompt for prompt, _ in Counter(findings.prompts).most_common(MOST_QUESTIONS)]
    said = {
        prompt: Counter(
            findings.words[int(blind.said[place])] for place, own in enumerate(findings.prompts) if own == prompt
        )
        for prompt in prompts
    }
    words = [word for word, _ in sum(said.values(), Counter()).most_common(MOST_ANSWERS)]
    values = np.array([[said[prompt][word] / said[prompt].total() for word in words] for prompt in prompts])
    rows = [prompt if len(prompt) <= 48 else prompt[:47] + "…" for prompt in prompts]  # noqa: PLR2004
    labels = list(dict.fromkeys(rows))
    if len(labels) < len(rows):
        rows = [f"{number}. {row}" for number, row in enumerate(rows, start=1)]
    figure = grid_heatmap(values, rows=rows, columns=words, name="share", signed=False, limits=(0.0, 1.0))
    return with_room_for_names(figure, rows, words)


def ways_figure(findings: Findings) -> go.Figure:
    """Right answers with the image, with an even one, and without."""
    intervals = [findings.right(way) for way in WAYS]
    return bar_chart(
        list(WAYS),
        [one.mean for one in intervals],
        low=[one.low for one in intervals],
        high=[one.high for one in intervals],
        highlight=[WAYS[0]],
        name="share of right answers",
    )


def reinforced_figure(findings: Findings) -> go.Figure:
    """Change of right answers and of the prior's answers by amplifying, with the random halves as dots."""
    own, labels = findings.reinforced, {"right": "right answers", "prior": "wrong answers by the prior"}
    changes = {label: own.change(what)[0] for what, label in labels.items()}
    dots = {
        label: [float((own.measure(one, what) - own.measure(own.before, what)).mean()) for one in own.random]
        for what, label in labels.items()
    }
    return bar_chart(
        list(changes),
        [one.mean for one in changes.values()],
        low=[one.low for one in changes.values()],
        high=[one.high for one in changes.values()],
        points={label: values for label, values in dots.items() if values},
        name=f"change of the share when the divergent half is amplified by {own.by:g}",
    )


def _unit(findings: Findings) -> str:
    return "nats" if findings.metric == "answer_logprob" else "logits"
