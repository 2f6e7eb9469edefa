"""Loads of an open transaction share its session, and the end of the transaction waits for them."""

import asyncio

import pytest
from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import SecurityEvent, SecurityEventAction
from models.users.tables import User
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from tests.conftest import GraphQLClient, client_context


async def run_loop_steps(count: int) -> None:
    """Let the other tasks run, this number of times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def load_usernames_and_log(ctx: Context, user_ids: list[int]) -> list[str]:
    """Write an entry about the users, then read their names."""
    async with ctx.separate_or_nested_write_session(*user_ids) as (separate_ctx, session):
        for user_id in user_ids:
            event = NewSecurityEvent(SecurityEventAction.MESSAGES_READ, user_id)
            await security_log.log_event_and_queue_notice(separate_ctx, session, event)
            await run_loop_steps(10)  # other loads run
        return await load_usernames(separate_ctx, user_ids)


async def load_usernames(ctx: Context, user_ids: list[int]) -> list[str]:
    await run_loop_steps(5)
    query = select(col(User.id), col(User.username)).where(col(User.id).in_(user_ids))
    names = {row.id: row.username for row in await ctx.read(query)}
    return [names[user_id] for user_id in user_ids]


async def count_events(ctx: Context) -> int:
    query = select(col(SecurityEvent.id)).where(col(SecurityEvent.action) == "MESSAGES_READ")
    return len(await ctx.read(query))


@pytest.mark.parametrize("step_count", range(6))  # a batch begins after three
@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("has_written", [True, False])
async def test_transaction_ends_after_abandoned_loads(
    ada: GraphQLClient, *, commit: bool, has_written: bool, step_count: int
) -> None:
    ctx = client_context(ada)
    async with ctx.combined_transaction(commit=commit):
        if has_written:
            async with ctx.write_session(ada.user.id):
                pass
        waiting = asyncio.gather(
            ctx.load(load_usernames_and_log, ada.user.id), ctx.load(load_usernames, ada.user.id)
        )
        await run_loop_steps(step_count)
        waiting.cancel()
    assert await count_events(ctx) == commit
    await run_loop_steps(10)  # a load that began after the transaction would write now
    async with ctx.write_session(ada.user.id):  # no lock is left
        pass
    assert await count_events(ctx) == commit


async def test_concurrent_loads_with_writes_share_a_transaction(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    ctx = client_context(ada)
    async with ctx.combined_transaction():
        async with ctx.write_session(ada.user.id):
            pass

        async def load_and_log_for_bob(ctx: Context, user_ids: list[int]) -> list[str]:
            return await load_usernames_and_log(ctx, user_ids)

        names = await asyncio.gather(
            ctx.load(load_usernames_and_log, ada.user.id),
            ctx.load(load_usernames, bob.user.id),
            ctx.load(load_and_log_for_bob, bob.user.id),
        )
    assert list(names) == ["ada", "bob", "bob"]
    assert await count_events(ctx) == 2
