"""Limits of users, effective settings for services, and client resets."""

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
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import FollowRequest, ResyncReason
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to, make_client
from tests.support.accounts.user_operations import count_statements_by_user_count
from tests.support.case_loop import each_case
from tests.support.clients.change_followers import wait_for_followers
from tests.support.stores.counter_check import select_rows
from tests.support.time_limits import HANG_SECONDS

LIMITS_QUERY = """
query ($by: UserRef) { user(by: $by) {
  limits { quota { limit used } recipientsPerDay { limit used resetsAt }
    receivedPerHour { limit used resetsAt } }
  quotaPercent messageCount localPart relayed temporaryAddressCount
  temporaryAddresses(first: 1) { nodes { address } totalCount pageInfo { hasNextPage } } } }
"""
MESSAGE_SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submissions { id } errors { code ... on RateLimitedError { retryAfter } } } }
"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def update_rows(environment: Environment, table: type[Any], **values: Any) -> None:
    async with environment.write_session() as session:
        await (await session.connection()).execute(update(table).values(**values))


async def send_message(client: GraphQLClient, *recipients: str, **extra: Any) -> list[Any]:
    message = {
        "to": [{"address": recipient} for recipient in recipients],
        "subject": "Hi",
        "text": "Yo",
        **extra,
    }
    errors: list[Any] = (await client(MESSAGE_SEND, input=message))["messageSend"]["errors"]
    return errors


UPDATE_LIMITS = """
mutation ($set: UserPatch!) { userUpdate(input: {users: {usernames: ["ada"]}, set: $set}) {
  users { limits { receivedPerHour { limit source } recipientsPerDay { limit source }
    forwardsPerDay { limit source } } } errors { code } } }
"""


