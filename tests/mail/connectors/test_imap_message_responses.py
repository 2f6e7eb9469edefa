"""Valid and invalid responses of remote IMAP servers about mailboxes and messages."""

from datetime import datetime
from functools import partial

import pytest

from mail.connectors.imap_client import MAX_MAILBOXES
from mail.connectors.remote_server import (
    ConnectorStage,
    ListedMailbox,
    RemoteMessage,
)
from mail.connectors.session_thread import ThreadedSession
from tests.support.case_loop import each_case
from tests.support.mail_servers.imap_and_pop3_servers import (
    HANGS_UP,
    INBOX,
    MAX_MESSAGE_SIZE,
    MESSAGE,
    SHORT_SILENCE_TIMEOUT,
    FakeImapServer,
    FakeRemoteMessage,
    RemoteFault,
    catch_remote_failure,
    fetch_inbox_messages,
    make_remote_message,
    make_three_message_server,
    open_inbox,
    open_signed_in_session,
)


async def list_mailboxes_of(*list_lines: bytes) -> list[ListedMailbox]:
    async with open_signed_in_session(
        make_three_message_server(list_lines=list(list_lines))
    ) as session:
        return await session.run_in_thread(session.remote.list_mailboxes)


async def test_mailbox_name_is_decoded_and_sent_back() -> None:
    cases: list[tuple[bytes, bytes, list[str]]] = [
        (b'() "/" INBOX', b"INBOX", ["INBOX"]),
        (b'() "/" a/b', b"a/b", ["a", "b"]),
        (b'() "." "a.b/c"', b"a.b/c", ["a", "b/c"]),
        (b'() NIL "a/b"', b"a/b", ["a/b"]),
        (b'() "" a', b"a", ["a"]),
        (b'() "/" Entw&APw-rfe', b"Entw&APw-rfe", ["Entwürfe"]),
        (b'() "/" &U,BTFw-', b"&U,BTFw-", ["台北"]),
        (b'() "/" "A&-B"', b"A&-B", ["A&B"]),
        (b'() "/" a&AC8-b/c', b"a&AC8-b/c", ["a/b", "c"]),
        (b'() "/" "Bed & Breakfast"', b"Bed & Breakfast", ["Bed & Breakfast"]),
        (b'() "/" Tom&Jerry', b"Tom&Jerry", ["Tom&Jerry"]),
        (b'() "/" Tom&Jerry-', b"Tom&Jerry-", ["Tom&Jerry-"]),
        (b'() "/" "&2D0-"', b"&2D0-", ["&2D0-"]),
        ('() "/" "Entwürfe"'.encode(), "Entwürfe".encode(), ["Entwürfe"]),
        ('() "/" "Entwürfe"'.encode("latin-1"), "Entwürfe".encode("latin-1"), ["Entwürfe"]),
        (b'() "/" "a \\"b\\" \\\\ c"', b'a "b" \\ c', ['a "b" \\ c']),
        (b'() "\\\\" "a\\\\b"', b"a\\b", ["a", "b"]),
        (b'() "/" {5}\r\na\r\nbc', b"a\r\nbc", ["a\r\nbc"]),
        (b'() "/" NIL', b"NIL", ["NIL"]),
        (b'() "/" "NIL"', b"NIL", ["NIL"]),
        (b'() "/" 2024', b"2024", ["2024"]),
        (b'() "/" 0', b"0", ["0"]),
        (b'() "/" "007"', b"007", ["007"]),
        (b'() "/" "//a//"', b"//a//", ["a"]),
        (b'() "/" "[Gmail]/All (x)"', b"[Gmail]/All (x)", ["[Gmail]", "All (x)"]),
    ]
    for case in each_case(cases):
        with case as (line, raw, levels):
            remote = make_three_message_server(list_lines=[line])
            async with open_signed_in_session(remote) as session:
                (mailbox,) = await session.run_in_thread(session.remote.list_mailboxes)
                assert (mailbox.raw_name, mailbox.levels) == (raw, levels)
                assert await session.run_in_thread(session.remote.list_subscribed) == {raw}
                open_mailbox = partial(session.remote.open_mailbox, mailbox, writable=False)
                await session.run_in_thread(open_mailbox)
            (command,) = [
                line.partition(b" ")[2] for line in remote.received_lines if b"EXAMINE" in line
            ]
            escaped = raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
            literal = b"EXAMINE {%d}\r\n%s\r\n" % (len(raw), raw)
            is_quotable = raw.isascii() and b"\r" not in raw
            assert command == (b'EXAMINE "%s"\r\n' % escaped if is_quotable else literal)


