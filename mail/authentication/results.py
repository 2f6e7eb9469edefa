"""Authentication results of a message and their text (RFC 8601)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mail.authentication.arc import ArcChain
from mail.authentication.dkim import AuthResult, DkimResult
from mail.authentication.dmarc import DmarcResult
from mail.authentication.spf import SpfResult

FIELD_NAME = "Authentication-Results"
_DOMAIN = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_STORED_RESULTS = (
    AuthResult.PASS,
    AuthResult.FAIL,
    AuthResult.NONE,
)  # results of DMARC and ARC that clients see


@dataclass(frozen=True, slots=True)
class AuthenticationFindings:
    """The results of SPF, DKIM, DMARC and ARC for one message."""

    spf: SpfResult | None  # None: the client is unknown
    dkim: Sequence[DkimResult]
    dmarc: DmarcResult
    arc: ArcChain
    trusted_sealer: str | None = None  # the domain of the ARC seal that overrules DMARC

    @property
    def policy_to_apply(self) -> str:
        """The policy to apply for the domain in From: none, quarantine or reject."""
        failed = self.dmarc.result is AuthResult.FAIL and self.trusted_sealer is None
        return self.dmarc.policy if failed else "none"

    def result_texts(self) -> list[str]:
        """The results as texts, one for each method and signature."""
        texts = []
        if self.spf:
            name = "smtp.helo" if self.spf.is_helo else "smtp.mailfrom"
            texts.append(
                _result_text("spf", self.spf.result, self.spf.reason, {name: self.spf.domain})
            )
        for dkim_result in self.dkim:
            properties = {"header.d": dkim_result.domain, "header.s": dkim_result.selector}
            signature_text = (
                f' header.b="{dkim_result.short_signature}"' if dkim_result.short_signature else ""
            )
            texts.append(
                _result_text("dkim", dkim_result.result, dkim_result.reason, properties)
                + signature_text
            )
        if not self.dkim:
            texts.append("dkim=none")
        texts.append(self._dmarc_text())
        if self.arc.result is not AuthResult.TEMPERROR:
            arc_property = f"i={len(self.arc.arc_sets)}" if self.arc.arc_sets else ""
            why = ", ".join(filter(None, (arc_property, self.arc.reason)))
            texts.append(_result_text("arc", self.arc.result, why, {}))
        return texts

    def _dmarc_text(self) -> str:
        policy = f"p={self.dmarc.policy}" if self.dmarc.result is not AuthResult.NONE else ""
        sealed = f"overruled by the seal of {self.trusted_sealer}" if self.trusted_sealer else ""
        why = ", ".join(filter(None, (policy, self.dmarc.reason, sealed)))
        return _result_text("dmarc", self.dmarc.result, why, {"header.from": self.dmarc.domain})

    def to_header_field(self, host: str) -> bytes:
        """The Authentication-Results field in the name of this host."""
        return (f"{FIELD_NAME}: " + ";\r\n ".join([host, *self.result_texts()]) + "\r\n").encode()

    def to_stored_json(self, host: str) -> dict[str, Any]:
        """The results in the form that is stored with the message."""
        passed = [
            dkim_result.domain for dkim_result in self.dkim if dkim_result.result is AuthResult.PASS
        ]
        spf = self.spf
        return {
            "spf": spf.domain if spf and spf.result is AuthResult.PASS else None,
            "dkim": next(iter(passed), None),
            "dmarc": self.dmarc.result.value if self.dmarc.result in _STORED_RESULTS else None,
            "arc": self.arc.result.value if self.arc.result in _STORED_RESULTS else None,
            "results": "; ".join([host, *self.result_texts()]),
            "policy": self.policy_to_apply,  # what is done with it
            "sealer": self.trusted_sealer,
        }


def _result_text(method: str, result: AuthResult, reason: str, properties: dict[str, str]) -> str:
    """Return one result in the form of Authentication-Results (RFC 8601).

    Properties whose value does not look like a domain are omitted.
    """
    result_words = [f"{method}={result.value}", f"({reason})" if reason else ""]
    result_words += [
        f"{name}={value}" for name, value in properties.items() if _DOMAIN.fullmatch(value)
    ]
    return " ".join(filter(None, result_words))
