"""Resumable uploads by the tus protocol over real connections, including broken ones."""

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
from mail.maintenance.housekeeping import delete_orphaned_upload_files, run_housekeeping_round
from mail.smtp import spool_file
from models.errors import NotFound
from models.runtime.environment import Environment
from resolvers.files import uploads
from tests.conftest import ManualClock, client_context, raw_message
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
from tests.support.mail.multipart_message import pseudo_random_bytes
from tests.support.servers.http_server import run_http_server
from tests.support.time_limits import HANG_SECONDS


async def test_options_returns_capabilities_without_sign_in(carol: ResumableUploadClient) -> None:
    for path in (UPLOADS_PATH, f"{UPLOADS_PATH}/any"):
        response = await carol.client.http.options(path)
        assert response.status_code == 204
        assert response.headers["tus-version"] == response.headers["tus-resumable"] == "1.0.0"
        assert response.headers["tus-max-size"] == str(UPLOAD_MAX)
        assert set(response.headers["tus-extension"].split(",")) == {
            "creation", "creation-with-upload", "expiration", "termination",
        }  # fmt: skip


async def test_file_sent_in_chunks_is_complete(
    carol: ResumableUploadClient, tmp_path: Path, clock: ManualClock
) -> None:
    content = pseudo_random_bytes(3 * MIB + 5)
    metadata = upload_metadata(filename="C:\\x\\ü.png", filetype="Image/PNG") + ",is_confidential"
    response = await carol.request_upload(len(content), **{"Upload-Metadata": metadata})
    path = response.headers["location"]
    assert response.headers["upload-expires"] == "Wed, 02 Jan 2030 00:00:00 GMT"
    assert response.json() == {
        "id": path.rsplit("/", 1)[-1],
        "size": len(content),
        "expiresAt": "2030-01-02T00:00:00Z",
    }
    clock.tick(hours=1)
    offset = 0
    for size in (1, 2 * MIB, 0, 100_000, len(content)):
        assert await carol.load_offset(path) == offset
        chunk = content[offset : offset + size]
        append_response = await carol.append_chunk(path, offset, chunk)
        offset += len(chunk)
        assert (append_response.status_code, append_response.headers["upload-offset"]) == (
            204,
            str(offset),
        )
        assert append_response.content == b""
        assert ("repr-digest" in append_response.headers) is (offset == len(content))
        if offset < len(content):
            with pytest.raises(NotFound):
                await uploads.read_and_verify_upload(
                    client_context(carol.client), upload_row_id(path)
                )
    assert append_response.headers["repr-digest"] == sha256_digest(content)
    head_response = await carol.request("HEAD", path)
    assert (
        head_response.headers["upload-offset"]
        == head_response.headers["upload-length"]
        == str(len(content))
    )
    assert head_response.headers["upload-metadata"] == metadata
    assert head_response.headers["upload-expires"] == "Wed, 02 Jan 2030 01:00:00 GMT", (
        "a day from its end"
    )
    assert (await carol.append_chunk(path, len(content), b"")).status_code == 204
    assert (await carol.append_chunk(path, len(content), iterate_chunks(b"x"))).status_code == 413
    (row,) = await uploads.load_own_complete_uploads_by_id(
        client_context(carol.client), [upload_row_id(path)]
    )
    assert row
    assert (row.content_type, row.filename) == ("image/png", "ü.png")
    assert (
        await uploads.read_and_verify_upload(client_context(carol.client), upload_row_id(path))
        == content
    )
    assert file_names(tmp_path / "spool") == []


