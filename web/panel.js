/** The page element of the schedule plot: canvas, legend, sentences, keyboard and pointer. Needs a page, but no ComfyUI. */

import { addStyle, make } from "./elements.js";
import { BUILDER } from "./node_ids.js";
import { draw, heightsOf, stepAt } from "./plot.js";
import { LETTERS } from "./schedule.js";
import { describe, nextKind, spelled } from "./sentences.js";
import { KIND_NAMES } from "./wording.js";

/**
 * @typedef {import("./view.js").View} View
 * @typedef {object} Hooks
 * @property {(index: number, kind: string) => void} [edit] the user gave a step another kind
 * @property {() => void} [reset] the user cleared the explicit list
 */

/** The element keeps its height whatever its text, so that it does not change the node's size, which the workflow saves. */
export const MIN_HEIGHT = 300;
const STYLE = `
.dual-cache { --dc-F: #4c8dff; --dc-C: #f0a52b; --dc-A: #8b93a1; --dc-letter: #10131a; --dc-alert: #ff6b6b; --dc-error: #d86bff;
  --dc-indicator: #3fd0a0;
  --dc-text: var(--input-text, #ddd); --dc-back: var(--comfy-input-bg, #222); --dc-line: var(--border-color, #4e4e4e);
  display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; contain: size;
  min-height: ${MIN_HEIGHT}px; padding: 6px 6px 4px;
  color: var(--dc-text); background: var(--dc-back); border: 1px solid var(--dc-line); border-radius: 6px; overflow: hidden;
  font: 11px/1.35 system-ui, sans-serif; user-select: none; text-align: start; }
.dual-cache[data-light] { --dc-F: #2f6fe0; --dc-C: #d98a00; --dc-A: #9aa1ad; --dc-letter: #0b0d12; --dc-alert: #c81e1e;
  --dc-error: #9b1fd1; --dc-indicator: #0a7d5a; }
/* Nodes 2.0 */
[data-node-id] .dual-cache { --dc-back: var(--component-node-widget-background, var(--comfy-input-bg, #222)); }
.dual-cache-frame { position: relative; flex: 1 1000 100px; min-height: 64px; border-radius: 4px; outline: none; }
.dual-cache-frame:focus-visible { box-shadow: 0 0 0 2px var(--dc-F); }
.dual-cache[data-editable] .dual-cache-frame { cursor: pointer; }
.dual-cache-frame canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.dual-cache-text { flex: 0 1 auto; min-height: 0; overflow: hidden auto; scrollbar-width: thin; }
.dual-cache-text > * { margin-block-end: 3px; }
.dual-cache-head { display: flex; align-items: start; }
.dual-cache-legend { display: flex; flex-wrap: wrap; gap: 1px 9px; align-items: center; opacity: .85; }
.dual-cache-legend span::before { content: ""; display: inline-block; width: 9px; height: 9px; margin-inline-end: 4px; border-radius: 2px; }
.dual-cache-legend .F::before { background: var(--dc-F); }
.dual-cache-legend .C::before { background: var(--dc-C); height: 6px; }
.dual-cache-legend .A::before { background: var(--dc-A); height: 3px; }
.dual-cache-legend .sigma::before { width: 14px; height: 0; border-top: 2px solid currentColor; vertical-align: 3px; border-radius: 0; }
.dual-cache-legend .sigma.planned::before { border-top-style: dashed; }
.dual-cache-legend .changed::before { background: var(--dc-alert); clip-path: polygon(50% 0, 100% 100%, 0 100%); }
.dual-cache-legend .error::before { background: var(--dc-error); clip-path: polygon(50% 0, 100% 50%, 50% 100%, 0 50%); }
.dual-cache-legend .expected::before { width: 14px; height: 0; border-top: 2px solid var(--dc-error); vertical-align: 3px; border-radius: 0; }
.dual-cache-legend .indicator::before { width: 14px; height: 0; border-top: 2px solid var(--dc-indicator); vertical-align: 3px;
  border-radius: 0; }
.dual-cache-legend .time::before { background: currentColor; opacity: .4; width: 3px; margin-inline-end: 5px; border-radius: 0; }
.dual-cache p { margin: 0; }
.dual-cache-warnings { color: var(--dc-text); }
.dual-cache-warnings p { padding-inline-start: 7px; border-inline-start: 2px solid var(--dc-C); }
.dual-cache-warnings .error { border-inline-start-color: var(--dc-alert); }
.dual-cache-detail { min-height: 4.05em; opacity: .85; }
.dual-cache button { flex: none; margin-inline-start: auto; padding: 0 6px; font: inherit; color: inherit; background: transparent;
  cursor: pointer; border: 1px solid var(--dc-line); border-radius: 4px; transition: border-color .12s; }
.dual-cache button[hidden] { display: none; }
.dual-cache button:hover, .dual-cache button:focus-visible { border-color: currentColor; }
.dual-cache-hidden { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
@media (prefers-reduced-motion: reduce) { .dual-cache button { transition: none; } }
`;
const MOST_SCALE = 4;
const CLICK = 4; // pixels that the pointer may move in a click
const SETTLED = 0.005;
let numbered = 0;

