"""WebAuthn security keys: registration and authentication by a software authenticator."""

from itertools import product
from typing import Any

import pytest

from models.auth.credentials import AccessToken
from models.auth.second_factors import WebauthnChallenge, WebauthnKey
from models.auth.security_log import SecurityEvent
from models.errors import Forbidden
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors import webauthn
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof
from resolvers.auth.second_factors.webauthn import Ceremony
from tests.conftest import GraphQLClient, ManualClock
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
    FAILED_CODES,
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
from tests.support.case_loop import each_case
from tests.support.operations.id_references import id_refs

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
    current_client = await make_token_client(ada, "mine")
    other_client = await make_token_client(ada, "other")
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


async def test_invalid_registration_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_CLIENT_DATA.values()):
        with case as client_data:
            response = await make_registration_response(ada, SoftwareAuthenticator(), **client_data)
            assert (
                await mutation_error_codes(ada, "webauthnRegister", name="x", response=response)
                == FAILED_CODES
            )
            assert await load_all_rows(ada.environment, WebauthnKey) == []
            assert (await load_user_row(ada.environment, ada.user.id)).second_factors == []


async def count_failed_assertions(client: GraphQLClient) -> int:
    """Count the failed assertions in the security log."""
    return sum(
        row.count
        for row in await load_all_rows(client.environment, SecurityEvent)
        if (row.action, row.result) == ("WEBAUTHN_CHECKED", "FAILURE")
    )


async def test_invalid_assertion_is_refused(ada: GraphQLClient) -> None:
    key = await register_security_key(ada)
    for case in each_case([*INVALID_CLIENT_DATA.values(), {"handle": "7"}]):
        with case as client_data:
            failure_count = await count_failed_assertions(ada)
            response = await make_assertion_response(ada, key, **client_data)
            assert (
                await mutation_error_codes(ada, "webauthnVerify", response=response) == FAILED_CODES
            )
            assert await count_failed_assertions(ada) == failure_count + 1


async def test_assertion_with_a_changed_byte_is_refused(ada: GraphQLClient) -> None:
    key = await register_security_key(ada)
    for case in each_case(
        product([0, 10, -1], ["signature", "authenticatorData", "clientDataJSON"])
    ):
        with case as (index, part):
            response = await make_assertion_response(ada, key)
            raw = bytearray(base64url_decode(response["response"][part]))
            raw[index] ^= 1
            response["response"][part] = base64url_encode(bytes(raw))
            assert (
                await mutation_error_codes(ada, "webauthnVerify", response=response) == FAILED_CODES
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


async def test_malformed_webauthn_response_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(MALFORMED_RESPONSES):
        with case as response:
            assert (
                await mutation_error_codes(ada, "webauthnRegister", name="x", response=response)
                == FAILED_CODES
            )
    await register_security_key(ada)
    for case in each_case(MALFORMED_RESPONSES):
        with case as response:
            assert (
                await mutation_error_codes(ada, "webauthnVerify", response=response) == FAILED_CODES
            )


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


async def test_security_key_completes_pending_sign_in(ada: GraphQLClient) -> None:
    key = await register_security_key(ada)
    ctx = await make_pending_context(ada)
    with pytest.raises(Forbidden):
        await second_factors_mutations.create_webauthn_challenge(ctx, None, Ceremony.REGISTRATION)
    options = await second_factors_mutations.create_webauthn_challenge(ctx, None, None)
    assert (
        await second_factors_mutations.prove_second_factor_and_complete_sign_in(
            ctx, None, SecondFactorProof(webauthn=key.create_assertion(options))
        )
        == ada.user.id
    )
    (token,) = await load_all_rows(ada.environment, AccessToken)
    assert not token.pending


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
    assert await mutation_error_codes(root, "webauthnDelete", webauthnKeys=[], options=options) == [
        "VALIDATION"
    ]


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
    other_admin = await load_domain_admin_context(bob, domain="elsewhere.example")
    own_admin = await load_domain_admin_context(bob)
    assert await webauthn.load_visible_keys_of_users(other_admin, [ada.user.id]) == [[]]
    assert len((await webauthn.load_visible_keys_of_users(own_admin, [ada.user.id]))[0]) == 1


async def test_factors_of_many_users_load_in_constant_statements(
    ada: GraphQLClient, root: GraphQLClient, statements: list[str]
) -> None:
    from tests.conftest import make_user

    query = """{ users(first: 50) { nodes { twoFactorMethods recoveryCodesLeft
      twoFactors { method } webauthnKeys { name } appPasswords { nodes { description } } } } }"""

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
