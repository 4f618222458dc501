"""Stand-ins that several tests share: a tokenizer of whole words, documents in memory, an objective, small models."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(20)), "yes", "no", "very"]


class WordTokenizer:
    """A token a word."""

    vocab_size, pad_id, bos_id, eos_id = len(WORDS), 0, 1, 2
    special = np.arange(len(WORDS)) < 3
    mask_id, sentinel_ids, role_ids = None, (), {}

    def encode_batch(self, texts, *, threads=None):
        return [np.array([WORDS.index(w) for w in t.split()], np.int32) for t in texts]

    def decode(self, ids):
        return " ".join(WORDS[i] for i in ids)

    def require(self, name):
        return getattr(self, f"{name}_id")


class Backwards:
    """An objective that nothing declares."""


class MemoryStore:
    """Documents in memory: `tokens` (int [N]), cut into documents of these lengths; four bytes a token."""

    def __init__(self, tokens, lengths):
        self.tokens, self.offsets = np.asarray(tokens, np.int32), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.num_tokens, self.num_documents, self.num_bytes = len(self.tokens), len(lengths), 4 * len(self.tokens)
        assert self.offsets[-1] == self.num_tokens

    def read(self, starts, length):
        assert (starts >= 0).all() and (starts + length <= self.num_tokens).all()
        return self.tokens[starts[:, None] + np.arange(length)]


def small_model(architecture, *, outputs=None, **changes):
    """One layer, 32 wide, over WORDS; with a head of so many outputs if given."""
    block = Block(Attention(2), Mlp(64), Norm("rms"))
    encoder = Stack(1, {"L": block}, position=Rope()) if "encoder" in architecture else None
    cross = dataclasses.replace(block, cross=encoder is not None)
    decoder = Stack(1, {"L": cross}, position=Rope()) if "decoder" in architecture else None
    head = Head() if outputs is None else Head(tied=False, bias=True, outputs=outputs)
    return dataclasses.replace(Model(len(WORDS), 32, encoder=encoder, decoder=decoder, head=head), **changes)


def random_params(module, example, std, seed=0):
    """Normal parameters of a module, so large that its answers are far from even. `example` is what it reads."""
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), example))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(std * rng.normal(size=x.shape), x.dtype), shapes)


@cache
def small_params(model, seed=0):
    """Parameters of a model, made from the seed; the caller must not change them."""
    stream = TokenStream(*[np.ones((1, 4), np.int32)] * 3)
    example = Example(*(stream if s in model.architecture else None for s in ("encoder", "decoder")), None, None)
    return nn.unbox(jax.jit(Transformer(model).init)(jax.random.key(seed), example))["params"]
