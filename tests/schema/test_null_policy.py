"""A field that is refused or fails is null, and every other field of the request has its value."""

from pathlib import Path
from typing import Any

import httpx
from graphql import GraphQLField, GraphQLNonNull, GraphQLObjectType

from graph.app import create_app
from graph.execution.strawberry_definitions import (
    link_of_field_or_none,
    python_class_of_type,
    strawberry_definition,
)
from graph.schema import schema
from graph.types.object_views import NestedViewField
from models.errors import Forbidden, Unauthenticated
from models.runtime.environment import Environment
from resolvers.files import stored_files
from resolvers.messages import content_access
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

SCHEMA_TYPES: Any = schema._schema.type_map  # noqa: SLF001 - with the resolvers of the fields
SIBLING = "sibling: viewer { role }"
SIGNED_IN_CALLERS = ("user", "bare", "domain-bare", "admin-reader", "submit", "root-key")
PUBLIC_FIELD = "Query.viewer"
READERS = {"object_store", "dns_resolver"}  # names by which resolvers read stored bytes and DNS
NON_NULL_READERS = {
    "AttachedMessage.attachments",  # made of the parts that its parent has read
    "Blob.refCount",  # only compares the name of the object store
    "DkimKey.dnsState",  # UNKNOWN if no name server responds
}  # fmt: skip
GUARDS = {  # names by which resolvers refuse a viewer: `Viewer.require`, and the errors
    "require",
    *(error.__name__ for error in (Forbidden, Unauthenticated)),
    *(error.__name__ for error in Forbidden.__subclasses__() + Unauthenticated.__subclasses__()),
}
NON_NULL_GUARDED = {
    "AttachedMessage.attachments",  # made of the parts that its parent has read
    # A viewer who can load their object has the right that the resolver needs.
    "BanPolicy.hosts", "BanPolicy.permanentBans", "Mailbox.shares", "UserAffinity.sessionNodes",
}  # fmt: skip
WITHHOLDER = content_access.withhold_content_or_log_read.__name__
WITHHELD_COLUMNS = content_access.CONTENT_COLUMNS | stored_files.WITHHELD_COLUMNS


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


def functions_of_field(kind: str, name: str) -> list[Any]:
    """Return the functions that compute a field: its resolver, or those of its row or link."""
    object_type = SCHEMA_TYPES[kind]
    definition = strawberry_definition(object_type.fields[name])
    if definition.base_resolver:
        return [definition.base_resolver.wrapped_func]
    link = link_of_field_or_none(object_type.fields[name])
    if link:
        return [link.key_of_row, link.load_batch, link.object_from_row]
    derived_fields = getattr(python_class_of_type(object_type), "derived_fields", {})
    derived_field = derived_fields.get(definition.python_name)
    if isinstance(derived_field, NestedViewField):
        return [derived_field.sources_from_columns]
    return [derived_field.derive] if derived_field else []


def names_used_by_field(kind: str, name: str) -> frozenset[str]:
    """Return the names that the functions of a field use; none if it is read from its row."""
    view = python_class_of_type(SCHEMA_TYPES[kind])
    names = (names_used_by_resolver(function, view) for function in functions_of_field(kind, name))
    return frozenset().union(*names)


def columns_of_field(kind: str, name: str) -> frozenset[str]:
    """Return the columns of the row that a field reads."""
    object_type = SCHEMA_TYPES[kind]
    definition = strawberry_definition(object_type.fields[name])
    if definition.base_resolver:
        return frozenset(definition.metadata.get("columns", ()))
    derived_fields = getattr(python_class_of_type(object_type), "derived_fields", {})
    derived_field = derived_fields.get(definition.python_name)
    return frozenset(derived_field.columns if derived_field else (definition.python_name,))


def withholds_columns(kind: str) -> bool:
    """True if the rows of a type are without the content of mail that the viewer can't read."""
    view = python_class_of_type(SCHEMA_TYPES[kind])
    load_batch: Any = getattr(view, "load_batch", None)
    return bool(load_batch) and WITHHOLDER in names_used_by_resolver(load_batch, view)


def by_nullability(fields: list[tuple[str, str, GraphQLField]]) -> tuple[set[str], set[str]]:
    """Return the coordinates of the nullable fields, and those of the others."""
    nullable, non_null = set[str](), set[str]()
    for kind, name, field in fields:
        names = non_null if isinstance(field.type, GraphQLNonNull) else nullable
        names.add(f"{kind}.{name}")
    return nullable, non_null


def test_fields_with_guards_or_arguments_are_nullable() -> None:
    non_null = {
        f"{kind}.{name}"
        for kind, name, field in read_fields()
        if (is_guarded(field) or field.args) and isinstance(field.type, GraphQLNonNull)
    }
    assert non_null == {PUBLIC_FIELD}


def test_fields_that_read_stored_bytes_or_ask_other_servers_are_nullable() -> None:
    fields = [item for item in read_fields() if READERS & names_used_by_field(*item[:2])]
    nullable, non_null = by_nullability(fields)
    assert non_null == NON_NULL_READERS
    assert {"Message.text", "MessageImap.size", "Attachment.message", "Blob.text"} <= nullable


def test_fields_whose_resolver_has_a_guard_are_nullable() -> None:
    fields = [item for item in read_fields() if GUARDS & names_used_by_field(*item[:2])]
    nullable, non_null = by_nullability(fields)
    assert non_null == NON_NULL_GUARDED
    assert nullable >= {
        "Attachment.url", "DeletedMessage.sourceUrl", "File.shares", "File.url",
        "Message.attachmentsUrl", "Message.sourceUrl", "MimePart.url", "UserExport.url",
    }  # fmt: skip


def test_fields_of_withheld_columns_are_nullable() -> None:
    fields = [
        (kind, name, field)
        for kind, name, field in read_fields()
        if WITHHELD_COLUMNS & columns_of_field(kind, name) and withholds_columns(kind)
    ]
    nullable, non_null = by_nullability(fields)
    assert non_null == set()
    assert nullable >= {
        "DeletedMessage.preview", "DeletedMessage.subject", "File.filename", "File.sha256",
        "Message.attachments", "Message.attachmentsUrl", "Message.mimeStructure",
        "Message.preview", "Message.snippet", "Message.subject", "Thread.subject",
    }  # fmt: skip


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
