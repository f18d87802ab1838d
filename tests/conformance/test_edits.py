"""What edits do: against surgery on the weights, read back, against nothing, against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import interp
from interp import At, Site, Unsupported
from interp.edits.catalogue import EDITS

from .support import (
    BYPASS,
    REPRESENTATIVE,
    Case,
    close,
    counted_forwards,
    everything,
    families,
    named,
    neutral_settings,
    output,
    plain,
    random_like,
    real_settings,
    refused,
    sites,
)
from .test_reading import broken_identities


def by_layer(case: Case, at: At, batch: interp.Batch) -> Tensor:
    """``[layer, ...]`` what every layer of ``at`` holds, as the edited run's kernels would give it."""
    kernels = interp.run(case.model, batch, edits=[interp.scale(at, 1.0)]).kernels
    return interp.run(case.model, batch, [at], kernels=kernels)[at]


def reachable(case: Case, stack: str, layer: int) -> bool:
    """Whether the logits depend on a layer (the last one of llava's tower is computed and thrown away)."""
    return not (case.tiny.name == "llava" and stack == "vision" and layer == case.model.stacks[stack].n_layers - 1)


@families
def test_zeroing_a_head_is_zeroing_its_slice_of_the_weight(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch()
    unedited = plain(case, batch)
    for stack_name, stack in case.model.stacks.items():
        for layer in range(stack.n_layers):
            for head in range(stack.n_heads(layer)):
                run = interp.run(case.model, batch, edits=[interp.zero(At(Site.Z, layer, (head,), stack=stack_name))])
                by_weight = without_slice(case, batch, stack.layer(layer).out, head, stack.d_head(layer))
                assert torch.equal(output(run), by_weight), (stack_name, layer, head)
                assert torch.equal(output(run), unedited) != reachable(case, stack_name, layer)


def without_slice(case: Case, batch: interp.Batch, out: nn.Module, head: int, width: int) -> Tensor:
    """The logits with the slice of a head set to 0 in the output projection's weight."""
    weight, part = out.get_parameter("weight"), slice(head * width, (head + 1) * width)
    kept = weight.data
    changed = kept.clone()
    if isinstance(out, nn.Linear):  # [out, in]; a Conv1D has [in, out]
        changed[:, part] = 0
    else:
        changed[part] = 0
    try:
        weight.data = changed
        return plain(case, batch)
    finally:
        weight.data = kept


@families
def test_what_was_patched_is_read_back(case_of: Callable[[str], Case], name: str) -> None:
    """A random tensor at every editable site, exactly read back, and the layer goes on from it."""
    case = case_of(name)
    batch = case.batch()
    ats = everything(case)
    problems: list[str] = []
    for stack_name, stack, site in sites(case, edit=True):
        whole = At(site, stack=stack_name)
        for layer in stack.layers_of(whole):
            at = whole.with_(layer=layer)
            value = random_like(interp.run(case.model, batch, [at])[at], site, layer)
            run = interp.run(case.model, batch, ats, [interp.patch(at, value)])
            if not torch.equal(run[at], value):
                problems.append(f"{at}: read back {float((run[at] - value).abs().max()):.1e} off")
            if site not in (Site.RESULT, Site.ATTN_RAW):  # these no longer come from z
                skipped = {
                    Site.Z: {"z is the pattern times v"},
                    Site.PATTERN: {"pattern is the softmax of the scores", "rows sum to 1, or 1 minus the sink",
                                   "scores are the logarithm of the pattern up to a constant of the row"},
                    Site.RESID_MID: {"pre + attn = mid", "LN(pre + attn) = mid"},
                    Site.RESID_POST: {"mid + mlp = post", "LN(mid + mlp) = post", "pre + attn + mlp = post"},
                }.get(site, set())  # fmt: skip
                broken = set(broken_identities(case, run, stack, layer)) - skipped
                problems += [f"patched {at}: {what}" for what in broken]
            elif site is Site.RESULT:
                bias = getattr(stack.layer(layer).out, "bias", None)
                total = value.sum(2) + (0 if bias is None else bias.detach())
                if not close(run[at.with_(site=Site.ATTN_RAW)], total, 1e-4):
                    problems.append(f"patched {at}: ATTN_RAW is not the sum of the new results")
            if site is Site.RESID_POST and layer + 1 < stack.n_layers:
                if not torch.equal(run[At(Site.RESID_PRE, layer + 1, stack=stack_name)], value):
                    problems.append(f"patched {at}: the next block starts from something else")
    named(problems)


@families
def test_neutral_settings_change_no_bit(case_of: Callable[[str], Case], name: str) -> None:
    """Against the unedited run through the same kernels: all at once, and each alone where that fails."""
    case = case_of(name)
    batch = case.batch()
    problems: list[str] = []
    for stack_name, _, site in sites(case, edit=True):
        at = At(site, stack=stack_name)
        edits = neutral_settings(at, by_layer(case, at, batch))
        together = interp.run(case.model, batch, edits=list(edits.values()))
        unedited = interp.run(case.model, batch, kernels=together.kernels)
        assert together.kernels == unedited.kernels
        if not torch.equal(output(together), output(unedited)):
            for label, edit in edits.items():
                alone = interp.run(case.model, batch, edits=[edit])
                gap = float((output(alone) - output(unedited)).abs().max())
                if gap:
                    problems.append(f"{label} at {at}: off by {gap:.1e}")
            problems.append(f"neutral edits at {at}")
    named(problems)


def test_every_edit_of_the_catalogue_is_swept(case_of: Callable[[str], Case]) -> None:
    case = case_of("llama")
    batch = case.batch()
    swept: set[str] = set()
    for stack_name, _, site in sites(case, edit=True):
        at = At(site, stack=stack_name)
        swept |= set(real_settings(at, by_layer(case, at, batch)))
    assert swept == set(EDITS)
    assert set(EDITS) <= {name for name in dir(interp) if not name.startswith("_")}


@families
def test_every_edit_moves_the_logits(case_of: Callable[[str], Case], name: str) -> None:
    """Each edit with a real setting at each site of each stack; freezing the pattern moves nothing by itself."""
    case = case_of(name)
    batch = case.batch()
    problems: list[str] = []
    bases: dict[tuple[tuple[str, int], ...], Tensor] = {}  # unedited logits by the layers that ran eager
    for stack_name, stack, site in sites(case, edit=True):
        at = At(site, stack=stack_name)
        packed = stack.family.packed
        for label, edit in real_settings(at, by_layer(case, at, batch), packed=packed).items():
            run = interp.run(case.model, batch, edits=[edit])
            eager = tuple(key for key, kernel in run.kernels.items() if kernel == "eager")
            if eager not in bases:
                bases[eager] = output(interp.run(case.model, batch, kernels=run.kernels))
            base = bases[eager]
            moved = float((output(run) - base).abs().max()) > 1e-5 * float(base.abs().max())
            if moved != (label != "freeze_pattern"):
                problems.append(f"{label} at {at} {'moved' if moved else 'did not move'} the logits")
    named(problems)


@families
def test_what_cannot_be_edited_is_refused_before_any_forward(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch()
    missing = refused(case, edit=True)
    with counted_forwards(case) as calls:
        for stack_name, site in missing:
            at = At(site, stack=stack_name)
            with pytest.raises(Unsupported, match="cannot"):
                interp.run(case.model, batch, edits=[interp.scale(at, 2.0)])
            with pytest.raises(Unsupported), interp.edited(case.model, [interp.zero(at)]):
                pass
            if site is Site.PATTERN:
                blank = torch.zeros(1, 1)
                for edit in (
                    interp.uniform(at),
                    interp.freeze_pattern(at),
                    interp.to_identity(at, 0.5),
                    interp.redistribute(at, 0, 0.5),
                    interp.set_pattern(at, blank, axes="query key"),
                ):
                    with pytest.raises(Unsupported):
                        interp.run(case.model, batch, edits=[edit])
            if site is Site.SCORES:
                for edit in (
                    interp.knockout(0, 0, stack=stack_name),
                    interp.sharpen(at, 2.0),
                    interp.boost(at, 0, 1.0),
                ):
                    with pytest.raises(Unsupported):
                        interp.run(case.model, batch, edits=[edit])
        for stack_name, stack in case.model.stacks.items():
            if stack.family.packed:
                for edit in (interp.mean(At(Site.Z, stack=stack_name)), interp.resample(At(Site.Z, stack=stack_name))):
                    with pytest.raises(Unsupported, match="without a batch axis"):
                        interp.run(case.model, batch, edits=[edit])
    assert not calls
    maps = {Site.Q, Site.K, Site.V, Site.SCORES, Site.PATTERN}
    default = {site for stack_name, site in missing if stack_name == case.model.default_stack}
    assert (maps <= default) == (name in BYPASS)


@families
def test_kernels_move_where_maps_are_edited_and_nowhere_else(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch()
    own = interp.run(case.model, batch).kernels
    for stack_name, stack, site in sites(case, edit=True):
        at = At(site, stack.layers_of(At(site, stack=stack_name))[-1], stack=stack_name)
        kernels = interp.run(case.model, batch, edits=[interp.scale(at, 1.0)]).kernels
        expected = dict(own)
        if site.inside_attention:
            expected[(stack_name, at.layer)] = "eager"
        assert kernels == expected, at


@families
def test_an_edit_may_differ_per_prompt(case_of: Callable[[str], Case], name: str) -> None:
    """A [batch, layer, head] gate equals one run per prompt."""
    case = case_of(name)
    batch = case.batch()
    for stack_name, stack in case.model.stacks.items():
        shape = (len(batch), stack.n_layers, stack.n_heads(0))
        gate = torch.rand(shape, generator=torch.Generator().manual_seed(4))
        at = At(Site.Z, stack=stack_name)
        if stack.family.packed:
            continue
        together = output(interp.run(case.model, batch, edits=[interp.gate(at, gate)]))
        for row in range(len(batch)):
            alone = output(interp.run(case.model, batch, edits=[interp.gate(at, gate[row])]))
            paired = name in ("clip", "siglip") and stack_name == "vision"  # [text, image]
            mine, theirs = (together[:, row], alone[:, row]) if paired else (together[row], alone[row])
            assert close(mine, theirs, 1e-6), (stack_name, row)
        last = At(Site.RESID_POST, stack.n_layers - 1, stack="decoder" if stack.cross else stack_name)
        per_prompt = interp.run(case.model, batch, [last], [interp.gate(at, gate)])[last]
        for row in range(len(batch)):
            alone_post = interp.run(case.model, batch, [last], [interp.gate(at, gate[row])])[last]
            # routed experts gather the rows of all prompts, so that rounding may differ
            assert close(per_prompt[row], alone_post[row], 1e-6), (stack_name, row)
    maps = At(Site.PATTERN)
    if name not in BYPASS:
        share = (
            torch.tensor([0.0, 0.5, 1.0])
            .view(3, 1, 1)
            .expand(3, case.model.stack().n_layers, case.model.stack().n_heads(0))
        )
        run = interp.run(case.model, batch, [maps], [interp.to_identity(maps, share)])
        unedited = interp.run(case.model, batch, [maps], kernels=run.kernels)
        assert torch.equal(run[maps][:, 0], unedited[maps][:, 0])
        assert torch.equal(run[maps][:, 2], torch.eye(run[maps].shape[-1]).expand_as(run[maps][:, 2]))


@families
def test_one_head_is_one_head(case_of: Callable[[str], Case], name: str) -> None:
    """An edit of one head leaves the site as it was at the others."""
    case = case_of(name)
    batch = case.batch()
    for stack_name, stack, site in sites(case, edit=True):
        width = stack.width(site, 0)
        if not site.per_head or width == 1:
            continue
        at = At(site, 0, stack=stack_name)
        run = interp.run(case.model, batch, [at], [interp.scale(at.with_(heads=(1,)), 0.5)])
        kept = interp.run(case.model, batch, [at], kernels=run.kernels)[at]
        axis = site.axes.index("head")
        for head in range(width):
            new, old = run[at].select(axis, head), kept.select(axis, head)
            assert torch.equal(new, old * 0.5 if head == 1 else old), (at, head)


@families
def test_order_of_the_list_is_order_at_a_site_and_nothing_else(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch()
    at = At(Site.Z, 0)
    doubled, shifted = interp.scale(at, 2.0), interp.add(at, 1.0)
    z = interp.run(case.model, batch, [at])[at]
    assert torch.equal(interp.run(case.model, batch, [at], [doubled, shifted])[at], z * 2 + 1)
    assert torch.equal(interp.run(case.model, batch, [at], [shifted, doubled])[at], (z + 1) * 2)
    several = [interp.scale(At(site, stack=stack), 0.7) for stack, _, site in sites(case, edit=True)]
    one_way = output(interp.run(case.model, batch, edits=several))
    assert torch.equal(one_way, output(interp.run(case.model, batch, edits=several[::-1])))


# ---- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in REPRESENTATIVE if name not in BYPASS])
def test_maps_after_an_edit_are_the_closed_forms(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    batch = case.batch()
    for stack_name, stack in case.model.stacks.items():
        maps, scores = At(Site.PATTERN, 1, stack=stack_name), At(Site.SCORES, 1, stack=stack_name)
        plain_run = interp.run(case.model, batch, [maps, scores], kernels="eager")
        a, s = plain_run[maps], plain_run[scores]
        visible = ~torch.isneginf(s)
        sink = 1 - a.sum(-1, keepdim=True)

        def after(edit: interp.Edit, maps: At = maps) -> Tensor:
            return interp.run(case.model, batch, [maps], [edit])[maps]

        def softmaxed(new: Tensor, stack=stack, sink=sink, s=s) -> Tensor:
            sinks = getattr(stack.layer(1).attention, "sinks", None)
            if sinks is None:
                return torch.softmax(new, -1).nan_to_num(0.0)
            column = sinks.detach().view(1, -1, 1, 1).expand(*new.shape[:-1], 1)
            return torch.softmax(torch.cat([new, column], -1), -1)[..., :-1]

        assert close(after(interp.uniform(maps)), visible / visible.sum(-1, keepdim=True).clamp(min=1).float())
        assert close(after(interp.sharpen(scores, 0.5)), softmaxed(s / 0.5))
        boosted = s.clone()
        boosted[..., 1] += 2.0
        assert close(after(interp.boost(scores, torch.tensor([[1]]), 2.0)), softmaxed(boosted))
        blocked = s.clone()
        blocked[:, :, 2:, 0] = -torch.inf
        window = interp.knockout(
            slice(2, None) if stack_name != "vision" else None, torch.tensor([[0]]), layers=1, stack=stack_name
        )
        expected = softmaxed(blocked)
        expected[torch.isneginf(blocked).all(-1)] = 0.0
        assert close(after(window), expected)
        if stack_name != "cross":
            eye = torch.eye(a.shape[-1])
            assert close(after(interp.to_identity(maps, 0.25)), 0.75 * a + 0.25 * eye)
        moved = after(interp.redistribute(maps, torch.tensor([[0]]), 0.5))
        assert close(moved.sum(-1), a.sum(-1))
        possible = a[..., 1:].sum(-1) > 0
        assert close(moved[..., 0], torch.where(possible, a[..., 0] * 0.5, a[..., 0]))


@families
def test_a_row_without_a_visible_key_attends_to_nothing(case_of: Callable[[str], Case], name: str) -> None:
    """Everything knocked out of one row: its pattern and z are 0, and the others stay as they were."""
    case = case_of(name)
    if name in BYPASS:
        return
    batch = case.batch()
    for stack_name, stack in case.model.stacks.items():
        if stack.family.packed:
            continue
        maps, z = At(Site.PATTERN, 0, stack=stack_name), At(Site.Z, 0, stack=stack_name)
        rows = torch.tensor([[1]])
        run = interp.run(case.model, batch, [maps, z], [interp.knockout(rows, None, layers=0, stack=stack_name)])
        unedited = interp.run(case.model, batch, [maps, z], kernels=run.kernels)
        assert not run[maps][:, :, 1].any() and not run[z][:, 1].any()
        keep = [i for i in range(run[z].shape[1]) if i != 1]
        assert torch.equal(run[maps][:, :, keep], unedited[maps][:, :, keep])
        assert torch.equal(run[z][:, keep], unedited[z][:, keep])
        assert torch.isfinite(output(run)).all()


@families
def test_freezing_the_pattern_holds_it_under_other_edits(case_of: Callable[[str], Case], name: str) -> None:
    case = case_of(name)
    if name in BYPASS:
        return
    batch = case.batch()
    maps = At(Site.PATTERN)
    shaken = interp.noise(At(Site.RESID_PRE, 0), std=1.0)
    frozen = interp.run(case.model, batch, [maps], [shaken, interp.freeze_pattern()])
    unedited = interp.run(case.model, batch, [maps], kernels=frozen.kernels)
    loose = interp.run(case.model, batch, [maps], [shaken])
    assert torch.equal(frozen[maps], unedited[maps]) and not close(loose[maps], unedited[maps])
    assert not close(output(frozen), output(loose))
