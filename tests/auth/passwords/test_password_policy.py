"""How strong passwords must be that are set: the platform says it, or else their domain."""
# ruff: noqa: S106 - the passwords are those of tests

from typing import Any

import pytest

from graph.types import global_ids
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.auth.passwords import new_passwords, password_policy
from resolvers.auth.passwords.password_policy import EffectivePasswordPolicy
from resolvers.context import Context, Viewer
from tests.conftest import Client, make_client, make_user
from tests.support.accounts.legacy_password_hashes import LEGACY_HASHES
from tests.support.accounts.user_operations import (
    PASSWORD,
    change,
    chief,
    create,
    row_of,
    run,
    signs_in,
)
from tests.support.operations.domain_operations import CREATE, UPDATE, done
from tests.support.operations.setting_operations import put
from tests.support.stores.counter_check import rows

POLICY = "passwordPolicy { minLength minClasses ownMinLength ownMinClasses }"
DOMAIN = f"query ($by: DomainRef!) {{ domain(by: $by) {{ {POLICY} }} }}"
OWN = f"{{ user {{ {POLICY} domain {{ {POLICY} }} }} }}"
STRICT = {"minLength": 14, "minClasses": 3}
GOOD = "Fourteen signs 1"


async def tighten(root: Client, policy: Any = STRICT, name: str = "example.org") -> list[Any]:
    given = {"domains": [{"name": name}], "set": {"passwordPolicy": policy}}
    _, errors = await done(root, UPDATE, **given)
    return errors


def shown(policy: dict[str, Any]) -> list[Any]:
    return [policy[f"{own}{name}"] for own in ("min", "ownMin") for name in ("Length", "Classes")]


@pytest.fixture
async def eve(root: Client) -> Client:
    """Somebody with a password, which is as old as the rule."""
    return await make_client(root.world, root.http, "eve", password=PASSWORD)


async def test_a_domain_says_what_it_wants_and_inherits_the_rest(root: Client, ada: Client) -> None:
    async def policy() -> list[Any]:
        by = {"name": "example.org"}
        found = shown((await root(DOMAIN, by=by))["domain"]["passwordPolicy"])
        mine = (await ada(OWN))["user"]
        assert shown(mine["passwordPolicy"]) == shown(mine["domain"]["passwordPolicy"]) == found
        return found

    assert await policy() == [8, 1, None, None]
    assert await tighten(root, {"minLength": 6}) == []  # weaker than the platform's is its right
    assert await policy() == [6, 1, 6, None]
    await put(root, "passwords.minLength", 10)
    await put(root, "passwords.minClasses", 2)
    assert await policy() == [6, 2, 6, None]
    assert await tighten(root, {"minClasses": 4}) == []
    assert await policy() == [6, 4, 6, 4]
    assert await tighten(root, {"minLength": None}) == []
    assert await policy() == [10, 4, None, 4]
    assert await tighten(root, None) == []
    assert await policy() == [10, 2, None, None]
    asked = "SELECT before, after FROM admin_log WHERE mutation = 'domainUpdate' ORDER BY id"
    logged = await rows(root.world, asked)
    assert "password_min" in str(logged[0])
    assert "password_classes" in str(logged[1])


async def test_a_domain_is_made_with_a_policy(root: Client) -> None:
    _, errors = await done(root, CREATE, name="new.example", passwordPolicy=STRICT)
    assert errors == []
    found = await root(DOMAIN, by={"name": "new.example"})
    assert shown(found["domain"]["passwordPolicy"]) == [14, 3, 14, 3]


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ({"minLength": 0}, ["minLength"]),
        ({"minLength": 257}, ["minLength"]),
        ({"minLength": -1, "minClasses": 5}, ["minClasses", "minLength"]),
        ({"minClasses": 0}, ["minClasses"]),
    ],
)
@pytest.mark.usefixtures("ada")
async def test_a_policy_that_is_none_is_refused(
    root: Client, policy: dict[str, int], wrong: list[str]
) -> None:
    errors = await tighten(root, policy)
    expected = [(["set", "passwordPolicy", name], "range") for name in wrong]
    assert [(error["path"], error["constraint"]) for error in errors] == expected
    (error,) = await tighten(root, {})
    assert (error["path"], error["constraint"]) == (["set"], "required")
    asked = "SELECT password_min, password_classes FROM domains"
    assert await rows(root.world, asked) == [(None, None)]


