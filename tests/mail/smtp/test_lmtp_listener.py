"""The listener in conversation, over real sockets; its post is in memory."""

import asyncio
import logging
import re
import smtplib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mail.smtp.connection_limits import SessionLimits
from mail.smtp.lmtp import LmtpListener
from mail.smtp.spool_file import MAX_IN_MEMORY
from models.errors import Forbidden, OverQuota
from models.runtime.options import MIB
from tests.support.mail_servers.empty_store_listeners import listeners
from tests.support.mail_servers.lmtp_client import Memory, Neighbour, connect, until

Open = Callable[..., Awaitable[LmtpListener]]
FULL = OverQuota(used=1, allowed=1)


@pytest.fixture
async def post() -> Memory:
    return Memory()


@pytest.fixture
async def listening(tmp_path: Path, post: Memory) -> AsyncIterator[Open]:
    """Opens a listener with the limits that are given."""
    async with listeners(tmp_path) as there:

        async def begin(
            fault: Callable[[str], None] = lambda _place: None, **limits: Any
        ) -> LmtpListener:
            world, most = there.world(reach_fault_point=fault), replace(SessionLimits(), **limits)
            return await there.begun(LmtpListener(world, tmp_path / "spool", most, post))

        yield begin


@pytest.fixture
async def lmtp(listening: Open) -> LmtpListener:
    return await listening()


@pytest.fixture
async def client(lmtp: LmtpListener) -> AsyncIterator[Neighbour]:
    neighbour = await connect(lmtp.port)
    yield neighbour
    await neighbour.close()


def spooled(lmtp: LmtpListener) -> list[Path]:
    return list(lmtp.spool_folder.iterdir())


async def test_lhlo_says_what_we_can_do_and_no_version(lmtp: LmtpListener) -> None:
    client = await connect(lmtp.port, greet=False)
    assert await client.hear() == "220 mx.example.org LMTP"
    assert (await client.say("LHLO mx.example.net")).splitlines() == [
        "250-mx.example.org",
        "250-PIPELINING",
        f"250-SIZE {64 * MIB}",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250-ENHANCEDSTATUSCODES",
        "250 DSN",
    ]
    await client.close()


async def test_each_recipient_has_a_reply_in_order_and_the_next_command_is_in_step(
    client: Neighbour, post: Memory
) -> None:
    post.refuse["bob"] = FULL
    await client.begin("ada@example.org", "bob@example.org", "eve@example.org", "ada@example.org")
    client.send(b"Subject: Hi\r\n\r\nHello\r\n.\r\n")
    assert [(await client.hear())[:9] for _ in range(4)] == [
        "250 2.0.0",
        "452 4.2.2",
        "250 2.0.0",
        "250 2.0.0",
    ]
    assert (await client.say("NOOP")).startswith("250 2.0.0")
    (letter,) = post.letters
    assert letter.raw == b"Subject: Hi\r\n\r\nHello\r\n"
    assert letter.sender == "carol@example.net"


