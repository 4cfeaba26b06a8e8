// How one number came about, from the recorded values: what each operation does, done again for one place.
//
// An explanation has `blocks` (terms, windows, lists and notes, in order), the `total` computed here by the
// `formula`, and the `recorded` number. Both are shown, so that a difference would be seen.

const LARGEST = 3; // windows that are shown one by one
const ROWS = 8; // of a list

const note = (text) => ({ kind: "note", text });
const terms = (...rows) => ({ kind: "terms", rows });
const unknown = (channel, what) => ({ blocks: [note(word("notKept", { channel, what }))] });
const bySize = (a, b) => Math.abs(b.sum) - Math.abs(a.sum);
const added = (parts) => parts.reduce((total, part) => total + part.sum, 0);

/** Where an operation's window stands: of a dense layer, on the one place there is. */
function geometry({ options }) {
  if (!options.kernel) return { size: [1, 1], stride: [1, 1], top: 0, left: 0 };
  return {
    size: options.kernel,
    stride: options.stride,
    top: options.padding[0][0],
    left: options.padding[1][0],
  };
}

/** Row and column on the input under (kh, kw) of the window at (i, j), as an index; -1 outside of it. */
function under({ stride, top, left }, [height, width], i, j, kh, kw) {
  const row = i * stride[0] + kh - top;
  const column = j * stride[1] + kw - left;
  return row < 0 || column < 0 || row >= height || column >= width ? -1 : row * width + column;
}

/** The place of the window that has an input's (row, column) under its (kh, kw), as an index; -1 if none. */
function above({ stride, top, left }, [height, width], row, column, kh, kw) {
  const i = (row + top - kh) / stride[0];
  const j = (column + left - kw) / stride[1];
  const exists = Number.isInteger(i) && Number.isInteger(j) && i >= 0 && j >= 0 && i < height && j < width;
  return exists ? i * width + j : -1;
}

/** A matrix with a value for each place of a window. */
function overWindow([height, width], value) {
  return Array.from({ length: height }, (_, kh) => Array.from({ length: width }, (_, kw) => value(kh, kw)));
}

/** The values of `plane` under a window, its products with `weights`, and their sum. */
function multiplied(size, plane, index, weights) {
  const places = overWindow(size, index);
  const off = places.map((row) => row.map((place) => place < 0));
  const values = places.map((row) => row.map((place) => (place < 0 ? 0 : plane[place])));
  const kernel = overWindow(size, (kh, kw) => weights[kh * size[1] + kw]);
  const products = values.map((row, kh) => row.map((value, kw) => value * kernel[kh][kw]));
  const sum = products.flat().reduce((total, product) => total + product, 0);
  return { off, values, kernel, products, sum };
}

/** The largest parts one by one: windows, or for a window of one number the rows of a list. */
function largestParts(parts, size, heading, label) {
  if (size[0] * size[1] === 1) {
    const rows = parts
      .slice(0, ROWS)
      .map((part) => [part.channel, part.values[0][0], part.kernel[0][0], part.sum]);
    return {
      blocks: [{ kind: "list", heading: [...heading, "w", word("products")], rows }],
      others: parts.slice(ROWS),
    };
  }
  const blocks = parts.slice(0, LARGEST).map((part) => ({
    kind: "window",
    label: label(part.channel),
    sum: part.sum,
    off: part.off,
    parts: [
      [word("window"), part.values],
      [word("kernel"), part.kernel],
      [word("products"), part.products],
    ],
  }));
  if (parts.slice(0, LARGEST).some((part) => part.off.flat().some(Boolean)))
    blocks.push(note(word("border")));
  return { blocks, others: parts.slice(LARGEST) };
}

/** The input channels that an output channel of a convolution reads, from `first` to before `end`. */
function group(operation, output) {
  const { shape } = operation.inputs[1];
  const depth = shape[shape.length - 2];
  const groups = operation.options.groups || 1;
  const first = Math.floor(output / (shape[shape.length - 1] / groups)) * depth;
  return { first, end: first + depth, depth };
}

// ------------------------------------------------------------------------------------------------- forward

