import { make } from "./dom.js";

const HIGH = 210;
const EDGE = { left: 52, right: 12, top: 8, bottom: 24 };

function shape(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Round numbers from `least` to `most`, about `count` of them. */
function ticks(least, most, count) {
  const rough = (most - least) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(least / step - 1e-9) * step; at <= most + step * 1e-9; at += step) found.push(at);
  return found;
}

/** Powers of ten, some of them where they are many; where they are few, numbers between them, too. */
function powers(least, most) {
  const [from, to] = [Math.floor(Math.log10(least)), Math.ceil(Math.log10(most))];
  const step = Math.max(1, Math.ceil((to - from) / 5));
  const found = [];
  for (let power = from; power <= to; power += step) found.push(10 ** power);
  const between = (marks) => marks.filter((one) => one >= least && one <= most).length > 1;
  const more = found.flatMap((one) => [one, 2 * one, 5 * one]);
  return [found, more].find(between) ?? ticks(least, most, 4);
}

/**
 * Draw lines into `host`. A series is {name, colour, points: [[x, y], ...], under}; what is `under` is a thin
 * line. Options: `format` of a value, `tick` of one at the axis, `log` axis or not, `most` the largest value of the axis, `zero` begins it
 * at 0, `where` says an x in words, `none` is said where there is nothing to draw, `last` the end of the x axis.
 */
export function lines(host, series, options) {
  const known = series.map((one) => ({
    ...one, points: one.points.filter(([, y]) => y !== null && (!options.log || y > 0)),
  })).filter((one) => one.points.length);
  host.onmousemove = host.onmouseleave = null;
  if (!known.length) {
    host.replaceChildren(make("p", { class: "hint" }, options.none));
    return;
  }
  const wide = Math.max(240, host.clientWidth);
  const all = known.flatMap((one) => one.points);
  const xs = all.map(([x]) => x);
  const ys = all.map(([, y]) => y);
  const [x0, x1] = [Math.min(0, ...xs), Math.max(options.last ?? 1, ...xs)];
  const scale = options.log ? Math.log10 : (y) => y;
  let [least, most] = [Math.min(...ys), Math.max(...ys)];
  if (options.zero) least = Math.min(0, least);
  if (options.most !== undefined) most = Math.max(options.most, most);
  if (least === most) [least, most] = options.log ? [least / 2, most * 2] : [least - 0.5 * (Math.abs(least) || 1), most + 0.5 * (Math.abs(most) || 1)];
  const room = options.most === undefined && !options.log ? 0.05 * (most - least) : 0;
  const [bottom, top] = [scale(least) - (options.zero ? 0 : room), scale(most) + room];
  const px = (x) => EDGE.left + ((x - x0) / (x1 - x0)) * (wide - EDGE.left - EDGE.right);
  const py = (y) => HIGH - EDGE.bottom - ((scale(y) - bottom) / (top - bottom)) * (HIGH - EDGE.top - EDGE.bottom);

  const svg = shape("svg", { viewBox: `0 0 ${wide} ${HIGH}`, height: HIGH, role: "img", "aria-label": options.label });
  const levels = options.log ? powers(least, most) : ticks(bottom, top, 4);
  for (const level of levels.filter((one) => scale(one) >= bottom - 1e-9 && scale(one) <= top + 1e-9)) {
    svg.append(
      shape("line", { class: "grid", x1: EDGE.left, x2: wide - EDGE.right, y1: py(level), y2: py(level) }),
      shape("text", { x: EDGE.left - 6, y: py(level) + 4, "text-anchor": "end" }, (options.tick ?? options.format)(level)),
    );
  }
  for (const x of ticks(x0, x1, Math.min(8, Math.floor(wide / 70))).filter((one) => Number.isInteger(one))) {
    svg.append(shape("text", { x: px(x), y: HIGH - 6, "text-anchor": "middle" }, String(x)));
  }
  for (const one of known) {
    const path = one.points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    svg.append(shape("path", { class: one.under ? "line under" : "line", d: path, stroke: one.colour }));
    if (!one.under && one.points.length <= 30) {
      for (const [x, y] of one.points) svg.append(shape("circle", { cx: px(x), cy: py(y), r: 2.6, fill: one.colour }));
    }
  }
  const at = shape("line", { class: "at", y1: EDGE.top, y2: HIGH - EDGE.bottom, visibility: "hidden" });
  svg.append(at);
  const legend = make("div", { class: "legend" });

  /** Say the values at x, or the last ones. */
  function read(x) {
    const parts = known.map((one) => {
      const near = one.points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
      const part = make("span", {}, `${one.name} ${options.format(near[1])}`);
      part.style.setProperty("--colour", one.colour);
      return part;
    });
    const nearest = xs.reduce((best, one) => (Math.abs(one - x) < Math.abs(best - x) ? one : best));
    legend.replaceChildren(make("span", { class: "epoch" }, options.where(nearest)), ...parts);
    return nearest;
  }
  host.onmousemove = (event) => {
    const box = svg.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * wide - EDGE.left) / (wide - EDGE.left - EDGE.right);
    const nearest = read(x0 + share * (x1 - x0));
    at.setAttribute("x1", px(nearest));
    at.setAttribute("x2", px(nearest));
    at.setAttribute("visibility", "visible");
  };
  host.onmouseleave = () => {
    read(Math.max(...xs));
    at.setAttribute("visibility", "hidden");
  };
  read(Math.max(...xs));
  host.replaceChildren(svg, legend);
}
