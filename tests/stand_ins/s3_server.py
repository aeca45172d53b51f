"""An S3-compatible server (moto's) in a process of its own, that can be away for a while, or know no conditional PUTs.

`serve_s3` starts it. What it holds lives in the memory of its process, also while it is away.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BUCKET = "lakes"
CONDITIONS = ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH")
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"


class Application:
    """moto's WSGI application, with what a test asks for in front of it."""

    def __init__(self, moto: Callable[..., Iterable[bytes]]) -> None:
        self._moto = moto
        self.mode = "normal"

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        conditional = [name for name in CONDITIONS if name in environ]
        if self.mode == "ignores conditions":
            for name in conditional:
                del environ[name]
        if self.mode == "refuses conditions" and conditional:
            return _refuse(start, "501 Not Implemented", "NotImplemented", "A header implies what is not implemented")
        if self.mode == "denies" or (self.mode == "reads only" and environ["REQUEST_METHOD"] not in ("GET", "HEAD")):
            return _refuse(start, "403 Forbidden", "AccessDenied", "Access Denied")
        return self._moto(environ, start)


def _refuse(start: Callable[..., Any], status: str, code: str, message: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "application/xml")])
    return [_ERROR.format(code, message).encode()]


@dataclass
class S3Server:
    """The running server and how to talk to it."""

    url: str
    process: subprocess.Popen[str]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a user of this store sets; whatever else this machine knows of AWS is out of sight."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIAOFTHETESTS",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def tell(self, word: str) -> None:
        """`up`, `down`, or one of the application's modes; returns when it is so."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == word

    @contextmanager
    def being(self, mode: str) -> Iterator[None]:
        """For a while it ignores or refuses conditions, or denies."""
        self.tell(mode)
        try:
            yield
        finally:
            self.tell("normal")

    def client(self) -> Any:
        """A boto3 client, for what a test does behind the lake's back."""
        import boto3

        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.url, **keys)

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Every object below a prefix of the bucket, by the rest of its key."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
        return {
            key.removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in sorted(keys)
        }


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """A server with one empty bucket, until the context ends."""
    command = [sys.executable, "-m", "tests.stand_ins.s3_server"]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet
    ) as process:
        try:
            assert process.stdout is not None
            server = S3Server(process.stdout.readline().strip(), process)
            server.client().create_bucket(Bucket=BUCKET)
            yield server
        finally:
            process.kill()


class _Listening:
    """The HTTP server in a thread; it always gets the same port."""

    def __init__(self, application: Application) -> None:
        self._application, self.port = application, 0
        self.up()

    def up(self) -> None:
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", self.port, self._application, threaded=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def down(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def main() -> None:
    """Say the URL, then obey one word a line until the input ends."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    application = Application(DomainDispatcherApplication(create_backend_app))
    listening = _Listening(application)
    print(f"http://127.0.0.1:{listening.port}", flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word in ("up", "down"):
            getattr(listening, word)()
        else:
            application.mode = word
        print(word, flush=True)


if __name__ == "__main__":
    main()
