"""The access matrix (access_matrix.toml): its credentials, and the verdict of a request."""

import asyncio
import base64
import tomllib
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
from graphql import GraphQLArgument, GraphQLField, GraphQLNonNull, GraphQLObjectType

from graph.execution.operation_execution import OperationContext
from graph.http.graphql_request import GraphqlRequest
from graph.schema import schema
from graph.subscriptions import result_stream
from mail.delivery import pipeline, quarantine
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.events.wakeups import FollowerWakeup
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.auth import app_passwords, authentication
from resolvers.auth.app_password_validation import AppPasswordScope, NewAppPassword
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import make_api_key, make_client, make_user, raw_message
from tests.support.accounts.access_tokens import make_access_token
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.clients.change_followers import all_wakeups
from tests.support.schema.printed_schema import SDL
from tests.support.schema.sample_inputs import sample_input, sample_selection

ACCESS_MATRIX = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
CALLERS = ACCESS_MATRIX["callers"]
FIELD_RULES = ACCESS_MATRIX["fields"]
SUBSCRIPTION_CHECKS = 200  # within a second, for subscriptions that follow no journal
CALLERS_BY_CLASS = {
    name: frozenset(CALLERS) if text == "*" else frozenset(text.split())
    for name, text in ACCESS_MATRIX["classes"].items()
}
NO_USER_MESSAGE = "The credential belongs to no account: use a user's credential."
SCOPES_BY_CALLER = {
    "read": Scope.READ,
    "mail-read": Scope.MAIL_READ,
    "mail": Scope.MAIL,
    "submit": Scope.SUBMIT,
    "settings": Scope.SETTINGS,
    "imap": Scope.IMAP,
    "pop3": Scope.POP3,
    "smtp": Scope.SMTP,
    "sieve": Scope.SIEVE,
}
REFUSAL_CODES = {"FORBIDDEN", "UNAUTHENTICATED", "SECOND_FACTOR_REQUIRED"}
DEFAULT_REFUSALS = {"nobody": "UNAUTHENTICATED", "pending": "SECOND_FACTOR_REQUIRED"}
BOOTSTRAP_KEY = "the key of whoever owns it"
OPERATION_BY_ROOT_TYPE = {"Query": "query", "Mutation": "mutation", "Subscription": "subscription"}
OBJECT_QUERIES = {  # queries that reach an object of each type with guarded fields
    "Address": 'user(by: {username: "WHOSE"}) { address { FIELD } }',
    "Blob": 'blob(path: "admin/x") { FIELD }',
    "Health": "health { FIELD }",
    "Domain": 'domain(by: {name: "example.org"}) { FIELD }',
    "DeliveryTraceStep": 'deliveryTrace(filter: {recipient: "example.org"}) { nodes { FIELD } }',
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
# one of several arguments must be given
REQUIRED_ALTERNATIVES = {
    ("statistics", "domain"),
    ("statistics", "to"),
}
# Arguments that accept no other text.
TEXT_ARGUMENTS = {"from": "2030-12-31T00:00:00Z", "address": "ada@example.org", "path": "admin/x"}


def is_guarded(field: GraphQLField) -> bool:
    """True if the field has the directive `@auth`."""
    node = field.ast_node
    return any(
        directive.name.value == "auth" for directive in (node.directives if node else None) or ()
    )


def field_coordinates() -> Iterator[tuple[str, str]]:
    """Type and name of each root field, and of each guarded field of other objects."""
    for type_ in SDL.type_map.values():
        if isinstance(type_, GraphQLObjectType) and not type_.name.startswith("__"):
            for name, field in type_.fields.items():
                if type_.name in OPERATION_BY_ROOT_TYPE or is_guarded(field):
                    yield type_.name, name


def is_required(value: GraphQLArgument) -> bool:
    """True if the argument must be given."""
    default = getattr(value.ast_node, "default_value", None)
    return isinstance(value.type, GraphQLNonNull) and default is None


def build_operation(kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return an operation that selects the field, and its variables."""
    parent: Any = SDL.type_map[kind]
    field: GraphQLField = parent.fields[name]
    needed: dict[str, GraphQLArgument] = {
        argument: value
        for argument, value in field.args.items()
        if is_required(value) or argument == "input" or (name, argument) in REQUIRED_ALTERNATIVES
    }
    definitions = ", ".join(
        f"${argument_name}: {value.type}" for argument_name, value in needed.items()
    )
    arguments = ", ".join(f"{argument_name}: ${argument_name}" for argument_name in needed)
    selection = f"{name}{f'({arguments})' if arguments else ''} {sample_selection(field)}"
    variables = {
        argument_name: TEXT_ARGUMENTS.get(argument_name) or sample_input(value.type)
        for argument_name, value in needed.items()
    }
    head = f"({definitions})" if definitions else ""
    if kind in OPERATION_BY_ROOT_TYPE:
        return f"{OPERATION_BY_ROOT_TYPE[kind]}{head} {{ {selection} }}", variables
    return f"query{head} {{ {OBJECT_QUERIES[kind].replace('FIELD', selection)} }}", variables


async def make_credentials(
    environment: Environment, http: httpx.AsyncClient
) -> dict[str, str | None]:
    """Create the users and keys of the matrix and return the credential of each caller."""
    ada, bare = await make_user(environment, "ada"), await make_user(environment, "bare")
    await environment.object_store.put("admin/x", b"x")
    async with environment.write_session(bare.id) as session:
        (await session.get_one(User, bare.id)).permissions = []
    administrator = await make_client(environment, http, "over", role=Role.ADMIN)
    full_domain_admin = await make_domain_admin(environment, http, "every", list(AdminPermission))
    bare_domain_admin = await make_domain_admin(environment, http, "none")
    for name in ("ada", "bare", "none"):
        recipient = await address_resolution.load_recipient_below_limits(
            environment, f"{name}@example.org"
        )
        await received_messages.store_once_for_recipient(
            environment,
            await received_messages.parse_storable_message(raw_message()),
            recipient,
            "carol@example.com",
        )
        incoming = await pipeline.read_and_verify_incoming(
            environment, raw_message("Held"), "carol@example.com"
        )
        await quarantine.quarantine_message(
            environment, incoming, recipient, quarantine.QuarantineReason(9.0)
        )
    ada_key = {"user_id": ada.id, "role": Role.USER}
    scoped_keys = {
        name: await make_api_key(environment, name, **ada_key, scopes=[scope])
        for name, scope in SCOPES_BY_CALLER.items()
    }
    ada_context = Context(environment, Viewer(ada.id, Role.USER, frozenset({Scope.FULL})))
    new_password = NewAppPassword("Reader", scopes=(AppPasswordScope.MAIL_READ,))
    password = (await app_passwords.create_app_password(ada_context, None, new_password)).password
    basic = base64.b64encode(f"ada:{password}".encode()).decode()
    return {
        "nobody": None,
        "user": await make_access_token(environment, ada),
        "pending": await make_access_token(environment, ada, pending=True),
        "acting": await make_access_token(environment, ada, actor_id=administrator.user.id),
        "user-key": await make_api_key(environment, "user-key", **ada_key),
        "read-only": await make_api_key(environment, "read-only", **ada_key, read_only=True),
        "bare": await make_access_token(environment, bare),
        **scoped_keys,
        "one-operation": await make_api_key(environment, "one", **ada_key, operations=["viewer"]),
        "app-password": f"Basic {basic}",
        "domain-admin": await make_access_token(environment, full_domain_admin.user),
        "domain-bare": await make_access_token(environment, bare_domain_admin.user),
        "admin": await make_access_token(environment, administrator.user),
        "admin-key": await make_api_key(environment, "admin-key", role=Role.ADMIN),
        "admin-reader": await make_api_key(
            environment, "admin-reader", role=Role.ADMIN, read_only=True
        ),
        "root-key": await make_api_key(environment, "root-key", role=Role.ROOT),
        "bootstrap": BOOTSTRAP_KEY,
    }


def credential_header(secret: str | None) -> dict[str, str]:
    """The Authorization header with a credential."""
    if secret is None:
        return {}
    return {"authorization": secret if secret.startswith("Basic ") else f"Bearer {secret}"}


async def request_verdict(
    server: httpx.AsyncClient, secret: str | None, document: str, variables: dict[str, Any]
) -> str:
    """Run a query or mutation; return ALLOWED, UNSEEN or the code of the refusal."""
    headers = credential_header(secret)
    body = {"query": document, "variables": variables}
    response = await server.post("/graphql", json=body, headers=headers)
    return response_verdict(response.json())


async def subscription_verdict(
    environment: Environment, secret: str | None, document: str, variables: dict[str, Any]
) -> str:
    """Start a subscription; return ALLOWED or the code of the refusal."""
    viewer = await authentication.authenticate_request(
        environment, credential_header(secret), bootstrap=BOOTSTRAP_KEY
    )
    request = GraphqlRequest(document, variables, None, None)
    wakeups_before = all_wakeups(environment)
    async with aclosing(
        result_stream.stream_results(schema, request, OperationContext(environment, viewer))
    ) as results:
        first = asyncio.ensure_future(anext(results))
        for _ in range(SUBSCRIPTION_CHECKS):
            if first.done() or _has_started(environment, wakeups_before):
                break
            await asyncio.sleep(0.005)
        if not first.done():
            first.cancel()
            await asyncio.wait([first])
            return "ALLOWED"
    errors = [error.formatted for error in first.result().result.errors or []]
    return response_verdict({"errors": errors, "data": {}})


def _has_started(environment: Environment, wakeups_before: set[FollowerWakeup]) -> bool:
    """True if a subscription has read its position since then: it was not refused."""
    return any(wakeup.started.is_set() for wakeup in all_wakeups(environment) - wakeups_before)


def response_verdict(response: Any) -> str:
    """ALLOWED, UNSEEN if the query reached no object, or the code of the refusal.

    A mutation is refused in its payload, by an error without a path. The error that a credential
    belongs to no user counts as allowed.
    """
    errors = list(response.get("errors") or [])
    for payload in (response.get("data") or {}).values():
        payload_errors = payload.get("errors") if isinstance(payload, dict) else None
        errors += [
            {**payload_error, "extensions": payload_error}
            for payload_error in payload_errors or ()
            if not payload_error["path"]
        ]
    for error in errors:
        code: str = error["extensions"]["code"]
        if code in {"BAD_USER_INPUT", "GRAPHQL_VALIDATION_FAILED", "INTERNAL_SERVER_ERROR"}:
            return f"{code}: {error['message']}"
        if code in REFUSAL_CODES and error["message"] != NO_USER_MESSAGE:
            return code
    user = response["data"].get("user", "") if not errors else ""
    if user is None or (
        isinstance(user, dict) and any(is_empty_list(value) for value in user.values())
    ):
        return "UNSEEN"
    return "ALLOWED"


def is_empty_list(value: Any) -> bool:
    """True if the value is a list of the API without nodes."""
    return isinstance(value, dict) and value.get("nodes") == []
