"""TOTP (RFC 6238): setup, checks, import and removal."""
# ruff: noqa: S106 - the tokens are codes of tests
# ruff: noqa: RUF001 - the tests use digits of other scripts

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
    verify_and_use_up_second_factor,
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

SHORT_BASE32 = "GEZD GNBV GY3T QOJQ"  # 80 bits: "1234567890"


async def test_setup_returns_secret_as_text_url_and_qr_code(ada: Client) -> None:
    setup = await ask(ada, "totpSetup", "seed otpauthUrl qrCode", label="Ada L", issuer="Pond & Co")
    url = urlsplit(setup["otpauthUrl"])
    assert (url.scheme, url.netloc, unquote(url.path)) == ("otpauth", "totp", "/Pond & Co:Ada L")
    assert parse_qs(url.query) == {"secret": [setup["seed"]], "issuer": ["Pond & Co"]}
    assert len(base64.b32decode(setup["seed"])) == totp.SECRET_SIZE
    media_type, _, image = setup["qrCode"].partition(",")
    assert media_type == "data:image/png;base64"
    assert base64.b64decode(image).startswith(b"\x89PNG")
    default_setup = await ask(ada, "totpSetup", "otpauthUrl")
    assert unquote(urlsplit(default_setup["otpauthUrl"]).path) == "/Merganser:ada"


async def test_longest_label_and_issuer_fit_into_qr_code(ada: Client) -> None:
    setup = await ask(ada, "totpSetup", "qrCode", label="\U0001f986" * 64, issuer="𝕄" * 64)
    assert setup["errors"] == []


@pytest.mark.parametrize("name", ["label", "issuer"])
@pytest.mark.parametrize("text", ["a" * 65, "a:b", "a\x7fb", "a\nb", "x" * 10_000])
async def test_invalid_label_or_issuer_is_refused(ada: Client, name: str, text: str) -> None:
    payload = await ask(ada, "totpSetup", **{name: text})
    assert [(e["code"], e["path"]) for e in payload["errors"]] == [("VALIDATION", [name])]


async def test_totp_secret_is_stored_encrypted(ada: Client) -> None:
    secret = await seed_of(ada)
    (row,) = await all_of(ada.world, TotpSecret)
    assert secret not in row.pending
    assert ada.world.secret_box.decrypt(row.pending, f"totp:{ada.user.id}") == secret


async def test_totp_is_enabled_by_a_valid_code(ada: Client) -> None:
    secret = await seed_of(ada)
    assert (await row_of(ada.world, ada.user.id)).second_factors == []
    payload = await ask(
        ada, "totpEnable", f"recoveryCodes {USER}", token=code_of(ada.world, secret)
    )
    assert payload["user"]["enabled2fa"] == ["TOTP"]
    assert len(set(payload["recoveryCodes"])) == 10
    assert await codes(ada, "totpSetup") == ["CONFLICT"]
    assert await codes(ada, "totpEnable", token=code_of(ada.world, secret)) == ["CONFLICT"]


async def test_wrong_code_does_not_enable_totp(ada: Client) -> None:
    secret = await seed_of(ada)
    for wrong_code in (
        code_of(ada.world, secret, 2),
        code_of(ada.world, secret, -2),
        "",
        "12345",
        "１２３４５６",
    ):
        assert await codes(ada, "totpEnable", token=wrong_code) == ["AUTHENTICATION_FAILED"]
    assert (await row_of(ada.world, ada.user.id)).second_factors == []


@pytest.mark.parametrize(("hours", "expected_codes"), [(5.99, []), (6, ["CONFLICT"])])
async def test_unconfirmed_totp_secret_expires_after_six_hours(
    ada: Client, clock: Clock, hours: float, expected_codes: list[str]
) -> None:
    secret = await seed_of(ada)
    clock.tick(hours=hours)
    assert await codes(ada, "totpEnable", token=code_of(ada.world, secret)) == expected_codes


async def test_only_latest_totp_secret_can_be_confirmed(ada: Client) -> None:
    assert await codes(ada, "totpEnable", token="123456") == ["CONFLICT"]
    first, second = await seed_of(ada), await seed_of(ada)
    assert await codes(ada, "totpEnable", token=code_of(ada.world, first)) == [
        "AUTHENTICATION_FAILED"
    ]
    assert await codes(ada, "totpEnable", token=code_of(ada.world, second)) == []


