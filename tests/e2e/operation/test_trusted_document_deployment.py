"""Trusted documents, as an operator and a client meet them: the real server."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from merganser.server.environment_factory import root_context
from resolvers.admin import trusted_documents
from resolvers.admin.trusted_documents import NewTrustedDocument
from tests.support.servers.merganser_server import Server

QUERY = "query Who { viewer { user { username } } }"
FOLLOW = "subscription Follow { changes { cursor } }"


def named(text: str) -> dict[str, str]:
    return {"documentId": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"}


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Server]:
    """A server that runs trusted documents only."""
    server = Server(tmp_path, more={"DOCUMENTS": "trusted"})
    server.make("ada")
    server.start()
    yield server
    server.stop()


async def test_a_server_of_trusted_documents_runs_what_is_added_beside_it(
    strict: Server,
) -> None:
    async with strict.client("ada") as ada, strict.socket(strict.secrets["ada"]) as socket:
        assert (await ada.raw(QUERY))["errors"][0]["extensions"]["code"] == "DOCUMENT_NOT_TRUSTED"
        async with strict.world() as beside:  # as the command opens it
            new = [NewTrustedDocument(text) for text in (QUERY, FOLLOW)]
            assert await trusted_documents.add_documents(root_context(beside), new) == 2
        me = {"viewer": {"user": {"username": "ada"}}}
        assert (await ada.post(named(QUERY))).json()["data"] == me
        assert (await ada.http.get("/graphql", params=named(QUERY))).json()["data"] == me
        await socket.say({"id": "1", "type": "subscribe", "payload": named(QUERY)})
        assert (await socket.hear())["payload"]["data"] == me
        answer = await ada.post({"query": "{ __schema { queryType { name } } }"})
        assert answer.json()["errors"][0]["extensions"]["code"] == "DOCUMENT_NOT_TRUSTED"
        events = {"Accept": "text/event-stream"}
        sent = ada.http.stream("POST", "/graphql", json=named(FOLLOW), headers=events)
        async with sent as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            await strict.deliver(b"Subject: Hello\r\n\r\nHi.\r\n", "ada@example.org")
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    assert "cursor" in line
                    break
