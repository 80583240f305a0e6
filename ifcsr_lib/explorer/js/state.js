// What the page knows and can take back: gamma of each image, the shown image, the view, the painted maps.

import {checkedGamma, clamp} from "./util.js";

const SAME_MOVE = 700; // milliseconds: gamma moves that follow each other faster are one step of undo
const STEPS = 100;

/**
 * A gamma map with nothing painted: two planes, cover and paint <= cover. gamma of a pixel is
 * ((255 - cover) gamma + paint) / 255.
 */
export function emptyMap(width, height) {
  return {cover: new Uint8Array(width * height), paint: new Uint8Array(width * height)};
}

/** A copy of a map; null stays null. */
export const copiedMap = map => map && {cover: map.cover.slice(), paint: map.paint.slice()};

/** The map of a decoded grey-alpha PNG: grey is cover, alpha is paint. */
export function mapFromPicture({width, height, channels, data}) {
  const map = emptyMap(width, height);
  for (let i = 0; i < width * height; i++) {
    map.cover[i] = data[channels * i];
    map.paint[i] = data[channels * i + 1];
  }
  return map;
}

/** The inverse of `mapFromPicture`: grey-alpha pixels, 2 values each. */
export function mapToPixels({cover, paint}) {
  const out = new Uint8Array(2 * cover.length);
  for (let i = 0; i < cover.length; i++) {
    out[2 * i] = cover[i];
    out[2 * i + 1] = paint[i];
  }
  return out;
}

/** A copy of the rectangle [x0, y0, x1, y1) of a map of that width. */
export function croppedMap(map, width, [x0, y0, x1, y1]) {
  const w = x1 - x0;
  const part = plane => {
    const out = new Uint8Array(w * (y1 - y0));
    for (let y = y0; y < y1; y++) out.set(plane.subarray(y * width + x0, y * width + x1), (y - y0) * w);
    return out;
  };
  return {cover: part(map.cover), paint: part(map.paint)};
}

/** Put a rectangle back into a map: the inverse of `croppedMap`. */
export function pasteMap(map, width, part, [x0, y0, x1, y1]) {
  const w = x1 - x0;
  for (const name of ["cover", "paint"]) {
    for (let y = y0; y < y1; y++) {
      map[name].set(part[name].subarray((y - y0) * w, (y - y0 + 1) * w), y * width + x0);
    }
  }
}

/**
 * The state, with one list of listeners per event:
 * "gamma" when a gamma moved here, "view" when the view did, "stroke" while a map is painted, and "map" with
 * (own: boolean) when a map has changed, own if it changed here.
 */
export class State {
  /**
   * @param {{gammas: number[], same_gamma: boolean, index: number, view: number[]}} values as Python has them
   * @param {Object[]} images of the spec: width, height
   * @param {function(): number} clock milliseconds
   */
  constructor(values, images, clock = Date.now) {
    this.images = images;
    this.clock = clock;
    this.listeners = {gamma: [], view: [], stroke: [], map: []};
    this.maps = new Map(); // image: {cover, paint}
    this.past = [];
    this.future = [];
    this.assign(values);
  }

  on(event, f) {
    this.listeners[event].push(f);
  }

  emit(event, ...details) {
    for (const f of this.listeners[event]) f(...details);
  }

  get image() {
    return this.images[this.index];
  }

  get gamma() {
    return this.gammas[this.index];
  }

  /** The map of the shown image, or null. */
  get map() {
    return this.maps.get(this.index) || null;
  }

  /** Take what the other side (Python, another view of the same widget) has, and tell nobody. */
  assign({gammas, same_gamma, index, view}) {
    this.same = same_gamma;
    this.index = index;
    this.gammas = [...gammas];
    this.view = {x: view[0], y: view[1], zoom: view[2]};
  }

  /** The traits as Python has them. */
  values() {
    const {x, y, zoom} = this.view;
    return {
      gamma: this.gamma, gammas: [...this.gammas], same_gamma: this.same, index: this.index,
      view: [x, y, zoom],
    };
  }

  /** Move gamma of the shown image, or of all. Throws a RangeError unless it is a number from 0 to 1. */
  setGamma(gamma) {
    checkedGamma(gamma);
    this.rememberGamma(gamma);
    this.gammas = this.gammas.map((old, i) => this.same || i === this.index ? gamma : old);
    this.emit("gamma");
  }

  setSame(on) {
    this.same = on;
    if (on) this.gammas = this.gammas.map(() => this.gamma);
    this.emit("gamma");
  }

  /** view: {x, y, zoom}. Throws a RangeError unless all three are numbers; x and y are clipped to 0 to 1. */
  setView({x, y, zoom}) {
    if (![x, y, zoom].every(Number.isFinite) || zoom < 0) {
      const came = [x, y, zoom].map(String).join(", ");
      throw new RangeError(`view=${came}; allowed: x, y and zoom, three numbers, zoom from 0 (fit)`);
    }
    this.view = {x: clamp(x, 0, 1), y: clamp(y, 0, 1), zoom};
    this.emit("view");
  }

  /** Append an image of the page's own; gamma is its gamma, unless one gamma holds for all. */
  addImage(image, gamma) {
    this.gammas.push(this.same ? this.gamma : gamma);
    this.images.push(image);
  }

  rememberGamma(gamma) {
    const last = this.past[this.past.length - 1], now = this.clock();
    if (last && last.kind === "gamma" && last.image === this.index && now - last.time < SAME_MOVE) {
      this.future = [];
      last.time = now;
      last.after = gamma;
      return;
    }
    this.remember({kind: "gamma", image: this.index, before: [...this.gammas], after: gamma, time: now});
  }

  /** Add a step of undo. */
  remember(step) {
    this.future = [];
    this.past.push(step);
    this.past = this.past.slice(-STEPS);
  }

  /** The step to take back (forward: to do again), taken off its list; undefined if there is none. */
  nextStep(forward) {
    return (forward ? this.future : this.past).pop();
  }

  /** Take back a step of `nextStep`; its image has to be the shown one. */
  takeBack(step, forward) {
    const opposite = forward ? this.past : this.future;
    if (step.kind === "gamma") {
      opposite.push({...step, before: [...this.gammas], time: 0});
      this.gammas = this.gammas.map((now, i) => step.before[i] ?? now); // images that came later stay
      this.emit("gamma");
    } else {
      opposite.push({...step, before: step.after, after: step.before});
      this.setMap(step.before.map, step.before.rect);
    }
  }

  /** Set the whole map of the shown image (rect null; map null clears it), or a rectangle of it. */
  setMap(map, rect = null) {
    const {width, height} = this.image;
    if (!map) this.maps.delete(this.index);
    else if (!rect) this.maps.set(this.index, map);
    else {
      if (!this.map) this.maps.set(this.index, emptyMap(width, height));
      pasteMap(this.map, width, map, rect);
    }
    this.mapChanged();
  }

  /** Set the whole map, as one step of undo. */
  replaceMap(map) {
    const before = {map: copiedMap(this.map), rect: null}, after = {map: copiedMap(map), rect: null};
    this.remember({kind: "map", image: this.index, before, after});
    this.setMap(map);
  }

  /** The map of image i as the other side has it, or null. */
  receiveMap(i, map) {
    if (map) this.maps.set(i, map);
    else this.maps.delete(i);
    if (i === this.index) this.mapChanged(false);
  }

  mapChanged(own = true) {
    if (this.map && !this.map.cover.some(value => value)) this.maps.delete(this.index); // erased to nothing
    this.emit("map", own);
  }
}
