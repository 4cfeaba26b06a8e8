// The panels of parameters: kernels with their gradients, and gradients that are lists of numbers.

/** The kernels in detail, all in one picture: a row of tiles for each output channel. */
function kernelPanels(operation, wanted) {
  const { trace } = state;
  const source =
    operation.inputs.length && operation.inputs[0].number !== null ? trace.source(operation, 0) : null;
  const { arrays = {} } = operation.arithmetic || {};
  const panels = wanted
    .filter(([name]) => arrays[name] !== undefined)
    .map(([name, title, how]) => {
      const { data, shape } = trace.array(arrays[name]);
      const inputs = Math.min(shape[1], source.shown, 64);
      return kernelPanel({ operation, source, name, title: word(title), data, shape, inputs, how });
    });
  return panels.length ? [element("div", { class: "panels" }, panels)] : [];
}

function kernelPanel({ operation, source, name, title, data, shape, inputs, how }) {
  const [outputs, all, height, width] = shape;
  const gap = height * width > 1 ? 1 : 0;
  const inputsDown = inputs <= outputs; // the longer list goes to the right
  const [down, right] = inputsDown ? [inputs, outputs] : [outputs, inputs];
  const [rows, columns] = [down * (height + gap) - gap, right * (width + gap) - gap];
  const values = new Float32Array(rows * columns);
  const number = (o, c, kh, kw) => data[((o * all + c) * height + kh) * width + kw];
  const tile = (row, column) => {
    const [d, r] = [Math.floor(row / (height + gap)), Math.floor(column / (width + gap))];
    return [...(inputsDown ? [r, d] : [d, r]), row % (height + gap), column % (width + gap)];
  };
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const [o, c, kh, kw] = tile(row, column);
      if (kh < height && kw < width) values[row * columns + column] = number(o, c, kh, kw);
    }
  }
  const full = fullColour(values);
  const canvas = picture(values, rows, columns, full);
  const key = `${name}${operation.number}`;
  const texts = { inputs, allInputs: allChannels(source), outputs, allOutputs: allChannels(operation) };
  const large = largePicture(rows, columns, true);
  large.append(canvas, overlayOf(rows, columns));
  // The next number over the gap between two tiles.
  const move = (from, step, axis) => {
    const length = axis === 0 ? height : width;
    return from + step + (gap && (from + step + 1) % (length + gap) === 0 ? step : 0);
  };
  pointable(canvas, { title, key, rows, columns, point: pointTile, move });
  return element(
    "section",
    { class: "panel kernels", "data-panel": name, "data-key": key },
    element("h3", {}, title),
    element("p", { class: "soft" }, word(inputsDown ? "rowsOfInputs" : "rowsOfOutputs", texts)),
    large,
    scaleBar(full),
  );

  function pointTile(row, column) {
    const [o, c, kh, kw] = tile(row, column);
    if (kh >= height || kw >= width) return;
    const place = { channel: operation.detail[o], input: source.kept[c], i: kh, j: kw };
    const ends = `${word("output")} ${place.channel}, ${word("inputOf", { label: "x" })} ${place.input}`;
    const text = `${ends}, ${word("placeIn", place)}`;
    const recorded = number(o, c, kh, kw);
    state.place = {
      key,
      i: row,
      j: column,
      channel: place.channel,
      text: `${title}: ${text}`,
      how: how ? () => how(place) : () => ({ blocks: [], recorded }),
    };
    explain();
  }
}

/** The gradients of other parameters: of a bias, of gamma and beta, as lists of numbers. */
function parameterPanels(operation) {
  const { trace } = state;
  if (!operation.parameters.length) return [];
  const panels = operation.parameters.map((gradient) =>
    panel({
      key: `${gradient.label}_gradient${operation.number}`,
      title: word("gradientOf", { label: gradient.label }),
      id: gradient.array,
      explain: (number) => explainParameter(trace, operation, gradient, gradient.numbers.indexOf(number)),
      operation: {
        shape: [1, gradient.shape.reduce((product, length) => product * length, 1)],
        kept: gradient.numbers,
        shown: gradient.numbers.length,
        arrays: {},
        family: `${gradient.label}_gradient`,
      },
    }),
  );
  return [element("div", { class: "panels" }, panels)];
}
