"""What is built and installed: everything, under one import name, beside other people's packages of common names."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmgym.baselines import optimal_policy

ROOT = Path(__file__).parents[1]
OPTIMUM = ("mmgym/AvellanedaStoikov-v0", {"num_steps": 1, "inventory_limit": 1, "horizon": 0.01})


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from an sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("mmgym-*.whl"))


def somebody_elses(folder: Path) -> Path:
    """A wheel with packages `agents` and `baselines`."""
    path = folder / "somebody_elses-1.0-py3-none-any.whl"
    files = {
        "agents/__init__.py": "owner = 'somebody else'",
        "baselines/__init__.py": "owner = 'somebody else'",
        "somebody_elses-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: somebody_elses\nVersion: 1.0\n",
        "somebody_elses-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "somebody_elses-1.0.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, record: "".join(f"{name},,\n" for name in (*files, record))}.items():
            archive.writestr(name, text)
    return path


@pytest.mark.long
def test_the_wheel_has_every_file_and_one_import_name(wheel):
    places = {"mmgym": "mmgym", "baselines": "mmgym/baselines", "agents": "mmgym/agents"}
    expected = {
        f"{place}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for file in (ROOT / folder).rglob("*")  # which does not follow links
        if file.is_file() and "__pycache__" not in file.parts
    }
    kinds = ("*.yml", "results/*/*.csv", "results/*/*.json")
    configs = [file for kind in kinds for file in (ROOT / "configs").glob(kind)]
    expected |= {f"mmgym/agents/configs/{file.relative_to(ROOT / 'configs').as_posix()}" for file in configs}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert packed == expected
        metadata = {name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert next(text for name, text in metadata.items() if name.endswith("top_level.txt")).split() == ["mmgym"]
    lines = next(text for name, text in metadata.items() if name.endswith("METADATA")).splitlines()
    assert "Requires-Python: >=3.11" in lines  # no upper end
    assert not any(line.startswith("License") for line in lines)


def installed(folder: Path, *wheels: Path) -> tuple[Path, tuple[object, ...], dict[str, Any]]:
    """An empty environment with wheels in it: its commands, pip, and options of `run`.

    The dependencies come from this environment's folder; its own editable install is not seen through PYTHONPATH.
    """
    venv.create(folder / "empty")
    commands = folder / "empty" / "bin"
    pip = (sys.executable, "-m", "pip", "--python", commands / "python", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", "--no-compile", *wheels)
    return commands, pip, {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(Path(np.__file__).parents[1])}}


@pytest.mark.long
def test_a_project_of_somebody_else_installed_beside_it(wheel, tmp_path):
    """The template in an empty environment, from the command line; its optimum is that of its own tests."""
    project = shutil.copytree(ROOT / "tests" / "third_party", tmp_path / "project")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, project)
    commands, _, options = installed(tmp_path, wheel, next(tmp_path.glob("mylab-*.whl")))
    env = ("--env", "mylab.linear_fills:mylab/LinearFills-v0")
    limits = ("--set", "running_penalty=0.0", "--set", "limit=200", "--set", "horizon=1.0", "--set", "num_steps=4")
    for words in (("solve",), ("score", "optimal", "constant")):
        assert "optimum 0.9025000000" in run(commands / "mmgym", words[0], *env, *limits, *words[1:], **options)


@pytest.mark.long
def test_installed_beside_packages_of_the_same_names(wheel, tmp_path):
    commands, pip, options = installed(tmp_path, somebody_elses(tmp_path), wheel)
    python, options["env"] = commands / "python", options["env"] | {"NUMBA_DISABLE_JIT": "1"}
    name, arguments = OPTIMUM
    script = f"""
import agents, baselines, gymnasium, mmgym.baselines
from mmgym.agents.config import load_config
assert agents.owner == baselines.owner == "somebody else"
assert mmgym.__file__.startswith({str(tmp_path / "empty")!r}), mmgym.__file__
gymnasium.make("mmgym/MeanFieldMaker-v0").reset(seed=0)
print(load_config("ppo", {name!r}).algorithm, mmgym.baselines.optimal_policy({name!r}, **{arguments!r}).optimum)
"""
    assert run(python, "-c", script, **options).split() == ["ppo", repr(optimal_policy(name, **arguments).optimum)]
    assert "mmgym/GLFT-v0" in run(commands / "mmgym", "list", **options)
    run(*pip, "uninstall", "--yes", "mmgym")
    script = "import agents, baselines, importlib.util; print(agents.owner, importlib.util.find_spec('mmgym'))"
    assert run(python, "-c", script, **options) == "somebody else None\n"
