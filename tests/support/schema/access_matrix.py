"""The access matrix (access_matrix.toml), its credentials and verdicts."""

import asyncio
import base64
import tomllib
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
from graphql import GraphQLField, GraphQLObjectType

from graph.execution.operation_execution import OperationContext
from graph.http.graphql_request import GraphqlRequest
from graph.schema import schema
from graph.subscriptions import result_stream
from mail.delivery import pipeline, quarantine
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.auth import app_passwords, authentication
from resolvers.auth.app_passwords import AppPasswordScope, NewAppPassword
from resolvers.context import Context, Viewer
from tests.conftest import make_client, make_key, make_user, raw_message
from tests.support.accounts.access_tokens import make_access_token
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.schema.printed_schema import SDL

ACCESS_MATRIX = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
CALLERS = ACCESS_MATRIX["callers"]
FIELD_RULES = ACCESS_MATRIX["fields"]
CALLERS_BY_CLASS = {
    name: frozenset(CALLERS) if text == "*" else frozenset(text.split())
    for name, text in ACCESS_MATRIX["classes"].items()
}
NO_USER_MESSAGE = "this credential belongs to no account"
SCOPED_CALLERS = (
    "read",
    "mail-read",
    "mail",
    "submit",
    "settings",
    "imap",
    "pop3",
    "smtp",
    "sieve",
)
DEFAULT_REFUSALS = {"nobody": "UNAUTHENTICATED", "pending": "UNAUTHENTICATED"}
BOOTSTRAP_KEY = "the key of whoever owns it"
OPERATION_BY_ROOT_TYPE = {"Query": "query", "Mutation": "mutation", "Subscription": "subscription"}
OBJECT_QUERIES = {  # queries that reach an object of each type with guarded fields
    "Address": 'user(by: {username: "WHOSE"}) { address { FIELD } }',
    "Domain": 'domain(by: {name: "example.org"}) { FIELD }',
    "MessageTraceEvent": 'messageTraceEvents(filter: {recipient: "example.org"}) '
    "{ nodes { FIELD } }",
    "Message": 'user(by: {username: "WHOSE"}) { messages(first: 1) { nodes { FIELD } } }',
    "QuarantineItem": 'user(by: {username: "WHOSE"}) { quarantine(first: 1) { nodes { FIELD } } }',
    "User": 'user(by: {username: "WHOSE"}) { FIELD }',
}
OBJECT_OWNERS = {  # owner of the object by type and caller; default: ada
    "Address": {"bare": "bare"},
    "Message": {"bare": "bare", "domain-bare": "none"},
    "QuarantineItem": {"bare": "bare", "domain-bare": "none"},
    "User": {"bare": "bare"},
}


def is_guarded(field: GraphQLField) -> bool:
    """True if the field has the directive `@auth`."""
    node = field.ast_node
    return any(one.name.value == "auth" for one in (node.directives if node else None) or ())


def field_coordinates() -> Iterator[tuple[str, str]]:
    """Type and name of each root field, and of each guarded field of other objects."""
    for kind in SDL.type_map.values():
        if isinstance(kind, GraphQLObjectType) and not kind.name.startswith("__"):
            for name, field in kind.fields.items():
                if kind.name in OPERATION_BY_ROOT_TYPE or is_guarded(field):
                    yield kind.name, name


