"""TOTP (RFC 6238): setup, sign-in, import and removal."""
# ruff: noqa: S106 - the tokens are codes of tests
# ruff: noqa: RUF001 - the tests use digits of other scripts

import asyncio
import base64
from itertools import product
from urllib.parse import parse_qs, unquote, urlsplit

import pyotp
import pytest

from models.auth.second_factors import TotpSecret
from models.errors import AuthenticationFailed, NotFound, RequestError, Unauthenticated
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors import totp
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.accounts.authenticators import create_totp_secret, enable_totp, totp_code
from tests.support.accounts.two_factor_operations import (
    VIEWER_FIELDS,
    load_all_rows,
    load_user_row,
    load_viewer,
    make_pending_context,
    make_token_client,
    mutation_error_codes,
    run_auth_mutation,
)
from tests.support.case_loop import each_case

SHORT_BASE32 = "GEZD GNBV GY3T QOJQ"  # 80 bits: "1234567890"


async def test_setup_returns_secret_as_text_url_and_qr_code(ada: GraphQLClient) -> None:
    setup = await run_auth_mutation(
        ada, "totpSetup", "secret otpauthUrl qrCode", label="Ada L", issuer="Pond & Co"
    )
    url = urlsplit(setup["otpauthUrl"])
    assert (url.scheme, url.netloc, unquote(url.path)) == ("otpauth", "totp", "/Pond & Co:Ada L")
    assert parse_qs(url.query) == {"secret": [setup["secret"]], "issuer": ["Pond & Co"]}
    assert len(base64.b32decode(setup["secret"])) == totp.SECRET_SIZE
    media_type, _, image = setup["qrCode"].partition(",")
    assert media_type == "data:image/png;base64"
    assert base64.b64decode(image).startswith(b"\x89PNG")
    default_setup = await run_auth_mutation(ada, "totpSetup", "otpauthUrl")
    assert unquote(urlsplit(default_setup["otpauthUrl"]).path) == "/Merganser:ada"


async def test_longest_label_and_issuer_fit_into_qr_code(ada: GraphQLClient) -> None:
    setup = await run_auth_mutation(
        ada, "totpSetup", "qrCode", label="\U0001f986" * 64, issuer="𝕄" * 64
    )
    assert setup["errors"] == []


async def test_invalid_label_or_issuer_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(
        product(["a" * 65, "a:b", "a\x7fb", "a\nb", "x" * 10_000], ["label", "issuer"])
    ):
        with case as (text, name):
            payload = await run_auth_mutation(ada, "totpSetup", **{name: text})
            assert [(e["code"], e["path"]) for e in payload["errors"]] == [("VALIDATION", [name])]


async def test_totp_secret_is_stored_encrypted(ada: GraphQLClient) -> None:
    secret = await create_totp_secret(ada)
    (row,) = await load_all_rows(ada.environment, TotpSecret)
    assert secret not in row.pending
    assert ada.environment.secret_box.decrypt(row.pending, f"totp:{ada.user.id}") == secret


async def test_totp_is_enabled_by_a_valid_code(ada: GraphQLClient) -> None:
    secret = await create_totp_secret(ada)
    assert (await load_user_row(ada.environment, ada.user.id)).second_factors == []
    payload = await run_auth_mutation(
        ada,
        "totpEnable",
        f"recoveryCodes {VIEWER_FIELDS}",
        token=totp_code(ada.environment, secret),
    )
    assert payload["user"]["twoFactorMethods"] == ["TOTP"]
    assert len(set(payload["recoveryCodes"])) == 10
    assert await mutation_error_codes(ada, "totpSetup") == ["CONFLICT"]
    assert await mutation_error_codes(
        ada, "totpEnable", token=totp_code(ada.environment, secret)
    ) == ["CONFLICT"]


async def test_wrong_code_does_not_enable_totp(ada: GraphQLClient) -> None:
    secret = await create_totp_secret(ada)
    for wrong_code in (
        totp_code(ada.environment, secret, 2),
        totp_code(ada.environment, secret, -2),
        "",
        "12345",
        "１２３４５６",
    ):
        assert await mutation_error_codes(ada, "totpEnable", token=wrong_code) == [
            "AUTHENTICATION_FAILED"
        ]
    assert (await load_user_row(ada.environment, ada.user.id)).second_factors == []


