"""The state of the own node as each process of the server enforces it."""

import logging
import math
import time

from sqlalchemy import select
from sqlmodel import col

from models.cluster.nodes import AdministrativeNodeState, ClusterNode
from models.cluster.own_node import OwnNode, address_text
from models.runtime.components import Component, ComponentKind, HoldReason
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionTermination
from models.store.columns import ColumnRow, select_columns

log = logging.getLogger(__name__)

APPLY_SECONDS = 1.0  # between two calls of `NodeStateEnforcer.apply`
OWN_NODE_COLUMNS = frozenset(
    {"id", "host", "port", "state", "change_number", "drain_seconds", "drain_ends_at"}
)


async def load_own_node_row(environment: Environment) -> ColumnRow | None:
    """Load the row of the node that the server of this process has registered."""
    statement = select(*select_columns(ClusterNode, OWN_NODE_COLUMNS)).where(
        col(ClusterNode.server) == environment.process.server_id
    )
    rows = await environment.database.read(statement)
    return rows[0] if rows else None


class NodeStateEnforcer:
    """Applies the state of the own node to the sessions and components of this process."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._ending_ids = set[int]()  # sessions that were asked to end in this state

    @property
    def _own_node(self) -> OwnNode:
        return self._environment.own_node

    async def enforce_node_state(self, row: ColumnRow | None) -> None:
        """Enforce the state in the row of the node. Without a row the last state stays."""
        if row is None:
            return
        own_node, state = self._own_node, AdministrativeNodeState(row.state)
        own_node.node_id, own_node.name = row.id, address_text(row.host, row.port)
        if state is not own_node.state:
            log.info("Node state changed", extra={"state": state, "before": own_node.state})
            own_node.state = state
            self._ending_ids.clear()
        if row.drain_ends_at != own_node.applied_drain:  # not on other changes, such as of the tag
            own_node.drain_ends_at = time.monotonic() + row.drain_seconds
            own_node.applied_drain = row.drain_ends_at
        self._set_component_hold_rule()
        if state is not AdministrativeNodeState.UP:
            self._end_due_sessions()
        own_node.applied_change_number = row.change_number

    def _set_component_hold_rule(self) -> None:
        """Hold workers while the node is not UP; listeners when all sessions are to have ended.

        Before, listeners tell new clients that the node is draining.
        """
        state = self._own_node.state
        is_drain_time = (
            state is AdministrativeNodeState.DRAINING
            and time.monotonic() < self._own_node.drain_ends_at
        )

        def is_held(component: Component) -> bool:
            return state is not AdministrativeNodeState.UP and (
                component.kind is ComponentKind.WORKER or not is_drain_time
            )

        self._environment.components.set_hold_rule_and_begin_changes(HoldReason.NODE_STATE, is_held)

    def _end_due_sessions(self) -> None:
        """Ask sessions to end: all of them if the node is DOWN or the drain time is over.

        Before, as many end in each second as are needed to end the last one in time. A message or
        operation that is running can end first. Clients are told to connect again.
        """
        registry = self._environment.live_sessions
        sessions = [session for session in registry if session.session_id not in self._ending_ids]
        self._ending_ids &= {session.session_id for session in registry}
        seconds_left = self._own_node.drain_ends_at - time.monotonic()
        if self._own_node.state is AdministrativeNodeState.DRAINING and seconds_left > 0:
            rounds_left = max(1, math.ceil(seconds_left / APPLY_SECONDS))
            sessions = sessions[: math.ceil(len(sessions) / rounds_left)]
        termination = SessionTermination(self._own_node.refusal_reason, asks_to_reconnect=True)
        for session in sessions:
            self._ending_ids.add(session.session_id)
            registry.terminate_unless_ending(session, termination)
