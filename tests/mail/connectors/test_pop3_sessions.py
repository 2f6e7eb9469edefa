"""Sessions with remote POP3 servers, including faulty and hostile ones."""

import asyncio
import time
import tracemalloc
from itertools import product
from typing import Any

import pytest

from mail.connectors import pop3_client
from mail.connectors.pop3_client import INBOX, Pop3Session
from mail.connectors.remote_server import ConnectorStage, RemoteFailure
from mail.connectors.session_thread import ThreadedSession
from mail.connectors.socket_stream import RemoteConnection
from models.connectors import ConnectorSecurity
from tests.support.case_loop import each_case
from tests.support.mail_servers.imap_and_pop3_servers import (
    HANG_UP_FAULT,
    HANGS_UP,
    MAX_MESSAGE_SIZE,
    MESSAGE,
    REMOTE_PASSWORD,
    SHORT_SILENCE_TIMEOUT,
    SILENCE_MESSAGE,
    SILENCE_TIMEOUT,
    SILENT_FAULT,
    FakePop3Server,
    FakeRemoteMessage,
    RemoteFault,
    catch_remote_failure,
    make_remote_message,
    open_signed_in_session,
    remote_server_settings,
    run_remote_server,
)
from tests.support.mail_servers.smtp_and_dns_servers import trusting_tls_context
from tests.support.time_limits import HANG_SECONDS


def make_two_message_server(**settings: Any) -> FakePop3Server:
    return FakePop3Server(
        {1: FakeRemoteMessage(), 2: FakeRemoteMessage(MESSAGE + b"..\r\n.dots\r\n")}, **settings
    )


async def open_and_list_ids(session: ThreadedSession) -> list[str]:
    """Open the inbox and return the message IDs."""
    await session.run_in_thread(lambda: session.remote.open_mailbox(INBOX, writable=True))
    return await session.run_in_thread(session.remote.list_message_ids)


async def fetch_messages_by_id(session: ThreadedSession, *message_ids: str) -> dict[str, bytes]:
    messages = [make_remote_message(message_id) for message_id in message_ids]
    return {
        message.message_id: raw
        async for batch in session.stream_messages(messages)
        for message, raw in batch
    }


async def open_fetch_and_delete(session: ThreadedSession) -> None:
    message_ids = await open_and_list_ids(session)
    await fetch_messages_by_id(session, *message_ids)
    await session.run_in_thread(session.remote.delete_messages, message_ids[:1])


async def catch_pop3_failure(remote: FakePop3Server, **settings: Any) -> RemoteFailure:
    return await catch_remote_failure(remote, open_fetch_and_delete, **settings)


async def test_messages_are_listed_and_fetched() -> None:
    for case in each_case(list(ConnectorSecurity)):
        with case as security:
            remote = make_two_message_server()
            async with open_signed_in_session(remote, security=security) as session:
                assert await session.run_in_thread(session.remote.list_mailboxes) == [INBOX]
                assert await session.run_in_thread(session.remote.list_subscribed) == {b"INBOX"}
                assert await open_and_list_ids(session) == ["uidl-1", "uidl-2"]
                metadata = await session.run_in_thread(
                    session.remote.fetch_metadata, ["uidl-2", "gone"]
                )
                assert [(message.message_id, message.size) for message in metadata] == [
                    ("uidl-2", len(remote.messages[2].raw))
                ]
                assert await fetch_messages_by_id(session, "uidl-1", "uidl-2", "gone") == {
                    "uidl-1": MESSAGE,
                    "uidl-2": MESSAGE + b"..\r\n.dots\r\n",
                }
            assert remote.received_lines[-1] == b"QUIT\r\n"
            assert len(remote.messages) == 2


