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
from tests.conftest import Client, Clock, context
from tests.support.accounts.authenticators import (
    SoftKey,
    base64url,
    challenged,
    key_on,
    made,
    signed,
    totp_on,
    unpacked,
)
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

FAILED_CODES = ["AUTHENTICATION_FAILED"]
KEYS_QUERY = "{ user { webauthnKeys { id name createdAt lastUsedAt } enabled2fa } }"


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_security_key_is_registered_and_checked(
    ada: Client, clock: Clock, algorithm: str
) -> None:
    key = SoftKey(algorithm)
    options = await challenged(ada, "REGISTRATION")
    assert options["rp"] == {"name": "Merganser", "id": "mail.example.org"}
    assert options["user"]["name"] == "ada"
    assert len(unpacked(options["challenge"])) == 64
    assert {parameters["alg"] for parameters in options["pubKeyCredParams"]} >= {-7, -8}
    arguments = {"name": " Blue ", "response": key.create(options)}
    payload_fields = f"webauthnKey {{ id name }} recoveryCodes {USER}"
    payload = await ask(ada, "webauthnRegister", payload_fields, **arguments)
    assert payload["webauthnKey"]["name"] == "Blue"
    assert payload["user"]["enabled2fa"] == ["WEBAUTHN"]
    assert len(payload["recoveryCodes"]) == 10
    (row,) = await all_of(ada.world, WebauthnKey)
    assert row.transports == ["nfc", "usb"]
    clock.tick(hours=1)
    options = await challenged(ada, "AUTHENTICATION")
    assert options["rpId"] == "mail.example.org"
    (allowed,) = options["allowCredentials"]
    assert (allowed["id"], allowed["transports"]) == (base64url(key.id), ["nfc", "usb"])
    handle = str(ada.user.id)
    assert await codes(ada, "webauthnCheck", response=key.get(options, handle=handle)) == []
    (shown_key,) = (await ada(KEYS_QUERY))["user"]["webauthnKeys"]
    assert shown_key["lastUsedAt"] == clock().isoformat().replace("+00:00", "Z")
    (row,) = await all_of(ada.world, WebauthnKey)
    assert row.sign_count == key.count == 2


async def test_security_key_without_sign_count_works_repeatedly(ada: Client) -> None:
    key = await key_on(ada)
    key = SoftKey(counts=False)
    proof = {"totp": (await _create_recovery_codes(ada))[0]}
    response = await made(ada, key)
    arguments = {"name": "Passkey", "response": response, "proof": proof}
    assert await codes(ada, "webauthnRegister", **arguments) == []
    for _ in range(3):
        assert await codes(ada, "webauthnCheck", response=await signed(ada, key)) == []


async def _create_recovery_codes(client: Client) -> list[str]:
    """Create new recovery codes without a proof."""
    from resolvers.auth.second_factors import recovery_codes

    async with client.world.write_session(client.user.id) as session:
        return await recovery_codes.replace_recovery_codes(client.world, session, client.user.id)


async def test_only_first_security_key_ends_other_tokens(ada: Client) -> None:
    current_client, other_client = await token_of(ada, "mine"), await token_of(ada, "other")
    key = await key_on(current_client)
    assert await viewer_of(current_client)
    assert await viewer_of(other_client) is None
    third_client = await token_of(ada, "third")
    options = await challenged(current_client, "REGISTRATION")
    assert [item["id"] for item in options["excludeCredentials"]] == [base64url(key.id)]
    second_key = await key_on(
        current_client, "EdDSA", proof={"webauthn": await signed(current_client, key)}
    )
    assert await viewer_of(third_client)
    assert len((await ada(KEYS_QUERY))["user"]["webauthnKeys"]) == 2
    assert await codes(ada, "webauthnCheck", response=await signed(ada, second_key)) == []


async def test_additional_security_key_needs_a_proof(ada: Client) -> None:
    await totp_on(ada)
    response = await made(ada, SoftKey())
    assert await codes(ada, "webauthnRegister", name="x", response=response) == FAILED_CODES
    assert await all_of(ada.world, WebauthnKey) == []


