"""Tests of JavaScript clients and the audits of graphql-http against the real server."""

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
from tests.support.servers.merganser_server import MerganserProcess

SUBJECTS = ["One", "Two", "Three"]
CLIENT_PROGRAMS = [
    "graphql-ws",
    "graphql-sse",
    "apollo",
    "urql with graphql-ws",
    "urql with graphql-sse",
    "urql by itself",
    "relay",
]
ERROR_POSITION = {"path": ["paths", "0"]}  # the first item of the list in the input
MIN_AUDIT_COUNT = 61
ALLOWED_LICENSES = {  # licenses of programs that run in the tests and are not distributed
    "MIT", "(MIT OR Apache-2.0)", "Apache-2.0", "ISC", "0BSD", "BSD-2-Clause", "BSD-3-Clause",
    "BlueOak-1.0.0", "Python-2.0", "CC-BY-4.0",
}  # fmt: skip
PAGES_WITH_NODE_VERSION = [
    npm_programs.EXAMPLES / "README.md",
    npm_programs.PROJECT_FOLDER / "docs/tutorials/mail-client.md",
]
DOCUMENTS = {
    file.stem: file.read_text() for file in npm_programs.EXAMPLES.glob("operations/*.graphql")
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MerganserProcess]:
    """A server with one account."""
    server = MerganserProcess(tmp_path_factory.mktemp("clients"))
    server.create_users("ada")
    server.start()
    yield server
    server.stop()


async def deliver_messages(server: MerganserProcess) -> None:
    for subject in SUBJECTS:
        assert await server.deliver_by_lmtp(raw_message(subject), "ada@example.org")


@pytest.fixture(scope="module")
def compiler_output(codegen_output: str) -> str:
    """The output of graphql-codegen and relay-compiler, which compile to generated/."""
    output = codegen_output + npm_programs.run_node(
        npm_programs.EXAMPLES / "relay" / "documents.ts"
    )
    # GIT_DIR prevents relay-compiler from staging its output in a repository
    return output + npm_programs.run_node(
        npm_programs.executable_path("relay-compiler"), GIT_DIR=os.devnull
    )


@pytest.fixture(scope="module")
def report(compiler_output: str, server: MerganserProcess) -> Any:
    """The results of all client programs, which run concurrently."""
    assert compiler_output
    asyncio.run(deliver_messages(server))
    connection_settings = {"endpoint": f"{server.url}/graphql", "key": server.secrets["ada"]}
    return npm_programs.run_node_for_json(
        Path(__file__).parent / "run.mjs", json.dumps(connection_settings)
    )


def program_result(report: Any, name: str) -> Any:
    outcome = report[name]
    assert outcome["ok"], outcome["cause"]
    return outcome["result"]


def test_compilers_accept_every_document(compiler_output: str) -> None:
    assert "error" not in compiler_output.lower()
    generated_types = (npm_programs.EXAMPLES / "generated" / "graphql" / "graphql.ts").read_text()
    artifact_names = {
        file.name for file in npm_programs.EXAMPLES.glob("generated/relay/artifacts/*.ts")
    }
    for document in DOCUMENTS.values():
        name = parse_operation(document).name
        assert name
        assert f"export const {name.value}Document = " in generated_types
        assert f"{name.value}.graphql.ts" in artifact_names
    assert {"InboxPagesQuery.graphql.ts", "InboxPagesNextQuery.graphql.ts"} <= artifact_names


def test_client_programs_pass_type_check(compiler_output: str) -> None:
    assert compiler_output
    npm_programs.run_node(npm_programs.executable_path("tsc"))


@pytest.mark.parametrize("name", CLIENT_PROGRAMS)
def test_client_runs_query_typed_errors_and_subscription(report: Any, name: str) -> None:
    program_output = program_result(report, name)
    assert program_output["subjects"] == SUBJECTS[::-1]
    assert program_output["heard"] == ["MAILBOX_CREATED", "MAILBOX_DELETED"]
    conflict, validation_error = program_output["refused"]
    assert conflict.pop("message")
    assert conflict == {"__typename": "ConflictError", "code": "CONFLICT", **ERROR_POSITION}
    assert validation_error.pop("message")
    rule = {"code": "VALIDATION", "constraint": "PATTERN"}
    assert validation_error == {"__typename": "ValidationError", **rule, **ERROR_POSITION}


@pytest.mark.parametrize("name", ["cut socket", "cut stream"])
def test_subscription_continues_after_cut_connection(report: Any, name: str) -> None:
    assert program_result(report, name) == ["before", "meanwhile", "after"]


