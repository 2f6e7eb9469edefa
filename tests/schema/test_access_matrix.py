"""Access to every root field and guarded field by every kind of caller (access_matrix.toml)."""

import asyncio
import base64
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import (
    GraphQLArgument,
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    get_named_type,
)

from graph.app import create_app
from graph.execution.operation_execution import Operation
from graph.http.graphql_request import Question
from graph.schema import schema
from graph.subscriptions import result_stream
from graph.types import global_ids
from mail.delivery import pipeline, quarantine
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.auth.credentials import AccessToken
from models.runtime.environment import World
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.auth import app_passwords, authentication
from resolvers.auth.app_passwords import AppPasswordScope, NewAppPassword
from resolvers.auth.credential_status import TOKEN, digest_of, new_secret
from resolvers.context import Context, Viewer
from tests.conftest import make_client, make_key, make_user, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.schema.printed_schema import SDL

FILE = tomllib.loads(
    (Path(__file__).parents[1] / "support" / "schema" / "access_matrix.toml").read_text()
)
CALLERS, FIELDS = FILE["callers"], FILE["fields"]
CLASSES = {
    name: frozenset(CALLERS) if text == "*" else frozenset(text.split())
    for name, text in FILE["classes"].items()
}
NOBODYS = "this credential belongs to no account"
SCOPED = ("read", "mail-read", "mail", "submit", "settings", "imap", "pop3", "smtp", "sieve")
REFUSED = {"nobody": "UNAUTHENTICATED", "pending": "UNAUTHENTICATED"}
BOOTSTRAP = "the key of whoever owns it"
ROOTS = {"Query": "query", "Mutation": "mutation", "Subscription": "subscription"}
SAMPLES: dict[str, Any] = {  # a value of each scalar that its own parser takes
    "Boolean": False, "Int": 1, "Float": 1.0, "String": "x", "JSON": {}, "BigInt": 1,
    "ByteSize": 1, "CIDR": "192.0.2.0/24", "DateTime": "2031-01-01T00:00:00Z", "Duration": "PT1H",
    "EmailAddress": "x@example.org", "IPAddress": "192.0.2.1", "URL": "https://example.org/",
    "Upload": "eA==", "Cursor": "1.1.1", "ID": global_ids.encode("User", 1),
}  # fmt: skip


ALSO = {("filterTest", "raw"), ("messageTrace", "queueId")}  # of several one must be given
CHOSEN = {"ImportSource": "upload"}  # its first is for ROOT alone
CONDITIONS = {  # selections need a condition
    "MessageSelection": {"ids": [global_ids.encode("Message", 1)]},
    "MessageTraceFilter": {"recipient": "ada@example.org"},
    "UserSelection": {"usernames": ["x"]},
}
NAMED = {"address": "ada@example.org"}  # arguments that take no other text


def guarded(field: GraphQLField) -> bool:
    """Whether a field says by `@auth` who may use it."""
    node = field.ast_node
    return any(one.name.value == "auth" for one in (node.directives if node else None) or ())


def coordinates() -> Iterator[tuple[str, str]]:
    """The root fields, and those of objects that are guarded."""
    for kind in SDL.type_map.values():
        if isinstance(kind, GraphQLObjectType) and not kind.name.startswith("__"):
            for name, field in kind.fields.items():
                if kind.name in ROOTS or guarded(field):
                    yield kind.name, name


def sample(kind: Any) -> Any:
    """A value that an input takes; of its members only those it must have."""
    if isinstance(kind, GraphQLNonNull):
        return sample(kind.of_type)
    if isinstance(kind, GraphQLList):
        return [sample(kind.of_type)]
    if isinstance(kind, GraphQLEnumType):
        return next(iter(kind.values))
    return member(kind) if isinstance(kind, GraphQLInputObjectType) else SAMPLES[kind.name]


def member(kind: GraphQLInputObjectType) -> Any:
    """The same of an input object; whatever it changes is only tried."""
    if kind.is_one_of:
        first = CHOSEN.get(kind.name) or next(iter(kind.fields))
        return {first: sample(kind.fields[first].type)}
    if kind.name == "MessageFilter":
        return {"query": "x"}  # what nothing but words can be asked of needs some
    if kind.name in CONDITIONS:
        return CONDITIONS[kind.name]
    given = {
        name: sample(value.type)
        for name, value in kind.fields.items()
        if isinstance(value.type, GraphQLNonNull)
        and getattr(value.ast_node, "default_value", None) is None
    }
    return {**given, **({"options": {"validateOnly": True}} if "options" in kind.fields else {})}


