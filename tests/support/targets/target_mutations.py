"""What a caller would change of a target: one input for each decision about mutations."""

from collections.abc import Iterator
from typing import Any

from graphql import get_named_type

from tests.support.schema.printed_schema import SDL
from tests.support.schema.sample_inputs import sample_input
from tests.support.targets.target_objects import Specimens
from tests.support.targets.target_queries import ALLOWED, REFUSED

REFS = ("UserRef", "UserSelection")
SOME = {"filter": {"query": "x"}}
# Inputs that name the account itself, by another member than `user` or `users`.
PLACES = {
    "bccRuleCreate": "match",
    "messageCopy": "select",
    "messageDeduplicate": "select",
    "messageDelete": "select",
    "messageMove": "select",
    "messageTierMove": "select",
    "messageUpdate": "select",
    "senderRuleCreate": "scope",
}
# Members that make an input whole, so that nothing but the target speaks against it.
GIVEN: dict[str, dict[str, Any]] = {
    "accountImport": {"archive": {"text": "From a@b.example Tue Jan  6 10:00:00 2026\n\nx\n"}},
    "addressCreate": {"address": "fresh@example.org"},
    "archiveRestore": {"start": "2029-01-01T00:00:00Z", "end": "2030-01-01T00:00:00Z"},
    "autoreplySet": {"set": {"text": "Away"}},
    "filterCreate": {"query": {"subject": "x"}, "action": {"seen": True}},
    "filterImport": {"content": "keep;"},
    "mailImport": {"source": {"upload": "@upload"}},
    "mailboxMetadataSet": {"key": "/private/comment", "mailbox": {"path": "INBOX"}},
    "mailboxMetadataUnset": {"key": "/private/comment", "mailbox": {"path": "INBOX"}},
    "mailboxStateSet": {"mailbox": {"path": "INBOX"}, "minNextUid": 7},
    "mailboxUpdate": {"mailboxes": [{"path": "INBOX"}], "set": {"subscribed": True}},
    "messageDeduplicate": {"select": SOME},
    "messageDelete": {"select": SOME},
    "messageUpdate": {"select": SOME, "set": {"seen": True}},
    "messageUpload fields": {"mailbox": {"path": "INBOX"}, "subject": "x", "text": "x"},
    "sieveScriptPut": {"content": "keep;"},
    "spamPolicySet": {"level": 10},
    "userRoleSet": {"role": "USER"},
    "userUpdate": {"set": {"name": "X"}},
    "userUpdate fromWhitelist": {"set": {"fromWhitelist": ["x@elsewhere.example"]}},
    "userUpdate password": {"set": {"password": "correct horse battery"}},
    "userUpdate targets": {"set": {"targets": ["x@elsewhere.example"]}},
    "webhookCreate": {"types": ["user.*"]},
}
# Inputs that name an object of the account. An allowed one has no error at all.
OBJECTS: dict[str, dict[str, Any]] = {
    "addressDelete": {"ids": ["@Address"]},
    "addressUpdate": {"addresses": [{"id": "@Address"}], "set": {"name": "x"}},
    "apiKeyDelete": {"ids": ["@ApiKey"]},
    "apiKeyUpdate": {"ids": ["@ApiKey"], "name": "x"},
    "appPasswordDelete": {"ids": ["@AppPassword"]},
    "appPasswordUpdate": {"ids": ["@AppPassword"], "description": "x"},
    "archivedMessageRestore": {"ids": ["@ArchivedMessage"]},
    "auditDelete": {"ids": ["@Audit"]},
    "bccRuleDelete": {"ids": ["@BccRule"]},
    "bccRuleUpdate": {"ids": ["@BccRule"], "active": False},
    "connectorCancel": {"ids": ["@ConnectorRun"]},
    "connectorDelete": {"ids": ["@Connector"]},
    "connectorRun": {"ids": ["@Connector"]},
    "connectorUpdate": {"ids": ["@Connector"], "set": {"name": "x"}},
    "dkimKeyActivate": {"ids": ["@DkimKey"]},
    "dkimKeyDelete": {"ids": ["@DkimKey"]},
    "dkimKeyRotate": {"domains": ["@domain"]},
    "dkimKeySet": {
        "domains": ["@domain"],
        "selector": "x",
        "algorithm": "ED25519",
        "replace": True,
    },
    "domainAliasCreate": {"alias": "fresh.example", "domain": "@domain"},
    "domainAliasDelete": {"ids": ["@DomainAlias"]},
    "domainDelete": {"domains": [{"id": "@Domain"}], "cascade": True},
    "domainRename": {"oldDomain": "@domain", "newDomain": "fresh.example"},
    "domainUpdate": {"domains": [{"id": "@Domain"}], "set": {"description": "x"}},
    "fileDelete": {"ids": ["@File"]},
    "fileShareCreate": {"file": "@File"},
    "fileShareDelete": {"ids": ["@FileShare"]},
    "filterApply": {"ids": ["@Filter"], "select": {"ids": ["@Message"]}},
    "filterDelete": {"ids": ["@Filter"]},
    "filterUpdate": {"ids": ["@Filter"], "set": {"name": "x"}},
    "identityDelete": {"ids": ["@Identity"]},
    "identityUpdate": {"ids": ["@Identity"], "set": {"name": "x"}},
    "mailboxShareSet": {
        "mailbox": {"id": "@Mailbox"},
        "user": {"username": "sharer"},
        "rights": ["LOOKUP"],
    },
    "messageForward": {"message": {"id": "@Message"}, "addresses": ["eve@example.com"]},
    "messageCopy id": {"select": {"ids": ["@Message"]}, "to": {"specialUse": "SENT"}},
    "messageDelete id": {"select": {"ids": ["@Message"]}},
    "messageForward uid": {
        "message": {"uid": {"mailbox": {"id": "@inbox"}, "uid": "@uid"}},
        "addresses": ["eve@example.com"],
    },
    "messageMove id": {"select": {"ids": ["@Message"]}, "to": {"specialUse": "JUNK"}},
    "messageMove mailbox": {
        "select": {"mailbox": {"id": "@inbox"}, "uids": "@uid"},
        "to": {"specialUse": "JUNK"},
    },
    "messageUpdate id": {"select": {"ids": ["@Message"]}, "set": {"seen": True}},
    "messageUpdate mailbox": {
        "select": {"mailbox": {"id": "@inbox"}, "uids": "@uid"},
        "set": {"seen": True},
    },
    "mailImport source": {"source": {"user": {"username": "@login"}}},
    "messageSubmit": {"message": {"id": "@draft"}},
    "pushChannelDelete": {"ids": ["@PushChannel"]},
    "pushChannelTest": {"ids": ["@PushChannel"]},
    "quarantineDelete": {"ids": ["@QuarantineItem"]},
    "quarantineRelease": {"ids": ["@QuarantineItem"]},
    "queueDelete": {"queueIds": ["@queueId"]},
    "queueFlush": {"queueIds": ["@queueId"]},
    "queueHold": {"queueIds": ["@queueId"], "hold": True},
    "senderRuleDelete": {"ids": ["@SenderRule"]},
    "submissionCancel": {"ids": ["@Submission"]},
    "submissionReschedule": {"ids": ["@Submission"], "sendTime": "2032-01-01T00:00:00Z"},
    "taskCancel": {"ids": ["@Task"]},
    "threadUpdate": {"ids": ["@Thread"], "muted": True},
    "tokenRevoke": {"ids": ["@AccessToken"]},
    "undo": {"token": "@undo"},
    "userRestore": {"by": {"id": "@deleted"}},
    "webauthnDelete": {"ids": ["@WebauthnKey"]},
    "webhookDelete": {"ids": ["@Webhook"]},
    "webhookReplay": {"webhook": "@Webhook", "after": "@cursor"},
    "webhookSecretRotate": {"id": "@Webhook"},
    "webhookTest": {"ids": ["@Webhook"]},
    "webhookUpdate": {"ids": ["@Webhook"], "active": False},
}
TARGET = {"match", "scope", "select", "sourceUser", "user", "users"}  # members that name it
# Errors that come after the target was accepted.
LATER_ERRORS = {
    "domainDelete": "nobody deletes the own account",
    "mailImport source": "the mail is in this account already",
    "webauthnDelete": "prove a second factor that is on",
}


