"""Models of sgrvinod's tutorial say in our engine what they said before, whatever version of torch saved them."""

from __future__ import annotations

import io
import json
import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from benchmarks.tutorial_search import caption_image
from engine.captioner import Captioner, CaptionOptions
from engine.records import Record
from export.bundle import ExportOptions, export_bundle
from saccade.errors import CheckpointError, VocabularyError
from saccade.preprocessing import PreprocessSpec, load_image
from saccade.search import SearchOptions
from saccade.vocabulary import Vocabulary
from tests.commands import call
from tests.training.tutorials import (
    SIDE,
    SIZES,
    StraightforwardSearch,
    Tutorial,
    make_tutorial,
    normalised,
    pictures,
    save,
    save_tutorial,
    squashed,
)
from training.checkpoint import load_checkpoint
from training.decoding import TorchDecoder
from training.import_sgrvinod import read_sgrvinod, read_word_map
from training.imported import Imported, write_checkpoint

BEAMS = (1, 3, 5)
IMAGES = 200
ERROR = 1e-4
"""Of a score in float32, at most: two captions whose scores are further apart than twice this keep their order."""


@pytest.fixture(scope="module")
def small() -> Tutorial:
    return make_tutorial(SIZES["small"])


@pytest.fixture
def saved(small: Tutorial, tmp_path: Path) -> tuple[Path, Path]:
    return save_tutorial(small, tmp_path)


def imported(tutorial: Tutorial, folder: Path) -> Path:
    checkpoint, word_map = save_tutorial(tutorial, folder)
    write_checkpoint(
        read_sgrvinod(checkpoint, word_map, image_size=SIDE), checkpoint, folder / "checkpoint", overwrite=False
    )
    return folder / "checkpoint"


@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(name, marks=pytest.mark.slow) for name in ("medium", "large"))]
)
def test_captions_are_those_of_the_tutorials_search(name: str, tmp_path: Path) -> None:
    """Of 200 images at beams 1, 3 and 5: in eager PyTorch and in the exported graphs, from the bytes of the files on.

    Where two candidates are so close that float32 may swap them, no program but the original itself has to agree: such
    images are left out by their margins in float64, and few of them are found.
    """
    tutorial = make_tutorial(SIZES[name])
    folder = imported(tutorial, tmp_path)
    export_bundle(folder, tmp_path / "bundle", ExportOptions(with_checkpoint=False))
    checkpoint = load_checkpoint(folder)
    decoder, spec = TorchDecoder(checkpoint.captioner, checkpoint.vocabulary), checkpoint.description.preprocessing
    contents = pictures(IMAGES + 15)
    pixels = np.stack([load_image(content, spec) for content in contents])
    search = StraightforwardSearch(tutorial)
    expected = [search.captions(normalised(content), BEAMS) for content in contents]
    for place, beam in enumerate(BEAMS):
        options = SearchOptions(beam=beam, max_length=checkpoint.description.max_length)
        eager = [
            found[0]
            for start in range(0, len(pixels), 43)
            for found in decoder.search(pixels[start : start + 43], options)
        ]
        with Captioner.open(tmp_path / "bundle", CaptionOptions(search=options, backend="ort")) as captioner:
            exported = list(captioner.caption(contents))
        theirs = [captions[place] for captions in expected]
        clear = [number for number, caption in enumerate(theirs) if caption.margin > 2 * ERROR]
        assert len(clear) >= IMAGES
        for number in clear:
            wanted, ours, record = theirs[number], eager[number], exported[number]
            assert isinstance(record, Record)
            assert (ours.tokens, ours.truncated) == (wanted.words, wanted.is_truncated)
            assert (record.tokens, record.truncated) == (wanted.words, wanted.is_truncated)
            assert max(abs(ours.score - wanted.score), abs(record.score - wanted.score)) < ERROR
        assert len({caption.words for caption in theirs}) > IMAGES / 4  # the model sees the images
        assert len({len(caption.words) for caption in theirs}) >= 3


