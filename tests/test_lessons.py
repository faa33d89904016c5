"""The lessons: every cell runs, from top to bottom, and the command writes them."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("stable_baselines3")

from mmgym.agents.cli import main
from mmgym.agents.commands.lesson import LESSONS

FOLDER = Path(__file__).parents[1] / "agents" / "lessons"


@pytest.mark.long
@pytest.mark.parametrize(
    "number", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)]
)
def test_a_lesson_runs_from_top_to_bottom(number, capsys):
    cells = json.loads((FOLDER / f"lesson_{number}.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace("STEPS = 3_000_000", "STEPS = 1_500_000")
            exec(compile(code, f"lesson {number}, {cell['id']}", "exec"), names)
    out = capsys.readouterr().out
    answers = [line for line in out.splitlines() if re.match(r"[123]\. ", line)]
    assert [line[0] for line in answers] == ["1", "2", "3"]
    if number == 1:
        scores = names["scores"]
        assert scores["optimal"].skill == pytest.approx(1.0)
        assert scores["optimal"].pnl_std < 0.75 * scores["constant"].pnl_std  # as the text says
        assert scores["constant"].mean_absolute_inventory > 2.0 * scores["optimal"].mean_absolute_inventory
        assert names["at_limit"]["ask_depth"].iloc[0] == names["cells"]["ask_depth"].min()
    if number == 2:
        assert names["after"].skill > max(names["before"].skill, 0.4)
        assert names["exploring"].skill < names["after"].skill
    if number == 3:
        assert "yes" in answers[0]  # of this seed
        assert names["found"].value < names["found"].optimum_upper


def test_the_command_writes_notebooks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no jupyter
    for number, title in LESSONS.items():
        assert main(["lesson", str(number), "--write", f"books/{number}.ipynb"]) == 0
        assert title in capsys.readouterr().out
        book = json.loads((tmp_path / "books" / f"{number}.ipynb").read_text(encoding="utf-8"))
        assert book["nbformat"] == 4 and "".join(book["cells"][0]["source"]).startswith(f"# Lesson {number}: ")
    assert main(["lesson", "1"]) == 0 and "jupyterlab" in capsys.readouterr().out
    (tmp_path / "lesson_1.ipynb").write_text("{}", encoding="utf-8")  # worked on
    assert main(["lesson", "1"]) == 0 and (tmp_path / "lesson_1.ipynb").read_text(encoding="utf-8") == "{}"
    assert main(["lesson", "1", "--write", "lesson.txt"]) == 2 and ".ipynb" in capsys.readouterr().err
