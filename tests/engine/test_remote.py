"""Images at URLs: found, read, tried again, and failed by name, on fsspec's memory and a server in a thread."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine import remote
from engine.images import ScanOptions, Source
from engine.remote import content_at, images_at, is_url, opened, public_name, read_url
from engine.sources import count_images, find_images
from saccade.errors import ConfigError, DataError, ImageError
from tests.engine.places import content, picture

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


@pytest.fixture
def memory() -> Iterator[Callable[..., None]]:
    """A function that puts files into fsspec's memory."""
    system = fsspec.filesystem("memory")

    def put(**files: bytes) -> None:
        for path, data in files.items():
            system.pipe(path, data)

    yield put
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@dataclass
class Server:
    """A web server: what it answers at a path, once and then from there on, and how often it was asked."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    ranges: bool = True
    asked: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        state, path = self.state, self.path.partition("?")[0]
        state.asked[f"{self.command} {self.path}"] += 1
        state.headers.append(dict(self.headers))
        usual = 200 if path in state.files else 404
        status = answers.pop(0) if (answers := state.answers.get(path)) else usual
        body = state.files.get(path, b"") if status == 200 else b"sorry"
        if status == 200 and state.ranges and (range_ := self.headers.get("Range")):
            first, last = map(int, range_.removeprefix("bytes=").split("-"))
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body and path in state.cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    handler = type("OneHandler", (Handler,), {})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.state = state = Server(f"http://127.0.0.1:{httpd.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited for."""
    waited: list[float] = []
    monkeypatch.setattr("engine.remote.time.sleep", waited.append)
    return waited


