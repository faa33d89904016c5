"""A process that computes, so that a page can show its progress and end it: what is known is kept by parameters."""

from __future__ import annotations

import importlib
import io
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mmgym.agents.explore.computation import Failure, Part, compute, parts_of
from mmgym.agents.explore.settings import Settings

__all__ = ["State", "Worker"]

MOST_RESULTS = 200  # that are kept
PATIENCE = 2.0  # seconds that the process has to stop by itself
CLOSED = 90.0  # seconds after which a page that asks no more is taken for closed


@dataclass
class State:
    """What is known for some settings.

    Attributes
    ----------
    results : dict of str to result
        By the name of the part; a `Failure` is one too.
    versions : dict of str to int
        By the name of the part: another number for another result.
    complete : set of str
        Parts that will not change any more.
    running : str
        Part that is being computed; "" if none.
    line : str
        What its progress bar says.
    share : float or None
        How much of the part is done, from 0 to 1.
    seconds : float
        Since these settings were asked for.
    cancelled : bool
    """

    results: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)
    running: str = ""
    line: str = ""
    share: float | None = None
    seconds: float = 0.0
    cancelled: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.cancelled or not self.running

    @property
    def failed(self) -> bool:
        """Whether a part has no result."""
        return any(isinstance(result, Failure) for result in self.results.values())


class _Cancelled(BaseException):
    """The computation is to stop where it is."""


class _Bars(io.TextIOBase):
    """A terminal that progress bars write to: their last line goes to the page."""

    def __init__(self, connection: Any) -> None:
        self._connection, self._last = connection, 0.0

    def isatty(self) -> bool:
        """Bars that are for terminals only are wanted."""
        return True

    def write(self, text: str) -> int:
        """Send a bar's line, ten times a second at most."""
        line = re.sub(r"\x1b\[\w", "", text).strip()
        if line and time.monotonic() - self._last > 0.1:
            self._last = time.monotonic()
            self._connection.send(("bar", line))
        return len(text)


def _explained(error: BaseException) -> str:
    """One line on an error."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    line = " ".join(str(text).split())[:1500]
    expected = (ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError, ArithmeticError)
    if isinstance(error, MemoryError):
        return line or "not enough memory: lower num_steps, inventory_limit or what else makes the tables large"
    return line if isinstance(error, expected) and line else f"{type(error).__name__}: {line or 'no more is known'}"


class _Server:
    """The process that computes: an interrupt stops what it computes, and nothing else."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.busy = connection, False

    def interrupted(self, *_: Any) -> None:
        """Stop the computation, if there is one."""
        if self.busy:
            self.busy = False
            raise _Cancelled

    def answer(self, settings: Settings, name: str) -> tuple[Any, ...]:
        """Compute a part, send its results, and return how it ended."""
        try:
            self.busy = True
            for result in compute(settings, name):
                self.connection.send(("result", result))
            self.busy = False
        except _Cancelled:
            return ("cancelled",)
        except Exception as error:
            self.busy = False
            return ("failed", _explained(error))
        return ("done",)


def serve(connection: Any, imports: Sequence[str]) -> None:
    """Compute what is asked for, one part after the other, until the connection is closed."""
    server = _Server(connection)
    signal.signal(signal.SIGINT, server.interrupted)
    sys.stderr = _Bars(connection)
    for module in imports:
        importlib.import_module(module)
    while True:
        try:
            settings, name = connection.recv()
            connection.send(server.answer(settings, name))
        except (EOFError, OSError):
            return


@dataclass
class _Wish:
    settings: Settings
    started: float
    seen: float  # when the page last asked
    cancelled: bool = False


