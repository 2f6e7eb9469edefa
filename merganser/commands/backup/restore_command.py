"""Implementation of `merganser restore`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option

import asyncio
from pathlib import Path

import typer
import uvloop

from mail.backup.errors import BackupError
from mail.backup.target import folder_or_url
from merganser.commands.backup.backup_command import open_target
from merganser.commands.backup.restore_operations import (
    RestoreOrder,
    RestoreSummary,
    names_of_lost_objects,
    restore_store,
)
from merganser.commands.progress_bar import create_progress_bar
from merganser.commands.terminal_output import print_json
from merganser.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from merganser.server.observability import logs
from merganser.settings.settings import read_settings


def restore_backup(
    source: str,
    backup_id: str | None,
    keys: Path | None,
    keep_objects: bool,
    quick: bool,
    hold_queue: bool,
    as_json: bool,
) -> None:
    """Restore a backup, and print what is missing. The exit code is 1 if something is damaged."""
    settings = read_settings()
    logs.configure_logging("ERROR", settings.log_format)  # a warning would break the progress bar
    location = folder_or_url(source)
    if "://" not in location and not (Path(location) / "db").is_dir():
        raise CommandError(f"SOURCE: {location} has no backups.", exit_code=EXIT_USAGE)

    async def run_restore() -> RestoreSummary:
        opened = open_target(location, "SOURCE")
        order = RestoreOrder(opened, backup_id, keys, keep_objects, quick, hold_queue)
        try:
            with create_progress_bar() as bar:
                task = bar.add_task("Restoring", total=None)

                def report_progress(subject: str, done_count: int, total: int | None) -> None:
                    bar.update(task, description=subject, completed=done_count, total=total)

                return await restore_store(settings, order, report_progress)
        except BackupError as problem:
            raise CommandError(str(problem)) from problem
        finally:
            await opened.close()

    try:
        summary = uvloop.run(run_restore())
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise CommandError(
            "Restore stopped. Run it again with --keep-objects to continue.", exit_code=130
        ) from None
    report = summary.report.to_json()
    if as_json:
        print_json(_summary_json(summary))
    else:
        _print_summary(summary)
    if not report["whole"] or summary.objects.lost_names:
        raise typer.Exit(EXIT_FAILURE)


def _summary_json(summary: RestoreSummary) -> dict[str, object]:
    lost, newer = summary.lost_changes, summary.newer_objects
    return {
        "id": summary.manifest.id,
        "began_at": summary.manifest.began_at,
        "restored_objects": summary.objects.copied_count,
        "kept_objects": summary.objects.kept_count,
        "missing_objects": list(names_of_lost_objects(summary.manifest, summary.objects)),
        "messages_with_missing_objects": list(summary.lost_messages),
        "waiting_recipients": summary.waiting_recipient_count,
        "newer": {
            "objects": newer.count,
            "object_bytes": newer.size,
            "accounts": lost.account_count,
            "last_seen_at": lost.last_seen_at or None,
        },
        "check": summary.report.to_json(),
    }


def _print_summary(summary: RestoreSummary) -> None:
    manifest, objects = summary.manifest, summary.objects
    lost, newer = summary.lost_changes, summary.newer_objects
    typer.echo(
        f"Restored the backup {manifest.id}: {objects.copied_count} objects copied, "
        f"{objects.kept_count} kept."
    )
    typer.echo(f"Missing: all changes after {manifest.began_at}.")
    if lost.last_seen_at:
        typer.echo(
            f"The lost history was last seen at {lost.last_seen_at}: {lost.account_count} accounts "
            f"have changed, and {newer.count} objects of {newer.size} bytes are newer "
            "than the backup."
        )
    for name in names_of_lost_objects(manifest, objects):
        typer.echo(f"Missing or damaged object: {name}.")
    for text in summary.lost_messages:
        typer.echo(f"Incomplete message: {text}.")
    if summary.waiting_recipient_count:
        typer.echo(
            f"{summary.waiting_recipient_count} recipients wait in the queue. Some may have got "
            "their mail after the backup: a started server sends it again."
        )
    findings = summary.report.unrepaired_findings
    for finding in findings:
        typer.echo(
            f"Check: {finding.object}: {finding.rule}: expected {finding.expected}, found "
            f"{finding.found}."
        )
    typer.echo(f"The check found {len(findings)} differences. All clients read their state again.")
