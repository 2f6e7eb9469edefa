"""Sessions with remote IMAP servers, including faulty and hostile ones."""

import asyncio
import threading
import time
import tracemalloc
from datetime import UTC, datetime
from itertools import product

import pytest

from mail.connectors import imap_client, imap_protocol
from mail.connectors.imap_client import ImapSession
from mail.connectors.remote_server import ConnectorStage, RemoteFailure
from mail.connectors.session_thread import ThreadedSession
from mail.connectors.socket_stream import RemoteConnection
from models.connectors import ConnectorSecurity
from tests.support.case_loop import each_case
from tests.support.mail_servers.imap_and_pop3_servers import (
    HANG_UP_FAULT,
    HANGS_UP,
    INBOX,
    MAX_MESSAGE_SIZE,
    REMOTE_PASSWORD,
    SHORT_SILENCE_TIMEOUT,
    SILENCE_MESSAGE,
    SILENCE_TIMEOUT,
    SILENT_FAULT,
    FakeImapServer,
    FakeRemoteMessage,
    RemoteFault,
    catch_remote_failure,
    fetch_inbox_messages,
    make_remote_message,
    make_three_message_server,
    open_inbox,
    open_signed_in_session,
    remote_server_settings,
    run_remote_server,
)
from tests.support.mail_servers.smtp_and_dns_servers import trusting_tls_context
from tests.support.time_limits import HANG_SECONDS


async def test_messages_have_flags_and_dates() -> None:
    remote = make_three_message_server()
    remote.messages[5].flags = b"\\Seen $Forwarded"
    async with open_signed_in_session(remote) as session:
        mailbox = await open_inbox(session)
        assert await session.run_in_thread(mailbox.list_message_ids) == ["3", "5", "8"]
        metadata = await session.run_in_thread(mailbox.fetch_metadata, ["3", "5", "7"])
        assert [message.message_id for message in metadata] == ["3", "5"]
        assert metadata[1].flags == {"\\Seen", "$Forwarded"}
        assert metadata[1].received_at == datetime(2026, 7, 17, 0, 44, 25, tzinfo=UTC)
        assert metadata[0].size == len(remote.messages[3].raw)
        assert await fetch_inbox_messages(session, 3, 5, 8) == {
            str(uid): message.raw for uid, message in remote.messages.items()
        }
    assert remote.received_lines[-1].endswith(b"LOGOUT\r\n")


async def test_many_messages_are_fetched_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_client, "MAX_FETCHED_MESSAGES", 2)
    monkeypatch.setattr(imap_client, "METADATA_BATCH_SIZE", 2)
    remote = make_three_message_server()
    async with open_signed_in_session(remote) as session:
        assert len(await fetch_inbox_messages(session, 3, 5, 8)) == 3
        mailbox = await open_inbox(session)
        assert len(await session.run_in_thread(mailbox.fetch_metadata, ["3", "5", "8"])) == 3
        assert await session.run_in_thread(mailbox.fetch_flags, ["3", "5", "8"]) == dict.fromkeys(
            ("3", "5", "8"), frozenset[str]()
        )


async def test_messages_are_fetched_over_tls() -> None:
    cases: list[ConnectorSecurity] = [ConnectorSecurity.TLS, ConnectorSecurity.STARTTLS]
    for case in each_case(cases):
        with case as security:
            remote = make_three_message_server(capabilities=b"IMAP4rev1 STARTTLS")
            async with open_signed_in_session(remote, security=security) as session:
                assert len(await fetch_inbox_messages(session, 3, 5, 8)) == 3


async def test_sign_in_with_each_mechanism() -> None:
    cases: list[tuple[str, bytes]] = [
        ("LOGIN", b'LOGIN "anna" "sesame \\"\\\\ opens"'),
        ("PLAIN", b"AGFubmEAc2VzYW1lICJcIG9wZW5z"),
        ("XOAUTH2", b"dXNlcj1hbm5hAWF1dGg9QmVhcmVyIHNlc2FtZSAiXCBvcGVucwEB"),
        ("OAUTHBEARER", b"bixhPWFubmEsAWF1dGg9QmVhcmVyIHNlc2FtZSAiXCBvcGVucwEB"),
        ("CRAM_MD5", b"YW5uYSA"),
    ]
    for case in each_case(cases):
        with case as (mechanism, sent):
            remote = make_three_message_server()
            async with open_signed_in_session(remote, mechanism=mechanism) as session:
                assert session.remote.capabilities
            assert any(sent in line for line in remote.received_lines), remote.received_lines


