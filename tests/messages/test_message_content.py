"""Test the content of a stored message: texts, HTML, headers, parts and source."""

import time

import pytest

from mail.storage.message_content import StoredMessage
from models.errors import InvalidInput, LimitReached
from models.store.byte_cache import CAPACITY, ByteCache
from resolvers.messages import content, message_bytes
from resolvers.messages.content import HtmlOptions
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import MULTIPART_MESSAGE


@pytest.fixture
async def message_id(ada: GraphQLClient) -> int:
    """The ID of the rich message in Ada's mailbox."""
    return (await deliver_to(ada, MULTIPART_MESSAGE)).message_id


async def load_message(client: GraphQLClient, key: int) -> StoredMessage:
    loaded = await content.load_stored_message(client_context(client), key)
    assert loaded
    return loaded


async def test_only_own_messages_are_loaded(
    ada: GraphQLClient, bob: GraphQLClient, message_id: int
) -> None:
    assert await content.load_stored_messages_and_log_read(client_context(bob), [message_id]) == [
        None
    ]
    messages = await content.load_stored_messages_and_log_read(
        client_context(ada), [message_id + 1, message_id]
    )
    assert messages[0] is None
    assert isinstance(messages[1], StoredMessage)
    assert messages[1].row.id == message_id


async def test_message_has_texts_headers_and_parts(ada: GraphQLClient, message_id: int) -> None:
    loaded = await load_message(ada, message_id)
    assert await content.plain_text(loaded) == multipart_message.PLAIN_TEXT
    assert await content.header_values(loaded, "x-TWICE") == ["one", "zwölf"]
    assert [field.name for field in await content.header_fields(loaded)][:3] == [
        "From",
        "To",
        "Subject",
    ]
    header_block = MULTIPART_MESSAGE[: MULTIPART_MESSAGE.index(b"Preamble")].decode()
    assert await content.header_block_text(loaded) == header_block
    assert await message_bytes.imap_body_section_as_text_or_base64(loaded, "HEADER") == header_block
    assert (
        await message_bytes.imap_body_section_as_text_or_base64(loaded, "1.1")
        == multipart_message.PLAIN_TEXT
    )
    assert (
        await message_bytes.imap_body_section_as_text_or_base64(loaded, "1.2.MIME")
        == "Content-Type: text/html\r\n\r\n"
    )
    assert (
        await message_bytes.imap_body_section_as_text_or_base64(loaded, "5.TEXT")
        == multipart_message.INNER_MESSAGE.decode().partition("\r\n\r\n")[2]
    )
    assert str(
        await message_bytes.imap_body_section_as_text_or_base64(loaded, "5.header")
    ).startswith("From: dora@example.com")
    assert await message_bytes.imap_body_section_as_text_or_base64(loaded, "5.1") == "Inner text"
    for missing_section in ("9.9", "MIME", "1.1.TEXT", "x", "0"):
        assert (
            await message_bytes.imap_body_section_as_text_or_base64(loaded, missing_section) is None
        )
    assert await message_bytes.mime_part_as_base64(loaded, "8") == "c21hbGw="
    assert await message_bytes.mime_part_as_base64(loaded, "88") is None


async def test_html_is_sanitized_by_default(ada: GraphQLClient, message_id: int) -> None:
    loaded = await load_message(ada, message_id)
    assert content.attachment_numbers_by_content_id(loaded) == {"photo@here": 4}
    urls = {"photo@here": "https://here.example/photo"}
    (sanitized,) = (await content.html_bodies(loaded, HtmlOptions(urls.get))).bodies
    assert "evil" not in sanitized
    assert "far.example" not in sanitized
    assert 'src="https://here.example/photo"' in sanitized
    (with_remote_images,) = (
        await content.html_bodies(loaded, HtmlOptions(urls.get, allows_remote_images=True))
    ).bodies
    assert "far.example" in with_remote_images
    (original,) = (
        await content.html_bodies(loaded, HtmlOptions(urls.get, is_sanitized=False))
    ).bodies
    assert original == multipart_message.HTML_TEXT.decode()


async def test_computed_content_is_cached_and_not_shared_with_others(
    ada: GraphQLClient, bob: GraphQLClient, message_id: int, statements: list[str]
) -> None:
    async def load_content() -> list[object]:
        loaded = await load_message(ada, message_id)
        html = await content.html_bodies(
            loaded, HtmlOptions(lambda cid: f"https://here.example/{cid}")
        )
        return [await content.plain_text(loaded), await content.header_fields(loaded), html]

    del statements[:]
    first = await load_content()
    assert len(statements) == 2, "the row and its bytes"
    del statements[:]
    assert await load_content() == first
    assert len(statements) == 1, "the row is read again"
    assert await content.load_stored_messages_and_log_read(client_context(bob), [message_id]) == [
        None
    ]


async def test_image_urls_in_html_are_those_of_the_viewer(
    ada: GraphQLClient, message_id: int
) -> None:
    for url in ("https://here.example/1", "https://here.example/2"):
        options = HtmlOptions({"photo@here": url}.get)
        (sanitized,) = (
            await content.html_bodies(await load_message(ada, message_id), options)
        ).bodies
        assert f'src="{url}"' in sanitized


