/** Makes page elements and adds style sheets, for panels that also work in a page without ComfyUI. */

/** @param {string} tag @param {string} [name] @param {string} [text] @returns {any} */
export function make(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return made;
}

/** Adds a style sheet to the page, once. @param {string} id @param {string} text */
export function addStyle(id, text) {
  if (document.getElementById(id)) return;
  const style = make("style", "", text);
  style.id = id;
  document.head.append(style);
}
