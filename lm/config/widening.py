"""A model that takes over the learning rates of a narrower one (muP, Tensor Programs V, arXiv 2203.03466)."""

import dataclasses
import math

from lm.config.model import Attention, Model, Moe
from lm.errors import UserError

OPTION = "optimizer.base_width"


def widened(model: Model, base: int) -> Model:
    """Returns `model` with the multiplier of its logits that makes the rates of the base model the best ones here too.

    The base model is `model` with its width, its hidden layers and its number of heads divided by width / base; heads keep
    their size, so that attention logits keep their scale. With m = width / base the logits of a tied head are multiplied by
    1 / m (the paper's table 8), those of a head with a matrix of its own by 1 / sqrt(m) (table 9): `Head.scale`, which is part
    of the model, so that whatever loads it needs no optimizer. `lm.optim.width_factors` has the learning rates.

    Raises UserError if there is no such base model, or if the model's initial values or multipliers contradict it.
    """
    if model.init_std is not None:
        raise UserError(
            f"model.init_std={model.init_std:g} is the same at every width, and {OPTION} needs matrices that begin with "
            "fan-in ** -0.5: leave model.init_std out"
        )
    if model.embed.width is not None:
        raise UserError(f"model.embed.width={model.embed.width} does not grow with the width, as {OPTION} needs: leave it out")
    if model.encoder and model.encoder.stem:
        raise UserError(
            f"encoder.stem reads vectors that do not grow with the width, and {OPTION} has no rule for it: leave it out"
        )
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for letter, block in stack.blocks.items() if stack else ():
            where = f"{name}.blocks.{letter}"
            if block.mixer is not None or block.attention is None or block.ffn is None:
                raise UserError(f"{OPTION} has rules for attention with a feed-forward, and {where} is another: leave it out")
            if isinstance(block.ffn, Moe):
                raise UserError(f"{where}.ffn of kind 'moe' has a router, for which {OPTION} has no rule: take kind 'mlp'")
            if block.ffn.hidden * base % model.width:
                raise UserError(f"{where}.ffn.hidden={block.ffn.hidden} {_no_multiple(model.width, base)}: give one that is")
            _check_heads(f"{where}.attention", block.attention, model.width, base)
    if model.head is None or model.width == base and model.head.scale is None:
        return model
    scale = base / model.width if model.head.tied else math.sqrt(base / model.width)
    if model.head.scale is not None and not math.isclose(model.head.scale, scale, rel_tol=1e-6):
        raise UserError(
            f"model.head.scale={model.head.scale:g} is not the {scale:g} of {OPTION}={base} at width {model.width}: leave "
            "model.head.scale out (None)"
        )
    return dataclasses.replace(model, head=dataclasses.replace(model.head, scale=scale))


def _no_multiple(width: int, base: int) -> str:
    return f"is no multiple of {width / base:g}, the width divided by {OPTION}={base}"


def _check_heads(where: str, attention: Attention, width: int, base: int) -> None:
    """Refuses heads whose number does not grow, unless they have a scale: growing heads need 1 / size and not its root."""
    if attention.scale is not None:
        return
    for name, count in (("num_heads", attention.num_heads), ("num_kv_heads", attention.kv_heads)):
        if count * base % width:
            size = attention.size(width)
            raise UserError(
                f"{where}.{name}={count} {_no_multiple(width, base)}: widen by more heads of one size, or, if heads grow, give "
                f"{where}.scale={math.sqrt(size * base / width) / size:.4g}"
            )