async def test_html_is_cached_per_display_options(ada: GraphQLClient) -> None:
    page = b'<p>Hello</p><img src="https://far.example/x.png">'
    raw = b"Subject: Page\r\nContent-Type: text/html\r\n\r\n" + page
    html_message_id = (await deliver_to(ada, raw)).message_id
    for _ in range(2):
        loaded = await load_message(ada, html_message_id)
        no_urls = dict[str, str]().get
        sanitized = await content.html_bodies(loaded, HtmlOptions(no_urls))
        assert "far.example" not in sanitized.bodies[0]
        assert sanitized.blocked_image_count == 1
        with_remote_images = await content.html_bodies(
            loaded, HtmlOptions(no_urls, allows_remote_images=True)
        )
        assert "far.example" in with_remote_images.bodies[0]
        assert with_remote_images.blocked_image_count == 0
        original = await content.html_bodies(loaded, HtmlOptions(no_urls, is_sanitized=False))
        assert original.bodies == (page.decode(),)


def test_byte_cache_evicts_least_recently_used_entries() -> None:
    cache = ByteCache(100)
    for name in "abcd":
        cache.put(name, name.upper(), 30)
        cache.get("a")
    assert [cache.get(name) for name in "abcd"] == ["A", None, "C", "D"]
    assert (len(cache), cache.used_bytes) == (3, 90)
    cache.put("c", "small", 1)
    cache.put("large", "L", 101)
    cache.remove("nothing")
    assert [cache.get(name) for name in ("c", "large")] == ["small", None]
    assert (len(cache), cache.used_bytes) == (3, 61)
    default_cache = ByteCache()
    default_cache.put("x", "X", CAPACITY // 10)
    assert len(default_cache) == 0, "a large entry does not evict all others"


async def test_large_html_does_not_block_event_loop(ada: GraphQLClient) -> None:
    page = b"<p class=a>Hello <b>there</b></p>\n" * 40_000
    raw = b"Subject: Page\r\nContent-Type: text/html\r\n\r\n" + page
    loaded = await load_message(ada, (await deliver_to(ada, raw)).message_id)
    loop_cpu_before, cpu_before = time.thread_time(), time.process_time()
    (sanitized,) = (await content.html_bodies(loaded, HtmlOptions(dict[str, str]().get))).bodies
    loop_cpu_seconds = time.thread_time() - loop_cpu_before
    cpu_seconds = time.process_time() - cpu_before
    assert sanitized.count("<b>there</b>") == 40_000
    assert loop_cpu_seconds < cpu_seconds / 2


async def test_source_is_cut_at_character_and_base64_if_not_utf8(
    ada: GraphQLClient, message_id: int
) -> None:
    loaded = await load_message(ada, message_id)
    middle = MULTIPART_MESSAGE.index("ü".encode())
    assert (
        await message_bytes.message_source_as_text_or_base64(loaded, middle + 1)
        == MULTIPART_MESSAGE[:middle].decode()
    )
    assert (
        await message_bytes.message_source_as_text_or_base64(loaded, middle + 2)
        == MULTIPART_MESSAGE[: middle + 2].decode()
    )
    latin_raw = b"Subject: L\r\n\r\nGr\xfc\xdfe"
    latin_message = await load_message(ada, (await deliver_to(ada, latin_raw)).message_id)
    assert (
        await message_bytes.message_source_as_text_or_base64(latin_message)
        == "U3ViamVjdDogTA0KDQpHcvzfZQ=="
    )
    for max_bytes in (0, -1, message_bytes.MAX_RESPONSE_BYTES + 1):
        with pytest.raises(InvalidInput):
            await message_bytes.message_source_as_text_or_base64(loaded, max_bytes)


async def test_attachment_text_is_cut_at_character(ada: GraphQLClient, message_id: int) -> None:
    loaded = await load_message(ada, message_id)
    prose = multipart_message.MARKDOWN_TEXT.decode()
    assert await message_bytes.attachment_text_beginning_or_none(loaded, 5, 1 << 20) == prose
    assert await message_bytes.attachment_text_beginning_or_none(loaded, 5, 3) == "Gr"
    assert await message_bytes.attachment_text_beginning_or_none(loaded, 0) is None
    assert await message_bytes.attachment_text_beginning_or_none(loaded, 99) is None


async def test_part_over_response_limit_is_refused(
    ada: GraphQLClient, message_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_bytes, "MAX_RESPONSE_BYTES", 1000)
    loaded = await load_message(ada, message_id)
    for part_read in (
        message_bytes.imap_body_section_as_text_or_base64(loaded, "2"),
        message_bytes.mime_part_as_base64(loaded, "2"),
    ):
        with pytest.raises(LimitReached):
            await part_read


async def test_source_cut_never_splits_a_character(ada: GraphQLClient) -> None:
    raw = "Subject: All\r\n\r\naü€😀ß𝄞".encode()
    loaded = await load_message(ada, (await deliver_to(ada, raw)).message_id)
    for max_bytes in range(1, len(raw) + 2):
        assert await message_bytes.message_source_as_text_or_base64(loaded, max_bytes) == raw[
            :max_bytes
        ].decode(errors="ignore")
