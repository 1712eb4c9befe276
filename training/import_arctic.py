"""Models of the original release of Show, Attend and Tell, kelvinxu/arctic-captions.

The release multiplies by 0.5 wherever it has dropped out while training, and by a temperature inside the softmax of
hard attention. Here those numbers are in the weights: a half is exact in floating point.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.preprocessing import PreprocessSpec
from training.checkpoint import Shape, misfits
from training.encoders import Encoder, EncoderOptions
from training.foreign_arctic import ArcticOptions, Arrays, read_dictionary, read_npz, read_options
from training.imported import IMAGENET_MEAN, IMAGENET_STD, Imported, tensor
from training.model import DecoderOptions

MAX_LENGTH = 200
"""Words after which the release's search gives up."""

NEVER = -1e4
"""Bias of words that the release has not: their probability is zero, and the number is one in half precision too."""

Layer = tuple[NDArray[Any], NDArray[Any]]


def read_arctic(model: Path, options: Path, dictionary: Path, *, encoder_weights: str = "none") -> Imported:
    """Read a model, its options and its dictionary. Nothing in them is run.

    encoder_weights : of VGG-19, which the release keeps elsewhere; as in `EncoderOptions.weights`
    Raises CheckpointError naming what is missing, damaged, of another shape or not known here, and VocabularyError.
    """
    arrays = read_npz(model)
    chosen = read_options(options, arrays)
    decoder, weights = arctic_decoder(model, arrays, chosen)
    encoder = EncoderOptions(name="vgg19", weights=encoder_weights)
    built = Encoder(encoder, pretrained=True)
    if (width := arrays["decoder_Wc"].shape[0]) != built.width:
        raise CheckpointError(f"{model}: its annotations are {width} wide, those of VGG-19's conv5_4 {built.width}")
    trunk = {f"encoder.{name}": value for name, value in built.state_dict().items()}
    return Imported(
        encoder=encoder,
        decoder=decoder,
        preprocessing=PreprocessSpec(size=224, geometry="crop", mean=IMAGENET_MEAN, std=IMAGENET_STD),
        vocabulary=read_dictionary(dictionary, words=len(arrays["Wemb"])),
        weights=trunk | {f"decoder.{name}": value for name, value in weights.items()},
        max_length=MAX_LENGTH,
        provenance={"imported": "arctic"},
    )


def arctic_decoder(path: Path, arrays: Arrays, options: ArcticOptions) -> tuple[DecoderOptions, dict[str, Tensor]]:
    """Our decoder that computes what the release does, and its weights. Its vocabulary has `<start>` and `<pad>` more.

    path : what errors call the arrays
    """
    _require(path, arrays, options)
    annotation = len(arrays["decoder_Wc"])
    return DecoderOptions(
        attention="soft" if options.attn_type == "deterministic" else "hard",
        attention_layers=max(1, options.n_layers_att - 1),
        keys_nonlinearity="none" if options.n_layers_att == 1 else "tanh",
        initial_layers=options.n_layers_init,
        gate="scalar" if options.selector else "none",
        output="deep" if options.prev2out else "deep-without-word",
        output_nonlinearity="tanh",
        output_layers=options.n_layers_out,
        attention_width=annotation,
        embedding_width=arrays["Wemb"].shape[1],
        hidden_width=len(arrays["decoder_U"]),
    ), {
        **_attention(arrays, options),
        **_initial(arrays, options),
        **_lstm(arrays, options),
        **_output(arrays, options),
    }


def _require(path: Path, arrays: Arrays, options: ArcticOptions) -> None:
    """Raise CheckpointError where arrays are missing or of shapes that do not go together; others are not looked at."""
    missing = [name for name in ("Wemb", "decoder_U", "decoder_Wc") if getattr(arrays.get(name), "ndim", 0) != 2]
    if missing:
        raise CheckpointError(f"{path}: has no matrix {', '.join(missing)}: give the .npz of the release's train()")
    words, embedding = arrays["Wemb"].shape
    hidden, annotation = len(arrays["decoder_U"]), len(arrays["decoder_Wc"])
    wanted = _shapes(options, words, embedding, hidden, annotation)
    if problems := misfits({name: arrays[name].shape for name in wanted.keys() & arrays.keys()}, wanted):
        raise CheckpointError(f"{path}: is not the model of these options: {problems}")


def _shapes(options: ArcticOptions, words: int, embedding: int, hidden: int, annotation: int) -> dict[str, Shape]:
    layers = {
        **{f"ff_init_{layer}_": (annotation, annotation) for layer in range(1, options.n_layers_init)},
        "ff_state_": (annotation, hidden),
        "ff_memory_": (annotation, hidden),
        "ff_logit_lstm_": (hidden, embedding),
        **({"ff_logit_ctx_": (annotation, embedding)} if options.ctx2out else {}),
        **{f"ff_logit_h{layer}_": (embedding, embedding) for layer in range(1, options.n_layers_out)},
        "ff_logit_": (embedding, words),
    }
    selector: dict[str, Shape] = {"decoder_W_sel": (hidden, 1), "decoder_b_sel": ()}
    return {
        "Wemb": (words, embedding),
        **{f"{name}W": shape for name, shape in layers.items()},
        **{f"{name}b": shape[1:] for name, shape in layers.items()},
        "decoder_W": (embedding, 4 * hidden),
        "decoder_U": (hidden, 4 * hidden),
        "decoder_b": (4 * hidden,),
        "decoder_Wc": (annotation, 4 * hidden),
        "decoder_Wc_att": (annotation, annotation),
        "decoder_b_att": (annotation,),
        **{f"decoder_W_att_{layer}": (annotation, annotation) for layer in range(1, options.n_layers_att)},
        **{f"decoder_b_att_{layer}": (annotation,) for layer in range(1, options.n_layers_att)},
        "decoder_Wd_att": (hidden, annotation),
        "decoder_U_att": (annotation, 1),
        **(selector if options.selector else {}),
    }


