"""Inputs of connectors and of accounts on remote servers."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import strawberry
from strawberry import UNSET

from graph.types.errors import Options, attribute_field
from graph.types.references import UserRef
from graph.types.scalars import URL, ByteSize, Duration
from models.connectors import AuthMechanism, ConnectorProtocol, ConnectorSecurity
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers.connectors.options import OptionName

SERVER_FIELDS = ("protocol", "host", "port", "security", "auth_mechanism", "username")
PLAIN_FIELDS = (
    "name", "target_domain", "target_folder",
    "interval", "max_age", "max_bytes_per_second", "exclude", "auto_map_folders", "subscribe_all",
    "skip_cross_duplicates", "remove_duplicates", "source_retention", "mirror_deletes",
    "remote_timeout", "local_timeout", "spam_check", "virus_check", "apply_filters", "active",
)  # fmt: skip


HALF_AN_HOUR, TEN_MINUTES = timedelta(minutes=30), timedelta(minutes=10)
DEFAULT_EXCLUDE = "(?i)spam|(?i)junk"


@strawberry.input(description="Rule that renames mailboxes of the remote server.")
class FolderRewriteInput:
    pattern: str = attribute_field(
        "Regular expression of 1 to 200 characters, without look-around and back-references. It is "
        "searched for, ignoring case, in the path that the previous rules return. The first rule "
        "gets the remote path, with `/` between levels. The first match is replaced. Rules don't "
        "apply to mailboxes that `autoMapFolders` maps."
    )
    replacement: str = attribute_field(
        "Replacement of the first match in the path of a mailbox, at most 255 characters. `$1` to "
        "`$9` are the groups of the match, `$$` is a dollar sign."
    )


@strawberry.input(description="Custom option of a connector.")
class ConnectorOptionInput:
    name: OptionName = attribute_field("Name of the custom option.")
    value: str | None = attribute_field(
        "Value of the custom option. Absent, null or empty means `true` for DRY_RUN, SUBSCRIBED, "
        "NO_FLAGS and IDLE, which are on or off. The other options require a value.",
        default=UNSET,
    )


@strawberry.input(
    description="OAuth 2.0 token endpoint (RFC 6749). The password of the connector is the refresh "
    "token."
)
class ConnectorOauthInput:
    token_url: URL = attribute_field(
        "URL of the token endpoint. Without the setting `connectors.allowPrivateNetworks` it must "
        "begin with `https://`, and its host can't be in a private network."
    )
    client_id: str = attribute_field(
        "Client ID of this server at the token endpoint, at most 1,000 characters."
    )
    client_secret: str | None = attribute_field(
        "Client secret of this server at the token endpoint, 1 to 8,192 characters. It is never "
        "returned. Default, and with null: the stored secret if `tokenUrl` and `clientId` stay "
        "the same, else none.",
        default=UNSET,
    )
    scope: str | None = attribute_field(
        "Requested OAuth scope, at most 1,000 characters. Default, and with null: none is "
        "requested, so that the scope of the refresh token applies.",
        default=UNSET,
    )


def validated_connector_column_values(connector_input: Any) -> dict[str, Any]:
    """Return the values that an input and its `server` set, by column, without the password.

    Absent fields are left out. Raises InvalidInput if `deleteSource` is combined with
    `sourceRetention`.
    """
    server_input = _input_value(getattr(connector_input, "server", UNSET))
    values: dict[str, Any] = {}
    for owner, names in ((connector_input, PLAIN_FIELDS), (server_input, SERVER_FIELDS)):
        for name in names:
            if (value := _input_value(getattr(owner, name, UNSET))) is not UNSET:
                values[name] = value
    for name, to_json in (
        ("folder_rewrites", _folder_rewrite_json),
        ("custom_options", _custom_option_json),
    ):
        if (items := _input_value(getattr(connector_input, name, UNSET))) is not UNSET:
            values[name] = [to_json(item) for item in items or ()]
    if (oauth := _input_value(getattr(server_input, "oauth", UNSET))) is not UNSET:
        values["oauth"] = oauth and {
            name: getattr(oauth, name) or None
            for name in ("token_url", "client_id", "client_secret", "scope")
        }
    if _input_value(getattr(connector_input, "delete_source", UNSET)) is True:
        if values.get("source_retention"):
            text = "`deleteSource` and `sourceRetention` can't be combined."
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


@strawberry.input(description="Remote server that many accounts are on, without credentials.")
class RemoteHostInput:
    protocol: ConnectorProtocol = attribute_field(
        "Protocol of the remote server: IMAP or POP3.", default=ConnectorProtocol.IMAP
    )
    host: str = attribute_field(
        "Host name or IP address of the remote server, at most 255 characters. Addresses in "
        "private networks require the setting `connectors.allowPrivateNetworks`."
    )
    port: int | None = attribute_field(
        "TCP port of the remote server, 1 to 65535. Default, and with null: IMAP 993 with TLS, "
        "else 143; POP3 995 with TLS, else 110.",
        default=UNSET,
    )
    security: ConnectorSecurity = attribute_field(
        "Encryption of the connection. NONE requires the setting "
        "`connectors.allowPrivateNetworks`.",
        default=ConnectorSecurity.TLS,
    )
    auth_mechanism: AuthMechanism = attribute_field(
        "SASL mechanism for signing in on the remote server. CRAM_MD5 is refused with POP3.",
        default=AuthMechanism.PLAIN,
    )


@strawberry.input(description="Remote server, and the credentials of an account on it.")
class RemoteServerInput(RemoteHostInput):
    username: str = attribute_field("Username on the remote server, 1 to 255 characters.")
    password: str = attribute_field(
        "Password on the remote server, 1 to 8,192 characters on one line. For XOAUTH2 and "
        "OAUTHBEARER: the access token, or with `oauth` the refresh token. It is never returned, "
        "and connectorTest does not store it."
    )
    oauth: ConnectorOauthInput | None = attribute_field(
        "Token endpoint for access tokens; the password is then the refresh token. Only for "
        "XOAUTH2 and OAUTHBEARER. Default, and with null: the password is used as it is.",
        default=UNSET,
    )


@strawberry.input
class FetchRulesInput:
    """Base of the inputs with rules for fetching messages from a remote server."""

    target_domain: str | None = attribute_field(
        "Domain of the recipient address that the spam filter sees for messages fetched into "
        "INBOX. With `applyFilters`, the filters see it too. It need not be a domain of this "
        "server. Default, and with null: the domain of the user's main address.",
        default=UNSET,
    )
    max_age: Duration | None = attribute_field(
        "Maximum age of fetched messages, counted from their arrival on the remote server, PT1M "
        "to P36500D. Older ones are not fetched. No effect with POP3. Default, and with null: "
        "unlimited.",
        default=UNSET,
    )
    max_bytes_per_second: ByteSize | None = attribute_field(
        "Maximum rate at which one run receives data, in bytes per second, at least 1. Each run "
        "has this limit for itself. Default, and with null: unlimited.",
        default=UNSET,
    )
    exclude: str | None = attribute_field(
        "Regular expression of at most 200 characters: remote mailboxes with a match anywhere in "
        "their path are not fetched. Case is ignored. Null: no mailbox is excluded by its path. "
        "IMAP mailboxes with the special use \\All or \\Flagged are never fetched. Default: "
        "mailboxes with `spam` or `junk` in their path are excluded.",
        default=DEFAULT_EXCLUDE,
    )
    folder_rewrites: list[FolderRewriteInput] | None = attribute_field(
        "Rules that rename remote mailboxes, at most 50, applied in their order. Default, and "
        "with null: no rule.",
        default=UNSET,
    )
    auto_map_folders: bool = attribute_field(
        "True maps remote mailboxes to local ones by special use. At the top level and directly "
        "below INBOX it also maps by usual name, such as Sent Items to Sent. No effect with a "
        "`targetFolder` other than INBOX.",
        default=True,
    )
    skip_cross_duplicates: bool = attribute_field(
        "True stores a message that is in several remote mailboxes only once, from the mailbox "
        "that is fetched first. Messages are equal if all their bytes are.",
        default=False,
    )
    remove_duplicates: bool = attribute_field(
        "True skips messages that the local mailbox already contains, byte for byte. A message "
        "that an earlier run fetched from the same remote mailbox is skipped too, even if it was "
        "deleted locally.",
        default=True,
    )
    delete_source: bool = attribute_field(
        "True deletes a message on the remote server in the run that fetches it, as "
        '`sourceRetention: "PT0S"` does. Messages that a check refuses are kept there. Not '
        "allowed with another `sourceRetention` or with `mirrorDeletes`.",
        default=False,
    )
    remote_timeout: Duration = attribute_field(
        "Maximum time without a response of the remote server, PT1S to PT1H. A run that exceeds "
        "it fails.",
        default=TEN_MINUTES,
    )
    local_timeout: Duration = attribute_field(
        "Maximum time for one database transaction of the run, PT1S to PT1H. A run that exceeds "
        "it fails.",
        default=TEN_MINUTES,
    )
    custom_options: list[ConnectorOptionInput] | None = attribute_field(
        "Custom options, at most 50. Only INCLUDE_PATTERN and EXCLUDE_PATTERN can be given more "
        "than once. IDLE, SUBSCRIBED and NO_FLAGS are refused with POP3. Default, and with null: "
        "none.",
        default=UNSET,
    )
    spam_check: bool = attribute_field(
        "True scans messages fetched into the local INBOX for spam, and applies the sender rules "
        "of the user to them. Messages of other mailboxes are not scanned.",
        default=True,
    )
    virus_check: bool = attribute_field(
        "True scans messages fetched into the local INBOX for viruses. Messages of other "
        "mailboxes are not scanned.",
        default=True,
    )
    apply_filters: bool = attribute_field(
        "True runs the filters and the active Sieve script of the user on messages fetched into "
        "the local INBOX, not on those of other mailboxes.",
        default=False,
    )


@strawberry.input(description="Input of connectorCreate.")
class ConnectorCreateInput(Options, FetchRulesInput):
    server: RemoteServerInput = attribute_field("Remote server that messages are fetched from.")
    user: UserRef | None = attribute_field(
        "User who gets the messages. Default: the signed-in user.", default=UNSET
    )
    name: str | None = attribute_field(
        "Name of the connector, at most 255 characters. Default, and with null: `username@host` "
        "of the remote account. Names need not be unique.",
        default=UNSET,
    )
    target_folder: str | None = attribute_field(
        "Path of the local mailbox that contains all fetched mailboxes, with `/` between levels. "
        "It is created if it is missing. Default, and with null or INBOX: each mailbox keeps its "
        "remote path, unless `autoMapFolders` or `folderRewrites` changes it.",
        default=UNSET,
    )
    interval: Duration | None = attribute_field(
        "Time from the end of a run to the next one, more than PT4M and at most P30D. After the "
        "second failed run in a row the interval is doubled. After the third it is 4 times as "
        "long, then always 6 times. Null: runs are only started by `connectorStart`.",
        default=HALF_AN_HOUR,
    )
    subscribe_all: bool = attribute_field(
        "True subscribes the user to mailboxes that a run of the connector creates.", default=True
    )
    source_retention: Duration | None = attribute_field(
        "Time after which a run deletes a fetched message on the remote server, PT0S to P36500D. "
        "PT0S: in the run that fetches it. Messages that a check refuses are kept there. Default, "
        "and with null: messages are not deleted there.",
        default=UNSET,
    )
    mirror_deletes: bool = attribute_field(
        "True: a run deletes local messages that it has fetched from a remote mailbox and that "
        "were deleted there. They can be restored until their retention ends. Messages of a "
        "remote mailbox that no longer exists are kept. Only for IMAP. Not allowed with "
        "`sourceRetention`.",
        default=False,
    )
    active: bool = attribute_field(
        "True runs the connector at once and then at its interval. False, or with the interval "
        "null: only `connectorStart` runs it.",
        default=True,
    )


@strawberry.input(
    description="New values of a remote server. An absent field leaves the value unchanged, except "
    "`port` if `protocol` or `security` changes."
)
class RemoteServerPatch:
    protocol: strawberry.Maybe[ConnectorProtocol] = attribute_field(
        "Protocol of the remote server: IMAP or POP3. Other values, and null, are refused. Absent: "
        "unchanged."
    )
    host: strawberry.Maybe[str] = attribute_field(
        "Host name or IP address of the remote server, at most 255 characters. A new host requires "
        "`password`. Addresses in private networks require the setting "
        "`connectors.allowPrivateNetworks`. Null is refused. Absent: unchanged."
    )
    port: strawberry.Maybe[int | None] = attribute_field(
        "TCP port of the remote server, 1 to 65535. Null: the default port of `protocol` and "
        "`security`. An absent port stays unchanged, but becomes the default port if `protocol` or "
        "`security` changes."
    )
    security: strawberry.Maybe[ConnectorSecurity] = attribute_field(
        "Encryption of the connection. NONE requires the setting "
        "`connectors.allowPrivateNetworks`, and a change to NONE also `password`. Null is refused. "
        "Absent: unchanged."
    )
    username: strawberry.Maybe[str] = attribute_field(
        "Username on the remote server, 1 to 255 characters. A new username requires `password`. "
        "Null is refused. Absent: unchanged."
    )
    password: strawberry.Maybe[str] = attribute_field(
        "Password on the remote server, 1 to 8,192 characters on one line. For XOAUTH2 and "
        "OAUTHBEARER: the access token, or with `oauth` the refresh token. It is never returned. "
        "Required if `host`, `username`, `oauth` or the user of the connector changes, or "
        "`security` becomes NONE. Also required if a connector without a password is activated. "
        "Null is refused. Absent: unchanged."
    )
    auth_mechanism: strawberry.Maybe[AuthMechanism] = attribute_field(
        "SASL mechanism for signing in on the remote server. CRAM_MD5 is refused with POP3. Null "
        "is refused. Absent: unchanged."
    )
    oauth: strawberry.Maybe[ConnectorOauthInput | None] = attribute_field(
        "Token endpoint for access tokens. Only for XOAUTH2 and OAUTHBEARER. Null removes it, so "
        "that the password is used as it is. A change of the endpoint, client ID or scope, or its "
        "removal, requires `password`. A new client secret does not. Absent: unchanged."
    )


@strawberry.input(
    description="New values of connectors. An absent field leaves the value unchanged. At least "
    "one value is required."
)
class ConnectorPatch:
    user: strawberry.Maybe[UserRef] = attribute_field(
        "User who gets the messages from now on. For a new user, all messages are fetched again, "
        "the runs so far are deleted, and `server.password` is required. The change is a "
        "ConflictError while a run is queued or in progress. Another user requires the scope FULL, "
        "and the role DOMAIN_ADMIN with the permission CONNECTORS or the role ADMIN. Null is "
        "refused. Absent: unchanged."
    )
    name: strawberry.Maybe[str | None] = attribute_field(
        "Name of the connector, at most 255 characters. Null: `username@host` of the remote "
        "account. Absent: unchanged, also if the host changes."
    )
    server: strawberry.Maybe[RemoteServerPatch] = attribute_field(
        "New values of the remote server and its credentials. Absent fields of it stay unchanged. "
        "Null is refused."
    )
    target_domain: strawberry.Maybe[str | None] = attribute_field(
        "Domain of the recipient address that the spam filter sees for messages fetched into "
        "INBOX. With `applyFilters`, the filters see it too. Null: the domain of the user's main "
        "address. Absent: unchanged."
    )
    target_folder: strawberry.Maybe[str | None] = attribute_field(
        "Path of the local mailbox that contains all fetched mailboxes, with `/` between levels. "
        "It is created if it is missing. Null or INBOX: each mailbox keeps its remote path, unless "
        "`autoMapFolders` or `folderRewrites` changes it. Absent: unchanged. Messages that were "
        "fetched before are not moved."
    )
    interval: strawberry.Maybe[Duration | None] = attribute_field(
        "Time from the end of a run to the next one, more than PT4M and at most P30D. After the "
        "second failed run in a row the interval is doubled. After the third it is 4 times as "
        "long, then always 6 times. Null: runs are only started by `connectorStart`. Absent: "
        "unchanged."
    )
    max_age: strawberry.Maybe[Duration | None] = attribute_field(
        "Maximum age of fetched messages, counted from their arrival on the remote server, PT1M to "
        "P36500D. Older ones are not fetched. No effect with POP3. Null: unlimited. Absent: "
        "unchanged."
    )
    max_bytes_per_second: strawberry.Maybe[ByteSize | None] = attribute_field(
        "Maximum rate at which a run receives data, in bytes per second, at least 1. Null: "
        "unlimited. Absent: unchanged."
    )
    exclude: strawberry.Maybe[str | None] = attribute_field(
        "Regular expression of at most 200 characters: remote mailboxes with a match anywhere in "
        "their path are not fetched. Case is ignored. Null: no mailbox is excluded by its path. "
        "IMAP mailboxes with the special use \\All or \\Flagged are never fetched. Absent: "
        "unchanged."
    )
    folder_rewrites: strawberry.Maybe[list[FolderRewriteInput] | None] = attribute_field(
        "All rules that rename remote mailboxes, at most 50, applied in their order. They replace "
        "the stored rules. Null or an empty list removes all. Absent: unchanged."
    )
    auto_map_folders: strawberry.Maybe[bool] = attribute_field(
        "True maps remote mailboxes to local ones by special use. At the top level and directly "
        "below INBOX it also maps by usual name, such as Sent Items to Sent. No effect with a "
        "`targetFolder` other than INBOX."
    )
    subscribe_all: strawberry.Maybe[bool] = attribute_field(
        "True subscribes the user to mailboxes that a run of the connector creates."
    )
    skip_cross_duplicates: strawberry.Maybe[bool] = attribute_field(
        "True stores a message that is in several remote mailboxes only once, from the mailbox "
        "that is fetched first. Messages are equal if all their bytes are."
    )
    remove_duplicates: strawberry.Maybe[bool] = attribute_field(
        "True skips messages that the local mailbox already contains, byte for byte. A message "
        "that an earlier run fetched from the same remote mailbox is skipped too, even if it was "
        "deleted locally."
    )
    source_retention: strawberry.Maybe[Duration | None] = attribute_field(
        "Time after which a run deletes a fetched message on the remote server, PT0S to P36500D. "
        "PT0S: in the run that fetches it. Messages that a check refuses are kept there. Null: "
        "messages are not deleted there. Absent: unchanged."
    )
    delete_source: strawberry.Maybe[bool] = attribute_field(
        "True sets `sourceRetention` to PT0S: the run that fetches a message also deletes it on "
        "the remote server. True is not allowed with another `sourceRetention` in the same input, "
        "or with `mirrorDeletes`. False changes nothing, so that `set` needs another value. To end "
        "the deletion, set `sourceRetention` to null. Null for this field is refused."
    )
    mirror_deletes: strawberry.Maybe[bool] = attribute_field(
        "True: a run deletes local messages that it has fetched from a remote mailbox and that "
        "were deleted there. They can be restored until their retention ends. Messages of a remote "
        "mailbox that no longer exists are kept. Only for IMAP. Not allowed with "
        "`sourceRetention`, also a stored one."
    )
    remote_timeout: strawberry.Maybe[Duration] = attribute_field(
        "Maximum time without a response of the remote server, PT1S to PT1H. A run that exceeds it "
        "fails. Null is refused. Absent: unchanged."
    )
    local_timeout: strawberry.Maybe[Duration] = attribute_field(
        "Maximum time for one database transaction of the run, PT1S to PT1H. A run that exceeds it "
        "fails. Null is refused. Absent: unchanged."
    )
    custom_options: strawberry.Maybe[list[ConnectorOptionInput] | None] = attribute_field(
        "All custom options, at most 50. They replace the stored options. Only INCLUDE_PATTERN and "
        "EXCLUDE_PATTERN can be given more than once. IDLE, SUBSCRIBED and NO_FLAGS are refused "
        "with POP3. Null or an empty list removes all. Absent: unchanged."
    )
    spam_check: strawberry.Maybe[bool] = attribute_field(
        "True scans messages fetched into the local INBOX for spam, and applies the sender rules "
        "of the user to them. Messages of other mailboxes are not scanned."
    )
    virus_check: strawberry.Maybe[bool] = attribute_field(
        "True scans messages fetched into the local INBOX for viruses. Messages of other mailboxes "
        "are not scanned."
    )
    apply_filters: strawberry.Maybe[bool] = attribute_field(
        "True runs the filters and the active Sieve script of the user on messages fetched into "
        "the local INBOX, not on those of other mailboxes."
    )
    active: strawberry.Maybe[bool] = attribute_field(
        "True runs the connector at its interval, and at once if it was inactive. False, or "
        "without an interval: only `connectorStart` runs it. A run that is queued or in progress "
        "continues."
    )
