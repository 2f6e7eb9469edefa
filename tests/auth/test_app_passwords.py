"""Application passwords: creation, lookup by one hash, use and end."""

import asyncio
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import bcrypt
import pytest
from sqlalchemy import select, text
from sqlmodel import col

from models.auth.application_passwords import ApplicationPassword
from models.auth.security_log import SecurityEvent
from models.errors import LimitReached
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import Scope
from resolvers.auth import app_password_validation, app_passwords
from resolvers.auth.app_password_validation import (
    AppPasswordChanges,
    AppPasswordScope,
    NewAppPassword,
)
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.accounts.app_password_operations import SHOWN_FIELDS, create_app_password
from tests.support.accounts.two_factor_operations import (
    load_all_rows,
    mutation_error_codes,
    run_auth_mutation,
)
from tests.support.case_loop import each_case
from tests.support.lists.list_rows import add_rows

CHOSEN_LETTERS = "qwmzrtpkvbnhjdfg"
LIST_QUERY = """query ($filter: AppPasswordFilter, $first: Int, $after: String, $last: Int,
  $before: String) { user { appPasswords(filter: $filter, first: $first, after: $after, last: $last,
    before: $before) { nodes { description } totalCount
      pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } } }"""


async def find_app_password(environment: Environment, client: GraphQLClient, password: str) -> Any:
    return await app_passwords.find_app_password(environment, client.user.id, password)


async def record_use(client: GraphQLClient, row: Any, ip: str = "192.0.2.9") -> bool:
    ctx = Context(client.environment, Viewer(), client_ip=ip)
    async with ctx.write_session(client.user.id) as session:
        return await app_passwords.record_use_and_extend_unless_changed(ctx, session, row)


async def test_created_app_password_is_found_in_any_spelling(ada: GraphQLClient) -> None:
    payload = await create_app_password(ada)
    assert re.fullmatch(r"[a-z]{16}", payload["password"])
    shown = payload["appPassword"]
    assert (shown["scopes"], shown["active"], shown["lastUse"]) == (["ALL"], True, None)
    for typed in (
        payload["password"],
        payload["password"].upper(),
        " ".join(payload["password"][n : n + 4] for n in range(0, 16, 4)),
        f"\t{payload['password']}\n",
    ):
        assert (await find_app_password(ada.environment, ada, typed)).description == "Phone"
    for wrong in (payload["password"][:-1], payload["password"] + "a", "", "x" * 10_000, "ß" * 8):
        assert await find_app_password(ada.environment, ada, wrong) is None


def with_random_bytes(environment: Environment, *contents: bytes) -> Environment:
    """The environment with these random bytes, each of which is returned once."""
    remaining = iter(contents)
    return replace(environment, random_bytes=lambda _: next(remaining))


async def test_generated_password_has_another_selector(ada: GraphQLClient) -> None:
    contents = [bytes((seed + n * n) % 256 for n in range(64)) for seed in (0, 1)]
    taken, free = (
        app_password_validation.generate_password(with_random_bytes(ada.environment, content))
        for content in contents
    )
    await create_app_password(ada, password=taken)
    environment = with_random_bytes(ada.environment, *contents)
    ctx = replace(client_context(ada), environment=environment)
    created = await app_passwords.create_app_password(ctx, None, NewAppPassword("Laptop"))
    assert created.password == free != taken


async def test_app_password_is_not_stored_as_text(ada: GraphQLClient) -> None:
    payload = await create_app_password(ada)
    (row,) = await load_all_rows(ada.environment, ApplicationPassword)
    assert payload["password"] not in repr(row)
    assert row.password.startswith("$argon2id$")
    assert len(row.selector) == 5


