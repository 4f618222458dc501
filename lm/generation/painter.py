"""Pictures from captions: a decoder writes codes after a caption, and an autoencoder's decoder makes pixels of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from lm import distributed
from lm.config import Sampling
from lm.generation.engine import Engine, Request
from lm.models.autoencoder import Autoencoder
from lm.models.transformer import Transformer
from lm.sharding import shards


@dataclass(frozen=True)
class Painter:
    """Draws with a decoder whose token `first` + c is code c of the autoencoder."""

    model: Transformer
    autoencoder: Autoencoder
    pixels: Any  # the autoencoder's parameters
    first: int
    length: int  # tokens of a caption with its ends and of an image's codes, at most
    slots: int = 8

    def codes(self, params: Any, captions: Sequence[np.ndarray], sampling: Sampling, *, samples: int = 1) -> np.ndarray:
        """int32 [N, samples, T]: the codes that the model writes after each caption, int32 [n] with its ends."""
        size = self.autoencoder.codebook.config.codes
        others = np.ones(self.model.config.vocab_size, bool)
        others[self.first : self.first + size] = False
        parts = shards("batch")
        slots = -(-min(self.slots, len(captions) * samples) // parts) * parts
        engine = Engine(self.model, params, slots=slots, length=self.length, forbidden=others)
        written = engine.write([Request(ids, self.autoencoder.stem.length, sampling, samples=samples) for ids in captions])
        found = [[[one.token - self.first for one in sample] for sample in of_caption] for of_caption in written]
        return np.array(found, np.int32).reshape(len(captions), samples, -1)

    def draw(self, params: Any, captions: Sequence[np.ndarray], sampling: Sampling, *, samples: int = 1) -> np.ndarray:
        """uint8 [N, samples, height, width, channels]: pictures of each caption. The next seed draws others."""
        codes = self.codes(params, captions, sampling, samples=samples)
        made = self.images(codes.reshape(-1, codes.shape[-1]))
        return made.reshape(len(captions), samples, *made.shape[1:])

    def images(self, codes: np.ndarray) -> np.ndarray:
        """Codes int32 [N, T] -> uint8 [N, height, width, channels]."""
        return distributed.fetched(_images(self.autoencoder, self.pixels, codes))


@partial(jax.jit, static_argnums=0)
def _images(autoencoder: Autoencoder, params: Any, codes: jax.Array) -> jax.Array:
    return autoencoder.images(params, codes)
