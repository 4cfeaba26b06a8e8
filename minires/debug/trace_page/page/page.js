// The page: where we are, what is shown of it, and the keys, buttons and pictures that lead elsewhere.

const at = (id) => document.getElementById(id);
const THEMES = ["themeAuto", "themeLight", "themeDark"];
const PACE = 900; // milliseconds a step is shown while playing

const state = {
  trace: null,
  map: null,
  events: [],
  event: 0,
  theme: 0,
  playing: 0,
  channels: new Map(), // by family of operations that hand channels on: the channel that is drawn large
  place: null, // what is explained: {key, channel, i, j}
};

// ---------------------------------------------------------------------------------------------- navigation

/** All steps in order: forward through the operations, then back. */
function allEvents(trace) {
  return [
    ...trace.operations.map((_, number) => ({ number, way: "forward" })),
    ...trace.back.map((number) => ({ number, way: "backward" })),
  ];
}

function goTo(event) {
  state.event = Math.min(Math.max(event, 0), state.events.length - 1);
  state.place = null;
  return show();
}

/** Go to an operation, in the direction of now where it is on that way. */
function goToOperation(number, way = state.events[state.event].way) {
  const find = (one) => state.events.findIndex((event) => event.number === number && event.way === one);
  goTo(find(way) < 0 ? find("forward") : find(way));
}

function turn(way) {
  goToOperation(state.events[state.event].number, way);
}

function play(on) {
  clearInterval(state.playing);
  state.playing = on
    ? setInterval(() => {
        if (state.event + 1 < state.events.length) goTo(state.event + 1);
        else play(false);
      }, PACE)
    : 0;
  at("play").classList.toggle("playing", on);
  at("play").setAttribute("aria-label", word(on ? "pause" : "play"));
}

// ----------------------------------------------------------------------------------------------- the step

let latest = 0; // the number of the latest call of show(): an earlier one that is still loading gives up

/** Show the step at hand. */
async function show() {
  const call = ++latest;
  const { trace } = state;
  const { number, way } = state.events[state.event];
  const operation = trace.operations[number];
  await trace.load(trace.needed(operation, way));
  if (call !== latest) return;
  const main = at("step");
  const views = way === "forward" ? forwardView(operation) : backwardView(operation);
  main.replaceChildren(
    ...heading(operation, way),
    element("div", { class: "work" }, element("div", {}, views), arithmetic()),
    statistics(operation, way),
  );
  explain();
  at("position").value = state.event;
  at("position").setAttribute("aria-valuetext", eventText());
  at("status").textContent = `${eventText()}: ${operationWords(operation)[0]}, ${nameOf(operation)}`;
  for (const one of ["forward", "backward"]) at(one).setAttribute("aria-pressed", String(one === way));
  at("backward").disabled = !trace.back.includes(number);
  at("previous").disabled = at("first").disabled = state.event === 0;
  at("next").disabled = at("last").disabled = state.event === state.events.length - 1;
  state.map.show(number);
  marked();
  main.dataset.event = state.event;
}

function eventText() {
  const { way } = state.events[state.event];
  return word("event", { event: state.event + 1, total: state.events.length, way: word(way) });
}

/** 3 × 3 for a kernel or a stride; of padding one number where all sides have the same, else 0+1 × 0+1. */
function optionText(key, value) {
  if (["kernel", "stride", "dilation"].includes(key) && Array.isArray(value)) return timesSigns(value);
  if (key !== "padding" || !Array.isArray(value)) return JSON.stringify(value);
  const sides = value.flat();
  const same = sides.every((side) => side === sides[0]);
  return same ? String(sides[0]) : value.map((ends) => ends.join("+")).join(" × ");
}

