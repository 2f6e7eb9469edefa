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


@strawberry.type(description="A second factor that is on.")
class TwoFactor(View):
    method: TwoFactorMethod = attribute_field("How it is proved.")
    created_at: datetime | None = attribute_field("Turned on; null where others check it.")
    last_used_at: datetime | None = attribute_field("Last proved here; null = never.")


@strawberry.type(description="Security key or passkey.")
class WebauthnKey(NodeView):
    name: str = attribute_field("What its owner calls it.")
    created_at: datetime = attribute_field("Registered.")
    last_used_at: datetime | None = attribute_field("Last proved; null = never.")

    load_batch = staticmethod(webauthn.load_visible_keys_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("WebauthnKey")}


@strawberry.input(
    description="Proves a factor that is on. Changing the own factors needs it: a token may be "
    "stolen. Who changes those of others gives a reason in the options instead."
)
class TwoFactorProofInput:
    totp: str | None = attribute_field("A code by time, or a recovery code.", default=UNSET)
    webauthn: JSON | None = attribute_field(
        "What a key answered to a challenge for AUTHENTICATION.", default=UNSET
    )


@strawberry.input
class _OptionalUserInput(Options):
    user: UserRef | None = attribute_field("Whose. Default: the viewer's.", default=UNSET)


@strawberry.input
class _OptionalProofInput(_OptionalUserInput):
    proof: TwoFactorProofInput | None = attribute_field(
        "Of a factor that is on already.", default=UNSET
    )


@strawberry.input(description="Input of totpSetup.")
class TotpSetupInput(_OptionalUserInput):
    label: str | None = attribute_field("Default: the user name.", default=UNSET)
    issuer: str | None = attribute_field("Default: the name of this product.", default=UNSET)


@strawberry.input(description="Input of totpEnable.")
class TotpEnableInput(_OptionalProofInput):
    token: str = attribute_field("A code of the new seed.")


@strawberry.input(description="Input of totpImport.")
class TotpImportInput(Options):
    user: UserRef = attribute_field("Whose.")
    seed: str = attribute_field("Base32, of 8 to 128 bytes.")


@strawberry.input(description="Input of totpVerify.")
class TotpVerifyInput(_OptionalUserInput):
    token: str = attribute_field("A code by time, or a recovery code.")


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
    proof: TwoFactorProofInput | None = attribute_field("Of a factor that is on.", default=UNSET)


@strawberry.input(description="Input of webauthnChallenge.")
class WebauthnChallengeInput(_OptionalUserInput):
    ceremony: Ceremony | None = attribute_field(
        "Default: AUTHENTICATION for a sign-in that waits for it, else REGISTRATION.",
        default=UNSET,
    )


@strawberry.input(description="Input of webauthnRegister.")
class WebauthnRegisterInput(_OptionalProofInput):
    name: str = attribute_field("What to call it.")
    response: JSON = attribute_field(
        "What `navigator.credentials.create` gave, as its toJSON says it."
    )


@strawberry.input(description="Input of webauthnVerify.")
class WebauthnVerifyInput(_OptionalUserInput):
    response: JSON = attribute_field(
        "What `navigator.credentials.get` gave, as its toJSON says it."
    )


@strawberry.input(one_of=True, description="Names one WebAuthn key.")
class WebauthnKeyRef(ObjectRef):
    pass


@strawberry.input(description="Input of webauthnDelete.")
class WebauthnDeleteInput(Options):
    webauthn_keys: list[WebauthnKeyRef] = attribute_field(
        "The WebAuthn keys to delete. All belong to one account."
    )
    proof: TwoFactorProofInput | None = attribute_field("Of a factor that is on.", default=UNSET)


@strawberry.type(description="Answer of totpSetup. All of it is shown once.")
class TotpSetupPayload(MutationPayload):
    seed: str | None = attribute_field(
        "Base32; to be proved within six hours.", default=None, metadata=SECRET_METADATA
    )
    otpauth_url: str | None = attribute_field(
        "For authenticators.", default=None, metadata=SECRET_METADATA
    )
    qr_code: str | None = attribute_field(
        "The same as a picture: a data URL.", default=None, metadata=SECRET_METADATA
    )


