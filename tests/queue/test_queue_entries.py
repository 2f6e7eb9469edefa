"""The queue as its owner and administrators see it, and what they do to it."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select
from sqlmodel import col

from mail.maintenance import restore_mark
from mail.mime.header_encoding import NamedAddress
from mail.queue import bulk_updates, recipient_leases
from mail.queue.enqueue import NewSubmission, SubmissionOwner, enqueue
from models.admin.admin_log import AdminLogEntry
from models.files.blobs import SubmissionBlob
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from models.submission.tables import Submission
from resolvers.admin import tasks
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import CURSOR_KIND, QueueEntryConditions, QueueName
from resolvers.users.selection import UserSelector
from tests.conftest import Client, Clock, context
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import mutate
from tests.support.mail_servers.queue_worker import (
    PACE,
    deliveries,
    inbox,
    relay,
    ring,
    send,
    settled,
    state,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.quarantine_operations import set_options
from tests.support.servers.live_server import House, until
from tests.support.stores.counter_check import examine
from tests.support.stores.query_plans import explained

QUEUE = """query ($filter: QueueFilter, $first: Int, $after: String) {
  queue(filter: $filter, first: $first, after: $after) {
    totalCount pageInfo { hasNextPage endCursor } nodes {
      id queueId queueName sender size arrivedAt nextAttemptAt lastError
      user { username } submission { id }
      recipients { recipient state queueName nextAttemptAt attempts } } } }"""
NODE = "query ($id: ID!) { node(id: $id) { id ... on QueueEntry { queueName } } }"
CHANGES = """subscription ($filter: QueueFilter) { queueChanges(filter: $filter) {
  queueId queueName recipients { recipient state attempts } } }"""
LATER = {"carol": "450 4.2.1 Later", "dave": "450 4.2.1 Later"}

SOME = {"since": "2000-01-01T00:00:00Z"}  # a filter that finds all


async def listed(client: Client, **given: Any) -> list[Any]:
    return list((await client(QUEUE, **given))["queue"]["nodes"])


async def queue_id(world: Environment, key: int) -> str:
    (row,) = await world.database.read(
        select(col(Submission.queue_id)).where(col(Submission.id) == key)
    )
    return str(row.queue_id)


async def platforms(world: Environment, like: int, sender: str = "") -> int:
    """Something the platform sends by itself, with the bytes of another submission."""
    (row,) = await world.database.read(
        select(col(Submission.blob_id), col(Submission.tenant_id), col(Submission.size)).where(
            col(Submission.id) == like
        )
    )
    handed = NewSubmission(
        sender, ["eve@example.net"], row.size, row.blob_id, [row.blob_id], None, world.now()
    )
    return await world.run_transaction(
        lambda turn: enqueue(turn, SubmissionOwner(None, row.tenant_id), handed), 0
    )


async def noted(world: Environment) -> list[int | None]:
    """The entries whose removal is in the administrators' log."""
    asked = select(col(AdminLogEntry.target_id)).where(col(AdminLogEntry.mutation) == "queueDelete")
    return [
        row.target_id for row in await world.database.read(asked.order_by(col(AdminLogEntry.id)))
    ]


async def task_done(client: Client) -> None:
    while await tasks.run_next_task(client.world):
        pass


async def deferred(client: Client, *to: NamedAddress) -> int:
    """A message that was tried once."""
    async with listening(Server(dict(LATER))) as there, working(client.world, relay(there)):
        key = await send(client, *to)
        await settled(client.world, key)
    return key


async def test_each_sees_the_own_and_administrators_more(
    ada: Client, bob: Client, over: Client, root: Client, http: httpx.AsyncClient
) -> None:
    world = ada.world
    keys = [await send(ada), await send(bob)]
    keys.append(await platforms(world, keys[0]))
    names = [await queue_id(world, key) for key in keys]
    chief = await make_domain_admin(world, http, "chief")
    other = await make_domain_admin(world, http, "other", domains=())
    seen = {"ada": names[:1], "bob": names[1:2], "chief": names[:2], "other": []}
    for client in (ada, bob, chief, other):
        found = await listed(client)
        assert [one["queueId"] for one in found] == seen[client.user.username]
        for one in found:
            assert (await client(NODE, id=one["id"]))["node"]["queueName"] == "INCOMING"
    for client in (over, root):
        found = await listed(client)
        assert [one["queueId"] for one in found] == names
        assert [one["user"] and one["user"]["username"] for one in found] == ["ada", "bob", None]
        assert [one["submission"] for one in found] == [None] * 3
    (mine,) = await listed(ada)
    assert mine["submission"] is not None
    assert (mine["sender"], mine["queueName"]) == ("ada@example.org", "INCOMING")
    assert mine["nextAttemptAt"] == mine["arrivedAt"]
    assert mine["size"] > 0
    (theirs,) = await listed(bob)
    assert (await ada(NODE, id=theirs["id"]))["node"] is None


