"""The kinds of experiment; a named experiment is a kind with the settings of one file in ``configs/``.

This table is data: reading it imports neither torch nor the experiments.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Experiment:
    """A kind of experiment.

    Args:
        summary: one line.
        measures: what it measures, a few sentences.
        needs: what it needs of the model, the machine and the user.
        writes: what it leaves in its folder.
        config: ``"module:Class"`` of its typed settings.
        run: ``"module:function"`` that does it, ``(config, workplace) -> Outcome``.
    """

    summary: str
    measures: str
    needs: str
    writes: str
    config: str
    run: str

    def load_config_class(self) -> Any:
        """The class of its settings; imports no torch."""
        return _load(self.config)

    def load_run(self) -> Any:
        """The function that does it; imports torch."""
        return _load(self.run)


WRITES = (
    "report.html, heads.parquet (heads.csv without pyarrow), figures/*.json, config.yaml, manifest.json, summary.json, "
    "and units/ from which a stopped run goes on."
)

TRACE_WRITES = WRITES.replace(
    " (heads.csv", ", methods, layers and traces (for images places and areas) likewise (.csv"
)

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        "induction": Experiment(
            summary="Which heads look one token back, which complete repeated text, and what breaks without them.",
            measures=(
                "On random tokens said twice and on natural text: the previous-token, duplicate-token, induction, "
                "prefix-matching and copying score of every head; how much better the model predicts the second "
                "time than the first; the loss when each head is ablated alone; the loss when the heads that "
                "mattered most on one half of the prompts are ablated together on the other half, against random "
                "heads of the same layers; the same with every attention pattern held still; and, where the model "
                "keeps checkpoints, when in training the heads appeared."
            ),
            needs=(
                "Any decoder of the Hugging Face library whose attention patterns can be read. With patterns that "
                "can be read and not edited, the part with patterns held still is left out and the report says so."
            ),
            writes=WRITES,
            config="circuits.experiments.induction.config:InductionConfig",
            run="circuits.experiments.induction.run:run",
        ),
        "attribution": Experiment(
            summary="Which heads matter for copying, by every method of attribution, and how far the methods agree.",
            measures=(
                "On pairs of prompts that only copying tells apart: what each method says of every head, with its "
                "interval; which heads are claimed to matter, beyond reassigned answers and matched random heads; the "
                "rank agreement of the methods; and what the top heads of each method, chosen on one half of the "
                "prompts, do together on the other half, against random heads of the same layers."
            ),
            needs="Any causal language model of the Hugging Face library.",
            writes=WRITES,
            config="circuits.experiments.attribution.config:AttributionConfig",
            run="circuits.experiments.attribution.run:run",
        ),
        "gating": Experiment(
            summary="Which heads copying needs, by causal head gating, held against exact ablation.",
            measures=(
                "On random tokens said twice: three fits of one gate per head, from several starts; facilitation, "
                "irrelevance and interference of every head with their intervals over seeds; losses, gates and their "
                "entropy along the fits; the roles of the heads; the exact effect of setting each head to zero on "
                "other prompts, with signs and ranks compared; and heads taken away one after the other."
            ),
            needs="Any causal language model of the Hugging Face library.",
            writes=WRITES,
            config="circuits.experiments.gating.config:GatingConfig",
            run="circuits.experiments.gating.run:run",
        ),
        "contrast": Experiment(
            summary="Which heads to close so that one format of the same items is lost and another is kept.",
            measures=(
                "On items of random tokens in several formats: contrastive gates that keep one format and lose "
                "another; the closed heads set to zero on other items, in both formats, against random heads "
                "of the same layers."
            ),
            needs="Any causal language model of the Hugging Face library.",
            writes=WRITES,
            config="circuits.experiments.contrast.config:ContrastConfig",
            run="circuits.experiments.contrast.run:run",
        ),
        "checkpoints": Experiment(
            summary="Which heads a training made and lost, when, and whether the model uses them.",
            measures=(
                "On pairs of prompts that only copying tells apart: what every head does at every checkpoint; which "
                "heads are active since when, and how long they stay; the heads gained and lost between two "
                "checkpoints; and what scaling and ablating those does, against random heads of the same layers."
            ),
            needs="A zoo model with checkpoints, or a folder with checkpoints named step-N or checkpoint-N in it.",
            writes=WRITES,
            config="circuits.experiments.checkpoint_comparison.config:CheckpointConfig",
            run="circuits.experiments.checkpoint_comparison.run:run",
        ),
        "pruning": Experiment(
            summary="How long the model still copies as heads go, in the order of several rankings.",
            measures=(
                "On pairs of prompts that only copying tells apart: the logit difference as ever more heads are taken "
                "away, in the order of each ranking and of one that is made anew after every cut, against random "
                "orders; the area under each curve; and how few heads are enough. Heads are ranked on one half of the "
                "prompts and taken away on the other."
            ),
            needs="Any causal language model of the Hugging Face library.",
            writes=WRITES,
            config="circuits.experiments.pruning.config:PruningConfig",
            run="circuits.experiments.pruning.run:run",
        ),
        "retrieval": Experiment(
            summary="Which heads copy a fact out of a long text when it is asked for, and what is left without them.",
            measures=(
                "On facts hidden at several depths of long texts: the retrieval score of every head, read and while "
                "the model writes, with and without the first token, beside shuffled words; how much of the answers "
                "the model writes; and the share of right answer tokens as the top heads, chosen on some facts, are "
                "masked on others, against random heads that share none with them, from the same layers, from any "
                "but the first, and from all."
            ),
            needs=(
                "A causal language model of the Hugging Face library with a tokenizer; for others than the zoo's "
                "needle models a text file and facts (text=, facts=, template=)."
            ),
            writes=WRITES,
            config="circuits.experiments.retrieval.config:RetrievalConfig",
            run="circuits.experiments.retrieval.run:run",
        ),
        "vision": Experiment(
            summary="Which heads answers about pictures rest on, and what is said with the picture withheld.",
            measures=(
                "On questions about pictures and on text questions: the vision-aware divergence of every head, beside "
                "an image of one even colour, and its attention to the image; the exact effect of taking each head out "
                "on both sorts; what the most divergent heads, chosen on one half of the questions, cost on the other "
                "half, against random heads of the same layers; the answers with the image, with an even one, and "
                "without any; and hard questions answered with the divergent half of each layer amplified, beside "
                "random halves."
            ),
            needs=(
                "A vision-language model whose images are tokens among its text (LLaVA and the like), with its image "
                "processor (pillow). For others than shapes-vlm a CSV file with the columns image, question, answer "
                "and wrong (questions=, images=, template=), text questions among them."
            ),
            writes=WRITES,
            config="circuits.experiments.vision.config:VisionConfig",
            run="circuits.experiments.vision.run:run",
        ),
        "sinks": Experiment(
            summary="Which heads rest on the first token, since which layer, and what it is for.",
            measures=(
                "On random tokens said twice, or texts of one's own: the sink score of every head and of each of the "
                "first tokens, by layer; norms and directions of the first token's residual, keys and values, and how "
                "much of what a head writes comes from it; other scores with and without it; tokens that become "
                "sinks for some layers; and the loss when heads may not look at it, against other places and random "
                "heads of the same layers."
            ),
            needs=(
                "A causal language model whose attention patterns can be read. Where they cannot be edited, the part "
                "without sight of the first token is left out and the report says so."
            ),
            writes=WRITES,
            config="circuits.experiments.sinks.config:SinksConfig",
            run="circuits.experiments.sinks.run:run",
        ),
        "atlas": Experiment(
            summary="Every head score that applies to a model, labels with their evidence, and a page to look at each.",
            measures=(
                "On random tokens said twice, texts of one's own or random images: every score of `circuits list "
                "scores` that applies, with its band on null prompts, and the reason of each that does not; the "
                "labels of `circuits list labels` that heads earn by pattern and ablation; patterns of up to 64 "
                "heads. The page is a map of all heads with filters, and shows the head that one clicks."
            ),
            needs="Any model of the Hugging Face library whose attention patterns can be read.",
            writes=WRITES,
            config="circuits.experiments.atlas.config:AtlasConfig",
            run="circuits.experiments.atlas.run:run",
        ),
        "contextual": Experiment(
            summary="Which heads read the document that holds the answer, wherever it stands, and what breaks without.",
            measures=(
                "On prompts of several documents, one of which answers the question, at several places: how much "
                "attention the answer's rows of each head pay to that document, to the others, to the first tokens, "
                "and when the others are taken out, against shuffled words; what replacing each head does to the "
                "answer, and how far that agrees with attention; and what the most contextual heads, chosen on one "
                "half of the questions, do together on the other half, against random heads of the same layers."
            ),
            needs=(
                "Any causal language model of the Hugging Face library whose attention patterns can be read, with "
                "questions and documents of your own (documents=FILE, JSON lines); without a file a zoo needle model."
            ),
            writes=WRITES,
            config="circuits.experiments.contextual.config:ContextualConfig",
            run="circuits.experiments.contextual.run:run",
        ),
        "trace_text": Experiment(
            summary="Which way of tracing a text foretells what happens to the answer as tokens are blanked out.",
            measures=(
                "On prompts with answers: every way of tracing of `circuits list traces` that the model can do; per "
                "prompt its rank correlation with blank-out and with the input gradient, whole and layer by layer, "
                "with intervals, against random rankings, and the lead of the best over the runner-up on prompts it "
                "was not chosen by; how far the methods agree; how much traces depend on their target; and what of a "
                "trace passes through each head, beside ablation and gates."
            ),
            needs=(
                "Any model of texts. Zoo models and other causal language models have prompts drawn for them, encoders "
                "without a head are given sentences; else texts=, with the mask token where the answer is read, and "
                "answers=."
            ),
            writes=TRACE_WRITES,
            config="circuits.experiments.trace_text.config:TraceTextConfig",
            run="circuits.experiments.trace_text.run:run",
        ),
        "trace_image": Experiment(
            summary="Which way of tracing an image foretells what covering patches does, and finds the answer's place.",
            measures=(
                "On images with answers: every way of tracing of `circuits list traces` that the model can do; per "
                "image its rank correlation with covering patches in the pixels and with the input gradient, against "
                "random rankings, and the lead of the best over the runner-up on images it was not chosen by; the "
                "pointing game, overlap and mass in the true region against chance; deletion and insertion curves "
                "beside random orders; and how far traces stay the same as the model's layers are drawn anew."
            ),
            needs=(
                "A vision transformer or a vision-language model whose image tokens are patches. Others than "
                "digits-vit and shapes-vlm need images=FOLDER, a question= where the model takes one, and regions= "
                "where the truth is known."
            ),
            writes=TRACE_WRITES,
            config="circuits.experiments.trace_image.config:TraceImageConfig",
            run="circuits.experiments.trace_image.run:run",
        ),
        "explanation": Experiment(
            summary="Whether attention explains an answer: against explanations, hidden tokens, and other weights.",
            measures=(
                "On prompts with answers: how far the attention of the answer's row (mean and maximum over heads, "
                "rollout, flow) ranks tokens as gradients, left-out tokens, LIME and value-aware attention do, beside "
                "how far those agree themselves; which of the most attended tokens speak against the answer; whether "
                "the tokens that matter are attended to, beside random ones; what permuted, even and adversarial "
                "weights make of the answer; and how fast it goes as tokens are hidden in each order."
            ),
            needs=(
                "Any model of texts whose attention can be read; where it cannot be edited, what needs that is left "
                "out and the report says so. Prompts as for trace-text."
            ),
            writes=WRITES.replace(" (heads.csv", ", pairs, hidden and weights likewise (.csv"),
            config="circuits.experiments.explanation.config:ExplanationConfig",
            run="circuits.experiments.explanation.run:run",
        ),
    }
)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
