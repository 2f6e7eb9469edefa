"""Errors of resumable uploads: offsets, versions, headers, limits, ownership and scopes."""

import errno
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from graph.http.upload_body import UploadLimits
from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import Scope
from resolvers.files import resumable_uploads, uploads
from tests.conftest import client_context
from tests.support.clients.resumable_upload_client import (
    CHUNK_HEADERS,
    UPLOAD_MAX,
    UPLOADS_PATH,
    ResumableUploadClient,
    UploadClientFactory,
    iterate_chunks,
    sha256_digest,
    upload_metadata,
)
from tests.support.clients.upload_client import (
    MIB,
    error_code,
    file_names,
    load_upload_rows,
    make_upload_client,
)
from tests.support.servers.http_server import run_http_server
from tests.support.time_limits import HANG_SECONDS

INVALID_OFFSETS: list[tuple[str | None, int, str]] = [
    ("0", 409, "STALE"),
    ("4", 409, "STALE"),
    ("6", 409, "STALE"),
    ("9" * 5000, 409, "STALE"),
    ("-1", 400, "BAD_USER_INPUT"),
    ("", 400, "BAD_USER_INPUT"),
    ("5.0", 400, "BAD_USER_INPUT"),
    (None, 400, "BAD_USER_INPUT"),
]


