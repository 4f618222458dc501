"""Writes what tests/e2e/test_released.py needs of a release, once, with the code of that release:

    python -m tests.released.make 0.1.0

tests/released/0.1.0/ gets saved.tar.xz (a run after two steps, with the state of its optimizer and averages, and the same model
without a run), corpus.jsonl (what it was trained on) and expected.json (the model's logits, held-out loss and text, and the
logits after two more steps).
"""

import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm import checkpoint, recipes, saved
from lm.config import Asked, resolve
from lm.generate import writer
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream

HOME = Path(__file__).parent
TOKENS = 12  # of the sequence that logits are compared on


def main(version: str) -> None:
    home = HOME / version
    home.mkdir()
    _corpus(home / "corpus.jsonl")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        train(home, work / "run", work / "cache", steps=2)
        model = saved.open(work / "run")
        checkpoint.save_params(work / "model", model.model, model.params(device=jax.devices()[0]))
        with tarfile.open(home / "saved.tar.xz", "w:xz") as archive:
            for name in ("run/checkpoints", "run/config.json", "model"):
                archive.add(work / name, name)
        expected = {"logits": _rounded(logits(work / "run")), "text": text(home, work / "run")}
        shutil.copytree(work / "run", work / "resumed")
        train(home, work / "resumed", work / "cache", steps=4)
        expected |= {"resumed": _rounded(logits(work / "resumed")), "loss": loss(work / "resumed")}
    (home / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


def train(home: Path, workdir: Path, cache: Path, *, steps: int) -> None:
    """Trains up to so many steps, or resumes."""
    given = {"data.sources.tiny.path": str(home / "corpus.jsonl"), "data.cache": str(cache), "train.steps": str(steps)}
    own = workdir / "config.json"
    run = resolve.load(str(own if own.exists() else HOME / "config.py"), given)
    recipes.train(run, workdir, allow_changes=True, quiet=True)


def logits(folder: Path) -> np.ndarray:
    """Float32 [TOKENS, V] of the model in a folder, for the first ids of its vocabulary."""
    model = saved.open(folder)
    tokens = jnp.arange(TOKENS)[None] % model.model.vocab_size
    params = model.params(device=jax.devices()[0])
    ones = jnp.ones_like(tokens)
    example = Example(None, TokenStream(tokens, jnp.arange(TOKENS)[None], ones), tokens, ones)
    found = Transformer(model.model).apply({"params": params}, example)
    return np.asarray(found[0], np.float32)


def text(home: Path, folder: Path) -> str:
    """What the model writes after the first words of its corpus, with the likeliest token at each place."""
    first = json.loads((home / "corpus.jsonl").read_text(encoding="utf-8").partition("\n")[0])["text"]
    asked = Asked(prompt=first[:11], new_tokens=8, temperature=0.0)
    return next(writer(str(folder), slots=1).write([asked])).text


def loss(workdir: Path) -> float:
    """The held-out loss at a run's last evaluation, in nats a token."""
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))["heldout"]["loss"]


def _rounded(array: np.ndarray) -> list[list[float]]:
    return [[round(x, 6) for x in row] for row in array.tolist()]


def _corpus(path: Path) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(24)]
    documents = [" ".join(words[i] for i in rng.zipf(1.5, 60) % len(words)) for _ in range(12)]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
