"""The tokenizer is lossless, no text encodes to reserved ids, and equal texts give equal models."""

import io
import random
import re
import tracemalloc

import numpy as np
import pytest

from lm import config
from lm.data import tokenizer as module
from lm.data import tokenizer_json as json_module
from lm.data.tokenizer import NUM_SENTINELS, ROLES, HuggingFace, from_bytes, load, train
from lm.errors import UserError
from lm.types import WORD

WORDS = ["the", "state", "of", "union", "and", "congress", "people", "war", "peace", "treasury", "law", "year", "1945"]
NASTY = "ab Z09\n\r\t\0\x01\x7f\x85\u2028▁▅⁇é\u0301😀\u200d👩\ufeff<>/_&;漢字\ud7ff\ue000\uffff\U0010ffff  "


def texts():
    rng = random.Random(0)
    return ["\n".join(" ".join(rng.choices(WORDS, k=12)).capitalize() + ", don't!" for _ in range(6)) for _ in range(60)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind):
    return train(texts(), config.Tokenizer(kind, 420))


def test_reserved_ids(tokenizer):
    t = tokenizer
    assert (t.pad_id, t.bos_id, t.eos_id, t.unk_id, t.mask_id) == (0, 1, 2, 3, 4)
    assert t.sentinel_ids == tuple(range(5, 5 + NUM_SENTINELS)) and t.piece(5) == "<extra_id_0>"
    assert t.role_ids == {role: 105 + i for i, role in enumerate(ROLES)}
    assert t.special.tolist() == [True] * 110 + [False] * 310 and t.piece(110) == "\n" and t.vocab_size == 420
    assert t.require("mask") == 4 and t.require("sentinels") == t.sentinel_ids


@pytest.mark.parametrize("settings", [dict(user_defined_symbols=["\n", "\n\n"]), dict(add_dummy_prefix=True)])
def test_a_given_model_is_not_encoded_by_lines_if_its_pieces_span_newlines(settings):
    """Or if it puts a space before each text, which would then be before each line."""
    import sentencepiece

    model = io.BytesIO()
    given = dict(user_defined_symbols=["\n"], add_dummy_prefix=False, normalization_rule_name="identity") | settings
    lines = iter([line for text in texts() for line in text.split("\n")])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=100, model_type="bpe", minloglevel=2, **given
    )
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    text = "the war\n\nof law\npeace"
    assert from_bytes(model.getvalue()).encode(text).tolist() == sp.encode(text)


def test_decoding_restores_any_text(tokenizer):
    rng = random.Random(1)

    def character():
        if rng.random() < 0.7:
            return rng.choice(NASTY)
        return chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))

    cases = [
        "",
        " ",
        " " * 300,
        "\n\n",
        "a\r\nb",
        "\0",
        "▁",
        " ▁ a▁",
        "\t\tx ",
        "👨‍👩‍👧",
        "<mask><s></s><extra_id_0><|user|><0x41>",
    ]
    cases += ["".join(character() for _ in range(rng.randrange(50))) for _ in range(500)]
    for text, ids in zip(cases, tokenizer.encode_batch(cases), strict=True):
        assert tokenizer.decode(ids) == text
        assert np.array_equal(tokenizer.encode(text), ids) and ids.dtype == np.int32
        assert not tokenizer.special[ids].any()


@pytest.mark.parametrize("part", [3, 7, 40])
def test_a_long_text_has_the_same_tokens_when_encoded_in_parts(tokenizer, monkeypatch, part):
    rng = random.Random(part)
    cases = ["the war\n\nof  law\npeace", "\n" * 50, " " * 50, "a" + " " * 50 + "b\n", *texts()[:3]]
    cases += ["".join(rng.choices(["the", "war", " ", "   ", "\n", "▁", "1945"], k=40)) for _ in range(20)]
    whole = tokenizer.encode_batch(cases)
    monkeypatch.setattr(module, "_PART", part)
    for text, once, parts in zip(cases, whole, tokenizer.encode_batch(cases), strict=True):
        assert tokenizer.decode(parts) == text
        if all(len(run) < part for run in re.findall(r" +|[^ \n]+", text)):
            assert np.array_equal(parts, once)


