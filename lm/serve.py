"""Serves a model over HTTP, in the form of OpenAI's API, with a page to look at it.

  python -m lm.serve --from=runs/quickstart
  python -m lm.serve --from=D --port=8080 --slots=16 --length=2048
  python -m lm.serve --from=D --compare=E
  LM_SERVE_TOKEN=... python -m lm.serve --from=D --host=0.0.0.0

  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json'
      -d '{"prompt": "My fellow Americans,", "max_tokens": 32}'

OpenAI's: /v1/completions, /v1/chat/completions (of models with a template for conversations), /v1/embeddings, /v1/models.
Others: /v1/fill (what stands at each [MASK]), /v1/score (log-likelihood or pseudo-log-likelihood), /v1/rerank (by cosine, or
by log-probability), /v1/inspect (attention and logit lens). /health, /metrics (for Prometheus), and the page at /.

A slot writes a text; --queue texts wait, and more get 429. All programs are compiled before the first request. At Ctrl-C or
SIGTERM what has begun is finished within --grace seconds, and new requests get 503.

It listens on this machine alone. At another --host a token must be set, in --token_file or LM_SERVE_TOKEN, which clients send
as "Authorization: Bearer TOKEN".
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

from lm import cli, paths, process, untrusted
from lm.config import Weights
from lm.config.ranges import Count, Name, Natural, Positive, Range
from lm.errors import UserError, printable

TOKEN = "LM_SERVE_TOKEN"
Port = Annotated[int, Range(0, 65535)]
Top = Annotated[int, Range(1, 100)]
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"lm.serve needs {' and '.join(missing)}: pip install -e '.[serve]'")
    token, local = _token(flags.token_file), untrusted.is_loopback(flags.host)
    if not local and token is None:
        raise UserError(f"--host={flags.host} is reached from other machines: set a token, in --token_file=FILE or {TOKEN}")
    _say(f"loading {' and '.join(_folders(flags))}")
    cli.start_jax()
    from lm.serving import run

    with run.bound(flags.host, flags.port) as listening:
        server, gate = made(flags, token, local=local)
        host = f"[{flags.host}]" if ":" in flags.host else flags.host
        where = f"http://{host}:{listening.getsockname()[1]}"
        say = lambda: _say(f"{', '.join(server.models)}: {where}")
        try:
            run.serve(gate, server.workers.values(), listening, grace=flags.grace, ready=say)
        except process.Ended as signal:
            _say(f"served {gate.served:,} request{'s' * (gate.served != 1)}")
            return signal.code
    return 0


def _say(text: str) -> None:
    """Prints a line on standard error, which may be a log."""
    print(printable(text), file=sys.stderr, flush=True)


def _folders(flags: Any) -> list[str]:
    return [flags.source, *([flags.compare] if flags.compare else [])]


def made(flags: Any, token: str | None, *, local: bool) -> tuple[Any, Any]:
    """The server of the flags, its models warm, and the application that is to listen."""
    from lm.serving import api
    from lm.serving.metrics import count_compilations
    from lm.serving.served import Served
    from lm.serving.worker import Worker

    count_compilations()
    models: dict[str, Any] = {}
    workers: dict[str, Any] = {}
    for folder in _folders(flags):
        name = flags.name if flags.name and not models else Path(folder.rstrip("/")).name or "model"
        name = f"{name}-2" if name in models else name
        settings: dict[str, Any] = dict(slots=flags.slots, length=flags.length, top=flags.top, weights=flags.weights)
        model = Served(name, folder, guesses=flags.guesses, kind=flags.cache, **settings)
        made = model.engine if model.continues else None
        models[name] = model
        workers[name] = Worker(made, model.tokenizer, model.ends, capacity=flags.slots + flags.queue)
        _say(f"compiling {name}")
        model.warm(workers[name].engine)
    most = flags.new_tokens or max(model.length for model in models.values())
    server = api.Server(models, workers, new_tokens=most, seconds=flags.seconds)
    hosts = {"localhost", "127.0.0.1", "[::1]", flags.host} if local else None
    return server, api.application(server, token=token, hosts=hosts, body=flags.body)


def _token(file: str | None) -> str | None:
    """The token that clients must send. UserError for one that is empty or could not be sent."""
    found = paths.text(file, name="--token_file").strip() if file is not None else os.environ.get(TOKEN)
    if found is not None and not (found.isascii() and found.isprintable() and found.strip() == found and found):
        where = f"--token_file={file}" if file is not None else TOKEN
        raise UserError(f"{where} has no token: give one line of printable ASCII characters")
    return found


def parser() -> cli.Parser:
    p = cli.parser("lm.serve", __doc__)
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a run, or a converted model")
    p.add_argument("--compare", metavar="FOLDER", help="a second model, to be compared with the first on the page")
    p.add_argument("--name", hint=Name, help="of the first model; default: that of its folder")
    p.add_argument("--host", default="127.0.0.1", help="address to listen at")
    p.add_argument("--port", hint=Port, default=8000, help="0 takes any that is free, and says which")
    p.add_argument("--token_file", metavar="FILE", help=f"holds the token that clients must send; or set {TOKEN}")
    p.add_argument("--slots", hint=Count, default=8, help="texts that are written at the same time")
    p.add_argument("--length", hint=Count, help="tokens of a text with its prompt; default: the run's rows, or 1024")
    p.add_argument("--weights", choices=get_args(Weights), help="of the models, in fewer bits (default: as they are saved)")
    p.add_argument("--cache", choices=["own", "bfloat16", "int8"], default="own", help="keys and values in fewer bits")
    p.add_argument("--guesses", hint=Natural, default=0, help="tokens that are guessed ahead: texts stay the same")
    p.add_argument("--queue", hint=Natural, default=64, help="texts that wait for a slot, at most")
    p.add_argument("--new_tokens", hint=Count, help="tokens that a request may ask for; default: --length")
    p.add_argument("--seconds", hint=Positive, default=300.0, help="in which a request must be done")
    p.add_argument("--body", hint=Count, default=1 << 20, help="bytes of a request, at most")
    p.add_argument("--top", hint=Top, default=5, help="likeliest tokens that an answer may show for each")
    p.add_argument("--grace", hint=Positive, default=30.0, help="seconds to finish what has begun, after SIGTERM")
    return p


if __name__ == "__main__":
    cli.enter(main)
