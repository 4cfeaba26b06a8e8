// Arithmetic that a formula says: its lines are trees, computed here for one place.
//
// A tree is a number, a name, or a list of a function and its arguments. All arrays are seen in the axes of
// the formula's space: a place in it has an index for each axis, and an array of length 1 along an axis has
// the same number everywhere along it.

/** A number that is not on this page. */
class NotKept extends Error {
  constructor(channel, what) {
    super(`${what} ${channel}`);
    Object.assign(this, { channel, what });
  }
}

const FUNCTIONS = {
  "+": (a, b) => a + b,
  "-": (a, b) => a - b,
  "*": (a, b) => a * b,
  "/": (a, b) => a / b,
  "**": (a, b) => a ** b,
  neg: (a) => -a,
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
  "==": (a, b) => a === b,
  "!=": (a, b) => a !== b,
  and: (a, b) => Boolean(a && b),
  or: (a, b) => Boolean(a || b),
  not: (a) => !a,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  abs: Math.abs,
  sign: Math.sign,
  tanh: Math.tanh,
  max: Math.max,
  min: Math.min,
};

/** The formula of one operation, with its numbers. */
class Formula {
  static of(trace, operation) {
    if (!Formula.known.has(operation)) Formula.known.set(operation, new Formula(trace, operation));
    return Formula.known.get(operation);
  }

  constructor(trace, operation) {
    Object.assign(this, { trace, operation, ...operation.arithmetic });
    this.trees = new Map(this.lines.map(([name, tree]) => [name, tree]));
    this.texts = new Map(this.lines.map(([name, , text]) => [name, text]));
    this.reductions = new Map(); // what was summed up: by tree and place
    this.readers = new Map();
  }

  /** The shape of what a name stands for, in the space. */
  shapeOf(name) {
    if (name === this.result || name === this.incoming) return this.full;
    return name in this.operands ? this.operands[name].shape : this.shapes[name] || [];
  }

  /** Where a place of the space lies in an array. */
  own(shape, place) {
    const start = place.length - shape.length;
    return shape.map((length, axis) => (length === 1 ? 0 : place[start + axis]));
  }

  value(name, place) {
    if (name !== this.result && this.trees.has(name)) return this.run(this.trees.get(name), place);
    if (!this.readers.has(name)) this.readers.set(name, this.reader(name));
    return this.readers.get(name)(place);
  }

  /** A function that gives the number of an array at a place. */
  reader(name) {
    const { trace, operation } = this;
    if (name === this.result || name === this.incoming) {
      const planes = (channel) =>
        name === this.result ? trace.output(operation, channel) : trace.incoming(operation, channel);
      const own = (index) => indexOf(operation.shape, flatOf(this.full, index));
      return this.readerOf(operation, this.full, own, planes, name);
    }
    const operand = this.operands[name];
    if (!operand) throw new NotKept("", name);
    if (operand.value !== undefined) return () => operand.value;
    if (operand.input !== undefined) {
      const source = trace.source(operation, operand.input);
      const place = operand.insert === null ? null : operand.shape.length + operand.insert;
      const spared = (index) => (place === null ? index : index.filter((_, axis) => axis !== place));
      return this.readerOf(source, operand.shape, spared, (channel) => trace.output(source, channel), name);
    }
    if (operand.array === undefined) throw new NotKept("", name);
    const { data } = trace.array(operand.array);
    if (!operand.byChannel) return (place) => data[flatOf(operand.shape, this.own(operand.shape, place))];
    const rest = operand.shape.slice(0, -1);
    const size = rest.reduce((product, length) => product * length, 1);
    return (place) => {
      const index = this.own(operand.shape, place);
      const channel = index.pop();
      const at = operation.kept.indexOf(channel);
      if (at < 0) throw new NotKept(channel, name);
      return data[at * size + flatOf(rest, index)];
    };
  }

  /** Of an operation's array, whose channels are kept one by one. */
  readerOf(source, shape, indexIn, planeOf, name) {
    const planes = new Map();
    return (place) => {
      const { channel, i, j } = placeAt(source, indexIn(this.own(shape, place)));
      if (!planes.has(channel)) planes.set(channel, planeOf(channel));
      const plane = planes.get(channel);
      if (!plane) throw new NotKept(channel, name);
      return plane[i * places(source)[1] + j];
    };
  }

