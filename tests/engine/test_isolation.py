"""saccade and engine need what they declare and nothing else: seen in an environment that holds only that."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from engine.backends.base import BACKENDS
from saccade.cli import SUBCOMMANDS
from tests.commands import Outcome

REPOSITORY = Path(__file__).parents[2]
RUNTIMES = (
    "torch",
    "torchvision",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "pycuda",
)
NEED_A_RUNTIME = {entry.module for entry in BACKENDS.values()} | {
    "engine.backends.cuda",
    "engine.backends.ovino_graphs",
}
COMMAND = "from saccade.cli import main; main()"


def core_distributions() -> Iterator[Distribution]:
    """What installing saccade without any extra brings, saccade itself left out."""
    seen, waiting = {"saccade"}, [distribution("saccade")]
    while waiting:
        for text in waiting.pop().requires or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if name not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                seen.add(name)
                waiting.append(distribution(name))
                yield waiting[-1]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the core dependencies, as links to where they are installed."""
    folder = tmp_path_factory.mktemp("core")
    for one in core_distributions():
        for name in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            (folder / name).symlink_to(Path(str(one.locate_file(name))))
    return folder


def python(core: Path, code: str, *arguments: str | Path) -> Outcome:
    """Run code where only the standard library, the core dependencies and this repository are to be found."""
    code = f"import sys; sys.path += {[str(core), str(REPOSITORY)]}; {code}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *arguments], capture_output=True, encoding="utf-8", check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def modules(package: str) -> list[str]:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    return [".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for file in files]


def test_the_environment_holds_the_core_dependencies_only(core: Path) -> None:
    absent = (*RUNTIMES, "pytest", "packaging", "pip")
    code = f"from importlib.util import find_spec; print([name for name in {absent} if find_spec(name)])"
    assert python(core, code) == (0, "[]\n", "")
    assert python(core, "import cattrs, click, numpy, PIL, rich") == (0, "", "")


@pytest.mark.parametrize("package", ["saccade", "engine"])
def test_every_module_imports_without_any_runtime(core: Path, package: str) -> None:
    names = [name for name in modules(package) if name not in NEED_A_RUNTIME]
    assert len(names) > 8
    assert python(core, f"import {', '.join(names)}") == (0, "", "")


def test_the_modules_left_out_do_need_their_runtime(core: Path) -> None:
    for name in NEED_A_RUNTIME:
        assert "ModuleNotFoundError" in python(core, f"import {name}").err


def test_the_help_lists_every_subcommand(core: Path) -> None:
    outcome = python(core, COMMAND, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    for name in SUBCOMMANDS:
        assert f"\n  {name} " in outcome.out


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_helps_or_says_what_to_install(core: Path, name: str) -> None:
    outcome = python(core, COMMAND, name, "--help")
    if (extra := SUBCOMMANDS[name].extra) is None:
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.startswith(f"Usage: saccade {name} ")
    else:
        assert f"saccade {name} needs " in outcome.error
        assert f"which is not installed: pip install 'saccade[{extra}]'" in outcome.error


def test_training_names_the_extra_it_needs(core: Path) -> None:
    outcome = python(core, COMMAND, "train", "x.toml")
    assert outcome.error == "saccade train needs torch, which is not installed: pip install 'saccade[train]'"


def test_the_doctor_says_what_to_install(core: Path) -> None:
    outcome = python(core, COMMAND, "doctor")
    assert (outcome.code, outcome.err) == (1, "")
    assert outcome.out.splitlines()[-1] == "! no backend runs: pip install 'saccade[cpu]'"


def test_a_bundle_can_be_inspected(core: Path, tiny_bundle: Path) -> None:
    outcome = python(core, COMMAND, "inspect", tiny_bundle)
    assert (outcome.code, outcome.err) == (0, "")
    assert "4 x 4 places" in outcome.out


def test_captioning_says_that_no_backend_is_there_and_what_to_install(core: Path, tiny_bundle: Path) -> None:
    outcome = python(core, COMMAND, "caption", tiny_bundle, "--bundle", tiny_bundle)
    assert outcome.error.startswith(
        "no backend works here, pip install 'saccade[cpu]' brings some; trt: pycuda is not installed: "
    )
    outcome = python(core, COMMAND, "caption", tiny_bundle, "--bundle", tiny_bundle, "--backend", "pytorch")
    assert outcome.error == "torch is not installed: pip install 'saccade[train]', or choose another --backend"
