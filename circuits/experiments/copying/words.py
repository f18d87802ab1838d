"""What the pages of experiments on copying pairs say about their prompts and edits."""

from __future__ import annotations

from circuits.experiments.copying.job import Job


def pairs_in_words(job: Job) -> str:
    """How the prompts were made, and how many there are."""
    config = job.config
    start = "a start token, " if job.evaluation.start else ""
    return (
        f"A clean prompt is {start}{config.segment} distinct random tokens, and all but the last of them again; the "
        "right answer is that last token. Its corrupted partner has other tokens in its first half, so that nothing "
        "is there to copy; the last of those is the wrong answer. The metric is the logit of the right answer minus "
        f"that of the wrong one. {len(job.selection)} pairs choose and rank heads, {len(job.evaluation)} others judge "
        f"them, and {len(job.reference)} more give the replaced outputs. Intervals are "
        f"{100 * config.confidence:g} % bootstrap intervals over prompts."
    )


def replaced(ablation: str, *, several: bool = True) -> str:
    """What happens to heads that are taken away, or to one."""
    whose = "their" if several else "its"
    return {
        "zero": "set to zero (off-distribution: effects can be larger than what a head carries)",
        "mean": f"replaced by {whose} mean over other prompts, position by position",
        "resample": f"replaced by {whose} output on another prompt",
    }[ablation]
