// Where the windows of a convolution or a pool stand, place by place.

/** Row and column of the picture under (kh, kw) of the window at (i, j), as an index; -1 outside of it. */
function under({ stride, dilation, first }, [height, width], i, j, kh, kw) {
  const row = first[0] + i * stride[0] + kh * dilation[0];
  const column = first[1] + j * stride[1] + kw * dilation[1];
  return row < 0 || column < 0 || row >= height || column >= width ? -1 : row * width + column;
}

/** The place of the window that has the picture's (row, column) under its (kh, kw), as an index; -1 if none. */
function above({ stride, dilation, first }, [height, width], row, column, kh, kw) {
  const i = (row - first[0] - kh * dilation[0]) / stride[0];
  const j = (column - first[1] - kw * dilation[1]) / stride[1];
  const exists = Number.isInteger(i) && Number.isInteger(j) && i >= 0 && j >= 0 && i < height && j < width;
  return exists ? i * width + j : -1;
}

/** A matrix with a value for each place of a window. */
function overWindow([height, width], value) {
  return Array.from({ length: height }, (_, kh) => Array.from({ length: width }, (_, kw) => value(kh, kw)));
}

/** How many rows or columns of the picture a window spans. */
function spanOf({ size, dilation }, axis) {
  return (size[axis] - 1) * dilation[axis] + 1;
}
