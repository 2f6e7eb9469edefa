"""The credential cache: an entry lives for a minute, and is not used after a missed change."""

import asyncio
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from models.auth.credentials import AccessToken
from models.errors import Unauthenticated
from models.events.bus.local_bus import LocalBus
from models.events.incarnation import ROW_ID, StoreIncarnation
from models.events.wakeups import BusWakeups, Wakeups
from models.store.columns import core_table
from models.store.database import Database
from models.users.tables import User
from resolvers.auth import (
    access_tokens,
    authentication,
    credential_cache,
    credential_status,
)
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.auth.credential_cache import cache_of_database
from resolvers.context import Context
from tests.support.accounts.credential_check_process import OtherProcess, commit_statement, is_ada
from tests.support.accounts.sign_in_environment import SignInEnvironment
from tests.support.stores.recorded_statements import record_sql
from tests.support.time_limits import HANG_SECONDS

SECOND = 1.0


async def test_credential_is_looked_up_once_a_minute(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    _, key = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("k")
    )
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    other_process.pop_lookup_count()
    for _ in range(12):  # 55 s
        for secret in (token, key):
            assert (await other_process.authenticate(secret)).user_id == sign_in_environment.users[
                "ada"
            ]
        sign_in_environment.clock.tick(seconds=5)
    assert other_process.pop_lookup_count() == 2
    for secret in (token, key):
        await other_process.authenticate(secret)
    assert other_process.pop_lookup_count() == 2


