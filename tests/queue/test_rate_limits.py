"""Sending rates: who sets and sees them, who is held up, and who begins anew."""

from typing import Any

import pytest

from graph.types import global_ids
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.auth.authentication import wait_for_background_tasks
from tests.conftest import Client, Clock, make_client, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.quota_accounts import send
from tests.support.accounts.user_operations import chief, create, events, id_of, run
from tests.support.operations.domain_operations import CREATE, UPDATE, done
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import reached, rows

pytestmark = pytest.mark.usefixtures("examined")

FIELDS = "value frame used exhausted resetsAt user { username } domain { name }"
LIMITS = f"""
query ($filter: RateLimitFilter, $first: Int, $after: String, $last: Int, $before: String) {{
  rateLimits(filter: $filter, first: $first, after: $after, last: $last, before: $before) {{
    nodes {{ {FIELDS} }} totalCount
    pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }} }}
"""
HOLDS = """
query ($users: UserSelection, $first: Int, $after: String) {
  rateHolds(users: $users, first: $first, after: $after) {
    nodes { user { username } source domain { name } value frame heldSince resetsAt }
    totalCount pageInfo { hasNextPage endCursor } } }
"""


async def put(client: Client, value: int | None, frame: str = "HOUR", **whose: Any) -> Any:
    given: dict[str, Any] = {"value": value, "frame": frame, **whose}
    answer = await run(client, "rateLimitSet", f"rateLimits {{ {FIELDS} }}", **given)
    return answer["rateLimits"], answer["errors"]


async def reset(client: Client, **whose: Any) -> Any:
    answer = await run(client, "rateLimitReset", f"rateLimits {{ {FIELDS} }}", **whose)
    return answer["rateLimits"], answer["errors"]


def users(*who: Client | int) -> dict[str, Any]:
    return {"users": {"ids": [id_of(one) for one in who]}}


def domains(*names: str) -> dict[str, Any]:
    return {"domains": [{"name": name} for name in names]}


async def listed(client: Client, **filter: Any) -> list[tuple[str, int, str]]:
    """Whose the limits are, and what they are."""
    page = (await client(LIMITS, filter=filter or None))["rateLimits"]
    found = [
        ((node["user"] or {}).get("username") or node["domain"]["name"], node["value"],
         node["frame"])
        for node in page["nodes"]
    ]  # fmt: skip
    assert page["totalCount"] == len(found)
    return found


async def held(client: Client, **more: Any) -> list[tuple[Any, ...]]:
    page = (await client(HOLDS, **more))["rateHolds"]
    found = [
        (node["user"]["username"], node["source"], node["domain"] and node["domain"]["name"])
        for node in page["nodes"]
    ]
    assert page["totalCount"] == len(found)
    return found


async def hold_up(client: Client) -> None:
    while await send(client, "a@example.net") == []:
        pass
    await wait_for_background_tasks(client.world)


async def test_rates_are_set_changed_listed_and_taken_away(
    ada: Client, bob: Client, root: Client, clock: Clock
) -> None:
    ((one, other, domain), errors) = await put(root, 5, **users(ada, bob), **domains("example.org"))
    assert errors == []
    assert one == {
        "value": 5, "frame": "HOUR", "used": 0, "exhausted": False, "resetsAt": None,
        "user": {"username": "ada"}, "domain": None,
    }  # fmt: skip
    assert (other["user"], domain["domain"]) == ({"username": "bob"}, {"name": "example.org"})
    clock.tick(seconds=1)
    ((one,), errors) = await put(root, 1, "DAY", **users(bob))
    assert (one["value"], one["frame"], errors) == (1, "DAY", [])
    await send(bob, "a@example.net")
    assert sorted(await listed(root)) == [
        ("ada", 5, "HOUR"), ("bob", 1, "DAY"), ("example.org", 5, "HOUR")
    ]  # fmt: skip
    (node,) = (await root(LIMITS, filter={"exhausted": True}))["rateLimits"]["nodes"]
    assert (node["used"], node["exhausted"], node["resetsAt"]) == (
        1, True, "2030-01-02T00:00:01Z"
    )  # fmt: skip
    assert await listed(root, exhausted=False) == [("ada", 5, "HOUR"), ("example.org", 5, "HOUR")]
    assert await listed(root, **users(ada)) == [("ada", 5, "HOUR")]
    assert await listed(root, domains=["example.org"]) == [("example.org", 5, "HOUR")]
    both = await listed(root, domains=["example.org"], users={"usernames": ["bob"]})
    assert sorted(both) == [
        ("bob", 1, "DAY"), ("example.org", 5, "HOUR")
    ]  # fmt: skip
    assert await listed(root, domains=[]) == []
    assert await put(root, None, **users(ada), **domains("example.org")) == ([], [])
    assert await listed(root) == [("bob", 1, "DAY")]
    ((one,), _) = await put(root, 0, **users(bob))
    assert (one["value"], one["exhausted"]) == (0, False)  # any number, whatever settings say
    set_options(root.world, rate_user="1/DAY")
    assert [await send(bob, "a@example.net") for _ in range(3)] == [[], [], []]


