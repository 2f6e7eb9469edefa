"""Splitting messages into a layout and blobs, and rebuilding them."""

import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mail.mime import base64_lines
from mail.storage.blobs import message_layout
from mail.storage.blobs.compression import decompress
from mail.storage.blobs.errors import BytesInBlob, CorruptBlob
from mail.storage.blobs.message_layout import (
    EncodedBody,
    MessageLayout,
    SplitMessage,
    parse_layout,
    rebuild_message,
)

LINE_ENDS = st.sampled_from([b"\n", b"\r\n"])
WIDTHS = st.sampled_from([1, 2, 3, 5, 60, 64, 72, 75, 76, 77, 998, 100_000])
SIZES = st.sampled_from([0, 10, 769, 1025, 3001, 50_000, 65_536, 65_537, 70_000])
CONTENTS = st.builds(lambda size, part: (part * size)[:size], SIZES, st.binary(min_size=1))


def decode_if_restorable(text: bytes) -> tuple[bytes, base64_lines.LineWrapping] | None:
    """Decode text that `encode_range` can restore, and return the content with its wrapping.

    Returns None if `encode_range` would not restore the same text.
    """
    wrapping = base64_lines.detect_wrapping(text, 0, len(text))
    try:
        return b"".join(
            base64_lines.decode_restorable_chunks(text, 0, len(text), wrapping)
        ), wrapping
    except base64_lines.IrregularBase64:
        return None


def wrap_base64(content: bytes, width: int = 76, eol: bytes = b"\r\n") -> bytes:
    text = base64.b64encode(content)
    return eol.join(text[position : position + width] for position in range(0, len(text), width))


def pseudo_random_bytes(size: int) -> bytes:
    return hashlib.shake_128(b"noise").digest(size)


@dataclass(frozen=True)
class MessageWithBodies:
    raw: bytes
    encoded_bodies: Sequence[EncodedBody]


@st.composite
def messages(draw: st.DrawFn) -> MessageWithBodies:
    """Bytes that contain bodies: valid base64, damaged base64 and random bytes."""
    raw, encoded_bodies = b"", []
    for _ in range(draw(st.integers(0, 4))):
        raw += draw(st.binary(max_size=50))
        body = draw(CONTENTS)
        if draw(st.booleans()):
            body = wrap_base64(body, draw(WIDTHS), draw(LINE_ENDS))
        if body and draw(st.integers(0, 4)) == 0:
            position = draw(st.integers(0, len(body) - 1))
            body = body[:position] + draw(st.binary(max_size=3)) + body[position + 1 :]
        body = draw(st.sampled_from([b"", b"\r\n", b" \t"])) + body
        body += draw(st.sampled_from([b"", b"\n", b"\r\n", b"\r\n\r\n", b"  "]))
        encoded_bodies.append(
            EncodedBody(
                len(raw),
                len(raw) + len(body),
                draw(st.sampled_from(["base64", "BASE64 ", "8bit"])),
            )
        )
        raw += body
    raw += draw(st.binary(max_size=50))
    offset = st.integers(-10, len(raw) + 10)
    encoded_bodies += draw(
        st.lists(st.builds(EncodedBody, offset, offset, st.just("base64")), max_size=3)
    )
    return MessageWithBodies(raw, draw(st.permutations(encoded_bodies)))