async def test_enabling_totp_ends_all_other_tokens(ada: Client) -> None:
    current_client, other_client = await token_of(ada, "mine"), await token_of(ada, "other")
    assert await viewer_of(current_client)
    assert await viewer_of(other_client)
    await totp_on(current_client)
    assert await viewer_of(current_client)
    assert await viewer_of(other_client) is None


async def test_disabling_totp_ends_no_token(ada: Client) -> None:
    current_client = await token_of(ada, "mine")
    secret, _ = await totp_on(current_client)
    other_client = await token_of(ada, "other")
    proof = {"totp": code_of(ada.world, secret, 1)}
    assert await codes(current_client, "totpDisable", proof=proof) == []
    assert await viewer_of(current_client)
    assert await viewer_of(other_client)


@pytest.mark.parametrize("steps", [-2, -1, 0, 1, 2])
async def test_totp_code_may_deviate_by_one_step(ada: Client, clock: Clock, steps: int) -> None:
    secret, _ = await totp_on(ada)
    clock.tick(minutes=5)
    payload = await ask(ada, "totpCheck", "valid", token=code_of(ada.world, secret, steps))
    assert payload["valid"] is (abs(steps) <= 1)
    assert [e["code"] for e in payload["errors"]] == (
        [] if abs(steps) <= 1 else ["AUTHENTICATION_FAILED"]
    )


@pytest.mark.parametrize("delay", [0, 1, 29, 30, 59])
async def test_totp_code_is_valid_until_end_of_next_step(
    ada: Client, clock: Clock, delay: int
) -> None:
    secret, _ = await totp_on(ada)
    clock.tick(minutes=5)
    code = code_of(ada.world, secret)
    clock.tick(seconds=delay)
    assert await codes(ada, "totpCheck", token=code) == []


async def test_used_totp_code_invalidates_itself_and_earlier_codes(
    ada: Client, clock: Clock
) -> None:
    secret, _ = await totp_on(ada)
    assert await codes(ada, "totpCheck", token=code_of(ada.world, secret)) == [
        "AUTHENTICATION_FAILED"  # the same code has enabled TOTP
    ]
    clock.tick(minutes=5)
    spaced_code = f" {code_of(ada.world, secret)[:3]} {code_of(ada.world, secret)[3:]} "
    assert await codes(ada, "totpCheck", token=spaced_code) == []
    for steps in (0, -1):
        error_codes = await codes(ada, "totpCheck", token=code_of(ada.world, secret, steps))
        assert error_codes == ["AUTHENTICATION_FAILED"]
    assert await codes(ada, "totpCheck", token=code_of(ada.world, secret, 1)) == []


async def test_concurrent_use_of_totp_code_succeeds_once(ada: Client, clock: Clock) -> None:
    secret, _ = await totp_on(ada)
    clock.tick(minutes=5)
    code = code_of(ada.world, secret)
    user = await row_of(ada.world, ada.user.id)

    async def try_code() -> Any:
        try:
            return await verify_and_use_up_second_factor(
                context(ada), user, SecondFactorProof(totp=code)
            )
        except AuthenticationFailed:
            return None

    results = await asyncio.gather(*(try_code() for _ in range(8)))
    assert sorted(results, key=str) == [None] * 7 + [TwoFactorMethod.TOTP]


async def test_totp_failures_are_counted_per_user(ada: Client, clock: Clock) -> None:
    secret, _ = await totp_on(ada)
    clock.tick(minutes=5)
    for _ in range(12):
        assert await codes(ada, "totpCheck", token="000000") == ["AUTHENTICATION_FAILED"]
    valid_code = code_of(ada.world, secret)
    assert await codes(ada, "totpCheck", token=valid_code) == ["RATE_LIMITED"]
    other_client = await make_client(ada.world, ada.http, "bert")
    await totp_on(other_client)  # other users are not throttled
    clock.tick(seconds=121)
    assert await codes(ada, "totpCheck", token=code_of(ada.world, secret)) == []


async def test_concurrent_totp_guesses_are_limited(ada: Client, clock: Clock) -> None:
    await totp_on(ada)
    clock.tick(minutes=5)
    user = await row_of(ada.world, ada.user.id)

    async def guess_code() -> type[RequestError]:
        with pytest.raises(RequestError) as refusal:
            await verify_and_use_up_second_factor(
                context(ada), user, SecondFactorProof(totp="000000")
            )
        return type(refusal.value)

    errors = await asyncio.gather(*(guess_code() for _ in range(30)))
    assert errors.count(AuthenticationFailed) <= 12
    with pytest.raises(RateLimited):
        await verify_and_use_up_second_factor(context(ada), user, SecondFactorProof(totp="000000"))


