"""One of several processes: the last one hangs before a barrier while its heartbeat continues."""

import os
import time

from lm import distributed


def hangs() -> int:
    distributed.start()
    os.environ["LM_BARRIER_SECONDS"] = "4"  # not less: on a busy machine, processes may start far apart
    if os.environ["LM_PROCESS"] != "0":
        time.sleep(3600)
    distributed.barrier("restore")
    return 0


if __name__ == "__main__":
    distributed.run(hangs)
