"""Creating users: fields, defaults, refusals, passwords and keys."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pysequoia
import pytest

from graph.types import global_ids
from mail.mailboxes.special_use_names import NAMES_BY_LANGUAGE, default_mailbox_names
from models.errors import Forbidden, InvalidInput, LimitReached, NotFound
from models.mailboxes.tables import SpecialUse
from models.users.roles import Role, UserPermission
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.domain_admins import domain_admin_context
from tests.support.accounts.openpgp_keys import RSA_1024_KEY, SIGN_ONLY_KEY, make_public_key
from tests.support.accounts.user_operations import (
    CREATE_USER_MUTATION,
    PASSWORD,
    execute_mutation,
    load_user_row,
    make_admin_of_domain,
    try_create_user,
    try_sign_in,
    try_update_users,
)
from tests.support.case_loop import each_case
from tests.support.operations.domain_operations import set_domain_columns
from tests.support.stores.counter_check import select_rows
from tests.support.stores.row_counts import count_user_table_rows

MD5_CRYPT_HASH = "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_user_create_stores_all_fields(root: GraphQLClient) -> None:
    public_key = make_public_key("Eve Ö <eve@example.org>")
    user, errors = await try_create_user(
        root,
        name="Eve Ö.",
        tags=["B", "a"],
        addTagsToAddress=True,
        retention="P10D",
        openpgpPublicKey=public_key,
        spam={"level": 0, "junkScore": 4, "rejectScore": 5},
        limits={"recipientsPerDay": None, "receivedPerHour": 7},
        disabledScopes=["SMTP", "IMAP", "SMTP"],
        allowedSenders=["*", "@Other.example", "News*", "*@BÜCHER.example", "news*"],
        uploadSentMessages=True,
        requireInboundTls=True,
        requireOutboundTls=True,
        smtpAllowedNetworks=["192.0.2.7/24", "2001:db8::1", "192.0.2.0/24"],
        webmailAccess=False,
        permissions=["SPAM_POLICY", "APP_PASSWORDS", "SPAM_POLICY"],
    )
    assert errors == []
    assert user["retention"] == "P10D"
    assert user["spam"] == {"level": 0, "junkScore": 4, "rejectScore": 5}
    assert user["disabledScopes"] == ["IMAP", "SMTP"]
    assert user["allowedSenders"] == ["*", "other.example", "news*", "*@bücher.example"]
    assert (user["uploadSentMessages"], user["requireInboundTls"]) == (True, True)
    assert user["requireOutboundTls"]
    assert user["smtpAllowedNetworks"] == ["192.0.2.0/24", "2001:db8::1/128"]
    assert (user["webmailAccess"], user["permissions"]) == (False, ["APP_PASSWORDS", "SPAM_POLICY"])
    assert (user["administers"]["nodes"], user["adminPermissions"]) == ([], [])
    cert = pysequoia.Cert.from_bytes(user["openpgpPublicKey"].encode())
    assert user["openpgpKey"]["fingerprint"] == cert.fingerprint
    assert (user["openpgpKey"]["name"], user["openpgpKey"]["address"]) == (
        "Eve Ö",
        "eve@example.org",
    )
    row = await load_user_row(root.environment, global_ids.decode("User", user["id"]))
    assert (row.recipients_per_day, row.received_per_hour, row.forwards_per_day) == (0, 7, None)
    ((tags,),) = await select_rows(root.environment, "SELECT tags FROM addresses")
    assert (json.loads(tags) if isinstance(tags, str) else tags) == ["B", "a"]
    retention_by_path = dict(
        await select_rows(root.environment, "SELECT path, retention FROM mailboxes")
    )
    assert retention_by_path == dict.fromkeys(("INBOX", "Sent", "Drafts", "Trash", "Junk"), 864_000)


async def test_default_username_is_the_address_in_ascii(root: GraphQLClient) -> None:
    user, errors = await try_create_user(root, address="E.va@Bücher.example")
    assert (errors, user["username"]) == ([], "e.va@xn--bcher-kva.example")
    document = "query ($name: String!) { user(by: {username: $name}) { username } }"
    for name in ("eva@bücher.example", "EVA@XN--BCHER-KVA.example", "e.v.a+x@bücher.example"):
        assert (await root(document, name=name))["user"] == {"username": user["username"]}


async def test_user_create_has_defaults(root: GraphQLClient) -> None:
    user, errors = await try_create_user(root)
    assert errors == []
    assert user["permissions"] == sorted(UserPermission)
    assert (user["spam"]["level"], user["retention"], user["webmailAccess"]) == (50, None, True)
    retention_by_path = dict(
        await select_rows(root.environment, "SELECT path, retention FROM mailboxes")
    )
    month = 30 * 86_400
    assert retention_by_path == {
        "INBOX": None,
        "Sent": None,
        "Drafts": None,
        "Trash": month,
        "Junk": month,
    }


INVALID_INPUTS: list[tuple[dict[str, Any], tuple[str, str]]] = [
    ({"password": "short"}, ("password", "MIN")),
    ({"password": MD5_CRYPT_HASH[:-1], "hashedPassword": True}, ("password", "PASSWORD_HASH")),
    ({"password": "$2b$20$" + "a" * 53, "hashedPassword": True}, ("password", "HASH_COST")),
    ({"password": MD5_CRYPT_HASH, "hashedPassword": True, "allowUnsafe": False},
     ("allowUnsafe", "EXCLUSIVE")),
    ({"password": "Password123", "allowUnsafe": False}, ("password", "BREACHED")),
    ({"name": "x" * 256}, ("name", "PATTERN")),
    ({"name": "a\nBcc: x"}, ("name", "PATTERN")),
    ({"language": "klingon"}, ("language", "PATTERN")),
    ({"tags": ["a\x1f"]}, ("tags.0", "LENGTH")),
    ({"tags": ["a"] * 1001}, ("tags", "MAX")),
    ({"retention": "P200Y"}, ("retention", "RANGE")),
    ({"retention": "PT0.5S"}, ("retention", "RANGE")),
    ({"spam": {"level": 101}}, ("spam.level", "RANGE")),
    ({"spam": {"level": -1}}, ("spam.level", "RANGE")),
    ({"spam": {"junkScore": 16}}, ("spam.rejectScore", "RANGE")),
    ({"limits": {"recipientsPerDay": 0}}, ("limits.recipientsPerDay", "RANGE")),
    ({"limits": {"receivedPerHour": -1}}, ("limits.receivedPerHour", "RANGE")),
    ({"quota": 0}, ("quota", "RANGE")),
    ({"retention": "PT0S"}, ("retention", "RANGE")),
    ({"allowedSenders": [""]}, ("allowedSenders.0", "PATTERN")),
    ({"allowedSenders": ["a*b"]}, ("allowedSenders.0", "PATTERN")),
    ({"allowedSenders": ["**"]}, ("allowedSenders.0", "PATTERN")),
    ({"allowedSenders": ["a@b@c.example"]}, ("allowedSenders.0", "PATTERN")),
    ({"allowedSenders": ["a b@c.example"]}, ("allowedSenders.0", "PATTERN")),
    ({"allowedSenders": ["@"]}, ("allowedSenders.0", "PATTERN")),
    ({"allowedSenders": ["a@-b.example"]}, ("allowedSenders.0", "PATTERN")),
    ({"allowedSenders": ["x" * 129 + "*"]}, ("allowedSenders.0", "PATTERN")),
    ({"openpgpPublicKey": "-----BEGIN", "encryptMessages": True}, ("openpgpPublicKey", "KEY")),
    (
        {"openpgpPublicKey": "x" * 200_000, "encryptForwarded": True},
        ("openpgpPublicKey", "MAX"),
    ),
    ({"adminPermissions": ["IMPERSONATE"]}, ("adminPermissions", "ROLE")),
    ({"administers": [{"name": "example.org"}]}, ("administers", "ROLE")),
    ({"username": "\u0435.ve"}, ("username", "PATTERN")),  # the first letter is Cyrillic
    ({"username": "e" * 10_000}, ("username", "PATTERN")),
    ({"address": "e" * 10_000 + "@example.org"}, ("address", "ADDRESS")),
]  # fmt: skip


@pytest.mark.usefixtures("ada")
async def test_invalid_user_input_names_field_and_rule(root: GraphQLClient) -> None:
    for case in each_case(INVALID_INPUTS):
        with case as (invalid_input, refusal):
            counts_before = await count_user_table_rows(root.environment)
            user, (error,) = await try_create_user(root, **invalid_input)
            assert user is None
            assert (error["code"], error["path"], error["constraint"]) == (
                "VALIDATION", refusal[0].split("."), refusal[1],
            )  # fmt: skip
            assert "correct horse" not in error["message"]
            assert await count_user_table_rows(root.environment) == counts_before


async def test_invalid_quota_is_refused_by_name(root: GraphQLClient) -> None:
    cases: list[Any] = [-1, 2**63, "-1", 2**53, 1.5, "much"]
    for case in each_case(cases):
        with case as quota:
            response = await root.execute(
                CREATE_USER_MUTATION, input={"address": "eve@example.org", "quota": quota}
            )
            (error,) = response["errors"]
            assert error["extensions"]["code"] == "BAD_USER_INPUT"
            assert "quota" in error["message"]
            ctx = await domain_admin_context(root, administers=())
            for number in (-1, 2**53, 2**63):
                new_user = NewUser(address="eve@example.org", password_disabled=True, quota=number)
                with pytest.raises(InvalidInput) as error_info:
                    await creation_create.create_user(ctx, new_user)
                assert (error_info.value.path, error_info.value.constraint) == (["quota"], "RANGE")


async def test_imported_hash_signs_in_and_is_replaced(root: GraphQLClient) -> None:
    user, errors = await try_create_user(
        root, username="eve", password=MD5_CRYPT_HASH, hashedPassword=True
    )
    assert (errors, user["hasPassword"]) == ([], True)
    assert await try_sign_in(root.environment, "eve", "wrong") is None
    assert await try_sign_in(root.environment, "eve", "secret")
    row = await load_user_row(root.environment, global_ids.decode("User", user["id"]))
    assert row.password.startswith("$argon2id$")


async def test_password_that_must_be_changed_still_signs_in(root: GraphQLClient) -> None:
    user, errors = await try_create_user(root, username="eve", passwordChangeRequired=True)
    assert (errors, user["passwordChangeRequired"]) == ([], True)
    assert await try_sign_in(root.environment, "eve", PASSWORD)


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize("public_key", [SIGN_ONLY_KEY, "over", "revoked", "secret"])
async def test_public_key_without_encryption_is_refused(
    root: GraphQLClient, public_key: str
) -> None:
    if public_key == "over":  # expired before the clock of the test
        public_key = make_public_key("Eve <eve@example.org>", seconds=86_400)
    elif public_key == "revoked":
        secret = pysequoia.Tsk.generate(user_id="Eve <eve@example.org>")
        cert = secret.extract_certificate()
        revoked = cert.merge(
            pysequoia.Cert.from_bytes(bytes(cert) + bytes(cert.revoke(secret.certifier())))
        )
        public_key = str(revoked)
    elif public_key == "secret":
        public_key = str(pysequoia.Tsk.generate(user_id="Eve <eve@example.org>"))
    for flag in ("encryptMessages", "encryptForwarded"):
        user, (error,) = await try_create_user(root, openpgpPublicKey=public_key, **{flag: True})
        assert (user, error["path"]) == (None, ["openpgpPublicKey"])
        assert error["constraint"] in {"KEY", "EXPIRED"}
    fields = "user { openpgpPublicKey } warnings { code path message }"
    arguments = {"address": "eve@example.org", "password": PASSWORD, "openpgpPublicKey": public_key}
    # without encryption the key is only ignored
    payload = await execute_mutation(root, "userCreate", fields, **arguments)
    assert (payload["errors"], payload["user"]) == ([], {"openpgpPublicKey": None})
    (warning,) = payload["warnings"]
    assert (warning["code"], warning["path"]) == ("KEY_NOT_STORED", ["openpgpPublicKey"])
    user_input = {
        "address": "dan@example.org",
        "password": PASSWORD,
        "openpgpPublicKey": public_key,
    }
    payload = await execute_mutation(
        root, "usersCreate", "warnings { code path }", users=[user_input]
    )
    assert payload["warnings"] == [
        {"code": "KEY_NOT_STORED", "path": ["users", "0", "openpgpPublicKey"]}
    ]


@pytest.mark.usefixtures("ada")
async def test_key_of_1024_bits_is_accepted_with_a_warning(root: GraphQLClient) -> None:
    fields = "user { openpgpKey { name address fingerprint } } warnings { code path }"
    arguments = {
        "address": "eve@example.org",
        "password": PASSWORD,
        "openpgpPublicKey": RSA_1024_KEY,
    }
    payload = await execute_mutation(root, "userCreate", fields, **arguments, encryptMessages=True)
    assert payload["errors"] == []
    assert payload["warnings"] == [{"code": "WEAK_KEY", "path": ["openpgpPublicKey"]}]
    assert payload["user"]["openpgpKey"] == {
        "name": "rsa",
        "address": "rsa@example.org",
        "fingerprint": "8d2bf1c3865f0a95b17e589e4f13b7015f628a45",
    }
    update_input = {
        "users": {"usernames": ["eve@example.org"]},
        "set": {"openpgpPublicKey": RSA_1024_KEY},
    }
    update_payload = await execute_mutation(
        root, "userUpdate", "warnings { code path }", **update_input
    )
    assert update_payload["errors"] == []
    assert update_payload["warnings"] == [{"code": "WEAK_KEY", "path": ["set", "openpgpPublicKey"]}]


async def test_secret_key_marked_as_public_is_not_stored(root: GraphQLClient) -> None:
    secret = str(pysequoia.Tsk.generate(user_id="Eve <e@example.org>", validity_seconds=10**9))
    user, errors = await try_create_user(root, openpgpPublicKey=secret.replace("PRIVATE", "PUBLIC"))
    assert errors == []
    public = str(pysequoia.Tsk.from_bytes(secret.encode()).extract_certificate())
    assert user["openpgpPublicKey"] == public
    assert user["openpgpKey"]["expiresAt"] > datetime(2040, 1, 1, tzinfo=UTC).isoformat()


@pytest.mark.usefixtures("ada")
async def test_one_of_concurrent_creates_of_a_name_succeeds(root: GraphQLClient) -> None:
    for field in ("username", "address"):
        inputs = [
            {"username": "r.ace", "address": f"{field}.{number}@race{number}.example"}
            if field == "username"
            else {"username": f"racer{number}", "address": "ra.ce@example.org"}
            for number in range(6)
        ]
        results = await asyncio.gather(
            *(try_create_user(root, **user_input) for user_input in inputs)
        )
        first_errors = [errors[0] for user, errors in results if user is None]
        assert len(first_errors) == 5
        assert {(error["code"], *error["path"]) for error in first_errors} == {("CONFLICT", field)}


async def test_concurrent_creates_respect_max_users(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await set_domain_columns(root.environment, max_users=3)
    ctx = await domain_admin_context(ada)
    new_users = (NewUser(address=f"n{n}@example.org", password_disabled=True) for n in range(6))
    results = await asyncio.gather(
        *(creation_create.create_user(ctx.fresh_copy(), new_user) for new_user in new_users),
        return_exceptions=True,
    )
    assert [type(result) for result in results].count(LimitReached) == 4
    assert len([result for result in results if not isinstance(result, Exception)]) == 2


@pytest.mark.usefixtures("ada")
async def test_create_over_max_addresses_is_refused(root: GraphQLClient) -> None:
    await set_domain_columns(root.environment, max_addresses=2)
    assert (await try_create_user(root))[1] == []
    user, (error,) = await try_create_user(root, address="dan@example.org")
    assert (user, error["limit"], error["used"], error["path"]) == (None, 2, 2, ["address"])


@pytest.mark.parametrize("language", [None, "xx", "de", "pt-BR", "zh_TW", "zh-Hant-HK", "NO"])
async def test_special_use_mailboxes_have_names_of_the_language(
    root: GraphQLClient, language: str | None
) -> None:
    _, errors = await try_create_user(root, language=language, mailboxes={"sent": "Mine"})
    assert errors == []
    expected = default_mailbox_names(language) | {
        SpecialUse.INBOX: "INBOX",
        SpecialUse.SENT: "Mine",
    }
    path_by_special_use = dict(
        await select_rows(root.environment, "SELECT special_use, path FROM mailboxes")
    )
    assert path_by_special_use == expected
    assert default_mailbox_names("xx") == default_mailbox_names("en")
    assert (
        default_mailbox_names("zh_TW")
        == default_mailbox_names("zh-Hant-HK")
        != default_mailbox_names("zh")
    )


def test_translated_mailbox_names_are_valid_and_unique() -> None:
    for language, names in NAMES_BY_LANGUAGE.items():
        assert len({*names, "INBOX"}) == 5, language
        assert not [name for name in names if "/" in name or name != name.strip()]
    assert len(NAMES_BY_LANGUAGE) >= 40


async def test_validate_only_create_stores_nothing(root: GraphQLClient) -> None:
    counts_before = await count_user_table_rows(root.environment)
    user, errors = await try_create_user(
        root, options={"validateOnly": True}, openpgpPublicKey=make_public_key("E")
    )
    assert (user is not None, errors) == (True, [])
    assert await count_user_table_rows(root.environment) == counts_before


@pytest.mark.usefixtures("ada")
async def test_user_create_is_logged_without_secrets(root: GraphQLClient) -> None:
    domain_admin = await make_admin_of_domain(root)
    user, errors = await try_create_user(domain_admin, options={"reason": "asked for it"})
    assert errors == []
    log_rows = await select_rows(
        root.environment,
        "SELECT actor, mutation, target_id, reason, after FROM audit_log WHERE actor = 'chief'",
    )
    (actor, mutation, target, reason, after), *rest = log_rows
    assert (rest, actor, mutation, reason) == ([], "chief", "userCreate", "asked for it")
    assert target == global_ids.decode("User", user["id"])
    assert "argon2" not in str(after)
    assert PASSWORD not in str(after)


async def test_user_create_needs_rights_over_role_and_domain(ada: GraphQLClient) -> None:
    response = await ada(
        CREATE_USER_MUTATION, input={"address": "eve@example.org", "passwordDisabled": True}
    )
    assert response["userCreate"]["errors"][0]["requires"] == "DOMAIN_ADMIN"
    ctx = await domain_admin_context(ada)
    root_user = NewUser(address="e@example.org", password_disabled=True, role=Role.ROOT)
    with pytest.raises(Forbidden):
        await creation_create.create_user(ctx, root_user)
    outside_user = NewUser(address="e@nowhere.example", password_disabled=True)
    with pytest.raises(NotFound):
        await creation_create.create_user(ctx, outside_user)


async def test_new_mailbox_has_the_retention_of_the_user(root: GraphQLClient) -> None:
    eve = await make_client(root.environment, root.http, "eve")
    assert (await try_update_users(eve, retention="P7D"))[1] == []
    fields = "mailboxes { path retention }"
    payload = await execute_mutation(eve, "mailboxCreate", fields, paths=["New/One"])
    assert payload["mailboxes"] == [{"path": "New/One", "retention": "P7D"}]
    payload = await execute_mutation(eve, "mailboxCreate", fields, paths=["Ever"], retention=None)
    assert payload["mailboxes"] == [{"path": "Ever", "retention": None}]
    payload = await execute_mutation(eve, "mailboxCreate", fields, paths=["Day"], retention="P1D")
    assert payload["mailboxes"] == [{"path": "Day", "retention": "P1D"}]
