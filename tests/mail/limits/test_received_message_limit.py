"""The hourly limit of received messages when many messages arrive at once."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col

from mail.smtp import lmtp
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.spam.quarantine import QuarantineItem
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.quota_accounts import load_limit_events, set_user_limits
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp
from tests.support.operations.quarantine_operations import SPAM_HEADERS, set_options

pytestmark = pytest.mark.usefixtures("verify_consistency")

LIMIT = 10
SESSIONS = 14
ACCEPTED, REFUSED = "250 2.0.0", "450 4.2.1"


async def deliver_at_once(
    ada: GraphQLClient, port: int, count: int, **headers: str
) -> Counter[str]:
    """Send messages in parallel sessions. All pass RCPT before the first one sends its message."""
    sessions = [await connect_lmtp(port) for _ in range(count)]
    for session in sessions:
        await session.start_data(ada.address)

    async def finish(session: SmtpTestClient, raw: bytes) -> str:
        session.send_bytes(raw + b"\r\n.\r\n")
        return (await session.read_reply())[:9]

    raws = [raw_message(f"Number {n}", body=f"{n}", **headers) for n in range(count)]
    replies = await asyncio.gather(*map(finish, sessions, raws))
    for session in sessions:
        await session.close()
    return Counter(replies)


async def count_rows(environment: Environment, table: Any) -> int:
    (row,) = await environment.database.read(
        select(func.count().label("number")).select_from(table)
    )
    return int(row.number)


@pytest.mark.parametrize("quarantined", [False, True])
async def test_simultaneous_deliveries_stop_at_the_account_limit(
    ada: GraphQLClient, clock: ManualClock, tmp_path: Path, quarantined: bool
) -> None:
    environment = ada.environment
    if quarantined:
        set_options(environment, spam_quarantine_score=75)
    await set_user_limits(ada, received_per_hour=LIMIT)
    listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    headers = SPAM_HEADERS if quarantined else {}
    table = QuarantineItem.__table__ if quarantined else Message.__table__  # type: ignore[attr-defined]
    replies = await deliver_at_once(ada, listener.port, SESSIONS, **headers)
    assert replies == {ACCEPTED: LIMIT, REFUSED: SESSIONS - LIMIT}
    assert await count_rows(environment, table) == LIMIT
    (user,) = await environment.database.read(
        select(col(User.received)).where(col(User.id) == ada.user.id)
    )
    assert user.received == LIMIT  # a refused message is not counted
    at_limit = ("RECEIVED", "FULL", LIMIT, LIMIT)
    assert sorted(await load_limit_events(ada)) == [(*at_limit, False), (*at_limit, True)]
    clock.tick(hours=1)
    assert await deliver_at_once(ada, listener.port, 1, **headers) == {ACCEPTED: 1}
    await listener.close(1)


async def test_simultaneous_deliveries_stop_at_the_platform_limit(
    ada: GraphQLClient, tmp_path: Path
) -> None:
    set_options(ada.environment, limits_received_per_hour=2)
    listener = await lmtp.start_lmtp_listener(
        ada.environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    assert await deliver_at_once(ada, listener.port, 5) == {ACCEPTED: 2, REFUSED: 3}
    await set_user_limits(ada, received_per_hour=0)  # unlimited
    assert await deliver_at_once(ada, listener.port, 5) == {ACCEPTED: 5}
    await listener.close(1)
