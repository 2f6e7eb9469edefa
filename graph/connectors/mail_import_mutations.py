"""Mutation that imports mail once."""

from collections.abc import Sequence

import strawberry
from strawberry import UNSET

from graph.connectors.inputs import (
    FetchRulesInput,
    RemoteHostInput,
    RemoteServerInput,
    validated_connector_column_values,
)
from graph.connectors.run_mutations import ConnectorRunsPayload, load_run_payload
from graph.messages.filter_inputs import MessageFilter
from graph.types import global_ids
from graph.types.errors import Options, attribute_field
from graph.types.fields import Info
from graph.types.list_inputs import convert_list_items
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import (
    MailboxRef,
    UserRef,
    UserSelection,
    load_visible_user_or_require_viewer,
    mailbox_selector_from_ref,
    require_visible_user_id_if_named,
    user_selector_from_selection,
    value_or_none,
)
from graph.types.scalars import Upload
from models.errors import InvalidInput, require_found
from models.users.list_formats import UserFileFormat
from models.users.roles import AdminPermission, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.connectors import mail_import, remote_accounts
from resolvers.connectors.mail_import import NewMailImport, RemoteAccount
from resolvers.connectors.remote_accounts import (
    RemoteAccountOfUser,
    RemoteAccounts,
    RemoteAdministrator,
)
from resolvers.list_errors import error_lists, raise_errors_with_list_paths

ACCOUNTS_PATH = ("source", "remoteAccounts")
AUTO_MAP_DESCRIPTION = (
    "True maps remote mailboxes to local ones by special use. At the top level and directly below "
    "INBOX it also maps by usual name, such as Sent Items to Sent. No effect with `parentMailbox` "
    "of mailImport."
)
DELETE_SOURCE_DESCRIPTION = (
    "True deletes messages on the remote server in the run that fetches them, except those that "
    "`filter` excludes or a check refuses. Default: false."
)


@strawberry.input(
    description="Account on a remote server whose messages are fetched once. The server deletes "
    "the password of the account when the run ends, also if the run failed."
)
class ImportRemoteInput(FetchRulesInput):
    server: RemoteServerInput = attribute_field(
        "Remote server, with the username and password of the account to import from."
    )
    auto_map_folders: bool = attribute_field(AUTO_MAP_DESCRIPTION, default=True)
    delete_source: bool = attribute_field(DELETE_SOURCE_DESCRIPTION, default=False)


@strawberry.input(description="Account on a remote server, and the user who gets its messages.")
class ImportAccountInput:
    user: UserRef = attribute_field(
        "User who gets the messages of the account. Each user can have one account in an import."
    )
    username: str = attribute_field(
        "Username on the remote server, at least 1 character. With separator and administrator at "
        "most 255 characters."
    )
    password: str | None = attribute_field(
        "Password of the account on the remote server, 1 to 8,192 characters. It is never "
        "returned, and deleted when the run ends. Required without `administrator`, not allowed "
        "with it.",
        default=UNSET,
    )


@strawberry.input(
    description="User of a remote server who can sign in to all of its accounts, such as a master "
    "user of Dovecot. The server gets "
    "the username of the account, the separator and the username of the administrator."
)
class RemoteAdministratorInput:
    username: str = attribute_field(
        "Username of the administrator, at least 1 character. With separator and account at most "
        "255 characters."
    )
    password: str = attribute_field(
        "Password of the administrator, 1 to 8,192 characters. It is never returned, and deleted "
        "when the runs end."
    )
    separator: str = attribute_field(
        "Text between the two usernames, 1 to 8 characters. Dovecot calls it "
        "`auth_master_user_separator`.",
        default="*",
    )


@strawberry.input(
    description="Accounts on one remote server. The messages of each account are fetched once and "
    "stored for one user. Exactly one of `accounts` and `file` must be given."
)
class ImportRemoteAccountsInput(FetchRulesInput):
    server: RemoteHostInput = attribute_field("Remote server of all accounts.")
    accounts: list[ImportAccountInput] | None = attribute_field(
        "Accounts to import from, 1 to 1,000 by default. Not allowed with `file`.", default=UNSET
    )
    file: Upload | None = attribute_field(
        "Uploaded UTF-8 file with the accounts, 1 to 1,000 by default, and at most 4 MiB. Its "
        "fields are `user` (username or an address of the user who gets the messages), `username` "
        "and `password`. JSON Lines has an object in each line. CSV has the field names in its "
        "first line. The import consumes the upload. Errors name the line. Not allowed with "
        "`accounts`.",
        default=UNSET,
    )
    format: UserFileFormat | None = attribute_field(
        "Format of the file. Default: JSON_LINES if the file begins with a brace, else CSV.",
        default=UNSET,
    )
    administrator: RemoteAdministratorInput | None = attribute_field(
        "User who signs in to all accounts. Default, and with null: each account has a password.",
        default=UNSET,
    )
    auto_map_folders: bool = attribute_field(AUTO_MAP_DESCRIPTION, default=True)
    delete_source: bool = attribute_field(DELETE_SOURCE_DESCRIPTION, default=False)

    async def resolve_accounts(self, info: Info) -> RemoteAccounts:
        """Convert the input to the accounts to import.

        Raises InvalidInput, and NotFound if the viewer can't see a user.
        """
        if bool(self.file) is (self.accounts is not UNSET and self.accounts is not None):
            raise InvalidInput(
                "Exactly one of `accounts` and `file` must be given.",
                constraint=ValidationConstraint.EXCLUSIVE,
                path=ACCOUNTS_PATH,
            )
        if self.accounts is not UNSET and self.accounts is not None:
            remote_accounts.require_account_count_within_limit(
                info.context, len(self.accounts), [*ACCOUNTS_PATH, "accounts"]
            )
        administrator = self.administrator
        return RemoteAccounts(
            validated_connector_column_values(self),
            await _resolve_accounts(info, self.accounts or ()),
            global_ids.decode("Upload", self.file, path=[*ACCOUNTS_PATH, "file"])
            if self.file
            else None,
            value_or_none(self.format),
            RemoteAdministrator(
                administrator.username, administrator.password, administrator.separator
            )
            if administrator
            else None,
        )


