"""Mutation that imports mail once."""

import strawberry
from strawberry import UNSET

from graph.connectors.mutations import RemoteAccountInput, column_values
from graph.connectors.types import ConnectorRun
from graph.messages.filter_inputs import MessageFilter
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import (
    MailboxRef,
    UserRef,
    UserSelection,
    load_user_or_viewer,
    mailbox_selector_from_ref,
    user_selector_from_selection,
)
from graph.types.scalars import Upload
from models.errors import require_found
from models.users.roles import Scope
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mail_import
from resolvers.connectors.mail_import import NewMailImport, RemoteAccount


@strawberry.input(
    description="An account elsewhere whose mail is fetched once; then its password is forgotten."
)
class ImportRemoteInput(RemoteAccountInput):
    pass


@strawberry.input(one_of=True, description="Where mail is brought from.")
class ImportSource:
    upload: strawberry.Maybe[Upload] = attribute_field(
        "An archive, sent before: mbox, a ZIP of .eml, a tar of a Maildir, or one of ours. The "
        "import takes it over."
    )
    path: strawberry.Maybe[str] = attribute_field(
        "An archive on the server, below the folder that is set for this; for ROOT."
    )
    remote: strawberry.Maybe[ImportRemoteInput] = attribute_field("An account elsewhere.")
    user: strawberry.Maybe[UserRef] = attribute_field(
        "Another account here, whose mail the viewer may read: their own, and for ROOT any."
    )


@strawberry.input(description="Input of mailImport.")
class MailImportInput(Options):
    users: UserSelection | None = attribute_field(
        "Who gets the mail; default: the viewer.", default=UNSET
    )
    source: ImportSource = attribute_field("Where it comes from.")
    parent_mailbox: MailboxRef | None = attribute_field(
        "All folders are made in this one, INBOX too; by its path it need not be there. For "
        "several users by path or role.",
        default=UNSET,
    )
    filter: MessageFilter | None = attribute_field(
        "Only these; folders are those of the source. Of archives and other servers nothing can "
        "be asked that is known of stored messages alone.",
        default=UNSET,
    )
    subscribe: bool = attribute_field("Folders that are made are subscribed to.", default=False)

    async def resolve_new_import(self, info: Info) -> NewMailImport:
        """Convert the input to the import to create.

        Raises NotFound if the viewer can't see the user of the source.
        """
        source, remote = self.source, None
        if source.remote:
            values = column_values(source.remote.value)
            remote = RemoteAccount(values, source.remote.value.password)
        owner = None
        if source.user:
            row = await load_user_or_viewer(info, source.user.value)
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
            self.filter.to_conditions(info) if self.filter else None,
            self.subscribe,
        )


@strawberry.type(description="Imports that were begun.")
class MailImportPayload(MutationPayload):
    run: ConnectorRun | None = attribute_field("That of the first user.", default=None)
    runs: list[ConnectorRun] = attribute_field(
        "One for each user, by their ids.", default_factory=list
    )


@strawberry.type
class MailImportMutation:
    @mutation(
        "Brings mail in, once: a run for each user, which goes on after a crash, is told of as "
        "those of connectors are, and remembered for thirty days. What a folder has already does "
        "not come again. Mail of other users needs the right to manage their connectors; a remote "
        "server needs CONNECTORS.",
        scope=Scope.MAIL,
    )
    async def mail_import(self, info: Info, input: MailImportInput) -> MailImportPayload:
        keys = await mail_import.queue_mail_imports(
            info.context, await input.resolve_new_import(info)
        )
        rows = await info.context.load_many(connector_loaders.load_visible_runs_by_id, keys)
        runs = [ConnectorRun.from_row(row) for row in rows if row]
        return MailImportPayload(run=runs[0] if runs else None, runs=runs)