@strawberry.type(description="Answer of totpEnable.")
class TotpEnablePayload(MutationPayload):
    user: LazyUser | None = attribute_field("The account.", default=None)
    recovery_codes: list[str] = attribute_field(
        "Ten, each good once, shown once; older ones are void.",
        default_factory=list,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Answer of totpVerify.")
class TotpVerifyPayload(MutationPayload):
    valid: bool = attribute_field("It was right, and is good no more.", default=False)


@strawberry.type(description="Answer of webauthnVerify.")
class WebauthnVerifyPayload(MutationPayload):
    valid: bool = attribute_field("It was right, and is good no more.", default=False)


@strawberry.type(description="An account.")
class UserPayload(MutationPayload):
    user: LazyUser | None = attribute_field("As it is now.", default=None)


@strawberry.type(description="Answer of recoveryCodesCreate.")
class RecoveryCodesCreatePayload(MutationPayload):
    recovery_codes: list[str] = attribute_field(
        "Ten, each good once, shown once.", default_factory=list, metadata=SECRET_METADATA
    )


@strawberry.type(description="Answer of webauthnChallenge.")
class WebauthnChallengePayload(MutationPayload):
    challenge: JSON | None = attribute_field(
        "For `navigator.credentials`: publicKey as its fromJSON takes it. Good once, for an hour.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Answer of webauthnRegister.")
class WebauthnRegisterPayload(MutationPayload):
    user: LazyUser | None = attribute_field("The account.", default=None)
    webauthn_key: WebauthnKey | None = attribute_field("The key.", default=None)
    recovery_codes: list[str] = attribute_field(
        "Ten, shown once, where no other factor was on.",
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
            "what a key says is a JSON object",
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
    @mutation("A new seed for codes by time; nothing is on until it is proved.", scope=Scope.FULL)
    async def totp_setup(self, info: Info, input: TotpSetupInput) -> TotpSetupPayload:
        user_id = await _permitted_target_user_id(info, input.user)
        secret = await second_factors_mutations.set_up_totp(
            info.context, user_id, input.label or None, input.issuer or None
        )
        return TotpSetupPayload(seed=secret.secret, otpauth_url=secret.url, qr_code=secret.qr_code)

    @mutation(
        "Turn codes by time on: proves the new seed. Ends all other sign-ins of the account.",
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
        "Turn codes by time on with a seed that the user's device has from another system. Ends "
        "all other sign-ins of the account.",
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
        "Prove a factor by a code, which works once. A sign-in that waits for it is complete "
        "with that; without one it needs a credential.",
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
        "Turn codes by time off; other factors stay.",
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
        "Say that the calling application checks a factor of its own. Ends all other sign-ins of "
        "the account.",
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
        "Say that it does so no longer; other factors stay.",
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
        "Turn all factors off. Nothing else does: no password reset, no other change.",
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
        "New recovery codes for the viewer; the old ones are void.",
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
        "A challenge for a security key: to register it, or to prove it. Open to sign-ins that "
        "wait for a factor; all others need a credential.",
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
        "Add a security key or passkey. The first one ends all other sign-ins of the account.",
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
        "Prove a factor by a security key. A sign-in that waits for it is complete with that; "
        "without one it needs a credential.",
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
        "All or none. With the last key the factor is off.",
        scope=Scope.FULL,
        atomic_exclusion=NOT_ATOMIC_WITH_PROOF,
    )
    async def webauthn_delete(self, info: Info, input: WebauthnDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.webauthn_keys, "webauthnKeys")
        await second_factors_mutations.delete_webauthn_keys(
            info.context, keys, _proof_from_input(input.proof or None)
        )
        return DeletePayload.of_keys("WebauthnKey", keys)
