// How one number came about, from the recorded values: what an operation declares of its arithmetic, done
// again for one place. Each kind of arithmetic has a file of its own; here is what they share.
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

/** The kinds of arithmetic: {forward(trace, operation, channel, i, j), backward(..., input, channel, i, j)}. */
const KINDS = { formula: FORMULA, products: PRODUCTS, pool: POOL, moved: MOVED };

const kindOf = ({ arithmetic }) => (arithmetic ? KINDS[arithmetic.kind] : null);

/** How the output of an operation at a place came about. */
function explainOutput(trace, operation, channel, i, j) {
  const plane = trace.output(operation, channel);
  const recorded = plane ? plane[i * places(operation)[1] + j] : undefined;
  const kind = kindOf(operation);
  if (!kind) return { blocks: isInput(operation) ? [] : [note(word("noArithmetic"))], recorded };
  return { ...kind.forward(trace, operation, channel, i, j), recorded };
}

/** How the gradient that an operation sends to a place of its input came about. */
function explainOutgoing(trace, operation, input, channel, i, j) {
  const source = trace.source(operation, input);
  const plane = trace.outgoing(operation, input, channel);
  const recorded = plane ? plane[i * places(source)[1] + j] : undefined;
  const kind = kindOf(operation);
  if (!kind || !plane) return { blocks: [note(word("noArithmetic"))], recorded };
  return { ...kind.backward(trace, operation, input, channel, i, j), recorded };
}

/** How the gradient of a number of a parameter came about. */
function explainParameter(trace, operation, gradient, at) {
  const recorded = trace.plane(gradient.array, at)[0];
  const kind = kindOf(operation);
  if (!kind) return { blocks: [note(word("noArithmetic"))], recorded };
  return { ...kind.parameter(trace, operation, gradient, gradient.numbers[at]), recorded };
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

/** The numbers of a vector whose arithmetic is on this page, or null for all of them. */
function withArithmetic(trace, operation) {
  const { arithmetic } = operation;
  if (!arithmetic) return null;
  if (arithmetic.kind === "products") return operation.detail;
  const source = operation.inputs.length ? trace.source(operation, 0) : null;
  const ofMap = source && places(source)[0] * places(source)[1] > 1;
  return ofMap && arithmetic.kind === "formula" ? source.kept.slice(0, source.shown) : null;
}

function className(trace, k) {
  return trace.classes ? trace.classes[k] : String(k);
}

// ------------------------------------------------------------------------------------------------- places

/** The place of a number among all of a shape in their order, and back. */
function flatOf(shape, index) {
  return shape.reduce((flat, length, axis) => flat * length + index[axis], 0);
}

function indexOf(shape, flat) {
  const index = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    index.unshift(flat % shape[axis]);
    flat = Math.floor(flat / shape[axis]);
  }
  return index;
}

/** The place in an operation's array of a number that the page knows by channel, row and column; and back. */
function indexAt(operation, channel, i, j) {
  return isPicture(operation) ? [0, i, j, channel] : indexOf(operation.shape, channel);
}

function placeAt(operation, index) {
  if (isPicture(operation)) return { channel: index[3], i: index[1], j: index[2] };
  return { channel: flatOf(operation.shape, index), i: 0, j: 0 };
}
