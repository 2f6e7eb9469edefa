"""Making accounts: all that can be said of one, who may say it, and what is never half done."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pysequoia
import pytest

from graph.types import global_ids
from mail.mailboxes.special_use_names import NAMES_BY_LANGUAGE, special_use_names
from models.errors import Forbidden, InvalidInput, LimitReached, NotFound
from models.mailboxes.tables import SpecialUse
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from resolvers.context import Context, Viewer
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.conftest import Client, make_client, make_user
from tests.support.accounts.domain_admins import domain_admin_context
from tests.support.accounts.openpgp_keys import RSA_1024, SIGNS_ONLY, key_of
from tests.support.accounts.user_operations import (
    CREATE,
    PASSWORD,
    change,
    chief,
    create,
    row_of,
    run,
    signs_in,
)
from tests.support.operations.domain_operations import set_domain_columns
from tests.support.stores.counter_check import rows
from tests.support.stores.row_counts import user_table_row_counts

CRYPT = "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"
pytestmark = pytest.mark.usefixtures("examined")


async def test_all_that_can_be_said_is_kept(root: Client) -> None:
    key = key_of("Eve Ö <eve@example.org>")
    user, errors = await create(
        root,
        name="Eve Ö.",
        tags=["B", "a"],
        addTagsToAddress=True,
        retention="P10D",
        pubKey=key,
        spamLevel=0,
        recipients=0,
        receivedMax=7,
        disabledScopes=["SMTP", "IMAP", "SMTP"],
        fromWhitelist=["*", "@Other.example", "News*", "*@BÜCHER.example", "news*"],
        uploadSentMessages=True,
        tlsEnforceIn=True,
        tlsEnforceOut=True,
        smtpAllowedNetworks=["192.0.2.7/24", "2001:db8::1", "192.0.2.0/24"],
        webmailAccess=False,
        permissions=["SPAM_SCORE", "APP_PASSWDS", "SPAM_SCORE"],
    )
    assert errors == []
    assert user["retention"] == "P10D"
    assert user["spam"] == {"level": 0, "junkScore": 8, "rejectScore": 15}
    assert user["disabledScopes"] == ["IMAP", "SMTP"]
    assert user["fromWhitelist"] == ["*", "other.example", "news*", "*@bücher.example"]
    assert (user["uploadSentMessages"], user["tlsEnforceIn"]) == (True, True)
    assert user["tlsEnforceOut"]
    assert user["smtpAllowedNetworks"] == ["192.0.2.0/24", "2001:db8::1/128"]
    assert (user["webmailAccess"], user["permissions"]) == (False, ["APP_PASSWDS", "SPAM_SCORE"])
    assert (user["administers"], user["adminPermissions"]) == ([], [])
    cert = pysequoia.Cert.from_bytes(user["pubKey"].encode())
    assert user["keyInfo"]["fingerprint"] == cert.fingerprint
    assert (user["keyInfo"]["name"], user["keyInfo"]["address"]) == ("Eve Ö", "eve@example.org")
    row = await row_of(root.world, global_ids.decode("User", user["id"]))
    assert (row.recipients, row.received_max) == (0, 7)
    ((tags,),) = await rows(root.world, "SELECT tags FROM addresses")
    assert (json.loads(tags) if isinstance(tags, str) else tags) == ["B", "a"]
    kept = dict(await rows(root.world, "SELECT path, retention FROM mailboxes"))
    assert kept == dict.fromkeys(("INBOX", "Sent", "Drafts", "Trash", "Junk"), 864_000)


async def test_a_user_name_is_the_address_as_it_is_on_the_wire(root: Client) -> None:
    user, errors = await create(root, address="E.va@Bücher.example")
    assert (errors, user["username"]) == ([], "e.va@xn--bcher-kva.example")
    document = "query ($name: String!) { user(by: {username: $name}) { username } }"
    for name in ("eva@bücher.example", "EVA@XN--BCHER-KVA.example", "e.v.a+x@bücher.example"):
        assert (await root(document, name=name))["user"] == {"username": user["username"]}


async def test_what_is_not_said_is_as_usual(root: Client) -> None:
    user, errors = await create(root)
    assert errors == []
    assert user["permissions"] == sorted(UserPermission)
    assert (user["spam"]["level"], user["retention"], user["webmailAccess"]) == (50, None, True)
    kept = dict(await rows(root.world, "SELECT path, retention FROM mailboxes"))
    month = 30 * 86_400
    assert kept == {"INBOX": None, "Sent": None, "Drafts": None, "Trash": month, "Junk": month}


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        ({"password": "short"}, ("password", "min")),
        ({"password": CRYPT[:-1], "hashedPassword": True}, ("password", "hash")),
        ({"password": "$2b$20$" + "a" * 53, "hashedPassword": True}, ("password", "cost")),
        ({"password": CRYPT, "hashedPassword": True, "allowUnsafe": False},
         ("allowUnsafe", "exclusive")),
        ({"password": "Password123", "allowUnsafe": False}, ("password", "breached")),
        ({"name": "x" * 256}, ("name", "pattern")),
        ({"name": "a\nBcc: x"}, ("name", "pattern")),
        ({"language": "klingon"}, ("language", "pattern")),
        ({"tags": ["a\x1f"]}, ("tags", "length")),
        ({"tags": ["a"] * 1001}, ("tags", "max")),
        ({"retention": "P200Y"}, ("retention", "range")),
        ({"retention": "PT0.5S"}, ("retention", "range")),
        ({"spamLevel": 101}, ("spamLevel", "range")),
        ({"spamLevel": -1}, ("spamLevel", "range")),
        ({"recipients": -1}, ("recipients", "range")),
        ({"receivedMax": -1}, ("receivedMax", "range")),
        ({"fromWhitelist": [""]}, ("fromWhitelist", "pattern")),
        ({"fromWhitelist": ["a*b"]}, ("fromWhitelist", "pattern")),
        ({"fromWhitelist": ["**"]}, ("fromWhitelist", "pattern")),
        ({"fromWhitelist": ["a@b@c.example"]}, ("fromWhitelist", "pattern")),
        ({"fromWhitelist": ["a b@c.example"]}, ("fromWhitelist", "pattern")),
        ({"fromWhitelist": ["@"]}, ("fromWhitelist", "pattern")),
        ({"fromWhitelist": ["a@-b.example"]}, ("fromWhitelist", "pattern")),
        ({"fromWhitelist": ["x" * 129 + "*"]}, ("fromWhitelist", "pattern")),
        ({"pubKey": "-----BEGIN", "encryptMessages": True}, ("pubKey", "key")),
        ({"pubKey": "x" * 200_000, "encryptForwarded": True}, ("pubKey", "max")),
        ({"adminPermissions": ["LOGIN_AS"]}, ("adminPermissions", "role")),
        ({"administers": [{"name": "example.org"}]}, ("administers", "role")),
        ({"username": "\u0435.ve"}, ("username", "pattern")),  # the first letter is Cyrillic
        ({"username": "e" * 10_000}, ("username", "pattern")),
        ({"address": "e" * 10_000 + "@example.org"}, ("address", "address")),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ada")
async def test_what_cannot_be_is_refused_by_field_and_rule(
    root: Client, wrong: dict[str, Any], refusal: tuple[str, str]
) -> None:
    before = await user_table_row_counts(root.world)
    user, (error,) = await create(root, **wrong)
    assert user is None
    assert (error["code"], error["path"], error["constraint"]) == (
        "VALIDATION", [refusal[0]], refusal[1],
    )  # fmt: skip
    assert "correct horse" not in error["message"]
    assert await user_table_row_counts(root.world) == before


@pytest.mark.parametrize("quota", [-1, 2**63, "-1", 2**53, 1.5, "much"])
async def test_what_is_no_size_is_refused_by_name(root: Client, quota: Any) -> None:
    answer = await root.raw(CREATE, input={"address": "eve@example.org", "quota": quota})
    (error,) = answer["errors"]
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
    assert "quota" in error["message"]
    ctx = await domain_admin_context(root, administers=())
    for number in (-1, 2**53, 2**63):
        new = NewUser(address="eve@example.org", password_disabled=True, quota=number)
        with pytest.raises(InvalidInput) as refused:
            await creation_create.create_user(ctx, new)
        assert (refused.value.path, refused.value.constraint) == (["quota"], "range")


async def test_an_imported_hash_signs_in(root: Client) -> None:
    user, errors = await create(root, username="eve", password=CRYPT, hashedPassword=True)
    assert (errors, user["hasPasswordSet"]) == ([], True)
    assert await signs_in(root.world, "eve", "wrong") is None
    assert await signs_in(root.world, "eve", "secret")
    row = await row_of(root.world, global_ids.decode("User", user["id"]))
    assert row.password.startswith("$argon2id$")


async def test_a_password_to_be_changed_is_good_until_then(root: Client) -> None:
    user, errors = await create(root, username="eve", requirePasswordChange=True)
    assert (errors, user["requirePasswordChange"]) == ([], True)
    assert await signs_in(root.world, "eve", PASSWORD)


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize("of", [SIGNS_ONLY, "over", "revoked", "secret"])
async def test_a_key_nothing_can_be_encrypted_to_is_refused(root: Client, of: str) -> None:
    if of == "over":  # before the clock of these tests
        of = key_of("Eve <eve@example.org>", seconds=86_400)
    elif of == "revoked":
        secret = pysequoia.Tsk.generate(user_id="Eve <eve@example.org>")
        cert = secret.extract_certificate()
        revoked = cert.merge(
            pysequoia.Cert.from_bytes(bytes(cert) + bytes(cert.revoke(secret.certifier())))
        )
        of = str(revoked)
    elif of == "secret":
        of = str(pysequoia.Tsk.generate(user_id="Eve <eve@example.org>"))
    for use in ("encryptMessages", "encryptForwarded"):
        user, (error,) = await create(root, pubKey=of, **{use: True})
        assert (user, error["path"]) == (None, ["pubKey"])
        assert error["constraint"] in {"key", "expired"}
    fields = "user { pubKey } warnings { code path message }"
    given = {"address": "eve@example.org", "password": PASSWORD, "pubKey": of}
    made = await run(root, "userCreate", fields, **given)  # nothing is encrypted to it
    assert (made["errors"], made["user"]) == ([], {"pubKey": None})
    (warning,) = made["warnings"]
    assert (warning["code"], warning["path"]) == ("KEY_NOT_STORED", ["pubKey"])
    one = {"address": "dan@example.org", "password": PASSWORD, "pubKey": of}
    made = await run(root, "usersCreate", "warnings { code path }", users=[one])
    assert made["warnings"] == [{"code": "KEY_NOT_STORED", "path": ["users", "0", "pubKey"]}]


@pytest.mark.usefixtures("ada")
async def test_a_key_of_1024_bits_is_accepted_with_a_warning(root: Client) -> None:
    fields = "user { keyInfo { name address fingerprint } } warnings { code path }"
    given = {"address": "eve@example.org", "password": PASSWORD, "pubKey": RSA_1024}
    made = await run(root, "userCreate", fields, **given, encryptMessages=True)
    assert made["errors"] == []
    assert made["warnings"] == [{"code": "WEAK_KEY", "path": ["pubKey"]}]
    assert made["user"]["keyInfo"] == {
        "name": "rsa",
        "address": "rsa@example.org",
        "fingerprint": "8d2bf1c3865f0a95b17e589e4f13b7015f628a45",
    }
    who = {"users": {"usernames": ["eve@example.org"]}, "set": {"pubKey": RSA_1024}}
    changed = await run(root, "userUpdate", "warnings { code path }", **who)
    assert changed["errors"] == []
    assert changed["warnings"] == [{"code": "WEAK_KEY", "path": ["set", "pubKey"]}]


async def test_a_secret_key_in_disguise_is_not_kept(root: Client) -> None:
    secret = str(pysequoia.Tsk.generate(user_id="Eve <e@example.org>", validity_seconds=10**9))
    user, errors = await create(root, pubKey=secret.replace("PRIVATE", "PUBLIC"))
    assert errors == []
    public = str(pysequoia.Tsk.from_bytes(secret.encode()).extract_certificate())
    assert user["pubKey"] == public
    assert user["keyInfo"]["expiresAt"] > datetime(2040, 1, 1, tzinfo=UTC).isoformat()


@pytest.mark.usefixtures("ada")
async def test_of_two_creations_of_one_name_exactly_one_wins(root: Client) -> None:
    for same in ("username", "address"):
        news = [
            {"username": "r.ace", "address": f"{same}.{nth}@race{nth}.example"}
            if same == "username"
            else {"username": f"racer{nth}", "address": "ra.ce@example.org"}
            for nth in range(6)
        ]
        answers = await asyncio.gather(*(create(root, **new) for new in news))
        refused = [errors[0] for user, errors in answers if user is None]
        assert len(refused) == 5
        assert {(one["code"], *one["path"]) for one in refused} == {("CONFLICT", same)}


async def test_of_many_at_once_a_domain_takes_as_many_as_it_may(root: Client, ada: Client) -> None:
    await set_domain_columns(root.world, max_users=3)
    ctx = await domain_admin_context(ada)
    names = (NewUser(address=f"n{n}@example.org", password_disabled=True) for n in range(6))
    made = await asyncio.gather(
        *(creation_create.create_user(ctx.fresh_copy(), new) for new in names),
        return_exceptions=True,
    )
    assert [type(one) for one in made].count(LimitReached) == 4
    assert len([one for one in made if not isinstance(one, Exception)]) == 2


@pytest.mark.usefixtures("ada")
async def test_a_domain_has_so_many_addresses(root: Client) -> None:
    await set_domain_columns(root.world, max_addresses=2)
    assert (await create(root))[1] == []
    user, (error,) = await create(root, address="dan@example.org")
    assert (user, error["limit"], error["used"], error["path"]) == (None, 2, 2, ["address"])


@pytest.mark.parametrize("language", [None, "xx", "de", "pt-BR", "zh_TW", "zh-Hant-HK", "NO"])
async def test_special_folders_are_called_as_in_the_language(
    root: Client, language: str | None
) -> None:
    _, errors = await create(root, language=language, mailboxes={"sent": "Mine"})
    assert errors == []
    named = special_use_names(language) | {SpecialUse.INBOX: "INBOX", SpecialUse.SENT: "Mine"}
    found = dict(await rows(root.world, "SELECT special_use, path FROM mailboxes"))
    assert found == named
    assert special_use_names("xx") == special_use_names("en")
    assert special_use_names("zh_TW") == special_use_names("zh-Hant-HK") != special_use_names("zh")


def test_names_of_folders_are_paths_and_differ() -> None:
    for language, names in NAMES_BY_LANGUAGE.items():
        assert len({*names, "INBOX"}) == 5, language
        assert not [name for name in names if "/" in name or name != name.strip()]
    assert len(NAMES_BY_LANGUAGE) >= 40


async def test_a_dry_run_and_a_call_repeated_make_as_many_as_they_should(root: Client) -> None:
    before = await user_table_row_counts(root.world)
    tried, errors = await create(root, options={"validateOnly": True}, pubKey=key_of("E"))
    assert (tried is not None, errors) == (True, [])
    assert await user_table_row_counts(root.world) == before


# Who may make whom.


async def test_a_domain_admin_makes_another_within_its_own(root: Client) -> None:
    await make_user(root.world, "far")
    await create(root, address="x@elsewhere.example")
    boss = await chief(root, AdminPermission.LOGIN_AS, AdminPermission.FILTERS)
    given = {"role": "DOMAIN_ADMIN", "address": "sub@example.org"}
    user, errors = await create(
        boss, **given, administers=[{"name": "EXAMPLE.org"}], adminPermissions=["LOGIN_AS"]
    )
    assert errors == []
    assert (user["administers"], user["adminPermissions"]) == (
        [{"name": "example.org"}], ["LOGIN_AS"],
    )  # fmt: skip
    given["address"] = "sub2@example.org"
    for more, path, code in (
        ({"administers": [{"name": "example.org"}, {"name": "elsewhere.example"}]},
         "administers", "NOT_FOUND"),
        ({"administers": [{"name": "nowhere.example"}]}, "administers", "NOT_FOUND"),
        ({"adminPermissions": ["LOGIN_AS", "SPAM_POLICY"]}, "adminPermissions", "FORBIDDEN"),
        ({"role": "ADMIN"}, "role", "FORBIDDEN"),
        ({"role": "ROOT"}, "role", "FORBIDDEN"),
    ):  # fmt: skip
        user, (error,) = await create(boss, **{**given, **more})
        assert (user, error["code"], error["path"]) == (None, code, [path])
    texts = [
        (await create(boss, **given, administers=[{"name": name}]))[1][0]
        for name in ("elsewhere.example", "nowhere.example")
    ]
    assert texts[0]["message"] == texts[1]["message"]
    _, (error,) = await create(boss, address="y@elsewhere.example")
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["address"])


@pytest.mark.parametrize(
    ("given", "permission"),
    [
        ({"fromWhitelist": ["x@example.org"]}, "EXTEND_SENDER_ACL"),
        ({"disabledScopes": ["IMAP"]}, "PROTOCOL_ACCESS"),
        ({"webmailAccess": False}, "WEBMAIL_ACCESS"),
        ({"smtpAllowedNetworks": ["192.0.2.0/24"]}, "SMTP_IP_ACCESS"),
        ({"spamLevel": 10}, "SPAM_POLICY"),
        ({"quota": 0}, "UNLIMITED_QUOTA"),
    ],
)
@pytest.mark.usefixtures("ada")
async def test_some_things_a_domain_admin_does_by_permission(
    root: Client, given: dict[str, Any], permission: str
) -> None:
    boss = await chief(root)
    user, (error,) = await create(boss, **given)
    assert (user, error["code"], error["requires"]) == (None, "FORBIDDEN", permission)
    assert error["path"] == list(given)
    able = await chief(root, AdminPermission(permission), name="able")
    user, errors = await create(able, **given)
    assert errors == []
    _, errors = await change(boss, global_ids.decode("User", user["id"]), **given)
    assert (errors[0]["requires"], errors[0]["path"]) == (permission, ["set", *given])
    assert (await change(able, global_ids.decode("User", user["id"]), **given))[1] == []


@pytest.mark.usefixtures("ada")
async def test_a_domain_admin_lets_nobody_send_as_other_domains_here(root: Client) -> None:
    await create(root, address="x@elsewhere.example")
    boss = await chief(root, AdminPermission.EXTEND_SENDER_ACL)
    for pattern in ("*", "x*", "*e.example", "x@elsewhere.example", "elsewhere.example",
                    "*@ELSEWHERE.example", "news@*"):  # fmt: skip
        user, (error,) = await create(boss, fromWhitelist=["ok@example.org", pattern])
        assert (user, error["requires"], error["path"]) == (None, "ADMIN", ["fromWhitelist"])
    user, errors = await create(
        boss, fromWhitelist=["*@example.org", "partner.example", "me@gmail.example"]
    )
    assert errors == []
    assert len(user["fromWhitelist"]) == 3


@pytest.mark.usefixtures("ada")
async def test_what_an_administrator_made_is_logged_without_secrets(root: Client) -> None:
    boss = await chief(root)
    user, errors = await create(boss, options={"reason": "asked for it"})
    assert errors == []
    found = await rows(
        root.world,
        "SELECT actor, mutation, target_id, reason, after FROM admin_log WHERE actor = 'chief'",
    )
    (actor, mutation, target, reason, after), *rest = found
    assert (rest, actor, mutation, reason) == ([], "chief", "userCreate", "asked for it")
    assert target == global_ids.decode("User", user["id"])
    assert "argon2" not in str(after)
    assert PASSWORD not in str(after)


async def test_nobody_else_makes_accounts(ada: Client) -> None:
    answer = await ada(CREATE, input={"address": "eve@example.org", "passwordDisabled": True})
    assert answer["userCreate"]["errors"][0]["requires"] == "DOMAIN_ADMIN"
    ctx = await domain_admin_context(ada)
    above = NewUser(address="e@example.org", password_disabled=True, role=Role.ROOT)
    with pytest.raises(Forbidden):
        await creation_create.create_user(ctx, above)
    outside = NewUser(address="e@nowhere.example", password_disabled=True)
    with pytest.raises(NotFound):
        await creation_create.create_user(ctx, outside)


# Messages to begin with.


@pytest.fixture
async def hello(tmp_path: Path) -> Path:
    folder = tmp_path / "welcome"
    folder.mkdir()
    said = {"from": "Team [DOMAIN] <team@[DOMAIN]>", "subject": "Hello [FNAME]", "flagged": True}
    (folder / "1.json").write_text(json.dumps({**said, "attachments": ["logo.png"]}))
    (folder / "1.html").write_text("<p>Dear [FNAME] [LNAME], you are [EMAIL] [OTHER]</p>")
    (folder / "logo.png").write_bytes(b"\x89PNG" * 10)
    (folder / "2.json").write_text('{"subject": "Old", "mailbox": "SENT", "seen": true}')
    (folder / "2.txt").write_text("[USERNAME] [NAME]")
    return folder


def welcoming(client: Client, folder: Path) -> None:
    """Serve this client's platform with messages to begin with."""
    options = replace(client.world.options, welcome=folder)
    object.__setattr__(client.world, "options", options)


