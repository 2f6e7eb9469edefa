"""All attachments as one zip: what is in it, what it is called, and what it takes."""

import io
import re
import tracemalloc
import unicodedata
import zipfile
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col

from graph.http import download_urls
from graph.http.zip_download import MAX_NAME_BYTES, distinct_file_names
from mail.files.zip_stream import ZipMember, stream_zip
from models.files.blobs import Blob
from resolvers.messages import content as message_content
from tests.conftest import Client, context, receive
from tests.support.clients.http_requests import get_path, signed_path
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import FILES, RICH


async def fetched(client: Client, raw: bytes) -> zipfile.ZipFile:
    """The zip of a message, as others read it; they find nothing wrong with it."""
    key = (await receive(client, raw)).message_id
    answer = await get_path(client, download_urls.zip_path(key))
    assert answer.status_code == 200
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    return archive


def file(name: str, content: bytes = b"x", kind: str = "application/pdf") -> multipart_message.File:
    return multipart_message.base64_file(name, content, multipart_message.wrapped(content), kind)


async def test_all_files_are_in_it_decoded(ada: Client) -> None:
    archive = await fetched(ada, RICH)
    assert [archive.read(name) for name in archive.namelist()] == [one.content for one in FILES]
    assert archive.namelist() == [
        *("large.pdf", "Übersicht.log", "part-4.bin", "Inside.eml", "photo.png", "part-7.bin"),
        *("small.pdf", "odd.pdf"),
    ]
    assert {entry.date_time for entry in archive.infolist()} == {(2030, 1, 1, 0, 0, 0)}
    assert all(entry.external_attr >> 16 == 0o600 for entry in archive.infolist())


async def test_it_is_sent_as_a_file_that_nobody_keeps(ada: Client) -> None:
    key = (await receive(ada, RICH)).message_id
    for method in ("GET", "HEAD"):
        answer = await ada.http.request(method, signed_path(ada, download_urls.zip_path(key)))
        assert answer.headers["content-type"] == "application/zip"
        assert answer.headers["content-disposition"] == 'attachment; filename="Rich.zip"'
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert bool(answer.content) is (method == "GET")


async def test_nobody_else_fetches_it(ada: Client, bob: Client, http: Any) -> None:
    key = (await receive(ada, RICH)).message_id
    path = download_urls.zip_path(key)
    assert (await get_path(bob, path)).status_code == 404
    assert (await http.get(path)).status_code == 401
    other = (await receive(ada, multipart_message.raw(FILES[:1]))).message_id
    query = signed_path(ada, path).partition("?")[2]
    assert (await http.get(f"{download_urls.zip_path(other)}?{query}")).status_code == 401


async def test_where_nothing_is_attached_there_is_no_zip(ada: Client) -> None:
    key = (await receive(ada, "Nothing")).message_id
    assert (await get_path(ada, download_urls.zip_path(key))).status_code == 404
    assert (await get_path(ada, download_urls.zip_path(key + 1))).status_code == 404


TRICKS = {
    "../../etc/passwd": "_.._etc_passwd",
    "..\\..\\windows\\system.ini": "_.._windows_system.ini",
    "/absolute": "_absolute",
    "C:\\autoexec.bat": "C__autoexec.bat",
    "a/b/../c.txt": "a_b_.._c.txt",
    "..": "file",
    ".": "file",
    "": "file",
    "line\r\nbreak.txt": "linebreak.txt",
    "nul\0byte.txt": "nulbyte.txt",
    "\x1b[2Jscreen.txt": "[2Jscreen.txt",
    "gpj.\u202eexe": "gpj.exe",
    "CON": "_CON",
    "nul.txt": "_nul.txt",
    "LPT1.tar.gz": "_LPT1.tar.gz",
    "trailing. . ": "trailing",
    "  .hidden": "hidden",
    "stream.txt:evil": "stream.txt_evil",
    "half \ud800 pair.txt": "half  pair.txt",
    'quote".txt': "quote_.txt",
    "e\u0301.txt": "é.txt",
    "字" * 300 + ".docx": "字" * 65 + ".docx",
    "x" * 300: "x" * 150,
}


