"""Text to token ids and back: a protocol, sentencepiece behind it (trained here, or given), and given tokenizer.json files.

A tokenizer that we train has its reserved ids at fixed places, so that models and objectives can rely on them:

    0 <pad>   1 <s>   2 </s>   3 <unk>   4 <mask>   5..104 <extra_id_0>..<extra_id_99>   105..109 role markers
    110 newline   111..366 the 256 bytes   367.. learned pieces

Ids below `reserved` (110) are control symbols: no text encodes to them, whatever it contains.
"""

import hashlib
import io
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lm import config
from lm.data import trial
from lm.errors import UserError

NUM_SENTINELS = 100
MASK = "<mask>"
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(NUM_SENTINELS))
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")

_SPACE = "\u2581"  # what sentencepiece writes for a space inside; a real one in a text needs care
_RESERVED = 5 + NUM_SENTINELS + len(ROLES)
# A constant, not the machine's count: unigram training sums probabilities thread by thread, and the model must be the
# same everywhere. (It also is written into the model.)
_TRAIN_THREADS = 2


class Tokenizer(Protocol):
    """Ids that a given model lacks are None (sentinels and roles: empty); `require` turns that into an error."""

    vocab_size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    mask_id: int | None
    sentinel_ids: tuple[int, ...]  # the first is <extra_id_0>
    role_ids: Mapping[str, int]  # "<|user|>" -> id
    reserved: int  # ids 0..reserved-1 are control symbols
    word_start: np.ndarray  # bool [vocab_size]: begins a word (a space, a newline, punctuation, a control symbol)
    sentence_end: np.ndarray  # bool [vocab_size]: ends in a full stop, a question or exclamation mark, or a newline
    proto: bytes  # the model, from which `from_bytes` makes an equal tokenizer
    fingerprint: str  # SHA-256 of `proto`

    def encode(self, text: str) -> np.ndarray: ...  # int32 [n], without bos and eos

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]: ...

    def decode(self, ids: Iterable[int]) -> str: ...  # control symbols are silent

    def require(self, name: str) -> Any: ...

    def piece(self, i: int) -> str: ...  # as the model writes it, for people to read


