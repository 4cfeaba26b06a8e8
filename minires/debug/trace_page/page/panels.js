// What is shown of a step: the channels of its tensors as pictures, its kernels, and one number explained.
//
// A panel shows the channels of one tensor: small pictures to choose from, and the chosen one large. Where a
// panel explains its numbers, pointing at the large picture says how they came about.

function forwardView(operation) {
  const { trace } = state;
  const inputs = operation.inputs
    .map((input, place) => [input, place])
    .filter(([input]) => input.number !== null);
  const panels = inputs.map(([input]) => {
    const source = trace.operations[input.number];
    return panel({
      key: `x${source.number}`,
      title: word("inputOf", { label: input.label }),
      link: source,
      operation: source,
      id: source.arrays.output,
    });
  });
  const explainHere = (channel, i, j) => explainOutput(trace, operation, channel, i, j);
  const title = word(isInput(operation) ? "asTheNetworkSees" : "output");
  const y = panel({
    key: `y${operation.number}`,
    title,
    operation,
    id: operation.arrays.output,
    explain: explainHere,
  });
  return [
    element("div", { class: "panels" }, photo(operation), panels, y),
    kernelPanels(operation, [["kernel", isDense(operation) ? "weights" : "kernels", null]]),
  ].flat();
}

function photo(operation) {
  if (!isInput(operation) || !state.trace.picture) return [];
  return element("section", { class: "panel" }, element("h3", {}, word("picture")), photographed());
}

function photographed() {
  const { height, width } = state.trace.picture;
  const box = largePicture(height, width, false);
  box.append(photograph(state.trace.picture));
  return box;
}

function backwardView(operation) {
  const { trace } = state;
  const own = panel({
    key: `dy${operation.number}`,
    title: word("incoming"),
    operation,
    id: operation.arrays.incoming,
    shownOnly: true,
    explain: (channel, i, j) => explainIncoming(trace, operation, channel, i, j),
  });
  const sent = operation.outgoing
    .map((gradient, input) => {
      if (gradient.array === undefined) return null;
      const source = trace.source(operation, input);
      return panel({
        key: `dx${operation.number}.${input}`,
        title: word("outgoing", { label: operation.inputs[input].label }),
        link: source,
        operation: source,
        id: gradient.array,
        shownOnly: true,
        explain: (channel, i, j) => explainOutgoing(trace, operation, input, channel, i, j),
      });
    })
    .filter(Boolean);
  return [
    fork(operation),
    element("div", { class: "panels" }, photo(operation), own, sent),
    kernelPanels(operation, [
      ["kernel", isDense(operation) ? "weights" : "kernels", null],
      [
        "kernel_gradient",
        isDense(operation) ? "weightGradients" : "kernelGradients",
        (place) => explainKernelGradient(trace, operation, place.channel, place.input, place.i, place.j),
      ],
    ]),
    parameterPanels(operation),
  ].flat();
}

/** Whether its kernels are weights from number to number, and no windows. */
function isDense(operation) {
  return operation.shape.length !== 4;
}

/** Who sent which part of the gradient that comes in; at a fork with the size of each part and of the sum. */
function fork(operation) {
  const parts = operation.contributions;
  const link = (part) => goLink(state.trace.operations[part.from]);
  if (!parts.length)
    return isInput(operation) ? [] : element("p", { class: "note" }, word("startOfBack"));
  if (parts.length === 1)
    return element("p", { class: "note" }, word("single", { name: "" }), link(parts[0]));
  const [rows, columns] = places(operation);
  const arrays = [...parts.map((part) => part.array), operation.arrays.incoming];
  const sizes = arrays.map((id) => fullColour(state.trace.array(id).data, rows * columns === 1));
  const full = Math.max(...sizes);
  const figure = (name, size, kind) =>
    element(
      "figure",
      { "data-part": kind },
      element("div", { class: "slot" }),
      element(
        "figcaption",
        {},
        name,
        element("span", { "data-name": "norm" }, word("shareOfNorm", { norm: format(size.norm) })),
      ),
    );
  const figures = parts.map((part) => figure(link(part), part.size, part.from));
  const sum = figure(word("sumOfAll"), operation.incoming, "sum");
  const signs = parts.slice(1).map(() => element("span", { class: "sign" }, "+"));
  const row = figures.flatMap((one, place) => (place ? [signs[place - 1], one] : [one]));
  const section = element(
    "section",
    { class: "fork panel" },
    element("h3", {}, word("fork", { count: parts.length })),
    element("div", { class: "sum" }, row, element("span", { class: "sign" }, "="), sum),
  );
  const redraw = () => {
    const index = Math.max(0, operation.kept.indexOf(state.channels.get(operation.family)));
    const isMap = rows * columns > 1;
    [...figures, sum].forEach((one, place) => {
      const values = isMap ? state.trace.plane(arrays[place], index) : state.trace.array(arrays[place]).data;
      const wide = isMap ? columns : Math.ceil(Math.sqrt(values.length));
      one.firstChild.replaceChildren(
        picture(values, isMap ? rows : Math.ceil(values.length / wide), wide, full),
      );
    });
  };
  redraw();
  return Object.assign(section, { family: operation.family, redraw });
}

