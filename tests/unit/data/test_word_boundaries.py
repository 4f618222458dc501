"""Word, character and sentence boundaries agree with the tokenizer's own pre-tokenizer, in every script."""

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lm import config
from lm.data.tokenizer import HuggingFace, train
from lm.data.word_boundaries import SENTENCE_ENDS, boundary, byte_level_alphabet, characters
from lm.types import CHARACTER, INSIDE, WORD

TEXTS = {
    "Hebrew": "שלום עולם קטן ילד גדול, והיה כאשר",
    "Hindi": "हिन्दी में लिखा हुआ वाक्य। और एक",
    "Arabic": "مرحبا بالعالم، كيف حالك؟ نعم",
    "English": "Don't stop, it's the 1945th state...  of union!\n\n \tand  so",
    "code": "for(i=0;i<10;++i){ foo_bar[i] += 0x1F; }\n    return a&&b; // 12345",
    "emoji": "ok 😀👩‍👩‍👧 fine 🇩🇪!!!",
}
CHINESE, JAPANESE, THAI = "你好，世界。这是一个句子！", "これは文です。カタカナも", "สวัสดีครับ ผมชื่อ"


# Word patterns: GPT-2's; LLaMA 3's, where punctuation joins the letters after it and digits are in threes; and entire lines.
LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KINDS = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "lines": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "merged_with_previous"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def byte_level(request):
    return byte_level_bpe(KINDS[request.param])


def byte_level_bpe(split):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = split(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = dict(vocab_size=420, special_tokens=["<s>", "</s>", "<mask>"], initial_alphabet=alphabet, show_progress=False)
    t.train_from_iterator(list(TEXTS.values()), trainers.BpeTrainer(**settings))
    t.add_tokens(["<tool>"])
    return t, HuggingFace(t.to_str().encode())


def test_the_alphabet_is_that_of_the_library():
    assert set(byte_level_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    for letter in "aé漢😀\n ":
        stands_in = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(letter)[0][0]
        assert bytes(byte_level_alphabet()[c] for c in stands_in) == letter.encode()


def theirs(raw, text):
    """bool [n]: whether one of the library's words begins with each token; added tokens are words."""
    encoding = raw.encode(text, add_special_tokens=False)
    return np.diff(encoding.word_ids, prepend=-1) != 0


@pytest.mark.parametrize("language", TEXTS)
def test_words_of_byte_level_bpe_are_those_of_the_library(byte_level, language):
    raw, t = byte_level
    text = TEXTS[language] + " <tool>" + TEXTS[language]
    ids = t.encode(text)
    assert t.decode(ids) == text
    np.testing.assert_array_equal(t.boundaries(ids) == WORD, theirs(raw, text))


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, THAI, "ab漢字ja"])
def test_without_spaces_every_character_is_a_word(byte_level, text):
    """There, the library's words are clauses; all of its boundaries are kept."""
    raw, t = byte_level
    ids = t.encode(text)
    begins = t.boundaries(ids)
    assert (begins[theirs(raw, text)] == WORD).all()
    pieces = np.split(ids, np.flatnonzero(begins == WORD)[1:])
    assert all(len(t.decode(piece).strip()) <= 5 for piece in pieces)
    assert "\ufffd" not in "".join(map(t.decode, pieces))


@pytest.mark.parametrize("language", TEXTS)
def test_words_if_the_pre_tokenizer_drops_spaces_and_inserts_its_own(language):
    """The text's spaces are removed before byte-level BPE, which inserts one before each word."""
    split = lambda: pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])
    raw, t = byte_level_bpe(split)
    text = TEXTS[language] + " <tool>" + TEXTS[language]
    np.testing.assert_array_equal(t.boundaries(t.encode(text)) == WORD, theirs(raw, text))


def test_a_window_may_begin_and_end_inside_a_character(byte_level):
    _, t = byte_level
    ids = t.encode("ab 😀 שלום cd")
    whole = t.boundaries(ids)
    for first in range(len(ids)):
        for last in range(first + 1, len(ids) + 1):
            begins = t.boundaries(ids[first:last])
            inner = np.flatnonzero(whole[first:last] != INSIDE)
            assert (begins[inner] != INSIDE).all() and len(begins) == last - first
            np.testing.assert_array_equal(begins == INSIDE, whole[first:last] == INSIDE)
    assert len(t.boundaries(ids[:0])) == 0


def test_special_tokens_are_words(byte_level):
    _, t = byte_level
    ids = np.concatenate([[t.bos_id], t.encode("one"), [t.mask_id], t.encode("two"), [t.eos_id]])
    begins = t.boundaries(ids)
    assert (begins[t.special[ids]] == WORD).all()


