"""Fill a new store with objects of most kinds, through public operations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from mail.search import index_worker
from merganser.commands.users import user_operations
from merganser.commands.users.user_operations import ApiKeyRequest
from merganser.demo.account import ensure_demo_accounts_with_messages
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.admin import tasks
from tests.support.released.store_clients import StoreClient, deliver_by_lmtp

DEMO_MESSAGE_COUNT = 60
PASSWORD = "correct horse battery"  # noqa: S105 - of accounts that exist only in the archive
TOTP_SECRET = "GEZD GNBV GY3T QOJQ"  # noqa: S105
LEGAL_HOLD_END = "2080-01-01T00:00:00Z"
USERNAMES = ("ada", "bob", "eve")
DELETED_USERNAME = "gone"


@dataclass(frozen=True)
class StoreWriter:
    """The environment of a new store, and clients of its accounts."""

    environment: Environment
    http: httpx.AsyncClient
    folder: Path

    async def create_key(self, name: str, username: str | None, role: Role = Role.USER) -> str:
        """Create an API key that never expires, and return its secret."""
        request = ApiKeyRequest(name, username, role=role)
        return (await user_operations.create_api_key(self.environment, request)).secret


async def fill_store(writer: StoreWriter) -> dict[str, str]:
    """Create accounts and their objects. Returns the API keys by account, `root` among them."""
    secrets = {"root": await writer.create_key("root", None, Role.ROOT)}
    root = StoreClient(writer.http, secrets["root"])
    await _create_domain_and_users(root)
    await ensure_demo_accounts_with_messages(
        writer.environment, writer.folder, DEMO_MESSAGE_COUNT, lambda _count, _total: None
    )
    for name in (*USERNAMES, "demo"):
        secrets[name] = await writer.create_key(f"released {name}", name)
    ada = StoreClient(writer.http, secrets["ada"])
    await _create_rules(ada)
    await _create_credentials_and_files(ada, root)
    await _receive_messages(writer)
    await _change_mailboxes_and_messages(ada)
    await _write_and_send_messages(ada, root)
    await _create_legal_hold_and_deleted_user(root)
    while await tasks.run_next_task(writer.environment):
        pass
    while await index_worker.index_next_batch_and_record_contacts(writer.environment):
        pass
    return secrets


async def _create_domain_and_users(root: StoreClient) -> None:
    await root.mutate(
        "domainCreate", name="example.org", createDkim=False, description="Ponds", tags=["pond"]
    )
    domain = {"name": "example.org"}
    await root.mutate("aliasDomainCreate", alias="example.net", domain=domain)
    await root.mutate("dkimKeySet", domains=[domain], selector="first", algorithm="ED25519")
    for name in (*USERNAMES, DELETED_USERNAME):
        await root.mutate(
            "userCreate",
            username=name,
            address=f"{name}@example.org",
            password=PASSWORD,
            name=name.title(),
            tags=["duck", "Straße"],
            metadata={"number": 7, "nested": {"list": [1, None, "ä"]}},
        )
    ada = {"username": "ada"}
    await root.mutate("addressCreate", address="sales@example.org", user=ada, name="Sales")
    await root.mutate("addressCreate", address="info@example.org", forwardTo=["dave@example.com"])
    await root.mutate(
        "resourceCreate",
        name="Meeting Room 1",
        domain=domain,
        kind="LOCATION",
        bookingPolicy="LIMITED",
        bookingLimit=1,
    )


async def _create_rules(ada: StoreClient) -> None:
    await ada.mutate("mailboxCreate", paths=["Clients/Eve", "News", "Ältere Post"])
    await ada.mutate("mailboxUpdate", mailboxes=[{"path": "News"}], set={"retention": "P3650D"})
    await ada.mutate(
        "filterCreate",
        name="Lists",
        query={"from": "list@example.com", "not": [{"subject": "urgent"}]},
        action={"seen": True, "keywords": ["news"], "mailbox": {"path": "News"}},
    )
    await ada.mutate("filterCreate", name="Big", query={"larger": 9000}, action={"flag": True})
    script = 'require "fileinto";\nif header :is "X-Pond" "deep" { fileinto "Clients"; }\n'
    await ada.mutate("sieveScriptSet", name="main", content=script)
    await ada.mutate("autoreplySet", set={"enabled": False, "subject": "Away", "text": "Away."})
    await ada.mutate(
        "identityCreate", address="ada@example.org", name="Ada L.", signatureText="-- Ada"
    )
    await ada.mutate("labelCreate", keyword="invoices", name="Invoices", color="#336699")
    await ada.mutate("savedSearchCreate", name="Unread ducks", filter={"seen": False})
    server = {"host": "imap.example.com", "username": "ada@example.com", "password": "far-away"}
    await ada.mutate("connectorCreate", server=server, interval=None, name="Old account")
    mailbox = {"path": "Clients"}
    await ada.mutate("mailboxShareSet", mailbox=mailbox, user={"username": "bob"}, rights=["READ"])
    await ada.mutate("mailboxAnnotationSet", mailbox=mailbox, key="/private/comment", value="Old")


async def _create_credentials_and_files(ada: StoreClient, root: StoreClient) -> None:
    await root.mutate("totpImport", user={"username": "bob"}, secret=TOTP_SECRET)
    user = {"username": "ada"}
    await root.mutate("webhookCreate", user=user, url="https://hooks.example.com/ada", active=False)
    await ada.mutate("appPasswordCreate", description="Phone", scopes=["IMAP", "SMTP"])
    await ada.mutate("keyValueSet", key="ui/theme", value="dark")
    payload = await ada.mutate(
        "fileUpload", "file { id }", filename="pond.txt", content={"text": "Ducks.\n" * 50}
    )
    await ada.mutate("fileShareCreate", file={"id": payload["file"]["id"]}, password=PASSWORD)


def _received_message(number: int, sender: str, subject: str) -> bytes:
    """A message; every third is a reply to the one before, so that threads exist."""
    fields = [
        f"From: {sender}",
        "To: ada@example.org",
        f"Subject: {subject}",
        f"Date: Tue, {number:02} Sep 2026 10:00:00 +0000",
        f"Message-ID: <{number}@released.example.com>",
    ]
    if number % 3 == 0:
        fields.append(f"In-Reply-To: <{number - 1}@released.example.com>")
    return "\r\n".join([*fields, "", f"Number {number} of the ducks.", ""]).encode()


async def _receive_messages(writer: StoreWriter) -> None:
    """Deliver to ada, bob and eve by LMTP. The subjects differ by case, accents and script."""
    senders = ("Carol <carol@example.com>", "The list <list@example.com>", "ÄRNE <a@example.com>")
    subjects = ("Hello", "hello", "Re: hello", "Ähre", "STRASSE", "Straße", "池", "", "urgent")
    for number in range(1, 19):
        subject = subjects[number % len(subjects)]
        raw = _received_message(number, senders[number % len(senders)], subject)
        recipients = [f"{name}@example.org" for name in USERNAMES]
        replies = await deliver_by_lmtp(
            writer.environment, writer.folder / "spool", raw, *recipients
        )
        assert all(reply.startswith("250 ") for reply in replies), replies


async def _change_mailboxes_and_messages(ada: StoreClient) -> None:
    raw = "From: a@example.com\r\nSubject: Imported\r\n\r\nFrom elsewhere.\r\n"
    clients = {"path": "Clients/Eve"}
    await ada.mutate("messageImport", mailbox=clients, raw=raw, keywords=["invoices"], flagged=True)
    data = await ada.execute(
        '{ viewer { user { mailbox(by: {path: "INBOX"}) { messages(first: 100) '
        "{ nodes { id } } } } } }"
    )
    nodes = data["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    ids = sorted(node["id"] for node in nodes)
    flags: Any = {"seen": True, "flagged": True, "addFlags": ["$important"]}
    await ada.mutate("messageUpdate", select={"ids": ids[:3]}, set=flags)
    await ada.mutate("messageMove", select={"ids": ids[3:5]}, to={"path": "Clients"})
    await ada.mutate("messageDelete", select={"ids": ids[5:7]})
    await ada.mutate("messageDelete", select={"ids": ids[7:8]}, permanent=True)


async def _write_and_send_messages(ada: StoreClient, root: StoreClient) -> None:
    file = {"content": "RHVja3Mu", "filename": "ducks.txt", "contentType": "text/plain"}
    to = [{"address": "carol@example.com", "name": "Carol"}]
    patch = {"subject": "Draft", "text": "Not yet.", "to": to, "addAttachments": [file]}
    await ada.mutate("draftSave", set=patch)
    payload = await ada.mutate(
        "messageSend", "submissions { queueId }", to=to, subject="Sent", text="Quack."
    )
    queue_id = payload["submissions"][0]["queueId"]
    await ada.mutate("messageSend", to=[*to, {"address": "bob@example.org"}], text="To two.")
    await root.mutate("queueHold", queueEntries=[{"queueId": queue_id}])


async def _create_legal_hold_and_deleted_user(root: StoreClient) -> None:
    await root.mutate(
        "legalHoldCreate", user={"username": "eve"}, expiresAt=LEGAL_HOLD_END, reason="As ordered"
    )
    await root.mutate("userDelete", users={"usernames": [DELETED_USERNAME]})
