"""Measure the CPU time of pages of 100 of 100,000 accounts by SCIM.

The routes run in this process, without sockets and rate limits, over a domain with all accounts.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress
from sqlalchemy import event, select, text
from sqlmodel import col
from starlette.applications import Starlette

from bench.figures.goals import SCIM_INDEXED_CPU, SCIM_SCAN_CPU, SCIM_STATEMENTS
from bench.figures.measurements import MeasuredValue, percentile
from bench.load.user_rows import insert_rows, insert_users
from bench.scenarios.queue_claims import gc_as_in_server
from bench.servers.compared_servers import (
    DatabaseKind,
    load_postmaster_pid,
    server_settings,
    start_database,
)
from bench.servers.merganser_process import MerganserServer, cpu_seconds_with_children
from graph.http.admission_control import AdmissionControl
from graph.http.rate_budgets import PointRates, RateBudgets
from graph.scim.representation import encode_group_id, encode_user_id
from graph.scim.routes import scim_routes
from merganser.server.environment_factory import open_environment, root_context
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.scim import ScimGroup, ScimGroupMember, ScimUser
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.viewer import Viewer

TITLE = "operations: SCIM lists"
USER_COUNT = 100_000
MEMBERS_PER_GROUP = 100
WARM_UP_REQUESTS, MEASURED_REQUESTS = 2, 9

SORT_ATTRIBUTES = (
    "externalId", "displayName", "name.formatted", "name.familyName",
    "name.givenName", "active", "preferredLanguage", "meta.created", "meta.lastModified",
    "emails.value",
)  # fmt: skip


ROUND_BRACKETS = str.maketrans("[]", "()")  # the report would treat square ones as markup

ListRequest = tuple[str, dict[str, Any]]  # path and parameters


@dataclass(frozen=True, slots=True)
class SampleIds:
    """IDs and names of one account and one group, as clients write them."""

    user_id: str
    username: str
    external_id: str
    group_id: str


async def measure_scim_lists(
    database_kind: DatabaseKind,
    folder: Path,
    user_count: int,
    progress: Progress,
    measured_requests: int = MEASURED_REQUESTS,
) -> list[MeasuredValue]:
    """Return the median CPU time of each list, and the largest number of statements of a request.

    The CPU time includes the database server on PostgreSQL.
    """
    url = start_database(database_kind, folder)
    settings = server_settings(MerganserServer(folder / "data", url))
    facts, statement_counts = list[MeasuredValue](), list[int]()
    async with open_environment(settings, migrate=True) as environment:
        sample = await insert_directory(environment, user_count)
    # The server is restarted, so that all connections have the statistics of the rows.
    async with (
        open_environment(settings) as environment,
        await _client_without_rate_limits(environment) as http,
    ):
        statements = _record_statements(environment)
        pid = await load_postmaster_pid(environment.database)
        requests = {
            SCIM_INDEXED_CPU: indexed_lists(sample, user_count),
            SCIM_SCAN_CPU: compared_lists(sample, user_count),
        }
        task = progress.add_task(TITLE, total=sum(map(len, requests.values())))
        with gc_as_in_server():
            for label, lists in requests.items():
                for name, request in lists.items():
                    seconds = await _cpu_seconds_of_requests(
                        http, request, pid, statements, measured_requests
                    )
                    statement_counts.append(len(statements))
                    median = percentile(seconds, 0.5) * 1e3
                    facts.append(MeasuredValue(label.format(user_count, name), median, "ms"))
                    progress.advance(task)
    progress.remove_task(task)
    return [*facts, MeasuredValue(SCIM_STATEMENTS, max(statement_counts), "")]


async def _client_without_rate_limits(environment: Environment) -> httpx.AsyncClient:
    """Return a client of the SCIM routes with a key for all domains."""

    async def authenticate(headers: Mapping[str, str], ip: str | None) -> Viewer:
        return await authentication.authenticate_request(environment, headers, ip=ip)

    domains = [row.id for row in await environment.database.read(select(col(Domain.id)))]
    new_key = NewApiKey("scim", role=Role.ADMIN, scopes=[Scope.SCIM], domains=domains)
    _, secret = await api_key_mutations.create_api_key(root_context(environment), new_key)
    admission = AdmissionControl(RateBudgets(PointRates(0, 0, 0)))
    app = Starlette(routes=scim_routes(environment, authenticate, admission))
    transport = httpx.ASGITransport(app=app)
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.AsyncClient(transport=transport, base_url="http://bench", headers=headers)


def _record_statements(environment: Environment) -> list[str]:
    """Record the SELECT statements from now on, apart from those that check credentials."""
    statements: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM api_keys" not in statement and "credential_changes" not in statement:
            statements.append(statement)

    for engine in environment.database.engines:
        event.listen(engine, "before_cursor_execute", record)
    return statements


async def _cpu_seconds_of_requests(
    http: httpx.AsyncClient,
    list_request: ListRequest,
    postmaster_pid: int,
    statements: list[str],
    measured_requests: int,
) -> list[float]:
    """Return the CPU seconds of some equal requests, with those of the database server.

    `statements` are those of the last request.
    """
    path, parameters = list_request
    seconds = list[float]()
    for number in range(WARM_UP_REQUESTS + measured_requests):
        del statements[:]
        before = _cpu_seconds(postmaster_pid)
        response = await http.get(f"/scim/v2{path}", params=parameters)
        if number >= WARM_UP_REQUESTS:
            seconds.append(_cpu_seconds(postmaster_pid) - before)
        response.raise_for_status()
    return seconds


def _cpu_seconds(postmaster_pid: int) -> float:
    """Return the CPU seconds of this process, and of the database server if there is one."""
    database_seconds = cpu_seconds_with_children(postmaster_pid) if postmaster_pid else 0.0
    return time.process_time() + database_seconds


async def insert_directory(
    environment: Environment, user_count: int, members_per_group: int = MEMBERS_PER_GROUP
) -> SampleIds:
    """Insert users of one domain as a directory creates them, each in one group."""
    user_ids = await insert_users(environment, user_count, domain_count=1)
    now = environment.now()
    (domain,) = await environment.database.read(select(col(Domain.id)))
    group_ids = [environment.new_id() for _ in range(user_count // members_per_group)]

    def scim_user_rows() -> Iterator[dict[str, Any]]:
        for number, user_id in enumerate(user_ids):
            yield {
                "user_id": user_id,
                "external_id": _external_id(number),
                "given_name": f"Given{number % 1000}",
                "family_name": f"Family{number % 5000}",
            }

    def group_rows() -> Iterator[dict[str, Any]]:
        for number, group_id in enumerate(group_ids):
            yield {
                "id": group_id,
                "domain_id": domain.id,
                "display_name": f"Group {number}",
                "name_key": f"group {number}",
                "external_id": f"g{number}",
                "created_at": now,
                "updated_at": now,
            }

    def member_rows() -> Iterator[dict[str, Any]]:
        for number, user_id in enumerate(user_ids):
            group_id = group_ids[number % len(group_ids)]
            yield {"group_id": group_id, "user_id": user_id}

    middle = user_count // 2
    await insert_rows(environment, ScimUser, scim_user_rows())
    await insert_rows(environment, ScimGroup, group_rows())
    await insert_rows(environment, ScimGroupMember, member_rows())
    async with environment.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    await environment.database.refresh_planner_statistics()
    statement = select(col(User.username)).where(col(User.id) == user_ids[middle])
    (row,) = await environment.database.read(statement)
    return SampleIds(
        encode_user_id(user_ids[middle]),
        row.username,
        _external_id(middle),
        encode_group_id(group_ids[len(group_ids) // 2]),
    )


def _external_id(number: int) -> str:
    return f"00u{number * 7919 % 1_000_003:07}"


def indexed_lists(sample: SampleIds, user_count: int) -> dict[str, ListRequest]:
    """Return the lists that an index filters and orders, by name."""
    username = sample.username
    filters = {
        "userName eq": f'userName eq "{username}"',
        "id eq": f'id eq "{sample.user_id}"',
        "externalId eq": f'externalId eq "{sample.external_id}"',
        "emails.value eq": f'emails.value eq "{username}"',
        "emails(value eq and type eq)": f'emails[type eq "work" and value eq "{username}"]',
        "groups.value eq": f'groups.value eq "{sample.group_id}"',
        "userName eq and active eq": f'userName eq "{username}" and active eq true',
        "userName eq, nobody": 'userName eq "nobody@d0.crowd.example"',
        "userName eq or emails.value eq": f'userName eq "{username}" or emails eq "{username}"',
        "userName eq or externalId eq or id eq": (
            f'userName eq "{username}" or externalId eq "{sample.external_id}"'
            f' or id eq "{sample.user_id}"'
        ),
        "lastModified gt": 'meta.lastModified gt "2120-01-01T00:00:00Z"',
        "lastModified gt and active eq": (
            'meta.lastModified gt "2120-01-01T00:00:00Z" and active eq true'
        ),
        "active eq true": "active eq true",
        "active eq false": "active eq false",
    }
    deep = {"startIndex": _deep_start_index(user_count)}
    return {
        "first page": ("/Users", {}),
        "deep page": ("/Users", deep),
        "deep page, descending": ("/Users", {**deep, "sortOrder": "descending"}),
        "by id": ("/Users", {"sortBy": "id"}),
        "by id, deep": ("/Users", {"sortBy": "id", **deep}),
        **{name: ("/Users", {"filter": item}) for name, item in filters.items()},
        "groups without members": ("/Groups", {"excludedAttributes": "members"}),
        "groups, displayName eq": ("/Groups", {"filter": 'displayName eq "group 7"'}),
        "groups, externalId eq": ("/Groups", {"filter": 'externalId eq "g7"'}),
        "groups, members eq": ("/Groups", {"filter": f'members eq "{sample.user_id}"'}),
    }


def compared_lists(sample: SampleIds, user_count: int) -> dict[str, ListRequest]:
    """Return the lists that read all accounts, or 10,000 members, by name."""
    deep = {"startIndex": _deep_start_index(user_count)}
    lists: dict[str, ListRequest] = {}
    for name in SORT_ATTRIBUTES:
        lists[f"by {name}"] = ("/Users", {"sortBy": name})
        lists[f"by {name}, deep"] = ("/Users", {"sortBy": name, **deep})
    for filter_text in compared_filters(sample):
        name = filter_text.translate(ROUND_BRACKETS)
        lists[name] = ("/Users", {"filter": filter_text})
    return lists | {
        "groups with members": ("/Groups", {}),
        "groups by displayName": ("/Groups", {"sortBy": "displayName"}),
        "groups, not members pr": ("/Groups", {"filter": "not (members pr)"}),
    }


def _deep_start_index(user_count: int) -> int:
    return user_count * 9 // 10 + 1


def compared_filters(sample: SampleIds) -> list[str]:
    """Return a filter of each form that no index can answer, or that fits all accounts."""
    local = sample.username.partition("@")[0]
    return [
        f'userName sw "{local}"',
        f'userName co "{local[4:]}"',
        f'userName ne "{sample.username}"',
        f'externalId sw "{sample.external_id}"',
        "externalId pr",
        "not (externalId pr)",
        f'emails.value co "{local}"',
        'emails[type eq "home"]',
        "emails pr",
        'displayName eq "zoe keller"',
        'displayName co "lovelace"',
        "displayName pr",
        'name.familyName eq "family77"',
        'name.familyName co "ily77"',
        'preferredLanguage eq "de"',
        'meta.created gt "2020-01-01T00:00:00Z"',
        'meta.created gt "2120-01-01T00:00:00Z"',
        'meta.lastModified gt "2020-01-01T00:00:00Z"',
        'groups.display eq "group 77"',
        "groups pr",
        "not (groups pr)",
        'roles.value eq "ADMIN"',
        'roles.value eq "USER"',
    ]