def test_wordpiece_pieces_with_the_prefix_continue_a_word():
    words = {"[UNK]": 0, "un": 1, "##believ": 2, "##able": 3, ",": 4, "漢": 5, "##字": 6}
    t = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    t.pre_tokenizer, t.normalizer = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
    v = HuggingFace(t.to_str().encode())
    ids = v.encode("unbelievable, un")
    assert [v.piece(i) for i in ids] == ["un", "##believ", "##able", ",", "un"]
    assert v.boundaries(ids).tolist() == [WORD, CHARACTER, CHARACTER, WORD, WORD]


def test_a_word_begins_after_a_piece_with_the_end_of_word_suffix():
    """openai-gpt marks the ends of words, with "</w>", not their beginnings."""
    pieces = ["<unk>", "un", "able</w>", "the</w>", "a"]
    t = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    v = HuggingFace(t.to_str().encode())
    assert v.boundaries(np.array([3, 1, 2, 1, 4, 2])).tolist() == [1, WORD, 1, WORD, 1, 1]


@pytest.mark.parametrize(
    "piece,begins",
    [
        (" a", WORD),
        ("\n", WORD),
        (",", WORD),
        ("é", CHARACTER),
        ("漢", WORD),
        ("ก", WORD),
        ("\u0e34", CHARACTER),
        ("", CHARACTER),
    ],
)
def test_the_boundary_of_a_piece(piece, begins):
    assert boundary(piece.encode()) == begins


def test_parts_of_characters():
    euro = "€".encode()
    assert [boundary(euro[i:]) for i in range(3)] == [WORD, INSIDE, INSIDE]
    assert boundary("я".encode()[:1]) == CHARACTER  # incomplete, so most likely a letter
    text, begins = characters(euro[1:] + "aé😀".encode() + euro[:2])
    assert text == "aaaé😀aa" and begins.tolist() == [0, 1, 2, 3, 5, 9, 10, 11]


@pytest.fixture(scope="module")
def trained():
    """A tokenizer trained here, which encodes most punctuation as bytes."""
    return train(["the law of the land " * 30] * 5, config.Tokenizer("bpe", 380))


def bytes_of_a_file():
    """A tokenizer.json like LLaMA 2's: pieces that begin with a space, and byte fallback."""
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    t = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "\u2581")
    return HuggingFace(t.to_str().encode())


@pytest.mark.parametrize("text", [CHINESE, THAI, "ab😀c—d “naïve” 漢", "שלום עולם", "a𠀀b"])
def test_characters_in_bytes_begin_what_they_would_as_pieces(trained, text):
    for t in (trained, bytes_of_a_file()):
        ids = t.encode(text)
        begins, at = t.boundaries(ids), 0
        for character in text:
            size = len(character.encode())
            if not character.isascii():
                assert begins[at : at + size].tolist() == [boundary(character.encode()), *[INSIDE] * (size - 1)]
            at += size
        assert at == len(ids)
        lead = next(i for i, character in enumerate(text) if not character.isascii())
        assert t.boundaries(ids[: lead + 1])[-1] == CHARACTER  # cut by the end of a window


# ----------------------------------------------------------------------------------------------------------- sentences


def ends(t, text):
    """The text split where a sentence may end."""
    ids = t.encode(text)
    cuts = np.flatnonzero(t.sentence_ends(ids)) + 1
    return [t.decode(part) for part in np.split(ids, cuts) if len(part)]


@pytest.mark.parametrize("mark", SENTENCE_ENDS)
def test_every_mark_ends_a_sentence_also_in_bytes(trained, byte_level, mark):
    for t in (trained, byte_level[1]):
        assert ends(t, f"ab{mark}cd") == [f"ab{mark}", "cd"]


def test_the_same_bytes_in_other_characters_end_no_sentence(trained, byte_level):
    """ "ア" has the last byte of "。" elsewhere; "㠂" and "가" share bytes with it, too."""
    for t in (trained, byte_level[1]):
        for text in ("アイ，、・", "ab\u0302c", "ÂÃ€‚„", "𝄞𝄢"):
            assert ends(t, text) == [text]


def test_a_window_that_begins_inside_a_mark(trained):
    ids = trained.encode("。")
    assert len(ids) == 3 and trained.sentence_ends(ids).tolist() == [False, False, True]
    assert not trained.sentence_ends(ids[1:]).any() and trained.sentence_ends(ids[:0]).shape == (0,)
