"""What the layers of a stack share."""

from typing import Any

import jax
from flax import struct

from lm.models.mask import Mask


@struct.dataclass
class Context:
    """Inputs that all layers of a stack share."""

    mask: Mask
    positions: jax.Array  # [B, T]
    bias: jax.Array | None = None  # [N, T, S]
    encoded: jax.Array | None = None  # [B, S', D]
    cross_mask: Any = None  # a Mask of T queries and S' keys
    tree: Any = None  # how a row's tokens are nested, for layers that follow it