  run(tree, place) {
    if (typeof tree === "number") return tree;
    if (typeof tree === "string") return this.value(tree, place);
    const [sign, ...parts] = tree;
    if (sign === "count") return this.axes[parts[0]].reduce((count, axis) => count * this.space[axis], 1);
    if (sign === "if") return this.run(this.run(parts[0], place) ? parts[1] : parts[2], place);
    if (sign === "reduce") return this.reduced(tree, place);
    return FUNCTIONS[sign](...parts.map((part) => this.run(part, place)));
  }

  /** A sum or the like over some axes; computed once for all places that share it. */
  reduced(tree, place) {
    const [, how, inner, name] = tree;
    const axes = this.axes[name];
    const near = this.near[name];
    const key = place.filter((_, axis) => near !== undefined || !axes.includes(axis)).join();
    if (!this.reductions.has(tree)) this.reductions.set(tree, new Map());
    const known = this.reductions.get(tree);
    if (!known.has(key)) {
      const values = this.along(axes, near, place).map((one) => Number(this.run(inner, one)));
      const total = values.reduce((sum, value) => sum + value, 0);
      const found = { sum: total, mean: total / values.length };
      known.set(key, how in found ? found[how] : values.reduce((a, b) => FUNCTIONS[how](a, b)));
    }
    return known.get(key);
  }

  /** All places along some axes through a place; with `near`, so many on both sides. */
  along(axes, near, place) {
    return axes.reduce(
      (found, axis) => {
        const first = near === undefined ? 0 : Math.max(0, place[axis] - near);
        const end = near === undefined ? this.space[axis] : Math.min(this.space[axis], place[axis] + near + 1);
        const steps = Array.from({ length: end - first }, (_, step) => first + step);
        return found.flatMap((one) => steps.map((at) => [...one.slice(0, axis), at, ...one.slice(axis + 1)]));
      },
      [place],
    );
  }

  /** The names that some trees need, what is needed first before. */
  needed(trees) {
    const found = new Set();
    const visit = (tree) => {
      if (typeof tree === "string") {
        if (found.has(tree)) return;
        if (tree !== this.result && this.trees.has(tree)) visit(this.trees.get(tree));
        found.add(tree);
      } else if (Array.isArray(tree) && tree[0] !== "count") {
        (tree[0] === "reduce" ? tree.slice(2, 3) : tree.slice(1)).forEach(visit);
      }
    };
    trees.forEach(visit);
    return [...found];
  }

  /** A row for each name: what it is, and its number at a place. */
  rows(names, place) {
    return names.map((name) => {
      const value = Number(this.value(name, place));
      if (name !== this.result && this.trees.has(name)) return [`${name} = ${this.texts.get(name)}`, value];
      const operand = this.operands[name];
      const source =
        operand && operand.input !== undefined ? this.trace.source(this.operation, operand.input) : null;
      return [source ? `${name}, ${word("from", { name: nameOf(source) })}` : name, value];
    });
  }

  /** Lists of what is summed up along one axis, of many numbers those that make most of the sums. */
  lists(trees, names, place) {
    const sums = new Map();
    const visit = (tree) => {
      if (!Array.isArray(tree)) return;
      const [sign, how, inner, name] = tree;
      if (sign === "reduce" && how === "sum" && this.axes[name].length === 1 && !(name in this.near))
        sums.set(name, [...(sums.get(name) || []), inner]);
      tree.slice(1).forEach(visit);
    };
    trees.forEach(visit);
    return [...sums].flatMap(([name, inners]) => {
      const axis = this.axes[name][0];
      const all = this.along([axis], undefined, place);
      const shares = all.map(() => 0);
      for (const inner of inners) {
        const sizes = all.map((one) => Math.abs(Number(this.run(inner, one))));
        const total = sizes.reduce((sum, size) => sum + size, 0) || 1;
        sizes.forEach((size, k) => {
          shares[k] += size / total;
        });
      }
      const columns = names.filter((one) => this.varies(one, axis));
      if (!columns.length) return [];
      const order = [...all.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, ROWS);
      const classes = this.trace.classes && this.trace.classes.length === all.length;
      const rows = order.map((k) => [
        classes ? className(this.trace, k) : String(k),
        ...columns.map((one) => Number(this.value(one, all[k]))),
      ]);
      return [{ kind: "list", heading: [name, ...columns], rows }];
    });
  }

