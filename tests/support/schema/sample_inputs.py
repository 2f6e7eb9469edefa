"""Valid values of input types, and selections for fields."""

from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    get_named_type,
)

from graph.types import global_ids

SCALAR_SAMPLES: dict[str, Any] = {  # a valid value of each scalar
    "Boolean": False, "Int": 1, "Float": 1.0, "String": "x", "JSON": {}, "BigInt": 1,
    "ByteSize": 1, "CIDR": "192.0.2.0/24", "DateTime": "2031-01-01T00:00:00Z", "Duration": "PT1H",
    "EmailAddress": "x@example.org", "IPAddress": "192.0.2.1", "URL": "https://example.org/",
    "Upload": "eA==", "Cursor": "1.1.1", "ID": global_ids.encode("User", 1),
}  # fmt: skip
ONE_OF_MEMBERS = {  # members to choose; default: the first
    "DkimDomainRef": "name", "ImportSource": "upload", "MailboxRef": "path",
    "SieveScriptRef": "name",
}  # fmt: skip
SELECTION_SAMPLES = {  # inputs that need a condition
    "MessageSelection": {"ids": [global_ids.encode("Message", 1)]},
    "DeliveryTraceFilter": {"recipient": "ada@example.org"},
    "UserSelection": {"usernames": ["x"]},
}


def sample_input(kind: Any) -> Any:
    """A valid value of an input type; of an input object only the required members."""
    if isinstance(kind, GraphQLNonNull):
        return sample_input(kind.of_type)
    if isinstance(kind, GraphQLList):
        return [sample_input(kind.of_type)]
    if isinstance(kind, GraphQLEnumType):
        return next(iter(kind.values))
    if isinstance(kind, GraphQLInputObjectType):
        return sample_input_object(kind)
    return SCALAR_SAMPLES[kind.name]


def sample_input_object(kind: GraphQLInputObjectType) -> Any:
    """A valid value of an input object; `validateOnly` if it has mutation options."""
    if kind.is_one_of:
        first = ONE_OF_MEMBERS.get(kind.name) or next(iter(kind.fields))
        type_name = kind.name.removesuffix("Ref")
        if first == "id" and type_name in global_ids.PREFIXES:
            return {"id": global_ids.encode(type_name, 1)}
        return {first: sample_input(kind.fields[first].type)}
    if kind.name == "MessageFilter":
        return {"query": "x"}  # some fields need text to search for
    if kind.name in SELECTION_SAMPLES:
        return SELECTION_SAMPLES[kind.name]
    required_fields = {
        name: sample_input(value.type)
        for name, value in kind.fields.items()
        if isinstance(value.type, GraphQLNonNull)
        and getattr(value.ast_node, "default_value", None) is None
    }
    return {
        **required_fields,
        **({"options": {"validateOnly": True}} if "options" in kind.fields else {}),
    }


def sample_selection(field: GraphQLField) -> str:
    """A selection set for a field: the errors of a payload, the type of other objects."""
    kind = get_named_type(field.type)
    if "errors" in getattr(kind, "fields", ()):
        return "{ errors { code message path } }"
    composite = isinstance(kind, GraphQLObjectType | GraphQLInterfaceType) or hasattr(kind, "types")
    return "{ __typename }" if composite else ""
