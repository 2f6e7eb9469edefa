"""Tests that docs/operating/move.md moves the accounts of a Dovecot server, and moves mail back.

Names, addresses and paths of the page are replaced. `scp` becomes `cp`, since both servers run on
this machine. imaplib reads Dovecot, and GraphQL the result: neither shares code with connectors.
"""

import asyncio
import hashlib
import imaplib
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.conftest import raw_message
from tests.support.clients.page_commands import PageBlock, page_blocks, run_shell, substitute
from tests.support.mail_servers.dovecot_accounts import (
    ADA,
    BOB,
    CLEO,
    LOCAL_PATHS,
    SCHEMES,
    OldServer,
    run_old_server,
)
from tests.support.mail_servers.imap_messages import MessageCopy, sort_copies
from tests.support.servers.forked_program import forked_program
from tests.support.servers.merganser_server import ROOT, HttpClient, MerganserProcess
from tests.support.servers.program_process import require_program
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database
from tests.support.time_limits import HANG_SECONDS

PAGE = ROOT / "docs/operating/move.md"
SPECIAL_PATHS = {"INBOX", "Sent", "Junk", "Drafts", "Trash", "Archive", "Snoozed"}
ARRIVAL = datetime(2021, 3, 28, 0, 59, 58, tzinfo=UTC)
MAILBOXES = """{ viewer { user { mailboxes { nodes { id pathUtf7 subscribed } } } } }"""
MESSAGES = """query ($id: ID!) { mailbox(by: {id: $id}) { messages(first: 100) {
  nodes { sourceUrl subject receivedAt imap { flags } } } } }"""
NOTICE_SUBJECT = "Your account was changed by an administrator"
NOTICES = f"""{{ viewer {{ user {{ messages(filter: {{subject: "{NOTICE_SUBJECT}"}}) {{
  totalCount }} }} }} }}"""
CHANGES = """subscription ($after: Cursor!) { changes(after: $after) {
  events { ... on MessageChange { message { subject } } } } }"""
RUNS = """{ connectors(first: 100) { nodes { username runs(first: 1) { nodes {
  state importedCount skippedCount error } } } } }"""


@dataclass
class NewServer(MerganserProcess):
    """The server that the mail moves to."""

    old: OldServer | None = None
    program_folder: Path = Path()  # has `merganser-admin`
    ca_file: Path = Path()

    @property
    def process_env(self) -> dict[str, str]:
        variables = super().process_env
        del variables["MERGANSER_AUTO_CREATE_DOMAINS"]
        return {
            **variables,
            "SSL_CERT_FILE": str(self.ca_file),
            "PATH": f"{self.program_folder}:{os.environ['PATH']}",
        }

    def substitute(self, text: str) -> str:
        """Return a text of the page with the names, addresses and paths of both servers."""
        assert self.old
        replacements = {
            "https://mail.example.org/graphql": f"{self.url}/graphql",
            'host: "imap.old.example"': f'host: "localhost", port: {self.old.port}',
            "imap.old.example:/var/tmp/back/": f"{self.old.folder}/back/",
            "/var/lib/merganser": str(self.folder / "var"),
            "-o merganser ": "",
            "scp ": "cp ",
        }
        return substitute(text, replacements)

    async def run_block(self, block: str) -> str:
        """Run the commands of a block, which must succeed, and return their output."""
        return await run_shell(self.substitute(block), self.folder, self.process_env)

    async def read_account(
        self, account: str, *, notices: bool = False
    ) -> dict[str, list[MessageCopy]]:
        """Return the messages of each mailbox that has some, by default without notices."""
        async with self.open_client(account) as client:
            copies = {
                mailbox["pathUtf7"]: await read_mailbox(client, mailbox["id"], notices)
                for mailbox in await load_mailboxes(client)
            }
        return {path: messages for path, messages in copies.items() if messages}

    async def read_subscriptions(self, account: str) -> set[str]:
        """Return the subscribed paths without those that every account has."""
        async with self.open_client(account) as client:
            mailboxes = await load_mailboxes(client)
        return {mailbox["pathUtf7"] for mailbox in mailboxes if mailbox["subscribed"]} - (
            SPECIAL_PATHS
        )

    async def wait_for_notices(self, count: int) -> None:
        """Wait until each user was told of this number of changes of the connector."""
        for account in SCHEMES:
            async with self.open_client(account) as client, asyncio.timeout(HANG_SECONDS):
                while (await client(NOTICES))["viewer"]["user"]["messages"]["totalCount"] < count:  # noqa: ASYNC110 - no event tells it
                    await asyncio.sleep(0.05)

    async def load_imported_counts(self) -> dict[str, tuple[int, int]]:
        """Return how many messages the last run of each account stored and skipped."""
        async with self.open_client("root") as client:
            connectors = (await client(RUNS))["connectors"]["nodes"]
        counts = {}
        for connector in connectors:
            (run,) = connector["runs"]["nodes"]
            assert run["state"] == "SUCCEEDED", run["error"]
            counts[connector["username"].partition("*")[0]] = (
                int(run["importedCount"]), int(run["skippedCount"]),
            )  # fmt: skip
        return counts


