"""Mutations that create users."""

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task, TaskPayload
from graph.types import global_ids
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import RestrictionsInput
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.references import DomainRef, require_administered_domain_ids, value_or_none
from graph.types.scalars import CIDR, ByteSize, Duration, Upload
from graph.users.limits import UserLimitsInput, limit_value
from graph.users.part_types import SpamPolicyInput
from graph.users.payloads import UserPayload, UsersPayload
from graph.users.types import User
from models.errors import ErrorCollector, RequestError
from models.mailboxes.tables import SpecialUse
from models.users.list_formats import UserFileFormat
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import ProtocolScope, SubaddressAction
from resolvers.transfer import record_tasks
from resolvers.users.creation import bulk_create, file_create
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser

HASH_DESCRIPTION = (
    "True: `password` is a password hash, to which the password policy does not apply. PBKDF2 "
    "begins with $pbkdf2-sha1$, $pbkdf2-sha256$ or $pbkdf2-sha512$, bcrypt with $2a$, $2b$ or "
    "$2y$. Crypt begins with $1$ (MD5), $5$ (SHA-256) or $6$ (SHA-512), and Argon2 with $argon2d$, "
    "$argon2i$ or $argon2id$. DES crypt has 13 characters and no prefix. Other formats, and hashes "
    "that are too costly to check, are refused. A successful sign-in replaces the hash by "
    "Argon2id, except HTTP Basic authentication."
)
FORWARD_TO_DESCRIPTION = (
    "Targets that get a copy of each received message, unless it is spam or its spam score is 50 "
    "or more (by default). They are mail addresses, URLs of relay servers (smtp:// or smtps://), "
    "and URLs that receive the message by POST (http:// or https://). At most 100, none of them an "
    "address of the account. Hosts in private networks are refused by default."
)
SENDERS_DESCRIPTION = (
    "Sender addresses that the account can use besides its own: addresses, domains, and patterns "
    "with one `*` at the beginning or end. At most 1,000, each of at most 128 characters. A "
    "DOMAIN_ADMIN can give only patterns with a whole domain, which the DOMAIN_ADMIN administers "
    "or which this server does not host. No pattern may match an address of another account that "
    "the caller's role can't administer."
)


@strawberry.input(
    description=(
        "Paths of the special-use mailboxes (RFC 6154) of a new account. The paths must differ. "
        "Each default is the name in the language of the account."
    )
)
class SpecialMailboxNames:
    sent: str | None = attribute_field(
        "Path of the mailbox for copies of sent messages.", default=UNSET
    )
    junk: str | None = attribute_field("Path of the mailbox for spam.", default=UNSET)
    drafts: str | None = attribute_field("Path of the mailbox for drafts.", default=UNSET)
    trash: str | None = attribute_field(
        "Path of the mailbox for messages that are moved to the trash.", default=UNSET
    )
    archive: str | None = attribute_field(
        "Path of the mailbox for archived messages. It is created only if this is given.",
        default=UNSET,
    )


