"""Text to token ids and back: sentencepiece models (trained here or given) and given tokenizer.json files.

A tokenizer that is trained here has its reserved ids at fixed numbers:

    0 <pad>   1 <s>   2 </s>   3 <unk>   4 <mask>   5..104 <extra_id_0>..<extra_id_99>   105..109 role markers
    110 newline   111..366 the 256 bytes   367.. learned pieces

Ids below 110 are control symbols: no text encodes to them, even if it contains their names.

Byte-level BPE (`kind="byte_bpe"`) has the same control symbols, and then the bytes (`lm.data.tokenizer_bytes`). A word-level
tokenizer (`kind="word"`) has them but for 32 sentinels, and no bytes.

    0..4 as above   5..36 <extra_id_0>..<extra_id_31>   37..41 role markers   42.. words, the most frequent first
"""

import dataclasses
import io
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lm import config
from lm.data import tokenizer_bytes, tokenizer_check
from lm.data.tokenizer_json import HuggingFace, library
from lm.data.vocabulary import (
    MASK,
    MASKS,
    NUM_SENTINELS,
    NUM_WORD_SENTINELS,
    ROLES,
    SENTINELS,
    SPACE,
    Tokenizer,
    byte_value,
)
from lm.data.word_boundaries import Pieces
from lm.errors import UserError

_RESERVED = 5 + NUM_SENTINELS + len(ROLES)
RESERVED_OF_WORDS = 5 + NUM_WORD_SENTINELS + len(ROLES)  # ids of a word-level tokenizer that are no words
# A constant, not the number of cores: unigram training sums probabilities per thread, so the number changes the model. (It is
# also stored in the model file.)
_TRAIN_THREADS = 2
_LONGEST = 1 << 12  # characters of a word: sentencepiece reads no model with a piece of 65,536 bytes
_PART = 1 << 20  # characters per call of sentencepiece, which needs some hundred bytes of memory for each of them


