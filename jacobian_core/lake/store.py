"""Objects of an S3-compatible store, as the lake needs them; `files` is the only caller.

The store must be what S3 has been since 2020: an object that was put is read and listed at once by everybody. A PUT, or
the completion of a multipart upload, shows a whole object or nothing, so there are no temporary names and no renames:
what is sent was written and checked on this machine's disk before. What an aborted multipart upload leaves is no
object; `abort_uploads` removes it, and a bucket's rule (AbortIncompleteMultipartUpload) does where nobody comes back.

`new` asks for a name that nobody else takes at the same moment: a look, then a conditional PUT (`If-None-Match: *`). A
store without conditional PUTs leaves the milliseconds between the two: `publish` says what that can mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jacobian_core.lake.paths import StorePath
from jacobian_core.lake.store_errors import code_of, store_errors

_THREADS = 16
_DELETED_AT_ONCE = 1000
_PART_BYTES = 50 << 20
"""Of an upload in parts, which a file of twice this size becomes."""
_TRIES = 2
"""Tries of a request beside those that the AWS settings name (AWS_MAX_ATTEMPTS), which come within each."""
_TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_UNKNOWN = ("NotImplemented", "501")
_ABSENT = ("NoSuchKey", "404")
_DIGEST = "sha256"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class StoredObject:
    """What the store says of an object; `sha256` is what we said of its bytes when we put it."""

    size: int
    version: str
    modified: float
    sha256: str | None = None


def filesystem() -> Any:
    """The fsspec file system of this process, with the standard AWS settings; LakeError where the extra is missing."""
    with store_errors("s3://", "open the store"):
        import fsspec

        found = fsspec.filesystem("s3", use_listings_cache=False, default_fill_cache=False)
        found.retries = _TRIES
        return found


def _call(path: StorePath, doing: str, method: str, **arguments: Any) -> Any:
    with store_errors(path, doing):
        return filesystem().call_s3(method, Bucket=path.bucket, **arguments)


def head(path: StorePath) -> StoredObject | None:
    """What the store says of an object; None where there is none."""
    with store_errors(path, "look at the object"):
        try:
            found = filesystem().call_s3("head_object", Bucket=path.bucket, Key=path.key)
        except FileNotFoundError:
            return None
    return StoredObject(
        found["ContentLength"], found["ETag"], found["LastModified"].timestamp(), found["Metadata"].get(_DIGEST)
    )


def heads(paths: Sequence[StorePath]) -> list[StoredObject | None]:
    """The same of many objects: one request each where they are few, else a listing of their folders."""
    folders = {path.parent for path in paths}
    if len(paths) <= _THREADS * len(folders):
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(head, paths))
    listed = {folder / name: each for folder in folders for name, each in listing(folder).items()}
    return [listed.get(path) for path in paths]


def get(path: StorePath) -> bytes | None:
    """An object's bytes; None where there is none, LakeError where there is no bucket either."""
    with store_errors(path, "read the object"):
        try:
            return _waited(_read, path)
        except FileNotFoundError as error:
            if code_of(error) not in _ABSENT:
                raise
            return None


async def _read(client: Any, path: StorePath) -> bytes:
    """One request; the file system's own `cat_file` asks for the object's size first."""
    found = await client._call_s3("get_object", Bucket=path.bucket, Key=path.key)
    async with found["Body"] as body:
        content: bytes = await body.read()
    return content


def _waited(asked: Callable[..., Coroutine[Any, Any, Answer]], *arguments: Any) -> Answer:
    """What a coroutine over the file system returns, from whatever thread."""
    from fsspec.asyn import sync

    client = filesystem()
    answer: Answer = sync(client.loop, asked, client, *arguments)
    return answer


def gets(paths: Sequence[StorePath]) -> list[bytes | None]:
    """The bytes of many objects, several at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(get, paths))


def get_file(path: StorePath, to: Path) -> None:
    """Copy an object to the disk."""
    with store_errors(path, "read the object"):
        filesystem().get_file(f"{path.bucket}/{path.key}", str(to))


def open_input(path: StorePath) -> Any:
    """An object as a file that pyarrow reads, a range at a time."""
    return arrow_filesystem().open_input_file(f"{path.bucket}/{path.key}")


def arrow_filesystem() -> Any:
    """The store for pyarrow, with the same settings and credentials."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    handler: Any = FSSpecHandler
    return PyFileSystem(handler(filesystem()))


