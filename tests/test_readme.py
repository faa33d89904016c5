"""Every snippet and figure of the README is run."""

import re
from pathlib import Path

import pytest

import mmgym
from mmgym import baselines
from mmgym.agents.cli import COMMANDS
from mmgym.baselines.catalogue import reference_value

README = Path(mmgym.__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(number, capsys):
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), {"__name__": "snippet"})
    assert "Error" not in capsys.readouterr().out


def test_there_are_snippets():
    assert len(SNIPPETS) >= 4


def test_table_of_optima_is_what_is_solved():
    name = r"`(mmgym/[\w-]+)`(?:, `(\w+)=\"(\w+)\"`)?"
    rows = re.findall(rf"^\| {name} \| ([\d.]+) \| (-?[\d.]+) \| (\w+) \|$", TEXT, flags=re.M)
    assert len(rows) == 8
    for env_id, name, value, optimum, reference, level in rows:
        arguments = {name: value} if name else {}
        best = baselines.optimal_policy(env_id, **arguments)
        assert best.level == level
        digits = len(optimum.split(".")[1])
        assert f"{best.optimum:.{digits}f}" == optimum
        assert f"{reference_value(env_id, **arguments):.{digits}f}" == reference


def test_commands_of_the_readme_exist():
    for line in re.findall(r"^    mmgym (\w+)", TEXT, flags=re.M):
        assert line in COMMANDS
