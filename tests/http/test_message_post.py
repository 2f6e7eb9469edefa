"""Tests of messages that are posted to a mailbox over HTTP."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from graph.http.upload_body import UploadLimits
from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import User
from tests.conftest import GraphQLClient, make_api_key, raw_message
from tests.support.case_loop import each_case
from tests.support.clients.upload_client import (
    MIB,
    error_code,
    file_names,
    make_upload_app,
    make_upload_client,
)
from tests.support.mail.multipart_message import MULTIPART_MESSAGE, pseudo_random_bytes
from tests.support.operations.message_sources import load_message_source
from tests.support.servers.http_server import disconnect_during_upload
from tests.support.stores.counter_check import select_rows

MAX_MESSAGE_BYTES = 4 * MIB
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def post_message(
    client: GraphQLClient, mailbox_id: str, content: Any, query: str = "", **headers: str
) -> httpx.Response:
    header_fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request_headers = {**client.headers, "content-type": "message/rfc822", **header_fields}
    path = f"/rest/mailboxes/{mailbox_id}/messages{query}"
    return await client.http.post(path, content=content, headers=request_headers)


async def inbox_id(client: GraphQLClient) -> str:
    return global_ids.encode("Mailbox", (await client.load_mailbox()).id)


@pytest.fixture
def small_limit_environment(environment: Environment) -> Environment:
    """An environment with a message limit of 4 MiB."""
    return replace(
        environment, options=replace(environment.options, message_max_size=MAX_MESSAGE_BYTES)
    )


@pytest.fixture
async def carol(
    small_limit_environment: Environment, tmp_path: Path
) -> AsyncIterator[GraphQLClient]:
    transport = httpx.ASGITransport(
        app=make_upload_app(small_limit_environment, tmp_path / "spool")
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield await make_upload_client(small_limit_environment, http, "carol")


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    for offset in range(0, len(content), 100_000):
        yield content[offset : offset + 100_000]


async def test_posted_message_is_stored_unchanged(ada: GraphQLClient) -> None:
    mailbox_id = await inbox_id(ada)
    lf_message = b"Subject: bare\n\nline\nends\n"
    for raw in (raw_message("Up"), lf_message, MULTIPART_MESSAGE):
        response = await post_message(ada, mailbox_id, chunks(raw))
        body = response.json()
        assert (response.status_code, set(body)) == (201, {"id", "uid", "mailbox"})
        path = f"/rest/messages/{body['id']}/message.eml"
        assert response.headers["location"] == path
        download = await ada.http.get(path, headers=ada.headers)
        assert download.content == raw
        assert (body["mailbox"], body["uid"]) == (
            mailbox_id,
            (await ada.load_mailbox()).uid_next - 1,
        )
    assert "ends" in await load_message_source(
        ada, (await post_message(ada, mailbox_id, lf_message)).json()["id"]
    )
    ((event_count,),) = await select_rows(
        ada.environment, "SELECT count(*) FROM changes WHERE type = 'MESSAGE_ADDED'"
    )
    assert event_count == 4


async def test_query_parameters_set_flags(ada: GraphQLClient) -> None:
    cases: list[tuple[str, tuple[bool, ...]]] = [
        ("", (True, False, False)),
        ("?seen=false", (False, False, False)),
        ("?seen=1&flagged=1&draft=yes", (True, True, True)),
        ("?flagged=TRUE&seen=yes", (True, True, False)),
    ]
    for case in each_case(cases):
        with case as (query, flags):
            response = await post_message(ada, await inbox_id(ada), raw_message(), query)
            assert response.status_code == 201
            rows = await select_rows(
                ada.environment, "SELECT seen, flagged, draft FROM messages ORDER BY uid"
            )
            assert tuple(map(bool, rows[-1])) == flags
    assert len(rows) == len(cases)


async def test_invalid_message_post_is_refused(ada: GraphQLClient) -> None:
    mailbox_id = await inbox_id(ada)
    missing_id = global_ids.encode("Mailbox", 7)
    for status, response in (
        (400, await post_message(ada, mailbox_id, b"")),
        (400, await post_message(ada, mailbox_id, b" \r\n\r\n")),
        (400, await post_message(ada, mailbox_id, b"a: b", "?unseen=true")),
        (400, await post_message(ada, mailbox_id, b"a: b", "?draft=maybe")),
        (404, await post_message(ada, missing_id, b"a: b")),
        (404, await post_message(ada, "x", b"a: b")),
        (404, await post_message(ada, global_ids.encode("Message", 7), b"a: b")),
        (
            415,
            await post_message(
                ada, mailbox_id, b"a: b", content_type="application/x-www-form-urlencoded"
            ),
        ),
        (
            415,
            await post_message(
                ada, mailbox_id, b"a: b", content_type="multipart/form-data; boundary=x"
            ),
        ),
        (415, await post_message(ada, mailbox_id, b"a: b", content_encoding="gzip")),
    ):
        assert response.status_code == status, response.text
        assert response.json()["errors"][0]["message"]
    assert await select_rows(ada.environment, "SELECT id FROM messages") == []


async def test_message_post_to_mailbox_of_other_user_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    mailbox_id = await inbox_id(ada)
    anonymous = GraphQLClient(ada.http, ada.environment, ada.user, "")
    expected_responses = [
        (await post_message(bob, mailbox_id, b"a: b"), 404, "NOT_FOUND"),
        (await post_message(root, mailbox_id, b"a: b"), 403, "FORBIDDEN"),
        (
            await post_message(anonymous, mailbox_id, b"a: b"),
            401,
            "UNAUTHENTICATED",
        ),
    ]
    for name, key_options in (
        ("boss", {"user_id": bob.user.id, "role": Role.ADMIN, "scopes": [Scope.FULL]}),
        ("sender", {"scopes": [Scope.SUBMIT]}),
        ("reader", {"scopes": [Scope.MAIL_READ]}),
        ("shy", {"scopes": [Scope.FULL], "read_only": True}),
    ):
        all_options = {"user_id": ada.user.id, "role": Role.USER, **key_options}
        key_client = GraphQLClient(
            ada.http,
            ada.environment,
            ada.user,
            await make_api_key(ada.environment, name, **all_options),
        )
        expected = (404, "NOT_FOUND") if name == "boss" else (403, "FORBIDDEN")
        expected_responses.append((await post_message(key_client, mailbox_id, b"a: b"), *expected))
    for response, status, code in expected_responses:
        assert (response.status_code, error_code(response)) == (status, code)
    assert await select_rows(ada.environment, "SELECT id FROM messages") == []


async def test_message_above_limit_or_quota_is_refused(
    carol: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    mailbox_id = await inbox_id(carol)
    raw = b"Subject: x\r\n\r\n" + pseudo_random_bytes(MAX_MESSAGE_BYTES)
    assert (await post_message(carol, mailbox_id, raw[:MAX_MESSAGE_BYTES])).status_code == 201
    for content in (raw, chunks(raw)):
        response = await post_message(carol, mailbox_id, content)
        assert (response.status_code, error_code(response)) == (413, "TOO_LARGE")

    async def unread_body() -> AsyncIterator[bytes]:
        raise AssertionError("it was asked for")
        yield b""

    async def set_quota(quota: int | None) -> None:
        async with environment.write_session() as session:
            await session.exec(update(User).values(quota=quota))

    await set_quota(MAX_MESSAGE_BYTES + 10)
    for response in (
        await post_message(carol, mailbox_id, unread_body(), content_length="11"),
        await post_message(carol, mailbox_id, chunks(b"Subject: xy")),
    ):
        assert (response.status_code, error_code(response)) == (413, "QUOTA_EXCEEDED")
    assert (await post_message(carol, mailbox_id, b"Subject: x")).status_code == 201
    await set_quota(None)
    assert file_names(tmp_path / "spool") == []


async def test_aborted_message_post_leaves_nothing(carol: GraphQLClient, tmp_path: Path) -> None:
    spool, mailbox_id = tmp_path / "other", await inbox_id(carol)
    request_head = (
        f"POST /rest/mailboxes/{mailbox_id}/messages HTTP/1.1\r\nHost: test\r\n"
        f"Authorization: {carol.headers['Authorization']}\r\n"
        f"Content-Type: message/rfc822\r\nContent-Length: {MAX_MESSAGE_BYTES}\r\n\r\n"
    )
    await disconnect_during_upload(
        make_upload_app(carol.environment, spool), spool, request_head.encode() + bytes(2 * MIB)
    )
    assert await select_rows(carol.environment, "SELECT id FROM messages") == []


async def test_message_post_without_disk_or_memory_is_unavailable(
    small_limit_environment: Environment, tmp_path: Path
) -> None:
    for name, limits in (
        ("carol", UploadLimits(disk_reserve=1 << 60)),
        ("dave", UploadLimits(memory_budget=MIB)),
    ):
        transport = httpx.ASGITransport(
            app=make_upload_app(small_limit_environment, tmp_path / name, limits)
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            client = await make_upload_client(small_limit_environment, http, name)
            response = await post_message(client, await inbox_id(client), bytes(2 * MIB))
            assert (response.status_code, error_code(response)) == (507, "UNAVAILABLE")
