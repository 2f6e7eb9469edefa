"""Selects of which each depends on what the one before has found."""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select

from models.store.prepared_statements import Prepared

Outcome = TypeVar("Outcome")
Step = tuple[Prepared | Select[*tuple[Any, ...]], Mapping[str, Any]]  # with its values
Steps = Generator[Step, Sequence[Any], Outcome]


def told(steps: Steps[Outcome], ask: Callable[[Step], Sequence[Any]]) -> Outcome:
    """What becomes of these steps, each of which is asked by `ask`."""
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
    """The same, where each answer is waited for."""
    try:
        step = next(steps)
        while True:
            step = steps.send(await ask(step))
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome


def only(step: Step) -> Steps[Sequence[Any]]:
    """One step alone."""
    found = yield step
    return found