async def test_sign_in_with_each_mechanism() -> None:
    cases: list[tuple[str, bytes, bytes]] = [
        ("PLAIN", b"USER\r\n", b"PASS " + REMOTE_PASSWORD.encode() + b"\r\n"),
        ("LOGIN", b"SASL PLAIN\r\n", b"PASS " + REMOTE_PASSWORD.encode() + b"\r\n"),
        ("PLAIN", b"SASL LOGIN PLAIN\r\n", b"AGFubmEAc2VzYW1lICJcIG9wZW5z\r\n"),
        ("XOAUTH2", b"", b"dXNlcj1hbm5hAWF1dGg9QmVhcmVyIHNlc2FtZSAiXCBvcGVucwEB\r\n"),
        ("OAUTHBEARER", b"", b"bixhPWFubmEsAWF1dGg9QmVhcmVyIHNlc2FtZSAiXCBvcGVucwEB\r\n"),
        ("CRAM_MD5", b"", b"YW5uYSA"),
    ]
    for case in each_case(cases):
        with case as (mechanism, capabilities, sent):
            remote = make_two_message_server(capabilities=capabilities)
            async with open_signed_in_session(remote, mechanism=mechanism):
                pass
            assert any(line.startswith(sent) for line in remote.received_lines), (
                remote.received_lines
            )


async def test_server_without_capa_works() -> None:
    async with open_signed_in_session(
        make_two_message_server(faults={"CAPA": b"-ERR what?\r\n"})
    ) as session:
        assert session.remote.capabilities == frozenset()
        assert len(await open_and_list_ids(session)) == 2


async def test_any_message_bytes_are_fetched() -> None:
    cases: list[bytes] = [
        b"\r\n",
        b".\r\n",
        b"..\r\n...\r\n",
        b"\0\xff\r\n",
        b"x" * 90_000 + b"\r\n",
        b"a\r\r\n",
        b"bare\nlines\n.\nand more\n..\r\n",
        b"\r\n" * 40_000,
    ]
    for case in each_case(cases):
        with case as raw:
            async with open_signed_in_session(
                FakePop3Server({1: FakeRemoteMessage(raw), 2: FakeRemoteMessage()})
            ) as session:
                assert await fetch_messages_by_id(session, *await open_and_list_ids(session)) == {
                    "uidl-1": raw,
                    "uidl-2": MESSAGE,
                }


