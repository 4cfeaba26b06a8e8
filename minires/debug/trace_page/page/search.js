// The search for a layer or an operation, by words of its path or its name.

/** The operations whose path or name has all words of a text in it. */
function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const named = state.trace.operations.map((one) => [
    one,
    `${nameOf(one)} ${operationWords(one)[0]} ${one.within.join(" ")}`.toLowerCase(),
  ]);
  return named.filter(([, name]) => words.every((each) => name.includes(each))).map(([one]) => one);
}

function showFound() {
  const text = at("search").value.trim();
  const found = text ? search(text).slice(0, 30) : [];
  const options = found.map((one, place) =>
    element(
      "li",
      {
        role: "option",
        id: `found${place}`,
        "data-number": one.number,
        "aria-selected": String(place === 0),
        pointerdown: (event) => {
          event.preventDefault();
          takeFound(one.number);
        },
      },
      nameOf(one),
      " ",
      element("small", {}, operationWords(one)[0]),
    ),
  );
  at("found").replaceChildren(
    ...(text && !found.length ? [element("li", { class: "soft" }, word("nothingFound"))] : options),
  );
  at("found").hidden = !text;
  at("search").setAttribute("aria-expanded", String(Boolean(text)));
  at("search").setAttribute("aria-activedescendant", found.length ? "found0" : "");
}

function takeFound(number) {
  at("search").value = "";
  showFound();
  at("step").focus();
  goToOperation(number);
}

function searchKey(event) {
  const options = [...at("found").querySelectorAll("[role=option]")];
  const chosen = options.findIndex((one) => one.getAttribute("aria-selected") === "true");
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape") {
    at("search").value = "";
    showFound();
    at("step").focus();
  }
  if (event.key === "Enter" && chosen >= 0) takeFound(Number(options[chosen].dataset.number));
  if (step && options.length) {
    const next = (chosen + step + options.length) % options.length;
    options.forEach((one, place) => one.setAttribute("aria-selected", String(place === next)));
    options[next].scrollIntoView({ block: "nearest" });
    at("search").setAttribute("aria-activedescendant", options[next].id);
    event.preventDefault();
  }
  event.stopPropagation();
}
