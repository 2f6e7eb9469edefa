"""Reading of stored messages, their parts and their blobs."""

import base64
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update
from sqlmodel import col

from mail import mime
from mail.mime import ParsedPart
from mail.mime.base64_lines import LineWrapping, encode_range, encoded_length
from mail.mime.part_content import decode_transfer_encoding
from mail.recipients import address_resolution
from mail.storage import received_messages
from mail.storage.blobs.base64_offsets import Base64LineOffsets
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.message_layout import BlobSpan
from mail.storage.message_content import StoredMessage, read_all
from mail.storage.message_open import open_messages_and_log_damage
from models.errors import NotFound
from models.files.blobs import Blob, MessageBlob
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import make_user
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import (
    ATTACHMENT_OFFSETS,
    ATTACHMENTS,
    LOG_CONTENT,
    MULTIPART_MESSAGE,
)

MIB = 1 << 20
FIXTURE_SETTINGS = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@dataclass
class MessageStore:
    """A writer and reader of the stored messages of one user."""

    environment: Environment

    async def store(self, raw: bytes) -> int:
        message = await received_messages.parse_storable_message(raw)
        recipient = await address_resolution.load_recipient_below_limits(
            self.environment, "ada@example.org"
        )
        return (
            await received_messages.store_once_for_recipient(
                self.environment, message, recipient, "carol@example.com"
            )
        ).message_id

    async def load(self, *ids: int) -> list[StoredMessage]:
        query = (
            select(*select_columns(Message))
            .where(col(Message.id).in_(ids))
            .order_by(col(Message.id))
        )
        return await open_messages_and_log_damage(
            self.environment, await self.environment.database.read(query)
        )


@pytest.fixture
async def message_store(environment: Environment) -> MessageStore:
    await make_user(environment, "ada")
    return MessageStore(environment)


@pytest.fixture
async def stored_message(message_store: MessageStore) -> StoredMessage:
    """The stored message RICH."""
    (message,) = await message_store.load(await message_store.store(MULTIPART_MESSAGE))
    return message


def file_parts(stored_message: StoredMessage) -> list[ParsedPart]:
    parts = [
        mime.find_part(stored_message.structure, attachment["section"])
        for attachment in stored_message.row.attachments
    ]
    return [part for part in parts if part]


OFFSETS = st.one_of(
    st.integers(0, len(MULTIPART_MESSAGE) + 9),
    st.builds(
        lambda edge, by: max(0, edge + by),
        st.sampled_from(ATTACHMENT_OFFSETS),
        st.integers(-200, 200),
    ),
)


@FIXTURE_SETTINGS
@given(OFFSETS, OFFSETS)
@example(0, len(MULTIPART_MESSAGE))
@example(5, 5)
async def test_any_range_of_stored_message_is_unchanged(
    stored_message: StoredMessage, start: int, end: int
) -> None:
    assert await read_all(stored_message.stream_raw(start, end)) == MULTIPART_MESSAGE[start:end]


