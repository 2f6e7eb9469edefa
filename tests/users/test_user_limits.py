"""What accounts may use and have used, what services are told, and clients that start afresh."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from mail.maintenance import housekeeping
from mail.recipients import address_resolution
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import RateLimited
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import FollowRequest, ResyncReason
from tests.conftest import Client, Clock, context, make_client, receive
from tests.support.accounts.user_operations import costs_of_users
from tests.support.stores.counter_check import rows

LIMITS = """
query ($by: UserRef) { user(by: $by) {
  limits { quota { allowed used } recipients { allowed used ttl } received { allowed used ttl } }
  quotaPercent messageCount localPart isRelayed temporaryAddressCount
  temporaryAddresses(first: 1) { nodes { address } totalCount pageInfo { hasNextPage } } } }
"""
SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submission { id } errors { code ... on RateLimitedError { retryAfter } } } }
"""
pytestmark = pytest.mark.usefixtures("examined")


async def change(world: Environment, table: type[Any], **values: Any) -> None:
    async with world.write_session() as session:
        await (await session.connection()).execute(update(table).values(**values))


async def send(client: Client, *to: str, **more: Any) -> list[Any]:
    message = {"to": [{"address": one} for one in to], "subject": "Hi", "text": "Yo", **more}
    errors: list[Any] = (await client(SEND, input=message))["messageSend"]["errors"]
    return errors


async def limits(client: Client) -> Any:
    return (await client(LIMITS))["user"]["limits"]


async def test_limits_are_told_with_what_is_used(ada: Client, world: Environment) -> None:
    await receive(ada, "Hello")
    user = (await ada(LIMITS))["user"]
    ((used,),) = await rows(world, "SELECT used FROM users")
    assert user["limits"] == {
        "quota": {"allowed": 1 << 30, "used": used},
        "recipients": {"allowed": 2000, "used": 0, "ttl": None},
        "received": {"allowed": 3600, "used": 1, "ttl": "PT3600S"},
    }
    assert user["quotaPercent"] == used * 100 / (1 << 30)
    assert (user["messageCount"], user["localPart"], user["isRelayed"]) == (1, "ada", False)
    await change(world, User, quota=0, recipients=0, received_max=5)
    await change(world, Domain, backup_mx=True, quota_allocated=0)
    user = (await ada(LIMITS))["user"]
    assert (user["quotaPercent"], user["isRelayed"]) == (None, True)
    assert user["limits"]["recipients"]["allowed"] == 0
    assert user["limits"]["received"]["allowed"] == 5


async def test_recipients_are_counted_for_a_day_from_the_first(
    ada: Client, world: Environment, clock: Clock
) -> None:
    await change(world, User, recipients=3)
    assert await send(ada, "a@example.net", "b@example.net") == []
    assert await send(ada, "c@example.net", isDraft=True) == []  # goes nowhere
    clock.tick(hours=1)
    assert (await limits(ada))["recipients"] == {"allowed": 3, "used": 2, "ttl": "PT82800S"}
    refused = [{"code": "RATE_LIMITED", "retryAfter": "PT82800S"}]
    assert await send(ada, "c@example.net", "d@example.net") == refused  # one would be too many
    assert (await limits(ada))["recipients"]["used"] == 2
    assert await send(ada, "c@example.net") == []
    before = await rows(world, "SELECT count(*) FROM messages")
    assert await send(ada, "e@example.net") == refused
    assert await rows(world, "SELECT count(*) FROM messages") == before
    clock.tick(hours=23)
    assert (await limits(ada))["recipients"] == {"allowed": 3, "used": 0, "ttl": None}
    assert await send(ada, "e@example.net") == []
    assert (await limits(ada))["recipients"]["used"] == 1
    clock.tick(days=1)
    assert (await housekeeping.run_round(world)).usages == 1
    assert await rows(world, "SELECT count(*) FROM usages") == [(0,)]


async def test_no_limit_is_zero(ada: Client, world: Environment) -> None:
    await change(world, User, recipients=0)
    for n in range(3):
        assert await send(ada, f"{n}@example.net") == []
    assert (await limits(ada))["recipients"]["used"] == 3


