/** The page element of Cache Compare: two pictures under a slider, differences, a table. Needs a page, but no ComfyUI. */

import { firstChoice, fitted, legend, moved, sidesOf, spelled, spokenPlace, within } from "./compare_view.js";
import { addStyle, make } from "./elements.js";

/**
 * @typedef {import("./compare_view.js").Comparison} Comparison
 * @typedef {import("./compare_view.js").Choice} Choice
 * @typedef {import("./compare_view.js").File} File
 */

/** The element keeps its height whatever it shows, so that it does not change the node's size, which the workflow saves. */
export const MIN_HEIGHT = 420;
const STYLE = `
.dual-cache-compare { --dc-line: var(--border-color, #4e4e4e); display: flex; flex-direction: column; gap: 5px; box-sizing: border-box;
  contain: size; min-height: ${MIN_HEIGHT}px; padding: 6px; overflow: hidden; text-align: start; user-select: none;
  color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border: 1px solid var(--dc-line); border-radius: 6px;
  font: 11px/1.35 system-ui, sans-serif; }
[data-node-id] .dual-cache-compare { background: var(--component-node-widget-background, var(--comfy-input-bg, #222)); }
.dual-cache-compare [hidden] { display: none; }
.dual-cache-stage { position: relative; flex: 1 1 200px; min-height: 120px; overflow: hidden; border-radius: 4px; outline: none;
  cursor: ew-resize; touch-action: none; background: #0004; }
.dual-cache-stage:focus-visible { box-shadow: 0 0 0 2px #4c8dff; }
.dual-cache-stage img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; pointer-events: none; }
.dual-cache-stage i { position: absolute; top: 0; bottom: 0; width: 2px; margin-inline-start: -1px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none; }
.dual-cache-stage span { position: absolute; top: 4px; padding: 1px 5px; border-radius: 3px; color: #fff; background: #000a;
  pointer-events: none; }
.dual-cache-stage span:first-of-type { left: 4px; }
.dual-cache-stage span:last-of-type { right: 4px; }
.dual-cache-choices { display: flex; flex: none; flex-wrap: wrap; gap: 4px; align-items: center; }
.dual-cache-choices label { display: flex; gap: 4px; align-items: center; flex: 1 1 120px; }
.dual-cache-choices input { flex: 1; min-width: 40px; margin: 0; }
.dual-cache-compare button { padding: 1px 8px; font: inherit; color: inherit; background: transparent; cursor: pointer;
  border: 1px solid var(--dc-line); border-radius: 4px; }
.dual-cache-compare button[aria-pressed=true] { border-color: currentColor; box-shadow: inset 0 0 0 1px currentColor; }
.dual-cache-compare button:focus-visible, .dual-cache-compare button:hover { border-color: currentColor; }
.dual-cache-figures { flex: 0 1 auto; min-height: 70px; overflow: auto; scrollbar-width: thin; user-select: text; }
.dual-cache-figures table { border-collapse: collapse; }
.dual-cache-figures :is(th, td) { padding: 0 8px 1px 0; text-align: end; font-weight: 400; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.dual-cache-figures :is(th, td):first-child { text-align: start; }
.dual-cache-figures thead { opacity: .75; }
.dual-cache-compare p { margin: 3px 0 0; opacity: .85; }
.dual-cache-unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
`;
const WAITING = "The comparison appears here after a run.";

