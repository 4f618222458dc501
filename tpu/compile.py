"""Tells whether a run fits a pod, and how fast it can be at best. Runs on any machine with a CPU.

  python -m tpu.compile --config=configs/pod.py:llama2_7b_v5e
  python -m tpu.compile --config=configs/quickstart.py --topology=v5e:2x2

Compiles the run's training step for the TPUs of the config's `pod`, or of --topology and --slices, with the TPU compiler
(libtpu); nothing is run, and no data and no saved model is read. With --serve: the programs of an engine
(`lm.generation.engine`), a step in which each of train.batch_size slots of data.decoder_length tokens writes one, and the
reading of the longest prompt. A policy (recipe.kind=policy) has these in any case: a slot for each of its samples.

Prints the memory of a device by kind, FLOPs, bytes sent, and the best time and MFU that these allow. XLA has the flags
that `python -m tpu launch` sets (tpu/flags.py), or those of LIBTPU_INIT_ARGS.
Where it does not fit, --advise looks for a change that does. Where it fits, for a faster one: what the backward pass keeps
(remat, keep), microbatches, tensor in place of fsdp, and what waits in the host's memory (offload); it compiles up to six,
and says what it found of each.
"""

import argparse
import json
from pathlib import Path

from lm import cli
from lm.config import Run
from lm.errors import UserError
from tpu import libtpu
from tpu.flags import init_args
from tpu.topologies import Topology, parse

EXIT_TOO_LARGE = 1


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    run = cli.load(flags)
    topology, slices = pod_of(run, flags)
    if flags.serve and flags.advise:
        raise UserError("--advise changes how a run trains; leave --serve out")
    if flags.json and not Path(flags.json).absolute().parent.is_dir():
        raise UserError(f"--json={flags.json}: there is no such folder; create it first")
    libtpu.prepare(init_args(topology.generation, slices))
    from tpu import aot, jobs
    from tpu.report import table

    mesh = aot.pod_mesh(run, topology, slices)
    steps = jobs.serve_jobs(run, mesh) if flags.serve else jobs.of(run, mesh)
    reports = []
    for job in steps:
        reports.append(aot.measure(run, job, topology, slices, name=flags.config))
        print(table(reports[-1]), flush=True)
    if flags.json:
        found, *others = (report.to_dict() for report in reports)
        Path(flags.json).write_text(json.dumps(found | {of["step"]: of for of in others}, indent=2) + "\n")
    if flags.advise:
        print()
        say = lambda text: print(text, flush=True)
        if reports[0].fits:
            advice, without = aot.faster(run, topology, slices, reports[0], say), "nothing that was tried is faster"
        else:
            advice = aot.advise(run, topology, slices, reports[0], steps[0], say)
            without = "nothing near fits; take more chips, a smaller batch or a smaller model"
        print(f"\nadd {advice}" if advice else f"\n{without}")
    return 0 if all(report.fits for report in reports) else EXIT_TOO_LARGE


def pod_of(run: Run, flags: argparse.Namespace) -> tuple[Topology, int]:
    """(topology, slices) to compile for: the flags, otherwise config.pod. Raises UserError without either."""
    name = flags.topology or (run.pod and run.pod.topology)
    if not name:
        raise UserError("the config names no pod; add --topology, such as --topology=v5e:16x16, or config.pod.topology")
    slices = flags.slices if flags.slices is not None else 1 if flags.topology or run.pod is None else run.pod.slices
    if slices < 1:
        raise UserError(f"--slices={slices} is too small; give 1 or more")
    return parse(name), slices


def parser() -> cli.Parser:
    p = cli.parser("tpu.compile", __doc__, config=True, exits={0: "it fits", EXIT_TOO_LARGE: "it does not fit"})
    p.add_argument("--topology", help="of a slice: v5e:16x16; by default that of config.pod")
    p.add_argument("--slices", type=int, help="joined by the data-centre network; by default those of config.pod")
    p.add_argument(
        "--serve",
        action="store_true",
        help="what an engine that serves the model does, instead of a training step",
    )
    p.add_argument("--advise", action="store_true", help="find the nearest config that fits, or a faster one that does")
    p.add_argument("--json", help="write the report there as well")
    return p


if __name__ == "__main__":
    cli.enter(main)