async def test_of_many_at_once_no_more_are_sent_than_may(ada: Client, world: Environment) -> None:
    await change(world, User, recipients=3)
    answers = await asyncio.gather(*(send(ada, f"{n}@example.net") for n in range(8)))
    assert sum(errors == [] for errors in answers) == 3
    assert await rows(world, "SELECT count(*) FROM submissions") == [(3,)]
    assert await rows(world, "SELECT used FROM usages") == [(3,)]


async def test_what_comes_is_put_off_beyond_its_limit(
    ada: Client, world: Environment, clock: Clock
) -> None:
    await change(world, User, received_max=2)
    await receive(ada, "One")
    clock.tick(minutes=10)
    await receive(ada, "Two")
    assert (await limits(ada))["received"] == {"allowed": 2, "used": 2, "ttl": "PT3000S"}
    with pytest.raises(RateLimited) as refused:
        await address_resolution.load_recipient(world, ada.address)
    assert refused.value.retry_after == timedelta(minutes=50)
    clock.tick(minutes=50)
    await receive(ada, "Three")
    assert (await limits(ada))["received"]["used"] == 1
    document = "mutation ($i: MessageUploadInput!) { messageUpload(input: $i) { message { id } } }"
    await ada(document, i={"mailbox": {"path": "INBOX"}, "raw": "Subject: x\r\n\r\ny\r\n"})
    assert (await limits(ada))["received"]["used"] == 1  # it did not come from outside


async def test_temporary_addresses_are_those_with_an_end(
    ada: Client, world: Environment, clock: Clock
) -> None:
    now = clock()
    async with world.write_session() as session:
        for n, days in enumerate((-1, 1, 2)):
            address = Address(
                id=world.new_id(),
                local=f"t{n}",
                domain_id=ada.user.domain_id,
                shown=f"t{n}@example.org",
                user_id=ada.user.id,
                expires_at=now + timedelta(days=days),
                created_at=now,
                updated_at=now,
            )
            session.add(address)
    await change(world, Domain, address_count=4)
    user = (await ada(LIMITS))["user"]
    assert user["temporaryAddressCount"] == 2
    assert user["temporaryAddresses"] == {
        "nodes": [{"address": "t1@example.org"}],
        "totalCount": 2,
        "pageInfo": {"hasNextPage": True},
    }


