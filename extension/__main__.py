"""``python -m pixelkiln.extension``: the page, on this machine alone unless ``--listen``."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from ..trainer.errors import UserError
from .store import ROOT, Home, write_json

PORTS = range(7860, 7880)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="install.py ui", description="The user interface of Pixelkiln.", allow_abbrev=False
    )
    made.add_argument("--port", type=int, help=f"default: the first free one of {PORTS[0]} to {PORTS[-1]}")
    made.add_argument("--runs", default=str(ROOT / "runs"), help="the folder of the runs")
    made.add_argument("--no-browser", action="store_true", help="open no browser")
    made.add_argument("--listen", action="store_true", help="answer other machines too; needs --user and --password")
    made.add_argument("--user")
    made.add_argument("--password", help="at least 8 characters; or the environment variable PIXELKILN_PASSWORD")
    made.add_argument(
        "--folder", action="append", default=[], help="with --listen: a folder of pictures that may be used"
    )
    return made


def free_port(asked: int | None, host: str) -> int:
    """The port. UserError when the asked one is taken, or all are."""
    for port in [asked] if asked else PORTS:
        with socket.socket() as probe:
            if os.name != "nt":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError):
                continue
            return port
    taken = f"{asked} is taken" if asked else f"{PORTS[0]} to {PORTS[-1]} are taken"
    raise UserError(f"--port: {taken}; is the page open already? else give another one")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        return serve(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def serve(args: argparse.Namespace) -> int:
    from . import security

    login = security.need_login(args.listen, args.user, args.password or os.environ.get("PIXELKILN_PASSWORD"))
    home = Home(Path(args.runs).expanduser().resolve())
    home.make()
    host = "0.0.0.0" if args.listen else "127.0.0.1"
    port = free_port(args.port, host)

    import uvicorn

    from . import hosts, queue
    from .app import application
    from .page import Context

    found = [folder for one in hosts.find(home) for folder in one.checkpoints]
    folders = security.roots(home, [*args.folder, str(ROOT / "presets")], found, args.listen)
    web = application(Context(home, security.Addresses.of(home), folders), login)
    queue.ensure(home)
    address = f"http://127.0.0.1:{port}"
    write_json(home.own / "page.json", {"v": 1, "pid": os.getpid(), "port": port, "address": address})
    print(f"Pixelkiln: {address}" + (f" and, for others, port {port} of this machine" if login else ""), flush=True)
    if not args.no_browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    uvicorn.run(web, host=host, port=port, log_level="warning", ws_max_size=2**20)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