async def test_account_and_domain_show_their_own(ada: Client, root: Client) -> None:
    document = f"""{{ user {{ rateLimit {{ {FIELDS} }} }} }}"""
    assert (await ada(document))["user"]["rateLimit"] is None
    await put(root, 5, **users(ada), **domains("example.org"))
    await send(ada, "a@example.net")
    found = (await ada(document))["user"]["rateLimit"]
    assert (found["value"], found["used"], found["resetsAt"]) == (5, 1, "2030-01-01T01:00:00Z")
    of_domain = """query { domain(by: {name: "example.org"}) {
      rateLimit { value used domain { name } } users { nodes { rateLimit { value used } } } } }"""
    domain = (await root(of_domain))["domain"]
    assert domain["rateLimit"] == {"value": 5, "used": 1, "domain": {"name": "example.org"}}
    assert domain["users"]["nodes"] == [{"rateLimit": {"value": 5, "used": 1}}]
    # what colleagues send together is not for every user
    answer = await ada.raw("{ user { domain { name rateLimit { value } } } }")
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_a_domain_is_made_and_changed_with_a_rate(root: Client) -> None:
    made = CREATE.replace("globalAddressList }", "rateLimit { value frame } globalAddressList }")
    answer, errors = await done(
        root, made, name="new.example", rateLimit={"value": 9, "frame": "MINUTE"}
    )
    assert (answer["domain"]["rateLimit"], errors) == ({"value": 9, "frame": "MINUTE"}, [])
    change = UPDATE.replace("globalAddressList }", "rateLimit { value frame } globalAddressList }")
    refs = [{"name": "new.example"}]
    answer, errors = await done(
        root, change, domains=refs, set={"rateLimit": {"value": 8, "frame": "DAY"}}
    )
    assert (answer["domains"][0]["rateLimit"], errors) == ({"value": 8, "frame": "DAY"}, [])
    answer, errors = await done(root, change, domains=refs, set={"description": "x"})
    assert answer["domains"][0]["rateLimit"] == {"value": 8, "frame": "DAY"}
    answer, errors = await done(
        root, change, domains=refs, set={"rateLimit": {"value": -1, "frame": "DAY"}}
    )
    assert [(e["constraint"], e["path"]) for e in errors] == [
        ("range", ["set", "rateLimit", "value"])
    ]
    answer, _ = await done(root, change, domains=refs, set={"rateLimit": None})
    assert answer["domains"][0]["rateLimit"] is None
    log = """{ adminLog(mutation: "domainUpdate") { nodes { before after } } }"""
    entries = (await root(log))["adminLog"]["nodes"]
    first = {"rate_limit": {"value": 8, "frame": "DAY"}}
    assert [(entry["before"], entry["after"]) for entry in (entries[0], entries[-1])] == [
        (first, {"rate_limit": None}), ({"rate_limit": {"value": 9, "frame": "MINUTE"}}, first),
    ]  # fmt: skip


async def test_it_is_told_who_is_held_up_and_why(
    ada: Client, bob: Client, root: Client, clock: Clock
) -> None:
    world = root.world
    await put(root, 1, **users(ada))
    await put(root, 3, "DAY", **domains("example.org"))
    await hold_up(ada)
    assert await held(root) == [("ada", "USER", None)]
    clock.tick(seconds=5)
    await hold_up(bob)
    assert await held(root) == [("bob", "DOMAIN", "example.org"), ("ada", "USER", None)]
    (node, _) = (await root(HOLDS))["rateHolds"]["nodes"]
    assert [node[name] for name in ("value", "frame", "heldSince", "resetsAt")] == [
        3, "DAY", "2030-01-01T00:00:05Z", "2030-01-02T00:00:00Z"
    ]  # fmt: skip
    assert await held(root, **users(ada)) == [("ada", "USER", None)]
    clock.tick(hours=1)
    assert await held(root) == [("bob", "DOMAIN", "example.org")]
    set_options(world, rate_platform="1/DAY")
    await put(root, None, **domains("example.org"))
    assert await held(root) == []
    await hold_up(ada)
    assert await held(root) == [("ada", "PLATFORM", None)]
    page = (await root(HOLDS, first=0))["rateHolds"]
    assert (page["nodes"], page["totalCount"]) == ([], 1)


