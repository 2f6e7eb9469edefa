"""What GraphQL shows of the inside of a message."""

import asyncio
import time

import pytest

from mail.storage.message_content import StoredMessage
from models.errors import InvalidInput, LimitReached
from models.store.byte_cache import CAPACITY, ByteCache
from resolvers.messages import content
from resolvers.messages.content import HtmlOptions
from tests.conftest import Client, context, receive
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import RICH


@pytest.fixture
async def message(ada: Client) -> int:
    """The rich message, in Ada's mailbox."""
    return (await receive(ada, RICH)).message_id


async def rich_of(client: Client, key: int) -> StoredMessage:
    found = await content.load_stored_message(context(client), key)
    assert found
    return found


async def test_only_ones_own_messages_are_read(ada: Client, bob: Client, message: int) -> None:
    assert await content.load_stored_messages(context(bob), [message]) == [None]
    found = await content.load_stored_messages(context(ada), [message + 1, message])
    assert found[0] is None
    assert isinstance(found[1], StoredMessage)
    assert found[1].row.id == message


async def test_texts_headers_and_parts_of_a_message(ada: Client, message: int) -> None:
    found = await rich_of(ada, message)
    assert await content.plain_text(found) == multipart_message.TEXT
    assert await content.header_values(found, "x-TWICE") == ["one", "zwölf"]
    assert [field.key for field in await content.header_fields(found)][:3] == [
        "From",
        "To",
        "Subject",
    ]
    head = RICH[: RICH.index(b"Preamble")].decode()
    assert await content.header_block_text(found) == head
    assert await content.imap_body_section(found, "HEADER") == head
    assert await content.imap_body_section(found, "1.1") == multipart_message.TEXT
    assert await content.imap_body_section(found, "1.2.MIME") == "Content-Type: text/html\r\n\r\n"
    assert (
        await content.imap_body_section(found, "5.TEXT")
        == multipart_message.LETTER.decode().partition("\r\n\r\n")[2]
    )
    assert str(await content.imap_body_section(found, "5.header")).startswith(
        "From: dora@example.com"
    )
    assert await content.imap_body_section(found, "5.1") == "Inner text"
    for none in ("9.9", "MIME", "1.1.TEXT", "x", "0"):
        assert await content.imap_body_section(found, none) is None
    assert await content.base64_part(found, "8") == "c21hbGw="
    assert await content.base64_part(found, "88") is None


async def test_html_is_safe_unless_it_is_wanted_as_sent(ada: Client, message: int) -> None:
    found = await rich_of(ada, message)
    assert content.attachment_numbers_by_content_id(found) == {"photo@here": 4}
    own = {"photo@here": "https://here.example/photo"}
    (safe,) = (await content.html_bodies(found, HtmlOptions(own.get))).bodies
    assert "evil" not in safe
    assert "far.example" not in safe
    assert 'src="https://here.example/photo"' in safe
    (remote,) = (
        await content.html_bodies(found, HtmlOptions(own.get, allows_remote_images=True))
    ).bodies
    assert "far.example" in remote
    (sent,) = (await content.html_bodies(found, HtmlOptions(own.get, is_sanitized=False))).bodies
    assert sent == multipart_message.HTML.decode()


async def test_what_was_worked_out_once_is_not_again_nor_for_others(
    ada: Client, bob: Client, message: int, statements: list[str]
) -> None:
    async def look() -> list[object]:
        found = await rich_of(ada, message)
        shown = await content.html_bodies(
            found, HtmlOptions(lambda cid: f"https://here.example/{cid}")
        )
        return [await content.plain_text(found), await content.header_fields(found), shown]

    del statements[:]
    first = await look()
    assert len(statements) == 2, "the row and its bytes"
    del statements[:]
    assert await look() == first
    assert len(statements) == 1, "who looks must have the row all the same"
    assert await content.load_stored_messages(context(bob), [message]) == [None]


async def test_addresses_in_html_are_those_of_whoever_looks(ada: Client, message: int) -> None:
    for address in ("https://here.example/1", "https://here.example/2"):
        showing = HtmlOptions({"photo@here": address}.get)
        (safe,) = (await content.html_bodies(await rich_of(ada, message), showing)).bodies
        assert f'src="{address}"' in safe


