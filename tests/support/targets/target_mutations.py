"""Mutations on a target, with one input for each authorization decision."""

from collections.abc import Iterator
from typing import Any

from graphql import get_named_type

from tests.support.schema.printed_schema import SDL
from tests.support.schema.sample_inputs import sample_input
from tests.support.targets.target_objects import TargetObjects
from tests.support.targets.target_queries import ALLOWED, REFUSED

REFS = ("UserRef", "UserSelection")
ANY_MESSAGES = {"filter": {"from": "x"}}
# The member that names the account, if it is not `user` or `users`.
TARGET_MEMBERS = {
    "bccRuleCreate": "match",
    "messageCopy": "select",
    "messageDeduplicate": "select",
    "messageDelete": "select",
    "messageMove": "select",
    "messageTierMove": "select",
    "messageUpdate": "select",
    "senderRuleCreate": "scope",
}
# Members that make an input valid, so that only the target can be refused.
ADDED_MEMBERS: dict[str, dict[str, Any]] = {
    "userImport": {"archive": {"text": "From a@b.example Tue Jan  6 10:00:00 2026\n\nx\n"}},
    "addressCreate": {"address": "fresh@example.org"},
    "deletedMessageRestore period": {
        "select": {"period": {"since": "2029-01-01T00:00:00Z", "before": "2030-01-01T00:00:00Z"}}
    },
    "autoreplySet": {"set": {"text": "Away"}},
    "filterCreate": {"query": {"subject": "x"}, "action": {"seen": True}},
    "filterImport": {"content": "keep;"},
    "mailImport": {"source": {"upload": "@upload"}},
    "mailboxAnnotationSet": {"key": "/private/comment", "mailbox": {"path": "INBOX"}},
    "mailboxAnnotationDelete": {"key": "/private/comment", "mailbox": {"path": "INBOX"}},
    "mailboxStateSet": {"mailbox": {"path": "INBOX"}, "minNextUid": 7},
    "mailboxUpdate": {"mailboxes": [{"path": "INBOX"}], "set": {"subscribed": True}},
    "messageDeduplicate": {"select": ANY_MESSAGES},
    "messageDelete": {"select": ANY_MESSAGES},
    "messageUpdate": {"select": ANY_MESSAGES, "set": {"seen": True}},
    "draftSave": {"set": {"subject": "x"}},
    "messageImport": {"mailbox": {"path": "INBOX"}, "raw": "Subject: x\n\nx\n"},
    "rateLimitSet": {"inheritRateLimit": True},
    "sieveScriptSet": {"content": "keep;"},
    "userRoleSet": {"role": "USER"},
    "identityLinkDelete": {},
    "userUpdate": {"set": {"name": "X"}},
    "userUpdate allowedSenders": {"set": {"allowedSenders": ["x@elsewhere.example"]}},
    "userUpdate password": {"set": {"password": "correct horse battery"}},
    "userUpdate quarantineNotification": {"set": {"quarantineNotification": "WEEKLY"}},
    "userUpdate spam": {"set": {"spam": {"level": 10}}},
    "userUpdate forwardTo": {"set": {"forwardTo": ["x@elsewhere.example"]}},
    "webhookCreate": {"types": ["USER_CREATED"]},
}
# Inputs that name an object of the account. If it is allowed, there is no error.
OBJECT_INPUTS: dict[str, dict[str, Any]] = {
    "addressDelete": {"addresses": [{"id": "@Address"}]},
    "addressesCreate": {
        "addresses": [{"address": "fresh@example.org", "user": {"username": "@login"}}]
    },
    "addressUpdate": {"addresses": [{"id": "@Address"}], "set": {"name": "x"}},
    "apiKeyDelete": {"apiKeys": [{"id": "@ApiKey"}]},
    "apiKeyUpdate": {"apiKeys": [{"id": "@ApiKey"}], "set": {"name": "x"}},
    "appPasswordDelete": {"appPasswords": [{"id": "@AppPassword"}]},
    "appPasswordUpdate": {"appPasswords": [{"id": "@AppPassword"}], "set": {"description": "x"}},
    "oauthGrantRevoke": {"oauthGrants": [{"id": "@OauthGrant"}]},
    "deletedMessageRestore": {"select": {"ids": ["@DeletedMessage"]}},
    "legalHoldEnd": {"legalHolds": [{"id": "@LegalHold"}]},
    "bccRuleDelete": {"bccRules": [{"id": "@BccRule"}]},
    "bccRuleUpdate": {"bccRules": [{"id": "@BccRule"}], "set": {"active": False}},
    "connectorRunCancel": {"connectorRuns": [{"id": "@ConnectorRun"}]},
    "connectorDelete": {"connectors": [{"id": "@Connector"}]},
    "connectorStart": {"connectors": [{"id": "@Connector"}]},
    "connectorUpdate": {"connectors": [{"id": "@Connector"}], "set": {"name": "x"}},
    "dkimKeyActivate": {"dkimKeys": [{"id": "@DkimKey"}]},
    "dkimKeyDelete": {"dkimKeys": [{"id": "@DkimKey"}]},
    "dkimKeyRotate": {"domains": [{"name": "@domain"}]},
    "dkimKeySet": {
        "domains": [{"name": "@domain"}],
        "selector": "x",
        "algorithm": "ED25519",
        "replace": True,
    },
    "aliasDomainCreate": {"alias": "fresh.example", "domain": {"name": "@domain"}},
    "aliasDomainDelete": {"aliasDomains": [{"id": "@AliasDomain"}]},
    "identityProviderDelete": {"domains": [{"id": "@Domain"}]},
    "identityProviderSet": {
        "domain": {"id": "@Domain"},
        "issuer": "https://idp.example.com",
        "clientId": "x",
        "clientSecret": None,
    },
    "identityProviderTest": {"domain": {"id": "@Domain"}},
    "domainDelete": {"domains": [{"id": "@Domain"}], "cascade": True},
    "domainRename": {"domain": {"name": "@domain"}, "newName": "fresh.example"},
    "domainUpdate": {"domains": [{"id": "@Domain"}], "set": {"description": "x"}},
    "fileDelete": {"files": [{"id": "@File"}]},
    "fileShareCreate": {"file": {"id": "@File"}},
    "fileShareDelete": {"fileShares": [{"id": "@FileShare"}]},
    "filterApply": {"filters": [{"id": "@Filter"}], "select": {"ids": ["@Message"]}},
    "filterDelete": {"filters": [{"id": "@Filter"}]},
    "filtersCreate": {
        "filters": [
            {
                "user": {"username": "@login"},
                "query": {"subject": "x"},
                "action": {"seen": True},
            }
        ]
    },
    "filterUpdate": {"filters": [{"id": "@Filter"}], "set": {"name": "x"}},
    "identityDelete": {"identities": [{"id": "@Identity"}]},
    "identityUpdate": {"identities": [{"id": "@Identity"}], "set": {"name": "x"}},
    "mailboxShareSet": {
        "mailbox": {"id": "@Mailbox"},
        "user": {"username": "sharer"},
        "rights": ["LOOKUP"],
    },
    "messageRedirect": {"message": {"id": "@Message"}, "to": ["eve@example.com"]},
    "messageCopy id": {"select": {"ids": ["@Message"]}, "to": {"specialUse": "SENT"}},
    "messageDelete id": {"select": {"ids": ["@Message"]}},
    "messageRedirect uid": {
        "message": {"uid": {"mailbox": {"id": "@inbox"}, "uid": "@uid"}},
        "to": ["eve@example.com"],
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
    "draftSend": {"message": {"id": "@draft"}},
    "pushChannelDelete": {"pushChannels": [{"id": "@PushChannel"}]},
    "pushChannelTest": {"pushChannels": [{"id": "@PushChannel"}]},
    "quarantineDelete": {"quarantineItems": [{"id": "@QuarantineItem"}]},
    "quarantineRelease": {"quarantineItems": [{"id": "@QuarantineItem"}]},
    "queueDelete": {"queueEntries": [{"queueId": "@queueId"}]},
    "queueFlush": {"queueEntries": [{"queueId": "@queueId"}]},
    "queueHold": {"queueEntries": [{"queueId": "@queueId"}]},
    "queueRelease": {"queueEntries": [{"queueId": "@queueId"}]},
    "resourceCreate": {"name": "Fresh", "domain": {"name": "@domain"}, "kind": "THING"},
    "resourceDelete": {"resources": [{"id": "@Resource"}]},
    "resourceUpdate": {"resources": [{"id": "@Resource"}], "set": {"active": False}},
    "senderRuleDelete": {"senderRules": [{"id": "@SenderRule"}]},
    "submissionCancel": {"submissions": [{"id": "@Submission"}]},
    "submissionReschedule": {
        "submissions": [{"id": "@Submission"}],
        "sendAt": "2032-01-01T00:00:00Z",
    },
    "taskCancel": {"tasks": [{"id": "@Task"}]},
    "threadUpdate": {"threads": [{"id": "@Thread"}], "set": {"muted": True}},
    "accessTokenRevoke": {"accessTokens": [{"id": "@AccessToken"}]},
    "undo": {"token": "@undo"},
    "userRestore": {"user": {"id": "@deleted"}},
    "webauthnDelete": {"webauthnKeys": [{"id": "@WebauthnKey"}]},
    "webhookDelete": {"webhooks": [{"id": "@Webhook"}]},
    "webhookReplay": {"webhook": {"id": "@Webhook"}, "after": "@cursor"},
    "webhookSecretRotate": {"webhook": {"id": "@Webhook"}},
    "webhookTest": {"webhooks": [{"id": "@Webhook"}]},
    "webhookUpdate": {"webhooks": [{"id": "@Webhook"}], "set": {"active": False}},
}
TARGET_ERROR_MEMBERS = {
    "match",
    "scope",
    "select",
    "sourceUser",
    "user",
    "users",
}  # members whose errors are about the target
# Errors of checks that run after the target was accepted.
LATER_ERRORS = {
    "domainDelete": "Requires the role ROOT.",  # the domain also has an account of that role
    "mailImport source": "Source and destination must be different accounts.",
    "webauthnDelete": "A proof of an active second factor is required.",
}


def mutation_cases() -> Iterator[str]:
    """The mutations, and the variants that change another part of an object."""
    mutation_type: Any = SDL.mutation_type
    yield from mutation_type.fields
    yield from (name for name in (*ADDED_MEMBERS, *OBJECT_INPUTS) if " " in name)


def _input_type(name: str) -> Any:
    root: Any = SDL.mutation_type
    return get_named_type(root.fields[name].args["input"].type)


def mutation_document(name: str) -> str:
    """The document of a mutation. A variant is named after a space in `name`."""
    name = name.partition(" ")[0]
    payload_fields = "errors { code message path }"
    field = f"{name}(input: $input) {{ {payload_fields} }}"
    return f"mutation ($input: {_input_type(name)}!) {{ {field} }}"


def mutation_variables(name: str, target: TargetObjects, upload: str) -> dict[str, Any]:
    """The input of a mutation on this target; it is only validated."""
    mutation_name = name.partition(" ")[0]
    input_type = _input_type(mutation_name)
    input_fields = {
        **sample_input(input_type),
        **ADDED_MEMBERS.get(name, {}),
        **OBJECT_INPUTS.get(name, {}),
    }
    input_fields["options"] = {"validateOnly": True, "reason": "a trial"}
    user = {"username": target.user.username}
    match TARGET_MEMBERS.get(mutation_name):
        case "match":
            input_fields["match"] = target.address
        case "scope":
            input_fields["scope"] = {"user": user}
        case "select" if name not in OBJECT_INPUTS:
            input_fields["select"] = {**input_fields.get("select", {}), "users": _selection(target)}
        case _ if name not in OBJECT_INPUTS:
            member = "users" if "users" in input_type.fields else "user"
            takes_ref = get_named_type(input_type.fields[member].type).name == "UserRef"
            input_fields[member] = user if takes_ref else _selection(target)
    with_ids: dict[str, Any] = _with_ids(input_fields, target, upload)
    return with_ids


def _with_ids(value: Any, target: TargetObjects, upload: str) -> Any:
    """Replace texts that begin with @ by the ids and names of the target's objects."""
    if isinstance(value, dict):
        return {name: _with_ids(member, target, upload) for name, member in value.items()}
    if isinstance(value, list):
        return [_with_ids(member, target, upload) for member in value]
    if isinstance(value, str) and value.startswith("@"):
        return upload if value == "@upload" else target.value(value[1:])
    return value


def has_unsent_marker(body: str, value: Any, marker: str) -> bool:
    """True if the response has the marker beside texts of the input, which errors repeat."""
    for text in _texts_with_marker(value, marker):
        body = body.replace(text, "")
    return marker in body


def _texts_with_marker(value: Any, marker: str) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for member in value for text in _texts_with_marker(member, marker)]
    return [value] if isinstance(value, str) and marker in value else []


def _selection(target: TargetObjects) -> dict[str, list[str]]:
    return {"usernames": [target.user.username]}


def mutation_verdict(name: str, response: Any) -> str:
    """Allowed, unless the target is refused or not found. Later errors count as allowed."""
    if "errors" in response:
        error = response["errors"][0]
        code: str = error["extensions"]["code"]
        return REFUSED if code == "FORBIDDEN" else f"{code}: {error['message']}"
    for error in response["data"][name.partition(" ")[0]]["errors"]:
        if error["message"] == LATER_ERRORS.get(name):
            continue
        names_target = (
            name in OBJECT_INPUTS or not error["path"] or error["path"][0] in TARGET_ERROR_MEMBERS
        )
        if error["code"] == "FORBIDDEN" or (error["code"] == "NOT_FOUND" and names_target):
            return REFUSED
        if name in OBJECT_INPUTS or (error["code"] == "VALIDATION" and name in ADDED_MEMBERS):
            return f"{error['code']}: {error['message']}"  # it is not about the target
    return ALLOWED
