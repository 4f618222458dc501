"""Word-level tokenizers: one id for a word, whatever is around it."""

import numpy as np
import pytest

from lm import config
from lm.data.tokenizer import Words, from_bytes, train
from lm.errors import UserError
from lm.objectives import build
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.types import WORD

TEXTS = ["b a\nb", "c\tb  a", "漢字 a<mask> ▁ x▁y", "don't"]
WORDS = ["b", "a", "a<mask>", "c", "don't", "x▁y", "▁", "漢字"]  # by frequency, then by code points


@pytest.fixture(scope="module")
def tokenizer():
    return train(TEXTS, config.Tokenizer("word"))


def test_each_word_is_one_id_after_the_reserved_ones(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id) == (0, 1, 2, 3, 4)
    assert tokenizer.sentinel_ids == tuple(range(5, 37))
    assert tokenizer.role_ids["<|system|>"] == 37 and tokenizer.role_ids["<|end|>"] == 41
    assert tokenizer.vocab_size == 42 + len(WORDS)  # 8192 is the limit
    assert [tokenizer.encode(word).tolist() for word in WORDS] == [[42 + i] for i in range(len(WORDS))]
    assert not tokenizer.special[42:].any() and tokenizer.special[:42].all()


def test_words_are_the_same_anywhere_and_unknown_ones_are_each_unk(tokenizer):
    assert tokenizer.encode("  a b\n\nc zz yy b ").tolist() == [43, 42, 45, 3, 3, 42]
    apart = np.concatenate([tokenizer.encode(part) for part in ("a b", "c", "", "zz x▁y")])
    assert np.array_equal(tokenizer.encode("a b c zz x▁y"), apart) and apart.dtype == np.int32
    assert [ids.tolist() for ids in tokenizer.encode_batch(["", "<mask> <s> <extra_id_0>", "b"])] == [[], [3, 3, 3], [42]]


def test_decoding_puts_single_spaces_between_words(tokenizer):
    assert tokenizer.decode([1, *tokenizer.encode("a\n\nx▁y  漢字 zz ▁"), 4, 5, 37, 2]) == "a x▁y 漢字 ⁇ ▁"
    assert tokenizer.decode([]) == ""


def test_every_token_begins_a_word(tokenizer):
    assert (tokenizer.boundaries(np.arange(tokenizer.vocab_size)) == WORD).all()
    ends = train(["one two. 三。 four"], config.Tokenizer("word"))
    assert ends.sentence_ends(ends.encode("one two. four 三。")).tolist() == [False, True, False, True]


def test_its_file_makes_it_again(tokenizer):
    again = from_bytes(tokenizer.proto)
    assert isinstance(again, Words) and again.proto == tokenizer.proto == train(TEXTS, config.Tokenizer("word")).proto
    assert np.array_equal(again.encode("a zz zz x▁y"), tokenizer.encode("a zz zz x▁y"))
    assert type(from_bytes(train(["a b"] * 9, config.Tokenizer("unigram", 371)).proto)) is not Words


def test_the_limit_keeps_the_most_frequent_words():
    two = train(TEXTS, config.Tokenizer("word", 44))
    assert two.vocab_size == 44 and two.encode("a b c").tolist() == [43, 42, 3]
    assert train(["same same"], config.Tokenizer("word", 43)).encode("same").tolist() == [42]


def test_a_word_of_any_length_is_read():
    """sentencepiece reads no model with a piece of 65,536 bytes."""
    long = train(["a b " + "x" * 100_000], config.Tokenizer("word"))
    assert long.encode("b " + "x" * 100_000 + " a").tolist() == [43, 3, 42]
    with pytest.raises(UserError, match="no words"):
        train(["x" * 100_000], config.Tokenizer("word"))


def test_faults_are_named():
    with pytest.raises(UserError, match=r"vocab_size=42 is below 43, the least that reserved ids and a word need"):
        train(TEXTS, config.Tokenizer("word", 42))
    with pytest.raises(UserError, match="no words"):
        train(["", " \n"], config.Tokenizer("word"))


OBJECTIVES = {
    "decoder": [config.Causal(), config.Prefix(), config.SpanCorruption(), config.FillInMiddle()],
    "encoder": [config.Masked(), config.Masked(whole_word=True), config.NextSentence()],
    "encoder_decoder": [config.SpanCorruption(), config.Denoise(), config.Deshuffle(), config.Mass(), config.Masked()],
}


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_objectives_make_examples_of_words(tokenizer, architecture):
    """Their ids are those of the vocabulary, and the shapes are known before there is one."""
    data = config.Data(encoder_length=32, decoder_length=32)
    rng = np.random.default_rng(0)
    words = np.array([1, *rng.integers(42, tokenizer.vocab_size, 22), 2], np.int32)
    for objective in OBJECTIVES[architecture]:
        made = build(objective, architecture, data, tokenizer)
        assert made.lengths == build(objective, architecture, data, DummyVocabulary(64, words=True)).lengths
        example = made.make(words, rng, words) if made.needs_other else made.make(words, rng)
        for ids in (s.tokens for s in (example.encoder, example.decoder) if s is not None):
            assert ids.max() < tokenizer.vocab_size
        assert len(example.targets) and example.weights.any()


def test_a_window_of_too_many_spans_is_refused(tokenizer):
    with pytest.raises(UserError, match="takes 38 sentinels, the tokenizer has 32: raise objective.mean_span"):
        build(config.SpanCorruption(mean_span=1.0, rate=0.3), "decoder", config.Data(decoder_length=204), tokenizer)