async def test_mutation_uses_resumable_upload(
    limited_environment: Environment, tmp_path: Path
) -> None:
    raw = raw_message("In pieces")
    app = create_app(
        limited_environment,
        spool_folder=tmp_path,
        settings=EndpointSettings(allowed_origins=("https://mail.example.org",)),
    )
    async with (
        run_http_server(app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=HANG_SECONDS) as http,
    ):
        carol = ResumableUploadClient(
            await make_upload_client(limited_environment, http, "carol"), port
        )
        path = await carol.create_upload(len(raw))
        assert (await carol.append_chunk(path, 0, raw[:50])).status_code == 204
        assert (await carol.append_chunk(path, 50, raw[50:])).status_code == 204
        document = """mutation ($upload: Upload!) { messageImport(input: {
          mailbox: {path: "INBOX"}, rawUpload: $upload}) { messages { subject } } }"""
        data = await carol.client(document, upload=path.rsplit("/", 1)[-1])
        assert data["messageImport"]["messages"] == [{"subject": "In pieces"}]
        await _check_cors_headers(carol, path)


async def _check_cors_headers(carol: ResumableUploadClient, path: str) -> None:
    origin = {"Origin": "https://mail.example.org"}
    header_names = (
        "authorization,content-type,tus-resumable,upload-length,upload-metadata,upload-offset"
    )
    for method in ("POST", "HEAD", "PATCH", "DELETE"):
        preflight_headers = {
            **origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": f"{header_names},x-http-method-override,x-request-id",
        }
        assert (await carol.client.http.options(path, headers=preflight_headers)).status_code == 200
    response = await carol.request("HEAD", path, headers=origin)
    exposed_headers = (
        response.headers["access-control-expose-headers"].lower().replace(" ", "").split(",")
    )
    for name in ("location", "upload-offset", "upload-length", "tus-resumable", "upload-expires"):
        assert name in exposed_headers


async def test_bytes_before_connection_loss_are_kept(
    carol: ResumableUploadClient, tmp_path: Path
) -> None:
    content = pseudo_random_bytes(3 * MIB)
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


async def test_other_server_continues_upload(
    carol: ResumableUploadClient, connect: UploadClientFactory
) -> None:
    content = pseudo_random_bytes(2 * MIB)
    path = await carol.create_upload(len(content))
    await carol.append_chunk(path, 0, content[:MIB])
    other_server_client = await connect(carol.client)
    assert await other_server_client.load_offset(path) == MIB
    completed = await other_server_client.append_chunk(path, MIB, content[MIB:])
    assert completed.headers["repr-digest"] == sha256_digest(content)
    assert await carol.load_offset(path) == len(content)


async def test_expired_upload_is_deleted_from_database_and_disk(
    carol: ResumableUploadClient, clock: ManualClock, tmp_path: Path
) -> None:
    environment, folder = carol.client.environment, tmp_path / "spool"
    old_path = await carol.create_upload(10)
    await carol.append_chunk(old_path, 0, b"12345")
    clock.tick(hours=23)
    new_path = await carol.create_upload(10)
    await carol.append_chunk(new_path, 0, b"12345")
    assert await carol.load_offset(old_path) == 5
    clock.tick(hours=1)
    for response in (
        await carol.append_chunk(old_path, 5, b"67890"),
        await carol.request("HEAD", old_path),
    ):
        assert response.status_code == 404
    assert len(file_names(folder)) == 2
    assert (await run_housekeeping_round(environment, sweep=False)).uploads == 1
    assert await delete_orphaned_upload_files(environment, folder) == 1
    assert file_names(folder) == [resumable_file.file_path(folder, upload_row_id(new_path)).name]
    assert (await carol.append_chunk(new_path, 5, b"67890")).status_code == 204
    assert await delete_orphaned_upload_files(environment, folder) == 0


