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
from graph.http.metrics import MetricsAccess, MetricsReaders
from graph.notifications.webhooks import delivery_body
from graph.types import global_ids
from mail.maintenance import housekeeping, snooze_worker
from mail.maintenance.restore_mark import RestoreGuard
from mail.outbound import worker as outbound_worker
from mail.routing import mx_hosts
from mail.routing.mx_hosts import OutboundSettings
from mail.scanners import training_worker
from mail.search import index_worker
from mail.smtp.lmtp import LmtpListener, start_lmtp_listener
from mail.smtp.spool_file import lock_and_clean_spool_folder
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server import acme_http, http_server, readiness, smtp_listeners, sockets
from merganser.server.environment_factory import (
    create_data_folders,
    database_errors_as_command_errors,
    open_environment,
)
from merganser.server.observability import otlp
from merganser.server.processes.process_roles import WHOLE_SERVER, ProcessRole
from merganser.server.server_identity import hold_server_id
from merganser.server.shutdown import GracefulShutdown
from merganser.server.store import store_lock
from merganser.server.store.store_use import use_beside_servers
from merganser.settings.settings import Settings
from models.errors import InvalidInput
from models.runtime import leases
from models.runtime.environment import Environment
from resolvers.admin import settings as admin_settings
from resolvers.admin import tasks
from resolvers.certificates import acme_worker
from resolvers.changes import stream_reader, wakeups
from resolvers.connectors import worker as connector_worker
from resolvers.domains import dkim_rotation
from resolvers.notifications import push_worker, webhook_worker

log = logging.getLogger("merganser")

WORKER_STOP_TIMEOUT = 25.0  # seconds

BeforeListening = Callable[[Environment], Awaitable[None]]
AfterStart = Callable[[], None]


async def serve(
    settings: Settings,
    *,
    before_listening: BeforeListening | None = None,
    after_start: AfterStart | None = None,
    process_role: ProcessRole = WHOLE_SERVER,
) -> None:
    """Run the server, or one role of it, in this process until SIGINT or SIGTERM.

    `before_listening` runs when the database is ready and no socket accepts connections yet,
    `after_start` when HTTP accepts requests. Raises CommandError if the server can't start or a
    worker fails.
    """
    otlp.enabled_signals(settings)  # raises before a file is created
    shutdown = GracefulShutdown(
        settings.shutdown_drain.total_seconds(), start_task=asyncio.current_task()
    )
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, shutdown.handle_signal, signal_number)
    if process_role.parent_pipe is not None:
        loop.add_reader(
            process_role.parent_pipe, _stop_after_parent_ended, shutdown, process_role.parent_pipe
        )
    try:
        async with _open_server_environment(settings, process_role, shutdown) as (
            environment,
            guard,
        ):
            guard_task = _start_worker(guard.check_until_cancelled(), shutdown)
            try:
                if before_listening is not None:
                    await before_listening(environment)
                if process_role.accepts_connections:
                    await _run_listeners(
                        settings,
                        environment,
                        shutdown,
                        after_start or process_role.mark_up,
                        process_role,
                    )
                else:
                    await _run_background(settings, environment, shutdown, process_role)
            finally:
                guard_task.cancel()
                await asyncio.wait([guard_task])
    except asyncio.CancelledError:
        if not shutdown.is_requested:
            raise
    if shutdown.worker_error is not None:
        raise CommandError("a worker ended by itself, so the server stopped: see its log")


async def prepare_database(settings: Settings, server_id: str) -> None:
    """Migrate the database, free the leases of the server's former run, and check the settings.

    Raises CommandError if the settings don't allow the server to listen.
    """
    otlp.enabled_signals(settings)
    smtp_listeners.load_certificate_files(settings)
    async with open_environment(settings, migrate=True) as environment:
        await leases.delete_server_registrations(environment, server_id)
        with database_errors_as_command_errors(settings):
            await RestoreGuard(environment).try_compare_with_mark()
        _outbound_settings(environment)
        await http_server.check_credential_exists(environment, settings)
        await smtp_listeners.check_certificate_available(settings, environment)


def _stop_after_parent_ended(shutdown: GracefulShutdown, parent: int) -> None:
    asyncio.get_running_loop().remove_reader(parent)
    log.error("the first process has ended, so this one ends too")
    shutdown.handle_signal(signal.SIGTERM)


