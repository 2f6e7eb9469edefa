"""What is refused of uploads in pieces, before or while they come."""

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
from tests.conftest import context
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
from tests.support.servers.http_server import served

WRONG: list[tuple[str | None, int, str]] = [
    ("0", 409, "STALE"),
    ("4", 409, "STALE"),
    ("6", 409, "STALE"),
    ("9" * 5000, 409, "STALE"),
    ("-1", 400, "BAD_USER_INPUT"),
    ("", 400, "BAD_USER_INPUT"),
    ("5.0", 400, "BAD_USER_INPUT"),
    (None, 400, "BAD_USER_INPUT"),
]


async def test_at_a_wrong_offset_nothing_is_added(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(10)
    await carol.append_chunk(path, 0, b"12345")
    for offset, status, said in WRONG:
        headers = {**CHUNK_HEADERS, **({} if offset is None else {"Upload-Offset": offset})}
        answer = await carol.request("PATCH", path, content=b"x", headers=headers)
        assert (answer.status_code, error_code(answer)) == (status, said), offset
        assert answer.headers["tus-resumable"] == "1.0.0"
        assert status != 409 or answer.headers["upload-offset"] == "5"
    assert (await carol.append_chunk(path, 5, b"67890")).headers["repr-digest"] == sha256_digest(
        b"1234567890"
    )


async def test_another_version_is_not_spoken(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(10)
    http = carol.client.http
    for version in (None, "0.2.2", "1.0.1", ""):
        named = {**carol.client.headers, **({} if version is None else {"Tus-Resumable": version})}
        piece = {**named, **CHUNK_HEADERS, "Upload-Offset": "0"}
        for answer in (
            await http.post(UPLOADS_PATH, headers={**named, "Upload-Length": "5"}),
            await http.patch(path, content=b"x", headers=piece),
            await http.delete(path, headers=named),
        ):
            assert (answer.status_code, answer.headers["tus-version"]) == (412, "1.0.0")
    assert len(await load_upload_rows(carol.client.world)) == 1
    assert await carol.load_offset(path) == 0


ANNOUNCED: list[tuple[dict[str, Any], int]] = [
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


async def test_what_is_announced_wrongly_is_refused(carol: ResumableUploadClient) -> None:
    for headers, status in ANNOUNCED:
        answer = await carol.request("POST", UPLOADS_PATH, headers=headers)
        assert answer.status_code == status, headers
    taken = sum(status == 201 for _, status in ANNOUNCED)
    assert len(await load_upload_rows(carol.client.world)) == taken


async def test_bodies_of_another_kind_are_refused(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(10)
    for headers in (
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {**CHUNK_HEADERS, "Content-Encoding": "gzip"},
    ):
        named = {"Upload-Length": "10", "Upload-Offset": "0", **headers}
        patched = await carol.request("PATCH", path, content=b"x", headers=named)
        created = await carol.request("POST", UPLOADS_PATH, content=b"x", headers=named)
        for answer in (patched, created):
            assert (answer.status_code, error_code(answer)) == (415, "BAD_USER_INPUT")
    assert await carol.load_offset(path) == 0
    assert len(await load_upload_rows(carol.client.world)) == 1


async def test_forms_are_no_uploads_on_any_road(small: Environment, tmp_path: Path) -> None:
    async with (
        served(create_app(small, spool_folder=tmp_path)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        carol = await make_upload_client(small, http, "carol")
        for path in (UPLOADS_PATH, "/graphql"):
            form = {"operations": b'{"query": "{ __typename }"}', "0": b"x"}
            answer = await http.post(path, files=form, headers=carol.headers)
            assert (answer.status_code, error_code(answer)) == (415, "BAD_USER_INPUT")
            assert answer.headers["content-type"].startswith("application/json")


async def test_more_than_was_announced_is_refused(carol: ResumableUploadClient) -> None:
    path = await carol.create_upload(10)
    announced = await carol.append_chunk(path, 0, bytes(11))
    assert (announced.status_code, error_code(announced)) == (413, "TOO_LARGE")
    assert await carol.load_offset(path) == 0
    silent = await carol.append_chunk(path, 0, iterate_chunks(b"12345", b"6789012"))
    assert (silent.status_code, error_code(silent)) == (413, "TOO_LARGE")
    assert await carol.load_offset(path) in (0, 5)  # as the line has cut it
    at = await carol.load_offset(path)
    done = await carol.append_chunk(path, at, b"1234567890"[at:])
    assert done.headers["repr-digest"] == sha256_digest(b"1234567890")


async def test_to_others_it_is_as_if_it_were_not_there(
    carol: ResumableUploadClient, connect: UploadClientFactory
) -> None:
    path = await carol.create_upload(10)
    dave = await connect("dave")
    missing = f"{UPLOADS_PATH}/{global_ids.encode('Upload', 7)}"
    for method, headers in (
        ("HEAD", {}),
        ("PATCH", {**CHUNK_HEADERS, "Upload-Offset": "0"}),
        ("DELETE", {}),
    ):
        seen = [await dave.request(method, where, headers=headers) for where in (path, missing)]
        bogus = await dave.request(method, f"{UPLOADS_PATH}/nonsense", headers=headers)
        theirs, none = seen
        assert theirs.status_code == none.status_code == bogus.status_code == 404
        assert set(theirs.headers) == set(none.headers)
        assert "upload-offset" not in theirs.headers
        assert (
            method == "HEAD"
            or error_code(theirs) == error_code(none) == error_code(bogus) == "NOT_FOUND"
        )
        stranger = await carol.client.http.request(
            method, path, headers={"Tus-Resumable": "1.0.0", **headers}
        )
        assert stranger.status_code == 401
    assert await carol.load_offset(path) == 0


async def test_the_scopes_are_those_of_all_uploads(connect: UploadClientFactory) -> None:
    submitter = await connect("dora", scopes=[Scope.SUBMIT])
    assert (await submitter.request_upload(1)).status_code == 201
    readers = ("erin", {"scopes": [Scope.MAIL_READ]}), ("fay", {"read_only": True})
    for name, more in readers:
        reader = await connect(name, **more)
        assert (await reader.request_upload(1)).status_code == 403
        row = await resumable_uploads.create_upload(
            context(reader.client), resumable_uploads.AnnouncedUpload(5, "a/b")
        )
        path = f"{UPLOADS_PATH}/{global_ids.encode('Upload', row.id)}"
        assert (await reader.request("HEAD", path)).status_code == 403
        assert (await reader.append_chunk(path, 0, b"12345")).status_code == 403
        assert (await reader.request("DELETE", path)).status_code == 403
        assert (
            await resumable_uploads.read_upload_row(context(reader.client), row.id)
        ).received == 0


async def test_announced_bytes_count_until_they_end(
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


async def test_without_room_nothing_is_promised(
    carol: ResumableUploadClient, connect: UploadClientFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowded = await connect(carol.client, UploadLimits(disk_reserve=1 << 60))
    tight = await connect(carol.client, UploadLimits(memory_budget=1000))
    path = await carol.create_upload(MIB)
    for answer in (
        await crowded.request_upload(1),
        await crowded.append_chunk(path, 0, b"x"),
        await tight.append_chunk(path, 0, bytes(MIB)),
    ):
        assert (answer.status_code, error_code(answer)) == (507, "UNAVAILABLE")
    assert await carol.load_offset(path) == 0
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", _full)
        assert (await carol.append_chunk(path, 0, bytes(MIB))).status_code == 507
    assert await carol.load_offset(path) == 1000, "what the disk took"
    assert (await carol.append_chunk(path, 1000, bytes(MIB - 1000))).status_code == 204


_pwrite = os.pwrite


def _full(handle: int, data: bytes, at: int) -> int:
    if at >= 1000:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _pwrite(handle, data[: 1000 - at], at)
