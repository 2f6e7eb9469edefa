"""Large messages in files are processed like messages in memory."""

import hashlib
import os
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.authentication import body_canonicalization, rewrite_own_results_and_hash_original
from mail.authentication.arc import ArcChain
from mail.authentication.body_canonicalization import (
    relaxed_body,
    relaxed_chunks,
    simple_body,
    simple_chunks,
    with_crlf,
)
from mail.authentication.dkim import AuthResult, SignedMessage
from mail.authentication.dmarc import DmarcResult
from mail.authentication.header_fields import MAX_HEADER_SIZE
from mail.authentication.results import AuthenticationFindings
from mail.compose.message_builder import without_bcc
from mail.outbound import wire_format
from mail.outbound.wire_format import WireMessage

BODY_FRAGMENTS = [
    b"\r\n",
    b"\r\n\r\n",
    b"\r",
    b"\n",
    b" ",
    b"\t",
    b" \t ",
    b"a",
    b"-",
    b"\0\xff",
    b"ab cd",
]
MESSAGE_TEXTS = st.lists(st.sampled_from(BODY_FRAGMENTS), max_size=40).map(b"".join)
NO_FINDINGS = AuthenticationFindings(None, [], DmarcResult(AuthResult.NONE), ArcChain())


@given(MESSAGE_TEXTS, st.lists(st.integers(0, 60), max_size=8))
def test_body_canonicalized_in_chunks_equals_whole_body(body: bytes, cuts: list[int]) -> None:
    offsets = [0, *sorted(cuts), len(body)]
    chunks = [body[start:end] for start, end in pairwise(offsets)]
    assert b"".join(chunks) == body
    assert b"".join(relaxed_chunks(chunks)) == relaxed_body(with_crlf(body))
    assert b"".join(simple_chunks(chunks)) == simple_body(with_crlf(body))


@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b" ", b"\r", b" \r\n", b"\t\n", b"x \r\n"])
def test_long_blanks_use_bounded_memory(blank: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_canonicalization, "READ_SIZE", 1000)
    body = blank * 20_000 + b"end"
    for full_body in (body, body + blank * 5000):
        chunks = [full_body[start : start + 777] for start in range(0, len(full_body), 777)]
        for canonicalize_chunks, canonicalize in (
            (relaxed_chunks, relaxed_body),
            (simple_chunks, simple_body),
        ):
            output_chunks = list(canonicalize_chunks(chunks))
            assert b"".join(output_chunks) == canonicalize(with_crlf(full_body))
            assert max(map(len, output_chunks)) <= 2 * 1000


@given(MESSAGE_TEXTS, MESSAGE_TEXTS, st.booleans())
def test_signed_message_from_file_equals_bytes(header: bytes, body: bytes, has_from: bool) -> None:
    raw = (b"From: a@b.example\r\nX: " if has_from else b"") + header + b"\r\n\r\n" + body
    with TemporaryDirectory() as folder:
        path = Path(folder) / "incoming-1"
        path.write_bytes(raw)
        from_bytes, from_file = SignedMessage.from_bytes(raw), SignedMessage.from_file(path)
        assert (from_file.fields, from_file.is_well_formed) == (
            from_bytes.fields,
            from_bytes.is_well_formed,
        )
        if from_bytes.is_well_formed:
            for canonicalization in ("relaxed", "simple"):
                assert from_file.body_hash(canonicalization) == from_bytes.body_hash(
                    canonicalization
                )


@pytest.mark.parametrize(
    "size", [MAX_HEADER_SIZE - 1, MAX_HEADER_SIZE, MAX_HEADER_SIZE + 1, MAX_HEADER_SIZE + 5]
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_header_size_limit_is_equal_for_file_and_bytes(
    tmp_path: Path, size: int, end: bytes
) -> None:
    line = b"X: " + b"x" * 995 + b"\r\n"
    header = (line * (size // len(line) + 1))[: size - 2] + b"\r\n"
    raw = header.replace(b"\r\nX\r\n", b"\r\nX:\r\n") + end + b"body\r\n"
    (tmp_path / "incoming-1").write_bytes(raw)
    from_bytes = SignedMessage.from_bytes(raw)
    from_file = SignedMessage.from_file(tmp_path / "incoming-1")
    assert (
        from_file.is_well_formed
        == from_bytes.is_well_formed
        == (raw.index(b"body") - len(end) <= MAX_HEADER_SIZE)
    )
    assert from_file.fields == from_bytes.fields
    if from_bytes.is_well_formed:
        assert from_file.body_hash("simple") == from_bytes.body_hash("simple")


HEADER_LINES = [
    b"Authentication-Results: front; spf=pass\r\n", b"authentication-results \t: FRONT\r\n",
    b"Authentication-Results:\r\n", b" front; dkim=pass\r\n", b"\tmore\r\n", b"X: y\r\n",
    b"Authentication-Results: else; spf=pass\n", b"Authentication-Results\r\n", b"\r", b"x\r",
    b"Authentication-Results: front", b"", b"\r\n", b"\n", b"body\r\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(HEADER_LINES), max_size=12).map(b"".join))
async def test_results_field_is_replaced_in_file_like_in_bytes(raw: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "incoming-1"
        path.write_bytes(raw)
        expected_raw, expected_digest = await rewrite_own_results_and_hash_original(
            raw, NO_FINDINGS, "mx.example", ["front"]
        )
        result_path, digest = await rewrite_own_results_and_hash_original(
            path, NO_FINDINGS, "mx.example", ["front"]
        )
        assert (result_path, digest) == (path, expected_digest)
        assert expected_digest == hashlib.sha256(raw).hexdigest()
        assert path.read_bytes() == expected_raw
        assert os.listdir(folder) == ["incoming-1"]  # noqa: PTH208 - a list is enough


async def test_unterminated_results_field_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "incoming-1"
    path.write_bytes(b"Authentication-Results: else;\r\n" + b" \r\n" * 400_000 + b"X: y\r\n\r\nz")
    await rewrite_own_results_and_hash_original(path, NO_FINDINGS, "mx.example", [])
    assert path.read_bytes() == NO_FINDINGS.to_header_field("mx.example") + b"X: y\r\n\r\nz"


@given(MESSAGE_TEXTS, st.lists(st.integers(0, 60), max_size=8), st.booleans())
async def test_wire_message_from_stream_equals_bytes(
    text: bytes, cuts: list[int], has_long_line: bool
) -> None:
    raw = b"Bcc: eve@x.example\r\n\tmore\r\nTo: a\r\n" + text + b"." * 9 * has_long_line + text
    offsets = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]

    async def open_stream() -> AsyncGenerator[bytes]:
        for start, end in pairwise(offsets):
            yield raw[start:end]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire_format, "MAX_BUFFERED_LINE", 5)  # bytes
        patch.setattr(wire_format, "PIECE_PAUSE", 0)
        streamed = await WireMessage.from_stream_without_bcc("", open_stream)
        in_memory = WireMessage.from_bytes("", without_bcc(raw))
        pieces = [piece async for piece in streamed.iter_pieces()]
    assert b"".join(pieces) == in_memory.data
    assert (len(streamed.data), streamed.has_8bit, streamed.has_utf8_header) == (
        len(in_memory.data),
        in_memory.has_8bit,
        in_memory.has_utf8_header,
    )
    assert in_memory.data.startswith(streamed.header_or_whole_message_bytes)
    for previous, following in pairwise(pieces):
        assert previous.endswith(b"\r\n") or not following.startswith(b".")
