"""Security keys: both ceremonies by an authenticator of our own, and all that may be wrong."""

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
    check_second_factor,
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

FAILED = ["AUTHENTICATION_FAILED"]
KEYS = "{ user { webauthnKeys { id name createdAt lastUsedAt } enabled2fa } }"


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_a_key_is_registered_and_proved(ada: Client, clock: Clock, algorithm: str) -> None:
    key = SoftKey(algorithm)
    options = await challenged(ada, "REGISTRATION")
    assert options["rp"] == {"name": "Merganser", "id": "mail.example.org"}
    assert options["user"]["name"] == "ada"
    assert len(unpacked(options["challenge"])) == 64
    assert {one["alg"] for one in options["pubKeyCredParams"]} >= {-7, -8}
    given = {"name": " Blue ", "response": key.create(options)}
    payload = f"webauthnKey {{ id name }} recoveryCodes {USER}"
    done = await ask(ada, "webauthnRegister", payload, **given)
    assert done["webauthnKey"]["name"] == "Blue"
    assert done["user"]["enabled2fa"] == ["WEBAUTHN"]
    assert len(done["recoveryCodes"]) == 10
    (row,) = await all_of(ada.world, WebauthnKey)
    assert row.transports == ["nfc", "usb"]
    clock.tick(hours=1)
    options = await challenged(ada, "AUTHENTICATION")
    assert options["rpId"] == "mail.example.org"
    (allowed,) = options["allowCredentials"]
    assert (allowed["id"], allowed["transports"]) == (base64url(key.id), ["nfc", "usb"])
    handle = str(ada.user.id)
    assert await codes(ada, "webauthnCheck", response=key.get(options, handle=handle)) == []
    (shown,) = (await ada(KEYS))["user"]["webauthnKeys"]
    assert shown["lastUsedAt"] == clock().isoformat().replace("+00:00", "Z")
    (row,) = await all_of(ada.world, WebauthnKey)
    assert row.sign_count == key.count == 2


async def test_a_key_that_does_not_count_works_again_and_again(ada: Client) -> None:
    key = await key_on(ada)
    key = SoftKey(counts=False)
    proof = {"totp": (await _codes(ada))[0]}
    response = await made(ada, key)
    given = {"name": "Passkey", "response": response, "proof": proof}
    assert await codes(ada, "webauthnRegister", **given) == []
    for _ in range(3):
        assert await codes(ada, "webauthnCheck", response=await signed(ada, key)) == []


async def _codes(client: Client) -> list[str]:
    """New recovery codes, without a proof."""
    from resolvers.auth.second_factors import recovery_codes

    async with client.world.write_session(client.user.id) as session:
        return await recovery_codes.replace_recovery_codes(client.world, session, client.user.id)


async def test_the_first_key_ends_other_sign_ins_and_a_second_none(ada: Client) -> None:
    mine, other = await token_of(ada, "mine"), await token_of(ada, "other")
    key = await key_on(mine)
    assert await viewer_of(mine)
    assert await viewer_of(other) is None
    third = await token_of(ada, "third")
    options = await challenged(mine, "REGISTRATION")
    assert [one["id"] for one in options["excludeCredentials"]] == [base64url(key.id)]
    second = await key_on(mine, "EdDSA", proof={"webauthn": await signed(mine, key)})
    assert await viewer_of(third)
    assert len((await ada(KEYS))["user"]["webauthnKeys"]) == 2
    assert await codes(ada, "webauthnCheck", response=await signed(ada, second)) == []


async def test_a_further_key_needs_a_proof(ada: Client) -> None:
    await totp_on(ada)
    response = await made(ada, SoftKey())
    assert await codes(ada, "webauthnRegister", name="x", response=response) == FAILED
    assert await all_of(ada.world, WebauthnKey) == []


