// The chooser on Preference and Thumbs: the pictures of the last execution, a click says which is better.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODES = ["PixelkilnPreference", "PixelkilnRate"];
const answers = new Map(); // token of a question -> what was written, "" while that is under way

function element(tag, style, more = {}) {
  const made = Object.assign(document.createElement(tag), more);
  made.style.cssText = style;
  return made;
}

function address(image) {
  const query = new URLSearchParams({ filename: image.filename, subfolder: image.subfolder, type: image.type });
  return api.apiURL(`/view?${query}`);
}

async function answer(choice, given, box) {
  if (answers.has(choice.token)) return false;
  answers.set(choice.token, "");
  const said = box.querySelector(".pixelkiln-said");
  const buttons = [...box.querySelectorAll("button")];
  buttons.forEach((button) => (button.disabled = true));
  let body = {};
  try {
    const reply = await api.fetchApi("/pixelkiln/choose", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token: choice.token, ...given }),
    });
    body = await reply.json();
  } catch (error) {
    body = { error: String(error) };
  }
  said.textContent = body.said ?? body.error ?? "no answer";
  said.style.color = body.said ? "" : "#e66";
  if (body.said) {
    answers.set(choice.token, body.said);
  } else {
    answers.delete(choice.token);
    buttons.forEach((button) => (button.disabled = false));
  }
  return Boolean(body.said);
}

function button(text, title, act) {
  return element("button", "padding:2px 10px;cursor:pointer", { textContent: text, title, onclick: act });
}

function draw(choice, box) {
  const written = answers.get(choice.token);
  const open = Boolean(choice.token) && !written;
  const said = element("div", "padding:2px;font-size:12px",
    { className: "pixelkiln-said", textContent: written || choice.said });
  const row = element("div", "display:flex;flex-wrap:wrap;gap:4px;overflow:auto;flex:1;min-height:0");
  const liked = choice.images.map(() => null);
  choice.images.forEach((image, index) => {
    const cell = element("div", "flex:1 1 96px;min-width:96px;display:flex;flex-direction:column;align-items:center");
    const picture = element("img", "max-width:100%;max-height:100%;object-fit:contain;min-height:0;flex:1;outline-offset:-3px",
      { src: address(image), alt: `picture ${index + 1}`, draggable: false });
    const mark = (colour) => (picture.style.outline = colour ? `3px solid ${colour}` : "");
    cell.append(picture);
    if (open && choice.kind === "best") {
      picture.style.cursor = "pointer";
      const choose = async () => (await answer(choice, { winner: index }, box)) && mark("#5c5");
      picture.onclick = choose;
      cell.append(button(`${index + 1} is better`, "This picture is the best", choose));
    } else if (open) {
      const thumb = (yes) => () => {
        liked[index] = liked[index] === yes ? null : yes;
        mark(liked[index] === null ? "" : yes ? "#5c5" : "#c55");
      };
      const thumbs = element("div", "display:flex;gap:4px");
      thumbs.append(button("👍", "I like it", thumb(true)), button("👎", "I do not like it", thumb(false)));
      cell.append(thumbs);
    }
    row.append(cell);
  });
  const last = element("div", "display:flex;gap:4px;justify-content:center");
  if (open && choice.kind === "best" && choice.images.length === 2) {
    last.append(button("tie", "Neither is better", () => answer(choice, { winner: -2 }, box)));
  }
  if (open && choice.kind === "rate") {
    last.append(button("write", "Write the thumbs into the dataset", () => answer(choice, { liked }, box)));
  }
  box.replaceChildren(row, last, said);
}

app.registerExtension({
  name: "pixelkiln.chooser",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return;
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      executed?.apply(this, arguments);
      const choice = output?.pixelkiln_choice?.[0];
      if (!choice) return;
      if (!this.pixelkilnBox) {
        this.pixelkilnBox = element("div", "display:flex;flex-direction:column;width:100%;height:100%;overflow:hidden",
          { className: "pixelkiln-chooser" });
        this.addDOMWidget("chooser", "pixelkiln_chooser", this.pixelkilnBox, {
          serialize: false,
          getMinHeight: () => 220,
        });
        this.setSize([Math.max(this.size[0], 360), Math.max(this.size[1], 520)]);
      }
      draw(choice, this.pixelkilnBox);
    };
  },
});
