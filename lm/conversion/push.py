"""A folder as the hub of Hugging Face wants it, for `python -m lm.convert push`. Nothing is sent."""

import re

from lm.conversion import folders
from lm.errors import UserError

REPOSITORY = re.compile(
    r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,94}[A-Za-z0-9]/[A-Za-z0-9]([\w.-]{0,94}[A-Za-z0-9])?"
)  # namespace/name


def push(given: str, target: str, *, repository: str, licence: str | None, family: str | None, shard_gb: float) -> str:
    """Exports a run or a converted model to a new folder with a card that names the repository, and .gitattributes which keep
    weights in large-file storage. Returns a summary and the command that uploads it."""
    if not REPOSITORY.fullmatch(repository) or repository.endswith(".git"):
        raise UserError(f"--repository={repository!r} is no name of a repository: give NAMESPACE/NAME, such as me/my-model")
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"--license={licence!r} is no identifier of a licence: give one such as apache-2.0, mit or cc-by-4.0")
    said = folders.to_hf(given, target, family=family, shard_gb=shard_gb, repository=repository, licence=licence)
    return f"{said}\nto upload it: hf upload {repository} {target}"