async def test_password_with_special_characters_is_sent_as_literal() -> None:
    cases: list[str] = ["pässwort", "two\r\na1 LOGOUT"]
    for case in each_case(cases):
        with case as secret:
            remote = make_three_message_server()
            async with open_signed_in_session(remote, secret=secret):
                pass
            (login,) = [line for line in remote.received_lines if b"LOGIN" in line]
            raw = secret.encode()
            assert login.endswith(b'"anna" {%d}\r\n%s\r\n' % (len(raw), raw))


async def test_capabilities_after_login_replace_earlier_ones() -> None:
    response = b"<tag> OK [CAPABILITY IMAP4rev1 IDLE] in\r\n"
    async with open_signed_in_session(
        make_three_message_server(faults={"LOGIN": response})
    ) as session:
        assert session.remote.capabilities == {"IMAP4REV1", "IDLE"}


async def test_refused_extension_is_not_used() -> None:
    faults = {"ENABLE": b"<tag> BAD never heard of\r\n"}
    async with open_signed_in_session(make_three_message_server(faults=faults)) as session:
        assert len(await fetch_inbox_messages(session, 3)) == 1


async def test_all_flags_are_fetched_if_changedsince_is_refused() -> None:
    remote = make_three_message_server(faults={"UID FETCH": b"<tag> BAD what is CHANGEDSINCE\r\n"})
    async with open_signed_in_session(remote) as session:
        mailbox = await open_inbox(session)
        with pytest.raises(RemoteFailure):
            await session.run_in_thread(mailbox.fetch_changed_or_all_flags, 5)
        del remote.faults["UID FETCH"]
        assert set(await session.run_in_thread(mailbox.fetch_changed_or_all_flags, 5)) == {
            "3",
            "5",
            "8",
        }
    assert sum(b"CHANGEDSINCE" in line for line in remote.received_lines) == 2


STAGES = {
    "GREETING": ConnectorStage.GREETING,
    "CAPABILITY": ConnectorStage.GREETING,
    "LOGIN": ConnectorStage.LOGIN,
    "ENABLE": ConnectorStage.LOGIN,
    "SELECT": ConnectorStage.FETCH,
    "LIST": ConnectorStage.LIST,
    "LSUB": ConnectorStage.LIST,
    "UID SEARCH": ConnectorStage.FETCH,
    "UID FETCH": ConnectorStage.FETCH,
    "IDLE": ConnectorStage.IDLE,
    "DONE": ConnectorStage.IDLE,
    "UID STORE": ConnectorStage.DELETE,
    "UID EXPUNGE": ConnectorStage.DELETE,
}
FAULTS = {
    "hangs up": HANG_UP_FAULT,
    "bye": RemoteFault(b"* BYE be\xff gone\r\n", HANGS_UP),
    "bye, and stays": RemoteFault(b"* BYE gone\r\n"),
    "half a line": RemoteFault(b"* OK ha", HANGS_UP),
    "garbage": RemoteFault(b"\x16\x03\x01garbage\r\n", HANGS_UP),
    "garbage in parentheses": RemoteFault(b"* 1 FETCH (((\r\n* LIST (((\r\n* LSUB )\r\n", HANGS_UP),
    "another's tag": RemoteFault(b"XYZ OK\r\n", HANGS_UP),
    "a literal in parts": RemoteFault(b"* 1 FETCH (UID 3 BODY[] {100}\r\nFrom:", HANGS_UP),
    "4 GB": RemoteFault(b"* 1 FETCH (UID 3 BODY[] {4294967296}\r\nFrom:", HANGS_UP),
    "no number": RemoteFault(b"* 1 FETCH (UID 3 BODY[] {" + b"9" * 5000 + b"}\r\n", HANGS_UP),
}


async def test_fault_at_each_step_names_its_stage() -> None:
    for case in each_case(product(STAGES, FAULTS)):
        with case as (step, fault):
            problem = await catch_remote_failure(
                make_three_message_server(faults={step: FAULTS[fault]}), timeout=SILENCE_TIMEOUT
            )
            assert problem.stage is STAGES[step]
            assert "did not respond within" not in problem.message
            if fault == "bye":
                assert problem.message == "The server closed the connection. be\ufffd gone"
            assert not problem.is_permanent


