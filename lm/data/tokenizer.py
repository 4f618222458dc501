"""Text to token ids and back: a protocol, sentencepiece behind it (trained here, or given), and given tokenizer.json files.

A tokenizer that we train has its reserved ids at fixed places, so that models and objectives can rely on them:

    0 <pad>   1 <s>   2 </s>   3 <unk>   4 <mask>   5..104 <extra_id_0>..<extra_id_99>   105..109 role markers
    110 newline   111..366 the 256 bytes   367.. learned pieces

Ids below `reserved` (110) are control symbols: no text encodes to them, whatever it contains.
"""

import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lm import config
from lm.data import trial
from lm.data.words import WORD, ByteLevel, Marked, Pieces, byte_level_alphabet
from lm.errors import UserError

NUM_SENTINELS = 100
MASK = "<mask>"
MASKS = (MASK, "[MASK]")
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
    special: np.ndarray  # bool [vocab_size]: no text consists of it: control symbols, what stands for unknown text, unused ids
    reserved: int  # ids 0..reserved-1 are special, and there may be others
    word_start: np.ndarray  # bool [vocab_size]: by itself it begins a word (a space, a newline, punctuation, a special token)
    sentence_end: np.ndarray  # bool [vocab_size]: by itself it ends in a full stop or another of `words.SENTENCE_ENDS`
    proto: bytes  # the model, from which `from_bytes` makes an equal tokenizer
    fingerprint: str  # SHA-256 of `proto`

    def encode(self, text: str) -> np.ndarray: ...  # int32 [n], without bos and eos

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]: ...

    def decode(self, ids: Iterable[int]) -> str: ...  # control symbols are silent

    def boundaries(self, tokens: np.ndarray) -> np.ndarray: ...  # uint8 [n], as in `lm.data.words`

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray: ...  # bool [n]

    def require(self, name: str) -> Any: ...

    def piece(self, i: int) -> str: ...  # as the model writes it, for people to read


class _Given:
    """What both kinds of tokenizer make of their pieces."""

    vocab_size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    mask_id: int | None
    sentinel_ids: tuple[int, ...]
    role_ids: Mapping[str, int]
    special: np.ndarray
    proto: bytes

    def _with_roles(self) -> set[int]:
        """All ids that have a name above."""
        one = (self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id)
        return {i for i in one if i is not None} | {*self.sentinel_ids, *self.role_ids.values()}

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.proto).hexdigest()

    @cached_property
    def _pieces(self) -> Pieces:
        raise NotImplementedError

    @cached_property
    def word_start(self) -> np.ndarray:
        return self._pieces.begins == WORD

    @cached_property
    def sentence_end(self) -> np.ndarray:
        return self._pieces.ends

    def boundaries(self, tokens: np.ndarray) -> np.ndarray:
        """uint8 [n]: whether a word, a character or nothing begins with each token, as in `lm.data.words`."""
        return self._pieces.boundaries(np.asarray(tokens))

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray:
        """bool [n]: a sentence may end with the token."""
        return self._pieces.sentence_ends(np.asarray(tokens))

    def _names(self, name: str) -> str:
        raise NotImplementedError

    def require(self, name: str) -> Any:
        """The id of pad, bos, eos, unk or mask (sentinels: the 100 ids), or a UserError if the model has no such piece."""
        value = self.sentinel_ids if name == "sentinels" else getattr(self, f"{name}_id")
        if value is None or (name == "sentinels" and len(value) < NUM_SENTINELS):
            wanted = f"{SENTINELS[0]}..{SENTINELS[-1]}" if name == "sentinels" else self._names(name)
            raise UserError(f"the given tokenizer has no {wanted}; use one that has, or data.tokenizer.path=None to train one")
        return value


