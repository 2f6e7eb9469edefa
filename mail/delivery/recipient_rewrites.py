"""Recipient rewrites and BCC rules.

A recipient is rewritten once, before it is resolved (precedence: mail/recipients/
address_resolution.py). Then each BCC rule of the address, of the address without label, and of the
domain makes a copy. A copy is not copied again.
"""

import hmac
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, String, bindparam, select, union_all
from sqlmodel import col

from mail.addresses.address_syntax import (
    NormalizedAddress,
    normalize_and_validate_address,
    normalize_and_validate_domain,
    normalized_address,
    normalized_domain,
)
from mail.addresses.rule_addresses import rule_addresses
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.incoming_message import IncomingMessage
from mail.queue.enqueue import SubmissionOwner, build_submission_and_insert_blobs, enqueue
from mail.queue.receipts import record_receipt_if_new
from mail.recipients.sender_accounts import find_receiving_address_row, user_id_that_sends_as
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.header_prepend import prepend_header_fields_to_message, read_beginning
from mail.storage.received_messages import store_blobs_and_run_transaction
from mail.storage.storable_message import StorableMessage
from models.addresses.rewrites import BccDirection, BccRule
from models.domains.tables import Domain, DomainAlias
from models.errors import InvalidInput
from models.events.journal import PLATFORM
from models.queue.tables import QueueEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow
from models.store.prepared_statements import (
    PreparedStatement,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)
from models.submission.tables import COPY_OF_RECEIVED, Submission
from models.users.rule_makers import (
    Maker,
    RuleSubject,
    applies_to_user,
    is_active_maker,
    maker_columns,
)
from models.users.tables import User
from models.validation_constraints import ValidationConstraint

log = logging.getLogger(__name__)

MAX_HEADER = 1 << 20  # bytes of a large message that are searched for COPY_FIELD
COPY_FIELD = b"X-Merganser-Copy"  # header field of a copy: HMAC of the original address
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_COPY_FIELD_VALUE = re.compile(rb"(?im)^X-Merganser-Copy:[ \t]*([0-9a-f]{64})[ \t]*\r?$")


@dataclass(frozen=True, slots=True)
class CopiedAddress:
    """An address of which BCC rules make copies."""

    accounts: Sequence[RuleSubject]  # a rule must apply to each of them
    names: Sequence[NormalizedAddress]  # the addresses that a rule can name, best first


@dataclass(frozen=True, slots=True)
class BccCopyTarget:
    """The target of a copy, with its rule and the address that the mail was for."""

    address: str
    rule_id: int
    original_address: str


def checked_rule_address(text: str, *, path: str) -> NormalizedAddress:
    """Return the address of a rule; the local part of a domain rule is empty.

    Raises InvalidInput.
    """
    text = text.strip()
    if text.startswith("@"):
        return NormalizedAddress("", normalize_and_validate_domain(text[1:], path=path))
    if set("*+") & set(text.rpartition("@")[0]):
        words = "Must be an address without subaddress and pattern, or @domain."
        raise InvalidInput(words, constraint=ValidationConstraint.PATTERN, path=[path])
    return normalized_address(normalize_and_validate_address(text, path=path))


def checked_rewrite_target(text: str, rule_address: NormalizedAddress, *, path: str = "to") -> str:
    """Return a rewrite target: an address, or `@domain` for a domain rule. Raises InvalidInput."""
    text = text.strip()
    if not text.startswith("@"):
        if "*" in text or text.startswith("+"):
            raise InvalidInput(
                "Must be an address without a pattern.",
                constraint=ValidationConstraint.PATTERN,
                path=[path],
            )
        return normalize_and_validate_address(text, path=path)
    if rule_address.local_part:
        words = "Only a whole domain can be replaced by @domain."
        raise InvalidInput(words, constraint=ValidationConstraint.ADDRESS, path=[path])
    return f"@{normalize_and_validate_domain(text[1:], path=path)}"


