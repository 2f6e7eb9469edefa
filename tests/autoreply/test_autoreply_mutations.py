"""Automatic answers over the API: set, changed, tried and forgotten."""

from typing import Any

import pytest

from graph.types import global_ids
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import Client, Clock, make_client, raw_message, receive
from tests.support.accounts.account_exports import exported, imported
from tests.support.accounts.user_operations import chief, costs_of_users, events, id_of, run
from tests.support.sample_mutations import Call
from tests.support.stores.counter_check import reached, rows

FIELDS = """enabled name subject text html internalSubject internalText internalHtml startsAt endsAt
  addresses interval activeNow createdAt"""
PAYLOAD = f"autoreplies {{ {FIELDS} }} users {{ username }}"
MINE = f"{{ viewer {{ user {{ autoreply {{ id {FIELDS} }} }} }} }}"
NEVER: dict[str, Any] = {
    "enabled": False, "name": None, "subject": "", "text": "", "html": "",
    "internalSubject": None, "internalText": None, "internalHtml": None, "startsAt": None,
    "endsAt": None, "addresses": [], "interval": "P1D", "activeNow": False, "createdAt": None,
}  # fmt: skip
PREVIEW = """query ($sender: EmailAddress, $subject: String, $to: EmailAddress,
    $message: MessageRef) { viewer { user { autoreply { preview(sender: $sender,
    subject: $subject, to: $to, message: $message) {
      silence internal from fromName to subject text html } } } } }"""


async def put(client: Client, users: Any = None, **given: Any) -> Any:
    more = {"users": users} if users else {}
    return await run(client, "autoreplySet", PAYLOAD, set=given, **more)


async def drop(client: Client, *whose: Client) -> Any:
    users = {"ids": [id_of(one) for one in whose or [client]]}
    return await Call("autoreplyDelete", {"users": users}, "users { username }")(client)


async def mine(client: Client) -> Any:
    found = (await client(MINE))["viewer"]["user"]["autoreply"]
    return {name: value for name, value in found.items() if name != "id"}


async def tried(client: Client, **given: Any) -> Any:
    return (await client(PREVIEW, **given))["viewer"]["user"]["autoreply"]["preview"]


def said(done: Any) -> list[tuple[str, list[str], Any]]:
    return [(e["code"], e["path"], e.get("constraint") or e.get("ref")) for e in done["errors"]]


# setting


async def test_what_was_never_set_is_empty(ada: Client) -> None:
    assert await mine(ada) == NEVER


async def test_what_is_not_given_stays(ada: Client, clock: Clock) -> None:
    first = await put(ada, enabled=True, text="I am away.", html="<p>Away", name="Ada")
    assert first["errors"] == []
    clock.tick(days=1)
    done = await put(ada, subject="Away", interval="P7D", endsAt="2030-01-09T00:00:00Z")
    expected = {
        **NEVER, "enabled": True, "text": "I am away.", "html": "<p>Away", "name": "Ada",
        "subject": "Away", "interval": "P7D", "endsAt": "2030-01-09T00:00:00Z",
        "activeNow": True, "createdAt": "2030-01-01T00:00:00Z",
    }  # fmt: skip
    assert done["autoreplies"] == [expected] == [await mine(ada)]
    assert done["users"] == [{"username": "ada"}]
    done = await put(ada, text=None, name=None, interval=None, endsAt=None, subject=None)
    more = {"text": "", "name": None, "interval": "P1D", "endsAt": None, "subject": ""}
    assert done["autoreplies"] == [{**expected, **more}]


async def test_it_is_active_from_its_begin_to_its_end(ada: Client, clock: Clock) -> None:
    times = {"startsAt": "2030-01-02T00:00:00Z", "endsAt": "2030-01-03T00:00:00+00:00"}
    await put(ada, enabled=True, text="x", **times)
    active = []
    for _ in range(3):
        active.append((await mine(ada))["activeNow"])
        clock.tick(days=1)
    assert active == [False, True, False]


