"""Records: the formats of a source's documents, parsed from JSON and rendered as token ids with a loss mask.

    text      {"text": "..."}
    labelled  {"text": "...", "label": "spam"}                         a label is a word or a whole number
    pair      {"question": "...", "answer": "...", "context": "..."}   `context` may be left out
    messages  {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

Other fields of the object, such as an id or a date, are ignored. A message may have no other fields, because they (images, tool
calls, ...) would change its meaning.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.tokenizer import Tokenizer
from lm.errors import UserError, nearest

VERSION = 1  # of the parsers and of `render`; raise it to have records prepared again
ROLES = ("system", "user", "assistant", "tool")


class InvalidRecord(UserError):
    """A JSON value that is no record of its format. The message names the field and the fault."""


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Labelled:
    text: str
    label: str  # the class as a word, so that a model can also write it


@dataclass(frozen=True)
class Pair:
    question: str  # may be empty where there is a context
    answer: str
    context: str = ""  # is read before the question


@dataclass(frozen=True)
class Message:
    role: str  # one of ROLES
    content: str


@dataclass(frozen=True)
class Messages:
    messages: tuple[Message, ...]


Record = Text | Labelled | Pair | Messages


# --------------------------------------------------------------------------------------------------------- from JSON


def parse(value: Any, format: str) -> Record:
    """The record of this format in a JSON value. Raises InvalidRecord, which names the field."""
    if not isinstance(value, dict):
        raise InvalidRecord(f"a JSON {_kind(value)}, not an object with {' and '.join(map(repr, _FIELDS[format]))}")
    return _PARSERS[format](value)


def to_json(record: Record) -> str:
    """One line of JSON, which `parse` reads back; equal records give equal lines."""
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False)


def _text(value: Mapping[str, Any]) -> Text:
    return Text(_string(value, "text"))


def _labelled(value: Mapping[str, Any]) -> Labelled:
    label = value.get("label")
    if type(label) is int:
        value = {**value, "label": str(label)}
    label = " ".join(_string(value, "label").split())
    if "\0" in label:  # labels become `recipe.classes`, and a config has none
        raise InvalidRecord("field 'label' holds a zero byte")
    return Labelled(_string(value, "text"), label)


def _pair(value: Mapping[str, Any]) -> Pair:
    if "context" not in value and (near := [k for k in value if "did you mean" in nearest("context", [k])]):
        raise InvalidRecord(f"field {near[0]!r} is unknown; did you mean 'context'?")
    context = _string(value, "context", empty=True) if "context" in value else ""
    return Pair(_string(value, "question", empty=bool(context.strip())), _string(value, "answer"), context)


def _messages(value: Mapping[str, Any]) -> Messages:
    """A conversation: an optional system message, then the user's; `_FOLLOWS` says which roles may follow each other."""
    given = value.get("messages")
    if "messages" not in value:
        raise InvalidRecord(f"no field 'messages'{nearest('messages', value)}")
    if not isinstance(given, list):
        raise InvalidRecord(f"field 'messages' is a {_kind(given)}, not a list")
    turns: list[Message] = []
    for i, message in enumerate(given):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise InvalidRecord(f"{where} is a {_kind(message)}, not an object with 'role' and 'content'")
        if unknown := sorted(message.keys() - {"role", "content"}):
            raise InvalidRecord(f"{where} has a field {unknown[0]!r}, and a message has only 'role' and 'content'")
        role = _string(message, "role", where)
        if role not in ROLES:
            raise InvalidRecord(f"{where} has the role {role[:40]!r}{nearest(role, ROLES)}")
        before = turns[-1].role if turns else None
        if role not in _FOLLOWS[before]:
            after = f"follows a message of the role {before!r}" if before else "is the first"
            raise InvalidRecord(f"{where} has the role {role!r} and {after}; allowed there: {', '.join(_FOLLOWS[before])}")
        turns.append(Message(role, _string(message, "content", where)))
    if not any(turn.role == "assistant" for turn in turns):
        raise InvalidRecord("no message is the assistant's, so there is nothing to learn")
    return Messages(tuple(turns))


# role -> the roles that may follow it; None: the start of the conversation.
_FOLLOWS: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant", "user"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool", "user"),
}
_FIELDS = {"text": ("text",), "labelled": ("text", "label"), "pair": ("question", "answer"), "messages": ("messages",)}
_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Record]] = {
    "text": _text,
    "labelled": _labelled,
    "pair": _pair,
    "messages": _messages,
}


