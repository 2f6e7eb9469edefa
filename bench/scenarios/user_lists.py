"""`python -m bench.scenarios.user_lists`: lists of 100,000 users, on a server of their own."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from bench.figures import report
from bench.figures.measurements import Line
from bench.load.http_client import Target, measure_documents, once
from bench.load.user_rows import fill
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import Server, bounded, running
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from models.users.roles import Role
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey

NAME = "accounts"
MANY = 100_000
LONGEST = 600.0  # seconds
LIST = """query ($filter: UserFilter, $orderBy: UserOrder! = USERNAME, $after: String) {
  users(filter: $filter, orderBy: $orderBy, first: 50, after: $after) {
    nodes { id username name address { address } domain { name } disabled lastLoginAt
      limits { quota { allowed used } } }
    pageInfo { endCursor hasNextPage } } }"""
COUNT = "query ($filter: UserFilter) { users(filter: $filter, first: 0) { totalCount } }"
HALF = "d0.crowd.example"  # with half of the users


def asked(after: str) -> dict[str, dict[str, Any]]:
    """Return the GraphQL request bodies by name."""
    lists: dict[str, dict[str, Any]] = {
        "first page": {},
        "a later page": {"after": after},
        "by creation": {"orderBy": "CREATED"},
        "by storage": {"orderBy": "QUOTA_USED"},
        "by last sign-in": {"orderBy": "LAST_LOGIN"},
        "of a domain": {"filter": {"domain": HALF}},
        "disabled": {"filter": {"disabled": True}},
        "tagged": {"filter": {"tags": ["vip"]}},
        "mask": {"filter": {"masks": ["adalove*7@d?.*"]}},
        "search, one is found": {"filter": {"query": "lovelace.050012"}},
        "search, a ninth is found": {"filter": {"query": "lovelace"}},
        "search, two letters": {"filter": {"query": "zo"}},
    }
    found = {name: {"query": LIST, "variables": given} for name, given in lists.items()}
    for name, where in (("all", None), ("a search", {"query": "lovelace"})):
        found[f"count of {name}"] = {"query": COUNT, "variables": {"filter": where}}
    return found


async def measured(
    kind: Kind, folder: Path, *, many: int = MANY, connections: int = 4, seconds: float = 2.0
) -> list[Line]:
    """Return the figure of each list over HTTP, without a baseline."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / "crowd", url)
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    async with opened(settings, migrate=True) as world:
        await fill(world, many)
        _, secret = await api_keys.create_key(owner(world), NewKey("bench", role=Role.ROOT))
    async with running(server.start) as pid:
        target = Target(server.http, pid, secret)
        bodies = asked(await _middle(target))
        figures = await measure_documents(target, bodies, connections=connections, seconds=seconds)
    return [Line(f"{many:,} {NAME}: {name}", figure) for name, figure in figures.items()]


async def _middle(target: Target) -> str:
    """Return a cursor after the first 2,500 users."""
    body: dict[str, Any] = {"query": LIST.replace("first: 50", "first: 250"), "variables": {}}
    after = ""
    for _ in range(10):
        found = await once(target, "/graphql", body)
        after = found["data"]["users"]["pageInfo"]["endCursor"]
        body["variables"] = {"after": after}
    return after


def main(
    store: Annotated[Kind, typer.Option(help="Where rows lie.")] = Kind.SQLITE,
    many: Annotated[int, typer.Option(help="Accounts.")] = MANY,
) -> None:
    """Print the figures."""
    uvloop.run(bounded(_shown(store, many), LONGEST))


async def _shown(store: Kind, many: int) -> None:
    with tempfile.TemporaryDirectory(prefix="merganser-accounts-") as folder:
        lines = await measured(store, Path(folder), many=many)
    for line in lines:
        typer.echo(report.line(line))


if __name__ == "__main__":
    typer.run(main)