class SentencePiece(Tokenizer):
    """A sentencepiece model. For one trained here, `decode(encode(x)) == x` holds for every text.

    Mask, sentinels and roles are made control symbols whatever type the model file gives them. As user-defined symbols or
    ordinary pieces, they would be produced by their names in a text. Other user-defined symbols are text.
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
        if reachable := [i for i in self._assigned_ids() if not (sp.is_control(i) or sp.is_unknown(i))]:
            self._sp = sp = sentencepiece.SentencePieceProcessor(model_proto=_with_controls(proto, reachable))
        kinds = (sp.is_control, sp.is_unknown, sp.is_unused)
        self.special = np.array([any(kind(i) for kind in kinds) for i in range(self.vocab_size)], bool)
        # If no piece spans a newline, lines can be encoded one by one, which is several times faster.
        newline = self._find("\n")
        self._newline = newline if newline is not None and self._separates_lines(newline) else None
        self._space_bytes = [self._find(f"<0x{b:02X}>") for b in SPACE.encode()]

    def _separates_lines(self, newline: int) -> bool:
        """Whether the text on either side of a newline is encoded as it would be alone."""
        alone = self._sp.encode("a")
        if self._sp.encode("a\na") != [*alone, newline, *alone]:  # a space is put before every text, or newlines become spaces
            return False
        return not any("\n" in self._sp.id_to_piece(i) for i in range(self.vocab_size) if i != newline)

    def _find(self, piece: str) -> int | None:
        """The id of exactly this piece; None if there is none (`piece_to_id` then gives the id of unk)."""
        i = self._sp.piece_to_id(piece)
        return i if self._sp.id_to_piece(i) == piece else None

    @cached_property
    def _pieces(self) -> Pieces:
        def stands_for(i: int) -> bytes:
            piece = self._sp.id_to_piece(i)
            return byte_value(piece) if self._sp.is_byte(i) else piece.replace(SPACE, " ").encode()

        return Pieces([stands_for(i) for i in range(self.vocab_size)], self.special)

    def piece(self, i: int) -> str:
        return self._sp.id_to_piece(int(i))

    def _spelling(self, name: str) -> str:
        return {"mask": MASK}.get(name, f"<{name}>")

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]:
        """int32 [n] for each text; `threads=None`: one per core. Raises UnicodeEncodeError for lone surrogates."""
        threads = threads or os.cpu_count() or 1
        newline = self._newline
        if newline is None:
            return [np.array(ids, np.int32) for ids in self._sp.encode(list(texts), num_threads=threads)]
        if all(len(text) <= _PART for text in texts):
            return self._encode_by_lines(texts, newline, threads)
        return [np.concatenate([self._encode_by_lines([p], newline, threads)[0] for p in self._parts(text)]) for text in texts]

    def _parts(self, text: str) -> Iterator[str]:
        """Splits a text into parts of at most _PART characters, after a newline or before a space, so that the tokens of the
        parts are those of the text. A longer run is cut at _PART: tokens differ there, but decode to the same text.
        """
        alone, spaced = (self._sp.encode(a) for a in ("a", " a"))
        keeps_spaces = self._sp.encode("a a") == alone + spaced  # a given model may drop a leading space
        at = 0
        while len(text) - at > _PART:
            stop = text.rfind("\n", at, at + _PART) + 1
            if not stop and keeps_spaces:
                stop = text.rfind(" ", at, at + _PART)
                while stop > at and text[stop - 1] == " ":
                    stop -= 1
            stop = stop if stop > at else at + _PART
            yield text[at:stop]
            at = stop
        yield text[at:]

    def _encode_by_lines(self, texts: Sequence[str], newline: int, threads: int) -> list[np.ndarray]:
        """int32 [n] for each text; the lines of all texts are encoded in one call."""
        split = [text.split("\n") for text in texts]
        lines = list(itertools.chain.from_iterable(split))
        if any(SPACE in line for line in lines):
            ids = [self._encode_line(line) for line in lines]
        else:
            ids = self._sp.encode(lines, num_threads=threads)
        out, at = [], 0
        for parts in split:
            joined: list[int] = []
            for i in range(at, at + len(parts)):
                joined += ids[i]
                joined.append(newline)
            out.append(np.array(joined[:-1], np.int32))
            at += len(parts)
        return out

    def _encode_line(self, line: str) -> list[int]:
        """Encodes a U+2581 as its three bytes, because its own piece decodes to a space."""
        ids: list[int] = []
        for i, part in enumerate(line.split(SPACE)):
            ids += (self._space_bytes if i and None not in self._space_bytes else []) + self._sp.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._sp.decode(np.asarray(ids).tolist())


class Words(SentencePiece):
    """A sentencepiece model of whole words. A text is its words between any white space; a word that is not in the vocabulary
    is unk. So `encode("a b")` is `encode("a")` and `encode("b")`, and decoding puts single spaces between words.

    sentencepiece itself makes one unk of several unknown words in a row, and splits words at a literal U+2581.
    """

    def __init__(self, proto: bytes) -> None:
        super().__init__(proto)
        pieces = ((i, self.piece(i)) for i in np.flatnonzero(~self.special).tolist())
        self._words = {piece[len(SPACE) :]: i for i, piece in pieces if piece.startswith(SPACE)}

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]:
        words, unk = self._words, self.unk_id
        return [np.array([words.get(word, unk) for word in text.split()], np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The words; unk is U+2047, as in other sentencepiece models, other special ids are left out."""
        known = (i for i in np.asarray(ids).tolist() if i == self.unk_id or not self.special[i])
        return " ".join("\u2047" if i == self.unk_id else self.piece(i)[len(SPACE) :] for i in known)


def _is_of_words(proto: bytes) -> bool:
    """Whether the bytes are a sentencepiece model whose pieces are the words between spaces, unchanged."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    format: Any = sentencepiece_model_pb2
    try:
        model = format.ModelProto.FromString(proto)
    except DecodeError:
        return False
    rule = model.normalizer_spec
    words = model.trainer_spec.model_type == format.TrainerSpec.WORD
    return words and rule.add_dummy_prefix and rule.remove_extra_whitespaces and not rule.precompiled_charsmap


def _with_controls(proto: bytes, ids: Sequence[int]) -> bytes:
    """The sentencepiece model `proto` with the pieces `ids` turned into control symbols."""
    from sentencepiece import sentencepiece_model_pb2

    format: Any = sentencepiece_model_pb2
    model = format.ModelProto.FromString(proto)
    for i in ids:
        model.pieces[i].type = format.ModelProto.SentencePiece.CONTROL
    return model.SerializeToString()


def from_bytes(proto: bytes, *, checked: bool = False) -> Tokenizer:
    """The tokenizer in a file's bytes: JSON is a tokenizer.json, anything else a sentencepiece model. Unless `checked`, a
    tokenizer.json is first tried in a process of its own (`lm.data.tokenizer_check`)."""
    if proto.lstrip()[:1] != b"{":
        return Words(proto) if _is_of_words(proto) else SentencePiece(proto)
    if not checked:
        tokenizer_check.check(proto)
    return HuggingFace(proto)


def load(path: str) -> Tokenizer:
    """Loads a given model file, local or gs://, after `tokenizer_check` has tried it. Raises UserError if it is unusable."""
    proto = read(path)
    tokenizer_check.check(proto)
    return from_bytes(proto, checked=True)


