"""What attackers say in place of commands, how slowly, and how much of it."""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import pytest

from mail.smtp.line_protocol import MAX_COMMAND_LINE
from tests.support.mail_servers.lmtp_client import Neighbour, until
from tests.support.mail_servers.memory_listeners import KINDS, SECRET, Door, opened
from tests.support.mail_servers.smtp_client import secured

Open = Callable[..., AbstractAsyncContextManager[Door]]
MAIL = b"MAIL FROM:<carol@example.net>\r\n"
RCPT = b"RCPT TO:<ada@example.org>\r\n"
WHOLE = MAIL + RCPT + b"DATA\r\nHello\r\n.\r\n"
FORGED = b"MAIL FROM:<mallory@example.net>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nForged\r\n.\r\n"
ENCRYPTING = ["mx", "submission"]


@pytest.fixture(params=KINDS)
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def client(door: Door) -> AsyncIterator[Neighbour]:
    neighbour = await door.enter()
    yield neighbour
    await neighbour.close()


async def codes(client: Neighbour, raw: bytes, many: int) -> list[str]:
    """The beginnings of so many replies to all of this at once; then the session is in step."""
    client.send(raw)
    found = [(await client.hear())[:9].split(" ")[0] for _ in range(many)]
    assert await client.say("NOOP") == "250 2.0.0 Fine"
    return found


async def gone(door: Door) -> None:
    await until(lambda: not door.listener.sessions)
    assert door.listener.byte_budget.used == 0


# ---------------------------------------------------------------- much in one packet

PACKETS = [
    (WHOLE, "250 250 354 250"),
    (WHOLE * 3, "250 250 354 250 " * 3),
    (WHOLE + b"RSET\r\n" + WHOLE, "250 250 354 250 250 250 250 354 250"),
    (MAIL + MAIL + RCPT + b"DATA\r\nHello\r\n.\r\n", "250 503 250 354 250"),
    (MAIL + RCPT + b"RSET\r\nDATA\r\n" + WHOLE, "250 250 250 503 250 250 354 250"),
    (MAIL + b"DATA\r\n" + RCPT + b"DATA\r\nHello\r\n.\r\n", "250 503 250 354 250"),
    (RCPT + b"DATA\r\n" + WHOLE, "503 503 250 250 354 250"),
    (MAIL + b"RCPT TO:<a b>\r\nDATA\r\nRSET\r\n", "250 553 503 250"),
    (MAIL + RCPT + b"DATA now\r\nDATA\r\nHello\r\n.\r\n", "250 250 501 354 250"),
    (MAIL + RCPT + b"DATA\r\n.\r\nRSET\r\nNOOP\r\n", "250 250 354 250 250 250"),
    (MAIL + RCPT + b"VRFY bob\r\nHELP\r\nDATA\r\n.\r\n", "250 250 252 214 354 250"),
    (MAIL + RCPT + b"FOO\r\n\r\nDATA\r\n.\r\n", "250 250 500 500 354 250"),
    (b"\r\n\r\n" + WHOLE, "500 500 250 250 354 250"),
]


@pytest.mark.parametrize(("raw", "replies"), PACKETS)
async def test_each_command_of_a_packet_is_answered_in_order(
    door: Door, client: Neighbour, raw: bytes, replies: str
) -> None:
    wanted = replies.split()
    assert await codes(client, raw, len(wanted)) == wanted
    assert len(door.post.letters) == wanted.count("354")
    assert all(letter.to == ["ada@example.org"] for letter in door.post.letters)


@pytest.mark.parametrize(
    ("raw", "replies"),
    [
        (b"", "221"),
        (MAIL, "250 221"),
        (MAIL + RCPT, "250 250 221"),
        (WHOLE, "250 250 354 250 221"),
        (WHOLE + MAIL, "250 250 354 250 250 221"),
    ],
)
async def test_what_stands_behind_quit_is_not_done(
    door: Door, client: Neighbour, raw: bytes, replies: str
) -> None:
    client.send(raw + b"QUIT\r\n" + WHOLE + b"NOOP\r\n")
    said = (await client.ended()).decode().splitlines()
    assert [line[:3] for line in said] == replies.split()
    assert len(door.post.letters) == replies.count("354")


async def test_a_greeting_within_a_transaction_ends_it(door: Door, client: Neighbour) -> None:
    again = await codes(client, MAIL + RCPT + door.hello + b"\r\nDATA\r\n", 4)
    assert [code[:3] for code in again] == ["250", "250", "250", "503"]
    assert door.post.letters == []


