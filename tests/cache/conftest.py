"""Fixtures of a bucket with a blob cache."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mail.storage.blobs.object_stores import BucketStore
from tests.support.stores.blob_caches import CachedBucket


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> BucketStore:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    prefix = os.urandom(6).hex()
    options = {"endpoint": s3_server, "region": "eu-west-1"}
    return BucketStore(f"s3://bucket/{prefix}", options)


@pytest.fixture
async def cached(bucket: BucketStore, tmp_path: Path) -> AsyncIterator[CachedBucket]:
    opened = CachedBucket.open(bucket, tmp_path / "cache")
    yield opened
    await opened.store.cache.close()