STAGES = {
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
FAULTS = {
    "hangs up": HANG_UP_FAULT,
    "half a line": RemoteFault(b"+OK ha", HANGS_UP),
    "garbage": RemoteFault(b"\x16\x03\x01garbage\r\n", HANGS_UP),
    "an empty line": RemoteFault(b"\r\n", HANGS_UP),
}


async def test_fault_at_each_step_names_its_stage() -> None:
    for case in each_case(product(STAGES, FAULTS)):
        with case as (step, fault):
            problem = await catch_pop3_failure(
                make_two_message_server(faults={step: FAULTS[fault]}), timeout=SILENCE_TIMEOUT
            )
            assert problem.stage is STAGES[step]
            assert "did not respond within" not in problem.message
            assert not problem.is_permanent


async def test_silence_at_each_step_names_its_stage() -> None:
    servers = [make_two_message_server(faults={step: SILENT_FAULT}) for step in STAGES]
    problems = await asyncio.gather(  # at the same time, since each takes as long as the timeout
        *(catch_pop3_failure(server, timeout=SHORT_SILENCE_TIMEOUT) for server in servers)
    )
    for case in each_case(zip(STAGES, problems, strict=True)):
        with case as (step, problem):
            assert problem.stage is STAGES[step]
            assert problem.message == SILENCE_MESSAGE
            assert not problem.is_permanent


async def test_refusal_at_each_step_returns_the_server_text() -> None:
    cases: list[str] = ["GREETING", "USER", "PASS", "LIST", "UIDL", "DELE", "QUIT"]
    for case in each_case(cases):
        with case as step:
            problem = await catch_pop3_failure(
                make_two_message_server(faults={step: b"-ERR not today\r\n"})
            )
            assert problem.stage is STAGES[step]
            assert problem.message.endswith("not today")


async def test_truncated_message_fails() -> None:
    cases: list[RemoteFault] = [SILENT_FAULT, HANG_UP_FAULT]
    for case in each_case(cases):
        with case as fault:
            problem = await catch_pop3_failure(
                make_two_message_server(
                    faults={"RETR": RemoteFault(b"+OK\r\nFrom: a\r\n\r\nTe", fault.next_step)}
                ),
                timeout=SHORT_SILENCE_TIMEOUT,
            )
            assert problem.stage is ConnectorStage.FETCH


async def test_truncated_uidl_response_fails() -> None:
    problem = await catch_pop3_failure(
        make_two_message_server(faults={"UIDL": RemoteFault(b"+OK\r\n1 a\r\n", HANGS_UP)})
    )
    assert problem.stage is ConnectorStage.LIST


async def test_refused_stls_fails_before_login() -> None:
    cases: list[bytes] = [b"-ERR no TLS here\r\n", b"hello\r\n"]
    for case in each_case(cases):
        with case as response:
            remote = make_two_message_server(faults={"STLS": response})
            problem = await catch_pop3_failure(remote, security=ConnectorSecurity.STARTTLS)
            assert problem.stage is ConnectorStage.TLS
            assert remote.received_lines == [b"STLS\r\n"]


async def test_responses_before_tls_are_discarded() -> None:
    injected = b"+OK\r\nEVIL\r\n.\r\n+OK in\r\n+OK in\r\n"
    remote = make_two_message_server(faults={"STLS": b"+OK go on\r\n" + injected})
    async with open_signed_in_session(remote, security=ConnectorSecurity.STARTTLS) as session:
        assert session.remote.capabilities == {"TOP", "UIDL", "USER", "STLS"}
        assert len(await open_and_list_ids(session)) == 2


async def test_invalid_certificate_fails() -> None:
    cases: list[ConnectorSecurity] = [ConnectorSecurity.TLS, ConnectorSecurity.STARTTLS]
    for case in each_case(cases):
        with case as security:
            problem = await catch_pop3_failure(
                make_two_message_server(), security=security, host="mx2.example.net"
            )
            assert problem.stage is ConnectorStage.TLS
            assert "The TLS certificate is invalid: Hostname mismatch" in problem.message
            problem = await catch_pop3_failure(
                make_two_message_server(), security=security, trusts_certificate=False
            )
            assert problem.stage is ConnectorStage.TLS
            assert "The TLS certificate is invalid: self-signed" in problem.message


async def test_login_refusal_hides_the_password() -> None:
    cases: list[str] = ["USER", "PASS"]
    for case in each_case(cases):
        with case as step:
            remote = make_two_message_server(
                faults={step: b"-ERR [AUTH] not " + REMOTE_PASSWORD.upper().encode() + b"\r\n"}
            )
            problem = await catch_pop3_failure(remote)
            assert (problem.stage, problem.message) == (ConnectorStage.LOGIN, "[AUTH] not …")
            assert problem.is_permanent


async def test_token_refused_by_a_challenge_is_permanent() -> None:
    remote = make_two_message_server(
        faults={"SASL": b"+ eyJzdGF0dXMiOiI0MDAifQ==\r\n", "": b"-ERR bad token\r\n"}
    )
    problem = await catch_pop3_failure(remote, mechanism="XOAUTH2")
    assert (problem.stage, problem.message) == (ConnectorStage.LOGIN, "bad token")
    assert problem.is_permanent


async def test_temporary_login_refusal_is_not_permanent() -> None:
    cases: list[bytes] = [b"[SYS/TEMP] ill", b"[IN-USE] busy", b"[LOGIN-DELAY] wait"]
    for case in each_case(cases):
        with case as response:
            problem = await catch_pop3_failure(
                make_two_message_server(faults={"PASS": b"-ERR " + response + b"\r\n"})
            )
            assert problem.stage is ConnectorStage.LOGIN
            assert not problem.is_permanent


async def test_password_with_line_break_is_not_sent() -> None:
    remote = make_two_message_server()
    problem = await catch_pop3_failure(remote, secret="one\r\nDELE 1")  # noqa: S106 - fake password
    assert problem.stage is ConnectorStage.LOGIN
    assert not any(b"DELE" in line for line in remote.received_lines)


async def test_server_without_uidl_fails() -> None:
    problem = await catch_pop3_failure(make_two_message_server(faults={"UIDL": b"-ERR what?\r\n"}))
    assert problem.stage is ConnectorStage.LIST
    assert problem.message == "The server does not support UIDL: what?"


async def test_repeated_uidl_gets_distinct_message_ids() -> None:
    remote = FakePop3Server({n: FakeRemoteMessage(b"%d\r\n" % n, uidl=b"same") for n in (1, 2, 3)})
    async with open_signed_in_session(remote) as session:
        message_ids = await open_and_list_ids(session)
        assert message_ids[0] == "same"
        assert len(set(message_ids)) == 3
        assert sorted((await fetch_messages_by_id(session, *message_ids)).values()) == [
            b"1\r\n",
            b"2\r\n",
            b"3\r\n",
        ]
        assert await open_and_list_ids(session) == message_ids
        await session.run_in_thread(session.remote.delete_messages, message_ids[1:2])
    assert set(remote.messages) == {1, 3}


async def test_unusual_uidls_become_short_printable_message_ids() -> None:
    uidls = [b"x" * 10_000, b"x" * 9_999 + b"y", b"a  b", b"a b", b"\xff\xfe", b"\xff\xfd", b"1:2",
           b"!~", b"\0", b"x" * 70, b"x" * 71]  # fmt: skip
    remote = FakePop3Server(
        {n: FakeRemoteMessage(b"%d\r\n" % n, uidl=uidl) for n, uidl in enumerate(uidls, 1)}
    )
    async with open_signed_in_session(remote) as session:
        message_ids = await open_and_list_ids(session)
        assert len(set(message_ids)) == len(uidls)
        assert all(
            message_id.isascii() and message_id.isprintable() and len(message_id) <= 70
            for message_id in message_ids
        )
        assert not any(":" in message_id or " " in message_id for message_id in message_ids)
        assert (message_ids[7], message_ids[9]) == ("!~", "x" * 70)
        assert len(await fetch_messages_by_id(session, *message_ids)) == len(uidls)
        assert await open_and_list_ids(session) == message_ids


async def test_invalid_uidl_response_fails() -> None:
    cases: list[bytes] = [
        b"1\r\n",
        b"1 \r\n",
        b"x a\r\n",
        b"-1 a\r\n",
        b"1 a\r\n",
        b"",
        b"9" * 5000 + b" a\r\n",
    ]
    for case in each_case(cases):
        with case as response:
            problem = await catch_pop3_failure(
                make_two_message_server(faults={"UIDL": b"+OK\r\n" + response + b".\r\n"})
            )
            assert problem.stage is ConnectorStage.LIST


async def test_invalid_list_response_fails() -> None:
    cases: list[bytes] = [b"1\r\n", b"x 5\r\n", b"1 x\r\n", b"\r\n", b"0 5\r\n", b"1 -5\r\n"]
    for case in each_case(cases):
        with case as response:
            problem = await catch_pop3_failure(
                make_two_message_server(faults={"LIST": b"+OK\r\n" + response + b"\r\n.\r\n"})
            )
            assert (
                problem.stage,
                "message list of the server can't be parsed" in problem.message,
            ) == (
                ConnectorStage.LIST,
                True,
            )


async def test_wrong_size_does_not_change_the_message() -> None:
    raw = b"x" * 1000 + b"\r\n"
    messages = {1: FakeRemoteMessage(raw, size=b"1"), 2: FakeRemoteMessage(raw, size=b"99999")}
    async with open_signed_in_session(FakePop3Server(messages)) as session:
        assert set(
            (await fetch_messages_by_id(session, *await open_and_list_ids(session))).values()
        ) == {raw}


async def test_too_large_message_is_skipped() -> None:
    large = (b"x" * 998 + b"\r\n") * 150
    async with open_signed_in_session(
        FakePop3Server({1: FakeRemoteMessage(large, size=b"5"), 2: FakeRemoteMessage()})
    ) as session:
        assert await fetch_messages_by_id(session, *await open_and_list_ids(session)) == {
            "uidl-2": MESSAGE
        }


async def test_refused_message_is_skipped() -> None:
    remote = make_two_message_server()
    async with open_signed_in_session(remote) as session:
        message_ids = await open_and_list_ids(session)
        remote.faults["RETR"] = b"-ERR it is broken\r\n"
        assert await fetch_messages_by_id(session, *message_ids) == {}
        del remote.faults["RETR"]
        assert len(await fetch_messages_by_id(session, *message_ids)) == 2


ENDLESS_RESPONSES = {
    "a line": b"x" * 65536,
    "lines": b"line\r\n" * 10_000,
    "empty lines": b"\r\n" * 30_000,
    "questions": b"+ more\r\n" * 8_000,
    "messages": b"1 2\r\n" * 10_000,
}


async def test_endless_response_fails_with_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pop3_client, "MAX_LINE_SIZE", 1 << 14)
    monkeypatch.setattr(pop3_client, "MAX_MESSAGES", 1_000)
    steps = ("GREETING", "CAPA", "LIST", "UIDL", "RETR")
    for case in each_case(product(steps, ENDLESS_RESPONSES)):
        with case as (step, response_kind):
            response = b"+OK " + ENDLESS_RESPONSES[response_kind]
            remote = make_two_message_server(
                faults={step: RemoteFault(response, repeats_forever=True)}
            )
            tracemalloc.start()
            try:
                await catch_pop3_failure(remote, max_message_size=1 << 14)
                assert tracemalloc.get_traced_memory()[1] < 5 << 20
            finally:
                tracemalloc.stop()


