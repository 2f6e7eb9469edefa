"""Sessions with servers of POP3 elsewhere, which do all that they should not."""

import asyncio
import time
import tracemalloc
from typing import Any

import pytest

from mail.connectors import pop3_client
from mail.connectors.pop3_client import INBOX, Pop3Session
from mail.connectors.remote_server import ConnectorStage, RemoteFailure
from mail.connectors.session_thread import ThreadedSession
from mail.connectors.socket_stream import RemoteConnection
from models.connectors import ConnectorSecurity
from tests.support.mail_servers.imap_and_pop3_servers import (
    GONE,
    HANG_UP,
    LARGEST,
    MESSAGE,
    PATIENCE,
    SECRET,
    SHORT,
    SILENCE,
    Fault,
    Message,
    PopRemote,
    account,
    failure,
    head,
    open_at,
    signed_in,
)
from tests.support.mail_servers.smtp_and_dns_servers import trust


def two(**more: Any) -> PopRemote:
    return PopRemote({1: Message(), 2: Message(MESSAGE + b"..\r\n.dots\r\n")}, **more)


async def opened(there: ThreadedSession) -> list[str]:
    """What marks there are."""
    await there.run(lambda: there.remote.open_mailbox(INBOX, writable=True))
    return await there.run(there.remote.list_message_ids)


async def got(there: ThreadedSession, *marks: str) -> dict[str, bytes]:
    heads = [head(mark) for mark in marks]
    return {one.message_id: raw async for some in there.stream_messages(heads) for one, raw in some}


async def everything(there: ThreadedSession) -> None:
    marks = await opened(there)
    await got(there, *marks)
    await there.run(there.remote.delete_messages, marks[:1])


async def failed(remote: PopRemote, **more: Any) -> RemoteFailure:
    return await failure(remote, everything, **more)


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize("security", list(ConnectorSecurity))
async def test_messages(security: ConnectorSecurity) -> None:
    remote = two()
    async with signed_in(remote, security=security) as there:
        assert await there.run(there.remote.list_mailboxes) == [INBOX]
        assert await there.run(there.remote.list_subscribed) == {b"INBOX"}
        assert await opened(there) == ["uidl-1", "uidl-2"]
        heads = await there.run(there.remote.fetch_metadata, ["uidl-2", "gone"])
        assert [(one.message_id, one.size) for one in heads] == [
            ("uidl-2", len(remote.messages[2].raw))
        ]
        assert await got(there, "uidl-1", "uidl-2", "gone") == {
            "uidl-1": MESSAGE,
            "uidl-2": MESSAGE + b"..\r\n.dots\r\n",
        }
    assert remote.heard[-1] == b"QUIT\r\n"
    assert len(remote.messages) == 2


@pytest.mark.parametrize(
    ("mechanism", "capabilities", "sent"),
    [
        ("PLAIN", b"USER\r\n", b"PASS " + SECRET.encode() + b"\r\n"),
        ("LOGIN", b"SASL PLAIN\r\n", b"PASS " + SECRET.encode() + b"\r\n"),
        ("PLAIN", b"SASL LOGIN PLAIN\r\n", b"AGFubmEAc2VzYW1lICJcIG9wZW5z\r\n"),
        ("XOAUTH2", b"", b"dXNlcj1hbm5hAWF1dGg9QmVhcmVyIHNlc2FtZSAiXCBvcGVucwEB\r\n"),
        ("OAUTHBEARER", b"", b"bixhPWFubmEsAWF1dGg9QmVhcmVyIHNlc2FtZSAiXCBvcGVucwEB\r\n"),
        ("CRAM-MD5", b"", b"YW5uYSA"),
    ],
)
async def test_each_way_to_sign_in(mechanism: str, capabilities: bytes, sent: bytes) -> None:
    remote = two(capabilities=capabilities)
    async with signed_in(remote, mechanism=mechanism):
        pass
    assert any(line.startswith(sent) for line in remote.heard), remote.heard


