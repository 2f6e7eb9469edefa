"""A limit that a setting moves answers LIMIT_REACHED, with the limit and what was asked for."""

from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import Client, raw_message, receive
from tests.support.accounts.user_operations import run
from tests.support.operations.quarantine_operations import set_options

TWO = [{"address": f"{name}@example.net"} for name in "ab"]
BOTH = [one["address"] for one in TWO]
FIELDS = {"subject": "Hi", "text": "Hello", "to": TWO[:1], "cc": TWO[1:]}
DRAFTS = {"mailbox": {"specialUse": "DRAFTS"}}
RAW = raw_message("Long", body="x" * 500).decode()
MAILBOX = {"mailbox": {"path": "INBOX"}}

CASES: list[tuple[str, int, str, dict[str, Any], list[str], int]] = [
    ("max_recipients", 1, "messageSend", FIELDS, ["to"], 2),
    ("max_recipients", 1, "messageForward", {"message": {"id": "@"}, "addresses": BOTH},
     ["addresses"], 2),
    ("max_recipients", 1, "messageUpload", {**MAILBOX, **FIELDS}, ["to"], 2),
    ("max_recipients", 1, "composeRequest", {"to": TWO}, ["to"], 2),
    ("bulk", 1, "domainUpdate", {"domains": [{"name": "a"}, {"name": "b"}],
                                 "set": {"active": True}}, ["domains"], 2),
    ("bulk", 1, "domainAliasDelete", {"ids": ["@DomainAlias"] * 2}, ["ids"], 2),
    ("bulk", 1, "addressUpdate", {"addresses": TWO, "set": {"name": "X"}}, ["addresses"], 2),
    ("bulk", 1, "addressDelete", {"ids": ["@Address"] * 2}, ["ids"], 2),
    ("bulk", 1, "mailboxDelete", {"mailboxes": [{"path": "A"}, {"path": "B"}]}, ["mailboxes"], 2),
    ("bulk", 1, "mailboxSubscribe", {"paths": ["A", "B"]}, ["paths"], 2),
    ("bulk", 1, "mailboxUpdate", {"mailboxes": [{"path": "A"}, {"path": "B"}],
                                  "set": {"subscribed": True}}, ["mailboxes"], 2),
    ("bulk", 1, "queueDelete", {"queueIds": ["a", "b"]}, ["queueIds"], 2),
    ("bulk", 1, "userUpdate", {"users": {"usernames": ["a", "b"]}, "set": {"name": "X"}},
     ["users", "usernames"], 2),
    ("bulk", 1, "quarantineDelete", {"ids": ["@QuarantineItem"] * 2}, ["ids"], 2),
    ("message_max", 100, "messageUpload", {**MAILBOX, "raw": RAW}, ["raw"], len(RAW)),
    ("message_max", 100, "messageSend", {**FIELDS, "attachments": [
        {"filename": "a", "content": "x" * 500}]}, ["attachments"], 300),
    ("upload_max", 100, "fileUpload", {"filename": "a", "content": {"text": "x" * 500}},
     ["content"], 500),
    ("upload_max", 100, "accountImport", {"archive": {"text": "x" * 500}}, ["archive"], 500),
]  # fmt: skip
BY_IDS = {"domainAliasDelete", "addressDelete", "quarantineDelete"}


async def answer(client: Client, mutation: str, given: dict[str, Any]) -> Any:
    if mutation not in BY_IDS:
        return await run(client, mutation, "replayed", **given)
    document = f"""mutation ($input: IdsInput!) {{ {mutation}(input: $input) {{
      errors {{ code path ... on LimitReachedError {{ limit used }} }} }} }}"""
    return (await client(document, input=given))[mutation]


@pytest.mark.parametrize(("option", "limit", "mutation", "given", "path", "used"), CASES)
async def test_a_limit_of_a_setting_answers_limit_and_used(  # noqa: PLR0913, PLR0917
    root: Client,
    ada: Client,
    option: str,
    limit: int,
    mutation: str,
    given: dict[str, Any],
    path: list[str],
    used: int,
) -> None:
    message = (await receive(ada, "Hello")).message_id
    if "ids" in given:
        given = {"ids": [global_ids.encode(one[1:], 7 + n) for n, one in enumerate(given["ids"])]}
    if "message" in given:
        given = {**given, "message": {"id": global_ids.encode("Message", message)}}
    set_options(ada.world, **{option: limit})
    client = root if mutation.startswith("domain") else ada
    (error,) = (await answer(client, mutation, given))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", path)
    assert (error["limit"], error["used"] >= used) == (limit, True)


async def test_a_draft_has_any_number_of_recipients_until_it_is_sent(ada: Client) -> None:
    set_options(ada.world, max_recipients=1)
    given = {**DRAFTS, **FIELDS, "draft": True, "replyTo": TWO}
    saved = await run(ada, "messageUpload", "message { id }", **given)
    assert saved["errors"] == []
    again = {**given, "replacePrevious": {"id": saved["message"]["id"]}, "subject": "Hi again"}
    saved = await run(ada, "messageUpload", "message { id }", **again)
    assert saved["errors"] == []
    kept = await run(ada, "messageSend", "message { id }", **FIELDS, isDraft=True)
    assert kept["errors"] == []
    draft = {"message": {"id": saved["message"]["id"]}}
    (error,) = (await run(ada, "messageSubmit", "replayed", **draft))["errors"]
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 1, 2)
    set_options(ada.world, max_recipients=2)
    assert (await run(ada, "messageSubmit", "replayed", **draft))["errors"] == []
