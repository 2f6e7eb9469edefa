"""GraphQL types and mutations of second factors."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types import global_ids
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_references import ObjectRef, ids_from_refs
from graph.types.object_views import DerivedField, View
from graph.types.references import UserRef, load_named_user_id
from graph.types.row_mapping import NodeView, global_id_field, lazy_view_factory
from models.errors import InvalidInput
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors import webauthn
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof, TwoFactorMethod
from resolvers.auth.second_factors.webauthn import Ceremony
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

SECRET_METADATA = {"secret": True}  # not stored with the idempotency key
# The count of failed checks must be committed even if the request is rolled back.
NOT_ATOMIC = AtomicExclusion("what is proved by a second factor", forbids_idempotency_key=True)
NOT_ATOMIC_WITH_PROOF = AtomicExclusion(
    NOT_ATOMIC.subject, lambda given: bool(given.proof), forbids_idempotency_key=True
)


LazyUser = Annotated["User", strawberry.lazy("graph.users.types")]
_user_from_row = lazy_view_factory("graph.users.types", "User")


@strawberry.type(description="A second factor that is turned on for a user.")
class TwoFactor(View):
    method: TwoFactorMethod = attribute_field("Method by which the user proves the second factor.")
    created_at: datetime | None = attribute_field(
        "Time when the factor was turned on. Null: an external application checks the factor."
    )
    last_used_at: datetime | None = attribute_field(
        "Time when this server last accepted a proof of the factor. Null: never, or "
        "an external application checks the factor."
    )


@strawberry.type(description="A security key or passkey of a user (W3C Web Authentication).")
class WebauthnKey(NodeView):
    name: str = attribute_field("Name that was given to the key at its registration.")
    created_at: datetime = attribute_field("Time of the registration.")
    last_used_at: datetime | None = attribute_field(
        "Time when the key last proved the second factor. Null: never."
    )

    load_batch = staticmethod(webauthn.load_visible_keys_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("WebauthnKey")}


@strawberry.input(
    description="Proof of a second factor that is on. A user who changes the user's own "
    "factors must send it, since the access token may be stolen. An "
    "administrator who changes the factors of another user can give "
    "`options.reason` instead."
)
class TwoFactorProofInput:
    totp: str | None = attribute_field(
        "A TOTP code of 6 digits (RFC 6238), or a recovery code.", default=UNSET
    )
    webauthn: JSON | None = attribute_field(
        "Response of a security key to a challenge with the ceremony "
        "AUTHENTICATION, as the JSON that `PublicKeyCredential.toJSON()` returns.",
        default=UNSET,
    )


@strawberry.input
class _OptionalUserInput(Options):
    user: UserRef | None = attribute_field(
        "User whose second factors are meant. Default: the signed-in user.", default=UNSET
    )


@strawberry.input
class _OptionalProofInput(_OptionalUserInput):
    proof: TwoFactorProofInput | None = attribute_field(
        "Proof of a second factor that is on. It is required if the user is the "
        "signed-in user and a factor is on.",
        default=UNSET,
    )


@strawberry.input(description="Input of totpSetup.")
class TotpSetupInput(_OptionalUserInput):
    label: str | None = attribute_field(
        "Account name that the authenticator shows: at most 64 printable characters "
        "without a colon. Default: the user name.",
        default=UNSET,
    )
    issuer: str | None = attribute_field(
        "Issuer that the authenticator shows: at most 64 printable characters "
        "without a colon. Default: Merganser.",
        default=UNSET,
    )


@strawberry.input(description="Input of totpEnable.")
class TotpEnableInput(_OptionalProofInput):
    token: str = attribute_field(
        "A TOTP code of 6 digits that the authenticator computes from the new secret."
    )


@strawberry.input(description="Input of totpImport.")
class TotpImportInput(Options):
    user: UserRef = attribute_field("User whose authenticator has the secret.")
    seed: str = attribute_field("TOTP secret of 8 to 128 bytes in base32.")


@strawberry.input(description="Input of totpVerify.")
class TotpVerifyInput(_OptionalUserInput):
    token: str = attribute_field(
        "A TOTP code of 6 digits (RFC 6238), or a recovery code. Each works once."
    )


@strawberry.input(description="Input of totpDisable.")
class TotpDisableInput(_OptionalProofInput):
    pass


@strawberry.input(description="Input of externalTwoFactorEnable.")
class ExternalTwoFactorEnableInput(_OptionalUserInput):
    pass


@strawberry.input(description="Input of externalTwoFactorDisable.")
class ExternalTwoFactorDisableInput(_OptionalProofInput):
    pass


@strawberry.input(description="Input of twoFactorDisable.")
class TwoFactorDisableInput(_OptionalProofInput):
    pass


@strawberry.input(description="Input of recoveryCodesCreate.")
class RecoveryCodesCreateInput(Options):
    proof: TwoFactorProofInput | None = attribute_field(
        "Proof of a second factor that is on. It is required.", default=UNSET
    )


@strawberry.input(description="Input of webauthnChallenge.")
class WebauthnChallengeInput(_OptionalUserInput):
    ceremony: Ceremony | None = attribute_field(
        "Purpose of the challenge. Default: AUTHENTICATION during a sign-in that "
        "lacks its second factor, else REGISTRATION. During such a sign-in "
        "REGISTRATION is refused.",
        default=UNSET,
    )


@strawberry.input(description="Input of webauthnRegister.")
class WebauthnRegisterInput(_OptionalProofInput):
    name: str = attribute_field("Name of the key: 1 to 128 printable characters.")
    response: JSON = attribute_field(
        "Result of `navigator.credentials.create`, as the JSON that "
        "`PublicKeyCredential.toJSON()` returns."
    )


@strawberry.input(description="Input of webauthnVerify.")
class WebauthnVerifyInput(_OptionalUserInput):
    response: JSON = attribute_field(
        "Result of `navigator.credentials.get`, as the JSON that "
        "`PublicKeyCredential.toJSON()` returns."
    )


@strawberry.input(one_of=True, description="Names one WebAuthn key.")
class WebauthnKeyRef(ObjectRef):
    pass


@strawberry.input(description="Input of webauthnDelete.")
class WebauthnDeleteInput(Options):
    webauthn_keys: list[WebauthnKeyRef] = attribute_field(
        "The WebAuthn keys to delete. All must belong to one user."
    )
    proof: TwoFactorProofInput | None = attribute_field(
        "Proof of a second factor that is on. It is required if the keys belong to "
        "the signed-in user.",
        default=UNSET,
    )


@strawberry.type(description="Payload of totpSetup. The secret is returned once.")
class TotpSetupPayload(MutationPayload):
    seed: str | None = attribute_field(
        "TOTP secret in base32. It expires unless totpEnable proves it within 6 hours.",
        default=None,
        metadata=SECRET_METADATA,
    )
    otpauth_url: str | None = attribute_field(
        "The TOTP secret as an otpauth: URL for authenticators.",
        default=None,
        metadata=SECRET_METADATA,
    )
    qr_code: str | None = attribute_field(
        "QR code of the otpauth: URL, as a data URL with a PNG image.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of totpEnable.")
class TotpEnablePayload(MutationPayload):
    user: LazyUser | None = attribute_field("User whose TOTP factor was turned on.", default=None)
    recovery_codes: list[str] = attribute_field(
        "Ten new recovery codes, which are returned once. Each works once. Earlier "
        "codes become invalid.",
        default_factory=list,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of totpVerify.")
class TotpVerifyPayload(MutationPayload):
    valid: bool = attribute_field(
        "True if the code was right. The code can't be used again.", default=False
    )


@strawberry.type(description="Payload of webauthnVerify.")
class WebauthnVerifyPayload(MutationPayload):
    valid: bool = attribute_field(
        "True if the response of the key was right. Its challenge can't be used again.",
        default=False,
    )


@strawberry.type(description="Payload with the changed user.")
class UserPayload(MutationPayload):
    user: LazyUser | None = attribute_field("The user after the change.", default=None)


@strawberry.type(description="Payload of recoveryCodesCreate.")
class RecoveryCodesCreatePayload(MutationPayload):
    recovery_codes: list[str] = attribute_field(
        "Ten new recovery codes, which are returned once. Each works once.",
        default_factory=list,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of webauthnChallenge.")
class WebauthnChallengePayload(MutationPayload):
    challenge: JSON | None = attribute_field(
        "Options for `publicKey` of `navigator.credentials.create` or `get`, as the "
        "JSON that `PublicKeyCredential.parseCreationOptionsFromJSON` or "
        "`parseRequestOptionsFromJSON` takes. The challenge works once, within one "
        "hour.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of webauthnRegister.")
class WebauthnRegisterPayload(MutationPayload):
    user: LazyUser | None = attribute_field("User whose key was registered.", default=None)
    webauthn_key: WebauthnKey | None = attribute_field("The registered key.", default=None)
    recovery_codes: list[str] = attribute_field(
        "Ten recovery codes, which are returned once. Each works once. The list is "
        "empty if the user has recovery codes already, since TOTP or a WebAuthn key "
        "was on.",
        default_factory=list,
        metadata=SECRET_METADATA,
    )


def _proof_from_input(proof_input: TwoFactorProofInput | None) -> SecondFactorProof:
    """Convert the optional input to a proof, which is empty if there is no input.

    Raises Invalid if the WebAuthn response is not a JSON object.
    """
    if not proof_input:
        return SecondFactorProof()
    response = proof_input.webauthn if proof_input.webauthn is not UNSET else None
    return SecondFactorProof(
        totp=proof_input.totp or None,
        webauthn=None
        if response is None
        else _validated_webauthn_response(response, ["proof", "webauthn"]),
    )


def _validated_webauthn_response(response: object, error_path: list[str]) -> dict[str, Any]:
    """Return a WebAuthn response. Raises Invalid at `error_path` if it is not a JSON object."""
    if not isinstance(response, dict):
        raise InvalidInput(
            "The response of a security key must be a JSON object",
            constraint=ValidationConstraint.OBJECT,
            path=error_path,
        )
    return response


async def _permitted_target_user_id(info: Info, user_ref: UserRef | None) -> int | None:
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
    return await load_named_user_id(info, user_ref)


async def _load_user(info: Info, user_id: int) -> Any:
    """Load a user as the viewer can see it."""
    return _user_from_row(await info.context.load(user_loaders.load_visible_users_by_id, user_id))


@strawberry.type
class TwoFactorMutation:
    @mutation(
        "Creates a secret for TOTP codes (RFC 6238). The factor is off until "
        "totpEnable proves the secret. A secret that was not proved is replaced.",
        scope=Scope.FULL,
    )
    async def totp_setup(self, info: Info, input: TotpSetupInput) -> TotpSetupPayload:
        user_id = await _permitted_target_user_id(info, input.user)
        secret = await second_factors_mutations.set_up_totp(
            info.context, user_id, input.label or None, input.issuer or None
        )
        return TotpSetupPayload(seed=secret.secret, otpauth_url=secret.url, qr_code=secret.qr_code)

    @mutation(
        "Turns TOTP on by a code of the secret that totpSetup created. All other "
        "sign-ins of the user end if the factor was off.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
    )
    async def totp_enable(self, info: Info, input: TotpEnableInput) -> TotpEnablePayload:
        user_id = await _permitted_target_user_id(info, input.user)
        user_id, codes = await second_factors_mutations.enable_totp(
            info.context, user_id, input.token, _proof_from_input(input.proof or None)
        )
        return TotpEnablePayload(user=await _load_user(info, user_id), recovery_codes=codes)

    @mutation(
        "Turns TOTP on with a secret that the user's authenticator has from another "
        "system. All other sign-ins of the user end.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def totp_import(self, info: Info, input: TotpImportInput) -> UserPayload:
        user_id = await _permitted_target_user_id(info, input.user)
        assert user_id is not None  # noqa: S101 - the schema asks for it
        changed_id = await second_factors_mutations.enable_imported_totp(
            info.context, user_id, input.seed
        )
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Verifies a TOTP code or a recovery code, which works once, and completes a "
        "sign-in that lacks its second factor. Other callers need a credential with "
        "the scope FULL.",
        role=Role.PUBLIC,
        signed_in=second_factors_mutations.MANAGE_GUARD,
        atomic_exclusion=NOT_ATOMIC,
    )
    async def totp_verify(self, info: Info, input: TotpVerifyInput) -> TotpVerifyPayload:
        user_id = await _permitted_target_user_id(info, input.user or None)
        await second_factors_mutations.prove_second_factor(
            info.context, user_id, SecondFactorProof(totp=input.token)
        )
        return TotpVerifyPayload(valid=True)

    @mutation(
        "Turns TOTP off. Other second factors stay on.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
    )
    async def totp_disable(self, info: Info, input: TotpDisableInput) -> UserPayload:
        user_id = await _permitted_target_user_id(info, input.user)
        changed_id = await second_factors_mutations.disable_totp(
            info.context, user_id, _proof_from_input(input.proof or None)
        )
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Turns on the factor CUSTOM, which the calling application checks itself. "
        "All other sign-ins of the user end.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
    )
    async def external_two_factor_enable(
        self, info: Info, input: ExternalTwoFactorEnableInput
    ) -> UserPayload:
        user_id = await _permitted_target_user_id(info, input.user)
        changed_id = await second_factors_mutations.enable_custom_factor(info.context, user_id)
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Turns off the factor CUSTOM, which the calling application checks. Other "
        "second factors stay on.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
    )
    async def external_two_factor_disable(
        self, info: Info, input: ExternalTwoFactorDisableInput
    ) -> UserPayload:
        user_id = await _permitted_target_user_id(info, input.user)
        changed_id = await second_factors_mutations.disable_custom_factor(
            info.context, user_id, _proof_from_input(input.proof or None)
        )
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Turns off every second factor and deletes secrets, keys and recovery codes.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
    )
    async def two_factor_disable(self, info: Info, input: TwoFactorDisableInput) -> UserPayload:
        user_id = await _permitted_target_user_id(info, input.user)
        changed_id = await second_factors_mutations.disable_all_factors(
            info.context, user_id, _proof_from_input(input.proof or None)
        )
        return UserPayload(user=await _load_user(info, changed_id))

    @mutation(
        "Creates ten recovery codes for the signed-in user. Earlier codes become "
        "invalid. TOTP or a WebAuthn key must be on.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
    )
    async def recovery_codes_create(
        self, info: Info, input: RecoveryCodesCreateInput
    ) -> RecoveryCodesCreatePayload:
        codes = await second_factors_mutations.renew_recovery_codes(
            info.context, _proof_from_input(input.proof or None)
        )
        return RecoveryCodesCreatePayload(recovery_codes=codes)

    @mutation(
        "Creates a challenge to register or to verify a security key. It works "
        "during a sign-in that lacks its second factor; other callers need a "
        "credential with the scope FULL.",
        role=Role.PUBLIC,
        signed_in=second_factors_mutations.MANAGE_GUARD,
    )
    async def webauthn_challenge(
        self, info: Info, input: WebauthnChallengeInput
    ) -> WebauthnChallengePayload:
        user_id = await _permitted_target_user_id(info, input.user or None)
        ceremony = Ceremony(input.ceremony) if input.ceremony else None
        challenge: Any = await second_factors_mutations.create_webauthn_challenge(
            info.context, user_id, ceremony
        )
        return WebauthnChallengePayload(challenge=challenge)

    @mutation(
        "Registers a security key or passkey; a user can have 20. The first key "
        "ends all other sign-ins of the user.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC,
    )
    async def webauthn_register(
        self, info: Info, input: WebauthnRegisterInput
    ) -> WebauthnRegisterPayload:
        user_id = await _permitted_target_user_id(info, input.user)
        response = _validated_webauthn_response(input.response, ["response"])
        row, codes = await second_factors_mutations.register_webauthn_key(
            info.context, user_id, input.name, response, _proof_from_input(input.proof or None)
        )
        return WebauthnRegisterPayload(
            user=await _load_user(info, row.user_id),
            webauthn_key=WebauthnKey.from_row(row),
            recovery_codes=codes,
        )

    @mutation(
        "Verifies the response of a security key to a challenge, and completes a "
        "sign-in that lacks its second factor. Other callers need a credential with "
        "the scope FULL.",
        role=Role.PUBLIC,
        signed_in=second_factors_mutations.MANAGE_GUARD,
        atomic_exclusion=NOT_ATOMIC,
    )
    async def webauthn_verify(
        self, info: Info, input: WebauthnVerifyInput
    ) -> WebauthnVerifyPayload:
        user_id = await _permitted_target_user_id(info, input.user or None)
        response = _validated_webauthn_response(input.response, ["response"])
        await second_factors_mutations.prove_second_factor(
            info.context, user_id, SecondFactorProof(webauthn=response)
        )
        return WebauthnVerifyPayload(valid=True)

    @mutation(
        "Deletes WebAuthn keys, all or none. Deleting the last key turns the factor off.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
    )
    async def webauthn_delete(self, info: Info, input: WebauthnDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.webauthn_keys, "webauthnKeys")
        await second_factors_mutations.delete_webauthn_keys(
            info.context, keys, _proof_from_input(input.proof or None)
        )
        return DeletePayload.of_keys("WebauthnKey", keys)
