"""Pictures of an episode: text lines, RGB arrays and a window."""

from typing import Any

import gymnasium
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
        self._picture: _Picture | None = None
        self._window: _Window | None = None

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
        prices = int(np.size(self._steps[0]["mid"]))
        if self._picture is None or self._picture.assets != prices:
            self._picture = _Picture(prices)
        names = ("mid", "bid", "ask", "bid_fills", "ask_fills", "inventory")
        columns = {name: np.array([step[name] for step in self._steps], dtype=float) for name in names}
        last = self._steps[-1]
        title = f"inventory {_text(last['inventory'], 'g')}   cash {last['cash']:.2f}   return {last['return']:.2f}"
        return self._picture.drawn(self._times(), columns, self._horizon, title)

    def show(self, seconds: float) -> None:
        """Show the picture in a window of matplotlib, for at least so long; where there is none, warn.

        Raises
        ------
        ImportError
            Without matplotlib, the extra ``plot``.
        """
        picture = self.picture()
        if self._window is None:
            self._window = _Window(picture)
        self._window.show(picture, seconds)

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_picture": None, "_window": None}


class _Window:
    """A window of matplotlib's interactive backend with one picture in it."""

    def __init__(self, picture: NDArray[np.uint8]) -> None:
        from matplotlib import pyplot
        from matplotlib.backends.registry import BackendFilter, backend_registry

        self._pyplot, backend = pyplot, pyplot.get_backend()
        self._there = backend.lower() not in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
        if not self._there:
            gymnasium.logger.warn(
                f"render_mode='human' shows nothing: matplotlib's backend here is {backend!r}, which has none; use "
                "'rgb_array', or an interactive backend"
            )
            return
        height, width, _ = picture.shape
        self._figure = pyplot.figure(figsize=(width / 100, height / 100), dpi=100)
        axes = self._figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.axis("off")
        self._image = axes.imshow(picture)

    def show(self, picture: NDArray[np.uint8], seconds: float) -> None:
        if self._there and self._pyplot.fignum_exists(self._figure.number):  # it may have been closed
            self._image.set_data(picture)
            self._pyplot.figure(self._figure.number)
            self._pyplot.pause(seconds)

    def close(self) -> None:
        if self._there:
            self._pyplot.close(self._figure)


class _Picture:
    """Axes that are drawn once; for every step what changes is drawn over them, until it leaves them."""

    def __init__(self, assets: int) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("a picture needs matplotlib: pip install 'mmgym[plot]'") from error
        self.assets = assets
        figure = Figure(figsize=(6.4, 4.8), dpi=100)
        self._canvas = FigureCanvasAgg(figure)
        self._prices, self._inventory = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        figure.subplots_adjust(left=0.13, right=0.97, bottom=0.1, top=0.93, hspace=0.08)
        several = {} if assets > 1 else {"color": "tab:green"}
        self._lines: dict[str, list[Any]] = {
            "mid": [self._prices.plot([], [], color="black", linewidth=1.2)[0] for _ in range(assets)],
            "inventory": [self._inventory.plot([], [], drawstyle="steps-post", **several)[0] for _ in range(assets)],
        }
        for name, color, marker in (("bid", "tab:blue", "^"), ("ask", "tab:red", "v")):
            self._lines[name] = [
                self._prices.plot([], [], color=color, linewidth=0.9, drawstyle="steps-pre")[0] for _ in range(assets)
            ]
            self._lines[f"{name}_fills"] = self._prices.plot([], [], marker, color=color, markersize=4)
        for name in ("mid", "bid", "ask"):
            self._lines[name][0].set_label(name)
        self._prices.set_ylabel("price")
        self._prices.legend(loc="upper left", fontsize=8, ncols=3)
        self._title = self._prices.set_title("", fontsize=10)
        self._inventory.axhline(0.0, color="black", linewidth=0.6)
        self._inventory.set(ylabel="inventory", xlabel="time")
        self._moving = [(self._inventory, line) for line in self._lines["inventory"]]
        self._moving += [
            (self._prices, line)
            for name in ("mid", "bid", "ask", "bid_fills", "ask_fills")
            for line in self._lines[name]
        ]
        self._moving.append((self._prices, self._title))
        for _, artist in self._moving:
            artist.set_animated(True)
        self._background: Any = None

    def drawn(
        self, time: NDArray[np.float64], columns: dict[str, NDArray[np.float64]], horizon: float, title: str
    ) -> NDArray[np.uint8]:
        """The picture of these columns, one entry of each for each time."""
        for name in ("mid", "bid", "ask", "inventory"):
            for line, values in zip(self._lines[name], columns[name].reshape(len(time), -1).T, strict=False):
                line.set_data(time, values)
        for name in ("bid", "ask"):
            filled = columns[f"{name}_fills"] > 0
            if self.assets == 1:  # fills are counted over all
                self._lines[f"{name}_fills"][0].set_data(time[filled], columns[name][filled])
        self._title.set_text(title)
        drawn = np.concatenate([columns[name].ravel() for name in ("mid", "bid", "ask")])
        fits = [self._fits(self._prices, drawn), self._fits(self._inventory, columns["inventory"])]
        if self._inventory.get_xlim() != (0.0, horizon):
            self._inventory.set_xlim(0.0, horizon)
            fits.append(False)
        if self._background is None or not all(fits):
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self._canvas.figure.bbox)
        self._canvas.restore_region(self._background)
        for axis, artist in self._moving:
            axis.draw_artist(artist)
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    @staticmethod
    def _fits(axis: Any, values: NDArray[np.float64]) -> bool:
        """Whether values lie within the axis without leaving most of it empty; if not, limits with room to grow."""
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        bottom, top = axis.get_ylim()
        edge = 0.02 * (top - bottom)
        if bottom + edge <= low and high <= top - edge and top - bottom <= 4.0 * max(high - low, 1e-12) + 1e-9:
            return True
        room = 0.25 * (high - low) or 0.5
        limits = (low - room, high + room)
        if limits == (bottom, top):
            return True
        axis.set_ylim(*limits)
        return False