@pytest.mark.parametrize(("given", "error"), [
    ({}, (["set"], "required")),
    ({"name": "x" * 129}, (["set", "name"], "pattern")),
    ({"name": "a\nb"}, (["set", "name"], "pattern")),
    ({"subject": "a\r\nBcc: x"}, (["set", "subject"], "pattern")),
    ({"subject": "ä" * 1025}, (["set", "subject"], "max")),
    ({"internalSubject": "\x07"}, (["set", "internalSubject"], "pattern")),
    ({"text": "x" * (128 * 1024 + 1)}, (["set", "text"], "max")),
    ({"html": "ä" * (64 * 1024 + 1)}, (["set", "html"], "max")),
    ({"internalText": "x" * (128 * 1024 + 1)}, (["set", "internalText"], "max")),
    ({"interval": "PT59M"}, (["set", "interval"], "range")),
    ({"interval": "P367D"}, (["set", "interval"], "range")),
    ({"startsAt": "2030-01-02T00:00:00Z", "endsAt": "2030-01-02T00:00:00Z"},
     (["set", "endsAt"], "range")),
    ({"enabled": True}, (["set", "text"], "required")),
    ({"enabled": True, "text": " ", "subject": "x"}, (["set", "text"], "required")),
    ({"addresses": ["ada@example.org"] * 51}, (["set", "addresses"], "max")),
    ({"addresses": ["bob@example.org"]}, (["set", "addresses"], "bob@example.org")),
    ({"addresses": ["ada@elsewhere.example"]}, (["set", "addresses"], "ada@elsewhere.example")),
])  # fmt: skip
@pytest.mark.usefixtures("bob")
async def test_what_cannot_be_is_refused_with_its_rule(
    ada: Client, given: dict[str, Any], error: tuple[list[str], str]
) -> None:
    done = await put(ada, **given)
    assert [(path, rule) for _, path, rule in said(done)] == [error]
    assert await mine(ada) == NEVER


async def test_all_that_is_wrong_is_told_at_once(ada: Client) -> None:
    done = await put(ada, name="x" * 200, text="x" * 200_000, interval="PT1S")
    assert sorted(path[1] for _, path, _ in said(done)) == ["interval", "name", "text"]


async def test_text_stays_while_it_is_needed(ada: Client) -> None:
    await put(ada, enabled=True, text="x")
    assert said(await put(ada, text="")) == [("VALIDATION", ["set", "text"], "required")]
    assert (await put(ada, text="", internalText="y"))["errors"] == []
    assert said(await put(ada, endsAt="2030-01-02T00:00:00Z", startsAt="2030-01-03T00:00:00Z"))
    await put(ada, startsAt="2030-01-03T00:00:00Z")
    late = await put(ada, endsAt="2030-01-02T00:00:00Z")
    assert said(late) == [("VALIDATION", ["set", "endsAt"], "range")]


async def test_addresses_are_the_own_in_any_spelling(ada: Client) -> None:
    done = await put(ada, addresses=["A.da@EXAMPLE.org", "ada+news@example.org"])
    assert done["autoreplies"][0]["addresses"] == ["ada@example.org"]
    done = await put(ada, addresses=None)
    assert done["autoreplies"][0]["addresses"] == []


async def test_what_is_deleted_is_as_if_never_set(ada: Client, world: Environment) -> None:
    await put(ada, enabled=True, text="x")
    for _ in range(2):
        done = await drop(ada)
        assert (done["errors"], done["users"]) == ([], [{"username": "ada"}])
        assert await mine(ada) == NEVER
    assert await rows(world, "SELECT id FROM autoreplies") == []


# changes


async def test_the_journal_tells_what_is_new(ada: Client, world: Environment) -> None:
    at = await reached(world, ada.user.id)
    await put(ada, enabled=True, text="x")
    await put(ada, enabled=True, text="x")
    await put(ada, subject="S")
    await drop(ada)
    told = await events(world, ada.user.id, at)
    kind, me = ChangeKind.AUTOREPLY_CHANGED, [ada.user.id]
    assert told == [
        (kind, me, [["enabled", "text"]]),
        (kind, me, [["subject"]]),
        (kind, me, [["enabled"]]),
    ]


