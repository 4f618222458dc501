"""One of several processes: prints the digest of a run's latest checkpoint as restored on its devices, then resumes
training."""

import sys

from lm import cli, distributed, sharding
from lm.checkpoint import Checkpoints
from lm.recipes import recipe
from lm.train import main, parser
from lm.training.assembly import assemble
from lm.training.rundir import params_sha256


def restored() -> int:
    flags = parser().parse()
    run = cli.load(flags)
    distributed.start()
    distributed.CHUNK = 2**14  # the embedding is gathered in four pieces, which must not change the digest
    parts = assemble(run, recipe(run), progress=False)
    checkpoints = Checkpoints(flags.workdir, run.checkpoint, run, parts.data.tokenizer.proto)
    with sharding.use(parts.mesh):
        state = checkpoints.restore(checkpoints.latest_intact(), parts.plan.targets())
        print(f"restored step {int(state.step)}: {params_sha256(state.params)}", file=sys.stderr)
    checkpoints.close()
    return main()


if __name__ == "__main__":
    distributed.run(restored)
