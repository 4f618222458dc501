"""One of several processes: the last hangs on the way to a meeting, though its heart beats."""

import os
import time

from lm import distributed


def hangs() -> int:
    distributed.start()
    os.environ["LM_BARRIER_SECONDS"] = "4"  # not sooner: processes of a busy machine may start far apart
    if os.environ["LM_PROCESS"] != "0":
        time.sleep(3600)
    distributed.barrier("restore")
    return 0


if __name__ == "__main__":
    distributed.run(hangs)