@pytest.mark.parametrize(("hours", "expected_codes"), [(5.99, []), (6, ["CONFLICT"])])
async def test_unconfirmed_totp_secret_expires_after_six_hours(
    ada: GraphQLClient, clock: ManualClock, hours: float, expected_codes: list[str]
) -> None:
    secret = await create_totp_secret(ada)
    clock.tick(hours=hours)
    assert (
        await mutation_error_codes(ada, "totpEnable", token=totp_code(ada.environment, secret))
        == expected_codes
    )


async def test_only_latest_totp_secret_can_be_confirmed(ada: GraphQLClient) -> None:
    assert await mutation_error_codes(ada, "totpEnable", token="123456") == ["CONFLICT"]
    first, second = await create_totp_secret(ada), await create_totp_secret(ada)
    assert await mutation_error_codes(
        ada, "totpEnable", token=totp_code(ada.environment, first)
    ) == ["AUTHENTICATION_FAILED"]
    assert (
        await mutation_error_codes(ada, "totpEnable", token=totp_code(ada.environment, second))
        == []
    )


async def test_enabling_totp_ends_all_other_tokens(ada: GraphQLClient) -> None:
    current_client = await make_token_client(ada, "mine")
    other_client = await make_token_client(ada, "other")
    assert await load_viewer(current_client)
    assert await load_viewer(other_client)
    await enable_totp(current_client)
    assert await load_viewer(current_client)
    assert await load_viewer(other_client) is None


async def test_disabling_totp_ends_no_token(ada: GraphQLClient) -> None:
    current_client = await make_token_client(ada, "mine")
    secret, _ = await enable_totp(current_client)
    other_client = await make_token_client(ada, "other")
    proof = {"totp": totp_code(ada.environment, secret, 1)}
    assert await mutation_error_codes(current_client, "totpDisable", proof=proof) == []
    assert await load_viewer(current_client)
    assert await load_viewer(other_client)


async def test_totp_code_completes_pending_sign_in(ada: GraphQLClient, clock: ManualClock) -> None:
    from models.auth.credentials import AccessToken

    secret, _ = await enable_totp(ada)
    clock.tick(minutes=5)
    ctx = await make_pending_context(ada)
    with pytest.raises(AuthenticationFailed):
        await second_factors_mutations.prove_second_factor_and_complete_sign_in(
            ctx, None, SecondFactorProof(totp="000000")
        )
    (token,) = await load_all_rows(ada.environment, AccessToken)
    assert token.pending
    assert (
        await second_factors_mutations.prove_second_factor_and_complete_sign_in(
            ctx, None, SecondFactorProof(totp=totp_code(ada.environment, secret))
        )
        == ada.user.id
    )
    (token,) = await load_all_rows(ada.environment, AccessToken)
    assert not token.pending