INVALID_CLIENT_DATA: dict[str, dict[str, Any]] = {
    "origin": {"origin": "https://mail.example.org.evil.example"},
    "scheme": {"origin": "http://mail.example.org"},
    "port": {"origin": "https://mail.example.org:8443"},
    "party": {"party": "evil.example"},
    "ceremony": {"type": "webauthn.nothing"},
    "challenge": {"challenge": base64url(b"x" * 64)},
    "no challenge": {"challenge": ""},
}


@pytest.mark.parametrize("case", INVALID_CLIENT_DATA)
async def test_invalid_registration_is_refused(ada: Client, case: str) -> None:
    response = await made(ada, SoftKey(), **INVALID_CLIENT_DATA[case])
    assert await codes(ada, "webauthnRegister", name="x", response=response) == FAILED_CODES
    assert await all_of(ada.world, WebauthnKey) == []
    assert (await row_of(ada.world, ada.user.id)).second_factors == []


@pytest.mark.parametrize("case", [*INVALID_CLIENT_DATA, "handle"])
async def test_invalid_assertion_is_refused(ada: Client, case: str) -> None:
    key = await key_on(ada)
    response = await signed(ada, key, **INVALID_CLIENT_DATA.get(case, {"handle": "7"}))
    assert await codes(ada, "webauthnCheck", response=response) == FAILED_CODES
    events = {(row.action, row.result) for row in await all_of(ada.world, SecurityEvent)}
    assert ("webauthn check", "fail") in events


@pytest.mark.parametrize("part", ["signature", "authenticatorData", "clientDataJSON"])
@pytest.mark.parametrize("index", [0, 10, -1])
async def test_assertion_with_a_changed_byte_is_refused(ada: Client, part: str, index: int) -> None:
    key = await key_on(ada)
    response = await signed(ada, key)
    raw = bytearray(unpacked(response["response"][part]))
    raw[index] ^= 1
    response["response"][part] = base64url(bytes(raw))
    assert await codes(ada, "webauthnCheck", response=response) == FAILED_CODES


async def test_challenge_is_valid_once(ada: Client) -> None:
    key = SoftKey()
    response = await made(ada, key)
    assert await codes(ada, "webauthnRegister", name="x", response=response) == []
    proof = {"webauthn": await signed(ada, key)}
    error_codes = await codes(ada, "webauthnRegister", name="y", response=response, proof=proof)
    assert error_codes == FAILED_CODES
    response = await signed(ada, key)
    assert await codes(ada, "webauthnCheck", response=response) == []
    assert await codes(ada, "webauthnCheck", response=response) == FAILED_CODES


async def test_challenge_is_invalid_after_a_wrong_response(ada: Client) -> None:
    key = await key_on(ada)
    options = await challenged(ada, "AUTHENTICATION")
    assert await codes(ada, "webauthnCheck", response=key.get(options, party="x")) == FAILED_CODES
    assert await codes(ada, "webauthnCheck", response=key.get(options)) == FAILED_CODES


async def test_concurrent_use_of_assertion_succeeds_once(ada: Client) -> None:
    key = SoftKey(counts=False)
    response = await made(ada, key)
    assert await codes(ada, "webauthnRegister", name="x", response=response) == []
    assertion, user = await signed(ada, key), await row_of(ada.world, ada.user.id)

    async def try_assertion() -> Any:
        try:
            return await verify_and_use_up_second_factor(
                context(ada), user, SecondFactorProof(webauthn=assertion)
            )
        except AuthenticationFailed:
            return None

    results = await asyncio.gather(*(try_assertion() for _ in range(6)))
    assert sorted(results, key=str) == [None] * 5 + [TwoFactorMethod.WEBAUTHN]


