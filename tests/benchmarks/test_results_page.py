from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results_page import PAGES, renewed
from saccade.errors import DataError
from saccade.structure import unstructure
from training.config import load_config

SCORES = {f"BLEU-{n}{variant}": 0.7 - n / 10 for n in range(1, 5) for variant in ("", " (no BP)")}


def write_report(
    path: Path, attention: str = "soft", decode_mode: str = "expected", *, rewarded: int = 0, **changes: Any
) -> None:
    config = {
        "decoder": {"attention": attention, "dropout": 0.5},
        "encoder": {"name": "compact"},
    } | changes
    report = {
        "trained": [{"config": config, "epoch": 7, "rewarded": rewarded, "training_seconds": 630.0}],
        "search": {"decode_mode": decode_mode},
        "beams": {"3": SCORES | {"CIDEr-D": 0.5251, "METEOR": 0.1954}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report))


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_the_result_files_that_lie_beside_it(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert renewed(page, path.parent) == page, "run `make docs`"


def test_a_row_says_what_was_trained_and_what_it_reached(tmp_path: Path) -> None:
    write_report(tmp_path / "some/a.scores.json")
    write_report(tmp_path / "some/b.scores.json", "hard", "argmax", rewarded=1)
    page = renewed("before\n<!-- scores some -->\nold | rows\n<!-- end -->\nafter\n", tmp_path)
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    head, soft, hard, *paper = rows(page)
    assert dict(zip(head, soft, strict=True)) == {
        "model": "soft, compact",
        "beam": "3",
        "BLEU-1..4": "60.0 / 50.0 / 40.0 / 30.0",
        "BLEU-1..4, no BP": "60.0 / 50.0 / 40.0 / 30.0",
        "METEOR": "19.5",
        "ROUGE-L": "",
        "CIDEr-D": "0.525",
        "best epoch": "7",
        "minutes until then": "10",
    }
    assert hard[0] == "hard, argmax, then rewards, compact"
    write_report(tmp_path / "some/b.scores.json", "hard", "sample", hard={"start": "run"})
    assert rows(renewed(page, tmp_path))[2][0] == "soft, then hard, sample, compact"
    assert [row[0] for row in paper] == ["paper, soft, VGG", "paper, hard, VGG"]


def test_captions_of_the_models_stand_side_by_side(tmp_path: Path) -> None:
    for name, attention in (("a", "soft"), ("b", "none"), ("c", "hard")):
        write_report(tmp_path / f"some/{name}.scores.json", attention)
    for name in ("a", "b"):
        said = [{"image_id": f"{number}.jpg", "caption": f"{name} <unk> {number}"} for number in range(80)]
        (tmp_path / f"some/{name}.beam3.json").write_text(json.dumps(said))
    head, first, second, *_ = found = rows(renewed("<!-- captions some -->\n<!-- end -->", tmp_path))
    assert head == ["image", "soft, compact", "none, compact"]  # no captions were kept of the third
    assert (first, second) == (
        ["0.jpg", "a &lt;unk> 0", "b &lt;unk> 0"],
        ["10.jpg", "a &lt;unk> 10", "b &lt;unk> 10"],
    )
    assert len(found) == 9


def test_variants_are_named_by_how_they_differ_from_the_base(tmp_path: Path) -> None:
    """What one of them does not mention is as it is by default."""
    config = unstructure(load_config(PAGES[0].parent.parent / "configs/scenes-soft.toml"))
    write_report(tmp_path / "some/base.scores.json", **config)
    del config["hard"]
    write_report(tmp_path / "some/a.scores.json", **config | {"decoder": config["decoder"] | {"dropout": 0.3}})
    _, base, other = rows(renewed("<!-- variants some -->\n<!-- end -->", tmp_path))
    assert base[0] == "base"
    assert other[0] == "decoder.dropout was 0.0, is 0.3"


def test_precisions_stand_beside_what_they_were_compared_with(tmp_path: Path) -> None:
    for name, scores in (
        ("1", {"CIDEr-D": 0.5}),
        (
            "2",
            {
                "CIDEr-D": 0.49,
                "CIDEr-D_change": -0.01,
                "CIDEr-D_change_low": -0.02,
                "CIDEr-D_change_high": 0.0025,
                "same_captions": 0.75,
            },
        ),
    ):
        path = tmp_path / f"some/{name}.scores.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"runs_on": f"runtime {name}", "beams": {"3": scores | {"BLEU-4": 0.25}}}))
    _, first, second = rows(renewed("<!-- precisions some -->\n<!-- end -->", tmp_path))
    assert first == ["runtime 1", "3", "25.0", "0.500", "", ""]
    assert second == ["runtime 2", "3", "25.0", "0.490", "-2.00% (-4.00 to +0.50)", "75.0%"]


def test_what_has_no_file_yet_is_called_not_measured(tmp_path: Path) -> None:
    page = renewed("<!-- speed speed.json -->\n<!-- end -->", tmp_path)
    assert page == "<!-- speed speed.json -->\nNot measured yet.\n<!-- end -->"
    assert renewed(page, tmp_path) == page


def test_a_table_that_lost_its_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"speed\.json, of which the page has a table, does not exist"):
        renewed("<!-- speed speed.json -->\n| old | 1 |\n<!-- end -->", tmp_path)


@pytest.mark.parametrize(
    ("marker", "problem"),
    [
        ("scores some", "has no X.scores.json"),
        ("poem some", "unknown table"),
        ("scores some -->\n\ntext\n\n<!-- scores some", "has no <!-- end --> before the next marker"),
    ],
)
def test_tables_of_nothing_are_refused(tmp_path: Path, marker: str, problem: str) -> None:
    (tmp_path / "some").mkdir()
    with pytest.raises(DataError, match=problem):
        renewed(f"<!-- {marker} -->\n<!-- end -->", tmp_path)
