"""Sources on other machines: a file system in memory, and a web server on this machine."""

import base64
import gzip
import http.server
import json
import socket
import threading
import time

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.config import SourceConfig
from core.data.sources import open_sources, source_digests
from core.data.sources.remote import Remote
from core.errors import DataError


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def remote():
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


@pytest.fixture
def opened(tmp_path):
    return lambda path, **more: open_sources(
        [SourceConfig(path=path, **more)], tmp_path, cache=tmp_path / "cache"
    )[0]


def rows_of(source):
    return [json.loads(row) for _, batch in source.batches() for row in batch.rows]


class Site(http.server.BaseHTTPRequestHandler):
    """Pages by path; counts what is fetched and keeps the headers of the last request."""

    pages: dict = {}
    fetched: list = []
    versions = True

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.fetched.append((self.path, dict(self.headers)))
        self.answer(with_body=True)

    def answer(self, with_body):
        found = self.pages.get(self.path.partition("?")[0])
        if found is None or isinstance(found, int):
            self.send_error(found or 404)
            return
        start, end = 0, len(found)
        asked = self.headers.get("Range")
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, len(found))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(found)}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        if self.versions:
            self.send_header("ETag", str(hash(found)))
        self.end_headers()
        if with_body:
            self.wfile.write(found[start:end])

    def log_message(self, *words):
        pass


@pytest.fixture
def site():
    handler = type("OneSite", (Site,), {"pages": {}, "fetched": [], "versions": True})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    handler.url = f"127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("streaming", [False, True])
def test_files_folders_and_globs_are_read(remote, opened, streaming):
    remote.pipe("/b/x.jsonl", b'{"a": 1}\n')
    remote.pipe("/b/sub/y.csv.gz", gzip.compress(b"a\n2\n"))
    remote.pipe("/b/README.md", b"hello")
    remote.pipe("/b/.hidden/z.jsonl", b"{}")
    remote.pipe("/b/z.xlsx", b"sheet")
    more = {"streaming": streaming, "max_rows": 9}
    source = opened("memory://b", **more)
    assert [(origin, *map(json.loads, batch.rows)) for origin, batch in source.batches()] == [
        ("b/sub/y.csv.gz", {"a": "2"}),
        ("b/x.jsonl", {"a": 1}),
    ]
    assert source.passed_over == ("memory:///b/z.xlsx",)
    assert opened("memory://b/x.jsonl", **more).files == ("x.jsonl",)
    assert opened("memory://b/*.jsonl", **more).files == ("x.jsonl",)
    assert opened("memory://b/**/*.gz", **more).files == ("sub/y.csv.gz",)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_columnar_files_are_read(remote, opened, tmp_path, streaming, name):
    table, file = pa.table({"n": range(100)}), tmp_path / name
    if name == "x.parquet":
        pq.write_table(table, file, row_group_size=10)
    else:
        with pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table)
    remote.pipe("/" + name, file.read_bytes())
    assert rows_of(opened(f"memory://{name}", streaming=streaming, max_rows=7)) == [
        {"n": n} for n in range(7)
    ]


def test_a_download_is_kept_until_the_content_changes(site, opened, tmp_path):
    site.pages["/x.jsonl"] = b'{"a": 1}\n'
    url = f"http://{site.url}/x.jsonl"
    source = opened(url)
    assert rows_of(source) == rows_of(opened(url)) == [{"a": 1}]
    assert source.digests() == opened(url).digests()
    assert len(site.fetched) == 1
    (about,) = (tmp_path / "cache").rglob("about.json")
    assert json.loads(about.read_text())["digest"] == source.digests()[0][1]
    site.pages["/x.jsonl"] = b'{"a": 2}\n'
    assert rows_of(opened(url)) == [{"a": 2}]
    assert opened(url).digests() != source.digests()
    assert len(site.fetched) == 2


def test_without_a_version_a_file_is_fetched_for_every_look(site, opened):
    site.versions = False
    site.pages["/x.jsonl"] = b'{"a": 1}\n'
    url = f"http://{site.url}/x.jsonl"
    assert rows_of(opened(url)) == [{"a": 1}]
    site.pages["/x.jsonl"] = b'{"a": 2}\n'
    assert rows_of(opened(url)) == [{"a": 2}]