export class SchedulePanel {
  /** @param {Hooks} [hooks] */
  constructor(hooks = {}) {
    this.hooks = hooks;
    /** @type {View | null} */
    this.view = null;
    this.selected = -1;
    this.hovered = -1;
    this.focused = false;
    this.focusedAt = -Infinity; // time of the last change of focus
    /** @type {number[]} */
    this.heights = [];
    this.pressed = [0, 0]; // where the pointer went down
    this.frameRequest = 0;
    this.draws = 0;
    /** @type {AbortController | null} */
    this.connection = null;
    addStyle("dual-cache-style", STYLE);
    const id = `dual-cache-${++numbered}`;
    this.element = make("div", "dual-cache");
    this.frame = make("div", "dual-cache-frame");
    this.canvas = /** @type {HTMLCanvasElement} */ (make("canvas"));
    this.text = make("div", "dual-cache-text");
    this.head = make("div", "dual-cache-head");
    this.legend = make("div", "dual-cache-legend");
    this.legend.setAttribute("aria-hidden", "true");
    this.summary = make("div", "dual-cache-summary");
    this.warnings = make("div", "dual-cache-warnings");
    this.detail = make("p", "dual-cache-detail");
    this.spelled = make("p", "dual-cache-hidden");
    this.live = make("p", "dual-cache-hidden");
    this.live.setAttribute("aria-live", "polite");
    this.reset = make("button", "", "Clear list");
    this.reset.setAttribute("type", "button");
    this.reset.title = "Clears explicit, so that the settings above make the plan again.";
    this.spelled.id = id;
    this.frame.tabIndex = 0;
    this.frame.setAttribute("role", "application");
    this.frame.setAttribute("aria-roledescription", "schedule plot");
    this.frame.setAttribute("aria-describedby", id);
    this.canvas.setAttribute("role", "img");
    this.frame.append(this.canvas);
    this.head.append(this.legend, this.reset);
    this.text.append(this.head, this.summary, this.warnings, this.detail);
    this.element.append(this.frame, this.text, this.spelled, this.live);
  }

  /** Starts listening; `disconnect` undoes all of it. */
  connect() {
    if (this.connection) return;
    this.connection = new AbortController();
    const { signal } = this.connection;
    const observer = this.observer = new ResizeObserver(() => this.request());
    /** @param {string} type @param {(event: any) => void} handler */
    const on = (type, handler) => this.frame.addEventListener(type, handler, { signal });
    on("pointermove", (event) => this.hover(this.indexAt(event)));
    on("pointerleave", () => this.hover(-1));
    on("pointerdown", (event) => { this.pressed = [event.clientX, event.clientY]; });
    on("click", (event) => {
      const [x, y] = this.pressed;
      if (Math.hypot(event.clientX - x, event.clientY - y) <= CLICK) this.click(this.indexAt(event));
    });
    on("keydown", (event) => this.key(event));
    on("focus", () => this.focus(true));
    on("blur", () => this.focus(false));
    this.reset.addEventListener("click", () => this.hooks.reset?.(), { signal });
    observer.observe(this.frame);
    this.stillness = matchMedia("(prefers-reduced-motion: reduce)");
    this.watchDensity(signal);
    this.request();
  }

