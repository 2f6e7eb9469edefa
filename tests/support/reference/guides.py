"""Guides: the written pages of docs/ that explain a root field, by an example or by name."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from graphql import FieldNode, OperationDefinitionNode, parse

from tests.support.clients.page_commands import page_blocks

DOCS = Path(__file__).parents[3] / "docs"
# A name of several words. A name of one word, such as `message`, is also that of other fields.
MENTION = re.compile(r"`([a-z]+[A-Z]\w+)`")
HEADING = re.compile(r"^# (.+)$", re.MULTILINE)
EXAMPLE_WEIGHT = 10  # an example counts as much as this number of mentions
# Generated pages, and tables of the operations of other systems.
NO_GUIDES = ("reference/", "settings.md", "tutorials/migrate-")
MAX_FIELD_GUIDES = 4
MAX_AREA_GUIDES = 8


def guides_of_field(name: str) -> str:
    """The links to the guides of a root field, the one with most examples first."""
    return _links(_uses_by_field()[name], MAX_FIELD_GUIDES)


def guides_of_area(names: Iterable[str]) -> str:
    """The links to the guides of the root fields of an area, the one with most examples first."""
    uses = Counter[Path]()
    for name in names:
        uses.update(_uses_by_field()[name])
    return _links(uses, MAX_AREA_GUIDES)


def _links(uses: Counter[Path], limit: int) -> str:
    pages = sorted(uses, key=lambda page: (-uses[page], page))[:limit]
    return ", ".join(f"[{_title(page)}](../../{page.relative_to(DOCS)})" for page in pages)


@cache
def _uses_by_field() -> defaultdict[str, Counter[Path]]:
    """How much each written page uses each root field."""
    result = defaultdict[str, Counter[Path]](Counter)
    for page in sorted(DOCS.rglob("*.md")):
        if not str(page.relative_to(DOCS)).startswith(NO_GUIDES):
            for block in page_blocks(page):
                if block.kind.split()[0] == "graphql":
                    for name in set(_root_fields(block.text)):
                        result[name][page] += EXAMPLE_WEIGHT
            for name in MENTION.findall(page.read_text(encoding="utf-8")):
                result[name][page] += 1
    return result


def _root_fields(document: str) -> Iterator[str]:
    for definition in parse(document).definitions:
        if isinstance(definition, OperationDefinitionNode):
            for selection in definition.selection_set.selections:
                if isinstance(selection, FieldNode):
                    yield selection.name.value


def _title(page: Path) -> str:
    heading = HEADING.search(page.read_text(encoding="utf-8"))
    assert heading, page
    return heading[1]
