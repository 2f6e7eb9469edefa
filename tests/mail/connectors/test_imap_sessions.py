"""Sessions with servers of IMAP elsewhere, which do all that they should not."""

import asyncio
import threading
import time
import tracemalloc
from datetime import UTC, datetime

import pytest

from mail.connectors import imap_client, imap_protocol
from mail.connectors.imap_client import ImapSession
from mail.connectors.remote_server import ConnectorStage, RemoteFailure
from mail.connectors.session_thread import ThreadedSession
from mail.connectors.socket_stream import RemoteConnection
from models.connectors import ConnectorSecurity
from tests.support.mail_servers.imap_and_pop3_servers import (
    GONE,
    HANG_UP,
    INBOX,
    LARGEST,
    PATIENCE,
    SECRET,
    SHORT,
    SILENCE,
    Fault,
    ImapRemote,
    Message,
    account,
    failure,
    got,
    head,
    open_at,
    opened,
    signed_in,
    three,
)
from tests.support.mail_servers.smtp_and_dns_servers import trust

# ---------------------------------------------------------------- what is right


async def test_messages_come_with_flags_and_dates() -> None:
    remote = three()
    remote.messages[5].flags = b"\\Seen $Forwarded"
    async with signed_in(remote) as there:
        found = await opened(there)
        assert await there.run(found.list_message_ids) == ["3", "5", "8"]
        heads = await there.run(found.fetch_metadata, ["3", "5", "7"])
        assert [one.message_id for one in heads] == ["3", "5"]
        assert heads[1].flags == {"\\Seen", "$Forwarded"}
        assert heads[1].received_at == datetime(2026, 7, 17, 0, 44, 25, tzinfo=UTC)
        assert heads[0].size == len(remote.messages[3].raw)
        assert await got(there, 3, 5, 8) == {
            str(uid): one.raw for uid, one in remote.messages.items()
        }
    assert remote.heard[-1].endswith(b"LOGOUT\r\n")


async def test_many_messages_come_in_several_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_client, "MAX_FETCHED_MESSAGES", 2)
    monkeypatch.setattr(imap_client, "METADATA_BATCH_SIZE", 2)
    remote = three()
    async with signed_in(remote) as there:
        assert len(await got(there, 3, 5, 8)) == 3
        found = await opened(there)
        assert len(await there.run(found.fetch_metadata, ["3", "5", "8"])) == 3
        assert await there.run(found.fetch_flags, ["3", "5", "8"]) == dict.fromkeys(
            ("3", "5", "8"), frozenset[str]()
        )


@pytest.mark.parametrize("security", [ConnectorSecurity.TLS, ConnectorSecurity.STARTTLS])
async def test_tls(security: ConnectorSecurity) -> None:
    remote = three(capabilities=b"IMAP4rev1 STARTTLS")
    async with signed_in(remote, security=security) as there:
        assert len(await got(there, 3, 5, 8)) == 3


@pytest.mark.parametrize(
    ("mechanism", "sent"),
    [
        ("LOGIN", b'LOGIN "anna" "sesame \\"\\\\ opens"'),
        ("PLAIN", b"AGFubmEAc2VzYW1lICJcIG9wZW5z"),
        ("XOAUTH2", b"dXNlcj1hbm5hAWF1dGg9QmVhcmVyIHNlc2FtZSAiXCBvcGVucwEB"),
        ("OAUTHBEARER", b"bixhPWFubmEsAWF1dGg9QmVhcmVyIHNlc2FtZSAiXCBvcGVucwEB"),
        ("CRAM-MD5", b"YW5uYSA"),
    ],
)
async def test_each_way_to_sign_in(mechanism: str, sent: bytes) -> None:
    remote = three()
    async with signed_in(remote, mechanism=mechanism) as there:
        assert there.remote.capabilities
    assert any(sent in line for line in remote.heard), remote.heard


@pytest.mark.parametrize("secret", ["pässwort", "two\r\na1 LOGOUT"])
async def test_a_password_of_other_signs_is_a_literal(secret: str) -> None:
    remote = three()
    async with signed_in(remote, secret=secret):
        pass
    (login,) = [line for line in remote.heard if b"LOGIN" in line]
    raw = secret.encode()
    assert login.endswith(b'"anna" {%d}\r\n%s\r\n' % (len(raw), raw))


async def test_extensions_are_those_that_are_said_behind_the_password() -> None:
    said = b"<tag> OK [CAPABILITY IMAP4rev1 IDLE] in\r\n"
    async with signed_in(three(faults={"LOGIN": said})) as there:
        assert there.remote.capabilities == {"IMAP4REV1", "IDLE"}


async def test_an_extension_that_was_a_lie_is_not_used() -> None:
    lies = {"ENABLE": b"<tag> BAD never heard of\r\n"}
    async with signed_in(three(faults=lies)) as there:
        assert len(await got(there, 3)) == 1


