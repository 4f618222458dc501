"""How much a text adds to the `xz -9` of another. A program of its own, because it forks, and jax must not be there.

    python lm/evaluation/xz.py N < DATA        prints the compressed bytes of DATA[:N] and of DATA

One pass serves for both: a copy of the process ends the stream at N while the other goes on.
"""

import lzma
import os
import sys

# -9 without the container. Its dictionary is 64 MiB; more text before would not be seen.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
WINDOW = 1 << 26


def sizes(before: bytes, after: bytes) -> tuple[int, int]:
    """Compressed bytes of `before` and of `before + after`."""
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_RAW, filters=FILTERS)
    count = len(compressor.compress(before))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(count + len(compressor.flush())).encode())
        os._exit(0)
    os.close(writing)
    first = int(os.read(reading, 64))
    os.close(reading)
    os.waitpid(child, 0)
    return first, count + len(compressor.compress(after)) + len(compressor.flush())


if __name__ == "__main__":
    data = sys.stdin.buffer.read()
    print(*sizes(data[: int(sys.argv[1])], data[int(sys.argv[1]) :]))
