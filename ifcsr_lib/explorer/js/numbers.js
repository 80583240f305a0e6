// The numbers beside the picture: closed forms in gamma, and the PSNR of a painted map from its pixels.

import {clamp} from "./util.js";

/** PSNR in dB of a mean squared error of values in [0, 1]; eps as pyiqa adds it. */
export const decibel = (mse, eps) => -10 * Math.log10(mse + eps);

/**
 * Mean squared error of the blend at gamma.
 * @param {number[]} errors [E_f, E_r, C]: mean e_f^2, mean e_r^2, mean e_f e_r
 * @param {number} gamma
 */
export const quadratic = ([f, r, c], gamma) =>
  (1 - gamma) ** 2 * f + gamma * gamma * r + 2 * gamma * (1 - gamma) * c;

/** The gamma of the least error of `quadratic`; 0 where all gammas have the same. */
export function bestGamma([f, r, c]) {
  const width = f + r - 2 * c;
  return width > 1e-15 ? clamp((f - c) / width, 0, 1) : 0;
}

/**
 * The line under a pane.
 * @param {Object} pane of the spec: errors, consistency (as `quadratic` takes them, or null), difference
 * @param {number} gamma
 * @param {number} eps
 * @param {boolean} mapped is there a painted map, so that closed forms in one gamma do not hold?
 * @param {number} [measured] PSNR with the map, once known
 * @returns {string}
 */
export function reading(pane, gamma, eps, mapped, measured) {
  const parts = [];
  if (pane.errors && !mapped) {
    const best = bestGamma(pane.errors), psnr = g => decibel(quadratic(pane.errors, g), eps).toFixed(2);
    parts.push(`PSNR ${psnr(gamma)} dB (best ${psnr(best)} at γ ${best.toFixed(2)})`);
  } else if (pane.errors && measured !== undefined) {
    parts.push(`PSNR ${measured.toFixed(2)} dB with the painted map`);
  }
  if (pane.difference !== null) parts.push(`ends differ by ${pane.difference.toFixed(2)} of 255`);
  if (pane.consistency && !mapped) {
    parts.push(`LQ consistency ${decibel(quadratic(pane.consistency, gamma), eps).toFixed(2)} dB`);
  }
  return parts.join(" · ");
}

/**
 * PSNR (dB, Y of YCbCr) of pixels against a reference.
 * @param {Uint8ClampedArray} rgba 4 values per pixel
 * @param {Uint8Array} hr 3 values per pixel
 * @param {number} eps
 * @returns {number}
 */
export function measuredPSNR(rgba, hr, eps) {
  const luma = [65.481 / 255, 128.553 / 255, 24.966 / 255], n = rgba.length / 4;
  let sum = 0;
  for (let k = 0; k < n; k++) {
    let error = 0;
    for (let c = 0; c < 3; c++) error += luma[c] * (rgba[4 * k + c] - hr[3 * k + c]) / 255;
    sum += error * error;
  }
  return decibel(sum / n, eps);
}
