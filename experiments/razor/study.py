"""Rewards against fine-tuning at the same skill: which forgets less (arXiv 2509.04259)."""

import re
from dataclasses import replace
from typing import Any

import numpy as np

from experiments import small, tuned
from experiments.languages import parity
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config, saved
from lm.saved import Saved

RATE = 1e-3
NEW, LINES, MOVED = "new/right_drawn", "lines/nats", "new/moved"
SIZES: dict[str, Any] = dict(length=parity.LENGTH, answer=parity.ANSWER)


def study(seeds: int = 3, steps: int = 200) -> Study:
    language = parity.language()
    of = language.items
    text = config.Finetune("text", **SIZES, compare="symbols")
    before = tuned.run(text, of["before"], of["heldout_before"], steps=500, learning_rate=3e-3)
    model = small.model("decoder", width=64, layers=2, vocab_size=language.vocab_size)
    data = replace(before.data, tokenizer=config.Tokenizer("word", language.vocab_size))
    teach = lambda recipe, file: tuned.run(recipe, of[file], of["heldout_one"], steps=steps, batch_size=128, learning_rate=RATE)
    rewards = config.Policy("reinforce", {"parity": config.Grader("regex")}, advantage="mean", group=8, **SIZES)
    cells = {
        "before": Cell("before", replace(before, model=model, data=data), measure=asked),
        "one": Cell("fine-tuned, one answer of each parity", teach(text, "one"), start="before", measure=asked),
        "own": Cell("fine-tuned, right answers as the model gives them", teach(text, "own"), start="before", measure=asked),
        "rewards": Cell("rewards for any right answer", teach(rewards, "pattern"), start="before", measure=asked),
    }
    source = "arXiv 2509.04259, figures 2 and 3"
    relations = (
        Relation("rewards forget less than one answer of each parity", LINES, "rewards", "one", source=source),
        Relation("right answers of its own forget less than one of each parity", LINES, "own", "one", source=source),
        Relation("rewards move the answers less than one of each parity", MOVED, "rewards", "one", source=source),
        Relation("rewards forget less than right answers of its own", LINES, "rewards", "own", primary=False),
        Relation("the new skill is the same", NEW, "rewards", "one", "equivalent", 0.05, primary=False),
    )
    metrics = (
        Metric(LINES, "lines that it knew before", higher=False, unit="nats a word"),
        Metric(NEW, "right answers, drawn", lines={"chance": 0.5}),
        Metric(MOVED, "divergence of the answers from those before", higher=False, unit="nats"),
    )
    gate = Gate("the new task is learned", NEW, at_least=0.9, cells=("one", "own", "rewards"))
    return Study(
        "razor", "What rewards and fine-tuning forget (arXiv 2509.04259)", cells, seeds, metrics, relations, gates=(gate,)
    )


def asked(trained: Saved) -> Measured:
    """NEW: whether answers drawn to held-out numbers are right, 8 to each. LINES: nats a word of held-out lines. MOVED: the
    divergence from the model before, of the answers, estimated from those that are drawn."""
    items, assumed = parity.language().items, dict(SIZES)
    prompts, lines = tuned.pairs(items["heldout_pattern"]), tuned.pairs(items["lines"])
    drawn = tuned.answers(trained, prompts, samples=32, temperature=1.0, **assumed)
    right = [np.mean([bool(re.fullmatch(p.answer, a.text)) for a in of]) for p, of in zip(prompts, drawn, strict=True)]
    words = np.array([len(line.answer.split()) for line in lines])
    nats = -tuned.log_probs(trained, lines, **assumed) / words
    values = {NEW: np.array(right), LINES: nats}
    start = trained.run.train.init_from if trained.run else None
    if start is not None:
        values[MOVED] = tuned.moved(trained, saved.open(start), prompts, drawn, **assumed)
    return Measured({name: float(each.mean()) for name, each in values.items()}, values)
