"""Components of all processes, and the health of this process."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from models.runtime.components import Component, ComponentKind, ComponentState
from models.runtime.environment import Environment
from models.runtime.installed_version import installed_version
from models.store.keyset_pages import Cursor, Page, PageRequest
from models.users.roles import Role, Scope
from resolvers.cluster.process_requests import (
    AnswersOfProcesses,
    ProcessRequestKind,
    ask_all_processes,
)
from resolvers.cluster.validation import is_named_node
from resolvers.context import Context
from resolvers.health.prober import probe_dependencies_and_update_states
from resolvers.list_orders import SortColumn, list_orders
from resolvers.pagination import rows_beyond_cursor
from resolvers.viewer import GuardRule

READ_RULE = GuardRule(role=Role.ADMIN, scope=Scope.READ)


class ComponentOrder(StrEnum):
    """The order of a list of components."""

    NAME_ASC = "NAME_ASC"
    NAME_DESC = "NAME_DESC"


COMPONENT_ORDERS = list_orders(ComponentOrder, {"NAME": SortColumn("sort_text", str)})


@dataclass(frozen=True, slots=True)
class ComponentConditions:
    """Conditions on components. None: no condition."""

    names: tuple[str, ...] | None = None
    nodes: tuple[str, ...] | None = None
    kinds: tuple[ComponentKind, ...] | None = None
    states: tuple[ComponentState, ...] | None = None

    def is_met_by(self, row: "ComponentRow") -> bool:
        """True if the component meets all conditions."""
        return (
            (self.names is None or row.name in self.names)
            and (self.nodes is None or is_named_node(row.node, self.nodes))
            and (self.kinds is None or row.kind in self.kinds)
            and (self.states is None or row.state in self.states)
        )


@dataclass(frozen=True, slots=True)
class ComponentRow:
    """A component of one process."""

    name: str
    kind: ComponentKind
    state: ComponentState
    state_changed_at: datetime
    detail: str | None
    address: str | None
    version: str | None
    latency: timedelta | None
    probed_at: datetime | None
    node: str
    pid: int

    @property
    def sort_text(self) -> str:
        """The name, node and process, which identify the component."""
        return f"{self.name} {self.node} {self.pid:010}"


@dataclass(frozen=True, slots=True)
class ComponentPage:
    """A page of components, and the nodes that did not answer."""

    page: Page[ComponentRow]
    total_count: int
    unresponsive_nodes: Sequence[str]


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The health of the process that answers."""

    ok: bool
    version: str
    uptime: timedelta
    checks: Sequence[ComponentRow]


def component_values(component: Component) -> list[Any]:
    """Return the facts of a component as JSON values."""
    return [
        component.name,
        component.kind.value,
        component.state.value,
        component.state_changed_at.isoformat(),
        component.detail,
        component.address,
        component.version,
        component.latency_seconds,
        component.probed_at and component.probed_at.isoformat(),
    ]


def _row_from_values(node: str, pid: int, values: Sequence[Any]) -> ComponentRow:
    name, kind, state, changed_at, detail, address, peer_version, latency, probed_at = values
    return ComponentRow(
        name,
        ComponentKind(kind),
        ComponentState(state),
        datetime.fromisoformat(changed_at),
        detail,
        address,
        peer_version,
        None if latency is None else timedelta(seconds=latency),
        probed_at and datetime.fromisoformat(probed_at),
        node,
        pid,
    )


async def _answer_components(
    environment: Environment, _arguments: Mapping[str, Any]
) -> dict[str, Any]:
    await probe_dependencies_and_update_states(environment)
    return {"components": [component_values(component) for component in environment.components]}


LIST_COMPONENTS = ProcessRequestKind("COMPONENT_LIST", _answer_components)


def rows_from_answers(answers: AnswersOfProcesses) -> list[ComponentRow]:
    """Return the components of the processes that answered."""
    return [
        _row_from_values(answer.node, answer.pid, values)
        for answer in answers.answers
        for values in answer.answer["components"]
    ]


async def read_component_page(
    ctx: Context, conditions: ComponentConditions, page_request: PageRequest, order: ComponentOrder
) -> ComponentPage:
    """Read a page of the components of all processes, and count them.

    Raises Forbidden unless the viewer is an ADMIN, and InvalidInput for a cursor of another order.
    """
    ctx.viewer.require(READ_RULE)
    list_order = COMPONENT_ORDERS[order]
    list_order.require_fitting_cursor(page_request)
    answers = await ask_all_processes(ctx.environment, LIST_COMPONENTS, {})
    found = sorted(
        filter(conditions.is_met_by, rows_from_answers(answers)), key=lambda row: row.sort_text
    )
    rows: Sequence[ComponentRow] = found
    if cursor := page_request.cursor:
        keys = [row.sort_text for row in rows]
        is_backward = page_request.is_backward is not list_order.is_descending
        rows = rows_beyond_cursor(rows, keys, cursor.sort_value, is_backward=is_backward)
    page = page_request.page_from_rows(rows[::-1] if list_order.is_descending else rows)
    return ComponentPage(page, len(found), answers.unresponsive_nodes)


def cursor_of_component(row: ComponentRow, ordering: str) -> Cursor:
    """Return the cursor of a component in the list with this ordering name."""
    return Cursor(ordering, row.sort_text, 0)


async def probe_dependencies_and_read_health(ctx: Context) -> HealthReport:
    """Return the health of this process. The states of its services are at most a second old.

    It is not ok if a component failed that this process can't do without.
    """
    environment = ctx.environment
    await probe_dependencies_and_update_states(environment)
    node, pid = environment.own_node.name, os.getpid()
    checks = [
        _row_from_values(node, pid, component_values(component))
        for component in environment.components
    ]
    is_ok = not any(row.state is ComponentState.FAILED and row.name in NEEDED for row in checks)
    uptime = timedelta(seconds=environment.components.age_seconds)
    checks.sort(key=lambda row: row.sort_text)
    return HealthReport(is_ok, installed_version(), uptime, checks)


NEEDED = frozenset({"blobs", "database"})  # without them no message can be accepted
