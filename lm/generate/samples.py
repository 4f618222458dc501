"""What a model makes of a few prompts, as text, whatever its architecture and objective: for logs and reports."""

from typing import Any

import jax
import numpy as np

from lm import config
from lm.generate import fill, generate, left_padded
from lm.models.transformer import Transformer

MASK = "[MASK]"


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
    masked = isinstance(objective, config.Masked | config.ReplacedTokens)
    spans = isinstance(objective, config.SpanCorruption)
    ids = [_encode(tokenizer, p if masked or spans else p.replace(MASK, "").rstrip(), spans=spans) for p in prompts]
    if model.config.architecture == "encoder":
        return [_filled(model, params, tokenizer, p, i) for p, i in zip(prompts, ids, strict=True)]
    forbidden = np.zeros(model.config.vocab_size, bool)
    forbidden[: tokenizer.reserved] = True
    forbidden[[tokenizer.eos_id, *(tokenizer.sentinel_ids if spans else ())]] = False
    forbidden[tokenizer.vocab_size :] = True
    settings = dict(new_tokens=new_tokens, temperature=temperature, eos_id=tokenizer.eos_id, forbidden=forbidden)
    if model.config.architecture == "encoder_decoder":
        start = [np.array([tokenizer.bos_id], np.int32)] * len(ids)
        ends = [np.append(i[1:], tokenizer.eos_id) if masked or spans else i for i in ids]
        prompt, encoder = left_padded(start), left_padded(ends)
    else:
        ends = [np.append(i[1:], tokenizer.eos_id) for i in ids] if spans else ids
        prompt, encoder = left_padded(ends, prefix=not isinstance(objective, config.Causal)), None
    tokens = generate(model, params, prompt, jax.random.key(seed), encoder=encoder, **settings)
    return [{"prompt": p, "text": _text(tokenizer, row)} for p, row in zip(prompts, np.asarray(tokens), strict=True)]


def _encode(tokenizer: Any, prompt: str, *, spans: bool) -> np.ndarray:
    """bos, and the prompt with the mask token, or a sentinel each, for its marks."""
    parts = prompt.split(MASK)
    ids = [np.array([tokenizer.bos_id], np.int32), tokenizer.encode(parts[0])]
    for k, part in enumerate(parts[1:]):
        ids += [np.array([tokenizer.sentinel_ids[k] if spans else tokenizer.mask_id]), tokenizer.encode(part)]
    return np.concatenate(ids).astype(np.int32)


def _filled(model: Transformer, params: Any, tokenizer: Any, prompt: str, ids: np.ndarray) -> dict[str, str]:
    best = np.asarray(fill(model, params, left_padded([ids]), tokenizer.vocab_size))[0]
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
