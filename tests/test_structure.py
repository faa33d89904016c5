"""The house: import direction, one word per market, and what every environment id must have."""

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import pytest
import yaml

import mmgym
from mmgym import baselines
from mmgym.baselines import baseline, risk, scoring
from mmgym.parameters import argument_names, row_of
from mmgym.registration import ENVIRONMENTS

ROOT = Path(mmgym.__file__).resolve().parents[1]
PACKAGES = ("mmgym", "baselines", "agents")
MARKETS = sorted({row.market for row in ENVIRONMENTS})
DECLARED = {row.market for row in ENVIRONMENTS if row.declared}
SECTIONS = (
    "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Arguments",
    "Version History", "References",
)  # fmt: skip


def imported(path):
    """Modules and names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(name):
    """The floor of an imported name: one of `PACKAGES`, or another top-level package."""
    top, *rest = name.split(".")
    return rest[0] if top == "mmgym" and rest and rest[0] in PACKAGES else top


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def test_imports_run_one_way():
    allowed = {"mmgym": {"mmgym"}, "baselines": {"mmgym", "baselines"}, "agents": set(PACKAGES)}
    for package, may in allowed.items():
        for path in sources(package):
            for name in imported(path):
                top = floor(name)
                assert top not in PACKAGES or top in may, f"{path} imports {name}"
                assert name.split(".")[0] not in ("baselines", "agents"), f"{path} imports {name}"
                if package == "baselines":
                    assert top not in ("torch", "stable_baselines3", "sb3_contrib"), f"{path} imports {name}"


def training_configurations():
    return [
        path
        for path in (ROOT / "configs").glob("*.yml")
        if not path.stem.startswith(("benchmark", "constrain_", "learn_game"))
    ]


def is_module(name):
    path = ROOT.joinpath(*name.split("."))  # baselines and agents by the links in mmgym
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_no_import_circle():
    graph = {}
    for package in PACKAGES:
        for path in sources(package):
            inside = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(inside if package == "mmgym" else ("mmgym", *inside)).removesuffix(".__init__")
            names = set(imported(path))
            graph[module] = {name if is_module(name) else name.rpartition(".")[0] for name in names} - {module}

    known = set()

    def visit(module, trail):
        assert module not in trail, f"import circle: {' -> '.join([*trail, module])}"
        for name in graph[module] & set(graph) - known:
            visit(name, (*trail, module))
        known.add(module)

    for module in graph:
        visit(module, ())


def test_models_and_kernels_do_not_use_numpy_random():
    for path in [*sources("mmgym/models"), ROOT / "mmgym" / "random_streams.py", ROOT / "mmgym" / "batch_kernels.py"]:
        assert "np.random." not in path.read_text(encoding="utf-8"), path


def test_file_names():
    forbidden = {"utils", "helpers", "common", "misc"}
    for package in (*PACKAGES, "tests"):
        for path in sources(package):
            assert path.stem not in forbidden, path


WORDS = "|".join({*MARKETS, *(row.id.split("/")[1].removesuffix("-v0") for row in ENVIRONMENTS)})
OWN = {  # "": all markets
    "agents/learn_game.py": "mean_field",
    "agents/commands/learn_game.py": "mean_field",
    "agents/independent_takers.py": "mean_field",
    "mmgym/registration.py": "",
}


def test_generic_code_names_no_market():
    """Ids may stand in examples; what computes asks the market."""
    generic = [path for package in PACKAGES for path in (ROOT / package).glob("*.py")]
    generic += [*sources("agents/commands"), *sources("mmgym/adapters")]
    for path in generic:
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body[0].value.value = ""  # a docstring
        code = re.sub(r"mmgym/[\w-]+", "", ast.unparse(tree))  # ids: examples, and what a command takes by default
        named = set(re.findall(rf"(?<![a-z_])(?:{WORDS})(?![a-z_])", code))
        assert OWN.get(name) == "" or named <= {OWN.get(name)}, f"{path} names {named}"


def test_a_score_asks_for_the_baseline_once(monkeypatch):
    """What a score needs, it asks of one baseline."""
    looked_up = []
    find = baseline.baseline_of
    for module in (baseline, scoring, risk):
        monkeypatch.setattr(module, "baseline_of", lambda *a, **k: looked_up.append(a) or find(*a, **k))
    best = baselines.optimal_policy("mmgym/AvellanedaStoikov-v0", num_steps=5)
    scoring.score("mmgym/AvellanedaStoikov-v0", best, num_steps=5)
    assert len(looked_up) == 1


@pytest.mark.parametrize("market", MARKETS)
def test_one_word_names_a_market_on_every_floor(market):
    wanted = [f"mmgym.models.{market}"]
    if market not in DECLARED:
        wanted += [f"mmgym.envs.{market}", f"mmgym.baselines.{market}"]
    missing = [name for name in wanted if find_spec(name) is None]
    assert not missing
    tests = [path.name for path in (ROOT / "tests").glob("test_*.py") if market in path.name]
    assert len(tests) >= 2 - (market in DECLARED), f"{market} needs more test files"


@pytest.mark.parametrize("market", sorted(set(MARKETS) - DECLARED))
def test_the_same_role_has_the_same_file_name_in_every_market(market):
    files = {path.name: path.read_text(encoding="utf-8") for path in sources(f"baselines/{market}")}
    parts = ast.parse(files["__init__.py"]).body
    assert all(isinstance(part, ast.Expr | ast.ImportFrom | ast.Assign) for part in parts), "__init__ has names only"
    assert [name for name, text in files.items() if "@make_baseline.register" in text] == ["baseline.py"]


@pytest.mark.parametrize("row", ENVIRONMENTS, ids=lambda row: row.id)
def test_every_id_has_what_it_needs(row):
    env = gymnasium.make(row.id)
    envs = gymnasium.make_vec(row.id, num_envs=2)
    assert type(env.unwrapped).__name__ == row.env
    assert type(envs.unwrapped).__name__ == row.vector_env
    assert env.spec.max_episode_steps is None
    doc = type(env.unwrapped).__doc__
    headings = re.findall(r"^ *## (.+)$", doc, flags=re.M)
    assert headings == list(SECTIONS)
    assert "inventory" in doc.splitlines()[0]  # the unit of inventory stands in the first line
    arguments = re.findall(r"`(\w+)` \(", doc)
    for name in env.unwrapped.arguments:
        assert name in arguments, f"argument {name} is not documented"
    configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in training_configurations()]
    assert any(row.id in config for config in configs), f"no configuration for {row.id}"


@pytest.mark.parametrize("row", ENVIRONMENTS, ids=lambda row: row.id)
def test_every_constructor_argument_is_documented_and_takes_json_types(row):
    env_class = type(gymnasium.make(row.id).unwrapped)
    params_type = env_class.market.params_type
    for name in argument_names(params_type):
        assert re.search(rf"`{name}` \(", env_class.__doc__), name
        json.dumps(row_of(params_type, name).default)


def test_configurations_are_undiscounted_plain_yaml():
    for path in (ROOT / "configs").glob("*.yml"):
        assert "!!python" not in path.read_text(encoding="utf-8")
    for path in training_configurations():
        text = path.read_text(encoding="utf-8")
        for env_id, settings in yaml.safe_load(text).items():
            undiscounted = settings.get("gamma", 1.0 if path.stem == "ars" else None)  # whole episodes count there
            assert undiscounted == 1.0, (path, env_id)


def test_nothing_tracked_names_a_machine():
    for path in [*ROOT.glob("*.toml"), *ROOT.glob("*.lock"), ROOT / "README.md", ROOT / "Makefile"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(/work/|/root/|/home/\w|--index-url|find-links)", text), path


def test_lock_pins_every_version():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.!]*", line) for line in lines)
    assert "torch==2.13.0" in lines
