"""Learning rates and averages against numbers worked out by hand; resuming bit by bit."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.errors import ConfigError
from saccade.structure import structure, unstructure
from training.encoders import EncoderOptions
from training.model import Captioner, DecoderOptions, build_captioner
from training.optimisation import Optimisation, OptimisationOptions

Schedule = Literal["cosine", "linear", "plateau", "constant"]
OPTIMISERS: tuple[Literal["adamw", "adam", "rmsprop", "muon"], ...] = ("adamw", "adam", "rmsprop", "muon")
SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear", "plateau", "constant")


def tiny_captioner(*, seed: int = 0, frozen: bool = False) -> Captioner:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        captioner = build_captioner(
            EncoderOptions(name="compact", frozen=frozen),
            DecoderOptions(attention_width=4, embedding_width=4, hidden_width=4, dropout=0.0),
            words=6,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        )
    captioner.encoder.to(memory_format=torch.channels_last)  # as the trainer does: strides must survive a resume
    return captioner.train()


def options(**changes: Any) -> OptimisationOptions:
    return OptimisationOptions(**{"epochs": 2, "warmup_steps": 0} | changes)


def sum_of_weights(captioner: Captioner) -> Tensor:
    """A loss with the gradient 1 everywhere."""
    return torch.stack([weight.sum() for weight in captioner.parameters() if weight.requires_grad]).sum()


def rates(batches: int, **changes: Any) -> list[float]:
    """The learning rate of every batch, and the one that would come after the last."""
    captioner = tiny_captioner()
    optimisation = Optimisation(captioner, options(learning_rate=2.0, **changes), batches=batches)
    found = [optimisation.rate]
    for _ in range(batches):
        optimisation.step(captioner.decoder.output.bias.sum())
        found.append(optimisation.rate)
    return found


def test_cosine_rises_linearly_and_falls_to_zero_in_half_a_cosine() -> None:
    # 2 * (1 + cos(pi k / 4)) / 2 for k = 0 ... 4
    falling = [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0]
    assert rates(8, schedule="cosine", warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, *falling], abs=1e-12)
    assert rates(4, schedule="cosine") == pytest.approx(falling, abs=1e-12)


def test_linear_rises_and_falls_in_straight_lines() -> None:
    falling = [2.0, 1.5, 1.0, 0.5, 0.0]
    assert rates(6, schedule="linear", warmup_steps=2) == pytest.approx([1.0, 2.0, *falling], abs=1e-12)
    assert rates(4, schedule="linear") == pytest.approx(falling, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_constant_and_plateau_stay_after_the_warm_up(schedule: Schedule) -> None:
    assert rates(5, schedule=schedule, warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])
    assert rates(2, schedule=schedule) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_shorter_than_its_warm_up_only_rises(schedule: Schedule) -> None:
    assert rates(2, schedule=schedule, warmup_steps=200) == pytest.approx([0.01, 0.02, 0.03])


def test_accumulated_batches_share_a_rate_and_the_schedule_ends_with_the_last_whole_step() -> None:
    found = rates(5, schedule="linear", accumulate=2)
    assert found == pytest.approx([2.0, 2.0, 1.0, 1.0, 0.0, 0.0], abs=1e-12)


def test_plateau_lowers_the_rate_when_the_score_has_not_risen_for_the_patience() -> None:
    captioner = tiny_captioner()
    chosen = options(
        schedule="plateau", learning_rate=1.0, encoder_learning_rate=0.5, plateau_factor=0.1, plateau_patience=2
    )
    optimisation = Optimisation(captioner, chosen, batches=100)
    found = []
    for score in (0.0, 0.5, 0.5, 0.4, 0.3, 0.50001, 0.2, 0.1):
        optimisation.step(captioner.decoder.output.bias.sum())
        optimisation.after_epoch(score)
        found.append(optimisation.rate)
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01])
    assert optimisation.state()[1]["rates"][-1] == pytest.approx(0.005)


def test_plateau_heard_during_the_warm_up_lowers_what_the_warm_up_reaches() -> None:
    captioner = tiny_captioner()
    chosen = options(schedule="plateau", learning_rate=1.0, warmup_steps=4, plateau_factor=0.5, plateau_patience=1)
    optimisation = Optimisation(captioner, chosen, batches=100)
    for step in range(4):
        optimisation.step(captioner.decoder.output.bias.sum())
        if step < 2:
            optimisation.after_epoch(0.0)
    assert optimisation.rate == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_only_plateau_listens_to_scores(schedule: Schedule) -> None:
    optimisation = Optimisation(tiny_captioner(), options(schedule=schedule, plateau_patience=1), batches=10)
    for score in (3.0, 2.0, 1.0):
        optimisation.after_epoch(score)
    assert optimisation.rate == 1e-3


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_optimiser_goes_downhill(optimiser: str) -> None:
    captioner = tiny_captioner()
    optimisation = Optimisation(captioner, options(optimiser=optimiser), batches=10)
    before = sum_of_weights(captioner).item()
    optimisation.step(sum_of_weights(captioner))
    assert sum_of_weights(captioner).item() < before


def test_the_encoder_has_its_own_rate() -> None:
    """The first step of Adam is the learning rate times the sign of the gradient."""
    captioner = tiny_captioner()
    before = {name: weight.detach().clone() for name, weight in captioner.named_parameters()}
    chosen = options(optimiser="adam", learning_rate=1e-2, encoder_learning_rate=1e-4, gradient_clip=1e9)
    optimisation = Optimisation(captioner, chosen, batches=10)
    assert optimisation.rate == 1e-2
    optimisation.step(sum_of_weights(captioner))
    for name, weight in captioner.named_parameters():
        moved = 1e-4 if name.startswith("encoder.") else 1e-2
        torch.testing.assert_close(before[name] - weight, torch.full_like(weight, moved), rtol=0, atol=1e-6)


def test_a_frozen_encoder_is_not_touched() -> None:
    captioner = tiny_captioner(frozen=True)
    before = {name: tensor.clone() for name, tensor in captioner.encoder.state_dict().items()}
    optimisation = Optimisation(captioner, options(weight_decay=0.5, average_decay=0.5), batches=10)
    optimisation.step(sum_of_weights(captioner))
    with optimisation.averaged_weights():
        assert all(torch.equal(tensor, before[name]) for name, tensor in captioner.encoder.state_dict().items())
    tensors, _ = optimisation.state()
    assert sum(name.startswith("weights.") for name in tensors) == len(list(captioner.decoder.parameters()))


def test_weight_decay_leaves_biases_norms_and_embeddings_alone() -> None:
    """Without a gradient, AdamW multiplies what decays by 1 - learning_rate * weight_decay."""
    captioner = tiny_captioner()
    before = {name: weight.detach().clone() for name, weight in captioner.named_parameters()}
    optimisation = Optimisation(captioner, options(learning_rate=0.1, weight_decay=0.5), batches=10)
    optimisation.step(0 * sum_of_weights(captioner))
    layers = dict(captioner.named_modules())
    decayed = set()
    for name, weight in captioner.named_parameters():
        layer, _, kind = name.rpartition(".")
        decays = isinstance(layers[layer], nn.Linear | nn.Conv2d) and kind == "weight"
        torch.testing.assert_close(weight.detach(), before[name] * (0.95 if decays else 1.0), msg=name)
        decayed.add((type(layers[layer]).__name__, kind, decays))
    assert {("Linear", "weight", True), ("Conv2d", "weight", True), ("Linear", "bias", False)} < decayed
    assert {("BatchNorm2d", "weight", False), ("Embedding", "weight", False)} < decayed


def test_the_gradient_is_clipped_to_its_largest_norm() -> None:
    captioner = tiny_captioner()
    Optimisation(captioner, options(gradient_clip=0.25), batches=10).step(sum_of_weights(captioner))
    norms = [weight.grad.double().norm() for weight in captioner.parameters() if weight.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(0.25, rel=1e-3)  # the clip itself sums in float32


def test_accumulated_batches_make_one_step_of_their_mean() -> None:
    apart, together = tiny_captioner(), tiny_captioner()
    accumulating = Optimisation(apart, options(accumulate=2), batches=10)
    before = apart.decoder.output.weight.detach().clone()
    accumulating.step(batch_loss(apart, 0))
    assert torch.equal(apart.decoder.output.weight, before)
    accumulating.step(batch_loss(apart, 1))
    Optimisation(together, options(), batches=10).step((batch_loss(together, 0) + batch_loss(together, 1)) / 2)
    assert not torch.equal(apart.decoder.output.weight, before)
    # The gradients, because AdamW hardly tells a sum from a mean.
    torch.testing.assert_close(apart.decoder.output.weight.grad, together.decoder.output.weight.grad)


def test_gradients_that_others_left_behind_count_for_nothing() -> None:
    """Pretraining of the encoder leaves its last gradients on the parameters."""
    littered, clean = tiny_captioner(), tiny_captioner()
    for weight in littered.parameters():
        weight.grad = torch.full_like(weight, 7.0)
    for captioner in (littered, clean):
        Optimisation(captioner, options(), batches=10).step(batch_loss(captioner, 0))
    assert all(map(torch.equal, littered.parameters(), clean.parameters()))


def test_the_average_starts_with_the_first_step_and_keeps_its_share_at_each() -> None:
    captioner = tiny_captioner()
    optimisation = Optimisation(captioner, options(average_decay=0.75), batches=10)
    weight = captioner.decoder.output.weight
    history = []
    for batch in range(3):
        optimisation.step(batch_loss(captioner, batch))
        history.append(weight.detach().clone())
    first, second, third = history
    with optimisation.averaged_weights():
        torch.testing.assert_close(weight.detach(), 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third)
        assert not torch.equal(weight, third)
    assert torch.equal(weight, third)


def test_batch_statistics_are_the_captioners_own_beside_averaged_weights() -> None:
    captioner = tiny_captioner()
    optimisation = Optimisation(captioner, options(average_decay=0.9), batches=10)
    for batch in range(3):
        optimisation.step(batch_loss(captioner, batch))
    before = {name: buffer.clone() for name, buffer in captioner.named_buffers()}
    with optimisation.averaged_weights():
        assert all(torch.equal(buffer, before[name]) for name, buffer in captioner.named_buffers())


def test_the_weights_come_back_after_an_error() -> None:
    captioner = tiny_captioner()
    optimisation = Optimisation(captioner, options(average_decay=0.9), batches=10)
    for batch in range(2):
        optimisation.step(batch_loss(captioner, batch))
    before = [weight.detach().clone() for weight in captioner.parameters()]

    def fail() -> None:
        with optimisation.averaged_weights():
            assert not all(map(torch.equal, captioner.parameters(), before))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(map(torch.equal, captioner.parameters(), before))


def test_without_an_average_the_weights_stay_themselves() -> None:
    captioner = tiny_captioner()
    optimisation = Optimisation(captioner, options(), batches=10)
    optimisation.step(batch_loss(captioner, 0))
    before = [weight.detach().clone() for weight in captioner.parameters()]
    with optimisation.averaged_weights():
        assert all(map(torch.equal, captioner.parameters(), before))


def batch_loss(captioner: Captioner, number: int) -> Tensor:
    """The likelihood of four random words for each of two random pictures."""
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (2, 32, 32, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(6, (2, 1, 5), generator=generator)
    mask = torch.ones(2, 1, 4, dtype=torch.bool)
    logits = captioner.decoder.teacher_forced(tokens[..., :-1], mask, captioner.annotate(pixels))[0]
    return F.cross_entropy(logits, tokens[..., 1:].flatten())


def train(captioner: Captioner, optimisation: Optimisation, batches: range) -> None:
    """Epochs of two batches whose scores fall."""
    for batch in batches:
        optimisation.step(batch_loss(captioner, batch))
        if batch % 2:
            optimisation.after_epoch(-float(batch))


@pytest.mark.parametrize(
    ("optimiser", "schedule", "average_decay"), list(product(OPTIMISERS, SCHEDULES, (0.0, 0.9))), ids=str
)
def test_an_interrupted_run_continues_bit_by_bit(
    tmp_path: Path, optimiser: str, schedule: Schedule, average_decay: float
) -> None:
    """10 batches, or 5, a checkpoint in the middle of an accumulation with the averaged weights, and 5 more."""
    chosen = options(
        optimiser=optimiser,
        schedule=schedule,
        average_decay=average_decay,
        accumulate=2,
        warmup_steps=2,
        plateau_patience=1,
        weight_decay=0.1,
        encoder_learning_rate=1e-4,
    )
    whole = tiny_captioner()
    uninterrupted = Optimisation(whole, chosen, batches=10)
    train(whole, uninterrupted, range(10))

    first = tiny_captioner()
    interrupted = Optimisation(first, chosen, batches=10)
    train(first, interrupted, range(5))
    with interrupted.averaged_weights():
        weights = {name: tensor.contiguous() for name, tensor in first.state_dict().items()}
        tensors, values = interrupted.state()
        save_file(weights, tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "trainer.safetensors")
    text = json.dumps(values, allow_nan=False)

    second = tiny_captioner(seed=1)
    resumed = Optimisation(second, chosen, batches=10)
    second.load_state_dict(load_file(tmp_path / "model.safetensors"))
    resumed.restore(load_file(tmp_path / "trainer.safetensors"), json.loads(text))
    assert resumed.rate == interrupted.rate
    train(second, resumed, range(5, 10))

    assert_same_tensors(second.state_dict(), whole.state_dict())
    (resumed_tensors, resumed_values), (whole_tensors, whole_values) = resumed.state(), uninterrupted.state()
    assert_same_tensors(resumed_tensors, whole_tensors)
    assert resumed_values == whole_values


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_state_is_the_same_inside_and_outside_of_averaged_weights() -> None:
    captioner = tiny_captioner()
    optimisation = Optimisation(captioner, options(average_decay=0.9), batches=10)
    train(captioner, optimisation, range(2))
    outside = optimisation.state()
    with optimisation.averaged_weights():
        inside = optimisation.state()
    assert_same_tensors(inside[0], outside[0])
    assert inside[1] == outside[1]


def test_a_state_is_a_copy_that_later_steps_leave_alone() -> None:
    captioner = tiny_captioner()
    optimisation = Optimisation(captioner, options(average_decay=0.9, schedule="cosine"), batches=10)
    train(captioner, optimisation, range(2))
    tensors, values = optimisation.state()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}, json.dumps(values)
    train(captioner, optimisation, range(2, 4))
    assert_same_tensors(tensors, kept[0])
    assert json.dumps(values) == kept[1]
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def test_a_state_from_before_the_first_epoch_is_json() -> None:
    captioner = tiny_captioner()
    optimisation = Optimisation(captioner, options(schedule="plateau"), batches=10)
    json.dumps(optimisation.state()[1], allow_nan=False)


def test_all_problems_of_the_options_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        OptimisationOptions(
            epochs=-1,
            accumulate=0,
            learning_rate=math.nan,
            encoder_learning_rate=0.0,
            warmup_steps=-1,
            plateau_factor=1.0,
            plateau_patience=0,
            label_smoothing=1.0,
            average_decay=1.0,
        )
    for problem in (
        "epochs must be 0 or more, got -1",
        "accumulate must be at least 1, got 0",
        "plateau_patience must be at least 1, got 0",
        "warmup_steps must be 0 or more, got -1",
        "learning_rate must be above 0, got nan",
        "encoder_learning_rate must be above 0, got 0.0",
        "plateau_factor must be above 0 and below 1, got 1.0",
        "label_smoothing must be in [0, 1), got 1.0",
        "average_decay must be in [0, 1), got 1.0",
    ):
        assert problem in str(caught.value)


def test_options_travel_through_a_configuration_file() -> None:
    chosen = options(optimiser="rmsprop", schedule="plateau", encoder_learning_rate=1e-5)
    for one in (chosen, options()):
        assert structure(unstructure(one), OptimisationOptions, source="run.json", error=ConfigError) == one
    with pytest.raises(ConfigError, match="expected 'adamw' or 'adam' or 'rmsprop' or 'muon', got 'sgd' in optimiser"):
        structure({"epochs": 1, "optimiser": "sgd"}, OptimisationOptions, source="x.toml", error=ConfigError)
