"""What a model makes of a few prompts, as text, whatever its architecture and objective: for logs and reports."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lm import config, distributed
from lm.generate import fill, generate, left_padded
from lm.models.transformer import Transformer
from lm.objectives import marks, of_texts, reads_prefix

MASK = "[MASK]"
# Objectives whose prompt is a text without bos, and with eos behind it, as their encoder (or prefix) reads it.
NOISED = config.Masked | config.SpanCorruption | config.Denoise | config.Deshuffle | config.Mass


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
    """`{"prompt", "text"}` for each prompt. "[MASK]" in a prompt is what is asked for; elsewhere the text goes on."""
    objective, mode = _first_part(objective, tokenizer)
    rng = np.random.default_rng(seed)
    ids = [_asked(objective, tokenizer, p, new_tokens, rng) for p in prompts]
    if model.config.architecture == "encoder":
        return [_filled(model, params, tokenizer, p, i, mode) for p, i in zip(prompts, ids, strict=True)]
    forbidden = ~of_texts(tokenizer, model.config.vocab_size)
    spans = isinstance(objective, config.SpanCorruption)
    forbidden[[tokenizer.eos_id, *(tokenizer.sentinel_ids if spans else ())]] = False
    settings = dict(new_tokens=new_tokens, temperature=temperature, eos_id=tokenizer.eos_id, forbidden=forbidden)
    noised = isinstance(objective, NOISED)
    reads = [np.concatenate([mode, i[1:], [tokenizer.eos_id]] if noised else [mode, i]).astype(np.int32) for i in ids]
    asked = [new_tokens] * len(ids)
    if model.config.architecture == "encoder_decoder":
        begin = tokenizer.mask_id if isinstance(objective, config.Mass) else tokenizer.bos_id
        prompt, encoder = left_padded([np.array([begin], np.int32)] * len(ids)), left_padded(reads)
        if isinstance(objective, config.Mass):  # as many tokens as there are masks, at their places
            masks = [np.flatnonzero(i[1:] == tokenizer.mask_id) for i in ids]
            asked = [len(m) for m in masks]
            prompt = replace(prompt, positions=np.array([m[:1] + len(mode) for m in masks], np.int32))
    else:
        prompt, encoder = left_padded(reads, prefix=reads_prefix(objective)), None
    tokens = distributed.fetched(generate(model, params, prompt, jax.random.key(seed), encoder=encoder, **settings))
    return [{"prompt": p, "text": _text(tokenizer, row[:n])} for p, row, n in zip(prompts, tokens, asked, strict=True)]


def _first_part(objective: config.Objective, tokenizer: Any) -> tuple[config.Objective, list[int]]:
    """What asks the samples' question, and its mode's token, if it has one: of a mixture the first part by name."""
    if not isinstance(objective, config.Mixture):
        return objective, []
    part = objective.parts[min(objective.parts)]
    return part.objective, [marks.modes(objective, tokenizer.sentinel_ids)[part.mode]] if part.mode else []


def _asked(objective: config.Objective, tokenizer: Any, prompt: str, new_tokens: int, rng: np.random.Generator) -> np.ndarray:
    """bos and the prompt, with what the objective has in the place of its marks."""
    parts = [tokenizer.encode(part) for part in prompt.split(MASK)]
    text = [tokenizer.encode(prompt.replace(MASK, "").rstrip())]
    match objective:
        case config.Masked() | config.ReplacedTokens() | config.Denoise():
            text = _joined(parts, [[tokenizer.mask_id]] * (len(parts) - 1))
        case config.NextSentence():
            text = [*_joined(parts, [[tokenizer.mask_id]] * (len(parts) - 1)), [tokenizer.eos_id]]
        case config.SpanCorruption():
            text = _joined(parts, [[tokenizer.sentinel_ids[k]] for k in range(len(parts) - 1)])
        case config.Mass():  # one stretch, as long as the rest of the text: behind it without a mark
            before, behind = parts[0], parts[1:]
            size = min(max(sum(map(len, parts)), 1), new_tokens)
            text = [before, np.full(size, tokenizer.mask_id, np.int32), *behind]
        case config.Deshuffle():
            text = [rng.permutation(text[0])]
        case config.FillInMiddle() if len(parts) > 1:
            prefix, suffix, middle = marks.fill_in_middle(tokenizer.sentinel_ids)
            text = [[prefix], parts[0], [suffix], *parts[1:], [middle]]
    return np.concatenate([[tokenizer.bos_id], *text]).astype(np.int32)


def _joined(parts: list[np.ndarray], marks: list[list[int]]) -> list[Any]:
    """Parts with a mark between any two."""
    return [parts[0], *(piece for pair in zip(marks, parts[1:], strict=True) for piece in pair)]


def _filled(model: Transformer, params: Any, tokenizer: Any, prompt: str, ids: np.ndarray, mode: list[int]) -> dict[str, str]:
    read = np.concatenate([mode, ids]).astype(np.int32)
    best = distributed.fetched(fill(model, params, left_padded([read]), tokenizer.vocab_size))[0][len(mode) :]
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
