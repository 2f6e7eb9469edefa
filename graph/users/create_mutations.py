"""Mutations that create users."""

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task
from graph.messages.deleted_messages import TaskPayload
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, UserSelectionPayload, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import RestrictionsInput
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.references import DomainRef, load_domain_ids, value_or_none
from graph.types.scalars import CIDR, ByteSize, Duration, Upload
from graph.users.limits import UserLimitsInput, limit_value
from graph.users.types import User
from models.errors import ErrorCollector, RequestError
from models.mailboxes.tables import SpecialUse
from models.users.list_formats import UserFileFormat
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import ProtocolScope, SubaddressAction
from resolvers.users.creation import bulk_create, file_create
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser

HASH_DESCRIPTION = (
    "The password is a hash, known by its form: $pbkdf2-sha1$, $pbkdf2-sha256$, $pbkdf2-sha512$; "
    "bcrypt $2a$, $2b$, $2y$; crypt $1$ (MD5), $5$ (SHA-256), $6$ (SHA-512); $argon2d$, "
    "$argon2i$, $argon2id$; DES crypt (13 characters, no prefix). Anything else is refused. "
    "Rehashed to Argon2id at the first login."
)
FORWARD_TO_DESCRIPTION = (
    "What comes is stored, and goes there too: addresses, smtp:// and smtps:// relays with or "
    "without user and password, http(s):// URLs; at most 100, none of them the own. A relay whose "
    "password is *** stays as it was. Spam is not forwarded."
)
SENDERS_DESCRIPTION = (
    "Further senders: an address, a domain, *, or a pattern with one * at either end."
)


@strawberry.input(description="Names of the special folders.")
class SpecialMailboxNames:
    sent: str | None = attribute_field("Name of Sent.", default=UNSET)
    junk: str | None = attribute_field("Name of Junk.", default=UNSET)
    drafts: str | None = attribute_field("Name of Drafts.", default=UNSET)
    trash: str | None = attribute_field("Name of Trash.", default=UNSET)
    archive: str | None = attribute_field(
        "Name of Archive, which is made only when named.", default=UNSET
    )


