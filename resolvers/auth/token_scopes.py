"""Scopes of access tokens: what a sign-in may ask for, and what a stored token allows."""

from collections.abc import Collection, Sequence
from typing import Any

from models.errors import InvalidInput
from models.oauth.tables import OauthScope
from models.users.roles import Scope, expand_scopes
from models.validation_constraints import ValidationConstraint
from resolvers.auth.credential_makers import IMPERSONATION_SCOPES
from resolvers.oauth.scopes import product_scopes

# The protocols of these scopes take a password, and SCIM takes an API key.
SCOPES_WITHOUT_TOKENS = frozenset({Scope.IMAP, Scope.POP3, Scope.SMTP, Scope.SCIM})
TOKEN_SCOPES = frozenset(Scope) - SCOPES_WITHOUT_TOKENS
NEW_PASSWORD_SCOPES = frozenset({Scope.SETTINGS})  # of a sign-in with a temporary password
SCOPE_COLUMNS = ("scope", "scopes", "temporary", "actor_id", "actor_key_id", "oauth_scopes")


def validate_requested_scopes(scopes: Sequence[Scope] | None) -> frozenset[Scope] | None:
    """Return the scopes that a sign-in limits its token to; None: no limit.

    Raises InvalidInput for too many scopes, and for a scope that no token can have.
    """
    if scopes is None:
        return None
    if len(scopes) > len(TOKEN_SCOPES):
        text = f"At most {len(TOKEN_SCOPES)} items are allowed."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["scopes"])
    for index, scope in enumerate(scopes):
        if scope not in TOKEN_SCOPES:
            raise InvalidInput(
                f"An access token can't have the scope {scope}.",
                constraint=ValidationConstraint.SCOPE,
                path=["scopes"],
                index=index,
            )
    return None if Scope.FULL in scopes else frozenset(scopes)


def names_in_order(scopes: Collection[Scope]) -> list[str]:
    """Return the names of scopes in the order of `Scope`."""
    return [scope.value for scope in Scope if scope in scopes]


def scopes_of_token(token: Any) -> frozenset[Scope]:
    """The scopes of an access token, from its columns `SCOPE_COLUMNS`.

    A token of an OAuth client with the scope DOMAIN_ADMIN has the scope FULL, unless `scopes`
    limits it. The caller must check that the user still has the role of an administrator.
    """
    allowed = frozenset({Scope(token.scope)})
    if token.actor_id is not None or token.actor_key_id is not None:
        allowed = IMPERSONATION_SCOPES
    elif token.oauth_scopes is not None:
        allowed = product_scopes(token.oauth_scopes)
        if OauthScope.DOMAIN_ADMIN in token.oauth_scopes:
            allowed |= {Scope.FULL}
    elif token.temporary:
        allowed = NEW_PASSWORD_SCOPES
    if token.scopes is None:
        return allowed
    limit = frozenset(map(Scope, token.scopes))
    return limit if Scope.FULL in allowed else expand_scopes(limit) & expand_scopes(allowed)
