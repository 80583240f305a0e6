// The explorer put together: who owns what, which image is shown, how errors and news travel.

import {blend} from "./blend.js";
import {Brush} from "./brush.js";
import {Charts} from "./charts.js";
import {Controls, Widgets} from "./controls.js";
import {Files} from "./files.js";
import {Gallery} from "./gallery.js";
import {measuredPSNR, reading} from "./numbers.js";
import {Pictures} from "./pictures.js";
import {decodePNG, encodePNG} from "./png.js";
import {Pointers} from "./pointers.js";
import {Stages, comparable} from "./stage.js";
import {mapFromPicture, mapToPixels, State} from "./state.js";
import {readable, Timers} from "./util.js";

const WAITING = "waiting for the kernel to send the picture; if none runs, run the cell again";

/** One explorer in one element. */
export class App {
  /**
   * @param {Object} host {live, spec, state, pictures, picture(key), changed(values), map(i, png),
   *   action(kind, detail, bytes), report(text)}: the page or the notebook
   * @param {Element} root where everything goes
   * @param {"auto"|"2d"|"webgl2"} path how blends are painted
   */
  constructor(host, root, path = "auto") {
    Object.assign(this, {host, root, path, spec: host.spec});
    this.stop = new AbortController();
    this.timers = new Timers();
    this.turn = 0; // counts calls of `show`, so that the last one wins
    this.decoded = null; // {index, ends}: the image whose pictures are there
    this.mapped = undefined; // PSNR of each pane with the painted map, once measured
    this.mapsLoaded = new Set();
    // how it looks, which neither undo nor Python knows
    this.look = {
      against: "", otherName: "", other: null, wipe: 0.5, holding: false, tint: "", lens: false, cursor: null,
    };
    this.state = new State(host.state, this.spec.images);
    this.brush = new Brush(this.state);
    this.pictures = new Pictures(host);
    const widgets = new Widgets(this);
    this.gallery = new Gallery(this, widgets);
    this.files = new Files(this);
    this.controls = new Controls(this, widgets);
    this.charts = new Charts(this, widgets);
    this.pointers = new Pointers(this);
    this.stages = new Stages(this, stage => this.pointers.watch(stage));
    const {gallery, stages, controls, charts} = this;
    root.append(gallery.row, stages.box, ...controls.rows, charts.box, controls.made);
    this.listen();
    this.gallery.fill();
    this.layout();
    this.follow();
    this.safe(() => this.show(this.state.index))();
  }

  /** What follows a change of the state. */
  listen() {
    const {state, stages} = this;
    state.on("gamma", () => {
      this.gallery.same.box.checked = state.same;
      stages.repaint("gamma");
      this.tell();
    });
    state.on("view", () => {
      stages.markZoomed();
      stages.repaint("show");
      this.tell();
    });
    state.on("stroke", () => stages.repaint("map"));
    state.on("map", own => {
      stages.repaint("map");
      this.measureMap();
      if (own) this.sendMap();
    });
  }

  /** Stop every listener, timer, observer and animation frame, and give the GPU back. */
  free() {
    this.stop.abort();
    this.timers.free();
    this.stages.free();
  }

  // errors: shown in the message line, told to the host, never swallowed

  /** f, whose errors are shown, also those of the promise that it returns. */
  safe(f) {
    return (...args) => {
      try {
        const result = f(...args);
        if (result && result.catch) result.catch(error => this.showError(error));
        return result;
      } catch (error) {
        this.showError(error);
        return undefined;
      }
    };
  }

  /** Listen to events, "keydown keyup", until free(). */
  on(target, types, f, options = {}) {
    for (const type of types.split(" ")) {
      target.addEventListener(type, this.safe(f), {signal: this.stop.signal, ...options});
    }
  }

  showError(error) {
    console.error(error);
    const text = readable(error);
    this.alert(text);
    this.host.report(text);
  }

  alert(text) {
    this.controls.alert(text);
  }

  note(text) {
    this.controls.note(text);
  }

  // the other side: Python, or another view of the same widget

  /** Tell the host at most every 80 ms, and the last state always; painting does not wait for it. */
  tell() {
    if (!this.timers.has("tell")) this.timers.start("tell", 80, this.safe(() => this.tellNow()));
  }

  tellNow() {
    this.timers.stop("tell");
    this.host.changed(this.state.values());
  }

  /** Take what the other side has. */
  receive(values) {
    const {state, stages} = this, before = state.values(), text = JSON.stringify;
    if (text(before) === text({...before, ...values})) return undefined;
    state.assign(values);
    this.gallery.same.box.checked = state.same;
    stages.markZoomed();
    if (state.index !== before.index) return this.show(state.index);
    stages.repaint(text(before.view) === text(values.view) ? "gamma" : "show");
    return undefined;
  }

  /** Take a new description of the images: some were added, or measured. */
  setSpec(spec) {
    const count = this.spec.images.length;
    this.spec = spec;
    this.state.images = spec.images;
    if (spec.images.length !== count) this.gallery.fill();
    this.layout();
    this.follow();
    this.charts.draw();
  }

