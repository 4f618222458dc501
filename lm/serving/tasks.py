"""What is asked of a model beside texts: vectors, scores, fills, orders, looks. Each returns the body of an answer."""

import base64
import math
import secrets
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.generation.placing import with_tokens
from lm.generation.vectors import cosines
from lm.objectives.prompts import MASK
from lm.serving import completions, schemas
from lm.serving.completions import Usage
from lm.serving.errors import ApiError
from lm.serving.scoring import Scorer
from lm.serving.served import Served
from lm.serving.worker import Worker

FILLED = 32  # tokens of what is written into a gap, if a request does not say how many


def _list(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _count(served: Served, texts: list[str]) -> int:
    return sum(map(len, served.tokenizer.encode_batch(texts)))


async def embeddings(served: Served, worker: Worker, body: schemas.Embeddings) -> tuple[dict[str, Any], Usage]:
    """Vectors of length 1."""
    texts, width = _list(body.input), served.config.width
    if body.dimensions not in (None, width):
        raise ApiError(400, f"the vectors have {width} dimensions, and cannot have others", param="dimensions")
    vectors = await worker.call(lambda: served.embedder(texts))
    base = body.encoding_format == "base64"
    shown = lambda v: base64.b64encode(v.astype("<f4").tobytes()).decode() if base else [float(str(x)) for x in v]
    usage = Usage(_count(served, texts))
    data = [{"object": "embedding", "index": i, "embedding": shown(v)} for i, v in enumerate(vectors)]
    counted = {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
    return {"object": "list", "data": data, "model": served.name, "usage": counted}, usage


def _scorer(served: Served) -> Scorer:
    if isinstance(served.scorer, str):
        raise UserError(served.scorer)
    return served.scorer


async def score(served: Served, worker: Worker, body: schemas.Score) -> tuple[dict[str, Any], Usage]:
    """Log-probabilities of texts, or pseudo-log-likelihoods."""
    scorer, texts = _scorer(served), _list(body.input)
    found = await worker.call(lambda: scorer.texts(texts))
    names = ("nats", "tokens", "bytes", "bits_per_byte", "perplexity")
    data = [{"index": i, "log_prob": -f.nats} | {name: getattr(f, name) for name in names} for i, f in enumerate(found)]
    usage = Usage(sum(f.tokens for f in found))
    about = {"kind": scorer.kind, "normalised": found[0].normalised, "note": found[0].note}
    return {"object": "list", "model": served.name, **about, "data": data}, usage


async def rerank(served: Served, worker: Worker, body: schemas.Rerank) -> tuple[dict[str, Any], Usage]:
    """Documents in an order: by the cosine of their vectors with the query's, or by their log-probability and a score that each
    has already."""
    documents = [schemas.Document(text=d) if isinstance(d, str) else d for d in body.documents]
    by = body.by or "cosine"
    if by == "cosine":
        if not body.query or body.weight is not None or any(d.score is not None for d in documents):
            raise ApiError(400, "by=cosine takes a query, and neither weight nor scores", param="query")
        query, texts = body.query, [d.text for d in documents]
        vectors = await worker.call(lambda: served.embedder([query, *texts]))
        scores = cosines(vectors[:1], vectors[1:])[0].tolist()
    else:
        if body.query is not None:
            raise ApiError(400, "by=log_prob takes no query: put it into the documents", param="query")
        scorer, texts = _scorer(served), [d.text for d in documents]
        found = await worker.call(lambda: scorer.texts(texts))
        weight = 1.0 if body.weight is None else body.weight
        scores = [(d.score or 0.0) - weight * f.nats for d, f in zip(documents, found, strict=True)]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n]
    shown = lambda i: {"document": {"text": documents[i].text}} if body.return_documents is not False else {}
    results = [{"index": i, "relevance_score": scores[i], **shown(i)} for i in order]
    return {"object": "list", "model": served.name, "by": by, "results": results}, Usage(_count(served, texts))


async def fill(served: Served, worker: Worker, body: schemas.Fill, *, most: int) -> tuple[dict[str, Any], Usage]:
    """What stands at each [MASK] of a text: of an encoder the likeliest tokens, of others what they write there."""
    if served.architecture == "encoder":
        return await _masks(served, worker, body)
    if body.top is not None:
        raise ApiError(400, "top is for models that predict a token at each mask: leave it out", param="top")
    if not served.infills:
        raise UserError(f"the model {served.name!r} was not trained to fill a gap in a text: take /v1/completions")
    before, mark, after = body.text.partition(MASK)
    if not mark or MASK in after:
        raise ApiError(400, f"the text must have one {MASK}, where something is to be written", param="text")
    wanted = body.max_tokens or FILLED
    seed = secrets.randbits(32) if body.seed is None else body.seed % 2**32
    reading = served.read(before, after, wanted, seed)
    temperature = 0.0 if body.temperature is None else body.temperature
    ask = completions.ask(served, schemas.Drawn(temperature=temperature), reading, wanted, seed, most=most)
    ticket, tokens, finish = worker.submit([ask]), [], "length"
    try:
        async for piece in ticket:
            tokens += [w.token for w in piece.tokens]
            finish = piece.finish or finish
    finally:
        ticket.close()
    usage = Usage(len(reading.tokens if reading.encoder is None else reading.encoder), len(tokens))
    written = _between(served, [t for t in tokens if t not in served.ends])
    whole = written if served.rewrites else before + written + after
    return {"object": "fill", "model": served.name, "text": whole, "fills": [{"text": written}], "finish_reason": finish}, usage


def _between(served: Served, tokens: list[int]) -> str:
    """The text of the first gap: up to the sentinel that begins the second."""
    sentinels = served.tokenizer.sentinel_ids
    if len(sentinels) > 1 and sentinels[1] in tokens:
        tokens = tokens[: tokens.index(sentinels[1])]
    return served.tokenizer.decode(tokens)


async def _masks(served: Served, worker: Worker, body: schemas.Fill) -> tuple[dict[str, Any], Usage]:
    if body.max_tokens is not None or body.temperature is not None or body.seed is not None:
        raise ApiError(400, "this model predicts a token at each mask, and draws nothing: give top alone", param="max_tokens")
    top = body.top or served.top
    if top > served.top:
        raise ApiError(400, f"top={top} is too many: at most {served.top}", param="top")
    scorer = _scorer(served)
    found = await worker.call(lambda: scorer.masks(body.text))
    fills = []
    for ids, log_probs in zip(found.top.tolist(), found.top_log_probs.tolist(), strict=True):
        word = lambda i: served.tokenizer.decode([i]).strip()
        likeliest: list[dict[str, Any]] = [
            {"token": word(i), "log_prob": p, "prob": math.exp(p)} for i, p in zip(ids, log_probs, strict=True)
        ][:top]
        fills.append({"text": likeliest[0]["token"], "top": likeliest})
    text = with_tokens(served.tokenizer, body.text, found.top[:, 0].tolist())
    return {"object": "fill", "model": served.name, "text": text, "fills": fills}, Usage(_count(served, [body.text]))


async def inspect(served: Served, worker: Worker, body: schemas.Inspect) -> tuple[dict[str, Any], Usage]:
    """Of a short text: the attention of a layer, and the likeliest tokens after each layer."""
    ids, look = await worker.call(lambda: served.look(body.text))
    layers, heads = look.attention.shape[:2]
    layer, top, n = body.layer or 0, min(body.top or 1, served.top), len(ids)
    if layer >= layers:
        raise ApiError(400, f"layer={layer}: the model has layers 0 to {layers - 1}", param="layer")
    name = served.token_text
    shown = lambda i, p: {"token": name(i), "prob": round(math.exp(p), 4)}
    lens = [
        [
            [shown(i, p) for i, p in zip(some[:top], of[:top], strict=True)]
            for some, of in zip(tokens[:n], log_probs[:n], strict=True)
        ]
        for tokens, log_probs in zip(look.tokens.tolist(), look.log_probs.tolist(), strict=True)
    ]
    weights = np.round(look.attention[layer][:, :n, :n].astype(float), 4).tolist()
    about = {"layers": layers, "heads": heads, "layer": layer, "causal": served.architecture == "decoder"}
    body_ = {"object": "inspection", "model": served.name, "tokens": [name(i) for i in ids.tolist()], **about}
    return body_ | {"attention": weights, "lens": lens}, Usage(n)
