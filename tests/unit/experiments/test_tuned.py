"""The studies of tuning: their languages, what the best of n is worth, and the points of a policy on its way."""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.languages import parity, tastes, totals
from experiments.overoptimisation import study as overoptimisation
from experiments.tuned import pairs
from lm.recipes.graders import number


def test_the_working_of_a_sum_is_right_line_by_line():
    assert totals.worked((7, 5, 9)) == "7 + 5 = 1 2 ; 1 2 + 9 = 2 1" and totals.result((7, 5, 9)) == "2 1"
    made = totals.language()
    asked, short = pairs(made.items["asked"]), pairs(made.items["short"])
    for record in asked[:300]:
        steps = [step.replace(" ", "").replace("=", "==") for step in record.answer.split(";")]
        assert all(eval(step) for step in steps)  # noqa: S307  digits, + and == alone
        wanted = sum(map(int, re.findall(r"\d", record.question)))
        assert number(record.answer) == wanted
    assert [r.question for r in short] == [r.question for r in asked[: len(short)]]
    assert all(number(a.answer) == number(b.answer) for a, b in zip(short, asked, strict=False))
    unseen = {r.question for r in pairs(made.items["heldout_asked"])}
    assert len(unseen) == 400 and not unseen & {r.question for r in asked}
    longest = max(len(r.answer.split()) for r in asked)
    assert longest < totals.ANSWER and max(len(r.question.split()) for r in asked) <= totals.LENGTH - 2


def test_lines_that_are_forgotten_are_in_no_text():
    folder = Path(totals.language().folder).expanduser()
    texts = {json.loads(line)["text"] for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()}
    lines = [json.loads(line)["target"] for line in (folder / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 100 and not texts & set(lines)


def test_gold_rewards_have_mean_0_and_deviation_1_over_lines_and_are_what_they_say():
    rng = np.random.default_rng(7)
    lines = [tastes.line(f"go {tastes.WORDS[i % 16]}", rng) for i in range(2000)]
    gold = tastes.gold(lines)
    assert abs(gold.mean()) < 0.1 and gold.std() == pytest.approx(1, abs=0.05)
    words, neighbours = tastes._taste()
    mean, deviation = tastes._scale()
    ids = [int(word[1:]) for word in lines[0].split()]
    raw = words[ids].sum() + neighbours[ids[:-1], ids[1:]].sum() - tastes.DULL * (8 - len(set(ids))) ** 2
    assert gold[0] == pytest.approx((raw - mean) / deviation)
    whole, more, unknown = tastes.gold([lines[0], f"{lines[0]} w1", f"{lines[0]} go"])
    assert more == pytest.approx(whole - 1) and unknown == pytest.approx(whole - 1)  # a word too many, and no word of a line


def test_judgements_follow_the_gold_reward():
    lines = Path(tastes.language().items["pairs3000"]).expanduser().read_text(encoding="utf-8").splitlines()
    judged = [json.loads(line) for line in lines]
    ahead = tastes.gold([r["chosen"] for r in judged]) - tastes.gold([r["rejected"] for r in judged])
    agreed = 1 / (1 + np.exp(-tastes.SHARP * np.abs(ahead)))  # the probability that each is as its gold rewards say
    error = 3 * math.sqrt((agreed * (1 - agreed)).sum()) / len(judged)
    assert (ahead > 0).mean() == pytest.approx(agreed.mean(), abs=error)


def test_the_best_of_n_is_the_mean_over_all_subsets(monkeypatch):
    monkeypatch.setattr(overoptimisation, "BEST", (1, 2, 3, 5))
    rng = np.random.default_rng(0)
    gold, proxy = rng.normal(size=(2, 6))
    found = overoptimisation._best(gold, proxy)
    for n, value in zip((1, 2, 3, 5), found, strict=True):
        every = [gold[max(chosen, key=lambda i: proxy[i])] for chosen in itertools.combinations(range(6), n)]
        assert value == pytest.approx(np.mean(every))


def test_peaks_are_chosen_on_one_half_of_the_prompts_and_measured_on_the_other():
    half = overoptimisation.ASKED
    gold = np.zeros((2 * half, 3))
    gold[:half, 1], gold[half:, 1], gold[half:, 2] = 5.0, 2.0, 9.0
    found = overoptimisation._measured("policy", (0, 20, 40), gold, gold, gold).metrics
    assert found["policy/peak"] == 20 and found["policy/20/gold"] == 2.0 and found["policy/40/gold"] == 9.0
    best = overoptimisation._measured("best", (1, 256), gold[:, :2], gold[:, :2], gold[:, :2]).metrics
    made = overoptimisation.points({"policy150": {0: {"metrics": found}}, "reward150": {0: {"metrics": best}}})
    assert made["peak150"][0]["metrics"] == {"gold": 2.0, "proxy": 2.0, "kl": 2.0}
    assert made["best150"][0]["metrics"]["gold"] == made["bestpeak150"][0]["metrics"]["gold"] == 2.0


def test_each_way_to_teach_parity_gives_right_answers():
    items = parity.language().items
    patterns = {record.question: record.answer for record in pairs(items["pattern"])}
    for way in ("one", "own"):
        assert all(re.fullmatch(patterns[r.question], r.answer) for r in pairs(items[way]))
    assert {r.answer for r in pairs(items["one"])} == {"0", "1"} and len({r.answer for r in pairs(items["own"])}) == 10
    assert not {r.question for r in pairs(items["heldout_pattern"])} & set(patterns)
    before = {r.answer for r in pairs(items["before"]) if r.question in patterns}
    assert before == set("0123456789")
