"""Post one event to a webhook."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import orjson

from mail.network.outbound_http import (
    HttpRequestFailed,
    NetworkPolicy,
    parse_http_target,
    post_and_return_status,
    status_problem,
)
from models.errors import InvalidInput
from models.observability import metrics
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow
from resolvers.notifications.webhook_signatures import signed_headers

log = logging.getLogger(__name__)
POST_RESULTS = metrics.counter(
    "merganser_webhook_posts", "Requests to webhooks by result.", "result"
)
POST_SECONDS = metrics.histogram(
    "merganser_webhook_post_seconds", "Duration of a request to a webhook."
)
BodyBuilder = Callable[[Any], dict[str, Any]]  # builds the JSON body of a delivery row


@dataclass(frozen=True, slots=True)
class PostResult:
    """The result of a post."""

    status: int | None
    error: str | None
    duration: float  # seconds

    @property
    def is_success(self) -> bool:
        """True if the receiver has accepted the event."""
        return self.error is None


async def post_event_to_webhook(
    environment: Environment,
    network_policy: NetworkPolicy,
    build_body: BodyBuilder,
    webhook: ColumnRow,
    delivery: ColumnRow,
) -> PostResult:
    """Post one event. Failures are part of the result."""
    started = monotonic()
    status, error = None, None
    try:
        allow_private = (
            network_policy.allows_private or environment.options.webhooks_allow_private_networks
        )
        endpoint = parse_http_target(webhook.url, allow_private=allow_private)
        body = orjson.dumps(build_body(delivery))
        headers = signed_headers(environment, webhook, delivery.event, body)
        status = await post_and_return_status(
            endpoint, headers, body, replace(network_policy, allows_private=allow_private)
        )
        error = status_problem(status)
    except InvalidInput as problem:  # accepted under earlier settings
        error = problem.message
    except HttpRequestFailed as problem:
        error = str(problem)
    except DecryptionError:
        error = "The secret of the webhook can't be decrypted."
    took = monotonic() - started
    POST_RESULTS.add("failed" if error else "taken")
    POST_SECONDS.observe(took)
    facts = {"webhook": webhook.id, "delivery": delivery.id, "status": status, "error": error}
    log.info("Webhook request sent" if error is None else "Webhook request failed", extra=facts)
    return PostResult(status, error, took)
