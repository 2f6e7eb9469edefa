"""The arguments of fields, coerced by functions that are made once per literal of a document.

They only accept values that are certainly valid. All other values are left to graphql-core,
which reports the errors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from graphql import (
    ArgumentNode,
    FieldNode,
    GraphQLArgument,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLList,
    GraphQLNonNull,
    ListValueNode,
    Node,
    NullValueNode,
    ObjectValueNode,
    Undefined,
    ValueNode,
    VariableNode,
    Visitor,
    is_required_argument,
    visit,
)
from graphql.execution.values import VariableValues, coerce_argument
from graphql.utilities.coerce_input_value import coerce_default_value, coerce_input_literal

from graph.execution.variables import (
    InputFieldPlan,
    NeedsGraphqlCoreCoercion,
    fresh_default,
    input_field_plans,
)

LiteralFunction = Callable[[Mapping[str, Any]], Any]  # of the coerced variables


class LiteralMember(NamedTuple):
    """An argument, or a field of an input object, with the function that coerces its literal."""

    out_name: str
    coerce: LiteralFunction | None  # None if it is omitted
    variable_name: str | None  # if the literal is a variable
    is_required: bool
    default: Any  # Undefined if there is none


class ComputedArgument(NamedTuple):
    """An argument that is computed at each call of its field.

    Its literal contains variables, or its value can be changed by a resolver.
    """

    name: str
    definition: GraphQLArgument
    node: ArgumentNode | None


class FieldArguments(NamedTuple):
    """The arguments of a field in a document.

    `members` are the computed ones. It is None if graphql-core must coerce one of them.
    """

    constant: dict[str, Any]
    computed: Sequence[ComputedArgument]
    members: Sequence[LiteralMember] | None

    def coerce(self, node: FieldNode, variable_values: VariableValues) -> dict[str, Any]:
        """Return the arguments. Raises GraphQLError if one is not valid."""
        if not self.computed:
            return self.constant
        if self.members is not None:
            try:
                return self.constant | _coerce_members(self.members, variable_values.coerced)
            except NeedsGraphqlCoreCoercion:
                pass  # graphql-core accepts them, or reports the error
        arguments = self.constant.copy()
        for name, definition, argument_node in self.computed:
            coerce_argument(
                arguments,
                node,
                name,
                definition,
                argument_node,
                variable_values,
                None,
                hide_suggestions=True,
            )
        return arguments


def prepare_field_arguments(field: GraphQLField, node: FieldNode) -> FieldArguments:
    """Return the arguments of a field. Raises GraphQLError if a constant one is not valid."""
    constant: dict[str, Any] = {}
    computed: list[ComputedArgument] = []
    nodes_by_name = {argument.name.value: argument for argument in node.arguments or ()}
    for name, definition in field.args.items():
        argument_node = nodes_by_name.get(name)
        value: dict[str, Any] = {}
        is_constant = argument_node is None or not _contains_variable(argument_node)
        if is_constant:
            coerce_argument(
                value, node, name, definition, argument_node, None, None, hide_suggestions=True
            )
        if is_constant and not any(isinstance(item, dict | list) for item in value.values()):
            constant |= value
        else:
            computed.append(ComputedArgument(name, definition, argument_node))
    try:
        members = [_argument_member(*argument) for argument in computed]
    except NeedsGraphqlCoreCoercion:
        return FieldArguments(constant, computed, None)
    return FieldArguments(constant, computed, members)


def _contains_variable(node: Node) -> bool:
    finder = _VariableFinder()
    visit(node, finder)
    return finder.has_variable


class _VariableFinder(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.has_variable = False

    def enter_variable(self, *_: Any) -> Any:
        self.has_variable = True


def _argument_member(
    name: str, definition: GraphQLArgument, node: ArgumentNode | None
) -> LiteralMember:
    is_required = is_required_argument(definition)
    default = Undefined if is_required else coerce_default_value(definition)
    field = InputFieldPlan(name, definition.out_name or name, definition, is_required, default)
    return _literal_member(field, None if node is None else node.value)


def _coerce_members(
    members: Iterable[LiteralMember], variables: Mapping[str, Any]
) -> dict[str, Any]:
    """Coerce arguments, or the fields of an input object.

    Raises NeedsGraphqlCoreCoercion for variables that may be invalid.
    """
    coerced = {}
    for out_name, coerce, variable_name, is_required, default in members:
        if coerce and (variable_name is None or variable_name in variables):
            coerced[out_name] = coerce(variables)
        elif is_required:
            raise NeedsGraphqlCoreCoercion
        elif default is not Undefined:
            coerced[out_name] = fresh_default(default)
    return coerced


def _literal_member(field: InputFieldPlan, node: ValueNode | None) -> LiteralMember:
    if node is None:
        return LiteralMember(field.out_name, None, None, field.is_required, field.default)
    variable_name = node.name.value if isinstance(node, VariableNode) else None
    function = _literal_function(node, field.field.type)
    return LiteralMember(field.out_name, function, variable_name, field.is_required, field.default)


def _literal_function(node: ValueNode, input_type: GraphQLInputType) -> LiteralFunction:
    if isinstance(node, VariableNode):
        return _variable_function(
            node.name.value, is_required=isinstance(input_type, GraphQLNonNull)
        )
    if isinstance(input_type, GraphQLNonNull):
        if isinstance(node, NullValueNode):
            raise NeedsGraphqlCoreCoercion
        return _literal_function(node, input_type.of_type)
    if isinstance(node, NullValueNode):
        return lambda _variables: None
    if isinstance(input_type, GraphQLList):
        return _list_function(node, input_type)
    if isinstance(input_type, GraphQLInputObjectType):
        return _object_function(node, input_type)
    if isinstance(node, ListValueNode | ObjectValueNode):  # of a scalar: can contain variables
        raise NeedsGraphqlCoreCoercion
    value = coerce_input_literal(node, input_type)
    if value is Undefined or isinstance(value, dict | list):  # or a resolver can change it
        raise NeedsGraphqlCoreCoercion
    return lambda _variables: value


def _variable_function(name: str, *, is_required: bool) -> LiteralFunction:
    def read_variable(variables: Mapping[str, Any]) -> Any:
        if name not in variables or (is_required and variables[name] is None):
            raise NeedsGraphqlCoreCoercion
        return variables[name]

    return read_variable


def _list_function(node: ValueNode, input_type: GraphQLList[Any]) -> LiteralFunction:
    # a list accepts one value as a list with this value
    item_nodes = node.values if isinstance(node, ListValueNode) else [node]
    items = [_literal_function(item, input_type.of_type) for item in item_nodes]
    return lambda variables: [item(variables) for item in items]


def _object_function(node: ValueNode, input_type: GraphQLInputObjectType) -> LiteralFunction:
    if not isinstance(node, ObjectValueNode):
        raise NeedsGraphqlCoreCoercion
    nodes_by_name = {field.name.value: field.value for field in node.fields}
    is_one_of, out_type = input_type.is_one_of, input_type.out_type
    if not nodes_by_name.keys() <= input_type.fields.keys() or (
        is_one_of and len(nodes_by_name) != 1
    ):
        raise NeedsGraphqlCoreCoercion
    members = [
        _literal_member(field, nodes_by_name.get(field.name))
        for field in input_field_plans(input_type)
        if field.name in nodes_by_name or field.is_required or field.default is not Undefined
    ]

    def coerce_object(variables: Mapping[str, Any]) -> Any:
        coerced = _coerce_members(members, variables)
        if is_one_of and (len(coerced) != 1 or None in coerced.values()):
            raise NeedsGraphqlCoreCoercion
        return out_type(coerced)

    return coerce_object
