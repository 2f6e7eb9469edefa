"""Quarantined messages for tests."""

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
from models.runtime.environment import CommittedOptions, Environment
from models.spam.quarantine import QuarantineItem
from models.store.columns import ColumnRow, core_table
from tests.conftest import GraphQLClient, raw_message
from tests.support.operations.domain_operations import ERRORS
from tests.support.sample_mutations.mutation_call import MutationCall

QUARANTINE_ITEM_FIELDS = """id queueId user { username } domain { name } sender recipient
  subject score symbols { name score description } virus virusName createdAt notified expiresAt"""
QUARANTINE_QUERY = f"""query ($filter: QuarantineFilter, $first: Int, $after: String) {{
  quarantine(filter: $filter, first: $first, after: $after) {{
    nodes {{ {QUARANTINE_ITEM_FIELDS} }} totalCount pageInfo {{ endCursor hasNextPage }} }} }}"""
QUARANTINE_ITEM_QUERY = "query ($id: ID!) { node(id: $id) { ... on QuarantineItem { subject } } }"
QUARANTINE_RELEASE = f"""mutation ($input: QuarantineReleaseInput!) {{
  quarantineRelease(input: $input) {{
    messages {{ subject mailbox {{ path }} seen envelope {{ from recipients {{ value }} }} }}
    {ERRORS} }} }}"""
QUARANTINE_RELEASE_ERRORS = f"""mutation ($input: QuarantineReleaseInput!) {{
  quarantineRelease(input: $input) {{ {ERRORS} }} }}"""
QUARANTINE_DELETE = f"""mutation ($input: QuarantineDeleteInput!) {{
  quarantineDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
USER_UPDATE = f"""mutation ($input: UserUpdateInput!) {{
  userUpdate(input: $input) {{
    users {{ username quarantineNotification }} {ERRORS} }} }}"""
QUARANTINE_CONTENTS_QUERY = """query ($id: ID!) { node(id: $id) { ... on QuarantineItem {
  text sourceUrl attachments { filename size contentType url text
    message { subject attachments { filename url } } } } } }"""
INBOX_MESSAGES_QUERY = """{ viewer { user { mailbox(by: {path: "INBOX"}) {
  messages(first: 50) { nodes { subject rawSource } } } } } }"""
CAROL_ADDRESS = "carol@example.com"
SPAM_HEADERS = {"X_Rspamd_Action": "reject"}  # a score of 75
QUARANTINE_REASON = QuarantineReason(
    14.5, (SpamScanSymbol("BAYES_SPAM", 5.1, "Looks like spam"), SpamScanSymbol("R_BAD", 9.4))
)


async def load_quarantine_rows(environment: Environment) -> list[ColumnRow]:
    """Read the rows of all quarantined messages, by id."""
    table = core_table(QuarantineItem)
    async with environment.database.engine.connect() as connection:
        return list((await connection.execute(select(table).order_by(table.c.id))).all())


async def quarantine_message(
    client: GraphQLClient,
    raw: bytes | str = "Offer",
    reason: QuarantineReason = QUARANTINE_REASON,
    sender: str = CAROL_ADDRESS,
    address: str = "",
) -> str:
    """Quarantine a message and return its global ID.

    A text is the subject of a new message. The default address is that of the client.
    """
    message = raw_message(raw) if isinstance(raw, str) else raw
    incoming = await pipeline.read_and_verify_incoming(client.environment, message, sender)
    recipient = await address_resolution.load_recipient_below_limits(
        client.environment, address or client.address
    )
    await quarantine.quarantine_message(client.environment, incoming, recipient, reason)
    return global_ids.encode(
        "QuarantineItem", (await load_quarantine_rows(client.environment))[-1].id
    )


async def deliver_message_to(
    environment: Environment, *clients: GraphQLClient, raw: bytes, sender: str = CAROL_ADDRESS
) -> list[Any]:
    """Deliver a message by the listener backend and return the result for each recipient."""
    backend = LocalBackend(environment)
    recipients = [await backend.accept_recipient(client.address, sender) for client in clients]
    return list(await backend.deliver(raw, recipients, sender))


def set_options(environment: Environment, **options: Any) -> None:
    """Change options of the environment."""
    environment.use_options_unless_outdated(
        CommittedOptions(replace(environment.options, **options), environment.options_position + 1)
    )


async def list_quarantined_subjects(client: GraphQLClient, **filter_fields: Any) -> list[str]:
    """List the subjects of the quarantined messages that a user sees."""
    page = (await client(QUARANTINE_QUERY, filter=filter_fields or None))["quarantine"]
    subjects = [node["subject"] for node in page["nodes"]]
    assert page["totalCount"] == len(subjects)
    return subjects


async def list_inbox_subjects(client: GraphQLClient) -> list[str]:
    """List the subjects of the messages in the INBOX."""
    nodes = (await client(INBOX_MESSAGES_QUERY))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    return [node["subject"] for node in nodes]


def delivery_header_fields(client: GraphQLClient) -> bytes:
    """The header fields that are added before a message from Carol when it is delivered."""
    address = client.address
    recipient_fields = f"Delivered-To: {address}\r\nX-Original-Rcpt: {address}\r\n"
    return f"Return-Path: <{CAROL_ADDRESS}>\r\n{recipient_fields}".encode()


async def set_permissions_of_ada(root: GraphQLClient, *permissions: str) -> None:
    """Give ada exactly these permissions."""
    input_fields = {"users": {"usernames": ["ada"]}, "permissions": permissions}
    assert (await MutationCall("userPermissionsSet", input_fields)(root))["errors"] == []


def make_mixed_message() -> bytes:
    """A message with a text, an attachment large enough for a blob of its own, and a message."""
    attached_message = (
        "Subject: Inner\r\nContent-Type: application/x-thing; name=i.bin\r\n\r\nabc\r\n"
    )
    attached_image = base64.encodebytes(bytes(range(256)) * 20).decode().replace("\n", "\r\n")
    return (
        "From: Carol <carol@example.com>\r\nTo: ada@example.org\r\nSubject: Mixed\r\n"
        "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        "--b\r\nContent-Type: text/plain\r\n\r\nLook at this.\r\n"
        "--b\r\nContent-Type: image/png\r\n"
        "Content-Disposition: attachment; filename=a.png\r\n"
        f"Content-Transfer-Encoding: base64\r\n\r\n{attached_image}\r\n"
        "--b\r\nContent-Type: message/rfc822\r\nContent-Disposition: attachment\r\n\r\n"
        f"{attached_message}\r\n--b--\r\n"
    ).encode()
