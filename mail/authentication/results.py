"""Authentication results of a message and their text (RFC 8601)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mail.authentication.arc import Chain
from mail.authentication.dkim import Result, Verdict
from mail.authentication.dmarc import Dmarc
from mail.authentication.spf import Spf

FIELD = "Authentication-Results"
_DOMAIN = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_SAID = (Result.PASS, Result.FAIL, Result.NONE)  # results of DMARC and ARC that clients see


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of SPF, DKIM, DMARC and ARC for one message."""

    spf: Spf | None  # None: the client is unknown
    dkim: Sequence[Verdict]
    dmarc: Dmarc
    arc: Chain
    sealer: str | None = None  # the domain of the ARC seal that overrules DMARC

    @property
    def wanted(self) -> str:
        """The policy to apply for the domain in From: none, quarantine or reject."""
        failed = self.dmarc.result is Result.FAIL and self.sealer is None
        return self.dmarc.policy if failed else "none"

    def lines(self) -> list[str]:
        """The results as texts, one for each method and signature."""
        found = []
        if self.spf:
            name = "smtp.helo" if self.spf.helo else "smtp.mailfrom"
            found.append(_line("spf", self.spf.result, self.spf.why, {name: self.spf.domain}))
        for each in self.dkim:
            which = {"header.d": each.domain, "header.s": each.selector}
            shown = f' header.b="{each.shown}"' if each.shown else ""
            found.append(_line("dkim", each.result, each.why, which) + shown)
        if not self.dkim:
            found.append("dkim=none")
        found.append(self._dmarc())
        if self.arc.result is not Result.TEMPERROR:
            many = f"i={len(self.arc.links)}" if self.arc.links else ""
            why = ", ".join(filter(None, (many, self.arc.why)))
            found.append(_line("arc", self.arc.result, why, {}))
        return found

    def _dmarc(self) -> str:
        policy = f"p={self.dmarc.policy}" if self.dmarc.result is not Result.NONE else ""
        sealed = f"overruled by the seal of {self.sealer}" if self.sealer else ""
        why = ", ".join(filter(None, (policy, self.dmarc.why, sealed)))
        return _line("dmarc", self.dmarc.result, why, {"header.from": self.dmarc.domain})

    def header(self, host: str) -> bytes:
        """The Authentication-Results field in the name of this host."""
        return (f"{FIELD}: " + ";\r\n ".join([host, *self.lines()]) + "\r\n").encode()

    def verification(self, host: str) -> dict[str, Any]:
        """The results in the form that is stored with the message."""
        passed = [each.domain for each in self.dkim if each.result is Result.PASS]
        spf = self.spf
        return {
            "spf": spf.domain if spf and spf.result is Result.PASS else None,
            "dkim": next(iter(passed), None),
            "dmarc": self.dmarc.result.value if self.dmarc.result in _SAID else None,
            "arc": self.arc.result.value if self.arc.result in _SAID else None,
            "results": "; ".join([host, *self.lines()]),
            "policy": self.wanted,  # what is done with it
            "sealer": self.sealer,
        }


def _line(method: str, result: Result, why: str, properties: dict[str, str]) -> str:
    said = [f"{method}={result.value}", f"({why})" if why else ""]
    said += [f"{name}={value}" for name, value in properties.items() if _DOMAIN.fullmatch(value)]
    return " ".join(filter(None, said))