def operations() -> Iterator[str]:
    """The mutations, each once; one that changes several things once for each of these."""
    root: Any = SDL.mutation_type
    yield from root.fields
    yield from (name for name in (*GIVEN, *OBJECTS) if " " in name)


def _input_type(name: str) -> Any:
    root: Any = SDL.mutation_type
    return get_named_type(root.fields[name].args["input"].type)


def document(name: str) -> str:
    """The mutation. The word behind a space in `name` tells what it changes."""
    name = name.partition(" ")[0]
    asked = "errors { code message path }"
    return f"mutation ($input: {_input_type(name)}!) {{ {name}(input: $input) {{ {asked} }} }}"


def variables(name: str, target: Specimens, upload: str) -> dict[str, Any]:
    """An input that names this target. The server only validates it."""
    plain = name.partition(" ")[0]
    kind = _input_type(plain)
    given = {**sample_input(kind), **GIVEN.get(name, {}), **OBJECTS.get(name, {})}
    given["options"] = {"validateOnly": True, "reason": "a trial"}
    user = {"username": target.user.username}
    match PLACES.get(plain):
        case "match":
            given["match"] = target.address
        case "scope":
            given["scope"] = {"user": user}
        case "select" if name not in OBJECTS:
            given["select"] = {**given.get("select", {}), "users": _selection(target)}
        case _ if name not in OBJECTS:
            member = "users" if "users" in kind.fields else "user"
            one = get_named_type(kind.fields[member].type).name == "UserRef"
            given[member] = user if one else _selection(target)
    named: dict[str, Any] = _named(given, target, upload)
    return named


def _named(value: Any, target: Specimens, upload: str) -> Any:
    """The same value, with ids and names for the texts that begin with @."""
    if isinstance(value, dict):
        return {name: _named(one, target, upload) for name, one in value.items()}
    if isinstance(value, list):
        return [_named(one, target, upload) for one in value]
    if isinstance(value, str) and value.startswith("@"):
        return upload if value == "@upload" else target.value(value[1:])
    return value


def _selection(target: Specimens) -> dict[str, list[str]]:
    return {"usernames": [target.user.username]}


def verdict(name: str, answer: Any) -> str:
    """Allowed, unless the target is refused, or not found. Other refusals come after that."""
    if "errors" in answer:
        error = answer["errors"][0]
        code: str = error["extensions"]["code"]
        return REFUSED if code == "FORBIDDEN" else f"{code}: {error['message']}"
    for error in answer["data"][name.partition(" ")[0]]["errors"]:
        if error["message"] == LATER_ERRORS.get(name):
            continue
        names_target = name in OBJECTS or not error["path"] or error["path"][0] in TARGET
        if error["code"] == "FORBIDDEN" or (error["code"] == "NOT_FOUND" and names_target):
            return REFUSED
        if name in OBJECTS or (error["code"] == "VALIDATION" and name in GIVEN):
            return f"{error['code']}: {error['message']}"  # says nothing about the target
    return ALLOWED
