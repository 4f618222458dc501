"""`python -m lm.score` on real runs: files, JSON lines, hypotheses; mistakes in one line."""

import json

import pytest

from lm.score import main


@pytest.fixture
def score(piped):
    return lambda *words, given="": piped(main, words, given)


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(("name", "kind"), [("decoder.causal", "perplexity"), ("encoder.masked", "pseudo-")])
def test_a_file_a_line_and_standard_input_have_one_score(runs, score, tmp_path, name, kind):
    text = "abc de fa bd. " * 12
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("fa bd")
    source = f"--from={runs / name}"
    code, out, err = score(source, str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    assert code == 0 and kind in out and f" {len(text)} " in out, err
    code, out, err = score(source, "--jsonl", given=lines({"text": text, "id": 7}, {"text": "fa bd"}))
    assert code == 0, err
    first, second = map(json.loads, out.splitlines())
    assert first["id"] == 7 and first["bytes"] == len(text) and second["bytes"] == 5
    assert first["nats"] > second["nats"] > 0 and first["perplexity"] > 1
    code, out, _ = score(source, given=text)
    assert code == 0 and f"{first['nats']:,.2f}" in out
    code, out, _ = score(source, "--jsonl", "--length=16", "--stride=4", given=lines({"text": text}))
    assert code == 0 and json.loads(out)["tokens"] == first["tokens"] and json.loads(out)["nats"] != first["nats"]


def test_fewer_bits_cost_little(runs, score):
    pytest.importorskip("qwix")
    source, text = f"--from={runs / 'decoder.causal'}", "abc de fa bd. " * 12
    found = {}
    for weights in ("", "--weights=bfloat16", "--weights=int8", "--weights=int4"):
        code, out, err = score(source, "--jsonl", *filter(None, [weights]), given=lines({"text": text}))
        assert code == 0 and err.startswith(f"weights in {weights[10:]}: " if weights else ""), err
        found[weights[10:]] = json.loads(out)["nats"], float(err.split()[3]) if weights else 0.0
    nats, sizes = zip(*found.values(), strict=True)
    assert len(set(nats)) == 4 and max(abs(n - nats[0]) for n in nats) < 0.02 * nats[0]
    assert sizes[1] > sizes[2] > sizes[3] > 0
    code, _, err = score(source, "--weights=int2", given=text)
    assert code == 2 and "--weights 'int2' is not known" in err


def test_hypotheses_are_ordered_and_the_gain_is_told(runs, score, tmp_path):
    said = {"u1": "abc de fa", "u2": "bd abc", "u3": "fa fa de", "u4": "de bd"}
    records = [
        {"utterance": name, "text": text, "score": value, "reference": true, "id": i}
        for i, (name, true) in enumerate(said.items())
        for text, value in ((true, -2.0), (true[::-1], -1.0))
    ]
    (tmp_path / "n.jsonl").write_text(lines(*records))
    source = f"--from={runs / 'decoder.causal'}"
    code, out, err = score(source, f"--nbest={tmp_path / 'n.jsonl'}")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 8 and [record["place"] for record in found] == [0, 1] * 4 and all("id" in record for record in found)
    assert "by the recogniser alone: " in err and "with the model: " in err and err.startswith("weight ")
    code, out, err = score(source, f"--nbest={tmp_path / 'n.jsonl'}", "--weight=0")
    best = [json.loads(line)["text"] for line in out.splitlines()[::2]]
    assert code == 0 and best == [true[::-1] for true in said.values()] and "8 words" not in err
    (tmp_path / "m.jsonl").write_text(lines(*({k: v for k, v in r.items() if k != "reference"} for r in records)))
    code, _, err = score(source, f"--nbest={tmp_path / 'm.jsonl'}")
    assert code == 2 and "a weight is tuned on utterances with a reference, two or more: give these, or --weight=0.3" in err


def test_mistakes_take_one_line(runs, score, tmp_path):
    source = f"--from={runs / 'decoder.causal'}"
    for words, given, cause in (
        ((source, "nowhere.txt"), "", "nowhere.txt"),
        ((source,), "", "has 0 tokens; a score needs two or more"),
        ((source, "--jsonl"), "", "standard input is empty: give a JSON object a line"),
        ((source, "--jsonl"), lines({"txt": "a"}), "standard input, line 1 has no text as 'text'"),
        ((source, "--jsonl", "a.txt"), "", "files, --jsonl and --nbest are three things to score"),
        ((source, "--stride=64", "--length=64"), "abc de", "--stride=64 must be 1 or more, and less than"),
        ((source, "--kind=pll"), "abc de", "--kind=pll is not defined for whole texts of this model"),
        ((source, "--length=100000"), "abc " * 99999, "positions"),
        ((source, "--weight=1"), "abc", "--weight=1 is of --nbest, and that is not given"),
        ((f"--from={tmp_path}",), "abc", "--from="),
    ):
        code, _, err = score(*words, given=given)
        assert code == 2 and cause in err and err.count("\n") == 1 and err.startswith("error: "), err
