"""Chat templates: a conversation as the ids that a model reads, and the ids that end its answer.

    chat = of(saved.open(folder))
    chat.ids([{"role": "user", "content": "Hello"}])     # int32 [n], up to where the assistant's answer begins
    chat.ends                                            # (2,)

A model that was trained here on records of the format `messages` reads what `lm.data.records.render` writes. A converted model
reads what its template makes: a program in Jinja's language, which is run as transformers runs it and gives the same ids.

Names of special tokens are special where the template writes them. In a message, a tool or a role they are ordinary letters.

A template may come from a stranger. It runs in Jinja's sandbox, without files, modules or inner attributes of Python's objects,
for SECONDS at most, and the texts that it makes have at most LARGEST characters. Memory has no other limit.
"""

import abc
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np

from lm import config, untrusted
from lm.data.records import ROLES, TURNS, Message, render_prompt
from lm.data.vocabulary import Tokenizer
from lm.errors import UserError, nearest

SECONDS = 5.0  # of a thread's time, for one conversation; a published template takes milliseconds
LARGEST = 1 << 20  # characters of a template, of each text that it makes, and of a conversation
TEMPLATE, SETTINGS, GENERATION = "chat_template.jinja", "tokenizer_config.json", "generation_config.json"
PRIVATE, CUT = range(0xF0000, 0xFFFFE), "\U0010fffd"  # characters without a meaning
FILE = "<template>"  # Jinja's name for the code that it makes of a template

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
        return self.tokenizer.encode_parts(self._split(text))

    def _split(self, text: str) -> list[str | int]:
        """Texts, and ids of the special tokens whose names stand between them."""
        names = self.tokenizer.names
        parts = (names[part] if i % 2 else part for i, part in enumerate(self._names.split(text)))
        return [part for part in parts if part != ""]

    @cached_property
    def _names(self) -> re.Pattern[str]:
        return re.compile(f"({'|'.join(map(re.escape, sorted(self.tokenizer.names, key=len, reverse=True))) or '(?!)'})")


def of(source: Source) -> Chat:
    """The chat of a saved model. UserError if it was neither converted with a template nor trained on conversations."""
    if source.run is None:
        if templates := _templates(source):
            return Template(source, templates)
    elif any(s.format in TURNS for s in source.run.data.sources.values()):
        return Turns(source.tokenizer())
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


