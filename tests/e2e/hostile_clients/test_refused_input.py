"""Tests of invalid input: each protocol refuses it with its own error, and nothing is stored."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import raw_message
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.time_limits import HANG_SECONDS

MIB = 1 << 20
VIEWER_QUERY = "{ viewer { user { username } } }"
MESSAGE_QUERY = "query ($id: ID!) { message(by: {id: $id}) { subject } }"
STORES = ["sqlite"]  # no request reaches the database
CHANGES_AFTER_SUBSCRIPTION = (
    "subscription ($after: Cursor) { changes(after: $after) { cursor events { type } } }"
)
CHANGES_SUBSCRIPTION = "subscription { changes { events { type } } }"


def error_code(result: Any) -> str:
    """Return the code of the only error."""
    (error,) = result["errors"]
    return str(error["extensions"]["code"])


async def post_refused_body(
    server: MerganserProcess, body: bytes, name: str | None = "ada", **headers: str
) -> Any:
    """Post a body and return the status and error code."""
    async with server.open_client(name) as client:
        request_headers = {"Content-Type": "application/json", **headers}
        response = await client.http.post("/graphql", content=body, headers=request_headers)
        assert response.headers["x-request-id"]
        return response.status_code, error_code(response.json())


def graphql_body(query: object, **variables: Any) -> bytes:
    return json.dumps({"query": query, "variables": variables}).encode()


BODIES = {
    "no JSON": (b'{"query": ', 400, "BAD_USER_INPUT"),
    "nothing": (b"", 400, "BAD_USER_INPUT"),
    "a list": (b"[]", 400, "BAD_USER_INPUT"),
    "a number": (b"1e999", 400, "BAD_USER_INPUT"),
    "not UTF-8": (b'{"query": "\xff"}', 400, "BAD_USER_INPUT"),
    "a query that is no text": (graphql_body(7), 400, "BAD_USER_INPUT"),
    "no query": (b'{"variables": {}}', 400, "BAD_USER_INPUT"),
    "a lone surrogate": (
        b'{"query": "{ a }", "variables": {"a": "\\ud800"}}',
        400,
        "BAD_USER_INPUT",
    ),
    "nested deeply": (
        b'{"query": "{ a }", "variables": {"a": ' + b"[" * 99_999,
        400,
        "BAD_USER_INPUT",
    ),
    "nested and closed": (
        b'{"query": "{ a }", "variables": {"a": ' + b"[" * 999 + b"]" * 999 + b"}}",
        400,
        "BAD_USER_INPUT",
    ),
    "a body too large": (b" " * (MIB + 1), 413, "TOO_LARGE"),
    "5 MB of names": (b'{"query": "' + b"a " * 2_500_000 + b'"}', 413, "TOO_LARGE"),
    "a document too large": (graphql_body("a " * 60_000), 200, "TOO_LARGE"),
    "too many words": (graphql_body(f"{{ {'a ' * 20_000} }}"), 200, "GRAPHQL_PARSE_FAILED"),
    "no document": (graphql_body("{ viewer {"), 200, "GRAPHQL_PARSE_FAILED"),
    "brackets": (graphql_body("{a" * 2000), 200, "GRAPHQL_PARSE_FAILED"),
    "NUL in the document": (graphql_body('{ node(id: "\0") { id } }'), 200, "BAD_USER_INPUT"),
    "an unknown member with an odd letter": (
        graphql_body(
            "mutation ($i: UndoInput!) { undo(input: $i) { restoredCount } }",
            i={"token": "x", "İ": 1},
        ),
        200,
        "BAD_USER_INPUT",
    ),
    "an enum with an odd letter": (
        graphql_body('{ users(filter: {roles: "İ"}) { totalCount } }'),
        200,
        "GRAPHQL_VALIDATION_FAILED",
    ),
    "null where nothing may be null": (
        graphql_body(
            "mutation ($s: MessagePatch!) "
            "{ messageUpdate(input: {select: {ids: []}, set: $s}) { updatedCount } }",
            s={"flags": None},
        ),
        200,
        "BAD_USER_INPUT",
    ),
    "an unknown field": (graphql_body("{ nope }"), 200, "GRAPHQL_VALIDATION_FAILED"),
    "a wrong type": (graphql_body(MESSAGE_QUERY, id=[1]), 200, "BAD_USER_INPUT"),
    "a variable left out": (graphql_body(MESSAGE_QUERY), 200, "BAD_USER_INPUT"),
    "a huge number": (
        b'{"query": "query ($n: Int) { users(first: $n) { totalCount } }", "variables": {"n": '
        + b"9" * 400
        + b"}}",
        400,
        "BAD_USER_INPUT",
    ),
    "a number of 70 bits": (
        graphql_body("query ($n: Int) { apiKeys(first: $n) { totalCount } }", n=2**63 - 1),
        200,
        "BAD_USER_INPUT",
    ),
    "a bad id": (graphql_body(MESSAGE_QUERY, id="msg_x"), 200, "BAD_ID"),
    "an id of another kind": (graphql_body(MESSAGE_QUERY, id="box_AAAAAAAAAAE"), 200, "BAD_ID"),
    "a bad place in a list": (
        graphql_body('{ viewer { user { messages(after: "x") { nodes { id } } } } }'),
        200,
        "BAD_CURSOR",
    ),
    "a subscription": (graphql_body(CHANGES_SUBSCRIPTION), 400, "BAD_USER_INPUT"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_invalid_body_is_refused_with_status_and_code(
    server: MerganserProcess, name: str
) -> None:
    body, status, expected_code = BODIES[name]
    cpu_before = server.cpu_seconds()
    assert await post_refused_body(server, body) == (status, expected_code)
    assert server.cpu_seconds() - cpu_before < 2


async def test_fragment_and_depth_bombs_are_refused_quickly(server: MerganserProcess) -> None:
    links = [
        f"fragment f{number} on User {{ ...f{number + 1} ...f{number + 1} }}"
        for number in range(40)
    ]
    bomb = " ".join(["{ viewer { user { ...f0 } } }", *links, "fragment f40 on User { id }"])
    loop = "{ viewer { user { ...a } } } fragment a on User { ...b } fragment b on User { ...a }"
    deep = "{ viewer { user " + "{ mailboxes { nodes { user " * 20 + "{ id }" + "} } }" * 20 + "} }"
    wide = "{ " + " ".join(f"a{number}: viewer {{ role }}" for number in range(200)) + " }"
    cpu_before = server.cpu_seconds()
    codes = [
        (await post_refused_body(server, graphql_body(text)))[1] for text in (loop, deep, wide)
    ]
    assert codes == ["GRAPHQL_VALIDATION_FAILED", "QUERY_TOO_COMPLEX", "QUERY_TOO_COMPLEX"]
    async with server.open_client("ada") as ada:
        result = await ada.raw(bomb)  # selects one ID through 2**40 fragment spreads
        assert result.keys() == {"data", "extensions"} or error_code(result) == "QUERY_TOO_COMPLEX"
    assert server.cpu_seconds() - cpu_before < 2


async def test_invalid_media_type_method_and_header_are_refused(server: MerganserProcess) -> None:
    body = graphql_body(VIEWER_QUERY)
    for media_type in (
        "text/plain",
        "multipart/form-data; boundary=a",
        "application/json; charset=utf-7",
    ):
        assert await post_refused_body(server, body, **{"Content-Type": media_type}) == (
            415,
            "BAD_USER_INPUT",
        )
    compressed = {"Content-Encoding": "gzip"}
    assert await post_refused_body(server, body, **compressed) == (415, "BAD_USER_INPUT")
    async with server.open_client("ada") as ada:
        response = await ada.http.request("DELETE", "/graphql")
        assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")
        query = {"query": "mutation { accessTokenRevoke(input: {all: true}) { revokedCount } }"}
        response = await ada.http.get("/graphql", params=query)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        for content_length in ("-1", "x", "1, 1"):
            raw = f"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Length: {content_length}\r\n\r\n"
            assert b" 400 " in (await send_raw(server, raw.encode())).partition(b"\r\n")[0]


async def send_raw(server: MerganserProcess, data: bytes) -> bytes:
    """Send bytes and return the response header, or all bytes received before the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
    try:
        writer.write(data)
        async with asyncio.timeout(HANG_SECONDS):
            return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.transport.abort()