  /** Whether the numbers of a name differ along an axis of the space. */
  varies(name, axis) {
    const shape = this.shapeOf(name);
    const own = shape.length + axis - this.space.length;
    return own >= 0 && shape[own] > 1;
  }

  /**
   * The number of a tree at a place of the space, with all that it needs. What varies along an axis that an
   * array of the shape `target` has not, has no number of its own there: it is in the lists.
   */
  explained(label, tree, place, target, before = []) {
    const trees = [...before.map((name) => this.trees.get(name)), tree];
    const names = this.needed([...before, tree]);
    const reached = [...new Set([...trees, ...names.map((name) => this.trees.get(name)).filter(Boolean)])];
    const lead = this.space.length - target.length;
    const summed = [...this.space.keys()].filter((axis) => axis < lead || target[axis - lead] === 1);
    const here = names.filter((name) => !summed.some((axis) => this.varies(name, axis)));
    const rows = this.rows(here, place);
    return {
      blocks: [...(rows.length ? [terms(...rows)] : []), ...this.lists(reached, names, place)],
      total: Number(this.run(tree, place)),
      formula: this.texts.get(label),
    };
  }

  forward(channel, i, j) {
    const index = indexOf(this.full, flatOf(this.operation.shape, indexAt(this.operation, channel, i, j)));
    const place = [...Array(this.space.length - index.length).fill(0), ...index];
    const before = [];
    for (const [name] of this.lines) {
      if (name === this.result) break;
      before.push(name);
    }
    return this.explained(this.result, this.trees.get(this.result), place, this.full, before);
  }

  /** The gradient of a number of an input: of one that was stretched, the sum over where it was. */
  backward(name, index, shape) {
    const label = `d${name}`;
    const tree = this.trees.get(label);
    if (tree === undefined) return { blocks: [note(word("noArithmetic"))] };
    const full = name in this.operands ? this.operands[name].shape : shape;
    const own = indexOf(full, flatOf(shape, index));
    const lead = this.space.length - full.length;
    const place = [...Array(lead).fill(0), ...own];
    // Where the expression has been summed up already, its numbers are the same all along the axis.
    const shapes = this.shapes[label];
    const before = this.space.length - shapes.length;
    const has = (axis) => axis >= before && shapes[axis - before] > 1;
    const free = [...this.space.keys()].filter(
      (axis) => (axis < lead || full[axis - lead] === 1) && has(axis),
    );
    const all = this.along(free, undefined, place);
    if (all.length === 1) return this.explained(label, tree, place, full);
    const total = all.reduce((sum, one) => sum + Number(this.run(tree, one)), 0);
    const formula = `sum ${this.texts.get(label)}`;
    return { blocks: [note(word("sumOfMap", { count: all.length }))], total, formula };
  }
}

Formula.known = new WeakMap();

/** An explanation, or that a number it needs is not on this page. */
function orUnknown(explain) {
  try {
    return explain();
  } catch (error) {
    if (error instanceof NotKept) return unknown(error.channel, error.what);
    throw error;
  }
}

const FORMULA = {
  forward: (trace, operation, channel, i, j) =>
    orUnknown(() => Formula.of(trace, operation).forward(channel, i, j)),
  backward: (trace, operation, input, channel, i, j) =>
    orUnknown(() => {
      const { label, shape } = operation.inputs[input];
      const source = trace.source(operation, input);
      return Formula.of(trace, operation).backward(label, indexAt(source, channel, i, j), shape);
    }),
  parameter: (trace, operation, { label, shape }, number) =>
    orUnknown(() => Formula.of(trace, operation).backward(label, indexOf(shape, number), shape)),
};
