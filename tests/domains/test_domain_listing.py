"""Lists of domains, and the statements they run."""

import pytest
from sqlalchemy import text

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, deliver_to
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    DOMAINS_QUERY,
    create_domain,
    list_domain_names,
    load_domain,
    make_admin_of_domains,
    make_domain_user,
    run_mutation,
)

pytestmark = pytest.mark.usefixtures("verify_counters")


async def test_domain_list_has_filters(root: GraphQLClient, ada: GraphQLClient) -> None:
    await create_domain(root, "bücher.example", description="Größe 100%", tags=["Lesen", "x"])
    await create_domain(root, "a.example", active=False, tags=["ÄX"])
    await create_domain(root, "z.example", backupMx=True)
    admin = await make_admin_of_domains(
        ada.environment, root.http, "adm", "example.org", "a.example"
    )
    all_names = ["a.example", "bücher.example", "example.org", "z.example"]
    for condition, expected in (
        ({}, all_names),
        ({"query": "BÜCH"}, ["bücher.example"]),
        ({"query": "größe 1"}, ["bücher.example"]),
        ({"query": "%"}, ["bücher.example"]),
        ({"query": "_"}, []),
        ({"active": False}, ["a.example"]),
        ({"backupMx": True}, ["z.example"]),
        ({"backupMx": True, "active": False}, []),
        ({"tags": ["LESEN"]}, ["bücher.example"]),
        ({"tags": ["les"]}, []),
        ({"tags": ["äx", "X"]}, ["a.example", "bücher.example"]),
        ({"administeredBy": {"username": "adm@example.org"}}, ["a.example", "example.org"]),
        ({"notAdministeredBy": {"username": "adm@example.org"}}, ["bücher.example", "z.example"]),
        ({"administeredBy": {"username": "nobody"}}, []),
        ({"notAdministeredBy": {"username": "nobody"}}, all_names),
    ):
        assert await list_domain_names(root, **condition) == expected, condition
    assert await list_domain_names(admin) == ["a.example", "example.org"]


