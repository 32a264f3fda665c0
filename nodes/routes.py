"""What the page may ask: POST /pixelkiln/choose answers a question of Preference or Thumbs."""

from __future__ import annotations

import asyncio
from functools import cache

from ..trainer.errors import UserError
from . import host, preference


@cache
def register() -> None:
    """Tell ComfyUI about the pack's folders and routes; once."""
    host.register()
    add()


def add() -> None:
    """Add the routes to ComfyUI's server."""
    from aiohttp import web
    from server import PromptServer

    async def choose(request: web.Request) -> web.Response:
        # Only the page sends JSON: a form on another site cannot, without a preflight that ComfyUI does not answer.
        if request.content_type != "application/json":
            return web.json_response({"error": "send JSON"}, status=415)
        try:
            given = await request.json()
        except ValueError:
            return web.json_response({"error": "send JSON"}, status=400)
        try:
            token, winner, liked = checked(given)
            message = await asyncio.to_thread(preference.answer, token, winner, liked)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"said": message})

    PromptServer.instance.routes.post("/pixelkiln/choose")(choose)


def checked(given: object) -> tuple[str, int | None, list[bool | None] | None]:
    """Token, winner and thumbs of an answer. UserError for anything else."""
    if not isinstance(given, dict) or not isinstance(given.get("token"), str):
        raise UserError("choice: it names no question")
    winner, liked = given.get("winner"), given.get("liked")
    if winner is not None and (not isinstance(winner, int) or isinstance(winner, bool)):
        raise UserError("winner: it is no whole number")
    if liked is not None and not (isinstance(liked, list) and all(one in (True, False, None) for one in liked)):
        raise UserError("liked: it is no list of true, false and null")
    return given["token"], winner, liked
