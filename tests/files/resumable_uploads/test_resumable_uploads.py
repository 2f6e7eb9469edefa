"""Uploads in pieces, over real connections that break: the tus protocol."""

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import httpx
import pytest

from graph.app import create_app
from graph.http.graphql_endpoint import EndpointSettings
from graph.http.upload_body import UploadLimits
from mail.files import resumable_file
from mail.maintenance.housekeeping import delete_orphaned_uploads, run_round
from mail.smtp import spool_file
from models.errors import NotFound
from models.runtime.environment import Environment
from resolvers.files import uploads
from tests.conftest import Clock, context, raw_message
from tests.support.clients.resumable_upload_client import (
    CHUNK_HEADERS,
    UPLOAD_MAX,
    UPLOADS_PATH,
    ResumableUploadClient,
    UploadClientFactory,
    is_silent,
    iterate_chunks,
    sha256_digest,
    spool_folder,
    upload_metadata,
    upload_row_id,
)
from tests.support.clients.upload_client import (
    MIB,
    assert_nothing_left,
    error_code,
    file_names,
    load_upload_rows,
    make_upload_client,
)
from tests.support.mail.multipart_message import noise
from tests.support.servers.http_server import served


async def test_what_can_be_done_is_told_to_anybody(carol: ResumableUploadClient) -> None:
    for path in (UPLOADS_PATH, f"{UPLOADS_PATH}/any"):
        answer = await carol.client.http.options(path)
        assert answer.status_code == 204
        assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
        assert answer.headers["tus-max-size"] == str(UPLOAD_MAX)
        assert set(answer.headers["tus-extension"].split(",")) == {
            "creation", "creation-with-upload", "expiration", "termination",
        }  # fmt: skip


async def test_a_file_in_pieces_is_whole_at_the_end(
    carol: ResumableUploadClient, tmp_path: Path, clock: Clock
) -> None:
    content = noise(3 * MIB + 5)
    meta = upload_metadata(filename="C:\\x\\ü.png", filetype="Image/PNG") + ",is_confidential"
    answer = await carol.request_upload(len(content), **{"Upload-Metadata": meta})
    path = answer.headers["location"]
    assert answer.headers["upload-expires"] == "Wed, 02 Jan 2030 00:00:00 GMT"
    assert answer.json() == {
        "id": path.rsplit("/", 1)[-1],
        "size": len(content),
        "expiresAt": "2030-01-02T00:00:00Z",
    }
    clock.tick(hours=1)
    at = 0
    for size in (1, 2 * MIB, 0, 100_000, len(content)):
        assert await carol.load_offset(path) == at
        part = content[at : at + size]
        added = await carol.append_chunk(path, at, part)
        at += len(part)
        assert (added.status_code, added.headers["upload-offset"]) == (204, str(at))
        assert added.content == b""
        assert ("repr-digest" in added.headers) is (at == len(content))
        if at < len(content):
            with pytest.raises(NotFound):
                await uploads.read_upload(context(carol.client), upload_row_id(path))
    assert added.headers["repr-digest"] == sha256_digest(content)
    whole = await carol.request("HEAD", path)
    assert whole.headers["upload-offset"] == whole.headers["upload-length"] == str(len(content))
    assert whole.headers["upload-metadata"] == meta
    assert whole.headers["upload-expires"] == "Wed, 02 Jan 2030 01:00:00 GMT", "a day from its end"
    assert (await carol.append_chunk(path, len(content), b"")).status_code == 204
    assert (await carol.append_chunk(path, len(content), iterate_chunks(b"x"))).status_code == 413
    (row,) = await uploads.load_uploads_by_id(context(carol.client), [upload_row_id(path)])
    assert row
    assert (row.content_type, row.filename) == ("image/png", "ü.png")
    assert await uploads.read_upload(context(carol.client), upload_row_id(path)) == content
    assert file_names(tmp_path / "spool") == []


