// Elements, numbers and pictures. All text from the recording goes through textContent, never through HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, event handlers (functions) and children (elements or text). */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An element of a drawing. */
function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

/** A number in so many digits, as short as it goes: 0.0123, 1.5e-7. */
function format(value, digits = 6) {
  const number = Number(value);
  if (!Number.isFinite(number)) return String(value);
  const size = Math.abs(number);
  if (number !== 0 && (size < 1e-4 || size >= 1e7))
    return number.toExponential(digits - 1).replace(/\.?0+e/, "e");
  return String(Number(number.toPrecision(digits)));
}

const percent = (share) => `${format(100 * share, 3)}%`;
const timesSigns = (shape) => (shape.length ? shape.join(" × ") : "1");

// ------------------------------------------------------------------------------------------------ pictures

/** The colours of the theme: of numbers below zero, of zero, and above. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  return ["--below", "--zero", "--above"].map((name) =>
    style.getPropertyValue(name).trim().split(" ").map(Number),
  );
}

/**
 * The size at which colours are full: of a picture one such that nearly all numbers (99 of 100) are below it;
 * of a list, whose numbers are read one by one, and of less than a hundred numbers the largest.
 */
function fullColour(data, isList = false) {
  const stride = isList ? 1 : Math.max(1, Math.floor(data.length / 4096));
  const sizes = [];
  for (let i = 0; i < data.length; i += stride) if (Number.isFinite(data[i])) sizes.push(Math.abs(data[i]));
  sizes.sort((a, b) => a - b);
  const largest = sizes[sizes.length - 1];
  return (isList ? largest : sizes[Math.ceil(0.99 * (sizes.length - 1))] || largest) || 1;
}

/** A picture of rows x columns numbers, a pixel each; numbers that are not finite are magenta. */
function picture(values, rows, columns, full) {
  const canvas = element("canvas", { width: columns, height: rows });
  const image = new ImageData(columns, rows);
  const [below, zero, above] = palette();
  for (let i = 0; i < rows * columns; i++) {
    const value = i < values.length ? values[i] : 0;
    const end = value < 0 ? below : above;
    const share = Math.min(1, Math.abs(value) / full);
    const colour = Number.isFinite(value)
      ? zero.map((low, part) => low + share * (end[part] - low))
      : [255, 0, 255];
    image.data.set([...colour, i < values.length ? 255 : 0], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The picture as people see it. */
function photograph({ width, height, rgb }) {
  const canvas = element("canvas", { width, height });
  const image = new ImageData(width, height);
  const bytes = atob(rgb);
  for (let i = 0; i < width * height; i++) {
    const colour = [0, 1, 2].map((part) => bytes.charCodeAt(3 * i + part));
    image.data.set([...colour, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** What the colours of a picture mean. */
function scaleBar(full) {
  const end = format(full, 3);
  return element(
    "p",
    { class: "scale" },
    `-${end}`,
    element("span", { class: "bar", "aria-hidden": "true" }),
    end,
  );
}

// -------------------------------------------------------------------------------------------- explanations

/** A small table of numbers; `off` marks cells outside of the picture, `mark` the one that counts. */
function matrix(title, rows, off, mark) {
  const dense = rows[0].length > 5;
  const cell = (value, i, j) =>
    element(
      "td",
      {
        class:
          [off && off[i][j] ? "off" : "", mark && mark[i][j] ? "mark" : ""].join(" ").trim() || undefined,
      },
      format(value, dense ? 2 : 3),
    );
  const body = rows.map((row, i) =>
    element(
      "tr",
      {},
      row.map((value, j) => cell(value, i, j)),
    ),
  );
  return element(
    "figure",
    { class: dense ? "matrix dense" : "matrix" },
    element("figcaption", {}, title),
    element("table", {}, element("tbody", {}, body)),
  );
}

const BLOCKS = {
  note: ({ text }) => element("p", { class: "note" }, text),
  terms: ({ rows }) =>
    element(
      "table",
      { class: "terms" },
      element(
        "tbody",
        {},
        rows.map(([label, value]) =>
          element("tr", {}, element("th", { scope: "row" }, label), element("td", {}, format(value))),
        ),
      ),
    ),
  list: ({ heading, rows, digits = heading.length > 5 ? 3 : 6 }) =>
    element(
      "table",
      { class: "list" },
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          heading.map((text) => element("th", { scope: "col" }, text)),
        ),
      ),
      element(
        "tbody",
        {},
        rows.map((row) =>
          element(
            "tr",
            {},
            row.map((value) => element("td", {}, typeof value === "number" ? format(value, digits) : value)),
          ),
        ),
      ),
    ),
  window: ({ label, parts, off, mark, sum }) =>
    element(
      "div",
      { class: "window" },
      element("p", { class: "label" }, label, sum === undefined ? "" : `: ${word("sumOf")} ${format(sum)}`),
      element(
        "div",
        { class: "matrices" },
        parts.map(([title, rows], part) => matrix(title, rows, part === 0 ? off : null, mark)),
      ),
    ),
};

/** An explanation: its blocks, and the number computed here beside the recorded one. */
function explained({ blocks, total, recorded, formula }) {
  const parts = blocks.map((block) => BLOCKS[block.kind](block));
  const result = [];
  if (total !== undefined) result.push([word("total", { formula }), "total", total]);
  if (recorded !== undefined)
    result.push([word(total === undefined ? "recordedOnly" : "recorded"), "recorded", recorded]);
  if (total !== undefined && recorded !== undefined)
    result.push([word("difference"), "difference", total - recorded]);
  const list = element(
    "dl",
    { class: "result" },
    result.map(([label, name, value]) =>
      element(
        "div",
        {},
        element("dt", {}, label),
        element("dd", { "data-result": name }, format(value, name === "difference" ? 2 : 6)),
      ),
    ),
  );
  return result.length ? [list, ...parts] : parts;
}
