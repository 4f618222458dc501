"""Samples for logs and reports: what a model of any architecture and objective writes to a few prompts, as text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, distributed
from lm.config import Sampling
from lm.errors import UserError
from lm.generation.diffusion import fill, write_blocks
from lm.generation.engine import Request
from lm.generation.padding import left_padded
from lm.generation.placing import with_tokens
from lm.generation.text_engine import engine_for
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.objectives import decoder_start, of_texts, reads_prefix, text_prompt
from lm.objectives.mixture import first_part
from lm.objectives.prompts import MASK, as_read
from lm.types import Example, TokenStream


@dataclass(frozen=True)
class Question:
    """Prompts as a model reads them, B of them."""

    ids: list[np.ndarray]  # B of int32 [n]: bos and the prompt with the objective's special tokens at its marks
    mode: list[int]  # the token of a mixture's mode, if it has one
    lengths: list[int]  # new tokens after those in the stream, at most; 1 where the answers are in it
    encoder: TokenStream | None  # [B, T], padded on the left
    decoder: TokenStream | None  # [B, T]: what a decoder continues, or fills in; None for an encoder alone
    may_write: tuple[int, ...]  # special tokens that an answer may contain, besides eos

    def request(self, number: int, new_tokens: int, sampling: Sampling, **settings: Any) -> Request:
        """What an engine is asked for prompt `number`. The decoder's tokens have the positions that they have in its stream."""
        assert self.decoder is not None
        prompt, (first, *_) = _row(self.decoder, number)
        prompt = np.concatenate([np.zeros(first, np.int32), prompt])
        encoder = None if self.encoder is None else _row(self.encoder, number)[0]
        return Request(prompt, new_tokens, sampling, encoder, blank=first, **settings)


def samples(
    model: Transformer,
    params: Any,
    tokenizer: Any,
    objective: config.Objective,
    prompts: tuple[str, ...],
    *,
    new_tokens: int,
    temperature: float,
    seed: int,
) -> list[dict[str, str]]:
    """`{"prompt": ..., "text": ...}` for each prompt.

    The model fills in each "[MASK]" of a prompt, or continues one that has none; `lm.objectives` declares how it is asked.
    """
    a = ask(model.config.architecture, tokenizer, objective, prompts, new_tokens, seed)
    first: Any = first_part(objective, tokenizer)[0]
    way, key = text_prompt(first), jax.random.key(seed)
    forbidden = ~of_texts(tokenizer, model.config.vocab_size)
    if model.config.architecture == "encoder" and not way.fills:
        return [_filled(model, params, tokenizer, p, i, a.mode, forbidden) for p, i in zip(prompts, a.ids, strict=True)]
    forbidden[[tokenizer.eos_id, *a.may_write]] = False
    settings: dict[str, Any] = dict(temperature=temperature, forbidden=forbidden)
    if way.fills:
        stream: Any = a.encoder or a.decoder
        masked = stream.tokens == tokenizer.mask_id
        settings |= dict(steps=int(masked.sum(axis=1).max()), time_steps=first.time_steps)  # a step a token
        tokens = distributed.fetched(fill(model, params, stream, masked, key, **settings))
        rows = [row[mine] for row, mine in zip(tokens, masked, strict=True)]
        answered = zip(prompts, rows, strict=True)
        return [_in_place(tokenizer, p, r) if MASK in p else {"prompt": p, "text": _text(tokenizer, r)} for p, r in answered]
    if way.at_once:
        tokens = distributed.fetched(_at_once(model, params, a, key, new_tokens, tokenizer.mask_id, **settings))
        return [{"prompt": p, "text": _text(tokenizer, row)} for p, row in zip(prompts, tokens, strict=True)]
    settings |= dict(eos_id=tokenizer.eos_id)
    if way.blocks:
        settings |= dict(new_tokens=new_tokens, block=first.block, mask_id=tokenizer.mask_id)
        texts = [np.concatenate([a.mode, i]).astype(np.int32) for i in a.ids]
        keys = jax.random.split(key, len(texts))
        rows = [write_blocks(model, params, text, k, **settings) for text, k in zip(texts, keys, strict=True)]
    else:
        draws = [Sampling(temperature=temperature, seed=(seed + i) % 2**32) for i in range(len(prompts))]
        requests = [a.request(i, n, draw) for i, (n, draw) in enumerate(zip(a.lengths, draws, strict=True))]
        prefix = a.decoder is not None and a.decoder.prefix is not None
        how: dict[str, Any] = dict(ends=[tokenizer.eos_id], may_write=a.may_write, prefix=prefix)
        written = engine_for(requests, model, params, tokenizer, slots=len(requests), **how).write(requests)
        rows = [np.array([w.token for w in sample], np.int32) for (sample,) in written]
    return [{"prompt": p, "text": _text(tokenizer, row)} for p, row in zip(prompts, rows, strict=True)]


