import { make } from "./dom.js";

// Viridis for sizes: it reads the same for who sees few colours, and in grey. Blue to orange around zero.
const SIZES = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const SIGNED = [[33, 102, 172], [146, 197, 222], [245, 245, 245], [253, 184, 99], [179, 88, 6]];
const NOTHING = [128, 128, 128, 60]; // of what was not measured

function colour(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((one, i) => Math.round(one + (stops[low + 1][i] - one) * (at - low)));
}

/** How the values of a figure become colours: logarithmic where they are sizes, around zero where signed. */
export function scaleOf(values, signed) {
  const known = values.filter((one) => one !== null && (signed || one > 0));
  if (!known.length) return null;
  if (signed) {
    const most = Math.max(...known.map(Math.abs)) || 1;
    return { least: -most, most, colour: (value) => colour(SIGNED, 0.5 + value / (2 * most)) };
  }
  const sorted = [...known].sort((a, b) => a - b);
  // A single value far from all others must not take the colours of the rest.
  const [least, most] = [sorted[Math.floor(0.01 * (sorted.length - 1))], sorted[Math.ceil(0.99 * (sorted.length - 1))]];
  const [low, high] = [Math.log10(least), Math.log10(most)];
  return { least, most, colour: (value) => colour(SIZES, value > 0 ? (Math.log10(value) - low) / (high - low || 1) : 0) };
}

function paint(canvas, rows, shade) {
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  const pen = canvas.getContext("2d");
  const picture = pen.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, i) => {
    picture.data.set(value === null ? NOTHING : [...shade(value), 255], 4 * i);
  });
  pen.putImageData(picture, 0, 0);
}

/**
 * A map of colours: a row for each name, a column for each look. `choose(row)` when a name or a place is picked,
 * `point(row, column)` while the pointer is over it, both null when it leaves.
 */
export function heat(host, names, rows, { scale, chosen, choose, point, ends, label }) {
  const high = Math.max(14, Math.min(24, Math.floor(520 / names.length)));
  const canvas = make("canvas", { role: "img", "aria-label": label });
  paint(canvas, rows, scale.colour);
  canvas.style.height = `${high * names.length}px`;
  const buttons = names.map((name, i) => {
    const button = make("button", { type: "button", title: name, "aria-pressed": i === chosen }, name);
    button.addEventListener("click", () => choose(i));
    return button;
  });
  const list = make("div", { class: "names" }, ...buttons);
  list.style.gridAutoRows = `${high}px`;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * names.length);
    const column = Math.floor(((event.clientX - box.left) / box.width) * rows[0].length);
    return [Math.min(Math.max(row, 0), names.length - 1), Math.min(Math.max(column, 0), rows[0].length - 1)];
  };
  canvas.addEventListener("mousemove", (event) => point(...place(event)));
  canvas.addEventListener("mouseleave", () => point(null, null));
  canvas.addEventListener("click", (event) => choose(place(event)[0]));
  const under = make("div", { class: "under" }, make("span", {}, ends[0]), make("span", {}, ends[1]));
  const focused = [...host.querySelectorAll(".names button")].indexOf(document.activeElement);
  const scrolled = host.firstElementChild?.scrollTop ?? 0;
  host.replaceChildren(make("div", { class: "heat" }, list, canvas, under));
  host.firstElementChild.scrollTop = scrolled;
  if (focused >= 0) buttons[focused]?.focus();
}

/** A strip of the colours, from the least to the most. */
export function strip(signed) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  paint(canvas, [Array.from({ length: 64 }, (_, i) => i / 63)], (share) => colour(signed ? SIGNED : SIZES, share));
  return canvas;
}

/** A table of many classes as a picture: a share of its row for each cell. */
export function squares(shares, label) {
  const canvas = make("canvas", { role: "img", "aria-label": label });
  paint(canvas, shares, (share) => colour(SIZES, share));
  return canvas;
}