NEW = "query ($by: UserRef) { user(by: $by) { maxNewQuota } }"


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({}, None),
        ({"max_user_quota": 7}, 7),
        ({"quota": 3 << 30}, 2 << 30),
        ({"quota": 3 << 30, "max_user_quota": 5 << 30}, 2 << 30),
        ({"quota": 1}, 0),
    ],
)
@pytest.mark.usefixtures("bob")
async def test_most_that_could_be_given(
    root: Client, ada: Client, world: Environment, given: dict[str, int], most: int | None
) -> None:
    await change(world, Domain, **{"quota": 0, **given})
    found = await root(NEW, by={"username": "ada"})
    assert found["user"]["maxNewQuota"] == most
    refused = await ada.raw(NEW)
    assert refused["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


SETTINGS = """
query ($by: UserRef, $service: String, $fields: [String!], $only: Boolean! = false,
       $expand: String) {
  user(by: $by) { storageFormat effectiveSettings(
    service: $service, fields: $fields, userdbOnly: $only, expand: $expand) { key value } } }
"""


async def told(client: Client, **given: Any) -> dict[str, str]:
    answer = await client(SETTINGS, by={"username": "ada"}, **given)
    return {one["key"]: one["value"] for one in answer["user"]["effectiveSettings"]}


@pytest.mark.usefixtures("ada")
async def test_a_service_is_told_what_it_needs(root: Client, world: Environment) -> None:
    found = await told(root)
    assert found["user"] == "ada"
    assert found["quota/storage"] == str(1 << 30)
    assert found["namespace/inbox/separator"] == "/"
    assert found["mailbox/sent"] == "Sent"
    assert (found["limit/received"], found["limit/recipients"]) == ("3600", "2000")
    assert set(await told(root, only=True)) < set(found)
    assert await told(root, service="POP3", fields=["user", "service/enabled", "x"]) == {
        "user": "ada",
        "service/enabled": "yes",
    }
    await change(world, User, disabled_scopes=["POP3"])
    assert (await told(root, service="pop3"))["service/enabled"] == "no"
    assert "limit/received" not in await told(root, service="smtp")
    template = "/mail/%{domain}/%{local}/%{user}/100%%"
    expanded = await told(root, fields=["user"], expand=template)
    assert expanded == {"user": "ada", "expand": "/mail/example.org/ada/ada/100%"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"service": "telnet"}, {"expand": "%{password}"}, {"expand": "%"}, {"expand": "%u"},
        {"expand": "%{user"}, {"expand": "x" * 1001}, {"expand": "%{}"}, {"expand": "%{%{user}}"},
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ada")
async def test_what_no_service_and_no_template_is_is_refused(
    root: Client, wrong: dict[str, str]
) -> None:
    answer = await root.raw(SETTINGS, by={"username": "ada"}, **wrong)
    assert answer["errors"][0]["extensions"]["code"] != "INTERNAL_SERVER_ERROR"


async def test_settings_are_for_administrators(ada: Client) -> None:
    refused = await ada.raw(SETTINGS)
    codes = [error["extensions"]["code"] for error in refused["errors"]]
    assert codes == ["FORBIDDEN"] * len(codes)


async def test_limits_of_many_cost_the_same_as_of_one(root: Client, statements: list[str]) -> None:
    document = """{ users(first: 50) { nodes { limits { quota { allowed } recipients { used }
        received { used } } quotaPercent maxNewQuota localPart isRelayed storageFormat
        temporaryAddressCount temporaryAddresses { nodes { id } totalCount }
        effectiveSettings(expand: "%{user}") { key value } } } }"""
    costs = await costs_of_users(root, document, statements)
    assert len(set(costs)) == 1


RESET = """
mutation ($input: ClientStateResetInput!) { clientStateReset(input: $input) {
  users { username } errors { code path ... on ForbiddenError { requires } } } }
"""


async def test_clients_start_afresh(
    root: Client, ada: Client, bob: Client, world: Environment
) -> None:
    await receive(ada, "Hello")
    ((last,),) = await rows(world, "SELECT last FROM streams WHERE id = :k", k=ada.user.id)
    live = stream_reader.follow_changes(context(ada), FollowRequest(min_interval=timedelta(0)))
    waiting = asyncio.ensure_future(anext(live))
    await asyncio.sleep(0.05)
    answer = (await ada(RESET, input={}))["clientStateReset"]
    assert answer == {"users": [{"username": "ada"}], "errors": []}
    async with asyncio.timeout(5):
        batch = await waiting
        assert batch.resync_reason is ResyncReason.CURSOR_EXPIRED
        (event,) = (await anext(live)).events
        assert (event.kind, event.object_id) == (ChangeKind.USER_CHANGED, ada.user.id)
        await live.aclose()
        for number in (0, last - 1, last):
            stale = stream_reader.follow_changes(context(ada), FollowRequest({ada.user.id: number}))
            assert (await anext(stale)).resync_reason is ResyncReason.CURSOR_EXPIRED
            await stale.aclose()
    ((kicked, untouched),) = await rows(
        world,
        "SELECT (SELECT count(*) FROM users WHERE id = :a AND kicked_at IS NOT NULL),"
        " (SELECT count(*) FROM users WHERE id = :b AND kicked_at IS NULL)",
        a=ada.user.id,
        b=bob.user.id,
    )
    assert (kicked, untouched) == (1, 1)
    await receive(ada, "And on")
    both = (await root(RESET, input={"users": {"usernames": ["ada", "bob"]}}))["clientStateReset"]
    assert len(both["users"]) == 2
    refused = (await ada(RESET, input={"users": {"usernames": ["bob"]}}))["clientStateReset"]
    assert refused["errors"][0]["code"] == "NOT_FOUND"
    await change(world, User, permissions=[])
    eve = await make_client(world, root.http, "eve")
    async with world.write_session() as session:
        await session.exec(update(User).where(col(User.id) == eve.user.id).values(permissions=[]))
    refused = (await eve(RESET, input={}))["clientStateReset"]
    assert refused["errors"][0]["requires"] == "CLIENT_RESET"
