// The network as a map: stages from top to bottom, their blocks inside, and in an open block its operations
// with the paths between them.

const MAP = { width: 288, stage: 34, block: 32, gap: 8, row: 38, box: 24, chip: 14 };

/** How an operation is called in its box. */
function shortName(operation) {
  return operation.join || operation.label.replace(/(\d)x(?=\d)/g, "$1×");
}

/** The map of a trace in an element; `go` is called with the number of an operation. */
class NetworkMap {
  constructor(trace, holder, go) {
    Object.assign(this, { trace, holder, go, current: 0, openStages: new Set(), openBlocks: new Set() });
    this.stages = [];
    trace.blocks.forEach((block, number) => {
      const last = this.stages[this.stages.length - 1];
      const size = trace.stages[block.stage - 1] || [];
      // What comes after the last picture is one stage.
      const isHead = block.stage > 0 && size.reduce((product, length) => product * length, 1) === 1;
      const key = isHead ? "head" : Math.max(1, block.stage);
      if (last && last.key === key) last.blocks.push(number);
      else this.stages.push({ key, size: isHead ? [] : trace.stages[key - 1] || [], blocks: [number] });
    });
    this.blockOf = new Map();
    trace.blocks.forEach((block, number) => block.operations.forEach((one) => this.blockOf.set(one, number)));
  }

  /** Show where `number` is, with its stage and block open. */
  show(number) {
    this.current = number;
    const block = this.blockOf.get(number);
    if (this.shownBlock !== block) {
      // What was opened only to show the step before is closed again.
      const stage = this.stages.findIndex((one) => one.blocks.includes(block));
      this.openBlocks.delete(this.shownBlock);
      if (stage !== this.shownStage) this.openStages.delete(this.shownStage);
      this.openBlocks.add(block);
      this.openStages.add(stage);
      Object.assign(this, { shownBlock: block, shownStage: stage });
    }
    this.draw();
    const here = this.holder.querySelector("[aria-current=step]");
    if (here) revealed(here, this.holder);
  }

  toggle(set, key) {
    if (!set.delete(key)) set.add(key);
    this.draw();
  }

  draw() {
    const focused = document.activeElement && document.activeElement.getAttribute("data-key");
    const parts = [];
    let y = 4;
    this.stages.forEach((stage, number) => {
      const [drawing, height] = this.drawStage(stage, number);
      parts.push(moved(drawing, 0, y));
      y += height + MAP.gap;
    });
    const svg = drawn(
      "svg",
      {
        viewBox: `0 0 ${MAP.width} ${y}`,
        width: MAP.width,
        height: y,
        role: "group",
        "aria-label": word("map"),
      },
      parts,
    );
    this.holder.replaceChildren(svg);
    const again =
      focused &&
      [...svg.querySelectorAll("[data-key]")].find((one) => one.getAttribute("data-key") === focused);
    if (again) again.focus();
  }

  drawStage(stage, number) {
    const open = this.openStages.has(number);
    const size = stage.size.length ? stage.size.join(" × ") : word("scores");
    const count = word(stage.blocks.length === 1 ? "part" : "parts", { count: stage.blocks.length });
    const parts = [];
    let height = MAP.stage;
    if (open) {
      for (const block of stage.blocks) {
        const [drawing, tall] = this.drawBlock(block);
        parts.push(moved(drawing, 0, height));
        height += tall + MAP.gap;
      }
    } else {
      const [drawing, tall] = this.drawChips(stage);
      parts.push(moved(drawing, 0, height));
      height += tall;
    }
    const title = button(
      `stage ${number}`,
      `${size}, ${count}, ${word(open ? "opened" : "closed")}`,
      () => this.toggle(this.openStages, number),
      { "aria-expanded": String(open) },
      [
        drawn("rect", { x: 2, y: 0, width: MAP.width - 4, height: MAP.stage - 4, rx: 8, class: "hit" }),
        drawn("text", { x: 14, y: 20, class: "sign" }, open ? "−" : "+"),
        drawn("text", { x: 32, y: 20, class: "strong" }, size),
        drawn("text", { x: MAP.width - 14, y: 20, class: "soft", "text-anchor": "end" }, count),
      ],
    );
    const frame = drawn("rect", { x: 2, y: 0, width: MAP.width - 4, height, rx: 8, class: "stage" });
    return [[frame, title, ...parts], height];
  }