WRONG: dict[str, dict[str, Any]] = {
    "origin": {"origin": "https://mail.example.org.evil.example"},
    "scheme": {"origin": "http://mail.example.org"},
    "port": {"origin": "https://mail.example.org:8443"},
    "party": {"party": "evil.example"},
    "ceremony": {"type": "webauthn.nothing"},
    "challenge": {"challenge": base64url(b"x" * 64)},
    "no challenge": {"challenge": ""},
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_registration_that_is_not_right_is_refused(ada: Client, what: str) -> None:
    response = await made(ada, SoftKey(), **WRONG[what])
    assert await codes(ada, "webauthnRegister", name="x", response=response) == FAILED
    assert await all_of(ada.world, WebauthnKey) == []
    assert (await row_of(ada.world, ada.user.id)).second_factors == []


@pytest.mark.parametrize("what", [*WRONG, "handle"])
async def test_an_assertion_that_is_not_right_is_refused(ada: Client, what: str) -> None:
    key = await key_on(ada)
    response = await signed(ada, key, **WRONG.get(what, {"handle": "7"}))
    assert await codes(ada, "webauthnCheck", response=response) == FAILED
    events = {(row.action, row.result) for row in await all_of(ada.world, SecurityEvent)}
    assert ("webauthn check", "fail") in events


@pytest.mark.parametrize("part", ["signature", "authenticatorData", "clientDataJSON"])
@pytest.mark.parametrize("at", [0, 10, -1])
async def test_what_was_tampered_with_is_refused(ada: Client, part: str, at: int) -> None:
    key = await key_on(ada)
    response = await signed(ada, key)
    raw = bytearray(unpacked(response["response"][part]))
    raw[at] ^= 1
    response["response"][part] = base64url(bytes(raw))
    assert await codes(ada, "webauthnCheck", response=response) == FAILED


async def test_a_challenge_is_answered_once(ada: Client) -> None:
    key = SoftKey()
    response = await made(ada, key)
    assert await codes(ada, "webauthnRegister", name="x", response=response) == []
    proof = {"webauthn": await signed(ada, key)}
    again = await codes(ada, "webauthnRegister", name="y", response=response, proof=proof)
    assert again == FAILED
    response = await signed(ada, key)
    assert await codes(ada, "webauthnCheck", response=response) == []
    assert await codes(ada, "webauthnCheck", response=response) == FAILED


async def test_a_challenge_that_was_answered_wrongly_is_void(ada: Client) -> None:
    key = await key_on(ada)
    options = await challenged(ada, "AUTHENTICATION")
    assert await codes(ada, "webauthnCheck", response=key.get(options, party="x")) == FAILED
    assert await codes(ada, "webauthnCheck", response=key.get(options)) == FAILED


async def test_of_one_answer_given_many_times_at_once_one_counts(ada: Client) -> None:
    key = SoftKey(counts=False)
    response = await made(ada, key)
    assert await codes(ada, "webauthnRegister", name="x", response=response) == []
    answer, user = await signed(ada, key), await row_of(ada.world, ada.user.id)

    async def tried() -> Any:
        try:
            return await check_second_factor(context(ada), user, SecondFactorProof(webauthn=answer))
        except AuthenticationFailed:
            return None

    came = await asyncio.gather(*(tried() for _ in range(6)))
    assert sorted(came, key=str) == [None] * 5 + [TwoFactorMethod.WEBAUTHN]


@pytest.mark.parametrize(("minutes", "found"), [(59, []), (60, FAILED)])
async def test_a_challenge_is_good_for_an_hour(
    ada: Client, clock: Clock, minutes: int, found: list[str]
) -> None:
    response = await made(ada, SoftKey())
    clock.tick(minutes=minutes)
    assert await codes(ada, "webauthnRegister", name="x", response=response) == found


async def test_a_challenge_is_for_one_ceremony_only(ada: Client) -> None:
    key = await key_on(ada)
    registration = await challenged(ada, "REGISTRATION")
    assert await codes(ada, "webauthnCheck", response=key.get(registration)) == FAILED
    proof = {"webauthn": await signed(ada, key)}
    response = SoftKey().create(await challenged(ada, "AUTHENTICATION"))
    refused = await codes(ada, "webauthnRegister", name="y", response=response, proof=proof)
    assert refused == FAILED


async def test_a_challenge_and_a_key_are_their_owners(ada: Client, bob: Client) -> None:
    hers, his = await key_on(ada), await key_on(bob)
    for_ada = await challenged(ada, "AUTHENTICATION")
    for_bob = await challenged(bob, "AUTHENTICATION")
    assert await codes(bob, "webauthnCheck", response=his.get(for_ada)) == FAILED
    assert await codes(bob, "webauthnCheck", response=hers.get(for_bob)) == FAILED
    assert await codes(ada, "webauthnCheck", response=hers.get(for_ada)) == []


async def test_a_counter_that_went_back_is_a_copy_of_the_key(ada: Client) -> None:
    key = await key_on(ada)
    for _ in range(3):
        assert await codes(ada, "webauthnCheck", response=await signed(ada, key)) == []
    key.count = 2
    for _ in range(2):  # one behind, and the same again
        assert await codes(ada, "webauthnCheck", response=await signed(ada, key)) == FAILED
    assert await codes(ada, "webauthnCheck", response=await signed(ada, key)) == []


async def test_a_key_is_registered_once(ada: Client, bob: Client) -> None:
    key = await key_on(ada)
    proof = {"webauthn": await signed(ada, key)}
    given = {"name": "again", "response": await made(ada, key)}
    assert await codes(ada, "webauthnRegister", **given, proof=proof) == ["CONFLICT"]
    response = await made(bob, key)
    assert await codes(bob, "webauthnRegister", name="mine", response=response) == ["CONFLICT"]
    assert (await row_of(ada.world, bob.user.id)).second_factors == []


BROKEN: list[Any] = [
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


@pytest.mark.parametrize("response", BROKEN)
async def test_what_is_no_answer_is_refused(ada: Client, response: Any) -> None:
    assert await codes(ada, "webauthnRegister", name="x", response=response) == FAILED
    await key_on(ada)
    assert await codes(ada, "webauthnCheck", response=response) == FAILED


async def test_parts_of_an_answer_that_are_nonsense_are_refused(ada: Client) -> None:
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
        found = await codes(ada, "webauthnRegister", name="x", response=response)
        good = part == "transports"
        assert found == ([] if good else FAILED), (part, value)
        if good:
            await ask(ada, "twoFactorDisable", proof={"totp": (await _codes(ada))[0]})


async def test_an_answer_has_its_bounds(ada: Client) -> None:
    odd: list[Any] = [[], "x", 7]
    for response in odd:
        done = await ask(ada, "webauthnRegister", name="x", response=response)
        assert [(e["code"], e["path"]) for e in done["errors"]] == [("VALIDATION", ["response"])]
    huge: Any = {"response": {"clientDataJSON": "a" * 40_000}}
    assert await codes(ada, "webauthnRegister", name="x", response=huge) == ["VALIDATION"]
    for name in ("", " ", "x" * 129, "a\x7f"):
        done = await ask(ada, "webauthnRegister", name=name, response={})
        assert [(e["code"], e["path"]) for e in done["errors"]] == [("VALIDATION", ["name"])]


async def test_keys_and_challenges_are_bounded(ada: Client, clock: Clock) -> None:
    first = await challenged(ada, "REGISTRATION")
    for _ in range(webauthn.MAX_CHALLENGES + 3):
        last = await challenged(ada, "REGISTRATION")
    assert len(await all_of(ada.world, WebauthnChallenge)) == webauthn.MAX_CHALLENGES
    given = {"name": "x", "response": SoftKey().create(first)}
    assert await codes(ada, "webauthnRegister", **given) == FAILED
    given = {"name": "x", "response": SoftKey().create(last)}
    assert await codes(ada, "webauthnRegister", **given) == []
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
    done = await ask(ada, "webauthnChallenge", ceremony="REGISTRATION")
    assert [error["code"] for error in done["errors"]] == ["LIMIT_REACHED"]


async def test_without_keys_nobody_is_asked_for_one(ada: Client) -> None:
    assert await codes(ada, "webauthnChallenge", ceremony="AUTHENTICATION") == ["CONFLICT"]


# ---------------------------------------------------------------- sign-ins that wait


async def test_a_sign_in_that_waits_is_complete_with_a_key(ada: Client) -> None:
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


async def test_strangers_get_no_challenge_whomever_they_name(ada: Client, bob: Client) -> None:
    await key_on(ada)
    nobody = Context(ada.world, Viewer())
    for key in (None, ada.user.id, bob.user.id, 7):
        with pytest.raises(Unauthenticated):
            await second_factors_mutations.create_webauthn_challenge(nobody, key, None)
    text = "mutation ($u: UserRef) { webauthnChallenge(input: {user: $u}) { challenge } }"
    answers = []
    for user in ({"username": "ada"}, {"username": "bob"}, {"username": "nobody"}, None):
        asked = {"query": text, "variables": {"u": user}}
        (error,) = (await ada.http.post("/graphql", json=asked)).json()["errors"]
        answers.append((error["message"], error["extensions"]["code"]))
    assert len(set(answers)) == 1
    ctx = await waiting(bob)
    for key in (ada.user.id, 7):
        with pytest.raises(NotFound):
            await second_factors_mutations.create_webauthn_challenge(ctx, key, None)
    assert len(await all_of(ada.world, WebauthnChallenge)) == 0


# ---------------------------------------------------------------- removing


async def test_with_the_last_key_the_factor_is_off(ada: Client) -> None:
    first = await key_on(ada)
    proof = {"webauthn": await signed(ada, first)}
    second = await key_on(ada, "EdDSA", proof=proof)
    assert await codes(ada, "webauthnDelete", ids=[second.global_id]) == FAILED
    proof = {"webauthn": await signed(ada, first)}
    done = await ask(ada, "webauthnDelete", "deletedIds", ids=[second.global_id], proof=proof)
    assert done["deletedIds"] == [second.global_id]
    assert (await ada(KEYS))["user"]["enabled2fa"] == ["WEBAUTHN"]
    proof = {"webauthn": await signed(ada, first)}
    assert await codes(ada, "webauthnDelete", ids=[first.global_id], proof=proof) == []
    assert (await ada(KEYS))["user"] == {"webauthnKeys": [], "enabled2fa": []}
    assert await all_of(ada.world, WebauthnChallenge) == []


async def test_keys_go_all_or_none(ada: Client, bob: Client, root: Client) -> None:
    hers, his = await key_on(ada), await key_on(bob)
    options = {"reason": "lost"}
    both = [hers.global_id, his.global_id]
    assert await codes(root, "webauthnDelete", ids=both, options=options) == ["VALIDATION"]
    done = await ask(ada, "webauthnDelete", ids=both, proof={"totp": "x"})
    assert [(e["code"], e["index"]) for e in done["errors"]] == [("NOT_FOUND", 1)]
    assert len(await all_of(ada.world, WebauthnKey)) == 2
    assert await codes(root, "webauthnDelete", ids=both[:1]) == ["VALIDATION"]
    assert await codes(root, "webauthnDelete", ids=both[:1], options=options) == []
    assert await codes(root, "webauthnDelete", ids=[], options=options) == []


async def test_others_see_no_key(ada: Client, bob: Client, root: Client) -> None:
    key = await key_on(ada)
    text = "query ($id: ID!) { node(id: $id) { id ... on WebauthnKey { name } } }"
    assert (await ada(text, id=key.global_id))["node"]["name"] == "Blue"
    assert (await root(text, id=key.global_id))["node"]["name"] == "Blue"
    assert (await bob(text, id=key.global_id))["node"] is None
    assert await codes(bob, "webauthnDelete", ids=[key.global_id]) == ["NOT_FOUND"]
    other, theirs = await admin_of(bob, domain="elsewhere.example"), await admin_of(bob)
    assert await webauthn.load_keys_of_users(other, [ada.user.id]) == [[]]
    assert len((await webauthn.load_keys_of_users(theirs, [ada.user.id]))[0]) == 1


# ---------------------------------------------------------------- who relies on them


@pytest.mark.parametrize(
    ("options", "party"),
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
def test_the_party_is_what_is_set(options: Options, party: tuple[str, list[str]]) -> None:
    found = webauthn.relying_party(options)
    assert (found.id, found.origins) == party


async def test_without_an_address_there_are_no_ceremonies(ada: Client) -> None:
    world = replace(ada.world, options=Options(hostname="mx.example.org"))
    ctx = Context(world, context(ada).viewer)
    with pytest.raises(ServiceUnavailable, match="MERGANSER_PUBLIC_URL"):
        await second_factors_mutations.create_webauthn_challenge(ctx, None, None)


async def test_the_host_of_a_request_is_not_believed(ada: Client) -> None:
    text = "mutation { webauthnChallenge(input: {}) { challenge } }"
    headers = {**ada.headers, "Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    answer = await ada.http.post("/graphql", json={"query": text}, headers=headers)
    assert "evil" not in answer.text
    assert "mail.example.org" in answer.text


async def test_old_challenges_are_tidied_away(ada: Client, clock: Clock) -> None:
    from mail.maintenance.housekeeping import run_round

    await challenged(ada, "REGISTRATION")
    clock.tick(hours=6)
    assert (await run_round(ada.world)).challenges == 1


async def test_many_accounts_cost_no_more_statements_than_one(
    ada: Client, root: Client, statements: list[str]
) -> None:
    from tests.conftest import make_user

    text = """{ users(first: 50) { nodes { enabled2fa recoveryCodesLeft
      twoFactors { method } webauthnKeys { name } appPasswords { description } } } }"""

    async def cost() -> int:
        del statements[:]
        await root(text)
        return len([sent for sent in statements if "api_keys" not in sent])

    await key_on(ada)
    costs = [await cost()]
    for n in range(20):
        await make_user(ada.world, f"n{n}")
    costs += [await cost(), await cost()]
    assert len(set(costs)) == 1
