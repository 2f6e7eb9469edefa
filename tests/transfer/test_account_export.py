"""Accounts as files: made, fetched and brought in again, on the same server or another."""

import io
import json
import zipfile
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from resolvers.admin import tasks
from resolvers.auth import authentication
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import Client, Clock, context, make_client, make_key, raw_message, receive
from tests.support.accounts.account_exports import (
    EXPORT,
    FULL,
    HOSTILE,
    TASK,
    codes,
    exported,
    furnish,
    imported,
    listed,
    node,
    place,
    told,
)
from tests.support.accounts.identity_operations import known, made, whitelist
from tests.support.accounts.user_operations import chief, id_of, row_of, run
from tests.support.operations import filter_operations
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("examined")


# there and back


@pytest.mark.parametrize("kind", FULL)
async def test_an_account_comes_back_as_it_was(
    ada: Client, bob: Client, clock: Clock, kind: str
) -> None:
    await furnish(ada, clock)
    before = await told(ada)
    export = await exported(ada, format=kind)
    assert (export["state"], export["format"]) == ("SUCCEEDED", kind)
    assert export["user"] == {"username": "ada"}
    many = len(before["mail"])
    assert (export["task"]["done"], export["task"]["total"]) == (many, many)
    task = await imported(bob, export["content"])
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    assert (task["done"], task["total"]) == (many, many)
    assert task["result"] == {
        "changed": many, "stored": many, "known": 0, "untold": 0, "refused": [],
    }  # fmt: skip
    assert await told(bob) == before
    again = (await imported(bob, export["content"]))["result"]
    assert (again["stored"], again["known"]) == (0, many)
    assert await told(bob) == before
    twice = (await imported(bob, export["content"], skipKnown=False))["result"]
    assert (twice["stored"], twice["known"]) == (many, 0)


async def test_labels_come_along_and_what_is_snoozed_is_in_the_inbox(
    ada: Client, bob: Client, clock: Clock
) -> None:
    placed = await receive(ada, "Later")
    until = (clock() + timedelta(days=2)).isoformat()
    snooze = {"select": {"ids": [global_ids.encode("Message", placed.message_id)]}}
    document = """mutation ($input: MessageUpdateInput!) { messageUpdate(input: $input) {
        updatedCount errors { message } } }"""
    done = await ada(document, input={**snooze, "set": {"snoozedUntil": until}})
    assert done["messageUpdate"] == {"updatedCount": 1, "errors": []}
    set_ = """mutation ($input: LabelSetInput!) { labelSet(input: $input) {
        errors { message } } }"""
    for keyword, color in (("work", "#1e90ff"), ("home", None)):
        given = {"keyword": keyword, "name": f"At {keyword}", "color": color}
        assert (await ada(set_, input=given))["labelSet"] == {"errors": []}
    asked = """{ viewer { user { labels { keyword name color }
        messages { nodes { subject snoozedUntil mailbox { path } } } } } }"""
    before = (await ada(asked))["viewer"]["user"]
    assert len(before["labels"]) == 2
    assert before["messages"]["nodes"][0]["snoozedUntil"]
    task = await imported(bob, (await exported(ada, format="JSON"))["content"])
    assert (task["result"]["stored"], task["result"]["refused"]) == (1, [])
    after = (await bob(asked))["viewer"]["user"]
    assert after["labels"] == before["labels"]
    assert after["messages"]["nodes"] == [
        {"subject": "Later", "snoozedUntil": None, "mailbox": {"path": "INBOX"}}
    ]


async def test_identities_come_along_as_far_as_they_may_be_sent_as(
    ada: Client, bob: Client
) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Letters"]))
    for client in (ada, bob):
        await whitelist(client, "*@example.net")
    said = {
        "name": "Ada", "default": True, "replyTo": "a@example.net", "bcc": ["b@example.net"],
        "signatureText": "-- \nAda", "signatureHtml": "<b>Ada</b>",
        "sentMailbox": {"path": "Letters"},
    }  # fmt: skip
    whole = await made(ada, "ada@example.net", **said)
    await made(ada, "x@example.net")
    await made(ada, ada.address, name="Ada")
    for _ in range(2):  # the second time there is nothing to change
        task = await imported(bob, (await exported(ada, format="JSON"))["content"])
        refused = [f"identity {ada.address}", "the user may not send as this address"]
        assert task["result"]["refused"] == [refused]
        there = await known(bob)
        after = there.pop("ada@example.net")
        assert after == {**whole, "id": after["id"]}
        assert set(there) == {"x@example.net", bob.address}


