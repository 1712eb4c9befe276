"""The files of the original release of Show, Attend and Tell, kelvinxu/arctic-captions: an .npz and two pickles."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from saccade.errors import CheckpointError, VocabularyError
from saccade.vocabulary import PAD, START, Vocabulary
from training.foreign_archive import mapped, members
from training.foreign_pickle import CONTAINERS, Trust, read_pickle_file

END, UNK = 0, 1
END_WORD, UNK_WORD = "<eos>", "UNK"
"""What the release calls words 0 and 1."""

_MAX_HEADER = 1 << 16

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArcticOptions:
    """What of the release's options decides what a model computes; what the weights tell is read from them.

    use_dropout, use_dropout_lstm : halve outputs of layers, and the LSTM's gates but for the candidate
    temperature : of the softmax over places, of stochastic attention alone
    prev2out, ctx2out : the deep output sees the previous word, the context
    selector : gates the context
    n_layers_att, n_layers_init, n_layers_out : depth of the MLPs
    """

    attn_type: str
    use_dropout: bool
    prev2out: bool
    use_dropout_lstm: bool = False
    temperature: float = 1.0
    ctx2out: bool = False
    selector: bool = False
    n_layers_att: int = 1
    n_layers_init: int = 1
    n_layers_out: int = 1
    n_layers_lstm: int = 1
    lstm_encoder: bool = False


def read_npz(path: Path) -> Arrays:
    """The arrays of a file that `numpy.savez` wrote, as views of it; only those of floats, as weights are."""
    found = members(path, mapped(path)).items()
    arrays = {name.removesuffix(".npy"): _array(path, name, content) for name, content in found}
    return {name: array for name, array in arrays.items() if array is not None}


def _array(path: Path, name: str, content: memoryview) -> NDArray[Any] | None:
    header = io.BytesIO(content[:_MAX_HEADER])
    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(header)]
        shape, is_fortran, dtype = read(header)
        if dtype.kind != "f":
            return None
        return np.ndarray(shape, dtype, content, header.tell(), order="F" if is_fortran else "C")
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{path}: {name} is no array, or is damaged ({error}): copy the file again") from error


def read_options(path: Path, arrays: Arrays) -> ArcticOptions:
    """Read MODEL.npz.pkl; of older versions that lack some options, the arrays tell.

    Raises CheckpointError where an option is missing, of another type or of a model that cannot be imported.
    """
    values = read_pickle_file(path, Trust(stand_ins=CONTAINERS))
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} holds a {type(values).__name__}, expected the dictionary of options of a training"
        )
    known = {field.name: str(field.type) for field in fields(ArcticOptions)}
    given = _told_by(arrays) | {name: value for name, value in values.items() if name in known}
    problems = [f"{name} is missing" for name in ("attn_type", "use_dropout", "prev2out") if name not in given]
    problems += [
        f"{name} is a {type(value).__name__}, expected {known[name]}"
        for name, value in given.items()
        if not isinstance(value, _TYPES[known[name]])
    ]
    problems = problems or _unknown(ArcticOptions(**given))
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}")
    return ArcticOptions(**given)


_TYPES: dict[str, type | tuple[type, ...]] = {"str": str, "bool": (bool, int), "float": (float, int), "int": int}


def _told_by(arrays: Arrays) -> dict[str, Any]:
    def depth(prefix: str) -> int:
        return 1 + sum(name.startswith(prefix) for name in arrays)

    return {
        "ctx2out": "ff_logit_ctx_W" in arrays,
        "selector": "decoder_W_sel" in arrays,
        "n_layers_att": depth("decoder_W_att_"),
        "n_layers_init": sum(name.startswith("ff_init_") and name.endswith("_W") for name in arrays) + 1,
        "n_layers_out": sum(name.startswith("ff_logit_h") and name.endswith("_W") for name in arrays) + 1,
        "n_layers_lstm": depth("decoder_1_Wc"),
        "lstm_encoder": "encoder_W" in arrays,
    }


def _unknown(options: ArcticOptions) -> list[str]:
    found = {
        "n_layers_lstm is above 1: stacked LSTMs cannot be imported": options.n_layers_lstm > 1,
        "lstm_encoder is on: annotations that went through an LSTM cannot be imported": options.lstm_encoder,
        f"attn_type is {options.attn_type[:40]!r}, expected 'deterministic' or 'stochastic'": options.attn_type
        not in ("deterministic", "stochastic"),
        "the depth of an MLP is below 1 or above 16": not all(
            1 <= depth <= 16 for depth in (options.n_layers_att, options.n_layers_init, options.n_layers_out)
        ),
    }
    return [problem for problem, is_found in found.items() if is_found]


def read_dictionary(path: Path, *, words: int) -> Vocabulary:
    """Read dictionary.pkl, `{"word": id}`, for a model that knows ids below `words`; rarer words it reads as UNK.

    The release has no `<start>`, which is an embedding of zeros, and no `<pad>`: they come after the words.
    Raises VocabularyError.
    """
    ids = read_pickle_file(path, Trust(stand_ins=CONTAINERS))
    if not isinstance(ids, dict) or not all(isinstance(key, str) and type(ids[key]) is int for key in ids):
        raise VocabularyError(f"{path}: expected a dictionary of words and their ids")
    known = {number: word for word, number in ids.items() if UNK < number < words}
    if not known or len(known) != sum(UNK < number < words for number in ids.values()):
        raise VocabularyError(f"{path}: has no words, or two of one id; give the dictionary of the model's training")
    known |= {END: END_WORD, UNK: UNK_WORD}
    spelled = [known.get(number, f"<{number}>") for number in range(words)]  # rows of the model that no word ever used
    try:
        return Vocabulary((*spelled, START, PAD), pad=words + 1, start=words, end=END, unk=UNK)
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from None
