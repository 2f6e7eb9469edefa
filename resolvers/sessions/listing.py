"""Lists of the open sessions of all processes, and their counts by user and service."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

from mail.network.ip_networks import is_in_networks
from models.runtime.environment import Environment
from models.sessions.live_sessions import LiveSession, SessionService
from models.store.keyset_pages import EPOCH, Cursor, Page, PageRequest
from resolvers.cluster.process_requests import (
    AnswersOfProcesses,
    ProcessRequestKind,
    ask_all_processes,
)
from resolvers.cluster.scan_windows import ScanWindow, SortKey
from resolvers.context import Context
from resolvers.pagination import page_from_rows
from resolvers.sessions.session_scope import SessionScope, create_visible_scope
from resolvers.users.selection import UserSelector

MAX_LISTED_IPS = 100  # of one summary and process
SERVICES = tuple(SessionService)
SERVICE_COUNT = len(SERVICES)
NO_USER_ID = 0
Row = TypeVar("Row")


class SessionOrder(StrEnum):
    """The order of a list of sessions."""

    CONNECTED_AT_ASC = "CONNECTED_AT_ASC"
    CONNECTED_AT_DESC = "CONNECTED_AT_DESC"


class SessionSummaryOrder(StrEnum):
    """The order of a list of sessions by user and service."""

    USER_ASC = "USER_ASC"
    USER_DESC = "USER_DESC"


@dataclass(frozen=True, slots=True)
class SessionConditions:
    """Conditions on sessions. None: no condition."""

    users: UserSelector | None = None
    services: tuple[SessionService, ...] | None = None
    is_proxied: bool | None = None
    network: str | None = None

    def to_arguments(self) -> dict[str, Any]:
        """Return the conditions, except that on users, as JSON values."""
        services = None if self.services is None else [service.value for service in self.services]
        return {"services": services, "proxied": self.is_proxied, "network": self.network}


class SessionRow(NamedTuple):
    """An open session of any process."""

    id: int
    user_id: int | None
    service: SessionService
    ip: str | None
    proxied: bool
    destination_ip: str | None
    destination_port: int | None
    node: str
    pid: int
    connected_at: datetime
    last_active_at: datetime
    subscription_count: int


@dataclass(slots=True)
class SessionSummaryRow:
    """The number of sessions of a user on a service, with their addresses and processes."""

    user_id: int | None
    service: SessionService
    connection_count: int = 0
    ips: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SessionPage(Generic[Row]):
    """A page of sessions or summaries, and the nodes that did not answer."""

    page: Page[Row]
    unresponsive_nodes: Sequence[str]
    total_count: int | None = None  # None: not counted


def _microseconds_from_time(at: datetime) -> int:
    """Return a time in microseconds since 1970."""
    return (at - EPOCH) // timedelta(microseconds=1)


def _time_from_microseconds(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


async def _matching_sessions(
    environment: Environment, arguments: Mapping[str, Any]
) -> list[LiveSession]:
    """Return the sessions of this process that meet the conditions of a request."""
    services, is_proxied = arguments.get("services"), arguments.get("proxied")
    networks = (arguments["network"],) if arguments.get("network") else ()
    session_ids = None if arguments.get("ids") is None else frozenset(arguments["ids"])
    candidates = list(environment.live_sessions)
    if not (services is None and session_ids is None and is_proxied is None and not networks):
        candidates = [
            session
            for session in candidates
            if (services is None or session.service in services)
            and (session_ids is None or session.session_id in session_ids)
            and (is_proxied is None or session.peer.is_proxied is is_proxied)
            and (not networks or is_in_networks(session.peer.ip, networks))
        ]
    scope = SessionScope.from_arguments(arguments["scope"])
    return await scope.items_in_scope(environment, candidates)


def _session_values(environment: Environment, session: LiveSession) -> list[Any]:
    """Return the facts of a session as JSON values."""
    peer = session.peer
    active_at = environment.now() - timedelta(seconds=session.idle_seconds)
    return [
        session.session_id,
        session.user_id or None,
        session.service.value,
        peer.ip,
        peer.is_proxied,
        peer.destination_ip,
        peer.destination_port,
        _microseconds_from_time(session.connected_at),
        _microseconds_from_time(max(active_at, session.connected_at)),
        session.subscription_count,
    ]


def _row_from_values(node: str, pid: int, values: Sequence[Any]) -> SessionRow:
    (key, user_id, service, ip, proxied, host, port, connected_at, active_at, count) = values
    return SessionRow(
        key, user_id, SessionService(service), ip, proxied, host, port, node, pid,
        _time_from_microseconds(connected_at), _time_from_microseconds(active_at), count,
    )  # fmt: skip


def _session_sort_key(session: LiveSession) -> SortKey:
    return session.connected_at, session.session_id


async def _list_sessions_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    sessions = await _matching_sessions(environment, arguments)
    window = ScanWindow.from_arguments(arguments)
    page = window.items_in_scan_order(sessions, _session_sort_key)
    return {
        "sessions": [_session_values(environment, session) for session in page],
        "totalCount": len(sessions),
    }


async def _summarize_sessions_for_answer(
    environment: Environment, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    sessions = await _matching_sessions(environment, arguments)
    # numbers, since there can be 10,000: a tuple and a list for each key cost twice the time
    numbers = [
        _summary_number(session.user_id or NO_USER_ID, SERVICES.index(session.service))
        for session in sessions
    ]
    all_numbers = set(numbers)
    if "count" not in arguments:
        return {"keys": [divmod(number, SERVICE_COUNT) for number in all_numbers]}
    window = ScanWindow.from_arguments(arguments)
    after = None if window.after is None else _summary_number(window.after[0], int(window.after[1]))
    page = window.numbers_in_scan_order(all_numbers, after)
    sessions_by_number: dict[int, list[LiveSession]] = {number: [] for number in page}
    for number, session in zip(numbers, sessions, strict=True):
        if number in sessions_by_number:
            sessions_by_number[number].append(session)
    return {
        "summaries": [
            [*divmod(number, SERVICE_COUNT), len(shown), _sorted_ips(shown)[:MAX_LISTED_IPS]]
            for number, shown in sessions_by_number.items()
        ],
        "totalCount": len(all_numbers),
    }


def _summary_number(user_id: int, service_index: int) -> int:
    """Return the number of a summary: in the order of users, and then of services."""
    return user_id * SERVICE_COUNT + service_index


def _sorted_ips(sessions: Sequence[LiveSession]) -> list[str]:
    return sorted({session.peer.ip for session in sessions if session.peer.ip})


LIST_SESSIONS = ProcessRequestKind("SESSION_LIST", _list_sessions_for_answer)
SUMMARIZE_SESSIONS = ProcessRequestKind("SESSION_SUMMARIES", _summarize_sessions_for_answer)


def cursor_of_session(row: SessionRow, ordering: str) -> Cursor:
    """Return the cursor of a session in the list with this ordering name."""
    return Cursor(ordering, row.connected_at, row.id)


def cursor_of_summary(row: SessionSummaryRow, ordering: str) -> Cursor:
    """Return the cursor of a summary in the list with this ordering name."""
    return Cursor(ordering, row.user_id or NO_USER_ID, SERVICES.index(row.service))


def _rows_from_answers(answers: AnswersOfProcesses) -> list[SessionRow]:
    return [
        _row_from_values(answer.node, answer.pid, values)
        for answer in answers.answers
        for values in answer.answer["sessions"]
    ]


async def _request_arguments(ctx: Context, conditions: SessionConditions) -> dict[str, Any]:
    scope = await create_visible_scope(ctx, conditions.users)
    return {**conditions.to_arguments(), "scope": scope.to_arguments()}


async def read_visible_session_page(
    ctx: Context, conditions: SessionConditions, page_request: PageRequest, order: SessionOrder
) -> SessionPage[SessionRow]:
    """Read a page of the sessions of all processes that the viewer sees, and count them all.

    Raises InvalidInput for a cursor of another order, and the errors of `create_visible_scope`.
    """
    connected_at, cursor = page_request.cursor_sort_value(datetime), page_request.cursor
    window = ScanWindow.from_page_request(
        page_request,
        (connected_at, cursor.id) if cursor else None,
        is_descending=order is SessionOrder.CONNECTED_AT_DESC,
    )
    arguments = {**await _request_arguments(ctx, conditions), **window.to_arguments()}
    answers = await ask_all_processes(ctx.environment, LIST_SESSIONS, arguments)
    rows = window.items_in_scan_order(
        _rows_from_answers(answers), lambda row: (row.connected_at, row.id)
    )
    total_count = sum(answer.answer["totalCount"] for answer in answers.answers)
    page = page_from_rows(rows, page_request)
    return SessionPage(page, answers.unresponsive_nodes, total_count)


async def load_visible_sessions_by_id(
    ctx: Context, session_ids: list[int]
) -> list[SessionRow | None]:
    """Load sessions by id, in the given order; None for one that is not open or not visible."""
    window = ScanWindow(len(session_ids), None, is_descending=False)
    arguments = {
        "scope": SessionScope(ctx.viewer).to_arguments(),
        "ids": session_ids,
        **window.to_arguments(),
    }
    answers = await ask_all_processes(ctx.environment, LIST_SESSIONS, arguments)
    rows_by_id = {row.id: row for row in _rows_from_answers(answers)}
    return [rows_by_id.get(key) for key in session_ids]


async def read_visible_summary_page(
    ctx: Context,
    conditions: SessionConditions,
    page_request: PageRequest,
    order: SessionSummaryOrder,
) -> SessionPage[SessionSummaryRow]:
    """Read a page of the sessions that the viewer sees, counted by user and service.

    Raises InvalidInput for a cursor of another order, and the errors of `create_visible_scope`.
    """
    user_id, cursor = page_request.cursor_sort_value(int), page_request.cursor
    window = ScanWindow.from_page_request(
        page_request,
        (user_id, cursor.id) if cursor else None,
        is_descending=order is SessionSummaryOrder.USER_DESC,
    )
    arguments = {**await _request_arguments(ctx, conditions), **window.to_arguments()}
    answers = await ask_all_processes(ctx.environment, SUMMARIZE_SESSIONS, arguments)
    rows: dict[SortKey, SessionSummaryRow] = {}
    for answer in answers.answers:
        for key, service_index, count, ips in answer.answer["summaries"]:
            row = rows.setdefault(
                (key, service_index), SessionSummaryRow(key or None, SERVICES[service_index])
            )
            row.connection_count += count
            row.ips = sorted({*row.ips, *ips})
            row.pids = sorted({*row.pids, answer.pid})
    page_keys = window.items_in_scan_order(rows, lambda key: key)
    page = page_from_rows([rows[key] for key in page_keys], page_request)
    total_count: int | None = None
    if len(answers.answers) == 1:  # else some summaries are of several processes
        total_count = answers.answers[0].answer["totalCount"]
    return SessionPage(page, answers.unresponsive_nodes, total_count)


async def count_visible_summaries(ctx: Context, conditions: SessionConditions) -> int:
    """Count the users and services with sessions that the viewer sees."""
    arguments = await _request_arguments(ctx, conditions)
    answers = await ask_all_processes(ctx.environment, SUMMARIZE_SESSIONS, arguments)
    return len({tuple(key) for answer in answers.answers for key in answer.answer["keys"]})