async def join_chunks(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def blob_content(blob: message_layout.NewBlob) -> bytes:
    if not isinstance(blob.content, message_layout.ContentFile):
        return blob.content
    return decompress(blob.content.codec, blob.content.path.read_bytes(), blob.content.content_size)


def content_fetcher(split: SplitMessage) -> message_layout.FetchContent:
    contents = {blob.digest: blob_content(blob) for blob in split.blobs}

    async def fetch(digest: str) -> bytes:
        return contents[digest]

    return fetch


@given(messages(), st.data())
async def test_rebuilt_message_equals_original_whole_and_in_ranges(
    message: MessageWithBodies, data: st.DataObject
) -> None:
    raw = message.raw
    split = message_layout.split_message(raw, message.encoded_bodies)
    layout = parse_layout(split.layout_bytes)
    assert len(layout) == len(raw)
    assert await join_chunks(rebuild_message(layout, content_fetcher(split))) == raw
    start = data.draw(st.integers(0, len(raw) + 10))
    end = data.draw(st.integers(start, len(raw) + 20))
    range_chunks = rebuild_message(layout, content_fetcher(split), start=start, end=end)
    assert await join_chunks(range_chunks) == raw[start:end]


@given(messages(), st.data())
def test_slice_equals_raw_message_or_names_blob(
    message: MessageWithBodies, data: st.DataObject
) -> None:
    raw = message.raw
    layout = parse_layout(message_layout.split_message(raw, message.encoded_bodies).layout_bytes)
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, len(raw) + 10))
    touched_spans = [
        blob_span
        for blob_span in layout.blob_spans
        if max(start, blob_span.start) < min(end, blob_span.end)
    ]
    if touched_spans:
        with pytest.raises(BytesInBlob) as raised:
            layout.slice(start, end)
        assert raised.value.digest == touched_spans[0].digest
    else:
        assert layout.slice(start, end) == raw[start:end]


@given(messages())
def test_blob_spans_are_inside_encoded_bodies(message: MessageWithBodies) -> None:
    split = message_layout.split_message(message.raw, message.encoded_bodies)
    for encoded_body, blob_span in zip(message.encoded_bodies, split.spans, strict=True):
        assert (
            blob_span is None
            or encoded_body.start <= blob_span.start < blob_span.end <= encoded_body.end
        )
    blob_spans = sorted(
        (blob_span for blob_span in split.spans if blob_span), key=lambda blob_span: blob_span.start
    )
    assert parse_layout(split.layout_bytes).blob_spans == tuple(blob_spans)
    assert {blob_span.digest for blob_span in blob_spans} == {blob.digest for blob in split.blobs}


@given(CONTENTS, WIDTHS, LINE_ENDS, st.data())
def test_regular_base64_is_decoded_and_encoded_in_ranges(
    content: bytes, width: int, eol: bytes, data: st.DataObject
) -> None:
    text = wrap_base64(content, width, eol)
    decoded = decode_if_restorable(text)
    assert decoded is not None
    assert decoded[0] == content
    assert base64_lines.encoded_length(len(content), decoded[1]) == len(text)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    assert base64_lines.encode_range(content, decoded[1], start, end) == text[start:end]


@given(
    st.lists(st.sampled_from([b"QUJD", b"QQ==", b"QR==", b"\n", b"\r\n", b"\r", b" ", b"="])).map(
        b"".join
    )
)
@example(b"\nQUJD")
@example(b"\r\nQUJD")
@example(b"QUJD\n")
@example(b"QR==")
@example(b"QQ==QQ==")
def test_base64_is_decoded_only_if_encoding_can_be_restored(text: bytes) -> None:
    decoded = decode_if_restorable(text)
    assert decoded is None or base64_lines.encode_range(*decoded, 0, len(text)) == text