async def test_domain_pages_match_in_both_directions(root: GraphQLClient) -> None:
    for n in range(5):
        await create_domain(root, f"d{n}.example")
    pages, page_info = [], {"hasNextPage": True, "endCursor": None}
    while page_info["hasNextPage"]:
        page = (await root(DOMAINS_QUERY, first=2, after=page_info["endCursor"]))["domains"]
        pages.append([node["name"][1] for node in page["nodes"]])
        page_info = page["pageInfo"]
    assert pages == [["0", "1"], ["2", "3"], ["4"]]
    page = (await root(DOMAINS_QUERY, last=2, before=page_info["startCursor"]))["domains"]
    assert [node["name"][1] for node in page["nodes"]] == ["2", "3"]
    cursor = page["pageInfo"]["endCursor"]
    response = await root.execute(DOMAINS_QUERY, filter={"active": True}, after=cursor)
    assert response["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


DOMAINS_WITH_CHILDREN = """{ domains(first: 50) { totalCount nodes { name storage { size }
  defaultUserQuota users(first: 2) { totalCount nodes { username domain { name } } }
  addresses(first: 2) { totalCount nodes { address user { username } } }
  aliases { nodes { alias } } admins { nodes { username } }
  dnsRecords { name } } } }"""


async def test_many_domains_load_in_constant_statements(
    root: GraphQLClient, ada: GraphQLClient, statements: list[str]
) -> None:
    await make_admin_of_domains(ada.environment, root.http, "adm", "example.org")

    async def count_statements() -> int:
        del statements[:]
        await root(DOMAINS_WITH_CHILDREN)
        return len([statement for statement in statements if "api_keys" not in statement])

    count_before = await count_statements()
    for n in range(20):
        await make_domain_user(ada.environment, f"x@d{n}.example")
        await run_mutation(
            root, ALIAS_DOMAIN_CREATE, alias=f"a{n}.example", domain={"name": f"d{n}.example"}
        )
    await make_admin_of_domains(
        ada.environment, root.http, "two", *(f"d{n}.example" for n in range(20))
    )
    assert [await count_statements(), await count_statements()] == [count_before, count_before]


async def test_domain_storage_counts_received_messages(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await deliver_to(ada, "one")
    await deliver_to(ada, "two")
    size = (await ada.load_mailbox()).size
    assert (await load_domain(root, "example.org"))["storage"] == {"size": size, "messageCount": 2}


@pytest.mark.usefixtures("ada", "bob")
async def test_lists_of_large_domains_use_an_index(environment: Environment) -> None:
    queries = {
        "users": "SELECT id FROM users WHERE domain_id = 7 ORDER BY username_key, id LIMIT 21",
        "addresses": "SELECT id FROM addresses WHERE domain_id = 7 ORDER BY local, id LIMIT 21",
        "domains": "SELECT id FROM domains ORDER BY name, id LIMIT 21",
    }
    indexes = {
        "users": "ix_users_of_domain",
        "addresses": "ix_addresses_domain_id_local",
        "domains": {"sqlite": "autoindex_domains", "postgresql": "uq_domains_name"}[
            environment.database.dialect
        ],
    }
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}[
        environment.database.dialect
    ]
    for table, sql in queries.items():
        async with environment.database.engine.connect() as connection:
            if environment.database.dialect == "postgresql":
                # the planner prefers a scan for a small table
                for plan_type in ("seqscan", "bitmapscan", "sort"):
                    await connection.execute(text(f"SET LOCAL enable_{plan_type} = off"))
            plan = "\n".join(str(row) for row in await connection.execute(text(explain + sql)))
        assert indexes[table] in plan, plan
        assert "TEMP B-TREE FOR ORDER BY" not in plan


ALIASES_AND_ADMINS_QUERY = """
query ($alias: String, $admin: String, $aliasBefore: String, $lastAlias: Int, $first: Int) {
  domain(by: {name: "pond.example"}) {
    aliases(first: $first, after: $alias, last: $lastAlias, before: $aliasBefore) {
      totalCount nodes { alias } pageInfo { startCursor endCursor } }
    admins(first: 2, after: $admin) {
      totalCount nodes { username } pageInfo { endCursor } } } }"""


async def test_aliases_and_admins_of_a_domain_are_paged(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await make_domain_user(ada.environment, "x@pond.example")
    await make_domain_user(ada.environment, "x@lake.example")
    for alias, domain in (("b", "pond"), ("c", "pond"), ("a", "pond"), ("d", "lake")):
        alias_input = {"alias": f"{alias}.org", "domain": {"name": f"{domain}.example"}}
        await run_mutation(root, ALIAS_DOMAIN_CREATE, **alias_input)
    for username, domain in (("zoe", "pond"), ("amy", "pond"), ("joe", "pond"), ("kim", "lake")):
        await make_admin_of_domains(ada.environment, root.http, username, f"{domain}.example")
    first = (await root(ALIASES_AND_ADMINS_QUERY, first=2))["domain"]
    assert [node["alias"] for node in first["aliases"]["nodes"]] == ["a.org", "b.org"]
    assert [node["username"] for node in first["admins"]["nodes"]] == [
        "amy@pond.example",
        "joe@pond.example",
    ]
    assert (first["aliases"]["totalCount"], first["admins"]["totalCount"]) == (3, 3)
    cursors = {
        "alias": first["aliases"]["pageInfo"]["endCursor"],
        "admin": first["admins"]["pageInfo"]["endCursor"],
    }
    second = (await root(ALIASES_AND_ADMINS_QUERY, first=2, **cursors))["domain"]
    assert [node["alias"] for node in second["aliases"]["nodes"]] == ["c.org"]
    assert [node["username"] for node in second["admins"]["nodes"]] == ["zoe@pond.example"]
    start = second["aliases"]["pageInfo"]["startCursor"]
    previous = (await root(ALIASES_AND_ADMINS_QUERY, lastAlias=1, aliasBefore=start))["domain"]
    assert [node["alias"] for node in previous["aliases"]["nodes"]] == ["b.org"]
    wrong = await root.execute(ALIASES_AND_ADMINS_QUERY, first=2, alias=cursors["admin"])
    assert wrong["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}
