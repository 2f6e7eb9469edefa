"""Stored messages, read again."""

import base64
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update
from sqlmodel import col

from mail import mime
from mail.mime import ParsedPart
from mail.mime.base64_lines import LineWrapping, encode, encoded_length
from mail.mime.part_content import decode_transfer_encoding
from mail.recipients import address_resolution
from mail.storage import received_messages
from mail.storage.blobs.base64_offsets import Base64LineOffsets
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.message_layout import BlobSpan
from mail.storage.message_content import StoredMessage, open_messages, read_all
from models.errors import NotFound
from models.files.blobs import Blob, MessageBlob
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import make_user
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import EDGES, FILES, LOG, RICH

MIB = 1 << 20
KEPT = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Reader:
    """Puts messages into the store of a user, and takes them out again."""

    world: Environment

    async def put(self, raw: bytes) -> int:
        letter = await received_messages.read_message(raw)
        to = await address_resolution.load_recipient(self.world, "ada@example.org")
        return (
            await received_messages.store_for_recipient(self.world, letter, to, "carol@example.com")
        ).message_id

    async def take(self, *ids: int) -> list[StoredMessage]:
        asked = (
            select(*select_columns(Message))
            .where(col(Message.id).in_(ids))
            .order_by(col(Message.id))
        )
        return await open_messages(self.world, await self.world.database.read(asked))


@pytest.fixture
async def reader(world: Environment) -> Reader:
    await make_user(world, "ada")
    return Reader(world)


@pytest.fixture
async def stored(reader: Reader) -> StoredMessage:
    """The rich message."""
    (found,) = await reader.take(await reader.put(RICH))
    return found


def files(stored: StoredMessage) -> list[ParsedPart]:
    found = [mime.find_part(stored.structure, each["part"]) for each in stored.row.attachments]
    return [part for part in found if part]


OFFSETS = st.one_of(
    st.integers(0, len(RICH) + 9),
    st.builds(lambda edge, by: max(0, edge + by), st.sampled_from(EDGES), st.integers(-200, 200)),
)


@KEPT
@given(OFFSETS, OFFSETS)
@example(0, len(RICH))
@example(5, 5)
async def test_any_range_of_a_stored_message_is_what_came(
    stored: StoredMessage, start: int, end: int
) -> None:
    assert await read_all(stored.stream_raw(start, end)) == RICH[start:end]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([1, 2, 3, 4, 5, 60, 75, 76, 77, 998, 4000]),
    st.sampled_from([b"\n", b"\r\n"]),
    st.integers(1000, 5000),
    st.data(),
)
async def test_base64_of_any_width_comes_back_from_any_place_in_its_text(
    width: int, eol: bytes, size: int, data: st.DataObject
) -> None:
    content, wrapping = multipart_message.noise(size), LineWrapping(width, eol)
    length = encoded_length(size, wrapping)
    text = encode(content, wrapping, 0, length)
    lines = Base64LineOffsets(BlobSpan(0, length, "", size, wrapping))
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, length))
    at, until = lines.quad_start_at_or_before(start), lines.quad_start_at_or_after(end)
    found = lines.encode_from(content[at // 4 * 3 : until // 4 * 3], at)
    here = lines.text_offset(at)
    assert here <= start
    assert found[start - here : end - here] == text[start:end]


async def test_every_attachment_comes_back_decoded_however_it_is_stored(
    stored: StoredMessage,
) -> None:
    parts = files(stored)
    assert len(parts) == len(FILES)
    assert len(stored.layout.blob_spans) == 7, "all but the small one"
    for part, file in zip(parts, FILES, strict=True):
        assert await stored.read_part(part) == file.content
        assert (await stored.open_part(part)).size == len(file.content)


@KEPT
@given(st.integers(0, len(FILES) - 1), st.data())
async def test_any_range_of_an_attachment_is_that_of_its_content(
    stored: StoredMessage, nth: int, data: st.DataObject
) -> None:
    content = FILES[nth].content
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content) + 5))
    part = files(stored)[nth]
    assert await read_all(stored.stream_part(part, start, end)) == content[start:end]


