"""README.md and docs/: documents and commands run, links and settings exist, tables are whole."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
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
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.runtime.renamed_settings import RENAMED_VARIABLES
from models.users.roles import Role
from resolvers.admin.task_steps import RESULT_NAMES
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_client, raw_message
from tests.support.accounts.demo_account import (
    make_demo_client,
    run_demo_server,
    subscription_results,
)
from tests.support.clients.change_followers import wait_for_followers
from tests.support.operations.message_sources import import_message, save_draft
from tests.support.operations.platform.cluster_operations import insert_node
from tests.support.operations.quarantine_operations import quarantine_message
from tests.support.schema.printed_schema import SDL
from tests.support.servers.forked_program import forked_program
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.servers.webhook_receiver import (
    allow_local_webhooks,
    create_webhook,
    load_webhook_log,
    make_webhook_worker,
    post_until_idle,
)
from tests.support.time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BUILT_IN = {"ID", "Int", "Float", "String", "Boolean"}
FENCE_KINDS = {
    "", "text", "json", "yaml", "http", "html", "javascript", "typescript", "python", "sieve",
    "haproxy", "nginx",
    "toml", "sh company",  # tests/e2e/operation/test_company_tutorial.py uses them
    "graphql", "graphql admin", "graphql root",
    "graphql move", "sh move", "sh old", "dovecot",  # test_move_from_dovecot.py runs them
    "graphql reference",  # tests/schema/test_reference.py runs them
    "graphql tutorial",  # tests/clients/test_tutorials.py and test_company_tutorial.py run them
    "sql",  # tests/store/test_postgres_connections.py runs it
    "sh", "sh run", "sh backup", "sh restore", "sh first-server", "sh second-server",
}  # fmt: skip
NAMES_OUTSIDE_SCHEMA = {
    "PushSubscription", "applicationServerKey", "documentId", "localStorage", "operationName",
    "persistConfig", "requestId", "restoreRate", "retryAfterSeconds", "sessionStorage",
}  # fmt: skip
PAGES_WITH_DOCUMENTS = {
    f"docs/{folder}/{name}.md"
    for folder, names in {
        "api": (
            "addresses autoreplies drafts errors export-and-import identities key-value-stores "
            "legal-holds limits mailboxes messages pages-and-ids push-notifications requests "
            "resources roles-and-permissions scalars searching sending sieve sign-in "
            "stored-settings subscriptions transactions uploads-and-downloads users webhooks"
        ),
        "operating": (
            "autoconfiguration bans blobs caches cluster components log-store oauth scim sessions "
            "statistics"
        ),
        "mail": (
            "authentication connectors dsn encryption filters forwarding quarantine queue rewrites "
            "routing sending spam submission trace"
        ),
        "tutorials": "migrate-from-mailcow migrate-from-wildduck",
    }.items()
    for name in names.split()
} | {"docs/signin.md"}
REFUSED_OPERATIONS = {"EndSessions", "Rename"}  # operations that are examples of an error
PASSWORD_OPERATIONS = {"SignIn", "SignInToRead", "CheckForImap"}  # refused: the password is wrong
DEFAULT_ADDRESSES = {"127.0.0.1:8025": "http_port", "127.0.0.1:8024": "lmtp_port"}
SEND_HELD_MESSAGE = f"""
mutation {{ messageSend(
  input: {{to: [{{address: "{ADDRESS}"}}], subject: "Held", text: "x", undoWindow: "PT1M"}}) {{
  submissions {{ id }} undo {{ token }} }} }}
"""


def page_path(page: Path) -> str:
    """Return the path of a page in the project, such as `docs/settings.md`."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class FencedBlock:
    """A fenced block of a page: path of the page in the project, language line and text."""

    page: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.strip().splitlines()[0]}"


def fenced_blocks(kind: str) -> list[FencedBlock]:
    return [
        FencedBlock(page_path(page), block_kind, text)
        for page in PAGES
        for block_kind, text in FENCE.findall(page.read_text())
        if block_kind == kind
    ]


# Documents with the mark `admin` run as an ADMIN, with `root` as a ROOT, others as the demo user.
DOCUMENTS = [
    block for kind in ("graphql", "graphql admin", "graphql root") for block in fenced_blocks(kind)
]
SHELL = [
    block for kind in ("sh", "sh run", "sh backup", "sh restore") for block in fenced_blocks(kind)
]


def operation_definition(block: FencedBlock) -> OperationDefinitionNode:
    (definition,) = parse(block.text).definitions
    assert isinstance(definition, OperationDefinitionNode)
    return definition


def documents_of_type(*operation_types: OperationType) -> list[FencedBlock]:
    return [
        block for block in DOCUMENTS if operation_definition(block).operation in operation_types
    ]


@pytest.fixture
async def demo(environment: Environment, http: httpx.AsyncClient, tmp_path: Path) -> GraphQLClient:
    for host in ("mx1.example.org", "mx2.example.org"):  # as servers register themselves
        await insert_node(environment, host)
    return await make_demo_client(environment, http, tmp_path)


