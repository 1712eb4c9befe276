"""Every backend captions alike, whatever the batch, and an image that cannot be read is a result like any other."""

import shutil
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import engine.backends.ort
import engine.captioner
from engine.backends.base import BACKENDS, Backend, BackendEntry, open_backend
from engine.backends.buffers import _BufferedDecoding
from engine.backends.pytorch_cuda import open_backend as open_pytorch_cuda
from engine.captioner import Captioner, CaptionOptions, ImageLike
from engine.images import Source
from engine.pipeline import Stages
from engine.records import Failure, Record
from saccade.bundle import CHECKPOINT, Bundle, Precision
from saccade.decoding import Decoding
from saccade.errors import BackendError, BundleError, ConfigError, DataError, ImageError
from saccade.hypotheses import Hypothesis, StepReport
from saccade.preprocessing import PreprocessSpec, load_image
from saccade.search import ContinuousSearch, SearchOptions, search
from tests.bundles import CPU_BACKENDS, MAX_LENGTH, SPEC, VOCABULARY, patchworks, save_patchworks
from tests.waiting import eventually

PICTURES: NDArray[np.uint8] = patchworks(12, seed=1)


def search_options(**options: Any) -> SearchOptions:
    return replace(SearchOptions(max_length=MAX_LENGTH), **options)


def hypotheses(
    bundle: Path,
    pixels: NDArray[np.uint8] = PICTURES,
    *,
    backend: str = "ort",
    precision: Precision | None = None,
    **options: Any,
) -> list[list[Hypothesis]]:
    opened = CaptionOptions(search=search_options(**options), attention=True, backend=backend, precision=precision)
    with Captioner.open(bundle, opened) as captioner:
        return captioner.caption_pixels(pixels)


def records(bundle: Path, paths: Sequence[ImageLike], options: CaptionOptions | None = None) -> list[Record | Failure]:
    with Captioner.open(bundle, options) as captioner:
        return list(captioner.caption(paths))


def told(found: list[list[Hypothesis]]) -> list[list[tuple[Any, ...]]]:
    """All there is in hypotheses, to be compared to the last bit."""
    return [
        [
            (one.tokens, one.log_prob, one.score, one.truncated, one.alphas is not None and one.alphas.tolist())
            for one in image
        ]
        for image in found
    ]


def skip_without(backend: str) -> None:
    try:
        BACKENDS[backend].check()
    except BackendError as error:
        pytest.skip(str(error))


def uneven(backend: Backend, options: SearchOptions) -> list[list[int]]:
    """Batches of four pictures, of which three have a short caption and one has a long one, by number."""
    found = search(backend.begin(PICTURES, options, with_alphas=False), VOCABULARY, options)
    lengths = [len(best.tokens) for best, *_ in found]
    short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
    assert lengths[short] < 0.5 * lengths[long]
    return [[short, short, long, short], [long, short, short, short], [short, short, short, long]]


def assert_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]], *, places: int = 16) -> None:
    assert [[one.tokens for one in image] for image in found] == [[one.tokens for one in image] for image in expected]
    for a, b in zip(sum(found, []), sum(expected, []), strict=True):  # noqa: RUF017 - a dozen short lists
        assert a.truncated == b.truncated
        assert a.score == pytest.approx(b.score, abs=1e-4)
        assert a.alphas is not None
        assert b.alphas is not None
        assert a.alphas.shape == b.alphas.shape == (len(a.tokens), places)
        np.testing.assert_allclose(a.alphas, b.alphas, rtol=0, atol=1e-4)
        np.testing.assert_allclose(a.alphas.sum(axis=1), 1, rtol=0, atol=1e-5)


def test_the_captions_are_worth_comparing(tiny_bundle: Path) -> None:
    """Different pictures get different captions, finished and truncated ones, with and without `<unk>`."""
    best = [found[0] for found in hypotheses(tiny_bundle)]
    assert len({one.tokens for one in best}) >= 6
    assert {one.truncated for one in best} == {True, False}
    assert {VOCABULARY.unk in one.tokens for one in best} == {True, False}


