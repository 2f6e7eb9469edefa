"""The server: HTTP, LMTP and all workers in one process, until told to stop."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from graph.app import create_app
from graph.metrics import Access, Readers
from mail import housekeeping, indexing, routing, snoozing
from mail.lmtp import Lmtp, listen
from mail.queue import worker
from mail.resolving import resolver
from mail.routing import Route
from mail.spool import claim
from merganser import listening, locks, otlp, readiness
from merganser.building import make_folder, opened, reached
from merganser.ending import Ending
from merganser.settings import Settings
from merganser.trouble import MISUSED, Trouble
from models.errors import Invalid
from models.world import World
from resolvers import changes, neighbours, tasks
from resolvers import settings as stored_settings

log = logging.getLogger("merganser")

PATIENCE = 25.0  # seconds that workers have to end

Before = Callable[[World], Awaitable[None]]
After = Callable[[], None]


async def serve(
    settings: Settings, *, before: Before | None = None, after: After | None = None
) -> None:
    """Run everything in this process until SIGINT or SIGTERM.

    `before` is done with the store ready and nothing listening, `after` once HTTP answers.
    """
    otlp.signals(settings)  # before anything is made
    ending = Ending(settings.drain.total_seconds(), starting=asyncio.current_task())
    loop = asyncio.get_running_loop()
    for which in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(which, ending.signalled, which)
    try:
        async with _house(settings) as world:
            if before is not None:
                await before(world)
            await _open(settings, world, ending, after)
    except asyncio.CancelledError:
        if not ending.asked:
            raise
    if ending.broken is not None:
        raise Trouble("a worker ended by itself, so the server stopped: see its log")


@asynccontextmanager
async def _house(settings: Settings) -> AsyncGenerator[World]:
    """The world of a server: its store is held, migrated, and it hears its neighbours."""
    make_folder(settings)
    async with AsyncExitStack() as stack:
        with reached(settings):
            await stack.enter_async_context(locks.serving(settings.store))
        world = await stack.enter_async_context(opened(settings, migrate=True))
        yield world


async def _open(settings: Settings, world: World, ending: Ending, after: After | None) -> None:
    """Listen and work until told to stop, then end in the reverse order."""
    route = _route(settings)
    await listening.guarded(world, settings)
    spool = settings.data / "spool"
    listening.more_files()
    app = create_app(
        world,
        spool=spool / "http",
        bootstrap=_told(settings.bootstrap_key),
        settings=listening.endpoint(settings),
        readers=Readers(Access(settings.metrics), _told(settings.metrics_key)),
        checks=await readiness.checks(world, ending, spool / "http"),
        compiled=settings.compiled_executor,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(otlp.exporting(settings, world))
        stack.callback(os.close, await asyncio.to_thread(claim, spool / "http"))
        bound = listening.sockets("HTTP", settings.http, patience=settings.write_timeout)
        for one in bound:
            stack.callback(one.close)
        await stack.enter_async_context(_workers(world, route, ending, spool / "http"))
        lmtp = await _lmtp(settings, world)
        stack.push_async_callback(lmtp.close)
        ending.web = listening.web(app, settings, after)
        log.info("listening", extra={"http": settings.http, "lmtp": settings.lmtp})
        await ending.web.serve(sockets=bound)
        log.info("stopping")


def _told(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _route(settings: Settings) -> Route:
    if settings.next_hop is None:
        return Route(resolver=partial(resolver, settings.dns_resolver))
    try:
        return Route(routing.next_hop(settings.next_hop.get_secret_value()))
    except Invalid as problem:
        raise Trouble(f"MERGANSER_NEXT_HOP is wrong: {problem}", code=MISUSED) from problem


async def _lmtp(settings: Settings, world: World) -> Lmtp:
    host, port = listening.place(settings.lmtp)
    try:
        return await listen(world, host, port, spool=settings.data / "spool" / "lmtp")
    except OSError as problem:
        raise listening.unbound("LMTP", settings.lmtp, problem) from problem


@asynccontextmanager
async def _workers(world: World, route: Route, ending: Ending, spool: Path) -> AsyncGenerator[None]:
    """All that goes on behind requests. One that breaks takes the server along."""
    ended_by_event = [
        worker.run(world, route, stop=ending.stop),
        housekeeping.run(world, ending.stop, spool),
    ]
    cancelled = [
        indexing.run(world),
        snoozing.run(world),
        tasks.run(world),
        changes.watch(world),
        neighbours.hear(world),
        stored_settings.follow(world),
    ]
    asked = [_begun(work, ending) for work in ended_by_event]
    running = [_begun(work, ending) for work in cancelled]
    ending.workers = [*asked, *running]
    try:
        yield
    finally:
        ending.stop.set()
        for task in running:
            task.cancel()
        _, late = await asyncio.wait([*asked, *running], timeout=PATIENCE)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _begun(work: Coroutine[None, None, None], ending: Ending) -> asyncio.Task[None]:
    task = asyncio.create_task(work)

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled() or (task.exception() is None and ending.stop.is_set()):
            return
        ending.broken = task.exception() or RuntimeError("it returned")
        log.error("a worker ended by itself", exc_info=ending.broken)
        if ending.web is not None:
            ending.web.should_exit = True
        elif ending.starting is not None:
            ending.starting.cancel()

    task.add_done_callback(ended)
    return task
