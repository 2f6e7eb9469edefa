"""JavaScript's clients and the audits of graphql-http, against the real server."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphql import (
    OperationDefinitionNode,
    OperationType,
    get_operation_ast,
    parse,
    validate,
)

from tests.conftest import raw_message
from tests.support.clients import npm_programs
from tests.support.schema.printed_schema import SDL
from tests.support.servers.merganser_server import Server

LETTERS = ["One", "Two", "Three"]
TOURS = [
    "graphql-ws",
    "graphql-sse",
    "apollo",
    "urql with graphql-ws",
    "urql with graphql-sse",
    "urql by itself",
    "relay",
]
WHERE = {"path": ["paths"], "index": 0}  # the first of the input's list
AUDITS = 61
FREE = {  # licences of what is run, of which nothing is passed on
    "MIT", "(MIT OR Apache-2.0)", "Apache-2.0", "ISC", "0BSD", "BSD-2-Clause", "BSD-3-Clause",
    "BlueOak-1.0.0", "Python-2.0", "CC-BY-4.0",
}  # fmt: skip
DOCUMENTS = {
    file.stem: file.read_text() for file in npm_programs.EXAMPLES.glob("operations/*.graphql")
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one account, in which there are letters."""
    server = Server(tmp_path_factory.mktemp("clients"))
    server.make("ada")
    server.start()
    yield server
    server.stop()


async def post(server: Server) -> None:
    for subject in LETTERS:
        assert await server.deliver(raw_message(subject), "ada@example.org")


@pytest.fixture(scope="module")
def compiled(typed: str) -> str:
    """What graphql-codegen and relay-compiler say: they compile everything into generated/."""
    said = typed + npm_programs.run(npm_programs.EXAMPLES / "relay" / "documents.ts")
    # it would stage what it writes, where it finds a repository
    return said + npm_programs.run(npm_programs.program("relay-compiler"), GIT_DIR=os.devnull)


@pytest.fixture(scope="module")
def report(compiled: str, server: Server) -> Any:
    """What came of each program, all of which have run side by side."""
    assert compiled
    asyncio.run(post(server))
    place = {"endpoint": f"{server.url}/graphql", "key": server.secrets["ada"]}
    return npm_programs.report(Path(__file__).parent / "run.mjs", json.dumps(place))


def result(report: Any, name: str) -> Any:
    done = report[name]
    assert done["ok"], done["cause"]
    return done["result"]


def test_compilers_take_every_document(compiled: str) -> None:
    assert "error" not in compiled.lower()
    typed = (npm_programs.EXAMPLES / "generated" / "graphql" / "graphql.ts").read_text()
    made = {file.name for file in npm_programs.EXAMPLES.glob("generated/relay/artifacts/*.ts")}
    for document in DOCUMENTS.values():
        name = operation(document).name
        assert name
        assert f"export const {name.value}Document = " in typed
        assert f"{name.value}.graphql.ts" in made
    assert {"InboxPagesQuery.graphql.ts", "InboxPagesNextQuery.graphql.ts"} <= made


def test_the_programs_have_the_types_of_the_schema(compiled: str) -> None:
    assert compiled
    npm_programs.run(npm_programs.program("tsc"))


@pytest.mark.parametrize("name", TOURS)
def test_a_query_a_refusal_and_a_subscription(report: Any, name: str) -> None:
    toured = result(report, name)
    assert toured["subjects"] == LETTERS[::-1]
    assert toured["heard"] == ["MAILBOX_CREATED", "MAILBOX_DELETED"]
    again, nameless = toured["refused"]
    assert again.pop("message")
    assert again == {"__typename": "ConflictError", "code": "CONFLICT", **WHERE}
    assert nameless.pop("message")
    rule = {"code": "VALIDATION", "constraint": "pattern"}
    assert nameless == {"__typename": "ValidationError", **rule, **WHERE}


@pytest.mark.parametrize("name", ["cut socket", "cut stream"])
def test_who_was_cut_off_goes_on_from_there(report: Any, name: str) -> None:
    assert result(report, name) == ["before", "meanwhile", "after"]


def test_relay_puts_the_pages_of_a_connection_together(report: Any) -> None:
    assert result(report, "relay pages") == {"subjects": LETTERS[::-1], "requests": 2}


def test_a_wrong_credential_is_not_tried_again(report: Any) -> None:
    assert result(report, "refused") == {"code": 4403, "opened": 1}


def test_apollo_asks_by_hash(report: Any) -> None:
    asked = result(report, "persisted")
    assert asked["same"]
    unknown = {"text": False, "data": False, "code": "PERSISTED_QUERY_NOT_FOUND"}
    whole = {"text": True, "data": True, "code": None}
    known = {"text": False, "data": True, "code": None}
    expected = [{**each, "hash": 64, "status": 200} for each in (unknown, whole, known)]
    assert asked["sent"] == expected


@pytest.mark.parametrize("name", ["audits with a token", "audits without"])
def test_every_audit_passes(report: Any, name: str) -> None:
    audited = result(report, name)
    assert [each for each in audited["audits"] if each["status"] != "ok"] == []
    assert len(audited["audits"]) == AUDITS
    assert audited["answers"] >= AUDITS
    assert audited["strange"] == []  # no code, no JSON, no request id, …


async def test_the_server_has_nothing_to_complain_of(server: Server, report: Any) -> None:
    assert report
    assert server.complaints() == []


def test_the_lock_file_names_licences_and_no_host() -> None:
    lock = json.loads((npm_programs.EXAMPLES / "package-lock.json").read_text())["packages"]
    assert {each.get("license") for each in lock.values()} <= FREE
    assert not [name for name, each in lock.items() if "resolved" in each]
    assert not [name for name, each in lock.items() if name and "integrity" not in each]


def operation(document: str) -> OperationDefinitionNode:
    found = get_operation_ast(parse(document))
    assert found
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_fit_the_schema(name: str) -> None:
    assert validate(SDL, parse(DOCUMENTS[name])) == []


async def test_documents_of_examples_run(server: Server) -> None:
    await server.deliver(raw_message("Letter with herons"), "ada@example.org")
    async with server.client("ada") as ada:
        inbox = (await ada(DOCUMENTS["Inbox"], first=1))["viewer"]["user"]["mailbox"]
        (message,) = inbox["messages"]["nodes"]
        made = await ada(DOCUMENTS["MailboxCreate"], paths=["Ponds"])
        values = {
            "MailboxDelete": {"id": made["mailboxCreate"]["mailboxes"][0]["id"]},
            "Message": {"id": message["id"]},
            "MessageFlag": {"ids": [message["id"]], "flagged": True},
            "MessageSend": {
                "to": [{"address": "ada@example.org"}],
                "subject": "Herons",
                "text": "Two of them.",
                "idempotencyKey": "herons",
            },
            "Search": {"words": "her*"},
        }
        rest = {"Inbox", "MailboxCreate", "Changes"}
        assert set(values) == set(DOCUMENTS) - rest
        for name, variables in values.items():
            (answer,) = (await ada(DOCUMENTS[name], **variables)).values()
            assert answer, name
            assert not answer.get("errors"), name
        assert operation(DOCUMENTS["Changes"]).operation is OperationType.SUBSCRIPTION