async def test_limits_are_unlimited_or_inherited_on_request(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    async def update_limits(**patch: Any) -> Any:
        payload = (await root(UPDATE_LIMITS, set=patch))["userUpdate"]
        assert payload["errors"] == []
        (user,) = payload["users"]
        return [(limit["limit"], limit["source"]) for limit in user["limits"].values()]

    assert ada.user.username == "ada"
    inherited = [(3600, "PLATFORM"), (2000, "PLATFORM"), (2000, "PLATFORM")]
    changed = await update_limits(limits={"receivedPerHour": None, "recipientsPerDay": 5})
    assert changed == [(None, "USER"), (5, "USER"), (2000, "PLATFORM")]
    assert await update_limits(inheritLimits=True) == inherited
    response = await root.execute(UPDATE_LIMITS, set={"limits": None})
    assert response["errors"], "null is no way to inherit"


async def load_limits(client: GraphQLClient) -> Any:
    return (await client(LIMITS_QUERY))["user"]["limits"]


async def test_limits_have_limit_and_used_values(
    ada: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "Hello")
    user = (await ada(LIMITS_QUERY))["user"]
    ((used,),) = await select_rows(environment, "SELECT used FROM users")
    assert user["limits"] == {
        "quota": {"limit": 1 << 30, "used": used},
        "recipientsPerDay": {"limit": 2000, "used": 0, "resetsAt": None},
        "receivedPerHour": {"limit": 3600, "used": 1, "resetsAt": "2030-01-01T01:00:00Z"},
    }
    assert user["quotaPercent"] == used * 100 / (1 << 30)
    assert (user["messageCount"], user["localPart"], user["relayed"]) == (1, "ada", False)
    await update_rows(environment, User, quota=0, recipients_per_day=0, received_per_hour=5)
    await update_rows(environment, Domain, backup_mx=True, quota_allocated=0)
    user = (await ada(LIMITS_QUERY))["user"]
    assert (user["quotaPercent"], user["relayed"]) == (None, True)
    assert user["limits"]["recipientsPerDay"]["limit"] is None
    assert user["limits"]["quota"]["limit"] is None
    assert user["limits"]["receivedPerHour"]["limit"] == 5


async def test_recipients_are_counted_for_a_day(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await update_rows(environment, User, recipients_per_day=3)
    assert await send_message(ada, "a@example.net", "b@example.net") == []
    clock.tick(hours=1)
    assert (await load_limits(ada))["recipientsPerDay"] == {
        "limit": 3, "used": 2, "resetsAt": "2030-01-02T00:00:00Z"
    }  # fmt: skip
    expected_errors = [{"code": "RATE_LIMITED", "retryAfter": "PT82800S"}]
    # one recipient too many
    assert await send_message(ada, "c@example.net", "d@example.net") == expected_errors
    assert (await load_limits(ada))["recipientsPerDay"]["used"] == 2
    assert await send_message(ada, "c@example.net") == []
    count_before = await select_rows(environment, "SELECT count(*) FROM messages")
    assert await send_message(ada, "e@example.net") == expected_errors
    assert await select_rows(environment, "SELECT count(*) FROM messages") == count_before
    clock.tick(hours=23)
    assert (await load_limits(ada))["recipientsPerDay"] == {"limit": 3, "used": 0, "resetsAt": None}
    assert await send_message(ada, "e@example.net") == []
    assert (await load_limits(ada))["recipientsPerDay"]["used"] == 1
    clock.tick(days=1)
    assert (await housekeeping.run_housekeeping_round(environment)).usages == 1
    assert await select_rows(environment, "SELECT count(*) FROM usages") == [(0,)]


async def test_recipient_limit_zero_is_unlimited(
    ada: GraphQLClient, environment: Environment
) -> None:
    await update_rows(environment, User, recipients_per_day=0)
    for n in range(3):
        assert await send_message(ada, f"{n}@example.net") == []
    assert (await load_limits(ada))["recipientsPerDay"]["used"] == 3


async def test_concurrent_submissions_respect_the_recipient_limit(
    ada: GraphQLClient, environment: Environment
) -> None:
    await update_rows(environment, User, recipients_per_day=3)
    answers = await asyncio.gather(*(send_message(ada, f"{n}@example.net") for n in range(8)))
    assert sum(errors == [] for errors in answers) == 3
    assert await select_rows(environment, "SELECT count(*) FROM submissions") == [(3,)]
    assert await select_rows(environment, "SELECT used FROM usages") == [(3,)]


async def test_message_over_the_received_limit_is_deferred(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await update_rows(environment, User, received_per_hour=2)
    await deliver_to(ada, "One")
    clock.tick(minutes=10)
    await deliver_to(ada, "Two")
    assert (await load_limits(ada))["receivedPerHour"] == {
        "limit": 2, "used": 2, "resetsAt": "2030-01-01T01:00:00Z"
    }  # fmt: skip
    with pytest.raises(RateLimited) as error_info:
        await address_resolution.load_recipient_below_limits(environment, ada.address)
    assert error_info.value.retry_after == timedelta(minutes=50)
    clock.tick(minutes=50)
    await deliver_to(ada, "Three")
    assert (await load_limits(ada))["receivedPerHour"]["used"] == 1
    document = "mutation ($i: MessageImportInput!) { messageImport(input: $i) { messages { id } } }"
    await ada(document, i={"mailbox": {"path": "INBOX"}, "raw": "Subject: x\r\n\r\ny\r\n"})
    assert (await load_limits(ada))["receivedPerHour"][
        "used"
    ] == 1  # an upload does not count as received


async def test_temporary_addresses_are_those_with_an_expiry(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    now = clock()
    async with environment.write_session() as session:
        for n, days in enumerate((-1, 1, 2)):
            address = Address(
                id=environment.new_id(),
                local=f"t{n}",
                domain_id=ada.user.domain_id,
                display_address=f"t{n}@example.org",
                user_id=ada.user.id,
                expires_at=now + timedelta(days=days),
                created_at=now,
                updated_at=now,
            )
            session.add(address)
    await update_rows(environment, Domain, address_count=4)
    user = (await ada(LIMITS_QUERY))["user"]
    assert user["temporaryAddressCount"] == 2
    assert user["temporaryAddresses"] == {
        "nodes": [{"address": "t1@example.org"}],
        "totalCount": 2,
        "pageInfo": {"hasNextPage": True},
    }


MAX_NEW_QUOTA_QUERY = "query ($by: UserRef) { user(by: $by) { maxNewQuota } }"


@pytest.mark.usefixtures("bob")
async def test_max_new_quota_respects_the_domain_limits(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    cases: list[tuple[dict[str, int], int | None]] = [
        ({}, None),
        ({"max_user_quota": 7}, 7),
        ({"quota": 3 << 30}, 2 << 30),
        ({"quota": 3 << 30, "max_user_quota": 5 << 30}, 2 << 30),
        ({"quota": 1}, 0),
    ]
    for case in each_case(cases):
        with case as (domain_limits, expected):
            await update_rows(
                environment, Domain, **{"quota": 0, "max_user_quota": 0, **domain_limits}
            )
            response = await root(MAX_NEW_QUOTA_QUERY, by={"username": "ada"})
            assert response["user"]["maxNewQuota"] == expected
            refused_response = await ada.execute(MAX_NEW_QUOTA_QUERY)
            assert refused_response["errors"][0]["extensions"] == {"code": "FORBIDDEN"}


SERVICE_SETTINGS_QUERY = """
query ($by: UserRef, $service: String, $fields: [String!], $only: Boolean! = false,
       $expand: String) {
  user(by: $by) { storageFormat serviceSettings(
    service: $service, fields: $fields, userdbOnly: $only, expand: $expand) { key value } } }
"""


async def load_service_settings(client: GraphQLClient, **arguments: Any) -> dict[str, str]:
    response = await client(SERVICE_SETTINGS_QUERY, by={"username": "ada"}, **arguments)
    return {setting["key"]: setting["value"] for setting in response["user"]["serviceSettings"]}


@pytest.mark.usefixtures("ada")
async def test_service_settings_have_values_for_services(
    root: GraphQLClient, environment: Environment
) -> None:
    effective = await load_service_settings(root)
    assert effective["user"] == "ada"
    assert effective["quota/storage"] == str(1 << 30)
    assert effective["namespace/inbox/separator"] == "/"
    assert effective["mailbox/sent"] == "Sent"
    assert (effective["limit/received"], effective["limit/recipients"]) == ("3600", "2000")
    assert set(await load_service_settings(root, only=True)) < set(effective)
    assert await load_service_settings(
        root, service="POP3", fields=["user", "service/enabled", "x"]
    ) == {
        "user": "ada",
        "service/enabled": "yes",
    }
    await update_rows(environment, User, disabled_scopes=["POP3"])
    assert (await load_service_settings(root, service="pop3"))["service/enabled"] == "no"
    assert "limit/received" not in await load_service_settings(root, service="smtp")
    template = "/mail/%{domain}/%{local}/%{user}/100%%"
    expanded = await load_service_settings(root, fields=["user"], expand=template)
    assert expanded == {"user": "ada", "expand": "/mail/example.org/ada/ada/100%"}


@pytest.mark.usefixtures("ada")
async def test_unknown_service_and_invalid_template_are_refused(root: GraphQLClient) -> None:
    cases: list[dict[str, str]] = [
        {"service": "telnet"}, {"expand": "%{password}"}, {"expand": "%"}, {"expand": "%u"},
        {"expand": "%{user"}, {"expand": "x" * 1001}, {"expand": "%{}"}, {"expand": "%{%{user}}"},
    ]  # fmt: skip
    for case in each_case(cases):
        with case as invalid_arguments:
            response = await root.execute(
                SERVICE_SETTINGS_QUERY, by={"username": "ada"}, **invalid_arguments
            )
            assert response["errors"][0]["extensions"]["code"] != "INTERNAL_SERVER_ERROR"


async def test_service_settings_need_an_admin(ada: GraphQLClient) -> None:
    response = await ada.execute(SERVICE_SETTINGS_QUERY)
    codes = [error["extensions"]["code"] for error in response["errors"]]
    assert codes == ["FORBIDDEN"] * len(codes)


async def test_limits_of_many_users_load_in_constant_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    document = """{ users(first: 50) { nodes { limits { quota { limit } recipientsPerDay { used }
        receivedPerHour { used } } quotaPercent maxNewQuota localPart relayed storageFormat
        temporaryAddressCount temporaryAddresses { nodes { id } totalCount }
        serviceSettings(expand: "%{user}") { key value } } } }"""
    statement_counts = await count_statements_by_user_count(root, document, statements)
    assert len(set(statement_counts)) == 1


USER_SYNC_RESET = """
mutation ($input: UserSyncResetInput!) { userSyncReset(input: $input) {
  users { username } errors { code path ... on ForbiddenError { requires } } } }
"""


async def test_user_sync_reset_ends_streams_and_cursors(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "Hello")
    ((last_position,),) = await select_rows(
        environment, "SELECT last FROM streams WHERE id = :k", k=ada.user.id
    )
    change_stream = stream_reader.follow_changes(
        client_context(ada), FollowRequest(min_interval=timedelta(0))
    )
    pending_batch = asyncio.ensure_future(anext(change_stream))
    await wait_for_followers(environment)
    payload = (await ada(USER_SYNC_RESET, input={}))["userSyncReset"]
    assert payload == {"users": [{"username": "ada"}], "errors": []}
    async with asyncio.timeout(HANG_SECONDS):
        batch = await pending_batch
        assert batch.resync_reason is ResyncReason.CURSOR_EXPIRED
        (event,) = (await anext(change_stream)).events
        assert (event.type, event.object_id) == (EventType.USER_UPDATED, ada.user.id)
        await change_stream.aclose()
        for position in (0, last_position - 1, last_position):
            stale_stream = stream_reader.follow_changes(
                client_context(ada), FollowRequest({ada.user.id: position})
            )
            assert (await anext(stale_stream)).resync_reason is ResyncReason.CURSOR_EXPIRED
            await stale_stream.aclose()
    ((kicked, untouched),) = await select_rows(
        environment,
        "SELECT (SELECT count(*) FROM users WHERE id = :a AND sessions_ended_at IS NOT NULL),"
        " (SELECT count(*) FROM users WHERE id = :b AND sessions_ended_at IS NULL)",
        a=ada.user.id,
        b=bob.user.id,
    )
    assert (kicked, untouched) == (1, 1)
    await deliver_to(ada, "And on")
    both_payload = (await root(USER_SYNC_RESET, input={"users": {"usernames": ["ada", "bob"]}}))[
        "userSyncReset"
    ]
    assert len(both_payload["users"]) == 2
    refused_payload = (await ada(USER_SYNC_RESET, input={"users": {"usernames": ["bob"]}}))[
        "userSyncReset"
    ]
    assert refused_payload["errors"][0]["code"] == "NOT_FOUND"
    await update_rows(environment, User, permissions=[])
    eve = await make_client(environment, root.http, "eve")
    async with environment.write_session() as session:
        await session.exec(update(User).where(col(User.id) == eve.user.id).values(permissions=[]))
    refused_payload = (await eve(USER_SYNC_RESET, input={}))["userSyncReset"]
    assert refused_payload["errors"][0]["requires"] == "SYNC_RESET"
