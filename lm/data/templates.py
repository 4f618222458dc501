"""Chat templates as data: a conversation as ids, with loss on what the assistant says and on the token that ends it.

    template = templates.of("chatml", tokenizer)
    template.answered(messages)      texts to encode and ids, each with or without loss
    template.prompt(messages)        int32 [n], what a model reads before it answers

A template is a text in Jinja's language, as transformers reads it, with {% generation %} ... {% endgeneration %} around each of
the assistant's answers and the token that ends it. So what is trained on, what is exported, and what transformers marks with
`return_assistant_tokens_mask` are one text. In a text without these marks, as most published ones are, an answer is what stands
behind `add_generation_prompt`'s end up to the first special token. Names of special tokens are special where the template
writes them; in a message, a tool or a role they are ordinary letters.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm.data import jinja
from lm.data.records import Message
from lm.data.template_texts import TEXTS, TURNS, WORDS
from lm.data.vocabulary import Tokenizer
from lm.errors import UserError, nearest

PRIVATE = range(0xF0000, 0xFFFFE)  # characters without a meaning
Parts = list[tuple[str | list[int], bool]]  # text to encode, or ids; and whether it has loss

_SPECIAL = re.compile(r"<[^<>'\s]+>")  # names of special tokens in TEXTS
_MARK = re.compile(r"{%-?\s*generation\b")


def text_of(given: str) -> str:
    """The template of a name in TEXTS; a template's own text as it is."""
    if "{%" in given or "{{" in given:
        return given
    if given not in TEXTS:
        raise UserError(
            f"no chat template '{given[:40]}'{nearest(given, TEXTS)}; or give a template's text, in Jinja's language"
        )
    return TEXTS[given]


def of(given: str | None, tokenizer: Tokenizer) -> "Template | None":
    """The template of `data.template` for this tokenizer; None: conversations are written as without one. UserError if the
    tokenizer lacks a token that it writes."""
    if given is None:
        return None
    template = Template({"default": text_of(given)}, tokenizer, special_names(tokenizer), f"the chat template {given[:40]!r}")
    if lacking := [name for name in _SPECIAL.findall(TEXTS.get(given, "")) if name not in template.names.ids]:
        raise UserError(
            f"the tokenizer has no token {lacking[0]}, which the chat template '{given}' writes: take a model whose tokenizer "
            "has it, or leave data.template out"
        )
    return template


def exported(given: str | None, tokenizer: Tokenizer) -> str:
    """The text of `data.template`, to be saved beside a model in transformers' format."""
    if given is None:
        return TURNS if "<|end|>" in tokenizer.role_ids else WORDS
    return text_of(given)


def special_names(tokenizer: Tokenizer) -> dict[str, str]:
    """Special tokens that a template may ask for: {"bos_token": "<s>", ...}."""
    known = dict(bos_token=tokenizer.bos_id, eos_token=tokenizer.eos_id)
    return {name: tokenizer.piece(i) for name, i in known.items() if i is not None}