def test_the_digest_is_that_of_the_content(remote, opened, tmp_path):
    data = b'{"a": 1}\n'
    remote.pipe("/x.jsonl", data)
    (tmp_path / "x.jsonl").write_bytes(data)
    assert opened("memory://x.jsonl").digests() == opened("x.jsonl").digests()


@pytest.mark.parametrize("versions", [True, False])
def test_streams_leave_nothing_behind_and_their_digest_follows_the_content(site, opened, tmp_path, versions):
    site.versions = versions
    site.pages["/x.jsonl"] = b"".join(b'{"n": %d}\n' % n for n in range(1000))
    url = f"http://{site.url}/x.jsonl"
    source = opened(url, streaming=True, max_rows=10)
    assert rows_of(source) == [{"n": n} for n in range(10)]
    before = source.digests()
    assert before == opened(url, streaming=True, max_rows=10).digests()
    site.pages["/x.jsonl"] = site.pages["/x.jsonl"].replace(b"3", b"4")
    assert opened(url, streaming=True, max_rows=10).digests() != before
    assert not (tmp_path / "cache").exists()


def test_a_damaged_copy_in_the_cache_is_fetched_again(site, opened, tmp_path):
    site.pages["/x.jsonl"] = b'{"a": 1}\n'
    url = f"http://{site.url}/x.jsonl"
    rows_of(opened(url))
    (copy,) = (tmp_path / "cache").rglob("x.jsonl")
    copy.write_bytes(b"{")
    assert rows_of(opened(url)) == [{"a": 1}]


def direct(url, tmp_path):
    """Open an address that a config would refuse for the secrets in it."""
    return Remote(url, cache=tmp_path / "cache", streaming=False, max_rows=None)


