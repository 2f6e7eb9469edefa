"""The help of options names all values that an option takes."""

import re
from collections.abc import Iterator
from enum import Enum
from types import ModuleType

import pytest

import graph.schema
from tests.support.clients.command_line import all_commands

VALUE = re.compile(r"\b[A-Z][A-Z_]{2,}\b")
PRODUCT_PACKAGES = ("graph", "resolvers", "mail", "models", "merganser")


def product_enums(schema_module: ModuleType) -> list[set[str]]:
    """Return the names of the members of all enums that the schema's modules have imported."""
    assert schema_module.schema  # it imports the other modules
    return [set(enum.__members__) for enum in _enums_below(Enum)]


def _enums_below(enum: type[Enum]) -> Iterator[type[Enum]]:
    for subclass in enum.__subclasses__():
        if subclass.__module__.split(".")[0] in PRODUCT_PACKAGES:
            yield subclass
        yield from _enums_below(subclass)


def missing_values(help_text: str, enums: list[set[str]]) -> set[str]:
    """Return the values that a help text lacks of the smallest enum with those that it names."""
    named = set(VALUE.findall(help_text))
    matching = [members for members in enums if named <= members]
    if len(named) < 2 or not matching:
        return set()
    return min(matching, key=len) - named


def test_values_that_a_help_lacks_are_found() -> None:
    enums = [{"RED", "BLUE"}, {"RED", "BLUE", "GREEN"}, {"SQLITE", "POSTGRES"}]
    assert missing_values("RED, GREEN or another", enums) == {"BLUE"}
    assert missing_values("RED or BLUE", enums) == set()
    assert missing_values("Text in UTF or JSON, such as RED", enums) == set()


@pytest.mark.parametrize(("name", "command"), all_commands().items(), ids=all_commands())
def test_help_names_all_values(name: str, command: object) -> None:
    enums = product_enums(graph.schema)
    for parameter in getattr(command, "params", ()):
        help_text = getattr(parameter, "help", None) or ""
        assert not missing_values(help_text, enums), f"{name} --{parameter.name}"
