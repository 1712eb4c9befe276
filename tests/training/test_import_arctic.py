"""Models of the original release score in our model as a NumPy forward pass, written from its description, does."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.graphs import export_step
from export.verification import OnnxGraph
from saccade.decoding import HostDecoding
from saccade.errors import CheckpointError, VocabularyError
from saccade.glimpses import Glimpses
from saccade.search import SearchOptions, search
from tests.commands import call
from training.checkpoint import Checkpoint, load_checkpoint
from training.foreign_arctic import ArcticOptions, read_dictionary, read_npz, read_options
from training.graphs import predict
from training.import_arctic import arctic_decoder, read_arctic
from training.imported import write_checkpoint
from training.model import Decoder, DecoderOptions

WORDS, EMBEDDING, HIDDEN, ANNOTATION = 30, 6, 7, 512
PLACES = 14 * 14

Arrays = dict[str, NDArray[Any]]
Options = dict[str, Any]

PAPER: Options = {
    "attn_type": "deterministic",
    "use_dropout": True,
    "use_dropout_lstm": False,
    "prev2out": True,
    "ctx2out": True,
    "selector": True,
    "n_layers_att": 2,
    "n_layers_init": 2,
    "n_layers_out": 1,
    "n_layers_lstm": 1,
    "lstm_encoder": False,
    "n_words": WORDS,
    "optimizer": "adam",
    "lrate": 0.01,
}

VARIANTS: dict[str, Options] = {
    "paper": {},
    "bare": {
        "use_dropout": False,
        "prev2out": False,
        "ctx2out": False,
        "selector": False,
        "n_layers_att": 1,
        "n_layers_init": 1,
    },
    "deep": {"n_layers_att": 3, "n_layers_init": 3, "n_layers_out": 3, "use_dropout_lstm": True},
    "hard": {"attn_type": "stochastic", "temperature": 1.7, "prev2out": False},
    "no dropout": {"use_dropout": False, "n_layers_out": 2},
}


def random_model(options: Options, seed: int = 0) -> Arrays:
    """Arrays of the release's names and shapes; rows are inputs."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> NDArray[Any]:
        scale = np.sqrt(shape[0]) if len(shape) > 1 else 2
        return np.asarray(rng.normal(size=shape) / scale, np.float32)

    layers = {
        **{f"ff_init_{layer}": (ANNOTATION, ANNOTATION) for layer in range(1, options["n_layers_init"])},
        "ff_state": (ANNOTATION, HIDDEN),
        "ff_memory": (ANNOTATION, HIDDEN),
        "ff_logit_lstm": (HIDDEN, EMBEDDING),
        **({"ff_logit_ctx": (ANNOTATION, EMBEDDING)} if options["ctx2out"] else {}),
        **{f"ff_logit_h{layer}": (EMBEDDING, EMBEDDING) for layer in range(1, options["n_layers_out"])},
        "ff_logit": (EMBEDDING, WORDS),
    }
    made = {"Wemb": array(WORDS, EMBEDDING)}
    for name, shape in layers.items():
        made |= {f"{name}_W": array(*shape), f"{name}_b": array(shape[1])}
    made |= {
        "decoder_W": array(EMBEDDING, 4 * HIDDEN),
        "decoder_U": array(HIDDEN, 4 * HIDDEN),
        "decoder_b": array(4 * HIDDEN),
        "decoder_Wc": array(ANNOTATION, 4 * HIDDEN),
        "decoder_Wc_att": array(ANNOTATION, ANNOTATION),
        "decoder_b_att": array(ANNOTATION),
        "decoder_Wd_att": array(HIDDEN, ANNOTATION),
        "decoder_U_att": 3 * array(ANNOTATION, 1),
        "decoder_c_tt": array(1),
    }
    for layer in range(1, options["n_layers_att"]):
        made |= {f"decoder_W_att_{layer}": array(ANNOTATION, ANNOTATION), f"decoder_b_att_{layer}": array(ANNOTATION)}
    if options["selector"]:
        made |= {"decoder_W_sel": array(HIDDEN, 1), "decoder_b_sel": np.float32(0.3)}  # type: ignore[dict-item]
    made["ff_logit_W"] *= 4
    return made