@pytest.mark.parametrize("width", [0, 57, 75, 76, 1000])
@pytest.mark.parametrize("eol", [b"\n", b"\r\n"])
def test_long_base64_with_irregular_byte_is_not_decoded(width: int, eol: bytes) -> None:
    content = pseudo_random_bytes(3 * base64_lines.CHUNK_BYTES // 4 * 3 + 1)
    text = wrap_base64(content, width or len(content) * 2, eol)
    decoded = decode_if_restorable(text)
    assert decoded is not None
    assert decoded[0] == content
    stride = width + len(eol)
    chunk_size = (
        base64_lines.CHUNK_BYTES // (4 * stride) * 4 * stride if width else base64_lines.CHUNK_BYTES
    )
    for position in (
        1,
        chunk_size - len(eol) - 1,
        chunk_size - 1,
        chunk_size,
        chunk_size + 1,
        2 * chunk_size,
        len(text) - 3,
    ):
        for irregular_byte in (b"=", b" ", b"\n", b"\r", b"!", b"\xff"):
            spoiled = text[:position] + irregular_byte + text[position + 1 :]
            decoded_spoiled = decode_if_restorable(spoiled)
            assert (
                decoded_spoiled is None
                or base64_lines.encode_range(*decoded_spoiled, 0, len(spoiled)) == spoiled
            )
            assert spoiled == text or decoded_spoiled is None
    padded = wrap_base64(content[:1000], 20, eol) + eol + wrap_base64(content, 20, eol)
    assert decode_if_restorable(padded) is None


@pytest.mark.parametrize(
    "content", [pseudo_random_bytes(3_000_000), bytes(3_000_000)], ids=["noise", "zeros"]
)
def test_large_blobs_are_written_to_files_beside_message(content: bytes, tmp_path: Path) -> None:
    small_content = pseudo_random_bytes(5_000)
    large_body = b"  \r\n" + wrap_base64(content) + b"\r\n"
    bodies = [large_body, large_body, wrap_base64(small_content), content]
    raw = b"".join(bodies)
    ends = [sum(map(len, bodies[: nth + 1])) for nth in range(4)]
    encoded_bodies = [
        EncodedBody(end - len(body), end, "base64" if nth < 3 else "8bit")
        for nth, (body, end) in enumerate(zip(bodies, ends, strict=True))
    ]
    in_memory = message_layout.split_message(raw, encoded_bodies)
    in_files = message_layout.split_message(raw, encoded_bodies, tmp_path / "letter")
    assert (in_files.layout_bytes, in_files.spans) == (in_memory.layout_bytes, in_memory.spans)
    assert [blob.digest for blob in in_files.blobs] == [blob.digest for blob in in_memory.blobs]
    assert [blob_content(blob) for blob in in_files.blobs] == [
        blob.content for blob in in_memory.blobs
    ]
    files = [
        blob.content
        for blob in in_files.blobs
        if isinstance(blob.content, message_layout.ContentFile)
    ]
    assert [file.content_size for file in files] == [3_000_000]
    assert [file.stored_size for file in files] == [file.path.stat().st_size for file in files]
    assert sorted(tmp_path.iterdir()) == sorted(file.path for file in files)
    assert all(file.path.name.startswith("letter.") for file in files)


def base64_attachment(content: bytes) -> tuple[bytes, EncodedBody]:
    header = b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    body = wrap_base64(content) + b"\r\n"
    return header + body, EncodedBody(len(header), len(header) + len(body), "base64")


def test_attachment_is_extracted_decoded() -> None:
    content = pseudo_random_bytes(3000)
    raw, encoded_body = base64_attachment(content)
    split = message_layout.split_message(raw, [encoded_body])
    assert [blob.content for blob in split.blobs] == [content]
    assert split.blobs[0].digest == hashlib.sha256(content).hexdigest()
    assert len(split.layout_bytes) < encoded_body.start + 60


def test_equal_attachments_are_one_blob() -> None:
    raw, encoded_body = base64_attachment(b"x" * 3000)
    second_body = EncodedBody(encoded_body.start + len(raw), encoded_body.end + len(raw), "base64")
    split = message_layout.split_message(raw + raw, [encoded_body, second_body])
    assert len(split.blobs) == 1
    assert len(parse_layout(split.layout_bytes).blob_spans) == 2


def test_only_large_parts_are_extracted() -> None:
    raw = b"=C3=A9" * 20_000
    for size, is_extracted in [(64 * 1024, False), (64 * 1024 + 1, True)]:
        split = message_layout.split_message(raw, [EncodedBody(0, size, "quoted-printable")])
        assert [blob.content for blob in split.blobs] == ([raw[:size]] if is_extracted else [])
    text = wrap_base64(b"x" * 3000, 5000)
    for size, is_extracted in [(1024, False), (1028, True)]:
        assert (
            bool(message_layout.split_message(text, [EncodedBody(0, size, "base64")]).blobs)
            == is_extracted
        )


def test_base64_with_uneven_lines_is_stored_encoded() -> None:
    body = wrap_base64(b"x" * 60_000) + b"\r\n" + wrap_base64(b"y" * 60_000, 60)
    split = message_layout.split_message(body, [EncodedBody(0, len(body), "base64")])
    assert [blob.content for blob in split.blobs] == [body]
    assert not message_layout.split_message(body[-2000:], [EncodedBody(0, 2000, "base64")]).blobs[
        1:
    ]


async def test_blob_with_wrong_digest_is_refused() -> None:
    raw, encoded_body = base64_attachment(b"x" * 3000)
    layout = parse_layout(message_layout.split_message(raw, [encoded_body]).layout_bytes)
    for content in [b"x" * 2999 + b"y", b"x" * 2999, b""]:

        async def fetch(_digest: str, content: bytes = content) -> bytes:
            return content

        with pytest.raises(CorruptBlob):
            await join_chunks(rebuild_message(layout, fetch))


async def test_range_fetches_only_blobs_inside_range() -> None:
    first_part, encoded_body = base64_attachment(b"x" * 3000)
    second_part, _ = base64_attachment(b"y" * 3000)
    split = message_layout.split_message(
        first_part + second_part,
        [
            encoded_body,
            EncodedBody(
                encoded_body.start + len(first_part), encoded_body.end + len(first_part), "base64"
            ),
        ],
    )
    fetched_digests = []

    async def fetch(digest: str) -> bytes:
        fetched_digests.append(digest)
        return await content_fetcher(split)(digest)

    layout = parse_layout(split.layout_bytes)
    await join_chunks(rebuild_message(layout, fetch, end=encoded_body.start))
    assert fetched_digests == []
    await join_chunks(rebuild_message(layout, fetch, start=len(first_part)))
    assert fetched_digests == [split.blobs[1].digest]


async def test_large_message_is_rebuilt_in_small_chunks() -> None:
    raw, encoded_body = base64_attachment(pseudo_random_bytes(3_000_000))
    split = message_layout.split_message(raw, [encoded_body])
    chunks = [
        chunk
        async for chunk in rebuild_message(parse_layout(split.layout_bytes), content_fetcher(split))
    ]
    assert b"".join(chunks) == raw
    assert max(map(len, chunks)) <= 256 * 1024


def encode_varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + encode_varint(value >> 7)


DIGEST = bytes(range(32))
SPAN_ENTRY = b"\x02" + encode_varint(3000) + DIGEST + b"\x4c\x02"


@pytest.mark.parametrize(
    "container",
    [
        b"",
        b"MSK",
        b"MSK\x02\x00",  # another version
        b"MSK\x01",
        b"MSK\x01\x00x",  # literals without an entry
        b"MSK\x01\x01\x00\x02x",  # fewer literals than the entry states
        b"MSK\x01\x01\x00\x00",  # an empty literal
        b"MSK\x01\x02\x00\x01\x00\x01xy",  # two adjacent literals
        b"MSK\x01\x01\x00\x81\x00x",  # a number with too many bytes
        b"MSK\x01" + b"\xff" * 9 + b"\x01",  # a number that is too large
        b"MSK\x01\x7f",  # more entries than bytes
        b"MSK\x01\x01\x03\x01x",  # an unknown kind
        b"MSK\x01\x01" + SPAN_ENTRY[:-1],
        b"MSK\x01\x01" + SPAN_ENTRY[:-1] + b"\x03",  # an unknown line end
        b"MSK\x01\x01" + SPAN_ENTRY[:-1] + b"\x00",  # a line width without line end
        b"MSK\x01\x01" + SPAN_ENTRY[:-2] + b"\x00\x02",  # a line end without line width
        b"MSK\x01\x01" + SPAN_ENTRY + b"x",
    ],
)
def test_malformed_layout_is_refused(container: bytes) -> None:
    with pytest.raises(CorruptBlob):
        parse_layout(container)


def test_layout_of_version_1_is_readable() -> None:
    container = b"MSK\x01\x04\x00\x02" + SPAN_ENTRY + b"\x01\x05" + DIGEST + b"\x00\x01abc"
    layout = parse_layout(container)
    text_size = 4000 + 2 * 52
    assert [(blob_span.start, blob_span.end) for blob_span in layout.blob_spans] == [
        (2, 2 + text_size),
        (106 + 4000, 4111),
    ]
    assert (layout.slice(0, 2), layout.slice(4111, 9999)) == (b"ab", b"c")


@given(messages(), st.data())
def test_damaged_layout_is_parsed_or_refused(
    message: MessageWithBodies, data: st.DataObject
) -> None:
    container = bytearray(
        message_layout.split_message(message.raw, message.encoded_bodies).layout_bytes
    )
    for _ in range(data.draw(st.integers(1, 3))):
        container[data.draw(st.integers(0, len(container) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptBlob):
        assert isinstance(parse_layout(bytes(container)), MessageLayout)
