"""An error of a field does not end other fields that wait for the same object."""

import asyncio
from typing import cast

import strawberry

from models.runtime.environment import Environment
from resolvers.context import Context
from resolvers.viewer import Viewer

Info = strawberry.Info[Context, None]


async def load_doubled(_ctx: Context, keys: list[int]) -> list[int]:
    await asyncio.sleep(0.02)
    return [key * 2 for key in keys]


@strawberry.type
class Part:
    @strawberry.field
    async def one(self, info: Info) -> int:
        return await info.context.load(load_doubled, 1)

    @strawberry.field
    async def many(self, info: Info) -> list[int]:
        return await info.context.load_many(load_doubled, [1, 2])

    @strawberry.field
    async def broken(self) -> int:
        await asyncio.sleep(0.005)
        raise ValueError("boom")


@strawberry.type
class Query:
    @strawberry.field
    def first(self) -> Part | None:
        return Part()

    @strawberry.field
    def second(self) -> Part | None:
        return Part()


async def test_error_of_one_field_does_not_end_its_siblings() -> None:
    context = Context(cast(Environment, None), Viewer())
    document = "{ first { one many broken } second { one many } }"
    result = await strawberry.Schema(Query).execute(document, context_value=context)
    assert result.data == {"first": None, "second": {"one": 2, "many": [2, 4]}}
    assert [error.path for error in result.errors or ()] == [["first", "broken"]]