async def test_messages_are_deleted_at_quit() -> None:
    remote = make_two_message_server()
    async with open_signed_in_session(remote) as session:
        await open_and_list_ids(session)
        await session.run_in_thread(session.remote.delete_messages, ["uidl-2", "gone"])
        assert len(remote.messages) == 2
    assert set(remote.messages) == {1}


async def test_failed_run_deletes_nothing() -> None:
    remote = make_two_message_server()

    async def run() -> None:
        async with open_signed_in_session(remote) as session:
            await session.run_in_thread(
                session.remote.delete_messages, await open_and_list_ids(session)
            )
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run()
    assert len(remote.messages) == 2


ABORT_COMMANDS = {"GREETING": b"", "PASS": b"PASS", "RETR": b"RETR"}


async def test_session_is_aborted_from_another_thread() -> None:
    securities = (ConnectorSecurity.NONE, ConnectorSecurity.TLS)
    for case in each_case(product(ABORT_COMMANDS, securities)):
        with case as (step, security):
            await abort_session_at(step, security)


async def abort_session_at(step: str, security: ConnectorSecurity) -> None:
    """Abort a session that waits for a response, and check that it fails at once."""
    remote = make_two_message_server(faults={step: SILENT_FAULT})
    async with run_remote_server(remote, tls=security is ConnectorSecurity.TLS):
        connection = RemoteConnection(
            remote_server_settings(remote, security=security, timeout=600),
            ["127.0.0.1"],
            trusting_tls_context(),
        )
        session = Pop3Session(connection, MAX_MESSAGE_SIZE)

        def run_session() -> None:
            try:
                session.connect_and_sign_in()
                session.open_mailbox(INBOX, writable=False)
                list(
                    session.fetch_messages(
                        [
                            make_remote_message(message_id)
                            for message_id in session.list_message_ids()
                        ]
                    )
                )
            finally:
                session.close()

        thread_task = asyncio.create_task(asyncio.to_thread(run_session))
        await (
            remote.wait_for_command(ABORT_COMMANDS[step])
            if ABORT_COMMANDS[step]
            else remote.wait_until_connected()
        )
        connection.abort()
        with pytest.raises(RemoteFailure, match=r"^The run was cancelled\.$"):
            await asyncio.wait_for(thread_task, HANG_SECONDS)


async def test_fetch_keeps_the_configured_rate() -> None:
    raw = (b"x" * 998 + b"\r\n") * 50
    async with open_signed_in_session(
        FakePop3Server({1: FakeRemoteMessage(raw)}), bytes_per_second=50_000, timeout=60
    ) as session:
        message_ids = await open_and_list_ids(session)
        began = time.monotonic()
        assert await fetch_messages_by_id(session, *message_ids) == {"uidl-1": raw}
        assert time.monotonic() - began > 0.8  # a busy machine takes longer
