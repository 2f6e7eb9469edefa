"""The owner of the current reads, and how many reads of one owner run at once."""

import asyncio
from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field

# The client that the current task reads for; None for work of the server, which has no limit.
current_read_owner: ContextVar[Hashable] = ContextVar("current_read_owner", default=None)


@dataclass(slots=True)
class _OwnerSlots:
    """The slots of one owner, while it has reads."""

    free: asyncio.Semaphore
    read_count: int = field(default=0)  # running and waiting reads


class ReadSlots:
    """Slots for reads. Each owner has the same number; its other reads wait in their order.

    So the slow reads of one owner never take all threads or connections of a store.
    """

    def __init__(self, slots_per_owner: int) -> None:
        self._slots_per_owner = slots_per_owner
        self._by_owner: dict[Hashable, _OwnerSlots] = {}

    async def acquire(self, owner: Hashable) -> None:
        """Wait for a slot of this owner. If it returns, call `release` when the read has ended."""
        if owner is None:
            return
        slots = self._by_owner.get(owner)
        if slots is None:
            slots = self._by_owner[owner] = _OwnerSlots(asyncio.Semaphore(self._slots_per_owner))
        slots.read_count += 1
        try:
            await slots.free.acquire()
        except BaseException:
            self._remove_read(owner, slots)
            raise

    def release(self, owner: Hashable) -> None:
        """Release a slot of this owner."""
        if owner is None:
            return
        slots = self._by_owner[owner]
        slots.free.release()
        self._remove_read(owner, slots)

    def _remove_read(self, owner: Hashable, slots: _OwnerSlots) -> None:
        slots.read_count -= 1
        if not slots.read_count:
            del self._by_owner[owner]
