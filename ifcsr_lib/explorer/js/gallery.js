// The row of small pictures, each at its own gamma.

import {blend} from "./blend.js";
import {h} from "./util.js";

/** The gallery, hidden while there is one image only. */
export class Gallery {
  constructor(app, widgets) {
    this.app = app;
    this.same = widgets.check("one γ for all images", on => app.state.setSame(on), app.state.same);
    this.box = h("div", {class: "ifcsr-gallery", role: "radiogroup", "aria-label": "images"});
    this.row = h("div", {class: "ifcsr-row ifcsr-top"}, this.box, this.same.label);
    this.thumbs = [];
  }

  /** Make it anew for the images of the state. */
  fill() {
    const {images} = this.app.state, many = images.length > 1;
    this.row.hidden = !many;
    this.thumbs = images.map((image, i) => this.thumb(image, i));
    this.box.replaceChildren(...this.thumbs.map(thumb => thumb.button));
    if (many) {
      const load = this.app.safe((thumb, i) => this.load(thumb, i));
      this.thumbs.forEach(load);
    }
    this.mark();
  }

  thumb(image, i) {
    const {app} = this, canvas = h("canvas", {width: 1, height: 1});
    const attributes = {type: "button", role: "radio", class: "ifcsr-thumb", title: image.name};
    const button = h("button", attributes, canvas, h("span", {}, image.name));
    app.on(button, "click", () => app.show(i));
    app.on(button, "keydown", event => {
      const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
      if (!step) return undefined;
      event.preventDefault();
      const next = (i + step + this.thumbs.length) % this.thumbs.length;
      this.thumbs[next].button.focus();
      return app.show(next);
    });
    return {canvas, button};
  }

  async load(thumb, i) {
    const [fid, real] = await this.app.pictures.thumbs(i, this.app.state.images[i]);
    Object.assign(thumb, {fid: fid.data, real: real.data});
    [thumb.canvas.width, thumb.canvas.height] = [fid.width, fid.height];
    this.draw(thumb, i);
  }

  draw(thumb, i) {
    const gamma = this.app.state.gammas[i];
    if (!thumb.fid || thumb.gamma === gamma) return;
    const frame = new ImageData(thumb.canvas.width, thumb.canvas.height);
    blend(thumb.fid, thumb.real, gamma, new Uint32Array(frame.data.buffer));
    thumb.canvas.getContext("2d").putImageData(frame, 0, 0);
    thumb.gamma = gamma;
  }

  /** Show which image is chosen. */
  mark() {
    const {index} = this.app.state;
    for (const [i, {button}] of this.thumbs.entries()) {
      button.setAttribute("aria-checked", String(i === index));
      button.tabIndex = i === index ? 0 : -1;
    }
  }

  /** Follow gamma: of the shown image, or of all that share it. */
  update() {
    const {same, index} = this.app.state;
    for (const [i, thumb] of this.thumbs.entries()) {
      if (same || i === index) this.draw(thumb, i);
    }
  }
}