@pytest.mark.parametrize("beam", [1, 3, 5])
def test_the_backends_caption_alike_and_look_at_the_same_places(tiny_bundle: Path, beam: int) -> None:
    for n_best in {1, beam}:
        expected, *others = (
            hypotheses(tiny_bundle, backend=name, precision="fp32", beam=beam, n_best=n_best)
            for name in reversed(CPU_BACKENDS)
        )
        for found in others:
            assert_same(found, expected)


@pytest.mark.parametrize("mode", ["expected", "argmax", "sample"])
def test_the_backends_caption_alike_where_places_are_more_than_cells(pooled_bundle: Path, mode: str) -> None:
    expected, *others = (
        hypotheses(pooled_bundle, backend=name, precision="fp32", decode_mode=mode) for name in reversed(CPU_BACKENDS)
    )
    for found in others:
        assert_same(found, expected, places=36)


def test_pytorch_refuses_a_bundle_whose_finer_grid_was_made(pooled_bundle: Path, tmp_path: Path) -> None:
    """As exports did before it was left to the decoder."""
    bundle = Bundle.open(pooled_bundle)
    encoder = bundle.graph("encoder")
    annotations = replace(encoder.outputs[0], shape=("images", 36, 160))
    graphs = bundle.manifest.graphs | {"encoder": replace(encoder, outputs=(annotations, *encoder.outputs[1:]))}
    older = Bundle(pooled_bundle, replace(bundle.manifest, graphs=graphs), bundle.vocabulary)
    with pytest.raises(BackendError, match="has 36 annotations an image, its model makes 16: export the bundle again"):
        open_backend("pytorch", older)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_caption_does_not_depend_on_the_images_beside_it(tiny_bundle: Path, backend: str) -> None:
    together = hypotheses(tiny_bundle, backend=backend, n_best=3)
    alone = [
        found for picture in PICTURES for found in hypotheses(tiny_bundle, picture[None], backend=backend, n_best=3)
    ]
    assert_same(together, alone)
    reversed_pictures = np.ascontiguousarray(PICTURES[::-1])
    assert_same(hypotheses(tiny_bundle, reversed_pictures, backend=backend, n_best=3)[::-1], alone)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_where_hard_attention_looks_does_not_depend_on_the_images_beside_it(hard_bundle: Path, backend: str) -> None:
    options: dict[str, Any] = {"backend": backend, "decode_mode": "sample", "seed": 3}
    together = hypotheses(hard_bundle, **options)
    assert_same(
        together, [found for picture in PICTURES for found in hypotheses(hard_bundle, picture[None], **options)]
    )
    tokens = [[best.tokens for best, *_ in hypotheses(hard_bundle, **options | {"seed": seed})] for seed in (3, 4)]
    assert tokens[0] != tokens[1]


def test_a_hard_bundle_looks_as_it_was_exported_unless_told_otherwise(hard_bundle: Path) -> None:
    with Captioner.open(hard_bundle) as captioner:
        assert captioner.search_options.decode_mode == "sample"


