"""Accept messages that users submit by SMTP: sign-in, permission to send, and queueing."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlmodel import col

from mail.authentication import without_own_results
from mail.compose.message_builder import address
from mail.compose.submission_repair import mended
from mail.envelope.dsn_parameters import Wish
from mail.smtp.submission_server import Writer
from models.errors import AuthenticationFailed, Forbidden, found
from models.mailboxes.tables import SpecialUse
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication, credential_status, sign_in
from resolvers.auth.sign_in import Attempt, Proved, Source
from resolvers.context import Context, Viewer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.submission import create as submission_create
from resolvers.submission.composition import ACCOUNT, new_message_id
from resolvers.submission.create import Written
from resolvers.submission.sender_authorization import may_send_as
from resolvers.users.quota import limits as quota_limits

ATTEMPT = Attempt(scope=Scope.SMTP, protocol="SMTP")
SIGN_IN = (
    "disabled_scopes",
    "smtp_allowed_networks",
    "second_factors",
)  # columns that the sign-in rules read


@dataclass(frozen=True, slots=True)
class Clerk:
    """The service behind an SMTP submission session.

    Each call reads the account again, since it can change during a session.
    """

    world: World

    async def sign_in(self, name: str, password: str, ip: str | None) -> Writer:
        """Check the credentials and return the signed-in user.

        Raises AuthenticationFailed or RateLimited.
        """
        ctx = Context(self.world, Viewer(), client_ip=ip)
        found = await authentication.authenticate(ctx, name, password, ATTEMPT)
        user = found.user
        return Writer(user.id, user.username, user.auth_version, ip, found.app_password_id)

    async def may_send(self, writer: Writer, sender: str) -> None:
        """Raise Forbidden if the user may not send as this address.

        Raises RateLimited if the user has reached the daily limit of recipients.
        """
        ctx = self._context(writer)
        account = await _account(ctx, writer)
        await quota_limits.may_write(ctx, account)
        if sender:
            await may_send_as(ctx, account, address(sender, "from"), ["from"])

    async def submit(
        self, writer: Writer, source: bytes | Path, sender: str, to: Sequence[tuple[str, Wish]]
    ) -> str:
        """Queue a message, store a copy in Sent if the account wants it, and return the queue id.

        Raises Forbidden if the user may not send as an author that the header names.
        """
        ctx = self._context(writer)
        account = await _account(ctx, writer)
        source = await without_own_results(self.world.options, source)
        raw = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
        message_id = new_message_id(ctx, sender)
        made = await asyncio.to_thread(mended, raw, self.world.now(), message_id)
        for each in dict.fromkeys(made.writers):
            await may_send_as(ctx, account, address(each, "from"), ["from"])
        box = await _sent(ctx, account) if account.upload_sent_messages else None
        once: dict[str, tuple[str, Wish]] = {}
        for each, wish in to:
            once.setdefault(each.casefold(), (each, wish))
        wishes = dict(once.values())
        written = Written(made.raw, sender, list(wishes), box, wishes=wishes)
        key, _ = await submission_create.store(ctx, account, written)
        row = await ctx.load(submission_create.by_ids, found(key))
        return str(found(row).queue_id)

    def _context(self, writer: Writer) -> Context:
        viewer = Viewer(writer.user_id, Role.USER, frozenset({Scope.SUBMIT}))
        return Context(self.world, viewer, client_ip=writer.ip)


async def _account(ctx: Context, writer: Writer) -> Picked:
    """Read the account.

    Raises AuthenticationFailed if the credential of the session is no longer valid.

    A new account password does not end application passwords.
    """
    names = {*ACCOUNT, *SIGN_IN, "upload_sent_messages"}
    which = [col(User.id) == writer.user_id, credential_status.open_users()]
    proved = Proved(Source.MASTER)
    if writer.app_password_id is None:
        which.append(col(User.auth_version) == writer.auth_version)
    elif app := await credential_status.app_password_row(ctx.world, writer.app_password_id):
        proved = Proved(Source.APP, app)
    else:
        raise AuthenticationFailed
    row: Picked | None = next(
        iter(await ctx.read(select(*picked(User, names)).where(*which))), None
    )
    if row is None:
        raise AuthenticationFailed
    try:
        sign_in.judge(ctx, row, proved, ATTEMPT)
    except Forbidden as refusal:
        raise AuthenticationFailed from refusal
    return row


async def _sent(ctx: Context, account: Picked) -> Picked | None:
    named = mailbox_loaders.Named(special_use=SpecialUse.SENT)
    (row,) = await mailbox_loaders.named(ctx, [(account.id, named)])
    return row
