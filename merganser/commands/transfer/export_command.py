"""Implementation of `merganser export`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option

import asyncio
from collections.abc import Callable
from pathlib import Path

import typer

from mail.archives.archive_writer import ExportFormat
from merganser.commands.environment_run import run_in_environment
from merganser.commands.progress_bar import create_progress_bar
from merganser.commands.transfer import user_export
from merganser.commands.transfer.passphrase_input import read_passphrase
from merganser.commands.transfer.user_export import ExportOrder, ExportSummary
from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.settings import Settings
from models.runtime.environment import Environment


def export_account(
    path: Path,
    user: str,
    kind: str | None,
    mailbox: str | None,
    settings: bool,
    passphrase_stdin: bool,
) -> None:
    """Export an account, and print the number of messages and those that can't be read."""
    if kind is not None and kind.upper() not in ExportFormat.__members__:
        format_names = ", ".join(ExportFormat.__members__)
        raise CommandError(f"--format must be one of {format_names}.", exit_code=EXIT_USAGE)
    file_format = (
        ExportFormat(kind.upper()) if kind else user_export.export_format_or_fail_command(path)
    )
    passphrase = read_passphrase(stdin=passphrase_stdin)
    order = ExportOrder(path.absolute(), user, file_format, mailbox, settings, passphrase)

    async def export_account_with_progress(
        environment: Environment, _settings: Settings
    ) -> ExportSummary:
        with create_progress_bar() as bar:

            def start_progress(total: int) -> Callable[[int], None]:
                task = bar.add_task(f"Exporting {user}", total=total)
                return lambda done_count: bar.update(task, completed=done_count)

            return await user_export.export_account(environment, order, start_progress)

    try:
        summary = run_in_environment(export_account_with_progress)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise CommandError("Export stopped. Nothing was written.", exit_code=130) from None
    typer.echo(f"{summary.messages} messages exported, {summary.bytes} bytes.")
    for text in summary.damaged_messages:
        typer.echo(f"Left out {text}.")
    if summary.damaged_messages:
        raise typer.Exit(1)
