"""Inputs and mutations that create, change and check connectors."""

from datetime import timedelta

import strawberry

from graph.connectors.inputs import (
    ConnectorCreateInput,
    ConnectorPatch,
    RemoteServerInput,
    validated_connector_column_values,
)
from graph.connectors.types import (
    WRITE_GUARD,
    Connector,
    ConnectorRef,
    ConnectorsPayload,
    load_connectors_payload,
)
from graph.types.errors import MutationError, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_references import ids_from_refs
from graph.types.references import require_visible_user_id_if_named
from graph.types.scalars import Duration
from mail.connectors.remote_server import ConnectorStage, RemoteFailure
from models.errors import ConnectorFailure, InvalidInput
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.connectors import check
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mutations as connector_mutations

CHECK_TIMEOUT_RANGE = (timedelta(seconds=1), timedelta(minutes=1))
NOT_ATOMIC = AtomicExclusion("A check of a remote account")


@strawberry.input(description="Input of connectorUpdate.")
class ConnectorUpdateInput(Options):
    connectors: list[ConnectorRef] = attribute_field("Connectors to change, 1 to 1,000 by default.")
    set: ConnectorPatch = attribute_field(
        "New values, the same for all connectors. At least one value is required."
    )


@strawberry.input(description="Input of connectorTest.")
class ConnectorTestInput(Options):
    server: RemoteServerInput = attribute_field("Remote server to test.")
    timeout: Duration = attribute_field(
        "Maximum time without a response of the remote server, PT1S to PT1M.",
        default=timedelta(seconds=10),
    )


@strawberry.type(description="Result of one stage of connectorTest.")
class ConnectorTestStage:
    stage: ConnectorStage = attribute_field("Tested stage.")
    ok: bool = attribute_field("True if the stage succeeded.")
    message: str | None = attribute_field(
        "Error of the tested stage, in the words of the remote server if it sent a text. Also a "
        "warning, on LOGIN or on an earlier stage that failed: the OAuth token endpoint replaced "
        "the refresh token, so that the tested one can be invalid now. Null: the stage succeeded "
        "without a warning."
    )


@strawberry.type(description="Payload of connectorCreate.")
class ConnectorPayload(MutationPayload):
    connector: Connector | None = attribute_field(
        "Created connector. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of connectorTest.")
class ConnectorTestPayload(MutationPayload):
    ok: bool = attribute_field(
        "True if every stage of the test succeeded. Also true with `validateOnly`, which only "
        "checks the input.",
        default=False,
    )
    stages: list[ConnectorTestStage] = attribute_field(
        "Stages of the test that were reached, in their order. If the test failed, the last one "
        "has the error. Empty with `validateOnly`.",
        default_factory=list,
    )
    capabilities: list[str] = attribute_field(
        "Capabilities that the remote server announced after the sign-in, in alphabetical order. "
        "Empty if the test failed.",
        default_factory=list,
    )
    folders: list[str] = attribute_field(
        "Paths of the remote mailboxes, with `/` between levels: at most the first 1,000. "
        "`folderCount` counts all. POP3 has only INBOX. Empty if the test failed.",
        default_factory=list,
    )
    folder_count: int = attribute_field(
        "Number of remote mailboxes, including those that `folders` leaves out. 0 if the test "
        "failed.",
        default=0,
    )


@strawberry.type
class ConnectorEditMutation:
    @mutation(
        "Creates a connector, which fetches messages for a user from an account on a remote "
        "server. The connection is not tested; `connectorTest` does that. An active connector "
        "with an interval runs at once, others only after `connectorStart`. While the user is "
        "inactive, no run starts. The creation is in the security log of the user, who gets a "
        "message if somebody else did it. LIMIT_REACHED if the user already has 50 connectors.",
        **WRITE_GUARD,
    )
    async def connector_create(self, info: Info, input: ConnectorCreateInput) -> ConnectorPayload:
        owner = await require_visible_user_id_if_named(info, input.user or None)
        key = await connector_mutations.create_connector(
            info.context, owner, validated_connector_column_values(input), input.server.password
        )
        row = await info.context.load(connector_loaders.load_visible_connectors_by_id, key)
        return ConnectorPayload(connector=Connector.from_row_or_none(row))

    @mutation(
        "Changes connectors, all or none, and resets their counter of failed runs. A run in "
        "progress continues with the old values. The change is in the security log of the user "
        "who had the connector before the change. This user gets a message if somebody else makes "
        "it. CONFLICT if `set.user` would give a connector to another account while a run is "
        "queued or in progress: cancel the run first. LIMIT_REACHED if that account already has "
        "50 connectors, or for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def connector_update(self, info: Info, input: ConnectorUpdateInput) -> ConnectorsPayload:
        keys, patch = ids_from_refs(info, input.connectors, "connectors"), input.set
        server = patch.server.value if patch.server else None
        password = server.password.value if server and server.password else None
        values = validated_connector_column_values(patch)
        if patch.user:
            values["user_id"] = await require_visible_user_id_if_named(info, patch.user.value)
        await connector_mutations.update_connectors(info.context, keys, values, password)
        return await load_connectors_payload(info, keys)

    @mutation(
        "Connects to a remote account, signs in and lists its mailboxes, without storing "
        "anything. With `oauth`, it first requests an access token. If the token endpoint then "
        "replaces the refresh token, the new one is lost and a stage has a warning. "
        "CONNECTOR_FAILURE, with the stage, if the remote server can't be reached or refuses the "
        "connection. With `validateOnly` only the input is checked. A process runs at most 8 "
        "tests at once, and 2 of one caller, else RATE_LIMITED.",
        atomic_exclusion=NOT_ATOMIC,
        scope=Scope.SETTINGS,
    )
    async def connector_test(self, info: Info, input: ConnectorTestInput) -> ConnectorTestPayload:
        shortest, longest = CHECK_TIMEOUT_RANGE
        if not shortest <= input.timeout <= longest:
            raise InvalidInput(
                "The time must be from PT1S to PT1M.",
                constraint=ValidationConstraint.RANGE,
                path=["timeout"],
            )
        values = {**validated_connector_column_values(input), "remote_timeout": input.timeout}
        is_dry_run = bool(input.options and input.options.validate_only)
        result = await check.check_new_connector(
            info.context, values, input.server.password, validate_only=is_dry_run
        )
        return ConnectorTestPayload(
            errors=[MutationError.from_error(_connector_failure(result.failure), [])]
            if result.failure
            else [],
            ok=result.failure is None,
            stages=[
                ConnectorTestStage(stage=stage.stage, ok=stage.ok, message=stage.message or None)
                for stage in result.stages
            ],
            capabilities=list(result.capabilities),
            folders=list(result.mailbox_paths),
            folder_count=result.mailbox_count,
        )


def _connector_failure(failure: RemoteFailure) -> ConnectorFailure:
    """Return the typed error of a failed check.

    It has the text of the remote server if that refused.
    """
    remote_message = failure.message if failure.is_permanent else None
    return ConnectorFailure(failure.message, stage=failure.stage, remote_message=remote_message)
