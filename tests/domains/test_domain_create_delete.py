"""Domains: making and deleting them, and their limits."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from mail.recipients import address_resolution
from models.domains.tables import Domain
from models.errors import LimitReached, NotFound, RequestError
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.users.roles import Role
from models.users.tables import User
from resolvers.context import Context, Viewer
from resolvers.users import loaders as user_loaders
from resolvers.users.quota import limits as quota_limits
from tests.conftest import Client, receive
from tests.support.accounts.address_rows import add_addresses
from tests.support.accounts.user_operations import id_of, run
from tests.support.operations.domain_operations import (
    ALIAS,
    CREATE,
    DELETE,
    LIMITED,
    UNLIMITED,
    done,
    key_of,
    live,
    made,
    of,
    told,
)
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import examine, journal, reached, rows

GIB = 1 << 30
pytestmark = pytest.mark.usefixtures("counted")


# making


async def test_a_domain_has_what_was_asked_for_and_the_rest_by_default(root: Client) -> None:
    domain = await made(root, "XN--Bcher-KVA.Example", description=" Books ", tags=["b", "A", "a"])
    key = domain.pop("id")
    assert global_ids.decode("Domain", key)
    assert domain == {
        "name": "bücher.example",
        "description": "Books",
        "active": True,
        "tags": ["A", "b"],
        "maxAddresses": 400,
        "maxUsers": 10,
        "defaultUserQuota": 3 * GIB,
        "maxUserQuota": 10 * GIB,
        "maxNewUserQuota": 10 * GIB,
        "defaultNewUserQuota": 3 * GIB,
        "quota": 10 * GIB,
        "quotaAllocated": 0,
        "addressCount": 0,
        "addressesLeft": 400,
        "userCount": 0,
        "usersLeft": 10,
        "storage": {"bytes": 0, "messages": 0},
        "backupMx": False,
        "relayAllRecipients": False,
        "relayUnknownOnly": False,
        "globalAddressList": True,
    }
    stream = global_ids.decode("Domain", key)
    expected = [(ChangeKind.DOMAIN_CHANGED, [stream])]
    assert await journal(root.world, stream) == expected
    assert (await journal(root.world, PLATFORM))[-1:] == expected
    for name in ("bücher.example", "BÜCHER.example.", "xn--bcher-kva.example"):
        assert (await of(root, name))["id"] == key
    asked = "SELECT mutation, target_id FROM admin_log"
    assert await rows(root.world, asked) == [("domainCreate", stream)]


async def test_without_limits_nothing_runs_out(root: Client) -> None:
    domain = await made(root, "new.example", **UNLIMITED)
    left = ("addressesLeft", "usersLeft", "maxNewUserQuota")
    assert [domain[name] for name in left] == [None, None, None]
    assert (domain["defaultUserQuota"], domain["defaultNewUserQuota"]) == (GIB, GIB)
    domain = await made(root, "free.example", **{**UNLIMITED, "defaultUserQuota": 0})
    assert (domain["defaultUserQuota"], domain["defaultNewUserQuota"]) == (0, None)


async def test_what_is_left_goes_to_the_last_byte(root: Client) -> None:
    await made(root, "new.example", maxUsers=2, maxAddresses=2, quota="4 GiB", maxUserQuota="4 GiB")
    for name, left, next_, default in (("a", 1, GIB, GIB), ("b", 0, 0, 0)):
        await live(root.world, f"{name}@new.example", quota=None if name == "a" else GIB)
        domain = await of(root, "new.example")
        assert (domain["usersLeft"], domain["addressesLeft"]) == (left, left)
        assert (domain["maxNewUserQuota"], domain["defaultNewUserQuota"]) == (next_, default)
    assert domain["quotaAllocated"] == 4 * GIB
    assert domain["defaultUserQuota"] == 3 * GIB  # what those who inherit it have


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        ({"name": ""}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "-a.example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "a..example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "eve@new.example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "a" * 64 + ".example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "a." * 5000 + "example"}, ("VALIDATION", ["name"], None, "domain")),
        ({"name": "EXAMPLE.org."}, ("CONFLICT", ["name"], None, None)),
        ({"name": "\uff45xample.org"}, ("CONFLICT", ["name"], None, None)),
        ({"description": "x" * 1001}, ("VALIDATION", ["description"], None, "length")),
        ({"tags": ["a", " "]}, ("VALIDATION", ["tags"], 1, "length")),
        ({"tags": ["a"] * 101}, ("VALIDATION", ["tags"], None, "max")),
        ({"maxUsers": -1}, ("VALIDATION", ["maxUsers"], None, "min")),
        ({"maxAddresses": -1}, ("VALIDATION", ["maxAddresses"], None, "min")),
        ({"maxUserQuota": "11 GiB"}, ("VALIDATION", ["maxUserQuota"], None, "max")),
        ({"quota": "1 GiB"}, ("VALIDATION", ["maxUserQuota"], None, "max")),
        ({"defaultUserQuota": "11 GiB"}, ("VALIDATION", ["defaultUserQuota"], None, "max")),
        ({"defaultUserQuota": 0}, ("VALIDATION", ["defaultUserQuota"], None, "max")),
        (
            {"defaultUserQuota": None, "maxUserQuota": 5},
            ("VALIDATION", ["defaultUserQuota"], None, "max"),
        ),
        ({"relayAllRecipients": True}, ("VALIDATION", ["relayAllRecipients"], None, "requires")),
        (
            {"backupMx": True, "relayUnknownOnly": True},
            ("VALIDATION", ["relayUnknownOnly"], None, "requires"),
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ada")
async def test_what_makes_no_domain_is_refused_by_name(
    root: Client, wrong: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    before = await rows(root.world, "SELECT count(*) FROM domains")
    answer, errors = await done(root, CREATE, **{"name": "new.example", **LIMITED, **wrong})
    assert (answer["domain"], told(errors)) == (None, refusal)
    assert await rows(root.world, "SELECT count(*) FROM domains") == before


@pytest.mark.parametrize("value", [2**53, -1, 2**63, "a lot"])
async def test_a_size_that_is_none_is_refused_before_anything_runs(
    root: Client, value: Any
) -> None:
    answer = await root.raw(CREATE, input={"name": "new.example", "quota": value})
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_two_that_make_one_name_at_once_have_one_winner(root: Client) -> None:
    tries = [done(root, CREATE, name=name) for name in ("new.example", "NEW.example") * 3]
    done_ = await asyncio.gather(*tries)
    assert sorted(len(errors) for _, errors in done_) == [0, 1, 1, 1, 1, 1]
    assert {error["code"] for _, errors in done_ for error in errors} == {"CONFLICT"}


async def test_a_domain_and_an_alias_of_one_name_at_once_have_one_winner(root: Client) -> None:
    await made(root, "old.example")
    tries = [
        done(root, CREATE, name="new.example"),
        done(root, ALIAS, alias="new.example", domain="old.example"),
    ]
    done_ = await asyncio.gather(*tries)
    assert sorted(len(errors) for _, errors in done_) == [0, 1]
    asked = "SELECT name FROM domains UNION ALL SELECT alias FROM domain_aliases"
    assert [name for (name,) in await rows(root.world, asked)].count("new.example") == 1


async def test_an_admin_makes_domains_on_the_way_unless_that_is_off(
    root: Client, world: Environment
) -> None:
    user = await live(world, "eve@new.example")
    domain = await of(root, "new.example")
    assert (domain["maxUsers"], domain["quota"], domain["userCount"]) == (0, 0, 1)
    assert domain["id"] == global_ids.encode("Domain", user.domain_id or 0)
    closed = Environment(
        world.database,
        world.object_store,
        signing_secret=b"s",
        options=Options(argon2_memory=8, argon2_time=1, auto_create_domains=False),
        now=world.now,
    )
    with pytest.raises(NotFound) as refused:
        await live(closed, "eve@other.example")
    assert (refused.value.ref, refused.value.path) == ("other.example", ["address"])
    assert await of(root, "other.example") is None
    assert (await live(closed, "zoe@new.example")).domain_id == user.domain_id


async def test_a_domain_has_the_limits_of_the_settings_and_else_none(root: Client) -> None:
    """Whether domainCreate or an address creates it."""
    names = ["maxUsers", "maxAddresses", "maxUserQuota", "quota", "defaultUserQuota"]
    none = dict(zip(names, (0, 0, 0, 0, GIB), strict=True))
    _, errors = await done(root, CREATE, name="a.example")
    await live(root.world, "eve@b.example")
    assert errors == []
    for name in ("a.example", "b.example"):
        assert {key: (await of(root, name))[key] for key in names} == none
    set_options(
        root.world,
        domain_max_users=1,
        domain_max_addresses=2,
        domain_default_user_quota=GIB // 2,
        domain_max_user_quota=GIB,
        domain_quota=3 * GIB,
    )
    assert (await done(root, CREATE, name="c.example"))[1] == []
    await live(root.world, "eve@d.example")
    assert (await done(root, CREATE, name="e.example", maxUsers=7, quota=None))[1] == []
    limits = dict(zip(names, (1, 2, GIB, 3 * GIB, GIB // 2), strict=True))
    for name in ("c.example", "d.example"):
        assert {key: (await of(root, name))[key] for key in names} == limits
    given = {key: (await of(root, "e.example"))[key] for key in names}
    assert given == limits | {"maxUsers": 7, "quota": 0}
    with pytest.raises(LimitReached):
        await live(root.world, "bob@d.example")


async def address_in(client: Client, ada: Client, mutation: str, name: str, **options: Any) -> Any:
    """The answer of a mutation that puts an address into this domain."""
    given: dict[str, dict[str, Any]] = {
        "userCreate": {"address": f"u@{name}", "passwordDisabled": True},
        "usersCreate": {"users": [{"address": f"l@{name}", "passwordDisabled": True}]},
        "addressCreate": {"user": {"id": id_of(ada)}, "address": f"a@{name}"},
        "addressUpdate": {
            "addresses": [{"address": ada.address}], "set": {"address": f"ada@{name}"},
        },
    }  # fmt: skip
    fields = "warnings { code message path }"
    more = {"options": options} if options else {}
    return await run(client, mutation, fields, **given[mutation], **more)


async def test_an_address_creates_no_domain_unless_that_is_set(root: Client, ada: Client) -> None:
    assert Options().auto_create_domains is False
    set_options(root.world, auto_create_domains=False)
    for mutation, path in (
        ("userCreate", ["address"]),
        ("usersCreate", ["users", "0", "address"]),
        ("addressCreate", ["address"]),
        ("addressUpdate", ["set", "address"]),
    ):
        (error,) = (await address_in(root, ada, mutation, "typo.example"))["errors"]
        assert (error["code"], error["path"]) == ("NOT_FOUND", path)
        assert "there is no domain typo.example" in error["message"]
    assert await of(root, "typo.example") is None


@pytest.mark.parametrize("options", [{}, {"validateOnly": True}])
@pytest.mark.parametrize(
    ("mutation", "path"),
    [
        ("userCreate", ["address"]),
        ("usersCreate", ["users", "0", "address"]),
        ("addressCreate", ["address"]),
        ("addressUpdate", ["set", "address"]),
    ],
)
async def test_who_creates_a_domain_by_an_address_is_warned(
    root: Client, ada: Client, mutation: str, path: list[str], options: dict[str, Any]
) -> None:
    answer = await address_in(root, ada, mutation, "example.org", validateOnly=True)
    assert (answer["errors"], answer["warnings"]) == ([], [])
    answer = await address_in(root, ada, mutation, "new.example", **options)
    (warning,) = answer["warnings"]
    assert (answer["errors"], warning["code"], warning["path"]) == ([], "DOMAIN_CREATED", path)
    assert "new.example" in warning["message"]
    assert (await of(root, "new.example") is None) == bool(options)


# limits


@pytest.mark.parametrize(
    ("limits", "path"),
    [({"maxUsers": 2}, "address"), ({"maxAddresses": 2}, "address")],
)
async def test_a_limit_holds_at_and_over_the_edge(
    root: Client, limits: dict[str, Any], path: str
) -> None:
    await made(root, "new.example", **{**UNLIMITED, **limits})
    await live(root.world, "a@new.example")
    await live(root.world, "b@new.example")
    with pytest.raises(RequestError) as refused:
        await live(root.world, "c@new.example")
    assert (refused.value.code, refused.value.path) == ("LIMIT_REACHED", [path])
    assert (vars(refused.value)["limit"], vars(refused.value)["used"]) == (2, 2)
    assert (await of(root, "new.example"))["userCount"] == 2


@pytest.mark.parametrize(
    "limits",
    [{"maxUsers": 2}, {"maxAddresses": 2}, {"quota": 2 * GIB}],
    ids=lambda one: next(iter(one)),
)
async def test_two_at_the_edge_at_once_have_one_winner(
    root: Client, limits: dict[str, Any]
) -> None:
    await made(root, "new.example", **{**UNLIMITED, **limits})
    await live(root.world, "a@new.example")
    tries = [live(root.world, f"{name}@new.example") for name in "bcde"]
    won = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(isinstance(one, User) for one in won) == [False, False, False, True]
    assert {one.code for one in won if isinstance(one, RequestError)} == {"LIMIT_REACHED"}
    domain = await of(root, "new.example")
    assert (domain["userCount"], domain["quotaAllocated"]) == (2, 2 * GIB)


@pytest.mark.parametrize("user", [None, 0, 700])
@pytest.mark.parametrize("domain", [None, 0, 800])
@pytest.mark.parametrize("platform", [0, 900])
async def test_all_roads_have_one_rule_for_storage(
    root: Client, user: int | None, domain: int | None, platform: int
) -> None:
    world = Environment(
        root.world.database,
        root.world.object_store,
        signing_secret=b"s",
        options=Options(
            default_quota=platform, argon2_memory=8, argon2_time=1, auto_create_domains=True
        ),
        now=root.world.now,
    )
    made_ = await live(world, "eve@example.org", quota=user)
    async with world.write_session() as session:
        await session.exec(update(Domain).values(default_user_quota=domain))
        await session.exec(update(User).values(used=1000))
    given = next(one for one in (user, domain, platform) if one is not None)
    ctx = Context(world, Viewer(role=Role.ROOT))
    (row,) = await user_loaders.load_users_by_id(ctx, [made_.id])
    assert row
    assert await quota_limits.load_quota(ctx, row) == given
    try:
        await address_resolution.load_recipient(world, "eve@example.org")
        full = 0
    except RequestError as refused:
        full = vars(refused)["allowed"]
    assert full == given
    async with world.write_session() as session:
        await session.exec(update(User).values(used=0))


async def test_a_message_that_arrives_counts_by_the_same_rule(ada: Client) -> None:
    await receive(ada, "one")
    size = (await ada.box()).size
    async with ada.world.write_session() as session:
        await session.exec(update(Domain).values(default_user_quota=2 * size + 20))
    await receive(ada, "two")
    with pytest.raises(RequestError):
        await receive(ada, "three")


# deleting


async def test_a_domain_goes_when_nothing_is_left_in_it(root: Client, world: Environment) -> None:
    for name in ("a.example", "b.example"):
        await made(root, name)
    eve = await live(world, "eve@a.example")
    await done(root, ALIAS, alias="also.example", domain="b.example")
    named = [{"name": "b.example"}, {"name": "a.example"}]
    answer, errors = await done(root, DELETE, domains=named)
    assert (answer["deletedIds"], told(errors)) == ([], ("CONFLICT", ["domains"], 1, None))
    assert "users" in errors[0]["message"]
    _, errors = await done(root, DELETE, domains=named[:1])
    assert told(errors) == ("CONFLICT", ["domains"], 0, None)
    key = (await of(root, "b.example"))["id"]
    answer, errors = await done(root, DELETE, domains=named[:1], cascade=True)
    assert (answer["deletedIds"], errors) == ([key], [])
    assert await of(root, "b.example") is None
    assert await rows(world, "SELECT count(*) FROM domain_aliases") == [(0,)]
    stream = global_ids.decode("Domain", key)
    assert await rows(world, "SELECT count(*) FROM streams WHERE id = :id", id=stream) == [(0,)]
    assert (await journal(world, PLATFORM))[-1] == (ChangeKind.DOMAIN_CHANGED, [stream])
    await made(root, "also.example")
    home = (await of(root, "a.example"))["id"]
    answer, errors = await done(root, DELETE, domains=named[1:], cascade=True)
    assert (answer["deletedIds"], errors) == ([home], [])
    asked = "SELECT domain_id, disabled FROM users WHERE id = :id"
    ((domain, disabled),) = await rows(world, asked, id=eve.id)
    assert (domain, bool(disabled)) == (None, True)
    assert await rows(world, "SELECT count(*) FROM addresses") == [(0,)]
    await examine(world)


async def test_cascade_takes_addresses_and_tells_their_owners(
    root: Client, ada: Client, world: Environment
) -> None:
    await made(root, "old.example")
    key, at = await key_of(world, "old.example"), await reached(world, ada.user.id)
    await add_addresses(world, "ada@old.example", user_id=ada.user.id)
    await add_addresses(world, "list@old.example")
    async with world.write_session() as session:
        await session.exec(update(Domain).where(col(Domain.id) == key).values(address_count=2))
    found = await rows(world, "SELECT id FROM addresses WHERE domain_id = :k", k=key)
    _, errors = await done(root, DELETE, domains=[{"name": "old.example"}])
    assert told(errors)[:2] == ("CONFLICT", ["domains"])
    _, errors = await done(root, DELETE, domains=[{"name": "old.example"}], cascade=True)
    assert errors == []
    ((kind, (address,)),) = await journal(world, ada.user.id, at)
    assert (kind, (address,) in found) == (ChangeKind.ADDRESS_CHANGED, True)


async def test_a_user_and_the_end_of_the_domain_at_once(root: Client, world: Environment) -> None:
    await made(root, "old.example")
    tries: list[Any] = [
        live(world, "eve@old.example"),
        done(root, DELETE, domains=[{"name": "old.example"}]),
    ]
    user, outcome = await asyncio.gather(*tries, return_exceptions=True)
    assert not isinstance(outcome, BaseException)
    _, errors = outcome
    there = await of(root, "old.example")
    if errors:
        assert (isinstance(user, User), there["userCount"]) == (True, 1)
    else:  # gone before the user came: refused, or it was made anew
        assert isinstance(user, NotFound) or there["userCount"] == 1
