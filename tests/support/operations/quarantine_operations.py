"""Mail that is held, for tests."""

import base64
from dataclasses import replace
from typing import Any

from sqlalchemy import select

from graph.types import global_ids
from mail.delivery import pipeline, quarantine
from mail.delivery.listener_backend import LocalBackend
from mail.delivery.quarantine import QuarantineReason
from mail.recipients import address_resolution
from mail.spam.scan_result import SpamScanSymbol
from models.events.journal import ChangeKind
from models.runtime.environment import CommittedOptions, Environment
from models.spam.quarantine import QuarantineItem
from models.store.columns import ColumnRow, core_table
from tests.conftest import Client, raw_message
from tests.support.operations.domain_operations import ERRORS
from tests.support.sample_mutations.mutation_call import Call

KIND = ChangeKind.QUARANTINE_CHANGED
SHOWN = """id queueId user { username } domain { name } sender recipient subject score
  symbols { name score description } virus virusName createdAt notified expiresAt"""
LIST = f"""query ($filter: QuarantineFilter, $first: Int, $after: String) {{
  quarantine(filter: $filter, first: $first, after: $after) {{
    nodes {{ {SHOWN} }} totalCount pageInfo {{ endCursor hasNextPage }} }} }}"""
NODE = "query ($id: ID!) { node(id: $id) { ... on QuarantineItem { subject } } }"
RELEASE = f"""mutation ($input: QuarantineReleaseInput!) {{ quarantineRelease(input: $input) {{
    messages {{ subject mailbox {{ path }} seen envelope {{ from rcpt {{ value }} }} }}
    {ERRORS} }} }}"""
TRY = f"""mutation ($input: QuarantineReleaseInput!) {{
  quarantineRelease(input: $input) {{ {ERRORS} }} }}"""
DELETE = f"""mutation ($input: IdsInput!) {{
  quarantineDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
OFTEN = f"""mutation ($input: QuarantineNotificationSetInput!) {{
  quarantineNotificationSet(input: $input) {{
    users {{ username quarantineNotification }} {ERRORS} }} }}"""
LOOK = """query ($id: ID!) { node(id: $id) { ... on QuarantineItem {
  text sourceUrl attachments { filename size contentType url text
    message { subject attachments { filename url } } } } } }"""
INBOX = """{ viewer { user { mailbox(by: {path: "INBOX"}) {
  messages(first: 50) { nodes { subject source } } } } } }"""
CAROL = "carol@example.com"
SPAM = {"X_Rspamd_Action": "reject"}  # a score of 75
WHY = QuarantineReason(
    14.5, (SpamScanSymbol("BAYES_SPAM", 5.1, "Looks like spam"), SpamScanSymbol("R_BAD", 9.4))
)


async def held(world: Environment) -> list[ColumnRow]:
    """All that is held, in the order of keys."""
    table = core_table(QuarantineItem)
    async with world.database.engine.connect() as connection:
        return list((await connection.execute(select(table).order_by(table.c.id))).all())


async def hold(
    client: Client,
    raw: bytes | str = "Offer",
    why: QuarantineReason = WHY,
    sender: str = CAROL,
    address: str = "",
) -> str:
    """Hold a message; its id. A text is its subject, and it is for the client's usual address."""
    message = raw_message(raw) if isinstance(raw, str) else raw
    mail = await pipeline.read_incoming(client.world, message, sender)
    to = await address_resolution.load_recipient(client.world, address or client.address)
    await quarantine.quarantine_message(client.world, mail, to, why)
    return global_ids.encode("QuarantineItem", (await held(client.world))[-1].id)


async def come(world: Environment, *to: Client, raw: bytes, sender: str = CAROL) -> list[Any]:
    """What became of a message that a neighbour brought."""
    house = LocalBackend(world)
    there = [await house.accept_recipient(client.address, sender) for client in to]
    return list(await house.deliver(raw, there, sender))


def set_options(world: Environment, **given: Any) -> None:
    """Let other options be in force."""
    world.apply_options(
        CommittedOptions(replace(world.options, **given), world.options_position + 1)
    )


async def listed(client: Client, **filter: Any) -> list[str]:
    """Subjects of what one sees."""
    page = (await client(LIST, filter=filter or None))["quarantine"]
    found = [node["subject"] for node in page["nodes"]]
    assert page["totalCount"] == len(found)
    return found


async def inbox(client: Client) -> list[str]:
    nodes = (await client(INBOX))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    return [node["subject"] for node in nodes]


def stamps(client: Client) -> bytes:
    """What stands before a message that is let in for this one, and came from Carol."""
    to = client.address
    return f"Return-Path: <{CAROL}>\r\nDelivered-To: {to}\r\nX-Original-Rcpt: {to}\r\n".encode()


async def permit(root: Client, *permissions: str) -> None:
    """Let ada change this, and nothing else."""
    given = {"users": {"usernames": ["ada"]}, "permissions": permissions}
    assert (await Call("userPermissionsSet", given)(root))["errors"] == []


def mixed() -> bytes:
    """A message with a text, a file that is large enough to lie apart, and a message."""
    inner = "Subject: Inner\r\nContent-Type: application/x-thing; name=i.bin\r\n\r\nabc\r\n"
    large = base64.encodebytes(bytes(range(256)) * 20).decode().replace("\n", "\r\n")
    return (
        "From: Carol <carol@example.com>\r\nTo: ada@example.org\r\nSubject: Mixed\r\n"
        "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        "--b\r\nContent-Type: text/plain\r\n\r\nLook at this.\r\n"
        "--b\r\nContent-Type: image/png\r\n"
        "Content-Disposition: attachment; filename=a.png\r\n"
        f"Content-Transfer-Encoding: base64\r\n\r\n{large}\r\n"
        "--b\r\nContent-Type: message/rfc822\r\nContent-Disposition: attachment\r\n\r\n"
        f"{inner}\r\n--b--\r\n"
    ).encode()
