"""Requests with a large value of each argument in the schema, in many fields of one document."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from graphql import (
    get_named_type,
    get_nullable_type,
    is_input_object_type,
    is_leaf_type,
    is_list_type,
    is_required_argument,
)

from graph.schema import schema as strawberry_schema
from models.users.roles import Role
from tests.support.lists.input_locations import sample_value, schema

ALIAS_COUNT = 40
# Mutations run one after another: more of them need more time, but not more for each point.
MUTATION_ALIAS_COUNT = 10
MAX_NESTED_INPUTS = 3
SEARCH_TEXT = "subject:bill "
# Object types with fields that have inputs of their own, and the query of such an object.
OBJECT_QUERIES = {
    "Query": "%s",
    "User": "viewer { user { %s } }",
    "Domain": 'domain(by: {name: "example.org"}) { %s }',
    "Resource": 'resource(by: {address: "room@example.org"}) { %s }',
    "BanPolicy": "banPolicy { %s }",
    "Webhook": "webhooks(first: 1) { nodes { %s } }",
    "LegalHold": "legalHolds(first: 1) { nodes { %s } }",
}
ROOT_TYPES = (*OBJECT_QUERIES, "Mutation")
SUBSCRIPTION_INPUTS = {"ComposeRequestRef"}  # a subscription has one field
OPTIONS_FIELD, DRY_RUN_OPTIONS = "options", {"validateOnly": True}
MAX_COST = strawberry_schema.limits.max_cost_of_role(Role.USER)


@dataclass(frozen=True)
class ValueSize:
    """The size of the lists and of the texts in a value."""

    list_length: int
    text_length: int  # characters

    @property
    def half(self) -> "ValueSize":
        """The next smaller size."""
        return ValueSize(max(self.list_length // 2, 1), max(self.text_length // 2, 1))


LONG_LISTS, LONG_TEXTS = ValueSize(512, 64), ValueSize(1, 16_384)


@dataclass(frozen=True)
class LargeRequest:
    """A request that passes one large value to each of several fields."""

    name: str
    document: str
    variables: dict[str, Any]
    large_variable: str
    alias_count: int

    @property
    def max_cost(self) -> int:
        """The share of its fields in what a user may spend on `ALIAS_COUNT` fields, in points."""
        return MAX_COST * self.alias_count // ALIAS_COUNT

    @property
    def cost(self) -> int:
        """The cost of the request in points."""
        prepared = strawberry_schema.documents.find_or_prepare_with_faults(self.document, None)
        assert not prepared.faults, (self.name, prepared.faults)
        return prepared.cost_with_variables(self.variables)


def large_value(
    value_type: Any, size: ValueSize, outer_types: tuple[str, ...] = (), *, is_in_list: bool = False
) -> Any:
    """A value of an input type with all members, and with lists and texts of this size.

    Lists in lists have one item, and an input in itself has only its required members.
    """
    value_type = get_nullable_type(value_type)
    if is_list_type(value_type):
        item = large_value(value_type.of_type, size, outer_types, is_in_list=True)
        return [item] * (1 if is_in_list else size.list_length)
    if is_input_object_type(value_type):
        return _large_object(value_type, size, outer_types, is_in_list=is_in_list)
    if str(value_type) == "String":
        length = size.text_length
        return (SEARCH_TEXT * (length // len(SEARCH_TEXT) + 1))[:length]
    return sample_value(value_type)


def _large_object(
    input_type: Any, size: ValueSize, outer_types: tuple[str, ...], *, is_in_list: bool
) -> dict[str, Any]:
    if input_type.name in outer_types or len(outer_types) > MAX_NESTED_INPUTS:
        value: dict[str, Any] = sample_value(input_type)
        return value
    inner_types = (*outer_types, input_type.name)
    names = list(input_type.fields)
    if input_type.is_one_of:
        composite = [
            name for name in names if not is_leaf_type(get_named_type(input_type.fields[name].type))
        ]
        names = (composite or names)[:1]
    return {
        name: DRY_RUN_OPTIONS
        if name == OPTIONS_FIELD
        else large_value(input_type.fields[name].type, size, inner_types, is_in_list=is_in_list)
        for name in names
    }


def large_requests(root: str, size: ValueSize) -> Iterator[LargeRequest]:
    """Yield a request for each large argument of the fields of one of the `ROOT_TYPES`.

    The size is halved until the request costs no more than its `max_cost`.
    """
    root_type: Any = schema.type_map[root]
    for field_name, field in root_type.fields.items():
        for argument_name, argument in field.args.items():
            if not _can_be_large(argument.type):
                continue
            fitting = size
            request = _request(root, field_name, argument_name, fitting)
            while request.cost > request.max_cost and fitting != fitting.half:
                fitting = fitting.half
                request = _request(root, field_name, argument_name, fitting)
            if request.cost <= request.max_cost:
                yield request


def _can_be_large(argument_type: Any) -> bool:
    named_type = get_named_type(argument_type)
    return (
        is_list_type(get_nullable_type(argument_type))
        or is_input_object_type(named_type)
        or named_type.name == "String"
    )


def _request(root: str, field_name: str, argument_name: str, size: ValueSize) -> LargeRequest:
    root_type: Any = schema.type_map[root]
    field = root_type.fields[field_name]
    value = large_value(field.args[argument_name].type, size)
    alias_count = MUTATION_ALIAS_COUNT if root == "Mutation" else ALIAS_COUNT
    return request_with_value(root, field_name, argument_name, value, alias_count)


def request_with_value(
    root: str, field_name: str, argument_name: str, value: Any, alias_count: int
) -> LargeRequest:
    """Return a request that passes this value to an argument of several fields."""
    root_type: Any = schema.type_map[root]
    field = root_type.fields[field_name]
    arguments = {
        name: argument
        for name, argument in field.args.items()
        if is_required_argument(argument) or name == argument_name
    }
    definitions = ", ".join(f"${name}: {argument.type}" for name, argument in arguments.items())
    argument_list = ", ".join(f"{name}: ${name}" for name in arguments)
    selection = "" if is_leaf_type(get_named_type(field.type)) else " { __typename }"
    if root == "Mutation":
        selection = " { errors { code } }"
    fields = " ".join(f"a{n}: {field_name}({argument_list}){selection}" for n in range(alias_count))
    return LargeRequest(
        f"{root}.{field_name}:{argument_name}",
        f"mutation ({definitions}) {{ {fields} }}"
        if root == "Mutation"
        else f"query ({definitions}) {{ {OBJECT_QUERIES[root] % fields} }}",
        {
            name: value if name == argument_name else sample_value(argument.type)
            for name, argument in arguments.items()
        },
        argument_name,
        alias_count,
    )


def input_types_in_values() -> Set[str]:
    """The names of the input types of which `large_value` makes a value."""
    names = set[str]()
    for root in ROOT_TYPES:
        root_type: Any = schema.type_map[root]
        for field in root_type.fields.values():
            for argument in field.args.values():
                _add_input_types(argument.type, (), names)
    return names


def _add_input_types(value_type: Any, outer_types: tuple[str, ...], names: set[str]) -> None:
    input_type: Any = get_named_type(value_type)
    if not is_input_object_type(input_type) or input_type.name in outer_types:
        return
    names.add(input_type.name)
    if len(outer_types) > MAX_NESTED_INPUTS:
        return
    for input_field in input_type.fields.values():
        _add_input_types(input_field.type, (*outer_types, input_type.name), names)
