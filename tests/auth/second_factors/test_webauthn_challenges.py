"""WebAuthn challenges: single use, expiry, ceremony, user and relying party."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from models.auth.second_factors import WebauthnChallenge, WebauthnKey
from models.errors import AuthenticationFailed, NotFound, ServiceUnavailable, Unauthenticated
from models.runtime.options import Options
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors import webauthn
from resolvers.auth.second_factors.second_factor_check import (
    SecondFactorProof,
    TwoFactorMethod,
    verify_and_use_up_second_factor,
)
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.accounts.authenticators import (
    SoftwareAuthenticator,
    make_assertion_response,
    make_registration_response,
    register_security_key,
    request_challenge,
)
from tests.support.accounts.two_factor_operations import (
    FAILED_CODES,
    load_all_rows,
    load_user_row,
    make_pending_context,
    mutation_error_codes,
    run_auth_mutation,
)


async def test_challenge_is_valid_once(ada: GraphQLClient) -> None:
    key = SoftwareAuthenticator()
    response = await make_registration_response(ada, key)
    assert await mutation_error_codes(ada, "webauthnRegister", name="x", response=response) == []
    proof = {"webauthn": await make_assertion_response(ada, key)}
    error_codes = await mutation_error_codes(
        ada, "webauthnRegister", name="y", response=response, proof=proof
    )
    assert error_codes == FAILED_CODES
    response = await make_assertion_response(ada, key)
    assert await mutation_error_codes(ada, "webauthnVerify", response=response) == []
    assert await mutation_error_codes(ada, "webauthnVerify", response=response) == FAILED_CODES


async def test_challenge_is_invalid_after_a_wrong_response(ada: GraphQLClient) -> None:
    key = await register_security_key(ada)
    options = await request_challenge(ada, "AUTHENTICATION")
    assert (
        await mutation_error_codes(
            ada, "webauthnVerify", response=key.create_assertion(options, party="x")
        )
        == FAILED_CODES
    )
    assert (
        await mutation_error_codes(ada, "webauthnVerify", response=key.create_assertion(options))
        == FAILED_CODES
    )


async def test_concurrent_use_of_assertion_succeeds_once(ada: GraphQLClient) -> None:
    key = SoftwareAuthenticator(increments_sign_count=False)
    response = await make_registration_response(ada, key)
    assert await mutation_error_codes(ada, "webauthnRegister", name="x", response=response) == []
    assertion = await make_assertion_response(ada, key)
    user = await load_user_row(ada.environment, ada.user.id)

    async def try_assertion() -> Any:
        try:
            return await verify_and_use_up_second_factor(
                client_context(ada), user, SecondFactorProof(webauthn=assertion)
            )
        except AuthenticationFailed:
            return None

    results = await asyncio.gather(*(try_assertion() for _ in range(6)))
    assert sorted(results, key=str) == [None] * 5 + [TwoFactorMethod.WEBAUTHN]


@pytest.mark.parametrize(("minutes", "expected_codes"), [(59, []), (60, FAILED_CODES)])
async def test_challenge_expires_after_one_hour(
    ada: GraphQLClient, clock: ManualClock, minutes: int, expected_codes: list[str]
) -> None:
    response = await make_registration_response(ada, SoftwareAuthenticator())
    clock.tick(minutes=minutes)
    assert (
        await mutation_error_codes(ada, "webauthnRegister", name="x", response=response)
        == expected_codes
    )


async def test_challenge_is_valid_for_one_ceremony_only(ada: GraphQLClient) -> None:
    key = await register_security_key(ada)
    registration_options = await request_challenge(ada, "REGISTRATION")
    assert (
        await mutation_error_codes(
            ada, "webauthnVerify", response=key.create_assertion(registration_options)
        )
        == FAILED_CODES
    )
    proof = {"webauthn": await make_assertion_response(ada, key)}
    response = SoftwareAuthenticator().create_credential(
        await request_challenge(ada, "AUTHENTICATION")
    )
    error_codes = await mutation_error_codes(
        ada, "webauthnRegister", name="y", response=response, proof=proof
    )
    assert error_codes == FAILED_CODES


async def test_challenge_and_key_of_other_user_are_refused(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    hers, his = await register_security_key(ada), await register_security_key(bob)
    ada_options = await request_challenge(ada, "AUTHENTICATION")
    bob_options = await request_challenge(bob, "AUTHENTICATION")
    assert (
        await mutation_error_codes(
            bob, "webauthnVerify", response=his.create_assertion(ada_options)
        )
        == FAILED_CODES
    )
    assert (
        await mutation_error_codes(
            bob, "webauthnVerify", response=hers.create_assertion(bob_options)
        )
        == FAILED_CODES
    )
    assert (
        await mutation_error_codes(
            ada, "webauthnVerify", response=hers.create_assertion(ada_options)
        )
        == []
    )


async def test_number_of_keys_and_challenges_is_limited(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    first_options = await request_challenge(ada, "REGISTRATION")
    for _ in range(webauthn.MAX_CHALLENGES + 3):
        last_options = await request_challenge(ada, "REGISTRATION")
    assert len(await load_all_rows(ada.environment, WebauthnChallenge)) == webauthn.MAX_CHALLENGES
    arguments = {"name": "x", "response": SoftwareAuthenticator().create_credential(first_options)}
    assert await mutation_error_codes(ada, "webauthnRegister", **arguments) == FAILED_CODES
    arguments = {"name": "x", "response": SoftwareAuthenticator().create_credential(last_options)}
    assert await mutation_error_codes(ada, "webauthnRegister", **arguments) == []
    async with ada.environment.write_session() as session:
        session.add_all(
            WebauthnKey(
                id=ada.environment.new_id(),
                user_id=ada.user.id,
                name=str(n),
                credential_id=str(n),
                public_key="",
                created_at=clock(),
            )
            for n in range(webauthn.MAX_KEYS - 1)
        )
    payload = await run_auth_mutation(ada, "webauthnChallenge", ceremony="REGISTRATION")
    assert [error["code"] for error in payload["errors"]] == ["LIMIT_REACHED"]


async def test_authentication_challenge_without_keys_is_refused(ada: GraphQLClient) -> None:
    assert await mutation_error_codes(ada, "webauthnChallenge", ceremony="AUTHENTICATION") == [
        "CONFLICT"
    ]


async def test_challenge_without_sign_in_is_refused(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await register_security_key(ada)
    public_context = Context(ada.environment, Viewer())
    for user_id in (None, ada.user.id, bob.user.id, 7):
        with pytest.raises(Unauthenticated):
            await second_factors_mutations.create_webauthn_challenge(public_context, user_id, None)
    document = "mutation ($u: UserRef) { webauthnChallenge(input: {user: $u}) { challenge } }"
    errors = []
    for user in ({"username": "ada"}, {"username": "bob"}, {"username": "nobody"}, None):
        body = {"query": document, "variables": {"u": user}}
        (error,) = (await ada.http.post("/graphql", json=body)).json()["errors"]
        errors.append((error["message"], error["extensions"]["code"]))
    assert len(set(errors)) == 1
    ctx = await make_pending_context(bob)
    for user_id in (ada.user.id, 7):
        with pytest.raises(NotFound):
            await second_factors_mutations.create_webauthn_challenge(ctx, user_id, None)
    assert len(await load_all_rows(ada.environment, WebauthnChallenge)) == 0


@pytest.mark.parametrize(
    ("options", "expected_party"),
    [
        (
            Options(public_url="https://Mail.Example.org/x"),
            ("mail.example.org", ["https://mail.example.org"]),
        ),
        (
            Options(public_url="http://localhost:8025"),
            ("localhost", ["http://localhost:8025"]),
        ),
        (
            Options(
                public_url="https://api.example.org",
                webauthn_rp_id="example.org",
                webauthn_origins=("https://a.example.org", "https://b.example.org"),
            ),
            ("example.org", ["https://a.example.org", "https://b.example.org"]),
        ),
    ],
)
def test_relying_party_follows_settings(
    options: Options, expected_party: tuple[str, list[str]]
) -> None:
    relying_party = webauthn.require_relying_party(options)
    assert (relying_party.id, relying_party.origins) == expected_party


async def test_challenge_without_public_url_is_refused(ada: GraphQLClient) -> None:
    environment = replace(ada.environment, options=Options(hostname="mx.example.org"))
    ctx = Context(environment, client_context(ada).viewer)
    with pytest.raises(ServiceUnavailable, match="MERGANSER_PUBLIC_URL"):
        await second_factors_mutations.create_webauthn_challenge(ctx, None, None)


async def test_challenge_ignores_host_headers(ada: GraphQLClient) -> None:
    document = "mutation { webauthnChallenge(input: {}) { challenge } }"
    headers = {**ada.headers, "Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    response = await ada.http.post("/graphql", json={"query": document}, headers=headers)
    assert "evil" not in response.text
    assert "mail.example.org" in response.text


async def test_housekeeping_deletes_old_challenges(ada: GraphQLClient, clock: ManualClock) -> None:
    from mail.maintenance.housekeeping import run_housekeeping_round

    await request_challenge(ada, "REGISTRATION")
    clock.tick(hours=6)
    assert (await run_housekeeping_round(ada.environment)).challenges == 1
