import { find } from "./dom.js";
import { show } from "./show.js";
import { changeLanguage, speak } from "./speech.js";
import { changeTheme } from "./theme.js";
import { WORDS } from "./words.js";

const PAUSE = 2000; // milliseconds between two looks at the run

const state = {
  run: null, // what the server says of it
  left: null, // seconds that it may still take
  kind: "update", // the figure of the layers that is shown
  layer: 0, // the one that is shown as a line
  look: null, // the confusion table that is shown; null: the last
  gone: false, // whether the server answers no more
};
const choose = {
  kind: (kind) => update({ kind }),
  layer: (layer) => update({ layer }),
};

function update(changes) {
  Object.assign(state, changes);
  show(state, choose);
}

/** Ask how the run is now, again and again. */
async function look() {
  try {
    const response = await fetch(`now?known=${state.run?.version ?? "0"}`);
    const content = await response.json();
    if (!response.ok) throw new Error(content.error.message);
    if (state.run?.version !== content.version || state.gone) {
      const run = "state" in content ? content : state.run;
      update({ run, left: content.left, gone: false });
    } else {
      update({ left: content.left });
    }
  } catch {
    if (!state.gone) update({ gone: true, left: null });
  }
  setTimeout(look, PAUSE);
}

speak(WORDS);
find("theme").addEventListener("click", () => {
  changeTheme();
  update({});
});
find("language").addEventListener("click", () => {
  changeLanguage();
  update({});
});
find("epoch").addEventListener("input", () => {
  const last = Number(find("epoch").max);
  const look = Number(find("epoch").value);
  update({ look: look === last ? null : look }); // who is at the end stays there
});
let waits = 0;
addEventListener("resize", () => {
  clearTimeout(waits);
  waits = setTimeout(() => update({}), 100);
});
look();