async def test_filters_come_along_without_passwords(ada: Client, bob: Client) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Lists"]))
    where = {"mailbox": {"path": "Lists"}, "copyTo": [{"path": "Sent"}], "labels": ["x"]}
    query = {"from": "a", "any": [{"size": 5}, {"not": [{"header": {"key": "X"}}]}]}
    one = await filter_operations.made(
        ada, query, where, name="one", metaData={"a": 1}, active=False
    )
    relay, page = "smtp://user:word@relay.example", "https://h.example/"
    await filter_operations.made(ada, {}, {"targets": [relay, page], "stop": True}, name="two")
    for _ in range(2):  # the second time they are there
        task = await imported(bob, (await exported(ada, format="JSON"))["content"])
        left = "smtp://user:***@relay.example is left out: a file has no passwords"
        assert task["result"]["refused"] == [["filter two", left]]
        first, second = (await filter_operations.listed(bob))["nodes"]
        changed = ("id", "user", "createdAt", "sieve")
        same = {name: value for name, value in one.items() if name not in changed}
        assert {name: first[name] for name in same} == same
        assert second["action"]["targets"] == [page]


FOREIGN: list[dict[str, Any]] = [
    {"query": {"from": 1}, "action": {"seen": True}},
    {"query": {"any": ["x"]}, "action": {"seen": True}},
    {"query": {"header": {"value": "x"}}, "action": {"seen": True}},
    {"query": {"size": True}, "action": {"seen": True}},
    {"query": {"other": "x"}, "action": {"seen": True}},
    {"query": {}, "action": {"copyTo": [1]}},
    {"query": {}, "action": {"reply": {"text": 1}}},
    {"query": {}, "action": {"mailbox": "None"}},
    {"query": {}, "action": {}},
    {"action": {"webhook": 7}},
    {"name": 1, "action": {"seen": True}},
    {"order": 1 << 40, "action": {"seen": True}},
]


async def test_filters_of_files_are_checked(ada: Client, bob: Client) -> None:
    await filter_operations.made(ada, {}, {"seen": True})
    first, *rest = (await exported(ada, format="JSON"))["content"].splitlines(keepends=True)
    whole = {**json.loads(first), "filters": FOREIGN}
    task = await imported(bob, b"".join([json.dumps(whole).encode(), b"\n", *rest]))
    assert (task["state"], len(task["result"]["refused"])) == ("SUCCEEDED", len(FOREIGN))
    assert (await filter_operations.listed(bob))["totalCount"] == 0


async def test_rules_about_senders_come_along(ada: Client, bob: Client, root: Client) -> None:
    document = """mutation ($input: SenderRuleCreateInput!) {
        senderRuleCreate(input: $input) { errors { code } } }"""

    async def rule(client: Client, action: str, *patterns: str, **more: Any) -> None:
        given = {"action": action, "patterns": list(patterns), **more}
        assert (await client(document, input=given))["senderRuleCreate"]["errors"] == []

    own = {"scope": {"user": {"username": "ada"}}}
    await rule(ada, "BLOCK", "spam.example", comment="enough", **own)
    await rule(ada, "ALLOW", "news@shop.example", **own)
    await rule(root, "BLOCK", "all.example", scope={"global": True})
    await rule(bob, "ALLOW", "spam.example", scope={"user": {"username": "bob"}})
    content = (await exported(ada, format="JSON"))["content"]
    for _ in range(2):
        assert (await imported(bob, content))["result"]["refused"] == []
        found = await rows(
            bob.world,
            "SELECT pattern, action, comment FROM sender_rules WHERE user_id = :u ORDER BY pattern",
            u=bob.user.id,
        )
        assert found == [("news@shop.example", "ALLOW", None), ("spam.example", "BLOCK", "enough")]
    odd = content.replace(b'"BLOCK"', b'"MAYBE"')
    refused = (await imported(bob, odd))["result"]["refused"]
    assert refused == [["rule about spam.example", "no pattern, or no action"]]


async def test_a_mailbox_file_gives_back_every_byte(ada: Client, bob: Client, clock: Clock) -> None:
    await furnish(ada, clock)
    export = await exported(ada, format="MBOX", filter={"mailbox": {"path": "INBOX"}})
    task = await imported(bob, export["content"], mailbox="From Ada")
    assert task["result"]["stored"] == len(HOSTILE)
    mail = (await told(bob))["mail"]
    assert sorted(raw for path, raw, *_ in mail if path == "From Ada") == sorted(HOSTILE)


