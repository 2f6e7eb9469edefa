"""Recipient addresses that can be parsed in two ways."""

import re
from pathlib import Path

import pytest

from tests.support.mail_servers.memory_listeners import LISTENER_KINDS, run_memory_listener

UNAMBIGUOUS_PATH = re.compile(r"<[\w.%!*';|/\u202e-]+@[\w.-]+>")
AMBIGUOUS_PATHS = [
    b"<ada@example.org\r>",
    b"<ada\r@example.org>",
    b"<ada@example.org\0>",
    b"<\0ada@example.org>",
    b"<ada\x1b[31m@example.org>",
    b"<ada\x7f@example.org>",
    b"<\xff@example.org>",
    b"<ada@\xed\xa0\x80>",
    "<ada@example.org\u2028>".encode(),
    "<ada@example.org\x85>".encode(),
    "<\u202eada@example.org>".encode(),
    "<ada\uff20example.org>".encode(),
    "<ada@ex\u0430mple.org>".encode(),
    b"<ada%example.net@example.org>",
    b"<example.net!ada@example.org>",
    b"<ada@example.org@example.net>",
    b"<ada@example.net@example.org>",
    b"<@example.org>",
    b"<ada@>",
    b"<@>",
    b"<>",
    b"< >",
    b"<<ada@example.org>>",
    b"<ada@example.org>>",
    b"<ada@example.org",
    b"ada@example.org",
    b"<ada@example.org,bob@example.org>",
    b"<ada@example.org;bob@example.org>",
    b"<ada@example.org> <bob@example.org>",
    b"<ada(comment)@example.org>",
    b"<(comment)ada@example.org>",
    b"<ada@example.org(comment)>",
    b"<ada @example.org>",
    b'<"ada@example.org>',
    b'<"ada"bob"@example.org>',
    b'<"ada\\">@example.org>',
    b'<"ada\n"@example.org>',
    b"<ada@[127.0.0.1]>",
    b"<ada@[IPv6:::1]>",
    b"<ada@example.org.>",
    b"<ada@example..org>",
    b"<ada@-example.org>",
    b"<*@example.org>",
    b"<%@example.org>",
    b"<ad_@example.org>",
    b"<ada';--@example.org>",
    b"<ada@example.org> NOTIFY=SOMETIMES",
    b"<ada@example.org> ORCPT=bob@example.org",
    b"<|/bin/sh@example.org>",
    b"</etc/passwd@example.org>",
    b"<" + b"a" * 1_000 + b"@example.org>",
    b"<ada@" + b"a." * 900 + b"org>",
]


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_ambiguous_recipient_is_refused(tmp_path: Path, kind: str) -> None:
    """Submission accepts only those that are valid addresses on other servers."""
    async with run_memory_listener(kind, tmp_path, max_mistakes=1_000) as server:
        client = await server.open_sending_session()
        for address in AMBIGUOUS_PATHS:
            await client.run_command("RSET")
            mail_reply = await client.run_command("MAIL FROM:<carol@example.net> SMTPUTF8")
            assert mail_reply.startswith("250 2.1.0")
            reply = await client.run_command(b"RCPT TO:" + address)
            if b"\n" in address:  # the session ends, since the rest can belong to the same line
                assert reply.startswith("521 5.5.2")
                await client.close()
                client = await server.open_sending_session()
            elif reply.startswith("250") and kind == "submission":
                assert UNAMBIGUOUS_PATH.fullmatch(address.decode()), address
            else:
                assert reply[:3] in {"500", "501", "550", "553", "555"}, address
        assert await client.run_command("NOOP") == "250 2.0.0 OK"
        assert server.backend.accepted_messages == []
        await client.close()


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_source_route_of_recipient_is_ignored(tmp_path: Path, kind: str) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client = await server.open_sending_session()
        await client.start_data("@evil.example,@[127.0.0.1]:ada@example.org")
        assert (await client.run_command(".")).startswith("250 2.0.0")
        assert server.backend.accepted_messages[0].to == ["ada@example.org"]
        await client.close()


@pytest.mark.parametrize("kind", LISTENER_KINDS)
@pytest.mark.parametrize("written", ['"ada"', '"a\\da"'])
async def test_quoted_recipient_is_the_same_as_the_unquoted_one(
    tmp_path: Path, kind: str, written: str
) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client = await server.open_sending_session()
        await client.start_data(f"{written}@example.org", sender='"carol"@example.net')
        assert (await client.run_command(".")).startswith("250 2.0.0")
        (message,) = server.backend.accepted_messages
        assert message.to == ["ada@example.org"]
        assert message.sender == "carol@example.net"
        await client.close()


async def test_submission_accepts_recipients_that_need_quotes(tmp_path: Path) -> None:
    async with run_memory_listener("submission", tmp_path) as server:
        client = await server.open_sending_session()
        await client.start_data('"eve smith"@far.example', sender="carol@example.net")
        assert (await client.run_command(".")).startswith("250 2.0.0")
        assert server.backend.accepted_messages[0].to == ['"eve smith"@far.example']
        await client.close()


@pytest.mark.parametrize("kind", LISTENER_KINDS)
async def test_sender_that_no_report_can_reach_is_refused(tmp_path: Path, kind: str) -> None:
    async with run_memory_listener(kind, tmp_path) as server:
        client = await server.open_sending_session()
        for sender in ('"a"b@example.net', "a@" + "x" * 64 + ".example", "a@\u2028.example"):
            reply = await client.run_command(f"MAIL FROM:<{sender}> SMTPUTF8")
            assert reply.startswith("553 5.1.7"), sender
        await client.close()
