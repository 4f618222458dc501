"""Vectors of a converted BERT equal those of transformers' own tokenizer and model, pooled as sentence-transformers does."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from lm import saved  # noqa: E402
from lm.conversion import folders  # noqa: E402
from lm.generation.vectors import Embedder  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from tests.parity.tiny import CASES, V  # noqa: E402

TEXTS = ["a bc d", "c", "abc d dd a b c a bc d ab", "d [SEP] a", "dcba bb", ""]


def wordpiece(folder):
    """A BERT-like tokenizer.json over a few letters, whose template adds [CLS] and [SEP]."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *"abcd[]SEP", *(f"##{c}" for c in "abcdSEP")]
    vocab = {name: i for i, name in enumerate(names)}
    assert len(vocab) <= V
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(names[:5])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Their model and tokenizer, and the folder that was converted from theirs."""
    theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
    torch.manual_seed(0)
    model = CASES["bert-trunk"]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.save_pretrained(theirs)
    tokenizer = wordpiece(theirs)
    folders.from_hf(str(theirs), str(ours / "bert"), dtype=None, scan=None, allow_pickle=False, drop=None)
    return model, tokenizer, ours / "bert"


def expected(model, tokenizer, texts):
    """float32 [N, D] by pooling: all texts in one padded batch under their attention mask."""
    rows = [tokenizer.encode(text).ids for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[..., None].float()
    return {
        "mean": ((hidden * weights).sum(1) / weights.sum(1)).numpy(),
        "cls": hidden[:, 0].numpy(),
        "last": hidden[torch.arange(len(rows)), mask.sum(1) - 1].numpy(),
        "max": hidden.masked_fill(mask[..., None] == 0, -torch.inf).max(1).values.numpy(),
    }


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
def test_vectors_equal_theirs(both, pooling):
    model, tokenizer, folder = both
    source = saved.open(folder)
    texts = [text for text in TEXTS if "[" not in text]
    settings = dict(pooling=pooling, length=32, batch_size=2)
    ours = Embedder(Transformer(source.model), source.params(), source.tokenizer(), None, **settings)
    wanted = expected(model, tokenizer, texts)[pooling]
    np.testing.assert_allclose(ours(texts), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5, rtol=0)
    ours.normalise = False
    np.testing.assert_allclose(ours(texts), wanted, atol=2e-5, rtol=0)
    assert np.abs(wanted[:, None] - wanted[None]).max(-1)[~np.eye(len(texts), dtype=bool)].min() > 0.05


def test_the_ends_come_once(both, monkeypatch):
    """[CLS] and [SEP] frame a text, also one in which their names are written."""
    _, tokenizer, folder = both
    source, read = saved.open(folder), []
    ours = Embedder(Transformer(source.model), source.params(), source.tokenizer(), None, length=32)
    monkeypatch.setattr(ours, "_read", lambda rows: read.extend(rows) or np.ones((len(rows), 64), np.float32))
    ours(TEXTS)
    for text, row in zip(TEXTS, read, strict=True):
        assert row[0] == 1 and row[-1] == 2 and not {1, 2} & set(row[1:-1].tolist())
        if "[" not in text:
            assert row.tolist() == tokenizer.encode(text).ids
    assert json.loads(Path(folder / "hf" / "tokenizer.json").read_text())["post_processor"]["type"] == "TemplateProcessing"
