"""A way of writing to the database other than a mutation, and the list of all of them."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock

MESSAGES_PER_ACCOUNT = 3


@dataclass
class WritePathContext:
    """Two accounts with messages, and other objects that a write path needs."""

    ada: GraphQLClient
    bob: GraphQLClient
    root: GraphQLClient
    clock: ManualClock
    folder: Path
    stack: AsyncExitStack
    monkeypatch: pytest.MonkeyPatch

    @property
    def environment(self) -> Environment:
        return self.ada.environment


WriteAction = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class WritePath:
    """A way of writing to the database, and what the journal does not contain of it."""

    prepare: Callable[[WritePathContext], Awaitable[WriteAction]]
    worker: str  # the worker, or the kind of the task
    is_journaled: bool = True  # True if it writes to the journal
    changes_rows: bool = True  # True if it changes rows
    # tables whose rows are deleted without an entry
    silently_deleted_tables: frozenset[str] = field(default_factory=frozenset)
    # tables with an entry for changes of counters, too
    fully_journaled_tables: frozenset[str] = field(default_factory=frozenset)


WRITE_PATHS: dict[str, WritePath] = {}


PrepareWritePath = Callable[[WritePathContext], Awaitable[WriteAction]]


def register_write_path(
    worker: str,
    *silently_deleted_tables: str,
    is_journaled: bool = True,
    changes_rows: bool = True,
    fully_journaled_tables: Sequence[str] = (),
) -> Callable[[PrepareWritePath], PrepareWritePath]:
    """Add a write path to the list, by the words of the function's name."""

    def register(prepare: PrepareWritePath) -> PrepareWritePath:
        name = prepare.__name__.replace("_", " ")
        WRITE_PATHS[name] = WritePath(
            prepare,
            worker,
            is_journaled,
            changes_rows,
            frozenset(silently_deleted_tables),
            frozenset(fully_journaled_tables),
        )
        return prepare

    return register


async def update_rows(
    stage: WritePathContext, table: Any, values: dict[str, Any], *conditions: Any
) -> None:
    """Change rows without code of the product."""
    async with stage.environment.write_session(stage.ada.user.id, stage.bob.user.id) as session:
        await (await session.connection()).execute(
            update(table).where(*conditions).values(**values)
        )
