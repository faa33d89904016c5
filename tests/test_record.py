"""Recorded datasets: what Minari reads back, bit for bit what single environments play, returns against exact values.

The statistical checks are one family of ten with a false-alarm rate of 1e-3 together, by Bonferroni, fixed seeds.
"""

import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest
from scipy.stats import norm

from mmgym import baselines
from mmgym.agents.cli import main
from mmgym.agents.record import POLICIES, exact_score, play, record, recorded_policy
from mmgym.baselines.catalogue import problem_of, reference_value
from mmgym.baselines.frozen import criterion_value
from mmgym.baselines.perturbed import MixedPolicy, NoisyPolicy, perturbed_optimum
from mmgym.baselines.table_policy import tabulated

minari = pytest.importorskip("minari", reason="needs the extra offline")

AS, TICK, FLOW = "mmgym/AvellanedaStoikov-v0", "mmgym/TickSpread-v0", "mmgym/HawkesFlow-v0"
SHORT = {"num_steps": 20, "horizon": 0.1, "inventory_limit": 4.0}
TICKS = {"num_steps": 6, "horizon": 6.0, "lot": 50.0, "inventory_limit": 200.0}
FLOWS = {"num_steps": 6, "horizon": 2.0, "inventory_limit": 2}
CHECKS = 10
LARGEST = norm.isf(1e-3 / CHECKS / 2.0)

