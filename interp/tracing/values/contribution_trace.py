"""Value-aware traces of a run: norms of transformed vectors, and ALTI."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.errors import BadInput
from interp.tracing.ask import TraceAsk, Traced
from interp.tracing.values.held_steps import HeldSteps, held_steps
from interp.tracing.values.steps import ValueTower, descend


def norm_trace(
    ask: TraceAsk, within: str = "output", norm: int = 2, value_bias: bool = True, rolled: bool = True
) -> Traced:
    """Shares of the lengths of what tokens bring, ``||T_i(x_j)|| / sum_k ||T_i(x_k)||``, multiplied through the layers.

    ``T_i(x_j)`` is what the attention sub-layer brings from token j to token i; see :mod:`interp.model.attention_sums`.
    ``within="attention"`` measures ``||sum_h A_ij^h v_j^h W_O^h||`` (Kobayashi et al., 2020); ``"output"`` the token's
    own state and the norm after the residual as well (Kobayashi et al., 2021), where a norm stands there (post-norm
    blocks) or after the projection. MLPs are left out, as there. Multiplying the layers is GlobEnc's idea (Modarressi
    et al., 2022), who count the norm after the MLP too.

    Args:
        ask: what is traced.
        within: ``output``, or ``attention``: then nothing stays on a token but by attention.
        norm: 1 or 2.
        value_bias: whether a bias of the value projection belongs to the tokens: our reading of the paper.
        rolled: multiply the layers; False for each layer's own shares.

    Raises:
        BadInput: options that are not there, or cross-attention alone.
        Unsupported: a model whose attention does not add up to such a sum.
    """
    made = held_steps(ask, kind="norm", norm=norm, within=within, value_bias=value_bias)
    return traced(ask, made, rolled=rolled)


def alti_trace(ask: TraceAsk, norm: int = 1, value_bias: bool = True, rolled: bool = True) -> Traced:
    """ALTI: how much nearer to 0 a token's state would be without another's part, multiplied through the layers.

    ``c_ij = max(0, ||y_i||_1 - ||y_i - T_i(x_j)||_1)``, rows divided by their sum, with ``y_i = sum_j T_i(x_j) +
    biases`` what the attention sub-layer leaves in the stream (Ferrando, Gallego and Costa-jussa, 2022). The sum is
    checked against the run in each layer. In pre-norm blocks no norm follows the residual, so that ``T_i(x_i)`` holds
    the token's state itself; in parallel blocks ``y_i`` is the state before and attention, without the MLP.

    Args:
        ask: what is traced.
        norm: 1 as in the paper, or 2.
        value_bias: whether a bias of the value projection belongs to the tokens or to the constant.
        rolled: multiply the layers; False for each layer's own shares.

    Raises:
        BadInput: options that are not there, or cross-attention alone.
        Unsupported: a model whose attention does not add up to such a sum.
    """
    made = held_steps(ask, kind="alti", norm=norm, value_bias=value_bias)
    return traced(ask, made, rolled=rolled)


def traced(ask: TraceAsk, made: HeldSteps, *, rolled: bool) -> Traced:
    """The targets' rows of the product of the steps, or of each step alone.

    Args:
        ask: what is traced.
        made: the steps.
        rolled: the product.
    """
    if not isinstance(rolled, bool):
        raise BadInput(f"{ask.method}: rolled={rolled!r}; expected True or False.")
    tower, like = made.tower, made.like
    wanted = list(tower.layers) if ask.each_layer else [tower.layers[-1]]
    start = one_hot(ask, tower, like)
    if rolled:
        found = descend(tower, wanted, start, like=like)
    else:
        found = torch.stack([_alone(tower, layer, start, like) for layer in wanted])
    return Traced(found[-1], found if ask.each_layer else None, made.source_stacks, made.said())


def one_hot(ask: TraceAsk, tower: ValueTower, like: Tensor) -> Tensor:
    """``[batch, target, query]`` 1 at the targets."""
    targets = ask.targets.to(like.device)
    start = like.new_zeros(*targets.shape, tower.n_tokens)
    return start.scatter_(-1, targets.unsqueeze(-1), 1.0)


def _alone(tower: ValueTower, layer: int, start: Tensor, like: Tensor) -> Tensor:
    steps = [step for step in tower.steps if step.layer == layer]
    made = descend(ValueTower(steps, tower.n_tokens), [layer], start, like=like)[0]
    missing = tower.n_encoder + tower.n_tokens - made.shape[-1]  # a block without cross-attention beside others
    return torch.nn.functional.pad(made, (missing, 0))