async def test_objects_of_other_users_look_like_missing_ones(server: MerganserProcess) -> None:
    await server.deliver_by_lmtp(raw_message("Private"), "bob@example.org")
    async with server.open_client("ada") as ada, server.open_client("bob") as bob:
        viewer_query = (
            '{ viewer { user { cursor mailbox(by: {path: "INBOX"}) { id } '
            "messages { nodes { id emailId } } } } }"
        )
        other_user = (await bob(viewer_query))["viewer"]["user"]
        message, mailbox_id = other_user["messages"]["nodes"][0], other_user["mailbox"]["id"]
        assert (await ada(MESSAGE_QUERY, id=message["id"])) == {"message": None}
        result = await ada(
            "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }", ids=[message["id"], mailbox_id]
        )
        assert result == {"nodes": [None, None]}
        url = f"/rest/messages/{message['id']}/message.eml"
        assert (await ada.http.get(url)).status_code == 404
        assert (await ada.http.get("/rest/messages/msg_AAAAAAAAAAE/message.eml")).status_code == 404
        for selection in ({"ids": [message["id"]]}, {"mailbox": {"id": mailbox_id}}):
            document = (
                "mutation ($s: MessageSelection!) { messageUpdate(input: {select: $s, "
                "set: {seen: true}}) { updatedCount errors { code } } }"
            )
            payload = (await ada.raw(document, s=selection))["data"]["messageUpdate"]
            assert payload in (
                {"updatedCount": 0, "errors": [{"code": "NOT_FOUND"}]},
                {"updatedCount": 0, "errors": []},
            )
        stream = await ada.post(
            {"query": CHANGES_AFTER_SUBSCRIPTION, "variables": {"after": other_user["cursor"]}},
            Accept="text/event-stream",
        )
        assert '"BAD_CURSOR"' in stream.text
        assert "event: complete" in stream.text
        stream = await ada.post(
            {"query": CHANGES_AFTER_SUBSCRIPTION, "variables": {"after": "x"}},
            Accept="text/event-stream",
        )
        assert '"BAD_CURSOR"' in stream.text


