"""Files that only we may read."""

import os
from pathlib import Path


def once(path: Path, text: str) -> None:
    """Write a file; if somebody was quicker, theirs stays."""
    part = written(path, text)
    try:
        os.link(part, path)  # unlike a rename this never replaces
    except FileExistsError:
        pass
    finally:
        part.unlink()


def replaced(path: Path, text: str) -> None:
    """Write a file in the place of the old one, whole or not at all, and safe on the disk."""
    written(path, text).rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def written(path: Path, text: str) -> Path:
    """A new file beside `path`, safe on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(handle, text.encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    return part
