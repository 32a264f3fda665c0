// Adapter stack: the text of "rows" as rows with on/off, order and two strengths. The text is what is saved and queued.
import { app } from "../../scripts/app.js";

const BUTTON = "padding:0 6px;cursor:pointer";

function element(tag, style, more = {}) {
  const made = Object.assign(document.createElement(tag), more);
  made.style.cssText = style;
  return made;
}

// One line of the text is one row: "# file | model | text encoders | blocks".
function read(text) {
  return String(text ?? "").split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
    const [name, model, clip, ...blocks] = line.replace(/^[#\s]+/, "").split("|").map((part) => part.trim());
    const both = model || "1";
    return { on: !line.startsWith("#"), name, model: both, clip: clip || both, blocks: blocks.join("|") };
  });
}

function write(rows) {
  return rows.map((row) => {
    const parts = [row.name, row.model, row.clip, ...(row.blocks ? [row.blocks] : [])];
    return (row.on ? "" : "# ") + parts.join(" | ");
  }).join("\n");
}

function draw(box, widget, files) {
  const rows = read(widget.value);
  const save = (again) => {
    widget.value = write(rows);
    if (again) draw(box, widget, files);
  };
  const lines = rows.map((row, index) => {
    const line = element("div", "display:flex;gap:3px;align-items:center", { className: "pixelkiln-row" });
    const on = element("input", "", { type: "checkbox", checked: row.on, title: "on or off" });
    on.onchange = () => { row.on = on.checked; save(); };
    const list = element("select", "flex:1;min-width:60px", { title: "adapter" });
    for (const file of files.includes(row.name) ? files : [row.name, ...files]) list.append(new Option(file, file));
    list.value = row.name;
    list.onchange = () => { row.name = list.value; save(); };
    const strength = (key, title) => {
      const field = element("input", "width:52px", { type: "number", step: "any", value: row[key], title });
      field.onchange = () => { row[key] = field.value || "1"; save(); };
      return field;
    };
    const move = (text, by) => {
      const button = element("button", BUTTON, { textContent: text, title: by < 0 ? "earlier" : "later" });
      button.disabled = !rows[index + by];
      button.onclick = () => { rows.splice(index + by, 0, rows.splice(index, 1)[0]); save(true); };
      return button;
    };
    const remove = element("button", BUTTON, { textContent: "×", title: "remove" });
    remove.onclick = () => { rows.splice(index, 1); save(true); };
    line.append(on, list, strength("model", "model strength"), strength("clip", "text encoder strength"),
      move("↑", -1), move("↓", 1), remove);
    return line;
  });
  const add = element("button", BUTTON, { textContent: "+ adapter", title: "add a row" });
  add.onclick = () => { rows.push({ on: true, name: files[0] ?? "none", model: "1", clip: "1", blocks: "" }); save(true); };
  box.replaceChildren(...lines, add);
}

function show() {
  const rows = this.widgets?.find((widget) => widget.name === "rows");
  const values = this.widgets?.find((widget) => widget.name === "adapter_1")?.options?.values ?? [];
  const files = (typeof values === "function" ? values() : values).filter((file) => file !== "none");
  if (!rows) return;
  if (!this.pixelkilnRows) {
    this.pixelkilnRows = element("div", "display:flex;flex-direction:column;gap:3px;font-size:12px;overflow:auto",
      { className: "pixelkiln-rows" });
    this.addDOMWidget("more", "pixelkiln_rows", this.pixelkilnRows, { serialize: false, getMinHeight: () => 90 });
  }
  draw(this.pixelkilnRows, rows, files);
}

app.registerExtension({
  name: "pixelkiln.stack",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "PixelkilnAdapterStack") return;
    for (const name of ["onNodeCreated", "onConfigure"]) {
      const before = nodeType.prototype[name];
      nodeType.prototype[name] = function () {
        const result = before?.apply(this, arguments);
        show.call(this);
        return result;
      };
    }
  },
});
