"""README.md and docs/: every document is run, every command is one, every link leads somewhere."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLScalarType,
    OperationDefinitionNode,
    OperationType,
    parse,
    print_ast,
    validate,
)

from bench.servers.ports import free_port
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.commands.command_line import create_command_line
from merganser.demo.credentials import ADDRESS, USERNAME
from merganser.server import environment_factory
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.conftest import Client, Clock, make_client, raw_message, receive
from tests.support.accounts.demo_account import demo_client, serving, subscribed
from tests.support.operations.quarantine_operations import hold
from tests.support.schema.printed_schema import SDL
from tests.support.servers.merganser_server import Server
from tests.support.servers.webhook_receiver import inward, log_of, made, pump, worker_of

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BUILT_IN = {"ID", "Int", "Float", "String", "Boolean"}
REFUSED = {"Rename"}  # examples of a refusal
USUAL = {"127.0.0.1:8025": "http", "127.0.0.1:8024": "lmtp"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, what its fence says, and what is in it."""

    page: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.strip().splitlines()[0]}"


def blocks(kind: str) -> list[Block]:
    return [
        Block(page.name, found, text)
        for page in PAGES
        for found, text in FENCE.findall(page.read_text())
        if found == kind
    ]


DOCUMENTS = blocks("graphql")
SHELL = [block for kind in ("sh", "sh run", "sh backup", "sh restore") for block in blocks(kind)]


def operation(block: Block) -> OperationDefinitionNode:
    (found,) = parse(block.text).definitions
    assert isinstance(found, OperationDefinitionNode)
    return found


def of_kind(*kinds: OperationType) -> list[Block]:
    return [block for block in DOCUMENTS if operation(block).operation in kinds]


@pytest.fixture
async def demo(world: Environment, http: httpx.AsyncClient, tmp_path: Path) -> Client:
    return await demo_client(world, http, tmp_path)


def test_there_are_documents_on_the_pages() -> None:
    pages = {"README.md", "accounts.md", "api.md", "authentication.md", "autoreply.md"}
    pages |= {"connectors.md", "delivery.md", "operating.md", "push.md", "sieve.md", "spam.md"}
    assert {block.page for block in DOCUMENTS} == pages


@pytest.mark.parametrize("block", DOCUMENTS, ids=str)
def test_documents_fit_the_schema(block: Block) -> None:
    assert validate(SDL, parse(block.text)) == []


async def given(client: Client, block: Block) -> dict[str, Any]:
    """Values for the variables of a document."""
    declared = operation(block).variable_definitions or ()
    names = {each.variable.name.value: print_ast(each.type) for each in declared}
    values: dict[str, Any] = {"username": "x", "password": "x", "after": None}
    if names.get("after") == "Cursor!":
        values["after"] = (await client("{ viewer { user { cursor } } }"))["viewer"]["user"][
            "cursor"
        ]
    if "upload" in names:
        raw = raw_message("Uploaded")
        sent = await client.http.post("/rest/uploads", content=raw, headers=client.headers)
        values["upload"] = sent.json()["id"]
    if "held" in names:
        values["held"] = await hold(client, address=ADDRESS)
    return {name: values[name] for name in names}


async def test_queries_and_mutations_run_on_the_demo_account(demo: Client) -> None:
    other = NewUser("bob", address=f"bob@{ADDRESS.partition('@')[2]}", password_disabled=True)
    await creation_create.create_user(environment_factory.root_context(demo.world), other)
    admin = await make_client(demo.world, demo.http, "chief", role=Role.ADMIN)
    for block in of_kind(OperationType.QUERY, OperationType.MUTATION):
        name = operation(block).name
        assert name
        client = admin if block.page == "operating.md" else demo
        answer = await client(block.text, **await given(demo, block))
        for payload in answer.values():
            assert payload
            refused = name.value in REFUSED | {"SignIn"}
            assert bool(payload.get("errors")) == refused, (str(block), payload)


