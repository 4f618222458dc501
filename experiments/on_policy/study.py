"""A student that learns from its teacher at its own answers, and one that is fine-tuned on given ones (arXiv 2306.13649)."""

from functools import partial
from typing import Any

from experiments import tuned
from experiments.languages import totals
from experiments.rewards.study import DRAWN, KNOWN, LINES, RIGHT, asked
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config

SIZES: dict[str, Any] = dict(length=totals.LENGTH, answer=totals.ANSWER)
TEACHER = 0.8  # right results of the teacher, at least


def study(seeds: int = 5, base: int = 900, taught: int = 1000, begun: int = 300, steps: int = 240, given: int = 440) -> Study:
    language = totals.language()
    of = language.items

    text = config.Finetune("text", **SIZES, compare="symbols")
    sft = lambda file, count: tuned.run(text, of[file], of["heldout_short"], steps=count)
    recipe = config.OnPolicy(beta=1.0, teacher="unset", graders={"right": config.Grader("number")}, **SIZES)
    own = tuned.run(recipe, of["short"], of["heldout_short"], steps=steps)
    reads = {"recipe.teacher": "teacher"}
    cells = {
        "large": Cell("teacher, base model", tuned.base_of(language, base)),
        "teacher": Cell("teacher", sft("short", taught), start="large", measure=asked),
        "small": Cell("student, base model", tuned.base_of(language, base, layers=2)),
        "begun": Cell("student, fine-tuned a little", sft("short", begun), start="small", floor="small", measure=asked),
        "given": Cell("student, fine-tuned for longer", sft("short", given), start="begun", floor="small", measure=asked),
        "own": Cell("student, at its own answers", own, start="begun", floor="small", reads=reads, measure=asked),
    }
    source = "arXiv 2306.13649, figure 1"
    pair = partial(Relation, paired=True)  # each two cells go on from the same run
    relations = (
        pair("at its own answers > fine-tuned for longer, at equal FLOPs", RIGHT, "own", "given", source=source),
        pair("the same, of drawn answers", DRAWN, "own", "given", primary=False, source=source),
        pair("fine-tuned for longer > a little", RIGHT, "given", "begun", primary=False),
    )
    metrics = (
        Metric(RIGHT, "right results, likeliest answers"),
        Metric(DRAWN, "right results, drawn answers"),
        Metric(LINES, "other lines, which the base model read", higher=False, unit="nats a word"),
    )
    gates = (
        Gate("sums of two numbers are known", KNOWN, at_most=1.1, cells=("large", "small")),
        Gate("the teacher knows the answers", RIGHT, at_least=TEACHER, cells=("teacher",)),
    )
    return Study("on_policy", "A student's own answers (arXiv 2306.13649)", cells, seeds, metrics, relations, gates=gates)
