"""Compression and digests of blobs."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mail.storage.blobs.compression import (
    compress_if_smaller,
    content_digest,
    decompress,
    verify_digest,
)
from mail.storage.blobs.errors import CorruptBlob


@given(st.binary(max_size=2000), st.integers(1, 50))
def test_compressed_bytes_are_restored_and_not_larger(part: bytes, times: int) -> None:
    data = part * times
    codec, stored = compress_if_smaller(data)
    assert len(stored) <= len(data)
    assert decompress(codec, stored, len(data)) == data


def test_incompressible_bytes_are_stored_raw() -> None:
    noise = os.urandom(5000)
    assert compress_if_smaller(noise) == ("raw", noise)
    assert compress_if_smaller(b"") == ("raw", b"")
    assert compress_if_smaller(b"a" * 5000)[0] == "zstd"


@pytest.mark.parametrize("size", [0, 999_999, 1_000_001])
def test_frame_with_other_size_is_refused(size: int) -> None:
    codec, frame = compress_if_smaller(b"\0" * 1_000_000)
    with pytest.raises(CorruptBlob):
        decompress(codec, frame, size)


def test_frame_larger_than_its_stated_size_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(b"\0" * 1_000_000))
    claim = (1_000_000).to_bytes(4, "little")
    position = frame.index(claim)
    frame[position : position + 4] = (1000).to_bytes(4, "little")
    with pytest.raises(CorruptBlob):
        decompress("zstd", bytes(frame), 1000)


def test_frame_without_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 1000)
    with pytest.raises(CorruptBlob):
        decompress("zstd", frame, 1000)


@given(st.sampled_from(["raw", "zstd", "gzip"]), st.binary(max_size=100), st.integers(0, 1000))
def test_random_frame_has_given_size_or_is_refused(codec: str, data: bytes, size: int) -> None:
    with suppress(CorruptBlob):
        assert len(decompress(codec, data, size)) == size


@pytest.mark.parametrize("damage", [lambda frame: frame[:-1], lambda frame: frame + b"x"])
def test_truncated_or_extended_frame_is_refused(damage: object) -> None:
    assert callable(damage)
    data = b"Hello " * 1000
    codec, frame = compress_if_smaller(data)
    with pytest.raises(CorruptBlob):
        decompress(codec, damage(frame), len(data))


def test_compression_is_thread_safe() -> None:
    contents = [os.urandom(100) * (100 + index) for index in range(64)]

    def compress_and_decompress(content: bytes) -> bytes:
        codec, stored = compress_if_smaller(content)
        return decompress(codec, stored, len(content))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(compress_and_decompress, contents)) == contents


def test_content_with_other_digest_is_refused() -> None:
    assert verify_digest(content_digest(b"abc"), b"abc") == b"abc"
    with pytest.raises(CorruptBlob):
        verify_digest(content_digest(b"abc"), b"abd")
