"""Pieces of Markdown: cells of tables, and links to types."""

from collections.abc import Iterable, Iterator
from typing import Any

from graphql import (
    GraphQLList,
    GraphQLNamedType,
    GraphQLNonNull,
    GraphQLObjectType,
    get_named_type,
    print_ast,
)

from tests.support.reference.areas import BUILT_IN_SCALARS, is_connection_part
from tests.support.reference.type_locations import page_of_type


def cell(text: str) -> str:
    """A text as the cell of a table, in one line."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def first_sentence(text: str) -> str:
    """The first sentence of a text, as the cell of a table."""
    return f"{cell(text).split('. ')[0].removesuffix('.')}."


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table, or none if it has no rows."""
    columns = list(head)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if lines:
        yield f"| {' | '.join(columns)} |"
        yield f"|{'---|' * len(columns)}"
        yield from lines
        yield ""


def type_link(type_: Any, from_area: str) -> str:
    """The type with its list and non-null marks, and with a link to its description.

    `from_area` is the area of the page, or empty for a page in docs/reference.
    """
    marks_before, marks_after = "", ""
    while isinstance(type_, GraphQLNonNull | GraphQLList):
        if isinstance(type_, GraphQLNonNull):
            marks_after = "!" + marks_after
        else:
            marks_before, marks_after = marks_before + "\\[", "\\]" + marks_after
        type_ = type_.of_type
    return f"{marks_before}{_named_type_link(type_, from_area)}{marks_after}"


def _named_type_link(type_: GraphQLNamedType, from_area: str) -> str:
    if type_.name in BUILT_IN_SCALARS:
        return type_.name
    if is_connection_part(type_) and type_.name.endswith("Connection"):
        assert isinstance(type_, GraphQLObjectType)
        node_type = get_named_type(type_.fields["nodes"].type)
        return f"page of {_named_type_link(node_type, from_area)}"
    page = page_of_type(type_.name)
    folder = "" if page.area == from_area else f"{'../' if from_area else ''}{page.area}/"
    return f"[{type_.name}]({folder}{page.name}.md#{type_.name.lower()})"


def default_text(definition: Any) -> str:
    """The default value of an argument or input field, as a sentence, or an empty text."""
    node = getattr(definition.ast_node, "default_value", None)
    if node is None:
        return ""
    value = print_ast(node)
    return "" if value in {"null", "[]"} else f" Default in the schema: `{value}`."


def described_rows(definitions: dict[str, Any], area: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and meaning of fields, arguments or input fields."""
    for name, definition in definitions.items():
        text = definition.description or ""
        if "Default" not in text:
            text += default_text(definition)
        yield f"`{name}`", type_link(definition.type, area), cell(text)
