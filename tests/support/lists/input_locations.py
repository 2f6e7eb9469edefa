"""Requests that pass a value at each location of an input type in the schema."""

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

from graph.schema import schema as strawberry_schema
from tests.conftest import GraphQLClient

schema = strawberry_schema._schema  # noqa: SLF001 - the schema of graphql-core
ERROR_FIELDS = "errors { code path message }"


@dataclass(frozen=True)
class InputLocation:
    """A location of an input type: a root field and the path of an argument or input field."""

    root: str
    field: str
    path: tuple[str, ...]
    input: str

    @property
    def key(self) -> str:
        return f"{self.root}.{self.field}:{'.'.join(self.path)}"


def input_locations(input_types: Collection[str]) -> Iterator[InputLocation]:
    """Yield every location of one of these input types in queries and mutations."""
    for root in ("Query", "Mutation", "User", "Mailbox"):
        root_type: Any = schema.type_map[root]
        for field, field_definition in root_type.fields.items():
            for name, argument in field_definition.args.items():
                for location in _locations_in_argument(root, field, (name,), argument.type, ()):
                    if location.input in input_types:
                        yield location


def _locations_in_argument(
    root: str, field: str, path: tuple[str, ...], argument_type: Any, outer_types: tuple[str, ...]
) -> Iterator[InputLocation]:
    input_type: Any = get_named_type(argument_type)
    if not is_input_object_type(input_type) or input_type.name in outer_types:
        return
    yield InputLocation(root, field, path, input_type.name)
    for name, input_field in input_type.fields.items():
        field_path = (
            (*path, name, "0")
            if is_list_type(get_nullable_type(input_field.type))
            else (*path, name)
        )
        yield from _locations_in_argument(
            root, field, field_path, input_field.type, (*outer_types, input_type.name)
        )


SAMPLE_VALUES: dict[str, Any] = {
    "String": "x", "ID": "usr_AAAAAAAAAAE", "Int": 1, "Float": 1.5, "Boolean": True, "BigInt": 7,
    "ByteSize": 7, "CIDR": "192.0.2.0/24", "DateTime": "2030-01-01T12:00:00Z",
    "Duration": "P30D", "EmailAddress": "ada@example.org", "IPAddress": "::1", "JSON": {"a": 1},
    "URL": "https://example.org/", "Upload": "upl_1", "Cursor": "1",
}  # fmt: skip


def _value_at_path(value_type: Any, path: tuple[str, ...], inner: Any) -> Any:
    """A value of this type with `inner` at the end of the path."""
    if not path:
        return inner
    value_type = get_nullable_type(value_type)
    if is_list_type(value_type):
        return [_value_at_path(value_type.of_type, path[1:], inner)]
    name, remaining_path = path[0], path[1:]
    required_values = {
        other_name: sample_value(input_field.type)
        for other_name, input_field in value_type.fields.items()
        if is_required_input_field(input_field) and other_name != name
    }
    return required_values | {
        name: _value_at_path(value_type.fields[name].type, remaining_path, inner)
    }


def sample_value(value_type: Any) -> Any:
    """A valid value of this type."""
    value_type = get_nullable_type(value_type)
    if is_list_type(value_type):
        return [sample_value(value_type.of_type)]
    if is_enum_type(value_type):
        return next(iter(value_type.values))
    if is_leaf_type(value_type):
        return SAMPLE_VALUES[value_type.name]
    if value_type.is_one_of:
        name = next(iter(value_type.fields))
        return {name: sample_value(value_type.fields[name].type)}
    if not any(map(is_required_input_field, value_type.fields.values())):
        return _input_with_one_field(value_type)
    return {
        field_name: sample_value(input_field.type)
        for field_name, input_field in value_type.fields.items()
        if is_required_input_field(input_field)
    }


def _input_with_one_field(input_type: GraphQLInputObjectType) -> dict[str, Any]:
    """An input with one field, a String if there is one."""
    string_fields = [
        field_name
        for field_name, input_field in input_type.fields.items()
        if str(get_named_type(input_field.type)) == "String"
    ]
    name = next(iter(string_fields or input_type.fields))
    return {name: sample_value(input_type.fields[name].type)}


def _request_at_location(location: InputLocation, inner: Any) -> tuple[str, dict[str, Any]]:
    """A document and variables that pass this value at the location."""
    root_type: Any = schema.type_map[location.root]
    field: Any = root_type.fields[location.field]
    arguments = [
        (name, argument)
        for name, argument in field.args.items()
        if is_required_argument(argument) or name == location.path[0]
    ]
    values = {
        name: _value_at_path(argument.type, location.path[1:], inner)
        if name == location.path[0]
        else sample_value(argument.type)
        for name, argument in arguments
    }
    variable_definitions = ", ".join(f"${name}: {argument.type}" for name, argument in arguments)
    argument_list = ", ".join(f"{name}: ${name}" for name, _ in arguments)
    selection = _count_selection(field)
    selection = f"{ERROR_FIELDS} {selection}" if location.root == "Mutation" else selection
    text = f"{location.field}({argument_list}) {'{ ' + selection + ' }' if selection else ''}"
    template = {
        "User": "viewer { user { %s } }",
        "Mailbox": 'mailbox(by: {path: "INBOX"}) { %s }',
    }.get(location.root, "%s")
    operation = "mutation" if location.root == "Mutation" else "query"
    return f"{operation} ({variable_definitions}) {{ {template % text} }}", values


def _count_selection(field: Any) -> str:
    """A selection that shows how many objects match: counts, and the items of lists."""
    field_type: Any = get_named_type(field.type)
    if is_leaf_type(field_type):
        return ""
    if "nodes" in field_type.fields:
        return "nodes { __typename }"
    selections = ["__typename"]
    for name, subfield in field_type.fields.items():
        subfield_type = get_named_type(subfield.type)
        if name in ("errors", "warnings") or any(map(is_required_argument, subfield.args.values())):
            continue
        if name.endswith("Count"):
            selections.append(name)
        elif is_list_type(get_nullable_type(subfield.type)):
            selections.append(name if is_leaf_type(subfield_type) else f"{name} {{ __typename }}")
    return " ".join(selections)


async def run_at_location(
    clients: list[GraphQLClient],
    location: InputLocation,
    inner: Any,
    options: dict[str, Any] | None = None,
) -> tuple[Any, list[tuple[str, Any]]]:
    """Run the request by the first client that may use the field; return value and errors.

    `options` are those of a mutation.
    """
    value, errors = None, list[tuple[str, Any]]()
    for client in clients:
        document, values = _request_at_location(location, inner)
        if options is not None and location.root == "Mutation":
            values["input"] |= {"options": options}
        response = await client.execute(document, **values)
        value = response.get("data")
        for name in {"User": ("viewer", "user"), "Mailbox": ("mailbox",)}.get(location.root, ()):
            value = value and value[name]
        value = value and value[location.field]
        errors = [(error["extensions"]["code"], None) for error in response.get("errors", ())]
        if location.root == "Mutation" and value:
            errors = [(error["code"], error["path"]) for error in value.pop("errors")]
        if not errors or errors[0][0] != "FORBIDDEN":
            break
    return value, errors


def input_with_field(location: InputLocation, name: str, value: Any) -> dict[str, Any]:
    """An input for the location with this field and its required fields."""
    input_type: Any = schema.type_map[location.input]
    fields = input_type.fields
    return {
        field_name: sample_value(input_field.type)
        for field_name, input_field in fields.items()
        if is_required_input_field(input_field)
    } | {name: value}
