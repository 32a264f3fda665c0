"""The nodes in ComfyUI's own page, in a real Chromium: COMFYUI_PATH and COMFYUI_PYTHON as in test_nodes_host.py.

With COMFYUI_SCREENS, a folder, the pictures of docs/ are taken on the way. The test of the chooser alone needs no
ComfyUI: pytest -m browser.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_server import ROOT, Server, comfyui, server, until
from PIL import Image

from pixelkiln.nodes import plan
from pixelkiln.trainer.data import pairs_file

CHROMIUM = "/usr/bin/chromium"
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM}"),
]
FIXTURES = (comfyui, server)
FOLDER = "pixelkiln"
"""As cloned: the page looks for help under the folder's name up to its first dot."""
READY = "() => window.LiteGraph?.registered_node_types?.PixelkilnPreference && window.app?.graph?.nodes.length > 0"
"""The page has opened its first workflow."""
ADD = "const add = (type, pos) => { const n = LiteGraph.createNode(type); n.pos = pos; app.graph.add(n); return n; };"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["canvas", "vue"])
def page(request, server: Server, chromium) -> Iterator[Any]:
    """An empty graph, drawn by either of ComfyUI's renderers; an error in a script fails the test."""
    vue = request.param == "vue"
    wanted = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue, "Comfy.Minimap.Visible": False}
    server.post("/settings", wanted)
    page, errors = chromium.new_page(viewport={"width": 1280, "height": 860}), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    page.wait_for_function(READY)
    page.get_by_test_id("queue-button").wait_for()
    page.evaluate("() => app.graph.clear()")
    yield page
    page.close()
    assert not errors


@pytest.fixture
def alone(chromium) -> Iterator[Any]:
    """The chooser on an empty page, with a question of two pictures; the test gives the server's replies."""
    scripts = {
        "/": "<body><script type=module src=/extensions/pixelkiln/chooser.js></script>",
        "/scripts/app.js": "export const app = { registerExtension: (one) => (window.chooser = one) };",
        "/scripts/api.js": """window.asked = [];
            export const api = { apiURL: (path) => path, fetchApi: (path, { body }) => new Promise((give) => {
              asked.push(JSON.parse(body));
              window.reply = (answer) => give({ json: () => answer });
            }) };""",
        "/extensions/pixelkiln/chooser.js": (ROOT / "web/chooser.js").read_text(encoding="utf-8"),
    }
    page = chromium.new_page()
    page.set_default_timeout(60_000)

    def serve(route: Any) -> None:
        path = route.request.url.removeprefix("http://chooser.test")
        kind = "text/javascript" if path.endswith(".js") else "text/html"
        route.fulfill(body=scripts.get(path, ""), content_type=kind)

    page.route("**/*", serve)
    page.goto("http://chooser.test/")
    page.wait_for_function("() => window.chooser")
    page.evaluate("""() => {
        window.Asking = class { size = [0, 0]; setSize() {} };
        Asking.prototype.addDOMWidget = (name, type, box) => document.body.append(box);
        chooser.beforeRegisterNodeDef(Asking, { name: "PixelkilnPreference" });
        window.node = new Asking();
        window.ask = () => node.onExecuted({ pixelkiln_choice: [{ token: "t", kind: "best", said: "waiting",
          images: ["a", "b"].map((filename) => ({ filename, subfolder: "", type: "temp" })) }] });
        ask();
    }""")
    yield page
    page.close()


@pytest.mark.browser
def test_a_question_is_answered_once(alone):
    """Neither a second click meanwhile nor one afterwards reaches the server, also when the node is drawn anew."""
    pictures = alone.locator("img")

    def click_all() -> list[dict[str, Any]]:
        for i in (0, 1):
            pictures.nth(i).dispatch_event("click")
        return alone.evaluate("asked")

    assert click_all() == [{"token": "t", "winner": 0}]
    assert alone.locator("button:enabled").count() == 0
    alone.evaluate("reply({ error: 'the disk is full' })")
    alone.get_by_text("the disk is full").wait_for()
    assert alone.locator("button:enabled").count() == 3
    assert len(click_all()) == 2
    alone.evaluate("reply({ said: '1 pair added' })")
    alone.get_by_text("1 pair added").wait_for()
    for _ in range(2):
        assert len(click_all()) == 2
        assert alone.locator(".pixelkiln-said").text_content() == "1 pair added"
        assert alone.locator(".pixelkiln-said").evaluate("line => line.style.color") == ""
        assert alone.locator("button:enabled").count() == 0
        alone.evaluate("ask()")


