"""Files from others: whatever stands in them, nothing is imported, opened or unpickled, and errors name what is wrong.

Two ways of damage, both with fixed seeds: every field of a file is replaced by hostile values, and bytes are flipped,
cut, repeated or overwritten. A reader must then refuse the file by an error that names it, or read what works.
The long suite damages more than 10,000 files; the fast one the same kinds, fewer of each.
"""

import copy
import json
import math
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml

from mmgym import baselines
from mmgym.agents.benchmark import load_benchmark, plan
from mmgym.agents.benchmark_cell import run_cell
from mmgym.agents.benchmark_result import read_result
from mmgym.agents.benchmark_tables import summary_table, tidy_table
from mmgym.agents.checkpoints import restore_checkpoint
from mmgym.agents.config import config_names, load_config, shipped_folder
from mmgym.agents.learn_game import load_game
from mmgym.agents.model_files import ModelFileError
from mmgym.agents.train import build_env, build_model, load_model, train
from mmgym.baselines import frozen, kept
from mmgym.baselines.catalogue import problem_of
from mmgym.baselines.constrained import read_problem
from mmgym.baselines.tables import load_policy, read_table, write_table
from mmgym.models import mean_field_flow
from mmgym.models.mean_field_game import Game
from mmgym.models.mean_field_population import load_population
from mmgym.plain_files import UnreadableFile, parse_json, read_arrays, read_json
from mmgym.registration import check_foreign_environment

AS = "mmgym/AvellanedaStoikov-v0"
SMALL = {"num_steps": 5, "horizon": 0.05, "inventory_limit": 3.0}
PPO = {
    "n_envs": 4, "n_timesteps": 80, "n_steps": 5, "batch_size": 20, "n_epochs": 1, "gamma": 1.0, "policy": "MlpPolicy",
    "normalize": {"norm_obs": True, "norm_reward": True, "gamma": 1.0}, "policy_kwargs": {"net_arch": [4]},
}  # fmt: skip
SAC = {
    "n_envs": 4, "n_timesteps": 80, "learning_starts": 20, "buffer_size": 80, "batch_size": 8, "gamma": 1.0,
    "train_freq": 5, "policy_kwargs": {"net_arch": [4], "n_critics": 1},
}  # fmt: skip
EXACT = {"n_timesteps": 3, "gamma": 1.0, "net_arch": [4], "inner_steps": 2}
CONFIGS = {"ppo": PPO, "sac": SAC, "exact_gradient": EXACT}

# --- What happens while a file is read -------------------------------------------------------------------------------


class Watch:
    """Records what is opened, imported and unpickled while it is on."""

    def __init__(self):
        self.on, self.events = False, []
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        if self.on and event in ("open", "import", "pickle.find_class", "os.listdir", "os.system", "subprocess.Popen"):
            self.events.append((event, str(arguments[0]) if arguments else ""))

    def __enter__(self):
        self.events.clear()
        self.on = True
        return self

    def __exit__(self, *_):
        self.on = False


WATCH = Watch()


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """A folder on the import path with files that leave a mark where they are run."""
    folder = tmp_path_factory.mktemp("trap")
    mark = folder / "mark"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    with zipfile.ZipFile(folder / "evil.zip", "w") as archive:
        archive.writestr("data", pickle.dumps({"a": Path("x")}))
        archive.writestr("policy.pth", pickle.dumps({"a": Path("x")}))
    (folder / "evil.pkl").write_bytes(pickle.dumps(Path("x")))
    np.savez(folder / "evil.npz", a=np.array([Path("x")], dtype=object), allow_pickle=True)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("evil", None)


def hostile_values(trap):
    return [
        None, True, False, -1, 0, 1, 10**30, -(10**30), 1e308, -1e308, 0.5, math.nan, math.inf, "", "a" * 300,
        "evil:mmgym/AvellanedaStoikov-v0", "evil", str(trap / "evil.zip"), str(trap / "evil.npz"), str(trap / "evil"),
        str(trap / "evil.pkl"), "../evil", "/dev/zero", [], {}, [[]], [1, 2, 3], {"array": str(trap / "evil.npz")},
        {"dict": [["policy", str(trap / "evil.zip")]]}, {"call": "os.system"},
    ]  # fmt: skip


def untouched(trap, events):
    """Nothing of the trap was opened, imported or run, and nothing was unpickled."""
    for event, what in events:
        assert not what.startswith((str(trap), "/dev/")), (event, what)
        assert event not in ("pickle.find_class", "os.system", "subprocess.Popen"), (event, what)
        assert event != "import" or not what.startswith("evil"), (event, what)
    assert "evil" not in sys.modules
    assert not (trap / "mark").exists()


