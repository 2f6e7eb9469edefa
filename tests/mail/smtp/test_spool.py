"""Spool files: dot stuffing, byte budgets and removal."""

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.smtp.spool_file import (
    FILE_PREFIX,
    MAX_IN_MEMORY,
    MAX_LINE,
    ByteBudget,
    DataParser,
    OutOfSpoolSpace,
    SpoolFile,
    lock_and_clean_spool_folder,
)

MESSAGES = st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"\0", b"a", b"bcd"])).map(
    b"".join
)
SEGMENT_SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=20)


def spool_files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def add_dot_stuffing(mail: bytes) -> bytes:
    """Add dot stuffing as a sender must."""
    lines = mail.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)


def split_into_segments(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    index = 0
    while data:
        size = cuts[index % len(cuts)]
        yield data[:size]
        data, index = data[size:], index + 1


@given(mail=MESSAGES, cuts=SEGMENT_SIZES)
def test_message_in_any_segments_is_parsed_unchanged(mail: bytes, cuts: list[int]) -> None:
    mail = mail + b"\r\n" if mail else mail
    parser, content, rest = DataParser(), b"", b""
    for segment in split_into_segments(add_dot_stuffing(mail) + b".\r\nQUIT\r\n", cuts):
        if parser.has_ended:
            rest += segment
        else:
            added, added_rest = parser.split_at_end_of_data(segment)
            content, rest = content + added, rest + added_rest
    assert (parser.has_ended, content, rest) == (True, mail, b"QUIT\r\n")


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n\0.\r\n"]
)
def test_only_crlf_dot_crlf_ends_message(end: bytes) -> None:
    parser = DataParser()
    parser.split_at_end_of_data(
        b"Subject: one\r\n\r\nHello" + end + b"MAIL FROM:<mallory@example.org>\r\n"
    )
    assert not parser.has_ended


def test_line_above_limit_is_too_long() -> None:
    for length, expected in ((MAX_LINE, False), (MAX_LINE + 1, True)):
        parser = DataParser()
        for segment in split_into_segments(
            b"short\r\n" + b"x" * (length - 2) + b"\r\nshort\r\n", [100_000]
        ):
            parser.split_at_end_of_data(segment)
        assert parser.has_long_line is expected


async def test_small_message_is_not_written_to_disk(tmp_path: Path) -> None:
    with SpoolFile(tmp_path, ByteBudget(1 << 30)) as spool:
        await spool.append(b"x" * MAX_IN_MEMORY)
        assert await spool.raw_message() == b"x" * MAX_IN_MEMORY
        assert not spool_files(tmp_path)


async def test_large_message_is_private_file_until_discarded(
    tmp_path: Path,
) -> None:
    budget = ByteBudget(1 << 30)
    with SpoolFile(tmp_path, budget) as spool:
        for byte in b"abc":
            await spool.append(bytes([byte]) * MAX_IN_MEMORY)
        source = await spool.raw_message()
        assert isinstance(source, Path)
        assert (
            source.read_bytes()
            == b"a" * MAX_IN_MEMORY + b"b" * MAX_IN_MEMORY + b"c" * MAX_IN_MEMORY
        )
        assert source.stat().st_mode & 0o777 == 0o600
        assert budget.used == 3 * MAX_IN_MEMORY
    assert budget.used == 0
    assert not spool_files(tmp_path)


async def test_byte_budget_is_shared_and_released(tmp_path: Path) -> None:
    budget = ByteBudget(100)
    with SpoolFile(tmp_path, budget) as first_spool, SpoolFile(tmp_path, budget) as second_spool:
        await first_spool.append(b"x" * 60)
        with pytest.raises(OutOfSpoolSpace):
            await second_spool.append(b"x" * 41)
        first_spool.discard()
        await second_spool.append(b"x" * 100)
    assert budget.used == 0


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Limit the size of files, so that larger writes fail as on a full disk."""
    old_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old_limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limits)


async def test_full_disk_raises_and_leaves_no_file(tmp_path: Path) -> None:
    with SpoolFile(tmp_path, ByteBudget(1 << 30)) as spool:
        with limit_file_size(MAX_IN_MEMORY), pytest.raises(OutOfSpoolSpace):
            await spool.append(b"x" * (2 * MAX_IN_MEMORY))
        assert spool_files(tmp_path)
    assert not spool_files(tmp_path)


async def test_discard_during_write_leaves_no_file(tmp_path: Path) -> None:
    budget = ByteBudget(1 << 30)
    for _ in range(20):
        spool = SpoolFile(tmp_path, budget)
        write_task = asyncio.create_task(spool.append(b"x" * (4 * MAX_IN_MEMORY)))
        await asyncio.sleep(0)
        write_task.cancel()
        spool.discard()
        await asyncio.gather(write_task, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not spool_files(tmp_path)
    assert budget.used == 0


def test_files_left_by_crash_are_removed_if_folder_is_unused(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    first_lock = lock_and_clean_spool_folder(folder)
    (folder / f"{FILE_PREFIX}abc").write_bytes(b"half a message")
    second_lock = lock_and_clean_spool_folder(folder)
    assert spool_files(folder)
    os.close(first_lock)
    os.close(second_lock)
    third_lock = lock_and_clean_spool_folder(folder)
    assert not spool_files(folder)
    os.close(third_lock)