def test_pages_with_documents_are_known() -> None:
    """No page loses its documents unnoticed, for example by another kind of fence."""
    assert {block.page for block in DOCUMENTS} == {"README.md", *PAGES_WITH_DOCUMENTS}


def test_fences_have_known_kinds() -> None:
    kinds = {kind for page in PAGES for kind, _ in FENCE.findall(page.read_text())}
    assert kinds <= FENCE_KINDS


def test_documents_are_valid() -> None:
    problems = {str(block): validate(SDL, parse(block.text)) for block in DOCUMENTS}
    assert {name: errors for name, errors in problems.items() if errors} == {}


async def variables_for(client: GraphQLClient, block: FencedBlock) -> dict[str, Any]:
    """Return values for the variables of a document."""
    definitions = operation_definition(block).variable_definitions or ()
    names = {
        definition.variable.name.value: print_ast(definition.type) for definition in definitions
    }
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
        values["held"] = await quarantine_message(client, address=ADDRESS)
    if "draft" in names:
        saved = await save_draft(client, text="Dear {{name}},", to=[{"address": ADDRESS}])
        message = saved["message"]
        values |= {"draft": message["id"], "modseq": message["imap"]["modseq"]}
    if "message" in names:
        raw_text = raw_message("A question", To=ADDRESS).decode()
        imported = await import_message(client, raw=raw_text, mailbox={"specialUse": "INBOX"})
        values["message"] = imported["message"]["id"]
    if names.keys() & {"submission", "token"}:
        sent = (await client(SEND_HELD_MESSAGE))["messageSend"]
        values |= {"submission": sent["submissions"][0]["id"], "token": sent["undo"]["token"]}
    return {name: values[name] for name in names}


async def test_queries_and_mutations_run_on_demo_account(demo: GraphQLClient) -> None:
    admin = await make_client(demo.environment, demo.http, "chief", role=Role.ADMIN)
    root = await make_client(demo.environment, demo.http, "top", role=Role.ROOT)
    clients = {"graphql admin": admin, "graphql root": root}
    for block in documents_of_type(OperationType.QUERY, OperationType.MUTATION):
        name = operation_definition(block).name
        assert name
        client = clients.get(block.kind, demo)
        data = await client(block.text, **await variables_for(demo, block))
        for payload in data.values():
            assert payload
            is_refused = name.value in REFUSED_OPERATIONS | PASSWORD_OPERATIONS
            assert bool(payload.get("errors")) == is_refused, (str(block), payload)


@pytest.mark.parametrize("block", documents_of_type(OperationType.SUBSCRIPTION), ids=str)
async def test_subscriptions_deliver_received_message(
    demo: GraphQLClient, block: FencedBlock
) -> None:
    stream: AsyncGenerator[Any] = subscription_results(demo, block.text)
    async with asyncio.timeout(HANG_SECONDS):
        next_result = asyncio.ensure_future(anext(stream))
        await wait_for_followers(demo.environment)
        message = await received_messages.parse_storable_message(raw_message("Out of the blue"))
        recipient = await address_resolution.load_recipient_below_limits(demo.environment, ADDRESS)
        await received_messages.store_once_for_recipient(
            demo.environment, message, recipient, "carol@example.com"
        )
        result = await next_result
    assert not result.errors
    (payload,) = result.data.values()
    (event,) = payload.get("events", [payload])
    assert event["message"]["subject"] == "Out of the blue"
    await stream.aclose()


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MerganserProcess]:
    with run_demo_server(tmp_path_factory.mktemp("house")) as server:
        yield server