  disconnect() {
    this.connection?.abort();
    this.connection = null;
    this.observer?.disconnect();
    cancelAnimationFrame(this.frameRequest);
    this.frameRequest = 0;
  }

  /** Redraws when the page is zoomed or moves to a screen of another density. @param {AbortSignal} signal */
  watchDensity(signal) {
    const query = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    query.addEventListener("change", () => {
      this.request();
      this.watchDensity(signal);
    }, { signal, once: true });
  }

  /** @param {View} view */
  update(view) {
    const before = this.view;
    this.view = view;
    if (this.selected >= view.bars.length) this.selected = view.bars.length - 1;
    if (this.hovered >= view.bars.length) this.hovered = -1;
    this.element.toggleAttribute("data-editable", view.editable);
    this.frame.setAttribute("aria-label", `Cache schedule. ${view.summary[0] ?? view.error ?? ""}`);
    this.canvas.setAttribute("aria-label", view.summary.join(" ") || "No schedule.");
    this.spelled.textContent = `${spelled(view)} ${this.usage()}`;
    const [headline, ...more] = view.summary;
    this.summary.replaceChildren(...[headline, more.join(" ")].filter(Boolean).map((line) => make("p", "", line)));
    this.warnings.replaceChildren(...view.warnings.map((line) => make("p", view.error ? "error" : "", line)));
    this.legend.replaceChildren(...this.legendItems());
    this.reset.hidden = !view.listed || view.node !== BUILDER;
    // A Cache Schedule Builder shows the run of another node, whose own plot announces it.
    if (before?.mode === "running" && view.mode === "ran" && view.node !== BUILDER) this.live.textContent = view.summary.join(" ");
    this.tell();
    this.request();
  }

  usage() {
    const steps = "Left and right arrows move from step to step.";
    return this.view?.editable ? `${steps} Enter changes the kind; the keys F, C and A set it.` : steps;
  }

  legendItems() {
    const view = this.view;
    if (!view?.bars.length) return [];
    const kinds = new Set(view.bars.map((bar) => bar.actual));
    const items = [...LETTERS].filter((kind) => kinds.has(kind)).map((kind) => make("span", kind, KIND_NAMES[kind]));
    items.push(make("span", `sigma ${view.sigmas}`, view.sigmas === "planned" ? "noise level, planned" : "noise level"));
    if (view.bars.some((bar) => bar.changed)) items.push(make("span", "changed", "not as planned"));
    if (view.bars.some((bar) => bar.expected !== null)) items.push(make("span", "expected", "expected error"));
    if (view.bars.some((bar) => bar.error !== null)) items.push(make("span", "error", "forecast error"));
    if (view.bars.some((bar) => bar.indicator !== null)) items.push(make("span", "indicator", "indicator"));
    if (view.bars.some((bar) => bar.ran)) items.push(make("span", "time", "time"));
    return items;
  }

  /** Shows the sentence about the hovered or selected step and publishes the state for tests. @param {boolean} [aloud] also to screen readers */
  tell(aloud = false) {
    const { view } = this;
    if (!view) return;
    const index = this.hovered >= 0 ? this.hovered : this.focused ? this.selected : -1;
    const idle = !view.bars.length ? "" : view.editable ? "Click a bar to change its step." : "Point at a bar to read about its step.";
    const sentence = index >= 0 ? describe(view, index) : idle;
    this.detail.textContent = sentence;
    if (aloud) this.live.textContent = sentence;
    const { selected, hovered, draws } = this;
    /** @type {any} */ (this.element).__dualCache = { ...view, selected, hovered, draws, detail: sentence };
  }

  /** @param {{clientX: number}} event */
  indexAt({ clientX }) {
    const box = this.frame.getBoundingClientRect(); // includes the zoom of the graph
    const width = this.frame.clientWidth;
    return this.view && box.width ? stepAt(this.view, ((clientX - box.left) * width) / box.width, width) : -1;
  }

