/** Draws a view state on a canvas: a bar per step, the noise levels over them, the measured times below. Needs a canvas, but neither nodes nor events. */

/**
 * @typedef {import("./view.js").View} View
 * @typedef {object} Theme colours, as a canvas takes them
 * @property {string} text
 * @property {string} faint
 * @property {string} F
 * @property {string} C
 * @property {string} A
 * @property {string} letter on a bar
 * @property {string} alert for steps that did not run as planned
 * @property {string} error for forecast errors
 * @property {string} indicator for the gain or agreement of an adaptive predictor
 * @typedef {object} Frame
 * @property {number} left
 * @property {number} bar width of a bar with its gap, in CSS pixels
 * @property {number} top
 * @property {number} bottom
 * @property {number} strip height of the time strip below the bars, 0 without one
 */

/** Height of a bar as a share of the plot; it tells the kinds apart without colour. @type {Record<string, number>} */
export const HEIGHTS = { F: 1, C: 0.6, A: 0.3 };

const SIDE = 8, ABOVE = 9, TICKS = 14, STRIP = 18, GAP = 4;
const LETTER_FROM = 9, LETTER_HEIGHT = 12;

/** The layout of the plot. @param {View} view @param {number} width @param {number} height @returns {Frame} */
export function frameOf(view, width, height) {
  const strip = view.bars.some((bar) => bar.ran) ? STRIP : 0;
  const bottom = height - TICKS - (strip ? strip + GAP : 0);
  return { left: SIDE, bar: Math.max(0, width - 2 * SIDE) / Math.max(1, view.bars.length), top: ABOVE, bottom, strip };
}

/** The step at a horizontal position, or -1. @param {View} view @param {number} x @param {number} width */
export function stepAt(view, x, width) {
  const { left, bar } = frameOf(view, width, 0);
  const index = Math.floor((x - left) / bar);
  return index >= 0 && index < view.bars.length ? index : -1;
}

/** Heights of the bars, 0..1. @param {View} view */
export const heightsOf = (view) => view.bars.map((bar) => HEIGHTS[bar.actual]);

/**
 * @param {CanvasRenderingContext2D} ctx in CSS pixels
 * @param {number} width @param {number} height
 * @param {View} view
 * @param {{theme: Theme, heights: number[], selected: number, hovered: number}} look selected and hovered are step indices or -1
 */
export function draw(ctx, width, height, view, { theme, heights, selected, hovered }) {
  ctx.clearRect(0, 0, width, height);
  if (!view.bars.length) return;
  const frame = frameOf(view, width, height);
  drawBars(ctx, frame, view, theme, heights, hovered);
  drawSigmas(ctx, frame, view, theme);
  drawLetters(ctx, frame, view, theme, heights);
  drawErrors(ctx, frame, view, theme);
  drawIndicator(ctx, frame, view, theme);
  drawTimes(ctx, frame, view, theme, height);
  drawTicks(ctx, frame, view, theme, width, height);
  if (selected >= 0 && selected < view.bars.length) {
    ctx.strokeStyle = theme.text;
    ctx.lineWidth = 1.5;
    ctx.strokeRect(frame.left + selected * frame.bar - 0.5, frame.top - 4, Math.max(2, frame.bar), frame.bottom - frame.top + 5);
  }
}

/**
 * @param {CanvasRenderingContext2D} ctx @param {Frame} frame @param {View} view @param {Theme} theme
 * @param {number[]} heights @param {number} hovered
 */
function drawBars(ctx, { left, bar, top, bottom }, view, theme, heights, hovered) {
  const full = bottom - top, gap = bar > 4 ? Math.min(2, bar * 0.2) : 0, wide = bar - gap;
  view.bars.forEach((step, i) => {
    const x = left + i * bar + gap / 2, tall = full * (heights[i] ?? HEIGHTS[step.actual]);
    ctx.globalAlpha = isAhead(view, step) ? 0.35 : i === hovered ? 1 : 0.88;
    ctx.fillStyle = theme[/** @type {"F" | "C" | "A"} */ (step.actual)];
    ctx.fillRect(x, bottom - tall, wide, tall);
    ctx.globalAlpha = 1;
    if (step.changed) {
      const planned = full * HEIGHTS[step.planned];
      ctx.strokeStyle = theme.alert;
      ctx.lineWidth = 1;
      ctx.setLineDash([2, 2]);
      ctx.strokeRect(x + 0.5, bottom - planned + 0.5, Math.max(1, wide - 1), planned - 1);
      ctx.setLineDash([]);
      const middle = x + wide / 2, half = Math.max(2, Math.min(4, bar / 2));
      ctx.fillStyle = theme.alert;
      ctx.beginPath();
      ctx.moveTo(middle - half, top - 2);
      ctx.lineTo(middle + half, top - 2);
      ctx.lineTo(middle, top - 3 - 1.4 * half);
      ctx.fill();
    }
  });
}

/** Whether the sampler has not reached a step yet, or was stopped before it. @param {View} view @param {import("./view.js").Bar} step */
const isAhead = (view, step) => view.mode !== "plan" && !step.ran;

/**
 * @param {CanvasRenderingContext2D} ctx @param {Frame} frame @param {View} view @param {Theme} theme
 * @param {number[]} heights
 */
function drawLetters(ctx, { left, bar, top, bottom }, view, theme, heights) {
  if (bar < LETTER_FROM) return;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.font = "600 9px system-ui, sans-serif";
  ctx.fillStyle = theme.letter;
  view.bars.forEach((step, i) => {
    if ((bottom - top) * (heights[i] ?? 0) < LETTER_HEIGHT) return;
    ctx.globalAlpha = isAhead(view, step) ? 0.6 : 1;
    ctx.fillText(step.actual, left + (i + 0.5) * bar, bottom - 7);
  });
  ctx.globalAlpha = 1;
}