function sumOfProducts(trace, operation, channel, i, j) {
  const at = operation.detail.indexOf(channel);
  const source = trace.source(operation, 0);
  if (at < 0 || !source || operation.arrays.kernel === undefined) return unknown(channel, "w");
  const where = geometry(operation);
  const { first, end, depth } = group(operation, channel);
  const { data, shape } = trace.array(operation.arrays.kernel);
  const area = shape[2] * shape[3];
  const kept = source.kept.map((input, k) => [input, k]).filter(([input]) => input >= first && input < end);
  const parts = kept
    .map(([input, k]) => {
      const start = (at * shape[1] + k) * area;
      const index = (kh, kw) => under(where, places(source), i, j, kh, kw);
      return {
        channel: input,
        ...multiplied(where.size, trace.output(source, input), index, data.subarray(start, start + area)),
      };
    })
    .sort(bySize);
  const shown = largestParts(parts, where.size, [word("inputOf", { label: "x" }), "x"], (input) =>
    word("windowOf", { label: "x", channel: input }),
  );
  const rows = [];
  if (shown.others.length)
    rows.push([word("otherKept", { count: shown.others.length }), added(shown.others)]);
  if (operation.arrays.rest !== undefined && depth > kept.length) {
    const rest = trace.plane(operation.arrays.rest, at)[i * places(operation)[1] + j];
    rows.push([word("otherRest", { count: depth - kept.length }), rest]);
  }
  if (operation.arrays.bias !== undefined) rows.push(["b", trace.plane(operation.arrays.bias, at)[0]]);
  const total = rows.reduce((sum, row) => sum + row[1], added(parts) - added(shown.others));
  const formula = operation.arrays.bias === undefined ? "sum x · w" : "sum x · w + b";
  return { blocks: [...shown.blocks, ...(rows.length ? [terms(...rows)] : [])], total, formula };
}

/** What a batch norm knows of a channel. */
function normalisation(trace, operation, channel) {
  const index = operation.kept.indexOf(channel);
  const value = (name) => trace.plane(operation.arrays[name], index)[0];
  const inverse = 1 / Math.sqrt(value("variance") + operation.options.eps);
  return { value, inverse };
}

function normalised(trace, operation, channel, i, j) {
  const plane = trace.output(trace.source(operation, 0), channel);
  if (!plane) return unknown(channel, "x");
  const { value, inverse } = normalisation(trace, operation, channel);
  const x = plane[i * places(operation)[1] + j];
  const xhat = (x - value("mean")) * inverse;
  const rows = [
    ["x", x],
    [`mean (${word(operation.options.training ? "training" : "inference")})`, value("mean")],
    ["var", value("variance")],
    ["eps", operation.options.eps],
    ["xhat = (x - mean) / sqrt(var + eps)", xhat],
    ["gamma", value("gamma")],
    ["beta", value("beta")],
  ];
  return {
    blocks: [terms(...rows)],
    total: value("gamma") * xhat + value("beta"),
    formula: "gamma · xhat + beta",
  };
}

/** The value of an input at a place, stretched where the operation stretches it; null if it is not kept. */
function operand(trace, operation, input, channel, i, j) {
  const source = trace.source(operation, input);
  if (!source) return operation.inputs[input].value ?? null;
  const [height, width] = places(source);
  const plane = trace.output(source, allChannels(source) === 1 ? 0 : channel);
  return plane && plane[(height === 1 ? 0 : i) * width + (width === 1 ? 0 : j)];
}

const BINARY = {
  add: ["a + b", (a, b) => a + b],
  sub: ["a - b", (a, b) => a - b],
  mul: ["a · b", (a, b) => a * b],
  div: ["a / b", (a, b) => a / b],
};

function binary(trace, operation, channel, i, j) {
  const [a, b] = [0, 1].map((input) => operand(trace, operation, input, channel, i, j));
  if (a === null || b === null) return unknown(channel, a === null ? "a" : "b");
  const rows = [a, b].map((value, input) => {
    const source = trace.source(operation, input);
    return [`${"ab"[input]}${source ? `, ${word("from", { name: nameOf(source) })}` : ""}`, value];
  });
  const [formula, apply] = BINARY[operation.op];
  return { blocks: [terms(...rows)], total: apply(a, b), formula };
}

/** The window of a pooling, its real cells, and the first largest among them. */
function pooled(trace, operation, channel, i, j) {
  const source = trace.source(operation, 0);
  const plane = trace.output(source, channel);
  if (!plane) return null;
  const where = geometry(operation);
  const index = overWindow(where.size, (kh, kw) => under(where, places(source), i, j, kh, kw));
  const off = index.map((row) => row.map((place) => place < 0));
  const values = index.map((row) => row.map((place) => (place < 0 ? 0 : plane[place])));
  const cells = index.flat().filter((place) => place >= 0);
  const winner = cells.reduce((best, place) => (plane[place] > plane[best] ? place : best), cells[0]);
  return { values, off, cells, winner, plane, index };
}

