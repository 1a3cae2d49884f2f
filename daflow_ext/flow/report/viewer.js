// The clip: panels, slider, reading under the cursor.

const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, children = []) {
  const made = attributes.xmlns ? document.createElementNS(attributes.xmlns, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name !== "xmlns") made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const svg = (tag, attributes = {}, children = []) => element(tag, { xmlns: SVG, ...attributes }, children);
const byId = (id) => document.getElementById(id);
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

class Viewer {
  constructor(head, steps) {
    this.head = head;
    this.codes = steps; // elements of JSON text, parsed when shown
    this.cache = new Map();
    this.wheel = colorTable(head.wheel);
    this.errorRamp = colorTable(head.errorRamp);
    this.index = 0;
    this.step = null;
    this.cursor = null; // [x, y] in pixels of the frames
    this.full = head.maxFlow;
    this.timer = null;
    this.onDraw = () => {};
    this.panels = this.listPanels().map((panel) => this.buildPanel(panel));
    this.buildControls();
  }

  listPanels() {
    const { panels, swipe } = this.head;
    const images = panels.filter((panel) => panel.kind === "image" && !(swipe || []).includes(panel.name));
    const flows = panels.filter((panel) => panel.kind === "flow");
    const found = swipe ? [{ name: swipe.join(" | "), kind: "swipe" }] : [];
    found.push(...images, ...flows);
    if (flows.length === 2) found.push({ name: "Error", kind: "error", of: flows.map((panel) => panel.name) });
    return [...found, ...panels.filter((panel) => panel.kind === "map")];
  }

  buildPanel(panel) {
    const layers = [];
    if (panel.kind === "swipe") layers.push(element("img"), element("img", { class: "over" }), element("div", { class: "divider" }));
    else if (panel.kind === "image") layers.push(element("img"));
    else if (panel.kind === "map") layers.push(element("img"), element("canvas", { class: "exact" }));
    else layers.push(element("canvas", { class: "exact" }));
    const note = element("small");
    const marks = svg("svg", { class: "marks", preserveAspectRatio: "none", "aria-hidden": "true" });
    const stage = element("div", { class: "stage" }, [...layers, marks]);
    const figure = element("figure", { class: "panel", "aria-label": panel.name }, [
      element("figcaption", {}, [element("span", {}, [panel.name]), note]),
      stage,
    ]);
    if (panel.kind === "swipe") {
      const divider = element("input", { type: "range", class: "swipe", min: 0, max: 100, value: 50, step: 1 });
      divider.setAttribute("aria-label", `Divider between ${this.head.swipe.join(" and ")}`);
      const move = () => stage.style.setProperty("--cut", `${divider.value}%`);
      const drag = (event) => {
        if (!(event.buttons & 1)) return;
        const box = stage.getBoundingClientRect();
        divider.value = (100 * (event.clientX - box.left)) / box.width;
        move();
      };
      divider.addEventListener("input", move);
      figure.classList.add("comparison");
      stage.addEventListener("pointerdown", (event) => stage.setPointerCapture(event.pointerId));
      stage.addEventListener("pointerdown", drag);
      stage.addEventListener("pointermove", drag);
      figure.append(divider);
      move();
    }
    stage.addEventListener("pointermove", (event) => this.pointAt(event, stage));
    stage.addEventListener("pointerdown", (event) => this.pointAt(event, stage));
    byId("panels").append(figure);
    return { ...panel, figure, stage, marks, note, layers };
  }

  buildControls() {
    const slider = byId("step");
    slider.max = this.codes.length - 1;
    slider.addEventListener("input", () => this.show(Number(slider.value)));
    byId("play").addEventListener("click", () => this.toggle());
    byId("play").hidden = this.codes.length < 2;
    this.panels.forEach((panel, number) => {
      const button = element("button", { type: "button", "aria-pressed": "true" }, [panel.name]);
      button.addEventListener("click", () => this.togglePanel(number));
      panel.button = button;
      byId("chooser").append(button);
    });
    const scale = byId("scale");
    scale.value = this.full.toFixed(1);
    scale.addEventListener("input", () => {
      if (!(scale.valueAsNumber > 0)) return;
      this.full = scale.valueAsNumber;
      this.draw();
    });
    byId("arrows").addEventListener("change", () => this.drawMarks());
    byId("legend").hidden = !this.panels.some((panel) => panel.kind === "flow");
  }

  async load(index) {
    if (!this.cache.has(index)) {
      if (this.cache.size >= 24) this.cache.delete(this.cache.keys().next().value);
      this.cache.set(index, decodeStep(JSON.parse(this.codes[index].textContent)));
    }
    return this.cache.get(index);
  }

  async show(index) {
    this.index = index;
    byId("step").value = index;
    const step = await this.load(index);
    if (index !== this.index) return; // the slider has moved on
    this.step = step;
    const shown = `${index + 1} of ${this.codes.length} · ${step.name}`;
    byId("number").value = shown;
    byId("step").setAttribute("aria-valuetext", shown);
    if (!this.cursor) this.cursor = step.size.map((side) => Math.floor(side / 2));
    this.cursor = this.cursor.map((value, axis) => Math.min(value, step.size[axis] - 1));
    this.draw();
    if (index + 1 < this.codes.length) this.load(index + 1);
  }

  draw() {
    for (const panel of this.panels) if (!panel.figure.hidden) this.drawPanel(panel);
    this.drawMarks();
    this.read();
    this.onDraw(this.index, this.step, this.full);
  }

  drawPanel({ name, kind, of, figure, stage, layers, note }) {
    const { step } = this;
    stage.style.aspectRatio = `${step.size[0]} / ${step.size[1]}`;
    note.textContent = "";
    const image = (layer, key) => {
      layer.hidden = !(key in step.images);
      if (layer.hidden) return void (note.textContent = "not in this step");
      layer.src = step.images[key];
      layer.alt = `${key}, ${step.name}`;
    };
    if (kind === "swipe") {
      const there = this.head.swipe.filter((key) => key in step.images);
      image(layers[0], this.head.swipe[1]);
      image(layers[1], this.head.swipe[0]);
      figure.classList.toggle("single", there.length === 1); // that one fills the panel
      if (there.length === 1) note.textContent = `only ${there[0]} in this step`;
    } else if (kind === "image") {
      image(layers[0], name);
    } else if (kind === "map") {
      const map = step.maps[name];
      image(layers[0], Object.keys(step.images)[0]);
      layers[1].hidden = !map;
      if (!map) return;
      paintOverlay(layers[1], map, this.head.overlays[map.mask ? "mask" : "confidence"]);
      note.textContent = map.mask ? "coloured where set" : "coloured where low";
    } else {
      const flows = (kind === "error" ? of : [name]).map((key) => step.flows[key]);
      layers[0].hidden = flows.includes(undefined);
      if (layers[0].hidden) return void (note.textContent = "not in this step");
      if (kind === "flow") paintFlow(layers[0], this.wheel, flows[0], this.full);
      else paintError(layers[0], this.errorRamp, ...flows, this.head.maxError);
      note.textContent = kind === "flow" ? "" : `yellow = ${this.head.maxError} px or more`;
    }
  }

  // The pixel whose vector is read: that of the stored cell under the cursor.
  stored(code) {
    const cell = this.cursor.map((value) => Math.floor(value / code.stride));
    const pixel = cell.map((value, axis) =>
      Math.min(value * code.stride + (code.stride >> 1), this.step.size[axis] - 1));
    return { place: cell[1] * code.width + cell[0], pixel };
  }

  drawMarks() {
    if (!this.step) return;
    const [width, height] = this.step.size;
    const names = Object.keys(this.step.flows);
    const withArrows = byId("arrows").checked;
    for (const panel of this.panels) {
      panel.marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const flow = this.step.flows[panel.kind === "flow" ? panel.name : names[0]];
      panel.marks.replaceChildren();
      if (!flow || panel.figure.hidden) continue;
      if (withArrows && panel.kind !== "error") {
        panel.marks.append(svg("path", { class: "arrows", d: this.needles(flow) }));
      }
      const { place, pixel } = this.stored(flow);
      const [x, y] = pixel.map((value) => value + 0.5); // the middle of the pixel
      const radius = Math.max(width, height) / 110;
      let d = `M${x - radius} ${y}a${radius} ${radius} 0 1 0 ${2 * radius} 0a${radius} ${radius} 0 1 0 ${-2 * radius} 0`;
      if (Number.isFinite(flow.x[place])) d += `M${x} ${y}l${flow.x[place]} ${flow.y[place]}`;
      panel.marks.append(svg("path", { class: "rim", d }), svg("path", { class: "ink", d }));
    }
  }

  needles(flow) {
    const every = Math.max(1, Math.round(Math.max(flow.width, flow.height) / 32));
    const parts = [];
    for (let row = every >> 1; row < flow.height; row += every) {
      for (let column = every >> 1; column < flow.width; column += every) {
        const place = row * flow.width + column;
        const [dx, dy] = [flow.x[place], flow.y[place]];
        if (Number.isNaN(dx)) continue;
        const length = Math.hypot(dx, dy);
        const [x, y] = [column, row].map((cell) => cell * flow.stride + (flow.stride >> 1) + 0.5);
        parts.push(`M${x} ${y}l${dx.toFixed(2)} ${dy.toFixed(2)}`);
        if (length < 1) continue;
        const head = Math.min(0.35 * length, 6 * flow.stride) / length;
        for (const turn of [0.5, -0.5]) {
          const [c, s] = [Math.cos(turn) * head, Math.sin(turn) * head];
          parts.push(`M${(x + dx).toFixed(2)} ${(y + dy).toFixed(2)}l${(-c * dx + s * dy).toFixed(2)} ${(-s * dx - c * dy).toFixed(2)}`);
        }
      }
    }
    return parts.join("");
  }

  pointAt(event, stage) {
    if (!this.step) return;
    const box = stage.getBoundingClientRect();
    const at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    this.moveCursor(at.map((part, axis) => Math.floor(part * this.step.size[axis])), "off");
  }

  moveCursor(position, live) {
    this.cursor = position.map((value, axis) => Math.max(0, Math.min(value, this.step.size[axis] - 1)));
    byId("reading").setAttribute("aria-live", live); // spoken when moved by keys, not for every move of a mouse
    this.drawMarks();
    this.read();
  }

  nudge(dx, dy) {
    const code = Object.values(this.step.flows)[0] || Object.values(this.step.maps)[0] || { stride: 1 };
    this.moveCursor([this.cursor[0] + dx * code.stride, this.cursor[1] + dy * code.stride], "polite");
  }

  read() {
    const { step } = this;
    const rows = [];
    const flows = Object.entries(step.flows);
    let place = this.cursor;
    const vectors = flows.map(([name, flow]) => {
      const at = this.stored(flow);
      place = at.pixel;
      const vector = [flow.x[at.place], flow.y[at.place]];
      rows.push([name, Number.isNaN(vector[0]) ? "unknown"
        : `(${signed(vector[0])}, ${signed(vector[1])}), length ${Math.hypot(...vector).toFixed(2)} px`]);
      return vector;
    });
    if (vectors.length === 2 && !Number.isNaN(vectors[0][0] + vectors[1][0])) {
      rows.push(["Error", `${Math.hypot(vectors[0][0] - vectors[1][0], vectors[0][1] - vectors[1][1]).toFixed(2)} px`]);
    }
    for (const [name, map] of Object.entries(step.maps)) {
      const value = map.values[this.stored(map).place];
      rows.push([name, map.mask ? (value > 0.5 ? "yes" : "no") : value.toFixed(2)]);
    }
    byId("place").textContent = `Pixel (${place[0]}, ${place[1]})`;
    byId("reading").replaceChildren(...rows.flatMap(([name, value]) =>
      [element("dt", {}, [name]), element("dd", {}, [value])]));
    if (flows.length) {
      const { stride, unit } = flows[0][1];
      const which = stride === 1 ? "every pixel" : `one pixel of every ${stride} × ${stride}`;
      byId("exactness").textContent = `Vectors are (to the right, down). This page stores ${which} in steps of ${unit < 1 ? `1/${1 / unit}` : unit} px, ` +
        `so a reading is right within ${(unit / 2).toFixed(3)} px.`;
      paintWheel(byId("wheel"), this.wheel, vectors[0].map((value) => value / this.full));
    }
  }

  togglePanel(number) {
    const panel = this.panels[number];
    if (!panel) return;
    panel.figure.hidden = !panel.figure.hidden;
    panel.button.setAttribute("aria-pressed", String(!panel.figure.hidden));
    this.draw();
  }

  toggle() {
    const button = byId("play");
    if (this.timer === null) {
      this.timer = setInterval(() => this.show((this.index + 1) % this.codes.length), 150);
    } else {
      clearInterval(this.timer);
      this.timer = null;
    }
    button.textContent = this.timer === null ? "Play" : "Stop";
    button.setAttribute("aria-pressed", String(this.timer !== null));
  }

  // Whether the key meant something.
  key(event) {
    const { key, target } = event;
    const last = this.codes.length - 1;
    const typing = target instanceof HTMLInputElement && target !== byId("step");
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const steps = { ArrowLeft: this.index - 1, ArrowRight: this.index + 1, PageDown: this.index - 10, PageUp: this.index + 10 };
    if (event.ctrlKey || event.altKey || event.metaKey || !this.step) return false;
    if (event.shiftKey && key in moves && !typing) this.nudge(...moves[key]);
    else if (typing && target.type !== "checkbox") return false;
    else if (key in steps) this.show(Math.max(0, Math.min(steps[key], last)));
    else if (key === "Home" || key === "End") this.show(key === "Home" ? 0 : last);
    else if (key === " " && !(target instanceof HTMLButtonElement) && target.type !== "checkbox") this.toggle();
    else if (/^[1-9]$/.test(key)) this.togglePanel(Number(key) - 1);
    else if (key === "a" || key === "A") byId("arrows").click();
    else return false;
    return true;
  }
}
