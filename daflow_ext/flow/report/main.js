function start() {
  const head = JSON.parse(byId("head").textContent);
  const steps = [...document.querySelectorAll("script.step")];
  byId("subtitle").textContent = head.subtitle;
  const ramp = colorTable(head.valueRamp);
  buildSections(byId("results"), head.results, ramp);
  buildSections(byId("about"), head.about, ramp);
  if (steps.length === 0) return null;
  byId("viewer").hidden = false;
  byId("keys").hidden = false;
  const viewer = new Viewer(head, steps);
  const rowOfStep = new Map(head.statistics.map((row, number) => [row.step, number]));
  const seek = (row) => {
    const drawn = head.statistics.map(({ step }, number) => [Math.abs(number - row), step]).filter(([, step]) => step !== null);
    viewer.show(drawn.sort((one, other) => one[0] - other[0])[0][1]);
  };
  const mark = buildCurves(head.statistics, seek);
  const named = head.panels.find((panel) => panel.kind === "flow");
  const histogram = named ? buildHistogram(named.name) : null;
  viewer.onDraw = (index, step, full) => {
    if (rowOfStep.has(index)) mark(rowOfStep.get(index));
    if (histogram && step.flows[named.name]) histogram(step.flows[named.name], full);
  };
  document.addEventListener("keydown", (event) => {
    if (viewer.key(event)) event.preventDefault();
  });
  const asked = Number(location.hash.slice(1)) - 1; // page.html#10 opens at the tenth step
  viewer.show(asked in steps ? asked : 0);
  return viewer;
}

const viewer = start();