def test_the_loop_that_is_measured_says_the_same(small: Tutorial) -> None:
    vocabulary = vocabulary_of(small)
    search = StraightforwardSearch(small)
    for content in pictures(10):
        image = normalised(content)
        for beam, expected in zip(BEAMS, search.captions(image, BEAMS), strict=True):
            assert expected.margin > 2 * ERROR
            assert caption_image(*small[:2], image.float(), vocabulary, beam) == expected.words


def vocabulary_of(tutorial: Tutorial) -> Vocabulary:
    ids = tutorial.word_map
    return Vocabulary(tuple(ids), *(ids[word] for word in ("<pad>", "<start>", "<end>", "<unk>")))


def test_every_way_of_saving_gives_the_same_weights(small: Tutorial, tmp_path: Path) -> None:
    """Modern and legacy files, modules and state dicts, of a model that several GPUs trained, in half precision."""
    checkpoint, word_map = save_tutorial(small, tmp_path)
    reference = read_sgrvinod(checkpoint, word_map)
    assert_weights_of(reference, small)
    encoder, decoder = small[:2]
    ways = {
        "state dicts": {"encoder": encoder.state_dict(), "decoder": decoder.state_dict()},
        "parallel": {"encoder": nn.DataParallel(encoder), "decoder": nn.DataParallel(decoder)},
        "parallel states": {
            "encoder": nn.DataParallel(encoder).state_dict(),
            "decoder": nn.DataParallel(decoder).state_dict(),
        },
        "modules": {"encoder": encoder, "decoder": decoder},
        "double": {
            "encoder": encoder.state_dict(),
            "decoder": {k: v.double() for k, v in decoder.state_dict().items()},
        },
        "not contiguous": {
            "encoder": encoder.state_dict(),
            "decoder": {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in decoder.state_dict().items()},
        },
        "views": {"encoder": encoder.state_dict(), "decoder": in_one_storage(decoder)},
    }
    for content in ways.values():
        for is_legacy in (False, True):
            path = save(content, tmp_path / "other.pth.tar", is_legacy=is_legacy)
            found = read_sgrvinod(path, word_map)
            assert found.weights.keys() == reference.weights.keys()
            assert all(torch.equal(found.weights[name], value) for name, value in reference.weights.items())
            assert (found.encoder, found.decoder) == (reference.encoder, reference.decoder)


