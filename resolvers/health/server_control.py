"""Stop servers, one after another, and read settings again. For ROOT."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.runtime.server_control import InvalidConfig, ReloadedConfig
from models.runtime.server_processes import ServerProcess
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.credential_cache import cache_of_database
from resolvers.cluster.process_requests import (
    ProcessRequestKind,
    ask_all_processes,
    load_answering_processes,
)
from resolvers.context import Context
from resolvers.health.update import CONTROL_RULE
from resolvers.health.validation import require_known_node_address

log = logging.getLogger(__name__)

MAX_GRACE = timedelta(minutes=10)
RESPONSE_SECONDS = 0.2  # before the server of the caller stops, so that it can answer
END_POLL_SECONDS = 0.25  # between two looks whether a server has ended


@dataclass(frozen=True, slots=True)
class ReloadedNodes:
    """The changed settings of the nodes, and the nodes that did not answer."""

    changed_keys: Sequence[str]
    restart_keys: Sequence[str]
    unresponsive_nodes: Sequence[str]


async def _stop_server_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Stop the server of this process if the process is the chosen one of its server."""
    is_chosen = environment.process.id == arguments["processId"]
    if is_chosen and environment.server_control.stop_server is not None:
        log.info("Stop of the server was requested")
        environment.server_control.stop_server(arguments["graceSeconds"])
    return {"isChosen": is_chosen}


STOP_SERVER = ProcessRequestKind("SERVER_STOP", _stop_server_for_answer)


async def start_stopping_servers_in_turn(
    ctx: Context, node: str | None, grace: timedelta
) -> datetime | None:
    """Stop the servers of a node, or of all nodes one after another; return when the first stops.

    The next server stops when the former has ended, or `grace` after it was told to stop; then the
    former also skips the rest of its drain time. The server of the caller is the last one. Returns
    before any server stops; None if there is no server. Raises Forbidden unless the viewer is ROOT,
    InvalidInput if `grace` is out of range, and NotFound for an unknown node.
    """
    ctx.viewer.require(CONTROL_RULE)
    if not timedelta() <= grace <= MAX_GRACE:
        raise InvalidInput(
            "The grace must be from PT0S to PT10M.",
            constraint=ValidationConstraint.RANGE,
            path=["grace"],
        )
    if node is not None:
        node = await require_known_node_address(ctx, node)
    environment = ctx.environment
    process_ids_by_server: dict[str, int] = {}
    for process in await load_answering_processes(environment):
        if node in (None, process.node):
            process_ids_by_server.setdefault(process.server, process.id)
    values = {"node": node, "graceSeconds": grace.total_seconds()}
    await audit_log.record_platform_entries(ctx, NewAuditLogEntry("serverStop", after=values))
    if not process_ids_by_server:
        return None
    own = environment.process.server_id
    servers = sorted(process_ids_by_server, key=lambda server: server == own)
    if not ctx.is_dry_run:
        cache_of_database(environment.database).run_in_background(
            _stop_in_turn(environment, [process_ids_by_server[key] for key in servers], grace)
        )
    return environment.now()


async def _stop_in_turn(
    environment: Environment, process_ids: Sequence[int], grace: timedelta
) -> None:
    """Stop the servers of these processes, each when the former has ended."""
    await asyncio.sleep(RESPONSE_SECONDS)
    for process_id in process_ids:
        arguments = {"processId": process_id, "graceSeconds": grace.total_seconds()}
        await ask_all_processes(environment, STOP_SERVER, arguments)
        deadline = time.monotonic() + grace.total_seconds()
        is_last = process_id == process_ids[-1]  # its end would wait for this function
        while not is_last and time.monotonic() < deadline:
            if not await _is_registered(environment, process_id):
                break
            await asyncio.sleep(END_POLL_SECONDS)


async def _is_registered(environment: Environment, process_id: int) -> bool:
    statement = select(col(ServerProcess.id)).where(col(ServerProcess.id) == process_id)
    return bool(await environment.database.read(statement))


async def _check_or_reload_config_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Check the settings, or use those that have changed. The error names the line."""
    control, node = environment.server_control, arguments["node"]
    if node is not None and node != environment.own_node.name:
        return {}
    reload_config = control.check_config if arguments["isCheck"] else control.reload_config
    if reload_config is None:
        return {}
    try:
        reloaded = await reload_config()
    except InvalidConfig as problem:
        return {"error": str(problem)}
    return {"changedKeys": reloaded.changed_keys, "restartKeys": reloaded.restart_keys}


RELOAD_CONFIG = ProcessRequestKind("CONFIG_RELOAD", _check_or_reload_config_for_answer)


async def reload_config(ctx: Context, node: str | None) -> ReloadedNodes:
    """Read the settings of a node, or of all nodes, again.

    All processes check their settings first: an error changes nothing on any node. Raises Forbidden
    unless the viewer is ROOT, NotFound for an unknown node, and InvalidInput if the settings of a
    node can't be used.
    """
    ctx.viewer.require(CONTROL_RULE)
    if node is not None:
        node = await require_known_node_address(ctx, node)
    reloaded = await _ask_nodes_to_check_or_reload_config(ctx, node, is_check=True)
    if ctx.is_dry_run:
        return reloaded
    reloaded = await _ask_nodes_to_check_or_reload_config(ctx, node, is_check=False)
    values = {"node": node, "changedKeys": list(reloaded.changed_keys)}
    await audit_log.record_platform_entries(ctx, NewAuditLogEntry("configReload", after=values))
    return reloaded


async def _ask_nodes_to_check_or_reload_config(
    ctx: Context, node: str | None, *, is_check: bool
) -> ReloadedNodes:
    arguments = {"node": node, "isCheck": is_check}
    answers = await ask_all_processes(ctx.environment, RELOAD_CONFIG, arguments)
    changed_keys, restart_keys = set[str](), set[str]()
    for answer in answers.answers:
        if error := answer.answer.get("error"):
            raise InvalidInput(
                f"Nothing was changed, since the settings of {answer.node} can't be used: {error}",
                constraint=ValidationConstraint.FORMAT,
            )
        changed_keys.update(answer.answer.get("changedKeys", ()))
        restart_keys.update(answer.answer.get("restartKeys", ()))
    return ReloadedNodes(
        sorted(changed_keys), sorted(restart_keys), list(answers.unresponsive_nodes)
    )


async def reload_config_of_server_or_log_error(environment: Environment) -> ReloadedConfig | None:
    """Read the settings of this server again after SIGHUP. An invalid file changes nothing.

    Returns None after an error, which is logged.
    """
    reload_own_config = environment.server_control.reload_config
    if reload_own_config is None:
        return None
    try:
        reloaded = await reload_own_config()
    except InvalidConfig as problem:
        log.error("Settings not reloaded", extra={"why": str(problem)})
        return None
    log.info(
        "Settings reloaded",
        extra={"changed": list(reloaded.changed_keys), "restart": list(reloaded.restart_keys)},
    )
    return reloaded
