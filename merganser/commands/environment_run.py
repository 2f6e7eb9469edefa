"""Run the work of a command in the environment that the settings describe."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import World

Result = TypeVar("Result")


def run(work: "Callable[[World, Settings], Awaitable[Result]]", *, migrate: bool = False) -> Result:
    """Do `work` in the world that the settings describe, beside a server if there is one."""
    import uvloop

    from merganser.server.environment_factory import opened
    from merganser.server.observability import logs
    from merganser.settings.settings import read

    settings = read()
    logs.set_up("WARNING", settings.log_format)

    async def whole() -> Result:
        async with opened(settings, migrate=migrate) as world:
            return await work(world, settings)

    return uvloop.run(whole())
