"""The files that records name, such as pictures and recordings. Their names are relative to the folder of the records."""

from dataclasses import dataclass
from pathlib import Path

from lm import config, paths
from lm.errors import UserError


@dataclass(frozen=True)
class Attached:
    """What a kind of file is called, and the field of a record that names it: for errors."""

    what: str  # "picture"
    field: str  # "image"

    def file(self, name: str, folder: Path | None) -> Path:
        """Where it lies. UserError for one that is not on local disk."""
        if "://" in name:
            raise UserError(
                f"{self.field}={name[:80]} is elsewhere, and {self.what}s are read from local files: copy it, and name the copy"
            )
        return (folder or Path()) / Path(name).expanduser()

    def bytes(self, file: Path) -> bytes:
        """What is in it. UserError if it cannot be read."""
        try:
            return file.read_bytes()
        except OSError as error:
            raise self.unreadable(file, error) from None

    def stamp(self, file: Path) -> list[int]:
        """What changes with its contents: its size in bytes, and when it was changed in ns. UserError if it is missing."""
        try:
            about = file.stat()
        except OSError as error:
            raise self.unreadable(file, error) from None
        return [about.st_size, about.st_mtime_ns]

    def unreadable(self, file: Path, error: OSError) -> UserError:
        return UserError(f"cannot read the {self.what} {file} ({error.strerror}); check the field '{self.field}' of its record")


def folder_of(source: config.Source) -> Path | None:
    """Where the files that the records of a source name are; None if they are described, or have absolute names."""
    if source.kind in ("generated", "package") or "://" in source.path:
        return None
    path = paths.expanded(source.path)
    return path if path.is_dir() else path.parent
