from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from benchmarks.comparison_candidates import (
    Candidate,
    ComparisonOptions,
    Picture,
    compare_candidates,
    default_reference,
)
from benchmarks.comparison_report import write_report
from benchmarks.comparison_results import TOLERANCES, as_json
from benchmarks.line_chart import line_chart
from saccade.bundle import Bundle
from saccade.errors import ConfigError
from saccade.search import SearchOptions
from tests.benchmarks.changed_bundles import Weights, changed
from tests.bundles import MAX_LENGTH, save_patchworks
from tests.commands import call


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    save_patchworks(folder, 4)
    return folder


def swap_channels(weights: Weights) -> None:
    name = "captioner.encoder.trunk.stem.0.0.weight"
    weights[name] = np.ascontiguousarray(weights[name][:, ::-1])


def test_candidates_are_read_from_their_names() -> None:
    assert Candidate.parse("ort") == Candidate(backend="ort")
    assert Candidate.parse("openvino:int8") == Candidate(backend="openvino", precision="int8")
    full = Candidate.parse("ort:int8@some/where:else@2")
    assert full == Candidate(backend="ort", precision="int8", bundle=Path("some/where:else@2"))
    assert str(full) == "ort:int8@some/where:else@2"


@pytest.mark.parametrize("text", ["ortt", "ort:int7", "", ":fp32", "@x"])
def test_candidates_of_other_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown (backend|precision) .*, choose from"):
        Candidate.parse(text)


def test_the_reference_is_pytorch_where_the_bundle_has_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    assert default_reference(Bundle.open(tiny_bundle)).backend == "pytorch"
    assert default_reference(Bundle.open(changed(tiny_bundle, tmp_path / "without"))).backend == "ort"


def test_backends_agree_with_pytorch_and_the_command_says_so(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, images: Path
) -> None:
    outcome = call(
        capsys, "compare", tiny_bundle, "--candidates", "ort,openvino:fp32", "--images", images, "--threads", "1"
    )
    assert outcome.code == 0
    assert outcome.out.startswith("reference: PyTorch ")
    assert outcome.out.splitlines()[-2:] == [
        "PASS ort: identical within rounding",
        "PASS openvino:fp32: identical within rounding",
    ]
    assert outcome.err.splitlines()[0] == "reference: pytorch:fp32, 4 images, beam 3"


def test_a_failing_candidate_exits_with_one_and_all_is_written(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, images: Path, tmp_path: Path
) -> None:
    other = changed(tiny_bundle, tmp_path / "other", encoder=swap_channels)
    references = tmp_path / "references.json"
    references.write_text(json.dumps({f"{number:02d}.png": ["a red dog", "two balls"] for number in range(4)}))
    outcome = call(
        capsys,
        "compare",
        tiny_bundle,
        *("--reference", "ort", "--candidates", f"ort@{other},ort:bf16", "--images", images, "--threads", "1"),
        *("--references", references, "--layers", "--out", tmp_path / "out", "--json", tmp_path / "some.json"),
    )
    assert outcome.code == 1
    assert f"FAIL ort@{other}: input differs (channels: it takes them as BGR)" in outcome.out
    assert "ort:bf16: not available here: this backend knows fp32, fp16, int8, not bf16" in outcome.out
    assert (tmp_path / "some.json").read_bytes() == (tmp_path / "out" / "comparison.json").read_bytes()
    values = json.loads((tmp_path / "some.json").read_text())
    assert values["schema"] == "saccade-comparison/1"
    assert [one["name"] for one in values["unavailable"]] == ["ort:bf16"]
    (found,) = values["candidates"]
    assert found["verdict"] == "FAIL"
    assert found["layers"]["enters"]["tensor"] == "getitem"
    assert set(found["scores"]) == {"BLEU-4", "CIDEr-D"}
    assert len(found["captions"]) == 4
    assert "pairs" not in found


def test_one_that_does_not_run_is_no_failure_but_none_that_runs_is(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, images: Path, tmp_path: Path
) -> None:
    arguments = ("compare", tiny_bundle, "--reference", "ort", "--images", images, "--candidates")
    both = call(capsys, *arguments, f"ort,ort@{tmp_path / 'nothing'}")
    assert both.code == 0
    assert "not available here: " in both.out
    none = call(capsys, *arguments, "ort:bf16")
    assert none.code == 1
    assert "not available here: " in none.out


def test_another_model_is_not_comparable(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, hard_bundle: Path, images: Path
) -> None:
    outcome = call(
        capsys, "compare", tiny_bundle, "--reference", "ort", "--candidates", f"ort@{hard_bundle}", "--images", images
    )
    assert outcome.code == 1
    assert "another attention" in outcome.out


