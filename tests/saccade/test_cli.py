"""The root command: quick, lazy, one line for every error, and the exit code that fits."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from saccade import __version__
from saccade.cli import SUBCOMMANDS, Subcommand
from tests.commands import COMMAND, Outcome, call, spawn

HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt", "numpy", "PIL", "rich", "cattrs")
OURS = ("training", "export", "engine", "benchmarks")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Fake":
    return Fake(tmp_path, monkeypatch, capsys)


class Fake:
    """A subcommand `fake` of any content."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._patch, self._capsys = folder, patch, capsys

    def run(self, body: str, *, imports: str = "", extra: str | None = None) -> Outcome:
        """Run a command with this body, in a module with these imports."""
        source = f"import click, os, sys\n{imports}\n@click.command()\ndef fake():\n    {body}\n"
        (self._folder / "fake_command.py").write_text(source)
        self._patch.syspath_prepend(self._folder)
        self._patch.setitem(SUBCOMMANDS, "fake", Subcommand("fake_command", "Fake.", extra))
        self._patch.delitem(sys.modules, "fake_command", raising=False)
        return call(self._capsys, "fake")


def test_help_imports_no_runtime_and_no_subcommand() -> None:
    code = (
        "import sys\n"
        "from saccade.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {(*HEAVY, *OURS)} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert done.stdout.startswith("Usage: ")


def test_help_takes_less_than_300_ms() -> None:
    """The best of ten runs, the start of Python included: what other processes take away is not ours."""

    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    assert any(seconds() < 0.3 for _ in range(10))


def test_help_lists_the_subcommands_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        outcome = call(capsys, flag)
        assert (outcome.code, outcome.err) == (0, "")
        listed = [line.split()[0] for line in outcome.out.partition("Commands:\n")[2].splitlines() if line[2] != " "]
        assert listed == list(SUBCOMMANDS)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f" {name} " in outcome.out.splitlines()[0]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"saccade, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "Usage: "),
        (["capton"], "No such command 'capton'"),
        (["--colour"], "No such option"),
        (["inspect"], "Missing argument 'BUNDLE'"),
        (["gallery", "/no/such/place"], "'/no/such/place' does not exist"),
        (["caption", ".", "--bundle", "x", "--beam", "many"], "'many' is not a valid integer"),
        (["caption", ".", "--bundle", "x", "--backend", "abacus"], "'abacus' is not one of 'auto'"),
    ],
)
def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str) -> None:
    outcome = call(capsys, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: ")
    assert problem in outcome.err


def test_a_command_that_ends_well_exits_with_0(fake: Fake) -> None:
    assert fake.run("click.echo('done')") == (0, "done\n", "")


def test_an_exit_code_of_a_command_is_kept(fake: Fake) -> None:
    assert fake.run("sys.exit(3)").code == 3


def test_an_error_is_one_line_on_stderr(fake: Fake) -> None:
    outcome = fake.run("raise DataError('one\\n  two:\\tthree')", imports="from saccade.errors import DataError")
    assert outcome == (1, "", "saccade: error: one two: three\n")


def test_a_bug_keeps_its_traceback(fake: Fake) -> None:
    with pytest.raises(ZeroDivisionError):
        fake.run("1 / 0")


def test_an_interruption_is_one_line_and_exits_with_130(fake: Fake) -> None:
    outcome = fake.run("raise KeyboardInterrupt")
    assert outcome.code == 130
    assert outcome.err.split("\n") == ["", "saccade: interrupted", ""]  # the first ends the line of the terminal's ^C


def test_a_missing_package_names_the_extra_that_brings_it(fake: Fake) -> None:
    outcome = fake.run("pass", imports="import absent.part", extra="train")
    assert outcome.error == "saccade fake needs absent, which is not installed: pip install 'saccade[train]'"


def test_a_missing_package_that_no_extra_brings_is_a_bug(fake: Fake) -> None:
    with pytest.raises(ModuleNotFoundError, match="absent"):
        fake.run("pass", imports="import absent")


def test_a_reader_that_leaves_early_causes_no_traceback(fake: Fake) -> None:
    outcome = fake.run("raise BrokenPipeError(32, 'Broken pipe')")
    assert (outcome.code, outcome.err) == (1, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_stdout_is_utf8_whatever_the_terminal(tmp_path: Path, encoding: str) -> None:
    """Captions are in any script; a file name that is not UTF-8 comes out as the bytes it has."""
    (tmp_path / "fake_command.py").write_text(
        "import click\n@click.command()\ndef fake(): click.echo('caf\\udce9.jpg: \\u0932\\u0921\\u093c \\u732b')\n"
    )
    code = (
        "import saccade.cli as cli\ncli.SUBCOMMANDS['fake'] = cli.Subcommand('fake_command', 'Fake.')\n"
        "cli.main(['fake'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={"PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": encoding},
        check=True,
    )
    assert done.stdout == b"caf\xe9.jpg: \xe0\xa4\xb2\xe0\xa4\xa1\xe0\xa4\xbc \xe7\x8c\xab\n"


def test_the_installed_command_does_the_same(tmp_path: Path) -> None:
    outcome = spawn("inspect", tmp_path)
    assert outcome.error.startswith(f"{tmp_path} is no bundle (no manifest.json in it): ")
