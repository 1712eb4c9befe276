"""Captions one image at a time, as sgrvinod's tutorial and its many descendants do, for comparison only.

- an image is encoded and searched by itself
- at every word the annotations are projected to keys again, for every row of the beam
- the beam shrinks with each caption that ends; sequences are lists on the host
- arithmetic is float32

Attributes have the tutorial's names, so that a pair of these modules is saved as its checkpoints are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.vocabulary import Vocabulary

MAX_STEPS = 51


class Encoder(nn.Module):
    """Normalised images (B, 3, S, S) to annotations (B, 14, 14, D)."""

    def __init__(self, architecture: str = "resnet101", encoded_image_size: int = 14) -> None:
        """Has random weights."""
        from torchvision import models

        super().__init__()
        self.enc_image_size = encoded_image_size
        self.resnet = nn.Sequential(*list(models.get_model(architecture, weights=None).children())[:-2])
        self.adaptive_pool = nn.AdaptiveAvgPool2d((encoded_image_size, encoded_image_size))

    def forward(self, images: Tensor) -> Tensor:
        """Rows of the grid first."""
        annotations: Tensor = self.adaptive_pool(self.resnet(images))
        return annotations.permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Where to look."""

    def __init__(self, encoder_dim: int, decoder_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.encoder_att = nn.Linear(encoder_dim, attention_dim)
        self.decoder_att = nn.Linear(decoder_dim, attention_dim)
        self.full_att = nn.Linear(attention_dim, 1)
        self.relu = nn.ReLU()
        self.softmax = nn.Softmax(dim=1)

    def forward(self, encoder_out: Tensor, decoder_hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Context (K, D) and alphas (K, L) of annotations (K, L, D)."""
        keys, query = self.encoder_att(encoder_out), self.decoder_att(decoder_hidden)
        energies = self.full_att(self.relu(keys + query.unsqueeze(1))).squeeze(2)
        alphas = self.softmax(energies)
        return (encoder_out * alphas.unsqueeze(2)).sum(dim=1), alphas


class DecoderWithAttention(nn.Module):
    """The attention LSTM."""

    def __init__(
        self, attention_dim: int, embed_dim: int, decoder_dim: int, vocab_size: int, encoder_dim: int = 2048
    ) -> None:
        super().__init__()
        self.encoder_dim = encoder_dim
        self.attention_dim = attention_dim
        self.embed_dim = embed_dim
        self.decoder_dim = decoder_dim
        self.vocab_size = vocab_size
        self.attention = Attention(encoder_dim, decoder_dim, attention_dim)
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.dropout = nn.Dropout(p=0.5)
        self.decode_step = nn.LSTMCell(embed_dim + encoder_dim, decoder_dim, bias=True)
        self.init_h = nn.Linear(encoder_dim, decoder_dim)
        self.init_c = nn.Linear(encoder_dim, decoder_dim)
        self.f_beta = nn.Linear(decoder_dim, encoder_dim)
        self.sigmoid = nn.Sigmoid()
        self.fc = nn.Linear(decoder_dim, vocab_size)

    def forward(
        self, words: Tensor, hidden: Tensor, cell: Tensor, annotations: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs (K, V) of the word after each of `words` (K,), and the next state."""
        context, _ = self.attention(annotations, hidden)
        context = self.sigmoid(self.f_beta(hidden)) * context
        hidden, cell = self.decode_step(torch.cat([self.embedding(words), context], dim=1), (hidden, cell))
        return F.log_softmax(self.fc(hidden), dim=1), hidden, cell


@torch.inference_mode()
def caption_image(
    encoder: Encoder, decoder: DecoderWithAttention, image: Tensor, vocabulary: Vocabulary, beam: int
) -> tuple[int, ...]:
    """Word ids of the best caption of a normalised image (3, S, S), or of the best row where none ends in time."""
    annotations = encoder(image.unsqueeze(0))
    annotations = annotations.view(1, -1, annotations.shape[-1]).expand(beam, -1, -1)
    hidden, cell = (layer(annotations.mean(dim=1)) for layer in (decoder.init_h, decoder.init_c))
    sequences = torch.full((beam, 1), vocabulary.start, device=image.device)
    scores = torch.zeros(beam, 1, device=image.device)
    ended: list[tuple[float, list[int]]] = []
    for step in range(MAX_STEPS):
        log_probs, hidden, cell = decoder(sequences[:, -1], hidden, cell, annotations[: len(sequences)])
        candidates = scores + log_probs
        found = (candidates[0] if step == 0 else candidates.flatten()).topk(len(sequences))
        rows, words = found.indices // len(vocabulary), found.indices % len(vocabulary)
        sequences = torch.cat([sequences[rows], words.unsqueeze(1)], dim=1)
        ends = words == vocabulary.end
        ended += zip(found.values[ends].tolist(), sequences[ends].tolist(), strict=True)
        if ends.all():
            break
        sequences, scores = sequences[~ends], found.values[~ends].unsqueeze(1)
        hidden, cell = hidden[rows[~ends]], cell[rows[~ends]]
    if not ended:
        return tuple(sequences[0, 1:].tolist())
    best = max(ended, key=lambda caption: caption[0])
    return tuple(best[1][1:-1])
