"""Who is let in, and what is handed out: addresses, folders, uploads, and the pages that gradio would open."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the interface's own extra is not installed")

from pixelkiln.extension import draft, security
from pixelkiln.extension.page import Context
from pixelkiln.extension.store import Home, write
from pixelkiln.trainer import config
from pixelkiln.trainer.runs import control


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "runs")
    made.make()
    return made


def test_addresses_cannot_be_made_up(home: Home, tmp_path: Path) -> None:
    addresses = security.Addresses.of(home)
    _, _, signature, side, name = addresses.url(tmp_path / "a b.png", 64).split("?")[0].split("/")
    assert addresses.path(signature, 64, name) == tmp_path / "a b.png"
    other = base64.urlsafe_b64encode(b"/etc/passwd").decode().rstrip("=")
    assert addresses.path(signature, 64, other) is None and addresses.path(signature, 0, name) is None
    assert security.Addresses.of(home).url(tmp_path / "x") == addresses.url(tmp_path / "x")  # after a restart too
    assert security.Addresses(b"x" * 32).path(signature, int(side), name) is None


def test_guard_lets_in_this_machine_only_or_who_knows_the_password() -> None:
    alone, shared = security.Guard(_app, None), security.Guard(_app, security.Login("ann", "long enough"))
    refuse = alone.refuse
    assert refuse("/", {"host": "127.0.0.1:7860"}) is None
    assert (refuse("/", {"host": "evil.example"}) or (0,))[0] == 403
    assert (refuse("/", {"host": "localhost:1", "origin": "http://evil.example"}) or (0,))[0] == 403
    assert refuse("/", {"host": "localhost:1", "origin": "http://localhost:1"}) is None
    assert (refuse("/config", {"host": "localhost:1", "origin": "http://localhost:2"}) or (0,))[0] == 403
    for closed in ("info", "call/import_file", "run/predict", "api/predict", "dev/reload", "mcp/sse"):
        for at in ("", "/de"):  # the page of each language
            assert (refuse(f"{at}/gradio_api/{closed}", {"host": "localhost"}) or (0,))[0] == 404
    assert refuse("/gradio_api/queue/join", {"host": "localhost"}) is None
    assert (shared.refuse("/", {"host": "pc:1"}) or (0,))[0] == 401
    for words_, let_in in (("ann:long enough", True), ("ann:wrong", False), ("ann", False)):
        known = {"host": "pc:1", "authorization": "Basic " + base64.b64encode(words_.encode()).decode()}
        assert (shared.refuse("/", known) is None) == let_in


async def _app(*_: Any) -> None:
    raise AssertionError("not called")


def test_listening_needs_a_password_and_keeps_to_its_folders(home: Home, tmp_path: Path) -> None:
    for user, password in ((None, None), ("ann", None), ("ann", "short")):
        with pytest.raises(ValueError, match=r"^--"):
            security.need_login(True, user, password)
    (tmp_path / "mine").mkdir()
    folders = security.roots(home, [str(tmp_path / "mine")], [], open_to_others=True)
    assert folders.check("folder", str(tmp_path / "mine")) == tmp_path / "mine"
    for outside in (str(tmp_path), str(tmp_path / "mine" / ".."), "/etc"):
        with pytest.raises(ValueError, match="outside"):
            folders.check("folder", outside)
    with pytest.raises(ValueError, match="not there"):
        security.Folders().check("folder", str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    "more",
    [
        '[sample]\nfile = "/etc/passwd"',
        '[sample]\nfile = "x/../../../../../../../../etc/passwd"',
        '[data]\npath = "~"',
        '[[data.sets]]\npath = "/etc"',
        '[model]\nvae = "/etc/vae.safetensors"',
    ],
)
def test_a_recipe_names_no_file_that_others_may_not_read(home: Home, more: str) -> None:
    text, folders = f'config_version = 1\npreset = "demo"\n{more}\n', security.roots(home, [], [], True)
    bundled = security.roots(home, [str(config.PRESETS)], [], True)
    assert draft.snapshot('config_version = 1\npreset = "demo"\n', home.draft, "mine", home.runs, bundled)
    with pytest.raises(ValueError, match="outside the folders of this server"):
        draft.snapshot(text, home.draft, "mine", home.runs, folders)
    with pytest.raises(ValueError, match=r"^[\w.]+: .* is outside the folders of this server"):
        draft.snapshot(text, home.draft, "mine", home.runs, bundled)


@pytest.mark.parametrize("there", [True, False])
def test_a_preset_is_a_bundled_one_or_lies_in_the_folders(home: Home, tmp_path: Path, there: bool) -> None:
    import gradio as gr

    from pixelkiln.extension.recipe import Recipe

    outside = tmp_path / "secret" / "x.toml"
    outside.parent.mkdir()
    if there:
        outside.write_text('[run]\nname = "private"\n[sample]\nprompts = ["private words"]\n', encoding="utf-8")
    text = f'config_version = 1\npreset = "{outside.as_posix()}"\n'
    draft.replace(home, text)
    shared = security.roots(home, [], [], open_to_others=True)
    with gr.Blocks():
        form = Recipe(Context(home, security.Addresses.of(home), shared))
    assert "private" not in str(form.show())
    (problem,) = draft.problems(text, home.draft, shared)
    assert problem.where == "preset" and "is outside the folders of this server" in problem.what
    with pytest.raises(ValueError, match=r"^preset: .* is outside the folders"):
        draft.snapshot(text, home.draft, "mine", home.runs, shared)
    for folders in (security.Folders(), security.roots(home, [str(outside.parent)], [], open_to_others=True)):
        assert ("private words" in str(draft.values(text, folders))) == there
    assert draft.values('preset = "demo"\n', shared)["data"]


@pytest.mark.parametrize("name", ["kohya.toml", "kohya.json"])
def test_an_imported_file_leads_the_trainer_to_no_file_of_others(home: Home, tmp_path: Path, name: str) -> None:
    from pixelkiln.extension.recipe import read_import

    shared = security.roots(home, [], [], open_to_others=True)
    for leads in ("/etc/x.toml", "sub/../../x.toml"):
        values = {"dataset_config": leads}
        text = f'dataset_config = "{leads}"\n' if name.endswith("toml") else json.dumps(values)
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"^dataset_config: .* is outside the folders of this server"):
            read_import(tmp_path / name, shared)


def test_what_a_runs_folder_says_is_text_on_the_page(home: Home) -> None:
    from pixelkiln.extension import progress, train

    odd, run = '"><img src=x onerror=alert(1)>', home.runs / "one"
    me = {**control.identity(os.getpid()), "v": 1, "t": 1, "message": odd}
    event = {"v": 1, "t": 1, "kind": "sample", "step": 1, "path": "step00000001_00.png", "prompt": odd, "seed": odd}
    write(run / "samples" / "step00000001_00.png", b"")
    write(run / "events.jsonl", json.dumps(event) + "\n")
    context = Context(home, security.Addresses.of(home), security.Folders())
    for state in (odd, "running", "failed"):
        write(run / "status.json", json.dumps({**me, "state": state, "total": 0}))
        known, history = control.list_runs(home.runs), progress.History()
        history.read(run)
        gallery = train._gallery(progress.pictures(run), history, context.addresses)
        assert "onerror" in gallery
        for html in (train.standing(known[0], history), gallery, train.headline(context)):
            assert "<img src=x" not in html


def test_a_path_from_the_browser_is_no_upload(home: Home, tmp_path: Path) -> None:
    """What gradio's own client would never send: a file of this machine in the place of an uploaded one."""
    from starlette.testclient import TestClient

    from pixelkiln.extension.app import application

    mine = tmp_path / "secret.toml"
    mine.write_text("config_version = 1\n[run]\nname = 'stolen'\n", encoding="utf-8")
    web = application(Context(home, security.Addresses.of(home), security.Folders()), None)
    with TestClient(web, base_url="http://127.0.0.1") as client:
        for at in ("", "/de"):
            known = client.get(f"{at}/config").json()
            files = {one["id"] for one in known["components"] if one["type"] == "file"}
            events = [one for one in known["dependencies"] if one["backend_fn"] and files & set(one["inputs"])]
            assert len(files) == 2 and len(events) == 2
            for event in events:
                sent = {"path": str(mine), "orig_name": "a.toml", "meta": {"_type": "gradio.FileData"}}
                data = [sent, *[""] * (len(event["inputs"]) - 1)]
                data[0] = [sent] if len(data) > 1 else sent
                body = {"data": data, "fn_index": event["id"], "session_hash": f"s{event['id']}"}
                assert client.post(f"{at}/gradio_api/queue/join", json=body).status_code == 200
                answer = client.get(f"{at}/gradio_api/queue/data", params={"session_hash": f"s{event['id']}"}).text
                assert '"success":false' in answer and str(mine) not in answer
    assert "stolen" not in draft.read(home)


def test_the_browsers_language_chooses_the_page_and_the_page_what_its_events_say(home: Home) -> None:
    from starlette.testclient import TestClient

    from pixelkiln.extension.app import application

    web = application(Context(home, security.Addresses.of(home), security.Folders()), None)
    with TestClient(web, base_url="http://127.0.0.1", follow_redirects=False) as client:
        german = client.get("/?a=b", headers={"accept-language": "de"})
        assert german.status_code == 307 and german.headers["location"] == "/de/?a=b"
        assert client.get("/de").headers["location"].startswith("/de/")
        assert client.get("/", headers={"accept-language": "en"}).status_code == 200
        for at, said in (("", "folder: no folder is given"), ("/de", "Ordner: kein Ordner ist angegeben")):
            known = client.get(f"{at}/config").json()
            button = next(one["id"] for one in known["components"] if one["props"].get("elem_id") == "open-folder")
            event = next(one["id"] for one in known["dependencies"] if [button, "click"] in one["targets"])
            body = {"data": [""], "fn_index": event, "session_hash": "s"}
            assert client.post(f"{at}/gradio_api/queue/join", json=body).status_code == 200
            assert said in client.get(f"{at}/gradio_api/queue/data", params={"session_hash": "s"}).text
