"""Runs with a byte-level BPE trained here: every objective reads its pieces; a model of it writes, scores, is exported."""

import json

import numpy as np
import pytest

from lm import generate, recipes, saved, score
from lm.config import resolve
from lm.convert import main as convert
from lm.types import WORD
from lm.view import reading
from tests.e2e.test_generate import lines
from tests.e2e.test_show import split

BYTES = "--config.data.tokenizer.kind=byte_bpe"
OBJECTIVES = {
    "decoder": (
        *("causal", "prefix", "fill_in_middle", "span_corruption", "masked_diffusion", "block_diffusion", "any_order"),
        *("teacherless", "multi_token", "mixture"),
    ),
    "encoder": ("masked", "next_sentence", "masked_diffusion", "replaced_tokens", "contrastive", "mixture"),
    "encoder_decoder": ("span_corruption", "denoise", "deshuffle", "mass", "prefix", "mixture"),
}
EVERY = [f"{architecture}.{objective}" for architecture, some in OBJECTIVES.items() for objective in some]


def kinds_in(found):
    """The kinds of ids that the first three steps read and ask for: special tokens by what they are for, and text."""
    t, pieces, kinds = found.data.tokenizer, found.pieces, set()
    for step in (1, 2, 3):
        batch = found.batch(found.numbers(step))
        for example in getattr(batch, "examples", (batch,)):
            streams = [s.tokens for s in (example.encoder, example.decoder) if s is not None]
            for ids in [*streams, example.targets]:
                kinds |= {pieces.kind(int(i)) if t.special[i] else "text" for i in np.unique(ids) if 0 <= i < t.vocab_size}
    return kinds


@pytest.mark.parametrize("name", EVERY)
def test_every_objective_reads_pieces_of_bytes_as_it_reads_others(flags, name):
    given = lambda *more: reading.read(resolve.load(*split(flags(name, *more))), "train", progress=False)
    found = given(BYTES)
    assert found.data.tokenizer.special.sum() == 110 and found.data.tokenizer.vocab_size == 400
    assert kinds_in(found) == kinds_in(given()) >= {"text"}


def test_whole_words_are_masked_whole(flags):
    more = ("--config.objective.whole_word=True", "--config.objective.rate=0.3")
    found = reading.read(resolve.load(*split(flags("encoder.masked", BYTES, *more))), "train", progress=False)
    batch, t, several = found.batch(found.numbers(1)), found.data.tokenizer, 0
    for tokens, where, targets, weights in zip(batch.encoder.tokens, batch.where, batch.targets, batch.weights, strict=True):
        hidden = where[weights > 0]
        whole = tokens.copy()
        whole[hidden] = targets[weights > 0]
        begins = t.boundaries(whole) == WORD
        inside = np.flatnonzero(~begins)
        inside = inside[inside > 0]
        chosen = np.isin(np.arange(len(tokens)), hidden)
        np.testing.assert_array_equal(chosen[inside], chosen[inside - 1])
        several += chosen[inside].sum()
    assert several > 5


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    """A run of two steps on words as LLaMA 3's, of a model that GPT-2's family takes."""
    block = "--config.model.decoder.blocks.L"
    biased = [f"{block}.attention.bias=True", f"{block}.attention.out_bias=True", f"{block}.ffn.bias=True"]
    given = flags("decoder.causal", BYTES, "--config.data.tokenizer.split=llama3", "--config.train.steps=2", *biased)
    folder = tmp_path_factory.mktemp("bytes") / "run"
    path, settings = split(given)
    recipes.train(resolve.load(path, settings), folder, quiet=True)
    return folder


def test_a_model_of_it_writes_and_scores(run, piped):
    """Its file lies in the checkpoint, so that nothing is read from the cache."""
    tokenizer = saved.open(run).tokenizer()
    assert tokenizer.proto.startswith(b"{") and saved.open(run).run.data.tokenizer.split == "llama3"
    asked = [{"prompt": "</s> \u00e9t\u00e9\n\n abc"}]
    words = (f"--from={run}", "--jsonl", "--new_tokens=6", "--temperature=0")
    code, out, err = piped(generate.main, words, lines(*asked))
    assert code == 0, err
    assert json.loads(out)["tokens"] <= 6 and not json.loads(out)["text"].startswith("</s>")
    code, out, err = piped(score.main, (f"--from={run}", "--jsonl"), lines({"text": asked[0]["prompt"]}))
    assert code == 0, err
    assert json.loads(out)["tokens"] == len(tokenizer.encode(asked[0]["prompt"]))


def test_it_is_exported_with_its_own_file(run, tmp_path):
    hf = pytest.importorskip("transformers")
    assert convert(["to_hf", str(run), str(tmp_path / "out")]) == 0
    ours, theirs = saved.open(run).tokenizer(), hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("abc de\n\n  fa'S 12345 (x)\n  ", "</s> <mask>", "\u00e9\U0001f600"):
        ids = theirs(text, split_special_tokens=True).input_ids
        assert ids == [ours.bos_id, *ours.encode(text).tolist()] and theirs.decode(ids, skip_special_tokens=True) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.mask_token_id) == (1, 2, 0, 4)
