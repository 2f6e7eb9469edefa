"""Codes by time: RFC 6238, and who turns them on and off."""
# ruff: noqa: S106 - the tokens are codes of tests
# ruff: noqa: RUF001 - digits of other scripts are what is tried

import asyncio
import base64
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyotp
import pytest

from models.admin.admin_log import AdminLogEntry
from models.auth.second_factors import TotpSecret
from models.auth.security_log import SecurityEvent
from models.errors import (
    AuthenticationFailed,
    Forbidden,
    NotFound,
    RateLimited,
    RequestError,
    Unauthenticated,
)
from models.users.roles import Role
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors import totp
from resolvers.auth.second_factors.second_factor_check import (
    SecondFactorProof,
    TwoFactorMethod,
    check_second_factor,
)
from resolvers.context import Context, Viewer
from tests.conftest import Client, Clock, context, make_client, make_user
from tests.support.accounts.authenticators import code_of, seed_of, totp_on
from tests.support.accounts.two_factor_operations import (
    USER,
    admin_of,
    all_of,
    ask,
    codes,
    row_of,
    token_of,
    viewer_of,
    waiting,
)

SHORT = "GEZD GNBV GY3T QOJQ"  # 80 bits: "1234567890"


async def test_a_setup_shows_the_seed_in_three_forms(ada: Client) -> None:
    shown = await ask(ada, "totpSetup", "seed otpauthUrl qrCode", label="Ada L", issuer="Pond & Co")
    url = urlsplit(shown["otpauthUrl"])
    assert (url.scheme, url.netloc, unquote(url.path)) == ("otpauth", "totp", "/Pond & Co:Ada L")
    assert parse_qs(url.query) == {"secret": [shown["seed"]], "issuer": ["Pond & Co"]}
    assert len(base64.b32decode(shown["seed"])) == totp.SECRET_SIZE
    kind, _, picture = shown["qrCode"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    plain = await ask(ada, "totpSetup", "otpauthUrl")
    assert unquote(urlsplit(plain["otpauthUrl"]).path) == "/Merganser:ada"


async def test_the_longest_names_fit_into_the_picture(ada: Client) -> None:
    shown = await ask(ada, "totpSetup", "qrCode", label="\U0001f986" * 64, issuer="𝕄" * 64)
    assert shown["errors"] == []


@pytest.mark.parametrize("name", ["label", "issuer"])
@pytest.mark.parametrize("text", ["a" * 65, "a:b", "a\x7fb", "a\nb", "x" * 10_000])
async def test_a_bad_name_is_refused(ada: Client, name: str, text: str) -> None:
    done = await ask(ada, "totpSetup", **{name: text})
    assert [(e["code"], e["path"]) for e in done["errors"]] == [("VALIDATION", [name])]


async def test_a_seed_is_sealed_in_the_store(ada: Client) -> None:
    seed = await seed_of(ada)
    (row,) = await all_of(ada.world, TotpSecret)
    assert seed not in row.pending
    assert ada.world.secret_box.decrypt(row.pending, f"totp:{ada.user.id}") == seed


async def test_a_factor_is_on_once_the_seed_is_proved(ada: Client) -> None:
    seed = await seed_of(ada)
    assert (await row_of(ada.world, ada.user.id)).second_factors == []
    done = await ask(ada, "totpEnable", f"recoveryCodes {USER}", token=code_of(ada.world, seed))
    assert done["user"]["enabled2fa"] == ["TOTP"]
    assert len(set(done["recoveryCodes"])) == 10
    assert await codes(ada, "totpSetup") == ["CONFLICT"]
    assert await codes(ada, "totpEnable", token=code_of(ada.world, seed)) == ["CONFLICT"]


async def test_a_wrong_code_proves_nothing(ada: Client) -> None:
    seed = await seed_of(ada)
    for wrong in (
        code_of(ada.world, seed, 2),
        code_of(ada.world, seed, -2),
        "",
        "12345",
        "１２３４５６",
    ):
        assert await codes(ada, "totpEnable", token=wrong) == ["AUTHENTICATION_FAILED"]
    assert (await row_of(ada.world, ada.user.id)).second_factors == []


@pytest.mark.parametrize(("hours", "found"), [(5.99, []), (6, ["CONFLICT"])])
async def test_a_seed_waits_six_hours(
    ada: Client, clock: Clock, hours: float, found: list[str]
) -> None:
    seed = await seed_of(ada)
    clock.tick(hours=hours)
    assert await codes(ada, "totpEnable", token=code_of(ada.world, seed)) == found


async def test_only_the_last_seed_shown_can_be_proved(ada: Client) -> None:
    assert await codes(ada, "totpEnable", token="123456") == ["CONFLICT"]
    first, second = await seed_of(ada), await seed_of(ada)
    assert await codes(ada, "totpEnable", token=code_of(ada.world, first)) == [
        "AUTHENTICATION_FAILED"
    ]
    assert await codes(ada, "totpEnable", token=code_of(ada.world, second)) == []


async def test_turning_it_on_ends_all_sign_ins_but_the_one_that_does_it(ada: Client) -> None:
    mine, other = await token_of(ada, "mine"), await token_of(ada, "other")
    assert await viewer_of(mine)
    assert await viewer_of(other)
    await totp_on(mine)
    assert await viewer_of(mine)
    assert await viewer_of(other) is None


async def test_turning_it_off_ends_none(ada: Client) -> None:
    mine = await token_of(ada, "mine")
    seed, _ = await totp_on(mine)
    other = await token_of(ada, "other")
    proof = {"totp": code_of(ada.world, seed, 1)}
    assert await codes(mine, "totpDisable", proof=proof) == []
    assert await viewer_of(mine)
    assert await viewer_of(other)


@pytest.mark.parametrize("steps", [-2, -1, 0, 1, 2])
async def test_a_clock_may_be_wrong_by_one_step_and_no_more(
    ada: Client, clock: Clock, steps: int
) -> None:
    seed, _ = await totp_on(ada)
    clock.tick(minutes=5)
    done = await ask(ada, "totpCheck", "valid", token=code_of(ada.world, seed, steps))
    assert done["valid"] is (abs(steps) <= 1)
    assert [e["code"] for e in done["errors"]] == (
        [] if abs(steps) <= 1 else ["AUTHENTICATION_FAILED"]
    )


@pytest.mark.parametrize("late", [0, 1, 29, 30, 59])
async def test_a_code_is_good_until_the_end_of_the_next_step(
    ada: Client, clock: Clock, late: int
) -> None:
    seed, _ = await totp_on(ada)
    clock.tick(minutes=5)
    code = code_of(ada.world, seed)
    clock.tick(seconds=late)
    assert await codes(ada, "totpCheck", token=code) == []


async def test_a_code_works_once_and_takes_those_before_with_it(ada: Client, clock: Clock) -> None:
    seed, _ = await totp_on(ada)
    assert await codes(ada, "totpCheck", token=code_of(ada.world, seed)) == [
        "AUTHENTICATION_FAILED"  # it has turned the factor on
    ]
    clock.tick(minutes=5)
    spaced = f" {code_of(ada.world, seed)[:3]} {code_of(ada.world, seed)[3:]} "
    assert await codes(ada, "totpCheck", token=spaced) == []
    for steps in (0, -1):
        failed = await codes(ada, "totpCheck", token=code_of(ada.world, seed, steps))
        assert failed == ["AUTHENTICATION_FAILED"]
    assert await codes(ada, "totpCheck", token=code_of(ada.world, seed, 1)) == []


async def test_of_one_code_shown_many_times_at_once_one_counts(ada: Client, clock: Clock) -> None:
    seed, _ = await totp_on(ada)
    clock.tick(minutes=5)
    code = code_of(ada.world, seed)
    user = await row_of(ada.world, ada.user.id)

    async def tried() -> Any:
        try:
            return await check_second_factor(context(ada), user, SecondFactorProof(totp=code))
        except AuthenticationFailed:
            return None

    came = await asyncio.gather(*(tried() for _ in range(8)))
    assert sorted(came, key=str) == [None] * 7 + [TwoFactorMethod.TOTP]


async def test_failures_are_counted_by_a_key_of_their_own(ada: Client, clock: Clock) -> None:
    seed, _ = await totp_on(ada)
    clock.tick(minutes=5)
    for _ in range(12):
        assert await codes(ada, "totpCheck", token="000000") == ["AUTHENTICATION_FAILED"]
    right = code_of(ada.world, seed)
    assert await codes(ada, "totpCheck", token=right) == ["RATE_LIMITED"]
    bob = await make_client(ada.world, ada.http, "bert")
    await totp_on(bob)  # nobody else waits
    clock.tick(seconds=121)
    assert await codes(ada, "totpCheck", token=code_of(ada.world, seed)) == []


async def test_of_guesses_made_at_once_no_more_count_than_of_others(
    ada: Client, clock: Clock
) -> None:
    await totp_on(ada)
    clock.tick(minutes=5)
    user = await row_of(ada.world, ada.user.id)

    async def tried() -> type[RequestError]:
        with pytest.raises(RequestError) as refusal:
            await check_second_factor(context(ada), user, SecondFactorProof(totp="000000"))
        return type(refusal.value)

    came = await asyncio.gather(*(tried() for _ in range(30)))
    assert came.count(AuthenticationFailed) <= 12
    with pytest.raises(RateLimited):
        await check_second_factor(context(ada), user, SecondFactorProof(totp="000000"))


@pytest.mark.parametrize("code", ["", "0", "x" * 10_000, "-00001", "1e5   ", "٠" * 6])
async def test_what_is_no_code_is_a_wrong_one(ada: Client, code: str) -> None:
    await totp_on(ada)
    assert await codes(ada, "totpCheck", token=code) == ["AUTHENTICATION_FAILED"]


async def test_a_check_takes_no_part_in_anything_else(ada: Client) -> None:
    seed, _ = await totp_on(ada)
    code = code_of(ada.world, seed, 1)
    options = {"idempotencyKey": "x"}
    assert await codes(ada, "totpCheck", token=code, options=options) == ["VALIDATION"]
    assert await codes(ada, "totpCheck", token=code) == []


# ---------------------------------------------------------------- sign-ins that wait


async def test_a_sign_in_that_waits_is_complete_with_a_code(ada: Client, clock: Clock) -> None:
    from models.auth.credentials import AccessToken

    seed, _ = await totp_on(ada)
    clock.tick(minutes=5)
    ctx = await waiting(ada)
    with pytest.raises(AuthenticationFailed):
        await second_factors_mutations.prove_second_factor(
            ctx, None, SecondFactorProof(totp="000000")
        )
    (token,) = await all_of(ada.world, AccessToken)
    assert token.pending
    assert (
        await second_factors_mutations.prove_second_factor(
            ctx, None, SecondFactorProof(totp=code_of(ada.world, seed))
        )
        == ada.user.id
    )
    (token,) = await all_of(ada.world, AccessToken)
    assert not token.pending


async def test_a_sign_in_that_waits_is_nobody_elses(ada: Client, bob: Client) -> None:
    seed, _ = await totp_on(ada)
    await totp_on(bob)
    ctx = await waiting(bob)
    for key in (ada.user.id, 7):
        with pytest.raises(NotFound):
            await second_factors_mutations.prove_second_factor(
                ctx, key, SecondFactorProof(totp=code_of(ada.world, seed, 1))
            )
    with pytest.raises(AuthenticationFailed):
        await second_factors_mutations.prove_second_factor(
            ctx, None, SecondFactorProof(totp=code_of(ada.world, seed, 1))
        )


async def test_strangers_learn_nothing(ada: Client) -> None:
    await totp_on(ada)
    ctx = Context(ada.world, Viewer())
    for key in (None, ada.user.id, 7):
        with pytest.raises(Unauthenticated):
            await second_factors_mutations.prove_second_factor(
                ctx, key, SecondFactorProof(totp="000000")
            )
    for user in ({"username": "ada"}, {"username": "nobody"}, {"address": "ada@example.org"}):
        text = 'mutation ($u: UserRef) { totpCheck(input: {user: $u, token: "1"}) { valid } }'
        asked = {"query": text, "variables": {"u": user}}
        (error,) = (await ada.http.post("/graphql", json=asked)).json()["errors"]
        assert error["extensions"]["code"] == "UNAUTHENTICATED"


# ---------------------------------------------------------------- who may


async def test_the_own_factor_is_turned_off_with_a_proof_and_no_other_way(ada: Client) -> None:
    seed, recovery = await totp_on(ada)
    nothing: dict[str, Any] = {"webauthn": {}}
    for name in ("totpDisable", "twoFactorDisable"):
        for proof in (None, {}, {"totp": "000000"}, nothing):
            given = {"proof": proof, "options": {"reason": "because"}}
            assert await codes(ada, name, **given) == ["AUTHENTICATION_FAILED"]
    assert (await row_of(ada.world, ada.user.id)).second_factors == ["TOTP"]
    done = await ask(ada, "totpDisable", USER, proof={"totp": recovery[0]})
    assert done["user"]["enabled2fa"] == []
    assert await all_of(ada.world, TotpSecret) == []
    assert await codes(ada, "totpDisable") == ["CONFLICT"]
    assert await codes(ada, "totpCheck", token=code_of(ada.world, seed, 1)) == ["CONFLICT"]


async def test_an_administrator_says_why(ada: Client, root: Client) -> None:
    for name in ("totpDisable", "twoFactorDisable"):
        await totp_on(ada)
        user = {"id": (await ada("{ user { id } }"))["user"]["id"]}
        done = await ask(root, name, user=user)
        assert [(e["code"], e["path"]) for e in done["errors"]] == [
            ("VALIDATION", ["options", "reason"])
        ]
        done = await ask(root, name, USER, user=user, options={"reason": "lost his phone"})
        assert done["user"] == {"username": "ada", "enabled2fa": []}
        entry = (await all_of(ada.world, AdminLogEntry))[-1]
        assert (entry.mutation, entry.target_id) == (name, ada.user.id)
        assert (entry.before, entry.after) == ({"enabled2fa": ["TOTP"]}, {"enabled2fa": []})
        assert entry.reason == "lost his phone"
        ada.world.clock.read.tick(minutes=5)  # type: ignore[attr-defined]
    events = {(row.action, row.result) for row in await all_of(ada.world, SecurityEvent)}
    assert {("totp setup", "success"), ("totp enable", "success")} <= events
    assert {("totp disable", "success"), ("2fa disable", "success")} <= events
    by = {row.by for row in await all_of(ada.world, SecurityEvent) if row.action == "totp disable"}
    assert by != {None}


async def test_a_front_end_may_pass_on_the_proof_of_a_user(ada: Client, root: Client) -> None:
    seed, _ = await totp_on(ada)
    user = {"username": "ada"}
    proof = {"totp": code_of(ada.world, seed, 1)}
    assert await codes(root, "totpDisable", user=user, proof=proof) == []


@pytest.mark.parametrize("name", ["totpDisable", "twoFactorDisable", "customTwoFactorDisable"])
async def test_an_unknown_account_is_not_found(root: Client, name: str) -> None:
    for user in ({"username": "nobody"}, {"address": "nobody@example.org"}):
        given = {"user": user, "options": {"reason": "because"}}
        assert await codes(root, name, **given) == ["NOT_FOUND"]


async def test_others_see_and_change_nothing(ada: Client, bob: Client) -> None:
    seed, _ = await totp_on(ada)
    key = (await ada("{ user { id } }"))["user"]["id"]
    proof = {"totp": code_of(ada.world, seed, 1)}
    reason = {"reason": "because"}
    for user in ({"id": key}, {"username": "ada"}, {"address": "ada@example.org"}):
        for name, given in (
            ("totpSetup", {}),
            ("totpEnable", {"token": "000000"}),
            ("totpCheck", {"token": code_of(ada.world, seed, 1)}),
            ("totpDisable", {"proof": proof}),
            ("twoFactorDisable", {"options": reason}),
        ):
            assert await codes(bob, name, user=user, **given) == ["NOT_FOUND"], name
    assert (await row_of(ada.world, ada.user.id)).second_factors == ["TOTP"]
    await make_user(ada.world, "zoe")
    other = await admin_of(bob, domain="elsewhere.example")
    for work in (
        second_factors_mutations.set_up_totp(other, ada.user.id, None, None),
        second_factors_mutations.disable_totp(other, ada.user.id, SecondFactorProof()),
        second_factors_mutations.disable_all_factors(other, ada.user.id, SecondFactorProof()),
        second_factors_mutations.enable_custom_factor(other, ada.user.id),
        second_factors_mutations.prove_second_factor(
            other, ada.user.id, SecondFactorProof(totp="000000")
        ),
        second_factors_mutations.create_webauthn_challenge(other, ada.user.id, None),
    ):
        with pytest.raises(NotFound):
            await work
    assert await second_factors_mutations.load_enabled_factors(other, [ada.user.id]) == [[]]
    theirs = await admin_of(bob)
    theirs.reason = "lost"
    assert (
        await second_factors_mutations.disable_all_factors(theirs, ada.user.id, SecondFactorProof())
        == ada.user.id
    )


async def test_an_administrator_of_a_domain_touches_no_administrator(
    ada: Client, bob: Client
) -> None:
    boss = await make_client(ada.world, ada.http, "boss", role=Role.ADMIN)
    await totp_on(boss)
    ctx = await admin_of(bob)
    ctx.reason = "because"
    with pytest.raises(Forbidden):
        await second_factors_mutations.disable_all_factors(ctx, boss.user.id, SecondFactorProof())
    assert (await row_of(ada.world, boss.user.id)).second_factors == ["TOTP"]


async def test_who_has_a_factor_adds_another_only_with_a_proof(ada: Client, root: Client) -> None:
    await ask(root, "customTwoFactorEnable", user={"username": "ada"})
    seed = await seed_of(ada)
    assert await codes(ada, "totpEnable", token=code_of(ada.world, seed)) == ["FORBIDDEN"]
    given = {"user": {"username": "ada"}, "token": code_of(ada.world, seed)}
    assert await codes(root, "totpEnable", **given) == []
    assert (await row_of(ada.world, ada.user.id)).second_factors == ["TOTP", "CUSTOM"]


# ---------------------------------------------------------------- seeds from elsewhere


async def test_a_short_seed_from_another_system_works(
    ada: Client, root: Client, clock: Clock
) -> None:
    with pytest.raises(ValueError, match="112"):
        pyotp.TOTP(SHORT.replace(" ", "")).now()
    done = await ask(root, "totpImport", USER, user={"username": "ada"}, seed=SHORT.lower())
    assert done["user"]["enabled2fa"] == ["TOTP"]
    clock.time = clock.time.fromtimestamp(59, clock.time.tzinfo)
    assert await codes(ada, "totpCheck", token=totp.code_at(b"1234567890", 1)) == []
    again = await codes(root, "totpImport", user={"username": "ada"}, seed=SHORT)
    assert again == ["CONFLICT"]


async def test_an_import_ends_sign_ins_too(ada: Client, root: Client) -> None:
    one = await token_of(ada)
    await ask(root, "totpImport", user={"username": "ada"}, seed=SHORT)
    assert await viewer_of(one) is None


@pytest.mark.parametrize("seed", ["", "x", "GEZDGNBV", "0189", "A" * 300, "ä" * 16, "A" * 10_000])
@pytest.mark.usefixtures("ada")
async def test_a_bad_seed_is_refused(root: Client, seed: str) -> None:
    done = await ask(root, "totpImport", user={"username": "ada"}, seed=seed)
    assert [(e["code"], e["path"]) for e in done["errors"]] == [("VALIDATION", ["seed"])]


async def test_only_an_admin_imports(ada: Client) -> None:
    given = {"user": {"username": "ada"}, "seed": SHORT}
    assert await codes(ada, "totpImport", **given) == ["FORBIDDEN"]


# ---------------------------------------------------------------- custom


async def test_a_factor_that_an_application_checks(ada: Client, root: Client) -> None:
    user = {"username": "ada"}
    one = await token_of(ada)
    done = await ask(root, "customTwoFactorEnable", USER, user=user)
    assert done["user"]["enabled2fa"] == ["CUSTOM"]
    assert await viewer_of(one) is None
    assert await codes(root, "customTwoFactorEnable", user=user) == ["CONFLICT"]
    assert await codes(ada, "twoFactorDisable") == ["FORBIDDEN"]
    assert await codes(ada, "totpCheck", token="000000") == ["AUTHENTICATION_FAILED"]
    assert await codes(root, "customTwoFactorDisable", user=user) == ["VALIDATION"]
    reason = {"reason": "moved on"}
    done = await ask(root, "customTwoFactorDisable", USER, user=user, options=reason)
    assert done["user"]["enabled2fa"] == []
    again = await codes(root, "customTwoFactorDisable", user=user, options=reason)
    assert again == ["CONFLICT"]
    assert await codes(ada, "customTwoFactorEnable") == ["FORBIDDEN"]


async def test_factors_are_listed_with_their_times(ada: Client, clock: Clock) -> None:
    text = "{ user { enabled2fa twoFactors { method createdAt lastUsedAt } } }"
    seed, _ = await totp_on(ada)
    at = clock().isoformat().replace("+00:00", "Z")
    (found,) = (await ada(text))["user"]["twoFactors"]
    assert found == {"method": "TOTP", "createdAt": at, "lastUsedAt": at}
    clock.tick(minutes=5)
    await ask(ada, "totpCheck", token=code_of(ada.world, seed))
    later = clock().isoformat().replace("+00:00", "Z")
    (found,) = (await ada(text))["user"]["twoFactors"]
    assert found == {"method": "TOTP", "createdAt": at, "lastUsedAt": later}


async def test_two_proofs_of_one_seed_at_once_turn_it_on_once(ada: Client) -> None:
    seed = await seed_of(ada)
    code = code_of(ada.world, seed)

    async def tried() -> bool:
        try:
            await second_factors_mutations.enable_totp(context(ada), None, code)
        except RequestError:
            return False
        return True

    assert sum(await asyncio.gather(*(tried() for _ in range(5)))) == 1
    row = await row_of(ada.world, ada.user.id)
    assert (row.second_factors, row.auth_version) == (["TOTP"], 2)


async def test_seeds_nobody_proved_are_tidied_away(ada: Client, bob: Client, clock: Clock) -> None:
    from mail.maintenance.housekeeping import run_round

    await seed_of(ada)
    await totp_on(bob)
    clock.tick(hours=6)
    assert (await run_round(ada.world)).seeds == 1
    (left,) = await all_of(ada.world, TotpSecret)
    assert left.user_id == bob.user.id