@settings(max_examples=300)
@given(
    st.sampled_from([1, 2, 3, 4, 5, 60, 75, 76, 77, 998, 4000]),
    st.sampled_from([b"\n", b"\r\n"]),
    st.integers(1000, 5000),
    st.data(),
)
async def test_base64_of_any_width_is_encoded_from_any_offset(
    width: int, eol: bytes, size: int, data: st.DataObject
) -> None:
    content, wrapping = multipart_message.pseudo_random_bytes(size), LineWrapping(width, eol)
    length = encoded_length(size, wrapping)
    text = encode_range(content, wrapping, 0, length)
    lines = Base64LineOffsets(BlobSpan(0, length, "", size, wrapping))
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, length))
    quad_start, quad_end = lines.quad_start_at_or_before(start), lines.quad_start_at_or_after(end)
    encoded = lines.encode_from(content[quad_start // 4 * 3 : quad_end // 4 * 3], quad_start)
    text_start = lines.text_offset(quad_start)
    assert text_start <= start
    assert encoded[start - text_start : end - text_start] == text[start:end]


async def test_every_attachment_is_read_decoded(
    stored_message: StoredMessage,
) -> None:
    parts = file_parts(stored_message)
    assert len(parts) == len(ATTACHMENTS)
    assert len(stored_message.layout.blob_spans) == 7, "all but the small one"
    for part, file in zip(parts, ATTACHMENTS, strict=True):
        assert await stored_message.read_part(part) == file.content
        assert (await stored_message.open_part(part)).size == len(file.content)


@FIXTURE_SETTINGS
@given(st.integers(0, len(ATTACHMENTS) - 1), st.data())
async def test_any_range_of_attachment_is_read(
    stored_message: StoredMessage, nth: int, data: st.DataObject
) -> None:
    content = ATTACHMENTS[nth].content
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content) + 5))
    part = file_parts(stored_message)[nth]
    assert await read_all(stored_message.stream_part(part, start, end)) == content[start:end]


