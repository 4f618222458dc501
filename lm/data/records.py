"""Records: the formats of a source's documents, parsed from JSON and rendered as token ids with a loss mask.

    text      {"text": "..."}
    labelled  {"text": "...", "label": "spam"}                         a label is a word or a whole number
    pair      {"question": "...", "answer": "...", "context": "..."}   `context` may be left out
    messages  {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    preference  {"messages": [...], "chosen": "...", "rejected": "...", "margin": 1.0}    two answers; `margin` may be left out
    feedback    {"messages": [...], "completion": "...", "label": true}                   one answer, good or not

The last two are read in the published shapes too: `"prompt": "..."` instead of messages; answers as lists of messages, which
may begin with the prompt; without a prompt, two conversations that differ in their last message alone, as lists or as HH-RLHF's
texts of "Human: ... Assistant: ...".

Other fields of the object, such as an id or a date, are ignored. A message may have no other fields, because they (images, tool
calls, ...) would change its meaning.
"""

import dataclasses
import hashlib
import json
import math
import re
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


@dataclass(frozen=True)
class Preference:
    messages: tuple[Message, ...]  # up to the two answers
    chosen: str
    rejected: str
    margin: float = 0.0  # how much better the chosen answer is, in units of reward; 0: no more than better


@dataclass(frozen=True)
class Feedback:
    messages: tuple[Message, ...]  # up to the answer
    completion: str
    label: bool  # whether the answer is good


Record = Text | Labelled | Pair | Messages | Preference | Feedback
TURNS = ("messages", "preference", "feedback")  # the formats that are conversations, which a model is trained to chat in


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
    if "messages" not in value:
        raise InvalidRecord(f"no field 'messages'{nearest('messages', value)}")
    turns = _conversation(value["messages"], "messages")
    if not any(turn.role == "assistant" for turn in turns):
        raise InvalidRecord("no message is the assistant's, so there is nothing to learn")
    return Messages(turns)


def _conversation(given: Any, name: str, before: str | None = None) -> tuple[Message, ...]:
    """The list of messages in a field: an optional system message, then the user's; `_FOLLOWS` says which roles may follow each
    other. `before`: the role of what the list goes on from; None: it begins the conversation."""
    if not isinstance(given, list):
        raise InvalidRecord(f"field {name!r} is a {_kind(given)}, not a list")
    turns: list[Message] = []
    for i, message in enumerate(given):
        where = f"{name}[{i}]"
        if not isinstance(message, dict):
            raise InvalidRecord(f"{where} is a {_kind(message)}, not an object with 'role' and 'content'")
        if unknown := sorted(message.keys() - {"role", "content"}):
            raise InvalidRecord(f"{where} has a field {unknown[0]!r}, and a message has only 'role' and 'content'")
        role = _string(message, "role", where)
        if role not in ROLES:
            raise InvalidRecord(f"{where} has the role {role[:40]!r}{nearest(role, ROLES)}")
        if role not in _FOLLOWS[before]:
            after = f"follows a message of the role {before!r}" if before else "is the first"
            raise InvalidRecord(f"{where} has the role {role!r} and {after}; allowed there: {', '.join(_FOLLOWS[before])}")
        turns.append(Message(role, _string(message, "content", where)))
        before = role
    return tuple(turns)


def _preference(value: Mapping[str, Any]) -> Preference:
    prompt = _prompt(value)
    answers = {name: _answers(value, name, prompt) for name in ("chosen", "rejected")}
    if prompt is None:
        a, b = answers.values()
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        prompt = a[:shared]
        answers = {name: turns[shared:] for name, turns in answers.items()}
    _check_asked(prompt)
    for name, turns in answers.items():
        if len(turns) != 1 or turns[0].role != "assistant":
            raise InvalidRecord(
                f"field {name!r} has {len(turns)} messages after what both conversations share, and one answer of the "
                "assistant is compared: they must differ in their last message alone"
            )
    chosen, rejected = (turns[0].content for turns in answers.values())
    if chosen == rejected:
        raise InvalidRecord("fields 'chosen' and 'rejected' are the same, so that neither is preferred")
    if "margin" not in value and (near := [k for k in value if "did you mean" in nearest("margin", [k])]):
        raise InvalidRecord(f"field {near[0]!r} is unknown; did you mean 'margin'?")
    margin = value.get("margin", 0.0)
    if type(margin) not in (int, float) or not 0 <= margin < math.inf:
        raise InvalidRecord(f"field 'margin' is {margin!r}, not a number from 0 on")
    return Preference(prompt, chosen, rejected, float(margin))


