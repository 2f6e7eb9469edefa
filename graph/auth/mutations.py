"""Mutations of sign-in, access tokens and API keys."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import strawberry

from graph.auth.inputs import (
    AccessTokenRevokeInput,
    ApiKeyCreateInput,
    ApiKeyDeleteInput,
    ApiKeyUpdateInput,
    AuthCacheFlushInput,
    UserImpersonateInput,
)
from graph.auth.sign_in import (
    AuthenticateInput,
    AuthenticatePayload,
    PasswordVerifyInput,
    PasswordVerifyPayload,
)
from graph.auth.types import (
    AccessTokenRevokePayload,
    ApiKey,
    ApiKeyCreatePayload,
    ApiKeysPayload,
    AuthCacheFlushPayload,
)
from graph.types.errors import DeletePayload
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_access import MANAGED, OWN, OWN_OR_ADMINISTRATOR
from graph.types.object_references import ids_from_refs
from graph.types.references import (
    load_visible_user,
    require_administered_domain_ids,
    require_visible_user_id_if_named,
    user_selector_from_selection,
    value_or_none,
)
from models.auth.security_log import AuthProtocol
from models.errors import ErrorCollector, InvalidInput, require_found
from models.users.roles import AdminPermission, Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.auth import (
    access_tokens,
    authentication,
    credential_cache_flush,
    impersonation,
    token_scopes,
)
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import ApiKeyChange, NewApiKey
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof
from resolvers.auth.sign_in import SignInRequest

FAILURE_LIMITS = (
    "Failures are limited, else RATE_LIMITED. By default, a user can have 12 failures in 2 minutes "
    "from one network, and 100 in 2 minutes from all networks together. One network can have 100 "
    "failures in 5 minutes. The limit for all networks together does not apply to networks that "
    "the user has signed in from. The wait is at most 1 hour by default."
)
NOT_ATOMIC = AtomicExclusion("A sign-in", forbids_idempotency_key=True)  # failures are counted


@strawberry.type
class AuthMutation:
    @mutation(
        "Signs in (logs in) with username and password, and returns an access token, on request "
        "with fewer scopes than FULL. If a second factor (2FA, MFA) of the user is on, `totp` or "
        "`webauthn` can prove it. Without a proof, the mutation succeeds, but the token is "
        "incomplete until `totpVerify` or `webauthnVerify` proves the factor. A wrong name, "
        "password or second factor, or a disabled or suspended user, is the error "
        "AUTHENTICATION_FAILED. A user without `webmailAccess`, or who must sign in at an identity "
        "provider, is FORBIDDEN. A temporary password is FORBIDDEN if `scopes` has neither "
        "SETTINGS nor FULL. Before the start of its validity, a temporary password is "
        "FORBIDDEN_OPERATION. UNAVAILABLE if a response of a security key is given, but the server "
        "has no public URL. " + FAILURE_LIMITS,
        role=Role.PUBLIC,
        atomic_exclusion=NOT_ATOMIC,
    )
    async def authenticate(self, info: Info, input: AuthenticateInput) -> AuthenticatePayload:
        # strawberry passes the plain text of enums if the schema is sorted
        requested_scopes = (
            [Scope(scope) for scope in input.scopes] if isinstance(input.scopes, list) else None
        )
        attempt = SignInRequest(
            protocol=AuthProtocol(input.protocol),
            token=True,
            ttl=value_or_none(input.token_ttl),
            proof=_validated_proof_from_input(input),
            token_scopes=token_scopes.validate_requested_scopes(requested_scopes),
        )
        sign_in = await authentication.authenticate_user_by_password(
            info.context, input.username, input.password, attempt
        )
        return AuthenticatePayload.from_sign_in(sign_in)

    @mutation(
        "Verifies a password for a scope, without an access token. Mail servers beside Merganser, "
        "and applications with their own sessions, sign in users with it. With the scope FULL, the "
        "second factor of the user is required too. If `totp` and `webauthn` are missing, the "
        "mutation succeeds, and `requiredTwoFactorMethods` of the payload lists the factors. The "
        "sign-in is complete only if this list is empty. AUTHENTICATION_FAILED for a wrong name, "
        "password or second factor, and for a disabled or suspended user. FORBIDDEN if the "
        "password is right but does not allow the scope, or the user must sign in at an identity "
        "provider. FORBIDDEN also if the protocol of the scope is turned off for the user, or SMTP "
        "is not allowed from the network of the client. FORBIDDEN_OPERATION before the start of "
        "the validity of a temporary password. UNAVAILABLE if a response of a security key is "
        "given, but the server has no public URL. The security log records a right password as a "
        "sign-in. A mail server sends an API key of an ADMIN, and the address of its client in "
        "`options.clientIp`. Without these two, all failures count for the address of the mail "
        "server. " + FAILURE_LIMITS,
        role=Role.PUBLIC,
        atomic_exclusion=NOT_ATOMIC,
    )
    async def password_verify(
        self, info: Info, input: PasswordVerifyInput
    ) -> PasswordVerifyPayload:
        attempt = SignInRequest(
            Scope(input.scope),  # strawberry passes the plain text if the schema is sorted
            AuthProtocol(input.protocol),
            proof=_validated_proof_from_input(input),
        )
        sign_in = await authentication.authenticate_user_by_password(
            info.context, input.username, input.password, attempt
        )
        return PasswordVerifyPayload.from_sign_in(sign_in)

    @mutation(
        "Revokes access tokens of the signed-in user. `accessTokens` revokes the given tokens, or "
        "none of them if one does not exist (NOT_FOUND). `all` revokes every token, also those of "
        "OAuth clients and of administrators who act as the user. Without these two fields, the "
        "token of the request is revoked. `accessTokens` and `all` require the scope FULL. "
        "Refresh tokens of the same OAuth authorizations end too; with `all`, every refresh token "
        "ends. Open connections with a revoked token are closed. The mutation succeeds and "
        "revokes nothing if the request has no credential. It also revokes nothing if neither "
        "field is given and the credential is no access token. A token that lacks its second "
        "factor can only revoke itself: `accessTokens` and `all` then have no effect. "
        "LIMIT_REACHED for more than 1,000 tokens (by default).",
        role=Role.PUBLIC,
        access=OWN,
    )
    async def access_token_revoke(
        self, info: Info, input: AccessTokenRevokeInput
    ) -> AccessTokenRevokePayload:
        refs = input.access_tokens
        keys = ids_from_refs(info, refs, "accessTokens") if isinstance(refs, list) else None
        revoked_count = await access_tokens.revoke_own_access_tokens_and_count(
            info.context, keys, all=input.all
        )
        return AccessTokenRevokePayload(revoked_count=revoked_count)

    @mutation(
        "Creates an API key. Its role can't exceed the caller's or that of its user. The secret "
        "is returned once. A key for another user has the role USER, at most the scopes READ, "
        "MAIL, SUBMIT and SETTINGS, and expires after at most 4 hours. It stops working earlier "
        "if its creator loses the right to create it. The bootstrap key creates keys for other "
        "users without these limits. The user gets a message about a key that somebody else "
        "creates. If an API key makes the request, networks, operations and expiry of the new key "
        "can't exceed those of that key (FORBIDDEN). An API key that is restricted to domains "
        "can't create API keys. More than 100 `domains` are the error VALIDATION, and more than "
        "1,000 (by default) LIMIT_REACHED. The number of API keys has no limit.",
        scope=Scope.FULL,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def api_key_create(self, info: Info, input: ApiKeyCreateInput) -> ApiKeyCreatePayload:
        problems = ErrorCollector()
        owner, domain_ids, operations = None, list[int](), list[str]()
        with problems.collecting():
            owner = await require_visible_user_id_if_named(info, input.user)
        with problems.collecting():
            domain_ids = await require_administered_domain_ids(info, input.domains or ())
        with problems.collecting():
            operations = _validated_root_field_names(info, input.operations or ())
        new = NewApiKey(
            name=input.name,
            role=Role(input.role),
            scopes=frozenset(map(Scope, input.scopes or ())),
            read_only=input.read_only,
            user_id=owner,
            expires_at=input.expires_at or None,
            domains=domain_ids,
            operations=operations,
            allowed_ips=input.allowed_ips or (),
        )
        row, secret = await api_key_mutations.create_api_key(info.context, new, problems)
        return ApiKeyCreatePayload(api_key=ApiKey.from_row(row), secret=secret)

    @mutation(
        "Changes name, networks, expiry or state of API keys, all or none. VALIDATION if `set` "
        "has no value. A key with a higher role than the caller's is FORBIDDEN, one that the "
        "caller can't see NOT_FOUND. The user gets a message about a change by somebody else. "
        "Role and scopes can't be changed. If an API key makes the request, networks and expiry "
        "can't exceed those of that key. LIMIT_REACHED for more than 1,000 references (by "
        "default).",
        scope=Scope.FULL,
        access=OWN_OR_ADMINISTRATOR,
    )
    async def api_key_update(self, info: Info, input: ApiKeyUpdateInput) -> ApiKeysPayload:
        keys, patch = ids_from_refs(info, input.api_keys, "apiKeys"), input.set
        networks = patch.allowed_ips
        change = ApiKeyChange(
            patch.name or (None if patch.name is None or patch.name is strawberry.UNSET else ""),
            None if patch.active is strawberry.UNSET else patch.active,
            None if networks is strawberry.UNSET else networks or (),
            patch.expires_at or None,
            removes_expiry=patch.expires_at is None,
        )
        rows = await api_key_mutations.update_api_keys(info.context, keys, change)
        return ApiKeysPayload(api_keys=[ApiKey.from_row(row) for row in rows])

    @mutation(
        "Deletes API keys, all or none. Open connections with a deleted key are closed. "
        "Credentials that a key without a user created for users end with it. A key with a higher "
        "role than the caller's is FORBIDDEN, one that the caller can't see NOT_FOUND. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.FULL,
        access=OWN_OR_ADMINISTRATOR,
    )
    async def api_key_delete(self, info: Info, input: ApiKeyDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.api_keys, "apiKeys")
        await api_key_mutations.delete_api_keys(info.context, keys)
        return DeletePayload.of_keys("ApiKey", keys)

    @mutation(
        "Creates an access token to act on another user's mail and settings, without access to "
        "credentials. The token has the role USER and the scopes READ, MAIL, SUBMIT and SETTINGS. "
        "It expires after `ttl`, by default 30 minutes. It ends early if the caller loses the "
        "right to impersonate, or the user is disabled, suspended or gets a new password. The "
        "user's security log and the audit log name the administrator or API key. The token can't "
        "give other people access to the mail: shares, forwarding, copies to other addresses and "
        "links are FORBIDDEN. VALIDATION for the signed-in user's own account. CONFLICT if the "
        "user is disabled or suspended. An API key that is restricted to domains is FORBIDDEN.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        admin_permission=AdminPermission.IMPERSONATE,
        access=MANAGED,
    )
    async def user_impersonate(
        self, info: Info, input: UserImpersonateInput
    ) -> AuthenticatePayload:
        user = require_found(await load_visible_user(info, input.user), path=["user"])
        sign_in = await impersonation.create_impersonation_token(
            info.context, user.id, value_or_none(input.ttl)
        )
        return AuthenticatePayload.from_sign_in(sign_in)

    @mutation(
        "Removes access tokens, API keys and passwords of HTTP Basic authentication from the "
        "caches of all processes. The next use of a credential reads the database. No credential "
        "is revoked. LIMIT_REACHED for more than 1,000 users (by default), unless `users.all` is "
        "true.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def auth_cache_flush(
        self, info: Info, input: AuthCacheFlushInput
    ) -> AuthCacheFlushPayload:
        users = user_selector_from_selection(input.users) if input.users else None
        return AuthCacheFlushPayload(
            flushed_count=await credential_cache_flush.drop_cached_credentials_and_count(
                info.context, users
            )
        )


def _validated_proof_from_input(
    input: AuthenticateInput | PasswordVerifyInput,
) -> SecondFactorProof:
    """Return the second-factor proof of a sign-in.

    Raises InvalidInput if the WebAuthn response is not a JSON object.
    """
    if input.webauthn and not isinstance(input.webauthn, dict):
        text = "The response of a security key must be a JSON object."
        raise InvalidInput(text, constraint=ValidationConstraint.OBJECT, path=["webauthn"])
    return SecondFactorProof(
        input.totp or None,
        cast("Mapping[str, Any] | None", input.webauthn or None),
        path=["totp" if input.totp else "webauthn"],
    )


def _validated_root_field_names(info: Info, operation_names: Sequence[str]) -> list[str]:
    """Return the names of operations.

    Raises InvalidInput if one is not a root field of the schema.
    """
    schema = info.schema._schema  # noqa: SLF001 - no other way in
    roots = (schema.query_type, schema.mutation_type, schema.subscription_type)
    known_names = {name for root in roots if root for name in root.fields}
    for index, name in enumerate(operation_names):
        if name not in known_names:
            text = "Must be the name of a field of Query, Mutation or Subscription."
            raise InvalidInput(
                text, constraint=ValidationConstraint.UNKNOWN, path=["operations"], index=index
            )
    return list(operation_names)