function goLink(operation) {
  return element(
    "button",
    { type: "button", class: "link", click: () => goToOperation(operation.number) },
    nameOf(operation),
  );
}

/** How the numbers of a panel lie in its large picture: a map as it is, a vector in rows. */
function layout(operation, count) {
  const [rows, columns] = places(operation);
  if (rows * columns > 1) return { isMap: true, rows, columns };
  const wide = count <= 12 ? count : Math.ceil(Math.sqrt(2 * count));
  return { isMap: false, columns: wide, rows: Math.ceil(count / wide) };
}

function panel({ key, title, link, operation, id, shownOnly, explain: how }) {
  const { trace } = state;
  const { data } = trace.array(id);
  const count = shownOnly ? operation.shown : operation.kept.length;
  const drawnCount = Math.min(operation.shown, count);
  const { isMap, rows, columns } = layout(operation, count);
  const full = fullColour(data.subarray(0, isMap ? drawnCount * rows * columns : count), !isMap);
  const kept = operation.kept.slice(0, drawnCount);
  const { family } = operation;
  if (!kept.includes(state.channels.get(family))) state.channels.set(family, kept[0]);
  const holder = element("section", {
    class: "panel",
    "data-panel": key.replace(/\d.*/, ""),
    "data-key": key,
  });
  const named = isMap ? "channelsOf" : "numbersOf";
  const header = [
    element("h3", {}, title, link ? element("small", {}, " ", goLink(link)) : ""),
    element(
      "p",
      { class: "soft" },
      word(named, { count: isMap ? drawnCount : count, total: allChannels(operation) }),
    ),
  ];
  const large = largePicture(rows, columns, Boolean(how));
  const caption = element("p", { class: "caption" });
  const thumbs = isMap ? thumbnails() : how ? chips() : [];
  holder.append(...header, large, caption, ...[thumbs].flat(), scaleBar(full));
  if (isProbabilities(operation) && id === operation.arrays.output) holder.append(scoreList(operation));
  Object.assign(holder, { family, redraw, shift });
  redraw();
  return holder;

  function thumbnails() {
    return element(
      "div",
      { class: "thumbs", role: "group", "aria-label": title },
      kept.map((channel, index) =>
        element(
          "button",
          {
            type: "button",
            class: "thumb",
            "data-channel": channel,
            "aria-label": word("channel", { channel }),
            click: () => choose(channel),
          },
          picture(trace.plane(id, index), rows, columns, full),
          element("span", {}, channel),
        ),
      ),
    );
  }

  /** Buttons for the numbers of a long vector that have their arithmetic on this page. */
  function chips() {
    const numbers = operation.arrays.output === id && count > 12 ? withArithmetic(trace, operation) : null;
    if (!numbers) return [];
    const press = (channel) => () => {
      const cell = operation.kept.indexOf(channel);
      point(Math.floor(cell / columns), cell % columns);
    };
    return element(
      "p",
      { class: "chips" },
      word("withArithmetic"),
      numbers.map((channel) =>
        element(
          "button",
          { type: "button", class: "link", click: press(channel) },
          nameOfNumber(operation, channel),
        ),
      ),
    );
  }

  /** Draw a channel large, here and in the other panels in which it stands for the same. */
  function choose(channel) {
    state.channels.set(family, channel);
    for (const one of document.querySelectorAll(".panel")) if (one.family === family) one.redraw();
    explain();
  }

  function shift(by) {
    if (isMap) choose(kept[(kept.indexOf(state.channels.get(family)) + by + kept.length) % kept.length]);
  }

  function redraw() {
    const channel = state.channels.get(family);
    const index = kept.indexOf(channel);
    const canvas = isMap
      ? picture(trace.plane(id, index), rows, columns, full)
      : picture(data.subarray(0, count), rows, columns, full);
    large.replaceChildren(canvas, overlayOf(rows, columns));
    caption.textContent = isMap ? word("channel", { channel }) : "";
    for (const thumb of holder.querySelectorAll(".thumb"))
      thumb.setAttribute("aria-pressed", String(Number(thumb.dataset.channel) === channel));
    if (how)
      pointable(canvas, {
        title: `${title}, ${caption.textContent}`,
        key,
        rows,
        columns,
        point,
        move: (from, step) => from + step,
      });
    if (state.place && state.place.key === key) point(state.place.i, state.place.j);
  }

  /** Explain the number at a place of the large picture. */
  function point(i, j) {
    const cell = i * columns + j;
    if (!isMap && cell >= count) return;
    const channel = isMap ? state.channels.get(family) : operation.kept[cell];
    const [row, column] = isMap ? [i, j] : [0, 0];
    const text = isMap
      ? `${word("channel", { channel })}, ${word("placeIn", { i, j })}`
      : nameOfNumber(operation, channel);
    state.place = { key, i, j, channel, text: `${title}: ${text}`, how: () => how(channel, row, column) };
    explain();
  }
}

