"""A given tokenizer is tried on nasty texts in a process of its own, with limits of time and memory, before it is used.

A tokenizer.json is a small program: its regular expressions may backtrack without end, its normaliser may turn a letter into
gigabytes, and a fault of its library is a panic that no `except Exception` catches. None of this can be stopped from within
our own process. What a trial cannot show: a file may behave on the texts below and not on others. Expressions are therefore
tried on long runs of the characters that they name, and an error in a later text is still one line
(`HuggingFace.encode_batch`).

    python -m lm.data.trial SECONDS BYTES < tokenizer.json      what is wrong with it, as JSON: {"fault": null}
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

SECONDS = 20  # of a processor; one more for each MB of the file
MEMORY = 2 * 2**30  # bytes of address space; a file takes some ten times its size
WALL = 600  # seconds, for what waits instead of computing
GROWTH = 64  # tokens or characters from one byte of text; the largest honest growth, of NFKC, is 11
RUN = 1000  # characters of a run: 10**9 steps of an expression that is cubic, which its library gives up
RUNS = "aAzZ09 \n\t!.-_'\"<é漢😀\u0301\u2581\u3000"
TEXT = (
    "The quick brown fox's 1,234 Émile-words, e\u0301, \u6f22\u5b57, \u0939\u093f\u0928\u094d, \u05e2\u05d1 \u2581 <s></s> "
    "\U0001f600\U0001f469\u200d\U0001f467 \n\n\tx = a<b>[c]{d};  \x00\x7f\ufffd\n"
)
_passed = set[str]()


def check(proto: bytes, *, name: str = "the given tokenizer", cure: str = "give another tokenizer file") -> None:
    """UserError unless the tokenizer in the bytes of a file passes; a process tries each file once."""
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
        fault = f"it is not done with short texts after {WALL} s"
    if fault:
        raise UserError(f"{name} is refused: {fault}; {cure}")
    _passed.add(digest)


@contextmanager
def one_line() -> Generator[None]:
    """Turns what the tokenizers library raises over a text, a panic too, into a UserError. What is wrong with the text (half of
    a surrogate pair) stays what it is."""
    try:
        yield
    except (UnicodeError, TypeError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"the given tokenizer fails at a text: {_said(error)}; give another tokenizer file") from None


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _fault(run: subprocess.CompletedProcess[bytes], seconds: int, memory: int) -> str | None:
    if run.returncode == 0:
        return json.loads(run.stdout.splitlines()[-1])["fault"]
    said = run.stderr.decode(errors="replace").strip()
    if run.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it takes more than {seconds} s for short texts (an expression that backtracks, or a normaliser without end)"
    if "memory allocation" in said or "MemoryError" in said or "bad_alloc" in said:
        return f"it takes more than {memory / 2**30:.1f} GiB of memory for short texts"
    return f"its library died of it: {(said.splitlines() or [f'exit code {run.returncode}'])[-1][:200]}"


def main() -> None:
    seconds, memory = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with suppress(ValueError, OSError):  # macOS refuses it; the limit of time still holds there
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    proto = sys.stdin.buffer.read()
    try:
        fault = _tried_json(proto) if proto.lstrip()[:1] == b"{" else _tried_sentencepiece(proto)
    except ImportError:
        fault = None  # whoever is to use it says so
    except MemoryError:
        raise
    except BaseException as error:  # a panic of the library is no Exception
        fault = _said(error)
    print(json.dumps({"fault": fault}))


def _tried_json(proto: bytes) -> str | None:
    import tokenizers

    spec = untrusted.parse_json(proto, "it")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(proto.decode())
    except BaseException as error:
        return f"it is not a tokenizer.json that the tokenizers library reads: {_said(error)}"
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
                return f"its normaliser makes {grown:,} characters of a text of {size:,} bytes"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > GROWTH * size + 1000:
            return f"it makes {len(ids):,} tokens of a text of {size:,} bytes"
        decoded = tokenizer.decoder.decode([text]) if tokenizer.decoder is not None else ""
        if len(decoded) > GROWTH * size + 1000:
            return f"its decoder makes {len(decoded):,} characters of a piece of {size:,} bytes"
    if len({tuple(tokenizer.encode(TEXT * 4).ids) for _ in range(8)}) > 1:
        return "it encodes the same text in different ways (dropout of its model)"
    return None


def _tried_sentencepiece(proto: bytes) -> str | None:
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
    """Texts to try a tokenizer on: an ordinary one, and long runs of what its file replaces or looks for, each by itself and
    with an end that an expression may have to go back from."""
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
    """All strings below `{"Regex": ...}` or `{"String": ...}`, and others that a part may look for or add."""
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
    """Characters that an expression may match: those that it names, and some of each class."""
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