/** @param {CanvasRenderingContext2D} ctx @param {Frame} frame @param {View} view @param {Theme} theme */
function drawSigmas(ctx, { left, bar, top, bottom }, view, theme) {
  const most = Math.max(...view.bars.map((step) => step.sigma)) || 1;
  /** @type {[number, number][]} */
  const points = view.bars.map((step, i) => [left + i * bar, bottom - ((bottom - top) * Math.max(0, step.sigma)) / most]);
  points.push([left + view.bars.length * bar, bottom]);
  ctx.strokeStyle = theme.text;
  ctx.lineWidth = 1.5;
  ctx.lineJoin = "round";
  const known = view.sigmas === "planned" ? 0 : view.mode === "running" || view.stopped ? view.done : points.length;
  for (const [part, dash] of [[points.slice(0, known), []], [points.slice(Math.max(0, known - 1)), [5, 3]]]) {
    ctx.beginPath();
    for (const [x, y] of /** @type {[number, number][]} */ (part)) ctx.lineTo(x, y);
    ctx.setLineDash(/** @type {number[]} */ (dash));
    ctx.stroke();
  }
  ctx.setLineDash([]);
}

/** @param {CanvasRenderingContext2D} ctx @param {Frame} frame @param {View} view @param {Theme} theme */
function drawErrors(ctx, { left, bar, top, bottom }, view, theme) {
  const most = Math.max(0, ...view.bars.map((step) => Math.max(step.error ?? 0, step.expected ?? 0)));
  if (!most) return;
  /** @param {number} error */
  const heightOf = (error) => bottom - (bottom - top) * 0.9 * (error / most);
  ctx.strokeStyle = theme.error;
  ctx.lineWidth = 1.5;
  view.bars.forEach((step, i) => { // expected: a dash across the step
    if (step.expected === null) return;
    ctx.beginPath();
    ctx.moveTo(left + i * bar, heightOf(step.expected));
    ctx.lineTo(left + (i + 1) * bar, heightOf(step.expected));
    ctx.stroke();
  });
  ctx.fillStyle = theme.error;
  ctx.strokeStyle = theme.letter;
  ctx.lineWidth = 1;
  view.bars.forEach((step, i) => {
    if (step.error === null) return;
    const x = left + (i + 0.5) * bar, y = heightOf(step.error), half = Math.max(2, Math.min(4, bar / 2));
    ctx.beginPath();
    ctx.moveTo(x - half, y);
    ctx.lineTo(x, y - half);
    ctx.lineTo(x + half, y);
    ctx.lineTo(x, y + half);
    ctx.closePath();
    ctx.fill();
    ctx.stroke();
  });
}

/** From its smallest value to its largest. @param {CanvasRenderingContext2D} ctx @param {Frame} frame @param {View} view @param {Theme} theme */
function drawIndicator(ctx, { left, bar, top, bottom }, view, theme) {
  const known = view.bars.flatMap((step) => (step.indicator === null ? [] : [step.indicator]));
  const low = Math.min(...known), span = Math.max(...known) - low || 1;
  ctx.strokeStyle = theme.indicator;
  ctx.lineWidth = 1.5;
  ctx.beginPath();
  let joined = false;
  view.bars.forEach(({ indicator }, i) => {
    const x = left + (i + 0.5) * bar;
    if (indicator !== null) ctx[joined ? "lineTo" : "moveTo"](x, bottom - (bottom - top) * (0.05 + 0.9 * ((indicator - low) / span)));
    joined = indicator !== null;
  });
  ctx.stroke();
}

/** @param {CanvasRenderingContext2D} ctx @param {Frame} frame @param {View} view @param {Theme} theme @param {number} height */
function drawTimes(ctx, { left, bar, strip }, view, theme, height) {
  if (!strip) return;
  const times = view.bars.map((step) => step.milliseconds ?? 0);
  const full = times.filter((_, i) => view.bars[i].ran && view.bars[i].actual === "F").sort((a, b) => a - b);
  // The first step often includes loading the model, so the median full step sets the scale.
  const most = 1.3 * (full.length ? full[Math.floor(full.length / 2)] : Math.max(...times)) || 1;
  const gap = bar > 4 ? Math.min(2, bar * 0.2) : 0;
  ctx.fillStyle = theme.faint;
  times.forEach((time, i) => {
    const tall = strip * Math.min(1, time / most);
    if (view.bars[i].ran) ctx.fillRect(left + i * bar + gap / 2, height - tall, bar - gap, Math.max(1, tall));
  });
}

/**
 * @param {CanvasRenderingContext2D} ctx @param {Frame} frame @param {View} view @param {Theme} theme
 * @param {number} width @param {number} height
 */
function drawTicks(ctx, { left, bar, bottom }, view, theme, width, height) {
  const steps = view.bars.length, room = 26;
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((n) => n * bar >= room) ?? steps;
  ctx.fillStyle = theme.text;
  ctx.globalAlpha = 0.7;
  ctx.font = "9px system-ui, sans-serif";
  ctx.textAlign = "center";
  ctx.textBaseline = "top";
  for (let n = every === 1 ? 1 : 0; n <= steps; n += every) {
    const step = Math.max(1, n);
    const half = ctx.measureText(String(step)).width / 2;
    ctx.fillText(String(step), Math.min(width - half, left + (step - 0.5) * bar), Math.min(bottom + 3, height - 10));
  }
  ctx.globalAlpha = 1;
}
