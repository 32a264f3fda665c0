// A preview as large as the window: left and right go through its prompt's steps, up and down through the prompts,
// Escape or a click closes. With Ctrl or Shift its link opens as any other.
let row = 0;
let column = 0;
const rows = () => [...element.querySelectorAll("tbody tr")].map((one) => [...one.querySelectorAll("a[data-large]")]);
const box = document.createElement("dialog");
const [picture, caption] = ["img", "p"].map((kind) => box.appendChild(document.createElement(kind)));
box.id = "large-preview";
box.tabIndex = -1;
document.body.append(box);
const show = (y, x) => {
  const all = rows();
  row = Math.max(0, Math.min(all.length - 1, y));
  column = Math.max(0, Math.min((all[row]?.length || 1) - 1, x));
  const link = all[row]?.[column];
  if (!link) return;
  picture.src = link.href;
  picture.alt = box.ariaLabel = caption.textContent = link.title;
};
element.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-large]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const all = rows();
  const y = all.findIndex((one) => one.includes(link));
  show(y, all[y].indexOf(link));
  box.showModal();
  box.focus();
});
box.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!by) return;
  event.preventDefault();
  show(row + by[0], column + by[1]);
});
box.addEventListener("click", () => box.close());
// Who closes it stands again where the preview is.
box.addEventListener("close", () => rows()[row]?.[column]?.focus());
