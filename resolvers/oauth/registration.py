"""Dynamic registration of public OAuth clients (RFC 7591)."""

from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from sqlmodel import col

from models.errors import InvalidInput, RequestError
from models.events.journal import PLATFORM
from models.oauth.tables import DYNAMIC_REGISTRATION, OauthClient, OauthGrantType, OauthScope
from models.users.roles import Role
from resolvers.context import Context
from resolvers.oauth import clients, redirect_uris
from resolvers.oauth.clients import OauthClientChanges
from resolvers.oauth.scopes import allowed_scopes_in_order, scope_text, scopes_for_role

MAX_REGISTERED_CLIENTS = 1000
MAX_LIST_LENGTH = 20  # of each list in the metadata
DEFAULT_SCOPES = (OauthScope.OPENID, OauthScope.PROFILE, OauthScope.EMAIL)
# Only an administrator can give a client the rights of an administrator.
SELF_REGISTERED_SCOPES = scopes_for_role(OauthScope, Role.USER)
AUTHENTICATION_METHOD = "none"
RESPONSE_TYPES = ["code"]


class RegistrationRefused(Exception):
    """The metadata of a client break a rule (RFC 7591, section 3.2.2)."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


def validated_registration(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a client with these metadata. Unknown members are ignored.

    Raises RegistrationRefused.
    """
    method = metadata.get("token_endpoint_auth_method", AUTHENTICATION_METHOD)
    if method != AUTHENTICATION_METHOD:
        raise _invalid_metadata("The token_endpoint_auth_method must be none")
    if _validated_text_list(metadata, "response_types", RESPONSE_TYPES) != RESPONSE_TYPES:
        raise _invalid_metadata("The response_types must be code")
    uris = _validated_redirect_uris(metadata)
    name = metadata.get("client_name")
    if name is None:  # users read it on the consent page
        parts = urlsplit(uris[0])
        name = (parts.netloc or parts.scheme)[: clients.MAX_NAME_LENGTH]
    if not isinstance(name, str):
        raise _invalid_metadata("The client_name must be a string")
    changes = OauthClientChanges(
        name, uris, grant_types=_validated_grant_types(metadata), scopes=_validated_scopes(metadata)
    )
    try:
        return clients.validated_client_columns(changes)
    except RequestError as problem:
        raise _invalid_metadata(problem.message.rstrip(".")) from problem


def _invalid_metadata(description: str) -> RegistrationRefused:
    return RegistrationRefused("invalid_client_metadata", description)


def _validated_text_list(
    metadata: Mapping[str, Any], name: str, default: Sequence[str]
) -> list[str]:
    """Return a list of strings. Raises RegistrationRefused if it is none or too long."""
    value = metadata.get(name)
    if value is None:
        return list(default)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _invalid_metadata(f"The {name} must be a list of strings")
    if len(value) > MAX_LIST_LENGTH:
        raise _invalid_metadata(f"The {name} are at most {MAX_LIST_LENGTH}")
    return cast("list[str]", value)


def _validated_redirect_uris(metadata: Mapping[str, Any]) -> list[str]:
    try:
        return redirect_uris.validate_redirect_uris(
            _validated_text_list(metadata, "redirect_uris", ()), ()
        )
    except InvalidInput as problem:
        description = problem.message.rstrip(".")
    except RegistrationRefused as problem:
        description = problem.description
    raise RegistrationRefused("invalid_redirect_uri", description)


def _validated_grant_types(metadata: Mapping[str, Any]) -> list[OauthGrantType]:
    """Return the grant types. The default is that of RFC 7591."""
    names = set(_validated_text_list(metadata, "grant_types", [OauthGrantType.AUTHORIZATION_CODE]))
    if not {OauthGrantType.AUTHORIZATION_CODE} <= names <= {*OauthGrantType}:
        text = "The grant_types must be authorization_code, with or without refresh_token"
        raise _invalid_metadata(text)
    return [grant_type for grant_type in OauthGrantType if grant_type in names]


def _validated_scopes(metadata: Mapping[str, Any]) -> list[OauthScope]:
    scope = metadata.get("scope")
    if scope is None:
        return list(DEFAULT_SCOPES)
    if not isinstance(scope, str):
        raise _invalid_metadata("The scope must be a string")
    return allowed_scopes_in_order(scope, SELF_REGISTERED_SCOPES)


async def register_client(ctx: Context, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Create a public client with validated columns, and return its registration.

    Raises LimitReached if too many clients have registered themselves.
    """
    environment = ctx.environment
    values: dict[str, Any] = {
        **columns,
        "id": environment.new_id(),
        "client_id": clients.new_client_id(environment),
        "created_at": environment.now(),
        "created_by": DYNAMIC_REGISTRATION,
    }
    async with ctx.write_session(PLATFORM) as session:
        is_registered = col(OauthClient.created_by) == DYNAMIC_REGISTRATION
        await clients.require_client_count_below_limit(ctx, is_registered, MAX_REGISTERED_CLIENTS)
        await clients.insert_client_with_journal_and_audit_log(
            ctx, session, values, DYNAMIC_REGISTRATION
        )
    return {
        "client_id": values["client_id"],
        "client_id_issued_at": int(values["created_at"].timestamp()),
        "client_name": values["name"],
        "redirect_uris": values["redirect_uris"],
        "grant_types": values["grant_types"],
        "response_types": RESPONSE_TYPES,
        "token_endpoint_auth_method": AUTHENTICATION_METHOD,
        "scope": scope_text(values["scopes"]),
    }
