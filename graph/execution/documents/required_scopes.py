"""The scopes that a document needs because of the types of its fields."""

from functools import cache

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    get_named_type,
)

from graph.execution.strawberry_definitions import strawberry_definition
from graph.types.fields import Auth
from models.users.roles import Scope


def scopes_required_by_types(
    schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode
) -> frozenset[Scope]:
    """Return the scopes that `@auth` on types requires of an operation of a valid document."""
    fragments = {
        node.name.value: node
        for node in document.definitions
        if isinstance(node, FragmentDefinitionNode)
    }
    scopes: set[Scope] = set()
    seen_fragments: set[str] = set()  # fragments
    waiting: list[tuple[SelectionSetNode, GraphQLNamedType | None]] = [
        (operation.selection_set, schema.get_root_type(operation.operation))
    ]
    while waiting:
        selections, kind = waiting.pop()
        if kind is not None:
            scopes |= scopes_of_type(kind)
        for node in selections.selections:
            if isinstance(node, FieldNode):
                if node.selection_set:
                    waiting.append((node.selection_set, _field_type_or_none(kind, node.name.value)))
            elif isinstance(node, InlineFragmentNode):
                condition = node.type_condition
                inner = schema.get_type(condition.name.value) if condition else kind
                waiting.append((node.selection_set, inner))
            elif isinstance(node, FragmentSpreadNode) and node.name.value not in seen_fragments:
                seen_fragments.add(node.name.value)
                fragment = fragments[node.name.value]
                inner = schema.get_type(fragment.type_condition.name.value)
                waiting.append((fragment.selection_set, inner))
    return frozenset(scopes)


def _field_type_or_none(
    parent_type: GraphQLNamedType | None, field_name: str
) -> GraphQLNamedType | None:
    if (
        isinstance(parent_type, GraphQLObjectType | GraphQLInterfaceType)
        and field_name in parent_type.fields
    ):
        below: GraphQLNamedType = get_named_type(parent_type.fields[field_name].type)
        return below
    return None  # introspection


@cache
def scopes_of_type(named_type: GraphQLNamedType) -> frozenset[Scope]:
    """Return the scopes that `@auth` on a type requires."""
    definition = strawberry_definition(named_type)
    directives = getattr(definition, "directives", None) or ()
    rules = [directive for directive in directives if isinstance(directive, Auth)]
    return frozenset(rule.scope for rule in rules if isinstance(rule.scope, Scope))