function heading(operation, way) {
  const [name, does, back] = operationWords(operation);
  const block = state.trace.blocks[state.map.blockOf.get(operation.number)];
  const formula = state.trace.said[operation.said][way];
  const seconds = way === "forward" ? operation.seconds : operation.backwardSeconds;
  const options = Object.entries(operation.options)
    .map(([key, value]) => `${key} ${optionText(key, value)}`)
    .join(", ");
  const facts = [
    formula && [word("formula"), element("code", { class: "formula" }, formula)],
    [
      word("shapes"),
      [
        ...[...operation.inputs, ...operation.reads].map(
          ({ label, shape }) => `${label} ${timesSigns(shape || [])}`,
        ),
        `y ${timesSigns(operation.shape)}`,
      ].join("   "),
    ],
    options && [word("options"), options],
    Number(seconds) > 0 && [word("time"), word("milliseconds", { time: format(1000 * seconds, 3) })],
  ].filter(Boolean);
  return [
    element(
      "p",
      { class: "where" },
      element("span", { id: "event" }, eventText()),
      block && block.name ? ` · ${word("within", { block: block.name })}` : "",
    ),
    element(
      "h2",
      { class: way },
      name,
      " ",
      element("code", { id: "path" }, operation.path || (isInput(operation) ? "" : word("outside"))),
      " ",
      element("code", { class: "op" }, operation.op),
    ),
    ...(state.trace.noise && way === "backward" ? [element("p", { class: "noise" }, word("noise"))] : []),
    element("p", { class: "does" }, way === "forward" ? does : back),
    element(
      "dl",
      { class: "facts" },
      facts.map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", {}, value))),
    ),
  ];
}

/** The table of sizes: of what goes in and comes out, in the direction of now. */
function statistics(operation, way) {
  const columns = ["mean", "std", "zeros", "min", "max", "norm"];
  const rows = operation.inputs.map((input, place) => {
    const size = input.number === null ? input.size : state.trace.operations[input.number].size;
    return way === "forward"
      ? [input.label, origin(input), input.shape, size]
      : [
          `d${input.label}`,
          origin(input),
          input.shape,
          operation.outgoing[place] && operation.outgoing[place].size,
        ];
  });
  const own =
    way === "forward"
      ? ["y", "", operation.shape, operation.size]
      : ["dy", "", operation.shape, operation.incoming];
  const reads = operation.reads.map(({ label, shape, size }) => [label, word("constant"), shape, size]);
  const body = (way === "forward" ? [...rows, ...reads, own] : [own, ...rows])
    .filter((row) => row[3])
    .map(([label, note, shape, size]) =>
      element(
        "tr",
        { "data-of": label },
        element("th", { scope: "row" }, label, note ? element("small", {}, ` ${note}`) : ""),
        element("td", {}, timesSigns(shape || [])),
        columns.map((name) =>
          element(
            "td",
            { "data-name": name },
            name === "zeros" ? percent(size.zeros) : format(size[name], 5),
          ),
        ),
      ),
    );
  return element(
    "details",
    { class: "statistics", open: true },
    element("summary", {}, word("statistics")),
    element(
      "div",
      { class: "wide", tabindex: 0, role: "region", "aria-label": word("statistics") },
      element(
        "table",
        {},
        element(
          "thead",
          {},
          element(
            "tr",
            {},
            ["what", "shape", ...columns].map((name) => element("th", { scope: "col" }, word(name))),
          ),
        ),
        element("tbody", {}, body),
      ),
    ),
  );
}

/** Where an input came from, in words. */
function origin(input) {
  if (input.number !== null) return nameOf(state.trace.operations[input.number]);
  return input.kind === "parameter" ? input.name || "" : word("constant");
}

// ------------------------------------------------------------------------------------------ language, theme

/** Write all labels anew, in the language of now. */
function labelled() {
  document.documentElement.lang = language ? "zh" : "en";
  for (const one of document.querySelectorAll("[data-word]")) one.textContent = word(one.dataset.word);
  for (const one of document.querySelectorAll("[data-label]")) {
    one.setAttribute("aria-label", word(one.dataset.label));
    one.title = word(one.dataset.label);
  }
  at("language").textContent = language ? "English" : "中文";
  at("language").lang = language ? "en" : "zh";
  at("theme").textContent = word(THEMES[state.theme]);
  at("search").placeholder = word("search");
  at("search").setAttribute("aria-label", word("search"));
  at("found").setAttribute("aria-label", word("search"));
  at("position").setAttribute("aria-label", word("position"));
  at("controls").setAttribute("aria-label", word("controls"));
  at("ways").setAttribute("aria-label", word("direction"));
  at("keylist").replaceChildren(
    ...KEYS.map(([keys, ...texts]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, element("kbd", {}, keys)),
        element("td", {}, texts[language]),
      ),
    ),
  );
  about();
  plot();
  play(Boolean(state.playing));
}

