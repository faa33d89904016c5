"""The hurdle head of PPO: its law against SciPy's truncated normal, its files and its exact scores."""

import gymnasium
import numpy as np
import pytest
import yaml
from scipy import integrate, stats

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 (extra agents) is not installed")

import torch
from stable_baselines3 import PPO

from mmgym import baselines
from mmgym.adapters.sb3 import make_sb3_env
from mmgym.agents.config import HURDLE, load_config
from mmgym.agents.hurdle import HurdleDistribution, HurdlePolicy
from mmgym.agents.sb3_files import load_sb3_file
from mmgym.agents.train import load_model, train
from mmgym.baselines.gaussian import hurdle_nodes

AS, TICK = "mmgym/AvellanedaStoikov-v0", "mmgym/TickSpreadCompact-v0"
SMALL = {"num_steps": 8, "inventory_limit": 3.0}
FALSE_ALARM = 1e-3  # of all statistical checks of this file together, with fixed seeds
BOX = gymnasium.spaces.Box(np.float32([-1.0, 0.5]), np.float32([1.0, 4.0]))
RANDOM = np.random.default_rng(0)
CASES = [  # logits of gates, raw means, logarithms of deviations: narrow, wide, near either bound
    *(RANDOM.normal(0.0, [3.0, 3.0, 1.5, 1.5, 1.5, 1.5]) for _ in range(6)),
    np.array([0.0, 0.0, -8.0, 8.0, -4.0, -4.0]),
    np.array([20.0, -20.0, 0.3, -0.3, 3.0, 4.0]),  # SciPy's moments lose digits where it is wider
]


def law_of(case, dtype=torch.float64):
    outputs = torch.tensor(case[:4][None], dtype=dtype)
    return HurdleDistribution(BOX).proba_distribution(outputs, torch.tensor(case[4:], dtype=dtype))


def reference(case, i):
    """Probability of the bound, and the truncated normal above it, of one component: SciPy's."""
    low, high, std = float(BOX.low[i]), float(BOX.high[i]), np.exp(case[4 + i])
    mean = low + (high - low) * (1.0 + np.tanh(case[2 + i])) / 2.0
    return stats.logistic.cdf(case[i]), stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_probabilities_add_up_to_one(case):
    """By quadrature of one component, the other at its bound; and they are SciPy's, to 1e-9."""
    law, low = law_of(case), torch.tensor(BOX.low, dtype=torch.float64)
    for i in range(2):
        atom, above = reference(case, i)

        def log_prob(x, i=i):
            actions = low.clone()
            actions[i] = x
            return float(law.log_prob(actions[None]))

        other = float(np.log(reference(case, 1 - i)[0]))  # the other's atom
        ends = above.ppf([0.0, 1e-6, 0.5, 1.0 - 1e-6, 1.0])
        pieces = [
            integrate.quad(lambda x, f=log_prob, o=other: np.exp(f(x) - o), a, b, epsabs=1e-10)[0]
            for a, b in zip(np.nextafter(ends[:-1], np.inf), ends[1:], strict=True)
            if b > a
        ]
        assert np.exp(log_prob(low[i]) - other) == pytest.approx(atom, rel=1e-9)
        assert atom + sum(pieces) == pytest.approx(1.0, abs=1e-8)
        for x in above.ppf([0.01, 0.4, 0.9]):
            assert log_prob(x) - other == pytest.approx(np.log1p(-atom) + above.logpdf(x), abs=1e-7)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_entropy_and_mode(case):
    law, expected = law_of(case), 0.0
    for i in range(2):
        atom, above = reference(case, i)
        expected += stats.entropy([atom, 1.0 - atom]) + (1.0 - atom) * above.entropy()
        mode = float(law.mode()[0, i])
        if case[i] > 0.0:
            assert mode == BOX.low[i]
        else:
            width = 1e-3 * min(above.std(), 1.0)
            beside = np.clip([mode - width, mode + width], *above.support())
            assert above.pdf(mode) >= above.pdf(beside).max()
    assert float(law.entropy()) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("case", CASES[:6], ids=range(6))
