"""Scores a saved model on held-out spans, for `python -m lm.evaluate`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from lm import atomic, config, objectives, paths, saved
from lm.data.corpus.prepare import Prepared, prepare
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError, nearest
from lm.evaluation.spans import digest, held_out_spans, score
from lm.models.transformer import Transformer
from lm.objectives import span_prompts
from lm.objectives.prompts import KINDS, ONE_SIDED


def evaluate(
    folder: str,
    run: config.Run | None = None,
    *,
    kinds: str,
    spans: int,
    left: int,
    span: int,
    right: int,
    seed: int,
    batch_size: int,
    out: str | None = None,
) -> dict[str, Any]:
    """Scores the model in `folder`, writes the result to `out` (default: FOLDER/span_scores.json) and returns it.

    `kinds` are separated by commas. Data and objective come from `run`, by default the run that trained the model. In the
    result, `scores` has for each kind the nats of every span and their mean in bits per byte, or why it is refused.
    UserError for bad arguments, and for a model without a head over the vocabulary.
    """
    asked = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    for kind in asked:
        if kind not in KINDS:
            raise UserError(f"--kinds: no kind of score '{kind}'{nearest(kind, KINDS)}")
    target, (source, run, own) = output(out), opened(folder, run)
    known = span_prompts(source.model.architecture, run.objective)
    tokenizer = source.tokenizer()
    data = prepared_of(run, tokenizer, own=own)
    drawn = held_out_spans(data, count=spans, left=left, span=span, right=right, seed=seed)
    model, params = Transformer(source.model), source.params(device=jax.local_devices()[0])
    scores = []
    for kind in asked:
        if kind not in known:
            scores.append({"kind": kind, "refused": ONE_SIDED})
            continue
        result = score(model, params, run.objective, tokenizer, drawn, kind=kind, batch_size=batch_size)
        lists = {name: [round(float(x), 4) for x in getattr(result, name)] for name in ("per_span", "hits")}
        scores.append(asdict(result) | lists)
    result = {
        "architecture": source.model.architecture,
        "objective": config.kind_of(type(run.objective)),
        "data": data.fingerprint,
        "digest": digest(drawn),
        "spans": len(drawn),
        "left": left,
        "span": span,
        "right": right,
        "seed": seed,
        "trained_window": objectives.build(run.objective, source.model.architecture, run.data, tokenizer).window,
        "scores": scores,
    }
    write(result, source, target, default="span_scores.json")
    return result


def output(out: str | None) -> Path | None:
    """The file of --out, in a folder that exists."""
    target = None if out is None else paths.local(out, name="--out")
    if target is not None and not target.parent.is_dir():
        raise UserError(f"--out={out}: the folder {target.parent} does not exist; create it first")
    return target


def opened(folder: str, run: config.Run | None) -> tuple[saved.Saved, config.Run, bool]:
    """The saved model, the run whose data it is scored on (the one that trained it, unless `run` is given), and whether that is
    its own. UserError for one without documents, or without a head over the vocabulary."""
    source = saved.open(folder)
    own, run = run is None, run or source.run
    if run is None:
        raise UserError(f"--from={folder} is a converted model without data; add --config=FILE with the data to score")
    if own and not isinstance(run.recipe, config.Pretrain):
        raise UserError(
            f"--from={folder} was fine-tuned on records, not documents; add --config=FILE with the data to "
            f"score, or label new texts: python -m lm.predict --from={folder}"
        )
    check_head(source)
    return source, run, own


def check_head(source: saved.Saved) -> None:
    if source.run is not None and isinstance(source.run.recipe, config.Reward):
        raise UserError(
            f'--from={source.folder} is a reward model, which scores answers: give lines of {{"prompt", "completion"}} to '
            "python -m lm.score --jsonl"
        )
    if source.model.head is None or source.model.head.outputs not in (None, 1):
        raise UserError(f"--from={source.folder} has no head over the vocabulary, which scores need; give a language model")


def prepared_of(run: config.Run, tokenizer: Tokenizer, *, own: bool) -> Prepared:
    """Returns the prepared data of `run`, tokenized with the model's tokenizer if the run is not its `own`."""
    if not own:
        return prepare(run.data, tokenizer=tokenizer)
    data = prepare(run.data)
    if data.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            "the data was prepared with a different tokenizer than the run's, because its sources changed; restore them"
        )
    return data


def write(result: dict[str, Any], source: saved.Saved, target: Path | None, *, default: str) -> None:
    """Writes the result to `target`, or to the file `default` in the model's folder; the first of several hosts does."""
    if jax.process_index() != 0:
        return
    if target is None and str(source.folder).startswith("gs://"):
        text = json.dumps(atomic.strict(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (source.folder / default).write_text(text, encoding="utf-8")
    else:
        atomic.write_json(target or Path(source.folder / default), result)


def notes(score: dict[str, Any]) -> str:
    """What a score's note says, and what is far from training."""
    return "; ".join(filter(None, (score["note"], score["far"])))


def show(result: dict[str, Any]) -> None:
    """Prints the scores as a table."""
    sizes = f"{result['left']}+{result['span']}+{result['right']} tokens"
    table = Table(title=f"{result['architecture']}, {result['objective']}: {result['spans']} held-out spans of {sizes}")
    for name in ("score", "bits per byte", "accuracy", "probability", "note"):
        table.add_column(name, justify="left" if name in ("score", "note") else "right")
    for s in result["scores"]:
        if "refused" in s:
            table.add_row(s["kind"], "-", "-", "-", s["refused"])
        else:
            flag = "yes" if s["normalised"] else "NO"
            table.add_row(
                s["kind"],
                f"{s['bits_per_byte']:.4f}",
                f"{s['accuracy']:.3f}",
                flag,
                notes(s),
            )
    length = result["left"] + result["span"] + result["right"]
    if length > result["trained_window"]:
        table.caption = f"{length} tokens of text, trained on {result['trained_window']} at a time: shorten --left or --right"
    Console().print(table)
