"""Flags, errors and exit codes, the same for every command.

    def parser() -> cli.Parser:
        p = cli.parser("lm.example", __doc__, config=True)       --config=FILE[:ARG] and --config.KEY=VALUE
        p.add_argument("--rows", hint=Count, default=8, help="how many")
        return p

    @cli.command
    def main(argv: list[str] | None = None) -> int:
        flags = parser().parse(argv)
        run = cli.load(flags)
        cli.start_jax()
        ...
        return 0

    if __name__ == "__main__":
        cli.enter(main)

A mistake in the flags is a UserError like any other: one line, exit code 2.
"""

import argparse
import ast
import functools
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NoReturn

import lm
from lm import process, startup
from lm.config import Run, Sampling, resolve
from lm.errors import EXIT_HOST_MISSING, EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_USER_ERROR, UserError, nearest, printable

WIDTH = 80  # columns of --help
EXITS = {
    0: "done",
    EXIT_USER_ERROR: "a mistake in the input; one line names it",
    EXIT_PREEMPTED: "stopped by SIGTERM or SIGHUP; run the same command to start again",
    EXIT_INTERRUPTED: "stopped by Ctrl-C; the same",
}
RUN_EXITS = {  # of commands that train
    EXIT_HOST_MISSING: "another host did not connect or is gone; restart all hosts",
    EXIT_PREEMPTED: "stopped by SIGTERM or SIGHUP, and saved; the same command resumes the run",
    EXIT_INTERRUPTED: "stopped by Ctrl-C, and saved; the same command resumes the run",
}


class _Help(argparse.RawDescriptionHelpFormatter):
    """Formats --help in 80 columns: paragraphs are filled, and indented lines (examples, tables) are unchanged."""

    def __init__(self, prog: str, **settings: Any):
        super().__init__(prog, width=WIDTH, max_help_position=26, **settings)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        paragraph: list[str] = []
        for line in [*text.strip().splitlines(), ""]:
            if line and not line.startswith(" "):
                paragraph.append(line)
                continue
            lines += textwrap.wrap(" ".join(paragraph), WIDTH, break_long_words=False, break_on_hyphens=False)
            lines.append(line)
            paragraph = []
        return "\n".join(lines).rstrip()


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose `parse` raises UserError. `add_argument(hint=Count)` declares the type and range of a flag."""

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=_Help, allow_abbrev=False, **settings)
        self.hints: dict[str, Any] = {}
        self.takes_config = False
        self.renamed: Mapping[str, str] = {}  # flag of an earlier version -> its current name

    def add_argument(self, *names: str, hint: Any = None, **settings: Any) -> argparse.Action:
        if hint is None:
            return super().add_argument(*names, **settings)
        default = "" if settings.get("default") is None else f" (default {settings['default']})"
        action = super().add_argument(*names, type=_literal, **settings | {"help": settings["help"] + default})
        self.hints[action.dest] = hint
        return action

    def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Parses the command line (default: `sys.argv`); UserError if invalid. `overrides` has its `--config.KEY=VALUE`."""
        words, overrides = sys.argv[1:] if argv is None else argv, {}
        if self.takes_config:
            words, overrides = resolve.split_flags(words)
        known = self._flags()
        for word in words:
            name = word.partition("=")[0]
            if name in self.renamed and name not in known:
                new = word.replace(name, self.renamed[name], 1)
                raise UserError(f"{name} is {self.renamed[name]} now: give {new}")
            if word.startswith("--") and word != "--" and name not in known:
                raise UserError(f"unknown flag {name}{nearest(name, known)}")
        flags = self.parse_args(words)
        for name, hint in self.hints.items():
            if (value := getattr(flags, name, None)) is not None:
                setattr(flags, name, resolve.build(hint, value, f"--{name}"))
        flags.overrides = overrides
        return flags

    def _flags(self) -> set[str]:
        subparsers = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        below = [p for action in subparsers for p in action.choices.values()]
        return {name for p in (self, *below) for name in p._option_string_actions if name.startswith("--")}

    def error(self, message: str) -> NoReturn:
        raise UserError(_cause_and_cure(message, self.prog))


