"""Sample calls of mutations of API keys, application passwords, tokens and second factors."""

from models.auth.credentials import AccessToken
from models.users.roles import Role
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts import authenticators
from tests.support.sample_mutations.mutation_call import MutationCall, register_call
from tests.support.sample_mutations.user_mutations import user_create


@register_call
async def api_key_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("apiKeyCreate", {"name": "reports"}, "apiKey { name }")


@register_call
async def user_impersonate(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    administrator = await make_client(ada.environment, ada.http, "boss", role=Role.ADMIN)
    return MutationCall(
        "userImpersonate",
        {"user": {"username": "ada"}},
        "user { username } scopes",
        other_caller=administrator,
    )


@register_call
async def api_key_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "apiKeyDelete", {"apiKeys": [{"id": await _create_api_key(ada)}]}, "deletedIds"
    )


@register_call
async def api_key_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "apiKeys": [{"id": await _create_api_key(ada)}],
        "set": {"name": "y", "active": False},
    }
    return MutationCall("apiKeyUpdate", input_fields, "apiKeys { name active }")


@register_call
async def auth_cache_flush(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"users": {"usernames": ["ada"]}}
    return MutationCall(
        "authCacheFlush", input_fields, "flushedCount", journaled=False, by_root=True
    )


@register_call
async def app_password_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "appPasswordCreate", {"description": "Phone"}, "appPassword { description }"
    )


@register_call
async def app_password_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "appPasswordDelete",
        {"appPasswords": [{"id": await _create_app_password(ada)}]},
        "deletedIds",
    )


@register_call
async def app_password_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "appPasswords": [{"id": await _create_app_password(ada)}],
        "set": {"active": False},
    }
    return MutationCall("appPasswordUpdate", input_fields, "appPasswords { active }")


@register_call
async def authenticate(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    payload = await (await user_create(_ada, root))(root)
    assert payload["errors"] == []
    input_fields = {
        "username": "eve@example.org",
        "password": "correct horse",
        "scopes": ["MAIL_READ", "SUBMIT"],
    }
    return MutationCall("authenticate", input_fields, "token scopes requiredTwoFactorMethods")


@register_call
async def password_verify(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    payload = await (await user_create(_ada, root))(root)
    assert payload["errors"] == []
    input_fields = {
        "username": "eve@example.org",
        "password": "correct horse",
        "scope": "IMAP",
        "protocol": "IMAP",
    }
    return MutationCall("passwordVerify", input_fields, "user { username }")


@register_call
async def external_two_factor_disable(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await (await external_two_factor_enable(ada, root))(root)
    input_fields = {"user": {"username": "ada"}, "options": {"reason": "the application is gone"}}
    payload = "user { twoFactorMethods }"
    return MutationCall("externalTwoFactorDisable", input_fields, payload, by_root=True)


@register_call
async def external_two_factor_enable(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"user": {"username": "ada"}}
    return MutationCall(
        "externalTwoFactorEnable", input_fields, "user { twoFactorMethods }", by_root=True
    )


@register_call
async def recovery_codes_create(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    proof = {"totp": await authenticators.enable_totp_and_return_code(ada)}
    return MutationCall("recoveryCodesCreate", {"proof": proof})


@register_call
async def session_drain(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"users": {"usernames": ["ada"]}}
    return MutationCall(
        "sessionDrain", input_fields, "users { username }", journaled=False, by_root=True
    )


@register_call
async def session_terminate(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    now, environment = ada.environment.now(), ada.environment
    async with environment.write_session(ada.user.id) as session:
        session.add(
            AccessToken(
                id=environment.new_id(),
                user_id=ada.user.id,
                digest="x",
                auth_version=1,
                created_at=now,
                last_used_at=now,
                expires_at=now,
            )
        )
    return MutationCall(
        "sessionTerminate", {"revokeTokens": True}, "terminatedCount pendingCount usernames"
    )


@register_call
async def access_token_revoke(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("accessTokenRevoke", {"all": True}, "revokedCount", journaled=False)


@register_call
async def totp_verify(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "totpVerify", {"token": await authenticators.enable_totp_and_return_code(ada)}, "valid"
    )


@register_call
async def totp_disable(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"proof": {"totp": await authenticators.enable_totp_and_return_code(ada)}}
    return MutationCall("totpDisable", input_fields, "user { twoFactorMethods }")


@register_call
async def totp_enable(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    code = authenticators.totp_code(ada.environment, await authenticators.create_totp_secret(ada))
    return MutationCall("totpEnable", {"token": code}, "user { twoFactorMethods }")


@register_call
async def totp_import(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"user": {"username": "ada"}, "secret": "GEZD GNBV GY3T QOJQ"}
    return MutationCall("totpImport", input_fields, "user { twoFactorMethods }", by_root=True)


@register_call
async def totp_setup(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("totpSetup", {"label": "Ada"})


@register_call
async def two_factor_disable(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"proof": {"totp": await authenticators.enable_totp_and_return_code(ada)}}
    return MutationCall("twoFactorDisable", input_fields, "user { twoFactorMethods }")


@register_call
async def webauthn_challenge(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("webauthnChallenge", journaled=False)


@register_call
async def webauthn_verify(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    key = await authenticators.register_security_key(ada)
    return MutationCall(
        "webauthnVerify",
        {"response": await authenticators.make_assertion_response(ada, key)},
        "valid",
    )


@register_call
async def webauthn_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    key = await authenticators.register_security_key(ada)
    proof = {"webauthn": await authenticators.make_assertion_response(ada, key)}
    return MutationCall(
        "webauthnDelete", {"webauthnKeys": [{"id": key.node_id}], "proof": proof}, "deletedIds"
    )


@register_call
async def webauthn_register(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    response = await authenticators.make_registration_response(
        ada, authenticators.SoftwareAuthenticator()
    )
    input_fields = {"name": "Blue", "response": response}
    return MutationCall(
        "webauthnRegister", input_fields, "webauthnKey { name } user { twoFactorMethods }"
    )


async def _create_api_key(ada: GraphQLClient) -> str:
    document = 'mutation { apiKeyCreate(input: {name: "x"}) { apiKey { id } } }'
    return str((await ada(document))["apiKeyCreate"]["apiKey"]["id"])


async def _create_app_password(ada: GraphQLClient) -> str:
    data = await ada(
        'mutation { appPasswordCreate(input: {description: "Phone"}) { appPassword { id } } }'
    )
    app_password_id: str = data["appPasswordCreate"]["appPassword"]["id"]
    return app_password_id