async def test_commands_may_be_cut_anywhere(door: Door, client: Neighbour) -> None:
    for at in range(len(WHOLE)):
        client.send(WHOLE[at : at + 1])
        await client.writer.drain()
    assert [(await client.hear())[:3] for _ in range(4)] == ["250", "250", "354", "250"]
    assert len(door.post.letters) == 1


# ---------------------------------------------------------------- before TLS


@pytest.mark.parametrize("kind", ENCRYPTING)
@pytest.mark.parametrize(
    "injected",
    [
        FORGED,
        b"EHLO mallory\r\n" + FORGED,
        b"EHLO mallory\r\nAUTH PLAIN " + SECRET.encode() + b"\r\n" + FORGED,
        b"EHLO mallory\r\nMAIL FROM:<mall",
        b"NOOP\n",
        b"\x00",
    ],
)
async def test_commands_before_tls_are_thrown_away(
    tmp_path: Path, kind: str, injected: bytes
) -> None:
    async with opened(kind, tmp_path) as door:
        client = await door.arrive()
        client.send(b"EHLO x\r\nSTARTTLS\r\n" + injected)
        assert (await client.hear()).startswith("250")
        assert (await client.hear()).startswith("220")
        await client.writer.start_tls(door.authority.client(), server_hostname="mx.example.org")
        assert (await client.say("RCPT TO:<ada@example.org>")).startswith("503 5.5.1 Say MAIL")
        assert (await client.say("MAIL FROM:<carol@example.net>")).startswith("503 5.5.1 Say EHLO")
        offers = await client.say("EHLO x")
        assert ("AUTH PLAIN LOGIN" in offers) == (kind == "submission")
        assert (door.post.letters, door.post.asked, door.post.tried) == ([], [], [])
        await client.close()


@pytest.mark.parametrize("kind", ENCRYPTING)
async def test_what_was_said_before_tls_holds_no_longer(tmp_path: Path, kind: str) -> None:
    async with opened(kind, tmp_path) as door:
        client = await door.arrive()
        client.send(b"EHLO x\r\nMAIL FROM:<carol@example.net>\r\nRCPT TO:<bob@example.org>\r\n")
        for _ in range(3):
            await client.hear()
        await secured(client, door.authority.client())
        assert (await client.say("DATA")).startswith("503")
        assert (await client.say("RCPT TO:<ada@example.org>")).startswith("503")
        await client.close()


async def test_nobody_signs_in_without_tls(tmp_path: Path) -> None:
    async with opened("submission", tmp_path) as door:
        client = await door.arrive()
        for hello in (b"EHLO x", b"HELO x"):
            assert "AUTH" not in await client.say(hello)
            for line in (f"AUTH PLAIN {SECRET}", "AUTH PLAIN", "AUTH LOGIN YWRh", "AUTH", "AUTH X"):
                assert (await client.say(line)).startswith("538 5.7.11"), line
        assert (await client.say("MAIL FROM:<carol@example.net>")).startswith("530")
        assert door.post.tried == []
        await client.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_tls_and_http_in_place_of_commands(tmp_path: Path, kind: str) -> None:
    async with opened(kind, tmp_path) as door:
        hello = ssl.MemoryBIO()
        tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="x")
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        http = b"POST / HTTP/1.1\r\nHost: mx\r\nContent-Length: 99\r\n\r\n" + WHOLE
        # A ClientHello can hold a bare LF, which ends the session.
        for raw, last in ((hello.read() + b"\r\n", (b"221", b"521")), (http, (b"221",))):
            client = await door.arrive()
            client.send(raw + b"QUIT\r\n")
            said = (await client.ended()).splitlines()
            assert said[-1].startswith(last)
            assert all(line.startswith((b"5", b"221")) for line in said)
            await client.close()
        assert door.post.letters == []


# ---------------------------------------------------------------- signing in


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Door]:
    async with opened("submission", tmp_path, max_mistakes=100) as made:
        yield made


async def at_desk(desk: Door) -> Neighbour:
    client = await desk.arrive()
    await client.say("EHLO x")
    await secured(client, desk.authority.client())
    return client


