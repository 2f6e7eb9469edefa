"""Password policies of the platform and of domains."""
# ruff: noqa: S106 - the passwords are those of tests

from typing import Any

import pytest

from graph.types import global_ids
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.auth.passwords import new_passwords, password_policy
from resolvers.auth.passwords.password_policy import EffectivePasswordPolicy
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_client, make_user
from tests.support.accounts.legacy_password_hashes import LEGACY_HASHES
from tests.support.accounts.user_operations import (
    PASSWORD,
    execute_mutation,
    load_user_row,
    make_admin_of_domain,
    try_create_user,
    try_sign_in,
    try_update_users,
)
from tests.support.operations.domain_operations import DOMAIN_CREATE, DOMAIN_UPDATE, run_mutation
from tests.support.operations.platform.setting_operations import set_setting
from tests.support.stores.counter_check import select_rows

POLICY_FIELDS = "passwordPolicy { minLength minClasses ownMinLength ownMinClasses }"
DOMAIN_POLICY_QUERY = f"query ($by: DomainRef!) {{ domain(by: $by) {{ {POLICY_FIELDS} }} }}"
OWN_POLICY_QUERY = f"{{ user {{ {POLICY_FIELDS} domain {{ {POLICY_FIELDS} }} }} }}"
STRICT_POLICY = {"minLength": 14, "minClasses": 3}
STRONG_PHRASE = "Fourteen signs 1"


async def set_domain_policy(
    root: GraphQLClient, policy: Any = STRICT_POLICY, name: str = "example.org"
) -> list[Any]:
    arguments = {"domains": [{"name": name}], "set": {"passwordPolicy": policy}}
    _, errors = await run_mutation(root, DOMAIN_UPDATE, **arguments)
    return errors


def policy_values(policy: dict[str, Any]) -> list[Any]:
    return [
        policy[f"{prefix}{name}"] for prefix in ("min", "ownMin") for name in ("Length", "Classes")
    ]


@pytest.fixture
async def eve(root: GraphQLClient) -> GraphQLClient:
    """A user with a password that is older than the policy."""
    return await make_client(root.environment, root.http, "eve", password=PASSWORD)


