"""Downloads over HTTP: access, headers and ranges."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col, select
from starlette.requests import Request

from graph.app import create_app
from graph.http import byte_responses, download_urls
from graph.http.graphql_request import RequestRejected
from graph.types import global_ids
from models.errors import InvalidInput
from models.files.blobs import Blob
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import Role, Scope
from resolvers.messages.attachments import MAX_ATTACHMENTS
from tests.conftest import GraphQLClient, deliver_to, make_api_key
from tests.support.case_loop import each_case
from tests.support.clients.download_requests import download_paths, error_code, message
from tests.support.clients.http_requests import get_path
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import ATTACHMENT_OFFSETS, ATTACHMENTS, MULTIPART_MESSAGE
from tests.support.servers.http_server import run_http_server
from tests.support.time_limits import HANG_SECONDS

__all__ = ["message"]
FIXTURE_SETTINGS = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


async def test_message_source_is_sent_unchanged_as_attachment(
    ada: GraphQLClient, message: int
) -> None:
    response = await get_path(ada, download_urls.message_source_path(message))
    assert response.status_code == 200
    assert response.content == MULTIPART_MESSAGE
    assert response.headers["content-type"] == "message/rfc822"
    assert response.headers["content-length"] == str(len(MULTIPART_MESSAGE))
    assert response.headers["content-disposition"] == 'attachment; filename="Rich.eml"'
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert response.headers["cache-control"] == "private, no-cache"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["x-request-id"]


async def test_attachment_is_sent_decoded(ada: GraphQLClient, message: int) -> None:
    for case in each_case(range(len(ATTACHMENTS))):
        with case as index:
            response = await get_path(ada, download_urls.attachment_download_path(message, index))
            assert response.status_code == 200
            assert response.content == ATTACHMENTS[index].content
            assert response.headers["content-length"] == str(len(ATTACHMENTS[index].content))


async def test_only_safe_media_types_are_sent_inline(ada: GraphQLClient) -> None:
    dispositions = {
        "image/png": "inline",
        "image/webp": "inline",
        "image/svg+xml": "attachment",
        "text/html": "attachment",
        "application/pdf": "attachment",
        "text/plain": "inline",
    }
    files = [
        multipart_message.AttachmentPart(
            f"Content-Type: {media_type}\r\nContent-Disposition: attachment", b"x", b"x"
        )
        for media_type in dispositions
    ]
    message_id = (await deliver_to(ada, multipart_message.build_message(files))).message_id
    for index, (media_type, disposition) in enumerate(dispositions.items()):
        response = await get_path(ada, download_urls.attachment_download_path(message_id, index))
        assert response.headers["content-type"].partition(";")[0] == media_type
        assert response.headers["content-disposition"].partition(";")[0] == disposition


async def test_file_name_is_sent_and_escaped_in_both_forms(
    ada: GraphQLClient, message: int
) -> None:
    response = await get_path(ada, download_urls.attachment_download_path(message, 1))
    expected = "attachment; filename=\"_bersicht.log\"; filename*=UTF-8''%C3%9Cbersicht.log"
    assert response.headers["content-disposition"] == expected
    escaped = byte_responses.content_disposition(
        "attachment", 'a"; x=\\..\\../e\u202egpj.\r\nSet-Cookie: exe'
    )
    assert escaped == 'attachment; filename="a_; x=_.._.._egpj.Set-Cookie_ exe"'


@given(st.text(max_size=400))
@example("\ud800")
@example(".")
def test_random_file_name_makes_a_valid_header(name: str) -> None:
    value = byte_responses.content_disposition("attachment", name)
    assert re.fullmatch(
        r"attachment; filename=\"[ !#-\[\]-~]+\"(; filename\*=UTF-8''[!-~]+)?", value
    )
    assert len(value) < 3000


OFFSETS = st.one_of(
    st.integers(0, len(MULTIPART_MESSAGE) + 9),
    st.builds(
        lambda edge, by: max(0, edge + by),
        st.sampled_from(ATTACHMENT_OFFSETS),
        st.integers(-200, 200),
    ),
)


@FIXTURE_SETTINGS
@given(OFFSETS, st.one_of(st.none(), OFFSETS))
@example(0, None)
@example(ATTACHMENT_OFFSETS[0] - 1, ATTACHMENT_OFFSETS[-1] + 1)
async def test_range_returns_exactly_its_bytes(
    ada: GraphQLClient, message: int, first: int, last: int | None
) -> None:
    range_header = f"bytes={first}-{'' if last is None else last}"
    response = await get_path(ada, download_urls.message_source_path(message), range=range_header)
    if last is not None and last < first:
        assert (response.status_code, response.content) == (200, MULTIPART_MESSAGE), (
            "no range at all"
        )
    elif first >= len(MULTIPART_MESSAGE):
        assert response.status_code == 416
        assert response.headers["content-range"] == f"bytes */{len(MULTIPART_MESSAGE)}"
    else:
        end = len(MULTIPART_MESSAGE) if last is None else min(last + 1, len(MULTIPART_MESSAGE))
        assert response.status_code == 206
        assert response.content == MULTIPART_MESSAGE[first:end]
        assert (
            response.headers["content-range"] == f"bytes {first}-{end - 1}/{len(MULTIPART_MESSAGE)}"
        )
        assert response.headers["content-length"] == str(end - first)


def test_single_range_is_parsed_and_other_values_are_ignored() -> None:
    cases: list[tuple[str, tuple[int, int] | None]] = [
        ("bytes=-4", (6, 10)),
        ("bytes=-40", (0, 10)),
        ("bytes=9-9", (9, 10)),
        ("bytes=0-" + "9" * 30, (0, 10)),
        ("Bytes= 2-3 ", (2, 4)),
        ("bytes=0-1,3-4", None),
        ("bytes=4-2", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("lines=1-2", None),
        ("", None),
    ]
    for case in each_case(cases):
        with case as (header, span):
            assert byte_responses.parse_range_or_none(header, 10) == span


def test_empty_range_is_refused() -> None:
    cases: list[str] = ["bytes=10-", "bytes=10-12", "bytes=-0"]
    for case in each_case(cases):
        with case as header:
            with pytest.raises(RequestRejected) as error:
                byte_responses.parse_range_or_none(header, 10)
            assert error.value.status == 416
            assert error.value.headers == {"Content-Range": "bytes */10"}


async def test_head_returns_same_headers_without_body(ada: GraphQLClient, message: int) -> None:
    for path in (
        download_urls.message_source_path(message),
        download_urls.attachment_download_path(message, 5),
    ):
        get_response = await get_path(ada, path)
        head_response = await ada.http.head(path, headers={**ada.headers, "Range": "bytes=0-1"})
        assert (head_response.status_code, head_response.content) == (200, b"")
        varying = {"x-request-id"}
        assert {
            name: value for name, value in head_response.headers.items() if name not in varying
        } == {name: value for name, value in get_response.headers.items() if name not in varying}


async def test_known_etag_is_answered_with_not_modified(ada: GraphQLClient, message: int) -> None:
    path = download_urls.attachment_download_path(message, 0)
    tag = (await get_path(ada, path)).headers["etag"]
    assert re.fullmatch('"[0-9a-f]{64}"', tag)
    for etags in (tag, f'"other", W/{tag}', "*"):
        response = await get_path(ada, path, if_none_match=etags)
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == tag
    assert (await get_path(ada, path, if_none_match='"other"')).status_code == 200
    assert (await get_path(ada, path, if_match=tag)).status_code == 200
    assert (await get_path(ada, path, if_match=f"W/{tag}")).status_code == 412


async def test_range_is_sent_only_if_if_range_matches(ada: GraphQLClient, message: int) -> None:
    path = download_urls.message_source_path(message)
    tag = (await get_path(ada, path)).headers["etag"]
    for etag, status in ((tag, 206), ('"other"', 200), (f"W/{tag}", 200)):
        response = await get_path(ada, path, range="bytes=5-9", if_range=etag)
        assert response.status_code == status


async def test_different_bytes_have_different_etags(ada: GraphQLClient, message: int) -> None:
    download_paths = [
        download_urls.message_source_path(message),
        *(
            download_urls.attachment_download_path(message, index)
            for index in range(len(ATTACHMENTS))
        ),
        *(download_urls.mime_part_path(message, section) for section in ("TEXT", "1.1", "1.2")),
    ]
    tags = [(await get_path(ada, path)).headers["etag"] for path in download_paths]
    assert len(set(tags)) == len(tags)


async def test_mime_parts_are_served_by_section(ada: GraphQLClient, message: int) -> None:
    html = await get_path(ada, download_urls.mime_part_path(message, "1.2"))
    assert html.text == multipart_message.HTML_TEXT.decode()
    assert html.headers["content-type"] == "text/html; charset=utf-8"
    assert html.headers["content-disposition"] == 'attachment; filename="part-1.2.html"'
    inner = await get_path(ada, download_urls.mime_part_path(message, "5.2"))
    assert inner.content == multipart_message.INNER_ATTACHMENT
    text_part = await get_path(ada, download_urls.mime_part_path(message, "TEXT"))
    assert MULTIPART_MESSAGE.endswith(text_part.content)
    assert text_part.headers["content-type"] == "application/octet-stream", "no live multipart"
    assert (await get_path(ada, download_urls.mime_part_path(message, "77"))).status_code == 404


async def test_message_of_other_user_looks_like_missing_one(
    ada: GraphQLClient, bob: GraphQLClient, message: int
) -> None:
    for own_path, missing_path in zip(
        download_paths(message), download_paths(message + 1), strict=True
    ):
        other_response = await get_path(bob, own_path)
        missing_response = await get_path(bob, missing_path)
        assert other_response.status_code == missing_response.status_code == 404
        assert error_code(other_response) == "NOT_FOUND"
        assert other_response.content == missing_response.content
        assert (await get_path(ada, own_path)).status_code == 200


async def test_attachment_of_other_user_is_not_reachable_by_own_message(
    ada: GraphQLClient, bob: GraphQLClient, message: int
) -> None:
    own_id = global_ids.encode("Message", (await deliver_to(bob, MULTIPART_MESSAGE)).message_id)
    attachment = download_urls.attachment_id(message, 0)
    response = await get_path(bob, f"/rest/messages/{own_id}/attachments/{attachment}")
    assert response.status_code == 404
    other_id = global_ids.encode("Message", message)
    assert (
        await get_path(bob, f"/rest/messages/{other_id}/attachments/{attachment}")
    ).status_code == 404
    missing_path = download_urls.attachment_download_path(message, len(ATTACHMENTS))
    assert (await get_path(ada, missing_path)).status_code == 404


async def test_invalid_id_is_not_found(ada: GraphQLClient) -> None:
    cases: list[str] = ["msg_", "x", "usr_AAAAAAAAAAE", "msg_%00", "%ff", "msg_é"]
    for case in each_case(cases):
        with case as invalid_id:
            for path in (
                f"/rest/messages/{invalid_id}/message.eml",
                f"/rest/messages/{global_ids.encode('Message', 5)}/attachments/{invalid_id}",
            ):
                response = await get_path(ada, path)
                assert (response.status_code, error_code(response)) == (404, "NOT_FOUND")


async def test_missing_or_invalid_credential_is_unauthenticated(
    http: httpx.AsyncClient, message: int
) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        for path in download_paths(message):
            response = await http.get(path, headers=headers)
            assert (response.status_code, error_code(response)) == (401, "UNAUTHENTICATED")
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["x-request-id"]


async def test_credential_for_submission_can_not_download(ada: GraphQLClient, message: int) -> None:
    secret = await make_api_key(
        ada.environment, "send", user_id=ada.user.id, role=Role.USER, scopes=[Scope.SUBMIT]
    )
    sender = GraphQLClient(ada.http, ada.environment, ada.user, secret)
    for path in download_paths(message):
        response = await get_path(sender, path)
        assert (response.status_code, error_code(response)) == (403, "FORBIDDEN")


@given(st.integers(1, 2**63 - 1), st.integers(0, MAX_ATTACHMENTS - 1))
def test_attachment_id_is_parsed_to_message_and_index(message_id: int, index: int) -> None:
    assert download_urls.parse_message_id_and_attachment_number(
        download_urls.attachment_id(message_id, index)
    ) == (
        message_id,
        index,
    )


@given(st.text(max_size=40).map(lambda text: f"att_{text}"))
@example("att_" + "A" * 14)
@example(str(download_urls.attachment_id(5, 1)) + "==")
@example(str(global_ids.encode("Attachment", 5)))
@example("att_AAAAAAAAAAUAAB")
def test_foreign_attachment_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        download_urls.parse_message_id_and_attachment_number(text)


async def test_damaged_message_is_reported_without_details(
    ada: GraphQLClient, message: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with ada.environment.write_session() as session:
        root = select(Message.blob_id).where(col(Message.id) == message).scalar_subquery()
        await session.exec(update(Blob).where(col(Blob.id) == root).values(data=b"spoilt"))
    response = await get_path(ada, download_urls.message_source_path(message))
    assert (response.status_code, error_code(response)) == (500, "DAMAGED")
    error = response.json()["errors"][0]["extensions"]
    assert error["requestId"] == response.headers["x-request-id"]
    assert error["requestId"] in [getattr(record, "request_id", "") for record in caplog.records]
    assert "spoilt" not in json.dumps(response.json())


async def test_damaged_attachment_is_refused_before_download_begins(
    environment: Environment, ada: GraphQLClient, message: int, tmp_path: Path
) -> None:
    query = select(*select_columns(Blob, ("name",))).where(
        col(Blob.size) == len(ATTACHMENTS[0].content)
    )
    ((name,),) = await environment.database.read(query)
    content = bytearray(await environment.object_store.get(name))
    content[-1] ^= 1
    await environment.object_store.put(name, bytes(content))
    async with (
        run_http_server(create_app(environment, spool_folder=tmp_path)) as port,
        httpx.AsyncClient(timeout=HANG_SECONDS) as http,
    ):
        url = f"http://127.0.0.1:{port}{download_urls.attachment_download_path(message, 0)}"
        damaged_response = await http.get(url, headers=ada.headers)
        assert (damaged_response.status_code, error_code(damaged_response)) == (500, "DAMAGED")
        intact_url = f"http://127.0.0.1:{port}{download_urls.mime_part_path(message, '1.1')}"
        intact_response = await http.get(intact_url, headers=ada.headers)
        assert intact_response.text == multipart_message.PLAIN_TEXT


async def test_stream_is_closed_when_client_disconnects() -> None:
    """As in uvicorn, sending is cancelled."""
    closed, has_sent = asyncio.Event(), asyncio.Event()

    async def endless(_start: int, _end: int) -> Any:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            closed.set()

    async def open_file() -> byte_responses.FileBytes:
        return byte_responses.FileBytes(1 << 40, endless, require_intact)

    async def require_intact(_start: int, _end: int) -> None: ...

    async def disconnect() -> dict[str, Any]:
        await has_sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            has_sent.set()

    scope = {"type": "http", "method": "GET", "headers": [], "path": "/"}
    served_file = byte_responses.ServedFile("tag", "text/plain", "x", open_file)
    response = await byte_responses.serve_file(Request(scope), served_file)
    await response(scope, disconnect, send)
    assert closed.is_set()
