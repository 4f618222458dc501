"""Checks folders that the user gives, and refuses those for which a library would write to a different path; reads texts."""

import os
import re
from pathlib import Path

from lm.errors import UserError

# Found by trying every byte: TensorStore takes a backslash as a separator and rejects names that are not UTF-8, and etils
# takes a folder whose name ends in ':' as the scheme of a URL.
REWRITTEN = ("\\", ":/")
URL = re.compile("[a-zA-Z][a-zA-Z0-9+.-]*://")


def expanded(given: str | Path) -> Path:
    """The path with `~` resolved. `~/.cache` is XDG_CACHE_HOME where that names an absolute folder, as the XDG Base Directory
    Specification has it. RuntimeError without a home directory."""
    parts, cache = Path(given).parts, os.environ.get("XDG_CACHE_HOME", "")
    if parts[:2] == ("~", ".cache") and os.path.isabs(cache):
        return Path(cache, *parts[2:])
    return Path(given).expanduser()


def local(given: str | Path, *, name: str, rewritten: tuple[str, ...] = REWRITTEN) -> Path:
    """Returns the absolute path of a local folder, with `~` and symbolic links resolved. The folder need not exist.

    UserError if `given` is not a valid path, or contains a string that a library rewrites. The message starts with `name`, the
    flag, config key or description of the folder.
    """
    if not str(given).strip():
        raise UserError(f"{name} is empty; give a folder")
    label = f"{name} ({given})" if " " in name else f"{name}={given}"  # a description, or a flag
    if URL.match(str(given)):
        raise UserError(f"{label} is a URL, and a local folder is needed; copy it to this machine and give the copy")
    try:
        path = expanded(given).resolve()
        text = str(path)
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{label}: a folder in {path} has a name that is not UTF-8; rename it, or give another") from None
    except RuntimeError as error:  # no home directory, or a cycle of links
        raise UserError(f"{label}: {error}; give an absolute path, or set HOME") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{label} is not a path ({error}); give another") from None
    for string in rewritten:
        if string in text:
            raise UserError(f"{label}: a library that writes there changes {string!r} in {path}; give a folder without it")
    return path


def text(given: str, *, name: str) -> str:
    """The text in a local file or pipe. UserError, whose message starts with `name` where the path is wrong, if it is not UTF-8
    or cannot be read."""
    local(given, name=name, rewritten=())
    try:
        return expanded(given).read_text(encoding="utf-8-sig")  # not the resolved path: a pipe's does not exist
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{given} cannot be read ({why}); give a file of text in UTF-8") from None
