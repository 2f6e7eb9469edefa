"""Descriptions of enum values of metrics and statistics."""

from models.metrics.names import METRIC_DESCRIPTIONS

_HIGHEST = "The highest number of the step, sampled once a minute."
METRIC_VALUE_DESCRIPTIONS = {
    "MetricSetKind": {
        "GLOBAL": "The whole platform: one set without a key.",
        "DOMAIN": "Domains. The key is the name of the domain.",
        "USER": "Users. The key is the username.",
        "IP": "Clients. The key is the IP address.",
        "SESSION": "Sessions, also those that have ended. The key is the global ID of the session.",
        "COMMAND": "Commands. The key is the name of a GraphQL operation, or a service and an SMTP "
        "verb such as `SMTP DATA`. Operations without a name have the key `anonymous`, refused "
        "documents `refused`.",
    },
    "MetricName": {
        name.value: description.text for name, description in METRIC_DESCRIPTIONS.items()
    },
    "StatisticName": {
        "MESSAGES_IN": "Number of messages that deliveries stored, once for each account.",
        "BYTES_IN": "Size of the messages of MESSAGES_IN in bytes.",
        "MESSAGES_OUT": "Number of recipients to whom the queue delivered a message, here or on "
        "another server. In a domain: messages of its users.",
        "BYTES_OUT": "Size of the messages of MESSAGES_OUT in bytes, once for each recipient.",
        "MESSAGES_BOUNCED": "Number of recipients of the queue whose delivery failed or expired. "
        "In a domain: messages of its users.",
        "MESSAGES_JUNK": "Number of received messages with the verdict spam, once for each "
        "account.",
        "VIRUSES": "Number of received messages with a virus, once for each account.",
        "SIGN_INS": "Number of sign-ins with a password.",
        "SIGN_IN_FAILURES": "Number of refused sign-ins. In a domain: those under names of its "
        "users.",
        "API_OPERATIONS": "Number of GraphQL operations. In a domain: those of its users.",
        "API_LATENCY_P50": "Duration in seconds that half of the GraphQL operations did not "
        "exceed, without subscriptions. It is computed from counts by duration, within a factor of "
        "2.5 at most, and is at most 10 seconds. Null: there were no operations.",
        "API_LATENCY_P95": "Duration in seconds that 95 % of the GraphQL operations did not "
        "exceed, computed as API_LATENCY_P50. Null: there were no operations.",
        "STORAGE": f"Stored bytes of the users. {_HIGHEST}",
        "ACTIVE_USERS": "Number of users who signed in, or sent an operation or command. For steps "
        "longer than PT1H: the highest number of an hour. At most 10,000 for each process.",
        "QUEUE_LENGTH": f"Number of recipients that wait in the queue. {_HIGHEST} In a domain: "
        "messages of its users.",
    },
}
