"""Given tokenizer.json files, of the tokenizers library."""

import itertools
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lm.data import tokenizer_check
from lm.data.vocabulary import MASKS, ROLES, SENTINELS, SPACE, Given, leading, one_byte
from lm.data.word_boundaries import ByteLevel, Marked, Pieces, byte_level_alphabet
from lm.errors import UserError

_PART = 1 << 18  # characters given to the library at once: it takes a hundred bytes or more for each of them
_WHOLE = 1 << 22  # characters of a text that cannot be cut
_AROUND = 1000  # characters on either side of a place that is tried as a cut
_TRIED = 16  # places of each kind
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how the pieces of single bytes are written


class HuggingFace(Given):
    """A `tokenizer.json` of the `tokenizers` library: byte-level BPE, WordPiece, whatever the file says. Given, not trained;
    `decode(encode(x))` is as faithful as the file is (lower-casing ones are not).

    Special tokens are those that the file marks so, and those that have a role here. Their names in a text are its letters.
    """

    # Which special token has a role, in the names of the field; the first that the file has.
    SPECIALS: Mapping[str, tuple[str, ...]] = {
        "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>"),
        "bos": ("<s>", "<bos>", "[CLS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
        "eos": ("</s>", "<eos>", "[SEP]", "<|end_of_text|>", "<|endoftext|>"),
        "unk": ("<unk>", "[UNK]"),
        "mask": MASKS,
    }

    def __init__(self, proto: bytes) -> None:
        try:
            import tokenizers
        except ImportError:
            raise UserError("a tokenizer.json needs the tokenizers library: pip install -e '.[convert]'") from None
        self.proto = proto
        try:
            self._learn(tokenizers.Tokenizer.from_str(proto.decode()))
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self._unspeakable(json.loads(proto))))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"not a tokenizer.json that the tokenizers library reads: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True

    def _learn(self, tokenizer: Any) -> None:
        """What the file says of its ids."""
        self._vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self._names_of = {i: piece for piece, i in self._vocab.items()}
        self.vocab_size: int = max(self._vocab.values()) + 1
        find = lambda names: next((self._vocab[n] for n in names if n in self._vocab), None)
        self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id = (find(names) for names in self.SPECIALS.values())
        self.sentinel_ids: tuple[int, ...] = tuple(self._vocab[s] for s in SENTINELS if s in self._vocab)
        self.role_ids: Mapping[str, int] = {piece: self._vocab[piece] for piece in ROLES if piece in self._vocab}
        added = tokenizer.get_added_tokens_decoder()
        self._added: dict[int, str] = {i: token.content for i, token in added.items()}
        marked = {i for i, token in added.items() if token.special}
        self.special = np.ones(self.vocab_size, bool)
        self.special[list(self._vocab.values())] = False
        self.special[sorted(marked | self._with_roles())] = True
        self.reserved = leading(self.special)

    def _unspeakable(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The file with other names for its special tokens, drawn now, so that no text can have been written with them.

        The library does not look for special tokens in a text (`encode_special_tokens`), but many files have them among the
        ordinary pieces as well, and there a model finds them: T5's unigram model takes "</s>" for the likeliest of all.
        """
        drawn = secrets.token_hex(16)
        names = {piece: f"\U0010fffe{drawn}{i}\U0010ffff" for piece, i in self._vocab.items() if self.special[i]}
        model, named = spec["model"], lambda piece: names.get(piece, piece)
        vocab = model["vocab"]
        model["vocab"] = (
            {named(piece): i for piece, i in vocab.items()}
            if isinstance(vocab, dict)
            else [[named(piece), score] for piece, score in vocab]
        )
        if model.get("unk_token") is not None:
            model["unk_token"] = named(model["unk_token"])
        if model.get("merges"):
            inside = len(model.get("continuing_subword_prefix") or "")
            pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
            model["merges"] = [[a, b] for a, b in pairs if names.keys().isdisjoint((a, b, a + b[inside:]))]
        for token in spec.get("added_tokens") or []:
            token["special"] = token["content"] in names or token["special"]
            token["content"] = named(token["content"])
        return spec

    @cached_property
    def _pieces(self) -> Pieces:
        spec = json.loads(self.proto)
        model, alphabet = spec["model"], byte_level_alphabet()
        prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
        byte_level = "ByteLevel" in _kinds(spec.get("pre_tokenizer")) | _kinds(spec.get("decoder"))
        pieces, inner, closes = [b""] * self.vocab_size, np.zeros(self.vocab_size, bool), np.zeros(self.vocab_size, bool)
        apart = self.special.copy()
        apart[list(self._added)] = True
        for piece, i in self._vocab.items():
            if apart[i]:
                pieces[i] = self._added.get(i, piece).encode()
                continue
            inner[i], closes[i] = bool(prefix) and piece.startswith(prefix), bool(suffix) and piece.endswith(suffix)
            piece = piece.removeprefix(prefix or "").removesuffix(suffix or "")
            if byte_level and alphabet.keys() >= set(piece):
                pieces[i] = bytes(alphabet[c] for c in piece)
            elif model.get("byte_fallback") and _BYTE.fullmatch(piece):
                pieces[i] = one_byte(piece)
            else:
                pieces[i] = piece.replace(SPACE, " ").encode()
        split = self._tokenizer.pre_tokenizer
        if split is not None and "ByteLevel" in _kinds(spec["pre_tokenizer"]) and not suffix:

            def words(text: str) -> list[int]:
                with tokenizer_check.one_line():
                    return [first for _, (first, _) in split.pre_tokenize_str(text)]

            drops_spaces = sum(last - first for _, (first, last) in split.pre_tokenize_str("a b")) < 3
            return ByteLevel(pieces, self.special, apart, words, drops_spaces)
        if prefix:  # WordPiece: what does not go on with a word begins one
            return Marked(pieces, self.special, ~inner)
        return Marked(pieces, self.special, apart, closes)

    def piece(self, i: int) -> str:
        return self._names_of.get(int(i), "")

    def _names(self, name: str) -> str:
        return " or ".join(self.SPECIALS[name])

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]:
        """int32 [n] for each text, without bos and eos; the library takes its own number of threads.

        UserError for a text of millions of characters in which there is no place to cut it."""
        out, waiting, held = [], [], 0
        for text in texts:
            if len(text) > _PART:
                out += [*self._encode(waiting), np.concatenate([self._encode([part])[0] for part in self._parts(text)])]
                waiting, held = [], 0
                continue
            if held + len(text) > _PART:
                out += self._encode(waiting)
                waiting, held = [], 0
            waiting.append(text)
            held += len(text)
        return out + self._encode(waiting)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        with tokenizer_check.one_line():
            found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(e.ids, np.int32) for e in found]

    def _parts(self, text: str) -> Iterator[str]:
        """A long text in parts, whose tokens are those of the whole."""
        at = 0
        while len(text) - at > _PART:
            cut = next((cut for cut in _cuts(text, at) if self._may_cut(text, *cut)), None)
            if cut is None:
                break
            yield text[at : cut[0]]
            at = cut[1]
        if len(text) - at > _WHOLE:
            raise UserError(
                f"the given tokenizer takes a text of {len(text) - at:,} characters as one word, and a hundred times the "
                "memory; divide the text, or drop it"
            )
        yield text[at:]

    def _may_cut(self, text: str, stop: int, start: int) -> bool:
        """Whether the text around a cut has the tokens of what is before `stop` and of what is from `start` on."""
        left, right = text[max(0, stop - _AROUND) : stop], text[start : start + _AROUND]
        whole, *both = self._encode([left + text[stop:start] + right, left, right])
        return np.array_equal(whole, np.concatenate(both))

    def decode(self, ids: Iterable[int]) -> str:
        known = [i for i in np.asarray(ids).tolist() if i < self.vocab_size and not self.special[i]]
        with tokenizer_check.one_line():
            return self._tokenizer.decode(known, skip_special_tokens=False)


def _cuts(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Places where a text may be cut, to be tried in this order: where the part from `at` on stops, and where the next starts.

    They lie some _PART characters behind `at`, or before the next space where there is none so far. A space is also left out,
    for files that put one before every text.
    """
    last, end = at + _PART, at + _WHOLE
    lines = itertools.islice(_backwards(text, "\n", at, last), _TRIED)
    spaces = itertools.islice(_backwards(text, " ", at, last), _TRIED)
    further = itertools.islice((match.start() for match in re.compile("[ \n]").finditer(text, last, end)), _TRIED)
    for i in lines:
        yield i + 1, i + 1
    for i in itertools.chain(spaces, further):
        first = at + len(text[at:i].rstrip(" "))
        if first > at:
            yield first, first
            yield first, first + 1
    for i in range(last, last - _TRIED, -1):
        yield i, i


def _backwards(text: str, character: str, at: int, last: int) -> Iterator[int]:
    """Where the character stands between `at` and `last`, from the end."""
    while (last := text.rfind(character, at, last)) > at:
        yield last


def _kinds(part: Any) -> set[str]:
    """The types of a pre-tokenizer or decoder of a tokenizer.json, and of those that it consists of."""
    if not part:
        return set()
    return {part["type"]}.union(*map(_kinds, part.get("pretokenizers") or part.get("decoders") or []))
