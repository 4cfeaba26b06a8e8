/** The element with this id. */
export const find = (id) => document.getElementById(id);

/** An element with attributes and children; text is always put in as text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Replace the children, and leave the focus on the one that had it. */
export function refill(id, children) {
  const buttons = () => [...find(id).querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement);
  find(id).replaceChildren(...children);
  if (focused >= 0) buttons()[focused]?.focus();
}
