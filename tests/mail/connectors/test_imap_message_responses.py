"""What servers of IMAP elsewhere say of folders and messages, right and wrong."""

import time
from datetime import datetime

import pytest

from mail.connectors.imap_client import MAX_MAILBOXES
from mail.connectors.remote_server import (
    ConnectorStage,
    ListedMailbox,
    RemoteFailure,
    RemoteMessage,
)
from mail.connectors.session_thread import ThreadedSession
from models.connectors import ConnectorSecurity
from tests.support.mail_servers.imap_and_pop3_servers import (
    GONE,
    INBOX,
    LARGEST,
    MESSAGE,
    SHORT,
    Fault,
    ImapRemote,
    Message,
    failure,
    got,
    head,
    opened,
    signed_in,
    three,
)

# ---------------------------------------------------------------- folders


async def folders_of(*lines: bytes) -> list[ListedMailbox]:
    async with signed_in(three(folders=list(lines))) as there:
        return await there.run(there.remote.list_mailboxes)


@pytest.mark.parametrize(
    ("line", "raw", "levels"),
    [
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
        (b'() "/" 2024', b"2024", ["2024"]),
        (b'() "/" "007"', b"007", ["007"]),
        (b'() "/" "//a//"', b"//a//", ["a"]),
        (b'() "/" "[Gmail]/All (x)"', b"[Gmail]/All (x)", ["[Gmail]", "All (x)"]),
    ],
)
async def test_names_of_folders(line: bytes, raw: bytes, levels: list[str]) -> None:
    remote = three(folders=[line])
    async with signed_in(remote) as there:
        (found,) = await there.run(there.remote.list_mailboxes)
        assert (found.raw_name, found.levels) == (raw, levels)
        assert await there.run(there.remote.list_subscribed) == {raw}
        await there.run(lambda: there.remote.open_mailbox(found, writable=False))
    (asked,) = [line.partition(b" ")[2] for line in remote.heard if b"EXAMINE" in line]
    quoted = raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    literal = b"EXAMINE {%d}\r\n%s\r\n" % (len(raw), raw)
    plain = raw.isascii() and b"\r" not in raw
    assert asked == (b'EXAMINE "%s"\r\n' % quoted if plain else literal)


async def test_which_folders_there_are() -> None:
    found = await folders_of(
        b'(\\HasNoChildren \\sent) "/" Gesendet',
        b'(\\Noselect) "/" "[Gmail]"',
        b'(\\NonExistent) "/" gone',
        b'() "/" twice',
        b'() "/" "twice"',
        b'() "/" ""',
    )
    assert [(one.raw_name, one.special_use) for one in found] == [
        (b"Gesendet", "\\sent"),
        (b"twice", None),
    ]


@pytest.mark.parametrize("line", [b"", b"a b", b'() "/"', b'(\\x "/" a', b'() "/" a b', b"1 2 3"])
async def test_a_list_that_is_none(line: bytes) -> None:
    problem = await failure(three(folders=[line]))
    assert problem.stage is ConnectorStage.LIST


async def test_five_thousand_folders() -> None:
    found = await folders_of(*(b'() "/" "Folder %d"' % number for number in range(5000)))
    assert len({one.raw_name for one in found}) == 5000


async def test_more_folders_than_anybody_has() -> None:
    lines = [b'() "/" "Folder %d"' % number for number in range(MAX_MAILBOXES + 1)]
    problem = await failure(three(folders=lines))
    assert (problem.stage, problem.message) == (
        ConnectorStage.LIST,
        f"more than {MAX_MAILBOXES} folders",
    )


@pytest.mark.parametrize(
    ("said", "validity", "modseq"),
    [
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
    ],
)
async def test_a_folder_is_opened(said: bytes, validity: int, modseq: int) -> None:
    async with signed_in(three(faults={"EXAMINE": said + b"<tag> OK\r\n"})) as there:
        found = await there.run(lambda: there.remote.open_mailbox(INBOX, writable=False))
        assert found == (validity, modseq, 3)


@pytest.mark.parametrize(
    "validity",
    [b"", b"[UIDVALIDITY 0]", b"[UIDVALIDITY abc]", b"[UIDVALIDITY -7]",
     b"[UIDVALIDITY 4294967296]", b"[UIDVALIDITY " + b"9" * 5000 + b"]", b"[UIDVALIDITY]"],
)  # fmt: skip
async def test_no_uidvalidity(validity: bytes) -> None:
    said = b"* 3 EXISTS\r\n* OK " + validity + b" ok\r\n<tag> OK\r\n"
    problem = await failure(three(faults={"SELECT": said}))
    assert (problem.stage, problem.message) == (
        ConnectorStage.FETCH,
        "the server names no UIDVALIDITY",
    )