def test_a_login_from_netrc_is_used(site, opened, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    site.pages["/x.jsonl"] = b'{"a": 1}\n'
    assert rows_of(opened(f"http://{site.url}/x.jsonl")) == [{"a": 1}]
    assert site.fetched[0][1]["Authorization"] == "Basic " + base64.b64encode(b"me:word").decode()


def test_secrets_of_an_address_are_used_and_never_shown(site, tmp_path):
    site.pages["/x.jsonl"] = b'{"a": 1}\n'
    source = direct(f"http://me:pass%40word@{site.url}/x.jsonl?X-Signature=abc123", tmp_path)
    assert rows_of(source) == [{"a": 1}]
    assert site.fetched[0][0] == "/x.jsonl?X-Signature=abc123"
    assert site.fetched[0][1]["Authorization"].startswith("Basic ")
    shown = [
        *source.files,
        *source.places,
        *source.notes,
        *(each for pair in source.digests() for each in pair),
    ]
    shown += [path.read_text() for path in (tmp_path / "cache").rglob("about.json")]
    shown += [str(path) for path in (tmp_path / "cache").rglob("*")]
    for secret in ("pass", "word", "abc123", "me:"):
        assert not any(secret in text for text in shown)


@pytest.mark.parametrize("path", ["/none.jsonl", "/secret.jsonl", "/ill.jsonl", "/x.xlsx"])
def test_no_error_shows_a_secret(site, tmp_path, path):
    site.pages |= {"/secret.jsonl": 403, "/ill.jsonl": 500, "/x.xlsx": b"x"}
    url = f"http://me:password@{site.url}{path}?token=abc123"
    with pytest.raises(DataError) as error:
        rows_of(direct(url, tmp_path))
    assert error.value.where == f"http://{site.url}{path}"
    assert error.value.fix
    assert error.value.__cause__ is None
    assert "password" not in str(error.value) and "abc123" not in str(error.value)
    expected = {
        "/none.jsonl": "no such file",
        "/secret.jsonl": "access is denied",
        "/ill.jsonl": "cannot be reached",
    }
    assert expected.get(path, "files ending in .xlsx cannot be read") in error.value.what


@pytest.mark.parametrize(
    ("url", "what", "fix"),
    [
        ("memory://none.jsonl", "no such file", "spelling"),
        ("memory://none/*.jsonl", "matches no file", "put in files"),
        ("s3://bucket/x.jsonl", "s3:// needs a package that is missing", "pip install s3fs"),
        ("gs://bucket/x.jsonl", "gs:// needs a package that is missing", "pip install gcsfs"),
        ("nowhere://x/y.jsonl", "nowhere:// is no known protocol", "https"),
        ("simplecache::memory://x.jsonl", "no such file or folder", "relative"),
        ("memory://a::memory://b.jsonl", "chained addresses cannot be read", "name the file"),
        ("http://127.0.0.1:9/x.jsonl", "cannot be reached", "check the address"),
        ("http://no-such-host.invalid/x.jsonl", "cannot be reached", "check the address"),
        ("ftp://127.0.0.1:9/x.jsonl", "cannot be reached", "check the address"),
        ("ftp://no-such-host.invalid/x.jsonl", "cannot be reached", "check the address"),
        ("ftp:///x.jsonl", "is no usable address", "https"),
        ("ftp://h:port/x.jsonl", "is no usable address", "https"),
    ],
)
def test_what_is_not_there_is_told_at_once(remote, opened, url, what, fix):
    if "pip install" in fix and _has(url):
        pytest.skip("the package is installed here")
    start = time.monotonic()
    with pytest.raises(DataError) as error:
        opened(url)
    assert time.monotonic() - start < 60
    assert what in error.value.what
    assert fix in error.value.fix


@pytest.mark.parametrize("scheme", ["ftp", "sftp", "ssh", "smb", "webhdfs", "github", "nowhere"])
def test_every_scheme_fails_with_one_error_without_secrets(tmp_path, scheme):
    with pytest.raises(DataError) as error:
        direct(f"{scheme}://me:p4ssw0rd@127.0.0.1:9/x.jsonl", tmp_path)
    assert error.value.where == f"{scheme}://127.0.0.1:9/x.jsonl"
    assert error.value.fix
    assert error.value.__suppress_context__
    assert "p4ssw0rd" not in str(error.value)


def test_a_refused_ftp_login_shows_no_password(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        talk = threading.Thread(target=_refuse, args=[server])
        talk.start()
        with pytest.raises(DataError, match="530 no entry") as error:
            direct(f"ftp://me:p4ssw0rd@127.0.0.1:{server.getsockname()[1]}/x.jsonl", tmp_path)
        talk.join()
    assert "p4ssw0rd" not in str(error.value)


def _refuse(server):
    client, _ = server.accept()
    with client, client.makefile("rwb", buffering=0) as talk:
        talk.write(b"220 hello\r\n")
        talk.readline()
        talk.write(b"331 password?\r\n")
        password = talk.readline().split()[-1]
        talk.write(b"530 no entry with " + password + b"\r\n")


def _has(url):
    try:
        fsspec.get_filesystem_class(url.split(":")[0])
    except ImportError:
        return False
    return True


def test_a_server_that_stops_in_the_middle_is_told(site, opened, monkeypatch):
    site.pages["/x.jsonl"] = b'{"a": 1}\n' * 1000

    def answer(self, with_body):
        self.send_response(200)
        self.send_header("Content-Length", "9000")
        self.end_headers()
        if with_body:
            self.wfile.write(b'{"a": 1}\n')

    monkeypatch.setattr(site, "answer", answer)
    with pytest.raises(DataError, match="cannot be reached"):
        rows_of(opened(f"http://{site.url}/x.jsonl"))
    assert len(site.fetched) == 3


def test_parquet_cannot_be_streamed_from_a_server_without_ranges(site, opened, tmp_path, monkeypatch):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    page = (tmp_path / "x.parquet").read_bytes()

    def answer(self, with_body):
        self.send_response(200)
        self.send_header("Accept-Ranges", "none")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if with_body:
            self.wfile.write(page)

    monkeypatch.setattr(site, "answer", answer)
    url = f"http://{site.url}/x.parquet"
    with pytest.raises(DataError, match="only sends whole files"):
        rows_of(opened(url, streaming=True, max_rows=1))
    assert rows_of(opened(url)) == [{"a": 1}]


def test_one_address_in_two_sources_is_refused(remote, tmp_path):
    remote.pipe("/x.jsonl", b"{}")
    sources = [SourceConfig(path="memory://x.jsonl"), SourceConfig(path="memory:///x.jsonl")]
    with pytest.raises(DataError, match="belongs to"):
        open_sources(sources, tmp_path, cache=tmp_path)


def test_local_and_remote_sources_mix(remote, tmp_path):
    remote.pipe("/x.jsonl", b"{}")
    (tmp_path / "y.jsonl").write_text("{}")
    sources = [SourceConfig(path="memory://x.jsonl"), SourceConfig(path="y.jsonl")]
    names = [name for name, _ in source_digests(sources, tmp_path, cache=tmp_path / "cache")]
    assert names == ["x.jsonl", "y.jsonl"]
