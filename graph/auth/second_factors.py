"""GraphQL types and mutations of second factors."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.idempotent_payloads import SECRET_METADATA
from graph.types.object_references import ObjectRef
from graph.types.object_views import DerivedField, View
from graph.types.references import UserRef
from graph.types.row_mapping import NodeView, global_id_field, lazy_view_factory
from resolvers.auth.second_factors import webauthn
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod
from resolvers.auth.second_factors.webauthn import Ceremony

if TYPE_CHECKING:
    from graph.users.types import User


LazyUser = Annotated["User", strawberry.lazy("graph.users.types")]
user_from_row = lazy_view_factory("graph.users.types", "User")


@strawberry.type(description="Second factor that is turned on for a user.")
class TwoFactor(View):
    method: TwoFactorMethod = attribute_field("Method by which the user proves the second factor.")
    created_at: datetime | None = attribute_field(
        "Time when the factor was turned on; for WEBAUTHN, when the user's oldest key was "
        "registered. Null: an external application checks the factor."
    )
    last_used_at: datetime | None = attribute_field(
        "Time when this server last accepted a proof of the factor, for TOTP the start of the "
        "code's 30 seconds. Recovery codes don't count; turning TOTP on by a code does. Null: "
        "never, or an external application checks the factor."
    )


@strawberry.type(description="Security key or passkey of a user (W3C Web Authentication).")
class WebauthnKey(NodeView):
    name: str = attribute_field("Name that was given to the key at its registration.")
    created_at: datetime = attribute_field("Time of the registration.")
    last_used_at: datetime | None = attribute_field(
        "Time when the key last proved the second factor. Null: never."
    )

    load_batch = staticmethod(webauthn.load_visible_keys_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("WebauthnKey")}


@strawberry.input(
    description=(
        "Proof of a second factor that is on. A user with a second factor must send it to change "
        "the own factors, since the access token may be stolen. An administrator who turns off "
        "factors of another user can give `options.reason` instead. Without `totp` and `webauthn`, "
        "the proof counts as missing."
    )
)
class TwoFactorProofInput:
    totp: str | None = attribute_field(
        "A TOTP code of 6 digits (RFC 6238), or a recovery code.", default=UNSET
    )
    webauthn: JSON | None = attribute_field(
        "Ignored if `totp` is given, but it must be a JSON object then, too. Response of a "
        "security key to a challenge with the ceremony AUTHENTICATION, as the JSON that "
        "`PublicKeyCredential.toJSON()` returns.",
        default=UNSET,
    )


@strawberry.input
class _OptionalUserInput(Options):
    user: UserRef | None = attribute_field(
        "User whose second factors are changed. Default: the signed-in user.",
        default=UNSET,
    )


@strawberry.input
class _CheckedUserInput(Options):
    user: UserRef | None = attribute_field(
        "User whose second factor is checked. Default: the signed-in user, or the user of the "
        "sign-in that lacks its second factor. During such a sign-in, only the ID of its user is "
        "accepted (else NOT_FOUND).",
        default=UNSET,
    )


@strawberry.input
class _OptionalProofInput(_OptionalUserInput):
    proof: TwoFactorProofInput | None = attribute_field(
        "Proof of a second factor that is on for the user whose factors change. Required if this "
        "is the signed-in user (else AUTHENTICATION_FAILED). For another user, the proof or "
        "`options.reason` is required (else VALIDATION).",
        default=UNSET,
    )


_PROOF_TO_ADD_FACTOR_TEXT = (
    "Proof of a second factor that is on for the user whose factors change. Ignored if none is on. "
    "Required if this is the signed-in user and has a factor already (else AUTHENTICATION_FAILED; "
    "FORBIDDEN if that is only EXTERNAL). Not required for another user; a given proof is checked."
)


@strawberry.input
class _ProofToAddFactorInput(_OptionalUserInput):
    proof: TwoFactorProofInput | None = attribute_field(_PROOF_TO_ADD_FACTOR_TEXT, default=UNSET)


@strawberry.input(description="Input of totpSetup.")
class TotpSetupInput(_OptionalUserInput):
    user: UserRef | None = attribute_field(
        "User for whom the TOTP secret is created. Default: the signed-in user.",
        default=UNSET,
    )
    label: str | None = attribute_field(
        "Account name that the authenticator shows: at most 64 printable characters "
        "without a colon. Default: the username.",
        default=UNSET,
    )
    issuer: str | None = attribute_field(
        "Issuer that the authenticator shows: at most 64 printable characters "
        "without a colon. Default: Merganser.",
        default=UNSET,
    )


@strawberry.input(description="Input of totpEnable.")
class TotpEnableInput(_ProofToAddFactorInput):
    user: UserRef | None = attribute_field(
        "User for whom the mutation turns TOTP on. Default: the signed-in user.",
        default=UNSET,
    )
    token: str = attribute_field(
        "A TOTP code of 6 digits that the authenticator computes from the new secret."
    )


@strawberry.input(description="Input of totpImport.")
class TotpImportInput(Options):
    user: UserRef = attribute_field(
        "User for whom TOTP is turned on. The authenticator of the user already has the secret."
    )
    secret: str = attribute_field(
        "TOTP secret of 8 to 128 bytes in base32. Case, spaces and hyphens are ignored."
    )
    proof: TwoFactorProofInput | None = attribute_field(_PROOF_TO_ADD_FACTOR_TEXT, default=UNSET)


@strawberry.input(description="Input of totpVerify.")
class TotpVerifyInput(_CheckedUserInput):
    token: str = attribute_field(
        "A TOTP code of 6 digits (RFC 6238), or a recovery code. Each works once."
    )


@strawberry.input(description="Input of totpDisable.")
class TotpDisableInput(_OptionalProofInput):
    user: UserRef | None = attribute_field(
        "User for whom the mutation turns TOTP off. Default: the signed-in user.",
        default=UNSET,
    )


@strawberry.input(description="Input of externalTwoFactorEnable.")
class ExternalTwoFactorEnableInput(_OptionalUserInput):
    user: UserRef | None = attribute_field(
        "User whose second factor EXTERNAL is turned on. The calling application checks this "
        "factor. Default: the signed-in user.",
        default=UNSET,
    )


@strawberry.input(description="Input of externalTwoFactorDisable.")
class ExternalTwoFactorDisableInput(_OptionalProofInput):
    user: UserRef | None = attribute_field(
        "User whose second factor EXTERNAL is turned off. The calling application checks this "
        "factor. Default: the signed-in user.",
        default=UNSET,
    )


@strawberry.input(description="Input of twoFactorDisable.")
class TwoFactorDisableInput(_OptionalProofInput):
    user: UserRef | None = attribute_field(
        "User whose second factors are all turned off. Default: the signed-in user.",
        default=UNSET,
    )


@strawberry.input(description="Input of recoveryCodesCreate.")
class RecoveryCodesCreateInput(Options):
    proof: TwoFactorProofInput | None = attribute_field(
        "Proof of a second factor of the signed-in user that is on. It is required, else "
        "AUTHENTICATION_FAILED.",
        default=UNSET,
    )


@strawberry.input(description="Input of webauthnChallenge.")
class WebauthnChallengeInput(Options):
    user: UserRef | None = attribute_field(
        "User whose key is verified or registered with the challenge. Default: the signed-in "
        "user, or the user of the sign-in that lacks its second factor. During such a sign-in, "
        "only the ID of its user is accepted (else NOT_FOUND).",
        default=UNSET,
    )
    ceremony: Ceremony | None = attribute_field(
        "Purpose of the challenge. Default: AUTHENTICATION during a sign-in that lacks its second "
        "factor, else REGISTRATION. During such a sign-in REGISTRATION is FORBIDDEN.",
        default=UNSET,
    )


@strawberry.input(description="Input of webauthnRegister.")
class WebauthnRegisterInput(_ProofToAddFactorInput):
    user: UserRef | None = attribute_field(
        "User for whom the security key is registered. Default: the signed-in user.",
        default=UNSET,
    )
    name: str = attribute_field("Name of the key: 1 to 128 printable characters.")
    response: JSON = attribute_field(
        "Result of `navigator.credentials.create`, as the JSON that "
        "`PublicKeyCredential.toJSON()` returns."
    )


@strawberry.input(description="Input of webauthnVerify.")
class WebauthnVerifyInput(_CheckedUserInput):
    response: JSON = attribute_field(
        "Result of `navigator.credentials.get`, as the JSON that "
        "`PublicKeyCredential.toJSON()` returns."
    )


@strawberry.input(one_of=True, description="Reference to one WebAuthn key.")
class WebauthnKeyRef(ObjectRef):
    pass


@strawberry.input(description="Input of webauthnDelete.")
class WebauthnDeleteInput(Options):
    webauthn_keys: list[WebauthnKeyRef] = attribute_field(
        "WebAuthn keys to delete, 1 to 1,000 by default. All must belong to one user."
    )
    proof: TwoFactorProofInput | None = attribute_field(
        "Proof of a second factor of the owner of the keys: a TOTP code, a recovery code, or the "
        "response of a WebAuthn key. For the signed-in user's own keys, the proof is required "
        "(else AUTHENTICATION_FAILED). For keys of another user, the proof or `options.reason` is "
        "required (else VALIDATION).",
        default=UNSET,
    )


@strawberry.type(description="Payload of totpSetup. The secret is returned once.")
class TotpSetupPayload(MutationPayload):
    secret: str | None = attribute_field(
        "TOTP secret in base32. It expires unless totpEnable proves it within 6 hours. Null: the "
        "mutation failed, or it was a dry run.",
        default=None,
        metadata=SECRET_METADATA,
    )
    otpauth_url: str | None = attribute_field(
        "The TOTP secret as an otpauth: URL for authenticators. Null: the mutation failed, or it "
        "was a dry run.",
        default=None,
        metadata=SECRET_METADATA,
    )
    qr_code: str | None = attribute_field(
        "QR code of the otpauth: URL, as a data URL with a PNG image. Null: the mutation failed, "
        "or it was a dry run.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of totpEnable.")
class TotpEnablePayload(MutationPayload):
    user: LazyUser | None = attribute_field(
        "User whose TOTP factor was turned on. Null: the mutation failed.", default=None
    )
    recovery_codes: list[str] = attribute_field(
        "Ten new recovery codes of 16 lower-case characters and digits in groups of four, which "
        "are returned once. Each works once. Earlier codes become invalid. Empty: the mutation "
        "failed, or it was a dry run.",
        default_factory=list,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of totpVerify and webauthnVerify.")
class TwoFactorVerifyPayload(MutationPayload):
    valid: bool = attribute_field(
        "True if the code, or the response of the security key, was right. It then can't be used "
        "again. A wrong one is the error AUTHENTICATION_FAILED, and this field is false. A wrong "
        "response uses up its challenge. A wrong code uses up nothing.",
        default=False,
    )


@strawberry.type(description="Payload of recoveryCodesCreate.")
class RecoveryCodesCreatePayload(MutationPayload):
    recovery_codes: list[str] = attribute_field(
        "Ten new recovery codes of 16 lower-case characters and digits in groups of four, which "
        "are returned once. Each works once. Empty: the mutation failed, or it was a dry run.",
        default_factory=list,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of webauthnChallenge.")
class WebauthnChallengePayload(MutationPayload):
    challenge: JSON | None = attribute_field(
        "Options for `publicKey` of `navigator.credentials.create` or `get`, as the JSON that "
        "`PublicKeyCredential.parseCreationOptionsFromJSON` or `parseRequestOptionsFromJSON` "
        "takes. The challenge works once, within one hour. Null: the mutation failed, or it was a "
        "dry run.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of webauthnRegister.")
class WebauthnRegisterPayload(MutationPayload):
    user: LazyUser | None = attribute_field(
        "User whose key was registered. Null: the mutation failed.", default=None
    )
    webauthn_key: WebauthnKey | None = attribute_field(
        "The registered key. Null: the mutation failed.", default=None
    )
    recovery_codes: list[str] = attribute_field(
        "Ten recovery codes of 16 lower-case characters and digits in groups of four, which are "
        "returned once. Each works once. Empty: the user has recovery codes already, since TOTP "
        "or a WebAuthn key was on, the mutation failed, or it was a dry run.",
        default_factory=list,
        metadata=SECRET_METADATA,
    )