def _string(value: Mapping[str, Any], name: str, within: str = "", *, empty: bool = False) -> str:
    """The text in a field. Raises InvalidRecord if it is missing, not text, or only white space (allowed with `empty`)."""
    field = f"field {name!r}" + (f" of {within}" if within else "")
    if name not in value:
        raise InvalidRecord(f"no {field}{nearest(name, map(str, value))}")
    text = value[name]
    if not isinstance(text, str):
        raise InvalidRecord(f"{field} is a {_kind(text)}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair, "\\ud83d", which is no character
        raise InvalidRecord(f"{field} has half a surrogate pair at character {error.start}") from None
    if not empty and not text.strip():
        raise InvalidRecord(f"{field} is empty")
    return text


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


# ------------------------------------------------------------------------------------- texts, and what identifies one


def texts(record: Record) -> str:
    """All texts of a record, joined by newlines: a tokenizer is trained on it, and its UTF-8 bytes are counted."""
    if isinstance(record, Messages):
        return "\n".join(turn.content for turn in record.messages)
    return "\n".join(
        filter(
            None,
            (getattr(record, name) for name in ("context", "text", "question", "label", "answer") if hasattr(record, name)),
        )
    )


def question_digest(record: Record) -> bytes:
    """SHA-256 of the part of a record that the model answers, without case, punctuation and white space. Records with equal
    digests go to the same split, so that no training question is asked again in the test."""
    match record:
        case Messages(turns):
            first = next(i for i, turn in enumerate(turns) if turn.role == "assistant")
            question = [turn.content for turn in turns[:first]]
        case Pair():
            question = [record.context, record.question]
        case _:
            question = [record.text]
    text = "\n".join(question)
    key = "".join(filter(str.isalnum, text.casefold())) or text
    return hashlib.sha256(key.encode()).digest()


# -------------------------------------------------------------------------------------------------------- rendering


@dataclass(frozen=True)
class Rendered:
    """A record as the model reads it.

    ids   int32 [n]
    loss  bool [n]: the tokens that have loss, each predicted from those before it
    """

    ids: np.ndarray
    loss: np.ndarray


def render(records: Sequence[Record], tokenizer: Tokenizer) -> list[Rendered]:
    """Renders each record as ids with a loss mask. The answer has loss, and so has the token that ends it, so that the model
    learns to stop; the question has none.

    text      bos a text eos                 labelled  bos a text eos spam eos      pair  bos context question eos answer eos
    loss       1  1   1   1                  loss       0  0   0   0    1   1       loss   0     0       0      0    1     1

    messages  bos <|user|> Hello <|end|> <|assistant|> Good day <|end|>
    loss       0      0      0      0          0        1    1     1

    Without role tokens in the tokenizer, roles are written as text (`user:`) and <|end|> is eos. Messages after the assistant's
    last one are left out. Each part is encoded on its own, so that the ids of a message do not depend on what follows.
    """
    parts = [_parts(record, tokenizer) for record in records]
    encoded = iter(
        tokenizer.encode_batch([part for record_parts in parts for part, _ in record_parts if isinstance(part, str)])
    )
    out = []
    for record_parts in parts:
        ids = [next(encoded) if isinstance(part, str) else np.array(part, np.int32) for part, _ in record_parts]
        loss = [np.full(len(part), has_loss) for part, (_, has_loss) in zip(ids, record_parts, strict=True)]
        out.append(Rendered(np.concatenate(ids).astype(np.int32), np.concatenate(loss)))
    return out


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """What `render` puts before the assistant's answer to these messages, int32 [n], and the id that ends the answer."""
    answered = _turns(Messages((*messages, Message("assistant", ""))), tokenizer)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    (end,) = answered[-1][0]
    assert isinstance(end, int)
    parts = [part for part, _ in answered[:-2]]
    ids = [tokenizer.encode(part) if isinstance(part, str) else np.array(part, np.int32) for part in [bos, *parts]]
    return np.concatenate(ids).astype(np.int32), end


Parts = list[tuple[str | list[int], bool]]  # text to encode, or ids; and whether it has loss


def _parts(record: Record, tokenizer: Tokenizer) -> Parts:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    match record:
        case Text(text):
            return [(bos, True), (text, True), (eos, True)]
        case Labelled(text, label):
            given, answer = text, label
        case Pair(question, answer, context):
            given = "\n".join(filter(None, (context, question)))
        case Messages():
            return [(bos, False), *_turns(record, tokenizer)]
    end = [tokenizer.require("eos")]
    return [(bos, False), (given, False), (end, False), (f" {answer}", True), (end, True)]


def _turns(record: Messages, tokenizer: Tokenizer) -> Parts:
    last = max(i for i, turn in enumerate(record.messages) if turn.role == "assistant")
    roles = tokenizer.role_ids
    end = [roles["<|end|>"]] if "<|end|>" in roles else [tokenizer.require("eos")]
    parts: Parts = []
    for turn in record.messages[: last + 1]:
        mark, has_loss = f"<|{turn.role}|>", turn.role == "assistant"
        known = mark in roles and "<|end|>" in roles
        parts.append(([roles[mark]] if known else f"{turn.role}:", False))
        parts += [(turn.content if known else f" {turn.content}", has_loss), (end, has_loss)]
    return parts
