"""Generated results of resolvers. A value depends only on the seed and the response path."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import strawberry
from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    GraphQLField,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    OperationDefinitionNode,
    lexicographic_sort_schema,
)

from models.runtime.environment import Environment
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.support.differential.random_values import (
    ERROR_FACTORIES,
    PathRandom,
    ValueGenerator,
    is_link,
    strawberry_definition,
)
from tests.support.differential.row_views import view_source

RAISED_SHARE = 0.4  # of the odd results of resolvers


class GeneratedContext(Context):
    """The context of one execution: it generates the results of resolvers and records the calls."""

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: dict[str, FragmentDefinitionNode],
        *,
        seed: int,
        odd_share: float,
        max_items: int,
    ) -> None:
        super().__init__(cast(Environment, None), Viewer())
        self.generator = ValueGenerator(schema, fragments, odd_share, max_items, view_source)
        self.random = PathRandom(seed)
        self.calls: list[tuple[tuple[str | int, ...], str]] = []

    def resolve_field(self, info: GraphQLResolveInfo[Any], arguments: dict[str, Any]) -> Any:
        """Return or raise the result of the resolver of a field."""
        random = self._record_call(info, arguments)
        if random.happens(self.generator.odd_share * RAISED_SHARE):
            raise random.choice(ERROR_FACTORIES)()
        return self.generator.value(info.return_type, info.field_nodes, random.derive("value"))

    async def resolve_field_later(
        self, info: GraphQLResolveInfo[Any], arguments: dict[str, Any]
    ) -> Any:
        """As `resolve_field`, after zero to two iterations of the event loop."""
        turns = self.random.derive("turns", *info.path.as_list()).integer_below(3)
        for _ in range(turns):
            await asyncio.sleep(0)
        return self.resolve_field(info, arguments)

    def event_value(self, operation: OperationDefinitionNode) -> Any:
        """The value that the event stream of a subscription yields."""
        root = self.generator.schema.subscription_type
        (node,) = operation.selection_set.selections
        assert isinstance(node, FieldNode)
        assert root
        return self.generator.value(
            root.fields[node.name.value].type, [node], self.random.derive("event")
        )

    def _record_call(self, info: GraphQLResolveInfo[Any], arguments: dict[str, Any]) -> PathRandom:
        path = info.path.as_list()
        self.calls.append((tuple(path), repr(sorted(arguments.items()))))
        return self.random.derive(*path)


async def leaves_by_ids(ctx: Context, ids: list[int]) -> list[Any]:
    """Load rows of linked objects by id. Some rows are missing."""
    context = cast(GeneratedContext, ctx)
    context.calls.append(((), f"leaves {ids}"))
    rows = [(context, leaf_id, context.random.derive("leaf", leaf_id)) for leaf_id in ids]
    return [None if random.happens(0.1) else (context, random) for context, _, random in rows]


def leaf_of(row: Any) -> Any:
    """The object of a row of `leaves_by_ids`."""
    if row is None:
        return None
    context, random = row
    leaf_type = cast(GraphQLObjectType, context.generator.schema.get_type("Leaf"))
    return context.generator.plain_object(leaf_type, random)


def copy_schema(schema: GraphQLSchema) -> GraphQLSchema:
    """Copy a schema, so that its fields can get other resolvers.

    The schema must not contain unions, because Strawberry compares their types by identity.
    """
    copy = lexicographic_sort_schema(schema)
    copy._strawberry_schema = schema._strawberry_schema  # type: ignore[attr-defined] # noqa: SLF001
    return copy


def schema_with_generated_resolvers(schema: GraphQLSchema) -> GraphQLSchema:
    """Copy a schema and replace the resolvers of its computed fields by generated results."""
    copy = copy_schema(schema)
    for field in _computed_fields(copy):
        field.resolve = partial(_resolve, field.resolve, field)
    return copy


def schema_with_strawberry_resolvers(schema: strawberry.Schema) -> GraphQLSchema:
    """Copy a schema with the resolvers that Strawberry makes."""
    copy = copy_schema(schema._schema)  # noqa: SLF001 - the schema of graphql-core
    for field in _computed_fields(copy):
        strawberry_field = strawberry_definition(field)
        # from_resolver would add the directives of extensions a second time
        directives = strawberry_field.directives
        if not strawberry_field.is_subscription:
            field.resolve = schema.schema_converter.from_resolver(strawberry_field)
        strawberry_field.directives = directives
    return copy


def _computed_fields(schema: GraphQLSchema) -> Iterator[GraphQLField]:
    for object_type in schema.type_map.values():
        if (
            isinstance(object_type, GraphQLObjectType)
            and strawberry_definition(object_type) is not None
        ):
            for field in object_type.fields.values():
                if not strawberry_definition(field).is_basic_field:
                    yield field


def _resolve(
    original_resolver: Any,
    field: GraphQLField,
    source: Any,
    info: GraphQLResolveInfo[Any],
    **arguments: Any,
) -> Any:
    strawberry_field, context = strawberry_definition(field), info.context
    if is_link(strawberry_field) and strawberry_field.python_name in vars(source):
        return original_resolver(source, info, **arguments)
    if context.random.derive("how", *info.path.as_list()).happens(0.5):
        return context.generator.track_coroutine(context.resolve_field_later(info, arguments))
    return context.resolve_field(info, arguments)
