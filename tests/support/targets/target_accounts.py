"""A server with accounts in every relation to each caller, and objects of each kind."""

import contextlib
from collections.abc import AsyncGenerator, Collection, Mapping
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
from resolvers.context import Context
from resolvers.users import delete as user_delete
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.selection import UserSelector
from resolvers.viewer import Viewer
from tests.conftest import make_api_key, make_client, make_user
from tests.support.accounts.access_tokens import make_access_token
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.schema.declared_access import declared_access_by_coordinate
from tests.support.servers.live_server import LiveServer, run_live_server
from tests.support.targets.target_objects import FUTURE, TargetObjects, create_target_objects
from tests.support.time_limits import HANG_SECONDS

CALLERS = ("user", "domain-bare", "domain-admin", "admin", "root-key")  # the weakest first
RELATIONS = ("self", "user", "above", "other")
USERNAME_BY_CALLER = {
    "user": "ada",
    "domain-bare": "bare",
    "domain-admin": "every",
    "admin": "over",
}
MBOX = b"From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
PERMISSIONS_PREFIX = "domain-admin with "  # begins the name of a caller with some permissions
SCOPE_PREFIX = "admin with scope "  # begins the name of an ADMIN's key with one scope
CallerRelation = tuple[str, str]  # a caller, and the relation of the target to it


def target_username(caller: str, relation: str) -> str | None:
    """The username of the target; None if the caller has no account of this relation."""
    if caller.startswith(PERMISSIONS_PREFIX):
        caller = "domain-admin"
    if caller.startswith(SCOPE_PREFIX):
        caller = "admin"
    if relation == "self":
        return USERNAME_BY_CALLER.get(caller)
    if relation == "above":
        return "over" if caller in CALLERS[:3] else "top"
    return {"user": "bob", "other": "faraway"}[relation]


CALLER_RELATIONS: tuple[CallerRelation, ...] = tuple(
    (caller, relation)
    for caller in CALLERS
    for relation in RELATIONS
    if target_username(caller, relation)
)


@dataclass
class TargetServer:
    """A server, the credentials of the callers, and the objects of each account by username."""

    live_server: LiveServer
    http: httpx.AsyncClient
    secrets: dict[str, str]
    objects_by_username: dict[str, TargetObjects]
    uploads: dict[str, str]  # of the callers

    def objects_of(self, caller: str, relation: str) -> TargetObjects:
        """The objects of the account in this relation to the caller."""
        return self.objects_by_username[target_username(caller, relation) or ""]

    async def post(
        self, caller: str, query: str, variables: Mapping[str, object]
    ) -> httpx.Response:
        """Send a request as this caller."""
        headers = {"authorization": f"Bearer {self.secrets[caller]}"}
        body = {"query": query, "variables": variables}
        return await self.http.post("/graphql", json=body, headers=headers)


def caller_with_scope(scope: Scope) -> str:
    """The name of the key of an ADMIN that has only this scope."""
    return SCOPE_PREFIX + scope


async def _make_keys_with_one_scope(environment: Environment, user_id: int) -> dict[str, str]:
    """Create a key of an ADMIN for each scope that fields require. Returns them by caller."""
    return {
        caller_with_scope(scope): await make_api_key(
            environment, f"only-{scope}", user_id=user_id, role=Role.ADMIN, scopes=[scope]
        )
        for scope in (
            Scope.READ,
            Scope.MAIL_READ,
            Scope.MAIL,
            Scope.SUBMIT,
            Scope.SETTINGS,
            Scope.SIEVE,
        )
    }


def caller_with_permissions(permissions: Collection[AdminPermission]) -> str:
    """The name of the DOMAIN_ADMIN who has these permissions and no others."""
    return PERMISSIONS_PREFIX + "+".join(permissions)


async def _make_admins_with_some_permissions(
    environment: Environment, http: httpx.AsyncClient
) -> dict[str, str]:
    """Create a DOMAIN_ADMIN for each set of permissions that a field declares.

    Returns the access tokens by the name of the caller. For two permissions, there are also
    callers with one of them.
    """
    needed = {access.permissions for access in declared_access_by_coordinate().values()} - {()}
    needed |= {(permission,) for permissions in needed for permission in permissions}
    secrets = {}
    for nth, permissions in enumerate(sorted(needed)):
        client = await make_domain_admin(environment, http, f"some{nth}", permissions)
        caller = caller_with_permissions(permissions)
        secrets[caller] = await make_access_token(environment, client.user)
    return secrets


