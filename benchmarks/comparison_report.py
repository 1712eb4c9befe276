"""The page of a comparison: figures, charts, and the worst images with both captions and where both looked.

It loads nothing and runs nothing. Pictures are what the encoder was given.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.comparison import TensorErrors
from benchmarks.comparison_results import CandidateResult, CaptionComparison, Comparison, Layers, Tolerances
from benchmarks.line_chart import line_chart
from saccade.bundle import Bundle
from saccade.files import replaced
from saccade.hypotheses import Hypothesis
from saccade.preprocessing import load_image

_THUMBNAIL_PX = 160
_DARKEST = 0.8
_TENSORS = 8
_SAME = 2
"""Images with the same caption that are shown as well, for their attention."""

Case = tuple[CaptionComparison, tuple[Hypothesis, Hypothesis]]


def write_report(comparison: Comparison, bundle: Bundle, destination: Path, *, worst: int = 8) -> None:
    """Write the page, with so many images of each candidate. Raises OutputError if it cannot be written."""
    cases = [_worst(found, worst) for found in comparison.candidates]
    paths = dict.fromkeys(caption.image for found in cases for caption, _ in found)
    classes = {path: f"i{number}" for number, path in enumerate(paths)}
    parts = [*_head(comparison)]
    for found, shown in zip(comparison.candidates, cases, strict=True):
        parts += _candidate(found, shown, bundle, classes)
    page = resources.files(__package__).joinpath("comparison.html").read_text("utf-8")
    page = page.replace("{{title}}", escape(f"Comparison of {Path(comparison.bundle).name}"))
    pictures = (_picture(name, load_image(Path(path), bundle.manifest.preprocessing)) for path, name in classes.items())
    head, _, rest = page.partition("{{pictures}}")
    middle, _, foot = rest.partition("{{body}}")
    text = "\n".join([head, *pictures, middle, *parts, foot])
    with replaced(destination) as file:
        # A character reference can carry what UTF-8 cannot: the undecodable byte of a file's name.
        file.write(text.encode("utf-8", "xmlcharrefreplace"))


def _worst(found: CandidateResult, count: int) -> list[Case]:
    """Errors first, the widest margin before the others; then near-ties, then the least overlap of attention."""

    def badness(case: Case) -> tuple[int, float, float]:
        caption, _ = case
        rank = ["error", "near-tie", "same"].index(caption.outcome)
        return rank, -(caption.parting.margin if caption.parting else 0.0), caption.overlap

    cases = sorted(zip(found.captions, found.pairs, strict=True), key=badness)
    differing = sum(caption.outcome != "same" for caption in found.captions)
    return cases[: min(count, differing + _SAME)]


def _head(comparison: Comparison) -> Iterator[str]:
    search = comparison.search
    versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    yield f"<h1>{_text(Path(comparison.bundle).name)}, compared with its reference</h1>"
    yield f"<p>Reference: {_text(comparison.reference)}. {comparison.images} images, beam {search['beam']}.</p>"
    yield f'<p class="soft">{_text(versions)}. Bundle {comparison.fingerprint[:12]}.</p>'
    columns = ("candidate", "verdict", "diagnosis", "top-1", "top-k", "same", "near-ties", "errors", "overlap")
    yield '<h3>Verdicts</h3><div class="wide">' + _row(columns, "th", texts=(2,), start="<table><tr>")
    for found in comparison.candidates:
        counts = (str(found.count(outcome)) for outcome in ("same", "near-tie", "error"))
        shares = (f"{share:.2%}" for share in found.top)
        verdict = f'<span class="{found.verdict}">{found.verdict}</span>'
        values = [_text(found.name), verdict, _text(found.diagnosis), *shares, *counts, f"{found.overlap:.4f}"]
        yield _row(values, "td", texts=(2,))
    for absent in comparison.unavailable:
        reason = f"not available here: {absent.reason}"
        yield f'<tr><td>{_text(absent.name)}</td><td>-</td><td class="text soft" colspan="7">{_text(reason)}</td></tr>'
    yield "</table></div>"
    yield (
        '<p class="soft">top-1 and top-k: the same choices of words on the same inputs. Captions are the same, or part '
        "at a near-tie that rounding broke, or for an error. Overlap: what the attention of both shares, from 0 to 1."
        "</p>"
    )


def _candidate(
    found: CandidateResult, cases: Sequence[Case], bundle: Bundle, classes: Mapping[str, str]
) -> Iterator[str]:
    yield f'<section><div class="head"><h2>{_text(found.name)}</h2>'
    yield f'<span class="{found.verdict}">{found.verdict}</span><span class="soft">{_text(found.runs_on)}</span></div>'
    yield f'<p class="diagnosis">{_text(found.diagnosis)}</p>'
    if found.problems:
        yield "<ul>" + "".join(f"<li>{_text(problem)}</li>" for problem in found.problems) + "</ul>"
    yield from _charts(found)
    yield from _outputs(found)
    yield from _scores(found)
    if found.layers:
        yield from _layers(found.layers)
    if cases:
        yield "<h3>Worst images</h3>"
    for caption, pair in cases:
        yield from _case(caption, pair, bundle, classes[caption.image])
    yield "</section>"


def _charts(found: CandidateResult) -> Iterator[str]:
    names = {name: name.removeprefix("next_") for name in found.step}
    forced = {short: found.step[name].by_step for name, short in names.items()}
    drift = {short: found.drift[name].by_step for name, short in names.items()}
    agreement = {
        "top-1": [100 * step.top_1 for step in found.agreement],
        "top-k": [100 * step.top_k for step in found.agreement],
    }
    charts = {
        "Drift: along the reference's words with its own annotations and state, errors add up (scores in nats)": (
            line_chart(drift, x="step", y="deviation", logarithmic=True)
        ),
        "One step: on the reference's own inputs": line_chart(forced, x="step", y="deviation", logarithmic=True),
        "Same choices of words on the reference's inputs, percent": line_chart(agreement, x="step", y="percent"),
    }
    yield '<div class="charts">'
    for title, chart in charts.items():
        yield f"<figure><figcaption>{_text(title)}</figcaption>{chart}</figure>"
    yield "</div>"


def _outputs(found: CandidateResult) -> Iterator[str]:
    spreads = [f"{kind}{name}" for kind in ("", "relative ") for name in ("max", "mean", "p99")]
    columns = ("output", "deviation", "first step", *spreads, "cosine", "NaN", "Inf")
    yield '<h3>Outputs</h3><div class="wide">' + _row(columns, "th", start="<table><tr>")
    for name, errors in {**found.encoder, **found.step}.items():
        yield _errors(name, errors, found.tolerances)
    for name, errors in found.drift.items():
        yield _errors(f"{name}, drift", errors, found.tolerances, start='<tr class="drift">')
    yield "</table></div>"
    limits = f"tolerance {found.tolerances.deviation:g}, of scores {found.tolerances.score:g} nats"
    yield f'<p class="soft">Deviation: root mean square of the difference by that of the values; {limits}.</p>'


def _errors(name: str, errors: TensorErrors, tolerances: Tolerances, *, start: str = "<tr>") -> str:
    limit = tolerances.score if name.startswith("next_scores") else tolerances.deviation
    step = errors.first_step(limit) if len(errors.by_step) > 1 else None
    deviation = f"{errors.deviation:.1e}"
    if errors.deviation > limit and start == "<tr>":
        deviation = f'<span class="over">{deviation}</span>'
    spreads = [f"{value:.1e}" for one in (errors.absolute, errors.relative) for value in (one.max, one.mean, one.p99)]
    counts = [f"{errors.cosine:.7f}", str(errors.nan), str(errors.infinite)]
    return _row([name, deviation, "" if step is None else str(step), *spreads, *counts], "td", start=start)


def _scores(found: CandidateResult) -> Iterator[str]:
    if not found.scores:
        return
    columns = ("metric", "reference", "candidate", "change", "95 % interval")
    yield "<h3>Scores</h3>" + _row(columns, "th", start="<table><tr>")
    for name, change in found.scores.items():
        interval = f"{change.low:+.4f} to {change.high:+.4f}"
        values = (name, f"{change.reference:.4f}", f"{change.candidate:.4f}", f"{change.change:+.4f}", interval)
        yield _row(values, "td")
    yield '</table><p class="soft">Interval: bootstrap, paired over images.</p>'


def _layers(layers: Layers) -> Iterator[str]:
    yield "<h3>Inside the encoder</h3>"
    if not layers.tensors:
        yield f"<p>{_text(layers.note)}</p>"
        return
    enters = layers.enters
    place = layers.tensors.index(enters) + 1 if enters else None
    text = f"The error enters at {enters.tensor} ({enters.operator})." if enters else "No error beyond rounding."
    chart = line_chart(
        {"deviation": [one.deviation for one in layers.tensors]},
        x="tensor, in the order of computing",
        y="deviation",
        logarithmic=True,
        marked=place,
    )
    yield f'<p>{_text(text)}</p><div class="charts"><figure>{chart}</figure><div>'
    if place:
        yield from _around(layers, place)
    yield "</div></div>"


def _around(layers: Layers, place: int) -> Iterator[str]:
    """A table of the tensors before and after the one, counted from 1, at which the error enters."""
    yield _row(("tensor", "operator", "deviation", "before it"), "th", start="<table><tr>")
    first = max(place - _TENSORS // 2, 0)
    for one in layers.tensors[first : first + _TENSORS]:
        name = f"<b>{_text(one.tensor)}</b>" if one == layers.enters else _text(one.tensor)
        yield _row((name, one.operator, f"{one.deviation:.1e}", f"{one.before:.1e}"), "td")
    yield "</table>"


def _case(caption: CaptionComparison, pair: tuple[Hypothesis, Hypothesis], bundle: Bundle, name: str) -> Iterator[str]:
    yield f'<div class="case"><p><span class="{caption.outcome}">{caption.outcome}</span> '
    yield f'<span class="soft">{_text(caption.image)}</span></p>'
    if parting := caption.parting:
        yield (
            f"<p>At step {parting.step} its beam holds <q>{_text(parting.taken)}</q> instead of "
            f"<q>{_text(parting.kept)}</q>. The reference prefers the latter by "
            f"{parting.margin:.2g} nats; rounding explains {parting.explained:.2g}.</p>"
        )
    facts = (
        f"reference's score {caption.reference_score:.4f}, candidate's {caption.candidate_score:.4f}; the candidate's "
        f"caption under the reference {caption.score_under_reference:.4f}; overlap {caption.overlap:.4f}"
    )
    yield f'<p class="soft">{facts}</p><div class="glimpses">'
    for title, best in zip(("reference", "candidate"), pair, strict=True):
        yield f'<div class="side">{title}</div><div class="words">'
        yield from _words(best, bundle, name, caption.first_word)
        yield "</div>"
    yield "</div></div>"


def _words(best: Hypothesis, bundle: Bundle, name: str, differs: int | None) -> Iterator[str]:
    grid = bundle.manifest.dimensions.rows, bundle.manifest.dimensions.columns
    alphas = best.alphas if best.alphas is not None else np.zeros((len(best.tokens), grid[0] * grid[1]))
    for place, (word, seen) in enumerate(zip(bundle.vocabulary.decode(best.tokens), alphas, strict=True), start=1):
        mark = ' class="differs"' if place == differs else ""
        shade = _png(_shade(seen.reshape(grid)))
        yield f'<figure><span class="view {name}"><img alt="" src="{shade}"></span>'
        yield f"<figcaption{mark}>{_text(word)}</figcaption></figure>"


def _shade(alphas: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Black (rows, columns, 2) that leaves open what was looked at most."""
    light = np.nan_to_num(alphas) / max(float(np.nan_to_num(alphas).max()), 1e-12)
    opacity = np.rint(255 * _DARKEST * (1 - light)).astype(np.uint8)
    return np.stack([np.zeros_like(opacity), opacity], axis=-1)


def _png(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _picture(name: str, pixels: NDArray[np.uint8]) -> str:
    """A rule of CSS that shows a picture behind the shades of its words."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f".{name} {{ background-image: url(data:image/jpeg;base64,{data}); }}"


def _row(values: Iterable[str], cell: str, *, texts: Sequence[int] = (), start: str = "<tr>") -> str:
    """A row of a table; columns `texts` hold text. The values are HTML."""
    cells = (f"<{cell}{' class=text' if place in texts else ''}>{value}</{cell}>" for place, value in enumerate(values))
    return f"{start}{''.join(cells)}</tr>"


def _text(value: str) -> str:
    return escape(value)