@strawberry.input(description="An account to be created.")
class NewUserInput(RestrictionsInput):
    restriction_fields = frozenset({"smtp_allowed_networks"})
    username: str | None = attribute_field("Default: the address.", default=UNSET)
    name: str | None = attribute_field("Display name.", default=UNSET)
    role: Role = attribute_field("Up to the caller's own.", default=Role.USER)
    administers: list[DomainRef] | None = attribute_field("For DOMAIN_ADMIN.", default=UNSET)
    admin_permissions: list[AdminPermission] | None = attribute_field(
        "For DOMAIN_ADMIN.", default=UNSET
    )
    permissions: list[UserPermission] | None = attribute_field(
        "What the user may change; by default all.", default=UNSET
    )
    password: str | None = attribute_field("Needed unless passwordDisabled.", default=UNSET)
    password_disabled: bool = attribute_field(
        "Only application passwords and tokens.", default=False
    )
    hashed_password: bool = attribute_field(HASH_DESCRIPTION, default=False)
    allow_unsafe: bool = attribute_field("False checks the list of known passwords.", default=True)
    password_change_required: bool = attribute_field("At the first login.", default=False)
    address: str | None = attribute_field(
        "Main address; from user name and the default domain if missing.", default=UNSET
    )
    empty_address: bool = attribute_field("No address at all.", default=False)
    add_tags_to_address: bool = attribute_field("Give the address the same labels.", default=False)
    active: bool = attribute_field(
        "False: the user can neither sign in nor receive messages.", default=True
    )
    suspended: bool = attribute_field("No login.", default=False)
    tags: list[str] | None = attribute_field("Labels.", default=UNSET)
    metadata: JSON | None = attribute_field("Free data of the application.", default=UNSET)
    private_metadata: JSON | None = attribute_field(
        "Free data hidden from the user.", default=UNSET
    )
    language: str | None = attribute_field(
        "For texts sent to the user, and the names of the special folders.", default=UNSET
    )
    retention: Duration | None = attribute_field(
        "How long messages are kept in all folders, in Trash and Junk 30 days at most: from 1 "
        "second to 36,500 days. Null: for ever. Default: for ever.",
        default=UNSET,
    )
    openpgp_public_key: str | None = attribute_field("OpenPGP public key, armoured.", default=UNSET)
    encrypt_messages: bool = attribute_field(
        "Encrypt all that arrives to the key, which it needs.", default=False
    )
    forward_to: list[str] | None = attribute_field(FORWARD_TO_DESCRIPTION, default=UNSET)
    encrypt_forwarded: bool = attribute_field(
        "Encrypts messages to `forwardTo` to the OpenPGP key, which the account needs.",
        default=False,
    )
    subaddress_action: SubaddressAction = attribute_field(
        "What mail to user+label@domain does.", default=SubaddressAction.NONE
    )
    spam_level: int = attribute_field("0 everything is spam … 100 nothing is.", default=50)
    limits: UserLimitsInput | None = attribute_field(
        "Limits of the account. Default: those of the platform.", default=UNSET
    )
    allowed_senders: list[str] | None = attribute_field(SENDERS_DESCRIPTION, default=UNSET)
    disabled_scopes: list[ProtocolScope] | None = attribute_field(
        "Protocols switched off.", default=UNSET
    )
    upload_sent_messages: bool = attribute_field(
        "Keep what is sent by SMTP submission in Sent.", default=False
    )
    require_inbound_tls: bool = attribute_field(
        "Refuse mail that comes by SMTP without TLS.", default=False
    )
    require_outbound_tls: bool = attribute_field(
        "Send to servers elsewhere only over TLS.", default=False
    )
    smtp_allowed_networks: list[CIDR] | None = attribute_field(
        "SMTP submission only from here; null = anywhere.", default=UNSET
    )
    webmail_access: bool = attribute_field("May use browser clients.", default=True)
    quota: strawberry.Maybe[ByteSize | None] = attribute_field(
        "Bytes that the account can store, at least 1. Null: unlimited, which needs "
        "UNLIMITED_QUOTA. Default: inherited from the domain, or else from the platform."
    )
    mailboxes: SpecialMailboxNames | None = attribute_field(
        "Names of the special folders; INBOX, Sent, Trash, Drafts and Junk are always made.",
        default=UNSET,
    )

    def to_new_user(self, administered_domain_ids: list[int]) -> NewUser:
        """Convert the input to the user to create, who administers the given domains."""
        names = vars(self.mailboxes) if self.mailboxes else {}
        return NewUser(
            username=self.username or None,
            name=self.name or None,
            role=self.role,
            administers=administered_domain_ids,
            admin_permissions=self.admin_permissions or (),
            permissions=value_or_none(self.permissions),
            password=self.password or None,
            hashed_password=self.hashed_password,
            allow_unsafe=self.allow_unsafe,
            password_disabled=self.password_disabled,
            password_change_required=self.password_change_required,
            address=self.address or None,
            empty_address=self.empty_address,
            add_tags_to_address=self.add_tags_to_address,
            active=self.active,
            suspended=self.suspended,
            quota=limit_value(self.quota.value) if self.quota else None,
            language=self.language or None,
            tags=self.tags or (),
            retention=value_or_none(self.retention),
            openpgp_public_key=self.openpgp_public_key or None,
            encrypt_messages=self.encrypt_messages,
            encrypt_forwarded=self.encrypt_forwarded,
            forward_to=self.forward_to or (),
            subaddress_action=self.subaddress_action,
            spam_level=self.spam_level,
            **(self.limits.to_column_values() if self.limits else {}),
            allowed_senders=self.allowed_senders or (),
            disabled_scopes=self.disabled_scopes or (),
            upload_sent_messages=self.upload_sent_messages,
            require_inbound_tls=self.require_inbound_tls,
            require_outbound_tls=self.require_outbound_tls,
            smtp_allowed_networks=self.smtp_allowed_networks or (),
            webmail_access=self.webmail_access,
            public_metadata=value_or_none(self.metadata),
            private_metadata=value_or_none(self.private_metadata),
            mailboxes={
                SpecialUse[special_use.upper()]: name for special_use, name in names.items() if name
            },
        )


