"""Labels texts or answers questions with a fine-tuned run, as it was trained to.

  python -m lm.predict --from=runs/labels "free money now" "see you at six"
  python -m lm.predict --from=runs/labels --jsonl=new.jsonl > labelled.jsonl
  cat new.jsonl | python -m lm.predict --from=runs/labels --jsonl=- --all

For each text a line: its class, the class's probability and the text; or the answer and the question, of a run that writes
answers (recipe.how=text). With --jsonl, a file of lines {"text": "..."} or {"question": "...", "context": "..."} or standard
input ("-"), the lines come back with "predicted" and "probability", and with --all the "probabilities" of all classes. Where
lines have their "label" or "answer", the share that is right goes to standard error, with its 95 % interval.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from lm import cli, paths, untrusted
from lm.config.ranges import Count
from lm.errors import UserError, printable

NO_TEXT = "there is no text: give texts, or --jsonl=FILE"


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if bool(flags.texts) == (flags.jsonl is not None):
        raise UserError(f"texts and --jsonl are two places of texts: give one of them ({NO_TEXT})")
    records = [{"text": text} for text in flags.texts] or _of_lines(flags.jsonl)
    texts = [_given(record, f"{flags.jsonl}, record {number}") for number, record in enumerate(records, 1)]
    cli.start_jax(flags.source)
    from lm import saved
    from lm.evaluation.predictions import Predictor

    predictor = Predictor(saved.open(flags.source), min(flags.batch_size, len(texts)))
    found = []
    for first in range(0, len(texts), 64 * flags.batch_size):
        part = slice(first, first + 64 * flags.batch_size)
        for record, text, one in zip(records[part], texts[part], predictor(texts[part]), strict=True):
            found.append(one.text)
            probability = one.probabilities.get(one.text)
            if flags.jsonl is None:
                share = [] if probability is None else [f"{probability:.3f}"]
                print("\t".join([printable(one.text), *share, printable(text)]))
                continue
            more: dict[str, Any] = {"predicted": one.text}
            if probability is not None:
                more["probability"] = round(probability, 6)
            if flags.all and one.probabilities:
                more["probabilities"] = {name: round(value, 6) for name, value in one.probabilities.items()}
            print(json.dumps(record | more, ensure_ascii=False), flush=True)
    _compare(records, found, classes=predictor.classes is not None)
    return 0


def _of_lines(file: str) -> list[dict[str, Any]]:
    text = cli.standard_input(NO_TEXT) if file == "-" else paths.text(file, name="--jsonl")
    records = [record for _, record in untrusted.parse_lines(text, file)]
    if not records:
        raise UserError(NO_TEXT)
    return records


def _given(record: dict[str, Any], where: str) -> str:
    """What the model reads of a record, as in training: its text; or its context and its question."""
    from lm.data.records import Pair

    text, context = record.get("text", record.get("question")), "" if "text" in record else record.get("context") or ""
    if not isinstance(text, str) or not isinstance(context, str):
        raise UserError(f"{where} has no text: give {{'text': '...'}}, or {{'question': '...', 'context': '...'}}")
    return Pair(text, "", context).given


def _compare(records: Sequence[dict[str, Any]], found: Sequence[str], *, classes: bool) -> None:
    """Says how many predictions are right, of the records that have their answer. Answers in words are compared as the run's
    held-out ones are, without case and punctuation."""
    import numpy as np

    from lm.evaluation.findings import interval_ends
    from lm.evaluation.qa_metrics import exact

    key, equal = "label" if any("label" in record for record in records) else "answer", str.__eq__ if classes else exact
    pairs = zip(records, found, strict=True)
    same = [float(equal(text, str(record[key]))) for record, text in pairs if record.get(key) is not None]
    if same:
        ends = interval_ends({"right": np.array(same)}).get("right")
        words = f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
        print(f"{np.mean(same):.3f} of {len(same):,} right{words}", file=sys.stderr)


def parser() -> cli.Parser:
    p = cli.parser("lm.predict", __doc__)
    p.add_argument("texts", nargs="*", metavar="TEXT", help="texts or questions")
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a fine-tuned run")
    p.add_argument("--jsonl", metavar="FILE", help="JSON lines of texts or questions; -: standard input")
    p.add_argument("--all", action="store_true", help="with --jsonl, the probabilities of all classes")
    p.add_argument("--batch_size", hint=Count, default=32, help="texts at a time")
    return p


if __name__ == "__main__":
    cli.enter(main)