@asynccontextmanager
async def _open_server_environment(
    settings: Settings, part: ProcessRole, shutdown: GracefulShutdown
) -> AsyncGenerator[tuple[Environment, RestoreGuard]]:
    """Open the environment of a server process, with the guard that detects a restored database.

    The database is locked, migrated and compared with its restore mark. Of several processes the
    first one has migrated and compared it before.
    """
    create_data_folders(settings)
    is_whole_server = part is WHOLE_SERVER
    async with AsyncExitStack() as stack:
        if is_whole_server or store_lock.sqlite_lock_path(settings.database_url) is None:
            with database_errors_as_command_errors(settings):
                await stack.enter_async_context(store_lock.lock_as_server(settings.database_url))
        environment = await stack.enter_async_context(
            open_environment(settings, migrate=is_whole_server)
        )
        process = environment.process
        process.server_id = part.server_id or stack.enter_context(hold_server_id(settings.data))
        process.name = part.fleet_metrics.name if part.fleet_metrics else "alone"
        process.on_reserved = partial(shutdown.handle_signal, signal.SIGTERM)
        if is_whole_server:
            await leases.delete_server_registrations(environment, process.server_id)
        if store_lock.sqlite_lock_path(settings.database_url) is not None:
            await leases.delete_exclusive_registrations(
                environment
            )  # the lock of the file proves it
        await stack.enter_async_context(use_beside_servers(environment))
        guard = RestoreGuard(environment, writes_marks=part.runs_workers)
        if is_whole_server:
            with database_errors_as_command_errors(settings):
                await guard.try_compare_with_mark()
        if part.runs_workers:
            stack.push_async_callback(guard.write_clean_stop_mark)
        yield environment, guard


async def _run_background(
    settings: Settings, environment: Environment, shutdown: GracefulShutdown, part: ProcessRole
) -> None:
    """Run the workers until the process is cancelled, while other processes answer requests."""
    outbound, spool = _outbound_settings(environment), settings.data / "spool" / "http"
    sockets.raise_open_file_limit()
    async with (
        _telemetry_export(settings, environment, part),
        _running_workers(environment, outbound, shutdown, spool, part),
    ):
        part.mark_up()
        log.info("working")
        await asyncio.get_running_loop().create_future()


async def _run_listeners(
    settings: Settings,
    environment: Environment,
    shutdown: GracefulShutdown,
    after: AfterStart | None,
    part: ProcessRole,
) -> None:
    """Run listeners and workers until shutdown, then close them in the reverse order."""
    outbound = _outbound_settings(environment)
    await http_server.check_credential_exists(environment, settings)
    spool = settings.data / "spool"
    sockets.raise_open_file_limit()
    app = create_app(
        environment,
        spool_folder=spool / "http",
        bootstrap_key=_secret_text(settings.bootstrap_key),
        settings=http_server.graphql_endpoint_settings(settings),
        metrics_readers=MetricsReaders(
            MetricsAccess(settings.metrics_access), _secret_text(settings.metrics_key)
        ),
        checks=await readiness.readiness_checks(environment, shutdown, spool / "http", part),
        process_counts=readiness.process_counter(part),
        is_compiled=settings.compiled_executor,
        process_metrics=part.fleet_metrics,
        upload_limits=http_server.upload_limits_of_process(settings, part.listening_process_count),
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_telemetry_export(settings, environment, part))
        stack.callback(
            os.close, await asyncio.to_thread(lock_and_clean_spool_folder, spool / "http")
        )
        bound_sockets = part.http_sockets or sockets.bind_sockets(
            "HTTP", settings.http_listen, unread_timeout=settings.http_write_timeout
        )
        for http_socket in bound_sockets:
            stack.callback(http_socket.close)
        await stack.enter_async_context(
            _running_workers(environment, outbound, shutdown, spool / "http", part)
        )
        lmtp = await _start_lmtp(settings, environment, part)
        stack.push_async_callback(lmtp.close)
        await smtp_listeners.start_listeners(settings, environment, part, stack)
        await acme_http.start_listeners(settings, environment, part, stack)
        shutdown.http_server = http_server.create_http_server(app, settings, after)
        stack.push_async_callback(app.end_subscriptions)
        addresses = {
            name.lower(): address for name, address in sockets.listen_addresses(settings).items()
        }
        log.info("listening", extra=addresses)
        await shutdown.http_server.serve(sockets=list(bound_sockets))
        log.info("stopping")


