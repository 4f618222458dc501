"""Tasks told in words from packages' files: what is asked and answered, splits that are the set's own, the config's mixture."""

import json
import re

import numpy as np
import pytest

from lm import config
from lm.config import resolve
from lm.data.corpus import packages, sources, told
from lm.data.corpus.prepare import prepare
from lm.data.examples import ExampleBuilder
from lm.data.record_rows import RecordRows
from lm.data.records import Pair
from lm.errors import UserError

CONFIG = "configs/life/told.py"


def bible(*texts):
    """A module as those of pythonbible's packages: all verses in one string, then where each starts and ends."""
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    table = lambda ats: "{\n" + "".join(f"        {1001001 + i}: {at},\n" for i, at in enumerate(ats)) + "    }"
    ends = [at + len(text) for at, text in zip(starts, texts, strict=False)]
    return f'bible = Bible(\n    """{" ".join(texts)}""",\n    {table(starts[:-1])},\n    {table(ends)},\n)\n'.encode()


def quartz(*asked):
    line = lambda question, a, b, ideal: {"input": [{}, {"content": f"{question}\n\n A: {a}\n B: {b}"}], "ideal": ideal}
    return "\n".join(json.dumps(line(*one)) for one in asked).encode()


@pytest.fixture
def registry(monkeypatch):
    """Packages whose files are small: forty records of each set."""
    n = range(40)
    snippets = "id\tsentiment\ttext\r\n" + "".join(f"{i}\t{i % 2 - 0.5}\tfilm {i}\r\n" for i in n)
    topics = [*packages.TOPICS][:4]
    raw = {
        "movieReviewSnippets_GroundTruth.txt": snippets.encode(),
        "question_labels.txt": "\n".join(f"{('HUM:x', 'LOC:x')[i % 2]} who {i} ?" for i in n).encode(),
        "sms-spam.csv": (",spam,text\n" + "".join(f"{i},{i % 2},message {i}\n" for i in n)).encode(),
        "summaries_en-us.json": json.dumps({f"{i}": {"extract": f"thing {i}", "topic": topics[i % 4]} for i in n}).encode(),
        "sarcasm/samples.jsonl": "\n".join(
            json.dumps({"input": [{}, {"content": f"area man {i}"}], "ideal": f"{i % 2}"}) for i in n
        ).encode(),
        "kjv/plain_text_readers_bible.py": bible(*(f"thou hast [the] {i}" for i in n)),
        "web/plain_text_readers_bible.py": bible(*(f"you  have the {i}" for i in n)),
        "quartz/samples.jsonl": quartz(*((f"will {i} grow", "it will", "no", "AB"[i % 2]) for i in n)),
    }
    member = lambda requirement, name, sha256, cache="": next(
        x for end, x in raw.items() if name.endswith(end) or end[:4] in name
    )
    monkeypatch.setattr(packages, "member", member)


def every(name):
    return [pair for split in told.load(name).values() for pair in split]


def test_what_is_asked_in_words_is_answered_by_the_record(registry):
    for name, truth in {
        "sentiment": lambda text: ("bad", "good")[int(text.split()[1]) % 2],
        "spam": lambda text: ("normal", "spam")[int(text.split()[1]) % 2],
        "sarcasm": lambda text: ("honest", "sarcastic")[int(text.split()[2]) % 2],
    }.items():
        kinds = set()
        for pair in every(name):
            words, text = pair.question.rsplit(" ? ", 1) if " ? " in pair.question else pair.question.split(" : ")
            if "yes or no" in words:
                said = truth(text) in words.split()
                assert pair.answer == ("yes" if said else "no")
            else:
                assert pair.answer == truth(text)
            kinds |= {("yes or no" in words, pair.answer)}
        assert {answer for whether, answer in kinds if whether} == {"yes", "no"} and len(kinds) == 4
    forms = {pair.question.split(" : ")[0]: pair for pair in every("verses")}
    assert len(forms) == 3
    for words, pair in forms.items():
        old, new = (pair.answer, pair.question) if "from new" in words else (pair.question, pair.answer)
        assert old.split()[-4:-1] == ["thou", "hast", "the"] and new.split()[-4:-1] == ["you", "have", "the"]
        assert old.split()[-1] == new.split()[-1]
    assert {pair.answer for pair in every("effects")} == {"it will", "no"}
    assert all(p.answer == ("it will", "no")[int(re.findall(r"will (\d+)", p.question)[0]) % 2] for p in every("effects"))


def test_splits_are_those_of_the_set_and_untold_is_the_same_without_words(registry):
    for name in told.FORMS:
        splits, untold = told.load(name), told.load(f"untold/{name}")
        assert sum(map(len, splits.values())) == 40 and len(splits["holdout"]) > 0
        for split, pairs in splits.items():
            assert [pair.answer for pair in pairs] == [pair.answer for pair in untold[split]]
            assert all(long.question.endswith(short.question) for long, short in zip(pairs, untold[split], strict=True))
            assert all(long.question != short.question for long, short in zip(pairs, untold[split], strict=True))
    labelled = packages.load("spam")
    text = lambda pair: pair.question.split(" ? ")[1]
    assert [*map(text, told.load("spam")["holdout"])] == [record.text for record in labelled["holdout"]]


def test_a_set_has_an_identity_and_unknown_ones_are_refused(registry):
    source = lambda path, format="pair": config.Source("package", path, format=format)
    marks = [sources.identity(source(*what)) for what in (("spam",), ("untold/spam",), ("verses",), ("spam", "labelled"))]
    assert all(a != b for i, a in enumerate(marks) for b in marks[:i])
    for path in ("verse", "untold/verse"):
        with pytest.raises(UserError, match="no set 'verse' that is told in words; did you mean 'verses'"):
            sources.open_source(source(path))


def test_no_row_is_of_the_task_that_is_held_out(registry, tmp_path):
    run = resolve.load(f"{CONFIG}:decoder/spam", {"data.cache": str(tmp_path), "data.tokenizer.vocab_size": "600"})
    done = prepare(run.data, progress=False)
    builder = ExampleBuilder(done.tokenizer, "decoder", length=96, answer=64, prefix=False)
    rows = RecordRows(done.train, run.data, builder, how="text", seed=0, shuffle=True)
    drawn = {name for name, _ in rows.records(np.arange(600))}
    assert drawn == {*run.data.sources} - {"spam"} and "spam" in done.holdout
    assert all(isinstance(record, Pair) for record in done.records("spam", "holdout"))


def test_tasks_that_are_not_there_are_refused():
    for what, cause in (("decoder/verse", "no task 'verse' to hold out; did you mean 'verses'"), ("encoder", "no 'encoder'")):
        with pytest.raises(UserError, match=cause):
            resolve.load(f"{CONFIG}:{what}", {})
