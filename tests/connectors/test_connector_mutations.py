"""Connectors by the API: made, changed, run and ended, and seen by nobody else."""

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
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from tests.conftest import Client, make_client, raw_message
from tests.support.accounts import user_operations
from tests.support.accounts.demo_account import subscribed
from tests.support.operations.connector_operations import far, server
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount

__all__ = ["far", "server"]
GIVEN = {"host": "imap.example.net", "username": "ada@example.net", "password": "open sesame"}
ERRORS = """errors { __typename code message path index
  ... on ValidationError { constraint }
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
RUN = f"""mutation ($input: ConnectorRunInput!) {{ connectorRun(input: $input) {{
  runs {{ id state trial unit connector {{ name }} }} {ERRORS} }} }}"""
BY_IDS = f"""mutation ($input: IdsInput!) {{ connector%s(input: $input) {{ %s {ERRORS} }} }}"""
CHECK = f"""mutation ($input: ConnectorCheckInput!) {{ connectorCheck(input: $input) {{
  ok stages {{ stage ok message }} capabilities folders {ERRORS} }} }}"""
LIST = "query ($filter: ConnectorFilter) { connectors(filter: $filter) { nodes { name } } }"


async def done(client: Client, document: str, **given: Any) -> Any:
    """The payload of a mutation."""
    (payload,) = (await client(document, input=given)).values()
    return payload


async def made(client: Client, **given: Any) -> Any:
    """A connector."""
    payload = await done(client, CREATE, **{**GIVEN, "interval": None, **given})
    assert payload["errors"] == []
    return payload["connector"]


def inward(client: Client) -> None:
    """Connectors may go to our own machine."""
    options = replace(client.world.options, connectors_private=True)
    object.__setattr__(client.world, "options", options)


async def work(client: Client) -> None:
    """Run what is due."""
    worker = ConnectorWorker(client.world, NetworkPolicy(allows_private=True))
    await connector_worker.start_due_runs(worker)
    await asyncio.gather(*worker.running)


async def test_what_is_not_said_is_as_the_documents_have_it(ada: Client) -> None:
    found = (await done(ada, CREATE, **GIVEN))["connector"]
    assert found.pop("id").startswith("con_")
    assert found.pop("nextRunAt")
    assert found == {
        "name": "ada@example.net@imap.example.net", "protocol": "IMAP",
        "host": "imap.example.net", "port": 993, "security": "TLS", "authMechanism": "PLAIN",
        "username": "ada@example.net", "oauth": None, "targetDomain": None, "targetFolder": None,
        "interval": "PT1800S", "maxAge": None, "maxBytesPerSecond": 0,
        "exclude": "(?i)spam|(?i)junk", "folderRewrites": [], "autoMapFolders": True,
        "subscribeAll": True, "skipCrossDuplicates": False, "removeDuplicates": True,
        "sourceRetention": None, "deleteSource": False, "mirrorDeletes": False,
        "remoteTimeout": "PT600S", "localTimeout": "PT600S", "customOptions": [],
        "spamCheck": True, "virusCheck": True, "applyFilters": False, "active": True,
        "running": False, "lastRunAt": None, "lastError": None, "user": {"username": "ada"},
    }  # fmt: skip
    found = await made(
        ada, protocol="POP3", security="STARTTLS", name="pop", deleteSource=True,
        customOptions=[{"name": "MIN_SIZE", "value": "1 kB"}],
        folderRewrites=[{"pattern": "^A", "replacement": "B"}], targetFolder="Far",
        authMechanism="xoauth2", targetDomain="BÜCHER.example",
        oauth={"tokenUrl": "https://example.net/token", "clientId": "us", "clientSecret": "hush"},
    )  # fmt: skip
    assert (found["port"], found["sourceRetention"], found["deleteSource"]) == (110, "PT0S", True)
    assert found["customOptions"] == [{"name": "MIN_SIZE", "value": "1 kB"}]
    assert found["folderRewrites"] == [{"pattern": "^A", "replacement": "B"}]
    assert found["oauth"] == {"tokenUrl": "https://example.net/token", "clientId": "us"}
    assert (found["authMechanism"], found["nextRunAt"]) == ("XOAUTH2", None)
    assert found["targetDomain"] == "xn--bcher-kva.example"


async def test_secrets_are_sealed_and_never_told(ada: Client) -> None:
    oauth = {"tokenUrl": "https://example.net/t", "clientId": "us", "clientSecret": "hush hush"}
    await made(ada, authMechanism="XOAUTH2", oauth=oauth)
    (row,) = await ada.world.database.read(select(Connector.__table__))  # type: ignore[attr-defined]
    assert "sesame" not in str(row)
    assert "hush" not in str(row)
    for document in (f"{{ connectors {{ nodes {{ {FIELDS} lastLog }} }} }}",):
        assert "hush" not in str(await ada(document))


@pytest.mark.parametrize(
    ("given", "path", "constraint"),
    [
        ({"host": ""}, ["host"], "host"),
        ({"host": "a b"}, ["host"], "host"),
        ({"host": "imap.example.net\r\nX"}, ["host"], "host"),
        ({"host": "x" * 300}, ["host"], "host"),
        ({"host": "127.0.0.1"}, ["host"], "private"),
        ({"host": "::1"}, ["host"], "private"),
        ({"host": "localhost"}, ["host"], "private"),
        ({"host": "169.254.169.254"}, ["host"], "private"),
        ({"host": "db.internal"}, ["host"], "private"),
        ({"port": 0}, ["port"], "range"),
        ({"port": 65536}, ["port"], "range"),
        ({"security": "PLAIN"}, ["security"], "security"),
        ({"username": ""}, ["username"], "length"),
        ({"username": "a\r\nb"}, ["username"], "length"),
        ({"password": ""}, ["password"], "length"),
        ({"password": "a\nb"}, ["password"], "length"),
        ({"password": "x" * 9000}, ["password"], "length"),
        ({"authMechanism": "GSSAPI"}, ["authMechanism"], "unknown"),
        ({"authMechanism": "CRAM-MD5", "protocol": "POP3"}, ["authMechanism"], "unsupported"),
        ({"protocol": "ARCHIVE"}, ["protocol"], "unsupported"),
        ({"protocol": "USER"}, ["protocol"], "unsupported"),
        ({"interval": "PT4M"}, ["interval"], "range"),
        ({"interval": "P31D"}, ["interval"], "range"),
        ({"interval": "-PT1H"}, ["interval"], None),
        ({"maxAge": "PT1S"}, ["maxAge"], "range"),
        ({"maxBytesPerSecond": -1}, ["maxBytesPerSecond"], None),
        ({"remoteTimeout": "PT2H"}, ["remoteTimeout"], "range"),
        ({"localTimeout": "PT0S"}, ["localTimeout"], "range"),
        ({"exclude": "(a"}, ["exclude"], "pattern"),
        ({"exclude": "(?=a)"}, ["exclude"], "pattern"),
        ({"exclude": "((a{60}){60})"}, ["exclude"], "pattern"),
        ({"targetFolder": "a\u0000b"}, ["targetFolder"], None),
        ({"folderRewrites": [{"pattern": "(", "replacement": ""}]}, None, "pattern"),
        ({"folderRewrites": [{"pattern": "a", "replacement": "\n"}]}, None, "length"),
        ({"folderRewrites": [{"pattern": "a", "replacement": ""}] * 51}, ["folderRewrites"], "max"),
        ({"customOptions": [{"name": "MIN_AGE", "value": "x"}]}, ["customOptions"], "value"),
        ({"customOptions": [{"name": "MAX_SIZE"}]}, ["customOptions"], "value"),
        ({"customOptions": [{"name": "INCLUDE", "value": "("}]}, ["customOptions"], "pattern"),
        ({"customOptions": [{"name": "DRY", "value": "no"}]}, ["customOptions"], "value"),
        ({"customOptions": [{"name": "DRY"}] * 2}, ["customOptions"], "unique"),
        ({"customOptions": [{"name": "IDLE"}], "protocol": "POP3"}, None, "unsupported"),
        ({"mirrorDeletes": True, "protocol": "POP3"}, ["mirrorDeletes"], "unsupported"),
        ({"mirrorDeletes": True, "deleteSource": True}, ["mirrorDeletes"], "exclusive"),
        ({"deleteSource": True, "sourceRetention": "P1D"}, ["deleteSource"], "exclusive"),
        ({"sourceRetention": "-P1D"}, ["sourceRetention"], None),
        ({"oauth": {"tokenUrl": "https://example.net/t", "clientId": "x"}}, ["oauth"], "exclusive"),
        (
            {"authMechanism": "XOAUTH2", "oauth": {"tokenUrl": "http://10.0.0.1/", "clientId": ""}},
            ["oauth", "tokenUrl"],
            "private",
        ),
        (
            {"authMechanism": "XOAUTH2", "oauth": {"tokenUrl": "http://x.org/", "clientId": "x"}},
            ["oauth", "tokenUrl"],
            "url",
        ),
    ],
)
async def test_bad_input_names_the_field_and_the_rule(
    ada: Client, given: dict[str, Any], path: list[str] | None, constraint: str | None
) -> None:
    answer = await ada.raw(CREATE, input={**GIVEN, **given})
    if "errors" in answer:
        assert constraint is None
        return
    (error,) = answer["data"]["connectorCreate"]["errors"]
    assert error["__typename"] == "ValidationError"
    assert path is None or error["path"] == path
    assert constraint is None or error["constraint"] == constraint
    assert await ada("{ connectors { nodes { id } } }") == {"connectors": {"nodes": []}}


async def test_changes_keep_what_is_not_said(ada: Client) -> None:
    first = await made(ada, interval="PT10M", targetFolder="Far", maxAge="P1D")
    second = await made(ada, name="second")
    ids = [first["id"], second["id"]]
    payload = await done(ada, UPDATE, ids=ids, set={"active": False, "maxAge": None})
    assert payload["errors"] == []
    assert payload["connectors"] == [
        {**first, "active": False, "maxAge": None, "nextRunAt": None},
        {**second, "active": False},
    ]
    (found,) = (await done(ada, UPDATE, ids=ids[:1], set={"active": True}))["connectors"]
    assert found["nextRunAt"]
    (found,) = (await done(ada, UPDATE, ids=ids[:1], set={"security": "STARTTLS"}))["connectors"]
    assert found["port"] == 143
    for given in ({"host": "other.example.net"}, {"user": {"username": "bob"}}):
        await _asks_for_the_password(ada, ids[0], given)
    payload = await done(
        ada, UPDATE, ids=ids[:1], set={"host": "other.example.net", "password": "another"}
    )
    assert payload["errors"] == []
    payload = await done(
        ada, UPDATE, ids=[*ids, global_ids.encode("Connector", 5)], set={"name": "x"}
    )
    assert [(error["code"], error["index"]) for error in payload["errors"]] == [("NOT_FOUND", 2)]
    names = {node["name"] for node in (await ada(LIST))["connectors"]["nodes"]}
    assert "x" not in names


async def _asks_for_the_password(ada: Client, key: str, given: dict[str, Any]) -> None:
    errors = (await done(ada, UPDATE, ids=[key], set=given))["errors"]
    assert [error["code"] for error in errors] in (["VALIDATION"], ["NOT_FOUND"])
    if "host" in given:
        assert (errors[0]["path"], errors[0]["constraint"]) == (["password"], "required")


async def test_an_account_has_so_many(ada: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resolvers.connectors.mutations.MAX_CONNECTORS", 2)
    await made(ada)
    await made(ada)
    (error,) = (await done(ada, CREATE, **GIVEN))["errors"]
    assert error["code"] == "LIMIT_REACHED"


async def test_runs_are_begun_once_followed_and_remembered(
    ada: Client, far: DovecotAccount
) -> None:
    inward(ada)
    far.save_message(raw_message("One"))
    made_ = await made(
        ada, host="127.0.0.1", port=far.ports["imap"], security="PLAIN", username=far.user,
        password=PASSWORD, active=False,
    )  # fmt: skip
    first = (await done(ada, RUN, ids=[made_["id"]]))["runs"][0]
    again = (await done(ada, RUN, ids=[made_["id"]], trial=True))["runs"][0]
    assert first == again
    assert first["unit"].startswith("connector-run-")
    text = 'subscription { connectorRun(id: "%s") { state stage seen imported log } }'
    stream: AsyncGenerator[Any] = subscribed(ada, text % first["id"])
    everything = subscribed(ada, "subscription { connectorRun { id state imported } }")
    coming = asyncio.ensure_future(anext(everything))
    told = [(await anext(stream)).data["connectorRun"]]
    running = asyncio.ensure_future(work(ada))
    async with asyncio.timeout(20):
        told += [result.data["connectorRun"] async for result in stream]
        await running
        heard = (await coming).data["connectorRun"]
    await everything.aclose()
    assert heard["id"] == first["id"]
    assert [told[0]["state"], told[-1]["state"]] == ["QUEUED", "SUCCEEDED"]
    assert "RUNNING" in {one["state"] for one in told}
    assert (told[-1]["seen"], told[-1]["imported"]) == (1, 1)
    (node,) = (
        await ada("""{ connectors { nodes { running lastSuccessAt lastLog runs { totalCount nodes {
      state connector { name } startedAt finishedAt } } } } }""")
    )["connectors"]["nodes"]
    assert (node["running"], node["runs"]["totalCount"]) == (False, 1)
    assert "1 seen, 1 brought" in node["lastLog"]
    trial = (await done(ada, RUN, ids=[made_["id"]], trial=True))["runs"][0]
    assert trial["trial"]
    cancelled = await done(ada, BY_IDS % ("Cancel", "runs { state }"), ids=[trial["id"]])
    assert cancelled == {"runs": [{"state": "CANCELLED"}], "errors": []}
    await work(ada)
    counted = await ada("{ connectors { nodes { runs { totalCount } nextRunAt } } }")
    assert counted["connectors"]["nodes"] == [{"runs": {"totalCount": 2}, "nextRunAt": None}]


async def test_a_check_says_how_far_it_came(ada: Client, far: DovecotAccount) -> None:
    given = {
        "protocol": "IMAP", "security": "PLAIN", "host": "127.0.0.1", "port": far.ports["imap"],
        "username": far.user, "password": PASSWORD,
    }  # fmt: skip
    (error,) = (await done(ada, CHECK, **given))["errors"]
    assert error["constraint"] == "private"
    inward(ada)
    far.save_message(raw_message("One"), "Work")
    found = await done(ada, CHECK, **given)
    assert (found["errors"], found["ok"]) == ([], True)
    assert set(found["folders"]) >= {"INBOX", "Work"}
    assert "IDLE" in found["capabilities"]
    stages = ["RESOLVE", "CONNECT", "GREETING", "LOGIN", "LIST"]
    assert [(one["stage"], one["ok"]) for one in found["stages"]] == [(s, True) for s in stages]
    found = await done(ada, CHECK, **{**given, "password": "not this"})
    (error,) = found["errors"]
    assert (error["code"], error["stage"]) == ("CONNECTOR_FAILURE", "LOGIN")
    assert "failed" in error["remoteMessage"].lower()
    assert "not this" not in str(found)
    assert [one["ok"] for one in found["stages"]] == [True, True, True, False]
    found = await done(ada, CHECK, **{**given, "port": free_port()})
    assert [error["stage"] for error in found["errors"]] == ["CONNECT"]
    (error,) = (await done(ada, CHECK, **given, timeout="PT2M"))["errors"]
    assert error["path"] == ["timeout"]


async def test_nobody_else_sees_or_changes_any(ada: Client, bob: Client, root: Client) -> None:
    key = (await made(ada, name="hers"))["id"]
    run = (await done(ada, RUN, ids=[key]))["runs"][0]["id"]
    without = await user_operations.chief(root, name="bare")
    for client in (bob, without):
        assert (await client(LIST))["connectors"]["nodes"] == []
        assert await client("query ($id: ID!) { node(id: $id) { id } }", id=key) == {"node": None}
        asked = "query ($id: ID!) { connectorRun(id: $id) { id } }"
        assert await client(asked, id=run) == {"connectorRun": None}
        for document, ids in (
            (BY_IDS % ("Delete", "deletedIds"), [key]),
            (BY_IDS % ("Cancel", "runs { id }"), [run]),
            (RUN, [key]),
            (UPDATE, [key]),
        ):
            more = {"set": {"name": "mine"}} if document == UPDATE else {}
            errors = (await done(client, document, ids=ids, **more))["errors"]
            assert [error["code"] for error in errors] == ["NOT_FOUND"]
        errors = (await done(client, CREATE, **GIVEN, user={"username": "ada"}))["errors"]
        assert errors[0]["code"] in ("NOT_FOUND", "FORBIDDEN")
        async with asyncio.timeout(5):
            text = f'subscription {{ connectorRun(id: "{run}") {{ id }} }}'
            refused = [result async for result in subscribed(client, text)]
        assert "NOT_FOUND" in str(refused[0].errors[0].extensions)
    assert (await ada(LIST))["connectors"]["nodes"] == [{"name": "hers"}]
    chief = await user_operations.chief(root, AdminPermission.SYNCJOBS)
    assert (await chief(LIST))["connectors"]["nodes"] == [{"name": "hers"}]
    given = {"users": {"usernames": ["ada"]}}
    assert (await root(LIST, filter=given or None))["connectors"]["nodes"] == [{"name": "hers"}]
    assert (await root(LIST, filter={"failing": True}))["connectors"]["nodes"] == []
    payload = await done(chief, UPDATE, ids=[key], set={"name": "theirs"})
    assert payload["connectors"][0]["name"] == "theirs"


async def test_lists_cost_the_same_however_many(
    root: Client, statements: list[str], http: httpx.AsyncClient
) -> None:
    document = """{ users(first: 50) { nodes { username connectors(first: 3) { totalCount nodes {
      name lastLog user { username } runs(first: 2) { totalCount nodes { state log } } } } } } }"""

    async def cost() -> int:
        del statements[:]
        await root(document)
        return len([sent for sent in statements if "api_keys" not in sent])

    for nth in range(20):
        client = await make_client(root.world, http, f"n{nth}")
        for name in "ab":
            made_ = await made(client, name=name)
            await done(client, RUN, ids=[made_["id"]])
        if nth == 0:
            await cost()
            few = await cost()
    assert await cost() == few
    answer = await root(document)
    found = [node["connectors"]["totalCount"] for node in answer["users"]["nodes"]]
    assert found == [2] * 20
    pages = """query ($after: String) { connectors(first: 7, after: $after) {
      nodes { id } pageInfo { endCursor hasNextPage } } }"""
    seen, after = list[str](), None
    while True:
        page = (await root(pages, after=after))["connectors"]
        seen += [node["id"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            break
        after = page["pageInfo"]["endCursor"]
    assert len(seen) == len(set(seen)) == 40
