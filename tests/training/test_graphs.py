"""The step graph's search rule, and the model under it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from saccade.decoding import Arrays, HostDecoding
from saccade.search import SearchOptions, search
from tests.toys import TableStep, random_tables, toy_vocabulary
from training.annotations import Annotations
from training.encoders import EncoderOptions
from training.graphs import STEP_INPUTS, STEP_OUTPUTS, StepGraph, survivors
from training.model import Captioner, Choice, DecoderOptions, DecoderState, build_captioner

END = 2


def captioner(*, grid: int = 0, **options: object) -> Captioner:
    torch.manual_seed(0)
    decoder = DecoderOptions(attention_width=7, embedding_width=6, hidden_width=5, dropout=0.0, **options)  # type: ignore[arg-type]
    return build_captioner(
        EncoderOptions(name="compact", grid=grid), decoder, words=9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
    ).eval()


def test_survivors_by_hand() -> None:
    """Two live rows, three words; the best four candidates of the six are asked for with two slots of three left."""
    scores = torch.tensor([[-1.0, -2.0, -torch.inf]])
    log_probs = torch.tensor([[[-3.0, -0.5, -1.5], [-0.2, -4.0, -0.4], [0.0, 0.0, 0.0]]])
    tokens, parents, kept, slots = survivors(scores, log_probs, torch.tensor([2]), end=END)
    # candidates: row 0 gives -4, -1.5, -2.5; row 1 gives -2.2, -6, -2.4
    assert tokens.tolist() == [[1, 0, END]]
    assert parents.tolist() == [[0, 1, 1]]
    torch.testing.assert_close(kept, torch.tensor([[-1.5, -2.2, -torch.inf]]))
    assert slots.tolist() == [2]


def test_a_candidate_that_ends_takes_a_slot() -> None:
    log_probs = torch.tensor([[[-3.0, -1.0, -0.5], [-9.0, -9.0, -9.0]]])
    scores = torch.tensor([[0.0, -torch.inf]])
    tokens, _, kept, slots = survivors(scores, log_probs, torch.tensor([2]), end=END)
    assert tokens.tolist() == [[END, 1]]
    assert kept.tolist() == [[-0.5, -1.0]]
    assert slots.tolist() == [1]


def test_ties_go_to_the_lower_row_then_to_the_lower_word() -> None:
    scores = torch.zeros(1, 3)
    log_probs = torch.full((1, 3, 50), -1.0)
    log_probs[0, 0, :40] = -2.0
    tokens, parents, _, _ = survivors(scores, log_probs, torch.tensor([3]), end=END)
    assert parents.tolist() == [[0, 0, 0]]
    assert tokens.tolist() == [[40, 41, 42]]


def test_fewer_candidates_than_rows_leave_dead_rows() -> None:
    log_probs = torch.full((1, 4, 3), -torch.inf)
    log_probs[0, 0, 1] = -1.0
    tokens, _, kept, slots = survivors(torch.zeros(1, 4), log_probs, torch.tensor([4]), end=END)
    assert tokens.tolist() == [[1, END, END, END]]
    assert kept.tolist() == [[-1.0, *[-np.inf] * 3]]
    assert slots.tolist() == [4]


class TableDecoder(torch.nn.Module):
    """A decoder whose log-probs stand in a table; hidden (B, K, 1) counts the steps."""

    def __init__(self, tables: np.ndarray) -> None:
        super().__init__()
        self.tables = torch.from_numpy(tables)

    def step(
        self, tokens: Tensor, state: DecoderState, annotations: Annotations, choice: None
    ) -> tuple[Tensor, Tensor, DecoderState]:
        steps = state.hidden[..., 0].long().clamp(max=self.tables.shape[1] - 1)
        images = annotations.values[:, 0].long().expand_as(tokens)
        alphas = torch.nn.functional.one_hot((tokens + state.hidden[..., 0].long()) % 4, 4).float()
        return self.tables[images, steps, tokens], alphas, DecoderState(state.hidden + 1, state.cell)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    words=st.integers(4, 6),
    beam=st.integers(1, 6),
    max_length=st.integers(1, 5),
    n_best=st.integers(1, 6),
    length_penalty=st.sampled_from((0.0, 1.0)),
)
def test_the_step_graph_searches_like_the_rule_written_row_by_row(
    seed: int, words: int, beam: int, max_length: int, n_best: int, length_penalty: float
) -> None:
    """Same tokens, scores and paths as an independent sort over Python lists."""
    vocabulary = toy_vocabulary(words)
    tables = random_tables(seed, 3, 4, words)
    raw = torch.from_numpy(tables).float()
    # Normalised as the graph does it: a log-prob near 0 carries the rounding of the logits, however it is searched.
    plain = TableStep((raw - raw.logsumexp(dim=-1, keepdim=True)).numpy(), vocabulary)
    graph = StepGraph(TableDecoder(tables), end=vocabulary.end)  # type: ignore[arg-type]

    def step(inputs: Arrays) -> Arrays:
        outputs = graph(*(torch.from_numpy(inputs[name]) for name in STEP_INPUTS))
        return {name: tensor.numpy() for name, tensor in zip(STEP_OUTPUTS, outputs, strict=True)}

    options = SearchOptions(beam=beam, max_length=max_length, n_best=min(n_best, beam), length_penalty=length_penalty)
    found, expected = (
        search(
            HostDecoding(function, plain.encoded(), beam=beam, start=vocabulary.start, with_alphas=True),
            vocabulary,
            options,
        )
        for function in (step, plain)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], rtol=1e-5)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.alphas, b.alphas)


@pytest.mark.parametrize("gate", ["scalar", "vector", "none"])
@pytest.mark.parametrize("output", ["deep", "linear"])
@pytest.mark.parametrize("query", ["hidden", "hidden+word"])
@pytest.mark.parametrize("layers", [1, 2])
def test_teacher_forcing_gives_the_logits_of_stepping(gate: str, output: str, query: str, layers: int) -> None:
    """The loop over time with everything hoisted out of it computes what one step after the other does."""
    nonlinearity = "tanh" if layers == 1 else "relu"
    model = captioner(
        gate=gate,
        output=output,
        query=query,
        nonlinearity=nonlinearity,
        attention_layers=layers,
        initial_layers=layers,
        annotation_width=11 * (layers - 1),
    )
    tokens = torch.tensor([[[1, 4, 5, 6], [1, 7, 0, 0]], [[1, 8, 3, 0], [1, 4, 4, 4]]])
    mask = tokens > 0
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        annotations = model.annotate(pixels)
        logits, alphas, _ = model.decoder.teacher_forced(tokens, mask, annotations)
        hidden, cell = model.decoder.initial_state(annotations)
        state = DecoderState(hidden[:, None].expand(-1, 2, -1), cell[:, None].expand(-1, 2, -1))
        every = []
        for time in range(4):
            step_logits, step_alphas, state = model.decoder.step(tokens[:, :, time], state, annotations)
            every.append(step_logits)
            torch.testing.assert_close(alphas[:, :, time], step_alphas)
    torch.testing.assert_close(logits, torch.stack(every, dim=2)[mask])


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_rows_whose_captions_have_ended_are_left_out_of_the_loop(attention: str) -> None:
    """The logits are those of stepping all the same, and rows that nobody needs any more are not advanced."""
    model = captioner(attention=attention)
    tokens = torch.tensor([[[1, 4, 5, 6], [1, 7, 0, 0], [1, 0, 0, 0]], [[1, 8, 3, 0], [1, 4, 4, 0], [1, 0, 0, 0]]])
    mask = tokens > 0
    noise = torch.randn(4, 2, 3, 4)
    choices = [Choice(one, torch.tensor([True, False])) for one in noise] if attention == "hard" else None
    rows = []
    model.decoder.attention.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    with torch.inference_mode():
        annotations = model.annotate(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
        logits, alphas, places = model.decoder.teacher_forced(tokens, mask, annotations, choices)
        assert rows == [3, 2, 2, 1]
        state = model.decoder.initial_rows(annotations, 3)
        every = []
        for time in range(4):
            choice = choices[time] if choices else None
            step_logits, step_alphas, state = model.decoder.step(tokens[:, :, time], state, annotations, choice)
            every.append(step_logits)
            here = mask[:, :, time]
            torch.testing.assert_close(alphas[:, :, time][here], step_alphas[here])
            if places is not None:
                chosen = (step_alphas.log() + noise[time]).argmax(dim=-1, keepdim=True)
                expected = step_alphas.log().gather(2, chosen).squeeze(-1)
                torch.testing.assert_close(places[:, :, time][here], expected[here])
    torch.testing.assert_close(logits, torch.stack(every, dim=2)[mask])
    assert not alphas[:, 2, 1:].any()
    assert (places is None) == (attention == "soft")


def test_attention_by_hand() -> None:
    """One image, two places, widths of one: energies tanh(k + q), alphas their softmax, context the weighted mean."""
    model = captioner()
    attention = model.decoder.attention
    query, values, keys = torch.randn(1, 1, 7), torch.randn(1, 2, 128), torch.randn(1, 2, 7)
    context, alphas, _ = attention(query, Annotations(values, keys))
    energies = torch.stack([torch.tanh(key + query[0, 0]) @ attention.energy.weight[0] for key in keys[0]])
    expected = energies.exp() / energies.exp().sum()
    torch.testing.assert_close(alphas[0, 0], expected)
    torch.testing.assert_close(context[0, 0], expected[0] * values[0, 0] + expected[1] * values[0, 1])


@pytest.mark.parametrize(
    "changes", [{}, {"attention_layers": 2}, {"keys_nonlinearity": "tanh"}, {"annotation_width": 11}], ids=str
)
def test_a_finer_grid_is_pooled_without_its_annotations(changes: dict[str, Any]) -> None:
    """Cells of 2 x 2 and 5 x 5 places: all is as if PyTorch had pooled the features to annotations of the places."""
    model = captioner(attention="hard", grid=5, **changes)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features = model.encode(pixels).transpose(1, 2).reshape(2, -1, 2, 2)
        pooled = model.decoder.annotate(F.adaptive_avg_pool2d(features, 5).flatten(2).transpose(1, 2))
        found = model.annotate(pixels)
        assert pooled.values.shape[1] == pooled.keys.shape[1] == found.keys.shape[1] == 25
        assert found.values.shape[1] == (25 if "annotation_width" in changes else 4)
        torch.testing.assert_close(found.keys, pooled.keys)
        states = [model.decoder.initial_rows(one, 3) for one in (found, pooled)]
        torch.testing.assert_close(*states)
        tokens = torch.tensor([[1, 4, 5], [6, 7, 2]])
        choice = Choice(torch.randn(2, 3, 25), torch.tensor([True, False]))
        steps = [model.decoder.step(tokens, states[0], one, choice) for one in (found, pooled)]
    torch.testing.assert_close(*steps)


def test_a_finer_grid_is_trained_as_if_it_were_made() -> None:
    """After it has captioned, too: a tensor that was made in inference mode could be no part of it."""
    model, pixels = captioner(grid=5), torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        model.annotate(pixels)
    tokens = torch.tensor([[[1, 4, 5]], [[1, 7, 3]]])

    def gradients(annotations: Annotations) -> list[Tensor]:
        logits = model.decoder.teacher_forced(tokens, tokens > 0, annotations).logits
        return list(torch.autograd.grad(logits.square().sum(), list(model.parameters()), materialize_grads=True))

    features = model.encode(pixels).transpose(1, 2).reshape(2, -1, 2, 2)
    made = model.decoder.annotate(F.adaptive_avg_pool2d(features, 5).flatten(2).transpose(1, 2))
    torch.testing.assert_close(gradients(model.annotate(pixels)), gradients(made), rtol=1e-4, atol=1e-5)


def test_annotations_are_brought_to_the_decoders_width_once_and_before_all_else() -> None:
    model = captioner(annotation_width=11)
    layer = model.decoder.project
    assert layer is not None
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    values = model.annotate(pixels).values
    torch.testing.assert_close(values, torch.relu(model.encode(pixels) @ layer.weight.T + layer.bias))
    assert model.decoder.from_context.in_features == values.shape[-1] == 11


def test_normalisation_is_inside_the_graph() -> None:
    """Bytes go in; the encoder sees (value / 255 - mean) / std."""
    model = captioner()
    pixels = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.annotate(pixels)
    expected = (pixels[0, 3, 5].float() / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.3])
    torch.testing.assert_close(seen[0][0, :, 3, 5], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_cuda_captions_equal_the_cpus() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from training.decoding import TorchDecoder

    model, vocabulary = captioner(), toy_vocabulary(9)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    for beam in (1, 3, 5):
        options = SearchOptions(beam=beam, max_length=12)
        on_cpu = TorchDecoder(model.cpu(), vocabulary).search(pixels, options)
        on_cuda = TorchDecoder(model.cuda(), vocabulary).search(pixels, options)
        assert [best[0].tokens for best in on_cuda] == [best[0].tokens for best in on_cpu]