async def test_concurrent_append_is_locked(
    carol: ResumableUploadClient, connect: UploadClientFactory
) -> None:
    content = pseudo_random_bytes(2 * MIB)
    path = await carol.create_upload(len(content))
    reader, writer = await carol.start_append(path, 0, len(content), content[:MIB])
    file = resumable_file.file_path(spool_folder(carol), upload_row_id(path))
    async with asyncio.timeout(HANG_SECONDS):
        while not file.exists():  # noqa: ASYNC110 - the file system sends no event
            await asyncio.sleep(0.01)
    for sender in (carol, await connect(carol.client)):
        refused = await sender.append_chunk(path, 0, bytes(len(content)))
        assert (refused.status_code, error_code(refused)) == (423, "CONFLICT")
        assert refused.headers["retry-after"] == "1"
    writer.write(content[MIB:])
    async with asyncio.timeout(HANG_SECONDS):
        response = await reader.readuntil(b"\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 204")
    assert sha256_digest(content).encode() in response
    writer.close()


async def test_idle_request_yields_to_new_request(
    connect: UploadClientFactory,
) -> None:
    carol = await connect("carol", UploadLimits(idle_timeout=60, yield_timeout=0.1))
    path = await carol.create_upload(10)
    reader, writer = await carol.start_append(path, 0, 10, b"12345")
    assert await is_silent(reader)
    async with asyncio.timeout(HANG_SECONDS):
        while (
            second_response := await carol.append_chunk(
                path, await carol.load_offset(path), b"67890"
            )
        ).is_error:
            assert second_response.status_code in (409, 423)
            await asyncio.sleep(0.02)
    assert second_response.headers["upload-offset"] == "10"
    async with asyncio.timeout(HANG_SECONDS):
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
    writer.close()
    assert (
        await uploads.read_and_verify_upload(client_context(carol.client), upload_row_id(path))
        == b"1234567890"
    )