async def load_mailboxes(client: HttpClient) -> list[dict[str, Any]]:
    """Read the mailboxes of the signed-in user."""
    mailboxes: list[dict[str, Any]] = (await client(MAILBOXES))["viewer"]["user"]["mailboxes"][
        "nodes"
    ]
    return mailboxes


async def read_mailbox(client: HttpClient, mailbox_id: str, notices: bool) -> list[MessageCopy]:
    """Return the messages of a mailbox in Merganser, with or without notices."""
    nodes = (await client(MESSAGES, id=mailbox_id))["mailbox"]["messages"]["nodes"]
    copies = []
    for node in nodes:
        if node["subject"] == NOTICE_SUBJECT and not notices:
            continue
        source = (await client.http.get(node["sourceUrl"])).raise_for_status().content
        copies.append(
            MessageCopy(
                hashlib.sha256(source).hexdigest(),
                frozenset(node["imap"]["flags"]),
                datetime.fromisoformat(node["receivedAt"]),
            )
        )
    return sort_copies(copies)


@dataclass
class Guide:
    """The blocks of the page in order, run on the two servers."""

    old: OldServer
    new: NewServer
    blocks: list[PageBlock] = field(default_factory=lambda: page_blocks(PAGE))

    async def run(self, *kinds: str) -> str:
        """Run the next blocks, which must have these kinds. Returns the output of the last one."""
        output = ""
        for kind in kinds:
            block = self.blocks.pop(0)
            assert block.kind == kind, block
            if kind == "graphql move":
                (self.new.folder / block.file_name).write_text(self.new.substitute(block.text))
            elif kind == "dovecot":
                file = self.old.etc / block.file_name.removeprefix("/etc/dovecot/")
                file.write_text(block.text.replace("/etc/dovecot", str(self.old.etc)))
            else:
                runners = {"sh old": self.old.run_block, "sh move": self.new.run_block}
                output = await runners[kind](block.text)
        return output

    async def compare(self) -> None:
        """Compare all accounts of both servers."""
        for account in SCHEMES:
            assert await self.new.read_account(account) == self.old.read_account(account)

    async def compare_subscriptions(self) -> None:
        """Compare the subscriptions to mailboxes that have messages. Parents are added."""
        for account in SCHEMES:
            subscribed = (
                self.old.read_subscriptions(account) & self.old.read_account(account).keys()
            )
            levels = [path.split("/") for path in subscribed - SPECIAL_PATHS]
            with_parents = {
                "/".join(path[: end + 1]) for path in levels for end in range(len(path))
            }
            assert await self.new.read_subscriptions(account) == with_parents


def add_message(
    client: imaplib.IMAP4,
    name: str,
    subject: str,
    flags: str = "",
    *,
    hours: int = 0,
) -> None:
    """Add a message that arrived some hours after ARRIVAL."""
    raw = raw_message(subject, body=f"{subject}: Grüße")
    status, response = client.append(name, flags, ARRIVAL + timedelta(hours=hours), raw)
    assert status == "OK", response


def create_mailboxes(client: imaplib.IMAP4, *names: str) -> None:
    """Create mailboxes and subscribe to them."""
    for name in names:
        for command in (client.create, client.subscribe):
            status, response = command(f'"{name}"')
            assert status == "OK", response