export class ComparePanel {
  /** @param {(file: File) => string} addressOf where a picture is served */
  constructor(addressOf) {
    this.addressOf = addressOf;
    /** @type {Comparison | null} */
    this.data = null;
    /** @type {Choice | null} */
    this.choice = null;
    /** @type {AbortController | null} */
    this.connection = null;
    addStyle("dual-cache-compare-style", STYLE);
    this.element = make("div", "dual-cache-compare");
    this.stage = make("div", "dual-cache-stage");
    this.stage.tabIndex = 0;
    for (const [name, value] of Object.entries({ role: "slider", "aria-valuemin": "0", "aria-valuemax": "100", "aria-orientation": "horizontal" })) {
      this.stage.setAttribute(name, value);
    }
    this.stage.setAttribute("aria-label", "Boundary between the two pictures");
    this.left = make("img");
    this.right = make("img");
    this.line = make("i");
    this.leftName = make("span");
    this.rightName = make("span");
    for (const picture of [this.left, this.right]) {
      picture.alt = ""; // the slider says what is seen
      picture.draggable = false;
    }
    this.stage.append(this.left, this.right, this.line, this.leftName, this.rightName);
    this.choices = make("div", "dual-cache-choices");
    this.choices.setAttribute("role", "group");
    this.choices.setAttribute("aria-label", "What to compare with");
    this.figures = make("div", "dual-cache-figures");
    this.figures.tabIndex = 0;
    this.figures.setAttribute("role", "region");
    this.figures.setAttribute("aria-label", "Figures of the comparison");
    this.figures.dataset.captureWheel = "true"; // Nodes 2.0: while it has the focus
    this.hint = make("p", "", WAITING);
    this.live = make("div", "dual-cache-unseen");
    this.live.setAttribute("aria-live", "polite");
    this.element.append(this.hint, this.stage, this.choices, this.figures, this.live);
    this.show(null);
  }

  /** Starts listening; `disconnect` undoes all of it. */
  connect() {
    if (this.connection) return;
    this.connection = new AbortController();
    const { signal } = this.connection, { stage } = this;
    /** @param {HTMLElement} element @param {string} type @param {(event: any) => void} handler */
    const on = (element, type, handler) => element.addEventListener(type, handler, { signal });
    on(stage, "pointerdown", (event) => {
      if (event.button !== 0) return; // the middle button moves the graph
      event.stopPropagation(); // a node is dragged by it
      stage.focus({ preventScroll: true });
      stage.setPointerCapture(event.pointerId);
      this.follow(event);
    });
    on(stage, "pointermove", (event) => {
      if (!stage.hasPointerCapture(event.pointerId)) return;
      event.stopPropagation();
      this.follow(event);
    });
    on(stage, "keydown", (event) => this.key(event));
    for (const element of [this.choices, this.figures]) {
      on(element, "pointerdown", (event) => event.button === 0 && event.stopPropagation());
    }
    on(this.choices, "click", ({ target }) => this.press(target.closest("button")));
    on(this.choices, "input", ({ target }) => this.choose({ frame: Number(target.value) }));
    on(this.choices, "keydown", (event) => event.stopPropagation()); // the graph has keys of its own
    for (const picture of [this.left, this.right]) on(picture, "error", () => this.fail());
  }

  disconnect() {
    this.connection?.abort();
    this.connection = null;
  }

  /** @param {Comparison | null} data */
  show(data) {
    this.data = data;
    for (const part of [this.stage, this.choices, this.figures]) part.hidden = !data;
    this.hint.hidden = Boolean(data);
    this.hint.textContent = WAITING;
    if (!data) {
      this.choice = null;
      for (const picture of [this.left, this.right]) picture.removeAttribute("src");
      this.publish();
      return;
    }
    const same = this.choice && this.choice.frame < data.shown.frames.length;
    this.choice = fitted(data, same ? /** @type {Choice} */ (this.choice) : firstChoice(data));
    this.listChoices(data);
    this.listFigures(data);
    this.live.textContent = spelled(data);
    this.draw();
  }

  /** @param {Comparison} data */
  listChoices({ ways, shown, video }) {
    const buttons = ways.slice(1).map((way, i) => {
      const button = make("button", "", way.name);
      button.dataset.way = String(i + 1);
      return button;
    });
    const difference = make("button", "", "difference");
    difference.dataset.difference = "";
    buttons.push(difference);
    for (const button of buttons) button.type = "button";
    this.choices.replaceChildren(...buttons);
    if (shown.frames.length < 2) return;
    const label = make("label", "", video ? "frame" : "picture"), slider = make("input");
    Object.assign(slider, { type: "range", min: "0", max: String(shown.frames.length - 1), step: "1" });
    slider.setAttribute("aria-label", video ? "Frame" : "Picture");
    label.append(slider);
    this.choices.append(label);
  }