def packed(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def found(*inputs: str, **options: Any) -> dict[str, bytes | str]:
    return {source.name: content(source) for source in find_images(inputs, ScanOptions(**options))}


def failure(url: str) -> ImageError:
    with pytest.raises(ImageError) as error:
        read_url(url)
    return error.value


# Folders and files of object stores.

TREE = ("/photos/z.png", "/photos/a.JPG", "/photos/b/2.png", "/photos/a/x/1.png", "/photos/notes.txt", "/other/c.png")


def test_a_folder_is_walked_in_sorted_order_with_files_before_subfolders(memory: Callable[..., None]) -> None:
    memory(**{path: path.encode() for path in TREE})
    assert list(found("memory://photos").items()) == [
        ("memory://photos/a.JPG", b"/photos/a.JPG"),
        ("memory://photos/z.png", b"/photos/z.png"),
        ("memory://photos/a/x/1.png", b"/photos/a/x/1.png"),
        ("memory://photos/b/2.png", b"/photos/b/2.png"),
    ]


@pytest.mark.parametrize("root", ["memory://photos/", "memory:///photos"])
def test_names_begin_as_the_url_was_given(memory: Callable[..., None], root: str) -> None:
    memory(**{"/photos/a.png": b"a", "/photos/b/c.png": b"c"})
    assert found(root) == {f"{root.rstrip('/')}/a.png": b"a", f"{root.rstrip('/')}/b/c.png": b"c"}


def test_a_whole_store_is_walked(memory: Callable[..., None]) -> None:
    memory(**{"/a.png": b"a", "/b/c.png": b"c"})
    assert found("memory://") == {"memory://a.png": b"a", "memory://b/c.png": b"c"}


def test_hidden_files_are_passed_over_unless_asked_for(memory: Callable[..., None]) -> None:
    memory(**{"/p/.a.png": b"", "/p/.git/b.png": b"", "/p/c.png": b""})
    assert list(found("memory://p")) == ["memory://p/c.png"]
    assert list(found("memory://p", hidden=True)) == [
        f"memory://p/{name}" for name in (".a.png", "c.png", ".git/b.png")
    ]


def test_a_file_that_is_given_is_always_tried(memory: Callable[..., None]) -> None:
    memory(**{"/notes.txt": b"text"})
    assert found("memory://notes.txt") == {"memory://notes.txt": b"text"}


def test_odd_names_are_kept(memory: Callable[..., None]) -> None:
    names = ["a b.png", "a#b.png", "a?b.png", "a%20b.png", "ü.png", "[x].png"]
    memory(**{f"/p/{name}": name.encode() for name in names})
    assert found("memory://p") == {f"memory://p/{name}": name.encode() for name in names}


def test_a_folder_of_files_is_not_read_before_its_turn(memory: Callable[..., None]) -> None:
    memory(**{"/p/a.png": b"a", "/p/b/c.png": b"c"})
    sources = find_images(["memory://p"])
    assert next(sources).name == "memory://p/a.png"
    memory(**{"/p/b/d.png": b"d"})
    assert [source.name for source in sources] == ["memory://p/b/c.png", "memory://p/b/d.png"]


def test_nothing_at_a_url_is_an_error_where_it_is_given_and_a_failed_image_where_it_is_listed(
    memory: Callable[..., None], tmp_path: Path, waits: list[float]
) -> None:
    with pytest.raises(DataError, match=r"^memory://nothing cannot be read \(no such file\): leave it out"):
        found("memory://nothing")
    listed = tmp_path / "list"
    listed.write_text("memory://nothing\nmemory://gone.png\nmemory://gone.tar\nnope://x\nnope://x.png\n")
    assert found(f"@{listed}") == {
        "memory://nothing": "missing",
        "memory://gone.png": "missing",
        "memory://gone.tar": "missing",
        "nope://x": "unsupported",
        "nope://x.png": "unsupported",
    }
    assert waits == []


def test_a_listed_image_is_not_looked_for_before_its_turn(memory: Callable[..., None], tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("memory://late.png\n")
    [source] = find_images([f"@{listed}"])
    memory(**{"/late.png": b"here"})
    assert content(source) == b"here"


def test_a_subfolder_that_cannot_be_listed_is_a_failed_image(
    memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    memory(**{"/p/a.png": b"a", "/p/locked/b.png": b"b", "/p/lost/c.png": b"c", "/p/z/d.png": b"d"})
    system = type(fsspec.filesystem("memory"))
    ls = system.ls

    def refuse(self: Any, path: str, **options: Any) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        if path.endswith("lost"):
            raise ConnectionError("reset")
        return ls(self, path, **options)

    monkeypatch.setattr(system, "ls", refuse)
    assert found("memory://p") == {
        "memory://p/a.png": b"a",
        "memory://p/locked": "permission",
        "memory://p/lost": "unreadable",
        "memory://p/z/d.png": b"d",
    }
    assert waits == [0.5, 1.0]


def test_a_folder_that_lists_itself_is_walked_once_and_its_listing_is_not_kept(
    memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As object stores do with folders that have a mark; and as fsspec does unless it is told."""
    memory(**{"/p/a.png": b"a", "/p/b/c.png": b"c"})
    system = type(fsspec.filesystem("memory"))
    ls, forgotten = system.ls, []

    def with_itself(self: Any, path: str, **options: Any) -> Any:
        return [{"name": f"{path}/", "type": "directory"}, *ls(self, path, **options)]

    monkeypatch.setattr(system, "ls", with_itself)
    monkeypatch.setattr(system, "invalidate_cache", lambda self, path: forgotten.append(path))
    assert list(found("memory://p")) == ["memory://p/a.png", "memory://p/b/c.png"]
    assert forgotten == ["/p", "/p/b"]


def test_local_urls_are_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b" / "c.png").write_bytes(b"c")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert found(f"file://{tmp_path}") == {f"file://{tmp_path}/a.png": b"a", f"file://{tmp_path}/b/c.png": b"c"}


def test_contents_may_go_to_another_process(memory: Callable[..., None], server: Server) -> None:
    memory(**{"/p/a.png": b"a"})
    server.files = {"/b.png": b"b"}
    sources = [*find_images(["memory://p"]), *find_images([f"{server.address}/b.png"])]
    assert [content(pickle.loads(pickle.dumps(source))) for source in sources] == [b"a", b"b"]


# Archives and tables.


def test_archives_are_read_from_stores_and_servers(memory: Callable[..., None], server: Server) -> None:
    data = packed(**{"a.png": picture(1), "b.png": picture(2)})
    memory(**{"/s/0.tar": data, "/s/1.tar": data})
    server.files, server.ranges = {"/0.tar": data}, False
    names = ["memory://s/0.tar", "memory://s/1.tar", f"{server.address}/0.tar?key=1"]
    assert found("memory://s/{0..1}.tar", names[2]) == {
        f"{name}/{member}": picture(shade) for name in names for member, shade in (("a.png", 1), ("b.png", 2))
    }
    assert server.asked == {"GET /0.tar?key=1": 1}


def test_an_archive_whose_connection_is_cut_gives_what_came_and_then_says_so(server: Server) -> None:
    images = {f"{shade}.png": picture(shade) * 500 for shade in range(200)}
    server.files, server.cut = {"/0.tar": packed(**images)}, {"/0.tar"}
    got = found(f"{server.address}/0.tar")
    assert got.pop(f"{server.address}/0.tar") == "unreadable"
    assert 20 < len(got) < 110  # aiohttp drops the last two megabytes
    assert list(got.values()) == list(images.values())[: len(got)]


def test_tables_are_read_from_stores_and_from_servers_that_answer_ranges(
    memory: Callable[..., None], server: Server
) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    cells = [picture(1), picture(2)]
    parquet.write_table(pa.table({"image": cells, "ballast": [bytes(range(256)) * 50_000] * 2}), buffer)
    memory(**{"/t.parquet": buffer.getvalue()})
    server.files = {"/t.parquet": buffer.getvalue()}
    urls = ["memory://t.parquet", f"{server.address}/t.parquet?key=1"]
    assert found(*urls) == {f"{url}#{row}": cells[row] for url in urls for row in (0, 1)}


def test_paths_in_a_remote_table_are_found_from_its_folder(memory: Callable[..., None], server: Server) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"path": ["a.png", "memory://b.png", "b c.png", "gone.png"]}), buffer)
    memory(**{"/b.png": b"b"})
    server.files = {"/d/t.parquet": buffer.getvalue(), "/d/a.png": b"a", "/d/b%20c.png": b"bc"}
    table = f"{server.address}/d/t.parquet"
    assert found(f"{table}?key=1") == {
        f"{table}?key=1#0": b"a",
        f"{table}?key=1#1": b"b",
        f"{table}?key=1#2": b"bc",
        f"{table}?key=1#3": "missing",
    }


def test_a_table_that_may_not_be_read_is_told_from_one_that_is_not_there(server: Server, waits: list[float]) -> None:
    """fsspec says of both that there is no such file."""
    url = f"{server.address}/t.parquet"
    with pytest.raises(DataError, match=r"no such file|HTTP 404"):
        found(url)
    server.answers = {"/t.parquet": [403, 403]}
    with pytest.raises(DataError, match=r"t\.parquet cannot be read \(HTTP 403\)"):
        found(url)
    assert waits == []
    server.answers = {"/t.parquet": [500] * 6}
    with pytest.raises(DataError, match=r"t\.parquet cannot be read \(HTTP 500\)"):
        found(url)
    assert waits == [0.5, 1.0]


class Failing(io.BytesIO):
    """A file that is well until it fails."""

    def read(self, size: int | None = -1) -> bytes:
        if chunk := super().read(size):
            return chunk
        raise ConnectionError("lost http://user:secret@proxy")


class Endless:
    """A file that has no end."""

    def __enter__(self) -> Endless:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, size: int) -> bytes:
        return bytes(size)


def test_what_came_before_an_error_is_given_before_it(
    memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", lambda *_, **__: Failing(b"before"))
    with opened("memory://x", seekable=False) as file:
        assert file.read(6) == b"before"
        with pytest.raises(ImageError) as error:
            file.read(1)
    expected = "memory://x cannot be read (ConnectionError: lost http://proxy)"
    assert (error.value.kind, str(error.value)) == ("unreadable", expected)


@pytest.mark.timeout(60)
def test_a_file_without_an_end_is_read_to_the_limit(
    memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 10_000_000)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", lambda *_, **__: Endless())
    assert failure("memory://x").kind == "too_large"


# HTTP.


def test_an_address_is_one_file_asked_for_once_with_its_query(server: Server) -> None:
    server.files = {"/a.jpg": b"image", "/folder": b"page"}
    urls = [f"{server.address}/a.jpg?x=1&y=%2F", f"{server.address}/folder"]
    assert found(*urls) == {urls[0]: b"image", urls[1]: b"page"}
    assert server.asked == {"GET /a.jpg?x=1&y=%2F": 1, "GET /folder": 1}


def test_braces_make_addresses(server: Server) -> None:
    server.files = {f"/{number:03d}.jpg": b"%d" % number for number in range(8, 11)}
    assert list(found(f"{server.address}/{{008..010}}.jpg").values()) == [b"8", b"9", b"10"]


def test_an_error_that_passes_is_waited_for(server: Server, waits: list[float]) -> None:
    server.files, server.answers = {"/a.jpg": b"image"}, {"/a.jpg": [500, 503]}
    assert read_url(f"{server.address}/a.jpg") == b"image"
    assert waits == [0.5, 1.0]


def test_an_error_that_stays_is_tried_three_times(server: Server, waits: list[float]) -> None:
    server.answers = {"/a.jpg": [500] * 9}
    error = failure(f"{server.address}/a.jpg")
    assert (error.kind, str(error)) == ("unreadable", f"{server.address}/a.jpg cannot be read (HTTP 500)")
    assert (waits, server.asked) == ([0.5, 1.0], {"GET /a.jpg": 3})


@pytest.mark.parametrize(
    ("status", "kind"), [(404, "missing"), (410, "missing"), (401, "permission"), (403, "permission")]
)
def test_what_no_try_can_change_is_asked_for_once(server: Server, waits: list[float], status: int, kind: str) -> None:
    server.answers = {"/a.jpg": [status]}
    assert failure(f"{server.address}/a.jpg").kind == kind
    assert (waits, server.asked.total()) == ([], 1)


def test_a_connection_that_is_cut_is_tried_again_and_never_half_an_image(server: Server, waits: list[float]) -> None:
    server.files, server.cut = {"/a.jpg": b"image" * 1000}, {"/a.jpg"}
    assert failure(f"{server.address}/a.jpg").kind == "unreadable"
    assert server.asked == {"GET /a.jpg": 3}
    server.cut.clear()
    assert read_url(f"{server.address}/a.jpg") == b"image" * 1000


def test_a_server_that_is_not_there_is_a_failed_image(server: Server, waits: list[float]) -> None:
    assert failure("http://127.0.0.1:9/a.jpg").kind == "unreadable"
    assert waits == [0.5, 1.0]


def test_no_more_than_the_limit_is_read(
    server: Server, memory: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    server.files = {"/a.jpg": bytes(1000), "/b.jpg": bytes(1001), "/c.jpg": bytes(50_000_000)}
    memory(**{"/b.jpg": bytes(1001)})
    assert len(read_url(f"{server.address}/a.jpg")) == 1000
    for url in (f"{server.address}/b.jpg", f"{server.address}/c.jpg", "memory://b.jpg"):
        error = failure(url)
        assert error.kind == "too_large"
        assert (error.__cause__, error.__context__) == (None, None), "it would keep in memory what was read"


def test_many_threads_read_at_once(server: Server) -> None:
    server.files = {f"/{number}.jpg": b"%d" % number for number in range(40)}
    sources = list(find_images([f"{server.address}/{{0..39}}.jpg"]))
    results: dict[str, bytes | str] = {}
    threads = [
        threading.Thread(
            target=lambda share: results.update({s.name: content(s) for s in share}), args=(sources[k::8],)
        )
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {f"{server.address}/{number}.jpg": b"%d" % number for number in range(40)}


# Credentials.


def with_password(address: str) -> str:
    return address.replace("://", "://user:secret@")


def test_a_password_is_used_and_never_told(server: Server, waits: list[float]) -> None:
    server.files = {"/a.jpg": b"image"}
    server.answers = {"/500.jpg": [500] * 3, "/403.jpg": [403]}
    names = ("a.jpg", "500.jpg", "403.jpg", "404.jpg", "0.tar", "0.parquet")
    urls = [f"{with_password(server.address)}/{name}" for name in names]
    for url, name in zip(urls[:4], names, strict=False):
        [source] = find_images([url])
        assert source.name == f"{server.address}/{name}"
        content(source)
        assert "Basic" in server.headers[-1]["Authorization"]
    texts = [str(failure(url)) for url in urls[1:]]
    for url in urls[4:]:
        with pytest.raises(DataError) as error:
            found(url)
        texts.append(str(error.value))
    dead = "http://user:secret@127.0.0.1:9/a.jpg"
    texts += [str(failure(dead)), str(failure("memory://user:secret@x/a.jpg")), str(failure("nope://u:secret@x/a"))]
    assert not [text for text in texts if "secret" in text]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://user:pass@host/a.jpg", "https://host/a.jpg"),
        ("https://token@host:1/a.jpg?x=@", "https://host:1/a.jpg?x=@"),
        ("sftp://user:p@ss@host/a.jpg", "sftp://host/a.jpg"),
        ("https://host/a@b.jpg", "https://host/a@b.jpg"),
        ("https://host?user:pass@x", "https://host?user:pass@x"),
        ("abfs://container@account/a.jpg", "abfs://container@account/a.jpg"),
        ("s3://bucket/a:b@c.jpg", "s3://bucket/a:b@c.jpg"),
        ("no such http://u:p@h/a and https://v:q@i/b", "no such http://h/a and https://i/b"),
    ],
)
def test_names_are_without_users_and_passwords(url: str, name: str) -> None:
    assert public_name(url) == name


# What is not there.


def test_without_fsspec_or_its_parts_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    remote._filesystem_class.cache_clear()
    for url in ("s3://bucket/a.jpg", "gs://bucket/a.jpg"):
        monkeypatch.setitem(sys.modules, "s3fs", None)
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(ConfigError, match=r"^(s3|gs):// cannot be read here .*: pip install 'saccade\[cloud\]'"):
            found(url)
        with pytest.raises(ConfigError):
            content_at(url)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match=r"^memory:// cannot be read here .*: pip install 'saccade\[cloud\]'"):
        found("memory://a.jpg")
    remote._filesystem_class.cache_clear()


def test_a_scheme_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(DataError, match=r"nope://x/a\.jpg: nope:// is no kind of URL that fsspec knows: leave it out"):
        found("nope://x/a.jpg")


def test_what_a_url_is_not_counted() -> None:
    assert count_images(["memory://photos"]) is None


@pytest.mark.parametrize("text", ["s3://b", "http://h/a", "a+b.c-d://x"])
def test_urls_are_known_by_their_schemes(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["a.jpg", "/a://b", "3a://b", "a:/b", "://b", "a b://c"])
def test_paths_are_no_urls(text: str) -> None:
    assert not is_url(text)


def test_an_opened_file_is_read_in_order_and_from_anywhere(memory: Callable[..., None], server: Server) -> None:
    data = bytes(range(256)) * 40_000
    memory(**{"/x": data})
    server.files = {"/x": data}
    for url in ("memory://x", f"{server.address}/x"):
        with opened(url, seekable=True) as file:
            assert file.read(1000) == data[:1000]
            file.seek(-5, 2)
            assert file.read() == data[-5:]
            file.seek(7_000_000)
            assert file.read(3) == data[7_000_000:7_000_003]
        with opened(url, seekable=False) as file:
            assert file.read() == data


def test_a_source_of_a_url_is_its_name_and_a_function(server: Server) -> None:
    [source] = images_at(f"{server.address}/a.jpg", hidden=False)
    assert isinstance(source, Source)
    assert callable(source.content)
    assert server.asked == {}
