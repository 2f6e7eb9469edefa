"""A server on a port, with furnished accounts in every relation to every caller."""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from sqlalchemy import select

from graph.types import global_ids
from mail.search import index_worker
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.context import Context, Viewer
from resolvers.users import delete as user_delete
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.selection import UserSelector
from tests.conftest import make_client, make_key, make_user
from tests.support.accounts.access_tokens import make_access_token
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.servers.live_server import House, house
from tests.support.targets.target_objects import LATER, Specimens, furnish

CALLERS = ("user", "domain-bare", "domain-admin", "admin", "root-key")  # the weakest first
RELATIONS = ("self", "user", "above", "other")
OWN = {"user": "ada", "domain-bare": "bare", "domain-admin": "every", "admin": "over"}
MBOX = b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
Cell = tuple[str, str]  # a caller, and the relation of the target to it


def account_of(caller: str, relation: str) -> str | None:
    """The user name of the target; None if the caller has no account of this relation."""
    if relation == "self":
        return OWN.get(caller)
    if relation == "above":
        return "over" if caller in CALLERS[:3] else "top"
    return {"user": "bob", "other": "faraway"}[relation]


CELLS: tuple[Cell, ...] = tuple(
    (caller, relation)
    for caller in CALLERS
    for relation in RELATIONS
    if account_of(caller, relation)
)


@dataclass
class Server:
    """A server, the credentials of the callers, and the objects of the accounts by user name."""

    house: House
    http: httpx.AsyncClient
    secrets: dict[str, str]
    specimens: dict[str, Specimens]
    uploads: dict[str, str]  # of the callers

    def target(self, caller: str, relation: str) -> Specimens:
        return self.specimens[account_of(caller, relation) or ""]

    async def post(
        self, caller: str, query: str, variables: Mapping[str, object]
    ) -> httpx.Response:
        """Send a request as this caller."""
        headers = {"authorization": f"Bearer {self.secrets[caller]}"}
        body = {"query": query, "variables": variables}
        return await self.http.post("/graphql", json=body, headers=headers)


async def _bury(world: Environment, specimens: dict[str, Specimens]) -> None:
    """Delete an account beside each target, of the same role and domain."""
    root = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
    for name in ("bob", "over", "top", "faraway"):
        target = specimens[name]
        domain = target.address.split("@")[1]
        new = NewUser(
            username=f"gone{name}",
            address=f"gone{name}@{domain}",
            role=target.user.role,
            password_disabled=True,
        )
        gone = await creation_create.create_user(root, new)
        await user_delete.delete_users(root, UserSelector(ids=(gone.id,)), LATER)
        target.texts["deleted"] = str(global_ids.encode("User", gone.id))


async def _uploads(http: httpx.AsyncClient, secrets: dict[str, str]) -> dict[str, str]:
    """Upload a mailbox as each caller that has an account."""
    found = {}
    for caller in OWN:
        headers = {"authorization": f"Bearer {secrets[caller]}"}
        answer = await http.post("/rest/uploads", content=MBOX, headers=headers)
        found[caller] = str(answer.json()["id"])
    return found


async def _sign(server: Server) -> None:
    """Make a signing key for each domain: the targets of one domain share it."""
    create = """mutation ($input: DkimKeySetInput!) {
      dkimKeySet(input: $input) { keys { id } errors { message } } }"""
    for domain in ("example.org", "far.example"):
        given = {"domains": [domain], "selector": "first", "algorithm": "ED25519"}
        answer = (await server.post("root-key", create, {"input": given})).json()
        key = global_ids.decode("DkimKey", answer["data"]["dkimKeySet"]["keys"][0]["id"])
        for target in server.specimens.values():
            if target.address.endswith(f"@{domain}"):
                target.keys["DkimKey"] = key


@contextlib.asynccontextmanager
async def furnished(world: Environment, folder: Path) -> AsyncGenerator[Server]:
    """Serve a world whose accounts have one object of each kind."""
    async with (
        house(world, folder) as running,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", timeout=60) as http,
    ):
        bare = await make_domain_admin(world, http, "bare")
        every = await make_domain_admin(world, http, "every", list(AdminPermission))
        over = await make_client(world, http, "over", role=Role.ADMIN)
        ada = await make_user(world, "ada")
        root = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
        far = NewUser(username="faraway", address="faraway@far.example", password_disabled=True)
        await creation_create.create_user(root, far)
        for name, role in (("bob", Role.USER), ("top", Role.ROOT), ("sharer", Role.USER)):
            await make_user(world, name, role=role)
        users = await world.database.read(select(*select_columns(User)))
        named = {row.username: row for row in users}
        specimens = {}
        for name in ("ada", "bob", "bare", "every", "over", "top", "faraway"):
            domain = "far.example" if name == "faraway" else "example.org"
            specimens[name] = await furnish(world, named[name], f"{name}@{domain}", named["sharer"])
        await _bury(world, specimens)
        while await index_worker.index_next_batch(world):
            pass
        secrets = {
            "user": await make_access_token(world, ada),
            "domain-bare": await make_access_token(world, bare.user),
            "domain-admin": await make_access_token(world, every.user),
            "admin": await make_access_token(world, over.user),
            "root-key": await make_key(world, "root-key", role=Role.ROOT),
        }
        server = Server(running, http, secrets, specimens, await _uploads(http, secrets))
        await _sign(server)
        yield server
