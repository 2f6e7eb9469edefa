"""NotFound errors name an object as the client did, not by its database key."""

from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import GraphQLClient
from tests.support.reference.errors.documented_errors import assert_errors_are_documented

UNKNOWN_KEY = 77_777  # the key of no row


def unknown_id(kind: str) -> str:
    return str(global_ids.encode(kind, UNKNOWN_KEY))


UNKNOWN_MAILBOX = {"id": unknown_id("Mailbox")}
MESSAGE, USER = unknown_id("Message"), unknown_id("User")
CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("messageUpdate", {"select": {"ids": [MESSAGE]}, "set": {"seen": True}}, MESSAGE),
    (
        "messageUpdate",
        {"select": {"mailbox": UNKNOWN_MAILBOX}, "set": {"seen": True}},
        UNKNOWN_MAILBOX["id"],
    ),
    ("messageMove", {"select": {"all": True}, "to": UNKNOWN_MAILBOX}, UNKNOWN_MAILBOX["id"]),
    (
        "mailboxUpdate",
        {"mailboxes": [{"path": "Sent"}, UNKNOWN_MAILBOX], "set": {"hidden": True}},
        UNKNOWN_MAILBOX["id"],
    ),
    ("mailboxDelete", {"mailboxes": [UNKNOWN_MAILBOX]}, UNKNOWN_MAILBOX["id"]),
    ("mailboxDelete", {"mailboxes": [{"path": "None"}]}, "None"),
    ("mailboxRename", {"mailbox": UNKNOWN_MAILBOX, "newPath": "New"}, UNKNOWN_MAILBOX["id"]),
    ("filterDelete", {"filters": [{"id": unknown_id("Filter")}]}, unknown_id("Filter")),
    (
        "filterCreate",
        {"query": {}, "action": {"copyTo": [{"path": "INBOX"}, UNKNOWN_MAILBOX]}},
        UNKNOWN_MAILBOX["id"],
    ),
    (
        "filterCreate",
        {"query": {}, "action": {"webhook": {"id": unknown_id("Webhook")}}},
        unknown_id("Webhook"),
    ),
    ("userDelete", {"users": {"ids": [USER]}}, USER),
    ("filterCreate", {"user": {"id": USER}, "query": {}, "action": {"seen": True}}, USER),
]


@pytest.mark.parametrize(("name", "input_", "ref"), CALLS)
async def test_not_found_error_contains_reference_of_client(
    root: GraphQLClient, ada: GraphQLClient, name: str, input_: dict[str, Any], ref: str
) -> None:
    document = f"""mutation ($input: {name[0].upper()}{name[1:]}Input!) {{
      {name}(input: $input) {{ errors {{ code message ... on NotFoundError {{ ref }} }} }} }}"""
    client = root if USER in str(input_) else ada
    data = await client(document, input=input_)
    (error,) = assert_errors_are_documented(document, {"data": data})["data"][name]["errors"]
    assert (error["code"], error["ref"]) == ("NOT_FOUND", ref)
    assert str(UNKNOWN_KEY) not in str(error)
