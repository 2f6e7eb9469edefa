"""GraphQL types and mutations of account exports and imports."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.files.types import FileContent
from graph.http import download_urls
from graph.messages.deleted_messages import TaskPayload
from graph.messages.filter_inputs import MessageFilter
from graph.submission.compose_inputs import ContentEncoding, decode_content
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField
from graph.types.references import (
    MailboxRef,
    UserRef,
    load_named_user_id,
    mailbox_selector_from_ref,
)
from graph.types.row_mapping import NodeView, global_id_field, lazy_view_factory, link
from graph.types.scalars import URL, ByteSize
from mail.archives.archive_writer import ExportFormat
from models.admin.tasks import TaskState
from models.users.roles import Scope
from resolvers.access import require_user_id
from resolvers.admin import tasks
from resolvers.transfer import exports, imports
from resolvers.transfer.exports import NewExport
from resolvers.transfer.imports import NewImport
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(
    description="An export of a user's data as a file.", directives=[Auth(scope=Scope.MAIL_READ)]
)
class UserExport(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User whose data is exported.",
    )
    state: TaskState = link(
        "id", exports.load_export_states, lambda state: state, description="State of the export."
    )
    format: ExportFormat = attribute_field("Format of the file.")
    created_at: datetime = attribute_field("Time when the export was requested.")
    expires_at: datetime | None = attribute_field("Time when the file is deleted.")
    size: ByteSize | None = attribute_field("Size of the file. Null: the file is not complete.")
    task: Task | None = link(
        "task_id",
        tasks.load_visible_tasks_by_id,
        Task.from_row_or_none,
        description="Task that writes the file. Null: the task was deleted.",
    )

    load_batch = staticmethod(exports.load_visible_exports_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("UserExport"),
        "format": DerivedField(("format",), ExportFormat),
    }

    @field(
        "Signed download URL of the file, valid for 15 to 20 minutes. Null: the "
        "file is not complete.",
        "user_id",
        "finished_at",
    )
    def url(self, info: Info) -> URL | None:
        if self.row.finished_at is None:
            return None
        path = download_urls.export_path(self.row.user_id, self.row.id)
        return download_urls.signed_download_url(info, path, self.row)


@strawberry.input(description="Input of userExport.")
class UserExportInput(Options):
    user: UserRef | None = attribute_field(
        "User to export. Default: the signed-in user.", default=UNSET
    )
    format: ExportFormat = attribute_field("Format of the file.", default=ExportFormat.EML_ZIP)
    filter: MessageFilter | None = attribute_field(
        "Conditions on the messages to export. Default: all messages.", default=UNSET
    )
    include_settings: bool = attribute_field(
        "Exports settings, key-value entries and annotations too, if the credential "
        "can read settings. MBOX files have no settings. Passwords of the user are "
        "never exported.",
        default=True,
    )
    passphrase: str | None = attribute_field(
        "Passphrase that encrypts the passwords of connectors: 12 to 1,024 "
        "characters. Requires the scope SETTINGS. It is never returned, and deleted "
        "when the file is complete. Default: these passwords are not exported.",
        default=UNSET,
    )


@strawberry.type(description="Payload of userExport.")
class UserExportPayload(MutationPayload):
    user_export: UserExport | None = attribute_field(
        "The new export, which a task completes.", default=None
    )


@strawberry.input(description="Input of userImport. Exactly one of archive and path is required.")
class UserImportInput(Options):
    user: UserRef | None = attribute_field(
        "User who gets the imported data. Default: the signed-in user.", default=UNSET
    )
    archive: FileContent | None = attribute_field(
        "File of userExport, an mbox file, a ZIP of .eml files, or a tar of a Maildir.",
        default=UNSET,
    )
    encoding: ContentEncoding = attribute_field(
        "Encoding of `archive.text`.", default=ContentEncoding.UTF8
    )
    path: str | None = attribute_field(
        "Path of an archive on the server, below the configured import folder. "
        "Requires the role ROOT.",
        default=UNSET,
    )
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox for all messages. A mailbox named by its path is created if it "
        "does not exist. Default: the mailboxes of the archive.",
        default=UNSET,
    )
    skip_known: bool = attribute_field(
        "Skips messages that the mailbox already contains byte for byte.", default=True
    )
    include_settings: bool = attribute_field(
        "Imports settings, key-value entries and annotations too, if the credential "
        "has the scope SETTINGS. Otherwise the import leaves them out.",
        default=True,
    )
    passphrase: str | None = attribute_field(
        "Passphrase of the export, which decrypts the passwords of connectors. "
        "Requires the scope SETTINGS. It is never returned, and deleted when the "
        "task ends. Default: connectors are imported inactive.",
        default=UNSET,
    )

    def to_new_import(self, user_id: int | None) -> NewImport:
        """Convert the input to the import to create.

        Raises Invalid if the upload has no valid ID or the content is not in its encoding.
        """
        upload, content = None, None
        if self.archive and self.archive.upload:
            upload = global_ids.decode("Upload", self.archive.upload.value, path="archive")
        elif self.archive and self.archive.text:
            encoding = ContentEncoding(self.encoding)
            content = decode_content(self.archive.text.value, encoding, ["archive"])
        return NewImport(
            user_id,
            upload,
            content,
            self.path or None,
            mailbox_selector_from_ref(self.mailbox) if self.mailbox else None,
            skips_known=self.skip_known,
            with_settings=self.include_settings,
            passphrase=None if self.passphrase is UNSET else self.passphrase,
        )


@strawberry.type
class ExportMutation:
    @mutation(
        "Creates an export of a user, which a task writes to one file. A user can "
        "have 2 unfinished exports; of finished ones, the newest 5 are kept.",
        scope=Scope.MAIL,
    )
    async def user_export(self, info: Info, input: UserExportInput) -> UserExportPayload:
        ctx = info.context
        owner = await load_named_user_id(info, input.user or None)
        new = NewExport(
            require_user_id(ctx) if owner is None else owner,
            ExportFormat(input.format),
            input.filter.to_conditions(info) if input.filter else None,
            with_settings=input.include_settings,
            passphrase=None if input.passphrase is UNSET else input.passphrase,
        )
        row = await ctx.load(
            exports.load_visible_exports_by_id, await exports.create_export(ctx, new)
        )
        return UserExportPayload(user_export=UserExport.from_row_or_none(row))

    @mutation(
        "Starts the import of an archive into a user's account, by a task. The "
        "result of the task contains the numbers of stored, skipped and refused "
        "messages, with reasons.",
        scope=Scope.MAIL,
    )
    async def user_import(self, info: Info, input: UserImportInput) -> TaskPayload:
        owner = await load_named_user_id(info, input.user or None)
        task = await imports.queue_import(info.context, input.to_new_import(owner))
        return TaskPayload(task=Task.from_row_or_none(task))
