"""What a model makes of a few prompts, as text, whatever its architecture and objective: for logs and reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from lm import config, distributed
from lm.errors import UserError
from lm.generation.decoding import generate, left_padded, predict_tokens
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.objectives import of_texts, reads_prefix, special_tokens
from lm.types import TokenStream

MASK = "[MASK]"


@dataclass(frozen=True)
class Asked:
    """Prompts as a model reads them.

    `ids` are bos and the prompt with the objective's marks, `mode` the mode's token, if there is one. `asked` is how many
    tokens each wants; `decoder` is what a decoder begins with, None for an encoder alone.
    """

    ids: list[np.ndarray]
    mode: list[int]
    asked: list[int]
    encoder: TokenStream | None
    decoder: TokenStream | None
    may_write: tuple[int, ...]  # special tokens that may be in the answer, besides eos


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
    """`{"prompt", "text"}` for each prompt. "[MASK]" in a prompt is what is asked for; elsewhere the text goes on.

    Raises UserError for an objective that the table `PROMPTS` does not know.
    """
    a = _ask(model.config.architecture, tokenizer, objective, prompts, new_tokens, seed)
    forbidden = ~of_texts(tokenizer, model.config.vocab_size)
    if a.decoder is None:
        return [_filled(model, params, tokenizer, p, i, a.mode, forbidden) for p, i in zip(prompts, a.ids, strict=True)]
    forbidden[[tokenizer.eos_id, *a.may_write]] = False
    settings = dict(new_tokens=max(a.asked), temperature=temperature, eos_id=tokenizer.eos_id, forbidden=forbidden)
    key = jax.random.key(seed)
    tokens = distributed.fetched(generate(model, params, a.decoder, key, encoder=a.encoder, **settings))
    return [{"prompt": p, "text": _text(tokenizer, row[:n])} for p, row, n in zip(prompts, tokens, a.asked, strict=True)]


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
    """UserError where `samples` could not be had: no way to ask, or more positions than `model` (at `place`) has learned."""
    a = _ask(model.architecture, tokenizer, objective, prompts, new_tokens, seed)
    encoder = None if a.encoder is None else a.encoder.tokens.shape[1]
    # The last token of an answer is not read.
    decoder = None if a.decoder is None else int(np.max(a.decoder.positions[:, -1] + a.asked))
    cure = f"lower log.sample_tokens, shorten log.samples, or raise --config.{place}.{{stack}}.position.max_length"
    check_positions(model, encoder, decoder, cure=cure, what="log.samples take")


def _ask(
    architecture: str, tokenizer: Any, objective: config.Objective, prompts: Sequence[str], new_tokens: int, seed: int
) -> Asked:
    objective, mode = _first_part(objective, tokenizer)
    way = PROMPTS.get(type(objective))
    if way is None:
        raise UserError(
            f"no way to put a prompt to a model of '{config.kind_of(type(objective))}': set log.samples=[], or add it to "
            "PROMPTS of lm.generation.samples"
        )
    rng = np.random.default_rng(seed)
    text = lambda prompt: way.text([tokenizer.encode(part) for part in prompt.split(MASK)], tokenizer, new_tokens, rng)
    ids = [np.concatenate([[tokenizer.bos_id], *text(way.prepare(p))]).astype(np.int32) for p in prompts]
    asked = [new_tokens] * len(ids)
    if architecture == "encoder":
        return Asked(ids, mode, asked, left_padded([np.concatenate([mode, i]) for i in ids]), None, ())
    may_write = tuple(tokenizer.sentinel_ids) if way.sentinels else ()
    reads = [np.concatenate([mode, i[1:], [tokenizer.eos_id]] if way.noised else [mode, i]).astype(np.int32) for i in ids]
    if architecture == "decoder":
        return Asked(ids, mode, asked, None, left_padded(reads, prefix=reads_prefix(architecture, objective)), may_write)
    begin = tokenizer.mask_id if way.stretch else tokenizer.bos_id
    decoder = left_padded([np.array([begin], np.int32)] * len(ids))
    if way.stretch:  # as many tokens as there are masks, at their places
        masks = [np.flatnonzero(i[1:] == tokenizer.mask_id) for i in ids]
        asked = [len(m) for m in masks]
        decoder = replace(decoder, positions=np.array([m[:1] + len(mode) for m in masks], np.int32))
    return Asked(ids, mode, asked, left_padded(reads), decoder, may_write)


def _first_part(objective: config.Objective, tokenizer: Any) -> tuple[config.Objective, list[int]]:
    """What asks the samples' question, and its mode's token, if it has one: of a mixture the first part by name."""
    if not isinstance(objective, config.Mixture):
        return objective, []
    part = objective.parts[min(objective.parts)]
    return part.objective, [special_tokens.modes(objective, tokenizer.sentinel_ids)[part.mode]] if part.mode else []


# ------------------------------------------------------------------------------------- what stands for marks of a prompt

Text = Callable[[list[np.ndarray], Any, int, np.random.Generator], Sequence[Any]]


def _goes_on(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    return parts


def _masks(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    if len(parts) > 1 and tokenizer.mask_id is None:
        raise UserError(f"a prompt of log.samples has {MASK} in it, and the tokenizer has no mask token: leave it out")
    return _joined(parts, [[tokenizer.mask_id]] * (len(parts) - 1))


def _masks_and_end(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    return [*_masks(parts, tokenizer, new_tokens, rng), [tokenizer.eos_id]]


def _sentinels(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    known = tokenizer.sentinel_ids
    if len(parts) - 1 > len(known):
        raise UserError(
            f"a prompt of log.samples has {len(parts) - 1} marks, the tokenizer {len(known)} sentinels: leave some out"
        )
    return _joined(parts, [[known[k]] for k in range(len(parts) - 1)])


def _stretch(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    """One stretch of masks, as long as the rest of the text, at the mark; appended to the text if the prompt has no mark."""
    size = min(max(sum(map(len, parts)), 1), new_tokens)
    return [parts[0], np.full(size, tokenizer.mask_id, np.int32), *parts[1:]]


def _shuffled(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    return [rng.permutation(parts[0])]


def _around(parts: list[np.ndarray], tokenizer: Any, new_tokens: int, rng: np.random.Generator) -> Sequence[Any]:
    """With a mark the prompt is a prefix and a suffix; without one the text goes on."""
    if len(parts) == 1:
        return parts
    prefix, suffix, middle = special_tokens.fill_in_middle(tokenizer.sentinel_ids)
    return [[prefix], parts[0], [suffix], *parts[1:], [middle]]


def _plain(prompt: str) -> str:
    return prompt.replace(MASK, "").rstrip()


def _plain_without_marks(prompt: str) -> str:
    return prompt if MASK in prompt else _plain(prompt)


@dataclass(frozen=True)
class Prompt:
    """How a prompt is put to a model of an objective: `prepare` changes its letters, `text` puts in the marks.

    `noised`: it is read as a whole text, without bos and with eos behind it. `sentinels`: the answer may have some.
    `stretch`: the decoder begins with a mask token, and stands at the positions of the masks.
    """

    text: Text
    prepare: Callable[[str], str] = str
    noised: bool = False
    sentinels: bool = False
    stretch: bool = False


PROMPTS: dict[type, Prompt] = {
    config.Causal: Prompt(_goes_on, _plain),
    config.Prefix: Prompt(_goes_on, _plain),
    config.FillInMiddle: Prompt(_around, _plain_without_marks),
    config.Masked: Prompt(_masks, noised=True),
    config.ReplacedTokens: Prompt(_masks, noised=True),
    config.NextSentence: Prompt(_masks_and_end),
    config.SpanCorruption: Prompt(_sentinels, noised=True, sentinels=True),
    config.Denoise: Prompt(_masks, noised=True),
    config.Deshuffle: Prompt(_shuffled, _plain, noised=True),
    config.Mass: Prompt(_stretch, noised=True, stretch=True),
}


def _joined(parts: list[np.ndarray], marks: list[list[int]]) -> list[Any]:
    """Parts with a mark between any two."""
    return [parts[0], *(piece for pair in zip(marks, parts[1:], strict=True) for piece in pair)]


def _filled(
    model: Transformer, params: Any, tokenizer: Any, prompt: str, ids: np.ndarray, mode: list[int], forbidden: np.ndarray
) -> dict[str, str]:
    read = np.concatenate([mode, ids]).astype(np.int32)
    best = distributed.fetched(predict_tokens(model, params, left_padded([read]), forbidden))[0][len(mode) :]
    chosen = [tokenizer.decode([int(best[i])]).strip() for i in np.flatnonzero(ids == tokenizer.mask_id)]
    text = prompt
    for word in chosen:
        text = text.replace(MASK, f"[{word}]", 1)
    return {"prompt": prompt, "text": text}


def _text(tokenizer: Any, ids: np.ndarray) -> str:
    """Up to eos; sentinels as `<0>`, `<1>`."""
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
