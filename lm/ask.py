"""Answers questions about a text that is longer than a model reads, and shows where in the text the answers are from.

  python -m lm.ask --from=runs/smollm2 --file=talk.txt --question="Who won?"
  python -m lm.ask --from=D --file=talk.txt --summary
  python -m lm.ask --from=D --embedder=E --file=talk.txt --top=6 --question=...
  python -m lm.ask --server=http://127.0.0.1:8000/v1 --file=talk.txt --summary
  python -m lm.ask --server=URL --api_key=NAME --file=F --question=... --jsonl

The text is cut into overlapping windows. The --top windows whose vectors are most like the question's are asked it, one by
one, and their answers are combined into one. A summary asks all of them. Vectors are those of the same model, or of another one
in --embedder. A server has the addresses of OpenAI's API; --api_key names the environment variable that holds its key.

Each answer is followed by its sources: of every window that answered, the sentence that has most words in common with its
answer, as it stands in the file, with its lines and characters. The model does not write these quotations.

With --jsonl there is a line for each question: {"question": "...", "answer": "...", "asked": 4, "parts": [...]}. A part has
start and stop, which count characters from 0 and exclude the last, lines, similarity, its answer, and the quote with its own
place.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm import cli, paths
from lm.config import Sampling, resolve
from lm.config.ranges import Count, Natural, Words
from lm.errors import UserError

if TYPE_CHECKING:
    from lm.saved import Saved
    from lm.talk.reading import Answered

Ask = Callable[[str], str]
Similarities = Callable[[str, Sequence[str]], Sequence[float]]
TIMEOUT = 600.0  # seconds that a server may take for an answer


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if (flags.source is None) == (flags.server is None):
        raise UserError("--from=FOLDER or --server=URL says which model is asked: give one of them")
    if bool(flags.question) == flags.summary:
        raise UserError("--question=TEXT or --summary says what is asked: give one of them")
    if flags.source is not None and (flags.api_key or flags.model):
        raise UserError("--api_key and --model are of a server: leave them out, or give --server")
    for question in flags.question:
        resolve.build(Words, question, "--question")
    text = _text(flags.file)
    sampling = resolve.build(Sampling, {"temperature": 0.0} | cli.sampling_of(flags))
    cli.start_jax(flags.source)
    from lm.talk import reading
    from lm.talk.windows import Document

    ask, similarities = _served(flags) if flags.server else _local(flags, sampling)
    usual = (reading.MAP_SUMMARY, reading.REDUCE_SUMMARY) if flags.summary else (reading.MAP, reading.REDUCE)
    prompts = dict(map_prompt=flags.map_prompt or usual[0], reduce_prompt=flags.reduce_prompt or usual[1])
    note = lambda line: print(line, file=sys.stderr, flush=True)
    settings: dict[str, Any] = prompts | dict(window=flags.window, overlap=flags.overlap, note=note)
    reader = reading.Reader(Document(text), ask, similarities, **settings)
    for question in flags.question or [None]:
        found = reader.answer(question, top=None if flags.summary else flags.top)
        print(json.dumps(found.to_json(), ensure_ascii=False) if flags.jsonl else _shown(found, flags.file), flush=True)
    return 0


def _text(name: str) -> str:
    """The text of the file with its line ends as they are, so that places are those in the file."""
    paths.local(name, name="--file", rewritten=())
    try:
        return Path(name).expanduser().read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--file={name} cannot be read ({why}); give a file of text in UTF-8") from None


# ------------------------------------------------------------------------------------------------------- who is asked


def _local(flags: argparse.Namespace, sampling: Sampling) -> tuple[Ask, Similarities]:
    from lm import saved
    from lm.talk.talker import Talker, TooLong

    source = saved.open(flags.source)
    talker = Talker(source, length=flags.length)

    def ask(prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        try:
            return talker.answer(message, sampling, new_tokens=flags.new_tokens).text
        except TooLong as error:
            raise UserError(f"{error} with a lower --window (now {flags.window:,} characters) or --new_tokens") from None

    return ask, _similarities(flags, source)


def _served(flags: argparse.Namespace) -> tuple[Ask, Similarities]:
    from lm.talk.remote import Server

    token = os.environ.get(flags.api_key) if flags.api_key else None
    if flags.api_key and not token:
        raise UserError(f"--api_key={flags.api_key} names an environment variable that is not set: export it")
    server = Server(flags.server, token=token, model=flags.model, timeout=TIMEOUT)
    given = {"temperature": 0.0} | cli.sampling_of(flags)
    ask = lambda prompt: server.answer([{"role": "user", "content": prompt}], flags.new_tokens, given)
    if flags.embedder:
        return ask, _similarities(flags, None)

    def similarities(question: str, texts: Sequence[str]) -> Sequence[float]:
        from lm.generation.vectors import cosines

        return cosines(server.vectors([question]), server.vectors(texts))[0].tolist()

    return ask, similarities


def _similarities(flags: argparse.Namespace, source: "Saved | None") -> Similarities:
    """By the vectors of --embedder, or else of the model that is asked."""

    def similarities(question: str, texts: Sequence[str]) -> Sequence[float]:
        from lm import saved
        from lm.generation.vectors import Embedder, cosines

        by = saved.open(flags.embedder, name="--embedder") if flags.embedder or source is None else source
        embedder = Embedder.of(by, long="windows")
        return cosines(embedder([question]), embedder(texts))[0].tolist()

    return similarities


# ------------------------------------------------------------------------------------------------------------- shown


def _shown(found: "Answered", name: str) -> str:
    """The answer and its sources, for people to read."""
    lines = [] if found.question is None else [found.question, ""]
    lines += [found.text, "", f"Sources in {name} ({len(found.parts)} of {found.asked} parts that were asked):"]
    for number, quote in enumerate(dict.fromkeys(of.quote for of in found.parts), 1):  # windows that overlap may share one
        first, last = quote.lines
        place = f"line {first:,}" if first == last else f"lines {first:,}-{last:,}"
        lines.append(f"  [{number}] {place}, characters {quote.start:,}-{quote.stop:,}")
        lines += [f"      {line.rstrip()}" for line in quote.text.splitlines()]
    return cli.readable("\n".join(lines)) + "\n"


def parser() -> cli.Parser:
    p = cli.parser("lm.ask", __doc__)
    p.add_argument("--from", dest="source", metavar="FOLDER", help="workdir of a run that talks, or a converted chat model")
    p.add_argument("--server", metavar="URL", help="of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1")
    p.add_argument("--api_key", metavar="NAME", help="environment variable with the server's key (default: none is sent)")
    p.add_argument("--model", metavar="NAME", help="of the server's models (default: the first)")
    p.add_argument("--file", required=True, help="the text")
    p.add_argument("--question", action="append", default=[], metavar="TEXT", help="may be given several times")
    p.add_argument("--summary", action="store_true", help="summarise the text")
    p.add_argument("--top", hint=Count, default=4, help="windows that are asked a question")
    p.add_argument("--embedder", metavar="FOLDER", help="a model for vectors (default: the one that is asked)")
    p.add_argument("--window", hint=Count, default=2000, help="characters of a window at most")
    p.add_argument("--overlap", hint=Natural, default=200, help="characters that a window shares with the one before")
    p.add_argument("--map_prompt", metavar="TEXT", help="what each window is asked; {text} and {question} stand in it")
    p.add_argument("--reduce_prompt", metavar="TEXT", help="how answers are combined; {answers} and {question} stand in it")
    p.add_argument("--length", hint=Count, help="tokens of the context (default: those that the model reads, 2048 at most)")
    p.add_argument("--new_tokens", hint=Count, default=128, help="tokens of an answer at most")
    p.add_argument("--jsonl", action="store_true", help="write a line of JSON for each question")
    cli.add_sampling(p, temperature=0.0)
    return p


if __name__ == "__main__":
    cli.enter(main)
