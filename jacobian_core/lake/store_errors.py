"""What went wrong with an object store, in one line that names the place and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jacobian_core.artifact.redact import redact
from jacobian_core.errors import LakeError
from jacobian_core.lake.paths import StorePath

_RIGHTS = (
    "Give these credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) the right to list, read, "
    "write and delete there."
)
_AGAIN = "Then start the same command again: finished blocks are kept."
_REACH = f"Check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the network. {_AGAIN}"
_EXTRA = "Install the extra: pip install 'jacobian-flows[s3]'."
_BY_CODE = {
    "NoSuchBucket": ("there is no such bucket", "Create the bucket, or correct `--lake`."),
    "NoSuchKey": ("it is not there, or not any more", "Check `--lake`, or start the same command again."),
    "404": ("it is not there, or not any more", "Check `--lake`, or start the same command again."),
    "AccessDenied": ("access was denied", _RIGHTS),
    "403": ("access was denied", _RIGHTS),
    "InvalidAccessKeyId": ("the store does not know this access key", _RIGHTS),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", _RIGHTS),
    "ExpiredToken": ("the credentials have expired", f"Get new ones. {_AGAIN}"),
}


@contextmanager
def store_errors(path: StorePath | str, doing: str) -> Iterator[None]:
    """Turn what the store's client raises into a LakeError; FileNotFoundError too, where the block lets it through."""
    try:
        yield
    except LakeError:
        raise
    except ImportError as error:
        raise LakeError(
            f"{path}: can't {doing}: the package {error.name or 's3fs'} is not installed.", _EXTRA
        ) from error
    except Exception as error:
        found = _explained(error)
        if found is None:
            raise
        raise LakeError(f"{path}: can't {doing}: {found[0]}.", found[1]) from error


def code_of(error: BaseException) -> str:
    """The store's own code of an error, such as NoSuchKey; '' where it said none."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _explained(error: Exception) -> tuple[str, str] | None:
    """What is wrong, and the remedy; None for what no store's client raises."""
    from botocore import exceptions as boto

    if known := _BY_CODE.get(code_of(error)):
        return known
    if isinstance(error, boto.NoCredentialsError):
        return "no credentials were found", _RIGHTS
    if isinstance(error, (boto.ConnectionError, boto.HTTPClientError, TimeoutError)):
        return f"the store does not answer ({redact(str(error))})", _REACH
    if isinstance(error, (boto.BotoCoreError, boto.ClientError, OSError)):
        return redact(getattr(error, "strerror", None) or str(error)), f"Check the store. {_AGAIN}"
    return None