@strawberry.input(
    description="Account that usersCreate creates. It has the fields of UserCreateInput except "
    "`options`, which is given once for all accounts, in UsersCreateInput."
)
class NewUserInput(RestrictionsInput):
    restriction_fields = frozenset({"smtp_allowed_networks"})
    username: str | None = attribute_field(
        "Name to sign in with: at most 128 characters a-z, 0-9 and hyphens, in groups joined by "
        "one of `._=:`. It can be an address of such characters. Case is ignored, and so are "
        "dots, except in the domain of an address. Default: the main address. It is required if "
        "`emptyAddress` is true.",
        default=UNSET,
    )
    name: str | None = attribute_field(
        "Display name of the account, at most 255 characters.", default=UNSET
    )
    role: Role = attribute_field(
        "Role of the account. It can't exceed the role of the caller, and PUBLIC is refused.",
        default=Role.USER,
    )
    administers: list[DomainRef] | None = attribute_field(
        "Domains that the account administers as DOMAIN_ADMIN, at most 1,000. Refused for other "
        "roles. The caller must administer these domains too. Default: none.",
        default=UNSET,
    )
    admin_permissions: list[AdminPermission] | None = attribute_field(
        "Permissions that the account has as DOMAIN_ADMIN for users of the administered domains. "
        "Refused for other roles. A caller who is a DOMAIN_ADMIN can give only permissions that "
        "the caller has. Default: none.",
        default=UNSET,
    )
    permissions: list[UserPermission] | None = attribute_field(
        "Permissions that a credential of the account with the role USER needs to change some of "
        "its settings and objects. Null: all permissions. An empty list: none. Default: all "
        "permissions.",
        default=UNSET,
    )
    password: str | None = attribute_field(
        "Password of the account, at most 256 characters, or its hash with `hashedPassword`. A "
        "password must meet the policy of the domain, or of the platform without a domain. It "
        "can't be combined with `passwordDisabled`. Required unless `passwordDisabled` is true.",
        default=UNSET,
    )
    password_disabled: bool = attribute_field(
        "True creates the account without a password. Application passwords, API keys and sign-in "
        "at the identity provider of the domain don't need one.",
        default=False,
    )
    hashed_password: bool = attribute_field(HASH_DESCRIPTION, default=False)
    allow_unsafe: bool = attribute_field(
        "False refuses passwords that the built-in or configured lists of breached passwords "
        "contain, and is an error with `hashedPassword`. True: the lists are not searched.",
        default=True,
    )
    password_change_required: bool = attribute_field(
        "True: `authenticate` reports that the user should set a new password, until a new "
        "password is set. Until then the OAuth sign-in page refuses passwords of the account. "
        "Otherwise the server does not enforce it.",
        default=False,
    )
    address: str | None = attribute_field(
        "Main address of the account, without `*` and subaddress (`+label`). Default: the "
        "username; if that has no `@`, it is completed by the setting "
        "MERGANSER_USERS_DEFAULT_DOMAIN. It is an error if there is no domain. Ignored if "
        "`emptyAddress` is true.",
        default=UNSET,
    )
    empty_address: bool = attribute_field(
        "True creates the account without an address, a domain and welcome messages. Requires "
        "role ADMIN.",
        default=False,
    )
    add_tags_to_address: bool = attribute_field(
        "True gives the main address the same tags as the account.", default=False
    )
    active: bool = attribute_field(
        "False: the user can neither sign in nor receive messages.", default=True
    )
    suspended: bool = attribute_field(
        "True: the account receives messages, but nobody can sign in.", default=False
    )
    tags: list[str] | None = attribute_field(
        "Tags of the account: at most 1,000, each of 1 to 128 characters. Of tags that differ "
        "only in case, the first is stored.",
        default=UNSET,
    )
    metadata: JSON | None = attribute_field(
        "JSON object with data of your application, which the user can read and change. At most "
        "64 KiB by default.",
        default=UNSET,
    )
    private_metadata: JSON | None = attribute_field(
        "JSON object with data of your application that the user can't read. At most 64 KiB "
        "by default.",
        default=UNSET,
    )
    language: str | None = attribute_field(
        "Language tag such as `de` or `pt-BR`. It selects the language of messages from the "
        "server and the names of Sent, Drafts, Trash and Junk. Default: English. Languages that "
        "the server does not know get English, too.",
        default=UNSET,
    )
    retention: Duration | None = attribute_field(
        "Time in a mailbox after which messages are deleted, from 1 second to 36,500 days. Null: "
        "never. Default: null. In Trash and Junk messages are deleted after at most 30 days, "
        "also with null.",
        default=UNSET,
    )
    openpgp_public_key: str | None = attribute_field(
        "OpenPGP public key (RFC 9580) in ASCII armor. Default: none. An unusable key is an "
        "error if `encryptMessages` or `encryptForwarded` is true. Otherwise the key is not "
        "stored, with the warning KEY_NOT_STORED.",
        default=UNSET,
    )
    encrypt_messages: bool = attribute_field(
        "True encrypts received messages with `openpgpPublicKey` before they are stored. Without "
        "the key this is an error.",
        default=False,
    )
    forward_to: list[str] | None = attribute_field(
        f"{FORWARD_TO_DESCRIPTION} Default: none.", default=UNSET
    )
    encrypt_forwarded: bool = attribute_field(
        "True encrypts messages to `forwardTo` with `openpgpPublicKey`. Without the key this is "
        "an error. A message that can't be encrypted is not forwarded.",
        default=False,
    )
    subaddress_action: SubaddressAction = attribute_field(
        "Treatment of mail to an address with a subaddress (RFC 5233), such as "
        "`user+label@example.com`.",
        default=SubaddressAction.NONE,
    )
    spam: SpamPolicyInput | None = attribute_field(
        "Spam thresholds of the account. Default, also of each absent threshold: level 50, "
        "`junkScore` 8 and `rejectScore` 15. A DOMAIN_ADMIN needs the permission SPAM_POLICY to "
        "set others.",
        default=UNSET,
    )
    limits: strawberry.Maybe[UserLimitsInput] = attribute_field(
        "Sending and receiving limits of the account. Default: inherited from the platform, also "
        "for each limit that is omitted. Null is refused."
    )
    allowed_senders: list[str] | None = attribute_field(
        f"{SENDERS_DESCRIPTION} A DOMAIN_ADMIN needs the permission ALLOWED_SENDERS to give some. "
        "Default: none.",
        default=UNSET,
    )
    disabled_scopes: list[ProtocolScope] | None = attribute_field(
        "Protocols that the account can't sign in to. Default: none. A DOMAIN_ADMIN needs the "
        "permission PROTOCOL_ACCESS to name some.",
        default=UNSET,
    )
    upload_sent_messages: bool = attribute_field(
        "True stores messages that the account sends by SMTP submission in its Sent mailbox.",
        default=False,
    )
    require_inbound_tls: bool = attribute_field(
        "True refuses messages that other servers send to the account by SMTP without TLS.",
        default=False,
    )
    require_outbound_tls: bool = attribute_field(
        "True delivers messages of the account to other servers only over TLS; without TLS the "
        "delivery is deferred.",
        default=False,
    )
    smtp_allowed_networks: list[CIDR] | None = attribute_field(
        "Networks from which the account can sign in to SMTP submission, at most 100. Null: any "
        "network. An empty list is an error. Default: null. A DOMAIN_ADMIN needs the permission "
        "SUBMISSION_NETWORKS to name some.",
        default=UNSET,
    )
    webmail_access: bool = attribute_field(
        "False refuses the account password for HTTP Basic authentication and for access tokens, "
        "which web mail clients need. OAuth clients with scopes for GraphQL and REST are refused "
        "too. Application passwords and SMTP are not affected. A DOMAIN_ADMIN needs the "
        "permission WEBMAIL_ACCESS to set false.",
        default=True,
    )
    allow_local: bool = attribute_field(
        "True: the account belongs to no directory, such as that of a machine that only sends "
        "mail. It signs in with its password, never at the identity provider of the domain. The "
        "identity provider and SCIM don't change it. A DOMAIN_ADMIN needs the permission "
        "PROTOCOL_ACCESS to set true.",
        default=False,
    )
    quota: strawberry.Maybe[ByteSize | None] = attribute_field(
        "Bytes that the account can store, at least 1. Null: unlimited, for which a DOMAIN_ADMIN "
        "needs UNLIMITED_QUOTA. Default: inherited from the domain, or else from the platform. "
        "LIMIT_REACHED if it exceeds the free storage or `maxUserQuota` of the domain. Null is "
        "LIMIT_REACHED if the domain has a quota or `maxUserQuota`."
    )
    mailboxes: SpecialMailboxNames | None = attribute_field(
        "Paths of the special-use mailboxes. INBOX, Sent, Trash, Drafts and Junk are always "
        "created. Default: names in the language of the account.",
        default=UNSET,
    )

    def to_new_user(self, administered_domain_ids: list[int]) -> NewUser:
        """Convert the input to the user to create, who administers the given domains."""
        names = vars(self.mailboxes) if self.mailboxes else {}
        spam = self.spam.to_column_values() if self.spam else {}
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
            spam_level=spam.get("spam_level"),
            junk_score=spam.get("junk_score"),
            reject_score=spam.get("reject_score"),
            **(self.limits.value.to_column_values() if self.limits else {}),
            allowed_senders=self.allowed_senders or (),
            disabled_scopes=self.disabled_scopes or (),
            upload_sent_messages=self.upload_sent_messages,
            require_inbound_tls=self.require_inbound_tls,
            require_outbound_tls=self.require_outbound_tls,
            smtp_allowed_networks=self.smtp_allowed_networks or (),
            webmail_access=self.webmail_access,
            allow_local=self.allow_local,
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
        f"The accounts: from 1 to {bulk_create.MAX_USERS}. At most {bulk_create.MAX_PASSWORDS} of "
        "them can have a password that is not hashed."
    )


