"""Tests of mail: storage, blobs."""