def check(
    model: config.Model,
    tokenizer: Any,
    objective: config.Objective,
    prompts: tuple[str, ...],
    *,
    new_tokens: int,
    seed: int,
    place: str = "model",
) -> None:
    """UserError if `samples` would fail: the objective declares no prompt, or `model` has learned fewer positions than needed.

    `place` is where the config has the model ("model", "objective.generator").
    """
    a = ask(model.architecture, tokenizer, objective, prompts, new_tokens, seed)
    encoder = None if a.encoder is None else a.encoder.tokens.shape[1]
    # The last token of an answer is written but never read.
    decoder = None if a.decoder is None else int(np.max(a.decoder.positions[:, -1] + a.lengths))
    cure = f"lower log.sample_tokens, shorten log.samples, or raise --config.{place}.{{stack}}.position.max_length"
    check_positions(model, encoder, decoder, cure=cure, what="log.samples take")


def ask(
    architecture: str, tokenizer: Any, objective: config.Objective, prompts: Sequence[str], new_tokens: int, seed: int
) -> Question:
    """The prompts as a model of this objective reads them."""
    objective, mode = first_part(objective, tokenizer)
    way = text_prompt(objective)
    rng = np.random.default_rng(seed)
    cut = as_read if architecture == "encoder" or way.fills else list  # where a mask is a token
    parts = lambda prompt: [tokenizer.encode(part) for part in cut(prompt.split(MASK))]
    render = lambda prompt: way.render(parts(prompt), tokenizer, new_tokens, rng)
    texts = [np.concatenate(render(way.clean(p))).astype(np.int32) for p in prompts]
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]  # T5 has none
    ids = [np.concatenate([begin, text]).astype(np.int32) for text in texts]
    lengths = [new_tokens] * len(ids)
    if architecture == "encoder" or way.fills:
        if way.fills:
            answer = np.full(new_tokens, tokenizer.mask_id, np.int32)
            ids = [i if tokenizer.mask_id in i else np.append(i, answer) for i in ids]
            lengths = [1] * len(ids)  # the answers are in the stream: its last token is read
        stream = left_padded([np.concatenate([mode, i]) for i in ids])
        encoder, decoder = (stream, None) if architecture == "encoder" else (None, stream)
        return Question(ids, mode, lengths, encoder, decoder, ())
    may_write = tuple(tokenizer.sentinel_ids) if way.sentinels else ()
    read = lambda i, text: np.concatenate([mode, text, [tokenizer.eos_id]] if way.noised else [mode, i]).astype(np.int32)
    reads = [read(i, text) for i, text in zip(ids, texts, strict=True)]
    if architecture == "decoder":
        if not all(map(len, reads)):
            raise UserError("a prompt is empty, and the tokenizer has no token to begin a text with: give a text")
        decoder = left_padded(reads, prefix=reads_prefix(architecture, objective))
        return Question(ids, mode, lengths, None, decoder, may_write)
    start = tokenizer.mask_id if way.from_masks else decoder_start(tokenizer)
    decoder = left_padded([np.array([start], np.int32)] * len(ids))
    if way.from_masks:  # an answer has as many tokens as there are masks, at their positions
        masks = [np.flatnonzero(text == tokenizer.mask_id) for text in texts]
        lengths = [len(m) for m in masks]
        decoder = replace(decoder, positions=np.array([m[:1] + len(mode) for m in masks], np.int32))
    return Question(ids, mode, lengths, left_padded(reads), decoder, may_write)


def _at_once(
    model: Transformer,
    params: Any,
    a: Question,
    key: jax.Array,
    new_tokens: int,
    mask_id: int,
    *,
    temperature: float,
    forbidden: np.ndarray,
) -> jax.Array:
    """int32 [B, new_tokens]: the answers, each token predicted without the others."""
    given: Any = a.decoder
    shape = (len(given.tokens), new_tokens - 1)
    join = lambda x, y: np.concatenate([x, np.broadcast_to(y, shape).astype(x.dtype)], axis=1)
    stream = TokenStream(
        join(given.tokens, mask_id),
        join(given.positions, given.positions[:, -1:] + 1 + np.arange(shape[1])),
        join(given.segments, 1),
        None if given.prefix is None else join(given.prefix, False),
    )
    logits = _logits(model, params, Example(a.encoder, stream, None, None))[:, -new_tokens:]
    logits = jnp.where(forbidden, -jnp.inf, logits.astype(jnp.float32))
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, logits / jnp.asarray(temperature)).astype(jnp.int32)


