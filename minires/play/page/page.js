import { camera } from "./camera.js";
import { find } from "./dom.js";
import { drawing } from "./draw.js";
import { show } from "./show.js";
import { changeLanguage, speak } from "./speech.js";
import { changeTheme } from "./theme.js";
import { WORDS } from "./words.js";

const LARGEST = 20e6; // bytes; the server refuses more

const state = {
  about: null, // what the model is
  list: null, // of some of the pictures that were found
  chosen: null, // the one that was asked about
  answer: null, // to the last picture
  maps: null, // of the class that is looked at
  stage: 0, // of which the map is shown large
  all: false, // all classes, or the first few
  working: false,
  problem: null, // {key, values} for say()
};
const choose = { label: chooseLabel, stage: chooseStage, picture: choosePicture };
let latest = 0; // the number of the last question: answers to older ones are not shown

function update(changes) {
  Object.assign(state, changes);
  show(state, choose);
}

/** What the server answers, as data. Throws {key, values} of what to tell. */
async function fetched(address, options) {
  let response;
  let content;
  try {
    response = await fetch(address, options);
    content = await response.json();
  } catch {
    throw { key: "gone" };
  }
  if (!response.ok) throw { key: "refused", values: content.error };
  return content;
}

/** Ask the server; what comes back is handed to `use`, unless something else was asked meanwhile. */
async function ask(address, options, use) {
  const number = ++latest;
  update({ working: true, problem: null });
  try {
    const content = await fetched(address, options);
    if (number === latest) update({ working: false, ...use(content) });
  } catch (problem) {
    if (!problem.key) throw problem;
    if (number === latest) update({ working: false, problem });
  }
}

function answered(answer, chosen) {
  const last = answer.maps.stages.length - 1;
  return { answer, chosen, maps: answer.maps, stage: last, problem: null };
}

function guess(picture) {
  if (picture.size > LARGEST) {
    latest += 1;
    update({ working: false, problem: { key: "large", values: { size: (picture.size / 1e6).toFixed(1) } } });
    return;
  }
  ask("guess", { method: "POST", body: picture }, (answer) => answered(answer, null));
}

function choosePicture(index) {
  update({ chosen: index });
  ask(`guess_at?index=${index}`, { method: "POST" }, (answer) => answered(answer, index));
}

/** Show the pictures from this one on, as far as there are any. */
async function turnTo(from) {
  const last = state.about.pictures.count - 1;
  try {
    update({ list: await fetched(`pictures?from=${Math.min(Math.max(from, 0), last)}`), problem: null });
  } catch (problem) {
    update({ problem });
  }
}

function turning() {
  const page = (step) => () => turnTo(state.list.from + step * state.list.page);
  find("earlier").addEventListener("click", page(-1));
  find("later").addEventListener("click", page(1));
  find("number").addEventListener("change", () => turnTo((Math.trunc(find("number").valueAsNumber) || 1) - 1));
}

function chooseLabel(label) {
  ask(`maps?picture=${state.answer.picture}&label=${label}`, {}, (maps) => ({ maps }));
}

function chooseStage(stage) {
  update({ stage });
}

// ------------------------------------------------------------------------------------ what a person does

function byFile() {
  const chosen = find("chosen");
  chosen.addEventListener("change", () => {
    if (chosen.files.length) guess(chosen.files[0]);
    chosen.value = ""; // so that the same file can be chosen again
  });
  const over = (on) => find("drop").classList.toggle("over", on);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && over(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    if (event.dataTransfer.files.length) guess(event.dataTransfer.files[0]);
  });
}

/** Arrow keys go from one of a group to the next; `select` gets its place. */
function byArrows(group, select) {
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const members = [...group.querySelectorAll("button")];
    const place = members.indexOf(event.target);
    if (!step || place < 0) return;
    event.preventDefault();
    const next = (place + step + members.length) % members.length;
    members[next].focus();
    select(next);
  });
}

function tabs(leave) {
  const list = document.querySelector("[role=tablist]");
  const members = [...list.children];
  function select(place) {
    leave();
    update({ problem: null });
    members.forEach((tab, i) => {
      tab.setAttribute("aria-selected", i === place);
      tab.tabIndex = i === place ? 0 : -1;
      find(tab.getAttribute("aria-controls")).hidden = i !== place;
    });
  }
  members.forEach((tab, i) => tab.addEventListener("click", () => select(i)));
  byArrows(list, select);
}

speak(WORDS);
byFile();
turning();
byArrows(find("strip"), () => {});
drawing(guess);
const { stop } = camera(guess, (key) => update({ problem: { key } }));
tabs(stop);
byArrows(find("stages"), chooseStage);
find("lay").addEventListener("change", () => update({}));
find("more").addEventListener("click", () => update({ all: !state.all }));
find("theme").addEventListener("click", changeTheme);
find("language").addEventListener("click", () => {
  changeLanguage();
  update({});
});
fetched("about").then((about) => {
  update({ about });
  if (about.pictures) turnTo(0);
}, (problem) => update({ problem }));