def test_a_long_text_costs_a_few_times_its_size(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_PART", 1 << 12)
    for long in ("the war and the law, " * 4000, "the state of peace\n" * 4000):
        tracemalloc.start()
        ids = tokenizer.encode(long)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * len(long) + 3 * ids.nbytes  # lists of ids would take more than ten times the array


def test_lines_and_digits_are_split(tokenizer):
    assert tokenizer.encode("a\nb").tolist().count(110) == 1
    assert sum(tokenizer.piece(i).strip("▁").isdigit() for i in tokenizer.encode("the year 1945")) == 4
    assert all("\n" not in tokenizer.piece(i) for i in range(111, tokenizer.vocab_size))


def test_control_symbols_decode_to_nothing(tokenizer):
    ids = tokenizer.encode("the law")
    assert tokenizer.decode([1, *ids, 4, 5, 105, 2]) == "the law"


def test_word_starts(tokenizer):
    ids = tokenizer.encode("war, peace")
    starts = tokenizer.boundaries(ids) == WORD
    pieces = [tokenizer.piece(i) for i in ids]
    assert [p for p, s in zip(pieces, starts, strict=True) if s][0] == ","
    assert all(s == (p[0] in "▁,") for p, s in zip(pieces, starts, strict=True))
    assert (tokenizer.boundaries(np.arange(111)) == WORD).all()


def test_sentence_ends(tokenizer):
    ids = tokenizer.encode("The law. Of war!\nand, peace?")
    assert not tokenizer.sentence_ends(np.arange(110)).any()
    ends = np.flatnonzero(tokenizer.sentence_ends(ids))
    assert [tokenizer.decode(ids[: i + 1])[-1] for i in ends] == [".", "!", "\n", "?"]  # "." and "?" are encoded as bytes here


def test_training_is_deterministic(kind, tokenizer):
    again = train(texts(), config.Tokenizer(kind, 420))
    assert again.proto == tokenizer.proto and again.fingerprint == tokenizer.fingerprint


def test_bpe_pieces_do_not_depend_on_threads(monkeypatch):
    pieces = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(module, "_TRAIN_THREADS", threads)
        t = train(texts(), config.Tokenizer("bpe", 420))
        pieces.append([t.piece(i) for i in range(420)])
    assert pieces[0] == pieces[1] == pieces[2]


def test_bytes_make_an_equal_tokenizer(tokenizer):
    again = from_bytes(tokenizer.proto)
    assert again.fingerprint == tokenizer.fingerprint and again.sentinel_ids == tokenizer.sentinel_ids
    assert np.array_equal(again.encode(texts()[0]), tokenizer.encode(texts()[0]))


def test_threads_do_not_change_encoding(tokenizer):
    one, three = (tokenizer.encode_batch(texts(), threads=n) for n in (1, 3))
    assert all(np.array_equal(a, b) for a, b in zip(one, three, strict=True))


def test_a_line_of_any_length_is_trained_on():
    t = train([" ".join(["extraordinarily"] * 1000)], config.Tokenizer("bpe", 394))
    assert "▁extraordinarily" in [t.piece(i) for i in range(t.vocab_size)]


def test_the_error_of_too_large_a_vocabulary_names_the_limit(kind):
    with pytest.raises(UserError, match=rf"vocab_size=5000 is more than .* largest for {kind} is (\d+)") as caught:
        train(texts(), config.Tokenizer(kind, 5000))
    largest = int(str(caught.value).split()[-1])
    assert train(texts(), config.Tokenizer(kind, largest)).vocab_size == largest


def test_too_small_a_vocabulary():
    with pytest.raises(UserError, match=r"vocab_size=300 is below 368"):
        train(texts(), config.Tokenizer("bpe", 300))
    with pytest.raises(UserError, match=r"vocab_size=370 is too small for the letters of the text; take at least \d+"):
        train(texts(), config.Tokenizer("bpe", 370))


def test_a_given_model(tmp_path):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_writer=model, vocab_size=60, minloglevel=2, hard_vocab_limit=False
    )
    (tmp_path / "given.model").write_bytes(model.getvalue())
    given = load(str(tmp_path / "given.model"))
    assert given.mask_id is None and given.sentinel_ids == () and given.role_ids == {} and given.pad_id is None
    assert given.decode(given.encode("the state")) == "the state" and np.argmin(given.special) == 3
    for name, piece in (("mask", "<mask>"), ("sentinels", "<extra_id_0>"), ("pad", "<pad>")):
        with pytest.raises(UserError, match=f"has no {piece}"):
            given.require(name)


def test_no_model_there(tmp_path):
    with pytest.raises(UserError, match="no tokenizer at .*none.model"):
        load(str(tmp_path / "none.model"))
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        load(str(tmp_path / "bad.model"))


