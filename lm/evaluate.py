"""Scores a run on held-out spans in the ways its objective allows, so that runs of any architecture compare.

    python -m lm.evaluate --workdir=runs/quickstart [--kinds=suffix,infill,pll] [--spans=256] [--left=64 --span=16 --right=32]

    suffix   the span given the text left of it
    infill   the span given the text on both sides
    pll      each of its tokens given all the others

Prints a table and writes it to RUN/span_scores.json, with the nats of each span. Runs over the same data and tokenizer get
the same spans (their `digest` says so), so figures of the same kind stand beside each other. A figure that is flagged is
no probability of the span; its note says why. Exit codes: 2 a mistake in the input, which one line names, 75 SIGTERM or SIGHUP,
130 Ctrl-C.
"""

import argparse
from typing import Any

from lm import cli, config, startup
from lm.config.ranges import Count, Seed
from lm.errors import UserError, nearest


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    startup.before_jax()
    startup.after_jax()
    _show(evaluate(flags))
    return 0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m lm.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--workdir", required=True, help="directory of a run, with config.json and checkpoints/")
    p.add_argument("--kinds", default="suffix,infill,pll", help="which scores, with commas between (default: all)")
    p.add_argument("--spans", type=int, default=256, help="how many (default 256)")
    p.add_argument("--left", type=int, default=64, help="tokens left of a span (default 64)")
    p.add_argument("--span", type=int, default=16, help="tokens of a span (default 16)")
    p.add_argument("--right", type=int, default=32, help="tokens right of it (default 32)")
    p.add_argument("--seed", type=int, default=0, help="of the choice of spans (default 0)")
    p.add_argument("--batch_size", type=int, default=64, help="rows at a time (default 64)")
    return p


def evaluate(flags: argparse.Namespace) -> dict[str, Any]:
    """What span_scores.json holds."""
    from dataclasses import asdict

    import jax

    from lm import atomic, objectives, paths, saved
    from lm.config import resolve
    from lm.data.corpus.prepare import prepare
    from lm.evaluation.spans import digest, held_out_spans, score
    from lm.models.transformer import Transformer
    from lm.objectives.prompts import KINDS, ONE_SIDED

    kinds = [kind.strip() for kind in flags.kinds.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kinds: no kind of score '{kind}'{nearest(kind, KINDS)}")
    for name in ("spans", "left", "span", "right", "batch_size"):
        resolve.build(Count, getattr(flags, name), f"--{name}")
    resolve.build(Seed, flags.seed, "--seed")
    workdir = paths.local(flags.workdir, name="--workdir")
    if not (workdir / "config.json").exists():
        raise UserError(f"no run in --workdir={workdir}: it has no config.json; give the directory that lm.train wrote")
    run = resolve.load(str(workdir / "config.json"))
    source = saved.open(workdir, name="--workdir")
    model = Transformer(source.model)
    known = objectives.span_prompts(model.config.architecture, run.objective)
    tokenizer, data = source.tokenizer(), prepare(run.data)
    if data.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError("the data is prepared with another tokenizer than the run's: its sources changed; bring them back")
    settings = {name: getattr(flags, name) for name in ("left", "span", "right", "seed")}
    spans = held_out_spans(data, count=flags.spans, **settings)
    params = source.params(device=jax.local_devices()[0])
    scores = []
    for kind in kinds:
        if kind not in known:
            scores.append({"kind": kind, "refused": ONE_SIDED})
            continue
        result = score(model, params, run.objective, tokenizer, spans, kind=kind, batch_size=flags.batch_size)
        scores.append(asdict(result) | {"per_span": [round(float(x), 4) for x in result.per_span]})
    window = objectives.build(run.objective, model.config.architecture, run.data, tokenizer).window
    whole = {
        "architecture": model.config.architecture,
        "objective": config.kind_of(type(run.objective)),
        "data": data.fingerprint,
        "digest": digest(spans),
        "spans": len(spans),
        **settings,
        "trained_window": window,
        "scores": scores,
    }
    if jax.process_index() == 0:
        atomic.write_json(workdir / "span_scores.json", whole)
    return whole


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    sizes = f"{result['left']}+{result['span']}+{result['right']} tokens"
    table = Table(title=f"{result['architecture']}, {result['objective']}: {result['spans']} held-out spans of {sizes}")
    for name in ("score", "bits per byte", "accuracy", "probability", "note"):
        table.add_column(name, justify="left" if name in ("score", "note") else "right")
    for s in result["scores"]:
        if "refused" in s:
            table.add_row(s["kind"], "-", "-", "-", s["refused"])
        else:
            flag = "yes" if s["normalised"] else "NO"
            table.add_row(s["kind"], f"{s['bits_per_byte']:.4f}", f"{s['accuracy']:.3f}", flag, s["note"])
    length = result["left"] + result["span"] + result["right"]
    if length > result["trained_window"]:
        table.caption = f"{length} tokens of text, trained on {result['trained_window']} at a time: shorten --left or --right"
    Console().print(table)


if __name__ == "__main__":
    cli.leave(main())
