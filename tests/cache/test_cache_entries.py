"""The list of cache entries: kinds, users, filters, orders, pages, secrets and other roles."""

import asyncio
import base64
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dns.name
import dns.rdataclass
import dns.rdatatype
import pytest

from mail.network.dns_cache import ANSWER_CACHES, DnsAnswerCache
from mail.network.dns_resolver import cached_resolver
from models.auth.security_log import SecurityEventAction
from models.users.roles import Role
from resolvers.auth import security_log
from resolvers.auth.basic_auth import authenticate_basic
from resolvers.auth.credential_cache import cache_of_database
from resolvers.auth.security_event_rows import NewSecurityEvent
from tests.conftest import GraphQLClient, client_context, deliver_to, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import PASSWORD
from tests.support.case_loop import each_case
from tests.support.operations.platform.blob_operations import deliver_large_message
from tests.support.operations.platform.cache_operations import (
    CACHE_ENTRIES,
    CacheServer,
    list_entries,
    listed_names,
    open_cache_server,
)
from tests.support.stores.blob_caches import CachedBucket
from tests.support.stores.recorded_statements import record_sql

TEXTS = "{ messages(first: 10) { nodes { text } } }"
ALL_ORDERS = ("LAST_USED_AT", "NAME", "SIZE")


@pytest.fixture
async def server(
    root: GraphQLClient, cached: CachedBucket, tmp_path: Path
) -> AsyncIterator[CacheServer]:
    async with open_cache_server(root, cached, tmp_path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def empty_dns_caches() -> None:
    for cache in list(ANSWER_CACHES):
        cache.flush()


class FakeResponse:
    wire = b"x" * 77


class FakeAnswer:
    """An answer as dnspython keeps it."""

    def __init__(self, expiration: float = 4e9) -> None:
        self.expiration = expiration
        self.response = FakeResponse()


def dns_question(text: str, record_type: str = "TXT") -> Any:
    return (
        dns.name.from_text(text),
        dns.rdatatype.from_text(record_type),
        dns.rdataclass.IN,
    )


async def read_large_message(client: GraphQLClient, subject: str, seed: int) -> None:
    await deliver_large_message(client, subject, seed)
    await client(TEXTS)


async def test_credential_shows_user_and_never_the_key(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await ada("{ viewer { user { username } } }")
    await root("{ viewer { role } }")
    result = await list_entries(root, filter={"kinds": ["CREDENTIAL"]})
    assert result["totalCount"] == 2
    by_user = {(node["user"] or {}).get("username"): node for node in result["nodes"]}
    assert set(by_user) == {None, "ada"}
    node = by_user["ada"]
    assert (node["name"], node["dirty"], node["pendingCount"]) == ("API key", False, 0)
    assert (node["node"], node["pid"]) == (socket.gethostname(), os.getpid())
    response = await root.execute(CACHE_ENTRIES)
    digests = list(cache_of_database(ada.environment.database).credentials)
    assert len(digests) == 2
    for secret in (ada.secret, root.secret, *digests, *(digest[:12] for digest in digests)):
        assert secret not in str(response)


@pytest.mark.usefixtures("ada")
async def test_password_check_shows_user_and_no_secret(root: GraphQLClient) -> None:
    environment = root.environment
    await root("{ viewer { role } }")  # the first use of a credential clears the cache
    carol = await make_client(environment, root.http, "carol", password=PASSWORD)
    secret = base64.b64encode(f"carol:{PASSWORD}".encode()).decode()
    await authenticate_basic(environment, secret, "192.0.2.1")
    kinds = ["PASSWORD_CHECK"]
    (node,) = (await list_entries(root, filter={"kinds": kinds}))["nodes"]
    assert (node["name"], node["user"]["username"]) == ("password check", carol.user.username)
    assert (node["dirty"], node["pendingCount"], node["pid"]) == (False, 0, os.getpid())
    assert await listed_names(root, kinds=kinds, users={"usernames": ["ada"]}) == []
    (digest,) = cache_of_database(environment.database).password_checks
    response = str(await root.execute(CACHE_ENTRIES))
    assert not [text for text in (PASSWORD, secret, digest, digest[:12]) if text in response]


async def test_parsed_message_is_one_entry_without_text(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await make_client(root.environment, root.http, "carol")
    await deliver_to(ada, "Confidential")
    await deliver_to(bob, "Second")
    await ada("{ messages(first: 10) { nodes { text headers { name value } } } }")
    (node,) = (await list_entries(root, filter={"kinds": ["PARSED_MESSAGE"]}))["nodes"]
    assert (node["name"], node["user"], node["dirty"]) == ("parsed message", None, False)
    assert node["size"] == root.environment.byte_cache.used_bytes > 0
    assert "Confidential" not in str(await root.execute(CACHE_ENTRIES))
    await bob(TEXTS)
    for username, count in (("ada", 1), ("bob", 1), ("carol", 0)):
        users = {"usernames": [username]}
        assert len(await listed_names(root, kinds=["PARSED_MESSAGE"], users=users)) == count
    assert len(await listed_names(root, kinds=["PARSED_MESSAGE"])) == 2


async def test_dns_answers_have_their_question(root: GraphQLClient) -> None:
    cache = cached_resolver("127.0.0.1:1", trusts_dnssec=False).cache
    assert isinstance(cache, DnsAnswerCache)
    cache.put(dns_question("_dmarc.example.org"), FakeAnswer())
    cache.put(dns_question("old.example.org"), FakeAnswer(expiration=1.0))
    (node,) = (await list_entries(root, filter={"kinds": ["DNS_ANSWER"]}))["nodes"]
    assert (node["name"], node["size"]) == ("_dmarc.example.org TXT", 77)
    assert node["user"] is None


def test_dns_cache_removes_the_least_used_answer() -> None:
    cache = DnsAnswerCache(2)
    questions = [dns_question(f"{letter}.example") for letter in "abc"]
    answers = [FakeAnswer() for _ in questions]
    cache.put(questions[0], answers[0])
    cache.put(questions[1], answers[1])
    assert cache.get(questions[0]) is answers[0]
    cache.put(questions[2], answers[2])
    assert cache.get(questions[1]) is None
    assert cache.get(questions[0]) is answers[0]
    cache.put(questions[1], FakeAnswer(expiration=1.0))
    assert cache.get(questions[1]) is None
    cache.flush(questions[0])
    assert cache.get(questions[0]) is None
    cache.flush()
    assert cache.list_answers() == []


async def test_blobs_belong_to_the_users_of_their_messages(
    server: CacheServer, root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    boss, ada, bob = (server.client_of(client) for client in (root, ada, bob))
    await read_large_message(ada, "First", 1)
    await read_large_message(bob, "Second", 2)
    paths = await listed_names(boss, kinds=["BLOB"])
    assert len(paths) == 2
    (of_ada,) = await listed_names(boss, kinds=["BLOB"], users={"usernames": ["ada"]})
    (of_bob,) = await listed_names(boss, kinds=["BLOB"], users={"patterns": ["b*"]})
    assert {of_ada, of_bob} == set(paths)
    assert await listed_names(boss, kinds=["BLOB"], users={"patterns": ["nobody*"]}) == []
    result = await list_entries(boss, filter={"kinds": ["BLOB"], "dirty": False})
    for node in result["nodes"]:
        path = server.cached.folder / server.cached.store.store_id / node["name"]
        assert (node["size"], node["pid"], node["user"]) == (path.stat().st_size, None, None)
    assert await listed_names(boss, kinds=["BLOB"], dirty=True) == []


async def test_pending_writes_are_dirty(root: GraphQLClient, ada: GraphQLClient) -> None:
    await ada("{ viewer { role } }")
    cache = cache_of_database(root.environment.database)
    await cache.wait_for_started_writes()
    ctx = client_context(ada)
    cache.events_written_at = asyncio.get_running_loop().time()  # the next write waits
    for _ in range(3):
        event = NewSecurityEvent(SecurityEventAction.API_KEY_REFUSED, ada.user.id)
        security_log.log_event_in_background(ctx, event)
    result = await list_entries(root, filter={"dirty": True})
    (node,) = [node for node in result["nodes"] if node["kind"] == "SECURITY_EVENT"]
    assert (node["pendingCount"], node["user"]) == (3, {"username": "ada"})
    assert all(node["dirty"] for node in result["nodes"])
    await cache.wait_for_started_writes()
    assert await listed_names(root, kinds=["SECURITY_EVENT"]) == []


async def test_pages_have_each_entry_once_in_order(root: GraphQLClient) -> None:
    cache = cached_resolver("127.0.0.1:1", trusts_dnssec=False).cache
    assert isinstance(cache, DnsAnswerCache)
    rng = random.Random(5)  # noqa: S311 - reproducible
    for number in range(23):
        cache.put(dns_question(f"{rng.randrange(10**6)}.example"), FakeAnswer())
        cache.put(dns_question(f"x{number % 3}.example"), FakeAnswer())
    entry_filter = {"kinds": ["DNS_ANSWER"]}
    for case in each_case([f"{key}_{way}" for key in ALL_ORDERS for way in ("ASC", "DESC")]):
        with case as order:
            whole = await list_entries(root, filter=entry_filter, orderBy=order, first=250)
            assert whole["totalCount"] == len(whole["nodes"]) == 26
            column = {"LAST_USED_AT": "lastUsedAt", "NAME": "name", "SIZE": "size"}[
                order.rpartition("_")[0]
            ]
            values = [node[column] for node in whole["nodes"]]
            assert values == sorted(values, reverse=order.endswith("DESC"))
            for forward, backward in (("first", "after"), ("last", "before")):
                nodes: list[Any] = []
                cursor = None
                while True:
                    page = await list_entries(
                        root, filter=entry_filter, orderBy=order, **{forward: 7, backward: cursor}
                    )
                    info = page["pageInfo"]
                    nodes = (
                        [*nodes, *page["nodes"]] if forward == "first" else [*page["nodes"], *nodes]
                    )
                    cursor = info["endCursor" if forward == "first" else "startCursor"]
                    if not info["hasNextPage" if forward == "first" else "hasPreviousPage"]:
                        break
                assert nodes == whole["nodes"]


async def test_number_of_statements_does_not_depend_on_entries(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    cache = cache_of_database(root.environment.database)
    others = [
        await make_client(root.environment, root.http, f"user{number}") for number in range(19)
    ]
    await list_entries(root)
    statements = record_sql(root.environment.database)
    counts = []
    for clients in ([ada], others):
        for client in clients:
            await client("{ viewer { role } }")
        await cache.wait_for_started_writes()
        statements.clear()
        result = await list_entries(root, filter={"kinds": ["CREDENTIAL"]}, first=100)
        counts.append((len([node for node in result["nodes"] if node["user"]]), len(statements)))
    assert [users for users, _ in counts] == [1, 20]
    assert counts[0][1] == counts[1][1], statements


async def test_others_see_nothing(root: GraphQLClient) -> None:
    cases: list[Role] = [Role.USER, Role.DOMAIN_ADMIN]
    for case in each_case(cases):
        with case as role:
            client = (
                await make_domain_admin(root.environment, root.http, "dora")
                if role is Role.DOMAIN_ADMIN
                else await make_client(root.environment, root.http, "eve", role=role)
            )
            response = await client.execute(CACHE_ENTRIES)
            assert response["data"] == {"cacheEntries": None}
            assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"


BAD_FILTERS: dict[str, Any] = {
    "pattern": {"users": {"patterns": ["x" * 1000]}},
    "name": {"users": {"usernames": ["nobody"]}},
    "id": {"users": {"ids": ["nonsense"]}},
}


async def test_bad_filter_has_a_typed_error(root: GraphQLClient) -> None:
    for case in each_case(BAD_FILTERS):
        with case as name:
            response = await root.execute(CACHE_ENTRIES, filter=BAD_FILTERS[name])
            code = response["errors"][0]["extensions"]["code"]
            assert code in {"BAD_USER_INPUT", "NOT_FOUND", "BAD_ID"}


async def test_cursor_of_another_list_is_refused(root: GraphQLClient, ada: GraphQLClient) -> None:
    await ada("{ viewer { role } }")
    cursor = (await list_entries(root))["pageInfo"]["endCursor"]
    response = await root.execute(CACHE_ENTRIES, after=cursor, orderBy="SIZE_ASC")
    assert response["errors"][0]["extensions"]["code"] == "BAD_CURSOR"


async def test_unreadable_folder_hides_blobs_only(server: CacheServer, root: GraphQLClient) -> None:
    boss = server.client_of(root)
    folder = server.cached.folder
    folder.rename(folder.with_name("moved"))
    result = await list_entries(boss)
    assert result["totalCount"] == len(result["nodes"])
    assert {node["kind"] for node in result["nodes"]} <= {"CREDENTIAL", "TOKEN_USE"}
    folder.with_name("moved").rename(folder)