@strawberry.input(description="Input of userCreate.")
class UserCreateInput(Options, NewUserInput):
    pass


@strawberry.input(description="Input of usersCreate.")
class UsersCreateInput(Options):
    users: list[NewUserInput] = attribute_field(
        f"The accounts, at most {bulk_create.MAX_USERS}; at most {bulk_create.MAX_PASSWORDS} of "
        "them with a "
        "password that is not hashed."
    )


@strawberry.input(description="Input of usersCreateFromFile.")
class UsersCreateFromFileInput(Options):
    file: Upload = attribute_field(
        "A UTF-8 file, sent before; the task takes it over. Fields have the names of "
        "`NewUserInput`; `administers` has names of domains. JSON Lines has an object in each "
        "line. CSV has the names in its first line; `;` separates the items of a list."
    )
    format: UserFileFormat | None = attribute_field(
        "Default: JSON_LINES if the file begins with a brace, else CSV.", default=UNSET
    )


@strawberry.type(description="Answer of usersCreate.")
class UsersCreatePayload(UserSelectionPayload):
    users: list[User] = attribute_field(
        "The accounts, in the order of the input.", default_factory=list
    )


@strawberry.type(description="Answer of userCreate.")
class UserCreatePayload(MutationPayload):
    user: User | None = attribute_field("The account.", default=None)


@strawberry.type
class UserCreateMutation:
    @mutation(
        "Account with folders and main address.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        atomic_exclusion=AtomicExclusion(
            "a look at the list of known passwords", lambda given: not given.allow_unsafe
        ),
    )
    async def user_create(self, info: Info, input: UserCreateInput) -> UserCreatePayload:
        problems, domain_ids = ErrorCollector(), list[int]()
        with problems.collecting():
            domain_ids = await load_domain_ids(info, input.administers or (), path="administers")
        user = await creation_create.create_user(
            info.context, input.to_new_user(domain_ids), problems
        )
        return UserCreatePayload(user=User.from_row(user))

    @mutation(
        "Creates accounts with folders and main addresses in one transaction: all or none. The "
        "path of each error begins with `users` and the position of the account.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        atomic_exclusion=AtomicExclusion(
            "a look at the list of known passwords",
            lambda given: not all(one.allow_unsafe for one in given.users),
        ),
    )
    async def users_create(self, info: Info, input: UsersCreateInput) -> UsersCreatePayload:
        bulk_create.check_count(input.users)
        refused, new_users = dict[int, RequestError](), list[NewUser]()
        for index, user_input in enumerate(input.users):
            domain_ids = list[int]()
            try:
                domain_ids = await load_domain_ids(
                    info, user_input.administers or (), path="administers"
                )
            except RequestError as refusal:
                refused[index] = refusal
            new_users.append(user_input.to_new_user(domain_ids))
        users = await bulk_create.create_users(info.context, new_users, refused)
        return UsersCreatePayload(users=[User.from_row(user) for user in users])

    @mutation(
        "Creates accounts from a file by a task, as many as can be created, in the order of the "
        "file. `Task.result` has the counts `created` and `refused`, and `errors` with line, "
        "code, path and message of the first 1,000 refusals. After a crash the task goes on "
        "where it was.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
    )
    async def users_create_from_file(
        self, info: Info, input: UsersCreateFromFileInput
    ) -> TaskPayload:
        upload = global_ids.decode("Upload", input.file, path="file")
        task = await file_create.queue_file_create(
            info.context, upload, value_or_none(input.format)
        )
        return TaskPayload(task=Task.from_row_or_none(task))