def test_soft_attention_knows_no_other_decode_mode(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match='decode mode "argmax" is for hard attention'):
        hypotheses(tiny_bundle, decode_mode="argmax")


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_records_do_not_depend_on_the_batch(tiny_bundle: Path, tmp_path: Path, batch: int) -> None:
    """And come in the order of the paths, with unreadable images in between."""
    paths = save_patchworks(tmp_path, 12)
    paths[3].write_bytes(b"no image")
    paths.insert(7, tmp_path / "absent.png")
    found = records(tiny_bundle, paths, CaptionOptions(batch=batch, loaders=3, precision="fp32"))
    assert [one.path for one in found] == [str(path) for path in paths]
    assert [one.kind for one in found if isinstance(one, Failure)] == ["not_an_image", "missing"]
    captions = [one for one in found if isinstance(one, Record)]
    expected = [image[0] for image in hypotheses(tiny_bundle, np.delete(PICTURES, 3, axis=0))]
    assert [one.tokens for one in captions] == [one.tokens for one in expected]
    assert [one.score for one in captions] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_a_record_says_the_same_in_tokens_words_and_caption(tiny_bundle: Path, tmp_path: Path) -> None:
    options = CaptionOptions(search=search_options(n_best=3), attention=True)
    for one in records(tiny_bundle, save_patchworks(tmp_path, 12), options):
        assert isinstance(one, Record)
        assert one.words == VOCABULARY.decode(one.tokens)
        assert one.caption == VOCABULARY.sentence(one.tokens)
        assert one.attention is not None
        assert (one.attention.rows, one.attention.columns) == (4, 4)
        assert len(one.attention.alphas) == len(one.words)
        assert Record.from_json(one.as_json()) == replace(
            one,
            score=round(one.score, 6),
            attention=replace(one.attention, alphas=tuple(tuple(round(a, 5) for a in r) for r in one.attention.alphas)),
            alternatives=tuple(replace(other, score=round(other.score, 6)) for other in one.alternatives),
        )


def test_alternatives_are_the_other_hypotheses_best_first(tiny_bundle: Path, tmp_path: Path) -> None:
    paths = save_patchworks(tmp_path, 12)
    options = CaptionOptions(search=search_options(beam=5, n_best=4), precision="fp32")
    found, expected = records(tiny_bundle, paths, options), hypotheses(tiny_bundle, beam=5, n_best=4)
    for one, image in zip(found, expected, strict=True):
        assert isinstance(one, Record)
        assert (one.tokens, *(other.tokens for other in one.alternatives)) == tuple(other.tokens for other in image)
        assert [other.caption for other in one.alternatives] == [VOCABULARY.sentence(o.tokens) for o in image[1:]]
        finished = [other.score for other in one.alternatives if not other.truncated]
        assert finished == sorted(finished, reverse=True)
        assert len(image) == 4
        assert len({other.tokens for other in image}) == 4


def test_attention_and_alternatives_are_left_out_unless_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    (one,) = records(tiny_bundle, save_patchworks(tmp_path, 1))
    assert isinstance(one, Record)
    assert one.attention is None
    assert one.alternatives == ()
    assert not {"attention", "alternatives"} & one.as_json().keys()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_unk_can_be_banned(tiny_bundle: Path, backend: str) -> None:
    plain = hypotheses(tiny_bundle, backend=backend)
    without = hypotheses(tiny_bundle, backend=backend, suppress_unk=True)
    assert any(VOCABULARY.unk in image[0].tokens for image in plain)
    assert not any(VOCABULARY.unk in image[0].tokens for image in without)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_lengths_are_kept_to(tiny_bundle: Path, backend: str) -> None:
    for image in hypotheses(tiny_bundle, backend=backend, max_length=3, min_length=2):
        assert 2 <= len(image[0].tokens) <= 3
        assert image[0].truncated == (len(image[0].tokens) == 3)


def test_the_maximum_length_of_the_bundle_is_the_default(tiny_bundle: Path) -> None:
    with Captioner.open(tiny_bundle) as captioner:
        assert captioner.search_options == SearchOptions(beam=3, max_length=MAX_LENGTH)


def test_records_are_equal_to_the_last_bit_whatever_is_captioned_beside_them(tiny_bundle: Path, tmp_path: Path) -> None:
    """So that a run which was interrupted somewhere else writes the same bytes."""
    paths = save_patchworks(tmp_path, 12)
    expected = {one.path: one for one in records(tiny_bundle, paths, CaptionOptions(batch=8))}
    for others in ([11], [3, 7, 1], [10, 9, 8, 7, 6, 5, 4, 3, 2], [0, 0, 0, 0, 0, 0, 0, 5]):
        found = records(tiny_bundle, [paths[number] for number in others], CaptionOptions(batch=8))
        assert found == [expected[str(paths[number])] for number in others]


