"""No second message within one: what ends a message, on each way in, and on the way out."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mail.smtp.spool_file import DataParser
from tests.support.mail.smuggled_messages import FALSE_END_SEQUENCES, SMUGGLED_TRANSACTION
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.memory_listeners import KINDS, SECRET, Door, opened
from tests.support.mail_servers.smtp_client import secured

TOP = re.compile(rb"(Received: [^\r\n]+(\r\n\t[^\r\n]+)*\r\n)?")


@pytest.fixture(params=KINDS)
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(request.param, tmp_path) as made:
        yield made


def meant(sent: bytes) -> bytes:
    """What a client means by lines it has sent, without their end (RFC 5321, section 4.5.2)."""
    lines = sent.split(b"\r\n")
    return b"\r\n".join(line.removeprefix(b".") for line in lines)


def once(door: Door, came: bytes) -> None:
    """One message, as it came, for one recipient."""
    (letter,) = door.post.letters
    assert (letter.sender, letter.to) == ("carol@example.net", ["ada@example.org"])
    top, _, rest = letter.raw.partition(b"Subject: ")
    assert TOP.fullmatch(top)
    assert b"Subject: " + rest == came
    door.post.letters.clear()


async def in_step(client: Neighbour) -> None:
    """Nothing else was answered."""
    assert await client.say("NOOP") == "250 2.0.0 Fine"


async def test_nothing_else_ends_a_message(door: Door) -> None:
    client = await door.enter()
    for end in FALSE_END_SEQUENCES:
        raw = b"Subject: x\r\n\r\nHello" + end + SMUGGLED_TRANSACTION
        await client.begin("ada@example.org")
        client.send(raw + b".\r\n")
        assert (await client.hear()).startswith("250 2.0.0"), end
        await in_step(client)
        once(door, meant(raw))
    await client.close()


async def test_a_message_that_was_cut_anywhere_ends_where_it_ends(door: Door) -> None:
    """Segments are joined by the kernel; those that wait for an answer cannot be."""
    client = await door.enter()
    raw = b"Subject: x\r\n\r\nHello\n.\r\n..\r\n\r\n.\r\r\n"
    for cut in range(1, len(raw) + 3):
        whole = raw + b".\r\n"
        await client.begin("ada@example.org")
        client.send(whole[:cut])
        await client.writer.drain()
        other = await door.enter()  # by when the piece has been read
        client.send(whole[cut:])
        assert (await client.hear()).startswith("250 2.0.0"), cut
        await in_step(client)
        await other.close()
        once(door, meant(raw))
    await client.close()


@pytest.mark.parametrize("end", FALSE_END_SEQUENCES)
def test_it_is_so_for_each_byte_alone(end: bytes) -> None:
    raw, body, found = b"Subject: x\r\n\r\nHello" + end + SMUGGLED_TRANSACTION, DataParser(), b""
    for at in range(len(raw)):
        added, rest = body.feed(raw[at : at + 1])
        found += added
        assert (body.has_ended, rest) == (False, b"")
    for last in (b".", b"\r", b"\n"):
        added, rest = body.feed(last)
        found += added
    assert (body.has_ended, rest, found) == (True, b"", meant(raw))


@pytest.mark.parametrize("line", [b"NOOP", b"", b"NO\rOP", b"MAIL FROM:<a@b.example>", b"x" * 99])
async def test_a_command_that_ends_with_a_bare_lf_is_refused(door: Door, line: bytes) -> None:
    for begun in (b"", b"RSET\r\n"):
        client = await (door.enter() if begun else door.arrive())
        client.send(begun + line + b"\n" + b"NOOP\r\nRSET\r\n")
        if begun:
            assert (await client.hear()).startswith("250")
        assert (await client.hear()).startswith("521 5.5.2 Error: bare <LF>")
        assert await client.ended() == b""
        await client.close()
    assert door.post.letters == []


@pytest.mark.parametrize("line", [b"NO\rOP", b"NOOP\r\r", b"\rNOOP", b"NOOP\rRSET"])
async def test_a_command_with_a_bare_cr_is_refused(door: Door, line: bytes) -> None:
    client = await door.enter()
    client.send(line + b"\r\n")
    assert (await client.hear()).startswith("500 5.5.2")
    await in_step(client)
    await client.close()


async def test_an_answer_of_auth_with_a_bare_lf_is_refused(tmp_path: Path) -> None:
    async with opened("submission", tmp_path) as door:
        client = await door.arrive()
        await client.say("EHLO x")
        await secured(client, door.authority.client())
        assert (await client.say("AUTH PLAIN")).startswith("334")
        client.send(SECRET.encode() + b"\nNOOP\r\n")
        assert (await client.hear()).startswith("521 5.5.2")
        assert await client.ended() == b""
        assert door.post.tried == []


async def test_what_stands_behind_the_end_is_a_command(door: Door) -> None:
    """A pipelined second message is the client's own, and comes with its own envelope."""
    client = await door.enter()
    one = b"MAIL FROM:<carol@example.net>\r\nRCPT TO:<ada@example.org>\r\nDATA\r\n"
    client.send(one + b"Subject: 1\r\n.\r\n" + one + b"Subject: 2\r\n.\r\nNOOP\r\n")
    codes = [(await client.hear())[:3] for _ in range(9)]
    assert codes == ["250", "250", "354", "250"] * 2 + ["250"]
    came = [letter.raw.rpartition(b"Subject: ")[2] for letter in door.post.letters]
    assert came == [b"1\r\n", b"2\r\n"]
    await client.close()


async def test_a_message_without_end_is_none(door: Door) -> None:
    for end in FALSE_END_SEQUENCES:
        client = await door.enter()
        await client.begin("ada@example.org")
        client.send(b"Subject: x\r\n\r\nHello" + end)
        await client.writer.drain()
        await client.close()
    async with asyncio.timeout(60):
        await asyncio.gather(*(each.closed for each in list(door.listener.sessions)))
    assert door.post.letters == []


async def test_bare_dots_at_all_doors_at_once(tmp_path: Path) -> None:
    """An end of one message is none of the next: what was held back is forgotten."""
    async with AsyncExitStack() as stack:
        for kind in KINDS:
            (tmp_path / kind).mkdir()
            door = await stack.enter_async_context(opened(kind, tmp_path / kind))
            client = await door.enter()
            for raw in (b"", b"..\r\n", b"..\r\n..\r\n", b"\r\n..\r\n"):
                await client.begin("ada@example.org")
                client.send(raw + b".\r\n")
                assert (await client.hear()).startswith("250")
                await in_step(client)
                assert door.post.letters.pop().raw.endswith(meant(raw))
            await client.close()


@pytest.mark.parametrize("blank", [b" ", b"\t"])
async def test_a_first_line_goes_on_with_no_field_of_ours(door: Door, blank: bytes) -> None:
    raw = blank + b"; dmarc=pass header.from=bank.example\r\nFrom: x@bank.example\r\n\r\nHi\r\n"
    client = await door.enter()
    for first in (1, 20):
        await client.begin("ada@example.org")
        client.send(raw[:first])
        await client.writer.drain()
        client.send(raw[first:] + b".\r\n")
        assert (await client.hear()).startswith("250 2.0.0")
        head, ended, rest = (b"\r\n" + door.post.letters.pop().raw).partition(b"\r\n" * 2)
        assert ended
        assert TOP.fullmatch(head.removeprefix(b"\r\n") + b"\r\n" * bool(head))
        assert rest == raw
    await client.close()