BROKEN = [
    (["AUTH"], "504"),
    (["AUTH "], "504"),
    (["AUTH PLAIN PLAIN PLAIN"], "501"),
    (["AUTH =PLAIN"], "504"),
    (["AUTH CRAM-MD5"], "504"),
    (["AUTH EXTERNAL ="], "504"),
    (["AUTH PLAIN ="], "501"),
    (["AUTH PLAIN *"], "501"),
    (["AUTH PLAIN", "*"], "501"),
    (["AUTH PLAIN", ""], "501"),
    (["AUTH PLAIN", "="], "501"),
    (["AUTH PLAIN", "QUIT"], "501"),
    (["AUTH PLAIN", "MAIL FROM:<carol@example.net>"], "501"),
    (["AUTH PLAIN", SECRET[:-1]], "501"),
    (["AUTH PLAIN", SECRET + "="], "501"),
    (["AUTH PLAIN", SECRET + " "], "501"),
    (["AUTH PLAIN", "\t" + SECRET], "501"),
    (["AUTH PLAIN", SECRET[:4] + "\0" + SECRET[4:]], "501"),
    (["AUTH PLAIN", "grüße"], "501"),
    (["AUTH PLAIN", "A" * 2040], "501"),
    (["AUTH PLAIN", "A" * 100_000], "500"),
    (["AUTH PLAIN " + "A" * 100_000], "500"),
    (["AUTH PLAIN " + b64("ada\0secret")], "501"),
    (["AUTH PLAIN " + b64("\0ada\0secret\0")], "501"),
    (["AUTH PLAIN " + b64("bob\0ada\0secret")], "501"),
    (["AUTH PLAIN " + b64("\0\0\0\0\0")], "501"),
    (["AUTH PLAIN " + b64(b"\0ada\0\xff\xfe")], "501"),
    (["AUTH PLAIN " + b64(b"\0ada\0\xed\xa0\x80")], "501"),
    (["AUTH LOGIN", "*"], "501"),
    (["AUTH LOGIN", b64("ada"), "*"], "501"),
    (["AUTH LOGIN", "!", ], "501"),
    (["AUTH LOGIN", b64("ada"), "!"], "501"),
    (["AUTH LOGIN !"], "501"),
    (["AUTH LOGIN", "A" * 100_000], "500"),
]  # fmt: skip


async def test_broken_ways_to_sign_in_are_refused_and_the_session_goes_on(desk: Door) -> None:
    client = await at_desk(desk)
    for lines, code in BROKEN:
        *first, last = [await client.say(line) for line in lines]
        assert all(reply.startswith("334") for reply in first), lines
        assert last.startswith(code), lines
        assert await client.say("NOOP") == "250 2.0.0 Fine"
        assert (await client.say("MAIL FROM:<carol@example.net>")).startswith("530"), lines
    assert desk.post.tried == []
    assert (await client.say(f"AUTH PLAIN {SECRET}")).startswith("235")
    assert desk.post.tried == [("ada", "secret")]
    await client.close()


async def test_whoever_fails_too_often_is_hung_up_on(desk: Door) -> None:
    wrong = [b64("\0ada\0wrong"), b64("\0\0"), b64("\0nobody\0secret")]
    client = await at_desk(desk)
    said = [await client.say(f"AUTH PLAIN {each}") for each in wrong]
    assert set(said) == {"535 5.7.8 That does not sign anybody in"}
    assert (await client.ended()).startswith(b"421 4.7.0")
    await client.close()


async def test_commands_behind_a_wrong_password_are_not_ones_of_a_user(desk: Door) -> None:
    client = await at_desk(desk)
    client.send(f"AUTH PLAIN {b64('|ada|wrong'.replace('|', chr(0)))}\r\n".encode() + WHOLE)
    replies = [(await client.hear())[:3] for _ in range(6)]
    assert replies == ["535", "530", "503", "503", "500", "500"]
    assert desk.post.letters == []
    await client.close()


# ---------------------------------------------------------------- slow clients, and deaf ones

PLACES = ["greeting", "command", "data", "sign-in", "hands"]


async def dribbling(door: Door, place: str) -> Neighbour:
    """A client that goes on very slowly, from there."""
    if place in {"greeting", "hands"}:
        client = await door.arrive()
        if place == "hands":
            await client.say(door.hello)
            assert (await client.say("STARTTLS")).startswith("220")
        return client
    if place == "sign-in":
        client = await at_desk(door)
        assert (await client.say("AUTH PLAIN")).startswith("334")
        return client
    client = await door.enter()
    if place == "data":
        await client.begin("ada@example.org")
    return client


def has(kind: str, place: str) -> bool:
    """Whether there is such a place."""
    return (place != "sign-in" or kind == "submission") and (place != "hands" or kind != "lmtp")


