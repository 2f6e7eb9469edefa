"""Files that only the user of the process can read."""

import os
from pathlib import Path


def create_private_file_if_missing(path: Path, text: str) -> None:
    """Create a file with this text. A file that exists is kept."""
    temporary = write_temporary_file(path, text)
    try:
        os.link(temporary, path)  # unlike a rename, a link never replaces a file
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def replace_private_file(path: Path, text: str) -> None:
    """Replace a file atomically, and return when the disk has it."""
    write_temporary_file(path, text).rename(path)
    folder_descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder_descriptor)
    finally:
        os.close(folder_descriptor)


def write_temporary_file(target_path: Path, text: str) -> Path:
    """Write a temporary file beside `path`, synced to the disk, and return its path."""
    temporary = target_path.with_name(f".{target_path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return temporary
