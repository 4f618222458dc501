"""Optax chains, schedules and the weight-decay mask, from `config.Optimizer`."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lm import config
from lm.errors import UserError

MATRICES = re.compile(r"(kernel)$")  # what decays, and what Muon turns: never norms, biases, embeddings


def schedule(c: config.Schedule, peak: float, steps: int) -> optax.Schedule:
    """The learning rate by the number of updates made before: `schedule(0)` is that of the first update.

    Update k of the warm-up, counted from 1, has the rate `peak * k / warmup`: the first is not wasted on a rate of 0, and
    the last has the peak. Then the kind's own curve begins, at the peak.
    """
    warmup = min(round(c.warmup * steps) if c.warmup < 1 else int(c.warmup), steps)
    rest, end = max(steps - warmup, 1), peak * c.final
    match c.kind:
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest, alpha=c.final)
        case "linear":
            after = optax.linear_schedule(peak, end, rest)
        case "rsqrt":  # continues 1/sqrt(step) from the end of the warm-up (T5, section 3.1.2)
            # `join_schedules` asks for steps before this leg as well, where the root has a pole.
            after = lambda step: peak * (max(warmup, 1) / (jnp.maximum(step, 0) + max(warmup, 1))) ** 0.5
        case "wsd":  # warm-up, stable, decay (MiniCPM, arXiv 2404.06395, section 4)
            decay = c.decay if c.decay is not None else min(steps // 5, rest)
            if decay > rest:
                raise UserError(f"optimizer.schedule.decay={decay} does not fit the {rest} steps after the warm-up")
            legs = [optax.constant_schedule(peak), optax.linear_schedule(peak, end, max(decay, 1))]
            after = optax.join_schedules(legs, [rest - decay])
        case "constant":
            after = optax.constant_schedule(peak)
    rising = lambda step: peak * ((step + 1) / warmup)
    return optax.join_schedules([rising, after], [warmup]) if warmup else after


def is_matrix(params: Any) -> Any:
    """True at the leaves that are matrices of the trunk, by name: a stacked norm has two axes and is none."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(MATRICES.search(jax.tree_util.keystr(path, simple=True, separator="/"))), params
    )


def muon_dimensions(params: Any) -> Any:
    """Which axes of a kernel are inputs and which outputs, from its name; None for what Muon leaves to Adam.

    Attention's q, k, v are [D, N, H], its output [N, H, D], the rest [I, O]; scanned ones have a leading axis of layers,
    which is a batch of matrices, and so are experts.
    """

    def one(path: Any, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if names[-1] != "kernel" or names[-2] == "copy" or "head" in names:
            return None
        first = 1 if "groups" in names else 0
        first += "ffn" in names and leaf.ndim - first == 3  # experts
        axes = tuple(range(first, leaf.ndim))
        split = 2 if len(axes) == 3 and names[-2] == "out" else 1
        return contrib.MuonDimensionNumbers(axes[:split], axes[split:])

    return jax.tree_util.tree_map_with_path(one, params)


def in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer with its state and arithmetic in float32, whatever dtype the parameters and gradients have.

    Optax keeps moments in the dtype of the parameters (of Adam, `mu_dtype` changes the first alone), and in bfloat16
    neither 0.999 nor the small steps of an average exist. Updates come out as float32; adding them to the parameters
    rounds to the parameters' dtype once.
    """
    wide = lambda tree: optax.tree.cast(tree, jnp.float32)
    return optax.GradientTransformation(
        lambda params: tx.init(wide(params)),
        lambda updates, state, params=None: tx.update(wide(updates), state, wide(params)),
    )


def make(c: config.Optimizer, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer and its schedule. Clipping is the step's, which has the norm anyway."""
    rate = schedule(c.schedule, c.learning_rate, steps)
    match c.name:
        case "adamw":
            tx = optax.adamw(rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay, mask=is_matrix)
        case "lion":
            tx = optax.lion(rate, c.b1, c.b2, weight_decay=c.weight_decay, mask=is_matrix)
        case "adafactor":
            # Decay here is by the learning rate, as in the other three, not by Adafactor's own per-step rate.
            tx = optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.add_decayed_weights(c.weight_decay, mask=is_matrix),
                optax.scale_by_learning_rate(rate),
            )
        case "muon":
            other = c.adam_learning_rate or c.learning_rate
            tx = contrib.muon(
                rate,
                weight_decay=c.weight_decay,
                weight_decay_mask=is_matrix,
                adam_b1=c.b1,
                adam_b2=c.b2,
                adam_learning_rate=schedule(c.schedule, other, steps),
                muon_weight_dimension_numbers=muon_dimensions,
            )
    return in_float32(tx), rate
