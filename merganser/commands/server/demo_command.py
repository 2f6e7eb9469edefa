"""Implementation of `merganser demo`."""

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.commands.progress_bar import create_progress_bar
from merganser.demo.account import ensure_demo_account
from merganser.demo.credentials import DemoAccount
from merganser.settings.settings import Settings
from models.runtime.environment import Environment


def create_demo_account(count: int) -> None:
    """Create the demo account if it is missing, and print its credentials."""
    account = run_in_environment(
        lambda environment, settings: create_demo_account_with_progress(
            environment, settings, count
        ),
        migrate=True,
    )
    typer.echo(f"User      {account.username} ({account.address})")
    typer.echo(f"Password  {account.password or '(somebody has changed it)'}")
    typer.echo(f"API key   {account.key}")


async def create_demo_account_with_progress(
    environment: Environment, settings: Settings, message_count: int
) -> DemoAccount:
    """Create the demo account if it is missing, with a progress bar. Returns its credentials."""
    with create_progress_bar() as bar:
        task = bar.add_task("Writing letters to the demo account", total=None, visible=False)

        def report_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        return await ensure_demo_account(environment, settings.data, message_count, report_progress)
