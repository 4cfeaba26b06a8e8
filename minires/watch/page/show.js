import { lines } from "./charts.js";
import { find, make, refill } from "./dom.js";
import { heat, scaleOf, squares, strip } from "./heat.js";
import { say } from "./speech.js";

const OF_LAYERS = ["update", "gradient", "std", "mean", "weight"];
const OF_BLOCKS = ["branch", "shortcut", "share"];
const MOST = 24; // classes that a table of numbers is shown for
const TRAIN = "var(--train)";
const VAL = "var(--val)";
const FAINT = "var(--faint)";

let drawn = { run: null, what: "" }; // what was drawn last: a clock that ticks draws nothing anew

const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** A number with three digits that count. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(Number.isInteger(Math.log10(size)) ? 0 : 1) : String(Number(value.toPrecision(3)));
}

/** Show what the state says. `choose.kind(name)`, `.layer(number)` are called when a person picks one. */
export function show(state, choose) {
  find("problem").hidden = !state.gone;
  find("problem").textContent = state.gone ? say("gone") : "";
  if (!state.run) return;
  showLeft(state);
  const { run, kind, layer, look, gone } = state;
  const what = JSON.stringify([kind, layer, look, gone, document.documentElement.lang, innerWidth, document.documentElement.dataset.theme]);
  if (drawn.run === run && drawn.what === what) return;
  drawn = { run, what };
  showPlace(state);
  showCurves(run);
  showLayers(state, choose);
  showConfusion(state);
  showSamples(run);
  showReport(run);
}

function time(seconds) {
  if (seconds < 90) return say("seconds", { count: Math.max(1, Math.round(seconds)) });
  if (seconds < 5400) return say("minutes", { count: Math.round(seconds / 60) });
  if (seconds < 172800) return say("hours", { count: (seconds / 3600).toFixed(1) });
  return say("days", { count: (seconds / 86400).toFixed(1) });
}

function showLeft({ run, left }) {
  const known = run.state === "running" && left !== null && left !== undefined;
  find("left").textContent = known ? say("left", { time: time(left) }) : "";
}

function showPlace({ run }) {
  const { config, progress, metrics, summary } = run;
  find("about").textContent = say("about", { run: run.run, model: config.model ?? "?", data: config.data ?? "?", recipe: config.recipe ?? "?" });
  document.title = `${run.run} – minires watch`;
  find("place").dataset.state = run.state;
  const diverged = run.state === "stopped" && summary?.diverged;
  find("state").textContent = say(diverged ? "diverged" : run.state, { who: run.who ?? "" });
  const last = metrics[metrics.length - 1];
  const steps = progress ? progress.epochs * progress.batches : 0;
  const done = progress ? progress.step / steps : last && config.epochs ? last.epoch / config.epochs : run.state === "finished" ? 1 : 0;
  find("bar").value = done;
  const best = metrics.filter((row) => row.val_accuracy !== null).reduce((one, row) => (one && one.val_accuracy >= row.val_accuracy ? one : row), null);
  const figures = [
    ["epoch", progress ? `${Math.min(progress.epoch + 1, progress.epochs)} / ${progress.epochs}` : last ? `${last.epoch} / ${config.epochs ?? "?"}` : null],
    ["step", progress ? `${progress.step.toLocaleString("en")} / ${steps.toLocaleString("en")}` : null],
    ["lossNow", (progress?.loss ?? last?.train_loss ?? null) === null ? null : short(progress?.loss ?? last.train_loss)],
    ["best", best && say("bestAt", { percent: percent(best.val_accuracy), epoch: best.epoch })],
    ["speed", progress?.pictures_per_second ? Math.round(progress.pictures_per_second).toLocaleString("en") : null],
    ["took", progress ? time(progress.seconds) : summary?.seconds ? time(summary.seconds) : null],
    ["test", (summary?.test_accuracy ?? null) === null ? null : percent(summary.test_accuracy)],
  ].filter(([, value]) => value !== null && value !== undefined);
  refill("figures", figures.map(([key, value]) => make("div", {}, make("dt", {}, say(key)), make("dd", {}, value))));
  const doubts = [...run.broken.map((text) => say("broken", { text })), ...(summary?.warnings ?? [])];
  find("doubts").hidden = !doubts.length;
  refill("doubts", doubts.map((text) => make("li", {}, text)));
}

