// The grid of pictures as a list of which many can be chosen: a click opens a picture, a click on its mark (or with Ctrl
// or Shift) chooses it; arrow keys move, Space chooses, Enter opens, Ctrl+A chooses all, Escape none.
const chosen = new Set();
let at = 0;
let anchor = 0;
let name = ""; // of the one at ``at``, which other pictures may come before
const cells = () => [...element.querySelectorAll("[role=option]")];
const show = () => {
  const all = cells();
  name = all[at]?.dataset.name || "";
  all.forEach((one, n) => {
    one.setAttribute("aria-selected", String(chosen.has(one.dataset.name)));
    one.classList.toggle("at", n === at);
  });
  element.querySelector("[role=listbox]")?.setAttribute("aria-activedescendant", all[at]?.id || "");
  const here = all.filter((one) => chosen.has(one.dataset.name)).length;
  for (const count of document.querySelectorAll(".chosen-count")) count.textContent = String(here);
};
const choose = (n, on, from = n) => {
  for (const one of cells().slice(Math.min(n, from), Math.max(n, from) + 1))
    on ? chosen.add(one.dataset.name) : chosen.delete(one.dataset.name);
  at = anchor = n;
  show();
};
const all = (on) => {
  chosen.clear();
  if (on) cells().forEach((one) => chosen.add(one.dataset.name));
  show();
};
const open = (n) => {
  const one = cells()[n];
  if (!one) return;
  at = anchor = n;
  show();
  trigger("select", { name: one.dataset.name });
};
element.addEventListener("click", (event) => {
  const one = event.target.closest("[role=option]");
  if (!one) return;
  const n = cells().indexOf(one);
  if (event.shiftKey) choose(n, true, anchor);
  else if (event.ctrlKey || event.metaKey || event.target.closest(".tick")) choose(n, !chosen.has(one.dataset.name));
  else open(n);
});
element.addEventListener("keydown", (event) => {
  const every = cells();
  if (!every.length || !event.target.closest("[role=listbox]")) return;
  const across = every.filter((one) => one.offsetTop === every[0].offsetTop).length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  if (by) {
    const next = Math.max(0, Math.min(every.length - 1, at + by));
    if (event.shiftKey) chosen.add(every[next].dataset.name).add(every[at].dataset.name);
    at = next;
    every[at].scrollIntoView({ block: "nearest" });
    show();
  } else if (event.key === " ") choose(at, !chosen.has(every[at].dataset.name));
  else if (event.key === "Enter") open(at);
  else if (event.key === "a" && (event.ctrlKey || event.metaKey)) all(true);
  else if (event.key === "Escape") all(false);
  else return;
  event.preventDefault();
});
document.addEventListener("choose-pictures", (event) => all(event.detail));
watch("value", () => {
  const there = new Set(cells().map((one) => one.dataset.name));
  for (const name of [...chosen]) if (!there.has(name)) chosen.delete(name);
  at = anchor = Math.max(0, [...there].indexOf(name));
  show();
});
