"""The pages that describe the types of the schema: by area and kind, each with a limited length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from graphql import GraphQLEnumType, GraphQLNamedType

from tests.support.reference.areas import AREAS, contents_by_area, kind_of_type
from tests.support.schema.printed_schema import SDL

MAX_LINES = 285  # of the types of a page; with its title, a page has fewer than 300
SECTION_LINES = 7  # of a type, besides one for each field, argument or value
# The name and title of the page of each kind
NAME_AND_HEADING_BY_KIND = {
    "Object": ("objects", "Objects"),
    "Interface": ("objects", "Objects"),
    "Union": ("objects", "Objects"),
    "Input": ("inputs", "Inputs"),
    "Enum": ("enums", "Enums"),
    "Scalar": ("scalars", "Scalars"),
}


@dataclass(frozen=True, slots=True)
class TypePage:
    """A page with types of one area. Further pages of the same kind have a number."""

    area: str
    name: str  # without suffix
    heading: str  # such as "Objects"
    title: str
    types: Sequence[GraphQLNamedType]


@cache
def page_of_type(type_name: str) -> TypePage:
    """Return the page that describes a type."""
    return _pages_by_type()[type_name]


@cache
def type_pages_by_area() -> dict[str, list[TypePage]]:
    """Return the pages of the types of each area."""
    return {
        area: list(_pages_of_area(area, contents.types))
        for area, contents in contents_by_area(SDL).items()
    }


@cache
def _pages_by_type() -> dict[str, TypePage]:
    pages = (page for pages in type_pages_by_area().values() for page in pages)
    return {type_.name: page for page in pages for type_ in page.types}


def _pages_of_area(area: str, types: Sequence[GraphQLNamedType]) -> Iterator[TypePage]:
    types_by_page = dict[tuple[str, str], list[GraphQLNamedType]]()
    for type_ in types:
        types_by_page.setdefault(NAME_AND_HEADING_BY_KIND[kind_of_type(type_)], []).append(type_)
    for (name, heading), types_of_kind in sorted(types_by_page.items(), reverse=True):
        for number, some_types in enumerate(_split_by_length(types_of_kind), 1):
            suffix, part = (f"-{number}", f", part {number}") if number > 1 else ("", "")
            title = f"{heading} of {AREAS[area][0]}{part}"
            yield TypePage(area, f"{name}{suffix}", heading, title, some_types)


def _split_by_length(types: Sequence[GraphQLNamedType]) -> Iterator[list[GraphQLNamedType]]:
    """Yield the types in their order, as many at once as fit on a page."""
    page, line_count = list[GraphQLNamedType](), 0
    for type_ in types:
        section_lines = _section_line_count(type_)
        if page and line_count + section_lines > MAX_LINES:
            yield page
            page, line_count = [], 0
        page.append(type_)
        line_count += section_lines
    if page:
        yield page


def _section_line_count(type_: GraphQLNamedType) -> int:
    if isinstance(type_, GraphQLEnumType):
        return SECTION_LINES + len(type_.values)
    fields = getattr(type_, "fields", {}).values()
    return SECTION_LINES + sum(1 + len(getattr(field, "args", ())) for field in fields)