@pytest.mark.parametrize(
    ("password", "length", "classes", "rule"),
    [
        ("seven77", 8, 1, "min"),
        ("eight888", 8, 1, None),
        ("eight888", 8, 2, None),
        ("eight888", 8, 3, "classes"),
        ("Eight888", 8, 3, None),
        ("Eight888", 8, 4, "classes"),
        ("Eight 88", 8, 4, None),
        ("ÉTÉ été", 7, 3, None),
        ("été", 3, 2, "classes"),
        ("e\u0301te\u0301", 4, 1, "min"),  # three characters: their accents are no others
        ("e\u0301te\u0301", 3, 2, "classes"),
        ("パスワード", 5, 1, None),
        ("パスワード٣", 6, 2, None),
        ("", 1, 1, "min"),
        ("x" * 257, 1, 1, "max"),
    ],
)
def test_length_and_kinds_are_counted_in_characters(
    password: str, length: int, classes: int, rule: str | None
) -> None:
    policy = EffectivePasswordPolicy(length, classes)
    if rule is None:
        policy.require_strong(password, ["password"])
        return
    with pytest.raises(InvalidInput) as refused:
        policy.require_strong(password, ["password"])
    assert (refused.value.constraint, refused.value.path) == (rule, ["password"])
    assert not password or password not in refused.value.message


@pytest.mark.parametrize(
    ("password", "rule"), [("Short 1", "min"), ("fourteen signs", "classes"), (GOOD, None)]
)
async def test_it_holds_wherever_a_password_is_set(
    root: Client, eve: Client, password: str, rule: str | None
) -> None:
    assert await tighten(root) == []
    boss = await chief(root, *AdminPermission)
    tries = [
        await create(root, address="new@example.org", password=password),
        await create(boss, address="other@EXAMPLE.org", password=password),
        await create(root, username="dan@example.org", address=None, password=password),
        await change(eve, password=password, existingPassword=PASSWORD),
        await change(root, eve, password=password),
        await change(boss, eve, password=password, allowUnsafe=False),
    ]
    for _, errors in tries:
        assert [(one["path"][-1], one["constraint"]) for one in errors] == (
            [("password", rule)] if rule else []
        )
        assert password not in str(errors)
    assert bool(await signs_in(eve.world, "eve", PASSWORD)) is bool(rule)


async def test_elsewhere_the_platforms_holds(root: Client) -> None:
    await tighten(root)
    assert (await create(root, address="a@elsewhere.example", password="8 signs."))[1] == []
    nowhere = {"username": "bot", "address": None, "emptyAddress": True}
    user, errors = await create(root, **nowhere, password="8 signs.")
    assert errors == []
    key = global_ids.decode("User", user["id"])
    assert (await change(root, key, password="signs. 8"))[1] == []
    _, (error,) = await change(root, key, password="7 signs")
    assert error["constraint"] == "min"


async def test_hashes_go_by_and_nobody_is_locked_out(root: Client, eve: Client) -> None:
    imported, errors = await create(
        root, address="old@example.org", password=LEGACY_HASHES[0][1], hashedPassword=True
    )
    assert errors == []
    assert await tighten(root, {"minLength": 40, "minClasses": 4}) == []
    key = global_ids.decode("User", imported["id"])
    assert (await change(root, key, password=LEGACY_HASHES[0][1], hashedPassword=True))[1] == []
    assert await signs_in(
        root.world, "old@example.org", LEGACY_HASHES[0][0]
    )  # and has another hash by it
    assert (await row_of(root.world, key)).password.startswith("$argon2id$")
    assert await signs_in(root.world, "old@example.org", LEGACY_HASHES[0][0])
    assert await signs_in(root.world, "eve", PASSWORD)
    assert (await change(eve, name="Eve"))[1] == []
    _, (error,) = await change(eve, password=PASSWORD, existingPassword=PASSWORD)
    assert error["constraint"] == "min"


