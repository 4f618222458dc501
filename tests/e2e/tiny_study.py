"""A study of seconds, executed: `python tests/e2e/tiny_study.py WORKDIR CORPUS`. For test_study.py."""

import sys
from dataclasses import replace
from pathlib import Path

from experiments.run import execute
from experiments.study import Cell, Metric, Relation, Study
from lm import config, startup
from lm.config import resolve

HERE = Path(__file__).parent


def study(corpus: Path, *, match="flops", budget=3e9, seeds=1) -> Study:
    def run(what: str) -> config.Run:
        paths = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache"}
        made = resolve.load(f"{HERE}/tiny.py:{what}", paths)
        return replace(made, log=replace(made.log, samples=()), evaluate=config.Evaluate(every=10, rows=8))

    cells = {
        "later": Cell("causal, then prefix", run("decoder.prefix"), start="causal", share=0.5),
        "causal": Cell("causal", run("decoder.causal")),
        "spans": Cell("spans", run("encoder_decoder.span_corruption")),
    }
    relations = (Relation("causal > spans", "heldout/accuracy", "causal", "spans"),)
    metrics = (Metric("heldout/accuracy", "accuracy"),)
    return Study("tiny", "A tiny study", cells, seeds, metrics, relations, match, budget)


if __name__ == "__main__":
    startup.after_jax()
    workdir, corpus = map(Path, sys.argv[1:])
    execute(study(corpus), workdir)