class NumpyForward:
    """The release's model in float64. Where it drops out while training, it multiplies by 0.5."""

    def __init__(self, arrays: Arrays, options: Options) -> None:
        self.p = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        self.o = options
        self.half = 0.5 if options["use_dropout"] else 1.0
        self.keys = np.empty(0)

    def initial(self, annotations: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The state before the first word of an image, whose steps follow."""
        self.keys = annotations @ self.p["decoder_Wc_att"] + self.p["decoder_b_att"]
        for layer in range(1, self.o["n_layers_att"]):
            self.keys = np.tanh(self.keys @ self.p[f"decoder_W_att_{layer}"] + self.p[f"decoder_b_att_{layer}"])
        mean = annotations.mean(0)
        for layer in range(1, self.o["n_layers_init"]):
            mean = self.half * np.maximum(0, self.linear(f"ff_init_{layer}", mean))
        return np.tanh(self.linear("ff_state", mean)), np.tanh(self.linear("ff_memory", mean))

    def step(
        self, word: int, hidden: NDArray[Any], cell: NDArray[Any], annotations: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Log-probs of the next word after `word`, -1 at the start; alphas; the state."""
        p = self.p
        embedded = np.zeros(EMBEDDING) if word < 0 else p["Wemb"][word]
        energies = (np.tanh(self.keys + hidden @ p["decoder_Wd_att"]) @ p["decoder_U_att"] + p["decoder_c_tt"])[:, 0]
        if self.o["attn_type"] == "stochastic":
            energies = energies * self.o["temperature"]
        alphas = np.exp(log_softmax(energies))
        context = alphas @ annotations
        if self.o["selector"]:
            context = sigmoid(hidden @ p["decoder_W_sel"] + p["decoder_b_sel"]) * context
        gates = hidden @ p["decoder_U"] + embedded @ p["decoder_W"] + p["decoder_b"] + context @ p["decoder_Wc"]
        enter, forget, leave, candidate = np.split(gates, 4)
        if self.o["use_dropout_lstm"]:
            enter, forget, leave = 0.5 * enter, 0.5 * forget, 0.5 * leave
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(candidate)
        hidden = sigmoid(leave) * np.tanh(cell)
        logits = self.linear("ff_logit_lstm", self.half * hidden)
        if self.o["prev2out"]:
            logits = logits + embedded
        if self.o["ctx2out"]:
            logits = logits + self.linear("ff_logit_ctx", context)
        logits = self.half * np.tanh(logits)
        for layer in range(1, self.o["n_layers_out"]):
            logits = self.half * np.maximum(0, self.linear(f"ff_logit_h{layer}", logits))
        return log_softmax(self.linear("ff_logit", logits)), alphas, hidden, cell

    def linear(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        made: NDArray[Any] = value @ self.p[f"{name}_W"] + self.p[f"{name}_b"]
        return made


def sigmoid(value: NDArray[Any]) -> NDArray[Any]:
    made: NDArray[Any] = 1 / (1 + np.exp(-value))
    return made


def log_softmax(value: NDArray[Any]) -> NDArray[Any]:
    made: NDArray[Any] = value - value.max() - np.log(np.exp(value - value.max()).sum())
    return made


def write_model(folder: Path, arrays: Arrays, options: Mapping[str, Any], words: Any = None) -> tuple[Path, Path, Path]:
    """The release's three files; its pickles are of protocol 0, as Python 2 writes them by default."""
    paths = folder / "model.npz", folder / "model.npz.pkl", folder / "dictionary.pkl"
    with paths[0].open("wb") as file:
        np.savez(file, history_errs=np.array([1, 2]), objects=np.array([None, {}], object), **arrays)  # type: ignore[arg-type]
    paths[1].write_bytes(pickle.dumps(dict(options), 0))
    ids = OrderedDict((f"word{number}", number) for number in range(2, 40)) if words is None else words
    paths[2].write_bytes(pickle.dumps(ids, 0))
    return paths


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_alphas_and_states_are_those_of_the_description(name: str, tmp_path: Path) -> None:
    options = PAPER | VARIANTS[name]
    arrays = random_model(options)
    theirs = NumpyForward(arrays, options)
    paths = write_model(tmp_path, arrays, options)
    found = read_npz(paths[0])
    decoder_options, weights = arctic_decoder(paths[0], found, read_options(paths[1], found))
    ours = decoder_of(decoder_options, weights)
    annotations = np.random.default_rng(1).random((9, ANNOTATION)).astype(np.float32)
    hidden, cell = theirs.initial(annotations.astype(np.float64))
    with torch.inference_mode():
        annotated = ours.annotate(torch.from_numpy(annotations)[None])
        state = ours.initial_rows(annotated, 1)
        np.testing.assert_allclose(state.hidden[0, 0], hidden, atol=2e-6)
        np.testing.assert_allclose(state.cell[0, 0], cell, atol=2e-6)
        for word in (-1, 5, 29, 0, 1, 17):
            log_probs, alphas, hidden, cell = theirs.step(word, hidden, cell, annotations)
            token = torch.tensor([[WORDS if word < 0 else word]])
            logits, looked, state = predict(ours, token, state, annotated, None)
            np.testing.assert_allclose(logits[0, 0, :WORDS], log_probs, atol=2e-5)
            np.testing.assert_allclose(looked[0, 0], alphas, atol=2e-6)
            np.testing.assert_allclose(state.hidden[0, 0], hidden, atol=2e-6)
            assert (logits[0, 0, WORDS:] < -1000).all()  # <start> and <pad> are never said


def decoder_of(options: DecoderOptions, weights: Mapping[str, torch.Tensor]) -> Decoder:
    decoder = Decoder(ANNOTATION, WORDS + 2, options).eval()
    decoder.load_state_dict(dict(weights))
    return decoder


def test_a_half_is_exact() -> None:
    """Weights that absorb a half are halves of the release's, to the last bit; the others are the release's."""
    options = PAPER | {"n_layers_out": 2}
    arrays = random_model(options)
    _, ours = arctic_decoder(Path("model.npz"), arrays, ArcticOptions(**chosen(options)))
    for name, theirs in (("output_from_hidden", "ff_logit_lstm"), ("output_hidden.0", "ff_logit_h1")):
        np.testing.assert_array_equal(2 * ours[f"{name}.weight"], arrays[f"{theirs}_W"].T)
    np.testing.assert_array_equal(ours["initial_cell.0.weight"], arrays["ff_init_1_W"].T)
    np.testing.assert_array_equal(2 * ours["initial_cell.2.weight"], arrays["ff_memory_W"].T)
    np.testing.assert_array_equal(2 * ours["output.weight"][:WORDS], arrays["ff_logit_W"].T)
    np.testing.assert_array_equal(ours["output.bias"][:WORDS], arrays["ff_logit_b"])


def chosen(options: Options) -> Options:
    known = {field.name for field in fields(ArcticOptions)}
    return {name: value for name, value in options.items() if name in known}


def best_caption(model: NumpyForward, annotations: NDArray[Any], beam: int) -> tuple[tuple[int, ...], float]:
    """The release's search: what ends takes a place of the beam with it. Raises where it is not clear."""
    live: list[Any] = [(0.0, (-1,), *model.initial(annotations))]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(200):
        slots, candidates = beam - len(ended), []
        for score, words, hidden, cell in live:
            log_probs, _, *state = model.step(words[-1], hidden, cell, annotations)
            candidates += [(score + one, (*words, word), *state) for word, one in enumerate(log_probs.tolist())]
        candidates.sort(key=lambda candidate: -candidate[0])
        assert candidates[slots - 1][0] - candidates[slots][0] > 1e-4
        ended += [(score, words) for score, words, *_ in candidates[:slots] if words[-1] == 0]
        live = [candidate for candidate in candidates[:slots] if candidate[1][-1] != 0]
        if not live:
            break
    score, words = max(ended)
    return words[1:-1], score


@pytest.fixture(scope="module")
def hard_import(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, NumpyForward]:
    options = PAPER | VARIANTS["hard"]
    arrays = random_model(options, seed=3)
    gains = {"decoder_W": 5, "decoder_U": 4, "decoder_Wc": 0.3, "ff_logit_lstm_W": 6, "ff_logit_ctx_W": 0.3}
    for name, gain in gains.items():
        arrays[name] *= np.float32(gain)  # so that words depend on those before them, and captions end
    arrays["ff_logit_b"][0] += 4
    folder = tmp_path_factory.mktemp("arctic")
    paths = write_model(folder, arrays, options)
    write_checkpoint(read_arctic(*paths), paths[0], folder / "out", overwrite=False)
    return load_checkpoint(folder / "out"), NumpyForward(arrays, options)


@pytest.mark.slow
def test_captions_of_the_exported_step_are_those_of_the_releases_search(
    hard_import: tuple[Checkpoint, NumpyForward], tmp_path: Path
) -> None:
    """Of a hard model, which decodes with the expected context, at beams 1, 3 and 5."""
    checkpoint, theirs = hard_import
    export_step(checkpoint, tmp_path / "step.onnx")
    step, vocabulary = OnnxGraph(tmp_path / "step.onnx"), checkpoint.vocabulary
    rng, decoder = np.random.default_rng(5), checkpoint.captioner.decoder
    annotations = 6 * rng.normal(size=(3, PLACES, ANNOTATION)).astype(np.float32)
    with torch.inference_mode():
        annotated = decoder.annotate(torch.from_numpy(annotations))
        encoded = [*annotated, *decoder.initial_state(annotated)]
    named = dict(zip(("annotations", "keys", "hidden", "cell"), (part.numpy() for part in encoded), strict=True))
    lengths = set()
    for beam in (1, 3, 5):
        options = SearchOptions(beam=beam, max_length=checkpoint.description.max_length)
        glimpses = Glimpses("expected", 0, np.zeros((3, 1, 1, 3), np.uint8), beam=beam, places=PLACES)
        decoding = HostDecoding(step, named, beam=beam, start=vocabulary.start, with_alphas=False, glimpses=glimpses)
        for image, (found,) in zip(annotations, search(decoding, vocabulary, options), strict=True):
            words, score = best_caption(theirs, image.astype(np.float64), beam)
            assert found.tokens == words
            assert found.score == pytest.approx(score, abs=1e-4)
            lengths.add(len(words))
    assert len(lengths) > 2


@pytest.mark.slow
def test_the_checkpoint_has_vgg_19_and_the_releases_words(hard_import: tuple[Checkpoint, NumpyForward]) -> None:
    checkpoint, _ = hard_import
    description, vocabulary = checkpoint.description, checkpoint.vocabulary
    assert (description.encoder.name, description.decoder.attention) == ("vgg19", "hard")
    assert (description.preprocessing.size, description.preprocessing.geometry) == (224, "crop")
    assert description.max_length == 200
    assert vocabulary.words[:3] == ("<eos>", "UNK", "word2")
    assert vocabulary.words[-3:] == ("word29", "<start>", "<pad>")
    assert vocabulary.sentence([5, 1, 0]) == "word5 UNK"


def test_ids_that_no_word_has_and_words_beyond_the_model_are_no_error(tmp_path: Path) -> None:
    """The release's models have rows for as many words as they were told, not as the dictionary has."""
    path = tmp_path / "dictionary.pkl"
    path.write_bytes(pickle.dumps({"<eos>": 0, "UNK": 1, "cat": 2, "dog": 4, "rare": 9}, 2))
    vocabulary = read_dictionary(path, words=6)
    assert vocabulary.words == ("<eos>", "UNK", "cat", "<3>", "dog", "<5>", "<start>", "<pad>")


def test_strings_of_python_2_are_read(tmp_path: Path) -> None:
    """In the text protocol and in the binary one: UTF-8, or Latin-1 where that fails."""
    path = tmp_path / "dictionary.pkl"
    for written in (
        b"(dp0\nS'caf\\xc3\\xa9'\np1\nI2\nsS'na\\xefve'\np2\nI3\ns.",
        b"\x80\x02}(U\x05caf\xc3\xa9K\x02U\x05na\xefveK\x03u.",
        b"\x80\x02ccollections\nOrderedDict\n](](U\x05caf\xc3\xa9K\x02e](U\x05na\xefveK\x03ee\x85R.",
    ):
        path.write_bytes(written)
        assert read_dictionary(path, words=4).words[2:4] == ("café", "naïve")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_layers_lstm": 2}, "n_layers_lstm is above 1: stacked LSTMs cannot be imported"),
        ({"lstm_encoder": True}, "lstm_encoder is on: annotations that went through an LSTM cannot be imported"),
        ({"attn_type": "none"}, "attn_type is 'none', expected 'deterministic' or 'stochastic'"),
        ({"use_dropout": "yes"}, "use_dropout is a str, expected bool"),
        ({"n_layers_out": 10**9}, "the depth of an MLP is below 1 or above 16"),
        ({"n_layers_out": 2}, "is not the model of these options: ff_logit_h1_W is missing; ff_logit_h1_b is missing"),
    ],
)
def test_models_that_cannot_be_imported_are_refused_by_name(
    change: Options, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, options, dictionary = write_model(tmp_path, random_model(PAPER), PAPER | change)
    outcome = call(
        capsys, "import", "arctic", model, "--options", options, "--dictionary", dictionary, "--out", tmp_path / "out"
    )
    assert said in outcome.error
    assert not (tmp_path / "out").exists()


def test_an_option_that_no_array_tells_must_be_there(tmp_path: Path) -> None:
    options = {name: value for name, value in PAPER.items() if name != "prev2out"}
    paths = write_model(tmp_path, random_model(PAPER), options)
    with pytest.raises(CheckpointError, match=r"model\.npz\.pkl: prev2out is missing"):
        read_options(paths[1], read_npz(paths[0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder_U": None}, "has no matrix decoder_U"),
        ({"decoder_b_att": None}, "decoder_b_att is missing"),
        ({"ff_state_W": np.zeros((3, 4))}, r"ff_state_W has shape \(3, 4\), expected \(512, 7\)"),
    ],
)
def test_missing_and_misshapen_arrays_are_named(change: Arrays, said: str, tmp_path: Path) -> None:
    arrays = {name: array for name, array in (random_model(PAPER) | change).items() if array is not None}
    paths = write_model(tmp_path, arrays, PAPER)
    with pytest.raises(CheckpointError, match=said):
        read_arctic(*paths)


@pytest.mark.parametrize("words", [[1, 2], {"a": "b"}, {"a": 2, "b": 2}, {}, {"<start>": 2}])
def test_what_is_no_dictionary_is_refused(words: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path, {}, PAPER, words)[2]
    with pytest.raises(VocabularyError, match=r"dictionary\.pkl: "):
        read_dictionary(path, words=WORDS)


def test_compressed_and_truncated_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    np.savez_compressed(path, Wemb=np.zeros((100, 100)))
    with pytest.raises(CheckpointError, match=r"Wemb\.npy is compressed or encrypted"):
        read_npz(path)
    np.savez(path, Wemb=np.zeros((100, 100)))
    content = path.read_bytes()
    for end in range(0, len(content) - 1, 997):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=r"cannot be read|cut short"):
            read_npz(path)
    path.write_bytes(content.replace(b"(100, 100)", b"(900, 900)"))
    with pytest.raises(CheckpointError, match=r"Wemb\.npy is no array, or is damaged"):
        read_npz(path)