def byte_level() -> str:
    """A byte-level BPE of the tokenizers library, as a tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    return t.to_str()


def test_a_given_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer.json").write_text(byte_level())
    t = load(str(tmp_path / "tokenizer.json"))
    assert isinstance(t, HuggingFace) and t.vocab_size > 258 and np.argmin(t.special) == 2
    assert t.bos_id == t.eos_id == t.pad_id == 0 and t.mask_id == 1
    text = "The state of the union, 1945.\n" + NASTY
    assert t.decode(t.encode(text)) == text
    assert t.encode(text).dtype == np.int32 and len(t.encode_batch([text, ""])[1]) == 0
    state = t.encode("a state")
    assert (t.boundaries(state) == WORD).tolist() == [t.piece(i)[0] in "a\u0120" for i in state]
    ends = t.sentence_ends(t.encode("a b. c\n"))
    assert ends.sum() == 2 and ends[-1] and not t.sentence_ends(np.arange(2)).any()
    assert from_bytes(t.proto).fingerprint == t.fingerprint
    with pytest.raises(UserError, match="has no <extra_id_0>"):
        t.require("sentinels")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        from_bytes(b"{}")


# ----------------------------------------------------- names of special tokens in a text are letters

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "<|eot_id|>"]
SPELLED = ["</s>", "a <mask>b</s> <|eot_id|>", "<unk><pad>", "<s>now</s>", " <mask> </s>"]


def given(model, pre=None, decoder=None, special=tuple(SPECIAL), added=()):
    """A tokenizer.json with these special tokens, each of which absorbs the spaces before it (`lstrip`)."""
    from tokenizers import AddedToken, Tokenizer

    t = Tokenizer(model)
    if pre is not None:
        t.pre_tokenizer = pre
    if decoder is not None:
        t.decoder = decoder
    t.add_special_tokens([AddedToken(s, lstrip=True, special=True) for s in special])
    t.add_tokens(list(added))
    return HuggingFace(t.to_str().encode())


def kinds_of_files():
    """Name -> a tokenizer in which the model or the library would find special tokens in a text."""
    from tokenizers import decoders, models, pre_tokenizers

    letters = [*"abnow</>|_eidtskmpu"]
    marked = ["\u2581", *letters]
    unigram = [(s, 0.0) for s in SPECIAL] + [(c, -3.0) for c in marked]
    pieces = {p: i for i, p in enumerate([*SPECIAL, *dict.fromkeys([*letters, "</", "s>"])])}
    words = {p: i for i, p in enumerate([*SPECIAL, "a", "b"])}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = {p: i for i, p in enumerate([*SPECIAL, *alphabet, "</", "s>"])}
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return {
        "unigram": given(models.Unigram(unigram, unk_id=3), pre_tokenizers.Metaspace(), decoders.Metaspace()),
        "words": given(models.WordLevel(words, unk_token="<unk>"), pre_tokenizers.WhitespaceSplit()),
        "merges": given(models.BPE(pieces, merges, unk_token="<unk>"), None, decoders.Fuse()),
        "byte level": given(models.BPE(byte_level, merges), whole, decoders.ByteLevel()),
        "whole pieces": given(models.BPE(byte_level, merges, ignore_merges=True), whole, decoders.ByteLevel()),
        "behind": given(models.BPE({p: i for i, p in enumerate(alphabet)}, []), whole, decoders.ByteLevel()),
    }


@pytest.mark.parametrize("name", ["unigram", "words", "merges", "byte level", "whole pieces", "behind"])
def test_no_text_becomes_a_special_token(name):
    """Except unk, which is special too, for text that the vocabulary cannot encode."""
    t = kinds_of_files()[name]
    named = {t.pad_id, t.bos_id, t.eos_id, t.mask_id, t._vocab["<|eot_id|>"]}
    assert len(named) == 5 and t.special[sorted(named)].all() and t.special.sum() == 6
    for text, ids in zip(SPELLED, t.encode_batch(SPELLED), strict=True):
        assert not named & set(ids.tolist())
        assert name not in ("byte level", "whole pieces", "behind") or t.decode(ids) == text
    for text in ("</s>", "a<s>b"):
        assert name == "words" or t.decode(t.encode(text)).replace(" ", "") == text
    silent = np.concatenate([[t.bos_id], t.encode("a"), [t.mask_id, t.eos_id]])
    assert t.decode(silent) == "a" and t.piece(t.eos_id) == "</s>"


@pytest.mark.parametrize("name", ["unigram", "words", "merges", "byte level", "whole pieces", "behind"])
def test_no_text_becomes_a_special_token_by_its_secret_name(name):
    """The names that special tokens get in the loaded model are random."""
    t = kinds_of_files()[name]
    text = " ".join(f"\U0010fffe{i}\U0010ffff" for i in range(8))
    assert not {t.pad_id, t.bos_id, t.eos_id, t.mask_id} & set(t.encode(text).tolist())


def files_to_cut():
    """Name -> a tokenizer.json; they differ in how they mark the beginnings of words or texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    raw = Tokenizer.from_str(byte_level())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    letters = [*"\u2581abcdefghijklmnopqrstuvwxyz0123456789"]
    vocab = {p: i for i, p in enumerate(["<unk>", "\n", *letters, "\u2581t", "\u2581th", "\u2581the", "\u2581\u2581"])}
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e"), ("\u2581", "\u2581")]
    prepends = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True))
    prepends.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    scores = [("<unk>", 0.0), ("\n", -5.0), *((p, -4.0) for p in letters), ("\u2581the", -3.0), ("\u2581war", -3.0)]
    unigram = Tokenizer(models.Unigram(scores, unk_id=0))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    bert = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "war": 2, "##s": 3, ",": 4}, unk_token="[UNK]"))
    bert.pre_tokenizer, bert.normalizer = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
    files = {"byte level": byte_level(), "byte level, prefix": raw.to_str(), "prepends": prepends.to_str()}
    return files | {"unigram": unigram.to_str(), "bert": bert.to_str()}


