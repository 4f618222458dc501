"""How many bytes a text adds to the `xz -9` of another. A separate program, because it forks, which is unsafe under jax.

    python lm/evaluation/xz.py N < DATA        prints the compressed sizes of DATA[:N] and of DATA, in bytes

One pass gives both sizes: after N bytes the process forks, and the child ends the stream while the parent continues.
"""

import lzma
import os
import sys

# xz -9 without the container format.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
WINDOW = 1 << 26  # bytes of its dictionary: earlier text has no effect


def sizes(before: bytes, after: bytes) -> tuple[int, int]:
    """The compressed sizes of `before` and of `before + after`, in bytes."""
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
