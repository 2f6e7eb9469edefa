"""The users and domains that a field can be used for, and the sentence of its description.

The resolver enforces it, mostly in a WHERE clause. tests/targets/test_target_access.py compares
the declarations with the responses of a server.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto

from models.users.roles import AdminPermission, Role, Scope


class Reach(Enum):
    """The users or domains that a caller can use a field for."""

    OWN = auto()
    """The caller's own account, whatever the role."""

    OWN_OR_SHARED = auto()
    """The caller's own account and mailboxes shared with it, whatever the role."""

    OWN_OR_ROOT = auto()
    """The own account, for a ROOT also others."""

    OWN_OR_ADMINISTRATOR = auto()
    """The own account, for an ADMIN also others, except those of a ROOT."""

    OWN_OR_OVERSEEN = auto()
    """The own account, for an ADMIN also all others."""

    MANAGED = auto()
    """The users that the caller can change (`resolvers.access.is_managed_user`)."""

    MANAGED_OR_DOMAINS = auto()
    """The users that the caller can change, and administered domains; all for an ADMIN."""

    OVERSEEN = auto()
    """The users that the caller oversees (`resolvers.access.is_overseen_user`)."""

    OVERSEEN_MAIL = auto()
    """Mail of users that the caller oversees and of administered domains; all for an ADMIN."""

    OVERSEEN_OR_DOMAINS = auto()
    """The users that the caller oversees, and administered domains; all for an ADMIN."""

    ACCOUNTS = auto()
    """All accounts of administered domains, whatever their role; all accounts for an ADMIN."""

    DOMAINS = auto()
    """The administered domains; all domains for an ADMIN."""


@dataclass(frozen=True, slots=True)
class ObjectAccess:
    """The users or domains that a field can be used for.

    `permissions`: a DOMAIN_ADMIN needs all of them for other users. `scope`: the credential needs
    it for other users. Role, permissions and scope that every call needs are in the field's guard.
    """

    reach: Reach
    permissions: tuple[AdminPermission, ...] = ()
    scope: Scope | None = None

    def with_permissions(self, *permissions: AdminPermission) -> "ObjectAccess":
        """Return this access for a DOMAIN_ADMIN with these permissions."""
        return replace(self, permissions=permissions)

    def with_scope(self, scope: Scope) -> "ObjectAccess":
        """Return this access for credentials with this scope."""
        return replace(self, scope=scope)


OWN = ObjectAccess(Reach.OWN)
OWN_OR_SHARED = ObjectAccess(Reach.OWN_OR_SHARED)
OWN_OR_ROOT = ObjectAccess(Reach.OWN_OR_ROOT)
OWN_OR_ADMINISTRATOR = ObjectAccess(Reach.OWN_OR_ADMINISTRATOR)
OWN_OR_OVERSEEN = ObjectAccess(Reach.OWN_OR_OVERSEEN)
MANAGED = ObjectAccess(Reach.MANAGED)
MANAGED_OR_DOMAINS = ObjectAccess(Reach.MANAGED_OR_DOMAINS)
OVERSEEN = ObjectAccess(Reach.OVERSEEN)
OVERSEEN_MAIL = ObjectAccess(Reach.OVERSEEN_MAIL)
OVERSEEN_OR_DOMAINS = ObjectAccess(Reach.OVERSEEN_OR_DOMAINS)
ACCOUNTS = ObjectAccess(Reach.ACCOUNTS)
DOMAINS = ObjectAccess(Reach.DOMAINS)

_OWN_TEXTS = {
    Reach.OWN: "Nobody can use this {noun} for other users.",
    Reach.OWN_OR_SHARED: "The caller can use this {noun} only for own mailboxes, and for "
    "mailboxes that other users share with the caller.",
    Reach.OWN_OR_ROOT: "Only a ROOT can use this {noun} for other users.",
    Reach.OWN_OR_ADMINISTRATOR: "Only an ADMIN can use this {noun} for other users, but not for a "
    "user with the role ROOT.",
    Reach.OWN_OR_OVERSEEN: "Only an ADMIN can use this {noun} for other users.",
}
# Whom a DOMAIN_ADMIN and an ADMIN can use a field for.
_ADMINISTERED_TEXTS = {
    Reach.MANAGED: ("a USER of an administered domain", "any user without the role ROOT"),
    Reach.MANAGED_OR_DOMAINS: (
        "an administered domain and a USER of it",
        "any domain, and any user without the role ROOT",
    ),
    Reach.OVERSEEN: ("a USER of an administered domain", "any user"),
    Reach.OVERSEEN_MAIL: ("mail of administered domains and of their users", "all mail"),
    Reach.OVERSEEN_OR_DOMAINS: (
        "an administered domain and a USER of it",
        "any domain and any user",
    ),
    Reach.ACCOUNTS: ("any account of an administered domain", "any account"),
    Reach.DOMAINS: ("administered domains", "any domain"),
}


def access_text(access: ObjectAccess, role: Role, noun: str) -> str:
    """Return the sentences about the users or domains that a field can be used for.

    `role` is the lowest role that can use the field, and `noun` what the field is, such as
    "mutation".
    """
    text = _reach_text(access, role, noun)
    if access.scope:
        text += f" For other users the credential needs the scope {access.scope}."
    return text


def _reach_text(access: ObjectAccess, role: Role, noun: str) -> str:
    if text := _OWN_TEXTS.get(access.reach):
        return text.format(noun=noun)
    administered, reach_of_admin = _ADMINISTERED_TEXTS[access.reach]
    if role.includes(Role.ADMIN):
        return f"An ADMIN can use this {noun} for {reach_of_admin}."
    also = "" if role is Role.DOMAIN_ADMIN else "also "
    needed = f" with the {_permission_list(access)}" if access.permissions else ""
    return (
        f"A DOMAIN_ADMIN{needed} can {also}use this {noun} for {administered}. "
        f"An ADMIN can use it for {reach_of_admin}."
    )


def argument_access_text(access: ObjectAccess, role: Role, *, is_plural: bool) -> str:
    """Return the sentence for an argument or input field that names the users; can be empty.

    If only administrators can use the field, the sentence of the field is enough.
    """
    if access.reach is Reach.OWN:
        return "Only the signed-in user is accepted."
    if access.reach is Reach.OWN_OR_SHARED or role.includes(Role.DOMAIN_ADMIN):
        return ""
    needed = {
        Reach.OWN_OR_ROOT: "the role ROOT",
        Reach.OWN_OR_ADMINISTRATOR: "the role ADMIN",
        Reach.OWN_OR_OVERSEEN: "the role ADMIN",
    }.get(access.reach, "the role DOMAIN_ADMIN")
    if access.permissions:
        comma = "" if access.scope else ","
        needed += f" with the {_permission_list(access)}{comma} or the role ADMIN"
    if access.scope:
        comma = "," if access.permissions else ""
        needed = f"the scope {access.scope}{comma} and {needed}"
    return f"Other users require {needed}." if is_plural else f"Another user requires {needed}."


def _permission_list(access: ObjectAccess) -> str:
    word = "permissions" if len(access.permissions) > 1 else "permission"
    return f"{word} {' and '.join(access.permissions)}"
