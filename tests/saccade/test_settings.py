"""Where the values of options come from, what is refused in a configuration file, and what shells complete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.cli import SUBCOMMANDS, Subcommand
from saccade.settings_cli import Setting
from tests.commands import COMMAND, Argument, Outcome, call, spawn

FAKE = """
import json
from pathlib import Path
import click

def even(context, parameter, value):
    if value % 2:
        raise click.BadParameter(f"{value} is odd")
    return value // 2

@click.command()
@click.argument("paths", nargs=-1)
@click.option("--bundle", required=True, type=click.Path(path_type=Path))
@click.option("--beam", default=3, show_default=True)
@click.option("--n-best", default=1, type=click.IntRange(1, 9))
@click.option("--length-penalty", default=0.0)
@click.option("--max-length", type=int)
@click.option("--backend", default="auto", type=click.Choice(["auto", "ort"]))
@click.option("--quiet", is_flag=True)
@click.option("--with-plans/--without-plans", default=True)
@click.option("--set", "changes", multiple=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,))
@click.option("--image", "images", multiple=True, type=click.Path(exists=True))
@click.option("--format", "kind", default="png")
@click.option("--pairs", default=2, callback=even)
def fake(**values):
    click.echo(json.dumps(values, default=str))
"""

DEFAULTS = {
    "paths": [],
    "bundle": "b",
    "beam": 3,
    "n_best": 1,
    "length_penalty": 0.0,
    "max_length": None,
    "backend": "auto",
    "quiet": False,
    "with_plans": True,
    "changes": [],
    "seeds": [0],
    "images": [],
    "kind": "png",
    "pairs": 1,
}
"""What the fake is called with when it is told `--bundle b` and nothing else."""


class Place:
    """A working directory with a subcommand `fake`, a home for the user's file, and nothing else configured."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.user = folder / "home" / "saccade" / "config.toml"
        self.user.parent.mkdir(parents=True)
        (folder / "fake_command.py").write_text(FAKE)
        patch.chdir(folder)
        patch.setenv("XDG_CONFIG_HOME", str(folder / "home"))
        patch.delenv("SACCADE_CONFIG", raising=False)
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "fake_command", raising=False)
        self.subcommands = {name: SUBCOMMANDS[name] for name in ("scenes", "config", "completion")}
        self.subcommands["fake"] = Subcommand("fake_command", "Fake.")
        patch.setattr("saccade.cli.SUBCOMMANDS", self.subcommands)
        patch.delitem(sys.modules, "saccade.settings_cli", raising=False)  # it knows the subcommands since its import

    def write(self, text: str, name: str = "saccade.toml") -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)

    def run(self, *arguments: Argument) -> Outcome:
        return call(self._capsys, *arguments)

    def values(self, *arguments: Argument) -> dict[str, Any]:
        """What the fake is called with."""
        outcome = self.run(*arguments)
        assert (outcome.code, outcome.err) == (0, "")
        values: dict[str, Any] = json.loads(outcome.out)
        return values

    def shown(self, *arguments: Argument) -> dict[str, tuple[Any, str]]:
        """Value and origin of each option of the fake."""
        outcome = self.run(*arguments, "config", "show", "fake", "--json")
        assert (outcome.code, outcome.err) == (0, "")
        return {key: (one["value"], one["origin"]) for key, one in json.loads(outcome.out)["fake"].items()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, monkeypatch, capsys)


