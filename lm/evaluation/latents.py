"""Texts as the latents of a model with a bottleneck, and back.

    coder = Coder.of(saved.open(folder))
    z = coder.encode(["a text", "another"])           # float32 [2, k, Z], of a gaussian the means
    coder.write(z, new_tokens=32)                      # ["a text", "another"], if the model has learned to

Axes: N texts, k vectors of a text, Z numbers of a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Sampling
from lm.errors import UserError
from lm.generation.engine import Request
from lm.generation.padding import bucket
from lm.generation.text_engine import engine_for
from lm.losses.log_probs import scores_of_hidden
from lm.losses.variational import divergence
from lm.models.bottleneck import gaussians
from lm.models.positions import learned
from lm.models.transformer import Transformer, head_params, independent_of_padding
from lm.objectives import decoder_start
from lm.types import Example, TokenStream

BATCH = 32  # texts that are read at once
SLOTS = 8  # texts that are written at once
UNKNOWN_LENGTH = 512  # tokens of a text, if neither learned positions nor a run's rows say how many the model reads
DRAW = 0  # seed of the vectors that a gaussian's texts are scored with


@dataclass(frozen=True)
class Scores:
    """Of N texts, float64 [N] each."""

    nats: np.ndarray  # of the text given its latents
    divergence: np.ndarray  # nats of the latents' distribution from the prior; 0 where nothing is drawn
    tokens: np.ndarray  # with the end of the text

    @property
    def per_token(self) -> np.ndarray:
        """Nats a token, of a gaussian the bound: how little a text is like those that the model was trained on."""
        return (self.nats + self.divergence) / self.tokens


@dataclass(frozen=True, eq=False)
class Coder:
    """`length`: tokens of a text that are read, with its end; longer ones are cut."""

    model: Transformer
    params: Any
    tokenizer: Any
    length: int

    @classmethod
    def of(cls, source: Any) -> "Coder":
        """That of a saved model (`lm.saved.Saved`). UserError if it has no bottleneck."""
        c, run = source.model, source.run
        if c.bottleneck is None:
            raise UserError(
                f"the model in {source.folder} has no bottleneck between encoder and decoder, whose vectors stand for a text: "
                "train one, as configs/encdec_autoencoder.py does"
            )
        rows = [getattr(run.data, f"{name}_length") for name in ("encoder", "decoder")] if run else []
        known = [n for n in (*rows, learned(c, "encoder"), learned(c, "decoder")) if n is not None]
        model = Transformer(independent_of_padding(c))
        return cls(model, source.params(device=jax.local_devices()[0]), source.tokenizer(), min(known, default=UNKNOWN_LENGTH))

    @property
    def gaussian(self) -> bool:
        bottleneck = self.model.config.bottleneck
        return bottleneck is not None and bottleneck.latent == "gaussian"

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [n] for each text: its tokens, without ends, as many as are read."""
        return [np.asarray(ids, np.int32)[: self.length - 1] for ids in self.tokenizer.encode_batch(list(texts))]

    def read(self, text: str) -> str:
        """The text as far as it is read."""
        return self.tokenizer.decode(self.ids([text])[0].tolist())

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, k, Z]: the latents of the texts, of a gaussian the means."""
        return np.concatenate([_latents(self.params, e.encoder, model=self.model)[:n, 0] for e, n in self._batches(texts)])

    def drawn(self, texts: Sequence[str], *, seed: int, scale: float = 1.0) -> np.ndarray:
        """float32 [N, k, Z]: latents that are drawn for the texts, `scale` times as far from the mean as the gaussian says; of
        a model that draws nothing the latents themselves."""
        if not self.gaussian:
            return self.encode(texts)
        parts = []
        for i, (e, n) in enumerate(self._batches(texts)):
            mean, log_var = _gaussians(self.params, e.encoder, model=self.model)
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), mean.shape)
            parts.append(np.asarray(mean + scale * jnp.exp(0.5 * log_var) * noise)[:n, 0])
        return np.concatenate(parts)

    def write(self, latents: np.ndarray, *, new_tokens: int | None = None, sampling: Sequence[Sampling] = ()) -> list[str]:
        """The texts that the decoder writes of latents [N, k, Z]: the likeliest token each time, or as `sampling` says for
        each of them. `new_tokens`: at most, the end included; None: as many as are read."""
        start, eos = np.array([decoder_start(self.tokenizer)], np.int32), self.tokenizer.eos_id
        greedy = [Sampling(temperature=0.0)] * len(latents)
        each = zip(latents, sampling or greedy, strict=True)
        requests = [Request(start, new_tokens or self.length, how, z.astype(np.float32)) for z, how in each]
        written = engine_for(requests, self.model, self.params, self.tokenizer, slots=SLOTS, ends=[eos]).write(requests)
        return [self.tokenizer.decode([w.token for w in sample if w.token != eos]) for (sample,) in written]

    def scores(self, texts: Sequence[str]) -> Scores:
        """What the texts cost. A gaussian's vectors are drawn, the same in every call."""
        parts = [
            [np.asarray(x, np.float64)[:n] for x in _scores(self.params, e, model=self.model, draws=self.gaussian)]
            for e, n in self._batches(texts)
        ]
        return Scores(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    def _batches(self, texts: Sequence[str]) -> list[tuple[Example, int]]:
        """Rows of one text each in batches of one size, and how many of them count."""
        if not texts:
            raise UserError("there is no text: give one or more")
        ids, start, eos = self.ids(texts), decoder_start(self.tokenizer), self.tokenizer.eos_id
        size = bucket(max(map(len, ids)) + 1, self.length)
        out = []
        for first in range(0, len(ids), BATCH):
            some = ids[first : first + BATCH]
            tokens = np.zeros((2, BATCH if len(ids) > BATCH else len(ids), size), np.int32)
            segments = np.zeros(tokens.shape[1:], np.int32)
            for i, row in enumerate(some):
                tokens[0, i, : len(row) + 1], tokens[1, i, : len(row) + 1] = [*row, eos], [start, *row]
                segments[i, : len(row) + 1] = 1
            place = np.arange(size, dtype=np.int32) * segments
            streams = [TokenStream(of, place, segments) for of in tokens]
            out.append((Example(*streams, targets=tokens[0], weights=segments.astype(np.float32)), len(some)))
        return out


@partial(jax.jit, static_argnames="model")
def _latents(params: Any, stream: TokenStream, *, model: Transformer) -> jax.Array:
    """float32 [B, M, k, Z]"""
    found: Any = model.apply({"params": params}, stream, method="latents")
    return found


@partial(jax.jit, static_argnames="model")
def _gaussians(params: Any, stream: TokenStream, *, model: Transformer) -> tuple[jax.Array, jax.Array]:
    """Means and log-variances, float32 [B, M, k, Z] each."""
    found = gaussians(model.apply({"params": params}, stream, method="encoded", mutable=["latents"])[1])
    return found.mean, found.log_var


@partial(jax.jit, static_argnames=("model", "draws"))
def _scores(params: Any, example: Example, *, model: Transformer, draws: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Nats given the latents, the divergence, and tokens of each row: float32 [B]."""
    rngs = {"latent": jax.random.key(DRAW)} if draws else None
    hidden, sown = model.apply({"params": params}, example, method="hidden", rngs=rngs, mutable=["latents"])
    settings: dict[str, Any] = dict(vocab_size=model.config.vocab_size)
    score = scores_of_hidden(head_params(params), model.apply, hidden, example.targets, **settings)
    tokens = jnp.sum(example.weights, axis=1)
    extra = jnp.zeros_like(tokens)
    if draws:
        found = gaussians(sown)
        extra = jnp.sum(divergence(found.mean, found.log_var, found.there), axis=1)
    return -jnp.sum(example.weights * score.log_probs, axis=1), extra, tokens


def between(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """float32 [steps, k, Z]: latents on the straight line from `a` to `b`, [k, Z] each, both included (arXiv 1511.06349,
    section 4.3)."""
    share = np.linspace(0, 1, steps, dtype=np.float32)[:, None, None]
    return (1 - share) * a + share * b


def plane(latents: np.ndarray) -> tuple[np.ndarray, float]:
    """Latents [N, k, Z] in two dimensions, float64 [N, 2], by principal components, and the share of the variance that they
    have."""
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    u, s, _ = np.linalg.svd(flat, full_matrices=False)
    places = np.zeros((len(flat), 2))
    places[:, : min(2, len(s))] = u[:, :2] * s[:2]
    return places, float((s[:2] ** 2).sum() / max((s**2).sum(), 1e-30))


def held_out(source: Any, coder: Coder) -> list[str]:
    """The held-out texts of a run, cut into parts as long as a row; UserError of a converted model."""
    if source.run is None:
        raise UserError(f"the model in {source.folder} was converted and has no held-out text: give texts, or --file")
    from lm.data.corpus.prepare import prepare

    data, size, parts = prepare(source.run.data), coder.length - 1, list[str]()
    for name in sorted(data.holdout):
        if source.run.data.sources[name].format != "text":
            raise UserError("the run's held-out data are records, not texts: give texts, or --file")
        for document in data.documents(name, "holdout"):
            ids = coder.tokenizer.encode(document.text)
            parts += [coder.tokenizer.decode(ids[at : at + size].tolist()) for at in range(0, len(ids), size)]
    return [part for part in parts if part.strip()]
