"""METEOR, SPICE and the PTB tokenizer: the true ones where they are installed, and how absence and failure end."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from saccade.errors import BackendError, DataError
from training.java_metrics import CORENLP, CORENLP_FILES, METRICS, open_metrics, ptb_tokenise

needs_java = pytest.mark.skipif(
    not (shutil.which("java") and importlib.util.find_spec("pycocoevalcap")),
    reason="needs java on the PATH and the extra metrics (pycocoevalcap)",
)

CONVERSATION = """
import sys
images = 0
for line in sys.stdin:
    print(line, end="", file=sys.stderr, flush=True)
    if line.startswith("SCORE"):
        print("1.0 2.0", flush=True)
    else:
        images = line.count("|||")
        print("0.1\\n" * images + "0.25", flush=True)
"""


class Fake:
    """A `java` and a pycocoevalcap that are files of the test."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.package = folder / "pycocoevalcap"
        for name in ("meteor", "spice/lib", "tokenizer"):
            (self.package / name).mkdir(parents=True)
        (self.package / "__init__.py").touch()
        (self.package / "tokenizer/ptbtokenizer.py").write_text("PUNCTUATIONS = ['.', ',']\n")
        for name in ("pycocoevalcap", "pycocoevalcap.tokenizer", "pycocoevalcap.tokenizer.ptbtokenizer"):
            patch.delitem(sys.modules, name, raising=False)
        patch.syspath_prepend(folder)
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def java(self, script: str) -> None:
        """Make `java` a shell script; it runs in any folder and knows its own as $HERE."""
        program = self.folder / "java"
        program.write_text(f"#!/bin/sh\nHERE='{self.folder}'\n{script}\n")
        program.chmod(0o755)

    def install_corenlp(self) -> None:
        for name in CORENLP_FILES:
            (self.package / "spice/lib" / name).touch()

    @property
    def process_is_gone(self) -> bool:
        try:
            os.kill(int((self.folder / "pid").read_text()), 0)
        except ProcessLookupError:
            return True
        return False


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch)


@needs_java
@pytest.mark.slow
def test_meteor_of_13_systems_is_the_published_one(shared: Path) -> None:
    path = shared / "data/metric_fixtures/where_image2_flickr8k.json.gz"
    fixture = json.loads(gzip.decompress(path.read_bytes()))
    references = [[re.findall("[a-z0-9]+", text.lower()) for text in texts] for texts in fixture["references"]]
    with open_metrics(["meteor"]) as metrics:
        found = {
            system["name"]: metrics["METEOR"]([caption.split() for caption in system["captions"]], references)
            for system in fixture["systems"]
        }
    assert len(found) == 13
    for system in fixture["systems"]:
        assert found[system["name"]] == pytest.approx(system["pycocoevalcap_1_2"]["METEOR"], rel=0, abs=1e-9)
        assert found[system["name"]] == pytest.approx(system["published"]["METEOR"], rel=0, abs=1e-9)


@needs_java
def test_meteor_takes_an_unknown_word_for_a_wrong_one_and_tells_letters_apart_in_any_locale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    with open_metrics(["meteor"]) as metrics:
        meteor = metrics["METEOR"]
        unknown = meteor([["a", "<unk>", "runs"]], [[["a", "<unk>", "runs"]]])
        assert unknown == meteor([["a", "zebra", "runs"]], [[["a", "<unk>", "runs"]]]) > 0
        assert meteor([["<unk>"]], [[["<unk>"]]]) == meteor([[]], [[["a", "dog"]]]) == 0
        assert meteor([["café"]], [[["caf?"]]]) == 0
        assert meteor([["café"]], [[["café"]]]) == 1


@needs_java
def test_the_ptb_tokenizer_cuts_as_coco_caption_does() -> None:
    """Its list of punctuation has brackets in capitals, so that those of lower-cased sentences stay."""
    sentences = ['A man\'s t-shirt, "red" (<unk>)...', "", "Un café\u2028noir", "one\ntwo", ""]
    assert ptb_tokenise(sentences) == [
        ("a", "man", "'s", "t-shirt", "red", "-lrb-", "<unk>", "-rrb-"),
        (),
        ("un", "café", "noir"),
        ("one", "two"),
        (),
    ]


@pytest.mark.parametrize("name", METRICS)
def test_a_missing_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"pip install 'saccade\[metrics\]'"), open_metrics([name]):
        pass