@pytest.mark.parametrize("name", ["byte level", "byte level, prefix", "prepends", "unigram", "bert"])
@pytest.mark.parametrize("part", [20, 50])
def test_a_tokenizer_json_gives_a_long_text_the_same_tokens_in_parts(monkeypatch, name, part):
    t, rng = HuggingFace(files_to_cut()[name].encode()), random.Random(part)
    cases = ["the war\n\nof  law\npeace " * 5, *texts()[:3], "漢字 e\u0301 " * 20, "the  wars, " * 30]
    cases += ["".join(rng.choices(["the", "war", " ", "   ", "\n", "1945", ","], k=60)) for _ in range(20)]
    whole = t.encode_batch(cases)
    asked, encode = [], t._encode
    monkeypatch.setattr(json_module, "_PART", part)
    monkeypatch.setattr(t, "_encode", lambda texts, *n: asked.append(max(map(len, texts), default=0)) or encode(texts))
    monkeypatch.setattr(json_module, "_CONTEXT", 30)
    for once, parts in zip(whole, t.encode_batch(cases), strict=True):
        assert np.array_equal(parts, once)
    assert len(asked) > 20 and max(asked) < 150 < max(map(len, cases))


def test_a_tokenizer_json_refuses_a_long_text_that_cannot_be_cut(monkeypatch):
    t = HuggingFace(files_to_cut()["bert"].encode())
    monkeypatch.setattr(json_module, "_PART", 200)
    monkeypatch.setattr(json_module, "_LONGEST_PART", 2000)
    assert t.encode("the " + "a" * 1900).tolist() == [1, 0]
    with pytest.raises(UserError, match="takes a text of 2,002 characters as one word"):
        t.encode("the " * 100 + "a" * 2001)


def test_added_tokens_that_are_not_special_are_text():
    from tokenizers import models

    t = given(models.BPE({"a": 0, "b": 1}, []), special=["</s>"], added=["<tool>", "    "])
    assert [t.piece(i) for i in t.encode("a<tool>b    a</s>")] == ["a", "<tool>", "b", "    ", "a"]
    assert t.decode(t.encode("a<tool>b")).replace(" ", "") == "a<tool>b" and not t.special[t.encode("<tool>")].any()


def test_ids_without_a_piece_are_special():
    from tokenizers import models

    t = given(models.WordLevel({"a": 0, "b": 4, "<unk>": 2}, unk_token="<unk>"), special=[])
    assert t.special.tolist() == [False, True, True, True, False]


def test_tokens_with_a_role_are_special_even_if_the_file_does_not_mark_them():
    from tokenizers import models

    t = given(models.WordLevel({"<s>": 0, "a": 1, "</s>": 2, "<unk>": 3}, unk_token="<unk>"), special=[])
    assert t.special.tolist() == [True, False, True, True]


@pytest.mark.parametrize("names", [["<mask>", "<extra_id_0>", "<|user|>"], ["[MASK]"]])
def test_user_defined_symbols_with_a_role_are_not_text(names):
    """In a given sentencepiece model; its other user-defined symbols are text."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_writer=model, vocab_size=120, user_defined_symbols=[*names, "<table>"],
        byte_fallback=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    t = from_bytes(model.getvalue())
    ids = t.encode(f"the {' '.join(names)} law <table>")
    assert t.mask_id is not None and t.special[t.mask_id] and t.proto == model.getvalue()
    assert not {t.mask_id, *t.sentinel_ids, *t.role_ids.values()} & set(ids.tolist())
    assert "<table>" in [t.piece(i) for i in ids]
    assert t.decode([t.mask_id, *t.encode("law")]) == "law"


def test_special_tokens_of_a_trained_tokenizer(tokenizer):
    assert np.flatnonzero(tokenizer.special).tolist() == list(range(110))