@pytest.mark.parametrize("code", ["", "0", "x" * 10_000, "-00001", "1e5   ", "٠" * 6])
async def test_malformed_totp_code_is_a_wrong_code(ada: Client, code: str) -> None:
    await totp_on(ada)
    assert await codes(ada, "totpCheck", token=code) == ["AUTHENTICATION_FAILED"]


async def test_totp_check_refuses_idempotency_key(ada: Client) -> None:
    secret, _ = await totp_on(ada)
    code = code_of(ada.world, secret, 1)
    options = {"idempotencyKey": "x"}
    assert await codes(ada, "totpCheck", token=code, options=options) == ["VALIDATION"]
    assert await codes(ada, "totpCheck", token=code) == []


async def test_totp_code_completes_pending_sign_in(ada: Client, clock: Clock) -> None:
    from models.auth.credentials import AccessToken

    secret, _ = await totp_on(ada)
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
            ctx, None, SecondFactorProof(totp=code_of(ada.world, secret))
        )
        == ada.user.id
    )
    (token,) = await all_of(ada.world, AccessToken)
    assert not token.pending


async def test_pending_sign_in_is_not_completed_by_code_of_other_user(
    ada: Client, bob: Client
) -> None:
    secret, _ = await totp_on(ada)
    await totp_on(bob)
    ctx = await waiting(bob)
    for user_id in (ada.user.id, 7):
        with pytest.raises(NotFound):
            await second_factors_mutations.prove_second_factor(
                ctx, user_id, SecondFactorProof(totp=code_of(ada.world, secret, 1))
            )
    with pytest.raises(AuthenticationFailed):
        await second_factors_mutations.prove_second_factor(
            ctx, None, SecondFactorProof(totp=code_of(ada.world, secret, 1))
        )


async def test_totp_check_without_sign_in_is_refused(ada: Client) -> None:
    await totp_on(ada)
    ctx = Context(ada.world, Viewer())
    for user_id in (None, ada.user.id, 7):
        with pytest.raises(Unauthenticated):
            await second_factors_mutations.prove_second_factor(
                ctx, user_id, SecondFactorProof(totp="000000")
            )
    for user in ({"username": "ada"}, {"username": "nobody"}, {"address": "ada@example.org"}):
        document = 'mutation ($u: UserRef) { totpCheck(input: {user: $u, token: "1"}) { valid } }'
        body = {"query": document, "variables": {"u": user}}
        (error,) = (await ada.http.post("/graphql", json=body)).json()["errors"]
        assert error["extensions"]["code"] == "UNAUTHENTICATED"


async def test_own_factor_is_disabled_only_with_proof(ada: Client) -> None:
    secret, recovery = await totp_on(ada)
    empty_assertion: dict[str, Any] = {"webauthn": {}}
    for name in ("totpDisable", "twoFactorDisable"):
        for proof in (None, {}, {"totp": "000000"}, empty_assertion):
            arguments = {"proof": proof, "options": {"reason": "because"}}
            assert await codes(ada, name, **arguments) == ["AUTHENTICATION_FAILED"]
    assert (await row_of(ada.world, ada.user.id)).second_factors == ["TOTP"]
    payload = await ask(ada, "totpDisable", USER, proof={"totp": recovery[0]})
    assert payload["user"]["enabled2fa"] == []
    assert await all_of(ada.world, TotpSecret) == []
    assert await codes(ada, "totpDisable") == ["CONFLICT"]
    assert await codes(ada, "totpCheck", token=code_of(ada.world, secret, 1)) == ["CONFLICT"]


async def test_admin_needs_a_reason_to_disable_factors(ada: Client, root: Client) -> None:
    for name in ("totpDisable", "twoFactorDisable"):
        await totp_on(ada)
        user = {"id": (await ada("{ user { id } }"))["user"]["id"]}
        payload = await ask(root, name, user=user)
        assert [(e["code"], e["path"]) for e in payload["errors"]] == [
            ("VALIDATION", ["options", "reason"])
        ]
        payload = await ask(root, name, USER, user=user, options={"reason": "lost his phone"})
        assert payload["user"] == {"username": "ada", "enabled2fa": []}
        entry = (await all_of(ada.world, AdminLogEntry))[-1]
        assert (entry.mutation, entry.target_id) == (name, ada.user.id)
        assert (entry.before, entry.after) == ({"enabled2fa": ["TOTP"]}, {"enabled2fa": []})
        assert entry.reason == "lost his phone"
        ada.world.clock.read.tick(minutes=5)  # type: ignore[attr-defined]
    events = {(row.action, row.result) for row in await all_of(ada.world, SecurityEvent)}
    assert {("totp setup", "success"), ("totp enable", "success")} <= events
    assert {("totp disable", "success"), ("2fa disable", "success")} <= events
    maker_ids = {
        row.by for row in await all_of(ada.world, SecurityEvent) if row.action == "totp disable"
    }
    assert maker_ids != {None}