async def test_unselectable_and_repeated_mailboxes_are_skipped() -> None:
    mailboxes = await list_mailboxes_of(
        b'(\\HasNoChildren \\sent) "/" Gesendet',
        b'(\\Noselect) "/" "[Gmail]"',
        b'(\\NonExistent) "/" gone',
        b'() "/" twice',
        b'() "/" "twice"',
        b'() "/" ""',
    )
    assert [(mailbox.raw_name, mailbox.special_use) for mailbox in mailboxes] == [
        (b"Gesendet", "\\sent"),
        (b"twice", None),
    ]


async def test_invalid_list_response_fails() -> None:
    cases: list[bytes] = [b"", b"a b", b'() "/"', b'(\\x "/" a', b'() "/" a b', b"1 2 3"]
    for case in each_case(cases):
        with case as line:
            problem = await catch_remote_failure(make_three_message_server(list_lines=[line]))
            assert problem.stage is ConnectorStage.LIST


async def test_five_thousand_mailboxes_are_listed() -> None:
    mailboxes = await list_mailboxes_of(*(b'() "/" "Folder %d"' % number for number in range(5000)))
    assert len({mailbox.raw_name for mailbox in mailboxes}) == 5000


async def test_too_many_mailboxes_fail() -> None:
    lines = [b'() "/" "Folder %d"' % number for number in range(MAX_MAILBOXES + 1)]
    problem = await catch_remote_failure(make_three_message_server(list_lines=lines))
    assert (problem.stage, problem.message) == (
        ConnectorStage.LIST,
        f"The account has more than {MAX_MAILBOXES} mailboxes.",
    )


