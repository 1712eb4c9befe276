"""The captioner of Show, Attend and Tell (Xu et al. 2015), with the switches of later implementations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.errors import ConfigError
from training.annotations import Annotations, pooled
from training.encoders import Encoder, EncoderOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOptions:
    """The attention LSTM.

    attention : "soft" takes the expected annotation as context (section 4.2 of the paper), "hard" one annotation,
        chosen with the probability of its alpha (section 4.1), "none" always the mean annotation
    nonlinearity : of the attention MLP
    attention_layers, initial_layers : depth of the MLPs behind the keys and behind the initial state
    keys_nonlinearity, initial_nonlinearity : what those MLPs end in; the paper's keys are linear, its states a tanh
    query : what the attention asks with: the previous hidden state (the paper, Eq. 4), which has not seen the previous
        word yet, or that word as well
    gate : beta, the gating of the context: one number (the paper), one per channel, or none
    output : "deep" sees the previous word, the hidden state and the context (Eq. 7), "deep-without-word" the last two,
        "linear" the hidden state alone
    output_nonlinearity : of the sum that a deep output sees
    output_layers : depth of what makes logits of it, with rectifiers between; 1 is a linear map
    annotation_width : to which a layer of the decoder brings the encoder's annotations, once per image, with a ReLU;
        0 takes them as they are (the paper)
    memory : for how many words the cells remember at first, each another number up to this; 0 for forget gates whose
        biases are one, about four words
    dropout : on embeddings, states, outputs and annotations brought to a width, while training
    """

    attention: Literal["soft", "hard", "none"] = "soft"
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    attention_layers: int = 1
    initial_layers: int = 1
    keys_nonlinearity: Literal["none", "tanh"] = "none"
    initial_nonlinearity: Literal["none", "tanh"] = "tanh"
    query: Literal["hidden", "hidden+word"] = "hidden"
    gate: Literal["scalar", "vector", "none"] = "scalar"
    output: Literal["deep", "deep-without-word", "linear"] = "deep"
    output_nonlinearity: Literal["none", "tanh"] = "none"
    output_layers: int = 1
    annotation_width: int = 0
    attention_width: int = 512
    embedding_width: int = 512
    hidden_width: int = 512
    memory: int = 0
    dropout: float = 0.5

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _SIZES}
        problems = [f"{name} must be at least 1, got {size}" for name, size in sizes.items() if size < 1]
        if self.annotation_width < 0:
            problems.append(f"annotation_width must be 0 or more, got {self.annotation_width}")
        if self.memory and self.memory < 3:
            problems.append(f"memory must be 0, or at least 3 words, got {self.memory}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout must be in [0, 1), got {self.dropout}")
        if problems:
            raise ConfigError("invalid decoder: " + "; ".join(problems))


_SIZES = ("attention_layers", "initial_layers", "output_layers", "attention_width", "embedding_width", "hidden_width")


class DecoderState(NamedTuple):
    """hidden and cell of the LSTM, (B, K, H) each."""

    hidden: Tensor
    cell: Tensor


class Choice(NamedTuple):
    """How hard attention chooses where to look, for one word of every row.

    noise : (B, K, L), added to the energies before the largest is taken: standard Gumbel noise draws a place with the
        probability of its alpha (the Gumbel-max trick), zeros take the most likely place
    sampled : bool (B,), False where the context is the expected annotation all the same
    """

    noise: Tensor
    sampled: Tensor


class Glimpse(NamedTuple):
    """context (B, K, D), alphas (B, K, L) and, of hard attention, log_probs (B, K) of the places looked at."""

    context: Tensor
    alphas: Tensor
    log_probs: Tensor | None


class Attention(nn.Module):
    """Where to look: energies from an MLP over keys and query, alphas from their softmax (Eqs. 4-6)."""

    def __init__(self, annotation_width: int, options: DecoderOptions) -> None:
        super().__init__()
        width = options.attention_width
        self.keys = _mlp(annotation_width, width, options.attention_layers, nn.Tanh)
        if options.keys_nonlinearity == "tanh":
            self.keys = nn.Sequential(self.keys, nn.Tanh())
        self.energy = nn.Linear(width, 1, bias=False)  # a bias would cancel in the softmax
        self.is_tanh = options.nonlinearity == "tanh"

    def forward(self, query: Tensor, annotations: Annotations, choice: Choice | None = None) -> Glimpse:
        """Look once with every row.

        query : (B, K, A), K rows an image that share its annotations
        choice : how hard attention chooses; None takes the expected annotation everywhere
        """
        energies = self.energies(query, annotations.keys)
        alphas = energies.softmax(dim=-1)  # Eq. 5
        context = annotations.expected(alphas)  # soft attention, Eq. 13
        if choice is None:
            return Glimpse(context, alphas, None)
        places = (energies + choice.noise).argmax(dim=-1)  # hard attention: s_t ~ Multinoulli(alpha), Eq. 8
        context = torch.where(choice.sampled[:, None, None], annotations.at(places), context)  # Eq. 9
        return Glimpse(context, alphas, energies.log_softmax(dim=-1).gather(2, places[..., None]).squeeze(-1))

    def energies(self, query: Tensor, keys: Tensor) -> Tensor:
        """How well each place answers (B, K, L), at least float32 (Eq. 4); query (B, K, A), keys (B, L, A)."""
        seen = keys[:, None] + query[:, :, None]
        energies: Tensor = self.energy(torch.tanh(seen) if self.is_tanh else F.relu(seen)).squeeze(-1)
        return energies.to(torch.promote_types(energies.dtype, torch.float32))


def _mlp(width_in: int, width_out: int, layers: int, activation: type[nn.Module]) -> nn.Module:
    """A linear map, or several with activations between them."""
    if layers == 1:
        return nn.Linear(width_in, width_out)
    return nn.Sequential(*_hidden_layers(width_in, layers - 1, activation), nn.Linear(width_in, width_out))


def _hidden_layers(width: int, layers: int, activation: type[nn.Module]) -> list[nn.Module]:
    return [module for _ in range(layers) for module in (nn.Linear(width, width), activation())]


class Forced(NamedTuple):
    """What teacher forcing yields, for N words to predict.

    logits : (N, V), in the order of the mask
    alphas : (B, K, T, L)
    place_log_probs : (B, K, T) of the places that hard attention looked at, or None
    """

    logits: Tensor
    alphas: Tensor
    place_log_probs: Tensor | None


class Decoder(nn.Module):
    """The attention LSTM. K rows per image share its annotations, which are never expanded."""

    def __init__(self, encoder_width: int, words: int, options: DecoderOptions) -> None:
        super().__init__()
        hidden, embedding = options.hidden_width, options.embedding_width
        annotation_width = options.annotation_width or encoder_width
        self.options = options
        self.annotation_width = annotation_width
        self.project = nn.Linear(encoder_width, annotation_width) if options.annotation_width else None
        self.attention = Attention(annotation_width, options)
        self.initial_hidden = _mlp(annotation_width, hidden, options.initial_layers, nn.ReLU)
        self.initial_cell = _mlp(annotation_width, hidden, options.initial_layers, nn.ReLU)
        self.embedding = nn.Embedding(words, embedding)
        # The affine map T of Eq. 1 in three parts, by what it reads; whatever else reads that too shares the product:
        # the attention's query and, of the hidden state, beta. The words' part is known before the loop over time.
        query, beta = options.attention_width, {"scalar": 1, "vector": annotation_width, "none": 0}[options.gate]
        self.from_word = nn.Linear(embedding, 4 * hidden + query * (options.query == "hidden+word"))
        self.from_hidden = nn.Linear(hidden, 4 * hidden + query + beta)
        self.from_context = nn.Linear(annotation_width, 4 * hidden, bias=False)
        deep = options.output != "linear"
        self.output_from_hidden = nn.Linear(hidden, embedding) if deep else None
        self.output_from_context = nn.Linear(annotation_width, embedding, bias=False) if deep else None
        seen = embedding if deep else hidden
        self.output_hidden = nn.Sequential(*_hidden_layers(seen, options.output_layers - 1, nn.ReLU))
        self.output = nn.Linear(seen, words)
        self.dropout = nn.Dropout(options.dropout)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        gates = 4 * self.options.hidden_width
        nn.init.orthogonal_(self.from_hidden.weight[:gates])
        nn.init.zeros_(self.from_hidden.bias)
        enter, forget = self.from_word.bias[: gates // 4], self.from_word.bias[gates // 4 : gates // 2]
        nn.init.ones_(forget)  # remember at first
        if self.options.memory:  # Tallec & Ollivier 2018, "Can recurrent neural networks warp time?"
            with torch.no_grad():
                forget.uniform_(1, self.options.memory - 1).log_()
                enter.copy_(-forget)

    def annotate(self, values: Tensor, *, places: int = 0) -> Annotations:
        """Annotations with their keys; values (B, C, E) are the encoder's, still of its own width.

        places : L, where cells are pooled to more places than they are; 0 takes them as places
        """
        # Before pooling or after it, a linear map is the same: as shares add up to one, so is its bias.
        if self.project is not None:
            values = self.dropout(F.relu(pooled(self.project(values), places)))
        keys = self.attention.keys
        if isinstance(keys, nn.Linear):
            return Annotations(values, pooled(keys(values), places))
        return Annotations(values, keys(pooled(values, places)))

    def initial_state(self, annotations: Annotations) -> tuple[Tensor, Tensor]:
        """Hidden and cell (B, H) predicted from the mean annotation (section 3.1.2)."""
        mean = annotations.mean()
        hidden, cell = self.initial_hidden(mean), self.initial_cell(mean)
        if self.options.initial_nonlinearity == "none":
            return hidden, cell
        return torch.tanh(hidden), torch.tanh(cell)

    def initial_rows(self, annotations: Annotations, rows: int) -> DecoderState:
        """The initial state of `rows` rows per image, (B, K, H); a view."""
        return DecoderState(*(part[:, None].expand(-1, rows, -1) for part in self.initial_state(annotations)))

    def step(
        self, tokens: Tensor, state: DecoderState, annotations: Annotations, choice: Choice | None = None
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """Advance every row by one word (Eqs. 1-7).

        tokens : int64 (B, K), the previous words
        choice : of hard attention; None decodes with the expected annotation
        Returns logits (B, K, V), alphas (B, K, L) and the next state.
        """
        embedded = self.embedding(tokens)
        glimpse, state = self._advance(self.from_word(embedded), state, annotations, choice)
        return self._logits(embedded, state.hidden, glimpse.context), glimpse.alphas, state

    def teacher_forced(
        self, tokens: Tensor, mask: Tensor, annotations: Annotations, choices: Sequence[Choice] | None = None
    ) -> Forced:
        """Predict every next word, given the reference words before it.

        tokens : int64 (B, K, T), each caption from `<start>` on, padded
        mask : bool (B, K, T), True where there is a next word
        choices : T of them, for hard attention
        Rows whose captions have ended in all images are left out of the loop, from the last one back: sort the captions
        of each image from the longest to the shortest. Alphas of what is left out are zeros.
        """
        embedded = self.dropout(self.embedding(tokens))
        rows = tokens.shape[1]
        state = self.initial_rows(annotations, rows)
        hiddens, glimpses = [], []
        for time, (from_word, lasting) in enumerate(
            zip(self.from_word(embedded).unbind(dim=2), _lasting_rows(mask), strict=True)
        ):
            state = DecoderState(*(part[:, :lasting] for part in state))
            choice = choices[time]._replace(noise=choices[time].noise[:, :lasting]) if choices else None
            glimpse, state = self._advance(from_word[:, :lasting], state, annotations, choice)
            hiddens.append(state.hidden)
            glimpses.append(glimpse)
        places = [glimpse.log_probs.unsqueeze(-1) for glimpse in glimpses if glimpse.log_probs is not None]
        return Forced(
            self._logits(
                embedded[mask],
                _over_time(hiddens, rows)[mask],
                _over_time([glimpse.context for glimpse in glimpses], rows)[mask],
            ),
            _over_time([glimpse.alphas for glimpse in glimpses], rows),
            _over_time(places, rows).squeeze(-1) if places else None,
        )

    def _advance(
        self, from_word: Tensor, state: DecoderState, annotations: Annotations, choice: Choice | None
    ) -> tuple[Glimpse, DecoderState]:
        end, width = 4 * self.options.hidden_width, self.options.attention_width
        from_hidden = self.from_hidden(state.hidden)
        query = from_hidden[..., end : end + width]
        if self.options.query == "hidden+word":
            query = query + from_word[..., end:]
        glimpse: Glimpse = self.attention(query, annotations, choice)
        if self.options.gate != "none":
            beta = torch.sigmoid(from_hidden[..., end + width :])  # section 4.2.1
            glimpse = glimpse._replace(context=beta * glimpse.context)
        gates = from_word[..., :end] + from_hidden[..., :end] + self.from_context(glimpse.context)
        enter, forget, candidate, leave = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * state.cell + torch.sigmoid(enter) * torch.tanh(candidate)  # Eq. 2
        hidden = torch.sigmoid(leave) * torch.tanh(cell)  # Eq. 3
        return glimpse, DecoderState(hidden, cell)

    def _logits(self, embedded: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
        seen: Tensor = self.dropout(hidden)
        if self.output_from_hidden is not None and self.output_from_context is not None:
            seen = self.output_from_hidden(seen)
            if self.options.output == "deep":
                seen = embedded + seen
            seen = seen + self.output_from_context(context)  # Eq. 7
            seen = self.dropout(torch.tanh(seen) if self.options.output_nonlinearity == "tanh" else seen)
        logits: Tensor = self.output(self.output_hidden(seen))
        return logits


def _lasting_rows(mask: Tensor) -> list[int]:
    """Of each step of mask (B, K, T), how many rows there are up to the last one with a word; at least one."""
    numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device).unsqueeze(-1)
    counts: list[int] = (mask.any(dim=0) * numbers).amax(dim=0).clamp(min=1).tolist()
    return counts


def _over_time(steps: Sequence[Tensor], rows: int) -> Tensor:
    """(B, K, T, N) of T tensors (B, K or fewer, N), with zeros for the missing rows."""
    return torch.stack([F.pad(step, (0, 0, 0, rows - step.shape[1])) for step in steps], dim=2)


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

    def annotate(self, images: Tensor) -> Annotations:
        """Annotations of pixels uint8 (B, S, S, 3), or of what the encoder made of them before, float16 (B, C, D)."""
        values = self.encode(images) if images.dtype == torch.uint8 else images.to(self.mean.dtype)
        return self.decoder.annotate(values, places=self.encoder.options.grid**2)

    def encode(self, pixels: Tensor) -> Tensor:
        """Annotation values (B, C, D) of pixels uint8 (B, S, S, 3), without their keys."""
        images = (pixels.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        values: Tensor = self.encoder(images.to(self.decoder.embedding.weight.dtype))
        return values


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
    if decoder.attention == "none":  # the mean annotation is the only place there is
        encoder = replace(encoder, grid=1)
    return Captioner(Encoder(encoder, pretrained=pretrained), decoder, words=words, mean=mean, std=std)
