"""The training loop that the common public PyTorch versions of Show, Attend and Tell share, for comparison only.

It computes what `training.model.Decoder` does in the paper's form, as those versions go about it:

- every caption brings an image of its own, which is encoded for it
- captions are sorted by length, and the rows of those that have ended leave the batch
- at every word the annotations are projected to keys, and the hidden state to the words of the vocabulary
- arithmetic is float32, images lie channel by channel
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from saccade.vocabulary import Vocabulary
from training.data import Split
from training.model import Captioner, Decoder
from training.optimisation import OptimisationOptions


class CaptionBatch(NamedTuple):
    """N captions with an image each.

    images : uint8 (N, 3, S, S)
    captions : int64 (N, 1 + T), `<start>`, the words and `<end>`, padded
    lengths : int64 (N,), how many words of each are to be predicted, `<end>` among them
    """

    images: Tensor
    captions: Tensor
    lengths: Tensor


def caption_batches(
    split: Split, vocabulary: Vocabulary, rng: np.random.Generator, *, captions: int
) -> Iterator[CaptionBatch]:
    """One epoch in random order: every caption of pixels uint8 (N, S, S, 3) once, `captions` a batch."""
    images = torch.from_numpy(split.images[:]).permute(0, 3, 1, 2).contiguous()
    encoded = [
        (image, [vocabulary.start, *vocabulary.encode(words), vocabulary.end])
        for image, references in enumerate(split.captions)
        for words in references
    ]
    order = rng.permutation(len(encoded)).tolist()
    for start in range(0, len(order), captions):
        chosen = [encoded[place] for place in order[start : start + captions]]
        padded = nn.utils.rnn.pad_sequence(
            [torch.tensor(tokens) for _, tokens in chosen], batch_first=True, padding_value=vocabulary.pad
        )
        lengths = torch.tensor([len(tokens) - 1 for _, tokens in chosen])
        yield CaptionBatch(images[[image for image, _ in chosen]], padded, lengths)


class TutorialLoop:
    """Trains a copy of a captioner's decoder over its frozen encoder."""

    def __init__(self, captioner: Captioner, options: OptimisationOptions) -> None:
        """The captioner's decoder must be of the paper's form, see `TutorialDecoder`."""
        self._mean, self._std = captioner.mean, captioner.std
        self._options = options
        self._encoder = captioner.encoder
        self.decoder = TutorialDecoder(captioner.decoder).train()
        self._optimiser = torch.optim.Adam(self.decoder.parameters(), lr=options.learning_rate)

    def step(self, batch: CaptionBatch) -> float:
        """Move the decoder's weights by one batch; returns what is minimised."""
        with torch.no_grad():
            annotations = self._encoder((batch.images.float() - self._mean) / self._std)
        loss = self._loss(*self.decoder(annotations, batch.captions, batch.lengths))
        self._optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.decoder.parameters(), self._options.gradient_clip)
        self._optimiser.step()
        return loss.item()

    def _loss(self, logits: Tensor, alphas: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
        """Scaled as our trainer's, so that the two can be compared."""
        predicted = pack_padded_sequence(logits, lengths, batch_first=True).data
        following = pack_padded_sequence(captions[:, 1:], lengths, batch_first=True).data
        likelihood = F.cross_entropy(predicted, following, label_smoothing=self._options.label_smoothing)
        penalty = ((1 - alphas.sum(dim=1)) ** 2).sum() / lengths.sum()
        return likelihood + self._options.doubly_stochastic * penalty


class TutorialAttention(nn.Module):
    """Energies from an MLP over annotations and hidden state, alphas from their softmax."""

    def __init__(self, annotation_width: int, hidden_width: int, width: int) -> None:
        super().__init__()
        self.from_annotations = nn.Linear(annotation_width, width)
        self.from_hidden = nn.Linear(hidden_width, width)
        self.energy = nn.Linear(width, 1, bias=False)

    def forward(self, annotations: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Context (N, D) and alphas (N, L) for annotations (N, L, D) and hidden (N, H)."""
        seen = torch.tanh(self.from_annotations(annotations) + self.from_hidden(hidden).unsqueeze(1))
        alphas = self.energy(seen).squeeze(2).softmax(dim=1)
        return (annotations * alphas.unsqueeze(2)).sum(dim=1), alphas


class TutorialDecoder(nn.Module):
    """The attention LSTM, one row a caption."""

    def __init__(self, decoder: Decoder) -> None:
        """Has the sizes and the weights of `decoder`, whose options but for widths and dropout are the defaults."""
        super().__init__()
        options = decoder.options
        words, annotation_width = decoder.output.out_features, decoder.from_context.in_features
        embedding, hidden = options.embedding_width, options.hidden_width
        self.attention = TutorialAttention(annotation_width, hidden, options.attention_width)
        self.initial_hidden = nn.Linear(annotation_width, hidden)
        self.initial_cell = nn.Linear(annotation_width, hidden)
        self.embedding = nn.Embedding(words, embedding)
        self.beta = nn.Linear(hidden, 1)
        self.lstm = nn.LSTMCell(embedding + annotation_width, hidden)
        self.output_from_hidden = nn.Linear(hidden, embedding)
        self.output_from_context = nn.Linear(annotation_width, embedding, bias=False)
        self.output = nn.Linear(embedding, words)
        self.dropout = nn.Dropout(options.dropout)
        self.load_state_dict(tutorial_weights(decoder.state_dict(), options.hidden_width, options.attention_width))

    def forward(self, annotations: Tensor, captions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict every next word, given the reference words before it.

        annotations : (N, L, D); captions, lengths : as in `CaptionBatch`
        Returns logits (N, T, V), alphas (N, T, L), captions and lengths, all with the longest caption first.
        """
        lengths, order = lengths.sort(descending=True)
        annotations, captions = annotations[order], captions[order]
        embedded = self.dropout(self.embedding(captions))
        mean = annotations.mean(dim=1)
        hidden, cell = torch.tanh(self.initial_hidden(mean)), torch.tanh(self.initial_cell(mean))
        longest = int(lengths[0])
        logits = annotations.new_zeros(len(captions), longest, self.output.out_features)
        alphas = annotations.new_zeros(len(captions), longest, annotations.shape[1])
        for time in range(longest):
            rows = int((lengths > time).sum())
            hidden, cell, word = hidden[:rows], cell[:rows], embedded[:rows, time]
            context, alphas[:rows, time] = self.attention(annotations[:rows], hidden)
            context = torch.sigmoid(self.beta(hidden)) * context
            hidden, cell = self.lstm(torch.cat([word, context], dim=1), (hidden, cell))
            seen = word + self.output_from_hidden(self.dropout(hidden)) + self.output_from_context(context)
            logits[:rows, time] = self.output(self.dropout(seen))
        return logits, alphas, captions, lengths


def tutorial_weights(ours: dict[str, Tensor], hidden_width: int, attention_width: int) -> dict[str, Tensor]:
    """What `TutorialDecoder` calls the weights of our decoder, or their gradients."""
    gates = 4 * hidden_width
    query = slice(gates, gates + attention_width)
    beta = slice(gates + attention_width, None)
    from_hidden, bias = ours["from_hidden.weight"], ours["from_hidden.bias"]
    same = ("initial_hidden", "initial_cell", "embedding", "output_from_hidden", "output_from_context", "output")
    return {name: tensor for name, tensor in ours.items() if name.partition(".")[0] in same} | {
        "attention.from_annotations.weight": ours["attention.keys.weight"],
        "attention.from_annotations.bias": ours["attention.keys.bias"],
        "attention.from_hidden.weight": from_hidden[query],
        "attention.from_hidden.bias": bias[query],
        "attention.energy.weight": ours["attention.energy.weight"],
        "beta.weight": from_hidden[beta],
        "beta.bias": bias[beta],
        "lstm.weight_ih": torch.cat([ours["from_word.weight"], ours["from_context.weight"]], dim=1),
        "lstm.weight_hh": from_hidden[:gates],
        "lstm.bias_ih": ours["from_word.bias"],
        "lstm.bias_hh": bias[:gates],
    }