def _attention(arrays: Arrays, options: ArcticOptions) -> dict[str, Tensor]:
    """Keys and energies. The release has no tanh behind the first layer, so that the first two are one."""
    weight, bias = (arrays[f"decoder_{name}"].astype(np.float64) for name in ("Wc_att", "b_att"))
    further = [
        (arrays[f"decoder_W_att_{layer}"], arrays[f"decoder_b_att_{layer}"]) for layer in range(1, options.n_layers_att)
    ]
    layers = [(weight, bias), *further]
    if further:
        second, second_bias = further[0]
        layers = [(weight @ second, bias @ second + second_bias), *further[1:]]
    temperature = options.temperature if options.attn_type == "stochastic" else 1
    return {
        **_mlp("attention.keys.0" if further else "attention.keys", layers),
        "attention.energy.weight": tensor(temperature * arrays["decoder_U_att"].T),
    }


def _initial(arrays: Arrays, options: ArcticOptions) -> dict[str, Tensor]:
    """Both parts of the state have the release's hidden layers, which they share there, as their own."""
    names = [f"ff_init_{layer}" for layer in range(1, options.n_layers_init)]
    return {
        name: value
        for ours, theirs in (("initial_hidden", "ff_state"), ("initial_cell", "ff_memory"))
        for name, value in _mlp(ours, _layers(arrays, [*names, theirs], options, has_halved_input=False)).items()
    }


def _lstm(arrays: Arrays, options: ArcticOptions) -> dict[str, Tensor]:
    def gates(name: str) -> NDArray[Any]:
        enter, forget, leave, candidate = np.split(arrays[name].T, 4)
        half = 0.5 if options.use_dropout_lstm else 1
        return np.concatenate([half * enter, half * forget, candidate, half * leave])

    selector = ["decoder_W_sel"] if options.selector else []
    from_hidden = [gates("decoder_U"), *(arrays[name].T for name in ("decoder_Wd_att", *selector))]
    biases = [np.zeros(len(rows)) for rows in from_hidden]
    if selector:
        biases[-1] = arrays["decoder_b_sel"].reshape(1)
    return {
        "from_word.weight": tensor(gates("decoder_W")),
        "from_word.bias": tensor(gates("decoder_b")),
        "from_hidden.weight": tensor(np.concatenate(from_hidden)),
        "from_hidden.bias": tensor(np.concatenate(biases)),
        "from_context.weight": tensor(gates("decoder_Wc")),
    }


def _output(arrays: Arrays, options: ArcticOptions) -> dict[str, Tensor]:
    names = [f"ff_logit_h{layer}" for layer in range(1, options.n_layers_out)]
    *hidden, (weight, bias) = _layers(arrays, [*names, "ff_logit"], options, has_halved_input=True)
    ((from_state, from_state_bias),) = _layers(arrays, ["ff_logit_lstm"], options, has_halved_input=True)
    annotation, embedding = len(arrays["decoder_Wc"]), arrays["Wemb"].shape[1]
    from_context, from_context_bias = np.zeros((annotation, embedding)), np.zeros(embedding)
    if options.ctx2out:
        from_context, from_context_bias = (arrays[f"ff_logit_ctx_{kind}"] for kind in "Wb")
    added = np.zeros((2, embedding))  # <start> and <pad>
    return {
        "embedding.weight": tensor(np.concatenate([arrays["Wemb"], added])),
        "output_from_hidden.weight": tensor(from_state.T),
        "output_from_hidden.bias": tensor(from_state_bias + from_context_bias),
        "output_from_context.weight": tensor(from_context.T),
        **_mlp("output_hidden", hidden, is_sequence=True),
        "output.weight": tensor(np.concatenate([weight.T, added])),
        "output.bias": tensor(np.concatenate([bias, [NEVER] * len(added)])),
    }


def _layers(arrays: Arrays, names: list[str], options: ArcticOptions, *, has_halved_input: bool) -> list[Layer]:
    """Weights and biases of layers one above the other; each reads what dropout halves, the first one perhaps."""
    half = 0.5 if options.use_dropout else 1
    return [
        ((half if place or has_halved_input else 1) * arrays[f"{name}_W"], arrays[f"{name}_b"])
        for place, name in enumerate(names)
    ]


def _mlp(name: str, layers: list[Layer], *, is_sequence: bool = False) -> dict[str, Tensor]:
    """State of a linear map, or of several with activations between them."""
    names = [f"{name}.{2 * place}" for place in range(len(layers))] if is_sequence or len(layers) > 1 else [name]
    return {
        f"{place}.{kind}": tensor(value)
        for place, (weight, bias) in zip(names, layers, strict=True)
        for kind, value in (("weight", weight.T), ("bias", bias))
    }
