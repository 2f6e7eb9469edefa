"""Mutation that imports mail once."""

import strawberry
from strawberry import UNSET

from graph.connectors.inputs import RemoteAccountInput, validated_connector_column_values
from graph.connectors.types import ConnectorRun
from graph.messages.filter_inputs import MessageFilter
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import (
    MailboxRef,
    UserRef,
    UserSelection,
    load_visible_user_or_require_viewer,
    mailbox_selector_from_ref,
    user_selector_from_selection,
)
from graph.types.scalars import Upload
from models.errors import require_found
from models.users.roles import AdminPermission, Scope
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mail_import
from resolvers.connectors.mail_import import NewMailImport, RemoteAccount


@strawberry.input(
    description="Account on a remote server whose messages are fetched once. Its password is "
    "deleted when the run ends."
)
class ImportRemoteInput(RemoteAccountInput):
    auto_map_folders: bool = attribute_field(
        "True maps remote mailboxes to local ones by special use. At the top level and "
        "directly below INBOX it also maps by usual name, such as Sent Items to Sent. No "
        "effect with `parentMailbox` of mailImport.",
        default=True,
    )
    delete_source: bool = attribute_field(
        "True deletes messages on the remote server in the run that fetches them, except those "
        "that `filter` excludes or a check refuses. Default: false.",
        default=False,
    )


@strawberry.input(
    one_of=True, description="Source of a mail import. Exactly one field must be set."
)
class ImportSource:
    upload: strawberry.Maybe[Upload] = attribute_field(
        "Uploaded archive: mbox, a ZIP of .eml files, a tar of a Maildir, or a file of userExport. "
        "The import consumes the upload."
    )
    path: strawberry.Maybe[str] = attribute_field(
        "Path of an archive on the server, relative to the folder in MERGANSER_IMPORT_FOLDER. "
        "Requires role ROOT and scope FULL."
    )
    remote: strawberry.Maybe[ImportRemoteInput] = attribute_field("Account on a remote server.")
    user: strawberry.Maybe[UserRef] = attribute_field(
        "User of this platform whose messages are imported, other than the users who get them. "
        "Only a ROOT can refer to a user other than the signed-in one."
    )


@strawberry.input(description="Input of mailImport.")
class MailImportInput(Options):
    users: UserSelection | None = attribute_field(
        "Users who get the messages. Default: the signed-in user.", default=UNSET
    )
    source: ImportSource = attribute_field(
        "Place that the messages come from: an archive, a remote account or another user."
    )
    parent_mailbox: MailboxRef | None = attribute_field(
        "Mailbox that contains all imported mailboxes, also INBOX. Default: messages go to the "
        "mailbox with the path or special use that they have in the source. A missing mailbox is "
        "created "
        "if it is given by its path. For several users the reference must be a path or a "
        "special use.",
        default=UNSET,
    )
    filter: MessageFilter | None = attribute_field(
        "Imports only messages that meet these conditions. Conditions on mailboxes refer to the "
        "source. For archives and remote servers, conditions on stored messages are an "
        "error.",
        default=UNSET,
    )
    subscribe: bool = attribute_field(
        "True subscribes to mailboxes that the import creates.", default=False
    )

    async def resolve_new_import(self, info: Info) -> NewMailImport:
        """Convert the input to the import to create.

        Raises NotFound if the viewer can't see the user of the source.
        """
        source, remote = self.source, None
        if source.remote:
            values = validated_connector_column_values(source.remote.value)
            remote = RemoteAccount(values, source.remote.value.password)
        owner = None
        if source.user:
            row = await load_visible_user_or_require_viewer(info, source.user.value)
            owner = int(require_found(row, path=["source", "user"]).id)
        upload = source.upload.value if source.upload else None
        return NewMailImport(
            user_selector_from_selection(self.users or None),
            global_ids.decode("Upload", upload, path="source") if upload is not None else None,
            source.path.value if source.path else None,
            remote,
            owner,
            mailbox_selector_from_ref(self.parent_mailbox, path="parentMailbox")
            if self.parent_mailbox
            else None,
            self.filter.to_validated_conditions(info) if self.filter else None,
            self.subscribe,
        )


@strawberry.type(description="Payload of mailImport.")
class MailImportPayload(MutationPayload):
    connector_runs: list[ConnectorRun] = attribute_field(
        "One queued run for each user, sorted by user.", default_factory=list
    )


@strawberry.type
class MailImportMutation:
    @mutation(
        "Queues one run for each user, which imports the messages of a source once. A run "
        "continues after a crash and is kept for 30 days after its end. Messages that the mailbox "
        "already contains are skipped, unless `removeDuplicates` of `source.remote` is "
        "false. A user can have 10 "
        "unfinished imports. A USER needs "
        "the permission CONNECTORS to import from a remote server.",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.CONNECTORS),
    )
    async def mail_import(self, info: Info, input: MailImportInput) -> MailImportPayload:
        keys = await mail_import.queue_mail_imports_and_return_run_ids(
            info.context, await input.resolve_new_import(info)
        )
        rows = await info.context.load_many(connector_loaders.load_visible_runs_by_id, keys)
        runs = [ConnectorRun.from_row(row) for row in rows if row]
        return MailImportPayload(connector_runs=runs)