def fill_old_server(old: OldServer) -> None:
    """Add mailboxes with messages to the accounts."""
    with old.sign_in(ADA) as client:
        names = ("Projekte/2024/Q1", "Projekte/2024/&ANw-berblick", "Leer", *LOCAL_PATHS)
        create_mailboxes(client, *names, "Alt")
        client.unsubscribe("Alt")
        add_message(client, "INBOX", "Unread")
        add_message(client, "INBOX", "Read", r"(\Seen)", hours=1)
        add_message(client, "INBOX", "Answered", r"(\Seen \Answered Project-X $Forwarded)", hours=2)
        add_message(client, "INBOX", "Flagged", r"(\Flagged)", hours=3)
        add_message(client, "Projekte/2024/Q1", "Budget", "(Project-X)", hours=4)
        add_message(client, "Projekte/2024/Q1", "Plan", r"(\Seen)", hours=5)
        add_message(client, "Projekte/2024/&ANw-berblick", "Overview", hours=6)
        add_message(client, "Alt", "Old", r"(\Seen)", hours=-90_000)
        for hours, name in enumerate(LOCAL_PATHS, start=7):
            flags = r"(\Seen \Draft)" if name.startswith("Entw") else r"(\Seen)"
            add_message(client, f'"{name}"', f"In {name}", flags, hours=hours)
    with old.sign_in(BOB) as client:
        add_message(client, "INBOX", "Marked as deleted", r"(\Seen \Deleted)")
        for number in range(40):
            add_message(client, "INBOX", f"Number {number}", hours=number)
    with old.sign_in(CLEO) as client:
        create_mailboxes(client, "Papierkorb")
        for _ in range(2):
            add_message(client, "INBOX", "Twice", r"(\Seen)")
        add_message(client, "Papierkorb", "Gone")


def change_old_server(old: OldServer) -> dict[str, tuple[int, int]]:
    """Change mail as users do. Returns how many messages a run stores and skips after that."""
    with old.sign_in(ADA) as client:
        add_message(client, "INBOX", "New", hours=100)
        client.select("INBOX")
        client.store("1", "+FLAGS", r"(\Seen Later)")
        client.store("3", "-FLAGS", r"(\Seen Project-X)")
        client.copy("2", "Alt")
        client.store("2", "+FLAGS", r"(\Deleted)")
        client.expunge()
        client.select("Projekte/2024/Q1")
        client.store("1", "+FLAGS", r"(\Deleted)")
        client.expunge()
    with old.sign_in(CLEO) as client:
        create_mailboxes(client, "Neu/Tief")
        for number in range(2):
            add_message(client, "Neu/Tief", f"New {number}")
    return {ADA: (2, 0), BOB: (0, 0), CLEO: (2, 0)}


@pytest.fixture(params=store_fixtures.STORES)
async def guide(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Guide]:
    """Both servers, before the first step of the page."""
    for program in ("dovecot", "curl", "jq"):
        require_program(program)
    store_url = ""
    if request.param != "sqlite":
        store_url = create_migrated_database(request.getfixturevalue("postgres"), "moved")
    programs = tmp_path_factory.mktemp("admin")
    with ExitStack() as stack:
        # the owner of the mail can't enter pytest's folder
        folder = Path(stack.enter_context(TemporaryDirectory()))
        await asyncio.to_thread(folder.chmod, 0o755)
        old = stack.enter_context(run_old_server(folder, tmp_path))
        stack.enter_context(forked_program(programs / "merganser-admin"))
        new = NewServer(
            tmp_path,
            store_url,
            {"CONNECTORS_ALLOW_PRIVATE_NETWORKS": "on"},
            old=old,
            program_folder=programs,
            ca_file=old.authority.write_certificate(),
        )
        await asyncio.to_thread(new.start)
        try:
            yield Guide(old, new)
        finally:
            await asyncio.to_thread(new.stop)


async def copy_accounts(guide: Guide) -> None:
    """Follow the page up to the first comparison of both servers."""
    old, new = guide.old, guide.new
    await guide.run("sh old", "dovecot", "sh old")
    await old.wait_for_master_user()
    assert "3 accounts created, 0 refused." in await guide.run("sh move")
    await guide.run("sh move", "graphql move")
    assert "ada@example.org: 11 messages imported" in await guide.run("sh move")
    new.secrets["root"] = (new.folder / "key").read_text().strip()
    for account, password in old.passwords.items():
        async with new.open_client() as client:
            credentials = {"username": account, "password": password}
            payload = await client.run_mutation("authenticate", credentials, "token")
            new.secrets[account] = payload["token"]
    assert "Alt" not in await new.read_account(ADA)
    await guide.compare_subscriptions()
    await guide.run("sh move")
    await guide.compare()
    await guide.compare_subscriptions()


