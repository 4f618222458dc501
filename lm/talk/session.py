"""A conversation at a terminal: its turns, the words that begin with "/", and what fits into the context."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm import atomic, paths
from lm.config import Sampling
from lm.errors import UserError, nearest
from lm.talk.talker import Answer, Talker, TooLong

COMMANDS = {
    "/help": "shows this",
    "/system TEXT": "says how to answer, from now on; without a text shows what was said",
    "/reset": "forgets all turns",
    "/retry": "answers the last turn again, with another seed",
    "/save FILE": "writes the conversation to a new file, a line of JSON that lm.train reads",
    "/exit": "ends; so do the end of standard input and Ctrl-C twice",
}
HELP = "\n".join(f"  {name:<14} {text}" for name, text in COMMANDS.items()) + (
    "\nA turn that begins with // begins with /. Ctrl-C stops an answer."
)
NAMES = [name.split()[0] for name in COMMANDS]


@dataclass
class Session:
    """What was said so far. `say` gets what is shown to the user beside answers: help, and what was dropped."""

    talker: Talker
    sampling: Sampling
    new_tokens: int
    say: Callable[[str], Any]
    system: str = ""
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.turns: list[dict[str, str]] = []
        self.used = self.dropped = self.retries = self.answers = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that was said and not dropped."""
        return [{"role": "system", "content": self.system}] * bool(self.system) + self.turns

    def turn(self, line: str, stream: Callable[[str], Any], stopped: Callable[[], bool]) -> bool:
        """Does what a line asks for; `stream` gets the answer. Returns whether to go on. UserError for what cannot be done."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.partition(" ")
            return self._command(name, rest.strip(), stream, stopped)
        text = line[1:] if line.startswith("//") else line
        if text.strip():
            self._ask(text, stream, stopped)
        return True

    def _command(self, name: str, rest: str, stream: Callable[[str], Any], stopped: Callable[[], bool]) -> bool:
        if name not in NAMES:
            raise UserError(f"{name[:40]} is no command{nearest(name, NAMES)}")
        if rest and name not in ("/system", "/save"):
            raise UserError(f"{name} stands alone: leave out {rest[:40]!r}")
        if name == "/help":
            self.say(HELP)
        elif name == "/system":
            self.system = rest or self.system
            self.say(f"system: {self.system or 'nothing was said'}")
        elif name == "/reset":
            self.turns, self.used, self.dropped = [], 0, 0
        elif name == "/retry":
            self._retry(stream, stopped)
        elif name == "/save":
            self._save(rest)
        return name != "/exit"

    def _ask(self, text: str, stream: Callable[[str], Any], stopped: Callable[[], bool]) -> None:
        before, self.retries = list(self.turns), 0
        self.turns.append({"role": "user", "content": text})
        try:
            self._answer(stream, stopped)
        except BaseException:
            self.turns = before  # so that the next turn does not begin with one that failed
            raise

    def _retry(self, stream: Callable[[str], Any], stopped: Callable[[], bool]) -> None:
        if not self.turns:
            raise UserError("there is no turn to answer again: say something first")
        before = list(self.turns)
        while self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        self.retries += 1
        try:
            self._answer(stream, stopped)
        except BaseException:
            self.turns = before
            raise

    def _answer(self, stream: Callable[[str], Any], stopped: Callable[[], bool]) -> None:
        self._fit()
        sampling = replace(self.sampling, seed=self.sampling.seed + self.retries)
        settings: dict[str, Any] = dict(new_tokens=self.new_tokens, stop=self.stop, stream=stream, stopped=stopped)
        answer: Answer = self.talker.answer(self.messages, sampling, **settings)
        self.turns.append({"role": "assistant", "content": answer.text})
        self.answers += 1
        self.used = answer.read + answer.written

    def _fit(self) -> None:
        """Drops the oldest questions with their answers until there is room. TooLong if the last question alone has none."""
        dropped = 0
        while self.talker.room(self.messages, self.new_tokens) < 0:
            later = [i for i, turn in enumerate(self.turns) if i and turn["role"] == "user"]
            if not later:
                raise TooLong(
                    f"this turn has {self.talker.count(self.messages):,} tokens, and the context {self.talker.length:,} with "
                    f"{self.new_tokens:,} for an answer: shorten it, or raise --length or lower --new_tokens"
                )
            dropped += later[0]
            self.turns = self.turns[later[0] :]
        if dropped:
            self.dropped += dropped
            self.say(f"(the context is full: the oldest {dropped} turns are forgotten)")

    def _save(self, name: str) -> None:
        if not self.turns:
            raise UserError("nothing was said yet, so there is nothing to save")
        path = paths.local(name, name="/save")
        if path.exists():
            raise UserError(f"{path} exists: give a new file")
        atomic.write_bytes(Path(path), (json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n").encode())
        self.say(f"{len(self.turns)} turns: {path}")