  /** A closed stage: its blocks as chips on a line, a bow over each that a skip path leads around. */
  drawChips(stage) {
    const perRow = 12;
    const step = (MAP.width - 36) / perRow;
    const chips = stage.blocks.map((block, place) => {
      const x = 18 + (place % perRow) * step;
      const y = 16 + Math.floor(place / perRow) * 30;
      const here = this.blockOf.get(this.current) === block;
      const middle = y + MAP.chip / 2;
      return [
        drawn("path", { d: `M${x - 4} ${middle}H${x + step - 4}`, class: "line" }),
        this.trace.blocks[block].joins
          ? bow([x - 3, middle], [x - 3, y - 12], [x + MAP.chip + 3, y - 12], [x + MAP.chip + 3, middle])
          : null,
        drawn("rect", { x, y, width: MAP.chip, height: MAP.chip, rx: 3, class: here ? "chip here" : "chip" }),
      ];
    });
    return [chips.flat(), 16 + Math.ceil(stage.blocks.length / perRow) * 30 - 6];
  }

  drawBlock(number) {
    const block = this.trace.blocks[number];
    const open = this.openBlocks.has(number);
    const name = block.name || operationWords(this.trace.operations[block.operations[0]])[0];
    const [inside, tall] = open ? this.drawInside(block) : [[], 0];
    const height = MAP.block + tall;
    const here = this.blockOf.get(this.current) === number;
    const side = MAP.width - 20;
    const around =
      block.joins && !open
        ? bow([side - 42, 3], [side, 3], [side, height - 3], [side - 42, height - 3])
        : null;
    const title = button(
      `block ${number}`,
      `${name}, ${word(open ? "opened" : "closed")}${block.joins ? `, ${word("joins")}` : ""}`,
      () => this.toggle(this.openBlocks, number),
      { "aria-expanded": String(open) },
      [
        drawn("rect", { x: 12, y: 0, width: MAP.width - 24, height: MAP.block - 4, rx: 6, class: "hit" }),
        drawn("text", { x: 22, y: 19, class: "sign" }, open ? "−" : "+"),
        drawn("text", { x: 40, y: 19 }, shortened(name, 26)),
      ],
    );
    const frame = drawn("rect", {
      x: 12,
      y: 0,
      width: MAP.width - 24,
      height,
      rx: 6,
      class: here ? "block here" : "block",
    });
    return [[frame, around, title, ...moved(inside, 0, MAP.block)], height];
  }

  /** The operations of an open block: a column for each branch, a row for each step away from the start. */
  drawInside(block) {
    const { at, columns, rows } = placed(this.trace, block.operations);
    const left = 20;
    const wide = (MAP.width - 2 * left - 24) / columns;
    const top = 14;
    const x = (one) => left + at.get(one).column * wide;
    const y = (one) => top + at.get(one).row * MAP.row;
    const middle = (one) => x(one) + (wide - 10) / 2;
    const paths = block.operations.flatMap((one) => {
      const numbers = this.trace.operations[one].inputs.map((input) => input.number);
      return numbers
        .filter((source) => source !== null)
        .map((source) => {
          const inside = at.has(source);
          return {
            from: inside ? [middle(source), y(source) + MAP.box] : [left + (wide - 10) / 2, 0],
            to: [middle(one), y(one)],
            side: [x(one) + wide - 10, y(one) + MAP.box / 2],
            rows: at.get(one).row - (inside ? at.get(source).row : -1),
            isStart: !inside,
            sameColumn: at.get(one).column === (inside ? at.get(source).column : 0),
          };
        });
    });
    let lane = 0;
    const lines = paths.map((path) => {
      if (path.rows === 1) return bow(path.from, below(path.from, 10), below(path.to, -10), path.to, "line");
      if (path.sameColumn) return detour(path.from, path.side, MAP.width - 26 - 6 * (lane++ % 3));
      return path.isStart
        ? bow(path.from, below(path.to, -4), below(path.to, -16), path.to)
        : bow(path.from, [path.from[0], path.to[1] - 4], below(path.to, -16), path.to);
    });
    const boxes = block.operations.map((one) => this.drawOperation(one, x(one), y(one), wide - 10));
    return [[...lines, ...boxes], top + rows * MAP.row];
  }