@pytest.mark.parametrize("limits", [UploadLimits(idle_timeout=0.1), UploadLimits(body_timeout=0.1)])
async def test_stalled_body_times_out_and_bytes_are_kept(
    connect: UploadClientFactory, limits: UploadLimits
) -> None:
    carol = await connect("carol", limits)
    path = await carol.create_upload(10)
    reader, writer = await carol.start_append(path, 0, 10, b"12345")
    async with asyncio.timeout(HANG_SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503"), "a client of tus gives up at a 4xx"
    assert b"retry-after: 1" in head
    writer.close()
    assert await carol.load_offset(path) == 5


async def test_creation_request_can_contain_bytes(
    carol: ResumableUploadClient, tmp_path: Path
) -> None:
    content = pseudo_random_bytes(MIB)
    creation_headers = {**CHUNK_HEADERS, "Upload-Length": str(len(content))}
    complete_response = await carol.request(
        "POST", UPLOADS_PATH, content=content, headers=creation_headers
    )
    assert (complete_response.status_code, complete_response.headers["upload-offset"]) == (
        201,
        str(len(content)),
    )
    assert complete_response.json()["sha256"] == hashlib.sha256(content).hexdigest()
    partial_response = await carol.request(
        "POST", UPLOADS_PATH, content=content[:500], headers=creation_headers
    )
    assert (partial_response.status_code, partial_response.headers["upload-offset"]) == (201, "500")
    completed = await carol.append_chunk(partial_response.headers["location"], 500, content[500:])
    assert completed.headers["repr-digest"] == sha256_digest(content)
    for refused in (
        await carol.request("POST", UPLOADS_PATH, content=content + b"x", headers=creation_headers),
        await carol.request(
            "POST", UPLOADS_PATH, content=iterate_chunks(content, b"x"), headers=creation_headers
        ),
    ):
        assert refused.status_code == 413
    assert len(await load_upload_rows(carol.client.environment)) == 2
    assert file_names(tmp_path / "spool") == []


async def test_empty_file_is_complete_at_creation(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(0)
    assert await carol.load_offset(path) == 0
    assert (
        await uploads.read_and_verify_upload(client_context(carol.client), upload_row_id(path))
        == b""
    )


async def test_deleted_uploads_leave_nothing(carol: ResumableUploadClient, tmp_path: Path) -> None:
    unfinished_path, complete_path = await carol.create_upload(10), await carol.create_upload(5)
    await carol.append_chunk(unfinished_path, 0, b"12345")
    await carol.append_chunk(complete_path, 0, b"12345")
    single_request = await carol.client.http.post(
        UPLOADS_PATH, content=b"plain", headers=carol.client.headers
    )
    for path in (unfinished_path, complete_path, single_request.headers["location"]):
        assert (await carol.request("DELETE", path)).status_code == 204
        assert (await carol.request("DELETE", path)).status_code == 404
        assert (await carol.request("HEAD", path)).status_code == 404
    await assert_nothing_left(carol.client.environment, tmp_path / "spool")


async def test_delete_ends_concurrent_append(carol: ResumableUploadClient, tmp_path: Path) -> None:
    path = await carol.create_upload(10)
    reader, writer = await carol.start_append(path, 0, 10, b"12345")
    assert await is_silent(reader)
    assert (await carol.request("DELETE", path)).status_code == 204
    writer.write(b"67890")
    async with asyncio.timeout(HANG_SECONDS):
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    writer.close()
    await assert_nothing_left(carol.client.environment, tmp_path / "spool")


async def test_last_byte_is_acknowledged_after_storing(
    carol: ResumableUploadClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def raise_disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = await carol.create_upload(10)
    with monkeypatch.context() as full_disk:
        full_disk.setattr(carol.client.environment.object_store, "put_file", raise_disk_full)
        assert (await carol.append_chunk(path, 0, b"1234567890")).status_code == 507
    assert await carol.load_offset(path) == 9
    assert (await carol.append_chunk(path, 9, b"0")).headers["repr-digest"] == sha256_digest(
        b"1234567890"
    )
    assert file_names(tmp_path / "spool") == []


async def test_crash_loses_only_unacknowledged_bytes(carol: ResumableUploadClient) -> None:
    folder = spool_folder(carol)
    path = await carol.create_upload(10)
    await carol.append_chunk(path, 0, b"12345")
    os.close(spool_file.lock_and_clean_spool_folder(folder))  # as at the next start
    file = resumable_file.file_path(folder, upload_row_id(path))
    file.write_bytes(b"12345\0\0\0")
    assert await carol.load_offset(path) == 5
    assert (await carol.append_chunk(path, 5, b"67")).status_code == 204
    assert file.read_bytes() == b"1234567"
    file.write_bytes(b"1234")
    if (
        carol.client.environment.database.dialect == "postgresql"
    ):  # all bytes are in the object store
        assert await carol.load_offset(path) == 7
        completed = await carol.append_chunk(path, 7, b"890")
        assert completed.headers["repr-digest"] == sha256_digest(b"1234567890")
        return
    for response in (await carol.request("HEAD", path), await carol.append_chunk(path, 7, b"890")):
        assert response.status_code == 404


async def test_bytes_are_acknowledged_during_request(connect: UploadClientFactory) -> None:
    carol = await connect("carol", UploadLimits(checkpoint_bytes=MIB))
    content = pseudo_random_bytes(3 * MIB)
    path = await carol.create_upload(len(content))
    _, writer = await carol.start_append(path, 0, len(content), content[: 2 * MIB + MIB // 2])
    await carol.wait_for_offset(path, 2 * MIB)
    writer.close()


async def test_method_override_header_is_supported(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(5)
    patch_headers = {"X-HTTP-Method-Override": "PATCH", **CHUNK_HEADERS, "Upload-Offset": "0"}
    patch_response = await carol.request("POST", path, content=b"12345", headers=patch_headers)
    assert patch_response.status_code == 204
    delete_response = await carol.request(
        "POST", path, headers={"X-HTTP-Method-Override": "DELETE"}
    )
    assert delete_response.status_code == 204
    for headers in ({}, {"X-HTTP-Method-Override": "PUT"}):
        refused = await carol.request("POST", path, headers=headers)
        assert (refused.status_code, error_code(refused)) == (405, "BAD_USER_INPUT")
        assert "PATCH" in refused.headers["allow"]
