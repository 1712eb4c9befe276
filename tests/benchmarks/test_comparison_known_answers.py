"""A comparison of a bundle with the same bundle made wrong in one way tells which way it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.comparison_candidates import (
    Candidate,
    ComparisonOptions,
    Picture,
    compare_candidates,
)
from benchmarks.comparison_results import CandidateResult
from saccade.bundle import VOCABULARY, Bundle, Precision
from saccade.search import SearchOptions
from tests.benchmarks.changed_bundles import Weights, changed, in_half_precision, sealed
from tests.bundles import MAX_LENGTH, save_patchworks
from tests.bundles import VOCABULARY as WORDS

ORT = Candidate(backend="ort", precision="fp32")
IMAGES = 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    return [Picture(path) for path in save_patchworks(tmp_path_factory.mktemp("images"), IMAGES)]


Compare = Callable[..., CandidateResult]


@pytest.fixture
def compared(tiny_bundle: Path, tmp_path: Path, pictures: list[Picture]) -> Compare:
    """Compares a changed bundle, in ONNX Runtime, with the good one."""

    def compare(
        *, tolerances: Precision | None = None, layers: bool = False, **changes: Callable[[Weights], None]
    ) -> CandidateResult:
        other = changed(tiny_bundle, tmp_path / "changed", **changes)
        return result(tiny_bundle, other, pictures, tolerances=tolerances, layers=layers)

    return compare


def result(
    bundle: Path,
    other: Path,
    pictures: list[Picture],
    *,
    tolerances: Precision | None = None,
    layers: bool = False,
    beam: int = 3,
) -> CandidateResult:
    options = ComparisonOptions(
        search=SearchOptions(max_length=MAX_LENGTH, beam=beam),
        batch=5,
        threads=1,
        tolerances=tolerances,
        layers=layers,
    )
    candidate = Candidate(backend="ort", bundle=other)
    comparison = compare_candidates(Bundle.open(bundle), ORT, [candidate], pictures, options)
    (found,) = comparison.candidates
    return found


def output_weight(weights: Weights) -> str:
    """Name of the output layer's weight (m, V)."""
    (name,) = (name for name, values in weights.items() if values.ndim == 2 and values.shape[1] == len(WORDS))
    return name


def swapped_output_rows(first: int, second: int) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        for name in (output_weight(weights), "decoder.output.bias"):
            weights[name][..., [first, second]] = weights[name][..., [second, first]]

    return change


def test_a_copy_is_identical(compared: Compare) -> None:
    found = compared(layers=True)
    assert (found.verdict, found.diagnosis) == ("PASS", "identical within rounding")
    assert [caption.outcome for caption in found.captions] == ["same"] * IMAGES
    assert found.top == (1.0, 1.0)
    assert found.layers is not None
    assert found.layers.enters is None


def test_a_weight_of_a_convolution_is_found_in_the_encoder_and_by_layers(compared: Compare) -> None:
    def perturb(weights: Weights) -> None:
        weights["captioner.encoder.trunk.stem.1.0.weight"][3, 2, 1, 1] += 30

    found = compared(encoder=perturb, layers=True)
    (finding,) = found.findings
    assert (found.verdict, finding.kind, finding.tensor) == ("FAIL", "encoder differs", "annotations")
    assert finding.text.startswith("encoder differs from output annotations on")
    assert found.layers is not None
    assert found.layers.enters is not None
    assert (found.layers.enters.tensor, found.layers.enters.operator) == ("getitem_3", "Conv")
    assert found.layers.enters.before == 0
    assert all(errors.deviation < 1e-6 for errors in found.step.values())


def test_a_weight_of_the_keys_is_found_in_the_keys_and_in_their_channel(compared: Compare) -> None:
    """Too little to stand out among what float16 loses: that it is one channel tells it apart."""

    def perturb(weights: Weights) -> None:
        (name,) = (n for n, v in weights.items() if v.ndim == 2 and v.shape[1] == 16)
        weights[name][5, 11] += 0.02

    found = compared(encoder=perturb, tolerances="fp16")
    (finding,) = found.findings
    assert (finding.kind, finding.tensor) == ("encoder differs", "keys")
    assert found.encoder["keys"].deviation < 0.05
    assert "in channel 11" in finding.text
    assert found.encoder["annotations"].deviation == 0


def test_a_weight_of_the_lstm_is_found_in_the_step_at_the_first_step(compared: Compare) -> None:
    def perturb(weights: Weights) -> None:
        (name,) = (n for n, v in weights.items() if v.ndim == 2 and v.shape[0] == 32 and v.shape[1] > 100)
        weights[name][:, 16 + 3 * 32 : 16 + 3 * 32 + 4] += 1

    found = compared(step=perturb)
    (finding,) = found.findings
    assert (finding.kind, finding.step) == ("step differs", 1)
    assert finding.tensor in ("next_cell", "next_hidden")
    assert found.verdict == "FAIL"
    assert all(errors.deviation == 0 for errors in found.encoder.values())