@strawberry.input(description="Input of usersCreateFromFile.")
class UsersCreateFromFileInput(Options):
    file: Upload = attribute_field(
        "Uploaded UTF-8 file. The task consumes the upload. Its fields have the names of "
        "`NewUserInput`; `administers` has domain names. JSON Lines has an object in each line. "
        "CSV has the field names in its first line, where an unknown name is an error; `;` "
        "separates the items of a list. Nested fields have names such as `limits.receivedPerHour`, "
        "and `unlimited` means no limit."
    )
    format: UserFileFormat | None = attribute_field(
        "Format of the file. Default: JSON_LINES if the file begins with a brace, else CSV.",
        default=UNSET,
    )


@strawberry.type
class UserCreateMutation:
    @mutation(
        "Creates an account with its special-use mailboxes, its main address, and the welcome "
        "messages that the operator has set up. A DOMAIN_ADMIN can create accounts in the "
        "administered domains, an ADMIN in any domain or without one. NOT_FOUND if the domain of "
        "the address does not exist, or the caller does not administer it. If "
        "MERGANSER_AUTO_CREATE_DOMAINS is on, an unknown domain that an ADMIN names is created, "
        "with the warning DOMAIN_CREATED. CONFLICT if the username or address is taken, or the "
        "domain is an alias domain. LIMIT_REACHED if the domain has no room for another user or "
        "address, or for the quota of the account. RATE_LIMITED if the server has to hash too "
        "many passwords now: retry.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        atomic_exclusion=AtomicExclusion(
            "A check for breached passwords",
            "With `allowUnsafe: false`",
            applies_to=lambda given: not given.allow_unsafe,
        ),
    )
    async def user_create(self, info: Info, input: UserCreateInput) -> UserPayload:
        problems, domain_ids = ErrorCollector(), list[int]()
        with problems.collecting():
            domain_ids = await require_administered_domain_ids(
                info, input.administers or (), path="administers"
            )
        user = await creation_create.create_user(
            info.context, input.to_new_user(domain_ids), problems
        )
        return UserPayload(user=User.from_row(user))

    @mutation(
        "Creates accounts with their special-use mailboxes, their main addresses, and the welcome "
        "messages that the operator has set up, in one transaction: all or none. A DOMAIN_ADMIN "
        "can create accounts in the administered domains, an ADMIN in any domain or without one. "
        "The errors have the same conditions as those of `userCreate`. The path of an error "
        "begins with `users` and the position of the account, from 0. CONFLICT if a username or "
        "address is taken or is in the list twice, or a domain is an alias domain. LIMIT_REACHED "
        "if a domain has no room for its new accounts. RATE_LIMITED if the server has to hash too "
        "many passwords now: retry.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        atomic_exclusion=AtomicExclusion(
            "A check for breached passwords",
            "With `allowUnsafe: false` for an account",
            applies_to=lambda given: not all(user.allow_unsafe for user in given.users),
        ),
    )
    async def users_create(self, info: Info, input: UsersCreateInput) -> UsersPayload:
        bulk_create.require_new_users_within_limits(input.users)
        refused, new_users = dict[int, RequestError](), list[NewUser]()
        for index, user_input in enumerate(input.users):
            domain_ids = list[int]()
            try:
                domain_ids = await require_administered_domain_ids(
                    info, user_input.administers or (), path="administers"
                )
            except RequestError as refusal:
                refused[index] = refusal
            new_users.append(user_input.to_new_user(domain_ids))
        users = await bulk_create.create_users(info.context, new_users, refused)
        return UsersPayload(users=[User.from_row(user) for user in users])

    @mutation(
        "Creates accounts from a CSV or JSON Lines file in a background task, in the order of the "
        "file. A DOMAIN_ADMIN can create accounts in the administered domains, an ADMIN in any "
        "domain. A refused line does not stop the task. The task fails if the file is not valid "
        "UTF-8 or CSV, or if the caller loses the role. LIMIT_REACHED if the caller has 2 "
        "unfinished tasks of this kind. A credential without a user is FORBIDDEN. `Task.result` "
        "has the counts `createdCount` and `refusedCount`. It has the first 1,000 `errors` with "
        "line, code, path and message, and the first 1,000 `warnings`. After a crash the task "
        "continues where it was.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
    )
    async def users_create_from_file(
        self, info: Info, input: UsersCreateFromFileInput
    ) -> TaskPayload:
        upload = global_ids.decode("Upload", input.file, path="file")
        task = await record_tasks.queue_record_task(
            info.context, file_create.USERS_CREATE, upload, value_or_none(input.format)
        )
        return TaskPayload(task=Task.from_row_or_none(task))
