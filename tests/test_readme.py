"""The README and those of the folders: their code and commands run, their links lead somewhere, and every number in
them is computed again or read where it was measured."""

import json
import math
import os
import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import gymnasium
import pandas as pd
import pytest
from gymnasium.spaces import Box, Discrete

import mmgym
from mmgym import baselines
from mmgym.agents.benchmark_tables import overall_table
from mmgym.agents.cli import COMMANDS, main, make_parser
from mmgym.baselines.baseline import baseline_of
from mmgym.models.multi_asset_glft import MAX_ASSETS
from mmgym.registration import ENVIRONMENTS

ROOT = Path(mmgym.__file__).resolve().parents[1]
FILES = [ROOT / "README.md"]
FILES += sorted(file for folder in ("mmgym", "baselines", "agents") for file in (ROOT / folder).rglob("README.md"))
PAGES = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in FILES}  # written by hand
TEXT = PAGES["README.md"]
WORDS = " ".join(" ".join(PAGES.values()).split())  # of all pages, on one line
SNIPPETS = [(name, code) for name in PAGES for code in re.findall(r"```python\n(.*?)```", PAGES[name], flags=re.S)]
TRAINING = next(code for _, code in SNIPPETS if ".learn(" in code)
COMMAND_LINES = list(dict.fromkeys(re.findall(r"^    mmgym (.+)$", "\n".join(PAGES.values()), flags=re.M)))
INLINE_COMMANDS = list(dict.fromkeys(re.findall(r"`mmgym ([^`]+)`", WORDS)))
IDS = [row.id for row in ENVIRONMENTS]
AS, POWER, TAPE = "mmgym/AvellanedaStoikov-v0", "mmgym/HawkesPower-v0", "mmgym/HawkesFlow-v0, tape"
RESULTS = ROOT / "configs" / "results"
RUNS = pd.read_csv(RESULTS / "benchmark" / "results.csv")
BOXES = pd.read_csv(RESULTS / "benchmark_boxes" / "results.csv")
MEASURED = pd.concat([RUNS, BOXES]).groupby("env")[["optimum_lower", "optimum_upper"]].first()  # by the benchmark
QUICK_IDS = {AS, "mmgym/GLFT-v0", "mmgym/MeanFieldTaker-v0", "mmgym/MeanFieldMaker-v0"}  # solved in a second
QUICK_IDS |= {"mmgym/RobustGLFT-v0", "mmgym/RobustGLFTAdversary-v0", "mmgym/TickSpreadCompact-v0"}
QUICK_IDS |= {"mmgym/MeanFieldTakerStrongImpact-v0", "mmgym/MeanFieldMakerStrongImpact-v0"}


def table(head):
    """Rows of the table, of whatever page, whose head starts with these words: cells of text, without backquotes."""
    (page,) = [text for text in PAGES.values() if f"\n| {head}" in text]
    lines = page.split(f"\n| {head}")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


ROWS = {row[0].split()[0]: row for row in table("id | state")}


def shown(lower, upper, text):
    """An optimum with the digits that a text has: one number, or both bounds."""
    digits = len(text.split()[0].split(".")[1])
    return f"{lower:.{digits}f}" if lower == upper else f"{lower:.{digits}f} to {upper:.{digits}f}"


