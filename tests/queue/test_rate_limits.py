"""Rate limits: mutations, lists, rights and journal."""

from typing import Any

import httpx
import pytest

from graph.types import global_ids
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import GraphQLClient, ManualClock, make_client, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.quota_accounts import try_send_message
from tests.support.accounts.user_operations import (
    execute_mutation,
    load_journal_changes,
    make_admin_of_domain,
    try_create_user,
)
from tests.support.case_loop import each_case
from tests.support.operations.domain_operations import (
    DOMAIN_CREATE,
    DOMAIN_UPDATE,
    create_domain,
    run_mutation,
)
from tests.support.operations.quarantine_operations import set_options
from tests.support.queue.rate_limit_operations import (
    FIELDS,
    HOLDS,
    LIMITS,
    UNLIMITED,
    domains_input,
    list_limits,
    reset_rate,
    send_until_refused,
    set_rate_limit,
    users_input,
)
from tests.support.stores.counter_check import load_stream_position, select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")
FIVE_PER_HOUR = {"messages": 5, "per": "HOUR"}


async def test_rate_limits_are_set_changed_listed_and_removed(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    ((limit, bobs_limit, domain), errors) = await set_rate_limit(
        root, 5, **users_input(ada, bob), **domains_input("example.org")
    )
    assert errors == []
    assert limit == {
        "messages": 5, "per": "HOUR", "used": 0, "exhausted": False, "resetsAt": None,
        "user": {"username": "ada"}, "domain": None,
    }  # fmt: skip
    assert (bobs_limit["user"], domain["domain"]) == ({"username": "bob"}, {"name": "example.org"})
    clock.tick(seconds=1)
    ((limit,), errors) = await set_rate_limit(root, 1, "DAY", **users_input(bob))
    assert (limit["messages"], limit["per"], errors) == (1, "DAY", [])
    await try_send_message(bob, "a@example.net")
    assert sorted(await list_limits(root)) == [
        ("ada", 5, "HOUR"), ("bob", 1, "DAY"), ("example.org", 5, "HOUR")
    ]  # fmt: skip
    (node,) = (await root(LIMITS, filter={"exhausted": True}))["rateLimits"]["nodes"]
    assert (node["used"], node["exhausted"], node["resetsAt"]) == (
        1, True, "2030-01-02T00:00:01Z"
    )  # fmt: skip
    assert await list_limits(root, exhausted=False) == [
        ("ada", 5, "HOUR"),
        ("example.org", 5, "HOUR"),
    ]
    assert await list_limits(root, **users_input(ada)) == [("ada", 5, "HOUR")]
    assert await list_limits(root, domains=[{"name": "example.org"}]) == [
        ("example.org", 5, "HOUR")
    ]
    limits = await list_limits(
        root, domains=[{"name": "example.org"}], users={"usernames": ["bob"]}
    )
    assert sorted(limits) == [
        ("bob", 1, "DAY"), ("example.org", 5, "HOUR")
    ]  # fmt: skip
    assert await list_limits(root, domains=[]) == []
    assert await set_rate_limit(root, None, **users_input(ada), **domains_input("example.org")) == (
        [],
        [],
    )
    assert await list_limits(root) == [("bob", 1, "DAY")]
    ((limit,), _) = await set_rate_limit(root, UNLIMITED, **users_input(bob))
    # unlimited, whatever the settings are
    assert (limit["messages"], limit["exhausted"]) == (None, False)
    set_options(root.environment, limits_send_rate_per_user="1/DAY")
    assert [await try_send_message(bob, "a@example.net") for _ in range(3)] == [[], [], []]


async def test_user_and_domain_show_their_rate_limit(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    document = f"""{{ user {{ rateLimitInherited rateLimit {{ {FIELDS} }} }} }}"""
    assert (await ada(document))["user"] == {"rateLimitInherited": True, "rateLimit": None}
    await set_rate_limit(root, 5, **users_input(ada), **domains_input("example.org"))
    await try_send_message(ada, "a@example.net")
    user = (await ada(document))["user"]
    assert not user["rateLimitInherited"]
    rate_limit = user["rateLimit"]
    assert (rate_limit["messages"], rate_limit["used"], rate_limit["resetsAt"]) == (
        5,
        1,
        "2030-01-01T01:00:00Z",
    )
    domain_document = """query { domain(by: {name: "example.org"}) {
      rateLimitInherited rateLimit { messages used domain { name } }
      users { nodes { rateLimit { messages used } } } } }"""
    domain = (await root(domain_document))["domain"]
    assert not domain["rateLimitInherited"]
    assert domain["rateLimit"] == {"messages": 5, "used": 1, "domain": {"name": "example.org"}}
    assert domain["users"]["nodes"] == [{"rateLimit": {"messages": 5, "used": 1}}]
    # a user can't read the rate of the domain
    answer = await ada.execute("{ user { domain { name rateLimit { messages } } } }")
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_rate_limit_of_domain_is_null_without_administration(
    root: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    for name in ("far.example", "free.example"):
        await create_domain(root, name)
    admin = await make_domain_admin(
        environment, http, "eve", domains=("far.example", "free.example")
    )
    await set_rate_limit(root, 5, **domains_input("example.org", "far.example"))
    fields = "name rateLimitInherited rateLimit { per }"
    answer = await admin(
        f"{{ user {{ domain {{ {fields} }} }} domains {{ nodes {{ {fields} }} }} }}"
    )
    # the domain of the account, which the account does not administer
    assert answer["user"]["domain"] == {
        "name": "example.org", "rateLimitInherited": None, "rateLimit": None
    }  # fmt: skip
    domains = {node.pop("name"): node for node in answer["domains"]["nodes"]}
    assert domains["far.example"] == {"rateLimitInherited": False, "rateLimit": {"per": "HOUR"}}
    assert domains["free.example"] == {"rateLimitInherited": True, "rateLimit": None}


async def test_domain_is_created_and_updated_with_a_rate_limit(root: GraphQLClient) -> None:
    create_document = DOMAIN_CREATE.replace(
        "globalAddressList }", "rateLimit { messages per } globalAddressList }"
    )
    answer, errors = await run_mutation(
        root, create_document, name="new.example", rateLimit={"messages": 9, "per": "MINUTE"}
    )
    assert (answer["domain"]["rateLimit"], errors) == ({"messages": 9, "per": "MINUTE"}, [])
    update_document = DOMAIN_UPDATE.replace(
        "globalAddressList }", "rateLimit { messages per } globalAddressList }"
    )
    domain_refs = [{"name": "new.example"}]
    answer, errors = await run_mutation(
        root, update_document, domains=domain_refs, set={"rateLimit": {"messages": 8, "per": "DAY"}}
    )
    assert (answer["domains"][0]["rateLimit"], errors) == ({"messages": 8, "per": "DAY"}, [])
    answer, errors = await run_mutation(
        root, update_document, domains=domain_refs, set={"description": "x"}
    )
    assert answer["domains"][0]["rateLimit"] == {"messages": 8, "per": "DAY"}
    answer, errors = await run_mutation(
        root,
        update_document,
        domains=domain_refs,
        set={"rateLimit": {"messages": -1, "per": "DAY"}},
    )
    assert [(e["constraint"], e["path"]) for e in errors] == [
        ("RANGE", ["set", "rateLimit", "messages"])
    ]
    answer, _ = await run_mutation(
        root, update_document, domains=domain_refs, set={"inheritRateLimit": True}
    )
    assert answer["domains"][0]["rateLimit"] is None
    document = """{ auditLog(filter: {mutation: "domainUpdate"}) { nodes { before after } } }"""
    entries = (await root(document))["auditLog"]["nodes"]
    first = {"rateLimit": {"messages": 8, "per": "DAY"}}
    assert [(entry["before"], entry["after"]) for entry in (entries[0], entries[-1])] == [
        (first, {"rateLimit": None}), ({"rateLimit": {"messages": 9, "per": "MINUTE"}}, first),
    ]  # fmt: skip


async def test_changes_are_journaled_and_logged(ada: GraphQLClient, root: GraphQLClient) -> None:
    environment, domain = ada.environment, ada.user.domain_id or 0
    positions = {
        stream_id: await load_stream_position(environment, stream_id)
        for stream_id in (ada.user.id, domain, PLATFORM)
    }
    owners_input: dict[str, Any] = {
        **users_input(ada),
        **domains_input("example.org"),
        "options": {"reason": "a campaign"},
    }
    await set_rate_limit(root, 5, **owners_input)
    changed = (EventType.USER_UPDATED, [ada.user.id], [["rateLimit"]])
    domain_changed = (EventType.DOMAIN_UPDATED, [domain], None)
    assert await load_journal_changes(environment, ada.user.id, positions[ada.user.id]) == [changed]
    assert await load_journal_changes(environment, domain, positions[domain]) == [
        changed,
        domain_changed,
    ]
    assert await load_journal_changes(environment, PLATFORM, positions[PLATFORM]) == [
        domain_changed
    ]
    document = """query ($m: String) { auditLog(filter: {mutation: $m}) { nodes {
      reason before after
      target { ... on User { username } ... on Domain { name } } } } }"""
    entries = (await root(document, m="rateLimitSet"))["auditLog"]["nodes"]
    rate = {"rateLimit": {"messages": 5, "per": "HOUR"}}
    assert sorted(map(str, (e["target"] for e in entries))) == [
        "{'name': 'example.org'}", "{'username': 'ada'}"
    ]  # fmt: skip
    assert [(e["before"], e["after"], e["reason"]) for e in entries] == [
        ({"rateLimit": None}, rate, "a campaign")
    ] * 2
    # An unchanged limit and an empty count are not recorded.
    positions = {
        stream_id: await load_stream_position(environment, stream_id) for stream_id in positions
    }
    await set_rate_limit(root, 5, **owners_input)
    await reset_rate(root, **owners_input)
    assert {
        stream_id: await load_stream_position(environment, stream_id) for stream_id in positions
    } == positions
    await try_send_message(ada, "a@example.net")
    await reset_rate(root, **owners_input, includePlatform=True)
    entries = (await root(document, m="rateLimitReset"))["auditLog"]["nodes"]
    assert [(e["before"], e["after"]) for e in entries] == [
        ({"rateLimit": {"used": 1}}, {"rateLimit": {"used": 0}})
    ] * 2


async def test_list_is_paged_from_both_ends(root: GraphQLClient) -> None:
    user_ids = [(await make_user(root.environment, name)).id for name in "abcde"]
    for user_id in user_ids:
        await set_rate_limit(root, 5, **users_input(user_id))
    seen, after = [], None
    while True:
        page = (await root(LIMITS, first=2, after=after))["rateLimits"]
        seen += [node["user"]["username"] for node in page["nodes"]]
        assert page["totalCount"] == len(user_ids)
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert seen == list("abcde")
    page = (await root(LIMITS, first=2, orderBy="CREATED_DESC"))["rateLimits"]
    assert [node["user"]["username"] for node in page["nodes"]] == ["e", "d"]
    page = (await root(LIMITS, last=2))["rateLimits"]
    assert [node["user"]["username"] for node in page["nodes"]] == ["d", "e"]
    page = (await root(LIMITS, last=2, before=page["pageInfo"]["startCursor"]))["rateLimits"]
    assert [node["user"]["username"] for node in page["nodes"]] == ["b", "c"]


async def test_bulk_operations_need_a_constant_number_of_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    user_ids = [(await make_user(root.environment, f"n{number}")).id for number in range(21)]

    async def cost(request: Any) -> int:
        del statements[:]
        await request
        return len([statement for statement in statements if "api_keys" not in statement])

    assert await cost(set_rate_limit(root, 5, **users_input(user_ids[0]))) == await cost(
        set_rate_limit(root, 5, **users_input(*user_ids[1:]))
    )
    document = "query ($n: Int) { rateLimits(first: $n) { nodes { messages user { username } } } }"
    assert await cost(root(document, n=1)) == await cost(root(document, n=20))
    document = "query ($n: Int) { users(first: $n) { nodes { rateLimit { messages used } } } }"
    assert await cost(root(document, n=1)) == await cost(root(document, n=20))
    assert await cost(reset_rate(root, **users_input(user_ids[0]))) == await cost(
        reset_rate(root, **users_input(*user_ids[1:]))
    )


@pytest.mark.usefixtures("ada")
async def test_invalid_rate_limit_is_refused_and_changes_nothing(root: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str, list[str]]] = [
        ({"rateLimit": FIVE_PER_HOUR}, "VALIDATION", ["users"]),
        ({"users": {"usernames": ["ada"]}}, "VALIDATION", ["rateLimit"]),
        (
            {
                "rateLimit": FIVE_PER_HOUR,
                "inheritRateLimit": True,
                "users": {"usernames": ["ada"]},
            },
            "VALIDATION",
            ["inheritRateLimit"],
        ),
        *(
            (
                {"rateLimit": {"messages": count, "per": "DAY"}, "users": {"usernames": ["ada"]}},
                "VALIDATION",
                ["rateLimit", "messages"],
            )
            for count in (-1, 0, 1_000_000_001)
        ),
        ({"rateLimit": FIVE_PER_HOUR, "domains": []}, "VALIDATION", ["domains"]),
        (
            {"rateLimit": FIVE_PER_HOUR, "users": {"ids": [global_ids.encode("User", 7)]}},
            "NOT_FOUND",
            ["users", "ids", "0"],
        ),
        (
            {"rateLimit": FIVE_PER_HOUR, "users": {"usernames": ["nobody"]}},
            "NOT_FOUND",
            ["users", "usernames", "0"],
        ),
        (
            {"rateLimit": FIVE_PER_HOUR, "domains": [{"name": "nowhere.example"}]},
            "NOT_FOUND",
            ["domains", "0"],
        ),
        (
            {
                "rateLimit": FIVE_PER_HOUR,
                "users": {"usernames": ["ada"]},
                "domains": [{"name": "x.example"}],
            },
            "NOT_FOUND",
            ["domains", "0"],
        ),
    ]
    for case in each_case(cases):
        with case as (arguments, code, path):
            answer = await execute_mutation(
                root, "rateLimitSet", "rateLimits { messages }", **arguments
            )
            assert [(e["code"], e["path"]) for e in answer["errors"]] == [(code, path)]
            assert await select_rows(root.environment, "SELECT count(*) FROM rate_limits") == [(0,)]


async def test_missing_owner_is_refused_with_the_possible_fields(root: GraphQLClient) -> None:
    _, (error,) = await set_rate_limit(root, 5)
    assert error["message"] == "`users` or `domains` is required."
    _, (error,) = await reset_rate(root)
    assert error["message"] == "`users`, `domains` or `includePlatform: true` is required."


async def test_rate_limits_need_a_domain_admin_with_the_permission(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    environment = root.environment
    await set_rate_limit(root, 1, **users_input(ada), **domains_input("example.org"))
    await send_until_refused(ada)
    before = await load_stored_rates(environment)

    async def set_and_reset_errors(client: GraphQLClient, **owners: Any) -> set[str | None]:
        """Set and reset the rate. Return the required permissions or the error codes."""
        results = [await set_rate_limit(client, 9, **owners), await reset_rate(client, **owners)]
        return {error.get("requires", error["code"]) for _, errors in results for error in errors}

    async def count_visible(client: GraphQLClient) -> Any:
        answers = [await client.execute(LIMITS), await client.execute(HOLDS)]
        if all("errors" in answer for answer in answers):
            return {answer["errors"][0]["extensions"]["code"] for answer in answers}
        assert not any("errors" in answer for answer in answers)
        return [len(next(iter(answer["data"].values()))["nodes"]) for answer in answers]

    assert await set_and_reset_errors(bob, **users_input(ada)) == {"DOMAIN_ADMIN"}
    # users can't change their own limit
    assert await set_and_reset_errors(ada, **users_input(ada)) == {"DOMAIN_ADMIN"}
    assert await count_visible(ada) == {"FORBIDDEN"}
    admin_without_permission = await make_admin_of_domain(
        root, AdminPermission.SPAM_POLICY, name="bare"
    )
    assert await set_and_reset_errors(admin_without_permission, **users_input(ada)) == {
        "RATE_LIMITS"
    }
    assert await count_visible(admin_without_permission) == {"FORBIDDEN"}
    await try_create_user(root, username="x", address="x@afar.example")
    other_admin = await make_admin_of_domain(
        root, AdminPermission.RATE_LIMITS, domain="afar.example", name="far"
    )
    assert await set_and_reset_errors(other_admin, **users_input(ada)) == {"NOT_FOUND"}
    assert await set_and_reset_errors(other_admin, **domains_input("example.org")) == {"NOT_FOUND"}
    # who is a user of example.org
    assert await set_and_reset_errors(other_admin, **users_input(other_admin)) == {"ADMIN"}
    assert await count_visible(other_admin) == [0, 0]
    platform_admin = await make_client(environment, root.http, "boss", role=Role.ADMIN)
    rate_admin = await make_domain_admin(
        environment, root.http, "near", [AdminPermission.RATE_LIMITS]
    )
    assert await set_and_reset_errors(rate_admin, **users_input(ada, platform_admin)) == {"ADMIN"}
    (_, errors) = await reset_rate(rate_admin, includePlatform=True)
    assert [(e["requires"], e["path"]) for e in errors] == [("ADMIN", ["includePlatform"])]
    set_rate = {"domains": [{"name": "example.org"}], "set": {"inheritRateLimit": True}}
    _, errors = await run_mutation(admin_without_permission, DOMAIN_UPDATE, **set_rate)
    assert [(e["requires"], e["path"]) for e in errors] == [
        ("RATE_LIMITS", ["set", "inheritRateLimit"])
    ]
    assert await load_stored_rates(environment) == before
    assert await count_visible(rate_admin) == [2, 1]
    assert (
        await set_and_reset_errors(rate_admin, **users_input(ada), **domains_input("example.org"))
        == set()
    )
    _, errors = await run_mutation(rate_admin, DOMAIN_UPDATE, **set_rate)
    assert errors == []
    assert await list_limits(rate_admin) == [("ada", 9, "HOUR")]


async def load_stored_rates(environment: Environment) -> Any:
    limits = await select_rows(environment, "SELECT id, messages FROM rate_limits ORDER BY id")
    windows = await select_rows(environment, "SELECT id, used FROM rate_windows ORDER BY id")
    return (
        limits,
        windows,
        await select_rows(environment, "SELECT id, source FROM rate_limit_holds"),
    )


async def test_limits_are_deleted_with_user_and_domain(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await try_create_user(root, username="x", address="x@afar.example")
    await set_rate_limit(root, 5, **users_input(ada), **domains_input("afar.example"))
    answer = await execute_mutation(
        root, "domainDelete", "deletedIds", domains=[{"name": "afar.example"}], cascade=True
    )
    assert answer["errors"] == []
    assert await list_limits(root) == [("ada", 5, "HOUR")]
    assert await select_rows(root.environment, "SELECT user_id FROM rate_limits") == [
        (ada.user.id,)
    ]