  /** Send the map of the shown image, once the brush rests. */
  sendMap() {
    const {index, image: {width, height}} = this.state;
    this.timers.start("map", 120, this.safe(async () => {
      const map = this.state.maps.get(index);
      this.host.map(index, map ? await encodePNG(width, height, 2, mapToPixels(map)) : null);
    }));
  }

  // the shown image

  /** [{fid, real} of each pane] of the shown image; null until they are decoded. */
  get shown() {
    return this.decoded && this.decoded.index === this.state.index ? this.decoded.ends : null;
  }

  /** Show image i; `ready` and the returned promise resolve when it is painted. */
  show(i) {
    this.ready = this.load(i);
    return this.ready;
  }

  async load(i) {
    const image = this.state.images[i];
    if (!image) throw new Error(`image ${i} does not exist; allowed: 0 to ${this.state.images.length - 1}`);
    const turn = ++this.turn;
    this.state.index = i;
    this.root.setAttribute("aria-busy", "true");
    if (this.host.live && !this.pictures.decoded.has(i)) {
      this.timers.start("wait", 1500, () => this.note(WAITING));
    }
    let ends;
    try {
      ends = await this.pictures.endpoints(i, image);
      await this.loadMap(i, image);
    } finally {
      if (turn === this.turn) this.timers.stop("wait");
    }
    if (turn !== this.turn) return; // another image was chosen meanwhile
    if (this.controls.status.textContent === WAITING) this.note("");
    this.root.removeAttribute("aria-busy");
    this.decoded = {index: i, ends};
    this.layout();
    await this.compareWith(this.look.against);
    this.gallery.mark();
    this.charts.draw();
    this.stages.resize(true);
    this.tell();
  }

  /** The map that the image came with; once, as it may be cleared here. */
  async loadMap(i, image) {
    const {maps} = this.state;
    if (!image.map || this.mapsLoaded.has(i) || maps.has(i)) return;
    this.mapsLoaded.add(i);
    maps.set(i, mapFromPicture(await decodePNG(await this.host.picture(`${i}/map`), "the gamma map")));
  }

  /** What the wipe and the held key show: a name of `comparable`; the held key always has something. */
  async compareWith(name) {
    const {look, state, shown} = this, {index, image} = state, allowed = comparable(image);
    look.against = allowed.includes(name) ? name : "";
    this.controls.showComparable();
    if (!shown) return; // `load` comes back here
    look.otherName = look.against || allowed[1];
    look.other = null;
    const end = {fidelity: "fid", realism: "real"}[look.otherName];
    const picture = end ? null : await this.pictures.one(`${index}/${look.otherName}`, image);
    if (shown !== this.shown) return; // another image was chosen meanwhile
    look.other = shown.map(ends => picture || ends[end]);
    this.stages.forgetOther();
    this.stages.repaint("gamma");
  }

  layout() {
    this.stages.layout();
    this.controls.layout();
  }

  /** Whatever follows a painted frame, beside the pixels. */
  follow() {
    const {state, spec, stages} = this;
    this.controls.update();
    for (const [p, {numbers}] of stages.list.entries()) {
      const text = reading(state.image.panes[p], state.gamma, spec.eps, Boolean(state.map), this.mapped?.[p]);
      if (numbers.textContent !== text) numbers.textContent = text;
    }
    this.charts.move(state.gamma);
    this.gallery.update();
  }

  /** The shown blend at full size, RGBA. Throws an Error before `ready`. */
  pixels(p = 0) {
    const {shown, state} = this;
    if (!shown) throw new Error("the pictures are not decoded yet; await ready first, then call getPixels");
    if (!shown[p]) throw new RangeError(`pane ${p} does not exist; allowed: 0 to ${shown.length - 1}`);
    const out = new Uint32Array(state.image.width * state.image.height);
    blend(shown[p].fid.data, shown[p].real.data, state.gamma, out, state.map);
    return new Uint8ClampedArray(out.buffer);
  }

  /** With a painted map there is no closed form: PSNR is measured from the pixels, once the brush rests. */
  measureMap() {
    const {state} = this;
    this.timers.stop("measure");
    this.mapped = undefined;
    if (!state.map || !state.image.hr) return;
    this.timers.start("measure", 250, this.safe(async () => {
      const {index} = state, hr = (await this.pictures.one(`${index}/HR`, state.image)).data;
      if (index !== state.index || !state.map || !this.shown) return;
      this.mapped = this.shown.map((_, p) => measuredPSNR(this.pixels(p), hr, this.spec.eps));
      this.follow();
    }));
  }

  clearMap() {
    if (this.state.map) this.state.replaceMap(null);
  }

  /** Take the last step back, or (forward) do it again; shows its image first. */
  async undo(forward = false) {
    const step = this.state.nextStep(forward);
    if (!step) {
      this.note(forward ? "nothing to redo" : "nothing to undo");
      return;
    }
    if (step.image !== this.state.index) await this.show(step.image);
    this.state.takeBack(step, forward);
    this.tell();
  }
}
