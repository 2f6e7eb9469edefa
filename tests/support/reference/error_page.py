"""The page of errors: codes of payloads, and the types of `MutationError`."""

from collections.abc import Iterator

from graphql import GraphQLEnumType, GraphQLInterfaceType, GraphQLObjectType, GraphQLSchema

from tests.support.reference.errors.documented_errors import COMMON_HEADING
from tests.support.reference.errors.error_section import mutation_error_table, query_error_table
from tests.support.reference.errors.root_field_errors import (
    common_mutation_errors,
    common_query_errors,
)
from tests.support.reference.markdown import cell, described_rows, table

COLUMNS = ("Name", "Type", "Meaning")
INTRODUCTION = """\
# Errors

A mutation that is refused returns `errors` in its payload. Each error implements `MutationError`
and has a code from `ErrorCode`. Fields that fail are null and have an entry in the top-level
`errors` of the response.
[Errors](../api/errors.md) explains how to handle both.

The page of each query, mutation and subscription lists its own errors. The lists are read from the
code that creates the errors, so a field can have fewer. The message of an error is its condition,
in which values are replaced by words in italics.
"""


def errors_page(schema: GraphQLSchema) -> str:
    """The page with the codes, the fields of all errors, and a section for each type."""
    lines = [INTRODUCTION, *_code_section(schema), *_common_sections(), *_type_sections(schema)]
    return "\n".join(lines)


def _common_sections() -> Iterator[str]:
    yield from (COMMON_HEADING, "", "They are in `errors` of the payload.", "")
    yield from mutation_error_table(common_mutation_errors(), "")
    yield from ("## Errors of every field", "")
    yield "Each field whose description names a role, scope or permission can have these errors."
    yield from ("They are in the top-level `errors` of the response.", "")
    yield from query_error_table(common_query_errors())


def _code_section(schema: GraphQLSchema) -> Iterator[str]:
    codes = schema.type_map["ErrorCode"]
    assert isinstance(codes, GraphQLEnumType)
    yield from ("## Codes", "")
    rows = ((f"`{name}`", cell(value.description or "")) for name, value in codes.values.items())
    yield from table(("Code", "Meaning"), rows)


def _type_sections(schema: GraphQLSchema) -> Iterator[str]:
    interface = schema.type_map["MutationError"]
    assert isinstance(interface, GraphQLInterfaceType)
    yield from ("## MutationError", "", interface.description or "", "")
    yield from table(COLUMNS, described_rows(interface.fields, ""))
    for type_ in sorted(schema.get_implementations(interface).objects, key=lambda one: one.name):
        yield from _type_section(type_, interface)


def _type_section(type_: GraphQLObjectType, interface: GraphQLInterfaceType) -> Iterator[str]:
    own = {name: field for name, field in type_.fields.items() if name not in interface.fields}
    yield from (f"## {type_.name}", "", type_.description or "", "")
    yield from table(COLUMNS, described_rows(own, ""))
