"""Sentences about defaults at the end of descriptions of arguments and input fields.

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
    StringValueNode,
    Undefined,
    get_named_type,
    get_nullable_type,
    is_leaf_type,
    print_ast,
)
from graphql.utilities import ast_from_value
from strawberry.types.base import StrawberryMaybe, StrawberryOptional

from graph.execution.strawberry_definitions import strawberry_definition

TELLS_DEFAULT = re.compile(r"\bDefault: |\bby default\b")
TELLS_NULL = re.compile(r"\b[Nn]ull\b")
CONDITION_ON_BOTH = re.compile(r"^True (returns|selects|matches) .*\bfalse\b", re.DOTALL)


def append_input_defaults(schema: GraphQLSchema) -> None:
    """Append the default to the description of each argument and input field with a single value.

    A Boolean without a default value has a sentence, too, if its meaning is clear.
    """
    for kind in schema.type_map.values():
        if kind.name.startswith("__"):
            continue
        if isinstance(kind, GraphQLInputObjectType):
            if kind.is_one_of:  # one of its fields is given, so none has a default
                continue
            for field in kind.fields.values():
                _append_default(field, kind.name)
        elif isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            for output_field in kind.fields.values():
                for argument in output_field.args.values():
                    _append_default(argument, kind.name)


def _append_default(member: GraphQLArgument | GraphQLInputField, type_name: str) -> None:
    text = member.description or ""
    if TELLS_DEFAULT.search(text):
        return
    if get_named_type(member.type).name == "Boolean":
        sentence = _boolean_default_sentence(member, text, type_name)
    else:
        sentence = _default_sentence(member)
    if sentence:
        member.description = f"{text} {sentence}".strip()


def _default_sentence(member: GraphQLArgument | GraphQLInputField) -> str | None:
    """Return a sentence such as "Default: NONE."; None without a default value, or for a list."""
    nullable_type = get_nullable_type(member.type)
    if member.default_value in (Undefined, None) or not is_leaf_type(nullable_type):
        return None
    value = ast_from_value(member.default_value, nullable_type)
    if value is None:
        return None
    literal = f"`{value.value}`" if isinstance(value, StringValueNode) else print_ast(value)
    return f"Default: {literal}."


def _boolean_default_sentence(
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