def test_the_command_line_wins_over_the_environment_over_the_project_over_the_user_over_the_default(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_FAKE_BEAM", "4")
    place.write("[fake]\nbeam = 5\n")
    place.user.write_text('[fake]\nbeam = 6\nbundle = "b"\n')
    assert place.values("fake", "--beam", "2")["beam"] == 2
    assert place.values("fake")["beam"] == 4
    monkeypatch.delenv("SACCADE_FAKE_BEAM")
    assert place.values("fake")["beam"] == 5
    (place.folder / "saccade.toml").unlink()
    assert place.values("fake")["beam"] == 6
    place.user.unlink()
    assert place.values("fake", "--bundle", "b")["beam"] == 3


def test_two_files_are_merged_key_by_key(place: Place) -> None:
    place.write("[fake]\nn_best = 2\n")
    place.user.write_text('[fake]\nn-best = 3\nbeam = 7\nbundle = "/b"\n')
    assert place.values("fake") == DEFAULTS | {"bundle": "/b", "n_best": 2, "beam": 7}


def test_a_file_sets_options_of_every_kind(place: Place) -> None:
    (place.folder / "a.png").touch()
    place.write(
        """
        [fake]
        bundle = "/b"
        beam = 5
        n-best = 9
        length-penalty = 1
        max-length = 7
        backend = "ort"
        quiet = true
        with-plans = false
        set = ["a = 1", "b"]
        seed = [4, -2]
        image = ["a.png"]
        format = "jpg"
        pairs = 8
        """
    )
    assert place.values("fake", "x") == {
        "paths": ["x"],
        "bundle": "/b",
        "beam": 5,
        "n_best": 9,
        "length_penalty": 1.0,
        "max_length": 7,
        "backend": "ort",
        "quiet": True,
        "with_plans": False,
        "changes": ["a = 1", "b"],
        "seeds": [4, -2],
        "images": ["a.png"],
        "kind": "jpg",
        "pairs": 4,
    }


def test_variables_have_the_names_of_the_options(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the command's function calls its parameter something else, as it does for --format and --set."""
    variables = {"BUNDLE": "b", "N_BEST": "2", "FORMAT": "jpg", "SET": "x y", "WITH_PLANS": "no", "SEED": "1 2"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SACCADE_FAKE_{name}", value)
    changed = {"n_best": 2, "kind": "jpg", "changes": ["x", "y"], "with_plans": False, "seeds": [1, 2]}
    assert place.values("fake") == DEFAULTS | changed


def test_a_variable_turns_off_the_flag_that_a_file_turns_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write('[fake]\nbundle = "b"\nquiet = true\n')
    assert place.values("fake")["quiet"] is True
    monkeypatch.setenv("SACCADE_FAKE_QUIET", "")
    assert place.values("fake")["quiet"] is True
    monkeypatch.setenv("SACCADE_FAKE_QUIET", "0")
    assert place.values("fake")["quiet"] is False


def test_the_command_line_replaces_a_list(place: Place) -> None:
    place.write('[fake]\nbundle = "b"\nseed = [1, 2]\n')
    assert place.values("fake", "--seed", "3")["seeds"] == [3]


def test_the_help_tells_the_default_that_holds(place: Place) -> None:
    place.write("[fake]\nbeam = 5\n")
    assert "--beam INTEGER                  [default: 5]" in place.run("fake", "--help").out


def test_a_required_option_is_missed_where_nothing_sets_it(place: Place) -> None:
    outcome = place.run("fake")
    assert outcome.code == 2
    assert "Missing option '--bundle'" in outcome.err


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("models/b", "sub/models/b"),
        ("../b", "sub/../b"),
        ("/models/b", "/models/b"),
        ("~/b", "/home/somebody/b"),
        ("~nobody-of-that-name/b", "sub/~nobody-of-that-name/b"),
    ],
)
def test_paths_start_at_the_folder_of_their_file(
    place: Place, monkeypatch: pytest.MonkeyPatch, written: str, meant: str
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    place.write(f'[fake]\nbundle = "{written}"\nset = ["{written}"]\n', "sub/my.toml")
    values = place.values("--config", "sub/my.toml", "fake")
    assert values["bundle"] == meant
    assert values["changes"] == [written]  # is no path


def test_a_chosen_file_is_read_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("[fake]\nbeam = 5\n")
    place.user.write_text("[fake]\nn-best = 5\n")
    place.write("[fake]\npairs = 4\n", "mine.toml")
    place.write("[fake]\npairs = 6\n", "other.toml")
    arguments = ("fake", "--bundle", "b")
    assert place.values("--config", "mine.toml", *arguments) == DEFAULTS | {"pairs": 2}
    monkeypatch.setenv("SACCADE_CONFIG", "mine.toml")
    assert place.values(*arguments) == DEFAULTS | {"pairs": 2}
    assert place.values("--config", "other.toml", *arguments) == DEFAULTS | {"pairs": 3}
    monkeypatch.setenv("SACCADE_CONFIG", "/dev/null")
    assert place.values(*arguments) == DEFAULTS


def test_a_chosen_file_has_to_be_there(place: Place) -> None:
    outcome = place.run("--config", "absent.toml", "fake", "--bundle", "b")
    assert outcome.code == 2
    assert "'absent.toml' does not exist" in outcome.err


def test_everything_wrong_is_told_at_once(place: Place) -> None:
    place.write('[fake]\nbeem = 2\nn-best = true\nbundle = "b"\n[faek]\nbeam = 1\n')
    place.user.write_text('[fake]\nbackend = "abacus"\nn-best = 10\nzzz = 1\n')
    options = (
        "bundle, beam, n-best, length-penalty, max-length, backend, quiet, with-plans, set, seed, image, format, pairs"
    )
    assert place.run("fake").error.split("; ") == [
        "saccade.toml: [fake] unknown key beem, did you mean beam?",
        "saccade.toml: [fake] n-best: expected an integer, got true",
        "saccade.toml: unknown table faek, did you mean fake?",
        f"{place.user}: [fake] backend: 'abacus' is not one of 'auto', 'ort'",
        f"{place.user}: [fake] n-best: 10 is not in the range 1<=x<=9",
        f"{place.user}: [fake] unknown key zzz, expected one of {options}",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("beam = true", "beam: expected an integer, got true"),
        ('beam = "5"', 'beam: expected an integer, got "5"'),
        ("beam = 5.0", "beam: expected an integer, got 5.0"),
        ("beam = [5]", "beam: expected an integer, got [5]"),
        ("length-penalty = false", "length-penalty: expected a number, got false"),
        ("quiet = 1", "quiet: expected true or false, got 1"),
        ('quiet = "yes"', 'quiet: expected true or false, got "yes"'),
        ("bundle = 3", "bundle: expected a string, got 3"),
        ("format = 2026-01-01", 'format: expected a string, got "2026-01-01"'),
        ('set = "a"', 'set: expected a list, got "a"'),
        ("set = [1]", "set: expected a string, got 1"),
        ("seed = [1, true]", "seed: expected an integer, got true"),
        ("paths = []", "unknown key paths, did you mean pairs?"),
        ("help = true", "unknown key help, expected one of bundle, "),
        ("without-plans = true", "unknown key without-plans, did you mean with-plans?"),
        ("changes = []", "unknown key changes, "),
        ("n-best = 1\nn_best = 2", "n_best is there twice, with - and with _"),
    ],
)
def test_what_does_not_fit_an_option_is_refused(place: Place, line: str, problem: str) -> None:
    place.write(f"[fake]\n{line}\n")
    assert place.run("fake", "--bundle", "b").error.startswith(f"saccade.toml: [fake] {problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("fake = 3", "fake has to be a table, [fake]"),
        ("[[fake]]", "fake has to be a table, [fake]"),
        ("beam = 3", "unknown table beam, expected one of scenes, fake"),
        ("[config]", "unknown table config, expected one of scenes, fake"),
    ],
)
def test_what_is_no_table_of_a_subcommand_is_refused(place: Place, text: str, problem: str) -> None:
    place.write(text)
    assert place.run("fake", "--bundle", "b").error == f"saccade.toml: {problem}"


