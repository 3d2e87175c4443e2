"""fcn_jax.download against a real server on the loopback interface."""

import errno
import hashlib
import http.server
import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent import futures

import numpy as np
import pytest

from fcn_jax import download

BODY = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODY at /body; the server's attributes say how."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        if self.path != "/body":
            self.send_error(404)
            return
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and self.server.supports_range:
            start = int(match[1])
            if start >= len(BODY):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(BODY)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        stop = len(BODY) if self.server.breaks_at is None else self.server.breaks_at
        self.wfile.write(BODY[start:stop])

    def log_message(self, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []  # the Range header of each request
        self.supports_range = True
        self.breaks_at: int | None = None  # the connection closes before this byte
        self.url = f"http://127.0.0.1:{self.server_address[1]}/body"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_one_at_a_time(server, tmp_path):
    """Of several that want a file at once one downloads it."""

    def obtain(_: int) -> bytes:
        with download.exclusive(tmp_path / "new"):
            return download.fetch(server.url, tmp_path / "new" / "file", size=len(BODY), sha256=SHA256).read_bytes()

    with futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(obtain, range(4))) == [BODY] * 4
    assert server.ranges == [None]


def test_a_cache_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with download.exclusive(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_full(server, tmp_path, capfd):
    path = download.fetch(server.url, tmp_path / "a" / "file", size=len(BODY), sha256=SHA256, md5=MD5)
    assert path == tmp_path / "a" / "file"
    assert path.read_bytes() == BODY
    assert [file.name for file in path.parent.iterdir()] == ["file"]
    assert server.ranges == [None]
    assert "2.86M/2.86M" in capfd.readouterr().err  # of 1024 * 1024 bytes


def test_existing_file_is_trusted(server, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(BODY)
    monkeypatch.setattr(hashlib, "file_digest", None)  # hashing would fail
    assert download.fetch(server.url, path, size=len(BODY), sha256=SHA256) == path
    assert download.fetch(server.url, path) == path
    assert server.ranges == []


def test_existing_file_of_another_size_is_replaced(server, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(BODY[:-1])
    download.fetch(server.url, path, size=len(BODY), sha256=SHA256)
    assert path.read_bytes() == BODY


def test_resume_after_interrupt(server, tmp_path):
    path = tmp_path / "file"
    server.breaks_at = 1_234_567
    with pytest.raises(ConnectionError, match="it broke off at 1234567 of 3000000 bytes, run again") as error:
        download.fetch(server.url, path, md5=MD5)
    assert str(path) in str(error.value)
    assert server.url in str(error.value)
    assert "\n" not in str(error.value)
    assert not path.exists()
    server.breaks_at = None
    download.fetch(server.url, path, md5=MD5)
    assert server.ranges == [None, "bytes=1234567-"]
    assert path.read_bytes() == BODY


def test_without_a_hash_it_starts_again(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"of another file")
    assert download.fetch(server.url, tmp_path / "file", size=len(BODY)).read_bytes() == BODY
    assert server.ranges == [None]


def test_server_without_range(server, tmp_path):
    server.supports_range = False
    (tmp_path / "file.part").write_bytes(BODY[:1000])
    assert download.fetch(server.url, tmp_path / "file", sha256=SHA256).read_bytes() == BODY
    assert server.ranges == ["bytes=1000-"]


def test_whole_part_file(server, tmp_path):
    for size, ranges in ((len(BODY), []), (None, [f"bytes={len(BODY)}-"])):
        server.ranges.clear()
        (tmp_path / "file.part").write_bytes(BODY)
        path = download.fetch(server.url, tmp_path / "file", size=size, sha256=SHA256)
        assert path.read_bytes() == BODY
        assert server.ranges == ranges
        path.unlink()


def test_part_file_longer_than_the_file(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY + b"more")
    assert download.fetch(server.url, tmp_path / "file", sha256=SHA256).read_bytes() == BODY
    assert server.ranges == [f"bytes={len(BODY) + 4}-", None]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"size": 7, "sha256": SHA256}, "has 3000000 bytes, wanted 7"),
        ({"size": len(BODY), "sha256": "ab" * 32}, f"has sha256 {SHA256}, wanted {'ab' * 32}"),
        ({"md5": "cd" * 16}, f"has md5 {MD5}, wanted {'cd' * 16}"),
    ],
)
def test_wrong_file(server, tmp_path, wanted, message):
    with pytest.raises(ValueError, match=message) as error:
        download.fetch(server.url, tmp_path / "file", **wanted)
    assert str(error.value).startswith(server.url)
    assert list(tmp_path.iterdir()) == []


def test_a_part_file_of_another_file_does_not_survive(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="run again"):
        download.fetch(server.url, tmp_path / "file", sha256=SHA256)
    assert download.fetch(server.url, tmp_path / "file", sha256=SHA256).read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


def test_no_network(tmp_path):
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/body"
        with pytest.raises(ConnectionError, match="fetch it by hand and put it at " + str(tmp_path / "file")) as error:
            download.fetch(url, tmp_path / "file", sha256=SHA256)
    assert url in str(error.value)
    assert "\n" not in str(error.value)


def test_not_found(server, tmp_path):
    with pytest.raises(ConnectionError, match="404"):
        download.fetch(server.url + "x", tmp_path / "file")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a file that is always full")
def test_full_disk_keeps_the_part_file(server, tmp_path):
    part = tmp_path / "file.part"
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"cannot write {part}: No space left on device; free space") as error:
        download.fetch(server.url, tmp_path / "file", sha256=SHA256)
    assert error.value.errno == errno.ENOSPC
    assert part.is_symlink()


def test_verify(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    download.verify(path, size=3, sha256=sha256, md5="900150983cd24fb0d6963f7d28e17f72")
    with pytest.raises(ValueError, match="has 3 bytes, wanted 4"):
        download.verify(path, size=4)
    with pytest.raises(ValueError, match=f"has sha256 {sha256}, wanted 0"):
        download.verify(path, sha256="0")
