"""Fields of Node types that differ in more than nullability or enum, with the reasons.

New ones need another name: a document with two of these types needs an alias for them.
"""

SHORT_LIST = "a short list where its length is limited, pages elsewhere"
MESSAGE_TYPES = "DeletedMessage HeldCopy Message"
_TYPES_AND_REASON_BY_FIELD = {
    "action": (
        "Filter LegalHoldAccess SecurityEvent SenderRule",
        "a filter does several things, which are an object; elsewhere one of an enum",
    ),
    "address": (
        "Address ContactSuggestion Identity Resource User",
        "a pattern can be no address, and a user's address is an object with its settings",
    ),
    "addresses": ("Autoreply Domain User", SHORT_LIST),
    "bcc": (
        f"ComposeRequest Identity {MESSAGE_TYPES}",
        "addresses with names of a header field, and addresses of an identity without",
    ),
    "body": ("Message WebhookDelivery", "the text of a message, and the JSON of a request"),
    "contentType": (
        "Attachment DeletedMessage File Message",
        "a media type, and the header field with its parameters",
    ),
    "domain": (
        "Address AliasDomain BccRule DkimKey QuarantineItem RateLimit RateLimitHold Resource User "
        "Webhook",
        "a DKIM key can be of the domain `*`, which is no Domain",
    ),
    "files": ("ComposeRequest User", SHORT_LIST),
    "from": (f"RecipientRewrite {MESSAGE_TYPES}", "a pattern, and a header field"),
    "host": (
        "ClusterNode Connector ForwardingHost RelayHost",
        "a forwarding host is a network, the others have a name",
    ),
    "mailboxes": ("PushChannel Thread User", SHORT_LIST),
    "messages": (
        "LegalHold Mailbox RateLimit RateLimitHold SavedSearch Thread User",
        "the limit of a count, and the messages themselves",
    ),
    "position": ("Filter HeldCopy", "a small order value, and a place in a chain without limit"),
    "preview": (
        f"Autoreply {MESSAGE_TYPES}",
        "the reply as it would be sent, and the first words of a message",
    ),
    "query": ("Filter SavedSearch", "the tests of a filter, and the text of a search"),
    "replyTo": (
        "ComposeRequest Identity Message",
        "addresses with names of a header field, and one address of an identity",
    ),
    "result": ("SecurityEvent Task", "one of an enum, and the figures of a task"),
    "sender": (
        "DeletedMessage Message QuarantineItem QueueEntry",
        "a header field, and the sender of the envelope, which can be empty",
    ),
    "source": ("ForwardingHost RateLimitHold", "the text that was entered, and one of an enum"),
    "submissions": ("Message User", SHORT_LIST),
    "to": (f"ComposeRequest RecipientRewrite {MESSAGE_TYPES}", "a pattern, and a header field"),
    "version": ("ClusterNode KeyValueEntry", "that of a program, and the counter of an entry"),
}
NODE_FIELD_EXCEPTIONS = {
    f"{type_name}.{field_name}": reason
    for field_name, (type_names, reason) in _TYPES_AND_REASON_BY_FIELD.items()
    for type_name in type_names.split()
}
