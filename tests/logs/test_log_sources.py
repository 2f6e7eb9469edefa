"""The sources of log entries: each component reports real events, and no secret is in an entry."""

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest

from merganser.server.observability import health_entries
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.quota_accounts import try_send_message
from tests.support.accounts.user_operations import try_create_user
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import deliver_message
from tests.support.mail_servers.scanner_servers import rspamd_reply
from tests.support.operations.platform.ban_operations import add_bans
from tests.support.operations.quarantine_operations import set_options
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.servers.webhook_receiver import run_webhook_receiver
from tests.support.stores.log_stores import list_logs, log_messages, new_entry
from tests.support.time_limits import HANG_SECONDS

TYPED_LOGS = """query ($filter: LogFilter) { logs(filter: $filter, orderBy: AT_ASC) { nodes {
  __typename message level queueId messageIdHeader correlationId user { username } fields
  ... on ApiLogEntry { operationName operationType status cost duration errorCodes ip }
  ... on SpamLogEntry { action reason score requiredScore virus sender recipients subject size
    symbols { name score description } }
  ... on RateLimitLogEntry { limitName allowed resetsAt sender recipients subject }
  ... on HealthLogEntry { service levelPercent healthyCount totalCount difference } } } }"""
PASSWORD = "right password of eve"  # noqa: S105 - of a test
SIGN_IN = """mutation ($username: String!, $password: String!) {
  authenticate(input: {username: $username, password: $password}) { errors { code } } }"""


async def typed_logs(client: GraphQLClient, **filter: Any) -> list[Any]:
    await client.environment.logs.flush_within_timeout()
    return list((await client(TYPED_LOGS, filter=filter))["logs"]["nodes"])


async def test_operation_has_name_cost_and_codes_but_no_variables(
    log_environment: Environment, ada: GraphQLClient, root: GraphQLClient
) -> None:
    document = "query FindMail($text: String) { messages(filter: {query: $text}) { totalCount } }"
    await ada.execute(document, text="variable-canary")
    await ada.execute("query Broken { logs { totalCount } }")
    headers = {**ada.headers, "X-Request-Id": "request-17"}
    body = {"query": "query Named { user { id } }"}
    await ada.http.post("/graphql", json=body, headers=headers)
    nodes = await typed_logs(root, components=["API"])
    by_name = {node["operationName"]: node for node in nodes}
    entry = by_name["FindMail"]
    assert entry["__typename"] == "ApiLogEntry"
    assert (entry["operationType"], entry["status"], entry["errorCodes"]) == ("query", "ok", [])
    assert entry["cost"] > 0
    assert entry["duration"].startswith("PT")
    assert entry["user"] == {"username": "ada"}
    assert by_name["Broken"]["errorCodes"] == ["FORBIDDEN"]
    assert "variable-canary" not in json.dumps(nodes)
    (entry,) = await typed_logs(root, correlationId=by_name["Named"]["correlationId"])
    assert entry["operationName"] == "Named"
    assert log_environment.logs.store is not None


@pytest.mark.usefixtures("ada")
async def test_delivery_has_spam_verdict_per_domain_and_steps_by_queue_id(
    log_environment: Environment,
    http: httpx.AsyncClient,
    root: GraphQLClient,
    lmtp_client: SmtpTestClient,
) -> None:
    create = 'mutation { domainCreate(input: {name: "other.example"}) { errors { code } } }'
    assert (await root(create))["domainCreate"]["errors"] == []
    assert (await try_create_user(root, username="carl", address="carl@other.example"))[1] == []
    own_admin = await make_domain_admin(log_environment, http, "dora")
    other_admin = await make_domain_admin(log_environment, http, "otto", domains=["other.example"])
    async with run_webhook_receiver() as rspamd:
        set_options(log_environment, rspamd_url=f"http://127.0.0.1:{rspamd.port}")
        rspamd.response = rspamd_reply(4.5)
        message = raw_message("A secret subject", body="body-canary")
        replies = await deliver_message(
            lmtp_client, message, "ada@example.org", "carl@other.example", sender="c@far.example"
        )
    assert all(reply.startswith("250") for reply in replies)
    nodes = await typed_logs(root, components=["SPAM"], query="accept")
    verdicts = [node for node in nodes if node["__typename"] == "SpamLogEntry"]
    assert sorted(node["recipients"] for node in verdicts) == [
        ["ada@example.org"],
        ["carl@other.example"],
    ]
    entry = verdicts[0]
    assert (entry["score"], entry["requiredScore"], entry["action"]) == (4.5, 15.0, "accept")
    assert entry["symbols"] == [{"name": "OFFER", "score": 4.5, "description": "An offer"}]
    assert (entry["subject"], entry["sender"]) == ("A secret subject", "c@far.example")
    for client, address in ((own_admin, "ada@example.org"), (other_admin, "carl@other.example")):
        (visible,) = await typed_logs(client, query="accept")
        assert visible["recipients"] == [address]
        assert {
            node["fields"]["recipient"]
            for node in await typed_logs(client, components=["MTA", "STORE"])
            if "recipient" in node["fields"]
        } == {address}
    by_queue_id = await typed_logs(root, queueId=entry["queueId"])
    assert {node["__typename"] for node in by_queue_id} == {"SpamLogEntry", "PlainLogEntry"}
    assert any(node["message"].startswith("stored: ada@example.org") for node in by_queue_id)
    by_message_id = await typed_logs(root, messageIdHeader=entry["messageIdHeader"].strip("<>"))
    assert by_message_id == by_queue_id
    everything = json.dumps(await list_logs(root, first=250))
    assert "body-canary" not in everything
    other = [node for node in await list_logs(root, first=250) if node["component"] != "SPAM"]
    assert "A secret subject" not in json.dumps(other)


