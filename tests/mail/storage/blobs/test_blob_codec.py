import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mail.storage.blobs.compression import compress, content_digest, decompress, verify_digest
from mail.storage.blobs.errors import CorruptBlob


@given(st.binary(max_size=2000), st.integers(1, 50))
def test_bytes_come_back_and_never_take_more_room_than_before(part: bytes, times: int) -> None:
    data = part * times
    codec, stored = compress(data)
    assert len(stored) <= len(data)
    assert decompress(codec, stored, len(data)) == data


def test_what_does_not_shrink_is_kept_as_it_is() -> None:
    noise = os.urandom(5000)
    assert compress(noise) == ("raw", noise)
    assert compress(b"") == ("raw", b"")
    assert compress(b"a" * 5000)[0] == "zstd"


@pytest.mark.parametrize("size", [0, 999_999, 1_000_001])
def test_a_frame_that_claims_another_size_is_refused(size: int) -> None:
    codec, bomb = compress(b"\0" * 1_000_000)
    with pytest.raises(CorruptBlob):
        decompress(codec, bomb, size)


def test_a_frame_that_holds_more_than_it_claims_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(b"\0" * 1_000_000))
    claim = (1_000_000).to_bytes(4, "little")
    at = frame.index(claim)
    frame[at : at + 4] = (1000).to_bytes(4, "little")
    with pytest.raises(CorruptBlob):
        decompress("zstd", bytes(frame), 1000)


def test_a_frame_without_a_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 1000)
    with pytest.raises(CorruptBlob):
        decompress("zstd", frame, 1000)


@given(st.sampled_from(["raw", "zstd", "gzip"]), st.binary(max_size=100), st.integers(0, 1000))
def test_strange_bytes_are_expanded_to_their_size_or_refused(
    codec: str, data: bytes, size: int
) -> None:
    with suppress(CorruptBlob):
        assert len(decompress(codec, data, size)) == size


@pytest.mark.parametrize("spoil", [lambda frame: frame[:-1], lambda frame: frame + b"x"])
def test_a_frame_that_is_cut_short_or_goes_on_is_refused(spoil: object) -> None:
    assert callable(spoil)
    data = b"Hello " * 1000
    codec, frame = compress(data)
    with pytest.raises(CorruptBlob):
        decompress(codec, spoil(frame), len(data))


def test_threads_do_not_disturb_each_other() -> None:
    contents = [os.urandom(100) * (100 + index) for index in range(64)]

    def there_and_back(content: bytes) -> bytes:
        codec, stored = compress(content)
        return decompress(codec, stored, len(content))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(there_and_back, contents)) == contents


def test_a_content_is_held_against_its_digest() -> None:
    assert verify_digest(content_digest(b"abc"), b"abc") == b"abc"
    with pytest.raises(CorruptBlob):
        verify_digest(content_digest(b"abc"), b"abd")