async def test_numbered_anew_in_between() -> None:
    remote = three()
    async with signed_in(remote) as there:
        assert (
            await there.run(lambda: there.remote.open_mailbox(INBOX, writable=False))
        ).uid_validity == 7
        remote.validity = 8
        assert (
            await there.run(lambda: there.remote.open_mailbox(INBOX, writable=False))
        ).uid_validity == 8


async def test_numbered_anew_while_it_is_open() -> None:
    said = b"* OK [UIDVALIDITY 8] surprise\r\n<usual>"
    problem = await failure(three(faults={"UID FETCH": said}))
    assert (problem.stage, "anew" in problem.message) == (ConnectorStage.FETCH, True)


async def test_what_can_only_be_read() -> None:
    said = b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n<tag> OK [READ-ONLY] hands off\r\n"
    problem = await failure(three(faults={"SELECT": said}))
    assert (problem.stage, "only be read" in problem.message) == (ConnectorStage.FETCH, True)


# ---------------------------------------------------------------- numbers of messages


@pytest.mark.parametrize(
    ("said", "marks"),
    [
        (b"* SEARCH 8 3 5 3 8\r\n", ["3", "5", "8"]),
        (b"* SEARCH 0 3\r\n", ["3"]),
        (b"* SEARCH 3\r\n* SEARCH 5\r\n", ["3", "5"]),
        (b"* SEARCH 3 5 (MODSEQ 917162500)\r\n", ["3", "5"]),
        (b"* 3 EXPUNGE\r\n* VANISHED 5\r\n* VANISHED (EARLIER) 1:3\r\n* SEARCH 3\r\n", ["3"]),
        (b"* 1 EXPUNGE\r\n* SEARCH\r\n", []),
        (b"* SEARCH 4294967295 4294967296\r\n", ["4294967295"]),
    ],
)
async def test_numbers(said: bytes, marks: list[str]) -> None:
    async with signed_in(three(faults={"UID SEARCH": said + b"<tag> OK\r\n"})) as there:
        assert await there.run((await opened(there)).list_message_ids) == marks


@pytest.mark.parametrize(
    "said",
    [b"", b"* SEARCH\r\n", b"* SEARCH 1 x\r\n", b"* SEARCH -1\r\n", b"* SEARCH {3}\r\n1 2\r\n"],
)
async def test_numbers_that_are_none(said: bytes) -> None:
    async def marks(there: ThreadedSession) -> None:
        await there.run((await opened(there)).list_message_ids)

    problem = await failure(three(faults={"UID SEARCH": said + b"<tag> OK\r\n"}), marks)
    assert problem.stage is ConnectorStage.FETCH


async def test_as_many_as_large_folders_have() -> None:
    many = b"* SEARCH" + b"".join(b" %d" % uid for uid in range(1, 300_001)) + b"\r\n<tag> OK\r\n"
    async with signed_in(three(faults={"UID SEARCH": many})) as there:
        assert len(await there.run((await opened(there)).list_message_ids)) == 300_000


# ---------------------------------------------------------------- what is told of messages


@pytest.mark.parametrize(
    ("told", "flags", "size", "received_at"),
    [
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
    ],
)  # fmt: skip
async def test_what_is_told(
    told: bytes, flags: set[str], size: int, received_at: datetime | None
) -> None:
    said = b"* 1 FETCH (" + told + b")\r\n<tag> OK\r\n"
    async with signed_in(three(faults={"UID FETCH": said})) as there:
        (one,) = await there.run((await opened(there)).fetch_metadata, ["3"])
        assert one == RemoteMessage("3", size, frozenset(flags), received_at)