async def test_followers_have_it_as_it_is_now(ada: Client) -> None:
    cursor = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    await put(ada, enabled=True, text="x")
    asked = """query ($after: Cursor!) { changes(after: $after) { events { kind
      ... on AccountChange { nodeId node { ... on Autoreply { text } } } } } }"""
    (event,) = (await ada(asked, after=cursor))["changes"]["events"]
    assert event["node"] == {"text": "x"}
    await drop(ada)
    first, last = (await ada(asked, after=cursor))["changes"]["events"]
    assert first["nodeId"] == last["nodeId"] == event["nodeId"]
    assert last["node"] is None


# others


async def test_another_user_sees_and_changes_nothing(ada: Client, bob: Client) -> None:
    await put(ada, enabled=True, text="x")
    theirs, before = {"ids": [id_of(ada)]}, await mine(ada)
    assert [code for code, _, _ in said(await put(bob, theirs, text="y"))] == ["NOT_FOUND"]
    done = await drop(bob, ada)
    assert [code for code, _, _ in said(done)] == ["NOT_FOUND"]
    key = global_ids.encode("Autoreply", ada.user.id)
    assert (await bob("query ($id: ID!) { node(id: $id) { id } }", id=key)) == {"node": None}
    assert (await ada("query ($id: ID!) { node(id: $id) { id } }", id=key))["node"] == {"id": key}
    assert await mine(ada) == before
    assert await mine(bob) == NEVER


async def test_an_administrator_sets_it_for_the_users_of_the_domain(
    ada: Client, bob: Client, root: Client, world: Environment
) -> None:
    boss = await chief(root)
    both = {"ids": [id_of(ada), id_of(bob)]}
    await put(bob, subject="Mine")
    done = await put(boss, both, enabled=True, text="We have moved.")
    assert [(one["subject"], one["text"]) for one in done["autoreplies"]] == [
        ("", "We have moved."), ("Mine", "We have moved."),
    ]  # fmt: skip
    logged = await rows(world, "SELECT after FROM admin_log WHERE mutation = 'autoreplySet'")
    assert len(logged) == 2
    assert not any("moved" in str(row[0]) for row in logged)
    refused = await put(boss, both, addresses=["ada@example.org"])
    assert said(refused) == [("VALIDATION", ["set", "addresses"], "exclusive")]
    elsewhere = await chief(root, AdminPermission.FILTERS, domain="example.org", name="other")
    assert (await put(elsewhere, both, text="x"))["errors"] == []


async def test_many_accounts_take_as_many_statements_as_one(
    root: Client, statements: list[str]
) -> None:
    document = "{ users(first: 50) { nodes { autoreply { text interval } } } }"
    one, many, again = await costs_of_users(root, document, statements)
    assert one == many == again
    given = 'preview(sender: "carol@example.com") { silence }'
    document = f"{{ users(first: 50) {{ nodes {{ autoreply {{ {given} }} }} }} }}"
    del statements[:]
    await root(document)
    costs = len(statements)
    for nth in range(5):
        await make_client(root.world, root.http, f"more{nth}")
    del statements[:]
    await root(document)
    assert len(statements) == costs


async def test_setting_many_takes_as_many_statements_as_one(
    ada: Client, bob: Client, root: Client, statements: list[str]
) -> None:
    costs = list[int]()
    for who in ([bob], [ada], [ada, bob]):
        del statements[:]
        done = await put(
            root, {"ids": [id_of(one) for one in who]}, enabled=True, text=f"{len(costs)}"
        )
        assert done["errors"] == []
        costs.append(len(statements))
    assert costs[1] == costs[2]


# trying


