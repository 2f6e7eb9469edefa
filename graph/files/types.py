"""GraphQL types, queries and mutations of stored files and their shares."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.files.references import FileRef, FileShareRef
from graph.http import download_urls
from graph.submission.compose_inputs import ContentEncoding, decode_attachment_content
from graph.types import global_ids
from graph.types.access_grants import GIVES_ACCESS
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field
from graph.types.input_conditions import ConditionsInput, require_valid_conditions
from graph.types.mutations import mutation
from graph.types.object_access import OWN
from graph.types.object_references import id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import value_or_none
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    objects_from_rows_with_links,
    selected_columns,
)
from graph.types.scalars import URL, ByteSize, Duration, Upload
from models.errors import InvalidInput
from models.files.tables import FileAttachmentMode
from models.store.keyset_pages import ordering_name
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.files import shares, stored_files
from resolvers.files.shares import MAX_LIFETIME, NewShare
from resolvers.files.stored_files import FileOrder, FilePageKey, NewFile
from resolvers.files.uploads import DEFAULT_MEDIA_TYPE
from resolvers.messages.content_access import (
    load_access_refusals,
    require_readable_account,
    require_readable_row,
)


@strawberry.type(
    description=(
        "Link to a stored file, which works without a credential. It does not work while the "
        "account of the owner is inactive or suspended."
    ),
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class FileShare(NodeView):
    mode: FileAttachmentMode = attribute_field("Kind of access that the link gives.")
    has_password: bool = attribute_field("True if the link requires a password.")
    expires_at: datetime | None = attribute_field(
        "Time when the link expires. If no time was set: 100 days after the creation of the link "
        "or its last download, which moves it."
    )
    last_access_at: datetime | None = attribute_field(
        "Time of the last download of the file by the link. Null: never."
    )
    access_count: int = attribute_field(
        "Number of downloads of the file by the link. A download in several ranges counts once; a "
        "HEAD request, or an upload through the link, does not count."
    )

    load_batch = staticmethod(shares.load_own_unexpired_shares_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("FileShare"),
        "has_password": DerivedField(("password",), lambda stored: stored is not None),
    }

    @field(
        "URL of the link, for the people who get the file. It needs no credential, apart from the "
        "password of the link."
    )
    def url(self, info: Info) -> URL:
        token = shares.create_share_token(info.context.environment, self.row.id)
        return download_urls.absolute_url(info, f"/share/{token}")


@strawberry.type(
    description=(
        "File in the file storage of a user. A file without a link that is not downloaded or "
        "attached for 365 days (by default) is deleted."
    ),
    directives=[Auth(scope=Scope.MAIL_READ)],
)
class File(NodeView):
    filename: str | None = attribute_field(
        "Name of the file. For everybody but the owner and a ROOT, null with the error FORBIDDEN."
    )
    content_type: str = attribute_field("Media type of the file (RFC 2046).")
    size: ByteSize = attribute_field("Size of the file in bytes.")
    sha256: str | None = attribute_field(
        "SHA-256 of the content, 64 hexadecimal digits in lower case. For everybody but the owner "
        "and a ROOT, null with the error FORBIDDEN."
    )
    created_at: datetime = attribute_field("Time when the file was stored.")

    load_batch = staticmethod(stored_files.load_visible_files_or_withhold_content)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("File"),
        "sha256": DerivedField(("digest",), lambda digest: digest),
    }

    @field(
        "Signed download URL of the file. It is valid for 15 to 20 minutes, but not longer than "
        "the credential of the request. Only the owner and a ROOT get it; for others null with the "
        "error FORBIDDEN.",
        "user_id",
        can_fail=True,
    )
    def url(self, info: Info) -> URL:
        return download_urls.require_readable_and_sign_download_url(
            info, download_urls.file_path(self.row.id), self.row
        )

    @field(
        "Links to the file that have not expired, oldest first: at most 100. For everybody but "
        "the owner and a ROOT, null with the error FORBIDDEN.",
        "user_id",
        can_fail=True,
    )
    async def shares(self, info: Info) -> list[FileShare]:
        require_readable_row(info.context, self.row)
        rows = await info.context.load(shares.load_visible_unexpired_shares_by_file, self.row.id)
        return await objects_from_rows_with_links(info, FileShare, rows)


@strawberry.input(description="Conditions on files.")
class FileFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only files with this text in the name (case and accents are ignored). At most "
        "1,000 characters. Only the owner of the files and a ROOT can use it; others get "
        "FORBIDDEN.",
        default=UNSET,
    )


async def authorize_and_load_file_page(
    info: Info,
    user_id: int,
    filter: FileFilter | None,
    order_by: FileOrder,
    page_arguments: PageArguments,
) -> Connection[File]:
    """Load a page of a user's files.

    Raises Forbidden if the viewer can't see the files, or filters by names that it can't read.
    """
    if refusal := await info.context.load(load_access_refusals, user_id):
        raise refusal
    require_valid_conditions(filter, ("filter",))
    list_order = stored_files.LIST_ORDERS[order_by]
    name_part = (filter.query or None) if filter else None
    if name_part:  # the number of files with a text in their name tells the name
        require_readable_account(info.context, user_id)
    requested_page = page_request(ordering_name(f"files-{order_by}", name_part), *page_arguments)
    page_key = FilePageKey(
        user_id, requested_page, list_order, selected_columns(info, File), name_part
    )
    return await connection_of_page(
        info,
        File,
        await info.context.load(stored_files.load_visible_file_pages_or_withhold_content, page_key),
        lambda row: list_order.cursor_of_row(row, requested_page.ordering),
        lambda: info.context.load(stored_files.count_files_of_lists, page_key),
    )


@strawberry.input(
    one_of=True,
    description="Content of a file, as an upload or as text. Exactly one field is required.",
)
class FileContent:
    upload: strawberry.Maybe[Upload] = attribute_field(
        "Upload of the signed-in user with the bytes, sent before to POST /rest/uploads. The "
        "upload can't be used again. One of another user is NOT_FOUND."
    )
    text: strawberry.Maybe[str] = attribute_field(
        "Content as text, or as base64 or hexadecimal digits if `encoding` says so. The decoded "
        "content has at most 50 MiB by default; more is LIMIT_REACHED. It can be empty."
    )


@strawberry.input(description="Input of fileUpload.")
class FileUploadInput(Options):
    filename: str | None = attribute_field(
        "Name of the file. Folders before the last `/` or `\\` are removed, and characters after "
        "the first 255. Control characters are refused. Several files can have the same name. "
        "Default: the name of the upload, else `upload-`, the date as YYYY-MM-DD, and a suffix "
        "for the media type.",
        default=UNSET,
    )
    content_type: str | None = attribute_field(
        "Media type of the file, without parameters: these are removed. Default: the type of the "
        "name's suffix, else that of the upload. For text without a known suffix: text/plain with "
        "the encoding UTF8, else application/octet-stream.",
        default=UNSET,
    )
    content: FileContent = attribute_field(
        "Content to store: an upload, or text in the given encoding."
    )
    encoding: ContentEncoding = attribute_field(
        "Encoding of `content.text`. Default: UTF8.", default=ContentEncoding.UTF8
    )

    def to_validated_new_file(self) -> NewFile:
        """Convert the input to the file to store.

        Raises InvalidInput if the upload has no valid ID or the content is not in its encoding.
        """
        name, content_type = self.filename or None, self.content_type or None
        if self.content.upload:
            key = global_ids.decode("Upload", self.content.upload.value, path="content")
            return NewFile(upload_id=key, filename=name, content_type=content_type)
        text = self.content.text.value if self.content.text else ""
        content = decode_attachment_content(text, ContentEncoding(self.encoding), ["content"])
        default_type = "text/plain" if self.encoding == ContentEncoding.UTF8 else DEFAULT_MEDIA_TYPE
        return NewFile(
            content=content, filename=name, content_type=content_type, default_type=default_type
        )


@strawberry.type(description="Payload of fileUpload.")
class FilePayload(MutationPayload):
    file: File | None = attribute_field("Stored file. Null if the mutation failed.", default=None)


@strawberry.input(
    one_of=True,
    description="Future time, absolute or relative to the current time.",
)
class FutureTimeInput:
    at: strawberry.Maybe[datetime] = attribute_field(
        "Absolute time in the future, at most 100 years (36,500 days) from now."
    )
    from_now: strawberry.Maybe[Duration] = attribute_field(
        "Duration after the current time (ISO 8601), such as P30D. At most 36,500 days, and more "
        "than 0."
    )

    def resolve_time(self, info: Info) -> datetime:
        """Return the absolute time.

        Raises InvalidInput if it is more than a hundred years ahead.
        """
        if self.at:
            return self.at.value
        after = self.from_now.value if self.from_now else timedelta(0)  # one of the two is given
        if after > MAX_LIFETIME:
            raise InvalidInput(
                "The time must be at most P36500D from now.",
                constraint=ValidationConstraint.RANGE,
                path=["expiresAt"],
            )
        return info.context.environment.now() + after


@strawberry.input(description="Input of fileShareCreate.")
class FileShareCreateInput(Options):
    file: FileRef = attribute_field(
        (
            "File of the signed-in user to share. An administrator who acts as the user can't "
            "share it (FORBIDDEN)."
        ),
        metadata=GIVES_ACCESS,
    )
    mode: FileAttachmentMode = attribute_field(
        "Access that the link gives. ATTACH is the error VALIDATION. Default: LINK.",
        default=FileAttachmentMode.LINK,
    )
    expires_at: FutureTimeInput | None = attribute_field(
        "Time when the link expires: in the future, at most 36,500 days from now. Default: 100 "
        "days after the creation of the link or its last download.",
        default=UNSET,
    )
    password: str | None = attribute_field(
        "Password that a download or upload by the link requires, 8 (by default) to 256 "
        "characters. Default: none.",
        default=UNSET,
    )


@strawberry.input(description="Input of fileDelete.")
class FileDeleteInput(Options):
    files: list[FileRef] = attribute_field(
        "Files of the signed-in user to delete, 1 to 1,000 by default. An unknown file is "
        "NOT_FOUND."
    )


@strawberry.input(description="Input of fileShareDelete.")
class FileShareDeleteInput(Options):
    file_shares: list[FileShareRef] = attribute_field(
        "Links to files of the signed-in user to delete, 1 to 1,000 by default. An unknown link is "
        "NOT_FOUND."
    )


@strawberry.type(description="Payload of fileShareCreate.")
class FileSharePayload(MutationPayload):
    file_share: FileShare | None = attribute_field(
        "Created link. Null if the mutation failed.", default=None
    )


@strawberry.type
class FileMutation:
    @mutation(
        "Creates a stored file of the signed-in user from an upload (POST /rest/uploads) or from "
        "text. An upload that became a file can't be used again. LIMIT_REACHED if the user would "
        "have more than 10,000 files, or more than 1 GiB in files (by default). LIMIT_REACHED "
        "also for a text of more than 50 MiB (by default). Copies of files for links "
        "READ_ONLY_LINK count in the bytes, but not in the number of files. POST "
        "/rest/files/{filename} uploads and creates a file in one step.",
        scope=Scope.MAIL,
    )
    async def file_upload(self, info: Info, input: FileUploadInput) -> FilePayload:
        ctx = info.context
        key = await stored_files.store_new_file(ctx, input.to_validated_new_file())
        return FilePayload(
            file=File.from_row_or_none(await ctx.load(stored_files.load_own_files_by_id, key))
        )

    @mutation(
        "Deletes files and the links to them, all or none. The links stop working at once. Drafts "
        "and messages keep the content that was attached to them. LIMIT_REACHED for more than "
        "1,000 references (by default).",
        scope=Scope.MAIL,
        access=OWN,
    )
    async def file_delete(self, info: Info, input: FileDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.files, "files")
        await stored_files.delete_files(info.context, keys)
        return DeletePayload.of_keys("File", keys)

    @mutation(
        "Creates a link to a file of the signed-in user. Everybody with its URL, and the password "
        "if it has one, can download the file without a credential. With a WRITABLE_LINK they can "
        "also replace it. LIMIT_REACHED if the file has 100 links. A READ_ONLY_LINK stores a copy "
        "of the file, which counts for the storage limit of files: LIMIT_REACHED if it does not "
        "fit. With `password`, RATE_LIMITED if the server is busy with other passwords: retry.",
        scope=Scope.MAIL,
        access=OWN,
    )
    async def file_share_create(self, info: Info, input: FileShareCreateInput) -> FileSharePayload:
        new = NewShare(
            id_from_ref(input.file, "file"),
            FileAttachmentMode(input.mode),
            input.expires_at.resolve_time(info) if input.expires_at else None,
            value_or_none(input.password),
        )
        key = await shares.create_share(info.context, new)
        row = await info.context.load(shares.load_own_unexpired_shares_by_id, key)
        return FileSharePayload(file_share=FileShare.from_row_or_none(row))

    @mutation(
        "Deletes links to files, all or none. They stop working at once; the files stay. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.MAIL,
        access=OWN,
    )
    async def file_share_delete(self, info: Info, input: FileShareDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.file_shares, "fileShares")
        await shares.delete_shares(info.context, keys)
        return DeletePayload.of_keys("FileShare", keys)
