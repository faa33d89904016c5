"""The benchmark on a Ray cluster, with a node that dies."""

import threading
import time

import pytest

from mmgym.agents.benchmark import load_benchmark, plan, run_benchmark

ray = pytest.importorskip("ray", reason="needs the extra scale")

AS = "mmgym/AvellanedaStoikov-v0"
TINY = """
mmgym/AvellanedaStoikov-v0:
  n_envs: 8
  n_timesteps: 1600
  policy: MlpPolicy
  normalize: {norm_obs: true, norm_reward: true, gamma: 1.0}
  n_steps: 100
  batch_size: 400
  n_epochs: 1
  gamma: 1.0
  policy_kwargs: {net_arch: [16]}
"""

# Ray opens files and sockets that it leaves to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def test_no_cell_is_lost_when_a_node_dies(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    (tmp_path / "ppo.yml").write_text(TINY)
    file = tmp_path / "small.yml"
    file.write_text(
        f"seeds: [0, 1, 2]\nenvironments:\n  {AS}:\n    algorithms: [{tmp_path}/ppo.yml]\n"
        f"    budgets: {{ppo: 60000}}\n    arguments: {{num_steps: 20}}\n    policies: [hjb, constant]\n"
    )
    benchmark = load_benchmark(file)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        ray.init(
            log_to_driver=False
        )  # before there is another node: a driver dies with the node that it is attached to
        other = cluster.add_node(num_cpus=1, object_store_memory=10**8)
        cluster.wait_for_nodes()
        killed = []

        def kill_when_busy():
            end = time.monotonic() + 120.0
            while time.monotonic() < end:
                free = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
                if other.node_id in free and ray.available_resources().get("CPU", 0.0) == 0.0:
                    cluster.remove_node(other, allow_graceful=False)
                    killed.append(time.monotonic())
                    return
                time.sleep(0.05)

        thread = threading.Thread(target=kill_when_busy)
        thread.start()
        results = run_benchmark(benchmark, tmp_path / "out", engine="ray", progress=False)
        thread.join()
        assert killed, "the node was never busy"
        assert len([node for node in ray.nodes() if node["Alive"]]) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [result["cell"]["key"] for result in results] == [cell["key"] for cell in plan(benchmark)]
    assert [result["status"] for result in results] == ["finished"] * 4, [r.get("error") for r in results]
    models = list((tmp_path / "out" / "runs").rglob("model/parameters.npz"))
    assert len(models) == 3  # the agents came home from their nodes
    again = run_benchmark(benchmark, tmp_path / "processes", workers=2, progress=False)  # the same numbers
    assert [r["score"]["value"] for r in again[1:]] == [r["score"]["value"] for r in results[1:]]