class SentencePiece:
    """A sentencepiece model, trained here or given. One of ours satisfies `decode(encode(x)) == x` for every text."""

    def __init__(self, proto: bytes) -> None:
        import sentencepiece

        self.proto = proto
        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, ValueError):
            raise UserError("not a sentencepiece model; data.tokenizer.path takes a .model or a tokenizer.json file") from None
        sp = self._sp
        self.vocab_size: int = sp.vocab_size()
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = (
            None if i < 0 else i for i in (sp.pad_id(), sp.bos_id(), sp.eos_id(), sp.unk_id())
        )
        self.mask_id = self._find(MASK) or self._find("[MASK]")
        found = [i for piece in SENTINELS if (i := self._find(piece)) is not None]
        self.sentinel_ids: tuple[int, ...] = tuple(found)
        self.role_ids: Mapping[str, int] = {piece: i for piece in ROLES if (i := self._find(piece)) is not None}
        silent = (sp.is_control(i) or sp.is_unknown(i) for i in range(self.vocab_size))
        self.reserved = sum(1 for _ in itertools.takewhile(bool, silent))
        # A newline that never is part of another piece: lines can be encoded one by one, which is several times faster.
        newline = self._find("\n")
        self._newline = newline if newline is not None and self._cuts(newline) else None
        self._space_bytes = [self._find(f"<0x{b:02X}>") for b in _SPACE.encode()]

    def _cuts(self, newline: int) -> bool:
        """Whether what stands on either side of a newline is encoded as if it stood alone."""
        alone = self._sp.encode("a")
        if self._sp.encode("a\na") != [*alone, newline, *alone]:  # a space is put before every text, or newlines become spaces
            return False
        return not any("\n" in self._sp.id_to_piece(i) for i in range(self.vocab_size) if i != newline)

    def _find(self, piece: str) -> int | None:
        """The id of exactly this piece, or None."""
        i = self._sp.piece_to_id(piece)
        return i if self._sp.id_to_piece(i) == piece else None

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.proto).hexdigest()

    @cached_property
    def word_start(self) -> np.ndarray:
        def starts(i: int) -> bool:
            piece = self._sp.id_to_piece(i)
            if self._sp.is_byte(i):
                return False
            return self._sp.is_control(i) or piece[0] in "\n" + _SPACE or unicodedata.category(piece[0])[0] in "PSZ"

        return np.fromiter((starts(i) for i in range(self.vocab_size)), bool, self.vocab_size)

    @cached_property
    def sentence_end(self) -> np.ndarray:
        return _sentence_ends(self)

    def piece(self, i: int) -> str:
        """The piece as the model writes it, for people to read."""
        return self._sp.id_to_piece(int(i))

    def require(self, name: str) -> Any:
        """The id of pad, bos, eos, unk or mask (sentinels: the 100 ids), or a UserError if the model has no such piece."""
        value = self.sentinel_ids if name == "sentinels" else getattr(self, f"{name}_id")
        if value is None or (name == "sentinels" and len(value) < NUM_SENTINELS):
            piece = {"mask": MASK, "sentinels": f"{SENTINELS[0]}..{SENTINELS[-1]}"}.get(name, f"<{name}>")
            raise UserError(f"the given tokenizer has no {piece}; use one that has, or data.tokenizer.path=None to train one")
        return value

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text], threads=1)[0]

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]:
        """int32 [n] for each text; `threads` None: one per core. UnicodeEncodeError for lone surrogates."""
        threads = threads or os.cpu_count() or 1
        if self._newline is None:
            return [np.array(ids, np.int32) for ids in self._sp.encode(list(texts), num_threads=threads)]
        split = [text.split("\n") for text in texts]
        lines = list(itertools.chain.from_iterable(split))
        if any(_SPACE in line for line in lines):
            ids = [self._encode_line(line) for line in lines]
        else:
            ids = self._sp.encode(lines, num_threads=threads)
        out, at = [], 0
        for parts in split:
            joined: list[int] = []
            for i in range(at, at + len(parts)):
                joined += ids[i]
                joined.append(self._newline)
            out.append(np.array(joined[:-1], np.int32))
            at += len(parts)
        return out

    def _encode_line(self, line: str) -> list[int]:
        """A U+2581 in a text would come back as a space: it goes as its three bytes."""
        ids: list[int] = []
        for i, part in enumerate(line.split(_SPACE)):
            ids += (self._space_bytes if i and None not in self._space_bytes else []) + self._sp.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._sp.decode(np.asarray(ids).tolist())


class HuggingFace:
    """A `tokenizer.json` of the `tokenizers` library: byte-level BPE, WordPiece, whatever the file says. Given, not trained;
    `decode(encode(x))` is as faithful as the file is (lower-casing ones are not)."""

    # Which special token has a role, in the names of the field; the first that the file has.
    SPECIALS: Mapping[str, tuple[str, ...]] = {
        "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>"),
        "bos": ("<s>", "<bos>", "[CLS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
        "eos": ("</s>", "<eos>", "[SEP]", "<|end_of_text|>", "<|endoftext|>"),
        "unk": ("<unk>", "[UNK]"),
        "mask": (MASK, "[MASK]"),
    }

    def __init__(self, proto: bytes) -> None:
        try:
            import tokenizers
        except ImportError:
            raise UserError("a tokenizer.json needs the tokenizers library: pip install -e '.[convert]'") from None
        self.proto = proto
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(proto.decode())
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"not a tokenizer.json that the tokenizers library reads: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._vocab: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(self._vocab.values()) + 1
        self._special = {i for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        find = lambda names: next((self._vocab[n] for n in names if n in self._vocab), None)
        self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id = (find(names) for names in self.SPECIALS.values())
        self.sentinel_ids: tuple[int, ...] = tuple(self._vocab[s] for s in SENTINELS if s in self._vocab)
        self.role_ids: Mapping[str, int] = {piece: self._vocab[piece] for piece in ROLES if piece in self._vocab}
        self.reserved = next(i for i in itertools.count() if i not in self._special)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.proto).hexdigest()

    @cached_property
    def word_start(self) -> np.ndarray:
        marks = [p for p in ("##", _SPACE, "\u0120") if any(piece.startswith(p) for piece in self._vocab)]
        inside = "##" if "##" in marks else None  # WordPiece marks what goes on, the others what begins
        starts = np.zeros(self.vocab_size, bool)
        for piece, i in self._vocab.items():
            begins = not piece.startswith(inside) if inside else piece[:1] in (_SPACE, "\u0120", "\u010a", "\n")
            starts[i] = i in self._special or begins or unicodedata.category(piece[0])[0] in "PSZ" if piece else False
        return starts

    @cached_property
    def sentence_end(self) -> np.ndarray:
        return _sentence_ends(self)

    def piece(self, i: int) -> str:
        return self._tokenizer.id_to_token(int(i)) or ""

    def require(self, name: str) -> Any:
        """The id of pad, bos, eos, unk or mask (sentinels: the 100 ids), or a UserError if the file has no such token."""
        value = self.sentinel_ids if name == "sentinels" else getattr(self, f"{name}_id")
        if value is None or (name == "sentinels" and len(value) < NUM_SENTINELS):
            wanted = f"{SENTINELS[0]}..{SENTINELS[-1]}" if name == "sentinels" else " or ".join(self.SPECIALS[name])
            raise UserError(f"the given tokenizer has no {wanted}; use one that has, or data.tokenizer.path=None to train one")
        return value

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]:
        """int32 [n] for each text, without bos and eos; the library takes its own number of threads."""
        with trial.one_line():
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, np.int32) for e in found]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True)


