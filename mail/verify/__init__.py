"""The verifier: what the store claims about itself, computed again and compared."""

from mail.verify.everything import verify
from mail.verify.report import Finding, Progress, Report

__all__ = ["Finding", "Progress", "Report", "verify"]