async def test_who_is_held_up_begins_anew(ada: Client, bob: Client, root: Client) -> None:
    set_options(root.world, rate_platform="5/DAY")
    await put(root, 1, **users(ada, bob))
    await hold_up(ada)
    await hold_up(bob)
    ((one,), errors) = await reset(root, **users(ada))
    assert (one["used"], one["resetsAt"], errors) == (0, None, [])
    assert await held(root) == [("bob", "USER", None)]
    assert await send(ada, "a@example.net") == []
    await put(root, 0, **users(ada, bob))
    await put(root, 1, "DAY", **domains("example.org"))
    await hold_up(ada)
    assert await held(root) == [("ada", "DOMAIN", "example.org")]
    assert (await reset(root, **domains("example.org")))[1] == []
    assert await held(root) == []
    await put(root, None, **domains("example.org"))
    await hold_up(ada)
    assert await held(root) == [("ada", "PLATFORM", None)]
    assert await reset(root, includePlatform=True) == ([], [])
    assert await send(ada, "a@example.net") == []
    assert await rows(root.world, "SELECT used FROM rate_windows WHERE id = 0") == [(1,)]


async def test_journals_and_log_are_told(ada: Client, root: Client) -> None:
    world, domain = ada.world, ada.user.domain_id or 0
    last = {key: await reached(world, key) for key in (ada.user.id, domain, PLATFORM)}
    both: dict[str, Any] = {
        **users(ada),
        **domains("example.org"),
        "options": {"reason": "a campaign"},
    }
    await put(root, 5, **both)
    changed = (ChangeKind.USER_CHANGED, [ada.user.id], [["rateLimit"]])
    own = (ChangeKind.DOMAIN_CHANGED, [domain], None)
    assert await events(world, ada.user.id, last[ada.user.id]) == [changed]
    assert await events(world, domain, last[domain]) == [changed, own]
    assert await events(world, PLATFORM, last[PLATFORM]) == [own]
    log = """query ($m: String) { adminLog(mutation: $m) { nodes { reason before after
      target { ... on User { username } ... on Domain { name } } } } }"""
    entries = (await root(log, m="rateLimitSet"))["adminLog"]["nodes"]
    rate = {"rate_limit": {"value": 5, "frame": "HOUR"}}
    assert sorted(map(str, (e["target"] for e in entries))) == [
        "{'name': 'example.org'}", "{'username': 'ada'}"
    ]  # fmt: skip
    assert [(e["before"], e["after"], e["reason"]) for e in entries] == [
        ({"rate_limit": None}, rate, "a campaign")
    ] * 2
    # what is so already is not told, and neither is what counts nothing
    last = {key: await reached(world, key) for key in last}
    await put(root, 5, **both)
    await reset(root, **both)
    assert {key: await reached(world, key) for key in last} == last
    await send(ada, "a@example.net")
    await reset(root, **both, includePlatform=True)
    entries = (await root(log, m="rateLimitReset"))["adminLog"]["nodes"]
    assert [(e["before"], e["after"]) for e in entries] == [
        ({"rate_limit": {"used": 1}}, {"rate_limit": {"used": 0}})
    ] * 2


async def test_lists_are_paged_from_both_ends(root: Client) -> None:
    made = [(await make_user(root.world, name)).id for name in "abcde"]
    for key in made:
        await put(root, 5, **users(key))
    seen, after = [], None
    while True:
        page = (await root(LIMITS, first=2, after=after))["rateLimits"]
        seen += [node["user"]["username"] for node in page["nodes"]]
        assert page["totalCount"] == len(made)
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert seen == list("abcde")
    page = (await root(LIMITS, last=2))["rateLimits"]
    assert [node["user"]["username"] for node in page["nodes"]] == ["d", "e"]
    page = (await root(LIMITS, last=2, before=page["pageInfo"]["startCursor"]))["rateLimits"]
    assert [node["user"]["username"] for node in page["nodes"]] == ["b", "c"]


async def test_many_cost_the_statements_of_one(root: Client, statements: list[str]) -> None:
    made = [(await make_user(root.world, f"n{nth}")).id for nth in range(21)]

    async def cost(work: Any) -> int:
        del statements[:]
        await work
        return len([one for one in statements if "api_keys" not in one])

    assert await cost(put(root, 5, **users(made[0]))) == await cost(
        put(root, 5, **users(*made[1:]))
    )
    document = "query ($n: Int) { rateLimits(first: $n) { nodes { value user { username } } } }"
    assert await cost(root(document, n=1)) == await cost(root(document, n=20))
    document = "query ($n: Int) { users(first: $n) { nodes { rateLimit { value used } } } }"
    assert await cost(root(document, n=1)) == await cost(root(document, n=20))
    assert await cost(reset(root, **users(made[0]))) == await cost(reset(root, **users(*made[1:])))


