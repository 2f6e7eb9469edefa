"""`python -m bench.scenarios.user_lists`: lists of 100,000 users, on a server of their own."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from bench.figures import report
from bench.figures.measurements import ComparedFigure
from bench.load.http_client import BenchmarkTarget, measure_documents, request_json
from bench.load.user_rows import insert_users
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import MerganserServer, run_until_exit, run_with_timeout
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from models.users.roles import Role
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey

TITLE = "accounts"
USER_COUNT = 100_000
RUN_TIMEOUT = 600.0  # seconds
USERS_QUERY = """query ($filter: UserFilter, $orderBy: UserOrder! = USERNAME_ASC, $after: String) {
  users(filter: $filter, orderBy: $orderBy, first: 50, after: $after) {
    nodes { id username name address { address } domain { name } active lastLoginAt
      limits { quota { limit used } } }
    pageInfo { endCursor hasNextPage } } }"""
COUNT_QUERY = "query ($filter: UserFilter) { users(filter: $filter, first: 0) { totalCount } }"
LARGEST_DOMAIN = "d0.crowd.example"  # with half of the users


def bodies_by_name(after: str) -> dict[str, dict[str, Any]]:
    """Return the GraphQL request bodies by name."""
    lists: dict[str, dict[str, Any]] = {
        "first page": {},
        "a later page": {"after": after},
        "ordered by creation": {"orderBy": "CREATED_AT_ASC"},
        "ordered by storage": {"orderBy": "STORAGE_USED_DESC"},
        "ordered by last sign-in": {"orderBy": "LAST_LOGIN_AT_DESC"},
        "of a domain": {"filter": {"domain": {"name": LARGEST_DOMAIN}}},
        "inactive": {"filter": {"active": False}},
        "tagged": {"filter": {"tags": ["vip"]}},
        "pattern": {"filter": {"patterns": ["adalove*7@d?.*"]}},
        "search with one result": {"filter": {"query": "lovelace.050012"}},
        "search that finds 11 %": {"filter": {"query": "lovelace"}},
        "search with two characters": {"filter": {"query": "zo"}},
    }
    found = {
        name: {"query": USERS_QUERY, "variables": list_variables}
        for name, list_variables in lists.items()
    }
    for name, filter_input in (("all", None), ("a search", {"query": "lovelace"})):
        found[f"count of {name}"] = {"query": COUNT_QUERY, "variables": {"filter": filter_input}}
    return found


async def measure_user_lists(
    database_kind: DatabaseKind,
    folder: Path,
    *,
    user_count: int = USER_COUNT,
    connection_count: int = 4,
    seconds: float = 2.0,
) -> list[ComparedFigure]:
    """Return the figure of each list over HTTP, without a baseline."""
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / "crowd", url)
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    async with open_environment(settings, migrate=True) as environment:
        await insert_users(environment, user_count)
        _, secret = await api_key_mutations.create_api_key(
            root_context(environment), NewApiKey("bench", role=Role.ROOT)
        )
    async with run_until_exit(server.start) as pid:
        target = BenchmarkTarget(server.http_port, pid, secret)
        bodies = bodies_by_name(await _cursor_of_later_page(target))
        figures = await measure_documents(
            target, bodies, connection_count=connection_count, seconds=seconds
        )
    return [
        ComparedFigure(f"{user_count:,} {TITLE}: {name}", figure)
        for name, figure in figures.items()
    ]


async def _cursor_of_later_page(target: BenchmarkTarget) -> str:
    """Return a cursor after the first 2,500 users."""
    body: dict[str, Any] = {
        "query": USERS_QUERY.replace("first: 50", "first: 250"),
        "variables": {},
    }
    after = ""
    for _ in range(10):
        found = await request_json(target, "/graphql", body)
        after = found["data"]["users"]["pageInfo"]["endCursor"]
        body["variables"] = {"after": after}
    return after


def main(
    store: Annotated[DatabaseKind, typer.Option(help="Database.")] = DatabaseKind.SQLITE,
    many: Annotated[int, typer.Option(help="Number of accounts.")] = USER_COUNT,
) -> None:
    """Print the figures."""
    uvloop.run(run_with_timeout(_print_measurements(store, many), RUN_TIMEOUT))


async def _print_measurements(database_kind: DatabaseKind, user_count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="merganser-accounts-") as folder:
        lines = await measure_user_lists(database_kind, Path(folder), user_count=user_count)
    for line in lines:
        typer.echo(report.format_figure(line))


if __name__ == "__main__":
    typer.run(main)