LETTERS = """{ user(by: {username: "eve"}) { messageCount limits { quota { used } } } }"""


async def test_an_account_begins_with_messages(root: Client, hello: Path) -> None:
    welcoming(root, hello)
    _, errors = await create(root, username="eve", name="Eve <b> of Oz")
    assert errors == []
    found = await rows(
        root.world,
        "SELECT m.subject, b.path, m.seen, m.flagged, m.from_address, m.preview,"
        " m.attachment_count FROM messages m JOIN mailboxes b ON b.id = m.mailbox_id"
        " ORDER BY m.subject",
    )
    assert [tuple(map(str, row[:2])) for row in found] == [("Hello Eve", "INBOX"), ("Old", "Sent")]
    first, second = found
    assert (bool(first[2]), bool(first[3]), bool(second[2])) == (False, True, True)
    assert first[4] == "team@example.org"
    assert "Dear Eve <b> of Oz, you are eve@example.org [OTHER]" in first[5]
    assert (first[6], second[5]) == (1, "eve Eve <b> of Oz")
    seen = (await root(LETTERS))["user"]
    assert seen["messageCount"] == 2
    assert seen["limits"]["quota"]["used"] > 0
    _, errors = await create(root, username="dan", address=None, emptyAddress=True)
    assert errors == []
    assert len(await rows(root.world, "SELECT id FROM messages")) == 2


