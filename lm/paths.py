"""Folders that a user names: refused at the start where a library would write to another place than the one named."""

import re
from pathlib import Path

from lm.errors import UserError

# Tried on every byte: TensorStore takes a backslash for a separator and names that are not UTF-8 for no path at all, and
# etils takes a folder whose name ends in ':' for the scheme of a URL.
REWRITTEN = ("\\", ":/")
URL = re.compile("[a-zA-Z][a-zA-Z0-9+.-]*://")


def local(given: str | Path, *, name: str, rewritten: tuple[str, ...] = REWRITTEN) -> Path:
    """The absolute path of a local folder, with `~` and links resolved; it need not exist.

    Raises UserError where there is none, and where it has what a library rewrites. `name` is the flag or the config key
    that the message speaks of.
    """
    if not str(given).strip():
        raise UserError(f"{name} is empty; give a folder")
    said = f"{name} ({given})" if " " in name else f"{name}={given}"  # words, or a flag
    if URL.match(str(given)):
        raise UserError(f"{said} is a URL, and a local folder is needed; copy it to this machine and give that folder")
    try:
        path = Path(given).expanduser().resolve()
        text = str(path)
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{said}: a folder in {path} has a name that is not UTF-8; rename it, or give another") from None
    except RuntimeError as error:  # no home directory, or links in a circle
        raise UserError(f"{said}: {error}; give an absolute path, or set HOME") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{said} is not a path ({error}); give another") from None
    for piece in rewritten:
        if piece in text:
            raise UserError(f"{said}: a library that writes there changes {piece!r} in {path}; give a folder without it")
    return path
