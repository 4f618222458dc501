"""The likelihood bound of masked diffusion on the default corpus beside the causal model's bits per byte, at equal FLOPs.

  python -m experiments.bound.run --workdir=runs/bound
  python -m experiments.bound.run --table

Trains the quickstart's model by next tokens and by masked diffusion, for the quickstart's FLOPs and for ten times as many, and
computes the bound by the sum over the number of masks and by sampling. Writes results.json and the table in README.md after
each run; finished runs are not repeated. All of it takes some twenty times as long as the quickstart. `--table` only writes the
table.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.filled import ROOT, around, fill
from lm import atomic, cli, config
from lm.config import resolve
from lm.errors import UserError

HERE = Path(__file__).parent
README, PART = HERE / "README.md", "bound"
SCALES = (1, 10)  # times the FLOPs of the quickstart
WINDOWS, DRAWS = 64, 2  # held-out windows whose bound is computed, and sets of masks for each number of masks


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.bound.run", __doc__)
    p.add_argument("--workdir", default="runs/bound")
    p.add_argument("--table", action="store_true", help="write the table of the results that there are, and run nothing")
    flags = p.parse(argv)
    kept, home = HERE / "results.json", Path(flags.workdir).resolve()
    around(README, PART)
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for scale in () if flags.table else SCALES:
        for kind in ("causal", "masked_diffusion"):
            results[f"{kind} {scale}"] = measured(kind, scale, home)
            atomic.write_json(kept, results)
            fill(README, PART, table(results))
    fill(README, PART, table(results))
    print(table(results))
    return 0


def measured(kind: str, scale: int, home: Path) -> dict[str, Any]:
    """The figures of a run, which is done now unless it is finished. One of masked diffusion has the FLOPs of the causal one of
    its scale, which comes first."""
    folder = home / f"{kind}_{scale}"
    if not (folder / "summary.json").exists():
        first = home / f"causal_{scale}/summary.json"
        budget = None if kind == "causal" else json.loads(first.read_text())["model_flops"]
        file = home / f"{folder.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(resolve.to_json(run_of(scale, budget)))
        command(f"-m lm.train --config={file} --workdir={folder}")
    summary = json.loads((folder / "summary.json").read_text())
    out = {name: summary[name] for name in ("model_flops", "tokens_seen", "parameters")} | {"heldout": summary["heldout"]}
    if kind != "causal":
        if not (folder / "bound.json").exists():
            command(f"-m lm.evaluate --from={folder} --bound={WINDOWS} --draws={DRAWS}")
        out["bounds"] = json.loads((folder / "bound.json").read_text())["bounds"]
    return out


def run_of(scale: int, budget: float | None) -> config.Run:
    """The quickstart's run, `scale` times as long; with a budget of FLOPs, by masked diffusion, its decoder as an encoder, for
    as many steps as that takes."""
    run = resolve.load(f"{ROOT}/configs/quickstart.py")
    if budget is not None:
        model = replace(run.model, encoder=run.model.decoder, decoder=None)
        data = replace(run.data, encoder_length=run.data.decoder_length, decoder_length=None)
        run = replace(run, model=model, data=data, objective=config.MaskedDiffusion())
    steps = run.train.steps * scale if budget is None else steps_of(run, budget)
    before = run.optimizer.schedule
    schedule = replace(before, decay=round(before.decay / run.train.steps * steps))
    return replace(
        run,
        optimizer=replace(run.optimizer, schedule=schedule),
        train=replace(run.train, steps=steps),
        checkpoint=replace(run.checkpoint, every=500),
        evaluate=replace(run.evaluate, every=None, baselines=False),
    )


def steps_of(run: config.Run, budget: float) -> int:
    from experiments.plan import training_rows
    from lm.recipes import task
    from lm.training.ledger import SAMPLE, steps_for

    return steps_for(task(run), training_rows(run), run.train.batch_size, "flops", budget, sample=SAMPLE)


def command(words: str) -> None:
    if code := subprocess.run([sys.executable, *words.split()], cwd=ROOT).returncode:
        raise UserError(f"python {words} ended with exit code {code}; the same command resumes it")


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, a row for each run."""
    lines = [
        "| objective | model FLOPs | tokens read | bits per byte of all held-out text "
        "| bound by the sum over numbers of masks | bound by sampling |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, r in results.items():
        kind, scale = name.split()
        held = r["heldout"].get("bits_per_byte", r["heldout"].get("bits_per_byte_bound"))
        bounds = r.get("bounds")
        cells = [_figure(bounds[way]) if bounds else "" for way in ("sum", "sampled")]
        label = "next token" if kind == "causal" else "masked diffusion"
        exact = f"{held:.4f}" if kind == "causal" else f"{held:.4f} (bound, one draw a window)"
        lines.append(
            f"| {label}, {scale} x | {r['model_flops']:.3g} | {r['tokens_seen']:,} | {exact} | {cells[0]} | {cells[1]} |"
        )
    return "\n".join(lines) + "\n"


def _figure(b: dict[str, float]) -> str:
    error = "" if math.isnan(b["error"]) else f" ± {b['error']:.4f}"
    return f"{b['bits_per_byte']:.4f}{error}"


if __name__ == "__main__":
    cli.enter(main)