async def test_several_messages_may_come_in_one_segment(client: Neighbour, post: Memory) -> None:
    one = b"MAIL FROM:<>\r\nRCPT TO:<ada@example.org>\r\nRCPT TO:<nobody@example.org>\r\nDATA\r\n"
    client.send((one + b"Hello\r\n.\r\n") * 2 + b"QUIT\r\n")
    codes = [line[:3] for line in (await client.ended()).decode().splitlines()]
    assert codes == ["250", "250", "550", "354", "250"] * 2 + ["221"]
    assert [letter.raw for letter in post.letters] == [b"Hello\r\n"] * 2
    assert post.letters[0].sender == ""


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("RCPT TO:<nobody@example.org>", "550 5.1.1 No such user here"),
        ("RCPT TO:<ada@elsewhere.org>", "550 5.1.1 No such user here"),
        ("RCPT TO:<bob@example.org>", "452 4.2.2 Mailbox full"),
        ("RCPT TO:<eve@example.org>", "550 5.7.1 Refused"),
        ("RCPT TO:<ada@bücher.example>", "553 5.6.7"),
        ("RCPT TO:<>", "553 5.1.3"),
        ("RCPT TO:<a b@example.org>", "553 5.1.3"),
        ("RCPT TO:<ada@example.org", "553 5.1.3"),
        ("RCPT TO:<ada@example.org> NOTIFY=NEVER", "250 2.1.5"),
        ("RCPT TO:<ada@example.org> NOTIFIED=NEVER", "555 5.5.4"),
        ("RCPT ada@example.org", "501 5.5.4"),
        ("RCPT", "501 5.5.4"),
        ("MAIL FROM:<carol@example.net>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("DATA now", "501 5.5.4"),
        ("EHLO mx.example.net", "500 5.5.1"),
        ("HELO mx.example.net", "500 5.5.1"),
        ("LHLO", "501 5.5.4"),
        ("AUTH PLAIN AGEAYg==", "500 5.5.1"),
        ("STARTTLS", "500 5.5.1"),
        ("GET / HTTP/1.1", "500 5.5.1"),
        ("VRFY ada@example.org", "252 2.5.0"),
        ("VRFY", "501 5.5.4"),
        ("RSET now", "501 5.5.4"),
        ("RSET", "250 2.0.0"),
        ("HELP", "214 2.0.0"),
        ("", "500 5.5.2"),
        (b"NO\0OP", "500 5.5.2"),
        (b"RCPT TO:<ada\0@example.org>", "500 5.5.2"),
        (b"RCPT TO:<\xff\xfe@example.org>", "500 5.5.2"),
        ("NOOP " + "x" * 2100, "500 5.5.2 Line too long"),
        ("NOOP " + "x" * 300_000, "500 5.5.2 Line too long"),
    ],
)
async def test_a_command_has_its_answer_and_the_session_goes_on(
    client: Neighbour, post: Memory, line: str | bytes, reply: str
) -> None:
    post.refuse |= {"RCPT bob": FULL, "RCPT eve": Forbidden("no")}
    await client.say("MAIL FROM:<carol@example.net>")
    assert (await client.say(line)).startswith(reply)
    assert await client.say("NOOP") == "250 2.0.0 Fine"


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("<>", "250"),
        ("<carol@example.net> SIZE=100 BODY=8BITMIME", "250"),
        ("<@one.example,@two.example:carol@example.net>", "250"),
        ('<"carol > of the net"@example.net>', "250"),
        (" <carol@example.net>", "250"),
        ("<carol@bücher.example> SMTPUTF8", "250"),
        ("<carol@bücher.example>", "553 5.6.7"),
        ("<carol@example.net> SMTPUTF8=yes", "501 5.5.4"),
        ("<carol@example.net> SIZE=many", "501 5.5.4"),
        ("<carol@example.net> BODY=BINARYMIME", "501 5.5.4"),
        ("<carol@example.net> AUTH=<>", "555 5.5.4"),
        ("<carol@example.net> -", "501 5.5.4"),
        ("carol@example.net", "553 5.1.3"),
        (f"<carol@example.net> SIZE={64 * MIB}", "250"),
        (f"<carol@example.net> SIZE={64 * MIB + 1}", "552 5.3.4"),
    ],
)
async def test_mail_is_taken_by_its_path_and_parameters(
    client: Neighbour, path: str, reply: str
) -> None:
    assert (await client.say(f"MAIL FROM:{path}")).startswith(reply)


async def test_nobody_may_begin_without_lhlo(lmtp: LmtpListener) -> None:
    client = await connect(lmtp.port, greet=False)
    await client.hear()
    assert (await client.say("MAIL FROM:<>")).startswith("503 5.5.1")
    assert (await client.say("RCPT TO:<ada@example.org>")).startswith("503 5.5.1")
    await client.close()


