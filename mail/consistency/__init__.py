"""The verifier: what the store claims about itself, computed again and compared."""

from mail.consistency.all_checks import verify
from mail.consistency.report import Finding, Progress, Report

__all__ = ["Finding", "Progress", "Report", "verify"]