def _sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """bool [V]. Rare marks are written as their bytes, and the newline of byte-level BPE as U+010A."""
    ends = (*".!?\n\u010a", *(f"<0x{ord(mark):02X}>" for mark in ".!?\n"))
    return np.array([tokenizer.piece(i).endswith(ends) for i in range(tokenizer.vocab_size)])


def from_bytes(proto: bytes) -> Tokenizer:
    """The tokenizer in a file's bytes: JSON is a tokenizer.json, which is tried first, anything else a sentencepiece model."""
    if proto.lstrip()[:1] != b"{":
        return SentencePiece(proto)
    trial.check(proto)
    return HuggingFace(proto)


def load(path: str) -> Tokenizer:
    """A given model file, local or gs://."""
    from etils import epath

    try:
        proto = epath.Path(path).expanduser().read_bytes()
    except OSError:
        raise UserError(
            f"no tokenizer at {path}; give a sentencepiece .model or a tokenizer.json, or data.tokenizer.path=None to train one"
        ) from None
    trial.check(proto)
    return from_bytes(proto)


def train(texts: Iterable[str], settings: config.Tokenizer) -> SentencePiece:
    """A new tokenizer; the same texts and settings give the same bytes.

    Raises UserError if the texts do not yield `vocab_size` pieces, naming the largest number they do.
    """
    import sentencepiece

    smallest = _RESERVED + 1 + 256 + 1
    if settings.vocab_size < smallest:
        raise UserError(
            f"data.tokenizer.vocab_size={settings.vocab_size} is below {smallest}, which reserved ids and bytes take"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type=settings.kind,
            vocab_size=settings.vocab_size,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            control_symbols=[MASK, *SENTINELS, *ROLES],
            user_defined_symbols=["\n"],
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=2**30,  # the default drops lines above 4192 bytes
            num_threads=_TRAIN_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_too_large(str(error), settings)) from None
    return SentencePiece(model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """What sentencepiece calls sentences. No piece crosses a newline, which is a piece of its own."""
    return (line for text in texts for line in text.split("\n") if line)


def _too_large(message: str, settings: config.Tokenizer) -> str:
    limit = re.search(r"value <= (\d+)", message) or re.search(r"pieces_size\(\)\) \((?:\d+) vs\. (\d+)\)", message)
    if limit:
        return (
            f"data.tokenizer.vocab_size={settings.vocab_size} is more than the training text allows; "
            f"the largest for {settings.kind} is {limit[1]}"
        )
    least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    size = settings.vocab_size
    if least:
        return f"data.tokenizer.vocab_size={size} is too small for the letters of the text; take at least {least[1]}"
    return f"sentencepiece could not train a {settings.kind} of {size} pieces: {' '.join(message.split())[-200:]}"
