// The size of activations and gradients, layer by layer: a drawing that leads to the layer that is clicked.

const PLOT = { width: 1000, height: 84, top: 8, bottom: 8 }; // in units of the drawing, which is stretched

/** Root mean square of a tensor from its norm; null where there is none or it is zero. */
function rootMeanSquare(size, shape) {
  const value = size
    ? Number(size.norm) / Math.sqrt(shape.reduce((product, length) => product * length, 1))
    : 0;
  return Number.isFinite(value) && value > 0 ? value : null;
}

function plot() {
  const { operations } = state.trace;
  const lines = {
    forward: operations.map((one) => rootMeanSquare(one.size, one.shape)),
    backward: operations.map((one) => rootMeanSquare(one.incoming, one.shape)),
  };
  const logs = [...lines.forward, ...lines.backward].filter((value) => value !== null).map(Math.log10);
  const low = Math.floor(Math.min(...logs));
  const high = Math.max(low + 1, Math.ceil(Math.max(...logs)));
  const x = (number) => (PLOT.width * (number + 0.5)) / operations.length;
  const y = (value) =>
    PLOT.top + ((high - Math.log10(value)) / (high - low)) * (PLOT.height - PLOT.top - PLOT.bottom);
  const every = Math.max(1, Math.ceil((high - low) / 4));
  const powers = Array.from(
    { length: Math.floor((high - low) / every) + 1 },
    (_, step) => low + step * every,
  );
  const grid = powers.map((power) =>
    drawn("path", { d: `M0 ${y(10 ** power)}H${PLOT.width}`, class: "grid" }),
  );
  const scale = element(
    "div",
    { class: "powers", "aria-hidden": "true" },
    powers.map((power) => {
      const label = element("span", {}, `1e${power}`);
      label.style.top = `${y(10 ** power)}px`;
      return label;
    }),
  );
  const path = (values) =>
    values
      .map((value, number) => {
        if (value === null) return "";
        const letter = number && values[number - 1] !== null ? "L" : "M";
        return `${letter}${x(number).toFixed(1)} ${y(value).toFixed(1)}`;
      })
      .join("");
  const svg = drawn(
    "svg",
    {
      viewBox: `0 0 ${PLOT.width} ${PLOT.height}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": word("plot"),
      click: (event) => {
        const box = svg.getBoundingClientRect();
        const place = Math.floor(((event.clientX - box.left) / box.width) * operations.length);
        goToOperation(Math.min(operations.length - 1, Math.max(0, place)));
      },
    },
    grid,
    drawn("path", { d: path(lines.forward), class: "activation" }),
    drawn("path", { d: path(lines.backward), class: "gradient" }),
    drawn("line", { id: "here", y1: PLOT.top, y2: PLOT.height - PLOT.bottom }),
  );
  const legend = element(
    "p",
    { class: "legend" },
    element("span", { class: "activation" }, word("activation")),
    element("span", { class: "gradient" }, word("gradient")),
    element("span", { id: "sizehere" }),
  );
  at("plot").replaceChildren(element("div", { class: "drawing" }, scale, svg), legend);
  plot.x = x;
  plot.lines = lines;
}

/** Mark the step at hand in the plot. */
function marked() {
  const { number } = state.events[state.event];
  const here = at("here");
  here.setAttribute("x1", plot.x(number));
  here.setAttribute("x2", plot.x(number));
  const part = (name, value) => (value === null ? "" : `${word(name)} ${format(value, 3)}`);
  at("sizehere").textContent = [
    part("activation", plot.lines.forward[number]),
    part("gradient", plot.lines.backward[number]),
  ]
    .filter(Boolean)
    .join(", ");
}
