"""METEOR 1.5, SPICE and the Penn Treebank tokenizer of coco-caption: the Java programs that pycocoevalcap brings.

They are run here directly, not through its Python classes. Of those, METEOR's waits for ever in its destructor once
Java has failed. SPICE's downloads its models unasked, writes into the installed package, and asks for a cache and a
JSON file for which Java 17 lacks the means: the JavaScript engine went with Java 15.

    with open_metrics(["meteor"]) as metrics:
        metrics["METEOR"](hypotheses, references)     # 0.24
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from saccade.errors import BackendError
from saccade.vocabulary import UNK
from training.metrics import Caption, check_corpus

Metric = Callable[[Sequence[Caption], Sequence[Sequence[Caption]]], float]
"""Tokenised hypotheses and references, as `training.metrics` takes them, to a corpus score in 0..1."""

CORENLP = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
CORENLP_FILES = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

_NEVER_MATCHES = "qunknownq"  # stands for an unknown word in a hypothesis: one word, of no language and no stem


def ptb_tokenise(sentences: Sequence[str]) -> list[tuple[str, ...]]:
    """Words of each sentence as coco-caption cuts them: Penn Treebank rules, lower case, punctuation dropped.

    The unknown word stays one word. Raises BackendError where pycocoevalcap or Java is missing, or the program fails.
    """
    jar = _package() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    punctuation = set(importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer").PUNCTUATIONS)
    # Java takes more characters for the end of a line than "\n", and lines are what keeps sentences apart.
    text = "".join(" ".join(sentence.split()) + "\n" for sentence in sentences)
    tokenizer = ("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
    lines = _run("the PTB tokenizer", ("-cp", str(jar), *tokenizer), text).splitlines()
    if len(lines) != len(sentences):
        raise BackendError(f"the PTB tokenizer made {len(lines)} lines of {len(sentences)}: use --tokenizer saccade")
    return [tuple(word for word in line.split() if word not in punctuation) for line in lines]


@contextmanager
def open_metrics(names: Collection[str]) -> Iterator[Mapping[str, Metric]]:
    """The named metrics ("meteor", "spice") by the names that tables use, ready to score several corpora.

    An unknown word never matches, as in `training.metrics`. Whatever happens, no Java process outlives the context.
    Raises BackendError at once where pycocoevalcap, Java or SPICE's models are missing, saying what to install.
    """
    with ExitStack() as stack:
        yield {METRICS[name][0]: stack.enter_context(METRICS[name][1]()) for name in names}


@contextmanager
def _open_meteor() -> Iterator[Metric]:
    """METEOR for English with its own normalisation, as coco-caption calls it; loading its tables takes seconds."""
    arguments = ("-Xmx2G", "-jar", str(_package() / "meteor" / "meteor-1.5.jar"))
    command = _command("METEOR", *arguments, "-", "-", "-stdio", "-l", "en", "-norm")
    with (
        tempfile.TemporaryFile() as errors,  # a pipe that nobody reads would block Java once it is full
        subprocess.Popen(  # noqa: S603 - a fixed command line
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        ) as process,
    ):
        stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        try:
            yield _Meteor(stdin, stdout, errors).score
        finally:
            process.kill()
            process.wait()
            with suppress(OSError):  # what is left to flush has no reader
                stdin.close()


class _Meteor:
    """The conversation with a running METEOR: statistics of every image, then the scores that they sum up to."""

    def __init__(self, stdin: IO[str], stdout: IO[str], errors: IO[bytes]) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._errors = errors

    def score(self, hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> float:
        check_corpus(hypotheses, references)
        statistics = [
            self._ask("SCORE", *map(_sentence, image_references), _sentence(hypothesis, known_only=True))
            for hypothesis, image_references in zip(hypotheses, references, strict=True)
        ]
        self._ask("EVAL", *statistics)  # answers with a score for each image, of which this is the first
        for _ in statistics[1:]:
            self._answer()
        return float(self._answer())

    def _ask(self, *parts: str) -> str:
        with suppress(BrokenPipeError):  # that it has ended shows in the answer
            self._stdin.write(" ||| ".join(parts) + "\n")
            self._stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        line = self._stdout.readline()
        if not line.endswith("\n"):
            self._errors.seek(0)
            raise _failure("METEOR", self._errors.read().decode(errors="replace"))
        return line.strip()


@contextmanager
def _open_spice() -> Iterator[Metric]:
    """SPICE with synonyms, as coco-caption calls it; three decimals, which is what it prints."""
    package = _package() / "spice"
    missing = [name for name in CORENLP_FILES if not (package / "lib" / name).is_file()]
    if missing:
        raise BackendError(
            f"SPICE needs {' and '.join(missing)} in {package / 'lib'}: unpack {CORENLP} and copy them there; "
            "nothing is downloaded unasked"
        )
    _command("SPICE")  # raises without Java

    def score(hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> float:
        check_corpus(hypotheses, references)
        images = [
            {"image_id": image, "test": _sentence(hypothesis, known_only=True), "refs": list(map(_sentence, refs))}
            for image, (hypothesis, refs) in enumerate(zip(hypotheses, references, strict=True))
        ]
        with tempfile.TemporaryDirectory() as folder:
            captions = Path(folder) / "captions.json"
            captions.write_text(json.dumps(images), encoding="utf-8")
            printed = _run("SPICE", ("-Xmx8G", "-jar", str(package / "spice-1.0.jar"), str(captions)))
        found = re.search(r"f-score:\s*(\d\.\d+) \(SPICE metric\)", printed)
        if found is None:
            raise _failure("SPICE", printed)
        return float(found[1])

    yield score


METRICS: dict[str, tuple[str, Callable[[], AbstractContextManager[Metric]]]] = {
    "meteor": ("METEOR", _open_meteor),
    "spice": ("SPICE", _open_spice),
}
"""By the name that the command line takes: the name in tables, and how to open it."""


def _sentence(words: Caption, *, known_only: bool = False) -> str:
    """One line without METEOR's separator; `known_only` replaces the unknown word by one that matches nothing."""
    kept = [_NEVER_MATCHES if known_only and word == UNK else word for word in words]
    return " ".join(" ".join(kept).replace("|||", " ").split())


def _run(what: str, arguments: Sequence[str], text: str = "") -> str:
    done = subprocess.run(  # noqa: S603 - a fixed command line
        _command(what, *arguments), input=text, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise _failure(what, done.stderr)
    return done.stdout


def _command(what: str, *arguments: str) -> list[str]:
    java = shutil.which("java")
    if java is None:
        raise BackendError(
            f"{what} needs Java, and there is no java on the PATH: install Java 17, "
            "on Debian with apt-get install openjdk-17-jre-headless"
        )
    # Whatever the locale: UTF-8 in and out, and a point in 0.5.
    return [java, "-Dfile.encoding=UTF-8", "-Duser.language=en", *arguments]


def _package() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(
            "METEOR, SPICE and the PTB tokenizer need pycocoevalcap, which is not installed: "
            "pip install 'saccade[metrics]'"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _failure(what: str, printed: str) -> BackendError:
    lines = printed.strip().splitlines() or ["it printed nothing"]
    return BackendError(f"{what} failed in Java ({lines[0][:200]}): Java 17 and enough free memory are what it needs")
