"""Limits of settings: LIMIT_REACHED with the limit and the used number."""

from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.message_sources import save_draft
from tests.support.operations.quarantine_operations import set_options

RECIPIENTS = [{"address": f"{name}@example.net"} for name in "ab"]
TWO_ADDRESSES = [recipient["address"] for recipient in RECIPIENTS]
MESSAGE_FIELDS = {
    "subject": "Hi",
    "text": "Hello",
    "to": RECIPIENTS[:1],
    "cc": RECIPIENTS[1:],
}
DRAFTS_MAILBOX = {"mailbox": {"specialUse": "DRAFTS"}}
RAW_MESSAGE = raw_message("Long", body="x" * 500).decode()
INBOX = {"mailbox": {"path": "INBOX"}}

LIMIT_CASES: list[tuple[str, int, str, dict[str, Any], list[str], int]] = [
    ("submission_max_recipients", 1, "messageSend", MESSAGE_FIELDS, ["to"], 2),
    ("submission_max_recipients", 1, "messageRedirect",
     {"message": {"id": "@"}, "to": TWO_ADDRESSES},
     ["to"], 2),
    ("submission_max_recipients", 1, "composeRequestCreate", {"to": RECIPIENTS}, ["to"], 2),
    ("bulk_max_items", 1, "domainUpdate", {"domains": [{"name": "a"}, {"name": "b"}],
                                 "set": {"active": True}}, ["domains"], 2),
    ("bulk_max_items", 1, "aliasDomainDelete", {"aliasDomains": [{"alias": "a.example"}] * 2},
     ["aliasDomains"], 2),
    ("bulk_max_items", 1, "addressUpdate",
     {"addresses": RECIPIENTS, "set": {"name": "X"}}, ["addresses"], 2),
    ("bulk_max_items", 1, "addressDelete", {"addresses": RECIPIENTS},
     ["addresses"], 2),
    ("bulk_max_items", 1, "mailboxDelete",
     {"mailboxes": [{"path": "A"}, {"path": "B"}]}, ["mailboxes"], 2),
    ("bulk_max_items", 1, "mailboxSubscribe", {"mailboxes": [{"path": "A"}, {"path": "B"}]},
     ["mailboxes"], 2),
    ("bulk_max_items", 1, "mailboxUpdate", {"mailboxes": [{"path": "A"}, {"path": "B"}],
                                  "set": {"subscribed": True}}, ["mailboxes"], 2),
    ("bulk_max_items", 1, "queueDelete", {"queueEntries": [{"queueId": "a"}, {"queueId": "b"}]},
     ["queueEntries"], 2),
    ("bulk_max_items", 1, "userUpdate", {"users": {"usernames": ["a", "b"]}, "set": {"name": "X"}},
     ["users", "usernames"], 2),
    ("bulk_max_items", 1, "quarantineDelete",
     {"quarantineItems": [{"id": global_ids.encode("QuarantineItem", 7)}] * 2},
     ["quarantineItems"], 2),
    ("message_max_size", 100, "messageImport",
     {**INBOX, "raw": RAW_MESSAGE}, ["raw"], len(RAW_MESSAGE)),
    ("message_max_size", 100, "messageSend", {**MESSAGE_FIELDS, "attachments": [
        {"filename": "a", "content": "x" * 500}]}, ["attachments"], 300),
    ("upload_max_size", 100, "fileUpload", {"filename": "a", "content": {"text": "x" * 500}},
     ["content"], 500),
    ("upload_max_size", 100, "userImport", {"archive": {"text": "x" * 500}}, ["archive"], 500),
]  # fmt: skip


@pytest.mark.parametrize(("option", "limit", "mutation", "arguments", "path", "used"), LIMIT_CASES)
async def test_limit_of_setting_is_reported_with_limit_and_used(  # noqa: PLR0913, PLR0917
    root: GraphQLClient,
    ada: GraphQLClient,
    option: str,
    limit: int,
    mutation: str,
    arguments: dict[str, Any],
    path: list[str],
    used: int,
) -> None:
    message = (await deliver_to(ada, "Hello")).message_id
    if "message" in arguments:
        arguments = {**arguments, "message": {"id": global_ids.encode("Message", message)}}
    set_options(ada.environment, **{option: limit})
    client = root if mutation.startswith(("domain", "aliasDomain")) else ada
    (error,) = (await execute_mutation(client, mutation, "replayed", **arguments))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", path)
    assert (error["limit"], error["used"] >= used) == (limit, True)


async def test_recipient_limit_applies_to_drafts_when_sent(ada: GraphQLClient) -> None:
    set_options(ada.environment, submission_max_recipients=1)
    saved = await save_draft(ada, **MESSAGE_FIELDS, replyTo=RECIPIENTS)
    assert saved["errors"] == []
    draft_ref = {"id": saved["message"]["id"]}
    assert (await save_draft(ada, draft=draft_ref, subject="Hi again"))["errors"] == []
    draft = {"message": {"id": saved["message"]["id"]}}
    (error,) = (await execute_mutation(ada, "draftSend", "replayed", **draft))["errors"]
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 1, 2)
    set_options(ada.environment, submission_max_recipients=2)
    assert (await execute_mutation(ada, "draftSend", "replayed", **draft))["errors"] == []