def test_swapped_channels_are_found_in_the_input(compared: Compare) -> None:
    def swap(weights: Weights) -> None:
        name = "captioner.encoder.trunk.stem.0.0.weight"
        weights[name] = np.ascontiguousarray(weights[name][:, ::-1])

    found = compared(encoder=swap)
    assert found.verdict == "FAIL"
    assert found.diagnosis.startswith("input differs (channels: it takes them as BGR)")
    assert found.findings[0].tensor == "annotations"
    assert found.findings[0].step == min(one.parting.step for one in found.captions if one.parting)


def test_swapped_rows_of_the_output_layer_are_named(compared: Compare) -> None:
    first, second = WORDS.encode(["dog", "ball"])
    found = compared(step=swapped_output_rows(first, second))
    (finding,) = found.findings
    assert (finding.kind, finding.tensor) == ("vocabulary row", "next_tokens")
    assert set(finding.words) == {first, second}
    assert "output layer" in finding.text
    assert found.verdict == "FAIL"
    first_error = next(step.step for step in found.agreement if step.errors)
    assert finding.step == first_error


def test_swapped_rows_of_the_embedding_are_named(compared: Compare) -> None:
    first, second = WORDS.encode(["dog", "ball"])

    def swap(weights: Weights) -> None:
        weights["decoder.embedding.weight"][[first, second]] = weights["decoder.embedding.weight"][[second, first]]

    found = compared(step=swap)
    (finding,) = found.findings
    assert finding.kind == "vocabulary row"
    assert set(finding.words) <= {first, second}
    assert "embedding" in finding.text
    assert finding.step is not None
    assert finding.step > 1  # the first step reads <start>
    assert found.verdict == "FAIL"


def test_swapped_words_of_the_list_are_named(tiny_bundle: Path, tmp_path: Path, pictures: list[Picture]) -> None:
    other = changed(tiny_bundle, tmp_path / "changed")
    path = other / VOCABULARY
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"red"', '"?"').replace('"green"', '"red"').replace('"?"', '"green"'), "utf-8")
    found = result(tiny_bundle, sealed(other), pictures)
    assert found.findings[0].words == tuple(WORDS.encode(["red", "green"]))
    assert 'is "red", in the candidate\'s list "green"' in found.diagnosis
    assert found.verdict == "FAIL"  # other words, whatever the numbers


def test_half_precision_is_loss_of_precision_and_passes_as_such(compared: Compare) -> None:
    found = compared(encoder=in_half_precision, step=in_half_precision, tolerances="fp16")
    (finding,) = found.findings
    assert finding.kind == "precision loss only"
    assert (found.verdict, found.problems) == ("PASS", ())
    assert found.count("error") == 0


def test_half_precision_is_no_float32(compared: Compare) -> None:
    found = compared(encoder=in_half_precision, step=in_half_precision)
    assert found.findings[0].kind == "precision loss only"
    assert found.verdict == "FAIL"
    assert any("annotations deviates" in problem for problem in found.problems)


def test_weights_that_are_no_numbers_are_found(compared: Compare) -> None:
    def break_it(weights: Weights) -> None:
        weights["decoder.output.bias"][5] = np.nan

    found = compared(step=break_it)
    assert found.findings[0].kind == "no numbers"
    assert found.findings[0].tensor == "next_scores"
    assert found.verdict == "FAIL"
    assert found.captions == ()


def almost_equal_words(offset: float) -> Callable[[Weights], None]:
    """`dog` and `ball` are the same to the model, but for an offset in favour of `ball`."""
    first, second = WORDS.encode(["dog", "ball"])

    def change(weights: Weights) -> None:
        for name in (output_weight(weights), "decoder.output.bias"):
            weights[name][..., second] = weights[name][..., first]
        weights["decoder.output.bias"][[first, second]] += 2  # so that both are likely
        weights["decoder.output.bias"][second] += offset

    return change


@pytest.mark.parametrize(("offset", "outcome", "verdict"), [(1e-6, "near-tie", "PASS"), (0.02, "error", "FAIL")])
def test_a_near_tie_is_no_error_and_a_real_margin_is_one(
    tiny_bundle: Path, tmp_path: Path, pictures: list[Picture], offset: float, outcome: str, verdict: str
) -> None:
    bundle = changed(tiny_bundle, tmp_path / "bundle", step=almost_equal_words(offset))
    other = changed(tiny_bundle, tmp_path / "other", step=almost_equal_words(-offset))
    found = result(bundle, other, pictures, beam=1)
    differing = [caption for caption in found.captions if caption.parting]
    assert differing
    for caption in differing:
        assert caption.outcome == outcome
        assert caption.parting is not None
        assert caption.parting.kept.split()[-1] == "ball"
        assert caption.parting.taken.split()[-1] == "dog"
        assert caption.parting.margin == pytest.approx(offset, rel=0.5, abs=2e-6)
    assert found.verdict == verdict
    if outcome == "near-tie":
        assert found.count("error") == 0
        assert sum(step.near_ties for step in found.agreement) > 0
        assert sum(step.errors for step in found.agreement) == 0