async def test_a_part_that_is_half_of_a_cut_one_is_decoded_from_its_own_half(
    stored: StoredMessage,
) -> None:
    for nth in (1, 4):
        whole = files(stored)[nth]
        half = replace(whole, body_end=whole.body_start + 4 * ((whole.size - 1) // 8))
        expected = decode_transfer_encoding(RICH[half.body_start : half.body_end], "base64")
        assert await stored.read_part(half) == expected


async def test_a_part_inside_an_attached_message_that_was_cut_out_is_read(
    stored: StoredMessage,
) -> None:
    section = f"{files(stored)[3].section}.2"
    part = mime.find_part(stored.structure, section)
    assert part
    assert part.content_type == "application/zip"
    assert await stored.read_part(part) == multipart_message.INNER


async def test_whoever_looks_into_a_cut_part_gets_it_put_back(stored: StoredMessage) -> None:
    part = files(stored)[3].parts[0]
    found = await stored.examine(lambda source: mime.decoded_fields(source, part))
    assert [field.value for field in found][:2] == ["dora@example.com", "Inside"]


async def test_a_piece_is_given_by_its_digest_and_only_to_a_message_that_has_it(
    reader: Reader, stored: StoredMessage
) -> None:
    digest = stored.layout.blob_spans[0].digest
    assert await stored.read_blob(digest) == multipart_message.LARGE
    (other,) = await reader.take(await reader.put(b"Subject: Other\r\n\r\nHello\r\n"))
    with pytest.raises(CorruptBlob, match="lacks its piece"):
        await other.read_blob(digest)


async def test_many_messages_take_one_statement_and_only_large_ones_the_store(
    reader: Reader, statements: list[str]
) -> None:
    large = b"Subject: Large\r\n\r\n" + multipart_message.BINARY * 4
    raws = [b"", b"Subject: One\r\n\r\nHello", large, RICH]
    ids = [await reader.put(raw) for raw in raws]
    del statements[:]
    found = await reader.take(*ids)
    assert len(statements) == 2, "one for the rows, one for their skeletons"
    assert [await read_all(each.stream_raw()) for each in found] == raws
    assert [each.size for each in found] == [len(raw) for raw in raws]


async def overwritten(world: Environment, digest: str) -> None:
    """Turn a bit of a stored object."""
    (row,) = await world.database.read(
        select(*select_columns(Blob)).where(col(Blob.digest) == digest)
    )
    packed = bytearray(await world.object_store.get(row.name))
    packed[len(packed) // 2] ^= 1
    await world.object_store.put(row.name, bytes(packed))


@pytest.mark.parametrize("nth", [0, 1, 2, 3])
async def test_damage_is_noticed_before_the_last_bytes_are_given(
    reader: Reader, stored: StoredMessage, nth: int
) -> None:
    await overwritten(reader.world, stored.layout.blob_spans[nth].digest)
    got = bytearray()

    async def read() -> None:
        async for chunk in stored.stream_part(files(stored)[nth]):
            got.extend(chunk)

    with pytest.raises(CorruptBlob):
        await read()
    assert len(got) < len(FILES[nth].content)


async def test_a_lost_object_and_a_lost_row_are_damage(
    reader: Reader, stored: StoredMessage
) -> None:
    world, part = reader.world, files(stored)[0]
    names = [each.name async for each in world.object_store.list()]
    await world.object_store.delete(names)
    with pytest.raises(CorruptBlob, match="lost"):
        await stored.read_part(part)
    async with world.write_session() as session:
        await session.exec(delete(MessageBlob))
    with pytest.raises(CorruptBlob, match="lacks its piece"):
        await stored.read_part(part)


async def test_a_message_that_is_deleted_while_it_is_read_is_not_there(
    reader: Reader, stored: StoredMessage
) -> None:
    async with reader.world.write_session() as session:
        await session.exec(delete(Message))
    with pytest.raises(NotFound):
        await stored.read_part(files(stored)[0])


async def test_one_damaged_message_does_not_spoil_the_others(
    reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = [await reader.put(b"Subject: %d\r\n\r\nHello" % n) for n in range(2)]
    _, row = (each.row for each in await reader.take(good, bad))
    async with reader.world.write_session() as session:
        spoilt = update(Blob).where(col(Blob.id) == row.blob_id).values(data=b"spoilt")
        await session.exec(spoilt)
    first, second = await reader.take(good, bad)
    assert await read_all(first.stream_raw()) == b"Subject: 0\r\n\r\nHello"
    with pytest.raises(CorruptBlob):
        await read_all(second.stream_raw())
    assert "a stored message is damaged" in caplog.text


async def peak(chunks: AsyncIterator[bytes]) -> int:
    """The most memory taken while a stream is read and forgotten."""
    tracemalloc.start()
    try:
        async for chunk in chunks:
            assert len(chunk) <= 400_000
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        multipart_message.noise(24 * MIB),
        bytes(24 * MIB),
        LOG * 10,
        base64.b64encode(multipart_message.noise(9 * MIB)),
    ],
    ids=["raw", "zeros", "dense", "sparse"],
)
async def test_a_large_attachment_is_streamed_in_little_memory(
    reader: Reader, content: bytes
) -> None:
    file = multipart_message.base64_file("filename=a", content, multipart_message.wrapped(content))
    (stored,) = await reader.take(await reader.put(multipart_message.raw([file])))
    part = files(stored)[0]
    assert await peak(stored.stream_part(part)) < 8 * MIB
    assert await peak(stored.stream_raw()) < 8 * MIB
    middle = len(content) // 2
    found = await read_all(stored.stream_part(part, middle, middle + 1000))
    assert found == content[middle : middle + 1000]
