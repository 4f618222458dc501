"""A base model, its fine-tuning on a few worked answers, and learning from rewards: what each is worth, and how long wrong
answers become (arXiv 2501.12948, 2503.20783)."""

from functools import partial

import numpy as np

from experiments import tuned
from experiments.languages import totals
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config
from lm.recipes.graders import number
from lm.saved import Saved

RIGHT, DRAWN, WRONG, LINES = "asked/right", "asked/right_drawn", "asked/wrong_tokens", "lines/nats"
KNOWN = "heldout/sums/loss"
BRIEF = 9  # steps on results alone that cost as much as four with their working
METHODS = {"grpo": "GRPO", "dr_grpo": "Dr. GRPO"}


def study(seeds: int = 3, base: int = 450, tuning: int = 260, steps: int = 100) -> Study:
    language = totals.language()
    sizes = dict(length=totals.LENGTH, answer=totals.ANSWER)
    pretrain = tuned.base_of(language, base)
    heldout = language.items["heldout_asked"]
    sft = lambda n: tuned.run(config.Finetune("text", **sizes, compare="symbols"), language.items["shown"], heldout, steps=n)
    brief = tuned.run(
        config.Finetune("text", **sizes, compare="symbols"),
        language.items["short"],
        language.items["heldout_short"],
        steps=BRIEF * tuning // 4,
    )
    graders = {"right": config.Grader("number")}

    def policy(method: str) -> config.Run:
        recipe = config.Policy(method, graders, group=8, kl_weight=0.01, **sizes)
        return tuned.run(recipe, language.items["asked"], heldout, steps=steps, batch_size=128, learning_rate=1e-4)

    cells = {
        "base": Cell("base model", pretrain, measure=asked),
        "sft": Cell("fine-tuned", sft(tuning), start="base", floor="base", measure=asked),
        "answers": Cell("fine-tuned on results alone", brief, start="base", floor="base", measure=asked),
        "longer": Cell("fine-tuned for longer", sft(tuning // 2), start="sft", floor="base", measure=asked),
    }
    for method, label in METHODS.items():
        cells[method] = Cell(label, policy(method), start="sft", floor="base", measure=asked)
    relations = (
        Relation("fine-tuned > base", RIGHT, "sft", "base", source="arXiv 2203.02155"),
        Relation("GRPO > fine-tuned", RIGHT, "grpo", "sft", source="arXiv 2402.03300"),
        Relation("with their working > results alone, at equal FLOPs", RIGHT, "sft", "answers", source="arXiv 2306.02707"),
        Relation("wrong answers of Dr. GRPO are shorter than GRPO's", WRONG, "dr_grpo", "grpo", source="arXiv 2503.20783"),
        Relation("GRPO > fine-tuned for longer", RIGHT, "grpo", "longer", primary=False),
        Relation(
            "GRPO forgets less than fine-tuning for longer", LINES, "grpo", "longer", primary=False, source="arXiv 2509.04259"
        ),
    )
    metrics = (
        Metric(RIGHT, "right results, likeliest answers"),
        Metric(DRAWN, "right results, drawn answers"),
        Metric(WRONG, "length of wrong answers", higher=False, unit="tokens"),
        Metric(LINES, "other lines, which the base model read", higher=False, unit="nats a word"),
    )
    gate = Gate("sums of two numbers are known", KNOWN, at_most=1.1, cells=("base",))
    return Study("rewards", "From a base model to rewards", cells, seeds, metrics, relations, gates=(gate,))


def asked(trained: Saved) -> Measured:
    """RIGHT and DRAWN, whether the last number of an answer is the result, greedy and in two draws; WRONG, the mean number of
    tokens of the wrong ones among these draws."""
    records = tuned.pairs(totals.language().items["heldout_asked"])
    ask = partial(tuned.answers, trained, records, length=totals.LENGTH, answer=totals.ANSWER)
    right = lambda answer, record: number(answer.text) == number(record.answer)
    greedy = np.array([float(right(a, r)) for (a,), r in zip(ask(), records, strict=True)])
    drawn = [(a, right(a, r)) for of, r in zip(ask(samples=2, temperature=1.0), records, strict=True) for a in of]
    hits = np.array([float(hit) for _, hit in drawn])
    wrong = [answer.tokens for answer, hit in drawn if not hit]
    values = {
        RIGHT: greedy,
        DRAWN: hits.reshape(-1, 2).mean(1),
        LINES: tuned.forgotten(trained, totals.language().items["lines"]),
    }
    means = {name: float(each.mean()) for name, each in values.items()}
    return Measured(means | ({WRONG: float(np.mean(wrong))} if wrong else {}), values)