async def test_admin_client_can_pass_on_the_proof_of_a_user(ada: Client, root: Client) -> None:
    secret, _ = await totp_on(ada)
    user = {"username": "ada"}
    proof = {"totp": code_of(ada.world, secret, 1)}
    assert await codes(root, "totpDisable", user=user, proof=proof) == []


@pytest.mark.parametrize("name", ["totpDisable", "twoFactorDisable", "customTwoFactorDisable"])
async def test_disabling_factors_of_unknown_user_is_not_found(root: Client, name: str) -> None:
    for user in ({"username": "nobody"}, {"address": "nobody@example.org"}):
        arguments = {"user": user, "options": {"reason": "because"}}
        assert await codes(root, name, **arguments) == ["NOT_FOUND"]


async def test_factors_of_other_user_are_hidden_and_unchangeable(ada: Client, bob: Client) -> None:
    secret, _ = await totp_on(ada)
    user_id = (await ada("{ user { id } }"))["user"]["id"]
    proof = {"totp": code_of(ada.world, secret, 1)}
    reason = {"reason": "because"}
    for user in ({"id": user_id}, {"username": "ada"}, {"address": "ada@example.org"}):
        for name, arguments in (
            ("totpSetup", {}),
            ("totpEnable", {"token": "000000"}),
            ("totpCheck", {"token": code_of(ada.world, secret, 1)}),
            ("totpDisable", {"proof": proof}),
            ("twoFactorDisable", {"options": reason}),
        ):
            assert await codes(bob, name, user=user, **arguments) == ["NOT_FOUND"], name
    assert (await row_of(ada.world, ada.user.id)).second_factors == ["TOTP"]
    await make_user(ada.world, "zoe")
    other_admin = await admin_of(bob, domain="elsewhere.example")
    for operation in (
        second_factors_mutations.set_up_totp(other_admin, ada.user.id, None, None),
        second_factors_mutations.disable_totp(other_admin, ada.user.id, SecondFactorProof()),
        second_factors_mutations.disable_all_factors(other_admin, ada.user.id, SecondFactorProof()),
        second_factors_mutations.enable_custom_factor(other_admin, ada.user.id),
        second_factors_mutations.prove_second_factor(
            other_admin, ada.user.id, SecondFactorProof(totp="000000")
        ),
        second_factors_mutations.create_webauthn_challenge(other_admin, ada.user.id, None),
    ):
        with pytest.raises(NotFound):
            await operation
    assert await second_factors_mutations.load_enabled_factors(other_admin, [ada.user.id]) == [[]]
    own_admin = await admin_of(bob)
    own_admin.reason = "lost"
    assert (
        await second_factors_mutations.disable_all_factors(
            own_admin, ada.user.id, SecondFactorProof()
        )
        == ada.user.id
    )


async def test_domain_admin_cannot_disable_factors_of_admin(ada: Client, bob: Client) -> None:
    admin = await make_client(ada.world, ada.http, "boss", role=Role.ADMIN)
    await totp_on(admin)
    ctx = await admin_of(bob)
    ctx.reason = "because"
    with pytest.raises(Forbidden):
        await second_factors_mutations.disable_all_factors(ctx, admin.user.id, SecondFactorProof())
    assert (await row_of(ada.world, admin.user.id)).second_factors == ["TOTP"]


async def test_user_adds_another_factor_only_with_a_proof(ada: Client, root: Client) -> None:
    await ask(root, "customTwoFactorEnable", user={"username": "ada"})
    secret = await seed_of(ada)
    assert await codes(ada, "totpEnable", token=code_of(ada.world, secret)) == ["FORBIDDEN"]
    arguments = {"user": {"username": "ada"}, "token": code_of(ada.world, secret)}
    assert await codes(root, "totpEnable", **arguments) == []
    assert (await row_of(ada.world, ada.user.id)).second_factors == ["TOTP", "CUSTOM"]


