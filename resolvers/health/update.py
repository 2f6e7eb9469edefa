"""Stop and start components on one node or on all nodes. For ROOT."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlmodel import col

from models.events.journal import PLATFORM
from models.health.tables import ALL_NODES, ComponentHold
from models.runtime.components import HoldReason
from models.runtime.environment import Environment
from models.store.columns import insert_with_conflict
from models.users.roles import Role, Scope
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.cluster.process_requests import ProcessRequestKind, ask_all_processes
from resolvers.context import Context
from resolvers.health.loaders import (
    LIST_COMPONENTS,
    ComponentRow,
    component_values,
    rows_from_answers,
)
from resolvers.health.validation import require_holdable_names, require_known_node_address
from resolvers.viewer import GuardRule

CONTROL_RULE = GuardRule(role=Role.ROOT, scope=Scope.FULL)
CHANGE_TIMEOUT = 0.3  # seconds that each process waits for the end of the current work


@dataclass(frozen=True, slots=True)
class ChangedComponents:
    """The components that were stopped or started, and the nodes that did not answer."""

    rows: Sequence[ComponentRow]
    unresponsive_nodes: Sequence[str]


async def apply_component_holds(environment: Environment) -> list[asyncio.Task[None]]:
    """Hold the components of this process that an operator has stopped, and release the others.

    Returns the tasks of the components that stop or start now.
    """
    async with environment.components.rule_lock:  # a later reading must be applied later
        statement = select(
            col(ComponentHold.component), col(ComponentHold.node), col(ComponentHold.is_stopped)
        ).where(col(ComponentHold.node).in_([ALL_NODES, environment.own_node.name]))
        rows = await environment.database.read(statement)
        is_stopped_by_name: dict[str, bool] = {}
        for row in sorted(rows, key=lambda row: bool(row.node)):  # that of the node at the end
            is_stopped_by_name[row.component] = row.is_stopped
        stopped_names = frozenset(
            name for name, is_stopped in is_stopped_by_name.items() if is_stopped
        )
        environment.components.stopped_names = stopped_names
        return environment.components.set_hold_rule_and_begin_changes(
            HoldReason.COMPONENT_STOP, lambda component: component.name in stopped_names
        )


async def _apply_holds_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Apply the stored holds, and wait a moment for the end of the current work."""
    tasks = await apply_component_holds(environment)
    if tasks:
        await asyncio.wait(tasks, timeout=CHANGE_TIMEOUT)
    names = arguments["names"]
    components = [component for component in environment.components if component.name in names]
    return {"components": [component_values(component) for component in components]}


APPLY_COMPONENT_HOLDS = ProcessRequestKind(
    "COMPONENT_APPLY", _apply_holds_for_answer, applies_late=True
)


async def stop_or_start_components(
    ctx: Context, names: Sequence[str], node: str | None, *, is_stopped: bool
) -> ChangedComponents:
    """Stop or start components on a node, or on all nodes, and store it with an audit log entry.

    A change on all nodes replaces what was stored for single nodes. Must not be called in a
    transaction that has changed something. A dry run changes nothing. Raises Forbidden unless the
    viewer is ROOT, InvalidInput for a name that can't be stopped, and NotFound for an unknown node.
    """
    ctx.viewer.require(CONTROL_RULE)
    names = require_holdable_names(names)
    if node is not None:
        node = await require_known_node_address(ctx, node)
    if ctx.is_dry_run:
        answers = await ask_all_processes(ctx.environment, LIST_COMPONENTS, {})
    else:
        await _store_component_holds_and_audit(ctx, names, node or ALL_NODES, is_stopped=is_stopped)
        answers = await ask_all_processes(
            ctx.environment, APPLY_COMPONENT_HOLDS, {"names": list(names)}
        )
    rows = [
        row
        for row in rows_from_answers(answers)
        if row.name in names and (node is None or row.node == node)
    ]
    rows.sort(key=lambda row: row.sort_text)
    return ChangedComponents(rows, answers.unresponsive_nodes)


async def _store_component_holds_and_audit(
    ctx: Context, names: Sequence[str], node: str, *, is_stopped: bool
) -> None:
    async with ctx.write_session(PLATFORM) as session:
        connection = await session.connection()
        replaced = delete(ComponentHold).where(col(ComponentHold.component).in_(names))
        if node != ALL_NODES:
            replaced = replaced.where(col(ComponentHold.node) == node)
        await connection.execute(replaced)
        if is_stopped or node != ALL_NODES:  # without a row, a component runs
            rows = [
                {
                    "component": name,
                    "node": node,
                    "is_stopped": is_stopped,
                    "changed_at": ctx.environment.now(),
                }
                for name in names
            ]
            dialect = ctx.environment.database.dialect
            await connection.execute(insert_with_conflict(dialect, ComponentHold).values(rows))
        await audit_log.insert_audit_log_entries(
            ctx,
            session,
            NewAuditLogEntry(
                "componentStop" if is_stopped else "componentStart",
                after={"components": list(names), **({"node": node} if node else {})},
            ),
        )
