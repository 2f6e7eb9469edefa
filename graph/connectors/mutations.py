"""Inputs and mutations that create, change and check connectors."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import strawberry
from strawberry import UNSET

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
from graph.types.references import UserRef, load_named_user_id
from graph.types.scalars import URL, ByteSize, Duration
from mail.connectors.remote_server import ConnectorStage, RemoteFailure
from models.connectors import AuthMechanism, ConnectorProtocol, ConnectorSecurity
from models.errors import ConnectorFailure, InvalidInput
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.connectors import check
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors.options import OptionName

PLAIN_FIELDS = (
    "name", "protocol", "host", "port", "security", "auth_mechanism", "username",
    "target_domain", "target_folder",
    "interval", "max_age", "max_bytes_per_second", "exclude", "auto_map_folders", "subscribe_all",
    "skip_cross_duplicates", "remove_duplicates", "source_retention", "mirror_deletes",
    "remote_timeout", "local_timeout", "spam_check", "virus_check", "apply_filters", "active",
)  # fmt: skip
HALF_AN_HOUR, TEN_MINUTES = timedelta(minutes=30), timedelta(minutes=10)
CHECK_TIMEOUT_RANGE = (timedelta(seconds=1), timedelta(minutes=1))
DEFAULT_EXCLUDE = "(?i)spam|(?i)junk"
NOT_ATOMIC = AtomicExclusion("a check of an account elsewhere")


@strawberry.input(description="Rule that renames mailboxes of the remote server.")
class FolderRewriteInput:
    pattern: str = attribute_field(
        "Regular expression that is searched for in the whole remote path, ignoring case. The "
        "first match is replaced."
    )
    replacement: str = attribute_field(
        "Replacement of the first match. `$1` to `$9` are the groups of the match."
    )


@strawberry.input(description="Custom option of a connector.")
class ConnectorOptionInput:
    name: OptionName = attribute_field("Name of the custom option.")
    value: str | None = attribute_field(
        "Value of the option. Default: `true` for options that are on or off.", default=UNSET
    )


@strawberry.input(
    description="OAuth 2.0 token endpoint (RFC 6749). The password of the connector is the refresh "
    "token."
)
class ConnectorOauthInput:
    token_url: URL = attribute_field(
        "URL of the token endpoint. It must be `https` unless private networks are allowed."
    )
    client_id: str = attribute_field(
        "Client ID of this server at the token endpoint, at most 1,000 characters."
    )
    client_secret: str | None = attribute_field(
        "Client secret of this server at the token endpoint. It is never returned.", default=UNSET
    )
    scope: str | None = attribute_field(
        "Requested OAuth scope. Default: the scope of the refresh token.", default=UNSET
    )


def column_values(connector_input: Any) -> dict[str, Any]:
    """Return the values that an input sets, by column. Absent fields are left out.

    Raises Invalid if `deleteSource` is combined with `sourceRetention`.
    """
    values: dict[str, Any] = {}
    for name in PLAIN_FIELDS:
        value = _input_value(getattr(connector_input, name, UNSET))
        if value is not UNSET:
            values[name] = value
    for name, to_json in (
        ("folder_rewrites", _folder_rewrite_json),
        ("custom_options", _custom_option_json),
    ):
        if (items := _input_value(getattr(connector_input, name, UNSET))) is not UNSET:
            values[name] = [to_json(item) for item in items or ()]
    if (oauth := _input_value(getattr(connector_input, "oauth", UNSET))) is not UNSET:
        values["oauth"] = oauth and {
            name: getattr(oauth, name) or None
            for name in ("token_url", "client_id", "client_secret", "scope")
        }
    if _input_value(getattr(connector_input, "delete_source", UNSET)) is True:
        if values.get("source_retention"):
            text = "deleteSource and sourceRetention can't be combined"
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=["deleteSource"]
            )
        values["source_retention"] = timedelta(0)
    return values


def _input_value(field_value: Any) -> Any:
    """Return the value of an input field; UNSET if the field is absent."""
    if field_value is None or field_value is UNSET:
        return UNSET
    return field_value.value if isinstance(field_value, strawberry.Some) else field_value


def _folder_rewrite_json(rewrite_input: FolderRewriteInput) -> Mapping[str, str]:
    """Return the stored JSON of a folder rewrite."""
    return {"pattern": rewrite_input.pattern, "replacement": rewrite_input.replacement}


def _custom_option_json(option_input: ConnectorOptionInput) -> Mapping[str, str]:
    """Return the stored JSON of a custom option."""
    return {"name": OptionName(option_input.name), "value": option_input.value or ""}


@strawberry.input(description="Account on a remote server, and rules for fetching its messages.")
class RemoteAccountInput:
    protocol: ConnectorProtocol = attribute_field(
        "Protocol of the remote server: IMAP or POP3.", default=ConnectorProtocol.IMAP
    )
    host: str = attribute_field(
        "Host name or IP address of the remote server. Private networks require the setting "
        "`connectors.allowPrivateNetworks`."
    )
    port: int | None = attribute_field(
        "TCP port of the remote server. Default: IMAP 993 with TLS, else 143; POP3 995 with TLS, "
        "else 110.",
        default=UNSET,
    )
    security: ConnectorSecurity = attribute_field(
        "Encryption of the connection. NONE requires the setting "
        "`connectors.allowPrivateNetworks`.",
        default=ConnectorSecurity.TLS,
    )
    username: str = attribute_field("Username on the remote server, at most 255 characters.")
    password: str = attribute_field(
        "Password on the remote server. For XOAUTH2 and OAUTHBEARER: the access token, or with "
        "`oauth` the refresh token. It is never returned."
    )
    auth_mechanism: AuthMechanism = attribute_field(
        "SASL mechanism for signing in on the remote server.", default=AuthMechanism.PLAIN
    )
    oauth: ConnectorOauthInput | None = attribute_field(
        "Token endpoint for access tokens. Only for XOAUTH2 and OAUTHBEARER.", default=UNSET
    )
    target_domain: str | None = attribute_field(
        "Domain of the recipient address that filters see for fetched messages. Default: the "
        "domain of the user's main address.",
        default=UNSET,
    )
    max_age: Duration | None = attribute_field(
        "Maximum age of fetched messages, at least PT1M. Default: unlimited.", default=UNSET
    )
    max_bytes_per_second: ByteSize | None = attribute_field(
        "Maximum transfer rate in bytes per second, at least 1. Default: unlimited.", default=UNSET
    )
    exclude: str | None = attribute_field(
        "Regular expression for paths of remote mailboxes that are not fetched. Null: none is "
        "excluded.",
        default=DEFAULT_EXCLUDE,
    )
    folder_rewrites: list[FolderRewriteInput] | None = attribute_field(
        "Rules that rename remote mailboxes, at most 50.", default=UNSET
    )
    auto_map_folders: bool = attribute_field(
        "Maps remote mailboxes to local ones by special use or usual name, such as Sent Items to "
        "Sent.",
        default=True,
    )
    skip_cross_duplicates: bool = attribute_field(
        "Fetches a message that is in several remote mailboxes only once.", default=False
    )
    remove_duplicates: bool = attribute_field(
        "Skips messages that the local mailbox already contains.", default=True
    )
    delete_source: bool = attribute_field(
        "Deletes a message on the remote server right after it was fetched.", default=False
    )
    remote_timeout: Duration = attribute_field(
        "Maximum time without a response of the remote server, PT1S to PT1H.", default=TEN_MINUTES
    )
    local_timeout: Duration = attribute_field(
        "Maximum time of a database transaction of the run, PT1S to PT1H.", default=TEN_MINUTES
    )
    custom_options: list[ConnectorOptionInput] | None = attribute_field(
        "Custom options, at most 50.", default=UNSET
    )
    spam_check: bool = attribute_field("Scans messages fetched into INBOX for spam.", default=True)
    virus_check: bool = attribute_field("Scans fetched messages for viruses.", default=True)
    apply_filters: bool = attribute_field(
        "Runs the filters of the user on messages fetched into INBOX.", default=False
    )


@strawberry.input(description="Input of connectorCreate.")
class ConnectorCreateInput(Options, RemoteAccountInput):
    user: UserRef | None = attribute_field(
        "User who gets the messages. Default: the signed-in user.", default=UNSET
    )
    name: str | None = attribute_field(
        "Name of the connector, at most 255 characters. Default: username and host of the remote "
        "account.",
        default=UNSET,
    )
    target_folder: str | None = attribute_field(
        "Path of the local mailbox that contains all fetched mailboxes. Default: the remote "
        "hierarchy.",
        default=UNSET,
    )
    interval: Duration | None = attribute_field(
        "Time between two runs, more than PT4M and at most P30D. Null: runs are only started by "
        "`connectorStart`.",
        default=HALF_AN_HOUR,
    )
    subscribe_all: bool = attribute_field(
        "Subscribes to mailboxes that a run creates.", default=True
    )
    source_retention: Duration | None = attribute_field(
        "Time after which a fetched message is deleted on the remote server. PT0S: at once. "
        "Null: never.",
        default=UNSET,
    )
    mirror_deletes: bool = attribute_field(
        "Deletes local messages after they were deleted on the remote server. Only for IMAP. It "
        "excludes `sourceRetention`.",
        default=False,
    )
    active: bool = attribute_field("Runs the connector at its interval.", default=True)


@strawberry.input(
    description="New values of connectors. An absent field leaves the value unchanged."
)
class ConnectorPatch:
    user: strawberry.Maybe[UserRef] = attribute_field(
        "User who gets the messages. All messages are fetched again for a new user."
    )
    name: strawberry.Maybe[str | None] = attribute_field(
        "Name of the connector, at most 255 characters. Null: username and host of the remote "
        "account."
    )
    protocol: strawberry.Maybe[ConnectorProtocol] = attribute_field(
        "Protocol of the remote server: IMAP or POP3."
    )
    host: strawberry.Maybe[str] = attribute_field(
        "Host name or IP address of the remote server. A new host requires `password`."
    )
    port: strawberry.Maybe[int | None] = attribute_field(
        "TCP port of the remote server. Null: the default port of `protocol` and `security`."
    )
    security: strawberry.Maybe[ConnectorSecurity] = attribute_field(
        "Encryption of the connection. NONE requires the setting `connectors.allowPrivateNetworks`."
    )
    username: strawberry.Maybe[str] = attribute_field(
        "Username on the remote server, at most 255 characters."
    )
    password: strawberry.Maybe[str] = attribute_field(
        "Password or token on the remote server. It is required for another host or user."
    )
    auth_mechanism: strawberry.Maybe[AuthMechanism] = attribute_field(
        "SASL mechanism for signing in on the remote server."
    )
    oauth: strawberry.Maybe[ConnectorOauthInput | None] = attribute_field(
        "Token endpoint for access tokens. Only for XOAUTH2 and OAUTHBEARER. Null: the password "
        "is used as it is."
    )
    target_domain: strawberry.Maybe[str | None] = attribute_field(
        "Domain of the recipient address that filters see for fetched messages. Null: the domain "
        "of the user's main address."
    )
    target_folder: strawberry.Maybe[str | None] = attribute_field(
        "Path of the local mailbox that contains all fetched mailboxes. Null: the remote hierarchy."
    )
    interval: strawberry.Maybe[Duration | None] = attribute_field(
        "Time between two runs, more than PT4M and at most P30D. Null: runs are only started by "
        "`connectorStart`."
    )
    max_age: strawberry.Maybe[Duration | None] = attribute_field(
        "Maximum age of fetched messages, at least PT1M. Null: unlimited."
    )
    max_bytes_per_second: strawberry.Maybe[ByteSize | None] = attribute_field(
        "Maximum transfer rate in bytes per second, at least 1. Null: unlimited."
    )
    exclude: strawberry.Maybe[str | None] = attribute_field(
        "Regular expression for paths of remote mailboxes that are not fetched. Null: none is "
        "excluded."
    )
    folder_rewrites: strawberry.Maybe[list[FolderRewriteInput] | None] = attribute_field(
        "All rules that rename remote mailboxes, at most 50. They replace the stored rules."
    )
    auto_map_folders: strawberry.Maybe[bool] = attribute_field(
        "Maps remote mailboxes to local ones by special use or usual name, such as Sent Items to "
        "Sent."
    )
    subscribe_all: strawberry.Maybe[bool] = attribute_field(
        "Subscribes to mailboxes that a run creates."
    )
    skip_cross_duplicates: strawberry.Maybe[bool] = attribute_field(
        "Fetches a message that is in several remote mailboxes only once."
    )
    remove_duplicates: strawberry.Maybe[bool] = attribute_field(
        "Skips messages that the local mailbox already contains."
    )
    source_retention: strawberry.Maybe[Duration | None] = attribute_field(
        "Time after which a fetched message is deleted on the remote server. PT0S: at once. Null: "
        "never."
    )
    delete_source: strawberry.Maybe[bool] = attribute_field("True sets `sourceRetention` to PT0S.")
    mirror_deletes: strawberry.Maybe[bool] = attribute_field(
        "Deletes local messages after they were deleted on the remote server. Only for IMAP. It "
        "excludes `sourceRetention`."
    )
    remote_timeout: strawberry.Maybe[Duration] = attribute_field(
        "Maximum time without a response of the remote server, PT1S to PT1H."
    )
    local_timeout: strawberry.Maybe[Duration] = attribute_field(
        "Maximum time of a database transaction of the run, PT1S to PT1H."
    )
    custom_options: strawberry.Maybe[list[ConnectorOptionInput] | None] = attribute_field(
        "All custom options, at most 50. They replace the stored options."
    )
    spam_check: strawberry.Maybe[bool] = attribute_field(
        "Scans messages fetched into INBOX for spam."
    )
    virus_check: strawberry.Maybe[bool] = attribute_field("Scans fetched messages for viruses.")
    apply_filters: strawberry.Maybe[bool] = attribute_field(
        "Runs the filters of the user on messages fetched into INBOX."
    )
    active: strawberry.Maybe[bool] = attribute_field(
        "Runs the connector at its interval. An activated connector runs at once."
    )


@strawberry.input(description="Input of connectorUpdate.")
class ConnectorUpdateInput(Options):
    connectors: list[ConnectorRef] = attribute_field("Connectors to change.")
    set: ConnectorPatch = attribute_field("New values for all of the connectors.")


@strawberry.input(description="Input of connectorTest.")
class ConnectorTestInput(Options):
    protocol: ConnectorProtocol = attribute_field("Protocol of the remote server: IMAP or POP3.")
    security: ConnectorSecurity = attribute_field(
        "Encryption of the connection. NONE requires the setting `connectors.allowPrivateNetworks`."
    )
    host: str = attribute_field("Host name or IP address of the remote server.")
    port: int | None = attribute_field(
        "TCP port of the remote server. Default: IMAP 993 with TLS, else 143; POP3 995 with TLS, "
        "else 110.",
        default=UNSET,
    )
    username: str = attribute_field("Username on the remote server, at most 255 characters.")
    password: str = attribute_field(
        "Password on the remote server. For XOAUTH2 and OAUTHBEARER: the access token, or with "
        "`oauth` the refresh token. It is not stored."
    )
    auth_mechanism: AuthMechanism = attribute_field(
        "SASL mechanism for signing in on the remote server.", default=AuthMechanism.PLAIN
    )
    oauth: ConnectorOauthInput | None = attribute_field(
        "Token endpoint for access tokens. Only for XOAUTH2 and OAUTHBEARER.", default=UNSET
    )
    timeout: Duration = attribute_field(
        "Maximum time without a response of the remote server, PT1S to PT1M.",
        default=timedelta(seconds=10),
    )


@strawberry.type(description="Result of one stage of connectorTest.")
class ConnectorTestStage:
    stage: ConnectorStage = attribute_field("Tested stage.")
    ok: bool = attribute_field("True if the stage succeeded.")
    message: str | None = attribute_field(
        "Error of the stage, in the words of the remote server if it sent a text. Null: the stage "
        "succeeded."
    )


@strawberry.type(description="Payload of connectorCreate.")
class ConnectorPayload(MutationPayload):
    connector: Connector | None = attribute_field("Created connector.", default=None)


@strawberry.type(description="Payload of connectorTest.")
class ConnectorTestPayload(MutationPayload):
    ok: bool = attribute_field("True if messages can be fetched.", default=False)
    stages: list[ConnectorTestStage] = attribute_field(
        "Stages of the test that were reached.", default_factory=list
    )
    capabilities: list[str] = attribute_field(
        "Capabilities that the remote server announced.", default_factory=list
    )
    folders: list[str] = attribute_field(
        "Paths of the remote mailboxes, at most 1,000.", default_factory=list
    )


@strawberry.type
class ConnectorEditMutation:
    @mutation(
        "Creates a connector. It runs at once if it is active and has an interval.", **WRITE_GUARD
    )
    async def connector_create(self, info: Info, input: ConnectorCreateInput) -> ConnectorPayload:
        owner = await load_named_user_id(info, input.user or None)
        key = await connector_mutations.create_connector(
            info.context, owner, column_values(input), input.password
        )
        row = await info.context.load(connector_loaders.load_visible_connectors_by_id, key)
        return ConnectorPayload(connector=Connector.from_row_or_none(row))

    @mutation(
        "Updates connectors, all or none, and resets their failures. A run in progress continues "
        "with the old values.",
        **WRITE_GUARD,
    )
    async def connector_update(self, info: Info, input: ConnectorUpdateInput) -> ConnectorsPayload:
        keys, patch = ids_from_refs(info, input.connectors, "connectors"), input.set
        password = patch.password.value if patch.password else None
        values = column_values(patch)
        if patch.user:
            values["user_id"] = await load_named_user_id(info, patch.user.value)
        await connector_mutations.update_connectors(info.context, keys, values, password)
        return await load_connectors_payload(info, keys)

    @mutation(
        "Connects to a remote account, signs in and lists its mailboxes, without storing "
        "anything. A failure is a ConnectorFailureError with its stage.",
        atomic_exclusion=NOT_ATOMIC,
        scope=Scope.SETTINGS,
    )
    async def connector_test(self, info: Info, input: ConnectorTestInput) -> ConnectorTestPayload:
        shortest, longest = CHECK_TIMEOUT_RANGE
        if not shortest <= input.timeout <= longest:
            raise InvalidInput(
                "From PT1S to PT1M", constraint=ValidationConstraint.RANGE, path=["timeout"]
            )
        values = {**column_values(input), "remote_timeout": input.timeout}
        is_dry_run = bool(input.options and input.options.validate_only)
        result = await check.check_new_connector(
            info.context, values, input.password, validate_only=is_dry_run
        )
        return ConnectorTestPayload(
            errors=[MutationError.from_error(_connector_failure(result.failure), [])]
            if result.failure
            else [],
            ok=result.failure is None,
            stages=[
                ConnectorTestStage(stage=stage.stage, ok=stage.ok, message=stage.error or None)
                for stage in result.stages
            ],
            capabilities=list(result.capabilities),
            folders=list(result.mailbox_paths),
        )


def _connector_failure(failure: RemoteFailure) -> ConnectorFailure:
    """Return the typed error of a failed check.

    It has the text of the remote server if that refused.
    """
    remote_message = failure.message if failure.is_permanent else None
    return ConnectorFailure(failure.message, stage=failure.stage, remote_message=remote_message)
