// The frames in the pictures around what a number was made of, and around what is made of it.

/** The frames on a panel for the number that is explained: itself, and on inputs its window. */
function marks({ key, panel: kind }, place) {
  const frame = (x, y, width, height) => drawn("rect", { x, y, width, height, class: "mark" });
  if (key === place.key) return [frame(place.j, place.i, 1, 1)];
  const { number, way } = state.events[state.event];
  const operation = state.trace.operations[number];
  const [height, width] = places(operation);
  if (way === "forward" && kind === "x" && place.key.startsWith("y") && height * width > 1) {
    const source = state.trace.operations[Number(key.slice(1))];
    return places(source)[0] * places(source)[1] > 1 ? windowMark(operation, source, place, frame) : [];
  }
  if (way === "backward" && kind === "dy" && place.key.startsWith("dx") && height * width > 1)
    return readersMark(operation, place, frame);
  return [];
}

function windowMark(operation, source, place, frame) {
  const { arithmetic } = operation;
  if (arithmetic && arithmetic.windows && !arithmetic.transposed) {
    const { stride, first } = arithmetic.windows;
    const [high, wide] = [0, 1].map((axis) => spanOf(arithmetic.windows, axis));
    return [frame(place.j * stride[1] + first[1], place.i * stride[0] + first[0], wide, high)];
  }
  if (arithmetic && arithmetic.kind === "moved") {
    const origin = originOf(state.trace, operation, place.channel, place.i, place.j);
    if (!origin) return [];
    const wide = places(source)[1];
    return [frame(origin.place % wide, Math.floor(origin.place / wide), 1, 1)];
  }
  return places(source).join() === places(operation).join() ? [frame(place.j, place.i, 1, 1)] : [];
}

/** The frame around the places of the output whose windows are over a number of the input. */
function readersMark(operation, place, frame) {
  const { arithmetic } = operation;
  if (!arithmetic || !arithmetic.windows || arithmetic.transposed)
    return places(operation).join() === places(state.trace.source(operation, 0)).join()
      ? [frame(place.j, place.i, 1, 1)]
      : [];
  const { stride, first } = arithmetic.windows;
  const [[i, high], [j, wide]] = [place.i, place.j].map((at, axis) => {
    const from = at - first[axis];
    const start = Math.max(0, Math.ceil((from - spanOf(arithmetic.windows, axis) + 1) / stride[axis]));
    const end = Math.min(places(operation)[axis], Math.floor(from / stride[axis]) + 1);
    return [start, end - start];
  });
  return high > 0 && wide > 0 ? [frame(j, i, wide, high)] : [];
}
