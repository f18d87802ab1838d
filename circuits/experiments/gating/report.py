"""The report page of the gating experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from circuits.experiments.gating.checking import table_of_checks
from circuits.experiments.gating.conclusion import QUESTION, answer, doubt
from circuits.experiments.gating.findings import Findings
from circuits.experiments.gating.fitting import Job
from circuits.experiments.naming import taller
from interp.attribution.gating.gates import ROLES
from interp.show import Figure, KeyFigure, Line, Page, Panel, Section, curve_panels

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEANING = {
    "facilitation": "the gate that is left when all gates are pulled shut: 1 where copying needs the head",
    "interference": "how far the gate closes although all are pulled open: 1 where copying is better off without",
    "irrelevance": "open when pulled open and shut when pulled shut: 1 where it makes no difference",
}


def report(job: Job, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn: dict[str, go.Figure] = {}
    page = Page(
        title=f"Causal head gating of the model {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=[
            _scores(findings, drawn),
            _checks(findings),
            _trajectories(job, findings, drawn),
            _validation(findings, drawn),
            _method(job),
        ],
    )
    return page, drawn


def _key_figures(findings: Findings) -> list[KeyFigure]:
    roles = findings.gates.taxonomy(findings.threshold)["role"].tolist()
    same = sum(one.same_sign for one in findings.outside)
    entropy = findings.gates.history.entropy
    ends = {fit: float(np.nanmean(entropy[place, -1])) for place, fit in enumerate(findings.gates.history.fits)}
    return [
        KeyFigure("facilitating heads", f"{roles.count('facilitation')} of {len(roles)}"),
        KeyFigure("sign as in ablation", f"{same} of {len(findings.outside)}", "heads outside the random-head band"),
        KeyFigure("loss of the second copy", findings.losses[1], f"nats; {findings.losses[0]:.3f} on the first"),
        KeyFigure("entropy of a gate, at the end", ends.get("remove", np.nan), "nats, pulled shut; 0.693 at one half"),
    ]


def _scores(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    roles = findings.gates.taxonomy(findings.threshold)
    figures = []
    for name in ROLES:
        mine = roles[roles["role"] == name]
        marked = list(zip(mine["layer"].tolist(), mine["head"].tolist(), strict=True))
        table = findings.gates.score(name)
        drawn[name] = table.plot(title=name, marked=marked, confidence=findings.confidence)
        drawn[name].update_layout(coloraxis={"cmin": 0.0, "cmax": 1.0})
        figures.append(Figure(drawn[name], f"{name.capitalize()}: {MEANING[name]}."))
    return Section(
        "What the gates say",
        f"Means over {len(findings.gates.seeds)} seeds; point at a cell for its {100 * findings.confidence:g} % "
        f"interval over seeds. "
        f"Outlined: heads that have the role in more than half of the seeds (from {findings.threshold:g} on).",
        figures=figures,
        table=findings.roles(),
        table_caption=(
            "Heads with the largest exact effects first. facilitation, interference, irrelevance: share of the seeds "
            "that give the head this role; largest: facilitation over seeds; contradicting: share of seeds in which it "
            "closes when pulled open and opens when pulled shut, which is no role."
        ),
    )


def _checks(findings: Findings) -> Section:
    ranks = findings.ranks
    return Section(
        "Against exact ablation",
        "A gate of 0 is the same edit as setting the head to zero, so here is the rise of the loss when one head alone "
        "is set to zero, on prompts that no gate has seen. The random-head band of a head is what the other heads of "
        "its layer do; a head is outside where the interval of its effect does not meet the band. For those, the sign "
        f"of the largest facilitation minus the largest interference over seeds is compared.\n\n{ranks}",
        table=table_of_checks(list(findings.checks)),
        table_caption=(
            "zeroed: rise of the loss in nats when the head is set to zero, with its interval over prompts; band: what "
            "the other heads of its layer do; facilitation, interference: the largest over seeds."
        ),
    )


def _trajectories(job: Job, findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    gates = findings.gates
    drawn["history"] = gates.plot("history")
    drawn["gates"] = gates.plot("gates", heads=job.config.curves)
    return Section(
        "Along the fits",
        f"{job.config.updates} updates without a pull (warm), then as many with a pull towards 1 (retain) and towards "
        f"0 (remove), each from where the first ended. Entropy is 0 where every gate is open or shut.",
        figures=[
            Figure(drawn["history"], "Mean over seeds; the bands span all seeds."),
            Figure(drawn["gates"], "Gates of single heads, means over seeds: those the fits tell most about."),
        ],
    )


def _validation(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    lines, steps = [], np.zeros(0)
    for one in findings.validations:
        rows = one.table(confidence=findings.confidence)
        steps = rows["heads"].to_numpy()
        ends = (rows["effect"].to_numpy(), rows["low"].to_numpy(), rows["high"].to_numpy())
        lines.append(Line(f"by {one.score}", *ends))
    figure = curve_panels(steps, [Panel("change of log-probability", lines)], x_name="heads taken away")
    drawn["validation"] = taller(figure, 100)
    drawn["validation"].update_xaxes(nticks=min(len(steps), 12) + 1)
    return Section(
        "Heads taken away in turn",
        "With all gates at their retained values, heads are set to 0 instead of 1, one more at each step, those with "
        "the largest score first, on prompts that no gate has seen. The log-probability of the second copy should fall "
        "at once by facilitation, stay by irrelevance until only needed heads are left, and not fall by interference "
        "as long as heads interfere.",
        figures=[
            Figure(
                drawn["validation"],
                f"Mean over seeds with its {100 * findings.confidence:g} % interval over seeds; each seed has its own "
                "order and its own retained gates.",
            )
        ],
    )


def _method(job: Job) -> Section:
    config, n_heads = job.config, len(job.model.heads())
    start = "a start token and " if job.fitted.start else ""
    lines = [
        f"Prompts: {start}{config.segment} distinct random tokens, said twice; the targets are the second copy from "
        f"its second token on. {len(job.fitted)} prompts fit the gates, "
        f"{min(config.prompts_per_update, len(job.fitted))} of them in each update; {len(job.held_out)} others "
        "check them.",
        "One factor in [0, 1] multiplies the output of each head before the output projection. Its logit is fitted by "
        "Adam on the loss of the targets, with all weights frozen: first without a pull, then with the mean of the "
        f"clipped logits times {config.lam:g} subtracted (pulled open) and added (pulled shut). Facilitation is the "
        "gate pulled shut, interference one minus the gate pulled open, irrelevance the open gate times one minus the "
        "shut one. Nam et al., 2025 (arXiv 2505.13737).",
        f"The pull on one head is the weight divided by the number of heads, here {config.lam / n_heads:.2g}: in a "
        "model with few heads the same weight pulls harder, and a needed head may be pulled shut where the loss "
        "saturates.",
        "A fit keeps its state on the way, and goes on from there when it was stopped, with the same numbers.",
    ]
    return Section("How it was measured", "\n\n".join(lines))
