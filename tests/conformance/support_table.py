"""The README's table of what each family offers, measured: from capability cards and from short generations.

``PYTHONPATH=tests python -m conformance.support_table`` prints it, ``--write`` puts it between the README's markers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_models import TINY

import interp
from interp import At, HeadscopeError, Site

from .support import Case, load_case

README = Path(__file__).parents[2] / "README.md"
FIRST, LAST = "<!-- support table -->", "<!-- /support table -->"
COLUMNS = (
    "family",
    "stacks",
    "z, residual, MLP: edit",
    "q k v: edit",
    "scores, pattern: read",
    "scores, pattern: edit",
    "padding",
    "generation",
)
STREAM = tuple(site for site in Site if not site.inside_attention)


def support_table() -> str:
    """The table in Markdown: a line per family, the same where two variants of one offer the same."""
    lines = {}
    for name in TINY:
        cells = row(load_case(name))
        family, _, variant = name.partition("-")
        if lines.get(family) == cells:
            continue
        lines[f"{family} ({variant})" if variant else family] = cells
    return "\n".join(
        [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *(_line([n, *cells]) for n, cells in lines.items())]
    )


def row(case: Case) -> list[str]:
    """What one family offers, by its card; generation by generating."""
    stacks = list(case.model.stacks)
    return [
        ", ".join(f"`{name}`" for name in stacks),
        _by_stack({name: _offers(case, name, STREAM, edit=True) for name in stacks}),
        _by_stack({name: _offers(case, name, (Site.Q, Site.K, Site.V), edit=True) for name in stacks}),
        _by_stack({name: _offers(case, name, (Site.SCORES, Site.PATTERN), edit=False) for name in stacks}),
        _by_stack({name: _offers(case, name, (Site.SCORES, Site.PATTERN), edit=True) for name in stacks}),
        {"invariant": "left, right", "right only": "right", "left only": "left", "changes real tokens": "equal lengths",
         "not checked": "not checked" if case.tiny.kind != "vision" else "none needed"}[case.model.card.padding],
        generation(case),
    ]  # fmt: skip


def _offers(case: Case, stack: str, sites: Sequence[Site], *, edit: bool) -> str:
    """``yes``, ``no``, or the sites that are missing; a site that the architecture does not have does not count."""
    structural = {Site.RESID_CROSS} | (
        {Site.RESID_MID} if case.model.stacks[stack].family.norm == "parallel" else set()
    )
    if case.model.stacks[stack].cross:
        structural |= {Site.RESID_PRE, Site.RESID_MID, Site.RESID_POST, Site.MLP_OUT}
    wanted = [site for site in sites if site not in structural]
    missing = [site.name for site in wanted if not works(case, stack, site, edit=edit)]
    if not missing:
        return "yes"
    return "no" if len(missing) == len(wanted) else f"without {', '.join(missing)}"


def works(case: Case, stack: str, site: Site, *, edit: bool) -> bool:
    """What the card says; where the probe at load could not tell, an edit of the tiny model's own inputs does."""
    ability = case.model.card.abilities[(stack, site)]
    status = ability.edit if edit else ability.read
    if status != "not checked":
        return status == "yes"
    batch = case.batch()
    edits = [interp.scale(At(site, stack=stack), 0.5)] if edit else []
    run = interp.run(case.model, batch, [At(site, stack=stack)], edits)
    base = interp.run(case.model, batch, kernels=run.kernels)
    assert run.logits is not None and base.logits is not None
    return not edit or not torch.equal(run.logits, base.logits)


def generation(case: Case) -> str:
    """Whether edits hold in generation: cached and uncached agree, and differ from the unedited text's scores."""
    if not case.hf.can_generate():
        return "none"
    inputs = case.tiny.inputs(2, 5, 0)
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"][:, 0] = case.hf.config.decoder_start_token_id
    batch = interp.encode(case.model, inputs=inputs)
    keywords = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "output_scores": True,
                "return_dict_in_generate": True}  # fmt: skip
    try:
        edits = [interp.scale(At(Site.Z, 0), torch.linspace(0, 1, case.model.stack().n_heads(0)), axes="head")]
        cached = interp.generate(case.model, batch, edits, **keywords).output
        uncached = interp.generate(case.model, batch, edits, use_cache=False, **keywords).output
        plain = interp.generate(case.model, batch, **keywords).output
    except HeadscopeError:
        return "no"
    same = torch.equal(cached.sequences, uncached.sequences)
    moved = any(not torch.equal(a, b) for a, b in zip(cached.scores, plain.scores, strict=True))
    return "yes" if same and moved else "no"


def _by_stack(cells: dict[str, str]) -> str:
    if len(set(cells.values())) == 1:
        return next(iter(cells.values()))
    return ", ".join(f"`{name}` {cell}" for name, cell in cells.items())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def between_markers(text: str) -> str:
    """What stands between the two markers.

    Raises:
        ValueError: a marker is missing.
    """
    _, first, rest = text.partition(FIRST)
    table, last, _ = rest.partition(LAST)
    if not (first and last):
        raise ValueError(f"The README lacks {FIRST} … {LAST}; put the two lines where the support table belongs.")
    return table.strip()


def write(readme: Path) -> None:
    """Put the measured table between the markers of ``readme``."""
    text = readme.read_text(encoding="utf-8")
    between_markers(text)
    head, _, rest = text.partition(FIRST)
    readme.write_text(f"{head}{FIRST}\n{support_table()}\n{LAST}{rest.partition(LAST)[2]}", encoding="utf-8")


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        write(README)
    else:
        print(support_table())
