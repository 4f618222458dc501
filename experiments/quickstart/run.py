"""`python -m experiments.quickstart.run --workdir=runs/quickstart_fresh`: the quickstart, and its figures in README.md.

Trains `configs/quickstart.py` with a new cache, so that preparing the data counts, and writes `summary.json`, `curves.png`,
and what the run printed into README.md and this folder's README.md. Run it on a quiet machine: seconds are part of it.
"""

import argparse
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
PART = "quickstart"  # of the two READMEs, between the lines that say so
SHOWN = "runs/quickstart"  # the folder that README.md's command names
STEPS = 3  # lines of training that are shown


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workdir", default="runs/quickstart_fresh", type=Path, help="a folder that is not there yet")
    flags = p.parse_args(argv)
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
        fill(readme, PART, told(summary, printed, folder))
    return 0


def trained(workdir: Path) -> str:
    """What a run in a folder of its own says on standard error."""
    if workdir.exists():
        raise UserError(f"--workdir={workdir} is there already: give a new folder, so that all of the run is measured")
    words = [sys.executable, "-m", "lm.train", f"--config={ROOT}/configs/quickstart.py", f"--workdir={workdir}"]
    done = subprocess.run([*words, f"--config.data.cache={workdir}.cache"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"the run ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stderr.replace(str(workdir), SHOWN)


def told(summary: dict[str, Any], printed: str, folder: str) -> str:
    """How long it took, and the last lines of training and all that follows them."""
    seconds = summary["seconds"]
    whole = round(sum(seconds.values()))
    lines = printed.rstrip().splitlines()
    steps = [i for i, line in enumerate(lines) if re.match(r"step \d+/\d+ ", line)]
    kept = lines[steps[-STEPS:][0] if steps else 0 :]
    return (
        f"Here ({os.cpu_count()} cores, Python {'.'.join(platform.python_version_tuple()[:2])}) it took {whole // 60} min "
        f"{whole % 60} s: {seconds['prepare']:.0f} s to\nprepare the corpus and the first state, {seconds['train']:.0f} s of "
        f"training, {seconds['evaluate']:.0f} s of evaluation, {seconds['baselines']:.0f} s of baselines\non the same "
        f"held-out bytes. It printed ([summary.json]({folder}summary.json)):\n\n```\n" + "\n".join(kept) + "\n```\n"
    )


if __name__ == "__main__":
    cli.leave(main())
