"""Sample accounts, messages and documents that benchmarks use."""
