"""Implementation of `merganser backup`."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import parse_qsl, urlsplit

import typer
from obstore.exceptions import BaseError

from mail.backup.backup_run import BackupOrder, BackupSummary, back_up
from mail.backup.errors import BackupError
from mail.backup.target import BackupTarget, backup_id, folder_or_url
from merganser.commands.backup.key_copies import (
    KeyCopies,
    copy_key_files,
    delete_key_copies,
    require_folder_outside,
)
from merganser.commands.environment_run import run_in_environment
from merganser.commands.progress_bar import create_progress_bar
from merganser.commands.terminal_output import print_json
from merganser.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.store.outages import DiskFull, storage_failure


def backup_store(
    target: str, keys: Path | None, verify: bool, keep: int | None, as_json: bool
) -> None:
    """Back up the store, and print the counts.

    The exit code is 1 if objects are lost, or if an earlier backup is damaged.
    """
    location = folder_or_url(target)
    if keys is not None:
        require_folder_outside(keys, location)

    async def run_backup(environment: Environment, settings: Settings) -> BackupSummary:
        require_target_outside(location, settings)
        opened = open_target(location, "TARGET")
        id_ = backup_id(environment.now())
        order = BackupOrder(
            id=id_,
            target=opened,
            database_url=settings.database_url,
            version=version("merganser"),
            scratch_folder=settings.data,
            reads_objects=verify,
            keep_count=keep,
        )
        try:
            with _errors_as_command_errors(opened.folder or settings.data):
                if keys is None:
                    return await _back_up_with_progress_bar(environment, order)
                return await _back_up_with_keys(environment, order, KeyCopies(settings, keys, id_))
        finally:
            await opened.close()

    try:
        summary = run_in_environment(run_backup)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise CommandError(
            "Backup stopped. The earlier backups are complete.", exit_code=130
        ) from None
    _print_summary(summary, as_json=as_json)
    if summary.manifest.missing_objects or summary.problems:
        raise typer.Exit(EXIT_FAILURE)


async def _back_up_with_keys(
    environment: Environment, order: BackupOrder, key_copies: KeyCopies
) -> BackupSummary:
    """Copy the keys, and back up. If the backup fails, the copies of the keys are deleted."""
    order = replace(
        order,
        has_keys=True,
        require_unchanged_keys=key_copies.require_unchanged_before_completion,
        delete_key_copies=partial(delete_key_copies, key_copies.keys_folder),
    )
    copy_key_files(key_copies.settings, key_copies.keys_folder, order.id)
    try:
        return await _back_up_with_progress_bar(environment, order)
    except BaseException:  # an interrupted backup is a task that was cancelled
        await key_copies.delete_if_backup_failed(order.target)
        raise


async def _back_up_with_progress_bar(environment: Environment, order: BackupOrder) -> BackupSummary:
    with create_progress_bar() as bar:
        task = bar.add_task("Backing up", total=None)

        def report_progress(subject: str, done_count: int, total: int | None) -> None:
            bar.update(task, description=subject, completed=done_count, total=total)

        return await back_up(environment, order, report_progress)


@contextmanager
def _errors_as_command_errors(written_folder: Path) -> Generator[None]:
    """Raise BackupError, and the error of a full disk, as CommandError."""
    try:
        yield
    except BackupError as problem:
        raise CommandError(str(problem)) from problem
    except (DiskFull, OSError) as problem:
        if not isinstance(storage_failure(problem), DiskFull):
            raise
        raise CommandError(
            f"The disk of {written_folder} is full: the database and the new objects need room. "
            "The earlier backups are complete."
        ) from problem


def open_target(location: str, argument_name: str) -> BackupTarget:
    """Open a target. Raises CommandError that names the argument."""
    try:
        return BackupTarget(location)
    except (OSError, ValueError, BaseError, BackupError) as problem:
        reason = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise CommandError(
            f"{argument_name} cannot be used: {reason}", exit_code=EXIT_USAGE
        ) from problem


def require_target_outside(location: str, settings: Settings) -> None:
    """Raise CommandError if the target is in an object store, or has one."""
    for url in filter(None, (settings.object_store_url, settings.cold_object_store_url)):
        if _is_one_in_the_other(location, folder_or_url(url)):
            raise CommandError(
                f"TARGET must be apart from the object store {url.partition('?')[0]}.",
                exit_code=EXIT_USAGE,
            )


def _is_one_in_the_other(first: str, second: str) -> bool:
    """True if two folders or URLs of buckets are equal, or one contains the other.

    Buckets with the same name at two endpoints differ.
    """
    if ("://" in first) != ("://" in second):
        return False
    if "://" not in first:
        paths: list[PurePath] = [Path(first).resolve(), Path(second).resolve()]
    else:
        parts = [urlsplit(first), urlsplit(second)]
        endpoints = {dict(parse_qsl(part.query)).get("endpoint", "") for part in parts} - {""}
        if parts[0][:2] != parts[1][:2] or len(endpoints) > 1:
            return False
        paths = [PurePosixPath(f"/{part.path.strip('/')}") for part in parts]
    return paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])


def _print_summary(summary: BackupSummary, *, as_json: bool) -> None:
    manifest = summary.manifest
    if as_json:
        print_json(
            {
                "id": manifest.id,
                "database_bytes": manifest.database.size,
                "objects": manifest.object_count,
                "object_bytes": manifest.object_bytes,
                "copied_objects": manifest.copied_count,
                "copied_bytes": manifest.copied_bytes,
                "purged_objects": len(manifest.purged_objects),
                "missing_objects": list(manifest.missing_objects),
                "messages_with_missing_objects": list(summary.lost_messages),
                "deleted_backups": list(summary.deleted_ids),
                "problems": list(summary.problems),
            }
        )
        return
    typer.echo(
        f"Backup {manifest.id}: database of {manifest.database.size} bytes, "
        f"{manifest.object_count} objects of {manifest.object_bytes} bytes. "
        f"Copied now: {manifest.copied_count} objects of {manifest.copied_bytes} bytes."
    )
    if manifest.purged_objects:
        typer.echo(f"{len(manifest.purged_objects)} objects were purged while the backup ran.")
    for id_ in summary.deleted_ids:
        typer.echo(f"Deleted the backup {id_}.")
    for name in manifest.missing_objects:
        typer.echo(f"Missing or damaged object: {name}.")
    for text in summary.lost_messages:
        typer.echo(f"Incomplete message: {text}.")
    for problem in summary.problems:
        typer.echo(problem)
