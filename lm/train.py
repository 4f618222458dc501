"""Trains the run that a config describes, or resumes it from its last checkpoint.

  python -m lm.train --config=configs/quickstart.py --workdir=runs/quickstart
  python -m lm.train --config=configs/encdec_bart.py --workdir=runs/bart \\
    --config.train.steps=200

On several hosts, run the same command on each, with a --workdir that all can access. On Cloud TPU slices, GKE, Slurm and
Open MPI the hosts find each other; elsewhere set these environment variables:

  JAX_COORDINATOR_ADDRESS   <host 0>:<port>
  LM_PROCESSES              number of processes
  LM_PROCESS                index of this process, from 0
  LM_BARRIER_SECONDS        how long hosts wait for each other at the start and
                            around checkpoints (default 600)
  LM_HEARTBEAT_SECONDS      how long a host may be silent before the others exit
                            (default 30)
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
        fault = "is missing" if flags.workdir is None else "is empty"
        raise UserError(f"--workdir {fault}; give the directory of this run, such as --workdir=runs/first")
    profile = steps_to_profile(flags.profile, run.train.steps)
    cli.say(f"{flags.config}: {run.train.steps:,} steps, in {flags.workdir or 'no folder'}; starting")
    cli.start_jax(hosts=True)
    from lm import recipes

    if flags.dry_run:
        print(recipes.dry_run(run))
    else:
        recipes.train(run, flags.workdir, allow_changes=flags.allow_changes, profile=profile)
    return 0


def steps_to_profile(given: str | None, steps: int) -> range | None:
    """Parses FIRST:COUNT: `"10:3"` returns `range(10, 13)`. UserError unless the steps are between 2 and `steps`."""
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
    p.add_argument("--workdir", help="directory of the run, local or gs://; a run that it contains is resumed")
    p.add_argument("--dry_run", action="store_true", help="print config, parameters, FLOPs and memory, and stop")
    p.add_argument("--allow_changes", action="store_true", help="resume although the config changed (never the model)")
    p.add_argument("--profile", metavar="FIRST:COUNT", help="trace these steps with jax.profiler into WORKDIR/profile")
    return p


if __name__ == "__main__":
    cli.enter(main, hosts=True)
