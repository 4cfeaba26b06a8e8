// How one number of a gradient came about: what each operation's way back does, done again for one place.
// See arithmetic.js for what an explanation is.

function backThroughProducts(trace, operation, input, channel, row, column) {
  const source = trace.source(operation, 0);
  const k = source.kept.indexOf(channel);
  if (input !== 0 || operation.arrays.kernel === undefined) return { blocks: [] };
  const where = geometry(operation);
  const { data, shape } = trace.array(operation.arrays.kernel);
  const area = shape[2] * shape[3];
  const reads = (output) => {
    const { first, end } = group(operation, output);
    return channel >= first && channel < end;
  };
  const kept = operation.detail.map((output, at) => [output, at]).filter(([output]) => reads(output));
  const parts = kept
    .map(([output, at]) => {
      const start = (at * shape[1] + k) * area;
      const index = (kh, kw) => above(where, places(operation), row, column, kh, kw);
      return {
        channel: output,
        ...multiplied(
          where.size,
          trace.incoming(operation, output),
          index,
          data.subarray(start, start + area),
        ),
      };
    })
    .sort(bySize);
  const shown = largestParts(parts, where.size, [word("output"), "dy"], (output) =>
    word("windowOf", { label: "dy", channel: output }),
  );
  const rows = [];
  if (shown.others.length)
    rows.push([word("otherOutputs", { count: shown.others.length }), added(shown.others)]);
  if (operation.arrays.rest_back !== undefined) {
    const count = allChannels(operation) / (operation.options.groups || 1) - kept.length;
    const rest = trace.plane(operation.arrays.rest_back, k)[row * places(source)[1] + column];
    rows.push([word("otherOutputsRest", { count }), rest]);
  }
  const total = rows.reduce((sum, each) => sum + each[1], added(parts) - added(shown.others));
  return {
    blocks: [...shown.blocks, ...(rows.length ? [terms(...rows)] : [])],
    total,
    formula: "sum dy · w",
  };
}

function backThroughNorm(trace, operation, input, channel, i, j) {
  const at = i * places(operation)[1] + j;
  const x = trace.output(trace.source(operation, 0), channel);
  if (!x) return unknown(channel, "x");
  const dy = trace.incoming(operation, channel)[at];
  const { value, inverse } = normalisation(trace, operation, channel);
  const rows = [
    ["dy", dy],
    ["gamma", value("gamma")],
    ["inv = 1 / sqrt(var + eps)", inverse],
  ];
  if (!operation.options.training)
    return { blocks: [terms(...rows)], total: value("gamma") * inverse * dy, formula: "gamma · inv · dy" };
  const [height, width] = places(operation);
  const xhat = (x[at] - value("mean")) * inverse;
  const mean = value("beta_gradient") / (height * width);
  const slope = value("gamma_gradient") / (height * width);
  rows.push(["xhat", xhat], ["dbeta / M", mean], ["dgamma / M", slope]);
  return {
    blocks: [terms(...rows)],
    total: value("gamma") * inverse * (dy - mean - xhat * slope),
    formula: "gamma · inv · (dy - dbeta / M - xhat · dgamma / M)",
  };
}

/** dy where an input is as large as the output; where it was stretched, all dy that it had a part in. */
function backThroughBinary(trace, operation, input, channel, i, j) {
  const source = trace.source(operation, input);
  const dy = trace.incoming(operation, channel);
  if (!dy || allChannels(source) !== allChannels(operation)) return unknown(channel, "dy");
  const [height, width] = places(operation);
  const stretched = places(source)[0] * places(source)[1] < height * width;
  const factor = (row, column) => {
    if (operation.op === "add") return 1;
    if (operation.op === "sub") return input === 0 ? 1 : -1;
    return operand(trace, operation, 1 - input, channel, row, column);
  };
  if (!stretched) {
    const [gradient, other] = [dy[i * width + j], factor(i, j)];
    if (other === null) return unknown(channel, "ab"[1 - input]);
    const letter = "ab"[1 - input];
    if (operation.op === "mul")
      return {
        blocks: [terms(["dy", gradient], [letter, other])],
        total: gradient * other,
        formula: `dy · ${letter}`,
      };
    return { blocks: [terms(["dy", gradient])], total: gradient * other, formula: other < 0 ? "-dy" : "dy" };
  }
  if (factor(0, 0) === null) return unknown(channel, "ab"[1 - input]);
  const total = dy.reduce(
    (sum, gradient, at) => sum + gradient * factor(Math.floor(at / width), at % width),
    0,
  );
  const formula = operation.op === "mul" ? `sum dy · ${"ab"[1 - input]}` : "sum dy";
  return { blocks: [note(word("sumOfMap", { count: dy.length }))], total, formula };
}

/** The windows over a place of a pooling's input: [index of the window, its row, its column]. */
function windowsOver(operation, row, column) {
  const where = geometry(operation);
  const found = [];
  overWindow(where.size, (kh, kw) => {
    const at = above(where, places(operation), row, column, kh, kw);
    if (at >= 0) found.push([at, Math.floor(at / places(operation)[1]), at % places(operation)[1]]);
  });
  return found;
}

