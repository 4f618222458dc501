"""Runs on speech: they learn, stop and go on to the bit, and are asked by commands; FLOPs against XLA's."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from lm import config, flops, recipes, score, transcribe
from lm.errors import UserError
from lm.evaluation import text_scores
from lm.evaluation.reranking import gain
from lm.models.transformer import Transformer, abstract_params
from lm.types import Example, vector_stream
from lm.view import reading as view
from tests import speech


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("speech")


def whole(home, architecture):
    folder = home / architecture
    if not (folder / "summary.json").exists():
        recipes.train(speech.run(architecture, home / "cache"), folder, quiet=True)
    return folder


@pytest.mark.parametrize("architecture", ["encoder", "encoder_decoder"])
def test_a_stopped_run_goes_on_to_the_bit(home, architecture):
    run, stopped = speech.run(architecture, home / "cache"), home / f"{architecture}.stopped"
    recipes.train(run, stopped, quiet=True, until=2)
    after = recipes.train(run, stopped, quiet=True)
    before = json.loads((whole(home, architecture) / "summary.json").read_text("utf-8"))
    same = ("params_sha256", "heldout", "tokens_seen", "tokens_with_loss", "model_flops")
    assert [after[name] for name in same] == [before[name] for name in same]
    assert set(before["heldout"]) == {"loss", "wer", "sentences"} and before["utterances"]["train"]["said"] > 5
    shown = [json.loads(line) for line in (stopped / "samples.jsonl").read_text("utf-8").splitlines()]
    assert shown and all(row["prompt"].startswith("said: ") and row["text"].startswith("heard: ") for row in shown)


@pytest.mark.parametrize("architecture", ["encoder", "encoder_decoder"])
def test_the_loss_falls(home, architecture):
    rows = [json.loads(line) for line in (whole(home, architecture) / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]


def test_recordings_are_transcribed_and_put_in_order(home, runs, piped):
    """The command writes hypotheses with references, and `lm.score` orders them by a model of texts."""
    source = f"--from={whole(home, 'encoder')}"
    file = speech.FOLDER / "0a.wav"
    code, out, err = piped(transcribe.main, [source, str(file)], "")
    assert code == 0 and out.startswith(f"{file}\t") and "word errors" not in err
    code, out, err = piped(transcribe.main, [source, f"--jsonl={speech.FOLDER / 'speech.jsonl'}", "--nbest=3"], "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (
        code == 0 and " word errors of " in err and {line["reference"] for line in lines} >= {"I saw a bear", "we see the sea"}
    )
    assert all(set(line) == {"utterance", "text", "score", "reference"} for line in lines)
    code, out, err = piped(transcribe.main, [source, "--heldout"], "")
    assert code == 0 and " word errors of " in err and all(line.startswith("said/") for line in out.splitlines())
    code, out, err = piped(transcribe.main, [f"--from={whole(home, 'encoder_decoder')}", str(file), "--nbest=2"], "")
    assert code == 0 and len(out.splitlines()) == 2
    made = [
        {"utterance": str(i), "text": text, "score": value, "reference": "bcd ab"}
        for i in range(4)
        for text, value in (("bcd ab", -2.0), ("ab ab", -1.0))
    ]
    (home / "n.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made), "utf-8")
    code, out, err = piped(score.main, [f"--from={runs / 'decoder.causal'}", f"--nbest={home / 'n.jsonl'}"], "")
    assert code == 0 and "saved: " in err and "95 % interval" in err and "mended: " in err


def test_a_language_model_orders_what_is_heard_in_a_run(home, runs):
    recipe = config.Transcribe(answer=24, beams=4, language_model=str(runs / "decoder.causal"), weight=0.3)
    summary = recipes.train(speech.run("encoder", home / "cache", steps=2, recipe=recipe), home / "ordered", quiet=True)
    assert 0 <= summary["heldout"]["wer"] and summary["heldout"]["loss"] > 0


def test_mistakes_take_one_line(home, runs, piped):
    source = f"--from={whole(home, 'encoder')}"
    (home / "long.wav").write_bytes(b"")
    for words, cause in (
        ([source], "there is no recording"),
        ([source, "a.wav", "--heldout"], "three places of recordings"),
        ([source, "nowhere.wav"], "cannot read the recording"),
        ([f"--from={runs / 'decoder.causal'}", "a.wav"], "was not trained on speech"),
    ):
        code, _, err = piped(transcribe.main, words, "")
        assert code == 2 and cause in err and err.count("error:") == 1, err


def test_configs_that_make_no_sense_are_refused(home):
    run = speech.run("encoder", home / "cache")
    texts = {"said": config.Source("jsonl", str(speech.FOLDER / "speech.jsonl"))}
    of_text = config.Model(400, 16, config.Stack(1, {"L": config.Block(config.Attention(2), config.Mlp(8))}))
    for change, cause in (
        (dict(model=of_text), "stem.kind=frames"),
        (dict(model=replace(run.model, head=None)), "a head of the vocabulary"),
        (dict(data=replace(run.data, sources=texts)), "format=text"),
    ):
        with pytest.raises(UserError, match=cause):
            recipes.train(replace(run, **change), home / "refused", quiet=True)
    with pytest.raises(UserError, match="beams=1 finds one"):
        config.Transcribe(language_model="runs/text")


def test_what_an_order_saves():
    """Of four utterances two are mended, and one is made worse."""
    said = [("a b", "a c", "a b"), ("d e", "d", "d e"), ("f g", "f g", "f"), ("h i", "h i", "h i")]
    some = [text_scores.Hypothesis(str(i), text, 0.0, row[0]) for i, row in enumerate(said) for text in row[1:]]
    found = gain(some, [0, 2, 4, 6], [1, 3, 5, 7])
    assert found.saved.value == 1 / 8 and found.saved.low <= 0 <= found.saved.high and found.broken == 1
    assert found.mended == (("a b", "a c", "a b"), ("d e", "d", "d e"))


def test_flops_are_those_of_xla():
    """Forward pass, full rows: the ledger counts matrix products; XLA adds norms, the softmax and the taps' sums."""
    model = speech.model("encoder")
    rows = np.random.default_rng(0).normal(size=(2, 160, 80)).astype(np.float32)
    example = Example(vector_stream(rows, 40), None, None, None)
    wide = replace(model, width=128)
    apply = jax.jit(lambda p, x: Transformer(wide).apply({"params": p}, x))
    params = abstract_params(wide)
    counted = flops.count(wide, batch=2, encoder=40, causal_share=1.0)
    xla = apply.lower(params, example).cost_analysis()["flops"]
    assert counted.forward == pytest.approx(xla, rel=0.12)
    assert counted.embed == 2 * 2 * wide.encoder.stem.products(128)
    assert counted.mixer == 2 * 2 * 40 * 3 * 128**2


@pytest.mark.parametrize("architecture", ["encoder", "encoder_decoder"])
def test_rows_of_speech_can_be_looked_at(home, architecture):
    reading = view.read(speech.run(architecture, home / "cache"), "train", progress=False)
    (first,) = reading.shown(np.array([0]))
    assert first.title == "row 0, of step 1 of 6, of source said" and first.parts[list(first.parts)[0]][0].name == "encoder"
    said = first.facts["labels"] if architecture == "encoder" else " ".join(first.parts[""][1].lines["predicts"])
    assert said