async def test_where_an_entry_stands(
    ada: Client, over: Client, world: Environment, clock: Clock
) -> None:
    key = await deferred(ada)
    (one,) = await listed(ada)
    assert (one["queueName"], one["lastError"]) == ("DEFERRED", "450 4.2.1 Later")
    assert {to["queueName"] for to in one["recipients"]} == {"DEFERRED"}
    assert one["nextAttemptAt"] in [to["nextAttemptAt"] for to in one["recipients"]]
    name = one["queueId"]
    held = await mutate(over, "queueHold", "entries { queueName }", queueIds=[name], hold=True)
    assert held["entries"] == [{"queueName": "HOLD"}]
    (one,) = await listed(ada)
    assert (one["queueName"], one["nextAttemptAt"]) == ("HOLD", None)
    assert {to["nextAttemptAt"] for to in one["recipients"]} == {None}
    clock.tick(days=6)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 0
    gone = await mutate(over, "queueHold", "entries { queueName }", queueIds=[name], hold=False)
    assert gone["entries"] == [{"queueName": "DEFERRED"}]
    assert (
        await recipient_leases.claim_due_jobs(world, PACE)
    ).recipient_count == 2  # held for days, and no older
    assert {row.expires_at for row in (await deliveries(world, key)).values()} == {
        world.now() + timedelta(days=5)
    }
    (one,) = await listed(ada)
    assert (one["queueName"], one["nextAttemptAt"]) == ("ACTIVE", None)
    for where in QueueName:
        found = await listed(ada, filter={"queueName": where.value})
        assert len(found) == (where is QueueName.ACTIVE)


async def test_what_is_held_while_it_is_sent_is_not_tried_again(
    ada: Client, over: Client, world: Environment, clock: Clock
) -> None:
    key = await send(ada)
    (job,) = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
    name = await queue_id(world, key)
    await mutate(over, "queueHold", "entries { queueName }", queueIds=[name], hold=True)
    await recipient_leases.release_unattempted(world, [job])
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 0
    clock.tick(days=1)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 0
    await mutate(over, "queueHold", "entries { queueName }", queueIds=[name], hold=False)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 2


async def test_lists_are_filtered_and_paged(ada: Client, over: Client, clock: Clock) -> None:
    names = []
    for nth in range(5):
        key = await send(ada, NamedAddress(f"n{nth}@example{nth % 2}.net"))
        names.append(await queue_id(ada.world, key))
        clock.tick(seconds=1)
    begun = await platforms(ada.world, key)
    null = await queue_id(ada.world, begun)

    async def found(client: Client, **filter: Any) -> list[str]:
        return [one["queueId"] for one in await listed(client, filter=filter or None)]

    assert await found(ada, recipient="@EXAMPLE1") == names[1::2]
    assert await found(ada, sender="ADA@") == names
    assert await found(over, sender="") == [null]
    assert await found(over, users={"usernames": ["ada"]}) == names
    assert await found(ada, queueName="INCOMING", recipient="n3") == names[3:4]
    assert await found(ada, since=(clock() - timedelta(seconds=2)).isoformat()) == names[3:]
    first = (await over(QUEUE, first=4))["queue"]
    assert (first["totalCount"], first["pageInfo"]["hasNextPage"]) == (6, True)
    rest = (await over(QUEUE, first=4, after=first["pageInfo"]["endCursor"]))["queue"]
    assert [one["queueId"] for one in first["nodes"] + rest["nodes"]] == [*names, null]


