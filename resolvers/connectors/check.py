"""Check whether an account on another server can be fetched, stage by stage; nothing is stored."""

import ssl
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.connectors import mailbox_mapping
from mail.connectors.remote_server import ConnectorStage, RemoteFailure, RemoteServer
from mail.connectors.session_thread import ThreadedSession, connect_and_sign_in_session
from mail.network.outbound_http import NetworkPolicy
from models.connectors import Connector, ConnectorProtocol, ConnectorSecurity
from models.errors import RateLimited, require_found
from models.store.columns import select_columns
from resolvers.connectors import credentials
from resolvers.connectors import validation as connector_validation
from resolvers.connectors.loaders import is_visible_connector
from resolvers.context import Context

STAGES = (
    ConnectorStage.RESOLVE,
    ConnectorStage.CONNECT,
    ConnectorStage.TLS,
    ConnectorStage.GREETING,
    ConnectorStage.LOGIN,
    ConnectorStage.LIST,
)
MAX_LISTED_MAILBOXES = 1000
MAX_RUNNING_CHECKS = 8  # of one process
MAX_CHECKS_OF_VIEWER = 2  # running ones, so that checks of others can run beside them
STORED_CHECK_TIMEOUT = 30.0  # seconds without data, for stored connectors
NEW_CREDENTIAL_WARNING = (
    "The OAuth token endpoint returned a new refresh token, which was not stored. The tested one "
    "can be invalid now: request another before you create a connector."
)
_RUNNING_CHECKS = Counter[str]()  # by principal of the viewer


@dataclass(frozen=True, slots=True)
class StageResult:
    """The result of one stage of a check. The message is an error, a warning, or both."""

    stage: ConnectorStage
    ok: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class ConnectorTestResult:
    """The stages that were tried, and the capabilities and mailboxes of the server."""

    stages: Sequence[StageResult]
    capabilities: Sequence[str] = ()
    mailbox_paths: Sequence[str] = ()  # the first MAX_LISTED_MAILBOXES
    mailbox_count: int = 0
    failure: RemoteFailure | None = None


async def check_new_connector(
    ctx: Context,
    fields: Mapping[str, Any],
    password: str,
    *,
    validate_only: bool = False,
    ssl_context: ssl.SSLContext | None = None,
) -> ConnectorTestResult:
    """Connect, sign in and list the mailboxes of an account on another server.

    With `validate_only`, only the fields are validated. Raises InvalidInput if a field is wrong,
    and RateLimited if eight checks are running, or two of the viewer. A failure of the server is
    part of the result, and so is a warning if the token endpoint replaced the refresh token.
    """
    options = ctx.environment.options
    values = connector_validation.validate_connector_fields(fields, {}, options)
    credential = connector_validation.validate_secret(password)
    if validate_only:
        return ConnectorTestResult([])
    network_policy = NetworkPolicy.from_options(
        options, allows_private=options.connectors_allow_private_networks
    )
    oauth, is_token_replaced = fields.get("oauth"), False
    with _reserve_check_slot_or_raise_rate_limited(ctx, MAX_RUNNING_CHECKS):
        try:
            if oauth:
                secret = {"password": credential, "client": oauth.get("client_secret")}
                response = await credentials.request_access_token(
                    values["oauth"], secret, network_policy
                )
                credential = response["access_token"]
                is_token_replaced = bool(credentials.replaced_refresh_token(response, secret))
        except RemoteFailure as problem:
            return ConnectorTestResult(_stages_until_failure([], problem), failure=problem)
        server = _server_from_fields(values, credential)
        result = await _open_and_list_mailboxes(
            connect_and_sign_in_session(
                server, network_policy, options.message_max_size, ssl_context
            ),
            _expected_stages(values),
        )
    return _with_login_warning(result, NEW_CREDENTIAL_WARNING) if is_token_replaced else result


async def check_stored_connector(
    ctx: Context, connector_id: int, *, ssl_context: ssl.SSLContext | None = None
) -> ConnectorTestResult:
    """Check one of the viewer's connectors with its stored credential.

    Raises NotFound, and RateLimited if eight checks are running, or two of the viewer.
    """
    statement = select(*select_columns(Connector)).where(
        is_visible_connector(ctx), col(Connector.id) == connector_id
    )
    row = require_found(next(iter(await ctx.read(statement)), None), str(connector_id))
    options = ctx.environment.options
    network_policy = NetworkPolicy.from_options(
        options, allows_private=options.connectors_allow_private_networks
    )
    with _reserve_check_slot_or_raise_rate_limited(ctx, MAX_RUNNING_CHECKS):
        opening = credentials.open_session_of_connector(
            ctx.environment, row, (network_policy, ssl_context), STORED_CHECK_TIMEOUT
        )
        return await _open_and_list_mailboxes(opening, _expected_stages(row._asdict()))