async def test_all_flags_where_changes_cannot_be_told() -> None:
    remote = three(faults={"UID FETCH": b"<tag> BAD what is CHANGEDSINCE\r\n"})
    async with signed_in(remote) as there:
        found = await opened(there)
        with pytest.raises(RemoteFailure):
            await there.run(found.fetch_changed_flags, 5)
        del remote.faults["UID FETCH"]
        assert set(await there.run(found.fetch_changed_flags, 5)) == {"3", "5", "8"}
    assert sum(b"CHANGEDSINCE" in line for line in remote.heard) == 2


# ---------------------------------------------------------------- silence and hanging up

STEPS = {
    "GREETING": ConnectorStage.GREETING,
    "CAPABILITY": ConnectorStage.GREETING,
    "LOGIN": ConnectorStage.LOGIN,
    "ENABLE": ConnectorStage.LOGIN,
    "SELECT": ConnectorStage.FETCH,
    "LIST": ConnectorStage.LIST,
    "LSUB": ConnectorStage.LIST,
    "UID SEARCH": ConnectorStage.FETCH,
    "UID FETCH": ConnectorStage.FETCH,
    "IDLE": ConnectorStage.LISTEN,
    "DONE": ConnectorStage.LISTEN,
    "UID STORE": ConnectorStage.DELETE,
    "UID EXPUNGE": ConnectorStage.DELETE,
}
DOES = {
    "silence": SILENCE,
    "hangs up": HANG_UP,
    "bye": Fault(b"* BYE be\xff gone\r\n", GONE),
    "bye, and stays": Fault(b"* BYE gone\r\n"),
    "half a line": Fault(b"* OK ha", GONE),
    "garbage": Fault(b"\x16\x03\x01garbage\r\n", GONE),
    "garbage in parentheses": Fault(b"* 1 FETCH (((\r\n* LIST (((\r\n* LSUB )\r\n", GONE),
    "another's tag": Fault(b"XYZ OK\r\n", GONE),
    "a literal in parts": Fault(b"* 1 FETCH (UID 3 BODY[] {100}\r\nFrom:", GONE),
    "4 GB": Fault(b"* 1 FETCH (UID 3 BODY[] {4294967296}\r\nFrom:", GONE),
    "no number": Fault(b"* 1 FETCH (UID 3 BODY[] {" + b"9" * 5000 + b"}\r\n", GONE),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("does", DOES)
async def test_whatever_goes_wrong_at_each_step(step: str, does: str) -> None:
    began = time.monotonic()
    problem = await failure(
        three(faults={step: DOES[does]}), timeout=SHORT if does == "silence" else PATIENCE
    )
    assert problem.stage is STEPS[step]
    assert time.monotonic() - began < PATIENCE
    if does == "silence":
        assert problem.message == "no answer within 0.5 seconds"
    if does == "bye":
        assert problem.message == "the server has ended the connection: be\ufffd gone"
    assert not problem.is_permanent


@pytest.mark.parametrize(
    "step", ["SELECT", "LIST", "LSUB", "UID SEARCH", "UID STORE", "UID EXPUNGE", "IDLE"]
)
async def test_what_is_refused_says_why(step: str) -> None:
    problem = await failure(three(faults={step: b"<tag> NO not today\r\n"}))
    assert (problem.stage, problem.message) == (STEPS[step], "not today")


async def test_nobody_listens() -> None:
    remote = three()
    async with open_at(remote):
        pass
    line = RemoteConnection(account(remote), ["127.0.0.1"])
    with pytest.raises(RemoteFailure, match="nobody listens there") as problem:
        await asyncio.to_thread(ImapSession(line, LARGEST).sign_in)
    assert problem.value.stage is ConnectorStage.CONNECT


# ---------------------------------------------------------------- TLS


async def test_no_starttls_offered() -> None:
    remote = three()
    problem = await failure(remote, security=ConnectorSecurity.STARTTLS)
    assert (problem.stage, problem.message) == (ConnectorStage.TLS, "the server offers no STARTTLS")
    assert not any(b"LOGIN" in line for line in remote.heard)


async def test_starttls_refused() -> None:
    remote = three(capabilities=b"IMAP4rev1 STARTTLS")
    remote.faults["STARTTLS"] = b"<tag> NO not now\r\n"
    problem = await failure(remote, security=ConnectorSecurity.STARTTLS)
    assert (problem.stage, problem.message) == (ConnectorStage.TLS, "not now")
    assert not any(b"LOGIN" in line for line in remote.heard)


@pytest.mark.parametrize("before", [b"", b"* CAPABILITY IMAP4rev1 LOGINDISABLED EVIL\r\n"])
async def test_what_is_said_before_tls_is_forgotten(before: bytes) -> None:
    remote = three(capabilities=b"IMAP4rev1 STARTTLS")
    evil = b"* CAPABILITY IMAP4rev1 EVIL\r\n* LIST () NIL evil\r\n"
    remote.faults["STARTTLS"] = before + b"<tag> OK go on\r\n" + evil
    async with signed_in(remote, security=ConnectorSecurity.STARTTLS) as there:
        assert there.remote.capabilities == {"IMAP4REV1", "STARTTLS"}
        assert [one.raw_name for one in await there.run(there.remote.list_mailboxes)] == [b"INBOX"]


@pytest.mark.parametrize("security", list(ConnectorSecurity))
async def test_who_lets_anybody_in_is_not_trusted(security: ConnectorSecurity) -> None:
    remote = three(faults={"GREETING": b"* PREAUTH come in\r\n"})
    problem = await failure(remote, security=security)
    assert (problem.stage, "anybody" in problem.message) == (ConnectorStage.GREETING, True)


async def test_a_certificate_for_another_name() -> None:
    problem = await failure(three(), security=ConnectorSecurity.TLS, host="mx2.example.net")
    assert problem.stage is ConnectorStage.TLS
    assert "certificate is not good: Hostname mismatch" in problem.message


async def test_a_certificate_of_nobody() -> None:
    problem = await failure(three(), security=ConnectorSecurity.TLS, ours=False)
    assert problem.stage is ConnectorStage.TLS
    assert "certificate is not good: self-signed certificate" in problem.message


async def test_no_tls_where_there_should_be() -> None:
    remote = three()
    async with open_at(remote):
        there = ImapSession(
            RemoteConnection(account(remote, security=ConnectorSecurity.TLS), ["127.0.0.1"]),
            LARGEST,
        )
        with pytest.raises(RemoteFailure) as problem:
            await asyncio.to_thread(there.sign_in)
        there.close()
    assert problem.value.stage is ConnectorStage.TLS
    assert problem.value.message == "TLS failed: wrong version number"


# ---------------------------------------------------------------- signing in


@pytest.mark.parametrize("mechanism", ["LOGIN", "PLAIN", "XOAUTH2"])
@pytest.mark.parametrize(
    "said",
    [
        SECRET.encode(),
        b'wrong: LOGIN "anna" "sesame \\"\\\\ opens"',
        b'wrong: SESAME  "\\\t opens',
        b"you said c2VzYW1lICJcIG9wZW5z",
        b"x" * 290 + b" " + SECRET.encode(),
    ],
)
async def test_refused_and_no_password_is_shown(mechanism: str, said: bytes) -> None:
    name = "LOGIN" if mechanism == "LOGIN" else "AUTHENTICATE"
    remote = three(faults={name: b"<tag> NO [AUTHENTICATIONFAILED] " + said + b"\r\n"})
    problem = await failure(remote, mechanism=mechanism)
    assert problem.stage is ConnectorStage.LOGIN
    assert problem.is_permanent
    low = problem.message.lower()
    assert not any(word in low for word in ("sesam", "opens", "c2vzyw", "agfubm")), low


async def test_the_answer_of_a_mechanism_is_not_shown() -> None:
    said = b"<tag> NO you said AGFubmEAc2VzYW1lICJcIG9wZW5z\r\n"
    problem = await failure(three(faults={"AUTHENTICATE": said}), mechanism="PLAIN")
    assert problem.message == "you said …"


async def test_a_password_that_is_shown_later_is_hidden_too() -> None:
    remote = three(faults={"SELECT": b"<tag> NO not with " + SECRET.encode() + b"\r\n"})
    assert (await failure(remote)).message == "not with …"


async def test_whoever_has_no_time_has_not_refused() -> None:
    remote = three(faults={"LOGIN": b"<tag> NO [UNAVAILABLE] later\r\n"})
    problem = await failure(remote)
    assert problem.stage is ConnectorStage.LOGIN
    assert not problem.is_permanent


async def test_no_password_where_none_is_taken() -> None:
    remote = three(capabilities=b"IMAP4rev1 LOGINDISABLED")
    problem = await failure(remote)
    assert (problem.stage, "no password" in problem.message) == (ConnectorStage.LOGIN, True)
    assert not any(b"LOGIN" in line for line in remote.heard)


async def test_a_server_that_asks_without_an_end() -> None:
    remote = three(faults={"AUTHENTICATE": Fault(b"+ more\r\n" * 100)})
    problem = await failure(remote, mechanism="XOAUTH2")
    assert (problem.stage, "without an end" in problem.message) == (ConnectorStage.LOGIN, True)


# ---------------------------------------------------------------- without an end

ENDLESS = {
    "a line": b"x" * 65536,
    "a line of numbers": b" 123456" * 9000,
    "lines": b"* OK still here\r\n" * 4000,
    "folders": b'* LIST () "/" "same"\r\n' * 4000,
    "messages": b"* 1 FETCH (UID 3 FLAGS (x))\r\n" * 4000,
    "messages unasked": b"* 1 FETCH (UID 77 BODY[] {9}\r\n123456789)\r\n" * 4000,
    "numbers": b"* SEARCH 1 2 3\r\n" * 4000,
    "deletions": b"* 1 EXPUNGE\r\n" * 4000,
    "literals": b"* OK {60000}\r\n" + b"x" * 60000,
    "empty lines": b"\r\n" * 30000,
    "challenges": b"+ \r\n" * 10000,
}


@pytest.mark.parametrize("step", ["LOGIN", "LIST", "UID SEARCH", "UID FETCH", "IDLE"])
@pytest.mark.parametrize("what", ENDLESS)
async def test_without_an_end(step: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_protocol, "MAX_UNREQUESTED_BYTES", 1 << 16)
    monkeypatch.setattr(imap_protocol, "MAX_LINE_SIZE", 1 << 16)
    monkeypatch.setattr(imap_client, "MAX_LINE_SIZE", 1 << 16)
    monkeypatch.setattr(imap_client, "MAX_MAILBOXES", 500)
    monkeypatch.setattr(imap_client, "MAX_SEARCH_LINE", 1 << 18)
    prefix = {"UID SEARCH": b"* SEARCH "}.get(step, b"* OK ") if what.startswith("a line") else b""
    remote = three(faults={step: Fault(prefix + ENDLESS[what], ever=True)})

    async def all_of_it(there: ThreadedSession) -> None:
        await there.run(there.remote.list_mailboxes)
        found = await opened(there)
        await there.run(found.list_message_ids)
        await got(there, 3, 5)
        await there.run(found.wait_for_changes, 60)

    tracemalloc.start()
    try:
        await failure(remote, all_of_it)
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- ending

CUTS = {"GREETING": b"", "LOGIN": b"LOGIN", "UID SEARCH": b"SEARCH", "UID FETCH": b"FETCH"}


@pytest.mark.parametrize("step", [*CUTS, "IDLE", "TLS"])
@pytest.mark.parametrize("security", [ConnectorSecurity.PLAIN, ConnectorSecurity.TLS])
async def test_cut_from_another_thread(step: str, security: ConnectorSecurity) -> None:
    remote = three(faults={step: SILENCE} if step in CUTS else {})
    async with open_at(remote, tls=security is ConnectorSecurity.TLS and step != "TLS"):
        if step == "TLS":
            remote.faults["GREETING"] = SILENCE  # and so nothing of TLS
        known = account(remote, security=security, timeout=600)
        line = RemoteConnection(known, ["127.0.0.1"], trust())
        there = ImapSession(line, LARGEST)
        reached = threading.Event()

        def work() -> None:
            try:
                there.sign_in()
                there.open_mailbox(INBOX, writable=False)
                there.list_message_ids()
                list(there.fetch_messages([head(3)]))
                reached.set()
                there.wait_for_changes(600)
            finally:
                there.close()

        running = asyncio.create_task(asyncio.to_thread(work))
        if CUTS.get(step):
            await remote.until(CUTS[step])
        elif step == "IDLE":
            await remote.until(b"IDLE")
        else:
            await remote.until_connected()
        line.abort()
        began = time.monotonic()
        with pytest.raises(RemoteFailure, match="the run was ended"):
            await running
        assert time.monotonic() - began < 2
        assert reached.is_set() is (step == "IDLE")


async def test_cut_while_it_waits_for_its_pace() -> None:
    remote = ImapRemote({3: Message(b"x" * 50_000)})
    async with signed_in(remote, bytes_per_second=10_000, timeout=60) as there:
        await opened(there)
        fetched = asyncio.create_task(got(there, 3))
        await remote.until(b"FETCH")
        there.connection.abort()
        with pytest.raises(RemoteFailure, match="the run was ended"):
            await asyncio.wait_for(fetched, 2)


async def test_its_pace() -> None:
    remote = ImapRemote({3: Message(b"x" * 50_000)})
    async with signed_in(remote, bytes_per_second=50_000, timeout=60) as there:
        await opened(there)
        began = time.monotonic()
        assert await got(there, 3) == {"3": b"x" * 50_000}
        assert 0.8 < time.monotonic() - began < 5


async def test_whoever_stops_listening_ends_the_session() -> None:
    remote = ImapRemote({uid: Message(b"x" * LARGEST) for uid in range(1, 90)})
    async with signed_in(remote) as there:
        await opened(there)
        coming = there.stream_messages([head(uid) for uid in range(1, 90)])
        async for _ in coming:
            break
        await coming.aclose()
        with pytest.raises(RemoteFailure, match="the run was ended"):
            await got(there, 1)
