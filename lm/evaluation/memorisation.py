"""What a model repeats of its training text word for word.

Two measures, and for each the same of text that was held out, as a floor: phrases that everybody writes are no memory.

    spans        the longest span of a sample that stands in the training text, beside that of the held-out text which really
                 followed the same prompt
    extraction   the share of places where the k tokens before them make the model write the next ones exactly, taking the
                 likeliest token each time ("Quantifying memorization", arXiv 2202.07646, section 3)
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lm.data.corpus.store import Store
from lm.errors import UserError
from lm.evaluation.examined import Examined
from lm.evaluation.findings import Finding, Row, mean, share
from lm.objectives.prompts import ONE_SIDED, Span

NEXT = 50  # tokens that are to be written exactly, as in the paper; half of a shorter piece of text
EACH = 16  # the same for an encoder, which is asked token by token
PREFIXES = 5  # numbers of tokens before them, each twice the last
PROMPT = 16  # tokens of held-out text that a sample goes on from
WRITTEN = 128  # tokens of a sample, at most
CHUNK = 1 << 20  # training tokens that are compared at a time
SHOWN = 5  # longest spans that are shown


def examine(e: Examined) -> Finding:
    """The finding. UserError where the training text is not known, or none was held out."""
    lengths = _lengths(e)
    written, refused = None, ""
    try:
        written = verbatim(e)
    except UserError as error:
        refused = f"no samples: {error}"
    extracted = extraction(e, *lengths)
    next_tokens, places = lengths[0], {split: found["places"] for split, found in extracted.items()}
    rows = [] if written is None else written[0]
    for k in lengths[1]:
        found, floor = (share(of["exact"][k], of["places"]) for of in extracted.values())
        rows.append(Row(f"{next_tokens} tokens exact after {k}", found, floor))
    found, floor = (share(of["elsewhere"], of["places"]) for of in extracted.values())
    rows.append(Row("also elsewhere in training", found, floor))
    notes = [
        "the floor is held-out text: what is above it was learned from the training text itself",
        "a span is a run of tokens that stands in the training text word for word",
        f"the last row: places whose {next_tokens} tokens stand in the training text at another place too; they count as well",
        f"{places['train']} places of rows that the model has read, {places['holdout']} held-out ones",
        *([refused] if refused else []),
    ]
    if e.documents and e.documents.read is None:
        notes.append("which rows the model has read is not known: all of the training split are taken for it")
    details = {"extraction": extracted, "spans": None if written is None else written[1]}
    longest = [] if written is None else written[1]["longest"]
    shown = [f"verbatim, {each['tokens']} tokens: {each['text']!r}" for each in longest]
    return Finding(rows, notes, details, lambda figure: _draw(figure, extracted, details["spans"], next_tokens), shown)


def _lengths(e: Examined) -> tuple[int, list[int]]:
    """Tokens to be written exactly, and numbers of tokens before them, for pieces as long as half of them are."""
    if "suffix" not in e.known:
        raise UserError(ONE_SIDED)
    sizes = [len(piece) for piece, _ in zip(e.texts.pieces("train", e.seed), range(e.count), strict=False)]
    middle = int(np.median(sizes))
    if middle < 8:
        raise UserError(f"half of the documents' pieces have less than 8 tokens ({middle}): take longer rows or documents")
    exact = min(EACH if e.architecture == "encoder" else NEXT, middle // 2)
    return exact, [2**n for n in range(1, 12) if 2**n <= middle - exact][-PREFIXES:]


# ------------------------------------------------------------------------------------------------------- extraction


def extraction(e: Examined, exact: int, prefixes: list[int]) -> dict[str, dict[str, Any]]:
    """For both splits: `places`, `exact` by number of tokens before them, and `elsewhere`, places whose tokens stand in the
    training text at another place too.

    The tokens are written exactly if each is the likeliest after the true ones before it: the same places and the same
    question as by writing greedily, in one pass.
    """
    out: dict[str, dict[str, Any]] = {}
    for split in ("train", "holdout"):
        places = _places(e, split, exact, max(prefixes))
        hits = {k: _exact(e, places, k) for k in prefixes}
        repeated = occurrences(_chunks(e.texts.trained.stores.values(), exact), np.stack([p.target for p in places]))
        out[split] = {
            "places": len(places),
            "exact": {k: int(found.sum()) for k, found in hits.items()},
            "elsewhere": int((repeated > (split == "train")).sum()),
        }
    return out


def _places(e: Examined, split: str, exact: int, before: int) -> list[Span]:
    """`e.count` places, one of a piece."""
    rng = np.random.default_rng((e.seed, split == "train", 1))
    found: list[Span] = []
    for piece in e.texts.pieces(split, e.seed):
        if (room := len(piece) - before - exact) >= 0:
            at = before + int(rng.integers(room + 1))
            found.append(Span(piece[at - before : at], piece[at : at + exact], piece[:0], 0))
            if len(found) == e.count:
                break
    if not found:
        raise UserError(f"no piece of the {split} documents has {before}+{exact} tokens: take longer rows or documents")
    return found


def _exact(e: Examined, places: list[Span], before: int) -> np.ndarray:
    """bool [n]: whether all tokens are the likeliest ones, special tokens included."""
    found = e.nats([replace(place, left=place.left[-before:]) for place in places], "suffix", renormalise=False)
    return found.hits == len(places[0].target)


# ------------------------------------------------------------------------------------------------------- verbatim spans


def verbatim(e: Examined) -> tuple[list[Row], dict[str, Any]]:
    """The rows of samples, and the longest span of each sample and of the text that really followed its prompt."""
    pieces = [p for p, _ in zip(_long_pieces(e), range(e.count), strict=False)]
    if not pieces:
        raise UserError(f"no held-out piece has more than {2 * PROMPT} tokens; take longer rows or documents")
    size = min(WRITTEN, e.texts.window - PROMPT)
    prompts = [e.tokenizer.decode(piece[:PROMPT]) for piece in pieces]
    samples = e.write(prompts, new_tokens=size, temperature=1.0)
    written = e.tokenizer.encode_batch([sample.text for sample in samples])
    real = [piece[PROMPT:] for piece in pieces]
    both = [(a[:n], b[:n]) for a, b in zip(written, real, strict=True) if (n := min(len(a), len(b)))]  # of equal length
    if not both:
        raise UserError("the model ends every sample at once")
    longest = {name: spans_of(e, [pair[i] for pair in both]) for i, name in enumerate(("samples", "held out"))}
    rows = []
    for measure, unit in (("tokens", 0), ("characters", 1)):
        most = [max(each[unit] for each in of) for of in longest.values()]
        rows.append(Row(f"longest span, {measure}", float(most[0]), float(most[1]), share=False))
    means = [mean(np.array([each[0] for each in of], float)) for of in longest.values()]
    rows.append(Row("longest of a sample, mean", *means, share=False))
    gain = np.array([a[0] - b[0] for a, b in zip(*longest.values(), strict=True)], float)
    rows.append(Row("beyond what really followed", mean(gain), 0.0, share=False))
    shown = sorted(longest["samples"], key=lambda each: -each[0])[:SHOWN]
    details = {
        "tokens": {name: [each[0] for each in of] for name, of in longest.items()},
        "written": [len(a) for a, _ in both],
        "longest": [{"tokens": n, "characters": size, "text": text} for n, size, text in shown],
    }
    return rows, details


def _long_pieces(e: Examined) -> Iterator[np.ndarray]:
    return (piece for piece in e.texts.pieces("holdout", e.seed) if len(piece) > 2 * PROMPT)


def spans_of(e: Examined, texts: list[np.ndarray]) -> list[tuple[int, int, str]]:
    """Of each text its longest span that stands in the training text: tokens, characters, text."""
    nothing = e.tokenizer.vocab_size  # between texts stands what no training text has
    joined = np.concatenate([np.append(text, nothing) for text in texts])
    lengths = longest_spans(_chunks(e.texts.trained.stores.values(), max(map(len, texts))), joined)
    out = []
    for start, text in zip(np.cumsum([0, *(len(t) + 1 for t in texts)]), texts, strict=False):
        at = int(np.argmax(lengths[start : start + len(text)]))
        n = int(lengths[start + at])
        words = e.tokenizer.decode(text[at : at + n])
        out.append((n, len(words), words))
    return out


def _chunks(stores: Iterable[Store], overlap: int) -> Iterator[np.ndarray]:
    """The training tokens in pieces that fit in memory, int64 [n]; every span of `overlap` tokens is in one of them."""
    for store in stores:
        for start in range(0, store.num_tokens, CHUNK):
            size = min(CHUNK + overlap - 1, store.num_tokens - start)
            yield store.read(np.array([start]), size)[0].astype(np.int64)


def longest_spans(chunks: Iterable[np.ndarray], text: np.ndarray) -> np.ndarray:
    """int64 [n]: for each position of `text`, int [n], how many tokens from there on stand somewhere in a chunk.

    chunks [[5 6 7 8]], text [6 7 9 5]:  [2 1 0 1]

    Grows all spans by a token at a time. A span is known by a number, which is the same for equal spans; what is nowhere on the
    other side is left out, so that a chunk's positions are soon few. No two spans are confused, as with a hash.
    """
    text = np.asarray(text, np.int64)
    out = np.zeros(len(text), np.int64)
    for chunk in chunks:
        ours, theirs = np.arange(len(text)), np.arange(len(chunk))
        for length in range(1, len(text) + 1):
            if length == 1:
                a, b = text, chunk
                numbers = int(max(text.max(initial=0), chunk.max(initial=0))) + 1
            ours, theirs, a, b = _shared(ours, theirs, a, b)
            if not len(ours):
                break
            out[ours] = np.maximum(out[ours], length)
            go_on, theirs_too = ours + length < len(text), theirs + length < len(chunk)
            ours, theirs, a, b = ours[go_on], theirs[theirs_too], a[go_on], b[theirs_too]
            a, b = a * numbers + text[ours + length], b * numbers + chunk[theirs + length]
    return out


def _shared(ours: np.ndarray, theirs: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """The positions whose keys `a` and `b` are on both sides, and for the keys their ranks."""
    common = np.intersect1d(a, b)
    if not len(common):
        return ours[:0], theirs[:0], a[:0], b[:0]
    ranks = [np.searchsorted(common, keys).clip(max=len(common) - 1) for keys in (a, b)]
    mine, other = (common[rank] == keys for rank, keys in zip(ranks, (a, b), strict=True))
    return ours[mine], theirs[other], ranks[0][mine], ranks[1][other]


def occurrences(chunks: Iterable[np.ndarray], spans: np.ndarray) -> np.ndarray:
    """int64 [n]: how often each of the spans, int [n, size], stands in the chunks, which overlap by size - 1 tokens."""
    spans = np.asarray(spans, np.int64)
    count, size = spans.shape
    out = np.zeros(count, np.int64)
    for chunk in chunks:
        ours, theirs = np.arange(count), np.arange(len(chunk) - size + 1)
        a, b = spans[:, 0], chunk[: len(theirs)]
        numbers = int(max(spans.max(), chunk.max(initial=0))) + 1
        for length in range(1, size + 1):
            ours, theirs, a, b = _shared(ours, theirs, a, b)
            if length < size:
                a, b = a * numbers + spans[ours, length], b * numbers + chunk[theirs + length]
        out[ours] += np.bincount(b, minlength=len(ours) and int(a.max()) + 1)[a] if len(ours) else 0
    return out


# ------------------------------------------------------------------------------------------------------- picture


def _draw(figure: Any, extracted: dict[str, dict[str, Any]], spans: dict[str, Any] | None, exact: int) -> None:
    axes = figure.subplots(1, 1 if spans is None else 2, squeeze=False)[0]
    most = 0.1
    for split, line in (("train", "o-"), ("holdout", "s--")):
        found = extracted[split]
        rates = [share(hits, found["places"]) for hits in found["exact"].values()]
        value, low, high = (np.array([getattr(rate, name) for rate in rates]) for name in ("value", "low", "high"))
        label = {"train": "training text", "holdout": "held-out text"}[split]
        axes[0].errorbar(
            list(found["exact"]), value, [value - low, high - value], fmt=line, capsize=3, mfc="white", label=label
        )
        most = max(most, high.max())
    axes[0].set(xscale="log", xlabel="tokens before", ylabel=f"share of places, next {exact} tokens exact")
    axes[0].set_ylim(-0.03 * most, 1.03 * most)
    axes[0].set_xticks(list(extracted["train"]["exact"]), labels=map(str, extracted["train"]["exact"]), minor=False)
    axes[0].minorticks_off()
    axes[0].legend(frameon=False)
    if spans is None:
        return
    most = max(max(of) for of in spans["tokens"].values())
    edges = np.linspace(-0.5, most + 0.5, min(most + 2, 41))
    for name, of in spans["tokens"].items():
        label = {"samples": "samples", "held out": "what really followed"}[name]
        axes[1].hist(of, edges, histtype="stepfilled", alpha=0.5, label=label)
    axes[1].set(xlabel="longest span that stands in the training text, tokens", ylabel="texts")
    axes[1].legend(frameon=False)
