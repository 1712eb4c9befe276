"""The page is read back as a browser reads it: by an HTML parser and, where it is installed, by Chromium."""

import base64
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.gallery import levels_from_alphas, write_gallery
from engine.records import Alternative, Attention, Failure, Record
from saccade.errors import OutputError

HOSTILE = (
    "</script><script>document.title='pwned'</script>",
    "</script ><p>",
    '"\'><img src=x onerror="document.title=`pwned`">',
    "<!--<script >",
    "]]>&lt;&amp;",
    "{{records}}{{title}}{{script-hash}}",
    "\u2028\u202e\ud800日本語🙂\0",
)


class Page(HTMLParser):
    """The elements of a page, and the records in its data blocks."""

    def __init__(self, page: Path | str) -> None:
        super().__init__()
        self.text = page if isinstance(page, str) else page.read_text("utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[tuple[dict[str, str | None], str]] = []
        self.title = ""
        self._open = ""
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.blocks.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            attributes, text = self.blocks[-1]
            self.blocks[-1] = attributes, text + data
        if self._open == "title":
            self.title += data

    @property
    def run(self) -> dict[str, Any]:
        return next(json.loads(text) for attributes, text in self.blocks if attributes.get("id") == "run")

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(text) for attrs, text in self.blocks if attrs == {"type": "application/json"}]

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(text) for attrs, text in self.blocks if attrs == {"type": "text/plain"}]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.jpg"
    Image.new("RGB", (60, 40), "teal").save(path)
    return path


def record_of(
    path: Path | str, words: tuple[str, ...] = ("a", "teal", "field"), *, rows: int = 3, columns: int = 4
) -> Record:
    alphas = np.random.default_rng(len(words)).dirichlet(np.full(rows * columns, 0.3), len(words))
    return Record(
        path=str(path),
        caption=" ".join(words),
        score=-4.25,
        tokens=tuple(range(len(words))),
        words=words,
        truncated=False,
        attention=Attention(rows=rows, columns=columns, alphas=tuple(map(tuple, alphas.tolist()))),
    )


def test_each_record_comes_back_with_its_facts_and_its_picture(image: Path, tmp_path: Path) -> None:
    other = Alternative(caption="a green sea", score=-5.5, tokens=(1, 2, 3), truncated=True)
    record = replace(record_of(image), truncated=True, alternatives=(other,))
    assert write_gallery([record], tmp_path / "page.html", title="Fields") == 1
    page = Page(tmp_path / "page.html")
    assert page.title == "Fields"
    (facts,) = page.records
    assert facts["path"] == str(image)
    assert facts["caption"] == "a teal field"
    assert facts["words"] == ["a", "teal", "field"]
    assert facts["score"] == -4.25
    assert facts["truncated"] is True
    assert facts["alternatives"] == [["a green sea", -5.5, True]]
    assert facts["grid"] == [3, 4]
    assert facts["size"] == [60, 40]
    picture = Image.open(io.BytesIO(page.pictures[0]))
    assert (picture.format, picture.size) == ("JPEG", (60, 40))
    assert np.abs(np.asarray(picture, dtype=int) - (0, 128, 128)).max() <= 4


def test_alphas_come_back_within_half_a_step_of_each_words_maximum(image: Path, tmp_path: Path) -> None:
    record = record_of(image, ("two", "words"), rows=14, columns=16)
    write_gallery([record], tmp_path / "page.html", title="")
    (facts,) = Page(tmp_path / "page.html").records
    assert record.attention is not None
    alphas = np.array(record.attention.alphas)
    levels = np.frombuffer(base64.b64decode(facts["alphas"]), np.uint8).reshape(2, 14 * 16)
    maxima = np.array(facts["peaks"])
    assert maxima == pytest.approx(alphas.max(axis=1), rel=1e-3)
    assert (levels.max(axis=1) == 255).all()
    error = np.abs(levels / 255 * alphas.max(axis=1, keepdims=True) - alphas)
    assert (error <= (0.5 / 255 + 1e-12) * alphas.max(axis=1, keepdims=True)).all()


def test_alphas_that_are_no_numbers_count_as_zero() -> None:
    levels, maxima = levels_from_alphas(
        Attention(rows=1, columns=3, alphas=((math.nan, 0.5, math.inf), (0.0, 0.0, 0.0)))
    )
    assert levels.tolist() == [[0, 255, 0], [0, 0, 0]]
    assert maxima.tolist() == [0.5, 0.0]


def test_alphas_that_do_not_fit_their_grid_are_refused(image: Path, tmp_path: Path) -> None:
    damaged = replace(record_of(image), attention=Attention(rows=2, columns=2, alphas=((0.5, 0.5),)))
    with pytest.raises(OutputError, match=r"2 x 2 cells comes with \[2\] alphas a word, expected 4"):
        write_gallery([damaged], tmp_path / "page.html", title="")