@pytest.fixture(scope="module")
def program_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `merganser` and `python`, like the `bin` folder of a virtual environment."""
    folder = tmp_path_factory.mktemp("programs")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with forked_program(folder / "merganser"):
        yield folder


@pytest.mark.parametrize("block", fenced_blocks("sh run"), ids=str)
async def test_marked_commands_succeed_with_running_server(
    demo_server: MerganserProcess, program_folder: Path, block: FencedBlock
) -> None:
    text = block.text
    for default_address, setting in DEFAULT_ADDRESSES.items():
        text = text.replace(default_address, f"127.0.0.1:{getattr(demo_server, setting)}")
    path = f"{program_folder}:{os.environ['PATH']}"
    env = {**demo_server.process_env, "PATH": path, "KEY": demo_server.secrets[USERNAME]}
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", text, cwd=ROOT, env=env, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), HANG_SECONDS)
    assert process.returncode == 0, output.decode()
    assert b'"errors"' not in output, output.decode()


async def test_webhook_receiver_example_accepts_only_valid_signatures(
    root: GraphQLClient, ada: GraphQLClient, clock: ManualClock, tmp_path: Path
) -> None:
    (block,) = (
        python_block
        for python_block in fenced_blocks("python")
        if python_block.page.endswith("/webhooks.md")
    )
    program, port = tmp_path / "receiver.py", free_port()
    program.write_text(block.text)
    clock.time = datetime.now(UTC)  # the program uses the system clock
    allow_local_webhooks(ada.environment)
    webhook_id, secret = await create_webhook(root, f"http://127.0.0.1:{port}/", "MESSAGE_RECEIVED")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(program),
        env={"SECRET": secret, "PORT": str(port)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(HANG_SECONDS):
            await wait_for_listener(port)
        await deliver_to(ada, "Hello")
        await post_until_idle(make_webhook_worker(ada.environment))
        (entry,) = (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"]
        assert (entry["status"], entry["error"]) == (204, None)
        assert process.stdout
        assert await process.stdout.readline() == b"MESSAGE_RECEIVED\n"
        rotate = """mutation ($id: ID!) { webhookSecretRotate(
          input: {webhook: {id: $id}, overlap: "PT0S"}) {
          errors { code } } }"""
        assert (await root(rotate, id=webhook_id))["webhookSecretRotate"]["errors"] == []
        await deliver_to(ada, "Signed with another")
        await post_until_idle(make_webhook_worker(ada.environment))
        assert (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"][0]["status"] == 400
    finally:
        process.kill()
        await process.wait()


async def wait_for_listener(port: int) -> None:
    """Wait until the port accepts connections."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def command_lines(block: FencedBlock) -> list[list[str]]:
    """Return the words of each command line without environment variables before them."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [re.sub(r"^(?:[A-Z_]+=\S+\s+)+", "", line).split() for line in lines]
    return [line_words for line_words in words if line_words]


def test_commands_of_project_exist() -> None:
    known_commands = create_command_line().commands
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in SHELL:
        for words in command_lines(block):
            if words[0] == "make":
                assert words[1] in targets, str(block)
            if words[0] == "merganser":
                assert words[1] in known_commands, str(block)


@cache
def heading_anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = HEADING.findall(page.read_text())
    return {re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in headings}


def test_links_have_existing_targets() -> None:
    for page in PAGES:
        for link in LINK.findall(page.read_text()):
            path, _, heading = link.partition("#")
            if path.startswith(("https://", "http://")):
                continue
            target = page.parent / path if path else page
            assert target.exists(), (page_path(page), link)
            if heading:
                assert heading in heading_anchors(target.resolve()), (page_path(page), link)


def test_tests_named_in_docs_exist() -> None:
    names = [
        match for page in PAGES for match in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text())
    ]
    assert len(names) > 40
    for path, function in names:
        source = (ROOT / "tests" / path).read_text()
        assert re.search(rf"^(async )?def {function}\(", source, re.MULTILINE), (path, function)


def test_settings_in_docs_exist() -> None:
    for page in PAGES:
        variables = set(re.findall(r"\bMERGANSER_[A-Z0-9_]+", page.read_text()))
        if page.name == "CHANGELOG.md":  # earlier entries have the names of their time
            variables -= set(RENAMED_VARIABLES)
        names = {name.removeprefix("MERGANSER_").lower() for name in variables}
        assert names <= set(Settings.model_fields), page_path(page)


def table_keys(heading: str) -> set[str]:
    """Return the code words in the first column of the table in docs/api/ with this heading."""
    text = "".join(page.read_text() for page in sorted((ROOT / "docs/api").glob("*.md")))
    rows = text[text.index(f"| {heading} |") :].split("\n\n", 1)[0]
    return set(re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE))


def test_tables_of_api_pages_are_complete() -> None:
    codes = SDL.type_map["ErrorCode"]
    assert isinstance(codes, GraphQLEnumType)
    assert table_keys("`code` in a payload") == set(codes.values)
    scalars = {name for name, kind in SDL.type_map.items() if isinstance(kind, GraphQLScalarType)}
    assert table_keys("scalar") == scalars | BUILT_IN
    source = "".join(path.read_text() for path in (ROOT / "graph").rglob("*.py"))
    for code in table_keys("`extensions.code`"):
        assert f'"{code}"' in source
    raised = re.findall(r'(?:"code": |Rejected\(\d+, |Fault\([^"]*)"([A-Z_]+)"', source)
    assert set(raised) <= table_keys("`extensions.code`")


def schema_names() -> set[str]:
    """Return the names of types, fields, arguments and enum values, and `Type.field` of fields."""
    names = set(SDL.type_map)
    for type_name, schema_type in SDL.type_map.items():
        if isinstance(schema_type, GraphQLEnumType):
            names |= set(schema_type.values)
        for name, field in (getattr(schema_type, "fields", None) or {}).items():
            names |= {name, f"{type_name}.{name}", *getattr(field, "args", {})}
    return names


def test_schema_names_in_pages_for_clients_exist() -> None:
    names = schema_names() | NAMES_OUTSIDE_SCHEMA | set(RESULT_NAMES)
    for page in sorted((ROOT / "docs/api").glob("*.md")):
        prose = FENCE.sub("", page.read_text())
        spans = re.findall(r"`([^`]+)`", prose)
        coordinates = {
            match[0] for span in spans if (match := re.match(r"([A-Z]\w+)\.\w+", span))
            and match[1] in SDL.type_map
        }  # fmt: skip
        camel_case = {
            match[1] for span in spans if (match := re.match(r"([a-z]+[A-Z]\w*)(?:\(|$)", span))
        }  # fmt: skip
        assert coordinates | camel_case <= names, page_path(page)
