"""Tables of parameters: the inverse of `create`, the docstrings that they make, and a table of one's own."""

import ast
import inspect
import json
import math
import pydoc
import re
from typing import Annotated, Literal, NamedTuple

import gymnasium
import numpy as np
import pytest

import mmgym  # noqa: F401
from mmgym.parameters import (
    Choice,
    Integer,
    Multiple,
    OtherSide,
    Pair,
    Real,
    argument_names,
    arguments_of,
    arguments_section,
    check_within,
    create,
    row_of,
)
from mmgym.registration import ENVIRONMENTS

SHARED = ("info", "render_mode", "randomise", "observe_parameters")  # arguments of all environments
STOCHASTIC = [[0.0, 0.25, 0.75], [0.1, 0.3, 0.6], [1 / 3, 1 / 3, 1 / 3]]
LAW = [[0.1, 0.2, 0.05], [0.05, 0.3, 0.1], [0.1, 0.05, 0.05]]  # inventories -1, 0, 1 orders; signals -1, 0, 1
SPECIAL = {  # values of arguments that are no number, pair, choice or multiple; by market and name
    "multi_asset_glft": {
        "volatility": [[2.0, 1.5], [0.3, 1.1]],
        "correlation": [0.3, [[1.0, -0.7], [-0.7, 1.0]]],
        "covariance": [None, [[1.0, 0.2], [0.2, 4.0]], [[1, 0, 0], [0, 1, 0.5], [0, 0.5, 1]]],
        "fill_rate": [None, 90.0, [80.0, [90.0, 100.0]]],
        "min_depth": [None, -0.5, [-0.25, [-1.0, 0.0]]],
        "drift": [0.0, [0.5, -0.5]],
        "order_size": [1.0, 0.5, [1.0, 0.25]],
        "initial_inventory": [0.0, [2.0, -1.0], 1],
    },
    "tick_spread": {
        "spread_transitions": [None, STOCHASTIC],
        "clock_rate": [1.0, [[0.0, 1.0], [20.0, 0.5]]],
        "fill_rate_best": [None, 0.1, [0.1, 0.05, 0.1], [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]],
        "fill_rate_improved": [None, 0.2, [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]],
        "initial_spread": ["stationary", 1, 3],
        "inventory_limit": [None, 200.0, 1000],
    },
    "hawkes_flow": {"initial_rates": ["stationary", [1.25, 2.0], 3.0], "inventory_limit": [3, 10]},
    "hawkes_power": {
        "base_rate": [None, 0.5, [0.5, 0.75, 0.75, 0.5, 0.25, 0.3]],
        "initial_rates": ["stationary", 2.5, [3.0, 2.5, 2.5, 3.0, 4.0, 2.0]],
        "initial_spread": [20, 60],
    },
    "mean_field": {
        "initial_law": ["origin", [10.0, 1], [-20, 0], LAW],
        "inventory_limit": [10.0, 40.0, [30.0, 20.0]],
        "maker_inventory_limit": [None, 120.0, [20.0, 50.0]],
        "maker_initial_inventory": [0.0, 10.0, -20.0],
        "signal_limit": [1, 2],
        "population": ["constant"],
    },
}


def params_type_of(row):
    """The type of an id's parameters."""
    return gymnasium.envs.registration.load_env_creator(gymnasium.spec(row.id).entry_point).market.params_type


def some_value(generator, row):
    """A value that is likely to be accepted, near the default."""
    base = 1.0 if row.default is None else row.default
    factor = float(generator.choice([0.5, 1.0, 1.5, 2.0, generator.uniform(0.3, 1.7)]))
    if isinstance(row, Choice):
        return row.options[generator.integers(len(row.options))]
    if isinstance(row, Integer):
        return max(int(base * factor), int(row.low))
    if isinstance(row, Multiple):
        return base
    if isinstance(row, Pair) and isinstance(base, float) and generator.random() < 0.5:
        return [base * factor, base * float(generator.uniform(0.5, 1.5))]
    return base * factor if isinstance(base, float) else base


def some_arguments(generator, row, params_type):
    """Some of the arguments of an id, with values near their defaults, and those of its preset."""
    arguments = dict(row.arguments)
    for name in argument_names(params_type):
        if generator.random() < 0.35:
            special = SPECIAL.get(row.market, {}).get(name)
            if special is not None:
                arguments[name] = special[generator.integers(len(special))]
            else:
                arguments[name] = some_value(generator, row_of(params_type, name))
    if row.market == "mean_field":
        arguments["population"] = "constant"  # no equilibrium is solved here
    return arguments


