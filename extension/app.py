"""The page: five numbered steps over one recipe, one queue and the folders of the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.datastructures import Headers

from . import compare, images, language, look, pictures, prefer, recipe, targets, train, words
from .page import EVENT, Context, Screen, newest
from .security import DOWNLOAD, MAP, REPORT, UPLOAD_BYTES, Guard, Login

UNREADABLE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100"><rect width="100" height="100" fill="#8886"/>'
    '<path d="M30 30 70 70M70 30 30 70" stroke="#888" stroke-width="4"/></svg>'
)
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".avif": "image/avif",
}
STILL = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A report is text and pictures: no script of it runs, and it loads nothing."""
SWITCH = "() => localStorage.setItem('pixelkiln-theme', document.body.classList.toggle('dark') ? 'dark' : 'light')"


def page(context: Context) -> gr.Blocks:
    with gr.Blocks(title=words.TITLE, analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="top"):
            gone = f'<span hidden id="gone-text">{words.SERVER_GONE}</span>'
            skip = f'<a class="skip" href="#steps">{words.SKIP}</a>'
            gr.HTML(f"{skip}{gone}<h1>{words.TITLE}<small>{words.TAGLINE}</small></h1>")
            headline = gr.HTML()
            dark = gr.Button(words.DARK, size="sm", scale=0, min_width=110)
            other = gr.Button(words.LANGUAGE, size="sm", scale=0, min_width=140, elem_id="language")
        screens: dict[str, Screen] = {}
        tabs_of: dict[str, gr.Tab] = {}
        following: dict[str, gr.Button] = {}
        builders = {
            "pictures": pictures.build, "recipe": recipe.build, "train": train.build, "compare": compare.build,
            "prefer": prefer.build,
        }  # fmt: skip
        with gr.Tabs(elem_id="steps") as tabs:
            for name, build in builders.items():
                with gr.Tab(words.TABS[name], id=name, elem_id=f"tab-{name}") as tabs_of[name]:
                    screens[name] = build(context)
                    if name in words.NEXT:
                        with gr.Row(elem_classes="sticky-end"):
                            foot = screens[name].parts.get("foot")
                            foot.render() if foot is not None else gr.HTML("")
                            following[name] = gr.Button(
                                words.NEXT[name], variant="primary", scale=0, min_width=220, elem_id=f"next-{name}"
                            )
        clock, train_clock = gr.Timer(train.REST), gr.Timer(train.TICK, active=False)

        screens["recipe"].parts["check"].on_arrival(tabs_of["recipe"])
        screens["train"].parts["redraw"](dark.click(None, None, None, js=SWITCH, **EVENT))
        other.click(None, None, None, js=look.other_language(), **EVENT)
        for name, screen in screens.items():
            arrived = tabs_of[name].select(lambda on=name == "train": gr.Timer(active=on), None, [train_clock], **EVENT)
            shown = arrived.then(newest(context, screen.show), screen.inputs, screen.outputs, **EVENT)
            if name == "train":
                screen.parts["redraw"](shown)
            if name == "pictures":
                shown.success(**screen.parts["field"], **EVENT)
                shown.success(*screen.parts["more"], **EVENT)
        order = list(screens)
        for name, button in following.items():
            target = order[order.index(name) + 1]
            _go(button.click(lambda: None, None, None, **EVENT), tabs, target)
        _start(screens, tabs)
        _train_on(screens, tabs)
        _show_pictures(screens, tabs)
        again = screens["train"].parts
        _go(again["again"].click(again["use_recipe"], again["chosen"], None, **EVENT), tabs, "recipe")
        first = screens["pictures"]
        loaded = blocks.load(newest(context, first.show), first.inputs, first.outputs, **EVENT)
        loaded.success(**first.parts["field"], **EVENT)
        loaded.success(*first.parts["more"], **EVENT)
        blocks.load(lambda: train.headline(context), None, [headline], **EVENT)

        screen = screens["train"]  # only while it is seen: its many outputs would hold up the other screens
        train_clock.tick(screen.show, screen.inputs, screen.outputs, **EVENT)
        clock.tick(lambda: train.headline(context), None, [headline], **EVENT)
    return blocks


def _go(event: Any, tabs: gr.Tabs, target: str) -> None:
    """After the event: to another step. That it is selected brings it up to date, as when a person selects it: twice
    would take back what is typed in between."""
    event.success(lambda: gr.Tabs(selected=target), None, [tabs], **EVENT)