def _literal(text: str) -> Any:
    """The value of a Python literal, or `text` itself if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _cause_and_cure(message: str, prog: str) -> str:
    """Rewords an error message of argparse, which has no cure."""
    if found := re.match(r"the following arguments are required: (.+)", message):
        return f"{found[1]} is missing; {prog} --help has examples"
    if found := re.match(r"argument (\S+?)(?:/\S+)?: expected .*argument", message):
        return f"{found[1]} needs a value: {found[1]}=..."
    if found := re.match(r"argument (\S+?)(?:/\S+)?: ignored explicit argument (.+)", message):
        return f"{found[1]} takes no value; leave out {found[2]}"
    if found := re.match(r"argument (\S+?)(?:/\S+)?: invalid (\w+) value: (.+)", message):
        kind = {"int": "a whole number", "float": "a number"}.get(found[2], f"a valid {found[2]}")
        return f"{found[1]}={found[3]} is not {kind}; give another"
    if found := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.+)\)", message):
        return f"{found[1]} {found[2]!r} is not known{nearest(found[2], re.findall(r'[^ ,]+', found[3].replace(chr(39), '')))}"
    if found := re.match(r"unrecognized arguments: (.+)", message):
        return f"unexpected {found[1]!r}; {prog} --help lists the arguments"
    return f"{message}; see {prog} --help"


def parser(module: str, doc: str | None, *, config: bool | None = None, exits: Mapping[int, str] | None = None) -> Parser:
    """Returns the parser of `python -m <module>`.

    `doc` is the text of --help, and `exits` describes exit codes beyond EXITS. If `config` is not None, the command takes
    --config, which is required if True, and --config.KEY=VALUE.
    """
    codes = "\n".join(f"  {code:<4} {text}" for code, text in sorted((EXITS | dict(exits or {})).items()))
    p = Parser(prog=f"python -m {module}", description=doc, epilog=f"exit codes:\n{codes}")
    p.add_argument("--version", action="version", version=f"lm {lm.__version__}")
    if config is not None:
        p.takes_config = True
        p.add_argument(
            "--config",
            required=config,
            metavar="FILE[:ARG]",
            help="a Python file with get_config(), which is executed and gets ARG, or a run's config.json",
        )
        p.add_argument(
            "--config.KEY",
            dest="_",
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help="sets any value of the config: --config.train.steps=200",
        )
    return p


def add_stop(p: Parser) -> None:
    p.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends a text, and is not part of it; \\n is a line's end"
    )


SAMPLING = {
    "temperature": "0 takes the likeliest token",
    "top_k": "draw from the K likeliest tokens; 0: all",
    "top_p": "draw from the likeliest tokens with this share of the probability",
    "min_p": "leave out tokens below this share of the likeliest one's probability",
    "typical_p": "draw from the tokens of the most expected surprise with this share",
    "repetition": "divides the logits of tokens that were there; 1: no penalty",
    "frequency": "taken off a token's logit each time that it is written",
    "presence": "taken off once",
    "seed": "of all draws",
}


def add_sampling(p: Parser, **defaults: float) -> None:
    """Adds a flag for each setting of `lm.config.Sampling`. `defaults`: those of the command that differ from the settings'."""
    for setting in fields(Sampling):
        default = defaults.get(setting.name, setting.default)
        p.add_argument(f"--{setting.name}", hint=setting.type, help=f"{SAMPLING[setting.name]} (default {default:g})")


def sampling_of(flags: argparse.Namespace) -> dict[str, Any]:
    """The settings of `lm.config.Sampling` that are given, by name."""
    return {name: value for name in SAMPLING if (value := getattr(flags, name)) is not None}


def readable(text: str) -> str:
    """The text without control characters, which a terminal would obey; lines stay lines."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def standard_input(missing: str) -> str:
    """Everything on standard input. UserError with the text `missing` at a terminal, where nothing was piped; and for bytes
    that are not UTF-8."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(missing)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 ({error}); give texts that are") from None


def load(flags: argparse.Namespace) -> Run:
    """Returns the run that --config and --config.KEY=VALUE describe. UserError if they are invalid."""
    return resolve.load(flags.config, flags.overrides)


def say(text: str) -> None:
    """Prints a line on standard error if that is a terminal: what a command does while its screen would stay blank."""
    if sys.stderr.isatty():
        print(printable(text), file=sys.stderr, flush=True)


def start_jax(source: str | None = None, *, hosts: bool = False) -> None:
    """Imports jax with the settings of `lm.startup`, and with `hosts` connects to the other processes of the run. `source`: the
    folder of a model that the command loads and compiles next; a line at a terminal says so.

    Call it after flags and config are checked, since the import takes seconds.
    """
    if source is not None:
        say(f"loading {source}, then compiling")
    startup.before_jax()
    startup.after_jax()
    if hosts:
        from lm import distributed

        distributed.start()


def command(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Wraps `main` so that UserErrors, signals and OSErrors print one line and return an exit code. Other exceptions pass."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        process._Asked.code = None
        try:
            return main(argv)
        except SystemExit:
            raise
        except BaseException as error:
            if (ended := process.ending(error)) is None:
                raise
            line, code = ended
            print(line, file=sys.stderr)
            return code

    return wrapped


def enter(main: Callable[[], int], *, hosts: bool = False) -> NoReturn:
    """Runs a command and exits with its code. `hosts`: the command may run as several processes, see `lm.distributed`, which
    is imported if the command did: the import of jax takes a second, in which --help or a wrong flag would wait."""
    process.begin()
    try:
        code = main()
        ended = lambda: code
    except Exception as error:
        if not hosts:
            raise
        ended = functools.partial(_raise, error)
    if not hosts or "jax" not in sys.modules:
        process.leave(ended())
    from lm import distributed

    distributed.run(ended)


def _raise(error: Exception) -> NoReturn:
    raise error
