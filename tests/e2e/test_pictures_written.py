"""Runs on pictures from files: codes, drawings from captions, captions and answers; resume to the bit; what commands make."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lm import recipes
from lm.config import resolve
from lm.data.png import png
from lm.errors import UserError
from lm.generate import main

pytest.importorskip("PIL")

CONFIG = Path(__file__).with_name("tiny_pictures.py")
COLOURS = {"red": (210, 47, 39), "blue": (30, 80, 160), "green": (92, 158, 49), "yellow": (252, 234, 43)}


def picture(colour, place):
    """A square of a colour in one of four places, on white: uint8 [16, 16, 3]."""
    pixels = np.full((16, 16, 3), 255, np.uint8)
    top, left = 8 * (place // 2), 8 * (place % 2)
    pixels[top : top + 8, left : left + 8] = colour
    return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures with captions: each colour in each place."""
    root = tmp_path_factory.mktemp("pictures")
    places = ("top left", "top right", "bottom left", "bottom right")
    lines = []
    for name, rgb in COLOURS.items():
        for i, place in enumerate(places):
            (root / f"{name}{i}.png").write_bytes(png(picture(rgb, i)))
            lines.append({"image": f"{name}{i}.png", "text": f"{name} square, {place}", "label": f"{name} things"})
    (root / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def train(folder, tmp_path_factory):
    """Trains a run of the tiny config, and returns its folder."""
    home = tmp_path_factory.mktemp("runs")

    def run(what, name, *, until=None, **changes):
        flags = {"data.sources.pictures.path": str(folder / "records.jsonl"), "data.cache": str(home / "cache"), **changes}
        settings = resolve.load(f"{CONFIG}:{what}", {key: str(value) for key, value in flags.items()})
        recipes.train(settings, home / name, quiet=until is not None, until=until)
        return home / name

    return run


@pytest.fixture(scope="module")
def codes(train):
    return train("codes", "codes", **{"train.steps": 200, "evaluate.every": 200, "checkpoint.every": None})


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))


def samples(workdir):
    return [json.loads(line) for line in (workdir / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_codes_keep_what_a_picture_shows(codes):
    found = summary(codes)["heldout"]
    assert found["mse"] < 0.02 and found["psnr"] == pytest.approx(-10 * np.log10(found["mse"]))
    assert 2 < found["code_perplexity"] <= 16 and 0 <= found["codes_unused"] < 14
    (sample,) = samples(codes)
    page = (codes / "report.html").read_text(encoding="utf-8")
    assert sample["pictures"][0] in page and page.count("<img class=p") == 1


@pytest.mark.parametrize("what", ["codes", "draws", "cross"])
def test_a_run_that_is_stopped_goes_on_to_the_bit(train, codes, what):
    changes = {"recipe.codes": codes} if what == "draws" else {}
    whole = train(what, f"{what}.whole", **changes)
    parts = train(what, f"{what}.parts", until=4, **changes)
    assert not (parts / "summary.json").exists()
    train(what, f"{what}.parts", **changes)
    a, b = summary(whole), summary(parts)
    assert a["params_sha256"] == b["params_sha256"] and a["heldout"] == b["heldout"]
    assert a["tokens_seen"] == b["tokens_seen"] > 0 and a["model_flops"] > 0


@pytest.fixture(scope="module")
def draws(train, codes):
    return train("draws", "draws", **{"recipe.codes": codes, "train.steps": 150, "data.holdout": 0, "evaluate.every": None})


def test_a_caption_is_drawn_as_it_says(draws, piped, tmp_path):
    """All captions are in training: what is asked for is drawn."""
    from PIL import Image

    code, out, err = piped(main, [f"--from={draws}", f"--pictures={tmp_path}", "--temperature=0", "red square, top right"], "")
    assert code == 0, err
    assert out.splitlines() == [f"{tmp_path / '0-0.png'}  red square, top right"]
    drawn = np.asarray(Image.open(tmp_path / "0-0.png"), np.float32)
    wanted = picture(COLOURS["red"], 1).astype(np.float32)
    assert drawn.shape == wanted.shape and np.mean(np.abs(drawn - wanted)) < 25  # 39 if it were all white
    assert len(samples(draws)[0]["pictures"]) == 4


@pytest.mark.parametrize("join", ["cross", "prefix"])
def test_a_picture_is_described_and_asked_about(train, folder, piped, join):
    changes = {"train.steps": 150, "data.holdout": 0, "evaluate.every": None, "checkpoint.every": None}
    workdir = train(join, f"{join}.learnt", **changes)
    for colour in ("blue", "yellow"):
        shown = [f"--from={workdir}", f"--image={folder / f'{colour}2.png'}"]
        code, out, err = piped(main, shown, "")
        assert code == 0 and out.startswith(f"{colour} square"), err
        code, out, err = piped(main, [*shown, "what colour is it?", "what colour is it?"], "")
        assert code == 0 and out == f"{colour}\n" * 2, err


def test_what_does_not_fit_is_said_in_a_line(train, codes, draws, folder, piped, tmp_path):
    words = [
        ([f"--from={codes}", f"--pictures={tmp_path}", "a"], "draws no pictures"),
        ([f"--from={draws}", "a"], "draws, and writes no text: give --pictures=FOLDER"),
        ([f"--from={draws}", f"--image={folder / 'red0.png'}"], "does not write about images"),
        ([f"--from={codes}", f"--image={tmp_path / 'none.png'}"], "cannot be read"),
    ]
    for given, error in words:
        code, _, err = piped(main, given, "")
        assert code != 0 and re.search(error, err) and len(err.strip().splitlines()) == 1, err


def test_codes_of_another_run_are_refused(train, codes):
    with pytest.raises(UserError, match="recipe.codes_sha256"):
        train("draws", "draws.wrong", **{"recipe.codes": codes, "recipe.codes_sha256": "0" * 64})
