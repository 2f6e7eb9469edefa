"""Selects that depend on the rows of the selects before them."""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select

from models.store.prepared_statements import Prepared

Outcome = TypeVar("Outcome")
# a statement with the values of its parameters
Step = tuple[Prepared | Select[*tuple[Any, ...]], Mapping[str, Any]]
Steps = Generator[Step, Sequence[Any], Outcome]


def told(steps: Steps[Outcome], ask: Callable[[Step], Sequence[Any]]) -> Outcome:
    """Run the selects of a generator with `read`, and return its result."""
    try:
        step = next(steps)
        while True:
            step = steps.send(ask(step))
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome


async def told_later(
    steps: Steps[Outcome], ask: Callable[[Step], Awaitable[Sequence[Any]]]
) -> Outcome:
    """Run the selects of a generator with the coroutine function `read`, and return its result."""
    try:
        step = next(steps)
        while True:
            step = steps.send(await ask(step))
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome


def only(step: Step) -> Steps[Sequence[Any]]:
    """Yield one select, and return its rows."""
    found = yield step
    return found
