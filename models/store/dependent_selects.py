"""Selects that depend on the rows of the selects before them."""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select

from models.store.prepared_statements import PreparedStatement

Result = TypeVar("Result")
# a statement with the values of its parameters
SelectStep = tuple[PreparedStatement | Select[*tuple[Any, ...]], Mapping[str, Any]]
SelectSteps = Generator[SelectStep, Sequence[Any], Result]


def run_steps(
    steps: SelectSteps[Result], read_rows: Callable[[SelectStep], Sequence[Any]]
) -> Result:
    """Run the selects of a generator with `read`, and return its result."""
    try:
        step = next(steps)
        while True:
            step = steps.send(read_rows(step))
    except StopIteration as end:
        outcome: Result = end.value
        return outcome


async def run_steps_async(
    steps: SelectSteps[Result], read_rows: Callable[[SelectStep], Awaitable[Sequence[Any]]]
) -> Result:
    """Run the selects of a generator with the coroutine function `read`, and return its result."""
    try:
        step = next(steps)
        while True:
            step = steps.send(await read_rows(step))
    except StopIteration as end:
        outcome: Result = end.value
        return outcome


def single_step(step: SelectStep) -> SelectSteps[Sequence[Any]]:
    """Yield one select, and return its rows."""
    rows = yield step
    return rows
