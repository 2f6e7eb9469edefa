"""Delta sync: the change stream read page by page, and the state that goes with a cursor."""

import asyncio
from dataclasses import replace
from random import Random
from typing import Any

import httpx

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.events.journal import ChangeKind, JournalEntry, record_in_streams
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from tests.conftest import Client, Clock, make_client, make_key, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import READ, mutate, share, team
from tests.support.operations.mailbox_operations import add_mailboxes, append_unread_messages
from tests.support.servers.live_server import MADE, cursor

PAGE = """query ($after: Cursor!, $first: Int, $kinds: [ChangeKind!], $user: UserRef) {
  changes(after: $after, first: $first, kinds: $kinds, user: $user) { cursor hasMore events {
    __typename kind cursor origin user { username }
    ... on MailboxChange { path }
    ... on MessageChange { messageId mailboxId uid flags message { mailbox { path } } }
    ... on AccountChange { nodeId node { __typename } }
    ... on ResyncChange { reason } } } }"""
HERE = "{ viewer { user { cursor } } }"
STATE = """{ viewer { user { mailboxes { id path total unseen }
  messages(first: 200) { nodes { id seen mailbox { id } } } cursor } } }"""


async def page(client: Client, after: str, **more: Any) -> Any:
    return (await client(PAGE, after=after, **more))["changes"]


async def here(client: Client) -> str:
    return str((await client(HERE))["viewer"]["user"]["cursor"])


async def refused(client: Client, after: Any, **more: Any) -> str:
    (error,) = (await client.raw(PAGE, after=after, **more))["errors"]
    return str(error["extensions"]["code"])


async def test_pages_follow_one_another_to_the_end(ada: Client) -> None:
    at = cursor(ada, MADE)
    for number in range(5):
        await receive(ada, f"Number {number}")
    seen = list[Any]()
    for more in (True, True, False):
        found = await page(ada, at, first=2)
        assert found["hasMore"] is more
        assert found["events"][-1]["cursor"] == found["cursor"]
        seen += found["events"]
        at = found["cursor"]
    assert [event["cursor"] for event in seen] == [cursor(ada, MADE + n) for n in range(1, 6)]
    assert {event["kind"] for event in seen} == {"MESSAGE_ADDED"}
    assert await page(ada, at) == {"cursor": at, "hasMore": False, "events": []}
    assert at == await here(ada)


async def test_kinds_are_chosen_and_the_cursor_moves_on(ada: Client) -> None:
    await receive(ada)
    await add_mailboxes(ada, "Box")
    found = await page(ada, cursor(ada, MADE), kinds=["MAILBOX_CREATED"])
    assert [event["path"] for event in found["events"]] == ["Box"]
    found = await page(ada, cursor(ada, MADE), kinds=["SUBMISSION_CHANGED"])
    assert (found["events"], found["cursor"]) == ([], await here(ada))


async def test_one_journal_row_may_be_read_in_parts(ada: Client) -> None:
    for number in range(3):
        await receive(ada, f"Number {number}")
    at = await here(ada)
    select = {"mailbox": {"path": "INBOX"}}
    await mutate(ada, "messageUpdate", "updatedCount", select=select, set={"seen": True})
    first = await page(ada, at, first=2)
    rest = await page(ada, first["cursor"], first=2)
    assert [len(first["events"]), len(rest["events"])] == [2, 1]
    assert {tuple(event["flags"]) for event in first["events"] + rest["events"]} == {("\\Seen",)}


async def test_what_is_shared_is_heard_and_what_is_not_is_not(ada: Client, bob: Client) -> None:
    box = await team(ada, "Old")
    at = await here(bob)
    await share(ada, bob, *READ)
    await append_unread_messages(ada, "Team", "New")
    await receive(ada, "Private")
    found = await page(bob, at)
    kinds = {event["kind"]: event for event in found["events"]}
    assert kinds.keys() == {"MAILBOX_CREATED", "MESSAGE_ADDED"}
    new = kinds["MESSAGE_ADDED"]
    assert (new["mailboxId"], new["message"], new["user"]) == (
        box,
        {"mailbox": {"path": "Team"}},
        None,
    )
    await share(ada, bob)
    await append_unread_messages(ada, "Team", "Unheard")
    (gone,) = (await page(bob, found["cursor"]))["events"]
    assert gone["kind"] == "MAILBOX_DELETED"