  drawOperation(number, x, y, width) {
    const operation = this.trace.operations[number];
    const here = number === this.current;
    const learned = operation.inputs.some((input) => input.kind === "parameter");
    const text = shortName(operation);
    return button(
      `operation ${number}`,
      word("goTo", { name: nameOf(operation) }),
      () => this.go(number),
      here ? { "aria-current": "step" } : {},
      [
        drawn("title", {}, nameOf(operation)),
        drawn("rect", {
          x,
          y,
          width,
          height: MAP.box,
          rx: 5,
          class: `operation${learned ? " learned" : ""}${here ? " here" : ""}`,
        }),
        drawn(
          "text",
          { x: x + width / 2, y: y + 16.5, "text-anchor": "middle" },
          shortened(text, Math.floor(width / 7)),
        ),
      ],
    );
  }
}

/** Columns and rows of the operations of a block, by number. */
function placed(trace, numbers) {
  const inside = new Set(numbers);
  const sourcesOf = (one) =>
    trace.operations[one].inputs.map((input) => input.number).filter((source) => inside.has(source));
  const depth = new Map(); // of the longest way there from the start of the block
  const before = new Map(); // the last operation on it
  for (const one of numbers) {
    const sources = sourcesOf(one);
    const longest = sources.reduce(
      (best, source) => (best === null || depth.get(source) > depth.get(best) ? source : best),
      null,
    );
    depth.set(one, longest === null ? 0 : depth.get(longest) + 1);
    before.set(one, longest);
  }
  const at = new Map();
  let columns = 0;
  // From the last operation back along the longest way is the first column; what is left, the next ones.
  for (const last of [...numbers].reverse()) {
    if (at.has(last)) continue;
    const column = Math.min(columns++, 3);
    for (let one = last; one !== null && one !== undefined && !at.has(one); one = before.get(one))
      at.set(one, { column, row: depth.get(one) });
  }
  if (columns > 4)
    numbers.forEach((one, row) => {
      at.get(one).row = row;
    }); // more branches than columns
  return { at, columns: Math.min(columns, 4), rows: Math.max(...[...at.values()].map(({ row }) => row)) + 1 };
}

/** A curve from the first point to the last, drawn towards the two between. */
function bow(start, first, second, end, kind = "skip") {
  const d = `M${start.join(" ")}C${[first, second, end].map((point) => point.join(" ")).join(" ")}`;
  return drawn("path", { d, class: kind });
}

/** A path that leaves its column, runs down at `side`, and comes back from the right. */
function detour([x, y], [endX, endY], side) {
  const out = `M${x} ${y + 3}C${side} ${y + 3} ${side} ${y + 3} ${side} ${y + 24}`;
  const back = `V${endY - 18}C${side} ${endY} ${side} ${endY} ${endX} ${endY}`;
  return drawn("path", { d: out + back, class: "skip" });
}

const below = ([x, y], distance) => [x, y + distance];

/** Something in a drawing that can be clicked, or pressed with Enter or Space. */
function button(key, label, act, attributes, children) {
  return drawn(
    "g",
    {
      role: "button",
      tabindex: 0,
      "data-key": key,
      "aria-label": label,
      ...attributes,
      click: act,
      keydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        event.stopPropagation();
        act();
      },
    },
    children,
  );
}

function moved(children, x, y) {
  return [drawn("g", { transform: `translate(${x} ${y})` }, children)];
}

function shortened(text, length) {
  return text.length > length ? `${text.slice(0, Math.max(1, length - 1))}…` : text;
}

/** Scroll a box, and nothing around it, so that an element in it is seen. */
function revealed(one, box) {
  const [inner, outer] = [one.getBoundingClientRect(), box.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom) {
    box.scrollTop += inner.top - outer.top - box.clientHeight / 2 + inner.height / 2;
  }
}
