"""What becomes of mail that is held: it is let in or deleted, or goes with its account."""

import asyncio

import httpx
import pytest

from graph.types import global_ids
from mail.delivery.quarantine import QuarantineReason
from mail.maintenance import housekeeping
from models.events.journal import ChangeKind
from models.users.roles import AdminPermission
from resolvers.admin import tasks
from tests.conftest import Client, Clock, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.quota_accounts import bounded
from tests.support.operations.domain_operations import done, told
from tests.support.operations.quarantine_operations import (
    CAROL,
    DELETE,
    KIND,
    LIST,
    OFTEN,
    RELEASE,
    SPAM,
    TRY,
    come,
    held,
    hold,
    inbox,
    listed,
    mixed,
    permit,
    set_options,
    stamps,
)
from tests.support.sample_mutations import Call
from tests.support.stores.counter_check import journal, reached, rows

pytestmark = pytest.mark.usefixtures("examined")


async def test_a_message_is_let_in_as_if_it_had_just_come(
    ada: Client, clock: Clock, http: httpx.AsyncClient
) -> None:
    world, raw = ada.world, mixed()
    key = await hold(ada, raw)
    clock.tick(days=3)
    since = await reached(world, ada.user.id)
    answer, errors = await done(ada, RELEASE, ids=[key])
    assert errors == []
    assert answer["messages"] == [
        {
            "subject": "Mixed",
            "mailbox": {"path": "INBOX"},
            "seen": False,
            "envelope": {"from": CAROL, "rcpt": [{"value": ada.address}]},
        }
    ]
    assert [kind for kind, _ in await journal(world, ada.user.id, since)] == [
        ChangeKind.MESSAGE_ADDED,
        KIND,
    ]
    assert (await held(world), await listed(ada)) == ([], [])
    ((facts,),) = await rows(
        world,
        "SELECT facts FROM changes WHERE kind = 'MESSAGE_ADDED' ORDER BY at DESC LIMIT 1",
    )
    assert '"received"' in str(facts) or "'received'" in str(facts)
    source = "{ viewer { user { messages(first: 1) { nodes { sourceUrl receivedAt } } } } }"
    (node,) = (await ada(source))["viewer"]["user"]["messages"]["nodes"]
    assert (await http.get(node["sourceUrl"])).content == stamps(ada) + raw
    assert node["receivedAt"] == "2030-01-04T00:00:00Z"
    await come(world, ada, raw=raw)  # it comes again: what was let in is known
    assert await inbox(ada) == ["Mixed"]
    _, errors = await done(ada, RELEASE, ids=[key])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 0)


async def test_all_are_let_in_or_none(ada: Client, bob: Client) -> None:
    world = ada.world
    mine, his = await hold(ada, "a"), await hold(bob, "b")
    large = await hold(ada, raw_message("c", body="x" * 3000))
    _, errors = await done(ada, RELEASE, ids=[mine, his])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 1)
    await bounded(ada, quota=2000)
    _, errors = await done(ada, RELEASE, ids=[mine, large])
    assert (errors[0]["code"], errors[0]["path"], errors[0]["index"]) == (
        "QUOTA_EXCEEDED", ["ids"], 1,
    )  # fmt: skip
    assert (await inbox(ada), len(await held(world))) == ([], 3)
    _, errors = await done(ada, RELEASE, ids=[mine] * 101)
    assert told(errors) == ("VALIDATION", ["ids"], None, "max")
    answer, errors = await done(ada, RELEASE, ids=[mine, mine])
    assert ([one["subject"] for one in answer["messages"]], errors) == (["a"], [])


async def test_two_that_let_in_the_same_let_it_in_once(ada: Client) -> None:
    key = await hold(ada)
    both = await asyncio.gather(*(done(ada, RELEASE, ids=[key]) for _ in range(2)))
    assert sorted(len(errors) for _, errors in both) == [0, 1]
    assert await inbox(ada) == ["Offer"]


async def test_a_virus_is_let_in_by_an_administrator_alone(
    ada: Client, over: Client, http: httpx.AsyncClient
) -> None:
    chief = await make_domain_admin(ada.world, http, "chief", [AdminPermission.QUARANTINE])
    key = await hold(ada, "Bill", QuarantineReason(0.0, (), "Eicar-Test"))
    _, errors = await done(ada, RELEASE, ids=[key])
    assert told(errors)[::3] == ("FORBIDDEN", "DOMAIN_ADMIN")
    assert await inbox(ada) == []
    answer, errors = await done(chief, RELEASE, ids=[key])
    assert (answer["messages"], errors) == ([], [])  # she may not look into ada's folders
    assert await inbox(ada) == ["Bill"]
    log = '{ adminLog(mutation: "quarantineRelease") { nodes { before } } }'
    (entry,) = (await over(log))["adminLog"]["nodes"]
    assert entry["before"] == {"sender": CAROL, "recipient": ada.address}


