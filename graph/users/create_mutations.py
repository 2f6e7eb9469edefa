"""Mutations that create users."""

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task
from graph.messages.deleted_messages import TaskPayload
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, UserSelectionPayload, leaf
from graph.types.fields import Info
from graph.types.input_conditions import Restrictions
from graph.types.mutations import Alone, mutation
from graph.types.references import DomainRef, domains_of, plain
from graph.types.scalars import CIDR, ByteSize, Duration, Upload
from graph.users.types import User
from models.errors import Problems, Refused
from models.mailboxes.tables import SpecialUse
from models.users.list_formats import UserFileFormat
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import DelimiterAction, ProtocolScope
from resolvers.users.creation import bulk_create, file_create
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser

HASHED = (
    "The password is a hash, known by its form: $pbkdf2-sha1$, $pbkdf2-sha256$, $pbkdf2-sha512$; "
    "bcrypt $2a$, $2b$, $2y$; crypt $1$ (MD5), $5$ (SHA-256), $6$ (SHA-512); $argon2d$, "
    "$argon2i$, $argon2id$; DES crypt (13 characters, no prefix). Anything else is refused. "
    "Rehashed to Argon2id at the first login."
)
FORWARDS = (
    "What comes is stored, and goes there too: addresses, smtp:// and smtps:// relays with or "
    "without user and password, http(s):// URLs; at most 100, none of them the own. A relay whose "
    "password is *** stays as it was. Spam is not forwarded."
)
SENDERS = "Further senders: an address, a domain, *, or a pattern with one * at either end."


@strawberry.input(description="Names of the special folders.")
class SpecialMailboxNames:
    sent: str | None = leaf("Name of Sent.", default=UNSET)
    junk: str | None = leaf("Name of Junk.", default=UNSET)
    drafts: str | None = leaf("Name of Drafts.", default=UNSET)
    trash: str | None = leaf("Name of Trash.", default=UNSET)
    archive: str | None = leaf("Name of Archive, which is made only when named.", default=UNSET)


@strawberry.input(description="An account to be created.")
class NewUserInput(Restrictions):
    restrictions = frozenset({"smtp_allowed_networks"})
    username: str | None = leaf("Default: the address.", default=UNSET)
    name: str | None = leaf("Display name.", default=UNSET)
    role: Role = leaf("Up to the caller's own.", default=Role.USER)
    administers: list[DomainRef] | None = leaf("For DOMAIN_ADMIN.", default=UNSET)
    admin_permissions: list[AdminPermission] | None = leaf("For DOMAIN_ADMIN.", default=UNSET)
    permissions: list[UserPermission] | None = leaf(
        "What the user may change; by default all.", default=UNSET
    )
    password: str | None = leaf("Needed unless passwordDisabled.", default=UNSET)
    password_disabled: bool = leaf("Only application passwords and tokens.", default=False)
    hashed_password: bool = leaf(HASHED, default=False)
    allow_unsafe: bool = leaf("False checks the list of known passwords.", default=True)
    require_password_change: bool = leaf("At the first login.", default=False)
    address: str | None = leaf(
        "Main address; from user name and the default domain if missing.", default=UNSET
    )
    empty_address: bool = leaf("No address at all.", default=False)
    add_tags_to_address: bool = leaf("Give the address the same labels.", default=False)
    disabled: bool = leaf("Switched off.", default=False)
    suspended: bool = leaf("No login.", default=False)
    tags: list[str] | None = leaf("Labels.", default=UNSET)
    meta_data: JSON | None = leaf("Free data of the application.", default=UNSET)
    internal_data: JSON | None = leaf("Free data hidden from the user.", default=UNSET)
    language: str | None = leaf(
        "For texts sent to the user, and the names of the special folders.", default=UNSET
    )
    retention: Duration | None = leaf(
        "How long messages are kept in all folders, in Trash and Junk 30 days at most: from 1 "
        "second to 36,500 days; PT0S keeps them for ever. Default: for ever.",
        default=UNSET,
    )
    pub_key: str | None = leaf("OpenPGP public key, armoured.", default=UNSET)
    encrypt_messages: bool = leaf(
        "Encrypt all that arrives to the key, which it needs.", default=False
    )
    targets: list[str] | None = leaf(FORWARDS, default=UNSET)
    encrypt_forwarded: bool = leaf(
        "Encrypt what goes to targets to the key, which it needs.", default=False
    )
    delimiter_action: DelimiterAction = leaf(
        "What mail to user+label@domain does.", default=DelimiterAction.NONE
    )
    spam_level: int = leaf("0 everything is spam … 100 nothing is.", default=50)
    recipients: int | None = leaf("Messages sent per 24 h, 0 = unlimited.", default=UNSET)
    forwards: int | None = leaf(
        "Messages sent on to targets per 24 h, 0 = unlimited.", default=UNSET
    )
    received_max: int | None = leaf("Messages received per hour, 0 = unlimited.", default=UNSET)
    from_whitelist: list[str] | None = leaf(SENDERS, default=UNSET)
    disabled_scopes: list[ProtocolScope] | None = leaf("Protocols switched off.", default=UNSET)
    upload_sent_messages: bool = leaf(
        "Keep what is sent by SMTP submission in Sent.", default=False
    )
    tls_enforce_in: bool = leaf("Refuse mail that comes by SMTP without TLS.", default=False)
    tls_enforce_out: bool = leaf("Send to servers elsewhere only over TLS.", default=False)
    smtp_allowed_networks: list[CIDR] | None = leaf(
        "SMTP submission only from here; null = anywhere.", default=UNSET
    )
    webmail_access: bool = leaf("May use browser clients.", default=True)
    quota: ByteSize | None = leaf(
        "Absent or null: inherited from domain, then platform; 0 = unlimited, "
        "needs UNLIMITED_QUOTA.",
        default=UNSET,
    )
    mailboxes: SpecialMailboxNames | None = leaf(
        "Names of the special folders; INBOX, Sent, Trash, Drafts and Junk are always made.",
        default=UNSET,
    )

    def new(self, administers: list[int]) -> NewUser:
        """Convert the input to the user to create, who administers the given domains."""
        names = vars(self.mailboxes) if self.mailboxes else {}
        return NewUser(
            username=self.username or None,
            name=self.name or None,
            role=self.role,
            administers=administers,
            admin_permissions=self.admin_permissions or (),
            permissions=plain(self.permissions),
            password=self.password or None,
            hashed_password=self.hashed_password,
            allow_unsafe=self.allow_unsafe,
            password_disabled=self.password_disabled,
            require_password_change=self.require_password_change,
            address=self.address or None,
            empty_address=self.empty_address,
            add_tags_to_address=self.add_tags_to_address,
            disabled=self.disabled,
            suspended=self.suspended,
            quota=plain(self.quota),
            language=self.language or None,
            tags=self.tags or (),
            retention=self.retention or None,
            pub_key=self.pub_key or None,
            encrypt_messages=self.encrypt_messages,
            encrypt_forwarded=self.encrypt_forwarded,
            targets=self.targets or (),
            delimiter_action=self.delimiter_action,
            spam_level=self.spam_level,
            recipients=plain(self.recipients),
            forwards=plain(self.forwards),
            received_max=plain(self.received_max),
            from_whitelist=self.from_whitelist or (),
            disabled_scopes=self.disabled_scopes or (),
            upload_sent_messages=self.upload_sent_messages,
            tls_enforce_in=self.tls_enforce_in,
            tls_enforce_out=self.tls_enforce_out,
            smtp_allowed_networks=self.smtp_allowed_networks or (),
            webmail_access=self.webmail_access,
            meta_data=plain(self.meta_data),
            internal_data=plain(self.internal_data),
            mailboxes={
                SpecialUse[special_use.upper()]: name for special_use, name in names.items() if name
            },
        )