async def test_a_preview_says_what_would_be_sent(ada: Client, world: Environment) -> None:
    await put(ada, enabled=True, html="<p>I am <b>away</b>.</p>", internalText="Call me.")
    outside = await tried(ada, sender="carol@example.com", subject="Lunch?")
    assert outside == {
        "silence": None, "internal": False, "from": "ada@example.org", "fromName": None,
        "to": "carol@example.com", "subject": "Auto: Re: Lunch?", "text": "I am away.",
        "html": "<p>I am <b>away</b>.</p>",
    }  # fmt: skip
    inside = await tried(ada, sender="bob@example.org", to="a.da+x@example.org")
    assert (inside["internal"], inside["text"], inside["html"]) == (True, "Call me.", "")
    assert (inside["from"], inside["silence"]) == ("a.da+x@example.org", None)
    for table in ("autoreply_senders", "submissions", "usages"):
        assert await rows(world, f"SELECT 1 FROM {table}") == []  # noqa: S608 - our own names


@pytest.mark.parametrize(("given", "sender", "silence"), [
    ({"text": "x"}, "carol@example.com", "OFF"),
    ({"text": "x", "enabled": True, "startsAt": "2031-01-01T00:00:00Z"}, "c@d.example", "NOT_NOW"),
    ({"internalText": "x", "enabled": True}, "carol@example.com", "EMPTY"),
    ({"text": "x", "enabled": True}, "no-reply@example.com", "AUTOMATIC_SENDER"),
    ({"text": "x", "enabled": True}, "a.da@example.org", "OWN"),
    ({"text": "x", "enabled": True}, "carol@example.com", None),
])  # fmt: skip
async def test_a_preview_says_why_nothing_is_sent(
    ada: Client, given: dict[str, Any], sender: str, silence: str | None
) -> None:
    await put(ada, **given)
    found = await tried(ada, sender=sender)
    assert found["silence"] == silence
    assert found["text"] == ("x" if silence != "EMPTY" else "")


async def test_a_message_that_came_says_why_it_is_answered_or_not(ada: Client) -> None:
    await put(ada, enabled=True, text="x")
    letter = raw_message("Lunch?", To="ada@example.org")
    listed = raw_message("News", To="ada@example.org", List_Id="<birds.example.com>")
    came = [await receive(ada, raw) for raw in (letter, listed)]
    ref = [{"id": global_ids.encode("Message", one.message_id)} for one in came]
    found = await tried(ada, message=ref[0])
    assert (found["to"], found["subject"]) == ("carol@example.com", "Auto: Re: Lunch?")
    assert found["silence"] is None
    assert (await tried(ada, message=ref[1]))["silence"] == "LIST_MAIL"


@pytest.mark.parametrize(("given", "code"), [
    ({}, "BAD_USER_INPUT"),
    ({"sender": "carol@example.com", "to": "bob@example.org"}, "NOT_FOUND"),
    ({"message": {"guid": "0" * 32}}, "NOT_FOUND"),
])  # fmt: skip
@pytest.mark.usefixtures("bob")
async def test_a_preview_of_nothing_is_refused(
    ada: Client, given: dict[str, Any], code: str
) -> None:
    answer = await ada.raw(PREVIEW, **given)
    assert [error["extensions"]["code"] for error in answer["errors"]] == [code]


# files


async def test_an_export_brings_it_to_another_account(ada: Client, bob: Client) -> None:
    given = {
        "enabled": True, "text": "Away.", "internalHtml": "<p>In", "name": "Ada", "interval": "P3D",
        "endsAt": "2030-02-01T00:00:00Z", "subject": "S",
    }  # fmt: skip
    await put(ada, **given)
    content = (await exported(ada, format="JSON"))["content"]
    done = await imported(bob, content)
    assert done["state"] == "SUCCEEDED"
    assert await mine(bob) == await mine(ada)
    await put(ada, addresses=["ada@example.org"], text="Sales are closed.")
    content = (await exported(ada, format="JSON"))["content"]
    await drop(bob)
    await imported(bob, content)
    theirs = await mine(bob)
    assert (theirs["text"], theirs["enabled"], theirs["addresses"]) == (
        "Sales are closed.", False, [],
    )  # fmt: skip
