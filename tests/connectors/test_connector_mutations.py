"""Connector mutations: create, update, run, check and delete, and rights."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from bench.servers.ports import free_port
from graph.types import global_ids
from mail.network.outbound_http import NetworkPolicy
from models.connectors import Connector
from models.users.roles import AdminPermission
from resolvers.connectors import check as connector_check
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from tests.conftest import GraphQLClient, make_client, raw_message
from tests.support.accounts import user_operations
from tests.support.accounts.demo_account import subscription_results
from tests.support.case_loop import each_case
from tests.support.operations.connector_operations import (
    dovecot_account,
    shared_dovecot,
    with_server,
)
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount
from tests.support.time_limits import HANG_SECONDS

__all__ = ["dovecot_account", "shared_dovecot"]
CONNECTOR_INPUT = {
    "host": "imap.example.net",
    "username": "ada@example.net",
    "password": "open sesame",
}
ERRORS = """errors { __typename code message path ... on ValidationError { constraint }
  ... on ConnectorFailureError { stage remoteMessage } }"""
FIELDS = """id name protocol host port security authMechanism username oauth { tokenUrl clientId }
  targetDomain targetFolder interval maxAge maxBytesPerSecond exclude
  folderRewrites { pattern replacement } autoMapFolders subscribeAll skipCrossDuplicates
  removeDuplicates sourceRetention deleteSource mirrorDeletes remoteTimeout localTimeout
  customOptions { name value } spamCheck virusCheck applyFilters active running
  lastRunAt lastError nextRunAt user { username }"""
CREATE = f"""mutation ($input: ConnectorCreateInput!) {{ connectorCreate(input: $input) {{
  connector {{ {FIELDS} }} {ERRORS} }} }}"""
UPDATE = f"""mutation ($input: ConnectorUpdateInput!) {{ connectorUpdate(input: $input) {{
  connectors {{ {FIELDS} }} {ERRORS} }} }}"""
START = f"""mutation ($input: ConnectorStartInput!) {{ connectorStart(input: $input) {{
  connectorRuns {{ id state dryRun correlationId connector {{ name }} }} {ERRORS} }} }}"""
DELETE = f"""mutation ($input: ConnectorDeleteInput!) {{ connectorDelete(input: $input) {{
  deletedIds {ERRORS} }} }}"""
CANCEL = f"""mutation ($input: ConnectorRunCancelInput!) {{ connectorRunCancel(input: $input) {{
  connectorRuns {{ id state }} {ERRORS} }} }}"""
CHECK = f"""mutation ($input: ConnectorTestInput!) {{ connectorTest(input: $input) {{
  ok stages {{ stage ok message }} capabilities folders folderCount
  {ERRORS} }} }}"""
LIST = "query ($filter: ConnectorFilter) { connectors(filter: $filter) { nodes { name } } }"


def object_refs(*ids: str) -> list[dict[str, str]]:
    """References to objects by id."""
    return [{"id": object_id} for object_id in ids]


async def run_mutation(client: GraphQLClient, document: str, **arguments: Any) -> Any:
    """Run a mutation and return its payload."""
    (payload,) = (await client(document, input=arguments)).values()
    return payload


async def create_connector(client: GraphQLClient, **changes: Any) -> Any:
    """Create a connector and return it."""
    fields = with_server({**CONNECTOR_INPUT, "interval": None, **changes})
    payload = await run_mutation(client, CREATE, **fields)
    assert payload["errors"] == []
    return payload["connector"]


def allow_private_hosts(client: GraphQLClient) -> None:
    """Let connectors connect to private addresses."""
    options = replace(client.environment.options, connectors_allow_private_networks=True)
    object.__setattr__(client.environment, "options", options)


async def run_due_connectors(client: GraphQLClient) -> None:
    """Run all connectors that are due."""
    worker = ConnectorWorker(client.environment, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    await asyncio.gather(*worker.running)


async def test_created_connector_has_documented_defaults(ada: GraphQLClient) -> None:
    connector = (await run_mutation(ada, CREATE, **with_server(CONNECTOR_INPUT)))["connector"]
    assert connector.pop("id").startswith("con_")
    assert connector.pop("nextRunAt")
    assert connector == {
        "name": "ada@example.net@imap.example.net", "protocol": "IMAP",
        "host": "imap.example.net", "port": 993, "security": "TLS", "authMechanism": "PLAIN",
        "username": "ada@example.net", "oauth": None, "targetDomain": None, "targetFolder": None,
        "interval": "PT1800S", "maxAge": None, "maxBytesPerSecond": None,
        "exclude": "(?i)spam|(?i)junk", "folderRewrites": [], "autoMapFolders": True,
        "subscribeAll": True, "skipCrossDuplicates": False, "removeDuplicates": True,
        "sourceRetention": None, "deleteSource": False, "mirrorDeletes": False,
        "remoteTimeout": "PT600S", "localTimeout": "PT600S", "customOptions": [],
        "spamCheck": True, "virusCheck": True, "applyFilters": False, "active": True,
        "running": False, "lastRunAt": None, "lastError": None, "user": {"username": "ada"},
    }  # fmt: skip
    connector = await create_connector(
        ada, protocol="POP3", security="STARTTLS", name="pop", deleteSource=True,
        customOptions=[{"name": "MIN_SIZE", "value": "1 kB"}],
        folderRewrites=[{"pattern": "^A", "replacement": "B"}], targetFolder="Far",
        authMechanism="XOAUTH2", targetDomain="BÜCHER.example",
        oauth={"tokenUrl": "https://example.net/token", "clientId": "us", "clientSecret": "hush"},
    )  # fmt: skip
    assert (connector["port"], connector["sourceRetention"], connector["deleteSource"]) == (
        110,
        "PT0S",
        True,
    )
    assert connector["customOptions"] == [{"name": "MIN_SIZE", "value": "1 kB"}]
    assert connector["folderRewrites"] == [{"pattern": "^A", "replacement": "B"}]
    assert connector["oauth"] == {"tokenUrl": "https://example.net/token", "clientId": "us"}
    assert (connector["authMechanism"], connector["nextRunAt"]) == ("XOAUTH2", None)
    assert connector["targetDomain"] == "xn--bcher-kva.example"


async def test_secrets_are_encrypted_and_never_returned(ada: GraphQLClient) -> None:
    oauth = {"tokenUrl": "https://example.net/t", "clientId": "us", "clientSecret": "hush hush"}
    await create_connector(ada, authMechanism="XOAUTH2", oauth=oauth)
    (row,) = await ada.environment.database.read(select(Connector.__table__))  # type: ignore[attr-defined]
    assert "sesame" not in str(row)
    assert "hush" not in str(row)
    for document in (f"{{ connectors {{ nodes {{ {FIELDS} lastLog }} }} }}",):
        assert "hush" not in str(await ada(document))


INVALID_INPUTS: list[tuple[dict[str, Any], list[str] | None, str | None]] = [
    ({"host": ""}, ["server", "host"], "HOST"),
    ({"host": "a b"}, ["server", "host"], "HOST"),
    ({"host": "imap.example.net\r\nX"}, ["server", "host"], "HOST"),
    ({"host": "x" * 300}, ["server", "host"], "HOST"),
    ({"host": "127.0.0.1"}, ["server", "host"], "PRIVATE_NETWORK"),
    ({"host": "::1"}, ["server", "host"], "PRIVATE_NETWORK"),
    ({"host": "localhost"}, ["server", "host"], "PRIVATE_NETWORK"),
    ({"host": "169.254.169.254"}, ["server", "host"], "PRIVATE_NETWORK"),
    ({"host": "db.internal"}, ["server", "host"], "PRIVATE_NETWORK"),
    ({"port": 0}, ["server", "port"], "RANGE"),
    ({"port": 65536}, ["server", "port"], "RANGE"),
    ({"security": "NONE"}, ["server", "security"], "SECURITY"),
    ({"username": ""}, ["server", "username"], "LENGTH"),
    ({"username": "a\r\nb"}, ["server", "username"], "LENGTH"),
    ({"password": ""}, ["server", "password"], "LENGTH"),
    ({"password": "a\nb"}, ["server", "password"], "LENGTH"),
    ({"password": "x" * 9000}, ["server", "password"], "LENGTH"),
    ({"authMechanism": "CRAM_MD5", "protocol": "POP3"}, ["server", "authMechanism"], "UNSUPPORTED"),
    ({"protocol": "ARCHIVE"}, ["server", "protocol"], "UNSUPPORTED"),
    ({"protocol": "USER"}, ["server", "protocol"], "UNSUPPORTED"),
    ({"interval": "PT4M"}, ["interval"], "RANGE"),
    ({"interval": "P31D"}, ["interval"], "RANGE"),
    ({"interval": "-PT1H"}, ["interval"], None),
    ({"maxAge": "PT1S"}, ["maxAge"], "RANGE"),
    ({"maxBytesPerSecond": 0}, ["maxBytesPerSecond"], "MIN"),
    ({"remoteTimeout": "PT2H"}, ["remoteTimeout"], "RANGE"),
    ({"localTimeout": "PT0S"}, ["localTimeout"], "RANGE"),
    ({"exclude": "(a"}, ["exclude"], "PATTERN"),
    ({"exclude": "(?=a)"}, ["exclude"], "PATTERN"),
    ({"exclude": "((a{60}){60})"}, ["exclude"], "PATTERN"),
    ({"targetFolder": "a\u0000b"}, ["targetFolder"], None),
    ({"folderRewrites": [{"pattern": "(", "replacement": ""}]}, None, "PATTERN"),
    ({"folderRewrites": [{"pattern": "a", "replacement": "\n"}]}, None, "LENGTH"),
    ({"folderRewrites": [{"pattern": "a", "replacement": ""}] * 51}, ["folderRewrites"], "MAX"),
    ({"customOptions": [{"name": "MIN_AGE", "value": "x"}]}, ["customOptions", "0"], "VALUE"),
    ({"customOptions": [{"name": "MAX_SIZE"}]}, ["customOptions", "0"], "VALUE"),
    ({"customOptions": [{"name": "INCLUDE", "value": "("}]}, ["customOptions", "0"], "PATTERN"),
    ({"customOptions": [{"name": "DRY_RUN", "value": "no"}]}, ["customOptions", "0"], "VALUE"),
    ({"customOptions": [{"name": "DRY_RUN"}] * 2}, ["customOptions", "1"], "UNIQUE"),
    ({"customOptions": [{"name": "IDLE"}], "protocol": "POP3"}, None, "UNSUPPORTED"),
    ({"mirrorDeletes": True, "protocol": "POP3"}, ["mirrorDeletes"], "UNSUPPORTED"),
    ({"mirrorDeletes": True, "deleteSource": True}, ["mirrorDeletes"], "EXCLUSIVE"),
    ({"deleteSource": True, "sourceRetention": "P1D"}, ["deleteSource"], "EXCLUSIVE"),
    ({"sourceRetention": "-P1D"}, ["sourceRetention"], None),
    (
        {"oauth": {"tokenUrl": "https://example.net/t", "clientId": "x"}},
        ["server", "oauth"],
        "EXCLUSIVE",
    ),
    (
        {"authMechanism": "XOAUTH2", "oauth": {"tokenUrl": "http://10.0.0.1/", "clientId": ""}},
        ["server", "oauth", "tokenUrl"],
        "PRIVATE_NETWORK",
    ),
    (
        {"authMechanism": "XOAUTH2", "oauth": {"tokenUrl": "http://x.org/", "clientId": "x"}},
        ["server", "oauth", "tokenUrl"],
        "URL",
    ),
]


async def test_invalid_input_is_refused_by_field_and_rule(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_INPUTS):
        with case as (arguments, path, constraint):
            answer = await ada.execute(CREATE, input=with_server({**CONNECTOR_INPUT, **arguments}))
            if "errors" in answer:
                assert constraint is None
                continue
            (error,) = answer["data"]["connectorCreate"]["errors"]
            assert error["__typename"] == "ValidationError"
            assert path is None or error["path"] == path
            assert constraint is None or error["constraint"] == constraint
            assert await ada("{ connectors { nodes { id } } }") == {"connectors": {"nodes": []}}


async def test_update_keeps_fields_that_are_not_given(ada: GraphQLClient) -> None:
    first = await create_connector(ada, interval="PT10M", targetFolder="Far", maxAge="P1D")
    second = await create_connector(ada, name="second")
    ids = [first["id"], second["id"]]
    payload = await run_mutation(
        ada, UPDATE, connectors=object_refs(*ids), set={"active": False, "maxAge": None}
    )
    assert payload["errors"] == []
    assert payload["connectors"] == [
        {**first, "active": False, "maxAge": None, "nextRunAt": None},
        {**second, "active": False},
    ]
    (connector,) = (
        await run_mutation(ada, UPDATE, connectors=object_refs(*ids[:1]), set={"active": True})
    )["connectors"]
    assert connector["nextRunAt"]
    (connector,) = (
        await run_mutation(
            ada, UPDATE, connectors=object_refs(*ids[:1]), set={"server": {"security": "STARTTLS"}}
        )
    )["connectors"]
    assert connector["port"] == 143
    for arguments in (
        {"server": {"host": "other.example.net"}},
        {"server": {"username": "bob"}},
        {"server": {"security": "STARTTLS", "oauth": None, "username": "bob"}},
        {"user": {"username": "bob"}},
    ):
        await assert_password_required(ada, ids[0], arguments)
    payload = await run_mutation(
        ada,
        UPDATE,
        connectors=object_refs(*ids[:1]),
        set={"server": {"host": "other.example.net", "password": "another"}},
    )
    assert payload["errors"] == []
    payload = await run_mutation(
        ada,
        UPDATE,
        connectors=object_refs(*ids, global_ids.encode("Connector", 5)),
        set={"name": "x"},
    )
    assert [(error["code"], error["path"]) for error in payload["errors"]] == [
        ("NOT_FOUND", ["connectors", "2"])
    ]
    names = {node["name"] for node in (await ada(LIST))["connectors"]["nodes"]}
    assert "x" not in names


async def assert_password_required(
    ada: GraphQLClient, connector_id: str, changes: dict[str, Any]
) -> None:
    errors = (await run_mutation(ada, UPDATE, connectors=object_refs(connector_id), set=changes))[
        "errors"
    ]
    assert [error["code"] for error in errors] in (["VALIDATION"], ["NOT_FOUND"])
    if "user" not in changes:
        assert (errors[0]["path"], errors[0]["constraint"]) == (
            ["set", "server", "password"],
            "REQUIRED",
        )


async def test_connector_of_another_user_needs_the_password(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    connector_id = (await create_connector(ada))["id"]
    changes: dict[str, Any] = {"user": {"username": "bob"}}
    payload = await run_mutation(root, UPDATE, connectors=object_refs(connector_id), set=changes)
    (error,) = payload["errors"]
    assert (error["path"], error["constraint"]) == (
        ["set", "server", "password"],
        "REQUIRED",
    )
    assert (await bob(LIST))["connectors"]["nodes"] == []
    changes["server"] = {"password": "another"}
    payload = await run_mutation(root, UPDATE, connectors=object_refs(connector_id), set=changes)
    assert payload["errors"] == []
    assert (await ada(LIST))["connectors"]["nodes"] == []
    assert len((await bob(LIST))["connectors"]["nodes"]) == 1


async def test_number_of_connectors_is_limited(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.connectors.mutations.MAX_CONNECTORS", 2)
    await create_connector(ada)
    await create_connector(ada)
    (error,) = (await run_mutation(ada, CREATE, **with_server(CONNECTOR_INPUT)))["errors"]
    assert error["code"] == "LIMIT_REACHED"


async def test_run_is_queued_once_and_reported_by_subscription(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    allow_private_hosts(ada)
    dovecot_account.save_message(raw_message("One"))
    connector = await create_connector(
        ada,
        host="127.0.0.1",
        port=dovecot_account.ports["imap"],
        security="NONE",
        username=dovecot_account.user,
        password=PASSWORD,
        active=False,
    )
    first = (await run_mutation(ada, START, connectors=object_refs(connector["id"])))[
        "connectorRuns"
    ][0]
    repeated = (
        await run_mutation(ada, START, connectors=object_refs(connector["id"]), dryRun=True)
    )["connectorRuns"][0]
    assert first == repeated
    assert first["correlationId"].startswith("connector-run-")
    document = """subscription { connectorRunProgress(connectorRun: {id: "%s"}) {
      state stage seenCount importedCount log } }"""
    stream: AsyncGenerator[Any] = subscription_results(ada, document % first["id"])
    all_runs = subscription_results(
        ada, "subscription { connectorRunProgress { id state importedCount } }"
    )
    next_run = asyncio.ensure_future(anext(all_runs))
    states = [(await anext(stream)).data["connectorRunProgress"]]
    work_task = asyncio.ensure_future(run_due_connectors(ada))
    async with asyncio.timeout(HANG_SECONDS):
        states += [result.data["connectorRunProgress"] async for result in stream]
        await work_task
        event = (await next_run).data["connectorRunProgress"]
    await all_runs.aclose()
    assert event["id"] == first["id"]
    assert [states[0]["state"], states[-1]["state"]] == ["QUEUED", "SUCCEEDED"]
    assert "RUNNING" in {state["state"] for state in states}
    assert (states[-1]["seenCount"], states[-1]["importedCount"]) == (1, 1)
    (node,) = (
        await ada("""{ connectors { nodes { running lastSuccessAt lastLog runs { totalCount nodes {
      state connector { name } startedAt finishedAt } } } } }""")
    )["connectors"]["nodes"]
    assert (node["running"], node["runs"]["totalCount"]) == (False, 1)
    assert "1 seen, 1 imported" in node["lastLog"]
    dry_run = (
        await run_mutation(ada, START, connectors=object_refs(connector["id"]), dryRun=True)
    )["connectorRuns"][0]
    assert dry_run["dryRun"]
    cancelled = await run_mutation(ada, CANCEL, connectorRuns=object_refs(dry_run["id"]))
    assert cancelled == {
        "connectorRuns": [{"id": dry_run["id"], "state": "CANCELLED"}],
        "errors": [],
    }
    await run_due_connectors(ada)
    result = await ada("{ connectors { nodes { runs { totalCount } nextRunAt } } }")
    assert result["connectors"]["nodes"] == [{"runs": {"totalCount": 2}, "nextRunAt": None}]


async def test_check_reports_the_reached_stages(
    ada: GraphQLClient, dovecot_account: DovecotAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = {
        "protocol": "IMAP",
        "security": "NONE",
        "host": "127.0.0.1",
        "port": dovecot_account.ports["imap"],
        "username": dovecot_account.user,
        "password": PASSWORD,
    }
    check_input = {"server": server}
    (error,) = (await run_mutation(ada, CHECK, **check_input))["errors"]
    assert error["constraint"] == "PRIVATE_NETWORK"
    allow_private_hosts(ada)
    dovecot_account.save_message(raw_message("One"), "Work")
    result = await run_mutation(ada, CHECK, **check_input)
    assert (result["errors"], result["ok"]) == ([], True)
    assert set(result["folders"]) >= {"INBOX", "Work"}
    assert len(result["folders"]) == result["folderCount"]
    with monkeypatch.context() as patch:
        patch.setattr(connector_check, "MAX_LISTED_MAILBOXES", 1)
        shortened = await run_mutation(ada, CHECK, **check_input)
    assert len(shortened["folders"]) == 1
    assert shortened["folderCount"] == result["folderCount"]
    assert "IDLE" in result["capabilities"]
    stages = ["RESOLVE", "CONNECT", "GREETING", "LOGIN", "LIST"]
    assert [(stage["stage"], stage["ok"]) for stage in result["stages"]] == [
        (s, True) for s in stages
    ]
    result = await run_mutation(ada, CHECK, server={**server, "password": "not this"})
    (error,) = result["errors"]
    assert (error["code"], error["stage"]) == ("CONNECTOR_FAILURE", "LOGIN")
    assert "failed" in error["remoteMessage"].lower()
    assert "not this" not in str(result)
    assert [stage["ok"] for stage in result["stages"]] == [True, True, True, False]
    result = await run_mutation(ada, CHECK, server={**server, "port": free_port()})
    assert [error["stage"] for error in result["errors"]] == ["CONNECT"]
    (error,) = (await run_mutation(ada, CHECK, **check_input, timeout="PT2M"))["errors"]
    assert error["path"] == ["timeout"]


async def test_other_users_cannot_read_or_change_connectors(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    connector_id = (await create_connector(ada, name="hers"))["id"]
    run_id = (await run_mutation(ada, START, connectors=object_refs(connector_id)))[
        "connectorRuns"
    ][0]["id"]
    admin_without_permission = await user_operations.make_admin_of_domain(root, name="bare")
    for client in (bob, admin_without_permission):
        assert (await client(LIST))["connectors"]["nodes"] == []
        assert await client("query ($id: ID!) { node(id: $id) { id } }", id=connector_id) == {
            "node": None
        }
        run_query = "query ($id: ID!) { connectorRun(by: {id: $id}) { id } }"
        assert await client(run_query, id=run_id) == {"connectorRun": None}
        connector_refs = object_refs(connector_id)
        calls: list[tuple[str, dict[str, Any]]] = [
            (DELETE, {"connectors": connector_refs}),
            (CANCEL, {"connectorRuns": object_refs(run_id)}),
            (START, {"connectors": connector_refs}),
            (UPDATE, {"connectors": connector_refs, "set": {"name": "mine"}}),
        ]
        for document, arguments in calls:
            errors = (await run_mutation(client, document, **arguments))["errors"]
            list_field = "connectorRuns" if document == CANCEL else "connectors"
            assert [(error["code"], error["path"]) for error in errors] == [
                ("NOT_FOUND", [list_field, "0"])
            ]
        errors = (
            await run_mutation(
                client, CREATE, **with_server(CONNECTOR_INPUT), user={"username": "ada"}
            )
        )["errors"]
        assert errors[0]["code"] in ("NOT_FOUND", "FORBIDDEN")
        async with asyncio.timeout(HANG_SECONDS):
            run_argument = f'connectorRun: {{id: "{run_id}"}}'
            subscription = f"subscription {{ connectorRunProgress({run_argument}) {{ id }} }}"
            results = [result async for result in subscription_results(client, subscription)]
        assert "NOT_FOUND" in str(results[0].errors[0].extensions)
    assert (await ada(LIST))["connectors"]["nodes"] == [{"name": "hers"}]
    domain_admin = await user_operations.make_admin_of_domain(root, AdminPermission.CONNECTORS)
    assert (await domain_admin(LIST))["connectors"]["nodes"] == [{"name": "hers"}]
    arguments = {"users": {"usernames": ["ada"]}}
    assert (await root(LIST, filter=arguments or None))["connectors"]["nodes"] == [{"name": "hers"}]
    assert (await root(LIST, filter={"failing": True}))["connectors"]["nodes"] == []
    payload = await run_mutation(
        domain_admin, UPDATE, connectors=object_refs(connector_id), set={"name": "theirs"}
    )
    assert payload["connectors"][0]["name"] == "theirs"


async def test_list_needs_a_constant_number_of_statements(
    root: GraphQLClient, statements: list[str], http: httpx.AsyncClient
) -> None:
    document = """{ users(first: 50) { nodes { username connectors(first: 3) { totalCount nodes {
      name lastLog user { username } runs(first: 2) { totalCount nodes { state log } } } } } } }"""

    async def cost() -> int:
        del statements[:]
        await root(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    for number in range(8):
        client = await make_client(root.environment, http, f"n{number}")
        for name in "ab":
            connector = await create_connector(client, name=name)
            await run_mutation(client, START, connectors=object_refs(connector["id"]))
        if number == 0:
            await cost()
            expected = await cost()
    assert await cost() == expected
    answer = await root(document)
    counts = [node["connectors"]["totalCount"] for node in answer["users"]["nodes"]]
    assert counts == [2] * 8
    pages = """query ($after: String) { connectors(first: 7, after: $after) {
      nodes { id } pageInfo { endCursor hasNextPage } } }"""
    seen, after = list[str](), None
    while True:
        page = (await root(pages, after=after))["connectors"]
        seen += [node["id"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            break
        after = page["pageInfo"]["endCursor"]
    assert len(seen) == len(set(seen)) == 16


async def test_range_of_an_interval_is_named_as_clients_write_it(ada: GraphQLClient) -> None:
    payload = await run_mutation(ada, CREATE, **with_server(CONNECTOR_INPUT), interval="PT1M")
    (error,) = payload["errors"]
    assert error["message"] == "The duration must be longer than PT4M and at most P30D."
