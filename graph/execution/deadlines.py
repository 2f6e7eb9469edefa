"""The deadline of an operation and the error after it has passed."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from models.store.committed_transactions import WorkProgress, current_work


class DeadlineExceeded(Exception):
    """The error of an operation, or of a field of a mutation, that exceeded its time limit.

    `committed` is None for a query. For a field of a mutation it is True if the field has
    stored a change.
    """

    def __init__(self, *, committed: bool | None = None, has_begun: bool = True) -> None:
        self.committed = committed
        if not has_begun:
            text = "The time for the operation ended before this field began. Nothing was changed."
        elif committed:
            text = "The operation took too long. The changes of this field are stored, but its "
            text += "payload is missing."
        elif committed is False:
            text = "The operation took too long. This field has changed nothing."
        else:
            text = "The operation took too long."
        super().__init__(text)

    @property
    def extensions(self) -> dict[str, Any]:
        """The `extensions` of the GraphQL error."""
        commit_state = {} if self.committed is None else {"committed": self.committed}
        return {"code": "DEADLINE_EXCEEDED", **commit_state}


@dataclass(slots=True)
class FieldDeadline:
    """The deadline of the root fields of a mutation, by the clock of the event loop.

    If `error` is set, no field runs and each field raises this error.
    """

    ends_at: float
    error: DeadlineExceeded | None = None
    _clock: asyncio.Timeout | None = None  # of the field that runs

    def extend(self, seconds: float) -> None:
        """Give the running field, and all later ones, more time: for a mutation that waits."""
        self.ends_at += seconds
        if self._clock is not None:
            self._clock.reschedule(self.ends_at)

    async def run_field_until_deadline(self, resolve_field: Callable[[], Any]) -> Any:
        """Run one root field and return its completed value.

        Raises DeadlineExceeded if it has not ended at the deadline.
        """
        if self.error is not None:
            raise self.error
        if asyncio.get_running_loop().time() >= self.ends_at:
            raise DeadlineExceeded(committed=False, has_begun=False)
        progress, previous = WorkProgress(), current_work.get()
        current_work.set(progress)
        try:
            async with asyncio.timeout_at(self.ends_at) as clock:
                self._clock = clock
                result = resolve_field()
                return await result if isinstance(result, Awaitable) else result
        except TimeoutError:
            if not clock.expired():
                raise
            raise DeadlineExceeded(committed=progress.committed) from None
        finally:
            self._clock = None
            current_work.set(previous)