def _texts(value: Any, where: str = "the conversation") -> Iterator[str]:
    """All texts in a JSON value, keys included. UserError if it is no JSON, or a text has half a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where} has half a surrogate pair, which is no character: leave it out") from None
        yield value
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from (*_texts(name, where), *_texts(below, where))
    elif isinstance(value, (list, tuple)):
        for below in value:
            yield from _texts(below, where)
    elif value is not None and type(value) not in (bool, int, float):
        raise UserError(f"{where} has a {type(value).__name__}, which is no JSON")


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _mapped(below, change) for name, below in value.items()}
    return [_mapped(below, change) for below in value] if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------------------------------------- models trained here


class Turns(Chat):
    """The turns of `lm.data.records`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = render_prompt((), tokenizer)[1]
        self.ends = (self.end,)

    def _ids(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> np.ndarray:
        if tools:
            raise UserError("the model was trained on conversations without tools: leave them out")
        for i, message in enumerate(messages):
            if also := sorted(message.keys() - {"role", "content"}):
                raise UserError(f"messages[{i}] has a field {also[0]!r}, which the model was not trained on: leave it out")
        if not messages:
            raise UserError("there is no message: give one or more")
        list(_texts(messages))
        return render_prompt([Message(m["role"], m["content"]) for m in messages], self.tokenizer)[0]

    def _text(self, messages: list[dict[str, Any]], begun: bool) -> str:
        if not begun and messages[-1]["role"] != "assistant":
            raise UserError("the model continues messages of the assistant alone: let the last one be such")
        ids = self._ids(messages if begun else messages[:-1], None).tolist()
        runs = itertools.groupby(ids, key=lambda i: self.tokenizer.piece(i) if self.tokenizer.special[i] else None)
        said = [len(list(some)) * special if special else self.tokenizer.decode(list(some)) for special, some in runs]
        return "".join([*said, "" if begun else messages[-1]["content"]])


# ------------------------------------------------------------------------------------------------------------ templates


class Template(Chat):
    """A converted model's template."""

    def __init__(self, source: Source, templates: Mapping[str, str]) -> None:
        settings = _json(source, SETTINGS)
        self.name, self.templates = f"the chat template of {source.folder}", templates
        tokenizer = source.tokenizer()
        self.special = _special_names(settings or _json(source, "special_tokens_map.json"), tokenizer)
        self.tokenizer = tokenizer.with_names_in("\n".join(templates.values()))
        found = {i for name in (GENERATION, "config.json") for i in _ids_of(_json(source, name).get("eos_token_id"))}
        eos = self.tokenizer.names.get(self.special.get("eos_token", ""), tokenizer.eos_id)
        after = self._after_an_answer()
        found |= {i for i in (eos, after) if i is not None}
        self.ends = tuple(sorted(i for i in found if i < tokenizer.vocab_size))
        if not self.ends:
            raise UserError(f"no token ends an answer of {source.folder}: put eos_token_id into hf/{GENERATION}")
        self.end = after if after in self.ends else self.ends[0]

    def _ids(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> np.ndarray:
        if not messages:
            raise UserError("there is no message: give one or more")
        return self.tokenizer.encode_parts(self._parts(messages, tools, begun=True))

    def _text(self, messages: list[dict[str, Any]], begun: bool) -> str:
        """Where a message is to be continued, what the template writes behind its content is cut off as in transformers."""
        if not begun:
            messages = [*messages[:-1], messages[-1] | {"content": f"{messages[-1]['content']}{CUT} "}]
        names = {i: name for name, i in self.tokenizer.names.items()}
        text = "".join(names[part] if isinstance(part, int) else part for part in self._parts(messages, None, begun=begun))
        before, _, behind = text.rpartition(CUT)
        return text if begun else before if behind.startswith(" ") else before.rstrip()

    def _after_an_answer(self) -> int | None:
        """The special token that the template writes after an answer; None if there is none, or it refuses the question."""
        asked = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            parts = self._parts(asked, None, begun=False)
        except UserError:
            return None
        at = next((i for i, part in enumerate(parts) if isinstance(part, str) and part.rstrip().endswith("answer")), len(parts))
        after = parts[at + 1 : at + 2]
        return after[0] if after and isinstance(after[0], int) else None

    def _parts(self, messages: list[dict[str, Any]], tools: Any, *, begun: bool) -> list[str | int]:
        """What the template makes of a conversation: texts, and ids of the special tokens that it writes itself.

        In what it is given a mark is put into each name of a special token, so that no such name is left.
        """
        source = self.templates.get("tool_use" if tools else "default", self.templates["default"])
        given = {*source, *("".join(_texts([messages, tools])))}
        mark = next(c for c in map(chr, PRIVATE) if c not in given)

        def marked(text: str) -> str:
            while self._names.search(text):  # of names that overlap, one at a time is found
                text = self._names.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", text)
            return text

        settings = dict(messages=_mapped(messages, marked), tools=_mapped(tools, marked) if tools else None)
        text = self._render(source, settings | dict(documents=None, add_generation_prompt=begun, **self.special))
        return [part for p in self._split(text) if (part := p.replace(mark, "") if isinstance(p, str) else p) != ""]

    def _render(self, source: str, settings: Mapping[str, Any]) -> str:
        try:
            return _limited(_compiled(source).generate(**settings))
        except UserError:
            raise
        except Exception as error:  # a template is a program: it may fail in any way
            raise UserError(f"{self.name} fails at this conversation: {str(error)[:300] or type(error).__name__}") from None


def _limited(chunks: Iterator[str]) -> str:
    """The texts that a template makes, joined. TimeoutError or MemoryError beyond SECONDS and LARGEST.

    A trace function sees each line of a template's code, so that a loop which gives nothing is stopped too.
    """
    end = time.thread_time() + SECONDS

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise TimeoutError(f"it takes more than {SECONDS:g} s")
        if frame.f_code.co_filename == FILE:
            _check_size(max(map(_size, frame.f_locals.values()), default=0))
        return trace

    out, size, before = [], 0, sys.gettrace()
    sys.settrace(trace)
    try:
        for chunk in chunks:
            out.append(chunk)
            size += len(chunk)
            _check_size(size)
    finally:
        sys.settrace(before)
    return "".join(out)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise MemoryError(f"it makes a text or list of more than {LARGEST:,}")


@cache
def _environment() -> Any:
    """The sandbox, with what transformers (utils/chat_template_utils.py) gives to a template."""
    try:
        import jinja2
        from jinja2 import ext, nodes, sandbox
    except ImportError:
        raise UserError("a chat template needs jinja2: pip install -e '.[serve]'") from None

    class Sandbox(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            for value, times in ((left, right), (right, left)):
                if operator == "*" and isinstance(times, int):
                    _check_size(_size(value) * times)
            if operator == "**" and max(abs(left), abs(right)) > 1000:
                raise MemoryError("it raises a number above 1,000, or to a power above it")
            return super().call_binop(context, operator, left, right)

    class Namespace(jinja2.utils.Namespace):
        """A template's variables: without names that Python reserves, and of limited size."""

        def __init__(*given: Any, **settings: Any) -> None:
            attributes = dict(*given[1:], **settings)
            jinja2.utils.Namespace.__init__(given[0])
            for name, value in attributes.items():
                given[0][name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"it sets {str(name)[:40]!r} in a namespace")
            _check_size(_size(value))
            super().__setitem__(name, value)

    class Generation(ext.Extension):
        """{% generation %} ... {% endgeneration %} marks what the assistant wrote, and changes nothing."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False):
        settings: Any = dict(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return json.dumps(value, **settings)

    found: Any = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols], cache_size=0)
    found.filters["tojson"] = to_json
    found.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda form: datetime.now().strftime(str(form)),
        namespace=Namespace,
        dict=lambda *given, **settings: dict(*given, **settings),
    )
    return found


@cache
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


# ------------------------------------------------------------------------------------------------------ files of a model


def _json(source: Source, name: str) -> dict[str, Any]:
    data = source.carried(name)
    return {} if data is None else untrusted.parse_json(data, source.folder / "hf" / name)


def _templates(source: Source) -> dict[str, str]:
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
    if any(len(text) > LARGEST for text in found.values()):
        raise UserError(f"the chat template of {source.folder} has more than {LARGEST:,} characters; give a smaller one")
    return found


def _special_names(settings: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """Names of special tokens that a template may ask for: {"bos_token": "<s>", ...}."""
    if not settings:
        known = dict(bos_token=tokenizer.bos_id, eos_token=tokenizer.eos_id)
        return {name: tokenizer.piece(i) for name, i in known.items() if i is not None}
    named = {name: value for name, value in settings.items() if name.endswith("_token") and not name.startswith("add_")}
    of = lambda value: value.get("content") if isinstance(value, Mapping) else value
    return {name: of(value) for name, value in named.items() if isinstance(of(value), str)}


def _ids_of(value: Any) -> list[int]:
    """A token id, or a list of them, as files write them."""
    every = value if isinstance(value, list) else [value]
    return [i for i in every if type(i) is int and i >= 0]
