import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm import recipes
from lm.config import resolve

TINY = Path(__file__).parent / "tiny.py"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Forty documents of made-up words, a cache for what is prepared from them, and one for compiled steps."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 7))) for _ in range(200)]
    with open(root / "tiny.jsonl", "w") as file:
        for _ in range(40):
            text = " ".join(words[i] for i in rng.zipf(1.5, 120) % 200)
            file.write(json.dumps({"text": text}) + "\n")
    return root


@pytest.fixture(scope="session")
def flags(corpus):
    def make(what="decoder.causal", *extra):
        return [
            f"--config={TINY}:{what}",
            f"--config.data.sources.tiny.path={corpus}/tiny.jsonl",
            f"--config.data.cache={corpus}/cache",
            *extra,
        ]

    return make


@pytest.fixture(scope="session")
def command(flags, corpus):
    """Starts `python -m lm.train` in a process of its own; returns the Popen."""

    def start(workdir, what="decoder.causal", *extra, **environment):
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(corpus / "compiled"), "JAX_PLATFORMS": "cpu"} | environment
        words = [sys.executable, "-m", "lm.train", f"--workdir={workdir}", *flags(what, *extra)]
        return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)

    return start


class Runs:
    """`runs / "decoder.causal"` is the workdir of a run of two steps, which is trained when it is first asked for."""

    def __init__(self, home, corpus):
        self.home, self.corpus = home, corpus

    def __truediv__(self, name):
        if not (self.home / name).exists():
            paths = {"data.sources.tiny.path": f"{self.corpus}/tiny.jsonl", "data.cache": f"{self.corpus}/cache"}
            little = {"train.steps": "2", "checkpoint.every": "None"}
            recipes.train(resolve.load(f"{TINY}:{name}", paths | little), self.home / name, quiet=True)
        return self.home / name

    def __str__(self):
        return str(self.home)


@pytest.fixture(scope="session")
def runs(corpus, tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"), corpus)


@pytest.fixture
def piped(capsys, monkeypatch):
    """Runs the main of a command with a standard input; returns its exit code, what it wrote, and what it said on standard
    error."""

    def run(main, words, given):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def train(flags, capsys):
    """Runs `lm.train` in this process; returns the exit code and what it said on standard error."""
    from lm.train import main

    def run(workdir, what="decoder.causal", *extra):
        capsys.readouterr()
        code = main([f"--workdir={workdir}", *flags(what, *extra)])
        return code, capsys.readouterr().err

    return run


class Talks:
    """`talks / "decoder.causal"` is the workdir of a run of two steps, trained on conversations of up to 64 tokens."""

    def __init__(self, corpus, runs):
        self.corpus, self.runs = corpus, runs
        with open(corpus / "messages.jsonl", "w") as file:
            for line in (corpus / "tiny.jsonl").read_text().splitlines():
                words = json.loads(line)["text"].split()
                turns = [
                    {"role": role, "content": " ".join(words[i : i + 2])} for i, role in enumerate(["user", "assistant"] * 2)
                ]
                file.write(json.dumps({"messages": turns}) + "\n")

    def __truediv__(self, name):
        folder = self.corpus / f"talks.{name}"
        if not folder.exists():
            settings = {"data.sources.mine.path": f"{self.corpus}/messages.jsonl", "data.cache": f"{self.corpus}/cache"}
            settings |= {"train.init_from": str(self.runs / name), "train.steps": "2", "train.batch_size": "4"}
            settings |= {"recipe.length": "40", "checkpoint.every": "None", "evaluate.rows": "2", "log.tensorboard": "False"}
            config = Path(__file__).parents[2] / "configs" / "finetune.py"
            recipes.train(resolve.load(f"{config}:messages", settings | {"data.holdout": "0.3"}), folder, quiet=True)
        return folder


@pytest.fixture(scope="session")
def talks(corpus, runs):
    return Talks(corpus, runs)
