"""The steps of messages by sender, recipient and time, and the messages they lead to."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, text

from mail.delivery.listener_backend import LocalBackend
from mail.storage import message_trace, received_messages
from models.messages.message_trace import DeliveryTraceStep, LogComponent
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role
from tests.conftest import Client, Clock, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import run
from tests.support.operations.bulk_operations import nodes
from tests.support.stores.counter_check import rows
from tests.support.stores.query_plans import explained

EVENTS = """query ($filter: MessageTraceFilter!, $first: Int, $after: String, $last: Int) {
  messageTraceEvents(filter: $filter, first: $first, after: $after, last: $last) {
    nodes { at queueId event address sender MORE }
    totalCount pageInfo { hasNextPage endCursor } } }"""
CAROL = "carol@example.com"
MANY = 20_000
TIME_ALONE = "name a sender or a recipient; only an ADMIN can search by time alone"
RANGE = "since must be earlier than before"
NEW_YEAR = "2030-01-01T00:00:00Z"
pytestmark = pytest.mark.usefixtures("examined")


async def page(client: Client, more: str = "", **ask: Any) -> Any:
    filter_ = {name: ask.pop(name) for name in ("sender", "recipient", "since", "before")
               if name in ask}  # fmt: skip
    given = {"filter": filter_, **ask}
    return (await client(EVENTS.replace("MORE", more), **given))["messageTraceEvents"]


async def events(client: Client, **ask: Any) -> list[str]:
    """What happened, the oldest first."""
    return [node["event"] for node in reversed((await page(client, **ask))["nodes"])]


async def come(client: Client, sender: str = CAROL, subject: str = "Hello") -> None:
    """A message comes in by LMTP."""
    house = LocalBackend(client.world)
    accepted = await house.accept_recipient(client.address, sender)
    await house.deliver(raw_message(subject), [accepted], sender)


@pytest.mark.parametrize(
    ("asked", "finds"),
    [
        ({"recipient": "ada@example.org"}, True),
        ({"recipient": "A.da+x@EXAMPLE.org"}, True),
        ({"recipient": "example.org"}, True),
        ({"recipient": "@Example.Org"}, True),
        ({"sender": "carol@example.com"}, True),
        ({"sender": "Carol@example.com", "recipient": "example.org"}, True),
        ({"sender": "example.com"}, True),
        ({"recipient": "bob@example.org"}, False),
        ({"sender": "ada@example.org"}, False),
        ({"sender": "example.org"}, False),
        ({"recipient": "ada"}, False),
    ],
)
async def test_what_came_is_found_by_either_end(
    ada: Client, over: Client, asked: dict[str, str], finds: bool
) -> None:
    await come(ada)
    assert await events(over, **asked) == (["accepted", "judged", "stored"] if finds else [])


async def test_a_step_leads_to_the_stored_message(ada: Client, over: Client, root: Client) -> None:
    await come(ada)
    (message,) = await nodes(ada)
    for client in (over, root):
        found = await page(client, "message { id }", recipient=ada.address)
        assert [node["message"] for node in found["nodes"]] == [{"id": message["id"]}, None, None]
    asked = "query ($id: String!) { messageTrace(queueId: $id) { event sender message { id } } }"
    steps = (await over(asked, id=found["nodes"][0]["queueId"]))["messageTrace"]
    assert steps[-1] == {"event": "stored", "sender": CAROL, "message": {"id": message["id"]}}
    given = {"select": {"ids": [message["id"]]}}
    assert (await run(ada, "messageDelete", "deletedCount", **given))["errors"] == []
    found = await page(over, "message { id }", recipient=ada.address)
    assert [node["message"] for node in found["nodes"]] == [None] * 3


async def test_what_is_sent_is_found_by_each_recipient(ada: Client, over: Client) -> None:
    to = [{"address": "dave@far.example"}, {"address": "Eve@other.example"}]
    given = {"to": to, "subject": "Hi", "text": "x"}
    done = await run(ada, "messageSend", "submission { queueId } message { id }", **given)
    assert done["errors"] == []
    asks: list[dict[str, str]] = [
        {"recipient": "dave@far.example"},
        {"recipient": "eve@other.example"},
        {"recipient": "other.example", "sender": ada.address},
    ]
    for asked in asks:
        (node,) = (await page(over, "message { id }", **asked))["nodes"]
        assert (node["event"], node["sender"]) == ("queued", ada.address)
        assert (node["queueId"], node["message"]) == (
            done["submission"]["queueId"], done["message"],
        )  # fmt: skip
    assert await events(over, sender="example.org") == ["queued", "queued"]


async def test_a_range_of_time_and_pages(ada: Client, over: Client, clock: Clock) -> None:
    begun = clock()
    for subject in "abc":
        await come(ada, subject=subject)
        clock.tick(seconds=3600)
    hour = timedelta(hours=1)
    times = {"since": (begun + hour).isoformat(), "before": (begun + 2 * hour).isoformat()}
    assert (await page(over, sender=CAROL, **times))["totalCount"] == 3
    assert (await page(over, sender=CAROL, since=times["since"]))["totalCount"] == 6
    whole = await page(over, sender=CAROL)
    assert (whole["totalCount"], len(whole["nodes"])) == (9, 9)
    found, after = list[Any](), None
    while True:
        part = await page(over, sender=CAROL, first=2, **({"after": after} if after else {}))
        found += part["nodes"]
        after = part["pageInfo"]["endCursor"]
        if not part["pageInfo"]["hasNextPage"]:
            break
    assert found == whole["nodes"]
    assert (await page(over, sender=CAROL, last=2))["nodes"] == whole["nodes"][-2:]


async def test_a_domain_admin_sees_what_they_may(
    ada: Client, over: Client, world: Environment, root: Client
) -> None:
    bare = await make_domain_admin(world, root.http, "bare")
    acting = await make_domain_admin(world, root.http, "acting", [AdminPermission.LOGIN_AS])
    far = {"name": "far.example"}
    assert (await run(root, "domainCreate", "domain { id }", **far))["errors"] == []
    other = await make_domain_admin(world, root.http, "other", domains=["far.example"])
    await come(ada)
    (message,) = await nodes(ada)
    for client, seen in ((bare, None), (acting, {"id": message["id"]})):
        found = await page(client, "message { id }", sender=CAROL)
        assert [node["message"] for node in found["nodes"]] == [seen, None, None]
    assert await events(other, sender=CAROL) == []
    top = await make_client(world, root.http, "top", role=Role.ROOT)
    for client in (ada, top):
        given = {"to": [{"address": "dave@far.example"}], "subject": "Hi", "text": "x"}
        assert (await run(client, "messageSend", "message { id }", **given))["errors"] == []
    for client, many in ((bare, 1), (over, 2), (other, 0)):
        found = await page(client, sender="example.org")
        assert (found["totalCount"], len(found["nodes"])) == (many, many)
    found = await page(over, "message { id }", sender=top.address)
    assert [node["message"] for node in found["nodes"]] == [None]
    (error,) = (await ada.raw(EVENTS.replace("MORE", ""), filter={"sender": "x"}))["errors"]
    assert error["extensions"]["code"] == "FORBIDDEN"


def not_an_address(name: str) -> str:
    return f"{name} must be an address or a domain of at most 1000 characters"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sender": "x" * 1001}, not_an_address("sender")),
        ({"sender": "carol@"}, not_an_address("sender")),
        ({"recipient": "a\tb"}, not_an_address("recipient")),
        ({"recipient": "a@b c"}, not_an_address("recipient")),
        ({"recipient": "@"}, not_an_address("recipient")),
        ({"sender": CAROL, "since": NEW_YEAR, "before": NEW_YEAR}, RANGE),
    ],
)
async def test_a_bad_filter_is_refused(over: Client, given: dict[str, str], words: str) -> None:
    """Only the field with the bad filter reports an error."""
    document = (
        'query ($filter: MessageTraceFilter!) { good: messageTraceEvents(filter: {sender: "x"}) '
        "{ nodes { at } } bad: messageTraceEvents(filter: $filter) { nodes { at } } }"
    )
    (error,) = (await over.raw(document, filter=given))["errors"]
    assert (error["message"], error["path"]) == (words, ["bad"])
    assert error["extensions"]["code"] == "BAD_USER_INPUT"


async def test_only_an_admin_searches_by_time_alone(
    ada: Client, over: Client, world: Environment, root: Client, clock: Clock
) -> None:
    await come(ada, subject="early")
    clock.tick(seconds=3600)
    since = clock().isoformat()
    await come(ada)
    for client in (over, root):
        assert await events(client, since=since) == ["accepted", "judged", "stored"]
        assert len(await events(client, before=since)) == 3
    local = await make_domain_admin(world, root.http, "local")
    (error,) = (await local.raw(EVENTS.replace("MORE", ""), filter={"since": since}))["errors"]
    assert (error["extensions"]["code"], error["message"]) == ("BAD_USER_INPUT", TIME_ALONE)
    assert await events(local, since=since, recipient="example.org") == await events(
        over, since=since
    )


async def test_addresses_are_shown_as_given(ada: Client, over: Client) -> None:
    await come(ada, "Carol.Ann+news@Example.com")
    found = await page(over, sender="carolann@example.com")
    assert [node["sender"] for node in found["nodes"]] == ["Carol.Ann+news@Example.com"] * 3
    await come(ada, "")
    assert [node["sender"] for node in (await page(over, recipient=ada.address))["nodes"]] == [
        *[None] * 3, *["Carol.Ann+news@Example.com"] * 3,
    ]  # fmt: skip


async def test_long_addresses_are_stored_and_found(ada: Client, over: Client) -> None:
    """No address is too long for the indexes of PostgreSQL."""
    long = f"{'ü' * 900}@{'ö' * 900}.example"
    way = message_trace.TraceRecorder("long", long)
    for address in (long, "ö" * 1000, "x@" + "\0" * 900 + "ö" * 900):
        way.record_step(ada.world, "accepted", (address, None))
    way.schedule_write(ada.world, await received_messages.read_message(raw_message("Hello")))
    await message_trace.flush(ada.world)
    assert len(await rows(ada.world, "SELECT id FROM message_steps")) == 3
    assert len((await page(over, sender="ü" * 900 + "@x.example"))["nodes"]) == 3


async def test_many_lists_and_links_take_as_many_statements_as_one(
    ada: Client, over: Client, statements: list[str]
) -> None:
    for _ in range(20):
        await come(ada)
    await message_trace.flush(ada.world)

    async def sent(lists: int, first: int) -> int:
        fields = " ".join(
            f'l{nth}: messageTraceEvents(filter: {{sender: "{CAROL}", since: "200{nth % 10}-01-01'
            f'T00:00:00Z"}}, first: {first + nth}) {{ nodes {{ at message {{ id uid }} }} }}'
            for nth in range(lists)
        )
        del statements[:]
        found = await over("{ " + fields + " }")
        assert len(found["l0"]["nodes"]) == first
        assert any(node["message"] for node in found["l0"]["nodes"])
        return len(statements)

    await sent(1, 3)  # the first request also looks up the credential
    few = await sent(1, 3)
    assert await sent(1, 60) == few
    assert await sent(20, 3) == few


async def fill(world: Environment, *, analyze: bool) -> datetime:
    """Store steps of messages, one each second; the time of the first."""
    at = world.now()
    steps = [
        {
            "id": world.new_id(), "at": at + timedelta(seconds=nth), "queue_id": f"q{nth}",
            "component": LogComponent.MTA, "event": "accepted", "domain_id": nth % 3,
            "sender_compared": f"s{nth % 50}@s{nth % 7}.example",
            "sender_domain": f"s{nth % 7}.example",
            "compared": f"r{nth % 50}@r{nth % 7}.example",
            "recipient_domain": f"r{nth % 7}.example",
        }
        for nth in range(MANY)
    ]  # fmt: skip
    async with world.write_session() as session:
        connection = await session.connection()
        await connection.execute(insert(core_table(DeliveryTraceStep)), steps)
        if analyze:
            await connection.execute(text("ANALYZE"))
    await message_trace.flush(world)
    return at


@pytest.mark.parametrize("analyze", [False, True])
async def test_each_filter_has_an_index(
    over: Client, world: Environment, root: Client, analyze: bool
) -> None:
    """A page is read from one index in its order, however many steps there are."""
    if not analyze and world.database.dialect == "postgresql":
        pytest.skip("PostgreSQL has statistics of a table of this size")
    at = await fill(world, analyze=analyze)
    local = await make_domain_admin(world, root.http, "local")
    address, domain = "s1@s1.example", "r1.example"
    asks: list[tuple[str, dict[str, str]]] = [
        ("message_steps_of_sender", {"sender": address}),
        ("message_steps_of_sender", {"sender": address, "recipient": domain}),
        ("message_steps_of_sender_domain", {"sender": "s1.example"}),
        ("message_steps_of_recipient", {"recipient": "r1@r1.example"}),
        ("message_steps_of_recipient", {"recipient": "r1@r1.example", "sender": "s1.example"}),
        ("message_steps_of_recipient_domain", {"recipient": domain}),
    ]
    since = {"since": (at + timedelta(seconds=MANY // 2)).isoformat()}
    with explained(world) as plans:

        async def check(client: Client, index: str, **asked: Any) -> str:
            first = await page(client, **asked, first=20)
            plan = ""
            after = first["pageInfo"]["endCursor"]
            for more in ({}, {"after": after} if after else {}):
                work = page(client, **asked, **more, first=20)
                plan = await plans.of(work, "message_steps", asking="ORDER BY")
                assert index in plan, plan
                assert "Seq Scan on message_steps" not in plan, plan
                assert "TEMP B-TREE" not in plan, plan
            return plan

        for index, asked in asks:
            for client in (over, local):
                for more in ({}, since):
                    assert "Sort" not in await check(client, f"{index} ", **asked, **more)
        plan = await check(over, "ix_message_steps_at ", **since)
        assert "Sort" not in plan or "Incremental Sort" in plan, plan  # PostgreSQL: by id