function largestUnder(trace, operation, channel, i, j) {
  const window = pooled(trace, operation, channel, i, j);
  if (!window) return unknown(channel, "x");
  const mark = window.index.map((row) => row.map((place) => place === window.winner));
  const blocks = [
    {
      kind: "window",
      label: word("windowOf", { label: "x", channel }),
      off: window.off,
      mark,
      parts: [[word("window"), window.values]],
    },
  ];
  if (window.off.flat().some(Boolean)) blocks.push(note(word("outsideCells")));
  return { blocks, total: window.plane[window.winner], formula: "max" };
}

function meanUnder(trace, operation, channel, i, j) {
  const window = pooled(trace, operation, channel, i, j);
  if (!window) return unknown(channel, "x");
  const sum = window.cells.reduce((total, place) => total + window.plane[place], 0);
  const count = operation.options.count_padding ? window.index.flat().length : window.cells.length;
  const blocks = [
    {
      kind: "window",
      label: word("windowOf", { label: "x", channel }),
      off: window.off,
      parts: [[word("window"), window.values]],
    },
    terms([word("sumOf"), sum], [word("countOf"), count]),
  ];
  if (window.off.flat().some(Boolean)) blocks.push(note(word("outsideCells")));
  return { blocks, total: sum / count, formula: `sum / ${count}` };
}

function meanOfMap(trace, operation, channel) {
  const plane = trace.output(trace.source(operation, 0), channel);
  if (!plane) return unknown(channel, "x");
  const sum = plane.reduce((total, value) => total + value, 0);
  return {
    blocks: [terms([word("sumOfMap", { count: plane.length }), sum])],
    total: sum / plane.length,
    formula: `sum / ${plane.length}`,
  };
}

/** A function of one number. */
function elementwise(formula, apply) {
  return (trace, operation, channel, i, j) => {
    const x = operand(trace, operation, 0, channel, i, j);
    return x === null ? unknown(channel, "x") : { blocks: [terms(["x", x])], total: apply(x), formula };
  };
}

/** All scores of a softmax and their probabilities, or null where not all are kept. */
function probabilities(trace, operation) {
  const source = trace.source(operation, 0);
  if (!source || source.kept.length < allChannels(source)) return null;
  const scores = [...trace.array(source.arrays.output).data];
  const largest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return { scores, largest, sum, probability: powers.map((power) => power / sum) };
}

function softmaxOf(logarithm) {
  return (trace, operation, channel) => {
    const found = probabilities(trace, operation);
    if (!found) return unknown(channel, "x");
    const rows = [
      ["x", found.scores[channel]],
      ["max", found.largest],
      ["sum exp(x - max)", found.sum],
    ];
    const log = found.scores[channel] - found.largest - Math.log(found.sum);
    return logarithm
      ? { blocks: [terms(...rows)], total: log, formula: "x - max - log sum" }
      : { blocks: [terms(...rows)], total: found.probability[channel], formula: "exp(x - max) / sum" };
  };
}

function lossOfScores(trace, operation) {
  const found = probabilities(trace, operation);
  if (!found) return unknown("", "logits");
  const target = trace.array(operation.arrays.target).data;
  const order = found.probability
    .map((p, k) => ({ k, sum: p + 2 * target[k] }))
    .sort(bySize)
    .slice(0, ROWS);
  const rows = order.map(({ k }) => [className(trace, k), found.scores[k], found.probability[k], target[k]]);
  const logs = found.scores.map((score) => score - found.largest - Math.log(found.sum));
  const total = -logs.reduce((sum, log, k) => sum + (target[k] ? target[k] * log : 0), 0);
  return {
    blocks: [{ kind: "list", heading: ["", word("score"), word("probability"), word("target")], rows }],
    total,
    formula: "-sum t · log p",
  };
}

function className(trace, k) {
  return trace.classes ? trace.classes[k] : String(k);
}

/** The number of channels before those of an input of a concatenation. */
function firstOf(operation, input) {
  return operation.inputs.slice(0, input).reduce((count, { shape }) => count + shape[shape.length - 1], 0);
}

/** The input and its channel that a channel of a concatenation is. */
function partOf(operation, channel) {
  const input = operation.inputs.findIndex(
    ({ shape }, place) => channel < firstOf(operation, place) + shape[shape.length - 1],
  );
  return { input, channel: channel - firstOf(operation, input) };
}

/** How many rows and columns of zeros were put above and to the left. */
function borderOf({ options: { padding } }) {
  return [padding[0][0], padding[1][0]];
}

/** The place of a number among all in their order, and back; of a vector, that is the channel. */
function flatOf(shape, channel, i, j) {
  return shape.length === 4 ? (i * shape[2] + j) * shape[3] + channel : channel;
}

