"""The field that a value of an order sorts: `CREATED_AT_DESC` sorts `createdAt`."""

from typing import Any

from graphql import GraphQLField, get_named_type, get_nullable_type, is_list_type
from strawberry.utils.str_converters import to_camel_case

ORDERED_TYPES = {"BigInt", "ByteSize", "DateTime", "Float", "Int"}  # types of numbers and times


def sort_key(order_name: str) -> str:
    """Return the name of an order without its direction, such as `CREATED_AT`."""
    return order_name.removesuffix("_ASC").removesuffix("_DESC")


def sort_field_name(order_name: str) -> str:
    """Return the name of the field that an order sorts, such as `createdAt`."""
    return str(to_camel_case(sort_key(order_name).lower()))


def is_sortable(field: GraphQLField) -> bool:
    """True if a list can be sorted by a field: it has one value, which is not true or false."""
    return not is_list_type(get_nullable_type(field.type)) and str(
        get_named_type(field.type)
    ) not in ("Boolean", "JSON")


def has_ordered_values(node_type: Any, order_name: str) -> bool:
    """True if the field that an order sorts has numbers or times."""
    field = node_type.fields.get(sort_field_name(order_name))
    return field is not None and get_named_type(field.type).name in ORDERED_TYPES
