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


def wrap(content: bytes, width: int = 76, eol: bytes = b"\r\n") -> bytes:
    text = base64.b64encode(content)
    return eol.join(text[at : at + width] for at in range(0, len(text), width))


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"noise").digest(size)


@dataclass(frozen=True)
class Example:
    raw: bytes
    cuts: Sequence[EncodedBody]


@st.composite
def messages(draw: st.DrawFn) -> Example:
    """Bytes with bodies in them: proper base64, spoilt base64, anything."""
    raw, cuts = b"", []
    for _ in range(draw(st.integers(0, 4))):
        raw += draw(st.binary(max_size=50))
        body = draw(CONTENTS)
        if draw(st.booleans()):
            body = wrap(body, draw(WIDTHS), draw(LINE_ENDS))
        if body and draw(st.integers(0, 4)) == 0:
            at = draw(st.integers(0, len(body) - 1))
            body = body[:at] + draw(st.binary(max_size=3)) + body[at + 1 :]
        body = draw(st.sampled_from([b"", b"\r\n", b" \t"])) + body
        body += draw(st.sampled_from([b"", b"\n", b"\r\n", b"\r\n\r\n", b"  "]))
        cuts.append(
            EncodedBody(
                len(raw),
                len(raw) + len(body),
                draw(st.sampled_from(["base64", "BASE64 ", "8bit"])),
            )
        )
        raw += body
    raw += draw(st.binary(max_size=50))
    offset = st.integers(-10, len(raw) + 10)
    cuts += draw(st.lists(st.builds(EncodedBody, offset, offset, st.just("base64")), max_size=3))
    return Example(raw, draw(st.permutations(cuts)))


async def all_of(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def content_of(piece: message_layout.NewBlob) -> bytes:
    if not isinstance(piece.content, message_layout.ContentFile):
        return piece.content
    return decompress(
        piece.content.codec, piece.content.path.read_bytes(), piece.content.content_size
    )


def larder(packed: SplitMessage) -> message_layout.FetchContent:
    contents = {piece.digest: content_of(piece) for piece in packed.blobs}

    async def fetch(digest: str) -> bytes:
        return contents[digest]

    return fetch


@given(messages(), st.data())
async def test_any_message_comes_back_byte_for_byte_whole_and_in_parts(
    message: Example, data: st.DataObject
) -> None:
    raw = message.raw
    packed = message_layout.split_message(raw, message.cuts)
    skeleton = parse_layout(packed.layout_bytes)
    assert len(skeleton) == len(raw)
    assert await all_of(rebuild_message(skeleton, larder(packed))) == raw
    start = data.draw(st.integers(0, len(raw) + 10))
    end = data.draw(st.integers(start, len(raw) + 20))
    part = rebuild_message(skeleton, larder(packed), start=start, end=end)
    assert await all_of(part) == raw[start:end]


@given(messages(), st.data())
def test_a_slice_is_that_of_the_raw_message_or_names_the_piece(
    message: Example, data: st.DataObject
) -> None:
    raw = message.raw
    skeleton = parse_layout(message_layout.split_message(raw, message.cuts).layout_bytes)
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, len(raw) + 10))
    touched = [hole for hole in skeleton.blob_spans if max(start, hole.start) < min(end, hole.end)]
    if touched:
        with pytest.raises(BytesInBlob) as caught:
            skeleton.slice(start, end)
        assert caught.value.digest == touched[0].digest
    else:
        assert skeleton.slice(start, end) == raw[start:end]


@given(messages())
def test_a_gap_lies_in_its_cut_and_holes_are_the_gaps(message: Example) -> None:
    packed = message_layout.split_message(message.raw, message.cuts)
    for cut, gap in zip(message.cuts, packed.spans, strict=True):
        assert gap is None or cut.start <= gap.start < gap.end <= cut.end
    gaps = sorted((gap for gap in packed.spans if gap), key=lambda gap: gap.start)
    assert parse_layout(packed.layout_bytes).blob_spans == tuple(gaps)
    assert {gap.digest for gap in gaps} == {piece.digest for piece in packed.blobs}


@given(CONTENTS, WIDTHS, LINE_ENDS, st.data())
def test_regular_base64_is_read_and_each_part_of_it_written_again(
    content: bytes, width: int, eol: bytes, data: st.DataObject
) -> None:
    text = wrap(content, width, eol)
    found = base64_lines.decode_with_wrapping(text)
    assert found is not None
    assert found[0] == content
    assert base64_lines.encoded_length(len(content), found[1]) == len(text)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    assert base64_lines.encode(content, found[1], start, end) == text[start:end]


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
def test_base64_is_only_taken_when_it_can_be_written_again(text: bytes) -> None:
    found = base64_lines.decode_with_wrapping(text)
    assert found is None or base64_lines.encode(*found, 0, len(text)) == text