async def test_html_without_addresses_is_kept_by_how_it_is_shown(ada: Client) -> None:
    page = b'<p>Hello</p><img src="https://far.example/x.png">'
    raw = b"Subject: Page\r\nContent-Type: text/html\r\n\r\n" + page
    key = (await receive(ada, raw)).message_id
    for _ in range(2):
        found = await rich_of(ada, key)
        nowhere = dict[str, str]().get
        safe = await content.html_bodies(found, HtmlOptions(nowhere))
        assert "far.example" not in safe.bodies[0]
        assert safe.blocked_image_count == 1
        remote = await content.html_bodies(found, HtmlOptions(nowhere, allows_remote_images=True))
        assert "far.example" in remote.bodies[0]
        assert remote.blocked_image_count == 0
        sent = await content.html_bodies(found, HtmlOptions(nowhere, is_sanitized=False))
        assert sent.bodies == (page.decode(),)


def test_the_shelf_keeps_what_was_used_last_as_far_as_there_is_room() -> None:
    shelf = ByteCache(100)
    for name in "abcd":
        shelf.put(name, name.upper(), 30)
        shelf.get("a")
    assert [shelf.get(name) for name in "abcd"] == ["A", None, "C", "D"]
    assert (len(shelf), shelf.used_bytes) == (3, 90)
    shelf.put("c", "small", 1)
    shelf.put("large", "L", 101)
    shelf.remove("nothing")
    assert [shelf.get(name) for name in ("c", "large")] == ["small", None]
    assert (len(shelf), shelf.used_bytes) == (3, 61)
    usual = ByteCache()
    usual.put("x", "X", CAPACITY // 10)
    assert len(usual) == 0, "one thing does not push out all others"


async def test_large_html_does_not_hold_up_the_loop(ada: Client) -> None:
    page = b"<p class=a>Hello <b>there</b></p>\n" * 40_000
    raw = b"Subject: Page\r\nContent-Type: text/html\r\n\r\n" + page
    found = await rich_of(ada, (await receive(ada, raw)).message_id)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)

    watching = asyncio.create_task(watch())
    before = time.perf_counter()
    (safe,) = (await content.html_bodies(found, HtmlOptions(dict[str, str]().get))).bodies
    took = time.perf_counter() - before
    watching.cancel()
    assert safe.count("<b>there</b>") == 40_000
    assert longest < took / 2


async def test_the_source_is_cut_at_a_character_and_in_base64_where_it_is_no_text(
    ada: Client, message: int
) -> None:
    found = await rich_of(ada, message)
    middle = RICH.index("ü".encode())
    assert await content.message_source_text(found, middle + 1) == RICH[:middle].decode()
    assert await content.message_source_text(found, middle + 2) == RICH[: middle + 2].decode()
    latin = b"Subject: L\r\n\r\nGr\xfc\xdfe"
    other = await rich_of(ada, (await receive(ada, latin)).message_id)
    assert await content.message_source_text(other) == "U3ViamVjdDogTA0KDQpHcvzfZQ=="
    for wrong in (0, -1, content.MAX_RESPONSE_BYTES + 1):
        with pytest.raises(InvalidInput):
            await content.message_source_text(found, wrong)


async def test_the_text_of_an_attachment_is_cut_at_a_character(ada: Client, message: int) -> None:
    found = await rich_of(ada, message)
    prose = multipart_message.PROSE.decode()
    assert await content.attachment_text(found, 5, 1 << 20) == prose
    assert await content.attachment_text(found, 5, 3) == "Gr"
    assert await content.attachment_text(found, 0) is None
    assert await content.attachment_text(found, 99) is None


async def test_a_part_too_large_for_an_answer_is_refused_before_it_is_read(
    ada: Client, message: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "MAX_RESPONSE_BYTES", 1000)
    found = await rich_of(ada, message)
    for asked in (content.imap_body_section(found, "2"), content.base64_part(found, "2")):
        with pytest.raises(LimitReached):
            await asked


async def test_no_cut_of_the_source_leaves_half_a_character(ada: Client) -> None:
    raw = "Subject: All\r\n\r\naü€😀ß𝄞".encode()
    found = await rich_of(ada, (await receive(ada, raw)).message_id)
    for most in range(1, len(raw) + 2):
        assert await content.message_source_text(found, most) == raw[:most].decode(errors="ignore")
