"""BLEU, chrF and ROUGE are those of their libraries; an interval holds what it should."""

import json

import numpy as np
import pytest

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from rouge_score.rouge_scorer import RougeScorer  # noqa: E402

from lm.errors import UserError  # noqa: E402
from lm.evaluate import main  # noqa: E402
from lm.evaluation.findings import bootstrap  # noqa: E402
from lm.evaluation.text_metrics import Answer, evaluate, read, score  # noqa: E402

ANSWERS = [
    Answer("the cat sat on the mat.", ("the cat sat on a mat.", "a cat sat on the mat.")),
    Answer("it is a dog", ("it was a dog",)),
    Answer("The Senate!", ("the senate",)),
    Answer("", ("nothing at all",)),
]


def test_figures_are_those_of_the_libraries():
    found = score(ANSWERS)
    texts = [a.text for a in ANSWERS]
    first, second = [a.references[0] for a in ANSWERS], [ANSWERS[0].references[1], None, None, None]
    assert found["BLEU"].value == pytest.approx(sacrebleu.corpus_bleu(texts, [first, second]).score)
    assert found["chrF2"].value == pytest.approx(sacrebleu.corpus_chrf(texts, [first, second]).score)
    assert found["BLEU"].signature.startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrF2"].signature.startswith("nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    scorer = RougeScorer(["rougeL"])
    best = [max(scorer.score(r, a.text)["rougeL"].fmeasure for r in a.references) for a in ANSWERS]
    assert found["rougeL"].value == pytest.approx(100 * np.mean(best))
    assert found["exact"].value == 50.0  # without case, articles and the mark
    assert all(0 <= m.low <= m.high <= 100 and m.low <= m.value <= m.high for m in (found["rougeL"], found["exact"]))


def test_an_interval_is_as_wide_as_the_standard_error_says_and_the_same_each_time():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean = lambda chosen: float(values[chosen].mean())
    found = bootstrap(mean, len(values))
    assert found == bootstrap(mean, len(values)) and found.value == values.mean()
    low, high = found.low, found.high
    wanted = 1.96 * values.std() / 20
    assert values.mean() - low == pytest.approx(wanted, rel=0.15) and high - values.mean() == pytest.approx(wanted, rel=0.15)


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_file_is_read_and_its_figures_are_shown(tmp_path, capsys):
    path = lines(
        tmp_path / "a.jsonl",
        {"hypothesis": "a cat", "references": ["a cat", "the cat"], "id": 3},
        {"text": "a dog", "references": "a god"},
    )
    assert read(path) == [Answer("a cat", ("a cat", "the cat")), Answer("a dog", ("a god",))]
    assert main([f"--hypotheses={path}", f"--out={tmp_path / 'b.json'}"]) == 0
    out = capsys.readouterr().out
    assert "2 texts of" in out and "BLEU" in out and "95 %" in out and "tok:13a" in out.replace("\n", "")
    written = json.loads((tmp_path / "b.json").read_text())
    assert written == json.loads(json.dumps(evaluate(path))) and written["metrics"]["exact"]["value"] == 50.0


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ({"references": ["a"]}, "line 1 has no text"),
        ({"text": 3, "references": ["a"]}, "line 1 has no text"),
        ({"text": "a"}, "line 1 has no references"),
        ({"text": "a", "references": []}, "line 1 has no references"),
        ({"text": "a", "references": [1]}, "line 1 has no references"),
        ([1], "is not valid JSON"),
    ],
)
def test_a_wrong_line_is_named(record, cause, tmp_path):
    with pytest.raises(UserError, match=cause):
        read(lines(tmp_path / "a.jsonl", record))


def test_mistakes_take_one_line(tmp_path, capsys):
    path = lines(tmp_path / "a.jsonl", {"text": "a", "references": ["a"]})
    (tmp_path / "empty").write_text("\n")
    for words, cause in (
        ([f"--hypotheses={tmp_path / 'empty'}"], "is empty: give a line"),
        ([f"--hypotheses={path}", "--from=D"], "leave out --from"),
        ([f"--hypotheses={path}", "--tasks=sotu_cloze"], "--tasks asks for something else"),
        ([f"--hypotheses={path}", f"--out={tmp_path}/none/x.json"], "none"),
        ([f"--hypotheses={tmp_path / 'nothing'}"], "cannot be read"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert cause in err and err.count("\n") == 1
