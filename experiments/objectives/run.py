"""`python -m experiments.objectives.run --workdir=runs/objectives`: every architecture under every objective, a table.

Runs the one-minute configs one after the other (each in a process of its own; a finished one is not run again) and writes
`results.json` and the Markdown table that stands in README.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "decoder_causal",
    "decoder_prefix",
    "decoder_spans",
    "encoder_masked",
    "encoder_masked_words",
    "encdec_prefix",
    "encdec_masked",
    "encdec_spans",
    "decoder_fim",
    "encoder_nsp",
    "encdec_bart",
    "decoder_ul2",
    "encdec_ul2",
)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workdir", default="runs/objectives")
    p.add_argument("--out", default=str(Path(__file__).parent))
    flags = p.parse_args()
    results = {name: measured(name, Path(flags.workdir)) for name in NAMES}
    Path(flags.out, "results.json").write_text(json.dumps(results, indent=1) + "\n")
    Path(flags.out, "table.md").write_text(table(results))
    print(table(results))


def measured(name: str, workdir: Path) -> dict[str, float]:
    """The summary of a config's run, from now or before."""
    summary = workdir / name / "summary.json"
    if not summary.exists():
        words = [sys.executable, "-m", "lm.train", f"--config={ROOT}/configs/{name}.py", f"--workdir={workdir / name}"]
        subprocess.run(words, check=True, cwd=ROOT)
    s = json.loads(summary.read_text())
    return {
        "parameters": s["parameters"],
        "loss": s["heldout"]["loss"],
        "accuracy": s["heldout"]["accuracy"],
        "tokens_seen": s["tokens_seen"],
        "tokens_with_loss": s["tokens_with_loss"],
        "model_flops": s["model_flops"],
        "seconds": sum(s["seconds"].values()),
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Losses of different objectives ask for different things: compare down a column only within an objective."""
    lines = [
        "| config | parameters | held-out loss, nats a predicted token | accuracy | tokens seen | with loss "
        "| model FLOPs | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        lines.append(
            f"| `{name}` | {r['parameters'] / 1e6:.2f} M | {r['loss']:.3f} | {r['accuracy']:.3f} | {r['tokens_seen']:,} | "
            f"{r['tokens_with_loss']:,} | {r['model_flops']:.2e} | {r['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