def test_the_trap_works(trap):
    """What the other tests would see if an id of a file were given to Gymnasium as it is, or a zip were unpickled."""
    with WATCH:
        gymnasium.make("evil:mmgym/AvellanedaStoikov-v0")
    assert (trap / "mark").exists()
    assert ("open", str(trap / "evil.py")) in WATCH.events
    with WATCH:
        pickle.loads((trap / "evil.pkl").read_bytes())
    assert ("pickle.find_class", "pathlib") in WATCH.events
    with pytest.raises(AssertionError):
        untouched(trap, WATCH.events)
    (trap / "mark").unlink()
    sys.modules.pop("evil")


# --- Every field, every hostile value --------------------------------------------------------------------------------


def places(value, path=()):
    """Paths of all fields of nested mappings and lists; of long lists the first two entries and the last."""
    if path:
        yield path
    if isinstance(value, dict):
        parts = list(value)
    elif isinstance(value, list):
        parts = sorted({*range(min(len(value), 2)), *([len(value) - 1] if value else [])})
    else:
        return
    for part in parts:
        yield from places(value[part], (*path, part))


def replaced(content, path, value):
    """A copy with one field replaced."""
    changed = copy.deepcopy(content)
    target = changed
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return changed


def without(content, path):
    """A copy without one field."""
    changed = copy.deepcopy(content)
    target = changed
    for part in path[:-1]:
        target = target[part]
    del target[path[-1]]
    return changed


def variants(content, trap, share, seed=0):
    """Copies of a content with one field replaced by a hostile value, a share of all, or left out, more of them."""
    random = np.random.default_rng(seed)
    for path in places(content):
        for value in hostile_values(trap):
            if random.random() < share:
                yield path, replaced(content, path, value)
        if random.random() < 10.0 * share:
            yield path, without(content, path)


