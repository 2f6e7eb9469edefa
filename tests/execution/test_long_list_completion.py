"""Long lists are completed in several steps of the event loop, with the same result."""

import asyncio
from typing import Any

import pytest
import strawberry

from graph.execution import list_steps
from graph.execution.operation_execution import ExecutableSchema, OperationContext
from models.runtime.environment import Environment
from resolvers.viewer import Viewer
from tests.support.servers.loop_step_timer import MAX_STEP_SECONDS, measure_steps

ITEM_COUNT = 3_000
BAD_INDEX = 2_400  # the item whose `number` does not fit an Int


@strawberry.type
class ListItem:
    index: int
    number: int
    below: list["ListItem"]

    @strawberry.field
    async def later(self) -> int:
        await asyncio.sleep(0)
        return self.index


@strawberry.type
class ListHolder:
    items: list[ListItem]
    optional: list[ListItem | None]


def make_items(bad: bool) -> list[ListItem]:
    return [
        ListItem(
            index=n,
            number=2**40 if bad and n == BAD_INDEX else n,
            below=[ListItem(index=n, number=n, below=[])],
        )
        for n in range(ITEM_COUNT)
    ]


@strawberry.type
class Query:
    @strawberry.field
    def items(self, bad: bool = False) -> list[ListItem]:
        return make_items(bad)

    @strawberry.field
    def holder(self, bad: bool = False) -> ListHolder:
        items = make_items(bad)
        return ListHolder(items=items, optional=list(items))

    @strawberry.field
    def holders(self) -> list[ListHolder]:
        return [ListHolder(items=make_items(bad=False), optional=[])]


async def execute(
    schema: ExecutableSchema, environment: Environment, text: str
) -> tuple[Any, list[Any]]:
    result = await schema.execute(text, {}, OperationContext(environment, Viewer()))
    return result.data, [error.formatted for error in result.errors or []]


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def small_schema(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> ExecutableSchema:
    monkeypatch.setattr(list_steps, "MAX_STEP_CPU_SECONDS", 0.001)
    return ExecutableSchema(query=Query, compiled=request.param)


EXPECTED_ITEMS = [{"index": n, "number": n, "below": [{"index": n}]} for n in range(ITEM_COUNT)]
ITEM_FIELDS = "{ index number below { index } }"


@pytest.mark.parametrize("attempt", [1, 3])  # a document is compiled on its second use
async def test_long_list_has_all_items_in_order(
    small_schema: ExecutableSchema, environment: Environment, attempt: int
) -> None:
    for _ in range(attempt):
        assert await execute(small_schema, environment, f"{{ items {ITEM_FIELDS} }}") == (
            {"items": EXPECTED_ITEMS},
            [],
        )
        text = f"{{ holder {{ items {ITEM_FIELDS} optional {ITEM_FIELDS} }} }}"
        assert await execute(small_schema, environment, text) == (
            {"holder": {"items": EXPECTED_ITEMS, "optional": EXPECTED_ITEMS}},
            [],
        )
        text = f"{{ holders {{ items {ITEM_FIELDS} }} }}"
        assert await execute(small_schema, environment, text) == (
            {"holders": [{"items": EXPECTED_ITEMS}]},
            [],
        )


async def test_items_with_resolvers_keep_their_order(
    small_schema: ExecutableSchema, environment: Environment
) -> None:
    for _ in range(2):
        data, errors = await execute(small_schema, environment, "{ items { index later } }")
        assert not errors
        assert data["items"] == [{"index": n, "later": n} for n in range(ITEM_COUNT)]


async def test_error_in_long_list_has_its_path(
    small_schema: ExecutableSchema, environment: Environment
) -> None:
    for _ in range(3):
        text = "{ holder(bad: true) { optional { index number } } }"
        data, [error] = await execute(small_schema, environment, text)
        assert error["path"] == ["holder", "optional", BAD_INDEX, "number"]
        assert data["holder"]["optional"][BAD_INDEX] is None
        assert data["holder"]["optional"][BAD_INDEX + 1]["index"] == BAD_INDEX + 1
        data, [error] = await execute(
            small_schema, environment, "{ items(bad: true) { later number } }"
        )
        assert (data, error["path"]) == (None, ["items", BAD_INDEX, "number"])


async def test_cancelled_long_list_leaves_no_coroutine(
    small_schema: ExecutableSchema, environment: Environment
) -> None:
    """A coroutine that is never awaited causes a warning, and warnings are errors in tests."""
    cancelled_count = 0
    for turns in range(1, 30, 4):
        operation = asyncio.create_task(
            execute(small_schema, environment, "{ items { index later } }")
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        if not operation.done():  # a fast machine needs fewer turns for the whole list
            operation.cancel()
            with pytest.raises(asyncio.CancelledError):
                await operation
            cancelled_count += 1
    assert cancelled_count >= 3


async def test_long_list_is_completed_in_short_steps(
    small_schema: ExecutableSchema, environment: Environment
) -> None:
    """The lists take over 100 ms if they are completed in one step."""
    lists = " ".join(f"list{n}: optional {ITEM_FIELDS}" for n in range(6))
    (data, _), steps = await measure_steps(
        lambda: execute(small_schema, environment, f"{{ holder {{ {lists} }} }}")
    )
    assert len(data["holder"]["list5"]) == ITEM_COUNT
    assert steps.longest_seconds <= MAX_STEP_SECONDS, steps
