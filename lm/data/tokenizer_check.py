"""Tries a given tokenizer on adversarial texts in a subprocess with limits of time and memory, before it is used.

A tokenizer.json is a small program: its regular expressions may backtrack endlessly, its normalizer may expand a letter to
gigabytes, and a fault in the library is a Rust panic that `except Exception` does not catch. None of this can be stopped from
within the process itself. A file may still pass this check and fail on other texts. Expressions are therefore tried on long
runs of the characters that they name, and an error on a later text becomes a UserError (`library_errors`).

    python -m lm.data.tokenizer_check SECONDS BYTES < tokenizer.json      prints the fault as JSON: {"fault": null}
"""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lm import untrusted
from lm.errors import UserError

SECONDS = 20  # CPU time; one more for each MB of the file
MEMORY = 2 * 2**30  # bytes of address space, plus 64 per byte of the file; loading takes about ten times the file's size
WALL = 600  # seconds of wall time, in case it waits instead of computing
GROWTH = 64  # largest number of tokens or characters per byte of text; a legitimate maximum is NFKC's 11
RUN = 1000  # characters in a run: a cubic expression takes 10**9 steps, at which the regex library gives up
RUNS = "aAzZ09 \n\t!.-_'\"<é漢😀\u0301\u2581\u3000"
TEXT = (
    "The quick brown fox's 1,234 Émile-words, e\u0301, \u6f22\u5b57, \u0939\u093f\u0928\u094d, \u05e2\u05d1 \u2581 <s></s> "
    "\U0001f600\U0001f469\u200d\U0001f467 \n\n\tx = a<b>[c]{d};  \x00\x7f\ufffd\n"
)
_passed = set[str]()  # SHA-256 of the files that passed in this process


def check(proto: bytes, *, name: str = "the given tokenizer", cure: str = "give another tokenizer file") -> None:
    """Raises UserError if the tokenizer in the bytes `proto` of a file misbehaves. Each file is tried once per process."""
    digest = hashlib.sha256(proto).hexdigest()
    if digest in _passed:
        return
    seconds, memory = SECONDS + len(proto) // 10**6, MEMORY + 64 * len(proto)
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
    command = [sys.executable, "-m", "lm.data.tokenizer_check", str(seconds), str(memory)]
    try:
        run = subprocess.run(command, input=proto, capture_output=True, env=env, timeout=WALL)
        fault = _fault(run, seconds, memory)
    except subprocess.TimeoutExpired:
        fault = f"it does not finish short texts in {WALL} s"
    if fault:
        raise UserError(f"{name} is refused: {fault}; {cure}")
    _passed.add(digest)


@contextmanager
def library_errors() -> Generator[None]:
    """Turns errors of the tokenizers library on a text, panics included, into a UserError. Errors that are the text's fault,
    such as a lone surrogate, pass unchanged."""
    try:
        yield
    except (UnicodeError, TypeError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"the given tokenizer fails at a text: {_message(error)}; give another tokenizer file") from None


