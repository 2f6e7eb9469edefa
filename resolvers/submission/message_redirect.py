"""Forward a stored message unchanged to new recipients."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import select
from sqlmodel import col

from mail.compose import draft_validation
from mail.logs.message_entries import LimitedMessage
from mail.queue.enqueue import NewSubmission
from mail.recipients.forward_targets import ForwardEndpoint, decrypt_relay_urls
from mail.recipients.sender_accounts import find_user_id_that_sends_as
from mail.storage import held_copies
from mail.storage.held_copies import COPIED_COLUMNS
from mail.storage.message_content import read_all
from models.auth.security_log import SecurityEventAction
from models.errors import Conflict, Forbidden, InvalidInput, NotFound, require_within_limit
from models.files.blobs import MessageBlob
from models.filters.tables import Filter
from models.messages.tables import Message
from models.queue.forward_target_kinds import ForwardTargetKind
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_own_or_shared, require_user_id
from resolvers.addresses.targets import HIDDEN_PASSWORD_PART, RELAY_SCHEMES
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.messages import content
from resolvers.messages.bulk import flag_changes, flags, row_changes
from resolvers.messages.listing import is_not_deleted_sql
from resolvers.submission import composition, outgoing_scan, send_on_behalf
from resolvers.submission import create as submission_create
from resolvers.submission import loaders as submission_loaders
from resolvers.submission.enqueue import enqueue_with_bcc_copies_and_count_rate
from resolvers.submission.message_source import FORWARDED_KEYWORD
from resolvers.submission.prepared_messages import read_bcc_copy_recipients
from resolvers.users.quota import limits as quota_limits

MAX_HOPS = 30  # Received fields; with this number it is a mail loop
INPUT_PATH = ["to"]
# in the security log of the owner
FORWARDED_BY_OTHERS_ACTION = SecurityEventAction.MESSAGE_REDIRECTED


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """The recipients of a forward: addresses, or one or all original targets."""

    addresses: Sequence[str] | None = None
    target_number: int | None = None  # from 1


@dataclass(frozen=True, slots=True)
class ForwardDestination:
    """An address, relay or web address that a message is forwarded to."""

    number: int  # from 1, among the original targets
    display_target: str  # without a password
    full_target: str = field(repr=False)

    @property
    def is_relay_or_url(self) -> bool:
        """True if it is a relay or a web address."""
        return "://" in self.display_target

    @property
    def kind(self) -> ForwardTargetKind:
        """The kind of the target."""
        if not self.is_relay_or_url:
            return ForwardTargetKind.MAIL
        is_relay = self.display_target.partition("://")[0] in RELAY_SCHEMES
        return ForwardTargetKind.RELAY if is_relay else ForwardTargetKind.HTTP


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """The submission and its targets, each once. Without targets there is no submission."""

    submission: ColumnRow | None
    destinations: Sequence[ForwardDestination]


async def forward_as_owner_with_security_log(
    ctx: Context, message_id: int, request: ForwardRequest
) -> ForwardResult:
    """Forward a message in the name of its owner, also as an administrator of the owner.

    If an administrator names addresses, the owner gets a security log entry and a message, since
    content leaves the account. Raises the errors of `queue_unchanged_forward`.
    """
    owner_id = await send_on_behalf.find_managed_owner_id(ctx, message_id)
    scopes = frozenset({Scope.SUBMIT, Scope.MAIL_READ})
    async with send_on_behalf.logged_sending_transaction_as_user(
        ctx, owner_id, "messageRedirect", scopes
    ) as owner_ctx:
        result = await queue_unchanged_forward(owner_ctx, message_id, request)
        if owner_ctx is not ctx and owner_id is not None and request.addresses is not None:
            target_texts = [target.display_target for target in result.destinations]
            event = NewSecurityEvent(
                FORWARDED_BY_OTHERS_ACTION, owner_id, detail={"to": target_texts}
            )
            async with ctx.write_session(owner_id) as session:
                await security_log.log_event_and_queue_notice(ctx, session, event)
        return result


async def queue_unchanged_forward(
    ctx: Context, message_id: int, request: ForwardRequest
) -> ForwardResult:
    """Queue a message, byte for byte, in the name of the account's main address.

    Without the scope MAIL_READ, raises Forbidden. The message gets the keyword $Forwarded unless
    another account shares it. Raises NotFound; Conflict for a draft and for a mail loop;
    RateLimited; and Forbidden if the scanner rejects it, or if someone else than the owner
    forwards to the original targets.
    """
    ctx.viewer.require_scope(Scope.MAIL_READ)
    user_id = require_user_id(ctx)
    if request.target_number is not None and request.addresses is not None:
        error_text = "A target number and addresses can't be combined."
        raise InvalidInput(
            error_text, constraint=ValidationConstraint.EXCLUSIVE, path=["originalTarget"]
        )
    message_row = await _require_forwardable_message(ctx, message_id)
    account = await composition.read_account(ctx, user_id)
    limited = LimitedMessage(subject=message_row.subject, message_id=message_row.message_id)
    await quota_limits.require_below_sending_limits(ctx, account, limited)
    if request.addresses is not None:
        targets = await _destinations_from_addresses(ctx, user_id, request.addresses)
    else:
        targets = await _load_original_destinations_with_passwords(
            ctx, user_id, message_row, request.target_number
        )
    if not targets:
        return ForwardResult(None, [])
    sender = (await composition.main_sender(ctx, account)).address
    await _require_no_loop_and_scan(ctx, message_id, account, (sender, targets))
    return await _enqueue_forward_and_set_keyword(ctx, message_row, account, (sender, targets))


async def _require_no_loop_and_scan(
    ctx: Context,
    message_id: int,
    account: ColumnRow,
    envelope: tuple[str, Sequence[ForwardDestination]],
) -> None:
    """Raise Conflict for a mail loop, and Forbidden if the scanner rejects the message."""
    stored = await content.load_stored_message(ctx, message_id)
    if stored is None:
        raise NotFound(str(message_id), path=["message"])
    fields = await content.header_fields(stored)
    if sum(field.name.casefold() == "received" for field in fields) >= MAX_HOPS:
        text = f"The message passed {MAX_HOPS} servers: mail loop detected."
        raise Conflict(text, path=["message"])
    if outgoing_scan.is_enabled(ctx):
        sender, targets = envelope
        addresses = [target.display_target for target in targets if not target.is_relay_or_url]
        await outgoing_scan.scan_and_require_sendable(
            ctx, account, await read_all(stored.stream_raw()), sender, addresses
        )


async def _enqueue_forward_and_set_keyword(
    ctx: Context,
    message_row: ColumnRow,
    account: ColumnRow,
    envelope: tuple[str, Sequence[ForwardDestination]],
) -> ForwardResult:
    user_id, (sender, targets) = account.id, envelope
    recipients = [target.display_target for target in targets if not target.is_relay_or_url]
    # the address by which the account received it
    received_for = next(iter(message_row.envelope_to), sender)
    forward_endpoints = [
        ForwardEndpoint(received_for, target.display_target, target.full_target)
        for target in targets
        if target.is_relay_or_url
    ]
    (copy_recipients,) = await read_bcc_copy_recipients(ctx, account, [(sender, recipients)])

    def enqueue_forward_and_count_rate(transaction: DatabaseTransaction) -> int:
        submission_create.require_sending_allowed(transaction, user_id)
        quota_limits.count_against_recipient_limit(transaction, user_id, len(targets))
        needs = select(col(MessageBlob.blob_id)).where(
            col(MessageBlob.message_id) == message_row.id
        )
        blobs = list(transaction.connection.execute(needs).scalars())
        if message_row.blob_id not in blobs:  # it was deleted or replaced after the read
            raise NotFound(str(message_row.id), path=["message"])
        at, message_id = transaction.environment.now(), message_row.message_id
        handed = NewSubmission(
            *(sender, recipients, message_row.size, message_row.blob_id, blobs, message_row.id),
            due_at=at,
            endpoints=forward_endpoints,
            message_id_header=message_id,
        )
        key = enqueue_with_bcc_copies_and_count_rate(transaction, ctx, handed, copy_recipients)
        facts = {name: getattr(message_row, name) for name in COPIED_COLUMNS}
        target_texts = [target.display_target for target in targets]
        facts |= {"envelope_from": sender, "envelope_to": target_texts, "received_at": at}
        held_copies.copy_sent_message_to_legal_holds(transaction, user_id, key, facts, blobs)
        return key

    limited = LimitedMessage(sender, recipients, message_row.subject, message_row.message_id)
    with quota_limits.convert_and_log_exceeded_limits(ctx, limited):
        async with ctx.write_session(user_id, *copy_recipients.stream_ids) as session:
            key = await ctx.environment.run_in_session(session, enqueue_forward_and_count_rate)
            message_rows = await row_changes.load_rows_in_transaction(session, [message_row.id])
            own_rows = [
                message_row for message_row in message_rows if message_row.user_id == user_id
            ]  # a message of another account is not flagged
            await flags.change_flags(
                ctx,
                session,
                own_rows,
                flag_changes.FlagChanges.from_flag_names({}, added=[FORWARDED_KEYWORD]),
            )
    submission = await ctx.load(submission_loaders.load_own_submissions_by_id, key)
    if submission is None:
        raise NotFound(str(key), path=["message"])
    return ForwardResult(submission, targets)


async def _require_forwardable_message(ctx: Context, message_id: int) -> ColumnRow:
    """Read a visible message. Raises NotFound, and Conflict if it is a draft."""
    conditions = (
        is_own_or_shared(ctx, Message),
        is_not_deleted_sql(),
        col(Message.id) == message_id,
    )
    names = {"id", "user_id", "draft", "encrypted", "forwarded_to", *COPIED_COLUMNS}
    row = next(
        iter(await ctx.read(select(*select_columns(Message, names)).where(*conditions))), None
    )
    if row is None:
        raise NotFound(str(message_id), path=["message"])
    if row.draft:
        raise Conflict("A draft can't be redirected.", path=["message"])
    return row


async def _destinations_from_addresses(
    ctx: Context, user_id: int, addresses: Sequence[str]
) -> list[ForwardDestination]:
    """Return the addresses as destinations, each once.

    Raises InvalidInput if one is no address or the account's own.
    """
    max_recipients = ctx.environment.options.submission_max_recipients
    require_within_limit(
        len(addresses),
        max_recipients,
        f"At most {max_recipients} recipients are allowed.",
        path=INPUT_PATH,
    )
    if not addresses:
        raise InvalidInput(
            "The message must have at least one recipient.",
            constraint=ValidationConstraint.REQUIRED,
            path=INPUT_PATH,
        )
    unique_addresses: dict[str, str] = {}
    for index, text in enumerate(addresses):
        address = draft_validation.normalize_and_validate_address_with_index(
            text, INPUT_PATH[0], index
        )
        if await find_user_id_that_sends_as(ctx.environment, address) == user_id:
            error_text = "A message can't be redirected to your own address: use messageCopy."
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.SELF, path=INPUT_PATH, index=index
            )
        unique_addresses.setdefault(address.casefold(), address)
    return [
        ForwardDestination(nth, address, address)
        for nth, address in enumerate(unique_addresses.values(), 1)
    ]


def original_destinations_if_viewer_is_owner(
    ctx: Context, message_row: ColumnRow
) -> list[ForwardDestination]:
    """Return the targets that a message was forwarded to when it arrived, without passwords.

    The list is empty unless the viewer is the owner. Reads `user_id` and `forwarded_to` of the
    row.
    """
    if message_row.user_id != ctx.viewer.user_id:
        return []
    return [
        ForwardDestination(number, destination, destination)
        for number, destination in enumerate(message_row.forwarded_to or (), 1)
    ]


async def _load_original_destinations_with_passwords(
    ctx: Context, user_id: int, message_row: ColumnRow, number: int | None
) -> list[ForwardDestination]:
    """Return the original targets with passwords, all or the one of this number; can be empty.

    Raises Conflict if the account encrypts what it forwards and the message is not encrypted, or
    if the password of a relay is no longer stored.
    """
    if number is not None and number < 1:
        raise InvalidInput(
            "The number of a target must be at least 1.",
            constraint=ValidationConstraint.MIN,
            path=["originalTarget"],
        )
    if message_row.user_id != user_id:
        text = (
            "Only the owner of the message can redirect it to its original targets: give addresses."
        )
        raise Forbidden(text, path=["message"])
    originals = [
        destination
        for destination in original_destinations_if_viewer_is_owner(ctx, message_row)
        if number in (None, destination.number)
    ]
    if not originals:
        return []
    statement = select(*select_columns(User, {"id", "relays", "encrypt_forwarded"})).where(
        col(User.id) == user_id
    )
    (account,) = await ctx.read(statement)
    if account.encrypt_forwarded and not message_row.encrypted:
        text = (
            "The account encrypts forwarded mail, and the message is not encrypted: give addresses."
        )
        raise Conflict(text, path=["message"])
    relay_urls = await _read_secret_relay_urls_by_public_url(ctx, account)
    destinations = []
    for original in originals:
        display_target = original.display_target
        target_with_secrets = relay_urls.get(original.display_target, original.display_target)
        if target_with_secrets == display_target and HIDDEN_PASSWORD_PART in display_target:
            text = f"The password of {display_target} is no longer stored."
            raise Conflict(text, path=["message"] if number is None else ["originalTarget"])
        if (
            "://" in display_target
            or await find_user_id_that_sends_as(ctx.environment, display_target) != user_id
        ):
            # skips an address that belongs to the account by now
            destinations.append(replace(original, full_target=target_with_secrets))
    return destinations


async def _read_secret_relay_urls_by_public_url(ctx: Context, account: ColumnRow) -> dict[str, str]:
    """Read the relays of an account and its filters: full URL by the form without a password."""
    filter_relays = select(col(Filter.id), col(Filter.relays)).where(
        col(Filter.user_id) == account.id, col(Filter.relays).is_not(None)
    )
    urls = dict[str, str]()
    for row in [*await ctx.read(filter_relays), account]:
        urls |= decrypt_relay_urls(ctx.environment, row.id, row.relays)
    return urls