async def test_short_totp_secret_can_be_imported(ada: Client, root: Client, clock: Clock) -> None:
    with pytest.raises(ValueError, match="112"):
        pyotp.TOTP(SHORT_BASE32.replace(" ", "")).now()
    payload = await ask(
        root, "totpImport", USER, user={"username": "ada"}, seed=SHORT_BASE32.lower()
    )
    assert payload["user"]["enabled2fa"] == ["TOTP"]
    clock.time = clock.time.fromtimestamp(59, clock.time.tzinfo)
    assert await codes(ada, "totpCheck", token=totp.code_at(b"1234567890", 1)) == []
    error_codes = await codes(root, "totpImport", user={"username": "ada"}, seed=SHORT_BASE32)
    assert error_codes == ["CONFLICT"]


async def test_totp_import_ends_tokens(ada: Client, root: Client) -> None:
    token_client = await token_of(ada)
    await ask(root, "totpImport", user={"username": "ada"}, seed=SHORT_BASE32)
    assert await viewer_of(token_client) is None


@pytest.mark.parametrize("secret", ["", "x", "GEZDGNBV", "0189", "A" * 300, "ä" * 16, "A" * 10_000])
@pytest.mark.usefixtures("ada")
async def test_invalid_totp_secret_is_refused(root: Client, secret: str) -> None:
    payload = await ask(root, "totpImport", user={"username": "ada"}, seed=secret)
    assert [(e["code"], e["path"]) for e in payload["errors"]] == [("VALIDATION", ["seed"])]


async def test_totp_import_needs_admin(ada: Client) -> None:
    arguments = {"user": {"username": "ada"}, "seed": SHORT_BASE32}
    assert await codes(ada, "totpImport", **arguments) == ["FORBIDDEN"]


async def test_custom_factor_is_enabled_and_disabled_by_admin(ada: Client, root: Client) -> None:
    user = {"username": "ada"}
    token_client = await token_of(ada)
    payload = await ask(root, "customTwoFactorEnable", USER, user=user)
    assert payload["user"]["enabled2fa"] == ["CUSTOM"]
    assert await viewer_of(token_client) is None
    assert await codes(root, "customTwoFactorEnable", user=user) == ["CONFLICT"]
    assert await codes(ada, "twoFactorDisable") == ["FORBIDDEN"]
    assert await codes(ada, "totpCheck", token="000000") == ["AUTHENTICATION_FAILED"]
    assert await codes(root, "customTwoFactorDisable", user=user) == ["VALIDATION"]
    reason = {"reason": "moved on"}
    payload = await ask(root, "customTwoFactorDisable", USER, user=user, options=reason)
    assert payload["user"]["enabled2fa"] == []
    error_codes = await codes(root, "customTwoFactorDisable", user=user, options=reason)
    assert error_codes == ["CONFLICT"]
    assert await codes(ada, "customTwoFactorEnable") == ["FORBIDDEN"]


async def test_two_factors_list_has_creation_and_use_times(ada: Client, clock: Clock) -> None:
    query = "{ user { enabled2fa twoFactors { method createdAt lastUsedAt } } }"
    secret, _ = await totp_on(ada)
    created_at = clock().isoformat().replace("+00:00", "Z")
    (factor,) = (await ada(query))["user"]["twoFactors"]
    assert factor == {"method": "TOTP", "createdAt": created_at, "lastUsedAt": created_at}
    clock.tick(minutes=5)
    await ask(ada, "totpCheck", token=code_of(ada.world, secret))
    used_at = clock().isoformat().replace("+00:00", "Z")
    (factor,) = (await ada(query))["user"]["twoFactors"]
    assert factor == {"method": "TOTP", "createdAt": created_at, "lastUsedAt": used_at}


async def test_concurrent_totp_confirmations_enable_it_once(ada: Client) -> None:
    secret = await seed_of(ada)
    code = code_of(ada.world, secret)

    async def try_enable() -> bool:
        try:
            await second_factors_mutations.enable_totp(context(ada), None, code)
        except RequestError:
            return False
        return True

    assert sum(await asyncio.gather(*(try_enable() for _ in range(5)))) == 1
    row = await row_of(ada.world, ada.user.id)
    assert (row.second_factors, row.auth_version) == (["TOTP"], 2)


async def test_housekeeping_deletes_unconfirmed_totp_secrets(
    ada: Client, bob: Client, clock: Clock
) -> None:
    from mail.maintenance.housekeeping import run_round

    await seed_of(ada)
    await totp_on(bob)
    clock.tick(hours=6)
    assert (await run_round(ada.world)).seeds == 1
    (remaining_row,) = await all_of(ada.world, TotpSecret)
    assert remaining_row.user_id == bob.user.id
