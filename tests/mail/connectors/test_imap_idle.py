"""Waiting for changes of a remote mailbox (RFC 2177)."""

import time
from itertools import product

import pytest

from mail.connectors.remote_server import RemoteFailure
from models.connectors import ConnectorSecurity
from tests.support.case_loop import each_case
from tests.support.mail_servers.imap_and_pop3_servers import (
    make_three_message_server,
    open_inbox,
    open_signed_in_session,
)


async def test_idle_returns_whether_the_mailbox_changed() -> None:
    responses = [
        (b"+ idling\r\n* 4 EXISTS\r\n", True),
        (b"* 4 EXISTS\r\n+ idling\r\n", True),
        (b"+ idling\r\n* 2 EXPUNGE\r\n", True),
        (b"+ idling\r\n* VANISHED 5\r\n", True),
        (b"+ idling\r\n* OK still here\r\n", False),
        (b"+ idling\r\n* 4 RECENT\r\n", False),
        (b"+ idling\r\n* 4 EXI", False),
        (b"+ idling\r\n", False),
    ]
    for case in each_case(product(responses, (ConnectorSecurity.NONE, ConnectorSecurity.TLS))):
        with case as ((response, is_change), security):
            rest = b"STS\r\n" if response.endswith(b"EXI") else b""
            remote = make_three_message_server(
                faults={"IDLE": response, "DONE": rest + b"<tag> OK idled\r\n"}
            )
            async with open_signed_in_session(remote, security=security) as session:
                mailbox = await open_inbox(session)
                has_changed = await session.run_in_thread(mailbox.wait_for_changes, 0.2)
                assert has_changed is (is_change or bool(rest))
                assert await session.run_in_thread(mailbox.list_message_ids) == ["3", "5", "8"]


async def test_idle_lasts_longer_than_the_read_timeout() -> None:
    async with open_signed_in_session(make_three_message_server(), timeout=1) as session:
        began = time.monotonic()
        assert not await session.run_in_thread((await open_inbox(session)).wait_for_changes, 1.6)
        assert time.monotonic() - began > 1.5


async def test_idle_without_capability_fails() -> None:
    async with open_signed_in_session(
        make_three_message_server(capabilities=b"IMAP4rev1")
    ) as session:
        with pytest.raises(RemoteFailure, match="The server does not support IDLE"):
            await session.run_in_thread((await open_inbox(session)).wait_for_changes, 1)
