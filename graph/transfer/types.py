"""GraphQL types and mutations of account exports and imports."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task, TaskPayload
from graph.files.types import FileContent
from graph.http import download_urls
from graph.messages.filter_inputs import MessageFilter
from graph.submission.compose_inputs import ContentEncoding, decode_attachment_content
from graph.types import global_ids
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field
from graph.types.mutations import mutation
from graph.types.object_access import OWN_OR_ROOT
from graph.types.object_views import DerivedField
from graph.types.references import (
    MailboxRef,
    UserRef,
    mailbox_selector_from_ref,
    require_visible_user_id_if_named,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import URL, ByteSize
from mail.archives.archive_writer import ExportFormat
from models.admin.tasks import TaskState
from models.users.roles import Scope
from resolvers.access import require_user_id
from resolvers.admin import tasks
from resolvers.list_orders import OwnerPageKey
from resolvers.messages.content_access import require_readable_account
from resolvers.transfer import exports, imports
from resolvers.transfer.exports import NewExport, UserExportOrder
from resolvers.transfer.imports import NewImport
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(
    description="Export of a user's account as a file: messages, and settings if they were "
    "requested.",
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class UserExport(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User whose data is exported. Null: the account was deleted.",
    )
    state: TaskState = link(
        "id",
        exports.load_export_states_or_failed,
        lambda state: state,
        description=(
            "State of the task that writes the file of the export. SUCCEEDED: the file is "
            "complete. FAILED also if the task was deleted before."
        ),
    )
    format: ExportFormat = attribute_field("File format of the export.")
    created_at: datetime = attribute_field("Time when the export was requested.")
    expires_at: datetime | None = attribute_field(
        "Time when the export and its file are deleted: by default P3D after the file was "
        "completed. Until then, P3D after the request or the last progress of the task."
    )
    size: ByteSize | None = attribute_field(
        "Size of the exported file in bytes. Null: the file is not complete."
    )
    task: Task | None = link(
        "task_id",
        tasks.load_visible_tasks_by_id,
        Task.from_row_or_none,
        description="Task that writes the file of the export. Null: the task was deleted.",
    )

    load_batch = staticmethod(exports.load_visible_exports_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("UserExport"),
        "format": DerivedField(("format",), ExportFormat),
    }

    @field(
        "Signed download URL of the exported file, valid for 15 to 20 minutes, but not longer "
        "than the credential of the request. Null: the file is not complete.",
        "user_id",
        "finished_at",
    )
    def url(self, info: Info) -> URL | None:
        if self.row.finished_at is None:
            return None
        path = download_urls.export_path(self.row.user_id, self.row.id)
        return download_urls.require_readable_and_sign_download_url(info, path, self.row)


async def authorize_and_load_export_page(
    info: Info, user_id: int, order_by: UserExportOrder, page_arguments: PageArguments
) -> Connection[UserExport]:
    """Load a page of the exports of a user.

    Raises Forbidden if the viewer may not read the user's mail.
    """
    require_readable_account(info.context, user_id)
    list_order = exports.LIST_ORDERS[order_by]
    requested_page = page_request(f"exports-{order_by}", *page_arguments)
    page_key = OwnerPageKey(user_id, requested_page, list_order, selected_columns(info, UserExport))
    return await connection_of_page(
        info,
        UserExport,
        await info.context.load(exports.load_export_pages, page_key),
        lambda row: list_order.cursor_of_row(row, requested_page.ordering),
        lambda: info.context.load(exports.count_exports, page_key),
    )


@strawberry.input(description="Input of userExport.")
class UserExportInput(Options):
    user: UserRef | None = attribute_field(
        "User whose account is exported. Default: the signed-in user.", default=UNSET
    )
    format: ExportFormat = attribute_field(
        "File format of the export. Default: EML_ZIP.", default=ExportFormat.EML_ZIP
    )
    filter: MessageFilter | None = attribute_field(
        "Conditions on the messages to export, which are selected when the export is created. "
        "They don't restrict the settings. Default: all messages.",
        default=UNSET,
    )
    include_settings: bool = attribute_field(
        "True also exports settings, identities, labels, filters, Sieve scripts, sender rules, "
        "the autoreply, connectors, saved searches, key-value entries and annotations. Requires "
        "the scope READ or SETTINGS: a credential with neither of them exports only the messages. "
        "MBOX files never contain settings. Passwords of the user are never exported. Default: "
        "true.",
        default=True,
    )
    passphrase: str | None = attribute_field(
        "Passphrase that encrypts the passwords of connectors: 12 to 1,024 "
        "characters. Requires the scope SETTINGS. Not allowed without `includeSettings` or with "
        "the format MBOX. It is never returned, and deleted when the task ends. Default: these "
        "passwords are not exported.",
        default=UNSET,
    )


@strawberry.type(description="Payload of userExport.")
class UserExportPayload(MutationPayload):
    user_export: UserExport | None = attribute_field(
        "Created export, whose file a task completes. Null if the mutation failed.", default=None
    )


@strawberry.input(
    description="Input of userImport. Exactly one of `archive` and `path` is required."
)
class UserImportInput(Options):
    user: UserRef | None = attribute_field(
        "User who gets the imported data. Default: the signed-in user.", default=UNSET
    )
    archive: FileContent | None = attribute_field(
        "File of userExport, an mbox file, a ZIP of .eml files, a tar of a Maildir, or one "
        "message. Other compressed files are refused. The import consumes an upload, which must "
        "be the caller's own.",
        default=UNSET,
    )
    encoding: ContentEncoding = attribute_field(
        "Encoding of `archive.text`. Default: UTF8.", default=ContentEncoding.UTF8
    )
    path: str | None = attribute_field(
        "Path of an archive on the server, relative to the folder in MERGANSER_IMPORT_FOLDER. "
        "Requires the role ROOT and the scope FULL.",
        default=UNSET,
    )
    mailbox: MailboxRef | None = attribute_field(
        "Mailbox of the user for all messages. A mailbox named by its path is created if it does "
        "not exist. Default: the mailboxes of the archive, which are created if they are missing.",
        default=UNSET,
    )
    skip_known: bool = attribute_field(
        "True skips messages that the mailbox contained byte for byte before the import, and "
        "counts them in `knownCount`. False stores them again. Default: true.",
        default=True,
    )
    include_settings: bool = attribute_field(
        "True also imports settings, identities, labels, filters, Sieve scripts, sender rules, "
        "the autoreply, connectors, saved searches, key-value entries and annotations. Only files "
        "of userExport contain them. They are left out without the scope SETTINGS, for another "
        "user without FULL, and for an administrator who acts as the user. Default: true.",
        default=True,
    )
    passphrase: str | None = attribute_field(
        "Passphrase of the export, 12 to 1,024 characters, which decrypts the passwords of "
        "connectors. Requires the scope SETTINGS and `includeSettings`. It is never returned, and "
        "deleted when the task ends. Default: none. Connectors whose password is missing or can't "
        "be decrypted are imported inactive.",
        default=UNSET,
    )

    def to_validated_new_import(self, user_id: int | None) -> NewImport:
        """Convert the input to the import to create.

        Raises InvalidInput if the upload has no valid ID or the content is not in its encoding.
        """
        upload, content = None, None
        if self.archive and self.archive.upload:
            upload = global_ids.decode("Upload", self.archive.upload.value, path="archive")
        elif self.archive and self.archive.text:
            encoding = ContentEncoding(self.encoding)
            content = decode_attachment_content(self.archive.text.value, encoding, ["archive"])
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
        "Creates an export of a user's account. A task writes the export to one file. Deleted "
        "messages are not exported. Scheduled messages are exported as drafts. With `filter`, "
        "scheduled messages without a copy in a mailbox are left out. `Task.result` has the list "
        "`refused` of up to 50 damaged messages that were left out. An export of another user is "
        "written to that user's security log. LIMIT_REACHED if the user already has 2 unfinished "
        "exports. An export is deleted at its `expiresAt`, by default P3D after its file was "
        "completed. A new export also deletes the user's finished exports except the newest 4. "
        "LIMIT_REACHED also if `filter` searches `text`, `body` or `header` of more than 2,000 "
        "messages. RATE_LIMITED if this search exceeds the caller's rate limit. UNAVAILABLE if "
        "`filter` searches for words while more than 5,000 messages are not indexed yet: retry "
        "later.",
        scope=Scope.MAIL,
        access=OWN_OR_ROOT,
    )
    async def user_export(self, info: Info, input: UserExportInput) -> UserExportPayload:
        ctx = info.context
        owner = await require_visible_user_id_if_named(info, input.user or None)
        new = NewExport(
            require_user_id(ctx) if owner is None else owner,
            ExportFormat(input.format),
            input.filter.to_validated_conditions(info) if input.filter else None,
            with_settings=input.include_settings,
            passphrase=None if input.passphrase is UNSET else input.passphrase,
        )
        row = await ctx.load(
            exports.load_visible_exports_by_id, await exports.create_and_queue_export(ctx, new)
        )
        return UserExportPayload(user_export=UserExport.from_row_or_none(row))

    @mutation(
        "Starts a task that imports an archive into a user's account. `Task.result` contains the "
        "counts `storedCount` and `knownCount` of messages, and the list `refused` of items that "
        "were not imported, with reasons. The list has at most 200 items; `unlistedCount` counts "
        "further ones. If the account becomes full, the task fails, and the messages stored "
        "before stay. The task also fails if the archive has nothing to import. LIMIT_REACHED if "
        "the user already has 2 unfinished imports, or `archive.text` has more than 50 MiB (by "
        "default). FORBIDDEN_OPERATION if `path` is given and MERGANSER_IMPORT_FOLDER is not set.",
        scope=Scope.MAIL,
        access=OWN_OR_ROOT,
    )
    async def user_import(self, info: Info, input: UserImportInput) -> TaskPayload:
        owner = await require_visible_user_id_if_named(info, input.user or None)
        task = await imports.queue_import(info.context, input.to_validated_new_import(owner))
        return TaskPayload(task=Task.from_row_or_none(task))
