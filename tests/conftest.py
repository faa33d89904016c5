"""Kernels are cached by the sources, and scripts run in processes of their own.

The on-disk cache of kernels is keyed by the sources because numba itself misses edits in functions of other files.
Solutions are kept in the repository: tests neither trust nor touch those in the user's cache.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import expm
from scipy.optimize import minimize

REPOSITORY = Path(__file__).parents[1]


def source_hash() -> str:
    """A hash of every Python source of the three packages."""
    digest = hashlib.sha256()
    for package in ("mmgym", "baselines", "agents"):
        for source in sorted((REPOSITORY / package).rglob("*.py")):
            digest.update(str(source.relative_to(REPOSITORY)).encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


# Before anything imports numba; processes that tests start inherit it.
os.environ.setdefault("NUMBA_CACHE_DIR", str(REPOSITORY / ".numba_cache" / source_hash()))
os.environ.setdefault("MMGYM_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "mmgym"))

from mmgym.registration import ENVIRONMENTS  # noqa: E402


@pytest.fixture(scope="module")
def solutions_of_its_own(tmp_path_factory):
    """Solutions of a module's tests are kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGYM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def kernels_of(test: str) -> str:
    """Whose kernels a test compiles: those of the market that its file or its parameters name, or of its file."""
    file, _, name = test.partition("::")
    stem, declared = Path(file).stem, "declared"  # markets that are declarations share most of theirs
    if stem.startswith("test_declare"):
        return declared
    rows = [row for row in ENVIRONMENTS if row.market in stem] or [row for row in ENVIRONMENTS if row.id in name]
    longest = max(rows, key=lambda row: len(row.market), default=None)
    return stem if longest is None else declared if longest.declared else longest.market


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``--dist loadscope`` one process has all tests of a market, so that its kernels are compiled once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByKernels(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return kernels_of(nodeid)

    return ByKernels(config, log) if config.option.dist == "loadscope" else None


def pytest_addoption(parser):
    parser.addoption("--share", default="0/1", help="K/N: only each test whose name falls into part K of N (from 0)")


def pytest_collection_modifyitems(config, items):
    """Only a share of the tests, if so asked; in parallel runs tests of markets go first, the most numerous ahead."""
    share = config.getoption("share")
    if not re.fullmatch(r"\d+/[1-9]\d*", share) or int(share.split("/")[0]) >= int(share.split("/")[1]):
        raise pytest.UsageError(f"--share {share} is not allowed: it must be K/N with K from 0 to N - 1")
    part, parts = map(int, share.split("/"))
    dropped = {item for item in items if zlib.crc32(item.nodeid.encode()) % parts != part}
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]
    if hasattr(config, "workerinput"):
        groups = {item: kernels_of(item.nodeid) for item in items}
        sizes = Counter(groups.values())
        items.sort(key=lambda item: (groups[item] == item.path.stem, -sizes[groups[item]]))


@pytest.fixture
def run_script(tmp_path):
    """Run a script in a fresh process: its standard output. A script that hangs or fails fails the test."""

    def run(source: str, *, timeout: float = 60.0, flags: tuple[str, ...] = ()) -> str:
        script = tmp_path / "script.py"
        script.write_text(source, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, *flags, str(script)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the script and its workers
            output, errors = process.communicate()
            pytest.fail(f"the script hung for {timeout:g} s\n{output}\n{errors}")
        assert process.returncode == 0, f"the script failed with {process.returncode}\n{output}\n{errors}"
        return output

    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window, which keeps the log of its console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def check_mean():
    """Fail where the mean of independent draws is not the expected one.

    A false alarm has the probability ``alarms`` of the test's family, shared among its ``checks``; ``slack`` is what
    the expected value may be wrong by.
    """

    def check(sample, expected=0.0, *, alarms, checks=1, slack=0.0):
        mean, stderr = np.mean(sample), np.std(sample, ddof=1) / np.sqrt(len(sample))
        bound = stats.norm.isf(alarms / checks / 2.0) * stderr + slack
        assert abs(mean - expected) < bound, (mean, stderr, expected)

    return check


def chain_values(moves, flow, noise, length, end, gamma):
    """Values (S,) of ``moves`` (from, to, rate, payoff) over a time, with ``flow`` and, under CARA, ``noise`` (S,)."""
    size = len(end)
    matrix = np.zeros((size + 1, size + 1))  # the last column is the constant 1
    for here, there, rate, payoff in moves:
        matrix[here, there] += rate * np.exp(-gamma * payoff)
        matrix[here, here] -= rate
        matrix[here, size] += rate * payoff
    if gamma == 0.0:
        matrix[:size, size] += flow
        return (expm(matrix * length) @ np.append(end, 1.0))[:size]
    exponents = matrix[:size, :size] + np.diag(-gamma * flow + 0.5 * gamma**2 * noise)
    return -np.log(expm(exponents * length) @ np.exp(-gamma * end)) / gamma


@pytest.fixture
def check_optimum():
    """Check the optimum of a small declared market by dense matrix exponentials and searches over the controls."""

    def check(env_id, moves, flow, noise, end, searched, **arguments):
        """``moves`` (controls) -> moves of `chain_values`, ``searched``: states where better controls are sought."""
        import gymnasium

        from mmgym.baselines import optimal_policy

        env = gymnasium.make(env_id, **arguments).unwrapped
        p, best = env.params, optimal_policy(env)
        gamma = p.risk_aversion if p.utility == "cara" else 0.0
        values, controls = best.solution.values, best.solution.controls
        for n in reversed(range(p.num_steps)):
            ahead = end if n == p.num_steps - 1 else values[n + 1]

            def worth(state, played, ahead=ahead):
                return chain_values(moves(played), flow, noise, p.horizon / p.num_steps, ahead, gamma)[state]

            expected = [worth(state, played) for state, played in enumerate(controls[n])]
            assert np.allclose(values[n], expected, rtol=1e-10, atol=1e-11)
        box, random = [(p.min_depth, p.max_depth)] * controls.shape[2], np.random.default_rng(1)
        for state in searched:  # at step 0
            for start in (controls[0, state], random.uniform(*np.transpose(box))):
                search = minimize(lambda played: -worth(state, played), start, bounds=box)  # noqa: B023
                assert -search.fun <= values[0, state] + 1e-10
            assert -search.fun == pytest.approx(values[0, state], abs=1e-6)

    return check