async def test_silence_at_each_step_names_its_stage() -> None:
    problems = await asyncio.gather(  # at the same time, since each takes as long as the timeout
        *(
            catch_remote_failure(
                make_three_message_server(faults={step: SILENT_FAULT}),
                timeout=SHORT_SILENCE_TIMEOUT,
            )
            for step in STAGES
        )
    )
    for case in each_case(zip(STAGES, problems, strict=True)):
        with case as (step, problem):
            assert problem.stage is STAGES[step]
            assert problem.message == SILENCE_MESSAGE
            assert not problem.is_permanent


async def test_refusal_at_each_step_returns_the_server_text() -> None:
    cases: list[str] = ["SELECT", "LIST", "LSUB", "UID SEARCH", "UID STORE", "UID EXPUNGE", "IDLE"]
    for case in each_case(cases):
        with case as step:
            problem = await catch_remote_failure(
                make_three_message_server(faults={step: b"<tag> NO not today\r\n"})
            )
            assert (problem.stage, problem.message) == (STAGES[step], "not today")


async def test_closed_port_fails_in_connect_stage() -> None:
    remote = make_three_message_server()
    async with run_remote_server(remote):
        pass
    connection = RemoteConnection(remote_server_settings(remote), ["127.0.0.1"])
    with pytest.raises(RemoteFailure, match=r"^Connection refused\.$") as problem:
        await asyncio.to_thread(ImapSession(connection, MAX_MESSAGE_SIZE).connect_and_sign_in)
    assert problem.value.stage is ConnectorStage.CONNECT


async def test_missing_starttls_fails_before_login() -> None:
    remote = make_three_message_server()
    problem = await catch_remote_failure(remote, security=ConnectorSecurity.STARTTLS)
    assert (problem.stage, problem.message) == (
        ConnectorStage.TLS,
        "The server does not support STARTTLS.",
    )
    assert not any(b"LOGIN" in line for line in remote.received_lines)


async def test_refused_starttls_fails_before_login() -> None:
    remote = make_three_message_server(capabilities=b"IMAP4rev1 STARTTLS")
    remote.faults["STARTTLS"] = b"<tag> NO not now\r\n"
    problem = await catch_remote_failure(remote, security=ConnectorSecurity.STARTTLS)
    assert (problem.stage, problem.message) == (ConnectorStage.TLS, "not now")
    assert not any(b"LOGIN" in line for line in remote.received_lines)


async def test_responses_before_tls_are_discarded() -> None:
    cases: list[bytes] = [b"", b"* CAPABILITY IMAP4rev1 LOGINDISABLED EVIL\r\n"]
    for case in each_case(cases):
        with case as early_response:
            remote = make_three_message_server(capabilities=b"IMAP4rev1 STARTTLS")
            injected = b"* CAPABILITY IMAP4rev1 EVIL\r\n* LIST () NIL evil\r\n"
            remote.faults["STARTTLS"] = early_response + b"<tag> OK go on\r\n" + injected
            async with open_signed_in_session(
                remote, security=ConnectorSecurity.STARTTLS
            ) as session:
                assert session.remote.capabilities == {"IMAP4REV1", "STARTTLS"}
                assert [
                    mailbox.raw_name
                    for mailbox in await session.run_in_thread(session.remote.list_mailboxes)
                ] == [b"INBOX"]


async def test_preauth_greeting_fails() -> None:
    for case in each_case(list(ConnectorSecurity)):
        with case as security:
            remote = make_three_message_server(faults={"GREETING": b"* PREAUTH come in\r\n"})
            problem = await catch_remote_failure(remote, security=security)
            assert (problem.stage, "unauthenticated sessions (PREAUTH)" in problem.message) == (
                ConnectorStage.GREETING,
                True,
            )


async def test_certificate_for_another_host_fails() -> None:
    problem = await catch_remote_failure(
        make_three_message_server(), security=ConnectorSecurity.TLS, host="mx2.example.net"
    )
    assert problem.stage is ConnectorStage.TLS
    assert "The TLS certificate is invalid: Hostname mismatch" in problem.message


async def test_self_signed_certificate_fails() -> None:
    problem = await catch_remote_failure(
        make_three_message_server(), security=ConnectorSecurity.TLS, trusts_certificate=False
    )
    assert problem.stage is ConnectorStage.TLS
    assert "The TLS certificate is invalid: self-signed certificate" in problem.message