async def test_bad_cursors_are_told_apart(ada: Client, bob: Client) -> None:
    await receive(ada)
    for forged in ("x", "1", "1.5", "2.1.1", f"1.{ada.user.id}.-1", "1." + "9" * 40, "1.0.1" * 99):
        assert await refused(ada, forged) == "BAD_CURSOR"
    assert await refused(ada, cursor(bob, 0)) == "BAD_CURSOR"
    future = await page(ada, cursor(ada, 10**6))
    (event,) = future["events"]
    assert (event["kind"], event["reason"]) == ("RESYNC", "CURSOR_UNKNOWN")
    assert future["cursor"] == await here(ada)
    # what is added to a cursor of one's own is not heard
    both = f"{cursor(ada, MADE)}.{bob.user.id}.0"
    assert [event["kind"] for event in (await page(ada, both))["events"]] == ["MESSAGE_ADDED"]
    assert (await page(ada, both))["cursor"] == await here(ada)
    for first in (0, -1, 1001):
        assert await refused(ada, cursor(ada, MADE), first=first) == "BAD_PAGINATION"


async def test_a_cursor_behind_what_is_kept_is_told_so(ada: Client) -> None:
    for number in range(4):
        await receive(ada, f"Number {number}")
    few = replace(ada.world, options=replace(ada.world.options, journal_events=2))
    assert (
        await housekeeping.run_round(few)
    ).changes == 4  # a row has all folders of a new account
    (event,) = (await page(ada, cursor(ada, MADE + 1)))["events"]
    assert (event["kind"], event["reason"]) == ("RESYNC", "CURSOR_EXPIRED")
    assert event["cursor"] == await here(ada)
    assert len((await page(ada, cursor(ada, MADE + 2)))["events"]) == 2


async def test_a_cursor_older_than_what_is_kept_is_told_so(ada: Client, clock: Clock) -> None:
    for number in range(3):
        await receive(ada, f"Number {number}")
    clock.tick(days=31)
    await receive(ada, "New")
    assert (await housekeeping.run_round(ada.world)).changes
    (event,) = (await page(ada, cursor(ada, MADE + 1)))["events"]
    assert (event["kind"], event["reason"]) == ("RESYNC", "CURSOR_EXPIRED")
    assert event["cursor"] == await here(ada)
    assert [e["kind"] for e in (await page(ada, cursor(ada, MADE + 3)))["events"]] == [
        "MESSAGE_ADDED"
    ]


