"""The captioner of Show, Attend and Tell (Xu et al. 2015), with the switches of later implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.errors import ConfigError
from training.encoders import Encoder, EncoderOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOptions:
    """The attention LSTM.

    attention : "soft" takes the expected annotation as context (section 4.2 of the paper)
    nonlinearity : of the attention MLP
    query : what the attention asks with: the previous hidden state (the paper, Eq. 4), which has not seen the previous
        word yet, or that word as well
    gate : beta, the gating of the context: one number (the paper), one per channel, or none
    output : "deep" sees the previous word, the hidden state and the context (Eq. 7); "linear" the hidden state alone
    dropout : on embeddings, states and outputs, while training
    """

    attention: Literal["soft"] = "soft"
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    query: Literal["hidden", "hidden+word"] = "hidden"
    gate: Literal["scalar", "vector", "none"] = "scalar"
    output: Literal["deep", "linear"] = "deep"
    attention_width: int = 512
    embedding_width: int = 512
    hidden_width: int = 512
    dropout: float = 0.5

    def __post_init__(self) -> None:
        widths = {name: getattr(self, name) for name in ("attention_width", "embedding_width", "hidden_width")}
        problems = [f"{name} must be at least 1, got {width}" for name, width in widths.items() if width < 1]
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout must be in [0, 1), got {self.dropout}")
        if problems:
            raise ConfigError("invalid decoder: " + "; ".join(problems))


class Annotations(NamedTuple):
    """values (B, L, D) and their attention projection keys (B, L, A), computed once per image."""

    values: Tensor
    keys: Tensor


class DecoderState(NamedTuple):
    """hidden and cell of the LSTM, (B, K, H) each."""

    hidden: Tensor
    cell: Tensor


class Attention(nn.Module):
    """Where to look: energies from an MLP over keys and hidden state, alphas from their softmax (Eqs. 4-6)."""

    def __init__(self, annotation_width: int, options: DecoderOptions) -> None:
        super().__init__()
        self.keys = nn.Linear(annotation_width, options.attention_width)
        self.query = nn.Linear(options.hidden_width, options.attention_width, bias=False)
        self.energy = nn.Linear(options.attention_width, 1, bias=False)  # a bias would cancel in the softmax
        self._activate = torch.tanh if options.nonlinearity == "tanh" else F.relu

    def forward(self, hidden: Tensor, asked: Tensor | None, annotations: Annotations) -> tuple[Tensor, Tensor]:
        """Context (B, K, D) and alphas (B, K, L) of K rows with states `hidden` (B, K, H) that share annotations.

        asked : (B, K, A), the previous words' part of the query, if they have one
        """
        query = self.query(hidden) if asked is None else self.query(hidden) + asked
        energies = self.energy(self._activate(annotations.keys[:, None] + query[:, :, None])).squeeze(-1)
        alphas = energies.softmax(dim=-1)  # Eq. 5
        return alphas @ annotations.values, alphas  # soft attention: the expected annotation, Eq. 8


class Decoder(nn.Module):
    """The attention LSTM. K rows per image share its annotations, which are never expanded."""

    def __init__(self, annotation_width: int, words: int, options: DecoderOptions) -> None:
        super().__init__()
        hidden, embedding = options.hidden_width, options.embedding_width
        self.options = options
        self.attention = Attention(annotation_width, options)
        self.initial_hidden = nn.Linear(annotation_width, hidden)
        self.initial_cell = nn.Linear(annotation_width, hidden)
        self.embedding = nn.Embedding(words, embedding)
        # The affine map T of Eq. 1 in three parts: the embeddings' part is known for all time steps before the loop.
        self.gates_from_embedding = nn.Linear(embedding, 4 * hidden)
        self.query_from_embedding = (
            nn.Linear(embedding, options.attention_width, bias=False) if options.query == "hidden+word" else None
        )
        self.gates_from_context = nn.Linear(annotation_width, 4 * hidden, bias=False)
        self.gates_from_hidden = nn.Linear(hidden, 4 * hidden, bias=False)
        beta_width = {"scalar": 1, "vector": annotation_width, "none": 0}[options.gate]
        self.beta = nn.Linear(hidden, beta_width) if beta_width else None
        deep = options.output == "deep"
        self.output_from_hidden = nn.Linear(hidden, embedding) if deep else None
        self.output_from_context = nn.Linear(annotation_width, embedding, bias=False) if deep else None
        self.output = nn.Linear(embedding if deep else hidden, words)
        self.dropout = nn.Dropout(options.dropout)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        for projection in (self.gates_from_hidden, *([self.beta] if self.beta else [])):
            nn.init.orthogonal_(projection.weight)
        hidden = self.options.hidden_width
        nn.init.ones_(self.gates_from_embedding.bias[hidden : 2 * hidden])  # remember at first: forget gates open

    def annotate(self, values: Tensor) -> Annotations:
        """Annotations with their keys."""
        return Annotations(values, self.attention.keys(values))

    def initial_state(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and cell (B, H) predicted from the mean annotation (section 3.1.2)."""
        mean = values.mean(dim=1)
        return torch.tanh(self.initial_hidden(mean)), torch.tanh(self.initial_cell(mean))

    def step(
        self, tokens: Tensor, state: DecoderState, annotations: Annotations
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """Advance every row by one word (Eqs. 1-7).

        tokens : int64 (B, K), the previous words
        Returns logits (B, K, V), alphas (B, K, L) and the next state.
        """
        embedded = self.embedding(tokens)
        asked = self.query_from_embedding(embedded) if self.query_from_embedding else None
        context, alphas, state = self._advance(self.gates_from_embedding(embedded), asked, state, annotations)
        return self._logits(embedded, state.hidden, context), alphas, state

    def teacher_forced(self, tokens: Tensor, mask: Tensor, annotations: Annotations) -> tuple[Tensor, Tensor]:
        """Logits of every next word, given the reference words before it.

        tokens : int64 (B, K, T), each caption from `<start>` on, padded
        mask : bool (B, K, T), True where there is a next word
        Returns logits (N, V) of the N places in `mask`, in its order, and alphas (B, K, T, L).
        """
        embedded = self.dropout(self.embedding(tokens))
        hidden, cell = self.initial_state(annotations.values)
        state = DecoderState(*(part[:, None].expand(-1, tokens.shape[1], -1) for part in (hidden, cell)))
        hiddens, contexts, alphas = [], [], []
        gates = self.gates_from_embedding(embedded).unbind(dim=2)
        asked = self.query_from_embedding(embedded).unbind(dim=2) if self.query_from_embedding else [None] * len(gates)
        for gate, ask in zip(gates, asked, strict=True):
            context, alpha, state = self._advance(gate, ask, state, annotations)
            hiddens.append(state.hidden)
            contexts.append(context)
            alphas.append(alpha)
        hidden, context = torch.stack(hiddens, dim=2)[mask], torch.stack(contexts, dim=2)[mask]
        return self._logits(embedded[mask], hidden, context), torch.stack(alphas, dim=2)

    def _advance(
        self, gates_from_embedding: Tensor, asked: Tensor | None, state: DecoderState, annotations: Annotations
    ) -> tuple[Tensor, Tensor, DecoderState]:
        context, alphas = self.attention(state.hidden, asked, annotations)
        if self.beta is not None:
            context = torch.sigmoid(self.beta(state.hidden)) * context  # section 4.2.1
        gates = gates_from_embedding + self.gates_from_context(context) + self.gates_from_hidden(state.hidden)
        enter, forget, candidate, leave = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * state.cell + torch.sigmoid(enter) * torch.tanh(candidate)  # Eq. 2
        hidden = torch.sigmoid(leave) * torch.tanh(cell)  # Eq. 3
        return context, alphas, DecoderState(hidden, cell)

    def _logits(self, embedded: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
        seen: Tensor = self.dropout(hidden)
        if self.output_from_hidden is not None and self.output_from_context is not None:
            seen = self.dropout(embedded + self.output_from_hidden(seen) + self.output_from_context(context))  # Eq. 7
        logits: Tensor = self.output(seen)
        return logits


class Captioner(nn.Module):
    """Encoder and decoder: what a checkpoint holds."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        decoder: DecoderOptions,
        *,
        words: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        """mean, std : of RGB in 0..1, from the preprocessing spec."""
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(encoder.width, words, decoder)
        # Buffers follow the device, but belong to the preprocessing spec, not to the weights.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def annotate(self, pixels: Tensor) -> Annotations:
        """Annotations of images, pixels uint8 (B, S, S, 3)."""
        images = (pixels.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        return self.decoder.annotate(self.encoder(images))


def build_captioner(
    encoder: EncoderOptions,
    decoder: DecoderOptions,
    *,
    words: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    pretrained: bool = False,
) -> Captioner:
    """A captioner with random decoder; `pretrained` fetches the encoder weights the options name."""
    return Captioner(Encoder(encoder, pretrained=pretrained), decoder, words=words, mean=mean, std=std)
