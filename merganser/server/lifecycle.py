"""Start and stop a server process: listeners and workers.

A single process runs all of them. Of several processes each has a role
(merganser/server/processes/process_supervisor.py).
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import chain

from pydantic import SecretStr

from graph.app import GraphqlApp, create_app
from graph.http.health import HealthCheck
from graph.http.metrics import MetricsAccess, MetricsReaders
from mail.maintenance.restore_mark import RestoreGuard
from mail.outbound import accepted_results
from mail.routing import mx_hosts
from mail.routing.mx_hosts import OutboundSettings
from mail.smtp.spool_file import lock_and_clean_spool_folder
from merganser.bundled_folders import bundled_folder
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server import (
    acme_http,
    http_server,
    node_registration,
    readiness,
    smtp_listeners,
    sockets,
)
from merganser.server.components.listener_component import (
    FixedListenerComponent,
    add_disabled_listeners,
    running_listeners,
)
from merganser.server.components.workers import running_workers
from merganser.server.config_reload import ConfigReloader
from merganser.server.environment_factory import (
    create_data_folders,
    database_errors_as_command_errors,
    open_environment,
)
from merganser.server.observability import otlp
from merganser.server.observability.health_entries import record_health_until_cancelled
from merganser.server.observability.log_store import record_logs_in_log_store
from merganser.server.process_memory import freeze_loaded_objects, limit_malloc_arenas
from merganser.server.processes.process_roles import WHOLE_SERVER, ProcessRole
from merganser.server.server_identity import hold_server_id
from merganser.server.service_notifier import ServiceNotifier, notifier_from_environment
from merganser.server.shutdown import GracefulShutdown
from merganser.server.store import store_lock
from merganser.server.store.spare_file import keep_spare_file_until_cancelled
from merganser.server.store.store_use import register_process_beside_servers
from merganser.settings.settings import Settings
from models.errors import InvalidInput
from models.observability.event_loop_delay import measure_event_loop_delay_until_cancelled
from models.runtime import leases
from models.runtime.components import HTTP, LISTENER_NAMES
from models.runtime.environment import Environment
from models.store.outages import skip_if_disk_full
from resolvers.auth.credential_cache import cache_of_database
from resolvers.cache.request_kinds import CACHE_REQUEST_KINDS
from resolvers.cluster import process_requests
from resolvers.cluster.session_requests import CLUSTER_REQUEST_KINDS
from resolvers.health.prober import stop_probing
from resolvers.health.request_kinds import HEALTH_REQUEST_KINDS
from resolvers.health.server_control import reload_config_of_server_or_log_error
from resolvers.metrics.request_kinds import METRICS_REQUEST_KINDS
from resolvers.metrics.worker import write_statistics_until_cancelled
from resolvers.sessions.request_kinds import SESSION_REQUEST_KINDS
from resolvers.users.quota.default_quota import recount_allocated_quotas_if_default_changed

log = logging.getLogger("merganser")

PROCESS_REQUEST_KINDS = (
    *SESSION_REQUEST_KINDS,
    *METRICS_REQUEST_KINDS,
    *HEALTH_REQUEST_KINDS,
    *CLUSTER_REQUEST_KINDS,
    *CACHE_REQUEST_KINDS,
)

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
    otlp.exportable_signals_or_fail_command(settings)  # raises before a file is created
    limit_malloc_arenas()
    shutdown = GracefulShutdown(
        settings.shutdown_drain.total_seconds(),
        start_task=asyncio.current_task(),
        notifier=_service_notifier(process_role),
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, log.info, "Not started yet; settings are read once")
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, shutdown.begin_stop_or_skip_drain, signal_number)
    if process_role.parent_pipe is not None:
        loop.add_reader(
            process_role.parent_pipe, _stop_after_parent_ended, shutdown, process_role.parent_pipe
        )
    try:
        async with (
            _lock_migrate_and_open_server_environment(settings, process_role, shutdown) as (
                environment,
                guard,
            ),
            _watch_store_and_event_loop(guard, shutdown, process_role),
        ):
            if before_listening is not None:
                await before_listening(environment)
            if process_role.accepts_connections:
                await _run_listeners_and_workers_until_shutdown(
                    settings,
                    environment,
                    shutdown,
                    partial(_report_start, after_start or process_role.mark_up, shutdown.notifier),
                    process_role,
                )
            else:
                await _run_background_workers_until_cancelled(
                    settings, environment, shutdown, process_role
                )
    except asyncio.CancelledError:
        if not shutdown.is_requested:
            raise
    if shutdown.worker_error is not None:
        raise CommandError("A worker ended unexpectedly, and the server stopped: see its log.")


@asynccontextmanager
async def _watch_store_and_event_loop(
    guard: RestoreGuard, shutdown: GracefulShutdown, process_role: ProcessRole
) -> AsyncGenerator[None]:
    """Detect a restored database, and a delayed event loop, until the end of the block."""
    guarding = guard.check_and_write_marks_until_cancelled()
    measuring = measure_event_loop_delay_until_cancelled(process_role.record_heartbeat)
    async with (
        _run_in_background_or_stop_server(guarding, shutdown),
        _run_in_background_or_stop_server(measuring, shutdown),
        shutdown.notifier.watchdog_of_event_loop(),
    ):
        yield


def _service_notifier(process_role: ProcessRole) -> ServiceNotifier:
    """The notifier of this process. Of several processes, only the first one notifies systemd."""
    return notifier_from_environment() if process_role is WHOLE_SERVER else ServiceNotifier()


def _report_start(after_start: AfterStart, notifier: ServiceNotifier) -> None:
    after_start()
    notifier.notify_ready()


async def migrate_free_old_leases_and_check_settings(settings: Settings, server_id: str) -> None:
    """Migrate the database, free the leases of the server's former run, and check the settings.

    Raises CommandError if the settings don't allow the server to listen.
    """
    otlp.exportable_signals_or_fail_command(settings)
    smtp_listeners.load_certificate_files(settings)
    async with open_environment(settings, migrate=True) as environment:
        with skip_if_disk_full():  # heartbeats end the leases later
            await _record_accepted_results(environment, settings)
            await leases.delete_server_registrations_and_free_leases(environment, server_id)
        environment.process.server_id = server_id
        with database_errors_as_command_errors(settings):
            await RestoreGuard(environment).try_begin_incarnation_if_restored()
            await recount_allocated_quotas_if_default_changed(environment)
        _outbound_settings_or_fail_command(environment)
        await http_server.require_credential_if_reachable(environment, settings)
        await smtp_listeners.require_certificate_for_submission(settings, environment)
        await node_registration.register_server(
            environment, node_registration.node_address(settings)
        )


def _stop_after_parent_ended(shutdown: GracefulShutdown, parent: int) -> None:
    asyncio.get_running_loop().remove_reader(parent)
    log.error("The first process has ended; stopping")
    shutdown.begin_stop_or_skip_drain(signal.SIGTERM)


@asynccontextmanager
async def _lock_migrate_and_open_server_environment(
    settings: Settings, process_role: ProcessRole, shutdown: GracefulShutdown
) -> AsyncGenerator[tuple[Environment, RestoreGuard]]:
    """Open the environment of a server process, with the guard that detects a restored database.

    The database is locked, migrated and compared with its restore mark. Of several processes the
    first one has migrated and compared it before.
    """
    create_data_folders(settings)
    is_whole_server = process_role is WHOLE_SERVER
    async with AsyncExitStack() as stack:
        if is_whole_server or store_lock.sqlite_lock_path(settings.database_url) is None:
            with database_errors_as_command_errors(settings):
                await stack.enter_async_context(store_lock.lock_as_server(settings.database_url))
        environment = await stack.enter_async_context(
            open_environment(settings, migrate=is_whole_server)
        )
        stack.push_async_callback(stop_probing, environment)
        process = environment.process
        process.server_id = process_role.server_id or stack.enter_context(
            hold_server_id(settings.data)
        )
        process.name = process_role.fleet_metrics.name if process_role.fleet_metrics else "alone"
        process.answers_requests = True
        stack.enter_context(record_logs_in_log_store(environment))
        _set_server_control_and_sighup_handler(settings, environment, shutdown, process_role)
        process.on_reserved = partial(shutdown.begin_stop_or_skip_drain, signal.SIGTERM)
        with skip_if_disk_full():  # heartbeats end the leases later
            if process_role.runs_workers:
                await _record_accepted_results(environment, settings)
            if is_whole_server:
                await leases.delete_server_registrations_and_free_leases(
                    environment, process.server_id
                )
            if store_lock.sqlite_lock_path(settings.database_url) is not None:
                # the lock of the file proves it
                await leases.delete_exclusive_registrations(environment)
        responder = await stack.enter_async_context(AsyncExitStack())  # outlives the registration
        await stack.enter_async_context(register_process_beside_servers(environment))
        await responder.enter_async_context(
            _answer_process_requests_during_block(environment, shutdown)
        )
        writing = write_statistics_until_cancelled(environment)
        await stack.enter_async_context(_run_in_background_or_stop_server(writing, shutdown))
        guard = RestoreGuard(environment, writes_marks=process_role.runs_workers)
        if is_whole_server:
            with database_errors_as_command_errors(settings):
                await guard.try_begin_incarnation_if_restored()
                await recount_allocated_quotas_if_default_changed(environment)
        if process_role.runs_workers:
            keeping = keep_spare_file_until_cancelled(settings)
            await stack.enter_async_context(_run_in_background_or_stop_server(keeping, shutdown))
            stack.push_async_callback(guard.write_clean_stop_mark)
        yield environment, guard


async def _record_accepted_results(environment: Environment, settings: Settings) -> None:
    """Record the results that a killed queue worker of this server has left."""
    path = settings.data / accepted_results.FILE_NAME
    await accepted_results.record_accepted_results(environment, path)


def _set_server_control_and_sighup_handler(
    settings: Settings,
    environment: Environment,
    shutdown: GracefulShutdown,
    process_role: ProcessRole,
) -> None:
    """Let operations of this process stop its server and read its settings again."""

    def stop_server_or_skip_drain() -> None:
        if process_role.parent_pipe is None:
            shutdown.begin_stop_or_skip_drain(signal.SIGTERM)
        else:
            os.kill(os.getppid(), signal.SIGTERM)

    def stop_server(grace_seconds: float) -> None:
        stop_server_or_skip_drain()
        if grace_seconds < shutdown.drain_seconds:
            loop.call_later(grace_seconds, stop_server_or_skip_drain)

    def reload_config_in_background() -> None:
        cache_of_database(environment.database).run_in_background(
            reload_config_of_server_or_log_error(environment)
        )

    loop = asyncio.get_running_loop()
    reloader = ConfigReloader(settings, environment, process_role.listening_process_count)
    control = environment.server_control
    control.stop_server = stop_server
    control.check_config, control.reload_config = reloader.check, reloader.reload
    control.folders["spool"] = settings.data / "spool"
    loop.add_signal_handler(signal.SIGHUP, reload_config_in_background)


@asynccontextmanager
async def _answer_process_requests_during_block(
    environment: Environment, shutdown: GracefulShutdown
) -> AsyncGenerator[None]:
    """Answer the requests of other processes in the background, until the end of the block."""
    has_looked = asyncio.Event()
    answering = process_requests.answer_requests_until_cancelled(
        environment, PROCESS_REQUEST_KINDS, has_looked
    )
    async with _run_in_background_or_stop_server(answering, shutdown):
        await has_looked.wait()
        yield


async def _run_background_workers_until_cancelled(
    settings: Settings,
    environment: Environment,
    shutdown: GracefulShutdown,
    process_role: ProcessRole,
) -> None:
    """Run the workers until the process is cancelled, while other processes answer requests."""
    outbound = _outbound_settings_or_fail_command(environment)
    spool = settings.data / "spool" / "http"
    sockets.raise_open_file_limit()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_telemetry_export(settings, environment, process_role))
        await node_registration.register_node_and_apply_its_state(
            environment, settings, process_role, (), stack
        )
        await stack.enter_async_context(
            running_workers(environment, outbound, shutdown, spool, process_role)
        )
        freeze_loaded_objects()
        process_role.mark_up()
        log.info("Background process started")
        await asyncio.get_running_loop().create_future()


async def _run_listeners_and_workers_until_shutdown(
    settings: Settings,
    environment: Environment,
    shutdown: GracefulShutdown,
    after: AfterStart | None,
    process_role: ProcessRole,
) -> None:
    """Run listeners and workers until shutdown, then close them in the reverse order."""
    outbound = _outbound_settings_or_fail_command(environment)
    await http_server.require_credential_if_reachable(environment, settings)
    spool = settings.data / "spool"
    sockets.raise_open_file_limit()
    health_checks = await readiness.readiness_checks(
        environment, shutdown, spool / "http", process_role
    )
    app = _create_http_app(settings, environment, health_checks, process_role)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_telemetry_export(settings, environment, process_role))
        stack.callback(
            os.close, await asyncio.to_thread(lock_and_clean_spool_folder, spool / "http")
        )
        bound_sockets = process_role.http_sockets or sockets.open_listening_sockets(
            "HTTP", settings.http_listen, unread_timeout=settings.http_write_timeout
        )
        for http_socket in bound_sockets:
            stack.callback(http_socket.close)
        await node_registration.register_node_and_apply_its_state(
            environment, settings, process_role, bound_sockets, stack
        )
        await stack.enter_async_context(
            running_workers(environment, outbound, shutdown, spool / "http", process_role)
        )
        http = FixedListenerComponent(HTTP, environment.now, address=settings.http_listen)
        environment.components.add(http)
        await http.start()
        arguments = settings, environment, process_role
        definitions = chain(
            [smtp_listeners.open_and_define_lmtp_listener(*arguments)],
            await smtp_listeners.load_certificates_and_define_listeners(*arguments, stack),
            acme_http.open_and_define_acme_listener(*arguments),
        )
        await stack.enter_async_context(running_listeners(environment, definitions))
        add_disabled_listeners(environment.components, LISTENER_NAMES, environment.now)
        if process_role.process_index == 0:  # one process of a server is enough
            recording = record_health_until_cancelled(environment, health_checks)
            await stack.enter_async_context(_run_in_background_or_stop_server(recording, shutdown))
        shutdown.http_server = http_server.create_http_server(app, settings, after)
        stack.push_async_callback(app.end_subscriptions)
        addresses = {
            name.lower(): address for name, address in sockets.listen_addresses(settings).items()
        }
        log.info("Listening", extra=addresses)
        await shutdown.http_server.serve(sockets=list(bound_sockets))
        log.info("Stopping")


def _create_http_app(
    settings: Settings,
    environment: Environment,
    health_checks: Mapping[str, HealthCheck],
    process_role: ProcessRole,
) -> GraphqlApp:
    return create_app(
        environment,
        spool_folder=settings.data / "spool" / "http",
        bootstrap_key=_secret_text(settings.bootstrap_key),
        settings=http_server.graphql_endpoint_settings(settings),
        metrics_readers=MetricsReaders(
            MetricsAccess(settings.metrics_access), _secret_text(settings.metrics_key)
        ),
        checks=health_checks,
        process_counts=readiness.process_counter(process_role),
        is_compiled=settings.compiled_executor,
        row_cache_size=settings.row_cache_size,
        process_metrics=process_role.fleet_metrics,
        upload_limits=http_server.upload_limits_of_process(
            settings, process_role.listening_process_count
        ),
        documentation_folder=bundled_folder("docs"),
    )


def _telemetry_export(
    settings: Settings, environment: Environment, part: ProcessRole
) -> AbstractAsyncContextManager[None]:
    return otlp.export_telemetry(
        settings, environment, part.fleet_metrics.name if part.fleet_metrics else None
    )


def _secret_text(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _outbound_settings_or_fail_command(environment: Environment) -> OutboundSettings:
    try:
        return mx_hosts.outbound_settings_from_options(environment)
    except InvalidInput as problem:
        raise CommandError(
            f"MERGANSER_NEXT_HOP is wrong: {problem}", exit_code=EXIT_USAGE
        ) from problem


@asynccontextmanager
async def _run_in_background_or_stop_server(
    coroutine: Coroutine[None, None, None], shutdown: GracefulShutdown
) -> AsyncGenerator[None]:
    """Run a coroutine until the end of the block, and cancel it there.

    If it ends before, by an error or not, the server stops.
    """
    task = asyncio.create_task(coroutine)

    def stop_server_unless_cancelled(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            problem = task.exception() or RuntimeError("the worker returned")
            shutdown.stop_after_worker_error(problem)

    task.add_done_callback(stop_server_unless_cancelled)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