@pytest.mark.parametrize(
    "backend", [*CPU_BACKENDS, "pytorch-cuda without a GPU", pytest.param("pytorch-cuda", marks=pytest.mark.gpu)]
)
def test_records_stay_when_images_take_the_places_of_others(
    tiny_bundle: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch after batch in the same places, as each batch by itself, to the last bit, in fewer steps."""
    bundle = Bundle.open(tiny_bundle)
    if backend.endswith("without a GPU"):
        opened: Backend = open_pytorch_cuda(bundle, threads=1, precision="fp32", device="cpu")
    else:
        skip_without(backend)
        opened = open_backend(backend, bundle, precision="fp32")
    steps = 0
    advance = _BufferedDecoding.advance

    def counted(decoding: _BufferedDecoding, bias: NDArray[np.float32]) -> StepReport:
        nonlocal steps
        steps += 1
        return advance(decoding, bias)

    monkeypatch.setattr(_BufferedDecoding, "advance", counted)
    options = search_options(max_length=30)
    with opened:
        batches = [PICTURES[numbers] for numbers in uneven(opened, options)]
        apart = [search(opened.begin(one, options, with_alphas=True), VOCABULARY, options) for one in batches]
        steps_apart, steps = steps, 0
        searching, together = ContinuousSearch(VOCABULARY, options), []
        for one in batches:
            searching.add(opened.begin(one, options, with_alphas=True))
            while not searching.is_hungry:
                together += searching.run()
        while searching.is_busy:
            together += searching.run()
    assert list(map(told, together)) == list(map(told, apart))
    assert (steps < 0.9 * steps_apart) == (backend != "pytorch")


@pytest.mark.parametrize(
    "options", [{"n_best": 3}, {"min_length": 3}, {"decode_mode": "argmax"}, {"decode_mode": "sample"}]
)
def test_batches_in_a_row_are_captioned_as_each_by_itself(
    tiny_bundle: Path, hard_bundle: Path, options: dict[str, Any]
) -> None:
    images = patchworks(10, seed=6)
    bundle = hard_bundle if "decode_mode" in options else tiny_bundle
    given = CaptionOptions(search=search_options(max_length=30, **options), batch=3, backend="ort")
    with Captioner.open(bundle, given) as captioner:
        apart = [one for first in range(0, 10, 3) for one in captioner.caption(images[first : first + 3])]
        together = list(captioner.caption(images))
    assert [replace(one, path="") for one in together] == [replace(one, path="") for one in apart]


def test_failures_come_in_their_places_between_batches(tiny_bundle: Path) -> None:
    broken = [b"no image"] * 20  # more than a batch of two waits for
    images: list[ImageLike] = [*PICTURES[:3], *broken, *PICTURES[3:6]]
    found = records(tiny_bundle, images, CaptionOptions(batch=2))
    assert [isinstance(one, Failure) for one in found] == [False] * 3 + [True] * 20 + [False] * 3
    assert [one.path for one in found] == [str(number) for number in range(26)]


def test_the_captions_before_an_error_come_out_first(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0
    begin = Captioner._begin

    def failing(captioner: Captioner, pixels: NDArray[np.uint8]) -> Decoding:
        nonlocal begun
        begun += 1
        if begun > 2:
            raise BackendError("no memory left")
        return begin(captioner, pixels)

    monkeypatch.setattr(Captioner, "_begin", failing)
    found: list[str] = []
    with Captioner.open(tiny_bundle, CaptionOptions(batch=3)) as captioner, pytest.raises(BackendError, match="memory"):
        found.extend(one.path for one in captioner.caption(PICTURES))
    assert found == [str(number) for number in range(6)]


@pytest.mark.parametrize("blocked", ["_begin", "_load"])
def test_a_batch_is_waited_for_while_it_is_encoded_and_not_while_it_is_loaded(
    tiny_bundle: Path, blocked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some captions of a batch are short: then there is a place for an image of the next one, which never comes."""
    options = CaptionOptions(search=search_options(max_length=30), batch=4, loaders=1)
    release, told = threading.Event(), threading.Event()
    original, run, seen = getattr(Captioner, blocked), ContinuousSearch.run, 0

    def blocking(captioner: Captioner, *given: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > {"_begin": 1, "_load": 4}[blocked]:
            assert release.wait(60)
        return original(captioner, *given)

    def telling(searching: ContinuousSearch) -> list[list[list[Hypothesis]]]:
        found = run(searching)
        if found:
            told.set()
        return found

    with Captioner.open(tiny_bundle, options) as captioner:
        images = PICTURES[[number for batch in uneven(captioner.backend, captioner.search_options) for number in batch]]
        monkeypatch.setattr(Captioner, blocked, blocking)
        monkeypatch.setattr(ContinuousSearch, "run", telling)
        found: list[Record | Failure] = []
        thread = threading.Thread(target=lambda: found.extend(captioner.caption(images)))
        thread.start()
        assert told.wait(30 if blocked == "_load" else 1) == (blocked == "_load")
        release.set()
        thread.join()
    assert len(found) == 12


def test_bytes_and_pixels_are_captioned_like_files_and_called_by_their_places(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (path,) = save_patchworks(tmp_path, 1)
    grey = np.full((40, 30), 7, np.uint8)
    given: list[ImageLike] = [path, str(path), path.read_bytes(), PICTURES[0], grey, np.stack([grey] * 3, axis=2)]
    with Captioner.open(tiny_bundle) as captioner:
        found = list(captioner.caption(given))
    assert [one.path for one in found] == [str(path), str(path), "2", "3", "4", "5"]
    assert len({one.caption for one in found[:4] if isinstance(one, Record)}) == 1
    assert replace(found[4], path="5") == found[5]


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 0), np.uint8)]
)
def test_pixels_of_another_kind_are_refused(tiny_bundle: Path, pixels: NDArray[np.uint8]) -> None:
    with Captioner.open(tiny_bundle) as captioner, pytest.raises(ConfigError, match=r"pixels are .* of shape \(4, 4"):
        list(captioner.caption([pixels]))


