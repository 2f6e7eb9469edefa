"""Any object by its global id."""

from collections import defaultdict
from collections.abc import Sequence

import strawberry

from graph import ids
from graph.addresses import Address
from graph.addressregister import AddressRegisterEntry
from graph.adminlog import AdminLogEntry
from graph.apppasswords import AppPassword
from graph.archive import ArchivedMessage
from graph.audit import Audit, AuditAccess, AuditedMessage
from graph.auth import AccessToken, ApiKey
from graph.authlog import AuthEvent
from graph.autoreply import Autoreply
from graph.bccrules import BccRule
from graph.certificates import Certificate
from graph.composerequests import ComposeRequest
from graph.connectors import Connector, ConnectorRun
from graph.dkim import DkimKey
from graph.domains import Domain, DomainAlias
from graph.exports import AccountExport
from graph.fields import Info, query
from graph.files import File, FileShare
from graph.filters import Filter
from graph.identities import Identity
from graph.keyvalue import KeyValue
from graph.labels import Label
from graph.mailboxes import Mailbox
from graph.messages import Message
from graph.notifications import PushChannel
from graph.quarantine import QuarantineItem
from graph.queue import QueueEntry
from graph.ratelimits import RateHold, RateLimit
from graph.recipientrewrites import RecipientRewrite
from graph.routing import ForwardingHost, RelayHost, TlsPolicy, Transport
from graph.rows import Shape
from graph.savedsearches import SavedSearch
from graph.senderrules import SenderRule
from graph.settings import SettingChange
from graph.sieve import SieveScript
from graph.submission import Submission
from graph.tasks import Task
from graph.threads import Thread
from graph.twofactor import WebauthnKey
from graph.users import User
from graph.webhooks import Webhook, WebhookDelivery
from models.errors import Invalid
from models.users.roles import Scope

MOST = 250  # ids of one call
KINDS: dict[str, type[Shape]] = {
    "AccountExport": AccountExport,
    "AccessToken": AccessToken,
    "Address": Address,
    "AddressRegisterEntry": AddressRegisterEntry,
    "AdminLogEntry": AdminLogEntry,
    "ApiKey": ApiKey,
    "ArchivedMessage": ArchivedMessage,
    "Certificate": Certificate,
    "Audit": Audit,
    "AuditAccess": AuditAccess,
    "AuditedMessage": AuditedMessage,
    "AuthEvent": AuthEvent,
    "AppPassword": AppPassword,
    "Autoreply": Autoreply,
    "BccRule": BccRule,
    "DkimKey": DkimKey,
    "Domain": Domain,
    "DomainAlias": DomainAlias,
    "File": File,
    "FileShare": FileShare,
    "Filter": Filter,
    "ForwardingHost": ForwardingHost,
    "Identity": Identity,
    "KeyValue": KeyValue,
    "Label": Label,
    "Mailbox": Mailbox,
    "Message": Message,
    "PushChannel": PushChannel,
    "QuarantineItem": QuarantineItem,
    "ComposeRequest": ComposeRequest,
    "QueueEntry": QueueEntry,
    "Connector": Connector,
    "ConnectorRun": ConnectorRun,
    "RateHold": RateHold,
    "RateLimit": RateLimit,
    "RecipientRewrite": RecipientRewrite,
    "RelayHost": RelayHost,
    "SavedSearch": SavedSearch,
    "SenderRule": SenderRule,
    "SettingChange": SettingChange,
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


async def node_of(info: Info, id: str) -> Shape | None:
    """The object of a global id; None where there is none that the viewer may see."""
    return (await nodes_of(info, [id]))[0]


async def nodes_of(info: Info, given: Sequence[str]) -> list[Shape | None]:
    """The objects of these ids, in their order; one statement for each kind among them."""
    keys: defaultdict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(given):
        kind = ids.kind_of(text)
        if kind not in KINDS:
            raise Invalid("not the id of a node", constraint="id", path=["ids"], index=index)
        keys[kind].append(ids.decode(kind, text, path="ids", index=index))
    found: dict[str, Shape] = {}
    for kind, listed in keys.items():
        shape = KINDS[kind]
        for key, row in zip(listed, await info.context.load_all(shape.batch, listed), strict=True):
            if row is not None:
                found[ids.encode(kind, key)] = shape.of(row)
    return [found.get(text) for text in given]


@strawberry.type
class NodeQuery:
    @query("Any object by global id, null when missing or invisible.", scope=Scope.MAIL_READ)
    async def node(self, info: Info, id: strawberry.ID) -> Shape | None:
        return await node_of(info, id)

    @query("Several, in order.", scope=Scope.MAIL_READ)
    async def nodes(self, info: Info, ids: list[strawberry.ID]) -> list[Shape | None]:
        if len(ids) > MOST:
            raise Invalid(f"at most {MOST} ids", constraint="max", path=["ids"])
        return await nodes_of(info, ids)
