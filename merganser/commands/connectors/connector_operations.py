"""List, check and run connectors for the command line."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from graph.types.global_ids import decode, encode
from mail.connectors.remote_server import ConnectorStage
from mail.network.outbound_http import NetworkPolicy
from merganser.commands.users import user_operations
from merganser.errors import CommandError
from merganser.server.environment_factory import root_context
from merganser.server.store.store_use import register_process_beside_servers
from models.admin.tasks import TaskState
from models.connectors import Connector
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import MAX_PAGE_SIZE, PageRequest
from models.users.tables import User
from resolvers.connectors import check
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.check import ConnectorTestResult
from resolvers.connectors.loaders import ConnectorOrder, ConnectorWhere
from resolvers.users.selection import UserSelector

POLL_INTERVAL = 0.2  # seconds
LIST_HINT = "`merganser connector list` lists all connectors."

ShowProgress = Callable[[ColumnRow], None]


@dataclass(frozen=True, slots=True)
class ConnectorChoice:
    """A connector that was given on the command line."""

    connector_id: int
    name: str

    @property
    def global_id(self) -> str:
        """The global ID of GraphQL."""
        return encode("Connector", self.connector_id)


@dataclass
class InterruptHandler:
    """Whether Ctrl-C was pressed, with the callback that confirms it to the operator."""

    on_interrupt: Callable[[], None]
    is_interrupted: bool = False
    main_task: "asyncio.Task[Any] | None" = None

    def request_stop_then_cancel(self) -> None:
        """Request a stop at the next safe point. A second interrupt cancels at once."""
        if not self.is_interrupted:
            self.is_interrupted = True
            self.on_interrupt()
        elif self.main_task is not None:
            self.main_task.cancel()


@dataclass(frozen=True, slots=True)
class ConnectorRunOrder:
    """The connectors to run, and the callbacks that show their progress."""

    connectors: Sequence[ConnectorChoice]
    is_dry_run: bool
    # returns a function that takes the run's row
    start_progress: Callable[[ConnectorChoice, ColumnRow], ShowProgress]
    interrupts: InterruptHandler


async def find_connector_or_fail_command(
    environment: Environment, id_or_name: str
) -> ConnectorChoice:
    """Find a connector by global ID or name. Raises CommandError unless exactly one matches."""
    statement = select(*select_columns(Connector, {"id", "name"})).where(
        col(Connector.is_one_time).is_(False)
    )
    try:
        condition = col(Connector.id) == decode("Connector", id_or_name)
    except InvalidInput:
        condition = col(Connector.name) == id_or_name
    rows = await environment.database.read(statement.where(condition))
    if not rows:
        raise CommandError(f"Connector not found: {id_or_name}. {LIST_HINT}")
    if len(rows) > 1:
        raise CommandError(
            f"{len(rows)} connectors have the name {id_or_name}: use the ID. {LIST_HINT}"
        )
    return ConnectorChoice(rows[0].id, rows[0].name)


async def load_connectors_as_json(
    environment: Environment, username_or_address: str | None, *, is_failing: bool | None = None
) -> list[dict[str, Any]]:
    """Load the connectors ordered by user, as JSON values.

    Raises CommandError if there is no such user.
    """
    users = (
        None
        if username_or_address is None
        else UserSelector(
            ids=(
                await user_operations.find_user_id_or_fail_command(
                    environment, username_or_address
                ),
            )
        )
    )
    ctx, cursor, rows = root_context(environment), None, list[Any]()
    conditions = ConnectorWhere(users, None, is_failing)
    list_order = connector_loaders.LIST_ORDERS[ConnectorOrder.USER_ASC]
    while True:
        page_request = PageRequest("connectors", MAX_PAGE_SIZE, cursor)
        page = await connector_loaders.read_visible_connector_page(
            ctx, conditions, page_request, connector_loaders.VISIBLE_COLUMNS
        )
        rows += page.rows
        if not page.has_next:
            break
        cursor = list_order.cursor_of_row(rows[-1], page_request.ordering)
    names = await _load_usernames_of_connectors(environment)
    return [_connector_as_json(row, names.get(row.user_id)) for row in rows]


async def _load_usernames_of_connectors(environment: Environment) -> dict[int, str]:
    user_ids = select(col(Connector.user_id))
    statement = select(*select_columns(User, {"id", "username"})).where(col(User.id).in_(user_ids))
    return {row.id: row.username for row in await environment.database.read(statement)}


def _connector_as_json(connector_row: ColumnRow, username: str | None) -> dict[str, Any]:
    return {
        "id": encode("Connector", connector_row.id),
        "name": connector_row.name,
        "user": username,
        "protocol": connector_row.protocol,
        "host": connector_row.host,
        "port": connector_row.port,
        "username": connector_row.username,
        "active": connector_row.active,
        "running": connector_row.run_id is not None,
        "interval": connector_row.interval,
        "last_run_at": connector_row.last_run_at and connector_row.last_run_at.isoformat(),
        "last_success_at": connector_row.last_success_at
        and connector_row.last_success_at.isoformat(),
        "next_run_at": connector_row.next_run_at and connector_row.next_run_at.isoformat(),
        "failures": connector_row.failures,
        "error": connector_row.last_error,
    }


async def check_connector(
    environment: Environment, id_or_name: str
) -> tuple[ConnectorChoice, ConnectorTestResult]:
    """Sign in to a connector's server with the stored password, and return the stages' results.

    Raises CommandError if there is no such connector.
    """
    connector = await find_connector_or_fail_command(environment, id_or_name)
    return connector, await check.check_stored_connector(
        root_context(environment), connector.connector_id
    )


class ConnectorLog(NamedTuple):
    """The log lines of the last run of a connector."""

    connector: ConnectorChoice
    lines: list[str] | None  # None if it never ran


async def load_last_log(environment: Environment, id_or_name: str) -> ConnectorLog:
    """Load the log lines of a connector's last run; None if it never ran.

    Raises CommandError if there is no such connector.
    """
    connector = await find_connector_or_fail_command(environment, id_or_name)
    (lines,) = await connector_loaders.load_last_logs_by_connector(
        root_context(environment), [connector.connector_id]
    )
    return ConnectorLog(connector, lines)


class FinishedConnectorRun(NamedTuple):
    """A connector, and the final row of its run."""

    connector: ConnectorChoice
    run_row: ColumnRow


async def run_connectors(
    environment: Environment, order: ConnectorRunOrder
) -> list[FinishedConnectorRun]:
    """Run the connectors one after another; return the final row of each run that began.

    The process stays registered: while it waits for a run that another process has leased,
    its heartbeats detect whether that process is dead.
    """
    finished_runs: list[FinishedConnectorRun] = []
    async with (
        register_process_beside_servers(environment, waits_for_exclusive_use=False),
        _handle_sigint(order.interrupts),
    ):
        for connector in order.connectors:
            if order.interrupts.is_interrupted:
                break
            row = await _start_or_follow_run_to_end(environment, order, connector)
            finished_runs.append(FinishedConnectorRun(connector, row))
    return finished_runs


@asynccontextmanager
async def _handle_sigint(interrupts: InterruptHandler) -> AsyncGenerator[None]:
    """Handle Ctrl-C while the block runs."""
    loop, interrupts.main_task = asyncio.get_running_loop(), asyncio.current_task()
    loop.add_signal_handler(signal.SIGINT, interrupts.request_stop_then_cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _start_or_follow_run_to_end(
    environment: Environment, order: ConnectorRunOrder, connector: ConnectorChoice
) -> ColumnRow:
    """Start a run and follow it to its end. It runs here if no other process has leased it."""
    (run_id,) = await connector_mutations.queue_or_find_runs(
        root_context(environment), [connector.connector_id], is_dry_run=order.is_dry_run
    )
    network_policy = NetworkPolicy.from_options(
        environment.options, allows_private=environment.options.connectors_allow_private_networks
    )
    show_progress: ShowProgress | None = None
    local_run: asyncio.Task[bool] | None = None
    is_stop_requested = False
    try:
        while True:
            row = await _load_run(environment, connector, run_id)
            show_progress = show_progress or order.start_progress(connector, row)
            show_progress(row)
            if (
                row.finished_at or row.stage == ConnectorStage.IDLE
            ):  # a server goes on with IDLE until the next run is due
                if local_run is not None:
                    await local_run
                return row
            if order.interrupts.is_interrupted and not is_stop_requested:
                await connector_mutations.cancel_runs(root_context(environment), [run_id])
                is_stop_requested = True
            if local_run is None or local_run.done():
                if local_run is not None:
                    local_run.result()
                local_run = asyncio.create_task(
                    connector_worker.run_connector_if_due(
                        environment, connector.connector_id, network_policy
                    )
                )
            await asyncio.sleep(POLL_INTERVAL)
    finally:
        if local_run is not None and not local_run.done():
            local_run.cancel()
            await asyncio.gather(local_run, return_exceptions=True)


async def _load_run(environment: Environment, connector: ConnectorChoice, run_id: int) -> ColumnRow:
    (row,) = await connector_loaders.load_visible_runs_by_id(root_context(environment), [run_id])
    if row is None:
        raise CommandError(f"{connector.name} was deleted during the run.")
    return row


def run_as_json(connector: ConnectorChoice, run_row: ColumnRow) -> dict[str, Any]:
    """The results of a run as JSON values."""
    started_at = run_row.started_at or run_row.finished_at
    finished_at = run_row.finished_at or run_row.started_at
    seconds = (finished_at - started_at).total_seconds()
    return {
        "id": connector.global_id,
        "name": connector.name,
        "run": encode("ConnectorRun", run_row.id),
        "state": run_row.state.value,
        "listening": run_row.stage == ConnectorStage.IDLE and not run_row.finished_at,
        "dry_run": run_row.dry_run,
        "seen_count": run_row.seen_count,
        "imported_count": run_row.imported_count,
        "skipped_count": run_row.skipped_count,
        "deleted_remote_count": run_row.deleted_remote_count,
        "size": run_row.size,
        "seconds": round(seconds, 3),
        "stage": run_row.stage if run_row.state is TaskState.FAILED else None,
        "error": run_row.error,
    }
