"""Dots, budgets, and files that come and go."""

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
    lock_spool_folder,
)

MAIL = st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"\0", b"a", b"bcd"])).map(b"".join)
CUTS = st.lists(st.integers(1, 6), min_size=1, max_size=20)


def left(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def stuffed(mail: bytes) -> bytes:
    """As a sender has to send it."""
    lines = mail.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    turn = 0
    while data:
        size = cuts[turn % len(cuts)]
        yield data[:size]
        data, turn = data[size:], turn + 1


@given(mail=MAIL, cuts=CUTS)
def test_a_message_comes_out_as_it_was_however_it_is_cut(mail: bytes, cuts: list[int]) -> None:
    mail = mail + b"\r\n" if mail else mail
    body, out, rest = DataParser(), b"", b""
    for piece in pieces(stuffed(mail) + b".\r\nQUIT\r\n", cuts):
        if body.has_ended:
            rest += piece
        else:
            added, behind = body.feed(piece)
            out, rest = out + added, rest + behind
    assert (body.has_ended, out, rest) == (True, mail, b"QUIT\r\n")


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r\n\0.\r\n"]
)
def test_nothing_but_crlf_dot_crlf_ends_a_message(end: bytes) -> None:
    body = DataParser()
    body.feed(b"Subject: one\r\n\r\nHello" + end + b"MAIL FROM:<mallory@example.org>\r\n")
    assert not body.has_ended


def test_a_line_is_too_long_only_beyond_its_limit() -> None:
    for length, overlong in ((MAX_LINE, False), (MAX_LINE + 1, True)):
        body = DataParser()
        for piece in pieces(b"short\r\n" + b"x" * (length - 2) + b"\r\nshort\r\n", [100_000]):
            body.feed(piece)
        assert body.has_long_line is overlong


async def test_a_small_message_never_touches_the_disk(tmp_path: Path) -> None:
    with SpoolFile(tmp_path, ByteBudget(1 << 30)) as spool:
        await spool.append(b"x" * MAX_IN_MEMORY)
        assert await spool.raw_message() == b"x" * MAX_IN_MEMORY
        assert not left(tmp_path)


async def test_a_large_message_is_a_file_of_ours_alone_until_it_is_discarded(
    tmp_path: Path,
) -> None:
    budget = ByteBudget(1 << 30)
    with SpoolFile(tmp_path, budget) as spool:
        for letter in b"abc":
            await spool.append(bytes([letter]) * MAX_IN_MEMORY)
        source = await spool.raw_message()
        assert isinstance(source, Path)
        assert (
            source.read_bytes()
            == b"a" * MAX_IN_MEMORY + b"b" * MAX_IN_MEMORY + b"c" * MAX_IN_MEMORY
        )
        assert source.stat().st_mode & 0o777 == 0o600
        assert budget.used == 3 * MAX_IN_MEMORY
    assert budget.used == 0
    assert not left(tmp_path)


async def test_a_budget_is_shared_and_given_back(tmp_path: Path) -> None:
    budget = ByteBudget(100)
    with SpoolFile(tmp_path, budget) as first, SpoolFile(tmp_path, budget) as second:
        await first.append(b"x" * 60)
        with pytest.raises(OutOfSpoolSpace):
            await second.append(b"x" * 41)
        first.discard()
        await second.append(b"x" * 100)
    assert budget.used == 0


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system's own limit: a write beyond it fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_is_no_room_and_leaves_nothing(tmp_path: Path) -> None:
    with SpoolFile(tmp_path, ByteBudget(1 << 30)) as spool:
        with files_of_at_most(MAX_IN_MEMORY), pytest.raises(OutOfSpoolSpace):
            await spool.append(b"x" * (2 * MAX_IN_MEMORY))
        assert left(tmp_path)
    assert not left(tmp_path)


async def test_discarding_while_a_thread_still_writes_leaves_nothing(tmp_path: Path) -> None:
    budget = ByteBudget(1 << 30)
    for _ in range(20):
        spool = SpoolFile(tmp_path, budget)
        writing = asyncio.create_task(spool.append(b"x" * (4 * MAX_IN_MEMORY)))
        await asyncio.sleep(0)
        writing.cancel()
        spool.discard()
        await asyncio.gather(writing, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not left(tmp_path)
    assert budget.used == 0


def test_what_a_crash_left_is_removed_unless_another_still_uses_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    first = lock_spool_folder(folder)
    (folder / f"{FILE_PREFIX}abc").write_bytes(b"half a message")
    second = lock_spool_folder(folder)
    assert left(folder)
    os.close(first)
    os.close(second)
    third = lock_spool_folder(folder)
    assert not left(folder)
    os.close(third)
