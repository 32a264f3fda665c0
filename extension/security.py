"""Who may ask, and what is handed out: a guard before every request, signed picture addresses, allowed folders."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from ..trainer.errors import UserError
from . import words
from .language import PATHS
from .store import Home, write

DOWNLOAD = -1
"""In the place of a picture's side: the file is to be kept, not shown."""
REPORT = -2
"""A study's report, shown as a page that can do nothing."""
MAP = 1_000_000
"""Added to the side: the file is a map, to be shown in colours."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
UPLOAD_BYTES = 100 * 2**20
CLOSED = (
    "/gradio_api/info",
    "/gradio_api/openapi.json",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/gradio_api/mcp",
    "/gradio_api/call",
    "/gradio_api/run",
    "/gradio_api/api",
    "/gradio_api/runs",
    "/gradio_api/dev",
    "/gradio_api/deep_link",
    "/gradio_api/component_server",
    "/gradio_api/custom_component",
    "/gradio_api/process_recording",
    "/gradio_api/monitoring",
    "/monitoring",
)
"""What gradio offers to programs. The page itself needs none of it: it joins the queue."""
FRAMED_BY = "frame-ancestors 'self' http://127.0.0.1:* http://localhost:*"
"""Other pages may not frame this one; the tab in a host's own page on this machine may."""

Scope = dict[str, Any]
Asgi = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


@dataclass(frozen=True)
class Login:
    user: str
    password: str


class Guard:
    """Before everything else: the host name on loopback (against DNS rebinding), the origin of whoever says one, and
    the password when the page is open to others."""

    def __init__(self, app: Asgi, login: Login | None):
        self.app, self.login = app, login

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refused = self.refuse(scope["path"], headers)
        if refused is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            code, text, more = refused
            head = [(b"content-type", b"text/plain; charset=utf-8"), *more]
            await send({"type": "http.response.start", "status": code, "headers": head})
            await send({"type": "http.response.body", "body": text.encode()})

    def refuse(self, path: str, headers: dict[str, str]) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """None, or the status, the words and the headers of a refusal."""
        host = _host_name(headers.get("host", ""))
        if self.login is None and host not in LOOPBACK:
            return 403, f"this page answers on this machine only, not as '{host}'", []
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != headers.get("host"):
            return 403, "this request comes from another page", []
        if self.login and not _knows(headers.get("authorization", ""), self.login):
            return (
                401,
                "user and password, please",
                [(b"www-authenticate", b'Basic realm="Pixelkiln", charset="UTF-8"')],
            )
        for own in PATHS.values():  # gradio offers the same below the page of each language
            path = path.removeprefix(own.rstrip("/"))
        if any(path == closed or path.startswith(closed + "/") for closed in CLOSED):
            return 404, "there is no such page", []
        return None


def _with_headers(send: Any) -> Any:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            more = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"),
                    (b"content-security-policy", FRAMED_BY.encode())]  # fmt: skip
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sent


def _host_name(host: str) -> str:
    return (urlsplit(f"//{host}").hostname or "").lower()