function backThroughMax(trace, operation, input, channel, row, column) {
  const dy = trace.incoming(operation, channel);
  if (!dy || !trace.output(trace.source(operation, 0), channel)) return unknown(channel, "x");
  const place = row * places(trace.source(operation, 0))[1] + column;
  const won = windowsOver(operation, row, column).filter(
    ([, i, j]) => pooled(trace, operation, channel, i, j).winner === place,
  );
  if (!won.length) return { blocks: [note(word("winsNowhere"))], total: 0, formula: "0" };
  const rows = won.map(([at, i, j]) => [word("placeIn", { i, j }), dy[at]]);
  return {
    blocks: [note(word("winsIn")), terms(...rows)],
    total: rows.reduce((sum, each) => sum + each[1], 0),
    formula: "sum dy",
  };
}

function backThroughMean(trace, operation, input, channel, row, column) {
  const dy = trace.incoming(operation, channel);
  if (!dy) return unknown(channel, "dy");
  const rows = windowsOver(operation, row, column).map(([at, i, j]) => {
    const window = pooled(trace, operation, channel, i, j);
    const count = operation.options.count_padding ? window.index.flat().length : window.cells.length;
    return [`${word("placeIn", { i, j })}: dy / ${count}`, dy[at] / count];
  });
  return { blocks: [terms(...rows)], total: rows.reduce((sum, each) => sum + each[1], 0), formula: "sum" };
}

function backThroughMeanOfMap(trace, operation, input, channel) {
  const dy = trace.incoming(operation, channel);
  const [height, width] = places(trace.source(operation, 0));
  return {
    blocks: [terms(["dy", dy[0]], ["H · W", height * width])],
    total: dy[0] / (height * width),
    formula: "dy / (H · W)",
  };
}

function backThroughLoss(trace, operation, input, channel) {
  const found = probabilities(trace, operation);
  if (!found) return unknown(channel, "logits");
  const [p, t] = [found.probability[channel], trace.array(operation.arrays.target).data[channel]];
  const dloss = trace.incoming(operation, 0)[0];
  const rows = [
    [`p, ${className(trace, channel)}`, p],
    [`t, ${word("target")}`, t],
    ["dloss", dloss],
  ];
  return { blocks: [terms(...rows)], total: (p - t) * dloss, formula: "(p - t) · dloss" };
}

/** dy times a factor that the output tells. */
function scaled(name, factor) {
  return (trace, operation, input, channel, i, j) => {
    const at = i * places(operation)[1] + j;
    const [y, dy] = [trace.output(operation, channel)[at], trace.incoming(operation, channel)[at]];
    const slope = factor(y, operation);
    return {
      blocks: [terms(["dy", dy], ["y", y], [name, slope])],
      total: dy * slope,
      formula: `dy · ${name}`,
    };
  };
}

function backThroughRelu(trace, operation, input, channel, i, j) {
  const at = i * places(operation)[1] + j;
  const [y, dy] = [trace.output(operation, channel)[at], trace.incoming(operation, channel)[at]];
  return {
    blocks: [terms(["y", y], ["dy", dy]), note(word(y > 0 ? "passes" : "stops"))],
    total: y > 0 ? dy : 0,
    formula: y > 0 ? "dy" : "0",
  };
}

function backThroughSoftmax(trace, operation, input, channel) {
  const [y, dy] = [trace.array(operation.arrays.output).data, trace.array(operation.arrays.incoming).data];
  const mean = y.reduce((sum, value, k) => sum + value * dy[k], 0);
  return {
    blocks: [terms(["y", y[channel]], ["dy", dy[channel]], ["sum dy · y", mean])],
    total: y[channel] * (dy[channel] - mean),
    formula: "y · (dy - sum dy · y)",
  };
}

/** Where the gradient of an input's number lies among those of the output; null if it was not handed on. */
const DESTINATION = {
  concat: (operation, input, channel, i, j) =>
    isByChannels(operation) ? { channel: channel + firstOf(operation, input), i, j } : null,
  dense_buffer: (operation, input, channel, i, j) => ({ channel: channel + firstOf(operation, input), i, j }),
  pad_channels: (operation, input, channel, i, j) => {
    const { stride, before } = operation.options;
    return i % stride || j % stride ? null : { channel: channel + before, i: i / stride, j: j / stride };
  },
  pad: (operation, input, channel, i, j) => {
    const [top, left] = borderOf(operation);
    return { channel, i: i + top, j: j + left };
  },
  reshape: (operation, input, channel, i, j) =>
    placeOf(operation.shape, flatOf(operation.inputs[0].shape, channel, i, j)),
};

function handedBack(trace, operation, input, channel, row, column) {
  const to = DESTINATION[operation.op](operation, input, channel, row, column);
  if (!to) return { blocks: [note(word("notRead"))], total: 0, formula: "0" };
  const dy = trace.incoming(operation, to.channel);
  if (!dy) return unknown(to.channel, "dy");
  const text = `dy: ${word("channel", to)}, ${word("placeIn", to)}`;
  return { blocks: [note(text)], total: dy[to.i * places(operation)[1] + to.j], formula: "dy" };
}