@pytest.mark.parametrize(
    ("given", "code", "path"),
    [
        ({"value": 5}, "VALIDATION", ["users"]),
        ({"value": 5, "domains": []}, "VALIDATION", ["users"]),
        ({"value": -1, "users": {"usernames": ["ada"]}}, "VALIDATION", ["value"]),
        ({"value": 1_000_000_001, "users": {"usernames": ["ada"]}}, "VALIDATION", ["value"]),
        (
            {"value": 5, "users": {"ids": [global_ids.encode("User", 7)]}},
            "NOT_FOUND",
            ["users", "ids"],
        ),
        ({"value": 5, "users": {"usernames": ["nobody"]}}, "NOT_FOUND", ["users", "usernames"]),
        ({"value": 5, "domains": [{"name": "nowhere.example"}]}, "NOT_FOUND", ["domains"]),
        (
            {"value": 5, "users": {"usernames": ["ada"]}, "domains": [{"name": "x.example"}]},
            "NOT_FOUND",
            ["domains"],
        ),
    ],
)
@pytest.mark.usefixtures("ada")
async def test_what_cannot_be_is_refused_and_changes_nothing(
    root: Client, given: dict[str, Any], code: str, path: list[str]
) -> None:
    answer = await run(root, "rateLimitSet", "rateLimits { value }", **given)
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [(code, path)]
    assert await rows(root.world, "SELECT count(*) FROM rate_limits") == [(0,)]


async def test_only_administrators_of_the_domain_may_with_the_permission(
    ada: Client, bob: Client, root: Client
) -> None:
    world = root.world
    await put(root, 1, **users(ada), **domains("example.org"))
    await hold_up(ada)
    before = await _stored(world)

    async def tried(client: Client, **whose: Any) -> set[str | None]:
        """What it would take, or the codes of the refusals, to set and to reset."""
        found = [await put(client, 9, **whose), await reset(client, **whose)]
        return {each.get("requires", each["code"]) for _, errors in found for each in errors}

    async def seen(client: Client) -> Any:
        answers = [await client.raw(LIMITS), await client.raw(HOLDS)]
        if all("errors" in one for one in answers):
            return {one["errors"][0]["extensions"]["code"] for one in answers}
        assert not any("errors" in one for one in answers)
        return [len(next(iter(one["data"].values()))["nodes"]) for one in answers]

    assert await tried(bob, **users(ada)) == {"DOMAIN_ADMIN"}
    assert await tried(ada, **users(ada)) == {"DOMAIN_ADMIN"}  # nobody for themselves
    assert await seen(ada) == {"FORBIDDEN"}
    bare = await chief(root, AdminPermission.SPAM_POLICY, name="bare")
    assert await tried(bare, **users(ada)) == {"RATELIMIT"}
    assert await seen(bare) == {"FORBIDDEN"}
    await create(root, username="x", address="x@afar.example")
    far = await chief(root, AdminPermission.RATELIMIT, domain="afar.example", name="far")
    assert await tried(far, **users(ada)) == {"NOT_FOUND"}
    assert await tried(far, **domains("example.org")) == {"NOT_FOUND"}
    assert await tried(far, **users(far)) == {"ADMIN"}  # who lives in example.org
    assert await seen(far) == [0, 0]
    boss = await make_client(world, root.http, "boss", role=Role.ADMIN)
    near = await make_domain_admin(world, root.http, "near", [AdminPermission.RATELIMIT])
    assert await tried(near, **users(ada, boss)) == {"ADMIN"}
    (_, errors) = await reset(near, includePlatform=True)
    assert [(e["requires"], e["path"]) for e in errors] == [("ADMIN", ["includePlatform"])]
    set_rate = {"domains": [{"name": "example.org"}], "set": {"rateLimit": None}}
    _, errors = await done(bare, UPDATE, **set_rate)
    assert [(e["requires"], e["path"]) for e in errors] == [("RATELIMIT", ["set", "rateLimit"])]
    assert await _stored(world) == before
    assert await seen(near) == [2, 1]
    assert await tried(near, **users(ada), **domains("example.org")) == set()
    _, errors = await done(near, UPDATE, **set_rate)
    assert errors == []
    assert await listed(near) == [("ada", 9, "HOUR")]


async def _stored(world: Environment) -> Any:
    limits = await rows(world, "SELECT id, value FROM rate_limits ORDER BY id")
    windows = await rows(world, "SELECT id, used FROM rate_windows ORDER BY id")
    return limits, windows, await rows(world, "SELECT id, source FROM rate_holds")


async def test_limits_go_with_account_and_domain(root: Client, ada: Client) -> None:
    await create(root, username="x", address="x@afar.example")
    await put(root, 5, **users(ada), **domains("afar.example"))
    answer = await run(
        root, "domainDelete", "deletedIds", domains=[{"name": "afar.example"}], cascade=True
    )
    assert answer["errors"] == []
    assert await listed(root) == [("ada", 5, "HOUR")]
    assert await rows(root.world, "SELECT user_id FROM rate_limits") == [(ada.user.id,)]
