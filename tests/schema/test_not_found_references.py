"""What errors call an object that was not found: what the client called it, not its key."""

from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import Client

KEY = 77_777  # nobody's


def unknown(kind: str) -> str:
    return str(global_ids.encode(kind, KEY))


BOX = {"id": unknown("Mailbox")}
MESSAGE, USER = unknown("Message"), unknown("User")
CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("messageUpdate", {"select": {"ids": [MESSAGE]}, "set": {"seen": True}}, MESSAGE),
    ("messageUpdate", {"select": {"mailbox": BOX}, "set": {"seen": True}}, BOX["id"]),
    ("messageMove", {"select": {"all": True}, "to": BOX}, BOX["id"]),
    ("mailboxUpdate", {"mailboxes": [{"path": "Sent"}, BOX], "set": {"hidden": True}}, BOX["id"]),
    ("mailboxDelete", {"mailboxes": [BOX]}, BOX["id"]),
    ("mailboxDelete", {"mailboxes": [{"path": "None"}]}, "None"),
    ("mailboxRename", {"mailbox": BOX, "newPath": "New"}, BOX["id"]),
    ("filterDelete", {"ids": [unknown("Filter")]}, unknown("Filter")),
    (
        "filterCreate",
        {"query": {}, "action": {"copyTo": [{"path": "INBOX"}, BOX]}},
        BOX["id"],
    ),
    ("filterCreate", {"query": {}, "action": {"webhook": unknown("Webhook")}}, unknown("Webhook")),
    ("userDelete", {"users": {"ids": [USER]}}, USER),
    ("filterCreate", {"user": {"id": USER}, "query": {}, "action": {"seen": True}}, USER),
]


@pytest.mark.parametrize(("name", "given", "ref"), CALLS)
async def test_what_is_not_found_is_named_as_the_client_named_it(
    root: Client, ada: Client, name: str, given: dict[str, Any], ref: str
) -> None:
    asked = f"""mutation ($input: {name[0].upper()}{name[1:]}Input!) {{
      {name}(input: $input) {{ errors {{ code message ... on NotFoundError {{ ref }} }} }} }}"""
    asked = asked.replace("FilterDeleteInput", "IdsInput")
    client = root if USER in str(given) else ada
    (error,) = (await client(asked, input=given))[name]["errors"]
    assert (error["code"], error["ref"]) == ("NOT_FOUND", ref)
    assert str(KEY) not in str(error)
