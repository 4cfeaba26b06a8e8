// Arithmetic of sums of products under a window: a convolution, its adjoint, and a dense layer.
//
// The windows stand on the picture of one side, and the other side has a number for each window. A number of
// that side is made of what is under its window; one of the picture, of all whose windows are over it.

/** The values of `plane` under a window, its products with `weights`, and their sum. */
function multiplied(size, plane, index, weights) {
  const found = overWindow(size, index);
  const off = found.map((row) => row.map((place) => place < 0));
  const values = found.map((row) => row.map((place) => (place < 0 ? 0 : plane[place])));
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

/** Whether an input channel and an output channel are of the same group. */
function meet({ ofInput, ofOutput }, input, output) {
  return Math.floor(input / ofInput) === Math.floor(output / ofOutput);
}

/** Where on one end the numbers are that a number at (i, j) of the other end is made of. */
function reach({ arithmetic }, way, there, i, j) {
  const { windows, transposed } = arithmetic;
  const downwards = (way === "forward") !== transposed;
  return (kh, kw) => (downwards ? under : above)(windows, there, i, j, kh, kw);
}

/** The kernel from an input channel (its place among those kept) to an output channel (in detail). */
function kernelOf(trace, operation, k, at) {
  const { data, shape } = trace.array(operation.arithmetic.arrays.kernel);
  const area = shape[2] * shape[3];
  const start = (at * shape[1] + k) * area;
  return data.subarray(start, start + area);
}

const PRODUCTS = {
  forward(trace, operation, channel, i, j) {
    const { arithmetic } = operation;
    const { arrays, windows } = arithmetic;
    const at = operation.detail.indexOf(channel);
    if (at < 0) return unknown(channel, "w");
    const source = trace.source(operation, 0);
    const index = reach(operation, "forward", places(source), i, j);
    const kept = source.kept
      .map((input, k) => [input, k])
      .filter(([input]) => meet(arithmetic, input, channel));
    const parts = kept
      .map(([input, k]) => ({
        channel: input,
        ...multiplied(windows.size, trace.output(source, input), index, kernelOf(trace, operation, k, at)),
      }))
      .sort(bySize);
    const shown = largestParts(parts, windows.size, [word("inputOf", { label: "x" }), "x"], (input) =>
      word("windowOf", { label: "x", channel: input }),
    );
    const rows = [];
    if (shown.others.length)
      rows.push([word("otherKept", { count: shown.others.length }), added(shown.others)]);
    if (arrays.rest !== undefined && arithmetic.ofInput > kept.length) {
      const rest = trace.plane(arrays.rest, at)[i * places(operation)[1] + j];
      rows.push([word("otherRest", { count: arithmetic.ofInput - kept.length }), rest]);
    }
    if (arrays.bias !== undefined) rows.push(["b", trace.plane(arrays.bias, at)[0]]);
    const total = rows.reduce((sum, row) => sum + row[1], added(parts) - added(shown.others));
    const formula = arrays.bias === undefined ? "sum x · w" : "sum x · w + b";
    return { blocks: [...shown.blocks, ...(rows.length ? [terms(...rows)] : [])], total, formula };
  },

  backward(trace, operation, input, channel, row, column) {
    const { arithmetic } = operation;
    const { arrays, windows } = arithmetic;
    const source = trace.source(operation, 0);
    const k = source.kept.indexOf(channel);
    if (input !== 0) return { blocks: [note(word("noArithmetic"))] };
    const index = reach(operation, "backward", places(operation), row, column);
    const kept = operation.detail
      .map((output, at) => [output, at])
      .filter(([output]) => meet(arithmetic, channel, output));
    const parts = kept
      .map(([output, at]) => ({
        channel: output,
        ...multiplied(
          windows.size,
          trace.incoming(operation, output),
          index,
          kernelOf(trace, operation, k, at),
        ),
      }))
      .sort(bySize);
    const shown = largestParts(parts, windows.size, [word("output"), "dy"], (output) =>
      word("windowOf", { label: "dy", channel: output }),
    );
    const rows = [];
    if (shown.others.length)
      rows.push([word("otherOutputs", { count: shown.others.length }), added(shown.others)]);
    if (arrays.rest_back !== undefined) {
      const rest = trace.plane(arrays.rest_back, k)[row * places(source)[1] + column];
      rows.push([word("otherOutputsRest", { count: arithmetic.ofOutput - kept.length }), rest]);
    }
    const total = rows.reduce((sum, each) => sum + each[1], added(parts) - added(shown.others));
    return {
      blocks: [...shown.blocks, ...(rows.length ? [terms(...rows)] : [])],
      total,
      formula: "sum dy · w",
    };
  },

  /** The gradient of a bias: dy summed over all places. */
  parameter(trace, operation, gradient, output) {
    const dy = trace.incoming(operation, output);
    const total = dy.reduce((sum, value) => sum + value, 0);
    return { blocks: [note(word("sumOfMap", { count: dy.length }))], total, formula: "sum dy" };
  },
};

/** How the gradient of one number of a kernel came about: a product for each window, summed. */
function explainKernelGradient(trace, operation, output, channel, kh, kw) {
  const { arithmetic } = operation;
  const source = trace.source(operation, 0);
  const [at, k] = [operation.detail.indexOf(output), source.kept.indexOf(channel)];
  const { data, shape } = trace.array(arithmetic.arrays.kernel_gradient);
  const recorded = data[((at * shape[1] + k) * shape[2] + kh) * shape[3] + kw];
  if (!meet(arithmetic, channel, output)) return { blocks: [], total: 0, recorded, formula: "0" };
  const [x, dy] = [trace.output(source, channel), trace.incoming(operation, output)];
  // One end has a number for each window, the other is the picture under it.
  const { transposed, windows } = arithmetic;
  const [windowed, picture] = transposed ? [source, operation] : [operation, source];
  const [height, width] = places(windowed);
  const parts = [];
  for (let i = 0; i < height; i++) {
    for (let j = 0; j < width; j++) {
      const place = under(windows, places(picture), i, j, kh, kw);
      if (place < 0) continue;
      const [ofX, ofDy] = transposed ? [i * width + j, place] : [place, i * width + j];
      parts.push({ i, j, x: x[ofX], dy: dy[ofDy], sum: x[ofX] * dy[ofDy] });
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
