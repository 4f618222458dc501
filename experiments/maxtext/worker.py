"""Compiles one side of a case and saves the program: `python -m experiments.maxtext.worker CASE SIDE OUT`.

Writes OUT.hlo.gz, the text of the compiled program, and OUT.json, facts that only the compiling process has. SIDE is "ours" or
one of the case's variants of MaxText. MaxText's own functions make its mesh, state, batch and step, in the order of its
`train_compile.main`.
"""

import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

from experiments.maxtext import stubs
from experiments.maxtext.cases import CASES, Case
from tpu import libtpu


def ours(case: Case) -> tuple[Any, Any, dict[str, Any]]:
    """(mesh, function that compiles, facts) of our step."""
    from lm.config import resolve
    from lm.training.assembly import bytes_a_device
    from tpu import aot, jobs, planned
    from tpu.topologies import parse

    rest, overrides = resolve.split_flags(list(case.ours))
    run = resolve.load(rest[0].removeprefix("--config="), overrides)
    mesh = aot.pod_mesh(run, parse(case.topology), 1)
    job = jobs.train_job(planned.computation_of(run, mesh))
    sizes = [bytes_a_device(part) for part in (job.parameters, job.optimizer, job.batch)]
    facts = dict(model_flops=job.model_flops, tokens=job.tokens, parameters=sizes[0], optimizer=sizes[1], batch=sizes[2])
    return mesh, lambda: job.lower().compile(), facts


def theirs(words: tuple[str, ...]) -> tuple[Any, Any, dict[str, Any]]:
    """(mesh, function that compiles, facts) of MaxText's step with the arguments `words`."""
    import jax

    stubs.install()
    from flax.core.spmd import logical_axis_rules
    from maxtext.configs import pyconfig
    from maxtext.trainers.pre_train import train, train_compile
    from maxtext.utils import maxtext_utils, sharding

    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    c = pyconfig.initialize(["train_compile", *words])
    train_compile.validate_config(c)
    mesh = train_compile.get_topology_mesh(c)
    args, kwargs, shardings, _, model = train_compile.get_shaped_inputs(mesh, c)
    params, shardings = sharding.maybe_update_params_sharding_with_opt(c, shardings)
    given = sharding.build_zero1_input_state_mesh_shardings(c, shardings, params)
    data = sharding.get_input_data_sharding(c, mesh)
    how = maxtext_utils.get_functional_train_with_signature(train.train_step, data, given, model, c, params)
    step, *rest = how
    make = lambda: train_compile.jit_and_compile(step, args, kwargs, mesh, *rest, c, logical_axis_rules(c.logical_axis_rules))
    return mesh, make, {}


def main(case: str, side: str, out: str) -> None:
    libtpu.prepare()
    import jax

    from tpu.aot import torus_dims

    found = CASES[case]
    mesh, make, facts = ours(found) if side == "ours" else theirs(found.theirs[side])
    began, busy = time.monotonic(), time.process_time()
    done = make()
    seconds, cpu = time.monotonic() - began, time.process_time() - busy
    with gzip.open(f"{out}.hlo.gz", "wt") as file:
        file.write(done.as_text())
    facts |= dict(
        mesh=dict(mesh.shape),
        dims={axis: sorted(dims) for axis, dims in torus_dims(mesh).items()},
        flops_of_xla=done.cost_analysis()["flops"],
        memory=libtpu.memory(done),
        fragmentation=libtpu.fragmentation(libtpu.log()),
        compile_seconds=seconds,
        compile_cpu_seconds=cpu,
        jax=jax.__version__,
        libtpu=libtpu.version(),
    )
    Path(f"{out}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
