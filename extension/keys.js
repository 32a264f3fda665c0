() => {
  // Keys press the visible button that carries them: left, right, down (tie), S (skip), U (undo).
  const names = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", s: "skip", u: "undo", z: "zoom" };
  const typing = "input, textarea, select, [contenteditable=true], [role=listbox], .cm-editor";
  // Who came to a tab with the Tab key moves along the tabs; after a click on one the keys vote.
  let byKeys = false;
  document.addEventListener("pointerdown", () => { byKeys = false; }, true);
  document.addEventListener("keydown", (event) => { byKeys ||= event.key === "Tab"; }, true);
  document.addEventListener("keydown", (event) => {
    const name = names[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!name || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest(typing) || (byKeys && event.target.closest("[role=tab]"))) return;
    for (const screen of ["prefer", "vote", "study"]) {
      const found = document.getElementById(`${screen}-${name}`);
      const button = found && (found.matches("button") ? found : found.querySelector("button"));
      if (button && button.offsetParent !== null && !button.disabled) {
        event.preventDefault();
        button.click();
        return;
      }
    }
  });

  // Zoom of a duel: Z, a click or the wheel; both pictures show the same part, which follows the mouse.
  const zooms = [1, 2, 4];
  const duelOf = (event) => event.target.closest?.(".duel figure");
  const zoom = (to, event) => {
    const root = document.documentElement.style;
    const now = Number(root.getPropertyValue("--zoom")) || 1;
    root.setProperty("--zoom", to(zooms.indexOf(now)));
    if (event) look_at(event);
  };
  const look_at = (event) => {
    const figure = duelOf(event);
    if (!figure) return;
    const box = figure.getBoundingClientRect();
    const root = document.documentElement.style;
    root.setProperty("--zoom-x", `${(100 * (event.clientX - box.left)) / box.width}%`);
    root.setProperty("--zoom-y", `${(100 * (event.clientY - box.top)) / box.height}%`);
  };
  const next = (at) => zooms[(at + 1) % zooms.length];
  window.addEventListener("zoom-duel", () => zoom(next));
  document.addEventListener("mousemove", look_at);
  document.addEventListener("click", (event) => { if (duelOf(event)) zoom(next, event); });
  document.addEventListener("wheel", (event) => {
    if (!duelOf(event) || !event.ctrlKey) return;
    event.preventDefault();
    zoom((at) => zooms[Math.max(0, Math.min(zooms.length - 1, at + (event.deltaY < 0 ? 1 : -1)))], event);
  }, { passive: false });

  // Before | after by keys: on the handle arrows move it; with the previews in full screen they go through the steps.
  // gradio's handle knows the mouse alone, so that is what it is given.
  const handles = '[data-testid="slider"]';
  const drag = (handle, by) => {
    const box = handle.getBoundingClientRect();
    const at = { view: window, bubbles: true, cancelable: true, clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
    const to = { ...at, clientX: at.clientX + by * handle.parentElement.getBoundingClientRect().width };
    handle.dispatchEvent(new MouseEvent("mousedown", at));
    window.dispatchEvent(new MouseEvent("mousemove", to));
    window.dispatchEvent(new MouseEvent("mouseup", to));
  };
  const name = () => {
    for (const one of document.querySelectorAll(handles)) {
      if (one.tabIndex === 0) continue;
      one.tabIndex = 0;
      one.setAttribute("role", "separator");
      one.setAttribute("aria-valuenow", "50");
      one.setAttribute("aria-label", one.closest(".block")?.querySelector("[data-testid=block-label]")?.textContent.trim() || "");
    }
  };
  new MutationObserver(name).observe(document.body, { subtree: true, childList: true });
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    const handle = event.target.closest(handles);
    const range = document.querySelector("#preview-at input[type=range]");
    if (handle) {
      drag(handle, by / 20);
      const whole = handle.parentElement.getBoundingClientRect();
      const box = handle.getBoundingClientRect();
      const part = Math.round((100 * (box.left + box.width / 2 - whole.left)) / whole.width);
      handle.setAttribute("aria-valuenow", String(Math.max(0, Math.min(100, part))));
    } else if (range && document.querySelector("#before-after.fullscreen")) {
      if (event.target !== range) range.value = String(Number(range.value) + by);
      range.dispatchEvent(new Event("input", { bubbles: true }));
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }, true);

  // Tab leaves the text of the recipe; arrow keys move along the tabs.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Tab" && event.target.closest(".cm-editor")) event.stopPropagation();
    const tab = event.target.closest("#steps > .tab-wrapper [role=tab]");
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!tab || !by || !byKeys) return;
    const tabs = tabsOf();
    const next = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
    event.preventDefault();
    next.focus();
    next.click();
  }, true);

  // Each screen has an address, and the theme is remembered.
  const tabsOf = () => [...document.querySelectorAll("#steps > .tab-wrapper [role=tab]")].filter((one) => one.offsetParent);
  const screens = ["pictures", "recipe", "train", "compare", "prefer"];
  const inner = { studies: "compare", maps: "compare" };
  // The tab of a panel; one that a narrow window keeps in a menu, by the text of the strip that gradio measures unseen.
  const tabOf = (panel) => {
    const seen = document.getElementById(`${panel}-button`);
    const [kind, name] = panel.split("-");
    const [strip, names] = kind === "tab" ? ["#steps", screens] : ["#tab-compare .tabs", ["compare", "studies", "maps"]];
    const all = (where) => [...document.querySelectorAll(`${strip} > .tab-wrapper ${where} button`)];
    const text = (one) => one?.textContent.trim();
    return seen || all(".overflow-dropdown").find((one) => text(one) === text(all(".visually-hidden")[names.indexOf(name)]));
  };
  const chosen = (tab) => tab?.getAttribute("aria-selected") === "true";
  const select = (tab) => { if (!chosen(tab)) tab?.click(); };
  let pending = [];  // the tabs that are still to be selected for the address; until then it is not changed
  const goTo = () => {
    const name = location.hash.slice(1);
    const step = screens.indexOf(inner[name] || name);
    if (step < 0) return;
    const tabs = [() => tabOf(`tab-${screens[step]}`)];
    if (name in inner || name === "compare") tabs.push(() => tabOf(`inner-${name}`));
    pending = tabs;
    const selectNext = () => {  // a step's own tabs come with it, on a slow machine many seconds later
      if (pending !== tabs) return;
      const tab = tabs[0]();
      if (chosen(tab)) tabs.shift();
      else tab?.click();
      if (tabs.length) setTimeout(selectNext, 100);
    };
    selectNext();
  };
  for (const kind of ["pointerdown", "keydown"]) document.addEventListener(kind, () => { pending = []; }, true);  // a person goes elsewhere
  const here = () => {
    const name = screens.find((one) => chosen(document.getElementById(`tab-${one}-button`)));
    const shown = Object.keys(inner).find((one) => inner[one] === name
      && chosen(document.getElementById(`inner-${one}-button`)));
    return shown || name;
  };
  window.addEventListener("hashchange", goTo);
  const wait = setInterval(() => {
    if (!tabsOf().length) return;
    clearInterval(wait);
    const asked = location.hash.slice(1);
    if (asked in inner || screens.indexOf(asked) > 0) goTo();
    const observer = new MutationObserver(() => {
      const name = pending.length ? "" : here();
      if (name && location.hash.slice(1) !== name) history.replaceState(null, "", `#${name}`);
    });
    const change = { subtree: true, attributes: true, attributeFilter: ["aria-selected"] };
    observer.observe(document.getElementById("steps"), change);
    const strip = document.querySelector("#steps > .tab-wrapper");  // what leaves the menu comes into it as a new tab
    observer.observe(strip, { ...change, childList: true });
  }, 100);
  const theme = localStorage.getItem("pixelkiln-theme");
  if (theme) document.body.classList.toggle("dark", theme === "dark");

  // The browser's title says how far a run is; its end is a notification.
  let before = "";
  const look = () => {
    const line = document.querySelector(".headline");
    if (!line) return;
    const { title = "", run = "" } = line.dataset;
    document.title = title ? `${title} · Pixelkiln` : "Pixelkiln";
    if (before && run !== before && "Notification" in window && Notification.permission === "granted")
      new Notification("Pixelkiln", { body: before });
    before = run;
  };
  setInterval(look, 1000);
  // A page that is not of this machine and not encrypted has no clipboard; the older command works there.
  const copy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const held = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(held);
    held.select();
    document.execCommand("copy");
    held.remove();
  };
  document.addEventListener("click", (event) => {
    const copied = event.target.closest("[data-copy]");
    if (copied) copy(copied.dataset.copy).then(() => copied.classList.add("done"));
    const start = event.target.closest("#start-training");
    if (start && "Notification" in window && Notification.permission === "default") Notification.requestPermission();
  });

  // From an option's name to its field: where it is seen, else as the search of all options finds it.
  const first = { "data.path": "folder" };  // in step 1
  const others = { "preset": "preset", "objective.kind": "objective" };
  const fieldOf = (key) => {
    const id = key.replaceAll(".", "-");
    const ids = key in first ? [first[key]] : [`field-${id}`, others[key] || "", `option-${id}`];
    return ids.map((one) => document.getElementById(one)).find((one) => one?.offsetParent);
  };
  const soon = async (found, tries = 60) => {
    for (; tries && !found(); tries -= 1) await new Promise((done) => setTimeout(done, 50));
    return found();
  };
  const search = () => [...document.querySelectorAll("#search-options :is(input, textarea)")].find((one) => one.offsetParent);
  const showOption = async (key) => {
    if (key in first) select(tabOf("tab-pictures"));
    else if (!fieldOf(key) && !search()) document.querySelector("#all-options > button")?.click();
    const box = await soon(() => fieldOf(key) || search(), 200);
    if (box && !fieldOf(key)) {
      await new Promise((done) => setTimeout(done, 200));  // what was typed in a found field arrives before others are built
      box.value = key;
      box.dispatchEvent(new Event("input", { bubbles: true }));
    }
    const field = await soon(() => fieldOf(key), 200);
    field?.scrollIntoView({ block: "center" });
    field?.querySelector("input, textarea")?.focus({ preventScroll: true });
  };
  document.addEventListener("click", (event) => {
    const named = event.target.closest("[data-option]");
    if (named) showOption(named.dataset.option);
  });

  // Without the server nothing that is typed would be saved: a banner says so, and typing stops.
  const banner = document.createElement("div");
  banner.id = "server-gone";
  banner.setAttribute("role", "alert");
  banner.hidden = true;
  document.body.append(banner);
  let missed = 0;
  setInterval(async () => {
    try {
      missed = (await fetch("/alive", { cache: "no-store" })).ok ? 0 : missed + 1;
    } catch {
      missed += 1;
    }
    banner.textContent = document.getElementById("gone-text")?.textContent || "";
    banner.hidden = missed < 2;
    document.querySelector(".gradio-container").inert = missed >= 2;
  }, 3000);
}
