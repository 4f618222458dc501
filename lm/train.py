"""`python -m lm.train --config=configs/quickstart.py --workdir=runs/quickstart`: trains, or goes on where it was.

Any value of the config is set with --config.KEY=VALUE, such as --config.train.steps=200. A config file is Python and is
executed. Exit codes: 0 done, 2 a mistake in the input (one line says which), 69 another host did not come or is gone, 75
told to stop by SIGTERM or SIGHUP and saved, 130 the same by Ctrl-C; after the last three the same command goes on.

On several hosts the same command runs on each, with one --workdir that all of them see. On Cloud TPU slices, GKE, Slurm and
Open MPI they find each other; elsewhere set JAX_COORDINATOR_ADDRESS=<host 0>:<port>, LM_PROCESSES=<how many> and
LM_PROCESS=<0, 1, ...> in the environment. LM_HEARTBEAT_SECONDS (30): after so long without a sign of one host the others
end. LM_BARRIER_SECONDS (600): so long they wait for one another at the start and around checkpoints.
"""

import argparse
import re
import sys

from lm import cli, startup
from lm.config.resolve import load, split_flags
from lm.errors import UserError


@cli.command
def main(argv: list[str] | None = None) -> int:
    rest, overrides = split_flags(sys.argv[1:] if argv is None else argv)
    flags = parser().parse_args(rest)
    run = load(flags.config, overrides)
    if not flags.workdir and not flags.dry_run:
        said = "is missing" if flags.workdir is None else "is empty"
        raise UserError(f"--workdir {said}; give the directory of this run, such as --workdir=runs/first")
    profile = steps_to_profile(flags.profile, run.train.steps)
    startup.before_jax()
    from lm import distributed, recipes

    startup.after_jax()
    distributed.start()
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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m lm.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument("--config", required=True, help="a config file with get_config(), or a run's config.json")
    p.add_argument("--workdir", help="directory of the run; if it holds a run, that run goes on")
    p.add_argument("--dry_run", action="store_true", help="print config, parameters, FLOPs and memory, and stop")
    p.add_argument("--allow_changes", action="store_true", help="go on although the config changed (never the model)")
    p.add_argument("--profile", metavar="FIRST:COUNT", help="trace so many steps with jax.profiler into WORKDIR/profile")
    return p


if __name__ == "__main__":
    startup.before_jax()
    from lm import distributed

    distributed.run(main)
