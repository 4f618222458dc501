"""Byte-level BPE: the merges of a plain reference, the words and ids of tiktoken, the library's own tokens."""

import dataclasses
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lm import config
from lm.data import tokenizer_bytes, tokenizer_json
from lm.data.corpus import prepare
from lm.data.tokenizer import from_bytes, identity_of, train
from lm.data.word_boundaries import byte_level_alphabet
from lm.errors import UserError
from lm.types import WORD
from tests.unit.data.test_tokenizer import NASTY

RESERVED, SIZE = 110, 420
SPLITS = ("gpt2", "gpt4", "llama3")
PIECES = [
    *("the state", " of", "THE", "'s", "'S", "'ll", "'RE", "don't", " ", "  ", "\n", "\r\n", "\n\n", "\t", "\x0b", "\x85"),
    *("1", "12", "1945", "\u00bd", "\u00e9", "e\u0301", "\u6f22\u5b57", "\u3000", "\U0001f600", "!", "...", "//", "(", "_"),
    *("</s>", "<mask>", "\u2581", "\u017f"),
]


def texts(count=60, length=60):
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=length)) for _ in range(count)]


@pytest.fixture(scope="module")
def trained():
    return {split: train(texts(), config.Tokenizer("byte_bpe", SIZE, split=split)) for split in SPLITS}


@pytest.fixture(params=SPLITS)
def split(request):
    return request.param


