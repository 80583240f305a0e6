// The two hosts: the exported page, which has everything in itself, and the notebook, which talks to Python.

import {App} from "./app.js";
import {decodePNG} from "./png.js";
import {mapFromPicture} from "./state.js";
import {h, readable} from "./util.js";

/** The explorer in a new element of `el`: the App, and what scripts may call. */
function mount(host, el, path) {
  const root = h("div", {
    class: "ifcsr", role: "region", "aria-label": "fidelity to realism explorer",
    "data-lm-suppress-shortcuts": "true",
  });
  el.append(root);
  const app = new App(host, root, path);
  const api = {
    setGamma: gamma => app.state.setGamma(gamma),
    get gamma() {
      return app.state.gamma;
    },
    get ready() {
      return app.ready;
    },
    getPixels: (pane = 0) => app.pixels(pane),
    /** What is painted: RGBA of the canvas, and where the image lies on it. */
    getShown(pane = 0) {
      app.stages.flush();
      const {canvas, painter, spot} = app.stages.list[pane];
      return {width: canvas.width, height: canvas.height, data: painter.read(), path: painter.kind, spot};
    },
    get state() {
      return app.state.values();
    },
    setView: (x, y, zoom) => app.state.setView({x, y, zoom}),
    get map() {
      return app.state.map;
    },
  };
  root.ifcsr = api;
  return {app, api};
}

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/**
 * The exported page. Scripts find window.ifcsr = {ready, setGamma(g), gamma, getPixels(), ...}.
 * @param {{spec: Object, state: Object, pictures: Object<string, string>}} data pictures: base64 of PNG files
 * @param {Element} el
 */
export function page(data, el) {
  const pictures = new Map(Object.entries(data.pictures));
  const host = {
    live: false,
    spec: data.spec,
    state: data.state,
    pictures,
    async picture(key) {
      const value = pictures.get(key);
      if (value === undefined) throw new Error(`the page has no picture ${key}`);
      if (typeof value === "string") pictures.set(key, bytesOf(value)); // decoded once, when first shown
      return pictures.get(key);
    },
    changed() {},
    map() {},
    action() {},
    report() {},
  };
  const {app, api} = mount(host, el, new URLSearchParams(location.search).get("path") || "auto");
  addEventListener("error", event => app.alert(readable(event.error || event.message)));
  addEventListener("unhandledrejection", event => app.alert(readable(event.reason)));
  window.ifcsr = api;
}

const CHUNK = 1 << 20; // a notebook server closes the connection at 10 MB per message
const TRAITS = ["gammas", "same_gamma", "index", "view"]; // Python keeps gamma = gammas[index]

/** The kernel as a host: gamma and view are traits, pictures and maps come and go as messages. */
class Kernel {
  constructor(model) {
    this.model = model;
    this.live = true;
    this.spec = structuredClone(model.get("_spec"));
    this.state = this.traits();
    this.pictures = new Map();
    this.waiting = new Map(); // key: {promise, resolve, reject}
    this.name = `${Date.now()}-${Math.random()}`; // of this view, among those of one widget
    this.sent = 0;
    this.changing = false; // each `set` fires an event in the middle of a change
  }

  traits() {
    return Object.fromEntries(TRAITS.map(name => [name, this.model.get(name)]));
  }

  /** One message, in parts if its bytes are many. */
  send(content, bytes = null) {
    const parts = bytes ? Math.max(1, Math.ceil(bytes.length / CHUNK)) : 1;
    const id = `${this.name}-${this.sent++}`;
    for (let part = 0; part < parts; part++) {
      const buffers = bytes ? [bytes.slice(part * CHUNK, (part + 1) * CHUNK).buffer] : [];
      this.model.send({...content, view: this.name, id, part, parts}, undefined, buffers);
    }
  }

  picture(key) {
    if (!this.waiting.has(key)) {
      const entry = {};
      entry.promise = new Promise((resolve, reject) => Object.assign(entry, {resolve, reject}));
      this.waiting.set(key, entry);
      this.send({kind: "picture", key});
    }
    return this.waiting.get(key).promise;
  }

  /** Python's answer to `picture`. */
  answer({key, error}, bytes) {
    const entry = this.waiting.get(key);
    if (!entry) return;
    this.waiting.delete(key);
    if (error) entry.reject(new Error(error));
    else entry.resolve(bytes);
  }

  changed(values) {
    const differs = name => JSON.stringify(this.model.get(name)) !== JSON.stringify(values[name]);
    const moved = ["gamma", ...TRAITS].filter(differs);
    this.changing = true;
    try {
      for (const name of moved) this.model.set(name, values[name]);
    } finally {
      this.changing = false;
    }
    if (moved.length) this.model.save_changes();
  }

  map(image, png) {
    this.send({kind: "map", image, clear: !png}, png);
  }

  action(kind, detail = {}, bytes = null) {
    this.send({...detail, kind}, bytes);
  }

  report(text) {
    this.model.set("error", text);
    this.model.save_changes();
  }
}

function bytesOfBuffer(buffers) {
  if (!buffers || !buffers.length) return null;
  const [first] = buffers;
  return new Uint8Array(first.buffer ?? first, first.byteOffset ?? 0, first.byteLength);
}

/** The notebook: anywidget calls this for each view of the widget; the returned function frees the view. */
function render({model, el}) {
  const kernel = new Kernel(model), {app} = mount(kernel, el, model.get("_path"));
  const received = app.safe(async (content, buffers) => {
    const bytes = bytesOfBuffer(buffers);
    if (content.kind === "picture") kernel.answer(content, bytes);
    else if (content.kind === "note") app.note(content.text);
    else if (content.kind === "map" && content.view !== kernel.name) {
      const map = bytes ? mapFromPicture(await decodePNG(bytes, "the gamma map")) : null;
      app.state.receiveMap(content.image, map);
    }
  });
  const failed = () => app.alert(model.get("error"));
  const traits = app.safe(() => kernel.changing ? undefined : app.receive(kernel.traits()));
  const listeners = {
    "msg:custom": received,
    "change:_spec": app.safe(() => app.setSpec(structuredClone(model.get("_spec")))),
    "change:error": failed,
    ...Object.fromEntries(TRAITS.map(name => [`change:${name}`, traits])),
  };
  for (const [event, f] of Object.entries(listeners)) model.on(event, f);
  if (model.get("error")) failed();
  return () => {
    for (const [event, f] of Object.entries(listeners)) model.off(event, f);
    app.free();
  };
}

export default {render};