def _knows(authorization: str, login: Login) -> bool:
    kind, _, rest = authorization.partition(" ")
    try:
        user, _, password = base64.b64decode(rest, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    same = hmac.compare_digest(user.encode(), login.user.encode())
    same &= hmac.compare_digest(password.encode(), login.password.encode())
    return kind.lower() == "basic" and same


# ------------------------------------------------------------------------------------------------- addresses of files


class Addresses:
    """Pictures are named by addresses that only this program can make: no path of a browser's choosing is ever read."""

    def __init__(self, secret: bytes):
        self._secret = secret

    @classmethod
    def of(cls, home: Home) -> Addresses:
        """The same after a restart, so that open pages keep their pictures."""
        path = home.own / "key"
        try:
            secret = path.read_bytes()
        except OSError:
            secret = b""
        if len(secret) != 32:
            secret = secrets.token_bytes(32)
            write(path, secret)
            path.chmod(0o600)
        return cls(secret)

    def url(self, path: Path, side: int = 0) -> str:
        """Where the browser finds the picture: a thumbnail of at most ``side`` pixels, or the file itself."""
        name = base64.urlsafe_b64encode(str(path).encode()).decode().rstrip("=")
        try:
            version = path.stat().st_mtime_ns // 1_000_000
        except OSError:
            version = 0
        return f"/picture/{self._sign(name, side)}/{side}/{name}?{version}"

    def target(self, path: Path, side: int) -> str:
        """Where the browser finds the map of a picture in colours, at most ``side`` pixels."""
        return self.url(path, side + MAP).replace("/picture/", "/map/", 1)

    def download(self, path: Path) -> str:
        """Where the browser fetches a file to keep."""
        name = base64.urlsafe_b64encode(str(path).encode()).decode().rstrip("=")
        return f"/file/{self._sign(name, DOWNLOAD)}/{name}"

    def report(self, path: Path) -> str:
        """Where the browser finds a study's report."""
        name = base64.urlsafe_b64encode(str(path).encode()).decode().rstrip("=")
        return f"/report/{self._sign(name, REPORT)}/{name}?{path.stat().st_mtime_ns // 1_000_000}"

    def path(self, signature: str, side: int, name: str) -> Path | None:
        """The file behind an address, if it is one of ours."""
        if not hmac.compare_digest(signature.encode(), self._sign(name, side).encode()):
            return None
        return Path(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode())

    def _sign(self, name: str, side: int) -> str:
        return hmac.new(self._secret, f"{side}/{name}".encode(), hashlib.sha256).hexdigest()[:32]


# ----------------------------------------------------------------------------------------------------- allowed folders


def unquoted(path: str) -> str:
    """A pasted path without the spaces and the pair of quotes around it, which file managers put there; quotes that
    are part of a name stay."""
    path = path.strip()
    return path[1:-1].strip() if len(path) > 1 and path[0] == path[-1] and path[0] in "\"'" else path


@dataclass(frozen=True)
class Folders:
    """Which folders a person at the page may name: any on their own machine, else the given ones."""

    roots: tuple[Path, ...] | None = None

    def check(self, where: str, what: str) -> Path:
        """The folder, absolute and without links. UserError: empty, not there, or not allowed."""
        given = unquoted(what)
        if not given:
            raise UserError(words.NO_FOLDER_GIVEN.format(where))
        path = Path(given).expanduser()
        try:
            path = path.resolve()
            inside = self.roots is None or any(path.is_relative_to(root) for root in self.roots)
            if not inside:
                raise UserError(words.OUTSIDE.format(where, given))
            if not path.is_dir():
                raise UserError((words.IS_A_FILE if path.is_file() else words.NO_SUCH_FOLDER).format(where, given))
            next(path.iterdir(), None)
        except UserError:
            raise
        except ValueError:  # a null character
            raise UserError(words.NO_PATH.format(where, given)) from None
        except OSError as error:
            raise UserError(words.FOLDER_UNREADABLE.format(where, given, error.strerror)) from None
        return path

    def allow(self, where: str, value: Any) -> None:
        """UserError for an option that leads out of the folders: a path, or a list or table that holds one."""
        if isinstance(value, (list, tuple)):
            for one in value:
                self.allow(where, one)
        elif isinstance(value, Mapping):
            for name, one in value.items():
                self.allow(f"{where}.{name}", one)
        elif self.roots is not None and isinstance(value, str) and _leads_away(value):
            path = Path(value).expanduser().resolve()
            if not any(path.is_relative_to(root) for root in self.roots):
                raise UserError(words.OUTSIDE.format(where, value))


ANYWHERE = Folders()


def _leads_away(text: str) -> bool:
    upwards = ".." in re.split(r"[\\/]", text)
    return upwards or text.startswith(("/", "\\", "~")) or PureWindowsPath(text).drive != ""


def need_login(host_is_open: bool, user: str | None, password: str | None) -> Login | None:
    """The login for ``--listen``. UserError when it is missing or weak."""
    if not host_is_open:
        return None
    if not user or not password:
        raise UserError("--listen: others could use this machine; give --user NAME --password WORDS with it")
    if len(password) < 8:
        raise UserError("--password: it is shorter than 8 characters; take a longer one")
    return Login(user, password)


def roots(home: Home, given: Sequence[str], found: Sequence[Path], open_to_others: bool) -> Folders:
    """On loopback every folder of this machine; else the runs, the folders of models, and those that are given."""
    if not open_to_others:
        return Folders()
    all_of_them = [home.runs, *found, *(Path(one) for one in given)]
    return Folders(tuple(path.expanduser().resolve() for path in all_of_them))
