"""One of several processes: prints a digest of global batches, gathered from all processes."""

import hashlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(__file__).rsplit("/", 1)[0])


def main(port: str, processes: str, index: str) -> None:
    if int(processes) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(index))
    from fixtures import rows
    from jax.experimental import multihost_utils

    from lm import config, sharding

    mesh = sharding.make_mesh(config.Mesh())
    data = rows("encoder_decoder", config.SpanCorruption(), encoder_length=32, decoder_length=16)
    epoch = data.windows(data.stores["words"])
    for step in (0, 1, epoch // 16, 3):  # including one within an epoch, and one out of order
        batch = sharding.global_batch(data.rows, np.arange(step * 8, step * 8 + 8), mesh)
        whole = jax.tree.leaves(multihost_utils.process_allgather(batch, tiled=True))
        print("digest", hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in whole)).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