@pytest.mark.parametrize("one", ["photo.jpg", Path("photo.jpg"), b"..."])
def test_one_image_is_not_taken_for_many(tiny_bundle: Path, one: Any) -> None:
    with Captioner.open(tiny_bundle) as captioner, pytest.raises(ConfigError, match="expected several"):
        captioner.caption(one)


def test_a_source_gives_its_bytes_its_error_or_calls_for_them(tiny_bundle: Path, tmp_path: Path) -> None:
    (path,) = save_patchworks(tmp_path, 1)

    def gone() -> bytes:
        raise ImageError("the server said 404", kind="missing")

    given = [
        Source("a", path.read_bytes),
        Source("b", gone),
        Source("c", ImageError("no permission", kind="permission")),
        Source("d", path),
    ]
    with Captioner.open(tiny_bundle) as captioner:
        first, second, third, fourth = captioner.caption(given)
    assert isinstance(first, Record)
    assert second == Failure(path="b", kind="missing", error="the server said 404")
    assert third == Failure(path="c", kind="permission", error="no permission")
    assert replace(first, path="d") == fourth


def test_a_failure_names_the_image_wherever_its_bytes_are(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("This is no photo.")
    given: list[ImageLike] = [tmp_path / "text.jpg", Source("shard.tar/text.jpg", b"This is no photo."), tmp_path]
    with Captioner.open(tiny_bundle) as captioner:
        found = [one for one in captioner.caption(given) if isinstance(one, Failure)]
    assert [one.kind for one in found] == ["not_an_image", "not_an_image", "not_a_file"]
    assert [one.error.startswith(f"{one.path}: ") for one in found] == [True] * 3


def test_an_image_that_takes_too_long_is_a_failure(tiny_bundle: Path, tmp_path: Path) -> None:
    path, *others = save_patchworks(tmp_path, 5)
    hang = threading.Event()

    def never() -> bytes:
        hang.wait()
        return b""

    options = CaptionOptions(loaders=1, time_limit_s=1)
    found = records(tiny_bundle, [path, Source("slow", never), *others], options)
    hang.set()
    assert [type(one) for one in found] == [Record, Failure, *[Record] * 4]
    assert found[1] == Failure(path="slow", kind="too_slow", error="slow: took more than 1 s to load")


def test_once_it_is_told_to_stop_what_is_begun_comes_out(tiny_bundle: Path) -> None:
    stop = threading.Event()
    with Captioner.open(tiny_bundle, CaptionOptions(batch=4, loaders=1)) as captioner:
        results = captioner.caption((PICTURES[number % 12] for number in count()), stop=stop)
        found = list(islice(results, 10))
        stop.set()
        found += results
    assert [one.path for one in found] == [str(number) for number in range(len(found))]
    assert 10 <= len(found) < 50


def test_an_error_of_the_images_comes_out(tiny_bundle: Path) -> None:
    def images() -> Iterator[ImageLike]:
        yield PICTURES[0]
        raise DataError("the list is gone")

    with Captioner.open(tiny_bundle) as captioner, pytest.raises(DataError, match="the list is gone"):
        list(captioner.caption(images()))


def test_the_time_of_every_stage_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    stages = Stages()
    with Captioner.open(tiny_bundle, CaptionOptions(batch=5, loaders=3)) as captioner:
        list(captioner.caption(save_patchworks(tmp_path, 12), stages=stages))
    calls = {name: (stage.threads, stage.calls) for name, stage in stages.by_name.items()}
    assert calls.pop("search")[0] == 1
    assert calls == {
        "scan": (1, 13),  # and once more to see that there is no other
        "read": (3, 12),
        "decode": (3, 12),
        "encode": (1, 3),
    }
    assert all(stage.busy_s > 0 for stage in stages.by_name.values())


def test_no_image_gives_no_result(tiny_bundle: Path, tmp_path: Path) -> None:
    assert records(tiny_bundle, []) == []
    assert [type(one) for one in records(tiny_bundle, [tmp_path / "absent.jpg"])] == [Failure]


def test_images_are_read_ahead_but_only_a_few(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their number, so many are in memory at most; reading stops when the caller stops."""
    opened = count()

    picture: NDArray[np.uint8] = PICTURES[0]

    def load(path: Path, spec: PreprocessSpec, **_: object) -> NDArray[np.uint8]:
        next(opened)
        return picture

    monkeypatch.setattr(engine.captioner, "load_image", load)
    before = threading.active_count()
    with Captioner.open(tiny_bundle, CaptionOptions(batch=2, loaders=2)) as captioner:
        results = captioner.caption(Path(f"{index}.jpg") for index in count())
        for _ in range(20):
            next(results)
        assert isinstance(results, Generator)
        results.close()
    assert next(opened) <= 20 + 5 * 2 + 4  # given out, a batch in each of five hands and queues, and loaded
    assert eventually(lambda: threading.active_count() <= before)


def test_a_photo_turned_by_exif_is_captioned_as_it_is_seen(tiny_bundle: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be seen, turn a quarter to the right
    upright = Image.fromarray(PICTURES[0])
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "turned.png", SPEC), load_image(tmp_path / "upright.png", SPEC))
    turned, straight = records(tiny_bundle, [tmp_path / "turned.png", tmp_path / "upright.png"])
    assert isinstance(turned, Record)
    assert replace(turned, path=straight.path) == straight


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"threads": -1}, "threads must be 0 or more"),
        ({"batch": 0, "loaders": -2}, "batch must be .*; loaders must be 0 or more"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        CaptionOptions(**options)  # type: ignore[arg-type]


def test_an_unknown_backend_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'abacus', choose auto, .*openvino, ort, pytorch"):
        Captioner.open(tiny_bundle, CaptionOptions(backend="abacus"))


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        Captioner.open(tmp_path)


def test_auto_takes_the_first_backend_that_works(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that do not are nobody's business but of the log, until none works."""
    caplog.set_level("DEBUG", logger="engine.backends.base")
    bundle = Bundle.open(tiny_bundle)
    for name, begins in (("openvino", "OpenVINO "), ("ort", "ONNX Runtime "), ("pytorch", "PyTorch ")):
        assert open_backend("auto", bundle).description.startswith(begins)
        entry = BACKENDS[name]
        monkeypatch.setitem(BACKENDS, name, BackendEntry("engine.backends.absent", entry.package, entry.extra))
    assert "not used: ort: engine.backends.absent is not installed: pip install 'saccade[cpu]'" in caplog.text
    reasons = r"no backend works here, pip install .*; ort: .*saccade\[cpu\].*; pytorch: .*\[train\]"
    with pytest.raises(BackendError, match=reasons):
        open_backend("auto", bundle)


def test_a_precision_that_a_backend_does_not_know_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="this backend knows fp32, fp16, int8, not bf16"):
        open_backend("ort", Bundle.open(tiny_bundle), precision="bf16")


def test_a_precision_that_the_bundle_has_no_graphs_of_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"has no int8 graphs, it has fp32: export it again with .--precision int8"):
        open_backend("ort", Bundle.open(tiny_bundle), precision="int8")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_searches_that_overlap_do_not_disturb_each_other(tiny_bundle: Path, backend: str) -> None:
    """Buffers are used again only after a search has been let go of."""
    bundle, options = Bundle.open(tiny_bundle), search_options()
    with open_backend(backend, bundle, precision="fp32") as opened:
        one, other = (opened.begin(PICTURES[half], options, with_alphas=True) for half in (slice(6), slice(6, 12)))
        bias = np.zeros(len(VOCABULARY), np.float32)
        apart = [[part.tokens for part in (one.advance(bias), other.advance(bias))] for _ in range(4)]
        again = opened.begin(PICTURES[:6], options, with_alphas=True)
        together = opened.begin(PICTURES[6:], options, with_alphas=True)
        del one, other
        for tokens, others in apart:
            np.testing.assert_array_equal(again.advance(bias).tokens, tokens)
            np.testing.assert_array_equal(together.advance(bias).tokens, others)


