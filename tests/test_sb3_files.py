"""Files of Stable-Baselines3, read without running what they hold: the same actions and scores as the models have."""

import io
import json
import pickle
import zipfile

import gymnasium
import numpy as np
import pytest

stable = pytest.importorskip("stable_baselines3")
contrib = pytest.importorskip("sb3_contrib")
torch = pytest.importorskip("torch")

from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

from mmgym import baselines  # noqa: E402
from mmgym.adapters.sb3 import make_sb3_env  # noqa: E402
from mmgym.agents.cli import main  # noqa: E402
from mmgym.agents.sb3_files import load_sb3_file  # noqa: E402

AS = "mmgym/AvellanedaStoikov-v0"
TICK = "mmgym/TickSpread-v0"
SMALL = {"num_steps": 8, "inventory_limit": 3.0}
FLAT = {"num_steps": 3, "lot": 100.0, "inventory_limit": 200.0, "actions": "flat"}
WIDE = {"net_arch": {"pi": [8], "vf": [5, 4]}, "activation_fn": torch.nn.ELU, "log_std_init": -1.0}
MODELS = {
    "ppo": (stable.PPO, AS, WIDE),
    "a2c": (stable.A2C, AS, {}),
    "sac": (stable.SAC, AS, {"net_arch": [8, 8]}),
    "td3": (stable.TD3, AS, {"net_arch": [8], "activation_fn": torch.nn.Tanh}),
    "crossq": (contrib.CrossQ, AS, {"net_arch": [8], "batch_norm_momentum": 0.1}),
    "trpo": (contrib.TRPO, AS, {"net_arch": [8]}),
    "tqc": (contrib.TQC, AS, {"net_arch": [8], "n_quantiles": 7}),
    "dqn": (stable.DQN, TICK, {"net_arch": [8]}),
    "qrdqn": (contrib.QRDQN, TICK, {"net_arch": [8], "n_quantiles": 5}),
    "maskable_ppo": (contrib.MaskablePPO, TICK, {"net_arch": [8]}),
}


def saved(name, folder):
    kind, env_id, arguments = MODELS[name]
    venv = make_sb3_env(env_id, 2, **(SMALL if env_id == AS else FLAT))
    model = kind("MlpPolicy", venv, policy_kwargs=arguments, device="cpu", seed=1)
    model.save(folder / f"{name}.zip")
    return model, gymnasium.make(env_id, **(SMALL if env_id == AS else FLAT)), folder / f"{name}.zip"


@pytest.mark.parametrize("name", MODELS)
def test_a_file_scores_as_its_model(name, tmp_path):
    model, env, file = saved(name, tmp_path)
    loaded, expected = baselines.score(env, load_sb3_file(file, env)), baselines.score(env, model)
    assert loaded.method == expected.method == "exact" and loaded.value == expected.value
    if name in ("ppo", "a2c", "maskable_ppo"):
        acting = [baselines.score(env, each, deterministic=False) for each in (load_sb3_file(file, env), model)]
        assert acting[0].value == acting[1].value != loaded.value


def test_normalisation_is_given_as_plain_arrays(tmp_path, capsys):
    venv = VecNormalize(make_sb3_env(AS, 4, **SMALL), gamma=1.0)
    model = stable.PPO("MlpPolicy", venv, n_steps=8, batch_size=32, device="cpu", seed=1)
    model.learn(64)
    file, statistics = tmp_path / "m.zip", tmp_path / "n.npz"
    model.save(file)
    np.savez(statistics, mean=venv.obs_rms.mean, var=venv.obs_rms.var)
    expected = baselines.score(AS, model, **SMALL)
    env = gymnasium.make(AS, **SMALL)
    score = baselines.score(env, load_sb3_file(file, env, statistics))
    assert score.value == pytest.approx(expected.value, rel=1e-9)
    assert baselines.score(env, load_sb3_file(file, env)).value != pytest.approx(expected.value, rel=1e-6)
    words = ["score", "--env", AS, "--set", "num_steps=8", "--set", "inventory_limit=3", str(file)]
    assert main([*words, "--normalisation", str(statistics)]) == 0
    assert f"{expected.skill:.6g}" in capsys.readouterr().out


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle of the file was run",))


def test_nothing_of_a_file_is_run(tmp_path):
    _, env, file = saved("ppo", tmp_path)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    evil = pickle.dumps(Trap())

    def written(**changed):
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            for name, content in (
                parts | {key.replace("policy_pth", "policy.pth"): v for key, v in changed.items()}
            ).items():
                archive.writestr(name, content)
        return tmp_path / "evil.zip"

    with pytest.raises(ValueError, match=r"policy\.pth|no model file"):
        load_sb3_file(written(policy_pth=evil), env)
    settings = json.loads(parts["data"])
    settings["policy_kwargs"][":serialized:"] = settings["observation_space"][":serialized:"] = "AAAA"
    load_sb3_file(written(data=json.dumps(settings)), env)  # what is serialised is not looked at
    for change, words in (
        ({"policy_class": {"__module__": "mine.policies"}}, "policy of mine.policies"),
        ({"policy_kwargs": {"activation_fn": "<class 'mine.Strange'>"}}, "activation <class 'mine.Strange'>"),
        ({"policy_kwargs": {"features_extractor_class": "<class 'mine.Strange'>"}}, "features_extractor_class"),
        ({"policy_kwargs": {"net_arch": "[3]"}}, "other shapes"),
    ):
        with pytest.raises(ValueError, match=words):
            load_sb3_file(written(data=json.dumps(settings | change)), env)
    with pytest.raises(ValueError, match="no model file"):
        load_sb3_file(written(data=b"\xff"), env)
    (tmp_path / "no.zip").write_bytes(b"no")
    with pytest.raises(ValueError, match="no model file"):
        load_sb3_file(tmp_path / "no.zip", env)
    other = io.BytesIO()
    torch.save(gymnasium.spaces.Discrete(2), other)
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_sb3_file(written(policy_pth=other.getvalue()), env)
