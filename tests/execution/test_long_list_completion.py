"""Long lists are completed in several steps of the event loop, with the same result."""

import asyncio
from typing import Any

import pytest
import strawberry

from graph.execution import list_steps
from graph.execution.operation_execution import ExecutableSchema, OperationContext
from models.runtime.environment import Environment
from resolvers.context import Viewer
from tests.support.servers.loop_step_timer import measure_steps

COUNT = 3_000
BAD = 2_400  # the item whose `number` is no Int


@strawberry.type
class Item:
    index: int
    number: int
    below: list["Item"]

    @strawberry.field
    async def later(self) -> int:
        await asyncio.sleep(0)
        return self.index


@strawberry.type
class Holder:
    items: list[Item]
    optional: list[Item | None]


def make_items(bad: bool) -> list[Item]:
    return [
        Item(
            index=n,
            number=2**40 if bad and n == BAD else n,
            below=[Item(index=n, number=n, below=[])],
        )
        for n in range(COUNT)
    ]


@strawberry.type
class Query:
    @strawberry.field
    def items(self, bad: bool = False) -> list[Item]:
        return make_items(bad)

    @strawberry.field
    def holder(self, bad: bool = False) -> Holder:
        items = make_items(bad)
        return Holder(items=items, optional=list(items))

    @strawberry.field
    def holders(self) -> list[Holder]:
        return [Holder(items=make_items(bad=False), optional=[])]


async def run(schema: ExecutableSchema, world: Environment, text: str) -> tuple[Any, list[Any]]:
    found = await schema.execute(text, {}, OperationContext(world, Viewer()))
    return found.data, [error.formatted for error in found.errors or []]


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ExecutableSchema:
    monkeypatch.setattr(list_steps, "MAX_STEP_CPU_SECONDS", 0.001)
    return ExecutableSchema(query=Query, compiled=request.param)


PLAIN = [{"index": n, "number": n, "below": [{"index": n}]} for n in range(COUNT)]
FIELDS = "{ index number below { index } }"


@pytest.mark.parametrize("attempt", [1, 3])  # a document is compiled when it is seen again
async def test_a_long_list_has_all_items_in_order(
    small: ExecutableSchema, world: Environment, attempt: int
) -> None:
    for _ in range(attempt):
        assert await run(small, world, f"{{ items {FIELDS} }}") == ({"items": PLAIN}, [])
        text = f"{{ holder {{ items {FIELDS} optional {FIELDS} }} }}"
        assert await run(small, world, text) == (
            {"holder": {"items": PLAIN, "optional": PLAIN}},
            [],
        )
        text = f"{{ holders {{ items {FIELDS} }} }}"
        assert await run(small, world, text) == ({"holders": [{"items": PLAIN}]}, [])


async def test_items_with_resolvers_keep_their_order(
    small: ExecutableSchema, world: Environment
) -> None:
    for _ in range(2):
        data, errors = await run(small, world, "{ items { index later } }")
        assert not errors
        assert data["items"] == [{"index": n, "later": n} for n in range(COUNT)]


async def test_an_error_in_a_long_list_has_its_path(
    small: ExecutableSchema, world: Environment
) -> None:
    for _ in range(3):
        text = "{ holder(bad: true) { optional { index number } } }"
        data, [error] = await run(small, world, text)
        assert error["path"] == ["holder", "optional", BAD, "number"]
        assert data["holder"]["optional"][BAD] is None
        assert data["holder"]["optional"][BAD + 1]["index"] == BAD + 1
        data, [error] = await run(small, world, "{ items(bad: true) { later number } }")
        assert (data, error["path"]) == (None, ["items", BAD, "number"])


async def test_a_cancelled_operation_leaves_no_coroutine_behind(
    small: ExecutableSchema, world: Environment
) -> None:
    """Coroutines that are never awaited would be warnings, which are errors in tests."""
    for turns in range(1, 30, 4):
        operation = asyncio.create_task(run(small, world, "{ items { index later } }"))
        for _ in range(turns):
            await asyncio.sleep(0)
        operation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await operation


async def test_no_step_is_long(small: ExecutableSchema, world: Environment) -> None:
    """The lists take over 100 ms where they are completed at once."""
    lists = " ".join(f"list{n}: optional {FIELDS}" for n in range(6))
    (data, _), steps = await measure_steps(run(small, world, f"{{ holder {{ {lists} }} }}"))
    assert len(data["holder"]["list5"]) == COUNT
    assert steps.most < 0.05, steps
