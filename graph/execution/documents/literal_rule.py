"""The validation rule for literals. Its errors have a location and a path."""

from typing import Any

from graphql import (
    ArgumentNode,
    FieldNode,
    GraphQLError,
    GraphQLInputType,
    ListValueNode,
    ObjectValueNode,
    ValueNode,
    ValuesOfCorrectTypeRule,
    VariableDefinitionNode,
    VisitorAction,
)
from graphql.language import SKIP
from graphql.utilities.validate_input_value import validate_input_literal


class LocatedLiteralRule(ValuesOfCorrectTypeRule):
    """ValuesOfCorrectTypeRule that adds location and path to errors of scalars.

    A scalar that raises GraphQLError has no node, so graphql-core reports its error without a
    location. `extensions.path` has the fields, the argument and the members of its input.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._field_path: list[str] = []
        self._argument_or_variable = ""  # whose value is visited

    def enter_field(self, node: FieldNode, *_args: Any) -> VisitorAction:
        """Add the response name of a field to the path."""
        self._field_path.append((node.alias or node.name).value)
        return None

    def leave_field(self, _node: FieldNode, *_args: Any) -> VisitorAction:
        """Remove a field from the path."""
        self._field_path.pop()
        return None

    def enter_argument(self, node: ArgumentNode, *_args: Any) -> VisitorAction:
        """Remember the name of the argument."""
        self._argument_or_variable = node.name.value
        return None

    def enter_variable_definition(self, node: VariableDefinitionNode, *_args: Any) -> VisitorAction:
        """Remember the name of the variable, which can have a default."""
        self._argument_or_variable = f"${node.variable.name.value}"
        return None

    def is_valid_value_node(
        self, node: ValueNode, input_type: GraphQLInputType | None
    ) -> VisitorAction:
        """Report the errors of a literal."""

        def report(error: GraphQLError, path: list[str | int]) -> None:
            if not error.nodes:
                input_path = [*self._field_path, self._argument_or_variable, *map(str, path)]
                extensions = {**(error.extensions or {}), "path": input_path}
                error = GraphQLError(
                    error.message, _literal_at_path(node, path), extensions=extensions
                )
            self.report_error(error)

        if input_type:
            hides = self.context.hide_suggestions
            validate_input_literal(node, input_type, report, None, None, hides)
        return SKIP


def _literal_at_path(node: ValueNode, path: list[str | int]) -> ValueNode:
    """Return the literal at a path inside another literal."""
    for part in path:
        if isinstance(node, ObjectValueNode):
            node = next((field.value for field in node.fields if field.name.value == part), node)
        elif isinstance(node, ListValueNode) and isinstance(part, int):
            node = node.values[part]
    return node