@pytest.mark.filterwarnings("ignore:Feller")
@pytest.mark.parametrize("row", ENVIRONMENTS, ids=lambda row: row.id)
def test_arguments_make_the_parameters_that_they_come_from(row):
    """Bit for bit, through JSON, on sets of which most have arguments of every kind."""
    params_type, generator = params_type_of(row), np.random.default_rng(7)
    made, seen = set(), set()
    for _ in range(400):
        arguments = some_arguments(generator, row, params_type)
        try:
            params = params_type.create(**arguments)
        except ValueError:
            continue
        again = json.loads(json.dumps(arguments_of(params)))
        assert list(again) == argument_names(params_type)
        assert params_type.create(**again) == params
        made.add(params)
        seen |= set(arguments)
    assert len(made) > 40
    assert seen == set(argument_names(params_type))


@pytest.mark.parametrize("count", [2, 5, 9])
def test_normalised_rows_stay(count):
    """Rows over their sum need not sum to 1 exactly, and must not be divided again."""
    params_type = params_type_of(next(row for row in ENVIRONMENTS if row.market == "tick_spread"))
    generator = np.random.default_rng(count)
    for _ in range(50):
        rows = generator.random((count, count))
        rows /= rows.sum(axis=1, keepdims=True)
        arguments = {"spread_transitions": rows.tolist(), "fill_rate_best": 0.1, "fill_rate_improved": 0.2}
        params = params_type.create(**arguments)
        assert params_type.create(**arguments_of(params)) == params
        assert np.allclose(params.spread_transitions, rows, rtol=1e-15, atol=0.0)


# --- Docstrings ------------------------------------------------------------------------------------------------------


def bullets(row):
    """Names of arguments, with the default and the text that the docstring of an id's class has for them."""
    text = inspect.getdoc(gymnasium.envs.registration.load_env_creator(gymnasium.spec(row.id).entry_point))
    section = text.split("## Arguments")[1].split("\n## ")[0]
    entries = re.findall(r"^- `(\w+)` \((.*?)\)(?=[:,])(.*?)(?=^- |^$|\Z)", section, flags=re.M | re.S)
    return {name: (ast.literal_eval(default), " ".join(rest.split())) for name, default, rest in entries}


@pytest.mark.parametrize("row", ENVIRONMENTS, ids=lambda row: row.id)
def test_a_docstring_tells_the_defaults_and_the_ranges(row):
    """A default that is given changes nothing, and what lies just outside of a range is refused by name."""
    params_type, told = params_type_of(row), bullets(row)
    assert [name for name in told if name not in SHARED] == argument_names(params_type)
    base = {"population": "constant"} if row.market == "mean_field" else {}
    usual, ranges = params_type.create(**base), 0
    for name in argument_names(params_type):
        default, text = told[name]
        if name not in base:
            assert params_type.create(**base, **{name: default}) == usual, name
        bounds = re.search(r"from (-?[\d.e+,-]+) to (-?[\d.e+,-]+)( times)?", text)
        if bounds is None or bounds[3]:
            continue
        ranges += 1
        for bound, direction in ((bounds[1], -1), (bounds[2], 1)):
            number = float(bound.rstrip(",;.").replace(",", ""))
            outside = int(number) + direction if "whole" in text else number + direction * max(abs(number), 1e-12) / 2
            with pytest.raises(ValueError, match=rf"{name}\b.* = .* is not allowed"):
                params_type.create(**base, **{name: outside})
    assert ranges >= 8


def test_help_shows_the_arguments():
    env = gymnasium.make("mmgym/GLFT-v0")
    text = pydoc.render_doc(env.unwrapped, renderer=pydoc.plaintext)
    assert "`volatility` (0.3)" in text
    assert "[parameters]" not in text
    assert "assets" in env.unwrapped.to_state.__doc__
    assert "GLFTEnv" in repr(env)  # what a wrapper tells of the class inside


# --- A table of one's own --------------------------------------------------------------------------------------------