async def test_one_hash_is_checked_for_any_password(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = await create_app_password(ada)
    for n in range(5):
        await create_app_password(ada, description=str(n))
    checked: list[bool] = []
    check_password = password_hashes.check_password

    async def record_check(environment: Environment, stored: str | None, password: str) -> bool:
        checked.append(stored is not None)
        return await check_password(environment, stored, password)

    monkeypatch.setattr(password_hashes, "check_password", record_check)
    for typed, expected in (
        (payload["password"], True),
        (CHOSEN_LETTERS, False),
        ("correct horse", False),
    ):
        del checked[:]
        await find_app_password(ada.environment, ada, typed)
        assert checked == [expected]


async def test_app_password_is_found_by_an_index(ada: GraphQLClient) -> None:
    await add_rows(
        ada.environment,
        ApplicationPassword,
        5000,  # of a small table PostgreSQL reads all rows
        user_id=ada.user.id,
        selector=lambda n: f"s{n}",
        active=True,
    )
    query = select(col(ApplicationPassword.id)).where(
        col(ApplicationPassword.user_id) == ada.user.id,
        col(ApplicationPassword.selector) == "abcde",
    )
    engine = ada.environment.database.engine
    sql = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
    async with ada.environment.database.write_session() as session:
        connection = await session.connection()
        if ada.environment.database.dialect == "sqlite":
            rows = await connection.execute(text(f"EXPLAIN QUERY PLAN {sql}"))
        else:
            await connection.execute(text("ANALYZE application_passwords"))
            rows = await connection.execute(text(f"EXPLAIN {sql}"))
        plan = " ".join(str(row) for row in rows)
    assert "uq_application_passwords_selector" in plan


async def test_app_password_can_be_chosen(ada: GraphQLClient) -> None:
    assert (await create_app_password(ada, password=CHOSEN_LETTERS))["password"] == CHOSEN_LETTERS
    assert await find_app_password(ada.environment, ada, CHOSEN_LETTERS)
    error_codes = await mutation_error_codes(
        ada, "appPasswordCreate", description="x", password=CHOSEN_LETTERS
    )
    assert error_codes == ["CONFLICT"]


INVALID_PASSWORDS = [
    "", "short", CHOSEN_LETTERS.upper(), f"{CHOSEN_LETTERS}a", "qwmz rtpk vbnh jdfg",
    "qwmzrtpkvbnhjdf1", "ä" * 16, "a" * 16, "abababababababab", "passwordpassword",
    "abcdefghijklmnop", "zyxwvutsrqponmlk", "aaabbbcccdddeeea", "x" * 10_000,
]  # fmt: skip


async def test_invalid_or_weak_app_password_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_PASSWORDS):
        with case as password:
            payload = await run_auth_mutation(
                ada, "appPasswordCreate", description="x", password=password
            )
            assert [(e["code"], e["path"]) for e in payload["errors"]] == [
                ("VALIDATION", ["password"])
            ]


async def test_invalid_description_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(["", "  ", "x" * 256, "a\nb", "x" * 10_000]):
        with case as description:
            payload = await run_auth_mutation(ada, "appPasswordCreate", description=description)
            assert [(e["code"], e["path"]) for e in payload["errors"]] == [
                ("VALIDATION", ["description"])
            ]


SINGLE_SCOPES = ["IMAP", "POP3", "SMTP", "SIEVE", "MAIL_READ", "MAIL", "SUBMIT"]


# for each case: the scopes of the input, and the scopes of the password
SCOPES_AND_STORED_SCOPES: list[tuple[list[str], list[str]]] = [
    (["SMTP", "IMAP", "IMAP"], ["IMAP", "SMTP"]),
    (["ALL"], ["ALL"]),
    (["IMAP", "ALL"], ["ALL"]),
    (SINGLE_SCOPES, ["ALL"]),
    (["IMAP", "POP3", "SMTP"], ["IMAP", "POP3", "SMTP"]),  # ALL includes more scopes
]


async def test_scopes_are_normalized(ada: GraphQLClient) -> None:
    for case in each_case(SCOPES_AND_STORED_SCOPES):
        with case as (scopes, expected):
            assert (await create_app_password(ada, scopes=scopes))["appPassword"][
                "scopes"
            ] == expected


async def test_empty_scopes_are_refused(ada: GraphQLClient) -> None:
    payload = await run_auth_mutation(ada, "appPasswordCreate", description="x", scopes=[])
    assert [(e["code"], e["path"]) for e in payload["errors"]] == [("VALIDATION", ["scopes"])]


def test_app_password_scopes_exclude_master() -> None:
    assert app_passwords.scopes_of_app_password(["ALL"]) == {Scope(name) for name in SINGLE_SCOPES}
    assert app_passwords.scopes_of_app_password(["MAIL"]) == {Scope.MAIL, Scope.MAIL_READ}
    assert app_passwords.scopes_of_app_password(["IMAP"]) == {Scope.IMAP}
    names = [scope.value for scope in AppPasswordScope]
    assert not {Scope.FULL, Scope.READ, Scope.SETTINGS} & app_passwords.scopes_of_app_password(
        names
    )


