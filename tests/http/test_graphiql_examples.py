"""Tests of the GraphiQL examples, and that no file of the repository loads from other hosts."""

import asyncio
import gzip
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import OperationType, get_operation_ast, parse

from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.demo.credentials import ADDRESS
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.demo_account import make_demo_client, subscription_results
from tests.support.clients.change_followers import wait_for_followers
from tests.support.time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "graph" / "static"
BUILT_EXAMPLES = json.loads((STATIC / "examples.json").read_text())
EXAMPLES = {example["name"]: example["query"] for example in BUILT_EXAMPLES["examples"]}
LIVE_EXAMPLE = "Live"
UNDO_EXAMPLE = "UndoMutation"  # needs the token of another example
EXAMPLE_COMMENT = re.compile(
    r"# [A-Z][^.\n]+\. Role: (USER|DOMAIN_ADMIN|ADMIN)( with [^.\n]+)?\.\n"
)
# in parts, because this file must not contain a registry name itself
REGISTRIES = [f"{name}.org" for name in ("registry.npmjs", "files.pythonhosted", "pypi")]
REGISTRIES += [f"{name}.com" for name in ("registry.yarnpkg", "unpkg", "cdn.jsdelivr")]
# what a page loads automatically: scripts, styles, fonts, images, workers
RESOURCE_LOAD = re.compile(
    r"""(?:@import\s*|url\(\s*|importScripts\(\s*|\bimport\(\s*|new Worker\(\s*)"""
    r"""["']?(?:https?:)?//[\w.-]+""",
    re.IGNORECASE,
)


@pytest.fixture
async def demo(environment: Environment, http: httpx.AsyncClient, tmp_path: Path) -> GraphQLClient:
    return await make_demo_client(environment, http, tmp_path)


async def deliver(demo: GraphQLClient, subject: str) -> None:
    message = await received_messages.parse_storable_message(raw_message(subject))
    recipient = await address_resolution.load_recipient_below_limits(demo.environment, ADDRESS)
    await received_messages.store_once_for_recipient(
        demo.environment, message, recipient, "carol@example.com"
    )


def example_role(document: str) -> str:
    """Return the role that the first line of an example names."""
    comment = EXAMPLE_COMMENT.match(document)
    assert comment, document
    return comment[1]


async def run_example(client: GraphQLClient, name: str, **variables: str) -> Any:
    """Execute an example without errors and return its data."""
    data = await client(EXAMPLES[name], **variables)
    for field, payload in data.items():
        assert payload, (name, field)
        assert not payload.get("errors"), (name, payload)
    return data


def test_examples_have_every_operation_type() -> None:
    operations = [get_operation_ast(parse(document)) for document in EXAMPLES.values()]
    assert {operation.operation for operation in operations if operation} == set(OperationType)


def test_examples_begin_with_sentence_and_role() -> None:
    areas = [example["area"] for example in BUILT_EXAMPLES["examples"]]
    assert len(EXAMPLES) == len(areas)  # names are unique
    assert len(set(areas)) == 11
    for document in EXAMPLES.values():
        assert EXAMPLE_COMMENT.match(document), document


async def test_examples_for_users_run_on_demo_account(demo: GraphQLClient) -> None:
    for name, document in EXAMPLES.items():
        if example_role(document) == "USER" and name not in {LIVE_EXAMPLE, UNDO_EXAMPLE}:
            await run_example(demo, name)


async def test_undo_example_undoes_sent_message(demo: GraphQLClient) -> None:
    sent = (await run_example(demo, "SendWithUndo"))["messageSend"]
    await run_example(demo, UNDO_EXAMPLE, token=sent["undo"]["token"])


async def test_examples_for_administrators_run_as_administrator(
    admin_client: GraphQLClient,
) -> None:
    names = [name for name, document in EXAMPLES.items() if example_role(document) != "USER"]
    assert len(names) > 10
    for name in names:
        await run_example(admin_client, name)


async def test_examples_return_data(demo: GraphQLClient) -> None:
    mailbox = (await demo(EXAMPLES["Inbox"]))["viewer"]["user"]["mailbox"]
    assert mailbox["messages"]["totalCount"] > 10
    (message,) = (await demo(EXAMPLES["ReadMessage"]))["viewer"]["user"]["mailbox"]["messages"][
        "nodes"
    ]
    assert message["text"]
    flagged = (await demo(EXAMPLES["CreateAndFlag"]))["messageUpdate"]["messages"]
    assert all("\\Flagged" in message_flags["imap"]["flags"] for message_flags in flagged)
    assert flagged


async def test_live_example_shows_delivery_and_changes_of_other_examples(
    demo: GraphQLClient,
) -> None:
    stream = subscription_results(demo, EXAMPLES[LIVE_EXAMPLE])
    async with asyncio.timeout(HANG_SECONDS):
        next_result = asyncio.ensure_future(anext(stream))
        await wait_for_followers(demo.environment)
        await deliver(demo, "Out of the blue")
        result = await next_result
        assert not result.errors
        (event,) = result.data["changes"]["events"]
        assert event["message"]["subject"] == "Out of the blue"
        await demo(EXAMPLES["CreateAndFlag"])
        kinds: list[str] = []
        while "MESSAGE_UPDATED" not in kinds:
            result = await anext(stream)
            assert not result.errors
            kinds += [event["type"] for event in result.data["changes"]["events"]]
        assert "MAILBOX_CREATED" in kinds
    await stream.aclose()


def repository_files() -> list[Path]:
    """Return all source files: neither ignored nor built."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in output.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def read_text(file: Path) -> str:
    raw = file.read_bytes()
    return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode(errors="replace")


def test_no_file_contains_a_registry_host() -> None:
    files = repository_files()
    assert ROOT / "webui" / "package-lock.json" in files
    occurrences = {
        (str(file.relative_to(ROOT)), host)
        for file in files
        if file.suffix != ".gz" and file.name != "LICENSES.txt"
        for host in REGISTRIES
        if host in read_text(file)
    }
    assert occurrences == set()


def test_page_loads_nothing_from_other_hosts() -> None:
    files = sorted(STATIC.iterdir())
    assert any(file.name == "graphiql.js.gz" for file in files)
    assert {file.name: RESOURCE_LOAD.findall(read_text(file)) for file in files} == {
        file.name: [] for file in files
    }
