"""Scores a model on held-out spans of text, so that models of different architectures and objectives can be compared.

  python -m lm.evaluate --from=runs/quickstart
  python -m lm.evaluate --from=runs/quickstart --kinds=suffix --spans=64
  python -m lm.evaluate --from=gpt2_converted --config=configs/quickstart.py
  python -m lm.evaluate --from=runs/quickstart --items=capitals.jsonl
  python -m lm.evaluate --from=runs/encoder_masked_diffusion --bound=64
  python -m lm.evaluate --from=D --kinds=memorisation,calibration
  python -m lm.evaluate --from=D --tasks=sotu_cloze,local_quartz --limit=200
  python -m lm.evaluate --hypotheses=answers.jsonl

  suffix   log-probability of the span given the text left of it
  infill   log-probability of the span given the text on both sides
  pll      sum of log-probabilities of its tokens, each given all others

Prints a table and writes it to FROM/span_scores.json, with the nats of each span. Spans are drawn from the run's own data;
--config gives other data and, for a converted model, its objective. Models with the same data and tokenizer get the same spans
(the digest shows it), so scores of the same kind can be compared. Where the table says NO under probability, a score is not a
normalized probability of the span, and its note says why.

Four other kinds say what a model got wrong, and are asked for by themselves: a table each, and report.html with pictures and
errors.json in FROM/errors or the folder --out. --spans is how many questions there are of each.

  memorisation  spans of the training text in samples; what a prefix extracts
  calibration   multiple choice: whether it is as sure as it is right
  bias          which of two sentences about groups of people is likelier
  unanswerable  answers to questions whose answer no text holds

Their floor is what the same measure finds where there is nothing. With calibration, --items gives questions of one's own, a
line {"left": "...", "choices": ["...", "..."], "answer": 0} each; a "right" may stand beside them.

--bound scores N held-out windows under a model of masked diffusion: the likelihood bound in bits per byte, by the sum over the
number of masks and by sampling, and writes FROM/bound.json.

--tasks asks the questions of tasks of the Language Model Evaluation Harness: those of lm/evaluation/tasks (sotu_cloze,
sotu_text, local_mmlu, local_social_iqa, local_quartz, local_human_eval), of a folder --tasks_path, or its own. Prints each
metric with an interval of 95 % and writes FROM/task_scores.json with every question and answer. local_human_eval runs what the
model writes, in a sandbox, and so needs --run_code.

--hypotheses compares written texts with references, a line {"hypothesis": "...", "references": ["..."]} each: BLEU, chrF, ROUGE
and exact match. It needs no model.

--items scores items of a file in their stead, a line {"left": "...", "target": "...", "right": "..."} each, and writes
FROM/item_scores.json with the values of each item. An empty right side asks for a suffix, otherwise for an infill.
"""

from collections.abc import Iterable
from typing import Any

from lm import cli
from lm.config.ranges import Count, Natural, Seed
from lm.errors import UserError

SPANS = {"kinds": "suffix,infill,pll", "spans": 256, "left": 64, "span": 16, "right": 32, "seed": 0}  # flags, defaults
TASKS = {"tasks_path": None, "limit": None, "fewshot": None, "new_tokens": None, "run_code": False}  # flags of --tasks
DRAWS = 2
__path__: list[str] = []  # imports of submodules that it had as a package reach `lm.moved`


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if flags.overrides and flags.config is None:
        raise UserError(f"--config.{next(iter(flags.overrides))} changes a --config, and none is given; add --config=FILE")
    run = None if flags.config is None else cli.load(flags)
    if flags.hypotheses is not None:
        return _compare(flags)
    if flags.source is None:
        raise UserError("--from is missing: give a run's workdir or a converted model, or --hypotheses=FILE")
    for name, default in TASKS.items():
        if flags.tasks is None and getattr(flags, name) != default:
            raise UserError(f"--{name} is of --tasks, and that is not given: add --tasks=NAME, or leave it out")
    cli.start_jax(flags.source)
    from lm.evaluation import bound_scores, item_scores, mistakes, span_scores, task_scores

    settings: dict[str, Any] = dict(batch_size=flags.batch_size, out=flags.out)
    if flags.bound is None and flags.draws != DRAWS:
        raise UserError(f"--draws={flags.draws} is of --bound, and that is not given: add --bound=N, or leave it out")
    if flags.tasks is not None:
        _check_alone(flags, "tasks")
        task_scores.show(task_scores.evaluate(flags.source, run, tasks=flags.tasks, **_of(flags, TASKS), **settings))
    elif kinds := mistakes.asked(flags.kinds):
        _check_alone(flags, "kinds", "items", "spans", "seed")
        settings |= dict(kinds=kinds, count=flags.spans, seed=flags.seed, items=flags.items)
        mistakes.show(*mistakes.evaluate(flags.source, run, **settings))
    elif flags.items is not None:
        _check_alone(flags, "items")
        item_scores.show(item_scores.evaluate(flags.source, run, path=flags.items, **settings))
    elif flags.bound is not None:
        _check_alone(flags, "bound", "seed")
        settings |= dict(windows=flags.bound, draws=flags.draws, seed=flags.seed)
        bound_scores.show(bound_scores.evaluate(flags.source, run, **settings))
    else:
        span_scores.show(span_scores.evaluate(flags.source, run, **settings, **_of(flags, SPANS)))
    return 0


