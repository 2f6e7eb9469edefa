"""Run the work of a command in the environment that the settings describe."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import uvloop

from merganser.server.environment_factory import open_environment
from merganser.server.observability import logs
from merganser.settings.settings import Settings, read_settings
from models.runtime.environment import Environment

Result = TypeVar("Result")


def run_in_environment(
    operation: Callable[[Environment, Settings], Awaitable[Result]], *, migrate: bool = False
) -> Result:
    """Run an operation in the environment that the settings describe, and return its result.

    A server can run at the same time. With `migrate` the database is migrated first. Raises
    CommandError if the environment can't be opened.
    """
    settings = read_settings()
    logs.configure_logging("WARNING", settings.log_format)

    async def open_and_run() -> Result:
        async with open_environment(settings, migrate=migrate) as environment:
            return await operation(environment, settings)

    return uvloop.run(open_and_run())