def _feedback(value: Mapping[str, Any]) -> Feedback:
    prompt = _prompt(value)
    if prompt is None:
        raise InvalidRecord(f"no field 'messages' or 'prompt'{nearest('prompt', value)}")
    _check_asked(prompt)
    turns = _answers(value, "completion", prompt)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise InvalidRecord(f"field 'completion' has {len(turns)} messages, and one answer of the assistant is judged")
    if type(label := value.get("label")) is not bool:
        raise InvalidRecord(f"field 'label' is {label!r}, not true or false" if "label" in value else "no field 'label'")
    return Feedback(prompt, turns[0].content, label)


def _prompt(value: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """What the answers are to; None where it is only in the answers' own conversations."""
    if "messages" in value and "prompt" in value:
        raise InvalidRecord("fields 'messages' and 'prompt' say the same: give one of them")
    if isinstance(value.get("prompt"), str):
        return (Message("user", _string(value, "prompt")),)
    name = next((name for name in ("messages", "prompt") if name in value), None)
    return None if name is None else _conversation(value[name], name)


def _answers(value: Mapping[str, Any], name: str, prompt: tuple[Message, ...] | None) -> tuple[Message, ...]:
    """The messages in a field after the prompt, which it may repeat; without a prompt all of them."""
    given = value.get(name)
    if isinstance(given, str) and prompt is None:
        turns = _SPEAKER.split(given)
        if turns[0].strip() or len(turns) < 5:
            raise InvalidRecord("no field 'messages' or 'prompt', and the answers are no conversations: say what they are to")
        given = [{"role": _SPEAKERS[who], "content": said.strip()} for who, said in zip(turns[1::2], turns[2::2], strict=True)]
    if not isinstance(given, list):
        return (Message("assistant", _string(value, name)),)
    whole = bool(given) and isinstance(given[0], dict) and given[0].get("role") != "assistant"
    turns = _conversation(given, name, prompt[-1].role if prompt and not whole else None)
    if prompt and whole:
        if turns[: len(prompt)] != prompt:
            raise InvalidRecord(f"field {name!r} begins with other messages than the prompt's")
        return turns[len(prompt) :]
    return turns


def _check_asked(prompt: tuple[Message, ...]) -> None:
    if not prompt or "assistant" not in _FOLLOWS[prompt[-1].role]:
        raise InvalidRecord("what is before the answers must end with a message of the user or of a tool")


_SPEAKER = re.compile(r"\n\n(Human|Assistant):")  # of HH-RLHF's texts (arXiv 2204.05862)
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


# role -> the roles that may follow it; None: the start of the conversation.
_FOLLOWS: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant", "user"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool", "user"),
}
_FIELDS = {"text": ("text",), "labelled": ("text", "label"), "pair": ("question", "answer"), "messages": ("messages",)}
_FIELDS |= {"preference": ("chosen", "rejected"), "feedback": ("completion", "label")}
_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Record]] = {
    "text": _text,
    "labelled": _labelled,
    "pair": _pair,
    "messages": _messages,
    "preference": _preference,
    "feedback": _feedback,
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
    if isinstance(record, Messages | Preference | Feedback):
        answers = [getattr(record, name) for name in ("chosen", "rejected", "completion") if hasattr(record, name)]
        return "\n".join([*(turn.content for turn in record.messages), *answers])
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
        case Messages(turns) | Preference(turns) | Feedback(turns):
            first = next((i for i, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
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

    preference  two conversations one after the other, each with its own bos, and loss on its last answer alone
    feedback    a conversation with loss on its last answer alone

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
        case Preference(messages, chosen, rejected):
            return [part for answer in (chosen, rejected) for part in _answered(messages, answer, tokenizer)]
        case Feedback(messages, completion):
            return _answered(messages, completion, tokenizer)
    end = [tokenizer.require("eos")]
    return [(bos, False), (given, False), (end, False), (f" {answer}", True), (end, True)]


def _answered(messages: Sequence[Message], answer: str, tokenizer: Tokenizer) -> Parts:
    """A conversation and its last answer, which alone has loss, with its end."""
    *before, content, end = _parts(Messages((*messages, Message("assistant", answer))), tokenizer)
    return [*((part, False) for part, _ in before), content, end]


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
