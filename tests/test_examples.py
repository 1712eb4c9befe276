"""The shipped bundle and scenes: what the demonstration shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.scoring import score_results
from engine.backends.base import open_backend
from engine.captioner import Captioner, CaptionOptions
from engine.run import run
from saccade.bundle import Bundle
from saccade.errors import ConfigError
from saccade.preprocessing import load_image
from saccade.progress import Reporter
from saccade.search import SearchOptions
from saccade.structure import structure
from training.config import TrainingConfig, load_config
from training.scene_data import SceneData

ROOT = Path(__file__).parent.parent
BUNDLE, SCENES = ROOT / "examples/bundle", ROOT / "examples/scenes"


def test_the_shipped_bundle_was_trained_by_the_shipped_configuration() -> None:
    provenance = Bundle.open(BUNDLE).manifest.provenance
    trained = structure(provenance["config"], TrainingConfig, source="provenance", error=ConfigError)
    shipped = load_config(ROOT / "configs/scenes-soft.toml")
    assert trained == shipped


def test_the_shipped_bundle_is_at_most_8_megabytes() -> None:
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) <= 8e6


def test_the_shipped_scenes_are_none_that_was_trained_or_chosen_on() -> None:
    data = load_config(ROOT / "configs/scenes-soft.toml").data
    assert isinstance(data, SceneData)
    seeds = [int(file.stem) for file in (SCENES / "images").iterdir()]
    assert len(seeds) == 24
    assert not any(seed in split.seeds for seed in seeds for split in (data.train, data.validation, data.test))


def test_the_demonstration_names_most_objects_and_looks_at_them(tmp_path: Path) -> None:
    with Captioner.open(BUNDLE, CaptionOptions(attention=True)) as captioner:
        run(captioner, [str(SCENES)], tmp_path / "out", reporter=Reporter(quiet=True))
    scores = score_results(tmp_path / "out", SCENES / "captions.json", SCENES / "scenes.json")
    assert scores["object_f1"] > 0.75
    assert scores["pointing_nouns"] > 0.75
    assert scores["truncated"] == 0


@pytest.mark.parametrize("backend", ["openvino", "ort"])
def test_what_is_computed_of_an_image_does_not_depend_on_its_place(backend: str) -> None:
    """To the last bit, in a batch whose size no tile of a product divides: images may take each other's places."""
    bundle, options = Bundle.open(BUNDLE), SearchOptions(beam=3)
    spec = bundle.manifest.preprocessing
    pixels = np.stack([load_image(path, spec) for path in sorted((SCENES / "images").iterdir())[:5]])
    bias = np.zeros(len(bundle.vocabulary), np.float32)
    with open_backend(backend, bundle) as opened:
        orders = [np.roll(np.arange(5), shift) for shift in range(5)]
        decodings = [opened.begin(pixels[order], options, with_alphas=True) for order in orders]
        for _ in range(12):
            expected, *others = (decoding.advance(bias) for decoding in decodings)
            for order, found in zip(orders[1:], others, strict=True):
                for name in expected._fields:
                    np.testing.assert_array_equal(getattr(expected, name)[order], getattr(found, name))


def test_the_readme_gives_the_scores_of_the_manifest() -> None:
    scores = Bundle.open(BUNDLE).manifest.scores
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("object_f1", "relation_accuracy", "pointing_nouns"):
        assert f"| {scores[f'test/{name}']:.3f} |" in readme
    assert f"| {scores['test/BLEU-4']:.3f} / {scores['test/CIDEr-D']:.2f} |" in readme
