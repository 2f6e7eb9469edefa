"""The viewer of a request and the rule that a field requires of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from models.errors import Forbidden, SecondFactorRequired, Unauthenticated
from models.users.roles import AdminPermission, Role, Scope, UserPermission, expand_scopes


@dataclass(frozen=True, slots=True)
class GuardRule:
    """The authorization rule of a field: role, scope and permission that the viewer needs."""

    role: Role = Role.USER
    scope: Scope | None = None
    admin_permission: AdminPermission | None = None  # of a DOMAIN_ADMIN
    user_permission: UserPermission | None = None  # of a USER
    # the rule for viewers whose sign-in waits for no second factor
    signed_in: "GuardRule | None" = None


@dataclass(slots=True, weakref_slot=True)
class ShareVisibility:
    """Whether mailboxes are shared with a user; one object for all its viewers in a process.

    True is always right and only costs a wider search. False can be late for as long as a
    credential is cached.
    """

    has_shared_mailboxes: bool = False


@dataclass(frozen=True, slots=True)
class Viewer:
    """The signed-in user or key of a request, with the rights of its credential.

    `user_id` is 0 if the credential belongs to no user: there is none, or it is a key of the
    platform. `administered_domains` are the domain ids of a DOMAIN_ADMIN with AdminPermissions in
    `permissions`; a USER has UserPermissions in it.
    """

    user_id: int = 0
    role: Role = Role.PUBLIC
    scopes: frozenset[Scope] = frozenset()
    permissions: frozenset[AdminPermission | UserPermission] = frozenset()
    administered_domains: frozenset[int] = frozenset()
    read_only: bool = False
    token_id: int | None = None
    api_key_id: int | None = None
    app_password_id: int | None = None
    allowed_operations: frozenset[str] = frozenset()  # root fields it can use; empty = all
    allowed_networks: tuple[str, ...] = ()  # an API key is accepted from these; empty = from all
    pending_user_id: int = 0  # user whose second factor is missing: the role is PUBLIC until then
    key_owner_id: int = 0  # the user who owns an API key for domains, which acts for no user
    actor_id: int = 0  # the administrator who acts as the user
    actor_key_id: int | None = None  # or the key without an account; 0: the bootstrap key
    new_password_only: bool = False  # signed in with a temporary password
    expires_at: datetime | None = None  # of the credential
    service_name: str = ""  # of a part of the server that acts for no user and no key
    auth_version: int = field(default=0, compare=False)  # of the user, when it was read
    share_visibility: ShareVisibility = field(default_factory=ShareVisibility, compare=False)

    @property
    def principal(self) -> str:
        """The owner of idempotency keys: the user, the API key, or the bootstrap key."""
        if self.user_id:
            return f"user:{self.user_id}"
        return f"key:{self.api_key_id or 0}" if self.role is not Role.PUBLIC else "public"

    @property
    def is_acting(self) -> bool:
        """True if an administrator, or a key of the platform, acts as the user."""
        return bool(self.actor_id) or self.actor_key_id is not None

    @property
    def is_trusted_front_end(self) -> bool:
        """True if the viewer is a front end that is trusted to name its users.

        That is a key of an ADMIN.
        """
        return self.token_id is None and self.role.includes(Role.ADMIN)

    @property
    def credential_key(self) -> str:
        """A short text that identifies the credential.

        Signed URLs are bound to it and end with it.
        """
        if self.token_id:
            return f"t{self.token_id}"
        if self.api_key_id:
            return f"k{self.api_key_id}"
        if self.app_password_id:
            return f"a{self.app_password_id}"
        return f"v{self.auth_version}" if self.user_id else "b"

    def require_scope(self, scope: Scope) -> None:
        """Raise Forbidden if the credential lacks this scope."""
        self.require(GuardRule(scope=scope))

    def require(
        self, rule: GuardRule, *, path: Sequence[str] = (), index: int | None = None
    ) -> None:
        """Raise Forbidden if the viewer lacks the role, scope or permission.

        `path` and `index` are those of the value in the input that needs it.

        Raises Unauthenticated if the viewer is not signed in, and SecondFactorRequired if the
        sign-in lacks its second factor.
        """
        if rule.signed_in and not self.pending_user_id:
            rule = rule.signed_in
        if self.role is Role.PUBLIC and rule.role is not Role.PUBLIC:
            raise SecondFactorRequired if self.pending_user_id else Unauthenticated
        if not self.role.includes(rule.role):
            raise Forbidden(
                f"Requires the role {rule.role}.", requires=rule.role, path=path, index=index
            )
        if rule.scope and rule.scope not in expand_scopes(self.scopes):
            raise Forbidden(
                f"Requires the scope {rule.scope}.", requires=rule.scope, path=path, index=index
            )
        permission_by_role = {
            Role.USER: rule.user_permission,
            Role.DOMAIN_ADMIN: rule.admin_permission,
        }
        permission = permission_by_role.get(self.role)
        if permission and permission not in self.permissions:
            raise Forbidden(
                f"Requires the permission {permission}.",
                requires=permission,
                path=path,
                index=index,
            )
