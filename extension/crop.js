// A frame that is dragged over the open picture; the field below says it in percents, and may be typed instead.
let from = null;
const field = () => document.querySelector("#crop-frame input, #crop-frame textarea");
const part = (event, whole) => {
  const box = whole.getBoundingClientRect();
  const within = (value) => Math.max(0, Math.min(100, 100 * value));
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
};
element.addEventListener("pointerdown", (event) => {
  const whole = event.target.closest(".whole");
  if (!whole || event.button || !field()?.offsetParent) return;
  from = { whole, at: part(event, whole) };
  whole.setPointerCapture(event.pointerId);
  event.preventDefault();
});
element.addEventListener("pointermove", (event) => {
  if (!from) return;
  const [x, y] = part(event, from.whole);
  const frame = [Math.min(x, from.at[0]), Math.min(y, from.at[1]), Math.abs(x - from.at[0]), Math.abs(y - from.at[1])];
  const drawn = from.whole.querySelector(".drawn");
  ["left", "top", "width", "height"].forEach((name, n) => { drawn.style[name] = `${frame[n]}%`; });
  drawn.classList.add("crop");
  field().value = frame.map((one) => one.toFixed(1)).join(", ");
  field().dispatchEvent(new Event("input", { bubbles: true }));
});
element.addEventListener("pointerup", () => { from = null; });
element.addEventListener("pointercancel", () => { from = null; });