async def test_a_message_that_cannot_be_keeps_nobody_out(root: Client, hello: Path) -> None:
    (hello / "0.json").write_text("{")
    (hello / "0b.json").write_text('{"attachments": ["../../etc/passwd"]}')
    (hello / "0c.json").write_text('{"from": "nobody"}')
    (hello / "0d.json").write_text("[1]")
    (hello / "0e.json").write_bytes(b"\xff")
    welcoming(root, hello)
    _, errors = await create(root, quota=500, options={"idempotencyKey": "k"})
    assert errors == []
    assert len(await rows(root.world, "SELECT id FROM messages")) < 2  # no room
    welcoming(root, hello / "nowhere")
    assert (await create(root, address="dan@example.org"))[1] == []


async def test_a_domain_and_its_first_accounts_begin_in_one_unit(root: Client, hello: Path) -> None:
    welcoming(root, hello)
    ctx = Context(root.world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
    async with ctx.combined_transaction():
        for name in "ab":
            new = NewUser(address=f"{name}@new.example", password_disabled=True)
            assert (await creation_create.create_user(ctx, new)).message_count == 2


async def test_a_new_folder_has_the_life_of_the_account(root: Client) -> None:
    eve = await make_client(root.world, root.http, "eve")
    assert (await change(eve, retention="P7D"))[1] == []
    fields = "mailboxes { path retention }"
    made = await run(eve, "mailboxCreate", fields, paths=["New/One"])
    assert made["mailboxes"] == [{"path": "New/One", "retention": "P7D"}]
    made = await run(eve, "mailboxCreate", fields, paths=["Ever"], retention="PT0S")
    assert made["mailboxes"] == [{"path": "Ever", "retention": None}]
    made = await run(eve, "mailboxCreate", fields, paths=["Day"], retention="P1D")
    assert made["mailboxes"] == [{"path": "Day", "retention": "P1D"}]
