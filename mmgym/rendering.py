"""Pictures of an episode: text lines and RGB arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EpisodeHistory"]


def _text(value: Any, form: str) -> str:
    """A number, or several ones."""
    return " ".join(format(float(x), form) for x in np.atleast_1d(value))


class EpisodeHistory:
    """What `render` shows: mid, own quotes, fills, inventory and reward of the episode so far, one entry a step."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._unit = 1.0
        self._horizon = 1.0
        self._first = 0.0

    def start(self, params: Any, entries: dict[str, Any], time: float = 0.0) -> None:
        """Forget the last episode. ``entries`` are the market's full info entries at ``time``."""
        self._first = time
        self._unit = params.step_length
        self._horizon = params.horizon
        nothing = np.full(np.shape(entries["mid"]), np.nan)
        self._steps = [{**entries, "bid": nothing, "ask": nothing, "return": 0.0}]

    def _times(self) -> NDArray[np.float64]:
        """When each step ended, and first when the episode started; steps may last ``elapsed`` each."""
        if "elapsed" not in self._steps[0]:
            return np.asarray(self._first + np.arange(len(self._steps)) * self._unit, dtype=np.float64)
        elapsed = np.array([0.0, *(step["elapsed"] for step in self._steps[1:])])
        return np.asarray(self._first + np.cumsum(elapsed), dtype=np.float64)

    def add(self, entries: dict[str, Any], reward: float) -> None:
        """Add a step, whose quotes stood around the mid at its start."""
        last = self._steps[-1]
        bid, ask = last["mid"] - entries["bid_depth"], last["mid"] + entries["ask_depth"]
        self._steps.append({**entries, "bid": bid, "ask": ask, "return": last["return"] + reward})

    def text(self) -> str:
        """One line on the last step."""
        last = self._steps[-1]
        time = self._times()[-1]
        return (
            f"t {time:g}/{self._horizon:g}  mid {_text(last['mid'], '.4f')}  bid {_text(last['bid'], '.4f')}  "
            f"ask {_text(last['ask'], '.4f')}  fills {last['bid_fills']}+{last['ask_fills']}  "
            f"inventory {_text(last['inventory'], 'g')}  cash {last['cash']:.4f}  return {last['return']:.4f}"
        )

    def picture(self) -> NDArray[np.uint8]:
        """The episode so far, shape (480, 640, 3), uint8.

        Raises
        ------
        ImportError
            Without matplotlib, the extra ``plot``.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("render_mode='rgb_array' needs matplotlib: pip install 'mmgym[plot]'") from error
        columns = {name: np.array([step[name] for step in self._steps], dtype=float) for name in self._steps[0]}
        assets = range(columns["mid"].reshape(len(self._steps), -1).shape[1])  # prices may be those of several
        time = self._times()
        figure = Figure(figsize=(6.4, 4.8), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        prices, inventory = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        lines = prices.plot(time, columns["mid"], color="black", linewidth=1.2)
        lines[0].set_label("mid")
        for name, color in (("bid", "tab:blue"), ("ask", "tab:red")):
            if len(time) > 1:
                for i in assets:
                    quotes = columns[name].reshape(len(time), -1)[1:, i]
                    label = None if i else name
                    prices.stairs(quotes, time, baseline=None, color=color, linewidth=0.9, label=label)
            filled = columns[f"{name}_fills"] > 0
            marker = "^" if name == "bid" else "v"
            if len(assets) == 1:  # fills are counted over all
                prices.plot(time[filled], columns[name][filled], marker, color=color, markersize=4)
        prices.set_ylabel("price")
        prices.legend(loc="upper left", fontsize=8, ncols=3)
        last = self._steps[-1]
        prices.set_title(
            f"inventory {_text(last['inventory'], 'g')}   cash {last['cash']:.2f}   return {last['return']:.2f}",
            fontsize=10,
        )
        for held in columns["inventory"].reshape(len(time), -1).T:
            inventory.step(time, held, where="post", color=None if len(assets) > 1 else "tab:green")
        inventory.axhline(0.0, color="black", linewidth=0.6)
        inventory.set_ylabel("inventory")
        inventory.set_xlabel("time")
        inventory.set_xlim(0.0, self._horizon)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
