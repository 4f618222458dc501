"""Talks with a model: a run that was trained on conversations, or a converted chat model.

  python -m lm.chat --from=runs/smollm2
  python -m lm.chat --from=D --system="Answer in one sentence."
  python -m lm.chat --from=D --temperature=0 < questions.txt

At a terminal each line is a turn, and /help lists what else can be said. On other standard input each line is a turn too, and
answers are written one after another.

A model with a chat template is given turns as its template says, and one that was trained here on records of the format
"messages" as these were. The number of tokens that are in use stands before each turn; of those that the model has read or
written, few are read again. Where they leave no room for an answer, the oldest turns are forgotten.
"""

import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

from lm import cli, process
from lm.config import Sampling, Weights, resolve
from lm.config.ranges import Count
from lm.errors import UserError

if TYPE_CHECKING:
    from lm.talk.session import Session  # imports jax

TEMPERATURE = 0.7


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    sampling = resolve.build(Sampling, {"temperature": TEMPERATURE} | cli.sampling_of(flags))
    stop = tuple(text.replace("\\n", "\n") for text in flags.stop)
    cli.start_jax(flags.source)
    from lm import saved
    from lm.talk.session import Session
    from lm.talk.talker import Talker

    talker = Talker(saved.open(flags.source), length=flags.length, weights=flags.weights)
    new_tokens = flags.new_tokens or talker.usual_answer
    if new_tokens >= talker.length:
        raise UserError(f"--new_tokens={new_tokens} leaves nothing of the context of {talker.length:,} tokens: give fewer")
    say = lambda text: print(cli.readable(text), file=sys.stderr, flush=True)
    session = Session(talker, sampling, new_tokens, say, flags.system, stop)
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if terminal:
        say(f"{flags.source}: a context of {talker.length:,} tokens; /help lists commands; the first answer compiles first")
    try:
        _talk(session, terminal)
    except process.Ended as signal:
        if not terminal:
            raise
        say(f"{session.answers:,} answer{'s' * (session.answers != 1)}")
        return signal.code
    return 0


def _talk(session: "Session", terminal: bool) -> None:
    """Answers all lines. UserError for the first that cannot be answered, unless somebody at a terminal can type another."""
    ctrl_c = _CtrlC()
    for line in _asked(session, ctrl_c) if terminal else _piped():
        try:
            if not _turn(session, line, ctrl_c):
                break
        except UserError as error:
            if not terminal:
                raise
            print(f"error: {error}", file=sys.stderr)


class _CtrlC:
    """Ctrl-C stops an answer, or a line that is typed. Twice in a turn, it ends the chat."""

    def __init__(self) -> None:
        self.pressed = self.typing = False

    def begin(self) -> None:
        """Begins a turn. Its handler replaces that of the turn before: between the two, none would end the chat."""
        self.pressed = False
        process.catch(self._note, (signal.SIGINT,))

    def _note(self, code: int) -> None:
        self.pressed = True
        if self.typing:
            raise KeyboardInterrupt


def _turn(session: "Session", line: str, ctrl_c: _CtrlC) -> bool:
    said: list[str] = []

    def stream(text: str) -> None:
        said.append(text)
        print(cli.readable(text), end="", flush=True)

    ctrl_c.begin()
    before = session.answers
    try:
        return session.turn(line, stream, lambda: ctrl_c.pressed)
    finally:
        if said or session.answers != before:  # an answer may be empty
            print(flush=True)


def _asked(session: "Session", ctrl_c: _CtrlC) -> Iterator[str]:
    """Lines that are typed at a terminal, each after the number of tokens that are in use."""
    import readline  # noqa: F401  `input` edits lines with it

    while True:
        ctrl_c.begin()
        if (line := _typed(f"[{session.used:,}/{session.talker.length:,}] > ", ctrl_c)) is None:
            return
        yield line


def _typed(prompt: str, ctrl_c: _CtrlC) -> str | None:
    """A line; None at the end of standard input."""
    while True:
        try:
            ctrl_c.typing = True
            return input(prompt)
        except EOFError:
            print()
            return None
        except process.Ended:
            raise
        except KeyboardInterrupt:
            print("\n(Ctrl-C again ends the chat)")
        finally:
            ctrl_c.typing = False


def _piped() -> Iterator[str]:
    """The lines of a standard input that is no terminal, as they come."""
    try:
        for line in sys.stdin or ():
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 ({error}); give turns that are") from None


def parser() -> cli.Parser:
    p = cli.parser("lm.chat", __doc__)
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a run, or a converted model")
    p.add_argument("--system", default="", metavar="TEXT", help="says how to answer")
    p.add_argument("--length", hint=Count, help="tokens of the context (default: those that the model reads, 2048 at most)")
    p.add_argument("--new_tokens", hint=Count, help="tokens of an answer at most (default: half of the context, 512 at most)")
    cli.add_stop(p)
    p.add_argument("--weights", choices=get_args(Weights), help="of the model, in fewer bits (default: as they are saved)")
    cli.add_sampling(p, temperature=TEMPERATURE)
    return p


if __name__ == "__main__":
    cli.enter(main)
