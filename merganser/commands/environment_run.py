"""Run the work of a command in the environment that the settings describe."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import World

Result = TypeVar("Result")


def run(work: "Callable[[World, Settings], Awaitable[Result]]", *, migrate: bool = False) -> Result:
    """Run an operation in the environment that the settings describe, and return its result.

    A server can run at the same time. With `migrate` the database is migrated first. Raises
    CommandError if the environment can't be opened.
    """
    import uvloop

    from merganser.server.environment_factory import opened
    from merganser.server.observability import logs
    from merganser.settings.settings import read

    settings = read()
    logs.set_up("WARNING", settings.log_format)

    async def whole() -> Result:
        async with opened(settings, migrate=migrate) as environment:
            return await work(environment, settings)

    return uvloop.run(whole())
