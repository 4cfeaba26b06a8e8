import { find, make, refill } from "./dom.js";
import { say } from "./speech.js";

let shown = null; // the list that the strip was made of: it is not made again, nor its pictures fetched

/** The strip of the pictures that `minires play RUN --data PATH` found; `choose(index)` when one is picked. */
export function showStrip(state, choose) {
  const { about, list } = state;
  find("pictures").hidden = !list;
  if (!list) return;
  const { from, count, page, pictures } = list;
  const values = { source: about.pictures.source, first: from + 1, last: from + pictures.length, count };
  find("pictures-title").textContent = say("picturesTitle", values);
  find("earlier").disabled = from === 0;
  find("later").disabled = from + pictures.length >= count;
  find("turn").hidden = count <= page;
  find("number").max = count;
  if (shown !== list) {
    find("number").value = from + 1;
    refill("strip", pictures.map((picture) => one(picture, choose)));
    shown = list;
  }
  [...find("strip").querySelectorAll("button")].forEach((button, i) => {
    button.setAttribute("aria-pressed", pictures[i].index === state.chosen);
    name(button, pictures[i]);
  });
}

function one(picture, choose) {
  const image = make("img", { src: `picture?index=${picture.index}`, loading: "lazy", width: 128, height: 128, alt: "" });
  const under = make("span", { class: "name" }, picture.class ?? picture.name.split("/").pop());
  const button = make("button", { type: "button", title: picture.name }, image, under);
  image.addEventListener("error", () => {
    button.classList.add("broken");
    name(button, picture);
  });
  button.addEventListener("click", () => choose(picture.index));
  return make("li", {}, button);
}

/** What a picture is called for who does not see it, in the language of the page. */
function name(button, picture) {
  const image = button.querySelector("img");
  image.alt = say(button.classList.contains("broken") ? "pictureBroken" : "pictureAlt", { name: picture.name });
}