async def test_outgoing_message_over_the_rate_is_in_the_log(
    log_environment: Environment, ada: GraphQLClient, root: GraphQLClient
) -> None:
    set_options(log_environment, limits_send_rate_per_user="1/HOUR")
    assert await try_send_message(ada, "a@example.net") == []
    assert await try_send_message(ada, "a@example.net") == ["RATE_LIMITED"]
    nodes = await typed_logs(root, components=["RATE_LIMIT"])
    assert nodes
    assert {(n["__typename"], n["limitName"], n["allowed"]) for n in nodes} == {
        ("RateLimitLogEntry", "RATE_USER", 1)
    }
    assert nodes[0]["user"] == {"username": "ada"}
    assert nodes[0]["resetsAt"] is not None
    # refused before the message is built: the sender comes from the identity later
    facts = [(n["sender"], n["recipients"], n["subject"]) for n in nodes]
    assert facts == [(None, ["a@example.net"], "Hi")]


async def test_message_over_the_recipient_limit_is_in_the_log(
    log_environment: Environment, ada: GraphQLClient, root: GraphQLClient
) -> None:
    set_options(log_environment, limits_recipients_per_day=1)
    assert await try_send_message(ada, "a@example.net", "b@example.net") == ["RATE_LIMITED"]
    (node,) = await typed_logs(root, components=["RATE_LIMIT"])
    assert (node["limitName"], node["allowed"]) == ("RECIPIENTS", 1)
    assert (node["sender"], node["subject"]) == ("ada@example.org", "Hi")
    assert node["recipients"] == ["a@example.net", "b@example.net"]
    assert node["messageIdHeader"].endswith("@mx.example.org>")
    assert "Yo" not in json.dumps(node)


async def test_failed_sign_ins_and_refused_attempts_are_in_the_throttle_log(
    log_environment: Environment, http: httpx.AsyncClient, root: GraphQLClient
) -> None:
    client = await make_client(log_environment, http, "eve", password=PASSWORD)
    set_options(log_environment, sign_in_max_failures=2)
    for _ in range(4):
        await client.http.post(
            "/graphql",
            json={
                "query": SIGN_IN,
                "variables": {"username": "eve", "password": "password-canary"},
            },
        )
    nodes = await typed_logs(root, components=["THROTTLE"])
    messages = [node["message"] for node in nodes]
    assert messages.count("Sign-in failed") == 2
    assert "Attempt refused after too many failures" in messages
    assert {node["user"]["username"] for node in nodes} == {"eve"}
    assert "password-canary" not in json.dumps(await list_logs(root, first=250))


@pytest.mark.usefixtures("log_environment")
async def test_ban_is_in_the_throttle_log(root: GraphQLClient) -> None:
    await add_bans(root, "203.0.113.0/24")
    (node,) = await typed_logs(root, components=["THROTTLE"])
    assert (node["message"], node["level"]) == ("Network banned", "WARNING")
    assert node["fields"]["network"] == "203.0.113.0/24"


async def test_pages_and_links_are_logged_by_route_without_the_path(
    log_environment: Environment, root: GraphQLClient
) -> None:
    response = await root.http.get("/rest/files/secret-canary-in-a-path")
    assert response.status_code in {400, 401, 404}
    await root.http.get("/no-such-page-canary")
    await root.http.get("/health/live")
    await log_environment.logs.flush_within_timeout()
    nodes = await typed_logs(root, components=["WEB"])
    assert len(nodes) == 2
    assert {node["fields"]["method"] for node in nodes} == {"GET"}
    assert "canary" not in json.dumps(nodes)


async def wait_for_health_entries(client: GraphQLClient, count: int) -> list[Any]:
    async with asyncio.timeout(HANG_SECONDS):
        while (  # noqa: ASYNC110 - rows have no event
            len(nodes := await typed_logs(client, components=["HEALTH"])) < count
        ):
            await asyncio.sleep(0.02)
    return nodes