def test_sessions_with_shapes_of_their_own_caption_as_the_reference(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX Runtime runs on a GPU, all in one thread; here it captures nothing."""
    opened, threads = engine.backends.ort._Graph._opened, set()

    def watched(*given: Any) -> Any:
        threads.add(threading.current_thread().name)
        return opened(*given)

    monkeypatch.setattr(engine.backends.ort, "_CAPTURING", {"CPUExecutionProvider": {}})
    monkeypatch.setattr(engine.backends.ort._Graph, "_opened", watched)
    for beam in (1, 3):
        expected = hypotheses(tiny_bundle, backend="pytorch", beam=beam)
        assert_same(hypotheses(tiny_bundle, backend="ort", beam=beam), expected)
    assert threads == {"saccade-onnxruntime_0"}


def test_where_a_capture_is_refused_the_graph_runs_as_it_is(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = engine.backends.ort._Graph._opened

    def refusing(graph: Any, providers: Any, sizes: Any = ()) -> Any:
        if sizes:
            raise RuntimeError("no capture here")
        return opened(graph, providers)

    monkeypatch.setattr(engine.backends.ort, "_CAPTURING", {"CPUExecutionProvider": {}})
    monkeypatch.setattr(engine.backends.ort._Graph, "_opened", refusing)
    with caplog.at_level("WARNING", logger="engine.backends.ort"):
        found = hypotheses(tiny_bundle, backend="ort")
    assert_same(found, hypotheses(tiny_bundle, backend="pytorch"))
    assert {*caplog.messages} == {
        f"{name}.onnx runs without a CUDA graph: no capture here" for name in ("encoder", "step")
    }


@pytest.mark.gpu
@pytest.mark.parametrize("beam", [1, 3, 5])
@pytest.mark.parametrize("backend", ["ort-tensorrt", "ort-cuda", "pytorch-cuda"])
@pytest.mark.parametrize(("kind", "places"), [("tiny_bundle", 16), ("pooled_bundle", 36)])
def test_backends_on_a_gpu_caption_as_the_reference(
    kind: str, places: int, backend: str, beam: int, request: pytest.FixtureRequest
) -> None:
    skip_without(backend)
    bundle = request.getfixturevalue(kind)
    expected = hypotheses(bundle, backend="pytorch", beam=beam)
    assert_same(hypotheses(bundle, backend=backend, precision="fp32", beam=beam), expected, places=places)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["tiny_bundle", "pooled_bundle"])
def test_the_graphs_that_pytorch_captures_on_a_gpu_caption_as_the_reference(
    kind: str, precision: Precision, request: pytest.FixtureRequest
) -> None:
    """Run here without a GPU, and so without the capture. Of 16 bits, only that few captions change."""
    bundle = Bundle.open(request.getfixturevalue(kind))
    opened = open_pytorch_cuda(bundle, threads=1, precision=precision, device="cpu")
    found = Captioner(bundle, opened, CaptionOptions(search=search_options())).caption_pixels(PICTURES)
    expected = hypotheses(bundle.path, backend="pytorch")
    same = sum(a[0].tokens == b[0].tokens for a, b in zip(found, expected, strict=True))
    assert same >= {"fp32": 12, "fp16": 11, "bf16": 8}[precision]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_graph_can_be_run_by_itself(tiny_bundle: Path, backend: str) -> None:
    """For comparisons: the same outputs, by name, in float32, from every backend."""
    bundle = Bundle.open(tiny_bundle)
    with open_backend("pytorch", bundle) as reference, open_backend(backend, bundle, precision="fp32") as opened:
        expected = reference.run("encoder", {"pixels": PICTURES})
        found = opened.run("encoder", {"pixels": PICTURES})
        assert found.keys() == expected.keys() == {"annotations", "keys", "hidden", "cell"}
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, abs=1e-4)


def test_a_runtime_that_is_installed_but_broken_is_told_from_a_missing_one(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_backend.py").write_text("raise ImportError('libruntime.so.7: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    entry = BackendEntry("broken_backend", "runtime", "cpu")
    with pytest.raises(
        BackendError, match=r"runtime is installed but does not import \(libruntime\.so\.7: .*reinstall"
    ):
        entry.open(Bundle.open(tiny_bundle), threads=0)


@pytest.fixture
def opened(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """A copy of the bundle to damage behind the back of its checks."""
    return Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_a_graph_that_the_runtime_does_not_load_is_a_backend_error(opened: Bundle) -> None:
    (opened.path / opened.graph("step").file).write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"ONNX Runtime .* cannot load .*step\.onnx"):
        open_backend("ort", opened)


def test_weights_that_do_not_fit_are_a_backend_error(opened: Bundle) -> None:
    (opened.path / CHECKPOINT).write_bytes(b"no weights")
    with pytest.raises(BackendError, match=r"checkpoint\.safetensors does not fit the model"):
        open_backend("pytorch", opened)


def test_a_bundle_without_weights_tells_the_pytorch_backend_where_to_get_them(opened: Bundle) -> None:
    files = {name: entry for name, entry in opened.manifest.files.items() if name != CHECKPOINT}
    slim = replace(opened, manifest=replace(opened.manifest, files=files))
    with pytest.raises(BackendError, match=r"exported without its weights.*--with-checkpoint"):
        open_backend("pytorch", slim)


def test_the_model_of_the_manifest_is_read_strictly(opened: Bundle) -> None:
    model = {"encoder": opened.manifest.model["encoder"] | {"colour": 1}, "decoder": None}
    odd = replace(opened, manifest=replace(opened.manifest, model=model))
    with pytest.raises(BackendError, match="model of the manifest: unknown key colour"):
        open_backend("pytorch", odd)