async def test_the_sender_is_allowed_from_now_on(ada: Client, root: Client) -> None:
    world = ada.world
    set_options(world, spam_quarantine=50)
    for subject in ("One", "Two"):
        await come(world, ada, raw=raw_message(subject, **SPAM), sender="bounce-1@lists.example")
    keys = [global_ids.encode("QuarantineItem", row.id) for row in await held(world)]
    await permit(root, "QUARANTINE")
    _, errors = await done(ada, RELEASE, ids=keys, allowSender=True)
    assert told(errors) == ("FORBIDDEN", ["allowSender"], None, "SPAM_POLICY")
    await permit(root, "QUARANTINE", "SPAM_POLICY")
    _, errors = await done(ada, RELEASE, ids=keys, allowSender=True)
    assert errors == []
    rules = "{ senderRules { nodes { action pattern scope { user { username } } } } }"
    (rule,) = (await ada(rules))["senderRules"]["nodes"]
    assert (rule["action"], rule["pattern"]) == ("ALLOW", CAROL)
    await come(world, ada, raw=raw_message("Three", **SPAM), sender="bounce-2@lists.example")
    assert sorted(await inbox(ada)) == ["One", "Three", "Two"]
    odd = await hold(ada, raw_message("Odd", From="a b@"), sender="")
    _, errors = await done(ada, RELEASE, ids=[odd], allowSender=True)
    assert [each["path"] for each in errors] in ([], [["allowSender"]])


async def test_what_is_deleted_is_gone(ada: Client, over: Client) -> None:
    world = ada.world
    mine, other = await hold(ada, "a"), await hold(ada, "b")
    since = await reached(world, ada.user.id)
    answer, errors = await done(ada, DELETE, ids=[mine])
    assert (answer["deletedIds"], errors) == ([mine], [])
    assert await journal(world, ada.user.id, since) == [
        (KIND, [global_ids.decode("QuarantineItem", mine)])
    ]
    _, errors = await done(ada, DELETE, ids=[other, mine])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 1)
    assert await listed(ada) == ["b"]
    answer, errors = await done(over, DELETE, ids=[other])
    assert errors == []
    assert (await listed(ada), await inbox(ada)) == ([], [])


async def test_it_goes_with_its_account(ada: Client, root: Client, clock: Clock) -> None:
    world = ada.world
    for letter in "ab":
        await hold(ada, letter)
    given = {"users": {"usernames": ["ada"]}}
    assert (await Call("userDelete", given)(root))["errors"] == []
    assert await listed(root) == []
    clock.tick(days=90)
    await housekeeping.run_round(world)
    while await tasks.run_next_task(world):
        pass
    assert await held(world) == []
    assert await rows(world, "SELECT * FROM quarantine_blobs") == []


async def test_a_renamed_domain_takes_it_along(ada: Client, root: Client) -> None:
    await hold(ada)
    given = {"oldDomain": "example.org", "newDomain": "new.example"}
    made = await Call("domainRename", given)(root)
    assert made["errors"] == []
    (item,) = (await ada(LIST))["quarantine"]["nodes"]
    assert (item["domain"], item["recipient"]) == ({"name": "new.example"}, "ada@example.org")


async def test_what_is_held_is_neither_answered_nor_copied_and_what_is_let_in_is_copied(
    ada: Client, root: Client
) -> None:
    world = ada.world
    set_options(world, spam_quarantine=50)
    rule = {"match": ada.address, "bccTo": "copies@else.example", "direction": "RECIPIENT"}
    assert (await Call("bccRuleCreate", rule)(root))["errors"] == []
    away = {"set": {"enabled": True, "text": "I am away."}}
    assert (await Call("autoreplySet", away)(ada))["errors"] == []
    await come(world, ada, raw=raw_message("Offer", **SPAM))
    assert await rows(world, "SELECT recipient FROM deliveries") == []
    key = global_ids.encode("QuarantineItem", (await held(world))[0].id)
    _, errors = await done(ada, TRY, ids=[key], options={"validateOnly": True})
    assert errors == []
    assert await rows(world, "SELECT recipient FROM deliveries") == []
    _, errors = await done(ada, RELEASE, ids=[key])
    assert errors == []
    assert await rows(world, "SELECT recipient FROM deliveries") == [("copies@else.example",)]


async def test_the_interval_of_letters_is_set(ada: Client, bob: Client, over: Client) -> None:
    answer, errors = await done(ada, OFTEN, frequency="HOURLY")
    assert (answer["users"], errors) == (
        [{"username": "ada", "quarantineNotification": "HOURLY"}], [],
    )  # fmt: skip
    _, errors = await done(ada, OFTEN, users={"usernames": ["bob"]}, frequency="NEVER")
    assert errors[0]["code"] == "NOT_FOUND"
    answer, errors = await done(over, OFTEN, users={"usernames": ["bob"]}, frequency="WEEKLY")
    assert [one["quarantineNotification"] for one in answer["users"]] == ["WEEKLY"]
    log = '{ adminLog(mutation: "quarantineNotificationSet") { nodes { before after } } }'
    (entry,) = (await over(log))["adminLog"]["nodes"]
    assert entry["after"] == {"quarantine_notification": "WEEKLY"}
    mine = "{ viewer { user { quarantineNotification } } }"
    assert (await bob(mine))["viewer"]["user"] == {"quarantineNotification": "WEEKLY"}