class Worker:
    """Computes what pages ask for in one process, the parts of each page in their order.

    Parameters
    ----------
    imports : sequence of str
        Modules that register markets of somebody else.
    """

    def __init__(self, imports: Sequence[str] = ()) -> None:
        self._imports = tuple(imports)
        self._context = multiprocessing.get_context("spawn")
        self._changed = threading.Condition()
        self._wishes: OrderedDict[str, _Wish] = OrderedDict()
        self._results: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._serial: dict[tuple[Any, ...], int] = {}
        self._complete: set[tuple[Any, ...]] = set()
        self._running: tuple[Any, ...] | None = None
        self._numbers = itertools.count(1)
        self._line, self._closed = "", False
        self._process: Any = None
        self._connection: Any = None
        self._thread = threading.Thread(target=self._run, name="explore", daemon=True)
        self._thread.start()

    def want(self, page: str, settings: Settings, *, again: bool = False) -> None:
        """Ask for what settings show, in the place of what the page asked for before; ``again``: what failed, too."""
        with self._changed:
            for part in parts_of(settings) if again else ():
                if isinstance(self._results.get(part.key), Failure):
                    del self._results[part.key], self._serial[part.key]
                    self._complete.discard(part.key)
            self._wishes[page] = _Wish(settings, time.monotonic(), time.monotonic())
            self._wishes.move_to_end(page)
            while len(self._wishes) > 16:  # pages that are long closed
                self._wishes.popitem(last=False)
            self._changed.notify_all()

    def cancel(self, page: str) -> None:
        """Stop what the page has asked for; what is known of it is kept."""
        with self._changed:
            if page in self._wishes:
                self._wishes[page].cancelled = True
            self._changed.notify_all()

    def knows(self, page: str) -> bool:
        """Whether the page has asked for anything."""
        with self._changed:
            return page in self._wishes

    def close(self) -> None:
        """End the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=5.0)
        self._end_process()

    def state(self, page: str) -> State:
        """What is known of what the page has asked for."""
        with self._changed:
            wish = self._wishes.get(page)
            if wish is None:
                return State()
            wish.seen = time.monotonic()
            parts = parts_of(wish.settings)
            state = State(seconds=time.monotonic() - wish.started, cancelled=wish.cancelled)
            for name, key in parts:
                if key in self._results:
                    state.results[name], state.versions[name] = self._results[key], self._serial[key]
                if key in self._complete:
                    state.complete.add(name)
            missing = self._missing(wish)
            if missing is not None:
                state.running = missing.name
                if missing.key == self._running:
                    state.line = self._line
                    percent = re.search(r"(\d+)%\|", self._line)
                    state.share = int(percent[1]) / 100.0 if percent else None
            return state

    def _missing(self, wish: _Wish) -> Part | None:
        """The first part of a wish that is not known; none where the market itself is refused."""
        parts = parts_of(wish.settings)
        if isinstance(self._results.get(parts[0].key), Failure):
            return None
        return next((part for part in parts if part.key not in self._complete), None)

    def _next(self) -> tuple[Settings, Part] | None:
        """The first part that is missing of what was asked for last, of pages that are still open."""
        for wish in reversed(self._wishes.values()):
            opened = time.monotonic() - wish.seen < CLOSED
            if opened and not wish.cancelled and (part := self._missing(wish)) is not None:
                return wish.settings, part
        return None

    def _first(self, key: tuple[Any, ...]) -> bool:
        """Whether a part is what is to be computed now: another one stops it."""
        task = self._next()
        return not self._closed and task is not None and task[1].key == key

    def _run(self) -> None:
        while not self._closed:
            with self._changed:
                task = self._next()
                if task is None and self._process is not None:
                    self._changed.wait()
                    continue
            if self._process is None or not self._process.is_alive():
                self._start_process()
            if task is not None:
                self._work(*task)

    def _start_process(self) -> None:
        self._end_process()
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=serve, args=(theirs, self._imports), name="mmgym explore", daemon=True
        )
        self._process.start()
        theirs.close()

    def _end_process(self) -> None:
        if self._process is None:
            return
        if self._connection is not None:
            self._connection.close()
        self._process.join(timeout=0.2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._process = None

    def _work(self, settings: Settings, part: Part) -> None:
        with self._changed:
            self._running, self._line = part.key, ""
        stopping = 0.0
        try:
            self._connection.send((settings, part.name))
            while True:
                if self._connection.poll(0.05):
                    if self._took(part, self._connection.recv()):
                        return
                elif not self._process.is_alive():
                    raise EOFError
                with self._changed:
                    wanted = self._first(part.key)
                if not wanted and not stopping:
                    stopping = time.monotonic()
                    os.kill(self._process.pid, signal.SIGINT)
                elif stopping and time.monotonic() - stopping > PATIENCE:
                    self._process.kill()
                    raise EOFError
        except (EOFError, OSError):
            with suppress(OSError):
                self._process.join(timeout=1.0)
            if not stopping:
                code = self._process.exitcode
                text = f"the process that computes has ended (status {code}): perhaps there was not enough memory"
                self._keep(part.key, Failure(text), complete=True)
        finally:
            with self._changed:
                self._running, self._line = None, ""

    def _took(self, part: Part, message: tuple[Any, ...]) -> bool:
        """Whether a message is the last one of a part."""
        kind = message[0]
        if kind == "bar":
            with self._changed:
                self._line = message[1]
        elif kind == "result":
            self._keep(part.key, message[1], complete=False)
        elif kind == "done":
            self._keep(part.key, self._results[part.key], complete=True)
        elif kind == "failed":
            self._keep(part.key, Failure(message[1]), complete=True)
        return kind in ("done", "failed", "cancelled")

    def _keep(self, key: tuple[Any, ...], result: Any, *, complete: bool) -> None:
        with self._changed:
            self._results[key] = result
            self._serial[key] = next(self._numbers)
            self._results.move_to_end(key)
            if complete:
                self._complete.add(key)
            while len(self._results) > MOST_RESULTS:
                old, _ = self._results.popitem(last=False)
                self._complete.discard(old)
                self._serial.pop(old)
