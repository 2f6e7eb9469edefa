"""The examples of the page, run; and that nothing of ours is loaded from elsewhere."""

import asyncio
import gzip
import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest
from graphql import OperationType, get_operation_ast, parse

from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.demo.credentials import ADDRESS
from models.runtime.environment import Environment
from tests.conftest import Client, raw_message
from tests.support.accounts.demo_account import demo_client, subscribed

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "graph" / "static"
BUILT = json.loads((STATIC / "examples.json").read_text())
EXAMPLES = {example["name"]: example["query"] for example in BUILT["examples"]}
LIVE = "Live"
# in pieces, or this file would be one that names them
REGISTRIES = [f"{name}.org" for name in ("registry.npmjs", "files.pythonhosted", "pypi")]
REGISTRIES += [f"{name}.com" for name in ("registry.yarnpkg", "unpkg", "cdn.jsdelivr")]
# what a page loads by itself: scripts, styles, fonts, pictures, workers
LOADS = re.compile(
    r"""(?:@import\s*|url\(\s*|importScripts\(\s*|\bimport\(\s*|new Worker\(\s*)"""
    r"""["']?(?:https?:)?//[\w.-]+""",
    re.IGNORECASE,
)


@pytest.fixture
async def demo(world: Environment, http: httpx.AsyncClient, tmp_path: Path) -> Client:
    return await demo_client(world, http, tmp_path)


async def deliver(demo: Client, subject: str) -> None:
    letter = await received_messages.read_message(raw_message(subject))
    to = await address_resolution.load_recipient(demo.world, ADDRESS)
    await received_messages.store_for_recipient(demo.world, letter, to, "carol@example.com")


def test_there_are_examples_of_every_kind() -> None:
    found = [get_operation_ast(parse(document)) for document in EXAMPLES.values()]
    assert {each.operation for each in found if each} == set(OperationType)


async def test_all_examples_run_on_the_demo_account(demo: Client) -> None:
    for name, document in EXAMPLES.items():
        if name != LIVE:
            for field, payload in (await demo(document)).items():
                assert payload, field
                assert not payload.get("errors"), (name, payload)


async def test_the_examples_show_something(demo: Client) -> None:
    mailbox = (await demo(EXAMPLES["Inbox"]))["viewer"]["user"]["mailbox"]
    assert mailbox["messages"]["totalCount"] > 10
    (message,) = (await demo(EXAMPLES["ReadMessage"]))["viewer"]["user"]["mailbox"]["messages"][
        "nodes"
    ]
    assert message["text"]
    flagged = (await demo(EXAMPLES["CreateAndFlag"]))["messageUpdate"]["messages"]
    assert all("\\Flagged" in each["flags"] for each in flagged)
    assert flagged


async def test_live_tells_of_a_delivery_and_of_what_the_other_examples_do(demo: Client) -> None:
    stream = subscribed(demo, EXAMPLES[LIVE])
    async with asyncio.timeout(10):
        coming = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.2)  # until it listens
        await deliver(demo, "Out of the blue")
        result = await coming
        assert not result.errors
        (event,) = result.data["changes"]["events"]
        assert event["message"]["subject"] == "Out of the blue"
        await demo(EXAMPLES["CreateAndFlag"])
        kinds: list[str] = []
        while "MESSAGE_UPDATED" not in kinds:
            result = await anext(stream)
            assert not result.errors
            kinds += [each["kind"] for each in result.data["changes"]["events"]]
        assert "MAILBOX_CREATED" in kinds
    await stream.aclose()


def repository() -> list[Path]:
    """All files that are ours: neither ignored nor built elsewhere."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in listed.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def text_of(file: Path) -> str:
    raw = file.read_bytes()
    return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode(errors="replace")


def test_no_file_names_a_registry() -> None:
    files = repository()
    assert ROOT / "webui" / "package-lock.json" in files
    named = {
        (str(file.relative_to(ROOT)), host)
        for file in files
        if file.suffix != ".gz" and file.name != "LICENSES.txt"
        for host in REGISTRIES
        if host in text_of(file)
    }
    assert named == set()


def test_the_page_loads_nothing_from_another_host() -> None:
    files = sorted(STATIC.iterdir())
    assert any(file.name == "graphiql.js.gz" for file in files)
    assert {file.name: LOADS.findall(text_of(file)) for file in files} == {
        file.name: [] for file in files
    }