@pytest.mark.parametrize("block", of_kind(OperationType.SUBSCRIPTION), ids=str)
async def test_subscriptions_tell_of_a_delivery(demo: Client, block: Block) -> None:
    stream: AsyncGenerator[Any] = subscribed(demo, block.text)
    async with asyncio.timeout(10):
        coming = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.2)  # until it listens
        letter = await received_messages.read_message(raw_message("Out of the blue"))
        to = await address_resolution.load_recipient(demo.world, ADDRESS)
        await received_messages.store_for_recipient(demo.world, letter, to, "carol@example.com")
        result = await coming
    assert not result.errors
    (told,) = result.data.values()
    (event,) = told.get("events", [told])
    assert event["message"]["subject"] == "Out of the blue"
    await stream.aclose()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `merganser` and `python`, as a venv that we are installed in has them."""
    folder = tmp_path_factory.mktemp("programs")
    for name, words in (("merganser", "-m merganser "), ("python", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        program.chmod(0o755)
    return folder


@pytest.mark.parametrize("block", blocks("sh run"), ids=str)
async def test_commands_that_are_marked_succeed_beside_a_server(
    house: Server, programs: Path, block: Block
) -> None:
    text = block.text
    for usual, setting in USUAL.items():
        text = text.replace(usual, f"127.0.0.1:{getattr(house, setting)}")
    path = f"{programs}:{os.environ['PATH']}"
    env = {**house.env, "PATH": path, "KEY": house.secrets[USERNAME]}
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", text, cwd=ROOT, env=env,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()
    assert b'"errors"' not in said, said.decode()


async def test_the_receiver_of_webhooks_takes_what_is_signed_and_nothing_else(
    root: Client, ada: Client, clock: Clock, tmp_path: Path
) -> None:
    (block,) = (one for one in blocks("python") if one.page == "webhooks.md")
    program, port = tmp_path / "receiver.py", free_port()
    program.write_text(block.text)
    clock.time = datetime.now(UTC)  # what the program goes by
    inward(ada.world)
    key, secret = await made(root, f"http://127.0.0.1:{port}/", "message.received")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(program),
        env={"SECRET": secret, "PORT": str(port)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(10):
            await answering(port)
        await receive(ada, "Hello")
        await pump(worker_of(ada.world))
        (entry,) = (await log_of(root, key))["deliveries"]["nodes"]
        assert (entry["status"], entry["error"]) == (204, None)
        assert process.stdout
        assert await process.stdout.readline() == b"message.received\n"
        rotate = """mutation ($id: ID!) { webhookSecretRotate(input: {id: $id, overlap: "PT0S"}) {
          errors { code } } }"""
        assert (await root(rotate, id=key))["webhookSecretRotate"]["errors"] == []
        await receive(ada, "Signed with another")
        await pump(worker_of(ada.world))
        assert (await log_of(root, key))["deliveries"]["nodes"][0]["status"] == 400
    finally:
        process.kill()
        await process.wait()


async def answering(port: int) -> None:
    """Until somebody listens there."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def commands(block: Block) -> list[list[str]]:
    """The words of each line, without settings before them."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [re.sub(r"^(?:[A-Z_]+=\S+\s+)+", "", line).split() for line in lines]
    return [each for each in words if each]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_all_commands_of_ours_exist(block: Block) -> None:
    known = {
        each.name
        for each in create_command_line().registered_commands
        + create_command_line().registered_groups
    }
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(block):
        if words[0] == "make":
            assert words[1] in targets
        if words[0] == "merganser":
            assert words[1] in known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        path, _, heading = link.partition("#")
        if path.startswith(("https://", "http://")):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            names = HEADING.findall(target.read_text())
            assert heading in {re.sub(r"[^\w -]", "", n).lower().replace(" ", "-") for n in names}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"\bMERGANSER_[A-Z0-9_]+", page.read_text())
    assert {name.removeprefix("MERGANSER_").lower() for name in named} <= set(Settings.model_fields)


def table(heading: str) -> set[str]:
    """The first column of the table of docs/api.md whose head begins so, where it is code."""
    text = (ROOT / "docs" / "api.md").read_text()
    rows = text[text.index(f"| {heading} |") :].split("\n\n", 1)[0]
    return set(re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE))


def test_the_tables_of_the_api_are_whole() -> None:
    codes = SDL.type_map["ErrorCode"]
    assert isinstance(codes, GraphQLEnumType)
    assert table("`code` in a payload") == set(codes.values)
    scalars = {name for name, kind in SDL.type_map.items() if isinstance(kind, GraphQLScalarType)}
    assert table("scalar") == scalars | BUILT_IN
    source = "".join(path.read_text() for path in (ROOT / "graph").rglob("*.py"))
    for code in table("`extensions.code`"):
        assert f'"{code}"' in source
    raised = re.findall(r'(?:"code": |Rejected\(\d+, |Fault\([^"]*)"([A-Z_]+)"', source)
    assert set(raised) <= table("`extensions.code`")
