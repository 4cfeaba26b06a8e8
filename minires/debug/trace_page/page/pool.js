// Arithmetic of a pool: of the numbers under a window the largest, or their mean.

/** The window of a pooling, its real cells, and the first largest among them. */
function pooled(trace, operation, channel, i, j) {
  const source = trace.source(operation, 0);
  const plane = trace.output(source, channel);
  if (!plane) return null;
  const { windows, counted } = operation.arithmetic;
  const index = overWindow(windows.size, (kh, kw) => under(windows, places(source), i, j, kh, kw));
  const off = index.map((row) => row.map((place) => place < 0));
  const values = index.map((row) => row.map((place) => (place < 0 ? 0 : plane[place])));
  const cells = index.flat().filter((place) => place >= 0);
  const winner = cells.reduce((best, place) => (plane[place] > plane[best] ? place : best), cells[0]);
  const count = counted ? index.flat().length : cells.length;
  return { values, off, cells, winner, plane, index, count };
}

/** The windows over a place of a pooling's input: [index of the window, its row, its column]. */
function windowsOver(operation, row, column) {
  const { windows } = operation.arithmetic;
  const found = [];
  overWindow(windows.size, (kh, kw) => {
    const at = above(windows, places(operation), row, column, kh, kw);
    if (at >= 0) found.push([at, Math.floor(at / places(operation)[1]), at % places(operation)[1]]);
  });
  return found;
}

const POOL = {
  forward(trace, operation, channel, i, j) {
    const window = pooled(trace, operation, channel, i, j);
    if (!window) return unknown(channel, "x");
    const { mean } = operation.arithmetic;
    const block = {
      kind: "window",
      label: word("windowOf", { label: "x", channel }),
      off: window.off,
      mark: mean ? undefined : window.index.map((row) => row.map((place) => place === window.winner)),
      parts: [[word("window"), window.values]],
    };
    const sum = window.cells.reduce((total, place) => total + window.plane[place], 0);
    const blocks = [block];
    if (mean) blocks.push(terms([word("sumOf"), sum], [word("countOf"), window.count]));
    if (window.off.flat().some(Boolean)) blocks.push(note(word("outsideCells")));
    if (!mean) return { blocks, total: window.plane[window.winner], formula: "max" };
    return { blocks, total: sum / window.count, formula: `sum / ${window.count}` };
  },

  backward(trace, operation, input, channel, row, column) {
    const dy = trace.incoming(operation, channel);
    const source = trace.source(operation, 0);
    if (!dy || !trace.output(source, channel)) return unknown(channel, dy ? "x" : "dy");
    const place = row * places(source)[1] + column;
    const over = windowsOver(operation, row, column).map(([at, i, j]) => ({
      at,
      i,
      j,
      window: pooled(trace, operation, channel, i, j),
    }));
    if (operation.arithmetic.mean) {
      const rows = over.map(({ at, i, j, window }) => [
        `${word("placeIn", { i, j })}: dy / ${window.count}`,
        dy[at] / window.count,
      ]);
      return { blocks: [terms(...rows)], total: rows.reduce((sum, each) => sum + each[1], 0), formula: "sum" };
    }
    const won = over.filter(({ window }) => window.winner === place);
    if (!won.length) return { blocks: [note(word("winsNowhere"))], total: 0, formula: "0" };
    const rows = won.map(({ at, i, j }) => [word("placeIn", { i, j }), dy[at]]);
    return {
      blocks: [note(word("winsIn")), terms(...rows)],
      total: rows.reduce((sum, each) => sum + each[1], 0),
      formula: "sum dy",
    };
  },
};
