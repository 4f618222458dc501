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


def study(seeds: int = 6, base: int = 450, tuning: int = 260, begun: int = 200, steps: int = 120) -> Study:
    language = totals.language()
    sizes = dict(length=totals.LENGTH, answer=totals.ANSWER)
    pretrain = tuned.base_of(language, base)
    heldout = {"shown": language.items["heldout_asked"], "short": language.items["heldout_short"]}
    text = config.Finetune("text", **sizes, compare="symbols")
    sft = lambda file, count: tuned.run(text, language.items[file], heldout[file], steps=count)
    graders = {"right": config.Grader("number")}

    def policy(method: str) -> config.Run:
        recipe = config.Policy(method, graders, group=8, kl_weight=0.01, **sizes)
        data = language.items["asked"], language.items["heldout_asked"]
        return tuned.run(recipe, *data, steps=steps, batch_size=256, learning_rate=3e-4)

    cells = {
        "base": Cell("base model", pretrain, measure=asked),
        "worked": Cell("fine-tuned on worked answers", sft("shown", tuning), start="base", floor="base", measure=asked),
        "answers": Cell("on results, as costly", sft("short", BRIEF * tuning // 4), start="base", floor="base", measure=asked),
        "begun": Cell("fine-tuned a little on results", sft("short", begun), start="base", floor="base", measure=asked),
        "longer": Cell("and for as long again", sft("short", begun), start="begun", floor="base", measure=asked),
    }
    for method, label in METHODS.items():
        cells[method] = Cell(label, policy(method), start="begun", floor="base", measure=asked)
    pair = partial(Relation, paired=True)  # each two cells go on from the same run
    relations = (
        pair("fine-tuned a little > base", RIGHT, "begun", "base", source="arXiv 2203.02155"),
        pair("GRPO > fine-tuned a little, drawn answers", DRAWN, "grpo", "begun", source="arXiv 2402.03300"),
        pair("with their working > results alone, at equal FLOPs", RIGHT, "worked", "answers", source="arXiv 2306.02707"),
        pair("wrong answers of Dr. GRPO are shorter than GRPO's", WRONG, "dr_grpo", "grpo", source="arXiv 2503.20783"),
        pair("GRPO > fine-tuned a little, likeliest answers", RIGHT, "grpo", "begun", primary=False),
        pair(
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