async def test_domain_policy_inherits_unset_values_from_platform(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    async def load_policy() -> list[Any]:
        by = {"name": "example.org"}
        values = policy_values((await root(DOMAIN_POLICY_QUERY, by=by))["domain"]["passwordPolicy"])
        own_user = (await ada(OWN_POLICY_QUERY))["user"]
        assert (
            policy_values(own_user["passwordPolicy"])
            == policy_values(own_user["domain"]["passwordPolicy"])
            == values
        )
        return values

    assert await load_policy() == [8, 1, None, None]
    # a domain can allow weaker passwords than the platform
    assert await set_domain_policy(root, {"minLength": 6}) == []
    assert await load_policy() == [6, 1, 6, None]
    await set_setting(root, "passwords.minLength", 10)
    await set_setting(root, "passwords.minCharacterClasses", 2)
    assert await load_policy() == [6, 2, 6, None]
    assert await set_domain_policy(root, {"minClasses": 4}) == []
    assert await load_policy() == [6, 4, 6, 4]
    assert await set_domain_policy(root, {"minLength": None}) == []
    assert await load_policy() == [10, 4, None, 4]
    assert await set_domain_policy(root, None) == []
    assert await load_policy() == [10, 2, None, None]
    log_query = "SELECT before, after FROM audit_log WHERE mutation = 'domainUpdate' ORDER BY id"
    logged = await select_rows(root.environment, log_query)
    assert "minLength" in str(logged[0])
    assert "minClasses" in str(logged[1])


async def test_domain_create_sets_password_policy(root: GraphQLClient) -> None:
    _, errors = await run_mutation(
        root, DOMAIN_CREATE, name="new.example", passwordPolicy=STRICT_POLICY
    )
    assert errors == []
    result = await root(DOMAIN_POLICY_QUERY, by={"name": "new.example"})
    assert policy_values(result["domain"]["passwordPolicy"]) == [14, 3, 14, 3]


@pytest.mark.parametrize(
    ("policy", "invalid_fields"),
    [
        ({"minLength": 0}, ["minLength"]),
        ({"minLength": 257}, ["minLength"]),
        ({"minLength": -1, "minClasses": 5}, ["minClasses", "minLength"]),
        ({"minClasses": 0}, ["minClasses"]),
    ],
)
@pytest.mark.usefixtures("ada")
async def test_invalid_password_policy_is_refused(
    root: GraphQLClient, policy: dict[str, int], invalid_fields: list[str]
) -> None:
    errors = await set_domain_policy(root, policy)
    expected = [(["set", "passwordPolicy", name], "RANGE") for name in invalid_fields]
    assert [(error["path"], error["constraint"]) for error in errors] == expected
    (error,) = await set_domain_policy(root, {})
    assert (error["path"], error["constraint"]) == (["set"], "REQUIRED")
    policy_query = "SELECT password_min, password_classes FROM domains"
    assert await select_rows(root.environment, policy_query) == [(None, None)]


@pytest.mark.parametrize(
    ("password", "length", "classes", "rule"),
    [
        ("seven77", 8, 1, "MIN"),
        ("eight888", 8, 1, None),
        ("eight888", 8, 2, None),
        ("eight888", 8, 3, "CHARACTER_CLASSES"),
        ("Eight888", 8, 3, None),
        ("Eight888", 8, 4, "CHARACTER_CLASSES"),
        ("Eight 88", 8, 4, None),
        ("ÉTÉ été", 7, 3, None),
        ("été", 3, 2, "CHARACTER_CLASSES"),
        ("e\u0301te\u0301", 4, 1, "MIN"),  # three characters after normalization
        ("e\u0301te\u0301", 3, 2, "CHARACTER_CLASSES"),
        ("パスワード", 5, 1, None),
        ("パスワード٣", 6, 2, None),
        ("", 1, 1, "MIN"),
        ("x" * 257, 1, 1, "MAX"),
    ],
)
def test_policy_counts_characters_and_character_classes(
    password: str, length: int, classes: int, rule: str | None
) -> None:
    policy = EffectivePasswordPolicy(length, classes)
    if rule is None:
        policy.require_strong(password, ["password"])
        return
    with pytest.raises(InvalidInput) as error_info:
        policy.require_strong(password, ["password"])
    assert (error_info.value.constraint, error_info.value.path) == (rule, ["password"])
    assert not password or password not in error_info.value.message


@pytest.mark.parametrize(
    ("password", "rule"),
    [("Short 1", "MIN"), ("fourteen signs", "CHARACTER_CLASSES"), (STRONG_PHRASE, None)],
)
async def test_policy_applies_to_every_way_to_set_a_password(
    root: GraphQLClient, eve: GraphQLClient, password: str, rule: str | None
) -> None:
    assert await set_domain_policy(root) == []
    domain_admin = await make_admin_of_domain(root, *AdminPermission)
    attempts = [
        await try_create_user(root, address="new@example.org", password=password),
        await try_create_user(domain_admin, address="other@EXAMPLE.org", password=password),
        await try_create_user(root, username="dan@example.org", address=None, password=password),
        await try_update_users(eve, password=password, existingPassword=PASSWORD),
        await try_update_users(root, eve, password=password),
        await try_update_users(domain_admin, eve, password=password, allowUnsafe=False),
    ]
    for _, errors in attempts:
        assert [(error["path"][-1], error["constraint"]) for error in errors] == (
            [("password", rule)] if rule else []
        )
        assert password not in str(errors)
    assert bool(await try_sign_in(eve.environment, "eve", PASSWORD)) is bool(rule)


async def test_platform_policy_applies_outside_of_the_domain(root: GraphQLClient) -> None:
    await set_domain_policy(root)
    assert (await try_create_user(root, address="a@elsewhere.example", password="8 signs."))[
        1
    ] == []
    user_input = {"username": "bot", "address": None, "emptyAddress": True}
    user, errors = await try_create_user(root, **user_input, password="8 signs.")
    assert errors == []
    user_id = global_ids.decode("User", user["id"])
    assert (await try_update_users(root, user_id, password="signs. 8"))[1] == []
    _, (error,) = await try_update_users(root, user_id, password="7 signs")
    assert error["constraint"] == "MIN"


async def test_imported_hashes_and_older_passwords_stay_valid(
    root: GraphQLClient, eve: GraphQLClient
) -> None:
    imported, errors = await try_create_user(
        root, address="old@example.org", password=LEGACY_HASHES[0][1], hashedPassword=True
    )
    assert errors == []
    assert await set_domain_policy(root, {"minLength": 40, "minClasses": 4}) == []
    user_id = global_ids.decode("User", imported["id"])
    assert (
        await try_update_users(root, user_id, password=LEGACY_HASHES[0][1], hashedPassword=True)
    )[1] == []
    # the sign-in replaces the hash
    assert await try_sign_in(root.environment, "old@example.org", LEGACY_HASHES[0][0])
    assert (await load_user_row(root.environment, user_id)).password.startswith("$argon2id$")
    assert await try_sign_in(root.environment, "old@example.org", LEGACY_HASHES[0][0])
    assert await try_sign_in(root.environment, "eve", PASSWORD)
    assert (await try_update_users(eve, name="Eve"))[1] == []
    _, (error,) = await try_update_users(eve, password=PASSWORD, existingPassword=PASSWORD)
    assert error["constraint"] == "MIN"


async def test_temporary_password_meets_policy(root: GraphQLClient, eve: GraphQLClient) -> None:
    for policy, length in ((STRICT_POLICY, 14), ({"minLength": 2, "minClasses": 4}, 14),
                           ({"minLength": 20, "minClasses": 1}, 21)):  # fmt: skip
        assert await set_domain_policy(root, policy) == []
        password = (
            await execute_mutation(root, "userPasswordReset", "password", user={"username": "eve"})
        )["password"]
        assert len(password) == length
        EffectivePasswordPolicy(length, policy["minClasses"]).require_strong(password, ["password"])
        assert await try_sign_in(eve.environment, "eve", password)


def test_generated_password_meets_every_policy(environment: Environment) -> None:
    for length in (1, 12, 13, 14, 15, 20, 255, 256):
        for classes in range(1, 5):
            policy = EffectivePasswordPolicy(length, classes)
            passwords = {new_passwords.generate_password(environment, policy) for _ in range(20)}
            assert len(passwords) == 20
            for password in passwords:
                policy.require_strong(password, ["password"])
                assert new_passwords.GENERATED_PATTERN.fullmatch(password)
                assert password.isalnum() is (length <= 12 and classes < 4)


async def test_policy_of_other_domain_is_hidden_and_unchangeable(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await try_create_user(root, address="far@elsewhere.example")
    await set_domain_policy(root, name="elsewhere.example")
    domain_admin = await make_admin_of_domain(root, *AdminPermission)
    for client in (ada, domain_admin):
        response = await client.execute(DOMAIN_POLICY_QUERY, by={"name": "elsewhere.example"})
        assert not (response.get("data") or {}).get("domain")
        response = await client(f"query ($by: UserRef) {{ user(by: $by) {{ {POLICY_FIELDS} }} }}",
                              by={"address": "far@elsewhere.example"})  # fmt: skip
        assert response["user"] is None
    _, (error,) = await run_mutation(
        domain_admin,
        DOMAIN_UPDATE,
        domains=[{"name": "example.org"}],
        set={"passwordPolicy": {"minLength": 1}},
    )
    assert (error["code"], error["requires"]) == ("FORBIDDEN", Role.ADMIN)
    assert error["path"] == ["set", "passwordPolicy", "minLength"]
    _, (error,) = await try_create_user(
        domain_admin, address="x@elsewhere.example", password="8 signs."
    )
    assert error["code"] == "NOT_FOUND"  # the error does not reveal the password policy
    ctx = Context(root.environment, Viewer(domain_admin.user.id, Role.DOMAIN_ADMIN))
    (other_user,) = await select_rows(
        root.environment, "SELECT id FROM users WHERE username LIKE 'far%'"
    )
    assert await password_policy.load_policies_of_users(ctx, [other_user[0]]) == [
        EffectivePasswordPolicy(8, 1)
    ]


async def test_policies_of_many_users_load_in_constant_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    list_query = (
        f"{{ users(first: 50) {{ nodes {{ {POLICY_FIELDS} }} }} "
        f"domains {{ nodes {{ {POLICY_FIELDS} }} }} }}"
    )

    async def count_statements() -> int:
        del statements[:]
        await root(list_query)
        return len([statement for statement in statements if "api_keys" not in statement])

    await make_user(root.environment, "one")
    count_before = await count_statements()
    for n in range(20):
        await try_create_user(root, address=f"n{n}@elsewhere{n % 3}.example")
    assert await count_statements() == count_before


async def test_service_settings_contain_password_policy(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await set_domain_policy(root)
    settings_query = """query ($by: UserRef) { user(by: $by) {
      serviceSettings(service: "api") { key value } } }"""
    settings = (await root(settings_query, by={"username": ada.user.username}))["user"][
        "serviceSettings"
    ]
    values_by_key = {setting["key"]: setting["value"] for setting in settings}
    assert (values_by_key["password/min_length"], values_by_key["password/min_classes"]) == (
        "14",
        "3",
    )
