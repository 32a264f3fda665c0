// What a node said (its ui text) under its widgets.
import { app } from "../../scripts/app.js";

const NODES = /^Pixelkiln(LoadAdapter|AdapterStack|RunAdapter|BlockStrengths|Dataset|Train|RunStatus|RunSteer|FitCheck|GridPlan|TriggerWords|AdapterSchedule)/;

app.registerExtension({
  name: "pixelkiln.text",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.test(nodeData.name)) return;
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      executed?.apply(this, arguments);
      const said = output?.text?.[0];
      if (said === undefined) return;
      if (!this.pixelkilnText) {
        this.pixelkilnText = document.createElement("pre");
        this.pixelkilnText.className = "pixelkiln-text";
        this.pixelkilnText.style.cssText = "margin:0;padding:4px;font-size:11px;white-space:pre-wrap;overflow:auto";
        this.addDOMWidget("said", "pixelkiln_text", this.pixelkilnText, { serialize: false, getMinHeight: () => 60 });
      }
      this.pixelkilnText.textContent = said;
    };
  },
});