def _telemetry_export(
    settings: Settings, environment: Environment, part: ProcessRole
) -> AbstractAsyncContextManager[None]:
    return otlp.export_telemetry(
        settings, environment, part.fleet_metrics.name if part.fleet_metrics else None
    )


def _secret_text(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _outbound_settings(environment: Environment) -> OutboundSettings:
    try:
        return mx_hosts.outbound_settings_from_options(environment)
    except InvalidInput as problem:
        raise CommandError(
            f"MERGANSER_NEXT_HOP is wrong: {problem}", exit_code=EXIT_USAGE
        ) from problem


async def _start_lmtp(
    settings: Settings, environment: Environment, part: ProcessRole
) -> LmtpListener:
    spool = settings.data / "spool" / "lmtp"
    if part.lmtp_sockets:
        lmtp = LmtpListener(environment, spool, process_count=part.listening_process_count)
        for bound_socket in part.lmtp_sockets:
            await lmtp.start(sock=bound_socket)
        return lmtp
    host, port = sockets.split_host_port(settings.lmtp_listen)
    try:
        return await start_lmtp_listener(environment, host, port, spool_folder=spool)
    except OSError as problem:
        raise sockets.bind_failure("LMTP", settings.lmtp_listen, problem) from problem


@asynccontextmanager
async def _running_workers(
    environment: Environment,
    outbound: OutboundSettings,
    shutdown: GracefulShutdown,
    spool: Path,
    part: ProcessRole,
) -> AsyncGenerator[None]:
    """Run the workers, and stop them at the end. If one fails, the server stops.

    Each process follows events; only one of several processes runs the other workers.
    """
    cancellable = [
        stream_reader.poll_followed_streams(environment),
        wakeups.receive_wakeups(environment),
        admin_settings.follow_stored_settings(environment),
    ]
    if part.fleet_metrics is not None:
        cancellable.append(part.fleet_metrics.run())
    stoppable: list[Coroutine[None, None, None]] = []
    if part.runs_workers:
        stoppable += [
            outbound_worker.run_until_stopped(environment, outbound, stop=shutdown.stop_event),
            housekeeping.run_until_stopped(environment, shutdown.stop_event, spool),
        ]
        cancellable += [
            index_worker.run(environment),
            snooze_worker.run_forever(environment),
            training_worker.run_worker(environment),
            tasks.run_worker(environment),
            webhook_worker.run_worker(environment, delivery_body),
            push_worker.run_worker(environment, global_ids.encode),
            dkim_rotation.run_worker(environment),
            acme_worker.run_worker(environment),
            connector_worker.run_worker(environment),
        ]
    stoppable_tasks = [_start_worker(worker, shutdown) for worker in stoppable]
    cancellable_tasks = [_start_worker(worker, shutdown) for worker in cancellable]
    shutdown.worker_tasks = [*stoppable_tasks, *cancellable_tasks]
    try:
        yield
    finally:
        shutdown.stop_event.set()
        for task in cancellable_tasks:
            task.cancel()
        _, late_tasks = await asyncio.wait(
            [*stoppable_tasks, *cancellable_tasks], timeout=WORKER_STOP_TIMEOUT
        )
        for task in late_tasks:
            task.cancel()
        await asyncio.gather(*late_tasks, return_exceptions=True)


def _start_worker(
    coroutine: Coroutine[None, None, None], shutdown: GracefulShutdown
) -> asyncio.Task[None]:
    task = asyncio.create_task(coroutine)

    def stop_server_unless_expected(task: asyncio.Task[None]) -> None:
        if task.cancelled() or (task.exception() is None and shutdown.stop_event.is_set()):
            return
        shutdown.worker_error = task.exception() or RuntimeError("it returned")
        log.error("a worker ended by itself", exc_info=shutdown.worker_error)
        if shutdown.http_server is not None:
            shutdown.http_server.should_exit = True
        elif shutdown.start_task is not None:
            shutdown.start_task.cancel()

    task.add_done_callback(stop_server_unless_expected)
    return task
