"""An autoencoder of images whose patches become codes: VQ-VAE (arXiv 1711.00937) with transformers for its networks, as in
ViT-VQGAN (arXiv 2110.04627, section 3.1).

    pixels of patches -> encoder -> vectors -> codebook -> codes -> decoder -> pixels of patches

Axes: B batch, T patches, C numbers of a code, P pixels of a patch with their channels.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.models.transformer import Transformer, unboxed_shapes
from lm.models.vq import Codebook, Quantised
from lm.types import Example, TokenStream, vector_stream


@dataclass(frozen=True)
class Autoencoder:
    """The encoder, the codebook and the decoder. Its parameters are {"model", "codebook", "decoder"}."""

    model: config.Model  # of the encoder
    recipe: config.ImageCodes

    @property
    def encoder(self) -> Transformer:
        return Transformer(self.model)

    @property
    def decoder(self) -> Transformer:
        return Transformer(self.recipe.decoder)

    @property
    def codebook(self) -> Codebook:
        return Codebook(self.recipe.codebook, self.model.param_dtype)

    @property
    def stem(self) -> Any:
        return self.model.encoder.stem if self.model.encoder else None

    def init(self, key: jax.Array, example: Example) -> dict[str, Any]:
        """Parameters with the names of their axes."""
        keys = jax.random.split(key, 3)
        stream: Any = example.encoder
        vectors = jnp.zeros((*stream.tokens.shape, self.codebook.config.size))
        return {
            "model": self.encoder.init(keys[0], example)["params"],
            "codebook": self.codebook.init(keys[1], vectors)["params"],
            "decoder": self.decoder.init(keys[2], _of_vectors(vectors, stream))["params"],
        }

    def abstract(self, device: jax.Device | None = None) -> Any:
        """The parameters' shapes and dtypes, as `lm.saved.Saved.params` takes them: to load arrays on a device, or without one
        NumPy arrays."""
        stream = vector_stream(np.zeros((1, *self.stem.inputs), np.uint8), self.stem.length)
        return unboxed_shapes(jax.eval_shape(self.init, jax.random.key(0), Example(stream, None, None, None)), device)

    def encode(self, params: Any, stream: TokenStream, rngs: Any = None) -> Quantised:
        """What the codebook makes of patches: codes int32 [B, T], vectors [B, T, C]."""
        vectors: Any = self.encoder.apply({"params": params["model"]}, Example(stream, None, None, None), rngs=rngs)
        quantised: Any = self.codebook.apply({"params": params["codebook"]}, vectors)
        return quantised

    def decode(self, params: Any, vectors: jax.Array, stream: TokenStream, rngs: Any = None) -> jax.Array:
        """Vectors of codes [B, T, C] -> pixels of patches float32 [B, T, P], as the encoder's stem scales them. `stream` has
        the segments and positions of the patches."""
        made: Any = self.decoder.apply({"params": params["decoder"]}, _of_vectors(vectors, stream), rngs=rngs)
        return made.astype(jnp.float32)

    def images(self, params: Any, codes: jax.Array) -> jax.Array:
        """Codes int32 [B, T] -> images uint8 [B, height, width, channels]."""
        vectors: Any = self.codebook.apply({"params": params["codebook"]}, codes, method="rows")
        return self.pixels(self.decode(params, vectors, vector_stream(vectors, codes.shape[1])))

    def pixels(self, made: jax.Array) -> jax.Array:
        """Patches as the encoder's stem scales them, float32 [B, T, P] -> images uint8 [B, height, width, channels]."""
        stem = self.stem
        repeat = lambda values: np.resize(np.asarray(values, np.float32), made.shape[-1])
        scaled = jnp.clip(made * repeat(stem.std) + repeat(stem.mean), 0.0, 1.0)
        return jnp.round(255.0 * whole(scaled, stem)).astype(jnp.uint8)


def whole(patches: jax.Array, stem: config.Patches) -> jax.Array:
    """The images that were cut into these patches: [B, T, P] -> [B, height, width, channels]."""
    side = stem.image // stem.size
    cut = patches.reshape(len(patches), side, side, stem.size, stem.size, stem.channels)
    return jnp.swapaxes(cut, 2, 3).reshape(len(patches), stem.image, stem.image, stem.channels)


def _of_vectors(vectors: jax.Array, stream: TokenStream) -> Example:
    """Vectors [B, T, C] in the place of the patches of `stream`."""
    return Example(replace(stream, vectors=vectors), None, None, None)
