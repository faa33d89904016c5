r"""Execution intensities from traded volumes: the proxy of Guilbaud & Pham (2013), (2.13), and its bias.

The rule. At each jump time :math:`\theta_n` of the spread an order of :math:`V_0` shares is placed, and it stays until
:math:`\theta_{n+1}`. An improved order is first in its queue; an order at the best price has the :math:`V_n` shares
that stand there at :math:`\theta_n` before it. With :math:`\mathrm{vol}_{n+1}` the volume sold (for the bid; bought
for the ask) in :math:`(\theta_n, \theta_{n+1}]`, the interval counts

    improved: :math:`1\{\mathrm{vol}_{n+1} > V_0\}`,   best: :math:`1\{\mathrm{vol}_{n+1} > V_0 + V_n\}`,

and adds :math:`\theta_{n+1} - \theta_n` seconds to the spread of the interval. The intensity is the count over the
time (2.13), its standard error :math:`\sqrt{\text{count}}/\text{time}`; counts are Bernoulli, one an interval at most,
so that this errs on the large side. What comes after the last jump (before a gap of the tape) is left out. Trades that
bear the time stamp of a jump count to the interval that ends there.

The bias. The proxy is no consistent estimator of an execution intensity: an interval counts once however many orders
come, which makes it low, and the volumes of several orders add up, which makes it high. Let market orders come at rate
:math:`\mu` with exponential sizes of mean :math:`v`, the queue be exponential with mean :math:`Q`, the clock of the
spread have rate :math:`k`. The number of orders before the next tick is geometric, :math:`P(n) = (1-p) p^n` with
:math:`p = \mu/(\mu + k)`, and the sum of a geometric number of exponentials is exponential again, so that the proxy
tends to

.. math:: k\,p\,e^{-a V_0} \text{ (improved)}, \qquad \frac{k\,p\,e^{-a V_0}}{1 + a Q} \text{ (best)}, \qquad
          a = \frac{1-p}{v}

(`proxy_limit`), where single orders larger than :math:`V_0` (:math:`V_0 + V_n`) come at rate :math:`\mu e^{-V_0/v}`
(over :math:`1 + Q/v`), the limit of the former for a fast clock (`single_order_rate`). For :math:`\mu = 0.5`,
:math:`v = 120`, :math:`V_0 = 100`, :math:`k = 1` the proxy tends to 0.1913 and the rate is 0.2173: 12 % low. For orders
of own that are large beside :math:`v`, and on a slow clock, it is high.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmgym.calibration.spread_chain import SpreadPath

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

AGGRESSORS = ("sell", "buy")  # fill bids, asks


def proxy_counts(path: SpreadPath, tape: pd.DataFrame, own_size: float, edges: Array) -> tuple[Counts, Array]:
    """Counts and seconds of the rule in stretches of time.

    Parameters
    ----------
    path : SpreadPath
        States and jumps.
    tape : pandas.DataFrame
        What `mmgym.tapes.read_tape` returned.
    own_size : float
        ``V_0``, in the unit of the tape's sizes.
    edges : array, shape (K + 1,)
        Where the stretches begin and end; an interval belongs to the one in which it begins.

    Returns
    -------
    counts : array of int, shape (K, 2, 2, m)
        Side (bid, ask), quote (best, improved), spread.
    seconds : array, shape (K, m)
        Time of the intervals that ended, by spread.
    """
    trades = tape[tape["event"] == "trade"]
    time, size = trades["time_s"].to_numpy(dtype=float), trades["size"].to_numpy(dtype=float)
    interval = np.searchsorted(path.times, time) - 1  # theta_n < time <= theta_{n + 1}
    m, number = path.num_spreads, path.times.size - 1
    stretches, ended = edges.size - 1, path.jumped
    stretch = np.clip(np.searchsorted(edges, path.times[:-1], side="right") - 1, 0, stretches - 1)
    cell = stretch * m + path.states[:-1] - 1
    counts = np.empty((stretches, 2, 2, m), dtype=np.int64)
    for side, aggressor in enumerate(AGGRESSORS):
        kept = (trades["side"] == aggressor).to_numpy() & (interval >= 0) & (interval < number)
        volume = np.bincount(interval[kept], weights=size[kept], minlength=number)
        queue = path.queues[side, :-1]
        for quote, threshold in enumerate((own_size + queue, own_size + 0 * queue)):
            hit = cell[ended & (volume > threshold)]
            counts[:, side, quote] = np.bincount(hit, minlength=stretches * m).reshape(stretches, m)
    seconds = np.bincount(cell[ended], weights=np.diff(path.times)[ended], minlength=stretches * m)
    return counts, seconds.reshape(stretches, m).astype(float)


def proxy_limit(
    *, order_rate: float, mean_order_size: float, own_size: float, clock_rate: float, mean_queue: float = 0.0
) -> float:
    """What the proxy (2.13) tends to on a long tape of Poisson market orders (1 / s).

    Parameters
    ----------
    order_rate : float
        ``mu``, market orders of one side (1 / s).
    mean_order_size : float
        ``v``, mean of their exponential sizes (shares).
    own_size : float
        ``V_0`` (shares).
    clock_rate : float
        ``k``, jumps of the spread (1 / s).
    mean_queue : float
        ``Q``, mean of the exponential queue before the own order (shares); 0, the default, for an improved quote.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    _require_positive(order_rate=order_rate, mean_order_size=mean_order_size, clock_rate=clock_rate)
    _require_not_negative(own_size=own_size, mean_queue=mean_queue)
    more = order_rate / (order_rate + clock_rate)
    decay = (1 - more) / mean_order_size
    return clock_rate * more * math.exp(-decay * own_size) / (1 + decay * mean_queue)


def single_order_rate(*, order_rate: float, mean_order_size: float, own_size: float, mean_queue: float = 0.0) -> float:
    """Rate of single market orders larger than the own order and the queue before it (1 / s); see `proxy_limit`."""
    _require_positive(order_rate=order_rate, mean_order_size=mean_order_size)
    _require_not_negative(own_size=own_size, mean_queue=mean_queue)
    return order_rate * math.exp(-own_size / mean_order_size) / (1 + mean_queue / mean_order_size)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _require_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite, 0 or more, got {value}")
