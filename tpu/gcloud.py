"""Runs `gcloud`, or in a dry run prints the commands. No jax."""

import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lm.errors import UserError

AT_ONCE = 64  # concurrent gcloud processes


class GcloudFailed(UserError):
    """gcloud failed; the message has its `reason` on one line."""


@dataclass(frozen=True)
class Gcloud:
    dry_run: bool = False

    def __call__(self, *words: str, show: bool = False) -> str:
        """Runs gcloud and returns its stdout. With `show`, stdout goes to the terminal (to follow a log or an upload's
        progress).

        Raises GcloudFailed if it fails, UserError if it is not installed."""
        if self.dry_run:
            print(shlex.join(["gcloud", *words]))
            return ""
        try:
            done = subprocess.run(
                ["gcloud", *words], stdout=None if show else subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except FileNotFoundError:
            raise UserError("gcloud is not installed, or not on PATH; see https://cloud.google.com/sdk/docs/install") from None
        if done.returncode:
            raise GcloudFailed(f"{_named(words)} ended with {done.returncode}: {reason(done.stderr, done.stdout or '')}")
        return done.stdout or ""

    def query(self, *words: str) -> str | None:
        """Like a call, but returns None if the resource does not exist."""
        try:
            return self(*words)
        except GcloudFailed as error:
            if re.search(r"NOT_FOUND|was not found", str(error)):
                return None
            raise

    def all(self, commands: list[list[str]]) -> list[str]:
        """Runs the commands concurrently and returns their stdouts; raises the first failure after all have ended."""
        if self.dry_run:
            return [self(*words) for words in commands]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda words: self(*words), commands))


def _named(words: tuple[str, ...]) -> str:
    """The command up to its first flag: `gcloud compute tpus queued-resources create pod`."""
    flag = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return " ".join(("gcloud", *words[:flag]))


def reason(stderr: str, stdout: str = "") -> str:
    """Why gcloud failed, on one line: the messages of our scripts on the hosts ("lm: ..."), otherwise gcloud's ERROR with the
    lines that follow it, otherwise the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("lm: ")]
    errors = [i for i, line in enumerate(lines) if line.startswith("ERROR")]
    if ours:
        return "; ".join(dict.fromkeys(ours))
    if errors:
        return " ".join(lines[errors[0] :])
    return (lines or stdout.split("\n")[-2:-1] or ["no output"])[-1]
