"""The queries `node` and `nodes`: any object by its global ID."""

from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import strawberry

from graph.addresses.bcc_rules import BccRule
from graph.addresses.contacts import ContactSuggestion
from graph.addresses.recipient_rewrites import RecipientRewrite
from graph.addresses.types import Address
from graph.admin.audit_log import AuditLogEntry
from graph.admin.key_values import KeyValueEntry
from graph.admin.legal_holds import HeldCopy, LegalHold, LegalHoldAccess
from graph.admin.settings import SettingHistoryEntry
from graph.admin.tasks import Task
from graph.auth.app_passwords import AppPassword
from graph.auth.second_factors import WebauthnKey
from graph.auth.security_log import SecurityEvent
from graph.auth.types import AccessToken, ApiKey
from graph.autoreply.types import Autoreply
from graph.certificates.types import Certificate
from graph.cluster.types import ClusterNode
from graph.connectors.types import Connector, ConnectorRun
from graph.domains.dkim_keys import DkimKey
from graph.domains.types import AliasDomain, Domain
from graph.files.types import File, FileShare
from graph.filters.sieve_scripts import SieveScript
from graph.filters.types import Filter
from graph.http.download_urls import parse_message_id_and_attachment_number
from graph.mailboxes.types import Mailbox
from graph.messages.deleted_messages import DeletedMessage
from graph.messages.labels import Label
from graph.messages.mime_parts import Attachment
from graph.messages.threads import Thread
from graph.messages.types import Message
from graph.notifications.push_channels import PushChannel
from graph.notifications.webhooks import Webhook, WebhookDelivery
from graph.oauth.types import OauthClient, OauthGrant
from graph.queue.rate_limits import RateLimit, RateLimitHold
from graph.queue.types import QueueEntry
from graph.resources.types import Resource
from graph.routing.types import ForwardingHost, RelayHost, TlsPolicy, Transport
from graph.search.saved_searches import SavedSearch
from graph.sessions.types import Session
from graph.spam.quarantine import QuarantineItem
from graph.spam.sender_rules import SenderRule
from graph.submission.compose_requests import ComposeRequest
from graph.submission.identities import Identity
from graph.submission.types import Submission
from graph.throttling.types import BanPolicy, LoginPenalty, NetworkBan
from graph.transfer.types import UserExport
from graph.types import global_ids as ids
from graph.types.fields import Info, query
from graph.types.row_mapping import NodeView
from graph.users.deleted_users import DeletedUser
from graph.users.types import User
from models.errors import InvalidInput
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.messages.attachments import attachment_key

MAX_IDS = 250  # of one call
NODE_TYPES: dict[str, type[NodeView]] = {
    "UserExport": UserExport,
    "AccessToken": AccessToken,
    "Address": Address,
    "ContactSuggestion": ContactSuggestion,
    "Attachment": Attachment,
    "AuditLogEntry": AuditLogEntry,
    "ApiKey": ApiKey,
    "DeletedMessage": DeletedMessage,
    "DeletedUser": DeletedUser,
    "Certificate": Certificate,
    "LegalHold": LegalHold,
    "LegalHoldAccess": LegalHoldAccess,
    "HeldCopy": HeldCopy,
    "SecurityEvent": SecurityEvent,
    "AppPassword": AppPassword,
    "Autoreply": Autoreply,
    "BanPolicy": BanPolicy,
    "BccRule": BccRule,
    "ClusterNode": ClusterNode,
    "DkimKey": DkimKey,
    "Domain": Domain,
    "AliasDomain": AliasDomain,
    "File": File,
    "FileShare": FileShare,
    "Filter": Filter,
    "ForwardingHost": ForwardingHost,
    "Identity": Identity,
    "KeyValueEntry": KeyValueEntry,
    "Label": Label,
    "LoginPenalty": LoginPenalty,
    "Mailbox": Mailbox,
    "Message": Message,
    "NetworkBan": NetworkBan,
    "OauthClient": OauthClient,
    "OauthGrant": OauthGrant,
    "PushChannel": PushChannel,
    "QuarantineItem": QuarantineItem,
    "ComposeRequest": ComposeRequest,
    "QueueEntry": QueueEntry,
    "Connector": Connector,
    "ConnectorRun": ConnectorRun,
    "RateLimitHold": RateLimitHold,
    "RateLimit": RateLimit,
    "RecipientRewrite": RecipientRewrite,
    "RelayHost": RelayHost,
    "Resource": Resource,
    "SavedSearch": SavedSearch,
    "SenderRule": SenderRule,
    "Session": Session,
    "SettingHistoryEntry": SettingHistoryEntry,
    "SieveScript": SieveScript,
    "Submission": Submission,
    "Task": Task,
    "Thread": Thread,
    "TlsPolicy": TlsPolicy,
    "Transport": Transport,
    "User": User,
    "WebauthnKey": WebauthnKey,
    "Webhook": Webhook,
    "WebhookDelivery": WebhookDelivery,
}