@pytest.mark.parametrize(
    "credential", ["Bearer nonsense", "Basic YTpi", "Bearer mgk_" + "x" * 43, "x" * 5000]
)
async def test_invalid_credential_is_refused_and_not_treated_as_anonymous(
    server: MerganserProcess, credential: str
) -> None:
    assert await post_refused_body(
        server, graphql_body("{ __typename }"), None, Authorization=credential
    ) == (
        401,
        "UNAUTHENTICATED",
    )
    async with httpx.AsyncClient(base_url=server.url, timeout=HANG_SECONDS) as client:
        response = await client.post(
            "/rest/uploads", content=b"x", headers={"Authorization": credential}
        )
        assert (response.status_code, error_code(response.json())) == (401, "UNAUTHENTICATED")
    async with server.open_websocket() as socket:
        await socket.send_frame(
            {"type": "connection_init", "payload": {"Authorization": credential}}
        )
        assert await socket.wait_for_close_code() == 4403


FRAMES: dict[str, tuple[Any, int]] = {
    "no JSON": ("{", 4400),
    "binary": (b'{"type": "ping"}', 4400),
    "an array": ("[]", 4400),
    "null": ("null", 4400),
    "an unknown type": ('{"type": "\\u0000"}', 4400),
    "a lone surrogate": ('{"type": "ping", "payload": {"a": "\\ud800"}}', 4400),
    "deep": ('{"type": "ping", "payload": {"a": ' + "[" * 900 + "]" * 900 + "}}", 4400),
    "too large": ('{"type": "' + "x" * (MIB + 9) + '"}', 1009),
    "no payload": ('{"type": "subscribe", "id": "1"}', 4400),
    "a long id": (json.dumps({"type": "complete", "id": "x" * 999}), 4400),
    "a second init": ('{"type": "connection_init"}', 4429),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_invalid_frame_closes_socket_with_its_code(
    server: MerganserProcess, name: str
) -> None:
    frame, expected = FRAMES[name]
    async with server.open_websocket(server.secrets["ada"]) as other_socket:
        async with server.open_websocket(server.secrets["ada"]) as socket:
            with suppress(ConnectionClosed):  # the server can refuse it before all is sent
                await socket.send_frame(frame)
            assert await socket.wait_for_close_code() == expected
        await other_socket.subscribe(VIEWER_QUERY)
        assert (await other_socket.read_frame())["payload"]["data"] == {
            "viewer": {"user": {"username": "ada"}}
        }


async def test_operation_before_init_and_invalid_operations_are_refused(
    server: MerganserProcess,
) -> None:
    async with server.open_websocket() as socket:
        await socket.subscribe(VIEWER_QUERY)
        assert await socket.wait_for_close_code() == 4401
    async with server.open_websocket(server.secrets["ada"]) as socket:
        for text, expected in (
            ("{", "GRAPHQL_PARSE_FAILED"),
            ("{ nope }", "GRAPHQL_VALIDATION_FAILED"),
        ):
            await socket.subscribe(text)
            frame = await socket.read_frame()
            assert (frame["type"], frame["payload"][0]["extensions"]["code"]) == ("error", expected)
        # a cursor of another user
        await socket.subscribe(CHANGES_AFTER_SUBSCRIPTION, after="1.1.0")
        assert (await socket.read_frame())["payload"]["errors"][0]["extensions"][
            "code"
        ] == "BAD_CURSOR"