def has_rewrite_loop(targets_by_address: Mapping[NormalizedAddress, str]) -> bool:
    """Return True if rewrites that are followed repeatedly form a loop.

    An empty local part means all addresses of a domain.
    """
    ended = set[NormalizedAddress]()
    for start in targets_by_address:
        path_addresses = dict[NormalizedAddress, None]()
        at: NormalizedAddress | None = start
        while at is not None and at not in ended:
            if at in path_addresses:
                return True
            path_addresses[at] = None
            at = _rewrite_once_or_none(targets_by_address, at)
        ended.update(path_addresses)
    return False


def _rewrite_once_or_none(
    targets_by_address: Mapping[NormalizedAddress, str], address: NormalizedAddress
) -> NormalizedAddress | None:
    """Return the address after one rewrite, None if it does not change."""
    target = targets_by_address.get(address) or targets_by_address.get(
        NormalizedAddress("", address.domain)
    )
    if target is None:
        return None
    normalized_target = normalized_address(target)
    normalized_target = (
        NormalizedAddress(address.local_part, normalized_target.domain)
        if target.startswith("@")
        else normalized_target
    )
    return None if normalized_target == address else normalized_target


@prepare_cached
def _select_bcc_rules(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the rules of one direction for addresses, with the domain name that matched."""
    own_rules: Select[*tuple[Any, ...]] = select(
        col(Domain.id).label("domain_id"), col(Domain.name).label("named")
    ).where(is_in_parameter(dialect, col(Domain.name), "domains", String))
    second = select(col(DomainAlias.domain_id), col(DomainAlias.alias)).where(
        is_in_parameter(dialect, col(DomainAlias.alias), "domains", String)
    )
    all_rules = union_all(own_rules, second).subquery()
    return (
        select(
            col(BccRule.id),
            col(BccRule.local),
            col(BccRule.bcc_to),
            all_rules.c.named,
            *maker_columns(BccRule),
        )
        .join(all_rules, all_rules.c.domain_id == col(BccRule.domain_id))
        .outerjoin(Maker, is_active_maker(BccRule))
        .where(
            col(BccRule.direction) == bindparam("direction"),
            is_in_parameter(dialect, col(BccRule.local), "locals", String),
            col(BccRule.active),
        )
        .order_by(col(BccRule.id))
    )


def _rule_parameters(
    direction: BccDirection, names: Collection[NormalizedAddress]
) -> dict[str, Any]:
    """Return the parameters of the statement of BCC rules."""
    return {
        "direction": direction,
        "domains": sorted({name.domain for name in names}),
        "locals": ["", *sorted({name.local_part for name in names})],
    }


def _bcc_targets_of_rules(
    rule_rows: Sequence[ColumnRow],
    addresses: Mapping[str, CopiedAddress],
    excluded_addresses: Collection[str],
) -> list[BccCopyTarget]:
    """Return the copies that rules make of the mail of these addresses, each target once.

    A rule applies only to accounts that its maker can administer.
    """
    excluded, targets = {_comparable_address(address) for address in excluded_addresses}, []
    for row in rule_rows:
        for address, copied in addresses.items():
            fits = any(
                name.domain == row.named and row.local in ("", name.local_part)
                for name in copied.names
            )
            if fits and all(applies_to_user(row, account) for account in copied.accounts):
                if _comparable_address(row.bcc_to) not in excluded:
                    excluded.add(_comparable_address(row.bcc_to))
                    targets.append(BccCopyTarget(row.bcc_to, row.id, address))
                break
    return targets


def _comparable_address(address: str) -> str:
    """Return the address in the form that duplicates are found by."""
    # not the normalized form: other servers can distinguish what it drops
    local, _, domain = address.rpartition("@")
    return f"{local.casefold()}@{normalized_domain(domain)}"


async def find_bcc_targets(
    environment: Environment,
    direction: BccDirection,
    addresses: Mapping[str, CopiedAddress],
    excluded_addresses: Collection[str] = (),
) -> list[BccCopyTarget]:
    """Return who gets a copy of mail from or to these addresses, except the excluded ones.

    Each target is returned once. One SQL statement for any number of addresses.
    """
    rows = await _load_bcc_rules(
        environment, direction, [copied.names for copied in addresses.values()]
    )
    return _bcc_targets_of_rules(rows, addresses, excluded_addresses)


async def find_bcc_addresses_per_envelope(
    environment: Environment, sending_user_id: int, envelopes: Sequence[tuple[str, Collection[str]]]
) -> list[list[str]]:
    """Return who gets a copy of each message that an account sends.

    Envelopes are (sender, recipients) pairs. A rule must cover the sending account and the account
    that owns the sender address. One SQL statement if no rule applies.
    """
    delimiters = environment.options.addresses_subaddress_delimiters
    possible_names = {sender: rule_addresses(sender, delimiters, None) for sender, _ in envelopes}
    rows = await _load_bcc_rules(environment, BccDirection.SENDER, possible_names.values())
    if not rows:
        return [[] for _ in envelopes]
    address_rows = {
        sender: await find_receiving_address_row(environment, sender) for sender in possible_names
    }
    subjects = await _load_rule_subjects_by_sender(environment, sending_user_id, address_rows)
    copied = {
        sender: CopiedAddress(
            subjects[sender], rule_addresses(sender, delimiters, row.local if row else None)
        )
        for sender, row in address_rows.items()
    }
    return [
        [
            target.address
            for target in _bcc_targets_of_rules(rows, {sender: copied[sender]}, recipients)
        ]
        for sender, recipients in envelopes
    ]


async def _load_rule_subjects_by_sender(
    environment: Environment,
    sending_user_id: int,
    address_rows: Mapping[str, ColumnRow | None],
) -> dict[str, list[RuleSubject]]:
    """Return the accounts of each sender: the sending account and the owner of the address.

    `address_rows` are the records that receive the mail of the senders.
    """
    owners = {
        sender: {sending_user_id, user_id_that_sends_as(row)}
        for sender, row in address_rows.items()
    }
    ids = {
        owner for account_and_rewrite in owners.values() for owner in account_and_rewrite if owner
    }
    statement = select(col(User.id), col(User.role)).where(col(User.id).in_(ids))
    subjects = {
        row.id: RuleSubject(row.id, row.role) for row in await environment.database.read(statement)
    }
    return {
        sender: [subjects[owner] for owner in account_and_rewrite if owner in subjects]
        for sender, account_and_rewrite in owners.items()
    }


async def _load_bcc_rules(
    environment: Environment,
    direction: BccDirection,
    names_of_addresses: Iterable[Sequence[NormalizedAddress]],
) -> Sequence[ColumnRow]:
    """Return the BCC rules that can apply to an address with one of these names."""
    names = set[NormalizedAddress]().union(*names_of_addresses)
    return await environment.database.read_prepared(
        _select_bcc_rules(environment.database.dialect), _rule_parameters(direction, names)
    )


@dataclass(frozen=True, slots=True)
class PreparedBccCopy:
    """A copy of a message that can be queued."""

    message: StorableMessage
    envelope_sender: str  # empty for the null path
    recipients: Sequence[str]
    original_recipient: LocalRecipient
    submission_id: int  # the submission that was copied
    content_digest: str  # of the received message; identifies a repeated delivery


async def enqueue_bcc_copies(
    environment: Environment,
    incoming: IncomingMessage,
    recipients: Sequence[LocalRecipient],
    known_recipients: Sequence[str],
) -> None:
    """Enqueue the BCC copies of a delivered message. On return they are durable."""
    with ExitStack() as files:
        for copy in await build_bcc_copies(
            environment, incoming, recipients, known_recipients, files
        ):

            def enqueue_in_transaction(
                transaction: DatabaseTransaction,
                stored_blobs: StoredMessageBlobs,
                bcc_copy: PreparedBccCopy = copy,
            ) -> None:
                enqueue_bcc_copy(transaction, stored_blobs, bcc_copy)

            await store_blobs_and_run_transaction(
                environment,
                copy.original_recipient.tenant_id,
                copy.message,
                enqueue_in_transaction,
                PLATFORM,
            )


async def build_bcc_copies(
    environment: Environment,
    incoming: IncomingMessage,
    recipients: Sequence[LocalRecipient],
    known_recipients: Sequence[str],
    temporary_files: ExitStack,
) -> list[PreparedBccCopy]:
    """Return the BCC copies of a message that is delivered to these recipients.

    `known_recipients` are the envelope recipients, which get no copy. Copies keep the envelope
    sender. A message that is itself a copy of the same mail is not copied again, even after a
    detour through another server. No SQL statement if no recipient has rules. Temporary files are
    closed with `temporary_files`.
    """
    recipients_by_address = {
        recipient.receiving_address: recipient
        for recipient in recipients
        if recipient.has_bcc_rules
    }
    if not recipients_by_address:
        return []
    copied = {
        address: CopiedAddress(
            [RuleSubject(recipient.user_id, recipient.role)], recipient.rule_addresses
        )
        for address, recipient in recipients_by_address.items()
    }
    targets = await find_bcc_targets(environment, BccDirection.RECIPIENT, copied, known_recipients)
    if targets and incoming.submission_id != COPY_OF_RECEIVED:
        rows = await environment.database.read_prepared(
            _SELECT_QUEUED_RECIPIENTS, {"submission": incoming.submission_id}
        )
        excluded = {_comparable_address(row.recipient) for row in rows}
        targets = [copy for copy in targets if _comparable_address(copy.address) not in excluded]
    if not targets:
        return []
    source, message = incoming.raw_message, incoming.message
    head = await read_beginning(source, len(source) if isinstance(source, bytes) else MAX_HEADER)
    seen = set(_COPY_FIELD_VALUE.findall(_HEADER_END.split(head, 1)[0]))
    copies = []
    for original_address in dict.fromkeys(copy.original_address for copy in targets):
        copy_mark = _copy_mark(environment, copied[original_address].names[-1], message)
        if copy_mark not in seen:
            addresses = [
                copy.address for copy in targets if copy.original_address == original_address
            ]
            prefix = b"%s: %s\r\n" % (COPY_FIELD, copy_mark)
            copy = await prepend_header_fields_to_message(source, message, prefix, temporary_files)
            copies.append(
                PreparedBccCopy(
                    copy,
                    incoming.envelope_sender,
                    addresses,
                    recipients_by_address[original_address],
                    incoming.submission_id,
                    incoming.content_digest,
                )
            )
    return copies


def enqueue_bcc_copy(
    transaction: DatabaseTransaction,
    stored_blobs: StoredMessageBlobs,
    bcc_copy: PreparedBccCopy,
) -> None:
    """Enqueue a BCC copy in the current transaction, once for each recipient in the receipt period.

    Its bytes must be stored, and the stream of the platform must be locked.
    """
    message_key = f"{bcc_copy.envelope_sender}\0copy\0{bcc_copy.content_digest}"
    recipients = [
        address
        for address in bcc_copy.recipients
        if record_receipt_if_new(transaction, f"{message_key}\0{_comparable_address(address)}")
    ]
    if not recipients:  # a repeated delivery
        return
    submission = build_submission_and_insert_blobs(
        transaction,
        bcc_copy.message,
        stored_blobs,
        bcc_copy.envelope_sender,
        recipients,
        copy_of=bcc_copy.submission_id,
    )
    recipient = bcc_copy.original_recipient
    owner = SubmissionOwner(None, recipient.tenant_id, domain_id=recipient.domain_id)
    enqueue(transaction, owner, submission)


_SELECT_QUEUED_RECIPIENTS = PreparedStatement(
    select(col(QueueEntry.recipient))
    .join(Submission, col(Submission.id) == col(QueueEntry.submission_id))
    .where(
        (col(Submission.id) == integer_parameter("submission"))
        | (col(Submission.copy_of) == integer_parameter("submission"))
    )
)


def _copy_mark(
    environment: Environment, address: NormalizedAddress, message: StorableMessage
) -> bytes:
    """Return the HMAC that identifies a copy of a message for an address."""
    text = f"copy\n{'@'.join(address)}\n{message.facts.message_id or ''}"
    return (
        hmac.digest(environment.signing_secret, text.encode(errors="surrogatepass"), "sha256")
        .hex()
        .encode()
    )
