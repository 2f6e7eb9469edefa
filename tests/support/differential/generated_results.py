"""What resolvers give while two executors are compared: values that hang on the place alone."""

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
from resolvers.context import Context, Viewer
from tests.support.differential.random_values import ERRORS, Dice, Maker, definition, is_link
from tests.support.differential.row_views import source

RAISED = 0.4  # of the odd values of a resolver


class Play(Context):
    """The context of one execution: it makes up what resolvers give, and notes each call."""

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: dict[str, FragmentDefinitionNode],
        *,
        seed: int,
        wrong: float,
        most: int,
    ) -> None:
        super().__init__(cast(Environment, None), Viewer())
        self.maker = Maker(schema, fragments, wrong, most, source)
        self.dice = Dice(seed)
        self.calls: list[tuple[tuple[str | int, ...], str]] = []

    def give(self, info: GraphQLResolveInfo[Any], arguments: dict[str, Any]) -> Any:
        """What the resolver of this field returns; or it raises."""
        dice = self._called(info, arguments)
        if dice.one_in(self.maker.wrong * RAISED):
            raise dice.pick(ERRORS)()
        return self.maker.value(info.return_type, info.field_nodes, dice.at("value"))

    async def give_later(self, info: GraphQLResolveInfo[Any], arguments: dict[str, Any]) -> Any:
        """The same, after no, one, or two turns of the loop."""
        turns = self.dice.at("turns", *info.path.as_list()).below(3)
        for _ in range(turns):
            await asyncio.sleep(0)
        return self.give(info, arguments)

    def event(self, operation: OperationDefinitionNode) -> Any:
        """What a stream yields: its field makes nothing of it but the answer."""
        root = self.maker.schema.subscription_type
        (node,) = operation.selection_set.selections
        assert isinstance(node, FieldNode)
        assert root
        return self.maker.value(root.fields[node.name.value].type, [node], self.dice.at("event"))

    def _called(self, info: GraphQLResolveInfo[Any], arguments: dict[str, Any]) -> Dice:
        place = info.path.as_list()
        self.calls.append((tuple(place), repr(sorted(arguments.items()))))
        return self.dice.at(*place)


async def leaves_by_ids(ctx: Context, keys: list[int]) -> list[Any]:
    """Rows of links, as a store would give them: some are gone."""
    play = cast(Play, ctx)
    play.calls.append(((), f"leaves {keys}"))
    rows = [(play, key, play.dice.at("leaf", key)) for key in keys]
    return [None if dice.one_in(0.1) else (play, dice) for play, _, dice in rows]


def leaf_of(row: Any) -> Any:
    """The object of such a row."""
    if row is None:
        return None
    play, dice = row
    kind = cast(GraphQLObjectType, play.maker.schema.get_type("Leaf"))
    return play.maker.whole(kind, dice)


def copied(schema: GraphQLSchema) -> GraphQLSchema:
    """The same schema, with fields that may be given other resolvers.

    It must have no unions: Strawberry tells their types by identity.
    """
    made = lexicographic_sort_schema(schema)
    made._strawberry_schema = schema._strawberry_schema  # type: ignore[attr-defined] # noqa: SLF001
    return made


def staged(schema: GraphQLSchema) -> GraphQLSchema:
    """A copy whose computed fields give what the play makes up; all else is the schema's own."""
    made = copied(schema)
    for field in _computed(made):
        field.resolve = partial(_resolve, field.resolve, field)
    return made


def as_shipped(schema: strawberry.Schema) -> GraphQLSchema:
    """A copy with the resolvers that Strawberry makes."""
    made = copied(schema._schema)  # noqa: SLF001 - what graphql-core runs
    for field in _computed(made):
        known = definition(field)
        directives = known.directives  # extensions add theirs once more
        if not known.is_subscription:
            field.resolve = schema.schema_converter.from_resolver(known)
        known.directives = directives
    return made


def _computed(schema: GraphQLSchema) -> Iterator[GraphQLField]:
    for kind in schema.type_map.values():
        if isinstance(kind, GraphQLObjectType) and definition(kind) is not None:
            for field in kind.fields.values():
                if not definition(field).is_basic_field:
                    yield field


def _resolve(
    own: Any, field: GraphQLField, source: Any, info: GraphQLResolveInfo[Any], **arguments: Any
) -> Any:
    known, play = definition(field), info.context
    if is_link(known) and known.python_name in vars(source):
        return own(source, info, **arguments)
    if play.dice.at("how", *info.path.as_list()).one_in(0.5):
        return play.maker.kept(play.give_later(info, arguments))
    return play.give(info, arguments)