def _message(error: BaseException) -> str:
    """The error's message on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _fault(run: subprocess.CompletedProcess[bytes], seconds: int, memory: int) -> str | None:
    """Why the trial failed; None if it passed."""
    if run.returncode == 0:
        return json.loads(run.stdout.splitlines()[-1])["fault"]
    output = run.stderr.decode(errors="replace").strip()
    if run.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return (
            f"it takes more than {seconds} s for short texts (a regular expression that backtracks, or an endless normalizer)"
        )
    if "memory allocation" in output or "MemoryError" in output or "bad_alloc" in output:
        return f"it takes more than {memory / 2**30:.1f} GiB of memory for short texts"
    return f"its library crashed: {(output.splitlines() or [f'exit code {run.returncode}'])[-1][:200]}"


def main() -> None:
    seconds, memory = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with suppress(ValueError, OSError):  # macOS refuses it; there, only the time limit applies
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    proto = sys.stdin.buffer.read()
    try:
        fault = _try_json(proto) if proto.lstrip()[:1] == b"{" else _try_sentencepiece(proto)
    except ImportError:
        fault = None  # the caller reports the missing library when it loads the tokenizer
    except MemoryError:
        raise
    except BaseException as error:  # a panic of the library is not an Exception
        fault = _message(error)
    print(json.dumps({"fault": fault}))


def _try_json(proto: bytes) -> str | None:
    """The first fault of a tokenizer.json, or None."""
    import tokenizers

    spec = untrusted.parse_json(proto, "it")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(proto.decode())
    except BaseException as error:
        return f"it is not a tokenizer.json that the tokenizers library reads: {_message(error)}"
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    if not vocab:
        return "it has no tokens"
    if max(vocab.values()) > 2 * len(vocab) + 1000:
        return f"its largest id is {max(vocab.values()):,} and it has {len(vocab):,} tokens"
    for text in probes(spec):
        size = len(text.encode())
        if tokenizer.normalizer is not None:
            grown = len(tokenizer.normalizer.normalize_str(text))
            if grown > GROWTH * size + 1000:
                return f"its normalizer makes {grown:,} characters of a text of {size:,} bytes"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > GROWTH * size + 1000:
            return f"it makes {len(ids):,} tokens of a text of {size:,} bytes"
        decoded = tokenizer.decoder.decode([text]) if tokenizer.decoder is not None else ""
        if len(decoded) > GROWTH * size + 1000:
            return f"its decoder makes {len(decoded):,} characters of a piece of {size:,} bytes"
    if len({tuple(tokenizer.encode(TEXT * 4).ids) for _ in range(8)}) > 1:
        return "it encodes the same text in different ways (dropout of its model)"
    return None


def _try_sentencepiece(proto: bytes) -> str | None:
    """The first fault of a sentencepiece model, or None."""
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, ValueError):
        return "it is not a sentencepiece model, nor a tokenizer.json"
    if not model.vocab_size():
        return "it has no tokens"
    for text in probes({}):
        ids = model.encode(text)
        if len(ids) > GROWTH * len(text.encode()) + 1000:
            return f"it makes {len(ids):,} tokens of a text of {len(text.encode()):,} bytes"
        model.decode(ids)
    return None


def probes(spec: dict[str, Any]) -> Iterator[str]:
    """Texts to try a tokenizer on: an ordinary one, and long runs of the strings and characters that its file replaces or
    searches for, each alone and followed by a character that makes an expression fail late and backtrack."""
    yield ""
    yield TEXT * 4
    parts = (spec.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    patterns = [pattern for part in parts for pattern in _patterns(part)]
    named = "".join(dict.fromkeys(c for pattern in patterns for c in _characters(pattern)))[:64]
    units = [*RUNS, *named, *(a + b for a in named[:6] for b in named[:6] if a != b)]
    units += [word for pattern in patterns for word in re.findall(r"\w{2,}", pattern)]
    units += [pattern for pattern in patterns if pattern]
    for unit in list(dict.fromkeys(units))[:300]:
        run = (unit * (RUN // len(unit) + 1))[: RUN + len(unit)]
        yield run
        yield f"{run}\x01{named}"


def _patterns(part: Any) -> Iterator[str]:
    """All strings in a section of the file that are patterns, or texts that it searches for or adds, cut at RUN characters."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("Regex", "String", "content", "prepend") and isinstance(value, str):
                yield value[:RUN]
            else:
                yield from _patterns(value)
    elif isinstance(part, list):
        for value in part:
            yield from _patterns(value)


_CLASSES = {"s": " \n\t", "d": "1", "w": "a_", "S": "a", "D": "a", "W": " !", "r": "\r", "n": "\n", "t": "\t"}
_PROPERTIES = {"L": "aé漢", "Lu": "A", "Ll": "a", "Lo": "漢", "M": "\u0301", "N": "1", "P": "!", "S": "+", "Z": " "}


def _characters(pattern: str) -> Iterator[str]:
    """Characters that a regular expression may match: those that it names, and a few of each class."""
    for escaped, name, code, plain in re.findall(
        r"\\(?:([^pPxu])|[pP]\{\^?(\w+)\}|[xu]\{?([0-9a-fA-F]{2,6})\}?)|([^\\])", pattern
    ):
        if name:
            yield from _PROPERTIES.get(name, _PROPERTIES.get(name[0], "a"))
        elif code:
            yield chr(min(int(code, 16), sys.maxunicode)) if not 0xD800 <= int(code, 16) < 0xE000 else ""
        elif escaped:
            yield from _CLASSES.get(escaped, escaped)
        elif plain == ".":
            yield "a"
        elif plain not in "[](){}*+?|^$":
            yield plain


if __name__ == "__main__":
    main()