def _compare(flags: Any) -> int:
    """--hypotheses: needs no model, and no jax."""
    from lm.evaluation import text_metrics

    _check_alone(flags, "hypotheses")
    if flags.source is not None:
        raise UserError(f"--hypotheses={flags.hypotheses} are texts that are written already: leave out --from")
    text_metrics.show(text_metrics.evaluate(flags.hypotheses, out=flags.out))
    return 0


def _of(flags: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(flags, name) for name in names}


def _check_alone(flags: Any, name: str, *used: str) -> None:
    """UserError if a flag is given that says what else to score than --NAME does, but for those that it uses."""
    for other, default in {**SPANS, **dict.fromkeys(("items", "bound", "tasks", "hypotheses"))}.items():
        if other not in (name, *used) and getattr(flags, other) != default:
            value = getattr(flags, name)
            raise UserError(f"--{name}={value} scores no spans, and --{other} asks for something else: give one of them")


def parser() -> cli.Parser:
    p = cli.parser("lm.evaluate", __doc__, config=False)
    p.renamed = {"--workdir": "--from"}
    p.add_argument("--from", dest="source", metavar="FOLDER", help="workdir of a run, or a converted model")
    p.add_argument("--tasks", metavar="NAME,...", help="tasks of the harness, and no spans")
    p.add_argument("--tasks_path", metavar="FOLDER", help="with --tasks: more task files")
    p.add_argument("--limit", hint=Count, metavar="N", help="with --tasks: the first N questions of each")
    p.add_argument("--fewshot", hint=Natural, metavar="N", help="with --tasks: answered examples before each question")
    p.add_argument("--new_tokens", hint=Count, metavar="N", help="with --tasks: written at most; default: what a task says")
    p.add_argument("--run_code", action="store_true", help="with --tasks: programs that the model writes may be run")
    p.add_argument("--hypotheses", metavar="FILE", help="JSON lines of texts to compare with references, and no model")
    p.add_argument("--items", metavar="FILE", help="JSON lines of items to score, and no spans")
    p.add_argument("--bound", hint=Count, metavar="N", help="held-out windows whose bound is computed, and no spans")
    p.add_argument("--draws", hint=Count, default=DRAWS, help="with --bound: sets of masks for each number of masks")
    p.add_argument("--out", metavar="FILE", help="file to write; default in FROM; of --hypotheses none")
    p.add_argument("--kinds", default=SPANS["kinds"], help="which scores, separated by commas (default suffix,infill,pll)")
    p.add_argument("--spans", hint=Count, default=SPANS["spans"], help="number of spans, or of questions of a kind")
    p.add_argument("--left", hint=Count, default=SPANS["left"], help="tokens left of a span")
    p.add_argument("--span", hint=Count, default=SPANS["span"], help="tokens in a span")
    p.add_argument("--right", hint=Count, default=SPANS["right"], help="tokens right of a span")
    p.add_argument("--seed", hint=Seed, default=SPANS["seed"], help="seed that spans are drawn with")
    p.add_argument("--batch_size", hint=Count, default=64, help="rows in a batch")
    return p


if __name__ == "__main__":
    cli.enter(main)
