"""`python -m lm.latent` on real runs with a bottleneck: every action, and mistakes in one line."""

import json

import numpy as np
import pytest

from lm import recipes, saved
from lm.config import resolve
from lm.evaluation.latents import Coder, between, plane
from lm.latent import main
from tests.e2e.conftest import TINY

TEXTS = ["abc de fa", "j", "bcd ef ghi bb", "abc de fb", "hij hij"]


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    """A deterministic autoencoder of four vectors, after two steps."""
    paths = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache", "checkpoint.every": "None"}
    settings = {"model.bottleneck": "{'vectors': 4, 'pool': 'queries', 'documents': 15}", "train.steps": "2"}
    settings |= {"objective.infill": "0.0", "objective.permute": "0.0"}
    settings |= {"data.encoder_length": "16", "data.decoder_length": "16", "log.samples": "()"}
    home = tmp_path_factory.mktemp("plain") / "run"
    recipes.train(resolve.load(f"{TINY}:encoder_decoder.denoise", paths | settings), home, quiet=True)
    return home


@pytest.fixture
def ask(piped):
    return lambda *words, given="": piped(main, words, given)


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "others.txt").write_text("jjjjjj aaaaaa jjjjjj\nfjfjfj ajajaj\n")
    return f"--file={tmp_path / 'lines.txt'}", f"--other={tmp_path / 'others.txt'}"


def test_an_autoencoder_reconstructs_and_neighbours_are_alike(plain, ask, lines):
    coder = Coder.of(saved.open(plain))
    z = coder.encode(TEXTS)
    assert z.shape == (5, 4, 32) and coder.encode(TEXTS[2:3]) == pytest.approx(z[2:3], abs=1e-5)
    code, out, err = ask("reconstruct", f"--from={plain}", *TEXTS)
    assert code == 0, err
    said = out.splitlines()
    assert len(said) == 11 and "are exact copies" in said[-1] and "of the tokens are right in their places" in said[-1]
    assert [line[2:] for line in said[1:10:2]] == [" ".join(text.split()) for text in coder.write(z)]
    code, out, err = ask("neighbours", f"--from={plain}", lines[0], "--top=2", "abc de fa")
    assert code == 0 and out.splitlines()[1].endswith("1.0000  abc de fa"), (out, err)


def test_drawn_texts_and_what_lies_between_two(runs, ask):
    folder = runs / "encoder_decoder.variational"
    code, out, err = ask("interpolate", f"--from={folder}", "--steps=3", *TEXTS[:2])
    assert code == 0 and [line[:4] for line in out.splitlines()] == ["0.00", "0.50", "1.00"], err
    code, out, err = ask("paraphrase", f"--from={folder}", "--samples=3", TEXTS[0])
    assert code == 0 and len(out.splitlines()) == 5 and "of 3 samples are exact copies" in out, err
    assert ask("paraphrase", f"--from={folder}", "--samples=3", TEXTS[0])[1] == out
    coder = Coder.of(saved.open(folder))
    one, two = (coder.drawn(TEXTS, seed=0, scale=s) for s in (0.0, 1.0))
    assert one == pytest.approx(coder.encode(TEXTS), abs=1e-6) and np.abs(one - two).max() > 0.1


def test_anomalies_are_scored_and_a_map_is_drawn(runs, ask, lines, tmp_path):
    folder = runs / "encoder_decoder.variational"
    code, out, err = ask("anomaly", f"--from={folder}", *lines)
    assert code == 0 and "AUROC" in out.splitlines()[-1], err
    code, out, err = ask("anomaly", f"--from={folder}", *lines, "--jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 7 and sum(row["other"] for row in found) == 2 and all(row["nats"] > 0 for row in found), err
    scores = Coder.of(saved.open(folder)).scores(TEXTS)
    assert [row["nats"] for row in found[:5]] == pytest.approx(scores.per_token.tolist(), abs=2e-6)
    assert (scores.divergence > 0).all() and scores.tokens.min() >= 2
    code, out, err = ask("anomaly", f"--from={folder}", "--rows=6")
    assert code == 0 and out.splitlines()[-1].startswith("nats a token: mean"), err
    code, out, err = ask("map", f"--from={folder}", *lines, f"--out={tmp_path / 'map'}")
    assert code == 0 and "7 texts" in out, err
    points = json.loads((tmp_path / "map" / "map.json").read_text())["points"]
    assert [point["of"] for point in points] == ["file"] * 5 + ["other"] * 2
    assert (tmp_path / "map" / "map.png").read_bytes()[:4] == b"\x89PNG"


def test_lines_and_planes():
    a, b = np.zeros((2, 3)), np.full((2, 3), 4.0)
    assert between(a, b, 3)[:, 0, 0].tolist() == [0, 2, 4]
    flat = np.random.default_rng(0).normal(size=(50, 2)) @ np.array([[3.0, 0, 0, 1], [0, 1, 0, 0]])
    places, share = plane(flat.reshape(50, 2, 2))
    assert share == pytest.approx(1) and np.linalg.norm(places[0] - places[1]) == pytest.approx(
        np.linalg.norm(flat[0] - flat[1])
    )


@pytest.mark.parametrize(
    "words,message",
    [
        (["interpolate", "a"], "interpolate goes from one text to another, and 1 are given: give two"),
        (["reconstruct"], "reconstruct needs a text"),
        (["neighbours"], "neighbours needs the text"),
        (["anomaly", "a"], "unexpected 'a'"),
        (["map"], "--out is missing"),
        (["reconstruct", "a", "--steps=0"], "--steps"),
        (["interpolate", "a", "b", "--steps=0"], "--steps=0 is too small"),
        (["reconstruct", ""], "the text='' is too short"),
        (["turn", "a"], "'turn' is not known"),
    ],
)
def test_mistakes_are_said_in_one_line(ask, words, message):
    code, out, err = ask(*words, "--from=nowhere")
    assert code == 2 and message in err and len(err.splitlines()) == 1 and not out


def test_a_model_without_a_bottleneck_is_refused(runs, ask):
    code, _, err = ask("reconstruct", f"--from={runs / 'encoder_decoder.denoise'}", "a")
    assert code == 2 and "has no bottleneck between encoder and decoder" in err
