// Small helpers that every other module may use.

/** value, or the nearer of low and high if it is outside of them. */
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** The text of an error, or of anything else that was thrown. */
export const readable = error => String((error && error.message) || error);

/**
 * gamma itself, if it is a number from 0 to 1.
 * @param {number} gamma
 * @returns {number}
 * @throws {RangeError} for anything else, NaN and numbers in quotes included
 */
export function checkedGamma(gamma) {
  if (typeof gamma !== "number" || !(gamma >= 0 && gamma <= 1)) {
    throw new RangeError(`gamma=${gamma}; allowed: numbers from 0 to 1`);
  }
  return gamma;
}

const SVG = "http://www.w3.org/2000/svg"; // a name that browsers know, not an address that is fetched
const SVG_TAGS = new Set(["svg", "path", "line", "circle"]);

/**
 * A new element: h("button", {class: "x"}, child, "text").
 * @param {string} tag
 * @param {Object} attributes true sets an empty attribute; false, null and undefined set none
 * @param {...(Node|string|null)} children null is left out
 * @returns {Element}
 */
export function h(tag, attributes = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter(child => child !== null));
  return element;
}

/** Named timeouts of one owner, so that none outlives it. */
export class Timers {
  constructor() {
    this.running = new Map();
    this.freed = false;
  }

  /** Call f once after `milliseconds`; a running timeout of that name is replaced. */
  start(name, milliseconds, f) {
    this.stop(name);
    if (this.freed) return;
    this.running.set(name, setTimeout(() => {
      this.running.delete(name);
      f();
    }, milliseconds));
  }

  /** Is a timeout of that name running? */
  has(name) {
    return this.running.has(name);
  }

  stop(name) {
    clearTimeout(this.running.get(name));
    this.running.delete(name);
  }

  /** Stop all of them, and start no more. */
  free() {
    this.freed = true;
    for (const name of [...this.running.keys()]) this.stop(name);
  }
}
