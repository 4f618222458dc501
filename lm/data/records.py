"""Records: the formats of a source's documents, parsed from JSON and rendered as token ids with a loss mask.

    text      {"text": "..."}
    labelled  {"text": "...", "label": "spam"}                         a label is a word or a whole number
    pair      {"question": "...", "answer": "...", "context": "..."}   `context` may be left out
    messages  {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    preference  {"messages": [...], "chosen": "...", "rejected": "...", "margin": 1.0}    two answers; `margin` may be left out
    feedback    {"messages": [...], "completion": "...", "label": true}                   one answer, good or not
    tree      {"tree": "((a b) [MAX 2 9])", "label": "spam"}           words in brackets (`lm.data.trees`); without a label,
                                                                       each bracket begins with its own: "(3 (2 a) (1 b))"
    speech    {"audio": "a.wav", "text": "..."}                        a recording, and what is said in it
    captioned {"image": "a.png", "text": "...", "label": "animals"}    a picture, and what is said of it or its class, or both

Conversations are read in ShareGPT's shape too: {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}.
Beside a conversation in any shape may be its system message, `"system": "..."`.

Preference and feedback are read in the published shapes too: `"prompt": "..."` instead of messages; answers as lists of
messages, which may begin with the prompt; without a prompt, two conversations that differ in their last message alone, as lists
or as HH-RLHF's texts of "Human: ... Assistant: ...".

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

from lm.data import trees
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
class LabelledTree(Labelled):
    """`text` has the words alone."""

    tree: str  # in brackets, as `lm.data.trees.parse` reads it


@dataclass(frozen=True)
class Pair:
    question: str  # may be empty where there is a context
    answer: str
    context: str = ""  # is read before the question

    @property
    def given(self) -> str:
        """What is read before the answer."""
        return "\n".join(filter(None, (self.context, self.question)))


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


@dataclass(frozen=True)
class Speech:
    audio: str  # a file, from the folder of the records on; or a description (`lm.data.sound_espeak`)
    text: str  # what is said


@dataclass(frozen=True)
class Captioned:
    image: str  # a file, from the folder of the records on; or a description (`lm.data.corpus.openmoji`)
    text: str  # a caption; that of a picture with a class alone is the class
    label: str = ""  # its class; "": it has none


Record = Text | Labelled | Pair | Messages | Preference | Feedback | Speech | Captioned


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


def _tree(value: Mapping[str, Any]) -> LabelledTree:
    text = _string(value, "tree")
    try:
        if "label" in value:
            nodes, label = trees.parse(text), value["label"]
        else:
            nodes, label = trees.parse_labelled(text)
    except trees.InvalidTree as error:
        raise InvalidRecord(f"field 'tree': {error}") from None
    words = " ".join(trees.words(nodes))
    return LabelledTree(words, _labelled({"text": words, "label": label}).label, trees.written(nodes))


def _pair(value: Mapping[str, Any]) -> Pair:
    if "context" not in value and (near := [k for k in value if "did you mean" in nearest("context", [k])]):
        raise InvalidRecord(f"field {near[0]!r} is unknown; did you mean 'context'?")
    context = _string(value, "context", empty=True) if "context" in value else ""
    return Pair(_string(value, "question", empty=bool(context.strip())), _string(value, "answer"), context)


def _messages(value: Mapping[str, Any]) -> Messages:
    if (name := _named(value, ("messages", "conversations"))) is None:
        raise InvalidRecord(f"no field 'messages'{nearest('messages', value)}")
    turns = _told(value, _conversation(value[name], name))
    if not any(turn.role == "assistant" for turn in turns):
        raise InvalidRecord("no message is the assistant's, so there is nothing to learn")
    return Messages(turns)


def _named(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The field that has the conversation; None if none of `names` is there."""
    if len(found := [name for name in names if name in value]) > 1:
        raise InvalidRecord(f"fields {found[0]!r} and {found[1]!r} say the same: give one of them")
    return found[0] if found else None


