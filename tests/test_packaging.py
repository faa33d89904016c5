"""The wheel: builds, and works from another folder."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import mmgym

ROOT = Path(mmgym.__file__).resolve().parents[1]


def test_the_wheel_works_when_installed(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stdout + built.stderr
    wheel = next((tmp_path / "dist").glob("mmgym-*.whl"))
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    assert subprocess.run(install, timeout=240).returncode == 0
    script = f"""
import pathlib, gymnasium, mmgym.baselines, mmgym.agents.config
assert pathlib.Path(mmgym.__file__).is_relative_to(pathlib.Path({str(tmp_path / "empty")!r})), mmgym.__file__
print(mmgym.baselines.optimal_policy("mmgym/AvellanedaStoikov-v0", num_steps=10).optimum)
print(mmgym.agents.config.load_config("ppo", "mmgym/AvellanedaStoikov-v0").algorithm)
assert (pathlib.Path(mmgym.__file__).parent / "py.typed").exists()
"""
    # the dependencies come from this environment's folder; its own editable install is not seen through PYTHONPATH
    environment = {"PYTHONPATH": sysconfig.get_paths()["purelib"], "PATH": "/usr/bin:/bin"}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "numba")
    run = [str(python), "-c", script]
    found = subprocess.run(run, capture_output=True, text=True, timeout=240, cwd=tmp_path, env=environment)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("65.3233049766")
    assert found.stdout.split()[1] == "ppo"
    helped = subprocess.run(
        [str(tmp_path / "empty" / "bin" / "mmgym"), "list"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert "mmgym/GLFT-v0" in helped.stdout, helped.stderr