class Shop(NamedTuple):
    """A shop of two doors."""

    price: Annotated[float, Real(2.0, 0.5, 10.0, "coins", "p"), "of a loaf"]
    rate_front: Annotated[float, Pair(1.5, 0.0, 9.0, "1 / day", sides=("front", "back"))]
    rate_back: OtherSide
    loaves: Annotated[int, Integer(3, 1, 1_000)]
    shelf: Annotated[float, Multiple(6.0, 1, 10, of="price")]
    debt: Annotated[float, Real(None, -100.0, 100.0, none=True), "None is minus the shelf"]
    kind: Annotated[Literal["bread", "cake"], Choice("bread")]
    open: Annotated[bool, Choice(True)]
    total: float

    @classmethod
    def create(cls, **arguments):
        """Checked parameters."""
        return create(cls, arguments)

    @property
    def lavish(self) -> Annotated[bool, Choice(False), "whether the shelf may be above 50"]:
        """Whether it is."""
        return self.shelf > 50.0

    def completed(self, given):
        """The total, and the debt."""
        if self.lavish and not given["lavish"]:
            raise ValueError("shelf is not allowed above 50")
        shop = self._replace(total=self.rate_front + self.rate_back)
        if given["debt"] is None:
            shop = shop._replace(debt=-self.shelf)
        check_within(shop, "debt", "shelf")
        return shop


def test_a_table_of_ones_own():
    assert Shop.create() == Shop(2.0, 1.5, 1.5, 3, 6.0, -6.0, "bread", True, 3.0)
    shop = Shop.create(rate=[1, 2.5], debt=1, price=5, shelf=10, kind="cake", open=False)
    assert shop == Shop(5.0, 1.0, 2.5, 3, 10.0, 1.0, "cake", False, 3.5)
    assert type(shop.price) is float
    assert argument_names(Shop) == ["price", "rate", "loaves", "shelf", "debt", "kind", "open", "lavish"]
    assert arguments_of(Shop.create(price=6.0, shelf=60.0, lavish=True))["lavish"] is True
    for made in (Shop.create(), shop, Shop.create(price=6.0, shelf=60.0, lavish=True)):
        assert Shop.create(**arguments_of(made)) == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"price": 0.25}, "price = 0.25 is not allowed: it must be a finite number >= 0.5 and <= 10"),
        ({"price": None}, "price = None is not allowed"),
        ({"price": True}, "price = True is not allowed"),
        ({"rate": [1.0, math.nan]}, "rate[1] (back) = nan is not allowed: it must be a finite number >= 0 and <= 9"),
        ({"rate": [1.0]}, "rate = [1.0] is not allowed: it must be a number, or a pair [front, back] of numbers"),
        ({"loaves": 3.0}, "loaves = 3.0 is not allowed: it must be a whole number from 1 to 1000"),
        ({"shelf": 5.0}, "shelf = 5.0 and price = 2.0 are not allowed together: shelf must be a multiple of price"),
        ({"kind": "pie"}, "kind = 'pie' is not allowed: it must be one of 'bread', 'cake'"),
        ({"open": 1}, "open = 1 is not allowed: it must be one of False, True"),
        ({"price": 6.0, "shelf": 60.0}, "shelf is not allowed above 50"),
        ({"debt": 7.0}, "debt = 7.0 and shelf = 6.0 are not allowed together: debt must be from -shelf to shelf"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_table_of_ones_own_refuses(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Shop.create(**arguments)


def test_an_unknown_argument_is_refused_with_those_that_there_are():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'cost': allowed are price, rate, .*, lavish$"):
        Shop.create(cost=1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'volatilty': allowed are price, volatility"):
        gymnasium.make("mmgym/GLFT-v0", volatilty=1.0)


def test_a_section_of_ones_own():
    assert arguments_section(Shop) == [
        "- `price` (2.0), p: coins, from 0.5 to 10; of a loaf.",
        "- `rate` (1.5): 1 / day, from 0 to 9, a number or a pair `[front, back]`.",
        "- `loaves` (3): a whole number from 1 to 1,000.",
        "- `shelf` (6.0): a multiple of `price`, from 1 to 10 times it.",
        "- `debt` (None): from -100 to 100; None is minus the shelf.",
        '- `kind` ("bread"): "bread" or "cake".',
        "- `open` (True): False or True.",
        "- `lavish` (False): False or True; whether the shelf may be above 50.",
    ]


def test_a_row_of_another_table_with_changes():
    class Stall(NamedTuple):
        price: Annotated[float, row_of(Shop, "price", default=4.0)]
        rate_front: Annotated[float, row_of(Shop, "rate")]
        rate_back: OtherSide

    assert create(Stall, {"rate": 2.0}) == Stall(4.0, 2.0, 2.0)
    with pytest.raises(ValueError, match=re.escape("price = 11.0 is not allowed")):
        create(Stall, {"price": 11.0})
    assert "of a loaf" in arguments_section(Stall)[0]
