"""Application of what other processes change: settings, bans, and the state of the own node.

One statement each second shows whether anything has changed. A wake-up causes it at once.
"""

import asyncio
import logging
import time
from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy import literal, select
from sqlmodel import col

from mail.throttling.ban_changes import (
    apply_server_addresses,
    refresh_refused_networks_from_database,
)
from models.cluster.nodes import ClusterNode
from models.events.journal import PLATFORM, Stream
from models.events.wakeups import wait_for_any_event_or_timeout
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.throttling.tables import BanChangeCounter
from resolvers.admin import settings as admin_settings
from resolvers.cluster.node_state import OWN_NODE_COLUMNS, NodeStateEnforcer

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between two reads
MIN_POLL_SECONDS = 0.33  # between reads that wake-ups cause: each forwarded message is one
SERVER_READ_SECONDS = 5.0  # between reads of the addresses of the servers
_ONE_ROW = select(literal(1).label("one")).subquery()
_SELECT_POSITIONS = select(
    select(col(Stream.last)).where(col(Stream.id) == PLATFORM).scalar_subquery().label("position"),
    select(col(BanChangeCounter.last_change)).scalar_subquery().label("ban_change"),
    *select_columns(ClusterNode, OWN_NODE_COLUMNS),
).select_from(_ONE_ROW)


async def follow_platform_forever(environment: Environment) -> None:
    """Apply changes of settings, bans and the own node within a second, until cancelled.

    Without a database the last known values stay in force.
    """
    follower = _PlatformFollower(environment)
    with environment.wakeups.follow([PLATFORM]) as wakeup:
        while True:
            wakeup.clear()  # before reading: a later change sets it again
            began_at = time.monotonic()
            await follower.apply_changes_and_log_failures()
            await wait_for_any_event_or_timeout([wakeup], POLL_SECONDS)
            await asyncio.sleep(max(0.0, began_at + MIN_POLL_SECONDS - time.monotonic()))


class _PlatformFollower:
    """What this process has applied, and which steps fail."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._enforcer = NodeStateEnforcer(environment)
        self._warned_keys: list[str] = []
        self._failing_steps: set[str] = set()
        self._next_server_read = 0.0  # seconds of the monotonic clock

    async def apply_changes_and_log_failures(self) -> None:
        """Read once, and apply what has changed. A failure of one step does not affect others."""
        row = None
        with self._log_first_failure("read"):
            row = await self._read_positions_and_own_node()
        if row is None:
            return
        with self._log_first_failure("settings"):
            await self._apply_settings_if_changed(row)
        with self._log_first_failure("bans"):
            await self._apply_bans_if_changed(row)
        with self._log_first_failure("node"):
            await self._enforcer.enforce_node_state(row if row.id else None)

    @contextmanager
    def _log_first_failure(self, step: str) -> Generator[None]:
        """Log the first one of several failures of a step. The next round repeats it."""
        try:
            yield
            self._failing_steps.discard(step)
        except Exception:
            if step not in self._failing_steps:
                log.exception("Could not apply changes of the platform", extra={"step": step})
            self._failing_steps.add(step)

    async def _read_positions_and_own_node(self) -> ColumnRow:
        is_own_node = col(ClusterNode.server) == self._environment.process.server_id
        statement = _SELECT_POSITIONS.outerjoin(ClusterNode, is_own_node)
        return (await self._environment.database.read(statement))[0]

    async def _apply_settings_if_changed(self, row: ColumnRow) -> None:
        environment = self._environment
        if row.position in (None, environment.options_position):
            return
        invalid_keys = await admin_settings.apply_stored_settings_and_list_invalid(environment)
        admin_settings.log_unusable_settings(
            [key for key in invalid_keys if key not in self._warned_keys]
        )
        self._warned_keys = invalid_keys

    async def _apply_bans_if_changed(self, row: ColumnRow) -> None:
        if time.monotonic() >= self._next_server_read:
            await apply_server_addresses(self._environment)
            self._next_server_read = time.monotonic() + SERVER_READ_SECONDS
        if (row.ban_change or 0) != self._environment.refused_networks.last_change:
            await refresh_refused_networks_from_database(self._environment)