@partial(jax.jit, static_argnames="model")
def _logits(model: Transformer, params: Any, example: Example) -> jax.Array:
    logits: Any = model.apply({"params": params}, example)
    return logits


def fill_masks(
    model: Transformer,
    params: Any,
    tokenizer: Any,
    objective: config.Objective,
    prompt: str,
    top: int,
    *,
    ends: bool = False,
) -> tuple[str, list[list[tuple[int, float]]]]:
    """What an encoder makes of each mark of a prompt: the text with the likeliest token at each, and for each the `top`
    likeliest tokens with their log-probabilities in nats, among all that texts consist of. With `ends` it reads an eos behind
    the prompt, as a converted model always did."""
    a = ask("encoder", tokenizer, objective, [prompt], 1, 0)
    forbidden = ~of_texts(tokenizer, model.config.vocab_size)
    read = np.concatenate([a.mode, a.ids[0], [tokenizer.eos_id] * ends]).astype(np.int32)
    stream = left_padded([read])
    _check_read(model, stream)
    logits = jnp.where(forbidden, -jnp.inf, _logits(model, params, Example(stream, None, None, None))[0])
    at = np.flatnonzero(read == tokenizer.mask_id)
    best, ids = jax.lax.top_k(jax.nn.log_softmax(logits[at].astype(jnp.float32)), top)
    found = [list(zip(i, p, strict=True)) for i, p in zip(ids.tolist(), best.tolist(), strict=True)]
    return with_tokens(tokenizer, prompt, [best[0][0] for best in found]), found


@partial(jax.jit, static_argnames="model")
def predict_tokens(model: Transformer, params: Any, stream: TokenStream, forbidden: jax.Array | None = None) -> jax.Array:
    """Returns the encoder's most likely token at every position, int32 [B, T], none of them `forbidden` (bool [V])."""
    _check_read(model, stream)
    logits: Any = model.apply({"params": params}, Example(stream, None, None, None))
    return jnp.argmax(logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits), axis=-1)


def _check_read(model: Transformer, stream: TokenStream) -> None:
    check_positions(model.config, stream.tokens.shape[1], None, cure="shorten it", what="the prompt takes")


def _row(stream: TokenStream, number: int) -> tuple[np.ndarray, list[int]]:
    """The tokens of a row without its padding, int32 [n], and their positions."""
    read = stream.segments[number] > 0
    return stream.tokens[number][read], stream.positions[number][read].tolist()


def _filled(
    model: Transformer, params: Any, tokenizer: Any, prompt: str, ids: np.ndarray, mode: list[int], forbidden: np.ndarray
) -> dict[str, str]:
    """The sample of an encoder: the prompt with each mark replaced by the likeliest token in brackets."""
    read = np.concatenate([mode, ids]).astype(np.int32)
    best = distributed.fetched(predict_tokens(model, params, left_padded([read]), forbidden))[0][len(mode) :]
    return _in_place(tokenizer, prompt, best[ids == tokenizer.mask_id])


def _in_place(tokenizer: Any, prompt: str, ids: np.ndarray) -> dict[str, str]:
    """The sample whose text is the prompt with these tokens, in brackets, at its marks."""
    return {"prompt": prompt, "text": with_tokens(tokenizer, prompt, ids.tolist(), shown="[{}]")}


def _text(tokenizer: Any, ids: np.ndarray) -> str:
    """The text of ids, int [n], up to eos; sentinels are shown as `<0>`, `<1>`."""
    end = np.flatnonzero(ids == tokenizer.eos_id)
    ids = ids[: end[0]] if len(end) else ids
    marks = {int(s): f" <{k}> " for k, s in enumerate(tokenizer.sentinel_ids)}
    text, run = "", []
    for i in [*map(int, ids), None]:
        if i is not None and i not in marks:
            run.append(i)
            continue
        text += tokenizer.decode(run) + (marks[i] if i is not None else "")
        run = []
    return text
