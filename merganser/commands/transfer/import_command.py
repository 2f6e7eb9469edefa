"""Implementation of `merganser import`."""

import asyncio
from pathlib import Path

import typer

from mail.archives.mail_sources import MailSource
from merganser.commands.environment_run import run_in_environment
from merganser.commands.progress_bar import create_progress_bar
from merganser.commands.transfer import user_import
from merganser.commands.transfer.passphrase_input import read_passphrase
from merganser.commands.transfer.user_import import ImportOrder, ShowImportProgress
from merganser.errors import CommandError
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from resolvers.transfer.running_import import ImportOutcome


def import_account(
    path: Path,
    user: str,
    mailbox: str | None,
    settings: bool,
    passphrase_stdin: bool,
) -> None:
    """Import mail or an account, and print the number of messages and the skipped items."""
    passphrase = read_passphrase(stdin=passphrase_stdin)
    source_path = path.absolute()

    async def run_import(environment: Environment, server_settings: Settings) -> ImportOutcome:
        order = ImportOrder(source_path, user, mailbox, server_settings.data, settings, passphrase)
        with create_progress_bar() as bar:

            def start_progress(source: MailSource, position: int) -> ShowImportProgress:
                task = bar.add_task(
                    f"Importing {path.name}", total=source.total, completed=position
                )
                return lambda done_count: bar.update(task, completed=done_count)

            return await user_import.import_account(environment, order, start_progress)

    try:
        outcome = run_in_environment(run_import)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise CommandError(
            "Import stopped. Run the command again to continue.", exit_code=130
        ) from None
    typer.echo(f"{outcome.stored} messages imported.")
    if outcome.known:
        typer.echo(f"{outcome.known} already existed.")
    for skipped_name, reason in outcome.skipped:
        typer.echo(f"Skipped {skipped_name}: {reason}")
    if outcome.unlisted:
        typer.echo(f"Skipped {outcome.unlisted} more.")