  /** @param {number} index */
  hover(index) {
    if (index === this.hovered) return;
    this.hovered = index;
    this.tell();
    this.request();
  }

  /** @param {boolean} focused */
  focus(focused) {
    this.focused = focused;
    this.focusedAt = performance.now();
    if (focused && this.selected < 0 && this.view?.bars.length) this.selected = 0;
    this.tell();
    this.request();
  }

  /** @param {number} index */
  click(index) {
    const { view } = this;
    if (index < 0 || !view) return;
    this.selected = index;
    if (view.editable) this.change(nextKind(view.bars[index].planned));
    this.tell();
    this.request();
  }

  /** @param {string} kind */
  change(kind) {
    const { view, selected } = this;
    if (view?.editable && selected > 0 && view.bars[selected].planned !== kind) this.hooks.edit?.(selected, kind);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { view } = this;
    if (!view?.bars.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = Math.max(0, this.selected), last = view.bars.length - 1, far = Math.max(1, Math.round(last / 10));
    /** @type {Record<string, number>} */
    const moves = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last, PageUp: at + far, PageDown: at - far,
    };
    const letter = event.key.toUpperCase();
    if (Object.hasOwn(moves, event.key)) this.selected = Math.min(last, Math.max(0, moves[event.key]));
    else if (view.editable && (event.key === "Enter" || event.key === " ")) this.change(nextKind(view.bars[at].planned));
    else if (view.editable && letter.length === 1 && LETTERS.includes(letter)) this.change(letter);
    else return;
    // ComfyUI's graph uses most of these keys too.
    event.preventDefault();
    event.stopPropagation();
    this.hovered = -1;
    this.tell(true);
    this.request();
  }

  /** Draws once in the next frame, however often it is called. */
  request() {
    if (!this.connection || this.frameRequest) return;
    this.frameRequest = requestAnimationFrame(() => {
      this.frameRequest = 0;
      this.paint();
    });
  }

  paint() {
    const { view, frame, canvas } = this;
    const width = frame.clientWidth, height = frame.clientHeight;
    if (!view || !width || !height) return;
    const zoom = frame.getBoundingClientRect().width / width;
    const scale = Math.min(MOST_SCALE, Math.max(1, Math.ceil(zoom * devicePixelRatio * 4) / 4));
    const pixels = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
    const ctx = canvas.getContext("2d");
    if (!ctx) return;
    ctx.setTransform(scale, 0, 0, scale, 0, 0);
    const moving = this.moveHeights(view);
    const selected = this.focused ? this.selected : -1;
    draw(ctx, width, height, view, { theme: this.theme(), heights: this.heights, selected, hovered: this.hovered });
    /** @type {any} */ (this.element).__dualCache.draws = ++this.draws;
    if (moving) this.request();
  }

  /** Moves the drawn heights towards the heights of the view; true while they still move. @param {View} view */
  moveHeights(view) {
    const wanted = heightsOf(view);
    if (this.stillness?.matches || this.heights.length !== wanted.length) this.heights = wanted;
    this.heights = this.heights.map((height, i) => {
      const rest = wanted[i] - height;
      return Math.abs(rest) < SETTLED ? wanted[i] : height + 0.35 * rest;
    });
    return this.heights.some((height, i) => height !== wanted[i]);
  }

  theme() {
    const style = getComputedStyle(this.element);
    const unit = style.color.startsWith("rgb") ? 1 : 255; // color(srgb 1 1 1) counts to 1
    const [red, green, blue] = (style.color.match(/[\d.]+/g) ?? ["220", "220", "220"]).map((part) => unit * Number(part));
    // Dark text means a light theme, whatever the name of the palette.
    this.element.toggleAttribute("data-light", 0.3 * red + 0.59 * green + 0.11 * blue < 128);
    /** @param {string} name */
    const colour = (name) => style.getPropertyValue(`--dc-${name}`).trim();
    const faint = `rgb(${red} ${green} ${blue} / 40%)`;
    return {
      text: style.color, faint, F: colour("F"), C: colour("C"), A: colour("A"), letter: colour("letter"), alert: colour("alert"),
      error: colour("error"), indicator: colour("indicator"),
    };
  }
}