async def test_open_mailbox_returns_uidvalidity_and_modseq() -> None:
    cases: list[tuple[bytes, int, int]] = [
        (b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n", 7, 0),
        (
            b"* 3 EXISTS\r\n* OK [UIDVALIDITY 4294967295]\r\n* OK [HIGHESTMODSEQ x]\r\n",
            4294967295,
            0,
        ),
        (
            b"* 3 EXISTS\r\n* OK [UIDVALIDITY 9]\r\n* OK [HIGHESTMODSEQ 9223372036854775808]\r\n",
            9,
            0,
        ),
        (
            b"* 3 EXISTS\r\n* OK [UIDVALIDITY 9]\r\n* OK [NOMODSEQ] no\r\n* VANISHED (EARLIER) 1\r\n",  # noqa: E501
            9,
            0,
        ),
    ]
    for case in each_case(cases):
        with case as (response, validity, modseq):
            async with open_signed_in_session(
                make_three_message_server(faults={"EXAMINE": response + b"<tag> OK\r\n"})
            ) as session:
                result = await session.run_in_thread(
                    lambda: session.remote.open_mailbox(INBOX, writable=False)
                )
                assert result == (validity, modseq, 3)


async def test_missing_or_invalid_uidvalidity_fails() -> None:
    validities = (
        b"", b"[UIDVALIDITY 0]", b"[UIDVALIDITY abc]", b"[UIDVALIDITY -7]",
        b"[UIDVALIDITY 4294967296]", b"[UIDVALIDITY " + b"9" * 5000 + b"]", b"[UIDVALIDITY]",
    )  # fmt: skip
    for case in each_case(validities):
        with case as validity:
            response = b"* 3 EXISTS\r\n* OK " + validity + b" ok\r\n<tag> OK\r\n"
            problem = await catch_remote_failure(
                make_three_message_server(faults={"SELECT": response})
            )
            assert (problem.stage, problem.message) == (
                ConnectorStage.FETCH,
                "The server sent no UIDVALIDITY.",
            )


async def test_new_uidvalidity_is_returned_when_opened_again() -> None:
    remote = make_three_message_server()
    async with open_signed_in_session(remote) as session:
        assert (
            await session.run_in_thread(lambda: session.remote.open_mailbox(INBOX, writable=False))
        ).uid_validity == 7
        remote.uid_validity = 8
        assert (
            await session.run_in_thread(lambda: session.remote.open_mailbox(INBOX, writable=False))
        ).uid_validity == 8


async def test_new_uidvalidity_of_open_mailbox_fails() -> None:
    response = b"* OK [UIDVALIDITY 8] surprise\r\n<usual>"
    problem = await catch_remote_failure(make_three_message_server(faults={"UID FETCH": response}))
    assert (problem.stage, "UIDVALIDITY of the mailbox changed" in problem.message) == (
        ConnectorStage.FETCH,
        True,
    )


async def test_read_only_mailbox_fails() -> None:
    response = b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n<tag> OK [READ-ONLY] hands off\r\n"
    problem = await catch_remote_failure(make_three_message_server(faults={"SELECT": response}))
    assert (problem.stage, "The mailbox is read-only" in problem.message) == (
        ConnectorStage.FETCH,
        True,
    )


async def test_search_response_returns_sorted_uids() -> None:
    cases: list[tuple[bytes, list[str]]] = [
        (b"* SEARCH 8 3 5 3 8\r\n", ["3", "5", "8"]),
        (b"* SEARCH 0 3\r\n", ["3"]),
        (b"* SEARCH 3\r\n* SEARCH 5\r\n", ["3", "5"]),
        (b"* SEARCH 3 5 (MODSEQ 917162500)\r\n", ["3", "5"]),
        (b"* 3 EXPUNGE\r\n* VANISHED 5\r\n* VANISHED (EARLIER) 1:3\r\n* SEARCH 3\r\n", ["3"]),
        (b"* 1 EXPUNGE\r\n* SEARCH\r\n", []),
        (b"* SEARCH 4294967295 4294967296\r\n", ["4294967295"]),
    ]
    for case in each_case(cases):
        with case as (response, message_ids):
            async with open_signed_in_session(
                make_three_message_server(faults={"UID SEARCH": response + b"<tag> OK\r\n"})
            ) as session:
                assert (
                    await session.run_in_thread((await open_inbox(session)).list_message_ids)
                    == message_ids
                )


async def test_invalid_search_response_fails() -> None:
    cases: list[bytes] = [
        b"",
        b"* SEARCH\r\n",
        b"* SEARCH 1 x\r\n",
        b"* SEARCH -1\r\n",
        b"* SEARCH {3}\r\n1 2\r\n",
    ]
    for case in each_case(cases):
        with case as response:

            async def list_ids(session: ThreadedSession) -> None:
                await session.run_in_thread((await open_inbox(session)).list_message_ids)

            problem = await catch_remote_failure(
                make_three_message_server(faults={"UID SEARCH": response + b"<tag> OK\r\n"}),
                list_ids,
            )
            assert problem.stage is ConnectorStage.FETCH


async def test_search_returns_three_hundred_thousand_uids() -> None:
    search_response = (
        b"* SEARCH" + b"".join(b" %d" % uid for uid in range(1, 300_001)) + b"\r\n<tag> OK\r\n"
    )
    async with open_signed_in_session(
        make_three_message_server(faults={"UID SEARCH": search_response})
    ) as session:
        assert (
            len(await session.run_in_thread((await open_inbox(session)).list_message_ids))
            == 300_000
        )


async def test_fetch_response_returns_flags_size_and_date() -> None:
    cases: list[tuple[bytes, set[str], int, datetime | None]] = [
        (b"UID 3 FLAGS (\\SEEN \\recent) RFC822.SIZE 5", {"\\Seen", "\\Recent"}, 5, None),
        (b'UID 3 FLAGS (a\xffb "q r" {3}\r\na b $ok NIL (x)) RFC822.SIZE 5', {"$ok"}, 5, None),
        (b"UID 3 FLAGS (a\x01b [x] 5 \\*) RFC822.SIZE 5", {"a", "b", "[x]", "5"}, 5, None),
        (b"UID 3 FLAGS NIL RFC822.SIZE NIL", set(), 0, None),
        (b"UID 3 FLAGS x RFC822.SIZE -5", set(), 0, None),
        (b'UID 3 RFC822.SIZE 5 INTERNALDATE "yesterday"', set(), 5, None),
        (b'UID 3 RFC822.SIZE 5 INTERNALDATE ""', set(), 5, None),
        (b"UID 3 RFC822.SIZE 5 INTERNALDATE 5", set(), 5, None),
        (b"UID 3 RFC822.SIZE 5 INTERNALDATE NIL", set(), 5, None),
        (b'UID 3 RFC822.SIZE 5 INTERNALDATE "99-Jan-2026 00:00:00 +0000"', set(), 5, None),
        (b'UID 3 RFC822.SIZE 5 INTERNALDATE "01-Jan-0001 00:00:00 +9959"', set(), 5, None),
        (b'UID 3 RFC822.SIZE 5 INTERNALDATE "01-Jan-2026 00:00:00"', set(), 5, None),
        (b"uid 3 flags (\\Seen) rfc822.size 5", {"\\Seen"}, 5, None),
    ]  # fmt: skip
    for case in each_case(cases):
        with case as (fetch_items, flags, size, received_at):
            response = b"* 1 FETCH (" + fetch_items + b")\r\n<tag> OK\r\n"
            async with open_signed_in_session(
                make_three_message_server(faults={"UID FETCH": response})
            ) as session:
                (message,) = await session.run_in_thread(
                    (await open_inbox(session)).fetch_metadata, ["3"]
                )
                assert message == RemoteMessage("3", size, frozenset(flags), received_at)


async def test_unsolicited_responses_are_ignored() -> None:
    response = (
        b"* 3 FETCH (FLAGS (\\Deleted))\r\n* 9 FETCH (UID 99 FLAGS (x))\r\n* 2 EXPUNGE\r\n"
        b"* VANISHED 1:2\r\n* 17 EXISTS\r\n* OK [ALERT] hear me\r\n<usual>"
        b"* 3 FETCH (FLAGS (\\Flagged))\r\n"
    )
    remote = make_three_message_server()
    async with open_signed_in_session(remote) as session:
        mailbox = await open_inbox(session)
        remote.faults["UID FETCH"] = response.replace(b"<usual>", b"") + (
            b"* 1 FETCH (UID 3 FLAGS (\\Seen))\r\n* 1 FETCH (UID 3 RFC822.SIZE 4)\r\n"
            b"* 4 FETCH (FLAGS ())\r\n<tag> OK\r\n"
        )
        expected = RemoteMessage("3", 4, frozenset({"\\Seen"}), None)
        assert await session.run_in_thread(mailbox.fetch_metadata, ["3", "5"]) == [expected]
        assert await session.run_in_thread(mailbox.fetch_flags, ["3", "5"]) == {
            "3": frozenset({"\\Seen"})
        }
        remote.faults["UID FETCH"] = response
        assert set(await fetch_inbox_messages(session, 3, 5, 8)) == {"3", "5", "8"}


async def test_any_message_bytes_are_fetched() -> None:
    messages = (
        b"", b"\0\0\0", b"no mail", b"x" * 90_000, b"\r\n" * 1000, b")\r\n* BYE\r\n",
        b"{10}\r\n", bytes(range(256)),
    )  # fmt: skip
    for case in each_case(messages):
        with case as raw:
            async with open_signed_in_session(
                FakeImapServer({3: FakeRemoteMessage(raw), 5: FakeRemoteMessage()})
            ) as session:
                assert await fetch_inbox_messages(session, 3, 5) == {"3": raw, "5": MESSAGE}


async def test_response_without_body_is_skipped() -> None:
    cases: list[bytes] = [
        b"BODY[] NIL",
        b"BODY[] 5",
        b"BODY[] ()",
        b"FLAGS ()",
        b"BODY[HEADER] {2}\r\nab",
    ]
    for case in each_case(cases):
        with case as fetch_items:
            response = (
                b"* 1 FETCH (UID 3 "
                + fetch_items
                + b")\r\n* 2 FETCH (UID 5 BODY[] {1}\r\na)\r\n<tag> OK\r\n"
            )
            async with open_signed_in_session(
                make_three_message_server(faults={"UID FETCH": response})
            ) as session:
                assert await fetch_inbox_messages(session, 3, 5) == {"5": b"a"}


async def test_repeated_and_unrequested_messages_are_ignored() -> None:
    response = b"".join(
        b"* %d FETCH (UID %d BODY[] {1}\r\n%c)\r\n" % (number, uid, character)
        for number, (uid, character) in enumerate(
            [(5, b"a"), (3, b"b"), (5, b"c"), (9, b"d"), (0, b"e")]
        )
    )
    async with open_signed_in_session(
        make_three_message_server(faults={"UID FETCH": response + b"<tag> OK\r\n"})
    ) as session:
        assert await fetch_inbox_messages(session, 3, 5) == {"5": b"a", "3": b"b"}


@pytest.mark.parametrize("size", [b"1", b"99999"])
async def test_wrong_size_does_not_change_the_message(size: bytes) -> None:
    raw = b"x" * 50_000
    async with open_signed_in_session(
        FakeImapServer({uid: FakeRemoteMessage(raw, size=size) for uid in range(1, 9)})
    ) as session:
        mailbox = await open_inbox(session)
        metadata = await session.run_in_thread(
            mailbox.fetch_metadata, [str(uid) for uid in range(1, 9)]
        )
        assert {message.size for message in metadata} == {int(size)}
        assert await fetch_inbox_messages(session, *range(1, 9)) == {
            str(uid): raw for uid in range(1, 9)
        }


async def test_too_large_message_is_skipped() -> None:
    remote = FakeImapServer(
        {
            3: FakeRemoteMessage(b"x" * (MAX_MESSAGE_SIZE + 1)),
            5: FakeRemoteMessage(b"x" * MAX_MESSAGE_SIZE),
        }
    )
    async with open_signed_in_session(remote) as session:
        assert await fetch_inbox_messages(session, 3, 5) == {"5": b"x" * MAX_MESSAGE_SIZE}


async def test_impossible_literal_size_fails() -> None:
    cases: list[int] = [2 * MAX_MESSAGE_SIZE + 1, 1 << 32, 10**30]
    for case in each_case(cases):
        with case as size:
            fault = RemoteFault(b"* 1 FETCH (UID 3 BODY[] {%d}\r\nFrom:" % size)
            problem = await catch_remote_failure(
                make_three_message_server(faults={"UID FETCH": fault}),
                lambda session: fetch_inbox_messages(session, 3),
            )
            assert (problem.stage, f"{size} bytes" in problem.message) == (
                ConnectorStage.FETCH,
                True,
            )


async def test_wrong_literal_size_fails() -> None:
    cases: list[bytes] = [b"{100}", b"{5}", b"{0}", b"{-1}", b"{x}", b"{}"]
    for case in each_case(cases):
        with case as literal:
            fault = RemoteFault(
                b"* 1 FETCH (UID 3 BODY[] " + literal + b"\r\n" + MESSAGE + b")\r\n<tag> OK\r\n"
            )
            remote = make_three_message_server(faults={"UID FETCH": fault})
            problem = await catch_remote_failure(
                remote,
                lambda session: fetch_inbox_messages(session, 3),
                timeout=SHORT_SILENCE_TIMEOUT,
            )
            assert problem.stage is ConnectorStage.FETCH


async def test_messages_before_a_disconnect_are_returned() -> None:
    fault = RemoteFault(
        b"* 1 FETCH (UID 3 BODY[] {1}\r\na)\r\n* 2 FETCH (UID 5 BODY[] {9}\r\nab", HANGS_UP
    )
    fetched: list[tuple[str, bytes]] = []

    async def fetch(session: ThreadedSession) -> None:
        await open_inbox(session)
        async for batch in session.stream_messages(
            [make_remote_message(3), make_remote_message(5)]
        ):
            fetched.extend((message.message_id, raw) for message, raw in batch)

    problem = await catch_remote_failure(
        make_three_message_server(faults={"UID FETCH": fault}), fetch
    )
    assert problem.message == "The server closed the connection."
    assert fetched == [("3", b"a")]


async def test_unreadable_message_does_not_prevent_other_fetches() -> None:
    remote = make_three_message_server()

    def fetch(rest: bytes, words: list[bytes]) -> bytes:
        if words[2] in (b"3", b"8"):
            return FakeImapServer.do_uid_fetch(remote, rest, words)
        return b"<tag> NO it is broken\r\n"

    remote.do_uid_fetch = fetch  # type: ignore[method-assign]
    async with open_signed_in_session(remote) as session:
        assert set(await fetch_inbox_messages(session, 3, 5, 8)) == {"3", "8"}


async def test_server_that_refuses_all_messages_fails() -> None:
    remote = FakeImapServer({uid: FakeRemoteMessage() for uid in range(1, 50)})
    remote.faults["UID FETCH"] = b"<tag> NO I am tired\r\n"
    problem = await catch_remote_failure(
        remote, lambda session: fetch_inbox_messages(session, *range(1, 50))
    )
    assert (problem.stage, "The server sent none of the requested messages" in problem.message) == (
        ConnectorStage.FETCH,
        True,
    )
    assert sum(b"UID FETCH" in line for line in remote.received_lines) < 20


async def test_uidplus_deletes_only_requested_messages() -> None:
    remote = make_three_message_server()
    remote.messages[8].flags = b"\\Deleted"
    async with open_signed_in_session(remote) as session:
        mailbox = await open_inbox(session, writable=True)
        await session.run_in_thread(mailbox.delete_messages, ["3", "5"])
    assert set(remote.messages) == {8}
    assert not any(line.endswith(b" EXPUNGE\r\n") for line in remote.received_lines)


@pytest.mark.parametrize(("foreign_flags", "remaining"), [(b"", {8}), (b"\\Deleted", {3, 5, 8})])
async def test_without_uidplus_nothing_is_deleted_if_other_messages_are_flagged(
    foreign_flags: bytes, remaining: set[int]
) -> None:
    remote = make_three_message_server(capabilities=b"IMAP4rev1")
    remote.messages[8].flags = foreign_flags
    async with open_signed_in_session(remote) as session:
        mailbox = await open_inbox(session, writable=True)
        await session.run_in_thread(mailbox.delete_messages, ["3", "5"])
    assert set(remote.messages) == remaining
    assert b"\\Deleted" in remote.messages.get(3, FakeRemoteMessage(flags=b"\\Deleted")).flags


async def test_without_uidplus_nothing_is_deleted_if_none_is_flagged() -> None:
    remote = make_three_message_server(
        capabilities=b"IMAP4rev1", faults={"UID SEARCH": b"* SEARCH\r\n<tag> OK\r\n"}
    )
    async with open_signed_in_session(remote) as session:
        mailbox = await open_inbox(session, writable=True)
        await session.run_in_thread(mailbox.delete_messages, ["3"])
    assert set(remote.messages) == {3, 5, 8}
