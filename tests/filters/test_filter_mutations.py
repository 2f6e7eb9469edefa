"""Filters: made, changed, listed and deleted, and who may do it."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from mail import sieve
from models.errors import LimitReached
from models.events.journal import ChangeKind
from models.filters.tables import Filter
from models.notifications.webhooks import Webhook
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from models.users.tables import User
from resolvers.filters import mutations as filter_mutations
from tests.conftest import Client, context, make_client, raw_message, receive
from tests.support.accounts.user_operations import chief, run
from tests.support.accounts.user_operations import create as create_user
from tests.support.operations.filter_operations import (
    NODE,
    change,
    create,
    error_codes_and_paths,
    listed,
    looked_at,
    made,
    remove,
    user_ref,
)
from tests.support.operations.mailbox_operations import add_mailboxes
from tests.support.stores.counter_check import journal, reached, rows

EVERYTHING = {
    "from": "ada", "to": "bob", "subject": "a  b", "listId": "news", "text": "Größe",
    "hasAttachment": False, "size": -5000, "query": "subject:a OR larger:1k",
    "header": {"key": "X-A", "value": "1"},
    "regex": {"key": "X-C", "pattern": "^[0-9]+$"}, "all": [{"regex": {"pattern": "a|b"}}],
    "any": [{"from": "x"}, {"size": 10}], "not": [{"header": {"key": "X-B"}}],
}  # fmt: skip
ACTIONS = {
    "seen": True, "flag": False, "delete": False, "spam": False, "mailbox": {"path": "A"},
    "copyTo": [{"path": "A"}, {"specialUse": "SENT"}, {"path": "A"}],
    "targets": ["Eve@example.net", "https://example.net/hook?token=secret"],
    "labels": ["news", "größe", "news"], "removeLabels": ["old"],
    "reply": {"subject": " Re ", "text": "Hi", "html": "<b>Hi</b>"}, "stop": True,
}  # fmt: skip
NO_TEST = dict.fromkeys(
    ("from", "to", "subject", "listId", "text", "hasAttachment", "size", "query", "header", "regex")
)


async def test_all_can_be_said_and_taken_back(ada: Client) -> None:
    await add_mailboxes(ada, "A")
    one = await made(ada, EVERYTHING, ACTIONS, name=" All ", order=3, metaData={"a": 1})
    query, action = one["query"], one["action"]
    header = {"key": "X-A", "value": "1", "raw": "X-A: 1"}
    assert {name: query[name] for name in NO_TEST} == {
        **{name: EVERYTHING[name] for name in NO_TEST},
        "header": header,
    }
    assert query["all"] == [{**NO_TEST, "regex": {"key": None, "pattern": "a|b"}}]
    assert [found["from"] or found["size"] for found in query["any"]] == ["x", 10]
    assert query["not"] == [{**NO_TEST, "header": {"key": "X-B", "value": "", "raw": "X-B:"}}]
    assert action == {
        **ACTIONS,
        "copyTo": [{"path": "A"}, {"path": "Sent"}],
        "labels": ["news", "größe"],
        "reply": {"subject": "Re", "text": "Hi", "html": "<b>Hi</b>"},
        "webhook": None,
    }
    assert (one["name"], one["order"], one["active"], one["metaData"], one["matchCount"]) == (
        "All", 3, True, {"a": 1}, 0
    )  # fmt: skip
    sieve.compile_script(one["sieve"])
    assert one["sieve"].startswith("# Sieve does not say: it is sent on to https://example.net/")
    assert await ada(NODE, id=one["id"]) == {"filter": one}
    patch = {"query": {"from": None, "size": 5}, "action": {"targets": None, "stop": False}}
    ((after,), errors) = await change(ada, one["id"], **patch)
    assert errors == []
    assert after["query"] == {**query, "from": None, "size": 5}
    assert after["action"] == {**action, "targets": [], "stop": False}
    nothing = {
        "action": dict.fromkeys(ACTIONS) | {"seen": False},
        "query": dict.fromkeys(EVERYTHING),
    }
    ((bare,), errors) = await change(ada, one["id"], name=None, metaData=None, **nothing)
    assert errors == []
    assert bare["query"] == {**NO_TEST, "all": [], "any": [], "not": []}
    assert (bare["queryText"], bare["actionText"]) == ([], [["Mark as read", "no"]])
    assert (bare["name"], bare["metaData"]) == ("", None)
    assert bare["sieve"] == 'require ["imap4flags"];\nremoveflag ["\\\\Seen"];\n'


async def test_they_read_to_people_in_their_language(ada: Client, world: Environment) -> None:
    query = {"from": "bob", "size": -9, "hasAttachment": True, "header": {"key": "X-A"},
             "regex": {"key": "X-B", "pattern": "a|b"}, "all": [{"regex": {"pattern": "c$"}}],
             "any": [{"to": "x", "subject": "y"}, {}], "not": [{"text": "z"}]}  # fmt: skip
    action = {"mailbox": {"path": "INBOX"}, "spam": True, "labels": ["a", "b"], "stop": True,
              "targets": ["eve@example.net"], "reply": {"text": "Hi"}}  # fmt: skip
    one = await made(ada, query, action)
    assert one["queryText"] == [
        ["From", "bob"], ["Attachments", "yes"], ["Size", "less than 9 bytes"],
        ["X-A", "present"], ["X-B", "/a|b/"], ["Text", "/c$/"],
        ["One of", "(To or Cc: x, Subject: y) ()"], ["None of", "(Text: z)"],
    ]  # fmt: skip
    assert one["actionText"] == [
        ["Spam", "yes"], ["Move to", "INBOX"], ["Add labels", "a, b"],
        ["Forward to", "eve@example.net"], ["Reply", "yes"], ["No further filters", "yes"],
    ]  # fmt: skip
    async with world.write_session() as session:
        these = update(User).where(col(User.id) == ada.user.id)
        await session.exec(these.values(language="de-AT"))
    (after,) = (await listed(ada))["nodes"]
    assert after["queryText"][0] == ["Von", "bob"]
    assert after["actionText"][0] == ["Spam", "ja"]


async def test_they_are_listed_as_they_are_run(ada: Client) -> None:
    for name, more in (("c", {}), ("d", {}), ("a", {"order": -1}), ("b", {"order": 0})):
        await made(ada, {}, {"seen": True}, name=name, **more)
    page = await listed(ada, first=3)
    names = [one["name"] for one in page["nodes"]]
    assert (names, page["totalCount"]) == (["a", "c", "b"], 4)
    assert page["nodes"][-1]["order"] == 0
    rest = await listed(ada, after=page["pageInfo"]["endCursor"])
    assert [one["name"] for one in rest["nodes"]] == ["d"]
    ((moved,), _) = await change(ada, rest["nodes"][0]["id"], order=-5)
    assert [one["name"] for one in (await listed(ada))["nodes"]] == ["d", "a", "c", "b"]
    assert (await remove(ada, moved["id"]))["deletedIds"] == [moved["id"]]
    assert await ada(NODE, id=moved["id"]) == {"filter": None}
    assert (await listed(ada))["totalCount"] == 3


DEEP: dict[str, Any] = {"from": "a"}
for _ in range(6):
    DEEP = {"any": [DEEP]}
WRONG_QUERIES: list[tuple[dict[str, Any], str]] = [
    ({"from": " "}, "query.from"),
    ({"subject": "x" * 256}, "query.subject"),
    ({"size": 0}, "query.size"),
    ({"header": {"key": "a:b"}}, "query.header.key"),
    ({"header": {"key": "a", "value": ""}}, "query.header.value"),
    ({"regex": {"pattern": ""}}, "query.regex.pattern"),
    ({"regex": {"pattern": "a("}}, "query.regex.pattern"),
    ({"regex": {"key": "a:b", "pattern": "a"}}, "query.regex.key"),
    ({"regex": {"pattern": "(((a{99}){99}){99}){99}"}}, "query.regex.pattern"),
    ({"all": [{}, {"regex": {"pattern": "["}}]}, "query.all.1.regex.pattern"),
    ({"any": [{"from": "a"}, {"to": ""}]}, "query.any.1.to"),
    ({"any": [{}] * 101}, "query.any"),
    ({"not": [{"any": [{}] * 60}] * 2}, "query"),
    (DEEP, "query"),
]


@pytest.mark.parametrize(("query", "path"), WRONG_QUERIES)
async def test_queries_that_cannot_be(ada: Client, query: dict[str, Any], path: str) -> None:
    one, errors = await create(ada, query, {"seen": True})
    assert (one, error_codes_and_paths(errors)) == (None, [("VALIDATION", path.split("."))])
    assert (await listed(ada))["totalCount"] == 0


WRONG_ACTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "VALIDATION", "action"),
    ({"seen": None, "labels": []}, "VALIDATION", "action"),
    ({"mailbox": {"path": "None"}}, "NOT_FOUND", "action.mailbox"),
    ({"copyTo": [{"path": "INBOX"}, {"path": "None"}]}, "NOT_FOUND", "action.copyTo"),
    ({"copyTo": [{"path": "INBOX"}] * 11}, "VALIDATION", "action.copyTo"),
    ({"targets": ["nobody"]}, "VALIDATION", "action.targets"),
    ({"targets": ["http://127.0.0.1/"]}, "VALIDATION", "action.targets"),
    ({"targets": ["smtp://[::1]"]}, "VALIDATION", "action.targets"),
    ({"targets": ["A.DA+x@example.org"]}, "VALIDATION", "action.targets"),  # itself
    ({"targets": [f"x{n}@example.net" for n in range(5)]}, "VALIDATION", "action.targets"),
    ({"labels": ["a b"]}, "VALIDATION", "action.labels"),
    ({"labels": ["\\Seen"]}, "VALIDATION", "action.labels"),
    ({"removeLabels": [f"x{n}" for n in range(33)]}, "VALIDATION", "action.removeLabels"),
    ({"reply": {"text": " "}}, "VALIDATION", "action.reply.text"),
    ({"reply": {"subject": "a\nb", "text": "x"}}, "VALIDATION", "action.reply"),
    ({"reply": {"text": "x" * (16 << 10) + "x"}}, "VALIDATION", "action.reply"),
    ({"webhook": global_ids.encode("Webhook", 7)}, "NOT_FOUND", "action.webhook"),
]


@pytest.mark.parametrize(("action", "code", "path"), WRONG_ACTIONS)
async def test_actions_that_cannot_be(
    ada: Client, action: dict[str, Any], code: str, path: str
) -> None:
    one, errors = await create(ada, {}, action)
    assert one is None
    assert errors[0]["code"] == code
    assert ".".join(errors[0]["path"]).startswith(path)
    assert (await listed(ada))["totalCount"] == 0


async def test_there_are_only_so_many(ada: Client, world: Environment) -> None:
    for _ in range(2):
        await made(ada, {}, {"seen": True})
    few = context(ada)
    few.environment = replace(world, options=replace(world.options, filters_max=2))
    with pytest.raises(LimitReached) as refused:
        await filter_mutations.create_filter(few, None, {"query": {}, "action": {"seen": True}})
    assert (refused.value.limit, refused.value.used) == (2, 2)
    assert (await listed(ada))["totalCount"] == 2


async def test_what_is_too_long_as_a_script_is_refused(ada: Client) -> None:
    long = {"any": [{"subject": "ü" * 255} for _ in range(40)]}
    reply = {"reply": {"text": '"' * (16 << 10), "html": '"' * (16 << 10)}}
    one, (error,) = await create(ada, long, reply)
    assert (one, error["path"], error["constraint"]) == (None, ["query"], "max")


async def test_a_relay_keeps_its_password_and_shows_it_to_nobody(
    ada: Client, world: Environment
) -> None:
    relay = "smtps://user:secret-word@relay.example"
    one = await made(ada, {}, {"targets": [relay]})
    shown = ["smtps://user:***@relay.example"]
    assert one["action"]["targets"] == shown
    assert "secret" not in str(one)
    ((sealed,),) = await rows(world, "SELECT relays FROM filters")
    assert "secret-word" not in sealed
    ((after,), errors) = await change(ada, one["id"], action={"targets": [*shown, "x@example.net"]})
    assert (errors, after["action"]["targets"]) == ([], [*shown, "x@example.net"])
    other, (error,) = await create(ada, {}, {"targets": shown})
    assert (other, error["constraint"]) == (None, "secret")


async def test_each_new_target_is_an_event(ada: Client) -> None:
    document = (
        '{ viewer { user { authLog(filter: {action: "filter forward"}) { nodes { detail } } } } }'
    )
    one = await made(ada, {}, {"targets": ["eve@example.net", "https://h.example/?t=secret"]})
    await change(ada, one["id"], action={"targets": ["eve@example.net", "dan@example.net"]})
    await change(ada, one["id"], action={"seen": True})
    nodes = (await ada(document))["viewer"]["user"]["authLog"]["nodes"]
    assert sorted(node["detail"]["target"] for node in nodes) == [
        "dan@example.net", "eve@example.net", "https://h.example"
    ]  # fmt: skip


async def test_a_mailbox_takes_the_filters_that_use_it_along(
    ada: Client, world: Environment
) -> None:
    await add_mailboxes(ada, "A", "A/B", "C")
    gone = [
        await made(ada, {}, {"mailbox": {"path": "A/B"}}, name="a"),
        await made(ada, {}, {"copyTo": [{"path": "C"}, {"path": "A"}]}, name="b"),
    ]
    await made(ada, {}, {"mailbox": {"path": "C"}}, name="stays")
    last = await reached(world, ada.user.id)
    named = {"mailboxes": [{"path": "A"}], "recursive": True}
    assert (await run(ada, "mailboxDelete", "deletedIds", **named))["errors"] == []
    assert [one["name"] for one in (await listed(ada))["nodes"]] == ["stays"]
    kinds = await journal(world, ada.user.id, last)
    (found,) = [keys for kind, keys in kinds if kind is ChangeKind.FILTER_CHANGED]
    assert found == sorted(global_ids.decode("Filter", one["id"]) for one in gone)


async def test_others_see_and_change_nothing(ada: Client, bob: Client, world: Environment) -> None:
    await add_mailboxes(ada, "A")
    one = await made(ada, {"from": "x"}, {"mailbox": {"path": "A"}})
    before = await listed(ada)
    last = await reached(world, ada.user.id)
    assert await bob(NODE, id=one["id"]) == {"filter": None}
    assert (await listed(bob))["totalCount"] == 0
    for _, errors in (
        await change(bob, one["id"], active=False),
        (None, (await remove(bob, one["id"]))["errors"]),
    ):
        assert error_codes_and_paths(errors) == [("NOT_FOUND", ["ids"])]
    (box,) = await rows(world, "SELECT id FROM mailboxes WHERE path = 'A'")
    hers = {"id": global_ids.encode("Mailbox", box[0])}
    assert error_codes_and_paths((await create(bob, {}, {"mailbox": hers}))[1]) == [
        ("NOT_FOUND", ["action", "mailbox"])
    ]
    assert error_codes_and_paths(
        (await create(bob, {}, {"seen": True}, user=user_ref(ada)))[1]
    ) == [("NOT_FOUND", ["user"])]
    assert await listed(ada) == before
    assert await reached(world, ada.user.id) == last


OF_USER = (
    """query ($user: UserRef!) { user(by: $user) { filters { totalCount nodes { name } } } }"""
)


async def test_administrators_need_filters_for_those_of_others(ada: Client, root: Client) -> None:
    one = await made(ada, {"from": "x"}, {"targets": ["eve@example.net"]}, name="hers")
    boss = await chief(root, AdminPermission.FILTERS, name="boss")
    bare = await chief(root, AdminPermission.LOGIN_AS, name="bare")
    await create_user(root, address="dan@example.net")
    elsewhere = await chief(root, AdminPermission.FILTERS, domain="example.net", name="other")
    for client, seen in ((boss, True), (bare, False), (elsewhere, False), (root, True)):
        found = (await client(NODE, id=one["id"]))["filter"]
        assert (found is not None) is seen
    assert (await boss(OF_USER, user=user_ref(ada)))["user"]["filters"]["totalCount"] == 1
    assert (await bare(OF_USER, user=user_ref(ada)))["user"]["filters"]["totalCount"] == 0
    _, (error,) = await create(bare, {}, {"seen": True}, user=user_ref(ada))
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "FILTERS")
    theirs = await made(boss, {}, {"seen": True}, user=user_ref(ada), name="boss's")
    assert theirs["user"] == {"username": "ada"}
    ((after,), errors) = await change(boss, one["id"], name="both's")
    assert (errors, after["name"]) == ([], "both's")
    entries = await root("{ adminLog { nodes { mutation actor after } } }")
    (log,) = [e for e in entries["adminLog"]["nodes"] if e["mutation"] == "filterUpdate"]
    assert log["after"] == {"name": "both's"}
    document = """query ($filter: FilterListFilter) {
      filters(filter: $filter) { totalCount nodes { name } } }"""
    asked = {"forward": "EVE@", "user": user_ref(ada)}
    assert (await root(document, filter=asked or None))["filters"] == {
        "totalCount": 1, "nodes": [{"name": "both's"}]
    }  # fmt: skip
    assert (await root(document))["filters"]["totalCount"] == 2
    refused = await boss.raw(document)
    assert refused["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_a_webhook_is_the_users_own(
    ada: Client, bob: Client, root: Client, world: Environment
) -> None:
    keys = {}
    for client in (ada, bob):
        given = {"types": ["limit.*"], "url": "https://h.example/", "user": user_ref(client)}
        keys[client.user.id] = (await run(root, "webhookCreate", "webhook { id }", **given))[
            "webhook"
        ]["id"]
    _, errors = await create(ada, {}, {"webhook": keys[bob.user.id]})
    assert error_codes_and_paths(errors) == [("NOT_FOUND", ["action", "webhook"])]
    one = await made(ada, {}, {"webhook": keys[ada.user.id]})
    assert one["actionText"] == [["Call webhook", "yes"]]
    assert (await root(NODE, id=one["id"]))["filter"]["action"]["webhook"] == {
        "url": "https://h.example/"
    }
    async with world.write_session() as session:
        await session.exec(update(Webhook).values(active=False))
    assert len(await world.database.read(select(col(Filter.id)))) == 1


async def test_lists_cost_the_same_however_many(
    ada: Client, root: Client, world: Environment, statements: list[str]
) -> None:
    document = """{ users(first: 50) { nodes { username filters { totalCount nodes {
      name queryText actionText user { username } action { mailbox { path } copyTo { path } }
    } } } } }"""

    async def cost() -> int:
        await root(document)
        del statements[:]
        await root(document)
        return len(statements)

    where = {"mailbox": {"path": "INBOX"}, "copyTo": [{"path": "Sent"}]}
    await made(ada, {"from": "a"}, where)
    one = await cost()
    for nth in range(20):
        client = await make_client(world, ada.http, f"user{nth}")
        for _ in range(2):
            await made(client, {"from": "a"}, where)
    assert await cost() == one


# ---------------------------------------------------------------- what would happen


async def test_what_filters_would_do_is_told_before(ada: Client) -> None:
    await add_mailboxes(ada, "A")
    await made(ada, {"subject": "hello"}, {"mailbox": {"path": "A"}, "seen": True}, name="a")
    await made(ada, {"from": "nobody"}, {"delete": True}, name="b")
    await made(ada, {}, {"mailbox": {"path": "INBOX"}, "flag": True, "stop": True}, name="c")
    await made(ada, {}, {"spam": True}, name="d")
    await made(ada, {}, {"spam": True}, name="e", active=False)
    expected = [
        ("a", True, ["Move to: A", "Mark as read: yes"]),
        ("b", False, []),
        ("c", True, ["Flag: yes", "No further filters: yes"]),
        ("d", True, []),
        ("e", True, []),
    ]
    await receive(ada)
    (message,) = await rows(ada.world, "SELECT id FROM messages")
    ref = {"id": global_ids.encode("Message", message[0])}
    for given in ({"message": ref}, {"raw": raw_message("Hello").decode()}):
        found = await looked_at(ada, **given)
        assert [(o["filter"]["name"], o["matches"], o["actions"]) for o in found] == expected
    before = await reached(ada.world, ada.user.id)
    assert [one["matchCount"] for one in (await listed(ada))["nodes"]] == [0] * 5
    assert await reached(ada.world, ada.user.id) == before


async def test_others_test_nothing_of_ours(ada: Client, bob: Client, world: Environment) -> None:
    await made(ada, {}, {"seen": True})
    await made(bob, {}, {"seen": True})
    await receive(ada)
    (message,) = await rows(world, "SELECT id FROM messages")
    document = """query ($m: MessageRef, $u: UserRef, $raw: String) {
      filterTest(message: $m, user: $u, raw: $raw) { matches } }"""
    hers = {"id": global_ids.encode("Message", message[0])}
    for given in ({"m": hers}, {"u": user_ref(ada), "raw": "x"}):
        answer = await bob.raw(document, **given)
        assert answer["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    for given in ({}, {"m": hers, "raw": "x"}):
        answer = await ada.raw(document, **given)
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_they_stand_in_the_trace_of_an_address(ada: Client, root: Client) -> None:
    one = await made(ada, {"from": "x"}, {"targets": ["eve@example.net"]})
    other = await made(ada, {}, {"delete": True})
    await made(ada, {}, {"seen": True})
    await made(ada, {}, {"delete": True}, active=False)
    document = """{ addressTrace(address: "ada@example.org") {
      stage output record { ... on Filter { id } } } }"""
    bare = await chief(root, name="bare")
    steps = [one for one in (await root(document))["addressTrace"] if one["stage"] == "FILTER"]
    assert steps == [
        {"stage": "FILTER", "output": ["eve@example.net"], "record": {"id": one["id"]}},
        {"stage": "FILTER", "output": [], "record": {"id": other["id"]}},
    ]
    assert {step["stage"] for step in (await bare(document))["addressTrace"]} == {
        "ADDRESS", "ACCOUNT"
    }  # fmt: skip
