"""The report page of the vision experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuits.experiments.copying.words import replaced
from circuits.experiments.vision.conclusion import QUESTION, answer, doubt, words_of
from circuits.experiments.vision.config import VisionConfig
from circuits.experiments.vision.figures import figures_of
from circuits.experiments.vision.findings import Findings
from circuits.experiments.vision.job import Job
from circuits.experiments.vision.measuring import DIVERGENCE
from circuits.experiments.vision.withheld import WAYS
from circuits.experiments.wording import between, short
from interp.show import Figure, KeyFigure, Page, Section

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.stats import Interval


def report(job: Job, config: VisionConfig, findings: Findings) -> tuple[Page, dict[str, go.Figure]]:
    """The page, and its plotly figures by name."""
    drawn = figures_of(findings)
    page = Page(
        title=f"Vision-aware heads of the model {findings.model!r}",
        question=QUESTION,
        answer=answer(findings),
        doubt=doubt(findings),
        key_figures=_key_figures(findings),
        sections=[
            _heads(findings, drawn),
            _sets(findings, drawn),
            _withheld(findings, drawn),
            _reinforced(findings, drawn),
            _method(job, config),
        ],
    )
    return page, drawn


def _told(interval: Interval) -> str:
    return f"{short(interval.mean)} {between(interval)}"


def _percent(findings: Findings) -> str:
    return f"{100 * findings.confidence:g} %"


def _key_figures(findings: Findings) -> list[KeyFigure]:
    best = findings.main()
    vision, text = best.interval("vision"), best.interval("text")
    seen, blind = findings.right(WAYS[0]), findings.right(WAYS[2])

    return [
        KeyFigure(f"cost with an image, {len(best.heads)} heads", -vision.mean, f"effect {_told(vision)}"),
        KeyFigure("cost on text questions", -text.mean, f"effect {_told(text)}"),
        KeyFigure("right with the image", seen.mean, f"{seen.n} questions"),
        KeyFigure("right without it", blind.mean, "by the language prior"),
    ]


def _heads(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    vision, text = (findings.correlation(DIVERGENCE, sort) for sort in ("vision", "text"))
    return Section(
        "Head by head",
        "Divergence is the distance between a head's output at the answer with the image and without it. It was "
        "measured "
        "on the selection questions, the effects of taking each head out on the evaluation questions. Outlined is "
        "the upper half of each layer by divergence.",
        figures=[
            Figure(drawn["vision-divergence"], "Vision-aware head divergence, mean over questions with an image."),
            Figure(
                drawn["content-divergence"],
                "Content divergence: the same distance from an image of one even colour, with as many tokens (ours).",
            ),
            Figure(drawn["effect-vision"], f"Change of the {words_of(findings)} on questions with an image."),
            Figure(drawn["effect-text"], f"Change of the {words_of(findings)} on text questions; the same colours."),
            Figure(
                drawn["heads"],
                "One mark per head and sort of questions. Spearman's rank correlation of divergence and cost: "
                f"{_told(vision)} on questions with an image, {_told(text)} on text questions.",
            ),
        ],
        table=findings.head_rows(),
        table_caption="Divergence of an even image: what an image of one colour, with nothing to see in it, causes.",
        max_rows=16,
    )


def _sets(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    return Section(
        "The foremost heads together",
        "Heads chosen by a score, overall or in every layer, are taken out together. The same random sets, with as "
        "many heads in every layer, are taken out on both sorts of questions. Of the half told above: "
        f"{findings.main().sets}",
        figures=[
            Figure(
                drawn["sets"],
                f"Change of the {words_of(findings)} with its {_percent(findings)} interval over questions, in colour "
                "on questions with an image, in grey on text questions; dots: random sets.",
            )
        ],
        table=findings.set_rows(),
        table_caption="Mean effects with their intervals, and the mean of the random sets. vision p: share of random "
        "sets that cost questions with an image as much; selective p: whose cost exceeds that on text questions by as "
        "much; p-values of single rows, not corrected for their number. The last row of each score is the half of each "
        "layer, which the answer tells of.",
    )


def _withheld(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    return Section(
        "With the image withheld",
        "The same questions without the image's tokens, and with an image of one even colour. What is said without an "
        "image is the language prior; where it is said against the image it is a hallucination.",
        figures=[
            Figure(drawn["ways"], f"Share of right answers with its {_percent(findings)} interval."),
            Figure(drawn["withheld"], "How often each answer is the likeliest one without the image, by question."),
        ],
        table=findings.withheld_rows(),
        table_caption="share: how often the commonest answer without the image is said; it is right in: the share of "
        "these "
        "questions whose image shows it.",
    )


def _reinforced(findings: Findings, drawn: dict[str, go.Figure]) -> Section:
    own = findings.reinforced
    rows = findings.kind_rows()
    hard = (
        f"On {len(own.before.said)} hard questions {100 * own.before.is_right.mean():.0f} % of the answers are right "
        "before "
        f"and {100 * own.after.is_right.mean():.0f} % after; {100 * own.share:.0f} % of the heads were amplified."
    )
    return Section(
        "Amplifying the vision-aware heads",
        "For each question the heads above the median divergence of their layer are scaled where the answer is read, "
        "layer "
        f"by layer (VHR). {hard} A wrong answer counts as the prior's where it is what the model says without the "
        "image.",
        figures=[
            Figure(
                drawn["reinforced"],
                f"Change with its {_percent(findings)} interval over questions; dots: random halves of each layer's "
                "heads, "
                "amplified as much.",
            )
        ],
        table=rows,
        table_caption="Answers to the evaluation questions, before any change, by kind of question.",
    )


def _method(job: Job, config: VisionConfig) -> Section:
    counts = {
        f"{sort} {purpose}": len(job.questions(sort, purpose))
        for sort in ("vision", "text")
        for purpose in ("selection", "evaluation")
    }
    numbers = (
        f"{counts['vision selection']} questions with an image choose heads and {counts['vision evaluation']} others "
        "judge "
        f"them, beside {counts['text evaluation']} text questions."
    )
    taken = f"Heads that are taken out are {replaced(config.ablation)}"
    if config.ablation != "zero":
        taken += ", over questions of the same length and sort in the other half"
    rule = "Heads that the paper's rule calls outliers have divergence 0." if config.outliers else "Outliers are kept."
    if config.first_layer:
        rule += f" Heads of the first {config.first_layer} layer(s) were neither ranked nor amplified, as in the paper."
    return Section(
        "How it was measured",
        "\n\n".join(
            [
                job.sorts.about,
                f"{numbers} {taken}. Intervals are {100 * config.confidence:g} % bootstrap intervals over questions; "
                "those "
                f"about one image are resampled together. {rule}",
            ]
        ),
    )