@pytest.mark.usefixtures("chunked")
async def test_many_messages_are_many_chunks(ada: Client, bob: Client) -> None:
    for number in range(20):
        await place(ada, raw_message(f"{number}"))
    export = await exported(ada)
    with zipfile.ZipFile(io.BytesIO(export["content"])) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 1 + 7 + 20
    whole = export["content"]
    for first, last in ((0, 10), (700, 5000), (len(whole) - 30, len(whole) - 1)):
        got = await ada.http.get(export["url"], headers={"Range": f"bytes={first}-{last}"})
        assert (got.status_code, got.content) == (206, whole[first : last + 1])
    head = await ada.http.head(export["url"])
    assert head.headers["content-length"] == str(len(whole))
    assert head.headers["content-disposition"].startswith('attachment; filename="ada-2030')
    tag = head.headers["etag"]
    got = await ada.http.get(export["url"], headers={"If-None-Match": tag})
    assert got.status_code == 304
    assert (await imported(bob, whole))["result"]["stored"] == 20


async def test_a_filter_says_which_messages(ada: Client) -> None:
    for number in range(3):
        await receive(ada, f"Letter {number}")
    export = await exported(ada, filter={"subject": "Letter 1"}, format="JSON")
    records = [json.loads(line) for line in export["content"].splitlines()]
    assert [one["kind"] for one in records] == ["account", "message", "end"]
    nothing = await exported(ada, filter={"subject": "none such"}, format="MBOX")
    assert nothing["content"] == b""


async def test_settings_are_left_out_where_they_are_not_wanted(ada: Client, clock: Clock) -> None:
    await furnish(ada, clock)
    export = await exported(ada, format="JSON", includeSettings=False)
    account = json.loads(export["content"].splitlines()[0])
    assert "settings" not in account
    assert "keyValues" not in account
    whole = await exported(ada, format="JSON")
    assert b"argon2" not in whole["content"]
    assert json.loads(whole["content"].splitlines()[0])["settings"]["name"] == "Ada"


async def test_listing_costs_the_same_however_many(
    ada: Client, root: Client, statements: list[str]
) -> None:
    document = "{ users { nodes { exports { id state url task { done } user { username } } } } }"

    async def cost() -> int:
        await authentication.wait_for_background_tasks(
            ada.world
        )  # uses of keys are noted behind the answers
        del statements[:]
        await root(document)
        return len(statements)

    await exported(ada)
    await root(document)
    one = await cost()
    for number in range(20):
        other = await make_client(ada.world, ada.http, f"user{number}")
        assert (await run(other, "accountExport", EXPORT))["errors"] == []
    assert await cost() == one


@pytest.mark.parametrize("start", [None, "2029-01-01T00:00:00Z"])
async def test_what_is_audited_is_copied_as_it_comes_in(
    ada: Client, bob: Client, root: Client, start: str | None
) -> None:
    await place(ada, raw_message("Old"))
    content = (await exported(ada))["content"]
    given = {"user": {"username": "bob"}, "expires": "2031-01-01T00:00:00Z", "start": start}
    done = await run(root, "auditCreate", "audit { id }", **given)
    assert done["errors"] == []
    assert (await imported(bob, content))["result"]["stored"] == 1
    assert await rows(ada.world, "SELECT subject FROM audit_copies") == [("Old",)]


# who may


