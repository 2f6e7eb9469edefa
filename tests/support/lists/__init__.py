"""Support for tests of lists: pages, filters and selections."""