function showCurves({ metrics, progress, config }) {
  const batches = progress?.batches ?? (metrics.length ? metrics[0].step / metrics[0].epoch : 1);
  const steps = (at) => (progress?.points ?? []).map((point) => [point[0] / batches, point[at]]);
  const epochs = (name) => metrics.map((row) => [row.epoch, row[name]]);
  const common = {
    last: progress?.epochs ?? config.epochs, none: say("none"),
    where: (x) => say("atEpoch", { epoch: Number(x.toFixed(2)) }),
  };
  const both = (name, at) => [
    { name: say("steps"), colour: FAINT, points: steps(at), under: true },
    { name: say("training"), colour: TRAIN, points: epochs(`train_${name}`) },
    { name: say("validation"), colour: VAL, points: epochs(`val_${name}`) },
  ];
  const losses = both("loss", 1);
  const sizes = losses.flatMap((one) => one.points.map(([, y]) => y)).filter((y) => y > 0);
  const log = sizes.length > 0 && Math.max(...sizes) > 100 * Math.max(1, Math.min(...sizes));
  lines(find("loss"), losses, { ...common, log, zero: !log, format: short, label: say("loss") });
  lines(find("accuracy"), both("accuracy", 2), { ...common, zero: true, most: 1, format: percent, tick: (share) => `${Math.round(100 * share)}%`, label: say("accuracy") });
  const rates = progress?.points.length ? steps(3) : epochs("lr");
  lines(find("lr"), [{ name: say("lr"), colour: TRAIN, points: rates, under: rates.length > 60 }], { ...common, zero: true, format: short, label: say("lr") });
  const norms = epochs("gradient_norm");
  lines(find("norm"), [{ name: say("normShort"), colour: TRAIN, points: norms }], { ...common, zero: true, format: short, label: say("norm") });
}

function showLayers({ run, kind, layer }, choose) {
  const { inside } = run;
  const looks = inside?.epochs ?? [];
  find("layers-shown").hidden = !looks.length;
  find("layers-none").hidden = looks.length > 0;
  find("layers-none").textContent = say(inside ? "notYet" : run.config.watch === false ? "notWatched" : run.progress ? "notYet" : "older");
  if (!looks.length) return;
  const kinds = [...OF_LAYERS, ...(inside.responses?.length ? ["response"] : []), ...(inside.blocks?.length ? OF_BLOCKS : [])];
  if (!kinds.includes(kind)) kind = kinds[0]; // an older file has no others
  refill("kinds", kinds.map((name) => {
    const chosen = name === kind;
    const button = make("button", { type: "button", role: "radio", "aria-checked": chosen }, say(`kind_${name}`));
    button.addEventListener("click", () => choose.kind(name));
    return button;
  }));
  find("kind-hint").textContent = say(`hint_${kind}`);
  const things = kind === "response" ? inside.responses : OF_BLOCKS.includes(kind) ? inside.blocks : inside.layers;
  const names = things.map((one) => one.path);
  const rows = names.map((_, i) => looks.map((one) => figure(one, kind, i)));
  const signed = kind === "mean";
  const scale = scaleOf(rows.flat(), signed);
  find("layer").hidden = find("layer-title").hidden = !scale;
  if (!scale) {
    find("heat").replaceChildren(make("p", { class: "hint" }, say("none")));
    find("scale").replaceChildren();
    return;
  }
  const value = make("output");
  const ends = [say("atEpoch", { epoch: looks[0].epoch }), say("atEpoch", { epoch: looks[looks.length - 1].epoch })];
  const at = Math.min(layer, names.length - 1);
  heat(find("heat"), names, rows, {
    scale, chosen: at, choose: choose.layer, ends, label: say("heatLabel", { kind: say(`kind_${kind}`) }),
    point: (row, column) => {
      const known = row !== null && rows[row][column] !== null;
      value.textContent = row === null ? "" : `${names[row]}, ${say("atEpoch", { epoch: looks[column].epoch })}: ${known ? short(rows[row][column]) : "–"}`;
    },
  });
  find("scale").replaceChildren(make("span", {}, short(scale.least)), strip(signed), make("span", {}, short(scale.most)), value);
  find("layer-title").textContent = `${names[at]} (${things[at].kind}): ${say(`kind_${kind}`)}`;
  const median = looks.map((one, column) => {
    const known = rows.map((row) => row[column]).filter((number) => number !== null).sort((a, b) => a - b);
    return [one.epoch, known.length ? known[Math.floor(known.length / 2)] : null];
  });
  const own = looks.map((one, column) => [one.epoch, rows[at][column]]);
  lines(find("layer"), [
    { name: say("median"), colour: FAINT, points: median, under: true },
    { name: names[at], colour: TRAIN, points: own },
  ], {
    log: !signed, format: short, last: run.progress?.epochs ?? run.config.epochs, none: say("none"),
    where: (x) => say("atEpoch", { epoch: x }), label: find("layer-title").textContent,
  });
}

