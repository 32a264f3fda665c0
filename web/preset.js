// Train and Check a training: numbers that are left to the preset read so, also in workflows saved when they were 0.
import { app } from "../../scripts/app.js";

const NODES = ["PixelkilnTrain", "PixelkilnFitCheck"];
const UNSET = { steps: 0, rank: 0, learning_rate: 0, resolution: 0, batch: 0, run_seed: -1 };
const PRESET = "as in the preset";

app.registerExtension({
  name: "pixelkiln.preset",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.includes(nodeData.name)) return;
    const configure = nodeType.prototype.onConfigure;
    nodeType.prototype.onConfigure = function () {
      configure?.apply(this, arguments);
      for (const widget of this.widgets ?? []) {
        if (!(widget.name in UNSET) || widget.type === "number") continue;
        const empty = widget.value === null || widget.value === "" || Number(widget.value) === UNSET[widget.name];
        widget.value = empty ? PRESET : String(widget.value);
      }
    };
  },
});