async def test_a_temporary_password_fulfils_it(root: Client, eve: Client) -> None:
    for policy, length in ((STRICT, 14), ({"minLength": 2, "minClasses": 4}, 14),
                           ({"minLength": 20, "minClasses": 1}, 21)):  # fmt: skip
        assert await tighten(root, policy) == []
        made = (await run(root, "passwordReset", "password", user={"username": "eve"}))["password"]
        assert len(made) == length
        EffectivePasswordPolicy(length, policy["minClasses"]).require_strong(made, ["password"])
        assert await signs_in(eve.world, "eve", made)


def test_generated_ones_fulfil_every_policy(world: Environment) -> None:
    for length in (1, 12, 13, 14, 15, 20, 255, 256):
        for classes in range(1, 5):
            policy = EffectivePasswordPolicy(length, classes)
            made = {new_passwords.generate_password(world, policy) for _ in range(20)}
            assert len(made) == 20
            for one in made:
                policy.require_strong(one, ["password"])
                assert new_passwords.GENERATED_PATTERN.fullmatch(one)
                assert one.isalnum() is (length <= 12 and classes < 4)


async def test_others_neither_see_nor_change_it(root: Client, ada: Client) -> None:
    await create(root, address="far@elsewhere.example")
    await tighten(root, name="elsewhere.example")
    boss = await chief(root, *AdminPermission)
    for client in (ada, boss):
        answer = await client.raw(DOMAIN, by={"name": "elsewhere.example"})
        assert not (answer.get("data") or {}).get("domain")
        answer = await client(f"query ($by: UserRef) {{ user(by: $by) {{ {POLICY} }} }}",
                              by={"address": "far@elsewhere.example"})  # fmt: skip
        assert answer["user"] is None
    _, (error,) = await done(
        boss, UPDATE, domains=[{"name": "example.org"}], set={"passwordPolicy": {"minLength": 1}}
    )
    assert (error["code"], error["requires"]) == ("FORBIDDEN", Role.ADMIN)
    assert error["path"] == ["set", "passwordPolicy", "minLength"]
    _, (error,) = await create(boss, address="x@elsewhere.example", password="8 signs.")
    assert error["code"] == "NOT_FOUND"  # and not a word of what passwords are there
    ctx = Context(root.world, Viewer(boss.user.id, Role.DOMAIN_ADMIN))
    (far,) = await rows(root.world, "SELECT id FROM users WHERE username LIKE 'far%'")
    assert await password_policy.load_policies_of_users(ctx, [far[0]]) == [
        EffectivePasswordPolicy(8, 1)
    ]


async def test_of_many_accounts_and_domains_it_costs_one_statement(
    root: Client, statements: list[str]
) -> None:
    lists = f"{{ users(first: 50) {{ nodes {{ {POLICY} }} }} domains {{ nodes {{ {POLICY} }} }} }}"

    async def cost() -> int:
        del statements[:]
        await root(lists)
        return len([one for one in statements if "api_keys" not in one])

    await make_user(root.world, "one")
    before = await cost()
    for n in range(20):
        await create(root, address=f"n{n}@elsewhere{n % 3}.example")
    assert await cost() == before


async def test_a_service_is_told_of_it(root: Client, ada: Client) -> None:
    await tighten(root)
    asked = """query ($by: UserRef) { user(by: $by) {
      effectiveSettings(service: "api") { key value } } }"""
    found = (await root(asked, by={"username": ada.user.username}))["user"]["effectiveSettings"]
    told = {one["key"]: one["value"] for one in found}
    assert (told["password/min_length"], told["password/min_classes"]) == ("14", "3")