async def test_server_without_tls_fails_in_tls_stage() -> None:
    remote = make_three_message_server()
    async with run_remote_server(remote):
        session = ImapSession(
            RemoteConnection(
                remote_server_settings(remote, security=ConnectorSecurity.TLS), ["127.0.0.1"]
            ),
            MAX_MESSAGE_SIZE,
        )
        with pytest.raises(RemoteFailure) as problem:
            await asyncio.to_thread(session.connect_and_sign_in)
        session.close()
    assert problem.value.stage is ConnectorStage.TLS
    assert problem.value.message == "The TLS handshake failed: wrong version number."


async def test_login_refusal_hides_the_password() -> None:
    responses = [
        REMOTE_PASSWORD.encode(),
        b'wrong: LOGIN "anna" "sesame \\"\\\\ opens"',
        b'wrong: SESAME  "\\\t opens',
        b"you said c2VzYW1lICJcIG9wZW5z",
        b"x" * 290 + b" " + REMOTE_PASSWORD.encode(),
    ]
    for case in each_case(product(("LOGIN", "PLAIN", "XOAUTH2"), responses)):
        with case as (mechanism, response):
            command = "LOGIN" if mechanism == "LOGIN" else "AUTHENTICATE"
            remote = make_three_message_server(
                faults={command: b"<tag> NO [AUTHENTICATIONFAILED] " + response + b"\r\n"}
            )
            problem = await catch_remote_failure(remote, mechanism=mechanism)
            assert problem.stage is ConnectorStage.LOGIN
            assert problem.is_permanent
            message_text = problem.message.lower()
            for word in ("sesam", "opens", "c2vzyw", "agfubm"):
                assert word not in message_text


async def test_refusal_hides_the_sasl_response() -> None:
    response = b"<tag> NO you said AGFubmEAc2VzYW1lICJcIG9wZW5z\r\n"
    problem = await catch_remote_failure(
        make_three_message_server(faults={"AUTHENTICATE": response}), mechanism="PLAIN"
    )
    assert problem.message == "you said …"


async def test_later_refusal_hides_the_password() -> None:
    remote = make_three_message_server(
        faults={"SELECT": b"<tag> NO not with " + REMOTE_PASSWORD.encode() + b"\r\n"}
    )
    assert (await catch_remote_failure(remote)).message == "not with …"


async def test_unavailable_login_is_not_permanent() -> None:
    remote = make_three_message_server(faults={"LOGIN": b"<tag> NO [UNAVAILABLE] later\r\n"})
    problem = await catch_remote_failure(remote)
    assert problem.stage is ConnectorStage.LOGIN
    assert not problem.is_permanent


async def test_logindisabled_fails_without_sending_the_password() -> None:
    remote = make_three_message_server(capabilities=b"IMAP4rev1 LOGINDISABLED")
    problem = await catch_remote_failure(remote)
    assert (problem.stage, "no supported authentication mechanism" in problem.message) == (
        ConnectorStage.LOGIN,
        True,
    )
    assert not any(b"LOGIN" in line for line in remote.received_lines)


async def test_endless_challenges_fail() -> None:
    remote = make_three_message_server(faults={"AUTHENTICATE": RemoteFault(b"+ more\r\n" * 100)})
    problem = await catch_remote_failure(remote, mechanism="XOAUTH2")
    assert (
        problem.stage,
        "The server sent too many authentication challenges" in problem.message,
    ) == (ConnectorStage.LOGIN, True)


ENDLESS_RESPONSES = {
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


async def test_endless_response_fails_with_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imap_protocol, "MAX_UNREQUESTED_BYTES", 1 << 14)
    monkeypatch.setattr(imap_protocol, "MAX_LINE_SIZE", 1 << 14)
    monkeypatch.setattr(imap_client, "MAX_LINE_SIZE", 1 << 14)
    monkeypatch.setattr(imap_client, "MAX_MAILBOXES", 500)
    monkeypatch.setattr(imap_client, "MAX_SEARCH_LINE", 1 << 16)

    async def use_all_commands(session: ThreadedSession) -> None:
        await session.run_in_thread(session.remote.list_mailboxes)
        mailbox = await open_inbox(session)
        await session.run_in_thread(mailbox.list_message_ids)
        await fetch_inbox_messages(session, 3, 5)
        await session.run_in_thread(mailbox.wait_for_changes, 60)

    steps = ("LOGIN", "LIST", "UID SEARCH", "UID FETCH", "IDLE")
    for case in each_case(product(steps, ENDLESS_RESPONSES)):
        with case as (step, response_kind):
            line_prefix = b"* SEARCH " if step == "UID SEARCH" else b"* OK "
            prefix = line_prefix if response_kind.startswith("a line") else b""
            fault = RemoteFault(prefix + ENDLESS_RESPONSES[response_kind], repeats_forever=True)
            remote = make_three_message_server(faults={step: fault})
            tracemalloc.start()
            try:
                await catch_remote_failure(remote, use_all_commands, max_message_size=1 << 14)
                assert tracemalloc.get_traced_memory()[1] < 5 << 20
            finally:
                tracemalloc.stop()


