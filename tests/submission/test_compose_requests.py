"""Test compose requests: a new message that opens in the clients of a user."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.events import journal
from models.runtime import leases
from models.runtime.environment import Environment
from models.submission.compose_requests import ComposeListener, ComposeRequest
from models.users.roles import AdminPermission, Scope
from resolvers.context import Context
from resolvers.submission import compose_requests
from resolvers.submission.compose_requests import NewComposeRequest
from resolvers.submission.composition import MessageFields
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    client_context,
    deliver_to,
    make_api_key,
    raw_message,
)
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation, user_global_id
from tests.support.clients.change_followers import wait_for_followers
from tests.support.mail_servers.queue_worker import poll_until
from tests.support.operations.file_operations import store_file
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.stores.other_processes import deregister_as_dead

REQUEST_FIELDS = """id subject text priority requestedBy requestedAt expiresAt
  to { name address } files { filename } identity { address } mailbox { path }
  original { relation message { subject } }"""
PAYLOAD_FIELDS = f"deliveredCount composeRequest {{ {REQUEST_FIELDS} }}"
SUBSCRIPTION = f"""subscription ($after: ComposeRequestRef) {{
  composeRequested(after: $after) {{ {REQUEST_FIELDS} }} }}"""


async def request_compose(client: GraphQLClient, **fields: Any) -> Any:
    return await execute_mutation(client, "composeRequestCreate", PAYLOAD_FIELDS, **fields)


def error_codes_and_paths(answer: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in answer["errors"]]


async def count_listeners(environment: Environment) -> int:
    return len(await environment.database.read(select(col(ComposeListener.id))))


async def wait_for_listeners(environment: Environment, expected: int) -> None:
    async def has_expected_count() -> bool:
        return await count_listeners(environment) == expected

    await poll_until(has_expected_count)


@pytest.mark.parametrize("transport", ["follow", "stream"])
async def test_compose_request_reaches_every_client_of_the_user(
    live_server: LiveServer,
    ada: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    transport: str,
) -> None:
    subscribe = getattr(live_server, transport)
    first, second, foreign = [await subscribe(client, SUBSCRIPTION) for client in (ada, ada, bob)]
    await wait_for_listeners(environment, 3)
    file = await store_file(ada)
    answer = await request_compose(
        ada,
        to=[{"name": "Carol", "address": "carol@example.net"}],
        subject="Plans",
        text="Dear Carol,",
        priority="HIGH",
        mailbox={"path": "Sent"},
        fileAttachments=[{"file": {"id": file["id"]}}],
    )
    assert (answer["errors"], answer["deliveredCount"]) == ([], 2)
    await wait_until(lambda: first.payloads and second.payloads)
    assert first.results == second.results == [answer["composeRequest"]]
    assert answer["composeRequest"]["to"] == [{"name": "Carol", "address": "carol@example.net"}]
    assert answer["composeRequest"]["files"] == [{"filename": "pond.txt"}]
    assert answer["composeRequest"]["expiresAt"] == "2030-01-01T00:10:00Z"
    assert foreign.payloads == []
    for subscription in (first, second, foreign):
        await subscription.unsubscribe()
    await wait_for_listeners(environment, 0)
    assert error_codes_and_paths(await request_compose(ada, subject="x")) == [("USER_OFFLINE", [])]


async def test_compose_request_without_listener_stores_nothing(
    ada: GraphQLClient, environment: Environment
) -> None:
    file = await store_file(ada)
    links = [{"file": {"id": file["id"]}, "mode": "LINK"}]
    assert error_codes_and_paths(
        await request_compose(ada, subject="x", fileAttachments=links)
    ) == [("USER_OFFLINE", [])]
    assert not await environment.database.read(select(col(ComposeRequest.id)))
    shares = await ada("{ viewer { user { files { nodes { shares { id } } } } } }")
    assert shares["viewer"]["user"]["files"]["nodes"] == [{"shares": []}]


async def test_reconnected_client_gets_missed_requests(
    live_server: LiveServer, ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    first = await live_server.follow(ada, SUBSCRIPTION)
    closed = await live_server.follow(ada, SUBSCRIPTION)
    await wait_for_listeners(environment, 2)
    first_request = (await request_compose(ada, subject="one"))["composeRequest"]
    await wait_until(lambda: first.payloads and closed.payloads)
    await closed.unsubscribe()
    for subject in ("two", "three"):
        assert (await request_compose(ada, subject=subject))["errors"] == []
    resumed = await live_server.follow(ada, SUBSCRIPTION, after={"id": first_request["id"]})
    await wait_until(lambda: len(resumed.payloads) == 2)
    assert [request["subject"] for request in resumed.results] == ["two", "three"]
    clock.tick(minutes=11)
    after_expiry = await live_server.follow(ada, SUBSCRIPTION, after={"id": first_request["id"]})
    await wait_for_listeners(environment, 3)  # a listener does not expire
    assert after_expiry.payloads == []
    await housekeeping.run_housekeeping_round(environment)
    assert not await environment.database.read(select(col(ComposeRequest.id)))
    for subscription in (first, resumed, after_expiry):
        await subscription.unsubscribe()


async def test_request_with_an_earlier_id_is_not_lost(
    live_server: LiveServer, ada: GraphQLClient, environment: Environment
) -> None:
    """The ID of a request is taken before its transaction, on a server with its own clock."""
    first, second = [await live_server.follow(ada, SUBSCRIPTION) for _ in range(2)]
    await wait_for_listeners(environment, 2)
    earlier_ids = [environment.new_id() for _ in range(20)]
    one = (await request_compose(ada, subject="one"))["composeRequest"]
    await wait_until(lambda: first.payloads and second.payloads)
    await second.unsubscribe()
    await wait_for_listeners(environment, 1)
    other_server = replace(environment, new_id=iter(earlier_ids).__next__)
    created = await compose_requests.create_compose_request_for_listeners(
        Context(other_server, client_context(ada).viewer),
        NewComposeRequest(MessageFields(subject="two")),
    )
    two = {"id": global_ids.encode("ComposeRequest", created.request.id)}
    assert global_ids.decode("ComposeRequest", one["id"]) > created.request.id
    for after, subjects in ((one, ["two", "three"]), (two, ["three"])):
        resumed = await live_server.follow(ada, SUBSCRIPTION, after={"id": after["id"]})
        await wait_for_listeners(environment, 2)
        assert (await request_compose(ada, subject="three"))["errors"] == []
        await wait_until(lambda resumed=resumed: "three" in str(resumed.payloads))
        assert [request["subject"] for request in resumed.results][: len(subjects)] == subjects
        await resumed.unsubscribe()
        await wait_for_listeners(environment, 1)
    await first.unsubscribe()


async def test_open_requests_come_once_after_a_resync(
    live_server: LiveServer, ada: GraphQLClient, environment: Environment
) -> None:
    early = await live_server.follow(ada, SUBSCRIPTION)
    await wait_for_listeners(environment, 1)
    assert (await request_compose(ada, subject="one"))["errors"] == []
    await wait_until(lambda: early.payloads)
    late = await live_server.follow(ada, SUBSCRIPTION)
    await wait_for_followers(environment, 2)
    assert (await request_compose(ada, subject="two"))["errors"] == []
    await wait_until(lambda: len(early.payloads) == 2 and late.payloads)
    async with environment.write_session(ada.user.id) as session:
        await journal.delete_changes_and_force_resync(
            session, [ada.user.id], origin=None, at=environment.now()
        )
    assert (await request_compose(ada, subject="three"))["errors"] == []
    await wait_until(lambda: len(early.payloads) >= 3 and len(late.payloads) >= 2)
    assert (await request_compose(ada, subject="four"))["errors"] == []
    await wait_until(lambda: "four" in str(early.payloads) and "four" in str(late.payloads))
    assert [request["subject"] for request in early.results] == ["one", "two", "three", "four"]
    assert [request["subject"] for request in late.results] == ["two", "three", "four"]
    for subscription in (early, late):
        await subscription.unsubscribe()


async def test_listener_of_dead_process_is_not_counted(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    holder = await leases.ensure_process_registered(environment)
    async with environment.write_session() as session:
        session.add(ComposeListener(id=environment.new_id(), user_id=ada.user.id, holder=holder))
    assert (await request_compose(ada, subject="x"))["deliveredCount"] == 1
    clock.tick(hours=2)
    assert (await request_compose(ada, subject="x"))["deliveredCount"] == 1
    await deregister_as_dead(environment)
    assert error_codes_and_paths(await request_compose(ada, subject="x")) == [("USER_OFFLINE", [])]
    await housekeeping.run_housekeeping_round(environment)
    assert await count_listeners(environment) == 0


async def test_compose_request_for_reply_has_quote(
    ada: GraphQLClient, environment: Environment
) -> None:
    holder = await leases.ensure_process_registered(environment)
    async with environment.write_session() as session:
        session.add(ComposeListener(id=environment.new_id(), user_id=ada.user.id, holder=holder))
    inserted = await deliver_to(ada, raw_message("Ponds"))
    message_id = global_ids.encode("Message", inserted.message_id)
    reference = {"message": {"id": message_id}, "relation": "REPLY", "quote": "BELOW"}
    answer = await request_compose(ada, original=reference, text="Yes.")
    assert answer["errors"] == []
    request = answer["composeRequest"]
    assert request["subject"] == "Re: Ponds"
    assert request["to"] == [{"name": "Carol", "address": "carol@example.com"}]
    assert request["original"] == {"relation": "REPLY", "message": {"subject": "Ponds"}}
    assert request["text"].startswith("Yes.\n\nOn Tue, 01 Jan 2030 10:00:00 +0000, Carol")
    assert "\n> Hi there." in request["text"]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"to": [{"address": "half@"}]}, ["to", "0"]),
        ({"to": [{"address": "c@example.net", "name": "a\r\nBcc: x@y.z"}]}, ["to"]),
        ({"subject": "a\nb"}, ["subject"]),
    ],
)
async def test_invalid_compose_request_is_refused(
    ada: GraphQLClient, environment: Environment, arguments: dict[str, Any], path: list[str]
) -> None:
    holder = await leases.ensure_process_registered(environment)
    async with environment.write_session() as session:
        session.add(ComposeListener(id=environment.new_id(), user_id=ada.user.id, holder=holder))
    assert error_codes_and_paths(await request_compose(ada, **arguments)) == [("VALIDATION", path)]


async def test_open_compose_requests_are_limited(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    holder = await leases.ensure_process_registered(environment)
    async with environment.write_session() as session:
        session.add(ComposeListener(id=environment.new_id(), user_id=ada.user.id, holder=holder))
    for _ in range(compose_requests.MAX_OPEN_REQUESTS):
        assert (await request_compose(ada, subject="x"))["errors"] == []
    assert error_codes_and_paths(await request_compose(ada, subject="x")) == [("LIMIT_REACHED", [])]
    clock.tick(minutes=11)
    assert (await request_compose(ada, subject="x"))["errors"] == []


async def test_compose_request_for_other_user_needs_login_as(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    holder = await leases.ensure_process_registered(environment)
    async with environment.write_session() as session:
        session.add(ComposeListener(id=environment.new_id(), user_id=ada.user.id, holder=holder))
    user = {"id": user_global_id(ada)}
    assert error_codes_and_paths(await request_compose(bob, user=user, subject="x")) == [
        ("NOT_FOUND", ["user"])
    ]
    answer = await request_compose(admin_client, user=user, subject="x")
    assert (answer["errors"], answer["deliveredCount"]) == ([], 1)
    assert answer["composeRequest"]["requestedBy"] == "over"
    log = await admin_client("{ auditLog(first: 1) { nodes { mutation } } }")
    assert log["auditLog"]["nodes"] == [{"mutation": "composeRequestCreate"}]
    without_permission = await make_domain_admin(environment, ada.http, "dora")
    assert [
        code
        for code, _ in error_codes_and_paths(await request_compose(without_permission, user=user))
    ] == ["FORBIDDEN"]
    with_permission = await make_domain_admin(
        environment, ada.http, "dirk", [AdminPermission.IMPERSONATE]
    )
    assert (await request_compose(with_permission, user=user, subject="x"))["deliveredCount"] == 1


async def test_compose_request_with_foreign_file_or_identity_is_not_found(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    holder = await leases.ensure_process_registered(environment)
    async with environment.write_session() as session:
        session.add(ComposeListener(id=environment.new_id(), user_id=bob.user.id, holder=holder))
    file = await store_file(ada)
    for mode in ("ATTACH", "LINK", "WRITABLE_LINK"):
        answer = await request_compose(
            bob, fileAttachments=[{"file": {"id": file["id"]}, "mode": mode}]
        )
        assert error_codes_and_paths(answer) == [("NOT_FOUND", ["fileAttachments", "0", "file"])]
    identities = await ada("{ viewer { user { identities { nodes { id } } } } }")
    (identity,) = identities["viewer"]["user"]["identities"]["nodes"]
    assert error_codes_and_paths(await request_compose(bob, identity={"id": identity["id"]})) == [
        ("NOT_FOUND", ["identity"])
    ]


async def test_compose_request_needs_submit_scope(
    ada: GraphQLClient, environment: Environment
) -> None:
    scopes = [Scope.MAIL]
    secret = await make_api_key(
        environment, "reader", user_id=ada.user.id, role=ada.user.role, scopes=scopes
    )
    reader = GraphQLClient(ada.http, environment, ada.user, secret)
    assert [
        code for code, _ in error_codes_and_paths(await request_compose(reader, subject="x"))
    ] == ["FORBIDDEN"]
