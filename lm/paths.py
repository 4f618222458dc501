"""Checks folders that a user names, and refuses paths that a library would rewrite to another location."""

import re
from pathlib import Path

from lm.errors import UserError

# Found by trying every byte: TensorStore treats a backslash as a separator and rejects names that are not UTF-8; etils treats a
# folder whose name ends in ':' as the scheme of a URL.
REWRITTEN = ("\\", ":/")
URL = re.compile("[a-zA-Z][a-zA-Z0-9+.-]*://")


def local(given: str | Path, *, name: str, rewritten: tuple[str, ...] = REWRITTEN) -> Path:
    """The absolute path of a local folder, with `~` and links resolved; it need not exist.

    Raises UserError if it cannot be resolved, or contains one of `rewritten`. `name` is the flag or config key for the message.
    """
    if not str(given).strip():
        raise UserError(f"{name} is empty; give a folder")
    said = f"{name} ({given})" if " " in name else f"{name}={given}"  # `name` is a phrase, or a flag
    if URL.match(str(given)):
        raise UserError(f"{said} is a URL, and a local folder is needed; copy it to this machine and give that folder")
    try:
        path = Path(given).expanduser().resolve()
        text = str(path)
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{said}: a folder in {path} has a name that is not UTF-8; rename it, or give another") from None
    except RuntimeError as error:  # no home directory, or a cycle of links
        raise UserError(f"{said}: {error}; give an absolute path, or set HOME") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{said} is not a path ({error}); give another") from None
    for piece in rewritten:
        if piece in text:
            raise UserError(f"{said}: a library that writes there changes {piece!r} in {path}; give a folder without it")
    return path
