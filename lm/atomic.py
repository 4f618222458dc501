"""Files written whole or not at all: whenever the process is killed, the old file or the new one is there."""

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write the same at once
    with temporary.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(path)


def write_json(path: Path, value: Any) -> None:
    """In the order that `value` has: that of a run's data sources, for one, decides its rows."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
