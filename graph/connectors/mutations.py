"""Inputs and mutations that create, change and check connectors."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import strawberry
from strawberry import UNSET

from graph.connectors.types import WRITES, Connector, ConnectorsPayload, connectors_now
from graph.types.errors import MutationError, MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import Alone, mutation
from graph.types.references import UserRef, keys_of, owner_named
from graph.types.scalars import URL, ByteSize, Duration
from mail.connectors.remote_server import Failure, Stage
from models.connectors import Protocol, Security
from models.errors import ConnectorFailure, Invalid
from models.users.roles import Scope
from resolvers.connectors import check
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors.options import OptionName

PLAIN = (
    "name", "protocol", "host", "port", "security", "username", "target_domain", "target_folder",
    "interval", "max_age", "max_bytes_per_second", "exclude", "auto_map_folders", "subscribe_all",
    "skip_cross_duplicates", "remove_duplicates", "source_retention", "mirror_deletes",
    "remote_timeout", "local_timeout", "spam_check", "virus_check", "apply_filters", "active",
)  # fmt: skip
COLUMNS = {name: name for name in PLAIN} | {"auth_mechanism": "mechanism"}
HALF_AN_HOUR, TEN_MINUTES = timedelta(minutes=30), timedelta(minutes=10)
CHECK = (timedelta(seconds=1), timedelta(minutes=1))
UNWANTED = "(?i)spam|(?i)junk"
ASKS = Alone("a check of an account elsewhere")


@strawberry.input(description="A folder is called otherwise here.")
class FolderRewriteInput:
    pattern: str = leaf("An expression, searched for in the whole path.")
    replacement: str = leaf("What stands there instead; $1 to $9 are its groups.")


@strawberry.input(description="What is rarely needed.")
class ConnectorOptionInput:
    name: OptionName = leaf("Which.")
    value: str | None = leaf("What it is set to; true and false may be left out.", default=UNSET)


@strawberry.input(description="Where access tokens are asked for, with password as refresh token.")
class ConnectorOauthInput:
    token_url: URL = leaf("Where to (RFC 6749, section 6).")
    client_id: str = leaf("Of us.")
    client_secret: str | None = leaf("Never returned.", default=UNSET)
    scope: str | None = leaf("What tokens are for.", default=UNSET)


def said(given: Any) -> dict[str, Any]:
    """Return the values that an input sets, by column. Absent fields are left out.

    Raises Invalid if `deleteSource` is combined with `sourceRetention`.
    """
    values: dict[str, Any] = {}
    for name, column in COLUMNS.items():
        value = _value(getattr(given, name, UNSET))
        if value is not UNSET:
            values[column] = value
    for name, to_json in (("folder_rewrites", _rewrite), ("custom_options", _option)):
        if (items := _value(getattr(given, name, UNSET))) is not UNSET:
            values[name] = [to_json(item) for item in items or ()]
    if (oauth := _value(getattr(given, "oauth", UNSET))) is not UNSET:
        values["oauth"] = oauth and {
            name: getattr(oauth, name) or None
            for name in ("token_url", "client_id", "client_secret", "scope")
        }
    if _value(getattr(given, "delete_source", UNSET)) is True:
        if values.get("source_retention"):
            text = "the same as sourceRetention PT0S: one of both"
            raise Invalid(text, constraint="exclusive", path=["deleteSource"])
        values["source_retention"] = timedelta(0)
    return values


def _value(given: Any) -> Any:
    """Return the value of an input field; UNSET if the field is absent."""
    if given is None or given is UNSET:
        return UNSET
    return given.value if isinstance(given, strawberry.Some) else given


def _rewrite(one: FolderRewriteInput) -> Mapping[str, str]:
    """Return the stored JSON of a folder rewrite."""
    return {"pattern": one.pattern, "replacement": one.replacement}


def _option(one: ConnectorOptionInput) -> Mapping[str, str]:
    """Return the stored JSON of a custom option."""
    return {"name": OptionName(one.name), "value": one.value or ""}


@strawberry.input(description="An account elsewhere, and how its mail is fetched.")
class AccountElsewhere:
    protocol: Protocol = leaf("What the server speaks: IMAP or POP3.", default=Protocol.IMAP)
    host: str = leaf("Name or address; public, unless a setting allows others.")
    port: int | None = leaf("Default: that of protocol and security.", default=UNSET)
    security: Security = leaf("PLAIN only where private networks are.", default=Security.TLS)
    username: str = leaf("Name of the account there.")
    password: str = leaf(
        "Password, or token of XOAUTH2 and OAUTHBEARER: with oauth one that refreshes. "
        "Never returned."
    )
    auth_mechanism: str = leaf("PLAIN, LOGIN, CRAM-MD5, XOAUTH2 or OAUTHBEARER.", default="PLAIN")
    oauth: ConnectorOauthInput | None = leaf("Where tokens are asked for.", default=UNSET)
    target_domain: str | None = leaf("Domain that recipients are rewritten to.", default=UNSET)
    max_age: Duration | None = leaf("What is older stays there.", default=UNSET)
    max_bytes_per_second: ByteSize = leaf("0 = as fast as it can.", default=0)
    exclude: str | None = leaf("Folders that are not fetched, an expression.", default=UNWANTED)
    folder_rewrites: list[FolderRewriteInput] | None = leaf("At most 50.", default=UNSET)
    auto_map_folders: bool = leaf("Sent Items go to Sent, and so on.", default=True)
    skip_cross_duplicates: bool = leaf("Of a message in two folders only the first.", default=False)
    remove_duplicates: bool = leaf("What the folder here has already comes not.", default=True)
    delete_source: bool = leaf("Mail that has come is deleted there.", default=False)
    remote_timeout: Duration = leaf("The longest silence, PT1S to PT1H.", default=TEN_MINUTES)
    local_timeout: Duration = leaf("The longest wait for us, PT1S to PT1H.", default=TEN_MINUTES)
    custom_options: list[ConnectorOptionInput] | None = leaf("At most 50.", default=UNSET)
    spam_check: bool = leaf("What comes into INBOX goes through the spam filter.", default=True)
    virus_check: bool = leaf("And through the virus filter.", default=True)
    apply_filters: bool = leaf("And through the filters of the user.", default=False)


@strawberry.input(description="Input of connectorCreate.")
class ConnectorCreateInput(Options, AccountElsewhere):
    user: UserRef | None = leaf("Who gets the mail; default: the viewer.", default=UNSET)
    name: str | None = leaf("At most 255 characters; default: the account.", default=UNSET)
    target_folder: str | None = leaf("All folders are made in this one.", default=UNSET)
    interval: Duration | None = leaf(
        "Between two runs, more than PT4M and at most P30D; null = only when asked to.",
        default=HALF_AN_HOUR,
    )
    subscribe_all: bool = leaf("Folders that are made are subscribed to.", default=True)
    source_retention: Duration | None = leaf(
        "How long after it came a message is deleted there; null = never.", default=UNSET
    )
    mirror_deletes: bool = leaf("What is deleted there is deleted here.", default=False)
    active: bool = leaf("In force.", default=True)


@strawberry.input(description="What of connectors changes; absent = unchanged, null = none.")
class ConnectorPatch:
    user: strawberry.Maybe[UserRef] = leaf("Who gets the mail from now on; all comes anew.")
    name: strawberry.Maybe[str | None] = leaf("At most 255 characters; null = the account.")
    protocol: strawberry.Maybe[Protocol] = leaf("What the server speaks.")
    host: strawberry.Maybe[str] = leaf("Name or address.")
    port: strawberry.Maybe[int | None] = leaf("Null = that of protocol and security.")
    security: strawberry.Maybe[Security] = leaf("How the connection is encrypted.")
    username: strawberry.Maybe[str] = leaf("Name of the account there.")
    password: strawberry.Maybe[str] = leaf("Another password.")
    auth_mechanism: strawberry.Maybe[str] = leaf("How one signs in.")
    oauth: strawberry.Maybe[ConnectorOauthInput | None] = leaf("Where tokens are asked for.")
    target_domain: strawberry.Maybe[str | None] = leaf("Domain recipients are rewritten to.")
    target_folder: strawberry.Maybe[str | None] = leaf("All folders are made in this one.")
    interval: strawberry.Maybe[Duration | None] = leaf("Between two runs.")
    max_age: strawberry.Maybe[Duration | None] = leaf("What is older stays there.")
    max_bytes_per_second: strawberry.Maybe[ByteSize] = leaf("0 = as fast as it can.")
    exclude: strawberry.Maybe[str | None] = leaf("Folders that are not fetched.")
    folder_rewrites: strawberry.Maybe[list[FolderRewriteInput] | None] = leaf("In place of all.")
    auto_map_folders: strawberry.Maybe[bool] = leaf("Sent Items go to Sent, and so on.")
    subscribe_all: strawberry.Maybe[bool] = leaf("Folders that are made are subscribed to.")
    skip_cross_duplicates: strawberry.Maybe[bool] = leaf("Of two only the first.")
    remove_duplicates: strawberry.Maybe[bool] = leaf("What is here already comes not.")
    source_retention: strawberry.Maybe[Duration | None] = leaf("When it is deleted there.")
    delete_source: strawberry.Maybe[bool] = leaf("True = sourceRetention PT0S.")
    mirror_deletes: strawberry.Maybe[bool] = leaf("What is deleted there is deleted here.")
    remote_timeout: strawberry.Maybe[Duration] = leaf("The longest silence.")
    local_timeout: strawberry.Maybe[Duration] = leaf("The longest wait for us.")
    custom_options: strawberry.Maybe[list[ConnectorOptionInput] | None] = leaf("In place of all.")
    spam_check: strawberry.Maybe[bool] = leaf("Through the spam filter.")
    virus_check: strawberry.Maybe[bool] = leaf("Through the virus filter.")
    apply_filters: strawberry.Maybe[bool] = leaf("Through the filters of the user.")
    active: strawberry.Maybe[bool] = leaf("In force; one that is switched on runs at once.")


@strawberry.input(description="Input of connectorUpdate.")
class ConnectorUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    set: ConnectorPatch = leaf("What changes.")


@strawberry.input(description="Input of connectorCheck.")
class ConnectorCheckInput(Options):
    protocol: Protocol = leaf("What the server speaks: IMAP or POP3.")
    security: Security = leaf("How the connection is encrypted.")
    host: str = leaf("Name or address.")
    port: int | None = leaf("Default: that of protocol and security.", default=UNSET)
    username: str = leaf("Name of the account there.")
    password: str = leaf("Its password, or token.")
    auth_mechanism: str = leaf("How one signs in.", default="PLAIN")
    oauth: ConnectorOauthInput | None = leaf("Where tokens are asked for.", default=UNSET)
    timeout: Duration = leaf("The longest silence, PT1S to PT1M.", default=timedelta(seconds=10))


@strawberry.type(description="A stage of a check.")
class ConnectorCheckStage:
    stage: Stage = leaf("Which.")
    ok: bool = leaf("It went well.")
    message: str | None = leaf("What was wrong, in the words of the server where it has some.")


@strawberry.type(description="A connector, as it is now.")
class ConnectorPayload(MutationPayload):
    connector: Connector | None = leaf("The connector.", default=None)


@strawberry.type(description="What was found out about an account elsewhere.")
class ConnectorCheckPayload(MutationPayload):
    ok: bool = leaf("Mail can be fetched.", default=False)
    stages: list[ConnectorCheckStage] = leaf("As far as it went.", default_factory=list)
    capabilities: list[str] = leaf("What the server offers.", default_factory=list)
    folders: list[str] = leaf("Folders, at most 1,000.", default_factory=list)


@strawberry.type
class ConnectorFormMutation:
    @mutation("Makes a connector, which runs at once where it has an interval.", **WRITES)
    async def connector_create(self, info: Info, input: ConnectorCreateInput) -> ConnectorPayload:
        owner = await owner_named(info, input.user or None)
        key = await connector_mutations.create(info.context, owner, said(input), input.password)
        row = await info.context.load(connector_loaders.by_ids, key)
        return ConnectorPayload(connector=Connector.maybe(row))

    @mutation(
        "Changes connectors, all or none, and forgets their failures. A run under way goes on as "
        "it began.",
        **WRITES,
    )
    async def connector_update(self, info: Info, input: ConnectorUpdateInput) -> ConnectorsPayload:
        keys, patch = keys_of(info, "Connector", input.ids), input.set
        password = patch.password.value if patch.password else None
        values = said(patch)
        if patch.user:
            values["user_id"] = await owner_named(info, patch.user.value)
        await connector_mutations.change(info.context, keys, values, password)
        return await connectors_now(info, keys)

    @mutation(
        "Connects to an account, signs in and lists its folders; nothing is stored. What fails is "
        "an error with its stage.",
        alone=ASKS,
        scope=Scope.SETTINGS,
    )
    async def connector_check(
        self, info: Info, input: ConnectorCheckInput
    ) -> ConnectorCheckPayload:
        shortest, longest = CHECK
        if not shortest <= input.timeout <= longest:
            raise Invalid("PT1S to PT1M", constraint="range", path=["timeout"])
        values = {**said(input), "remote_timeout": input.timeout}
        is_dry_run = bool(input.options and input.options.validate_only)
        result = await check.check(info.context, values, input.password, trial=is_dry_run)
        return ConnectorCheckPayload(
            errors=[MutationError.of(_failure(result.failure))] if result.failure else [],
            ok=result.failure is None,
            stages=[
                ConnectorCheckStage(stage=stage.stage, ok=stage.ok, message=stage.said or None)
                for stage in result.stages
            ],
            capabilities=list(result.capabilities),
            folders=list(result.folders),
        )


def _failure(problem: Failure) -> ConnectorFailure:
    """Return the typed error of a failed check.

    It has the text of the remote server if that refused.
    """
    remote_message = problem.message if problem.refused else None
    return ConnectorFailure(problem.message, stage=problem.stage, remote_message=remote_message)
