"""The server: HTTP, LMTP and what goes on behind them, until told to stop.

All of it in one process, or the part of one process of several
(merganser/server/processes/process_supervisor.py).
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from graph.app import create_app
from graph.http.metrics import Access, Readers
from graph.notifications.webhooks import worded
from graph.types import global_ids
from mail.maintenance import housekeeping, snooze_worker
from mail.maintenance.restore_mark import RestoreGuard
from mail.outbound import worker as outbound_worker
from mail.routing import mx_hosts
from mail.routing.mx_hosts import Route
from mail.scanners import training_worker
from mail.search import index_worker
from mail.smtp.lmtp import Lmtp, listen
from mail.smtp.spool_file import claim
from merganser.errors import MISUSED, Trouble
from merganser.server import acme_http, http_server, readiness, smtp_listeners, sockets
from merganser.server.environment_factory import make_folder, opened, reached
from merganser.server.observability import otlp
from merganser.server.processes.process_roles import ALONE, Part
from merganser.server.server_identity import server_identity
from merganser.server.shutdown import Ending
from merganser.server.store import store_lock
from merganser.server.store.store_use import used_by_server
from merganser.settings.settings import Settings
from models.errors import Invalid
from models.runtime import leases
from models.runtime.environment import World
from resolvers.admin import settings as admin_settings
from resolvers.admin import tasks
from resolvers.certificates import acme_worker
from resolvers.changes import stream_reader, wakeups
from resolvers.connectors import worker as connector_worker
from resolvers.domains import dkim_rotation
from resolvers.notifications import push_worker, webhook_worker

log = logging.getLogger("merganser")

PATIENCE = 25.0  # seconds that workers have to end

Before = Callable[[World], Awaitable[None]]
After = Callable[[], None]


async def serve(
    settings: Settings,
    *,
    before: Before | None = None,
    after: After | None = None,
    part: Part = ALONE,
) -> None:
    """Run everything, or a part, in this process until SIGINT or SIGTERM.

    `before` is done with the store ready and nothing listening, `after` once HTTP answers.
    """
    otlp.signals(settings)  # before anything is made
    ending = Ending(settings.drain.total_seconds(), starting=asyncio.current_task())
    loop = asyncio.get_running_loop()
    for which in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(which, ending.signalled, which)
    if part.parent is not None:
        loop.add_reader(part.parent, _orphaned, ending, part.parent)
    try:
        async with _house(settings, part, ending) as (world, guard):
            watching = _begun(guard.run(), ending)
            try:
                if before is not None:
                    await before(world)
                if part.listens:
                    await _open(settings, world, ending, after or part.up, part)
                else:
                    await _behind(settings, world, ending, part)
            finally:
                watching.cancel()
                await asyncio.wait([watching])
    except asyncio.CancelledError:
        if not ending.asked:
            raise
    if ending.broken is not None:
        raise Trouble("a worker ended by itself, so the server stopped: see its log")


async def prepare(settings: Settings, server: str) -> None:
    """Migrate the store, end what `server` held before, and see whether we may listen."""
    otlp.signals(settings)
    smtp_listeners.certificate(settings)
    async with opened(settings, migrate=True) as world:
        await leases.end_server(world, server)
        with reached(settings):
            await RestoreGuard(world).prepare()
        _route(world)
        await http_server.require_credential(world, settings)
        await smtp_listeners.required(settings, world)


def _orphaned(ending: Ending, parent: int) -> None:
    asyncio.get_running_loop().remove_reader(parent)
    log.error("the first process has ended, so this one ends too")
    ending.signalled(signal.SIGTERM)


@asynccontextmanager
async def _house(
    settings: Settings, part: Part, ending: Ending
) -> AsyncGenerator[tuple[World, RestoreGuard]]:
    """The world of a server, and what detects that its database was restored.

    The store is locked, migrated and compared with its mark; if there are several processes, the
    first one has migrated and compared it.
    """
    make_folder(settings)
    alone = part is ALONE
    async with AsyncExitStack() as stack:
        if alone or store_lock.lock_of(settings.store) is None:
            with reached(settings):
                await stack.enter_async_context(store_lock.serving(settings.store))
        world = await stack.enter_async_context(opened(settings, migrate=alone))
        process = world.process
        process.server = part.server or stack.enter_context(server_identity(settings.data))
        process.name = part.ship.name if part.ship else "alone"
        process.on_reserved = partial(ending.signalled, signal.SIGTERM)
        if alone:
            await leases.end_server(world, process.server)
        if store_lock.lock_of(settings.store) is not None:
            await leases.end_exclusive(world)  # the lock of the file proves it
        await stack.enter_async_context(used_by_server(world))
        guard = RestoreGuard(world, writes=part.works)
        if alone:
            with reached(settings):
                await guard.prepare()
        if part.works:
            stack.push_async_callback(guard.stop)
        yield world, guard


async def _behind(settings: Settings, world: World, ending: Ending, part: Part) -> None:
    """Work behind the requests that other processes answer, until told to stop."""
    route, spool = _route(world), settings.data / "spool" / "http"
    sockets.raise_open_file_limit()
    async with _exporting(settings, world, part), _workers(world, route, ending, spool, part):
        part.up()
        log.info("working")
        await asyncio.get_running_loop().create_future()


async def _open(
    settings: Settings, world: World, ending: Ending, after: After | None, part: Part
) -> None:
    """Listen and work until told to stop, then end in the reverse order."""
    route = _route(world)
    await http_server.require_credential(world, settings)
    spool = settings.data / "spool"
    sockets.raise_open_file_limit()
    app = create_app(
        world,
        spool=spool / "http",
        bootstrap=_told(settings.bootstrap_key),
        settings=http_server.endpoint(settings),
        readers=Readers(Access(settings.metrics), _told(settings.metrics_key)),
        checks=await readiness.checks(world, ending, spool / "http", part),
        processes=readiness.process_counts(part),
        compiled=settings.compiled_executor,
        fleet=part.ship,
        uploads=http_server.uploads(settings, part.many),
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_exporting(settings, world, part))
        stack.callback(os.close, await asyncio.to_thread(claim, spool / "http"))
        bound = part.http or sockets.bind_sockets(
            "HTTP", settings.http, patience=settings.write_timeout
        )
        for one in bound:
            stack.callback(one.close)
        await stack.enter_async_context(_workers(world, route, ending, spool / "http", part))
        lmtp = await _lmtp(settings, world, part)
        stack.push_async_callback(lmtp.close)
        await smtp_listeners.listen(settings, world, part, stack)
        await acme_http.listen(settings, world, part, stack)
        ending.web = http_server.web(app, settings, after)
        stack.push_async_callback(app.end)
        places = {name.lower(): place for name, place in sockets.listen_addresses(settings).items()}
        log.info("listening", extra=places)
        await ending.web.serve(sockets=list(bound))
        log.info("stopping")


def _exporting(settings: Settings, world: World, part: Part) -> AbstractAsyncContextManager[None]:
    return otlp.exporting(settings, world, part.ship.name if part.ship else None)


def _told(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _route(world: World) -> Route:
    try:
        return mx_hosts.route_of(world)
    except Invalid as problem:
        raise Trouble(f"MERGANSER_NEXT_HOP is wrong: {problem}", code=MISUSED) from problem


async def _lmtp(settings: Settings, world: World, part: Part) -> Lmtp:
    spool = settings.data / "spool" / "lmtp"
    if part.lmtp:
        lmtp = Lmtp(world, spool, share=part.many)
        for bound in part.lmtp:
            await lmtp.start(sock=bound)
        return lmtp
    host, port = sockets.split_host_port(settings.lmtp)
    try:
        return await listen(world, host, port, spool=spool)
    except OSError as problem:
        raise sockets.bind_failure("LMTP", settings.lmtp, problem) from problem


@asynccontextmanager
async def _workers(
    world: World, route: Route, ending: Ending, spool: Path, part: Part
) -> AsyncGenerator[None]:
    """All that goes on behind requests. One that breaks takes the server along.

    What must be in each process is what this process hears; the rest is done in one of several.
    """
    cancelled = [stream_reader.watch(world), wakeups.hear(world), admin_settings.follow(world)]
    if part.ship is not None:
        cancelled.append(part.ship.run())
    ended_by_event: list[Coroutine[None, None, None]] = []
    if part.works:
        ended_by_event += [
            outbound_worker.run(world, route, stop=ending.stop),
            housekeeping.run(world, ending.stop, spool),
        ]
        cancelled += [
            index_worker.run(world),
            snooze_worker.run(world),
            training_worker.run(world),
            tasks.run(world),
            webhook_worker.run(world, worded),
            push_worker.run(world, global_ids.encode),
            dkim_rotation.run(world),
            acme_worker.run(world),
            connector_worker.run(world),
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
