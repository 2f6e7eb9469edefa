"""The deadline of an operation, and what its fields answer when it has passed."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from models.store.committed_transactions import WorkProgress, current_work


class DeadlineExceeded(Exception):
    """The operation, or a field of a mutation, took longer than it may.

    `committed` is None for a query. For a field of a mutation it tells whether the field has
    stored anything.
    """

    def __init__(self, *, committed: bool | None = None, begun: bool = True) -> None:
        self.committed = committed
        if not begun:
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
        """The `extensions` of the error that the client gets."""
        known = {} if self.committed is None else {"committed": self.committed}
        return {"code": "DEADLINE_EXCEEDED", **known}


@dataclass(frozen=True, slots=True)
class FieldDeadline:
    """When the root fields of a mutation end, by the clock of the event loop.

    With `error`, no field runs, and each answers this error.
    """

    ends_at: float
    error: DeadlineExceeded | None = None

    async def run(self, field: Callable[[], Any]) -> Any:
        """Run one field. Raises DeadlineExceeded if it has not ended at the deadline."""
        if self.error is not None:
            raise self.error
        if asyncio.get_running_loop().time() >= self.ends_at:
            raise DeadlineExceeded(committed=False, begun=False)
        progress, before = WorkProgress(), current_work.get()
        current_work.set(progress)
        try:
            async with asyncio.timeout_at(self.ends_at) as clock:
                result = field()
                return await result if isinstance(result, Awaitable) else result
        except TimeoutError:
            if not clock.expired():
                raise
            raise DeadlineExceeded(committed=progress.committed) from None
        finally:
            current_work.set(before)