@strawberry.input(description="Input of userCreate.")
class UserCreateInput(Options, NewUserInput):
    pass


@strawberry.input(description="Input of usersCreate.")
class UsersCreateInput(Options):
    users: list[NewUserInput] = leaf(
        f"The accounts, at most {bulk_create.MOST}; at most {bulk_create.PASSWORDS} of them with a "
        "password that is not hashed."
    )


@strawberry.input(description="Input of usersCreateFromFile.")
class UsersCreateFromFileInput(Options):
    file: Upload = leaf(
        "A UTF-8 file, sent before; the task takes it over. Fields have the names of "
        "`NewUserInput`; `administers` has names of domains. JSON Lines has an object in each "
        "line. CSV has the names in its first line; `;` separates the items of a list."
    )
    format: UserFileFormat | None = leaf(
        "Default: JSON_LINES if the file begins with a brace, else CSV.", default=UNSET
    )


@strawberry.type(description="Answer of usersCreate.")
class UsersCreatePayload(UserSelectionPayload):
    users: list[User] = leaf("The accounts, in the order of the input.", default_factory=list)


@strawberry.type(description="Answer of userCreate.")
class UserCreatePayload(MutationPayload):
    user: User | None = leaf("The account.", default=None)


@strawberry.type
class UserCreateMutation:
    @mutation(
        "Account with folders and main address.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.MASTER,
        alone=Alone("a look at the list of known passwords", lambda given: not given.allow_unsafe),
    )
    async def user_create(self, info: Info, input: UserCreateInput) -> UserCreatePayload:
        problems, domain_ids = Problems(), list[int]()
        with problems.caught():
            domain_ids = await domains_of(info, input.administers or (), path="administers")
        user = await creation_create.create(info.context, input.new(domain_ids), problems)
        return UserCreatePayload(user=User.of(user))

    @mutation(
        "Creates accounts with folders and main addresses in one transaction: all or none. Each "
        "error has the position of its account as its index.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.MASTER,
        alone=Alone(
            "a look at the list of known passwords",
            lambda given: not all(one.allow_unsafe for one in given.users),
        ),
    )
    async def users_create(self, info: Info, input: UsersCreateInput) -> UsersCreatePayload:
        bulk_create.check_count(input.users)
        refused, new_users = dict[int, Refused](), list[NewUser]()
        for index, user_input in enumerate(input.users):
            domain_ids = list[int]()
            try:
                domain_ids = await domains_of(
                    info, user_input.administers or (), path="administers"
                )
            except Refused as refusal:
                refused[index] = refusal
            new_users.append(user_input.new(domain_ids))
        users = await bulk_create.create(info.context, new_users, refused)
        return UsersCreatePayload(users=[User.of(user) for user in users])

    @mutation(
        "Creates accounts from a file by a task, as many as can be created, in the order of the "
        "file. `Task.result` has the counts `created` and `refused`, and `errors` with line, "
        "code, path and message of the first 1,000 refusals. After a crash the task goes on "
        "where it was.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.MASTER,
    )
    async def users_create_from_file(
        self, info: Info, input: UsersCreateFromFileInput
    ) -> TaskPayload:
        upload = global_ids.decode("Upload", input.file, path="file")
        task = await file_create.create(info.context, upload, plain(input.format))
        return TaskPayload(task=Task.maybe(task))