  /** @param {Comparison} data */
  listFigures(data) {
    const [heading, ...rows] = data.table, table = make("table"), head = make("thead"), body = make("tbody");
    /** @param {string[]} cells @param {boolean} top */
    const row = (cells, top) => {
      const made = make("tr");
      made.append(...cells.map((cell, i) => {
        const part = make(top || !i ? "th" : "td", "", cell);
        if (part.tagName === "TH") part.setAttribute("scope", top ? "col" : "row");
        return part;
      }));
      return made;
    };
    head.append(row(heading, true));
    body.append(...rows.map((cells) => row(cells, false)));
    table.append(make("caption", "dual-cache-unseen", "Cost and closeness of each run"), head, body);
    this.figures.replaceChildren(table, ...[legend(data), ...data.notes].map((note) => make("p", "", note)));
  }

  /** @param {Partial<Choice>} change */
  choose(change) {
    if (!this.data || !this.choice) return;
    this.choice = fitted(this.data, { ...this.choice, ...change });
    this.draw();
  }

  /** @param {HTMLButtonElement | null} button */
  press(button) {
    if (!button || !this.choice) return;
    if (button.dataset.way) this.choose({ way: Number(button.dataset.way) });
    else this.choose({ difference: !this.choice.difference });
  }

  /** @param {PointerEvent} event */
  follow({ clientX }) {
    const box = this.stage.getBoundingClientRect();
    if (box.width) this.choose({ split: within((100 * (clientX - box.left)) / box.width) });
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (!this.choice || event.ctrlKey || event.metaKey || event.altKey) return;
    const split = moved(event.key, this.choice.split);
    if (split === null) return;
    event.preventDefault();
    event.stopPropagation(); // the graph has keys of its own
    this.choose({ split });
  }

  draw() {
    const { data, choice, stage } = this;
    if (!data || !choice) return;
    const { left, right, names, frame } = sidesOf(data, choice), split = `${choice.split}%`;
    for (const [picture, file] of /** @type {[HTMLImageElement, File][]} */ ([[this.left, left], [this.right, right]])) {
      const address = this.addressOf(file);
      if (picture.getAttribute("src") !== address) picture.src = address;
    }
    this.left.style.clipPath = `inset(0 ${100 - choice.split}% 0 0)`;
    this.right.style.clipPath = `inset(0 0 0 ${split})`;
    this.line.style.left = split;
    this.leftName.textContent = names[0] + (frame && `, ${frame}`);
    this.rightName.textContent = names[1];
    stage.setAttribute("aria-valuenow", String(Math.round(choice.split)));
    stage.setAttribute("aria-valuetext", spokenPlace(data, choice));
    for (const button of this.choices.querySelectorAll("button")) {
      const on = button.dataset.way ? Number(button.dataset.way) === choice.way : choice.difference;
      button.setAttribute("aria-pressed", String(on));
    }
    const slider = this.choices.querySelector("input");
    if (slider) slider.value = String(choice.frame);
    slider?.setAttribute("aria-valuetext", frame);
    this.publish();
  }

  /** ComfyUI deletes the pictures from its temporary folder when it starts. */
  fail() {
    if (!this.data) return;
    this.hint.textContent = "ComfyUI's temporary folder no longer holds the pictures. Run again to see them.";
    this.hint.hidden = false;
    this.stage.hidden = true;
  }

  /** For tests. */
  publish() {
    this.element.__dualCacheCompare = this.data && { ...this.choice, ways: this.data.ways.map((way) => way.name) };
  }
}