def library(split):
    """The library's tokenizer with the words of the split, and no pieces."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if expression := tokenizer_bytes.SPLITS[split]:
        parts = [pre_tokenizers.Split(Regex(expression), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.decoder = decoders.ByteLevel()
    return made


def test_ids(trained, split):
    t = trained[split]
    assert (t.pad_id, t.bos_id, t.eos_id, t.unk_id, t.mask_id, t.vocab_size) == (0, 1, 2, 3, 4, SIZE)
    assert t.sentinel_ids == tuple(range(5, 105)) and [*t.role_ids.values()] == [*range(105, 110)]
    assert t.special.tolist() == [True] * RESERVED + [False] * (SIZE - RESERVED)
    assert sorted(t.piece_bytes[RESERVED : RESERVED + 256]) == [bytes([b]) for b in range(256)]
    assert t.require("sentinels") == t.sentinel_ids


def merges_of(words, count):
    """Merges of words of bytes by the rule of Sennrich et al. (2016): the most frequent pair, of equal ones the lowest ids."""
    ids = {letter: i for i, letter in enumerate(sorted(byte_level_alphabet()))}
    counts = {tuple(ids[letter] for letter in word): n for word, n in words.items()}
    letters, found = sorted(byte_level_alphabet()), []
    for _ in range(count):
        pairs = Counter()
        for word, n in counts.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append((letters[best[0]], letters[best[1]]))
        letters.append("".join(found[-1]))
        merged = Counter()
        for word, n in counts.items():
            out = []
            for i in word:
                if out and (out[-1], i) == best:
                    out[-1] = len(letters) - 1
                else:
                    out.append(i)
            merged[tuple(out)] += n
        counts = merged
    return found


def test_merges_are_those_of_a_plain_reference(trained, split):
    without_names = [part for text in texts() for part in text.replace("</s>", "<mask>").split("<mask>")]
    words = Counter(word for text in without_names for word, _ in library(split).pre_tokenizer.pre_tokenize_str(text))
    expected = merges_of(words, SIZE - RESERVED - 256)
    pieces = [trained[split].piece(i) for i in range(RESERVED + 256, SIZE)]
    assert pieces == ["".join(pair) for pair in expected] and len(set(pieces)) == len(pieces)


def test_the_file_is_that_of_the_library_used_directly(split):
    plain = [text.replace("</s>", "").replace("<mask>", "") for text in texts()]
    theirs = library(split)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(name, special=True, normalized=False) for name in tokenizer_bytes.RESERVED]
    theirs.train_from_iterator(
        plain, trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    ours = train(plain, config.Tokenizer("byte_bpe", SIZE, split=split))
    assert ours.proto == theirs.to_str().encode()
    theirs.encode_special_tokens = True
    for text in plain[:9]:
        assert ours.encode(text).tolist() == theirs.encode(text).ids
    assert from_bytes(ours.proto, checked=True).fingerprint == ours.fingerprint


@pytest.fixture(scope="module")
def published():
    """The expressions of tiktoken, without the vocabularies that it would download."""
    public = pytest.importorskip("tiktoken_ext.openai_public")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
        patched.setattr(public, "data_gym_to_mergeable_bpe_ranks", lambda *_, **__: {})
        return {"gpt2": public.gpt2()["pat_str"], "gpt4": public.cl100k_base()["pat_str"]}


@pytest.mark.parametrize("split", ["gpt2", "gpt4"])
def test_words_and_ids_are_those_of_tiktoken(trained, published, split):
    """In tiktoken the pieces are bytes, the rank of each is its place."""
    import tiktoken

    t = trained[split]
    ranks = {piece: i for i, piece in enumerate(t.piece_bytes[RESERVED:])}
    theirs = tiktoken.Encoding("ours", pat_str=published[split], mergeable_ranks=ranks, special_tokens={})
    for text in [*texts(300, 7), *(text + "\n  \t" for text in texts(9)), NASTY, "x" * 100, "  \n", "1" * 7]:
        assert (t.encode(text) - RESERVED).tolist() == theirs.encode_ordinary(text), text


def test_llama_and_gpt4_differ_where_a_text_ends_in_white_space(trained):
    cut = lambda split, text: [word for word, _ in library(split).pre_tokenizer.pre_tokenize_str(text)]
    assert len(cut("gpt4", "a\n  ")) == 2 and len(cut("llama3", "a\n  ")) == 3 and len(cut("gpt2", "a\n  ")) == 2
    for text in ("a\n  b", "it'S 12345 \u00e9t\u00e9(x) !!\n", "  a\t\tb"):
        assert cut("gpt4", text) == cut("llama3", text) != cut("gpt2", text)


def test_the_file_does_not_depend_on_threads_or_the_process(trained):
    code = (
        "from lm import config; from lm.data.tokenizer import train; from tests.unit.data import test_tokenizer_bytes as t\n"
        "for s in t.SPLITS: print(train(t.texts(), config.Tokenizer('byte_bpe', t.SIZE, split=s)).fingerprint)"
    )
    env = os.environ | {"RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [trained[s].fingerprint for s in SPLITS]


def test_any_text_comes_back_and_none_is_special(trained, split):
    t = trained[split]
    cases = [*texts(), NASTY, "", " ", "\n\n", "<pad><s></s><unk><mask><extra_id_0><|user|>", "\u0120a\u010a"]
    for text, ids in zip(cases, t.encode_batch(cases), strict=True):
        assert t.decode(ids) == text and ids.dtype == np.int32 and not t.special[ids].any()
    assert t.decode([1, *t.encode(" a"), 4, 5, 105, 2]) == " a"


def test_no_piece_has_the_name_of_a_special_token():
    names = "".join(tokenizer_bytes.RESERVED)
    t = train([f"{names} so <s>it</s> is", "xs>ms> <st"] * 50, config.Tokenizer("byte_bpe", 370))
    assert sum(piece in tokenizer_bytes.RESERVED for piece in t._vocab) == RESERVED
    assert not t.special[t.encode(names)].any() and t.decode(t.encode(names)) == names


def test_words_are_those_of_the_library(trained, split):
    """For whole-word masks and spans."""
    t = trained[split]
    made = Tokenizer.from_str(t.proto.decode())
    made.encode_special_tokens = True
    for text in ["It's 12345 (the state), don't!\n\n  \u00e9t\u00e9", "a\t\tb  c ... d"]:
        encoded = made.encode(text)
        assert (t.boundaries(np.array(encoded.ids)) == WORD).tolist() == (np.diff(encoded.word_ids, prepend=-1) != 0).tolist()
    assert (t.boundaries(np.arange(RESERVED)) == WORD).all()


def test_a_long_text_is_trained_on_in_parts_and_encoded_on_all_cores(monkeypatch):
    long = "the state of the union\n" * 400
    whole = train([long], config.Tokenizer("byte_bpe", 380))
    monkeypatch.setattr(tokenizer_bytes, "_PART", 100)
    assert train([long], config.Tokenizer("byte_bpe", 380)).proto == whole.proto
    assert max(map(len, tokenizer_bytes._parts(["x" * 1001]))) == 100
    asked, encode, once = [], whole._encode, whole.encode(long)
    monkeypatch.setattr(whole, "_encode", lambda texts, *n: asked.append(sum(map(len, texts))) or encode(texts))
    monkeypatch.setattr(tokenizer_json, "_PART", 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    parts = whole.encode_batch([long, "a", "", long])
    assert [p.tolist() for p in (parts[0], parts[3])] == [once.tolist()] * 2 and (len(parts[1]), len(parts[2])) == (1, 0)
    assert max(asked) > 3500  # one call has parts for all cores, those of a single text too


def test_as_many_texts_at_once_as_threads_are_given(trained, split, monkeypatch):
    """The library takes no more threads than a call has texts."""
    t, calls = trained[split], []
    whole, given = t.encode_batch(texts()), t._tokenizer

    class Spied:
        def encode_batch_fast(self, some, **more):
            calls.append(len(some))
            return given.encode_batch_fast(some, **more)

    monkeypatch.setattr(t, "_tokenizer", Spied())
    for threads, expected in ((1, [1] * 60), (25, [25, 25, 10]), (None, [60])):
        calls.clear()
        found = t.encode_batch(texts(), threads=threads)
        assert calls == expected and all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))


def test_sizes_that_texts_do_not_allow():
    with pytest.raises(UserError, match="vocab_size=300 is below 367"):
        train(texts(), config.Tokenizer("byte_bpe", 300))
    with pytest.raises(UserError, match=r"vocab_size=9000 is more than the .* largest for byte_bpe is (\d+)") as caught:
        train(texts(), config.Tokenizer("byte_bpe", 9000))
    largest = int(str(caught.value).split()[-1])
    assert train(texts(), config.Tokenizer("byte_bpe", largest)).vocab_size == largest


def test_what_a_fingerprint_tells(monkeypatch):
    import tokenizers

    assert identity_of(config.Tokenizer()) == {"kind": "bpe", "vocab_size": 8192, "path": None}
    found = identity_of(config.Tokenizer("byte_bpe", split="llama3"))
    assert found == {"kind": "byte_bpe", "vocab_size": 8192, "path": None, "split": "llama3"} | {
        "tokenizers": tokenizers.__version__
    }
    with pytest.raises(UserError, match="split=llama3 is of kind=byte_bpe, and kind is bpe"):
        config.Tokenizer("bpe", split="llama3")
    data = config.Data(tokenizer=config.Tokenizer("byte_bpe"))
    marks = {prepare.fingerprint(dataclasses.replace(data, tokenizer=config.Tokenizer("byte_bpe", split=s))) for s in SPLITS}
    assert len(marks) == 3 and prepare.fingerprint(data) in marks
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="byte-level BPE.* needs the tokenizers library: pip install"):
        prepare.fingerprint(data)  # before anything is read
    assert prepare.fingerprint(config.Data())
