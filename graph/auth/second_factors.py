"""GraphQL types and mutations of second factors."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types import global_ids
from graph.types.errors import DeletePayload, MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import Alone, mutation
from graph.types.object_views import Made, View
from graph.types.references import UserRef, keys_of, owner_named
from graph.types.row_mapping import Shape, identified, shaped
from models.errors import Invalid
from models.users.roles import Role, Scope
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors import webauthn
from resolvers.auth.second_factors.second_factor_check import Proof, TwoFactorMethod
from resolvers.auth.second_factors.webauthn import Ceremony
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

SECRET = {"secret": True}  # not stored with the idempotency key
# The count of failed checks must be committed even if the request is rolled back.
CHECKED = Alone("what is proved by a second factor", once=True)
PROVED = Alone(CHECKED.what, lambda given: bool(given.proof), once=True)


Account = Annotated["User", strawberry.lazy("graph.users.types")]
_account = shaped("graph.users.types", "User")


@strawberry.type(description="A second factor that is on.")
class TwoFactor(View):
    method: TwoFactorMethod = leaf("How it is proved.")
    created_at: datetime | None = leaf("Turned on; null where others check it.")
    last_used_at: datetime | None = leaf("Last proved here; null = never.")


@strawberry.type(description="Security key or passkey.")
class WebauthnKey(Shape):
    name: str = leaf("What its owner calls it.")
    created_at: datetime = leaf("Registered.")
    last_used_at: datetime | None = leaf("Last proved; null = never.")

    batch = staticmethod(webauthn.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("WebauthnKey")}


@strawberry.input(
    description="Proves a factor that is on. Changing the own factors needs it: a token may be "
    "stolen. Who changes those of others gives a reason in the options instead."
)
class TwoFactorProofInput:
    totp: str | None = leaf("A code by time, or a recovery code.", default=UNSET)
    webauthn: JSON | None = leaf(
        "What a key answered to a challenge for AUTHENTICATION.", default=UNSET
    )


@strawberry.input
class _OfUser(Options):
    user: UserRef | None = leaf("Whose. Default: the viewer's.", default=UNSET)


@strawberry.input
class _Proved(_OfUser):
    proof: TwoFactorProofInput | None = leaf("Of a factor that is on already.", default=UNSET)


@strawberry.input(description="Input of totpSetup.")
class TotpSetupInput(_OfUser):
    label: str | None = leaf("Default: the user name.", default=UNSET)
    issuer: str | None = leaf("Default: the name of this product.", default=UNSET)


@strawberry.input(description="Input of totpEnable.")
class TotpEnableInput(_Proved):
    token: str = leaf("A code of the new seed.")


@strawberry.input(description="Input of totpImport.")
class TotpImportInput(Options):
    user: UserRef = leaf("Whose.")
    seed: str = leaf("Base32, of 8 to 128 bytes.")


@strawberry.input(description="Input of totpCheck.")
class TotpCheckInput(_OfUser):
    token: str = leaf("A code by time, or a recovery code.")


@strawberry.input(description="Input of totpDisable.")
class TotpDisableInput(_Proved):
    pass


@strawberry.input(description="Input of customTwoFactorEnable.")
class CustomTwoFactorEnableInput(_OfUser):
    pass


@strawberry.input(description="Input of customTwoFactorDisable.")
class CustomTwoFactorDisableInput(_Proved):
    pass


@strawberry.input(description="Input of twoFactorDisable.")
class TwoFactorDisableInput(_Proved):
    pass


@strawberry.input(description="Input of recoveryCodesCreate.")
class RecoveryCodesCreateInput(Options):
    proof: TwoFactorProofInput | None = leaf("Of a factor that is on.", default=UNSET)


@strawberry.input(description="Input of webauthnChallenge.")
class WebauthnChallengeInput(_OfUser):
    ceremony: Ceremony | None = leaf(
        "Default: AUTHENTICATION for a sign-in that waits for it, else REGISTRATION.",
        default=UNSET,
    )


@strawberry.input(description="Input of webauthnRegister.")
class WebauthnRegisterInput(_Proved):
    name: str = leaf("What to call it.")
    response: JSON = leaf("What `navigator.credentials.create` gave, as its toJSON says it.")


@strawberry.input(description="Input of webauthnCheck.")
class WebauthnCheckInput(_OfUser):
    response: JSON = leaf("What `navigator.credentials.get` gave, as its toJSON says it.")


@strawberry.input(description="Input of webauthnDelete.")
class WebauthnDeleteInput(Options):
    ids: list[strawberry.ID] = leaf("Keys of one account.")
    proof: TwoFactorProofInput | None = leaf("Of a factor that is on.", default=UNSET)


@strawberry.type(description="Answer of totpSetup. All of it is shown once.")
class TotpSetupPayload(MutationPayload):
    seed: str | None = leaf("Base32; to be proved within six hours.", default=None, metadata=SECRET)
    otpauth_url: str | None = leaf("For authenticators.", default=None, metadata=SECRET)
    qr_code: str | None = leaf("The same as a picture: a data URL.", default=None, metadata=SECRET)


@strawberry.type(description="Answer of totpEnable.")
class TotpEnablePayload(MutationPayload):
    user: Account | None = leaf("The account.", default=None)
    recovery_codes: list[str] = leaf(
        "Ten, each good once, shown once; older ones are void.",
        default_factory=list,
        metadata=SECRET,
    )


@strawberry.type(description="Answer of totpCheck.")
class TotpCheckPayload(MutationPayload):
    valid: bool = leaf("It was right, and is good no more.", default=False)


@strawberry.type(description="Answer of webauthnCheck.")
class WebauthnCheckPayload(MutationPayload):
    valid: bool = leaf("It was right, and is good no more.", default=False)


@strawberry.type(description="An account.")
class UserPayload(MutationPayload):
    user: Account | None = leaf("As it is now.", default=None)


@strawberry.type(description="Answer of recoveryCodesCreate.")
class RecoveryCodesCreatePayload(MutationPayload):
    recovery_codes: list[str] = leaf(
        "Ten, each good once, shown once.", default_factory=list, metadata=SECRET
    )


@strawberry.type(description="Answer of webauthnChallenge.")
class WebauthnChallengePayload(MutationPayload):
    challenge: JSON | None = leaf(
        "For `navigator.credentials`: publicKey as its fromJSON takes it. Good once, for an hour.",
        default=None,
        metadata=SECRET,
    )


@strawberry.type(description="Answer of webauthnRegister.")
class WebauthnRegisterPayload(MutationPayload):
    user: Account | None = leaf("The account.", default=None)
    webauthn_key: WebauthnKey | None = leaf("The key.", default=None)
    recovery_codes: list[str] = leaf(
        "Ten, shown once, where no other factor was on.", default_factory=list, metadata=SECRET
    )


def _proof(given: TwoFactorProofInput | None) -> Proof:
    """Convert the optional input to a proof, which is empty if there is no input.

    Raises Invalid if the WebAuthn response is not a JSON object.
    """
    if not given:
        return Proof()
    response = given.webauthn if given.webauthn is not UNSET else None
    return Proof(
        totp=given.totp or None,
        webauthn=None if response is None else _signed(response, ["proof", "webauthn"]),
    )


def _signed(given: object, path: list[str]) -> dict[str, Any]:
    """Return a WebAuthn response. Raises Invalid at `error_path` if it is not a JSON object."""
    if not isinstance(given, dict):
        raise Invalid("what a key says is a JSON object", constraint="object", path=path)
    return given


async def _key(info: Info, ref: UserRef | None) -> int | None:
    """Return the id of the account to check or change; None if no account is named.

    During a pending sign-in the account can only be named by its id, and 0 is returned
    otherwise, since accounts must not be looked up then. Raises NotFound, or Forbidden if the
    viewer can't manage other accounts.
    """
    if not ref:
        return None
    viewer = info.context.viewer
    if viewer.pending_for:
        return global_ids.decode("User", ref.id.value, path="user") if ref.id else 0
    viewer.require(second_factors_mutations.MANAGES)
    return await owner_named(info, ref)


async def _shown(info: Info, key: int) -> Any:
    """Load a user as the viewer can see it."""
    return _account(await info.context.load(user_loaders.by_ids, key))


@strawberry.type
class TwoFactorMutation:
    @mutation("A new seed for codes by time; nothing is on until it is proved.", scope=Scope.MASTER)
    async def totp_setup(self, info: Info, input: TotpSetupInput) -> TotpSetupPayload:
        user_id = await _key(info, input.user)
        secret = await second_factors_mutations.totp_setup(
            info.context, user_id, input.label or None, input.issuer or None
        )
        return TotpSetupPayload(seed=secret.seed, otpauth_url=secret.url, qr_code=secret.picture)

    @mutation(
        "Turn codes by time on: proves the new seed. Ends all other sign-ins of the account.",
        scope=Scope.MASTER,
        alone=PROVED,
    )
    async def totp_enable(self, info: Info, input: TotpEnableInput) -> TotpEnablePayload:
        user_id = await _key(info, input.user)
        user_id, codes = await second_factors_mutations.totp_enable(
            info.context, user_id, input.token, _proof(input.proof or None)
        )
        return TotpEnablePayload(user=await _shown(info, user_id), recovery_codes=codes)

    @mutation(
        "Turn codes by time on with a seed that the user's device has from another system. Ends "
        "all other sign-ins of the account.",
        role=Role.ADMIN,
        scope=Scope.MASTER,
    )
    async def totp_import(self, info: Info, input: TotpImportInput) -> UserPayload:
        user_id = await _key(info, input.user)
        assert user_id is not None  # noqa: S101 - the schema asks for it
        changed_id = await second_factors_mutations.totp_import(info.context, user_id, input.seed)
        return UserPayload(user=await _shown(info, changed_id))

    @mutation(
        "Prove a factor by a code, which works once. A sign-in that waits for it is complete "
        "with that; without one it needs a credential.",
        role=Role.PUBLIC,
        signed_in=second_factors_mutations.MANAGES,
        alone=CHECKED,
    )
    async def totp_check(self, info: Info, input: TotpCheckInput) -> TotpCheckPayload:
        user_id = await _key(info, input.user or None)
        await second_factors_mutations.prove(info.context, user_id, Proof(totp=input.token))
        return TotpCheckPayload(valid=True)

    @mutation("Turn codes by time off; other factors stay.", scope=Scope.MASTER, alone=PROVED)
    async def totp_disable(self, info: Info, input: TotpDisableInput) -> UserPayload:
        user_id = await _key(info, input.user)
        changed_id = await second_factors_mutations.totp_disable(
            info.context, user_id, _proof(input.proof or None)
        )
        return UserPayload(user=await _shown(info, changed_id))

    @mutation(
        "Say that the calling application checks a factor of its own. Ends all other sign-ins of "
        "the account.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.MASTER,
    )
    async def custom_two_factor_enable(
        self, info: Info, input: CustomTwoFactorEnableInput
    ) -> UserPayload:
        user_id = await _key(info, input.user)
        changed_id = await second_factors_mutations.custom_enable(info.context, user_id)
        return UserPayload(user=await _shown(info, changed_id))

    @mutation(
        "Say that it does so no longer; other factors stay.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.MASTER,
        alone=PROVED,
    )
    async def custom_two_factor_disable(
        self, info: Info, input: CustomTwoFactorDisableInput
    ) -> UserPayload:
        user_id = await _key(info, input.user)
        changed_id = await second_factors_mutations.custom_disable(
            info.context, user_id, _proof(input.proof or None)
        )
        return UserPayload(user=await _shown(info, changed_id))

    @mutation(
        "Turn all factors off. Nothing else does: no password reset, no other change.",
        scope=Scope.MASTER,
        alone=PROVED,
    )
    async def two_factor_disable(self, info: Info, input: TwoFactorDisableInput) -> UserPayload:
        user_id = await _key(info, input.user)
        changed_id = await second_factors_mutations.disable_all(
            info.context, user_id, _proof(input.proof or None)
        )
        return UserPayload(user=await _shown(info, changed_id))

    @mutation(
        "New recovery codes for the viewer; the old ones are void.",
        scope=Scope.MASTER,
        alone=PROVED,
    )
    async def recovery_codes_create(
        self, info: Info, input: RecoveryCodesCreateInput
    ) -> RecoveryCodesCreatePayload:
        codes = await second_factors_mutations.renew_codes(
            info.context, _proof(input.proof or None)
        )
        return RecoveryCodesCreatePayload(recovery_codes=codes)

    @mutation(
        "A challenge for a security key: to register it, or to prove it. Open to sign-ins that "
        "wait for a factor; all others need a credential.",
        role=Role.PUBLIC,
        signed_in=second_factors_mutations.MANAGES,
    )
    async def webauthn_challenge(
        self, info: Info, input: WebauthnChallengeInput
    ) -> WebauthnChallengePayload:
        user_id = await _key(info, input.user or None)
        ceremony = Ceremony(input.ceremony) if input.ceremony else None
        challenge: Any = await second_factors_mutations.webauthn_challenge(
            info.context, user_id, ceremony
        )
        return WebauthnChallengePayload(challenge=challenge)

    @mutation(
        "Add a security key or passkey. The first one ends all other sign-ins of the account.",
        scope=Scope.MASTER,
        alone=CHECKED,
    )
    async def webauthn_register(
        self, info: Info, input: WebauthnRegisterInput
    ) -> WebauthnRegisterPayload:
        user_id = await _key(info, input.user)
        response = _signed(input.response, ["response"])
        row, codes = await second_factors_mutations.webauthn_register(
            info.context, user_id, input.name, response, _proof(input.proof or None)
        )
        return WebauthnRegisterPayload(
            user=await _shown(info, row.user_id),
            webauthn_key=WebauthnKey.of(row),
            recovery_codes=codes,
        )

    @mutation(
        "Prove a factor by a security key. A sign-in that waits for it is complete with that; "
        "without one it needs a credential.",
        role=Role.PUBLIC,
        signed_in=second_factors_mutations.MANAGES,
        alone=CHECKED,
    )
    async def webauthn_check(self, info: Info, input: WebauthnCheckInput) -> WebauthnCheckPayload:
        user_id = await _key(info, input.user or None)
        response = _signed(input.response, ["response"])
        await second_factors_mutations.prove(info.context, user_id, Proof(webauthn=response))
        return WebauthnCheckPayload(valid=True)

    @mutation("All or none. With the last key the factor is off.", scope=Scope.MASTER, alone=PROVED)
    async def webauthn_delete(self, info: Info, input: WebauthnDeleteInput) -> DeletePayload:
        keys = keys_of(info, "WebauthnKey", input.ids)
        await second_factors_mutations.webauthn_delete(
            info.context, keys, _proof(input.proof or None)
        )
        return DeletePayload(deleted_ids=input.ids)