def read(path: str) -> bytes:
    """The bytes of a given model file, local or gs://. Raises UserError if there is none."""
    from etils import epath

    try:
        return epath.Path(path).expanduser().read_bytes()
    except OSError:
        raise UserError(
            f"no tokenizer at {path}; give a sentencepiece .model or a tokenizer.json, or data.tokenizer.path=None to train one"
        ) from None


def identity_of(settings: config.Tokenizer) -> dict[str, Any]:
    """What a fingerprint tells of a tokenizer to train: its fields, but for one that only another kind has, and the version of
    a library that not every kind needs."""
    found = dataclasses.asdict(settings)
    if settings.kind == "byte_bpe":
        return found | {"tokenizers": library().__version__}
    del found["split"]
    return found


def train(texts: Iterable[str], settings: config.Tokenizer) -> Tokenizer:
    """Trains a tokenizer. The same texts and settings give the same bytes.

    Raises UserError if `vocab_size` is too small, or, unless words are the pieces, larger than the texts allow; the message
    names the limit.
    """
    import sentencepiece

    if settings.kind == "word":
        return Words(_words(texts, settings.vocab_size))
    if settings.kind == "byte_bpe":
        return HuggingFace(tokenizer_bytes.train(texts, settings))
    smallest = _RESERVED + 1 + 256 + 1
    if settings.vocab_size < smallest:
        raise UserError(
            f"data.tokenizer.vocab_size={settings.vocab_size} is below {smallest}, the least that reserved ids and bytes need"
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
        raise UserError(_training_error(str(error), settings)) from None
    return SentencePiece(model.getvalue())


def _words(texts: Iterable[str], vocab_size: int) -> bytes:
    """A sentencepiece model of the most frequent words, equally frequent ones in alphabetical order; `vocab_size` is the most
    ids that it has. Words of more than _LONGEST characters are left out, and so are unk. Made without sentencepiece's trainer,
    which leaves out lines that contain characters of its own use.
    """
    from sentencepiece import sentencepiece_model_pb2

    controls = ["<pad>", "<s>", "</s>", "<unk>", MASK, *SENTINELS[:NUM_WORD_SENTINELS], *ROLES]
    if vocab_size <= RESERVED_OF_WORDS:
        least = RESERVED_OF_WORDS + 1
        raise UserError(f"data.tokenizer.vocab_size={vocab_size} is below {least}, the least that reserved ids and a word need")
    counts = Counter[str]()
    for text in texts:
        counts.update(word for word in text.split() if len(word) <= _LONGEST)
    if not counts:
        raise UserError("the training text has no words to make a vocabulary of: give documents that are not empty")
    words = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - RESERVED_OF_WORDS]
    format: Any = sentencepiece_model_pb2
    kinds, total = format.ModelProto.SentencePiece, math.log(counts.total())
    model = format.ModelProto()
    for i, piece in enumerate(controls):
        model.pieces.add(piece=piece, score=0.0, type=kinds.UNKNOWN if i == 3 else kinds.CONTROL)
    for word in words:
        model.pieces.add(piece=SPACE + word, score=math.log(counts[word]) - total)
    ids = dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="<pad>")
    model.trainer_spec.MergeFrom(
        format.TrainerSpec(model_type=format.TrainerSpec.WORD, vocab_size=len(model.pieces), hard_vocab_limit=False, **ids)
    )
    model.normalizer_spec.MergeFrom(format.NormalizerSpec(name="identity", add_dummy_prefix=True))
    return model.SerializeToString(deterministic=True)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """The nonempty lines: sentencepiece's "sentences". No piece spans a newline, which is a piece of its own."""
    return (line for text in texts for line in text.split("\n") if line)


def _training_error(message: str, settings: config.Tokenizer) -> str:
    """Turns sentencepiece's message into one about `data.tokenizer.vocab_size`."""
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
