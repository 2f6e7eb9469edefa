"""Build and check a release: `make release`."""
