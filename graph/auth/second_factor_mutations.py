"""Mutations of second factors."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.auth.second_factors import (
    ExternalTwoFactorDisableInput,
    ExternalTwoFactorEnableInput,
    RecoveryCodesCreateInput,
    RecoveryCodesCreatePayload,
    TotpDisableInput,
    TotpEnableInput,
    TotpEnablePayload,
    TotpImportInput,
    TotpSetupInput,
    TotpSetupPayload,
    TotpVerifyInput,
    TwoFactorDisableInput,
    TwoFactorProofInput,
    TwoFactorVerifyPayload,
    WebauthnChallengeInput,
    WebauthnChallengePayload,
    WebauthnDeleteInput,
    WebauthnKey,
    WebauthnRegisterInput,
    WebauthnRegisterPayload,
    WebauthnVerifyInput,
    user_from_row,
)
from graph.types import global_ids
from graph.types.errors import DeletePayload
from graph.types.fields import Info
from graph.types.mutations import (
    LONG_MUTATION_COST,
    SECOND_FACTOR_CHANGE_COST,
    AtomicExclusion,
    mutation,
)
from graph.types.object_access import MANAGED
from graph.types.object_references import ids_from_refs
from graph.types.references import UserRef, require_visible_user_id_if_named
from graph.users.payloads import UserPayload
from models.errors import InvalidInput
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof
from resolvers.auth.second_factors.webauthn import Ceremony
from resolvers.users import loaders as user_loaders

# The count of failed checks must be committed even if the request is rolled back.
NOT_ATOMIC = AtomicExclusion("A proof of a second factor", forbids_idempotency_key=True)
NOT_ATOMIC_WITH_PROOF = AtomicExclusion(
    NOT_ATOMIC.subject,
    "With `proof`",
    applies_to=lambda given: bool(given.proof),
    forbids_idempotency_key=True,
)


def _validated_proof_from_input(proof_input: TwoFactorProofInput | None) -> SecondFactorProof:
    """Convert the optional input to a proof, which is empty if there is no input.

    Raises InvalidInput if the WebAuthn response is not a JSON object.
    """
    if not proof_input:
        return SecondFactorProof()
    response = proof_input.webauthn if proof_input.webauthn is not UNSET else None
    return SecondFactorProof(
        totp=proof_input.totp or None,
        webauthn=None
        if response is None
        else _validated_webauthn_response(response, ["proof", "webauthn"]),
        path=["proof", "totp" if proof_input.totp else "webauthn"],
    )


def _validated_webauthn_response(response: object, error_path: list[str]) -> dict[str, Any]:
    """Return a WebAuthn response.

    Raises InvalidInput at `error_path` if it is not a JSON object.
    """
    if not isinstance(response, dict):
        raise InvalidInput(
            "The response of a security key must be a JSON object.",
            constraint=ValidationConstraint.OBJECT,
            path=error_path,
        )
    return response


async def _require_permitted_target_user_id(info: Info, user_ref: UserRef | None) -> int | None:
    """Return the id of the account to check or change; None if no account is named.

    During a pending sign-in the account can only be named by its id, and 0 is returned
    otherwise, since accounts must not be looked up then. Raises NotFound, or Forbidden if the
    viewer can't manage other accounts.
    """
    if not user_ref:
        return None
    viewer = info.context.viewer
    if viewer.pending_user_id:
        return global_ids.decode("User", user_ref.id.value, path="user") if user_ref.id else 0
    viewer.require(second_factors_mutations.MANAGE_GUARD)
    return await require_visible_user_id_if_named(info, user_ref)


async def _load_user(info: Info, user_id: int) -> Any:
    """Load a user as the viewer can see it."""
    return user_from_row(await info.context.load(user_loaders.load_visible_users_by_id, user_id))


@strawberry.type
class TwoFactorMutation:
    @mutation(
        "Creates a secret for TOTP codes (RFC 6238), a second factor (2FA, MFA). The factor is "
        "off until totpEnable proves the secret within 6 hours. No proof of another factor is "
        "required. An earlier secret that was not proved is replaced. CONFLICT if TOTP is on "
        "already.",
        scope=Scope.FULL,
        access=MANAGED,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def totp_setup(self, info: Info, input: TotpSetupInput) -> TotpSetupPayload:
        user_id = await _require_permitted_target_user_id(info, input.user)
        secret = await second_factors_mutations.create_pending_totp_secret(
            info.context, user_id, input.label or None, input.issuer or None
        )
        return TotpSetupPayload(
            secret=secret.secret, otpauth_url=secret.url, qr_code=secret.qr_code
        )

    @mutation(
        "Turns TOTP, a second factor (2FA, MFA), on by a code of the secret that totpSetup "
        "created. If the own account already has another factor, `proof` of it is required. "
        "AUTHENTICATION_FAILED if the code is wrong, or the proof is wrong or missing. "
        "RATE_LIMITED after too many wrong proofs. If the only factor of the own account is "
        "EXTERNAL, a request without `proof` is FORBIDDEN. The access tokens of the user end, "
        "except that of the request. Open connections of the ended tokens are closed. API keys "
        "and application passwords stay valid. The payload has new recovery codes, and earlier "
        "codes become invalid. The user gets a message about a change by somebody else. CONFLICT "
        "if TOTP is on already, or no secret was created in the last 6 hours. UNAVAILABLE if "
        "`proof` has a response of a security key, but the server has no public URL.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
        access=MANAGED,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def totp_enable(self, info: Info, input: TotpEnableInput) -> TotpEnablePayload:
        user_id = await _require_permitted_target_user_id(info, input.user)
        user_id, codes = await second_factors_mutations.enable_totp(
            info.context, user_id, input.token, _validated_proof_from_input(input.proof or None)
        )
        return TotpEnablePayload(user=await _load_user(info, user_id), recovery_codes=codes)

    @mutation(
        "Turns TOTP on with a secret that the user's authenticator has from another system. If "
        "the own account already has another factor, `proof` of it is required. "
        "AUTHENTICATION_FAILED if the proof is wrong or missing. RATE_LIMITED after too many "
        "wrong proofs. If the only factor of the own account is EXTERNAL, a request without "
        "`proof` is FORBIDDEN. The access tokens of the user end, except that of the request. "
        "Open connections of the ended tokens are closed. API keys and application passwords stay "
        "valid. No recovery codes are created. The user gets a message about a change by somebody "
        "else. CONFLICT if TOTP is on already. UNAVAILABLE if `proof` has a response of a "
        "security key, but the server has no public URL.",
        role=Role.ADMIN,
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
        access=MANAGED,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def totp_import(self, info: Info, input: TotpImportInput) -> UserPayload:
        user_id = await _require_permitted_target_user_id(info, input.user)
        assert user_id is not None  # noqa: S101 - the schema asks for it
        changed_id = await second_factors_mutations.enable_imported_totp(
            info.context, user_id, input.secret, _validated_proof_from_input(input.proof or None)
        )
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Verifies a TOTP code or a recovery code of a second factor (2FA, MFA). If the sign-in of "
        "the access token lacks its second factor, a right code completes the sign-in. The access "
        "token stays the same and becomes complete; no new token is returned. With a complete "
        "credential, the mutation only checks the code. Each code works once, also if it was only "
        "checked. AUTHENTICATION_FAILED for a wrong or used code. RATE_LIMITED after 12 wrong "
        "proofs of the user in 2 minutes (by default). CONFLICT if the user has no second factor.",
        role=Role.PUBLIC,
        signed_in=second_factors_mutations.MANAGE_GUARD,
        atomic_exclusion=NOT_ATOMIC,
        access=MANAGED,
        cost=LONG_MUTATION_COST,
    )
    async def totp_verify(self, info: Info, input: TotpVerifyInput) -> TwoFactorVerifyPayload:
        user_id = await _require_permitted_target_user_id(info, input.user or None)
        await second_factors_mutations.prove_second_factor_and_complete_sign_in(
            info.context, user_id, SecondFactorProof(totp=input.token, path=["token"])
        )
        return TwoFactorVerifyPayload(valid=True)

    @mutation(
        "Turns TOTP off. Other second factors stay on. Access tokens stay valid. For the own "
        "account, `proof` of an own second factor is required. For another user, `options.reason` "
        "or `proof` of a second factor of that user is required, else VALIDATION. "
        "AUTHENTICATION_FAILED if the proof is wrong, or is missing for the own account. "
        "RATE_LIMITED after too many wrong proofs. Recovery codes are deleted unless the user has "
        "a WebAuthn key. The user gets a message about a change by somebody else. CONFLICT if "
        "TOTP is off. UNAVAILABLE if `proof` has a response of a security key, but the server has "
        "no public URL.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
        access=MANAGED,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def totp_disable(self, info: Info, input: TotpDisableInput) -> UserPayload:
        user_id = await _require_permitted_target_user_id(info, input.user)
        changed_id = await second_factors_mutations.disable_totp(
            info.context, user_id, _validated_proof_from_input(input.proof or None)
        )
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Turns on the second factor EXTERNAL (2FA, MFA), which the calling application checks "
        "itself. No proof of another factor is required. The access tokens of the user end, "
        "except that of the request. Open connections of the ended tokens are closed. API keys "
        "and application passwords stay valid. The user gets a message about a change by somebody "
        "else. CONFLICT if the factor is on already.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def external_two_factor_enable(
        self, info: Info, input: ExternalTwoFactorEnableInput
    ) -> UserPayload:
        user_id = await _require_permitted_target_user_id(info, input.user)
        changed_id = await second_factors_mutations.enable_external_factor(info.context, user_id)
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Turns off the second factor EXTERNAL, which the calling application checks. Other second "
        "factors and access tokens stay valid. For the own account, `proof` of another factor is "
        "required. For another user, `proof` of a factor of that user or `options.reason` is "
        "required, else VALIDATION. CONFLICT if EXTERNAL is off. AUTHENTICATION_FAILED if `proof` "
        "is wrong, or is missing for the own account. RATE_LIMITED after too many wrong proofs. "
        "If EXTERNAL is the only factor of the own account, a request without `proof` is "
        "FORBIDDEN: another administrator must turn it off. The user gets a message about a "
        "change by somebody else. UNAVAILABLE if `proof` has the response of a security key, but "
        "the server has no public URL.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
        access=MANAGED,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def external_two_factor_disable(
        self, info: Info, input: ExternalTwoFactorDisableInput
    ) -> UserPayload:
        user_id = await _require_permitted_target_user_id(info, input.user)
        changed_id = await second_factors_mutations.disable_external_factor(
            info.context, user_id, _validated_proof_from_input(input.proof or None)
        )
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Turns off every second factor (2FA, MFA) of a user and deletes the user's TOTP secret, "
        "WebAuthn keys and recovery codes. Access tokens stay valid. For the own account, `proof` "
        "of a factor is required. For another user, `options.reason` or `proof` of a factor of "
        "that user is required, else VALIDATION. CONFLICT if no factor is on. "
        "AUTHENTICATION_FAILED if the proof is wrong, or missing for the own account; "
        "RATE_LIMITED after too many wrong proofs. If EXTERNAL is the only factor of the own "
        "account, it can't be proved. A request without `proof` is then FORBIDDEN, and another "
        "administrator must turn it off. The user gets a message about a change by somebody else. "
        "UNAVAILABLE if `proof` has a response of a security key, but the server has no public "
        "URL.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
        access=MANAGED,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def two_factor_disable(self, info: Info, input: TwoFactorDisableInput) -> UserPayload:
        user_id = await _require_permitted_target_user_id(info, input.user)
        changed_id = await second_factors_mutations.disable_all_factors(
            info.context, user_id, _validated_proof_from_input(input.proof or None)
        )
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Creates ten recovery codes for the signed-in user. Earlier codes become invalid. A proof "
        "of a second factor is required. AUTHENTICATION_FAILED if it is wrong or missing, and "
        "RATE_LIMITED after too many wrong proofs. CONFLICT if neither TOTP nor a WebAuthn key is "
        "on. UNAVAILABLE if `proof` has a response of a security key, but the server has no "
        "public URL.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def recovery_codes_create(
        self, info: Info, input: RecoveryCodesCreateInput
    ) -> RecoveryCodesCreatePayload:
        codes = await second_factors_mutations.renew_recovery_codes(
            info.context, _validated_proof_from_input(input.proof or None)
        )
        return RecoveryCodesCreatePayload(recovery_codes=codes)

    @mutation(
        "Creates a challenge of WebAuthn, with which a security key is registered or verified. The "
        "challenge expires after 1 hour. A user has at most 10 challenges; a new one replaces the "
        "oldest. During a sign-in that lacks its second factor, a key can only be verified; its "
        "registration is FORBIDDEN. CONFLICT if a key is to be verified, but the user has none. "
        "LIMIT_REACHED if a key is to be registered, but the user already has 20. UNAVAILABLE if "
        "the server has no public URL.",
        role=Role.PUBLIC,
        signed_in=second_factors_mutations.MANAGE_GUARD,
        access=MANAGED,
        cost=LONG_MUTATION_COST,
    )
    async def webauthn_challenge(
        self, info: Info, input: WebauthnChallengeInput
    ) -> WebauthnChallengePayload:
        user_id = await _require_permitted_target_user_id(info, input.user or None)
        ceremony = Ceremony(input.ceremony) if input.ceremony else None
        challenge: Any = await second_factors_mutations.create_webauthn_challenge(
            info.context, user_id, ceremony
        )
        return WebauthnChallengePayload(challenge=challenge)

    @mutation(
        "Registers a security key or passkey as second factor (2FA, MFA). The input has the "
        "response of the key to a challenge of `webauthnChallenge`. If the own account already "
        "has a second factor, `proof` of it is required. AUTHENTICATION_FAILED if this proof is "
        "missing or wrong. RATE_LIMITED after too many wrong proofs. If the only factor of the "
        "own account is EXTERNAL, a request without `proof` is FORBIDDEN. AUTHENTICATION_FAILED "
        "also for a wrong response, which uses up the challenge. CONFLICT if the key is "
        "registered already. LIMIT_REACHED if the user already has 20 keys. The first key ends "
        "all access tokens of the user, except the token of the request. Open connections of the "
        "ended tokens are closed. API keys and application passwords stay valid. The user gets a "
        "message about a change by somebody else. If the user had neither TOTP nor a key before, "
        "ten recovery codes are returned once. UNAVAILABLE if the server has no public URL "
        "(MERGANSER_PUBLIC_URL).",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC,
        access=MANAGED,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def webauthn_register(
        self, info: Info, input: WebauthnRegisterInput
    ) -> WebauthnRegisterPayload:
        user_id = await _require_permitted_target_user_id(info, input.user)
        response = _validated_webauthn_response(input.response, ["response"])
        row, codes = await second_factors_mutations.register_webauthn_key(
            info.context,
            user_id,
            input.name,
            response,
            _validated_proof_from_input(input.proof or None),
        )
        return WebauthnRegisterPayload(
            user=await _load_user(info, row.user_id),
            webauthn_key=WebauthnKey.from_row(row),
            recovery_codes=codes,
        )

    @mutation(
        "Verifies the response of a security key to a challenge, and completes a sign-in that "
        "lacks its second factor. The access token of that sign-in stays the same and becomes "
        "complete; no new token is returned. If the credential already has its second factor, the "
        "mutation only checks the response. A wrong response is the error AUTHENTICATION_FAILED "
        "and uses up the challenge; after too many of them the error is RATE_LIMITED. CONFLICT if "
        "the user has no second factor. UNAVAILABLE if the server has no public URL "
        "(MERGANSER_PUBLIC_URL).",
        role=Role.PUBLIC,
        signed_in=second_factors_mutations.MANAGE_GUARD,
        atomic_exclusion=NOT_ATOMIC,
        access=MANAGED,
        cost=LONG_MUTATION_COST,
    )
    async def webauthn_verify(
        self, info: Info, input: WebauthnVerifyInput
    ) -> TwoFactorVerifyPayload:
        user_id = await _require_permitted_target_user_id(info, input.user or None)
        response = _validated_webauthn_response(input.response, ["response"])
        await second_factors_mutations.prove_second_factor_and_complete_sign_in(
            info.context, user_id, SecondFactorProof(webauthn=response, path=["response"])
        )
        return TwoFactorVerifyPayload(valid=True)

    @mutation(
        "Deletes WebAuthn keys of one user, all or none. Deleting the last key turns off the "
        "factor WEBAUTHN, and deletes the recovery codes unless TOTP is on. Access tokens stay "
        "valid. For own keys, `proof` of an own second factor is required, else "
        "AUTHENTICATION_FAILED. For keys of another user, `options.reason` or `proof` of a second "
        "factor of that user is required, else VALIDATION. AUTHENTICATION_FAILED for a wrong "
        "proof, and RATE_LIMITED after too many wrong proofs. UNAVAILABLE if `proof` has the "
        "response of a security key, but the server has no public URL. The user gets a message "
        "about a change by somebody else. VALIDATION if the keys belong to several users. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
        access=MANAGED,
        cost=SECOND_FACTOR_CHANGE_COST,
    )
    async def webauthn_delete(self, info: Info, input: WebauthnDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.webauthn_keys, "webauthnKeys")
        await second_factors_mutations.delete_webauthn_keys(
            info.context, keys, _validated_proof_from_input(input.proof or None)
        )
        return DeletePayload.of_keys("WebauthnKey", keys)