MARKETS = {
    "mean": (AS, {**SHORT, "reward": "pnl"}),
    "cara": (AS, {**SHORT, "utility": "cara"}),
    "masked": (TICK, TICKS),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A home directory and a working directory in which nothing may appear."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    yield
    assert not (home / ".minari").exists()


def close(mean, stderr, value):
    return abs(mean - value) < LARGEST * stderr


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("market", MARKETS)
def test_returns_are_those_of_the_exact_score(market, policy):
    """Nine checks of the family."""
    env_id, arguments = MARKETS[market]
    env = gymnasium.make(env_id, **arguments)
    player, _ = recorded_policy(env, policy, 7)
    exact = exact_score(env, player)
    returns = np.array([episode["rewards"].sum() for episode in play(env, player, 4000, 11)])
    assert close(returns.mean(), returns.std(ddof=1) / 4000**0.5, exact.mean_return)
    assert exact.skill == pytest.approx((exact.value - exact.reference) / (exact.optimum - exact.reference))
    assert exact.reference == reference_value(env)
    if policy == "optimal":
        assert exact.value == pytest.approx(baselines.optimal_policy(env).optimum, rel=1e-12)
    if policy == "medium":
        assert exact.skill == pytest.approx(0.5, abs=0.03)


@pytest.mark.long
def test_returns_in_a_market_with_continuous_coordinates():
    """The tenth check; episodes are of different lengths."""
    env = gymnasium.make(FLOW, **FLOWS)
    player, _ = recorded_policy(env, "optimal")
    exact = exact_score(env, player)
    assert (exact.method, exact.level) == ("numerical", "certified")
    episodes = play(env, player, 1000, 5)
    assert len({len(episode["rewards"]) for episode in episodes}) > 1
    returns = np.array([episode["rewards"].sum() for episode in episodes])
    assert close(returns.mean(), returns.std(ddof=1) / 1000**0.5, exact.mean_return)


def test_perturbed_optimum_by_a_finer_quadrature():
    noisy = perturbed_optimum(AS, 0.7, **SHORT)
    assert isinstance(noisy, NoisyPolicy)
    problem, values = problem_of(AS, **SHORT), []
    for nodes in (noisy.nodes, 20):
        noisy.nodes = nodes
        values.append(criterion_value(problem, tabulated(problem, noisy, True)[0]))
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert isinstance(perturbed_optimum(TICK, **TICKS), MixedPolicy)
    with pytest.raises(ValueError, match="below 1, which is the optimum"):
        perturbed_optimum(AS, 1.0, **SHORT)
    with pytest.raises(ValueError, match="the optimum still has a higher one"):
        perturbed_optimum(AS, -1e9, **SHORT)
    with pytest.raises(ValueError, match="noise = -1"):
        NoisyPolicy(noisy, None, -1)
    with pytest.raises(ValueError, match="from 0 to 1"):
        MixedPolicy(noisy, noisy, 1.5)


@pytest.mark.long
@pytest.mark.parametrize(("env_id", "arguments"), [(AS, SHORT), (TICK, TICKS), (FLOW, FLOWS)])
def test_minari_reads_back_what_a_single_environment_plays(env_id, arguments, tmp_path, monkeypatch):
    pytest.importorskip("h5py", reason="needs the extra offline")
    written = record(env_id, tmp_path / "data", policies=["optimal", "random"], episodes=5, seed=3, arguments=arguments)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    assert set(minari.list_local_datasets()) == {f"{env_id}/optimal-v0", f"{env_id}/random-v0"}
    for recording in written:
        dataset = minari.load_dataset(recording.dataset_id)
        env = dataset.recover_environment()
        assert env.unwrapped.params == gymnasium.make(env_id, **arguments).unwrapped.params
        assert dataset.observation_space == env.observation_space
        assert dataset.action_space == env.action_space
        assert (dataset.total_episodes, dataset.total_steps) == (5, recording.steps)
        metadata = dataset.storage.metadata
        score = metadata["mmgym"]["score"]
        assert score["value"] == recording.score.value
        assert metadata["ref_max_score"] == pytest.approx(baselines.optimal_policy(env).optimum)
        assert metadata["ref_min_score"] == pytest.approx(reference_value(env))
        assert minari.get_normalized_score(dataset, score["mean_return"]) == pytest.approx(score["skill"])
        seeds = [episode["seed"] for episode in dataset.storage.get_episode_metadata(range(5))]
        assert len(set(seeds)) == 5
        for episode, seed in zip(dataset.iterate_episodes(), seeds, strict=True):
            observation, _ = env.reset(seed=seed)
            observations, rewards, ends = [observation], [], []
            for action in episode.actions:
                observation, reward, terminated, truncated, _ = env.step(action)
                observations.append(observation)
                rewards.append(reward)
                ends.append(terminated)
                assert env.action_space.contains(action)
                assert not truncated
            assert np.array_equal(episode.observations, np.stack(observations))
            assert np.array_equal(episode.rewards, rewards)
            assert np.array_equal(episode.terminations, ends)
            assert ends[-1]
            assert not episode.truncations.any()
    with pytest.raises(ValueError, match="is there already"):
        record(env_id, tmp_path / "data", policies=["optimal"], episodes=5, arguments=arguments)


@pytest.fixture
def jax_trees(monkeypatch):
    """Minari's collector needs jax for one function on trees; ours are leaves and empty dicts."""

    def tree_map(function, tree, *rest):
        if isinstance(tree, dict):
            return {key: tree_map(function, tree[key], *(other[key] for other in rest)) for key in tree}
        return function(tree, *rest)

    jax, trees = ModuleType("jax"), ModuleType("jax.tree_util")
    trees.tree_map = tree_map
    jax.tree_util = trees
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setitem(sys.modules, "jax.tree_util", trees)


# The collector leaves its temporary folders to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("env_id", "arguments"), [(AS, SHORT), (TICK, TICKS)])
def test_the_same_dataset_as_minaris_own_collector(env_id, arguments, tmp_path, monkeypatch, jax_trees):
    pytest.importorskip("h5py", reason="needs the extra offline")
    recording = record(env_id, tmp_path / "ours", policies=["optimal"], episodes=4, seed=1, arguments=arguments)[0]
    ours = minari.MinariDataset(recording.folder / "data")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "theirs"))
    collector = minari.DataCollector(gymnasium.make(env_id, **arguments))
    policy = baselines.optimal_policy(env_id, **arguments)
    for entry in ours.storage.get_episode_metadata(range(4)):
        observation, ended = collector.reset(seed=entry["seed"])[0], False
        while not ended:
            observation, _, ended, _, _ = collector.step(policy.predict(observation)[0])
    theirs = collector.create_dataset(
        "collected-v0",
        eval_env=collector.env.spec,
        algorithm_name="optimal",
        author="x",
        author_email="x",
        code_permalink="x",
        description="x",
    )
    collector.close()
    assert theirs.total_episodes == ours.total_episodes
    for one, other in zip(ours.iterate_episodes(), theirs.iterate_episodes(), strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            first, second = getattr(one, name), getattr(other, name)
            assert first.dtype == second.dtype, name
            assert np.array_equal(first, second), name
    seeds = [list(data.storage.get_episode_metadata(range(4))) for data in (ours, theirs)]
    assert [entry["seed"] for entry in seeds[0]] == [entry["seed"] for entry in seeds[1]]


def test_a_seed_means_a_dataset(tmp_path):
    pytest.importorskip("h5py", reason="needs the extra offline")

    def first(seed, name):
        recordings = record(AS, tmp_path / name, policies=["medium", "random"], episodes=3, seed=seed, arguments=SHORT)
        return [minari.MinariDataset(recording.folder / "data")[2] for recording in recordings]

    one, again, other = first(0, "one"), first(0, "again"), first(1, "other")
    for k in range(2):
        assert np.array_equal(one[k].rewards, again[k].rewards)
        assert np.array_equal(one[k].actions, again[k].actions)
        assert not np.array_equal(one[k].rewards, other[k].rewards)
    assert not np.array_equal(one[0].observations, one[1].observations)


def test_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("h5py", reason="needs the extra offline")
    monkeypatch.chdir(tmp_path)
    words = ["record", "--env", AS, "--set", "num_steps=10", "--folder", "data", "--episodes", "4"]
    assert main([*words, "hjb", "random", "--output", str(tmp_path / "table.csv")]) == 0
    out = capsys.readouterr().out
    assert "61.03843477 and" in out
    assert f"{AS}/hjb-v0" in out
    assert (tmp_path / "data" / AS / "random-v0" / "data" / "metadata.json").exists()
    for extra, message in [
        (["hjb"], "is there already"),
        (["nobody"], "module:function nor one of"),
        (["optimal", "--episodes", "0"], "episodes = 0 must be >= 1"),
    ]:
        assert main([*words, *extra]) == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "data").glob(".recording*"))
