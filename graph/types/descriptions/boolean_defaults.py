"""Sentences about defaults at the end of descriptions of Boolean arguments and input fields.

A description that names a default itself stays as it is.
"""

import re

from graphql import (
    GraphQLArgument,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    get_named_type,
)
from strawberry.types.base import StrawberryMaybe, StrawberryOptional

from graph.execution.strawberry_definitions import strawberry_definition

TELLS_DEFAULT = re.compile(r"\bDefault: ")
TELLS_NULL = re.compile(r"\b[Nn]ull\b")
CONDITION_ON_BOTH = re.compile(r"^True (returns|selects|matches) .*\bfalse\b", re.DOTALL)


def append_boolean_defaults(schema: GraphQLSchema) -> None:
    """Append the default to the description of each Boolean argument and input field."""
    for kind in schema.type_map.values():
        if kind.name.startswith("__"):
            continue
        if isinstance(kind, GraphQLInputObjectType):
            for field in kind.fields.values():
                _append_default(field, kind.name)
        elif isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            for output_field in kind.fields.values():
                for argument in output_field.args.values():
                    _append_default(argument, kind.name)


def _append_default(member: GraphQLArgument | GraphQLInputField, type_name: str) -> None:
    text = member.description or ""
    if get_named_type(member.type).name != "Boolean" or TELLS_DEFAULT.search(text):
        return
    if sentence := _default_sentence(member, text, type_name):
        member.description = f"{text} {sentence}".strip()


def _default_sentence(
    member: GraphQLArgument | GraphQLInputField, text: str, type_name: str
) -> str | None:
    """Return a sentence such as "Default: true."; None if the member has no default to name."""
    if isinstance(member.default_value, bool):
        return f"Default: {str(member.default_value).lower()}."
    if type_name.endswith("Patch") and isinstance(member, GraphQLInputField):
        names_null = TELLS_NULL.search(text) or not _refuses_null(member)
        return "Default: unchanged." if names_null else "Default: unchanged. Null is refused."
    return "Default: both." if CONDITION_ON_BOTH.match(text) else None


def _refuses_null(field: GraphQLInputField) -> bool:
    """True if strawberry refuses null: the type is `Maybe` of a type without null."""
    kind = getattr(strawberry_definition(field), "type", None)
    return isinstance(kind, StrawberryMaybe) and not isinstance(kind.of_type, StrawberryOptional)
