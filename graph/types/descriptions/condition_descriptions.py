"""Sentences about missing conditions at the end of descriptions of filters and selections."""

import re

from graphql import (
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLSchema,
    get_named_type,
    is_required_input_field,
)

from graph.execution.strawberry_definitions import strawberry_definition
from graph.types.input_conditions import ConditionsInput

TEXT_TYPES = ("EmailAddress", "String", "URL")
CONDITION_SENTENCE = "At least one condition that is not null is required."
TELLS_CONDITION = re.compile(r"without a condition|[Aa]n empty object|at least one is required")
TELLS_EMPTY_TEXT = re.compile(r"empty text")


def append_condition_rules(schema: GraphQLSchema) -> None:
    """Append what `require_valid_conditions` refuses to the descriptions of inputs."""
    for kind in schema.type_map.values():
        if isinstance(kind, GraphQLInputObjectType):
            input_class = strawberry_definition(kind).origin
            if issubclass(input_class, ConditionsInput):
                _append_rules(kind, input_class)


def _append_rules(kind: GraphQLInputObjectType, input_class: type[ConditionsInput]) -> None:
    text, sentences = kind.description or "", list[str]()
    has_required_field = any(map(is_required_input_field, kind.fields.values()))
    if not has_required_field and not TELLS_CONDITION.search(text):
        sentences.append(CONDITION_SENTENCE)
    if not TELLS_EMPTY_TEXT.search(text):
        sentences.append(_empty_text_sentence(kind, input_class))
    for sentence in filter(None, sentences):
        if sentence not in text:
            text = f"{text} {sentence}"
    kind.description = text


def _empty_text_sentence(kind: GraphQLInputObjectType, input_class: type[ConditionsInput]) -> str:
    """Return the sentence about empty texts; empty if no field refuses one."""
    accepted, refused = list[str](), list[str]()
    for name, field in sorted(kind.fields.items()):
        if get_named_type(field.type).name in TEXT_TYPES:
            accepts = _python_name(field) in input_class.fields_with_empty_texts
            (accepted if accepts else refused).append(f"`{name}`")
    if not refused:
        return ""
    exception = f", except in {' and '.join(accepted)}" if accepted else ""
    return f"An empty text is an error{exception}."


def _python_name(field: GraphQLInputField) -> str:
    return str(strawberry_definition(field).python_name)