def refused_or(read, errors, named, what):
    """The result of a reader, or None where it refuses, by an error of these types that names the file."""
    try:
        return read()
    except errors as error:
        text = str(error)
        assert named in text, (what, text)
        assert len(text) < 3000, (what, len(text))
        return None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each kind, and the checkpoint of one that was stopped."""
    import mmgym.agents.train as module

    root, models = tmp_path_factory.mktemp("runs"), {}
    patch = pytest.MonkeyPatch()
    for algorithm, settings in CONFIGS.items():
        file = root / f"{algorithm}.yml"
        file.write_text(yaml.safe_dump({AS: settings}))
        home, _ = train(str(file), AS, folder=root / algorithm, arguments=SMALL, progress=False)
        models[algorithm] = home / "model"
        if algorithm == "exact_gradient":
            continue
        save = module.save_checkpoint

        def save_and_stop(*arguments, save=save):
            save(*arguments)
            raise KeyboardInterrupt

        patch.setattr(module, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(
                str(file),
                AS,
                folder=root / f"{algorithm}-stopped",
                arguments=SMALL,
                checkpoint_steps=20,
                progress=False,
            )
        patch.undo()
        models[f"{algorithm}-checkpoint"] = root / f"{algorithm}-stopped" / "checkpoint"
    return models


def plays(policy):
    """A policy that was loaded plays within the box."""
    actions, _ = policy.predict(np.zeros((2, 2), np.float32))
    assert np.isfinite(actions).all()
    assert (np.abs(actions) <= 1.0).all()


def walk_model(source, trap, tmp_path, share):
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    content = json.loads((folder / "model.json").read_text())
    load_model(folder)  # imports what it needs
    count = refused = 0
    for path, changed in variants(content, trap, share):
        (folder / "model.json").write_text(json.dumps(changed))
        packages = {name.split(".")[0] for name in sys.modules}
        with WATCH:
            loaded = refused_or(lambda: load_model(folder), ModelFileError, "model", path)
        untouched(trap, WATCH.events)
        assert {name.split(".")[0] for name in sys.modules} == packages, path
        count, refused = count + 1, refused + (loaded is None)
        if loaded is not None:
            plays(loaded[0])
    return count, refused


@pytest.mark.parametrize("algorithm", list(CONFIGS))
def test_no_field_of_a_model_is_imported_opened_or_unpickled(algorithm, runs, trap, tmp_path):
    count, refused = walk_model(runs[algorithm], trap, tmp_path, 0.03)
    assert count > 60
    assert refused > 0.5 * count


@pytest.mark.long
@pytest.mark.parametrize("algorithm", list(CONFIGS))
def test_no_field_of_a_model_with_more_hostile_values(algorithm, runs, trap, tmp_path):
    count, refused = walk_model(runs[algorithm], trap, tmp_path, 0.15)
    assert count > 100
    assert refused > 0.5 * count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "evil:mmgym/AvellanedaStoikov-v0"}, "without module: in front"),
        ({"env": "CartPole-v1"}, "id of a registered mmgym market"),
        ({"env": "mmgym/Nothing-v0"}, "id of a registered mmgym market"),
        ({"arguments": {"colour": 3}}, "argument 'colour' of mmgym/AvellanedaStoikov-v0 is not allowed"),
        ({"layout": "w.zip"}, "must be a mapping of policy"),
        ({"steps": -1}, "steps = -1 must be a whole number from 0"),
        ({"steps": 1.5}, "steps = 1.5 must be a whole number"),
        ({"algorithm": "sac"}, "hyperparameters.algorithm = 'ppo' must be one of sac"),
    ],
)
def test_fields_of_a_model_are_refused_by_name(change, message, runs, trap, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(runs["ppo"], folder)
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**content, **change}))
    with WATCH, pytest.raises(ModelFileError, match=message):
        load_model(folder)
    untouched(trap, WATCH.events)


def test_a_network_larger_than_its_parameters_is_refused_before_memory_is_taken(runs, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(runs["ppo"], folder)
    content = json.loads((folder / "model.json").read_text())
    content["hyperparameters"]["hyperparameters"]["policy_kwargs"] = {"net_arch": [10_000] * 20}
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=r"more than 1900000000 weights, but parameters\.npz has"):
        load_model(folder)


def test_arrays_of_the_wrong_kind_are_refused_by_name(runs, tmp_path):
    """Other byte orders are read; text, other shapes and numbers that are not finite are not."""
    folder = tmp_path / "model"
    shutil.copytree(runs["ppo"], folder)
    arrays = read_arrays(folder / "parameters.npz")
    name = next(name for name, array in arrays.items() if array.ndim == 2)
    expected, _ = load_model(folder)[0].predict(np.zeros(2, np.float32))
    for value, message in (
        (arrays[name].astype(">f4"), None),
        (arrays[name].astype(str), "must be of numbers"),
        (arrays[name][:1], "but must be finite"),
        (np.full_like(arrays[name], np.nan), "but must be finite"),
        (arrays[name].astype(np.int64), "but must be finite"),
    ):
        np.savez(folder / "parameters.npz", **{**arrays, name: value})
        if message is None:
            np.testing.assert_array_equal(load_model(folder)[0].predict(np.zeros(2, np.float32))[0], expected)
        else:
            with pytest.raises(ModelFileError, match=message):
                load_model(folder)
    statistics = read_arrays(folder / "normalisation.npz")
    np.savez(folder / "parameters.npz", **arrays)
    for name, value in (("obs_rms.var", -1.0), ("obs_rms.mean", np.nan), ("obs_rms.count", -1.0)):
        np.savez(folder / "normalisation.npz", **{**statistics, name: np.full_like(statistics[name], value)})
        with pytest.raises(ModelFileError, match=f"normalisation.npz: {name}"):
            load_model(folder)


def resume_door(algorithm, checkpoint):
    """What `train --resume` does with a checkpoint of the runs above."""
    config = load_config(str(checkpoint.parents[1] / f"{algorithm}.yml"), AS)
    arguments = {**SMALL, "reward": "expected"}

    def resume(folder):
        venv = build_env(config, AS, arguments, 1, "expected")
        model = build_model(config, venv, 0, None)
        restored = restore_checkpoint(folder, model, config, AS, arguments, 0)
        venv.step(np.zeros((config.n_envs, 2), np.float32))
        return restored

    return resume


def walk_checkpoint(algorithm, source, trap, tmp_path, share):
    folder = tmp_path / "checkpoint"
    shutil.copytree(source, folder)
    resume = resume_door(algorithm, source)
    assert resume(folder)[0] > 0.0
    content = json.loads((folder / "model.json").read_text())
    count = refused = 0
    for path, changed in variants(content, trap, share):
        (folder / "model.json").write_text(json.dumps(changed))
        with WATCH:
            resumed = refused_or(lambda: resume(folder), ModelFileError, "checkpoint", path)
        untouched(trap, WATCH.events)
        count, refused = count + 1, refused + (resumed is None)
    (folder / "model.json").write_text(json.dumps(content))
    arrays = read_arrays(folder / "training.npz")
    for name, array in arrays.items():
        for value in (
            array.astype(str), array.ravel()[:0], np.array(3.0), np.full(array.shape, 10**9),
            np.full(array.shape, np.nan), np.full(array.shape, -(2**62)),
        ):  # fmt: skip
            np.savez(folder / "training.npz", **{**arrays, name: value})
            resumed = refused_or(lambda: resume(folder), ModelFileError, "checkpoint", name)
            count, refused = count + 1, refused + (resumed is None)
        np.savez(folder / "training.npz", **{key: kept for key, kept in arrays.items() if key != name})
        resumed = refused_or(lambda: resume(folder), ModelFileError, "checkpoint", name)
        assert resumed is None or (algorithm, name) == ("sac", "last_original_obs"), name  # only normalisation needs it
    return count, refused


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_no_field_of_a_checkpoint_is_imported_opened_or_unpickled(algorithm, runs, trap, tmp_path):
    count, refused = walk_checkpoint(algorithm, runs[f"{algorithm}-checkpoint"], trap, tmp_path, 0.01)
    assert refused > 0.7 * count > 60


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_no_field_of_a_checkpoint_with_more_hostile_values(algorithm, runs, trap, tmp_path):
    count, refused = walk_checkpoint(algorithm, runs[f"{algorithm}-checkpoint"], trap, tmp_path, 0.15)
    assert refused > 0.7 * count > 500


def test_the_checkpoint_of_another_run_or_with_a_foreign_state_is_refused(runs, tmp_path):
    """The state of the environment comes through the same door as `set_state`."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(runs["ppo-checkpoint"], folder)
    resume = resume_door("ppo", runs["ppo-checkpoint"])
    arrays = read_arrays(folder / "training.npz")
    np.savez(folder / "training.npz", **{**arrays, "env.inventory": np.full(4, 10**9)})
    with pytest.raises(ModelFileError, match=r"'inventory' = 1000000000 of row 0 is not allowed: .*from -3 to 3"):
        resume(folder)
    np.savez(folder / "training.npz", **arrays)
    content = json.loads((folder / "model.json").read_text())
    for change, message in (
        ({"seed": 1}, "of another run: its seed is 1, but must be 0"),
        ({"arguments": {**content["arguments"], "num_steps": 6}}, "of another run: its arguments"),
        ({"env": "mmgym/GLFT-v0"}, "of another run: its env is 'mmgym/GLFT-v0'"),
    ):
        (folder / "model.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(ModelFileError, match=message):
            resume(folder)
    position = content["generators"]["numpy"]
    bad = replaced(content, ("generators", "numpy"), [position[0], 10**6, *position[2:]])  # would be read past its end
    (folder / "model.json").write_text(json.dumps(bad))
    with pytest.raises(ModelFileError, match=r"generator numpy = .* is not allowed"):
        resume(folder)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of an agent's cell and of a market's policies: files and cells."""
    root = tmp_path_factory.mktemp("results")
    (root / "ppo.yml").write_text(yaml.safe_dump({AS: PPO}))
    (root / "tiny.yml").write_text(
        yaml.safe_dump({
            "seeds": [0], "environments": {AS: {"algorithms": [str(root / "ppo.yml")], "arguments": SMALL}},
        })
    )  # fmt: skip
    cells = {}
    for cell in plan(load_benchmark(root / "tiny.yml")):
        file = root / f"{cell['kind']}.json"
        file.write_text(json.dumps(run_cell(cell, root / "run")))
        cells[cell["kind"]] = (file, cell)
    return cells


@pytest.mark.parametrize("kind", ["agent", "policies"])
@pytest.mark.parametrize("share", [0.02, pytest.param(0.5, marks=pytest.mark.long)])
def test_no_field_of_a_benchmark_result_is_imported_opened_or_unpickled(kind, share, results, trap, tmp_path):
    """What is not refused makes tables."""
    source, cell = results[kind]
    file, content = tmp_path / "result.json", json.loads(source.read_text())
    read_result(source, cell)
    count = refused = 0
    for path, changed in variants(content, trap, share):
        file.write_text(json.dumps(changed))
        with WATCH:
            result = refused_or(lambda: read_result(file, cell), ValueError, "result.json", path)
            if result is not None:
                summary_table(tidy_table([result]), cell["market"])
        untouched(trap, WATCH.events)
        count, refused = count + 1, refused + (result is None)
    assert refused > 0.3 * count > 15


# --- Configurations --------------------------------------------------------------------------------------------------


def hostile_settings(settings, trap, share, seed):
    random = np.random.default_rng(seed)
    for path in places(settings):
        for value in hostile_values(trap):
            if random.random() < share:
                yield path, value, replaced(settings, path, value)


def walk_configurations(names, trap, tmp_path, share, *, build):
    count = refused = 0
    for name in names:
        content = yaml.safe_load((shipped_folder() / f"{name}.yml").read_text(encoding="utf-8"))
        for place, (env_id, settings) in enumerate(content.items()):
            for path, value, changed in hostile_settings(settings, trap, share, place):
                file = tmp_path / f"{name}.yml"
                file.write_text(yaml.safe_dump({env_id: changed}))
                with WATCH:
                    config = refused_or(
                        lambda f=str(file), e=env_id: load_config(f, e), ValueError, name, (path, value)
                    )
                untouched(trap, WATCH.events)
                count, refused = count + 1, refused + (config is None)
                if config is None:
                    with pytest.raises(ValueError, match=str(path[0])):
                        load_config(str(file), env_id)
                elif build:
                    small = config._replace(n_envs=1)
                    build_model(small, build_env(small, env_id, {}, 1), 0, None)
    return count, refused


def test_hostile_values_of_shipped_configurations_are_refused_by_key(trap, tmp_path):
    count, refused = walk_configurations(config_names(), trap, tmp_path, 0.006, build=False)
    assert refused > 0.7 * count > 80


@pytest.mark.long
@pytest.mark.parametrize("name", config_names())
def test_hostile_values_of_a_shipped_configuration(name, trap, tmp_path):
    """All keys, a tenth of the values, all of a small file."""
    small = name.startswith("natural_gradient") or name.endswith("-defaults")  # files with few keys
    share = 1.0 if small else 0.1
    count, refused = walk_configurations([name], trap, tmp_path, share, build=False)
    assert refused > 0.7 * count > 20


@pytest.mark.parametrize(
    ("algorithm", "change", "message"),
    [
        ("ppo", {"clip_range": -1}, r"clip_range = -1 of .* must be a number or lin_<number>, the number above 0"),
        ("ppo", {"gae_lambda": -1}, "gae_lambda = -1 of .* must be a number from 0 to 1"),
        ("ppo", {"normalize": {"norm_obs": 5, "gamma": 1.0}}, r"normalize = {.*5.*} of .*norm_obs: true or false"),
        ("ppo", {"n_steps": 0}, "n_steps = 0 of .* must be a whole number >= 1"),
        ("exact_gradient", {"net_arch": [-1]}, r"net_arch = \[-1\] of .* must be a list of whole numbers >= 1"),
        ("ppo", {"policy_kwargs": {"net_arch": [-1]}}, r"policy_kwargs = .*net_arch: a list of whole numbers >= 1"),
        ("ppo", {"policy_kwargs": {"activation_fn": "os.system"}}, "policy_kwargs = .* must be"),
        ("ppo", {"policy": "CnnPolicy"}, "policy = 'CnnPolicy' of .* must be MlpPolicy"),
        ("ppo", {"learning_rate": "1e-3"}, "learning_rate = '1e-3' of .* write 1.0e-3"),
        ("ppo", {"n_steps": 1, "n_envs": 1}, "n_envs \\* n_steps = 1 of .* must be at least 2"),
        ("ppo", {"n_steps": 10**9}, "n_envs \\* n_steps = 4000000000 of .* must be at most 200000000"),
        ("sac", {"tau": 0}, "tau = 0 of .* must be a number above 0"),
        ("sac", {"noise_std": 0.1}, "noise_std = 0.1 of .* needs noise_type"),
        ("sac", {"train_freq": [1, "episode"]}, "train_freq = .* must be in steps with n_envs = 4"),
    ],
)
def test_values_of_a_configuration_are_refused_by_key_value_and_range(algorithm, change, message, tmp_path):
    file = tmp_path / f"{algorithm}.yml"
    file.write_text(yaml.safe_dump({AS: {**CONFIGS[algorithm], **change}}))
    with pytest.raises(ValueError, match=message):
        load_config(str(file), AS)


def test_a_key_that_is_there_twice_is_refused_and_a_merged_one_is_not(tmp_path):
    file = tmp_path / "ppo.yml"
    text = yaml.safe_dump({AS: PPO})
    file.write_text(text + "  n_steps: 7\n")
    with pytest.raises(ValueError, match=r"ppo.yml is not YAML: the key 'n_steps' is there twice"):
        load_config(str(file), AS)
    file.write_text(f"base: &base {json.dumps(PPO)}\n{AS}:\n  <<: *base\n  n_steps: 7\n")
    assert load_config(str(file), AS).hyperparameters["n_steps"] == 7
    file.write_text("a: &a [*a]\n")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(str(file), AS)
    lines = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 9)]
    file.write_text("a0: &a0 [x]\n" + "\n".join(lines))
    with pytest.raises(ValueError, match="more than 100000 values"):
        load_config(str(file), AS)


BENCHMARK = {"title": "t", "seeds": [0, 1], "budgets": {"ppo": 100}, "environments": {AS: {"algorithms": ["ppo"]}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environments": {AS: {"algorithms": []}}}, r"algorithms = \[\] of .* at least one"),
        ({"environments": {"evil:mmgym/AvellanedaStoikov-v0": None}}, "without module: in front"),
        ({"environments": {"mine": {"env": "evil:mmgym/GLFT-v0"}}}, "without module: in front"),
        (
            {"environments": {"mmgym/MeanFieldTaker-v0": {"arguments": {"population": "crowd.npz"}}}},
            "population = 'crowd.npz' .* must be equilibrium or constant",
        ),
        ({"environments": {AS: {"policies": "hjb"}}}, "policies = 'hjb' of .* must be a list of names"),
        ({"title": "../../evil"}, "title = '../../evil' must be text"),
        ({"seeds": [2**32]}, "must be at most 4294967295"),
    ],
)
def test_a_benchmark_file_is_refused_by_key_value_and_range(change, message, trap, tmp_path):
    file = tmp_path / "b.yml"
    file.write_text(yaml.safe_dump({**BENCHMARK, **change}))
    with WATCH, pytest.raises(ValueError, match=message):
        load_benchmark(file)
    untouched(trap, WATCH.events)


def test_hostile_benchmarks_games_and_problems_are_refused_by_name(trap, tmp_path):
    """All keys of the shipped ones with all hostile values."""

    def read_constrained(file):
        problem = read_problem(yaml.safe_load(file.read_text()), str(file))
        if problem.environment is not None:
            check_foreign_environment(problem.environment.id, problem.environment.arguments, str(file))
        return problem

    readers = {
        "benchmark_quick": lambda file: plan(load_benchmark(file)),
        "learn_game": lambda file: load_game(str(file)),
        "constrain_3_2_2": read_constrained,
    }
    for name, read in readers.items():
        content = yaml.safe_load((shipped_folder() / f"{name}.yml").read_text(encoding="utf-8"))
        file, count = tmp_path / f"{name}.yml", 0
        file.write_text(yaml.safe_dump(content))
        read(file)
        for path, _value, changed in hostile_settings(content, trap, 0.1, 0):
            file.write_text(yaml.safe_dump(changed))
            with WATCH:
                refused_or(lambda read=read, file=file: read(file), (ValueError, OSError, TypeError), "", path)
            untouched(trap, WATCH.events)
            count += 1
        assert count > 20, name


# --- Damaged bytes ---------------------------------------------------------------------------------------------------


def damaged(whole, random):
    """A file with a byte changed, a bit flipped, or a piece cut out, repeated, overwritten or cut off."""
    content, size = bytearray(whole), len(whole)
    start = int(random.integers(size))
    length = int(random.integers(1, max(2, size // 4)))
    match int(random.integers(7)):
        case 0:
            content[start] = (content[start] + int(random.integers(1, 256))) % 256
        case 1:
            content[start] ^= 1 << int(random.integers(8))
        case 2:
            del content[start : start + length]
        case 3:
            content[start:start] = content[start : start + length]
        case 4:
            content[start : start + length] = random.bytes(length)
        case 5:
            content[start : start + length] = bytes(length)
        case _:
            del content[start:]
    return bytes(content)


def same_arrays(actual, expected):
    return all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True) if b is not None)


class Kinds:
    """Every kind of file that is read: its bytes, where they go, and what reads them and checks what came out."""

    def __init__(self, root, runs, results):
        self.root, self.runs, self.results = root, runs, results

    def model(self, name, algorithm="ppo"):
        folder = self.root / f"model-{algorithm}-{name}"
        shutil.copytree(self.runs[algorithm], folder)
        return folder / name, lambda: plays(load_model(folder)[0])

    def checkpoint(self, name, algorithm="sac"):
        folder = self.root / f"checkpoint-{algorithm}-{name}"
        shutil.copytree(self.runs[f"{algorithm}-checkpoint"], folder)
        resume = resume_door(algorithm, self.runs[f"{algorithm}-checkpoint"])
        return folder / name, lambda: resume(folder)

    def run_json(self):
        home = self.root / "run"
        shutil.copytree(self.runs["ppo"].parent, home)
        config = str(self.runs["ppo"].parents[1] / "ppo.yml")

        def resume():
            """A run that is finished is scored; one whose file lacks the score would be trained again: not here."""
            before = read_json(home / "run.json")
            if isinstance(before, dict) and not before.get("score"):
                raise UnreadableFile(f"{home / 'run.json'} has no score")
            train(config, AS, folder=home, arguments=SMALL, resume=True, progress=False)

        return home / "run.json", resume

    def result(self):
        source, cell = self.results["agent"]
        file = self.root / "result.json"
        shutil.copy(source, file)
        return file, lambda: summary_table(tidy_table([read_result(file, cell)]), cell["market"])

    def table(self):
        env = gymnasium.make(AS, **SMALL)
        policy = baselines.paper_policies(env)["random"]
        file = write_table(policy, env, self.root / "table.npz", deterministic=False)
        expected = read_table(file)[0]

        def read():
            loaded = read_table(file)[0]
            assert same_arrays((loaded.controls, loaded.weights), (expected.controls, expected.weights))
            load_policy(file, env)

        return file, read

    def population(self):
        arguments = {"num_steps": 4, "horizon": 0.04, "inventory_limit": 10.0, "signal_limit": 1}
        env = gymnasium.make("mmgym/MeanFieldTaker-v0", population="constant", **arguments)
        file = write_table(baselines.reference_policy(env), env, self.root / "population.npz")
        game = env.unwrapped.params.game
        expected = load_population(game, str(file))
        return file, lambda: same_arrays(load_population(game, str(file)), expected) or pytest.fail("another table")

    def solution(self):
        problem = problem_of(AS, **SMALL)
        solution = frozen.solve(problem)
        patch = pytest.MonkeyPatch()
        patch.setenv("MMGYM_CACHE_DIR", str(self.root / "cache"))
        kept.save_solution(problem, solution)
        file = kept.solution_file(problem)
        patch.undo()

        def read():
            with pytest.MonkeyPatch.context() as again:
                again.setenv("MMGYM_CACHE_DIR", str(self.root / "cache"))
                loaded = kept.load_solution(problem)
            assert loaded is None or np.array_equal(loaded.raw, solution.raw)
            assert loaded is None or np.array_equal(loaded.controls, solution.controls)

        return file, read

    def flow(self):
        game = Game.create(num_steps=4, horizon=0.04, inventory_limit=10.0, signal_limit=1)
        flow = mean_field_flow.constant_flow(game)
        file = self.root / "flow.npz"
        with file.open("wb") as stream:
            mean_field_flow.save_flow(flow, game, stream)

        def read():
            with file.open("rb") as stream:
                loaded = mean_field_flow.load_flow(stream, game)
            assert loaded is None or np.array_equal(loaded.mean_quotes, flow.mean_quotes)

        return file, read

    def configuration(self):
        file = self.root / "ppo.yml"
        file.write_text(yaml.safe_dump({AS: PPO}))
        return file, lambda: load_config(str(file), AS)

    def benchmark(self):
        file = self.root / "b.yml"
        file.write_text(yaml.safe_dump(BENCHMARK))
        return file, lambda: load_benchmark(file)

    def game(self):
        file = self.root / "game.yml"
        shutil.copy(shipped_folder() / "learn_game.yml", file)
        return file, lambda: load_game(str(file))

    def of(self, kind):
        return {
            "model.json": lambda: self.model("model.json"),
            "parameters.npz": lambda: self.model("parameters.npz"),
            "normalisation.npz": lambda: self.model("normalisation.npz"),
            "exact model.json": lambda: self.model("model.json", "exact_gradient"),
            "exact parameters.npz": lambda: self.model("parameters.npz", "exact_gradient"),
            "checkpoint model.json": lambda: self.checkpoint("model.json"),
            "checkpoint training.npz": lambda: self.checkpoint("training.npz"),
            "checkpoint parameters.npz": lambda: self.checkpoint("parameters.npz"),
            "run.json": self.run_json,
            "result": self.result,
            "table": self.table,
            "population": self.population,
            "solution": self.solution,
            "flow": self.flow,
            "configuration": self.configuration,
            "benchmark": self.benchmark,
            "game": self.game,
        }[kind]()


KINDS = (
    "model.json", "parameters.npz", "normalisation.npz", "exact model.json", "exact parameters.npz",
    "checkpoint model.json", "checkpoint training.npz", "checkpoint parameters.npz", "run.json", "result", "table",
    "population", "solution", "flow", "configuration", "benchmark", "game",
)  # fmt: skip
FEW, MANY = 20, 720  # damaged files of each kind
SLOW = {name: 300 for name in KINDS if name.startswith("checkpoint")} | {"normalisation.npz": 450}


def test_the_long_suite_damages_ten_thousand_files():
    assert sum(SLOW.get(kind, MANY) for kind in KINDS) >= 10_000


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, runs, results):
    return Kinds(tmp_path_factory.mktemp("kinds"), runs, results)


def damage_many(kinds, kind, count, seed):
    file, read = kinds.of(kind)
    read()
    whole, random = file.read_bytes(), np.random.default_rng([seed, KINDS.index(kind)])
    refused = 0
    for trial in range(count):
        file.write_bytes(damaged(whole, random))
        with WATCH:
            try:
                read()
            except (ValueError, OSError) as error:
                assert str(error), trial
                assert len(str(error)) < 3000, trial
                assert isinstance(error, ModelFileError | UnreadableFile) or file.name in str(error), (trial, error)
                refused += 1
        assert not [event for event in WATCH.events if event[0] in ("pickle.find_class", "os.system")], trial
    shutil.rmtree(file.parent) if file.parent != kinds.root else file.unlink()
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_by_name_or_read_right(kind, kinds):
    refused = damage_many(kinds, kind, FEW, 1)
    assert refused > 0 or kind in ("solution", "flow")  # those are solved again


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_refused_by_name_or_read_right(kind, kinds):
    count = SLOW.get(kind, MANY)
    refused = damage_many(kinds, kind, count, 2)
    assert refused > 0.2 * count or kind in ("solution", "flow")


# --- Single cases ----------------------------------------------------------------------------------------------------


def test_npz_files_are_checked_before_memory_is_taken(tmp_path):
    """A header that claims a million gigabytes, pickles, text where numbers are wanted, another byte order."""
    file = tmp_path / "a.npz"
    header = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000, 10000000), }"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", header.ljust(127) + b"\n" + bytes(80))
    with pytest.raises(UnreadableFile, match=r"a.npy has 80 bytes, but its shape .* needs 800000000000000"):
        read_arrays(file)
    np.savez(file, a=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableFile, match="plain numbers, booleans or text are allowed"):
        read_arrays(file)
    np.savez(file, a=np.arange(3, dtype=">i4"), b=np.asfortranarray(np.arange(6.0).reshape(2, 3)), c=np.array("text"))
    arrays = read_arrays(file)
    assert arrays["a"].dtype == np.dtype("=i4")
    np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    np.testing.assert_array_equal(arrays["b"], np.arange(6.0).reshape(2, 3))
    assert str(arrays["c"]) == "text"
    for path in (tmp_path, tmp_path / "none.npz", Path("/dev/zero")):
        with pytest.raises(UnreadableFile, match="is not a readable npz file"):
            read_arrays(path)


def test_json_files_are_read_as_plain_values(tmp_path):
    for text, message in (
        ("[" * 100_000, "is not readable JSON"),
        ("1" * 5000, "is not readable JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ("{", "is not readable JSON"),
    ):
        with pytest.raises(UnreadableFile, match=message):
            parse_json(text, "f.json")
    (tmp_path / "f.json").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "f.json", Path("/dev/zero")):
        with pytest.raises(UnreadableFile, match="is not readable JSON"):
            read_json(path)
    with pytest.raises(UnreadableFile, match=r"none\.json: there is no such file"):
        read_json(tmp_path / "none.json")


def test_weights_that_do_not_sum_to_one_are_never_scored(tmp_path):
    """In a table's file, in a table, and in the distribution of a policy."""
    env = gymnasium.make(AS, **SMALL)
    file = write_table(baselines.paper_policies(env)["random"], env, tmp_path / "t.npz", deterministic=False)
    arrays = read_arrays(file)
    for weights in (0.5 * arrays["weights"], -arrays["weights"], np.full_like(arrays["weights"], np.nan)):
        np.savez(file, **{**arrays, "weights": weights})
        with pytest.raises(ValueError, match=r"t.npz: weights .*(sum to 1|finite)"):
            load_policy(file, env)

    class Half(baselines.policy.StatelessPolicy):
        has_mode = False
        markov = True

        def act(self, observation):
            return np.zeros((*np.shape(observation)[:-1], 2), np.float32)

        def distribution(self, observations):
            return np.zeros((len(observations), 1, 2)), np.full((len(observations), 1), 0.5)

    with pytest.raises(ValueError, match=r"must be >= 0 and sum to 1, but the least is 0.5, and a sum is 0.5"):
        baselines.score(env, Half())


def test_a_table_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    env = gymnasium.make(AS, **SMALL)
    policies = baselines.paper_policies(env)
    file = write_table(policies["constant"], env, tmp_path / "t.npz")
    before = file.read_bytes()

    def full(stream, **arrays):
        stream.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(policies["hjb"], env, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def test_a_run_keeps_its_curve_and_leaves_no_older_checkpoint(tmp_path, monkeypatch):
    """A write that was killed between its two renames leaves checkpoint.old, and a later run removes it."""
    import mmgym.agents.train as module

    (tmp_path / "sac.yml").write_text(yaml.safe_dump({AS: SAC}))
    options = {"arguments": SMALL, "score_steps": 4, "progress": False}
    whole, _ = train(str(tmp_path / "sac.yml"), AS, folder=tmp_path / "whole", **options)
    save = module.save_checkpoint

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(str(tmp_path / "sac.yml"), AS, folder=tmp_path / "run", checkpoint_steps=40, **options)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "run" / "checkpoint", tmp_path / "run" / "checkpoint.old")
    folder, _ = train(str(tmp_path / "sac.yml"), AS, folder=tmp_path / "run", resume=True, **options)
    assert not [path for path in folder.iterdir() if path.name.startswith("checkpoint")]
    curves = [json.loads((home / "run.json").read_text())["curve"] for home in (whole, folder)]
    assert len(curves[0]) >= 4
    assert curves[0][0]["steps"] == 0
    assert curves[1] == curves[0]


@pytest.mark.parametrize("seed", [2**32, -1, 1.5, True])
def test_a_seed_out_of_range_is_refused_at_once(seed, tmp_path):
    with pytest.raises(ValueError, match=r"seed = .* must be a whole number from 0 to 4294967295"):
        train("ppo", AS, seed=seed, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_refuses_endings_and_seeds_before_it_computes(capsys, monkeypatch, tmp_path):
    import baselines as package
    from mmgym.agents.cli import main

    monkeypatch.setattr(package, "best_known_policy", None)  # nothing is computed
    for words, message in (
        (("solve", "--env", AS, "--output", "t.txt"), "--output t.txt: the name must end in .csv or .json"),
        (("calibrate", "glft", "none.csv", "--plot", "p.txt"), "--plot p.txt: the name must end in .png"),
        (("train", "ppo", "--env", AS, "--seed", "4294967296", "--folder", str(tmp_path / "r")), "seed = 4294967296"),
    ):
        assert main(list(words)) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_modules_are_imported_where_the_user_asks_for_it(trap, capsys):
    from mmgym.agents.cli import main

    assert main(["--import", "evil", "list"]) == 0
    assert (trap / "mark").exists()
    (trap / "mark").unlink()
    sys.modules.pop("evil")
    assert main(["--import", "no_such_module", "list"]) == 2
    assert "no_such_module" in capsys.readouterr().err
