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

/** The channel and the place of a number among all of an input; and the number. */
function numberAt(operation, input, flat) {
  const one = operation.inputs[input];
  const { channel, i, j } = placeAt(one, indexOf(one.shape, flat));
  return { channel, place: isPicture(one) ? i * one.shape[2] + j : 0 };
}

function numberOf(operation, input, channel, place) {
  const one = operation.inputs[input];
  const [i, j] = isPicture(one) ? [Math.floor(place / one.shape[2]), place % one.shape[2]] : [0, 0];
  return flatOf(one.shape, indexAt(one, channel, i, j));
}

/** The places of the result at which a number of an input was put: [kept channel, index of the place]. */
function readersOf(trace, operation, input, channel, place) {
  const { arithmetic } = operation;
  const flat = arithmetic.starts[input] + numberOf(operation, input, channel, place);
  const found = [];
  operation.kept.slice(0, operation.shown).forEach((output, index) => {
    const source = arithmetic.channels && arithmetic.channels[index];
    if (arithmetic.channels && (!source || source[0] !== input || source[1] !== channel)) return;
    const from = arithmetic.channels
      ? trace.array(arithmetic.places).data
      : trace.plane(arithmetic.origins, index);
    const wanted = arithmetic.channels ? place : flat;
    from.forEach((one, at) => {
      if (one === wanted) found.push([output, at]);
    });
  });
  return found;
}

/** The gradient of a number of an input that was put somewhere so many times. */
function handedBack(trace, operation, input, channel, place, reads) {
  if (!reads) return { blocks: [note(word("notRead"))], total: 0, formula: "0" };
  const found = readersOf(trace, operation, input, channel, place);
  if (found.length < reads) return unknown(channel, "dy");
  const wide = places(operation)[1];
  const rows = found.map(([output, at]) => {
    const where = word("placeIn", { i: Math.floor(at / wide), j: at % wide });
    return [`dy: ${word("channel", { channel: output })}, ${where}`, trace.incoming(operation, output)[at]];
  });
  const total = rows.reduce((sum, each) => sum + each[1], 0);
  return { blocks: [terms(...rows)], total, formula: rows.length > 1 ? "sum dy" : "dy" };
}

/** A number of an input that no operation made. */
function givenAt(trace, operation, { input, channel, place }) {
  const array = operation.arithmetic.given[input];
  return array === null ? undefined : trace.array(array).data[numberOf(operation, input, channel, place)];
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
    const value = source
      ? (trace.output(source, origin.channel) || [])[origin.place]
      : givenAt(trace, operation, origin);
    if (value === undefined) return { blocks: [note(text), ...unknown(origin.channel, name).blocks] };
    return { blocks: [note(text)], total: value, formula: label };
  },

  backward(trace, operation, input, channel, row, column) {
    const source = trace.source(operation, input);
    const place = row * places(source)[1] + column;
    const reads = trace.plane(operation.arithmetic.reads[input], source.kept.indexOf(channel))[place];
    return handedBack(trace, operation, input, channel, place, reads);
  },

  parameter(trace, operation, { input }, number) {
    const { reads } = operation.arithmetic;
    if (reads[input] === null) return unknown(number, "dy");
    const { channel, place } = numberAt(operation, input, number);
    return handedBack(trace, operation, input, channel, place, trace.array(reads[input]).data[number]);
  },
};
