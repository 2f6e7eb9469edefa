"""Mail brought in once, as the API shows it."""

import strawberry
from strawberry import UNSET

from graph import ids
from graph.connectorforms import (
    TEN_MINUTES,
    UNWANTED,
    ConnectorOauthInput,
    ConnectorOptionInput,
    FolderRewriteInput,
    said,
)
from graph.connectors import ConnectorRun
from graph.errors import MutationPayload, Options, leaf
from graph.fields import Info
from graph.mutations import mutation
from graph.refs import MailboxRef, UserRef, UserSelection, named, user_of, users_named
from graph.scalars import ByteSize, Duration, Upload
from graph.selections import MessageFilter
from models.connectors import Protocol, Security
from models.errors import found
from models.roles import Scope
from resolvers import connectors, mailimport
from resolvers.mailimport import NewMailImport, Remote


@strawberry.input(description="An account elsewhere whose mail is fetched once.")
class ImportRemoteInput:
    protocol: Protocol = leaf("What the server speaks: IMAP or POP3.", default=Protocol.IMAP)
    host: str = leaf("Name or address; public, unless a setting allows others.")
    port: int | None = leaf("Default: that of protocol and security.", default=UNSET)
    security: Security = leaf("PLAIN only where private networks are.", default=Security.TLS)
    username: str = leaf("Name of the account there.")
    password: str = leaf(
        "Password, or token of XOAUTH2 and OAUTHBEARER: with oauth one that refreshes. "
        "Never returned, and forgotten at the end of the run.",
    )
    auth_mechanism: str = leaf("PLAIN, LOGIN, CRAM-MD5, XOAUTH2 or OAUTHBEARER.", default="PLAIN")
    oauth: ConnectorOauthInput | None = leaf("Where tokens are asked for.", default=UNSET)
    target_domain: str | None = leaf("Domain that recipients are rewritten to.", default=UNSET)
    max_age: Duration | None = leaf("What is older stays there.", default=UNSET)
    max_bytes_per_second: ByteSize = leaf("0 = as fast as it can.", default=0)
    exclude: str | None = leaf("Folders that are not fetched, an expression.", default=UNWANTED)
    folder_rewrites: list[FolderRewriteInput] | None = leaf("At most 50.", default=UNSET)
    auto_map_folders: bool = leaf("Sent Items go to Sent, and so on.", default=True)
    skip_cross_duplicates: bool = leaf("Of a message in two folders only the first.", default=False)
    remove_duplicates: bool = leaf("What the folder here has already comes not.", default=True)
    delete_source: bool = leaf("Mail that has come is deleted there.", default=False)
    remote_timeout: Duration = leaf("The longest silence, PT1S to PT1H.", default=TEN_MINUTES)
    local_timeout: Duration = leaf("The longest wait for us, PT1S to PT1H.", default=TEN_MINUTES)
    custom_options: list[ConnectorOptionInput] | None = leaf("At most 50.", default=UNSET)
    spam_check: bool = leaf("What comes into INBOX goes through the spam filter.", default=True)
    virus_check: bool = leaf("And through the virus filter.", default=True)
    apply_filters: bool = leaf("And through the filters of the user.", default=False)


@strawberry.input(one_of=True, description="Where mail is brought from.")
class ImportSource:
    upload: strawberry.Maybe[Upload] = leaf(
        "An archive, sent before: mbox, a ZIP of .eml, a tar of a Maildir, or one of ours. The "
        "import takes it over."
    )
    path: strawberry.Maybe[str] = leaf(
        "An archive on the server, below the folder that is set for this; for ROOT."
    )
    remote: strawberry.Maybe[ImportRemoteInput] = leaf("An account elsewhere.")
    user: strawberry.Maybe[UserRef] = leaf(
        "Another account here, whose mail the viewer may read: their own, and for ROOT any."
    )


@strawberry.input(description="Input of mailImport.")
class MailImportInput(Options):
    users: UserSelection | None = leaf("Who gets the mail; default: the viewer.", default=UNSET)
    source: ImportSource = leaf("Where it comes from.")
    parent_mailbox: MailboxRef | None = leaf(
        "All folders are made in this one, INBOX too; by its path it need not be there. For "
        "several users by path or role.",
        default=UNSET,
    )
    filter: MessageFilter | None = leaf(
        "Only these; folders are those of the source. Of archives and other servers nothing can "
        "be asked that is known of stored messages alone.",
        default=UNSET,
    )
    subscribe: bool = leaf("Folders that are made are subscribed to.", default=False)

    async def new(self, info: Info) -> NewMailImport:
        """The import as the floors below know it."""
        source, remote = self.source, None
        if source.remote:
            given = said(source.remote.value)
            remote = Remote(given, source.remote.value.password)
        owner = None
        if source.user:
            row = await user_of(info, source.user.value)
            owner = int(found(row, path=["source", "user"]).id)
        upload = source.upload.value if source.upload else None
        return NewMailImport(
            users_named(self.users or None),
            ids.decode("Upload", upload, path="source") if upload is not None else None,
            source.path.value if source.path else None,
            remote,
            owner,
            named(self.parent_mailbox, path="parentMailbox") if self.parent_mailbox else None,
            self.filter.where(info) if self.filter else None,
            self.subscribe,
        )


@strawberry.type(description="Imports that were begun.")
class MailImportPayload(MutationPayload):
    run: ConnectorRun | None = leaf("That of the first user.", default=None)
    runs: list[ConnectorRun] = leaf("One for each user, by their ids.", default_factory=list)


@strawberry.type
class MailImportMutation:
    @mutation(
        "Brings mail in, once: a run for each user, which goes on after a crash, is told of as "
        "those of connectors are, and remembered for thirty days. What a folder has already does "
        "not come again. Other users' for who may see to their connectors; remote needs SYNCJOBS.",
        scope=Scope.MAIL,
    )
    async def mail_import(self, info: Info, input: MailImportInput) -> MailImportPayload:
        keys = await mailimport.create(info.context, await input.new(info))
        rows = await info.context.load_all(connectors.runs_by_ids, keys)
        runs = [ConnectorRun.of(row) for row in rows if row]
        return MailImportPayload(run=runs[0] if runs else None, runs=runs)