def _told(value: Mapping[str, Any], turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation with the system message in the field of that name, unless there is none or the turns begin with it."""
    given = value.get("system")
    if not given or (isinstance(given, str) and not given.strip()):
        return turns
    told = Message("system", _string(value, "system"))
    if turns and turns[0].role == "system" and turns[0] != told:
        raise InvalidRecord(
            "field 'system' is another message than the one that the conversation begins with: give one of them"
        )
    return turns if turns[:1] == (told,) else (told, *turns)


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
        who, what = ("from", "value") if "from" in message else ("role", "content")
        if unknown := sorted(message.keys() - {who, what}):
            raise InvalidRecord(f"{where} has a field {unknown[0]!r}, and a message has only {who!r} and {what!r}")
        role, known = _string(message, who, where), ROLES if who == "role" else _SHAREGPT
        if role not in known:
            raise InvalidRecord(f"{where} has the role {role[:40]!r}{nearest(role, known)}")
        role = role if who == "role" else _SHAREGPT[role]
        if role not in _FOLLOWS[before]:
            after = f"follows a message of the role {before!r}" if before else "is the first"
            raise InvalidRecord(f"{where} has the role {role!r} and {after}; allowed there: {', '.join(_FOLLOWS[before])}")
        turns.append(Message(role, _string(message, what, where)))
        before = role
    return tuple(turns)


def _preference(value: Mapping[str, Any]) -> Preference:
    if "prompt" in value and value.get("messages") == value.get("chosen"):  # as UltraFeedback says it
        value = {name: given for name, given in value.items() if name != "messages"}
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


def _speech(value: Mapping[str, Any]) -> Speech:
    return Speech(_string(value, "audio"), _string(value, "text"))


def _captioned(value: Mapping[str, Any]) -> Captioned:
    label = _labelled({"text": "-", **value}).label if value.get("label", "") != "" else ""
    return Captioned(_string(value, "image"), _string({"text": label} | {**value} if label else value, "text"), label)


def _prompt(value: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """What the answers are to; None where it is only in the answers' own conversations."""
    if (name := _named(value, ("messages", "prompt", "conversations"))) is None:
        return None
    if name == "prompt" and isinstance(value[name], str):
        return _told(value, (Message("user", _string(value, name)),))
    return _told(value, _conversation(value[name], name))


def _answers(value: Mapping[str, Any], name: str, prompt: tuple[Message, ...] | None) -> tuple[Message, ...]:
    """The messages in a field after the prompt, which it may repeat; without a prompt all of them."""
    given = value.get(name)
    if isinstance(given, str) and prompt is None:
        turns = _SPEAKER.split(given)
        if turns[0].strip() or len(turns) < 5:
            raise InvalidRecord("no field 'messages' or 'prompt', and the answers are no conversations: say what they are to")
        given = [{"role": _SPEAKERS[who], "content": said.strip()} for who, said in zip(turns[1::2], turns[2::2], strict=True)]
    if isinstance(given, dict):  # one message
        given = [given]
    if not isinstance(given, list):
        return (Message("assistant", _string(value, name)),)
    first = given[0] if given and isinstance(given[0], dict) else {"role": "assistant"}
    whole = first.get("role", _SHAREGPT.get(str(first.get("from")))) != "assistant"
    turns = _conversation(given, name, prompt[-1].role if prompt and not whole else None)
    if whole:
        turns = _told(value, turns)
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
# Who speaks in ShareGPT's shape, as published sets spell it -> the role.
_SHAREGPT: Mapping[str, str] = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function_response": "tool",
    "observation": "tool",
}


# role -> the roles that may follow it; None: the start of the conversation.
_FOLLOWS: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant", "user"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool", "user"),
}
_FIELDS = {"text": ("text",), "labelled": ("text", "label"), "pair": ("question", "answer"), "messages": ("messages",)}
_FIELDS |= {"preference": ("chosen", "rejected"), "feedback": ("completion", "label"), "speech": ("audio", "text")}
_FIELDS |= {"captioned": ("image", "text"), "tree": ("tree",)}
_ASKED = ("messages", "conversations", "system", "prompt")
# All fields that a format reads; those of _FIELDS it cannot do without.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "labelled": ("text", "label"),
    "pair": ("question", "answer", "context"),
    "messages": _ASKED[:3],
    "preference": (*_ASKED, "chosen", "rejected", "margin"),
    "feedback": (*_ASKED, "completion", "label"),
    "speech": ("audio", "text"),
    "captioned": ("image", "text", "label"),
    "tree": ("tree", "label"),
}
_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Record]] = {
    "text": _text,
    "labelled": _labelled,
    "pair": _pair,
    "messages": _messages,
    "preference": _preference,
    "feedback": _feedback,
    "speech": _speech,
    "captioned": _captioned,
    "tree": _tree,
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
        case Captioned():
            question = [record.image]
        case _:
            question = [record.text]
    text = "\n".join(question)
    key = "".join(filter(str.isalnum, text.casefold())) or text
    return hashlib.sha256(key.encode()).digest()