async def test_concurrent_requests_share_one_lookup(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    other_process.pop_lookup_count()
    viewers = await asyncio.gather(*(other_process.authenticate(token) for _ in range(20)))
    assert {viewer.user_id for viewer in viewers} == {sign_in_environment.users["ada"]}
    assert other_process.pop_lookup_count() == 1
    sign_in_environment.clock.tick(seconds=2)
    await asyncio.gather(*(other_process.authenticate(token) for _ in range(20)))
    assert len(other_process.statements) == 1  # one statement reads the changes for all requests


@pytest.mark.parametrize("bus", ["none", "up", "silent"])
async def test_revoked_token_is_refused_within_a_second_in_any_bus_state(
    sign_in_environment: SignInEnvironment, tmp_path: Path, bus: str
) -> None:
    """Uses real clocks. The bus of the first process works; the other process may miss it."""
    now = partial(datetime.now, UTC)
    revoking_environment = replace(
        sign_in_environment.environment, now=now, wakeups=BusWakeups(LocalBus(tmp_path / "bells"))
    )
    database = Database(sign_in_environment.environment.database.url)
    bus_wakeups = Wakeups() if bus == "none" else BusWakeups(LocalBus(tmp_path / "bells"))
    checking_environment = replace(revoking_environment, database=database, wakeups=bus_wakeups)
    credential_cache.follow_drops_of_other_processes(checking_environment)
    joined = asyncio.Event()
    receive_task = (
        asyncio.create_task(bus_wakeups.receive_forever(joined.set)) if bus == "up" else None
    )
    if receive_task:
        await joined.wait()
    checking_process = OtherProcess(
        SignInEnvironment(checking_environment, sign_in_environment.clock),
        record_sql(database, with_background=True),
    )
    revoking_process = SignInEnvironment(
        revoking_environment,
        sign_in_environment.clock,
        sign_in_environment.domain_id,
        sign_in_environment.users,
    )
    token = await revoking_process.create_token("ada")
    ctx = Context(revoking_environment, await revoking_process.authenticate(token))
    ends_at = time.monotonic() + 2.5
    while time.monotonic() < ends_at:
        await checking_process.authenticate(token)
        await asyncio.sleep(0.05)
    assert checking_process.pop_lookup_count() <= 2  # the token was cached for longer than a second
    assert await access_tokens.revoke_own_access_tokens_and_count(ctx) == 1
    revoked_at, last_accepted_at = time.monotonic(), 0.0
    while time.monotonic() < revoked_at + 30:
        checked_at = time.monotonic()
        if await checking_process.sign_in_environment.is_refused(token):
            break
        last_accepted_at = checked_at
        await asyncio.sleep(0.02)
    assert last_accepted_at - revoked_at <= 3  # 1 s, on a busy machine; without the check it is 5 s
    if receive_task:
        receive_task.cancel()
        await asyncio.wait([receive_task])
    for environment in (revoking_environment, checking_environment):
        await authentication.wait_for_background_tasks(environment)
        await environment.wakeups.close()
    await database.close()


async def test_clock_set_back_during_read_of_changes_causes_no_loop(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other_process.authenticate(token)
    environment = other_process.sign_in_environment.environment
    sign_in_environment.clock.tick(seconds=2)
    arrived_at = sign_in_environment.clock()
    sign_in_environment.clock.tick(hours=-1)
    async with asyncio.timeout(HANG_SECONDS):
        assert await credential_cache.reread_changes_unless_read_recently(
            environment, cache_of_database(environment.database), arrived_at
        )


async def test_change_during_a_lookup_is_not_missed(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    """The change is committed and read after the lookup has read the old row."""
    token = await sign_in_environment.create_token("ada")
    environment = other_process.sign_in_environment.environment
    digest = credential_status.secret_digest(token)

    async def load_token() -> Any:
        token_row = await credential_status.load_token_if_valid(environment, digest=digest)
        await sign_in_environment.change_user("ada", active=False)
        cache = cache_of_database(environment.database)
        cache.changes_read_at = None
        await credential_cache.reread_changes_unless_read_recently(
            environment, cache, environment.now()
        )
        return token_row

    assert await credential_cache.join_or_start_read_and_cache(environment, digest, load_token)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(token)


async def test_change_that_is_committed_late_is_not_missed(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    """Other transactions commit in the meantime, and their changes are read."""
    await sign_in_environment.add_user("bob")
    token = await sign_in_environment.create_token("ada")
    second_token = await sign_in_environment.create_token("bob")
    await other_process.authenticate(token)
    async with sign_in_environment.environment.write_session() as session:
        await (await session.connection()).execute(
            update(User).where(is_ada(sign_in_environment)).values(active=False)
        )
        if (
            sign_in_environment.environment.database.dialect == "postgresql"
        ):  # SQLite has one writer
            await sign_in_environment.change_user("bob", suspended=True)
        sign_in_environment.clock.tick(seconds=SECOND)
        assert await other_process.authenticate(token)
        if sign_in_environment.environment.database.dialect == "postgresql":
            with pytest.raises(Unauthenticated):
                await other_process.authenticate(second_token)
    sign_in_environment.clock.tick(seconds=SECOND)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(token)


async def test_cache_is_not_trusted_if_changes_are_unreadable(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other_process.authenticate(token)
    rename = text("ALTER TABLE credential_changes RENAME TO away")
    await commit_statement(sign_in_environment, rename)  # type: ignore[arg-type]
    try:
        await other_process.authenticate(token)
        sign_in_environment.clock.tick(seconds=SECOND)
        with pytest.raises((SQLAlchemyError, sqlite3.OperationalError)):
            await other_process.authenticate(token)
    finally:
        rename_back = text("ALTER TABLE away RENAME TO credential_changes")
        await commit_statement(sign_in_environment, rename_back)  # type: ignore[arg-type]
    await other_process.authenticate(token)


@pytest.mark.parametrize("change", [{"number": 1}, {"beat": 3}])
async def test_restore_of_the_database_clears_the_cache(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess, change: dict[str, int]
) -> None:
    row = {"id": ROW_ID, "store": "s", "number": 0, "base": 0, "beat": 5}
    await commit_statement(sign_in_environment, delete(StoreIncarnation))
    await commit_statement(sign_in_environment, insert(StoreIncarnation).values(**row))
    token = await sign_in_environment.create_token("ada")
    for _ in range(2):
        await other_process.authenticate(token)
        sign_in_environment.clock.tick(seconds=2)
    other_process.pop_lookup_count()
    await commit_statement(sign_in_environment, update(StoreIncarnation).values(**change))
    await other_process.authenticate(token)
    assert other_process.pop_lookup_count() == 1


async def test_clock_change_does_not_extend_cached_credential(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada")
    await other_process.authenticate(token)
    other_process.pop_lookup_count()
    for step in (-3600, 3600):
        sign_in_environment.clock.tick(seconds=step)
        await other_process.authenticate(token)
        assert other_process.pop_lookup_count() == 1
    cache = cache_of_database(other_process.sign_in_environment.environment.database)
    (entry,) = cache.credentials.values()
    # as after a suspend of the machine, which the wall clock does not show
    entry.read_at_boot_ms -= 60_000
    await other_process.authenticate(token)
    assert other_process.pop_lookup_count() == 1


async def test_use_of_cached_token_is_recorded(
    sign_in_environment: SignInEnvironment, other_process: OtherProcess
) -> None:
    token = await sign_in_environment.create_token("ada", ttl=timedelta(minutes=1))
    for _ in range(20):  # 100 s: without a recorded use the token would have expired
        await other_process.authenticate(token)
        await authentication.wait_for_background_tasks(
            other_process.sign_in_environment.environment
        )
        sign_in_environment.clock.tick(seconds=5)
    (row,) = await sign_in_environment.environment.database.read(select(core_table(AccessToken)))
    assert sign_in_environment.clock() - row.last_used_at <= timedelta(seconds=20)
    sign_in_environment.clock.tick(seconds=56)
    with pytest.raises(Unauthenticated):
        await other_process.authenticate(token)
