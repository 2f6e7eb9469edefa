"""Scopes of OAuth: parse them, and translate them to the scopes of the product."""

from collections.abc import Collection, Iterable

from models.oauth.tables import OauthScope
from models.users.roles import Role, Scope

PRODUCT_SCOPES = {  # never FULL
    scope: Scope(scope.name) for scope in OauthScope if scope.name in Scope.__members__
}
# A token with none of these, and without DOMAIN_ADMIN, can't be used for GraphQL and REST.
HTTP_SCOPES = frozenset(PRODUCT_SCOPES.values()) - {Scope.IMAP, Scope.POP3, Scope.SMTP}


def allowed_scopes_in_order(requested: str, allowed: Collection[str]) -> list[OauthScope]:
    """Return the scopes of a request that are allowed, in the order of OauthScope.

    Unknown scopes are ignored (OpenID Connect Core, section 3.1.2.1).
    """
    names = set(requested.split(" ")).intersection(allowed)
    return [scope for scope in OauthScope if scope in names]


def scope_text(scopes: Iterable[str]) -> str:
    """Return scopes as the text of a parameter."""
    return " ".join(scopes)


def product_scopes(oauth_scopes: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes of the product among the scopes of an OAuth token."""
    return frozenset(
        PRODUCT_SCOPES[scope] for scope in map(OauthScope, oauth_scopes) if scope in PRODUCT_SCOPES
    )


def opens_http(oauth_scopes: Iterable[str]) -> bool:
    """True if a token with these scopes can be used for GraphQL and REST."""
    names = set(oauth_scopes)
    return OauthScope.DOMAIN_ADMIN in names or not HTTP_SCOPES.isdisjoint(product_scopes(names))


def scopes_for_role(oauth_scopes: Iterable[str], role: Role) -> list[OauthScope]:
    """Return the scopes that a user of this role can give: DOMAIN_ADMIN only with the role."""
    is_admin = role is Role.DOMAIN_ADMIN
    scopes = map(OauthScope, oauth_scopes)
    return [scope for scope in scopes if is_admin or scope is not OauthScope.DOMAIN_ADMIN]