def _start(screens: dict[str, Screen], tabs: gr.Tabs) -> None:
    """When the recipe was queued: show the new run."""
    started = screens["recipe"].parts["check"].started
    run = screens["train"].parts["run"]

    def choose(path: str) -> Any:
        name = Path(path).name
        return (gr.update(choices=[name], value=name), gr.Tabs(selected="train")) if path else (gr.skip(), gr.skip())

    started.change(choose, [started], [run, tabs], **EVENT)


def _show_pictures(screens: dict[str, Screen], tabs: gr.Tabs) -> None:
    """From a finding of the check to the pictures that it is about."""
    wanted, chosen = screens["recipe"].parts["check"].look_at, screens["pictures"].parts["filter"]
    held = screens["pictures"].parts["holds"]

    def shown(which: str) -> Any:
        of = which.rpartition("#")[0]
        return gr.update(choices=[of], value=of), "", gr.Tabs(selected="pictures")

    wanted.change(shown, [wanted], [chosen, held, tabs], **EVENT)


def _train_on(screens: dict[str, Screen], tabs: gr.Tabs) -> None:
    """From preferences to a recipe that trains on them."""
    parts = screens["prefer"].parts
    _go(parts["train"].click(parts["fill"], parts["inputs"], None, **EVENT), tabs, "recipe")


def application(context: Context, login: Login | None) -> Any:
    """The whole web application, behind its guard."""
    web = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @web.get("/picture/{signature}/{side}/{name}")
    def picture(signature: str, side: int, name: str) -> Response:
        path = context.addresses.path(signature, side, name)
        if path is None or path.suffix.lower() not in TYPES:
            return Response(status_code=404)
        kept = {"Cache-Control": "private, max-age=86400"}
        if side:
            small = images.thumbnail(path, min(side, 1024), context.home.thumbnails)
            if small is None:
                return Response(UNREADABLE, media_type="image/svg+xml")
            return FileResponse(small, media_type="image/webp", headers=kept)
        if not path.is_file():
            return Response(status_code=404)
        return FileResponse(path, media_type=TYPES[path.suffix.lower()], headers=kept)

    @web.get("/map/{signature}/{side}/{name}")
    def target(signature: str, side: int, name: str) -> Response:
        path = context.addresses.path(signature, side, name)
        small = None
        if path is not None and side > MAP:
            small = targets.thumbnail(path, context.recipe(), min(side - MAP, 1024), context.home.thumbnails)
        if small is None:
            return Response(UNREADABLE, media_type="image/svg+xml", status_code=200 if path else 404)
        return FileResponse(small, media_type="image/webp", headers={"Cache-Control": "private, max-age=60"})

    @web.get("/file/{signature}/{name}")
    def file(signature: str, name: str) -> Response:
        path = context.addresses.path(signature, DOWNLOAD, name)
        if path is None or not path.is_file():
            return Response(status_code=404)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @web.get("/report/{signature}/{name}")
    def report(signature: str, name: str) -> Response:
        path = context.addresses.path(signature, REPORT, name)
        if path is None or not path.is_file():
            return Response(status_code=404)
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": STILL})

    @web.get("/alive")
    def alive() -> dict[str, str]:
        return {"is": "pixelkiln"}

    for spoken, path in reversed(language.PATHS.items()):  # the one at the root answers what none before it has
        with language.speaking(spoken):
            blocks: Any = page(context).queue(default_concurrency_limit=16, api_open=False)
            head = look.head()
        blocks.spoken = spoken  # read by ``language.spoken``
        blocks.has_launched = True  # mounted, it never is, and then gradio takes any path of this machine for an upload
        gr.mount_gradio_app(
            web, blocks, path=path, theme=look.theme(), css=look.style(), js=look.keys(), head=head, footer_links=[],
            max_file_size=UPLOAD_BYTES, show_error=False, ssr_mode=False, allowed_paths=[], enable_monitoring=False,
            pwa=False, mcp_server=False,
        )  # fmt: skip
    return Guard(ToTheLanguage(web), login)


class ToTheLanguage:
    """Before the application: sends who asks for no language's page to the one that is wanted."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked, to = scope["path"] if scope["type"] == "http" else "", ""
        if asked == "/":
            to = language.PATHS[language.wanted(Headers(scope=scope))]
        elif asked in language.PATHS.values():
            to = asked
        query = scope["query_string"].decode("latin-1") if to else ""
        answer = RedirectResponse(f"{to}/?{query}") if to.strip("/") else self.app
        await answer(scope, receive, send)
