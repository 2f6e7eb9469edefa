"""Sizes of the arguments of fields, which are charged before a resolver reads them.

A size is a number of units: 10 for an object, 1 for another value, and 1 for each 100 characters of
a text. A search text counts 1 unit for each character, since it is parsed into conditions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graphql import (
    FieldNode,
    GraphQLArgument,
    GraphQLField,
    ListValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    StringValueNode,
    ValueNode,
    VariableNode,
    get_nullable_type,
    is_enum_type,
)

UNITS_PER_POINT = 10
UNITS_PER_OBJECT = 10
FREE_UNITS = 200  # of the arguments of one field: its weight includes them
CHARACTERS_PER_UNIT = 100
SEARCH_TEXT_NAME = "query"  # of arguments and of members of filters
SMALL_TYPES = frozenset({"Int", "Float", "Boolean"})  # other values of them are refused


def value_size(value: object) -> int:
    """Return the size of a JSON value in units."""
    size, waiting = 0, [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                size += 1 + len(text) // CHARACTERS_PER_UNIT
            case dict() as members:
                size += UNITS_PER_OBJECT
                search_text = members.get(SEARCH_TEXT_NAME)
                size += len(search_text) if isinstance(search_text, str) else 0
                waiting += members.values()
            case list() as items:
                size += 1
                waiting += items
            case _:
                size += 1
    return size


class CostVariables:
    """The variables of a request, as far as the cost of the operation depends on them."""

    def __init__(
        self,
        values: Mapping[str, object],
        default_counts: Mapping[str, Any] | None = None,
        default_sizes: Mapping[str, int] | None = None,
        default_text_lengths: Mapping[str, int] | None = None,
    ) -> None:
        self._values = values
        self._default_counts = default_counts or {}
        self._sizes = dict(default_sizes or {})
        self._default_text_lengths = default_text_lengths or {}
        self._measured: set[str] = set()

    def count_value(self, name: str) -> object:
        """Return the value of a variable that gives a number of objects, or its default count."""
        return self._values[name] if name in self._values else self._default_counts.get(name)

    def size(self, name: str) -> int:
        """Return the size of a variable in units. Each variable is measured once."""
        if name in self._values and name not in self._measured:
            self._measured.add(name)
            self._sizes[name] = value_size(self._values[name])
        return self._sizes.get(name, 0)

    def text_length(self, name: str) -> int:
        """Return the number of characters of a variable; 0 if its value is not a text."""
        if name not in self._values:
            return self._default_text_lengths.get(name, 0)
        value = self._values[name]
        return len(value) if isinstance(value, str) else 0


@dataclass(frozen=True, slots=True)
class ArgumentsSize:
    """The size of the arguments of a field: that of its literals, and of each use of a variable."""

    literal_units: int = 0
    variables: tuple[str, ...] = ()
    search_texts: tuple[str, ...] = ()  # variables that are search texts

    def object_count(self, variables: CostVariables) -> int:
        """Return the points that the arguments cost with these variables."""
        units = self.literal_units + sum(map(variables.size, self.variables))
        units += sum(map(variables.text_length, self.search_texts))
        return max(units - FREE_UNITS, 0) // UNITS_PER_POINT


def arguments_size(node: FieldNode, definition: GraphQLField) -> ArgumentsSize:
    """Return the size of the arguments of a field."""
    units, names, search_texts = 0, list[str](), list[str]()
    for argument in node.arguments or ():
        name, value = argument.name.value, argument.value
        if isinstance(value, VariableNode):
            if not _is_small(definition.args[name]):
                names.append(value.name.value)
                search_texts += [value.name.value] if name == SEARCH_TEXT_NAME else []
            continue
        units += _literal_units(name, value)
        for member_name, member in _nested_literals(name, value):
            if isinstance(member, VariableNode):
                names.append(member.name.value)
                search_texts += [member.name.value] if member_name == SEARCH_TEXT_NAME else []
    return ArgumentsSize(units, tuple(names), tuple(search_texts))


def _is_small(argument: GraphQLArgument) -> bool:
    """True if every value of an argument has the size of one number."""
    input_type: Any = get_nullable_type(argument.type)
    return is_enum_type(input_type) or getattr(input_type, "name", None) in SMALL_TYPES


def sizes_of_default_values(operation: OperationDefinitionNode) -> dict[str, int]:
    """Return the sizes of default values, by the names of the variables."""
    return {
        node.variable.name.value: _literal_units("", node.default_value)
        for node in operation.variable_definitions or ()
        if node.default_value is not None
    }


def text_lengths_of_default_values(operation: OperationDefinitionNode) -> dict[str, int]:
    """Return the numbers of characters of default texts, by the names of the variables."""
    return {
        node.variable.name.value: len(node.default_value.value)
        for node in operation.variable_definitions or ()
        if isinstance(node.default_value, StringValueNode)
    }


def _literal_units(name: str, value: ValueNode) -> int:
    """Return the size of a literal without its variables."""
    units = 0
    for member_name, member in _nested_literals(name, value):
        if isinstance(member, ObjectValueNode):
            units += UNITS_PER_OBJECT
        elif isinstance(member, StringValueNode):
            is_search_text = member_name == SEARCH_TEXT_NAME
            units += 1 + len(member.value) // (1 if is_search_text else CHARACTERS_PER_UNIT)
        elif not isinstance(member, VariableNode):
            units += 1
    return units


def _nested_literals(name: str, value: ValueNode) -> Iterator[tuple[str, ValueNode]]:
    """Yield a literal and all literals in it, each with the name of its argument or member."""
    waiting = [(name, value)]
    while waiting:
        member_name, member = waiting.pop()
        yield member_name, member
        if isinstance(member, ObjectValueNode):
            waiting += ((field.name.value, field.value) for field in member.fields)
        elif isinstance(member, ListValueNode):
            waiting += ((member_name, item) for item in member.values)
