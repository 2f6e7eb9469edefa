"""Pages of the types of an area, and the area's table of contents."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLUnionType,
)

from tests.support.reference.areas import AREAS, AreaContents, RootField, kind_of_type
from tests.support.reference.guides import guides_of_area
from tests.support.reference.markdown import (
    cell,
    described_rows,
    first_sentence,
    table,
    type_link,
)
from tests.support.reference.type_locations import TypePage

HEADINGS = {"query": "Queries", "mutation": "Mutations", "subscription": "Subscriptions"}
COLUMNS = ("Name", "Type", "Meaning")


def area_page(area: str, contents: AreaContents, type_pages: Sequence[TypePage]) -> str:
    """The table of contents of an area."""
    title, introduction = AREAS[area]
    lines = [f"# {title}", "", introduction, ""]
    if guides := guides_of_area(field.name for field in contents.root_fields):
        lines += [f"Guides: {guides}.", ""]
    for operation, heading in HEADINGS.items():
        fields = [field for field in contents.root_fields if field.operation == operation]
        if fields:
            lines += [
                f"## {heading}",
                "",
                *table(("Name", "Meaning"), map(_root_field_row, fields)),
            ]
    for heading, pages in groupby(type_pages, key=lambda page: page.heading):
        links = [
            f"[{type_.name}]({page.name}.md#{type_.name.lower()})"
            for page in pages
            for type_ in page.types
        ]
        lines += [f"## {heading}", "", ", ".join(links), ""]
    return "\n".join(lines).rstrip() + "\n"


def _root_field_row(root_field: RootField) -> tuple[str, str]:
    sentence = first_sentence(root_field.field.description or "")
    return f"[{root_field.name}]({root_field.page_name}.md)", sentence


def types_page(page: TypePage) -> str:
    """The page with a section for each type, with its fields or values."""
    lines = [f"# {page.title}", "", f"Back to [{AREAS[page.area][0]}](README.md).", ""]
    for type_ in page.types:
        lines += _type_section(type_, page.area)
    return "\n".join(lines).rstrip() + "\n"


def _type_section(type_: GraphQLNamedType, area: str) -> Iterator[str]:
    yield from (f"## {type_.name}", "", f"{kind_of_type(type_)}. {type_.description or ''}", "")
    if isinstance(type_, GraphQLEnumType):
        rows = (
            (f"`{name}`", cell(value.description or "")) for name, value in type_.values.items()
        )
        yield from table(("Value", "Meaning"), rows)
    elif isinstance(type_, GraphQLUnionType):
        yield from (", ".join(type_link(type_, area) for type_ in type_.types), "")
    elif isinstance(type_, GraphQLObjectType | GraphQLInterfaceType | GraphQLInputObjectType):
        yield from table(COLUMNS, _field_rows(type_.fields, area))


def _field_rows(fields: dict[str, Any], area: str) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of fields, each followed by the rows of its arguments."""
    for name, type_link_text, meaning in described_rows(fields, area):
        yield name, type_link_text, meaning
        arguments = getattr(fields[name.strip("`")], "args", {})
        for argument, argument_type, text in described_rows(arguments, area):
            yield f"{name} ({argument.strip('`')})", argument_type, text
