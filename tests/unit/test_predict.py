"""lm.predict: what it reads, writes and refuses. tests/e2e/test_finetune_learns.py has predictions of trained models."""

import io
import json

import pytest

from lm import predict, saved
from lm.evaluation import predictions
from lm.evaluation.predictions import Prediction


@pytest.fixture
def model(monkeypatch):
    """A model whose classes are "long" and "short", by the letters of a text."""

    class Predictor:
        classes = ("long", "short")

        def __init__(self, source, batch_size):
            pass

        def __call__(self, texts):
            shares = [min(1.0, len(text) / 20) for text in texts]
            return [Prediction("long" if p > 0.5 else "short", {"long": p, "short": 1 - p}) for p in shares]

    monkeypatch.setattr(saved, "open", lambda folder: folder)
    monkeypatch.setattr(predictions, "Predictor", Predictor)


def test_texts_are_labelled_in_lines(model, capsys):
    assert predict.main(["--from=D", "see you", "a text that is quite long"]) == 0
    assert capsys.readouterr().out == "short\t0.650\tsee you\nlong\t1.000\ta text that is quite long\n"


def test_records_come_back_with_what_is_predicted(model, monkeypatch, capsys):
    records = [{"text": "see you", "label": "short", "id": 7}, {"text": "a text that is long", "label": "short"}] * 10
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(json.dumps, records)) + "\n\n"))
    assert predict.main(["--from=D", "--jsonl=-", "--all"]) == 0
    out, err = capsys.readouterr()
    first = json.loads(out.splitlines()[0])
    assert first == records[0] | {
        "predicted": "short",
        "probability": 0.65,
        "probabilities": {"long": 0.35, "short": 0.65},
    }
    assert len(out.splitlines()) == 20 and "0.500 of 20 right (95 % interval 0.2" in err


def test_a_question_is_read_after_its_context(model, tmp_path, capsys):
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"question": "who?", "context": "a longer context"}), encoding="utf-8")
    assert predict.main(["--from=D", f"--jsonl={file}"]) == 0
    assert json.loads(capsys.readouterr().out)["probability"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of them"),
        (["a", "--jsonl=b"], "give one of them"),
        (["--jsonl={}/none.jsonl"], "none.jsonl"),
        (["--jsonl={}/bad.jsonl"], "bad.jsonl, line 2 is not valid JSON"),
        (["--jsonl={}/other.jsonl"], "other.jsonl, record 1 has no text: give {'text': '...'}, or {'question': "),
        (["--jsonl={}/number.jsonl"], "number.jsonl, record 1 has no text"),
        (["--jsonl={}/empty.jsonl"], "there is no text: give texts, or --jsonl=FILE"),
    ],
)
def test_mistakes_take_one_line(words, message, model, tmp_path, capsys):
    texts = {"bad": '{"text": "a"}\n{"text"', "other": '{"words": "a"}', "number": '{"text": 3}', "empty": "\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    assert predict.main(["--from=D", *(word.format(tmp_path) for word in words)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
