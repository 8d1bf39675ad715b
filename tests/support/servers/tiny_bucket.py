"""A bucket in this process that speaks as much of S3 as a store needs: objects with ETags, and conditions on them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


class TinyBucket(ThreadingHTTPServer):
    """The bucket named `tiny`.

    Attributes:
        objects: Contents by path.
        refusal: The status with which everything is refused; 0: nothing is.
        variables: With which servers find it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.objects: dict[str, bytes] = {}
        self.refusal = 0
        self.lock = threading.Lock()
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key-of-the-test",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        }


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TinyBucket

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.query:
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            with self.server.lock:
                found = [(path, each) for path, each in self.server.objects.items() if path.startswith(prefix)]
            listed = "".join(
                f"<Contents><Key>{escape(path)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{escape(_tag(each))}</ETag><Size>{len(each)}</Size></Contents>"
                for path, each in sorted(found)
            )
            self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>".encode())
            return
        content = self.server.objects.get(self._key)
        if content is None:
            self._answer(404)
        elif self.headers["If-None-Match"] == _tag(content):
            self._answer(304, tag=_tag(content))
        elif bounds := self.headers["Range"]:
            first, last = bounds.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1]
            end = int(first) + len(part) - 1
            self._answer(206, part, tag=_tag(content), spans=f"bytes {first}-{end}/{len(content)}")
        else:
            self._answer(200, content, tag=_tag(content))

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        given = self.rfile.read(int(self.headers["Content-Length"] or 0))
        source = self.headers["x-amz-copy-source"]
        with self.server.lock:
            before = self.server.objects.get(self._key)
            if source:
                copied = self.server.objects.get(_key(source))
                if copied is not None:
                    self.server.objects[self._key] = copied
                    result = f"<CopyObjectResult><ETag>{escape(_tag(copied))}</ETag></CopyObjectResult>"
                    self._answer(200, result.encode())
                else:
                    self._answer(404)
                return
            expected = self.headers["If-Match"]
            is_refused = self.headers["If-None-Match"] == "*" and before is not None
            if is_refused or (expected and (before is None or _tag(before) != expected)):
                self._answer(412)
                return
            self.server.objects[self._key] = given
            self._answer(200, tag=_tag(given))

    def do_DELETE(self) -> None:
        with self.server.lock:
            self.server.objects.pop(self._key, None)
        self._answer(204)

    def do_POST(self) -> None:  # of several at once, in a list
        asked = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        keys = [unescape(part.partition("</Key>")[0]) for part in asked.split("<Key>")[1:]]
        with self.server.lock:
            for key in keys:
                self.server.objects.pop(key, None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    @property
    def _key(self) -> str:
        return _key(self.path)

    def _answer(self, status: int, body: bytes = b"", *, tag: str = "", spans: str = "") -> None:
        if self.server.refusal:
            status, body = self.server.refusal, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        for name, value in (("ETag", tag), ("Content-Range", spans)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Does not log requests."""


def _key(path: str) -> str:
    return unquote(urlsplit(path).path).lstrip("/").removeprefix("tiny/")


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


@contextmanager
def tiny_bucket() -> Iterator[TinyBucket]:
    """Opens an empty one."""
    with TinyBucket() as bucket:
        threading.Thread(target=bucket.serve_forever, args=[0.01], daemon=True).start()
        try:
            yield bucket
        finally:
            bucket.shutdown()
