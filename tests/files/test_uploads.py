"""Uploads: bytes that a client sends before the mutation that uses them."""

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.http.upload_body import UploadLimits
from graph.types import global_ids
from mail.storage.blobs.errors import CorruptBlob
from models.errors import LimitReached, NotFound, RateLimited
from models.files.blobs import Upload
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.files import uploads
from resolvers.files.uploads import ReceivedFile
from tests.conftest import GraphQLClient, ManualClock, client_context, make_api_key
from tests.support.case_loop import each_case
from tests.support.clients.upload_client import (
    MIB,
    assert_nothing_left,
    error_code,
    file_names,
    load_upload_rows,
    make_upload_app,
    make_upload_client,
)
from tests.support.mail.multipart_message import pseudo_random_bytes
from tests.support.servers.http_server import disconnect_during_upload, run_http_server
from tests.support.time_limits import HANG_SECONDS

MAX_UPLOAD_BYTES = 3 * MIB
UPLOADS_PATH = "/rest/uploads"


@pytest.fixture
def limited_environment(environment: Environment) -> Environment:
    """The environment with uploads of at most 3 MiB."""
    return replace(
        environment, options=replace(environment.options, upload_max_size=MAX_UPLOAD_BYTES)
    )


HttpClientFactory = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def connect(
    limited_environment: Environment, tmp_path: Path
) -> AsyncIterator[HttpClientFactory]:
    async with contextlib.AsyncExitStack() as stack:

        def connect_client(limits: UploadLimits | None = None) -> httpx.AsyncClient:
            app = make_upload_app(limited_environment, tmp_path / "spool", limits)
            http_client = httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app), base_url="http://test"
            )
            stack.push_async_callback(http_client.aclose)
            return http_client

        yield connect_client


@pytest.fixture
async def carol(limited_environment: Environment, connect: HttpClientFactory) -> GraphQLClient:
    return await make_upload_client(limited_environment, connect(), "carol")


@pytest.fixture
async def dave(limited_environment: Environment, connect: HttpClientFactory) -> GraphQLClient:
    return await make_upload_client(limited_environment, connect(), "dave")


async def post_upload(client: GraphQLClient, content: Any, **headers: str) -> httpx.Response:
    named_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.http.post(
        UPLOADS_PATH, content=content, headers={**client.headers, **named_headers}
    )


def received_file(content: bytes = b"x", **fields: Any) -> ReceivedFile:
    return ReceivedFile(content, len(content), hashlib.sha256(content).hexdigest(), **fields)


async def test_upload_is_stored_for_a_day(
    carol: GraphQLClient, tmp_path: Path, clock: ManualClock
) -> None:
    upload_ids = list[int]()
    cases: list[int] = [0, 1, 100_000, 2 * MIB, MAX_UPLOAD_BYTES]
    for case in each_case(cases):
        with case as size:
            content = pseudo_random_bytes(size)
            response = await post_upload(
                carol,
                content,
                content_type="Image/PNG; x=y",
                content_disposition="attachment; filename*=UTF-8''..%2Fn%C3%BC.png",
            )
            assert response.status_code == 201
            body = response.json()
            upload_id = global_ids.decode("Upload", body.pop("id"))
            upload_ids.append(upload_id)
            digest = hashlib.sha256(content).hexdigest()
            assert body == {"size": size, "sha256": digest, "expiresAt": "2030-01-02T00:00:00Z"}
            (row,) = await uploads.load_own_complete_uploads_by_id(
                client_context(carol), [upload_id]
            )
            assert row
            assert (row.content_type, row.filename) == ("image/png", "nü.png")
            assert await uploads.read_and_verify_upload(client_context(carol), upload_id) == content
            assert file_names(tmp_path / "spool") == []
    clock.tick(hours=24)
    for upload_id in upload_ids:
        with pytest.raises(NotFound):
            await uploads.read_and_verify_upload(client_context(carol), upload_id)


def test_content_type_and_filename_are_read_from_headers() -> None:
    cases: list[tuple[dict[str, str], str | None, str | None]] = [
        ({}, "application/octet-stream", None),
        ({"content-type": "nonsense"}, "application/octet-stream", None),
        ({"content-type": "text/html, x"}, "application/octet-stream", None),
        ({"content-disposition": 'attachment; filename="a b.txt"'}, None, "a b.txt"),
        ({"content-disposition": 'attachment; filename="C:\\\\x\\\\b.txt"'}, None, "b.txt"),
        ({"content-disposition": "attachment; filename=/"}, None, None),
        ({"content-disposition": f"attachment; filename={'n' * 999}"}, None, "n" * 255),
    ]
    for case in each_case(cases):
        with case as (headers, content_type, filename):
            result = uploads.type_and_name_from_headers(headers)
            assert result == (content_type or "application/octet-stream", filename)