async def far(client: Client, many: int) -> str:
    """Make so many changes; the cursor before them."""
    at, world, owner = await here(client), client.world, client.user.id

    def write(connection: Any) -> None:
        for _ in range(many // 500):
            entry = JournalEntry(ChangeKind.THREAD_CHANGED, [owner] * 500)
            record_in_streams(connection, {owner: [entry]}, at=world.now())

    async with world.write_session(owner) as session:
        await (await session.connection()).run_sync(write)
    return at


async def test_it_reaches_back_further_than_a_socket(ada: Client, statements: list[str]) -> None:
    at = await far(ada, 11_000)
    plain = """query ($after: Cursor!) { changes(after: $after, first: 1000) { cursor hasMore
      events { kind cursor } } }"""
    read, costs = 0, list[int]()
    while True:
        del statements[:]
        found = (await ada(plain, after=at))["changes"]
        costs.append(len([sent for sent in statements if "changes" in sent]))
        read, at = read + len(found["events"]), found["cursor"]
        if not found["hasMore"]:
            break
    assert read == 11_000
    assert set(costs) == {1}


async def test_objects_are_loaded_in_one_batch(ada: Client, statements: list[str]) -> None:
    async def cost(many: int) -> int:
        at = await here(ada)
        for number in range(many):
            await receive(ada, f"{at} {number}")
        del statements[:]
        assert len((await page(ada, at))["events"]) == many
        return len([sent for sent in statements if "api_keys" not in sent])

    await cost(2)
    assert await cost(2) == await cost(20)


# another's account


async def test_an_administrator_hears_another_account(ada: Client, over: Client) -> None:
    ref = {"username": "ada"}
    state = await over("query ($u: UserRef) { user(by: $u) { mailboxes { path } cursor } }", u=ref)
    at = state["user"]["cursor"]
    await receive(ada, "Hello")
    await mutate(ada, "mailboxCreate", paths=["Box"], options={"idempotencyKey": "secret"})
    found = await page(over, at, user=ref)
    added, made = found["events"]
    assert (added["kind"], added["user"]) == ("MESSAGE_ADDED", {"username": "ada"})
    assert (made["path"], made["origin"]) == ("Box", None)
    assert [event["origin"] for event in (await page(ada, at))["events"]] == [None, "secret"]
    assert (await page(over, found["cursor"], user=ref))["events"] == []
    assert await refused(over, await here(over), user=ref) == "BAD_CURSOR"


async def test_who_may_not_act_as_a_user_hears_nothing_of_them(
    ada: Client, bob: Client, over: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    ref, at = {"id": global_ids.encode("User", ada.user.id)}, await here(ada)
    assert await refused(bob, at, user=ref) == "NOT_FOUND"
    weak = await make_domain_admin(world, http, "weak")
    assert await refused(weak, at, user=ref) == "FORBIDDEN"
    strong = await make_domain_admin(world, http, "strong", [AdminPermission.LOGIN_AS])
    assert (await page(strong, at, user=ref))["events"] == []
    theirs = {"username": "over"}
    assert await refused(strong, await here(over), user=theirs) == "NOT_FOUND"
    chief = await make_client(world, http, "chief", role=Role.ROOT)
    assert await refused(over, await here(chief), user={"username": "chief"}) == "NOT_FOUND"
    own = {"username": "ada"}
    assert (await page(ada, at, user=own))["events"] == []


async def test_a_key_of_nobody_names_whom_it_means(ada: Client, world: Environment) -> None:
    secret = await make_key(world, "nobody", role=Role.ADMIN, scopes=[Scope.MASTER])
    nobody, at = Client(ada.http, world, ada.user, secret), await here(ada)
    assert await refused(nobody, at) == "FORBIDDEN"
    assert (await page(nobody, at, user={"username": "ada"}))["events"] == []


# state and cursor


async def writer(client: Client, seed: int, until: asyncio.Event) -> None:
    """Deliver, move, flag and delete until told to stop."""
    random, number, given = Random(seed), 0, dict[str, Any]()  # noqa: S311 - no secret
    while not until.is_set():
        number += 1
        keys = [
            one["id"]
            for one in (
                await client("""{ viewer { user { messages(first: 50) {
            nodes { id } } } } }""")
            )["viewer"]["user"]["messages"]["nodes"]
        ]
        match random.choice(("add", "add", "flag", "move", "delete")):
            case "flag" if keys:
                given = {"set": {"seen": random.random() < 0.5}}
                name = "messageUpdate"
            case "move" if keys:
                given = {"to": {"path": random.choice(("Box", "INBOX"))}}
                name = "messageMove"
            case "delete" if len(keys) > 5:
                given, name = {}, "messageDelete"
            case _:
                await receive(client, f"{seed} {number}")
                continue
        await mutate(client, name, "journalCursor", select={"ids": [random.choice(keys)]}, **given)


def state_of(answer: Any) -> dict[str, Any]:
    user = answer["viewer"]["user"]
    return {one["id"]: (one["mailbox"]["id"], one["seen"]) for one in user["messages"]["nodes"]}


async def test_a_state_and_its_cursor_fit_while_others_write(ada: Client) -> None:
    await add_mailboxes(ada, "Box")
    stop = asyncio.Event()
    writers = [asyncio.create_task(writer(ada, seed, stop)) for seed in range(3)]
    seen = list[tuple[dict[str, Any], str]]()
    for _ in range(15):
        answer = await ada(STATE)
        seen.append((state_of(answer), answer["viewer"]["user"]["cursor"]))
        await asyncio.sleep(0.02)
    stop.set()
    await asyncio.gather(*writers)
    last = state_of(await ada(STATE))
    assert len({at for _, at in seen}) > 5
    for replica, at in seen:
        for event in (await page(ada, at, first=1000))["events"]:
            if event["kind"] in ("MESSAGE_ADDED", "MESSAGE_UPDATED", "MESSAGE_MOVED"):
                replica[event["messageId"]] = event["mailboxId"], "\\Seen" in event["flags"]
            elif event["kind"] in ("MESSAGE_ARCHIVED", "MESSAGE_DELETED"):
                replica.pop(event["messageId"], None)
        assert replica == last


async def test_the_cursor_is_read_before_the_state(ada: Client, statements: list[str]) -> None:
    await ada(STATE)
    del statements[:]
    await ada(STATE)
    order = [
        nth
        for name in ("FROM streams", "FROM mailboxes", "FROM messages")
        for nth, sent in enumerate(statements)
        if name in sent
    ]
    assert order == sorted(order)
    assert len(order) == 3
