"""A field that is refused or fails is null, and every other field of the request has its value."""

from pathlib import Path
from typing import Any

import httpx
from graphql import GraphQLField, GraphQLNonNull, GraphQLObjectType

from graph.app import create_app
from graph.execution.strawberry_definitions import python_class_of_type, strawberry_definition
from graph.schema import schema
from models.runtime.environment import Environment
from tests.support.schema.access_matrix import (
    BOOTSTRAP_KEY,
    CALLERS_BY_CLASS,
    FIELD_RULES,
    OBJECT_OWNERS,
    build_operation,
    credential_header,
    field_coordinates,
    is_guarded,
    make_credentials,
)
from tests.support.schema.printed_schema import SDL
from tests.support.schema.resolver_names import names_used_by_resolver

SIBLING = "sibling: viewer { role }"
SIGNED_IN_CALLERS = ("user", "bare", "domain-bare", "admin-reader", "submit", "root-key")
PUBLIC_FIELD = "Query.viewer"
READERS = {"object_store", "dns_resolver"}  # names by which resolvers read stored bytes and DNS
NON_NULL_READERS = {
    "AttachedMessage.attachments",  # made of the parts that its parent has read
    "Attachment.url",  # signs the URL; a field of its row is named like a field that reads
    "Blob.refCount",  # only compares the name of the object store
    "DkimKey.dnsState",  # UNKNOWN if no name server responds
    "SavedSearch.messageCount", "SavedSearch.unseenCount",  # skip damaged messages
}  # fmt: skip


def read_fields() -> list[tuple[str, str, GraphQLField]]:
    """Type, name and definition of each field that is read, outside Mutation and Subscription."""
    return [
        (kind.name, name, field)
        for kind in SDL.type_map.values()
        if isinstance(kind, GraphQLObjectType)
        and kind.name not in ("Mutation", "Subscription")
        and not kind.name.startswith("__")
        for name, field in kind.fields.items()
    ]


def test_fields_with_guards_or_arguments_are_nullable() -> None:
    non_null = {
        f"{kind}.{name}"
        for kind, name, field in read_fields()
        if (is_guarded(field) or field.args) and isinstance(field.type, GraphQLNonNull)
    }
    assert non_null == {PUBLIC_FIELD}


def test_fields_that_read_stored_bytes_or_ask_other_servers_are_nullable() -> None:
    nullable, non_null = set[str](), set[str]()
    for kind, name, field in read_fields():
        object_type: Any = schema._schema.type_map[kind]  # noqa: SLF001 - with its resolvers
        resolver = strawberry_definition(object_type.fields[name]).base_resolver
        view = python_class_of_type(object_type)
        if resolver and READERS & names_used_by_resolver(resolver.wrapped_func, view):
            names = non_null if isinstance(field.type, GraphQLNonNull) else nullable
            names.add(f"{kind}.{name}")
    assert non_null == NON_NULL_READERS
    assert {"Message.text", "MessageImap.size", "Attachment.message", "Blob.text"} <= nullable


def test_fields_of_mutation_are_nullable() -> None:
    mutation: Any = SDL.mutation_type
    assert not [
        name for name, field in mutation.fields.items() if isinstance(field.type, GraphQLNonNull)
    ]


def refused_callers(coordinate: str) -> list[str]:
    """Return the signed-in callers that may not read a field; at most two."""
    allowed = CALLERS_BY_CLASS[FIELD_RULES[coordinate]]
    return [caller for caller in SIGNED_IN_CALLERS if caller not in allowed][:2]


def non_null_problem(kind: str, name: str, response: dict[str, Any]) -> object:
    """Return what is wrong with the response to a refused field beside SIBLING, or None."""
    data, errors = response.get("data"), response.get("errors") or []
    if not data or not (data.get("sibling") or {}).get("role"):
        return response
    if {error["extensions"]["code"] for error in errors} != {"FORBIDDEN"}:
        return response
    path = errors[0]["path"]
    is_parent_refused = path[-1] != name
    return None if is_parent_refused or kind == "Query" or data[path[0]] else response


async def test_refused_field_leaves_its_siblings(environment: Environment, tmp_path: Path) -> None:
    app = create_app(environment, spool_folder=tmp_path, bootstrap_key=BOOTSTRAP_KEY)
    transport = httpx.ASGITransport(app=app)
    problems, refused_count = [], 0
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as server:
        credentials = await make_credentials(environment, server)
        for kind, name in field_coordinates():
            if kind in ("Mutation", "Subscription"):
                continue
            text, variables = build_operation(kind, name)
            for caller in refused_callers(f"{kind}.{name}"):
                owner = OBJECT_OWNERS.get(kind, {}).get(caller, "ada")
                document = text.replace("WHOSE", owner).replace("{", f"{{ {SIBLING} ", 1)
                response = await server.post(
                    "/graphql",
                    json={"query": document, "variables": variables},
                    headers=credential_header(credentials[caller]),
                )
                refused_count += 1
                if problem := non_null_problem(kind, name, response.json()):
                    problems.append((f"{kind}.{name}", caller, problem))
    assert not problems
    assert refused_count > 60
