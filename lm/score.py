"""Scores texts of any length: log-probability, perplexity and bits per byte, or pseudo-log-likelihood.

  python -m lm.score --from=runs/quickstart chapter.txt notes.txt
  python -m lm.score --from=D < chapter.txt
  python -m lm.score --from=D --jsonl < texts.jsonl > scored.jsonl
  python -m lm.score --from=D --nbest=hypotheses.jsonl > ordered.jsonl

A file is one text, read in windows of --length tokens that overlap: each predicts --stride tokens with those before them in
sight. A masked encoder's score is a pseudo-log-likelihood: each token given all others, the later tokens of its word hidden
(arXiv 2305.10588); it ranks texts and is no probability.

With --jsonl each line read is {"text": "..."}; the line written has its other fields too, and nats, tokens, bytes,
bits_per_byte and perplexity. A reward model reads {"prompt": "...", "completion": "..."} (or "messages", not
"prompt"), and adds the completion's "reward".

--nbest orders readings of utterances, a line {"utterance": "...", "text": "...", "score": -12.3} each, whose score is a
recogniser's log-probability, by score + WEIGHT x log-probability of the text. With "reference" in the lines, what was said, the
weight that is not given as --weight is the one with the fewest word errors on the utterances of even number, and those of odd
number show the gain.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, get_args

from lm import cli, paths, untrusted
from lm.config import Weights
from lm.config.ranges import Count, NonNegative
from lm.errors import UserError, printable

NO_TEXT = "there is no text: give files, or a text on standard input"
MENDED = 5  # utterances that are shown
LENGTH = 512  # tokens of a window of a model that says nothing of how many it has learned


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if sum((bool(flags.files), flags.jsonl, flags.nbest is not None)) > 1:
        raise UserError("files, --jsonl and --nbest are three things to score: give one of them")
    if flags.weight is not None and flags.nbest is None:
        raise UserError(f"--weight={flags.weight:g} is of --nbest, and that is not given")
    if flags.nbest is not None:
        return _order(flags)
    if flags.jsonl:
        given = cli.standard_input(NO_TEXT)
        answers = "completion" in _lines("standard input", given)[0]
        records = _lines("standard input", given, "completion" if answers else "text")
        if answers:
            for record, reward in zip(records, _rewards(flags, records), strict=True):
                print(json.dumps(record | {"reward": round(float(reward), 5)}, ensure_ascii=False))
            return 0
        for record, found in zip(records, _scored(flags, [record["text"] for record in records]), strict=True):
            print(json.dumps(record | _json(found), ensure_ascii=False))
        return 0
    texts = {name: paths.text(name, name="the file") for name in flags.files} or {"standard input": cli.standard_input(NO_TEXT)}
    found = _scored(flags, list(texts.values()))
    _show(list(texts), found)
    return 0


def _scored(flags: Any, texts: Sequence[str]) -> list[Any]:
    """The `TextScore` of each text under the model of --from."""
    cli.start_jax(flags.source)
    import jax

    from lm import saved
    from lm.evaluation import text_scores
    from lm.evaluation.span_scores import check_head
    from lm.models import quantized
    from lm.models.positions import learned
    from lm.models.transformer import Transformer
    from lm.objectives import usual

    source = saved.open(flags.source)
    check_head(source)
    architecture = source.model.architecture
    objective = source.run.objective if source.run else usual(architecture)
    stack = "encoder" if architecture == "encoder" else "decoder"
    row = getattr(source.run.data, f"{stack}_length") if source.run else None
    length = flags.length or min(row or LENGTH, learned(source.model, stack) or row or LENGTH)
    settings: dict[str, Any] = dict(length=length, stride=flags.stride or max(1, length // 2), kind=flags.kind)
    model = Transformer(source.model)
    params = quantized.weights(model, source.params(device=jax.local_devices()[0]), flags.weights)
    if flags.weights is not None:
        print(f"weights in {flags.weights}: {quantized.size(params) / 1e6:,.2f} MB", file=sys.stderr)
    about = model, params, objective, source.tokenizer()
    return text_scores.score(*about, texts, batch_size=flags.batch_size, **settings)


def _rewards(flags: Any, records: Sequence[dict[str, Any]]) -> Any:
    """The reward of each completion, float32 [n]. UserError, which names the record, for one that has none."""
    cli.start_jax(flags.source)
    from lm import saved
    from lm.evaluation.rewards import Rewarder

    return Rewarder(saved.open(flags.source), batch_size=flags.batch_size).of_json(records)


def _order(flags: Any) -> int:
    from lm.evaluation import text_scores  # imports jax

    records = _lines(f"--nbest={flags.nbest}", paths.text(flags.nbest, name="--nbest"), "utterance", "text", score=(int, float))
    fields = ("utterance", "text", "score", "reference")
    hypotheses = [text_scores.Hypothesis(**{f: r[f] for f in fields if f in r}) for r in records]
    log_probs = [-found.nats for found in _scored(flags, [h.text for h in hypotheses])]
    names = list(dict.fromkeys(h.utterance for h in hypotheses))
    known = all(h.reference is not None for h in hypotheses)
    if flags.weight is None and (not known or len(names) < 2):
        raise UserError("a weight is tuned on utterances with a reference, two or more: give these, or --weight=0.3")
    weight = text_scores.tuned(hypotheses, log_probs, names[::2]) if flags.weight is None else flags.weight
    ordered = text_scores.order(hypotheses, log_probs, weight)
    for name in names:
        for place, i in enumerate(ordered[name]):
            print(json.dumps(records[i] | {"log_prob": round(log_probs[i], 4), "place": place}, ensure_ascii=False))
    print(f"weight {weight:.4g}", file=sys.stderr)
    if known:
        asked = names if flags.weight is not None else names[1::2]
        before = text_scores.order(hypotheses, log_probs, 0.0)
        for label, some in (("by the recogniser alone", before), ("with the model", ordered)):
            wrong, words = text_scores.errors(hypotheses, (some[name][0] for name in asked))
            print(f"{label}: {wrong} word errors of {words} words ({wrong / max(words, 1):.2%})", file=sys.stderr)
        _show_gain(hypotheses, *([some[name][0] for name in asked] for some in (before, ordered)))
    return 0


def _show_gain(hypotheses: Sequence[Any], before: list[int], after: list[int]) -> None:
    """Prints what the order saves, with its interval over utterances, and some of the sentences that it mends."""
    from lm.evaluation.reranking import gain

    found = gain(hypotheses, before, after)
    ends = f"95 % interval {found.saved.low:.2%} to {found.saved.high:.2%}"
    print(f"saved: {found.saved.value:.2%} of the words ({ends})", file=sys.stderr)
    print(f"mended: {len(found.mended)} utterances; made worse: {found.broken}", file=sys.stderr)
    for _, heard, mended in found.mended[:MENDED]:
        print(f"  {printable(heard)} -> {printable(mended)}", file=sys.stderr)


def _json(found: Any) -> dict[str, Any]:
    return {
        "nats": round(found.nats, 4),
        "tokens": found.tokens,
        "bytes": found.bytes,
        "bits_per_byte": round(found.bits_per_byte, 5),
        "perplexity": round(found.perplexity, 4),
    }


def _lines(where: str, text: str, *fields: str, **kinds: Any) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a text, which have these fields: texts, or what `kinds` says."""
    out = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            record = untrusted.parse_json(line.encode(), f"{where}, line {number}")
            for name, kind in {**dict.fromkeys(fields, str), **kinds}.items():
                if not isinstance(record.get(name), kind) or isinstance(record[name], bool):
                    what = "text" if kind is str else "number"
                    raise UserError(f"{where}, line {number} has no {what} as {name!r}: {{{name!r}: ...}}")
            out.append(record)
    if not out:
        raise UserError(f"{where} is empty: give a JSON object a line")
    return out


