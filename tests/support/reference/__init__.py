"""The reference in docs/reference, which `python -m tests.support.reference` writes."""