async def load_visible_node(info: Info, id: str) -> NodeView | None:
    """Load the object of a global ID; None if no such object is visible to the viewer.

    Raises InvalidInput if it is not the ID of a node.
    """
    (node,) = await load_visible_nodes(info, [id])
    if isinstance(node, InvalidInput):
        raise node
    return node


async def load_visible_nodes(
    info: Info, global_ids: Sequence[str]
) -> list[NodeView | InvalidInput | None]:
    """Load the objects of global IDs in order; one statement per type.

    An object that doesn't exist or is not visible is None. An ID that is not of a node has an
    error in its place, which graphql-core reports with the item's path.
    """
    keys: defaultdict[str, dict[str, int]] = defaultdict(dict)  # by type and global ID
    views_by_id: dict[str, NodeView | InvalidInput] = {}
    for index, text in enumerate(global_ids):
        try:
            kind, key = _type_name_and_key_or_raise(text)
        except InvalidInput as error:
            error.path = ["ids", str(index)]
            views_by_id[text] = error
        else:
            keys[kind][text] = key
    for kind, key_by_id in keys.items():
        shape = NODE_TYPES[kind]
        rows = await info.context.load_many(shape.load_batch, [*key_by_id.values()])
        for text, row in zip(key_by_id, rows, strict=True):
            if row is not None:
                views_by_id[text] = shape.from_row(row)
    return [views_by_id.get(text) for text in global_ids]


def _type_name_and_key_or_raise(global_id: str) -> tuple[str, int]:
    """Return the type name and row key of a node's ID. Raises InvalidInput for another text."""
    kind = ids.type_name_of_global_id(global_id)
    if kind not in NODE_TYPES:
        raise InvalidInput(
            "Not the ID of a node.", constraint=ValidationConstraint.ID, path=["ids"]
        )
    if kind == "Attachment":
        return kind, attachment_key(*parse_message_id_and_attachment_number(global_id, path="ids"))
    return kind, ids.decode(kind, global_id, path="ids")


@strawberry.type
class NodeQuery:
    @query(
        "Returns any object by its global ID. Null if it does not exist or the caller can't see "
        "it. A malformed ID is the error BAD_ID. FORBIDDEN if the type of the object requires a "
        "scope that the credential lacks.",
        scope=Scope.MAIL_READ,
    )
    async def node(self, info: Info, id: strawberry.ID) -> NodeView | None:
        return await load_visible_node(info, id)

    @query(
        "Returns objects by their global IDs, in the order of `ids`. A missing or invisible "
        "object is null. A malformed ID is null, with an error at its path. An object whose type "
        "requires a scope that the credential lacks is null, with the error FORBIDDEN. At most "
        "250 IDs: more are an error (BAD_USER_INPUT).",
        scope=Scope.MAIL_READ,
    )
    async def nodes(self, info: Info, ids: list[strawberry.ID]) -> list[NodeView | None]:
        if len(ids) > MAX_IDS:
            raise InvalidInput(
                f"At most {MAX_IDS} IDs are allowed.",
                constraint=ValidationConstraint.MAX,
                path=["ids"],
            )
        return cast("list[NodeView | None]", await load_visible_nodes(info, ids))
