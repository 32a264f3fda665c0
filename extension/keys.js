() => {
  // Keys press the visible button that carries them: left, right, down (tie), S (skip), U (undo).
  const names = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", s: "skip", u: "undo" };
  document.addEventListener("keydown", (event) => {
    const name = names[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!name || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, [contenteditable=true], [role=listbox], .cm-editor")) return;
    for (const screen of ["prefer", "vote"]) {
      const found = document.getElementById(`${screen}-${name}`);
      const button = found && (found.matches("button") ? found : found.querySelector("button"));
      if (button && button.offsetParent !== null && !button.disabled) {
        event.preventDefault();
        button.click();
        return;
      }
    }
  });
}
