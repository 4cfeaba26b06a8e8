import { find, make, refill } from "./dom.js";
import { say } from "./speech.js";
import { showStrip } from "./strip.js";

const FIRST = 10; // classes that are shown before "show all"

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

/** Show what the state says. `choose.label(k)`, `.stage(i)`, `.picture(i)` are called when a person picks one. */
export function show(state, choose) {
  if (state.about) {
    const { model, dataset, classes, changes } = state.about;
    const { lang } = document.documentElement;
    const changed = changes.map((one) => say("changed", { change: one[lang] }));
    find("model").textContent = [say("about", { model, dataset, count: classes.length }), ...changed].join(" · ");
  }
  find("canvas").setAttribute("aria-label", say("canvas"));
  showStrip(state, choose.picture);
  showProblem(state.problem);
  find("answer").hidden = !state.working && !state.answer;
  for (const id of ["maps", "shares"]) find(id).hidden = !state.answer;
  document.body.classList.toggle("working", state.working);
  if (state.working) find("guess").textContent = say("working");
  if (!state.answer) return;
  showGuess(state, choose);
  showMaps(state, choose);
  showShares(state);
}

function showProblem(problem) {
  find("problem").hidden = !problem;
  find("problem").textContent = problem ? say(problem.key, problem.values) : "";
}

function showGuess(state, choose) {
  const { answer, about } = state;
  const best = answer.probabilities.indexOf(Math.max(...answer.probabilities));
  if (!state.working) {
    const values = { label: about.classes[best], percent: percent(answer.probabilities[best]) };
    find("guess").textContent = say("guess", values);
  }
  find("truth").hidden = !answer.class;
  if (answer.class) {
    const key = answer.class === about.classes[best] ? "truthSame" : "truthOther";
    find("truth").textContent = say(key, { label: answer.class });
  }
  find("seen").src = answer.seen;
  find("seen").alt = find("seen-caption").textContent = say("seen", { side: about.side });
  find("trace").href = `trace?picture=${answer.picture}`;
  showBars(state, choose);
}

function showBars(state, choose) {
  const { answer, about } = state;
  const order = [...about.classes.keys()].sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  const shown = state.all ? order : order.slice(0, FIRST);
  refill("bars", shown.map((k) => {
    const probability = answer.probabilities[k];
    const bar = make("span", { class: "bar" });
    bar.style.setProperty("--share", probability);
    const button = make(
      "button", { type: "button", "aria-pressed": k === state.maps.label, "data-label": k },
      make("span", { class: "name" }, about.classes[k]), bar, make("span", { class: "figure" }, percent(probability)),
    );
    button.addEventListener("click", () => choose.label(k));
    return make("li", {}, button);
  }));
  find("more").hidden = order.length <= FIRST;
  find("more").textContent = say(state.all ? "fewer" : "more", { count: state.all ? FIRST : order.length });
}

function showMaps(state, choose) {
  const { maps, answer, about } = state;
  find("maps-title").textContent = say("mapsTitle", { label: about.classes[maps.label] });
  refill("stages", maps.stages.map((stage, i) => {
    const chosen = i === state.stage;
    const button = make(
      "button", { type: "button", role: "radio", "aria-checked": chosen, tabindex: chosen ? 0 : -1 },
      make("img", { src: stage.overlay, alt: "" }), make("span", {}, stage.name),
      make("span", { class: "figure" }, stage.size.join(" × ")),
    );
    button.addEventListener("click", () => choose.stage(i));
    return button;
  }));
  const stage = maps.stages[state.stage];
  const [high, wide] = stage.size;
  find("map").src = find("lay").checked ? stage.overlay : answer.seen;
  find("map").alt = say("map", { name: stage.name });
  find("map-caption").textContent = say(stage.positive ? "mapCaption" : "nothing", { name: stage.name, high, wide });
}

function showShares(state) {
  const { maps, about } = state;
  find("shares-title").textContent = say("sharesTitle", {
    label: about.classes[maps.label], score: maps.score.toFixed(3),
  });
  const rows = [
    [say("picture"), maps.picture_share],
    ...maps.stages.map((stage) => [stage.name, stage.share]),
    [say("rest"), maps.rest_share],
  ];
  const largest = Math.max(...rows.map(([, share]) => Math.abs(share)), 1e-9);
  refill("sums", rows.map(([name, share]) => {
    const bar = make("span", { class: share < 0 ? "share below" : "share" });
    bar.style.setProperty("--share", Math.abs(share) / largest);
    return make(
      "tr", {}, make("th", { scope: "row" }, name), make("td", { class: "axis" }, bar),
      make("td", { class: "figure" }, signed(share)),
    );
  }));
  find("sums").append(make(
    "tr", { class: "total" }, make("th", { scope: "row" }, say("total")), make("td"),
    make("td", { class: "figure" }, signed(maps.score)),
  ));
}
