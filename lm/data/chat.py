"""Chat templates: a conversation as the ids that a model reads, and the ids that end its answer.

    chat = of(saved.open(folder))
    chat.ids([{"role": "user", "content": "Hello"}])     # int32 [n], up to where the assistant's answer begins
    chat.ends                                            # (2,)

A model that was trained here on records of the format `messages` reads what `lm.data.render` writes. A converted model reads
what its template makes (`lm.data.templates`), and the ids are those of transformers.
"""

import abc
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lm import config, untrusted
from lm.data import jinja, templates
from lm.data.records import ROLES, Message
from lm.data.render import render_prompt
from lm.data.templates import Names
from lm.data.tokenizer import Words
from lm.data.vocabulary import SPACE, Tokenizer
from lm.errors import UserError, nearest

TEMPLATE, SETTINGS, GENERATION = "chat_template.jinja", "tokenizer_config.json", "generation_config.json"
CUT = "\U0010fffd"  # a character without a meaning

Chatted = Sequence[Mapping[str, Any]]  # {"role": "user", "content": "..."}, and what else a template knows: "tool_calls", ...


class Source(Protocol):
    """What is read of a `lm.saved.Saved`."""

    @property
    def folder(self) -> Any: ...
    @property
    def run(self) -> config.Run | None: ...
    def carried(self, name: str) -> bytes | None: ...
    def tokenizer(self) -> Tokenizer: ...