async def test_an_address_beyond_ascii_needs_smtputf8(client: Neighbour, post: Memory) -> None:
    await client.begin("ada@bücher.example", sender="é@example.net", more=" SMTPUTF8")
    assert (await client.say("Hi\r\n.")).startswith("250")
    assert post.letters[0].to == ["ada@bücher.example"]
    assert post.letters[0].sender == "é@example.net"


async def test_eight_bits_dots_and_bare_line_ends_come_through_unchanged(
    client: Neighbour, post: Memory
) -> None:
    raw = b"Subject: \xff\xfe\r\n\r\n..two\r\n.\r one\nbare\r\n\r\n" + bytes(range(256)) + b"\r\n"
    await client.begin("ada@example.org")
    client.send(raw.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    assert (await client.hear()).startswith("250")
    assert post.letters[0].raw == raw


async def test_a_message_may_be_empty(client: Neighbour, post: Memory) -> None:
    await client.begin("ada@example.org")
    assert (await client.say(".")).startswith("250")
    assert post.letters[0].raw == b""


async def test_a_large_message_is_spooled_and_its_file_removed(
    client: Neighbour, lmtp: LmtpListener, post: Memory
) -> None:
    raw = b"".join(b"%070d\r\n" % line for line in range(5 * MAX_IN_MEMORY // 72))
    await client.begin("ada@example.org")
    client.send(raw + b".\r\n")
    assert (await client.hear()).startswith("250")
    assert post.letters[0].raw == raw
    assert post.letters[0].spooled
    assert not spooled(lmtp)
    assert lmtp.byte_budget.used == 0


async def test_what_is_wrong_with_a_message_is_said_to_each_recipient(
    listening: Open, post: Memory
) -> None:
    lmtp = await listening(max_message_size=3 * MIB)
    client = await connect(lmtp.port)
    for raw, reply in (
        (b"x\r\n" * (MIB + 1), "552 5.3.4 Message too large"),
        (b"x" * (MIB + 1) + b"\r\n", "500 5.5.2 Line too long"),
    ):
        await client.begin("ada@example.org", "bob@example.org")
        client.send(raw + b".\r\n")
        assert [await client.hear(), await client.hear()] == [reply, reply]
    await client.begin("ada@example.org")
    assert (await client.say("Hello\r\n.")).startswith("250")
    assert [letter.raw for letter in post.letters] == [b"Hello\r\n"]
    assert not spooled(lmtp)
    assert lmtp.byte_budget.used == 0
    await client.close()


async def test_a_message_may_be_as_large_as_announced(listening: Open, post: Memory) -> None:
    lmtp = await listening(max_message_size=1000)
    client = await connect(lmtp.port)
    for size, code in ((1000, "250"), (1001, "552")):
        await client.begin("ada@example.org")
        client.send(b"x" * (size - 2) + b"\r\n.\r\n")
        assert (await client.hear()).startswith(code)
    assert [len(letter.raw) for letter in post.letters] == [1000]
    await client.close()


async def test_bytes_in_flight_are_bounded_over_all_sessions(listening: Open, post: Memory) -> None:
    lmtp = await listening(byte_budget=1000)
    first, second = await connect(lmtp.port), await connect(lmtp.port)
    post.open.clear()
    await first.begin("ada@example.org")
    first.send(b"x" * 600 + b"\r\n.\r\n")
    await post.reached.wait()
    assert await second.say("MAIL FROM:<> SIZE=600") == (
        "452 4.3.1 No room for it now, try again later"
    )
    await second.begin("bob@example.org")
    second.send(b"x" * 600 + b"\r\n.\r\n")
    assert (await second.hear()).startswith("452 4.3.1")
    post.open.set()
    assert (await first.hear()).startswith("250")
    await second.begin("bob@example.org", more=" SIZE=600")
    assert (await second.say("x" * 600 + "\r\n.")).startswith("250")
    await first.close()
    await second.close()


async def test_a_disk_without_room_is_said_before_the_message_comes(listening: Open) -> None:
    client = await connect((await listening(disk_reserve=1 << 62)).port)
    assert (await client.say("MAIL FROM:<>")).startswith("452 4.3.1")
    await client.close()


async def test_one_message_has_so_many_recipients_and_no_more(listening: Open) -> None:
    client = await connect((await listening(max_recipients=2)).port)
    await client.say("MAIL FROM:<>")
    replies = [await client.say("RCPT TO:<ada@example.org>") for _ in range(3)]
    assert [reply[:9] for reply in replies] == ["250 2.1.5", "250 2.1.5", "452 4.5.3"]
    await client.close()


async def test_whoever_makes_too_many_mistakes_is_hung_up_on(listening: Open) -> None:
    client = await connect((await listening(max_mistakes=2)).port)
    client.send(b"FOO\r\n" * 5)
    replies = (await client.ended()).decode().splitlines()
    assert [reply[:9] for reply in replies] == ["500 5.5.1"] * 3 + ["421 4.7.0"]
    await client.close()


async def test_unknown_recipients_are_no_mistakes(listening: Open) -> None:
    client = await connect((await listening(max_mistakes=2)).port)
    await client.say("MAIL FROM:<>")
    for _ in range(5):
        assert (await client.say("RCPT TO:<nobody@example.org>")).startswith("550")
    await client.close()


async def test_one_connection_too_many_is_told_so(listening: Open) -> None:
    lmtp = await listening(max_connections=1)
    first = await connect(lmtp.port)
    second = await connect(lmtp.port, greet=False)
    assert (await second.ended()).startswith(b"421 4.3.2 Too many connections")
    assert (await first.say("NOOP")).startswith("250")
    await first.close()
    await second.close()
    await asyncio.sleep(0.05)
    third = await connect(lmtp.port)
    assert (await third.say("NOOP")).startswith("250")
    await third.close()


@pytest.mark.parametrize("place", ["command", "data"])
async def test_silence_ends_a_session(listening: Open, post: Memory, place: str) -> None:
    lmtp = await listening(command_timeout=0.2)
    client = await connect(lmtp.port)
    if place == "data":
        await client.begin("ada@example.org")
        client.send(b"Hello\r\n" * 400_000)
    assert await client.ended() == b"421 4.4.2 Waited too long for you\r\n"
    await client.close()
    assert not post.letters
    assert not spooled(lmtp)
    assert lmtp.byte_budget.used == 0


@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_client_that_vanishes_inside_data_leaves_nothing(
    lmtp: LmtpListener, post: Memory, caplog: pytest.LogCaptureFixture, *, abruptly: bool
) -> None:
    caplog.set_level(logging.DEBUG, "mail.smtp.session")
    client = await connect(lmtp.port)
    await client.begin("ada@example.org")
    client.send(b"Subject: secret\r\n" * (3 * MAX_IN_MEMORY // 17))
    await until(lambda: lmtp.byte_budget.used > 2 * MAX_IN_MEMORY)
    assert spooled(lmtp)
    if abruptly:
        client.reset()
    else:
        client.writer.write_eof()
        assert await client.ended() == b""
    await client.close()
    await until(lambda: not lmtp.sessions)
    assert not post.letters
    assert not spooled(lmtp)
    assert lmtp.byte_budget.used == 0
    assert [record.getMessage() for record in caplog.records] == ["session ended inside DATA"]


async def test_a_half_closed_client_still_hears_what_came_of_its_mail(
    client: Neighbour, post: Memory
) -> None:
    post.open.clear()
    await client.begin("ada@example.org")
    client.send(b"Hello\r\n.\r\n")
    client.writer.write_eof()
    await post.reached.wait()
    post.open.set()
    assert re.fullmatch(rb"250 2\.0\.0 Delivered as [0-9a-f]{20}\r\n", await client.ended())


async def test_a_delivery_goes_on_when_the_client_has_gone(
    client: Neighbour, lmtp: LmtpListener, post: Memory
) -> None:
    post.open.clear()
    await client.begin("ada@example.org")
    client.send(b"Hello\r\n.\r\n")
    await post.reached.wait()
    client.reset()
    await until(lambda: not lmtp.sessions)
    post.open.set()
    await until(lambda: not lmtp.byte_budget.used)
    assert len(post.letters) == 1


async def test_nothing_is_acknowledged_before_the_post_has_it(
    client: Neighbour, post: Memory
) -> None:
    post.open.clear()
    await client.begin("ada@example.org")
    client.send(b"Hello\r\n.\r\n")
    await post.reached.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.reader.read(1)
    post.open.set()
    assert (await client.hear()).startswith("250")


async def test_closing_lets_data_end_and_dismisses_the_idle(
    lmtp: LmtpListener, post: Memory
) -> None:
    idle, busy = await connect(lmtp.port), await connect(lmtp.port)
    await busy.begin("ada@example.org")
    closing = asyncio.create_task(lmtp.close(10))
    assert (await idle.ended()).startswith(b"421 4.3.2")
    busy.send(b"Hello\r\n.\r\n")
    first, second, end = (await busy.ended()).split(b"\r\n")
    assert first.startswith(b"250 2.0.0 Delivered as ")
    assert (second, end) == (b"421 4.3.2 Shutting down, come back later", b"")
    await closing
    assert len(post.letters) == 1
    with pytest.raises(ConnectionRefusedError):
        await connect(lmtp.port)
    await idle.close()
    await busy.close()


async def test_closing_does_not_wait_for_ever(lmtp: LmtpListener, post: Memory) -> None:
    client = await connect(lmtp.port)
    await client.begin("ada@example.org")
    client.send(b"Hello\r\n" * 300_000)
    await asyncio.sleep(0.1)
    await lmtp.close(0.1)
    assert (await client.ended()).startswith(b"421 4.3.2")
    assert not post.letters
    assert not spooled(lmtp)
    await client.close()


@pytest.mark.parametrize("place", ["RCPT ada", "ada"])
async def test_a_bug_is_logged_once_without_whose_mail_it_was(
    client: Neighbour, post: Memory, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    post.refuse[place] = ConnectionRefusedError("the store does not answer")
    await client.say("MAIL FROM:<>")
    reply = await client.say("RCPT TO:<ada@example.org>")
    if place == "ada":
        await client.say("DATA")
        reply = await client.say("Subject: secret\r\n.")
    assert reply == "451 4.3.0 Try again later"
    assert (await client.say("NOOP")).startswith("250")
    (bug,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert bug.exc_info
    assert "ada@" not in str(vars(bug))
    assert "secret" not in caplog.text


async def test_mistakes_of_a_client_are_not_in_the_log(
    client: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mail")
    for line in ("FOO", "RCPT", b"NO\0OP", "MAIL FROM:<a b>", "x" * 3000, "DATA"):
        assert (await client.say(line)).startswith("5")
    assert not [record for record in caplog.records if record.name.startswith("mail.")]


@pytest.mark.parametrize("place", ["data", "reply"])
async def test_a_fault_inside_data_ends_the_session(
    listening: Open, post: Memory, place: str
) -> None:
    def fault(here: str) -> None:
        if here == place:
            raise RuntimeError(place)

    client = await connect((await listening(fault)).port)
    await client.begin("ada@example.org")
    client.send(b"Hello\r\n.\r\nNOOP\r\n")
    assert await client.ended() == b"421 4.3.0 Try again later\r\n"
    assert len(post.letters) == (place == "reply")
    await client.close()


async def test_the_standard_library_can_send_to_us(lmtp: LmtpListener, post: Memory) -> None:
    def send() -> None:
        with smtplib.LMTP("127.0.0.1", lmtp.port) as client:
            client.sendmail("carol@example.net", "ada@example.org", b".dot\r\n\r\nHello\r\n")

    await asyncio.to_thread(send)
    assert post.letters[0].raw == b".dot\r\n\r\nHello\r\n"