ABORT_COMMANDS = {
    "GREETING": b"",
    "LOGIN": b"LOGIN",
    "UID SEARCH": b"SEARCH",
    "UID FETCH": b"FETCH",
}


async def test_session_is_aborted_from_another_thread() -> None:
    steps = (*ABORT_COMMANDS, "IDLE", "TLS")
    for case in each_case(product(steps, (ConnectorSecurity.NONE, ConnectorSecurity.TLS))):
        with case as (step, security):
            await abort_session_at(step, security)


async def abort_session_at(step: str, security: ConnectorSecurity) -> None:
    """Abort a session that waits for a response, and check that it fails at once."""
    remote = make_three_message_server(
        faults={step: SILENT_FAULT} if step in ABORT_COMMANDS else {}
    )
    async with run_remote_server(remote, tls=security is ConnectorSecurity.TLS and step != "TLS"):
        if step == "TLS":
            remote.faults["GREETING"] = SILENT_FAULT  # the TLS handshake gets no answer
        settings = remote_server_settings(remote, security=security, timeout=600)
        connection = RemoteConnection(settings, ["127.0.0.1"], trusting_tls_context())
        session = ImapSession(connection, MAX_MESSAGE_SIZE)
        fetched = threading.Event()

        def run_session() -> None:
            try:
                session.connect_and_sign_in()
                session.open_mailbox(INBOX, writable=False)
                session.list_message_ids()
                list(session.fetch_messages([make_remote_message(3)]))
                fetched.set()
                session.wait_for_changes(600)
            finally:
                session.close()

        thread_task = asyncio.create_task(asyncio.to_thread(run_session))
        if ABORT_COMMANDS.get(step):
            await remote.wait_for_command(ABORT_COMMANDS[step])
        elif step == "IDLE":
            await remote.wait_for_command(b"IDLE")
        else:
            await remote.wait_until_connected()
        connection.abort()
        with pytest.raises(RemoteFailure, match=r"^The run was cancelled\.$"):
            await asyncio.wait_for(thread_task, HANG_SECONDS)
        assert fetched.is_set() is (step == "IDLE")


async def test_throttled_fetch_is_aborted() -> None:
    remote = FakeImapServer({3: FakeRemoteMessage(b"x" * 50_000)})
    async with open_signed_in_session(remote, bytes_per_second=10_000, timeout=60) as session:
        await open_inbox(session)
        fetched = asyncio.create_task(fetch_inbox_messages(session, 3))
        await remote.wait_for_command(b"FETCH")
        session.connection.abort()
        with pytest.raises(RemoteFailure, match=r"^The run was cancelled\.$"):
            await asyncio.wait_for(fetched, HANG_SECONDS)


async def test_fetch_keeps_the_configured_rate() -> None:
    remote = FakeImapServer({3: FakeRemoteMessage(b"x" * 50_000)})
    async with open_signed_in_session(remote, bytes_per_second=50_000, timeout=60) as session:
        await open_inbox(session)
        began = time.monotonic()
        assert await fetch_inbox_messages(session, 3) == {"3": b"x" * 50_000}
        assert time.monotonic() - began > 0.8  # a busy machine takes longer


async def test_closed_message_stream_ends_the_session() -> None:
    remote = FakeImapServer(
        {uid: FakeRemoteMessage(b"x" * MAX_MESSAGE_SIZE) for uid in range(1, 90)}
    )
    async with open_signed_in_session(remote) as session:
        await open_inbox(session)
        stream = session.stream_messages([make_remote_message(uid) for uid in range(1, 90)])
        async for _ in stream:
            break
        await stream.aclose()
        with pytest.raises(RemoteFailure, match=r"^The run was cancelled\.$"):
            await fetch_inbox_messages(session, 1)