def photograph(page: Any, name: str, right: int, bottom: int) -> None:
    """For the documents: the part where the nodes are, in few colours."""
    if os.environ.get("COMFYUI_SCREENS"):
        part = {"x": 396, "y": 40, "width": right - 396, "height": bottom - 40}
        seen = Image.open(io.BytesIO(page.screenshot(clip=part))).convert("RGB")
        few = seen.quantize(128, dither=Image.Dither.NONE).convert("RGB")
        few.save(Path(os.environ["COMFYUI_SCREENS"]) / f"comfyui-{name}.webp", lossless=True, method=6)


def test_a_click_on_a_picture_writes_a_pair(server, page, request):
    renderer = request.node.callspec.params["page"]
    for name in ("chosen", "rejected"):
        shutil.copy(ROOT / f"presets/pictures/pairs/1f94d_{name}.webp", server.base / "input" / f"{name}.webp")
    page.evaluate(
        f"""dataset => {{ {ADD}
        const one = add('LoadImage', [40, 40]), two = add('LoadImage', [40, 400]);
        const ask = add('PixelkilnPreference', [400, 40]);
        one.widgets[0].value = 'chosen.webp'; two.widgets[0].value = 'rejected.webp';
        one.connect(0, ask, 0); two.connect(0, ask, ask.inputs.findIndex(i => i.name === 'images_b'));
        const set = (name, value) => ask.widgets.find(w => w.name === name).value = value;
        set('dataset', dataset); set('prompt', 'a lacrosse stick and a ball');
        }}""",
        renderer,
    )
    page.get_by_test_id("queue-button").click()
    chooser = page.locator(".pixelkiln-chooser")
    second = chooser.locator("img").nth(1)
    second.wait_for()
    until(lambda: second.evaluate("picture => picture.naturalWidth") == 128, "the picture")
    assert not (server.data / renderer / "pairs.jsonl").exists()
    second.click()
    chooser.get_by_text("1 pair added").wait_for()
    photograph(page, "chooser", 1110, 760)
    (row,) = pairs_file.read_pairs(server.data / renderer)
    assert (row.prompt, row.seed) == ("a lacrosse stick and a ball", None)
    chosen = Image.open(server.data / renderer / row.chosen)
    assert chosen.tobytes() == Image.open(server.base / "input/rejected.png").convert("RGB").tobytes()
    assert chooser.locator("button:enabled").count() == 0, "a choice is made once"


def test_thumbs_are_written_together(server, page, request):
    dataset = f"thumbs_{request.node.callspec.params['page']}"
    page.evaluate(
        f"""dataset => {{ {ADD}
        const image = add('EmptyImage', [40, 40]), ask = add('PixelkilnRate', [400, 40]);
        const set = (node, name, value) => node.widgets.find(w => w.name === name).value = value;
        set(image, 'width', 64); set(image, 'height', 64); set(image, 'batch_size', 3);
        image.connect(0, ask, 0); set(ask, 'dataset', dataset); set(ask, 'prompt', 'black');
        }}""",
        dataset,
    )
    page.get_by_test_id("queue-button").click()
    chooser = page.locator(".pixelkiln-chooser")
    chooser.get_by_title("I like it", exact=True).nth(0).click()
    chooser.get_by_title("I do not like it").nth(2).click()
    chooser.get_by_text("write", exact=True).click()
    chooser.get_by_text("2 ratings added").wait_for()
    assert [row.liked for row in pairs_file.read_ratings(server.data / dataset)] == [True, False]


def test_help_is_shown_beside_the_graph(page):
    page.evaluate(f"() => {{ {ADD} add('PixelkilnPreference', [40, 40]); }}")
    info = page.get_by_test_id("info-button")

    def selected() -> bool:
        """Once the page has settled, the bar of a selected node stays."""
        page.evaluate("() => { app.canvas.deselectAll(); app.canvas.selectNode(app.graph.nodes[0]); }")
        page.wait_for_timeout(1000)
        return info.is_visible()

    until(selected, "the node's bar")
    info.click()
    page.get_by_text("Which picture is better? The answer becomes a pair").wait_for()
    photograph(page, "help", 1280, 740)


def test_a_stack_grows_with_its_links(page):
    """A saved workflow keeps its links, also one from where the sockets were fixed."""
    grown = page.evaluate(
        f"""() => {{ {ADD}
        const stack = add('PixelkilnAdapterStack', [400, 40]), seen = [];
        const sockets = () => stack.inputs.map(i => i.name).filter(name => name.includes('path'));
        for (const k of [1, 2]) {{
            const file = add('PixelkilnRunAdapter', [40, 200 * k]);
            file.connect(0, stack, stack.inputs.findIndex(i => i.name === 'paths.path_' + k));
            seen.push(sockets());
        }}
        return seen; }}"""
    )
    assert grown == [[f"paths.path_{i}" for i in range(1, n + 2)] for n in (1, 2)]
    saved = page.evaluate("() => app.graph.serialize()")
    linked = {"paths.path_1": ["2", 0], "paths.path_2": ["3", 0]}
    assert linked.items() <= reloaded(page, saved).items()
    (stack,) = (node for node in saved["nodes"] if node["type"] == "PixelkilnAdapterStack")
    stack["inputs"] = [one | {"name": one["name"].removeprefix("paths.")} for one in stack["inputs"]]
    linked = {"path_1": ["2", 0], "path_2": ["3", 0]}
    assert linked.items() <= reloaded(page, saved).items()