@pytest.mark.parametrize("width", [0, 57, 75, 76, 1000])
@pytest.mark.parametrize("eol", [b"\n", b"\r\n"])
def test_long_base64_is_read_in_steps_wherever_it_is_odd(width: int, eol: bytes) -> None:
    content = noise(3 * base64_lines.CHUNK_BYTES // 4 * 3 + 1)
    text = wrap(content, width or len(content) * 2, eol)
    found = base64_lines.decode_with_wrapping(text)
    assert found is not None
    assert found[0] == content
    stride = width + len(eol)
    step = (
        base64_lines.CHUNK_BYTES // (4 * stride) * 4 * stride if width else base64_lines.CHUNK_BYTES
    )
    for at in (1, step - len(eol) - 1, step - 1, step, step + 1, 2 * step, len(text) - 3):
        for odd in (b"=", b" ", b"\n", b"\r", b"!", b"\xff"):
            spoiled = text[:at] + odd + text[at + 1 :]
            read = base64_lines.decode_with_wrapping(spoiled)
            assert read is None or base64_lines.encode(*read, 0, len(spoiled)) == spoiled
            assert spoiled == text or read is None
    padded = wrap(content[:1000], 20, eol) + eol + wrap(content, 20, eol)
    assert base64_lines.decode_with_wrapping(padded) is None


@pytest.mark.parametrize("content", [noise(3_000_000), bytes(3_000_000)], ids=["noise", "zeros"])
def test_large_pieces_lie_in_files_beside_the_message(content: bytes, tmp_path: Path) -> None:
    small, large = noise(5_000), b"  \r\n" + wrap(content) + b"\r\n"
    bodies = [large, large, wrap(small), content]
    raw = b"".join(bodies)
    ends = [sum(map(len, bodies[: nth + 1])) for nth in range(4)]
    cuts = [
        EncodedBody(end - len(body), end, "base64" if nth < 3 else "8bit")
        for nth, (body, end) in enumerate(zip(bodies, ends, strict=True))
    ]
    plain = message_layout.split_message(raw, cuts)
    beside = message_layout.split_message(raw, cuts, tmp_path / "letter")
    assert (beside.layout_bytes, beside.spans) == (plain.layout_bytes, plain.spans)
    assert [piece.digest for piece in beside.blobs] == [piece.digest for piece in plain.blobs]
    assert [content_of(piece) for piece in beside.blobs] == [piece.content for piece in plain.blobs]
    files = [
        piece.content
        for piece in beside.blobs
        if isinstance(piece.content, message_layout.ContentFile)
    ]
    assert [each.content_size for each in files] == [3_000_000]
    assert [each.stored_size for each in files] == [each.path.stat().st_size for each in files]
    assert sorted(tmp_path.iterdir()) == sorted(each.path for each in files)
    assert all(each.path.name.startswith("letter.") for each in files)


def attachment(content: bytes) -> tuple[bytes, EncodedBody]:
    head = b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    body = wrap(content) + b"\r\n"
    return head + body, EncodedBody(len(head), len(head) + len(body), "base64")


def test_an_attachment_is_cut_out_decoded() -> None:
    content = noise(3000)
    raw, cut = attachment(content)
    packed = message_layout.split_message(raw, [cut])
    assert [piece.content for piece in packed.blobs] == [content]
    assert packed.blobs[0].digest == hashlib.sha256(content).hexdigest()
    assert len(packed.layout_bytes) < cut.start + 60


def test_two_equal_attachments_are_one_piece() -> None:
    raw, cut = attachment(b"x" * 3000)
    again = EncodedBody(cut.start + len(raw), cut.end + len(raw), "base64")
    packed = message_layout.split_message(raw + raw, [cut, again])
    assert len(packed.blobs) == 1
    assert len(parse_layout(packed.layout_bytes).blob_spans) == 2


def test_small_parts_stay_and_large_ones_of_any_encoding_go() -> None:
    raw = b"=C3=A9" * 20_000
    for size, cut_out in [(64 * 1024, False), (64 * 1024 + 1, True)]:
        packed = message_layout.split_message(raw, [EncodedBody(0, size, "quoted-printable")])
        assert [piece.content for piece in packed.blobs] == ([raw[:size]] if cut_out else [])
    text = wrap(b"x" * 3000, 5000)
    for size, cut_out in [(1024, False), (1028, True)]:
        assert (
            bool(message_layout.split_message(text, [EncodedBody(0, size, "base64")]).blobs)
            == cut_out
        )


def test_base64_of_uneven_lines_is_kept_as_it_is() -> None:
    body = wrap(b"x" * 60_000) + b"\r\n" + wrap(b"y" * 60_000, 60)
    packed = message_layout.split_message(body, [EncodedBody(0, len(body), "base64")])
    assert [piece.content for piece in packed.blobs] == [body]
    assert not message_layout.split_message(body[-2000:], [EncodedBody(0, 2000, "base64")]).blobs[
        1:
    ]


async def test_a_piece_with_other_bytes_than_its_digest_is_refused() -> None:
    raw, cut = attachment(b"x" * 3000)
    skeleton = parse_layout(message_layout.split_message(raw, [cut]).layout_bytes)
    for content in [b"x" * 2999 + b"y", b"x" * 2999, b""]:

        async def fetch(_digest: str, content: bytes = content) -> bytes:
            return content

        with pytest.raises(CorruptBlob):
            await all_of(rebuild_message(skeleton, fetch))


async def test_a_range_fetches_only_the_pieces_it_touches() -> None:
    first, cut = attachment(b"x" * 3000)
    second, _ = attachment(b"y" * 3000)
    packed = message_layout.split_message(
        first + second, [cut, EncodedBody(cut.start + len(first), cut.end + len(first), "base64")]
    )
    asked = []

    async def fetch(digest: str) -> bytes:
        asked.append(digest)
        return await larder(packed)(digest)

    skeleton = parse_layout(packed.layout_bytes)
    await all_of(rebuild_message(skeleton, fetch, end=cut.start))
    assert asked == []
    await all_of(rebuild_message(skeleton, fetch, start=len(first)))
    assert asked == [packed.blobs[1].digest]


async def test_a_large_message_comes_in_small_chunks() -> None:
    raw, cut = attachment(noise(3_000_000))
    packed = message_layout.split_message(raw, [cut])
    chunks = [
        chunk async for chunk in rebuild_message(parse_layout(packed.layout_bytes), larder(packed))
    ]
    assert b"".join(chunks) == raw
    assert max(map(len, chunks)) <= 256 * 1024


def number(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


DIGEST = bytes(range(32))
HOLE = b"\x02" + number(3000) + DIGEST + b"\x4c\x02"


@pytest.mark.parametrize(
    "container",
    [
        b"",
        b"MSK",
        b"MSK\x02\x00",  # another version
        b"MSK\x01",
        b"MSK\x01\x00x",  # literals nobody wants
        b"MSK\x01\x01\x00\x02x",  # fewer literals than wanted
        b"MSK\x01\x01\x00\x00",  # an empty literal
        b"MSK\x01\x02\x00\x01\x00\x01xy",  # two literals side by side
        b"MSK\x01\x01\x00\x81\x00x",  # a number longer than need be
        b"MSK\x01" + b"\xff" * 9 + b"\x01",  # a number too large
        b"MSK\x01\x7f",  # more entries than bytes
        b"MSK\x01\x01\x03\x01x",  # no such kind
        b"MSK\x01\x01" + HOLE[:-1],
        b"MSK\x01\x01" + HOLE[:-1] + b"\x03",  # no such line end
        b"MSK\x01\x01" + HOLE[:-1] + b"\x00",  # lines without an end
        b"MSK\x01\x01" + HOLE[:-2] + b"\x00\x02",  # a line end without lines
        b"MSK\x01\x01" + HOLE + b"x",
    ],
)
def test_a_skeleton_that_pack_would_not_write_is_refused(container: bytes) -> None:
    with pytest.raises(CorruptBlob):
        parse_layout(container)


def test_the_format_of_the_first_version_stays_readable() -> None:
    container = b"MSK\x01\x04\x00\x02" + HOLE + b"\x01\x05" + DIGEST + b"\x00\x01abc"
    skeleton = parse_layout(container)
    text = 4000 + 2 * 52
    assert [(hole.start, hole.end) for hole in skeleton.blob_spans] == [
        (2, 2 + text),
        (106 + 4000, 4111),
    ]
    assert (skeleton.slice(0, 2), skeleton.slice(4111, 9999)) == (b"ab", b"c")


@given(messages(), st.data())
def test_a_spoilt_skeleton_is_read_or_refused(message: Example, data: st.DataObject) -> None:
    container = bytearray(message_layout.split_message(message.raw, message.cuts).layout_bytes)
    for _ in range(data.draw(st.integers(1, 3))):
        container[data.draw(st.integers(0, len(container) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptBlob):
        assert isinstance(parse_layout(bytes(container)), MessageLayout)
