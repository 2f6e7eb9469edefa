"""Inputs and mutations that create, change and check connectors."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import strawberry
from strawberry import UNSET

from graph.connectors.types import (
    WRITE_GUARD,
    Connector,
    ConnectorsPayload,
    load_connectors_payload,
)
from graph.types.errors import MutationError, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.references import UserRef, ids_from_global_ids, load_named_user_id
from graph.types.scalars import URL, ByteSize, Duration
from mail.connectors.remote_server import ConnectorStage, RemoteFailure
from models.connectors import ConnectorProtocol, ConnectorSecurity
from models.errors import ConnectorFailure, InvalidInput
from models.users.roles import Scope
from resolvers.connectors import check
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors.options import OptionName

PLAIN_FIELDS = (
    "name", "protocol", "host", "port", "security", "username", "target_domain", "target_folder",
    "interval", "max_age", "max_bytes_per_second", "exclude", "auto_map_folders", "subscribe_all",
    "skip_cross_duplicates", "remove_duplicates", "source_retention", "mirror_deletes",
    "remote_timeout", "local_timeout", "spam_check", "virus_check", "apply_filters", "active",
)  # fmt: skip
COLUMN_BY_FIELD = {name: name for name in PLAIN_FIELDS} | {"auth_mechanism": "mechanism"}
HALF_AN_HOUR, TEN_MINUTES = timedelta(minutes=30), timedelta(minutes=10)
CHECK_TIMEOUT_RANGE = (timedelta(seconds=1), timedelta(minutes=1))
DEFAULT_EXCLUDE = "(?i)spam|(?i)junk"
NOT_ATOMIC = AtomicExclusion("a check of an account elsewhere")


@strawberry.input(description="A folder is called otherwise here.")
class FolderRewriteInput:
    pattern: str = attribute_field("An expression, searched for in the whole path.")
    replacement: str = attribute_field("What stands there instead; $1 to $9 are its groups.")


@strawberry.input(description="What is rarely needed.")
class ConnectorOptionInput:
    name: OptionName = attribute_field("Which.")
    value: str | None = attribute_field(
        "What it is set to; true and false may be left out.", default=UNSET
    )


@strawberry.input(description="Where access tokens are asked for, with password as refresh token.")
class ConnectorOauthInput:
    token_url: URL = attribute_field("Where to (RFC 6749, section 6).")
    client_id: str = attribute_field("Of us.")
    client_secret: str | None = attribute_field("Never returned.", default=UNSET)
    scope: str | None = attribute_field("What tokens are for.", default=UNSET)


def column_values(connector_input: Any) -> dict[str, Any]:
    """Return the values that an input sets, by column. Absent fields are left out.

    Raises Invalid if `deleteSource` is combined with `sourceRetention`.
    """
    values: dict[str, Any] = {}
    for name, column in COLUMN_BY_FIELD.items():
        value = _input_value(getattr(connector_input, name, UNSET))
        if value is not UNSET:
            values[column] = value
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
            text = "the same as sourceRetention PT0S: one of both"
            raise InvalidInput(text, constraint="exclusive", path=["deleteSource"])
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


@strawberry.input(description="An account elsewhere, and how its mail is fetched.")
class RemoteAccountInput:
    protocol: ConnectorProtocol = attribute_field(
        "What the server speaks: IMAP or POP3.", default=ConnectorProtocol.IMAP
    )
    host: str = attribute_field("Name or address; public, unless a setting allows others.")
    port: int | None = attribute_field("Default: that of protocol and security.", default=UNSET)
    security: ConnectorSecurity = attribute_field(
        "PLAIN only where private networks are.", default=ConnectorSecurity.TLS
    )
    username: str = attribute_field("Name of the account there.")
    password: str = attribute_field(
        "Password, or token of XOAUTH2 and OAUTHBEARER: with oauth one that refreshes. "
        "Never returned."
    )
    auth_mechanism: str = attribute_field(
        "PLAIN, LOGIN, CRAM-MD5, XOAUTH2 or OAUTHBEARER.", default="PLAIN"
    )
    oauth: ConnectorOauthInput | None = attribute_field(
        "Where tokens are asked for.", default=UNSET
    )
    target_domain: str | None = attribute_field(
        "Domain that recipients are rewritten to.", default=UNSET
    )
    max_age: Duration | None = attribute_field("What is older stays there.", default=UNSET)
    max_bytes_per_second: ByteSize = attribute_field("0 = as fast as it can.", default=0)
    exclude: str | None = attribute_field(
        "Folders that are not fetched, an expression.", default=DEFAULT_EXCLUDE
    )
    folder_rewrites: list[FolderRewriteInput] | None = attribute_field("At most 50.", default=UNSET)
    auto_map_folders: bool = attribute_field("Sent Items go to Sent, and so on.", default=True)
    skip_cross_duplicates: bool = attribute_field(
        "Of a message in two folders only the first.", default=False
    )
    remove_duplicates: bool = attribute_field(
        "What the folder here has already comes not.", default=True
    )
    delete_source: bool = attribute_field("Mail that has come is deleted there.", default=False)
    remote_timeout: Duration = attribute_field(
        "The longest silence, PT1S to PT1H.", default=TEN_MINUTES
    )
    local_timeout: Duration = attribute_field(
        "The longest wait for us, PT1S to PT1H.", default=TEN_MINUTES
    )
    custom_options: list[ConnectorOptionInput] | None = attribute_field(
        "At most 50.", default=UNSET
    )
    spam_check: bool = attribute_field(
        "What comes into INBOX goes through the spam filter.", default=True
    )
    virus_check: bool = attribute_field("And through the virus filter.", default=True)
    apply_filters: bool = attribute_field("And through the filters of the user.", default=False)


@strawberry.input(description="Input of connectorCreate.")
class ConnectorCreateInput(Options, RemoteAccountInput):
    user: UserRef | None = attribute_field("Who gets the mail; default: the viewer.", default=UNSET)
    name: str | None = attribute_field(
        "At most 255 characters; default: the account.", default=UNSET
    )
    target_folder: str | None = attribute_field("All folders are made in this one.", default=UNSET)
    interval: Duration | None = attribute_field(
        "Between two runs, more than PT4M and at most P30D; null = only when asked to.",
        default=HALF_AN_HOUR,
    )
    subscribe_all: bool = attribute_field("Folders that are made are subscribed to.", default=True)
    source_retention: Duration | None = attribute_field(
        "How long after it came a message is deleted there; null = never.", default=UNSET
    )
    mirror_deletes: bool = attribute_field("What is deleted there is deleted here.", default=False)
    active: bool = attribute_field("In force.", default=True)


@strawberry.input(description="What of connectors changes; absent = unchanged, null = none.")
class ConnectorPatch:
    user: strawberry.Maybe[UserRef] = attribute_field(
        "Who gets the mail from now on; all comes anew."
    )
    name: strawberry.Maybe[str | None] = attribute_field(
        "At most 255 characters; null = the account."
    )
    protocol: strawberry.Maybe[ConnectorProtocol] = attribute_field("What the server speaks.")
    host: strawberry.Maybe[str] = attribute_field("Name or address.")
    port: strawberry.Maybe[int | None] = attribute_field("Null = that of protocol and security.")
    security: strawberry.Maybe[ConnectorSecurity] = attribute_field(
        "How the connection is encrypted."
    )
    username: strawberry.Maybe[str] = attribute_field("Name of the account there.")
    password: strawberry.Maybe[str] = attribute_field("Another password.")
    auth_mechanism: strawberry.Maybe[str] = attribute_field("How one signs in.")
    oauth: strawberry.Maybe[ConnectorOauthInput | None] = attribute_field(
        "Where tokens are asked for."
    )
    target_domain: strawberry.Maybe[str | None] = attribute_field(
        "Domain recipients are rewritten to."
    )
    target_folder: strawberry.Maybe[str | None] = attribute_field(
        "All folders are made in this one."
    )
    interval: strawberry.Maybe[Duration | None] = attribute_field("Between two runs.")
    max_age: strawberry.Maybe[Duration | None] = attribute_field("What is older stays there.")
    max_bytes_per_second: strawberry.Maybe[ByteSize] = attribute_field("0 = as fast as it can.")
    exclude: strawberry.Maybe[str | None] = attribute_field("Folders that are not fetched.")
    folder_rewrites: strawberry.Maybe[list[FolderRewriteInput] | None] = attribute_field(
        "In place of all."
    )
    auto_map_folders: strawberry.Maybe[bool] = attribute_field("Sent Items go to Sent, and so on.")
    subscribe_all: strawberry.Maybe[bool] = attribute_field(
        "Folders that are made are subscribed to."
    )
    skip_cross_duplicates: strawberry.Maybe[bool] = attribute_field("Of two only the first.")
    remove_duplicates: strawberry.Maybe[bool] = attribute_field("What is here already comes not.")
    source_retention: strawberry.Maybe[Duration | None] = attribute_field(
        "When it is deleted there."
    )
    delete_source: strawberry.Maybe[bool] = attribute_field("True = sourceRetention PT0S.")
    mirror_deletes: strawberry.Maybe[bool] = attribute_field(
        "What is deleted there is deleted here."
    )
    remote_timeout: strawberry.Maybe[Duration] = attribute_field("The longest silence.")
    local_timeout: strawberry.Maybe[Duration] = attribute_field("The longest wait for us.")
    custom_options: strawberry.Maybe[list[ConnectorOptionInput] | None] = attribute_field(
        "In place of all."
    )
    spam_check: strawberry.Maybe[bool] = attribute_field("Through the spam filter.")
    virus_check: strawberry.Maybe[bool] = attribute_field("Through the virus filter.")
    apply_filters: strawberry.Maybe[bool] = attribute_field("Through the filters of the user.")
    active: strawberry.Maybe[bool] = attribute_field(
        "In force; one that is switched on runs at once."
    )


@strawberry.input(description="Input of connectorUpdate.")
class ConnectorUpdateInput(Options):
    ids: list[strawberry.ID] = attribute_field("Global ids.")
    set: ConnectorPatch = attribute_field("What changes.")


@strawberry.input(description="Input of connectorTest.")
class ConnectorTestInput(Options):
    protocol: ConnectorProtocol = attribute_field("What the server speaks: IMAP or POP3.")
    security: ConnectorSecurity = attribute_field("How the connection is encrypted.")
    host: str = attribute_field("Name or address.")
    port: int | None = attribute_field("Default: that of protocol and security.", default=UNSET)
    username: str = attribute_field("Name of the account there.")
    password: str = attribute_field("Its password, or token.")
    auth_mechanism: str = attribute_field("How one signs in.", default="PLAIN")
    oauth: ConnectorOauthInput | None = attribute_field(
        "Where tokens are asked for.", default=UNSET
    )
    timeout: Duration = attribute_field(
        "The longest silence, PT1S to PT1M.", default=timedelta(seconds=10)
    )


@strawberry.type(description="A stage of a check.")
class ConnectorTestStage:
    stage: ConnectorStage = attribute_field("Which.")
    ok: bool = attribute_field("It went well.")
    message: str | None = attribute_field(
        "What was wrong, in the words of the server where it has some."
    )


@strawberry.type(description="A connector, as it is now.")
class ConnectorPayload(MutationPayload):
    connector: Connector | None = attribute_field("The connector.", default=None)


@strawberry.type(description="What was found out about an account elsewhere.")
class ConnectorTestPayload(MutationPayload):
    ok: bool = attribute_field("Mail can be fetched.", default=False)
    stages: list[ConnectorTestStage] = attribute_field("As far as it went.", default_factory=list)
    capabilities: list[str] = attribute_field("What the server offers.", default_factory=list)
    folders: list[str] = attribute_field("Folders, at most 1,000.", default_factory=list)


@strawberry.type
class ConnectorEditMutation:
    @mutation("Makes a connector, which runs at once where it has an interval.", **WRITE_GUARD)
    async def connector_create(self, info: Info, input: ConnectorCreateInput) -> ConnectorPayload:
        owner = await load_named_user_id(info, input.user or None)
        key = await connector_mutations.create_connector(
            info.context, owner, column_values(input), input.password
        )
        row = await info.context.load(connector_loaders.load_visible_connectors_by_id, key)
        return ConnectorPayload(connector=Connector.from_row_or_none(row))

    @mutation(
        "Changes connectors, all or none, and forgets their failures. A run under way goes on as "
        "it began.",
        **WRITE_GUARD,
    )
    async def connector_update(self, info: Info, input: ConnectorUpdateInput) -> ConnectorsPayload:
        keys, patch = ids_from_global_ids(info, "Connector", input.ids), input.set
        password = patch.password.value if patch.password else None
        values = column_values(patch)
        if patch.user:
            values["user_id"] = await load_named_user_id(info, patch.user.value)
        await connector_mutations.update_connectors(info.context, keys, values, password)
        return await load_connectors_payload(info, keys)

    @mutation(
        "Connects to an account, signs in and lists its folders; nothing is stored. What fails is "
        "an error with its stage.",
        atomic_exclusion=NOT_ATOMIC,
        scope=Scope.SETTINGS,
    )
    async def connector_test(self, info: Info, input: ConnectorTestInput) -> ConnectorTestPayload:
        shortest, longest = CHECK_TIMEOUT_RANGE
        if not shortest <= input.timeout <= longest:
            raise InvalidInput("PT1S to PT1M", constraint="range", path=["timeout"])
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