async def _resolve_accounts(
    info: Info, accounts: Sequence[ImportAccountInput]
) -> list[RemoteAccountOfUser]:
    """Convert the accounts. Raises NotFound with the position of each invisible user."""

    async def find_user_id(account: ImportAccountInput) -> int:
        return await require_visible_user_id_if_named(info, account.user) or 0

    path = [*ACCOUNTS_PATH, "accounts"]
    converted = await convert_list_items(accounts, find_user_id)
    raise_errors_with_list_paths(path, error_lists(converted.errors))
    return [
        RemoteAccountOfUser(
            converted.values[index],
            account.username,
            value_or_none(account.password),
            [*path, str(index)],
        )
        for index, account in enumerate(accounts)
    ]


@strawberry.input(
    one_of=True, description="Source of a mail import. Exactly one field must be set."
)
class ImportSource:
    upload: strawberry.Maybe[Upload] = attribute_field(
        "Uploaded archive: mbox, a ZIP of .eml files, a tar of a Maildir, or a file of userExport. "
        "The import consumes the upload."
    )
    path: strawberry.Maybe[str] = attribute_field(
        "Path of an archive on the server, relative to the folder in MERGANSER_IMPORT_FOLDER. The "
        "file is not changed. Requires role ROOT and scope FULL."
    )
    remote: strawberry.Maybe[ImportRemoteInput] = attribute_field(
        "Account on a remote server. Each of the `users` gets its messages."
    )
    remote_accounts: strawberry.Maybe[ImportRemoteAccountsInput] = attribute_field(
        "Accounts on one remote server, each for a user. Not allowed with `users`."
    )
    user: strawberry.Maybe[UserRef] = attribute_field(
        "User of this platform whose messages are imported, other than the users who get them. The "
        "messages stay there, too. Only a ROOT can refer to a user other than the signed-in one. "
        "The security log of that user then has the read."
    )


@strawberry.input(description="Input of mailImport.")
class MailImportInput(Options):
    users: UserSelection | None = attribute_field(
        "Users who get the messages. Default: the signed-in user. Not allowed with "
        "`remoteAccounts` of the source, which names the users.",
        default=UNSET,
    )
    source: ImportSource = attribute_field(
        "Place that the messages come from: an archive, a remote account or another user."
    )
    parent_mailbox: MailboxRef | None = attribute_field(
        "Mailbox that contains all imported mailboxes, also INBOX. Default, and with null: "
        "messages go to the mailbox with the path or special use that they have in the source. A "
        "missing mailbox is created if it is given by its path, else it is NOT_FOUND. For several "
        "users the reference must be a path or a special use.",
        default=UNSET,
    )
    filter: MessageFilter | None = attribute_field(
        "Imports only messages that meet these conditions. Conditions on mailboxes refer to the "
        "source. For archives and remote servers, conditions that need stored messages are an "
        "error (VALIDATION). Default, and with null: all messages.",
        default=UNSET,
    )
    subscribe: bool = attribute_field(
        "True subscribes the user to mailboxes that the import creates.", default=False
    )

    async def resolve_new_import(self, info: Info) -> NewMailImport:
        """Convert the input to the import to create.

        Raises NotFound if the viewer can't see the user of the source.
        """
        source, remote = self.source, None
        if source.remote:
            values = validated_connector_column_values(source.remote.value)
            remote = RemoteAccount(values, source.remote.value.server.password)
        accounts, owner = None, None
        if source.remote_accounts:
            accounts = await source.remote_accounts.value.resolve_accounts(info)
        if source.user:
            row = await load_visible_user_or_require_viewer(info, source.user.value)
            owner = int(require_found(row, path=["source", "user"]).id)
        upload = source.upload.value if source.upload else None
        return NewMailImport(
            user_selector_from_selection(self.users or None),
            global_ids.decode("Upload", upload, path="source") if upload is not None else None,
            source.path.value if source.path else None,
            remote,
            accounts,
            owner,
            mailbox_selector_from_ref(self.parent_mailbox, path="parentMailbox")
            if self.parent_mailbox
            else None,
            self.filter.to_validated_conditions(info) if self.filter else None,
            self.subscribe,
        )


@strawberry.type
class MailImportMutation:
    @mutation(
        "Queues one run for each user, which imports messages once: from an archive, a remote "
        "account or another user of the platform. A run continues after a crash. Its record can "
        "be read for 30 days after its end. Messages that the mailbox already contains are "
        "skipped, unless `removeDuplicates` of the remote source is false. A USER needs the "
        "permission CONNECTORS to import from a remote server. `source.path` requires role ROOT "
        "and scope FULL; FORBIDDEN_OPERATION if MERGANSER_IMPORT_FOLDER is not set. LIMIT_REACHED "
        "if a user already has 10 unfinished imports, or for more than 1,000 users (by default). "
        "With `source.user`: RATE_LIMITED if `filter` searches `text`, `body` or `header` beyond "
        "the caller's rate limit. UNAVAILABLE if it searches for words while more than 5,000 "
        "messages aren't indexed.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.CONNECTORS),
    )
    async def mail_import(self, info: Info, input: MailImportInput) -> ConnectorRunsPayload:
        keys = await mail_import.queue_mail_imports_and_return_run_ids(
            info.context, await input.resolve_new_import(info)
        )
        return await load_run_payload(info, keys)
