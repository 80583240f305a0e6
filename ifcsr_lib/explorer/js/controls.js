// The controls around the pictures, and the keys.

import {FIT, Stages, comparable} from "./stage.js";
import {clamp, h} from "./util.js";

const STEP = 0.01; // of an arrow key on the slider
const PAGE = 0.1;
const WIPE_STEP = 0.02;
const PAN_STEP = 40; // screen pixels of an arrow key on the picture

const field = (text, control) => h("label", {class: "ifcsr-field"}, h("span", {}, text), control);
const row = (label, ...children) =>
  h("div", {class: "ifcsr-row", role: "group", "aria-label": label}, ...children);

/** "nearer to fidelity" and the like, for screen readers. */
export function nearTo(gamma) {
  if (gamma === 0) return "fidelity";
  if (gamma === 1) return "realism";
  if (gamma === 0.5) return "half way";
  return gamma < 0.5 ? "nearer to fidelity" : "nearer to realism";
}

/** Makes buttons, ranges and check boxes whose errors go to the message line. */
export class Widgets {
  constructor(app) {
    this.app = app;
  }

  button(text, label, act, more = {}) {
    const button = h("button", {type: "button", title: label, "aria-label": label, ...more}, text);
    this.app.on(button, "click", act);
    return button;
  }

  range(label, min, max, step, value, act) {
    const input = h("input", {type: "range", min, max, step, value, "aria-label": label});
    this.app.on(input, "input", () => act(+input.value));
    return input;
  }

  /** {label, box}: the label is what goes onto the page. */
  check(text, act, on = false) {
    const box = h("input", {type: "checkbox", checked: on});
    this.app.on(box, "change", () => act(box.checked));
    return {label: h("label", {class: "ifcsr-check"}, box, text), box};
  }

  select(label, act, options = {}) {
    const choices = Object.entries(options).map(([value, text]) => h("option", {value}, text));
    const box = h("select", {"aria-label": label}, ...choices);
    if (act) this.app.on(box, "change", () => act(box.value));
    return box;
  }

  /** A hidden file input; act gets one file after another. */
  file(accept, act) {
    const input = h("input", {type: "file", accept, hidden: true});
    this.app.on(input, "change", async () => {
      for (const file of [...input.files]) await act(file);
      input.value = "";
    });
    return input;
  }
}

/** Everything below the pictures but the curves; `rows` in the order of the page. */
export class Controls {
  constructor(app, widgets) {
    this.app = app;
    this.widgets = widgets;
    this.message = h("div", {class: "ifcsr-message", role: "alert"});
    this.status = h("div", {class: "ifcsr-status", role: "status"});
    this.made = h("small", {class: "ifcsr-made"});
    const slide = this.slideRow(), presets = this.presetRow();
    const tools = [this.viewRow(), this.compareRow(), this.fileRow()];
    this.brushRow = this.makeBrushRow();
    const toolRow = h("div", {class: "ifcsr-row ifcsr-tools"}, ...tools);
    this.rows = [slide, presets, this.message, toolRow, this.brushRow, this.status];
    this.listenToKeys();
  }

  // rows

  slideRow() {
    const {app} = this;
    this.slider = h("input", {
      type: "range", min: 0, max: 1, step: 0.001, class: "ifcsr-gamma",
      "aria-label": "gamma, from fidelity to realism",
    });
    this.typed = h("input", {type: "number", min: 0, max: 1, step: 0.01, "aria-label": "gamma as a number"});
    app.on(this.slider, "input", () => app.state.setGamma(+this.slider.value));
    app.on(this.slider, "keydown", event => this.slideByKey(event));
    app.on(this.typed, "change", () => {
      const gamma = this.typed.value.trim() === "" ? NaN : +this.typed.value;
      if (!(gamma >= 0 && gamma <= 1)) {
        this.typed.value = app.state.gamma;
        throw new RangeError("gamma: type a number from 0 to 1");
      }
      this.alert("");
      app.state.setGamma(gamma);
    });
    const word = text => h("span", {"aria-hidden": "true"}, text);
    return h("div", {class: "ifcsr-row ifcsr-slide"}, word("faithful"), this.slider, word("realistic"),
      field("γ", this.typed));
  }