def test_a_missing_java_is_told_before_anything_is_scored(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install_corenlp()
    monkeypatch.setenv("PATH", "")
    for name, (title, _) in METRICS.items():
        expected = f"{title} needs Java, and there is no java on the PATH: install Java 17"
        with pytest.raises(BackendError, match=expected), open_metrics([name]):
            pass
    with pytest.raises(BackendError, match="the PTB tokenizer needs Java"):
        ptb_tokenise(["a"])


def test_missing_models_of_spice_are_named_with_their_source_and_place(fake: Fake) -> None:
    with pytest.raises(BackendError) as error, open_metrics(["spice"]):
        pass
    for part in (*CORENLP_FILES, CORENLP, str(fake.package / "spice/lib")):
        assert part in str(error.value)


def test_spice_is_read_from_what_java_prints(fake: Fake) -> None:
    """Java 17 can write neither the cache nor the JSON file of SPICE, so neither is asked for."""
    fake.install_corenlp()
    fake.java(
        'echo "$@" > "$HERE/arguments"; for last; do :; done; cp "$last" "$HERE/captions"\n'
        r'printf "All tuples\n  f-score:\t0.204 (SPICE metric)\n\nColor tuples\n  f-score:\t0.5 (SPICE metric)\n"'
    )
    with open_metrics(["spice"]) as metrics:
        assert metrics["SPICE"]([["a", "<unk>"]], [[["a", "<unk>"], ["dog"]]]) == 0.204
    (image,) = json.loads((fake.folder / "captions").read_text())
    assert image["refs"] == ["a <unk>", "dog"]
    assert re.fullmatch(r"a \w+", image["test"])
    arguments = (fake.folder / "arguments").read_text().split()
    assert not {"-cache", "-out", "-silent"} & set(arguments)


def test_a_failing_java_is_told_with_what_it_said(fake: Fake) -> None:
    fake.install_corenlp()
    fake.java("echo 'Error: no memory' >&2; exit 1")
    with open_metrics(["spice"]) as metrics, pytest.raises(BackendError, match=r"SPICE failed .*\(Error: no memory\)"):
        metrics["SPICE"]([["a"]], [[["a"]]])
    with (
        pytest.raises(BackendError, match=r"METEOR failed .*\(Error: no memory\)"),
        open_metrics(["meteor"]) as metrics,
    ):
        metrics["METEOR"]([["a"]], [[["a"]]])


def test_meteor_sums_up_what_it_counted_for_each_image(fake: Fake) -> None:
    """The answer is the last line; those of the single images before it are read too, so that a second corpus works."""
    (fake.folder / "conversation.py").write_text(CONVERSATION)
    fake.java(f'exec "{sys.executable}" "$HERE/conversation.py" 2> "$HERE/asked"')
    with open_metrics(["meteor"]) as metrics:
        for _ in range(2):
            assert metrics["METEOR"]([["a", "b|||c"], []], [[["x"], ["y"]], [["z"]]]) == 0.25
    asked = (fake.folder / "asked").read_text().splitlines()
    assert asked == ["SCORE ||| x ||| y ||| a b c", "SCORE ||| z ||| ", "EVAL ||| 1.0 2.0 ||| 1.0 2.0"] * 2


def test_meteor_ends_however_its_context_ends(fake: Fake) -> None:
    fake.java('echo $$ > "$HERE/pid"; echo 1.0; echo 0.1; echo no number; exec sleep 600')
    with pytest.raises(ValueError, match="no number"), open_metrics(["meteor"]) as metrics:
        metrics["METEOR"]([["a"]], [[["a"]]])
    assert fake.process_is_gone


def test_what_cannot_be_scored_is_refused_before_java_is_asked(fake: Fake) -> None:
    fake.install_corenlp()
    fake.java("exec sleep 600")
    with open_metrics(METRICS) as metrics:
        for metric in metrics.values():
            with pytest.raises(DataError, match="2 hypotheses for 1 images"):
                metric([["a"], ["b"]], [[["a"]]])


def test_a_tokenizer_that_loses_sentences_is_noticed(fake: Fake) -> None:
    fake.java("head -n 1")
    assert ptb_tokenise(["a dog , here ."]) == [("a", "dog", "here")]
    with pytest.raises(BackendError, match="made 1 lines of 2"):
        ptb_tokenise(["a dog", "a cat"])
