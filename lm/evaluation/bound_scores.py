"""The likelihood bound of a saved masked-diffusion model on held-out text, for `python -m lm.evaluate --bound=N`."""

import math
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from lm import config, objectives
from lm.data.rows import Rows
from lm.errors import UserError
from lm.evaluation.bound import Bound, any_number, bound, each_number
from lm.evaluation.span_scores import opened, output, prepared_of, write
from lm.evaluation.spans import NOTHING_HELD_OUT
from lm.models.transformer import Transformer


def evaluate(
    folder: str,
    run: config.Run | None = None,
    *,
    windows: int,
    draws: int,
    seed: int,
    batch_size: int,
    out: str | None = None,
) -> dict[str, Any]:
    """The bound on so many held-out windows, spread evenly, by the sum over the number of masks with `draws` sets of masks for
    each, and by sampling with as many forward passes. Writes it to `out` (default: FOLDER/bound.json) and returns it.

    Bits per byte are of the windows' nats a token, with the tokens and bytes of the held-out split, as those that training
    prints. UserError for a model of another objective, and where nothing is held out.
    """
    target, (source, run, own) = output(out), opened(folder, run)
    c = run.objective
    if not isinstance(c, config.MaskedDiffusion):
        raise UserError(f"--bound is of models of 'masked_diffusion', and this one is of '{config.kind_of(type(c))}'")
    if run.data.after:
        raise UserError(f"--bound is of complete texts, and this model was trained after {run.data.after!r}: leave it out")
    tokenizer = source.tokenizer()
    data = prepared_of(run, tokenizer, own=own)
    if not data.holdout:
        raise UserError(NOTHING_HELD_OUT)
    rows = Rows(data.holdout, objectives.build(c, source.model.architecture, run.data, tokenizer), seed, shuffle=False)
    chosen = np.unique(np.linspace(0, rows.count - 1, windows).round().astype(np.int64))
    batch: Any = rows.rows(chosen)
    texts = [text for text in _texts(batch) if (text != tokenizer.bos_id).any() and (len(text) > 1 or batch.encoder)]
    model, params = Transformer(source.model), source.params(device=jax.local_devices()[0])
    settings: dict[str, Any] = dict(seed=seed, batch_size=batch_size)
    found = {"sum": bound(model, params, c, tokenizer, texts, each_number, draws=draws, **settings)}
    passes = max(2, round(draws * float(np.mean(found["sum"].tokens))))
    found["sampled"] = bound(model, params, c, tokenizer, texts, any_number, draws=passes, **settings)
    stores = data.holdout.values()
    tokens_per_byte = sum(s.num_tokens - s.num_documents for s in stores) / sum(s.num_bytes for s in stores)
    result = {
        "data": data.fingerprint,
        "windows": len(chosen),
        "tokens": int(found["sum"].tokens.sum()),
        "draws": draws,
        "seed": seed,
        "bounds": {name: _figures(b, tokens_per_byte) for name, b in found.items()},
    }
    write(result, source, target, default="bound.json")
    return result


def _texts(batch: Any) -> list[np.ndarray]:
    """The texts of rows, int32 [n] each: an encoder's targets; of a decoder the first token, no mask, and its targets."""
    stream, found = batch.encoder or batch.decoder, list[np.ndarray]()
    for read, targets, segments in zip(stream.tokens, batch.targets, stream.segments, strict=True):
        for s in range(1, segments.max() + 1):
            mine = segments == s
            found.append(targets[mine] if batch.encoder else np.append(read[mine][:1], targets[mine][:-1]))
    return found


def _figures(b: Bound, tokens_per_byte: float) -> dict[str, float]:
    bits = tokens_per_byte / math.log(2)
    return {
        "nats_per_token": b.nats_per_token,
        "bits_per_byte": b.nats_per_token * bits,
        "error": b.error / float(b.tokens.sum()) * bits,
    }


def show(result: dict[str, Any]) -> None:
    """Prints both estimates as a table."""
    table = Table(title=f"likelihood bound of {result['windows']} held-out windows, {result['tokens']:,} tokens")
    for name in ("bound", "nats a token", "bits per byte", "standard error, bits per byte"):
        table.add_column(name, justify="left" if name == "bound" else "right")
    for name, b in result["bounds"].items():
        label = {"sum": f"sum over numbers of masks, {result['draws']} draws each", "sampled": "sampled, as many passes"}[name]
        error = "" if math.isnan(b["error"]) else f"{b['error']:.4f}"
        table.add_row(label, f"{b['nats_per_token']:.4f}", f"{b['bits_per_byte']:.4f}", error)
    Console().print(table)
