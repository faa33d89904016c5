"""Serving the explorer's page to this machine."""

from __future__ import annotations

import logging
import threading
import webbrowser
from collections.abc import Sequence

from werkzeug.serving import make_server

from mmgym.agents.explore.page import make_app
from mmgym.agents.explore.settings import Settings, write_address
from mmgym.agents.explore.worker import Worker

__all__ = ["serve_page"]

HOST = "127.0.0.1"  # no other machine reaches it


def serve_page(settings: Settings, imports: Sequence[str], *, port: int, browser: bool) -> None:
    """Serve the page until Ctrl-C, and open it in a browser.

    Parameters
    ----------
    settings : Settings
        What it shows first.
    imports : sequence of str
        Modules that register markets of somebody else.
    port : int
        0 for any that is free.
    browser : bool
        Whether to open it.

    Raises
    ------
    OSError
        If the port is taken.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line for each question of the page
    worker = Worker(imports)
    try:
        app = make_app(settings, worker)
        try:
            server = make_server(HOST, port, app.server, threaded=True)
        except (OSError, SystemExit) as error:
            raise OSError(f"port {port} of {HOST} is taken: give another one with --port, or --port 0") from error
        address = f"http://{HOST}:{server.server_port}/{write_address(settings)}"
        print(f"mmgym explore: {address}\nCtrl-C ends it.", flush=True)
        if browser:
            threading.Timer(0.5, webbrowser.open, [address]).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
        finally:
            server.server_close()
    finally:
        worker.close()
