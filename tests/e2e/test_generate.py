"""`python -m lm.generate` on real runs of every architecture: prompts in every form, JSON lines, mistakes in one line."""

import json
import re

import pytest

from lm.cli import readable
from lm.generate import main

FEW = "--new_tokens=6"


@pytest.fixture
def ask(piped):
    return lambda *words, given="": piped(main, words, given)


def lines(*asked):
    return "".join(json.dumps(line) + "\n" for line in asked)


def test_a_text_is_the_same_however_it_is_asked_for(runs, ask):
    source = f"--from={runs / 'decoder.causal'}"
    code, alone, err = ask(source, FEW, "--seed=3", "abc de")
    assert code == 0, err
    assert ask(source, FEW, "--seed=3", given="abc de\n") == (0, alone, err)  # on standard input
    asked = [{"prompt": "fa"}, {"prompt": "abc de", "seed": 3, "samples": 2}, {"prompt": "b", "temperature": 0, "stop": "c"}]
    code, out, err = ask(source, FEW, "--jsonl", "--slots=2", given=lines(*asked))
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    of = {(sample["prompt"], sample["sample"]): sample for sample in found}
    shown = [readable(of["abc de", number]["text"]) + "\n" for number in (0, 1)]
    assert len(found) == 4 and shown[0] == alone != shown[1]
    assert {sample["finish"] for sample in found} <= {"end", "stop", "length"} and "c" not in of["b", 0]["text"]
    assert all(1 <= sample["tokens"] <= 6 and sample["log_prob"] < 0 for sample in found)


@pytest.mark.parametrize("name", ["decoder.causal", "encoder_decoder.span_corruption"])
def test_beams_find_the_likeliest_texts_in_their_order(runs, ask, name):
    source = f"--from={runs / name}"
    code, out, err = ask(source, FEW, "--jsonl", "--beams=3", "--samples=3", given=lines({"prompt": "abc [MASK] de"}))
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    scores = [sample["log_prob"] / sample["tokens"] for sample in found]
    assert len(found) == 3 and scores == sorted(scores, reverse=True) and len({sample["text"] for sample in found}) == 3
    greedy = json.loads(ask(source, FEW, "--jsonl", "--temperature=0", given=lines({"prompt": "abc [MASK] de"}))[1])
    one = json.loads(ask(source, FEW, "--jsonl", "--beams=1", given=lines({"prompt": "abc [MASK] de"}))[1])
    assert one["text"] == greedy["text"] and one["log_prob"] == pytest.approx(greedy["log_prob"], abs=1e-4)


def test_weights_of_fewer_bits_write_and_are_deterministic(runs, ask):
    pytest.importorskip("qwix")
    for name in ("decoder.causal", "encoder_decoder.denoise"):
        words = (f"--from={runs / name}", FEW, "--temperature=0", "--weights=int4", "--jsonl")
        first = ask(*words, given=lines({"prompt": "abc [MASK] de"}))
        assert first[0] == 0 and first == ask(*words, given=lines({"prompt": "abc [MASK] de"})), first
        exact = ask(*words[:3], "--jsonl", given=lines({"prompt": "abc [MASK] de"}))
        a, b = (json.loads(out)["log_prob"] for _, out, _ in (first, exact))
        assert 1e-6 < abs(a - b) < 1 + abs(b)


def test_guesses_and_smaller_caches_leave_a_text_as_it_is(runs, ask):
    source, greedy = f"--from={runs / 'decoder.causal'}", ("--new_tokens=12", "--temperature=0", "abc de")
    alone = ask(source, *greedy)
    assert alone[0] == 0 and ask(source, "--guesses=3", *greedy) == alone == ask(source, "--cache=bfloat16", *greedy), alone
    assert ask(source, "--guesses=2", f"--draft={runs / 'decoder.causal'}", *greedy) == alone
    code, _, err = ask(source, f"--draft={runs / 'decoder.causal'}", *greedy)
    assert code == 2 and "guesses nothing without --guesses: give --guesses=4" in err


def test_what_is_written_follows_a_grammar(runs, ask):
    pytest.importorskip("llguidance")
    source = f"--from={runs / 'decoder.causal'}"
    code, out, err = ask(source, "--new_tokens=30", "--regex=(abc|de){2}f", "--samples=3", "abc")
    assert code == 0 and all(re.fullmatch("(abc|de){2}f", line) for line in out.splitlines()[1::2]), err
    schema = {"type": "object", "properties": {"a": {"enum": ["abc", "de"]}}, "required": ["a"], "additionalProperties": False}
    code, out, err = ask(source, "--new_tokens=40", "--jsonl", given=lines({"prompt": "abc", "schema": schema}))
    assert code == 0 and json.loads(json.loads(out)["text"])["a"] in ("abc", "de"), err
    for wrong, why in (
        ("--regex=(abc", "cannot be used"),
        ("--schema={", "schema is not valid JSON"),
        ("--beams=2", "follows no grammar"),
    ):
        code, _, err = ask(source, "--regex=a" if "beams" in wrong else wrong, wrong, "abc")
        assert code == 2 and why in err and err.count("\n") == 1