def test_hard_attention_looks_where_the_same_noise_sends_it(
    capsys: pytest.CaptureFixture[str], hard_bundle: Path, images: Path
) -> None:
    outcome = call(
        capsys, "compare", hard_bundle, "--reference", "ort", "--candidates", "ort,pytorch", "--images", images
    )
    assert outcome.out.splitlines()[-2:] == [
        "PASS ort: identical within rounding",
        "PASS pytorch: identical within rounding",
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--candidates", "ort,tensorflow"), "unknown backend 'tensorflow'"),
        (("--candidates", "ort", "--reference", "ort@other"), "the reference runs BUNDLE itself"),
    ],
)
def test_wrong_names_are_wrong_usage(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, images: Path, arguments: tuple[str, ...], problem: str
) -> None:
    outcome = call(capsys, "compare", tiny_bundle, "--images", images, *arguments)
    assert outcome.code == 2
    assert problem in " ".join(outcome.err.split())


def test_references_of_other_images_are_refused(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, images: Path, tmp_path: Path
) -> None:
    references = tmp_path / "references.json"
    references.write_text('{"other.png": ["a dog"]}')
    outcome = call(
        capsys, "compare", tiny_bundle, "--candidates", "ort", "--images", images, "--references", references
    )
    assert outcome.error.endswith("file names have to be the same")


def test_an_image_that_cannot_be_read_is_left_out(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    pictures = [Picture(broken), Picture(images / "00.png")]
    options = ComparisonOptions(search=SearchOptions(max_length=MAX_LENGTH), threads=1)
    ort = Candidate(backend="ort")
    found = compare_candidates(Bundle.open(tiny_bundle), ort, [ort], pictures, options)
    assert found.images == 1
    assert [Path(one.image).name for one in found.candidates[0].captions] == ["00.png"]


def test_limits_that_are_given_take_the_place_of_the_precisions_own() -> None:
    options = ComparisonOptions(search=SearchOptions(), tolerances="bf16", changes={"errors": 0.5})
    assert options.tolerances_of("fp32") == replace(TOLERANCES["bf16"], errors=0.5)


def test_it_runs_without_torch(tiny_bundle: Path, images: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from saccade.cli import main; main()"
    arguments = ("compare", str(tiny_bundle), "--reference", "ort", "--candidates", "ort", "--images", str(images))
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "PASS ort: identical within rounding"), done.stderr


class Reader(HTMLParser):
    """The text of a page, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.loads, self.tags = "", list[str](), list[str]()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_both_captions_and_where_both_looked(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    other = changed(tiny_bundle, tmp_path / "<b>other</b>", encoder=swap_channels)
    options = ComparisonOptions(search=SearchOptions(max_length=MAX_LENGTH), threads=1)
    candidate = Candidate(backend="ort", bundle=other)
    pictures = [Picture(path) for path in sorted(images.iterdir())]
    comparison = compare_candidates(bundle, Candidate(backend="ort"), [candidate], pictures, options)
    write_report(comparison, bundle, tmp_path / "page.html", worst=2)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert all(one.startswith("data:") for one in reader.loads)
    assert "script" not in reader.tags
    assert "b" not in reader.tags  # the name of the folder is text
    assert "<b>other</b>" in reader.text
    (found,) = comparison.candidates
    shown = sorted((one for one in found.captions if one.parting), key=lambda one: -one.parting.margin)[:2]  # type: ignore[union-attr]
    words = sum(
        len(hypothesis.tokens)
        for pair, one in zip(found.pairs, found.captions, strict=True)
        for hypothesis in pair
        if one in shown
    )
    assert reader.tags.count("figcaption") == words + 3  # of the charts
    assert len(re.findall(r"^\.i\d+ \{", page, re.MULTILINE)) == len(shown)
    assert f"{found.verdict}" in reader.text
    assert json.dumps(as_json(comparison), allow_nan=False)


def test_a_line_chart_draws_what_is_there() -> None:
    chart = ET.fromstring(
        line_chart({"a & b": [1e-3, 1e-2, 0.0, float("nan"), 1.0]}, x="step", y="error", logarithmic=True)
    )
    line = next(path for path in chart.iter("path") if path.get("class") == "line s0")
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", line.get("d", ""))]
    assert len(points) == 3  # a zero and what is no number are gaps
    assert points[0][0] < points[1][0] < points[2][0]
    heights = [y for _, y in points]
    assert heights[0] - heights[1] == pytest.approx((heights[1] - heights[2]) / 2, abs=0.1)  # one decade, then two
    assert "a & b" in "".join(chart.itertext())


def test_a_chart_of_zeros_says_so() -> None:
    assert line_chart({"a": [0.0, 0.0]}, x="step", y="error", logarithmic=True) == (
        '<p class="chart">error: 0 everywhere</p>'
    )