def in_one_storage(decoder: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as views of one long tensor."""
    state = decoder.state_dict()
    joined = torch.cat([torch.zeros(3), *(value.flatten() for value in state.values())])
    parts = torch.split(joined[3:], [value.numel() for value in state.values()])
    return {name: part.view_as(value) for (name, value), part in zip(state.items(), parts, strict=True)}


def assert_weights_of(found: Imported, tutorial: Tutorial) -> None:
    """Compare a layer of each kind, bit by bit."""
    decoder, weights = tutorial.decoder, found.weights
    embedding = decoder.embed_dim
    trunk = tutorial.encoder.resnet
    assert torch.equal(weights["encoder.trunk.layer4.1.conv2.weight"], trunk.get_parameter("7.1.conv2.weight"))
    assert torch.equal(weights["encoder.trunk.bn1.running_var"], trunk.get_buffer("1.running_var"))
    assert torch.equal(weights["decoder.from_word.weight"], decoder.decode_step.weight_ih[:, :embedding])
    assert torch.equal(weights["decoder.from_context.weight"], decoder.decode_step.weight_ih[:, embedding:])
    assert torch.equal(weights["decoder.output.bias"], decoder.fc.bias)


def test_files_of_torch_1_0_are_read(
    small: Tutorial, saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their modules name a backend that is gone, lack attributes of today, and do not count batches."""
    reference = read_sgrvinod(*saved)

    class Backend:
        def __reduce__(self) -> tuple[object, tuple[()]]:
            return _get_thnn_function_backend, ()

    def _get_thnn_function_backend() -> Backend:
        return Backend()

    thnn = ModuleType("torch.nn.backends.thnn")
    thnn._get_thnn_function_backend = _get_thnn_function_backend  # type: ignore[attr-defined]
    _get_thnn_function_backend.__module__, _get_thnn_function_backend.__qualname__ = (
        thnn.__name__,
        "_get_thnn_function_backend",
    )
    monkeypatch.setitem(sys.modules, "torch.nn.backends", ModuleType("torch.nn.backends"))
    monkeypatch.setitem(sys.modules, thnn.__name__, thnn)
    old = make_tutorial(SIZES["small"])
    for part in old[:2]:
        for module in part.modules():
            module.__dict__["_backend"] = Backend()
            module._buffers.pop("num_batches_tracked", None)
            for name in ("_non_persistent_buffers_set", "_is_full_backward_hook", "_state_dict_pre_hooks"):
                module.__dict__.pop(name, None)
    path = save({"encoder": old.encoder, "decoder": old.decoder}, tmp_path / "old.pth.tar", is_legacy=True)
    found = read_sgrvinod(path, saved[1])
    named = [name for name in reference.weights if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(found.weights[name], reference.weights[name]) for name in named)


def test_the_checkpoint_says_what_the_tutorial_does(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    outcome = call(capsys, "import", "sgrvinod", saved[0], "--word-map", saved[1], "--out", out)
    assert (outcome.code, outcome.out) == (0, "")
    checkpoint = load_checkpoint(out)
    description = checkpoint.description
    assert description.preprocessing == PreprocessSpec(
        size=256, geometry="squash", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), exif_transpose=False
    )
    assert (description.encoder.name, description.encoder.grid, description.max_length) == ("resnet18", 14, 51)
    assert description.provenance["epoch"] == 7
    vocabulary = checkpoint.vocabulary
    assert (vocabulary.pad, vocabulary.unk, vocabulary.start, vocabulary.end) == (0, 37, 38, 39)
    assert load_file(out / "model.safetensors")["decoder.embedding.weight"].shape == (40, 12)
    again = call(capsys, "import", "sgrvinod", saved[0], "--word-map", saved[1], "--out", out)
    assert "exists already" in again.error


def test_pixels_are_those_of_scipys_old_imresize() -> None:
    """Grey and palette pictures become RGB; what a camera says of its orientation is not looked at."""
    spec = PreprocessSpec(size=256, geometry="squash", mean=(0, 0, 0), std=(1, 1, 1), exif_transpose=False)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (300, 190, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    for each, kind in (
        (picture, "PNG"),
        (picture.convert("L"), "PNG"),
        (picture.quantize(64), "PNG"),
        (picture, "JPEG"),
    ):
        buffer = io.BytesIO()
        each.save(buffer, kind, exif=exif)
        np.testing.assert_array_equal(load_image(buffer.getvalue(), spec), squashed(buffer.getvalue(), 256))


def test_the_word_map_of_coco_is_read(shared: Path) -> None:
    vocabulary = read_word_map(shared / "data/foreign/WORDMAP_coco_5_cap_per_img_5_min_word_freq.json")
    assert len(vocabulary) == 9490
    assert (vocabulary.pad, vocabulary.unk, vocabulary.start, vocabulary.end) == (0, 9487, 9488, 9489)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"<pad>": 1}, "the ids of its 40 words are not 0 to 39"),
        ({"more": 41}, "the ids of its 41 words are not 0 to 40"),
        ({"word1": True}, "expected an object of words and their ids"),
        ({"": 40}, "every word must be a non-empty string"),
        ({"more": 40}, "has 41 words, .* was trained with 40"),
        (None, "expected an object of words and their ids"),
    ],
)
def test_a_wrong_word_map_is_refused(
    change: dict[str, object] | None, said: str, small: Tutorial, saved: tuple[Path, Path]
) -> None:
    saved[1].write_text(json.dumps(None if change is None else small.word_map | change))
    with pytest.raises((VocabularyError, CheckpointError), match=said):
        read_sgrvinod(*saved)


