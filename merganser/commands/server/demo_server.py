"""Run a server with the demo accounts, and print how to use it."""

import uvloop

from merganser.commands.server.demo_command import ensure_demo_accounts_with_progress
from merganser.demo.credentials import DemoAccounts
from merganser.server import banner, lifecycle
from merganser.server.observability import logs
from merganser.settings.demo_settings import demo_settings
from merganser.settings.settings import Settings
from models.runtime.environment import Environment


def serve_with_demo_accounts(settings: Settings, message_count: int) -> None:
    """Create the demo accounts that are missing, then run the server and print its banner.

    The log level is set after the banner, so that log lines don't hide it.
    """
    demo_accounts: list[DemoAccounts] = []
    settings = demo_settings(settings)

    async def prepare_demo_account(environment: Environment) -> None:
        demo_accounts.append(
            await ensure_demo_accounts_with_progress(environment, settings, message_count)
        )

    def print_banner() -> None:
        logs.configure_logging(settings.log_level, settings.log_format)
        banner.print_demo_banner(settings, demo_accounts[0])

    uvloop.run(
        lifecycle.serve(settings, before_listening=prepare_demo_account, after_start=print_banner)
    )
