"""Start and stop a server process: listeners and workers.

A single process runs all of them. Of several processes each has a role
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

PATIENCE = 25.0  # seconds

Before = Callable[[World], Awaitable[None]]
After = Callable[[], None]


async def serve(
    settings: Settings,
    *,
    before: Before | None = None,
    after: After | None = None,
    part: Part = ALONE,
) -> None:
    """Run the server, or one role of it, in this process until SIGINT or SIGTERM.

    `before_listening` runs when the database is ready and no socket accepts connections yet,
    `after_start` when HTTP accepts requests. Raises CommandError if the server can't start or a
    worker fails.
    """
    otlp.signals(settings)  # raises before a file is created
    shutdown = Ending(settings.drain.total_seconds(), starting=asyncio.current_task())
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, shutdown.signalled, signal_number)
    if part.parent is not None:
        loop.add_reader(part.parent, _orphaned, shutdown, part.parent)
    try:
        async with _house(settings, part, shutdown) as (environment, guard):
            guard_task = _begun(guard.run(), shutdown)
            try:
                if before is not None:
                    await before(environment)
                if part.listens:
                    await _open(settings, environment, shutdown, after or part.up, part)
                else:
                    await _behind(settings, environment, shutdown, part)
            finally:
                guard_task.cancel()
                await asyncio.wait([guard_task])
    except asyncio.CancelledError:
        if not shutdown.asked:
            raise
    if shutdown.broken is not None:
        raise Trouble("a worker ended by itself, so the server stopped: see its log")


async def prepare(settings: Settings, server: str) -> None:
    """Migrate the database, free the leases of the server's former run, and check the settings.

    Raises CommandError if the settings don't allow the server to listen.
    """
    otlp.signals(settings)
    smtp_listeners.certificate(settings)
    async with opened(settings, migrate=True) as environment:
        await leases.end_server(environment, server)
        with reached(settings):
            await RestoreGuard(environment).prepare()
        _route(environment)
        await http_server.require_credential(environment, settings)
        await smtp_listeners.required(settings, environment)


def _orphaned(shutdown: Ending, parent: int) -> None:
    asyncio.get_running_loop().remove_reader(parent)
    log.error("the first process has ended, so this one ends too")
    shutdown.signalled(signal.SIGTERM)


@asynccontextmanager
async def _house(
    settings: Settings, part: Part, shutdown: Ending
) -> AsyncGenerator[tuple[World, RestoreGuard]]:
    """Open the environment of a server process, with the guard that detects a restored database.

    The database is locked, migrated and compared with its restore mark. Of several processes the
    first one has migrated and compared it before.
    """
    make_folder(settings)
    is_whole_server = part is ALONE
    async with AsyncExitStack() as stack:
        if is_whole_server or store_lock.lock_of(settings.store) is None:
            with reached(settings):
                await stack.enter_async_context(store_lock.serving(settings.store))
        environment = await stack.enter_async_context(opened(settings, migrate=is_whole_server))
        process = environment.process
        process.server = part.server or stack.enter_context(server_identity(settings.data))
        process.name = part.ship.name if part.ship else "alone"
        process.on_reserved = partial(shutdown.signalled, signal.SIGTERM)
        if is_whole_server:
            await leases.end_server(environment, process.server)
        if store_lock.lock_of(settings.store) is not None:
            await leases.end_exclusive(environment)  # the lock of the file proves it
        await stack.enter_async_context(used_by_server(environment))
        guard = RestoreGuard(environment, writes=part.works)
        if is_whole_server:
            with reached(settings):
                await guard.prepare()
        if part.works:
            stack.push_async_callback(guard.stop)
        yield environment, guard


async def _behind(settings: Settings, environment: World, shutdown: Ending, part: Part) -> None:
    """Run the workers until the process is cancelled, while other processes answer requests."""
    outbound, spool = _route(environment), settings.data / "spool" / "http"
    sockets.raise_open_file_limit()
    async with (
        _exporting(settings, environment, part),
        _workers(environment, outbound, shutdown, spool, part),
    ):
        part.up()
        log.info("working")
        await asyncio.get_running_loop().create_future()


async def _open(
    settings: Settings, environment: World, shutdown: Ending, after: After | None, part: Part
) -> None:
    """Run listeners and workers until shutdown, then close them in the reverse order."""
    outbound = _route(environment)
    await http_server.require_credential(environment, settings)
    spool = settings.data / "spool"
    sockets.raise_open_file_limit()
    app = create_app(
        environment,
        spool=spool / "http",
        bootstrap=_told(settings.bootstrap_key),
        settings=http_server.endpoint(settings),
        readers=Readers(Access(settings.metrics), _told(settings.metrics_key)),
        checks=await readiness.checks(environment, shutdown, spool / "http", part),
        processes=readiness.process_counts(part),
        compiled=settings.compiled_executor,
        fleet=part.ship,
        uploads=http_server.uploads(settings, part.many),
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_exporting(settings, environment, part))
        stack.callback(os.close, await asyncio.to_thread(claim, spool / "http"))
        bound = part.http or sockets.bind_sockets(
            "HTTP", settings.http, patience=settings.write_timeout
        )
        for http_socket in bound:
            stack.callback(http_socket.close)
        await stack.enter_async_context(
            _workers(environment, outbound, shutdown, spool / "http", part)
        )
        lmtp = await _lmtp(settings, environment, part)
        stack.push_async_callback(lmtp.close)
        await smtp_listeners.listen(settings, environment, part, stack)
        await acme_http.listen(settings, environment, part, stack)
        shutdown.web = http_server.web(app, settings, after)
        stack.push_async_callback(app.end)
        addresses = {
            name.lower(): place for name, place in sockets.listen_addresses(settings).items()
        }
        log.info("listening", extra=addresses)
        await shutdown.web.serve(sockets=list(bound))
        log.info("stopping")


def _exporting(
    settings: Settings, environment: World, part: Part
) -> AbstractAsyncContextManager[None]:
    return otlp.exporting(settings, environment, part.ship.name if part.ship else None)


def _told(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _route(environment: World) -> Route:
    try:
        return mx_hosts.route_of(environment)
    except Invalid as problem:
        raise Trouble(f"MERGANSER_NEXT_HOP is wrong: {problem}", code=MISUSED) from problem


async def _lmtp(settings: Settings, environment: World, part: Part) -> Lmtp:
    spool = settings.data / "spool" / "lmtp"
    if part.lmtp:
        lmtp = Lmtp(environment, spool, share=part.many)
        for bound in part.lmtp:
            await lmtp.start(sock=bound)
        return lmtp
    host, port = sockets.split_host_port(settings.lmtp)
    try:
        return await listen(environment, host, port, spool=spool)
    except OSError as problem:
        raise sockets.bind_failure("LMTP", settings.lmtp, problem) from problem


@asynccontextmanager
async def _workers(
    environment: World, outbound: Route, shutdown: Ending, spool: Path, part: Part
) -> AsyncGenerator[None]:
    """Run the workers, and stop them at the end. If one fails, the server stops.

    Each process follows events; only one of several processes runs the other workers.
    """
    cancellable = [
        stream_reader.watch(environment),
        wakeups.hear(environment),
        admin_settings.follow(environment),
    ]
    if part.ship is not None:
        cancellable.append(part.ship.run())
    stoppable: list[Coroutine[None, None, None]] = []
    if part.works:
        stoppable += [
            outbound_worker.run(environment, outbound, stop=shutdown.stop),
            housekeeping.run(environment, shutdown.stop, spool),
        ]
        cancellable += [
            index_worker.run(environment),
            snooze_worker.run(environment),
            training_worker.run(environment),
            tasks.run(environment),
            webhook_worker.run(environment, worded),
            push_worker.run(environment, global_ids.encode),
            dkim_rotation.run(environment),
            acme_worker.run(environment),
            connector_worker.run(environment),
        ]
    asked = [_begun(work, shutdown) for work in stoppable]
    running = [_begun(work, shutdown) for work in cancellable]
    shutdown.workers = [*asked, *running]
    try:
        yield
    finally:
        shutdown.stop.set()
        for task in running:
            task.cancel()
        _, late_tasks = await asyncio.wait([*asked, *running], timeout=PATIENCE)
        for task in late_tasks:
            task.cancel()
        await asyncio.gather(*late_tasks, return_exceptions=True)


def _begun(work: Coroutine[None, None, None], shutdown: Ending) -> asyncio.Task[None]:
    task = asyncio.create_task(work)

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled() or (task.exception() is None and shutdown.stop.is_set()):
            return
        shutdown.broken = task.exception() or RuntimeError("it returned")
        log.error("a worker ended by itself", exc_info=shutdown.broken)
        if shutdown.web is not None:
            shutdown.web.should_exit = True
        elif shutdown.starting is not None:
            shutdown.starting.cancel()

    task.add_done_callback(ended)
    return task
