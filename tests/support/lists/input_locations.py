"""Requests that give a value to one input, wherever the schema has it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from graphql import (
    GraphQLInputObjectType,
    get_named_type,
    get_nullable_type,
    is_enum_type,
    is_input_object_type,
    is_leaf_type,
    is_list_type,
    is_required_argument,
    is_required_input_field,
)

from graph.schema import schema as made
from tests.conftest import Client
from tests.support.differential.random_values import definition

schema = made._schema  # noqa: SLF001 - what graphql-core runs
ERRORS = "errors { code path message }"


@dataclass(frozen=True)
class Place:
    """A field or argument that takes an input: the root field, and the way to the input."""

    root: str
    field: str
    path: tuple[str, ...]
    input: str

    @property
    def key(self) -> str:
        return f"{self.root}.{self.field}:{'.'.join(self.path)}"


def places(wanted: Collection[str]) -> Iterator[Place]:
    """Yield every place of queries and mutations that takes one of these inputs."""
    for root in ("Query", "Mutation", "User", "Mailbox"):
        kind: Any = schema.type_map[root]
        for field, one in kind.fields.items():
            for name, argument in one.args.items():
                for place in _below(root, field, (name,), argument.type, ()):
                    if place.input in wanted:
                        yield place


def _below(
    root: str, field: str, path: tuple[str, ...], kind: Any, seen: tuple[str, ...]
) -> Iterator[Place]:
    inner: Any = get_named_type(kind)
    if not is_input_object_type(inner) or inner.name in seen:
        return
    yield Place(root, field, path, inner.name)
    for name, one in inner.fields.items():
        at = (*path, name, "0") if is_list_type(get_nullable_type(one.type)) else (*path, name)
        yield from _below(root, field, at, one.type, (*seen, inner.name))


SAMPLES: dict[str, Any] = {
    "String": "x", "ID": "usr_AAAAAAAAAAE", "Int": 1, "Float": 1.5, "Boolean": True, "BigInt": 7,
    "ByteSize": 7, "CIDR": "192.0.2.0/24", "DateTime": "2030-01-01T12:00:00Z",
    "Duration": "P30D", "EmailAddress": "ada@example.org", "IPAddress": "::1", "JSON": {"a": 1},
    "URL": "https://example.org/", "Upload": "upl_1", "Cursor": "1",
}  # fmt: skip


def value_of(kind: Any, path: tuple[str, ...], inner: Any) -> Any:
    """Return a value of this type in which `inner` stands at the end of the path."""
    if not path:
        return inner
    kind = get_nullable_type(kind)
    if is_list_type(kind):
        return [value_of(kind.of_type, path[1:], inner)]
    name, rest = path[0], path[1:]
    given = {
        other: sample(one.type)
        for other, one in kind.fields.items()
        if is_required_input_field(one) and other != name
    }
    return given | {name: value_of(kind.fields[name].type, rest, inner)}


def sample(kind: Any) -> Any:
    """Return some value of this type."""
    kind = get_nullable_type(kind)
    if is_list_type(kind):
        return [sample(kind.of_type)]
    if is_enum_type(kind):
        return next(iter(kind.values))
    if is_leaf_type(kind):
        return SAMPLES[kind.name]
    if kind.is_one_of or definition(kind).is_one_of:
        name = next(iter(kind.fields))
        return {name: sample(kind.fields[name].type)}
    if not any(map(is_required_input_field, kind.fields.values())):
        return _one(kind)
    return {n: sample(f.type) for n, f in kind.fields.items() if is_required_input_field(f)}


def _one(kind: GraphQLInputObjectType) -> dict[str, Any]:
    """Return an input with one member, a text if there is one."""
    texts = [n for n, f in kind.fields.items() if str(get_named_type(f.type)) == "String"]
    name = next(iter(texts or kind.fields))
    return {name: sample(kind.fields[name].type)}


def request(place: Place, inner: Any) -> tuple[str, dict[str, Any]]:
    """Return a document with variables that gives this value at the place."""
    parent: Any = schema.type_map[place.root]
    field: Any = parent.fields[place.field]
    needed = [
        (name, one)
        for name, one in field.args.items()
        if is_required_argument(one) or name == place.path[0]
    ]
    values = {
        name: value_of(one.type, place.path[1:], inner)
        if name == place.path[0]
        else sample(one.type)
        for name, one in needed
    }
    head = ", ".join(f"${name}: {one.type}" for name, one in needed)
    call = ", ".join(f"{name}: ${name}" for name, _ in needed)
    selected = _selected(field)
    selected = f"{ERRORS} {selected}" if place.root == "Mutation" else selected
    text = f"{place.field}({call}) {'{ ' + selected + ' }' if selected else ''}"
    around = {
        "User": "viewer { user { %s } }",
        "Mailbox": 'mailbox(by: {path: "INBOX"}) { %s }',
    }.get(place.root, "%s")
    kind = "mutation" if place.root == "Mutation" else "query"
    return f"{kind} ({head}) {{ {around % text} }}", values


def _selected(field: Any) -> str:
    """Return what tells how many things were found: counts, and the items of lists."""
    kind: Any = get_named_type(field.type)
    if is_leaf_type(kind):
        return ""
    if "nodes" in kind.fields:
        return "nodes { __typename }"
    told = ["__typename"]
    for name, one in kind.fields.items():
        inner = get_named_type(one.type)
        if name in ("errors", "warnings") or any(map(is_required_argument, one.args.values())):
            continue
        if name.endswith("Count"):
            told.append(name)
        elif is_list_type(get_nullable_type(one.type)):
            told.append(name if is_leaf_type(inner) else f"{name} {{ __typename }}")
    return " ".join(told)


async def answers(
    clients: list[Client], place: Place, inner: Any
) -> tuple[Any, list[tuple[str, Any]]]:
    """Return what the first client whom the field is open to is answered, and its errors."""
    value, found = None, list[tuple[str, Any]]()
    for client in clients:
        document, values = request(place, inner)
        answer = await client.raw(document, **values)
        value = answer.get("data")
        for name in {"User": ("viewer", "user"), "Mailbox": ("mailbox",)}.get(place.root, ()):
            value = value and value[name]
        value = value and value[place.field]
        found = [(one["extensions"]["code"], None) for one in answer.get("errors", ())]
        if place.root == "Mutation" and value:
            found = [(one["code"], one["path"]) for one in value.pop("errors")]
        if not found or found[0][0] != "FORBIDDEN":
            break
    return value, found


def with_member(place: Place, name: str, value: Any) -> dict[str, Any]:
    """Return the input at a place with this member, and those that it must have."""
    kind: Any = schema.type_map[place.input]
    fields = kind.fields
    return {n: sample(f.type) for n, f in fields.items() if is_required_input_field(f)} | {
        name: value
    }