class SentencePiece(_Given):
    """A sentencepiece model, trained here or given. One of ours satisfies `decode(encode(x)) == x` for every text.

    Mask, sentinels and roles are control symbols whatever type the model gives them: as symbols that a user defined, or as
    ordinary pieces, their names in a text would turn into them. Other symbols that a user defined are text.
    """

    def __init__(self, proto: bytes) -> None:
        import sentencepiece

        self.proto = proto
        try:
            sp = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, ValueError):
            raise UserError("not a sentencepiece model; data.tokenizer.path takes a .model or a tokenizer.json file") from None
        self._sp = sp
        self.vocab_size: int = sp.vocab_size()
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = (
            None if i < 0 else i for i in (sp.pad_id(), sp.bos_id(), sp.eos_id(), sp.unk_id())
        )
        self.mask_id = next((i for name in MASKS if (i := self._find(name)) is not None), None)
        self.sentinel_ids: tuple[int, ...] = tuple(i for piece in SENTINELS if (i := self._find(piece)) is not None)
        self.role_ids: Mapping[str, int] = {piece: i for piece in ROLES if (i := self._find(piece)) is not None}
        if spoken := [i for i in self._with_roles() if not (sp.is_control(i) or sp.is_unknown(i))]:
            self._sp = sp = sentencepiece.SentencePieceProcessor(model_proto=_silenced(proto, spoken))
        kinds = (sp.is_control, sp.is_unknown, sp.is_unused)
        self.special = np.array([any(kind(i) for kind in kinds) for i in range(self.vocab_size)], bool)
        self.reserved = _leading(self.special)
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
    def _pieces(self) -> Pieces:
        def stands_for(i: int) -> bytes:
            piece = self._sp.id_to_piece(i)
            return _one_byte(piece) if self._sp.is_byte(i) else piece.replace(_SPACE, " ").encode()

        return Pieces([stands_for(i) for i in range(self.vocab_size)], self.special)

    def piece(self, i: int) -> str:
        """The piece as the model writes it, for people to read."""
        return self._sp.id_to_piece(int(i))

    def _names(self, name: str) -> str:
        return {"mask": MASK}.get(name, f"<{name}>")

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


class HuggingFace(_Given):
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
        self.reserved = _leading(self.special)

    def _unspeakable(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The file with other names for its special tokens, of characters that no text has.

        The library does not look for special tokens in a text (`encode_special_tokens`), but many files have them among the
        ordinary pieces as well, and there a model finds them: T5's unigram model takes "</s>" for the likeliest of all.
        """
        names = {piece: f"\U0010fffe{i}\U0010ffff" for piece, i in self._vocab.items() if self.special[i]}
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
                pieces[i] = _one_byte(piece)
            else:
                pieces[i] = piece.replace(_SPACE, " ").encode()
        split = self._tokenizer.pre_tokenizer
        if split is not None and "ByteLevel" in _kinds(spec["pre_tokenizer"]) and not suffix:

            def words(text: str) -> list[int]:
                with trial.one_line():
                    return [first for _, (first, _) in split.pre_tokenize_str(text)]

            return ByteLevel(pieces, self.special, apart, words)
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
        """int32 [n] for each text, without bos and eos; the library takes its own number of threads."""
        with trial.one_line():
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, np.int32) for e in found]

    def decode(self, ids: Iterable[int]) -> str:
        known = [i for i in np.asarray(ids).tolist() if i < self.vocab_size and not self.special[i]]
        with trial.one_line():
            return self._tokenizer.decode(known, skip_special_tokens=False)


_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how the pieces of single bytes are written


def _one_byte(piece: str) -> bytes:
    return bytes.fromhex(piece[3:5])


def _leading(special: np.ndarray) -> int:
    """How many ids there are before the first that is text."""
    return int(np.argmin(special)) if not special.all() else len(special)


def _kinds(part: Any) -> set[str]:
    """The types of a pre-tokenizer or decoder of a tokenizer.json, and of those that it consists of."""
    if not part:
        return set()
    return {part["type"]}.union(*map(_kinds, part.get("pretokenizers") or part.get("decoders") or []))


def _silenced(proto: bytes, ids: Sequence[int]) -> bytes:
    """A sentencepiece model with these pieces as control symbols."""
    from sentencepiece import sentencepiece_model_pb2

    format: Any = sentencepiece_model_pb2
    model = format.ModelProto.FromString(proto)
    for i in ids:
        model.pieces[i].type = format.ModelProto.SentencePiece.CONTROL
    return model.SerializeToString()


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