async def test_no_list_of_extensions() -> None:
    async with signed_in(two(faults={"CAPA": b"-ERR what?\r\n"})) as there:
        assert there.remote.capabilities == frozenset()
        assert len(await opened(there)) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n",
        b".\r\n",
        b"..\r\n...\r\n",
        b"\0\xff\r\n",
        b"x" * 90_000 + b"\r\n",
        b"a\r\r\n",
        b"bare\nlines\n.\nand more\n..\r\n",
        b"\r\n" * 40_000,
    ],
)
async def test_whatever_a_message_is(raw: bytes) -> None:
    async with signed_in(PopRemote({1: Message(raw), 2: Message()})) as there:
        assert await got(there, *await opened(there)) == {"uidl-1": raw, "uidl-2": MESSAGE}


# ---------------------------------------------------------------- silence and hanging up

STEPS = {
    "GREETING": ConnectorStage.GREETING,
    "CAPA": ConnectorStage.GREETING,
    "USER": ConnectorStage.LOGIN,
    "PASS": ConnectorStage.LOGIN,
    "LIST": ConnectorStage.LIST,
    "UIDL": ConnectorStage.LIST,
    "RETR": ConnectorStage.FETCH,
    "DELE": ConnectorStage.DELETE,
    "QUIT": ConnectorStage.DELETE,
}
DOES = {
    "silence": SILENCE,
    "hangs up": HANG_UP,
    "half a line": Fault(b"+OK ha", GONE),
    "garbage": Fault(b"\x16\x03\x01garbage\r\n", GONE),
    "an empty line": Fault(b"\r\n", GONE),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("does", DOES)
async def test_whatever_goes_wrong_at_each_step(step: str, does: str) -> None:
    began = time.monotonic()
    problem = await failed(
        two(faults={step: DOES[does]}), timeout=SHORT if does == "silence" else PATIENCE
    )
    assert problem.stage is STEPS[step]
    assert time.monotonic() - began < PATIENCE
    if does == "silence":
        assert problem.message == "no answer within 0.5 seconds"
    assert not problem.is_permanent


@pytest.mark.parametrize("step", ["GREETING", "USER", "PASS", "LIST", "UIDL", "DELE", "QUIT"])
async def test_what_is_refused_says_why(step: str) -> None:
    problem = await failed(two(faults={step: b"-ERR not today\r\n"}))
    assert problem.stage is STEPS[step]
    assert problem.message.endswith("not today")


@pytest.mark.parametrize("then", [SILENCE, HANG_UP])
async def test_a_message_that_ends_early(then: Fault) -> None:
    problem = await failed(
        two(faults={"RETR": Fault(b"+OK\r\nFrom: a\r\n\r\nTe", then.then)}), timeout=SHORT
    )
    assert problem.stage is ConnectorStage.FETCH


async def test_a_list_that_ends_early() -> None:
    problem = await failed(two(faults={"UIDL": Fault(b"+OK\r\n1 a\r\n", GONE)}))
    assert problem.stage is ConnectorStage.LIST


# ---------------------------------------------------------------- TLS and signing in


@pytest.mark.parametrize("said", [b"-ERR no TLS here\r\n", b"hello\r\n"])
async def test_no_starttls(said: bytes) -> None:
    remote = two(faults={"STLS": said})
    problem = await failed(remote, security=ConnectorSecurity.STARTTLS)
    assert problem.stage is ConnectorStage.TLS
    assert remote.heard == [b"STLS\r\n"]


async def test_what_is_said_before_tls_is_forgotten() -> None:
    evil = b"+OK\r\nEVIL\r\n.\r\n+OK in\r\n+OK in\r\n"
    remote = two(faults={"STLS": b"+OK go on\r\n" + evil})
    async with signed_in(remote, security=ConnectorSecurity.STARTTLS) as there:
        assert there.remote.capabilities == {"TOP", "UIDL", "USER", "STLS"}
        assert len(await opened(there)) == 2


@pytest.mark.parametrize("security", [ConnectorSecurity.TLS, ConnectorSecurity.STARTTLS])
async def test_certificates(security: ConnectorSecurity) -> None:
    problem = await failed(two(), security=security, host="mx2.example.net")
    assert problem.stage is ConnectorStage.TLS
    assert "certificate is not good: Hostname mismatch" in problem.message
    problem = await failed(two(), security=security, ours=False)
    assert problem.stage is ConnectorStage.TLS
    assert "certificate is not good: self-signed" in problem.message


@pytest.mark.parametrize("step", ["USER", "PASS"])
async def test_refused_and_no_password_is_shown(step: str) -> None:
    remote = two(faults={step: b"-ERR [AUTH] not " + SECRET.upper().encode() + b"\r\n"})
    problem = await failed(remote)
    assert (problem.stage, problem.message) == (ConnectorStage.LOGIN, "[AUTH] not …")
    assert problem.is_permanent


async def test_a_token_that_is_refused_by_one_more_question() -> None:
    remote = two(faults={"SASL": b"+ eyJzdGF0dXMiOiI0MDAifQ==\r\n", "": b"-ERR bad token\r\n"})
    problem = await failed(remote, mechanism="XOAUTH2")
    assert (problem.stage, problem.message) == (ConnectorStage.LOGIN, "bad token")
    assert problem.is_permanent


@pytest.mark.parametrize("said", [b"[SYS/TEMP] ill", b"[IN-USE] busy", b"[LOGIN-DELAY] wait"])
async def test_whoever_has_no_time_has_not_refused(said: bytes) -> None:
    problem = await failed(two(faults={"PASS": b"-ERR " + said + b"\r\n"}))
    assert problem.stage is ConnectorStage.LOGIN
    assert not problem.is_permanent


async def test_no_command_is_hidden_in_a_password() -> None:
    remote = two()
    problem = await failed(remote, secret="one\r\nDELE 1")  # noqa: S106 - a test's
    assert problem.stage is ConnectorStage.LOGIN
    assert not any(b"DELE" in line for line in remote.heard)


# ---------------------------------------------------------------- UIDL and LIST


async def test_no_uidl() -> None:
    problem = await failed(two(faults={"UIDL": b"-ERR what?\r\n"}))
    assert problem.stage is ConnectorStage.LIST
    assert problem.message == "the server cannot tell messages apart (UIDL): what?"


async def test_a_uidl_of_two_messages() -> None:
    remote = PopRemote({n: Message(b"%d\r\n" % n, uidl=b"same") for n in (1, 2, 3)})
    async with signed_in(remote) as there:
        marks = await opened(there)
        assert marks[0] == "same"
        assert len(set(marks)) == 3
        assert sorted((await got(there, *marks)).values()) == [b"1\r\n", b"2\r\n", b"3\r\n"]
        assert await opened(there) == marks
        await there.run(there.remote.delete_messages, marks[1:2])
    assert set(remote.messages) == {1, 3}


async def test_ids_of_strange_signs_and_any_length() -> None:
    ids = [b"x" * 10_000, b"x" * 9_999 + b"y", b"a  b", b"a b", b"\xff\xfe", b"\xff\xfd", b"1:2",
           b"!~", b"\0", b"x" * 70, b"x" * 71]  # fmt: skip
    remote = PopRemote({n: Message(b"%d\r\n" % n, uidl=one) for n, one in enumerate(ids, 1)})
    async with signed_in(remote) as there:
        marks = await opened(there)
        assert len(set(marks)) == len(ids)
        assert all(mark.isascii() and mark.isprintable() and len(mark) <= 70 for mark in marks)
        assert not any(":" in mark or " " in mark for mark in marks)
        assert (marks[7], marks[9]) == ("!~", "x" * 70)
        assert len(await got(there, *marks)) == len(ids)
        assert await opened(there) == marks


@pytest.mark.parametrize(
    "said", [b"1\r\n", b"1 \r\n", b"x a\r\n", b"-1 a\r\n", b"1 a\r\n", b"", b"9" * 5000 + b" a\r\n"]
)
async def test_a_uidl_that_is_none(said: bytes) -> None:
    problem = await failed(two(faults={"UIDL": b"+OK\r\n" + said + b".\r\n"}))
    assert problem.stage is ConnectorStage.LIST


@pytest.mark.parametrize(
    "said", [b"1\r\n", b"x 5\r\n", b"1 x\r\n", b"\r\n", b"0 5\r\n", b"1 -5\r\n"]
)
async def test_a_list_that_is_none(said: bytes) -> None:
    problem = await failed(two(faults={"LIST": b"+OK\r\n" + said + b"\r\n.\r\n"}))
    assert (problem.stage, "no messages" in problem.message) == (ConnectorStage.LIST, True)


async def test_a_message_of_another_size_than_was_said() -> None:
    raw = b"x" * 1000 + b"\r\n"
    messages = {1: Message(raw, size=b"1"), 2: Message(raw, size=b"99999")}
    async with signed_in(PopRemote(messages)) as there:
        assert set((await got(there, *await opened(there))).values()) == {raw}


async def test_a_message_larger_than_any_may_be_is_left_out() -> None:
    large = (b"x" * 998 + b"\r\n") * 150
    async with signed_in(PopRemote({1: Message(large, size=b"5"), 2: Message()})) as there:
        assert await got(there, *await opened(there)) == {"uidl-2": MESSAGE}


async def test_one_that_cannot_be_read_does_not_hold_up_others() -> None:
    remote = two()
    async with signed_in(remote) as there:
        marks = await opened(there)
        remote.faults["RETR"] = b"-ERR it is broken\r\n"
        assert await got(there, *marks) == {}
        del remote.faults["RETR"]
        assert len(await got(there, *marks)) == 2


# ---------------------------------------------------------------- without an end

ENDLESS = {
    "a line": b"x" * 65536,
    "lines": b"line\r\n" * 10_000,
    "empty lines": b"\r\n" * 30_000,
    "questions": b"+ more\r\n" * 8_000,
    "messages": b"1 2\r\n" * 10_000,
}


@pytest.mark.parametrize("step", ["GREETING", "CAPA", "LIST", "UIDL", "RETR"])
@pytest.mark.parametrize("what", ENDLESS)
async def test_without_an_end(step: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pop3_client, "MAX_LINE_SIZE", 1 << 17)
    monkeypatch.setattr(pop3_client, "MAX_MESSAGES", 10_000)
    remote = two(faults={step: Fault(b"+OK " + ENDLESS[what], ever=True)})
    tracemalloc.start()
    try:
        await failed(remote)
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- deleting, and ending


async def test_deleted_at_the_end() -> None:
    remote = two()
    async with signed_in(remote) as there:
        await opened(there)
        await there.run(there.remote.delete_messages, ["uidl-2", "gone"])
        assert len(remote.messages) == 2
    assert set(remote.messages) == {1}


async def test_nothing_is_deleted_where_the_run_fails() -> None:
    remote = two()

    async def run() -> None:
        async with signed_in(remote) as there:
            await there.run(there.remote.delete_messages, await opened(there))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run()
    assert len(remote.messages) == 2


CUTS = {"GREETING": b"", "PASS": b"PASS", "RETR": b"RETR"}


@pytest.mark.parametrize("step", CUTS)
@pytest.mark.parametrize("security", [ConnectorSecurity.PLAIN, ConnectorSecurity.TLS])
async def test_cut_from_another_thread(step: str, security: ConnectorSecurity) -> None:
    remote = two(faults={step: SILENCE})
    async with open_at(remote, tls=security is ConnectorSecurity.TLS):
        line = RemoteConnection(
            account(remote, security=security, timeout=600), ["127.0.0.1"], trust()
        )
        there = Pop3Session(line, LARGEST)

        def work() -> None:
            try:
                there.sign_in()
                there.open_mailbox(INBOX, writable=False)
                list(there.fetch_messages([head(mark) for mark in there.list_message_ids()]))
            finally:
                there.close()

        running = asyncio.create_task(asyncio.to_thread(work))
        await (remote.until(CUTS[step]) if CUTS[step] else remote.until_connected())
        line.abort()
        with pytest.raises(RemoteFailure, match="the run was ended"):
            await asyncio.wait_for(running, 2)


async def test_its_pace() -> None:
    raw = (b"x" * 998 + b"\r\n") * 50
    async with signed_in(
        PopRemote({1: Message(raw)}), bytes_per_second=50_000, timeout=60
    ) as there:
        marks = await opened(there)
        began = time.monotonic()
        assert await got(there, *marks) == {"uidl-1": raw}
        assert 0.8 < time.monotonic() - began < 5