class Names:
    """The names of a tokenizer's special tokens, which are found in texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids = tokenizer.names
        self._found = re.compile(f"({'|'.join(map(re.escape, sorted(self.ids, key=len, reverse=True))) or '(?!)'})")

    def split(self, text: str) -> list[str | int]:
        """Texts, and ids of the special tokens whose names stand between them."""
        parts = (self.ids[part] if i % 2 else part for i, part in enumerate(self._found.split(text)))
        return [part for part in parts if part != ""]

    def broken(self, text: str, mark: str) -> str:
        """The text with a mark in each name, so that no name is left."""
        while self._found.search(text):  # of names that overlap, one at a time is found
            text = self._found.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", text)
        return text


class Template:
    """A template with its tokenizer. `texts` are its variants: "default", and perhaps "tool_use" for conversations with tools.
    `special`: the names of special tokens that it may ask for."""

    def __init__(self, texts: Mapping[str, str], tokenizer: Tokenizer, special: Mapping[str, str], name: str) -> None:
        self.texts, self.special, self.name = texts, special, name
        self.tokenizer = tokenizer.with_names_in("\n".join(texts.values()))
        self.names = Names(self.tokenizer)

    @property
    def end(self) -> int:
        """The id that ends an answer."""
        asked = (Message("user", "question"), Message("assistant", "answer"))
        (end,) = self.answered(asked)[-1][0]
        assert isinstance(end, int)
        return end

    def answered(self, messages: Sequence[Message]) -> Parts:
        """A conversation up to the end of its last answer, with loss on all answers. UserError if the template does not mark
        each of them with the special token that ends it, and nothing else."""
        last = max(i for i, message in enumerate(messages) if message.role == "assistant")
        written = self._marked(messages[: last + 1], begun=False)
        while written and not written[-1][1]:
            written.pop()
        runs = [list(run) for said, run in itertools.groupby(written, key=lambda part: part[1]) if said]
        answers = sum(message.role == "assistant" for message in messages)
        if len(runs) != answers or written[0][1] or not all(isinstance(run[-1][0], int) for run in runs):
            raise self._unmarked()
        return [(part if isinstance(part, str) else [part], said) for part, said in written]

    def _unmarked(self) -> UserError:
        return UserError(
            f"{self.name} does not mark what the assistant says: put {{% generation %}} and {{% endgeneration %}} around each "
            "answer and the special token that ends it, so that these have loss and nothing else has"
        )

    def _marked(self, messages: Sequence[Message], *, begun: bool) -> list[tuple[str | int, bool]]:
        """`written`, with the marks of the template, or those that are found. UserError if there are none."""
        given = _dicts(messages)
        if _MARK.search(self.texts["default"]):
            return self.written(given, begun=begun, marked=True)
        whole = _symbols(self.written(given, begun=begun))
        said = [False] * len(whole)
        for i, message in enumerate(messages):
            if message.role == "assistant":
                before = _symbols(self.written(given[:i], begun=True))
                end = next((k for k in range(len(before), len(whole)) if isinstance(whole[k], int)), None)
                answer = whole[len(before) : end]
                if end is None or whole[: len(before)] != before or message.content.strip() not in "".join(map(str, answer)):
                    raise self._unmarked()
                said[len(before) : end + 1] = [True] * (end + 1 - len(before))
        out: list[tuple[str | int, bool]] = []
        for (is_text, loss), run in itertools.groupby(
            zip(whole, said, strict=True), key=lambda s: (isinstance(s[0], str), s[1])
        ):
            symbols = [symbol for symbol, _ in run]
            out += [("".join(map(str, symbols)), loss)] if is_text else [(symbol, loss) for symbol in symbols]
        return out

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """int32 [n]: what `answered` puts before the answer to these messages. Texts on either side of an answer's beginning
        are encoded on their own, so that an answer's ids do not depend on how it came to be."""
        parts = [part for part, _ in self._marked(messages, begun=True)]
        ids = [self.tokenizer.encode(part) if isinstance(part, str) else np.array([part], np.int32) for part in parts]
        return np.concatenate([np.zeros(0, np.int32), *ids])

    def written(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, *, begun: bool, marked: bool = False
    ) -> list[tuple[str | int, bool]]:
        """What the template makes of a conversation, up to the beginning of an answer if `begun`: texts, and ids of the special
        tokens that it writes itself; if `marked`, whether each is within {% generation %}.

        In what it is given a mark is put into each name of a special token, so that no such name is left.
        """
        text = self.texts.get("tool_use" if tools else "default", self.texts["default"])
        given = {*text, *("".join(texts([messages, tools])))}
        mark, begins, ends = itertools.islice((c for c in map(chr, PRIVATE) if c not in given), 3)
        safe = lambda value: mapped(value, lambda text: self.names.broken(text, mark))
        settings = dict(messages=safe(messages), tools=safe(tools) if tools else None, documents=None, **self.special)
        settings |= {jinja.BEGINS: begins, jinja.ENDS: ends} if marked else {}
        found = jinja.render(text, settings | dict(add_generation_prompt=begun), name=self.name)
        out, said = [], False
        for run in re.split(f"([{begins}{ends}])", found):
            if run in (begins, ends):
                said = run == begins
                continue
            parts = (part.replace(mark, "") if isinstance(part, str) else part for part in self.names.split(run))
            out += [(part, said) for part in parts if part != ""]
        return out


def _symbols(written: Sequence[tuple[str | int, bool]]) -> list[str | int]:
    """The characters of texts, and ids."""
    return [symbol for part, _ in written for symbol in (part if isinstance(part, str) else [part])]


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def texts(value: Any, where: str = "the conversation") -> Iterator[str]:
    """All texts in a JSON value, keys included. UserError if it is no JSON, or a text has half a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where} has half a surrogate pair, which is no character: leave it out") from None
        yield value
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from (*texts(name, where), *texts(below, where))
    elif isinstance(value, (list, tuple)):
        for below in value:
            yield from texts(below, where)
    elif value is not None and type(value) not in (bool, int, float):
        raise UserError(f"{where} has a {type(value).__name__}, which is no JSON")


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): mapped(below, change) for name, below in value.items()}
    return [mapped(below, change) for below in value] if isinstance(value, (list, tuple)) else value