async def check_counts(guide: Guide) -> None:
    """Compare the numbers of messages as the page does."""
    counts = dict(line.split(" messages=") for line in (await guide.run("sh old")).splitlines())
    assert counts == {ADA: "12", BOB: "41", CLEO: "3"}
    await guide.new.wait_for_notices(2)
    rows = [row.split("\t") for row in (await guide.run("sh move")).splitlines()]
    assert sorted(rows) == [
        [ADA, "14", "12", "SUCCEEDED"],
        [BOB, "43", "41", "SUCCEEDED"],
        [CLEO, "4", "3", "SUCCEEDED"],  # two messages are identical
    ]


async def move_script_and_key(guide: Guide) -> None:
    """Move a Sieve script and a DKIM key as the page shows."""
    folder = guide.new.folder
    (folder / "ada.sieve").write_text('require "imap4flags"; addflag "\\\\Flagged"; keep;')
    key = rsa.generate_private_key(65537, 2048)
    encoding = Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    (folder / "mail.private").write_bytes(key.private_bytes(*encoding))
    await guide.run("sh move")
    async with guide.new.open_client("root") as client:
        (dkim_key,) = (await client("{ dkimKeys { nodes { selector state } } }"))["dkimKeys"][
            "nodes"
        ]
    assert dkim_key == {"selector": "mail", "state": "ACTIVE"}
    async with guide.new.open_client(ADA) as client:
        user = (await client("{ viewer { user { sieveScripts { nodes { name active } } } } }"))[
            "viewer"
        ]["user"]
    assert user["sieveScripts"]["nodes"] == [{"name": "main", "active": True}]


async def add_mail_after_switch(guide: Guide) -> None:
    """Deliver a message to the new server, and store another one in Sent."""
    async with guide.new.open_client(ADA) as client:
        sent = raw_message("Sent after the switch").decode()
        await client.run_mutation(
            "messageImport", {"raw": sent, "mailbox": {"specialUse": "SENT"}, "seen": True}
        )
        cursor = await client.load_cursor()
        async with client.subscribe_by_sse(CHANGES, after=cursor) as events:
            await guide.new.deliver_by_lmtp(raw_message("After the switch"), ADA)
            while "After the switch" not in str(await events.read_event()):
                pass


async def load_mail_since(guide: Guide, account: str, since: int) -> dict[str, list[MessageCopy]]:
    """Return what arrived in an account of the new server, with times as Dovecot stores them."""
    mailboxes = await guide.new.read_account(account, notices=True)
    return {
        path: [
            replace(copy, received_at=copy.received_at.replace(microsecond=0))
            for copy in copies
            if copy.received_at.timestamp() >= since
        ]
        for path, copies in mailboxes.items()
    }


async def check_way_back(guide: Guide) -> None:
    """Follow the last section of the page: only new mail returns, with dates and flags."""
    old = guide.old
    before = {account: old.read_account(account) for account in SCHEMES}
    counts_before = {account: old.count_inbox(account) for account in SCHEMES}
    await add_mail_after_switch(guide)
    await guide.new.wait_for_notices(3)
    await guide.run("sh old", "sh move", "sh old")
    assert guide.blocks == []
    switched_at = int((guide.new.folder / "switched-at").read_text())
    for account, mailboxes in before.items():
        arrived = await load_mail_since(guide, account, switched_at)
        returned = {
            path: new_copies
            for path, copies in arrived.items()
            if (new_copies := [copy for copy in copies if copy not in mailboxes.get(path, [])])
        }
        assert len(returned["INBOX"]) == {ADA: 2, BOB: 1, CLEO: 1}[account]  # each with a notice
        assert len(returned.get("Sent", [])) == (account == ADA)
        expected = {
            path: sort_copies([*mailboxes.get(path, []), *returned.get(path, [])])
            for path in mailboxes.keys() | returned.keys()
        }
        assert old.read_account(account) == expected
        assert old.count_inbox(account) == counts_before[account] + len(returned["INBOX"])


async def test_accounts_move_and_mail_returns(guide: Guide) -> None:
    old = guide.old
    await old.wait_for_sign_in(ADA)
    await asyncio.to_thread(fill_old_server, old)
    await copy_accounts(guide)
    await check_counts(guide)
    await move_script_and_key(guide)
    expected_counts = await asyncio.to_thread(change_old_server, old)
    await guide.run("sh move")  # notes the time of the switch
    with old.sign_in(BOB) as client:
        client.append("INBOX", "", datetime.now(UTC), raw_message("Late"))
    await guide.run("sh move")
    counts = await guide.new.load_imported_counts()
    assert counts == {**expected_counts, BOB: (1, 0)}
    await guide.compare()
    await guide.run("sh move")
    await guide.compare()
    await check_way_back(guide)