/** The box of a large picture, and what is drawn over it. */
function largePicture(rows, columns, points) {
  const box = element("div", { class: points ? "large points" : "large" });
  box.style.setProperty("--rows", rows);
  box.style.setProperty("--columns", columns);
  return box;
}

function overlayOf(rows, columns) {
  return drawn("svg", {
    viewBox: `0 0 ${columns} ${rows}`,
    preserveAspectRatio: "none",
    "aria-hidden": "true",
  });
}

/** Let a picture be pointed at, by a pointer or with the arrow keys; `move` says where a key leads. */
function pointable(canvas, { title, key, rows, columns, point, move }) {
  const hover = (event) => {
    const box = canvas.getBoundingClientRect();
    const cell = (from, length, cells) =>
      Math.min(cells - 1, Math.max(0, Math.floor((from / length) * cells)));
    point(
      cell(event.clientY - box.top, box.height, rows),
      cell(event.clientX - box.left, box.width, columns),
    );
  };
  const here = () => (state.place && state.place.key === key ? state.place : null);
  const pressed = (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Escape") at("step").focus();
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const { i, j } = here() || { i: 0, j: 0 };
    const inside = (to, cells) => Math.min(cells - 1, Math.max(0, to));
    point(inside(move(i, step[0], 0), rows), inside(move(j, step[1], 1), columns));
  };
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", `${title}. ${word("pointAt")}`);
  canvas.addEventListener("pointermove", hover);
  canvas.addEventListener("pointerdown", hover);
  canvas.addEventListener("focus", () => {
    if (!here()) point(0, 0);
  });
  canvas.addEventListener("keydown", pressed);
}

/** Whether its numbers are the scores of the classes, all of which are kept. */
function isProbabilities(operation) {
  return state.trace.scores === operation.number && allChannels(operation) === operation.kept.length;
}

function nameOfNumber(operation, channel) {
  return isProbabilities(operation) ? className(state.trace, channel) : word("number", { channel });
}

/** The largest scores with the names of their classes and their probabilities. */
function scoreList(operation) {
  const { data } = state.trace.array(operation.arrays.output);
  const order = [...data.keys()].sort((a, b) => data[b] - data[a]).slice(0, 10);
  const powers = [...data].map((score) => Math.exp(score - data[order[0]]));
  const sum = powers.reduce((total, power) => total + power, 0);
  const row = (k) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, className(state.trace, k)),
      element("td", {}, format(data[k])),
      element("td", {}, percent(powers[k] / sum)),
    );
  const heading = ["", word("score"), word("probability")].map((text) =>
    element("th", { scope: "col" }, text),
  );
  return element(
    "table",
    { class: "list" },
    element("thead", {}, element("tr", {}, heading)),
    element("tbody", {}, order.map(row)),
  );
}

// -------------------------------------------------------------------------------------- one number explained

function arithmetic() {
  return element(
    "section",
    { id: "arithmetic" },
    element("h3", {}, word("arithmetic")),
    element("p", { id: "place", class: "soft" }),
    element("div", { id: "explanation" }),
  );
}

/** Explain the number that is pointed at, and mark it and what it was made of in the pictures. */
function explain() {
  const { place } = state;
  at("place").textContent = place ? place.text : word("pointAt");
  at("explanation").replaceChildren(...(place ? explained(place.how()) : []));
  for (const panelAt of document.querySelectorAll(".panel")) {
    const overlay = panelAt.querySelector(".large svg");
    if (overlay) overlay.replaceChildren(...(place ? marks(panelAt.dataset, place) : []));
  }
}