async def test_what_comes_unasked_is_of_others() -> None:
    said = (
        b"* 3 FETCH (FLAGS (\\Deleted))\r\n* 9 FETCH (UID 99 FLAGS (x))\r\n* 2 EXPUNGE\r\n"
        b"* VANISHED 1:2\r\n* 17 EXISTS\r\n* OK [ALERT] hear me\r\n<usual>"
        b"* 3 FETCH (FLAGS (\\Flagged))\r\n"
    )
    remote = three()
    async with signed_in(remote) as there:
        found = await opened(there)
        remote.faults["UID FETCH"] = said.replace(b"<usual>", b"") + (
            b"* 1 FETCH (UID 3 FLAGS (\\Seen))\r\n* 1 FETCH (UID 3 RFC822.SIZE 4)\r\n"
            b"* 4 FETCH (FLAGS ())\r\n<tag> OK\r\n"
        )
        expected = RemoteMessage("3", 4, frozenset({"\\Seen"}), None)
        assert await there.run(found.fetch_metadata, ["3", "5"]) == [expected]
        assert await there.run(found.fetch_flags, ["3", "5"]) == {"3": frozenset({"\\Seen"})}
        remote.faults["UID FETCH"] = said
        assert set(await got(there, 3, 5, 8)) == {"3", "5", "8"}


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    "raw",
    [b"", b"\0\0\0", b"no mail", b"x" * 90_000, b"\r\n" * 1000, b")\r\n* BYE\r\n", b"{10}\r\n",
     bytes(range(256))],
)  # fmt: skip
async def test_whatever_a_message_is(raw: bytes) -> None:
    async with signed_in(ImapRemote({3: Message(raw), 5: Message()})) as there:
        assert await got(there, 3, 5) == {"3": raw, "5": MESSAGE}


@pytest.mark.parametrize(
    "told", [b"BODY[] NIL", b"BODY[] 5", b"BODY[] ()", b"FLAGS ()", b"BODY[HEADER] {2}\r\nab"]
)
async def test_what_is_no_message_is_left_out(told: bytes) -> None:
    said = b"* 1 FETCH (UID 3 " + told + b")\r\n* 2 FETCH (UID 5 BODY[] {1}\r\na)\r\n<tag> OK\r\n"
    async with signed_in(three(faults={"UID FETCH": said})) as there:
        assert await got(there, 3, 5) == {"5": b"a"}


async def test_the_same_twice_and_what_nobody_asked_for() -> None:
    said = b"".join(
        b"* %d FETCH (UID %d BODY[] {1}\r\n%c)\r\n" % (number, uid, sign)
        for number, (uid, sign) in enumerate(
            [(5, b"a"), (3, b"b"), (5, b"c"), (9, b"d"), (0, b"e")]
        )
    )
    async with signed_in(three(faults={"UID FETCH": said + b"<tag> OK\r\n"})) as there:
        assert await got(there, 3, 5) == {"5": b"a", "3": b"b"}


@pytest.mark.parametrize("size", [b"1", b"99999"])
async def test_a_size_that_is_a_lie(size: bytes) -> None:
    raw = b"x" * 50_000
    async with signed_in(
        ImapRemote({uid: Message(raw, size=size) for uid in range(1, 9)})
    ) as there:
        found = await opened(there)
        heads = await there.run(found.fetch_metadata, [str(uid) for uid in range(1, 9)])
        assert {one.size for one in heads} == {int(size)}
        assert await got(there, *range(1, 9)) == {str(uid): raw for uid in range(1, 9)}


async def test_a_message_larger_than_any_may_be_is_left_out() -> None:
    remote = ImapRemote({3: Message(b"x" * (LARGEST + 1)), 5: Message(b"x" * LARGEST)})
    async with signed_in(remote) as there:
        assert await got(there, 3, 5) == {"5": b"x" * LARGEST}


@pytest.mark.parametrize("size", [2 * LARGEST + 1, 1 << 32, 10**30])
async def test_a_literal_that_cannot_be_one(size: int) -> None:
    fault = Fault(b"* 1 FETCH (UID 3 BODY[] {%d}\r\nFrom:" % size)
    problem = await failure(three(faults={"UID FETCH": fault}), lambda there: got(there, 3))
    assert (problem.stage, f"{size} bytes" in problem.message) == (ConnectorStage.FETCH, True)


@pytest.mark.parametrize("given", [b"{100}", b"{5}", b"{0}", b"{-1}", b"{x}", b"{}"])
async def test_a_literal_of_a_wrong_size(given: bytes) -> None:
    fault = Fault(b"* 1 FETCH (UID 3 BODY[] " + given + b"\r\n" + MESSAGE + b")\r\n<tag> OK\r\n")
    remote = three(faults={"UID FETCH": fault})
    problem = await failure(remote, lambda there: got(there, 3), timeout=SHORT)
    assert problem.stage is ConnectorStage.FETCH


