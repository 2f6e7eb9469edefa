"""Pages of queries, mutations and subscriptions."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from graphql import GraphQLObjectType, GraphQLSchema, get_named_type

from tests.support.reference.areas import AREAS, RootField, is_connection_part, own_types
from tests.support.reference.errors.error_section import error_section
from tests.support.reference.examples import Example
from tests.support.reference.guides import guides_of_field
from tests.support.reference.markdown import described_rows, table, type_link

COLUMNS = ("Name", "Type", "Meaning")
PAGE_ARGUMENTS = ("first", "after", "last", "before")


def root_field_page(
    root_field: RootField, schema: GraphQLSchema, examples: Mapping[str, Example]
) -> str:
    """The page of a root field: description, arguments, result, errors, example."""
    area = root_field.area
    lines = [f"# {root_field.name}", ""]
    lines += [f"{root_field.operation.capitalize()} of [{AREAS[area][0]}](README.md).", ""]
    lines += [root_field.field.description or "", ""]
    if guides := guides_of_field(root_field.name):
        lines += [f"Guides: {guides}.", ""]
    types = {type_.name for type_ in own_types(root_field, schema)}
    lines += _argument_section(root_field, types)
    lines += _result_section(root_field, types)
    lines += error_section(root_field)
    if example := examples.get(f"{root_field.operation}.{root_field.name}"):
        lines += _example_section(example)
    return "\n".join(lines).rstrip() + "\n"


def _argument_section(root_field: RootField, own_type_names: set[str]) -> Iterator[str]:
    arguments = dict(root_field.field.args)
    input_argument = arguments.get("input")
    input_type: Any = get_named_type(input_argument.type) if input_argument else None
    if input_type is not None and input_type.name in own_type_names:
        del arguments["input"]
        yield from ("## Input", "", f"`input` is a `{input_type.name}` with these fields:", "")
        yield from table(COLUMNS, described_rows(input_type.fields, root_field.area))
    if arguments:
        yield from ("## Arguments", "")
        yield from table(COLUMNS, described_rows(arguments, root_field.area))


def _result_section(root_field: RootField, own_type_names: set[str]) -> Iterator[str]:
    yield from ("## Result", "")
    result: Any = get_named_type(root_field.field.type)
    if result.name in own_type_names and not is_connection_part(result):
        assert isinstance(result, GraphQLObjectType)
        yield from (f"A `{result.name}` with these fields:", "")
        yield from table(COLUMNS, described_rows(result.fields, root_field.area))
    else:
        link = type_link(root_field.field.type, root_field.area)
        yield from (f"A {link}" if link.startswith("page of ") else link, "")


def _example_section(example: Example) -> Iterator[str]:
    yield from ("## Example", "", "```graphql reference", example.document, "```", "")
    if example.variables:
        variables = json.dumps(example.variables, indent=2, ensure_ascii=False)
        yield from ("Variables:", "", "```json", variables, "```", "")