async def test_upload_is_visible_only_to_its_sender(
    carol: GraphQLClient, dave: GraphQLClient
) -> None:
    upload_id = global_ids.decode("Upload", (await post_upload(carol, b"mine")).json()["id"])
    assert await uploads.load_own_complete_uploads_by_id(client_context(dave), [upload_id]) == [
        None
    ]
    for other_id in (upload_id, upload_id + 1):
        with pytest.raises(NotFound):
            await uploads.read_and_verify_upload(client_context(dave), other_id)
    assert await uploads.read_and_verify_upload(client_context(carol), upload_id) == b"mine"


async def test_upload_needs_scope_to_write_or_send_mail(
    limited_environment: Environment, connect: HttpClientFactory
) -> None:
    cases: list[tuple[dict[str, Any], int]] = [
        ({"scopes": [Scope.MAIL]}, 201),
        ({"scopes": [Scope.SUBMIT]}, 201),
        ({"scopes": [Scope.MAIL_READ]}, 403),
        ({"scopes": [Scope.SETTINGS]}, 403),
        ({"read_only": True}, 403),
    ]
    http = connect()
    for number, case in enumerate(each_case(cases)):
        with case as (key_options, status):
            client = await make_upload_client(
                limited_environment, http, f"user{number}", **key_options
            )
            count = len(await load_upload_rows(limited_environment))
            assert (await post_upload(client, b"hello")).status_code == status
            assert len(await load_upload_rows(limited_environment)) - count == (status == 201)


async def test_upload_needs_signed_in_user(
    limited_environment: Environment, connect: HttpClientFactory
) -> None:
    http = connect()
    anonymous_response = await http.post(UPLOADS_PATH, content=b"x")
    assert (anonymous_response.status_code, error_code(anonymous_response)) == (
        401,
        "UNAUTHENTICATED",
    )
    secret = await make_api_key(limited_environment, "root", role=Role.ROOT, scopes=[Scope.FULL])
    root_response = await http.post(UPLOADS_PATH, content=b"x", headers={"x-api-key": secret})
    assert (root_response.status_code, error_code(root_response)) == (403, "FORBIDDEN")
    assert (await http.get(UPLOADS_PATH)).status_code == 405


