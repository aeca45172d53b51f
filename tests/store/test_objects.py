"""What the lake needs of a store: whole objects, names given once, listings, and errors in one line."""

from __future__ import annotations

import hashlib
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jacobian_core.errors import LakeError
from jacobian_core.lake import files
from jacobian_core.lake import store as objects
from jacobian_core.lake.layout import Lake
from jacobian_core.lake.paths import StorePath, lake_path, local_folder
from tests.stand_ins.s3_server import BUCKET, S3Server

MODES = ("normal", "ignores conditions", "refuses conditions")


def place(name: str) -> StorePath:
    found = lake_path(f"s3://{BUCKET}/{name}")
    assert isinstance(found, StorePath)
    return found


def test_a_path_is_its_address() -> None:
    root = place("a/b/")
    assert str(root / "runs" / "x.json") == f"s3://{BUCKET}/a/b/runs/x.json"
    assert ((root / "x").key, root.bucket, place("").key) == ("a/b/x", BUCKET, "")
    assert (root / "x" / "y").relative_to(root).as_posix() == "x/y"
    again = pickle.loads(pickle.dumps(root))
    assert (again, str(again), type(again.parent)) == (root, str(root), StorePath)
    assert lake_path("lake") == Path("lake")
    with pytest.raises(LakeError, match="begin with s3://"):  # a folder named 's3:' is never meant
        lake_path(Path(str(root)))


@pytest.mark.parametrize(
    "text",
    ["gs://bucket/x", "s3://", "s3:///x", "s3://UP_PER/x", "s3://bucket/../x", "s3://bucket/a//b", "s3://bucket/*",
     "s3://bucket/x?y", "s3:/x", "s3://key:secret@bucket/x"],
)  # fmt: skip
def test_what_is_no_lake_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(LakeError) as raised:
        lake_path(text)
    assert "\n" not in str(raised.value)
    assert "s3://bucket/prefix" in raised.value.remedy
    assert "secret" not in raised.value.problem


def test_put_get_list_and_delete(store: S3Server) -> None:
    root = place("basics")
    assert files.read_bytes(root / "x") is None
    assert files.list_folder(root) == []
    assert not files.is_folder(root)
    files.write_atomic(root / "b" / "y.json", b"2")
    files.write_atomic(root / "x", b"1")
    files.write_atomic(root / "x", b"11")
    assert files.list_folder(root) == [root / "b", root / "x"]
    assert files.read_all([root / "x", root / "no", root / "b" / "y.json"]) == [b"11", None, b"2"]
    assert files.sizes_of([root / "x", root / "no"]) == [2, None]
    assert (files.is_file(root / "b"), files.is_folder(root / "b")) == (False, True)
    assert abs(files.modified(root / "x") - time.time()) < 60
    assert files.sha256_of(root / "x") == hashlib.sha256(b"11").hexdigest()
    files.remove(root / "x")
    files.remove(root / "x")
    files.remove_tree(root)
    assert not files.is_folder(root)
    with pytest.raises(LakeError, match="it is gone"):
        files.modified(root / "x")


def test_many_sizes_come_from_listings(store: S3Server) -> None:
    paths = [place(f"many/{folder}/{n}") for folder in "ab" for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: files.write_atomic(path, b"x" * (1 + paths.index(path))), paths))
    asked = [*paths, place("many/a/none")]
    assert files.sizes_of(asked) == [*range(1, 41), None]


@pytest.mark.parametrize("mode", MODES)
def test_a_name_is_given_once(store: S3Server, mode: str) -> None:
    path = place(f"once/{mode.replace(' ', '-')}")
    with store.being(mode):
        assert files.write_new(path, b"first")
        assert not files.write_new(path, b"second")
    assert files.read_bytes(path) == b"first"


def test_of_many_at_once_one_gets_the_name(store: S3Server) -> None:
    path = place("race")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: files.write_new(path, str(n).encode()), range(8)))
    assert won.count(True) == 1
    assert files.read_bytes(path) == str(won.index(True)).encode()


def test_what_has_changed_is_not_replaced(store: S3Server) -> None:
    path = place("versions")
    assert files.version_of(path) is None
    assert files.write_over(path, b"1", None)
    before = files.version_of(path)
    assert not files.write_over(path, b"no", None)
    assert files.write_over(path, b"2", before)
    assert not files.write_over(path, b"3", before)
    assert files.read_bytes(path) == b"2"


def test_a_large_file_is_sent_in_parts_and_appears_whole(
    store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_PART_BYTES", 5 << 20)
    source, path = tmp_path / "large", place("large")
    content = hashlib.sha256(b"seed").digest() * (12 << 15)
    source.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    assert objects.put_file(path, source, sha256, new=True)
    assert store.client().head_object(Bucket=BUCKET, Key="large")["ETag"].endswith('-3"')  # of several parts
    assert not objects.put_file(path, source, sha256, new=True)
    found = objects.head(path)
    assert found is not None
    assert (found.size, found.sha256) == (len(content), sha256)
    with files.on_disk(path) as copy:
        assert copy.read_bytes() == content
    assert not copy.exists()


def test_uploads_that_nobody_ends_are_given_up(store: S3Server) -> None:
    client = store.client()
    client.create_multipart_upload(Bucket=BUCKET, Key="stale/part")
    client.create_multipart_upload(Bucket=BUCKET, Key="other/part")
    assert files.list_folder(place("stale")) == []
    assert files.abort_uploads(place("stale")) == 1
    left = client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert [each["Key"] for each in left] == ["other/part"]
    assert objects.abort_uploads(place("other"), older_than_seconds=1e10) == 0  # it may still go on
    client.abort_multipart_upload(Bucket=BUCKET, Key="other/part", UploadId=left[0]["UploadId"])


def test_no_bucket(store: S3Server) -> None:
    for do in (Lake.create, Lake.open):
        with pytest.raises(LakeError, match=r"s3://absent/x.*there is no such bucket.*Create the bucket"):
            do("s3://absent/x")


@pytest.mark.parametrize("mode", ["denies", "reads only"])
def test_no_rights(store: S3Server, mode: str) -> None:
    with store.being(mode), pytest.raises(LakeError) as raised:
        Lake.create(f"s3://{BUCKET}/denied")
    assert "access was denied" in str(raised.value)
    assert "AWS_ACCESS_KEY_ID" in raised.value.remedy
    assert store.environment["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)


def test_what_only_this_machine_needs_is_in_the_cache(store: S3Server, tmp_path: Path) -> None:
    one, other = (local_folder(place(name)) for name in ("a/lake", "b/lake"))
    assert one != other
    assert all(folder.is_relative_to(tmp_path / "cache") for folder in (one, other))
    assert local_folder(tmp_path) == tmp_path
