"""Tests of trusted documents with a real server, an operator and a client."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from merganser.server.environment_factory import root_context
from resolvers.admin import trusted_documents
from resolvers.admin.trusted_documents import NewTrustedDocument
from tests.support.servers.merganser_server import MerganserProcess

QUERY = "query Who { viewer { user { username } } }"
CHANGES_SUBSCRIPTION = "subscription Follow { changes { cursor } }"


def document_id_body(text: str) -> dict[str, str]:
    return {"documentId": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"}


@pytest.fixture
def trusted_only_server(tmp_path: Path) -> Iterator[MerganserProcess]:
    """A server that runs only trusted documents."""
    server = MerganserProcess(tmp_path, extra_settings={"ALLOWED_DOCUMENTS": "trusted"})
    server.create_users("ada")
    server.start()
    yield server
    server.stop()


async def test_documents_added_by_other_process_are_trusted_at_once(
    trusted_only_server: MerganserProcess,
) -> None:
    async with (
        trusted_only_server.open_client("ada") as ada,
        trusted_only_server.open_websocket(trusted_only_server.secrets["ada"]) as socket,
    ):
        assert (await ada.raw(QUERY))["errors"][0]["extensions"]["code"] == "DOCUMENT_NOT_TRUSTED"
        async with trusted_only_server.environment() as environment:  # as the command opens it
            new_documents = [NewTrustedDocument(text) for text in (QUERY, CHANGES_SUBSCRIPTION)]
            assert (
                await trusted_documents.add_documents_and_count_new(
                    root_context(environment), new_documents
                )
                == 2
            )
        expected = {"viewer": {"user": {"username": "ada"}}}
        assert (await ada.post(document_id_body(QUERY))).json()["data"] == expected
        assert (await ada.http.get("/graphql", params=document_id_body(QUERY))).json()[
            "data"
        ] == expected
        await socket.send_frame(
            {"id": "1", "type": "subscribe", "payload": document_id_body(QUERY)}
        )
        assert (await socket.read_frame())["payload"]["data"] == expected
        response = await ada.post({"query": "{ __schema { queryType { name } } }"})
        assert response.json()["errors"][0]["extensions"]["code"] == "DOCUMENT_NOT_TRUSTED"
        events = {"Accept": "text/event-stream"}
        request = ada.http.stream(
            "POST", "/graphql", json=document_id_body(CHANGES_SUBSCRIPTION), headers=events
        )
        async with request as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            await trusted_only_server.deliver_by_lmtp(
                b"Subject: Hello\r\n\r\nHi.\r\n", "ada@example.org"
            )
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    assert "cursor" in line
                    break
