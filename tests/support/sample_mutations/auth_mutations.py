"""Sample calls of mutations of API keys, application passwords, tokens and second factors."""

from models.auth.credentials import AccessToken
from models.users.roles import Role
from tests.conftest import Client, make_client
from tests.support.accounts import authenticators
from tests.support.sample_mutations.mutation_call import Call, call
from tests.support.sample_mutations.user_mutations import user_create


@call
async def api_key_create(_ada: Client, _root: Client) -> Call:
    return Call("apiKeyCreate", {"name": "reports"}, "apiKey { name }")


@call
async def act_as(ada: Client, _root: Client) -> Call:
    administrator = await make_client(ada.world, ada.http, "boss", role=Role.ADMIN)
    return Call("actAs", {"user": {"username": "ada"}}, "user { username } scope", by=administrator)


@call
async def api_key_delete(ada: Client, _root: Client) -> Call:
    return Call("apiKeyDelete", {"ids": [await _create_api_key(ada)]}, "deletedIds")


@call
async def api_key_update(ada: Client, _root: Client) -> Call:
    input_fields = {"ids": [await _create_api_key(ada)], "name": "y", "active": False}
    return Call("apiKeyUpdate", input_fields, "apiKeys { name active }")


@call
async def auth_cache_flush(_ada: Client, _root: Client) -> Call:
    input_fields = {"users": {"usernames": ["ada"]}}
    return Call("authCacheFlush", input_fields, "entries", journaled=False, by_root=True)


@call
async def app_password_create(_ada: Client, _root: Client) -> Call:
    return Call("appPasswordCreate", {"description": "Phone"}, "appPassword { description }")


@call
async def app_password_delete(ada: Client, _root: Client) -> Call:
    return Call("appPasswordDelete", {"ids": [await _create_app_password(ada)]}, "deletedIds")


@call
async def app_password_update(ada: Client, _root: Client) -> Call:
    input_fields = {"ids": [await _create_app_password(ada)], "active": False}
    return Call("appPasswordUpdate", input_fields, "appPasswords { active }")


@call
async def authenticate(_ada: Client, root: Client) -> Call:
    payload = await (await user_create(_ada, root))(root)
    assert payload["errors"] == []
    input_fields = {"username": "eve@example.org", "password": "correct horse", "token": True}
    return Call("authenticate", input_fields, "user { username }")


@call
async def custom_two_factor_disable(ada: Client, root: Client) -> Call:
    await (await custom_two_factor_enable(ada, root))(root)
    input_fields = {"user": {"username": "ada"}, "options": {"reason": "the application is gone"}}
    payload = "user { enabled2fa }"
    return Call("customTwoFactorDisable", input_fields, payload, by_root=True)


@call
async def custom_two_factor_enable(_ada: Client, _root: Client) -> Call:
    input_fields = {"user": {"username": "ada"}}
    return Call("customTwoFactorEnable", input_fields, "user { enabled2fa }", by_root=True)


@call
async def recovery_codes_create(ada: Client, _root: Client) -> Call:
    proof = {"totp": await authenticators.code_on(ada)}
    return Call("recoveryCodesCreate", {"proof": proof})


@call
async def session_kick(ada: Client, _root: Client) -> Call:
    now, world = ada.world.now(), ada.world
    async with world.write_session(ada.user.id) as session:
        session.add(
            AccessToken(
                id=world.new_id(),
                user_id=ada.user.id,
                digest="x",
                auth_version=1,
                created_at=now,
                last_used_at=now,
                expires_at=now,
            )
        )
    return Call("sessionKick", {"revokeTokens": True}, "kicked results")


@call
async def token_revoke(_ada: Client, _root: Client) -> Call:
    return Call("tokenRevoke", {"all": True}, "revoked", journaled=False)


@call
async def totp_check(ada: Client, _root: Client) -> Call:
    return Call("totpCheck", {"token": await authenticators.code_on(ada)}, "valid")


@call
async def totp_disable(ada: Client, _root: Client) -> Call:
    input_fields = {"proof": {"totp": await authenticators.code_on(ada)}}
    return Call("totpDisable", input_fields, "user { enabled2fa }")


@call
async def totp_enable(ada: Client, _root: Client) -> Call:
    code = authenticators.code_of(ada.world, await authenticators.seed_of(ada))
    return Call("totpEnable", {"token": code}, "user { enabled2fa }")


@call
async def totp_import(_ada: Client, _root: Client) -> Call:
    input_fields = {"user": {"username": "ada"}, "seed": "GEZD GNBV GY3T QOJQ"}
    return Call("totpImport", input_fields, "user { enabled2fa }", by_root=True)


@call
async def totp_setup(_ada: Client, _root: Client) -> Call:
    return Call("totpSetup", {"label": "Ada"})


@call
async def two_factor_disable(ada: Client, _root: Client) -> Call:
    input_fields = {"proof": {"totp": await authenticators.code_on(ada)}}
    return Call("twoFactorDisable", input_fields, "user { enabled2fa }")


@call
async def webauthn_challenge(_ada: Client, _root: Client) -> Call:
    return Call("webauthnChallenge", journaled=False)


@call
async def webauthn_check(ada: Client, _root: Client) -> Call:
    key = await authenticators.key_on(ada)
    return Call("webauthnCheck", {"response": await authenticators.signed(ada, key)}, "valid")


@call
async def webauthn_delete(ada: Client, _root: Client) -> Call:
    key = await authenticators.key_on(ada)
    proof = {"webauthn": await authenticators.signed(ada, key)}
    return Call("webauthnDelete", {"ids": [key.global_id], "proof": proof}, "deletedIds")


@call
async def webauthn_register(ada: Client, _root: Client) -> Call:
    response = await authenticators.made(ada, authenticators.SoftKey())
    input_fields = {"name": "Blue", "response": response}
    return Call("webauthnRegister", input_fields, "webauthnKey { name } user { enabled2fa }")


async def _create_api_key(ada: Client) -> str:
    document = 'mutation { apiKeyCreate(input: {name: "x"}) { apiKey { id } } }'
    return str((await ada(document))["apiKeyCreate"]["apiKey"]["id"])


async def _create_app_password(ada: Client) -> str:
    data = await ada(
        'mutation { appPasswordCreate(input: {description: "Phone"}) { appPassword { id } } }'
    )
    app_password_id: str = data["appPasswordCreate"]["appPassword"]["id"]
    return app_password_id