@pytest.mark.parametrize(
    ("kind", "place"), [(kind, place) for kind in KINDS for place in PLACES if has(kind, place)]
)
async def test_slow_clients_are_let_go_and_others_are_served(
    tmp_path: Path, kind: str, place: str
) -> None:
    limit = {"message_timeout": 0.5} if place == "data" else {"command_timeout": 0.5}
    async with opened(kind, tmp_path, **limit) as door:
        slow = [await dribbling(door, place) for _ in range(10)]
        other = await door.enter()
        await other.begin("ada@example.org")
        other.send(b"Hello\r\n.\r\n")
        assert (await other.hear()).startswith("250")
        assert (await other.say("QUIT")).startswith("221")
        await other.close()
        piece = b"\x16" if place == "hands" else b"x"
        async with asyncio.timeout(30):
            while door.listener.sessions:
                for each in slow:
                    with suppress(ConnectionError):  # it is hung up while it still talks
                        each.send(piece)
                await asyncio.sleep(0.05)
        for each in slow:
            each.writer.transport.abort()
        await gone(door)
        assert [letter.raw.endswith(b"Hello\r\n") for letter in door.post.letters] == [True]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_does_not_listen_is_let_go(tmp_path: Path, kind: str) -> None:
    async with opened(kind, tmp_path, command_timeout=0.5) as door:
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        with deaf:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, ("127.0.0.1", door.listener.port))
            with suppress(ConnectionError):  # it is hung up while it still talks
                async with asyncio.timeout(30):
                    await loop.sock_sendall(deaf, (door.hello + b"\r\n") * 100_000)
            await gone(door)
        other = await door.enter()
        assert await other.say("NOOP") == "250 2.0.0 Fine"
        await other.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_connections_are_counted(tmp_path: Path, kind: str) -> None:
    each = 100 if kind == "lmtp" else 5
    async with opened(kind, tmp_path, max_connections=8, max_connections_per_network=each) as door:
        most = 8 if kind == "lmtp" else 5
        there = [await door.arrive() for _ in range(most)]
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", door.listener.port)
            client = Neighbour(reader, writer)
            assert (await client.ended()).startswith(b"421 4.")
            await client.close()
        assert (await there[0].say("NOOP")).startswith("250")
        for one in there:
            one.reset()
        await gone(door)
        after = await door.arrive()
        assert (await after.say("NOOP")).startswith("250")
        await after.close()


# ---------------------------------------------------------------- much of it


async def test_ten_thousand_recipients_and_the_session_lives(tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        async with opened(kind, tmp_path / kind) as door:
            most = door.listener.limits.max_recipients
            client = await door.enter()
            client.send(MAIL + RCPT * 10_000 + b"DATA\r\nHello\r\n.\r\n")
            assert (await client.hear()).startswith("250 2.1.0")
            said = [(await client.hear())[:9] for _ in range(10_000)]
            assert said == ["250 2.1.5"] * most + ["452 4.5.3"] * (10_000 - most)
            assert (await client.hear()).startswith("354")
            for _ in range(most if kind == "lmtp" else 1):
                assert (await client.hear()).startswith("250 2.0.0")
            assert await client.say("NOOP") == "250 2.0.0 Fine"
            assert len(door.post.letters[0].to) == most
            await client.close()


@pytest.mark.parametrize(
    "line", [b"FOO", b"", b"\xff\xfe", b"MAIL", b"RCPT TO:<x>", b"MAIL FROM:<> X=Y", b"DATA"]
)
async def test_ten_thousand_mistakes_end_a_session(
    door: Door, client: Neighbour, line: bytes
) -> None:
    client.send((line + b"\r\n") * 10_000)
    said = bytearray()
    with suppress(ConnectionError):  # it is hung up while it still talks
        async with asyncio.timeout(30):
            while piece := await client.reader.read(4096):
                said += piece
    replies = said.splitlines()
    assert len(replies) <= door.listener.limits.max_mistakes + 2
    await gone(door)


async def test_lines_that_are_too_long(door: Door, client: Neighbour) -> None:
    short = {
        b"NOOP ": "250 ",
        b"MAIL FROM:<": "553 5.1.3",
        b"\0": "500 5.5.2 That",
        b"\xff": "500 ",
    }
    for verb, reply in short.items():
        assert (await client.say(verb.ljust(MAX_COMMAND_LINE - 2, b"x"))).startswith(reply), verb
        for size in (MAX_COMMAND_LINE - 1, MAX_COMMAND_LINE, 100_000, 3_000_000):
            said = await client.say(verb.ljust(size, b"x"))
            assert said == "500 5.5.2 Line too long", (verb, size)
    assert await client.say("NOOP") == "250 2.0.0 Fine"
    assert door.post.letters == []


async def test_a_line_without_end_takes_no_memory(door: Door, client: Neighbour) -> None:
    for _ in range(64):
        client.send(b"x" * 100_000)
        await client.writer.drain()
    (session,) = door.listener.sessions
    assert len(session._command_reader._buffer) < 400_000  # type: ignore[attr-defined]  # noqa: SLF001
    client.send(b"\r\n")
    assert (await client.hear()).startswith("500 5.5.2 Line too long")
    assert await client.say("NOOP") == "250 2.0.0 Fine"
