"""Redirects of Sieve scripts and filters of a delivery plan."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from mail import sieve
from mail.delivery.delivery_plan import DeliveryPlan
from mail.envelope.delivery_jobs import DsnAction
from mail.inbound.dsn_parser import ReceivedDsn
from mail.inbound.incoming_message import IncomingMessage
from mail.queue.redirect import (
    PreparedRedirect,
    build_redirect_with_delivered_to_and_arc,
    enqueue_prepared_redirect_once,
)
from mail.recipients.forward_targets import ForwardEndpoint
from mail.recipients.recipient_routes import OutgoingForward
from mail.sieve import Edit
from mail.storage.blobs.blob_writer import StoredMessageBlobs
from mail.storage.header_prepend import copy_with_new_beginning, read_beginning
from mail.storage.message_insert import InsertedMessage
from mail.storage.storable_message import StorableMessage
from models.errors import NotFound, RateLimited, RequestError
from models.runtime.environment import DatabaseTransaction, Environment

log = logging.getLogger(__name__)


async def with_header_edits(
    incoming: IncomingMessage, header_edits: Sequence[Edit], temporary_files: ExitStack
) -> bytes | Path:
    """Return the message with header edits. A temporary file is closed with `temporary_files`."""
    end = incoming.message.facts.structure.body_start
    head = await read_beginning(incoming.raw_message, end)
    return await copy_with_new_beginning(
        incoming.raw_message,
        await asyncio.to_thread(sieve.edit_header_block, head, header_edits),
        end,
        temporary_files,
    )


@dataclass(frozen=True, slots=True)
class PlanRedirects:
    """The redirects of a plan that are ready to be queued, and the error of the others."""

    redirects: Sequence[PreparedRedirect] = ()
    error: str | None = None  # text of the last error; None: all redirects are ready


async def prepare_plan_redirects(
    environment: Environment,
    incoming: IncomingMessage,
    plan: DeliveryPlan,
    temporary_files: ExitStack,
) -> PlanRedirects:
    """Build the messages of all redirects of a plan. `temporary_files` must stay open until stored.

    A redirect that can't be built becomes the error of the result. A DSN is not redirected to the
    address whose failure it reports, so that the account gets it.
    """
    recipient = plan.recipient_verdict.recipient
    dsn_request = incoming.dsn_request_for_forward_without_success(recipient)
    digest_and_sender = incoming.content_digest, incoming.redirect_sender(recipient)
    failed_addresses = _failed_addresses_of_dsn(incoming.dsn)
    redirects, error = list[PreparedRedirect](), None
    for edits, forward in edit_counts_and_forwards_of_plan(plan):
        if failed_addresses.intersection(map(str.lower, forward.target_addresses)):
            error = f"Not redirected to {_target_text(forward)}: the message reports its failure."
            continue
        try:
            source, message = await message_with_header_edits_and_unedited_parsed_form(
                incoming, plan, edits, temporary_files
            )
            redirects.append(
                await build_redirect_with_delivered_to_and_arc(
                    environment,
                    source,
                    digest_and_sender,
                    replace(forward, dsn_request=dsn_request),
                    temporary_files,
                    incoming.authentication_results,
                    message,
                )
            )
        except RequestError as refusal:
            error = redirect_error_text(forward, refusal)
        except Exception:  # the message is kept; the client must not send it again
            log.exception("Message not redirected", extra={"user": recipient.user_id})
            error = (
                f"Not redirected to {_target_text(forward)}. "
                "The administrator finds the cause in the server log."
            )
    return PlanRedirects(redirects, error)


def _failed_addresses_of_dsn(dsn: ReceivedDsn | None) -> set[str]:
    """Return the recipients in lower case whose failure a DSN reports."""
    return {
        address.lower()
        for result in (dsn.recipient_results if dsn else ())
        if result.action is DsnAction.FAILED
        for address in result.addresses
    }


def redirect_error_text(forward: OutgoingForward, refusal: RequestError) -> str:
    """Return the error of a redirect as the user of the script sees it."""
    return f"Not redirected to {_target_text(forward)}: {refusal.message}"


def _target_text(forward: OutgoingForward) -> str:
    return ", ".join([*forward.target_addresses, *(via.public_url for via in forward.endpoints)])


def enqueue_plan_redirects_and_return_error(
    transaction: DatabaseTransaction,
    redirects: Sequence[tuple[PreparedRedirect, StoredMessageBlobs]],
    inserted: InsertedMessage | None,
) -> str | None:
    """Queue prepared redirects. Returns the text of the last refusal, or None.

    A refused redirect changes nothing; the others are queued. The streams of the platform and of
    the user must be locked.
    """
    error, stored_message_id = None, inserted.message_id if inserted else None
    for redirect, stored_blobs in redirects:
        forward = replace(redirect.forward, stored_message_id=stored_message_id)
        try:
            enqueue_prepared_redirect_once(
                transaction, replace(redirect, forward=forward), stored_blobs
            )
        except (NotFound, RateLimited) as refusal:
            error = redirect_error_text(forward, refusal)
    return error


def edit_counts_and_forwards_of_plan(plan: DeliveryPlan) -> list[tuple[int, OutgoingForward]]:
    """Return (edit count, forward) pairs: redirects of the script, then targets of filters."""
    recipient = plan.recipient_verdict.recipient
    forward = OutgoingForward(
        recipient.receiving_address,
        None,
        recipient.tenant_id,
        user_id=recipient.user_id,
        domain_id=recipient.domain_id,
    )
    counts_and_forwards = [
        (redirect.edit_count, replace(forward, target_addresses=[redirect.address]))
        for redirect in plan.redirects
    ]
    redirect_addresses = {redirect.address.lower() for redirect in plan.redirects}
    for target in plan.filter_result.targets:
        if "://" in target.public_url:
            counts_and_forwards.append(
                (
                    0,
                    replace(
                        forward,
                        endpoints=[
                            ForwardEndpoint(recipient.address, target.public_url, target.secret_url)
                        ],
                    ),
                )
            )
        elif target.public_url.lower() not in redirect_addresses:
            redirect_addresses.add(target.public_url.lower())
            counts_and_forwards.append((0, replace(forward, target_addresses=[target.public_url])))
    return counts_and_forwards


async def message_with_header_edits_and_unedited_parsed_form(
    incoming: IncomingMessage, plan: DeliveryPlan, edit_count: int, temporary_files: ExitStack
) -> tuple[bytes | Path, StorableMessage | None]:
    """Return the message with the first header edits applied, and its parsed form.

    The parsed form is None if the header was edited.
    """
    if not edit_count:
        return incoming.raw_message, incoming.message
    return await with_header_edits(incoming, plan.header_edits[:edit_count], temporary_files), None