async def test_what_came_before_the_end_is_there() -> None:
    fault = Fault(b"* 1 FETCH (UID 3 BODY[] {1}\r\na)\r\n* 2 FETCH (UID 5 BODY[] {9}\r\nab", GONE)
    seen: list[tuple[str, bytes]] = []

    async def fetch(there: ThreadedSession) -> None:
        await opened(there)
        async for some in there.stream_messages([head(3), head(5)]):
            seen.extend((one.message_id, raw) for one, raw in some)

    problem = await failure(three(faults={"UID FETCH": fault}), fetch)
    assert problem.message == "the server has ended the connection"
    assert seen == [("3", b"a")]


async def test_one_that_cannot_be_read_does_not_hold_up_others() -> None:
    remote = three()

    def fetch(rest: bytes, words: list[bytes]) -> bytes:
        if words[2] in (b"3", b"8"):
            return ImapRemote.do_uid_fetch(remote, rest, words)
        return b"<tag> NO it is broken\r\n"

    remote.do_uid_fetch = fetch  # type: ignore[method-assign]
    async with signed_in(remote) as there:
        assert set(await got(there, 3, 5, 8)) == {"3", "8"}


async def test_who_gives_nothing_at_all() -> None:
    remote = ImapRemote({uid: Message() for uid in range(1, 50)})
    remote.faults["UID FETCH"] = b"<tag> NO I am tired\r\n"
    problem = await failure(remote, lambda there: got(there, *range(1, 50)))
    assert (problem.stage, "none of these" in problem.message) == (ConnectorStage.FETCH, True)
    assert sum(b"UID FETCH" in line for line in remote.heard) < 20


# ---------------------------------------------------------------- deleting and waiting


async def test_with_uidplus_only_ours_are_deleted() -> None:
    remote = three()
    remote.messages[8].flags = b"\\Deleted"
    async with signed_in(remote) as there:
        found = await opened(there, write=True)
        await there.run(found.delete_messages, ["3", "5"])
    assert set(remote.messages) == {8}
    assert not any(line.endswith(b" EXPUNGE\r\n") for line in remote.heard)


@pytest.mark.parametrize(("others", "left"), [(b"", {8}), (b"\\Deleted", {3, 5, 8})])
async def test_without_uidplus_nothing_of_others_is_deleted(others: bytes, left: set[int]) -> None:
    remote = three(capabilities=b"IMAP4rev1")
    remote.messages[8].flags = others
    async with signed_in(remote) as there:
        found = await opened(there, write=True)
        await there.run(found.delete_messages, ["3", "5"])
    assert set(remote.messages) == left
    assert b"\\Deleted" in remote.messages.get(3, Message(flags=b"\\Deleted")).flags


async def test_without_uidplus_nothing_goes_where_nothing_is_marked() -> None:
    remote = three(capabilities=b"IMAP4rev1", faults={"UID SEARCH": b"* SEARCH\r\n<tag> OK\r\n"})
    async with signed_in(remote) as there:
        found = await opened(there, write=True)
        await there.run(found.delete_messages, ["3"])
    assert set(remote.messages) == {3, 5, 8}


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"+ idling\r\n* 4 EXISTS\r\n", True),
        (b"* 4 EXISTS\r\n+ idling\r\n", True),
        (b"+ idling\r\n* 2 EXPUNGE\r\n", True),
        (b"+ idling\r\n* VANISHED 5\r\n", True),
        (b"+ idling\r\n* OK still here\r\n", False),
        (b"+ idling\r\n* 4 RECENT\r\n", False),
        (b"+ idling\r\n* 4 EXI", False),
        (b"+ idling\r\n", False),
    ],
)
@pytest.mark.parametrize("security", [ConnectorSecurity.PLAIN, ConnectorSecurity.TLS])
async def test_waiting(said: bytes, heard: bool, security: ConnectorSecurity) -> None:
    rest = b"STS\r\n" if said.endswith(b"EXI") else b""
    remote = three(faults={"IDLE": said, "DONE": rest + b"<tag> OK idled\r\n"})
    async with signed_in(remote, security=security) as there:
        found = await opened(there)
        assert await there.run(found.wait_for_changes, 0.2) is (heard or bool(rest))
        assert await there.run(found.list_message_ids) == ["3", "5", "8"]


async def test_waiting_goes_on_for_longer_than_a_silence() -> None:
    async with signed_in(three(), timeout=0.2) as there:
        began = time.monotonic()
        assert not await there.run((await opened(there)).wait_for_changes, 0.6)
        assert time.monotonic() - began > 0.5


async def test_no_waiting_where_it_is_not_offered() -> None:
    async with signed_in(three(capabilities=b"IMAP4rev1")) as there:
        with pytest.raises(RemoteFailure, match="no IDLE"):
            await there.run((await opened(there)).wait_for_changes, 1)