async def test_health_changes_and_summaries_are_logged(
    log_environment: Environment, root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_entries, "CHECK_INTERVAL", 0.02)
    state = {"spool": True}

    async def is_spool_writable() -> bool:
        return state["spool"]

    task = asyncio.create_task(
        health_entries.record_health_until_cancelled(log_environment, {"spool": is_spool_writable})
    )
    for entry_count, is_healthy in ((1, False), (2, True)):
        await wait_for_health_entries(root, entry_count)
        state["spool"] = is_healthy
    nodes = await wait_for_health_entries(root, 3)
    task.cancel()
    await asyncio.wait([task])
    assert [
        (n["service"], n["healthyCount"], n["totalCount"], n["difference"], n["levelPercent"])
        for n in nodes
    ] == [("all", 2, 2, 0, 100), ("spool", 0, 1, -1, 0), ("spool", 1, 1, 1, 100)]
    assert [node["level"] for node in nodes] == ["INFO", "ERROR", "INFO"]


async def test_secrets_of_requests_are_in_no_entry(
    log_environment: Environment, ada: GraphQLClient, root: GraphQLClient
) -> None:
    canary = "canary7f3a9c"
    set_options(log_environment, logs_levels="DEBUG")
    for headers in (
        {"Authorization": f"Bearer mgk_{canary}{'k' * 31}"},
        {"Authorization": "Basic YWRhOmNhbmFyeTdmM2E5Yw=="},  # ada:canary7f3a9c
        {"Authorization": f"Bearer {canary}"},
    ):
        await ada.http.post("/graphql", json={"query": "{ user { id } }"}, headers=headers)
        await ada.http.get(f"/rest/files/{canary}?token={canary}", headers=headers)
    for document, variables in (
        (SIGN_IN, {"username": "ada", "password": canary}),
        (
            "mutation ($text: String!) { messageSend(input: {subject: $text, text: $text,"
            ' to: [{address: "x@example.net"}]}) { errors { message } } }',
            {"text": canary},
        ),
        (f'{{ messages(filter: {{query: "{canary}"}}) {{ totalCount }} }}', {}),
        (f"{{ {canary} }}", {}),
        (f"query ($v: {canary}) {{ user {{ id }} }}", {"v": canary}),
        (
            "mutation ($u: URL!) { webhookCreate(input: {url: $u, types: [MESSAGE_RECEIVED]}) {"
            " errors { message } } }",
            {"u": f"https://user:{canary}@example.net/{canary}"},
        ),
    ):
        await ada.execute(document, **variables)
    await ada.http.post("/graphql", content=f'{{"query": "{canary}', headers=ada.headers)
    nodes = await list_logs(root, first=250)
    assert len(nodes) > 8
    found = [node for node in nodes if canary in json.dumps(node)]
    assert found == []


@pytest.fixture
async def followed_server(log_environment: Environment, live_server: LiveServer) -> LiveServer:
    assert log_environment.logs.store is not None
    return live_server


async def test_live_tail_streams_new_entries_of_all_processes(
    followed_server: LiveServer, admin_client: GraphQLClient, ada: GraphQLClient
) -> None:
    environment = admin_client.environment
    environment.logs.enqueue_or_drop_entry(new_entry(environment, "tail before"))
    await environment.logs.flush_within_timeout()
    query = """subscription ($filter: LogFilter) { logs(filter: $filter) {
      __typename message level } }"""
    follower = await followed_server.follow(
        admin_client, query, filter={"query": "tail", "minLevel": "INFO"}
    )
    async with asyncio.timeout(HANG_SECONDS):  # only an entry shows that the subscription has begun
        while not follower.payloads:
            environment.logs.enqueue_or_drop_entry(new_entry(environment, "tail start"))
            await asyncio.sleep(0.1)

    def received_messages() -> list[str]:
        messages = [result["message"] for result in follower.results]
        return [message for message in messages if message != "tail start"]

    for number in range(3):
        environment.logs.enqueue_or_drop_entry(new_entry(environment, f"tail {number}"))
        environment.logs.enqueue_or_drop_entry(new_entry(environment, f"unrelated {number}"))
    await wait_until(lambda: len(received_messages()) >= 3)
    assert received_messages() == ["tail 0", "tail 1", "tail 2"]
    await follower.unsubscribe()
    assert await followed_server.follow_until_refused(ada, query) == "FORBIDDEN"


async def test_domain_admin_can_not_follow_the_log(
    followed_server: LiveServer, http: httpx.AsyncClient, ada: GraphQLClient
) -> None:
    domain_admin = await make_domain_admin(ada.environment, http, "dora")
    code = await followed_server.follow_until_refused(
        domain_admin, "subscription { logs { message } }"
    )
    assert code == "FORBIDDEN"


async def test_exception_text_is_not_stored(
    log_environment: Environment, root: GraphQLClient
) -> None:
    try:
        raise ValueError("exception-canary")
    except ValueError:
        logging.getLogger("mail.storage.tests").exception("Could not store")
    assert log_environment.logs.store is not None
    (node,) = await list_logs(root, filter={"components": ["STORE"], "minLevel": "ERROR"})
    assert node["message"] == "Could not store"
    assert node["fields"]["error"] == "ValueError"
    assert "canary" not in json.dumps(node)
    assert await log_messages(root, query="exception canary") == []
