"""What hostile IMAP and POP3 servers can cost: memory, time and rows."""

import tracemalloc

import pytest

from mail.connectors import imap_client
from mail.connectors.pop3_client import INBOX
from tests.support.case_loop import each_case
from tests.support.growth import GROWTH, MAX_RATIO, cpu_seconds
from tests.support.mail_servers.imap_and_pop3_servers import (
    FakePop3Server,
    catch_remote_failure,
    make_three_message_server,
    open_inbox,
    open_signed_in_session,
)


async def test_other_items_of_messages_are_not_kept_in_memory() -> None:
    extra_items = b" ".join(b"X%d 1" % number for number in range(20_000))
    peaks = []
    for uids in (range(1, 2), range(1, 11)):
        lines = b"".join(
            b"* %d FETCH (UID %d FLAGS () %s)\r\n" % (uid, uid, extra_items) for uid in uids
        )
        remote = make_three_message_server(faults={"UID FETCH": lines + b"<tag> OK done\r\n"})
        async with open_signed_in_session(remote) as session:
            mailbox = await open_inbox(session)
            tracemalloc.start()
            try:
                flags = await session.run_in_thread(mailbox.fetch_flags, list(map(str, uids)))
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        assert flags == {str(uid): frozenset() for uid in uids}
    assert peaks[1] < 4 * peaks[0]


async def test_metadata_that_is_much_larger_than_usual_fails() -> None:
    name = b"x" * 500_000
    cases: list[tuple[str, bytes]] = [
        ("LIST", b"".join(b'* LIST () "/" %d%s\r\n' % (n, name) for n in range(30))),
        ("LSUB", b"".join(b'* LSUB () "/" %d%s\r\n' % (n, name) for n in range(30))),
        ("UID FETCH", b"".join(
            b"* 1 FETCH (UID %d FLAGS (%s))\r\n" % (n, name) for n in range(1, 31)
        )),
    ]  # fmt: skip
    for case in each_case(cases):
        with case as (command, lines):
            remote = make_three_message_server(faults={command: lines + b"<usual>"})
            problem = await catch_remote_failure(remote)
            assert problem.message == "The server sent more data than requested."


async def test_uids_are_limited_with_any_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_client, "MAX_MESSAGES", 5)
    cases: list[bytes] = [b" ", b"\t", b"  "]
    for case in each_case(cases):
        with case as separator:
            numbers = separator.join(b"%d" % uid for uid in range(1, 7))
            remote = make_three_message_server(
                faults={"UID SEARCH": b"* SEARCH " + numbers + b"\r\n<tag> OK done\r\n"}
            )
            problem = await catch_remote_failure(remote)
            assert problem.message == imap_client.TOO_MANY


async def test_mailboxes_with_names_that_cannot_be_stored_are_omitted() -> None:
    names = [b"a", b'"nul\0"', b"x" * 1001, b"y" * 1000, b"&AAA-", b"&AOk-"]
    remote = make_three_message_server(list_lines=[b'() "/" ' + name for name in names])
    async with open_signed_in_session(remote) as session:
        mailboxes = await session.run_in_thread(session.remote.list_mailboxes)
    assert [mailbox.levels for mailbox in mailboxes] == [["a"], ["y" * 1000], ["&AAA-"], ["é"]]


async def test_one_uidl_of_all_messages_is_read_in_linear_time() -> None:
    seconds = []
    for message_count in (400, 400 * GROWTH):
        lines = b"".join(b"%d same\r\n" % number for number in range(1, message_count + 1))
        remote = FakePop3Server(faults={"UIDL": b"+OK\r\n" + lines + b".\r\n"})
        async with open_signed_in_session(remote) as session:
            await session.run_in_thread(lambda: session.remote.open_mailbox(INBOX, writable=True))
            list_ids = session.remote.list_message_ids
            assert len(set(await session.run_in_thread(list_ids))) == message_count
            seconds.append(await session.run_in_thread(cpu_seconds, list_ids))
    assert seconds[1] < MAX_RATIO * seconds[0]
