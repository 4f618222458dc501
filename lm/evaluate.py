"""Scores a model on held-out spans of text, so that models of different architectures and objectives can be compared.

  python -m lm.evaluate --from=runs/quickstart
  python -m lm.evaluate --from=runs/quickstart --kinds=suffix --spans=64
  python -m lm.evaluate --from=gpt2_converted --config=configs/quickstart.py
  python -m lm.evaluate --from=runs/quickstart --items=capitals.jsonl
  python -m lm.evaluate --from=runs/encoder_masked_diffusion --bound=64

  suffix   log-probability of the span given the text left of it
  infill   log-probability of the span given the text on both sides
  pll      sum of log-probabilities of its tokens, each given all others

Prints a table and writes it to FROM/span_scores.json, with the nats of each span. Spans are drawn from the run's own data;
--config gives other data and, for a converted model, its objective. Models with the same data and tokenizer get the same spans
(the digest shows it), so scores of the same kind can be compared. Where the table says NO under probability, a score is not a
normalized probability of the span, and its note says why.

--bound scores N held-out windows under a model of masked diffusion: the likelihood bound in bits per byte, by the sum over the
number of masks and by sampling, and writes FROM/bound.json.

--items scores items of a file in their stead, a line {"left": "...", "target": "...", "right": "..."} each, and writes
FROM/item_scores.json with the values of each item. An empty right side asks for a suffix, otherwise for an infill.
"""

from typing import Any

from lm import cli
from lm.config.ranges import Count, Seed
from lm.errors import UserError

SPANS = {"kinds": "suffix,infill,pll", "spans": 256, "left": 64, "span": 16, "right": 32, "seed": 0}  # flags, defaults
DRAWS = 2
__path__: list[str] = []  # imports of submodules that it had as a package reach `lm.moved`


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if flags.overrides and flags.config is None:
        raise UserError(f"--config.{next(iter(flags.overrides))} changes a --config, and none is given; add --config=FILE")
    run = None if flags.config is None else cli.load(flags)
    cli.start_jax()
    from lm.evaluation import bound_scores, item_scores, span_scores

    settings: dict[str, Any] = dict(batch_size=flags.batch_size, out=flags.out)
    if flags.bound is None and flags.draws != DRAWS:
        raise UserError(f"--draws={flags.draws} is of --bound, and that is not given: add --bound=N, or leave it out")
    if flags.items is not None:
        _check_alone(flags, "items")
        item_scores.show(item_scores.evaluate(flags.source, run, path=flags.items, **settings))
    elif flags.bound is not None:
        _check_alone(flags, "bound", "seed")
        settings |= dict(windows=flags.bound, draws=flags.draws, seed=flags.seed)
        bound_scores.show(bound_scores.evaluate(flags.source, run, **settings))
    else:
        settings |= {name: getattr(flags, name) for name in SPANS}
        span_scores.show(span_scores.evaluate(flags.source, run, **settings))
    return 0


def _check_alone(flags: Any, name: str, *used: str) -> None:
    """UserError if a flag is given that says what else to score than --NAME does, but for those that it uses."""
    for other, default in {**SPANS, "items": None, "bound": None}.items():
        if other not in (name, *used) and getattr(flags, other) != default:
            value = getattr(flags, name)
            raise UserError(f"--{name}={value} scores no spans, and --{other} asks for something else: give one of them")


def parser() -> cli.Parser:
    p = cli.parser("lm.evaluate", __doc__, config=False)
    p.renamed = {"--workdir": "--from"}
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a run, or a converted model")
    p.add_argument("--items", metavar="FILE", help="JSON lines of items to score, and no spans")
    p.add_argument("--bound", hint=Count, metavar="N", help="held-out windows whose bound is computed, and no spans")
    p.add_argument("--draws", hint=Count, default=DRAWS, help="with --bound: sets of masks for each number of masks")
    p.add_argument("--out", metavar="FILE", help="file to write; default FROM/span_scores.json, item_scores.json or bound.json")
    p.add_argument("--kinds", default=SPANS["kinds"], help="which scores, separated by commas (default all)")
    p.add_argument("--spans", hint=Count, default=SPANS["spans"], help="number of spans")
    p.add_argument("--left", hint=Count, default=SPANS["left"], help="tokens left of a span")
    p.add_argument("--span", hint=Count, default=SPANS["span"], help="tokens in a span")
    p.add_argument("--right", hint=Count, default=SPANS["right"], help="tokens right of a span")
    p.add_argument("--seed", hint=Seed, default=SPANS["seed"], help="seed that spans are drawn with")
    p.add_argument("--batch_size", hint=Count, default=64, help="rows in a batch")
    return p


if __name__ == "__main__":
    cli.enter(main)