async def test_append_at_wrong_offset_is_refused(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(10)
    await carol.append_chunk(path, 0, b"12345")
    for offset, status, code in INVALID_OFFSETS:
        headers = {**CHUNK_HEADERS, **({} if offset is None else {"Upload-Offset": offset})}
        response = await carol.request("PATCH", path, content=b"x", headers=headers)
        assert (response.status_code, error_code(response)) == (status, code), offset
        assert response.headers["tus-resumable"] == "1.0.0"
        assert status != 409 or response.headers["upload-offset"] == "5"
    assert (await carol.append_chunk(path, 5, b"67890")).headers["repr-digest"] == sha256_digest(
        b"1234567890"
    )


async def test_unsupported_tus_version_is_refused(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(10)
    http = carol.client.http
    for version in (None, "0.2.2", "1.0.1", ""):
        version_headers = {
            **carol.client.headers,
            **({} if version is None else {"Tus-Resumable": version}),
        }
        append_headers = {**version_headers, **CHUNK_HEADERS, "Upload-Offset": "0"}
        for response in (
            await http.post(UPLOADS_PATH, headers={**version_headers, "Upload-Length": "5"}),
            await http.patch(path, content=b"x", headers=append_headers),
            await http.delete(path, headers=version_headers),
        ):
            assert (response.status_code, response.headers["tus-version"]) == (412, "1.0.0")
    assert len(await load_upload_rows(carol.client.environment)) == 1
    assert await carol.load_offset(path) == 0


CREATION_CASES: list[tuple[dict[str, Any], int]] = [
    ({}, 400),
    ({"Upload-Length": "-1"}, 400),
    ({"Upload-Length": "1e3"}, 400),
    ({"Upload-Length": "٣".encode()}, 400),
    ({"Upload-Length": "5", "Upload-Defer-Length": "1"}, 400),
    ({"Upload-Length": "5", "Upload-Concat": "partial"}, 400),
    ({"Upload-Length": str(UPLOAD_MAX + 1)}, 413),
    ({"Upload-Length": "9" * 5000}, 413),
    ({"Upload-Length": "5", "Upload-Metadata": "filename"}, 201),
    ({"Upload-Length": "5", "Upload-Metadata": "filename !"}, 400),
    ({"Upload-Length": "5", "Upload-Metadata": "filename /w=="}, 400),
    ({"Upload-Length": "5", "Upload-Metadata": "a YQ==,a YQ=="}, 400),
    ({"Upload-Length": "5", "Upload-Metadata": "a YQ==,,b"}, 400),
    ({"Upload-Length": "5", "Upload-Metadata": upload_metadata(name="a\0b\r\n")}, 201),
    ({"Upload-Length": "5", "Upload-Metadata": upload_metadata(name="x" * 9999)}, 400),
]


async def test_invalid_creation_headers_are_refused(carol: ResumableUploadClient) -> None:
    for headers, status in CREATION_CASES:
        response = await carol.request("POST", UPLOADS_PATH, headers=headers)
        assert response.status_code == status, headers
    accepted_count = sum(status == 201 for _, status in CREATION_CASES)
    assert len(await load_upload_rows(carol.client.environment)) == accepted_count


async def test_unsupported_content_type_is_refused(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(10)
    for headers in (
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {**CHUNK_HEADERS, "Content-Encoding": "gzip"},
    ):
        all_headers = {"Upload-Length": "10", "Upload-Offset": "0", **headers}
        patched = await carol.request("PATCH", path, content=b"x", headers=all_headers)
        created = await carol.request("POST", UPLOADS_PATH, content=b"x", headers=all_headers)
        for response in (patched, created):
            assert (response.status_code, error_code(response)) == (415, "BAD_USER_INPUT")
    assert await carol.load_offset(path) == 0
    assert len(await load_upload_rows(carol.client.environment)) == 1


async def test_multipart_forms_are_refused(
    limited_environment: Environment, tmp_path: Path
) -> None:
    async with (
        run_http_server(create_app(limited_environment, spool_folder=tmp_path)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=HANG_SECONDS) as http,
    ):
        carol = await make_upload_client(limited_environment, http, "carol")
        for path in (UPLOADS_PATH, "/graphql"):
            form = {"operations": b'{"query": "{ __typename }"}', "0": b"x"}
            response = await http.post(path, files=form, headers=carol.headers)
            assert (response.status_code, error_code(response)) == (415, "BAD_USER_INPUT")
            assert response.headers["content-type"].startswith("application/json")


async def test_more_bytes_than_announced_are_refused(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(10)
    sized_response = await carol.append_chunk(path, 0, bytes(11))
    assert (sized_response.status_code, error_code(sized_response)) == (413, "TOO_LARGE")
    assert await carol.load_offset(path) == 0
    chunked_response = await carol.append_chunk(path, 0, iterate_chunks(b"12345", b"6789012"))
    assert (chunked_response.status_code, error_code(chunked_response)) == (413, "TOO_LARGE")
    # depends on the chunk boundaries of the connection
    assert await carol.load_offset(path) in (0, 5)
    offset = await carol.load_offset(path)
    completed = await carol.append_chunk(path, offset, b"1234567890"[offset:])
    assert completed.headers["repr-digest"] == sha256_digest(b"1234567890")


async def test_upload_of_another_user_looks_like_a_missing_one(
    carol: ResumableUploadClient, connect: UploadClientFactory
) -> None:
    path = await carol.create_upload(10)
    dave = await connect("dave")
    missing_path = f"{UPLOADS_PATH}/{global_ids.encode('Upload', 7)}"
    for method, headers in (
        ("HEAD", {}),
        ("PATCH", {**CHUNK_HEADERS, "Upload-Offset": "0"}),
        ("DELETE", {}),
    ):
        responses = [
            await dave.request(method, requested_path, headers=headers)
            for requested_path in (path, missing_path)
        ]
        invalid_id_response = await dave.request(
            method, f"{UPLOADS_PATH}/nonsense", headers=headers
        )
        foreign_response, missing_response = responses
        assert (
            foreign_response.status_code
            == missing_response.status_code
            == invalid_id_response.status_code
            == 404
        )
        assert set(foreign_response.headers) == set(missing_response.headers)
        assert "upload-offset" not in foreign_response.headers
        assert (
            method == "HEAD"
            or error_code(foreign_response)
            == error_code(missing_response)
            == error_code(invalid_id_response)
            == "NOT_FOUND"
        )
        anonymous_response = await carol.client.http.request(
            method, path, headers={"Tus-Resumable": "1.0.0", **headers}
        )
        assert anonymous_response.status_code == 401
    assert await carol.load_offset(path) == 0


async def test_required_scopes_equal_those_of_simple_uploads(connect: UploadClientFactory) -> None:
    submitter = await connect("dora", scopes=[Scope.SUBMIT])
    assert (await submitter.request_upload(1)).status_code == 201
    readers = ("erin", {"scopes": [Scope.MAIL_READ]}), ("fay", {"read_only": True})
    for name, options in readers:
        reader = await connect(name, **options)
        assert (await reader.request_upload(1)).status_code == 403
        row = await resumable_uploads.create_upload(
            client_context(reader.client), resumable_uploads.AnnouncedUpload(5, "a/b")
        )
        path = f"{UPLOADS_PATH}/{global_ids.encode('Upload', row.id)}"
        assert (await reader.request("HEAD", path)).status_code == 403
        assert (await reader.append_chunk(path, 0, b"12345")).status_code == 403
        assert (await reader.request("DELETE", path)).status_code == 403
        assert (
            await resumable_uploads.read_own_upload_row(client_context(reader.client), row.id)
        ).received == 0


async def test_announced_bytes_count_towards_limits_until_deletion(
    carol: ResumableUploadClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uploads, "MAX_TOTAL_BYTES", 100)
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 3)
    path = await carol.create_upload(60)
    refused = await carol.request_upload(41)
    assert (refused.status_code, error_code(refused)) == (413, "LIMIT_REACHED")
    assert (await carol.append_chunk(path, 0, bytes(60))).status_code == 204, (
        "they were counted before"
    )
    assert (await carol.request_upload(41)).status_code == 413
    await carol.create_upload(0)
    await carol.create_upload(40)
    refused = await carol.request_upload(0)
    assert (refused.status_code, error_code(refused)) == (429, "RATE_LIMITED")
    assert refused.headers["retry-after"] == str(24 * 3600)
    assert (await carol.request("DELETE", path)).status_code == 204
    assert (await carol.request_upload(60)).status_code == 201
    assert file_names(tmp_path / "spool") == []


async def test_full_disk_or_memory_refuses_without_acknowledging(
    carol: ResumableUploadClient, connect: UploadClientFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk_client = await connect(carol.client, UploadLimits(disk_reserve=1 << 60))
    low_memory_client = await connect(carol.client, UploadLimits(memory_budget=1000))
    path = await carol.create_upload(MIB)
    for response in (
        await full_disk_client.request_upload(1),
        await full_disk_client.append_chunk(path, 0, b"x"),
        await low_memory_client.append_chunk(path, 0, bytes(MIB)),
    ):
        assert (response.status_code, error_code(response)) == (507, "UNAVAILABLE")
    assert await carol.load_offset(path) == 0
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", _write_until_disk_is_full)
        assert (await carol.append_chunk(path, 0, bytes(MIB))).status_code == 507
    assert await carol.load_offset(path) == 1000, "what the disk took"
    assert (await carol.append_chunk(path, 1000, bytes(MIB - 1000))).status_code == 204


_pwrite = os.pwrite


def _write_until_disk_is_full(file_descriptor: int, data: bytes, offset: int) -> int:
    if offset >= 1000:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _pwrite(file_descriptor, data[: 1000 - offset], offset)