async def test_half_of_extracted_part_is_decoded(
    stored_message: StoredMessage,
) -> None:
    for nth in (1, 4):
        full_part = file_parts(stored_message)[nth]
        half_part = replace(
            full_part, body_end=full_part.body_start + 4 * ((full_part.size - 1) // 8)
        )
        expected = decode_transfer_encoding(
            MULTIPART_MESSAGE[half_part.body_start : half_part.body_end], "base64"
        )
        assert await stored_message.read_part(half_part) == expected


async def test_part_inside_extracted_message_is_read(
    stored_message: StoredMessage,
) -> None:
    section = f"{file_parts(stored_message)[3].section}.2"
    part = mime.find_part(stored_message.structure, section)
    assert part
    assert part.content_type == "application/zip"
    assert await stored_message.read_part(part) == multipart_message.INNER_ATTACHMENT


async def test_examine_rebuilds_extracted_part(stored_message: StoredMessage) -> None:
    part = file_parts(stored_message)[3].parts[0]
    fields = await stored_message.run_on_source(lambda source: mime.decoded_fields(source, part))
    assert [field.value for field in fields][:2] == ["dora@example.com", "Inside"]


async def test_blob_is_read_by_digest_only_for_its_message(
    message_store: MessageStore, stored_message: StoredMessage
) -> None:
    digest = stored_message.layout.blob_spans[0].digest
    assert await stored_message.read_blob(digest) == multipart_message.LARGE_CONTENT
    (other_message,) = await message_store.load(
        await message_store.store(b"Subject: Other\r\n\r\nHello\r\n")
    )
    with pytest.raises(CorruptBlob, match=r"of the message .* is missing"):
        await other_message.read_blob(digest)


async def test_loading_many_messages_takes_two_statements(
    message_store: MessageStore, statements: list[str]
) -> None:
    large_message = b"Subject: Large\r\n\r\n" + multipart_message.BINARY_CONTENT * 4
    raws = [b"", b"Subject: One\r\n\r\nHello", large_message, MULTIPART_MESSAGE]
    ids = [await message_store.store(raw) for raw in raws]
    del statements[:]
    messages = await message_store.load(*ids)
    assert len(statements) == 2, "one for the rows, one for their skeletons"
    assert [await read_all(message.stream_raw()) for message in messages] == raws
    assert [message.size for message in messages] == [len(raw) for raw in raws]


async def flip_bit_of_object(environment: Environment, digest: str) -> None:
    """Flip one bit of a stored object."""
    (row,) = await environment.database.read(
        select(*select_columns(Blob)).where(col(Blob.digest) == digest)
    )
    data = bytearray(await environment.object_store.get(row.name))
    data[len(data) // 2] ^= 1
    await environment.object_store.put(row.name, bytes(data))


@pytest.mark.parametrize("nth", [0, 1, 2, 3])
async def test_damage_is_detected_before_last_bytes(
    message_store: MessageStore, stored_message: StoredMessage, nth: int
) -> None:
    await flip_bit_of_object(
        message_store.environment, stored_message.layout.blob_spans[nth].digest
    )
    received = bytearray()

    async def read_chunks() -> None:
        async for chunk in stored_message.stream_part(file_parts(stored_message)[nth]):
            received.extend(chunk)

    with pytest.raises(CorruptBlob):
        await read_chunks()
    assert len(received) < len(ATTACHMENTS[nth].content)


async def test_lost_object_or_row_raises_corrupt_blob(
    message_store: MessageStore, stored_message: StoredMessage
) -> None:
    environment, part = message_store.environment, file_parts(stored_message)[0]
    names = [stored_object.name async for stored_object in environment.object_store.list()]
    await environment.object_store.delete(names)
    with pytest.raises(CorruptBlob, match="lost"):
        await stored_message.read_part(part)
    async with environment.write_session() as session:
        await session.exec(delete(MessageBlob))
    with pytest.raises(CorruptBlob, match=r"of the message .* is missing"):
        await stored_message.read_part(part)


async def test_message_deleted_while_read_raises_not_found(
    message_store: MessageStore, stored_message: StoredMessage
) -> None:
    async with message_store.environment.write_session() as session:
        await session.exec(delete(Message))
    with pytest.raises(NotFound):
        await stored_message.read_part(file_parts(stored_message)[0])


async def test_damaged_message_does_not_affect_others(
    message_store: MessageStore, caplog: pytest.LogCaptureFixture
) -> None:
    intact_id, damaged_id = [
        await message_store.store(b"Subject: %d\r\n\r\nHello" % n) for n in range(2)
    ]
    _, row = (message.row for message in await message_store.load(intact_id, damaged_id))
    async with message_store.environment.write_session() as session:
        statement = update(Blob).where(col(Blob.id) == row.blob_id).values(data=b"spoilt")
        await session.exec(statement)
    intact_message, damaged_message = await message_store.load(intact_id, damaged_id)
    assert await read_all(intact_message.stream_raw()) == b"Subject: 0\r\n\r\nHello"
    with pytest.raises(CorruptBlob):
        await read_all(damaged_message.stream_raw())
    assert "A stored message is damaged" in caplog.text


async def measure_peak_memory(chunks: AsyncIterator[bytes]) -> int:
    """Read a stream and return the peak of the allocated memory in bytes."""
    tracemalloc.start()
    try:
        async for chunk in chunks:
            assert len(chunk) <= 400_000
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGE_CONTENTS: dict[str, Callable[[], bytes]] = {
    "raw": lambda: multipart_message.pseudo_random_bytes(10 * MIB),
    "zeros": lambda: bytes(10 * MIB),
    "dense": lambda: LOG_CONTENT * 5,
    "sparse": lambda: base64.b64encode(multipart_message.pseudo_random_bytes(8 * MIB)),
}


@pytest.mark.parametrize("kind", LARGE_CONTENTS)
async def test_large_attachment_is_streamed_in_bounded_memory(
    message_store: MessageStore, kind: str
) -> None:
    content = LARGE_CONTENTS[kind]()
    assert len(content) >= 10 * MIB
    file = multipart_message.base64_attachment(
        "filename=a", content, multipart_message.base64_lines(content)
    )
    (stored_message,) = await message_store.load(
        await message_store.store(multipart_message.build_message([file]))
    )
    part = file_parts(stored_message)[0]
    assert await measure_peak_memory(stored_message.stream_part(part)) < 8 * MIB
    assert await measure_peak_memory(stored_message.stream_raw()) < 8 * MIB
    middle = len(content) // 2
    middle_bytes = await read_all(stored_message.stream_part(part, middle, middle + 1000))
    assert middle_bytes == content[middle : middle + 1000]