def selection(field: GraphQLField) -> str:
    """What is asked of an object: its type, or of a payload its errors."""
    kind = get_named_type(field.type)
    if "errors" in getattr(kind, "fields", ()):
        return "{ errors { code message path } }"
    composite = isinstance(kind, GraphQLObjectType | GraphQLInterfaceType) or hasattr(kind, "types")
    return "{ __typename }" if composite else ""


def needs(value: GraphQLArgument) -> bool:
    """Whether an argument must be given."""
    default = getattr(value.ast_node, "default_value", None)
    return isinstance(value.type, GraphQLNonNull) and default is None


def document(kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """An operation that uses the field, and its variables."""
    parent: Any = SDL.type_map[kind]
    field: GraphQLField = parent.fields[name]
    needed: dict[str, GraphQLArgument] = {
        argument: value
        for argument, value in field.args.items()
        if needs(value) or argument == "input" or (name, argument) in ALSO
    }
    declared = ", ".join(f"${one}: {value.type}" for one, value in needed.items())
    handed = ", ".join(f"{one}: ${one}" for one in needed)
    asked = f"{name}{f'({handed})' if handed else ''} {selection(field)}"
    variables = {one: NAMED.get(one) or sample(value.type) for one, value in needed.items()}
    head = f"({declared})" if declared else ""
    if kind in ROOTS:
        return f"{ROOTS[kind]}{head} {{ {asked} }}", variables
    return f"query{head} {{ {REACHED[kind].replace('FIELD', asked)} }}", variables


REACHED = {  # how an object is come by whose fields are guarded
    "Address": 'user(by: {username: "WHOSE"}) { address { FIELD } }',
    "Domain": 'domain(by: {name: "example.org"}) { FIELD }',
    "MessageTraceEvent": 'messageTraceEvents(filter: {recipient: "example.org"}) '
    "{ nodes { FIELD } }",
    "Message": 'user(by: {username: "WHOSE"}) { messages(first: 1) { nodes { FIELD } } }',
    "QuarantineItem": 'user(by: {username: "WHOSE"}) { quarantine(first: 1) { nodes { FIELD } } }',
    "User": 'user(by: {username: "WHOSE"}) { FIELD }',
}
OWN = {  # else Ada's
    "Address": {"bare": "bare"},
    "Message": {"bare": "bare", "domain-bare": "none"},
    "QuarantineItem": {"bare": "bare", "domain-bare": "none"},
    "User": {"bare": "bare"},
}


@pytest.fixture
async def server(world: World, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(world, spool=tmp_path, bootstrap=BOOTSTRAP)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://test"
    ) as client:
        yield client


async def token_of(world: World, user: User, **more: Any) -> str:
    """A token, as signing in gives it."""
    secret, now = new_secret(world, TOKEN), world.now()
    row = AccessToken(
        id=world.key(), user_id=user.id, digest=digest_of(secret), auth_version=1,
        created_at=now, last_used_at=now, expires_at=now + world.options.token_idle, **more,
    )  # fmt: skip
    async with world.write(user.id) as session:
        session.add(row)
    return secret


async def credentials(world: World, http: httpx.AsyncClient) -> dict[str, str | None]:
    """What each caller shows."""
    ada, bare = await make_user(world, "ada"), await make_user(world, "bare")
    async with world.write(bare.id) as session:
        (await session.get_one(User, bare.id)).permissions = []
    over = await make_client(world, http, "over", role=Role.ADMIN)
    every = await make_domain_admin(world, http, "every", list(AdminPermission))
    none = await make_domain_admin(world, http, "none")
    for name in ("ada", "bare", "none"):
        to = await address_resolution.recipient(world, f"{name}@example.org")
        await received_messages.receive(
            world, await received_messages.read(raw_message()), to, "carol@example.com"
        )
        held = await pipeline.receive(world, raw_message("Held"), "carol@example.com")
        await quarantine.hold(world, held, to, quarantine.Why(9.0))
    own = {"user_id": ada.id, "role": Role.USER}
    scoped = {
        name: await make_key(world, name, **own, scopes=[Scope[name.upper().replace("-", "_")]])
        for name in SCOPED
    }
    mine = Context(world, Viewer(ada.id, Role.USER, frozenset({Scope.MASTER})))
    new = NewAppPassword("Reader", scopes=(AppPasswordScope.MAIL_READ,))
    _, password, _ = await app_passwords.create(mine, None, new)
    basic = base64.b64encode(f"ada:{password}".encode()).decode()
    return {
        "nobody": None,
        "user": await token_of(world, ada),
        "pending": await token_of(world, ada, pending=True),
        "acting": await token_of(world, ada, actor_id=over.user.id),
        "user-key": await make_key(world, "user-key", **own),
        "read-only": await make_key(world, "read-only", **own, read_only=True),
        "bare": await token_of(world, bare),
        **scoped,
        "one-operation": await make_key(world, "one", **own, operations=["viewer"]),
        "app-password": f"Basic {basic}",
        "domain-admin": await token_of(world, every.user),
        "domain-bare": await token_of(world, none.user),
        "admin": await token_of(world, over.user),
        "admin-key": await make_key(world, "admin-key", role=Role.ADMIN),
        "admin-reader": await make_key(world, "admin-reader", role=Role.ADMIN, read_only=True),
        "root-key": await make_key(world, "root-key", role=Role.ROOT),
        "bootstrap": BOOTSTRAP,
    }


def test_every_field_has_its_decision() -> None:
    there = {f"{kind}.{name}" for kind, name in coordinates()}
    assert there == set(FIELDS)
    assert set(FIELDS.values()) <= set(CLASSES)
    assert set(CALLERS) >= set().union(*CLASSES.values())


def header(secret: str | None) -> dict[str, str]:
    """How a credential is shown."""
    if secret is None:
        return {}
    return {"authorization": secret if secret.startswith("Basic ") else f"Bearer {secret}"}


async def answered(
    server: httpx.AsyncClient, secret: str | None, text: str, variables: dict[str, Any]
) -> str:
    """ALLOWED, or the code of the refusal."""
    headers = header(secret)
    body = {"query": text, "variables": variables}
    answer = await server.post("/graphql", json=body, headers=headers)
    return verdict(answer.json())


async def followed(world: World, secret: str | None, text: str, variables: dict[str, Any]) -> str:
    """The same of a subscription: one that is let in says nothing for now."""
    viewer = await authentication.sign_in(world, header(secret), bootstrap=BOOTSTRAP)
    asked = Question(text, variables, None, None)
    async with aclosing(result_stream.stream(schema, asked, Operation(world, viewer))) as results:
        try:
            told = await asyncio.wait_for(anext(results), 0.05)
        except TimeoutError:
            return "ALLOWED"
    errors = [error.formatted for error in told.result.errors or []]
    return verdict({"errors": errors, "data": {}})


def verdict(answer: Any) -> str:
    """What became of it. That a credential belongs to nobody is no matter of rights.

    A mutation's guard refuses in the payload, as of nothing in its input.
    """
    errors = list(answer.get("errors") or [])
    for payload in (answer.get("data") or {}).values():
        said = payload.get("errors") if isinstance(payload, dict) else None
        errors += [{**one, "extensions": one} for one in said or () if not one["path"]]
    for error in errors:
        code: str = error["extensions"]["code"]
        if code in {"BAD_USER_INPUT", "GRAPHQL_VALIDATION_FAILED", "INTERNAL_SERVER_ERROR"}:
            return f"{code}: {error['message']}"
        if code in {"FORBIDDEN", "UNAUTHENTICATED"} and error["message"] != NOBODYS:
            return code
    seen = answer["data"].get("user", "") if not errors else ""
    if seen is None or (isinstance(seen, dict) and any(empty(each) for each in seen.values())):
        return "UNSEEN"  # then nothing was asked of the field
    return "ALLOWED"


def empty(found: Any) -> bool:
    """Whether it is a list that has nothing in it."""
    return isinstance(found, dict) and found.get("nodes") == []


async def test_who_may_use_what(world: World, server: httpx.AsyncClient) -> None:
    shown = await credentials(world, server)
    assert set(shown) == set(CALLERS)
    wrong = []
    for kind, name in coordinates():
        text, variables = document(kind, name)
        allowed = CLASSES[FIELDS[f"{kind}.{name}"]]
        for caller, secret in shown.items():
            asked = text.replace("WHOSE", OWN.get(kind, {}).get(caller, "ada"))
            if kind == "Subscription":
                code = await followed(world, secret, asked, variables)
            else:
                code = await answered(server, secret, asked, variables)
            expected = "ALLOWED" if caller in allowed else REFUSED.get(caller, "FORBIDDEN")
            if code != expected:
                wrong.append((f"{kind}.{name}", caller, code))
    assert not wrong
