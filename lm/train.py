"""Trains the run that a config describes, or goes on with it where it stopped.

  python -m lm.train --config=configs/quickstart.py --workdir=runs/quickstart
  python -m lm.train --config=configs/encdec_bart.py --workdir=runs/bart \\
    --config.train.steps=200

On several hosts the same command runs on each, with one --workdir that all of them see. On Cloud TPU slices, GKE, Slurm and
Open MPI the hosts find each other; elsewhere set these variables in the environment:

  JAX_COORDINATOR_ADDRESS   <host 0>:<port>
  LM_PROCESSES              how many processes there are
  LM_PROCESS                the number of this one, from 0 on
  LM_BARRIER_SECONDS        how long hosts wait for one another at the start and
                            around checkpoints (default 600)
  LM_HEARTBEAT_SECONDS      after how long without a sign of one host the others
                            end (default 30)
"""

import re

from lm import cli
from lm.errors import UserError

__path__: list[str] = []  # imports of submodules that it had as a package reach `lm.moved`


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    run = cli.load(flags)
    if not flags.workdir and not flags.dry_run:
        said = "is missing" if flags.workdir is None else "is empty"
        raise UserError(f"--workdir {said}; give the directory of this run, such as --workdir=runs/first")
    profile = steps_to_profile(flags.profile, run.train.steps)
    cli.start_jax(hosts=True)
    from lm import recipes

    if flags.dry_run:
        print(recipes.dry_run(run))
    else:
        recipes.train(run, flags.workdir, allow_changes=flags.allow_changes, profile=profile)
    return 0


def steps_to_profile(given: str | None, steps: int) -> range | None:
    """`"10:3"` is the steps 10, 11 and 12."""
    if given is None:
        return None
    found = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", given)
    first, count = map(int, found.groups()) if found else (0, 0)
    if not (count > 0 and 1 < first <= steps - count + 1):
        raise UserError(
            f"--profile={given} is not FIRST:COUNT, such as 10:3: steps between 2 (the first one compiles) and "
            f"train.steps={steps}"
        )
    return range(first, first + count)


def parser() -> cli.Parser:
    p = cli.parser("lm.train", __doc__, config=True, exits=cli.RUN_EXITS)
    p.add_argument("--workdir", help="directory of the run, local or gs://; if it holds a run, that run goes on")
    p.add_argument("--dry_run", action="store_true", help="print config, parameters, FLOPs and memory, and stop")
    p.add_argument("--allow_changes", action="store_true", help="go on although the config changed (never the model)")
    p.add_argument("--profile", metavar="FIRST:COUNT", help="trace these steps with jax.profiler into WORKDIR/profile")
    return p


if __name__ == "__main__":
    cli.enter(main, hosts=True)