def test_a_stop_string_ends_a_text_before_it(runs, ask):
    source = f"--from={runs / 'decoder.causal'}"
    of = lambda *words: json.loads(ask(source, "--jsonl", "--new_tokens=30", *words, given=lines({"prompt": "abc"}))[1])
    whole = of()["text"]
    stop = next(whole[i : i + 2] for i in range(len(whole) // 3, len(whole)) if "\ufffd" not in whole[i : i + 2])
    found = of(f"--stop={stop}")
    assert found["text"] == whole[: whole.index(stop)] and found["finish"] == "stop" and found["stop"] == stop
    each = [of(f"--stop={stop}", f"--new_tokens={n}") for n in (found["tokens"] - 1, found["tokens"])]
    assert [sample["finish"] for sample in each] == ["length", "stop"]  # the last token counted completes the stop string
    assert each[1]["log_prob"] == pytest.approx(found["log_prob"], abs=1e-4)


def test_likeliest_tokens_are_shown(runs, ask):
    code, out, err = ask(f"--from={runs / 'decoder.causal'}", FEW, "--top=3", "--jsonl", given=lines({"prompt": "abc"}))
    assert code == 0, err
    found = json.loads(out)
    assert len(found["top"]) == found["tokens"] and sum(t["log_prob"] for t in found["top"]) == pytest.approx(
        found["log_prob"], abs=1e-4
    )
    for token in found["top"]:
        each = [t["log_prob"] for t in token["top"]]
        assert len(each) == 3 and each == sorted(each, reverse=True) and max(each) >= token["log_prob"]
    code, out, _ = ask(f"--from={runs / 'decoder.causal'}", FEW, "--top=3", "abc", "de")
    assert code == 0 and "--- 'abc', sample 0" in out and "--- 'de', sample 0" in out


@pytest.mark.parametrize("name", ["decoder.prefix", "encoder_decoder.span_corruption", "encoder.masked_diffusion"])
def test_other_objectives_write_in_their_own_way(runs, ask, name):
    code, out, err = ask(f"--from={runs / name}", FEW, "--samples=2", "abc [MASK] de")
    assert code == 0, err
    assert out.count("--- 'abc [MASK] de', sample") == 2


def test_an_encoder_fills_in_masks(runs, ask):
    source = f"--from={runs / 'encoder.masked'}"
    code, out, err = ask(source, "--jsonl", "--top=4", given=lines({"prompt": "abc [MASK] fa [MASK]"}))
    assert code == 0, err
    found = json.loads(out)
    assert found["text"].startswith("abc ") and "[MASK]" not in found["text"] and found["finish"] == "filled"
    assert [len(mark["top"]) for mark in found["top"]] == [4, 4]
    assert found["top"][0]["top"][0]["token"] == found["top"][0]["token"]
    code, _, err = ask(source, "abc")
    assert code == 2 and err == "error: an encoder fills in [MASK], and the prompt 'abc' has none: put one into it\n"


def test_mistakes_take_one_line(runs, ask):
    source = f"--from={runs / 'decoder.causal'}"
    for words, given, cause in (
        ((source, "--temperature=-1", "a"), "", "--temperature=-1 is too small"),
        ((source, "--top_p=0", "a"), "", "--top_p=0 is too small"),
        ((source, "--tempreature=1", "a"), "", "unknown flag --tempreature; did you mean '--temperature'?"),
        ((source,), "", "standard input is empty, and was to be the prompt"),
        ((source, "--jsonl", "a"), "", "--jsonl reads prompts from standard input: leave out the others"),
        ((source, "--jsonl"), "{]\n", "line 1 of standard input is not JSON"),
        ((source, "--jsonl"), "[" * 99_999, "line 1 of standard input is not JSON"),
        ((source, "--jsonl"), '{"prompt": "a", "prompt": "b"}', "line 1 of standard input is not JSON"),
        (
            (f"--from={runs / 'encoder.masked'}", "abc de " * 99 + "[MASK]"),
            "",
            "positions of the encoder, which has learned 64",
        ),
        ((source, "--jsonl"), '\n{"text": "a"}\n', "line 2 of standard input has no prompt"),
        ((source, "--jsonl"), lines({"prompt": "a", "top_q": 1}), "line 1 of standard input.top_q is|did you mean 'top_"),
        ((source, "--jsonl"), lines({"prompt": "a", "new_tokens": 0}), "line 1 of standard input.new_tokens=0 is too small"),
        ((source, "--new_tokens=100000", "a"), "", "positions|more than"),
        ((source, "--beams=2", "--samples=3", "a"), "", "samples=3 are more than the beams=2 that are searched"),
        ((source, "--beams=2", "--top_k=3", "a"), "", "beams=2 draws nothing: leave out the temperature, the filters"),
        ((source, "--length_penalty=2", "a"), "", "length_penalty=2 is of beams, and none are asked for"),
        (
            (f"--from={runs / 'encoder.masked'}", "--beams=2", "a [MASK]"),
            "",
            "a search goes from left to right, and this model",
        ),
        ((f"--from={runs}", "a"), "", "--from="),
    ):
        code, _, err = ask(*words, given=given)
        assert code == 2 and any(c in err for c in cause.split("|")) and err.startswith("error: ") and err.count("\n") == 1, err