async def test_listing_costs_the_same_however_many(
    ada: Client, over: Client, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        await listed(over)
        return len(statements)

    await send(ada)
    await cost()  # the credential is remembered from here on
    one = await cost()
    for _ in range(20):
        await send(ada)
    assert await cost() == one


async def test_lists_and_claims_are_by_indexes_of_what_waits(
    ada: Client, over: Client, world: Environment
) -> None:
    await deferred(ada)
    for client in (ada, over):
        ctx, ask = context(client), PageRequest(CURSOR_KIND, 20)
        with explained(world) as plans:
            for where in (
                QueueEntryConditions(),
                QueueEntryConditions(user_selection=UserSelector(ids=(ada.user.id,))),
            ):
                plan = await plans.of(
                    queue_loaders.read_entry_page(ctx, where, ask, {"id"}),
                    "submissions",
                    asking="ORDER BY",
                )
                if world.database.dialect == "sqlite":
                    assert "INDEX submissions_waiting" in plan
                    assert "SCAN submissions\n" not in plan
                    assert where.user_selection.is_given or "TEMP B-TREE" not in plan
            for name in QueueName:
                plan = await plans.of(
                    queue_loaders.read_entry_page(ctx, QueueEntryConditions(name), ask, {"id"}),
                    "submissions",
                    asking="ORDER BY",
                )
                if world.database.dialect == "sqlite":
                    assert "SCAN deliveries\n" not in f"{plan}\n"
    with explained(world) as plans:
        for plan in await plans.those(
            recipient_leases.claim_due_jobs(world, PACE), lambda sent: "SELECT" in sent
        ):
            if world.database.dialect == "sqlite":
                assert "SCAN deliveries\n" not in f"{plan}\n"
                assert "SCAN waiting" not in plan


@pytest.mark.parametrize("few", [0, 1000])
async def test_what_is_tried_again_is_found_whether_it_is_little_or_much(
    ada: Client, bob: Client, over: Client, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(queue_loaders, "MAX_DEFERRED_IDS", few)
    keys = [await deferred(client) for client in (ada, bob, ada)]
    for client in (ada, bob):
        await send(client)
    tried = [await queue_id(ada.world, key) for key in keys]
    again = {"queueName": "DEFERRED"}
    assert [one["queueId"] for one in await listed(bob, filter=again)] == tried[1:2]
    first = (await over(QUEUE, first=2, filter=again))["queue"]
    assert (first["totalCount"], first["pageInfo"]["hasNextPage"]) == (3, True)
    after = first["pageInfo"]["endCursor"]
    rest = (await over(QUEUE, first=2, filter=again, after=after))["queue"]
    assert [one["queueId"] for one in first["nodes"] + rest["nodes"]] == tried


async def test_those_tried_again_are_looked_up_by_their_index(
    over: Client, world: Environment
) -> None:
    with explained(world) as plans:
        looked = queue_loaders.read_entry_page(
            context(over),
            QueueEntryConditions(QueueName.DEFERRED),
            PageRequest(CURSOR_KIND, 20),
            {"id"},
        )
        plan, _ = await plans.all_of(looked, "deliveries", asking="LIMIT")
        if world.database.dialect == "sqlite":
            assert "INDEX deliveries_deferred" in plan


# removal


async def test_a_user_removes_the_own_and_nothing_else(
    ada: Client, bob: Client, world: Environment
) -> None:
    keys = [await send(ada), await send(bob)]
    keys.append(await platforms(world, keys[0]))
    mine, theirs, nobodys = [await queue_id(world, key) for key in keys]
    for name in (theirs, nobodys, "nothing"):
        refused = await mutate(ada, "queueDelete", "deletedCount", queueIds=[mine, name])
        assert [(e["code"], e["path"], e["index"]) for e in refused["errors"]] == [
            ("NOT_FOUND", ["queueIds"], 1)
        ]
    for more in ({"all": True}, {"filter": {"users": {"all": True}}}):
        refused = await mutate(ada, "queueDelete", "deletedCount", **more)
        assert [e["code"] for e in refused["errors"]] == ["FORBIDDEN"]
    done = await mutate(ada, "queueDelete", "deletedCount task { id }", filter=SOME)
    assert (done["deletedCount"], done["task"], done["errors"]) == (2, None, [])
    assert await listed(ada) == []
    assert [await state(world, key) for key in keys] == ["CANCELLED", "QUEUED", "QUEUED"]
    (left,) = await world.database.read(
        select(func.count().label("many")).where(col(SubmissionBlob.submission_id) == keys[0])
    )
    assert left.many == 0
    refused = await mutate(ada, "queueDelete", "deletedCount", queueIds=[mine])
    assert [e["code"] for e in refused["errors"]] == ["NOT_FOUND"]
    assert await noted(world) == []
    await examine(world)


async def test_a_filter_without_conditions_deletes_nothing(ada: Client, over: Client) -> None:
    key = await send(ada)
    refusals: list[Any] = [{}, {"users": {}}, {"recipient": ""}]
    for given in ({"filter": one} for one in refusals):
        refused = await mutate(over, "queueDelete", "deletedCount", **given)
        assert [e["code"] for e in refused["errors"]] == ["VALIDATION"]
    nothing: list[dict[str, Any]] = [{"queueIds": []}, {"filter": {"users": {"usernames": []}}}]
    for empty in nothing:
        done = await mutate(over, "queueDelete", "deletedCount task { id }", **empty)
        assert (done["deletedCount"], done["task"], done["errors"]) == (0, None, [])
    assert await state(ada.world, key) == "QUEUED"


@pytest.mark.parametrize(
    "given", [{}, {"all": True, "queueIds": ["x"]}, {"filter": SOME, "all": True}]
)
async def test_it_is_said_in_one_way_which(over: Client, given: Any) -> None:
    for name, count in (("queueDelete", "deletedCount"), ("queueFlush", "scheduledCount")):
        refused = await mutate(over, name, count, **given)
        assert [e["path"] for e in refused["errors"]] == [["queueIds"]]


async def test_what_is_being_sent_stays(ada: Client, over: Client, world: Environment) -> None:
    key = await send(ada)
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 2
    name = await queue_id(world, key)
    done = await mutate(over, "queueDelete", "deletedCount", queueIds=[name])
    assert (done["deletedCount"], done["errors"]) == (0, [])
    assert {row.state for row in (await deliveries(world, key)).values()} == {"PENDING"}


async def test_who_sent_it_hears_of_it(
    ada: Client, bob: Client, over: Client, world: Environment
) -> None:
    key, other = await deferred(ada), await send(bob)
    name = await queue_id(world, key)
    done = await mutate(
        over, "queueDelete", "deletedCount task { kind }", queueIds=[name], notifySender=True
    )
    assert (done["deletedCount"], done["task"]) == (0, {"kind": "QUEUE_DELETE"})
    await task_done(ada)
    assert {row.state for row in (await deliveries(world, key)).values()} == {"BOUNCED"}
    assert await state(world, key) == "FAILED"
    (report,) = await inbox(ada)
    assert "carol@example.net" in report.preview
    assert await inbox(bob) == []
    assert await state(world, other) == "QUEUED"
    await examine(world)


async def test_administrators_remove_whatever_there_is_and_it_is_noted(
    ada: Client, bob: Client, over: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    keys = [await send(ada), await send(bob)]
    keys.append(await platforms(world, keys[0]))
    chief = await make_domain_admin(world, http, "chief")
    name = await queue_id(world, keys[0])
    done = await mutate(chief, "queueDelete", "deletedCount", queueIds=[name])
    assert (done["deletedCount"], done["errors"]) == (2, [])
    for given in ({"queueIds": [await queue_id(world, keys[2])]}, {"all": True}):
        refused = await mutate(chief, "queueDelete", "deletedCount", **given)
        assert len(refused["errors"]) == 1
    done = await mutate(over, "queueDelete", "deletedCount", all=True)
    assert (done["deletedCount"], done["errors"]) == (3, [])
    assert await noted(world) == keys
    assert await listed(over) == []


async def test_much_is_the_work_of_a_task(
    ada: Client, over: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_options(world, bulk=2)
    monkeypatch.setattr(bulk_updates, "MAX_SUBMISSIONS", 2)
    keys = [await send(ada) for _ in range(5)]
    done = await mutate(over, "queueDelete", "deletedCount task { kind total }", all=True)
    assert (done["deletedCount"], done["task"]) == (0, {"kind": "QUEUE_DELETE", "total": 5})
    await task_done(over)
    assert {await state(world, key) for key in keys} == {"CANCELLED"}
    await examine(world)


# hurry


async def test_a_flush_tries_at_once_what_waits_for_another_try(
    ada: Client, over: Client, world: Environment, clock: Clock
) -> None:
    key = await deferred(ada)
    later = await send(ada, send_time=clock() + timedelta(hours=1))
    assert (await recipient_leases.claim_due_jobs(world, PACE)).recipient_count == 0
    done = await mutate(over, "queueFlush", "scheduledCount task { id }", all=True)
    assert (done["scheduledCount"], done["task"], done["errors"]) == (2, None, [])
    (job,) = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
    assert (job.submission_id, job.recipients[0].attempts) == (key, 2)
    assert await state(world, later) == "SCHEDULED"
    again = await mutate(over, "queueFlush", "scheduledCount", all=True)
    assert again["scheduledCount"] == 0  # it is being sent


async def test_flushing_and_holding_are_for_administrators(
    ada: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    key = await send(ada)
    name = await queue_id(world, key)
    chief = await make_domain_admin(world, http, "chief")
    calls = (
        ("queueFlush", "scheduledCount", {"all": True}),
        ("queueHold", "entries { id }", {"queueIds": [name], "hold": True}),
    )
    for client in (ada, chief):
        for call, selection, given in calls:
            refused = await mutate(client, call, selection, **given)
            assert [e["code"] for e in refused["errors"]] == ["FORBIDDEN"]


# followed


async def test_arrivals_and_attempts_are_followed_in_order(
    live: House, ada: Client, over: Client, world: Environment, clock: Clock
) -> None:
    follower = await live.follow(over, CHANGES)
    held = await live.follow(over, CHANGES, filter={"queueName": "HOLD"})

    def last() -> Any:
        return follower.results[-1] if follower.results else {"recipients": [], "queueName": ""}

    async with (
        listening(Server({"dave": "450 4.2.1 Later"})) as there,
        working(world, relay(there)),
    ):
        await settled(world, await send(ada))
        half = ["RELAYED", "DEFERRED"]
        await until(lambda: [to["state"] for to in last()["recipients"]] == half)
        assert [to["attempts"] for to in last()["recipients"]] == [1, 1]
        names = [last()["queueId"]]
        await mutate(over, "queueHold", "entries { id }", queueIds=names, hold=True)
        await until(lambda: last()["queueName"] == "HOLD")
        await mutate(over, "queueHold", "entries { id }", queueIds=names, hold=False)
        del there.replies["dave"]
        clock.tick(hours=1)
        ring(world)
        await until(lambda: last()["queueName"] is None)
        assert {to["state"] for to in last()["recipients"]} == {"RELAYED"}
    await until(lambda: held.results and held.results[-1]["queueName"] is None)
    assert held.results[0]["queueName"] == "HOLD"
    assert await live.refused(ada, CHANGES) == "FORBIDDEN"
    for one in (follower, held):
        await one.leave()


async def test_entries_are_followed_after_a_restore_of_the_database(
    live: House, ada: Client, over: Client, world: Environment
) -> None:
    follower = await live.follow(over, CHANGES)
    async with asyncio.timeout(10):
        while not follower.results:  # it tells of what comes once it listens
            await send(ada)
            await asyncio.sleep(0.05)
    await restore_mark.begin_after_consistent_restore(world)
    name = await queue_id(world, await send(ada))
    await until(lambda: name in {one["queueId"] for one in follower.results}, 20)
    await follower.leave()


async def test_no_entry_is_missed_however_many_come(
    live: House, ada: Client, bob: Client, over: Client, world: Environment
) -> None:
    follower = await live.follow(over, CHANGES)
    async with asyncio.timeout(10):
        while not follower.results:  # it tells of what comes once it listens
            await send(ada)
            await asyncio.sleep(0.05)
    keys = []
    for _ in range(30):
        keys += [await send(ada), await send(bob)]
        keys.append(await platforms(world, keys[0]))
    names = {await queue_id(world, key) for key in keys}
    await until(lambda: names <= {one["queueId"] for one in follower.results})
    order = [one["queueId"] for one in follower.results]
    mine = [await queue_id(world, key) for key in keys[::3]]
    assert [name for name in order if name in mine] == mine
    await follower.leave()
