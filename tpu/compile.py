"""`python -m tpu.compile --config=F`: does a run fit a pod, and how fast can it be at best? Runs on any machine with a CPU.

Compiles the run's training step (with --decode: one token of decoding) for the TPUs of the config's `pod`, or of
--topology and --slices, with the TPU compiler (libtpu); nothing is run and no data is read. Prints the memory of a
device by kind, FLOPs, bytes sent, and the best time and MFU that these allow. XLA has the flags that `python -m tpu
launch` sets (tpu/flags.py), or those of LIBTPU_INIT_ARGS.

Any value of the config is set with --config.KEY=VALUE. Exit codes: 0 it fits, 1 it does not (--advise looks for a change
that does), 2 a mistake in the input.
"""

import argparse
import json
import sys
from pathlib import Path

from lm.config import Run
from lm.config.resolve import load, split_flags
from lm.errors import EXIT_USER_ERROR, UserError
from tpu import libtpu
from tpu.flags import init_args
from tpu.topologies import Topology, parse

EXIT_TOO_LARGE = 1


def main(argv: list[str] | None = None) -> int:
    try:
        rest, overrides = split_flags(sys.argv[1:] if argv is None else argv)
        flags = parser().parse_args(rest)
        run = load(flags.config, overrides)
        topology, slices = pod_of(run, flags)
        if flags.decode and flags.advise:
            raise UserError("--advise changes how a run trains; leave --decode out")
        if flags.json and not Path(flags.json).absolute().parent.is_dir():
            raise UserError(f"--json={flags.json}: there is no such folder; create it first")
        libtpu.prepare(init_args(topology.generation, slices))
        from tpu import aot
        from tpu.report import table

        report, job = aot.measure(run, topology, slices, name=flags.config, decode=flags.decode)
        print(table(report))
        if flags.json:
            Path(flags.json).write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        if flags.advise and not report.fits:
            print()
            found = aot.advise(run, topology, slices, report, job, lambda text: print(text, flush=True))
            print(f"\nadd {found}" if found else "\nnothing near fits; take more chips, a smaller batch or a smaller model")
        return 0 if report.fits else EXIT_TOO_LARGE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def pod_of(run: Run, flags: argparse.Namespace) -> tuple[Topology, int]:
    """(topology, slices) to compile for: the flags, otherwise config.pod. Raises UserError without either."""
    name = flags.topology or (run.pod and run.pod.topology)
    if not name:
        raise UserError("the config names no pod; add --topology, such as --topology=v5e:16x16, or config.pod.topology")
    slices = flags.slices if flags.slices is not None else 1 if flags.topology or run.pod is None else run.pod.slices
    if slices < 1:
        raise UserError(f"--slices={slices} is too small; give 1 or more")
    return parse(name), slices


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m tpu.compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--config", required=True, help="a config file with get_config(), or a run's config.json")
    p.add_argument("--topology", help="of a slice: v5e:16x16; by default that of config.pod")
    p.add_argument("--slices", type=int, help="joined by the data-centre network; by default those of config.pod")
    p.add_argument("--decode", action="store_true", help="one token of decoding with its cache, instead of a training step")
    p.add_argument("--advise", action="store_true", help="where it does not fit: find the nearest config that does")
    p.add_argument("--json", help="write the report there as well")
    return p


if __name__ == "__main__":
    sys.exit(main())