@pytest.mark.parametrize("program", ["graphql-ws", "graphql-sse", "apollo", "urql", "relay"])
async def test_client_program_runs_from_command_line(
    compiler_output: str, server: MerganserProcess, tmp_path: Path, program: str
) -> None:
    """A path with a symbolic link names the same program."""
    assert compiler_output
    examples_link = tmp_path / "examples"
    examples_link.symlink_to(npm_programs.EXAMPLES)
    output = await asyncio.to_thread(
        npm_programs.run_node,
        examples_link / "clients" / f"{program}.ts",
        ENDPOINT=f"{server.url}/graphql",
        KEY=server.secrets["ada"],
    )
    assert "heard: [ 'MAILBOX_CREATED', 'MAILBOX_DELETED' ]" in output


def test_node_is_in_supported_range() -> None:
    """The documentation names the range of package.json, and this Node.js is in it.

    `make test-node` runs these tests on each supported release.
    """
    engines = json.loads((npm_programs.EXAMPLES / "package.json").read_text())["engines"]
    assert engines == {"node": "^22.18.0 || >=24"}
    major, minor = map(int, npm_programs.run_node("--version").lstrip("v").split(".")[:2])
    assert major >= 24 or (major == 22 and minor >= 18)
    makefile = (npm_programs.PROJECT_FOLDER / "Makefile").read_text()
    assert "NODE_VERSIONS := 22 24 26 " in makefile
    for document in PAGES_WITH_NODE_VERSION:
        assert "Node.js 22.18 or later (22, 24 or 26)" in " ".join(document.read_text().split())


def test_relay_joins_pages_of_connection(report: Any) -> None:
    assert program_result(report, "relay pages") == {"subjects": SUBJECTS[::-1], "requests": 2}


def test_invalid_credential_is_not_retried(report: Any) -> None:
    assert program_result(report, "refused") == {"code": 4403, "opened": 1}


def test_apollo_sends_persisted_query_hash(report: Any) -> None:
    program_output = program_result(report, "persisted")
    assert program_output["same"]
    unknown_hash = {"text": False, "data": False, "code": "PERSISTED_QUERY_NOT_FOUND"}
    full_document = {"text": True, "data": True, "code": None}
    known_hash = {"text": False, "data": True, "code": None}
    expected = [
        {**request, "hash": 64, "status": 200}
        for request in (unknown_hash, full_document, known_hash)
    ]
    assert program_output["sent"] == expected


@pytest.mark.parametrize("name", ["audits with a token", "audits without"])
def test_every_audit_passes(report: Any, name: str) -> None:
    program_output = program_result(report, name)
    assert [audit for audit in program_output["audits"] if audit["status"] != "ok"] == []
    assert len(program_output["audits"]) == MIN_AUDIT_COUNT
    assert program_output["answers"] >= MIN_AUDIT_COUNT
    assert program_output["strange"] == []  # responses without code, JSON, request ID or similar


async def test_server_logs_no_complaints(server: MerganserProcess, report: Any) -> None:
    assert report
    assert server.unexpected_log_records() == []


def test_lock_file_has_allowed_licenses_and_no_hosts() -> None:
    packages = json.loads((npm_programs.EXAMPLES / "package-lock.json").read_text())["packages"]
    assert {package.get("license") for package in packages.values()} <= ALLOWED_LICENSES
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert not [name for name, package in packages.items() if name and "integrity" not in package]


def parse_operation(document: str) -> OperationDefinitionNode:
    operation_node = get_operation_ast(parse(document))
    assert operation_node
    return operation_node


@pytest.mark.parametrize("name", DOCUMENTS)
def test_example_document_is_valid_in_schema(name: str) -> None:
    assert validate(SDL, parse(DOCUMENTS[name])) == []


async def test_example_documents_run_without_errors(server: MerganserProcess) -> None:
    await server.deliver_by_lmtp(raw_message("Letter with herons"), "ada@example.org")
    async with server.open_client("ada") as ada:
        inbox = (await ada(DOCUMENTS["Inbox"], first=1))["viewer"]["user"]["mailbox"]
        (message,) = inbox["messages"]["nodes"]
        created = await ada(DOCUMENTS["MailboxCreate"], paths=["Ponds"])
        variables_by_name = {
            "MailboxDelete": {"id": created["mailboxCreate"]["mailboxes"][0]["id"]},
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
        other_documents = {"Inbox", "MailboxCreate", "Changes"}
        assert set(variables_by_name) == set(DOCUMENTS) - other_documents
        for name, variables in variables_by_name.items():
            (payload,) = (await ada(DOCUMENTS[name], **variables)).values()
            assert payload, name
            assert not payload.get("errors"), name
        assert parse_operation(DOCUMENTS["Changes"]).operation is OperationType.SUBSCRIPTION