@pytest.mark.parametrize(("minutes", "expected_codes"), [(59, []), (60, FAILED_CODES)])
async def test_challenge_expires_after_one_hour(
    ada: Client, clock: Clock, minutes: int, expected_codes: list[str]
) -> None:
    response = await made(ada, SoftKey())
    clock.tick(minutes=minutes)
    assert await codes(ada, "webauthnRegister", name="x", response=response) == expected_codes


async def test_challenge_is_valid_for_one_ceremony_only(ada: Client) -> None:
    key = await key_on(ada)
    registration_options = await challenged(ada, "REGISTRATION")
    assert await codes(ada, "webauthnCheck", response=key.get(registration_options)) == FAILED_CODES
    proof = {"webauthn": await signed(ada, key)}
    response = SoftKey().create(await challenged(ada, "AUTHENTICATION"))
    error_codes = await codes(ada, "webauthnRegister", name="y", response=response, proof=proof)
    assert error_codes == FAILED_CODES


async def test_challenge_and_key_of_other_user_are_refused(ada: Client, bob: Client) -> None:
    hers, his = await key_on(ada), await key_on(bob)
    ada_options = await challenged(ada, "AUTHENTICATION")
    bob_options = await challenged(bob, "AUTHENTICATION")
    assert await codes(bob, "webauthnCheck", response=his.get(ada_options)) == FAILED_CODES
    assert await codes(bob, "webauthnCheck", response=hers.get(bob_options)) == FAILED_CODES
    assert await codes(ada, "webauthnCheck", response=hers.get(ada_options)) == []


async def test_sign_count_that_does_not_increase_is_refused(ada: Client) -> None:
    key = await key_on(ada)
    for _ in range(3):
        assert await codes(ada, "webauthnCheck", response=await signed(ada, key)) == []
    key.count = 2
    for _ in range(2):  # one lower, then equal
        assert await codes(ada, "webauthnCheck", response=await signed(ada, key)) == FAILED_CODES
    assert await codes(ada, "webauthnCheck", response=await signed(ada, key)) == []


async def test_security_key_is_registered_once(ada: Client, bob: Client) -> None:
    key = await key_on(ada)
    proof = {"webauthn": await signed(ada, key)}
    arguments = {"name": "again", "response": await made(ada, key)}
    assert await codes(ada, "webauthnRegister", **arguments, proof=proof) == ["CONFLICT"]
    response = await made(bob, key)
    assert await codes(bob, "webauthnRegister", name="mine", response=response) == ["CONFLICT"]
    assert (await row_of(ada.world, bob.user.id)).second_factors == []


MALFORMED_RESPONSES: list[Any] = [
    {},
    {"id": 7},
    {"response": None},
    {"response": []},
    {"response": {"clientDataJSON": 7}},
    {"response": {"clientDataJSON": "!!!"}},
    {"response": {"clientDataJSON": base64url(b"\xff")}},
    {"response": {"clientDataJSON": base64url(b"[]")}},
    {"response": {"clientDataJSON": base64url(b'{"challenge": 7}')}},
    {"response": {"clientDataJSON": base64url(b"[" * 20_000)}},
    {"response": {"clientDataJSON": "ä"}},
]


@pytest.mark.parametrize("response", MALFORMED_RESPONSES)
async def test_malformed_webauthn_response_is_refused(ada: Client, response: Any) -> None:
    assert await codes(ada, "webauthnRegister", name="x", response=response) == FAILED_CODES
    await key_on(ada)
    assert await codes(ada, "webauthnCheck", response=response) == FAILED_CODES


async def test_malformed_attestation_is_refused(ada: Client) -> None:
    for part, value in (
        ("attestationObject", ""),
        ("attestationObject", base64url(b"\xa0")),
        ("attestationObject", base64url(b"\xff" * 100)),
        ("attestationObject", 7),
        ("transports", "usb"),
        ("transports", [7, None]),
    ):
        response = await made(ada, SoftKey())
        response["response"][part] = value
        error_codes = await codes(ada, "webauthnRegister", name="x", response=response)
        is_valid = part == "transports"
        assert error_codes == ([] if is_valid else FAILED_CODES), (part, value)
        if is_valid:
            await ask(
                ada, "twoFactorDisable", proof={"totp": (await _create_recovery_codes(ada))[0]}
            )


