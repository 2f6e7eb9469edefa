"""Which transactions were committed, for callers that are cancelled during the commit."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass

from sqlmodel.ext.asyncio.session import AsyncSession

from models.store import cancel_safety

COMMITTED = "committed"  # key in the `info` of a session


@dataclass
class WorkProgress:
    """Shows if a piece of work, such as one field of a mutation, has committed."""

    committed: bool = False


# The piece of work of the current task, if a caller wants to know whether it has committed.
current_work: ContextVar[WorkProgress | None] = ContextVar("current_work", default=None)


def note_commit() -> None:
    """Note that the current piece of work has committed a transaction."""
    if work := current_work.get():
        work.committed = True


def is_committed(session: AsyncSession | None) -> bool:
    """True if the transaction of this session is committed."""
    return session is not None and bool(session.info.get(COMMITTED))


async def commit_even_if_cancelled(session: AsyncSession) -> None:
    """Commit a transaction. A cancellation is raised after the commit has ended."""
    committing = asyncio.ensure_future(session.commit())
    try:
        await cancel_safety.await_to_end(committing)
    finally:
        if not committing.cancelled() and committing.exception() is None:
            session.info[COMMITTED] = True
