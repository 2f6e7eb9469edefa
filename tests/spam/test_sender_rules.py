"""Rules about senders: who makes and sees which, and what becomes of them."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, text

from graph.types import global_ids
from mail.spam.sender_rules import load_matching_rules
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import Environment
from models.spam.sender_rules import (
    PLATFORM_PLACE,
    SenderAction,
    SenderRule,
    place_of_domain,
    place_of_user,
)
from models.store.columns import core_table
from models.users.roles import AdminPermission, Scope
from resolvers.auth import authentication
from tests.conftest import Client, make_key, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.clients.change_followers import (
    DOMAIN_CHANGES_SUBSCRIPTION,
    open_subscription,
    received_events,
)
from tests.support.operations.domain_operations import DELETE, ERRORS, done, key_of, made, told
from tests.support.operations.spam_operations import (
    SENDER_RULE_CREATE,
    SenderRuleRecipient,
    create_sender_rules,
)
from tests.support.sample_mutations import Call
from tests.support.servers.live_server import House, until
from tests.support.stores.counter_check import journal, reached
from tests.support.stores.query_plans import explained

REMOVE = f"""mutation ($input: IdsInput!) {{
  senderRuleDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
LIST = """query ($filter: SenderRuleFilter, $first: Int, $after: String, $last: Int,
                 $before: String) {
  senderRules(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { action pattern } totalCount pageInfo { startCursor endCursor hasNextPage } } }"""
NODE = "query ($id: ID!) { node(id: $id) { ... on SenderRule { pattern } } }"
MINE = {"user": {"username": "ada"}}
EVERYBODYS = {"global": True}
KIND = ChangeKind.SENDER_RULE_CHANGED


async def refused(client: Client, **given: Any) -> tuple[Any, ...]:
    """The one error of a call that makes nothing."""
    usual = {"scope": MINE, "action": "ALLOW", "patterns": ["shop.example"]}
    before = await rows(client.world)
    answer, errors = await done(client, SENDER_RULE_CREATE, **{**usual, **given})
    assert (answer["rules"], await rows(client.world)) == ([], before)
    return told(errors)


async def rows(world: Environment) -> list[Any]:
    table = core_table(SenderRule)
    async with world.database.engine.connect() as connection:
        return list((await connection.execute(select(table).order_by(table.c.id))).all())


async def listed(client: Client, **filter: Any) -> str:
    """Patterns of the rules that one sees."""
    page = (await client(LIST, filter=filter or None))["senderRules"]
    found = [node["pattern"] for node in page["nodes"]]
    assert page["totalCount"] == len(found)
    return " ".join(found)


async def test_a_user_makes_and_deletes_rules_of_the_own(ada: Client, world: Environment) -> None:
    since = await reached(world, ada.user.id)
    given = ["*@Shop.example", "News@Other.example", "shop.example", "*.far.example"]
    made = await create_sender_rules(ada, MINE, *given, action="ALLOW", comment=" friends ")
    assert [one["pattern"] for one in made] == [
        "shop.example", "news@other.example", "*.far.example",
    ]  # fmt: skip
    mine = {"user": {"username": "ada"}, "tag": None, "domain": None, "global": False}
    assert all(one["scope"] == mine for one in made)
    assert {(one["action"], one["comment"]) for one in made} == {("ALLOW", "friends")}
    keys = [global_ids.decode("SenderRule", one["id"]) for one in made]
    assert await journal(world, ada.user.id, since) == [(KIND, keys)]
    assert await listed(ada) == "*.far.example news@other.example shop.example"
    assert await ada(NODE, id=made[0]["id"]) == {"node": {"pattern": "shop.example"}}
    gone = [made[0]["id"], made[2]["id"]]
    answer, errors = await done(ada, REMOVE, ids=gone)
    assert (answer["deletedIds"], errors) == (gone, [])
    assert (await journal(world, ada.user.id, since))[1:] == [(KIND, [keys[0], keys[2]])]
    assert await listed(ada) == "news@other.example"
    assert await ada(NODE, id=gone[0]) == {"node": None}
    _, errors = await done(ada, REMOVE, ids=[made[1]["id"], gone[0]])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 1)
    assert await listed(ada) == "news@other.example"


async def test_the_other_action_turns_a_rule_that_is_there(ada: Client, world: Environment) -> None:
    (first,) = await create_sender_rules(ada, MINE, "shop.example", action="ALLOW", comment="old")
    since = await reached(world, ada.user.id)
    (same,) = await create_sender_rules(ada, MINE, "@SHOP.example", action="ALLOW")
    assert same == first
    assert await journal(world, ada.user.id, since) == []
    turned, fresh = await create_sender_rules(ada, MINE, "shop.example", "new.example")
    assert turned == {**first, "action": "BLOCK"}
    assert fresh["comment"] is None
    assert len(await rows(world)) == 2
    keys = [global_ids.decode("SenderRule", one["id"]) for one in (fresh, turned)]
    assert await journal(world, ada.user.id, since) == [(KIND, keys)]
    (said,) = await create_sender_rules(ada, MINE, "shop.example", comment="new")
    (unsaid,) = await create_sender_rules(ada, MINE, "shop.example", comment=None)
    assert (said["comment"], unsaid["comment"]) == ("new", None)
    (others,) = await create_sender_rules(ada, MINE, "*.shop.example", action="ALLOW")
    assert others["id"] != first["id"]


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"patterns": []}, ("VALIDATION", ["patterns"], None, "length")),
        ({"patterns": ["a.b"] * 101}, ("VALIDATION", ["patterns"], None, "length")),
        ({"patterns": ["a.b", "*"]}, ("VALIDATION", ["patterns"], 1, "pattern")),
        ({"patterns": ["a b@a.b"]}, ("VALIDATION", ["patterns"], 0, "pattern")),
        ({"patterns": ["*." + "a." * 10 + "b"]}, ("VALIDATION", ["patterns"], 0, "max")),
        ({"comment": "x" * 501}, ("VALIDATION", ["comment"], None, "length")),
        ({"scope": {"global": False}}, ("VALIDATION", ["scope", "global"], None, "exclusive")),
        ({"scope": {"user": {"username": "bob"}}}, ("NOT_FOUND", ["scope", "user"], None, "bob")),
        ({"scope": {"user": {"username": "eve"}}}, ("NOT_FOUND", ["scope", "user"], None, "eve")),
        (
            {"scope": {"domain": "example.org"}},
            ("FORBIDDEN", ["scope", "domain"], None, "DOMAIN_ADMIN"),
        ),
        ({"scope": {"tag": "vip"}}, ("FORBIDDEN", ["scope", "tag"], None, "ADMIN")),
        ({"scope": EVERYBODYS}, ("FORBIDDEN", ["scope", "global"], None, "ADMIN")),
    ],
)
@pytest.mark.usefixtures("bob")
async def test_what_a_user_may_not_say_is_refused(
    ada: Client, given: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    await create_sender_rules(ada, MINE, "shop.example")
    assert await refused(ada, **given) == refusal


async def test_who_lost_the_permission_keeps_the_rules_and_changes_none(
    ada: Client, root: Client
) -> None:
    (rule,) = await create_sender_rules(ada, MINE, "shop.example")
    document = """mutation ($input: UserPermissionsSetInput!) {
      userPermissionsSet(input: $input) { errors { message } } }"""
    given = {"users": {"usernames": ["ada"]}, "permissions": ["APP_PASSWDS"]}
    assert (await root(document, input=given))["userPermissionsSet"]["errors"] == []
    assert await listed(ada) == "shop.example"
    for call, more in (
        (SENDER_RULE_CREATE, {"scope": MINE, "action": "ALLOW", "patterns": ["shop.example"]}),
        (REMOVE, {"ids": [rule["id"]]}),
    ):
        answer = next(iter((await ada(call, input=more)).values()))
        assert told(answer["errors"])[::3] == ("FORBIDDEN", "SPAM_POLICY")
    assert await listed(ada) == "shop.example"


async def test_another_user_sees_and_changes_nothing(ada: Client, bob: Client) -> None:
    (rule,) = await create_sender_rules(ada, MINE, "shop.example")
    before = await rows(ada.world)
    assert await listed(bob) == ""
    assert await listed(bob, user=MINE["user"]) == ""
    assert await bob(NODE, id=rule["id"]) == {"node": None}
    _, errors = await done(bob, REMOVE, ids=[rule["id"]])
    assert told(errors)[:3] == ("NOT_FOUND", ["ids"], 0)
    await create_sender_rules(bob, {"user": {"username": "bob"}}, "shop.example", action="ALLOW")
    assert await listed(bob, user={"username": "bob"}) == "shop.example"
    assert [row for row in await rows(ada.world) if row.user_id == ada.user.id] == before


async def test_an_administrator_of_a_domain_rules_there_alone(
    ada: Client, root: Client, http: httpx.AsyncClient, world: Environment
) -> None:
    await made(root, "far.example")
    far = {"address": "far@far.example"}
    made_so = await Call("userCreate", {**far, "passwordDisabled": True})(root)
    assert made_so["errors"] == []
    every = list(AdminPermission)
    chief = await make_domain_admin(world, http, "chief", every)
    await create_sender_rules(root, {"domain": "far.example"}, "far.test")
    await create_sender_rules(root, {"user": far}, "fars.test")
    await create_sender_rules(root, {"tag": "VIP"}, "tags.test")
    await create_sender_rules(root, EVERYBODYS, "every.test")
    since = await reached(world, await key_of(world, "example.org"))
    (ours,) = await create_sender_rules(chief, {"domain": "Example.ORG"}, "ours.test")
    assert ours["scope"] == {
        "user": None, "tag": None, "domain": {"name": "example.org"}, "global": False,
    }  # fmt: skip
    key = global_ids.decode("SenderRule", ours["id"])
    assert await journal(world, await key_of(world, "example.org"), since) == [(KIND, [key])]
    (adas,) = await create_sender_rules(chief, MINE, "adas.test")
    assert adas["scope"]["user"] == {"username": "ada"}
    assert await listed(chief) == "adas.test ours.test"
    assert await listed(chief, domain="far.example") == ""
    assert await listed(chief, domain="example.org") == "ours.test"
    assert await listed(ada) == "adas.test"
    for scope, code in (
        ({"domain": "far.example"}, "NOT_FOUND"),
        ({"user": far}, "NOT_FOUND"),
        ({"user": {"username": "over"}}, "NOT_FOUND"),
        ({"tag": "vip"}, "FORBIDDEN"),
        (EVERYBODYS, "FORBIDDEN"),
    ):
        assert (await refused(chief, scope=scope))[0] == code
    log = '{ adminLog(mutation: "senderRuleCreate") { nodes { mutation after } } }'
    entries = (await chief(log))["adminLog"]["nodes"]
    assert [(one["mutation"], one["after"]["pattern"]) for one in entries] == [
        ("senderRuleCreate", "adas.test"),
        ("senderRuleCreate", "ours.test"),
    ]


async def test_what_is_for_a_tag_is_seen_where_accounts_have_it_and_changed_by_an_admin(
    ada: Client, root: Client, over: Client, http: httpx.AsyncClient, world: Environment
) -> None:
    chief = await make_domain_admin(world, http, "chief", list(AdminPermission))
    (rule,) = await create_sender_rules(over, {"tag": " Größe "}, "tags.test")
    assert rule["scope"]["tag"] == "grösse"
    assert await journal(world, PLATFORM, await reached(world, PLATFORM) - 1) == [
        (KIND, [global_ids.decode("SenderRule", rule["id"])])
    ]
    assert (await listed(chief), await listed(over, tag="GRÖSSE")) == ("", "tags.test")
    document = """mutation ($input: UserUpdateInput!) {
      userUpdate(input: $input) { errors { message } } }"""
    given = {"users": {"usernames": ["ada"]}, "set": {"tags": ["GRÖSSE"]}}
    assert (await root(document, input=given))["userUpdate"]["errors"] == []
    assert (await listed(chief), await listed(ada)) == ("tags.test", "")
    _, errors = await done(chief, REMOVE, ids=[rule["id"]])
    assert told(errors)[::3] == ("FORBIDDEN", "ADMIN")
    to = SenderRuleRecipient(ada.user.id, None, ["GRÖSSE"])
    ((match,),) = await load_matching_rules(world, [to], "x@tags.test", "")
    assert global_ids.encode("SenderRule", match.id) == rule["id"]
    _, errors = await done(over, REMOVE, ids=[rule["id"]])
    assert errors == []
    assert await refused(over, scope={"tag": " "}) == (
        "VALIDATION", ["scope", "tag"], 0, "length",
    )  # fmt: skip


@pytest.mark.usefixtures("ada")
async def test_without_the_permission_rules_of_accounts_are_not_seen(
    http: httpx.AsyncClient, world: Environment
) -> None:
    chief = await make_domain_admin(world, http, "chief", [AdminPermission.SPAM_POLICY])
    bare = await make_domain_admin(world, http, "bare")
    (adas,) = await create_sender_rules(chief, MINE, "adas.test")
    (ours,) = await create_sender_rules(chief, {"domain": "example.org"}, "ours.test")
    assert (await listed(chief), await listed(bare)) == ("adas.test ours.test", "ours.test")
    assert await bare(NODE, id=adas["id"]) == {"node": None}
    own = {"user": {"username": "bare"}}
    for given in ({"scope": own}, {"scope": {"domain": "example.org"}}, {"scope": MINE}):
        assert (await refused(bare, **given))[::3] == ("FORBIDDEN", "SPAM_POLICY")
    _, errors = await done(bare, REMOVE, ids=[ours["id"]])
    assert told(errors)[::3] == ("FORBIDDEN", "SPAM_POLICY")


async def test_rules_of_whom_stands_higher_are_seen_and_left(
    over: Client, http: httpx.AsyncClient, world: Environment
) -> None:
    chief = await make_domain_admin(world, http, "chief", list(AdminPermission))
    scope = {"user": {"username": "over"}}
    (rule,) = await create_sender_rules(over, scope, "overs.test")
    assert await listed(chief) == "overs.test"
    assert (await refused(chief, scope=scope))[::3] == ("FORBIDDEN", "ADMIN")
    _, errors = await done(chief, REMOVE, ids=[rule["id"]])
    assert told(errors)[::3] == ("FORBIDDEN", "ADMIN")
    assert await listed(over) == "overs.test"


@pytest.mark.usefixtures("ada")
async def test_a_credential_for_settings_changes_the_own_rules_alone(
    http: httpx.AsyncClient, world: Environment
) -> None:
    chief = await make_domain_admin(world, http, "chief", list(AdminPermission))
    (adas,) = await create_sender_rules(chief, MINE, "adas.test")
    (ours,) = await create_sender_rules(chief, {"domain": "example.org"}, "ours.test")
    secret = await make_key(
        world, "few", user_id=chief.user.id, role=chief.user.role, scopes=[Scope.SETTINGS]
    )
    few = Client(http, world, chief.user, secret)
    await create_sender_rules(few, {"user": {"username": "chief"}}, "own.test")
    for scope in (MINE, {"domain": "example.org"}):
        assert (await refused(few, scope=scope))[::3] == ("FORBIDDEN", "MASTER")
    for rule in (adas, ours):
        _, errors = await done(few, REMOVE, ids=[rule["id"]])
        assert told(errors)[::3] == ("FORBIDDEN", "MASTER")


async def test_rules_are_listed_by_pattern_and_narrowed(ada: Client) -> None:
    blocked = ["b.example", "*.z.example", "x@a.example"]
    await create_sender_rules(ada, MINE, *blocked, comment="Newsletters")
    await create_sender_rules(ada, MINE, "a.example", "ü.example", action="ALLOW")
    assert await listed(ada) == "*.z.example a.example b.example x@a.example ü.example"
    assert await listed(ada, action="ALLOW") == "a.example ü.example"
    assert await listed(ada, query="A.EXAMPLE") == "a.example x@a.example"
    assert await listed(ada, query="newsL", action="BLOCK") == "*.z.example b.example x@a.example"
    assert await listed(ada, query="%") == ""
    assert await listed(ada, tag="vip") == ""
    assert await listed(ada, domain="example.org") == ""

    async def page(**ask: Any) -> tuple[list[str], Any]:
        found = (await ada(LIST, **ask))["senderRules"]
        return [one["pattern"][0] for one in found["nodes"]], found["pageInfo"]

    first, info = await page(first=2)
    assert (first, info["hasNextPage"]) == (["*", "a"], True)
    second, info = await page(first=2, after=info["endCursor"])
    assert second == ["b", "x"]
    assert (await page(first=2, after=info["endCursor"]))[0] == ["ü"]
    assert (await page(last=2, before=info["startCursor"]))[0] == ["*", "a"]
    answer = await ada.raw(LIST, first=2, after=info["endCursor"], filter={"action": "ALLOW"})
    assert answer["errors"][0]["extensions"]["code"] == "BAD_CURSOR"


DOMAINS = """query ($action: SenderAction, $first: Int, $after: String) {
  domains(first: 50) { nodes { name senderRules(action: $action, first: $first, after: $after) {
    nodes { pattern action scope { domain { name } user { username } global } comment }
    totalCount pageInfo { endCursor } } } } }"""


async def test_domains_list_their_rules_at_the_price_of_one(
    root: Client, ada: Client, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        await root(DOMAINS)
        return len([sent for sent in statements if "api_keys" not in sent])

    await create_sender_rules(root, {"domain": "example.org"}, "a.test", "b.test")
    await create_sender_rules(root, {"domain": "example.org"}, "c.test", action="ALLOW")
    await create_sender_rules(ada, MINE, "d.test")
    one = await cost()
    for n in range(20):
        await made(root, f"n{n}.example")
        await create_sender_rules(root, {"domain": f"n{n}.example"}, f"{n}.test", f"{n}.example")
    assert [await cost(), await cost()] == [one, one]
    await authentication.wait_for_background_tasks(ada.world)

    async def of(name: str, **ask: Any) -> Any:
        nodes = (await root(DOMAINS, **ask))["domains"]["nodes"]
        return next(node["senderRules"] for node in nodes if node["name"] == name)

    own = await of("example.org")
    assert [one["pattern"] for one in own["nodes"]] == ["a.test", "b.test", "c.test"]
    assert own["nodes"][0]["scope"] == {
        "domain": {"name": "example.org"}, "user": None, "global": False,
    }  # fmt: skip
    allowed = await of("example.org", action="ALLOW")
    assert ([one["pattern"] for one in allowed["nodes"]], allowed["totalCount"]) == (["c.test"], 1)
    assert [one["pattern"] for one in (await of("n7.example", first=1))["nodes"]] == ["7.example"]


LISTING = """{ senderRules(first: 250) { totalCount nodes { pattern scope {
  user { username } domain { name } tag global } } } }"""


async def test_many_rules_cost_no_more_statements_than_one(
    root: Client, ada: Client, world: Environment, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        await root(LISTING)
        return len([sent for sent in statements if "api_keys" not in sent])

    await create_sender_rules(ada, MINE, "a.test")
    await create_sender_rules(root, {"domain": "example.org"}, "a.test")
    few = await cost()
    for n in range(20):
        await make_user(world, f"n{n}")
        await create_sender_rules(root, {"user": {"username": f"n{n}"}}, "a.test", "b.test")
        await made(root, f"n{n}.example")
        await create_sender_rules(root, {"domain": f"n{n}.example"}, "a.test")
    assert [await cost(), await cost()] == [few, few]


async def fill(world: Environment, place: str, many: int, **columns: Any) -> None:
    """So many rules there, past all of our own checks."""
    at, action = world.now(), SenderAction.BLOCK
    given = [
        {
            "id": world.new_id(), "place": place, "pattern": f"{n}.full.test", "action": action,
            "created_at": at, **columns,
        }
        for n in range(many)
    ]  # fmt: skip
    async with world.write_session() as session:
        await (await session.connection()).execute(insert(core_table(SenderRule)), given)


async def test_a_place_has_room_for_so_many(ada: Client, root: Client, world: Environment) -> None:
    home = await key_of(world, "example.org")
    await fill(world, place_of_user(ada.user.id), 999, user_id=ada.user.id)
    await fill(world, place_of_domain(home), 1000, domain_id=home)
    await fill(world, PLATFORM_PLACE, 1001)
    answer, errors = await done(
        ada, SENDER_RULE_CREATE, scope=MINE, action="BLOCK", patterns=["a.test", "b.test"]
    )
    (error,) = errors
    assert (answer["rules"], error["code"], error["path"]) == ([], "LIMIT_REACHED", ["patterns"])
    assert (error["limit"], error["used"]) == (1000, 999)
    await create_sender_rules(ada, MINE, "a.test", "0.full.test", action="ALLOW")
    await create_sender_rules(
        ada, MINE, "1.full.test", action="ALLOW"
    )  # one more fits none, and is none more
    assert (await refused(ada, patterns=["b.test"]))[0] == "LIMIT_REACHED"
    assert (await refused(root, scope={"domain": "example.org"}))[0] == "LIMIT_REACHED"
    await create_sender_rules(root, EVERYBODYS, "a.test")


async def test_lists_are_read_in_the_order_of_an_index(
    ada: Client, root: Client, world: Environment
) -> None:
    home = await key_of(world, "example.org")
    await fill(world, place_of_user(ada.user.id), 900, user_id=ada.user.id)
    await fill(world, place_of_domain(home), 900, domain_id=home)
    await fill(world, PLATFORM_PLACE, 3000)
    if world.database.dialect == "postgresql":
        async with world.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE sender_rules"))
    domain = """query ($first: Int, $after: String) { domain(by: {name: "example.org"}) {
      senderRules(first: $first, after: $after) { nodes { pattern } pageInfo { endCursor } } } }"""
    at = (await ada(LIST, first=9))["senderRules"]["pageInfo"]["endCursor"]
    below = (await root(domain, first=9))["domain"]["senderRules"]["pageInfo"]["endCursor"]
    everyones = (await root(LIST, first=9))["senderRules"]["pageInfo"]["endCursor"]
    with explained(world) as plans:
        for client, document, after, index in (
            (ada, LIST, at, "uq_sender_rules_place"),
            (root, domain, below, "uq_sender_rules_place"),
            (root, LIST, everyones, "ix_sender_rules_pattern"),
        ):
            for ask in ({"first": 50}, {"first": 50, "after": after}):
                work = client(document, **ask)
                plan = await plans.of(work, "sender_rules", asking="LIMIT")
                assert index in plan, plan
                whole = [one for one in plan.splitlines() if "Incremental Sort" not in one]
                assert not any("TEMP B-TREE" in one or "Sort  (" in one for one in whole), plan


async def test_rules_go_with_whom_they_are_of(ada: Client, root: Client) -> None:
    await made(root, "far.example")
    await create_sender_rules(root, {"domain": "far.example"}, "a.test")
    await create_sender_rules(ada, MINE, "b.test")
    await create_sender_rules(root, EVERYBODYS, "c.test")
    _, errors = await done(root, DELETE, domains=[{"name": "far.example"}])
    assert errors == []
    assert await listed(root) == "b.test c.test"


async def test_many_at_once_make_one_rule_of_one_pattern(
    ada: Client, http: httpx.AsyncClient, world: Environment
) -> None:
    chief = await make_domain_admin(world, http, "chief", list(AdminPermission))
    calls = [
        create_sender_rules(who, MINE, "shop.example", f"{n}.test", action=action)
        for n in range(5)
        for who, action in ((ada, "ALLOW"), (chief, "BLOCK"))
    ]
    made = await asyncio.gather(*calls)
    assert len({one[0]["id"] for one in made}) == 1
    assert len(await rows(world)) == 6


async def test_a_follower_hears_of_rules(ada: Client) -> None:
    since = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    (rule,) = await create_sender_rules(ada, MINE, "shop.example")
    document = """query ($after: Cursor!) { changes(after: $after) { events {
      kind ... on AccountChange { nodeId node { ... on SenderRule { pattern } } } } } }"""
    events = (await ada(document, after=since))["changes"]["events"]
    assert events == [
        {"kind": KIND.value, "nodeId": rule["id"], "node": {"pattern": "shop.example"}}
    ]
    await done(ada, REMOVE, ids=[rule["id"]])
    events = (await ada(document, after=since))["changes"]["events"]
    assert [one["node"] for one in events] == [None, None]


async def test_administrators_hear_of_the_rules_of_domains(
    live: House, root: Client, over: Client, http: httpx.AsyncClient, world: Environment
) -> None:
    chief = await make_domain_admin(world, http, "chief", list(AdminPermission))
    wide = await open_subscription(live, "follow", over, DOMAIN_CHANGES_SUBSCRIPTION)
    narrow = await open_subscription(live, "follow", chief, DOMAIN_CHANGES_SUBSCRIPTION)
    await create_sender_rules(
        chief, {"user": {"username": "chief"}}, "own.test"
    )  # in the account's own stream
    (tags,) = await create_sender_rules(root, {"tag": "vip"}, "a.test")
    (ours,) = await create_sender_rules(root, {"domain": "example.org"}, "b.test")
    await until(lambda: len(received_events(wide)) == 2 and received_events(narrow))
    assert [one["nodeId"] for one in received_events(narrow)] == [ours["id"]]
    assert {one["nodeId"] for one in received_events(wide)} == {tags["id"], ours["id"]}
    assert {one["kind"] for one in received_events(wide)} == {KIND}
    for one in (wide, narrow):
        await one.leave()


async def test_a_rule_made_by_the_api_is_one_that_deliveries_find(
    ada: Client, root: Client, world: Environment
) -> None:
    home = await key_of(world, "example.org")
    (mine,) = await create_sender_rules(ada, MINE, "News@Shop.example")
    (ours,) = await create_sender_rules(
        root, {"domain": "example.org"}, "*@*.example", action="ALLOW"
    )
    (every,) = await create_sender_rules(root, EVERYBODYS, "shop.example")
    (found,) = await load_matching_rules(
        world, [SenderRuleRecipient(ada.user.id, home)], "news+1@SHOP.example", ""
    )
    keys = [global_ids.encode("SenderRule", match.id) for match in found]
    assert keys == [mine["id"], ours["id"], every["id"]]
    assert [match.rank for match in found] == [0, 2, 3]
