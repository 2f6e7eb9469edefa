"""Inputs of mutations on sign-ins, access tokens and API keys."""

from datetime import datetime

import strawberry

from graph.types.errors import Options, attribute_field
from graph.types.input_conditions import RestrictionsInput
from graph.types.object_references import ObjectRef
from graph.types.references import (
    DomainRef,
    UserRef,
    UserSelection,
)
from graph.types.scalars import CIDR, Duration
from models.users.roles import Role, Scope


@strawberry.input(one_of=True, description="Reference to one access token.")
class AccessTokenRef(ObjectRef):
    pass


@strawberry.input(description="Input of accessTokenRevoke.")
class AccessTokenRevokeInput(Options):
    access_tokens: list[AccessTokenRef] | None = attribute_field(
        "Access tokens to revoke, 1 to 1,000 by default. Requires the scope FULL. Default: the "
        "access token of this request.",
        default=strawberry.UNSET,
    )
    all: bool = attribute_field(
        "True revokes every access token of the signed-in user, also those that `accessTokens` "
        "does not name. Requires the scope FULL.",
        default=False,
    )


@strawberry.input(description="Input of apiKeyCreate.")
class ApiKeyCreateInput(Options, RestrictionsInput):
    restriction_fields = frozenset({"scopes", "domains", "operations", "allowed_ips"})
    name: str = attribute_field("Purpose of the API key: 1 to 128 printable characters.")
    role: Role = attribute_field(
        "Role of the API key, at most the caller's role and the role of the key's user. "
        "PUBLIC is refused, and for another user every role but USER.",
        default=Role.USER,
    )
    scopes: list[Scope] | None = attribute_field(
        "Scopes of the API key. Default: all scopes. For another user the default is READ, MAIL, "
        "SUBMIT and SETTINGS, and a scope beyond these is FORBIDDEN. An empty list is refused.",
        default=strawberry.UNSET,
    )
    read_only: bool = attribute_field(
        "True: mutations with the API key are refused.", default=False
    )
    user: UserRef | None = attribute_field(
        "User that the API key belongs to. Default: the signed-in user; no user if the key has "
        "the role ADMIN or above. If the credential has no user, `user` is required for a key "
        "below ADMIN (else VALIDATION). Exception: the credential has the role ADMIN, and "
        "`domains` is given.",
        default=strawberry.UNSET,
    )
    expires_at: datetime | None = attribute_field(
        "Time in the future when the API key expires. Default: never, or the expiry of the API "
        "key that makes the request. A later time than that expiry is FORBIDDEN. A key for "
        "another user expires after at most 4 hours (else VALIDATION). Its default is 4 hours, or "
        "the expiry of the API key that makes the request if that is earlier.",
        default=strawberry.UNSET,
    )
    domains: list[DomainRef] | None = attribute_field(
        "Restricts the API key to at most 100 domains, which the key administers as a "
        "DOMAIN_ADMIN without acting for a user. Requires `role` DOMAIN_ADMIN or above; with "
        "ADMIN or above `user` is refused. The caller and the key's user must administer the "
        "domains, else NOT_FOUND. Default: no restriction. An empty list is refused.",
        default=strawberry.UNSET,
    )
    operations: list[str] | None = attribute_field(
        "Names of the root fields that the API key can use: at most 100. Other HTTP paths, such "
        "as downloads, refuse a key with such a list. Default: all root fields, or those of the "
        "API key that makes the request. An empty list is refused.",
        default=strawberry.UNSET,
    )
    allowed_ips: list[CIDR] | None = attribute_field(
        "Networks from which the API key is accepted: at most 100. Default: all networks, or "
        "those of the API key that makes the request. An empty list is refused.",
        default=strawberry.UNSET,
    )


@strawberry.input(one_of=True, description="Reference to one API key.")
class ApiKeyRef(ObjectRef):
    pass


@strawberry.input(
    description="New values of API keys, at least one. An absent field leaves the value."
)
class ApiKeyPatch(RestrictionsInput):
    restriction_fields = frozenset({"allowed_ips"})
    name: str | None = attribute_field(
        "Purpose of the API keys: 1 to 128 printable characters. Null leaves the value.",
        default=strawberry.UNSET,
    )
    active: bool | None = attribute_field(
        "False: the API keys are refused until they are activated again. Null leaves the state.",
        default=strawberry.UNSET,
    )
    allowed_ips: list[CIDR] | None = attribute_field(
        "Networks from which the API keys are accepted: at most 100. Null: all networks. "
        "An empty list is refused. If an API key with networks makes the request, null "
        "and networks outside of these are FORBIDDEN.",
        default=strawberry.UNSET,
    )
    expires_at: datetime | None = attribute_field(
        "Time in the future when the API keys expire. Null: never. If an API key with an "
        "expiry makes the request, null and a later time are FORBIDDEN. A key that an "
        "administrator created for another user expires at most 4 hours after the key was "
        "created: null and a later time are refused (VALIDATION). Default: unchanged.",
        default=strawberry.UNSET,
    )


@strawberry.input(description="Input of apiKeyUpdate.")
class ApiKeyUpdateInput(Options):
    api_keys: list[ApiKeyRef] = attribute_field("API keys to change, 1 to 1,000 by default.")
    set: ApiKeyPatch = attribute_field(
        "New values, the same for all API keys. At least one value is required."
    )


@strawberry.input(description="Input of apiKeyDelete.")
class ApiKeyDeleteInput(Options):
    api_keys: list[ApiKeyRef] = attribute_field("API keys to delete, 1 to 1,000 by default.")


@strawberry.input(description="Input of userImpersonate.")
class UserImpersonateInput(Options):
    user: UserRef = attribute_field("User whose mail and settings the token gives access to.")
    ttl: Duration | None = attribute_field(
        "Lifetime of the access token, from 1 minute to 4 hours; uses don't extend "
        "it. Default: 30 minutes.",
        default=strawberry.UNSET,
    )


@strawberry.input(description="Input of authCacheFlush.")
class AuthCacheFlushInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose cached credentials are dropped, also users with the role ROOT. Default: all "
        "cached credentials, also those without a user.",
        default=strawberry.UNSET,
    )