/** A figure of a layer or block in a look; null where it was not measured. */
function figure(look, kind, i) {
  if (kind === "share") {
    const [branch, shortcut] = [look.branch?.[i], look.shortcut?.[i]];
    return (branch ?? null) !== null && shortcut ? branch / shortcut : null;
  }
  return (OF_LAYERS.includes(kind) ? look.layers : look)[kind]?.[i] ?? null;
}

function showConfusion({ run, look }) {
  const looks = (run.inside?.epochs ?? []).filter((one) => one.confusion);
  find("confusion-shown").hidden = !looks.length;
  find("confusion-none").hidden = looks.length > 0;
  find("confusion-none").textContent = say(run.inside?.epochs.length ? "noValidation" : run.inside || run.progress ? "notYet" : "older");
  if (!looks.length) return;
  const slider = find("epoch");
  slider.max = looks.length - 1;
  const at = Math.min(look ?? looks.length - 1, looks.length - 1);
  slider.value = at;
  const { epoch, confusion } = looks[at];
  const classes = run.inside.classes;
  const counts = classes.map(() => classes.map(() => 0));
  for (const [truth, guess, count] of confusion.cells) if (counts[truth]?.[guess] !== undefined) counts[truth][guess] = count;
  const total = counts.flat().reduce((a, b) => a + b, 0) + confusion.left_out;
  const right = counts.reduce((sum, row, i) => sum + row[i], 0);
  find("confusion-epoch").textContent = say("confusionAt", { epoch, right, total, percent: percent(total ? right / total : 0) });
  slider.setAttribute("aria-valuetext", say("atEpoch", { epoch }));
  const shares = counts.map((row) => row.map((count) => count / Math.max(1, row.reduce((a, b) => a + b, 0))));
  find("table").replaceChildren(classes.length > MOST ? squares(shares, say("confusion")) : numbers(classes, counts, shares));
  find("confusion-hint").textContent = say(confusion.left_out ? "confusionSome" : "confusionHint", { count: confusion.left_out });
}

function numbers(classes, counts, shares) {
  const head = make("tr", {}, make("td", { class: "corner" }), ...classes.map((name) => make("th", { scope: "col", title: name }, name)));
  const body = counts.map((row, i) => make("tr", {}, make("th", { scope: "row", title: classes[i] }, classes[i]), ...row.map((count, j) => {
    const share = shares[i][j];
    const cell = make("td", { class: [i === j ? "" : "wrong", share > 0.55 ? "much" : ""].join(" ").trim(), title: `${classes[i]} → ${classes[j]}: ${count}` }, count || "");
    cell.style.setProperty("--share", share);
    return cell;
  })));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

function showSamples({ samples, run, config }) {
  find("samples-hint").textContent = say(samples ? "samplesHint" : config.watch === false ? "notWatched" : "noSamples", { run });
  find("sheet").hidden = !samples;
  if (!samples || find("sheet").dataset.labels === JSON.stringify(samples)) return;
  find("sheet").dataset.labels = JSON.stringify(samples);
  const { count, columns, labels } = samples;
  const rows = Math.ceil(count / columns);
  refill("sheet", Array.from({ length: count }, (_, i) => {
    const picture = make("div", { class: "picture", role: "img", "aria-label": labels[i] ?? "" });
    const share = (place, places) => (places > 1 ? (100 * place) / (places - 1) : 0);
    picture.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    picture.style.backgroundPosition = `${share(i % columns, columns)}% ${share(Math.floor(i / columns), rows)}%`;
    return make("li", {}, picture, make("div", { class: "name", title: labels[i] ?? "" }, labels[i] ?? ""));
  }));
}

function showReport({ progress }) {
  const said = find("said");
  const atEnd = said.scrollTop + said.clientHeight >= said.scrollHeight - 8;
  said.textContent = progress ? progress.said.join("\n") : say("noReport");
  if (atEnd) said.scrollTop = said.scrollHeight;
}
