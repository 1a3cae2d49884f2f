// Curves over the clip, tables, bars, heat maps.

const numberText = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(3);
};

// One curve per statistic; calls seek(step) where a curve is clicked. Returns mark(row).
function buildCurves(rows, seek) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row.values)))];
  const markers = names.map((name) => {
    const values = rows.map((row) => (name in row.values ? row.values[name] : NaN));
    const known = values.filter((value) => !Number.isNaN(value));
    const [low, high] = [Math.min(0, ...known), Math.max(...known)];
    const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
    const across = (row) => (rows.length > 1 ? (100 * row) / (rows.length - 1) : 50);
    const up = (value) => 38 - (36 * (value - low)) / (high - low || 1);
    let pen = "M";
    const d = values.map((value, row) => {
      if (Number.isNaN(value)) return (pen = "M") && "";
      const piece = `${pen}${across(row).toFixed(2)} ${up(value).toFixed(2)}`;
      pen = "L";
      return rows.length > 1 ? piece : `${piece}h0.01`;
    }).join("");
    const marker = svg("line", { y1: 0, y2: 40, x1: 0, x2: 0 });
    const now = element("output");
    const plot = svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img" }, [svg("path", { d }), marker]);
    plot.setAttribute("aria-label", `${name}: mean ${numberText(mean)}, from ${numberText(Math.min(...known))} to ${numberText(high)}`);
    plot.addEventListener("click", (event) => {
      const box = plot.getBoundingClientRect();
      seek(Math.round(((event.clientX - box.left) / box.width) * (rows.length - 1)));
    });
    byId("curves").append(element("div", { class: "chart" }, [
      element("header", {}, [element("span", {}, [name]), now]),
      plot,
      element("small", {}, [element("span", {}, [`mean ${numberText(mean)}`]),
        element("span", {}, [`${numberText(Math.min(...known))} … ${numberText(high)}`])]),
    ]));
    return (row) => {
      marker.setAttribute("x1", across(row));
      marker.setAttribute("x2", across(row));
      now.value = numberText(values[row]);
    };
  });
  byId("curves").hidden = names.length === 0;
  return (row) => markers.forEach((mark) => mark(row));
}

// How many stored vectors have which length; returns update(flow, full).
function buildHistogram(name) {
  const bins = 24;
  const bars = svg("g", { class: "bars" });
  const ends = [element("span"), element("span")];
  const share = element("output");
  byId("curves").hidden = false;
  byId("curves").append(element("div", { class: "chart" }, [
    element("header", {}, [element("span", {}, [`${name}: lengths`]), share]),
    svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", "aria-hidden": "true" }, [bars]),
    element("small", {}, ends),
  ]));
  return (flow, full) => {
    const counts = new Array(bins).fill(0);
    let beyond = 0;
    let known = 0;
    for (let i = 0; i < flow.x.length; i++) {
      const length = Math.hypot(flow.x[i], flow.y[i]);
      if (Number.isNaN(length)) continue;
      known++;
      if (length > full) beyond++;
      counts[Math.min(bins - 1, Math.floor((length / full) * bins))]++;
    }
    const most = Math.max(...counts, 1);
    bars.replaceChildren(...counts.map((count, bin) =>
      svg("rect", { x: (100 * bin) / bins, width: 92 / bins, y: 40 - (40 * count) / most, height: (40 * count) / most })));
    ends[0].textContent = "0 px";
    ends[1].textContent = `${full.toFixed(1)} px and more`;
    share.value = `${((100 * beyond) / (known || 1)).toFixed(1)} % beyond`;
  };
}

function tableOf(columns, rows) {
  const number = /^(-|[+-]?[\d.]+(\.\.[+-]?[\d.]+)?)$/; // also a range, or the dash of a missing one
  const numeric = (rows[0] || []).map((_, column) => columns.length > 0 && rows.every((row) => number.test(row[column])));
  const cell = (value, column) => element("td", numeric[column] ? { class: "number" } : {}, [value]);
  const body = rows.map((row) => element("tr", {}, row.map((value, column) =>
    column === 0 ? element("th", { scope: "row" }, [value]) : cell(value, column))));
  const head = columns.map((name, column) => element("th", { scope: "col", ...(numeric[column] && column ? { class: "number" } : {}) }, [name]));
  const parts = columns.length ? [element("thead", {}, [element("tr", {}, head)])] : [];
  return element("div", { class: "scroll", tabindex: 0 }, [element("table", {}, [...parts, element("tbody", {}, body)])]);
}

function barsOf({ groups, unit }) {
  const all = groups.flatMap((group) => group.bars);
  const most = Math.max(...all.map((bar) => (bar.interval ? bar.interval[1] : bar.value || 0)), 1e-9);
  const percent = (value) => `${Math.max(0, Math.min(100, (100 * value) / most))}%`;
  return groups.map((group) => element("div", { class: "group" }, [
    element("h3", {}, [group.name]),
    ...group.bars.map(({ label, value, interval }) => {
      const track = element("div", { class: "track", "aria-hidden": "true" }, [
        element("div", { class: "fill", style: `width: ${percent(value || 0)}` })]);
      let text = value === null ? "–" : `${numberText(value)} ${unit}`;
      if (interval) {
        const [low, high] = interval;
        track.append(element("div", { class: "whisker", style: `left: ${percent(low)}; right: calc(100% - ${percent(high)})` }));
        text += ` (${low.toFixed(2)} … ${high.toFixed(2)})`;
      }
      return element("div", { class: "bar" }, [
        element("span", {}, [label]), track, element("span", { class: "value" }, [text])]);
    }),
  ]));
}

function heatOf({ columns, rows, values, corner }, ramp) {
  const all = values.flat();
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const body = values.map((row, number) => element("tr", {}, [
    element("th", { scope: "row" }, [rows[number]]),
    ...row.map((value) => {
      const level = 3 * Math.round((255 * (value - low)) / (high - low || 1));
      const [red, green, blue] = ramp.subarray(level, level + 3);
      const ink = 0.3 * red + 0.6 * green + 0.1 * blue > 110 ? "#000" : "#fff";
      return element("td", { style: `background: rgb(${red} ${green} ${blue}); color: ${ink}` }, [value.toFixed(2)]);
    }),
  ]));
  const head = [corner, ...columns].map((name) => element("th", { scope: "col" }, [name]));
  return element("div", { class: "scroll", tabindex: 0 }, [
    element("table", { class: "heat" }, [element("thead", {}, [element("tr", {}, head)]), element("tbody", {}, body)])]);
}

function buildSections(place, sections, ramp) {
  for (const section of sections) {
    const inner = section.kind === "table" ? [tableOf(section.columns, section.rows)]
      : section.kind === "bars" ? barsOf(section) : [heatOf(section, ramp)];
    const wide = section.columns?.length > (section.kind === "heat" ? 12 : 4);
    const made = element("section", wide ? { class: "wide" } : {}, [element("h2", {}, [section.title]), ...inner]);
    if (section.note) made.append(element("p", { class: "hint" }, [section.note]));
    place.append(made);
  }
}
