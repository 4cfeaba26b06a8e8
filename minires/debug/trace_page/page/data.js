// The recorded values: chunks of packed numbers in this page, unpacked when they are first asked for.

/** The bytes of a chunk of this page. */
async function unpack(number) {
  const text = atob(document.getElementById(`chunk${number}`).textContent);
  const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Numbers of four bytes from a list of all first bytes, all second bytes, and so on. */
function unshuffle(bytes) {
  const count = bytes.length / 4;
  const view = new DataView(new ArrayBuffer(bytes.length));
  for (let part = 0; part < 4; part++) {
    for (let i = 0; i < count; i++) view.setUint8(4 * i + part, bytes[part * count + i]);
  }
  const numbers = new Float32Array(count);
  for (let i = 0; i < count; i++) numbers[i] = view.getFloat32(4 * i, true);
  return numbers;
}

/** The recording: what is in the table of the first chunk, and the arrays of the others. */
class Trace {
  constructor(table) {
    Object.assign(this, table);
    this.chunks = new Map(); // number of the operation -> promise of its numbers
    this.loaded = new Map();
  }

  static async read() {
    return new Trace(JSON.parse(new TextDecoder().decode(await unpack(0))));
  }

  /** Make sure that the arrays of these numbers can be used. */
  async load(ids) {
    const chunks = [...new Set(ids.map((id) => this.arrays[id][0]))];
    await Promise.all(
      chunks.map((chunk) => {
        if (!this.chunks.has(chunk)) {
          const numbers = unpack(chunk + 1).then(unshuffle);
          this.chunks.set(
            chunk,
            numbers.then((values) => this.loaded.set(chunk, values)),
          );
        }
        return this.chunks.get(chunk);
      }),
    );
  }

  /** A loaded array: {shape, data}. */
  array(id) {
    const [chunk, start, shape] = this.arrays[id];
    const size = shape.reduce((product, length) => product * length, 1);
    return { shape, data: this.loaded.get(chunk).subarray(start, start + size) };
  }

  /** One channel of an array whose first axis is the channels. */
  plane(id, index) {
    const { shape, data } = this.array(id);
    const size = shape.slice(1).reduce((product, length) => product * length, 1);
    return data.subarray(index * size, (index + 1) * size);
  }

  /** The values of a channel of an operation's output, or null where they are not on this page. */
  output(operation, channel) {
    const index = operation.kept.indexOf(channel);
    return index < 0 ? null : this.plane(operation.arrays.output, index);
  }

  /** The gradient of the loss with respect to a channel of an operation's output, or null. */
  incoming(operation, channel) {
    const index = operation.kept.indexOf(channel);
    if (index < 0 || index >= operation.shown || operation.arrays.incoming === undefined) return null;
    return this.plane(operation.arrays.incoming, index);
  }

  /** The gradient that an operation sends to a channel of its input, or null. */
  outgoing(operation, input, channel) {
    const source = this.source(operation, input);
    const id = operation.outgoing[input] && operation.outgoing[input].array;
    const index = source ? source.kept.indexOf(channel) : -1;
    return id === undefined || index < 0 || index >= source.shown ? null : this.plane(id, index);
  }

  /** The operation that an input came from, or null. */
  source(operation, input) {
    const number = operation.inputs[input].number;
    return number === null ? null : this.operations[number];
  }

  /** All arrays that one step in one direction shows. */
  needed(operation, way) {
    const ids = [...Object.values(operation.arrays), ...arraysOf(operation.arithmetic)];
    operation.inputs.forEach((_, input) => {
      const source = this.source(operation, input);
      if (source) ids.push(source.arrays.output);
    });
    if (way === "backward") {
      for (const gradient of operation.outgoing) if (gradient.array !== undefined) ids.push(gradient.array);
      for (const part of operation.contributions) ids.push(part.array);
      for (const gradient of operation.parameters) ids.push(gradient.array);
    }
    return ids;
  }
}

/** The arrays that the arithmetic of an operation needs, besides what goes in and out. */
function arraysOf(arithmetic) {
  if (!arithmetic) return [];
  const { arrays = {}, operands = {}, places, origins, reads = [], given = [] } = arithmetic;
  const found = Object.values(operands).map((operand) => operand.array);
  return [...Object.values(arrays), ...found, places, origins, ...reads, ...given].filter(Number.isInteger);
}

/** Whether an operation stands for what the network is given. */
function isInput(operation) {
  return operation.inputs.length === 0;
}

/** Whether an array is (1, H, W, C), known by channels; anything else is known by its numbers in order. */
function isPicture({ shape }) {
  return shape.length === 4 && shape[0] === 1;
}

/** Rows and columns of an operation's output; a vector has one place. */
function places(operation) {
  return isPicture(operation) ? [operation.shape[1], operation.shape[2]] : [1, 1];
}

/** How many channels an operation's output has in all; of a vector, how many numbers. */
function allChannels(operation) {
  const { shape } = operation;
  return isPicture(operation) ? shape[3] : shape.reduce((product, length) => product * length, 1);
}

/** What an operation is called: its module and its name. */
function nameOf(operation) {
  return [operation.path, operation.op].filter(Boolean).join(" · ");
}