def test_the_page_loads_nothing_and_names_no_address(image: Path, tmp_path: Path) -> None:
    write_gallery([record_of(image)], tmp_path / "page.html", title="Fields")
    page = Page(tmp_path / "page.html")
    loads = [
        (tag, name, value) for tag, attrs in page.elements for name, value in attrs.items() if name in ("src", "href")
    ]
    assert loads == [("link", "href", "data:,")]
    assert not re.search(r"https?:|url\(|@import|\bimport\(|fetch\(|XMLHttpRequest|WebSocket", page.text)
    (policy,) = [
        attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")


def test_the_policy_lets_only_the_pages_own_script_run(tmp_path: Path) -> None:
    write_gallery([], tmp_path / "page.html", title="")
    page = Page(tmp_path / "page.html")
    (script,) = [text for attributes, text in page.blocks if not attributes]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page.text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_data_and_never_markup(hostile: str, image: Path, tmp_path: Path) -> None:
    other = Alternative(caption=hostile, score=-1.0, tokens=(), truncated=False)
    record = replace(record_of(f"{hostile}.jpg", (hostile, "b")), alternatives=(other,))
    failures = [Failure(path=hostile, kind=hostile, error=hostile)]
    harmless = replace(record_of("missing.jpg", ("a", "b")), alternatives=(replace(other, caption="c"),))
    write_gallery([record], tmp_path / "hostile.html", title=f"{hostile}</title><p>", failures=failures)
    write_gallery([harmless], tmp_path / "harmless.html", title="title", failures=[])
    page = Page(tmp_path / "hostile.html")
    assert page.elements == Page(tmp_path / "harmless.html").elements
    assert not any("<" in text for attributes, text in page.blocks if attributes)
    (facts,) = page.records
    assert facts["path"] == f"{hostile}.jpg"
    assert facts["words"] == [hostile, "b"]
    assert facts["alternatives"][0][0] == hostile
    assert page.run["failures"] == [[hostile, hostile, hostile]]


def test_a_path_with_an_undecodable_byte_is_shown_with_its_picture(image: Path, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    try:
        shutil.copy(image, path)
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    write_gallery([record_of(path)], tmp_path / "page.html", title=path)
    page = Page(tmp_path / "page.html")
    assert page.records[0]["path"] == path
    assert "missing" not in page.records[0]
    assert page.pictures[0].startswith(b"\xff\xd8")


def test_an_image_that_is_gone_or_unreadable_leaves_a_placeholder_and_its_caption(image: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    records = [record_of(tmp_path / "gone.jpg"), record_of(tmp_path / "broken.png"), record_of(image)]
    assert write_gallery(records, tmp_path / "page.html", title="") == 3
    page = Page(tmp_path / "page.html")
    gone, broken, whole = page.records
    assert gone["missing"] == "The image is gone"
    assert broken["missing"].startswith("The image cannot be read")
    assert gone["caption"] == broken["caption"] == "a teal field"
    assert "missing" not in whole
    assert [bool(picture) for picture in page.pictures] == [False, False, True]


def test_thumbnails_are_upright_and_within_the_size_asked_for(tmp_path: Path) -> None:
    photo = Image.new("RGB", (900, 300))
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera was held sideways
    photo.save(tmp_path / "photo.jpg", exif=exif)
    Image.new("RGB", (20, 10)).save(tmp_path / "small.png")
    records = [record_of(tmp_path / "photo.jpg"), record_of(tmp_path / "small.png")]
    write_gallery(records, tmp_path / "page.html", title="", thumbnail_px=90)
    assert [facts["size"] for facts in Page(tmp_path / "page.html").records] == [[30, 90], [20, 10]]


def test_a_score_json_has_no_number_for_is_left_open(image: Path, tmp_path: Path) -> None:
    write_gallery([replace(record_of(image), score=-math.inf)], tmp_path / "page.html", title="")
    assert Page(tmp_path / "page.html").records[0]["score"] is None


def test_a_record_without_attention_has_no_grid(image: Path, tmp_path: Path) -> None:
    write_gallery([replace(record_of(image), attention=None)], tmp_path / "page.html", title="")
    assert Page(tmp_path / "page.html").records[0].keys() & {"grid", "peaks", "alphas"} == set()


def test_the_page_keeps_the_order_of_many_records(image: Path, tmp_path: Path) -> None:
    records = [record_of(image, (f"word{number}",)) for number in range(60)]
    assert write_gallery(iter(records), tmp_path / "page.html", title="") == 60
    captions = [facts["caption"] for facts in Page(tmp_path / "page.html").records]
    assert captions == [record.caption for record in records]


def test_the_limit_stops_reading_and_the_page_says_that_there_are_more(image: Path, tmp_path: Path) -> None:
    records = iter([record_of(image, (str(number),)) for number in range(9)])
    assert write_gallery(records, tmp_path / "page.html", title="", limit=4) == 4
    page = Page(tmp_path / "page.html")
    assert [facts["caption"] for facts in page.records] == ["0", "1", "2", "3"]
    assert page.run["more"] is True
    assert len(list(records)) == 4  # one more was read, to know that there is one


@pytest.mark.parametrize("limit", [3, 4, None])
def test_a_limit_that_is_not_reached_leaves_nothing_unsaid(limit: int | None, image: Path, tmp_path: Path) -> None:
    assert write_gallery([record_of(image)] * 3, tmp_path / "page.html", title="", limit=limit) == 3
    assert Page(tmp_path / "page.html").run["more"] is False


def test_the_page_says_where_the_grid_lies_and_what_failed(tmp_path: Path) -> None:
    failures = [Failure(path="a.jpg", kind="truncated", error="ends early")]
    write_gallery([], tmp_path / "page.html", title="", crop=True, failures=failures)
    run = Page(tmp_path / "page.html").run
    assert run["crop"] is True
    assert run["failures"] == [["a.jpg", "truncated", "ends early"]]


def test_records_are_written_while_later_ones_are_still_to_come(image: Path, tmp_path: Path) -> None:
    Image.effect_noise((300, 300), 90).save(image)
    sizes = []

    def records() -> Iterator[Record]:
        for _ in range(80):
            (unfinished,) = tmp_path.glob(".page.html.*.tmp")
            sizes.append(unfinished.stat().st_size)
            yield record_of(image)

    write_gallery(records(), tmp_path / "page.html", title="")
    assert sizes[0] < sizes[40] < sizes[79]


def test_a_run_that_breaks_off_leaves_the_former_page_and_nothing_else(image: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out" / "page.html"
    write_gallery([record_of(image)], destination, title="former")

    def broken() -> Iterator[Record]:
        yield record_of(image)
        raise KeyError("a bug upstream")

    with pytest.raises(KeyError, match="a bug upstream"):
        write_gallery(broken(), destination, title="new")
    assert Page(destination).title == "former"
    assert list(destination.parent.iterdir()) == [destination]


def test_a_destination_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*page\.html"):
        write_gallery([], tmp_path / "page.html", title="")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def drawn(page: Path, fragment: str = "") -> str:
    """The document as Chromium has it after the page's script has run."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={page.parent / 'profile'}"]
    flags += ["--virtual-time-budget=3000", "--dump-dom", page.as_uri() + fragment]
    return subprocess.run([browser, *flags], capture_output=True, check=True, timeout=60, encoding="utf-8").stdout


def test_a_browser_shows_the_image_and_the_word_in_the_address(image: Path, tmp_path: Path) -> None:
    attention = Attention(rows=3, columns=3, alphas=((1.0,) + (0.0,) * 8, (0.0,) * 8 + (1.0,), (1 / 9,) * 9))
    records = [record_of(tmp_path / "gone.jpg"), replace(record_of(image), attention=attention), record_of(image)]
    write_gallery(records, tmp_path / "page.html", title="")
    viewer = drawn(tmp_path / "page.html", "#image=2&word=3").partition("<dialog")[2].partition("</dialog>")[0]
    assert re.match(r'[^>]* open=""', viewer)
    assert "2 of 3" in viewer
    assert re.findall(r'<button class="word on"[^>]*>([^<]*)<', viewer) == ["field"]
    assert re.findall(r"<figcaption>([^<]*)<", viewer) == ["the image", "a", "teal", "field"]
    labels = re.findall(r'<button class="word[^>]*aria-label="([^"]*)"', viewer)
    assert labels == ["a, mostly at the upper left", "teal, mostly at the lower right", "field, spread over the image"]


def test_a_browser_draws_hostile_text_as_text(image: Path, tmp_path: Path) -> None:
    hostile = tuple(text.replace("\ud800", "") for text in HOSTILE)  # which --dump-dom, not the page, cannot take

    def tags(name: str, words: tuple[str, ...]) -> list[str]:
        others = [Alternative(caption=word, score=-1.0, tokens=(), truncated=False) for word in words]
        record = replace(record_of(image, words), path=f"{words[1]}/{words[2]}", alternatives=tuple(others))
        failures = [Failure(path=word, kind=word, error=word) for word in words]
        write_gallery([record], tmp_path / name, title="calm", failures=failures)
        document = Page(drawn(tmp_path / name, "#image=1&word=2"))
        assert document.title == "calm"
        return [tag for tag, _ in document.elements]

    plain = tags("plain.html", tuple("abcdefg"[: len(hostile)]))
    assert {"figure", "td", "li"} <= set(plain)
    assert tags("hostile.html", hostile) == plain
