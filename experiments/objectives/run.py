"""Measures every architecture under every objective and writes the table.

  python -m experiments.objectives.run --workdir=runs/objectives
  python -m experiments.objectives.run --table

Runs the one-minute configs one after the other, each in its own process, those without results first; finished runs are not
repeated. After each it writes `results.json`, `table.md`, and the tables in docs/objectives.md and this folder's README.md, so
it can be stopped at any time. Run it on a quiet machine, because it measures seconds. `--table` only writes the tables, from
results.json.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.filled import ROOT, around, fill
from lm import atomic, cli
from lm.errors import UserError

HERE = Path(__file__).parent
PAGES = (ROOT / "docs/objectives.md", HERE / "README.md")
PART = "objectives"  # name of the section in both


@dataclass(frozen=True)
class Case:
    """A config with flags for an objective that has no config of its own, and a note on it for the table."""

    config: str
    flags: tuple[str, ...] = ()
    note: str = ""


def _other(config: str, kind: str) -> Case:
    return Case(config, (f"--config.objective={{'kind': '{kind}'}}",), f" with `--config.objective=\"{{'kind': '{kind}'}}\"`")


CASES = {
    "decoder_causal": Case("decoder_causal"),
    "decoder_any_order": Case("decoder_any_order", note="; the loss bounds the nats of all tokens"),
    "decoder_multi_token": Case("decoder_multi_token", note="; of the next token alone"),
    "decoder_prefix": Case("decoder_prefix"),
    "decoder_teacherless": Case("decoder_teacherless"),
    "decoder_spans": Case("decoder_spans"),
    "decoder_fim": Case("decoder_fim"),
    "decoder_ul2": Case("decoder_ul2"),
    "decoder_masked_diffusion": Case("decoder_masked_diffusion", note="; the loss bounds the nats of all tokens"),
    "decoder_block_diffusion": Case("decoder_block_diffusion", note="; the loss bounds the nats of all tokens"),
    "encoder_masked": Case("encoder_masked"),
    "encoder_masked_words": Case("encoder_masked_words"),
    "encoder_masked_varied": Case("encoder_masked_varied"),
    "encoder_masked_diffusion": Case("encoder_masked_diffusion", note="; the loss bounds the nats of all tokens"),
    "encoder_nsp": Case("encoder_nsp"),
    "encoder_contrastive": Case("encoder_contrastive", note="; nats a text, of 32 or more"),
    "encoder_rtd": Case("encoder_rtd", note="; the loss is the generator's and 50 times the model's"),
    "encdec_prefix": Case("encdec_prefix"),
    "encdec_masked": Case("encdec_masked"),
    "encdec_spans": Case("encdec_spans"),
    "encdec_bart": Case("encdec_bart"),
    "encdec_deshuffle": _other("encdec_bart", "deshuffle"),
    "encdec_mass": _other("encdec_bart", "mass"),
    "encdec_autoencoder": Case("encdec_autoencoder"),
    "encdec_vae": Case("encdec_vae", note="; the loss bounds the nats of all tokens"),
    "encdec_lstm": Case("encdec_lstm"),
    "encdec_lstm_attention": Case("encdec_lstm_attention"),
    "encdec_ul2": Case("encdec_ul2"),
}


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.objectives.run", __doc__)
    p.add_argument("--workdir", default="runs/objectives")
    p.add_argument("--table", action="store_true", help="write the tables of the results that there are, and run nothing")
    flags = p.parse(argv)
    kept = HERE / "results.json"
    for page in PAGES:
        around(page, PART)
    results = json.loads(kept.read_text())
    for name in [] if flags.table else sorted(CASES, key=lambda name: name in results):
        results[name] = measured(name, CASES[name], Path(flags.workdir))
        atomic.write_json(kept, results)
        write(results)
    write(results)
    print(table(results))
    return 0


def measured(name: str, case: Case, workdir: Path) -> dict[str, Any]:
    """The figures of a config's run, which is done now unless it is finished. Raises UserError if the run fails."""
    home = workdir / name
    if not (home / "summary.json").exists():
        words = [sys.executable, "-m", "lm.train", f"--config={ROOT}/configs/{case.config}.py", f"--workdir={home}"]
        if code := subprocess.run([*words, *case.flags], cwd=ROOT).returncode:
            raise UserError(f"the run of {name} ended with exit code {code}; the same command resumes it")
    s = json.loads((home / "summary.json").read_text())
    git = json.loads((home / "manifest.json").read_text())["git"]
    return {
        "commit": git["commit"][:7] if git else "unknown",
        "parameters": s["parameters"],
        "loss": s["heldout"]["loss"],
        "accuracy": s["heldout"]["accuracy"],
        "tokens_seen": s["tokens_seen"],
        "tokens_with_loss": s["tokens_with_loss"],
        "model_flops": s["model_flops"],
        "seconds": sum(s["seconds"].values()),
    }


def write(results: dict[str, dict[str, Any]]) -> None:
    """Writes the table to table.md and both READMEs."""
    text = table(results)
    (HERE / "table.md").write_text(text)
    for page in PAGES:
        fill(page, PART, text)


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with a row for each case, and the notes. Losses of different objectives are not comparable."""
    lines = [
        "| config | parameters | held-out loss, nats a predicted token | accuracy | tokens seen | with loss "
        "| model FLOPs | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        r = results.get(name)
        figures = " – |" * 7
        if r is not None:
            figures = (
                f" {r['parameters'] / 1e6:.2f} M | {r['loss']:.3f} | {r['accuracy']:.3f} | {r['tokens_seen']:,} | "
                f"{r['tokens_with_loss']:,} | {r['model_flops']:.2e} | {r['seconds']:.0f} |"
            )
        lines.append(f"| `{case.config}`{case.note} |{figures}")
    return "\n".join([*lines, "", *notes(results)]).rstrip() + "\n"


def notes(results: dict[str, dict[str, Any]]) -> list[str]:
    """Which commits the figures were measured at, and whether some are missing."""
    commits = sorted({r["commit"] for r in results.values() if "commit" in r})
    old = any("commit" not in r for r in results.values())
    found = [f"Measured at {', '.join(commits)}."] if commits else []
    found += ["The figures are of the first version: its seconds no longer hold."] if old else []
    found += ["Rows without figures are not measured yet."] if CASES.keys() - results.keys() else []
    return [" ".join(found)]


if __name__ == "__main__":
    cli.enter(main)
