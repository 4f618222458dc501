"""Templates in Jinja's language, run as transformers runs them and in a sandbox.

A template may come from a stranger. It runs without files, modules or inner attributes of Python's objects, for SECONDS at
most, and the texts that it makes have at most LARGEST characters. Memory has no other limit.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from lm.errors import UserError

SECONDS = 5.0  # of a thread's time, for one conversation; a published template takes milliseconds
LARGEST = 1 << 20  # characters of a template, of each text that it makes, and of a conversation
FILE = "<template>"  # Jinja's name for the code that it makes of a template
BEGINS, ENDS = "generation_begins", "generation_ends"  # variables whose values stand around what {% generation %} marks


def render(source: str, settings: Mapping[str, Any], *, name: str) -> str:
    """The text that a template makes. UserError, with the template's `name`, if it fails in whatever way."""
    try:
        return _limited(_compiled(source).generate(**settings))
    except UserError:
        raise
    except Exception as error:  # a template is a program: it may fail in any way
        raise UserError(f"{name} fails at this conversation: {str(error)[:300] or type(error).__name__}") from None


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
        """{% generation %} ... {% endgeneration %} marks what the assistant wrote: between the variables BEGINS and ENDS, which
        are empty where they are not given."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            begins, ends = (nodes.Output([nodes.Name(name, "load")], lineno=line) for name in (BEGINS, ENDS))
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope([begins, *body, ends], lineno=line)

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