async def _delete_accounts(
    environment: Environment, objects_by_username: dict[str, TargetObjects]
) -> None:
    """For each target, create and delete an account of the same role and domain."""
    root = Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
    for name in ("bob", "over", "top", "faraway"):
        target = objects_by_username[name]
        domain = target.address.split("@")[1]
        new_user = NewUser(
            username=f"gone{name}",
            address=f"gone{name}@{domain}",
            role=target.user.role,
            password_disabled=True,
        )
        user = await creation_create.create_user(root, new_user)
        await user_delete.delete_users_or_reschedule_purge(
            root, UserSelector(ids=(user.id,)), FUTURE
        )
        target.text_by_name["deleted"] = str(global_ids.encode("User", user.id))
        target.text_by_name["gone"] = user.username
        target.ids_by_kind["DeletedUser"] = user.id


async def _upload_mailboxes(http: httpx.AsyncClient, secrets: dict[str, str]) -> dict[str, str]:
    """Upload a mailbox as each caller with an account and a scope for it; return their ids."""
    without_upload = {"root-key", *map(caller_with_scope, Scope)} - {caller_with_scope(Scope.MAIL)}
    upload_ids = {}
    for caller in [name for name in secrets if name not in without_upload]:
        headers = {"authorization": f"Bearer {secrets[caller]}"}
        response = await http.post("/rest/uploads", content=MBOX, headers=headers)
        assert response.is_success, (caller, response.text)
        upload_ids[caller] = str(response.json()["id"])
    return upload_ids


async def _create_signing_keys(server: TargetServer) -> None:
    """Create a signing key for each domain; the targets of a domain share it."""
    create = """mutation ($input: DkimKeySetInput!) {
      dkimKeySet(input: $input) { dkimKeys { id } errors { message } } }"""
    for domain in ("example.org", "far.example"):
        input_fields = {"domains": [{"name": domain}], "selector": "first", "algorithm": "ED25519"}
        response = (await server.post("root-key", create, {"input": input_fields})).json()
        key_id = global_ids.decode("DkimKey", response["data"]["dkimKeySet"]["dkimKeys"][0]["id"])
        for target in server.objects_by_username.values():
            if target.address.endswith(f"@{domain}"):
                target.ids_by_kind["DkimKey"] = key_id


async def _open_sessions(
    server: TargetServer, environment: Environment, stack: contextlib.AsyncExitStack
) -> None:
    """Open a WebSocket of each target, until the stack ends."""
    registry = environment.live_sessions
    for target in server.objects_by_username.values():
        secret = await make_access_token(environment, target.user)
        known_ids = {session.session_id for session in registry}
        await stack.enter_async_context(await server.live_server.open_websocket(secret=secret))
        (target.ids_by_kind["Session"],) = {
            session.session_id for session in registry if session.session_id not in known_ids
        }


@contextlib.asynccontextmanager
async def run_target_server(environment: Environment, folder: Path) -> AsyncGenerator[TargetServer]:
    """Run a server whose accounts have one object of each kind."""
    async with (
        run_live_server(environment, folder) as live,
        contextlib.AsyncExitStack() as stack,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{live.port}", timeout=HANG_SECONDS) as http,
    ):
        bare_domain_admin = await make_domain_admin(environment, http, "bare")
        full_domain_admin = await make_domain_admin(
            environment, http, "every", list(AdminPermission)
        )
        administrator = await make_client(environment, http, "over", role=Role.ADMIN)
        ada = await make_user(environment, "ada")
        root = Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
        other_user = NewUser(
            username="faraway", address="faraway@far.example", password_disabled=True
        )
        await creation_create.create_user(root, other_user)
        for name, role in (("bob", Role.USER), ("top", Role.ROOT), ("sharer", Role.USER)):
            await make_user(environment, name, role=role)
        users = await environment.database.read(select(*select_columns(User)))
        users_by_name = {row.username: row for row in users}
        objects_by_username = {}
        for name in ("ada", "bob", "bare", "every", "over", "top", "faraway"):
            domain = "far.example" if name == "faraway" else "example.org"
            objects_by_username[name] = await create_target_objects(
                environment, users_by_name[name], f"{name}@{domain}", users_by_name["sharer"]
            )
        await _delete_accounts(environment, objects_by_username)
        while await index_worker.index_next_batch_and_record_contacts(environment):
            pass
        secrets = {
            "user": await make_access_token(environment, ada),
            "domain-bare": await make_access_token(environment, bare_domain_admin.user),
            "domain-admin": await make_access_token(environment, full_domain_admin.user),
            "admin": await make_access_token(environment, administrator.user),
            "root-key": await make_api_key(environment, "root-key", role=Role.ROOT),
            **await _make_admins_with_some_permissions(environment, http),
            **await _make_keys_with_one_scope(environment, administrator.user.id),
        }
        server = TargetServer(
            live, http, secrets, objects_by_username, await _upload_mailboxes(http, secrets)
        )
        await _create_signing_keys(server)
        await _open_sessions(server, environment, stack)
        yield server
