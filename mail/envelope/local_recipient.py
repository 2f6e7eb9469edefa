"""The account and mailbox that receive mail for an address."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.users.roles import Role
from models.users.tables import DelimiterAction


@dataclass(frozen=True, slots=True)
class LocalRecipient:
    """The account that receives a message, and how the message is delivered to it."""

    user_id: int
    tenant_id: int
    mailbox_id: int  # INBOX
    address_id: int
    address: str  # as given
    encryption_key: str | None = None  # OpenPGP, to which what comes is encrypted; None: it is not
    has_autoreply: bool = False  # by itself, now
    spam_level: int = 50
    has_sender_rules: bool = False  # there are rules about senders, of whomsoever
    domain_id: int | None = None  # of the address, or else of the account
    tags: Sequence[str] = ()  # of the address
    rewritten_address: str | None = None  # the address after a rewrite
    has_bcc_rules: bool = (
        False  # there are rules that may have it copied: mail/delivery/recipient_rewrites.py
    )
    has_script: bool = False  # a script of the account runs: mail/delivery/delivery_plan.py
    has_filters: bool = False  # it has filters: mail/delivery/filter_execution.py
    requires_tls: bool = False  # no mail from elsewhere without TLS
    junk_score: float | None = None  # None: the usual one, of mail/spam/verdict.py
    reject_score: float | None = None
    has_forward_targets: bool = (
        False  # what comes is sent on to targets: mail/delivery/account_forwards.py
    )
    delimiter_action: DelimiterAction = DelimiterAction.NONE  # what this does:
    label: str = ""  # of the address
    original_address: str | None = (
        None  # the address that was asked for first, where that is another
    )
    role: Role = Role.USER  # of the account
