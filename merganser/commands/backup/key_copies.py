"""Copies of the key files, in a folder apart from the backups.

The folder has a subfolder for each backup, with the files `vault` and `secret`, and the folder
`arc` if there are keys for ARC.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from mail.backup.errors import BackupError
from mail.backup.target import BackupTarget
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server.key_file import key_file_path
from merganser.settings.settings import Settings

KEY_FILE, SECRET, ARC_FOLDER = "vault", "secret", "arc"


@dataclass
class KeyCopies:
    """The copies of the key files for one backup."""

    settings: Settings
    keys_folder: Path
    backup_id: str
    has_complete_backup: bool | None = False  # None: its manifest may have been written

    def require_unchanged_before_completion(self) -> None:
        """Raise BackupError if a key file was rotated. Afterwards the manifest is written."""
        require_unchanged_keys(self.settings, self.keys_folder, self.backup_id)
        self.has_complete_backup = None

    async def delete_if_backup_failed(self, target: BackupTarget) -> None:
        """Delete the copies, unless the target has the backup or doesn't tell that."""
        if self.has_complete_backup is None:
            try:
                self.has_complete_backup = self.backup_id in await target.list_ids()
            except Exception:  # noqa: BLE001 - the failure of the backup is reported
                folder = self.keys_folder / self.backup_id
                typer.echo(
                    f"The target does not tell whether it has the backup: {folder} stays.", err=True
                )
        if self.has_complete_backup is False:
            delete_key_copies(self.keys_folder, [self.backup_id])


def require_folder_outside(keys_folder: Path, target: str) -> None:
    """Raise CommandError if the folder of the keys is in the target of the backup."""
    if "://" not in target and keys_folder.resolve().is_relative_to(Path(target).resolve()):
        raise CommandError(
            f"--keys: {keys_folder} is in the target. Who has both can read all secrets: name "
            "another folder.",
            exit_code=EXIT_USAGE,
        )


def copy_key_files(settings: Settings, keys_folder: Path, backup_id: str) -> None:
    """Copy the key files into a new folder that only this user can read.

    Raises CommandError, and leaves no folder then.
    """
    folder = keys_folder / backup_id
    try:
        keys_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        try:
            for path, relative_path in _key_files(settings):
                if path.exists():
                    _copy_private_file(path, folder / relative_path)
        except OSError:
            delete_key_copies(keys_folder, [backup_id])
            raise
    except OSError as problem:
        raise CommandError(f"Cannot copy the keys to {folder}: {problem.strerror}.") from problem


def require_unchanged_keys(settings: Settings, keys_folder: Path, backup_id: str) -> None:
    """Raise BackupError if a key file differs from its copy: it was rotated during the backup."""
    for path, relative_path in _key_files(settings):
        copy = keys_folder / backup_id / relative_path
        if path.exists() and (not copy.exists() or path.read_bytes() != copy.read_bytes()):
            raise BackupError(f"{path} has changed during the backup: run the command again.")


def delete_key_copies(keys_folder: Path, backup_ids: Iterable[str]) -> None:
    """Delete the copies of the key files of deleted backups."""
    for backup_id in backup_ids:
        with suppress(FileNotFoundError):
            shutil.rmtree(keys_folder / backup_id)


def restore_key_files(settings: Settings, keys_folder: Path | None, backup_id: str) -> None:
    """Copy the key files to where the settings expect them, or require the key file there.

    Raises CommandError if there is no key file, or if a file exists that differs from its copy.
    """
    if keys_folder is None:
        if not key_file_path(settings).exists():
            raise CommandError(
                f"The key file {key_file_path(settings)} is missing, and the backed-up database "
                "needs it: give --keys FOLDER, or copy the file."
            )
        return
    folder = keys_folder / backup_id
    if not folder.is_dir():
        folder = keys_folder
    if not (folder / KEY_FILE).is_file():
        raise CommandError(f"--keys: {folder} has no file {KEY_FILE}.")
    copies = [
        (folder / relative_path, path)
        for path, relative_path in _restorable_files(settings, folder)
        if (folder / relative_path).is_file()
    ]
    for copy, path in copies:
        if path.exists() and path.read_bytes() != copy.read_bytes():
            raise CommandError(f"{path} differs from {copy}: remove the wrong one.")
    for copy, path in copies:
        if not path.exists():
            _copy_private_file(copy, path)


def _key_files(settings: Settings) -> Iterator[tuple[Path, Path]]:
    """Yield the path of each key file, and its path in the folder of the copies."""
    yield key_file_path(settings), Path(KEY_FILE)
    if not settings.signing_secret:
        yield settings.data / "secret", Path(SECRET)
    if settings.arc_keys_folder is not None and settings.arc_keys_folder.is_dir():
        for path in sorted(settings.arc_keys_folder.iterdir()):
            if path.is_file():
                yield path, Path(ARC_FOLDER) / path.name


def _restorable_files(settings: Settings, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the path that each copy has in the settings, and its path in the folder."""
    yield key_file_path(settings), Path(KEY_FILE)
    if not settings.signing_secret:
        yield settings.data / "secret", Path(SECRET)
    if settings.arc_keys_folder is not None and (folder / ARC_FOLDER).is_dir():
        for copy in sorted((folder / ARC_FOLDER).iterdir()):
            yield settings.arc_keys_folder / copy.name, Path(ARC_FOLDER) / copy.name


def _copy_private_file(source: Path, destination: Path) -> None:
    """Copy a small file so that only this user can read it, and sync it to the disk.

    Creates the folder. Raises FileExistsError if the destination exists.
    """
    destination.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())
