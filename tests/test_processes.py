"""Forks, spawned processes and Python threads: same results, no deadlocks. Each script has a time limit."""

import json
import os
import sys

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# What every script starts with: `play` steps a batch and returns everything that it put out.
PREAMBLE = """
import multiprocessing, os, pickle, sys, threading
import gymnasium, mmgym
import numpy as np

ARGUMENTS = {"num_steps": 5, "horizon": 5.0}

def actions(count, steps=12):
    return np.random.default_rng(9).uniform(-1, 1, (steps, count, 2)).astype(np.float32)

def make(count=4, **options):
    return gymnasium.make_vec("mmgym/GLFT-v0", count, vectorization_mode="vector_entry_point", **ARGUMENTS, **options)

def play(envs, seed=3, steps=12):
    outputs = []
    if seed is not None:
        outputs.append(envs.reset(seed=seed)[0].copy())
    for chosen in actions(envs.num_envs, steps):
        outputs += [np.array(array) for array in envs.step(chosen)[:4]]
    return outputs

def same(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))
"""


@pytest.mark.long
@needs_fork
@pytest.mark.parametrize("threads", [1, 2])
def test_worker_processes_after_a_batch_was_stepped(run_script, threads):
    """A batch's threads must not keep the workers of an AsyncVectorEnv, forked or spawned, from working."""
    output = run_script(
        PREAMBLE
        + f"""
if __name__ == "__main__":
    envs = make(2, threads={threads})
    expected = play(envs)
    for context in (None, "fork", "spawn"):
        print(context, flush=True)
        workers = gymnasium.make_vec(
            "mmgym:mmgym/GLFT-v0", 2, vectorization_mode="async", vector_kwargs={{"context": context}}, **ARGUMENTS
        )
        found = play(workers)
        workers.close()
        assert same(found, expected), context
        assert same(play(envs), expected), "the batch itself, afterwards"
    print("done")
""",
        timeout=120.0,
    )
    assert output.split() == ["None", "fork", "spawn", "done"]


@needs_fork
@pytest.mark.parametrize("method", ["os.fork", "multiprocessing"])
def test_a_forked_worker_steps_the_batch_of_its_parent(run_script, method):
    """With threads, which do not survive the fork; the worker ends as Python ends, with its exit handlers."""
    output = run_script(
        PREAMBLE
        + f"""
envs = make(threads=2)
play(envs)
start = envs.get_state()
read, write = os.pipe()

def work():
    envs.set_state(start)
    outputs = play(envs, seed=None)
    envs.close()
    with os.fdopen(write, "wb") as stream:
        pickle.dump(outputs, stream)

if {method!r} == "os.fork":
    child = os.fork()
    if child == 0:
        work()
        sys.exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        found = pickle.load(stream)
    assert os.waitpid(child, 0)[1] == 0
else:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        found = pickle.load(stream)
    child.join()
    assert child.exitcode == 0
envs.set_state(start)
assert same(found, play(envs, seed=None))
envs.close()
print("done")
"""
    )
    assert output.split() == ["done"]


@needs_fork
def test_a_worker_forked_while_a_step_is_under_way(run_script):
    """Threads hold their locks at the fork; the child's batch must not wait for them.

    The kernels are loaded before: numba's own lock does not survive a fork while another thread compiles or loads.
    """
    output = run_script(
        PREAMBLE
        + """
envs = make(count=20_000, threads=3)
envs.reset(seed=0)
envs.step(actions(20_000, 1)[0])
stop = threading.Event()

def keep_stepping():
    chosen = actions(20_000, 1)[0]
    while not stop.is_set():
        envs.step(chosen)

thread = threading.Thread(target=keep_stepping)
thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        mine = make(count=200, threads=2)
        play(mine)
        envs.reset(seed=0)
        envs.step(actions(20_000, 1)[0])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
print("done")
"""
    )
    assert output.split() == ["done"]


def test_a_spawned_worker_plays_the_same(run_script):
    output = run_script(
        PREAMBLE
        + """
def work(connection):
    connection.send([play(make(threads=threads)) for threads in (1, 2)])

if __name__ == "__main__":
    mine, yours = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(yours,))
    worker.start()
    found = mine.recv()
    worker.join()
    assert worker.exitcode == 0
    expected = play(make())
    assert same(found[0], expected) and same(found[1], expected)
    print("done")
"""
    )
    assert output.split() == ["done"]


def test_two_python_threads_with_an_environment_each(run_script):
    """Also the first call, which compiles or loads the kernels in both threads at once."""
    output = run_script(
        PREAMBLE
        + """
def single(seed):
    env = gymnasium.make("mmgym/GLFT-v0", num_steps=3000)
    outputs = [env.reset(seed=seed)[0]]
    for chosen in actions(1, 3000):
        observation, reward, *_ = env.step(chosen[0])
        outputs += [observation, np.array(reward)]
    return outputs

def batch(seed):
    return play(make(count=3000, threads=1 + seed % 2), seed=seed, steps=100)

for function in (single, batch):
    found = {}
    barrier = threading.Barrier(2)

    def run(seed):
        barrier.wait()
        found[seed] = function(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[seed], function(seed)) for seed in (0, 1)), function
print("done")
"""
    )
    assert output.split() == ["done"]


def test_one_thread_starts_no_thread(run_script):
    output = run_script(
        PREAMBLE
        + """
play(make(threads=1))
print(threading.active_count(), len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0)
play(make(threads=3))
print(threading.active_count())
""",
    )
    lines = output.splitlines()
    assert lines[0].split()[0] == "1"
    assert lines[1] == "3"


def test_a_process_ends_although_its_batch_is_still_open(run_script):
    run_script(PREAMBLE + "\nenvs = make(threads=3)\nplay(envs)\n")


IMPORTED = """
import gc, json, sys
from numba.core import dispatcher, event

def loaded():
    kernels = [thing for thing in gc.get_objects() if isinstance(thing, dispatcher.Dispatcher)]
    return [kernel.py_func.__qualname__ for kernel in kernels if kernel.signatures]

with event.install_recorder("numba:compile") as compiled:
    {statement}
    at_import = len(compiled.buffer), loaded()
    modules = sorted(sys.modules)
    import gymnasium
    gymnasium.make("mmgym/GLFT-v0").reset(seed=0)
print(json.dumps({{"at_import": at_import, "modules": modules, "afterwards": loaded()}}))
"""

AGENTS = {"mmgym.agents", "torch", "stable_baselines3", "sb3_contrib", "tensorboard", "matplotlib"}


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import mmgym", AGENTS | {"mmgym.baselines", "pandas", "tqdm"}),
        ("import mmgym.envs.glft", AGENTS | {"mmgym.baselines", "pandas", "tqdm"}),
        ("import mmgym.baselines", AGENTS),
    ],
)
def test_importing_compiles_nothing_and_stays_light(run_script, statement, forbidden):
    report = json.loads(run_script(IMPORTED.format(statement=statement)).splitlines()[-1])
    assert report["at_import"] == [0, []], "something was compiled, or loaded from the cache of kernels"
    assert "reset_rows" in report["afterwards"]
    assert not forbidden & set(report["modules"])


def test_importing_warns_of_nothing(run_script):
    run_script("import mmgym.baselines, mmgym.envs.glft", flags=("-W", "error"))


def test_the_package_is_the_one_in_this_repository(run_script):
    """Scripts run elsewhere must not test another installation."""
    import mmgym

    assert run_script("import mmgym; print(mmgym.__file__)").strip() == mmgym.__file__
    assert sys.version_info >= (3, 11)
