"""Hostile tokenizers are refused with a one-line error; ordinary ones pass. Each check is a process of 0.1 s."""

import io
import json
from types import SimpleNamespace

import pytest

from lm.data import tokenizer, tokenizer_check
from lm.errors import UserError

WORDS = dict(type="WordLevel", vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"


def spec(*, model=WORDS, **parts):
    empty = dict(version="1.0", added_tokens=[], normalizer=None, pre_tokenizer=None, post_processor=None, decoder=None)
    return json.dumps(empty | parts | dict(model=model)).encode()


def split(expression):
    return dict(type="Split", pattern={"Regex": expression}, behavior="Isolated", invert=False)


def replace(kind, pattern, content):
    return dict(type="Replace", pattern={kind: pattern}, content=content)


def sequence(*normalizers):
    return dict(type="Sequence", normalizers=normalizers)


def words(**vocab):
    return WORDS | dict(vocab={"[UNK]": 1} | vocab)


HONEST = {
    "gpt2": spec(pre_tokenizer=split(GPT2)),
    "llama3": spec(pre_tokenizer=split(LLAMA3)),
    "bloom": spec(pre_tokenizer=split(BLOOM)),
    "t5": spec(normalizer=sequence(replace("String", " ", "\u2581"), replace("Regex", " {2,}", "\u2581"))),
    "nfkc": spec(normalizer=dict(type="NFKC")),
    "bert": spec(
        normalizer=dict(type="BertNormalizer", clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True),
        pre_tokenizer=dict(type="BertPreTokenizer"),
    ),
}
HOSTILE = {
    "nested quantifier": (spec(pre_tokenizer=split("(a+)+$")), "retry-limit"),
    "of a letter that is rare": (spec(pre_tokenizer=split(r"(\x{444}|\x{444}\x{444})+$")), "retry-limit"),
    "of digits": (spec(pre_tokenizer=split(r"(\d+)*z")), "retry-limit"),
    "alternatives": (spec(normalizer=replace("Regex", r"(?:a|b|ab)*c\b", "")), "retry-limit"),
    "of a decoder": (spec(decoder=replace("Regex", "(a|aa)+$", "")), "retry-limit"),
    "bomb": (spec(normalizer=sequence(*[replace("String", "a", "a" * 10)] * 12)), "GiB of memory"),
    "bomb of a rare letter": (spec(normalizer=replace("String", "\u0436", "y" * 10**5)), "its normalizer makes"),
    "prepends": (spec(normalizer=dict(type="Prepend", prepend="a" * 10**6)), "its normalizer makes"),
    "decodes to much": (spec(decoder=replace("String", "a", "b" * 10**5)), "its decoder makes"),
    "broken table": (spec(normalizer=dict(type="Precompiled", precompiled_charsmap="AAAA")), "Precompiled"),
    "no expression": (spec(pre_tokenizer=split("(")), "parenthesis"),
    "no words": (spec(model=WORDS | dict(vocab={})), "no tokens"),
    "no pieces": (spec(model=dict(type="Unigram", vocab=[], unk_id=None)), "no tokens"),
    "huge id": (spec(model=words(a=2**32 - 1)), "its largest id is 4,294,967,295 and it has 2 tokens"),
    "id above 32 bits": (spec(model=words(a=2**33)), "u32"),
    "negative id": (spec(model=words(a=-1)), "u32"),
    "no unknown": (
        spec(
            model=dict(
                type="WordPiece", vocab={"a": 0}, unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=9
            )
        ),
        "Missing [UNK]",
    ),
    "dropout": (
        spec(
            model=dict(
                type="BPE",
                vocab={c: i for i, c in enumerate(["h", "e", "T", "he", "The"])},
                merges=["h e", "T he"],
                dropout=0.5,
            )
        ),
        "in different ways",
    ),
    "cut": (spec()[:-9], "not valid JSON"),
    "a word twice": (spec().replace(b'"a": 0', b'"a": 0, "a": 2'), "appears twice"),
    "deep": (b'{"a":' * 100_000, "nested too deeply"),
    "another JSON": (b"{}", "Model missing"),
    "no sentencepiece": (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff", "not a sentencepiece model"),
    "nothing": (b"", "no tokens"),
}


@pytest.mark.parametrize("case", HONEST)
def test_ordinary_tokenizers_pass(case):
    tokenizer_check.check(HONEST[case])


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tokenizers_are_refused_with_one_line(case):
    proto, said = HOSTILE[case]
    with pytest.raises(UserError) as error:
        tokenizer_check.check(proto)
    assert "the given tokenizer is refused: " in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_time_limit_ends_the_check(monkeypatch):
    """Here the texts together take more than a second. (For the memory limit, see "bomb" above.)"""
    monkeypatch.setattr(tokenizer_check, "SECONDS", 1)
    monkeypatch.setattr(tokenizer_check, "MEMORY", 2**32)
    slow = spec(normalizer=sequence(*[replace("String", "zz", "zzz")] * 60))
    with pytest.raises(UserError, match="takes more than 1 s for short texts"):
        tokenizer_check.check(slow)


def test_a_system_without_memory_limits(monkeypatch, capsys):
    """On macOS, setrlimit refuses RLIMIT_AS."""

    def limits(which, _):
        if which == tokenizer_check.resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(tokenizer_check.resource, "setrlimit", limits)
    monkeypatch.setattr(tokenizer_check.sys, "argv", ["tokenizer_check", "20", str(2**31)])
    monkeypatch.setattr(tokenizer_check.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(HONEST["gpt2"])))
    tokenizer_check.main()
    assert json.loads(capsys.readouterr().out) == {"fault": None}


def test_every_way_to_load_a_given_tokenizer_checks_it(tmp_path):
    hostile = HOSTILE["nested quantifier"][0]
    (tmp_path / "tokenizer.json").write_bytes(hostile)
    for read in (lambda: tokenizer.from_bytes(hostile), lambda: tokenizer.load(str(tmp_path / "tokenizer.json"))):
        with pytest.raises(UserError, match="is refused"):
            read()
    (tmp_path / "x.model").write_bytes(b"")
    with pytest.raises(UserError, match="is refused"):
        tokenizer.load(str(tmp_path / "x.model"))


def test_an_error_on_a_later_text_is_a_user_error(monkeypatch):
    """A panic of the library, which is not an Exception, on a text that the check did not try."""
    monkeypatch.setattr(tokenizer_check, "check", lambda proto: None)
    given = tokenizer.from_bytes(HOSTILE["nested quantifier"][0])
    with pytest.raises(UserError, match="the given tokenizer fails at a text: Onig"):
        given.encode("a" * 50 + "!")
    with pytest.raises(TypeError):  # a fault of the text
        given.encode("\ud800")
    assert given.encode("a").tolist() == [0]
