"""What must not be: each is refused in its protocol's own words, and leaves nothing behind."""

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import raw_message
from tests.support.servers.merganser_server import Server

MIB = 1 << 20
ME = "{ viewer { user { username } } }"
NAMED = "query ($id: ID!) { message(by: {id: $id}) { subject } }"
STORES = ["sqlite"]  # none of this comes as far as the store
FOLLOW = "subscription ($after: Cursor) { changes(after: $after) { cursor events { kind } } }"
WATCHED = "subscription { changes { events { kind } } }"


def code(answer: Any) -> str:
    """The code of the only error."""
    (error,) = answer["errors"]
    return str(error["extensions"]["code"])


async def refused(server: Server, body: bytes, name: str | None = "ada", **headers: str) -> Any:
    """Status and code of an answer to these bytes."""
    async with server.client(name) as client:
        given = {"Content-Type": "application/json", **headers}
        answer = await client.http.post("/graphql", content=body, headers=given)
        assert answer.headers["x-request-id"]
        return answer.status_code, code(answer.json())


def asking(query: object, **variables: Any) -> bytes:
    return json.dumps({"query": query, "variables": variables}).encode()


BODIES = {
    "no JSON": (b'{"query": ', 400, "BAD_USER_INPUT"),
    "nothing": (b"", 400, "BAD_USER_INPUT"),
    "a list": (b"[]", 400, "BAD_USER_INPUT"),
    "a number": (b"1e999", 400, "BAD_USER_INPUT"),
    "not UTF-8": (b'{"query": "\xff"}', 400, "BAD_USER_INPUT"),
    "a query that is no text": (asking(7), 400, "BAD_USER_INPUT"),
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
    "a document too large": (asking("a " * 60_000), 200, "TOO_LARGE"),
    "too many words": (asking(f"{{ {'a ' * 20_000} }}"), 200, "GRAPHQL_PARSE_FAILED"),
    "no document": (asking("{ viewer {"), 200, "GRAPHQL_PARSE_FAILED"),
    "brackets": (asking("{a" * 2000), 200, "GRAPHQL_PARSE_FAILED"),
    "NUL in the document": (asking('{ node(id: "\0") { id } }'), 200, "BAD_USER_INPUT"),
    "an unknown member with an odd letter": (
        asking(
            "mutation ($i: UndoInput!) { undo(input: $i) { restoredCount } }",
            i={"token": "x", "İ": 1},
        ),
        200,
        "BAD_USER_INPUT",
    ),
    "an enum with an odd letter": (
        asking('{ users(filter: {roles: "İ"}) { totalCount } }'),
        200,
        "GRAPHQL_VALIDATION_FAILED",
    ),
    "null where nothing may be null": (
        asking(
            "mutation ($s: MessageChanges!) "
            "{ messageUpdate(input: {select: {ids: []}, set: $s}) { updatedCount } }",
            s={"flags": None},
        ),
        200,
        "BAD_USER_INPUT",
    ),
    "an unknown field": (asking("{ nope }"), 200, "GRAPHQL_VALIDATION_FAILED"),
    "a wrong type": (asking(NAMED, id=[1]), 200, "BAD_USER_INPUT"),
    "a variable left out": (asking(NAMED), 200, "BAD_USER_INPUT"),
    "a huge number": (
        b'{"query": "query ($n: Int) { users(first: $n) { totalCount } }", "variables": {"n": '
        + b"9" * 400
        + b"}}",
        400,
        "BAD_USER_INPUT",
    ),
    "a number of 70 bits": (
        asking("query ($n: Int) { apiKeys(first: $n) { totalCount } }", n=2**63 - 1),
        200,
        "BAD_USER_INPUT",
    ),
    "a bad id": (asking(NAMED, id="msg_x"), 200, "BAD_ID"),
    "an id of another kind": (asking(NAMED, id="box_AAAAAAAAAAE"), 200, "BAD_ID"),
    "a bad place in a list": (
        asking('{ viewer { user { messages(after: "x") { nodes { id } } } } }'),
        200,
        "BAD_CURSOR",
    ),
    "a subscription": (asking(WATCHED), 400, "BAD_USER_INPUT"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_bad_body_has_its_status_and_code(server: Server, name: str) -> None:
    body, status, said = BODIES[name]
    began = time.monotonic() - server.hindered()
    assert await refused(server, body) == (status, said)
    assert time.monotonic() - server.hindered() - began < 2


async def test_bombs_of_fragments_and_depth_are_refused_at_once(server: Server) -> None:
    links = [f"fragment f{n} on User {{ ...f{n + 1} ...f{n + 1} }}" for n in range(40)]
    bomb = " ".join(["{ viewer { user { ...f0 } } }", *links, "fragment f40 on User { id }"])
    loop = "{ viewer { user { ...a } } } fragment a on User { ...b } fragment b on User { ...a }"
    deep = "{ viewer { user " + "{ mailboxes { user " * 20 + "{ id }" + "} }" * 20 + "} }"
    wide = "{ " + " ".join(f"a{n}: viewer {{ role }}" for n in range(200)) + " }"
    began = time.monotonic() - server.hindered()
    verdicts = [(await refused(server, asking(text)))[1] for text in (loop, deep, wide)]
    assert verdicts == ["GRAPHQL_VALIDATION_FAILED", "QUERY_TOO_COMPLEX", "QUERY_TOO_COMPLEX"]
    async with server.client("ada") as ada:
        answer = await ada.raw(bomb)  # which asks for one id in the end, by a trillion roads
        assert answer.keys() == {"data", "extensions"} or code(answer) == "QUERY_TOO_COMPLEX"
    assert time.monotonic() - server.hindered() - began < 2


async def test_other_media_types_methods_and_headers_are_refused(server: Server) -> None:
    body = asking(ME)
    for kind in (
        "text/plain",
        "multipart/form-data; boundary=a",
        "application/json; charset=utf-7",
    ):
        assert await refused(server, body, **{"Content-Type": kind}) == (415, "BAD_USER_INPUT")
    compressed = {"Content-Encoding": "gzip"}
    assert await refused(server, body, **compressed) == (415, "BAD_USER_INPUT")
    async with server.client("ada") as ada:
        answer = await ada.http.request("DELETE", "/graphql")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
        query = {"query": "mutation { tokenRevoke(input: {all: true}) { revoked } }"}
        answer = await ada.http.get("/graphql", params=query)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        for lie in ("-1", "x", "1, 1"):
            raw = f"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Length: {lie}\r\n\r\n"
            assert b" 400 " in (await spoken(server, raw.encode())).partition(b"\r\n")[0]


async def spoken(server: Server, sent: bytes, seconds: float = 15) -> bytes:
    """What comes back for these bytes until the server hangs up or has said its headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http)
    try:
        writer.write(sent)
        async with asyncio.timeout(seconds):
            return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as ended:
        return ended.partial
    finally:
        writer.transport.abort()


async def test_what_is_another_s_looks_like_what_is_not_there(server: Server) -> None:
    await server.deliver(raw_message("Private"), "bob@example.org")
    async with server.client("ada") as ada, server.client("bob") as bob:
        shown = (
            '{ viewer { user { cursor mailbox(by: {path: "INBOX"}) { id } '
            "messages { nodes { id guid } } } } }"
        )
        theirs = (await bob(shown))["viewer"]["user"]
        letter, box = theirs["messages"]["nodes"][0], theirs["mailbox"]["id"]
        assert (await ada(NAMED, id=letter["id"])) == {"message": None}
        found = await ada(
            "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }", ids=[letter["id"], box]
        )
        assert found == {"nodes": [None, None]}
        url = f"/rest/messages/{letter['id']}/message.eml"
        assert (await ada.http.get(url)).status_code == 404
        assert (await ada.http.get("/rest/messages/msg_AAAAAAAAAAE/message.eml")).status_code == 404
        for given in ({"ids": [letter["id"]]}, {"mailbox": {"id": box}}):
            document = (
                "mutation ($s: MessageSelection!) { messageUpdate(input: {select: $s, "
                "set: {seen: true}}) { updatedCount errors { code } } }"
            )
            done = (await ada.raw(document, s=given))["data"]["messageUpdate"]
            assert done in (
                {"updatedCount": 0, "errors": [{"code": "NOT_FOUND"}]},
                {"updatedCount": 0, "errors": []},
            )
        stream = await ada.post(
            {"query": FOLLOW, "variables": {"after": theirs["cursor"]}}, Accept="text/event-stream"
        )
        assert '"BAD_CURSOR"' in stream.text
        assert "event: complete" in stream.text
        stream = await ada.post(
            {"query": FOLLOW, "variables": {"after": "x"}}, Accept="text/event-stream"
        )
        assert '"BAD_CURSOR"' in stream.text


@pytest.mark.parametrize(
    "shown", ["Bearer nonsense", "Basic YTpi", "Bearer mgk_" + "x" * 43, "x" * 5000]
)
async def test_a_wrong_credential_is_401_and_is_not_taken_for_none(
    server: Server, shown: str
) -> None:
    assert await refused(server, asking("{ __typename }"), None, Authorization=shown) == (
        401,
        "UNAUTHENTICATED",
    )
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        answer = await client.post("/rest/uploads", content=b"x", headers={"Authorization": shown})
        assert (answer.status_code, code(answer.json())) == (401, "UNAUTHENTICATED")
    async with server.socket() as socket:
        await socket.say({"type": "connection_init", "payload": {"Authorization": shown}})
        assert await socket.closed() == 4403


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
async def test_a_bad_frame_ends_its_socket_with_the_code_for_it(server: Server, name: str) -> None:
    frame, expected = FRAMES[name]
    async with server.socket(server.secrets["ada"]) as other:
        async with server.socket(server.secrets["ada"]) as socket:
            with suppress(ConnectionClosed):  # it may be refused before it is all sent
                await socket.say(frame)
            assert await socket.closed() == expected
        await other.subscribe(ME)
        assert (await other.hear())["payload"]["data"] == {"viewer": {"user": {"username": "ada"}}}


async def test_operations_before_init_and_bad_ones_behind_it(server: Server) -> None:
    async with server.socket() as socket:
        await socket.subscribe(ME)
        assert await socket.closed() == 4401
    async with server.socket(server.secrets["ada"]) as socket:
        for text, expected in (
            ("{", "GRAPHQL_PARSE_FAILED"),
            ("{ nope }", "GRAPHQL_VALIDATION_FAILED"),
        ):
            await socket.subscribe(text)
            frame = await socket.hear()
            assert (frame["type"], frame["payload"][0]["extensions"]["code"]) == ("error", expected)
        await socket.subscribe(FOLLOW, after="1.1.0")  # somebody else's
        assert (await socket.hear())["payload"]["errors"][0]["extensions"]["code"] == "BAD_CURSOR"