async def test_a_mutation_takes_what_came_in_pieces(small: Environment, tmp_path: Path) -> None:
    raw = raw_message("In pieces")
    app = create_app(
        small,
        spool_folder=tmp_path,
        settings=EndpointSettings(allowed_origins=("https://mail.example.org",)),
    )
    async with (
        served(app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        carol = ResumableUploadClient(await make_upload_client(small, http, "carol"), port)
        path = await carol.create_upload(len(raw))
        assert (await carol.append_chunk(path, 0, raw[:50])).status_code == 204
        assert (await carol.append_chunk(path, 50, raw[50:])).status_code == 204
        document = """mutation ($upload: Upload!) { messageUpload(input: {
          mailbox: {path: "INBOX"}, rawUpload: $upload}) { message { subject } } }"""
        done = await carol.client(document, upload=path.rsplit("/", 1)[-1])
        assert done["messageUpload"]["message"]["subject"] == "In pieces"
        await _a_browser_may(carol, path)


async def _a_browser_may(carol: ResumableUploadClient, path: str) -> None:
    origin = {"Origin": "https://mail.example.org"}
    sent = "authorization,content-type,tus-resumable,upload-length,upload-metadata,upload-offset"
    for method in ("POST", "HEAD", "PATCH", "DELETE"):
        asked = {
            **origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": f"{sent},x-http-method-override,x-request-id",
        }
        assert (await carol.client.http.options(path, headers=asked)).status_code == 200
    answer = await carol.request("HEAD", path, headers=origin)
    shown = answer.headers["access-control-expose-headers"].lower().replace(" ", "").split(",")
    for name in ("location", "upload-offset", "upload-length", "tus-resumable", "upload-expires"):
        assert name in shown


async def test_what_came_before_the_line_broke_is_kept(
    carol: ResumableUploadClient, tmp_path: Path
) -> None:
    content = noise(3 * MIB)
    path = await carol.create_upload(len(content))
    half = len(content) // 2
    _, writer = await carol.start_append(path, 0, len(content), content[:half])
    writer.transport.abort()
    await carol.wait_for_offset(path, half)
    assert await carol.load_offset(path) == half
    assert (await carol.append_chunk(path, half, content[half:])).headers[
        "repr-digest"
    ] == sha256_digest(content)
    assert file_names(tmp_path / "spool") == []


async def test_another_server_goes_on_with_it(
    carol: ResumableUploadClient, connect: UploadClientFactory
) -> None:
    content = noise(2 * MIB)
    path = await carol.create_upload(len(content))
    await carol.append_chunk(path, 0, content[:MIB])
    other = await connect(carol.client)
    assert await other.load_offset(path) == MIB
    done = await other.append_chunk(path, MIB, content[MIB:])
    assert done.headers["repr-digest"] == sha256_digest(content)
    assert await carol.load_offset(path) == len(content)


async def test_after_a_day_it_is_gone_from_store_and_disk(
    carol: ResumableUploadClient, clock: Clock, tmp_path: Path
) -> None:
    world, folder = carol.client.world, tmp_path / "spool"
    old = await carol.create_upload(10)
    await carol.append_chunk(old, 0, b"12345")
    clock.tick(hours=23)
    young = await carol.create_upload(10)
    await carol.append_chunk(young, 0, b"12345")
    assert await carol.load_offset(old) == 5
    clock.tick(hours=1)
    for answer in (await carol.append_chunk(old, 5, b"67890"), await carol.request("HEAD", old)):
        assert answer.status_code == 404
    assert len(file_names(folder)) == 2
    assert (await run_round(world, sweep=False)).uploads == 1
    assert await delete_orphaned_uploads(world, folder) == 1
    assert file_names(folder) == [resumable_file.file_path(folder, upload_row_id(young)).name]
    assert (await carol.append_chunk(young, 5, b"67890")).status_code == 204
    assert await delete_orphaned_uploads(world, folder) == 0


async def test_two_at_once_are_not_taken(
    carol: ResumableUploadClient, connect: UploadClientFactory
) -> None:
    content = noise(2 * MIB)
    path = await carol.create_upload(len(content))
    reader, writer = await carol.start_append(path, 0, len(content), content[:MIB])
    file = resumable_file.file_path(spool_folder(carol), upload_row_id(path))
    async with asyncio.timeout(10):
        while not file.exists():  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)
    for sender in (carol, await connect(carol.client)):
        refused = await sender.append_chunk(path, 0, bytes(len(content)))
        assert (refused.status_code, error_code(refused)) == (423, "CONFLICT")
        assert refused.headers["retry-after"] == "1"
    writer.write(content[MIB:])
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 204")
    assert sha256_digest(content).encode() in answer
    writer.close()


async def test_who_has_fallen_silent_lets_go_when_another_comes(
    connect: UploadClientFactory,
) -> None:
    carol = await connect("carol", UploadLimits(idle_timeout=60, yield_timeout=0.1))
    path = await carol.create_upload(10)
    reader, writer = await carol.start_append(path, 0, 10, b"12345")
    assert await is_silent(reader)
    async with asyncio.timeout(10):
        while (
            again := await carol.append_chunk(path, await carol.load_offset(path), b"67890")
        ).is_error:
            assert again.status_code in (409, 423)
            await asyncio.sleep(0.02)
    assert again.headers["upload-offset"] == "10"
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
    writer.close()
    assert await uploads.read_upload(context(carol.client), upload_row_id(path)) == b"1234567890"


@pytest.mark.parametrize("limits", [UploadLimits(idle_timeout=0.1), UploadLimits(body_timeout=0.1)])
async def test_a_body_that_stops_coming_is_ended_and_kept(
    connect: UploadClientFactory, limits: UploadLimits
) -> None:
    carol = await connect("carol", limits)
    path = await carol.create_upload(10)
    reader, writer = await carol.start_append(path, 0, 10, b"12345")
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503"), "a client of tus gives up at a 4xx"
    assert b"retry-after: 1" in head
    writer.close()
    assert await carol.load_offset(path) == 5


async def test_bytes_may_come_with_the_announcement(
    carol: ResumableUploadClient, tmp_path: Path
) -> None:
    content = noise(MIB)
    named = {**CHUNK_HEADERS, "Upload-Length": str(len(content))}
    whole = await carol.request("POST", UPLOADS_PATH, content=content, headers=named)
    assert (whole.status_code, whole.headers["upload-offset"]) == (201, str(len(content)))
    assert whole.json()["sha256"] == hashlib.sha256(content).hexdigest()
    part = await carol.request("POST", UPLOADS_PATH, content=content[:500], headers=named)
    assert (part.status_code, part.headers["upload-offset"]) == (201, "500")
    rest = await carol.append_chunk(part.headers["location"], 500, content[500:])
    assert rest.headers["repr-digest"] == sha256_digest(content)
    for refused in (
        await carol.request("POST", UPLOADS_PATH, content=content + b"x", headers=named),
        await carol.request(
            "POST", UPLOADS_PATH, content=iterate_chunks(content, b"x"), headers=named
        ),
    ):
        assert refused.status_code == 413
    assert len(await load_upload_rows(carol.client.world)) == 2
    assert file_names(tmp_path / "spool") == []


async def test_an_empty_file_is_whole_at_once(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(0)
    assert await carol.load_offset(path) == 0
    assert await uploads.read_upload(context(carol.client), upload_row_id(path)) == b""


async def test_what_is_ended_leaves_nothing(carol: ResumableUploadClient, tmp_path: Path) -> None:
    begun, whole = await carol.create_upload(10), await carol.create_upload(5)
    await carol.append_chunk(begun, 0, b"12345")
    await carol.append_chunk(whole, 0, b"12345")
    plain = await carol.client.http.post(
        UPLOADS_PATH, content=b"plain", headers=carol.client.headers
    )
    for path in (begun, whole, plain.headers["location"]):
        assert (await carol.request("DELETE", path)).status_code == 204
        assert (await carol.request("DELETE", path)).status_code == 404
        assert (await carol.request("HEAD", path)).status_code == 404
    await assert_nothing_left(carol.client.world, tmp_path / "spool")


async def test_an_end_is_heard_by_who_is_sending(
    carol: ResumableUploadClient, tmp_path: Path
) -> None:
    path = await carol.create_upload(10)
    reader, writer = await carol.start_append(path, 0, 10, b"12345")
    assert await is_silent(reader)
    assert (await carol.request("DELETE", path)).status_code == 204
    writer.write(b"67890")
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    writer.close()
    await assert_nothing_left(carol.client.world, tmp_path / "spool")


async def test_the_last_byte_is_promised_when_the_whole_is_stored(
    carol: ResumableUploadClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def broken(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = await carol.create_upload(10)
    with monkeypatch.context() as full:
        full.setattr(carol.client.world.object_store, "put_file", broken)
        assert (await carol.append_chunk(path, 0, b"1234567890")).status_code == 507
    assert await carol.load_offset(path) == 9
    assert (await carol.append_chunk(path, 9, b"0")).headers["repr-digest"] == sha256_digest(
        b"1234567890"
    )
    assert file_names(tmp_path / "spool") == []


async def test_a_crash_takes_what_was_promised_to_nobody(carol: ResumableUploadClient) -> None:
    folder = spool_folder(carol)
    path = await carol.create_upload(10)
    await carol.append_chunk(path, 0, b"12345")
    os.close(spool_file.lock_spool_folder(folder))  # as at the next start
    file = resumable_file.file_path(folder, upload_row_id(path))
    file.write_bytes(b"12345\0\0\0")
    assert await carol.load_offset(path) == 5
    assert (await carol.append_chunk(path, 5, b"67")).status_code == 204
    assert file.read_bytes() == b"1234567"
    file.write_bytes(b"1234")
    if carol.client.world.database.dialect == "postgresql":  # all bytes are in the object store
        assert await carol.load_offset(path) == 7
        done = await carol.append_chunk(path, 7, b"890")
        assert done.headers["repr-digest"] == sha256_digest(b"1234567890")
        return
    for answer in (await carol.request("HEAD", path), await carol.append_chunk(path, 7, b"890")):
        assert answer.status_code == 404


async def test_bytes_are_promised_while_more_come(connect: UploadClientFactory) -> None:
    carol = await connect("carol", UploadLimits(checkpoint_bytes=MIB))
    content = noise(3 * MIB)
    path = await carol.create_upload(len(content))
    _, writer = await carol.start_append(path, 0, len(content), content[: 2 * MIB + MIB // 2])
    await carol.wait_for_offset(path, 2 * MIB)
    writer.close()


async def test_who_can_only_post_says_which_method_is_meant(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(5)
    meant = {"X-HTTP-Method-Override": "PATCH", **CHUNK_HEADERS, "Upload-Offset": "0"}
    added = await carol.request("POST", path, content=b"12345", headers=meant)
    assert added.status_code == 204
    ended = await carol.request("POST", path, headers={"X-HTTP-Method-Override": "DELETE"})
    assert ended.status_code == 204
    for method in ({}, {"X-HTTP-Method-Override": "PUT"}):
        refused = await carol.request("POST", path, headers=method)
        assert (refused.status_code, error_code(refused)) == (405, "BAD_USER_INPUT")
        assert "PATCH" in refused.headers["allow"]