function placeOf(shape, flat) {
  if (shape.length !== 4) return { channel: flat, i: 0, j: 0 };
  const place = Math.floor(flat / shape[3]);
  return { channel: flat % shape[3], i: Math.floor(place / shape[2]), j: place % shape[2] };
}

function isByChannels({ options, shape }) {
  return options.axis === shape.length - 1;
}

/** What is only handed on: from which input, channel and place; `zero` says why there is none. */
const ORIGIN = {
  concat: (operation, channel, i, j) =>
    isByChannels(operation) ? { ...partOf(operation, channel), i, j } : null,
  dense_buffer: (operation, channel, i, j) => ({ ...partOf(operation, channel), i, j }),
  pad_channels: (operation, channel, i, j) => {
    const count = operation.inputs[0].shape[3];
    const { stride, before } = operation.options;
    const from = channel - before;
    if (from < 0 || from >= count) return { zero: word("addedZero") };
    return { input: 0, channel: from, i: i * stride, j: j * stride };
  },
  pad: (operation, channel, i, j) => {
    const [top, left] = borderOf(operation);
    const [, height, width] = operation.inputs[0].shape;
    const inside = i >= top && j >= left && i - top < height && j - left < width;
    return inside ? { input: 0, channel, i: i - top, j: j - left } : { zero: word("borderZero") };
  },
  reshape: (operation, channel, i, j) => ({
    input: 0,
    ...placeOf(operation.inputs[0].shape, flatOf(operation.shape, channel, i, j)),
  }),
};

function handedOn(trace, operation, channel, i, j) {
  const origin = ORIGIN[operation.op](operation, channel, i, j);
  if (!origin) return { blocks: [] };
  if (origin.zero) return { blocks: [note(origin.zero)], total: 0, formula: "0" };
  const source = trace.source(operation, origin.input);
  const name = source ? nameOf(source) : operation.inputs[origin.input].name;
  const text = `${word("takenFrom", { name, channel: origin.channel })}, ${word("placeIn", origin)}`;
  const plane = source && trace.output(source, origin.channel);
  if (!plane) return { blocks: [note(text), ...unknown(origin.channel, name).blocks] };
  return { blocks: [note(text)], total: plane[origin.i * places(source)[1] + origin.j], formula: "x" };
}

function dropped(trace, operation, channel, i, j) {
  const x = operand(trace, operation, 0, channel, i, j);
  const plane = trace.output(operation, channel);
  if (x === null) return unknown(channel, "x");
  const mask = plane[i * places(operation)[1] + j] === 0 ? 0 : 1 / (1 - operation.options.rate);
  return { blocks: [terms(["x", x], ["mask", mask])], total: x * mask, formula: "x · mask" };
}

const FORWARD = {
  conv2d: sumOfProducts,
  linear: sumOfProducts,
  batch_norm: normalised,
  relu: elementwise("max(x, 0)", (x) => Math.max(x, 0)),
  sigmoid: elementwise("1 / (1 + exp(-x))", (x) => 1 / (1 + Math.exp(-x))),
  exp: elementwise("exp(x)", Math.exp),
  log: elementwise("log(x)", Math.log),
  sqrt: elementwise("sqrt(x)", Math.sqrt),
  neg: elementwise("-x", (x) => -x),
  dropout: dropped,
  add: binary,
  sub: binary,
  mul: binary,
  div: binary,
  max_pool2d: largestUnder,
  avg_pool2d: meanUnder,
  global_avg_pool2d: meanOfMap,
  softmax: softmaxOf(false),
  log_softmax: softmaxOf(true),
  cross_entropy: lossOfScores,
  concat: handedOn,
  dense_buffer: handedOn,
  pad_channels: handedOn,
  pad: handedOn,
  reshape: handedOn,
};

/** The numbers of a vector whose arithmetic is on this page, or null for all of them. */
function withArithmetic(trace, operation) {
  const source = operation.inputs.length ? trace.source(operation, 0) : null;
  if (operation.op === "linear" || operation.op === "conv2d") return operation.detail;
  return source && operation.op.includes("avg_pool") ? source.kept.slice(0, source.shown) : null;
}

/** How the output of an operation at a place came about. */
function explainOutput(trace, operation, channel, i, j) {
  const plane = trace.output(operation, channel);
  const recorded = plane ? plane[i * places(operation)[1] + j] : undefined;
  const explain = FORWARD[operation.op];
  if (!explain) return { blocks: operation.op === "input" ? [] : [note(word("noArithmetic"))], recorded };
  return { ...explain(trace, operation, channel, i, j), recorded };
}