def _show(names: Sequence[str], found: Sequence[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    one = found[0]
    table = Table(caption=f"probability: {'yes' if one.normalised else 'NO'}; {one.note}")
    kind = "" if one.normalised else "pseudo-"
    for name in ("text", "tokens", "bytes", "nats", "bits per byte", f"{kind}perplexity"):
        table.add_column(name, justify="left" if name == "text" else "right")
    for name, of in zip(names, found, strict=True):
        cells = (f"{of.tokens:,}", f"{of.bytes:,}", f"{of.nats:,.2f}", f"{of.bits_per_byte:.4f}", f"{of.perplexity:.3f}")
        table.add_row(name, *cells)
    Console().print(table)


def parser() -> cli.Parser:
    p = cli.parser("lm.score", __doc__)
    p.add_argument("files", nargs="*", metavar="FILE", help="texts in UTF-8, a file each; none: standard input is one")
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a run, or a converted model")
    p.add_argument("--jsonl", action="store_true", help="read texts and write scores as JSON lines")
    p.add_argument("--nbest", metavar="FILE", help="JSON lines of hypotheses to order")
    p.add_argument("--weight", hint=NonNegative, help="with --nbest: of the text's log-probability; tuned if not given")
    p.add_argument("--kind", help="suffix (left to right) or pll; default: what the model can be asked for")
    p.add_argument("--length", hint=Count, help="tokens of a window; default: those of the run's rows, or 512")
    p.add_argument("--stride", hint=Count, help="tokens that a window predicts; default: half of --length")
    p.add_argument("--batch_size", hint=Count, default=8, help="windows at a time")
    p.add_argument("--weights", choices=get_args(Weights), help="of the model, in fewer bits (default: as they are saved)")
    return p


if __name__ == "__main__":
    cli.enter(main)