def run_snippet(snippet, capsys):
    exec(compile(snippet, "README", "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert "Error" not in out
    return out


@pytest.mark.parametrize(("page", "snippet"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_snippets_run(page, snippet, capsys):
    run = snippet.replace("9_000_000", "51_200").replace(", 512,", ", 256,")  # one short round: in full below
    assert (run != snippet) == (snippet == TRAINING)
    out = run_snippet(run, capsys)
    for printed in re.findall(r"print\(.*\)  # ([\d.]+)\.\.\.", snippet):
        assert re.search(rf"^{re.escape(printed)}", out, flags=re.M)


@pytest.mark.long
def test_stable_baselines_ends_near_0_97(capsys):
    """Training holds in law only: the bounds are wider than the 0.953 to 0.985 of eight seeds."""
    assert "near 0.97" in TRAINING
    assert 0.94 < float(run_snippet(TRAINING, capsys)) < 1.0


def test_why_training_is_set_so():
    for setting, words in (
        ("gamma=1", "gamma=1.0"),
        ("log_std_init=-2", '"log_std_init": -2.0'),
        ("reward=", "reward="),
    ):
        assert f"`{setting}" in TEXT
        assert words in TRAINING


def test_the_table_has_every_environment():
    assert sorted(ROWS) == sorted(IDS)
    long_only = {f"MeanField{role}{kind}" for role in ("Taker", "Maker") for kind in ("Coupled", "FastSignals")}
    long_only |= {"GeometricPrice", "TickQuotes", "TickSpread"}
    assert set(IDS) - set(MEASURED.index) - QUICK_IDS == {f"mmgym/{name}-v0" for name in long_only}
    for row in ENVIRONMENTS:
        env = gymnasium.make(row.id).unwrapped
        _, state, action, _, optimum, level = ROWS[row.id]
        assert level == row.level
        if row.id in MEASURED.index:
            assert optimum == shown(*MEASURED.loc[row.id], optimum)
        if state.startswith("as the "):
            state = ROWS[f"mmgym/MeanField{state.removeprefix('as the ').capitalize()}-v0"][1]
        single = isinstance(env.action_space, Box | Discrete)
        sizes = {state: env.observation_space.shape[0], action: math.prod(env.action_space.shape)}
        assert single or len(env.action_space.nvec) == sizes[action]
        for names, size in sizes.items():  # "time, 2 inventories" are three numbers
            counts = [re.findall(r"\d+", name) for name in names.split(",")]
            assert sum(int(count[0]) if count else 1 for count in counts) == size, (row.id, names)


@pytest.mark.parametrize(
    "env_id", [env_id if env_id in QUICK_IDS else pytest.param(env_id, marks=pytest.mark.long) for env_id in IDS]
)
def test_optima_are_what_is_solved(env_id):
    best = baselines.best_known_policy(env_id)
    optimum, level = ROWS[env_id][4:]
    assert best.level == level
    bounds = baseline_of(env_id).bounds()
    assert shown(bounds.lower, bounds.upper, optimum) == optimum


def test_benchmark_rows():
    parts = ("benchmark", "benchmark_unseen", "benchmark_boxes")
    summary = pd.concat([pd.read_csv(RESULTS / part / "summary.csv") for part in parts])
    summary["shown"] = [
        f"{row.policy} {row.skill:.4f}{' (ours)' if row.kind == 'ours' else ''}" for row in summary.itertuples()
    ]
    rows = {}
    for env_id in sorted({*summary["env"]} & {*IDS}, key=IDS.index):
        market = summary[(summary["env"] == env_id) & (summary["policy"] != "random")].sort_values("skill")
        agents, formulas = (market[market["kind"].isin(kinds)] for kinds in (["agent"], ["paper", "ours"]))
        rows[env_id] = [part["shown"].iloc[-1] for part in (agents, formulas)]
    power = rows.pop(POWER)
    assert {env_id: cells for env_id, *cells in table("id | best from rewards alone")} == rows
    assert [cell.split()[0] for cell in power] == ["exact_gradient", "fitted"]


def prose():
    """Fragments of the pages with numbers in them, each computed again or read where it was measured."""
    played = pd.read_csv(RESULTS / "demo" / "scores.csv", index_col="policy")
    agent, formula = (f"{played.loc[name, 'regret']:.4f}" for name in ("natural_gradient", "avellaneda_stoikov"))
    yield f"the cells add up to the regret, {agent} and {formula} of an optimum of {played.loc['optimal', 'value']:.4f}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = [line.split()[-1] for line in project["classifiers"] if re.search(r"Python :: \d\.\d", line)]
    assert project["requires-python"] == f">={tested[0]}"
    yield f"Python {tested[0]} or newer ({tested[0]} to {tested[-1]} are tested)"
    yield re.search(HIDDEN, WORDS)[0]  # by the test that solves it
    unseen = pd.read_csv(RESULTS / "benchmark_unseen" / "results.csv").groupby("name")["skill"]
    (low, ppo_low), (high, ppo_high) = (part[["natural_gradient", "ppo"]] for part in (unseen.min(), unseen.max()))
    yield f"reached skill {low:.3f} to {high:.3f} in `{AS}`, PPO {ppo_low:.3f} to {ppo_high:.3f}"
    long_runs = pd.read_csv(RESULTS / "benchmark_boxes" / "summary.csv").set_index(["env", "policy"])["skill"]
    power, long_tape = long_runs[POWER], long_runs[TAPE]
    yield f"`exact_gradient` {power['exact_gradient']:.4f}, `fitted` {power['fitted']:.4f} (ours)"
    boxes = BOXES[(BOXES["name"] == "natural_gradient") & (BOXES["env"] != TAPE)]
    assert boxes["env"].nunique() == 10
    yield f"the same recipe in ten other markets {boxes['skill'].min():.3f} to {boxes['skill'].max():.3f}"
    remembers, forgets = long_tape["natural_gradient-memory"], long_tape["natural_gradient"]
    yield f"On five such seeds it had skill {remembers:.3f}, without memory {forgets:.3f}."
    means = overall_table(RUNS.astype({"seed": "Int64"})).set_index("algorithm")["skill"]
    for words, kind in (("over all markets: ", "-tuned"), ("libraries' own settings, ", "-defaults")):
        values = [(name.removesuffix(kind), mean) for name, mean in means.items() if name.endswith(kind)]
        yield words + ", ".join(f"{name} {mean:.2f}" for name, mean in values)
    tape = pd.read_csv(RESULTS / "benchmark" / "summary.csv").set_index(["env", "policy"])["skill"].loc[TAPE]
    recurrent, ppo, natural = (f"{tape[f'{name}-tuned']:.2f}" for name in ("recurrent_ppo", "ppo", "natural_gradient"))
    yield f"`mmgym/HawkesFlow-v0` alone recurrent_ppo has {recurrent}, ppo {ppo} and natural_gradient {natural}, both"
    about = json.loads((RESULTS / "benchmark" / "benchmark.json").read_text(encoding="utf-8"))
    steps = {key.split()[-1]: budget for key, budget in about["budgets"].items()}
    for kind in ("tuned", "defaults"):
        assert (steps.pop(f"sac-{kind}"), steps.pop(f"dqn-{kind}")) == (128_000, 256_000)
    assert steps.pop("ppo-defaults") == steps.pop("maskable_ppo-defaults") == 131_072
    assert set(steps.values()) == {10**6}
    yield "(PPO 131,072 steps)"
    yield "a million steps a run (SAC 128,000, DQN 256,000)"
    yield f"PPO reached skill {ppo_low:.3f} to {ppo_high:.3f} in `{AS}` where the benchmark ran"
    notes = " ".join((ROOT / "configs" / "ppo.yml").read_text(encoding="utf-8").replace("\n#", "").split())
    elsewhere = re.search(
        r"On another machine seeds \d to \d of the same run gave [\d.]+ on average, ([\d.]+ to [\d.]+)\.", notes
    )
    yield f"{elsewhere[1]} elsewhere"
    yield re.search(REPLAYED, WORDS)[0]  # by the test that replays
    utility = f"{baselines.optimal_policy(AS, utility='cara').optimum:.7f}"
    yield f'`utility="cara"` maximises a certainty equivalent: the optimum is then {utility} in `{AS}`'
    yield f"takes up to {MAX_ASSETS} assets"
    policy, elsewhere = baselines.optimal_policy(AS), gymnasium.make(AS, fill_decay=1.0)
    with pytest.warns(UserWarning, match="another action box"):
        actions = baselines.score(elsewhere, policy).skill
    quotes = baselines.score(elsewhere, policy, quotes=True).skill
    yield f"the actions of this policy have skill {actions:.3f}, but its quotes {quotes:.3f}"


HIDDEN = r"bracketed between (\d+\.\d+) and (\d+\.\d+)"
REPLAYED = r"promises its optimum ([\d.]+) an episode of 30 s, the book pays (-[\d.]+):"


@pytest.mark.long
def test_what_fills_tell_of_the_intensities():
    bounds = baseline_of(gymnasium.make("mmgym/HawkesFlow-v0", observe="fills")).bounds()
    assert re.search(HIDDEN, WORDS).groups() == (f"{bounds.lower:.4f}", f"{bounds.upper:.4f}")


@pytest.mark.long
def test_from_a_recording_to_its_book(tmp_path, monkeypatch, capsys):
    """The commands of the page on the recording that it names."""
    pytest.importorskip("hftbacktest", reason="the extra replay is not installed")
    folder = Path(os.environ.get("MMGYM_RECORDINGS", ROOT.parent / "shared" / "data"))
    recording = folder / "ethusdt_perpetual_20240808_stream.gz"
    if not recording.is_file():
        pytest.skip("the recording is not there: MMGYM_RECORDINGS names its folder")
    monkeypatch.chdir(tmp_path)
    for line in (line for line in COMMAND_LINES if "STREAM.gz" in line):
        assert main(line.replace("STREAM.gz", str(recording)).split()) == 0
    row = re.search(r"^P&L +(\S+) +(\S+)", capsys.readouterr().out, flags=re.M)
    assert re.search(REPLAYED, WORDS).groups() == tuple(f"{float(number):.2f}" for number in row.groups())


def test_every_number_is_pinned():
    texts = {}
    for page, text in PAGES.items():
        text = re.sub(r"```python\n.*?```", "", text, flags=re.S)  # is run
        text = re.sub(r"^(\||    ).*\n", "", text, flags=re.M)  # tables and commands are checked by themselves
        texts[page] = " ".join(text.split())
    for fragment in prose():
        assert any(fragment in text for text in texts.values()), fragment
        texts = {page: text.replace(fragment, "") for page, text in texts.items()}
    for page, text in texts.items():
        text = re.sub(r"`[^`]*`|Stable-Baselines3|\]\([^)]*\)", "", text)  # names and links
        text = re.sub(r"\(\d{4}\)|\(\d{4}\)'s|formula of \d{4}|\[\d+\]", "", text)  # citations
        text = re.sub(
            r"Skill is 0 for|and 1 for the optimum|skill 1 is (a lower bound|the mean of the optima)", "", text
        )  # what skill means
        assert re.findall(r".{0,40}\d.{0,20}", text) == [], page


def test_skills_over_a_parameter():
    table = baselines.robustness(baselines.optimal_policy(AS), AS, {"fill_decay": [1.0, 1.5, 2.0]}).table
    first, second, third = table["skill"]
    assert f"skill {first:.3f}, {second:.0f}, {third:.3f}" in WORDS


def test_the_study_of_robustness():
    folder = RESULTS / "robustness"
    page = (folder / "README.md").read_text(encoding="utf-8")
    blind, knowing = (pd.read_csv(folder / f"{name}.csv") for name in ("blind", "knowing"))
    skills = pd.concat([blind, knowing]).assign(kind=lambda t: t["policy"].str.split("-").str[0])
    means = skills.groupby(["kind", "fill_decay"])["skill"].mean()
    for value in (1.0, 1.25):
        assert means["randomised", value] > means["one", value]
    for value in (1.5, 1.75, 2.0):
        assert means["randomised", value] < means["one", value]
    assert means["knowing"].between(0.85, 0.97).all() and "near 0.9 everywhere" in page


@pytest.mark.long
def test_the_best_of_who_knows_the_parameter():
    law = gymnasium.make(AS, randomise={"fill_decay": ["uniform", 1.0, 2.0]})
    page = (RESULTS / "robustness" / "README.md").read_text(encoding="utf-8")
    assert f"| the best policy that knows `fill_decay` | {baseline_of(law).bounds().upper:.4f} |" in page


def test_reference_policies_and_seeds():
    names = {row.id: baseline_of(row.id).reference for row in ENVIRONMENTS}
    others = {env_id: name for env_id, name in names.items() if name != "constant"}
    assert others.pop("mmgym/TickSpread-v0") == others.pop("mmgym/TickSpreadCompact-v0") == "inventory_capped"
    assert others.pop("mmgym/RobustGLFTAdversary-v0") == "none"
    assert others == {"mmgym/HawkesFlow-v0": "join_best", "mmgym/HawkesPower-v0": "join_best"}
    words = "constant quotes; `inventory_capped` in `mmgym/TickSpread-v0`, `join_best` in the Hawkes markets"
    assert words in WORDS
    assert list(names.values()).count("constant") > len(names) / 2  # "mostly", on the front page
    assert "reference policy (mostly constant quotes)" in WORDS
    assert RUNS.loc[RUNS["kind"] == "agent", "seed"].nunique() == 10 and "on ten others" in WORDS


@pytest.mark.parametrize("line", COMMAND_LINES, ids=lambda line: line.split()[0])
def test_commands_are_understood(line):
    words = line.split("   ")[0].split()
    options = make_parser(words).parse_args(words)
    assert options.command == words[0]
    assert options.run is not None


def test_commands_in_sentences_are_understood():
    for line in INLINE_COMMANDS:
        words = line.split()
        if (len(words) == 1 and words[0] in COMMANDS) or words[-1] == "--help":
            continue
        if words[0] == "--import":  # imports it
            words = words[2:]
        assert make_parser(words).parse_args(words).run is not None
    assert set(COMMANDS) <= {line.split()[0] for line in COMMAND_LINES} | {"demo"}  # every one has an example


@pytest.mark.long
def test_the_example_of_risk_is_what_is_printed(capsys):
    """Words as they are; numbers to a thousandth: rounding differs between machines."""
    example = COMMANDS["score"].example
    command, wanted = re.search(r"^\$ mmgym (.+)\n([\s\S]+)", example, flags=re.M).groups()
    assert main(command.split()) == 0
    number = r"-?\d+\.\d+(?:e-?\d+)?"
    printed, wanted = (" ".join(text.split()) for text in (capsys.readouterr().out, wanted))
    assert re.sub(number, "", printed) == re.sub(number, "", wanted)
    pairs = zip(*(map(float, re.findall(number, text)) for text in (printed, wanted)), strict=True)
    assert all(left == pytest.approx(right, rel=1e-3, abs=1e-9) for left, right in pairs)


def links(text):
    """What a page leads to, beside addresses of the web: pairs of a path and of a heading in the words of a link."""
    return [name.partition("#")[::2] for name in re.findall(r"\]\(([^)]+)\)", text) if "://" not in name]


def test_links_lead_somewhere_and_pictures_are_small():
    pages = [*FILES, *(ROOT / "configs").rglob("README.md")]
    assert len(pages) >= 12
    for page in pages:
        for name, heading in links(page.read_text(encoding="utf-8")):
            file = page.parent / name
            assert file.is_file(), (page, name)
            if file.suffix == ".png":
                assert file.read_bytes().startswith(b"\x89PNG")
                assert file.stat().st_size < 150_000
            if heading:
                titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.M)
                assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_front_page_leads_to_all_others():
    """And what has moved there from a section is linked from it."""
    assert {name for name, _ in links(TEXT)} >= set(PAGES) - {"README.md"}
    for title, page in (
        ("Environments", "mmgym/models"),
        ("Environments", "baselines"),
        ("Training with Stable-Baselines3", "agents"),
        ("Training with Stable-Baselines3", "mmgym/adapters"),
        ("Scoring", "baselines"),
        ("Commands", "agents"),
        ("Commands", "mmgym/tapes"),
        ("Your own market", "mmgym/models"),
    ):
        section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
        assert f"{page}/README.md" in [name for name, _ in links(section)]


@pytest.mark.parametrize("market", ["multi_asset_glft", "stochastic_volatility"])
def test_places_of_a_market(market):
    """The listed places of a market against markets that are there: every file that names one is in the list."""
    places = [place.replace("MARKET", market) for place, _ in table("place")]
    assert len(places) >= 8
    row = next(row for row in ENVIRONMENTS if row.market == market)
    names = re.compile(f"{market}|{row.id.split('/')[1].removesuffix('-v0')}")
    files = [ROOT / "pyproject.toml", ROOT / "Makefile", *FILES]
    for folder in ("mmgym", "baselines", "agents", "configs", "tests"):
        files += [file for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".yml", ".j2")]
    naming = {
        file.relative_to(ROOT).as_posix()
        for file in files
        if names.search(file.read_text(encoding="utf-8") + file.name)
    }

    def listed(file, place):
        return fnmatchcase(file, place + "*" if place.endswith("/") else place)

    for place in places:
        assert any(listed(file, place) for file in naming), f"{place} is listed, but {market} has no such place"
    others = [file for file in naming if not any(listed(file, place) for place in places)]
    assert [file for file in others if not file.startswith("tests/")] == []  # generic tests may take any market