const BACKWARD = {
  conv2d: backThroughProducts,
  linear: backThroughProducts,
  batch_norm: backThroughNorm,
  relu: backThroughRelu,
  add: backThroughBinary,
  sub: backThroughBinary,
  mul: backThroughBinary,
  max_pool2d: backThroughMax,
  avg_pool2d: backThroughMean,
  global_avg_pool2d: backThroughMeanOfMap,
  cross_entropy: backThroughLoss,
  sigmoid: scaled("y (1 - y)", (y) => y * (1 - y)),
  softmax: backThroughSoftmax,
  concat: handedBack,
  dense_buffer: handedBack,
  pad_channels: handedBack,
  pad: handedBack,
  reshape: handedBack,
  dropout: scaled("mask", (y, { options }) => (y === 0 ? 0 : 1 / (1 - options.rate))),
};

/** How the gradient that an operation sends to a place of its input came about. */
function explainOutgoing(trace, operation, input, channel, i, j) {
  const source = trace.source(operation, input);
  const plane = trace.outgoing(operation, input, channel);
  const recorded = plane ? plane[i * places(source)[1] + j] : undefined;
  const explain = BACKWARD[operation.op];
  if (!explain || !plane) return { blocks: [note(word("noArithmetic"))], recorded };
  return { ...explain(trace, operation, input, channel, i, j), recorded };
}

/** How the gradient that comes to an operation at a place is summed from what others sent. */
function explainIncoming(trace, operation, channel, i, j) {
  const plane = trace.incoming(operation, channel);
  if (!plane) return unknown(channel, "dy");
  const at = i * places(operation)[1] + j;
  const recorded = plane[at];
  if (!operation.contributions.length) return { blocks: [note(word("startOfBack"))], recorded };
  const index = operation.kept.indexOf(channel);
  const rows = operation.contributions.map((part) => [
    word("from", { name: nameOf(trace.operations[part.from]) }),
    trace.plane(part.array, index)[at],
  ]);
  return {
    blocks: [terms(...rows)],
    total: rows.reduce((sum, row) => sum + row[1], 0),
    recorded,
    formula: rows.length > 1 ? "sum" : "dy",
  };
}

/** How the gradient of one number of a kernel came about: a product for each place, summed. */
function explainKernelGradient(trace, operation, output, channel, kh, kw) {
  const source = trace.source(operation, 0);
  const where = geometry(operation);
  const [at, k] = [operation.detail.indexOf(output), source.kept.indexOf(channel)];
  const { data, shape } = trace.array(operation.arrays.kernel_gradient);
  const recorded = data[((at * shape[1] + k) * shape[2] + kh) * shape[3] + kw];
  const { first, end } = group(operation, output);
  if (channel < first || channel >= end) return { blocks: [], total: 0, recorded, formula: "0" };
  const [x, dy] = [trace.output(source, channel), trace.incoming(operation, output)];
  const [height, width] = places(operation);
  const parts = [];
  for (let i = 0; i < height; i++) {
    for (let j = 0; j < width; j++) {
      const place = under(where, places(source), i, j, kh, kw);
      if (place >= 0)
        parts.push({ i, j, x: x[place], dy: dy[i * width + j], sum: x[place] * dy[i * width + j] });
    }
  }
  parts.sort(bySize);
  const rows = parts.slice(0, ROWS).map((part) => [word("placeIn", part), part.x, part.dy, part.sum]);
  const blocks = [
    note(word("largestProducts", { count: rows.length, total: parts.length })),
    { kind: "list", heading: ["", "x", "dy", "x · dy"], rows },
  ];
  if (parts.length > ROWS) blocks.push(terms([word("otherProducts"), added(parts.slice(ROWS))]));
  return { blocks, total: added(parts), recorded, formula: "sum x · dy" };
}

/** The gradient of a bias: dy summed over all places. */
function explainBiasGradient(trace, operation, output) {
  const dy = trace.incoming(operation, output);
  const recorded = trace.plane(operation.arrays.bias_gradient, operation.detail.indexOf(output))[0];
  const total = dy.reduce((sum, value) => sum + value, 0);
  return { blocks: [note(word("sumOfMap", { count: dy.length }))], total, recorded, formula: "sum dy" };
}

/** The gradients of a batch norm's gamma and beta: sums over all places of a channel. */
function explainNormGradient(trace, operation, name, channel) {
  const [x, dy] = [trace.output(trace.source(operation, 0), channel), trace.incoming(operation, channel)];
  if (!x || !dy) return unknown(channel, "dy");
  const { value, inverse } = normalisation(trace, operation, channel);
  const mean = value("mean");
  const each =
    name === "gamma" ? (gradient, at) => gradient * (x[at] - mean) * inverse : (gradient) => gradient;
  const total = dy.reduce((sum, gradient, at) => sum + each(gradient, at), 0);
  const formula = name === "gamma" ? "sum dy · xhat" : "sum dy";
  return {
    blocks: [note(word("sumOfMap", { count: dy.length }))],
    total,
    recorded: value(`${name}_gradient`),
    formula,
  };
}
