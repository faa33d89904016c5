"""Environments play the same without a folder to keep compiled kernels in, and without a compiler."""

import inspect
import json
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import mmgym
from mmgym.registration import ENVIRONMENTS

# A minimax solution without the compiler takes minutes.
IDS = {row.id: {} for row in ENVIRONMENTS}
IDS |= {"mmgym/RobustGLFT-v0": {"adversary": "random"}, "mmgym/RobustGLFTAdversary-v0": {"maker": "constant"}}


def played(ids, steps=12):
    """What single environments and batches of two put out."""
    outputs = {}
    for name, arguments in ids.items():
        for made in (gymnasium.make(name, **arguments), gymnasium.make_vec(name, 2, **arguments)):
            made.action_space.seed(3)
            numbers = np.ravel(made.reset(seed=5)[0]).tolist()
            for _ in range(steps):
                observations, rewards, *_ = made.step(made.action_space.sample())
                numbers += [*np.ravel(observations).tolist(), *np.ravel(rewards).tolist()]
            outputs[f"{name} {type(made.unwrapped).__name__}"] = numbers
    return outputs


@pytest.mark.long
def test_without_a_compiler(run_script):
    script = f"""
import json, os, warnings
os.environ["NUMBA_DISABLE_JIT"] = "1"
warnings.simplefilter("error")
import gymnasium, mmgym, numpy as np
{inspect.getsource(played)}
print(json.dumps(played({IDS!r})))
"""
    assert json.loads(run_script(script)) == played(IDS)


@pytest.mark.long
def test_without_a_folder_for_compiled_kernels(run_script, tmp_path):
    copy = tmp_path / "site" / "mmgym"
    left_out = shutil.ignore_patterns("__pycache__", "baselines", "agents")
    shutil.copytree(Path(mmgym.__file__).parent, copy, ignore=left_out)
    for folder in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        (folder / "__pycache__").touch()  # a file where a folder should be: nothing can be written there
    script = f"""
import json, os, sys, warnings
sys.path.insert(0, {str(copy.parent)!r})
os.environ |= {{"NUMBA_CACHE_DIR": "/dev/null/numba", "HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null/cache"}}
{inspect.getsource(played)}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import gymnasium, mmgym, numpy as np
    outputs = played({{"mmgym/HawkesFlow-v0": {{}}}})
assert mmgym.__file__.startswith({str(copy)!r}), mmgym.__file__
assert [(warning.category, "NUMBA_CACHE_DIR" in str(warning.message)) for warning in caught] == [(RuntimeWarning, True)]
print(json.dumps(outputs))
"""
    assert json.loads(run_script(script)) == played({"mmgym/HawkesFlow-v0": {}})