@pytest.mark.parametrize(("name", "safe"), TRICKS.items())
def test_no_name_leads_out_of_the_folder(name: str, safe: str) -> None:
    assert distinct_file_names([name]) == [safe]


def test_names_are_told_apart_on_every_system() -> None:
    names = ["a.txt", "A.TXT", "a.txt", "a (2).txt", "ﬁ.txt", "fi.txt", "a", "a"]
    made = distinct_file_names(names)
    assert made[:3] == ["a.txt", "A (2).TXT", "a (3).txt"]
    assert made[6:] == ["a", "a (2)"]
    assert len({unicodedata.normalize("NFKC", name).casefold() for name in made}) == len(names)


@given(st.lists(st.text(max_size=30) | st.sampled_from(["a", "A", "a (2)", "../a", "con"])))
@settings(deadline=None)
def test_whatever_they_are_called_names_are_safe_and_different(names: list[str]) -> None:
    made = distinct_file_names(names)
    assert len({name.casefold() for name in made}) == len(names)
    for name in made:
        assert 0 < len(name.encode()) <= MAX_NAME_BYTES
        assert not re.search(r'[/\\:*?"<>|\x00-\x1f\x7f]', name)
        assert name.strip(" .") == name


def test_ten_thousand_of_one_name_take_no_time() -> None:
    made = distinct_file_names(["a.txt"] * 10_000)
    assert len(set(made)) == 10_000
    assert made[-1] == "a (10000).txt"


async def test_names_that_cannot_be_written_in_ascii_come_whole(ada: Client) -> None:
    names = ["Übersicht.pdf", "報告.pdf", "🦆.pdf"]
    raw = multipart_message.raw([file(f"filename*=UTF-8''{name_quoted(name)}") for name in names])
    assert (await fetched(ada, raw)).namelist() == names


def name_quoted(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


async def test_an_archive_that_would_explode_is_bytes_like_all_others(ada: Client) -> None:
    bomb = zlib.compress(b"\0" * (64 << 20), 9)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.bin", b"\0" * (64 << 20))
    raw = multipart_message.raw(
        [file("filename=bomb.zip", sink.getvalue()), file("filename=bomb.z", bomb)]
    )
    tracemalloc.start()
    try:
        answer = await fetched(ada, raw)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.read("bomb.zip") == sink.getvalue()
    assert answer.read("bomb.z") == bomb
    assert most < 16 << 20


async def test_it_is_never_held_whole(ada: Client) -> None:
    raw = multipart_message.raw([file("filename=large.bin", multipart_message.noise(12 << 20))])
    key = (await receive(ada, raw)).message_id
    del raw
    message = await message_content.load_stored_message(context(ada), key)
    assert message
    part = message_content.attachment_part(message, 0)
    assert part
    large = ZipMember("large.bin", lambda: message.open_part(part))
    size = 0
    tracemalloc.start()
    try:
        async for piece in stream_zip([large], ada.world.now()):
            size += len(piece)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 12 << 20
    assert most < 6 << 20


async def test_a_zip_of_which_a_piece_is_damaged_is_refused(ada: Client) -> None:
    key = (
        await receive(
            ada, multipart_message.raw([file("filename=a.pdf", multipart_message.noise(50_000))])
        )
    ).message_id
    async with ada.world.write_session() as session:
        harm = update(Blob).where(col(Blob.size) == 50_000).values(data=b"\0", name=None)
        await (await session.connection()).execute(harm)
    answer = await get_path(ada, download_urls.zip_path(key))
    assert answer.status_code == 500
    assert answer.json()["errors"][0]["extensions"]["code"] == "DAMAGED"