async def test_pending_sign_in_is_not_completed_by_code_of_other_user(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    secret, _ = await enable_totp(ada)
    await enable_totp(bob)
    ctx = await make_pending_context(bob)
    for user_id in (ada.user.id, 7):
        with pytest.raises(NotFound):
            await second_factors_mutations.prove_second_factor_and_complete_sign_in(
                ctx, user_id, SecondFactorProof(totp=totp_code(ada.environment, secret, 1))
            )
    with pytest.raises(AuthenticationFailed):
        await second_factors_mutations.prove_second_factor_and_complete_sign_in(
            ctx, None, SecondFactorProof(totp=totp_code(ada.environment, secret, 1))
        )


async def test_totp_verify_without_sign_in_is_refused(ada: GraphQLClient) -> None:
    await enable_totp(ada)
    ctx = Context(ada.environment, Viewer())
    for user_id in (None, ada.user.id, 7):
        with pytest.raises(Unauthenticated):
            await second_factors_mutations.prove_second_factor_and_complete_sign_in(
                ctx, user_id, SecondFactorProof(totp="000000")
            )
    for user in ({"username": "ada"}, {"username": "nobody"}, {"address": "ada@example.org"}):
        document = 'mutation ($u: UserRef) { totpVerify(input: {user: $u, token: "1"}) { valid } }'
        body = {"query": document, "variables": {"u": user}}
        (error,) = (await ada.http.post("/graphql", json=body)).json()["errors"]
        assert error["extensions"]["code"] == "UNAUTHENTICATED"


async def test_short_totp_secret_can_be_imported(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    with pytest.raises(ValueError, match="112"):
        pyotp.TOTP(SHORT_BASE32.replace(" ", "")).now()
    payload = await run_auth_mutation(
        root, "totpImport", VIEWER_FIELDS, user={"username": "ada"}, secret=SHORT_BASE32.lower()
    )
    assert payload["user"]["twoFactorMethods"] == ["TOTP"]
    clock.time = clock.time.fromtimestamp(59, clock.time.tzinfo)
    assert await mutation_error_codes(ada, "totpVerify", token=totp.code_at(b"1234567890", 1)) == []
    error_codes = await mutation_error_codes(
        root, "totpImport", user={"username": "ada"}, secret=SHORT_BASE32
    )
    assert error_codes == ["CONFLICT"]


async def test_totp_import_ends_tokens(ada: GraphQLClient, root: GraphQLClient) -> None:
    token_client = await make_token_client(ada)
    await run_auth_mutation(root, "totpImport", user={"username": "ada"}, secret=SHORT_BASE32)
    assert await load_viewer(token_client) is None


@pytest.mark.usefixtures("ada")
async def test_invalid_totp_secret_is_refused(root: GraphQLClient) -> None:
    for case in each_case(["", "x", "GEZDGNBV", "0189", "A" * 300, "ä" * 16, "A" * 10_000]):
        with case as secret:
            payload = await run_auth_mutation(
                root, "totpImport", user={"username": "ada"}, secret=secret
            )
            assert [(e["code"], e["path"]) for e in payload["errors"]] == [
                ("VALIDATION", ["secret"])
            ]


async def test_totp_import_needs_admin(ada: GraphQLClient) -> None:
    arguments = {"user": {"username": "ada"}, "secret": SHORT_BASE32}
    assert await mutation_error_codes(ada, "totpImport", **arguments) == ["FORBIDDEN"]


async def test_external_factor_is_enabled_and_disabled_by_admin(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    user = {"username": "ada"}
    token_client = await make_token_client(ada)
    payload = await run_auth_mutation(root, "externalTwoFactorEnable", VIEWER_FIELDS, user=user)
    assert payload["user"]["twoFactorMethods"] == ["EXTERNAL"]
    assert await load_viewer(token_client) is None
    assert await mutation_error_codes(root, "externalTwoFactorEnable", user=user) == ["CONFLICT"]
    assert await mutation_error_codes(ada, "twoFactorDisable") == ["FORBIDDEN"]
    assert await mutation_error_codes(ada, "totpVerify", token="000000") == [
        "AUTHENTICATION_FAILED"
    ]
    assert await mutation_error_codes(root, "externalTwoFactorDisable", user=user) == ["VALIDATION"]
    reason = {"reason": "moved on"}
    payload = await run_auth_mutation(
        root, "externalTwoFactorDisable", VIEWER_FIELDS, user=user, options=reason
    )
    assert payload["user"]["twoFactorMethods"] == []
    error_codes = await mutation_error_codes(
        root, "externalTwoFactorDisable", user=user, options=reason
    )
    assert error_codes == ["CONFLICT"]
    assert await mutation_error_codes(ada, "externalTwoFactorEnable") == ["FORBIDDEN"]


async def test_two_factors_list_has_creation_and_use_times(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    query = "{ user { twoFactorMethods twoFactors { method createdAt lastUsedAt } } }"
    secret, _ = await enable_totp(ada)
    created_at = clock().isoformat().replace("+00:00", "Z")
    (factor,) = (await ada(query))["user"]["twoFactors"]
    assert factor == {"method": "TOTP", "createdAt": created_at, "lastUsedAt": created_at}
    clock.tick(minutes=5)
    await run_auth_mutation(ada, "totpVerify", token=totp_code(ada.environment, secret))
    used_at = clock().isoformat().replace("+00:00", "Z")
    (factor,) = (await ada(query))["user"]["twoFactors"]
    assert factor == {"method": "TOTP", "createdAt": created_at, "lastUsedAt": used_at}


async def test_concurrent_totp_confirmations_enable_it_once(ada: GraphQLClient) -> None:
    secret = await create_totp_secret(ada)
    code = totp_code(ada.environment, secret)

    async def try_enable() -> bool:
        try:
            await second_factors_mutations.enable_totp(client_context(ada), None, code)
        except RequestError:
            return False
        return True

    assert sum(await asyncio.gather(*(try_enable() for _ in range(5)))) == 1
    row = await load_user_row(ada.environment, ada.user.id)
    assert (row.second_factors, row.auth_version) == (["TOTP"], 2)


async def test_housekeeping_deletes_unconfirmed_totp_secrets(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    from mail.maintenance.housekeeping import run_housekeeping_round

    await create_totp_secret(ada)
    await enable_totp(bob)
    clock.tick(hours=6)
    assert (await run_housekeeping_round(ada.environment)).seeds == 1
    (remaining_row,) = await load_all_rows(ada.environment, TotpSecret)
    assert remaining_row.user_id == bob.user.id
