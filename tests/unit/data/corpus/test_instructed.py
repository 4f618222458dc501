"""Tasks told in words: their answers are what the words say, and what is held out is in no training record."""

import functools
import itertools
import re
from functools import cache

import pytest

from lm.data.corpus import generated, instructed

# The operations once more, on texts.
SAYS = {
    "copy it": lambda s: s,
    "turn it round": lambda s: "".join(reversed(s)),
    "add one": lambda s: s.translate(str.maketrans("abcdefgh", "bcdefgha")),
    "swap the halves": lambda s: s[2:] + s[:2],
    "swap the ends": lambda s: s[3] + s[1:3] + s[0],
    "repeat the first": lambda s: 4 * s[0],
}


@cache
def asked(name):
    """(operations, frame of words, letters, answer) of each record."""
    out = []
    for pair in generated.load(name, "pair"):
        words, _, letters = pair.question.rpartition(" : ")
        found = re.findall("|".join(SAYS), words)
        out.append((tuple(found), re.sub("|".join(SAYS), "_", words), letters.replace(" ", ""), pair.answer.replace(" ", "")))
    return out


@pytest.mark.parametrize("name", ["told", "told_phrased", "told_unseen"])
def test_an_answer_is_what_the_words_say(name):
    for operations, _, letters, answer in asked(name):
        for said in operations:
            letters = SAYS[said](letters)
        assert operations and answer == letters


def test_what_is_held_out_is_in_no_training_record():
    told, phrased, unseen = (asked(name) for name in ("told", "told_phrased", "told_unseen"))
    tasks = {record[0] for record in told}
    assert {record[0] for record in unseen} == set(instructed.UNSEEN) and not tasks & set(instructed.UNSEEN)
    every = ["".join(x) for x in itertools.product("abcd", repeat=4)]
    answers = lambda task: [functools.reduce(lambda x, said: SAYS[said](x), task, x) for x in every]
    known = {tuple(answers(task)) for task in tasks}
    assert not known & {tuple(answers(task)) for task in instructed.UNSEEN}  # nor is what it computes
    assert {said for task in instructed.UNSEEN for said in task} <= {task[0] for task in tasks if len(task) == 1}
    assert {record[0] for record in phrased} <= tasks and {record[1] for record in phrased} == {"now _ then _"}
    assert {record[1] for record in told} == {"_", "please _", "now _", "first _ then _", "please _ then _"}
    assert len(told) == instructed.TRAINED and len(unseen) == len(phrased) == instructed.ASKED


@pytest.mark.parametrize("name", ["", "_unseen"])
def test_untold_is_the_same_without_the_words(name):
    told, untold = asked(f"told{name}"), asked(f"untold{name}")
    assert [record[2:] for record in told] == [record[2:] for record in untold]
    assert {record[:2] for record in untold} == {((), "")}
