"""Accept messages that users submit by SMTP: sign-in, permission to send, and queueing."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlmodel import col

from mail.authentication import remove_own_results
from mail.compose.draft_validation import normalize_and_validate_address_with_index
from mail.compose.submission_repair import repair_message_or_raise
from mail.envelope.dsn_parameters import DsnRequest
from mail.logs.message_entries import LimitedMessage
from mail.smtp.submission_backend import SmtpSubmitter
from models.auth.security_log import AuthProtocol
from models.errors import AuthenticationFailed, Forbidden, require_found
from models.mailboxes.tables import SpecialUse
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication, credential_status, sign_in
from resolvers.auth.sign_in import PasswordKind, PasswordProof, SignInRequest
from resolvers.context import Context
from resolvers.identity_providers.provider_records import user_columns_with_password_rule
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.oauth import smtp_sign_in
from resolvers.submission import create as submission_create
from resolvers.submission import loaders as submission_loaders
from resolvers.submission.composition import ACCOUNT_COLUMNS, new_message_id
from resolvers.submission.create import ComposedMessage
from resolvers.submission.sender_authorization import require_permitted_sender
from resolvers.users.quota import limits as quota_limits
from resolvers.viewer import Viewer

SMTP_SIGN_IN = SignInRequest(scope=Scope.SMTP, protocol=AuthProtocol.SMTP)
SIGN_IN_COLUMNS = (
    "auth_version",
    "disabled_scopes",
    "smtp_allowed_networks",
    "second_factors",
)  # columns that the sign-in rules read
_SELECT_ENABLED_SUBMITTER = PreparedStatement(
    select(
        *user_columns_with_password_rule(
            {*ACCOUNT_COLUMNS, *SIGN_IN_COLUMNS, "upload_sent_messages"}
        )
    ).where(col(User.id) == integer_parameter("viewer"), credential_status.is_user_enabled_sql())
)


@dataclass(frozen=True, slots=True)
class SmtpSubmissionService:
    """The service behind an SMTP submission session.

    Each call reads the account again, since it can change during a session.
    """

    environment: Environment

    async def sign_in(self, login_name: str, password: str, ip: str | None) -> SmtpSubmitter:
        """Check the credentials and return the signed-in user.

        Raises AuthenticationFailed or RateLimited.
        """
        ctx = Context(self.environment, Viewer(), client_ip=ip)
        signed_in_user = await authentication.authenticate_user_by_password(
            ctx, login_name, password, SMTP_SIGN_IN
        )
        user = signed_in_user.user
        return SmtpSubmitter(
            user.id, user.username, user.auth_version, ip, signed_in_user.app_password_id
        )

    async def sign_in_by_token(
        self, login_name: str | None, token: str, ip: str | None
    ) -> SmtpSubmitter:
        """Check an access token of an OAuth client and return its user.

        Raises AuthenticationFailed, Forbidden or RateLimited.
        """
        ctx = Context(self.environment, Viewer(), client_ip=ip)
        user = await smtp_sign_in.authenticate_user_by_token(ctx, login_name, token)
        return SmtpSubmitter(
            user.id,
            user.username,
            user.auth_version,
            ip,
            access_token_id=user.token_id,
            expires_at=user.token_expires_at,
        )

    async def is_still_signed_in(self, submitter: SmtpSubmitter) -> bool:
        """True if the credential of a session is valid."""
        try:
            await _require_account_that_may_sign_in(self._submitter_context(submitter), submitter)
        except AuthenticationFailed:
            return False
        return True

    async def require_sender_and_sending_limits(
        self, submitter: SmtpSubmitter, envelope_sender: str
    ) -> None:
        """Raise Forbidden if the user may not send as this address.

        Raises RateLimited if the user has reached the daily limit of recipients.
        """
        ctx = self._submitter_context(submitter)
        account = await _require_account_that_may_sign_in(ctx, submitter)
        limited = LimitedMessage(sender=envelope_sender)
        await quota_limits.require_below_sending_limits(ctx, account, limited)
        if envelope_sender:
            address = normalize_and_validate_address_with_index(envelope_sender, "from")
            await require_permitted_sender(ctx, account, address, ["from"])

    async def submit(
        self,
        submitter: SmtpSubmitter,
        raw_message: bytes | Path,
        envelope_sender: str,
        recipients: Sequence[tuple[str, DsnRequest]],
    ) -> str:
        """Queue a message, store a copy in Sent if the account wants it, and return the queue id.

        Raises Forbidden if the user may not send as an author that the header names.
        """
        ctx = self._submitter_context(submitter)
        account = await _require_account_that_may_sign_in(ctx, submitter)
        message = await remove_own_results(self.environment.options, raw_message)
        raw = message if isinstance(message, bytes) else await asyncio.to_thread(message.read_bytes)
        message_id = new_message_id(ctx, envelope_sender)
        repaired = await asyncio.to_thread(
            repair_message_or_raise, raw, self.environment.now(), message_id
        )
        for writer in dict.fromkeys(repaired.writers):
            await require_permitted_sender(
                ctx, account, normalize_and_validate_address_with_index(writer, "from"), ["from"]
            )
        sent_mailbox = await _sent_mailbox(ctx, account) if account.upload_sent_messages else None
        distinct: dict[str, tuple[str, DsnRequest]] = {}
        for address, dsn_request in recipients:
            distinct.setdefault(address.casefold(), (address, dsn_request))
        dsn_requests = dict(distinct.values())
        composed = ComposedMessage(
            repaired.raw,
            envelope_sender,
            list(dsn_requests),
            sent_mailbox,
            dsn_requests=dsn_requests,
        )
        submission_id, _ = await submission_create.scan_and_queue_message_with_copy(
            ctx, account, composed
        )
        row = await ctx.load(
            submission_loaders.load_own_submissions_by_id, require_found(submission_id)
        )
        return str(require_found(row).queue_id)

    def _submitter_context(self, submitter: SmtpSubmitter) -> Context:
        viewer = Viewer(submitter.user_id, Role.USER, frozenset({Scope.SUBMIT}))
        return Context(self.environment, viewer, client_ip=submitter.ip)


async def _require_account_that_may_sign_in(ctx: Context, submitter: SmtpSubmitter) -> ColumnRow:
    """Read the account.

    Raises AuthenticationFailed if the credential of the session is no longer valid.

    A new account password does not end application passwords.
    """
    proved, app_password_id = PasswordProof(PasswordKind.FULL), submitter.app_password_id
    if submitter.access_token_id is not None:
        await smtp_sign_in.require_valid_smtp_token(ctx, submitter.access_token_id)
    elif app_password_id is not None:
        app = await credential_status.load_app_password_row_if_valid(
            ctx.environment, app_password_id
        )
        if app is None:
            raise AuthenticationFailed
        proved = PasswordProof(PasswordKind.APP, app)
    row: ColumnRow | None = next(iter(await ctx.read_prepared(_SELECT_ENABLED_SUBMITTER)), None)
    if row is None:
        raise AuthenticationFailed
    if submitter.access_token_id is not None:
        return row
    if app_password_id is None and row.auth_version != submitter.auth_version:
        raise AuthenticationFailed
    try:
        sign_in.require_sign_in_allowed(ctx, row, proved, SMTP_SIGN_IN)
    except Forbidden as refusal:
        raise AuthenticationFailed from refusal
    return row


async def _sent_mailbox(ctx: Context, account: ColumnRow) -> ColumnRow | None:
    mailbox_ref = mailbox_loaders.MailboxSelector(special_use=SpecialUse.SENT)
    (row,) = await mailbox_loaders.load_visible_by_selectors(ctx, [(account.id, mailbox_ref)])
    return row
