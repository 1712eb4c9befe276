"""The two graphs of a bundle as thin modules over the model: exported to ONNX, run eagerly by the PyTorch backend."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.annotations import Annotations
from training.model import Captioner, Choice, Decoder, DecoderState

ENCODER_INPUTS = ("pixels",)
ENCODER_OUTPUTS = ("annotations", "keys", "hidden", "cell")
STEP_INPUTS = ("annotations", "keys", "tokens", "hidden", "cell", "scores", "slots", "word_bias")
CHOICE_INPUTS = ("noise", "sampled")
STEP_OUTPUTS = (
    "next_tokens",
    "parents",
    "next_hidden",
    "next_cell",
    "next_scores",
    "next_slots",
    "alphas",
)


def step_inputs(decoder: Decoder) -> tuple[str, ...]:
    """Names of the step graph's inputs, in order."""
    return STEP_INPUTS + (CHOICE_INPUTS if decoder.options.attention == "hard" else ())


class EncoderGraph(nn.Module):
    """pixels uint8 (B, S, S, 3) to annotations (B, C, D), keys (B, L, A), hidden (B, H) and cell (B, H)."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.captioner = captioner

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything the search needs of an image, once."""
        annotations = self.captioner.annotate(pixels)
        return *annotations, *self.captioner.decoder.initial_state(annotations)


class StepGraph(nn.Module):
    """One step of beam search: attention, LSTM, output layer, top-k and the gather of the surviving states."""

    def __init__(self, decoder: Decoder, *, end: int) -> None:
        """End : id of `<end>`."""
        super().__init__()
        self.decoder = decoder
        self.end = end

    def forward(
        self,
        annotations: Tensor,
        keys: Tensor,
        tokens: Tensor,
        hidden: Tensor,
        cell: Tensor,
        scores: Tensor,
        slots: Tensor,
        word_bias: Tensor,
        noise: Tensor | None = None,
        sampled: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Continue every live row by its best words.

        annotations (B, C, D), keys (B, L, A), hidden and cell (B, K, H); tokens int64 and scores float32 (B, K);
        slots int64 (B,), hypotheses still to be found; word_bias float32 (V,), added to the log-probs.
        noise float32 (B, K, L) and sampled bool (B,), of hard attention alone: see `training.model.Choice`.
        A row is live where its score is finite and its token is not `<end>`.
        Returns STEP_OUTPUTS; `alphas` (B, K, L) are those of the input rows: index them by `parents`.
        """
        choice = None if noise is None or sampled is None else Choice(noise, sampled)
        log_probs, alphas, state = predict(
            self.decoder, tokens, DecoderState(hidden, cell), Annotations(annotations, keys), choice
        )
        live = scores.masked_fill(tokens == self.end, -torch.inf)
        next_tokens, parents, next_scores, next_slots = survivors(live, log_probs + word_bias, slots, end=self.end)
        return (
            next_tokens,
            parents,
            rows_of(state.hidden, parents),
            rows_of(state.cell, parents),
            next_scores,
            next_slots,
            alphas,
        )


def predict(
    decoder: Decoder, tokens: Tensor, state: DecoderState, annotations: Annotations, choice: Choice | None
) -> tuple[Tensor, Tensor, DecoderState]:
    """Log-probs float32 (B, K, V) of the next words, alphas (B, K, L) and the next state; see `Decoder.step`."""
    logits, alphas, state = decoder.step(tokens, state, annotations, choice)
    logits = logits.float()
    return logits - logits.logsumexp(dim=-1, keepdim=True), alphas, state


def survivors(scores: Tensor, log_probs: Tensor, slots: Tensor, *, end: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The K best candidates of each image among K rows x V words; ties to the lower row, then to the lower word id.

    scores : float32 (B, K), -inf for rows that are not live
    log_probs : float32 (B, K, V)
    slots : int64 (B,); a candidate of rank r exists if r < slots, and takes a slot with it if it ends
    Returns tokens, parents (B, K), scores (B, K) and slots (B,); what does not exist has token `end` and score -inf.
    """
    rows, words = log_probs.shape[1], log_probs.shape[2]
    best, places = _top(scores.unsqueeze(-1) + log_probs, rows)
    parents = _quotient(places, words)
    # `not -inf` rather than `finite`: a NaN must reach the loop, which reports it.
    exists = (torch.arange(rows, device=slots.device) < slots.unsqueeze(-1)) & (best != -torch.inf)
    tokens = torch.where(exists, places - parents * words, end)
    ended = exists & (tokens == end)
    return tokens, parents, best.masked_fill(~exists, -torch.inf), slots - ended.sum(dim=-1)


def _top(candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of (B, K, V) over K x V, and their flat places; equal values lower place first."""
    if candidates.shape[2] <= 4 * _CHUNK:
        return _largest(candidates.flatten(1), count)
    return _top_of_chunks(candidates, count)


_CHUNK = 128


def _top_of_chunks(candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same, by way of the `count` chunks of words with the largest maxima: nothing else can be among the best.

    OpenVINO's TopK over 5 x 9,490 words takes longer than all else in the step. The chunks are brought back into the
    order of their places, so that equal values keep theirs.
    """
    images, rows, words = candidates.shape
    chunks_per_row = -(-words // _CHUNK)
    padded = F.pad(candidates, (0, chunks_per_row * _CHUNK - words), value=-torch.inf)
    chunks = padded.reshape(images, rows * chunks_per_row, _CHUNK)
    chosen = -(-_largest(chunks.amax(dim=-1), count)[1]).topk(count, dim=-1).values
    best, places = _largest(rows_of(chunks, chosen).flatten(1), count)
    rank = _quotient(places, _CHUNK)
    chunk = chosen.gather(1, rank)
    row = _quotient(chunk, chunks_per_row)
    word = (chunk - row * chunks_per_row) * _CHUNK + places - rank * _CHUNK
    return best, row * words + word


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of float32 (B, N) and their places; equal values lower place first.

    ONNX TopK promises that order. `torch.topk` does not, so eagerly the place is made part of the key: float32 values
    become integers of the same order, in the upper half of an int64.
    """
    if torch.compiler.is_exporting():
        best, places = values.topk(count, dim=-1)
        return best, places
    bits = (values + 0.0).view(torch.int32).long()  # + 0.0: one zero only
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = (ordered << 32) - torch.arange(values.shape[1], device=values.device)
    places = keys.topk(count, dim=-1).indices
    return values.gather(1, places), places


def _quotient(values: Tensor, divisor: int) -> Tensor:
    """Whole quotients of values from 0 to 2^22, in float32 as exporters would have it, but sure of their rounding.

    A half more keeps the quotient away from whole numbers, by which a product with the reciprocal may miss them.
    """
    return ((values.float() + 0.5) / divisor).floor().long()


def rows_of(state: Tensor, parents: Tensor) -> Tensor:
    """Those rows of state (B, K, H) that `parents` (B, any) names, by flat row index.

    An embedding look-up becomes the plain Gather of whole rows, which every runtime has a fast kernel for.
    """
    images, rows, width = state.shape
    flat = parents + rows * torch.arange(images, device=parents.device).unsqueeze(-1)
    return F.embedding(flat, state.reshape(-1, width))
