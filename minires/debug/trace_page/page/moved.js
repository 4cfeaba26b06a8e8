// Arithmetic of what computes nothing: where each number of the result comes from.

/** Where a number of the result comes from: {input, channel, place}; null where it fills. */
function originOf(trace, operation, channel, i, j) {
  const { arithmetic } = operation;
  const at = i * places(operation)[1] + j;
  const index = operation.kept.indexOf(channel);
  if (index < 0) return undefined;
  if (arithmetic.channels) {
    const source = arithmetic.channels[index];
    const place = trace.array(arithmetic.places).data[at];
    return source && place >= 0 ? { input: source[0], channel: source[1], place } : null;
  }
  const flat = trace.plane(arithmetic.origins, index)[at];
  if (flat < 0) return null;
  const input = arithmetic.starts.filter((start) => start <= flat).length - 1;
  return { input, ...numberAt(operation, input, flat - arithmetic.starts[input]) };
}

/** The channel and the place of a number among all of an input. */
function numberAt(operation, input, flat) {
  const { shape } = operation.inputs[input];
  const { channel, i, j } = placeAt({ shape }, indexOf(shape, flat));
  return { channel, place: shape.length === 4 ? i * shape[2] + j : 0 };
}

/** The places of the result at which a number of an input was put: [kept channel, index of the place]. */
function readersOf(trace, operation, input, channel, place) {
  const { arithmetic } = operation;
  const found = [];
  operation.kept.slice(0, operation.shown).forEach((output, index) => {
    if (arithmetic.channels) {
      const source = arithmetic.channels[index];
      if (!source || source[0] !== input || source[1] !== channel) return;
      trace.array(arithmetic.places).data.forEach((from, at) => {
        if (from === place) found.push([output, at]);
      });
      return;
    }
    const flat = arithmetic.starts[input] + flatOf(arithmetic.shapes[input], indexIn(operation, input, channel, place));
    trace.plane(arithmetic.origins, index).forEach((from, at) => {
      if (from === flat) found.push([output, at]);
    });
  });
  return found;
}

function indexIn(operation, input, channel, place) {
  const { shape } = operation.inputs[input];
  return shape.length === 4
    ? [0, Math.floor(place / shape[2]), place % shape[2], channel]
    : indexOf(shape, channel);
}

/** How often a number of an input was put somewhere, in all. */
function readsOf(trace, operation, input, channel, place) {
  const { arithmetic } = operation;
  const index = trace.source(operation, input).kept.indexOf(channel);
  if (!arithmetic.channels) return trace.plane(arithmetic.reads[input], index)[place];
  const times = trace.array(arithmetic.places).data.filter((from) => from === place).length;
  return arithmetic.readers[input][index] * times;
}

const MOVED = {
  forward(trace, operation, channel, i, j) {
    const origin = originOf(trace, operation, channel, i, j);
    if (origin === undefined) return unknown(channel, "y");
    const { fill } = operation.arithmetic;
    if (origin === null) return { blocks: [note(word("fills"))], total: fill, formula: String(fill) };
    const { label } = operation.inputs[origin.input];
    const source = trace.source(operation, origin.input);
    const name = source ? nameOf(source) : operation.inputs[origin.input].name || label;
    const wide = source ? places(source)[1] : 1;
    const place = { i: Math.floor(origin.place / wide), j: origin.place % wide };
    const text = `${word("takenFrom", { name, channel: origin.channel })}, ${word("placeIn", place)}`;
    const plane = source && trace.output(source, origin.channel);
    if (!plane) return { blocks: [note(text), ...unknown(origin.channel, name).blocks] };
    return { blocks: [note(text)], total: plane[origin.place], formula: label };
  },

  backward(trace, operation, input, channel, row, column) {
    const place = row * places(trace.source(operation, input))[1] + column;
    const found = readersOf(trace, operation, input, channel, place);
    const reads = readsOf(trace, operation, input, channel, place);
    if (!reads) return { blocks: [note(word("notRead"))], total: 0, formula: "0" };
    if (found.length < reads) return unknown(channel, "dy");
    const wide = places(operation)[1];
    const rows = found.map(([output, at]) => [
      `dy: ${word("channel", { channel: output })}, ${word("placeIn", { i: Math.floor(at / wide), j: at % wide })}`,
      trace.incoming(operation, output)[at],
    ]);
    const total = rows.reduce((sum, each) => sum + each[1], 0);
    return { blocks: [terms(...rows)], total, formula: rows.length > 1 ? "sum dy" : "dy" };
  },
};