async def make_credentials(world: Environment, http: httpx.AsyncClient) -> dict[str, str | None]:
    """Make the users and keys of the matrix; return the credential of each caller."""
    ada, bare = await make_user(world, "ada"), await make_user(world, "bare")
    async with world.write_session(bare.id) as session:
        (await session.get_one(User, bare.id)).permissions = []
    over = await make_client(world, http, "over", role=Role.ADMIN)
    every = await make_domain_admin(world, http, "every", list(AdminPermission))
    none = await make_domain_admin(world, http, "none")
    for name in ("ada", "bare", "none"):
        to = await address_resolution.load_recipient(world, f"{name}@example.org")
        await received_messages.store_for_recipient(
            world, await received_messages.read_message(raw_message()), to, "carol@example.com"
        )
        held = await pipeline.read_incoming(world, raw_message("Held"), "carol@example.com")
        await quarantine.quarantine_message(world, held, to, quarantine.QuarantineReason(9.0))
    own = {"user_id": ada.id, "role": Role.USER}
    scoped = {
        name: await make_key(world, name, **own, scopes=[Scope[name.upper().replace("-", "_")]])
        for name in SCOPED_CALLERS
    }
    mine = Context(world, Viewer(ada.id, Role.USER, frozenset({Scope.MASTER})))
    new = NewAppPassword("Reader", scopes=(AppPasswordScope.MAIL_READ,))
    password = (await app_passwords.create_app_password(mine, None, new)).password
    basic = base64.b64encode(f"ada:{password}".encode()).decode()
    return {
        "nobody": None,
        "user": await make_access_token(world, ada),
        "pending": await make_access_token(world, ada, pending=True),
        "acting": await make_access_token(world, ada, actor_id=over.user.id),
        "user-key": await make_key(world, "user-key", **own),
        "read-only": await make_key(world, "read-only", **own, read_only=True),
        "bare": await make_access_token(world, bare),
        **scoped,
        "one-operation": await make_key(world, "one", **own, operations=["viewer"]),
        "app-password": f"Basic {basic}",
        "domain-admin": await make_access_token(world, every.user),
        "domain-bare": await make_access_token(world, none.user),
        "admin": await make_access_token(world, over.user),
        "admin-key": await make_key(world, "admin-key", role=Role.ADMIN),
        "admin-reader": await make_key(world, "admin-reader", role=Role.ADMIN, read_only=True),
        "root-key": await make_key(world, "root-key", role=Role.ROOT),
        "bootstrap": BOOTSTRAP_KEY,
    }


def credential_header(secret: str | None) -> dict[str, str]:
    """The Authorization header with a credential."""
    if secret is None:
        return {}
    return {"authorization": secret if secret.startswith("Basic ") else f"Bearer {secret}"}


async def request_verdict(
    server: httpx.AsyncClient, secret: str | None, text: str, variables: dict[str, Any]
) -> str:
    """Run a query or mutation; return ALLOWED, UNSEEN or the code of the refusal."""
    headers = credential_header(secret)
    body = {"query": text, "variables": variables}
    answer = await server.post("/graphql", json=body, headers=headers)
    return response_verdict(answer.json())


async def subscription_verdict(
    world: Environment, secret: str | None, text: str, variables: dict[str, Any]
) -> str:
    """Start a subscription; return ALLOWED or the code of the refusal."""
    viewer = await authentication.authenticate_request(
        world, credential_header(secret), bootstrap=BOOTSTRAP_KEY
    )
    request = GraphqlRequest(text, variables, None, None)
    async with aclosing(
        result_stream.stream_results(schema, request, OperationContext(world, viewer))
    ) as results:
        try:
            first = await asyncio.wait_for(anext(results), 0.05)
        except TimeoutError:
            return "ALLOWED"
    errors = [error.formatted for error in first.result.errors or []]
    return response_verdict({"errors": errors, "data": {}})


def response_verdict(answer: Any) -> str:
    """ALLOWED, UNSEEN if the query reached no object, or the code of the refusal.

    A mutation is refused in its payload, by an error without a path. That a credential
    belongs to no user counts as allowed.
    """
    errors = list(answer.get("errors") or [])
    for payload in (answer.get("data") or {}).values():
        payload_errors = payload.get("errors") if isinstance(payload, dict) else None
        errors += [{**one, "extensions": one} for one in payload_errors or () if not one["path"]]
    for error in errors:
        code: str = error["extensions"]["code"]
        if code in {"BAD_USER_INPUT", "GRAPHQL_VALIDATION_FAILED", "INTERNAL_SERVER_ERROR"}:
            return f"{code}: {error['message']}"
        if code in {"FORBIDDEN", "UNAUTHENTICATED"} and error["message"] != NO_USER_MESSAGE:
            return code
    seen = answer["data"].get("user", "") if not errors else ""
    if seen is None or (
        isinstance(seen, dict) and any(is_empty_list(each) for each in seen.values())
    ):
        return "UNSEEN"
    return "ALLOWED"


def is_empty_list(value: Any) -> bool:
    """True if the value is a list of the API without nodes."""
    return isinstance(value, dict) and value.get("nodes") == []
