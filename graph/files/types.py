"""GraphQL types, queries and mutations of stored files and their shares."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.http import download_urls
from graph.submission.compose_inputs import ContentEncoding, decoded
from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, field
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import UserRef, keys_of, owner_named, plain
from graph.types.row_mapping import Shape, columns, identified, listed
from graph.types.scalars import URL, ByteSize, Duration, Upload
from models.errors import Forbidden, Invalid
from models.files.tables import FileAttachmentMode
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Scope
from resolvers.files import shares, stored_files
from resolvers.files.shares import LONGEST, NewShare
from resolvers.files.stored_files import NEWEST, NewFile, OfUser
from resolvers.files.uploads import OPAQUE
from resolvers.messages.content_access import legible, refusals


@strawberry.type(description="Link to a file.", directives=[Auth(scope=Scope.MAIL_READ)])
class FileShare(Shape):
    mode: FileAttachmentMode = leaf("What it leads to.")
    has_password: bool = leaf("Asks for a password.")
    expires_at: datetime | None = leaf("Ends then; where nobody said when, each use delays it.")
    last_access_at: datetime | None = leaf("Followed; null = never.")
    access_count: int = leaf("How often it was followed.")

    batch = staticmethod(shares.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("FileShare"),
        "has_password": Made(("password",), lambda stored: stored is not None),
    }

    @field("For whoever is to have it.")
    def url(self, info: Info) -> URL:
        token = shares.token_of(info.context.world, self.row.id)
        return download_urls.absolute(info, f"/share/{token}")


@strawberry.type(description="Stored file.", directives=[Auth(scope=Scope.MAIL_READ)])
class File(Shape):
    filename: str = leaf("Name.")
    content_type: str = leaf("MIME type.")
    size: ByteSize = leaf("Bytes.")
    hash: str = leaf("SHA-256 of the content.")
    created_at: datetime = leaf("Uploaded.")

    batch = staticmethod(stored_files.seen_by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("File"),
        "hash": Made(("digest",), lambda digest: digest),
    }

    @field("Download.", "user_id")
    def url(self, info: Info) -> URL:
        return download_urls.signed(info, download_urls.file_path(self.row.id), self.row)

    @field("Links given out, the oldest first.", "user_id")
    async def shares(self, info: Info) -> list[FileShare]:
        legible(info.context, self.row)
        rows = await info.context.load(shares.of_files, self.row.id)
        return await listed(info, FileShare, rows)


async def file_page(
    info: Info, user_id: int, query: str | None, page: tuple[object, object, object, object]
) -> Connection[File]:
    """Load a page of a user's files, newest first.

    `name_part` is a part of the file name, `page_arguments` are: first, after, last, before. Raises
    Forbidden if the viewer can't see the files.
    """
    if refusal := await info.context.load(refusals, user_id):
        raise refusal
    requested_page = page_asked(ordering(NEWEST, query or None), *page)
    page_key = OfUser(user_id, requested_page, columns(info, File), query or None)
    return await connected(
        info,
        File,
        await info.context.load(stored_files.pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
        lambda: info.context.load(stored_files.counts, page_key),
    )


@strawberry.input(one_of=True, description="What is in a file.")
class FileContent:
    upload: strawberry.Maybe[Upload] = leaf("Bytes sent before; the file takes them over.")
    text: strawberry.Maybe[str] = leaf("Written as encoding says.")


@strawberry.input(description="Input of fileUpload.")
class FileUploadInput(Options):
    user: UserRef | None = leaf("Whose: the viewer's, where it is given.", default=UNSET)
    filename: str | None = leaf("Default: that of the upload, or upload-DATE.", default=UNSET)
    content_type: str | None = leaf("Default: by the name.", default=UNSET)
    content: FileContent = leaf("What.")
    encoding: ContentEncoding = leaf("Of content.text.", default=ContentEncoding.UTF8)

    def new(self) -> NewFile:
        """Convert the input to the file to store.

        Raises Invalid if the upload has no valid ID or the content is not in its encoding.
        """
        name, content_type = self.filename or None, self.content_type or None
        if self.content.upload:
            key = global_ids.decode("Upload", self.content.upload.value, path="content")
            return NewFile(upload_id=key, filename=name, content_type=content_type)
        text = self.content.text.value if self.content.text else ""
        content = decoded(text, ContentEncoding(self.encoding), ["content"])
        default_type = "text/plain" if self.encoding == ContentEncoding.UTF8 else OPAQUE
        return NewFile(
            content=content, filename=name, content_type=content_type, usual=default_type
        )


@strawberry.type(description="A file that was stored.")
class FilePayload(MutationPayload):
    file: File | None = leaf("Its record.", default=None)


@strawberry.input(one_of=True, description="A point in time that is to come.")
class DateBoundFuture:
    at: strawberry.Maybe[datetime] = leaf("Absolute.")
    in_: strawberry.Maybe[Duration] = leaf("From now on, P30D.", name="in")

    def moment(self, info: Info) -> datetime:
        """Return the absolute time. Raises Invalid if it is more than a hundred years ahead."""
        if self.at:
            return self.at.value
        after = self.in_.value if self.in_ else timedelta(0)  # one of the two is given
        if after > LONGEST:
            raise Invalid("at most a hundred years", constraint="range", path=["expiration"])
        return info.context.world.now() + after


@strawberry.input(description="Input of fileShareCreate.")
class FileShareCreateInput(Options):
    file: strawberry.ID = leaf("Which.")
    mode: FileAttachmentMode = leaf("What it leads to.", default=FileAttachmentMode.LINK)
    expiration: DateBoundFuture | None = leaf(
        "When it ends. Default: after 100 days without access.", default=UNSET
    )
    password: str | None = leaf("Asked of whoever follows it. Default: none.", default=UNSET)


@strawberry.type(description="A link that was made.")
class FileSharePayload(MutationPayload):
    share: FileShare | None = leaf("Its record.", default=None)


@strawberry.type
class FileMutation:
    @mutation(
        "Stores a file: from bytes sent to POST /rest/uploads, or text. In one step: POST "
        "/rest/files/{filename}.",
        scope=Scope.MAIL,
    )
    async def file_upload(self, info: Info, input: FileUploadInput) -> FilePayload:
        ctx, owner = info.context, await owner_named(info, input.user or None)
        if owner not in (None, ctx.viewer.user_id):
            raise Forbidden("others' files are stored by acting as them", requires="actAs")
        key = await stored_files.upload(ctx, input.new())
        return FilePayload(file=File.maybe(await ctx.load(stored_files.by_ids, key)))

    @mutation("All or none; links to them end too.", scope=Scope.MAIL)
    async def file_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await stored_files.remove(info.context, keys_of(info, "File", input.ids))
        return DeletePayload(deleted_ids=input.ids)

    @mutation("A link to a file, for whoever is given it.", scope=Scope.MAIL)
    async def file_share_create(self, info: Info, input: FileShareCreateInput) -> FileSharePayload:
        new = NewShare(
            global_ids.decode("File", input.file, path="file"),
            FileAttachmentMode(input.mode),
            input.expiration.moment(info) if input.expiration else None,
            plain(input.password),
        )
        key = await shares.create(info.context, new)
        row = await info.context.load(shares.by_ids, key)
        return FileSharePayload(share=FileShare.maybe(row))

    @mutation("All or none; whoever has such a link finds nothing.", scope=Scope.MAIL)
    async def file_share_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await shares.remove(info.context, keys_of(info, "FileShare", input.ids))
        return DeletePayload(deleted_ids=input.ids)