@contextmanager
def _reserve_check_slot_or_raise_rate_limited(ctx: Context, max_checks: int) -> Generator[None]:
    """Count a check of this process while it runs. Raises RateLimited if there are too many."""
    principal = ctx.viewer.principal
    if _RUNNING_CHECKS.total() >= max_checks:
        text = f"{max_checks} accounts are being checked: retry later."
        raise RateLimited(text, retry_after=timedelta(seconds=10))
    if _RUNNING_CHECKS[principal] >= MAX_CHECKS_OF_VIEWER:
        text = f"You are checking {MAX_CHECKS_OF_VIEWER} accounts already: retry later."
        raise RateLimited(text, retry_after=timedelta(seconds=10))
    _RUNNING_CHECKS[principal] += 1
    try:
        yield
    finally:
        _RUNNING_CHECKS[principal] -= 1
        if not _RUNNING_CHECKS[principal]:
            del _RUNNING_CHECKS[principal]


def _server_from_fields(fields: Mapping[str, Any], credential: str) -> RemoteServer:
    return RemoteServer(
        fields["protocol"],
        fields["host"],
        fields["port"],
        fields["security"],
        fields["auth_mechanism"],
        fields["username"],
        credential,
        float(fields["remote_timeout"]),
    )


async def _open_and_list_mailboxes(
    opening: AbstractAsyncContextManager[ThreadedSession], stages: list[ConnectorStage]
) -> ConnectorTestResult:
    """Open a session and list its mailboxes. A RemoteFailure becomes the failure of the result."""
    try:
        async with opening as session:
            mailboxes = await session.run_in_thread(session.remote.list_mailboxes)
            capabilities = sorted(session.remote.capabilities)
    except RemoteFailure as problem:
        return ConnectorTestResult(_stages_until_failure(stages, problem), failure=problem)
    names = [mailbox_mapping.remote_path(mailbox) for mailbox in mailboxes[:MAX_LISTED_MAILBOXES]]
    return ConnectorTestResult(
        [StageResult(stage, ok=True) for stage in stages], capabilities, names, len(mailboxes)
    )


def _expected_stages(connector: Mapping[str, Any]) -> list[ConnectorStage]:
    """Return the stages of a check in order.

    Without TLS there is one less, and POP3 has no list.
    """
    omitted = (
        {ConnectorStage.TLS}
        if connector["security"] == ConnectorSecurity.NONE
        else set[ConnectorStage]()
    )
    if connector["protocol"] == ConnectorProtocol.POP3:
        omitted.add(ConnectorStage.LIST)
    stages = [stage for stage in STAGES if stage not in omitted]
    if connector["security"] == ConnectorSecurity.STARTTLS:
        tls_index = stages.index(ConnectorStage.TLS)
        stages[tls_index : tls_index + 2] = [ConnectorStage.GREETING, ConnectorStage.TLS]
    return stages


def _stages_until_failure(
    stages: list[ConnectorStage], failure: RemoteFailure
) -> list[StageResult]:
    """Return the stages that passed, and the failed one with its error."""
    if isinstance(failure, credentials.CredentialFailure):  # raised before a connection was opened
        return [StageResult(failure.stage, ok=False, message=failure.message)]
    failed_index = stages.index(failure.stage) if failure.stage in stages else len(stages) - 1
    passed_stages = [StageResult(stage, ok=True) for stage in stages[:failed_index]]
    return [*passed_stages, StageResult(stages[failed_index], ok=False, message=failure.message)]


def _with_login_warning(result: ConnectorTestResult, warning: str) -> ConnectorTestResult:
    """Add a warning to the stage LOGIN, or to the failed one if the check failed before it."""
    stages = list(result.stages)
    login_index = next(
        (index for index, stage in enumerate(stages) if stage.stage is ConnectorStage.LOGIN), -1
    )
    stage = stages[login_index]
    stages[login_index] = replace(stage, message="\n".join(filter(None, (stage.message, warning))))
    return replace(result, stages=stages)
