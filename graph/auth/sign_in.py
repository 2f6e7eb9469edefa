"""Inputs and payloads of the mutations that check a password or sign in."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry.scalars import JSON

from graph.auth.types import user_from_row_or_none
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.idempotent_payloads import SECRET_METADATA
from graph.types.input_conditions import RestrictionsInput
from graph.types.scalars import Duration
from models.auth.security_log import AuthProtocol
from models.users.roles import Scope
from resolvers.auth.authentication import AuthenticatedUser
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod
from resolvers.auth.token_scopes import names_in_order

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.input(description="Input of authenticate.")
class AuthenticateInput(Options, RestrictionsInput):
    restriction_fields = frozenset({"scopes"})
    username: str = attribute_field('Username, or an address of the user. Example: `"ann"`.')
    password: str = attribute_field(
        "Password as the user typed it: the user's main or temporary password. An application "
        "password is AUTHENTICATION_FAILED."
    )
    protocol: AuthProtocol = attribute_field(
        "Protocol of the client, for the security log.", default=AuthProtocol.API
    )
    scopes: list[Scope] | None = attribute_field(
        "Scopes that the access token is limited to; it never gets more. Default: FULL, which is "
        "everything that the user's role allows. IMAP, POP3 and SMTP are refused, since these "
        "protocols take a password, and so is SCIM, which takes an API key. A temporary password "
        "requires SETTINGS or FULL. At most 7 items. An empty list is refused. "
        "Example: `[MAIL_READ, SUBMIT]`.",
        default=strawberry.UNSET,
    )
    totp: str | None = attribute_field(
        "Proof of the second factor in the same request: a TOTP code or a recovery code. Ignored "
        "if no second factor is on. Default: none, so that `requiredTwoFactorMethods` of the "
        "payload lists the factors.",
        default=strawberry.UNSET,
    )
    webauthn: JSON | None = attribute_field(
        "Proof of the second factor in the same request: the response of a security key to a "
        "challenge with the ceremony AUTHENTICATION, as JSON. Ignored if `totp` is given, or no "
        "second factor is on. Default: none.",
        default=strawberry.UNSET,
    )
    token_ttl: Duration | None = attribute_field(
        "Time without use after which the access token expires, from 1 minute to the setting "
        "tokens.maxAge (180 days if not set). Default: the setting tokens.idleTimeout (14 days "
        "if not set).",
        default=strawberry.UNSET,
    )


@strawberry.input(description="Input of passwordVerify.")
class PasswordVerifyInput(Options):
    username: str = attribute_field('Username, or an address of the user. Example: `"ann"`.')
    password: str = attribute_field(
        "Password as the user typed it. The scope FULL takes the user's main or temporary "
        "password; other scopes take an application password, or the main password if no second "
        "factor is on."
    )
    scope: Scope = attribute_field(
        "Scope that the password must have: IMAP, POP3 or SMTP for a mail server that signs its "
        "users in, FULL for an application with sessions of its own."
    )
    protocol: AuthProtocol = attribute_field(
        "Protocol of the client, for the security log.", default=AuthProtocol.API
    )
    totp: str | None = attribute_field(
        "Proof of the second factor in the same request: a TOTP code or a recovery code. Used "
        "only with the scope FULL. Default: none, so that `requiredTwoFactorMethods` of the "
        "payload lists the factors.",
        default=strawberry.UNSET,
    )
    webauthn: JSON | None = attribute_field(
        "Proof of the second factor in the same request: the response of a security key to a "
        "challenge with the ceremony AUTHENTICATION, as JSON. Used only with the scope "
        "FULL, and ignored if `totp` is given. Default: none.",
        default=strawberry.UNSET,
    )


@strawberry.type(description="Payload of authenticate and userImpersonate.")
class AuthenticatePayload(MutationPayload):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = attribute_field(
        "The signed-in or impersonated user. Null: the mutation failed.", default=None
    )
    scopes: list[Scope] = attribute_field(
        "Scopes of the access token. While a second factor is missing, these are the scopes that "
        "the token has afterwards. After a temporary password: SETTINGS, until the user sets a "
        "new password. Empty: the mutation failed.",
        default_factory=list,
    )
    required_two_factor_methods: list[TwoFactorMethod] = attribute_field(
        "Second factors of which one must still be proved, by `totpVerify` or `webauthnVerify`. "
        "Until then the access token works for 10 minutes, and only for these mutations, "
        "`webauthnChallenge`, and fields without a credential such as `accessTokenRevoke`. The "
        "calling application checks EXTERNAL: if an API key of an ADMIN signs in a user with this "
        "factor alone, the token is complete, and the list has EXTERNAL. Empty: no factor is "
        "missing.",
        default_factory=list,
    )
    password_change_required: bool = attribute_field(
        "True if an administrator, or a sign-in with a temporary password, asks for a new "
        "password. Until the user sets one, access tokens from a temporary password are limited. "
        "The OAuth sign-in page refuses passwords of the account. Always false for "
        "`userImpersonate`.",
        default=False,
    )
    token: str | None = attribute_field(
        "The access token, which is returned once. Null: the mutation failed, or it was a dry run "
        "with `options.validateOnly`.",
        default=None,
        metadata=SECRET_METADATA,
    )
    expires_at: datetime | None = attribute_field(
        "Time when the access token expires. Recorded uses move this time, except for a token of "
        "`userImpersonate`. While a second factor is missing: at most 10 minutes after the "
        "sign-in. Null: the mutation failed.",
        default=None,
    )

    @classmethod
    def from_sign_in(cls, sign_in: AuthenticatedUser) -> "AuthenticatePayload":
        """Return the payload of a successful sign-in."""
        return cls(
            user=user_from_row_or_none(sign_in.user),
            scopes=[Scope(name) for name in names_in_order(sign_in.token_scopes)],
            required_two_factor_methods=sign_in.required_two_factor_methods,
            password_change_required=sign_in.password_change_required,
            token=sign_in.token,
            expires_at=sign_in.expires_at,
        )


@strawberry.type(description="Payload of passwordVerify.")
class PasswordVerifyPayload(MutationPayload):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = attribute_field(
        "The user whose password it is. Null: the mutation failed.", default=None
    )
    required_two_factor_methods: list[TwoFactorMethod] = attribute_field(
        "Second factors of which one must still be proved, in a call with `totp` or `webauthn`; "
        "the calling application checks EXTERNAL. Always empty for scopes other than FULL. "
        "Empty: no factor is missing.",
        default_factory=list,
    )
    password_change_required: bool = attribute_field(
        "True if an administrator, or a sign-in with a temporary password, asks for a new "
        "password.",
        default=False,
    )

    @classmethod
    def from_sign_in(cls, sign_in: AuthenticatedUser) -> "PasswordVerifyPayload":
        """Return the payload of a right password."""
        return cls(
            user=user_from_row_or_none(sign_in.user),
            required_two_factor_methods=sign_in.required_two_factor_methods,
            password_change_required=sign_in.password_change_required,
        )
