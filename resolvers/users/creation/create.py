"""Create a user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import IntegrityError

from mail.addresses import address_syntax
from mail.mailboxes.paths import validate_path
from mail.mailboxes.special_use_names import default_mailbox_names
from mail.text import confusables
from models.errors import Conflict, ErrorCollector, Forbidden, InvalidInput
from models.mailboxes.tables import SpecialUse
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.search_index import search_text
from models.users.tables import ProtocolScope, SubaddressAction, User
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.addresses.targets import validate_forward_targets
from resolvers.auth.passwords import new_passwords, password_policy
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.context import Context
from resolvers.submission import sender_patterns
from resolvers.users import forward_targets, openpgp_keys
from resolvers.users.creation import insert, welcome_messages
from resolvers.users.creation.insert import NewUsersRefused, PreparedUser
from resolvers.users.limit_values import LimitValue
from resolvers.users.roles import (
    require_administered_domains,
    require_domain_admin_fields_allowed,
    stored_permissions,
)
from resolvers.users.validation import (
    DEFAULT_SPAM_LEVEL,
    require_column_permissions,
    require_reject_score_not_below_junk_score,
    require_unlimited_quota_permission,
    schema_path,
    validate_user_columns,
)

VALIDATED_COLUMNS = (  # columns that are stored as given, once they are validated
    "name",
    "active",
    "suspended",
    "quota",
    "language",
    "tags",
    "retention",
    "spam_level",
    "junk_score",
    "reject_score",
    "recipients_per_day",
    "forwards_per_day",
    "received_per_hour",
    "allowed_senders",
    "disabled_scopes",
    "upload_sent_messages",
    "require_inbound_tls",
    "require_outbound_tls",
    "smtp_allowed_networks",
    "webmail_access",
    "allow_local",
    "encrypt_messages",
    "encrypt_forwarded",
    "subaddress_action",
    "public_metadata",
    "private_metadata",
)


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to create. None is the default."""

    username: str | None = None
    name: str | None = None
    role: Role = Role.USER
    administers: Sequence[int] = ()  # domain ids, of a DOMAIN_ADMIN
    admin_permissions: Sequence[AdminPermission] = ()
    permissions: Sequence[UserPermission] | None = None  # None: all
    password: str | None = None
    hashed_password: bool = False
    allow_unsafe: bool = True
    password_disabled: bool = False
    password_change_required: bool = False
    address: str | None = None
    empty_address: bool = False
    add_tags_to_address: bool = False
    active: bool = True
    suspended: bool = False
    quota: LimitValue = None  # bytes
    language: str | None = None
    tags: Sequence[str] = ()
    retention: timedelta | None = None
    openpgp_public_key: str | None = None
    encrypt_messages: bool = False
    encrypt_forwarded: bool = False
    forward_to: Sequence[str] = ()
    subaddress_action: SubaddressAction = SubaddressAction.NONE
    spam_level: int | None = None
    junk_score: float | None = None
    reject_score: float | None = None
    recipients_per_day: LimitValue = None
    forwards_per_day: LimitValue = None
    received_per_hour: LimitValue = None
    allowed_senders: Sequence[str] = ()
    disabled_scopes: Sequence[ProtocolScope] = ()
    upload_sent_messages: bool = False
    require_inbound_tls: bool = False
    require_outbound_tls: bool = False
    smtp_allowed_networks: Sequence[str] = ()
    webmail_access: bool = True
    allow_local: bool = False
    public_metadata: Any = None  # must be an object
    private_metadata: Any = None
    mailboxes: dict[SpecialUse, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckedUser:
    """A new user with validated fields; the password is not hashed yet."""

    prepared: PreparedUser
    password: NewPassword | None


async def create_user(
    ctx: Context, new_user: NewUser, problems: ErrorCollector | None = None
) -> User:
    """Create a user with mailboxes and main address, in one transaction.

    Raises all errors of the fields together with the `problems` found before. All checks that can
    fail come before the password is hashed.
    """
    checked_user = await validate_new_user(ctx, new_user, problems or ErrorCollector())
    for error in (
        await insert.find_collisions_and_limit_errors(ctx, {0: checked_user.prepared})
    ).values():
        raise error
    prepared = await hash_password_and_build_welcome(ctx, checked_user)
    try:
        await insert.store_users_and_return_errors(ctx, {0: prepared}, mutation="userCreate")
    except NewUsersRefused as refused:
        raise refused.errors[0] from None
    except IntegrityError as clash:  # a concurrent request took it
        raise Conflict("The username already exists.", path=["username"]) from clash
    return prepared.user


async def validate_new_user(
    ctx: Context, new_user: NewUser, problems: ErrorCollector
) -> CheckedUser:
    """Validate all fields of a new user. Raises all errors, with the `problems` found before."""
    _require_may_give_role_and_empty_address(ctx, new_user)
    username, address = _validated_username_and_main_address(ctx, new_user, problems)
    values = validate_user_columns(
        ctx, {name: getattr(new_user, name) for name in VALIDATED_COLUMNS}, problems
    )
    with problems.collecting():
        scores = values.get("junk_score"), values.get("reject_score")
        require_reject_score_not_below_junk_score(*scores)
    paths = _special_mailbox_paths(new_user, values, problems)
    _collect_role_and_domain_admin_errors(new_user, problems)
    openpgp_public_key = await _public_key_columns_or_warning(ctx, new_user, problems)
    password = await _validate_password(ctx, new_user, address, problems)
    user_id = ctx.environment.new_id()
    forwarding: dict[str, Any] = {}
    with problems.collecting():
        forward_target_set = validate_forward_targets(ctx, new_user.forward_to, {}, ["forwardTo"])
        forwarding = forward_targets.target_columns_of_new_user(
            ctx, user_id, forward_target_set, address, ["forwardTo"]
        )
    problems.raise_collected()
    await _require_permissions(ctx, new_user, values)
    user = _new_user_row(
        ctx,
        new_user,
        {"id": user_id, "username": username, **values, **openpgp_public_key, **forwarding},
    )
    user.words = search_text(username, user.name, address)
    normalized_address = address_syntax.normalized_address(address) if address else None
    prepared = PreparedUser(
        user,
        address,
        normalized_address.local_part if normalized_address else "",
        normalized_address.domain if normalized_address else None,
        paths,
        frozenset(new_user.administers),
        new_user.add_tags_to_address,
    )
    return CheckedUser(prepared, password)


async def hash_password_and_build_welcome(ctx: Context, checked_user: CheckedUser) -> PreparedUser:
    """Hash the password of a checked user, and build its welcome messages."""
    prepared, user = checked_user.prepared, checked_user.prepared.user
    if checked_user.password:
        user.password = await new_passwords.hash_new_password_unless_hash(
            ctx, checked_user.password
        )
        user.password_changed_at = user.created_at
    if prepared.address:
        variables = {
            "name": user.name or "",
            "username": user.username,
            "address": prepared.address,
        }
        prepared.welcome = await welcome_messages.build_welcome_messages(ctx.environment, variables)
    return prepared


def _new_user_row(ctx: Context, new_user: NewUser, values: dict[str, Any]) -> User:
    """Return the row of a new user, without password hash and search words."""
    return User(
        username_key=address_syntax.username_key(values["username"]),
        role=new_user.role,
        tenant_id=values["id"],
        admin_permissions=stored_permissions(new_user.admin_permissions),
        permissions=stored_permissions(
            UserPermission if new_user.permissions is None else new_user.permissions
        ),
        password_change_required=new_user.password_change_required,
        created_at=ctx.environment.now(),
        updated_at=ctx.environment.now(),
        **values,
    )


def _username_from_address(address: str) -> str:
    """Return an address as a username: its domain in ASCII (IDNA)."""
    local, at, domain = address.rpartition("@")
    return local + at + address_syntax.ascii_domain(domain)


def _validated_username_and_main_address(
    ctx: Context, new_user: NewUser, problems: ErrorCollector
) -> tuple[str, str | None]:
    """Return username and main address in stored form: each can come from the other."""
    username, address = new_user.username, None
    with problems.collecting():
        address = _validated_main_address(ctx, new_user)
        username = username or _username_from_address(address or "")
    is_from_address = address is None and new_user.address is None and not new_user.empty_address
    if username is not None and not is_from_address:
        with problems.collecting():
            username = address_syntax.normalize_and_validate_username(username)
    return username or "", address


def _validated_main_address(ctx: Context, new_user: NewUser) -> str | None:
    """Return the validated main address; None if the user has none. Raises InvalidInput."""
    if new_user.empty_address:
        return None
    address = new_user.address or new_user.username or ""
    if (
        "@" not in address
        and new_user.address is None
        and ctx.environment.options.users_default_domain
    ):
        address = f"{address}@{ctx.environment.options.users_default_domain}"
    if "@" not in address:
        raise InvalidInput(
            "An address is required, or `emptyAddress: true`.",
            constraint=ValidationConstraint.REQUIRED,
            path=["address"],
        )
    if "*" in address or "+" in address.rpartition("@")[0]:
        raise InvalidInput(
            "A main address must not contain * or a subaddress (+).",
            constraint=ValidationConstraint.PATTERN,
            path=["address"],
        )
    address = address_syntax.normalize_and_validate_address(address)
    confusables.refuse_confusable_address(address)
    return address


def _collect_role_and_domain_admin_errors(new_user: NewUser, problems: ErrorCollector) -> None:
    with problems.collecting():
        if new_user.role is Role.PUBLIC:
            raise InvalidInput(
                "The role of a user can't be PUBLIC.",
                constraint=ValidationConstraint.ENUM,
                path=["role"],
                allowed_values=[role for role in Role if role is not Role.PUBLIC],
            )
    with problems.collecting():
        require_domain_admin_fields_allowed(
            new_user.role, new_user.administers, new_user.admin_permissions
        )


def _require_may_give_role_and_empty_address(ctx: Context, new_user: NewUser) -> None:
    """Raise Forbidden if the viewer can't give this role, or create a user without a domain."""
    viewer = ctx.viewer
    if not viewer.role.includes(new_user.role):
        raise Forbidden(
            f"Requires the role {new_user.role} to create a user with this role.",
            requires=new_user.role,
            path=["role"],
        )
    if new_user.empty_address and not viewer.role.includes(Role.ADMIN):
        raise Forbidden(
            "Requires the role ADMIN to create a user without a domain.",
            requires=Role.ADMIN,
            path=["emptyAddress"],
        )


async def _require_permissions(ctx: Context, new_user: NewUser, values: Mapping[str, Any]) -> None:
    """Raise Forbidden if the new user has rights or settings that the viewer can't give."""
    viewer = ctx.viewer
    defaults = {
        "allowed_senders": [],
        "disabled_scopes": [],
        "smtp_allowed_networks": [],
        "webmail_access": True,
        "allow_local": False,
        "spam_level": DEFAULT_SPAM_LEVEL,
        "junk_score": None,
        "reject_score": None,
    }
    require_column_permissions(
        ctx, [name for name, value in defaults.items() if values[name] != value]
    )
    require_unlimited_quota_permission(ctx, values["quota"])
    await sender_patterns.require_rights_for_patterns(
        ctx, values["allowed_senders"], ["allowedSenders"]
    )
    await require_administered_domains(ctx, new_user.administers)
    for index, permission in enumerate(new_user.admin_permissions):
        if permission not in viewer.permissions and not viewer.role.includes(Role.ADMIN):
            text = "An administrator can only grant permissions that the administrator has."
            raise Forbidden(text, requires=permission, path=["adminPermissions"], index=index)


async def _public_key_columns_or_warning(
    ctx: Context, new_user: NewUser, problems: ErrorCollector
) -> dict[str, Any]:
    """Return the columns of the public key.

    Adds a problem, or a warning if nothing needs the key.
    """
    with problems.collecting():
        if new_user.openpgp_public_key:
            try:
                key = await openpgp_keys.validate_public_key(
                    ctx.environment, new_user.openpgp_public_key
                )
            except InvalidInput as unusable:
                if new_user.encrypt_messages or new_user.encrypt_forwarded:
                    raise
                text = f"The key was not stored: {unusable.message}"
                ctx.add_warning(WarningCode.KEY_NOT_STORED, text, path=["openpgpPublicKey"])
                return {}
            openpgp_keys.warn_if_short(ctx, key, path=["openpgpPublicKey"])
            return {"openpgp_public_key": key.armored, "openpgp_key": key.info}
        for name in ("encrypt_messages", "encrypt_forwarded"):
            if getattr(new_user, name):
                text = "This field requires an OpenPGP key of the user."
                raise InvalidInput(
                    text, constraint=ValidationConstraint.REQUIRED, path=[*schema_path(name)]
                )
    return {}


async def _validate_password(
    ctx: Context, new_user: NewUser, address: str | None, problems: ErrorCollector
) -> NewPassword | None:
    """Return the validated password.

    None if the user has none. Adds a problem if it is unusable.
    """
    with problems.collecting():
        if not new_user.password and not new_user.password_disabled:
            raise InvalidInput(
                "A password is required, or `passwordDisabled: true`.",
                constraint=ValidationConstraint.REQUIRED,
                path=["password"],
            )
        if new_user.password and new_user.password_disabled:
            raise InvalidInput(
                "A password can't be combined with `passwordDisabled`.",
                constraint=ValidationConstraint.EXCLUSIVE,
                path=["password"],
            )
        if new_user.password:
            new_password = NewPassword(
                new_user.password, new_user.hashed_password, new_user.allow_unsafe
            )
            address_text = address or new_user.address or new_user.username or ""
            policy = await password_policy.load_policy_of_address(
                ctx, "" if new_password.is_hash else address_text
            )
            return await new_passwords.validate_new_password(ctx, new_password, policy)
    return None


def _special_mailbox_paths(
    new_user: NewUser, values: Mapping[str, Any], problems: ErrorCollector
) -> dict[SpecialUse, str]:
    """Return the paths of the special mailboxes: given names, else those of the language."""
    paths = {SpecialUse.INBOX: "INBOX", **default_mailbox_names(values.get("language"))}
    path_problems = ErrorCollector()
    for use, name in new_user.mailboxes.items():
        with path_problems.collecting():
            paths[use] = validate_path(name, input_path=["mailboxes", use.lower()])
    with problems.collecting():
        path_problems.raise_collected()
        if "language" in values and len(set(paths.values())) < len(paths):
            raise InvalidInput(
                "The paths of the mailboxes must be unique.",
                constraint=ValidationConstraint.UNIQUE,
                path=["mailboxes"],
            )
    return paths