def test_a_grid_that_cannot_be_is_refused_and_another_can_be_given(small: Tutorial, tmp_path: Path) -> None:
    odd = deepcopy(small)
    odd.encoder.enc_image_size = 10**9
    checkpoint, word_map = save_tutorial(odd, tmp_path)
    with pytest.raises(CheckpointError, match="the grid of its encoder is no number from 1 to 64: give it as --grid"):
        read_sgrvinod(checkpoint, word_map)
    assert read_sgrvinod(checkpoint, word_map, grid=7).encoder.grid == 7


def test_a_word_map_without_a_special_word_is_refused(small: Tutorial, saved: tuple[Path, Path]) -> None:
    renamed = {"start" if word == "<start>" else word: number for word, number in small.word_map.items()}
    saved[1].write_text(json.dumps(renamed))
    with pytest.raises(VocabularyError, match=r"WORDMAP\.json: has no <start>"):
        read_sgrvinod(*saved)


def test_missing_additional_and_misshapen_tensors_are_named(
    small: Tutorial, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    encoder, decoder = small.encoder.state_dict(), small.decoder.state_dict()
    zeros = torch.zeros(5)

    def refusal(content: object) -> str:
        path = save(content, tmp_path / "wrong.pth.tar")
        with pytest.raises(CheckpointError) as caught:
            read_sgrvinod(path, saved[1])
        return str(caught.value)

    def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
        return {key: value for key, value in state.items() if key != name}

    assert "decoder is not the tutorial's: fc.bias is missing" in refusal(
        {"encoder": encoder, "decoder": without(decoder, "fc.bias")}
    )
    assert "encoder is not the tutorial's: layer2.0.bn1.weight is missing" in refusal(
        {"encoder": without(encoder, "resnet.5.0.bn1.weight"), "decoder": decoder}
    )
    assert "decoder is not the tutorial's: more is unknown" in refusal(
        {"encoder": encoder, "decoder": decoder | {"more": zeros}}
    )
    assert "init_h.bias has shape (5,), expected (20,)" in refusal(
        {"encoder": encoder, "decoder": decoder | {"init_h.bias": zeros}}
    )
    assert "embedding.weight has shape (5,)" in refusal(
        {"encoder": encoder, "decoder": decoder | {"embedding.weight": zeros}}
    )
    assert "conv1.weight has shape (5,), expected (64, 3, 7, 7)" in refusal(
        {"encoder": encoder | {"resnet.0.weight": zeros}, "decoder": decoder}
    )
    assert "encoder is no ResNet" in refusal(
        {"encoder": {name: zeros for name in encoder if ".6." not in name}, "decoder": decoder}
    )
    assert 'holds 1 other things, expected a dictionary with "encoder" and "decoder"' in refusal({"encoder": encoder})
    assert "its decoder is a int, expected a module" in refusal({"encoder": encoder, "decoder": 5})


def test_where_nothing_ends_captions_are_the_best_51_words(small: Tutorial, tmp_path: Path) -> None:
    """The original has no caption then; ours is marked."""
    mute = deepcopy(small)
    with torch.no_grad():
        mute.decoder.fc.bias[-1] = -1e4
    checkpoint = load_checkpoint(imported(mute, tmp_path))
    (content,) = pictures(1)
    search, beams = StraightforwardSearch(mute), (1, 3)
    for beam, expected in zip(beams, search.captions(normalised(content), beams), strict=True):
        decoder = TorchDecoder(checkpoint.captioner, checkpoint.vocabulary)
        options = SearchOptions(beam=beam, max_length=checkpoint.description.max_length)
        ((found,),) = decoder.search(squashed(content, SIDE)[None], options)
        assert expected.margin > 2 * ERROR
        assert (found.tokens, found.truncated, len(found.tokens)) == (expected.words, True, 51)
