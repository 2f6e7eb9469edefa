"""WebAuthn security keys: registration and authentication by a software authenticator."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from models.auth.credentials import AccessToken
from models.auth.second_factors import WebauthnChallenge, WebauthnKey
from models.auth.security_log import SecurityEvent
from models.errors import (
    AuthenticationFailed,
    Forbidden,
    NotFound,
    ServiceUnavailable,
    Unauthenticated,
)
from models.runtime.options import Options
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors import webauthn
from resolvers.auth.second_factors.second_factor_check import (
    SecondFactorProof,
    TwoFactorMethod,
    verify_and_use_up_second_factor,
)
from resolvers.auth.second_factors.webauthn import Ceremony
from resolvers.context import Context, Viewer
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.accounts.authenticators import (
    SoftwareAuthenticator,
    base64url_decode,
    base64url_encode,
    enable_totp,
    make_assertion_response,
    make_registration_response,
    register_security_key,
    request_challenge,
)
from tests.support.accounts.two_factor_operations import (
    VIEWER_FIELDS,
    load_all_rows,
    load_domain_admin_context,
    load_user_row,
    load_viewer,
    make_pending_context,
    make_token_client,
    mutation_error_codes,
    run_auth_mutation,
)
from tests.support.operations.id_references import id_refs

FAILED_CODES = ["AUTHENTICATION_FAILED"]
KEYS_QUERY = "{ user { webauthnKeys { id name createdAt lastUsedAt } twoFactorMethods } }"


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_security_key_is_registered_and_checked(
    ada: GraphQLClient, clock: ManualClock, algorithm: str
) -> None:
    key = SoftwareAuthenticator(algorithm)
    options = await request_challenge(ada, "REGISTRATION")
    assert options["rp"] == {"name": "Merganser", "id": "mail.example.org"}
    assert options["user"]["name"] == "ada"
    assert len(base64url_decode(options["challenge"])) == 64
    assert {parameters["alg"] for parameters in options["pubKeyCredParams"]} >= {-7, -8}
    arguments = {"name": " Blue ", "response": key.create_credential(options)}
    payload_fields = f"webauthnKey {{ id name }} recoveryCodes {VIEWER_FIELDS}"
    payload = await run_auth_mutation(ada, "webauthnRegister", payload_fields, **arguments)
    assert payload["webauthnKey"]["name"] == "Blue"
    assert payload["user"]["twoFactorMethods"] == ["WEBAUTHN"]
    assert len(payload["recoveryCodes"]) == 10
    (row,) = await load_all_rows(ada.environment, WebauthnKey)
    assert row.transports == ["nfc", "usb"]
    clock.tick(hours=1)
    options = await request_challenge(ada, "AUTHENTICATION")
    assert options["rpId"] == "mail.example.org"
    (allowed,) = options["allowCredentials"]
    assert (allowed["id"], allowed["transports"]) == (
        base64url_encode(key.credential_id),
        ["nfc", "usb"],
    )
    handle = str(ada.user.id)
    assert (
        await mutation_error_codes(
            ada, "webauthnVerify", response=key.create_assertion(options, handle=handle)
        )
        == []
    )
    (shown_key,) = (await ada(KEYS_QUERY))["user"]["webauthnKeys"]
    assert shown_key["lastUsedAt"] == clock().isoformat().replace("+00:00", "Z")
    (row,) = await load_all_rows(ada.environment, WebauthnKey)
    assert row.sign_count == key.sign_count == 2


async def test_security_key_without_sign_count_works_repeatedly(ada: GraphQLClient) -> None:
    key = await register_security_key(ada)
    key = SoftwareAuthenticator(increments_sign_count=False)
    proof = {"totp": (await _create_recovery_codes(ada))[0]}
    response = await make_registration_response(ada, key)
    arguments = {"name": "Passkey", "response": response, "proof": proof}
    assert await mutation_error_codes(ada, "webauthnRegister", **arguments) == []
    for _ in range(3):
        assert (
            await mutation_error_codes(
                ada, "webauthnVerify", response=await make_assertion_response(ada, key)
            )
            == []
        )


async def _create_recovery_codes(client: GraphQLClient) -> list[str]:
    """Create new recovery codes without a proof."""
    from resolvers.auth.second_factors import recovery_codes

    async with client.environment.write_session(client.user.id) as session:
        return await recovery_codes.replace_recovery_codes(
            client.environment, session, client.user.id
        )


async def test_only_first_security_key_ends_other_tokens(ada: GraphQLClient) -> None:
    current_client, other_client = (
        await make_token_client(ada, "mine"),
        await make_token_client(ada, "other"),
    )
    key = await register_security_key(current_client)
    assert await load_viewer(current_client)
    assert await load_viewer(other_client) is None
    third_client = await make_token_client(ada, "third")
    options = await request_challenge(current_client, "REGISTRATION")
    assert [item["id"] for item in options["excludeCredentials"]] == [
        base64url_encode(key.credential_id)
    ]
    second_key = await register_security_key(
        current_client,
        "EdDSA",
        proof={"webauthn": await make_assertion_response(current_client, key)},
    )
    assert await load_viewer(third_client)
    assert len((await ada(KEYS_QUERY))["user"]["webauthnKeys"]) == 2
    assert (
        await mutation_error_codes(
            ada, "webauthnVerify", response=await make_assertion_response(ada, second_key)
        )
        == []
    )


async def test_additional_security_key_needs_a_proof(ada: GraphQLClient) -> None:
    await enable_totp(ada)
    response = await make_registration_response(ada, SoftwareAuthenticator())
    assert (
        await mutation_error_codes(ada, "webauthnRegister", name="x", response=response)
        == FAILED_CODES
    )
    assert await load_all_rows(ada.environment, WebauthnKey) == []


INVALID_CLIENT_DATA: dict[str, dict[str, Any]] = {
    "origin": {"origin": "https://mail.example.org.evil.example"},
    "scheme": {"origin": "http://mail.example.org"},
    "port": {"origin": "https://mail.example.org:8443"},
    "party": {"party": "evil.example"},
    "ceremony": {"type": "webauthn.nothing"},
    "challenge": {"challenge": base64url_encode(b"x" * 64)},
    "no challenge": {"challenge": ""},
}


@pytest.mark.parametrize("case", INVALID_CLIENT_DATA)
async def test_invalid_registration_is_refused(ada: GraphQLClient, case: str) -> None:
    response = await make_registration_response(
        ada, SoftwareAuthenticator(), **INVALID_CLIENT_DATA[case]
    )
    assert (
        await mutation_error_codes(ada, "webauthnRegister", name="x", response=response)
        == FAILED_CODES
    )
    assert await load_all_rows(ada.environment, WebauthnKey) == []
    assert (await load_user_row(ada.environment, ada.user.id)).second_factors == []


@pytest.mark.parametrize("case", [*INVALID_CLIENT_DATA, "handle"])
async def test_invalid_assertion_is_refused(ada: GraphQLClient, case: str) -> None:
    key = await register_security_key(ada)
    response = await make_assertion_response(
        ada, key, **INVALID_CLIENT_DATA.get(case, {"handle": "7"})
    )
    assert await mutation_error_codes(ada, "webauthnVerify", response=response) == FAILED_CODES
    events = {
        (row.action, row.result) for row in await load_all_rows(ada.environment, SecurityEvent)
    }
    assert ("WEBAUTHN_VERIFY", "FAILURE") in events


@pytest.mark.parametrize("part", ["signature", "authenticatorData", "clientDataJSON"])
@pytest.mark.parametrize("index", [0, 10, -1])
async def test_assertion_with_a_changed_byte_is_refused(
    ada: GraphQLClient, part: str, index: int
) -> None:
    key = await register_security_key(ada)
    response = await make_assertion_response(ada, key)
    raw = bytearray(base64url_decode(response["response"][part]))
    raw[index] ^= 1
    response["response"][part] = base64url_encode(bytes(raw))
    assert await mutation_error_codes(ada, "webauthnVerify", response=response) == FAILED_CODES


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
    assertion, user = (
        await make_assertion_response(ada, key),
        await load_user_row(ada.environment, ada.user.id),
    )

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


async def test_sign_count_that_does_not_increase_is_refused(ada: GraphQLClient) -> None:
    key = await register_security_key(ada)
    for _ in range(3):
        assert (
            await mutation_error_codes(
                ada, "webauthnVerify", response=await make_assertion_response(ada, key)
            )
            == []
        )
    key.sign_count = 2
    for _ in range(2):  # one lower, then equal
        assert (
            await mutation_error_codes(
                ada, "webauthnVerify", response=await make_assertion_response(ada, key)
            )
            == FAILED_CODES
        )
    assert (
        await mutation_error_codes(
            ada, "webauthnVerify", response=await make_assertion_response(ada, key)
        )
        == []
    )


async def test_security_key_is_registered_once(ada: GraphQLClient, bob: GraphQLClient) -> None:
    key = await register_security_key(ada)
    proof = {"webauthn": await make_assertion_response(ada, key)}
    arguments = {"name": "again", "response": await make_registration_response(ada, key)}
    assert await mutation_error_codes(ada, "webauthnRegister", **arguments, proof=proof) == [
        "CONFLICT"
    ]
    response = await make_registration_response(bob, key)
    assert await mutation_error_codes(bob, "webauthnRegister", name="mine", response=response) == [
        "CONFLICT"
    ]
    assert (await load_user_row(ada.environment, bob.user.id)).second_factors == []


MALFORMED_RESPONSES: list[Any] = [
    {},
    {"id": 7},
    {"response": None},
    {"response": []},
    {"response": {"clientDataJSON": 7}},
    {"response": {"clientDataJSON": "!!!"}},
    {"response": {"clientDataJSON": base64url_encode(b"\xff")}},
    {"response": {"clientDataJSON": base64url_encode(b"[]")}},
    {"response": {"clientDataJSON": base64url_encode(b'{"challenge": 7}')}},
    {"response": {"clientDataJSON": base64url_encode(b"[" * 20_000)}},
    {"response": {"clientDataJSON": "ä"}},
]


@pytest.mark.parametrize("response", MALFORMED_RESPONSES)
async def test_malformed_webauthn_response_is_refused(ada: GraphQLClient, response: Any) -> None:
    assert (
        await mutation_error_codes(ada, "webauthnRegister", name="x", response=response)
        == FAILED_CODES
    )
    await register_security_key(ada)
    assert await mutation_error_codes(ada, "webauthnVerify", response=response) == FAILED_CODES


async def test_malformed_attestation_is_refused(ada: GraphQLClient) -> None:
    for part, value in (
        ("attestationObject", ""),
        ("attestationObject", base64url_encode(b"\xa0")),
        ("attestationObject", base64url_encode(b"\xff" * 100)),
        ("attestationObject", 7),
        ("transports", "usb"),
        ("transports", [7, None]),
    ):
        response = await make_registration_response(ada, SoftwareAuthenticator())
        response["response"][part] = value
        error_codes = await mutation_error_codes(
            ada, "webauthnRegister", name="x", response=response
        )
        is_valid = part == "transports"
        assert error_codes == ([] if is_valid else FAILED_CODES), (part, value)
        if is_valid:
            await run_auth_mutation(
                ada, "twoFactorDisable", proof={"totp": (await _create_recovery_codes(ada))[0]}
            )


async def test_invalid_response_type_size_and_name_are_refused(ada: GraphQLClient) -> None:
    invalid_responses: list[Any] = [[], "x", 7]
    for response in invalid_responses:
        payload = await run_auth_mutation(ada, "webauthnRegister", name="x", response=response)
        assert [(e["code"], e["path"]) for e in payload["errors"]] == [("VALIDATION", ["response"])]
    large_response: Any = {"response": {"clientDataJSON": "a" * 40_000}}
    assert await mutation_error_codes(
        ada, "webauthnRegister", name="x", response=large_response
    ) == ["VALIDATION"]
    for name in ("", " ", "x" * 129, "a\x7f"):
        payload = await run_auth_mutation(ada, "webauthnRegister", name=name, response={})
        assert [(e["code"], e["path"]) for e in payload["errors"]] == [("VALIDATION", ["name"])]


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


async def test_security_key_completes_pending_sign_in(ada: GraphQLClient) -> None:
    key = await register_security_key(ada)
    ctx = await make_pending_context(ada)
    with pytest.raises(Forbidden):
        await second_factors_mutations.create_webauthn_challenge(ctx, None, Ceremony.REGISTRATION)
    options = await second_factors_mutations.create_webauthn_challenge(ctx, None, None)
    assert (
        await second_factors_mutations.prove_second_factor(
            ctx, None, SecondFactorProof(webauthn=key.create_assertion(options))
        )
        == ada.user.id
    )
    (token,) = await load_all_rows(ada.environment, AccessToken)
    assert not token.pending


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


async def test_deleting_last_key_disables_webauthn(ada: GraphQLClient) -> None:
    first_key = await register_security_key(ada)
    proof = {"webauthn": await make_assertion_response(ada, first_key)}
    second_key = await register_security_key(ada, "EdDSA", proof=proof)
    assert (
        await mutation_error_codes(ada, "webauthnDelete", webauthnKeys=[{"id": second_key.node_id}])
        == FAILED_CODES
    )
    proof = {"webauthn": await make_assertion_response(ada, first_key)}
    payload = await run_auth_mutation(
        ada, "webauthnDelete", "deletedIds", webauthnKeys=[{"id": second_key.node_id}], proof=proof
    )
    assert payload["deletedIds"] == [second_key.node_id]
    assert (await ada(KEYS_QUERY))["user"]["twoFactorMethods"] == ["WEBAUTHN"]
    proof = {"webauthn": await make_assertion_response(ada, first_key)}
    assert (
        await mutation_error_codes(
            ada, "webauthnDelete", webauthnKeys=[{"id": first_key.node_id}], proof=proof
        )
        == []
    )
    assert (await ada(KEYS_QUERY))["user"] == {"webauthnKeys": [], "twoFactorMethods": []}
    assert await load_all_rows(ada.environment, WebauthnChallenge) == []


async def test_webauthn_delete_is_all_or_nothing(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    hers, his = await register_security_key(ada), await register_security_key(bob)
    options = {"reason": "lost"}
    key_ids = [hers.node_id, his.node_id]
    assert await mutation_error_codes(
        root, "webauthnDelete", webauthnKeys=id_refs(key_ids), options=options
    ) == ["VALIDATION"]
    payload = await run_auth_mutation(
        ada, "webauthnDelete", webauthnKeys=id_refs(key_ids), proof={"totp": "x"}
    )
    assert [(e["code"], e["path"]) for e in payload["errors"]] == [
        ("NOT_FOUND", ["webauthnKeys", "1"])
    ]
    assert len(await load_all_rows(ada.environment, WebauthnKey)) == 2
    assert await mutation_error_codes(
        root, "webauthnDelete", webauthnKeys=id_refs(key_ids[:1])
    ) == ["VALIDATION"]
    assert (
        await mutation_error_codes(
            root, "webauthnDelete", webauthnKeys=id_refs(key_ids[:1]), options=options
        )
        == []
    )
    assert (
        await mutation_error_codes(root, "webauthnDelete", webauthnKeys=[], options=options) == []
    )


async def test_security_key_is_hidden_from_other_users(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    key = await register_security_key(ada)
    node_query = "query ($id: ID!) { node(id: $id) { id ... on WebauthnKey { name } } }"
    assert (await ada(node_query, id=key.node_id))["node"]["name"] == "Blue"
    assert (await root(node_query, id=key.node_id))["node"]["name"] == "Blue"
    assert (await bob(node_query, id=key.node_id))["node"] is None
    assert await mutation_error_codes(
        bob, "webauthnDelete", webauthnKeys=[{"id": key.node_id}]
    ) == ["NOT_FOUND"]
    other_admin, own_admin = (
        await load_domain_admin_context(bob, domain="elsewhere.example"),
        await load_domain_admin_context(bob),
    )
    assert await webauthn.load_keys_of_users(other_admin, [ada.user.id]) == [[]]
    assert len((await webauthn.load_keys_of_users(own_admin, [ada.user.id]))[0]) == 1


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
    relying_party = webauthn.relying_party(options)
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
    from mail.maintenance.housekeeping import run_round

    await request_challenge(ada, "REGISTRATION")
    clock.tick(hours=6)
    assert (await run_round(ada.environment)).challenges == 1


async def test_factors_of_many_users_load_in_constant_statements(
    ada: GraphQLClient, root: GraphQLClient, statements: list[str]
) -> None:
    from tests.conftest import make_user

    query = """{ users(first: 50) { nodes { twoFactorMethods recoveryCodesLeft
      twoFactors { method } webauthnKeys { name } appPasswords { description } } } }"""

    async def count_statements() -> int:
        del statements[:]
        await root(query)
        return len([statement for statement in statements if "api_keys" not in statement])

    await register_security_key(ada)
    statement_counts = [await count_statements()]
    for n in range(20):
        await make_user(ada.environment, f"n{n}")
    statement_counts += [await count_statements(), await count_statements()]
    assert len(set(statement_counts)) == 1