async def test_use_is_recorded_and_extends_expiry(ada: GraphQLClient, clock: ManualClock) -> None:
    payload = await create_app_password(ada, ttl="PT1H")
    expires_at = clock() + timedelta(hours=1)
    assert payload["appPassword"]["expiresAt"] == expires_at.isoformat().replace("+00:00", "Z")
    clock.tick(minutes=50)
    row = await find_app_password(ada.environment, ada, payload["password"])
    assert await record_use(ada, row)
    (stored_row,) = await load_all_rows(ada.environment, ApplicationPassword)
    assert (stored_row.last_used_at, stored_row.last_used_ip) == (clock(), "192.0.2.9")
    clock.tick(minutes=59)
    assert await find_app_password(ada.environment, ada, payload["password"])
    clock.tick(minutes=1)
    assert await find_app_password(ada.environment, ada, payload["password"]) is None
    assert not await record_use(ada, row)
    query = "query ($id: ID!) { node(id: $id) { id } }"
    assert (await ada(query, id=payload["appPassword"]["id"]))["node"] is None


async def test_last_use_has_time_and_event(ada: GraphQLClient, clock: ManualClock) -> None:
    payload = await create_app_password(ada)
    await record_use(ada, await find_app_password(ada.environment, ada, payload["password"]))
    query = "{ user { appPasswords { nodes { lastUse { at event { action } } } } } }"
    (app_password,) = (await ada(query))["user"]["appPasswords"]["nodes"]
    used_at = clock().isoformat().replace("+00:00", "Z")
    assert app_password == {"lastUse": {"at": used_at, "event": None}}

    sign_in = """mutation ($password: String!) { passwordVerify(input: {
        username: "ada", password: $password, scope: IMAP}) { errors { code } } }"""
    response = await ada(sign_in, password=payload["password"])
    assert response["passwordVerify"]["errors"] == []
    (app_password,) = (await ada(query))["user"]["appPasswords"]["nodes"]
    assert app_password == {"lastUse": {"at": used_at, "event": {"action": "SIGN_IN_ATTEMPTED"}}}


