"""How near written texts come to references: BLEU, chrF, ROUGE and exact match, with intervals, for
`python -m lm.evaluate --hypotheses=FILE`."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lm import atomic, paths, untrusted
from lm.errors import UserError
from lm.evaluation.findings import DRAWS, bootstrap
from lm.evaluation.qa_metrics import exact

ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Answer:
    """A text that was written, and what is right."""

    text: str
    references: tuple[str, ...]


def read(path: str) -> list[Answer]:
    """The lines {"hypothesis" or "text": "...", "references": ["..."]} of a file. UserError names the line that is wrong."""
    found = []
    for number, line in enumerate(paths.text(path, name="--hypotheses").split("\n"), 1):
        if not line.strip():
            continue
        where = f"--hypotheses={path}, line {number}"
        record = untrusted.parse_json(line.encode("utf-8", "surrogatepass"), where)
        text, right = record.get("hypothesis", record.get("text")), record.get("references", record.get("reference"))
        right = [right] if isinstance(right, str) else right
        if not isinstance(text, str):
            raise UserError(f'{where} has no text: {{"hypothesis": "...", "references": ["..."]}}')
        if not isinstance(right, list) or not right or not all(isinstance(one, str) for one in right):
            raise UserError(f'{where} has no references: {{"hypothesis": "...", "references": ["..."]}}')
        found.append(Answer(text, tuple(right)))
    if not found:
        raise UserError(
            f'--hypotheses={path} is empty: give a line {{"hypothesis": "...", "references": ["..."]}} for each text'
        )
    return found


@dataclass(frozen=True)
class Metric:
    """A figure of all texts, its interval of 95 %, and how it was computed."""

    value: float
    low: float
    high: float
    signature: str


def score(answers: Sequence[Answer]) -> dict[str, Metric]:
    """BLEU and chrF of the corpus (sacrebleu, arXiv 1804.08771), ROUGE's F-measures (rouge-score) and exact match, all from 0
    to 100. Of several references ROUGE and exact match take the best."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise UserError(f"BLEU, chrF and ROUGE need their libraries ({error}): pip install -e '.[harness]'") from None
    texts = [answer.text for answer in answers]
    most = max(len(answer.references) for answer in answers)
    streams: Any = [[(answer.references[k : k + 1] or (None,))[0] for answer in answers] for k in range(most)]
    found = {}
    for metric in (BLEU(), CHRF()):
        value = metric.corpus_score(texts, streams)
        # Its own bootstrap fails where a draw scores 0 (sacrebleu 2.6.0); the statistics of each text are summed as it does.
        of_each = metric._extract_corpus_statistics(texts, streams)
        of_some = lambda chosen, m=metric, s=of_each: float(m._aggregate_and_compute([s[i] for i in chosen]).score)
        signature = f"{metric.get_signature()}, bootstrap {DRAWS}"
        ends = bootstrap(of_some, len(texts))
        found[value.name] = Metric(float(value.score), ends.low, ends.high, signature)
    scorer, version = RougeScorer(ROUGE, use_stemmer=False), importlib.metadata.version("rouge-score")
    best = [scorer.score_multi(answer.references, answer.text) for answer in answers]
    for name in ROUGE:
        values = np.array([100 * one[name].fmeasure for one in best])
        found[name] = _mean(values, f"rouge-score {version}, no stemmer, best reference, bootstrap {DRAWS}")
    right = np.array([100.0 * any(exact(answer.text, one) for one in answer.references) for answer in answers])
    found["exact"] = _mean(right, f"without case, punctuation and articles, bootstrap {DRAWS}")
    return found


def _mean(values: np.ndarray, signature: str) -> Metric:
    found = bootstrap(lambda chosen: float(values[chosen].mean()), len(values))
    return Metric(found.value, found.low, found.high, signature)


def evaluate(path: str, *, out: str | None = None) -> dict[str, Any]:
    """Scores the texts in a file, writes the result to `out` if given, and returns it."""
    target = None if out is None else paths.local(out, name="--out")
    answers = read(path)
    result = {
        "hypotheses": path,
        "count": len(answers),
        "metrics": {name: asdict(metric) for name, metric in score(answers).items()},
    }
    if target is not None:
        atomic.write_json(target, result)
    return result


def show(result: dict[str, Any]) -> None:
    """Prints the figures as a table."""
    table = Table(title=f"{result['count']} texts of {result['hypotheses']}")
    for name in ("metric", "value", "95 %", "signature"):
        table.add_column(name, justify="left" if name in ("metric", "signature") else "right", overflow="fold")
    for name, m in result["metrics"].items():
        table.add_row(name, f"{m['value']:.2f}", f"{m['low']:.2f} to {m['high']:.2f}", m["signature"])
    Console().print(table)