def put(path: StorePath, data: bytes, new: bool = False, version: str | None = None) -> bool:
    """Put an object whole; False (and nothing put) where it has to be new and is there, or has another version now."""
    if new and head(path) is not None:
        return False
    condition = {"IfNoneMatch": "*"} if new else {"IfMatch": version} if version else {}
    with store_errors(path, "write the object"):
        return _on_condition(condition, lambda given: filesystem().call_s3(
            "put_object", Bucket=path.bucket, Key=path.key, Body=data, **given))  # fmt: skip


def put_file(path: StorePath, source: Path, sha256: str, new: bool = False) -> bool:
    """Put a file whole, in several parts where it is large; False where it has to be new and is there."""
    if new and head(path) is not None:
        return False
    metadata = {_DIGEST: sha256}
    with store_errors(path, "write the object"):
        return _on_condition({"mode": "create"} if new else {}, lambda given: filesystem().put_file(
            str(source), f"{path.bucket}/{path.key}", Metadata=metadata, chunksize=_PART_BYTES, **given)
        )  # fmt: skip


def _on_condition(condition: dict[str, str], send: Any) -> bool:
    """Send under a condition, or without it where the store knows none; False where the condition does not hold."""
    try:
        send(condition)
    except OSError as error:
        if not condition or code_of(error) not in _TAKEN + _UNKNOWN:
            raise
        if code_of(error) in _TAKEN:
            return False
        send({})
    return True


def listing(folder: StorePath) -> dict[str, StoredObject | None]:
    """What is directly below a prefix, by name, sorted: objects, and None for prefixes that go on."""
    found: dict[str, StoredObject | None] = {}
    start = f"{folder.key}/" if folder.key else ""
    for page in _pages(folder, Prefix=start, Delimiter="/"):
        for each in page.get("CommonPrefixes", ()):
            found[each["Prefix"].removeprefix(start).rstrip("/")] = None
        for each in page.get("Contents", ()):
            if name := each["Key"].removeprefix(start):
                found[name] = StoredObject(each["Size"], each["ETag"], each["LastModified"].timestamp())
    return dict(sorted(found.items()))


def _pages(folder: StorePath, **arguments: Any) -> Iterator[Any]:
    while True:
        page = _call(folder, "list the prefix", "list_objects_v2", **arguments)
        yield page
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


def any_below(folder: StorePath) -> bool:
    """Whether there is any object below a prefix."""
    page = _call(folder, "list the prefix", "list_objects_v2", Prefix=f"{folder.key}/", MaxKeys=1)
    return bool(page.get("Contents"))


def delete(path: StorePath) -> None:
    """Remove an object if it is there."""
    _call(path, "remove the object", "delete_object", Key=path.key)


def delete_below(folder: StorePath) -> None:
    """Remove every object below a prefix."""
    pages = _pages(folder, Prefix=f"{folder.key}/")
    keys = [{"Key": each["Key"]} for page in pages for each in page.get("Contents", ())]
    for at in range(0, len(keys), _DELETED_AT_ONCE):
        some = {"Objects": keys[at : at + _DELETED_AT_ONCE], "Quiet": True}
        _call(folder, "remove the objects", "delete_objects", Delete=some)


def abort_uploads(folder: StorePath, older_than_seconds: float) -> int:
    """Give up multipart uploads below a prefix that began so long ago that nobody goes on with them; how many."""
    page = _call(folder, "list the uploads", "list_multipart_uploads", Prefix=f"{folder.key}/")
    before = time.time() - older_than_seconds
    stale = [each for each in page.get("Uploads", ()) if each["Initiated"].timestamp() < before]
    for each in stale:
        _call(folder, "give up an upload", "abort_multipart_upload", Key=each["Key"], UploadId=each["UploadId"])
    return len(stale)