def test_a_learning_rate_is_typed(server, page, request):
    """As a person types it; what the page would queue is what was typed, and the trainer gets it."""
    renderer = request.node.callspec.params["page"]
    values = typed(page, renderer, "0.000004")
    assert values["learning_rate"] == "0.000004"
    assert {name: values[name] for name in ("steps", "rank", "resolution", "batch", "run_seed")} == dict.fromkeys(
        ("steps", "rank", "resolution", "batch", "run_seed"), "as in the preset"
    )
    assert plan.flag("optimizer.learning_rate", 4e-6) == f"--optimizer.learning_rate={float(values['learning_rate'])}"
    assert typed(page, renderer, "5e-6")["learning_rate"] == "5e-6"


def typed(page: Any, renderer: str, text: str) -> dict[str, Any]:
    """Type into the learning rate of a new Train node; the inputs as they would be queued."""
    page.evaluate(f"() => {{ app.graph.clear(); {ADD} add('PixelkilnTrain', [40, 40]); }}")
    page.wait_for_timeout(500)
    if renderer == "vue":
        field = page.get_by_label("learning_rate").first
        field.fill(text)
        field.press("Enter")
    else:
        at = page.evaluate("""() => {
            const node = app.graph.nodes[0], widget = node.widgets.find((w) => w.name === "learning_rate");
            const [x, y] = app.canvas.convertOffsetToCanvas([node.pos[0] + 200, node.pos[1] + widget.last_y + 10]);
            const box = app.canvas.canvas.getBoundingClientRect();
            return [box.left + x, box.top + y];
        }""")
        page.mouse.dblclick(*at)
        field = page.locator(".graphdialog input, .graphdialog textarea").first
        field.fill(text)
        field.press("Enter")
    page.wait_for_timeout(300)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    return next(node["inputs"] for node in prompt.values())


def test_a_workflow_of_numbers_reads_as_in_the_preset(page):
    """The example as it was saved when 0 and -1 meant that; a number that was set stays."""
    saved = json.loads((ROOT / "example_workflows/train_on_preferences.json").read_text(encoding="utf-8"))
    (train,) = (node for node in saved["nodes"] if node["type"] == "PixelkilnTrain")
    train["widgets_values"][5:11] = [0, 16, 0.0, 0, 0, -1]
    page.evaluate("workflow => app.loadGraphData(workflow)", saved)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    inputs = next(node["inputs"] for node in prompt.values() if node["class_type"] == "PixelkilnTrain")
    preset = "as in the preset"
    names = ("steps", "rank", "learning_rate", "resolution", "batch", "run_seed")
    assert [inputs[name] for name in names] == [preset, "16", preset, preset, preset, preset]
    assert (inputs["mode"], inputs["again"], inputs["save_to"]) == ("wait", "go on when unchanged", "output/loras")


def test_rows_of_the_stack_are_added_switched_and_moved(server, page):
    """What is clicked is what would be queued, also after saving and opening again."""
    for name in "ab":
        (server.base / f"models/loras/{name}.safetensors").touch()
    page.evaluate("async () => { await app.refreshComboInNodes(); }")
    page.evaluate(f"() => {{ app.graph.clear(); {ADD} add('PixelkilnAdapterStack', [300, 20]); }}")
    rows = page.locator(".pixelkiln-rows")
    for name in ("a.safetensors", "b.safetensors"):
        rows.get_by_title("add a row").click()
        rows.get_by_title("adapter").last.select_option(name)
    strength = rows.get_by_title("text encoder strength").last
    strength.fill("0.125")
    strength.press("Tab")
    rows.get_by_title("on or off").first.uncheck()
    rows.get_by_title("earlier").last.click()
    wanted = "b.safetensors | 1 | 0.125\n# a.safetensors | 1 | 1"
    saved = page.evaluate("() => app.graph.serialize()")
    assert queued_rows(page) == wanted
    page.evaluate("workflow => app.loadGraphData(workflow)", saved)
    assert queued_rows(page) == wanted
    assert rows.locator(".pixelkiln-row").count() == 2


def queued_rows(page: Any) -> str:
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    return next(node["inputs"]["rows"] for node in prompt.values())


def reloaded(page: Any, workflow: dict[str, Any]) -> dict[str, Any]:
    """The stack's inputs as they would be queued."""
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == "PixelkilnAdapterStack")
