"""Tests of the zip file of all attachments: its content, its file names and its memory use."""

import io
import re
import tracemalloc
import unicodedata
import zipfile
import zlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col

from graph.http import download_urls
from graph.http.zip_download import MAX_NAME_BYTES, safe_and_distinct_file_names
from mail.files.zip_stream import ZipMember, stream_zip
from models.files.blobs import Blob
from resolvers.messages import content as message_content
from resolvers.messages import message_bytes
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.case_loop import each_case
from tests.support.clients.http_requests import get_path, signed_path
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import ATTACHMENTS, MULTIPART_MESSAGE


async def fetch_zip(client: GraphQLClient, raw: bytes) -> zipfile.ZipFile:
    """Download the zip file of a message and check it with zipfile."""
    message_id = (await deliver_to(client, raw)).message_id
    response = await get_path(client, download_urls.zip_path(message_id))
    assert response.status_code == 200
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.testzip() is None
    return archive


def pdf_file(
    name: str, content: bytes = b"x", kind: str = "application/pdf"
) -> multipart_message.AttachmentPart:
    return multipart_message.base64_attachment(
        name, content, multipart_message.base64_lines(content), kind
    )


async def test_zip_contains_all_attachments_decoded(ada: GraphQLClient) -> None:
    archive = await fetch_zip(ada, MULTIPART_MESSAGE)
    assert [archive.read(name) for name in archive.namelist()] == [
        attachment.content for attachment in ATTACHMENTS
    ]
    assert archive.namelist() == [
        *("large.pdf", "Übersicht.log", "part-4.bin", "Inside.eml", "photo.png", "part-7.bin"),
        *("small.pdf", "odd.pdf"),
    ]
    assert {entry.date_time for entry in archive.infolist()} == {(2030, 1, 1, 0, 0, 0)}
    assert all(entry.external_attr >> 16 == 0o600 for entry in archive.infolist())


async def test_zip_is_sent_as_attachment_without_caching(ada: GraphQLClient) -> None:
    message_id = (await deliver_to(ada, MULTIPART_MESSAGE)).message_id
    for method in ("GET", "HEAD"):
        response = await ada.http.request(
            method, signed_path(ada, download_urls.zip_path(message_id))
        )
        assert response.headers["content-type"] == "application/zip"
        assert response.headers["content-disposition"] == 'attachment; filename="Rich.zip"'
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert bool(response.content) is (method == "GET")


async def test_zip_of_other_user_is_not_found(
    ada: GraphQLClient, bob: GraphQLClient, http: Any
) -> None:
    message_id = (await deliver_to(ada, MULTIPART_MESSAGE)).message_id
    path = download_urls.zip_path(message_id)
    assert (await get_path(bob, path)).status_code == 404
    assert (await http.get(path)).status_code == 401
    other_id = (await deliver_to(ada, multipart_message.build_message(ATTACHMENTS[:1]))).message_id
    query = signed_path(ada, path).partition("?")[2]
    assert (await http.get(f"{download_urls.zip_path(other_id)}?{query}")).status_code == 401


async def test_message_without_attachments_has_no_zip(ada: GraphQLClient) -> None:
    message_id = (await deliver_to(ada, "Nothing")).message_id
    assert (await get_path(ada, download_urls.zip_path(message_id))).status_code == 404
    assert (await get_path(ada, download_urls.zip_path(message_id + 1))).status_code == 404


SAFE_NAMES_BY_NAME = {
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


def test_file_name_in_zip_is_safe() -> None:
    for case in each_case(SAFE_NAMES_BY_NAME.items()):
        with case as (name, safe):
            assert safe_and_distinct_file_names([name]) == [safe]


def test_file_names_are_distinct_on_every_system() -> None:
    names = ["a.txt", "A.TXT", "a.txt", "a (2).txt", "ﬁ.txt", "fi.txt", "a", "a"]
    distinct_names = safe_and_distinct_file_names(names)
    assert distinct_names[:3] == ["a.txt", "A (2).TXT", "a (3).txt"]
    assert distinct_names[6:] == ["a", "a (2)"]
    assert len({unicodedata.normalize("NFKC", name).casefold() for name in distinct_names}) == len(
        names
    )


@given(st.lists(st.text(max_size=30) | st.sampled_from(["a", "A", "a (2)", "../a", "con"])))
def test_random_file_names_become_safe_and_distinct(names: list[str]) -> None:
    distinct_names = safe_and_distinct_file_names(names)
    assert len({name.casefold() for name in distinct_names}) == len(names)
    for name in distinct_names:
        assert 0 < len(name.encode()) <= MAX_NAME_BYTES
        assert not re.search(r'[/\\:*?"<>|\x00-\x1f\x7f]', name)
        assert name.strip(" .") == name


def test_ten_thousand_equal_names_become_distinct() -> None:
    distinct_names = safe_and_distinct_file_names(["a.txt"] * 10_000)
    assert len(set(distinct_names)) == 10_000
    assert distinct_names[-1] == "a (10000).txt"


async def test_non_ascii_file_names_are_kept(ada: GraphQLClient) -> None:
    names = ["Übersicht.pdf", "報告.pdf", "🦆.pdf"]
    raw = multipart_message.build_message(
        [pdf_file(f"filename*=UTF-8''{percent_encode(name)}") for name in names]
    )
    assert (await fetch_zip(ada, raw)).namelist() == names


def percent_encode(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


async def test_attached_zip_bomb_is_not_decompressed(ada: GraphQLClient) -> None:
    bomb = zlib.compress(b"\0" * (64 << 20), 9)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.bin", b"\0" * (64 << 20))
    raw = multipart_message.build_message(
        [pdf_file("filename=bomb.zip", buffer.getvalue()), pdf_file("filename=bomb.z", bomb)]
    )
    tracemalloc.start()
    try:
        downloaded = await fetch_zip(ada, raw)
        peak_memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert downloaded.read("bomb.zip") == buffer.getvalue()
    assert downloaded.read("bomb.z") == bomb
    assert peak_memory < 16 << 20


async def test_zip_is_streamed_without_holding_whole_attachment(ada: GraphQLClient) -> None:
    raw = multipart_message.build_message(
        [pdf_file("filename=large.bin", multipart_message.pseudo_random_bytes(12 << 20))]
    )
    message_id = (await deliver_to(ada, raw)).message_id
    del raw
    message = await message_content.load_stored_message(client_context(ada), message_id)
    assert message
    part = message_bytes.find_attachment_part(message, 0)
    assert part
    large = ZipMember("large.bin", lambda: message.open_part(part))
    size = 0
    tracemalloc.start()
    try:
        async for chunk in stream_zip([large], ada.environment.now()):
            size += len(chunk)
        peak_memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 12 << 20
    assert peak_memory < 6 << 20


async def test_zip_with_damaged_attachment_is_refused(ada: GraphQLClient) -> None:
    message_id = (
        await deliver_to(
            ada,
            multipart_message.build_message(
                [pdf_file("filename=a.pdf", multipart_message.pseudo_random_bytes(50_000))]
            ),
        )
    ).message_id
    async with ada.environment.write_session() as session:
        damage = update(Blob).where(col(Blob.size) == 50_000).values(data=b"\0", name=None)
        await (await session.connection()).execute(damage)
    response = await get_path(ada, download_urls.zip_path(message_id))
    assert response.status_code == 500
    assert response.json()["errors"][0]["extensions"]["code"] == "DAMAGED"