async def test_nobody_else_sees_or_fetches_it(
    ada: Client, bob: Client, root: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    await receive(ada, "Private")
    export = await exported(ada)
    path = export["url"].partition("?")[0]
    admin = await make_client(world, http, "admin", role=Role.ADMIN)
    keeper = await chief(root, AdminPermission.LOGIN_AS)
    for other in (bob, admin, keeper):
        assert await node(other, export["id"]) is None
        got = await http.get(path, headers=other.headers)
        assert got.status_code == 404
        mine = path.replace(id_of(ada), id_of(other))
        assert (await http.get(mine, headers=other.headers)).status_code == 404
    document = "query ($by: UserRef!) { user(by: $by) { exports { id } } }"
    for other in (admin, keeper):
        (error,) = (await other.raw(document, by={"username": "ada"}))["errors"]
        assert (error["extensions"]["code"], error["path"]) == ("FORBIDDEN", ["user", "exports"])
        done = await run(other, "accountExport", EXPORT, user={"username": "ada"})
        assert [error["code"] for error in done["errors"]] == ["FORBIDDEN"]
        archive = {"text": "From a@b.example Tue Jan  6 10:00:00 2026\n\nx\n"}
        done = await run(other, "accountImport", TASK, user={"username": "ada"}, archive=archive)
        assert [error["code"] for error in done["errors"]] == ["FORBIDDEN"]
    done = await run(bob, "accountExport", EXPORT, user={"username": "ada"})
    assert codes(done) == [("NOT_FOUND", ["user"])]
    assert (await http.get(path)).status_code == 401
    assert (await http.get(path, headers=ada.headers)).status_code == 200


async def test_root_may_and_is_noted(ada: Client, root: Client, world: Environment) -> None:
    await receive(ada, "Private")
    done = await run(root, "accountExport", EXPORT, user={"username": "ada"})
    assert done["errors"] == []
    while await tasks.run_next_task(world):
        pass
    assert await rows(world, "SELECT mutation FROM admin_log ORDER BY id DESC LIMIT 1") == [
        ("accountExport",)
    ]
    noted = "SELECT sum(count) FROM auth_events WHERE user_id = :u AND action = 'read mail'"
    before = await rows(world, noted, u=ada.user.id)
    path = (await node(root, done["export"]["id"]))["url"].partition("?")[0]
    got = await root.http.get(path, headers=root.headers)
    assert got.status_code == 200
    ((after,),) = await rows(world, noted, u=ada.user.id)
    assert after == before[0][0] + 1 > 1


async def test_a_credential_for_mail_has_no_settings(
    ada: Client, bob: Client, world: Environment, clock: Clock
) -> None:
    await furnish(ada, clock)
    whole = await exported(ada)
    secret = await make_key(world, "mail", user_id=ada.user.id, role=Role.USER, scopes=[Scope.MAIL])
    mail = replace(ada, secret=secret)
    assert await node(mail, whole["id"]) is None
    assert await listed(mail) == []
    export = await exported(mail, format="JSON")
    assert "settings" not in json.loads(export["content"].splitlines()[0])
    secret = await make_key(
        world, "bobmail", user_id=bob.user.id, role=Role.USER, scopes=[Scope.MAIL]
    )
    task = await imported(replace(bob, secret=secret), whole["content"])
    assert task["result"]["refused"] == [
        ["settings", "this needs the scope SETTINGS"],
        ["encryption of folder Sealed", "this takes an OpenPGP key of the account"],
    ]
    assert (await row_of(world, bob)).language is None


# limits, ends and crashes


async def test_few_are_made_at_once_and_few_are_kept(ada: Client) -> None:
    for _ in range(2):
        assert (await run(ada, "accountExport", EXPORT))["errors"] == []
    assert codes(await run(ada, "accountExport", EXPORT))[0][0] == "LIMIT_REACHED"
    while await tasks.run_next_task(ada.world):
        pass
    first = (await listed(ada))[-1]
    for _ in range(4):
        await exported(ada)
    assert len(await listed(ada)) == 5
    assert await node(ada, first) is None


async def test_it_ends_and_takes_its_bytes_along(
    ada: Client, world: Environment, clock: Clock
) -> None:
    await place(ada, raw_message("x", body="y" * 500))
    export = await exported(ada)
    used = (await row_of(world, ada)).used
    clock.tick(days=3, seconds=1)
    assert await node(ada, export["id"]) is None
    assert (await ada.http.get(export["url"])).status_code in (401, 404)
    pieces = await rows(world, "SELECT blob_id FROM export_pieces")
    tidied = await housekeeping.run_round(world)
    assert tidied.exports == 1
    assert tidied.blobs >= len(pieces) > 0
    assert await rows(world, "SELECT id FROM export_pieces") == []
    assert (await row_of(world, ada)).used == used


async def test_an_export_is_cancelled(ada: Client, world: Environment) -> None:
    await receive(ada)
    done = await run(ada, "accountExport", EXPORT)
    given = {"ids": [done["export"]["task"]["id"]]}
    assert (await run(ada, "taskCancel", "tasks { state }", **given))["errors"] == []
    assert not await tasks.run_next_task(world)
    found = await node(ada, done["export"]["id"])
    assert (found["state"], found["url"], found["size"]) == ("CANCELLED", None, None)
