"""Measures the quickstart and writes its figures into README.md.

  python -m experiments.quickstart.run --workdir=runs/quickstart_fresh

Trains `configs/quickstart.py` with a new cache, so that the time includes preparing the data. Writes `summary.json`,
`curves.png`, and the run's output into README.md and this folder's README.md. Run it on a quiet machine, because it measures
seconds.
"""

import base64
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.filled import ROOT, around, fill
from lm import cli
from lm.errors import UserError

HERE = Path(__file__).parent
PART = "quickstart"  # name of the section in both READMEs
SHOWN = "runs/quickstart"  # the workdir in README.md's command, shown instead of the real one
STEPS = 3  # lines of training that are shown


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.quickstart.run", __doc__)
    p.add_argument("--workdir", default="runs/quickstart_fresh", type=Path, help="a folder that is not there yet")
    flags = p.parse(argv)
    readmes = {ROOT / "README.md": "experiments/quickstart/", HERE / "README.md": ""}
    for readme in readmes:
        around(readme, PART)
    printed = trained(flags.workdir.resolve())
    summary = json.loads((flags.workdir / "summary.json").read_text())
    (HERE / "summary.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")
    picture = re.search(r'data:image/png;base64,([\w+/=]+)"', (flags.workdir / "report.html").read_text())
    if picture:
        (HERE / "curves.png").write_bytes(base64.b64decode(picture.group(1)))
    for readme, folder in readmes.items():
        fill(readme, PART, section(summary, printed, folder))
    return 0


def trained(workdir: Path) -> str:
    """Trains the quickstart in a new folder and returns its standard error. Raises UserError if the folder exists."""
    if workdir.exists():
        raise UserError(f"--workdir={workdir} exists already: give a new folder, so that the entire run is measured")
    words = [sys.executable, "-m", "lm.train", f"--config={ROOT}/configs/quickstart.py", f"--workdir={workdir}"]
    done = subprocess.run([*words, f"--config.data.cache={workdir}.cache"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"the run ended with exit code {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stderr.replace(str(workdir), SHOWN)


def section(summary: dict[str, Any], printed: str, folder: str) -> str:
    """The section of a README: how long the run took, and its output from the last STEPS lines of training on."""
    seconds = summary["seconds"]
    total = round(sum(seconds.values()))
    lines = printed.rstrip().splitlines()
    steps = [i for i, line in enumerate(lines) if re.match(r"step \d+/\d+ ", line)]
    kept = lines[steps[-STEPS:][0] if steps else 0 :]
    return (
        f"Here ({os.cpu_count()} cores, Python {'.'.join(platform.python_version_tuple()[:2])}) it took {total // 60} min "
        f"{total % 60} s: {seconds['prepare']:.0f} s to\nprepare the corpus and the first state, {seconds['train']:.0f} s of "
        f"training, {seconds['evaluate']:.0f} s of evaluation, {seconds['baselines']:.0f} s of baselines\non the same "
        f"held-out bytes. It printed ([summary.json]({folder}summary.json)):\n\n```\n" + "\n".join(kept) + "\n```\n"
    )


if __name__ == "__main__":
    cli.enter(main)
