"use strict";
// What every section draws with: elements, colours, and maps of numbers that are read by pointer or keyboard.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const clamp = (place, count) => Math.min(count - 1, Math.max(0, place));
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

// Maps of rows x columns bytes, each between its own low and high.
class Maps {
  constructor({ shape, low, high, bytes }) {
    [this.count, this.rows, this.columns] = shape;
    Object.assign(this, { low, high, bytes: bytesOf(bytes) });
  }
  share(map, row, column) {
    return this.bytes[(map * this.rows + row) * this.columns + column] / 255;
  }
  value(map, row, column) {
    return this.low[map] + this.share(map, row, column) * (this.high[map] - this.low[map]);
  }
}

// A scale's 256 colours, between those that the style names.
function colorsOf(scale) {
  const stops = getComputedStyle(document.documentElement).getPropertyValue(`--${scale}`).split(",").map((hex) => {
    const number = parseInt(hex.trim().slice(1), 16);
    return [number >> 16, (number >> 8) & 255, number & 255];
  });
  return Array.from({ length: 256 }, (_, n) => {
    const place = (n / 255) * (stops.length - 1), left = Math.min(Math.floor(place), stops.length - 2);
    return stops[left].map((value, channel) => value + (stops[left + 1][channel] - value) * (place - left));
  });
}

// Draws a view, one pixel a cell, which the style enlarges. A view is { rows, columns, share(row, column) from 0 to 1,
// scale, curve }.
function paint(canvas, view) {
  const colors = colorsOf(view.scale);
  canvas.width = view.columns;
  canvas.height = view.rows;
  const context = canvas.getContext("2d"), image = context.createImageData(view.columns, view.rows);
  for (let row = 0, place = 0; row < view.rows; row++) {
    for (let column = 0; column < view.columns; column++, place += 4) {
      image.data.set([...colors[Math.round(255 * view.share(row, column) ** view.curve)], 255], place);
    }
  }
  context.putImageData(image, 0, 0);
}

// One choice of several, the first at the start; `choose` is called with the number of another.
let groups = 0;
function choices(title, labels, choose) {
  const name = `choice-${groups++}`;
  const options = labels.map((label, number) => {
    const input = make("input", { type: "radio", name, checked: number === 0 && "", onchange: () => choose(number) });
    return make("label", { title: label }, input, label);
  });
  return make("fieldset", {}, make("legend", {}, title), ...options);
}

// Rows and columns that an arrow key moves by; undefined for any other key.
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// A large map. The cell under the pointer, or that the arrow keys lead to, is told above it; a click, or Enter,
// chooses it where `choose` is given.
class LargeMap {
  constructor(hint, choose) {
    Object.assign(this, { hint, choose, at: null });
    this.columnNames = make("div", { class: "names columns", "aria-hidden": "true" });
    this.rowNames = make("div", { class: "names rows", "aria-hidden": "true" });
    this.picture = make("img", { alt: "" });
    this.canvas = make("canvas", { tabindex: 0, role: "application", "aria-roledescription": "map" });
    this.cursor = make("div", { class: "cursor", hidden: "" });
    this.mark = make("div", { class: "cursor chosen", hidden: "" });
    this.field = make("div", { class: "field" }, this.canvas, this.mark, this.cursor);
    this.output = make("output", { "aria-live": "polite" });
    this.ends = [make("span"), make("div"), make("span")];
    this.box = make("div", {}, this.output, make("div", { class: "scroll" }, make("div", { class: "large" })),
      make("div", { class: "scale" }, ...this.ends));
    const cellOf = (event) => {
      const box = this.field.getBoundingClientRect(), { rows, columns } = this.view;
      return [clamp(Math.floor(((event.clientY - box.top) / box.height) * rows), rows),
        clamp(Math.floor(((event.clientX - box.left) / box.width) * columns), columns)];
    };
    this.field.addEventListener("pointermove", (event) => this.read(...cellOf(event)));
    this.field.addEventListener("click", (event) => {
      this.read(...cellOf(event));
      this.choose?.(...this.at);
    });
    this.canvas.addEventListener("keydown", (event) => {
      const step = ARROWS[event.key];
      if (step && !this.at) this.read(0, 0);
      else if (step) {
        const [row, column] = this.at;
        this.read(clamp(row + step[0], this.view.rows), clamp(column + step[1], this.view.columns));
      } else if (event.key === "Enter" && this.at && this.choose) this.choose(...this.at);
      else return;
      event.preventDefault();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.view && this.draw());
  }

  // A view with `describe(row, column)` too, and where it has them `names` of [rows, columns], a `picture` to lie on
  // and the cell `chosen`.
  show(view) {
    const same = ["rows", "columns", "names"].every((part) => this.view?.[part] === view[part]);
    this.view = view;
    const { rows, columns, names, picture, chosen } = view, large = this.box.querySelector(".large");
    large.style.cssText = `--rows: ${rows}; --columns: ${columns}`;
    this.box.className = names ? "labelled" : "plain";
    if (!same) {
      this.at = null;
      [this.rowNames, this.columnNames].forEach((node, side) =>
        node.replaceChildren(...(names?.[side] ?? []).map((name) => make("span", { title: name }, name))));
      large.replaceChildren(...(names ? [make("div"), this.columnNames, this.rowNames] : []), this.field);
    }
    if (picture) {
      this.picture.src = picture;
      this.field.prepend(this.picture);
    } else this.picture.remove();
    this.canvas.setAttribute("aria-label", `${view.title}; arrow keys read its values`);
    this.place(this.mark, chosen);
    this.draw();
    if (this.at) this.read(...this.at);
    else this.output.textContent = this.hint;
  }
  draw() {
    paint(this.canvas, this.view);
    const [low, bar, high] = this.ends, colors = colorsOf(this.view.scale);
    const stops = Array.from({ length: 9 }, (_, n) => `rgb(${colors[Math.round(255 * (n / 8) ** this.view.curve)]})`);
    bar.style.background = `linear-gradient(90deg, ${stops})`;
    [low.textContent, high.textContent] = this.view.ends;
  }
  place(node, cell) {
    node.hidden = !cell;
    if (!cell) return;
    const { rows, columns } = this.view, [row, column] = cell;
    const [width, height] = [100 / columns, 100 / rows];
    node.style.cssText = `left: ${column * width}%; top: ${row * height}%; width: max(6px, ${width}%);`
      + `height: max(6px, ${height}%)`;
  }
  read(row, column) {
    this.at = [row, column];
    this.place(this.cursor, this.at);
    [this.rowNames, this.columnNames].forEach((node, side) => {
      node.querySelector(".read")?.classList.remove("read");
      node.children[this.at[side]]?.classList.add("read");
    });
    this.output.textContent = this.view.describe(row, column);
  }
}
