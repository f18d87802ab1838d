"""The check by behaviour at load: four short forwards say what this very checkpoint can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from interp.address import At, Site
from interp.edits import scale
from interp.edits.base import Edit
from interp.errors import LoadFailed
from interp.model.batch import Batch
from interp.model.card import Ability, Card, Status
from interp.model.handle import Model
from interp.model.identities import stack_checks
from interp.model.inputs import output_embeddings, pad_id, position_ids
from interp.model.probe import probe_batch, probe_inputs
from interp.model.scopes import evaluating
from interp.model.session import Session
from interp.model.stacks import Stack
from interp.model.unembedding import unembedding

_HALVED = (Site.Q, Site.SCORES)  # zeroing would leave a softmax of equal numbers, halving is surely another pattern


def unchecked(model: Model, note: str = "") -> Card:
    """The card of a model that was not checked: what its row refuses is refused, the rest is "not checked"."""
    return _card(model, model.stacks, {}, {"behaviour": note} if note else {}, "not checked")


def check_behaviour(model: Model) -> tuple[dict[str, Stack], Card]:
    """The stacks, with what was found not to hold refused, and the card.

    Forward 1 is the plain model, 2 reads every site of every stack, 3 edits another site in each row of the batch, 4
    pads on either side. Checked: reading changes no bit; shapes; the pattern's rows; pattern and scores agree; q k
    gives the scores; results sum to the attention output; the residual identity; an edit moves the output.

    Raises:
        LoadFailed: reading disturbs the model, or results do not sum to what attention writes.
    """
    probe = _Probe(model)
    with torch.no_grad():
        if not probe.find_inputs():
            return dict(model.stacks), unchecked(model, probe.outcome["behaviour"])
        probe.read()
        probe.edit()
        padding = probe.pad()
    stacks = {name: replace(stack, refused=probe.refused.get(name, {})) for name, stack in model.stacks.items()}
    checked = replace(model, stacks=stacks)
    return stacks, _card(checked, stacks, probe.abilities, probe.outcome, padding)


@dataclass
class _Probe:
    model: Model
    outcome: dict[str, str] = field(default_factory=dict)
    refused: dict[str, dict[Site, str]] = field(default_factory=dict)
    abilities: dict[tuple[str, Site], Ability] = field(default_factory=dict)
    batch: Batch | None = None
    kind: int = 0  # which of the candidate inputs ran
    plain: Tensor | None = None
    values: dict[tuple[str, Site], Tensor] = field(default_factory=dict)

    # ---- forward 1: the plain model ---------------------------------------------------------------------------------

    def find_inputs(self) -> bool:
        """Whether some inputs made from the config run at all; keeps the plain output."""
        self.editable = [
            (name, site)
            for name, stack in self.model.stacks.items()
            for site in Site
            if stack.refusal(site, True) is None and not stack.family.packed
        ]
        for number, inputs in enumerate(probe_inputs(self.model, 1)):
            self.kind = number
            self.batch = self._as_batch(inputs)
            try:
                self.plain = self._forward()
            except Exception as error:  # a family's own complaint about inputs made up here
                self.outcome["behaviour"] = f"not checked: the probe forward failed ({type(error).__name__}: {error})"
                continue
            self.outcome.pop("behaviour", None)
            return True
        return False

    def _as_batch(self, inputs: Mapping[str, Any]) -> Batch:
        return probe_batch(self.model, inputs)

    def _forward(self, session: Session | None = None, batch: Batch | None = None) -> Tensor:
        chosen = batch if batch is not None else self.batch
        assert chosen is not None
        with evaluating(self.model.hf):
            if session is None:
                output = self.model.hf(**chosen.inputs)
            else:
                with session:
                    output = self.model.hf(**chosen.inputs)
        pairs = getattr(output, "logits_per_image", None)
        if isinstance(pairs, Tensor):  # two towers: a row per image, a column per text
            return torch.cat([pairs, pairs.T], dim=1) if pairs.shape[0] == pairs.shape[1] else pairs
        for name in ("logits", "last_hidden_state"):
            found = getattr(output, name, None)
            if isinstance(found, Tensor):
                return found
        return next(value for value in output.values() if isinstance(value, Tensor))

    # ---- forward 2: every site read ---------------------------------------------------------------------------------

    def read(self) -> None:
        """Read every site of every stack; hold the numbers against each other."""
        ats = [
            At(site, layer=layer, stack=name)
            for name, stack in self.model.stacks.items()
            for site in Site
            if stack.refusal(site, False) is None
            for layer in stack.layers_of(At(site, stack=name))
        ]
        session = Session(self.model, self.batch, [], ats)
        output = self._forward(session)
        assert self.plain is not None
        if not torch.equal(output, self.plain):
            gap = float((output.float() - self.plain.float()).abs().max())
            raise LoadFailed(
                f"Reading disturbs {type(self.model.hf).__name__}: its output moved by {gap:.2g} while only hooks were "
                "attached. Is the model stochastic, or compiled? Pass it in evaluation mode, or load with check=False."
            )
        self.outcome["reading changes nothing"] = "bit-identical"
        seen: dict[str, dict[tuple[Site, int], Tensor]] = {}
        for reading in session.readings:
            layer = reading.layers[0]
            if layer in reading.values:
                seen.setdefault(reading.stack, {})[(reading.at.site, layer)] = reading.values[layer]
        for name, stack in self.model.stacks.items():
            found = seen.get(name, {})
            if not found:
                self.outcome[f"stack {name}"] = "not checked: the probe's inputs do not reach it"
                continue
            self._judge_reads(name, stack, found)

    def _judge_reads(self, name: str, stack: Stack, found: Mapping[tuple[Site, int], Tensor]) -> None:
        refused = self.refused.setdefault(name, {})
        sites = {site for site, _ in found}
        for site in Site:
            if stack.refusal(site, False) is None and site not in sites:
                refused[site] = "it was never reached in a forward pass on this checkpoint (found at load)"
        outcome, broken = stack_checks(stack, found)
        self.outcome |= {f"{what} ({name})": how for what, how in outcome.items()}
        for site, reason in broken.items():
            if site is Site.Z:
                raise LoadFailed(
                    f"The attention of stack {name!r} in {type(self.model.hf).__name__} is not understood: {reason}. "
                    f"Its output projection was taken to be {stack.family.out!r} of {stack.path}. Correct the family "
                    "row in interp/model/families.py, or load with check=False to use the other sites at your own risk."
                )
            refused[site] = reason
        for site in sites:
            ok: Status = "no" if site in refused else "yes"
            self.abilities[(name, site)] = Ability(ok, "not checked", refused.get(site, ""))

    # ---- forward 3: another edit in each row ------------------------------------------------------------------------

    def edit(self) -> None:
        """Edit one site in each row of one batch; every row must differ from the unedited one."""
        assert self.batch is not None and self.plain is not None
        rows = [(name, site) for name, site in self.editable if (name, site) in self.abilities]
        edits: list[Edit] = []
        for row, (name, site) in enumerate(rows, start=1):
            factor = torch.ones(len(rows) + 1)
            factor[row] = 0.5 if site in _HALVED else 0.0
            edits.append(scale(At(site, stack=name), factor, axes="batch"))
        batch = self._as_batch(probe_inputs(self.model, len(rows) + 1)[self.kind])
        last = torch.full((len(batch), 1), batch.width - 1) if output_embeddings(self.model) is not None else None
        session = Session(self.model, batch, edits)
        with unembedding(self.model, last, []):
            output = self._forward(session, batch).float()
        if output.shape[0] != len(batch):
            self.outcome["an edit moves the output"] = "not checked: the output has no row per prompt"
            return
        size = float(output.abs().max())
        for row, (name, site) in enumerate(rows, start=1):
            fired = any(
                (row - 1, name, site, layer) in session.fired for layer in range(self.model.stacks[name].n_layers)
            )
            moved = float((output[row] - output[0]).abs().max()) > 1e-6 * size
            read = self.abilities[(name, site)].read
            if not fired:
                reason = "an edit there never fires on this checkpoint (found at load)"
                self.refused.setdefault(name, {})[site] = reason
                self.abilities[(name, site)] = Ability("no", "no", reason)
            elif read == "yes":
                note = "" if moved else "an edit there did not move the output of the probe"
                self.abilities[(name, site)] = Ability(read, "yes" if moved else "not checked", note)
        still = [f"{site.name} ({name})" for name, site in rows if self.abilities[(name, site)].edit == "not checked"]
        self.outcome["an edit moves the output"] = f"all but {', '.join(still)}" if still else f"all {len(rows)} sites"

    # ---- forward 4: padding -----------------------------------------------------------------------------------------

    def pad(self) -> str:
        """Which side padding may stand on without changing real tokens."""
        assert self.batch is not None and self.plain is not None
        ids = self.batch.inputs.get("input_ids")
        if set(self.batch.inputs) - {"input_ids", "decoder_input_ids"} or ids is None:
            return "not checked"
        width, extra = ids.shape[1], 2
        filler = torch.full((1, extra), pad_id(self.model), dtype=ids.dtype, device=ids.device)
        rows = torch.cat([torch.cat([ids[:1], filler], 1), torch.cat([filler, ids[:1]], 1)])
        real = torch.ones_like(rows, dtype=torch.bool)
        real[0, width:], real[1, :extra] = False, False
        inputs: dict[str, Any] = {"input_ids": rows, "attention_mask": real.long()}
        positions = position_ids(self.model, real)
        if positions is not None:
            inputs["position_ids"] = positions
        if "decoder_input_ids" in self.batch.inputs:
            inputs["decoder_input_ids"] = self.batch.inputs["decoder_input_ids"].expand(2, -1)
        try:
            output = self._forward(batch=replace(self.batch, inputs=inputs)).float()
        except Exception as error:  # a family that takes no mask, say
            self.outcome["padding"] = f"not checked: {type(error).__name__}: {error}"
            return "not checked"
        plain = self.plain[:1].float()
        scale_ = max(float(plain.abs().max()), 1e-6)
        tolerance = 1e-4 if self.model.dtype in (torch.float32, torch.float64) else 5e-2
        same = []
        for row, place in ((0, slice(0, width)), (1, slice(extra, None))):
            kept = output[row : row + 1]
            aligned = kept[:, place] if kept.ndim == plain.ndim and kept.shape[1] == width + extra else kept
            gap = float((aligned - plain).abs().max()) if aligned.shape == plain.shape else float("inf")
            same.append(gap <= tolerance * scale_)
        return {(True, True): "invariant", (True, False): "right only", (False, True): "left only"}.get(
            (same[0], same[1]), "changes real tokens"
        )


def _card(
    model: Model,
    stacks: Mapping[str, Stack],
    abilities: Mapping[tuple[str, Site], Ability],
    outcome: Mapping[str, str],
    padding: str,
) -> Card:
    rows: dict[tuple[str, Site], Ability] = {}
    for name, stack in stacks.items():
        for site in Site:
            reason = stack.refusal(site, False)
            if reason is not None:
                rows[(name, site)] = Ability("no", "no", reason)
                continue
            found = abilities.get((name, site), Ability("not checked", "not checked"))
            reason = stack.refusal(site, True)
            if stack.family.packed and site.inside_attention:
                reason = "rows of all images are packed; edit Site.Z"
            rows[(name, site)] = found if reason is None else Ability(found.read, "no", reason)
    title = f"{type(model.hf).__name__} ({getattr(model.hf.config, 'model_type', '?')})"
    notes = {f"note ({name})": stack.family.note for name, stack in stacks.items() if stack.family.note}
    attention = {name: str(stack.config._attn_implementation) for name, stack in stacks.items()}
    return Card(title, rows, {**outcome, **notes}, padding, attention)
