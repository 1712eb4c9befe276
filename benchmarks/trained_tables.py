"""Tables of what trained models reach, from folders of what `saccade evaluate --out` wrote.

Each folder has files X.scores.json; rows are in the order of their names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import markdown_table
from saccade.errors import DataError
from saccade.files import differences
from saccade.structure import structure, unstructure
from training.config import TrainingConfig

PAPER = {
    "paper, soft, VGG": (67.0, 44.8, 29.9, 19.5, 18.93),
    "paper, hard, VGG": (67.0, 45.7, 31.4, 21.3, 20.30),
}
"""Xu et al. 2015, Table 1, Flickr8k, in percent: BLEU-1 to 4 without brevity penalty, METEOR."""

_BASE = "base"
_CAPTIONS = 8
_TRAINING = ("best epoch", "minutes until then")
_SCENES = {
    "object_f1": "objects F1",
    "relation_accuracy": "relations",
    "pointing_nouns": "pointing, nouns",
    "pointing_words": "pointing, words",
    "BLEU-4": "BLEU-4",
    "CIDEr-D": "CIDEr-D",
}

Report = Mapping[str, Any]


def _scores(folder: Path) -> str:
    metrics = ("METEOR", "ROUGE-L", "CIDEr-D")
    columns = ("model", "beam", "BLEU-1..4", "BLEU-1..4, no BP", *metrics, *_TRAINING)
    rows = []
    for _, report in _reports(folder):
        epochs, minutes = _training(report)
        for beam, scores in report["beams"].items():
            values = (_number(scores.get(metric), percent=metric == "METEOR") for metric in metrics)
            rows.append((_title(report), beam, _bleu(scores), _bleu(scores, " (no BP)"), *values, epochs, minutes))
    for name, (*bleu, meteor) in PAPER.items():
        rows.append((name, "", "", " / ".join(map(str, bleu)), str(meteor), "", "", "", ""))
    return markdown_table(columns, rows)


def _scenes(folder: Path) -> str:
    columns = ("model", "beam", *_SCENES.values(), *_TRAINING)
    rows = [
        (_title(report), beam, *(_number(scores.get(name)) for name in _SCENES), *_training(report))
        for _, report in _reports(folder)
        for beam, scores in report["beams"].items()
    ]
    return markdown_table(columns, rows)


def _captions(folder: Path) -> str:
    found = [
        (_title(report), {str(entry["image_id"]): str(entry["caption"]) for entry in _read(captions)})
        for name, report in _reports(folder)
        if (captions := folder / f"{name}.beam3.json").is_file()
    ]
    if not found:
        raise DataError(f"{folder} has no X.beam3.json beside an X.scores.json: evaluate with --beam 3")
    images = list(found[0][1])
    if any(said.keys() != found[0][1].keys() for _, said in found):
        raise DataError(f"the captions in {folder} are not of the same images: evaluate without --limit")
    shown = images[:: max(1, len(images) // _CAPTIONS)][:_CAPTIONS]
    titles = (title for title, _ in found)
    return markdown_table(("image", *titles), [(image, *(said[image] for _, said in found)) for image in shown])


def _variants(folder: Path) -> str:
    reports = dict(_reports(folder))
    if _BASE not in reports:
        raise DataError(f"{folder} has no {_BASE}.scores.json for the others to differ from")
    base = _configuration(reports[_BASE])
    columns = ("what differs", "beam", "BLEU-4", "CIDEr-D", *_TRAINING)
    rows = []
    for name, report in sorted(reports.items(), key=lambda item: item[0] != _BASE):
        changed = differences(base, _configuration(report))
        for beam, scores in report["beams"].items():
            values = (_number(scores["BLEU-4"], percent=True), _number(scores["CIDEr-D"]))
            rows.append(("; ".join(changed) or name, beam, *values, *_training(report)))
    return markdown_table(columns, rows)


def _precisions(folder: Path) -> str:
    columns = ("what runs", "beam", "BLEU-4", "CIDEr-D", "change of CIDEr-D", "same captions")
    rows = []
    for _, report in _reports(folder):
        for beam, scores in report["beams"].items():
            values = (_number(scores["BLEU-4"], percent=True), _number(scores["CIDEr-D"]))
            rows.append((report["runs_on"], beam, *values, *_difference(scores)))
    return markdown_table(columns, rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "scores": _scores,
    "scenes": _scenes,
    "captions": _captions,
    "variants": _variants,
    "precisions": _precisions,
}


def _reports(folder: Path) -> Iterator[tuple[str, Report]]:
    paths = sorted(folder.glob("*.scores.json"))
    if not paths:
        raise DataError(f"{folder} has no X.scores.json: write some with `saccade evaluate --out {folder}/X.json`")
    for path in paths:
        yield path.name.removesuffix(".scores.json"), _read(path)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _configuration(report: Report) -> Any:
    """That of the training, with what it left out or was not known then as it is by default."""
    config = report["trained"][0]["config"]
    return unstructure(structure(config, TrainingConfig, source="trained.config", error=DataError))


def _title(report: Report) -> str:
    """The kind of attention, how it is decoded, and how it was trained."""
    kinds = [str(trained["config"]["decoder"]["attention"]) for trained in report["trained"]]
    title = " + ".join(kinds)
    if any(trained["config"].get("hard", {}).get("start") for trained in report["trained"]):
        title = f"soft, then {title}"
    if "hard" in kinds:
        title += f", {report['search']['decode_mode']}"
    if any(trained.get("rewarded") for trained in report["trained"]):
        title += ", then rewards"
    return f"{title}, {report['trained'][0]['config']['encoder']['name']}"


def _training(report: Report) -> tuple[str, str]:
    """The epoch that was kept, and the minutes that training took until its end; of every model of an ensemble."""
    epochs = " + ".join(str(trained["epoch"]) for trained in report["trained"])
    return epochs, " + ".join(f"{trained['training_seconds'] / 60:.0f}" for trained in report["trained"])


def _difference(scores: Mapping[str, float]) -> tuple[str, str]:
    """In percent, of what `--against` compared with; nothing for what others were compared with."""
    if "same_captions" not in scores:
        return "", ""
    before = scores["CIDEr-D"] - scores["CIDEr-D_change"]
    change, low, high = (100 * scores[f"CIDEr-D_change{end}"] / before for end in ("", "_low", "_high"))
    return f"{change:+.2f}% ({low:+.2f} to {high:+.2f})", f"{scores['same_captions']:.1%}"


def _bleu(scores: Mapping[str, float], variant: str = "") -> str:
    return " / ".join(f"{100 * scores[f'BLEU-{n}{variant}']:.1f}" for n in range(1, 5))


def _number(value: float | None, *, percent: bool = False) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" if percent else f"{value:.3f}"
