// Pointers on a picture: one finger or button pans, wipes or paints; two pinch; the wheel zooms.

import {FIT} from "./stage.js";
import {clamp} from "./util.js";

const LARGEST_ZOOM = 32;
const WHEEL_STEP = 40; // of deltaY, for one zoom
const SCROLLING = 250; // milliseconds after the page was scrolled in which the wheel goes on scrolling

/** What all panes share: pointers that are down, and what they are doing. */
export class Pointers {
  constructor(app) {
    this.app = app;
    this.down = new Map(); // pointer id: place
    this.doing = null; // "pan", "wipe", "paint" or "pinch"
    this.pinchZoom = null;
    this.rolled = 0;
    this.scrolled = -1e9;
    const noteScroll = event => {
      if (!app.stages.box.contains(event.target)) this.scrolled = event.timeStamp;
    };
    app.on(document, "wheel", noteScroll, {passive: true, capture: true});
  }

  /** Listen to a pane. */
  watch(stage) {
    const {app} = this, {box} = stage;
    app.on(box, "pointerdown", event => this.press(stage, event));
    app.on(box, "pointermove", event => this.move(stage, event));
    app.on(box, "pointerup pointercancel", event => this.release(event));
    app.on(box, "pointerleave", () => {
      if (app.brush.on && !this.down.size) stage.ring.hidden = true;
    });
    app.on(box, "dblclick", event => this.doubleClick(stage, event));
    app.on(box, "wheel", event => this.roll(stage, event), {passive: false});
  }

  /** Canvas pixels, image coordinates and the share of the width under a pointer. */
  place(stage, event) {
    const rect = stage.box.getBoundingClientRect(), ratio = stage.canvas.width / rect.width;
    const canvas = [(event.clientX - rect.left) * ratio, (event.clientY - rect.top) * ratio];
    const spot = stage.spot || {originX: 0, originY: 0, zoom: 1};
    return {
      canvas, x: (canvas[0] - spot.originX) / spot.zoom, y: (canvas[1] - spot.originY) / spot.zoom,
      share: (event.clientX - rect.left) / rect.width,
    };
  }

  press(stage, event) {
    const {brush, look, shown} = this.app;
    if (event.button > 1 || !shown) return;
    const at = this.place(stage, event);
    stage.box.focus({preventScroll: true});
    this.down.set(event.pointerId, at);
    stage.box.setPointerCapture(event.pointerId);
    if (stage.handle.contains(event.target)) this.doing = "wipe";
    else if (this.down.size === 2) {
      if (this.doing === "paint") brush.drop();
      this.doing = "pinch";
    } else if (brush.on && event.button === 0) {
      this.doing = "paint";
      look.cursor = at;
      brush.start();
      brush.dab(at.x, at.y);
    } else this.doing = "pan";
  }

  move(stage, event) {
    const {brush, controls, look, stages, state: {image}} = this.app, at = this.place(stage, event);
    if (brush.on || look.lens) {
      look.cursor = {x: clamp(at.x, 0, image.width - 0.5), y: clamp(at.y, 0, image.height - 0.5)};
      stages.placeRings();
      if (look.lens) stages.paintLenses();
    }
    const last = this.down.get(event.pointerId);
    if (!last) return;
    if (this.doing === "wipe") controls.setWipe(at.share);
    else if (this.doing === "paint") {
      for (const part of event.getCoalescedEvents?.() ?? [event]) {
        const {x, y} = this.place(stage, part);
        brush.dab(x, y);
      }
    } else if (this.doing === "pan") {
      stages.pan(at.canvas[0] - last.canvas[0], at.canvas[1] - last.canvas[1], stage);
    } else if (this.doing === "pinch" && this.down.size === 2) this.pinch(stage, event.pointerId, at, last);
    this.down.set(event.pointerId, at);
  }

  pinch(stage, id, at, last) {
    const [[, other]] = [...this.down].filter(([key]) => key !== id);
    const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
    const times = apart(at.canvas, other.canvas) / Math.max(apart(last.canvas, other.canvas), 1);
    this.pinchZoom = (this.pinchZoom || stage.zoom()) * times;
    const fit = stage.zoom(0), wanted = this.pinchZoom > 1 ? Math.round(this.pinchZoom) : this.pinchZoom;
    const zoom = clamp(wanted, fit, LARGEST_ZOOM);
    const middle = [(at.canvas[0] + other.canvas[0]) / 2, (at.canvas[1] + other.canvas[1]) / 2];
    this.app.stages.zoomTo(zoom, middle, stage, zoom <= fit);
  }

  release(event) {
    if (!this.down.delete(event.pointerId)) return;
    if (this.doing === "paint") this.app.brush.end();
    if (!this.down.size) this.doing = this.pinchZoom = null;
  }

  doubleClick(stage, event) {
    const {brush, stages, state} = this.app;
    if (brush.on || stage.handle.contains(event.target)) return;
    if (state.view.zoom) state.setView(FIT);
    else stages.zoomTo(Math.max(1, 2 * (stage.zoom() >= 1)), this.place(stage, event).canvas, stage);
  }

  roll(stage, event) {
    if (event.timeStamp - this.scrolled < SCROLLING) {
      this.scrolled = event.timeStamp;
      return;
    }
    event.preventDefault();
    this.rolled += event.deltaMode ? WHEEL_STEP * event.deltaY : event.deltaY;
    if (Math.abs(this.rolled) < WHEEL_STEP) return;
    this.app.stages.zoomBy(this.rolled < 0 ? 1 : -1, this.place(stage, event).canvas, stage);
    this.rolled = 0;
  }
}