async def test_invalid_response_type_size_and_name_are_refused(ada: Client) -> None:
    invalid_responses: list[Any] = [[], "x", 7]
    for response in invalid_responses:
        payload = await ask(ada, "webauthnRegister", name="x", response=response)
        assert [(e["code"], e["path"]) for e in payload["errors"]] == [("VALIDATION", ["response"])]
    large_response: Any = {"response": {"clientDataJSON": "a" * 40_000}}
    assert await codes(ada, "webauthnRegister", name="x", response=large_response) == ["VALIDATION"]
    for name in ("", " ", "x" * 129, "a\x7f"):
        payload = await ask(ada, "webauthnRegister", name=name, response={})
        assert [(e["code"], e["path"]) for e in payload["errors"]] == [("VALIDATION", ["name"])]


async def test_number_of_keys_and_challenges_is_limited(ada: Client, clock: Clock) -> None:
    first_options = await challenged(ada, "REGISTRATION")
    for _ in range(webauthn.MAX_CHALLENGES + 3):
        last_options = await challenged(ada, "REGISTRATION")
    assert len(await all_of(ada.world, WebauthnChallenge)) == webauthn.MAX_CHALLENGES
    arguments = {"name": "x", "response": SoftKey().create(first_options)}
    assert await codes(ada, "webauthnRegister", **arguments) == FAILED_CODES
    arguments = {"name": "x", "response": SoftKey().create(last_options)}
    assert await codes(ada, "webauthnRegister", **arguments) == []
    async with ada.world.write_session() as session:
        session.add_all(
            WebauthnKey(
                id=ada.world.new_id(),
                user_id=ada.user.id,
                name=str(n),
                credential_id=str(n),
                public_key="",
                created_at=clock(),
            )
            for n in range(webauthn.MAX_KEYS - 1)
        )
    payload = await ask(ada, "webauthnChallenge", ceremony="REGISTRATION")
    assert [error["code"] for error in payload["errors"]] == ["LIMIT_REACHED"]


async def test_authentication_challenge_without_keys_is_refused(ada: Client) -> None:
    assert await codes(ada, "webauthnChallenge", ceremony="AUTHENTICATION") == ["CONFLICT"]


async def test_security_key_completes_pending_sign_in(ada: Client) -> None:
    key = await key_on(ada)
    ctx = await waiting(ada)
    with pytest.raises(Forbidden):
        await second_factors_mutations.create_webauthn_challenge(ctx, None, Ceremony.REGISTRATION)
    options = await second_factors_mutations.create_webauthn_challenge(ctx, None, None)
    assert (
        await second_factors_mutations.prove_second_factor(
            ctx, None, SecondFactorProof(webauthn=key.get(options))
        )
        == ada.user.id
    )
    (token,) = await all_of(ada.world, AccessToken)
    assert not token.pending


async def test_challenge_without_sign_in_is_refused(ada: Client, bob: Client) -> None:
    await key_on(ada)
    public_context = Context(ada.world, Viewer())
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
    ctx = await waiting(bob)
    for user_id in (ada.user.id, 7):
        with pytest.raises(NotFound):
            await second_factors_mutations.create_webauthn_challenge(ctx, user_id, None)
    assert len(await all_of(ada.world, WebauthnChallenge)) == 0