class Chat(abc.ABC):
    """How a model is given a conversation."""

    ends: tuple[int, ...]  # ids that end the assistant's answer
    end: int  # the one that it was trained to write there
    tokenizer: Tokenizer  # its `names` are those of the special tokens in `text`

    def ids(self, messages: Chatted, *, tools: Sequence[Mapping[str, Any]] | None = None) -> np.ndarray:
        """int32 [n], what the model reads up to where the assistant's answer begins, bos included.

        A message has a role of `lm.data.records.ROLES`. Its content is text, or a list of {"type": "text", "text": "..."}
        which are joined. `tools` are JSON schemas of functions, if the template can tell the model of them. UserError for
        anything else, and if the template refuses the conversation.
        """
        return self._ids([_message(message, f"messages[{i}]") for i, message in enumerate(messages)], tools)

    @abc.abstractmethod
    def _ids(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> np.ndarray: ...

    def text(self, messages: Chatted, *, begun: bool = True) -> str:
        """What the model reads as a text, with the names of special tokens; if not `begun`, up to the end of the last message,
        which it is to continue: `add_generation_prompt` and `continue_final_message` of transformers."""
        return self._text([_message(message, f"messages[{i}]") for i, message in enumerate(messages)], begun)

    @abc.abstractmethod
    def _text(self, messages: list[dict[str, Any]], begun: bool) -> str: ...

    def encode(self, text: str) -> np.ndarray:
        """int32 [n] of such a text. Names of special tokens are special wherever they stand, as in transformers."""
        return self.tokenizer.encode_parts(self._names.split(text))

    @cached_property
    def _names(self) -> Names:
        return Names(self.tokenizer)


def of(source: Source) -> Chat:
    """The chat of a saved model. UserError if it was neither converted with a template nor trained on conversations."""
    if source.run is None:
        if texts := templates_of(source):
            return Converted(source, texts)
    elif source.run.data.conversations:
        template = templates.of(source.run.data.template, source.tokenizer())
        return Turns(source.tokenizer()) if template is None else Trained(template)
    raise UserError(
        f"{source.folder} is no chat model: it has no chat template, and was not trained here on conversations. Fine-tune it "
        f"on records of format=messages, or put its {TEMPLATE} into hf/; python -m lm.generate continues texts with it"
    )


# ------------------------------------------------------------------------------------------------------------- messages


def _message(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message without empty fields, its content a text. UserError, which says `where`, if it is no message."""
    if not isinstance(given, Mapping):
        raise UserError(f"{where} is no message: give an object with 'role' and 'content'")
    message = {str(name): value for name, value in given.items() if value is not None}
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(f"{where} has the role {str(role)[:40]!r}{nearest(str(role), ROLES)}")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where} has content that is no text, and the model reads text alone: leave it out")
        message["content"] = content = "".join(map(str, texts))
    if not isinstance(content, str) and not (role == "assistant" and content is None and "tool_calls" in message):
        raise UserError(f"{where} has no content: give a text")
    return message


# ------------------------------------------------------------------------------------------------- models trained here


class Turns(Chat):
    """The turns of `lm.data.records`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = render_prompt((), tokenizer)[1]
        self.ends = (self.end,)

    def _ids(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> np.ndarray:
        return render_prompt(_plain(messages, tools), self.tokenizer)[0]

    def _text(self, messages: list[dict[str, Any]], begun: bool) -> str:
        if not begun and messages[-1]["role"] != "assistant":
            raise UserError("the model continues messages of the assistant alone: let the last one be such")
        ids = self._ids(messages if begun else messages[:-1], None).tolist()
        runs = itertools.groupby(ids, key=lambda i: self.tokenizer.piece(i) if self.tokenizer.special[i] else None)
        said = [len(list(some)) * special if special else self.tokenizer.decode(list(some)) for special, some in runs]
        return "".join([*said, "" if begun else messages[-1]["content"]])


def _plain(messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    """Messages as records have them. UserError for what no record has."""
    if tools:
        raise UserError("the model was trained on conversations without tools: leave them out")
    for i, message in enumerate(messages):
        if also := sorted(message.keys() - {"role", "content"}):
            raise UserError(f"messages[{i}] has a field {also[0]!r}, which the model was not trained on: leave it out")
    if not messages:
        raise UserError("there is no message: give one or more")
    list(templates.texts(messages))
    return [Message(m["role"], m["content"]) for m in messages]


# ------------------------------------------------------------------------------------------------------------ templates


class Templated(Chat):
    """Conversations as a template writes them."""

    def __init__(self, template: templates.Template) -> None:
        self.template, self.tokenizer = template, template.tokenizer

    def _text(self, messages: list[dict[str, Any]], begun: bool) -> str:
        """Where a message is to be continued, what the template writes behind its content is cut off as in transformers."""
        if not begun:
            messages = [*messages[:-1], messages[-1] | {"content": f"{messages[-1]['content']}{CUT} "}]
        names = {i: name for name, i in self.tokenizer.names.items()}
        written = self.template.written(messages, begun=begun)
        text = "".join(names[part] if isinstance(part, int) else part for part, _ in written)
        before, _, behind = text.rpartition(CUT)
        return text if begun else before if behind.startswith(" ") else before.rstrip()


class Trained(Templated):
    """The template that a model was trained with here (`data.template`)."""

    def __init__(self, template: templates.Template) -> None:
        super().__init__(template)
        self.end = template.end
        self.ends = (self.end,)

    def _ids(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> np.ndarray:
        return self.template.prompt(_plain(messages, tools))


class Converted(Templated):
    """A converted model's own template."""

    def __init__(self, source: Source, texts: Mapping[str, str]) -> None:
        settings = _json(source, SETTINGS)
        tokenizer = source.tokenizer()
        special = _special_names(settings or _json(source, "special_tokens_map.json"), tokenizer)
        super().__init__(templates.Template(texts, tokenizer, special, f"the chat template of {source.folder}"))
        found = {i for name in (GENERATION, "config.json") for i in _ids_of(_json(source, name).get("eos_token_id"))}
        eos = self.tokenizer.names.get(special.get("eos_token", ""), tokenizer.eos_id)
        after = self._after_an_answer()
        found |= {i for i in (eos, after) if i is not None}
        self.ends = tuple(sorted(i for i in found if i < tokenizer.vocab_size))
        if not self.ends:
            raise UserError(f"no token ends an answer of {source.folder}: put eos_token_id into hf/{GENERATION}")
        self.end = after if after in self.ends else self.ends[0]

    def _ids(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> np.ndarray:
        if not messages:
            raise UserError("there is no message: give one or more")
        return self.tokenizer.encode_parts([part for part, _ in self.template.written(messages, tools, begun=True)])

    def _after_an_answer(self) -> int | None:
        """The special token that the template writes after an answer; None if there is none, or it refuses the question."""
        asked = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            parts = [part for part, _ in self.template.written(asked, begun=False)]
        except UserError:
            return None
        at = next((i for i, part in enumerate(parts) if isinstance(part, str) and part.rstrip().endswith("answer")), len(parts))
        after = parts[at + 1 : at + 2]
        return after[0] if after and isinstance(after[0], int) else None


# ------------------------------------------------------------------------------------------------------ files of a model


def files(source: Source) -> dict[str, bytes]:
    """For transformers, beside the tokenizer's file of a run that was trained on conversations: its template, the names of its
    special tokens, and the token that ends an answer. {} of another model. No class of transformers reads whole words as
    `lm.data.tokenizer.Words` does, so that none is named for these."""
    if source.run is None or not source.run.data.conversations:
        return {}
    tokenizer, given = source.tokenizer(), source.run.data.template
    known = dict(pad_token=tokenizer.pad_id, unk_token=tokenizer.unk_id)
    names: dict[str, Any] = {name: tokenizer.piece(i) for name, i in known.items() if i is not None}
    names |= {"bos_token": None, "eos_token": None} | templates.special_names(tokenizer)  # null, or a class has its own
    kind: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if tokenizer.proto.lstrip()[:1] != b"{":
        spaced = tokenizer.piece(int(tokenizer.encode("a")[0])).startswith(SPACE)
        kind = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": spaced}
    made: dict[str, Any] = {GENERATION: {"eos_token_id": of(source).end}}
    if not isinstance(tokenizer, Words):
        made[SETTINGS] = {**kind, **names, "add_bos_token": False, "legacy": False}
    return {TEMPLATE: templates.exported(given, tokenizer).encode()} | {
        name: json.dumps(value, indent=2).encode() for name, value in made.items()
    }


def _json(source: Source, name: str) -> dict[str, Any]:
    data = source.carried(name)
    return {} if data is None else untrusted.parse_json(data, source.folder / "hf" / name)


def templates_of(source: Source) -> dict[str, str]:
    """Templates by name, "default" among them; {} if the model has none. A file of its own stands before tokenizer_config.json,
    as in transformers."""
    data = source.carried(TEMPLATE)
    given = _json(source, SETTINGS).get("chat_template") if data is None else data.decode(errors="replace")
    if isinstance(given, list):
        given = {t.get("name"): t.get("template") for t in given if isinstance(t, Mapping)}
    found = given if isinstance(given, dict) else {"default": given}
    found = {name: text for name, text in found.items() if isinstance(name, str) and isinstance(text, str)}
    if found and "default" not in found:
        raise UserError(f"{source.folder} has chat templates named {', '.join(sorted(found))}, and none is named 'default'")
    if any(len(text) > jinja.LARGEST for text in found.values()):
        raise UserError(f"the chat template of {source.folder} has more than {jinja.LARGEST:,} characters; give a smaller one")
    return found


def _special_names(settings: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """Names of special tokens that a template may ask for: {"bos_token": "<s>", ...}."""
    if not settings:
        return templates.special_names(tokenizer)
    named = {name: value for name, value in settings.items() if name.endswith("_token") and not name.startswith("add_")}
    of = lambda value: value.get("content") if isinstance(value, Mapping) else value
    return {name: of(value) for name, value in named.items() if isinstance(of(value), str)}


def _ids_of(value: Any) -> list[int]:
    """A token id, or a list of them, as files write them."""
    every = value if isinstance(value, list) else [value]
    return [i for i in every if type(i) is int and i >= 0]
