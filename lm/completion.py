"""Completion in a shell: of verbs, flags, their choices, keys of a config and their values.

    eval "$(lm completion bash)"         in ~/.bashrc; zsh the same in ~/.zshrc
    lm completion fish | source          in ~/.config/fish/config.fish

The shell calls `lm complete LINE` with what is typed so far, which prints a candidate for the last word on each line. No jax is
imported.
"""

import argparse
import importlib
import shlex
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from lm import cli
from lm.config import Run, resolve
from lm.errors import UserError, nearest

VERBS = {
    "train": "trains what a config describes, or resumes it",
    "prepare": "prepares a corpus without training",
    "show": "shows the rows, shares and lengths that a run trains on",
    "evaluate": "scores a model on texts, tasks and items",
    "generate": "writes texts that go on from prompts",
    "score": "gives the probabilities of texts, or ranks them",
    "embed": "makes vectors of texts, and searches them",
    "predict": "labels texts or answers questions, as a fine-tuned run does",
    "transcribe": "writes what is said in recordings",
    "latent": "turns texts into a few numbers, and these into texts",
    "ask": "answers questions about long documents",
    "chat": "talks, in a terminal",
    "serve": "serves a model over the OpenAI protocol",
    "convert": "converts models from and to Hugging Face and GGUF",
    "report": "puts runs side by side in one page",
    "completion": "prints what makes bash, zsh or fish complete",
}
BASH = """\
_lm() {
    local IFS=$'\\n'
    COMPREPLY=($(lm complete "${COMP_LINE:0:COMP_POINT}" bash 2>/dev/null))
}
complete -o default -o nospace -F _lm lm
"""
SHELLS = {
    "bash": BASH,
    "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + BASH,
    "fish": "complete -c lm -a '(lm complete (commandline -cp | string collect) fish 2>/dev/null)'\n",
}


@cli.command
def main(argv: list[str] | None) -> int:
    action, *words = argv or [""]
    if action == "complete":
        print("\n".join(candidates(words[0] if words else "", cut=words[1:] == ["bash"])))
    elif words in ([shell] for shell in SHELLS):
        print(SHELLS[words[0]], end="")
    else:
        given = words[0] if words else ""
        raise UserError(f"no shell '{given}'{nearest(given, SHELLS)}; such as lm completion bash")
    return 0


def candidates(line: str, *, cut: bool = False) -> list[str]:
    """What the last word of the line may become, sorted; a finished word ends in a space. `cut`: without what is before
    the last "=" or ":", where bash ends a word."""
    try:
        words = shlex.split(line)
    except ValueError:  # within quotes
        return []
    if not words or line[-1:].isspace():
        words.append("")
    *before, last = words[1:] or [""]
    if not before:
        found: list[str] = [f"{verb} " for verb in VERBS]
    elif before[0] == "completion":
        found = [f"{shell} " for shell in SHELLS]
    elif before[0] in VERBS:
        parser = _sub(importlib.import_module(f"lm.{before[0]}").parser(), before[1:])
        found = [*_keys(last)] if last.startswith("--config.") and getattr(parser, "takes_config", False) else [*_flags(parser)]
    else:
        found = []
    begun = sorted({word for word in found if word.startswith(last)})
    at = max(last.rfind("="), last.rfind(":")) + 1 if cut else 0
    return [word[at:] for word in begun]


def _sub(parser: Any, before: list[str]) -> Any:
    """The parser of the action that is typed, of a command that has actions."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return next((action.choices[word] for action in actions for word in before if word in action.choices), parser)


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        for name in action.option_strings:
            if name == "--config.KEY":
                yield "--config."
            elif name.startswith("--"):
                yield f"{name} " if action.nargs == 0 else f"{name}="
                yield from (f"{name}={choice} " for choice in action.choices or ())
        if not action.option_strings:
            yield from (f"{choice} " for choice in action.choices or ())


def _keys(word: str) -> Iterator[str]:
    """The keys of a config on the level that is typed, and the values of one that has few."""
    section = word[: word.rfind(".") + 1]
    hints: list[Any] = [Run]
    for part in section.split(".")[1:-1]:
        hints = [below for hint in hints for below in _below(hint, part)]
    for cls in (cls for hint in hints for cls in resolve.dataclasses_of(hint)):
        for field in resolve.field_hints(cls):
            name, found = f"{section}{field}", _below(cls, field)
            if any(resolve.dataclasses_of(hint) or typing.get_origin(hint) is Mapping for hint in found):
                yield f"{name}."
            else:
                yield f"{name}="
                yield from (f"{name}={value} " for hint in found for value in _values(hint))


def _below(hint: Any, name: str) -> tuple[Any, ...]:
    """The types of the field of this name, or of a mapping's values."""
    if typing.get_origin(hint) is Mapping:
        return resolve.union_members(typing.get_args(hint)[1])
    fields = [resolve.field_hints(cls) for cls in resolve.dataclasses_of(hint)]
    return tuple(member for of in fields if name in of for member in resolve.union_members(of[name]))


def _values(hint: Any) -> tuple[Any, ...]:
    plain, _ = resolve.ruled(hint)
    return (True, False) if plain is bool else typing.get_args(plain) if typing.get_origin(plain) is typing.Literal else ()
