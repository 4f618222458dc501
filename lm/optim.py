"""Optimizers, learning-rate schedules and the weight-decay mask, from `config.Optimizer`."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lm import config

KERNELS = re.compile(r"(kernel)$")  # parameters with weight decay, and those that Muon may orthogonalise


def schedule(c: config.Schedule, peak: float, steps: int) -> optax.Schedule:
    """Returns a function from the number of updates made before to the learning rate: `schedule(0)` is the first update's.

    Update k of the warm-up, counted from 1, has the rate `peak * k / warmup`, so that the first is not wasted on a rate of 0
    and the last has the peak. The decay then starts at the peak.
    """
    warmup, decay = c.phases(steps)
    rest, end = max(steps - warmup, 1), peak * c.final
    match c.kind:
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest, alpha=c.final)
        case "linear":
            after = optax.linear_schedule(peak, end, rest)
        case "rsqrt":  # 1/sqrt(step), continuous at the end of the warm-up (T5, arXiv 1910.10683, section 3.1.2)
            # `join_schedules` evaluates it before its start too, where the root has a pole.
            after = lambda step: peak * (max(warmup, 1) / (jnp.maximum(step, 0) + max(warmup, 1))) ** 0.5
        case "wsd":  # warm-up, stable, decay (MiniCPM, arXiv 2404.06395, section 4)
            parts = [optax.constant_schedule(peak), optax.linear_schedule(peak, end, max(decay, 1))]
            after = optax.join_schedules(parts, [rest - decay])
        case "constant":
            after = optax.constant_schedule(peak)
    rising = lambda step: peak * ((step + 1) / warmup)
    return optax.join_schedules([rising, after], [warmup]) if warmup else after


def is_matrix(params: Any) -> Any:
    """Returns True for leaves that are kernels: by name, because the scale of a scanned norm has two axes too."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(KERNELS.search(jax.tree_util.keystr(path, simple=True, separator="/"))), params
    )


def _left_to_adam(names: list[str]) -> bool:
    """Whether Muon leaves the leaf of these names to Adam."""
    return names[-1] != "kernel" or names[-2] == "copy" or "head" in names


def muon_dimensions(params: Any) -> Any:
    """Returns the input and output axes of each kernel that Muon updates, by name; None for leaves that it leaves to Adam.

    Attention's q, k and v are [D, N, H], its output [N, H, D], all others [I, O]. Leading axes of scanned layers and of
    experts are batches of matrices.
    """

    def one(path: Any, leaf: Any) -> contrib.MuonDimensionNumbers | None:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if _left_to_adam(names):
            return None
        batch_axes = 1 if "groups" in names else 0
        batch_axes += "ffn" in names and leaf.ndim - batch_axes == 3  # experts
        batch_axes += names[-2] == "blocks"  # of a block-diagonal matrix
        axes = tuple(range(batch_axes, leaf.ndim))
        split = 2 if len(axes) == 3 and names[-2] == "out" else 1
        return contrib.MuonDimensionNumbers(axes[:split], axes[split:])

    return jax.tree_util.tree_map_with_path(one, params)


def width_factors(params: Any, widened: float, *, orthogonal: bool = False) -> Any:
    """Returns the factor of each leaf's learning rate in a model that is `widened` = m times as wide as the one whose rates
    were tuned (muP, arXiv 2203.03466, tables 8 and 9), for updates whose size does not depend on that of the gradient.

    A matrix has 1 / m, because its fan-in grew by m; an `orthogonal` update (Muon) already has a spectral norm that transfers
    (arXiv 2310.17813). Norms, biases and embeddings have 1. The head's own matrix has 1 / sqrt(m), beside logits that are
    multiplied by 1 / sqrt(m) (`lm.config.widening`); a bias of the logits makes up for that multiplier.
    """

    def one(path: Any, _: Any) -> float:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        match names[-3:]:
            case [*_, "head", "out", "kernel"]:
                return widened**-0.5
            case [*_, "head", "out", "bias"]:
                return widened**0.5
            case [*_, "head", "bias"]:
                return widened
        return 1 / widened if names[-1] == "kernel" and (not orthogonal or _left_to_adam(names)) else 1.0

    return jax.tree_util.tree_map_with_path(one, params)


def in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the optimizer with state and arithmetic in float32, whatever dtype the parameters and gradients have.

    Optax keeps moments in the parameters' dtype (Adam's `mu_dtype` changes only the first moment), and bfloat16 cannot
    represent 0.999 or the small steps of a moving average. Updates are float32; adding them to the parameters rounds once.
    """
    wide = lambda tree: optax.tree.cast(tree, jnp.float32)
    return optax.GradientTransformation(
        lambda params: tx.init(wide(params)),
        lambda updates, state, params=None: tx.update(wide(updates), state, wide(params)),
    )


def make(
    c: config.Optimizer, steps: int, *, updates: int = 1, width: int | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer and its schedule, which counts steps of so many `updates`. It does not clip: the train step does,
    since it computes the norm anyway.

    `width` is the model's, for `base_width`. The decay of a matrix is the rate that is given times `weight_decay`, at every
    width, as in the `mup` package.
    """
    by_step = lambda rate: rate if updates == 1 else lambda count: rate(count // updates)
    of_steps = schedule(c.schedule, c.learning_rate, steps)
    rate = by_step(of_steps)
    transferred = []
    if c.base_width is not None:
        assert width is not None, "base_width needs the model's width"
        factors = partial(width_factors, widened=width / c.base_width, orthogonal=c.name == "muon")
        transferred = [optax.stateless(lambda tree, _: jax.tree.map(jnp.multiply, tree, factors(tree)))]
    match c.name:
        case "adamw":
            direction = [optax.scale_by_adam(c.b1, c.b2, c.eps)]
        case "lion":
            direction = [optax.scale_by_lion(c.b1, c.b2)]
        case "adafactor":
            # Weight decay is scaled by the learning rate, as in the other optimizers, not by Adafactor's per-step rate.
            direction = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
        case "muon":
            adam_rate = c.adam_learning_rate or c.learning_rate
            tx = contrib.muon(
                rate,
                weight_decay=c.weight_decay,
                weight_decay_mask=is_matrix,
                adam_b1=c.b1,
                adam_b2=c.b2,
                adam_learning_rate=by_step(schedule(c.schedule, adam_rate, steps)),
                muon_weight_dimension_numbers=muon_dimensions,
            )
            return in_float32(optax.chain(tx, *transferred) if transferred else tx), of_steps
    decay = optax.add_decayed_weights(c.weight_decay, mask=is_matrix)
    tx = optax.chain(*direction, *transferred, decay, optax.scale_by_learning_rate(rate))
    return in_float32(tx), of_steps
