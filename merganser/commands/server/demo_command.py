"""Implementation of `merganser demo`."""

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.commands.progress_bar import create_progress_bar
from merganser.demo.account import ensure_demo_accounts_with_messages
from merganser.demo.credentials import DemoAccounts
from merganser.settings.settings import Settings
from models.runtime.environment import Environment


def create_missing_demo_accounts(count: int) -> None:
    """Create the demo accounts that are missing, and print their credentials."""
    accounts = run_in_environment(
        lambda environment, settings: ensure_demo_accounts_with_progress(
            environment, settings, count
        ),
        migrate=True,
    )
    for title, account in accounts.by_title().items():
        typer.echo(f"{title:<14} {account.username} ({account.address})")
        typer.echo(f"Password       {account.password_text}")
        typer.echo(f"API key        {account.key}")


async def ensure_demo_accounts_with_progress(
    environment: Environment, settings: Settings, message_count: int
) -> DemoAccounts:
    """Create the demo accounts that are missing, with a progress bar. Returns their credentials."""
    with create_progress_bar() as bar:
        task = bar.add_task("Writing messages to the demo account", total=None, visible=False)

        def report_progress(done_count: int, total: int) -> None:
            bar.update(task, completed=done_count, total=total, visible=True)

        return await ensure_demo_accounts_with_messages(
            environment, settings.data, message_count, report_progress
        )