def test_derivatives(case):
    """Of log-probabilities and entropies, by differences."""

    def values(outputs, log_std):
        law = HurdleDistribution(BOX).proba_distribution(outputs, log_std)
        low = torch.tensor(BOX.low, dtype=torch.float64)
        middle = 0.5 * (low + torch.tensor(BOX.high, dtype=torch.float64))
        actions = torch.stack([low, middle, torch.stack([low[0], middle[1]])])
        return law.log_prob(actions), law.entropy()

    outputs = torch.tensor(np.tile(case[:4], (3, 1)), dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor(case[4:], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(values, (outputs, log_std))


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_draws_follow_the_law(case):
    """In float32, as in training: how often at the bound (binomial), and where above it (Kolmogorov-Smirnov)."""
    torch.manual_seed(1)
    count, alarm = 4_000, FALSE_ALARM / (4 * len(CASES))
    law = HurdleDistribution(BOX).proba_distribution(
        torch.tensor(np.tile(case[:4], (count, 1)), dtype=torch.float32), torch.tensor(case[4:], dtype=torch.float32)
    )
    drawn = law.sample()
    assert torch.isfinite(law.log_prob(drawn)).all()
    for i, values in enumerate(drawn.numpy().T):
        atom, above = reference(case, i)
        low, high = BOX.low[i], BOX.high[i]
        assert ((values >= low) & (values <= high)).all()
        assert stats.binomtest(int((values == low).sum()), count, atom).pvalue > alarm
        inside = values[values > low]
        if len(inside) > 10 and above.std() > 1e-3:  # narrower, float32 has too few numbers
            assert stats.kstest(inside, above.cdf).pvalue > alarm


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_nodes_have_the_moments_of_the_law(case):
    laws = [reference(case, i) for i in range(2)]
    mean, std = (np.array([[above.args[k] for _, above in laws]]) for k in (2, 3))
    points, weights = hurdle_nodes(np.array([[atom for atom, _ in laws]]), mean, std, BOX.low, BOX.high)
    assert weights.sum() == pytest.approx(1.0, abs=1e-13)
    for i, (atom, above) in enumerate(laws):
        for power in (1, 2):
            expected = atom * float(BOX.low[i]) ** power + (1.0 - atom) * above.moment(power)
            assert weights[0] @ points[0, :, i] ** power == pytest.approx(expected, rel=1e-8)
        assert weights[0][points[0, :, i] == BOX.low[i]].sum() == pytest.approx(atom, abs=1e-12)


def write(folder, policy=HURDLE, env_id=AS):
    settings = {"n_envs": 8, "n_timesteps": 640, "policy": policy, "gamma": 1.0, "n_steps": 8, "batch_size": 64}
    settings |= {"normalize": True, "policy_kwargs": {"net_arch": [8], "log_std_init": -1.0}}
    (folder / "ppo.yml").write_text(yaml.safe_dump({env_id: settings}), encoding="utf-8")
    return str(folder / "ppo.yml")


def test_a_trained_head_is_stored_and_scored_exactly(tmp_path):
    """At its mode and as it acts; the latter is also simulated, drawing from the head itself."""
    folder, score = train(write(tmp_path), AS, folder=tmp_path / "run", arguments=SMALL, progress=False)
    policy, description = load_model(folder / "model")
    assert description["hyperparameters"]["hyperparameters"]["policy"] == HURDLE
    assert isinstance(policy.model.policy, HurdlePolicy)
    assert score.method == "exact" and baselines.score(AS, policy, **SMALL).value == score.value
    acting = baselines.score(AS, policy, deterministic=False, **SMALL)
    assert acting.method == "exact, as it acts" and acting.value != score.value
    drawn = baselines.score(AS, policy, deterministic=False, method="simulated", episodes=1_000, **SMALL)
    assert abs(drawn.value - acting.value) < stats.norm.isf(FALSE_ALARM / 2) * drawn.stderr


def test_a_file_of_the_library_keeps_the_head(tmp_path):
    model = PPO(HurdlePolicy, make_sb3_env(AS, 2, **SMALL), n_steps=8, batch_size=16, seed=1, device="cpu")
    model.save(tmp_path / "m.zip")
    env = gymnasium.make(AS, **SMALL)
    loaded = load_sb3_file(tmp_path / "m.zip", env)
    for deterministic in (True, False):
        values = [baselines.score(env, each, deterministic=deterministic).value for each in (loaded, model)]
        assert values[0] == values[1]


def test_what_is_allowed_is_told(tmp_path):
    with pytest.raises(ValueError, match=rf"policy = 'Hurdle' of .* must be MlpPolicy or {HURDLE}"):
        load_config(write(tmp_path, "Hurdle"), AS)
    with pytest.raises(ValueError, match=r"a hurdle needs a box of actions .* not Discrete\(32\)"):
        train(write(tmp_path, env_id=TICK), TICK, folder=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="use_sde = True is not allowed"):
        PPO(HurdlePolicy, make_sb3_env(AS, 2, **SMALL), use_sde=True, device="cpu")
