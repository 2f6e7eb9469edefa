"""The account and mailbox that receive mail for an address."""

from collections.abc import Sequence
from dataclasses import dataclass

from mail.addresses.address_syntax import NormalizedAddress
from models.users.roles import Role
from models.users.tables import SubaddressAction


@dataclass(frozen=True, slots=True)
class LocalRecipient:
    """The account that receives a message, and how the message is delivered to it."""

    user_id: int
    tenant_id: int
    mailbox_id: int  # INBOX
    address_id: int
    address: str  # as given
    encryption_key: str | None = None  # OpenPGP key of the mailbox; None: not encrypted
    has_autoreply: bool = False  # now, within the period of the reply
    spam_level: int = 50
    has_sender_rules: bool = False  # of the account, its tags, its domain or the platform
    domain_id: int | None = None  # of the address, or else of the account
    tags: Sequence[str] = ()  # of the address
    # after a rewrite, or of the account if a connector gives mail another recipient
    rewritten_address: str | None = None
    has_bcc_rules: bool = False  # BCC rules may apply: mail/delivery/recipient_rewrites.py
    has_script: bool = False  # an active script: mail/delivery/delivery_plan.py
    has_filters: bool = False  # mail/delivery/filter_execution.py
    requires_tls: bool = False  # mail from other servers must come over TLS
    junk_score: float | None = None  # None: the default of mail/spam/verdict.py
    reject_score: float | None = None
    has_forward_targets: bool = False  # mail/delivery/account_forwards.py
    subaddress_action: SubaddressAction = SubaddressAction.NONE  # of the label
    label: str = ""  # of the subaddress
    original_address: str | None = None  # the envelope recipient, if it differs from `address`
    role: Role = Role.USER  # of the account
    # With `has_bcc_rules`: the addresses whose rules apply, best first
    rule_addresses: Sequence[NormalizedAddress] = ()

    @property
    def receiving_address(self) -> str:
        """The local address that receives the mail: after a rewrite, else as given."""
        return self.rewritten_address or self.address