async def iterate_chunks(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def test_too_large_body_is_refused_with_or_without_length(
    carol: GraphQLClient, tmp_path: Path
) -> None:
    sized_response = await post_upload(
        carol, iterate_chunks(b"x"), content_length=str(MAX_UPLOAD_BYTES + 1)
    )
    huge_length_response = await post_upload(carol, iterate_chunks(b"x"), content_length="9" * 5000)
    chunked_response = await post_upload(carol, iterate_chunks(*[bytes(MIB)] * 3, b"x"))
    for response in (sized_response, huge_length_response, chunked_response):
        assert (response.status_code, error_code(response)) == (413, "TOO_LARGE")
    await assert_nothing_left(carol.environment, tmp_path / "spool")


async def test_content_encoding_and_negative_length_are_refused(carol: GraphQLClient) -> None:
    encoded_response = await post_upload(carol, b"x", content_encoding="gzip")
    assert (encoded_response.status_code, error_code(encoded_response)) == (415, "BAD_USER_INPUT")
    negative_length_response = await post_upload(carol, iterate_chunks(b"x"), content_length="-1")
    assert (negative_length_response.status_code, error_code(negative_length_response)) == (
        400,
        "BAD_USER_INPUT",
    )


async def test_number_of_unused_uploads_is_limited(
    carol: GraphQLClient, dave: GraphQLClient, clock: ManualClock
) -> None:
    for _ in range(uploads.MAX_UPLOADS):
        await uploads.store_upload(client_context(carol), received_file())
    clock.tick(hours=1)
    response = await post_upload(carol, b"x")
    assert (response.status_code, error_code(response)) == (429, "RATE_LIMITED")
    assert response.headers["retry-after"] == str(23 * 3600)
    assert (await post_upload(dave, b"x")).status_code == 201
    with pytest.raises(RateLimited):  # as by a concurrent request that began below the limit
        await uploads.store_upload(client_context(carol), received_file())
    stored = [stored async for stored in carol.environment.object_store.list()]
    assert len(stored) == uploads.MAX_UPLOADS + 1, "nothing is left of what was refused"
    clock.tick(hours=23)
    assert (await post_upload(carol, b"x")).status_code == 201


async def test_total_size_of_unused_uploads_is_limited(
    carol: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_TOTAL_BYTES", 100)
    assert (await post_upload(carol, bytes(60))).status_code == 201
    sized_response = await post_upload(carol, bytes(41))
    chunked_response = await post_upload(carol, iterate_chunks(bytes(41)))
    for response in (sized_response, chunked_response):
        assert (response.status_code, error_code(response)) == (413, "LIMIT_REACHED")
        extensions = response.json()["errors"][0]["extensions"]
        assert (extensions["limit"], extensions["used"]) == (100, 60)
    assert (await post_upload(carol, bytes(40))).status_code == 201


async def test_concurrent_uploads_stay_within_limit(
    carol: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 3)
    requests = (
        uploads.store_upload(client_context(carol), received_file(b"%d" % n)) for n in range(10)
    )
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert sum(isinstance(outcome, RateLimited) for outcome in outcomes) == 7
    assert len(await load_upload_rows(carol.environment)) == 3


async def test_concurrent_uploads_of_a_user_are_limited(
    limited_environment: Environment, connect: HttpClientFactory
) -> None:
    client = await make_upload_client(
        limited_environment, connect(UploadLimits(max_per_user=1)), "carol"
    )
    started, release = asyncio.Event(), asyncio.Event()

    async def slow_body() -> AsyncIterator[bytes]:
        started.set()
        await release.wait()
        yield b"slow"

    first = asyncio.create_task(post_upload(client, slow_body()))
    await started.wait()
    second = await post_upload(client, b"fast")
    assert (second.status_code, error_code(second)) == (429, "RATE_LIMITED")
    release.set()
    assert (await first).status_code == 201
    assert (await post_upload(client, b"later")).status_code == 201


async def test_stalled_body_times_out(
    limited_environment: Environment, connect: HttpClientFactory, tmp_path: Path
) -> None:
    async def stalled_body() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        await asyncio.sleep(60)

    idle_timeout_client = await make_upload_client(
        limited_environment, connect(UploadLimits(idle_timeout=0.1)), "carol"
    )
    body_timeout_client = await make_upload_client(
        limited_environment, connect(UploadLimits(body_timeout=0.1)), "dave"
    )
    for client in (idle_timeout_client, body_timeout_client):
        response = await post_upload(client, stalled_body())
        assert (response.status_code, error_code(response)) == (408, "DEADLINE_EXCEEDED")
    await assert_nothing_left(limited_environment, tmp_path / "spool")


async def test_full_disk_or_memory_refuses_and_leaves_nothing(
    limited_environment: Environment,
    connect: HttpClientFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def raise_disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    carol = await make_upload_client(
        limited_environment, connect(UploadLimits(disk_reserve=1 << 60)), "carol"
    )
    dave = await make_upload_client(
        limited_environment, connect(UploadLimits(memory_budget=MIB)), "dave"
    )
    erin = await make_upload_client(limited_environment, connect(), "erin")
    monkeypatch.setattr(limited_environment.object_store, "put", raise_disk_full)
    for client, size in ((carol, 1), (dave, 2 * MIB), (erin, 1)):
        response = await post_upload(client, bytes(size))
        assert (response.status_code, error_code(response)) == (507, "UNAVAILABLE")
    await assert_nothing_left(limited_environment, tmp_path / "spool")


async def test_damaged_or_lost_upload_is_not_returned(carol: GraphQLClient) -> None:
    environment = carol.environment
    upload_id = global_ids.decode("Upload", (await post_upload(carol, b"good")).json()["id"])
    (row,) = await load_upload_rows(environment)
    await environment.object_store.put(row.blob_name, b"evil")
    with pytest.raises(CorruptBlob):
        await uploads.read_and_verify_upload(client_context(carol), upload_id)
    await environment.object_store.delete([row.blob_name])
    with pytest.raises(CorruptBlob, match="lost"):
        await uploads.read_and_verify_upload(client_context(carol), upload_id)


async def test_disconnected_client_leaves_nothing(carol: GraphQLClient, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    head = (
        f"POST {UPLOADS_PATH} HTTP/1.1\r\nHost: test\r\n"
        f"Authorization: {carol.headers['Authorization']}\r\n"
        f"Content-Length: {MAX_UPLOAD_BYTES}\r\n\r\n"
    )
    await disconnect_during_upload(
        make_upload_app(carol.environment, spool), spool, head.encode() + bytes(2 * MIB)
    )
    await assert_nothing_left(carol.environment, spool)


async def test_too_large_request_is_refused_before_its_body(
    carol: GraphQLClient, tmp_path: Path
) -> None:
    head = (
        f"POST {UPLOADS_PATH} HTTP/1.1\r\nHost: test\r\n"
        f"Authorization: {carol.headers['Authorization']}\r\n"
        f"Content-Length: {MAX_UPLOAD_BYTES + 1}\r\nExpect: 100-continue\r\n\r\n"
    )
    async with run_http_server(make_upload_app(carol.environment, tmp_path / "spool")) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        async with asyncio.timeout(HANG_SECONDS):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_total_size_is_checked_again_after_upload(carol: GraphQLClient) -> None:
    await uploads.store_upload(client_context(carol), received_file())
    async with carol.environment.write_session() as session:
        await session.exec(
            update(Upload).values(size=uploads.MAX_TOTAL_BYTES).where(col(Upload.id) > 0)
        )
    with pytest.raises(LimitReached):
        await uploads.store_upload(client_context(carol), received_file())