def test_what_is_no_toml_is_refused_with_its_place(place: Place) -> None:
    place.write("[fake]\nbeam 3\n")
    assert place.run("fake").error.startswith("saccade.toml is no TOML: Expected '=' after a key")
    assert "line 2" in place.run("fake").error
    (place.folder / "saccade.toml").write_bytes(b'[fake]\nbundle = "caf\xe9"\n')
    assert place.run("fake").error.startswith("saccade.toml is no TOML: 'utf-8' codec can't decode")


def test_a_file_that_may_not_be_read_is_an_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    place.write("[fake]\nbeam = 3\n")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert (
        place.run("fake").error == "saccade.toml cannot be read (Permission denied): choose another file with --config"
    )


def test_a_home_that_is_no_folder_has_no_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place.folder / "fake_command.py"))
    assert place.values("fake", "--bundle", "b") == DEFAULTS


def test_only_the_table_of_what_runs_is_checked(place: Place) -> None:
    place.write("[scenes]\ncolour = 3\n")
    assert place.values("fake", "--bundle", "b") == DEFAULTS
    assert place.run("config", "show", "fake").code == 0
    assert "[scenes] unknown key colour" in place.run("scenes").error


def test_a_value_that_the_command_refuses_names_where_it_is_from(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write('[fake]\nbundle = "b"\nimage = ["absent.png"]\n')
    problem = "Invalid value for '--image': Path 'absent.png' does not exist."
    assert place.run("fake").error == f"saccade.toml: {problem}"
    place.write('[fake]\nbundle = "b"\npairs = 3\n')
    assert place.run("fake").error == "saccade.toml: Invalid value for '--pairs': 3 is odd"
    monkeypatch.setenv("SACCADE_FAKE_BEAM", "many")
    problem = "SACCADE_FAKE_BEAM: Invalid value for '--beam': 'many' is not a valid integer."
    assert place.run("fake", "--pairs", "4").error == problem
    assert place.run("config", "show", "fake").error == problem


def test_a_value_that_is_not_used_need_not_lead_anywhere(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write('[fake]\nbundle = "b"\nimage = ["absent.png"]\n')
    assert place.values("fake", "--image", ".")["images"] == ["."]
    assert place.shown()["image"] == (["absent.png"], "saccade.toml")
    monkeypatch.setenv("SACCADE_FAKE_IMAGE", "gone.png:lost.png")
    assert place.shown()["image"] == (["gone.png", "lost.png"], "SACCADE_FAKE_IMAGE")


def test_a_wrong_value_on_the_command_line_stays_wrong_usage(place: Place) -> None:
    place.write('[fake]\nbundle = "b"\nbeam = 2\n')
    outcome = place.run("fake", "--beam", "many")
    assert outcome.code == 2
    assert "Invalid value for '--beam': 'many' is not a valid integer" in outcome.err
    assert "saccade.toml" not in outcome.err


def test_a_broken_file_leaves_alone_what_has_no_options(place: Place) -> None:
    place.write("[[[")
    for arguments in (["--help"], ["--version"], ["completion", "zsh"], ["config", "path"], ["config", "--help"]):
        assert place.run(*arguments).code == 0


def test_the_files_that_are_read_are_told(place: Place) -> None:
    outcome = place.run("config", "path")
    assert outcome == (0, "", f"none: there is no saccade.toml and no {place.user}\n")
    place.user.touch()
    assert place.run("config", "path") == (0, f"{place.user}\n", "")
    place.write("")
    assert place.run("config", "path") == (0, f"saccade.toml\n{place.user}\n", "")
    place.write("", "mine.toml")
    assert place.run("--config", "mine.toml", "config", "path") == (0, "mine.toml\n", "")


def test_values_are_shown_with_their_origin(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write('[fake]\nlength_penalty = 1e-5\nset = ["a = \\"1\\"", "\\u007f"]\n')
    place.user.write_text('[fake]\nbundle = "models/b"\nbeam = 8\n')
    monkeypatch.setenv("SACCADE_FAKE_BEAM", "4")
    monkeypatch.setenv("SACCADE_FAKE_QUIET", "on")
    monkeypatch.setenv("SACCADE_FAKE_SEED", "1 2")
    assert place.run("config", "show", "fake") == (
        0,
        f"""\
[fake]
bundle = "{place.user.parent}/models/b"  # {place.user}
beam = 4  # SACCADE_FAKE_BEAM
n-best = 1  # default
length-penalty = 1e-05  # saccade.toml
# max-length: not set
backend = "auto"  # default
quiet = true  # SACCADE_FAKE_QUIET
with-plans = true  # default
set = ["a = \\"1\\"", "\\u007f"]  # saccade.toml
seed = [1, 2]  # SACCADE_FAKE_SEED
# image: not set
format = "png"  # default
pairs = 2  # default
""",
        "",
    )


def test_what_is_shown_is_a_file_with_the_same_values(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.folder / "a.png").touch()
    with monkeypatch.context() as environment:
        environment.setenv("SACCADE_FAKE_IMAGE", "a.png")
        environment.setenv("SACCADE_FAKE_PAIRS", "6")
        place.write('[fake]\nbundle = "models/b"\nset = ["x"]\n', "sub/my.toml")
        shown, values = place.shown("--config", "sub/my.toml"), place.values("--config", "sub/my.toml", "fake")
        text = place.run("--config", "sub/my.toml", "config", "show").out
    place.write(text)
    assert place.values("fake") == values
    assert values == DEFAULTS | {"bundle": "sub/models/b", "changes": ["x"], "images": ["a.png"], "pairs": 3}
    again = place.shown()
    assert {key: value for key, (value, _) in again.items()} == {key: value for key, (value, _) in shown.items()}
    assert {origin for value, origin in again.values() if value is not None} == {"saccade.toml"}


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALAR = st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT


@given(value=SCALAR | st.lists(SCALAR), origin=st.text())
def test_every_value_is_read_back_as_it_was(value: Any, origin: str) -> None:
    read = tomllib.loads(Setting("key", value, origin).toml)
    assert read == {"key": value}
    assert type(read["key"]) is type(value)


def test_a_value_that_toml_cannot_hold_is_a_comment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_FAKE_BUNDLE", "caf\udce9")
    assert place.values("fake")["bundle"] == "caf\udce9"
    assert place.shown()["bundle"] == ("caf\udce9", "SACCADE_FAKE_BUNDLE")
    text = place.run("config", "show", "fake").out
    assert "# bundle: TOML cannot hold what is not UTF-8; SACCADE_FAKE_BUNDLE\n" in text
    assert "bundle" not in tomllib.loads(text)["fake"]


def test_all_that_can_be_imported_is_shown_and_checked(place: Place) -> None:
    place.write("import absent\n", "lacking_command.py")
    place.subcommands["lacking"] = Subcommand("lacking_command", "Lacking.", "train")
    install = "saccade lacking needs absent, which is not installed: pip install 'saccade[train]'"
    outcome = place.run("config", "show")
    assert (outcome.code, outcome.err) == (0, f"[lacking] is left out: {install}\n")
    assert list(tomllib.loads(outcome.out)) == ["scenes", "fake"]
    assert place.run("config", "show", "lacking").error == install
    place.write("[scenes]\ncolour = 3\n[fake]\nbeam = 0.5\n[lacking]\nwhatever = 1\n")
    problems = place.run("config", "show").err.splitlines()[-1]
    assert "[scenes] unknown key colour" in problems
    assert "[fake] beam: expected an integer" in problems
    assert "whatever" not in problems


def test_a_subcommand_that_is_none_cannot_be_shown(place: Place) -> None:
    for name in ("capton", "config"):
        outcome = place.run("config", "show", name)
        assert outcome.code == 2
        assert f"'{name}' is not one of 'scenes', 'fake'" in outcome.err


def completions(line: str, *, folder: Path | None = None, code: str = "") -> tuple[list[str], list[str]]:
    """What bash is offered for the last word of a line, and which of our packages that imported."""
    words = line.split(" ")
    code = (
        f"import sys\nsys.path.insert(0, {str(folder)!r})\nimport saccade.cli as cli\n{code}\n"
        "try: cli.main()\nexcept SystemExit as end: print(end.code, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"_SACCADE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        capture_output=True,
        text=True,
        check=True,
    )
    (told,) = done.stderr.splitlines()
    end, *modules = told.split()
    assert end == "0"
    packages = ("training", "export", "engine", "benchmarks", "fake_command", "numpy", "torch")
    return [one.removeprefix("plain,") for one in done.stdout.split()], [one for one in modules if one in packages]


def test_subcommands_are_completed_without_importing_any() -> None:
    assert completions("saccade ") == (list(SUBCOMMANDS), [])
    assert completions("saccade sc") == (["score", "scenes"], [])
    assert completions("saccade --c") == (["--config"], [])


def test_a_broken_file_breaks_no_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saccade.toml").write_text("[[[")
    options, _ = completions("saccade scenes --", folder=Path(__file__).parents[2])
    assert options == ["--out", "--count", "--first-seed", "--size", "--format", "--help"]


def test_options_and_their_values_are_completed_by_the_module_of_their_subcommand(tmp_path: Path) -> None:
    (tmp_path / "fake_command.py").write_text(FAKE)
    code = "cli.SUBCOMMANDS['fake'] = cli.Subcommand('fake_command', 'Fake.')"
    assert completions("saccade fake --b", folder=tmp_path, code=code) == (
        ["--bundle", "--beam", "--backend"],
        ["fake_command"],
    )
    assert completions("saccade fake --backend ", folder=tmp_path, code=code) == (["auto", "ort"], ["fake_command"])
    assert completions("saccade config ")[0] == ["path", "show"]
    assert completions("saccade completion ")[0] == ["bash", "zsh", "fish"]


def test_a_missing_extra_is_silent_while_a_line_is_completed(tmp_path: Path) -> None:
    (tmp_path / "fake_command.py").write_text("import absent\n")
    code = "cli.SUBCOMMANDS['fake'] = cli.Subcommand('fake_command', 'Fake.', 'train')"
    assert completions("saccade fa", folder=tmp_path, code=code) == (["fake"], [])
    assert completions("saccade fake --", folder=tmp_path, code=code) == (["--help"], [])
    assert completions("saccade fake x ", folder=tmp_path, code=code) == ([], [])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_the_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "completion", shell)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"_SACCADE_COMPLETE={shell}_complete" in outcome.out
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=outcome.out, text=True, check=True)


def test_bash_completes(tmp_path: Path) -> None:
    program = tmp_path / "saccade"
    program.write_text(f"#!/bin/sh\nexec {COMMAND[0]} -c '{COMMAND[2]}' \"$@\"\n")
    program.chmod(0o755)
    (tmp_path / "script").write_text(spawn("completion", "bash").out)
    lines = (
        f"PATH={tmp_path}:$PATH; . {tmp_path}/script; complete -p saccade; COMP_WORDS=(saccade scenes --f) COMP_CWORD=2"
    )
    ask = f'{lines}; _saccade_completion saccade; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _saccade_completion saccade",
        "--first-seed --format",
    ]
