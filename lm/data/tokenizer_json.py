"""Given tokenizer.json files, encoded by the `tokenizers` library."""

import itertools
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lm.data import tokenizer_check
from lm.data.vocabulary import MASKS, ROLES, SENTINELS, SPACE, Tokenizer, byte_value
from lm.data.word_boundaries import ByteLevel, Marked, Pieces, byte_level_alphabet
from lm.errors import UserError

_PART = 1 << 18  # characters that a core is given at a time: the library needs a hundred bytes of memory or more for each
_LONGEST_PART = 1 << 22  # characters encoded in one call if no cut is found; a longer text is refused
_CONTEXT = 1000  # characters on either side of a candidate cut that are encoded to check it
_CANDIDATES = 16  # cuts of each kind that are checked
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how pieces of single bytes are spelled


def library() -> Any:
    """The tokenizers library. UserError if it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "byte-level BPE, or a tokenizer.json, needs the tokenizers library: pip install -e '.[convert]'"
        ) from None
    return tokenizers


class HuggingFace(Tokenizer):
    """A tokenizer.json of any kind (byte-level BPE, WordPiece, unigram, ...). `decode(encode(x)) == x` holds only if the file's
    normalizer and decoder lose nothing; one that lower-cases does.

    Special tokens are those that the file marks as special, those in SPECIALS, SENTINELS and ROLES, and added tokens named in
    `also`. Their names in a text are encoded as ordinary letters.
    """

    # Spellings of each special token in published files; the first that the file has is taken.
    SPECIALS: Mapping[str, tuple[str, ...]] = {
        "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>"),
        "bos": ("<s>", "<bos>", "[CLS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
        "eos": ("</s>", "<eos>", "[SEP]", "<|end_of_text|>", "<|endoftext|>"),
        "unk": ("<unk>", "[UNK]"),
        "mask": MASKS,
    }

    def __init__(self, proto: bytes, also: Collection[str] = ()) -> None:
        tokenizers = library()
        self.proto = proto
        try:
            self._read_vocabulary(tokenizers.Tokenizer.from_str(proto.decode()), also)
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self._with_secret_names(json.loads(proto))))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"not a tokenizer.json that the tokenizers library reads: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True

    def _read_vocabulary(self, tokenizer: Any, also: Collection[str]) -> None:
        """Sets the fields of `Tokenizer` from the file's vocabulary and added tokens."""
        self._vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self._names_of = {i: piece for piece, i in self._vocab.items()}
        self.vocab_size: int = max(self._vocab.values()) + 1
        find = lambda names: next((self._vocab[n] for n in names if n in self._vocab), None)
        self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id = (find(names) for names in self.SPECIALS.values())
        self.sentinel_ids: tuple[int, ...] = tuple(self._vocab[s] for s in SENTINELS if s in self._vocab)
        self.role_ids: Mapping[str, int] = {piece: self._vocab[piece] for piece in ROLES if piece in self._vocab}
        added = tokenizer.get_added_tokens_decoder()
        self._added: dict[int, str] = {i: token.content for i, token in added.items()}
        marked = {i for i, token in added.items() if token.special or token.content in also}
        self.special = np.ones(self.vocab_size, bool)
        self.special[list(self._vocab.values())] = False
        self.special[sorted(marked | self._assigned_ids())] = True

    def _with_secret_names(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Renames the special tokens in the parsed file to random names, so that no text can contain one.

        With `encode_special_tokens`, the library does not search a text for special tokens. But many files list them among the
        ordinary pieces as well, where the model finds them: in T5's unigram model, "</s>" has the highest score of all.
        """
        drawn = secrets.token_hex(16)
        names = {piece: f"\U0010fffe{drawn}{i}\U0010ffff" for piece, i in self._vocab.items() if self.special[i]}
        self._secret_names = {self._vocab[piece]: name for piece, name in names.items()}
        model, renamed = spec["model"], lambda piece: names.get(piece, piece)
        vocab = model["vocab"]
        model["vocab"] = (
            {renamed(piece): i for piece, i in vocab.items()}
            if isinstance(vocab, dict)
            else [[renamed(piece), score] for piece, score in vocab]
        )
        if model.get("unk_token") is not None:
            model["unk_token"] = renamed(model["unk_token"])
        if model.get("merges"):
            inside = len(model.get("continuing_subword_prefix") or "")
            pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
            model["merges"] = [[a, b] for a, b in pairs if names.keys().isdisjoint((a, b, a + b[inside:]))]
        for token in spec.get("added_tokens") or []:
            token["special"] = token["content"] in names or token["special"]
            token["content"] = renamed(token["content"])
        return spec

    @cached_property
    def _pieces(self) -> Pieces:
        spec = json.loads(self.proto)
        model, alphabet = spec["model"], byte_level_alphabet()
        prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
        byte_level = "ByteLevel" in _kinds(spec.get("pre_tokenizer")) | _kinds(spec.get("decoder"))
        pieces, inner, closes = [b""] * self.vocab_size, np.zeros(self.vocab_size, bool), np.zeros(self.vocab_size, bool)
        unsplit = self.special.copy()  # tokens that are looked up before the pre-tokenizer splits a text
        unsplit[list(self._added)] = True
        for piece, i in self._vocab.items():
            if unsplit[i]:
                pieces[i] = self._added.get(i, piece).encode()
                continue
            inner[i], closes[i] = bool(prefix) and piece.startswith(prefix), bool(suffix) and piece.endswith(suffix)
            piece = piece.removeprefix(prefix or "").removesuffix(suffix or "")
            if byte_level and alphabet.keys() >= set(piece):
                pieces[i] = bytes(alphabet[c] for c in piece)
            elif model.get("byte_fallback") and _BYTE.fullmatch(piece):
                pieces[i] = byte_value(piece)
            else:
                pieces[i] = piece.replace(SPACE, " ").encode()
        split = self._tokenizer.pre_tokenizer
        if split is not None and "ByteLevel" in _kinds(spec["pre_tokenizer"]) and not suffix:

            def words(text: str) -> list[int]:
                with tokenizer_check.library_errors():
                    return [first for _, (first, _) in split.pre_tokenize_str(text)]

            drops_spaces = sum(last - first for _, (first, last) in split.pre_tokenize_str("a b")) < 3
            return ByteLevel(pieces, self.special, unsplit, words, drops_spaces)
        if prefix:  # WordPiece: a piece without the prefix begins a word
            return Marked(pieces, self.special, ~inner)
        return Marked(pieces, self.special, unsplit, closes)

    def piece(self, i: int) -> str:
        return self._names_of.get(int(i), "")

    def _spelling(self, name: str) -> str:
        return " or ".join(self.SPECIALS[name])

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]:
        """int32 [n] for each text, without bos and eos.

        Raises UserError for a text of more than _LONGEST_PART characters that cannot be cut without changing its tokens."""
        found: list[list[np.ndarray]] = [[] for _ in texts]
        parts = ((i, part) for i, text in enumerate(texts) for part in self._parts(text))
        for group in _groups(parts, _PART * (threads or os.cpu_count() or 1)):
            for (i, _), ids in zip(group, self._encode([part for _, part in group], threads), strict=True):
                found[i].append(ids)
        return [np.concatenate(ids) for ids in found]

    def _encode(self, texts: list[str], threads: int | None = None) -> list[np.ndarray]:
        """int32 [n] for each text. The library takes a thread for each text of a call, up to one per core."""
        at_once = max(threads or len(texts), 1)
        calls = (texts[first : first + at_once] for first in range(0, len(texts), at_once))
        with tokenizer_check.library_errors():
            found = (self._tokenizer.encode_batch_fast(some, add_special_tokens=False) for some in calls)
            return [np.array(e.ids, np.int32) for some in found for e in some]

    @property
    def names(self) -> Mapping[str, int]:
        return {name: i for i, name in self._added.items() if self.special[i]}

    def with_names_in(self, text: str) -> Tokenizer:
        names = {name for i, name in self._added.items() if not self.special[i] and name.strip() and name in text}
        return HuggingFace(self.proto, names) if names else self

    @cached_property
    def _named(self) -> Any:
        """The library's tokenizer that finds special tokens in a text by their secret names."""
        return type(self._tokenizer).from_str(self._tokenizer.to_str())

    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        """As one text, so that what the file does at its beginning or beside a special token is done."""
        text = "".join(part if isinstance(part, str) else self._secret_names[part] for part in parts)
        with tokenizer_check.library_errors():
            return np.array(self._named.encode(text, add_special_tokens=False).ids, np.int32)

    def _parts(self, text: str) -> Iterator[str]:
        """Splits a long text into parts whose tokens, concatenated, are those of the text."""
        at = 0
        while len(text) - at > _PART:
            cut = next((cut for cut in _cuts(text, at) if self._may_cut(text, *cut)), None)
            if cut is None:
                break
            yield text[at : cut[0]]
            at = cut[1]
        if len(text) - at > _LONGEST_PART:
            raise UserError(
                f"the given tokenizer takes a text of {len(text) - at:,} characters as one word, which needs a hundred times "
                "that much memory; divide the text, or drop it"
            )
        yield text[at:]

    def _may_cut(self, text: str, stop: int, start: int) -> bool:
        """Whether, near the cut, the text before `stop` and the text from `start` on have the tokens of the uncut text."""
        left, right = text[max(0, stop - _CONTEXT) : stop], text[start : start + _CONTEXT]
        uncut, *both = self._encode([left + text[stop:start] + right, left, right])
        return np.array_equal(uncut, np.concatenate(both))

    def decode(self, ids: Iterable[int]) -> str:
        known = [i for i in np.asarray(ids).tolist() if i < self.vocab_size and not self.special[i]]
        with tokenizer_check.library_errors():
            return self._tokenizer.decode(known, skip_special_tokens=False)


def _groups(parts: Iterable[tuple[int, str]], characters: int) -> Iterator[list[tuple[int, str]]]:
    """Groups parts of texts, in order, into lists of about so many characters, for the library to encode on all cores."""
    group, held = list[tuple[int, str]](), 0
    for i, part in parts:
        group.append((i, part))
        held += len(part)
        if held >= characters:
            yield group
            group, held = [], 0
    if group:
        yield group


def _cuts(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Candidate cuts of the part that begins at `at`, best first: (where it stops, where the next part starts).

    The last newlines within _PART characters, then the last spaces, then the next spaces or newlines after that, then any
    character. A cut at a space is also tried without the space, for files that put one before every text.
    """
    last, end = at + _PART, at + _LONGEST_PART
    lines = itertools.islice(_backwards(text, "\n", at, last), _CANDIDATES)
    spaces = itertools.islice(_backwards(text, " ", at, last), _CANDIDATES)
    further = itertools.islice((match.start() for match in re.compile("[ \n]").finditer(text, last, end)), _CANDIDATES)
    for i in lines:
        yield i + 1, i + 1
    for i in itertools.chain(spaces, further):
        first = at + len(text[at:i].rstrip(" "))
        if first > at:
            yield first, first
            yield first, first + 1
    for i in range(last, last - _CANDIDATES, -1):
        yield i, i


def _backwards(text: str, character: str, at: int, last: int) -> Iterator[int]:
    """The indices of the character in text[at + 1 : last], from the end."""
    while (last := text.rfind(character, at, last)) > at:
        yield last


def _kinds(part: Any) -> set[str]:
    """The types of a pre-tokenizer or decoder of a tokenizer.json and of its parts."""
    if not part:
        return set()
    return {part["type"]}.union(*map(_kinds, part.get("pretokenizers") or part.get("decoders") or []))
