"""Vectors of texts from a model of any architecture, and their cosines.

    embedder = Embedder.of(saved.open(folder))
    vectors = embedder(["a text", "another"])      # float32 [2, D], of length 1
    cosines(vectors, vectors)                      # float32 [2, 2]

An encoder-decoder's vectors are its encoder's. Axes: B batch, T length, N texts, D width.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm import config
from lm.config import resolve
from lm.errors import UserError
from lm.generation.padding import bucket
from lm.models.positions import learned
from lm.models.transformer import Transformer, independent_of_padding
from lm.objectives import DECLARATIONS, reads_prefix, usual
from lm.objectives.mixture import first_part
from lm.types import TokenStream

UNKNOWN_LENGTH = 512  # tokens of a text, if neither learned positions nor a run's rows say how many the model reads
OVERLAP = 0.25  # share of a window's tokens that the next one reads again
SHOWN = 40  # characters by which an error names a text


# Each pools hidden vectors x [B, T, D], float32, over the tokens that are `counted`, bool [B, T]: [B, D].


def mean(x: jax.Array, counted: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(counted[..., None], x, 0), axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)[:, None]


def first(x: jax.Array, counted: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, jnp.argmax(counted, axis=1)[:, None, None], axis=1)[:, 0]


def last(x: jax.Array, counted: jax.Array) -> jax.Array:
    return first(x[:, ::-1], counted[:, ::-1])


def greatest(x: jax.Array, counted: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(counted[..., None], x, -jnp.inf), axis=1)


POOLINGS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"mean": mean, "cls": first, "last": last, "max": greatest}


def usual_pooling(architecture: str, objective: config.Objective | None) -> str:
    """Returns the pooling that a model was trained for (see `lm.objectives.contrastive`); otherwise "mean"."""
    if isinstance(objective, config.Contrastive):
        return {"encoder": "cls", "decoder": "last"}[architecture]
    return "mean"


def positions(model: config.Model) -> int | None:
    """Returns how many positions a text may have; None if the model sets no limit."""
    ahead = model.embed.ahead - 1 if model.embed.ahead else None  # the last token is told the position after its own
    return min((most for most in (learned(model, stack_of(model)), ahead) if most is not None), default=None)


def usual_length(model: config.Model, data: config.Data | None) -> int:
    """Returns the tokens of a text that are read at once: those of a row of the run's data (None: no run), if the model has
    learned so many positions."""
    row = getattr(data, f"{stack_of(model)}_length") if data else None
    return min(row or UNKNOWN_LENGTH, positions(model) or row or UNKNOWN_LENGTH)


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [N, D]: the vectors [N, D] scaled to length 1; those of length 0 are unchanged."""
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 [N, M]: the cosines of vectors a [N, D] and b [M, D] of any dtype.

    They are computed on the host: an accelerator multiplies float32 in a lower precision by default, in which near neighbours
    tie.
    """
    return unit(a) @ unit(b).T


class Embedder:
    """Turns texts into vectors. `objective`: what the model was trained on; None: not known, as of a converted model.

    length: tokens that are read at once, with bos, eos and the token of a mixture's mode
    pooling: a name in POOLINGS; None: `usual_pooling`
    long: "refuse" makes a longer text a UserError; "windows" cuts it into overlapping windows, each with its own bos and eos,
        and averages their vectors, weighted by their numbers of tokens
    normalise: scale the vectors to length 1
    batch_size: texts that are read at the same time, at most
    """

    def __init__(
        self,
        model: Transformer,
        params: Any,
        tokenizer: Any,
        objective: config.Objective | None,
        *,
        length: int,
        pooling: str | None = None,
        long: Literal["refuse", "windows"] = "refuse",
        normalise: bool = True,
        batch_size: int = 32,
    ) -> None:
        c = model.config
        self.model, self.params, self.tokenizer = Transformer(independent_of_padding(c)), params, tokenizer
        self.pooling = pooling or usual_pooling(c.architecture, objective)
        self.length, self.long, self.normalise, self.batch_size = length, long, normalise, batch_size
        part, mode = first_part(objective or usual(c.architecture), tokenizer)
        way = DECLARATIONS[type(part)].prompt if type(part) in DECLARATIONS else None
        self.prefix = c.architecture == "decoder" and reads_prefix("decoder", part)
        self.block = getattr(part, "block", None) if way and way.blocks else None
        # Where the stack learned to read noised texts, these had no bos. A converted model says nothing of it.
        noised = objective is not None and c.architecture != "encoder" and way is not None and way.noised and not way.fills
        self.unpooled = len(mode)  # tokens at the start that are no part of the text
        self.before = [*mode, *(i for i in (tokenizer.bos_id,) if i is not None and not noised)]
        self.after = [i for i in (tokenizer.eos_id,) if i is not None]
        self.room = length - len(self.before) - len(self.after)
        if (most := positions(c)) is not None and length > most:
            raise UserError(
                f"length={length} is more than the {most} positions that the model has learned: give {most} or less"
            )
        if self.room < 1:
            raise UserError(
                f"length={length} leaves no room for a text beside its {length - self.room} special tokens: raise it"
            )

    @classmethod
    def of(cls, source: Any, *, length: int | None = None, **settings: Any) -> "Embedder":
        """That of a saved model (`lm.saved.Saved`). length=None: `usual_length`."""
        length = length or usual_length(source.model, source.run.data if source.run else None)
        params, objective = source.params(device=jax.local_devices()[0]), source.run.objective if source.run else None
        return cls(Transformer(source.model), params, source.tokenizer(), objective, length=length, **settings)

    def __call__(self, texts: Sequence[str], names: Sequence[str] | None = None) -> np.ndarray:
        """float32 [N, D]: the vectors of the texts, in their order. `names` (N) are those by which errors name them."""
        rows, owners, weights = [], [], []
        for number, ids in enumerate(self.tokenizer.encode_batch(texts)):
            windows = self._windows(ids, lambda number=number: _name(texts, names, number))
            total = sum(max(1, len(w)) for w in windows)
            for window in windows:
                rows.append(np.concatenate([self.before, window, self.after]).astype(np.int32))
                owners.append(number)
                weights.append(max(1, len(window)) / total)
        vectors = np.zeros((len(texts), self.model.config.width), np.float32)
        if rows:
            np.add.at(vectors, owners, np.array(weights, np.float32)[:, None] * self._read(rows))
        if len(wrong := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
            size = self.model.config.vocab_size
            raise UserError(
                f"the vector of {_name(texts, names, wrong[0])} is not finite: its tokens are not among the model's {size:,}, "
                "or the parameters are not finite; take the model's own tokenizer, or another model"
            )
        return unit(vectors) if self.normalise else vectors

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what decides a short text's vector but for its length: model, parameters, tokenizer, pooling."""
        digest = hashlib.sha256()
        reading = (self.pooling, self.before, self.after, self.unpooled, self.prefix, self.block, self.tokenizer.fingerprint)
        digest.update(json.dumps([resolve.non_defaults(self.model.config), *reading], sort_keys=True).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):  # in the order of the names
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _windows(self, ids: np.ndarray, name: Callable[[], str]) -> list[np.ndarray]:
        """The text's tokens, int32 [n], in one window or, if it is long, several. UserError for one that is not to be read."""
        if not len(ids) + len(self.before) - self.unpooled + len(self.after):
            raise UserError(f"{name()} has no tokens, and the tokenizer has neither bos nor eos: leave it out")
        if len(ids) <= self.room:
            return [ids]
        if self.long == "refuse":
            size = len(ids) + self.length - self.room
            higher = "" if positions(self.model.config) == self.length else ", or a higher --length"
            raise UserError(
                f"{name()} has {size:,} tokens with its ends, and {self.length:,} are read at once: shorten it, or give "
                f"--long=windows{higher}"
            )
        step = max(1, round(self.room * (1 - OVERLAP)))
        return [ids[at : at + self.room] for at in range(0, len(ids) - self.room + step, step)]

    def hidden(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [n, D] for each row of tokens, int32 [n]: the vector of each token among the others, without bos and eos."""
        skipped, out = len(self.before), [np.zeros((0, 0), np.float32)] * len(rows)
        framed = [np.concatenate([self.before, row, self.after]).astype(np.int32) for row in rows]
        for some, stream, _ in self._batches(framed):
            found = np.asarray(_read_hidden(self.model, self.params, stream))
            for i, x in zip(some, found, strict=False):
                out[i] = x[skipped : skipped + len(rows[i])]
        return out

    def _read(self, rows: list[np.ndarray]) -> np.ndarray:
        """float32 [N, D]: a vector for each row of tokens."""
        vectors = np.empty((len(rows), self.model.config.width), np.float32)
        for some, stream, within in self._batches(rows):
            counted = (within > 0) & (np.arange(within.shape[1]) >= self.unpooled)
            vectors[some] = _pooled(self.model, self.params, stream, counted, pooling=self.pooling)[: len(some)]
        return vectors

    def _batches(self, rows: list[np.ndarray]) -> Iterator[tuple[np.ndarray, TokenStream, np.ndarray]]:
        """Batches of rows of similar length, padded to few sizes: the rows' numbers, what the model reads, and int32 [B, T]: 1
        at the rows' tokens."""
        order = np.argsort([len(row) for row in rows], kind="stable")
        for at in range(0, len(rows), self.batch_size):
            some = order[at : at + self.batch_size]
            length = bucket(len(rows[some[-1]]), self.length)
            tokens = np.zeros((min(self.batch_size, 1 << (len(some) - 1).bit_length()), length), np.int32)
            within = np.zeros_like(tokens)
            for i, row in enumerate(rows[k] for k in some):
                tokens[i, : len(row)], within[i, : len(row)] = row, 1
            places = np.arange(length, dtype=np.int32) * within
            blocks = None if self.block is None else 2 * (places // self.block) + 1
            yield some, TokenStream(tokens, places, within, within > 0 if self.prefix else None, blocks=blocks), within


def _hidden(model: Transformer, params: Any, stream: TokenStream) -> jax.Array:
    """float32 [B, T, D]: the hidden vectors of what the model reads."""
    x: Any = model.apply({"params": params}, stream, method="encode" if model.config.encoder else "decode")
    return x.astype(jnp.float32)


_read_hidden = jax.jit(_hidden, static_argnames="model")


@partial(jax.jit, static_argnames=("model", "pooling"))
def _pooled(model: Transformer, params: Any, stream: TokenStream, counted: jax.Array, *, pooling: str) -> jax.Array:
    """float32 [B, D]: the hidden vectors at the tokens that are counted, pooled."""
    return POOLINGS[pooling](_hidden(model, params, stream), counted)


def stack_of(model: config.Model) -> Literal["encoder", "decoder"]:
    """The stack that reads a text."""
    return "encoder" if model.encoder else "decoder"


def _name(texts: Sequence[str], names: Sequence[str] | None, number: int) -> str:
    text = texts[number]
    return names[number] if names else f"text {number + 1} ({text if len(text) <= SHOWN else text[: SHOWN - 1] + '…'!r})"