async def test_deleting_last_key_disables_webauthn(ada: Client) -> None:
    first_key = await key_on(ada)
    proof = {"webauthn": await signed(ada, first_key)}
    second_key = await key_on(ada, "EdDSA", proof=proof)
    assert await codes(ada, "webauthnDelete", ids=[second_key.global_id]) == FAILED_CODES
    proof = {"webauthn": await signed(ada, first_key)}
    payload = await ask(
        ada, "webauthnDelete", "deletedIds", ids=[second_key.global_id], proof=proof
    )
    assert payload["deletedIds"] == [second_key.global_id]
    assert (await ada(KEYS_QUERY))["user"]["enabled2fa"] == ["WEBAUTHN"]
    proof = {"webauthn": await signed(ada, first_key)}
    assert await codes(ada, "webauthnDelete", ids=[first_key.global_id], proof=proof) == []
    assert (await ada(KEYS_QUERY))["user"] == {"webauthnKeys": [], "enabled2fa": []}
    assert await all_of(ada.world, WebauthnChallenge) == []


async def test_webauthn_delete_is_all_or_nothing(ada: Client, bob: Client, root: Client) -> None:
    hers, his = await key_on(ada), await key_on(bob)
    options = {"reason": "lost"}
    key_ids = [hers.global_id, his.global_id]
    assert await codes(root, "webauthnDelete", ids=key_ids, options=options) == ["VALIDATION"]
    payload = await ask(ada, "webauthnDelete", ids=key_ids, proof={"totp": "x"})
    assert [(e["code"], e["index"]) for e in payload["errors"]] == [("NOT_FOUND", 1)]
    assert len(await all_of(ada.world, WebauthnKey)) == 2
    assert await codes(root, "webauthnDelete", ids=key_ids[:1]) == ["VALIDATION"]
    assert await codes(root, "webauthnDelete", ids=key_ids[:1], options=options) == []
    assert await codes(root, "webauthnDelete", ids=[], options=options) == []


async def test_security_key_is_hidden_from_other_users(
    ada: Client, bob: Client, root: Client
) -> None:
    key = await key_on(ada)
    node_query = "query ($id: ID!) { node(id: $id) { id ... on WebauthnKey { name } } }"
    assert (await ada(node_query, id=key.global_id))["node"]["name"] == "Blue"
    assert (await root(node_query, id=key.global_id))["node"]["name"] == "Blue"
    assert (await bob(node_query, id=key.global_id))["node"] is None
    assert await codes(bob, "webauthnDelete", ids=[key.global_id]) == ["NOT_FOUND"]
    other_admin, own_admin = await admin_of(bob, domain="elsewhere.example"), await admin_of(bob)
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
                webauthn_id="example.org",
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


async def test_challenge_without_public_url_is_refused(ada: Client) -> None:
    world = replace(ada.world, options=Options(hostname="mx.example.org"))
    ctx = Context(world, context(ada).viewer)
    with pytest.raises(ServiceUnavailable, match="MERGANSER_PUBLIC_URL"):
        await second_factors_mutations.create_webauthn_challenge(ctx, None, None)


async def test_challenge_ignores_host_headers(ada: Client) -> None:
    document = "mutation { webauthnChallenge(input: {}) { challenge } }"
    headers = {**ada.headers, "Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    response = await ada.http.post("/graphql", json={"query": document}, headers=headers)
    assert "evil" not in response.text
    assert "mail.example.org" in response.text


async def test_housekeeping_deletes_old_challenges(ada: Client, clock: Clock) -> None:
    from mail.maintenance.housekeeping import run_round

    await challenged(ada, "REGISTRATION")
    clock.tick(hours=6)
    assert (await run_round(ada.world)).challenges == 1


async def test_factors_of_many_users_load_in_constant_statements(
    ada: Client, root: Client, statements: list[str]
) -> None:
    from tests.conftest import make_user

    query = """{ users(first: 50) { nodes { enabled2fa recoveryCodesLeft
      twoFactors { method } webauthnKeys { name } appPasswords { description } } } }"""

    async def count_statements() -> int:
        del statements[:]
        await root(query)
        return len([statement for statement in statements if "api_keys" not in statement])

    await key_on(ada)
    statement_counts = [await count_statements()]
    for n in range(20):
        await make_user(ada.world, f"n{n}")
    statement_counts += [await count_statements(), await count_statements()]
    assert len(set(statement_counts)) == 1