  presetRow() {
    const {app, widgets} = this;
    this.presets = app.spec.presets.map(gamma => widgets.button(
      String(gamma), `gamma ${gamma}`, () => app.state.setGamma(gamma), {"data-gamma": gamma}));
    this.undoButton = widgets.button("↶", "undo (Ctrl+Z)", () => app.undo());
    this.redoButton = widgets.button("↷", "redo (Ctrl+Shift+Z)", () => app.undo(true));
    const held = h("button", {type: "button", "aria-pressed": "false", title: "hold to compare (key C)"},
      "Hold to compare");
    app.on(held, "pointerdown", event => {
      held.setPointerCapture(event.pointerId);
      this.hold(true);
    });
    app.on(held, "pointerup pointercancel lostpointercapture blur", () => this.hold(false));
    app.on(held, "keydown", event => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      this.hold(true);
    });
    app.on(held, "keyup", () => this.hold(false));
    this.heldButton = held;
    return row("presets", ...this.presets, this.undoButton, this.redoButton, held);
  }

  viewRow() {
    const {app, widgets} = this;
    this.lens = widgets.check("magnifier", on => this.setLens(on));
    this.brush = widgets.check("brush γ", on => this.setBrush(on));
    this.zoomText = h("output", {class: "ifcsr-zoom"});
    return row("view",
      widgets.button("Fit", "fit the window (key 0)", () => app.state.setView(FIT)),
      widgets.button("1:1", "one screen pixel per image pixel (key 1)", () => this.showOneToOne()),
      widgets.button("−", "zoom out (key −)", () => app.stages.zoomBy(-1)),
      widgets.button("+", "zoom in (key +)", () => app.stages.zoomBy(1)),
      this.zoomText, this.lens.label, this.brush.label);
  }

  compareRow() {
    const {app, widgets} = this;
    this.against = widgets.select("compare with", name => app.compareWith(name));
    const wipeLabel = "wipe: how much of the width shows the compared image";
    this.wipe = widgets.range(wipeLabel, 0, 1, 0.001, app.look.wipe, share => this.setWipe(share));
    this.tint = widgets.select("overlay", kind => this.setTint(kind),
      {"": "nothing", difference: "where the ends differ", map: "the γ map"});
    this.legend = Stages.legend();
    return row("compare", field("compare", this.against), field("wipe", this.wipe),
      field("overlay", this.tint), this.legend);
  }

  fileRow() {
    const {app, widgets} = this;
    this.bits = widgets.select("bits per channel of the export", null, {8: "8 bit", 16: "16 bit"});
    const pair = widgets.file(".zip", file => app.files.open(file));
    const save = () => app.files.exportPNG(+this.bits.value);
    return row("files", this.bits, widgets.button("Export PNG", "the whole picture as a PNG file", save),
      widgets.button("Open .ifcsr.zip…", "add an endpoint pair", () => pair.click()), pair);
  }

  makeBrushRow() {
    const {app, widgets} = this, {brush} = app;
    const gammaText = h("output", {}, "1.00");
    const gamma = widgets.range("gamma that the brush paints", 0, 1, 0.01, brush.gamma, value => {
      brush.gamma = value;
      gammaText.textContent = value.toFixed(2);
    });
    this.size = widgets.range("brush size in image pixels", 2, 400, 1, brush.size, value => {
      brush.size = value;
      app.stages.placeRings();
    });
    const strength = widgets.range("brush strength", 0.02, 1, 0.01, brush.strength, value => {
      brush.strength = value;
    });
    const erase = widgets.check("erase", on => {
      brush.erase = on;
    });
    const file = widgets.file(".png,image/png", chosen => app.files.importMap(chosen));
    this.mapNote = h("small", {});
    const importMap = widgets.button(
      "Import map…", "import a gamma map, a grey PNG of the image's size", () => file.click());
    const exportMap = widgets.button(
      "Export map", "export the gamma map as a grey PNG", () => app.files.exportMap());
    const brushRow = row("gamma map", field("paints γ", gamma), gammaText, field("size", this.size),
      field("strength", strength), erase.label,
      widgets.button("Clear", "clear the gamma map", () => app.clearMap()), importMap, file, exportMap,
      this.mapNote);
    brushRow.hidden = true;
    return brushRow;
  }

  // what is shown

  /** Show an error; "" clears the line. */
  alert(text) {
    this.message.textContent = text;
  }

  note(text) {
    this.status.textContent = text;
  }

  /** Follow the layout of the shown image. */
  layout() {
    const {width, height, panes} = this.app.state.image;
    const made = pane => `${pane.label ? `${pane.label}: ` : ""}model ${pane.model}, hash ${pane.hash}`;
    this.made.textContent = panes.map(made).join(" · ");
    this.size.max = Math.max(50, Math.round(Math.max(width, height) / 2));
  }

  /** What can be compared with the shown image; the chosen one is look.against. */
  showComparable() {
    const {look, state} = this.app;
    const texts = {"": "nothing", fidelity: "fidelity (γ 0)", realism: "realism (γ 1)"};
    const option = name => h("option", {value: name}, texts[name] ?? name);
    this.against.replaceChildren(...comparable(state.image).map(option));
    this.against.value = look.against;
    this.wipe.disabled = !look.against;
  }

  /** Follow the state. */
  update() {
    const {state, look, stages} = this.app, {gamma} = state, text = +gamma.toFixed(3);
    if (+this.slider.value !== gamma) this.slider.value = gamma;
    if (document.activeElement !== this.typed || +this.typed.value !== gamma) this.typed.value = String(text);
    this.slider.setAttribute("aria-valuetext", `gamma ${text}, ${nearTo(gamma)}`);
    for (const button of this.presets) {
      button.setAttribute("aria-pressed", String(+button.dataset.gamma === gamma));
    }
    const [first] = stages.list, zoom = first.canvas.width ? first.zoom() : 1;
    this.zoomText.textContent = `${state.view.zoom ? "" : "fit, "}${Math.round(100 * zoom)} %`;
    this.undoButton.disabled = !state.past.length;
    this.redoButton.disabled = !state.future.length;
    this.heldButton.setAttribute("aria-pressed", String(look.holding));
    this.mapNote.textContent = state.map
      ? "a painted map holds γ where you painted; the slider moves the rest" : "";
  }

  // what is chosen

  showOneToOne() {
    this.app.state.setView({...this.app.state.view, zoom: 1});
  }

  setWipe(share) {
    const {look, stages} = this.app;
    look.wipe = clamp(share, 0, 1);
    this.wipe.value = look.wipe;
    stages.paintOver();
  }

  hold(on) {
    const {look, stages} = this.app;
    if (look.holding === on) return;
    look.holding = on;
    stages.repaint("gamma");
  }

  setTint(kind) {
    this.app.look.tint = this.tint.value = kind;
    this.legend.hidden = kind !== "difference";
    this.app.stages.repaint("gamma");
  }

  setLens(on) {
    this.app.look.lens = this.lens.box.checked = on;
    this.startCursor();
    this.app.stages.repaint("gamma");
  }

  setBrush(on) {
    const {brush, stages} = this.app;
    brush.on = this.brush.box.checked = on;
    this.brushRow.hidden = !on;
    for (const stage of stages.list) stage.box.classList.toggle("ifcsr-brushing", on);
    this.startCursor();
    stages.placeRings();
  }

  /** Without a pointer so far, the cursor is in the middle of the view. */
  startCursor() {
    const {look, state: {image, view}} = this.app;
    look.cursor ??= {x: image.width * view.x, y: image.height * view.y};
  }

  resizeBrush(times) {
    const {brush, stages} = this.app;
    brush.size = clamp(brush.size * times, 2, +this.size.max);
    this.size.value = brush.size;
    stages.placeRings();
  }

  // keys

  listenToKeys() {
    const {app} = this, {root} = app;
    app.on(root, "keydown", event => this.key(event));
    app.on(root, "keyup", event => {
      if (event.key === "c" || event.key === "C") this.hold(false);
    });
    app.on(root, "focusout", event => {
      if (app.look.holding && !root.contains(event.relatedTarget)) this.hold(false);
    });
  }

  slideByKey(event) {
    const g = this.app.state.gamma;
    const to = {
      ArrowRight: g + STEP, ArrowUp: g + STEP, ArrowLeft: g - STEP, ArrowDown: g - STEP,
      PageUp: g + PAGE, PageDown: g - PAGE, Home: 0, End: 1,
    }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.app.state.setGamma(clamp(Math.round(to * 1000) / 1000, 0, 1));
  }

  /** A key anywhere in the root: undo and compare; the rest belongs to the picture. */
  key(event) {
    const {app} = this, key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
    if (command && (key === "z" || key === "y")) {
      event.preventDefault();
      return app.undo(key === "y" || event.shiftKey);
    }
    if (event.target.matches("input[type=number], select") || command || event.altKey) return undefined;
    if (key === "c") return this.hold(true);
    const box = event.target.closest(".ifcsr-stage"), stage = app.stages.list.find(one => one.box === box);
    if (!stage) return undefined;
    const known = event.target === stage.handle ? this.wipeByKey(event.key) : this.pictureKey(event, stage);
    if (known) event.preventDefault();
    return undefined;
  }

  /** True if the key meant something, here and below. */
  wipeByKey(key) {
    const {wipe} = this.app.look;
    const to = {
      ArrowRight: wipe + WIPE_STEP, ArrowUp: wipe + WIPE_STEP, ArrowLeft: wipe - WIPE_STEP,
      ArrowDown: wipe - WIPE_STEP, Home: 0, End: 1,
    }[key];
    if (to !== undefined) this.setWipe(to);
    return to !== undefined;
  }

  pictureKey(event, stage) {
    const {brush, look, stages, state} = this.app, {key} = event, far = event.shiftKey ? 5 : 1;
    const arrow = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[key];
    if (arrow && (brush.on || look.lens)) {
      this.moveCursor(arrow, far);
      return true;
    }
    if (arrow) {
      stages.pan(-PAN_STEP * arrow[0] * far, -PAN_STEP * arrow[1] * far, stage);
      return true;
    }
    if ((key === " " || key === "Enter") && brush.on) {
      brush.start();
      brush.dab(look.cursor.x, look.cursor.y);
      brush.end();
      return true;
    }
    const act = {
      "+": () => stages.zoomBy(1),
      "=": () => stages.zoomBy(1),
      "-": () => stages.zoomBy(-1),
      0: () => state.setView(FIT),
      1: () => this.showOneToOne(),
      m: () => this.setLens(!look.lens),
      b: () => this.setBrush(!brush.on),
      h: () => this.setTint(look.tint === "difference" ? "" : "difference"),
      "[": () => this.resizeBrush(0.8),
      "]": () => this.resizeBrush(1.25),
    }[key.toLowerCase()];
    if (act) act();
    return Boolean(act);
  }

  moveCursor([dx, dy], far) {
    const {brush, look, stages, state: {image: {width, height}}} = this.app;
    const step = (brush.on ? Math.max(1, brush.size / 8) : 1) * far;
    look.cursor = {
      x: clamp(look.cursor.x + dx * step, 0, width - 0.5),
      y: clamp(look.cursor.y + dy * step, 0, height - 0.5),
    };
    stages.placeRings();
    stages.repaint("gamma");
  }
}
