// Two ways to paint E1 on a canvas: pixel by pixel, and on a GPU. Both show, remap, paint, read and free.

import {blend} from "./blend.js";
import {nearest, sampled} from "./sampling.js";
import {clamp} from "./util.js";

/** The plain path: both endpoints once on the screen's grid, then each gamma is one pass over them. */
export class Painter2D {
  constructor(canvas) {
    this.kind = "2d";
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", {alpha: true, willReadFrequently: true});
  }

  /** Take endpoints {fid, real}, the place on the canvas and the gamma map or null; paints nothing yet. */
  show(ends, spot, map) {
    const n = 3 * spot.width * spot.height;
    if (!this.frame || this.frame.width !== spot.width || this.frame.height !== spot.height) {
      this.frame = new ImageData(spot.width, spot.height);
      this.words = new Uint32Array(this.frame.data.buffer);
      [this.fid, this.real] = [new Uint8Array(n), new Uint8Array(n)];
    }
    sampled(ends.fid, spot, this.fid);
    sampled(ends.real, spot, this.real);
    this.spot = spot;
    this.remap(map, ends);
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** Only the gamma map changed. */
  remap(map, ends) {
    const {width, height} = ends.fid.levels[0];
    const onScreen = plane => nearest(plane, width, height, this.spot);
    this.map = map && {cover: onScreen(map.cover), paint: onScreen(map.paint)};
  }

  paint(gamma) {
    blend(this.fid, this.real, gamma, this.words, this.map);
    this.pen.putImageData(this.frame, this.spot.left, this.spot.top);
  }

  /** RGBA of the canvas, rows from the top. */
  read() {
    return this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height).data;
  }

  free() {}
}

const VERTEX = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }`;
const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
uniform sampler2D fid, real, map;
uniform vec4 box;      // originX, originY, zoom, canvas height
uniform vec2 size;     // of the image
uniform float gamma, mapped;
out vec4 colour;
void main() {
  vec2 p = (vec2(gl_FragCoord.x, box.w - gl_FragCoord.y) - box.xy) / box.z;
  if (p.x < 0.0 || p.y < 0.0 || p.x >= size.x || p.y >= size.y) { colour = vec4(0.0); return; }
  ivec2 k = ivec2(p);
  bool whole = box.z >= 1.0 && box.z == floor(box.z);
  float lod = max(0.0, floor(-log2(box.z)));
  vec3 f = whole ? texelFetch(fid, k, 0).rgb : textureLod(fid, p / size, lod).rgb;
  vec3 r = whole ? texelFetch(real, k, 0).rgb : textureLod(real, p / size, lod).rgb;
  float g = gamma;
  if (mapped > 0.5) { vec2 m = texelFetch(map, k, 0).rg; g = (1.0 - m.r) * gamma + m.g; }
  ivec3 low = ivec3(f * 255.0 + 0.5), high = ivec3(r * 255.0 + 0.5); // the whole numbers of blend()
  colour = vec4(vec3((low * 65536 + (high - low) * int(g * 65536.0 + 0.5) + 32768) >> 16) / 255.0, 1.0);
}`;

/** The same on a GPU: endpoints are textures, a gamma is one uniform. Throws an Error without WebGL2. */
export class PainterGL {
  constructor(canvas) {
    this.kind = "webgl2";
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl2", {antialias: false, depth: false, preserveDrawingBuffer: true});
    if (!this.gl) throw new Error("no WebGL2");
    this.program = this.linked();
    this.gl.useProgram(this.program);
    this.gl.pixelStorei(this.gl.UNPACK_ALIGNMENT, 1);
    for (const [unit, name] of ["fid", "real", "map"].entries()) this.addTexture(unit, name);
  }

  linked() {
    const {gl} = this, program = gl.createProgram();
    for (const [type, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
      throw new Error(`shader: ${gl.getProgramInfoLog(program)}`);
    }
    return program;
  }

  addTexture(unit, name) {
    const {gl} = this, exact = name === "map";
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const axis of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) {
      gl.texParameteri(gl.TEXTURE_2D, axis, gl.CLAMP_TO_EDGE);
    }
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, exact ? gl.NEAREST : gl.LINEAR_MIPMAP_NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, exact ? gl.NEAREST : gl.LINEAR);
    gl.uniform1i(this.uniform(name), unit);
  }

  uniform(name) {
    return this.gl.getUniformLocation(this.program, name);
  }

  show(ends, spot, map) {
    const {gl} = this, {width, height} = ends.fid.levels[0];
    if (Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
      throw new Error("larger than a texture of this GPU");
    }
    if (this.ends !== ends) {
      for (const [unit, picture] of [ends.fid, ends.real].entries()) {
        gl.activeTexture(gl.TEXTURE0 + unit);
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, width, height, 0, gl.RGB, gl.UNSIGNED_BYTE, picture.data);
        gl.generateMipmap(gl.TEXTURE_2D);
      }
      this.ends = ends;
    }
    this.remap(map, ends);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.uniform4f(this.uniform("box"), spot.originX, spot.originY, spot.zoom, this.canvas.height);
    gl.uniform2f(this.uniform("size"), width, height);
  }

  remap(map, ends) {
    const {gl} = this, {width, height} = ends.fid.levels[0];
    gl.uniform1f(this.uniform("mapped"), map ? 1 : 0);
    if (!map) return;
    const pairs = new Uint8Array(2 * map.cover.length);
    for (let i = 0; i < map.cover.length; i++) {
      pairs[2 * i] = map.cover[i];
      pairs[2 * i + 1] = map.paint[i];
    }
    gl.activeTexture(gl.TEXTURE2);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RG8, width, height, 0, gl.RG, gl.UNSIGNED_BYTE, pairs);
  }

  paint(gamma) {
    this.gl.uniform1f(this.uniform("gamma"), gamma);
    this.gl.drawArrays(this.gl.TRIANGLES, 0, 3);
  }

  read() {
    const {gl} = this, {width, height} = this.canvas, row = 4 * width;
    const out = new Uint8ClampedArray(row * height), flipped = new Uint8ClampedArray(out.length);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, out);
    for (let y = 0; y < height; y++) {
      flipped.set(out.subarray(row * y, row * (y + 1)), row * (height - 1 - y));
    }
    return flipped;
  }

  free() {
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

/** Is there a GPU? Software GL does not count: it is slower than the plain path. */
export function hasGPU() {
  const gl = globalThis.OffscreenCanvas && new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl) return false;
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const name = String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}

// five stops of "inferno"
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

/** The mean |x_real - x_fid| of the three channels, in levels of 255, that is brightest. */
export const HEAT_TOP = 64;

/** [r, g, b] of a difference in levels. */
export function heat(difference) {
  const t = clamp(difference / HEAT_TOP, 0, 1) * 4, k = Math.min(3, Math.floor(t)), u = t - k;
  return HEAT[k].map((a, c) => Math.round(a + u * (HEAT[k + 1][c] - a)));
}