async def test_housekeeping_deletes_expired_app_passwords(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    from mail.maintenance.housekeeping import run_housekeeping_round

    await create_app_password(ada, ttl="PT1H")
    await create_app_password(ada)
    clock.tick(hours=1)
    assert (await run_housekeeping_round(ada.environment)).app_passwords == 1
    assert len(await load_all_rows(ada.environment, ApplicationPassword)) == 1


@pytest.mark.parametrize("ttl", ["PT0S", "PT59S", "P3651D", "P999999D"])
async def test_ttl_out_of_range_is_refused(ada: GraphQLClient, ttl: str) -> None:
    payload = await run_auth_mutation(ada, "appPasswordCreate", description="x", ttl=ttl)
    assert [(e["code"], e["path"]) for e in payload["errors"]] == [("VALIDATION", ["ttl"])]


async def list_app_passwords(client: GraphQLClient, **arguments: Any) -> tuple[list[str], Any]:
    """Return the descriptions of a page and the page."""
    page = (await client(LIST_QUERY, **arguments))["user"]["appPasswords"]
    return [node["description"] for node in page["nodes"]], page


async def test_app_password_list_is_filtered(ada: GraphQLClient) -> None:
    await create_app_password(ada, description="stays")
    await create_app_password(ada, description="ends", ttl="P1D")
    await create_app_password(ada, description="off", active=False)
    for conditions, expected in (
        (None, ["off", "ends", "stays"]),
        ({"hasTtl": True}, ["ends"]),
        ({"hasTtl": False}, ["off", "stays"]),
        ({"active": True}, ["ends", "stays"]),
        ({"active": False}, ["off"]),
        ({"active": True, "hasTtl": False}, ["stays"]),
    ):
        names, page = await list_app_passwords(ada, filter=conditions)
        assert (names, page["totalCount"]) == (expected, len(expected))
    answer = await ada.execute(LIST_QUERY, filter={})
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_app_password_list_is_paged_in_both_directions(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for number in range(5):
        await create_app_password(ada, description=f"p{number}")
        clock.tick(seconds=number % 2)  # some have the same time
    names, page = await list_app_passwords(ada, first=2)
    assert (names, page["totalCount"]) == (["p4", "p3"], 5)
    names, page = await list_app_passwords(ada, first=2, after=page["pageInfo"]["endCursor"])
    assert (names, page["pageInfo"]["hasNextPage"]) == (["p2", "p1"], True)
    names, page = await list_app_passwords(ada, first=2, after=page["pageInfo"]["endCursor"])
    assert (names, page["pageInfo"]["hasNextPage"]) == (["p0"], False)
    names, page = await list_app_passwords(ada, last=3)
    assert (names, page["pageInfo"]["hasPreviousPage"]) == (["p2", "p1", "p0"], True)
    names, page = await list_app_passwords(ada, last=3, before=page["pageInfo"]["startCursor"])
    assert (names, page["pageInfo"]["hasPreviousPage"]) == (["p4", "p3"], False)
    cursor = page["pageInfo"]["endCursor"]
    answer = await ada.execute(LIST_QUERY, first=1, after=cursor, filter={"active": True})
    assert answer["errors"][0]["extensions"]["code"] == "BAD_CURSOR"


async def test_number_of_app_passwords_is_limited(ada: GraphQLClient, clock: ManualClock) -> None:
    async with ada.environment.write_session() as session:
        session.add_all(
            ApplicationPassword(
                id=ada.environment.new_id(),
                user_id=ada.user.id,
                description="x",
                selector=f"{n:05x}",
                password="x",  # noqa: S106
                scopes=["ALL"],
                created_at=clock(),
                expires_at=clock() + timedelta(hours=1) if n < 2 else None,
            )
            for n in range(49)
        )
    new_password = NewAppPassword("Phone")

    async def try_create() -> bool:
        try:
            await app_passwords.create_app_password(client_context(ada), None, new_password)
        except LimitReached as refusal:
            return (refusal.limit, refusal.used) != (50, 50)
        return True

    assert sum(await asyncio.gather(*(try_create() for _ in range(4)))) == 1
    clock.tick(hours=1)
    assert [await try_create(), await try_create(), await try_create()] == [True, True, False]


async def test_app_password_is_updated(ada: GraphQLClient) -> None:
    payload = await create_app_password(ada)
    password_id, password = payload["appPassword"]["id"], payload["password"]
    payload_fields = "appPasswords { description scopes active updatedAt }"
    patch = {"description": "Tablet", "scopes": ["IMAP"], "active": False}
    arguments = {"appPasswords": [{"id": password_id}], "set": patch}
    (updated,) = (await run_auth_mutation(ada, "appPasswordUpdate", payload_fields, **arguments))[
        "appPasswords"
    ]
    assert updated["updatedAt"]
    assert (updated["description"], updated["scopes"], updated["active"]) == (
        "Tablet",
        ["IMAP"],
        False,
    )
    assert await find_app_password(ada.environment, ada, password) is None
    assert (
        await mutation_error_codes(
            ada, "appPasswordUpdate", appPasswords=[{"id": password_id}], set={"active": True}
        )
        == []
    )
    assert await find_app_password(ada.environment, ada, password)
    assert await mutation_error_codes(
        ada, "appPasswordUpdate", appPasswords=[{"id": password_id}], set={}
    ) == ["VALIDATION"]
    assert await mutation_error_codes(
        ada, "appPasswordUpdate", appPasswords=[{"id": "app_x"}], set={"active": True}
    ) == ["VALIDATION"]


async def test_app_password_deactivated_after_lookup_is_not_used(ada: GraphQLClient) -> None:
    payload = await create_app_password(ada)
    row = await find_app_password(ada.environment, ada, payload["password"])
    await app_passwords.update_app_passwords(
        client_context(ada), [row.id], AppPasswordChanges(active=False)
    )
    assert not await record_use(ada, row)


async def test_security_log_keeps_description_of_deleted_app_password(ada: GraphQLClient) -> None:
    payload = await create_app_password(ada, description="Old phone")
    password_id = payload["appPassword"]["id"]
    assert (
        await run_auth_mutation(
            ada, "appPasswordDelete", "deletedIds", appPasswords=[{"id": password_id}]
        )
    )["deletedIds"] == [password_id]
    assert await mutation_error_codes(
        ada, "appPasswordDelete", appPasswords=[{"id": password_id}]
    ) == ["NOT_FOUND"]
    events = {row.action: row.detail for row in await load_all_rows(ada.environment, SecurityEvent)}
    for action in ("APP_PASSWORD_CREATED", "APP_PASSWORD_DELETED"):
        assert events[action]["description"] == "Old phone"


async def test_generated_app_passwords_use_letters_evenly(ada: GraphQLClient) -> None:
    letters = "".join(
        app_password_validation.generate_password(ada.environment) for _ in range(2000)
    )
    counts = [letters.count(letter) for letter in app_password_validation.LETTERS]
    mean = len(letters) / 26
    assert sum((count - mean) ** 2 / mean for count in counts) < 60  # chi², p < 0.0001


async def test_app_password_lookup_runs_one_statement(
    ada: GraphQLClient, statements: list[str]
) -> None:
    payload = await create_app_password(ada)
    del statements[:]
    await find_app_password(ada.environment, ada, payload["password"])
    assert len(statements) == 1


async def test_repeated_create_returns_password_only_once(ada: GraphQLClient) -> None:
    arguments = {"description": "x", "options": {"idempotencyKey": "once"}}
    first = await run_auth_mutation(
        ada, "appPasswordCreate", f"password {SHOWN_FIELDS}", **arguments
    )
    repeated = await run_auth_mutation(
        ada, "appPasswordCreate", f"password {SHOWN_FIELDS}", **arguments
    )
    assert repeated["appPassword"]["id"] == first["appPassword"]["id"]
    assert (bool(first["password"]), repeated["password"]) == (True, None)


def test_visible_columns_exclude_password() -> None:
    columns = {column.name for column in core_table(ApplicationPassword).c}
    assert columns - app_passwords.VISIBLE_COLUMNS == {"password", "selector"}


IMPORT = """mutation ($input: AppPasswordCreateInput!) { appPasswordCreate(input: $input) {
  password appPassword { scopes maker } errors { code path } } }"""


async def import_hash(client: GraphQLClient, username: str, letters: str, **fields: Any) -> Any:
    password_hash = bcrypt.hashpw(letters.encode(), bcrypt.gensalt(4)).decode()
    input_: dict[str, Any] = {
        "user": {"username": username},
        "description": letters,
        "password": password_hash,
    }
    input_ |= {"hashedPassword": True, "scopes": ["SMTP"], **fields}
    return (await client(IMPORT, input=input_))["appPasswordCreate"]


async def test_root_key_imports_hashes_of_app_passwords(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    created = await create_app_password(ada)
    for letters in (CHOSEN_LETTERS, CHOSEN_LETTERS[::-1]):
        payload = await import_hash(root, "ada", letters)
        shown = {"scopes": ["SMTP"], "maker": None}
        assert payload == {"password": None, "appPassword": shown, "errors": []}
    for letters in (CHOSEN_LETTERS, CHOSEN_LETTERS[::-1].upper(), created["password"]):
        row = await find_app_password(ada.environment, ada, letters)
        assert row is not None
        assert await record_use(ada, row)
    assert await find_app_password(ada.environment, ada, "abcdefghijklmnop") is None


async def test_only_root_imports_hashes(root: GraphQLClient, ada: GraphQLClient) -> None:
    forbidden = [{"code": "FORBIDDEN", "path": ["hashedPassword"]}]
    assert (await import_hash(ada, "ada", CHOSEN_LETTERS))["errors"] == forbidden
    profile = await import_hash(root, "ada", CHOSEN_LETTERS, generateMobileconfig=True)
    assert profile["errors"][0]["code"] == "VALIDATION"
    for wrong in ({"password": CHOSEN_LETTERS}, {"password": None}):
        payload = await import_hash(root, "ada", CHOSEN_LETTERS, **wrong)
        assert payload["errors"] == [{"code": "VALIDATION", "path": ["password"]}]
    assert await load_all_rows(ada.environment, ApplicationPassword) == []


@pytest.mark.usefixtures("ada")
async def test_number_of_imported_hashes_is_limited(root: GraphQLClient) -> None:
    for number in range(10):
        payload = await import_hash(root, "ada", CHOSEN_LETTERS[number:] + "z" * number)
        assert payload["errors"] == []
    payload = await import_hash(root, "ada", CHOSEN_LETTERS)
    assert payload["errors"] == [{"code": "LIMIT_REACHED", "path": ["user"]}]