/** The line under the title: the guess, the label, the loss. */
function about() {
  const { trace } = state;
  const parts = [];
  if (trace.guess !== null) {
    parts.push(
      word("guess", { label: className(trace, trace.guess.label), share: percent(trace.guess.probability) }),
    );
  }
  const label = trace.label === null ? "" : className(trace, trace.label);
  if (label && !trace.guessed && !trace.chosen) parts.push(word("truth", { label }));
  const lossWord = trace.guessed ? "lossOfThis" : trace.chosen ? "lossAsIf" : "lossIs";
  parts.push(word(lossWord, { label, loss: format(trace.loss, 5) }));
  if (trace.training !== null) parts.push(word(trace.training ? "training" : "inference"));
  for (const said of trace.changes) parts.push(word("changed", { change: said[language] }));
  at("about").textContent = parts.join(" · ");
  const notes = [
    trace.guessed ? word("lossOfGuess") : "",
    trace.chosen ? word("lossOfChosen", { label }) : "",
    trace.noise ? word("noise") : "",
    word("channelsKept", { count: trace.channels }),
    word("colours"),
  ].filter(Boolean);
  at("notes").replaceChildren(...notes.map((text) => element("p", {}, text)));
}

function speak() {
  language = 1 - language;
  state.place = null;
  labelled();
  show();
}

function dress() {
  state.theme = (state.theme + 1) % THEMES.length;
  const name = ["", "light", "dark"][state.theme];
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  labelled();
  show();
}

// --------------------------------------------------------------------------------------------------- keys

/** The panel whose large picture is selected, or else the last one that explains its numbers. */
function activePanel() {
  const within = document.activeElement && document.activeElement.closest(".panel");
  const panels = [...document.querySelectorAll(".panel")].filter((one) => one.shift);
  return within && within.shift ? within : panels.reverse().find((one) => one.querySelector(".points"));
}

function shiftChannel(by) {
  const chosen = activePanel();
  if (!chosen) return;
  const hadFocus = document.activeElement && document.activeElement.tagName === "CANVAS";
  chosen.shift(by);
  if (hadFocus) chosen.querySelector("canvas").focus();
}

const SHORTCUTS = {
  ArrowRight: () => goTo(state.event + 1),
  ArrowLeft: () => goTo(state.event - 1),
  Home: () => goTo(0),
  End: () => goTo(state.events.length - 1),
  " ": () => play(!state.playing),
  b: () => turn(state.events[state.event].way === "forward" ? "backward" : "forward"),
  "/": () => at("search").focus(),
  "[": () => shiftChannel(-1),
  "]": () => shiftChannel(1),
  m: () => {
    const chosen = activePanel();
    if (chosen) chosen.querySelector(".large canvas").focus();
  },
  l: speak,
  t: dress,
  "?": () => at("keys").showModal(),
};

function pressed(event) {
  const target = event.target;
  const typing = target === at("search") || at("keys").open;
  const presses = event.key === " " && target.closest("button, summary, [role=button]");
  if (typing || presses || event.ctrlKey || event.metaKey || event.altKey || !SHORTCUTS[event.key]) return;
  event.preventDefault();
  SHORTCUTS[event.key]();
}

// -------------------------------------------------------------------------------------------------- start

function listen() {
  document.addEventListener("keydown", pressed);
  const clicks = {
    first: () => goTo(0),
    previous: () => goTo(state.event - 1),
    next: () => goTo(state.event + 1),
    last: () => goTo(state.events.length - 1),
    play: () => play(!state.playing),
    forward: () => turn("forward"),
    backward: () => turn("backward"),
    language: speak,
    theme: dress,
    help: () => at("keys").showModal(),
    close: () => at("keys").close(),
  };
  for (const [id, act] of Object.entries(clicks)) at(id).addEventListener("click", act);
  at("position").addEventListener("input", () => goTo(Number(at("position").value)));
  at("search").addEventListener("input", showFound);
  at("search").addEventListener("keydown", searchKey);
  at("search").addEventListener("blur", () => {
    at("found").hidden = true;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show());
  if (matchMedia("(max-width: 760px)").matches) at("mapbox").open = false;
}

async function start() {
  const trace = await Trace.read();
  trace.operations.forEach((operation, number) => {
    operation.number = number;
  });
  state.trace = trace;
  state.events = allEvents(trace);
  state.map = new NetworkMap(trace, at("map"), (number) => goToOperation(number));
  at("name").textContent = trace.name;
  if (trace.picture) {
    at("thumbnail").replaceWith(Object.assign(photograph(trace.picture), { id: "thumbnail" }));
  }
  at("position").max = state.events.length - 1;
  labelled();
  listen();
  await show();
}

start().catch((error) => {
  at("step").textContent = word("failed", { message: error.message });
  throw error;
});
